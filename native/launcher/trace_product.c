// SPDX-License-Identifier: Apache-2.0
/*
 * What the action leaves behind. While it runs only names are collected: files opened for
 * writing, targets of rename, link and symlink, truncated and re-moded files. When every process
 * is gone, what stands under each name is hashed: so a file closed at exit, written through a
 * mapping or renamed afterwards is told as it was left.
 *
 * Owns: tracer.candidates, tracer.written. Must not: follow a symlink at the end; drop a file
 * that still exists without counting it.
 *
 *   trace_open.c, trace_name.c ──candidate──► here ──PRODUCTS──► sink
 *
 * Privilege: none.
 */
#include "trace_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CANDIDATES_MAX (1u << 23)
#define WRITTEN_MAX    (1u << 23)
#define DEPTH_MAX      128
#define BATCH_MAX      1024u
#define KIND_SYMLINK   2

#define INODE_KEY_BYTES offsetof(struct rs_inode, born_ns)

static int inode_equal(const void *context, uint32_t entry, const void *key)
{
	const struct rs_tracer *t = context;

	return memcmp(&t->written[entry], key, INODE_KEY_BYTES) == 0;
}

static uint64_t inode_rehash(const void *context, uint32_t entry)
{
	const struct rs_tracer *t = context;

	return rs_hash_bytes(&t->written[entry], INODE_KEY_BYTES, 0);
}

static struct rs_inode *inode_find(const struct rs_tracer *t, const struct rs_inode *key)
{
	uint32_t found = rs_index_find(&t->written_index, rs_hash_bytes(key, INODE_KEY_BYTES, 0),
				       inode_equal, t, key);

	return found == UINT32_MAX ? NULL : &t->written[found];
}

int rs_inode_written(const struct rs_tracer *t, uint64_t device, uint64_t inode)
{
	return inode_find(t, &(struct rs_inode){device, inode, 0, 0}) != NULL;
}

static int64_t born_ns(const struct statx *st)
{
	if (!(st->stx_mask & STATX_BTIME))
		return 0;
	return st->stx_btime.tv_sec * INT64_C(1000000000) + st->stx_btime.tv_nsec;
}

uint8_t rs_born_flag(const struct rs_tracer *t, const struct statx *st)
{
	const struct rs_inode *have =
	    inode_find(t, &(struct rs_inode){rs_device(st), st->stx_ino, 0, 0});

	return have && have->made && have->born_ns == born_ns(st) ? RS_TRACE_FILE_BORN : 0;
}

static void inode_add(struct rs_tracer *t, const struct statx *st)
{
	struct rs_inode key = {rs_device(st), st->stx_ino, born_ns(st), st->stx_size == 0};
	struct rs_inode *have = inode_find(t, &key);

	if (have) {
		key.made |= have->made && have->born_ns == key.born_ns;
		*have = key;
		return;
	}
	/* Without this set the digest cache would be unsafe: an error, not a counter. */
	if (rs_grow((void **)&t->written, t->written_count, &t->written_capacity, sizeof(key),
		    WRITTEN_MAX) < 0 ||
	    (t->written[t->written_count] = key,
	     rs_index_add(&t->written_index, rs_hash_bytes(&key, INODE_KEY_BYTES, 0),
			  t->written_count, inode_rehash, t) < 0)) {
		t->error = -ENOMEM;
		return;
	}
	t->written_count++;
}

struct path_key {
	const char *path;
	size_t length;
};

static int candidate_equal(const void *context, uint32_t entry, const void *key)
{
	const struct rs_tracer *t = context;
	const struct rs_candidate *have = &t->candidates[entry];
	const struct path_key *want = key;

	return have->path_length == want->length &&
	       memcmp(t->arena + have->path, want->path, want->length) == 0;
}

static uint64_t candidate_rehash(const void *context, uint32_t entry)
{
	const struct rs_tracer *t = context;
	const struct rs_candidate *have = &t->candidates[entry];

	return rs_hash_bytes(t->arena + have->path, have->path_length, 0);
}

