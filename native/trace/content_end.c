/*
 * content_end.c: the end of a scope's contents, and what the caller gets of them.
 *
 * What was hashed is looked at again: did somebody else change it since? If the clock was set
 * meanwhile, times prove nothing, and every file has failed.
 *
 * Owns: nothing. Must not: take a change by members for one by others.
 * Hand-off: struct rs_contents -> rs_trace_content_at and the like. Privilege: as content.c.
 */
#include "content.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* All comparisons of times are void then. */
static void distrust(struct rs_contents *contents)
{
	for (size_t i = 0; i < contents->count; i++) {
		const struct rs_content_entry *entry = &contents->entries[i];
		const struct rs_content_job job = {
		    .dev = entry->dev, .ino = entry->ino, .told = true};

		rs_contents_fail(contents, &job, RS_CONTENT_CHANGED);
	}
}

static bool clock_was_set(const struct rs_contents *contents)
{
	uint64_t expired;

	return read(contents->clock_fd, &expired, sizeof(expired)) >= 0 || errno != EAGAIN;
}

static void compare(struct rs_contents *contents, struct rs_hasher *hasher,
		    struct rs_content_entry *entry)
{
	const char *path = contents->paths + entry->told.path_offset;
	struct rs_hash_result result;
	struct rs_stat now;
	char link[32];
	int fd = rs_content_open(contents, path, false), error, copy;

	/* As a server has it now. Gone, or a link in its place, is no later content. */
	error = fd < 0 ? fd : rs_stat_synced_fd(fd, &now);
	if (error) {
		if (!rs_is_gone(error)) /* it was not looked at */
			entry->told.mutated = 2;
	} else if (rs_same_inode(&now, &entry->stat) && now.btime_ns == entry->stat.btime_ns &&
		   !rs_same_state(&now, &entry->stat) &&
		   !rs_table_get(&contents->written, entry->dev, entry->ino)) {
		snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
		copy = open(link, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
		if (copy < 0 || rs_hash_fd(hasher, copy, &now, NULL, &result) || result.unstable)
			entry->told.mutated = 2;
		else if (memcmp(result.content.digest, entry->told.digest, RS_SHA256_BYTES)) {
			entry->told.mutated = 1;
			memcpy(entry->told.later, result.content.digest, RS_SHA256_BYTES);
		}
		if (copy >= 0)
			close(copy);
	}
	if (fd >= 0)
		close(fd);
}

void rs_contents_finish(struct rs_contents *contents)
{
	struct rs_hasher hasher;

	rs_contents_await(contents);
	if (clock_was_set(contents))
		distrust(contents);
	if (rs_hasher_open(&hasher)) {
		contents->failures[RS_CONTENT_UNTOLD]++;
		return;
	}
	for (size_t i = 0; i < contents->count; i++)
		compare(contents, &hasher, &contents->entries[i]);
	rs_hasher_close(&hasher);
}

/* ---- for the caller ---- */

void rs_trace_settle(rs_trace_result *result)
{
	if (result->contents)
		rs_contents_finish(result->contents);
}

const rs_trace_content *rs_trace_content_at(const rs_trace_result *result, size_t index,
					    const char **ret_path)
{
	const struct rs_contents *contents = result->contents;

	if (!contents || index >= contents->count)
		return NULL;
	*ret_path = contents->paths + contents->entries[index].told.path_offset;
	return &contents->entries[index].told;
}

int rs_trace_content_stands(const rs_trace_result *result, size_t index)
{
	const struct rs_content_entry *entry = &result->contents->entries[index];

	return !rs_table_get(&result->contents->failed, entry->dev, entry->ino);
}

const rs_trace_content_open *rs_trace_content_opens(const rs_trace_result *result,
						    size_t *ret_count)
{
	*ret_count = result->contents ? result->contents->opens_count : 0;
	return result->contents ? result->contents->opens : NULL;
}

const char *rs_trace_outputs(const rs_trace_result *result, size_t *ret_length)
{
	*ret_length = result->contents ? result->contents->outputs_length : 0;
	return result->contents ? result->contents->outputs : NULL;
}

void rs_trace_content_failures(const rs_trace_result *result, uint64_t *ret_failures8,
			       uint64_t *ret_hashed_bytes, uint64_t *ret_cache_hits)
{
	memset(ret_failures8, 0, RS_CONTENT_REASONS * sizeof(*ret_failures8));
	*ret_hashed_bytes = *ret_cache_hits = 0;
	if (!result->contents)
		return;
	memcpy(ret_failures8, result->contents->failures, sizeof(result->contents->failures));
	*ret_hashed_bytes = result->contents->hashed_bytes;
	*ret_cache_hits = result->contents->cache_hits;
}
