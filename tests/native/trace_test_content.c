/* The trace core's digests after the open: real files, events made up. */
#include "content.h"
#include "check.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define CREATED	 0x100000
#define EXT4	 0xef53
#define NOBODYS	 9999 /* a descriptor that is not open */
#define SECOND	 1000000000LL
#define UNBOUND	 1000000
#define LATER	 INT64_MAX /* everything was changed before the open */
#define LONG_AGO 1
#define FEW	 4

static struct rs_content_pool *pool;
static struct rs_contents *contents;
static char place[] = "/tmp/rootseal-content-XXXXXX";
static _Alignas(8) uint8_t event_bytes[RS_HEAD_BYTES + 1024];

static void begin(uint64_t max_files, uint64_t max_bytes)
{
	const rs_trace_limits limits = {
	    .content = 1, .max_files = max_files, .max_hashed_bytes = max_bytes};

	CHECK(!rs_contents_open(pool, getpid(), &limits, &contents));
}

static void drain(void)
{
	rs_contents_await(contents);
}

static const char *path_of(const char *name)
{
	static char path[256];

	snprintf(path, sizeof(path), "%s/%s", place, name);
	return path;
}

static void make(const char *name, const char *text)
{
	int fd = open(path_of(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	size_t length = strlen(text);

	CHECK(fd >= 0 && write(fd, text, length) == (ssize_t)length && !close(fd));
}

static struct rs_open_path_event *opened_at(const char *path, uint32_t flags, int fd)
{
	struct rs_open_path_event *event = (void *)event_bytes;
	char text[256], *part;
	struct stat stat;

	memset(event_bytes, 0, sizeof(event_bytes));
	CHECK(!lstat(path_of("a"), &stat));
	event->head = (struct rs_event){.type = RS_EVENT_OPEN_PATH, .tgid = (uint32_t)getpid()};
	event->head.tid = event->head.tgid;
	event->file = (struct rs_file){.ino = stat.st_ino, .mode = stat.st_mode, .magic = EXT4};
	event->file.dev = major(stat.st_dev) << 20 | minor(stat.st_dev);
	event->file.flags = flags;
	event->fd = fd;
	snprintf(text, sizeof(text), "%s", path);
	while ((part = strrchr(text, '/'))) { /* leaf first */
		size_t size = strlen(part + 1) + 1;

		memcpy(event_bytes + RS_HEAD_BYTES + event->walk_len, part + 1, size);
		event->walk_len += (uint32_t)size;
		*part = '\0';
	}
	event->head.size = RS_HEAD_BYTES + event->walk_len;
	CHECK(rs_event_valid(&event->head, event->head.size));
	return event;
}

/* The event of an open of `a` as it is now. */
static struct rs_open_path_event *opened(uint32_t flags, int fd)
{
	return opened_at(path_of("a"), flags, fd);
}

static void test_a_file_that_has_not_changed_has_its_digest(void)
{
	static const uint8_t begins[4] = {0x98, 0x2d, 0x9e, 0x3e}; /* SHA-256 of "text" */
	const rs_trace_content *told;

	begin(UNBOUND, UNBOUND);
	rs_contents_event(contents, opened(O_RDONLY, NOBODYS), LATER);
	rs_contents_event(contents, opened(O_RDONLY, NOBODYS), LATER);
	rs_contents_finish(contents);
	CHECK(contents->count == 1 && contents->opens_count == 1);
	told = &contents->entries[0].told;
	CHECK(!memcmp(told->digest, begins, sizeof(begins)) && told->size == 4 && !told->mutated);
	CHECK(!strcmp(contents->paths + told->path_offset, path_of("a")));
}

static void test_what_may_have_changed_since_is_counted(void)
{
	begin(UNBOUND, UNBOUND);
	contents->begun_ns = 0;
	rs_contents_event(contents, opened(O_RDONLY, NOBODYS), LONG_AGO);
	drain();
	CHECK(contents->failures[RS_CONTENT_CHANGED] == 1 && !contents->count);
}

static void test_times_of_whole_seconds_may_be_two_older(void)
{
	struct rs_content_job job = {.settled_ns = 52 * SECOND};
	struct rs_stat stat = {.ctime_ns = 50 * SECOND};

	CHECK(!rs_content_is_unchanged(&job, &stat));
	job.settled_ns++;
	CHECK(rs_content_is_unchanged(&job, &stat));
	stat.ctime_ns = job.settled_ns;
	CHECK(!rs_content_is_unchanged(&job, &stat));
}

static void test_another_file_in_its_place_is_gone(void)
{
	struct rs_open_path_event *event = opened(O_RDONLY, NOBODYS);
	int dir_fd = open(place, O_PATH | O_DIRECTORY | O_CLOEXEC);

	begin(UNBOUND, UNBOUND);
	make("b", "second");
	CHECK(!renameat(dir_fd, "b", dir_fd, "a") && !close(dir_fd));
	rs_contents_event(contents, event, LATER);
	drain();
	CHECK(contents->failures[RS_CONTENT_GONE] == 1 && !contents->count);
}

static void test_it_is_found_by_a_descriptor_that_is_still_open(void)
{
	char path[300];
	int fd;

	snprintf(path, sizeof(path), "%s/a", path_of("renamed-meanwhile"));
	begin(UNBOUND, UNBOUND); /* before: else it is one that was inherited */
	fd = open(path_of("a"), O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0);
	rs_contents_event(contents, opened_at(path, O_RDONLY, fd), LATER);
	drain();
	CHECK(contents->count == 1 && !contents->failures[RS_CONTENT_GONE]);
	CHECK(!strcmp(contents->paths, path));
	close(fd);
}

static void test_what_is_inherited_is_a_material(void)
{
	int fd = open(path_of("a"), O_RDONLY | O_CLOEXEC);

	CHECK(fd >= 0);
	begin(UNBOUND, UNBOUND);
	drain();
	CHECK(contents->count == 1 && !strcmp(contents->paths, path_of("a")));
	close(fd);
}

/* Leave so many descriptors free; what the limit was. */
static struct rlimit allow(int count)
{
	struct rlimit before, few;
	int held[FEW], i;

	CHECK(count < FEW && !getrlimit(RLIMIT_NOFILE, &before));
	for (i = 0; i <= count; i++)
		CHECK((held[i] = open("/", O_PATH | O_CLOEXEC)) >= 0);
	few = before;
	few.rlim_cur = (rlim_t)held[count];
	for (i = 0; i <= count; i++)
		close(held[i]);
	CHECK(!setrlimit(RLIMIT_NOFILE, &few));
	return before;
}

static void test_what_is_inherited_and_cannot_be_looked_at_is_counted(void)
{
	int fd = open(path_of("a"), O_RDONLY | O_CLOEXEC);
	struct rlimit before;

	CHECK(fd >= 0);
	before = allow(3); /* for the root, the clock and the list of descriptors */
	begin(UNBOUND, UNBOUND);
	CHECK(!setrlimit(RLIMIT_NOFILE, &before));
	drain();
	CHECK(contents->failures[RS_CONTENT_UNTOLD] >= 1 && !contents->count);
	close(fd);
}

static void test_no_symlink_in_its_path_is_followed(void)
{
	char path[300];

	CHECK(!symlink(place, path_of("link")));
	snprintf(path, sizeof(path), "%s/a", path_of("link"));
	begin(UNBOUND, UNBOUND);
	rs_contents_event(contents, opened_at(path, O_RDONLY, NOBODYS), LATER);
	drain();
	CHECK(contents->failures[RS_CONTENT_GONE] == 1 && !contents->count);
	CHECK(!unlink(path_of("link")));
}

static void test_what_members_made_or_only_write_is_no_material(void)
{
	struct rs_open_path_event *event = opened(O_WRONLY, NOBODYS);

	begin(UNBOUND, UNBOUND);
	rs_contents_event(contents, event, LATER);
	drain();
	CHECK(!contents->count && !strcmp(contents->outputs, path_of("a")));
	event->file.fmode = CREATED;
	rs_contents_event(contents, event, LATER);
	rs_contents_event(contents, opened(O_RDONLY, NOBODYS), LATER);
	drain();
	CHECK(!contents->count && contents->outputs_count == 1);
}

static void test_a_path_that_was_cut_is_counted(void)
{
	struct rs_open_path_event *event = opened(O_RDONLY, NOBODYS);

	begin(UNBOUND, UNBOUND);
	event->cut = RS_CUT_WALK;
	rs_contents_event(contents, event, LATER);
	drain();
	CHECK(contents->failures[RS_CONTENT_GONE] == 1 && !contents->count);
}

static void test_what_is_dropped_is_not_hashed(void)
{
	begin(UNBOUND, UNBOUND);
	contents->dropped = true;
	rs_contents_event(contents, opened(O_RDONLY, NOBODYS), LATER);
	drain();
	CHECK(!contents->count && !contents->hashed_bytes);
}

static void test_caps_are_counted(void)
{
	begin(0, UNBOUND);
	rs_contents_event(contents, opened(O_RDONLY, NOBODYS), LATER);
	drain();
	CHECK(contents->failures[RS_CONTENT_CAP] == 1 && !contents->count);
	rs_contents_free(contents);
	begin(UNBOUND, 3);
	rs_contents_event(contents, opened(O_RDONLY, NOBODYS), LATER);
	drain();
	CHECK(contents->failures[RS_CONTENT_BYTES_CAP] == 1 && !contents->count);
}

static void test_a_change_by_others_is_found_at_the_end(void)
{
	const rs_trace_content *told;

	begin(UNBOUND, UNBOUND);
	rs_contents_event(contents, opened(O_RDONLY, NOBODYS), LATER);
	drain();
	make("a", "next");
	rs_contents_finish(contents);
	told = &contents->entries[0].told;
	CHECK(told->mutated == 1 && memcmp(told->digest, told->later, sizeof(told->digest)));
}

static void test_what_cannot_be_looked_at_at_the_end_counts_as_changed(void)
{
	struct rlimit before;

	begin(UNBOUND, UNBOUND);
	rs_contents_event(contents, opened(O_RDONLY, NOBODYS), LATER);
	drain();
	make("a", "next");
	before = allow(0);
	rs_contents_finish(contents);
	CHECK(!setrlimit(RLIMIT_NOFILE, &before));
	CHECK(contents->entries[0].told.mutated == 2);
}

static void test_what_the_clock_had_shown_before_an_event(void)
{
	struct rs_clock clock = {0};
	int64_t first;

	CHECK(!rs_clock_before(&clock, LATER));
	rs_clock_look(&clock);
	first = clock.at_ns[0];
	CHECK(!rs_clock_before(&clock, first - 1));
	CHECK(rs_clock_before(&clock, first) == clock.shown_ns[0]);
	for (unsigned int i = 0; i < RS_CLOCK_LOOKS; i++) { /* the first is forgotten */
		usleep(600);
		rs_clock_look(&clock);
	}
	CHECK(clock.count == RS_CLOCK_LOOKS + 1 && !rs_clock_before(&clock, first));
	CHECK(rs_clock_before(&clock, LATER) >= rs_clock_before(&clock, clock.at_ns[1]));
}

static void test_tables_keep_every_key(void)
{
	struct rs_table table = {0};

	for (uint64_t i = 0; i < 5000; i++) {
		uint32_t *value = rs_table_put(&table, i / 7, i);

		CHECK(value && !*value);
		*value = (uint32_t)i + 1;
	}
	for (uint64_t i = 0; i < 5000; i++)
		CHECK(*rs_table_get(&table, i / 7, i) == i + 1);
	CHECK(!rs_table_get(&table, 1, 5001) && table.count == 5000);
	free(table.slots);
}

int main(void)
{
	static void (*const tests[])(void) = {
	    test_a_file_that_has_not_changed_has_its_digest,
	    test_what_may_have_changed_since_is_counted,
	    test_another_file_in_its_place_is_gone,
	    test_it_is_found_by_a_descriptor_that_is_still_open,
	    test_what_is_inherited_is_a_material,
	    test_what_is_inherited_and_cannot_be_looked_at_is_counted,
	    test_no_symlink_in_its_path_is_followed,
	    test_what_members_made_or_only_write_is_no_material,
	    test_a_path_that_was_cut_is_counted,
	    test_caps_are_counted,
	    test_what_is_dropped_is_not_hashed,
	    test_a_change_by_others_is_found_at_the_end,
	    test_what_cannot_be_looked_at_at_the_end_counts_as_changed,
	};
	int error;

	CHECK(mkdtemp(place));
	CHECK(freopen("/dev/null", "r", stdin)); /* it would be an inherited file */
	pool = rs_content_pool_open(&error);
	CHECK(pool);
	for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
		make("a", "text");
		tests[i]();
		rs_contents_free(contents);
		unlink(path_of("a"));
	}
	test_times_of_whole_seconds_may_be_two_older();
	test_what_the_clock_had_shown_before_an_event();
	test_tables_keep_every_key();
	rs_content_pool_close(pool);
	return rmdir(place);
}
