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

#define NOTES_MAX      65536u /* then they are sent and begun anew; the daemon adds equal ones */
#define TEXT_BYTES_MAX (16u << 20) /* of all of them, likewise */
#define TEXTS_MAX      3

struct rs_syscall_note {
	uint32_t process, arch, number, count;
	uint64_t args[4];
	int64_t result;
	uint64_t time_ns;
	uint32_t text; /* offset into tracer.note_text */
	uint16_t call, text_length;
	uint8_t flags;
};

/* A note while it is made; each text ends with a NUL. */
struct draft {
	struct rs_syscall_note note;
	char text[TEXTS_MAX * RS_PATH_BYTES];
};

static const char *text_of(const struct rs_tracer *t, const struct rs_syscall_note *note)
{
	return (const char *)t->note_text.data + note->text;
}

static int note_equal(const void *context, uint32_t entry, const void *key)
{
	const struct rs_tracer *t = context;
	const struct draft *want = key;
	const struct rs_syscall_note *a = &t->notes[entry], *b = &want->note;

	return a->process == b->process && a->call == b->call && a->arch == b->arch &&
	       a->flags == b->flags && (a->result < 0) == (b->result < 0) &&
	       memcmp(a->args, b->args, sizeof(a->args)) == 0 && a->text_length == b->text_length &&
	       (a->text_length == 0 || memcmp(text_of(t, a), want->text, a->text_length) == 0);
}

static uint64_t note_hash(const struct rs_syscall_note *note, const char *text)
{
	uint64_t head = (uint64_t)note->process << 32 | note->call;

	return rs_hash_bytes(text, note->text_length,
			     rs_hash_bytes(note->args, sizeof(note->args), head));
}

static uint64_t note_rehash(const void *context, uint32_t entry)
{
	const struct rs_tracer *t = context;

	return note_hash(&t->notes[entry], text_of(t, &t->notes[entry]));
}

static void add_text(struct draft *draft, const char *text)
{
	size_t length = strlen(text) + 1;

	memcpy(draft->text + draft->note.text_length, text, length);
	draft->note.text_length = (uint16_t)(draft->note.text_length + length);
}

static void add_string(struct draft *draft, pid_t tid, uint64_t address)
{
	char text[RS_PATH_BYTES] = "";

	if (address != 0 && rs_read_string(tid, address, text, sizeof(text)) < 0)
		strcpy(text, "?");
	add_text(draft, text);
}

/* A path; of what has none only the kind: its number differs from run to run. */
static void add_fd(struct draft *draft, pid_t tid, uint64_t fd)
{
	char path[RS_PATH_BYTES];

	if (rs_fd_path(tid, (int)fd, path, NULL) < 0)
		strcpy(path, "?");
	if (path[0] != '/')
		path[strcspn(path, ":")] = '\0';
	add_text(draft, path);
}

/* Arguments that mean something by themselves, each in its place. */
static void keep(struct draft *draft, const struct rs_task *task, int first, int count)
{
	for (int i = first; i < first + count && i < 4; i++)
		draft->note.args[i] = task->args[i];
}

