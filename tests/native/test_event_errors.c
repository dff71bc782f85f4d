/*
 * Events whose file the kernel cannot open for us are counted, also those that are not the first
 * of a read. Here the process has two descriptors left when 600 files are closed at once. Exit code
 * 77: this host or user cannot, or the kernel is older than 6.13, which cannot be asked to tell.
 */
#include "api.h"
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/fanotify.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef FAN_REPORT_FD_ERROR
#define FAN_REPORT_FD_ERROR 0x00002000
#endif

#define FILES	    600
#define DESCRIPTORS 2
#define MANY	    4096

static const rs_limits limits = {1 << 18, 1 << 28, 1ULL << 40, 1 << 16};
static char root[] = "/tmp/rootseal-errors-XXXXXX";

static void act(int ready, int go)
{
	char name[64], byte;
	int i;

	CHECK(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	CHECK(write(ready, "x", 1) == 1 && read(go, &byte, 1) == 1);
	for (i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "%s/out%d", root, i);
		CHECK(open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644) >= 0);
	}
	CHECK(write(ready, "x", 1) == 1 && read(go, &byte, 1) == 1);
	_exit(0); /* closes them */
}

/* Leave so many descriptors free, all others taken. */
static struct rlimit leave(int free_ones)
{
	struct rlimit before, few;
	int held[DESCRIPTORS], i;

	CHECK(!getrlimit(RLIMIT_NOFILE, &before));
	for (i = 0; i < free_ones; i++)
		CHECK((held[i] = open("/", O_PATH | O_CLOEXEC)) >= 0);
	few = before;
	few.rlim_cur = (rlim_t)held[free_ones - 1] + 1; /* the lowest ones are taken first */
	CHECK(!setrlimit(RLIMIT_NOFILE, &few));
	for (i = 0; i < free_ones; i++)
		close(held[i]);
	return before;
}

/* Until so many events are told; a minute at most. */
static void wait_for_events(rs_scope *scope, uint64_t wanted)
{
	rs_counters counters = {0};
	int tries;

	for (tries = 0; tries < 6000 && counters.events < wanted; tries++) {
		usleep(10000);
		rs_scope_progress(scope, &counters);
	}
}

/* Of so many events, while the process is short of descriptors; 0: it has enough. */
static rs_observation observe(rs_engine *engine, uint64_t while_short)
{
	int ready[2], go[2], status;
	rs_observation observation;
	struct rlimit before;
	rs_result *result;
	rs_scope *scope;
	rs_error error;
	pid_t pid;
	char byte;

	CHECK(!pipe2(ready, O_CLOEXEC) && !pipe2(go, O_CLOEXEC));
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0)
		act(ready[1], go[0]);
	CHECK(read(ready[0], &byte, 1) == 1);
	CHECK(!rs_scope_open(engine, pid, root, &limits, &scope, &error));
	CHECK(write(go[1], "x", 1) == 1);
	CHECK(read(ready[0], &byte, 1) == 1); /* all are open, and nobody waits for an answer */
	if (while_short)
		before = leave(DESCRIPTORS);
	CHECK(write(go[1], "x", 1) == 1);
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	wait_for_events(scope, while_short);
	if (while_short)
		CHECK(!setrlimit(RLIMIT_NOFILE, &before));
	CHECK(!rs_scope_finish(scope, NULL, 0, NULL, 0, &result, &error));
	observation = *rs_result_observation(result);
	rs_result_free(result);
	close(ready[0]);
	close(ready[1]);
	close(go[0]);
	close(go[1]);
	return observation;
}

static void clean_up(void)
{
	char name[64];
	int i;

	for (i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "%s/out%d", root, i);
		unlink(name);
	}
	rmdir(root);
}

static bool can_be_asked(void)
{
	int fd = fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_REPORT_FD_ERROR, O_RDONLY);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

int main(void)
{
	rs_observation all, some;
	rs_engine *engine;
	rs_error error;

	if (rs_probe(&error) || !can_be_asked())
		return 77;
	CHECK(mkdtemp(root) != NULL);
	CHECK(!rs_engine_open(2, 1 << 12, &engine, &error));
	all = observe(engine, 0);
	CHECK(all.counters.handler_errors == 0 && all.products_count == FILES);
	some = observe(engine, all.counters.events);
	CHECK(some.counters.handler_errors > 0);
	/* Each is told, with its file or without; opens and closes. */
	CHECK(some.counters.events >= all.counters.events);
	rs_engine_close(engine);
	clean_up();
	return 0;
}
