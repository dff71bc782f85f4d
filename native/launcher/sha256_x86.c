// SPDX-License-Identifier: Apache-2.0
/*
 * The SHA-256 block function with the SHA extensions of x86-64 processors.
 *
 * Owns: nothing. Must not: be called where rs_sha256_accelerated() is NULL. Privilege: none.
 */
#if defined(__x86_64__)
#include "sha256.h"

#include <cpuid.h>
#include <immintrin.h>

#define CPUID7_EBX_SHA (1u << 29)

/*
 * The instructions keep the state as (ABEF, CDGH) and do two rounds at a time. Four message
 * vectors of four words each rotate: `m[i % 4]` holds words 4i..4i+3.
 */
__attribute__((target("sha,sse4.1,ssse3"))) static void
blocks_sha_ni(uint32_t state[8], const uint8_t *data, size_t blocks)
{
	const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
	__m128i dcba = _mm_loadu_si128((const __m128i *)(const void *)&state[0]);
	__m128i hgfe = _mm_loadu_si128((const __m128i *)(const void *)&state[4]);
	__m128i cdab = _mm_shuffle_epi32(dcba, 0xb1);
	__m128i efgh = _mm_shuffle_epi32(hgfe, 0x1b);
	__m128i abef = _mm_alignr_epi8(cdab, efgh, 8);
	__m128i cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);

	for (; blocks > 0; blocks--, data += RS_SHA256_BLOCK) {
		__m128i abef_before = abef, cdgh_before = cdgh;
		__m128i m[4];

#pragma GCC unroll 16
		for (int i = 0; i < 16; i++) {
			__m128i k =
			    _mm_loadu_si128((const __m128i *)(const void *)&rs_sha256_k[4 * i]);
			__m128i wk;

			if (i < 4) {
				__m128i raw =
				    _mm_loadu_si128((const __m128i *)(const void *)(data + 16 * i));

				m[i] = _mm_shuffle_epi8(raw, swap);
			} else {
				__m128i w16 = m[i % 4], w12 = m[(i + 1) % 4];
				__m128i w8 = m[(i + 2) % 4], w4 = m[(i + 3) % 4];
				__m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(w16, w12),
							    _mm_alignr_epi8(w4, w8, 4));

				m[i % 4] = _mm_sha256msg2_epu32(sum, w4);
			}
			wk = _mm_add_epi32(m[i % 4], k);
			cdgh = _mm_sha256rnds2_epu32(cdgh, abef, wk);
			abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(wk, 0x0e));
		}
		abef = _mm_add_epi32(abef, abef_before);
		cdgh = _mm_add_epi32(cdgh, cdgh_before);
	}
	__m128i feba = _mm_shuffle_epi32(abef, 0x1b);
	__m128i dchg = _mm_shuffle_epi32(cdgh, 0xb1);

	_mm_storeu_si128((__m128i *)(void *)&state[0], _mm_blend_epi16(feba, dchg, 0xf0));
	_mm_storeu_si128((__m128i *)(void *)&state[4], _mm_alignr_epi8(dchg, feba, 8));
}

rs_sha256_blocks_fn *rs_sha256_accelerated(void)
{
	unsigned int eax, ebx, ecx, edx;

	if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_SSSE3) || !(ecx & bit_SSE4_1))
		return NULL;
	if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(ebx & CPUID7_EBX_SHA))
		return NULL;
	return blocks_sha_ni;
}
#endif
typedef int rs_sha256_x86_not_empty;
