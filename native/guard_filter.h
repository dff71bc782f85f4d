/*
 * guard_filter.h: the seccomp filter of a captured action: calls that lead to files which the
 * capture's marks do not cover are told to the launcher (or refused, where nobody can be told).
 *
 * Installed with CAP_SYS_ADMIN, so that it needs no no_new_privs and set-user-ID programs keep
 * their meaning. The filter looks at numbers in registers only, never at memory: what it decides
 * cannot change afterwards. Shared by rootseal-exec and rootseal-scope (which has no C library).
 *
 * Told: clone, unshare and setns that make or enter a mount namespace; mount, move_mount, fsmount
 * and open_tree with OPEN_TREE_CLONE; pidfd_getfd (a file opened elsewhere). Refused with ENOSYS:
 * clone3, whose flags lie in memory (every C library falls back to clone), and calls of an unknown
 * machine.
 */
#pragma once

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

#define GUARD_MESSAGE	      'G' /* of the helper to the launcher: the listener comes with it */
#define GUARD_NO_LISTENER     'R' /* the same: the calls are refused, so there is none */
#define GUARD_NEWNS	      0x00020000
#define GUARD_OPEN_TREE_CLONE 1
#define GUARD_ENOSYS	      38
#define GUARD_EPERM	      1
#define GUARD_SECTION_LENGTH  39

#define GUARD_LOAD(field)                                                                          \
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, __builtin_offsetof(struct seccomp_data, field))
#define GUARD_RETURN(value)    BPF_STMT(BPF_RET | BPF_K, (value))
#define GUARD_IF(number, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (number), 0, (skip))

/* 2, 5 and 6 instructions. */
#define GUARD_ALWAYS(number, action) GUARD_IF(number, 1), GUARD_RETURN(action)
#define GUARD_IF_BIT(number, argument, bits, action)                                               \
	GUARD_IF(number, 4), GUARD_LOAD(args[argument]),                                           \
	    BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (bits), 0, 1), GUARD_RETURN(action),              \
	    GUARD_RETURN(SECCOMP_RET_ALLOW)
#define GUARD_IF_BIT_OR_ZERO(number, argument, bits, action)                                       \
	GUARD_IF(number, 5), GUARD_LOAD(args[argument]),                                           \
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0),                                          \
	    BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (bits), 0, 1), GUARD_RETURN(action),              \
	    GUARD_RETURN(SECCOMP_RET_ALLOW)

/*
 * GUARD_SECTION_LENGTH instructions. The numbers from 424 on are the same on every machine. Bit 30
 * marks x32 calls, which have the numbers of x86-64 here.
 */
#define GUARD_SECTION(clone, unshare, setns, mount, action)                                        \
	GUARD_LOAD(nr), BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xbfffffff),                           \
	    GUARD_ALWAYS(435 /* clone3 */, SECCOMP_RET_ERRNO | GUARD_ENOSYS),                      \
	    GUARD_IF_BIT(clone, 0, GUARD_NEWNS, action),                                           \
	    GUARD_IF_BIT(unshare, 0, GUARD_NEWNS, action),                                         \
	    GUARD_IF_BIT_OR_ZERO(setns, 1, GUARD_NEWNS, action), GUARD_ALWAYS(mount, action),      \
	    GUARD_ALWAYS(429 /* move_mount */, action), GUARD_ALWAYS(432 /* fsmount */, action),   \
	    GUARD_IF_BIT(428 /* open_tree */, 2, GUARD_OPEN_TREE_CLONE, action),                   \
	    GUARD_IF_BIT(467 /* open_tree_attr */, 2, GUARD_OPEN_TREE_CLONE, action),              \
	    GUARD_ALWAYS(438 /* pidfd_getfd */, action), GUARD_RETURN(SECCOMP_RET_ALLOW)

#if defined(__x86_64__)
#define GUARD_NATIVE	     AUDIT_ARCH_X86_64
#define GUARD_NATIVE_CLONE   56
#define GUARD_NATIVE_UNSHARE 272
#define GUARD_NATIVE_SETNS   308
#define GUARD_NATIVE_MOUNT   165
#define GUARD_COMPAT	     AUDIT_ARCH_I386
#define GUARD_COMPAT_UNSHARE 310
#define GUARD_COMPAT_SETNS   346
#elif defined(__aarch64__)
#define GUARD_NATIVE	     AUDIT_ARCH_AARCH64
#define GUARD_NATIVE_CLONE   220
#define GUARD_NATIVE_UNSHARE 97
#define GUARD_NATIVE_SETNS   268
#define GUARD_NATIVE_MOUNT   40
#define GUARD_COMPAT	     AUDIT_ARCH_ARM
#define GUARD_COMPAT_UNSHARE 337
#define GUARD_COMPAT_SETNS   375
#endif
#define GUARD_COMPAT_CLONE 120
#define GUARD_COMPAT_MOUNT 21

#define GUARD_PROGRAM(action)                                                                      \
	GUARD_LOAD(arch),                                                                          \
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, GUARD_NATIVE, GUARD_SECTION_LENGTH + 2, 0),        \
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, GUARD_COMPAT, 1, 0),                               \
	    GUARD_RETURN(SECCOMP_RET_ERRNO | GUARD_ENOSYS),                                        \
	    GUARD_SECTION(GUARD_COMPAT_CLONE, GUARD_COMPAT_UNSHARE, GUARD_COMPAT_SETNS,            \
			  GUARD_COMPAT_MOUNT, action),                                             \
	    GUARD_SECTION(GUARD_NATIVE_CLONE, GUARD_NATIVE_UNSHARE, GUARD_NATIVE_SETNS,            \
			  GUARD_NATIVE_MOUNT, action)

static const struct sock_filter guard_telling[] = {GUARD_PROGRAM(SECCOMP_RET_USER_NOTIF)};
/* Where another listener watches already (-EBUSY): what nobody can be told is refused. */
static const struct sock_filter guard_refusing[] = {GUARD_PROGRAM(SECCOMP_RET_ERRNO | GUARD_EPERM)};

_Static_assert(sizeof(guard_telling) / sizeof(*guard_telling) == 4 + 2 * GUARD_SECTION_LENGTH,
	       "the jump to the native section counts its instructions");

/*
 * Install it in this process through `call`: seccomp(2), raw. *ret_listener: a descriptor, or -1
 * where the calls are refused instead. 0 or -errno.
 */
static inline long guard_install(long (*call)(long operation, long flags, const void *program),
				 long *ret_listener)
{
	const struct sock_fprog telling = {sizeof(guard_telling) / sizeof(*guard_telling),
					   (struct sock_filter *)guard_telling};
	const struct sock_fprog refusing = {sizeof(guard_refusing) / sizeof(*guard_refusing),
					    (struct sock_filter *)guard_refusing};
	long r = call(SECCOMP_SET_MODE_FILTER,
		      SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_SPEC_ALLOW, &telling);

	*ret_listener = r >= 0 ? r : -1;
	if (r >= 0)
		return 0;
	r = call(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &refusing);
	return r < 0 ? r : 0;
}
