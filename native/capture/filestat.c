/*
 * filestat.c: state of a file and SHA-256 of its whole content.
 *
 * Owns: the read buffer of each hasher. Must not: open a path, or stop early: a file is hashed to
 * its end or reported as unstable or unreadable. Hands off: digest and state -> handler.c,
 * products.c. Privilege: none beyond the descriptor that it is given.
 */
#include "filestat.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#ifndef STATX_ATTR_VERITY
#define STATX_ATTR_VERITY 0x00100000U
#endif
#ifndef STATX_MNT_ID
#define STATX_MNT_ID 0x00001000U
#endif

static _Atomic int64_t latest_ns; /* of this process: the clock is everybody's */

static int64_t timestamp_ns(const struct statx_timestamp *ts)
{
	return (int64_t)ts->tv_sec * 1000000000 + ts->tv_nsec;
}

static int stat_any(int dir_fd, const char *path, int flags, struct rs_stat *ret_stat)
{
	struct statx sx;

	if (statx(dir_fd, path, flags | AT_NO_AUTOMOUNT,
		  STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID, &sx))
		return -errno;
	*ret_stat = (struct rs_stat){
	    .dev = makedev(sx.stx_dev_major, sx.stx_dev_minor),
	    .ino = sx.stx_ino,
	    .size = sx.stx_size,
	    .ctime_ns = timestamp_ns(&sx.stx_ctime),
	    .mtime_ns = timestamp_ns(&sx.stx_mtime),
	    .btime_ns = sx.stx_mask & STATX_BTIME ? timestamp_ns(&sx.stx_btime) : 0,
	    .mount_id = sx.stx_mask & STATX_MNT_ID ? sx.stx_mnt_id : UINT64_MAX,
	    .mode = sx.stx_mode,
	    .nlink = sx.stx_nlink,
	    .sealed = !!(sx.stx_attributes & STATX_ATTR_VERITY),
	};
	return 0;
}

int rs_stat_fd(int fd, struct rs_stat *ret_stat)
{
	return stat_any(fd, "", AT_EMPTY_PATH, ret_stat);
}

int rs_stat_at(int dir_fd, const char *path, struct rs_stat *ret_stat)
{
	return stat_any(dir_fd, path, AT_SYMLINK_NOFOLLOW, ret_stat);
}

int rs_stat_synced_fd(int fd, struct rs_stat *ret_stat)
{
	return stat_any(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, ret_stat);
}

int rs_stat_synced_at(int dir_fd, const char *path, struct rs_stat *ret_stat)
{
	return stat_any(dir_fd, path, AT_SYMLINK_NOFOLLOW | AT_STATX_FORCE_SYNC, ret_stat);
}

int rs_stat_known_at(int dir_fd, const char *path, struct rs_stat *ret_stat)
{
	return stat_any(dir_fd, path, AT_SYMLINK_NOFOLLOW | AT_STATX_DONT_SYNC, ret_stat);
}

static int64_t clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int64_t rs_coarse_now_ns(void)
{
	return clock_ns(CLOCK_REALTIME_COARSE);
}

int64_t rs_now_ns(void)
{
	int64_t now = clock_ns(CLOCK_REALTIME);
	int64_t latest = atomic_load_explicit(&latest_ns, memory_order_relaxed);

	while (latest < now && !atomic_compare_exchange_weak(&latest_ns, &latest, now))
		;
	return now;
}

int64_t rs_latest_ns(void)
{
	return atomic_load(&latest_ns);
}

static bool is_code(const void *bytes, ssize_t length)
{
	return (length >= SELFMAG && !memcmp(bytes, ELFMAG, SELFMAG)) ||
	       (length >= 2 && !memcmp(bytes, "MZ", 2));
}

bool rs_is_code(int fd)
{
	char first[SELFMAG];
	ssize_t got = pread(fd, first, sizeof(first), 0);

	return got < 0 || is_code(first, got);
}

int rs_hasher_open(struct rs_hasher *hasher)
{
	int error;

	*hasher = (struct rs_hasher){0};
	error = rs_sha_open(&hasher->sha);
	if (error)
		return error;
	hasher->buffer = aligned_alloc(4096, RS_HASH_BUFFER_BYTES);
	if (!hasher->buffer) {
		rs_sha_close(&hasher->sha);
		return -ENOMEM;
	}
	return 0;
}

void rs_hasher_close(struct rs_hasher *hasher)
{
	rs_sha_close(&hasher->sha);
	free(hasher->buffer);
	hasher->buffer = NULL;
}

static bool has_size_now(int fd)
{
	struct rs_stat now;

	return rs_stat_fd(fd, &now) == 0 && now.size != 0;
}

/*
 * One attempt: reads until the size that stat told is read, or the end if it comes earlier. So a
 * file that grows as fast as it is read still ends; the state afterwards tells that it grew.
 */
static int hash_once(struct rs_hasher *hasher, int fd, const struct rs_stat *stat,
		     _Atomic uint64_t *progress, struct rs_hash_result *result)
{
	uint64_t offset = 0;
	ssize_t got;

	result->content.code = false;
	if (rs_sha_start(&hasher->sha))
		return -EIO;
	for (;;) {
		got = pread(fd, hasher->buffer, RS_HASH_BUFFER_BYTES, (off_t)offset);
		if (got < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		if (got == 0)
			break;
		if (offset == 0)
			result->content.code = is_code(hasher->buffer, got);
		if (rs_sha_update(&hasher->sha, hasher->buffer, (size_t)got))
			return -EIO;
		offset += (uint64_t)got;
		if (progress)
			atomic_fetch_add_explicit(progress, (uint64_t)got, memory_order_relaxed);
		/* A short read that ends at the size is the end: one system call less per file. */
		if (offset == stat->size && got < (ssize_t)RS_HASH_BUFFER_BYTES)
			break;
		if (offset > stat->size && (stat->size != 0 || has_size_now(fd)))
			break;
		if (offset < stat->size && got < (ssize_t)RS_HASH_BUFFER_BYTES)
			result->partial_reads++;
	}
	result->bytes_read += offset;
	if (rs_sha_finish(&hasher->sha, result->content.digest))
		return -EIO;
	/* Some filesystems (FUSE) never tell a size: then the end of the reading is the end. */
	return offset == stat->size || (stat->size == 0 && !has_size_now(fd)) ? 0 : 1;
}

int rs_hash_fd(struct rs_hasher *hasher, int fd, struct rs_stat *stat, _Atomic uint64_t *progress,
	       struct rs_hash_result *ret_result)
{
	struct rs_hash_result result = {0};
	struct rs_stat after;
	int attempt, outcome, error;

	for (attempt = 0; attempt < RS_HASH_ATTEMPTS_MAX; attempt++) {
		outcome = hash_once(hasher, fd, stat, progress, &result);
		if (outcome < 0)
			return outcome;
		error = rs_stat_fd(fd, &after);
		if (error)
			return error;
		result.unstable = outcome != 0 || !rs_same_state(stat, &after);
		*stat = after;
		if (!result.unstable)
			break;
	}
	*ret_result = result;
	return 0;
}
