/*
 * supervise.c: the launcher while the action runs.
 *
 *   signals → forwarded to the action      action's end → wait status
 *   daemon's connection → lost: the action and all its descendants are killed
 *
 * Until the child says that it is armed, it alone reads the connection; from then on the parent
 * does. Owns none of the fds. Privilege: none (the namespace was the child's affair).
 */
#include "supervise.h"
#include "../guard_filter.h"
#include "../protocol.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

/* Something came on the connection while the action runs: only PROGRESS lets it go on. */
int connection_event(int conn_fd)
{
	struct frame_header header;
	int r = frame_read_header(conn_fd, &header);

	if (r >= 0 && header.type == RS_FRAME_PROGRESS)
		r = frame_skip(conn_fd, header.length);
	else if (r >= 0 && header.type == RS_FRAME_ERROR)
		return frame_say_error(conn_fd, header.length, NULL) < 0 ? -EPROTO : -ECANCELED;
	else if (r >= 0)
		r = -EPROTO;
	if (r < 0)
		say("the Rootseal daemon went away while the action ran (%s), so the action was "
		    "killed. "
		    "Run `rootseal daemon ensure` and build again.",
		    strerror(-r));
	return r;
}

void control_event(struct supervision *s)
{
	char message;
	ssize_t n = guard_receive(s->control_fd, &message, &s->guard.listener);

	if (n == 1 && message == CONTROL_ARMED) {
		s->armed = true;
		s->control_fd = -1; /* the last message: its end, at exec, need not wake us */
	} else if (n == 1 && (message == GUARD_MESSAGE || message == GUARD_NO_LISTENER)) {
		/* of the helper; the listener, if any, is in its place */
	} else if (n == 1 && message == CONTROL_UNSEEN) {
		s->guard.unseen++;
	} else if (n == 1) {
		s->failed = true;
	} else {
		s->control_fd = -1; /* poll ignores it; main closes it */
	}
}

/*
 * Our parent sees the job as stopped, and by what, only if we stop too; SIGCONT comes to us and is
 * forwarded. Not after a SIGSTOP: who sends that to one process sends SIGCONT to it alone as well,
 * and we would stay behind.
 */
void mirror_stop(int signo)
{
	sigset_t set;

	if (signo != SIGTSTP && signo != SIGTTIN && signo != SIGTTOU)
		return;
	sigemptyset(&set);
	sigaddset(&set, signo);
	kill(getpid(), signo);
	sigprocmask(SIG_UNBLOCK, &set, NULL); /* here we stop */
	sigprocmask(SIG_BLOCK, &set, NULL);
}

/* Reap whoever ended or stopped; -ECHILD cannot happen before the child itself was reaped. */
static int child_event(struct supervision *s)
{
	for (;;) {
		int status;
		pid_t pid = waitpid(-1, &status, WNOHANG | WUNTRACED);

		if (pid == 0 || (pid < 0 && errno == ECHILD && s->ended))
			return 0;
		if (pid < 0 && errno != EINTR)
			return -errno;
		if (pid != s->pid)
			continue;
		if (WIFSTOPPED(status)) {
			mirror_stop(WSTOPSIG(status));
			continue;
		}
		s->ended = true;
		s->wait_status = status;
	}
}

bool forward_signals(struct supervision *s)
{
	struct signalfd_siginfo info;
	bool stop = false;

	while (read(s->signal_fd, &info, sizeof(info)) == sizeof(info)) {
		if (signal_is_for_child(info.ssi_signo, info.ssi_code) && !s->ended)
			kill(s->pid, info.ssi_signo); /* ESRCH: it has just ended */
		s->told |= ends_the_wait(info.ssi_signo);
		stop |= s->ended && ends_the_wait(info.ssi_signo);
	}
	return stop;
}

static int signal_event(struct supervision *s)
{
	forward_signals(s);
	return child_event(s);
}

/* What the child said before it ended and nobody has read yet: armed, or failed. */
void last_words(struct supervision *s)
{
	while (s->control_fd >= 0 && !s->failed)
		control_event(s);
}

static int say_guard(int error)
{
	say("the action's calls cannot be watched any more (%s), so it was killed. Build again.",
	    strerror(-error));
	return error;
}

static int run_until_end(struct supervision *s)
{
	while (!s->ended) {
		struct pollfd fds[4] = {
		    {s->signal_fd, POLLIN, 0},
		    {s->control_fd, POLLIN, 0},
		    {s->armed ? s->conn_fd : -1, POLLIN, 0},
		    {s->guard.listener, POLLIN, 0},
		};
		int r = poll(fds, 4, -1);

		if (r < 0 && errno != EINTR)
			return -errno;
		if (r <= 0)
			continue;
		if (fds[1].revents)
			control_event(s);
		if (fds[2].revents) {
			r = connection_event(s->conn_fd);
			if (r < 0)
				return r;
		}
		if (fds[3].revents) {
			r = guard_poll_event(&s->guard, fds[3].revents);
			if (r < 0)
				return say_guard(r);
		}
		if (fds[0].revents) {
			r = signal_event(s);
			if (r < 0)
				return r;
		}
	}
	last_words(s);
	return 0;
}

/* 0: the action ran. -EINTR: a signal ended the child before, the outcome tells which. */
int check_armed(const struct supervision *s, struct outcome *ret_outcome)
{
	if (s->armed && !s->failed)
		return 0;
	if (!s->failed && !WIFSIGNALED(s->wait_status))
		say("the action's process ended before it was armed. Run `rootseal doctor`.");
	ret_outcome->wait_status = s->wait_status;
	return s->failed || !WIFSIGNALED(s->wait_status) ? -ECANCELED : -EINTR;
}

int supervise(const struct options *options, pid_t pid, int signal_fd, int control_fd, int conn_fd,
	      struct outcome *ret_outcome)
{
	struct supervision s = {.options = options,
				.pid = pid,
				.signal_fd = signal_fd,
				.control_fd = control_fd,
				.conn_fd = conn_fd,
				.guard = {.listener = -1}};
	uint64_t killed;
	int r = run_until_end(&s);

	if (r >= 0)
		r = check_armed(&s, ret_outcome);
	if (r >= 0)
		r = descendants_end(descendants_deadline(options, s.told), signal_fd, conn_fd,
				    &s.guard, &killed);
	if (s.guard.listener >= 0)
		close(s.guard.listener);
	if (r < 0) {
		descendants_kill_all(&killed);
		return r;
	}
	*ret_outcome = (struct outcome){s.wait_status, killed, s.guard.escapes, s.guard.mounts,
					s.guard.unseen};
	return 0;
}
