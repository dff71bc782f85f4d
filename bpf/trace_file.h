/*
 * trace_file.h: opens, writes, and changes of names and attributes. See trace_core.h.
 */
#pragma once

#define RS_TO_FILES   1
#define RS_TO_SOCKETS 2
#define RS_O_PATH     010000000
/* A handle of the kernel's own, as overlayfs has on the layer below the file that was opened. */
#define RS_FMODE_NOACCOUNT 0x20000000

/* An open whose content user space wants: with the path by which it finds the file. */
RS_FN int rs_tell_path(struct rs_regs *regs, struct rs_open_event *told)
{
	struct rs_scratch *scratch;
	struct rs_open_path_event *event;

	if (!regs || !told)
		return 0;
	scratch = rs_scratch_get(RS_PROGRAM_CALL, regs->scope, RS_LOSS_OPEN);
	if (!scratch)
		return 0;
	event = (struct rs_open_path_event *)scratch->data;
	rs_head(&event->head, RS_EVENT_OPEN_PATH, 0, regs->scope);
	event->file = told->file;
	event->call = told->call;
	event->fd = told->fd;
	event->told = RS_LSM_OPENS != 0;
	event->walk_len = rs_walk_file(scratch, rs_file_of(told->fd));
	event->cut = scratch->cut;
	rs_emit_tail(scratch, regs->scope, RS_LOSS_OPEN);
	return 0;
}

RS_FN int rs_on_open(struct rs_regs *regs)
{
	struct rs_open_event event = {};

	if (!regs || regs->result < 0)
		return 0; /* nothing was opened */
	rs_head(&event.head, RS_EVENT_OPEN, sizeof(event), regs->scope);
	event.call = regs->id;
	event.fd = (s32)regs->result;
	if (rs_describe(rs_file_of(event.fd), &event.file))
		rs_count(regs->scope, RS_LOSS_UNRESOLVED);
	else if (regs->paths && (event.file.mode & RS_S_IFMT) == RS_S_IFREG &&
		 !(event.file.flags & RS_O_PATH))
		return rs_tell_path(regs, &event);
	else if (RS_LSM_OPENS && !(event.file.flags & RS_O_PATH))
		return 0; /* rs_on_file_open has told of it */
	rs_emit(&event, sizeof(event), regs->scope, RS_LOSS_OPEN);
	return 0;
}

/*
 * The kernel is about to open a file for a member, by whatever way: a call, an exec and its loader,
 * a ring. The very file, after symbolic links. An open that fails after this is told too, and has
 * no content that anybody could have read.
 */
static __always_inline int rs_on_file_open(void *file, u64 scope)
{
	struct rs_open_event event = {};

	rs_head(&event.head, RS_EVENT_OPEN, sizeof(event), scope);
	event.call = RS_CALL_FILE_OPEN;
	event.fd = -1;
	if (rs_describe(file, &event.file))
		rs_count(scope, RS_LOSS_UNRESOLVED);
	else if (event.file.fmode & RS_FMODE_NOACCOUNT)
		return 0;
	rs_emit(&event, sizeof(event), scope, RS_LOSS_OPEN);
	return 0;
}

/* Bytes were written to the regular file behind `file`: sum them, announce the first. */
RS_FN int rs_sum_write(struct rs_regs *regs, void *file, struct rs_file *described)
{
	struct rs_write_key key = {};
	struct rs_write_sum first = {}, *sum;
	struct rs_scratch *scratch;
	struct rs_write_event *event;
	int refused;

	if (!regs || !described)
		return 0;
	key.ino = described->ino;
	key.dev = described->dev;
	key.tgid = (u32)(bpf_get_current_pid_tgid() >> 32);
	sum = RS_LOOKUP(rs_writes, &key);
	if (sum) {
		__sync_fetch_and_add(&sum->bytes, (u64)regs->result);
		__sync_fetch_and_add(&sum->count, 1);
		return 0;
	}
	first.bytes = (u64)regs->result;
	first.count = 1;
	refused = RS_UPDATE(rs_writes, &key, &first) !=
		  0; /* full: nothing is lost, each write is its own event */
	scratch = rs_scratch_get(RS_PROGRAM_CALL, regs->scope, RS_LOSS_FILEOP);
	if (!scratch)
		return 0;
	event = (struct rs_write_event *)scratch->data;
	rs_head(&event->head, RS_EVENT_WRITE, 0, regs->scope);
	event->file = *described;
	event->bytes = (u64)regs->result;
	event->call = regs->id;
	event->summed = !refused;
	event->walk_len = rs_walk_file(scratch, file);
	event->cut = scratch->cut;
	rs_emit_tail(scratch, regs->scope, RS_LOSS_FILEOP);
	return 0;
}

