// SPDX-License-Identifier: Apache-2.0
/*
 * What guard.c does with a listener, done by the tracer where fanotify holds the opens too: calls
 * that lead to files which the marks do not cover are counted before they go on. Kept equal to
 * guard_filter.h (tests/kernel/test_backends.py runs the same calls under both).
 *
 * Owns: tracer.escapes, tracer.mounts. Must not: trust flags that lie in the caller's memory:
 * clone3 is refused, and every C library falls back to clone.
 *
 *   seccomp stop ──► here ──► trace_loop.c
 *
 * Privilege: none.
 */
#include "trace_internal.h"

#include "mount_flags.h"

#include <errno.h>
#include <linux/sched.h>

#define TREE_CLONE 1u /* OPEN_TREE_CLONE */

/* Returns 1 if the call (clone3 alone) must not run: it fails with *ret_result. */
int rs_guard_call(struct rs_tracer *t, const struct rs_task *task, int64_t *ret_result)
{
	const uint64_t *a = task->args;

	switch (task->call) {
	case RS_CALL_clone3:
		*ret_result = -ENOSYS;
		return 1;
	case RS_CALL_clone:
	case RS_CALL_unshare:
		t->escapes += (a[0] & CLONE_NEWNS) != 0;
		return 0;
	case RS_CALL_setns:
		t->escapes += (uint32_t)a[1] == 0 || a[1] & CLONE_NEWNS;
		return 0;
	case RS_CALL_pidfd_getfd:
		t->escapes++;
		return 0;
	case RS_CALL_mount:
		t->mounts += !makes_no_mount(a[3] & 0xffffffff);
		return 0;
	case RS_CALL_move_mount:
	case RS_CALL_fsmount:
		t->mounts++;
		return 0;
	case RS_CALL_open_tree:
	case RS_CALL_open_tree_attr:
		t->mounts += (a[2] & TREE_CLONE) != 0;
		return 0;
	default:
		return 0;
	}
}
