/*
 * child.c: the process that becomes the action, from fork to exec.
 *
 *   fork → private mount namespace (directly, or in the helper, which execs us again as stage 2)
 *        → privileges dropped → READY → daemon arms → ARMED → connection closed → exec
 *
 * Privilege: at entry the launcher's; from privileges_drop on only what the action shall have.
 * Everything it owns is CLOEXEC (across the helper: inherited by number), so the action gets the
 * caller's fds and no other.
 */
#include "launcher.h"
#include "trace.h"
#include "../protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>

extern char **environ;

/* Tell the parent that this exit status is not the action's. */
static _Noreturn void fail(int control_fd)
{
	const char failed = CONTROL_FAILED;

	if (write(control_fd, &failed, 1) != 1)
		say("the launcher cannot be told about it: %s.", strerror(errno));
	_exit(EXIT_ROOTSEAL);
}

static int enter_namespace(void)
{
	if (unshare(CLONE_NEWNS) < 0)
		return -errno;
	/* Nothing that is mounted outside may appear inside, where it would not be marked. */
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return -errno;
	return 0;
}

static int inherit(int fd)
{
	return fcntl(fd, F_SETFD, 0) < 0 ? -errno : 0;
}

/* The helper is exec'd with the action's arguments and environment; only argv grows. */
static int exec_helper(const struct options *options, const struct child *child)
{
	char self[PATH_MAX], stage2[64], control[16];
	size_t count = 0;
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char **argv;
	int r;

	if (n < 0)
		return -errno;
	self[n] = 0;
	while (options->argv[count])
		count++;
	argv = calloc(count + 6, sizeof(*argv));
	if (!argv)
		return -ENOMEM;
	snprintf(stage2, sizeof(stage2), "--stage2=%d,%d,%d", child->conn_fd, child->control_fd,
		 (int)child->parent_pid);
	snprintf(control, sizeof(control), "%d", child->control_fd);
	argv[0] = (char *)child->helper;
	argv[1] = control;
	argv[2] = self;
	argv[3] = stage2;
	argv[4] = "--";
	memcpy(argv + 5, options->argv, count * sizeof(*argv));
	r = inherit(child->conn_fd);
	if (r >= 0)
		r = inherit(child->control_fd);
	if (r >= 0) {
		execve(child->helper, argv, environ);
		r = -errno;
	}
	free(argv);
	return r;
}

/* READY → ARMED. The daemon's thread now knows us by the kernel's word (SCM_CREDENTIALS). */
static int wait_armed(int fd)
{
	int r = frame_send_empty(fd, RS_FRAME_READY);

	while (r >= 0) {
		struct frame_header header;

		r = frame_read_header(fd, &header);
		if (r < 0)
			break;
		if (header.type == RS_FRAME_ARMED && !header.length)
			return 0;
		if (header.type == RS_FRAME_ERROR) {
			r = frame_say_error(fd, header.length, NULL);
			return r < 0 ? r : -ECANCELED;
		}
		if (header.type != RS_FRAME_PROGRESS)
			return -EPROTO;
		r = frame_skip(fd, header.length);
	}
	return r;
}

/* From here on the tracer holds us at the calls that matter. -1: nobody traces. */
static int be_traced(int trace_fd)
{
	int r = trace_fd < 0 ? 0 : rs_trace_child_setup(trace_fd);

	if (r < 0)
		say("the action cannot be traced: %s. Run `rootseal doctor`.", strerror(-r));
	return r;
}

/* Show the capture what the action inherits open, and tell the parent what could not be shown. */
static int show_inherited(bool stdio_only, int control_fd)
{
	uint64_t unseen;
	int r = inherited_see(stdio_only, &unseen);

	if (r < 0)
		say("the inherited files cannot be listed: %s. Mount /proc.", strerror(-r));
	while (r >= 0 && unseen-- > 0)
		r = guard_send(control_fd, CONTROL_UNSEEN, -1);
	return r;
}

/* listener: of the guard, -1 if it has none; NOT_GUARDED: the action has no namespace of its own.
 */
#define NOT_GUARDED (-2)
static _Noreturn void ready_and_exec(int conn_fd, int control_fd, int trace_fd, int listener,
				     const struct options *options)
{
	char **argv = options->argv;
	int r = wait_armed(conn_fd);

	if (r < 0) {
		if (r != -ECANCELED)
			say("the Rootseal daemon went away before the action started (%s). Run "
			    "`rootseal "
			    "daemon ensure` and build again.",
			    strerror(-r));
		fail(control_fd);
	}
	close(conn_fd); /* the action never holds the connection */
	if (listener != NOT_GUARDED && show_inherited(options->stdio_only, control_fd) < 0)
		fail(control_fd);
	if (be_traced(trace_fd) < 0 || guard_send(control_fd, CONTROL_ARMED, listener) < 0)
		fail(control_fd);
	if (listener >= 0)
		close(listener); /* the parent alone answers */
	r = exec_action(argv);
	say("%s: %s", argv[0], strerror(-r));
	_exit(r == -ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE);
}

static _Noreturn void fail_namespace(const struct child *child, int error)
{
	say("the action cannot get a private mount namespace (%s): %s. Run `rootseal doctor`.",
	    namespace_way_name(child->way), strerror(-error));
	fail(child->control_fd);
}

void child_run(const struct options *options, struct child *child)
{
	int r = die_with_parent(child->parent_pid), listener = NOT_GUARDED;

	if (r >= 0)
		r = signals_restore(&child->signals);
	if (r < 0)
		fail(child->control_fd);
	if (child->private_namespace && child->way == NAMESPACE_HELPER)
		fail_namespace(child, exec_helper(options, child));
	if (child->private_namespace) {
		listener = -1;
		r = enter_namespace();
		if (r >= 0 && !child->guarded_by_tracer)
			r = guard_enter(&listener);
		if (r < 0)
			fail_namespace(child, r);
	}
	r = privileges_drop(&options->drop_to);
	if (r >= 0)
		r = die_with_parent(child->parent_pid);
	if (r < 0) {
		say("the privileges cannot be dropped: %s. Check --drop-to.", strerror(-r));
		fail(child->control_fd);
	}
	ready_and_exec(child->conn_fd, child->control_fd, child->trace_fd, listener, options);
}

void child_stage2(const struct options *options)
{
	const struct stage2 *stage2 = &options->stage2;
	int r = 0;

	if (fcntl(stage2->conn_fd, F_SETFD, FD_CLOEXEC) < 0 ||
	    fcntl(stage2->control_fd, F_SETFD, FD_CLOEXEC) < 0) {
		say("--stage2 is for rootseal-scope alone.");
		_exit(EXIT_ROOTSEAL);
	}
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		r = -errno;
	if (r >= 0)
		r = die_with_parent(stage2->parent_pid);
	if (r < 0)
		fail(stage2->control_fd);
	if (guard_check() < 0) {
		say("the action's calls cannot be watched: rootseal-scope is of another release; "
		    "run `sudo make install-helper`.");
		fail(stage2->control_fd);
	}
	ready_and_exec(stage2->conn_fd, stage2->control_fd, -1, -1, options);
}
