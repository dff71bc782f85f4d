/*
 * event.c: fanotify event bytes -> struct rs_event.
 *
 * Owns: nothing. Must not: make system calls or trust a length. Hands off: one event at a time ->
 * handler.c. Privilege: none. Also the entry of the fuzzer (rs_event_parse_all).
 */
#include "event.h"
#include "api.h"

#include <errno.h>
#include <string.h>
#include <sys/fanotify.h>

int rs_event_parse(const uint8_t *bytes, size_t length, size_t *offset, struct rs_event *ret_event)
{
	struct fanotify_event_metadata meta;
	size_t left;

	if (*offset > length)
		return -EBADMSG;
	left = length - *offset;
	if (left == 0)
		return 0;
	if (left < sizeof(meta))
		return -EBADMSG;
	memcpy(&meta, bytes + *offset, sizeof(meta));
	if (meta.vers != FANOTIFY_METADATA_VERSION || meta.metadata_len < sizeof(meta) ||
	    meta.event_len < meta.metadata_len || meta.event_len > left)
		return -EBADMSG;
	*ret_event = (struct rs_event){.mask = meta.mask, .fd = meta.fd, .pid = meta.pid};
	*offset += meta.event_len;
	return 1;
}

int64_t rs_event_parse_all(const uint8_t *bytes, size_t length)
{
	struct rs_event event;
	size_t offset = 0;
	int64_t count = 0;
	int got;

	while ((got = rs_event_parse(bytes, length, &offset, &event)) > 0)
		count++;
	return got < 0 ? got : count;
}