static struct rs_candidate *candidate_find(struct rs_tracer *t, const char *path)
{
	struct path_key key = {path, strlen(path)};
	uint32_t found = rs_index_find(&t->candidate_index, rs_hash_bytes(path, key.length, 0),
				       candidate_equal, t, &key);

	return found == UINT32_MAX ? NULL : &t->candidates[found];
}

/* The candidate with this path, made if there is none; NULL (counted) at the cap. */
static struct rs_candidate *candidate_take(struct rs_tracer *t, const char *path)
{
	struct rs_candidate *have = candidate_find(t, path), fresh = {.process = RS_TRACE_NONE};

	if (have) {
		have->deleted = 0;
		return have;
	}
	fresh.path_length = (uint16_t)strlen(path);
	if (t->candidate_count >= t->config->limits.files_max ||
	    rs_grow((void **)&t->candidates, t->candidate_count, &t->candidate_capacity,
		    sizeof(fresh), CANDIDATES_MAX) < 0) {
		rs_lost(t, RS_TRACE_LOSS_FILES_CAP, RS_TRACE_NONE, path);
		return NULL;
	}
	fresh.path = rs_path_intern(t, path, fresh.path_length);
	t->candidates[t->candidate_count] = fresh;
	if (t->error || rs_index_add(&t->candidate_index, rs_hash_bytes(path, fresh.path_length, 0),
				     t->candidate_count, candidate_rehash, t) < 0) {
		t->error = -ENOMEM;
		return NULL;
	}
	return &t->candidates[t->candidate_count++];
}

void rs_product_written(struct rs_tracer *t, const struct rs_task *task, const char *path,
			const struct statx *st)
{
	const struct rs_process *process = rs_process_of(t, task);
	struct rs_candidate *candidate;

	inode_add(t, st);
	candidate = candidate_take(t, path);
	if (!candidate)
		return;
	/* Without a name it has been replaced already, by whatever the next call tells. */
	candidate->device = rs_device(st);
	candidate->inode = st->stx_nlink ? st->stx_ino : 0;
	candidate->foreign_namespace = process->foreign_namespace;
	if (candidate->process == process->number)
		return;
	candidate->process = process->number;
	rs_file_op(t, process->number, RS_TRACE_OP_WRITE, path, "", 0, 0);
}

void rs_product_named(struct rs_tracer *t, const struct rs_task *task, const char *path)
{
	struct rs_candidate *candidate = candidate_take(t, path);
	struct statx st;

	if (!candidate)
		return;
	candidate->device = candidate->inode = 0;
	if (rs_statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &st) == 0) {
		candidate->device = rs_device(&st);
		candidate->inode = st.stx_ino;
	}
	candidate->foreign_namespace = rs_process_of(t, task)->foreign_namespace;
}

void rs_product_deleted(struct rs_tracer *t, const char *path)
{
	struct rs_candidate *candidate = candidate_find(t, path);

	if (candidate)
		candidate->deleted = 1;
}

/* Every file under a directory that was renamed has a new name. */
static void name_tree(struct rs_tracer *t, const struct rs_task *task, const char *path, int depth)
{
	char below[RS_PATH_BYTES];
	struct dirent *entry;
	DIR *dir = depth < DEPTH_MAX ? opendir(path) : NULL;

	if (!dir) {
		rs_lost(t, RS_TRACE_LOSS_READ, rs_process_of(t, task)->number, path);
		return;
	}
	while ((entry = readdir(dir))) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if (snprintf(below, sizeof(below), "%s/%s", path, entry->d_name) >=
		    (int)sizeof(below)) {
			rs_lost(t, RS_TRACE_LOSS_PATH, rs_process_of(t, task)->number, path);
			continue;
		}
		if (entry->d_type == DT_DIR)
			name_tree(t, task, below, depth + 1);
		else
			rs_product_named(t, task, below);
	}
	closedir(dir);
}