/* Bytes left through a descriptor; `kinds` says which kinds of file the caller wants handled. */
static __always_inline int rs_on_write_to(struct rs_regs *regs, u32 kinds)
{
	struct rs_file described;
	void *file;
	s32 fd;

	if (!regs || regs->result <= 0)
		return 0;
	fd = (s32)regs->a[0];
	if (regs->id == RS_CALL_COPY_FILE_RANGE || regs->id == RS_CALL_SPLICE)
		fd = (s32)regs->a[2];
	file = rs_file_of(fd);
	if (rs_describe(file, &described)) {
		if (kinds & RS_TO_FILES)
			rs_count(regs->scope, RS_LOSS_UNRESOLVED);
		return 0;
	}
	if ((kinds & RS_TO_FILES) && (described.mode & RS_S_IFMT) == RS_S_IFREG)
		return rs_sum_write(regs, file, &described);
	if ((kinds & RS_TO_SOCKETS) && (described.mode & RS_S_IFMT) == RS_S_IFSOCK)
		return rs_on_send(regs);
	return 0; /* pipes, terminals, devices */
}

RS_FN int rs_on_write(struct rs_regs *regs)
{
	return rs_on_write_to(regs, RS_TO_FILES | RS_TO_SOCKETS);
}

RS_FN int rs_on_fileop(struct rs_regs *regs)
{
	struct rs_scratch *scratch;
	struct rs_fileop_event *event;
	u64 name[2] = {};
	s32 dir[2] = {RS_AT_FDCWD, RS_AT_FDCWD};
	u64 value = 0;
	s32 fd = -1;
	void *file;

	if (!regs || regs->result < 0)
		return 0;
	switch (regs->id) {
	case RS_CALL_RENAME:
	case RS_CALL_LINK:
		name[0] = regs->a[0];
		name[1] = regs->a[1];
		break;
	case RS_CALL_RENAMEAT:
	case RS_CALL_RENAMEAT2:
	case RS_CALL_LINKAT:
		dir[0] = (s32)regs->a[0];
		name[0] = regs->a[1];
		dir[1] = (s32)regs->a[2];
		name[1] = regs->a[3];
		value = regs->id == RS_CALL_RENAMEAT ? 0 : regs->a[4];
		break;
	case RS_CALL_SYMLINK: /* the target is text, not a path to resolve */
		name[0] = regs->a[0];
		name[1] = regs->a[1];
		break;
	case RS_CALL_SYMLINKAT:
		name[0] = regs->a[0];
		dir[1] = (s32)regs->a[1];
		name[1] = regs->a[2];
		break;
	case RS_CALL_UNLINKAT:
		dir[0] = (s32)regs->a[0];
		name[0] = regs->a[1];
		value = regs->a[2];
		break;
	case RS_CALL_UNLINK:
	case RS_CALL_RMDIR:
		name[0] = regs->a[0];
		break;
	case RS_CALL_CHMOD:
	case RS_CALL_MKNOD:
	case RS_CALL_TRUNCATE:
		name[0] = regs->a[0];
		value = regs->a[1];
		break;
	case RS_CALL_FCHMODAT:
	case RS_CALL_MKNODAT:
	case RS_CALL_FCHMODAT2:
		dir[0] = (s32)regs->a[0];
		name[0] = regs->a[1];
		value = regs->a[2];
		break;
	default: /* fchmod, ftruncate */
		fd = (s32)regs->a[0];
		value = regs->a[1];
	}
	scratch = rs_scratch_get(RS_PROGRAM_CALL, regs->scope, RS_LOSS_FILEOP);
	if (!scratch)
		return 0;
	event = (struct rs_fileop_event *)scratch->data;
	rs_head(&event->head, RS_EVENT_FILEOP, 0, regs->scope);
	event->call = regs->id;
	event->value = value;
	if (fd >= 0) {
		file = rs_file_of(fd);
		if (rs_describe(file, &event->file))
			rs_count(regs->scope, RS_LOSS_UNRESOLVED);
		event->path[0].walk_len = rs_walk_file(scratch, file);
	}
	if (name[0]) {
		if (regs->id != RS_CALL_SYMLINK && regs->id != RS_CALL_SYMLINKAT)
			event->path[0].walk_len = rs_base(scratch, dir[0], name[0]);
		event->path[0].name_len = rs_string(scratch, name[0], 0);
	}
	if (name[1]) {
		event->path[1].walk_len = rs_base(scratch, dir[1], name[1]);
		event->path[1].name_len = rs_string(scratch, name[1], 0);
	}
	event->cut = scratch->cut;
	rs_emit_tail(scratch, regs->scope, RS_LOSS_FILEOP);
	return 0;
}
