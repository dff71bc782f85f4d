// SPDX-License-Identifier: Apache-2.0
/*
 * Sockets whose first bytes are waited for: a TLS server name, a DNS question.
 *
 * No filter can tell a write to a socket from one to a file, and stopping every write would cost
 * more than all the rest. So after a connect every call of that process stops, for as long as a
 * socket of it is watched: from connect to the first send, a handful of calls, and of port 53 until
 * it is closed. A thread of it that
 * runs meanwhile joins at its next stop; it is not interrupted for that.
 *
 * Owns: rs_process.watches. Must not: go on for ever (a server may speak first).
 *
 *   trace_net.c ──connect──► here ◄── trace_loop.c (a call begins) ── rs_send_done
 *
 * Privilege: none.
 */
#include "trace_internal.h"

#include <string.h>

/* Calls after the last connect, or question; then only names are at stake. */
#define WATCH_STOPS_MAX 4096u

static void drop(struct rs_process *process, unsigned int index)
{
	process->watch_count--;
	memmove(&process->watches[index], &process->watches[index + 1],
		(process->watch_count - index) * sizeof(process->watches[0]));
}

static struct rs_watch *find(struct rs_process *process, int fd)
{
	for (unsigned int i = 0; i < process->watch_count; i++)
		if (process->watches[i].fd == fd)
			return &process->watches[i];
	return NULL;
}

void rs_watch_add(struct rs_process *process, int fd, uint8_t kind)
{
	struct rs_watch *old = find(process, fd);

	if (old)
		drop(process, (unsigned int)(old - process->watches));
	else if (process->watch_count == RS_WATCHES_MAX)
		drop(process, 0); /* the oldest */
	process->watches[process->watch_count++] = (struct rs_watch){.fd = fd, .kind = kind};
	process->watch_stops = 0;
}

int rs_watch_entry(struct rs_tracer *t, struct rs_task *task)
{
	struct rs_process *process = rs_process_of(t, task);
	struct rs_watch *watch = find(process, (int)task->args[0]);

	if (++process->watch_stops > WATCH_STOPS_MAX)
		process->watch_count = 0;
	if (!watch || process->watch_count == 0)
		return 0;
	switch (task->call) {
	case RS_CALL_write:
	case RS_CALL_writev:
	case RS_CALL_sendto:
		return 1;
	case RS_CALL_close:
		drop(process, (unsigned int)(watch - process->watches));
		return 0;
	default: /* what the filter stops has its own stop */
		return 0;
	}
}

uint8_t rs_watch_take(struct rs_process *process, int fd)
{
	struct rs_watch *watch = find(process, fd);
	uint8_t kind;

	if (!watch)
		return RS_TRACE_PAYLOAD_NONE;
	kind = watch->kind;
	if (kind == RS_TRACE_PAYLOAD_DNS) /* the next question follows */
		process->watch_stops = 0;
	else
		drop(process, (unsigned int)(watch - process->watches));
	return kind;
}