void rs_product_renamed(struct rs_tracer *t, const struct rs_task *task, const char *from,
			const char *to)
{
	struct statx st;

	rs_product_deleted(t, from);
	if (rs_statx(AT_FDCWD, to, AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st) == 0 &&
	    S_ISDIR(st.stx_mode))
		name_tree(t, task, to, 0);
	else
		rs_product_named(t, task, to);
}

/* A symlink's digest and size are those of its target text. */
static int take_symlink(const char *path, struct rs_file *file)
{
	char text[RS_PATH_BYTES];
	ssize_t length = readlink(path, text, sizeof(text));

	if (length < 0 || length >= (ssize_t)sizeof(text))
		return -RS_TRACE_LOSS_READ;
	rs_sha256(text, (size_t)length, file->digest.bytes);
	file->kind = KIND_SYMLINK;
	file->size = (uint64_t)length;
	return 1;
}

/* Nobody of the action gave the name to what has it now. */
static int is_replaced(const struct rs_candidate *c, const struct rs_file *file)
{
	return c->deleted || (c->inode && (c->inode != file->inode || c->device != file->device));
}

static int take_regular(struct rs_tracer *t, const struct rs_candidate *c, const char *path,
			struct rs_file *file)
{
	struct statx st;
	int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC), result;

	if (fd < 0)
		return errno == ENOENT ? 0 : -RS_TRACE_LOSS_DENIED;
	result = rs_hash_file(t, fd, &st, &file->digest);
	if (rs_foreign_written(t, fd) || (is_replaced(c, file) && rs_foreign_keeps_inodes(fd)))
		file->flags |= RS_TRACE_FILE_FOREIGN;
	close(fd);
	if (result < 0)
		return result;
	file->size = st.stx_size;
	file->mode = st.stx_mode & 07777;
	file->inode = st.stx_ino;
	file->device = rs_device(&st);
	return 1;
}

/* 1: *ret_file is a product; 0: nothing (left) there; negative enum rs_trace_loss. */
static int take_candidate(struct rs_tracer *t, const struct rs_candidate *c, const char *path,
			  struct rs_file *ret_file)
{
	struct statx st;
	int gone = rs_statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, RS_STATX_MASK, &st) < 0;

	if (c->foreign_namespace && !c->deleted &&
	    (gone || (c->inode && (c->inode != st.stx_ino || c->device != rs_device(&st)))))
		return -RS_TRACE_LOSS_NAMESPACE;
	if (gone)
		return errno == ENOENT || errno == ENOTDIR ? 0 : -RS_TRACE_LOSS_DENIED;
	*ret_file = (struct rs_file){.path = c->path,
				     .path_length = c->path_length,
				     .mode = st.stx_mode & 07777,
				     .inode = st.stx_ino,
				     .device = rs_device(&st)};
	if (S_ISLNK(st.stx_mode)) {
		if (is_replaced(c, ret_file))
			ret_file->flags |= RS_TRACE_FILE_FOREIGN;
		return take_symlink(path, ret_file);
	}
	return S_ISREG(st.stx_mode) ? take_regular(t, c, path, ret_file) : 0;
}

void rs_products_finish(struct rs_tracer *t)
{
	struct rs_file *batch = calloc(BATCH_MAX, sizeof(*batch));
	char path[RS_PATH_BYTES];
	uint32_t count = 0;

	if (!batch) {
		t->error = -ENOMEM;
		return;
	}
	for (uint32_t i = 0; i < t->candidate_count; i++) {
		const struct rs_candidate *c = &t->candidates[i];
		int result;

		memcpy(path, t->arena + c->path, c->path_length);
		path[c->path_length] = '\0';
		if (t->config->exclude && strcmp(path, t->config->exclude) == 0)
			continue;
		result = take_candidate(t, c, path, &batch[count]);
		if (result < 0)
			rs_lost(t, (enum rs_trace_loss) - result, c->process, path);
		else if (result > 0 && ++count == BATCH_MAX) {
			rs_files_put(t, batch, count, RS_TRACE_PRODUCTS);
			count = 0;
		}
	}
	if (count > 0)
		rs_files_put(t, batch, count, RS_TRACE_PRODUCTS);
	free(batch);
}
