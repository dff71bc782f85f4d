// SPDX-License-Identifier: Apache-2.0
/*
 * Calls that change names, sizes and modes: rename, link, symlink, unlink, truncate, chmod, mknod.
 * The caller is held after the call has succeeded; each name is resolved as the caller sees it.
 *
 * Owns: nothing. Must not: guess a path: a name that cannot be resolved is counted.
 *
 *   syscall exit stop ──► here ──FILE_OP──► sink; ──candidate──► trace_product.c
 *
 * Privilege: tracer of the task.
 */
#include "trace_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define RENAME_EXCHANGE_FLAG 2u

void rs_file_op(struct rs_tracer *t, uint32_t process, enum rs_trace_op op, const char *path,
		const char *second, uint32_t mode, uint64_t bytes)
{
	uint8_t head[2] = {(uint8_t)op, 0};
	size_t length = strlen(path), second_length = strlen(second);

	rs_begin(t);
	rs_put32(t, process);
	rs_put_bytes(t, head, sizeof(head));
	rs_put16(t, (uint16_t)mode);
	rs_put64(t, bytes);
	rs_put64(t, rs_now_ns());
	rs_put16(t, (uint16_t)length);
	rs_put16(t, (uint16_t)second_length);
	rs_put_bytes(t, path, length);
	rs_put_bytes(t, second, second_length);
	rs_end(t, RS_TRACE_FILE_OP);
}

struct named {
	struct rs_tracer *t;
	struct rs_task *task;
	uint32_t process;
};

/* The absolute path of (dirfd, name at `address`); 0 and counted if it cannot be told. */
static int path_of(const struct named *n, uint64_t dirfd, uint64_t address, int follow,
		   char ret_path[RS_PATH_BYTES])
{
	char name[RS_PATH_BYTES];
	ssize_t got = rs_read_string(n->task->tid, address, name, sizeof(name));

	if (got >= 0)
		got = rs_resolve(n->task->tid, (int)dirfd, name, follow, ret_path);
	if (got >= 0)
		return 1;
	rs_lost(n->t, got == -ENAMETOOLONG ? RS_TRACE_LOSS_PATH : RS_TRACE_LOSS_ARGUMENT,
		n->process, rs_trace_call_name(n->task->call));
	return 0;
}

static void renamed(const struct named *n, uint64_t from_dir, uint64_t from, uint64_t to_dir,
		    uint64_t to, uint64_t flags)
{
	char old[RS_PATH_BYTES], new[RS_PATH_BYTES];

	if (!path_of(n, from_dir, from, 0, old) || !path_of(n, to_dir, to, 0, new))
		return;
	rs_file_op(n->t, n->process, RS_TRACE_OP_RENAME, old, new, 0, 0);
	if (flags & RENAME_EXCHANGE_FLAG) { /* neither name is gone */
		rs_product_renamed(n->t, n->task, "", new);
		rs_product_renamed(n->t, n->task, "", old);
	} else {
		rs_product_renamed(n->t, n->task, old, new);
	}
}

static void linked(const struct named *n, uint64_t from_dir, uint64_t from, uint64_t to_dir,
		   uint64_t to, int follow)
{
	char old[RS_PATH_BYTES], new[RS_PATH_BYTES];

	if (!path_of(n, to_dir, to, 0, new))
		return;
	if (!path_of(n, from_dir, from, follow, old))
		old[0] = '\0';
	rs_file_op(n->t, n->process, RS_TRACE_OP_LINK, old, new, 0, 0);
	rs_product_named(n->t, n->task, new);
}

static void symlinked(const struct named *n, uint64_t target, uint64_t dir, uint64_t name)
{
	char text[RS_PATH_BYTES], path[RS_PATH_BYTES];

	if (!path_of(n, dir, name, 0, path))
		return;
	if (rs_read_string(n->task->tid, target, text, sizeof(text)) < 0)
		text[0] = '\0';
	rs_file_op(n->t, n->process, RS_TRACE_OP_SYMLINK, text, path, 0, 0);
	rs_product_named(n->t, n->task, path);
}

static void deleted(const struct named *n, uint64_t dir, uint64_t name, int directory)
{
	char path[RS_PATH_BYTES];

	if (!path_of(n, dir, name, 0, path))
		return;
	rs_file_op(n->t, n->process, directory ? RS_TRACE_OP_RMDIR : RS_TRACE_OP_DELETE, path, "",
		   0, 0);
	rs_product_deleted(n->t, path);
}

