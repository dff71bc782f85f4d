/*
 * descendants.c: no descendant of the action outlives it unseen.
 *
 * This process is the child subreaper: a descendant whose parent ends becomes our child. So "no
 * child is left" means "no descendant is left". Children are listed from
 * /proc/thread-self/children, or by scanning /proc where the kernel lacks that file. Owns nothing.
 * Privilege: that of the caller; a descendant with other privileges may refuse the kill, and then
 * this says so and fails.
 */
#include "launcher.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>

#define KILL_ROUNDS_MAX 10000
#define ROUND_PAUSE_NS	1000000
#define TOLD_MS_MAX	2000

typedef int (*visit_pid)(pid_t pid, void *data);

int64_t monotonic_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000ll + now.tv_nsec / 1000000;
}

static int read_file(const char *path, char *data, size_t bytes)
{
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t length = 0;

	if (fd < 0)
		return -errno;
	while (length < bytes - 1) {
		ssize_t n = read(fd, data + length, bytes - 1 - length);

		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		length += n;
	}
	data[length] = 0;
	return 0;
}

/* The parent in /proc/PID/stat: the second number after the last ')'. */
static pid_t parent_of(const char *pid)
{
	char path[64], data[1024], *p;

	snprintf(path, sizeof(path), "/proc/%.20s/stat", pid);
	if (read_file(path, data, sizeof(data)) < 0)
		return -1;
	p = strrchr(data, ')');
	return p && strlen(p) > 4 ? (pid_t)strtol(p + 4, NULL, 10) : -1;
}

static int scan_proc(visit_pid visit, void *data)
{
	pid_t self = getpid();
	struct dirent *entry;
	DIR *dir = opendir("/proc");
	int r = 0;

	if (!dir)
		return -errno;
	while (r >= 0 && (entry = readdir(dir)))
		if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' &&
		    parent_of(entry->d_name) == self)
			r = visit(strtol(entry->d_name, NULL, 10), data);
	closedir(dir);
	return r;
}

/* Call `visit` for each child, as many as fit in one read; the rest come in the next round. */
static int each_child(visit_pid visit, void *data)
{
	char list[16384], *p = list, *end;
	int r = read_file("/proc/thread-self/children", list, sizeof(list));

	if (r == -ENOENT)
		return scan_proc(visit, data);
	if (r < 0)
		return r;
	p[strcspn(p, "\n")] = 0;
	if (strlen(list) == sizeof(list) - 1)
		*strrchr(list, ' ') = 0; /* the last number may be cut */
	for (;; p = end) {
		long pid = strtol(p, &end, 10);

		if (end == p)
			return 0;
		r = visit(pid, data);
		if (r < 0)
			return r;
	}
}

struct kill_state {
	uint64_t sent;
	int error;
};

static int kill_one(pid_t pid, void *data)
{
	struct kill_state *state = data;

	if (kill(pid, SIGKILL) < 0 && errno != ESRCH)
		state->error = -errno;
	return 0;
}

/* Reap what has ended; *killed counts those that a SIGKILL ended. -ECHILD: nobody is left. */
static int reap(uint64_t *killed)
{
	for (;;) {
		int status;
		pid_t pid = waitpid(-1, &status, WNOHANG);

		if (pid == 0)
			return 0;
		if (pid < 0 && errno != EINTR)
			return -errno;
		if (pid > 0 && killed && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
			++*killed;
	}
}

/* SIGKILL level by level: the children of a killed child become ours and die in the next round. */
int descendants_kill_all(uint64_t *ret_killed)
{
	const struct timespec pause = {.tv_nsec = ROUND_PAUSE_NS};
	struct kill_state state = {0};
	uint64_t killed = 0;

	for (unsigned int round = 0; round < KILL_ROUNDS_MAX; round++) {
		int r = reap(&killed);

		if (r == -ECHILD) {
			*ret_killed = killed;
			return 0;
		}
		if (r < 0)
			return r;
		state.error = 0;
		r = each_child(kill_one, &state);
		if (r < 0) {
			say("the descendants cannot be listed: %s. Mount /proc.", strerror(-r));
			return r;
		}
		nanosleep(&pause, NULL);
	}
	say("a descendant of the action cannot be killed (%s); end it by hand, then build again.",
	    strerror(state.error ? -state.error : EAGAIN));
	return state.error ? state.error : -EAGAIN;
}

bool ends_the_wait(uint32_t signo)
{
	return signo == SIGTERM || signo == SIGINT || signo == SIGHUP || signo == SIGQUIT;
}

/* Whether a signal asks to stop waiting. The action has ended: there is nobody to forward it to. */
static bool drain_signals(int signal_fd)
{
	struct signalfd_siginfo info;
	bool stop = false;

	while (read(signal_fd, &info, sizeof(info)) == sizeof(info))
		stop |= ends_the_wait(info.ssi_signo);
	return stop;
}

/*
 * How long to wait for descendants from now on, as --descendants says. A signal that comes while
 * the action's process is ending is lost on it, and nobody can tell; so whoever told the launcher
 * to end, however early, does not wait for long.
 */
int64_t descendants_deadline(const struct options *options, bool told)
{
	int64_t wait = options->descendants == DESCENDANTS_KILL
			   ? options->descendants_seconds * 1000ll
			   : INT64_MAX;

	if (told && wait > TOLD_MS_MAX)
		wait = TOLD_MS_MAX;
	return wait == INT64_MAX ? wait : monotonic_ms() + wait;
}

/* Until the deadline wait for the descendants, then kill what is left. */
int descendants_end(int64_t deadline, int signal_fd, int conn_fd, struct guard *guard,
		    uint64_t *ret_killed)
{
	bool forever = deadline == INT64_MAX;
	struct pollfd fds[3] = {{signal_fd, POLLIN, 0}, {conn_fd, POLLIN, 0}, {-1, POLLIN, 0}};

	for (;;) {
		int64_t left = deadline - monotonic_ms();
		int r = reap(NULL);

		if (r == -ECHILD) {
			*ret_killed = 0;
			return 0;
		}
		if (r < 0)
			return r;
		if (!forever && left <= 0)
			break;
		fds[2].fd = guard->listener;
		r = poll(fds, 3, forever ? -1 : (int)(left < INT32_MAX ? left : INT32_MAX));
		if (r < 0 && errno != EINTR)
			return -errno;
		if (r > 0 && fds[1].revents) {
			r = connection_event(conn_fd);
			if (r < 0)
				return r;
		}
		if (r > 0 && fds[2].revents) {
			r = guard_poll_event(guard, fds[2].revents);
			if (r < 0)
				return r;
			continue;
		}
		if (r > 0 && fds[0].revents && drain_signals(signal_fd))
			break;
	}
	return descendants_kill_all(ret_killed);
}
