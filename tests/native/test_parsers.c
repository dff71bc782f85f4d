/* Parsers of what the kernel writes: events, mountinfo lines, /proc/PID/stat; and of leaf tables.
 */
#include "api.h"
#include "check.h"
#include "event.h"
#include "leaves.h"
#include "mounts.h"
#include "procs.h"

#include <sys/fanotify.h>

static void test_events(void)
{
	struct fanotify_event_metadata meta[2] = {
	    {.event_len = sizeof(*meta),
	     .vers = FANOTIFY_METADATA_VERSION,
	     .metadata_len = sizeof(*meta),
	     .mask = FAN_OPEN_PERM,
	     .fd = 7,
	     .pid = 42},
	    {.event_len = sizeof(*meta),
	     .vers = FANOTIFY_METADATA_VERSION,
	     .metadata_len = sizeof(*meta),
	     .mask = FAN_Q_OVERFLOW,
	     .fd = FAN_NOFD},
	};
	const uint8_t *bytes = (const uint8_t *)meta;
	struct rs_event event;
	size_t offset = 0, cut;

	CHECK(rs_event_parse(bytes, sizeof(meta), &offset, &event) == 1);
	CHECK(event.fd == 7 && event.pid == 42 && event.mask == FAN_OPEN_PERM);
	CHECK(rs_event_parse(bytes, sizeof(meta), &offset, &event) == 1 && event.fd == FAN_NOFD);
	CHECK(rs_event_parse(bytes, sizeof(meta), &offset, &event) == 0);
	CHECK(rs_event_parse_all(bytes, sizeof(meta)) == 2);
	for (cut = 1; cut < sizeof(meta); cut++)
		CHECK(rs_event_parse_all(bytes, cut) == (cut == sizeof(*meta) ? 1 : -EBADMSG));
	offset = sizeof(meta) + 1;
	CHECK(rs_event_parse(bytes, sizeof(meta), &offset, &event) == -EBADMSG);
	meta[0].event_len = 0; /* would never advance */
	CHECK(rs_event_parse_all(bytes, sizeof(meta)) == -EBADMSG);
	meta[0].event_len = UINT32_MAX;
	CHECK(rs_event_parse_all(bytes, sizeof(meta)) == -EBADMSG);
	meta[0].event_len = sizeof(*meta);
	meta[0].vers++;
	CHECK(rs_event_parse_all(bytes, sizeof(meta)) == -EBADMSG);
}

static int parse_mount(const char *text, struct rs_mount_line *line, char *copy)
{
	strcpy(copy, text);
	return rs_mount_line_parse(copy, line);
}

