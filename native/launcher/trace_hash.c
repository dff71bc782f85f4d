// SPDX-License-Identifier: Apache-2.0
/*
 * Content digests of open files, and the digest cache of this action.
 *
 * Owns: tracer.cache, tracer.read_buffer. Must not: open by path; hash anything but a regular
 * file; believe the cache where a writer could have been active.
 *
 * When is a cached digest safe? The key holds the change time, which every write(2), truncate and
 * attribute change moves. Three holes remain, each closed: (1) the clock of the change time is
 * coarse, so a write in the same tick leaves it alone: an entry is made only when the change time
 * was at least rs_time_step_ns old before hashing began; (2) stores through a shared mapping move
 * the times only when a page becomes dirty: files that the action has opened for writing are never
 * cached, and an entry is believed only from the second hash on, if a read lease could be taken
 * then, which the kernel refuses while anybody has the file open for writing (only the owner of a
 * file may take one; the action cannot write files of others); (3) the file may change while it is
 * hashed: its state is compared before and after.
 * Where others serve the file the times are what they say: it is hashed at each open.
 *
 * Privilege: none.
 */
#include "trace_internal.h"
#include "../remote_filesystems.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define READ_BYTES    (256u << 10)
#define CACHE_MAX     (1u << 18)
#define ATTEMPTS_MAX  4
#define NS_PER_SECOND 1000000000
#define SELINUX_FS    0xf97cff8c
#define FUSE_CTL_FS   0x65735543
#define MQUEUE_FS     0x19800202
#define RPC_PIPE_FS   0x67596969
#define CONFIG_FS     0x62656570
#define BINFMT_FS     0x42494e4d

void rs_file_id_from(const struct statx *st, struct rs_file_id *ret_id)
{
	*ret_id = (struct rs_file_id){
	    .device = rs_device(st),
	    .inode = st->stx_ino,
	    .size = st->stx_size,
	    .mtime_ns = st->stx_mtime.tv_sec * NS_PER_SECOND + st->stx_mtime.tv_nsec,
	    .ctime_ns = st->stx_ctime.tv_sec * NS_PER_SECOND + st->stx_ctime.tv_nsec,
	};
}

static uint64_t id_hash(const struct rs_file_id *id)
{
	return rs_hash_bytes(id, sizeof(*id), 0);
}

static int cached_equal(const void *context, uint32_t entry, const void *key)
{
	const struct rs_tracer *t = context;

	return memcmp(&t->cache[entry].id, key, sizeof(struct rs_file_id)) == 0;
}

static uint64_t cached_rehash(const void *context, uint32_t entry)
{
	return id_hash(&((const struct rs_tracer *)context)->cache[entry].id);
}

int rs_hash_cached(struct rs_tracer *t, const struct statx *st, struct rs_digest *ret_digest,
		   uint8_t *ret_is_code)
{
	struct rs_file_id id;
	uint32_t found;

	rs_file_id_from(st, &id);
	if (rs_inode_written(t, id.device, id.inode))
		return 0;
	found = rs_index_find(&t->cache_index, id_hash(&id), cached_equal, t, &id);
	if (found == UINT32_MAX || !t->cache[found].trusted)
		return 0;
	*ret_digest = t->cache[found].digest;
	*ret_is_code = t->cache[found].is_code;
	rs_counted(t, RS_TRACE_C_CACHE_HITS);
	return 1;
}

/* On a description of our own, because a lease would show on the task's. SIGIO, which a broken
 * lease sends, is blocked by rs_trace_run(). */
static int writer_active(struct rs_tracer *t, int fd)
{
	int own = rs_reopen(t, fd), active = 1;

	if (own < 0)
		return 1;
	if (fcntl(own, F_SETLEASE, F_RDLCK) == 0) {
		fcntl(own, F_SETLEASE, F_UNLCK);
		active = 0;
	} else if (errno != EAGAIN) {
		active = 0; /* not ours to lease, or a filesystem without leases */
	}
	close(own);
	return active;
}

static void cache_add(struct rs_tracer *t, int fd, const struct rs_file_id *id, int64_t begun_ns,
		      const struct rs_digest *digest, uint8_t is_code)
{
	uint32_t found;

	if (id->ctime_ns > begun_ns - rs_time_step_ns(id->ctime_ns) ||
	    rs_inode_written(t, id->device, id->inode) ||
	    rs_filesystem_of(fd) == RS_FILESYSTEM_REMOTE)
		return;
	found = rs_index_find(&t->cache_index, id_hash(id), cached_equal, t, id);
	if (found != UINT32_MAX) {
		struct rs_cached *entry = &t->cache[found];

		entry->trusted =
		    memcmp(&entry->digest, digest, sizeof(*digest)) == 0 && !writer_active(t, fd);
		entry->digest = *digest;
		entry->is_code = is_code;
		return;
	}
	if (rs_grow((void **)&t->cache, t->cache_count, &t->cache_capacity, sizeof(*t->cache),
		    CACHE_MAX) < 0)
		return; /* a smaller cache is slower, not wrong */
	t->cache[t->cache_count] =
	    (struct rs_cached){.id = *id, .digest = *digest, .is_code = is_code};
	if (rs_index_add(&t->cache_index, id_hash(id), t->cache_count, cached_rehash, t) == 0)
		t->cache_count++;
}

