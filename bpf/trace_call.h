/*
 * trace_call.h: the other calls that are recorded, and which handler a call goes to. See
 * trace_core.h.
 */
#pragma once

#define RS_SIGSYS_BIT	   (1ULL << 30) /* signal 31 */
#define RS_F_DUPFD	   0
#define RS_F_DUPFD_CLOEXEC 1030
#define RS_TEXTS	   3 /* texts of one call */

/* What goes with a call: descriptors of its source and target, and its texts (0: an empty one). */
struct rs_call_parts {
	u64 text[RS_TEXTS];
	u32 texts;
	s32 fd[2];
};

/* Has a call put a socket on standard input, output or error? */
RS_FN int rs_is_stdio_socket(s64 fd)
{
	struct rs_file described;

	if (fd < 0 || fd > 2 || rs_describe(rs_file_of((s32)fd), &described))
		return 0;
	return (described.mode & RS_S_IFMT) == RS_S_IFSOCK;
}

/* Is this call worth an event? Fills its parts. */
RS_FN int rs_call_parts(struct rs_regs *regs, struct rs_call_parts *parts)
{
	if (!regs || !parts)
		return 0;
	switch (regs->id) {
	case RS_CALL_CLONE:
		return regs->result != 0 && (regs->a[0] & RS_NAMESPACE_FLAGS & ~0x80ULL);
	case RS_CALL_CLONE3: /* struct clone_args begins with the flags */
		if (RS_READ_USER(&regs->a[0], sizeof(u64), (void *)regs->a[0])) {
			rs_count(regs->scope, RS_LOSS_UNREADABLE);
			return 0;
		}
		return regs->result != 0 && (regs->a[0] & RS_NAMESPACE_FLAGS);
	case RS_CALL_FCNTL:
		if (regs->a[1] != RS_F_DUPFD && regs->a[1] != RS_F_DUPFD_CLOEXEC)
			return 0;
		regs->a[1] = (u64)regs->result;
		return rs_is_stdio_socket(regs->result);
	case RS_CALL_DUP:
		regs->a[1] = (u64)regs->result;
		return rs_is_stdio_socket(regs->result);
	case RS_CALL_DUP2:
	case RS_CALL_DUP3:
		return rs_is_stdio_socket(regs->result);
	case RS_CALL_MPROTECT:
		return regs->result == 0 && (regs->a[2] & RS_PROT_EXEC);
	case RS_CALL_MMAP:
		if ((regs->result < 0 && regs->result > -4096) || !(regs->a[2] & RS_PROT_EXEC))
			return 0;
		return 1;
	case RS_CALL_PRCTL:
		if (regs->a[0] == 15) { /* PR_SET_NAME */
			parts->texts = 1;
			parts->text[0] = regs->a[1];
		}
		return regs->a[0] == 15 || regs->a[0] == 4 ||
		       regs->a[0] == 38; /* PR_SET_DUMPABLE, NO_NEW_PRIVS */
	case RS_CALL_MEMFD_CREATE:
	case RS_CALL_CHROOT:
	case RS_CALL_UMOUNT2:
	case RS_CALL_FSOPEN:
		parts->texts = 1;
		parts->text[0] = regs->a[0];
		return 1;
	case RS_CALL_PIVOT_ROOT:
		parts->texts = 2;
		parts->text[0] = regs->a[0];
		parts->text[1] = regs->a[1];
		return 1;
	case RS_CALL_MOUNT:
		parts->texts = 3;
		parts->text[0] = regs->a[0];
		parts->text[1] = regs->a[1];
		parts->text[2] = regs->a[2];
		return 1;
	case RS_CALL_OPEN_TREE:
	case RS_CALL_OPEN_TREE_ATTR:
	case RS_CALL_FSPICK:
	case RS_CALL_MOUNT_SETATTR:
		parts->texts = 1;
		parts->text[0] = regs->a[1];
		return 1;
	case RS_CALL_MOVE_MOUNT:
		parts->texts = 2;
		parts->text[0] = regs->a[1];
		parts->text[1] = regs->a[3];
		return 1;
	case RS_CALL_FINIT_MODULE:
		parts->fd[0] = (s32)regs->a[0];
		return 1;
	case RS_CALL_SENDFILE:
		parts->fd[0] = (s32)regs->a[1];
		parts->fd[1] = (s32)regs->a[0];
		return regs->result > 0;
	case RS_CALL_COPY_FILE_RANGE:
	case RS_CALL_SPLICE:
		parts->fd[0] = (s32)regs->a[0];
		parts->fd[1] = (s32)regs->a[2];
		return regs->result > 0;
	default:
		return 1;
	}
}

