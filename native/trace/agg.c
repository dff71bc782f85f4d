/*
 * agg.c: what one scope's events add up to.
 *
 * Opens are many and small: they are folded into one entry per (process, file). Other events are
 * kept as they came, except those that say nothing new. Everything has a cap from rs_trace_limits,
 * and a counter for what the cap left out.
 *
 * Owns: the tables of one scope. Must not: make a system call, or trust an event's length fields.
 * Hand-off: ring consumer -> rs_agg_feed -> rs_agg_seal -> result. Privilege: none.
 */
#include "agg.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define FIRST_SLOTS   64
#define SEEN_MAX      (1 << 20)
#define NOT_KEPT      UINT64_MAX
#define O_PATH_FLAG   010000000
#define O_ACCESS_MASK 3
#define PORT_DNS      53

static uint64_t mix(uint64_t value)
{
	value ^= value >> 33;
	value *= 0xff51afd7ed558ccdULL;
	value ^= value >> 33;
	value *= 0xc4ceb9fe1a85ec53ULL;
	return value ^ (value >> 33);
}

static uint64_t file_hash(uint64_t ino, uint32_t dev, uint32_t tgid)
{
	return mix(ino ^ mix(((uint64_t)dev << 32) | tgid));
}

int rs_agg_init(struct rs_agg *agg, const rs_trace_limits *limits)
{
	memset(agg, 0, sizeof(*agg));
	agg->limits = *limits;
	agg->open_slots = agg->write_slots = agg->process_slots = agg->seen_slots = FIRST_SLOTS;
	agg->opens = calloc(FIRST_SLOTS, sizeof(*agg->opens));
	agg->writes = calloc(FIRST_SLOTS, sizeof(*agg->writes));
	agg->processes = calloc(FIRST_SLOTS, sizeof(*agg->processes));
	agg->seen = calloc(FIRST_SLOTS, sizeof(*agg->seen));
	if (!agg->opens || !agg->writes || !agg->processes || !agg->seen) {
		rs_agg_release(agg);
		return -ENOMEM;
	}
	return 0;
}

void rs_agg_release(struct rs_agg *agg)
{
	free(agg->opens);
	free(agg->writes);
	free(agg->processes);
	free(agg->seen);
	free(agg->events);
	memset(agg, 0, sizeof(*agg));
}

/* ---- opens ---- */

static rs_trace_open *open_slot(rs_trace_open *table, size_t slots, uint64_t ino, uint32_t dev,
				uint32_t tgid)
{
	size_t at = file_hash(ino, dev, tgid) & (slots - 1);

	while (table[at].count &&
	       !(table[at].ino == ino && table[at].dev == dev && table[at].tgid == tgid))
		at = (at + 1) & (slots - 1);
	return &table[at];
}

static int grow_opens(struct rs_agg *agg)
{
	size_t slots = agg->open_slots * 2;
	rs_trace_open *table = calloc(slots, sizeof(*table));

	if (!table)
		return -ENOMEM;
	for (size_t i = 0; i < agg->open_slots; i++) {
		const rs_trace_open *old = &agg->opens[i];

		if (old->count)
			*open_slot(table, slots, old->ino, old->dev, old->tgid) = *old;
	}
	free(agg->opens);
	agg->opens = table;
	agg->open_slots = slots;
	return 0;
}

static uint32_t access_of(uint32_t flags)
{
	uint32_t mode = flags & O_ACCESS_MASK;

	if (flags & O_PATH_FLAG)
		return 8;
	return mode == 0 ? 1 : mode == 1 ? 2 : 3;
}

static void add_open(struct rs_agg *agg, const struct rs_event *head, const struct rs_file *file,
		     uint32_t access)
{
	rs_trace_open *entry;

	if (agg->open_count * 4 >= agg->open_slots * 3 && grow_opens(agg)) {
		agg->counters.opens_cap_hit++;
		return;
	}
	entry = open_slot(agg->opens, agg->open_slots, file->ino, file->dev, head->tgid);
	if (!entry->count) {
		if (agg->open_count >= agg->limits.max_opens) {
			agg->counters.opens_cap_hit++;
			return;
		}
		agg->open_count++;
		entry->ino = file->ino;
		entry->dev = file->dev;
		entry->tgid = head->tgid;
		entry->magic = file->magic;
		entry->first_ns = head->time_ns;
	}
	entry->mode = file->mode;
	entry->flags_any |= file->flags;
	entry->fmode_any |= file->fmode;
	entry->access |= access;
	if (entry->count < UINT32_MAX)
		entry->count++;
}

