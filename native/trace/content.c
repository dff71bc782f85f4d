/*
 * content.c: digests without anybody who holds the openers: each file that a member opens is hashed
 * as soon as its event is read, by other threads.
 *
 * A digest counts only if the file's time of change is older than what the clock of files had
 * shown before the open (clock.c), and it did not change while it was read: then it is what the
 * opener could read. Whatever cannot be proved so is a failure of that file, by reason. What
 * members make themselves is no material.
 *
 *   ring consumer -> rs_contents_event -> line (content_pool.c) -> content_hash.c ->
 * content_table.c
 *
 * Owns: struct rs_contents. Must not: open a file on the consumer's thread.
 * Privilege at entry: reading what the action can read, and its /proc entries.
 */
#include "content.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define FMODE_CREATED_FLAG 0x100000
#define O_TMPFILE_FLAG	   020000000
#define O_PATH_FLAG	   010000000
#define NS_OF_SECOND	   1000000000LL
#define TICK_NS_MAX	   100000000LL /* ticks are 10 ms apart at most; they may be late */

static int64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * NS_OF_SECOND + now.tv_nsec;
}

static struct rs_content_job *new_job(struct rs_contents *contents, const char *path,
				      const char *name)
{
	size_t path_size = strlen(path) + 1, name_size = strlen(name) + 1;
	struct rs_content_job *job = calloc(1, sizeof(*job) + path_size + name_size);

	if (!job)
		return NULL;
	job->contents = contents;
	job->path_size = (uint32_t)path_size;
	job->name_size = (uint32_t)name_size;
	memcpy(job->text, path, path_size);
	memcpy(job->text + path_size, name, name_size);
	return job;
}

/* Takes over the job. */
static void put(struct rs_contents *contents, struct rs_content_job *job)
{
	const struct rs_content_job failed = *job;

	pthread_mutex_lock(&contents->mutex);
	contents->pending++;
	pthread_mutex_unlock(&contents->mutex);
	if (rs_content_pool_add(contents->pool, job))
		return;
	rs_contents_fail(contents, &failed, RS_CONTENT_BUSY);
	rs_contents_done(contents);
}

/* ---- events ---- */

/* Components of a walk, leaf first, each with its NUL -> an absolute path; false: it is too long.
 */
static bool join(const uint8_t *walk, uint32_t length, char *path)
{
	size_t at = 0;

	while (length > 1) { /* the last component first */
		uint32_t end = length - 1, start = end;

		while (start > 0 && walk[start - 1])
			start--;
		if (at + 1 + (end - start) > PATH_MAX)
			return false;
		path[at++] = '/';
		memcpy(path + at, walk + start, end - start);
		at += end - start;
		length = start;
	}
	path[at] = '\0';
	return true;
}

/* By device, and by inode alone for filesystems that show another device. */
static void mark(struct rs_contents *contents, struct rs_table *table, const struct rs_file *file)
{
	if (!rs_table_put(table, file->dev, file->ino) ||
	    !rs_table_put(table, UINT64_MAX, file->ino))
		contents->failures[RS_CONTENT_UNTOLD]++; /* its opens may seem to be materials */
}

/* Remember what members make and write; whether this file is one that they made. */
static bool is_born(struct rs_contents *contents, const struct rs_file *file)
{
	pthread_mutex_lock(&contents->mutex);
	if ((file->fmode & FMODE_CREATED_FLAG) || (file->flags & O_TMPFILE_FLAG))
		mark(contents, &contents->born, file);
	if ((file->flags & O_ACCMODE) != O_RDONLY)
		mark(contents, &contents->written, file);
	pthread_mutex_unlock(&contents->mutex);
	return rs_contents_made(contents, file->dev, file->ino, false);
}

static void send_job(struct rs_contents *contents, const struct rs_event *head,
		     const struct rs_file *file, struct rs_content_job like, const char *path,
		     const char *name)
{
	struct rs_content_job *job = new_job(contents, path, name);

	like.contents = contents;
	like.dev = file->dev;
	like.ino = file->ino;
	like.told = true;
	like.any_device = rs_trace_has_own_device(file->magic);
	like.tgid = head->tgid;
	like.tid = head->tid;
	if (!job) {
		rs_contents_fail(contents, &like, RS_CONTENT_CAP);
		return;
	}
	like.path_size = job->path_size;
	like.name_size = job->name_size;
	memcpy(job, &like, offsetof(struct rs_content_job, text));
	put(contents, job);
}

static bool in_memory(const struct rs_contents *contents, const struct rs_file *file)
{
	return rs_trace_user_device(file->dev) == contents->memory_device;
}

