/*
 * trace_call.h: the other calls that are recorded, and which handler a call goes to. See
 * trace_core.h.
 */
#pragma once

/* Is this call worth an event? Fills the descriptors and the string that go with it. */
RS_FN int rs_call_details(struct rs_regs *regs, s32 *source, s32 *target, u64 *name)
{
	struct rs_file described;

	if (!regs || !source || !target || !name)
		return 0;
	switch (regs->id) {
	case RS_CALL_CLONE:
		return regs->result != 0 && (regs->a[0] & RS_NAMESPACE_FLAGS & ~0x80ULL);
	case RS_CALL_CLONE3:
		if (RS_READ_USER(&regs->a[5], sizeof(u64), (void *)regs->a[0])) {
			rs_count(regs->scope, RS_LOSS_UNREADABLE);
			return 0;
		}
		return regs->result != 0 && (regs->a[5] & RS_NAMESPACE_FLAGS);
	case RS_CALL_DUP2:
	case RS_CALL_DUP3:
		if (regs->result < 0 || regs->a[1] > 2 ||
		    rs_describe(rs_file_of((s32)regs->a[1]), &described))
			return 0;
		*target = (s32)regs->a[1];
		return (described.mode & RS_S_IFMT) == RS_S_IFSOCK;
	case RS_CALL_MPROTECT:
		return regs->result == 0 && (regs->a[2] & RS_PROT_EXEC);
	case RS_CALL_MMAP:
		if ((regs->result < 0 && regs->result > -4096) || !(regs->a[2] & RS_PROT_EXEC))
			return 0;
		if (!(regs->a[3] & RS_MAP_ANONYMOUS))
			*source = (s32)regs->a[4];
		return 1;
	case RS_CALL_PRCTL:
		if (regs->a[0] == 15) /* PR_SET_NAME */
			*name = regs->a[1];
		return regs->a[0] == 15 || regs->a[0] == 4 ||
		       regs->a[0] == 38; /* PR_SET_DUMPABLE, NO_NEW_PRIVS */
	case RS_CALL_MEMFD_CREATE:
		*target = (s32)regs->result;
		*name = regs->a[0];
		return 1;
	case RS_CALL_CHROOT:
	case RS_CALL_PIVOT_ROOT:
	case RS_CALL_UMOUNT2:
	case RS_CALL_FSOPEN:
		*name = regs->a[0];
		return 1;
	case RS_CALL_MOUNT:
	case RS_CALL_OPEN_TREE:
	case RS_CALL_FSPICK:
	case RS_CALL_MOUNT_SETATTR:
		*name = regs->a[1];
		return 1;
	case RS_CALL_MOVE_MOUNT:
		*name = regs->a[3];
		return 1;
	case RS_CALL_SETNS:
	case RS_CALL_FINIT_MODULE:
		*source = (s32)regs->a[0];
		return 1;
	case RS_CALL_SENDFILE:
		*target = (s32)regs->a[0];
		*source = (s32)regs->a[1];
		return regs->result > 0;
	case RS_CALL_COPY_FILE_RANGE:
	case RS_CALL_SPLICE:
		*source = (s32)regs->a[0];
		*target = (s32)regs->a[2];
		return regs->result > 0;
	default:
		return 1;
	}
}

RS_FN int rs_on_call(struct rs_regs *regs)
{
	struct rs_scratch *scratch;
	struct rs_call_event *event;
	s32 source = -1, target = -1;
	u64 name = 0;

	if (!regs || !rs_call_details(regs, &source, &target, &name))
		return 0;
	scratch = rs_scratch_get(RS_PROGRAM_CALL, regs->scope, RS_LOSS_CALL);
	if (!scratch)
		return 0;
	event = (struct rs_call_event *)scratch->data;
	rs_head(&event->head, RS_EVENT_CALL, 0, regs->scope);
	event->call = regs->id;
	event->result = regs->result;
	event->args[0] = regs->a[0];
	event->args[1] = regs->a[1];
	event->args[2] = regs->a[2];
	event->args[3] = regs->a[3];
	event->args[4] = regs->a[4];
	event->args[5] = regs->a[5];
	if (source >= 0)
		rs_describe(rs_file_of(source), &event->file[0]);
	if (target >= 0)
		rs_describe(rs_file_of(target), &event->file[1]);
	if (name)
		event->name_len = rs_string(scratch, name, 0);
	event->cut = scratch->cut;
	rs_emit_tail(scratch, regs->scope, RS_LOSS_CALL);
	return 0;
}

static __always_inline int rs_dispatch(struct rs_regs *regs)
{
	if (regs->id == RS_CALL_SOCKETCALL)
		rs_socketcall(regs);
	if (regs->id == RS_CALL_NONE)
		return 0;
	if (regs->id <= RS_CALL_OPEN_BY_HANDLE_AT) {
		rs_on_open(regs);
		return regs->id == RS_CALL_OPEN_BY_HANDLE_AT ? rs_on_call(regs) : 0;
	}
	if (regs->id < RS_CALL_SOCKET) {
		if (regs->id >= RS_CALL_SENDFILE)
			rs_on_call(regs);
		return rs_on_write(regs);
	}
	if (regs->id == RS_CALL_SOCKET)
		return rs_on_socket(regs);
	if (regs->id < RS_CALL_RENAME)
		return rs_on_connect(regs);
	if (regs->id < RS_CALL_MEMFD_CREATE)
		return rs_on_fileop(regs);
	return rs_on_call(regs);
}

static __always_inline struct rs_member *rs_member_get(void)
{
	u32 tgid = (u32)(bpf_get_current_pid_tgid() >> 32);

	return RS_LOOKUP(rs_members, &tgid);
}

/* A request of an io_uring: opens made by a ring have no system call of their own. */
static __always_inline int rs_on_ring_request(u8 opcode)
{
	struct rs_regs regs = {};
	struct rs_member *member;

	if (opcode != 18 && opcode != 28) /* IORING_OP_OPENAT, IORING_OP_OPENAT2 */
		return 0;
	member = rs_member_get();
	if (!member)
		return 0;
	regs.id = RS_CALL_IO_URING_OPEN;
	regs.scope = member->scope;
	return rs_on_call(&regs);
}