/* Describe the file of a descriptor and append its path, if it is a file that has one. */
RS_FN u32 rs_call_file(struct rs_scratch *scratch, s32 fd, struct rs_file *out)
{
	void *file = rs_file_of(fd);

	if (!scratch || !out || rs_describe(file, out))
		return 0;
	return (out->mode & RS_S_IFMT) == RS_S_IFREG ? rs_walk_file(scratch, file) : 0;
}

/* Append a text and its NUL; nothing but the NUL for a null pointer. */
RS_FN int rs_call_text(struct rs_scratch *scratch, u64 address)
{
	if (!scratch)
		return 0;
	if (address)
		rs_string(scratch, address, 0);
	scratch->data[RS_HEAD_BYTES + (scratch->tail & RS_TAIL_MASK)] = 0;
	scratch->tail++;
	return 0;
}

RS_FN int rs_on_call(struct rs_regs *regs)
{
	struct rs_call_parts parts = {.fd = {-1, -1}};
	struct rs_scratch *scratch;
	struct rs_call_event *event;
	u32 before;

	if (!regs || !rs_call_parts(regs, &parts))
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
	if (parts.fd[0] >= 0)
		event->walk_len[0] = rs_call_file(scratch, parts.fd[0], &event->file[0]);
	if (parts.fd[1] >= 0)
		event->walk_len[1] = rs_call_file(scratch, parts.fd[1], &event->file[1]);
	before = scratch->tail;
	if (parts.texts > 0)
		rs_call_text(scratch, parts.text[0]);
	if (parts.texts > 1)
		rs_call_text(scratch, parts.text[1]);
	if (parts.texts > 2)
		rs_call_text(scratch, parts.text[2]);
	event->text_len = scratch->tail - before;
	event->cut = scratch->cut;
	rs_emit_tail(scratch, regs->scope, RS_LOSS_CALL);
	return 0;
}

/*
 * A seccomp filter of the action's own has trapped the call (SECCOMP_RET_TRAP), so it did not run:
 * what looks like its result is a register that the kernel has put back, and SIGSYS is on its way.
 */
static __always_inline int rs_was_trapped(s64 result, u64 put_back)
{
	u64 pending = 0;

	if ((u64)result != put_back)
		return 0;
	if (RS_GET(task_pending, (void *)bpf_get_current_task(), &pending))
		return 0;
	return (pending & RS_SIGSYS_BIT) != 0;
}

static __always_inline int rs_dispatch(struct rs_regs *regs)
{
	if (regs->compat)
		rs_compat_call(regs);
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

/* IORING_OP_OPENAT and _OPENAT2; and _CONNECT, _RENAMEAT, _UNLINKAT, _SYMLINKAT, _LINKAT, _SOCKET,
 * _FTRUNCATE, _BIND. Not what is done a million times: writes and sends. */
#define RS_RING_OPENS (1ULL << 18 | 1ULL << 28)
#define RS_RING_DEEDS                                                                              \
	(1ULL << 16 | 1ULL << 35 | 1ULL << 36 | 1ULL << 38 | 1ULL << 39 | 1ULL << 45 |             \
	 1ULL << 55 | 1ULL << 56)

/* A request of an io_uring: what a ring does has no system call of its own. */
static __always_inline int rs_on_ring_request(u8 opcode)
{
	struct rs_regs regs = {};
	struct rs_member *member;

	if (opcode > 63 || !((RS_RING_OPENS | RS_RING_DEEDS) >> opcode & 1))
		return 0;
	member = rs_member_get();
	if (!member)
		return 0;
	regs.id = RS_CALL_IO_URING_OPEN;
	if (RS_RING_DEEDS >> opcode & 1) {
		regs.id = RS_CALL_IO_URING_REQUEST;
		regs.a[0] = opcode;
	}
	regs.scope = member->scope;
	return rs_on_call(&regs);
}
