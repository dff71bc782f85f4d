/*
 * products.c: files that the action closed after writing -> what is left of them at its end.
 *
 * Owns: struct rs_out. Must not: call something a product whose present content was not hashed.
 * Hands off: product leaves -> walk.c (which adds what no event told) -> finish.c. Privilege:
 * CAP_DAC_READ_SEARCH (open_by_handle_at), reading the action's files.
 */
#include "core.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static uint64_t path_key(const uint8_t *path, uint32_t length)
{
	return rs_hash_bytes(path, length, 7);
}

static uint64_t inode_key(const struct rs_stat *stat)
{
	return rs_hash_u64(stat->ino, stat->dev);
}

bool rs_out_has(const struct rs_out *out, const uint8_t *path, uint32_t length)
{
	struct rs_index_cursor cursor = rs_index_find(path_key(path, length));
	uint32_t value;

	while ((value = rs_index_next(&out->by_path, &cursor)) != RS_INDEX_EMPTY)
		if (out->leaves[value].path_length == length &&
		    !memcmp(out->leaves[value].path, path, length))
			return true;
	return false;
}

const struct rs_leaf *rs_out_alias(const struct rs_out *out, const struct rs_stat *stat)
{
	struct rs_index_cursor cursor = rs_index_find(inode_key(stat));
	uint32_t value;

	while ((value = rs_index_next(&out->by_inode, &cursor)) != RS_INDEX_EMPTY)
		if (rs_same_state(&out->stats[value], stat))
			return &out->leaves[value];
	return NULL;
}

int rs_out_add(struct rs_out *out, const struct rs_leaf *leaf, const struct rs_stat *stat)
{
	const uint8_t *path = rs_arena_copy(&out->arena, leaf->path, leaf->path_length);

	if (!path ||
	    rs_grow((void **)&out->leaves, &out->leaves_capacity, out->count + 1, sizeof(*leaf)) ||
	    rs_grow((void **)&out->stats, &out->stats_capacity, out->count + 1, sizeof(*stat)) ||
	    rs_index_add(&out->by_path, path_key(path, leaf->path_length), out->count) ||
	    rs_index_add(&out->by_inode, inode_key(stat), out->count))
		return -ENOMEM;
	out->leaves[out->count] = *leaf;
	out->leaves[out->count].path = path;
	out->stats[out->count++] = *stat;
	return 0;
}

void rs_out_free(struct rs_out *out)
{
	free(out->leaves);
	free(out->stats);
	rs_index_free(&out->by_path);
	rs_index_free(&out->by_inode);
	rs_arena_free(&out->arena);
	*out = (struct rs_out){0};
}

static int open_to_hash(int dir_fd, const char *name)
{
	const int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY;
	int fd = openat(dir_fd, name, flags | O_NOATIME);

	if (fd < 0 && errno == EPERM) /* not the owner's: only then may the access time change */
		fd = openat(dir_fd, name, flags);
	return fd;
}

static int hash_named(struct rs_worker *worker, struct rs_scope *scope, int dir_fd,
		      const char *name, struct rs_stat *stat, uint8_t *ret_digest32,
		      uint64_t *ret_identity)
{
	enum rs_digest_outcome outcome;
	struct rs_content content;
	struct rs_stat opened;
	bool trusted;
	int fd;

	fd = open_to_hash(dir_fd, name);
	if (fd < 0 || rs_stat_fd(fd, &opened) || !rs_same_inode(&opened, stat)) {
		/* Its processes are gone, so nobody of the action can have swapped it. */
		RS_COUNT(scope, fallback_hash_failures);
		if (fd >= 0)
			close(fd);
		return -ESTALE;
	}
	outcome = rs_digest_of_fd(worker, scope, fd, &opened, true, &content, &trusted);
	if (outcome != RS_DIGEST_LEFT_OUT)
		memcpy(ret_digest32, content.digest, RS_SHA256_BYTES);
	*ret_identity = rs_identity_of_fd(worker, fd, &opened);
	close(fd);
	*stat = opened;
	if (outcome == RS_DIGEST_UNSTABLE)
		RS_COUNT(scope, unstable_files);
	return outcome == RS_DIGEST_LEFT_OUT ? -EFBIG : 0;
}

