// SPDX-License-Identifier: Apache-2.0
/*
 * The seccomp filter: only the calls of trace_calls.h stop, everything else runs at full speed.
 *
 * Owns: nothing after it returns. Must not: stop a call that the tracer would ignore, let a wanted
 * call pass on any architecture the kernel could run. A foreign architecture (x32, ARM code on
 * aarch64) stops at every call, so that the tracer refuses it loudly.
 *
 *   rs_trace_filter_install ──SECCOMP_RET_TRACE──► rs_trace_run
 *
 * Privilege: none; sets no_new_privs, so that set-user-id programs have no effect.
 */
#include "trace_filter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FILTER_LENGTH_MAX 1024
#define NUMBER_MAX	  512
#define X32_BIT		  0x40000000u
#define NAMESPACE_FLAGS                                                                            \
	(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER |             \
	 CLONE_NEWPID | CLONE_NEWNET)

enum when {
	ALWAYS,
	ARG4_SET,
	ARG1_STDIO,
	ARG2_STDIO,
	PROT_EXEC_SET,
	MMAP_EXEC_SET,
	PRCTL_SET,
	CLONE_SET,
	NEVER,
};
#define WHEN_ALWAYS	     ALWAYS
#define WHEN_WATCHED	     NEVER
#define WHEN_ARG4_SET	     ARG4_SET
#define WHEN_ARG1_STDIO	     ARG1_STDIO
#define WHEN_ARG2_STDIO	     ARG2_STDIO
#define WHEN_PROT_EXEC	     PROT_EXEC_SET
#define WHEN_MMAP_EXEC	     MMAP_EXEC_SET
#define WHEN_PRCTL	     PRCTL_SET
#define WHEN_CLONE_NAMESPACE CLONE_SET

struct call_row {
	const char *name;
	enum when when;
	int16_t numbers[3]; /* x86-64, i386, aarch64 */
};

static const struct call_row rows[RS_CALL_COUNT] = {
    {"", ALWAYS, {-1, -1, -1}},
#define RS_CALL(name, when, x86_64, i386, aarch64) {#name, WHEN_##when, {x86_64, i386, aarch64}},
#include "trace_calls.h"
#undef RS_CALL
};

struct arch {
	uint32_t audit;
	int column;
};

#if defined(__x86_64__)
static const struct arch archs[] = {{AUDIT_ARCH_X86_64, 0}, {AUDIT_ARCH_I386, 1}};
#elif defined(__aarch64__)
static const struct arch archs[] = {{AUDIT_ARCH_AARCH64, 2}};
#endif
#define ARCH_COUNT ((int)(sizeof(archs) / sizeof(archs[0])))

int rs_trace_arch_known(uint32_t audit_arch)
{
	for (int i = 0; i < ARCH_COUNT; i++)
		if (archs[i].audit == audit_arch)
			return 1;
	return 0;
}

enum rs_call rs_trace_call_lookup(uint32_t audit_arch, uint64_t number)
{
	static uint8_t index[ARCH_COUNT][NUMBER_MAX];
	static int ready;

	_Static_assert(RS_CALL_COUNT < 256, "calls are kept in a byte");
	if (!ready) {
		for (int a = 0; a < ARCH_COUNT; a++)
			for (int call = 1; call < RS_CALL_COUNT; call++)
				if (rows[call].numbers[archs[a].column] >= 0)
					index[a][rows[call].numbers[archs[a].column]] =
					    (uint8_t)call;
		ready = 1;
	}
	for (int a = 0; a < ARCH_COUNT; a++)
		if (archs[a].audit == audit_arch)
			return number < NUMBER_MAX ? index[a][number] : RS_CALL_OTHER;
	return RS_CALL_OTHER;
}

const char *rs_trace_call_name(enum rs_call call)
{
	return rows[call].name;
}

struct program {
	struct sock_filter code[FILTER_LENGTH_MAX];
	unsigned short length;
	int overflow;
};

static void add(struct program *p, uint16_t code, uint8_t jt, uint8_t jf, uint32_t k)
{
	if (p->length == FILTER_LENGTH_MAX) {
		p->overflow = 1;
		return;
	}
	p->code[p->length++] = (struct sock_filter){code, jt, jf, k};
}

static void load(struct program *p, size_t offset)
{
	add(p, BPF_LD | BPF_W | BPF_ABS, 0, 0, (uint32_t)offset);
}

/* Low and high word of an argument; both supported byte orders are little-endian. */
static size_t argument(int number, int high)
{
	return offsetof(struct seccomp_data, args) + 8 * (size_t)number + (high ? 4 : 0);
}

