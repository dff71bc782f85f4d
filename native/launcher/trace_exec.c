// SPDX-License-Identifier: Apache-2.0
/*
 * A task has executed a program and is held before its first instruction: what did the kernel load?
 *
 * The program itself is /proc/PID/exe. The name the kernel was given is AT_EXECFN, which the kernel
 * wrote into the new stack, so no thread can have changed it; if it is another file than the
 * program, it is a script. The loader (PT_INTERP) is opened by the kernel without a system call:
 * it is found by name and must be the file that is mapped at AT_BASE.
 *
 * Owns: the fds it opens, closed before it returns; tracer.environments. Must not: send values
 * of the environment in clear.
 *
 *   PTRACE_EVENT_EXEC ──► here ──► trace_hash.c, trace_file.c ──EXEC, ENVIRONMENT──► sink
 *
 * Privilege: tracer of the task.
 */
#include "trace_internal.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define KIND_EXECUTABLE	      1
#define SCRIPT_DEPTH_MAX      5 /* as in the kernel: fs/exec.c, exec_binprm() */
#define SHEBANG_BYTES	      256
#define CMDLINE_BYTES_MAX     (128u << 10)
#define ENVIRONMENT_BYTES_MAX (4u << 20)
#define ENVIRONMENTS_MAX      4096u
#define PROGRAM_HEADERS_MAX   256

struct exec {
	pid_t tid;
	uint32_t process;
	uint64_t base, execfn; /* AT_BASE, AT_EXECFN */
	struct statx exe;
	uint32_t exe_file, program_file, environment;
	uint8_t flags;
	char program[RS_PATH_BYTES];
};

static int same_file(const struct statx *a, const struct statx *b)
{
	return a->stx_ino == b->stx_ino && rs_device(a) == rs_device(b);
}

/* Whole small file of /proc; returns the size, *ret_data is the caller's. */
static ssize_t read_proc(pid_t tid, const char *name, size_t size_max, char **ret_data)
{
	char path[64], *data = NULL;
	size_t size = 0, capacity = 0;
	ssize_t got = 0;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", tid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	do {
		if (capacity - size < 4096) {
			char *moved = realloc(data, capacity + 16384);

			if (!moved) {
				got = -ENOMEM;
				break;
			}
			data = moved;
			capacity += 16384;
		}
		got = read(fd, data + size, capacity - size - 1);
		if (got < 0)
			got = -errno;
		else
			size += (size_t)got;
	} while (got > 0 && size < size_max);
	close(fd);
	if (got < 0) {
		free(data);
		return got;
	}
	size = size < size_max ? size : size_max;
	data[size] = '\0';
	*ret_data = data;
	return (ssize_t)size;
}

static void read_auxv(struct exec *e, int is_64)
{
	size_t width = is_64 ? 8 : 4;
	char *data;
	ssize_t size = read_proc(e->tid, "auxv", 4096, &data);

	if (size < 0)
		return;
	for (size_t i = 0; i + 2 * width <= (size_t)size; i += 2 * width) {
		uint64_t pair[2] = {0, 0};

		memcpy(&pair[0], data + i, width);
		memcpy(&pair[1], data + i + width, width);
		if (pair[0] == AT_BASE)
			e->base = pair[1];
		else if (pair[0] == AT_EXECFN)
			e->execfn = pair[1];
	}
	free(data);
}

/* Hashes an executed file that is open; returns its number. */
static uint32_t take_file(struct rs_tracer *t, struct exec *e, int fd, const char *path)
{
	struct rs_digest digest;
	struct statx st;
	uint32_t file;
	uint8_t flags;
	int result = rs_hash_file(t, fd, &st, &digest);

	if (result < 0) {
		rs_lost(t, (enum rs_trace_loss) - result, e->process, path);
		return RS_TRACE_NONE;
	}
	rs_counted(t, RS_TRACE_C_HASHED);
	flags = rs_born_flag(t, &st) | rs_remote_flag(t, e->tid, fd);
	if (rs_is_anonymous(path, &st))
		flags |= RS_TRACE_FILE_ANONYMOUS;
	file = rs_file_seen(t, path, &st, &digest, KIND_EXECUTABLE, flags);
	rs_file_opened(t, e->process, file);
	return file;
}

