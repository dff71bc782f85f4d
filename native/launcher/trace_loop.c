// SPDX-License-Identifier: Apache-2.0
/*
 * The event loop: waits for stops of the traced tasks, has each looked at while the task is held,
 * and lets it go on.
 *
 * Owns: every ptrace request that resumes a task. Must not: resume a task before what it opened
 * is hashed; swallow or invent a signal; lose a task without counting it.
 *
 *   waitpid ──stop──► on_stop ──► trace_open.c, trace_exec.c, … ──► resume
 *   poll: SIGCHLD and what the launcher's hooks ask for (its daemon connection, its signals)
 *
 * Privilege: none; the tasks are the launcher's descendants. PTRACE_O_EXITKILL: they die with it.
 */
#include "trace_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define POLL_FDS_MAX	 16
#define EVENTS_PER_ROUND 256 /* stops handled before the hooks are looked at again */
#define SYSCALL_STOP	 (SIGTRAP | 0x80)

#define OPTIONS                                                                                    \
	(PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE |  \
	 PTRACE_O_TRACEEXEC | PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL)

int rs_trace_child_setup(int handshake)
{
	char byte;
	ssize_t got;

	do {
		got = read(handshake, &byte, 1);
	} while (got < 0 && errno == EINTR);
	close(handshake);
	if (got != 1)
		return -ECONNRESET;
	return rs_trace_filter_install();
}

int rs_trace_attach(pid_t child, int handshake)
{
	int result = ptrace(PTRACE_SEIZE, child, 0, OPTIONS) < 0 ? -errno : 0;

	if (result == 0 && write(handshake, "T", 1) != 1)
		result = -errno;
	close(handshake);
	return result;
}

/* A request that fails because the task was killed meanwhile is no loss; it will be reported. */
static void resume(struct rs_tracer *t, struct rs_task *task, int request, int signal)
{
	if (ptrace(request, task->tid, 0, (long)signal) < 0 && errno != ESRCH)
		rs_lost(t, RS_TRACE_LOSS_TRACER, rs_process_of(t, task)->number, "");
}

/* The next stop is the next call of the filter, or of any kind while the process is watched. */
static void go_on(struct rs_tracer *t, struct rs_task *task, int signal)
{
	int every = task->awaiting_exit || rs_process_of(t, task)->watch_count > 0;

	resume(t, task, every ? PTRACE_SYSCALL : PTRACE_CONT, signal);
}

static int get_info(struct rs_tracer *t, struct rs_task *task,
		    struct __ptrace_syscall_info *ret_info)
{
	memset(ret_info, 0, sizeof(*ret_info));
	if (ptrace(PTRACE_GET_SYSCALL_INFO, task->tid, sizeof(*ret_info), ret_info) >= 0)
		return 1;
	if (errno != ESRCH)
		rs_lost(t, RS_TRACE_LOSS_TRACER, rs_process_of(t, task)->number, "");
	return 0;
}

/* A foreign kind of code (x32, 32-bit ARM) could open what we do not see: the action ends. */
static void refuse(struct rs_tracer *t, struct rs_task *task)
{
	rs_lost(t, RS_TRACE_LOSS_TRACER, rs_process_of(t, task)->number, "foreign architecture");
	t->error = -ENOEXEC;
}

static void set_call(struct rs_task *task, uint32_t arch, uint64_t number, const uint64_t args[6])
{
	task->arch = arch;
	task->number = number;
	task->call = rs_trace_call_lookup(arch, number);
	for (int i = 0; i < 6; i++)
		task->args[i] = args[i];
	task->awaiting_exit = 0;
}

static void on_seccomp(struct rs_tracer *t, struct rs_task *task)
{
	struct __ptrace_syscall_info info;

	if (!get_info(t, task, &info))
		return;
	if (!rs_trace_arch_known(info.arch) || info.seccomp.nr & 0x40000000u) {
		refuse(t, task);
		return;
	}
	set_call(task, info.arch, info.seccomp.nr, info.seccomp.args);
	if (task->call != RS_CALL_OTHER && !rs_call_begun(t, task))
		task->awaiting_exit = 1;
	go_on(t, task, 0);
}

static void entered_namespace(struct rs_tracer *t, struct rs_task *task, int64_t result)
{
	uint64_t flags = task->call == RS_CALL_unshare ? task->args[0] : task->args[1];

	if (result == 0 && (task->call == RS_CALL_unshare || task->call == RS_CALL_setns) &&
	    (flags == 0 || flags & CLONE_NEWNS))
		rs_process_of(t, task)->foreign_namespace = 1;
}

