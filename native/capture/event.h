/* event.h: pure parser of what read(2) on a fanotify group returns. */
#ifndef ROOTSEAL_CAPTURE_EVENT_H
#define ROOTSEAL_CAPTURE_EVENT_H
#include <stddef.h>
#include <stdint.h>

struct rs_event {
	uint64_t mask;
	int fd; /* owned by whoever handles the event; < 0: none */
	int pid;
};

/*
 * Read the event at *offset and advance it.
 *
 * Returns 1 with *ret_event written, 0 at the end of the bytes, -EBADMSG when the bytes are not
 * events (a cut or overlong event, another version of the format).
 */
int rs_event_parse(const uint8_t *bytes, size_t length, size_t *offset, struct rs_event *ret_event);

#endif