static ssize_t fd_path(int fd, char path[RS_PATH_BYTES])
{
	char link[64];

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	return rs_link_text(link, path, NULL);
}

/* Whether the mapping that begins at `address` is this file: "start-end perms off maj:min inode".
 */
static int mapped_at(pid_t tid, uint64_t address, const struct statx *st)
{
	char path[64], line[RS_PATH_BYTES + 128];
	int found = 0;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", tid);
	maps = fopen(path, "re");
	if (!maps)
		return 0;
	while (!found && fgets(line, sizeof(line), maps)) {
		unsigned long long start, inode;
		unsigned int major, minor;

		if (sscanf(line, "%llx-%*x %*s %*x %x:%x %llu", &start, &major, &minor, &inode) ==
			4 &&
		    start == address)
			found = inode == st->stx_ino;
	}
	fclose(maps);
	return found;
}

/* PT_INTERP of the program; 0 if it has none, -errno if the program is not an ELF file we can read.
 */
static int elf_interpreter(int fd, int is_64, char ret_name[RS_PATH_BYTES])
{
	Elf64_Ehdr head64;
	Elf32_Ehdr head32;
	uint64_t offset;
	unsigned int count, size;

	if (is_64) {
		if (pread(fd, &head64, sizeof(head64), 0) != sizeof(head64))
			return -ENOEXEC;
		offset = head64.e_phoff, count = head64.e_phnum, size = head64.e_phentsize;
	} else {
		if (pread(fd, &head32, sizeof(head32), 0) != sizeof(head32))
			return -ENOEXEC;
		offset = head32.e_phoff, count = head32.e_phnum, size = head32.e_phentsize;
	}
	for (unsigned int i = 0; i < count && i < PROGRAM_HEADERS_MAX; i++) {
		Elf64_Phdr p64 = {0};
		Elf32_Phdr p32 = {0};
		uint64_t at = offset + (uint64_t)i * size;
		ssize_t got = is_64 ? pread(fd, &p64, sizeof(p64), (off_t)at)
				    : pread(fd, &p32, sizeof(p32), (off_t)at);
		uint64_t name = is_64 ? p64.p_offset : p32.p_offset;
		uint64_t length = is_64 ? p64.p_filesz : p32.p_filesz;

		if (got <= 0)
			return -ENOEXEC;
		if ((is_64 ? p64.p_type : p32.p_type) != PT_INTERP)
			continue;
		if (length == 0 || length >= RS_PATH_BYTES ||
		    pread(fd, ret_name, length, (off_t)name) != (ssize_t)length)
			return -ENOEXEC;
		ret_name[length] = '\0';
		return 1;
	}
	return 0;
}

static void take_loader(struct rs_tracer *t, struct exec *e, int exe_fd, int is_64)
{
	char name[RS_PATH_BYTES], path[RS_PATH_BYTES];
	int result = elf_interpreter(exe_fd, is_64, name), fd;
	struct statx st;

	if (result == 0)
		return;
	fd = result < 0 ? result : rs_open_as(e->tid, AT_FDCWD, name, O_RDONLY | O_NONBLOCK);
	if (fd < 0) {
		rs_lost(t, RS_TRACE_LOSS_INTERPRETER, e->process, e->program);
		return;
	}
	if (rs_statx(fd, "", AT_EMPTY_PATH, RS_STATX_MASK, &st) == 0 && S_ISREG(st.stx_mode) &&
	    mapped_at(e->tid, e->base, &st) && fd_path(fd, path) > 0)
		take_file(t, e, fd, path);
	else
		rs_lost(t, RS_TRACE_LOSS_INTERPRETER, e->process, name);
	close(fd);
}

/* The "#!" line's interpreter; 0 if the file is no script. */
static int shebang(int fd, char ret_name[RS_PATH_BYTES])
{
	char line[SHEBANG_BYTES + 1];
	ssize_t got = pread(fd, line, SHEBANG_BYTES, 0);
	size_t start, end;

	if (got < 3 || line[0] != '#' || line[1] != '!')
		return 0;
	line[got] = '\0';
	start = 2 + strspn(line + 2, " \t");
	end = start + strcspn(line + start, " \t\n");
	if (end == start)
		return 0;
	memcpy(ret_name, line + start, end - start);
	ret_name[end - start] = '\0';
	return 1;
}

