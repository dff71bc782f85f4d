/* Arena, index, set, bytes: what they hold after many insertions, at their limits, and when empty.
 */
#include "check.h"
#include "mem.h"

#include <stdint.h>

static void test_buf(void)
{
	struct rs_buf buf = {0};
	uint64_t value;

	for (value = 1; value; value <<= 7)
		CHECK(!rs_buf_uvarint(&buf, value));
	CHECK(buf.data[0] == 1 && buf.data[1] == 0x80 && buf.data[2] == 1);
	CHECK(!rs_buf_u32(&buf, 0x01020304) && buf.data[buf.length - 4] == 1);
	CHECK(!rs_buf_append(&buf, NULL, 0));
	rs_buf_free(&buf);
	rs_buf_free(&buf);
}

static void test_buf_keeps_its_first_error(void)
{
	struct rs_buf buf = {.error = -ENOMEM};

	CHECK(rs_buf_u64(&buf, 1) == -ENOMEM && buf.length == 0);
	rs_buf_free(&buf);
}

static void test_arena(void)
{
	struct rs_arena arena = {.limit = 1 << 20};
	const uint8_t *copies[1000], *large;
	char text[32];
	int i;

	for (i = 0; i < 1000; i++) {
		snprintf(text, sizeof(text), "number %d", i);
		copies[i] = rs_arena_copy(&arena, text, strlen(text));
		CHECK(copies[i]);
	}
	for (i = 0; i < 1000; i++) {
		snprintf(text, sizeof(text), "number %d", i);
		CHECK(!strcmp((const char *)copies[i], text));
	}
	large = rs_arena_alloc(&arena, 600 * 1024);
	CHECK(large);
	CHECK(!rs_arena_alloc(&arena, 600 * 1024)); /* over its limit */
	CHECK(rs_arena_alloc(&arena, 16));
	CHECK(rs_arena_copy(&arena, "", 0)[0] == 0);
	rs_arena_free(&arena);
}

static void test_index(void)
{
	struct rs_index index = {0};
	struct rs_index_cursor cursor = rs_index_find(1);
	uint32_t i, found;

	CHECK(rs_index_next(&index, &cursor) == RS_INDEX_EMPTY);
	for (i = 0; i < 20000; i++)
		CHECK(!rs_index_add(&index, i % 10000, i)); /* two values for each hash */
	for (i = 0; i < 10000; i++) {
		cursor = rs_index_find(i);
		found = rs_index_next(&index, &cursor);
		found += rs_index_next(&index, &cursor);
		CHECK(found == 2 * i + 10000);
		CHECK(rs_index_next(&index, &cursor) == RS_INDEX_EMPTY);
	}
	cursor = rs_index_find(7);
	found = rs_index_next(&index, &cursor);
	rs_index_replace(&index, &cursor, 77777);
	CHECK(rs_index_next(&index, &cursor) + found == 7 + 10007);
	for (i = 0; i < 40000; i++)
		CHECK(!rs_index_add(&index, 20000 + i, i)); /* what was put there moves along */
	cursor = rs_index_find(7);
	found = rs_index_next(&index, &cursor);
	CHECK(found == 77777 || rs_index_next(&index, &cursor) == 77777);
	rs_index_free(&index);
}

static void test_set(void)
{
	struct rs_set set = {0};
	uint64_t i;

	CHECK(!rs_set_has(&set, 5));
	for (i = 0; i < 30000; i++)
		CHECK(rs_set_add(&set, i << 32 | i) == 1);
	for (i = 0; i < 30000; i++)
		CHECK(rs_set_add(&set, i << 32 | i) == 0 && rs_set_has(&set, i << 32 | i));
	CHECK(!rs_set_has(&set, 7) && set.count == 30000);
	rs_set_free(&set);
}

static void test_hash(void)
{
	uint8_t bytes[64] = {0};
	uint64_t seen = rs_hash_bytes(bytes, 0, 0);
	size_t i;

	CHECK(seen == rs_hash_bytes(bytes, 0, 0));
	for (i = 1; i < sizeof(bytes); i++)
		CHECK(rs_hash_bytes(bytes, i, 0) != rs_hash_bytes(bytes, i - 1, 0));
	CHECK(rs_hash_bytes(bytes, 8, 1) != rs_hash_bytes(bytes, 8, 2));
	CHECK(rs_hash_u64(1, 2) != rs_hash_u64(2, 1));
}

int main(void)
{
	CHECK(!rs_hash_setup());
	test_buf();
	test_buf_keeps_its_first_error();
	test_arena();
	test_index();
	test_set();
	test_hash();
	return 0;
}