static void describe(struct draft *draft, const struct rs_task *task)
{
	const uint64_t *a = task->args;

	switch (task->call) {
	case RS_CALL_mprotect:
	case RS_CALL_pkey_mprotect:
		return keep(draft, task, 2, 1);
	case RS_CALL_mmap:
	case RS_CALL_mmap2:
		return keep(draft, task, 2, 2);
	case RS_CALL_memfd_create:
		keep(draft, task, 1, 1);
		return add_string(draft, task->tid, a[0]);
	case RS_CALL_prctl:
		keep(draft, task, 0, 1);
		if (a[0] == PR_SET_NAME)
			return add_string(draft, task->tid, a[1]);
		return keep(draft, task, 1, 1);
	case RS_CALL_mount:
		keep(draft, task, 3, 1);
		for (int i = 0; i < 3; i++)
			add_string(draft, task->tid, a[i]);
		return;
	case RS_CALL_umount2:
		keep(draft, task, 1, 1);
		return add_string(draft, task->tid, a[0]);
	case RS_CALL_umount:
	case RS_CALL_chroot:
	case RS_CALL_fsopen:
	case RS_CALL_uselib:
		return add_string(draft, task->tid, a[0]);
	case RS_CALL_pivot_root:
		add_string(draft, task->tid, a[0]);
		return add_string(draft, task->tid, a[1]);
	case RS_CALL_open_tree:
	case RS_CALL_open_tree_attr:
	case RS_CALL_fspick:
	case RS_CALL_mount_setattr:
		keep(draft, task, 2, 1);
		return add_string(draft, task->tid, a[1]);
	case RS_CALL_move_mount:
		add_string(draft, task->tid, a[1]);
		return add_string(draft, task->tid, a[3]);
	case RS_CALL_copy_file_range:
	case RS_CALL_splice:
		add_fd(draft, task->tid, a[0]);
		return add_fd(draft, task->tid, a[2]);
	case RS_CALL_sendfile:
	case RS_CALL_sendfile64:
		add_fd(draft, task->tid, a[1]);
		return add_fd(draft, task->tid, a[0]);
	case RS_CALL_finit_module:
		return add_fd(draft, task->tid, a[0]);
	case RS_CALL_clone:
	case RS_CALL_clone3:
	case RS_CALL_process_vm_writev:
	case RS_CALL_unshare:
	case RS_CALL_fsmount:
	case RS_CALL_io_uring_setup:
		return keep(draft, task, 0, 1);
	case RS_CALL_fsconfig:
	case RS_CALL_dup:
	case RS_CALL_dup2:
	case RS_CALL_dup3:
	case RS_CALL_fcntl:
	case RS_CALL_fcntl64:
	case RS_CALL_ptrace:
	case RS_CALL_setns:
	case RS_CALL_seccomp:
		return keep(draft, task, 0, 2);
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
	rs_put_bytes(t, text_of(t, note), note->text_length);
	rs_end(t, RS_TRACE_SYSCALL);
}

void rs_notes_flush(struct rs_tracer *t)
{
	for (uint32_t i = 0; i < t->note_count; i++)
		send_note(t, &t->notes[i]);
	t->note_count = 0;
	t->note_text.size = 0;
	rs_index_free(&t->note_index);
}

static void add_note(struct rs_tracer *t, struct draft *draft, uint64_t hash)
{
	struct rs_syscall_note *note = &draft->note;

	if (t->note_count >= NOTES_MAX || t->note_text.size >= TEXT_BYTES_MAX)
		rs_notes_flush(t);
	note->time_ns = rs_now_ns();
	note->text = (uint32_t)t->note_text.size;
	rs_put(&t->note_text, draft->text, note->text_length, &t->error);
	if (rs_grow((void **)&t->notes, t->note_count, &t->note_capacity, sizeof(*note),
		    NOTES_MAX) == 0) {
		t->notes[t->note_count] = *note;
		if (rs_index_add(&t->note_index, hash, t->note_count, note_rehash, t) == 0) {
			t->note_count++;
			return;
		}
	}
	rs_lost(t, RS_TRACE_LOSS_MEMORY, note->process,
		rs_trace_call_name((enum rs_call)note->call));
}

void rs_note(struct rs_tracer *t, struct rs_task *task, int64_t result, uint8_t flags)
{
	struct draft draft;
	uint32_t found;
	uint64_t hash;

	draft.note = (struct rs_syscall_note){.process = rs_process_of(t, task)->number,
					      .arch = task->arch,
					      .number = (uint32_t)task->number,
					      .count = 1,
					      .result = result,
					      .call = (uint16_t)task->call,
					      .flags = flags};
	describe(&draft, task);
	hash = note_hash(&draft.note, draft.text);
	found = rs_index_find(&t->note_index, hash, note_equal, t, &draft);
	if (found != UINT32_MAX)
		t->notes[found].count++;
	else
		add_note(t, &draft, hash);
}

int rs_is_socket(pid_t tid, int fd)
{
	char path[RS_PATH_BYTES];

	return rs_fd_path(tid, fd, path, NULL) >= 0 &&
	       strncmp(path, "socket:", strlen("socket:")) == 0;
}

/* dup, or fcntl with F_DUPFD: where the copy went is known now; it takes the second argument's
 * place. */
void rs_dup_done(struct rs_tracer *t, struct rs_task *task, int64_t result)
{
	if (result < 0 || result > 2 || !rs_is_socket(task->tid, (int)result))
		return;
	task->args[1] = (uint64_t)result;
	rs_note(t, task, result, 0);
}
