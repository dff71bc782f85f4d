/* ring.h: reads a BPF ring buffer. See ring.c. */
#ifndef ROOTSEAL_TRACE_RING_H
#define ROOTSEAL_TRACE_RING_H
#include <stddef.h>
#include <stdint.h>

struct rs_ring {
	int fd; /* the map; not owned */
	uint64_t size;
	size_t page;
	volatile uint64_t *consumer; /* mapped page, written by us */
	volatile uint64_t *producer; /* mapped page, written by the kernel */
	const uint8_t *data;	     /* mapped twice in a row: no event wraps */
};

typedef void (*rs_ring_take)(void *context, const void *bytes, size_t length);

int rs_ring_map(struct rs_ring *ring, int fd, uint64_t size);
void rs_ring_unmap(struct rs_ring *ring);
/* Position after the last event that was reserved so far. */
uint64_t rs_ring_end(const struct rs_ring *ring);
/* Take events until the ring is empty or the next is still being written. Returns the new position.
 */
uint64_t rs_ring_consume(struct rs_ring *ring, rs_ring_take take, void *context);

#endif
