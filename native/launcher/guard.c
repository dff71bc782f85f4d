/*
 * guard.c: no process of the action comes to files that the capture's marks do not cover without
 * being counted.
 *
 *   child or helper: filter (guard_filter.h) → listener → control socket → parent
 *   parent: listener → one count per call → the call goes on
 *
 * The call is held until it has been counted, so no count comes too late. Owns: the listener, in
 * struct guard. Must not: look at the caller's memory. Privilege: CAP_SYS_ADMIN in the child at
 * guard_enter; none in the parent.
 */
#include "launcher.h"
#include "mount_flags.h"
#include "../guard_filter.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

static long seccomp_call(long operation, long flags, const void *program)
{
	long r = syscall(SYS_seccomp, operation, flags, program);

	return r < 0 ? -errno : r;
}

int guard_enter(int *ret_listener)
{
	long listener, r = guard_install(seccomp_call, &listener);

	if (r >= 0)
		*ret_listener = (int)listener;
	return (int)r;
}

/* The helper installed the filter before it gave up its privilege: clone3 tells. */
int guard_check(void)
{
	return syscall(SYS_clone3, NULL, 0) != -1 || errno != ENOSYS ? -ENOKEY : 0;
}

int guard_send(int control_fd, char message, int listener)
{
	char space[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec data = {&message, 1};
	struct msghdr header = {.msg_iov = &data, .msg_iovlen = 1};

	if (listener >= 0) {
		struct cmsghdr *control;

		header.msg_control = space;
		header.msg_controllen = sizeof(space);
		control = CMSG_FIRSTHDR(&header);
		control->cmsg_level = SOL_SOCKET;
		control->cmsg_type = SCM_RIGHTS;
		control->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(control), &listener, sizeof(int));
	}
	return sendmsg(control_fd, &header, MSG_NOSIGNAL) == 1 ? 0 : -errno;
}

ssize_t guard_receive(int control_fd, char *ret_message, int *ret_listener)
{
	char space[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec data = {ret_message, 1};
	struct msghdr header = {.msg_iov = &data,
				.msg_iovlen = 1,
				.msg_control = space,
				.msg_controllen = sizeof(space)};
	ssize_t n = recvmsg(control_fd, &header, MSG_CMSG_CLOEXEC);
	struct cmsghdr *control = n > 0 ? CMSG_FIRSTHDR(&header) : NULL;

	if (control && control->cmsg_level == SOL_SOCKET && control->cmsg_type == SCM_RIGHTS &&
	    control->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(ret_listener, CMSG_DATA(control), sizeof(int));
	return n;
}

static void count(struct guard *guard, const struct seccomp_data *call)
{
	bool native = call->arch == GUARD_NATIVE;
	int nr = call->nr & 0xbfffffff;

	if (nr == (native ? GUARD_NATIVE_MOUNT : GUARD_COMPAT_MOUNT)) {
		guard->mounts += !makes_no_mount(call->args[3] & 0xffffffff);
	} else if (nr == 428 || nr == 429 || nr == 432 || nr == 467) {
		guard->mounts++;
	} else {
		guard->escapes++;
	}
}

/* One call of the action waits. 0, or -errno when the listener is of no use any more. */
int guard_event(struct guard *guard)
{
	struct seccomp_notif call = {0};
	struct seccomp_notif_resp answer = {.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};

	if (ioctl(guard->listener, SECCOMP_IOCTL_NOTIF_RECV, &call) < 0)
		/* ENOENT: the caller was killed while it waited. */
		return errno == ENOENT || errno == EINTR || errno == EAGAIN ? 0 : -errno;
	count(guard, &call.data);
	answer.id = call.id;
	if (ioctl(guard->listener, SECCOMP_IOCTL_NOTIF_SEND, &answer) < 0 && errno != ENOENT)
		return -errno;
	return 0;
}

/* `revents` of a poll of the listener: a call waits, or nobody is left who could call. */
int guard_poll_event(struct guard *guard, short revents)
{
	if (revents & POLLIN)
		return guard_event(guard);
	if (revents & (POLLHUP | POLLERR | POLLNVAL)) {
		close(guard->listener);
		guard->listener = -1;
	}
	return 0;
}
