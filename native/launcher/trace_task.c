// SPDX-License-Identifier: Apache-2.0
/*
 * The tasks (threads) that are traced and the processes they belong to.
 *
 * Owns: tracer.tasks, tracer.processes and their indexes. Must not: forget a task that still
 * lives; a process that is not in the table is counted as a loss.
 *
 *   rs_trace_run ──task, fork, exec, end──► here ──PROCESS, EXIT──► sink
 *
 * Privilege: tracer.
 */
#include "trace_internal.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TASKS_MAX     (1u << 20)
#define PROCESSES_MAX (1u << 22)

static uint64_t tid_hash(pid_t tid)
{
	return rs_hash_bytes(&tid, sizeof(tid), 0);
}

static int task_equal(const void *context, uint32_t entry, const void *key)
{
	return ((const struct rs_tracer *)context)->tasks[entry].tid == *(const pid_t *)key;
}

static uint64_t task_rehash(const void *context, uint32_t entry)
{
	return tid_hash(((const struct rs_tracer *)context)->tasks[entry].tid);
}

static int process_equal(const void *context, uint32_t entry, const void *key)
{
	return ((const struct rs_tracer *)context)->processes[entry].pid == *(const pid_t *)key;
}

static uint64_t process_rehash(const void *context, uint32_t entry)
{
	return tid_hash(((const struct rs_tracer *)context)->processes[entry].pid);
}

struct rs_task *rs_task_find(struct rs_tracer *t, pid_t tid)
{
	uint32_t i = rs_index_find(&t->task_index, tid_hash(tid), task_equal, t, &tid);

	return i == UINT32_MAX ? NULL : &t->tasks[i];
}

static uint32_t process_find(struct rs_tracer *t, pid_t pid)
{
	return rs_index_find(&t->process_index, tid_hash(pid), process_equal, t, &pid);
}

struct rs_process *rs_process_of(struct rs_tracer *t, const struct rs_task *task)
{
	return &t->processes[task->process];
}

int rs_process_fd(struct rs_process *process, int fd)
{
	int got;

	if (process->pidfd < 0)
		process->pidfd = (int)syscall(SYS_pidfd_open, process->pid, 0);
	if (process->pidfd < 0)
		return -errno;
	got = (int)syscall(SYS_pidfd_getfd, process->pidfd, fd, 0);
	return got < 0 ? -errno : got;
}

/* Field of /proc/TID/status, 0 if it cannot be read. */
static pid_t status_field(pid_t tid, const char *name)
{
	char path[64], line[256];
	pid_t value = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	file = fopen(path, "re");
	if (!file)
		return 0;
	while (fgets(line, sizeof(line), file))
		if (strncmp(line, name, strlen(name)) == 0) {
			value = (pid_t)strtol(line + strlen(name), NULL, 10);
			break;
		}
	fclose(file);
	return value;
}

static int is_thread_of(pid_t pid, pid_t tid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%d", pid, tid);
	return access(path, F_OK) == 0;
}

static void send_process(struct rs_tracer *t, const struct rs_process *process, uint32_t parent)
{
	rs_begin(t);
	rs_put32(t, (uint32_t)process->pid);
	rs_put32(t, parent);
	rs_put64(t, rs_now_ns());
	rs_end(t, RS_TRACE_PROCESS);
}

/* Returns the slot of a new process; the number sent is another thing, slots are reused. */
static uint32_t process_add(struct rs_tracer *t, pid_t pid, const struct rs_process *creator)
{
	struct rs_process process = {.pid = pid, .number = RS_TRACE_NONE, .pidfd = -1};
	uint32_t slot = t->process_slots;
	uint32_t parent = creator ? creator->number : RS_TRACE_NONE;

	process.foreign_namespace = creator ? creator->foreign_namespace : 0;
	if (t->process_numbers < t->config->limits.processes_max)
		process.number = t->process_numbers++;
	else
		rs_lost(t, RS_TRACE_LOSS_PROCESS_CAP, parent, "");
	if (rs_grow((void **)&t->processes, slot, &t->process_capacity, sizeof(process),
		    PROCESSES_MAX) < 0) {
		t->error = -ENOMEM;
		return UINT32_MAX;
	}
	t->processes[slot] = process;
	t->process_slots++;
	if (rs_index_add(&t->process_index, tid_hash(pid), slot, process_rehash, t) < 0)
		t->error = -ENOMEM;
	if (process.number != RS_TRACE_NONE)
		send_process(t, &process, parent);
	return slot;
}

