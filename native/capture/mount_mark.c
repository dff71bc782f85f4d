/*
 * mount_mark.c: the mark on one mount, also on one that only its owner may look at.
 *
 * Owns: nothing. Must not: run anything but system calls in its child (the parent has threads).
 * Hands off: 0 or -errno -> mounts.c. Privilege at entry: CAP_SYS_ADMIN, and CAP_SETUID,
 * CAP_SETGID for the child. Held at exit: the same.
 */
#include "mounts.h"

#include <errno.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/fanotify.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MARK_SECONDS_MAX 5

static int mark_mount(int group_fd, int root_fd, const char *path, uint64_t mask)
{
	if (fanotify_mark(group_fd, FAN_MARK_ADD | FAN_MARK_MOUNT | FAN_MARK_DONT_FOLLOW, mask,
			  root_fd, path))
		return -errno;
	return 0;
}

/*
 * In a child of its own: become the owner of a FUSE mount, and keep the capabilities to mark mounts
 * and to reach this one. System calls only: the parent has threads.
 */
static int mark_as_child(const struct rs_mount *mount, int group_fd, int root_fd, const char *path,
			 uint64_t mask)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {};
	sigset_t none;

	sigemptyset(&none);
	signal(SIGALRM, SIG_DFL);
	sigprocmask(SIG_SETMASK, &none, NULL);
	alarm(MARK_SECONDS_MAX); /* whoever serves the mount may never answer, or stop us */
	if (syscall(SYS_prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0) ||
	    syscall(SYS_setresgid, mount->owner_group, mount->owner_group, mount->owner_group) ||
	    syscall(SYS_setresuid, mount->owner, mount->owner, mount->owner))
		return -errno;
	data[0].permitted = CAP_TO_MASK(CAP_SYS_ADMIN) | CAP_TO_MASK(CAP_DAC_READ_SEARCH);
	data[0].effective = data[0].permitted;
	if (syscall(SYS_capset, &header, data))
		return -errno;
	return mark_mount(group_fd, root_fd, path, mask);
}

/*
 * A FUSE mount without allow_other is closed to all but its owner, root included (fuse_permission).
 * So a child marks it under the owner's ids. A process and not a thread: the owner may kill it.
 */
static int mark_as_owner(const struct rs_mount *mount, int group_fd, int root_fd, const char *path,
			 uint64_t mask)
{
	int status;
	pid_t child;

	if (mount->owner == UINT32_MAX || mount->owner_group == UINT32_MAX)
		return -EACCES;
	child = fork();
	if (child < 0)
		return -errno;
	if (child == 0)
		_exit(mark_as_child(mount, group_fd, root_fd, path, mask) ? 1 : 0);
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EACCES;
}

int rs_mount_mark(const struct rs_mount *mount, int group_fd, int root_fd, const char *path,
		  uint64_t mask)
{
	int error = mark_mount(group_fd, root_fd, path, mask);

	return error == -EACCES ? mark_as_owner(mount, group_fd, root_fd, path, mask) : error;
}
