// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * CO-RE adaptor of trace.h: loaded by libbpf, relocated against the running kernel's BTF.
 */
#include <linux/bpf.h>

#include "kernel_types.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "event.h"

#define RS_FN		static __noinline
#define RS_GLOBAL	__noinline
#define RS_LSM_OPENS	rs_lsm_opens
#define RS_WALK_ROUNDS	RS_WALK_DEPTH
#define RS_CHUNK_ROUNDS RS_CHUNK_COUNT

/* Set by the loader before it loads: opens come from lsm/file_open, sys_exit leaves them out. */
const volatile __u32 rs_lsm_opens = 0;

/* A typed, relocated reader per field of fields.h. */
#define RS_FIELD(id, type, member)                                                                 \
	static __always_inline int rs_get_##id(const void *from, void *to, u32 bytes)              \
	{                                                                                          \
		return (int)bpf_core_read(to, bytes, &((const struct type *)from)->member);        \
	}
#include "fields.h"
#undef RS_FIELD

#define RS_GET(id, from, to)		    rs_get_##id(from, to, sizeof(*(to)))
#define rs_offset_mount_mnt		    bpf_core_field_offset(struct mount, mnt)
#define RS_OFFSET(id)			    rs_offset_##id
#define RS_LOOKUP(map, key)		    bpf_map_lookup_elem(&map, key)
#define RS_UPDATE(map, key, value)	    bpf_map_update_elem(&map, key, value, BPF_ANY)
#define RS_DELETE(map, key)		    bpf_map_delete_elem(&map, key)
#define RS_READ_USER(to, bytes, from)	    bpf_probe_read_user(to, bytes, from)
#define RS_READ_USER_STR(to, bytes, from)   bpf_probe_read_user_str(to, bytes, from)
#define RS_READ_KERNEL(to, bytes, from)	    bpf_probe_read_kernel(to, bytes, from)
#define RS_READ_KERNEL_STR(to, bytes, from) bpf_probe_read_kernel_str(to, bytes, from)
#define RS_OUTPUT(data, bytes)		    rs_output(data, bytes)

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 24); /* set by the loader */
} rs_ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, RS_MEMBERS_MAX);
	__type(key, __u32);
	__type(value, struct rs_member);
} rs_members SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RS_SCOPE_SLOTS *RS_LOSS_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} rs_losses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, RS_WRITES_MAX);
	__type(key, struct rs_write_key);
	__type(value, struct rs_write_sum);
} rs_writes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, RS_CONNS_MAX);
	__type(key, struct rs_conn_key);
	__type(value, __u32);
} rs_conns SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RS_PROGRAM_COUNT);
	__type(key, __u32);
	__type(value, struct rs_scratch);
} rs_scratches SEC(".maps");

/* Call number -> enum rs_call, filled by the loader from the system's headers. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RS_CALL_TABLE);
	__type(key, __u32);
	__type(value, struct rs_call_ids);
} rs_calls SEC(".maps");

static __always_inline long rs_output(void *data, u64 bytes)
{
	u64 flags = BPF_RB_NO_WAKEUP;

	/*
	 * The consumer is woken when a quarter is full, or at once where it has a file to hash; a
	 * scope that ends empties the ring itself.
	 */
	if (((const struct rs_event *)data)->type == RS_EVENT_OPEN_PATH ||
	    bpf_ringbuf_query(&rs_ring, BPF_RB_AVAIL_DATA) >=
		bpf_ringbuf_query(&rs_ring, BPF_RB_RING_SIZE) / 4)
		flags = BPF_RB_FORCE_WAKEUP;
	return bpf_ringbuf_output(&rs_ring, data, bytes, flags);
}

/* Order matters: each uses those before it. */
#include "trace_core.h"
#include "trace_process.h"
#include "trace_net.h"
#include "trace_file.h"
#include "trace_call.h"

