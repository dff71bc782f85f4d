/*
 * A queue that overflows is counted. The core asks for one without limit, which the kernel never
 * lets overflow; here the linker puts a limited one in its place (--wrap=fanotify_init), so that
 * the kernel really drops events. Exit code 77: this host or user cannot.
 */
#include "api.h"
#include "check.h"

#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/fanotify.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define FILES	   600
#define QUEUE	   8
#define QUEUE_FILE "/proc/sys/fs/fanotify/max_queued_events"

static const rs_limits limits = {1 << 18, 1 << 28, 1ULL << 40, 1 << 16};
static char root[] = "/tmp/rootseal-overflow-XXXXXX";
static bool limited;

int __real_fanotify_init(unsigned int flags, unsigned int event_flags);
int __wrap_fanotify_init(unsigned int flags, unsigned int event_flags);

static bool swap_queue_length(const char *length, char *ret_before, size_t size)
{
	int fd = open(QUEUE_FILE, O_RDWR | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : pread(fd, ret_before, size - 1, 0);
	bool swapped = false;

	if (got > 0) {
		ret_before[got] = 0;
		swapped = pwrite(fd, length, strlen(length), 0) > 0;
	}
	if (fd >= 0)
		close(fd);
	return swapped;
}

int __wrap_fanotify_init(unsigned int flags, unsigned int event_flags)
{
	char before[32], ours[32];
	int fd;

	if (!limited)
		return __real_fanotify_init(flags, event_flags);
	/* The length is taken when the group is made: the host has its own back at once. */
	snprintf(ours, sizeof(ours), "%d\n", QUEUE);
	if (!swap_queue_length(ours, before, sizeof(before)))
		exit(77);
	fd = __real_fanotify_init(flags & ~(unsigned int)FAN_UNLIMITED_QUEUE, event_flags);
	CHECK(swap_queue_length(before, ours, sizeof(ours)));
	return fd;
}

/* All are closed at once, when it ends, faster than anybody can read what that tells. */
static void act(void)
{
	char name[64];
	int i;

	for (i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "%s/out%d", root, i);
		CHECK(open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644) >= 0);
	}
}

static uint64_t overflows(rs_engine *engine)
{
	int ready[2], go[2], status;
	rs_result *result;
	rs_scope *scope;
	rs_error error;
	uint64_t count;
	pid_t pid;
	char byte;

	CHECK(!pipe2(ready, O_CLOEXEC) && !pipe2(go, O_CLOEXEC));
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		CHECK(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
		CHECK(write(ready[1], "x", 1) == 1 && read(go[0], &byte, 1) == 1);
		act();
		_exit(0);
	}
	CHECK(read(ready[0], &byte, 1) == 1);
	CHECK(!rs_scope_open(engine, pid, root, &limits, &scope, &error));
	CHECK(write(go[1], "x", 1) == 1);
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	CHECK(!rs_scope_finish(scope, NULL, 0, NULL, 0, &result, &error));
	count = rs_result_observation(result)->counters.fanotify_queue_overflows;
	rs_result_free(result);
	close(ready[0]);
	close(ready[1]);
	close(go[0]);
	close(go[1]);
	return count;
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

int main(void)
{
	rs_engine *engine;
	rs_error error;

	if (rs_probe(&error))
		return 77;
	CHECK(mkdtemp(root) != NULL);
	CHECK(!rs_engine_open(1, 1 << 12, &engine, &error));
	CHECK(overflows(engine) == 0); /* as the core asks for it */
	limited = true;
	CHECK(overflows(engine) > 0);
	rs_engine_close(engine);
	clean_up();
	return 0;
}
