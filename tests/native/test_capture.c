/*
 * The whole core under the sanitizers: real groups, real threads, children in private namespaces.
 * Exit code 77: this host or user cannot (no permission events).
 */
#include "api.h"
#include "check.h"

#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define FILES	200
#define CHANGED 60

static const rs_limits limits = {1 << 18, 1 << 28, 1ULL << 40, 1 << 16};
static char root[] = "/tmp/rootseal-native-XXXXXX";

static void act(void)
{
	char name[64], buffer[64];
	int i, fd;

	for (i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "%s/in%d", root, i);
		fd = open(name, O_RDONLY);
		CHECK(fd >= 0 && read(fd, buffer, sizeof(buffer)) > 0);
		close(fd);
		snprintf(name, sizeof(name), "%s/out%d", root, i);
		fd = open(name, O_RDWR | O_CREAT, 0644);
		CHECK(fd >= 0 && write(fd, name, strlen(name)) > 0);
		close(fd);
		if (i % 2)
			CHECK(!unlink(name) || errno == ENOENT); /* perhaps a sibling was first */
	}
}

struct child {
	pid_t pid;
	int go;
	int ready;
};

/* Opens files, waits until others changed them, and reads. */
static void read_late(int ready, int go)
{
	char name[64], byte;
	int fds[CHANGED], i;

	for (i = 0; i < CHANGED; i++) {
		snprintf(name, sizeof(name), "%s/in%d", root, i);
		fds[i] = open(name, O_RDONLY);
		CHECK(fds[i] >= 0);
	}
	CHECK(write(ready, "x", 1) == 1 && read(go, &byte, 1) == 1);
	for (i = 0; i < CHANGED; i++)
		CHECK(pread(fds[i], &byte, 1, 0) == 1 && close(fds[i]) == 0);
}

static struct child start(int threads)
{
	int ready[2], go[2], i;
	struct child child;
	char byte;

