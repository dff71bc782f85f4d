/*
 * serve.c: one turn of one thread at one scope: how long to stay, when to sleep, on which CPU.
 *
 * Owns: nothing. Must not: keep a scope from other threads while several openers wait, leave it
 * without epoll watching it, or let one scope have all threads while another is open. Hands off:
 * each read -> handler.c. Privilege: none.
 */
#include "core.h"

#include <errno.h>
#include <sched.h>
#include <time.h>

#define EVENTS_PER_TURN 64     /* then other scopes get their turn */
#define EVENTS_ALONE	4096   /* then the thread looks whether it should end */
#define FOLLOW_EVENTS	128    /* so many dense ones between two looks at the opener's CPU */
#define DENSE_NS	250000 /* between two events of a dense time */
#define DENSE_EVENTS	16     /* so many in a row make it dense */
#define LINGER_NS	120000 /* so long a thread waits awake */

/*
 * Serving one scope. Waking a sleeping thread for each event costs more than hashing a small file,
 * so while events come densely the thread that serves them stays awake a little: it takes the scope
 * out of epoll (or each event would wake another thread too) and asks again and again, giving the
 * CPU away in between to whoever wants it: perhaps the very opener that it waits for.
 *
 * Waking an idle CPU costs more still. Opener and handler never run at the same time, so while one
 * process opens densely its handler moves to the CPU where that process ran last.
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

/* To the opener's CPU. Wherever that cannot be told, the scheduler's choice is as good as any. */
static void follow(struct turn *turn)
{
	uint32_t dense = atomic_load_explicit(&turn->scope->dense, memory_order_relaxed);
	int cpu;
	cpu_set_t set;

	if (dense % FOLLOW_EVENTS != DENSE_EVENTS ||
	    atomic_load_explicit(&turn->scope->once.in_a_row, memory_order_relaxed) < DENSE_EVENTS)
		return;
	cpu = rs_proc_cpu(atomic_load_explicit(&turn->scope->once.pid, memory_order_relaxed));
	if (cpu < 0 || cpu >= CPU_SETSIZE)
		return;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (!pthread_setaffinity_np(pthread_self(), sizeof(set), &set))
		turn->worker->pinned = true;
}

static void take_turn(struct turn *turn)
{
	struct rs_engine *engine = turn->worker->engine;
	bool may_linger = rs_engine_may_linger(engine);
	int limit = rs_engine_is_alone(engine) ? EVENTS_ALONE : EVENTS_PER_TURN;
	int events = 0, got = 0;
	bool dense;

	while (events < limit) {
		got = rs_handle_some(turn->worker, turn->scope);
		if (got == 0 && turn->alone)
			got = linger(turn);
		if (got == 0)
			break;
		events += got > 0 ? got : 1;
		dense = may_linger && is_dense(turn->scope, got);
		set_alone(turn, dense);
		if (dense)
			follow(turn);
	}
	/* Not read to its end, or out of epoll: to be told again, behind the other scopes. */
	if (turn->alone || got != 0)
		rewatch(turn, true);
	if (turn->worker->pinned)
		rs_engine_unpin(engine);
	turn->worker->pinned = false;
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
