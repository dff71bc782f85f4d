// SPDX-License-Identifier: Apache-2.0
/*
 * Files that others serve (NFS, FUSE, 9p): holding their opener does not hold their content. The
 * file says so, and its mount is named once. A mount that cannot be found (the task's root or
 * namespace does not show it) stays without a name; the file's flag is what counts.
 *
 * Owns: tracer.remote_mounts. Must not: take such a file for a local one.
 *
 *   trace_open.c, trace_exec.c ──fd──► here ──MOUNT──► sink
 *
 * Privilege: none.
 */
#include "trace_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* As mountinfo numbers it; 0: not known. */
static uint64_t mount_of(int fd)
{
	char path[64], line[128];
	unsigned long long number = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	file = fopen(path, "re");
	if (!file)
		return 0;
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "mnt_id: %llu", &number) == 1)
			break;
	fclose(file);
	return number;
}

/* Whether this mount is new and there is room to tell of it. */
static int remember(struct rs_tracer *t, uint64_t mount)
{
	for (uint32_t i = 0; i < t->remote_count; i++)
		if (t->remote_mounts[i] == mount)
			return 0;
	if (rs_grow((void **)&t->remote_mounts, t->remote_count, &t->remote_capacity,
		    sizeof(*t->remote_mounts), RS_TRACE_MOUNTS_MAX) < 0)
		return 0;
	t->remote_mounts[t->remote_count++] = mount;
	return 1;
}

static void send_line(struct rs_tracer *t, const char *line, size_t length)
{
	rs_begin(t);
	rs_put_bytes(t, line, length);
	rs_end(t, RS_TRACE_MOUNT);
}

/* As the task sees it. */
static void name(struct rs_tracer *t, pid_t tid, uint64_t mount)
{
	char path[64], *line = NULL;
	size_t capacity = 0;
	ssize_t length;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/mountinfo", tid);
	file = fopen(path, "re");
	if (!file)
		return;
	while ((length = getline(&line, &capacity, file)) > 0) {
		if (strtoull(line, NULL, 10) != mount)
			continue;
		send_line(t, line, (size_t)length - (line[length - 1] == '\n'));
		break;
	}
	free(line);
	fclose(file);
}

uint8_t rs_remote_flag(struct rs_tracer *t, pid_t tid, int fd)
{
	uint64_t mount;

	if (rs_filesystem_of(fd) != RS_FILESYSTEM_REMOTE)
		return 0;
	mount = mount_of(fd);
	if (mount && remember(t, mount))
		name(t, tid, mount);
	return RS_TRACE_FILE_REMOTE;
}
