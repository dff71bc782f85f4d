// SPDX-License-Identifier: Apache-2.0
/*
 * Does tracing work on this host, for this process? Traces a child that opens one file and ends,
 * before any action starts, so that a fallback never happens in the middle of one. The reasons are
 * those of docs/protocol.md (TRACE_REFUSED).
 *
 * Owns: the child, reaped before it returns. Must not: leave a process or an fd behind.
 * Privilege: none.
 */
#include "trace_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* The probe's child: its open must stop at the filter and be hashed. */
static void probe_child(int handshake)
{
	int fd;

	if (rs_trace_child_setup(handshake) < 0)
		_exit(2);
	fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	_exit(fd < 0 ? 3 : 0);
}

static int probe_emit(void *context, const void *records, size_t size)
{
	(void)records;
	*(size_t *)context += size;
	return 0;
}

static int probe_run(pid_t child, const char **ret_reason)
{
	size_t seen = 0;
	struct rs_trace_config config = {.limits = {16, 0, 16}, .sink = {&seen, probe_emit}};
	struct rs_trace_result ended = {0};
	int result = rs_trace_run(&config, child, &ended), status = ended.wait_status;

	if (result < 0 || !WIFEXITED(status)) {
		*ret_reason = "broken: a traced process did not run to its end";
		return result < 0 ? result : -EIO;
	}
	if (WEXITSTATUS(status) == 2) {
		*ret_reason = "no-filter";
		return -EPERM;
	}
	if (WEXITSTATUS(status) != 0 || seen == 0) {
		*ret_reason = "broken: the trace did not see an open";
		return -EIO;
	}
	return 0;
}

/* Then our child is traced from birth, if that tracer follows children. */
static int is_traced(void)
{
	FILE *file = fopen("/proc/self/status", "re");
	char line[128];
	int tracer = 0;

	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, "TracerPid:", strlen("TracerPid:")))
			tracer = atoi(line + strlen("TracerPid:"));
	if (file)
		fclose(file);
	return tracer > 0;
}

static const char *refusal(int error)
{
	if (is_traced())
		return "traced";
	return error == -EPERM || error == -EACCES || error == -ENOSYS
		   ? "not-permitted"
		   : "broken: the kernel refused PTRACE_SEIZE";
}

int rs_trace_probe(const char **ret_reason)
{
	int pair[2], result;
	pid_t child;

	*ret_reason = "broken: no process could be started";
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	child = fork();
	if (child == 0) {
		close(pair[0]);
		probe_child(pair[1]);
	}
	close(pair[1]);
	if (child < 0) {
		close(pair[0]);
		return -EAGAIN;
	}
	result = rs_trace_attach(child, pair[0]);
	if (result == 0)
		return probe_run(child, ret_reason);
	*ret_reason = refusal(result);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	return result;
}

/*
 * Its filter must be accepted; it stops nowhere. A traced child can be waited for where SIGCHLD is
 * ignored too.
 */
static int check_filter(pid_t child, const char **ret_reason)
{
	int status;

	if (waitpid(child, &status, __WALL) < 0)
		return -errno;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	*ret_reason = "no-filter";
	return -EPERM;
}

int rs_trace_check(const char **ret_reason)
{
	int pair[2], result;
	pid_t child;

	*ret_reason = "broken: no process could be started";
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	child = fork();
	if (child == 0) {
		close(pair[0]);
		_exit(rs_trace_child_setup(pair[1]) < 0);
	}
	close(pair[1]);
	if (child < 0) {
		close(pair[0]);
		return -EAGAIN;
	}
	result = rs_trace_attach(child, pair[0]);
	if (result == 0)
		return check_filter(child, ret_reason);
	*ret_reason = refusal(result);
	kill(child, SIGKILL);
	waitpid(child, NULL, __WALL);
	return result;
}
