/*
 * privilege.c: what power the launcher has, and how it gives it up.
 *
 * Entry: whatever the caller had. After privileges_drop: the wanted uid, gid and groups, no
 * capability in any set but the bounding set (setuid programs keep their meaning), and no securebit
 * that would keep one. Raw system calls
 * for capabilities, so that no library is needed.
 */
#include "launcher.h"

#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define CAPABILITY_VERSION_3 0x20080522
#define CAP_SYS_ADMIN_BIT    (1u << 21)
/* securebits: bit 2 keeps capabilities across a change of the ids, bit 3 locks it as it is. */
#define NO_SETUID_FIXUP	       (1 << 2)
#define NO_SETUID_FIXUP_LOCKED (1 << 3)

struct capability_header {
	uint32_t version;
	int pid;
};

struct capability_data {
	uint32_t effective;
	uint32_t permitted;
	uint32_t inheritable;
};

bool have_sys_admin(void)
{
	struct capability_header header = {CAPABILITY_VERSION_3, 0};
	struct capability_data data[2] = {0};

	if (syscall(SYS_capget, &header, data) < 0)
		return false;
	return data[0].effective & CAP_SYS_ADMIN_BIT;
}

static int drop_capabilities(void)
{
	struct capability_header header = {CAPABILITY_VERSION_3, 0};
	struct capability_data data[2] = {0};

	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		return -errno;
	return syscall(SYS_capset, &header, data) < 0 ? -errno : 0;
}

/*
 * With this bit, a set-user-ID program of the action that gives up its root would keep root's
 * capabilities. The bits that only restrict stay; so does a locked one, which nobody can change.
 */
static int drop_setuid_exception(void)
{
	int bits = prctl(PR_GET_SECUREBITS, 0, 0, 0, 0);

	if (bits < 0)
		return -errno;
	if (!(bits & NO_SETUID_FIXUP) || (bits & NO_SETUID_FIXUP_LOCKED))
		return 0;
	return prctl(PR_SET_SECUREBITS, bits & ~NO_SETUID_FIXUP, 0, 0, 0) < 0 ? -errno : 0;
}

int privileges_drop(const struct drop_to *drop)
{
	int r;

	if (!drop->wanted)
		return 0;
	r = drop_setuid_exception();
	if (r < 0)
		return r;
	if (setgroups(drop->group_count, drop->groups) < 0)
		return -errno;
	if (setresgid(drop->gid, drop->gid, drop->gid) < 0)
		return -errno;
	if (setresuid(drop->uid, drop->uid, drop->uid) < 0)
		return -errno;
	return drop_capabilities();
}

/* Cleared by the kernel at each change of credentials, so it is asked for again after each. */
int die_with_parent(pid_t parent_pid)
{
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
		return -errno;
	return getppid() == parent_pid ? 0 : -ESRCH; /* it died before we asked */
}
