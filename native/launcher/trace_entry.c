// SPDX-License-Identifier: Apache-2.0
/*
 * A call begins and its task is held: is it refused, and can it be noted without waiting for its
 * end?
 *
 * Owns: nothing. Must not: let a call run that could hide opens from the tracer.
 *
 *   seccomp stop ──► here ──► trace_note.c, trace_guard.c, trace_regs.c
 *
 * Privilege: tracer of the task.
 */
#include "trace_internal.h"

#include <errno.h>
#include <linux/sched.h>
#include <string.h>
#include <sys/prctl.h>

#define NEWTIME_FLAG 0x80u /* CLONE_NEWTIME: clone3 and unshare only */
#define NAMESPACES                                                                                 \
	(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER |             \
	 CLONE_NEWPID | CLONE_NEWNET | NEWTIME_FLAG)
#define LISTENER_FLAG (1u << 3) /* SECCOMP_FILTER_FLAG_NEW_LISTENER */

static uint64_t flags_of_clone(const struct rs_task *task)
{
	uint64_t flags = 0; /* struct clone_args begins with them */

	if (task->call != RS_CALL_clone3)
		return task->args[0];
	if (rs_read_memory(task->tid, task->args[0], &flags, sizeof(flags)) < 0)
		return 0; /* the call fails with EFAULT too */
	return flags;
}

/* Noted if it makes a namespace; the first argument becomes those flags. */
static void note_clone3(struct rs_tracer *t, struct rs_task *task, int64_t result, uint8_t verdict)
{
	task->args[0] = flags_of_clone(task) & NAMESPACES;
	if (task->args[0] != 0)
		rs_note(t, task, result, verdict);
}

/* Calls that do not run. Returns 1 if this is one. */
static int deny(struct rs_tracer *t, struct rs_task *task)
{
	int64_t result = 0;
	uint64_t clone_flags;
	uint8_t flags = RS_TRACE_SYSCALL_DENIED;

	if (t->config->guards && rs_guard_call(t, task, &result)) {
		if (rs_skip_call(task->tid, result) < 0)
			rs_lost(t, RS_TRACE_LOSS_TRACER, rs_process_of(t, task)->number,
				rs_trace_call_name(task->call));
		note_clone3(t, task, result, flags);
		return 1;
	}
	switch (task->call) {
	case RS_CALL_io_uring_setup:
	case RS_CALL_io_uring_enter:
	case RS_CALL_io_uring_register:
		/* As with kernel.io_uring_disabled=2: programs fall back to ordinary calls. */
		result = -EPERM;
		rs_counted(t, RS_TRACE_C_EXCLUDED_IO_URING);
		break;
	case RS_CALL_seccomp:
		/* A supervisor could let calls continue past our filter. */
		if (task->args[0] != 1 || !(task->args[1] & LISTENER_FLAG))
			return 0;
		result = -EINVAL;
		break;
	case RS_CALL_clone:
	case RS_CALL_clone3:
		/* Nobody would follow its child, which could still execute programs. */
		clone_flags = flags_of_clone(task);
		if (!(clone_flags & CLONE_UNTRACED))
			return 0;
		task->args[0] = clone_flags & NAMESPACES & ~(uint64_t)NEWTIME_FLAG;
		result = -EPERM;
		break;
	case RS_CALL_prctl:
		/* An undumpable process hides its files from its tracer as well. */
		if (task->args[0] != PR_SET_DUMPABLE || task->args[1] == 1)
			return 0;
		flags = RS_TRACE_SYSCALL_SKIPPED;
		break;
	default:
		return 0;
	}
	if (rs_skip_call(task->tid, result) < 0)
		rs_lost(t, RS_TRACE_LOSS_TRACER, rs_process_of(t, task)->number,
			rs_trace_call_name(task->call));
	rs_note(t, task, result, flags);
	return 1;
}

/* Calls that are noted without waiting for their result. Returns 1 if this is one. */
static int note_at_entry(struct rs_tracer *t, struct rs_task *task)
{
	switch (task->call) {
	case RS_CALL_clone3:
		note_clone3(t, task, RS_TRACE_RESULT_UNKNOWN, 0);
		return 0; /* its end tells whether the child is followed */
	case RS_CALL_clone:
		task->args[0] &= NAMESPACES & ~(uint64_t)NEWTIME_FLAG; /* CSIGNAL bits there */
		break;
	case RS_CALL_dup2:
	case RS_CALL_dup3:
		if (!rs_is_socket(task->tid, (int)task->args[0]))
			return 1;
		break;
	case RS_CALL_mmap:
		if (task->arch != RS_ARCH_NATIVE) { /* i386: a pointer to the arguments */
			uint32_t words[4] = {0};

			if (rs_read_memory(task->tid, task->args[0], words, sizeof(words)) < 0 ||
			    !(words[2] & 4))
				return 1;
			task->args[2] = words[2];
			task->args[3] = words[3];
		}
		break;
	case RS_CALL_mmap2:
	case RS_CALL_mprotect:
	case RS_CALL_pkey_mprotect:
	case RS_CALL_prctl:
	case RS_CALL_copy_file_range:
	case RS_CALL_splice:
	case RS_CALL_sendfile:
	case RS_CALL_sendfile64:
	case RS_CALL_uselib:
		break;
	default:
		return 0;
	}
	rs_note(t, task, RS_TRACE_RESULT_UNKNOWN, 0);
	return 1;
}

/* Returns 1 if nothing is to be done when the call ends. */
int rs_call_begun(struct rs_tracer *t, struct rs_task *task)
{
	return deny(t, task) || note_at_entry(t, task);
}
