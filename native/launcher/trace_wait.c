// SPDX-License-Identifier: Apache-2.0
/*
 * How to wait for the next stop. A poll for SIGCHLD costs three calls more than a wait that blocks,
 * at every stop; but a wait that blocks sees neither signals nor the daemon's connection. So: while
 * stops come one after the other the wait blocks, and a timer interrupts it, so that the hooks get
 * their turn; a tick without a stop ends that, and the launcher polls as long as nothing happens.
 * A tick that comes just before the wait begins is lost; the next one is not.
 *
 * Owns: the timer and its signal. Must not: swallow that signal when it is meant for the action.
 *
 * Privilege: none.
 */
#include "trace_internal.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>
#include <time.h>

#define TICK_SIGNAL (SIGRTMAX - 1)
#define TICK_NS	    20000000 /* no longer than a person notices */

static pid_t action; /* whom another's signal of this number is for */

static void on_tick(int signo, siginfo_t *info, void *context)
{
	int before = errno;

	(void)context;
	if (info->si_code != SI_TIMER)
		kill(action, signo);
	errno = before;
}

static int mask_tick(int how)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, TICK_SIGNAL);
	return sigprocmask(how, &set, NULL) < 0 ? -errno : 0;
}

int rs_wait_begin(struct rs_tracer *t)
{
	struct sigaction act = {.sa_sigaction = on_tick,
				.sa_flags = SA_SIGINFO}; /* no SA_RESTART */
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = TICK_SIGNAL};
	timer_t timer;

	action = t->child;
	if (sigaction(TICK_SIGNAL, &act, NULL) < 0 ||
	    timer_create(CLOCK_MONOTONIC, &event, &timer) < 0)
		return -errno;
	t->wait.timer = timer;
	return mask_tick(SIG_UNBLOCK);
}

void rs_wait_end(struct rs_tracer *t)
{
	(void)timer_delete(t->wait.timer);
	(void)mask_tick(SIG_BLOCK);
}

static void set_dense(struct rs_tracer *t, int dense)
{
	const struct itimerspec every = {{0, TICK_NS}, {0, TICK_NS}}, never = {{0, 0}, {0, 0}};

	if (timer_settime(t->wait.timer, 0, dense ? &every : &never, NULL) == 0 || !dense)
		t->wait.dense = (uint8_t)dense;
	t->wait.seen = 0;
}

pid_t rs_wait_next(struct rs_tracer *t, int *ret_status)
{
	pid_t tid = waitpid(-1, ret_status, __WALL | (t->wait.dense ? 0 : WNOHANG));

	if (tid > 0) {
		t->wait.seen = 1;
	} else if (tid == 0 && t->wait.seen) { /* it goes on, and is expected to stop again soon */
		set_dense(t, 1);
	} else if (tid < 0 && errno == EINTR) {
		set_dense(t, t->wait.seen);
		tid = 0;
	}
	return tid;
}
