/* leaves.h: file leaves, their table and their root (docs/formats.md). */
#ifndef ROOTSEAL_CAPTURE_LEAVES_H
#define ROOTSEAL_CAPTURE_LEAVES_H
#include "mem.h"
#include "sha.h"

#define RS_LEAVES_MAX	   (1U << 24)
#define RS_LEAF_PATH_MAX   4096U
#define RS_TABLE_BYTES_MAX (1ULL << 30)

struct rs_leaf {
	const uint8_t *path; /* borrowed */
	uint32_t path_length;
	uint32_t mode;
	uint64_t size;
	uint8_t digest[RS_SHA256_BYTES];
	uint8_t kind, source;
	uint32_t origin; /* whatever the caller wants to find again after sorting */
};

int rs_leaf_compare(const struct rs_leaf *a, const struct rs_leaf *b);
void rs_leaves_sort(struct rs_leaf *leaves, uint32_t count);
int rs_leaf_hash(struct rs_sha *sha, uint8_t domain, const struct rs_leaf *leaf,
		 uint8_t *ret_hash32);

/*
 * Encode sorted leaves. Equal leaves are written once; ret_index (may be NULL) tells for each given
 * leaf its index in the table, UINT32_MAX if it was left out because of `bytes_max`.
 */
struct rs_table_out {
	struct rs_buf raw;
	uint8_t root[RS_SHA256_BYTES];
	uint32_t count;
	uint32_t left_out;
};
int rs_leaves_encode(struct rs_sha *sha, uint8_t domain, const struct rs_leaf *leaves,
		     uint32_t count, uint64_t bytes_max, uint32_t *ret_index,
		     struct rs_table_out *ret_table);

#endif
