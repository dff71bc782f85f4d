/*
 * spill.c: where the records of actions live: in memory up to the budget of the engine, and beyond
 * it in a file without a name, one per action, mapped.
 *
 * Owns: the file of each scope. Must not: lose a record unsaid: the room in the file is reserved
 * before it is used, and without room the record is left out and counted by whoever asked. Hands
 * off: memory -> mem.c. Privilege: writing in the daemon's state directory.
 *
 * A mapped file is read and written like memory, so nothing else knows the difference; the kernel
 * writes its pages out when it needs them. What is not looked at again before the end is told to
 * rest. The file is shared, not private: a page that leaves memory is not lost.
 */
#include "spill.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE_BYTES 65536 /* the largest page size there is */

void rs_budget_init(struct rs_budget *budget)
{
	budget->limit = UINT64_MAX;
	budget->dir_fd = -1;
}

int rs_budget_set(struct rs_budget *budget, uint64_t limit, const char *directory)
{
	int fd;

	if (budget->dir_fd >= 0)
		return -EBUSY;
	fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	budget->dir_fd = fd;
	budget->limit = limit;
	return 0;
}

void rs_budget_close(struct rs_budget *budget)
{
	if (budget->dir_fd >= 0)
		close(budget->dir_fd);
	budget->dir_fd = -1;
}

void rs_spill_init(struct rs_spill *spill, struct rs_budget *budget)
{
	*spill = (struct rs_spill){.budget = budget, .fd = -1};
}

static void *take_memory(struct rs_budget *budget, size_t bytes)
{
	uint64_t used = atomic_fetch_add(&budget->used, bytes);
	void *memory = NULL;

	if (used <= budget->limit && bytes <= budget->limit - used)
		memory = malloc(bytes);
	if (!memory)
		atomic_fetch_sub(&budget->used, bytes);
	return memory;
}

/* A file without a name; where the filesystem has no O_TMPFILE, its name is removed at once. */
static int make_file(int dir_fd)
{
	char name[64];
	int fd = openat(dir_fd, ".", O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0600);

	if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR))
		return fd;
	snprintf(name, sizeof(name), "spill.%d.%ld.tmp", getpid(), (long)gettid());
	fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd >= 0)
		unlinkat(dir_fd, name, 0);
	return fd;
}

static void *take_file(struct rs_spill *spill, size_t bytes)
{
	void *memory;

	if (spill->budget->dir_fd < 0)
		return NULL;
	if (spill->fd < 0)
		spill->fd = make_file(spill->budget->dir_fd);
	/* Reserved now: a full disk shows here, not as a fault when the page is written. */
	if (spill->fd < 0 || posix_fallocate(spill->fd, (off_t)spill->file_bytes, (off_t)bytes))
		return NULL;
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, spill->fd,
		      (off_t)spill->file_bytes);
	if (memory == MAP_FAILED)
		return NULL;
	spill->file_bytes += bytes;
	atomic_fetch_add(&spill->budget->spilled, bytes);
	return memory;
}

void *rs_spill_take(struct rs_spill *spill, size_t bytes, size_t *ret_bytes, bool *ret_in_file)
{
	void *memory = take_memory(spill->budget, bytes);

	*ret_in_file = !memory;
	if (!memory) {
		bytes = (bytes + PAGE_BYTES - 1) & ~(size_t)(PAGE_BYTES - 1);
		memory = take_file(spill, bytes);
	}
	if (!memory)
		atomic_fetch_add(&spill->budget->failures, 1);
	else
		*ret_bytes = bytes;
	return memory;
}

void rs_spill_rest(void *memory, size_t bytes)
{
	madvise(memory, bytes, MADV_DONTNEED); /* only advice: nothing depends on it */
}

void rs_spill_give(struct rs_spill *spill, void *memory, size_t bytes, bool in_file)
{
	if (in_file) {
		munmap(memory, bytes);
		atomic_fetch_sub(&spill->budget->spilled, bytes);
	} else {
		free(memory);
		atomic_fetch_sub(&spill->budget->used, bytes);
	}
}

void rs_spill_close(struct rs_spill *spill)
{
	if (spill->fd >= 0)
		close(spill->fd);
	spill->fd = -1;
}