static void truncated(const struct named *n, uint64_t name, uint64_t bytes)
{
	char path[RS_PATH_BYTES];
	struct statx st;

	if (!path_of(n, (uint64_t)AT_FDCWD, name, 1, path))
		return;
	rs_file_op(n->t, n->process, RS_TRACE_OP_TRUNCATE, path, "", 0, bytes);
	if (rs_statx(AT_FDCWD, path, 0, RS_STATX_MASK, &st) == 0)
		rs_product_written(n->t, n->task, path, &st);
	else
		rs_product_named(n->t, n->task, path);
}

/* By descriptor: the file was opened for writing before, so it is a candidate already. */
static void by_fd(const struct named *n, enum rs_trace_op op, uint32_t mode, uint64_t bytes)
{
	char path[RS_PATH_BYTES], link[64];
	struct statx st;

	snprintf(link, sizeof(link), "/proc/%d/fd/%d", n->task->tid, (int)n->task->args[0]);
	if (rs_statx(AT_FDCWD, link, 0, RS_STATX_MASK, &st) < 0 ||
	    !(S_ISREG(st.stx_mode) || S_ISDIR(st.stx_mode)) || rs_link_text(link, path, &st) < 0)
		return; /* closed by another thread, or no file with a name */
	rs_file_op(n->t, n->process, op, path, "", mode, bytes);
	if (op == RS_TRACE_OP_CHMOD)
		rs_product_named(n->t, n->task, path);
}

static void mode_changed(const struct named *n, uint64_t dir, uint64_t name, uint64_t mode,
			 int follow)
{
	char path[RS_PATH_BYTES];

	if (!path_of(n, dir, name, follow, path))
		return;
	rs_file_op(n->t, n->process, RS_TRACE_OP_CHMOD, path, "", (uint32_t)mode & 07777, 0);
	rs_product_named(n->t, n->task, path);
}

static void node_made(const struct named *n, uint64_t dir, uint64_t name, uint64_t mode)
{
	char path[RS_PATH_BYTES];

	if (!path_of(n, dir, name, 0, path))
		return;
	rs_file_op(n->t, n->process, RS_TRACE_OP_MKNOD, path, "", (uint32_t)mode & 0177777, 0);
	if (S_ISREG(mode) || (mode & S_IFMT) == 0)
		rs_product_named(n->t, n->task, path);
}

void rs_name_done(struct rs_tracer *t, struct rs_task *task, int64_t result)
{
	struct named n = {t, task, rs_process_of(t, task)->number};
	const uint64_t *a = task->args, here = (uint64_t)AT_FDCWD;

	if (result < 0)
		return;
	switch (task->call) {
	case RS_CALL_rename:
		return renamed(&n, here, a[0], here, a[1], 0);
	case RS_CALL_renameat:
		return renamed(&n, a[0], a[1], a[2], a[3], 0);
	case RS_CALL_renameat2:
		return renamed(&n, a[0], a[1], a[2], a[3], a[4]);
	case RS_CALL_link:
		return linked(&n, here, a[0], here, a[1], 0);
	case RS_CALL_linkat:
		return linked(&n, a[0], a[1], a[2], a[3], (a[4] & AT_SYMLINK_FOLLOW) != 0);
	case RS_CALL_symlink:
		return symlinked(&n, a[0], here, a[1]);
	case RS_CALL_symlinkat:
		return symlinked(&n, a[0], a[1], a[2]);
	case RS_CALL_unlink:
		return deleted(&n, here, a[0], 0);
	case RS_CALL_rmdir:
		return deleted(&n, here, a[0], 1);
	case RS_CALL_unlinkat:
		return deleted(&n, a[0], a[1], (a[2] & AT_REMOVEDIR) != 0);
	case RS_CALL_truncate:
		return truncated(&n, a[0], a[1]);
	case RS_CALL_truncate64:
		return truncated(&n, a[0], a[1] | a[2] << 32);
	case RS_CALL_ftruncate:
		return by_fd(&n, RS_TRACE_OP_TRUNCATE, 0, a[1]);
	case RS_CALL_ftruncate64:
		return by_fd(&n, RS_TRACE_OP_TRUNCATE, 0, a[1] | a[2] << 32);
	case RS_CALL_fchmod:
		return by_fd(&n, RS_TRACE_OP_CHMOD, (uint32_t)a[1] & 07777, 0);
	case RS_CALL_chmod:
		return mode_changed(&n, here, a[0], a[1], 1);
	case RS_CALL_fchmodat:
		return mode_changed(&n, a[0], a[1], a[2], 1);
	case RS_CALL_fchmodat2:
		return mode_changed(&n, a[0], a[1], a[2], !(a[3] & AT_SYMLINK_NOFOLLOW));
	case RS_CALL_mknod:
		return node_made(&n, here, a[0], a[1]);
	case RS_CALL_mknodat:
		return node_made(&n, a[0], a[1], a[2]);
	default:
		return;
	}
}
