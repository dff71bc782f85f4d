// SPDX-License-Identifier: Apache-2.0
/*
 * A call that returns a file descriptor has succeeded and its caller is held: hash what it opened.
 *
 * Owns: the fd it opens, closed before it returns. Must not: open anything but a regular file (a
 * FIFO or device feels an open); let a regular file pass that was not hashed without counting it.
 *
 *   syscall exit stop ──► here ──► trace_hash.c, trace_file.c, trace_product.c
 *
 * Privilege: tracer of the task; the file must be readable for the launcher's own user.
 */
#include "trace_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FLAGS_UNKNOWN (-1)

/* From the registers, which no other thread can change; else FLAGS_UNKNOWN. */
static int flags_of(const struct rs_task *task)
{
	switch (task->call) {
	case RS_CALL_open:
		return (int)task->args[1];
	case RS_CALL_creat:
		return O_WRONLY | O_CREAT | O_TRUNC;
	case RS_CALL_openat:
	case RS_CALL_open_by_handle_at:
		return (int)task->args[2];
	default: /* openat2: in memory; pidfd_getfd: another's */
		return FLAGS_UNKNOWN;
	}
}

/* The flags of the open file as the kernel has them (O_CREAT and O_TRUNC are not kept). */
static int flags_from_kernel(pid_t tid, int fd)
{
	char path[64], line[128];
	int flags = FLAGS_UNKNOWN;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", tid, fd);
	file = fopen(path, "re");
	if (!file)
		return FLAGS_UNKNOWN;
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "flags: %o", (unsigned int *)&flags) == 1)
			break;
	fclose(file);
	return flags;
}

static enum rs_trace_loss loss_of(int error)
{
	switch (error) {
	case EACCES:
	case EPERM:
		return RS_TRACE_LOSS_DENIED;
	case ENOENT:
	case ESRCH:
	case EBADF:
		return RS_TRACE_LOSS_GONE;
	case ENAMETOOLONG:
		return RS_TRACE_LOSS_PATH;
	default:
		return RS_TRACE_LOSS_READ;
	}
}

/* Made or written since the action began, by what we saw or by the time of its birth. */
uint8_t rs_born_flag(const struct rs_tracer *t, const struct statx *st)
{
	if (rs_inode_written(t, rs_device(st), st->stx_ino))
		return RS_TRACE_FILE_BORN;
	if (st->stx_mask & STATX_BTIME &&
	    st->stx_btime.tv_sec * INT64_C(1000000000) + st->stx_btime.tv_nsec > t->start_ns)
		return RS_TRACE_FILE_BORN;
	return 0;
}

/* The content of a held task's open file. Returns a file number, RS_TRACE_NONE if it was lost. */
static void hash_opened(struct rs_tracer *t, const struct rs_task *task, const char *link,
			const char *path, const struct statx *seen)
{
	uint32_t process = rs_process_of(t, task)->number;
	struct rs_digest digest;
	struct statx st = *seen;
	int result = 1;

	if (!rs_hash_cached(t, seen, &digest)) {
		int fd = open(link, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

		if (fd < 0) {
			rs_lost(t, loss_of(errno), process, path);
			return;
		}
		if (rs_filesystem_is_pseudo(link)) {
			rs_counted(t, RS_TRACE_C_EXCLUDED_PSEUDO);
			close(fd);
			return;
		}
		result = rs_hash_file(t, fd, &st, &digest);
		close(fd);
		if (result == 0 &&
		    (st.stx_ino != seen->stx_ino || rs_device(&st) != rs_device(seen)))
			result = -RS_TRACE_LOSS_GONE;
	}
	if (result < 0) {
		rs_lost(t, (enum rs_trace_loss) - result, process, path);
		return;
	}
	rs_counted(t, RS_TRACE_C_HASHED);
	rs_file_opened(t, process, rs_file_seen(t, path, &st, &digest, 0, rs_born_flag(t, &st)));
}

/* Opened by the action: a material if it can read, a candidate product if it can write. */
void rs_open_done(struct rs_tracer *t, struct rs_task *task, int64_t result)
{
	uint32_t process = rs_process_of(t, task)->number;
	int flags = flags_of(task), fd = (int)result, writes, creates;
	char link[64], path[RS_PATH_BYTES];
	struct statx st;
	ssize_t length;

	if (result < 0)
		return;
	rs_counted(t, RS_TRACE_C_OPENS);
	if (flags == FLAGS_UNKNOWN)
		flags = flags_from_kernel(task->tid, fd);
	if (flags != FLAGS_UNKNOWN && flags & O_PATH) {
		rs_counted(t, RS_TRACE_C_EXCLUDED_PATH_ONLY);
		return;
	}
	snprintf(link, sizeof(link), "/proc/%d/fd/%d", task->tid, fd);
	if (rs_statx(AT_FDCWD, link, 0, RS_STATX_MASK, &st) < 0) {
		rs_lost(t, loss_of(errno), process, "");
		return;
	}
	if (!S_ISREG(st.stx_mode)) {
		rs_counted(t, RS_TRACE_C_EXCLUDED_IRREGULAR);
		return;
	}
	length = rs_link_text(link, path, &st);
	if (length < 0) {
		rs_lost(t, loss_of((int)-length), process, "");
		return;
	}
	if (rs_is_anonymous(path, &st)) {
		rs_counted(t, RS_TRACE_C_EXCLUDED_ANONYMOUS);
		return;
	}
	writes = flags == FLAGS_UNKNOWN || (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;
	creates = flags != FLAGS_UNKNOWN && flags & (O_CREAT | O_TRUNC);
	if (writes && rs_filesystem_is_pseudo(link)) {
		rs_counted(t, RS_TRACE_C_EXCLUDED_PSEUDO);
		return;
	}
	if (flags != FLAGS_UNKNOWN && (flags & O_ACCMODE) == O_WRONLY)
		rs_counted(t, RS_TRACE_C_EXCLUDED_WRITE_ONLY);
	else if (!(writes && creates && st.stx_size == 0))
		hash_opened(t, task, link, path, &st);
	else
		rs_counted(t,
			   RS_TRACE_C_HASHED); /* made empty by this very open: nothing to read */
	if (writes)
		rs_product_written(t, task, path, &st);
}
