// SPDX-License-Identifier: Apache-2.0
/*
 * The stability pass: when every process is gone, does each material still have the content that
 * was hashed? What the action changed itself is no fault; what somebody else changed is counted,
 * because a page of it may have been read after the hash (through a mapping, or by a later read).
 * A name that means another file now is not a change of the file.
 *
 * Owns: the fds it opens, closed before it returns. Must not: hash what has not been touched.
 *
 *   rs_trace_run (at its end) ──► here ──LOSS──► sink
 *
 * Privilege: none.
 */
#include "trace_internal.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define TICK_NS 20000000 /* the clock of the change time is coarse */

static int touched(const struct rs_tracer *t, const struct rs_file *file, const char *path)
{
	struct rs_file_id id;
	struct statx st;

	if (rs_statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, RS_STATX_MASK, &st) < 0)
		return 0;
	rs_file_id_from(&st, &id);
	return S_ISREG(st.stx_mode) && id.device == file->device && id.inode == file->inode &&
	       id.ctime_ns > t->start_ns - TICK_NS;
}

static int still_same(struct rs_tracer *t, const struct rs_file *file, const char *path)
{
	int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC), result;
	struct rs_digest digest;
	struct statx st;

	if (fd < 0)
		return 1; /* renamed away since the look above: not a change */
	result = rs_hash_file(t, fd, &st, &digest);
	close(fd);
	return result == 0 && memcmp(&digest, &file->digest, sizeof(digest)) == 0;
}

void rs_stability_check(struct rs_tracer *t)
{
	char path[RS_PATH_BYTES];

	for (uint32_t i = 0; i < t->file_count; i++) {
		const struct rs_file *file = &t->files[i];

		if (file->flags & RS_TRACE_FILE_BORN ||
		    rs_inode_written(t, file->device, file->inode))
			continue;
		memcpy(path, t->arena + file->path, file->path_length);
		path[file->path_length] = '\0';
		if (touched(t, file, path) && !still_same(t, file, path))
			rs_lost(t, RS_TRACE_LOSS_MUTATED, RS_TRACE_NONE, path);
	}
}