/* ---- processes ---- */

static struct rs_agg_process *process_slot(struct rs_agg_process *table, size_t slots,
					   uint32_t tgid)
{
	size_t at = mix(tgid) & (slots - 1);

	while (table[at].tgid && table[at].tgid != tgid)
		at = (at + 1) & (slots - 1);
	return &table[at];
}

static int grow_processes(struct rs_agg *agg)
{
	size_t slots = agg->process_slots * 2;
	struct rs_agg_process *table = calloc(slots, sizeof(*table));

	if (!table)
		return -ENOMEM;
	for (size_t i = 0; i < agg->process_slots; i++)
		if (agg->processes[i].tgid)
			*process_slot(table, slots, agg->processes[i].tgid) = agg->processes[i];
	free(agg->processes);
	agg->processes = table;
	agg->process_slots = slots;
	return 0;
}

void rs_agg_add_process(struct rs_agg *agg, uint32_t tgid)
{
	struct rs_agg_process *entry;

	if (!tgid)
		return;
	if (agg->process_count * 4 >= agg->process_slots * 3 && grow_processes(agg)) {
		agg->counters.processes_cap_hit++;
		return;
	}
	entry = process_slot(agg->processes, agg->process_slots, tgid);
	if (!entry->tgid) {
		if (agg->process_count >= agg->limits.max_processes) {
			agg->counters.processes_cap_hit++;
			return;
		}
		agg->process_count++;
		entry->tgid = tgid;
	}
	entry->alive = 1;
}

/* ---- events that are kept ---- */

static int keep(struct rs_agg *agg, const void *bytes, size_t length)
{
	size_t padded = (length + 7) & ~(size_t)7; /* so that every event begins aligned */

	if (agg->event_bytes + padded > agg->limits.max_event_bytes) {
		agg->counters.events_cap_hit++;
		return -ENOSPC;
	}
	if (agg->event_bytes + padded > agg->event_room) {
		size_t room = agg->event_room ? agg->event_room * 2 : 4096;
		uint8_t *grown;

		while (room < agg->event_bytes + padded)
			room *= 2;
		grown = realloc(agg->events, room);
		if (!grown) {
			agg->counters.events_cap_hit++;
			return -ENOMEM;
		}
		agg->events = grown;
		agg->event_room = room;
	}
	memset(agg->events + agg->event_bytes + length, 0, padded - length);
	memcpy(agg->events + agg->event_bytes, bytes, length);
	((struct rs_event *)(agg->events + agg->event_bytes))->size = (uint32_t)padded;
	agg->event_bytes += padded;
	return 0;
}

static int same_seen(const struct rs_agg_seen *a, const struct rs_agg_seen *b)
{
	return a->tgid == b->tgid && a->call == b->call &&
	       !memcmp(a->word, b->word, sizeof(a->word));
}

static struct rs_agg_seen *seen_slot(struct rs_agg_seen *table, size_t slots,
				     const struct rs_agg_seen *key)
{
	uint64_t hash = mix(((uint64_t)key->tgid << 32) | key->call);
	size_t at;

	for (int i = 0; i < 4; i++)
		hash = mix(hash ^ key->word[i]);
	at = hash & (slots - 1);
	while (table[at].call && !same_seen(&table[at], key))
		at = (at + 1) & (slots - 1);
	return &table[at];
}

static int grow_seen(struct rs_agg *agg)
{
	size_t slots = agg->seen_slots * 2;
	struct rs_agg_seen *table = calloc(slots, sizeof(*table));

	if (!table)
		return -ENOMEM;
	for (size_t i = 0; i < agg->seen_slots; i++)
		if (agg->seen[i].call)
			*seen_slot(table, slots, &agg->seen[i]) = agg->seen[i];
	free(agg->seen);
	agg->seen = table;
	agg->seen_slots = slots;
	return 0;
}

