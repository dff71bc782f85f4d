/*
 * paths.c: absolute, lexically normal paths.
 *
 * Pure: no path is opened. Owns nothing; results are malloc'd for the caller. No privilege needed.
 */
#include "launcher.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PATH_BYTES_MAX 65536

/* Append the components of `path` to `out` (always "" or "/a/b"), resolving `.` and `..`. */
static size_t append_components(char *out, size_t length, const char *path)
{
	while (*path) {
		size_t n = strcspn(path, "/");

		if (n == 2 && path[0] == '.' && path[1] == '.') {
			while (length && out[--length] != '/')
				;
		} else if (n && !(n == 1 && path[0] == '.')) {
			out[length++] = '/';
			memcpy(out + length, path, n);
			length += n;
		}
		path += n;
		path += strspn(path, "/");
	}
	return length;
}

/* base/path (or path, if it is absolute) without `.`, `..` and doubled slashes. */
int path_normal(const char *base, const char *path, char **ret_path)
{
	size_t length = 0, bytes = strlen(base) + strlen(path) + 3;
	char *out;

	if (bytes > PATH_BYTES_MAX)
		return -ENAMETOOLONG;
	out = malloc(bytes);
	if (!out)
		return -ENOMEM;
	if (path[0] != '/')
		length = append_components(out, length, base);
	length = append_components(out, length, path);
	if (!length)
		out[length++] = '/';
	out[length] = 0;
	*ret_path = out;
	return 0;
}

/* The part of `path` below `root` ("." for the root itself); both normal. -EXDEV: not below. */
int path_below(const char *root, const char *path, const char **ret_relative)
{
	size_t length = strcmp(root, "/") ? strlen(root) : 0;

	if (strncmp(root, path, length))
		return -EXDEV;
	if (!path[length] || (!length && !path[1])) {
		*ret_relative = ".";
		return 0;
	}
	if (path[length] != '/')
		return -EXDEV;
	*ret_relative = path + length + 1;
	return 0;
}
