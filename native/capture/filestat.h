/* filestat.h: the parts of statx(2) that the core compares, and hashing of an open file. */
#ifndef ROOTSEAL_CAPTURE_FILESTAT_H
#define ROOTSEAL_CAPTURE_FILESTAT_H
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdatomic.h>
#include "sha.h"

#define RS_HASH_ATTEMPTS_MAX 4
#define RS_HASH_BUFFER_BYTES (256U * 1024U)

struct rs_stat {
	uint64_t dev;
	uint64_t ino;
	uint64_t size;
	int64_t ctime_ns;
	int64_t mtime_ns;
	int64_t btime_ns; /* 0: the filesystem does not say */
	uint64_t mount_id;
	uint32_t mode;
	uint32_t nlink;
	bool sealed; /* with fs-verity */
};

int rs_stat_fd(int fd, struct rs_stat *ret_stat);
/* Does not follow a symlink in the last component. */
int rs_stat_at(int dir_fd, const char *path, struct rs_stat *ret_stat);
/* As its server (NFS, FUSE) has it now: what the kernel has of it may be some seconds old. */
int rs_stat_synced_fd(int fd, struct rs_stat *ret_stat);
int rs_stat_synced_at(int dir_fd, const char *path, struct rs_stat *ret_stat);
/* As the kernel has it: a server (FUSE, NFS), which may not answer, is not asked. */
int rs_stat_known_at(int dir_fd, const char *path, struct rs_stat *ret_stat);

/* Whether this error of a look at a path says that the file is not there any more. */
static inline bool rs_is_gone(int error)
{
	return error == -ENOENT || error == -ENOTDIR || error == -ELOOP || error == -ESTALE;
}

static inline bool rs_same_inode(const struct rs_stat *a, const struct rs_stat *b)
{
	return a->dev == b->dev && a->ino == b->ino;
}

static inline bool rs_same_state(const struct rs_stat *a, const struct rs_stat *b)
{
	return rs_same_inode(a, b) && a->size == b->size && a->ctime_ns == b->ctime_ns &&
	       a->mtime_ns == b->mtime_ns;
}

/* Whether the content is machine code by its first bytes (ELF, PE), or they cannot be read. */
bool rs_is_code(int fd);

/*
 * Whole seconds: a filesystem without finer times (ext4 with inodes of 128 bytes, FAT, where it is
 * two of them) gives all changes of so long a time one and the same.
 */
#define RS_COARSE_TIMES_NS 2000000000LL

static inline bool rs_has_coarse_times(const struct rs_stat *stat)
{
	return stat->ctime_ns % 1000000000 == 0;
}

int64_t rs_coarse_now_ns(void); /* the tick that file timestamps are taken from */
int64_t rs_now_ns(void);
/* The latest time that it told in this process: never goes back, as the clock may. */
int64_t rs_latest_ns(void);

/* What hashing needs, one per thread. */
struct rs_hasher {
	struct rs_sha sha;
	uint8_t *buffer; /* RS_HASH_BUFFER_BYTES, owned */
};

int rs_hasher_open(struct rs_hasher *hasher);
void rs_hasher_close(struct rs_hasher *hasher);

struct rs_content {
	uint8_t digest[RS_SHA256_BYTES];
	bool code; /* machine code by its first bytes: ELF, PE */
};

struct rs_hash_result {
	struct rs_content content;
	uint64_t bytes_read;	/* over all attempts */
	uint32_t partial_reads; /* reads shorter than asked for before the end */
	bool unstable; /* still changing at the last attempt; the digest is of what was read */
};

/*
 * SHA-256 of a regular file, from its first byte to its end. *stat is the state before and is
 * updated to the state after. `progress` (may be NULL) counts bytes as they are read.
 */
int rs_hash_fd(struct rs_hasher *hasher, int fd, struct rs_stat *stat, _Atomic uint64_t *progress,
	       struct rs_hash_result *ret_result);

#endif
