/*
 * Very many records in one action: within the memory budget, beyond it in a file, and with a full
 * disk; and what becomes of two records of one file.
 *
 *   test_records_scale [RECORDS [DIRECTORY]]
 *
 * Records are entered as the handler enters them; only the opens are missing. Exit code 77: not
 * permitted.
 */
#include "check.h"
#include "core.h"

#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RECORDS_DEFAULT 30000
#define BUDGET_BYTES	(1U << 20)

static char place[4096];

static long field_kib(const char *name)
{
	char line[256];
	FILE *status = fopen("/proc/self/status", "r");
	long value = -1;

	CHECK(status);
	while (fgets(line, sizeof(line), status))
		if (!strncmp(line, name, strlen(name)))
			value = strtol(line + strlen(name) + 1, NULL, 10);
	fclose(status);
	return value;
}

static pid_t child_in_namespace(void)
{
	int ready[2];
	pid_t child;
	char byte;

	CHECK(!pipe(ready));
	child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		close(ready[0]);
		if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
		    write(ready[1], "x", 1) != 1)
			_exit(1);
		pause();
		_exit(0);
	}
	close(ready[1]);
	CHECK(read(ready[0], &byte, 1) == 1);
	close(ready[0]);
	return child;
}

static void enter(rs_scope *scope, uint32_t count, uint8_t source)
{
	struct rs_seen seen = {
	    .stat = {.dev = 1, .mode = S_IFREG | 0644, .nlink = 1}, .pid = 1, .source = source};
	uint8_t digest[RS_SHA256_BYTES] = {0};
	char path[256];
	uint32_t i;

	seen.digest = digest;
	seen.path = path;
	for (i = 0; i < count; i++) {
		seen.stat.ino = i + 1;
		seen.stat.btime_ns = seen.stat.ctime_ns = seen.stat.mtime_ns = 1;
		memcpy(digest, &i, sizeof(i));
		seen.path_length = (uint32_t)snprintf(
		    path, sizeof(path), "/not/there/a-directory-of-usual-length/%u/file-%u.h",
		    i % 1000, i);
		rs_record_open(scope, &seen);
	}
}

struct outcome {
	uint64_t count, cap_hits, spilled, failures;
	long grown_kib, grown_end_kib;
};

/* One action with so many records; what it took. */
static struct outcome run(rs_engine *engine, uint32_t count, uint64_t max_digests)
{
	const rs_limits limits = {max_digests, 1ULL << 30, 1ULL << 40, 1000};
	long before = field_kib("RssAnon:");
	pid_t child = child_in_namespace();
	struct outcome outcome = {0};
	uint8_t tree_root[32];
	rs_memory memory;
	rs_result *result;
	rs_scope *scope;
	rs_error error;

	CHECK(!rs_scope_open(engine, child, place, &limits, &scope, &error));
	enter(scope, count, RS_SOURCE_OPEN);
	kill(child, SIGKILL);
	CHECK(waitpid(child, NULL, 0) == child);
	rs_engine_memory(engine, &memory);
	outcome.spilled = memory.spilled;
	outcome.failures = memory.failures;
	CHECK(memory.used <= memory.budget);
	outcome.grown_kib = field_kib("RssAnon:") - before;
	CHECK(!rs_scope_finish(scope, NULL, 0, NULL, 0, &result, &error));
	outcome.grown_end_kib = field_kib("VmHWM:") - before;
	CHECK(!rs_leaf_table_verify(rs_result_observation(result)->materials.bytes,
				    rs_result_observation(result)->materials.length, 'M', tree_root,
				    &outcome.count));
	CHECK(!memcmp(tree_root, rs_result_observation(result)->materials_root, 32));
	outcome.cap_hits = rs_result_observation(result)->counters.record_bytes_cap_hit +
			   rs_result_observation(result)->counters.fanotify_digests_cap_hit;
	rs_result_free(result);
	rs_engine_wait_reaped(engine);
	rs_engine_memory(engine, &memory);
	CHECK(memory.used == 0 && memory.spilled == 0);
	return outcome;
}

