/*
 * serve.c: one turn of one thread at one scope: how long to stay, when to sleep.
 *
 * Owns: nothing. Must not: keep a scope from other threads while several openers wait, or leave it
 * without epoll watching it. Hands off: each read -> handler.c. Privilege: none.
 */
#include "core.h"

#include <errno.h>
#include <sched.h>
#include <time.h>

#define READS_PER_TURN 64     /* then other scopes get their turn */
#define DENSE_NS       100000 /* between two events of a dense time */
#define DENSE_EVENTS   16     /* so many in a row make it dense */
#define LINGER_NS      60000  /* so long a thread waits awake */

/*
 * Serving one scope. Waking a sleeping thread for each event costs more than hashing a small file,
 * so while events come densely the thread that serves them stays awake a little: it takes the scope
 * out of epoll (or each event would wake another thread too) and asks again and again, giving the
 * CPU away in between to whoever wants it: perhaps the very opener that it waits for.
 */
struct turn {
	struct rs_worker *worker;
	struct rs_scope *scope;
	bool alone; /* out of epoll */
};

static int64_t monotonic_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void rewatch(struct turn *turn, bool wake)
{
	int error = rs_engine_watch(turn->worker->engine, turn->scope, wake);

	if (error && error != -ENOENT) /* ENOENT: the scope is ending; who ends it reads the rest */
		RS_COUNT(turn->scope, handler_errors);
}

static void set_alone(struct turn *turn, bool alone)
{
	if (turn->alone == alone)
		return;
	rewatch(turn, !alone);
	turn->alone = alone;
}

/* One opener at a time, and soon after the last? Then the next is worth waiting for. */
static bool is_dense(struct rs_scope *scope, int got)
{
	int64_t now = monotonic_ns(), before;

	before = atomic_exchange_explicit(&scope->last_event_ns, now, memory_order_relaxed);
	if (got != 1 || now - before > DENSE_NS)
		atomic_store_explicit(&scope->dense, 0, memory_order_relaxed);
	else
		atomic_fetch_add_explicit(&scope->dense, 1, memory_order_relaxed);
	return atomic_load_explicit(&scope->dense, memory_order_relaxed) >= DENSE_EVENTS;
}

/* What the next read gives, waiting for it for a moment. */
static int linger(struct turn *turn)
{
	int64_t until =
	    atomic_load_explicit(&turn->scope->last_event_ns, memory_order_relaxed) + LINGER_NS;
	int got;

	do {
		sched_yield();
		got = rs_handle_some(turn->worker, turn->scope);
	} while (got == 0 && monotonic_ns() < until);
	return got;
}

void rs_serve(struct rs_worker *worker, struct rs_scope *scope)
{
	struct turn turn = {.worker = worker, .scope = scope};
	bool may_linger = rs_engine_may_linger(worker->engine);
	int reads, got = 0;
	bool dense;

	for (reads = 0; reads < READS_PER_TURN; reads++) {
		got = rs_handle_some(worker, scope);
		if (got == 0 && turn.alone)
			got = linger(&turn);
		if (got == 0)
			break;
		dense = may_linger && is_dense(scope, got);
		set_alone(&turn, dense);
	}
	/* Not read to its end, or out of epoll: to be told again, behind the other scopes. */
	if (turn.alone || got != 0)
		rewatch(&turn, true);
}
