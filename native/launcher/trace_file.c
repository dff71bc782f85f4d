// SPDX-License-Identifier: Apache-2.0
/*
 * The files that were seen, each (path, digest) once, and which process opened which, each once.
 *
 * Owns: the path arena, tracer.files, tracer.opens. Must not: send a file twice; drop one without
 * counting it.
 *
 *   trace_open.c, trace_exec.c ──file──► here ──FILES, OPENS──► sink
 *
 * Privilege: none.
 */
#include "trace_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ARENA_BYTES_MAX ((size_t)1 << 31)
#define OPENS_MAX	(1u << 23)
#define BATCH_MAX	1024u
#define OPENS_BATCH	8192u

uint32_t rs_path_intern(struct rs_tracer *t, const char *path, size_t length)
{
	if (t->arena_size + length > t->arena_capacity) {
		size_t capacity = (t->arena_size + length) * 2;
		char *moved = capacity <= ARENA_BYTES_MAX ? realloc(t->arena, capacity) : NULL;

		if (!moved) {
			t->error = -ENOMEM;
			return 0;
		}
		t->arena = moved;
		t->arena_capacity = capacity;
	}
	memcpy(t->arena + t->arena_size, path, length);
	t->arena_size += length;
	return (uint32_t)(t->arena_size - length);
}

struct file_key {
	const char *path;
	const struct rs_file *file; /* path offset not used */
};

static int file_equal(const void *context, uint32_t entry, const void *key)
{
	const struct rs_tracer *t = context;
	const struct rs_file *have = &t->files[entry];
	const struct file_key *want = key;

	return have->path_length == want->file->path_length && have->kind == want->file->kind &&
	       have->flags == want->file->flags && have->mode == want->file->mode &&
	       have->inode == want->file->inode && have->device == want->file->device &&
	       memcmp(&have->digest, &want->file->digest, sizeof(have->digest)) == 0 &&
	       memcmp(t->arena + have->path, want->path, have->path_length) == 0;
}

static uint64_t file_hash(const char *path, size_t length, const struct rs_digest *digest)
{
	uint64_t seed;

	memcpy(&seed, digest->bytes, sizeof(seed));
	return rs_hash_bytes(path, length, seed);
}

static uint64_t file_rehash(const void *context, uint32_t entry)
{
	const struct rs_tracer *t = context;
	const struct rs_file *file = &t->files[entry];

	return file_hash(t->arena + file->path, file->path_length, &file->digest);
}

/* Returns the number of the file, RS_TRACE_NONE if the cap is reached (counted). */
uint32_t rs_file_seen(struct rs_tracer *t, const char *path, const struct statx *st,
		      const struct rs_digest *digest, uint8_t kind, uint8_t flags)
{
	struct rs_file_id id;
	struct rs_file file = {.path_length = (uint16_t)strlen(path),
			       .kind = kind,
			       .flags = flags,
			       .mode = st->stx_mode & 07777,
			       .size = st->stx_size,
			       .device = rs_device(st),
			       .inode = st->stx_ino,
			       .digest = *digest};
	struct file_key key = {path, &file};
	uint64_t hash = file_hash(path, file.path_length, digest);
	uint32_t found = rs_index_find(&t->file_index, hash, file_equal, t, &key);

	if (found != UINT32_MAX)
		return found;
	if (t->file_count >= t->config->limits.files_max ||
	    rs_grow((void **)&t->files, t->file_count, &t->file_capacity, sizeof(file),
		    UINT32_MAX / 2) < 0) {
		rs_lost(t, RS_TRACE_LOSS_FILES_CAP, RS_TRACE_NONE, path);
		return RS_TRACE_NONE;
	}
	rs_file_id_from(st, &id);
	file.ctime_ns = id.ctime_ns;
	file.path = rs_path_intern(t, path, file.path_length);
	t->files[t->file_count] = file;
	if (t->error || rs_index_add(&t->file_index, hash, t->file_count, file_rehash, t) < 0) {
		rs_lost(t, RS_TRACE_LOSS_MEMORY, RS_TRACE_NONE, path);
		return RS_TRACE_NONE;
	}
	t->file_count++;
	if (t->file_count - t->file_sent >= BATCH_MAX)
		rs_files_flush(t);
	return t->file_count - 1;
}

static int open_equal(const void *context, uint32_t entry, const void *key)
{
	return ((const struct rs_tracer *)context)->opens[entry] == *(const uint64_t *)key;
}

static uint64_t open_rehash(const void *context, uint32_t entry)
{
	const struct rs_tracer *t = context;

	return rs_hash_bytes(&t->opens[entry], sizeof(t->opens[entry]), 0);
}

void rs_file_opened(struct rs_tracer *t, uint32_t process, uint32_t file)
{
	uint64_t pair = (uint64_t)process << 32 | file;
	uint64_t hash = rs_hash_bytes(&pair, sizeof(pair), 0);

	if (process == RS_TRACE_NONE || file == RS_TRACE_NONE)
		return; /* counted where it was lost */
	if (rs_index_find(&t->open_index, hash, open_equal, t, &pair) != UINT32_MAX)
		return;
	if (rs_grow((void **)&t->opens, t->open_count, &t->open_capacity, sizeof(pair), OPENS_MAX) <
	    0) {
		rs_lost(t, RS_TRACE_LOSS_MEMORY, process, "");
		return;
	}
	t->opens[t->open_count] = pair;
	if (rs_index_add(&t->open_index, hash, t->open_count, open_rehash, t) < 0) {
		rs_lost(t, RS_TRACE_LOSS_MEMORY, process, "");
		return;
	}
	t->open_count++;
	if (t->open_count - t->open_sent >= OPENS_BATCH)
		rs_files_flush(t);
}

void rs_files_put(struct rs_tracer *t, const struct rs_file *files, uint32_t count,
		  enum rs_trace_record type)
{
	rs_begin(t);
	rs_put32(t, count);
	for (uint32_t i = 0; i < count; i++) {
		uint8_t kind_flags[2] = {files[i].kind, files[i].flags};

		rs_put_bytes(t, files[i].digest.bytes, RS_SHA256_BYTES);
		rs_put64(t, files[i].size);
		rs_put32(t, files[i].mode);
		rs_put16(t, files[i].path_length);
		rs_put_bytes(t, kind_flags, sizeof(kind_flags));
		rs_put64(t, files[i].device);
		rs_put64(t, files[i].inode);
	}
	for (uint32_t i = 0; i < count; i++)
		rs_put_bytes(t, t->arena + files[i].path, files[i].path_length);
	rs_end(t, type);
}

/* Sends what was not sent yet: files first, because opens refer to them. */
void rs_files_flush(struct rs_tracer *t)
{
	if (t->file_sent < t->file_count)
		rs_files_put(t, t->files + t->file_sent, t->file_count - t->file_sent,
			     RS_TRACE_FILES);
	t->file_sent = t->file_count;
	if (t->open_sent == t->open_count)
		return;
	rs_begin(t);
	for (; t->open_sent < t->open_count; t->open_sent++)
		rs_put64(t, t->opens[t->open_sent]);
	rs_end(t, RS_TRACE_OPENS);
}
