// SPDX-License-Identifier: Apache-2.0
/*
 * Makes a held system call not happen. Own file: the registers differ by machine.
 *
 * Owns: nothing. Privilege: tracer of the task, which is in its seccomp stop.
 */
#include "trace_internal.h"

#include <elf.h>
#include <errno.h>
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>

#if defined(__x86_64__)
int rs_skip_call(pid_t tid, int64_t result)
{
	if (ptrace(PTRACE_POKEUSER, tid, offsetof(struct user, regs.orig_rax), -1L) < 0 ||
	    ptrace(PTRACE_POKEUSER, tid, offsetof(struct user, regs.rax), (long)result) < 0)
		return -errno;
	return 0;
}
#elif defined(__aarch64__)
#define NT_ARM_SYSTEM_CALL_SET 0x404

int rs_skip_call(pid_t tid, int64_t result)
{
	int number = -1;
	struct user_regs_struct regs;
	struct iovec call = {&number, sizeof(number)}, all = {&regs, sizeof(regs)};

	if (ptrace(PTRACE_SETREGSET, tid, NT_ARM_SYSTEM_CALL_SET, &call) < 0 ||
	    ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &all) < 0)
		return -errno;
	regs.regs[0] = (unsigned long long)result;
	return ptrace(PTRACE_SETREGSET, tid, NT_PRSTATUS, &all) < 0 ? -errno : 0;
}
#endif
