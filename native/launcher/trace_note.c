// SPDX-License-Identifier: Apache-2.0
/*
 * Calls that are noted for themselves (memfd_create, mount, unshare, mprotect with PROT_EXEC, …).
 * Equal ones of a process become one note with a count, so that a program which calls splice a
 * million times costs one record.
 *
 * Owns: tracer.notes. Must not: put a pointer of the task into a note (it differs every run).
 *
 *   seccomp or exit stop ──► here ──SYSCALL──► sink
 *
 * Privilege: tracer of the task.
 */
#include "trace_internal.h"

#include <errno.h>
#include <linux/sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#define NOTES_MAX 65536u /* then they are sent and begun anew; the daemon adds equal ones */
#define TEXT_BYTES                                                                                 \
	512u /* longer texts are cut; every one that names content has a digest elsewhere */

struct rs_syscall_note {
	uint32_t process, arch, number, count;
	uint64_t args[4];
	int64_t result;
	uint64_t time_ns;
	uint16_t call, text_length;
	uint8_t flags;
	char text[TEXT_BYTES];
};

static int note_same(const struct rs_syscall_note *a, const struct rs_syscall_note *b)
{
	return a->process == b->process && a->call == b->call && a->arch == b->arch &&
	       a->flags == b->flags && (a->result < 0) == (b->result < 0) &&
	       memcmp(a->args, b->args, sizeof(a->args)) == 0 && a->text_length == b->text_length &&
	       memcmp(a->text, b->text, a->text_length) == 0;
}

static int note_equal(const void *context, uint32_t entry, const void *key)
{
	return note_same(&((const struct rs_tracer *)context)->notes[entry], key);
}

static uint64_t note_hash(const struct rs_syscall_note *note)
{
	uint64_t head = (uint64_t)note->process << 32 | note->call;

	return rs_hash_bytes(note->text, note->text_length,
			     rs_hash_bytes(note->args, sizeof(note->args), head));
}

static uint64_t note_rehash(const void *context, uint32_t entry)
{
	return note_hash(&((const struct rs_tracer *)context)->notes[entry]);
}

static void add_text(struct rs_syscall_note *note, const char *text)
{
	size_t length = strlen(text), room = TEXT_BYTES - note->text_length;

	if (note->text_length > 0 && room > 0) {
		note->text[note->text_length++] = '\0'; /* between two texts */
		room--;
	}
	if (length > room)
		length = room;
	memcpy(note->text + note->text_length, text, length);
	note->text_length = (uint16_t)(note->text_length + length);
}

static void add_string(struct rs_syscall_note *note, pid_t tid, uint64_t address)
{
	char text[RS_PATH_BYTES] = "";

	if (address != 0 && rs_read_string(tid, address, text, sizeof(text)) < 0)
		strcpy(text, "?");
	add_text(note, text);
}

static void add_fd(struct rs_syscall_note *note, pid_t tid, uint64_t fd)
{
	char path[RS_PATH_BYTES];

	add_text(note, rs_fd_path(tid, (int)fd, path, NULL) < 0 ? "?" : path);
}

static void keep(struct rs_syscall_note *note, const struct rs_task *task, int first, int count)
{
	for (int i = 0; i < count && i < 4; i++)
		note->args[i] = task->args[first + i];
}

