/*
 * trace_plan.c: whether this launcher traces, and `--probe-trace`.
 *
 * Pure but for the probe. No privilege needed.
 */
#include "launcher.h"
#include "trace.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LIMIT_MAX (UINT64_C(1) << 62)

static int parse_limit(const char **text, char end, uint64_t *ret_value)
{
	uint64_t value = 0;
	const char *p = *text;

	if (*p < '0' || *p > '9')
		return -EPROTO;
	for (; *p >= '0' && *p <= '9'; p++) {
		value = value * 10 + (uint64_t)(*p - '0');
		if (value > LIMIT_MAX)
			return -EPROTO;
	}
	if (*p != end)
		return -EPROTO;
	*text = end ? p + 1 : p;
	*ret_value = value;
	return 0;
}

/*
 * `ptrace:DIGESTS:BYTES:PROCESSES`, or the same after `fanotify+`; any other mode is one in which
 * nobody traces.
 */
int trace_plan_parse(const char *mode, struct trace_plan *ret_plan)
{
	static const char both[] = "fanotify+", traced[] = "ptrace:";
	struct trace_plan plan = {.wanted = true};
	int r;

	if (!strncmp(mode, both, strlen(both))) {
		plan.guards = true;
		mode += strlen(both);
	}
	if (strncmp(mode, traced, strlen(traced)) != 0) {
		*ret_plan = (struct trace_plan){0};
		return plan.guards ? -EPROTO : 0;
	}
	mode += strlen(traced);
	r = parse_limit(&mode, ':', &plan.files_max);
	if (r >= 0)
		r = parse_limit(&mode, ':', &plan.hashed_bytes_max);
	if (r >= 0)
		r = parse_limit(&mode, '\0', &plan.processes_max);
	if (r >= 0)
		*ret_plan = plan;
	return r;
}

/* 0 if tracing works here; else 1 and the reason on stdout. */
int trace_probe_main(void)
{
	const char *reason;
	int r = rs_trace_probe(&reason);

	if (r < 0)
		printf("%s\n", reason);
	return r < 0;
}