static uint8_t is_code(const uint8_t *bytes, size_t length)
{
	return (length >= 4 && memcmp(bytes, ELFMAG, SELFMAG) == 0) ||
	       (length >= 2 && memcmp(bytes, "MZ", 2) == 0);
}

/* To the end, or to the size if there is one: the caller sees by the state if it grew meanwhile. */
static int hash_once(struct rs_tracer *t, int fd, uint64_t size, struct rs_digest *ret_digest,
		     uint8_t *ret_is_code)
{
	struct rs_sha256 hash;
	uint64_t offset = 0;

	*ret_is_code = 0;
	rs_sha256_init(&hash);
	while (size == 0 || offset < size) {
		ssize_t got = pread(fd, t->read_buffer, READ_BYTES, (off_t)offset);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -RS_TRACE_LOSS_READ;
		if (got == 0)
			break;
		if (offset == 0)
			*ret_is_code = is_code(t->read_buffer, (size_t)got);
		rs_sha256_update(&hash, t->read_buffer, (size_t)got);
		offset += (uint64_t)got;
		t->counters[RS_TRACE_C_BYTES_HASHED] += (uint64_t)got;
	}
	rs_sha256_final(&hash, ret_digest->bytes);
	return 0;
}

static int64_t coarse_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	return now.tv_sec * (int64_t)NS_PER_SECOND + now.tv_nsec;
}

int rs_hash_file(struct rs_tracer *t, int fd, struct statx *ret_st, struct rs_digest *ret_digest)
{
	struct statx st;
	uint8_t code;
	int result;

	if (rs_statx(fd, "", AT_EMPTY_PATH, RS_STATX_MASK, &st) < 0)
		return -RS_TRACE_LOSS_READ;
	result = rs_hash_cached(t, &st, ret_digest, &code)
		     ? 0
		     : rs_hash_anew(t, fd, &st, ret_digest, &code);
	if (result == 0)
		*ret_st = st;
	return result;
}

int rs_hash_anew(struct rs_tracer *t, int fd, struct statx *state, struct rs_digest *ret_digest,
		 uint8_t *ret_is_code)
{
	uint64_t limit = t->config->limits.hashed_bytes_max;
	struct rs_file_id before, after;
	struct statx st = *state;

	if (!t->read_buffer)
		t->read_buffer = malloc(READ_BYTES);
	if (!t->read_buffer)
		return -RS_TRACE_LOSS_MEMORY;
	for (int attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
		int64_t begun_ns = coarse_now_ns();
		int result;

		if (limit && t->counters[RS_TRACE_C_BYTES_HASHED] + st.stx_size > limit)
			return -RS_TRACE_LOSS_BYTES_CAP;
		rs_file_id_from(&st, &before);
		result = hash_once(t, fd, st.stx_size, ret_digest, ret_is_code);
		if (result < 0)
			return result;
		if (rs_statx(fd, "", AT_EMPTY_PATH, RS_STATX_MASK, &st) < 0)
			return -RS_TRACE_LOSS_READ;
		rs_file_id_from(&st, &after);
		if (memcmp(&before, &after, sizeof(before)) == 0) {
			cache_add(t, fd, &after, begun_ns, ret_digest, *ret_is_code);
			*state = st;
			return 0;
		}
	}
	return -RS_TRACE_LOSS_UNSTABLE;
}

static int has_magic(const struct statfs *fs, const uint32_t *list, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if ((uint32_t)fs->f_type == list[i])
			return 1;
	return 0;
}

#define HAS_MAGIC(fs, list) has_magic(fs, list, sizeof(list) / sizeof((list)[0]))
#define MAGIC(name, magic)  magic,

/* Not remembered by device: the number of an unmounted filesystem is used again. Only one that
 * somebody serves can fail to say what it is. */
enum rs_filesystem rs_filesystem_of(int fd)
{
	static const uint32_t remote[] = {RS_REMOTE_FILESYSTEMS(MAGIC)};
	static const uint32_t pseudo[] = {
	    PROC_SUPER_MAGIC, SYSFS_MAGIC,    CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC,
	    DEBUGFS_MAGIC,    TRACEFS_MAGIC,  SECURITYFS_MAGIC,	  BPF_FS_MAGIC,
	    PSTOREFS_MAGIC,   EFIVARFS_MAGIC, DEVPTS_SUPER_MAGIC, SELINUX_FS,
	    FUSE_CTL_FS,      MQUEUE_FS,      RPC_PIPE_FS,	  CONFIG_FS,
	    BINFMT_FS,	      NSFS_MAGIC,
	};
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0 || HAS_MAGIC(&fs, remote))
		return RS_FILESYSTEM_REMOTE;
	return HAS_MAGIC(&fs, pseudo) ? RS_FILESYSTEM_PSEUDO : RS_FILESYSTEM_LOCAL;
}