static void take_open(struct rs_contents *contents, const struct rs_open_path_event *event,
		      int64_t settled_ns)
{
	const struct rs_file *file = &event->file;
	const uint8_t *walk = (const uint8_t *)event + RS_HEAD_BYTES;
	struct rs_content_job like = {.fd = event->fd, .access = 1, .settled_ns = settled_ns};
	uint32_t mode = file->flags & O_ACCMODE;
	bool born = is_born(contents, file), complete;
	char path[PATH_MAX + 1];

	if (in_memory(contents, file) || rs_trace_is_pseudo(file->magic))
		return;
	complete = !event->cut && join(walk, event->walk_len, path);
	if (mode != O_RDONLY && complete)
		rs_contents_output(contents, path);
	if (born || mode == O_WRONLY)
		return;
	if (complete) {
		send_job(contents, &event->head, file, like, path, "");
		return;
	}
	like.dev = file->dev; /* that it was cut is counted already */
	like.ino = file->ino;
	like.told = true;
	rs_contents_fail(contents, &like, RS_CONTENT_GONE);
}

static void take_exec(struct rs_contents *contents, const struct rs_exec_event *event,
		      int64_t settled_ns)
{
	const uint8_t *tail = (const uint8_t *)event + RS_HEAD_BYTES;
	const struct rs_file *file = &event->file;
	struct rs_content_job like = {
	    .fd = -1,
	    .access = 4,
	    .interpreted = event->interpreted != 0,
	    .settled_ns = settled_ns,
	};
	char path[PATH_MAX + 1], name[2 * PATH_MAX + 2];
	size_t base = 0;

	like.exempt = is_born(contents, file) || in_memory(contents, file);
	name[0] = '\0';
	if (event->base_len &&
	    join(tail + event->walk_len + event->name_len, event->base_len, name)) {
		base = strlen(name);
		name[base++] = '/';
	}
	if (event->cut || event->name_len > PATH_MAX || !join(tail, event->walk_len, path)) {
		like.dev = file->dev;
		like.ino = file->ino;
		rs_contents_fail(contents, &like, RS_CONTENT_GONE); /* and its loader */
		return;
	}
	memcpy(name + base, tail + event->walk_len, event->name_len);
	name[base + event->name_len] = '\0';
	send_job(contents, &event->head, file, like, path, name);
}

void rs_contents_event(struct rs_contents *contents, const void *event, int64_t settled_ns)
{
	const struct rs_event *head = event;

	if (settled_ns < contents->begun_ns)
		settled_ns = contents->begun_ns;
	if (head->type == RS_EVENT_OPEN_PATH)
		take_open(contents, event, settled_ns);
	else if (head->type == RS_EVENT_EXEC)
		take_exec(contents, event, settled_ns);
}

/* ---- begin and end ---- */

/* Whether the open file can be read, from its flags in /proc; also where they cannot be asked. */
static bool is_readable(int pid, const char *fd)
{
	char path[64], line[128];
	unsigned int flags = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%.16s", pid, fd);
	file = fopen(path, "re");
	if (!file)
		return true;
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "flags: %o", &flags) == 1)
			break;
	fclose(file);
	return !(flags & O_PATH_FLAG) && (flags & O_ACCMODE) != O_WRONLY;
}

/* It may be a file that the action reads. */
static void lose_inherited(struct rs_contents *contents)
{
	const struct rs_content_job lost = {0}; /* no event tells of it */

	rs_contents_fail(contents, &lost, RS_CONTENT_UNREADABLE);
}

static void send_inherited(struct rs_contents *contents, int pid, int dir_fd, const char *number,
			   const struct stat *stat, uint64_t magic)
{
	char path[PATH_MAX + 1];
	ssize_t length = readlinkat(dir_fd, number, path, PATH_MAX);
	struct rs_content_job *job;

	path[length > 0 ? length : 0] = '\0';
	job = new_job(contents, path, "");
	if (!job) {
		lose_inherited(contents);
		return;
	}
	job->dev = rs_trace_kernel_device(stat->st_dev);
	job->ino = stat->st_ino;
	job->settled_ns = contents->begun_ns;
	job->tgid = job->tid = (uint32_t)pid;
	job->fd = atoi(number);
	job->access = 1;
	job->any_device = rs_trace_has_own_device(magic);
	job->exempt = stat->st_dev == contents->memory_device;
	put(contents, job);
}

/* A descriptor that the action inherits: it is not opened again, so no event tells of it. */
static void take_inherited(struct rs_contents *contents, int pid, int dir_fd, const char *number)
{
	struct statfs fs;
	struct stat stat;
	int fd = openat(dir_fd, number, O_PATH | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &stat)) {
		lose_inherited(contents);
	} else if (S_ISREG(stat.st_mode) && is_readable(pid, number)) {
		if (fstatfs(fd, &fs)) /* as many a server of FUSE lets it */
			fs.f_type = 0;
		if (!rs_trace_is_pseudo((uint64_t)fs.f_type))
			send_inherited(contents, pid, dir_fd, number, &stat, (uint64_t)fs.f_type);
	}
	if (fd >= 0)
		close(fd);
}

