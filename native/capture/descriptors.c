/*
 * descriptors.c: what events leave of this process's descriptors to everything else.
 *
 * Each read of events installs a descriptor for every one. When the table is full the kernel
 * refuses the opener with EPERM, so a build would fail because of us. The caller knows the limit
 * and shares it out (daemon_limits.py); here are the bounds that the core keeps.
 *
 * Owns: nothing. Must not: change a bound once a scope is open. Hands off: the bounds -> handler.c,
 * engine.c, walk.c. Privilege: none.
 */
#include "core.h"

#include <errno.h>

void rs_descriptors_init(struct rs_descriptors *descriptors)
{
	*descriptors = (struct rs_descriptors){
	    .ceiling = INT_MAX,
	    .events_per_read = RS_EVENTS_PER_READ,
	    .long_hashes = RS_HEAVY_QUEUE_MAX,
	};
}

int rs_engine_set_descriptors(rs_engine *engine, int ceiling, unsigned events_per_read,
			      unsigned long_hashes)
{
	if (ceiling < 1 || events_per_read < 1 || events_per_read > RS_EVENTS_PER_READ ||
	    long_hashes > RS_HEAVY_QUEUE_MAX)
		return -EINVAL;
	*rs_engine_descriptors(engine) = (struct rs_descriptors){
	    .ceiling = ceiling,
	    .events_per_read = events_per_read,
	    .long_hashes = long_hashes,
	};
	return 0;
}

void rs_engine_settle(rs_engine *engine)
{
	rs_engine_wait_reaped(engine);
}
