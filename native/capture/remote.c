/*
 * remote.c: a file that others serve is let go before whoever removes it can go on.
 *
 * Owns: which thread has an event of a remote scope in hand that is not done. Must not: wait for
 * ever: the server may be a process whose own opens wait here. Hands off: nothing. Privilege: none.
 *
 * Who removes a file on NFS that anybody has open gets a rename instead (.nfs…, until it is let
 * go), and cannot remove its directory. A queued event holds its file, and so does the descriptor
 * that comes with it. The opener of a permission event is let go after its file; but who closes a
 * file waits for nobody. So before a later open is answered, an exec as a rule, the closes that
 * came before it are done. What a process closes, removes and whose directory it removes without
 * opening anything in between may still find the rename: docs/backends.md.
 */
#include "core.h"

#include <fcntl.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#define WAIT_NS	 5000000000 /* then the server that a close waits for may be waiting for us */
#define YIELDS	 100	    /* as long as a close takes that waits for nobody */
#define PAUSE_NS 100000

void rs_remote_begin(struct rs_worker *worker, struct rs_scope *scope)
{
	atomic_fetch_add(&worker->reads, 1);
	atomic_store(&worker->reading, scope);
}

void rs_remote_end(struct rs_worker *worker)
{
	atomic_store(&worker->reading, NULL);
}

static bool is_in_hand(const struct rs_worker *other, const struct rs_scope *scope, uint32_t read)
{
	return atomic_load(&other->reading) == scope && atomic_load(&other->reads) == read &&
	       atomic_load(&other->given_up) != read;
}

static void pause_after(unsigned yields)
{
	const struct timespec pause = {.tv_nsec = PAUSE_NS};

	if (yields < YIELDS)
		sched_yield();
	else
		nanosleep(&pause, NULL);
}

void rs_remote_wait(struct rs_worker *worker, const struct rs_scope *scope)
{
	struct rs_worker *workers = rs_engine_workers(worker->engine);
	unsigned i, yields = 0, shards = rs_engine_shards(worker->engine);
	uint32_t reads[RS_SHARDS_MAX];
	int64_t until;

	for (i = 0; i < shards; i++) /* later ones are of later events */
		reads[i] = atomic_load(&workers[i].reads);
	until = rs_monotonic_ns() + WAIT_NS;
	for (i = 0; i < shards; i++) {
		while (is_in_hand(&workers[i], scope, reads[i])) {
			if (rs_monotonic_ns() > until)
				atomic_store(&workers[i].given_up, reads[i]);
			pause_after(yields++);
		}
	}
}

void rs_remote_let_go(struct rs_worker *worker, struct rs_scope *scope, int fd)
{
	/* The number stays taken: it is what the event is answered by. */
	if (dup3(worker->fds_fd, fd, O_CLOEXEC) < 0)
		RS_COUNT(scope, handler_errors);
}
