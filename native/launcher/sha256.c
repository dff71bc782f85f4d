// SPDX-License-Identifier: Apache-2.0
/*
 * SHA-256 (FIPS 180-4): padding, the portable block function and the choice of the block function.
 *
 * Owns: nothing. Must not: allocate, do I/O. Privilege: none.
 */
#include "sha256.h"

#include <stdatomic.h>
#include <string.h>

const uint32_t rs_sha256_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline uint32_t ror(uint32_t x, unsigned int n)
{
	return x >> n | x << (32 - n);
}

static inline uint32_t load_be32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

void rs_sha256_blocks_portable(uint32_t state[8], const uint8_t *data, size_t blocks)
{
	uint32_t w[64], s[8];

	for (; blocks > 0; blocks--, data += RS_SHA256_BLOCK) {
		for (int i = 0; i < 16; i++)
			w[i] = load_be32(data + 4 * i);
		for (int i = 16; i < 64; i++) {
			uint32_t a = w[i - 15], b = w[i - 2];

			w[i] = w[i - 16] + (ror(a, 7) ^ ror(a, 18) ^ a >> 3) + w[i - 7] +
			       (ror(b, 17) ^ ror(b, 19) ^ b >> 10);
		}
		memcpy(s, state, sizeof(s));
		for (int i = 0; i < 64; i++) {
			uint32_t t1 = s[7] + (ror(s[4], 6) ^ ror(s[4], 11) ^ ror(s[4], 25)) +
				      ((s[4] & s[5]) ^ (~s[4] & s[6])) + rs_sha256_k[i] + w[i];
			uint32_t t2 = (ror(s[0], 2) ^ ror(s[0], 13) ^ ror(s[0], 22)) +
				      ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));

			memmove(s + 1, s, 7 * sizeof(s[0]));
			s[4] += t1;
			s[0] = t1 + t2;
		}
		for (int i = 0; i < 8; i++)
			state[i] += s[i];
	}
}

/* Two threads may both choose; they choose the same. */
static rs_sha256_blocks_fn *blocks_fn(void)
{
	static _Atomic(rs_sha256_blocks_fn *) chosen;
	rs_sha256_blocks_fn *fn = atomic_load_explicit(&chosen, memory_order_relaxed);

	if (!fn) {
		fn = rs_sha256_accelerated();
		if (!fn)
			fn = rs_sha256_blocks_portable;
		atomic_store_explicit(&chosen, fn, memory_order_relaxed);
	}
	return fn;
}

void rs_sha256_init(struct rs_sha256 *hash)
{
	static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
					    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

	memcpy(hash->state, initial, sizeof(initial));
	hash->length = 0;
}

void rs_sha256_update(struct rs_sha256 *hash, const void *data, size_t size)
{
	const uint8_t *bytes = data;
	size_t held = hash->length % RS_SHA256_BLOCK;

	if (size == 0)
		return;
	hash->length += size;
	if (held > 0) {
		size_t take = RS_SHA256_BLOCK - held < size ? RS_SHA256_BLOCK - held : size;

		memcpy(hash->buffer + held, bytes, take);
		if (held + take < RS_SHA256_BLOCK)
			return;
		blocks_fn()(hash->state, hash->buffer, 1);
		bytes += take;
		size -= take;
	}
	blocks_fn()(hash->state, bytes, size / RS_SHA256_BLOCK);
	memcpy(hash->buffer, bytes + size / RS_SHA256_BLOCK * RS_SHA256_BLOCK,
	       size % RS_SHA256_BLOCK);
}

void rs_sha256_final(struct rs_sha256 *hash, uint8_t ret_digest[RS_SHA256_BYTES])
{
	static const uint8_t padding[RS_SHA256_BLOCK] = {0x80};
	uint64_t bits = hash->length * 8;
	size_t held = hash->length % RS_SHA256_BLOCK;
	uint8_t length[8];

	for (int i = 0; i < 8; i++)
		length[i] = (uint8_t)(bits >> (56 - 8 * i));
	rs_sha256_update(hash, padding, (held < 56 ? 56 : 120) - held);
	rs_sha256_update(hash, length, sizeof(length));
	for (int i = 0; i < 32; i++)
		ret_digest[i] = (uint8_t)(hash->state[i / 4] >> (24 - 8 * (i % 4)));
}

void rs_sha256(const void *data, size_t size, uint8_t ret_digest[RS_SHA256_BYTES])
{
	struct rs_sha256 hash;

	rs_sha256_init(&hash);
	rs_sha256_update(&hash, data, size);
	rs_sha256_final(&hash, ret_digest);
}

#if !defined(__x86_64__) && !defined(__aarch64__)
rs_sha256_blocks_fn *rs_sha256_accelerated(void)
{
	return NULL;
}
#endif
