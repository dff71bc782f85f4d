/*
 * procs.c: who opened what: one entry per process that was seen in an event.
 *
 * Owns: the table and its index; texts live in the scope's arena. Must not: trust /proc of a
 * process that is not held, or take one process for another that had its pid before. Hands off: the
 * table -> finish.c. Privilege: that of reading /proc/PID of the action's user.
 */
#include "procs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int rs_proc_stat_parse(const char *text, struct rs_proc_info *info)
{
	/* comm is in parentheses and may hold anything, so it ends at the last ')'
	 * (proc_pid_stat(5)). */
	const char *open = strchr(text, '('), *close = strrchr(text, ')');
	unsigned long long start;
	size_t length;
	int parent;

	if (!open || !close || close < open)
		return -EBADMSG;
	/* state ppid pgrp session tty tpgid flags minflt cminflt majflt cmajflt utime stime cutime
	 * cstime priority nice threads itrealvalue starttime */
	if (sscanf(
		close + 1,
		" %*c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
		&parent, &start) != 2)
		return -EBADMSG;
	length = (size_t)(close - open - 1);
	if (length >= RS_COMM_BYTES)
		length = RS_COMM_BYTES - 1;
	memset(info->comm, 0, sizeof(info->comm));
	memcpy(info->comm, open + 1, length);
	info->parent = parent;
	info->start_time = start;
	return 0;
}

static int read_file(const char *path, struct rs_buf *buf, size_t limit, bool *ret_cut)
{
	char chunk[4096];
	ssize_t got;
	int fd, error = 0;

	*ret_cut = false;
	buf->length = 0;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	while ((got = read(fd, chunk, sizeof(chunk))) != 0) {
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0) {
			error = -errno;
			break;
		}
		if (buf->length + (size_t)got > limit) {
			*ret_cut = true;
			break;
		}
		if (rs_buf_append(buf, chunk, (size_t)got)) {
			error = buf->error;
			break;
		}
	}
	close(fd);
	return error;
}

static void read_exe(int pid, struct rs_proc_info *info)
{
	struct rs_stat stat;
	char path[64];
	int fd;

	info->exe_dev = info->exe_ino = 0;
	snprintf(path, sizeof(path), "/proc/%d/exe", pid);
	/* O_PATH follows the magic link without an open of the file: no event. */
	fd = open(path, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return; /* a kernel thread, or gone */
	if (rs_stat_fd(fd, &stat) == 0) {
		info->exe_dev = stat.dev;
		info->exe_ino = stat.ino;
	}
	close(fd);
}

void rs_proc_read(int pid, bool want_cmdline, struct rs_proc_info *info)
{
	struct rs_buf *buf = &info->cmdline;
	char path[64];
	bool cut;

	info->valid = info->cmdline_cut = false;
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (read_file(path, buf, 4096, &cut) || rs_buf_u8(buf, 0) ||
	    rs_proc_stat_parse((const char *)buf->data, info))
		return;
	buf->length = 0;
	if (want_cmdline) {
		snprintf(path, sizeof(path), "/proc/%d/cmdline", pid);
		if (read_file(path, buf, RS_CMDLINE_BYTES_MAX, &info->cmdline_cut))
			return;
		read_exe(pid, info);
	}
	info->valid = true;
}

struct rs_proc *rs_procs_find(struct rs_procs *procs, int pid, uint32_t *ret_index)
{
	struct rs_index_cursor cursor = rs_index_find(rs_hash_u64((uint64_t)pid, 1));
	uint32_t value, latest = RS_INDEX_EMPTY;

	/* A pid that was used twice is in the index twice; the later entry is the live one. */
	while ((value = rs_index_next(&procs->by_pid, &cursor)) != RS_INDEX_EMPTY)
		if (procs->items[value].pid == pid && (latest == RS_INDEX_EMPTY || value > latest))
			latest = value;
	if (latest == RS_INDEX_EMPTY)
		return NULL;
	*ret_index = latest;
	return &procs->items[latest];
}

struct rs_proc *rs_procs_add(struct rs_procs *procs, int pid, uint32_t *ret_index)
{
	if (procs->count >= procs->limit ||
	    rs_grow((void **)&procs->items, &procs->capacity, procs->count + 1,
		    sizeof(*procs->items)) ||
	    rs_index_add(&procs->by_pid, rs_hash_u64((uint64_t)pid, 1), procs->count))
		return NULL;
	procs->items[procs->count] = (struct rs_proc){.pid = pid};
	*ret_index = procs->count;
	return &procs->items[procs->count++];
}

int rs_procs_update(struct rs_procs *procs, struct rs_proc *proc, const struct rs_proc_info *info)
{
	const uint8_t *cmdline = NULL;

	if (!info->valid)
		return 0;
	proc->parent = proc->parent ? proc->parent : info->parent;
	proc->start_time = info->start_time;
	memcpy(proc->comm, info->comm, sizeof(proc->comm));
	proc->exe_dev = info->exe_dev;
	proc->exe_ino = info->exe_ino;
	if (info->cmdline.length)
		cmdline = rs_arena_copy(procs->arena, info->cmdline.data, info->cmdline.length);
	proc->cmdline = cmdline;
	proc->cmdline_length = cmdline ? (uint32_t)info->cmdline.length : 0;
	return info->cmdline.length && !cmdline ? -ENOMEM : 0;
}

void rs_procs_free(struct rs_procs *procs)
{
	free(procs->items);
	rs_index_free(&procs->by_pid);
	procs->items = NULL;
	procs->count = procs->capacity = 0;
}