/*
 * From the name the kernel was given to the program that runs: a script names an interpreter,
 * which may be a script again. Every one but the last is hashed here. A program that a registered
 * format (binfmt_misc) started ends the chain without a "#!": it is hashed and that is all there
 * is.
 */
static void take_program(struct rs_tracer *t, struct exec *e)
{
	char name[RS_PATH_BYTES], path[RS_PATH_BYTES];

	if (rs_read_string(e->tid, e->execfn, name, sizeof(name)) < 0) {
		rs_lost(t, RS_TRACE_LOSS_ARGUMENT, e->process, e->program);
		return;
	}
	for (int depth = 0; depth <= SCRIPT_DEPTH_MAX; depth++) {
		int fd = rs_open_as(e->tid, AT_FDCWD, name, O_RDONLY | O_NONBLOCK);
		struct statx st;
		uint32_t file;
		int more;

		if (fd < 0) { /* for example a descriptor that exec closed */
			if (depth > 0 || strncmp(name, "/dev/fd/", 8) != 0)
				rs_lost(t, RS_TRACE_LOSS_INTERPRETER, e->process, name);
			return;
		}
		if (rs_statx(fd, "", AT_EMPTY_PATH, RS_STATX_MASK, &st) < 0 ||
		    !S_ISREG(st.stx_mode) || same_file(&st, &e->exe) || fd_path(fd, path) < 0) {
			close(fd);
			return;
		}
		file = take_file(t, e, fd, path);
		if (depth == 0) {
			e->program_file = file;
			memcpy(e->program, path, sizeof(path));
		}
		more = shebang(fd, name);
		close(fd);
		if (!more)
			return;
	}
}

static void take_exe(struct rs_tracer *t, struct exec *e)
{
	char link[64];
	unsigned char ident[EI_NIDENT] = {0};
	int fd, is_64;

	snprintf(link, sizeof(link), "/proc/%d/exe", e->tid);
	if (rs_statx(AT_FDCWD, link, 0, RS_STATX_MASK, &e->exe) < 0 ||
	    rs_link_text(link, e->program, &e->exe) < 0) {
		rs_lost(t, RS_TRACE_LOSS_DENIED, e->process, "");
		return;
	}
	if (e->exe.stx_mode & (S_ISUID | S_ISGID))
		e->flags |= RS_TRACE_EXEC_SETUID;
	fd = open(link, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0) {
		rs_lost(t, RS_TRACE_LOSS_DENIED, e->process, e->program);
		return;
	}
	e->exe_file = e->program_file = take_file(t, e, fd, e->program);
	is_64 =
	    pread(fd, ident, sizeof(ident), 0) == sizeof(ident) && ident[EI_CLASS] == ELFCLASS64;
	read_auxv(e, is_64);
	take_loader(t, e, fd, is_64);
	close(fd);
	take_program(t, e);
}

static int environment_equal(const void *context, uint32_t entry, const void *key)
{
	const struct rs_tracer *t = context;

	return memcmp(&t->environments[entry], key, sizeof(struct rs_digest)) == 0;
}

static uint64_t environment_rehash(const void *context, uint32_t entry)
{
	const struct rs_tracer *t = context;

	return rs_hash_bytes(&t->environments[entry], sizeof(struct rs_digest), 0);
}

static void send_environment(struct rs_tracer *t, const char *data, size_t size)
{
	uint32_t count = 0;
	size_t length;

	for (size_t i = 0; i < size; i += strlen(data + i) + 1)
		count++;
	rs_begin(t);
	rs_put32(t, count);
	for (size_t i = 0; i < size; i += length + 1) {
		const char *value = strchr(data + i, '=');
		size_t name_length;
		uint8_t digest[RS_SHA256_BYTES];

		length = strlen(data + i);
		name_length = value ? (size_t)(value - data) - i : length;
		if (name_length > UINT16_MAX)
			name_length = UINT16_MAX;
		value = value ? value + 1 : data + i + length;
		rs_sha256(value, (size_t)(data + i + length - value), digest);
		rs_put16(t, (uint16_t)name_length);
		rs_put_bytes(t, data + i, name_length);
		rs_put_bytes(t, digest, sizeof(digest));
	}
	rs_end(t, RS_TRACE_ENVIRONMENT);
}

