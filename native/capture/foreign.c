/*
 * foreign.c: who made what is left? A product that nobody of the scope is seen to have made is
 * counted, because the record would pass it off as the action's.
 *
 * Owns: the names that a trace told. Must not: count what the action may have done without an
 * event: docs/backends.md says which that is. Hands off: the source of each leaf -> products.c,
 * walk.c. Privilege: none.
 *
 * An open for writing by the scope ends with a CLOSE_WRITE event, be it the close, the last
 * unmapping or the end of a process. So after the last of them nobody of the scope can change the
 * content but by truncate(2), and a file that was born meanwhile and never closed by the scope was
 * written by others. A file from before may have been renamed or linked into place: only a trace
 * tells who did it.
 */
#include "core.h"

#include <errno.h>
#include <string.h>

enum { MOVED = 'm', MADE = 's', CUT = 't', UNSEEN = 'u' };

static uint64_t name_key(uint8_t kind, const uint8_t *name, size_t length)
{
	return rs_hash_bytes(name, length, kind) >> 1; /* never the set's mark of a free place */
}

int rs_scope_named(rs_scope *scope, const uint8_t *names, size_t length)
{
	size_t at = 0;

	scope->has_names = true;
	while (at < length) {
		size_t name = strnlen((const char *)names + at, length - at);

		if (name &&
		    rs_set_add(&scope->names, name_key(names[at], names + at + 1, name - 1)) < 0)
			return -ENOMEM;
		at += name + 1;
	}
	return 0;
}

static bool named(const struct rs_scope *scope, uint8_t kind, const uint8_t *name, size_t length)
{
	return rs_set_has(&scope->names, name_key(kind, name, length));
}

static bool last_named(const struct rs_scope *scope, uint8_t kind, const struct rs_left *left)
{
	const uint8_t *slash = memrchr(left->path, '/', left->path_length);
	const uint8_t *name = slash ? slash + 1 : left->path;

	return named(scope, kind, name, left->path_length - (size_t)(name - left->path));
}

/*
 * Was it, or a directory above it, renamed or linked? Only the parts of the path are compared: the
 * way to a directory may lead through symlinks, and it may have been renamed since.
 */
static bool was_moved(const struct rs_scope *scope, const struct rs_left *left)
{
	size_t at = 0;

	if (named(scope, UNSEEN, NULL, 0))
		return true;
	while (at < left->path_length) {
		const uint8_t *part = left->path + at;
		const uint8_t *slash = memchr(part, '/', left->path_length - at);
		size_t length = slash ? (size_t)(slash - part) : left->path_length - at;

		if (named(scope, MOVED, part, length))
			return true;
		at += length + 1;
	}
	return false;
}

uint64_t rs_snapshot_key(const void *path, uint32_t length, uint64_t ino, uint64_t state)
{
	uint64_t key = rs_hash_bytes(path, length, rs_hash_u64(ino, state));

	return key == UINT64_MAX ? 0 : key; /* never the set's mark of a free place */
}

bool rs_is_fresh(const struct rs_scope *scope, const uint8_t *path, uint32_t length, uint64_t ino)
{
	return !scope->snapshot_partial &&
	       !rs_set_has(&scope->snapshot_states,
			   rs_snapshot_key(path, length, ino, RS_STATE_NAMED));
}

bool rs_served_by_others(const struct rs_scope *scope, const struct rs_stat *stat)
{
	const struct rs_mount *mount = rs_mounts_by_id(&scope->mounts, stat->mount_id);

	return !mount || mount->remote;
}

/* Where inode numbers come and go, a file is known by the path at its close. */
static bool closed_there(const struct rs_scope *scope, const struct rs_left *left)
{
	uint32_t i;

	for (i = 0; i < scope->products_count; i++) {
		uint32_t length;
		const uint8_t *path = rs_leaf_path(scope, scope->products[i].path,
						   scope->products[i].path_length, &length);

		if (length == left->path_length && !memcmp(path, left->path, length))
			return true;
	}
	return false;
}

/* Without a digest of the last close only the times tell, and utimensat(2) sets those. */
static bool written_since(const struct rs_product *product, const struct rs_stat *stat)
{
	return product->hashed || stat->size != product->stat.size ||
	       (stat->mtime_ns > product->stat.mtime_ns && stat->mtime_ns == stat->ctime_ns);
}

static bool was_cut(const struct rs_scope *scope, const struct rs_left *left)
{
	return scope->has_names ? last_named(scope, CUT, left) : left->stat->size == 0;
}

/* A file that the action closed after writing. */
static void judge_own(struct rs_scope *scope, const struct rs_left *left,
		      const struct rs_product *product, struct rs_leaf *leaf, struct rs_stat *stat)
{
	bool same = product->hashed ? !memcmp(product->digest, leaf->digest, RS_SHA256_BYTES)
				    : rs_same_state(&product->stat, left->stat);

	leaf->source = same ? RS_SOURCE_CLOSE_WRITE : RS_SOURCE_WALK;
	if (same || !written_since(product, left->stat) || was_cut(scope, left) ||
	    rs_served_by_others(scope, left->stat))
		return;
	if (leaf->path[0] != '/') {
		RS_COUNT(scope, foreign_products);
	} else if (product->hashed) {
		/* Not the build's to deliver, as the file of a cache that many use. */
		leaf->source = RS_SOURCE_CLOSE_WRITE;
		memcpy(leaf->digest, product->digest, RS_SHA256_BYTES);
		leaf->size = product->stat.size;
		*stat = product->stat;
	}
}

void rs_judge_product(struct rs_scope *scope, const struct rs_left *left, uint64_t identity,
		      struct rs_leaf *leaf, struct rs_stat *stat)
{
	const struct rs_product *product = rs_product_find(scope, left->stat);
	bool foreign;

	leaf->source = RS_SOURCE_WALK;
	if (product && rs_is_own(scope, identity)) {
		judge_own(scope, left, product, leaf, stat);
		return;
	}
	if (leaf->path[0] == '/')
		return; /* met by its inode only: it has the number of a file that is gone */
	if (rs_served_by_others(scope, left->stat) && closed_there(scope, left))
		return;
	if (!rs_is_young(scope, left->stat))
		foreign = left->fresh && scope->has_names && !was_moved(scope, left);
	else if (scope->has_names)
		foreign =
		    !was_moved(scope, left) && (left->stat->size || !last_named(scope, MADE, left));
	else
		foreign = left->stat->size != 0; /* mknod(2) opens nothing */
	if (foreign)
		RS_COUNT(scope, foreign_products);
}

void rs_judge_symlink(struct rs_scope *scope, const struct rs_left *left)
{
	if (scope->has_names && (left->fresh || rs_is_young(scope, left->stat)) &&
	    !last_named(scope, MADE, left) && !was_moved(scope, left))
		RS_COUNT(scope, foreign_products);
}