	CHECK(!pipe2(ready, O_CLOEXEC) && !pipe2(go, O_CLOEXEC));
	child.pid = fork();
	CHECK(child.pid >= 0);
	if (child.pid == 0) {
		CHECK(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
		CHECK(write(ready[1], "x", 1) == 1 && read(go[0], &byte, 1) == 1);
		if (threads == 0) {
			read_late(ready[1], go[0]);
			_exit(0);
		}
		for (i = 1; i < threads; i++)
			if (fork() == 0)
				break;
		act();
		while (wait(NULL) > 0)
			;
		_exit(0);
	}
	CHECK(read(ready[0], &byte, 1) == 1);
	close(ready[1]);
	close(go[0]);
	child.go = go[1];
	child.ready = ready[0];
	return child;
}

static void let_go(struct child *child)
{
	CHECK(write(child->go, "x", 1) == 1);
	close(child->go);
	close(child->ready);
}

static void wait_for(const struct child *child)
{
	int status;

	CHECK(waitpid(child->pid, &status, 0) == child->pid && status == 0);
}

static void finish(rs_scope *scope)
{
	const rs_observation *seen;
	uint8_t tree_root[32];
	rs_result *result;
	uint64_t count;
	rs_error error;

	CHECK(!rs_scope_finish(scope, (const uint8_t *)"in0\0", 4, (const uint8_t *)"no\0", 3,
			       &result, &error));
	seen = rs_result_observation(result);
	CHECK(seen->materials_count >= FILES && seen->products_count == FILES / 2 + 1);
	CHECK(!rs_leaf_table_verify(seen->materials.bytes, seen->materials.length, 'M', tree_root,
				    &count));
	CHECK(count == seen->materials_count && !memcmp(tree_root, seen->materials_root, 32));
	CHECK(!rs_leaf_table_verify(seen->products.bytes, seen->products.length, 'P', tree_root,
				    &count));
	CHECK(seen->counters.handler_errors == 0 && seen->counters.late_events == 0);
	rs_result_free(result);
}

static void test_one(rs_engine *engine)
{
	struct child child = start(1);
	rs_counters counters;
	rs_scope *scope;
	rs_error error;
	uint8_t *mounts;
	size_t length;

	CHECK(!rs_scope_open(engine, child.pid, root, &limits, &scope, &error));
	CHECK(!rs_scope_mounts(scope, &mounts, &length) && length > 4);
	rs_free(mounts);
	let_go(&child);
	rs_scope_progress(scope, &counters);
	wait_for(&child);
	finish(scope);
}

/* Files that change between their open and a read: found there, or at the end. */
static void test_changed(rs_engine *engine, bool at_access)
{
	struct child child = start(0);
	const rs_observation *seen;
	char name[64], byte;
	rs_result *result;
	rs_scope *scope;
	rs_error error;
	int i, fd;

	CHECK(!rs_scope_open(engine, child.pid, root, &limits, &scope, &error));
	CHECK(write(child.go, "x", 1) == 1 && read(child.ready, &byte, 1) == 1);
	for (i = 0; i < CHANGED; i += 2) {
		snprintf(name, sizeof(name), "%s/in%d", root, i);
		fd = open(name, O_WRONLY | O_APPEND);
		CHECK(fd >= 0 && write(fd, "more", 4) == 4 && !close(fd));
	}
	let_go(&child);
	wait_for(&child);
	CHECK(!rs_scope_finish(scope, NULL, 0, NULL, 0, &result, &error));
	seen = rs_result_observation(result);
	CHECK(seen->mutations_count == CHANGED / 2 && seen->mutations_left_out == 0);
	CHECK(seen->counters.mutated_after_open == CHANGED / 2);
	CHECK(seen->mutations.bytes[0] == at_access && seen->mutations.bytes[1] == 1);
	CHECK(at_access ? seen->counters.access_events >= CHANGED / 2
			: seen->counters.access_events == 0);
	CHECK(seen->counters.handler_errors == 0);
	rs_result_free(result);
}

static void test_many(rs_engine *engine)
{
	struct child children[6];
	rs_scope *scopes[6];
	rs_error error;
	int i;

	for (i = 0; i < 6; i++) {
		children[i] = start(1);
		CHECK(!rs_scope_open(engine, children[i].pid, root, &limits, &scopes[i], &error));
	}
	/* One after the other, as they share a root; all scopes are served all the time. */
	for (i = 0; i < 6; i++) {
		let_go(&children[i]);
		wait_for(&children[i]);
		if (i % 2)
			rs_scope_abort(scopes[i]);
		else
			finish(scopes[i]);
	}
}

static void test_abort_while_open(rs_engine *engine)
{
	struct child child = start(4);
	rs_scope *scope;
	rs_error error;

	CHECK(!rs_scope_open(engine, child.pid, root, &limits, &scope, &error));
	let_go(&child);
	rs_scope_abort(scope);
	wait_for(&child);
}

static void test_refusals(rs_engine *engine)
{
	const rs_limits none = {0};
	rs_engine *refused;
	rs_scope *scope;
	rs_error error;

	CHECK(rs_scope_open(engine, 0, root, &limits, &scope, &error) == -EINVAL);
	CHECK(rs_scope_open(engine, getpid(), root, &none, &scope, &error) == -EINVAL);
	CHECK(rs_scope_open(engine, getpid(), "relative", &limits, &scope, &error) == -EINVAL);
	CHECK(rs_scope_open(engine, getpid(), "/no/such/place", &limits, &scope, &error) ==
	      -ENOENT);
	CHECK(error.code == ENOENT && !strcmp(error.detail, "/no/such/place"));
	CHECK(rs_scope_open(engine, 1 << 30, root, &limits, &scope, &error) == -ENOENT);
	CHECK(rs_engine_open(0, 1, &refused, &error) == -EINVAL);
	CHECK(rs_engine_open(1, UINT64_MAX, &refused, &error) == -EINVAL);
}

static void make_inputs(void)
{
	char name[64];
	int i, fd;

	CHECK(mkdtemp(root));
	for (i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "%s/in%d", root, i);
		fd = open(name, O_WRONLY | O_CREAT, 0644);
		CHECK(fd >= 0 && write(fd, name, strlen(name)) > 0);
		close(fd);
	}
}

static void remove_inputs(void)
{
	char name[64];
	int i;

	for (i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "%s/in%d", root, i);
		unlink(name);
		snprintf(name, sizeof(name), "%s/out%d", root, i);
		unlink(name);
	}
	CHECK(!rmdir(root));
}

int main(void)
{
	rs_engine *engine;
	rs_scope *left;
	rs_error error;
	struct child child;

	if (rs_probe(&error)) {
		fprintf(stderr, "%s: %s\n", error.operation, strerror(error.code));
		return 77;
	}
	make_inputs();
	CHECK(!rs_engine_open(2, 1 << 12, &engine, &error));
	test_one(engine);
	test_changed(engine, false);
	if (!rs_engine_set_compare(engine, 1)) {
		test_one(engine);
		test_changed(engine, true);
	}
	test_many(engine);
	test_abort_while_open(engine);
	test_refusals(engine);
	/* A scope that nobody ended: closing the engine ends it and lets the opener go. */
	child = start(1);
	CHECK(!rs_scope_open(engine, child.pid, root, &limits, &left, &error));
	rs_engine_close(engine);
	let_go(&child);
	wait_for(&child);
	remove_inputs();
	return 0;
}
