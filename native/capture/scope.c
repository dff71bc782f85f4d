/*
 * scope.c: the capture of one action: its group, its marks, its end.
 *
 * Owns: the group and the descriptors that keep the action's namespace alive. Must not: mark
 * anything outside that namespace. Hands off: the group -> engine.c; at the end everything seen ->
 * finish.c. Privilege at entry: CAP_SYS_ADMIN (permission group, mount marks), CAP_SYS_PTRACE
 * (/proc/PID/root of another user's process). Held at exit: the same.
 */
#include "core.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define GROUP_FLAGS (FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS)
/* O_NONBLOCK: a FIFO must not block the kernel's open of the event descriptor. */
#define EVENT_FLAGS (O_RDONLY | O_LARGEFILE | O_CLOEXEC | O_NOATIME | O_NONBLOCK)

int rs_probe(rs_error *error)
{
	int fd = fanotify_init(GROUP_FLAGS | FAN_CLASS_CONTENT, EVENT_FLAGS), own, code = 0;

	if (fd < 0)
		return rs_fail(error, errno, "fanotify_init", "permission group");
	/* On a file of our own, so that nobody's open waits for an answer that never comes. */
	own = memfd_create("rootseal-probe", MFD_CLOEXEC);
	if (own < 0 || fanotify_mark(fd, FAN_MARK_ADD, RS_EVENT_MASK, own, NULL))
		code = errno;
	if (own >= 0)
		close(own);
	close(fd);
	return code ? rs_fail(error, code, "fanotify_mark", "permission events") : 0;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void rs_scope_destroy(struct rs_scope *scope)
{
	close_fd(&scope->group_fd);
	close_fd(&scope->ns_root_fd);
	close_fd(&scope->root_fd);
	close_fd(&scope->mountinfo_fd);
	close_fd(&scope->clock_fd);
	rs_mounts_free(&scope->mounts);
	free(scope->material_pages);
	rs_arena_free(&scope->material_arena);
	free(scope->products);
	rs_index_free(&scope->by_material);
	rs_index_free(&scope->by_inode);
	free(scope->changes);
	rs_index_free(&scope->by_exec);
	rs_index_free(&scope->by_product);
	rs_procs_free(&scope->procs);
	rs_set_free(&scope->opens);
	rs_set_free(&scope->witness);
	rs_set_free(&scope->births);
	rs_set_free(&scope->empties);
	rs_set_free(&scope->names);
	rs_set_free(&scope->snapshot_inodes);
	rs_set_free(&scope->snapshot_states);
	rs_arena_free(&scope->arena);
	rs_spill_close(&scope->spill);
	pthread_mutex_destroy(&scope->mutex);
	pthread_cond_destroy(&scope->idle);
	free(scope);
}

static struct rs_scope *scope_new(struct rs_engine *engine, const rs_limits *limits)
{
	struct rs_scope *scope = calloc(1, sizeof(*scope));

	if (!scope)
		return NULL;
	scope->engine = engine;
	scope->limits = *limits;
	scope->compares = atomic_load(&rs_engine_switches(engine)->compares);
	scope->references = 1;
	scope->group_fd = scope->ns_root_fd = scope->root_fd = scope->mountinfo_fd = -1;
	scope->clock_fd = -1;
	scope->procs.arena = &scope->arena;
	scope->procs.limit = (uint32_t)limits->max_processes;
	rs_spill_init(&scope->spill, rs_engine_budget(engine));
	scope->arena.spill = scope->material_arena.spill = &scope->spill;
	scope->arena.limit = 4 * limits->max_record_bytes + (1U << 20);
	pthread_mutex_init(&scope->mutex, NULL);
	pthread_cond_init(&scope->idle, NULL);
	return scope;
}

static int open_proc(int proc_fd, const char *name, int flags, int *ret_fd)
{
	int fd = openat(proc_fd, name, flags | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	*ret_fd = fd;
	return 0;
}

/* Everything about the process goes through one descriptor of /proc/PID: a reused pid cannot slip
 * in. */
static int open_namespace(struct rs_scope *scope, int pid, rs_error *error)
{
	char path[64];
	int proc_fd, result;

	snprintf(path, sizeof(path), "/proc/%d", pid);
	proc_fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (proc_fd < 0)
		return rs_fail(error, errno, "open", path);
	result = open_proc(proc_fd, "root", O_PATH | O_DIRECTORY, &scope->ns_root_fd);
	if (!result)
		result = open_proc(proc_fd, "mountinfo", O_RDONLY, &scope->mountinfo_fd);
	close(proc_fd);
	if (result)
		return rs_fail(error, -result, "open root and mountinfo of", path);
	return 0;
}

static int link_of(int fd, char *text, size_t size)
{
	char link[64];
	ssize_t length;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	length = readlink(link, text, size - 1);
	if (length < 0)
		return -errno;
	if ((size_t)length >= size - 1)
		return -ENAMETOOLONG;
	text[length] = 0;
	return 0;
}

static int open_root(struct rs_scope *scope, const char *root, rs_error *error)
{
	struct rs_stat stat;
	size_t cut;
	int result;

	if (root[0] != '/')
		return rs_fail(error, EINVAL, "root is not an absolute path", root);
	result = link_of(scope->ns_root_fd, scope->ns_prefix, sizeof(scope->ns_prefix));
	if (result)
		return rs_fail(error, -result, "readlink", "root of the namespace");
	if (!strcmp(scope->ns_prefix, "/"))
		scope->ns_prefix[0] = 0;
	scope->root_fd =
	    openat(scope->ns_root_fd, root[1] ? root + 1 : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (scope->root_fd < 0)
		return rs_fail(error, errno, "open", root);
	result = link_of(scope->root_fd, scope->root, sizeof(scope->root));
	if (!result)
		result = rs_stat_fd(scope->root_fd, &stat);
	if (result)
		return rs_fail(error, -result, "stat", root);
	cut = strlen(scope->ns_prefix);
	if (cut && !strncmp(scope->root, scope->ns_prefix, cut))
		memmove(scope->root, scope->root + cut, strlen(scope->root) - cut + 1);
	if (!scope->root[0])
		strcpy(scope->root, "/");
	scope->root_dev = stat.dev;
	return 0;
}

/*
 * Where the kernel cannot open the file of an event for us, it says so instead of the event, but
 * only if that is the first of a read: a later one is gone (a close) or refused (an open), and
 * nobody is told. Since 6.13 it can be asked to tell of each.
 */
static int init_group(struct rs_scope *scope, unsigned flags)
{
	int fd = fanotify_init(flags | FAN_REPORT_FD_ERROR, EVENT_FLAGS);

	scope->one_by_one = fd < 0;
	return fd < 0 && errno == EINVAL ? fanotify_init(flags, EVENT_FLAGS) : fd;
}

static int open_group(struct rs_scope *scope, rs_error *error)
{
	/* The class for FAN_PRE_ACCESS, which may also be told of opens. */
	unsigned flags =
	    GROUP_FLAGS | (scope->compares ? FAN_CLASS_PRE_CONTENT : FAN_CLASS_CONTENT);

	scope->group_fd = init_group(scope, flags);
	if (scope->group_fd < 0 && errno == EMFILE) {
		/* Groups of ended actions may still be on their way out. */
		rs_engine_wait_reaped(scope->engine);
		scope->group_fd = init_group(scope, flags);
	}
	if (scope->group_fd < 0)
		return rs_fail(error, errno, "fanotify_init", "permission group");
	return 0;
}

static int open_parts(struct rs_scope *scope, int pid, const char *root, rs_error *error)
{
	int result;

	result = open_namespace(scope, pid, error);
	if (!result)
		result = open_root(scope, root, error);
	if (result)
		return result;
	scope->started_tick_ns = rs_coarse_now_ns();
	scope->started_ns = rs_now_ns();
	scope->young_ns = rs_latest_ns();
	result = rs_walk_snapshot(scope);
	if (result)
		return rs_fail(error, -result, "snapshot of", root);
	result = open_group(scope, error);
	if (result)
		return result;
	result =
	    rs_mounts_mark(&scope->mounts, scope->group_fd, scope->ns_root_fd, scope->mountinfo_fd,
			   RS_EVENT_MASK | (scope->compares ? FAN_PRE_ACCESS : 0));
	if (result)
		return rs_fail(error, -result, "mark mounts of", root);
	scope->remote = rs_mounts_remote(&scope->mounts);
	/* Of local files only the want of descriptors would be an error: descriptors.c sees to it.
	 */
	scope->one_by_one = scope->one_by_one && scope->remote;
	/* Only now, with the list of mounts complete, may threads see the scope. */
	result = rs_engine_register(scope->engine, scope);
	if (result)
		return rs_fail(error, -result, "register", "scope");
	return 0;
}

static bool limits_are_sane(const rs_limits *limits)
{
	return limits->max_digests >= 1 && limits->max_digests <= 1U << 24 &&
	       limits->max_record_bytes >= 1 && limits->max_record_bytes <= 1ULL << 30 &&
	       limits->max_processes >= 1 && limits->max_processes <= 1U << 22 &&
	       limits->max_hashed_bytes >= 1;
}

int rs_scope_open(rs_engine *engine, int pid, const char *root, const rs_limits *limits,
		  rs_scope **ret_scope, rs_error *error)
{
	struct rs_scope *scope;
	int result;

	if (pid <= 0 || !limits_are_sane(limits))
		return rs_fail(error, EINVAL, "scope", "pid or limits out of range");
	scope = scope_new(engine, limits);
	if (!scope)
		return rs_fail(error, ENOMEM, "scope", "memory");
	result = open_parts(scope, pid, root, error);
	if (result) {
		rs_scope_abort(scope);
		return result;
	}
	*ret_scope = scope;
	return 0;
}

void rs_scope_abort(rs_scope *scope)
{
	if (scope->group_fd >= 0)
		rs_engine_forget(scope->engine, scope);
	/* The reaper closes the group when the last thread lets go; the kernel then allows all
	 * openers. */
	rs_engine_release(scope);
}

int rs_scope_group(rs_scope *scope, int *ret_fd)
{
	int fd = fcntl(scope->group_fd, F_DUPFD_CLOEXEC, 3);

	if (fd < 0)
		return -errno;
	*ret_fd = fd;
	return 0;
}

size_t rs_scope_processes(rs_scope *scope, int *ret_pids, uint64_t *ret_starts, size_t max)
{
	size_t count;

	pthread_mutex_lock(&scope->mutex);
	count = scope->procs.count;
	for (size_t i = 0; i < count && i < max; i++) {
		ret_pids[i] = scope->procs.items[i].pid;
		ret_starts[i] = scope->procs.items[i].start_time;
	}
	pthread_mutex_unlock(&scope->mutex);
	return count;
}

void rs_scope_progress(rs_scope *scope, rs_counters *ret_counters)
{
	pthread_mutex_lock(&scope->mutex);
	*ret_counters = scope->counters;
	pthread_mutex_unlock(&scope->mutex);
	ret_counters->bytes_hashed = atomic_load(&scope->bytes_hashed);
}

int rs_scope_mounts(rs_scope *scope, uint8_t **ret_bytes, size_t *ret_length)
{
	struct rs_buf buf = {0};

	rs_mounts_encode(&scope->mounts, &buf);
	if (buf.error) {
		int error = buf.error;

		rs_buf_free(&buf);
		return error;
	}
	*ret_bytes = buf.data;
	*ret_length = buf.length;
	return 0;
}

void rs_free(void *memory)
{
	free(memory);
}
