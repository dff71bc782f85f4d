/*
 * mem.c: growable bytes, arena, hash index and set of the capture core.
 *
 * Owns: the memory of each container. Must not: make system calls other than getrandom(2) once, or
 * know what is stored. Hands off: pointers that stay valid until the container is freed (arena), or
 * until the next insertion (the others). Privilege: none.
 */
#include "mem.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define ARENA_CHUNK_BYTES (256U * 1024U)

struct rs_arena_chunk {
	struct rs_arena_chunk *next;
	size_t size, whole; /* of data; with this head */
	bool in_file;
	_Alignas(16) uint8_t data[];
};

static uint64_t hash_key[2];

static int buf_reserve(struct rs_buf *buf, size_t more)
{
	size_t capacity = buf->capacity ? buf->capacity : 256;
	uint8_t *data;

	if (buf->error)
		return buf->error;
	if (buf->capacity - buf->length >= more)
		return 0;
	while (capacity - buf->length < more) {
		if (capacity > SIZE_MAX / 2)
			return buf->error = -ENOMEM;
		capacity *= 2;
	}
	data = realloc(buf->data, capacity);
	if (!data)
		return buf->error = -ENOMEM;
	buf->data = data;
	buf->capacity = capacity;
	return 0;
}

int rs_buf_append(struct rs_buf *buf, const void *bytes, size_t length)
{
	if (buf_reserve(buf, length))
		return buf->error;
	if (length)
		memcpy(buf->data + buf->length, bytes, length);
	buf->length += length;
	return 0;
}

int rs_buf_u8(struct rs_buf *buf, uint8_t value)
{
	return rs_buf_append(buf, &value, 1);
}

int rs_buf_u32(struct rs_buf *buf, uint32_t value)
{
	uint8_t b[4] = {value >> 24, value >> 16, value >> 8, value};

	return rs_buf_append(buf, b, sizeof(b));
}

int rs_buf_u64(struct rs_buf *buf, uint64_t value)
{
	rs_buf_u32(buf, value >> 32);
	return rs_buf_u32(buf, (uint32_t)value);
}

int rs_buf_uvarint(struct rs_buf *buf, uint64_t value)
{
	uint8_t b[10];
	size_t n = 0;

	for (; value >= 0x80; value >>= 7)
		b[n++] = (uint8_t)value | 0x80;
	b[n++] = (uint8_t)value;
	return rs_buf_append(buf, b, n);
}

int rs_buf_field(struct rs_buf *buf, const void *bytes, size_t length)
{
	if (length > UINT32_MAX)
		return buf->error = -EOVERFLOW;
	rs_buf_u32(buf, (uint32_t)length);
	return rs_buf_append(buf, bytes, length);
}

void rs_buf_free(struct rs_buf *buf)
{
	free(buf->data);
	*buf = (struct rs_buf){0};
}

static struct rs_arena_chunk *chunk_new(struct rs_arena *arena, size_t data_bytes)
{
	size_t whole = sizeof(struct rs_arena_chunk) + data_bytes;
	struct rs_arena_chunk *chunk;
	bool in_file = false;

	chunk = arena->spill ? rs_spill_take(arena->spill, whole, &whole, &in_file) : malloc(whole);
	if (chunk) {
		chunk->whole = whole;
		chunk->size = whole - sizeof(*chunk);
		chunk->in_file = in_file;
	}
	return chunk;
}

static void chunk_free(struct rs_arena *arena, struct rs_arena_chunk *chunk)
{
	if (arena->spill)
		rs_spill_give(arena->spill, chunk, chunk->whole, chunk->in_file);
	else
		free(chunk);
}

void *rs_arena_alloc(struct rs_arena *arena, size_t size)
{
	struct rs_arena_chunk *chunk = arena->chunks;
	size_t chunk_bytes;

	size = (size + 7) & ~(size_t)7;
	if (arena->limit && arena->total + size > arena->limit)
		return NULL;
	if (!chunk || chunk->size - arena->used < size) {
		chunk_bytes = size > ARENA_CHUNK_BYTES ? size : ARENA_CHUNK_BYTES;
		if (!arena->chunks && size < 4096)
			chunk_bytes = 16 * 1024; /* a small action stays small */
		chunk = chunk_new(arena, chunk_bytes);
		if (!chunk)
			return NULL;
		if (arena->chunks && arena->chunks->in_file)
			rs_spill_rest(arena->chunks, arena->chunks->whole);
		chunk->next = arena->chunks;
		arena->chunks = chunk;
		arena->used = 0;
	}
	arena->used += size;
	arena->total += size;
	return chunk->data + arena->used - size;
}

const uint8_t *rs_arena_copy(struct rs_arena *arena, const void *bytes, size_t length)
{
	uint8_t *copy = rs_arena_alloc(arena, length + 1);

	if (!copy)
		return NULL;
	if (length)
		memcpy(copy, bytes, length);
	copy[length] = 0;
	return copy;
}

void rs_arena_free(struct rs_arena *arena)
{
	struct rs_arena_chunk *chunk, *next;

	for (chunk = arena->chunks; chunk; chunk = next) {
		next = chunk->next;
		chunk_free(arena, chunk);
	}
	arena->chunks = NULL;
	arena->used = arena->total = 0;
}

static void index_place(struct rs_index *index, uint64_t hash, uint32_t value)
{
	uint32_t position = (uint32_t)hash & index->mask;

	while (index->slots[position].value != RS_INDEX_EMPTY)
		position = (position + 1) & index->mask;
	index->slots[position] = (struct rs_index_slot){.hash = hash, .value = value};
}

