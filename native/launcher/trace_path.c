// SPDX-License-Identifier: Apache-2.0
/*
 * Names and memory of a held task, as the kernel tells them through /proc.
 *
 * Owns: nothing; each fd it returns is the caller's. Must not: open a file's content, follow a
 * name in the launcher's own /proc/self where the task meant its own.
 *
 * Privilege: tracer of the task.
 */
#include "trace_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define DELETED " (deleted)"

/* The target of a /proc link, without the mark of the kernel for a file that has no name left. */
ssize_t rs_link_text_at(int dir, const char *link, char ret_path[RS_PATH_BYTES],
			const struct statx *st)
{
	ssize_t length = readlinkat(dir, link, ret_path, RS_PATH_BYTES - 1);
	ssize_t mark = sizeof(DELETED) - 1;

	if (length < 0)
		return -errno;
	if (length >= RS_PATH_BYTES - 1)
		return -ENAMETOOLONG;
	if (st && st->stx_nlink == 0 && length > mark &&
	    memcmp(ret_path + length - mark, DELETED, (size_t)mark) == 0)
		length -= mark;
	ret_path[length] = '\0';
	return length;
}

ssize_t rs_link_text(const char *link, char ret_path[RS_PATH_BYTES], const struct statx *st)
{
	return rs_link_text_at(AT_FDCWD, link, ret_path, st);
}

/* The path of one of the launcher's own fds. */
ssize_t rs_own_fd_path(struct rs_tracer *t, int fd, char ret_path[RS_PATH_BYTES],
		       const struct statx *st)
{
	char name[16];

	snprintf(name, sizeof(name), "%d", fd);
	return rs_link_text_at(t->own_fds, name, ret_path, st);
}

/* An open file description of our own, for reading. */
int rs_reopen(struct rs_tracer *t, int fd)
{
	char name[16];
	int fresh;

	snprintf(name, sizeof(name), "%d", fd);
	fresh = openat(t->own_fds, name, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	return fresh < 0 ? -errno : fresh;
}

/* A memfd: its "path" is a name that leads nowhere. */
int rs_is_anonymous(const char *path, const struct statx *st)
{
	return st->stx_nlink == 0 && strncmp(path, "/memfd:", 7) == 0;
}

ssize_t rs_fd_path(pid_t tid, int fd, char ret_path[RS_PATH_BYTES], const struct statx *st)
{
	char link[64];

	snprintf(link, sizeof(link), "/proc/%d/fd/%d", tid, fd);
	return rs_link_text(link, ret_path, st);
}

ssize_t rs_read_memory(pid_t tid, uint64_t address, void *ret_data, size_t size)
{
	struct iovec local = {ret_data, size};
	struct iovec remote = {(void *)(uintptr_t)address, size};
	ssize_t got = process_vm_readv(tid, &local, 1, &remote, 1, 0);

	return got < 0 ? -errno : got;
}

/* A page at a time, because the string may end just before memory that is not there. */
ssize_t rs_read_string(pid_t tid, uint64_t address, char *ret_text, size_t size)
{
	size_t have = 0;

	while (have < size) {
		size_t want = 4096 - (address + have) % 4096;
		ssize_t got;
		char *end;

		if (want > size - have)
			want = size - have;
		got = rs_read_memory(tid, address + have, ret_text + have, want);
		if (got <= 0)
			return got < 0 ? got : -EFAULT;
		end = memchr(ret_text + have, '\0', (size_t)got);
		if (end)
			return end - ret_text;
		have += (size_t)got;
	}
	return -ENAMETOOLONG;
}

/* Names under the task's own /proc/self, which in the launcher would mean the launcher. */
static int own_proc(pid_t tid, const char *name, char *ret_name, size_t size)
{
	static const struct {
		const char *prefix, *middle;
	} own[] = {{"/proc/self/", ""}, {"/proc/thread-self/", ""}, {"/dev/fd/", "fd/"}};

	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++) {
		size_t length = strlen(own[i].prefix);

		if (strncmp(name, own[i].prefix, length) == 0)
			return snprintf(ret_name, size, "/proc/%d/%s%s", tid, own[i].middle,
					name + length) < (int)size;
	}
	return 0;
}

int rs_open_as(pid_t tid, int dirfd, const char *name, int flags)
{
	struct open_how how = {.flags = (uint64_t)(flags | O_CLOEXEC)};
	char base[64], own[RS_PATH_BYTES + 32];
	int base_fd, fd;

	if (name[0] == '/' && own_proc(tid, name, own, sizeof(own))) {
		fd = open(own, flags | O_CLOEXEC);
		return fd < 0 ? -errno : fd;
	}
	if (name[0] == '/') {
		snprintf(base, sizeof(base), "/proc/%d/root", tid);
		how.resolve = RESOLVE_IN_ROOT;
	} else if (dirfd == AT_FDCWD) {
		snprintf(base, sizeof(base), "/proc/%d/cwd", tid);
	} else {
		snprintf(base, sizeof(base), "/proc/%d/fd/%d", tid, dirfd);
	}
	base_fd = open(base, O_PATH | O_CLOEXEC);
	if (base_fd < 0)
		return -errno;
	if (name[0] == '\0') {
		if (flags & O_PATH)
			return base_fd;
		fd = open(base, flags | O_CLOEXEC);
	} else {
		fd = (int)syscall(SYS_openat2, base_fd, name, &how, sizeof(how));
	}
	if (fd < 0)
		fd = -errno;
	close(base_fd);
	return fd;
}

static ssize_t own_fd_path(int fd, char ret_path[RS_PATH_BYTES])
{
	char link[64];

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	return rs_link_text(link, ret_path, NULL);
}

/* The directory of the name is resolved, the last part is kept as it is. */
static ssize_t resolve_parent(pid_t tid, int dirfd, const char *name, char ret_path[RS_PATH_BYTES])
{
	char parent[RS_PATH_BYTES];
	size_t length = strlen(name), cut;
	ssize_t have;
	int fd;

	while (length > 1 && name[length - 1] == '/')
		length--;
	for (cut = length; cut > 0 && name[cut - 1] != '/';)
		cut--;
	if (cut == 0)
		strcpy(parent, ".");
	else
		snprintf(parent, sizeof(parent), "%.*s", (int)cut, name);
	fd = rs_open_as(tid, dirfd, parent, O_PATH | O_DIRECTORY);
	if (fd < 0)
		return fd;
	have = own_fd_path(fd, ret_path);
	close(fd);
	if (have < 0)
		return have;
	if ((size_t)have + 1 + (length - cut) >= RS_PATH_BYTES)
		return -ENAMETOOLONG;
	if (have > 1)
		ret_path[have++] = '/';
	memcpy(ret_path + have, name + cut, length - cut);
	have += (ssize_t)(length - cut);
	ret_path[have] = '\0';
	return have;
}

ssize_t rs_resolve(pid_t tid, int dirfd, const char *name, int follow, char ret_path[RS_PATH_BYTES])
{
	ssize_t length;
	int fd;

	if (!follow && name[0] != '\0')
		return resolve_parent(tid, dirfd, name, ret_path);
	fd = rs_open_as(tid, dirfd, name, O_PATH);
	if (fd < 0)
		return fd;
	length = own_fd_path(fd, ret_path);
	close(fd);
	return length;
}
