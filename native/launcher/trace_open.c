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
#define KIND_FILE     0
#define KIND_CODE     3

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

/* What a held task has just opened, in the launcher's hands. */
struct opened {
	int fd;	      /* owned */
	int readable; /* pread() on fd is possible; else it must be opened anew to be read */
	int flags;
	pid_t tid;
	uint32_t process;
	struct statx st;
	char path[RS_PATH_BYTES];
};

/*
 * The very open file of the task (pidfd_getfd), so that nothing is opened by name. Only a leader
 * has a pidfd before kernel 6.9, and another thread may have descriptors of its own: then the file
 * is found through the thread's /proc link, O_PATH first, which no FIFO or device feels.
 */
static int take_fd(struct rs_tracer *t, const struct rs_task *task, int fd, struct opened *ret)
{
	struct rs_process *process = rs_process_of(t, task);
	char link[64];

	if (task->tid == process->pid) {
		ret->fd = rs_process_fd(process, fd);
		ret->readable = 1;
		if (ret->fd >= 0)
			return 0;
	}
	snprintf(link, sizeof(link), "/proc/%d/fd/%d", task->tid, fd);
	ret->fd = open(link, O_PATH | O_CLOEXEC);
	ret->readable = 0;
	return ret->fd < 0 ? -errno : 0;
}

static int is_readable(const struct opened *o)
{
	return o->readable && o->flags != FLAGS_UNKNOWN && !(o->flags & O_DIRECT) &&
	       (o->flags & O_ACCMODE) != O_WRONLY;
}

/* On a block device there is content; only filesystems without one can be made up by the kernel. */
static int is_pseudo(const struct opened *o)
{
	return o->st.stx_dev_major == 0 && rs_filesystem_of(o->fd) == RS_FILESYSTEM_PSEUDO;
}

static int hash_content(struct rs_tracer *t, struct opened *o, struct rs_digest *ret_digest,
			uint8_t *ret_is_code)
{
	int fd = o->fd, result;

	if (rs_hash_cached(t, &o->st, ret_digest, ret_is_code))
		return 0;
	if (!is_readable(o)) {
		fd = rs_reopen(t, o->fd);
		if (fd < 0)
			return -(int)loss_of(-fd);
	}
	result = rs_hash_anew(t, fd, &o->st, ret_digest, ret_is_code);
	if (fd != o->fd)
		close(fd);
	return result;
}

static void take_material(struct rs_tracer *t, struct opened *o)
{
	struct rs_digest digest;
	uint8_t is_code;
	int result = hash_content(t, o, &digest, &is_code);
	uint32_t file;

	if (result < 0) {
		rs_lost(t, (enum rs_trace_loss) - result, o->process, o->path);
		return;
	}
	rs_counted(t, RS_TRACE_C_HASHED);
	file = rs_file_seen(t, o->path, &o->st, &digest, is_code ? KIND_CODE : KIND_FILE,
			    rs_born_flag(t, &o->st) | rs_remote_flag(t, o->tid, o->fd));
	rs_file_opened(t, o->process, file);
}

/* A material if the action can read it, a candidate product if it can write it. */
static void take_regular(struct rs_tracer *t, const struct rs_task *task, struct opened *o)
{
	int known = o->flags != FLAGS_UNKNOWN;
	int writes = !known || (o->flags & O_ACCMODE) != O_RDONLY || o->flags & O_TRUNC;
	int makes = o->flags & (O_CREAT | O_TRUNC) || (o->flags & O_TMPFILE) == O_TMPFILE;
	int made_empty = known && makes && o->st.stx_size == 0;

	if (known && (o->flags & O_ACCMODE) == O_WRONLY)
		rs_counted(t, RS_TRACE_C_EXCLUDED_WRITE_ONLY);
	else if (writes && made_empty)
		rs_counted(t, RS_TRACE_C_HASHED); /* by this very open: nothing to read */
	else
		take_material(t, o);
	if (writes) {
		rs_foreign_opened(t, o->fd);
		rs_product_written(t, task, o->path, &o->st);
	}
}

static void take_opened(struct rs_tracer *t, const struct rs_task *task, struct opened *o)
{
	ssize_t length;

	if (rs_statx(o->fd, "", AT_EMPTY_PATH, RS_STATX_MASK, &o->st) < 0) {
		rs_lost(t, loss_of(errno), o->process, "");
		return;
	}
	if (!S_ISREG(o->st.stx_mode)) {
		if (S_ISBLK(o->st.stx_mode)) /* content, and no digest of it */
			rs_lost(t, RS_TRACE_LOSS_BLOCK_DEVICE, o->process, "");
		rs_counted(t, RS_TRACE_C_EXCLUDED_IRREGULAR);
		return;
	}
	if (is_pseudo(o)) {
		rs_counted(t, RS_TRACE_C_EXCLUDED_PSEUDO);
		return;
	}
	length = rs_own_fd_path(t, o->fd, o->path, &o->st);
	if (length < 0)
		rs_lost(t, loss_of((int)-length), o->process, "");
	else if (rs_is_anonymous(o->path, &o->st))
		rs_counted(t, RS_TRACE_C_EXCLUDED_ANONYMOUS);
	else
		take_regular(t, task, o);
}

void rs_open_done(struct rs_tracer *t, struct rs_task *task, int64_t result)
{
	struct opened opened = {
	    .flags = flags_of(task), .tid = task->tid, .process = rs_process_of(t, task)->number};
	int error;

	if (result < 0)
		return;
	rs_counted(t, RS_TRACE_C_OPENS);
	if (opened.flags == FLAGS_UNKNOWN)
		opened.flags = flags_from_kernel(task->tid, (int)result);
	if (opened.flags != FLAGS_UNKNOWN && opened.flags & O_PATH) {
		rs_counted(t, RS_TRACE_C_EXCLUDED_PATH_ONLY);
		return;
	}
	error = take_fd(t, task, (int)result, &opened);
	if (error < 0) {
		rs_lost(t, loss_of(-error), opened.process, "");
		return;
	}
	take_opened(t, task, &opened);
	close(opened.fd);
}
