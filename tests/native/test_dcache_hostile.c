/*
 * The digest cache against hostile writers: every digest that it gives is compared with a fresh
 * hash of the same open file, taken while nobody wrote.
 *
 *   test_dcache_hostile [COMPARED [DIRECTORY [SEED]]]
 *
 * Each family is a directory whose names one writer thread rewrites, truncates, maps, links,
 * renames, replaces and sets back in time. A sequence number, odd while it writes, tells readers
 * whether anything was done between the lookup and the fresh hash; nothing here trusts timestamps.
 * Ends when COMPARED lookups were compared. Exit code 77: a filesystem whose digests are not
 * cached.
 */
#include "check.h"
#include "core.h"

#include <linux/magic.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define FAMILIES	 4
#define NAMES		 8
#define SIZE_MAX_BYTES	 20000
#define MAP_BYTES	 4096
#define READERS		 2
#define COMPARED_DEFAULT 20000

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

struct family {
	int dir_fd;
	_Atomic uint64_t sequence;
	uint64_t random;
	uint8_t *map; /* a writable mapping that outlives its descriptor */
	pthread_t thread;
};

static struct family families[FAMILIES];
static struct rs_scope scope;
static struct rs_engine *engine;
static _Atomic uint64_t compared, looked_up, hits, wrong;
static _Atomic bool stop;
static uint64_t wanted = COMPARED_DEFAULT;

static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static const char *name_of(uint64_t number)
{
	static const char *const names[NAMES] = {"a", "b", "c", "d", "e", "f", "g", "h"};

	return names[number % NAMES];
}

static void fill(struct family *family, uint8_t *bytes, size_t length)
{
	uint64_t word;
	size_t i;

	for (i = 0; i < length; i += sizeof(word)) {
		word = next(&family->random);
		memcpy(bytes + i, &word, length - i < sizeof(word) ? length - i : sizeof(word));
	}
}

static void put(struct family *family, const char *name, int flags, size_t length)
{
	static __thread uint8_t bytes[SIZE_MAX_BYTES];
	int fd = openat(family->dir_fd, name, O_RDWR | O_CREAT | O_CLOEXEC | flags, 0644);

	CHECK(fd >= 0);
	fill(family, bytes, length);
	CHECK(pwrite(fd, bytes, length, 0) == (ssize_t)length);
	close(fd);
}

/* Another content of the same length, and the modification time as it was. */
static void set_back(struct family *family, const char *name)
{
	struct timespec times[2];
	struct stat before;

	if (fstatat(family->dir_fd, name, &before, 0))
		return;
	put(family, name, 0, (size_t)(before.st_size < SIZE_MAX_BYTES ? before.st_size : 1));
	times[0] = before.st_atim;
	times[1] = before.st_mtim;
	CHECK(!utimensat(family->dir_fd, name, times, 0));
}