/* The event's digest, if it is of the present content for certain. */
static const struct rs_product *event_digest(struct rs_scope *scope, const struct rs_stat *stat)
{
	const struct rs_product *product = rs_product_find(scope, stat);

	if (product && product->hashed && product->trusted && rs_same_state(&product->stat, stat))
		return product;
	return NULL;
}

int rs_out_file(struct rs_worker *worker, struct rs_scope *scope, struct rs_out *out, int dir_fd,
		const char *name, const uint8_t *leaf_path, uint32_t leaf_length,
		struct rs_stat *stat)
{
	const struct rs_product *product = event_digest(scope, stat);
	const struct rs_leaf *alias = product ? NULL : rs_out_alias(out, stat);
	struct rs_leaf leaf = {
	    .path = leaf_path,
	    .path_length = leaf_length,
	    .kind = RS_KIND_FILE,
	    .source = RS_SOURCE_CLOSE_WRITE,
	};
	struct rs_left left = {
	    .stat = stat,
	    .path = leaf_path,
	    .path_length = leaf_length,
	};
	struct rs_stat state;
	uint64_t identity;

	if (leaf_length == 0 || leaf_length > RS_LEAF_PATH_MAX) {
		RS_COUNT(scope, handler_errors);
		return 0;
	}
	if (!product && !alias &&
	    hash_named(worker, scope, dir_fd, name, stat, leaf.digest, &identity))
		return 0; /* counted */
	state = *stat;
	leaf.size = stat->size;
	leaf.mode = stat->mode & 07777;
	if (product) {
		memcpy(leaf.digest, product->digest, RS_SHA256_BYTES);
	} else if (alias) {
		memcpy(leaf.digest, alias->digest, RS_SHA256_BYTES);
		leaf.source = alias->source;
	} else {
		left.fresh = !out->aside && rs_is_fresh(scope, leaf_path, leaf_length, stat->ino);
		rs_judge_product(scope, &left, identity, &leaf, &state);
	}
	return rs_out_add(out, &leaf, &state);
}

/* Does the path lead to the inode of the product now? */
static bool path_is(struct rs_scope *scope, const char *path, const struct rs_product *product,
		    struct rs_stat *ret_stat)
{
	return path[0] == '/' && path[1] && !rs_stat_at(scope->ns_root_fd, path + 1, ret_stat) &&
	       rs_same_inode(ret_stat, &product->stat) && S_ISREG(ret_stat->mode);
}

enum found { FOUND_GONE, FOUND_PATH, FOUND_NOWHERE, FOUND_NAMELESS };