static void on_exit_of_call(struct rs_tracer *t, struct rs_task *task, int64_t result)
{
	switch (task->call) {
	case RS_CALL_OTHER: /* a clone3 whose child is followed: on_new_task */
		return;
	case RS_CALL_clone3: /* its flags were changed after they were looked at */
		if (result > 0)
			rs_lost(t, RS_TRACE_LOSS_TRACER, rs_process_of(t, task)->number, "clone3");
		return;
	case RS_CALL_open:
	case RS_CALL_creat:
	case RS_CALL_openat:
	case RS_CALL_openat2:
		return rs_open_done(t, task, result);
	case RS_CALL_open_by_handle_at:
	case RS_CALL_pidfd_getfd:
		rs_note(t, task, result, 0);
		return rs_open_done(t, task, result);
	case RS_CALL_socket:
	case RS_CALL_connect:
	case RS_CALL_bind:
	case RS_CALL_socketcall:
		return rs_net_done(t, task, result);
	case RS_CALL_dup:
	case RS_CALL_fcntl:
	case RS_CALL_fcntl64:
		return rs_dup_done(t, task, result);
	case RS_CALL_write:
	case RS_CALL_writev:
	case RS_CALL_sendto:
	case RS_CALL_sendmsg:
	case RS_CALL_sendmmsg:
		return rs_send_done(t, task, result);
	default:
		break;
	}
	if (task->call >= RS_CALL_rename && task->call <= RS_CALL_mknodat)
		return rs_name_done(t, task, result);
	entered_namespace(t, task, result);
	rs_note(t, task, result, 0);
}

static void on_syscall(struct rs_tracer *t, struct rs_task *task)
{
	struct __ptrace_syscall_info info;

	if (!get_info(t, task, &info))
		return;
	if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
		set_call(task, info.arch, info.entry.nr, info.entry.args);
		task->awaiting_exit = (uint8_t)rs_watch_entry(t, task);
	} else if (task->awaiting_exit && info.op == PTRACE_SYSCALL_INFO_EXIT) {
		task->awaiting_exit = 0;
		on_exit_of_call(t, task, info.exit.rval);
	}
	go_on(t, task, 0);
}

/* The new task is ours already (PTRACE_O_TRACE*); its own first stop may come before or after. */
static void on_new_task(struct rs_tracer *t, struct rs_task *task)
{
	pid_t parent = task->tid;
	unsigned long message = 0;
	struct rs_task *added;

	if (ptrace(PTRACE_GETEVENTMSG, task->tid, 0, &message) == 0 &&
	    !rs_task_find(t, (pid_t)message)) {
		int entered = (task->call == RS_CALL_clone || task->call == RS_CALL_clone3) &&
			      task->args[0] & CLONE_NEWNS;

		added = rs_task_add(t, (pid_t)message, task);
		if (added && entered)
			rs_process_of(t, added)->foreign_namespace = 1;
	}
	task = rs_task_find(t, parent); /* the table may have moved */
	task->call = RS_CALL_OTHER;
	go_on(t, task, 0);
}

static void on_exec(struct rs_tracer *t, struct rs_task *task)
{
	unsigned long former = (unsigned long)task->tid;
	pid_t tid = task->tid;

	(void)ptrace(PTRACE_GETEVENTMSG, tid, 0, &former);
	rs_task_exec(t, task, (pid_t)former);
	task = rs_task_find(t, tid);
	rs_exec_done(t, task);
	go_on(t, task, 0);
}

/* SIGSTOP and its like stop the task; anything else in an event stop was our attaching. */
static void on_event_stop(struct rs_tracer *t, struct rs_task *task, int signal)
{
	int group_stop =
	    signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU;

	if (group_stop && task->tid == t->child && t->config->hooks.child_stopped)
		t->config->hooks.child_stopped(t->config->hooks.context, signal);
	if (group_stop)
		resume(t, task, PTRACE_LISTEN, 0);
	else
		go_on(t, task, 0);
}

static void on_stop(struct rs_tracer *t, struct rs_task *task, int status)
{
	int signal = WSTOPSIG(status);

	rs_counted(t, RS_TRACE_C_STOPS);
	switch (status >> 16) {
	case PTRACE_EVENT_SECCOMP:
		return on_seccomp(t, task);
	case PTRACE_EVENT_FORK:
	case PTRACE_EVENT_VFORK:
	case PTRACE_EVENT_CLONE:
		return on_new_task(t, task);
	case PTRACE_EVENT_EXEC:
		return on_exec(t, task);
	case PTRACE_EVENT_STOP:
		return on_event_stop(t, task, signal);
	case 0:
		break;
	default:
		return go_on(t, task, 0);
	}
	if (signal == SYSCALL_STOP)
		return on_syscall(t, task);
	/* A signal on its way to the task: it gets it, and an awaited exit stop stays awaited. */
	go_on(t, task, signal);
}

static void on_wait(struct rs_tracer *t, pid_t tid, int status)
{
	struct rs_task *task = rs_task_find(t, tid);

	if (!WIFSTOPPED(status)) {
		rs_task_ended(t, tid, status); /* unknown: an orphan reaped a second time */
		if (tid == t->child && !t->child_ended) {
			t->child_ended = 1;
			t->child_status = status;
			if (t->config->hooks.child_ended)
				t->config->hooks.child_ended(t->config->hooks.context, status);
		}
		return;
	}
	if (!task)
		task = rs_task_add(t, tid, NULL);
	if (task && !t->error)
		on_stop(t, task, status);
}

