// SPDX-License-Identifier: Apache-2.0
/*
 * The SHA-256 block function with the crypto extension of ARMv8 processors.
 *
 * Owns: nothing. Must not: be called where rs_sha256_accelerated() is NULL. Privilege: none.
 */
#if defined(__aarch64__)
#include "sha256.h"

#include <arm_neon.h>
#include <sys/auxv.h>

#define HWCAP_ARM_SHA2 (1ul << 6) /* asm/hwcap.h of the kernel */

__attribute__((target("+crypto"))) static void blocks_armv8(uint32_t state[8], const uint8_t *data,
							    size_t blocks)
{
	uint32x4_t abcd = vld1q_u32(&state[0]), efgh = vld1q_u32(&state[4]);

	for (; blocks > 0; blocks--, data += RS_SHA256_BLOCK) {
		uint32x4_t abcd_before = abcd, efgh_before = efgh;
		uint32x4_t m[4];

#pragma GCC unroll 16
		for (int i = 0; i < 16; i++) {
			uint32x4_t wk, abcd_old = abcd;

			if (i < 4)
				m[i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data + 16 * i)));
			else
				m[i % 4] =
				    vsha256su1q_u32(vsha256su0q_u32(m[i % 4], m[(i + 1) % 4]),
						    m[(i + 2) % 4], m[(i + 3) % 4]);
			wk = vaddq_u32(m[i % 4], vld1q_u32(&rs_sha256_k[4 * i]));
			abcd = vsha256hq_u32(abcd, efgh, wk);
			efgh = vsha256h2q_u32(efgh, abcd_old, wk);
		}
		abcd = vaddq_u32(abcd, abcd_before);
		efgh = vaddq_u32(efgh, efgh_before);
	}
	vst1q_u32(&state[0], abcd);
	vst1q_u32(&state[4], efgh);
}

rs_sha256_blocks_fn *rs_sha256_accelerated(void)
{
	return getauxval(AT_HWCAP) & HWCAP_ARM_SHA2 ? blocks_armv8 : NULL;
}
#endif
typedef int rs_sha256_arm_not_empty;