/* Most processes of an action have the same environment: it is sent once. */
static uint32_t take_environment(struct rs_tracer *t, pid_t tid)
{
	struct rs_digest digest;
	uint64_t hash;
	uint32_t found;
	char *data;
	ssize_t size = read_proc(tid, "environ", ENVIRONMENT_BYTES_MAX, &data);

	if (size < 0)
		return RS_TRACE_NONE;
	rs_sha256(data, (size_t)size, digest.bytes);
	hash = rs_hash_bytes(&digest, sizeof(digest), 0);
	found = rs_index_find(&t->environment_index, hash, environment_equal, t, &digest);
	if (found == UINT32_MAX &&
	    rs_grow((void **)&t->environments, t->environment_count, &t->environment_capacity,
		    sizeof(digest), ENVIRONMENTS_MAX) == 0) {
		found = t->environment_count;
		t->environments[found] = digest;
		if (rs_index_add(&t->environment_index, hash, found, environment_rehash, t) < 0) {
			t->error = -ENOMEM;
		} else {
			t->environment_count++;
			send_environment(t, data, (size_t)size);
		}
	} else if (found == UINT32_MAX) {
		rs_lost(t, RS_TRACE_LOSS_MEMORY, RS_TRACE_NONE, "environ");
		found = RS_TRACE_NONE;
	}
	free(data);
	return found;
}

/* /proc/PID/status: Speculation_Store_Bypass. */
static uint8_t speculation(pid_t tid)
{
	char *data, *line;
	ssize_t size = read_proc(tid, "status", 16384, &data);
	uint8_t flags = 0;

	if (size < 0)
		return 0;
	line = strstr(data, "Speculation_Store_Bypass:");
	if (line)
		line += strcspn(line, "\t\n");
	if (line && strncmp(line, "\tunknown", strlen("\tunknown")) != 0) {
		flags = RS_TRACE_EXEC_SPEC_KNOWN;
		if (strncmp(line, "\tvulnerable", 11) == 0 ||
		    strncmp(line, "\tthread vulnerable", 18) == 0)
			flags |= RS_TRACE_EXEC_SPEC_VULNERABLE;
	}
	free(data);
	return flags;
}

static void send_exec(struct rs_tracer *t, const struct exec *e)
{
	char *comm = NULL, *cmdline = NULL;
	ssize_t comm_size = read_proc(e->tid, "comm", 16, &comm);
	ssize_t cmdline_size = read_proc(e->tid, "cmdline", 4u << 20, &cmdline);
	uint32_t sent;
	uint8_t head[2];

	if (comm_size > 0 && comm[comm_size - 1] == '\n')
		comm_size--;
	comm_size = comm_size < 0 ? 0 : comm_size;
	cmdline_size = cmdline_size < 0 ? 0 : cmdline_size;
	sent = cmdline_size > CMDLINE_BYTES_MAX ? CMDLINE_BYTES_MAX : (uint32_t)cmdline_size;
	head[0] = e->flags;
	head[1] = (uint8_t)comm_size;
	rs_begin(t);
	rs_put32(t, e->process);
	rs_put32(t, e->program_file);
	rs_put32(t, e->exe_file);
	rs_put32(t, e->environment);
	rs_put64(t, rs_now_ns());
	rs_put_bytes(t, head, sizeof(head));
	rs_put16(t, (uint16_t)strlen(e->program));
	rs_put32(t, sent);
	rs_put32(t, (uint32_t)cmdline_size);
	rs_put_bytes(t, comm, (size_t)comm_size);
	rs_put_bytes(t, e->program, strlen(e->program));
	rs_put_bytes(t, cmdline, sent);
	rs_end(t, RS_TRACE_EXEC);
	free(comm);
	free(cmdline);
}

void rs_exec_done(struct rs_tracer *t, struct rs_task *task)
{
	struct exec e = {.tid = task->tid,
			 .process = rs_process_of(t, task)->number,
			 .exe_file = RS_TRACE_NONE,
			 .program_file = RS_TRACE_NONE};

	rs_counted(t, RS_TRACE_C_EXECS);
	take_exe(t, &e);
	e.environment = take_environment(t, task->tid);
	e.flags |= speculation(task->tid);
	if (e.process != RS_TRACE_NONE)
		send_exec(t, &e);
}
