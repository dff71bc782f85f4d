// SPDX-License-Identifier: Apache-2.0
/*
 * The stability pass: when every process is gone, does each material still have the content that
 * was hashed? What the action changed itself is no fault; what somebody else changed is counted,
 * because a page of it may have been read after the hash (through a mapping, or by a later read).
 * A name that means another file now is not a change of the file.
 *
 * Owns: the fds it opens, closed before it returns. Must not: hash what has not been touched.
 *
 *   rs_trace_run (at its end) ──► here ──LOSS, MUTATION──► sink
 *
 * Privilege: none.
 */
#include "trace_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* Whether errno says that the file is not there any more: renamed, or another in its place. */
static int is_gone(void)
{
	return errno == ENOENT || errno == ENOTDIR || errno == ELOOP || errno == ESTALE;
}

/*
 * Since it was hashed (1, else 0; -1: it cannot be looked at)? Another change time says so,
 * whatever the clock, which may have been set back meanwhile; the same one only where a change in
 * the same tick would have another.
 */
static int touched(const struct rs_tracer *t, const struct rs_file *file, const char *path)
{
	struct rs_file_id id;
	struct statx st;

	/* As a server (NFS) has it now: what this kernel has of it may be some seconds old. */
	if (rs_statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW | AT_STATX_FORCE_SYNC, RS_STATX_MASK,
		     &st) < 0)
		return is_gone() ? 0 : -1;
	rs_file_id_from(&st, &id);
	return S_ISREG(st.stx_mode) && id.device == file->device && id.inode == file->inode &&
	       (id.ctime_ns != file->ctime_ns ||
		id.ctime_ns > t->start_ns - rs_time_step_ns(id.ctime_ns));
}

/* 0: the content is as it was; 1: another, in *ret_later; -1: it could not be read. */
static int changed(struct rs_tracer *t, const struct rs_file *file, const char *path,
		   struct rs_digest *ret_later)
{
	int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC), result;
	struct statx st;

	if (fd < 0)
		return is_gone() ? 0 : -1;
	result = rs_hash_file(t, fd, &st, ret_later);
	close(fd);
	if (result < 0)
		return -1;
	return memcmp(ret_later, &file->digest, sizeof(file->digest)) != 0;
}

/* Both digests, as long as there is room; the counter says how many more there were. */
static void tell(struct rs_tracer *t, const struct rs_file *file, const struct rs_digest *later)
{
	static const struct rs_digest unknown;

	if (t->mutations >= RS_TRACE_MUTATIONS_MAX)
		return;
	t->mutations++;
	rs_begin(t);
	rs_put16(t, later ? 1 << 8 : 0);
	rs_put16(t, file->path_length);
	rs_put_bytes(t, &file->digest, sizeof(file->digest));
	rs_put_bytes(t, later ? later : &unknown, sizeof(unknown));
	rs_put_bytes(t, t->arena + file->path, file->path_length);
	rs_end(t, RS_TRACE_MUTATION);
}

void rs_stability_check(struct rs_tracer *t)
{
	char path[RS_PATH_BYTES];
	struct rs_digest later;

	for (uint32_t i = 0; i < t->file_count; i++) {
		const struct rs_file *file = &t->files[i];
		int result;

		if (file->flags & RS_TRACE_FILE_BORN ||
		    rs_inode_written(t, file->device, file->inode))
			continue;
		memcpy(path, t->arena + file->path, file->path_length);
		path[file->path_length] = '\0';
		result = touched(t, file, path);
		if (result > 0)
			result = changed(t, file, path, &later);
		if (result == 0)
			continue;
		rs_lost(t, RS_TRACE_LOSS_MUTATED, RS_TRACE_NONE, path);
		tell(t, file, result > 0 ? &later : NULL);
	}
}