static int index_grow(struct rs_index *index)
{
	uint32_t capacity = index->slots ? (index->mask + 1) * 2 : 64, i;
	struct rs_index bigger = {.mask = capacity - 1, .count = index->count};

	if (capacity == 0)
		return -ENOMEM;
	bigger.slots = malloc((size_t)capacity * sizeof(*bigger.slots));
	if (!bigger.slots)
		return -ENOMEM;
	for (i = 0; i < capacity; i++)
		bigger.slots[i].value = RS_INDEX_EMPTY;
	for (i = 0; index->slots && i <= index->mask; i++)
		if (index->slots[i].value != RS_INDEX_EMPTY)
			index_place(&bigger, index->slots[i].hash, index->slots[i].value);
	free(index->slots);
	*index = bigger;
	return 0;
}

int rs_index_add(struct rs_index *index, uint64_t hash, uint32_t value)
{
	if (!index->slots || index->count >= (index->mask + 1) / 3 * 2) {
		int error = index_grow(index);

		if (error)
			return error;
	}
	index_place(index, hash, value);
	index->count++;
	return 0;
}

uint32_t rs_index_next(const struct rs_index *index, struct rs_index_cursor *cursor)
{
	if (!index->slots)
		return RS_INDEX_EMPTY;
	if (!cursor->started) {
		cursor->position = (uint32_t)cursor->hash & index->mask;
		cursor->started = true;
	} else {
		cursor->position = (cursor->position + 1) & index->mask;
	}
	for (;; cursor->position = (cursor->position + 1) & index->mask) {
		const struct rs_index_slot *slot = &index->slots[cursor->position];

		if (slot->value == RS_INDEX_EMPTY || slot->hash == cursor->hash)
			return slot->value;
	}
}

void rs_index_replace(struct rs_index *index, const struct rs_index_cursor *cursor, uint32_t value)
{
	index->slots[cursor->position].value = value;
}

void rs_index_free(struct rs_index *index)
{
	free(index->slots);
	*index = (struct rs_index){0};
}

static bool set_place(uint64_t *keys, size_t mask, uint64_t key)
{
	size_t position = rs_hash_u64(key, 0) & mask;

	for (; keys[position] != UINT64_MAX; position = (position + 1) & mask)
		if (keys[position] == key)
			return false;
	keys[position] = key;
	return true;
}

static int set_grow(struct rs_set *set)
{
	size_t capacity = set->keys ? (set->mask + 1) * 2 : 64, i;
	uint64_t *keys = malloc(capacity * sizeof(*keys));

	if (!keys)
		return -ENOMEM;
	memset(keys, 0xff, capacity * sizeof(*keys));
	for (i = 0; set->keys && i <= set->mask; i++)
		if (set->keys[i] != UINT64_MAX)
			set_place(keys, capacity - 1, set->keys[i]);
	free(set->keys);
	set->keys = keys;
	set->mask = capacity - 1;
	return 0;
}

int rs_set_add(struct rs_set *set, uint64_t key)
{
	if (!set->keys || set->count >= (set->mask + 1) / 3 * 2) {
		int error = set_grow(set);

		if (error)
			return error;
	}
	if (!set_place(set->keys, set->mask, key))
		return 0;
	set->count++;
	return 1;
}

bool rs_set_has(const struct rs_set *set, uint64_t key)
{
	size_t position;

	if (!set->keys)
		return false;
	position = rs_hash_u64(key, 0) & set->mask;
	for (; set->keys[position] != UINT64_MAX; position = (position + 1) & set->mask)
		if (set->keys[position] == key)
			return true;
	return false;
}

void rs_set_free(struct rs_set *set)
{
	free(set->keys);
	*set = (struct rs_set){0};
}

int rs_grow(void **array, uint32_t *capacity, uint32_t needed, size_t size)
{
	uint32_t wanted = *capacity ? *capacity : 16;
	void *bigger;

	if (needed <= *capacity)
		return 0;
	while (wanted < needed) {
		if (wanted > UINT32_MAX / 2)
			return -ENOMEM;
		wanted *= 2;
	}
	bigger = realloc(*array, (size_t)wanted * size);
	if (!bigger)
		return -ENOMEM;
	*array = bigger;
	*capacity = wanted;
	return 0;
}

static void hash_key_draw(void)
{
	/* Without entropy the hash is still right, only guessable: never a reason to fail. */
	if (getrandom(hash_key, sizeof(hash_key), GRND_NONBLOCK) != (ssize_t)sizeof(hash_key))
		hash_key[0] ^= (uint64_t)(uintptr_t)&hash_key;
}

int rs_hash_setup(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	return -pthread_once(&once, hash_key_draw);
}

static uint64_t mix(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

uint64_t rs_hash_u64(uint64_t value, uint64_t seed)
{
	return mix(value ^ hash_key[0] ^ 0x9e3779b97f4a7c15ULL,
		   seed ^ hash_key[1] ^ 0xd6e8feb86659fd93ULL);
}

uint64_t rs_hash_bytes(const void *bytes, size_t length, uint64_t seed)
{
	const uint8_t *p = bytes;
	uint64_t state = seed ^ hash_key[0], word;
	size_t left = length;

	for (; left >= 8; left -= 8, p += 8) {
		memcpy(&word, p, 8);
		state =
		    mix(state ^ word ^ 0x9e3779b97f4a7c15ULL, hash_key[1] ^ 0xd6e8feb86659fd93ULL);
	}
	word = 0;
	if (left)
		memcpy(&word, p, left);
	state = mix(state ^ word ^ 0xa0761d6478bd642fULL, hash_key[1] ^ 0xe7037ed1a0b428dbULL);
	return mix(state ^ length, 0x8ebc6af09c88c6e3ULL ^ hash_key[0]);
}
