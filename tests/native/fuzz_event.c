/* Fuzz target: bytes as read from a fanotify group. */
#include "api.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (rs_event_parse_all(data, size) > (int64_t)size)
		__builtin_trap();
	return 0;
}