static int see_inherited(struct rs_contents *contents, int pid)
{
	char place[32];
	DIR *stream;
	struct dirent *entry;

	snprintf(place, sizeof(place), "/proc/%d/fd", pid);
	stream = opendir(place);
	if (!stream)
		return -errno;
	while ((entry = readdir(stream)))
		if (entry->d_name[0] != '.')
			take_inherited(contents, pid, dirfd(stream), entry->d_name);
	closedir(stream);
	return 0;
}

/*
 * What was made just before shall be older than every open of the action. Since 6.13 a file may
 * have a time finer than the ticks, ahead of the clock that moves with them: so wait until that
 * clock has passed the time that it is now. Not for ever: it may be set back meanwhile, and what
 * seems too new then is counted as changed.
 */
static void await_tick(struct rs_contents *contents)
{
	const struct timespec step = {.tv_nsec = 250000};
	int64_t now = clock_ns(CLOCK_REALTIME);
	int64_t end = clock_ns(CLOCK_MONOTONIC) + TICK_NS_MAX;

	for (;;) {
		contents->begun_ns = clock_ns(CLOCK_REALTIME_COARSE);
		if (contents->begun_ns > now || clock_ns(CLOCK_MONOTONIC) > end)
			return;
		nanosleep(&step, NULL);
	}
}

static int watch_clock(struct rs_contents *contents)
{
	const struct itimerspec never = {.it_value = {.tv_sec = 1LL << 33}};

	contents->clock_fd = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC);
	if (contents->clock_fd < 0 ||
	    timerfd_settime(contents->clock_fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &never,
			    NULL))
		return -errno;
	return 0;
}

static int open_root(struct rs_contents *contents, int pid)
{
	char place[32];
	ssize_t length;

	snprintf(place, sizeof(place), "/proc/%d/root", pid);
	contents->root_fd = open(place, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (contents->root_fd < 0)
		return -errno;
	snprintf(place, sizeof(place), "/proc/self/fd/%d", contents->root_fd);
	length = readlink(place, contents->prefix, sizeof(contents->prefix) - 1);
	if (length < 1)
		return length < 0 ? -errno : -ENOENT;
	contents->prefix[length == 1 ? 0 : length] = '\0';
	return 0;
}

/* st_dev of the kernel's own tmpfs, where memfd files live. */
static int memory_device(uint64_t *ret_device)
{
	int fd = memfd_create("rootseal-probe", MFD_CLOEXEC);
	struct stat stat;
	int error = fd < 0 || fstat(fd, &stat) ? -errno : 0;

	if (fd >= 0)
		close(fd);
	if (!error)
		*ret_device = stat.st_dev;
	return error;
}

int rs_contents_open(struct rs_content_pool *pool, int pid, const rs_trace_limits *limits,
		     struct rs_contents **ret_contents)
{
	struct rs_contents *contents = calloc(1, sizeof(*contents));
	int error;

	if (!contents)
		return -ENOMEM;
	pthread_mutex_init(&contents->mutex, NULL);
	pthread_cond_init(&contents->idle, NULL);
	contents->pool = pool;
	contents->root_fd = contents->clock_fd = -1;
	contents->max_files = limits->max_files;
	contents->max_hashed_bytes = limits->max_hashed_bytes;
	error = memory_device(&contents->memory_device);
	if (!error)
		error = open_root(contents, pid);
	if (!error)
		error = watch_clock(contents);
	if (!error)
		await_tick(contents);
	if (!error)
		error = see_inherited(contents, pid);
	if (error) {
		rs_contents_free(contents);
		return error;
	}
	*ret_contents = contents;
	return 0;
}

void rs_contents_await(struct rs_contents *contents)
{
	pthread_mutex_lock(&contents->mutex);
	while (contents->pending)
		pthread_cond_wait(&contents->idle, &contents->mutex);
	pthread_mutex_unlock(&contents->mutex);
}

void rs_contents_free(struct rs_contents *contents)
{
	if (!contents)
		return;
	contents->dropped = true;
	rs_contents_await(contents);
	if (contents->root_fd >= 0)
		close(contents->root_fd);
	if (contents->clock_fd >= 0)
		close(contents->clock_fd);
	free(contents->entries);
	free(contents->paths);
	free(contents->opens);
	free(contents->outputs);
	free(contents->by_output.slots);
	free(contents->by_path.slots);
	free(contents->by_file.slots);
	free(contents->pairs.slots);
	free(contents->born.slots);
	free(contents->written.slots);
	free(contents->failed.slots);
	pthread_cond_destroy(&contents->idle);
	pthread_mutex_destroy(&contents->mutex);
	free(contents);
}
