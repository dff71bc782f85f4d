/*
 * content_table.c: what is known of the contents of one scope.
 *
 * Owns: the tables of struct rs_contents. Must not: make a system call. Everything has a cap from
 * rs_trace_limits; what a cap or missing memory leaves out is a failure of its file.
 * Hand-off: workers -> here -> rs_trace_contents. Privilege: none.
 */
#include "content.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_SLOTS 64U

uint64_t rs_table_mix(uint64_t value)
{
	value ^= value >> 33;
	value *= 0xff51afd7ed558ccdULL;
	value ^= value >> 33;
	value *= 0xc4ceb9fe1a85ec53ULL;
	return value ^ (value >> 33);
}

static struct rs_table_slot *slot_of(struct rs_table_slot *slots, size_t size, uint64_t a,
				     uint64_t b)
{
	size_t at = rs_table_mix(a ^ rs_table_mix(b)) & (size - 1);

	while (slots[at].used && (slots[at].a != a || slots[at].b != b))
		at = (at + 1) & (size - 1);
	return &slots[at];
}

uint32_t *rs_table_get(const struct rs_table *table, uint64_t a, uint64_t b)
{
	struct rs_table_slot *slot;

	if (!table->size)
		return NULL;
	slot = slot_of(table->slots, table->size, a, b);
	return slot->used ? &slot->value : NULL;
}

static bool grow(struct rs_table *table)
{
	size_t size = table->size ? 2 * table->size : FIRST_SLOTS;
	struct rs_table_slot *slots = calloc(size, sizeof(*slots));

	if (!slots)
		return false;
	for (size_t i = 0; i < table->size; i++)
		if (table->slots[i].used)
			*slot_of(slots, size, table->slots[i].a, table->slots[i].b) =
			    table->slots[i];
	free(table->slots);
	table->slots = slots;
	table->size = size;
	return true;
}

bool rs_contents_made(struct rs_contents *contents, uint64_t dev, uint64_t ino, bool any_device)
{
	bool made;

	pthread_mutex_lock(&contents->mutex);
	made = rs_table_get(&contents->born, any_device ? UINT64_MAX : dev, ino) != NULL;
	pthread_mutex_unlock(&contents->mutex);
	return made;
}

uint32_t *rs_table_put(struct rs_table *table, uint64_t a, uint64_t b)
{
	struct rs_table_slot *slot;

	if (table->count * 4 >= table->size * 3 && !grow(table))
		return NULL;
	slot = slot_of(table->slots, table->size, a, b);
	if (!slot->used) {
		*slot = (struct rs_table_slot){.a = a, .b = b, .used = 1};
		table->count++;
	}
	return &slot->value;
}

/* Room for one more of `bytes` each; false without memory. */
static bool room_for(void **data, size_t *room, size_t wanted, size_t bytes)
{
	size_t size = *room ? *room : 64;
	void *grown;

	if (wanted <= *room)
		return true;
	while (size < wanted)
		size *= 2;
	grown = realloc(*data, size * bytes);
	if (!grown)
		return false;
	*data = grown;
	*room = size;
	return true;
}

void rs_contents_done(struct rs_contents *contents)
{
	pthread_mutex_lock(&contents->mutex);
	if (--contents->pending == 0)
		pthread_cond_broadcast(&contents->idle);
	pthread_mutex_unlock(&contents->mutex);
}

/* The mutex is held. */
static void fail(struct rs_contents *contents, const struct rs_content_job *job,
		 enum rs_content_reason reason)
{
	uint32_t *why;

	if (!job->told) { /* nobody else knows of it */
		contents->failures[RS_CONTENT_UNTOLD]++;
		return;
	}
	why = rs_table_put(&contents->failed, job->dev, job->ino);
	if (!why)
		contents->failures[RS_CONTENT_UNTOLD]++;
	else if (!*why) {
		*why = (uint32_t)reason;
		contents->failures[reason]++;
	}
}

void rs_contents_fail(struct rs_contents *contents, const struct rs_content_job *job,
		      enum rs_content_reason reason)
{
	pthread_mutex_lock(&contents->mutex);
	fail(contents, job, reason);
	pthread_mutex_unlock(&contents->mutex);
}

static uint64_t path_key(const struct rs_stat *stat, const char *path)
{
	uint64_t hash = rs_table_mix(stat->dev ^ rs_table_mix(stat->ino));

	for (; *path; path++)
		hash = (hash ^ (uint8_t)*path) * 0x100000001b3ULL;
	return rs_table_mix(hash);
}

bool rs_contents_known(struct rs_contents *contents, const struct rs_stat *stat,
		       struct rs_content *ret_content)
{
	const struct rs_content_entry *entry;
	const uint32_t *at;
	bool known = false;

