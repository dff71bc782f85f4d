/*
 * BCC adaptor of trace_core.h, for hosts whose kernel has no BTF: compiled on the host by
 * bcc_loader.py.
 *
 * The maps are made by the daemon; their descriptors come as -DRS_FD_*. Offsets of kernel fields
 * come as -DRS_OFFSET_* (from BTF), or from the running kernel's headers with
 * -DRS_OFFSETS_FROM_HEADERS.
 */
#include <linux/types.h>
#include <uapi/linux/bpf.h>
#include <uapi/linux/ptrace.h>

#include "event.h"

#define RS_FN		static __always_inline
#define RS_GLOBAL	static __always_inline
#define RS_LSM_OPENS	0
#define RS_WALK_ROUNDS	64 /* everything is inlined here: the verifier sees each round anew */
#define RS_CHUNK_ROUNDS 32

#ifdef RS_OFFSETS_FROM_HEADERS
#include <linux/binfmts.h>
#include <linux/dcache.h>
#include <linux/fdtable.h>
#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/mm_types.h>
#include <linux/mount.h>
#include <linux/net.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <net/sock.h>

/* fs/mount.h is not among the installed headers; these members have had these places since 3.13. */
struct mount {
	struct hlist_node mnt_hash;
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

enum {
#define RS_FIELD(id, type, member) RS_OFFSET_##id = offsetof(struct type, member),
#include "fields.h"
#undef RS_FIELD
};
#endif

#define RS_OFFSET(id) RS_OFFSET_##id
#define RS_GET(id, from, to)                                                                       \
	((int)bpf_probe_read_kernel(to, sizeof(*(to)), (u8 *)(from) + RS_OFFSET(id)))
#define rs_members			    RS_FD_MEMBERS
#define rs_losses			    RS_FD_LOSSES
#define rs_writes			    RS_FD_WRITES
#define rs_calls			    RS_FD_CALLS
#define rs_conns			    RS_FD_CONNS
#define rs_scratches			    RS_FD_SCRATCHES
#define RS_MAP(map)			    ((void *)bpf_pseudo_fd(1, map))
#define RS_LOOKUP(map, key)		    bpf_map_lookup_elem_((u64)RS_MAP(map), key)
#define RS_UPDATE(map, key, value)	    bpf_map_update_elem_((u64)RS_MAP(map), key, value, BPF_ANY)
#define RS_DELETE(map, key)		    bpf_map_delete_elem_((u64)RS_MAP(map), key)
#define RS_READ_USER(to, bytes, from)	    bpf_probe_read_user(to, bytes, from)
#define RS_READ_USER_STR(to, bytes, from)   bpf_probe_read_user_str(to, bytes, from)
#define RS_READ_KERNEL(to, bytes, from)	    bpf_probe_read_kernel(to, bytes, from)
#define RS_READ_KERNEL_STR(to, bytes, from) bpf_probe_read_kernel_str(to, bytes, from)
#define RS_OUTPUT(data, bytes)		    rs_output(data, bytes)

static __always_inline long rs_output(void *data, u64 bytes)
{
	u64 flags = BPF_RB_NO_WAKEUP;

	if (((const struct rs_event *)data)->type == RS_EVENT_OPEN_PATH ||
	    bpf_ringbuf_query(RS_MAP(RS_FD_RING), BPF_RB_AVAIL_DATA) >=
		bpf_ringbuf_query(RS_MAP(RS_FD_RING), BPF_RB_RING_SIZE) / 4)
		flags = BPF_RB_FORCE_WAKEUP;
	return bpf_ringbuf_output(RS_MAP(RS_FD_RING), data, bytes, flags);
}

/* Order matters: each uses those before it. */
#include "trace_core.h"
#include "trace_process.h"
#include "trace_net.h"
#include "trace_file.h"
#include "trace_call.h"

int trace_fork(struct bpf_raw_tracepoint_args *context)
{
	return rs_on_fork((void *)context->args[0], (void *)context->args[1]);
}

int trace_exec(struct bpf_raw_tracepoint_args *context)
{
	return rs_on_exec((void *)context->args[0], (void *)context->args[2]);
}

int trace_exit(struct bpf_raw_tracepoint_args *context)
{
	return rs_on_exit_process((void *)context->args[0]);
}

#if defined(__x86_64__)
#define RS_NUMBER    orig_ax
#define RS_PUT_BACK  orig_ax
#define RS_ARGUMENTS di, si, dx, r10, r8, r9
#define RS_COMPAT    bx, cx, dx, si, di, bp
#else
#define RS_NUMBER    syscallno
#define RS_PUT_BACK  orig_x0
#define RS_ARGUMENTS orig_x0, regs[1], regs[2], regs[3], regs[4], regs[5]
#endif

#define RS_SAVED(to, member)                                                                       \
	bpf_probe_read_kernel(to, sizeof(*(to)), (u8 *)saved + offsetof(struct pt_regs, member))
#define RS_SAVED_ALL(to, a, b, c, d, e, f)                                                         \
	(RS_SAVED((to) + 0, a), RS_SAVED((to) + 1, b), RS_SAVED((to) + 2, c),                      \
	 RS_SAVED((to) + 3, d), RS_SAVED((to) + 4, e), RS_SAVED((to) + 5, f))
#define RS_SAVED_LIST(to, list) RS_SAVED_ALL(to, list)

/* Call and arguments from the saved registers; 0 if the call is not of interest. */
static __always_inline int rs_fill(struct rs_regs *regs, void *saved, s64 result)
{
	struct rs_call_ids *ids;
	struct rs_member *member;
	u32 number = 0;

	RS_SAVED(&number, RS_NUMBER);
	ids = RS_LOOKUP(rs_calls, &number);
#if defined(__x86_64__)
	if (!ids && (number & 0xc0000000) == 0x40000000) { /* x32: numbers of its own */
		member = rs_member_get();
		if (!member)
			return 0;
		regs->scope = member->scope;
		regs->id = RS_CALL_FOREIGN_ABI;
		return 1;
	}
#endif
	if (!ids || (!ids->native && !ids->compat))
		return 0;
	member = rs_member_get();
	if (!member)
		return 0;
	regs->scope = member->scope;
	regs->result = result;
	regs->paths = member->paths;
	regs->id = ids->native;
#if defined(__x86_64__)
	{
		u32 status = 0;

		RS_GET(task_status, (void *)bpf_get_current_task(), &status);
		regs->compat = (status & 2) != 0;
	}
	if (regs->compat) { /* TS_COMPAT: entered through the 32-bit gate */
		regs->id = ids->compat;
		RS_SAVED_LIST(regs->a, RS_COMPAT);
		for (int i = 0; i < 6; i++)
			regs->a[i] = (u32)regs->a[i];
		rs_compat_call(regs);
		return 1;
	}
#endif
	RS_SAVED_LIST(regs->a, RS_ARGUMENTS);
	return 1;
}

static __always_inline int rs_on_write_file(struct rs_regs *regs)
{
	return rs_on_write_to(regs, RS_TO_FILES);
}

static __always_inline int rs_on_write_socket(struct rs_regs *regs)
{
	return rs_on_write_to(regs, RS_TO_SOCKETS);
}

/* Everything inlined would not fit one program: each group of calls has its own. */
#define RS_CALL_PROGRAM(name, first, last, handler)                                                \
	int name(struct bpf_raw_tracepoint_args *context)                                          \
	{                                                                                          \
		struct rs_regs regs = {};                                                          \
		void *saved = (void *)context->args[0];                                            \
		u64 put_back = 0;                                                                  \
                                                                                                   \
		if (!rs_fill(&regs, saved, (s64)context->args[1]) || regs.id < (first) ||          \
		    regs.id > (last))                                                              \
			return 0;                                                                  \
		RS_SAVED(&put_back, RS_PUT_BACK);                                                  \
		if (rs_was_trapped(regs.result, put_back))                                         \
			return 0;                                                                  \
		handler(&regs);                                                                    \
		return 0;                                                                          \
	}

RS_CALL_PROGRAM(trace_open, RS_CALL_OPEN, RS_CALL_OPEN_BY_HANDLE_AT, rs_on_open)
RS_CALL_PROGRAM(trace_write, RS_CALL_WRITE, RS_CALL_SPLICE, rs_on_write_file)
RS_CALL_PROGRAM(trace_send, RS_CALL_WRITE, RS_CALL_SENDMMSG, rs_on_write_socket)
RS_CALL_PROGRAM(trace_socket, RS_CALL_SOCKET, RS_CALL_SOCKET, rs_on_socket)
RS_CALL_PROGRAM(trace_connect, RS_CALL_CONNECT, RS_CALL_BIND, rs_on_connect)
RS_CALL_PROGRAM(trace_fileop, RS_CALL_RENAME, RS_CALL_MKNODAT, rs_on_fileop)
RS_CALL_PROGRAM(trace_handle, RS_CALL_OPEN_BY_HANDLE_AT, RS_CALL_OPEN_BY_HANDLE_AT, rs_on_call)
RS_CALL_PROGRAM(trace_copy, RS_CALL_SENDFILE, RS_CALL_SPLICE, rs_on_call)
RS_CALL_PROGRAM(trace_call, RS_CALL_MEMFD_CREATE, RS_CALL_FCNTL, rs_on_call)
