/*
 * inherited.c: what the action gets already open is seen like what it opens itself.
 *
 *   each inherited fd: regular and readable → opened once more by its path, where the capture sees
 * it directory or O_PATH  → replaced by the same one inside the action's namespace neither possible
 * → counted as unseen
 *
 * An inherited fd belongs to a mount of the caller's namespace, which has no mark. Runs in the
 * child, after ARMED and before exec; owns nothing afterwards. Privilege: the action's.
 */
#include "launcher.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

static int path_of(int fd, char path[PATH_MAX])
{
	char link[64];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, PATH_MAX - 1);
	if (n < 0)
		return -errno;
	path[n] = 0;
	return path[0] == '/' && n < PATH_MAX - 1 ? 0 : -ENOENT;
}

static bool same_file(int fd, const struct stat *want)
{
	struct stat found;

	return fstat(fd, &found) == 0 && found.st_dev == want->st_dev &&
	       found.st_ino == want->st_ino;
}

/* The same file by its path in this namespace, or -errno. O_NONBLOCK: what is there now may be a
 * FIFO. */
static int open_again(int fd, const struct stat *want, int flags)
{
	char path[PATH_MAX];
	int again, r = path_of(fd, path);

	if (r < 0)
		return r;
	again = open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (again < 0)
		return -errno;
	if (same_file(again, want))
		return again;
	close(again);
	return -ESTALE;
}

static int replace(int fd, const struct stat *want, int flags)
{
	int kept = fcntl(fd, F_GETFD), r;
	int again = open_again(fd, want, flags & (O_PATH | O_DIRECTORY));

	if (again < 0)
		return again;
	r = dup2(again, fd) < 0 || fcntl(fd, F_SETFD, kept) < 0 ? -errno : 0;
	close(again);
	return r;
}

static int see(int fd)
{
	int flags = fcntl(fd, F_GETFL), again;
	struct stat st;

	if (flags < 0 || fstat(fd, &st) < 0)
		return -errno;
	if ((flags & O_PATH) || S_ISDIR(st.st_mode))
		return replace(fd, &st, flags);
	if (!S_ISREG(st.st_mode) || (flags & O_ACCMODE) == O_WRONLY)
		return 0;
	again = open_again(fd, &st, O_RDONLY);
	if (again < 0)
		return again;
	close(again);
	return 0;
}

/* Close-on-exec fds are ours, or at least never the action's. */
static bool is_inherited(int fd, int listing_fd)
{
	int flags = fcntl(fd, F_GETFD);

	return fd != listing_fd && flags >= 0 && !(flags & FD_CLOEXEC);
}

/* --stdio-only: nothing else was left open. */
static uint64_t stdio_unseen(void)
{
	uint64_t unseen = 0;

	for (int fd = 0; fd <= 2; fd++)
		if (is_inherited(fd, -1))
			unseen += see(fd) < 0;
	return unseen;
}

int inherited_see(bool stdio_only, uint64_t *ret_unseen)
{
	DIR *dir = stdio_only ? NULL : opendir("/proc/self/fd");
	struct dirent *entry;
	uint64_t unseen = 0;

	if (stdio_only) {
		*ret_unseen = stdio_unseen();
		return 0;
	}
	if (!dir)
		return -errno;
	while ((entry = readdir(dir))) {
		char *end;
		long fd = strtol(entry->d_name, &end, 10);

		if (*end || end == entry->d_name || !is_inherited((int)fd, dirfd(dir)))
			continue;
		unseen += see((int)fd) < 0;
	}
	closedir(dir);
	*ret_unseen = unseen;
	return 0;
}
