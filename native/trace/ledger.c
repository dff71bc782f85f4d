/*
 * ledger.c: the two witnesses compared. Every file that the trace saw being opened has a digest
 * from the other witness, or falls under a typed exclusion; what is left is a loss.
 *
 * Owns: nothing. Must not: make a system call. Hand-off: result and digested files ->
 * rs_trace_ledger. Privilege: none.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "content.h"

#define FMODE_CREATED_FLAG 0x100000
#define O_TMPFILE_FLAG	   020000000

#define ACCESS_READ	  1
#define ACCESS_WRITE	  2
#define ACCESS_EXECUTED	  4
#define ACCESS_NO_CONTENT 8

/* Filesystems whose files are not stored content: the other witness does not mark them. */
static const uint64_t pseudo_filesystems[] = {
    0x9fa0,	/* proc */
    0x62656572, /* sysfs */
    0x27e0eb,	/* cgroup */
    0x63677270, /* cgroup2 */
    0x64626720, /* debugfs */
    0x74726163, /* tracefs */
    0x73636673, /* securityfs */
    0xcafe4a11, /* bpf */
    0x1cd1,	/* devpts */
    0x19800202, /* mqueue */
    0x6e736673, /* nsfs */
    0x50495045, /* pipefs */
    0x534f434b, /* sockfs */
    0x09041934, /* anonymous inodes */
    0x62656570, /* configfs */
    0xde5e81e4, /* efivarfs */
    0x42494e4d, /* binfmt_misc */
    0x6165676c, /* pstore */
    0xf97cff8c, /* selinux */
    0x65735543, /* fusectl */
    0x50494446, /* pidfs */
};

/* Filesystems where stat(2) shows another device than the inode has: compared by inode number only.
 */
static const uint64_t own_device_filesystems[] = {
    0x9123683e, /* btrfs: one per subvolume */
    0x794c7630, /* overlayfs: that of a layer */
};

struct pair {
	uint64_t dev;
	uint64_t ino;
};

static int in(const uint64_t *list, size_t count, uint64_t value)
{
	for (size_t i = 0; i < count; i++)
		if (list[i] == value)
			return 1;
	return 0;
}

#define LISTED(list, value) in(list, sizeof(list) / sizeof((list)[0]), value)

static int by_inode(const void *left, const void *right)
{
	const struct pair *a = left, *b = right;

	if (a->ino != b->ino)
		return a->ino < b->ino ? -1 : 1;
	return a->dev < b->dev ? -1 : a->dev > b->dev;
}

static int by_file(const void *left, const void *right)
{
	const rs_trace_open *a = left, *b = right;

	if (a->ino != b->ino)
		return a->ino < b->ino ? -1 : 1;
	return a->dev < b->dev ? -1 : a->dev > b->dev;
}

static uint64_t user_dev(uint32_t dev)
{
	return makedev(dev >> 20, dev & 0xfffff);
}

uint64_t rs_trace_user_device(uint64_t dev)
{
	return user_dev((uint32_t)dev);
}

uint64_t rs_trace_kernel_device(uint64_t dev)
{
	return (uint64_t)major(dev) << 20 | minor(dev);
}

int rs_trace_is_pseudo(uint64_t magic)
{
	return LISTED(pseudo_filesystems, magic);
}

int rs_trace_has_own_device(uint64_t magic)
{
	return LISTED(own_device_filesystems, magic);
}

static const struct pair *first_of_inode(const struct pair *pairs, size_t count, uint64_t ino)
{
	size_t low = 0, high = count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (pairs[middle].ino < ino)
			low = middle + 1;
		else
			high = middle;
	}
	return low < count && pairs[low].ino == ino ? &pairs[low] : NULL;
}

static int has_digest(const struct pair *pairs, size_t count, const rs_trace_open *file)
{
	const struct pair *at = first_of_inode(pairs, count, file->ino);
	int any_device = LISTED(own_device_filesystems, file->magic);

	for (; at && at < pairs + count && at->ino == file->ino; at++)
		if (any_device || at->dev == user_dev(file->dev))
			return 1;
	return 0;
}