/* Slots are dense: the last one moves into the hole, and its tasks with it. */
static void process_remove(struct rs_tracer *t, uint32_t slot)
{
	uint32_t last = t->process_slots - 1;

	if (t->processes[slot].pidfd >= 0)
		close(t->processes[slot].pidfd);

	rs_index_remove(&t->process_index, tid_hash(t->processes[slot].pid), slot, process_rehash,
			t);
	if (slot != last) {
		rs_index_renumber(&t->process_index, tid_hash(t->processes[last].pid), last, slot);
		t->processes[slot] = t->processes[last];
		for (uint32_t i = 0; i < t->task_count; i++)
			if (t->tasks[i].process == last)
				t->tasks[i].process = slot;
	}
	t->process_slots--;
}

/*
 * `creator` is the task whose fork or clone event told of the new one; NULL when the new task's
 * own first stop came earlier: then /proc says whose child it is.
 */
struct rs_task *rs_task_add(struct rs_tracer *t, pid_t tid, const struct rs_task *creator)
{
	struct rs_task task = {.tid = tid, .process = UINT32_MAX};
	struct rs_process *from = creator ? rs_process_of(t, creator) : NULL;

	if (from && is_thread_of(from->pid, tid)) {
		task.process = creator->process;
	} else {
		pid_t pid = from ? tid : status_field(tid, "Tgid:");
		uint32_t slot = process_find(t, pid);

		if (!from && pid != tid && slot != UINT32_MAX) {
			task.process = slot;
		} else {
			if (!from) {
				uint32_t parent = process_find(t, status_field(tid, "PPid:"));

				from = parent == UINT32_MAX ? NULL : &t->processes[parent];
			}
			task.process = process_add(t, pid > 0 ? pid : tid, from);
		}
	}
	if (task.process == UINT32_MAX || rs_grow((void **)&t->tasks, t->task_count,
						  &t->task_capacity, sizeof(task), TASKS_MAX) < 0) {
		t->error = t->error ? t->error : -ENOMEM;
		return NULL;
	}
	t->processes[task.process].threads++;
	t->tasks[t->task_count] = task;
	if (rs_index_add(&t->task_index, tid_hash(tid), t->task_count, task_rehash, t) < 0)
		t->error = -ENOMEM;
	t->task_count++;
	rs_counted(t, RS_TRACE_C_TASKS);
	return &t->tasks[t->task_count - 1];
}

static void task_forget(struct rs_tracer *t, struct rs_task *task)
{
	uint32_t slot = (uint32_t)(task - t->tasks), last = t->task_count - 1;

	rs_index_remove(&t->task_index, tid_hash(task->tid), slot, task_rehash, t);
	if (slot != last) {
		rs_index_renumber(&t->task_index, tid_hash(t->tasks[last].tid), last, slot);
		t->tasks[slot] = t->tasks[last];
	}
	t->task_count--;
}

void rs_task_remove(struct rs_tracer *t, pid_t tid)
{
	struct rs_task *task = rs_task_find(t, tid);
	uint32_t slot;

	if (!task)
		return;
	slot = task->process;
	task_forget(t, task);
	if (--t->processes[slot].threads == 0)
		process_remove(t, slot);
}

/* After an exec the task has the id of the process, whatever thread it was before. */
void rs_task_exec(struct rs_tracer *t, struct rs_task *task, pid_t former_tid)
{
	pid_t pid = task->tid;
	struct rs_task *former = former_tid == pid ? NULL : rs_task_find(t, former_tid);

	task->awaiting_exit = 0;
	if (former) {
		uint32_t slot = former->process;

		task_forget(t, former);
		t->processes[slot].threads--;
	}
}

static void send_exit(struct rs_tracer *t, uint32_t process, int wait_status)
{
	rs_begin(t);
	rs_put32(t, process);
	rs_put32(t, (uint32_t)wait_status);
	rs_put64(t, rs_now_ns());
	rs_end(t, RS_TRACE_EXIT);
}

/* The end of a leader is reported last, with the status of the whole process. */
void rs_task_ended(struct rs_tracer *t, pid_t tid, int wait_status)
{
	struct rs_task *task = rs_task_find(t, tid);
	struct rs_process *process;

	if (!task)
		return;
	rs_foreign_task_ended(t, task);
	process = rs_process_of(t, task);
	if (process->pid == tid && process->number != RS_TRACE_NONE)
		send_exit(t, process->number, wait_status);
	if (process->pid == tid && t->killing)
		t->killed++;
	rs_task_remove(t, tid);
}

void rs_task_kill_all(struct rs_tracer *t)
{
	for (uint32_t i = 0; i < t->task_count; i++)
		kill(t->processes[t->tasks[i].process].pid, SIGKILL);
}
