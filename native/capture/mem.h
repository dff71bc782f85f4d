/*
 * mem.h: the containers of the capture core. None is safe for several threads by itself; the
 * scope's mutex guards them. Nothing here makes system calls except through malloc.
 */
#ifndef ROOTSEAL_CAPTURE_MEM_H
#define ROOTSEAL_CAPTURE_MEM_H
#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>
#include "spill.h"

/* Bytes that grow. After the first failed allocation every append fails, so one check at the end
 * does. */
struct rs_buf {
	uint8_t *data;
	size_t length;
	size_t capacity;
	int error;
};

int rs_buf_append(struct rs_buf *buf, const void *bytes, size_t length);
int rs_buf_u8(struct rs_buf *buf, uint8_t value);
int rs_buf_u32(struct rs_buf *buf, uint32_t value); /* big-endian */
int rs_buf_u64(struct rs_buf *buf, uint64_t value); /* big-endian */
int rs_buf_uvarint(struct rs_buf *buf, uint64_t value);
int rs_buf_field(struct rs_buf *buf, const void *bytes, size_t length); /* u32 length, bytes */
void rs_buf_free(struct rs_buf *buf);

/* Memory that is only freed all at once; what it returns never moves. */
struct rs_arena {
	struct rs_arena_chunk *chunks;
	size_t used;
	size_t total;		/* bytes handed out */
	size_t limit;		/* 0: none */
	struct rs_spill *spill; /* borrowed; NULL: plain memory */
};

void *rs_arena_alloc(struct rs_arena *arena, size_t size);
const uint8_t *rs_arena_copy(struct rs_arena *arena, const void *bytes, size_t length);
void rs_arena_free(struct rs_arena *arena);

/* Hash index: 64-bit hash -> one or more uint32 values; the owner compares the real keys. */
struct rs_index_slot {
	uint64_t hash;
	uint32_t value; /* RS_INDEX_EMPTY: free */
};

#define RS_INDEX_EMPTY UINT32_MAX

struct rs_index {
	struct rs_index_slot *slots;
	uint32_t mask; /* capacity - 1 */
	uint32_t count;
};

struct rs_index_cursor {
	uint64_t hash;
	uint32_t position;
	bool started;
};

int rs_index_add(struct rs_index *index, uint64_t hash, uint32_t value);
/* Next value stored under the hash, or RS_INDEX_EMPTY. */
uint32_t rs_index_next(const struct rs_index *index, struct rs_index_cursor *cursor);
/* Put another value in the place of the one that rs_index_next returned last. */
void rs_index_replace(struct rs_index *index, const struct rs_index_cursor *cursor, uint32_t value);
void rs_index_free(struct rs_index *index);

static inline struct rs_index_cursor rs_index_find(uint64_t hash)
{
	return (struct rs_index_cursor){.hash = hash};
}

/* Set of 64-bit keys (any value but UINT64_MAX). */
struct rs_set {
	uint64_t *keys;
	size_t mask;
	size_t count;
};

/* 1 if added, 0 if it was there, -ENOMEM. */
int rs_set_add(struct rs_set *set, uint64_t key);
bool rs_set_has(const struct rs_set *set, uint64_t key);
void rs_set_free(struct rs_set *set);

/* Grow `array` (of `size`-byte items) so that it holds `needed`; -ENOMEM leaves it as it was. */
int rs_grow(void **array, uint32_t *capacity, uint32_t needed, size_t size);

/* Keyed hash: the key is drawn once per process, so that nobody can aim for collisions. */
uint64_t rs_hash_bytes(const void *bytes, size_t length, uint64_t seed);
uint64_t rs_hash_u64(uint64_t value, uint64_t seed);
int rs_hash_setup(void);

#endif
