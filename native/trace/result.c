/*
 * result.c: what one scope's events added up to, for the caller.
 *
 * Owns: the result. Must not: make a system call. Hand-off: tracer.c -> caller. Privilege: none.
 */
#include "content.h"

#include <stdlib.h>

const uint8_t *rs_trace_events(const rs_trace_result *result, size_t *ret_length)
{
	*ret_length = result->agg.event_bytes;
	return result->agg.events;
}

const rs_trace_open *rs_trace_opens(const rs_trace_result *result, size_t *ret_count)
{
	*ret_count = result->agg.open_slots;
	return result->agg.opens;
}

void rs_trace_counters_of(const rs_trace_result *result, rs_trace_counters *ret_counters)
{
	*ret_counters = result->agg.counters;
}

void rs_trace_result_free(rs_trace_result *result)
{
	if (!result)
		return;
	rs_contents_free(result->contents);
	rs_agg_release(&result->agg);
	free(result);
}