	pthread_mutex_lock(&contents->mutex);
	at = rs_table_get(&contents->by_file, stat->dev, stat->ino);
	if (at && *at) {
		entry = &contents->entries[*at - 1];
		known = rs_same_state(&entry->stat, stat);
		if (known) {
			memcpy(ret_content->digest, entry->told.digest, RS_SHA256_BYTES);
			ret_content->code = entry->told.code;
		}
	}
	pthread_mutex_unlock(&contents->mutex);
	return known;
}

static bool add_open(struct rs_contents *contents, const struct rs_content_job *job, uint32_t index)
{
	uint32_t *seen = rs_table_put(&contents->pairs, job->tgid, index);

	if (!seen)
		return false;
	if (*seen) {
		contents->opens[*seen - 1].access |= job->access;
		return true;
	}
	if (!room_for((void **)&contents->opens, &contents->opens_room, contents->opens_count + 1,
		      sizeof(*contents->opens)))
		return false;
	contents->opens[contents->opens_count++] =
	    (rs_trace_content_open){.tgid = job->tgid, .content = index, .access = job->access};
	*seen = (uint32_t)contents->opens_count;
	return true;
}

/* A new entry under this path; false without memory. */
static bool append(struct rs_contents *contents, const struct rs_content_job *job,
		   const struct rs_stat *stat, const struct rs_content *content, const char *path)
{
	size_t length = strlen(path);
	struct rs_content_entry *entry;

	if (!room_for((void **)&contents->entries, &contents->room, contents->count + 1,
		      sizeof(*contents->entries)) ||
	    !room_for((void **)&contents->paths, &contents->paths_room,
		      contents->paths_length + length + 1, 1))
		return false;
	entry = &contents->entries[contents->count++];
	*entry = (struct rs_content_entry){.stat = *stat, .dev = job->dev, .ino = job->ino};
	memcpy(entry->told.digest, content->digest, RS_SHA256_BYTES);
	entry->told.code = content->code;
	entry->told.dev = stat->dev;
	entry->told.ino = stat->ino;
	entry->told.size = stat->size;
	entry->told.mode = stat->mode & 07777;
	entry->told.path_offset = contents->paths_length;
	entry->told.path_length = (uint32_t)length;
	memcpy(contents->paths + contents->paths_length, path, length + 1);
	contents->paths_length += length + 1;
	return true;
}

void rs_contents_add(struct rs_contents *contents, const struct rs_content_job *job,
		     const struct rs_stat *stat, const struct rs_content *content, const char *path)
{
	uint64_t key = path_key(stat, path);
	uint32_t *by_path, *by_file;
	const struct rs_content_entry *last = NULL;

	pthread_mutex_lock(&contents->mutex);
	by_path = rs_table_put(&contents->by_path, key, stat->ino);
	by_file = rs_table_put(&contents->by_file, stat->dev, stat->ino);
	if (!by_path || !by_file) {
		fail(contents, job, RS_CONTENT_CAP);
		goto out;
	}
	if (*by_path) /* index + 1, as in by_file; another path with this key gets an entry of its
			 own */
		last = &contents->entries[*by_path - 1];
	if (!last || !rs_same_state(&last->stat, stat) ||
	    strcmp(contents->paths + last->told.path_offset, path)) {
		if (contents->count >= contents->max_files ||
		    !append(contents, job, stat, content, path)) {
			fail(contents, job, RS_CONTENT_CAP);
			goto out;
		}
		*by_path = (uint32_t)contents->count;
	}
	*by_file = *by_path;
	contents->entries[*by_path - 1].told.access |= job->access;
	if (!add_open(contents, job, *by_path - 1))
		fail(contents, job, RS_CONTENT_CAP);
out:
	pthread_mutex_unlock(&contents->mutex);
}

void rs_contents_output(struct rs_contents *contents, const char *path)
{
	size_t length = strlen(path) + 1;
	uint64_t other = 0xcbf29ce484222325ULL;
	uint32_t *seen;

	for (const char *at = path; *at; at++)
		other = rs_table_mix(other + (uint8_t)*at);
	pthread_mutex_lock(&contents->mutex);
	seen = rs_table_put(&contents->by_output, path_key(&(struct rs_stat){}, path), other);
	if (!seen || (!*seen && (contents->outputs_count >= contents->max_files ||
				 !room_for((void **)&contents->outputs, &contents->outputs_room,
					   contents->outputs_length + length, 1)))) {
		contents->failures[RS_CONTENT_CAP]++;
	} else if (!*seen) {
		memcpy(contents->outputs + contents->outputs_length, path, length);
		contents->outputs_length += length;
		contents->outputs_count++;
		*seen = 1;
	}
	pthread_mutex_unlock(&contents->mutex);
}