static void store(struct family *family, const char *name, bool keep)
{
	int fd = openat(family->dir_fd, name, O_RDWR | O_CLOEXEC);
	uint8_t *map;

	if (fd < 0 || ftruncate(fd, MAP_BYTES)) {
		if (fd >= 0)
			close(fd);
		return;
	}
	map = mmap(NULL, MAP_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(map != MAP_FAILED);
	close(fd);
	fill(family, map, 64);
	if (keep && !family->map)
		family->map = map;
	else
		munmap(map, MAP_BYTES);
}

/* A store into a mapping whose pages may have become clean meanwhile, or its end. */
static void store_again(struct family *family)
{
	if (!family->map)
		return;
	fill(family, family->map + next(&family->random) % (MAP_BYTES - 64), 8);
	if (next(&family->random) % 4 == 0)
		msync(family->map, MAP_BYTES, MS_SYNC);
	if (next(&family->random) % 4 == 0) {
		munmap(family->map, MAP_BYTES);
		family->map = NULL;
	}
}

static void replace(struct family *family, const char *name, size_t length)
{
	put(family, "new", O_TRUNC, length);
	CHECK(!renameat(family->dir_fd, "new", family->dir_fd, name));
}

static void copy(struct family *family, const char *from, const char *to)
{
	int source = openat(family->dir_fd, from, O_RDONLY | O_CLOEXEC);
	int target = openat(family->dir_fd, to, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	off_t in = 0, out = 0;

	if (source >= 0 && target >= 0 &&
	    copy_file_range(source, &in, target, &out, SIZE_MAX_BYTES, 0) < 0)
		CHECK(errno == EINVAL); /* the same file, overlapping */
	if (source >= 0)
		close(source);
	if (target >= 0)
		close(target);
}

static void punch(struct family *family, const char *name)
{
	int fd = openat(family->dir_fd, name, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return;
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 512))
		CHECK(errno == EOPNOTSUPP);
	close(fd);
}

static void write_once(struct family *family)
{
	uint64_t chosen = next(&family->random);
	const char *name = name_of(chosen >> 8), *other = name_of(chosen >> 16);
	size_t length = 1 + (chosen >> 24) % (SIZE_MAX_BYTES - 1);

	switch (chosen % 13) {
	case 0:
		put(family, name, 0, length);
		break;
	case 1:
		put(family, name, O_TRUNC, length);
		break;
	case 2:
		replace(family, name, length);
		break;
	case 3: /* the same tick: the timestamps may not tell */
		put(family, name, O_TRUNC, length);
		put(family, name, 0, length);
		break;
	case 4:
		set_back(family, name);
		break;
	case 5:
		unlinkat(family->dir_fd, other, 0);
		linkat(family->dir_fd, name, family->dir_fd, other, 0);
		break;
	case 6:
		renameat(family->dir_fd, name, family->dir_fd, other);
		break;
	case 7:
		store(family, name, false);
		break;
	case 8:
		store(family, name, true);
		break;
	case 9:
		store_again(family);
		break;
	case 10: /* the inode number is often used again at once */
		unlinkat(family->dir_fd, name, 0);
		put(family, name, O_EXCL, length);
		break;
	case 11:
		copy(family, name, other);
		break;
	case 12:
		punch(family, name);
		break;
	}
}

static void *writer_main(void *context)
{
	static const struct timespec pause = {.tv_nsec = 45000000}; /* files come to rest */
	struct family *family = context;
	uint64_t burst;

	while (!atomic_load(&stop)) {
		atomic_fetch_add(&family->sequence, 1);
		for (burst = next(&family->random) % 4; burst; burst--)
			write_once(family);
		write_once(family);
		atomic_fetch_add(&family->sequence, 1);
		if (next(&family->random) % 4)
			nanosleep(&pause, NULL);
	}
	if (family->map)
		munmap(family->map, MAP_BYTES);
	return NULL;
}

static bool fresh_digest(struct rs_sha *sha, int fd, uint8_t *ret_digest32)
{
	static __thread uint8_t bytes[SIZE_MAX_BYTES + 1];
	ssize_t got = pread(fd, bytes, sizeof(bytes), 0);

	return got >= 0 && !rs_sha_start(sha) && !rs_sha_update(sha, bytes, (size_t)got) &&
	       !rs_sha_finish(sha, ret_digest32);
}

static void look_up(struct rs_worker *worker, struct rs_sha *sha, struct family *family, int fd)
{
	uint8_t fresh[RS_SHA256_BYTES];
	struct rs_content given;
	uint64_t before = atomic_load(&family->sequence);
	enum rs_digest_outcome outcome;
	struct rs_stat stat;
	bool trusted, hit;

	CHECK(!rs_stat_fd(fd, &stat));
	hit = rs_dcache_lookup(rs_engine_cache(engine), &stat, &given);
	outcome = rs_digest_of_fd(worker, &scope, fd, &stat, true, &given, &trusted);
	atomic_fetch_add(&looked_up, 1);
	CHECK(fresh_digest(sha, fd, fresh));
	if (before % 2 || atomic_load(&family->sequence) != before)
		return; /* somebody wrote: nothing to compare with */
	CHECK(outcome == RS_DIGEST_OK);
	atomic_fetch_add(&hits, hit);
	if (memcmp(given.digest, fresh, sizeof(fresh)))
		atomic_fetch_add(&wrong, 1);
	if (atomic_fetch_add(&compared, 1) + 1 >= wanted)
		atomic_store(&stop, true);
}

static void *reader_main(void *context)
{
	struct rs_worker *worker = calloc(1, sizeof(*worker));
	uint64_t random = (uint64_t)(uintptr_t)context;
	struct rs_sha sha;
	int fd;

	CHECK(worker && !rs_worker_open(worker, engine) && !rs_sha_open(&sha));
	while (!atomic_load(&stop)) {
		struct family *family = &families[next(&random) % FAMILIES];

		fd = openat(family->dir_fd, name_of(next(&random) >> 8), O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		look_up(worker, &sha, family, fd);
		close(fd);
	}
	rs_sha_close(&sha);
	rs_worker_close(worker);
	free(worker);
	return NULL;
}

static bool is_cached_filesystem(int fd)
{
	struct statfs info;

	CHECK(!fstatfs(fd, &info));
	return info.f_type == EXT4_SUPER_MAGIC || info.f_type == XFS_SUPER_MAGIC ||
	       info.f_type == BTRFS_SUPER_MAGIC;
}

static void make_families(int dir_fd, uint64_t seed)
{
	char name[32];
	int i, number;

	for (i = 0; i < FAMILIES; i++) {
		snprintf(name, sizeof(name), "family%d", i);
		CHECK(!mkdirat(dir_fd, name, 0755));
		families[i].dir_fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		CHECK(families[i].dir_fd >= 0);
		families[i].random = seed * FAMILIES + (uint64_t)i + 1;
		for (number = 0; number < NAMES; number++)
			put(&families[i], name_of((uint64_t)number), 0, 1000);
	}
}

static void remove_families(int dir_fd)
{
	char name[32];
	int i, number;

	for (i = 0; i < FAMILIES; i++) {
		for (number = 0; number < NAMES; number++)
			unlinkat(families[i].dir_fd, name_of((uint64_t)number), 0);
		close(families[i].dir_fd);
		snprintf(name, sizeof(name), "family%d", i);
		unlinkat(dir_fd, name, AT_REMOVEDIR);
	}
}

/* A scope without a group: only its mounts and limits matter to a lookup. */
static void make_scope(int dir_fd, struct rs_mount *mount)
{
	struct rs_stat stat;

	CHECK(!rs_stat_fd(dir_fd, &stat));
	*mount = (struct rs_mount){.id = stat.mount_id, .reliable_times = true};
	scope.engine = engine;
	scope.limits.max_hashed_bytes = UINT64_MAX / 2;
	scope.mounts.items = mount;
	scope.mounts.count = 1;
}

int main(int argc, char **argv)
{
	char directory[4096];
	pthread_t readers[READERS];
	struct rs_mount mount;
	rs_error error;
	int dir_fd, i;

	if (argc > 1)
		wanted = strtoull(argv[1], NULL, 10);
	snprintf(directory, sizeof(directory), "%s/rootseal-hostile-XXXXXX",
		 argc > 2 ? argv[2] : "/tmp");
	CHECK(mkdtemp(directory));
	dir_fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(dir_fd >= 0);
	if (!is_cached_filesystem(dir_fd)) {
		rmdir(directory);
		return 77;
	}
	CHECK(!rs_engine_open(1, 1 << 12, &engine, &error));
	make_scope(dir_fd, &mount);
	make_families(dir_fd, argc > 3 ? strtoull(argv[3], NULL, 10) : 1);
	for (i = 0; i < FAMILIES; i++)
		CHECK(!pthread_create(&families[i].thread, NULL, writer_main, &families[i]));
	for (i = 0; i < READERS; i++)
		CHECK(!pthread_create(&readers[i], NULL, reader_main, (void *)(uintptr_t)(i + 7)));
	for (i = 0; i < READERS; i++)
		CHECK(!pthread_join(readers[i], NULL));
	for (i = 0; i < FAMILIES; i++)
		CHECK(!pthread_join(families[i].thread, NULL));
	remove_families(dir_fd);
	rmdir(directory);
	rs_engine_close(engine);
	printf("dcache_hostile: %llu lookups, %llu compared, %llu from the cache, %llu wrong\n",
	       (unsigned long long)looked_up, (unsigned long long)compared,
	       (unsigned long long)hits, (unsigned long long)wrong);
	CHECK(wrong == 0);
	CHECK(hits > compared / 4); /* or the cache was not tested */
	return 0;
}