/* Count one distinct file; 1 if it is a loss. */
static int judge(const rs_trace_open *file, int hashed, uint64_t memory_device,
		 rs_trace_ledger *ledger)
{
	uint64_t *place = &ledger->unhashed;

	ledger->files++;
	ledger->block_devices += S_ISBLK(file->mode) && file->access != ACCESS_NO_CONTENT;
	if (hashed)
		place = &ledger->hashed;
	else if (!file->ino && !file->mode)
		place = &ledger->unresolved;
	else if (!S_ISREG(file->mode))
		place = &ledger->not_regular;
	else if (file->access == ACCESS_NO_CONTENT)
		place = &ledger->no_content;
	else if (LISTED(pseudo_filesystems, file->magic))
		place = &ledger->pseudo_filesystem;
	else if (user_dev(file->dev) == memory_device)
		place = &ledger->memory_file;
	else if ((file->fmode_any & FMODE_CREATED_FLAG) || (file->flags_any & O_TMPFILE_FLAG))
		place = &ledger->created;
	else if (!(file->access & (ACCESS_READ | ACCESS_EXECUTED)))
		place = &ledger->write_only;
	(*place)++;
	return place == &ledger->unhashed;
}

void rs_trace_files(const rs_trace_result *result, uint64_t *ret_pairs)
{
	size_t count;
	const rs_trace_open *opens = rs_trace_opens(result, &count);

	for (size_t i = 0; i < count; i++) {
		int own = LISTED(own_device_filesystems, opens[i].magic);

		ret_pairs[2 * i] = own ? 0 : user_dev(opens[i].dev);
		ret_pairs[2 * i + 1] = opens[i].ino;
	}
}

size_t rs_trace_written(const rs_trace_result *result, uint64_t *ret_pairs)
{
	size_t count, written = 0;
	const rs_trace_open *opens = rs_trace_opens(result, &count);

	for (size_t i = 0; i < count; i++) {
		if (!(opens[i].access & ACCESS_WRITE))
			continue;
		ret_pairs[2 * written] =
		    LISTED(own_device_filesystems, opens[i].magic) ? 0 : user_dev(opens[i].dev);
		ret_pairs[2 * written++ + 1] = opens[i].ino;
	}
	return written;
}

int64_t rs_trace_reconcile(const rs_trace_result *result, const uint64_t *files, size_t count,
			   uint64_t memory_device, rs_trace_ledger *ret_ledger,
			   rs_trace_open *ret_unhashed, size_t unhashed_max)
{
	size_t opens_count, at = 0, left = 0;
	const rs_trace_open *opens = rs_trace_opens(result, &opens_count);
	rs_trace_open *sorted = malloc((opens_count + 1) * sizeof(*sorted));
	struct pair *pairs = malloc((count + 1) * sizeof(*pairs));
	rs_trace_ledger ledger = {};

	if (!sorted || !pairs) {
		free(sorted);
		free(pairs);
		return -12; /* ENOMEM */
	}
	if (opens_count)
		memcpy(sorted, opens, opens_count * sizeof(*sorted));
	if (count)
		memcpy(pairs, files, count * sizeof(*pairs));
	qsort(sorted, opens_count, sizeof(*sorted), by_file);
	qsort(pairs, count, sizeof(*pairs), by_inode);
	while (at < opens_count) {
		rs_trace_open file = sorted[at++];

		for (; at < opens_count && !by_file(&file, &sorted[at]);
		     at++) { /* all processes together */
			file.access |= sorted[at].access;
			file.fmode_any |= sorted[at].fmode_any;
			file.flags_any |= sorted[at].flags_any;
		}
		if (judge(&file, has_digest(pairs, count, &file), memory_device, &ledger)) {
			if (left < unhashed_max)
				ret_unhashed[left] = file;
			left++;
		}
	}
	for (size_t i = 0; i < count; i++) {
		rs_trace_open key = {.ino = pairs[i].ino};
		const rs_trace_open *seen = NULL;
		size_t low = 0, high = opens_count;

		while (low < high) {
			size_t middle = low + (high - low) / 2;

			if (sorted[middle].ino < key.ino)
				low = middle + 1;
			else
				high = middle;
		}
		for (; low < opens_count && sorted[low].ino == key.ino && !seen; low++)
			if (user_dev(sorted[low].dev) == pairs[i].dev ||
			    LISTED(own_device_filesystems, sorted[low].magic))
				seen = &sorted[low];
		ledger.fanotify_only += !seen;
	}
	free(sorted);
	free(pairs);
	*ret_ledger = ledger;
	return (int64_t)left;
}
