// SPDX-License-Identifier: Apache-2.0
/*
 * Was a file that the action wrote also written by somebody else? write(2) and close(2) run
 * unwatched here, so inotify tells: each file description that is open for writing makes one
 * IN_CLOSE_WRITE when it ends, whoever has it. The tracer knows how many the action opened; more
 * ends than that are somebody else's, but for one per open whose task ended within it. Equal events
 * in a row may be told as one, so opens are asked for too: they stand between.
 *
 * Owns: tracer.foreign (its inotify descriptor and counts). Must not: report what the action may
 * have done itself. Where inotify cannot be had (its limits, an unreadable file) nothing is told.
 *
 *   trace_open.c ──opened for writing──► here ──foreign?──► trace_product.c
 *
 * Privilege: none.
 */
#include "trace_internal.h"

#include <errno.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/vfs.h>
#include <unistd.h>

#define WATCHES_MAX  (1u << 22)
#define EVENTS_BYTES (16u << 10)
#define P9_FS	     0x01021997

struct rs_ends {
	uint32_t opened; /* for writing, by the action */
	uint32_t ended;	 /* descriptions open for writing, whoever's */
};

static struct rs_ends *ends_of(struct rs_tracer *t, int wd)
{
	struct rs_foreign *f = &t->foreign;

	if (wd < 0)
		return NULL;
	while (f->count <= (uint32_t)wd) {
		if (rs_grow((void **)&f->ends, f->count, &f->capacity, sizeof(*f->ends),
			    WATCHES_MAX) < 0)
			return NULL;
		f->ends[f->count++] = (struct rs_ends){0, 0};
	}
	return &f->ends[wd];
}

static void read_events(struct rs_tracer *t)
{
	_Alignas(struct inotify_event) char buffer[EVENTS_BYTES];
	ssize_t got;

	while ((got = read(t->foreign.fd - 1, buffer, sizeof(buffer))) > 0)
		for (ssize_t at = 0; at < got;) {
			const struct inotify_event *event = (void *)(buffer + at);

			if (event->mask & IN_Q_OVERFLOW)
				rs_lost(t, RS_TRACE_LOSS_MEMORY, RS_TRACE_NONE, "inotify");
			else if (event->mask & IN_CLOSE_WRITE && event->wd >= 0 &&
				 (uint32_t)event->wd < t->foreign.count)
				t->foreign.ends[event->wd].ended++;
			at += (ssize_t)(sizeof(*event) + event->len);
		}
}

static int watch(struct rs_tracer *t, int fd)
{
	char link[32];

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	return inotify_add_watch(t->foreign.fd - 1, link, IN_OPEN | IN_CLOSE_WRITE);
}

void rs_foreign_opened(struct rs_tracer *t, int fd)
{
	struct rs_ends *ends;

	if (t->foreign.fd == 0) {
		int made = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);

		t->foreign.fd = made < 0 ? -1 : made + 1;
	}
	if (t->foreign.fd < 0)
		return;
	read_events(t);
	ends = ends_of(t, watch(t, fd));
	if (ends)
		ends->opened++;
}

/* Killed in an open, as by another thread's exit_group: it makes an end, but no stop told of it. */
void rs_foreign_task_ended(struct rs_tracer *t, const struct rs_task *task)
{
	if (!task->awaiting_exit)
		return;
	switch (task->call) {
	case RS_CALL_open:
	case RS_CALL_creat:
	case RS_CALL_openat:
	case RS_CALL_openat2:
	case RS_CALL_open_by_handle_at:
		t->foreign.cut_short++;
		return;
	default:
		return;
	}
}

int rs_foreign_written(struct rs_tracer *t, int fd)
{
	int wd;

	if (t->foreign.fd <= 0)
		return 0;
	wd = watch(t, fd); /* the watch that the file has, or a new one that counts nothing */
	read_events(t);
	return wd >= 0 && (uint32_t)wd < t->foreign.count && t->foreign.ends[wd].opened &&
	       t->foreign.ends[wd].ended > t->foreign.ends[wd].opened + t->foreign.cut_short;
}

int rs_foreign_keeps_inodes(int fd)
{
	struct statfs fs;

	return fstatfs(fd, &fs) == 0 && (uint32_t)fs.f_type != FUSE_SUPER_MAGIC &&
	       (uint32_t)fs.f_type != P9_FS;
}

void rs_foreign_free(struct rs_tracer *t)
{
	if (t->foreign.fd > 0)
		close(t->foreign.fd - 1);
	free(t->foreign.ends);
}