/* The arguments that mean something by themselves, and texts for those that point. */
static void describe(struct rs_syscall_note *note, const struct rs_task *task)
{
	const uint64_t *a = task->args;

	switch (task->call) {
	case RS_CALL_mprotect:
	case RS_CALL_pkey_mprotect:
		return keep(note, task, 2, 1);
	case RS_CALL_mmap:
	case RS_CALL_mmap2:
		return keep(note, task, 2, 2);
	case RS_CALL_memfd_create:
		note->args[0] = a[1];
		return add_string(note, task->tid, a[0]);
	case RS_CALL_prctl:
		keep(note, task, 0, 1);
		if (a[0] == PR_SET_NAME)
			add_string(note, task->tid, a[1]);
		else
			note->args[1] = a[1];
		return;
	case RS_CALL_mount:
		note->args[0] = a[3];
		for (int i = 0; i < 3; i++)
			add_string(note, task->tid, a[i]);
		return;
	case RS_CALL_umount2:
	case RS_CALL_umount:
	case RS_CALL_chroot:
	case RS_CALL_fsopen:
	case RS_CALL_uselib:
		return add_string(note, task->tid, a[0]);
	case RS_CALL_pivot_root:
		add_string(note, task->tid, a[0]);
		return add_string(note, task->tid, a[1]);
	case RS_CALL_open_tree:
	case RS_CALL_open_tree_attr:
	case RS_CALL_fspick:
	case RS_CALL_mount_setattr:
		note->args[0] = a[2];
		return add_string(note, task->tid, a[1]);
	case RS_CALL_move_mount:
		add_string(note, task->tid, a[1]);
		return add_string(note, task->tid, a[3]);
	case RS_CALL_copy_file_range:
	case RS_CALL_splice:
		add_fd(note, task->tid, a[0]);
		return add_fd(note, task->tid, a[2]);
	case RS_CALL_sendfile:
	case RS_CALL_sendfile64:
		add_fd(note, task->tid, a[1]);
		return add_fd(note, task->tid, a[0]);
	case RS_CALL_finit_module:
		return add_fd(note, task->tid, a[0]);
	case RS_CALL_clone:
	case RS_CALL_clone3:
	case RS_CALL_process_vm_writev:
	case RS_CALL_unshare:
	case RS_CALL_fsconfig:
	case RS_CALL_fsmount:
		return keep(note, task, 0, 1);
	case RS_CALL_dup2:
	case RS_CALL_dup3:
	case RS_CALL_ptrace:
	case RS_CALL_setns:
	case RS_CALL_seccomp:
		return keep(note, task, 0, 2);
	default:
		return;
	}
}

static void send_note(struct rs_tracer *t, const struct rs_syscall_note *note)
{
	const char *name = rs_trace_call_name((enum rs_call)note->call);
	uint8_t head[2] = {note->flags, (uint8_t)strlen(name)};

	rs_begin(t);
	rs_put32(t, note->process);
	rs_put32(t, note->arch);
	rs_put32(t, note->number);
	rs_put32(t, note->count);
	for (int i = 0; i < 4; i++)
		rs_put64(t, note->args[i]);
	rs_put64(t, (uint64_t)note->result);
	rs_put64(t, note->time_ns);
	rs_put_bytes(t, head, sizeof(head));
	rs_put16(t, note->text_length);
	rs_put_bytes(t, name, head[1]);
	rs_put_bytes(t, note->text, note->text_length);
	rs_end(t, RS_TRACE_SYSCALL);
}

void rs_notes_flush(struct rs_tracer *t)
{
	for (uint32_t i = 0; i < t->note_count; i++)
		send_note(t, &t->notes[i]);
	t->note_count = 0;
	rs_index_free(&t->note_index);
}

void rs_note(struct rs_tracer *t, struct rs_task *task, int64_t result, uint8_t flags)
{
	struct rs_syscall_note note = {.process = rs_process_of(t, task)->number,
				       .arch = task->arch,
				       .number = (uint32_t)task->number,
				       .count = 1,
				       .result = result,
				       .call = (uint16_t)task->call,
				       .flags = flags};
	uint32_t found;
	uint64_t hash;

	describe(&note, task);
	hash = note_hash(&note);
	found = rs_index_find(&t->note_index, hash, note_equal, t, &note);
	if (found != UINT32_MAX) {
		t->notes[found].count++;
		return;
	}
	if (t->note_count >= NOTES_MAX)
		rs_notes_flush(t);
	note.time_ns = rs_now_ns();
	if (rs_grow((void **)&t->notes, t->note_count, &t->note_capacity, sizeof(note), NOTES_MAX) <
	    0) {
		rs_lost(t, RS_TRACE_LOSS_MEMORY, note.process, rs_trace_call_name(task->call));
		return;
	}
	t->notes[t->note_count] = note;
	if (rs_index_add(&t->note_index, hash, t->note_count, note_rehash, t) < 0)
		rs_lost(t, RS_TRACE_LOSS_MEMORY, note.process, rs_trace_call_name(task->call));
	else
		t->note_count++;
}
