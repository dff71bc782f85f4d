/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Capture by ptrace and seccomp, for an ordinary user: the public interface.
 *
 * The launcher's child calls rs_trace_child_setup() just before it executes the action; the
 * launcher calls rs_trace_run() instead of its own wait loop. Every file that the action opens
 * or executes is hashed while the opener is held; what was seen goes to the sink as the records
 * of native/trace_event.h.
 *
 *   child: rs_trace_child_setup ──handshake──► launcher: rs_trace_attach, rs_trace_run
 *   rs_trace_run ──records──► sink ──frame TRACE──► daemon (capture/ptrace.py)
 */
#pragma once

#include <poll.h>
#include <stdint.h>
#include <sys/types.h>

struct rs_trace_limits {
	uint64_t files_max;	   /* distinct (path, digest) */
	uint64_t hashed_bytes_max; /* 0: no limit */
	uint64_t processes_max;
};

/* Where records go. emit() gets whole records; a negative result ends the action. */
struct rs_trace_sink {
	void *context;
	int (*emit)(void *context, const void *records, size_t size);
};

/*
 * What the launcher does beside tracing. before_wait() fills in what to poll and the longest
 * wait (-1: no limit) and returns the count; after_wait() is called after each poll: 0 goes on,
 * above 0 kills the action and goes on to its end, below 0 is an error that ends it at once.
 * child_ended() tells the wait status of the action's own process, child_stopped() the signal that
 * has stopped it (job control).
 */
struct rs_trace_hooks {
	void *context;
	int (*before_wait)(void *context, struct pollfd *ret_fds, int fds_max, int *ret_timeout_ms);
	int (*after_wait)(void *context, const struct pollfd *fds, int count);
	void (*child_ended)(void *context, int wait_status);
	void (*child_stopped)(void *context, int signo);
};

struct rs_trace_config {
	struct rs_trace_limits limits;
	int guards;	     /* count what leads away from marked mounts (trace_guard.c) */
	const char *exclude; /* absolute path that is never a product (the record), or NULL */
	struct rs_trace_hooks hooks;
	struct rs_trace_sink sink;
};

/*
 * Child side: waits until the parent has attached, then installs the filter. After it, only
 * execve or _exit. `handshake` is the child's end of a socket pair; it is closed.
 */
int rs_trace_child_setup(int handshake);

/* Parent side: attaches to the child that waits in rs_trace_child_setup(); closes `handshake`. */
int rs_trace_attach(pid_t child, int handshake);

/*
 * Runs until no traced process is left. Needs SIGCHLD blocked. Returns 0 or -errno; on an error
 * every process is killed first.
 */
struct rs_trace_result {
	int wait_status;  /* of `child` */
	uint64_t killed;  /* processes that were killed because after_wait() asked for it */
	uint64_t escapes; /* with `guards`: calls that make or enter a mount namespace */
	uint64_t mounts;  /* likewise: calls that make a mount */
};
int rs_trace_run(const struct rs_trace_config *config, pid_t child,
		 struct rs_trace_result *ret_result);

/* Whether tracing works here: traces a process of its own. `ret_reason` names what failed. */
int rs_trace_probe(const char **ret_reason);

/* The same in a fraction of the time, without an open; changes no signal's state. */
int rs_trace_check(const char **ret_reason);