/* Whether an event of this kind was seen before; *ret_entry is its entry, or NULL (no room). */
static int repeated(struct rs_agg *agg, const struct rs_agg_seen *key,
		    struct rs_agg_seen **ret_entry)
{
	*ret_entry = NULL;
	if (agg->seen_count * 4 >= agg->seen_slots * 3) {
		if (agg->seen_slots >= SEEN_MAX || grow_seen(agg))
			return 0; /* beyond the table's bound everything counts as new */
	}
	*ret_entry = seen_slot(agg->seen, agg->seen_slots, key);
	if ((*ret_entry)->call) {
		agg->counters.repeats++;
		return 1;
	}
	**ret_entry = *key;
	agg->seen_count++;
	return 0;
}

/* Keep a call once, and count the others of its kind in it. */
static void keep_once(struct rs_agg *agg, const struct rs_call_event *event, size_t length,
		      const struct rs_agg_seen *key)
{
	struct rs_agg_seen *entry;
	size_t offset = agg->event_bytes;

	if (repeated(agg, key, &entry)) {
		if (entry->offset != NOT_KEPT)
			((struct rs_call_event *)(agg->events + entry->offset))->repeats++;
		return;
	}
	if (keep(agg, event, length))
		offset = NOT_KEPT;
	if (entry)
		entry->offset = offset;
}

/* From its arguments on an event says the same again and again; before them is when and who. */
#define SAME_FROM offsetof(struct rs_call_event, args)

/* The same arguments, texts and result. The kept event has 0 in `repeats` when it is compared. */
static int same_call(const struct rs_agg *agg, const struct rs_agg_seen *entry,
		     const struct rs_call_event *event, size_t length)
{
	const struct rs_call_event *kept = (const void *)(agg->events + entry->offset);
	struct rs_call_event head;

	if (entry->offset == NOT_KEPT || kept->head.size != ((length + 7) & ~(size_t)7))
		return 0;
	memcpy(&head, kept, sizeof(head));
	head.repeats = event->repeats;
	return !memcmp((const uint8_t *)&head + SAME_FROM, (const uint8_t *)event + SAME_FROM,
		       sizeof(head) - SAME_FROM) &&
	       !memcmp(kept + 1, event + 1, length - sizeof(head));
}

/* Keep a call, unless one that is equal in all was kept: a loop costs one event. */
static void keep_if_new(struct rs_agg *agg, const struct rs_call_event *event, size_t length)
{
	struct rs_agg_seen key = {.tgid = event->head.tgid, .call = event->call}, *entry;
	const uint8_t *bytes = (const uint8_t *)event;
	size_t offset = agg->event_bytes;

	for (size_t at = SAME_FROM; at < length; at++)
		key.word[at & 3] = key.word[at & 3] * 0x100000001b3ULL + bytes[at];
	if (repeated(agg, &key, &entry)) {
		if (same_call(agg, entry, event, length))
			((struct rs_call_event *)(agg->events + entry->offset))->repeats++;
		else
			keep(agg, event, length);
		return;
	}
	if (keep(agg, event, length))
		offset = NOT_KEPT;
	if (entry)
		entry->offset = offset;
}

static void add_call(struct rs_agg *agg, const struct rs_call_event *event, size_t length)
{
	struct rs_agg_seen key = {.tgid = event->head.tgid, .call = event->call};

	switch (event->call) {
	case RS_CALL_MMAP:
	case RS_CALL_MPROTECT:
		key.word[2] = event->args[2];
		key.word[3] = event->args[3];
		break;
	case RS_CALL_SENDFILE:
	case RS_CALL_COPY_FILE_RANGE:
	case RS_CALL_SPLICE:
		key.word[2] = event->file[1].ino;
		key.word[3] = event->file[1].dev;
		break;
	case RS_CALL_IO_URING_OPEN:
	case RS_CALL_FOREIGN_ABI:
		break;
	default:
		keep_if_new(agg, event, length);
		return;
	}
	key.word[0] = event->file[0].ino;
	key.word[1] = event->file[0].dev;
	if (event->call == RS_CALL_MPROTECT)
		key.word[3] = 0; /* not an argument of this call */
	keep_once(agg, event, length, &key);
}

