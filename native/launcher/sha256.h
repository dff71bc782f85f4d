/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SHA-256 for the static launcher, which links no crypto library (FIPS 180-4).
 *
 * The block function is chosen once at run time: SHA-NI on x86-64, the ARMv8 crypto extension on
 * aarch64, else portable C.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define RS_SHA256_BYTES 32
#define RS_SHA256_BLOCK 64

struct rs_sha256 {
	uint32_t state[8];
	uint64_t length; /* bytes so far */
	uint8_t buffer[RS_SHA256_BLOCK];
};

typedef void rs_sha256_blocks_fn(uint32_t state[8], const uint8_t *data, size_t blocks);

void rs_sha256_init(struct rs_sha256 *hash);
void rs_sha256_update(struct rs_sha256 *hash, const void *data, size_t size);
void rs_sha256_final(struct rs_sha256 *hash, uint8_t ret_digest[RS_SHA256_BYTES]);
void rs_sha256(const void *data, size_t size, uint8_t ret_digest[RS_SHA256_BYTES]);

/* The block functions: the portable one always works; the accelerated one is NULL where the
 * processor lacks it. Public for the tests, which compare them. */
extern const uint32_t rs_sha256_k[64];
rs_sha256_blocks_fn rs_sha256_blocks_portable;
rs_sha256_blocks_fn *rs_sha256_accelerated(void);
