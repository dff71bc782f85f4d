/*
 * main.c: rootseal-exec runs one action under the eyes of a daemon (docs/protocol.md).
 *
 *   parse → announce → fork (child.c becomes the action) → supervise → record → the action's end
 *
 * Privilege: at entry the caller's, perhaps CAP_SYS_ADMIN; the parent gives it up right after the
 * fork when --drop-to asks for it, because only the child's namespace needs it. Nothing of the
 * action can attach to this process (not dumpable).
 */
#include "launcher.h"
#include "trace.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

struct run {
	struct options options;
	struct record_place place;
	struct signal_state signals;
	struct prepared prepared;
	int signal_fd;
	int control_fd; /* read end */
	enum namespace_way way;
	const char *helper;
};

/*
 * The launcher must not keep the action's pipes open: who reads the action's stdout sees the end of
 * file when the action closes it. stderr stays, for the one line that may be needed.
 */
static int release_stdio(void)
{
	cleanup_fd int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null < 0)
		return -errno;
	for (int fd = 0; fd <= 1; fd++)
		if (fcntl(fd, F_GETFD) >= 0 && null != fd && dup2(null, fd) < 0)
			return -errno;
	if (null <= 1)
		null = -1;
	return 0;
}

static int ascending(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

/* Other fds of the caller (a build tool's pipes, a jobserver) belong to the action alone. */
static int release_others(const struct run *run)
{
	int kept[] = {run->prepared.conn_fd, run->signal_fd, run->control_fd, run->place.dir_fd};
	size_t count = sizeof(kept) / sizeof(*kept);

	qsort(kept, count, sizeof(*kept), ascending);
	return close_all_but(3, kept, count);
}

/* Both ends above stdio; the child's end is closed by exec. */
static int socket_pair(int pair[2])
{
	int low[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, low) < 0)
		return -errno;
	pair[0] = fcntl(low[0], F_DUPFD_CLOEXEC, 3);
	pair[1] = fcntl(low[1], F_DUPFD_CLOEXEC, 3);
	close(low[0]);
	close(low[1]);
	return pair[0] < 0 || pair[1] < 0 ? -errno : 0;
}

/* Attached before the child may exec: it waits for the tracer after ARMED. */
static int start_trace(pid_t pid, int handshake)
{
	int r = rs_trace_attach(pid, handshake);

	if (r < 0)
		say("the action cannot be traced: %s. Run `rootseal doctor`.", strerror(-r));
	return r;
}

/* The child's pid, or -errno. */
static pid_t start_child(struct run *run)
{
	int trace[2] = {-1, -1}, control[2] = {-1, -1};
	struct child child = {.conn_fd = run->prepared.conn_fd,
			      .trace_fd = -1,
			      .parent_pid = getpid(),
			      .private_namespace = run->prepared.private_namespace,
			      .guarded_by_tracer = run->prepared.trace.guards,
			      .way = run->way,
			      .helper = run->helper,
			      .signals = run->signals};
	pid_t pid;
	/* On which the child says "armed" (with the guard's listener) or "failed". */
	int r = socket_pair(control);

	if (r >= 0 && run->prepared.trace.wanted)
		r = socket_pair(trace);
	if (r < 0)
		return r;
	run->control_fd = control[0];
	child.control_fd = control[1];
	child.trace_fd = trace[1];
	pid = fork();
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		close(control[0]);
		if (trace[0] >= 0)
			close(trace[0]);
		child_run(&run->options, &child);
	}
	close(child.control_fd);
	if (!run->prepared.trace.wanted)
		return pid;
	close(trace[1]);
	r = start_trace(pid, trace[0]);
	if (r >= 0)
		return pid;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return r;
}

static int become_parent(struct run *run)
{
	int r = release_stdio();

	if (r >= 0)
		r = release_others(run);
	if (r >= 0)
		r = privileges_drop(&run->options.drop_to);
	if (r >= 0 && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		r = -errno;
	return r;
}

/* Signals act on the launcher again: the action is gone, and waiting for the record may be ended.
 */
static int prepare(struct run *run)
{
	int r = record_place_open(run->options.record, &run->place);

	if (r < 0)
		return r;
	run->way = namespace_way(run->options.helper, &run->helper);
	r = announce(&run->options, run->way, &run->prepared);
	if (r < 0)
		return r;
	if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0)
		r = -errno;
	/* A child that is not dumpable cannot be traced by an unprivileged parent: where the child
	 * is to be traced, only become_parent() takes this away, when the child exists. */
	else if (!run->prepared.trace.wanted && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		r = -errno;
	else
		r = signals_take(&run->signals, &run->signal_fd);
	if (r < 0)
		say("the action cannot be started: %s.", strerror(-r));
	return r;
}

static int run_action(struct run *run, struct outcome *ret_outcome)
{
	uint64_t killed;
	pid_t pid = start_child(run);
	int r = pid;

	if (r >= 0) {
		r = become_parent(run);
		if (r < 0)
			descendants_kill_all(&killed);
	}
	if (r < 0) {
		say("the action cannot be started: %s.", strerror(-r));
		return r;
	}
	if (run->prepared.trace.wanted)
		return supervise_traced(&run->options, &run->prepared.trace, pid, run->signal_fd,
					run->control_fd, run->prepared.conn_fd, ret_outcome);
	return supervise(&run->options, pid, run->signal_fd, run->control_fd, run->prepared.conn_fd,
			 ret_outcome);
}

/* End as the action ended: its exit code, or its signal. */
static int end_as(int wait_status)
{
	const struct rlimit no_core = {0, 0};
	struct sigaction act = {.sa_handler = SIG_DFL};
	sigset_t set;
	int signo;

	if (!WIFSIGNALED(wait_status))
		return WEXITSTATUS(wait_status);
	signo = WTERMSIG(wait_status);
	setrlimit(RLIMIT_CORE, &no_core); /* the core, if any, is the action's */
	sigaction(signo, &act, NULL);
	sigemptyset(&set);
	sigaddset(&set, signo);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	kill(getpid(), signo);
	return 128 + signo; /* the first process of a pid namespace does not die of it */
}

int main(int argc, char **argv)
{
	struct run run = {.prepared.conn_fd = -1, .signal_fd = -1, .control_fd = -1};
	struct outcome outcome = {0};
	int r;

	if (argc == 2 && !strcmp(argv[1], "--probe-trace"))
		return trace_probe_main();
	r = args_parse(argc, argv, &run.options);

	if (r < 0)
		return EXIT_ROOTSEAL;
	if (run.options.stage2.wanted)
		child_stage2(&run.options);
	frame_errors_to(run.options.error);
	/* First of all: from here on every fd above stdio is our own. */
	if (run.options.stdio_only && close_all_but(3, NULL, 0) < 0) {
		say("inherited descriptors cannot be closed: %s. Mount /proc.", strerror(errno));
		return EXIT_ROOTSEAL;
	}
	if (prepare(&run) < 0)
		return EXIT_ROOTSEAL;
	r = run_action(&run, &outcome);
	if (r == -EINTR)
		return end_as(
		    outcome.wait_status); /* killed before it started: nothing to record */
	if (r < 0)
		return EXIT_ROOTSEAL;
	if (signals_restore(&run.signals) < 0)
		return EXIT_ROOTSEAL;
	if (record_receive(run.prepared.conn_fd, &outcome, &run.place) < 0)
		return EXIT_ROOTSEAL;
	return end_as(outcome.wait_status);
}
