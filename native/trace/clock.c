/*
 * clock.c: what the clock that the kernel gives files had shown when something happened.
 *
 * Times of files are from a clock that moves with the timer's ticks, and ticks may come late (5.5
 * ms were measured where they are 4 ms apart). Programs in the kernel may not read that clock, and
 * from the time of an event it cannot be computed. But it never goes back: what it showed at a look
 * before the event, it had reached by then.
 *
 * Owns: nothing. Hand-off: ring consumer -> looks -> job. Privilege: none.
 */
#include "content.h"

#include <time.h>

#define SPACING_NS 500000 /* looks closer than this tell nothing more */

static int64_t now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

void rs_clock_look(struct rs_clock *clock)
{
	/* In this order: it had shown this when the second one was read. */
	int64_t shown = now_ns(CLOCK_REALTIME_COARSE);
	int64_t at = now_ns(CLOCK_MONOTONIC);
	unsigned int place = clock->count % RS_CLOCK_LOOKS;

	if (clock->count && at - clock->at_ns[(clock->count - 1) % RS_CLOCK_LOOKS] < SPACING_NS)
		return;
	clock->at_ns[place] = at;
	clock->shown_ns[place] = shown;
	clock->count++;
}

int64_t rs_clock_before(const struct rs_clock *clock, int64_t at_ns)
{
	uint64_t oldest = clock->count > RS_CLOCK_LOOKS ? clock->count - RS_CLOCK_LOOKS : 0;

	for (uint64_t i = clock->count; i > oldest; i--)
		if (clock->at_ns[(i - 1) % RS_CLOCK_LOOKS] <= at_ns)
			return clock->shown_ns[(i - 1) % RS_CLOCK_LOOKS];
	return 0;
}
