/* agg.h: gathers the events of one scope, in bounded memory. See agg.c. */
#ifndef ROOTSEAL_TRACE_AGG_H
#define ROOTSEAL_TRACE_AGG_H
#include <linux/types.h>

#include "../../bpf/event.h"
#include "api.h"

/* A file that a process wrote, and where its event lies. */
struct rs_agg_write {
	struct rs_write_key key;
	uint64_t offset; /* of the event in `events` */
	uint64_t extra;	 /* bytes of events that were not summed in the kernel */
};

struct rs_agg_process {
	uint32_t tgid; /* 0: free */
	uint32_t alive;
};

struct rs_agg_seen {
	uint64_t offset; /* of the event that was kept */
	uint64_t word[4];
	uint32_t tgid;
	uint32_t call; /* 0: free */
};

struct rs_agg {
	rs_trace_limits limits;
	rs_trace_counters counters;
	rs_trace_open *opens; /* open addressing; a slot without count is free */
	size_t open_slots, open_count;
	struct rs_agg_write *writes; /* likewise; a slot without tgid is free */
	size_t write_slots, write_count;
	struct rs_agg_process *processes;
	size_t process_slots, process_count;
	struct rs_agg_seen *seen;
	size_t seen_slots, seen_count;
	uint8_t *events;
	size_t event_bytes, event_room;
};

/* A sealed aggregate in its caller's hands (result.c). */
struct rs_contents;
struct rs_trace_result {
	struct rs_agg agg;
	struct rs_contents *contents; /* owned; NULL: nothing was hashed */
};

int rs_agg_init(struct rs_agg *agg, const rs_trace_limits *limits);
void rs_agg_release(struct rs_agg *agg);
/* Take one event; what does not fit is counted. 0: it is not one. */
int rs_agg_feed(struct rs_agg *agg, const void *bytes, size_t length);
/* Whether the lengths inside an event fit into it; `length` is at least the head's. */
int rs_event_valid(const struct rs_event *head, size_t length);
/* Remember a process that is a member without a FORK event. */
void rs_agg_add_process(struct rs_agg *agg, uint32_t tgid);
/* Pack the opens to the front of their table; the aggregate takes no more events. */
void rs_agg_seal(struct rs_agg *agg);

#endif
