/*
 * leaves.c: leaf tables: sorting, encoding, RFC 6962 root, and the strict check of a table.
 *
 * Owns: nothing beyond a call. Must not: accept two encodings of one table. Hands off: raw tables
 * and roots -> finish.c, Python. Privilege: none.
 */
#include "leaves.h"
#include "api.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LEAF_TAIL_BYTES (RS_SHA256_BYTES + 8 + 4 + 1 + 1)

static void put_be(uint8_t *out, uint64_t value, int bytes)
{
	while (bytes--) {
		out[bytes] = (uint8_t)value;
		value >>= 8;
	}
}

static void leaf_tail(const struct rs_leaf *leaf, uint8_t *out)
{
	memcpy(out, leaf->digest, RS_SHA256_BYTES);
	put_be(out + 32, leaf->size, 8);
	put_be(out + 40, leaf->mode, 4);
	out[44] = leaf->kind;
	out[45] = leaf->source;
}

int rs_leaf_compare(const struct rs_leaf *a, const struct rs_leaf *b)
{
	uint32_t shorter = a->path_length < b->path_length ? a->path_length : b->path_length;
	uint8_t tail_a[LEAF_TAIL_BYTES], tail_b[LEAF_TAIL_BYTES];
	int order = memcmp(a->path, b->path, shorter);

	if (order)
		return order;
	if (a->path_length != b->path_length)
		return a->path_length < b->path_length ? -1 : 1;
	leaf_tail(a, tail_a);
	leaf_tail(b, tail_b);
	return memcmp(tail_a, tail_b, LEAF_TAIL_BYTES);
}

static int compare_pointers(const void *a, const void *b)
{
	return rs_leaf_compare(a, b);
}

void rs_leaves_sort(struct rs_leaf *leaves, uint32_t count)
{
	if (count > 1)
		qsort(leaves, count, sizeof(*leaves), compare_pointers);
}

int rs_leaf_hash(struct rs_sha *sha, uint8_t domain, const struct rs_leaf *leaf,
		 uint8_t *ret_hash32)
{
	uint8_t head[6] = {0x00, domain}, tail[LEAF_TAIL_BYTES];

	put_be(head + 2, leaf->path_length, 4);
	leaf_tail(leaf, tail);
	if (rs_sha_start(sha) || rs_sha_update(sha, head, sizeof(head)) ||
	    rs_sha_update(sha, leaf->path, leaf->path_length) ||
	    rs_sha_update(sha, tail, sizeof(tail)))
		return -EIO;
	return rs_sha_finish(sha, ret_hash32);
}

static uint32_t shared_prefix(const uint8_t *a, uint32_t a_length, const uint8_t *b,
			      uint32_t b_length)
{
	uint32_t limit = a_length < b_length ? a_length : b_length, i = 0;

	while (i < limit && a[i] == b[i])
		i++;
	return i;
}

static void encode_one(struct rs_buf *raw, const struct rs_leaf *leaf, const struct rs_leaf *before)
{
	uint32_t shared = 0;

	if (before)
		shared =
		    shared_prefix(before->path, before->path_length, leaf->path, leaf->path_length);
	rs_buf_uvarint(raw, shared);
	rs_buf_uvarint(raw, leaf->path_length - shared);
	rs_buf_append(raw, leaf->path + shared, leaf->path_length - shared);
	rs_buf_uvarint(raw, leaf->size);
	rs_buf_uvarint(raw, leaf->mode);
	rs_buf_u8(raw, leaf->kind);
	rs_buf_u8(raw, leaf->source);
	rs_buf_append(raw, leaf->digest, RS_SHA256_BYTES);
}

int rs_leaves_encode(struct rs_sha *sha, uint8_t domain, const struct rs_leaf *leaves,
		     uint32_t count, uint64_t bytes_max, uint32_t *ret_index,
		     struct rs_table_out *ret_table)
{
	struct rs_table_out table = {0};
	const struct rs_leaf *before = NULL;
	struct rs_merkle merkle;
	uint8_t hash[RS_SHA256_BYTES];
	uint32_t i;
	int error = 0;

	rs_merkle_start(&merkle, sha);
	rs_buf_append(&table.raw, "RSLT\x01", 5);
	rs_buf_u8(&table.raw, domain);
	rs_buf_append(&table.raw, "\0\0", 2);
	rs_buf_u32(&table.raw, 0);
	for (i = 0; i < count && !error; i++) {
		bool equal = before && rs_leaf_compare(before, &leaves[i]) == 0;

		if (!equal && (table.count >= RS_LEAVES_MAX ||
			       table.raw.length + leaves[i].path_length + 80 > bytes_max)) {
			table.left_out++;
			if (ret_index)
				ret_index[i] = UINT32_MAX;
			continue;
		}
		if (!equal) {
			encode_one(&table.raw, &leaves[i], before);
			before = &leaves[i];
			table.count++;
			error = rs_leaf_hash(sha, domain, before, hash);
			if (!error)
				error = rs_merkle_add_hash(&merkle, hash);
		}
		if (ret_index)
			ret_index[i] = table.count - 1;
	}
	if (!error)
		error = table.raw.error;
	if (!error)
		error = rs_merkle_root(&merkle, table.root);
	if (error) {
		rs_buf_free(&table.raw);
		return error;
	}
	put_be(table.raw.data + 8, table.count, 4);
	*ret_table = table;
	return 0;
}

