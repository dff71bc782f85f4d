/*
 * dcache.c: (device, inode, size, ctime, mtime, birth time) -> SHA-256, bounded, in memory.
 *
 * Owns: the entries. Must not: hold a lock across a system call. Hands off: digests -> handler.c.
 * Privilege: CAP_LEASE where files belong to others (rs_no_writer).
 *
 * Why a hit is right. An entry is made only by handler.c, and only if
 *   1. a read lease could be taken before the content was read: the kernel grants it only while no
 *      file of that inode is open for writing, and a writable shared mapping keeps its file open;
 *   2. the state (size, ctime, mtime) was equal before and after it was read;
 *   3. the ctime was older, when reading began, than the coarsest step of the filesystem clock,
 *      which is seconds where the times are whole seconds;
 *   4. the filesystem is ext4, xfs or btrfs.
 * A writer that was there before reading fails 1. A writer that came while we read has opened the
 * file after 1; whatever it stores first (write, truncate, or the first store into a page of a new
 * mapping, which faults because these filesystems write-protect clean pages) sets ctime to a clock
 * that by 3 has moved on, so 2 fails. The same holds for every writer after 2: the ctime in the key
 * no longer matches, because ctime cannot be set by anybody. So an entry describes one content for
 * ever. Not covered, and not defended against: the system clock set back to the very nanosecond of
 * an earlier change, and writing to the block device under a mounted filesystem; both need root.
 *
 * Why only these filesystems. tmpfs lets a store through a shared mapping pass without a fault, so
 * ctime stays; overlayfs counts writers on another inode than the one that a mapping keeps open, so
 * 1 does not see them; network and FUSE filesystems change without this kernel knowing.
 */
#include "dcache.h"
#include "mem.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define WAYS		 4
#define STRIPES		 64
#define CACHE_LINE_BYTES 64
#define CLOCK_STEP_NS	 20000000 /* HZ=100 ticks are 10 ms; twice that */

#define ENTRY_CODE (1ULL << 63) /* in its size, which is that of an off_t: content.code */

struct entry {
	uint64_t dev, ino, size;
	int64_t ctime_ns, mtime_ns, btime_ns; /* ctime_ns 0: free */
	uint8_t digest[RS_SHA256_BYTES];
};

_Static_assert(sizeof(struct entry) == RS_DCACHE_ENTRY_BYTES, "what is exported has no gaps");

struct rs_dcache {
	struct entry *entries;
	uint64_t set_mask;
	_Atomic uint64_t count, learned;
	pthread_mutex_t locks[STRIPES];
	uint8_t victim[STRIPES];
};

int rs_dcache_open(uint64_t entries, struct rs_dcache **ret_cache)
{
	struct rs_dcache *cache;
	uint64_t sets = 1;
	int i;

	if (entries > RS_DCACHE_ENTRIES_MAX)
		return -EINVAL;
	while (sets * WAYS < entries)
		sets *= 2;
	cache = calloc(1, sizeof(*cache));
	if (!cache)
		return -ENOMEM;
	/* calloc of this size maps zero pages: memory is used only as entries are made. */
	cache->entries = calloc(sets * WAYS, sizeof(*cache->entries));
	if (!cache->entries) {
		free(cache);
		return -ENOMEM;
	}
	cache->set_mask = sets - 1;
	for (i = 0; i < STRIPES; i++)
		pthread_mutex_init(&cache->locks[i], NULL);
	*ret_cache = cache;
	return 0;
}

void rs_dcache_close(struct rs_dcache *cache)
{
	int i;

	if (!cache)
		return;
	for (i = 0; i < STRIPES; i++)
		pthread_mutex_destroy(&cache->locks[i]);
	free(cache->entries);
	free(cache);
}

uint64_t rs_dcache_count(struct rs_dcache *cache)
{
	return atomic_load(&cache->count);
}

uint64_t rs_dcache_learned(struct rs_dcache *cache)
{
	return atomic_load(&cache->learned);
}

static uint64_t set_of(const struct rs_dcache *cache, const struct rs_stat *stat)
{
	return rs_hash_u64(stat->ino, stat->dev) & cache->set_mask;
}

void rs_dcache_expect(const struct rs_dcache *cache, const struct rs_stat *stat)
{
	const char *set = (const char *)&cache->entries[set_of(cache, stat) * WAYS];
	size_t at;

	for (at = 0; at < WAYS * sizeof(struct entry); at += CACHE_LINE_BYTES)
		__builtin_prefetch(set + at);
}

static bool entry_is(const struct entry *entry, const struct rs_stat *stat)
{
	return entry->ino == stat->ino && entry->dev == stat->dev &&
	       (entry->size & ~ENTRY_CODE) == stat->size && entry->ctime_ns == stat->ctime_ns &&
	       entry->mtime_ns == stat->mtime_ns && entry->btime_ns == stat->btime_ns;
}

bool rs_dcache_lookup(struct rs_dcache *cache, const struct rs_stat *stat,
		      struct rs_content *ret_content)
{
	uint64_t set = set_of(cache, stat);
	struct entry *way = &cache->entries[set * WAYS];
	bool found = false;
	int i;

