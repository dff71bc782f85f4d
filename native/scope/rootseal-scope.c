/*
 * rootseal-scope: enter a private mount namespace, give up every privilege, exec.
 *
 *   rootseal-scope CONTROL_FD PROGRAM ARGUMENT…
 *
 *   namespace → no_new_privs → guard (seccomp filter and its listener) → privileges dropped →
 *   listener sent to the launcher over CONTROL_FD → exec
 *
 * The guard (guard_filter.h) holds the calls that lead away from the namespace's mounts until the
 * launcher has counted them. Its listener goes to the launcher and is closed here, so that the
 * program never holds it: if the launcher ends, such calls fail at once (ENOSYS), and if nobody
 * takes the listener, nothing is executed. With no_new_privs set first, whoever holds the listener
 * answers for programs of the same user's rights only, never for a set-user-ID one.
 *
 * This is the only privileged program of Rootseal (file capability cap_sys_admin+ep, or set-user-ID
 * root where a filesystem has no capabilities). It uses no C library, reads no file, no environment
 * variable and no option, allocates nothing, and has no branch that keeps a privilege: each step is
 * checked, and the first failure ends it. SECURITY.md argues why it is safe to install.
 *
 * Entry: CAP_SYS_ADMIN, or effective uid 0.   Exit: the invoking user's ids, no capability.
 */
#include "../guard_filter.h"
#include "start.h"

#include <sys/socket.h>

#define CAPABILITY_VERSION_3	 0x20080522
#define CLONE_NEWNS		 0x00020000
#define MS_REC			 16384
#define MS_PRIVATE		 (1 << 18)
#define PR_SET_NO_NEW_PRIVS	 38
#define PR_CAP_AMBIENT		 47
#define PR_CAP_AMBIENT_CLEAR_ALL 4
#define EXIT_ROOTSEAL		 125
#define CONTROL_FD_MAX		 65535

struct capability_header {
	unsigned int version;
	int pid;
};

struct capability_data {
	unsigned int effective;
	unsigned int permitted;
	unsigned int inheritable;
};

static unsigned long length_of(const char *text)
{
	unsigned long length = 0;

	while (text[length])
		length++;
	return length;
}

static void say(const char *text)
{
	system_call3(SYS_write, 2, (long)text, length_of(text));
}

static int fail(const char *what)
{
	say("rootseal-scope: ");
	say(what);
	say("\n");
	return EXIT_ROOTSEAL;
}

/* Private, so that later mounts outside stay outside: what is not marked must not appear here. */
static long enter_namespace(void)
{
	long r = system_call1(SYS_unshare, CLONE_NEWNS);

	if (r < 0)
		return r;
	return system_call5(SYS_mount, 0, (long)"/", 0, MS_REC | MS_PRIVATE, 0);
}

static long seccomp_call(long operation, long flags, const void *program)
{
	return system_call3(SYS_seccomp, operation, flags, (long)program);
}

/* A decimal number, or -1. */
static long number_of(const char *text)
{
	long value = 0;

	if (!*text)
		return -1;
	for (; *text; text++) {
		if (*text < '0' || *text > '9' || value > CONTROL_FD_MAX)
			return -1;
		value = value * 10 + (*text - '0');
	}
	return value <= CONTROL_FD_MAX ? value : -1;
}

/* Give the listener away, or say that there is none. The caller's socket, the caller's rights. */
static long tell_launcher(long control_fd, long listener)
{
	char message = listener >= 0 ? GUARD_MESSAGE : GUARD_NO_LISTENER;
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec data;
	struct msghdr header;
	long r;

	data.iov_base = &message;
	data.iov_len = 1;
	header.msg_name = 0;
	header.msg_namelen = 0;
	header.msg_iov = &data;
	header.msg_iovlen = 1;
	header.msg_control = listener >= 0 ? control.space : 0;
	header.msg_controllen = listener >= 0 ? sizeof(control.space) : 0;
	header.msg_flags = 0;
	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof(int));
	*(int *)CMSG_DATA(&control.header) = (int)listener;
	r = system_call3(SYS_sendmsg, control_fd, (long)&header, MSG_NOSIGNAL);
	if (listener >= 0)
		system_call1(SYS_close, listener);
	return r == 1 ? 0 : -1;
}

/* The ids first (with set-user-ID root this needs the privilege), then every capability. */
static long drop_privileges(void)
{
	struct capability_header header = {CAPABILITY_VERSION_3, 0};
	struct capability_data none[2] = {{0, 0, 0}, {0, 0, 0}};
	long gid = system_call0(SYS_getgid), uid = system_call0(SYS_getuid);
	long r = system_call3(SYS_setresgid, gid, gid, gid);

	if (r >= 0)
		r = system_call3(SYS_setresuid, uid, uid, uid);
	if (r >= 0)
		r = system_call5(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	if (r >= 0)
		r = system_call2(SYS_capset, (long)&header, (long)none);
	return r;
}

/* Ask the kernel, rather than believe the calls above. */
static int holds_privilege(void)
{
	struct capability_header header = {CAPABILITY_VERSION_3, 0};
	struct capability_data now[2] = {{~0u, ~0u, ~0u}, {~0u, ~0u, ~0u}};

	if (system_call2(SYS_capget, (long)&header, (long)now) < 0)
		return 1;
	if (system_call0(SYS_geteuid) != system_call0(SYS_getuid) ||
	    system_call0(SYS_getegid) != system_call0(SYS_getgid))
		return 1;
	return (now[0].effective | now[0].permitted | now[0].inheritable | now[1].effective |
		now[1].permitted | now[1].inheritable) != 0;
}

int scope_main(long argc, char **argv, char **environment)
{
	long control_fd, listener;

	control_fd = argc < 3 ? -1 : number_of(argv[1]);
	if (control_fd < 0)
		return fail("usage: rootseal-scope CONTROL_FD PROGRAM ARGUMENT... (started by "
			    "rootseal-exec; of no use by hand)");
	if (enter_namespace() < 0)
		return fail(
		    "no private mount namespace: not permitted. Run `sudo make install-helper`.");
	if (system_call5(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return fail("no_new_privs cannot be set; nothing was started.");
	if (guard_install(seccomp_call, &listener) < 0)
		return fail("seccomp filters are not available; the action could leave unseen.");
	if (drop_privileges() < 0 || holds_privilege())
		return fail("the privileges cannot be dropped; nothing was started.");
	if (tell_launcher(control_fd, listener) < 0)
		return fail("no launcher listens, so nothing was started. Start actions with "
			    "rootseal-exec.");
	system_call3(SYS_execve, (long)argv[2], (long)(argv + 2), (long)environment);
	return fail("the launcher cannot be executed. Build again with the same release of both.");
}
