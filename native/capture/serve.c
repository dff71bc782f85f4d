/*
 * serve.c: one turn of one thread at one scope: how long to stay, when to sleep.
 *
 * Owns: nothing. Must not: keep a scope from other threads while several openers wait, leave it
 * without epoll watching it, or let one scope have all threads while another is open. Hands off:
 * each read -> handler.c; dense times -> awake.c. Privilege: none.
 */
#include "core.h"

#include <errno.h>
#include <sched.h>
#include <time.h>

#define EVENTS_PER_TURN 64	/* then other scopes get their turn */
#define EVENTS_ALONE	4096	/* then the thread looks whether it should end */
#define DENSE_NS	2000000 /* between two events of a dense time */
#define DENSE_EVENTS	8	/* so many in a row make it dense */
#define SINGLE_NS	250000	/* between two events that are worth waiting for */
#define SINGLE_EVENTS	16
#define LINGER_NS	120000 /* so long a thread waits awake */
#define CROWDED_NS	100000 /* a CPU given away for longer is one that others need */
#define CROWDED_FOR_NS	10000000

/*
 * Serving one scope. Waking a sleeping thread for each event costs more than hashing a small file,
 * so while events come densely no CPU may sleep deeply (awake.c), and while they come one by one
 * the thread that serves them stays awake itself: it takes the scope out of epoll (or each event
 * would wake another thread too) and asks again and again, giving the CPU away in between to
 * whoever wants it: perhaps the very opener that it waits for.
 */
struct turn {
	struct rs_worker *worker;
	struct rs_scope *scope;
	bool dense; /* wants the CPUs awake */
	bool alone; /* out of epoll */
};

int64_t rs_monotonic_ns(void)
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

static void set_dense(struct turn *turn, bool dense)
{
	struct rs_awake *awake = rs_engine_awake(turn->worker->engine);

	if (turn->dense == dense)
		return;
	if (dense)
		rs_awake_want(awake);
	else
		rs_awake_unwant(awake);
	turn->dense = dense;
}

/* Soon after the last, and so many times in a row? One by one, the next is worth waiting for. */
static bool is_crowded(struct rs_scope *scope, int64_t now);
static void judge(struct turn *turn, int got, bool may_linger)
{
	struct rs_scope *scope = turn->scope;
	int64_t now = rs_monotonic_ns(), before;
	uint32_t dense, single;

	before = atomic_exchange_explicit(&scope->last_event_ns, now, memory_order_relaxed);
	if (now - before > DENSE_NS)
		atomic_store_explicit(&scope->dense, 0, memory_order_relaxed);
	if (got != 1 || now - before > SINGLE_NS)
		atomic_store_explicit(&scope->single, 0, memory_order_relaxed);
	dense = atomic_fetch_add_explicit(&scope->dense, 1, memory_order_relaxed);
	single = atomic_fetch_add_explicit(&scope->single, 1, memory_order_relaxed);
	set_dense(turn, dense >= DENSE_EVENTS);
	set_alone(turn, may_linger && !is_crowded(scope, now) && single >= SINGLE_EVENTS);
}

static bool is_crowded(struct rs_scope *scope, int64_t now)
{
	return now < atomic_load_explicit(&scope->crowded_ns, memory_order_relaxed);
}

/* What the next read gives, waiting for it for a moment. */
static int linger(struct turn *turn)
{
	int64_t until =
	    atomic_load_explicit(&turn->scope->last_event_ns, memory_order_relaxed) + LINGER_NS;
	int64_t before = rs_monotonic_ns(), now;
	int got;

	do {
		sched_yield();
		now = rs_monotonic_ns();
		if (now - before > CROWDED_NS)
			atomic_store_explicit(&turn->scope->crowded_ns, now + CROWDED_FOR_NS,
					      memory_order_relaxed);
		got = rs_handle_some(turn->worker, turn->scope);
		before = rs_monotonic_ns();
	} while (got == 0 && before < until && now < until && !is_crowded(turn->scope, now));
	return got;
}

static void take_turn(struct turn *turn)
{
	struct rs_engine *engine = turn->worker->engine;
	bool may_linger = rs_engine_may_linger(engine);
	int limit = rs_engine_is_alone(engine) ? EVENTS_ALONE : EVENTS_PER_TURN;
	int events = 0, got = 0;

	while (events < limit) {
		got = rs_handle_some(turn->worker, turn->scope);
		if (got == 0 && turn->alone)
			got = linger(turn);
		if (got == 0)
			break;
		events += got > 0 ? got : 1;
		judge(turn, got, may_linger);
	}
	/* Not read to its end, or out of epoll: to be told again, behind the other scopes. */
	if (turn->alone || got != 0)
		rewatch(turn, true);
	set_dense(turn, false);
}

/*
 * One thread is left for the others, however many openers one scope has. Who is turned away leaves
 * a note, which whoever serves reads after it has stopped to count: no event falls between.
 */
static bool may_serve(struct rs_engine *engine, struct rs_scope *scope)
{
	unsigned others = atomic_fetch_add(&scope->servers, 1), shards = rs_engine_shards(engine);

	return others == 0 || others + 1 < shards || rs_engine_is_alone(engine);
}

void rs_serve(struct rs_worker *worker, struct rs_scope *scope)
{
	struct turn turn = {.worker = worker, .scope = scope};

	bool serve = may_serve(worker->engine, scope);
	uint32_t left;

	if (serve)
		take_turn(&turn);
	else
		atomic_store(&scope->turned_away, true);
	left = atomic_fetch_sub(&scope->servers, 1) - 1;
	if ((serve || left == 0) && atomic_exchange(&scope->turned_away, false))
		rewatch(&turn, true);
}
