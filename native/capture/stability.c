/*
 * stability.c: did somebody else change a material after it was hashed?
 *
 * Owns: nothing; the list that it writes is the result's. Must not: hash what was not touched, or
 * take a change by the action itself, or another file of the same name, for one by others. Hands
 * off: both digests of each such material -> finish.c. Privilege: as scope.c.
 */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* Counted always; told with both digests as long as there is room. */
static void add(struct rs_scope *scope, struct rs_mutations *out,
		const struct rs_material *material, enum rs_mutation_when when,
		const uint8_t *later)
{
	struct rs_buf *buf = &out->entries;
	uint32_t length;
	const uint8_t *path = rs_leaf_path(scope, material->path, material->path_length, &length);

	RS_COUNT(scope, mutated_after_open);
	if (out->count >= RS_MUTATIONS_MAX) {
		out->left_out++;
		return;
	}
	rs_buf_u8(buf, (uint8_t)when);
	rs_buf_u8(buf, later != NULL);
	rs_buf_field(buf, path, length);
	rs_buf_append(buf, material->digest, RS_SHA256_BYTES);
	if (later)
		rs_buf_append(buf, later, RS_SHA256_BYTES);
	out->count++;
}

/* The change that was found at an access, unless the action itself wrote the file. */
static void add_change(struct rs_scope *scope, struct rs_mutations *out,
		       const struct rs_material *material)
{
	const struct rs_change *change = rs_access_change(scope, material);

	if (change && !rs_is_product(scope, &material->stat))
		add(scope, out, material, RS_MUTATION_ACCESS,
		    change->readable ? change->digest : NULL);
}

/* Found at an access already, with this content? Then it is not told twice. */
static bool is_told(const struct rs_scope *scope, const struct rs_material *material,
		    const uint8_t *digest)
{
	const struct rs_change *change = rs_access_change(scope, material);

	return change && change->readable && !memcmp(change->digest, digest, RS_SHA256_BYTES);
}

/* Later opens of it made no event: may some have gone through another name? See once.c. */
static bool names_unsure(const struct rs_material *material, const struct rs_stat *now)
{
	/* Touching sets the modification time, which renaming and linking leave as it is. */
	return material->ignored && !rs_same_state(now, &material->stat) &&
	       (now->nlink != 1 || now->mtime_ns == material->stat.mtime_ns);
}

/* Hash what the path leads to now, and compare. */
static void check_content(struct rs_worker *worker, struct rs_scope *scope,
			  const struct rs_material *material, const struct rs_stat *now,
			  struct rs_mutations *out)
{
	struct rs_content content;
	enum rs_digest_outcome outcome = RS_DIGEST_LEFT_OUT;
	struct rs_stat opened;
	bool trusted;
	int fd;

	fd = openat(scope->ns_root_fd, (const char *)material->path + 1,
		    O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	if (fd < 0 || rs_stat_fd(fd, &opened) || !rs_same_inode(&opened, now))
		RS_COUNT(scope, fallback_hash_failures);
	else
		outcome = rs_digest_of_fd(worker, scope, fd, &opened, true, &content, &trusted);
	if (fd >= 0)
		close(fd);
	if (outcome == RS_DIGEST_LEFT_OUT)
		add(scope, out, material, RS_MUTATION_END, NULL);
	else if (!memcmp(content.digest, material->digest, RS_SHA256_BYTES))
		scope->counters.unstable_files += names_unsure(material, now);
	else if (outcome == RS_DIGEST_UNSTABLE)
		add(scope, out, material, RS_MUTATION_END, NULL);
	else if (!is_told(scope, material, content.digest))
		add(scope, out, material, RS_MUTATION_END, content.digest);
}

/* Changed in place since it was read, and not by this action? A replaced file is another file. */
void rs_stability_check(struct rs_worker *worker, struct rs_scope *scope,
			const struct rs_material *material, struct rs_mutations *out)
{
	struct rs_stat now;
	int error;

	add_change(scope, out, material);
	if (material->was_unlinked || material->path_length < 2)
		return;
	error = rs_stat_synced_at(scope->ns_root_fd, (const char *)material->path + 1, &now);
	if (error) {
		if (!rs_is_gone(error)) /* nobody knows what it is now */
			add(scope, out, material, RS_MUTATION_END, NULL);
		else if (material->ignored) /* removed, or renamed and opened again */
			RS_COUNT(scope, unstable_files);
		return;
	}
	if (!rs_same_inode(&now, &material->stat) || now.btime_ns != material->stat.btime_ns)
		return;
	if (rs_same_state(&now, &material->stat) && !material->unsure)
		return;
	if (!rs_is_product(scope, &now))
		check_content(worker, scope, material, &now, out);
	else if (material->ignored && now.nlink != 1)
		RS_COUNT(scope, unstable_files);
}
