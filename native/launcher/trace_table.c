// SPDX-License-Identifier: Apache-2.0
/*
 * Hash indexes over arrays that others own: open addressing, linear probing, at most 3/4 full.
 *
 * Owns: the slots. Must not: know what an entry is. Privilege: none.
 */
#include "trace_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define INDEX_SIZE_FIRST 256u
#define INDEX_SIZE_MAX	 (1u << 26)

/* 64-bit FNV-1a over words with a final mix; every find compares the whole key. */
uint64_t rs_hash_bytes(const void *data, size_t size, uint64_t seed)
{
	const uint8_t *bytes = data;
	uint64_t hash = seed ^ 0xcbf29ce484222325u, word;

	for (; size >= sizeof(word); size -= sizeof(word), bytes += sizeof(word)) {
		memcpy(&word, bytes, sizeof(word));
		hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
		hash ^= hash >> 32;
	}
	for (; size > 0; size--, bytes++)
		hash = (hash ^ *bytes) * 0x100000001b3u;
	hash ^= hash >> 29;
	hash *= 0xbf58476d1ce4e5b9u;
	return hash ^ hash >> 32;
}

uint32_t rs_index_find(const struct rs_index *index, uint64_t hash, rs_index_equal *equal,
		       const void *context, const void *key)
{
	if (index->size == 0)
		return UINT32_MAX;
	for (uint32_t i = (uint32_t)hash & (index->size - 1);; i = (i + 1) & (index->size - 1)) {
		if (index->slots[i] == 0)
			return UINT32_MAX;
		if (equal(context, index->slots[i] - 1, key))
			return index->slots[i] - 1;
	}
}

static void place(struct rs_index *index, uint64_t hash, uint32_t slot)
{
	uint32_t i = (uint32_t)hash & (index->size - 1);

	while (index->slots[i] != 0)
		i = (i + 1) & (index->size - 1);
	index->slots[i] = slot;
}

static int enlarge(struct rs_index *index, rs_index_hash *rehash, const void *context)
{
	struct rs_index larger = {.size = index->size ? index->size * 2 : INDEX_SIZE_FIRST,
				  .count = index->count};

	if (larger.size > INDEX_SIZE_MAX)
		return -ENOSPC;
	larger.slots = calloc(larger.size, sizeof(*larger.slots));
	if (!larger.slots)
		return -ENOMEM;
	for (uint32_t i = 0; i < index->size; i++)
		if (index->slots[i] != 0)
			place(&larger, rehash(context, index->slots[i] - 1), index->slots[i]);
	free(index->slots);
	*index = larger;
	return 0;
}

int rs_index_add(struct rs_index *index, uint64_t hash, uint32_t entry, rs_index_hash *rehash,
		 const void *context)
{
	if ((uint64_t)index->count * 4 >= (uint64_t)index->size * 3) {
		int result = enlarge(index, rehash, context);

		if (result < 0)
			return result;
	}
	place(index, hash, entry + 1);
	index->count++;
	return 0;
}

static uint32_t slot_of(const struct rs_index *index, uint64_t hash, uint32_t entry)
{
	uint32_t i = (uint32_t)hash & (index->size - 1);

	while (index->slots[i] != entry + 1)
		i = (i + 1) & (index->size - 1);
	return i;
}

/* Entries behind the hole that would no longer be found move into it. */
void rs_index_remove(struct rs_index *index, uint64_t hash, uint32_t entry, rs_index_hash *rehash,
		     const void *context)
{
	uint32_t mask = index->size - 1, hole = slot_of(index, hash, entry);

	for (uint32_t i = (hole + 1) & mask; index->slots[i] != 0; i = (i + 1) & mask) {
		uint32_t home = (uint32_t)rehash(context, index->slots[i] - 1) & mask;

		if (((i - home) & mask) >= ((i - hole) & mask)) {
			index->slots[hole] = index->slots[i];
			hole = i;
		}
	}
	index->slots[hole] = 0;
	index->count--;
}

void rs_index_renumber(struct rs_index *index, uint64_t hash, uint32_t from, uint32_t to)
{
	index->slots[slot_of(index, hash, from)] = to + 1;
}

void rs_index_free(struct rs_index *index)
{
	free(index->slots);
	*index = (struct rs_index){0};
}

int rs_grow(void **entries, uint32_t count, uint32_t *capacity, size_t entry_size, uint32_t max)
{
	uint32_t larger = *capacity ? *capacity * 2 : 64;
	void *moved;

	if (count < *capacity)
		return 0;
	if (count >= max)
		return -ENOSPC;
	if (larger > max)
		larger = max;
	moved = reallocarray(*entries, larger, entry_size);
	if (!moved)
		return -ENOMEM;
	*entries = moved;
	*capacity = larger;
	return 0;
}
