/*
 * sha.c: SHA-256 and RFC 6962 roots.
 *
 * Owns: one EVP context per struct rs_sha. Must not: know about files. Hands off: digests ->
 * callers. Privilege: none.
 */
#include "sha.h"
#include "api.h"

#include <errno.h>
#include <openssl/evp.h>
#include <string.h>

int rs_sha_open(struct rs_sha *sha)
{
	EVP_MD_CTX *context = EVP_MD_CTX_new();

	if (!context)
		return -ENOMEM;
	/* The first init with the type fetches the implementation; later ones reuse it. */
	if (EVP_DigestInit_ex(context, EVP_sha256(), NULL) != 1) {
		EVP_MD_CTX_free(context);
		return -EIO;
	}
	sha->context = context;
	return 0;
}

void rs_sha_close(struct rs_sha *sha)
{
	EVP_MD_CTX_free(sha->context);
	sha->context = NULL;
}

int rs_sha_start(struct rs_sha *sha)
{
	return EVP_DigestInit_ex(sha->context, NULL, NULL) == 1 ? 0 : -EIO;
}

int rs_sha_update(struct rs_sha *sha, const void *bytes, size_t length)
{
	return EVP_DigestUpdate(sha->context, bytes, length) == 1 ? 0 : -EIO;
}

int rs_sha_finish(struct rs_sha *sha, uint8_t *ret_digest32)
{
	unsigned length = 0;

	if (EVP_DigestFinal_ex(sha->context, ret_digest32, &length) != 1)
		return -EIO;
	return length == RS_SHA256_BYTES ? 0 : -EIO;
}

static int node_hash(struct rs_sha *sha, const uint8_t *left, const uint8_t *right,
		     uint8_t *ret_hash)
{
	uint8_t input[1 + 2 * RS_SHA256_BYTES];

	input[0] = 0x01; /* RFC 6962 section 2.1: MTH({d(0..n)}) = SHA-256(0x01 || left || right) */
	memcpy(input + 1, left, RS_SHA256_BYTES);
	memcpy(input + 1 + RS_SHA256_BYTES, right, RS_SHA256_BYTES);
	if (rs_sha_start(sha) || rs_sha_update(sha, input, sizeof(input)))
		return -EIO;
	return rs_sha_finish(sha, ret_hash);
}

void rs_merkle_start(struct rs_merkle *merkle, struct rs_sha *sha)
{
	merkle->sha = sha;
	merkle->count = 0;
	merkle->depth = 0;
}

int rs_merkle_add_hash(struct rs_merkle *merkle, const uint8_t *leaf_hash32)
{
	uint64_t ones = merkle->count;
	int error;

	if (merkle->depth >= RS_MERKLE_LEVELS_MAX)
		return -EOVERFLOW;
	memcpy(merkle->stack[merkle->depth++], leaf_hash32, RS_SHA256_BYTES);
	/* Each trailing one bit of the count is a complete left sibling of the same height. */
	for (; ones & 1; ones >>= 1) {
		merkle->depth--;
		error = node_hash(merkle->sha, merkle->stack[merkle->depth - 1],
				  merkle->stack[merkle->depth], merkle->stack[merkle->depth - 1]);
		if (error)
			return error;
	}
	merkle->count++;
	return 0;
}

int rs_merkle_root(struct rs_merkle *merkle, uint8_t *ret_root32)
{
	uint8_t root[RS_SHA256_BYTES];
	unsigned level;
	int error;

	if (merkle->depth == 0) {
		/* RFC 6962 section 2.1: the empty tree is SHA-256(""). */
		if (rs_sha_start(merkle->sha))
			return -EIO;
		return rs_sha_finish(merkle->sha, ret_root32);
	}
	memcpy(root, merkle->stack[merkle->depth - 1], sizeof(root));
	for (level = merkle->depth - 1; level > 0; level--) {
		error = node_hash(merkle->sha, merkle->stack[level - 1], root, root);
		if (error)
			return error;
	}
	memcpy(ret_root32, root, sizeof(root));
	return 0;
}

int rs_merkle_root_of_hashes(const uint8_t *hashes, uint64_t count, uint8_t *ret_root32)
{
	struct rs_merkle merkle;
	struct rs_sha sha;
	uint64_t i;
	int error;

	error = rs_sha_open(&sha);
	if (error)
		return error;
	rs_merkle_start(&merkle, &sha);
	for (i = 0; i < count && !error; i++)
		error = rs_merkle_add_hash(&merkle, hashes + i * RS_SHA256_BYTES);
	if (!error)
		error = rs_merkle_root(&merkle, ret_root32);
	rs_sha_close(&sha);
	return error;
}
