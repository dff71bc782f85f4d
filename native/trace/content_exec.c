/*
 * content_exec.c: files that the kernel opens by itself when a program is executed: the loader of
 * an ELF file, a script, the interpreters between them. No program of ours sees these opens where
 * lsm/file_open is not called.
 *
 * They are found by their names, as the kernel does. One that cannot be found, or not be shown to
 * be unchanged, is a failure of an unnamed file.
 *
 * Owns: the descriptors that it opens. Must not: trust a length in an ELF file.
 * Hand-off: content_hash.c -> here -> rs_content_take. Privilege: as content.c.
 */
#include "content.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define SCRIPT_DEPTH_MAX    5 /* as in the kernel: fs/exec.c, exec_binprm() */
#define SHEBANG_BYTES	    256
#define PROGRAM_HEADERS_MAX 256

static bool read_at(int fd, void *to, size_t bytes, uint64_t offset)
{
	return offset <= INT64_MAX && pread(fd, to, bytes, (off_t)offset) == (ssize_t)bytes;
}

/* Where a program header says that the loader's name is; 0: it has none, -1: not an ELF file. */
#define FIND_LOADER(bits)                                                                          \
	static int find_loader##bits(int fd, uint64_t *ret_offset, uint64_t *ret_length)           \
	{                                                                                          \
		Elf##bits##_Ehdr head;                                                             \
		Elf##bits##_Phdr part;                                                             \
                                                                                                   \
		if (!read_at(fd, &head, sizeof(head), 0) || head.e_phentsize != sizeof(part) ||    \
		    head.e_phnum > PROGRAM_HEADERS_MAX)                                            \
			return -1;                                                                 \
		for (unsigned int i = 0; i < head.e_phnum; i++) {                                  \
			if (!read_at(fd, &part, sizeof(part), head.e_phoff + i * sizeof(part)))    \
				return -1;                                                         \
			if (part.p_type != PT_INTERP)                                              \
				continue;                                                          \
			*ret_offset = part.p_offset;                                               \
			*ret_length = part.p_filesz;                                               \
			return 1;                                                                  \
		}                                                                                  \
		return 0;                                                                          \
	}

FIND_LOADER(32)
FIND_LOADER(64)

/* 1 and the loader's name, 0 without one, -1 where that cannot be known. */
static int loader_of(int fd, char name[PATH_MAX + 1])
{
	uint8_t ident[EI_NIDENT];
	uint64_t offset = 0, length = 0;
	int found = -1;

	if (!read_at(fd, ident, sizeof(ident), 0) || memcmp(ident, ELFMAG, SELFMAG))
		return -1;
	if (ident[EI_CLASS] == ELFCLASS64)
		found = find_loader64(fd, &offset, &length);
	else if (ident[EI_CLASS] == ELFCLASS32)
		found = find_loader32(fd, &offset, &length);
	if (found != 1)
		return found;
	if (length < 2 || length > PATH_MAX || !read_at(fd, name, length, offset))
		return -1;
	name[length] = '\0';
	return 1;
}

/* The interpreter's name out of a script's first line; false: there is none. */
static bool interpreter_of(int fd, char name[PATH_MAX + 1])
{
	char line[SHEBANG_BYTES + 1];
	ssize_t got = pread(fd, line, SHEBANG_BYTES, 0);
	const char *from;
	size_t length;

	if (got < 3 || memcmp(line, "#!", 2))
		return false;
	line[got] = '\0';
	from = line + 2 + strspn(line + 2, " \t");
	length = strcspn(from, " \t\n");
	memcpy(name, from, length);
	name[length] = '\0';
	return length > 0;
}

static int reopen(int fd)
{
	char link[32];

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	return open(link, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
}

/* Path in the action's root of an open file. */
static bool real_path(const struct rs_contents *contents, int fd, char path[PATH_MAX + 1])
{
	size_t prefix = strlen(contents->prefix);
	char link[32];
	ssize_t length;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	length = readlink(link, path, PATH_MAX);
	if (length < 1 || length >= PATH_MAX)
		return false;
	path[length] = '\0';
	if (strncmp(path, contents->prefix, prefix) || path[prefix] != '/')
		return false;
	memmove(path, path + prefix, (size_t)length - prefix + 1);
	return true;
}

/* A job for a file of which no event tells, like the one of the exec that made the kernel open it.
 */
static struct rs_content_job unnamed(const struct rs_content_job *job)
{
	struct rs_content_job found = *job;

	found.told = found.exempt = found.any_device = false;
	return found;
}

static void fail(const struct rs_content_job *job)
{
	const struct rs_content_job lost = unnamed(job);

	rs_contents_fail(job->contents, &lost, RS_CONTENT_GONE);
}

/* Enter the file of a name; its O_PATH descriptor, or -1 after it was counted. */
static int take_named(struct rs_content_worker *worker, const struct rs_content_job *job,
		      const char *name)
{
	struct rs_content_job found = unnamed(job);
	int fd = rs_content_open(job->contents, name, true);
	struct rs_stat stat;
	struct statfs fs;

	if (fd < 0 || rs_stat_fd(fd, &stat) || !S_ISREG(stat.mode) || fstatfs(fd, &fs) ||
	    !real_path(job->contents, fd, worker->path)) {
		fail(job);
		if (fd >= 0)
			close(fd);
		return -1;
	}
	found.dev = rs_trace_kernel_device(stat.dev);
	found.ino = stat.ino;
	found.any_device = rs_trace_has_own_device((uint64_t)fs.f_type);
	if (!rs_contents_made(job->contents, found.dev, found.ino, found.any_device))
		rs_content_take(worker, &found, fd, worker->path);
	return fd;
}

static void take_loader(struct rs_content_worker *worker, const struct rs_content_job *job, int fd)
{
	char name[PATH_MAX + 1];
	int copy = reopen(fd), found = copy < 0 ? -1 : loader_of(copy, name);

	if (copy >= 0)
		close(copy);
	if (found < 0)
		fail(job);
	if (found > 0) {
		copy = take_named(worker, job, name);
		if (copy >= 0)
			close(copy);
	}
}

/* The script, and each interpreter that is a script itself. */
static void take_scripts(struct rs_content_worker *worker, const struct rs_content_job *job)
{
	char name[2 * PATH_MAX + 2];
	struct rs_stat stat;

	snprintf(name, sizeof(name), "%s", job->text + job->path_size);
	for (int depth = 0; depth < SCRIPT_DEPTH_MAX; depth++) {
		int fd = take_named(worker, job, name), copy;
		bool more;

		if (fd < 0)
			return;
		copy = reopen(fd);
		close(fd);
		if (copy < 0) {
			fail(job);
			return;
		}
		more = !rs_stat_fd(copy, &stat) && !rs_content_is(job, &stat) &&
		       interpreter_of(copy, name);
		close(copy);
		if (!more || name[0] != '/')
			return; /* the program itself, or one for a format of its own */
		fd = rs_content_open(job->contents, name, true);
		more = fd >= 0 && !rs_stat_fd(fd, &stat) && !rs_content_is(job, &stat);
		if (fd >= 0)
			close(fd);
		if (!more)
			return;
	}
}

void rs_content_exec(struct rs_content_worker *worker, const struct rs_content_job *job, int fd)
{
	if (job->interpreted)
		take_scripts(worker, job);
	if (fd < 0)
		fail(job); /* whatever its loader is */
	else
		take_loader(worker, job, fd);
}
