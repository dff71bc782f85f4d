/*
 * connect.c: find the daemon at the fixed places (docs/protocol.md) and check who it is.
 *
 * Owns no fd after return; the connection goes to the caller. A place that another user could have
 * made is not trusted: the uid at the other end must be 0 or our own. No privilege needed.
 */
#include "launcher.h"
#include "../protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>

/* /tmp/rootseal-UID counts only as a directory of ours that nobody else can write. */
static bool private_directory(const char *path)
{
	struct stat st;

	return !lstat(path, &st) && S_ISDIR(st.st_mode) && st.st_uid == getuid() &&
	       (st.st_mode & 07777) == 0700;
}

static int place_path(const struct places *places, int index, char *path, size_t bytes)
{
	char directory[64];

	if (places->only) {
		if (index > 0)
			return -ENOENT;
		if (strlen(places->only) >= bytes)
			return -ENAMETOOLONG;
		strcpy(path, places->only);
		return 0;
	}
	switch (index) {
	case 0:
		snprintf(path, bytes, "/run/rootseal/daemon.sock");
		return 0;
	case 1:
		snprintf(path, bytes, "/run/user/%u/rootseal/daemon.sock", (unsigned int)getuid());
		return 0;
	case 2:
		snprintf(directory, sizeof(directory), "/tmp/rootseal-%u", (unsigned int)getuid());
		if (!private_directory(directory))
			return -EACCES;
		snprintf(path, bytes, "%s/daemon.sock", directory);
		return 0;
	default:
		return -ENOENT;
	}
}

static int check_peer(int fd, const char *path)
{
	struct ucred peer;
	socklen_t length = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
		return -errno;
	if (peer.uid == 0 || peer.uid == getuid())
		return 0;
	say("the daemon at %s belongs to uid %u and is not trusted. Remove that socket, then run "
	    "`rootseal daemon ensure`.",
	    path, (unsigned int)peer.uid);
	return -EPERM;
}

/* Our fds stay above stdio: a closed stdin of the caller must stay closed for the action. */
static int above_stdio(int fd, int *ret_fd)
{
	cleanup_fd int low = fd;
	int high;

	if (low < 0)
		return -errno;
	high = fcntl(low, F_DUPFD_CLOEXEC, 3);
	if (high < 0)
		return -errno;
	*ret_fd = high;
	return 0;
}

static int connect_to(const char *path, int *ret_fd)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval silence = {.tv_sec = RS_SILENCE_SECONDS_MAX};
	cleanup_fd int fd = -1;
	int r;

	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	strcpy(address.sun_path, path);
	r = above_stdio(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), &fd);
	if (r < 0)
		return r;
	/* The daemon sends PROGRESS while we wait; a daemon that is silent for this long is stuck.
	 */
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &silence, sizeof(silence)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &silence, sizeof(silence)) < 0)
		return -errno;
	while (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	r = check_peer(fd, path);
	if (r < 0)
		return r;
	*ret_fd = fd;
	fd = -1;
	return 0;
}

int connect_next(struct places *places, int *ret_fd)
{
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];

	for (;;) {
		int r = place_path(places, places->next, path, sizeof(path));

		if (r == -ENOENT)
			return r;
		places->next++;
		if (r >= 0)
			r = connect_to(path, ret_fd);
		if (r >= 0 || r == -EPERM)
			return r; /* an impostor is an error, not a reason to look further */
		if (r == -EACCES)
			places->refused = true;
	}
}