/* Whether any child or traced task is left: 0 none; 1 the hooks may wait; 2 stops are waited for.
 */
static int wait_some(struct rs_tracer *t)
{
	for (int i = 0; i < EVENTS_PER_ROUND && !t->error; i++) {
		int status;
		pid_t tid = rs_wait_next(t, &status);

		if (tid == 0)
			return t->wait.dense ? 2 : 1;
		if (tid < 0)
			return errno != ECHILD;
		on_wait(t, tid, status);
	}
	return 2; /* more may wait */
}

static int poll_hooks(struct rs_tracer *t, int signal_fd, int more)
{
	const struct rs_trace_hooks *hooks = &t->config->hooks;
	struct pollfd fds[POLL_FDS_MAX] = {{.fd = signal_fd, .events = POLLIN}};
	struct signalfd_siginfo info;
	int timeout_ms = -1, count = 0;

	if (hooks->before_wait)
		count = hooks->before_wait(hooks->context, fds + 1, POLL_FDS_MAX - 1, &timeout_ms);
	if (count < 0)
		return count;
	if (poll(fds, (nfds_t)count + 1, more ? 0 : timeout_ms) < 0 && errno != EINTR)
		return -errno;
	if (fds[0].revents & POLLIN)
		(void)!read(signal_fd, &info, sizeof(info));
	return hooks->after_wait ? hooks->after_wait(hooks->context, fds + 1, count) : 0;
}

static void reap_all(struct rs_tracer *t)
{
	int status;
	pid_t tid;

	rs_task_kill_all(t);
	while ((tid = waitpid(-1, &status, __WALL)) > 0 || errno == EINTR) {
		if (tid > 0 && WIFSTOPPED(status)) /* perhaps new, and not in the table */
			kill(tid, SIGKILL);
		else if (tid == t->child)
			t->child_status = status;
	}
}

static int loop(struct rs_tracer *t, int signal_fd)
{
	for (;;) {
		int more = wait_some(t), result;

		if (t->error)
			return t->error;
		if (more == 0)
			return 0;
		result = poll_hooks(t, signal_fd, more == 2);
		if (result < 0)
			return result;
		if (result > 0)
			t->killing = 1;
		if (t->killing)
			rs_task_kill_all(t);
	}
}

static void send_counters(struct rs_tracer *t)
{
	rs_begin(t);
	for (int i = 0; i < RS_TRACE_COUNTER_COUNT; i++)
		rs_put64(t, t->counters[i]);
	rs_end(t, RS_TRACE_COUNTERS);
}

static void free_all(struct rs_tracer *t)
{
	void *all[] = {t->tasks,	t->processes,	   t->arena,	   t->files,
		       t->opens,	t->cache,	   t->read_buffer, t->candidates,
		       t->written,	t->environments,   t->notes,	   t->out.data,
		       t->scratch.data, t->note_text.data, t->peers,	   t->remote_mounts};
	struct rs_index *indexes[] = {&t->task_index,	 &t->process_index,	&t->file_index,
				      &t->open_index,	 &t->cache_index,	&t->candidate_index,
				      &t->written_index, &t->environment_index, &t->note_index,
				      &t->peer_index};

	for (uint32_t i = 0; i < t->process_slots; i++)
		if (t->processes[i].pidfd >= 0)
			close(t->processes[i].pidfd);
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		free(all[i]);
	for (size_t i = 0; i < sizeof(indexes) / sizeof(indexes[0]); i++)
		rs_index_free(indexes[i]);
}

int rs_trace_run(const struct rs_trace_config *config, pid_t child,
		 struct rs_trace_result *ret_result)
{
	struct rs_tracer t = {.config = config, .child = child};
	struct timespec now;
	sigset_t set;
	int signal_fd, result;

	/*
	 * Not the coarse clock: since Linux 6.13 a file made just before may have a finer time than
	 * it. What the action makes within the first tick is known by its own calls.
	 */
	clock_gettime(CLOCK_REALTIME, &now);
	t.start_ns = now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGIO);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -errno;
	sigdelset(&set, SIGIO);
	t.own_fds = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (t.own_fds < 0)
		return -errno;
	signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signal_fd < 0)
		return -errno;
	if (!rs_task_add(&t, child, NULL))
		t.error = t.error ? t.error : -ENOMEM;
	result = rs_wait_begin(&t);
	if (result == 0)
		result = loop(&t, signal_fd);
	rs_wait_end(&t);
	if (result < 0) {
		reap_all(&t);
	} else {
		rs_notes_flush(&t);
		rs_stability_check(&t);
		rs_products_finish(&t);
		rs_files_flush(&t);
		send_counters(&t);
		rs_flush(&t);
		result = t.error;
	}
	close(signal_fd);
	close(t.own_fds);
	rs_foreign_free(&t);
	*ret_result = (struct rs_trace_result){t.child_status, t.killed, t.escapes, t.mounts};
	free_all(&t);
	return result;
}