/* Renamed by itself: the handle leads to the inode, and the kernel knows its name. */
static enum found find_by_handle(struct rs_worker *worker, struct rs_scope *scope,
				 const struct rs_product *product, struct rs_stat *ret_stat)
{
	const struct rs_mount *mount = rs_mounts_by_id(&scope->mounts, product->handle_mount);
	struct file_handle *handle = (struct file_handle *)worker->handle;
	enum found found = FOUND_NOWHERE;
	int mount_fd, fd, error;

	if (!mount || !product->handle_length)
		return FOUND_NOWHERE;
	mount_fd = openat(scope->ns_root_fd, mount->point[1] ? mount->point + 1 : ".",
			  O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (mount_fd < 0)
		return errno == ENOENT || errno == ENOTDIR ? FOUND_NOWHERE : FOUND_NAMELESS;
	handle->handle_bytes = product->handle_length;
	handle->handle_type = product->handle_type;
	memcpy(handle->f_handle, product->handle, product->handle_length);
	fd = open_by_handle_at(mount_fd, handle, O_PATH | O_CLOEXEC);
	if (fd < 0)
		found = errno == ESTALE ? FOUND_GONE : FOUND_NAMELESS; /* it may well exist */
	close(mount_fd);
	if (fd < 0)
		return found;
	error = rs_stat_synced_fd(fd, ret_stat);
	if (error == -ESTALE || (!error && ret_stat->nlink == 0))
		found = FOUND_GONE; /* NFS keeps the inode of a removed file for a while */
	else if (rs_path_of_fd(worker, scope, fd) > 0 &&
		 path_is(scope, worker->path, product, ret_stat))
		found = FOUND_PATH;
	else
		found = FOUND_NAMELESS; /* it exists: somebody must know where */
	close(fd);
	return found;
}

/* The kernel has forgotten the name: most renames stay in one directory, so look there. */
static enum found find_in_directory(struct rs_worker *worker, struct rs_scope *scope,
				    const struct rs_product *product, struct rs_stat *ret_stat)
{
	const char *path = (const char *)product->path, *slash = strrchr(path, '/');
	size_t stem = (size_t)(slash - path) + 1;
	enum found found = FOUND_NOWHERE;
	struct dirent *entry;
	DIR *stream;
	int fd;

	memcpy(worker->path, path, stem);
	worker->path[stem] = 0;
	fd = openat(scope->ns_root_fd, stem > 1 ? worker->path + 1 : ".",
		    O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return FOUND_NOWHERE;
	stream = fdopendir(fd);
	if (!stream) {
		close(fd);
		return FOUND_NOWHERE;
	}
	while (found == FOUND_NOWHERE && (entry = readdir(stream))) {
		if (entry->d_ino != product->stat.ino || stem + strlen(entry->d_name) >= PATH_MAX)
			continue;
		strcpy(worker->path + stem, entry->d_name);
		if (path_is(scope, worker->path, product, ret_stat))
			found = FOUND_PATH;
	}
	closedir(stream);
	return found;
}

static enum found find_product(struct rs_worker *worker, struct rs_scope *scope,
			       const struct rs_product *product, struct rs_stat *ret_stat)
{
	enum found found;

	if (path_is(scope, (const char *)product->path, product, ret_stat)) {
		memcpy(worker->path, product->path, product->path_length + 1);
		return FOUND_PATH;
	}
	found = find_by_handle(worker, scope, product, ret_stat);
	if (found == FOUND_GONE || found == FOUND_PATH)
		return found;
	return find_in_directory(worker, scope, product, ret_stat) == FOUND_PATH ? FOUND_PATH
										 : found;
}

int rs_products_collect(struct rs_worker *worker, struct rs_scope *scope, struct rs_out *out)
{
	uint32_t i, leaf_length;
	int error = 0;

	for (i = 0; i < scope->products_count && !error; i++) {
		struct rs_product *product = &scope->products[i];
		const uint8_t *leaf_path;
		struct rs_stat stat;
		char path[PATH_MAX + 1];

		switch (find_product(worker, scope, product, &stat)) {
		case FOUND_NAMELESS:
			product->nameless = true; /* the walk may still meet it */
			continue;
		case FOUND_GONE:
		case FOUND_NOWHERE: /* no handles here: a missing path is all there is to know */
			continue;
		case FOUND_PATH:
			break;
		}
		strcpy(path, worker->path);
		leaf_path = rs_leaf_path(scope, (const uint8_t *)path, (uint32_t)strlen(path),
					 &leaf_length);
		if (!rs_out_has(out, leaf_path, leaf_length))
			error = rs_out_file(worker, scope, out, scope->ns_root_fd, path + 1,
					    leaf_path, leaf_length, &stat);
	}
	return error;
}

void rs_products_count_nameless(struct rs_scope *scope, const struct rs_out *out)
{
	uint32_t i;

	for (i = 0; i < scope->products_count; i++) {
		struct rs_index_cursor cursor = rs_index_find(inode_key(&scope->products[i].stat));
		bool met = false;
		uint32_t value;

		while (scope->products[i].nameless && !met &&
		       (value = rs_index_next(&out->by_inode, &cursor)) != RS_INDEX_EMPTY)
			met = rs_same_inode(&out->stats[value], &scope->products[i].stat);
		if (scope->products[i].nameless && !met)
			RS_COUNT(scope, handler_errors);
	}
}