SEC("tp_btf/sched_process_fork")
int BPF_PROG(trace_fork, struct task_struct *parent, struct task_struct *child)
{
	return rs_on_fork(parent, child);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(trace_exec, struct task_struct *task, int old_pid, struct linux_binprm *binprm)
{
	return rs_on_exec(task, binprm);
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(trace_exit, struct task_struct *task)
{
	return rs_on_exit_process(task);
}

SEC("tp_btf/sys_exit")
int BPF_PROG(trace_call, struct pt_regs *saved, long result)
{
	struct rs_regs regs = {};
	struct rs_call_ids *ids;
	struct rs_member *member;
	u32 number;

#if defined(__TARGET_ARCH_x86)
	number = (u32)saved->orig_ax;
#else
	number = (u32)saved->syscallno;
#endif
	ids = bpf_map_lookup_elem(&rs_calls, &number);
#if defined(__TARGET_ARCH_x86)
	if (!ids && (number & 0xc0000000) == 0x40000000) { /* x32: numbers of its own */
		member = rs_member_get();
		if (!member)
			return 0;
		regs.id = RS_CALL_FOREIGN_ABI;
		regs.scope = member->scope;
		rs_on_call(&regs);
		return 0;
	}
#endif
	if (!ids || (!ids->native && !ids->compat)) /* most calls of most processes end here */
		return 0;
	member = rs_member_get();
	if (!member)
		return 0;
	regs.scope = member->scope;
	regs.paths = member->paths;
	regs.result = result;
#if defined(__TARGET_ARCH_x86)
	regs.compat =
	    (BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), thread_info.status) & 2) !=
	    0;
	if (regs.compat) { /* TS_COMPAT: entered through the 32-bit gate */
		regs.id = ids->compat;
		regs.a[0] = (u32)saved->bx;
		regs.a[1] = (u32)saved->cx;
		regs.a[2] = (u32)saved->dx;
		regs.a[3] = (u32)saved->si;
		regs.a[4] = (u32)saved->di;
		regs.a[5] = (u32)saved->bp;
	} else {
		regs.id = ids->native;
		regs.a[0] = saved->di;
		regs.a[1] = saved->si;
		regs.a[2] = saved->dx;
		regs.a[3] = saved->r10;
		regs.a[4] = saved->r8;
		regs.a[5] = saved->r9;
	}
#else
	regs.id = ids->native;
	if (BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), thread_info.flags) &
	    (1 << 22))
		regs.id = RS_CALL_FOREIGN_ABI; /* TIF_32BIT */
	regs.a[0] = saved->orig_x0;
	regs.a[1] = saved->regs[1];
	regs.a[2] = saved->regs[2];
	regs.a[3] = saved->regs[3];
	regs.a[4] = saved->regs[4];
	regs.a[5] = saved->regs[5];
#endif
#if defined(__TARGET_ARCH_x86)
	if (rs_was_trapped(result, saved->orig_ax))
		return 0;
#else
	if (rs_was_trapped(result, saved->orig_x0))
		return 0;
#endif
	rs_dispatch(&regs);
	return 0;
}

/*
 * Optional: kernels name this tracepoint differently and give it other arguments, some have none.
 * The loader picks by both (native/trace/loader.c).
 */
SEC("?tp_btf/io_uring_submit_req") /* 6.3 and later */
int BPF_PROG(trace_ring, struct io_kiocb *request)
{
	return rs_on_ring_request(BPF_CORE_READ(request, opcode));
}

SEC("?tp_btf/io_uring_submit_sqe") /* 5.19 to 6.2 */
int BPF_PROG(trace_ring_sqe, struct io_kiocb *request)
{
	return rs_on_ring_request(BPF_CORE_READ(request, opcode));
}

SEC("?tp_btf/io_uring_submit_sqe") /* 5.15 to 5.18 */
int BPF_PROG(trace_ring_old, void *context, struct io_kiocb *request)
{
	return rs_on_ring_request(BPF_CORE_READ(request, opcode));
}

/* Optional: where BPF is one of the kernel's security modules. It never refuses anything. */
SEC("?lsm/file_open")
int BPF_PROG(trace_file_open, struct file *file)
{
	struct rs_member *member = rs_member_get();

	if (member)
		rs_on_file_open(file, member->scope);
	return 0;
}

/* The helpers that read kernel memory are for GPL-compatible programs. */
char LICENSE[] SEC("license") = "GPL";