static void give(struct program *p, uint32_t action)
{
	add(p, BPF_RET | BPF_K, 0, 0, action);
}

/* Each block ends in a return, so that it needs no join. */
static void add_condition(struct program *p, enum when when)
{
	static const uint32_t options[] = {PR_SET_NAME, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS,
					   PR_SET_SECCOMP};
	const uint32_t trace = SECCOMP_RET_TRACE;

	switch (when) {
	case ALWAYS:
	case NEVER: /* not in the filter: see add_call */
		break;
	case ARG4_SET:
		load(p, argument(4, 0));
		add(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 3, 0);
		load(p, argument(4, 1));
		add(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0);
		give(p, SECCOMP_RET_ALLOW);
		break;
	case ARG1_STDIO:
		load(p, argument(1, 0));
		add(p, BPF_JMP | BPF_JGT | BPF_K, 0, 1, STDERR_FILENO);
		give(p, SECCOMP_RET_ALLOW);
		break;
	case ARG2_STDIO: /* F_DUPFD and F_DUPFD_CLOEXEC, from there on */
		load(p, argument(1, 0));
		add(p, BPF_JMP | BPF_JEQ | BPF_K, 2, 0, F_DUPFD);
		add(p, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, F_DUPFD_CLOEXEC);
		give(p, SECCOMP_RET_ALLOW);
		load(p, argument(2, 0));
		add(p, BPF_JMP | BPF_JGT | BPF_K, 0, 1, STDERR_FILENO);
		give(p, SECCOMP_RET_ALLOW);
		break;
	case MMAP_EXEC_SET: /* i386: one argument, a pointer; handled by the tracer */
	case PROT_EXEC_SET:
		load(p, argument(2, 0));
		add(p, BPF_JMP | BPF_JSET | BPF_K, 1, 0, PROT_EXEC);
		give(p, SECCOMP_RET_ALLOW);
		break;
	case CLONE_SET:
		load(p, argument(0, 0));
		add(p, BPF_JMP | BPF_JSET | BPF_K, 1, 0, NAMESPACE_FLAGS | CLONE_UNTRACED);
		give(p, SECCOMP_RET_ALLOW);
		break;
	case PRCTL_SET:
		load(p, argument(0, 0));
		for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
			add(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, options[i]);
			give(p, trace);
		}
		give(p, SECCOMP_RET_ALLOW);
		return;
	}
	give(p, trace);
}

static void add_call(struct program *p, const struct arch *arch, const struct call_row *row)
{
	int number = row->numbers[arch->column];
	enum when when = row->when;
	unsigned short jump = p->length;

	if (number < 0 || when == NEVER)
		return;
	if (when == MMAP_EXEC_SET && arch->column == 1)
		when = ALWAYS;
	add(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, (uint32_t)number);
	add_condition(p, when);
	if (!p->overflow)
		p->code[jump].jf = (uint8_t)(p->length - jump - 1);
}

/*
 * if arch is this one: [x32: trace everything] compare with each call; allow.
 * The skip over one architecture's block is longer than a conditional jump reaches: use JA.
 */
static void add_arch(struct program *p, const struct arch *arch)
{
	unsigned short skip;

	load(p, offsetof(struct seccomp_data, arch));
	add(p, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, arch->audit);
	skip = p->length;
	add(p, BPF_JMP | BPF_JA, 0, 0, 0);
	load(p, offsetof(struct seccomp_data, nr));
	if (arch->audit == AUDIT_ARCH_X86_64) {
		add(p, BPF_JMP | BPF_JSET | BPF_K, 0, 1, X32_BIT);
		give(p, SECCOMP_RET_TRACE);
	}
	for (int call = 1; call < RS_CALL_COUNT; call++)
		add_call(p, arch, &rows[call]);
	give(p, SECCOMP_RET_ALLOW);
	if (!p->overflow)
		p->code[skip].k = p->length - skip - 1u;
}

int rs_trace_filter_install(void)
{
	struct program program = {.length = 0};
	struct sock_fprog fprog;

	for (int a = 0; a < ARCH_COUNT; a++)
		add_arch(&program, &archs[a]);
	give(&program, SECCOMP_RET_TRACE);
	if (program.overflow)
		return -E2BIG;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	fprog = (struct sock_fprog){program.length, program.code};
	/* SPEC_ALLOW: the filter is no boundary against side channels, and costs nothing that way.
	 */
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &fprog))
		return -errno;
	return 0;
}
