/* Fuzz target: events of the trace ring, gathered for one scope; `size` bytes are several. */
#include "../../native/trace/agg.h"

#include <string.h>

static void feed(struct rs_agg *agg, const uint8_t *data, size_t length)
{
	_Alignas(16) static uint8_t event[RS_HEAD_BYTES + RS_TAIL_BYTES];
	struct rs_event *head = (struct rs_event *)event;

	if (length > sizeof(event))
		length = sizeof(event);
	memcpy(event, data, length);
	/* Nearly always as the ring has it: else few events would come past the first check. */
	if (length >= sizeof(*head) && data[length - 1])
		head->size = length;
	rs_agg_feed(agg, event, length);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const rs_trace_limits limits = {
	    .max_opens = 64, .max_event_bytes = 1 << 16, .max_processes = 16};
	struct rs_agg agg;

	if (rs_agg_init(&agg, &limits))
		return 0;
	while (size > 2) {
		size_t length = ((size_t)data[0] << 8 | data[1]) % (size - 1);

		feed(&agg, data + 2, length);
		data += 2 + length;
		size -= 2 + length;
	}
	rs_agg_seal(&agg);
	rs_agg_release(&agg);
	return 0;
}
