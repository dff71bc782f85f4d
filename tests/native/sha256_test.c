// SPDX-License-Identifier: Apache-2.0
/*
 * SHA-256: the vectors of FIPS 180-4 / NIST CAVP, every padding length, and the accelerated block
 * function against the portable one. Prints what it compared; exits 1 on the first difference.
 */
#include "../../native/launcher/sha256.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *what, size_t size)
{
	fprintf(stderr, "sha256_test: %s differs at size %zu\n", what, size);
	exit(1);
}

static void check_hex(const char *what, const uint8_t digest[32], const char *hex)
{
	char text[65];

	for (int i = 0; i < 32; i++)
		snprintf(text + 2 * i, 3, "%02x", digest[i]);
	if (strcmp(text, hex) != 0)
		fail(what, strlen(what));
}

static void check_vector(const char *message, const char *hex)
{
	uint8_t digest[32];

	rs_sha256(message, strlen(message), digest);
	check_hex(message, digest, hex);
}

static void check_million(void)
{
	static char chunk[1000];
	struct rs_sha256 hash;
	uint8_t digest[32];

	memset(chunk, 'a', sizeof(chunk));
	rs_sha256_init(&hash);
	for (int i = 0; i < 1000; i++)
		rs_sha256_update(&hash, chunk, sizeof(chunk));
	rs_sha256_final(&hash, digest);
	check_hex("a million a", digest,
		  "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

/* Every size over several blocks, whole and cut in two at every third place: same digest. */
static void check_splits(const uint8_t *data)
{
	for (size_t size = 0; size <= 300; size++) {
		uint8_t whole[32], parts[32];

		rs_sha256(data, size, whole);
		for (size_t cut = 0; cut <= size; cut += 3) {
			struct rs_sha256 hash;

			rs_sha256_init(&hash);
			rs_sha256_update(&hash, data, cut);
			rs_sha256_update(&hash, data + cut, size - cut);
			rs_sha256_final(&hash, parts);
			if (memcmp(whole, parts, 32) != 0)
				fail("split", size);
		}
	}
}

static int check_accelerated(const uint8_t *data)
{
	rs_sha256_blocks_fn *fast = rs_sha256_accelerated();

	if (!fast)
		return 0;
	for (size_t blocks = 0; blocks <= 64; blocks++) {
		uint32_t a[8] = {1, 2, 3, 4, 5, 6, 7, 8}, b[8] = {1, 2, 3, 4, 5, 6, 7, 8};

		rs_sha256_blocks_portable(a, data, blocks);
		fast(b, data, blocks);
		if (memcmp(a, b, sizeof(a)) != 0)
			fail("accelerated", blocks);
	}
	return 1;
}

int main(void)
{
	static uint8_t data[64 * RS_SHA256_BLOCK];
	uint32_t seed = 1;

	for (size_t i = 0; i < sizeof(data); i++) {
		seed = seed * 1664525u + 1013904223u;
		data[i] = (uint8_t)(seed >> 24);
	}
	check_vector("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
	check_vector("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
	check_vector("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
		     "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
	check_million();
	check_splits(data);
	printf("sha256_test: ok, accelerated %s\n",
	       check_accelerated(data) ? "compared" : "absent");
	return 0;
}
