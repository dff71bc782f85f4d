/*
 * check.c: whether bytes are an event of bpf/event.h: nothing is read outside of it later.
 *
 * Owns: nothing. Must not: trust a length field. Privilege: none.
 */
#include "agg.h"

#include <string.h>

static int has_tail(uint32_t type)
{
	return type == RS_EVENT_EXEC || type == RS_EVENT_ARGS || type == RS_EVENT_ENVIRON ||
	       type == RS_EVENT_WRITE || type == RS_EVENT_FILEOP || type == RS_EVENT_PAYLOAD ||
	       type == RS_EVENT_CALL || type == RS_EVENT_OPEN_PATH;
}

static int tail_fits(size_t length, uint64_t tail)
{
	return tail <= length - RS_HEAD_BYTES;
}

/* Whether the lengths inside an event fit into it. */
int rs_event_valid(const struct rs_event *head, size_t length)
{
	if (has_tail(head->type) && length < RS_HEAD_BYTES)
		return 0;
	switch (head->type) {
	case RS_EVENT_EXEC: {
		const struct rs_exec_event *event = (const void *)head;

		return tail_fits(length,
				 (uint64_t)event->walk_len + event->name_len + event->base_len);
	}
	case RS_EVENT_ARGS:
	case RS_EVENT_ENVIRON:
		return tail_fits(length, ((const struct rs_chunk_event *)head)->len);
	case RS_EVENT_OPEN_PATH:
		return tail_fits(length, ((const struct rs_open_path_event *)head)->walk_len);
	case RS_EVENT_WRITE:
		return tail_fits(length, ((const struct rs_write_event *)head)->walk_len) &&
		       head->tgid;
	case RS_EVENT_FILEOP: {
		const struct rs_path *path = ((const struct rs_fileop_event *)head)->path;

		return tail_fits(length, (uint64_t)path[0].walk_len + path[0].name_len +
					     path[1].walk_len + path[1].name_len);
	}
	case RS_EVENT_PAYLOAD:
		return tail_fits(length, ((const struct rs_payload_event *)head)->len);
	case RS_EVENT_CALL: {
		const struct rs_call_event *event = (const void *)head;

		return event->call && tail_fits(length, (uint64_t)event->walk_len[0] +
							    event->walk_len[1] + event->text_len);
	}
	case RS_EVENT_ADDRESS:
		return length == sizeof(struct rs_address_event) &&
		       ((const struct rs_address_event *)head)->address_len <= RS_ADDR_BYTES &&
		       ((const struct rs_address_event *)head)->call;
	default:
		return rs_trace_event_size((int)head->type) == (int)length;
	}
}

int rs_trace_event_size(int type)
{
	switch (type) {
	case RS_EVENT_FORK:
		return sizeof(struct rs_fork_event);
	case RS_EVENT_EXEC:
		return sizeof(struct rs_exec_event);
	case RS_EVENT_ARGS:
	case RS_EVENT_ENVIRON:
		return sizeof(struct rs_chunk_event);
	case RS_EVENT_EXIT:
		return sizeof(struct rs_exit_event);
	case RS_EVENT_OPEN:
		return sizeof(struct rs_open_event);
	case RS_EVENT_OPEN_PATH:
		return sizeof(struct rs_open_path_event);
	case RS_EVENT_WRITE:
		return sizeof(struct rs_write_event);
	case RS_EVENT_FILEOP:
		return sizeof(struct rs_fileop_event);
	case RS_EVENT_SOCKET:
		return sizeof(struct rs_socket_event);
	case RS_EVENT_ADDRESS:
		return sizeof(struct rs_address_event);
	case RS_EVENT_PAYLOAD:
		return sizeof(struct rs_payload_event);
	case RS_EVENT_CALL:
		return sizeof(struct rs_call_event);
	default:
		return 0;
	}
}

int rs_trace_feed_bytes(const uint8_t *bytes, size_t length)
{
	rs_trace_limits limits = {
	    .max_opens = 1024, .max_event_bytes = 1 << 20, .max_processes = 1024};
	_Alignas(8) uint8_t event[RS_HEAD_BYTES + RS_TAIL_BYTES];
	struct rs_agg agg;
	size_t at = 0;
	int error = rs_agg_init(&agg, &limits), taken = 0;

	if (error)
		return error;
	while (length - at >= 2) { /* u16 length, event: a fuzzer can make several */
		size_t size = (size_t)bytes[at] << 8 | bytes[at + 1];

		at += 2;
		if (size > length - at)
			size = length - at;
		if (size > sizeof(event))
			size = sizeof(event);
		memcpy(event, bytes + at, size);
		rs_agg_feed(&agg, event, size);
		at += size;
		taken++;
	}
	rs_agg_seal(&agg);
	rs_agg_release(&agg);
	return taken;
}
