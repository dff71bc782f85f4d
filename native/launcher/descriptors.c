/*
 * descriptors.c: close what the caller left open and the launcher does not need.
 *
 * Owns nothing. close_range(2) is of Linux 5.9, below our 5.10, but container profiles older than
 * it refuse it (ENOSYS, or EPERM): then each open descriptor is closed for itself. No privilege
 * needed.
 */
#include "launcher.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>

#ifndef SYS_close_range
#define SYS_close_range 436 /* the same number everywhere */
#endif

static bool is_kept(int fd, const int *kept, size_t kept_count)
{
	for (size_t i = 0; i < kept_count; i++)
		if (kept[i] == fd)
			return true;
	return false;
}

static int close_each(unsigned int first, const int *kept, size_t kept_count)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *entry;

	if (!dir)
		return -errno;
	while ((entry = readdir(dir))) {
		char *end;
		long fd = strtol(entry->d_name, &end, 10);

		if (*end || end == entry->d_name || fd < (long)first || fd == dirfd(dir) ||
		    is_kept((int)fd, kept, kept_count))
			continue;
		close((int)fd);
	}
	closedir(dir);
	return 0;
}

int close_all_but(unsigned int first, const int *kept, size_t kept_count)
{
	unsigned int from = first;

	for (size_t i = 0; i <= kept_count; i++) {
		unsigned int last = i < kept_count ? (unsigned int)kept[i] - 1 : ~0u;

		if (from <= last && syscall(SYS_close_range, from, last, 0) < 0)
			return errno == ENOSYS || errno == EPERM
				   ? close_each(first, kept, kept_count)
				   : -errno;
		from = last + 2;
	}
	return 0;
}