	pthread_mutex_lock(&cache->locks[set % STRIPES]);
	for (i = 0; i < WAYS && !found; i++) {
		if (!entry_is(&way[i], stat))
			continue;
		memcpy(ret_content->digest, way[i].digest, RS_SHA256_BYTES);
		ret_content->code = way[i].size & ENTRY_CODE;
		found = stat->ctime_ns != 0;
	}
	pthread_mutex_unlock(&cache->locks[set % STRIPES]);
	return found;
}

void rs_dcache_insert(struct rs_dcache *cache, const struct rs_stat *stat,
		      const struct rs_content *content)
{
	uint64_t set = set_of(cache, stat), stripe = set % STRIPES;
	struct entry *way = &cache->entries[set * WAYS], *free_way = NULL, *same = NULL;
	int i;

	if (stat->ctime_ns == 0)
		return;
	pthread_mutex_lock(&cache->locks[stripe]);
	for (i = 0; i < WAYS; i++) {
		if (way[i].ctime_ns == 0)
			free_way = free_way ? free_way : &way[i];
		else if (way[i].ino == stat->ino && way[i].dev == stat->dev)
			same = &way[i];
	}
	if (!same && free_way) {
		same = free_way;
		atomic_fetch_add_explicit(&cache->count, 1, memory_order_relaxed);
	}
	if (!same)
		same = &way[cache->victim[stripe]++ % WAYS];
	*same = (struct entry){
	    .dev = stat->dev,
	    .ino = stat->ino,
	    .size = stat->size | (content->code ? ENTRY_CODE : 0),
	    .ctime_ns = stat->ctime_ns,
	    .mtime_ns = stat->mtime_ns,
	    .btime_ns = stat->btime_ns,
	};
	memcpy(same->digest, content->digest, RS_SHA256_BYTES);
	atomic_fetch_add_explicit(&cache->learned, 1, memory_order_relaxed);
	pthread_mutex_unlock(&cache->locks[stripe]);
}

int rs_dcache_export(struct rs_dcache *cache, uint8_t **ret_bytes, size_t *ret_length)
{
	uint64_t set, sets = cache->set_mask + 1, limit = rs_dcache_count(cache), count = 0;
	struct entry *out = malloc((limit + 1) * sizeof(*out));
	int i;

	if (!out)
		return -ENOMEM;
	for (set = 0; set < sets && count < limit; set++) {
		struct entry *way = &cache->entries[set * WAYS];

		pthread_mutex_lock(&cache->locks[set % STRIPES]);
		for (i = 0; i < WAYS && count < limit; i++)
			if (way[i].ctime_ns)
				out[count++] = way[i];
		pthread_mutex_unlock(&cache->locks[set % STRIPES]);
	}
	*ret_bytes = (uint8_t *)out;
	*ret_length = count * sizeof(*out);
	return 0;
}

/* True if there was a free place; what is newer than the imported stays. */
static bool import_one(struct rs_dcache *cache, const struct entry *entry)
{
	struct rs_stat stat = {.dev = entry->dev, .ino = entry->ino};
	uint64_t set = set_of(cache, &stat);
	struct entry *way = &cache->entries[set * WAYS], *place = NULL;
	bool known = false;
	int i;

	pthread_mutex_lock(&cache->locks[set % STRIPES]);
	for (i = 0; i < WAYS; i++) {
		if (!way[i].ctime_ns)
			place = place ? place : &way[i];
		else if (way[i].ino == entry->ino && way[i].dev == entry->dev)
			known = true;
	}
	if (place && !known) {
		*place = *entry;
		atomic_fetch_add_explicit(&cache->count, 1, memory_order_relaxed);
	}
	pthread_mutex_unlock(&cache->locks[set % STRIPES]);
	return place && !known;
}

int64_t rs_dcache_import(struct rs_dcache *cache, const uint8_t *bytes, size_t length,
			 const uint64_t *devices, size_t device_count)
{
	struct entry entry;
	int64_t taken = 0;
	size_t at, device;

	if (length % sizeof(entry))
		return -EINVAL;
	for (at = 0; at < length; at += sizeof(entry)) {
		memcpy(&entry, bytes + at, sizeof(entry));
		for (device = 0; device < device_count && devices[device] != entry.dev; device++)
			;
		if (device < device_count && entry.ctime_ns)
			taken += import_one(cache, &entry);
	}
	return taken;
}

bool rs_no_writer(int fd)
{
	if (fcntl(fd, F_SETLEASE, F_RDLCK))
		return false;
	/* Given back at once: a writer that arrives meanwhile waits for microseconds. */
	return fcntl(fd, F_SETLEASE, F_UNLCK) == 0;
}

bool rs_settled(const struct rs_stat *stat, int64_t now_coarse_ns)
{
	int64_t coarse_ns = rs_has_coarse_times(stat) ? RS_COARSE_TIMES_NS : 0;

	return stat->ctime_ns < now_coarse_ns - CLOCK_STEP_NS - coarse_ns;
}
