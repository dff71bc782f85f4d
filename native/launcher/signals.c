/*
 * signals.c: take all signals as data in the launcher, give them back untouched to the action.
 *
 * The kernel's own 64-bit mask is used, so that no bit of a C library stands between. Owns the
 * signalfd until it is handed to the caller. No privilege needed.
 */
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>

static int kernel_mask(int how, const uint64_t *set, uint64_t *ret_old)
{
	return syscall(SYS_rt_sigprocmask, how, set, ret_old, sizeof(*set)) < 0 ? -errno : 0;
}

int signals_take(struct signal_state *ret_state, int *ret_signal_fd)
{
	const uint64_t all = ~0ull;
	struct sigaction old, act = {.sa_handler = SIG_DFL};
	struct signal_state state = {0};
	cleanup_fd int low = -1;
	sigset_t set;
	int fd, r;

	r = kernel_mask(SIG_SETMASK, &all, &state.mask);
	if (r < 0)
		return r;
	/* A caller that ignores SIGCHLD would make the kernel reap our child unseen. */
	if (sigaction(SIGCHLD, &act, &old) < 0)
		return -errno;
	state.child_ignored = old.sa_handler == SIG_IGN;
	sigfillset(&set);
	low = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (low < 0)
		return -errno;
	fd = fcntl(low, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return -errno;
	*ret_state = state;
	*ret_signal_fd = fd;
	return 0;
}

int signals_restore(const struct signal_state *state)
{
	struct sigaction act = {.sa_handler = SIG_IGN};

	if (state->child_ignored && sigaction(SIGCHLD, &act, NULL) < 0)
		return -errno;
	return kernel_mask(SIG_SETMASK, &state->mask, NULL);
}

/*
 * What was sent to the launcher is meant for the action. What the terminal sends, the kernel has
 * sent to the whole foreground group, the action included: not twice.
 */
bool signal_is_for_child(uint32_t signo, int32_t code)
{
	switch (signo) {
	case SIGCHLD:
		return false;
	case SIGINT:
	case SIGQUIT:
	case SIGHUP:
	case SIGTSTP:
	case SIGTTIN:
	case SIGTTOU:
	case SIGWINCH:
	case SIGCONT:
		return code != SI_KERNEL;
	default:
		return true;
	}
}
