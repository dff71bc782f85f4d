/*
 * supervise_traced.c: the launcher while it traces the action itself (MODE `ptrace:…`).
 *
 *   stops → trace_loop.c (hashes while the opener is held) → frames TRACE → daemon
 *   signals and the daemon's connection → as in supervise.c, between the stops
 *
 * The tracer knows every descendant, so the end of the last one is the end of the action. Owns
 * none of the fds. Privilege: none.
 */
#include "supervise.h"
#include "trace.h"
#include "../protocol.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

struct traced {
	struct supervision s;
	int64_t deadline_ms; /* for descendants, once the action's own process has ended */
	bool said;	     /* why it failed */
};

static int before_wait(void *context, struct pollfd *ret_fds, int fds_max, int *ret_timeout_ms)
{
	struct traced *traced = context;
	const struct supervision *s = &traced->s;

	if (fds_max < 3)
		return -EINVAL;
	ret_fds[0] = (struct pollfd){s->signal_fd, POLLIN, 0};
	ret_fds[1] = (struct pollfd){s->control_fd, POLLIN, 0};
	ret_fds[2] = (struct pollfd){s->armed ? s->conn_fd : -1, POLLIN, 0};
	if (s->ended && traced->deadline_ms != INT64_MAX) {
		int64_t left = traced->deadline_ms - monotonic_ms();

		*ret_timeout_ms = left <= 0 ? 0 : left < INT32_MAX ? (int)left : INT32_MAX;
	}
	return 3;
}

/* Above 0: kill what is left. */
static int after_wait(void *context, const struct pollfd *fds, int count)
{
	struct traced *traced = context;
	struct supervision *s = &traced->s;
	bool stop = false;

	(void)count;
	if (fds[1].revents)
		control_event(s);
	if (fds[2].revents) {
		int r = connection_event(s->conn_fd);

		if (r < 0) {
			traced->said = true;
			return r;
		}
	}
	if (fds[0].revents)
		stop = forward_signals(s);
	if (!s->ended)
		return 0;
	return stop || monotonic_ms() >= traced->deadline_ms;
}

static void child_ended(void *context, int wait_status)
{
	struct traced *traced = context;

	traced->s.ended = true;
	traced->s.wait_status = wait_status;
	traced->deadline_ms = descendants_deadline(traced->s.options, traced->s.told);
}

static void child_stopped(void *context, int signo)
{
	(void)context;
	mirror_stop(signo);
}

static int send_records(void *context, const void *records, size_t size)
{
	const struct traced *traced = context;
	struct buffer frame;
	int r = frame_begin(&frame, RS_FRAME_TRACE);

	if (r >= 0)
		r = frame_add(&frame, RS_TAG_EVENTS, records, size);
	return r < 0 ? r : frame_send(traced->s.conn_fd, &frame);
}

static void say_failure(int error)
{
	if (error == -ENOEXEC)
		say("the action was killed: it ran code of another kind (x32, or 32-bit ARM), "
		    "whose opens cannot be captured by ptrace. Build it for this machine, or "
		    "capture with fanotify.");
	else if (error == -ENOMEM)
		say("the action was killed: there is no memory left to trace it.");
	else
		say("the trace of the action failed (%s), so the action was killed. Run `rootseal "
		    "daemon ensure` and build again.",
		    strerror(-error));
}

int supervise_traced(const struct options *options, const struct trace_plan *plan, pid_t pid,
		     int signal_fd, int control_fd, int conn_fd, struct outcome *ret_outcome)
{
	struct traced traced = {.s = {.options = options,
				      .pid = pid,
				      .signal_fd = signal_fd,
				      .control_fd = control_fd,
				      .conn_fd = conn_fd,
				      .guard = {.listener = -1}}};
	const struct rs_trace_config config = {
	    .limits = {plan->files_max, plan->hashed_bytes_max, plan->processes_max},
	    .guards = plan->guards,
	    .hooks = {&traced, before_wait, after_wait, child_ended, child_stopped},
	    .sink = {&traced, send_records},
	};
	struct rs_trace_result result;
	int r = rs_trace_run(&config, pid, &result);

	if (r < 0) {
		if (!traced.said)
			say_failure(r);
		return r == -EINTR ? -ECANCELED : r;
	}
	last_words(&traced.s);
	r = check_armed(&traced.s, ret_outcome);
	if (r < 0)
		return r;
	*ret_outcome = (struct outcome){result.wait_status, result.killed, result.escapes,
					result.mounts, traced.s.guard.unseen};
	return 0;
}