struct reader {
	const uint8_t *at, *end;
};

static bool take_uvarint(struct reader *reader, uint64_t max, uint64_t *ret_value)
{
	uint64_t value = 0;
	unsigned shift;

	for (shift = 0; shift < 70 && reader->at < reader->end; shift += 7) {
		uint8_t byte = *reader->at++;

		if (shift == 63 && byte > 1)
			return false;
		value |= (uint64_t)(byte & 0x7f) << shift;
		if (byte & 0x80)
			continue;
		if (byte == 0 && shift) /* not the shortest form */
			return false;
		*ret_value = value;
		return value <= max;
	}
	return false;
}

/* Decode one entry; `path` holds the previous path and becomes this one. */
static bool take_leaf(struct reader *reader, uint8_t *path, struct rs_leaf *leaf)
{
	uint32_t before_length = leaf->path_length;
	uint64_t shared, suffix, mode;

	if (!take_uvarint(reader, before_length, &shared) ||
	    !take_uvarint(reader, RS_LEAF_PATH_MAX - shared, &suffix) ||
	    (uint64_t)(reader->end - reader->at) < suffix || shared + suffix == 0 ||
	    memchr(reader->at, 0, suffix))
		return false;
	/* `shared` must be the longest common prefix, so the next bytes must differ. */
	if (shared < before_length && suffix && path[shared] == *reader->at)
		return false;
	memcpy(path + shared, reader->at, suffix);
	reader->at += suffix;
	leaf->path = path;
	leaf->path_length = (uint32_t)(shared + suffix);
	if (!take_uvarint(reader, UINT64_MAX, &leaf->size) || !take_uvarint(reader, 07777, &mode) ||
	    reader->end - reader->at < 2 + RS_SHA256_BYTES)
		return false;
	leaf->mode = (uint32_t)mode;
	leaf->kind = *reader->at++;
	leaf->source = *reader->at++;
	memcpy(leaf->digest, reader->at, RS_SHA256_BYTES);
	reader->at += RS_SHA256_BYTES;
	return leaf->kind <= 3 && leaf->source <= 8;
}

static int verify_leaves(struct rs_sha *sha, struct reader *reader, uint8_t domain, uint32_t count,
			 struct rs_merkle *merkle)
{
	uint8_t paths[2][RS_LEAF_PATH_MAX], hash[RS_SHA256_BYTES];
	struct rs_leaf leaf = {0}, before = {0};
	uint32_t i;
	int error;

	for (i = 0; i < count; i++) {
		before = leaf;
		if (i) {
			memcpy(paths[1], paths[0], leaf.path_length);
			before.path = paths[1];
		}
		if (!take_leaf(reader, paths[0], &leaf))
			return -EBADMSG;
		if (i && rs_leaf_compare(&before, &leaf) >= 0)
			return -EBADMSG;
		error = rs_leaf_hash(sha, domain, &leaf, hash);
		if (!error)
			error = rs_merkle_add_hash(merkle, hash);
		if (error)
			return error;
	}
	return reader->at == reader->end ? 0 : -EBADMSG;
}

int rs_leaf_table_verify(const uint8_t *raw, size_t length, uint8_t domain, uint8_t *ret_root32,
			 uint64_t *ret_count)
{
	struct reader reader = {raw + 12, raw + length};
	struct rs_merkle merkle;
	struct rs_sha sha;
	uint32_t count;
	int error;

	if (length < 12 || length > RS_TABLE_BYTES_MAX || memcmp(raw, "RSLT\x01", 5) ||
	    raw[5] != domain || raw[6] || raw[7])
		return -EBADMSG;
	count = (uint32_t)raw[8] << 24 | (uint32_t)raw[9] << 16 | (uint32_t)raw[10] << 8 | raw[11];
	if (count > RS_LEAVES_MAX)
		return -EBADMSG;
	error = rs_sha_open(&sha);
	if (error)
		return error;
	rs_merkle_start(&merkle, &sha);
	error = verify_leaves(&sha, &reader, domain, count, &merkle);
	if (!error)
		error = rs_merkle_root(&merkle, ret_root32);
	rs_sha_close(&sha);
	if (!error)
		*ret_count = count;
	return error;
}
