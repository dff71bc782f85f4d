/* sha.h: SHA-256 through OpenSSL's EVP (its hardware path), and the RFC 6962 tree over it. */
#ifndef ROOTSEAL_CAPTURE_SHA_H
#define ROOTSEAL_CAPTURE_SHA_H
#include <stddef.h>
#include <stdint.h>

#define RS_SHA256_BYTES	     32
#define RS_MERKLE_LEVELS_MAX 64

/* One per thread; not to be shared. */
struct rs_sha {
	void *context; /* EVP_MD_CTX, owned */
};

int rs_sha_open(struct rs_sha *sha);
void rs_sha_close(struct rs_sha *sha);
int rs_sha_start(struct rs_sha *sha);
int rs_sha_update(struct rs_sha *sha, const void *bytes, size_t length);
int rs_sha_finish(struct rs_sha *sha, uint8_t *ret_digest32);

/* Streaming RFC 6962 root: one stack of complete subtrees, at most one per level. */
struct rs_merkle {
	struct rs_sha *sha; /* borrowed */
	uint64_t count;
	uint8_t stack[RS_MERKLE_LEVELS_MAX][RS_SHA256_BYTES];
	unsigned depth;
};

void rs_merkle_start(struct rs_merkle *merkle, struct rs_sha *sha);
int rs_merkle_add_hash(struct rs_merkle *merkle, const uint8_t *leaf_hash32);
int rs_merkle_root(struct rs_merkle *merkle, uint8_t *ret_root32);

#endif
