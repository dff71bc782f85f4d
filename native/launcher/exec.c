/*
 * exec.c: exec the action as execvp would, with exactly the environment the launcher got.
 *
 * PATH is the action's own. Written out here so that every C library gives the same result.
 * Privilege: none but what the action itself shall have.
 */
#include "launcher.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BUSY_TRIES	    10 /* 1 + 2 + … + 512 ms */
#define PATH_DEFAULT	    "/bin:/usr/bin"
#define CANDIDATE_BYTES_MAX 8192

extern char **environ;

/* A file without a known format is a script for the shell, as execvp has it. */
static int exec_shell(const char *path, char **argv)
{
	size_t count = 0;
	char **shell;

	while (argv[count])
		count++;
	shell = calloc(count + 2, sizeof(*shell));
	if (!shell)
		return -ENOMEM;
	shell[0] = "/bin/sh";
	shell[1] = (char *)path;
	for (size_t i = 1; i < count; i++)
		shell[i + 1] = argv[i];
	execve(shell[0], shell, environ);
	free(shell);
	return -errno;
}

/* ETXTBSY: another thread of the build tool still has the file open for writing, for a moment. */
static int exec_path(const char *path, char **argv)
{
	for (unsigned int i = 0;; i++) {
		struct timespec pause = {.tv_nsec = 1000000l << i};

		execve(path, argv, environ);
		if (errno == ENOEXEC)
			return exec_shell(path, argv);
		if (errno != ETXTBSY || i == BUSY_TRIES)
			return -errno;
		nanosleep(&pause, NULL);
	}
}

static bool look_further(int error)
{
	return error == ENOENT || error == ENOTDIR || error == EACCES || error == ESTALE ||
	       error == ENODEV || error == ETIMEDOUT;
}

static const char *search_path(void)
{
	for (char **e = environ; *e; e++)
		if (!strncmp(*e, "PATH=", 5))
			return *e + 5;
	return PATH_DEFAULT;
}

static int exec_search(const char *path, char **argv)
{
	char candidate[CANDIDATE_BYTES_MAX];
	size_t name_length = strlen(argv[0]);
	int result = -ENOENT;

	for (;; path++) {
		size_t length = strcspn(path, ":");
		int r = -ENAMETOOLONG;

		if (length + name_length + 2 <= sizeof(candidate)) {
			memcpy(candidate, path, length);
			if (length)
				candidate[length++] = '/';
			memcpy(candidate + length, argv[0], name_length + 1);
			r = exec_path(candidate, argv);
			if (!look_further(-r))
				return r;
			if (r == -EACCES)
				result = r;
		}
		path += strcspn(path, ":");
		if (!*path)
			return result;
	}
}

int exec_action(char **argv)
{
	if (!argv[0][0])
		return -ENOENT;
	if (strchr(argv[0], '/'))
		return exec_path(argv[0], argv);
	return exec_search(search_path(), argv);
}
