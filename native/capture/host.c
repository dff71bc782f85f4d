/*
 * host.c: what the engine needs of its process and its kernel.
 *
 * Owns: nothing. Must not: fail; what cannot be had is shown where it is missed. Hands off:
 * nothing. Privilege: CAP_SYS_RESOURCE, to raise the hard limit of open files.
 */
#include "core.h"

#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/utsname.h>

#define OPEN_FILES_WANTED 65536

/* Each event being handled holds a descriptor; running out of them would refuse an action's open.
 */
static void raise_open_files(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return;
	if (limit.rlim_max < OPEN_FILES_WANTED) {
		struct rlimit higher = {OPEN_FILES_WANTED, OPEN_FILES_WANTED};

		if (!setrlimit(RLIMIT_NOFILE, &higher))
			return;
	}
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

/* A lease that a writer breaks while we hold it sends SIGIO, whose default would end the process.
 */
static void ignore_sigio(void)
{
	struct sigaction action;

	if (sigaction(SIGIO, NULL, &action) == 0 && action.sa_handler == SIG_DFL) {
		action.sa_handler = SIG_IGN;
		sigaction(SIGIO, &action, NULL);
	}
}

/* Since 6.13 a change after a stat always gets another ctime on ext4, xfs and btrfs. */
bool rs_host_multigrain(void)
{
	struct utsname name;
	int major, minor;

	if (uname(&name) || sscanf(name.release, "%d.%d", &major, &minor) != 2)
		return false;
	return major > 6 || (major == 6 && minor >= 13);
}

void rs_host_prepare(void)
{
	raise_open_files();
	ignore_sigio();
}