static rs_engine *open_engine(const char *directory)
{
	rs_engine *engine;
	rs_error error;

	CHECK(!rs_engine_open(1, 1 << 10, &engine, &error));
	if (directory) {
		CHECK(!rs_engine_set_memory(engine, BUDGET_BYTES, directory));
		CHECK(rs_engine_set_memory(engine, BUDGET_BYTES, directory) == -EBUSY);
	}
	return engine;
}

static void test_in_memory(uint32_t records)
{
	rs_engine *engine = open_engine(NULL);
	struct outcome outcome = run(engine, records, records);

	CHECK(outcome.count == records && outcome.cap_hits == 0 && outcome.spilled == 0);
	printf("records_scale: %u records in memory: %ld KiB, at the end %ld KiB at most\n",
	       records, outcome.grown_kib, outcome.grown_end_kib);
	rs_engine_close(engine);
}

static void test_in_a_file(uint32_t records)
{
	rs_engine *engine = open_engine(place);
	struct outcome outcome = run(engine, records, records);

	CHECK(outcome.count == records && outcome.cap_hits == 0 && outcome.failures == 0);
	CHECK(outcome.spilled > BUDGET_BYTES);
	printf("records_scale: %u records, %llu KiB of them in a file: %ld KiB of memory\n",
	       records, (unsigned long long)outcome.spilled >> 10, outcome.grown_kib);
	rs_engine_close(engine);
}

static void test_full_disk(uint32_t records)
{
	rs_engine *engine;
	struct outcome outcome;

	CHECK(!mount("none", place, "tmpfs", 0, "size=2m"));
	engine = open_engine(place);
	outcome = run(engine, records, records);
	CHECK(outcome.count < records && outcome.count > 1000);
	CHECK(outcome.count + outcome.cap_hits == records); /* none lost unsaid */
	CHECK(outcome.failures > 0);
	outcome = run(engine, 1000, 1000); /* the next action is whole again */
	CHECK(outcome.count == 1000 && outcome.cap_hits == 0);
	rs_engine_close(engine);
	CHECK(!umount(place));
}

static void test_cap(void)
{
	rs_engine *engine = open_engine(NULL);
	struct outcome outcome = run(engine, 5000, 4000);

	CHECK(outcome.count == 4000 && outcome.cap_hits == 1000);
	rs_engine_close(engine);
}

/* A file that was measured, and another one in its place: same number, name and content. */
static void test_the_weaker_source_stays(void)
{
	const uint8_t orders[][2] = {{RS_SOURCE_FSVERITY, RS_SOURCE_OPEN},
				     {RS_SOURCE_OPEN, RS_SOURCE_FSVERITY}};
	const rs_limits limits = {10, 1ULL << 30, 1ULL << 40, 1000};
	rs_engine *engine = open_engine(NULL);
	rs_scope *scope;
	rs_error error;
	pid_t child;
	size_t i;

	for (i = 0; i < 2; i++) {
		child = child_in_namespace();
		CHECK(!rs_scope_open(engine, child, place, &limits, &scope, &error));
		enter(scope, 1, orders[i][0]);
		CHECK(rs_material_at(scope, 0)->source == orders[i][0]);
		enter(scope, 1, orders[i][1]);
		CHECK(scope->materials_count == 1);
		CHECK(rs_material_at(scope, 0)->source == RS_SOURCE_OPEN);
		kill(child, SIGKILL);
		CHECK(waitpid(child, NULL, 0) == child);
		rs_scope_abort(scope);
	}
	rs_engine_close(engine);
}

int main(int argc, char **argv)
{
	uint32_t records = argc > 1 ? (uint32_t)atoi(argv[1]) : RECORDS_DEFAULT;
	rs_error error;

	if (rs_probe(&error))
		return 77;
	CHECK(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	snprintf(place, sizeof(place), "%s/rootseal-records-XXXXXX", argc > 2 ? argv[2] : "/tmp");
	CHECK(mkdtemp(place));
	test_cap();
	test_the_weaker_source_stays();
	test_in_a_file(records);
	test_full_disk(RECORDS_DEFAULT);
	test_in_memory(records);
	CHECK(!rmdir(place)); /* no file was left behind */
	return 0;
}