static void test_mount_lines(void)
{
	static const char *const bad[] = {
	    "",
	    "36",
	    "36 35",
	    "36 35 98:0 / ",
	    "36 35 98:0 / /mnt rw - ",
	    "36 35 98:0 / /mnt rw shared:1",
	    "x 35 98:0 / /mnt rw - ext4 /dev/x rw",
	    "36 35 98:0 / mnt rw - ext4 /dev/x rw",
	    "99999999999999999999999 35 98:0 / /mnt rw - ext4 /dev/x rw",
	};
	struct rs_mount_line line;
	char copy[512];
	size_t i;

	CHECK(!parse_mount("36 35 98:0 /a /mnt/b rw,noatime master:1 shared:2 - ext3 /dev/r rw",
			   &line, copy));
	CHECK(line.id == 36 && !strcmp(line.point, "/mnt/b") && !strcmp(line.fstype, "ext3"));
	CHECK(!strcmp(line.device, "98:0") && !strcmp(line.root, "/a"));
	CHECK(
	    !parse_mount("1 0 0:1 / /a\\040b\\011c\\012d\\134e\\400 rw - tmpfs t rw", &line, copy));
	CHECK(!strcmp(line.point, "/a b\tc\nd\\e\\400"));
	CHECK(!parse_mount("1 0 0:1 / /a\\000b rw - \\000 t rw", &line, copy));
	CHECK(!strcmp(line.point, "/a\\000b") && !strcmp(line.fstype, "\\000"));
	CHECK(!parse_mount("1 0 0:1 / / rw - fuse.x\\040y t rw", &line, copy));
	CHECK(!strcmp(line.point, "/") && !strcmp(line.fstype, "fuse.x y"));
	CHECK(!strcmp(line.options, "rw"));
	CHECK(!parse_mount("1 0 0:1 / / rw - fuse x rw,user_id=7,group_id=0", &line, copy));
	CHECK(rs_mount_option(line.options, "user_id") == 7);
	CHECK(rs_mount_option(line.options, "group_id") == 0);
	CHECK(rs_mount_option(line.options, "id") == UINT32_MAX);
	CHECK(rs_mount_option("user_id=,rw", "user_id") == UINT32_MAX);
	CHECK(rs_mount_option("user_id=-1", "user_id") == UINT32_MAX);
	CHECK(rs_mount_option("user_id=4294967296", "user_id") == UINT32_MAX);
	CHECK(rs_mount_option("user_id=7x", "user_id") == UINT32_MAX);
	CHECK(rs_mount_option("", "user_id") == UINT32_MAX);
	for (i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		CHECK(parse_mount(bad[i], &line, copy) == -EBADMSG);
}

/* Whether a file of the first mount, at `path`, is seen through the second mount too. */
static int aliased(const char *root, const char *point, const char *path, const char *device,
		   const char *other_root)
{
	struct rs_mount items[2] = {
	    {.id = 1, .device = "8:1", .root = root, .point = point},
	    {.id = 2, .device = device, .root = other_root, .point = "/other"},
	};
	struct rs_mounts mounts = {.items = items, .count = 2};

	return rs_mounts_aliased(&mounts, 1, path);
}

static void test_aliases_of_mounts(void)
{
	CHECK(!aliased("/", "/", "/usr/x", "8:2", "/"));
	CHECK(aliased("/", "/", "/usr/x", "8:1", "/"));
	CHECK(aliased("/", "/", "/usr/x", "8:1", "/usr"));
	CHECK(aliased("/", "/", "/usr/x", "8:1", "/usr/x"));
	CHECK(!aliased("/", "/", "/usr/x", "8:1", "/us"));
	CHECK(!aliased("/", "/", "/usr/x", "8:1", "/usr/x/y"));
	CHECK(aliased("/a", "/m", "/m/b/c", "8:1", "/"));
	CHECK(aliased("/a", "/m", "/m/b/c", "8:1", "/a"));
	CHECK(aliased("/a", "/m", "/m/b/c", "8:1", "/a/b"));
	CHECK(!aliased("/a", "/m", "/m/b/c", "8:1", "/b"));
	CHECK(!aliased("/a", "/m", "/m/b/c", "8:1", "/aa"));
	CHECK(!aliased("/aa", "/m", "/m/b/c", "8:1", "/a"));
	CHECK(aliased("/a/f", "/m/f", "/m/f", "8:2", "/")); /* a file is the mount */
}

static void test_proc_stat(void)
{
	const char *good = "12 (a) b(c) S 11 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 0";
	struct rs_proc_info info = {0};

	CHECK(!rs_proc_stat_parse(good, &info));
	CHECK(info.parent == 11 && info.start_time == 987654 && !strcmp(info.comm, "a) b(c"));
	CHECK(rs_proc_stat_parse("", &info) == -EBADMSG);
	CHECK(rs_proc_stat_parse("12 )(", &info) == -EBADMSG);
	CHECK(rs_proc_stat_parse("12 (x) S 11", &info) == -EBADMSG);
}

static void test_leaf_tables(void)
{
	struct rs_leaf leaves[3] = {
	    {.path = (const uint8_t *)"a/b", .path_length = 3, .size = 300, .mode = 0644},
	    {.path = (const uint8_t *)"a", .path_length = 1, .kind = 1},
	    {.path = (const uint8_t *)"a/b", .path_length = 3, .size = 300, .mode = 0644},
	};
	struct rs_table_out table;
	uint32_t index[3];
	uint8_t root[32];
	uint64_t count;
	struct rs_sha sha;
	size_t i, bit;

	CHECK(!rs_sha_open(&sha));
	rs_leaves_sort(leaves, 3);
	CHECK(!rs_leaves_encode(&sha, 'M', leaves, 3, 1 << 20, index, &table));
	CHECK(table.count == 2 && index[0] == 0 && index[1] == 1 && index[2] == 1);
	CHECK(!rs_leaf_table_verify(table.raw.data, table.raw.length, 'M', root, &count));
	CHECK(count == 2 && !memcmp(root, table.root, 32));
	for (i = 0; i < table.raw.length; i++)
		CHECK(rs_leaf_table_verify(table.raw.data, i, 'M', root, &count) == -EBADMSG);
	for (bit = 0; bit < 8 * table.raw.length; bit++) {
		table.raw.data[bit / 8] ^= 1 << bit % 8;
		if (!rs_leaf_table_verify(table.raw.data, table.raw.length, 'M', root, &count))
			CHECK(memcmp(root, table.root, 32)); /* valid, but another tree */
		table.raw.data[bit / 8] ^= 1 << bit % 8;
	}
	rs_buf_free(&table.raw);
	CHECK(!rs_leaves_encode(&sha, 'P', leaves, 3, 100, index, &table));
	CHECK(table.count == 1 && table.left_out == 2 && index[2] == UINT32_MAX);
	rs_buf_free(&table.raw);
	rs_sha_close(&sha);
}

int main(void)
{
	test_events();
	test_mount_lines();
	test_aliases_of_mounts();
	test_proc_stat();
	test_leaf_tables();
	return 0;
}
