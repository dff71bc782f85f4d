/*
 * verity.c: the SHA-256 of a sealed file without reading it.
 *
 * Owns: the map, which never changes once made, so it is read without a lock. Must not: read file
 * content. Hands off: digests -> handler.c. Privilege: none beyond the descriptor it is given.
 *
 * Why it is right. The kernel checks every page of a sealed file against the Merkle tree that the
 * measurement is the root of, and refuses writers for ever; the entries come from signed manifests
 * whose SHA-256 was taken after sealing. The size is compared too: btrfs lets a sealed file be
 * truncated by path, and the measurement of the inode in memory then stays as it was.
 */
#include "verity.h"

#include <errno.h>
#include <linux/fsverity.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

struct entry {
	uint8_t measured[RS_SHA256_BYTES];
	uint8_t digest[RS_SHA256_BYTES];
	uint64_t size;
	bool used;
};

struct rs_verity {
	uint64_t mask;
	struct entry entries[];
};

static uint64_t slot_of(const struct rs_verity *map, const uint8_t *measured)
{
	uint64_t hash;

	memcpy(&hash, measured, sizeof(hash)); /* a digest is its own hash */
	return hash & map->mask;
}

static uint64_t read_be64(const uint8_t *bytes)
{
	uint64_t value = 0;
	int i;

	for (i = 0; i < 8; i++)
		value = value << 8 | bytes[i];
	return value;
}

static void add(struct rs_verity *map, const uint8_t *bytes)
{
	uint64_t slot = slot_of(map, bytes);
	struct entry *entry;

	for (entry = &map->entries[slot]; entry->used; entry = &map->entries[slot]) {
		if (!memcmp(entry->measured, bytes, RS_SHA256_BYTES))
			return; /* the same content once more */
		slot = (slot + 1) & map->mask;
	}
	memcpy(entry->measured, bytes, RS_SHA256_BYTES);
	memcpy(entry->digest, bytes + RS_SHA256_BYTES, RS_SHA256_BYTES);
	entry->size = read_be64(bytes + 2 * RS_SHA256_BYTES);
	entry->used = true;
}

int rs_verity_open(const uint8_t *entries, uint64_t count, struct rs_verity **ret_map)
{
	struct rs_verity *map;
	uint64_t slots = 16, i;

	if (count > RS_VERITY_ENTRIES_MAX)
		return -EINVAL;
	while (slots < 2 * count)
		slots *= 2; /* at least half of it stays free, so every search ends */
	map = calloc(1, sizeof(*map) + slots * sizeof(map->entries[0]));
	if (!map)
		return -ENOMEM;
	map->mask = slots - 1;
	for (i = 0; i < count; i++)
		add(map, entries + i * RS_VERITY_ENTRY_BYTES);
	*ret_map = map;
	return 0;
}

void rs_verity_close(struct rs_verity *map)
{
	free(map);
}

static int measure(int fd, uint8_t *ret_measured)
{
	union {
		struct fsverity_digest head;
		uint8_t room[sizeof(struct fsverity_digest) + RS_SHA256_BYTES];
	} found = {.head.digest_size = RS_SHA256_BYTES};

	if (ioctl(fd, FS_IOC_MEASURE_VERITY, &found))
		return -errno;
	if (found.head.digest_algorithm != FS_VERITY_HASH_ALG_SHA256 ||
	    found.head.digest_size != RS_SHA256_BYTES)
		return -ENOENT;
	memcpy(ret_measured, found.head.digest, RS_SHA256_BYTES);
	return 0;
}

bool rs_verity_lookup(const struct rs_verity *map, int fd, const struct rs_stat *stat,
		      uint8_t *ret_digest32)
{
	uint8_t measured[RS_SHA256_BYTES];
	const struct entry *entry;
	uint64_t slot;

	if (!map || !stat->sealed || measure(fd, measured))
		return false; /* hashed then, as any other file */
	slot = slot_of(map, measured);
	for (entry = &map->entries[slot]; entry->used; entry = &map->entries[slot]) {
		if (!memcmp(entry->measured, measured, RS_SHA256_BYTES)) {
			if (entry->size != stat->size)
				return false;
			memcpy(ret_digest32, entry->digest, RS_SHA256_BYTES);
			return true;
		}
		slot = (slot + 1) & map->mask;
	}
	return false;
}
