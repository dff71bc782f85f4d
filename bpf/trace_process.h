/*
 * trace_process.h: who belongs to a scope, and its processes' beginnings and ends. See
 * trace_core.h.
 */
#pragma once

static __always_inline int rs_on_fork(void *parent, void *child)
{
	struct rs_fork_event event = {};
	struct rs_member *member;
	void *real_parent = 0;
	u32 parent_tgid = 0, child_tgid = 0, shown_parent = 0;

	RS_GET(task_tgid, parent, &parent_tgid);
	member = RS_LOOKUP(rs_members, &parent_tgid);
	if (!member)
		return 0;
	RS_GET(task_tgid, child, &child_tgid);
	if (child_tgid == parent_tgid)
		return 0; /* a thread */
	if (RS_UPDATE(rs_members, &child_tgid, member))
		rs_count(member->scope, RS_LOSS_MAP_FULL);
	if (!RS_GET(task_real_parent, child, &real_parent))
		RS_GET(task_tgid, real_parent, &shown_parent);
	rs_head(&event.head, RS_EVENT_FORK, sizeof(event), member->scope);
	event.head.tgid = child_tgid;
	event.head.tid = child_tgid;
	event.parent_tgid = shown_parent;
	RS_GET(task_comm, child, &event.comm);
	rs_emit(&event, sizeof(event), member->scope, RS_LOSS_FORK);
	return 0;
}

static __always_inline int rs_on_exit_process(void *task)
{
	struct rs_exit_event event = {};
	struct rs_member *member;
	void *signal = 0, *leader = 0;
	u32 tgid = 0, flags = 0;
	s32 live = 1, status = 0;

	RS_GET(task_tgid, task, &tgid);
	member = RS_LOOKUP(rs_members, &tgid);
	if (!member)
		return 0;
	if (RS_GET(task_signal, task, &signal) || RS_GET(signal_live, signal, &live)) {
		rs_count(member->scope, RS_LOSS_FORK);
		return 0;
	}
	if (live > 0)
		return 0; /* other threads go on */
	RS_GET(signal_flags, signal, &flags);
	if (flags & RS_SIGNAL_GROUP_EXIT) {
		RS_GET(signal_group_exit_code, signal, &status);
	} else {
		RS_GET(task_group_leader, task, &leader);
		RS_GET(task_exit_code, leader, &status);
	}
	rs_head(&event.head, RS_EVENT_EXIT, sizeof(event), member->scope);
	event.head.tgid = tgid;
	event.status = (u32)status;
	RS_GET(task_comm, task, &event.comm);
	rs_emit(&event, sizeof(event), member->scope, RS_LOSS_FORK);
	RS_DELETE(rs_members, &tgid);
	return 0;
}

/* Send the next piece of an area, up to the end of its page. 1: go on, 0: done. */
RS_GLOBAL int rs_emit_piece(struct rs_scratch *scratch, u32 type, u64 start, u64 end, u64 scope)
{
	struct rs_chunk_event *event;
	u64 at, stop, len;

	if (!scratch)
		return 0;
	at = scratch->at;
	stop = (at | (RS_CHUNK_BYTES - 1)) + 1;
	if (at >= end)
		return 0;
	if (stop > end)
		stop = end;
	len = stop - at;
	RS_OPAQUE(len);
	if (len > RS_CHUNK_BYTES)
		return 0;
	event = (struct rs_chunk_event *)scratch->data;
	rs_head(&event->head, type, RS_HEAD_BYTES + (u32)len, scope);
	event->offset = (u32)(at - start);
	event->len = (u32)len;
	event->total = (u32)(end - start);
	scratch->at = stop;
	if (RS_READ_USER(&scratch->data[RS_HEAD_BYTES], len, (void *)at)) {
		rs_count(scope, RS_LOSS_UNREADABLE);
		return 0;
	}
	if (RS_OUTPUT(scratch->data, RS_HEAD_BYTES + len))
		rs_count(scope, RS_LOSS_EXEC);
	return 1;
}

/* Send an area of user memory in pieces. What is left out shows in the lengths. */
RS_GLOBAL int rs_emit_area(struct rs_scratch *scratch, u32 type, u64 start, u64 end, u64 scope)
{
	if (!scratch)
		return 0;
	scratch->at = start;
	for (int i = 0; i < RS_CHUNK_ROUNDS; i++)
		if (rs_emit_piece(scratch, type, start, end, scope) != 1)
			break;
	return 0;
}

static __always_inline int rs_on_exec(void *task, void *binprm)
{
	struct rs_scratch *scratch;
	struct rs_exec_event *event;
	struct rs_member *member;
	void *file = 0, *mm = 0, *parent = 0;
	const u8 *name = 0, *interp = 0;
	u8 first = 0;
	u64 scope;
	unsigned long args = 0, args_end = 0, environ = 0, environ_end = 0;
	unsigned long task_flags = 0;
	u32 tgid = 0;

	RS_GET(task_tgid, task, &tgid);
	member = RS_LOOKUP(rs_members, &tgid);
	if (!member)
		return 0;
	scope = member->scope;
	scratch = rs_scratch_get(RS_PROGRAM_EXEC, scope, RS_LOSS_EXEC);
	if (!scratch)
		return 0;
	event = (struct rs_exec_event *)scratch->data;
	rs_head(&event->head, RS_EVENT_EXEC, 0, scope);
	RS_GET(binprm_file, binprm, &file);
	if (rs_describe(file, &event->file))
		rs_count(scope, RS_LOSS_UNRESOLVED);
	if (!RS_GET(task_real_parent, task, &parent))
		RS_GET(task_tgid, parent, &event->parent_tgid);
	RS_GET(task_comm, task, &event->comm);
	RS_GET(task_atomic_flags, task, &task_flags);
	event->task_flags = (u32)task_flags;
	if (!RS_GET(task_mm, task, &mm) && mm) {
		RS_GET(mm_arg_start, mm, &args);
		RS_GET(mm_arg_end, mm, &args_end);
		RS_GET(mm_env_start, mm, &environ);
		RS_GET(mm_env_end, mm, &environ_end);
	}
	event->args_len = (u32)(args_end - args);
	event->environ_len = (u32)(environ_end - environ);
	event->walk_len = rs_walk_file(scratch, file);
	RS_GET(binprm_filename, binprm, &name);
	event->name_len = rs_string(scratch, (u64)name, 1);
	RS_GET(binprm_interp, binprm, &interp);
	event->interpreted = interp != name;
	if (RS_READ_KERNEL(&first, 1, name))
		scratch->cut |= RS_CUT_NAME;
	else if (member->paths && first != '/')
		event->base_len = rs_working_directory(scratch);
	event->cut = scratch->cut;
	rs_emit_tail(scratch, scope, RS_LOSS_EXEC);
	rs_emit_area(scratch, RS_EVENT_ARGS, args, args_end, scope);
	rs_emit_area(scratch, RS_EVENT_ENVIRON, environ, environ_end, scope);
	return 0;
}