static void add_address(struct rs_agg *agg, const struct rs_address_event *event, size_t length)
{
	struct rs_agg_seen key = {.tgid = event->head.tgid, .call = event->call};
	struct rs_agg_seen *entry;

	if (event->call == RS_CALL_SENDTO || event->call == RS_CALL_SENDMSG ||
	    event->call == RS_CALL_SENDMMSG) {
		memcpy(key.word, event->address, sizeof(key.word));
		if (event->address[2] == 0 && event->address[3] == PORT_DNS)
			key.call |= ((uint32_t)event->fd + 1) << 8; /* whose questions follow */
		if (repeated(agg, &key, &entry))
			return;
	}
	keep(agg, event, length);
}

/* ---- writes ---- */

static struct rs_agg_write *write_slot(struct rs_agg_write *table, size_t slots,
				       const struct rs_write_key *key)
{
	size_t at = file_hash(key->ino, key->dev, key->tgid) & (slots - 1);

	while (table[at].key.tgid && memcmp(&table[at].key, key, sizeof(*key)))
		at = (at + 1) & (slots - 1);
	return &table[at];
}

static int grow_writes(struct rs_agg *agg)
{
	size_t slots = agg->write_slots * 2;
	struct rs_agg_write *table = calloc(slots, sizeof(*table));

	if (!table)
		return -ENOMEM;
	for (size_t i = 0; i < agg->write_slots; i++)
		if (agg->writes[i].key.tgid)
			*write_slot(table, slots, &agg->writes[i].key) = agg->writes[i];
	free(agg->writes);
	agg->writes = table;
	agg->write_slots = slots;
	return 0;
}

static void add_write(struct rs_agg *agg, const struct rs_write_event *event, size_t length)
{
	struct rs_write_key key = {
	    .ino = event->file.ino, .dev = event->file.dev, .tgid = event->head.tgid};
	struct rs_agg_write *entry;
	size_t offset = agg->event_bytes;

	if (agg->write_count * 4 >= agg->write_slots * 3 && grow_writes(agg)) {
		agg->counters.events_cap_hit++;
		return;
	}
	entry = write_slot(agg->writes, agg->write_slots, &key);
	if (!entry->key.tgid) {
		if (keep(agg, event, length))
			return;
		agg->write_count++;
		entry->key = key;
		entry->offset = offset;
		entry->extra = 0;
		((struct rs_write_event *)(agg->events + offset))->bytes =
		    0; /* set when the scope ends */
	}
	if (!event->summed)
		entry->extra += event->bytes;
}

/* ---- dispatch ---- */

int rs_agg_feed(struct rs_agg *agg, const void *bytes, size_t length)
{
	const struct rs_event *head = bytes;
	struct rs_agg_process *process;

	if (length < sizeof(*head) || length > RS_HEAD_BYTES + RS_TAIL_BYTES ||
	    head->size != length || !rs_event_valid(head, length)) {
		agg->counters.malformed++;
		return 0;
	}
	switch (head->type) {
	case RS_EVENT_OPEN: {
		const struct rs_open_event *event = bytes;

		agg->counters.opens++;
		add_open(agg, head, &event->file, access_of(event->file.flags));
		return 1;
	}
	case RS_EVENT_OPEN_PATH: {
		const struct rs_open_path_event *event = bytes;

		agg->counters.opens += !event->told;
		add_open(agg, head, &event->file, access_of(event->file.flags));
		return 1;
	}
	case RS_EVENT_WRITE:
		add_write(agg, bytes, length);
		return 1;
	case RS_EVENT_CALL:
		add_call(agg, bytes, length);
		return 1;
	case RS_EVENT_ADDRESS:
		add_address(agg, bytes, length);
		return 1;
	case RS_EVENT_FORK:
		rs_agg_add_process(agg, head->tgid);
		break;
	case RS_EVENT_EXIT:
		process = process_slot(agg->processes, agg->process_slots, head->tgid);
		process->alive = 0; /* a free slot has 0 already */
		break;
	case RS_EVENT_EXEC:
		add_open(agg, head, &((const struct rs_exec_event *)bytes)->file, 4);
		break;
	default:
		break;
	}
	keep(agg, bytes, length);
	return 1;
}

void rs_agg_seal(struct rs_agg *agg)
{
	size_t count = 0;

	for (size_t i = 0; i < agg->open_slots; i++)
		if (agg->opens[i].count)
			agg->opens[count++] = agg->opens[i];
	agg->open_slots = count;
}
