/*
 * ring.c: the consumer's half of BPF_MAP_TYPE_RINGBUF (kernel/bpf/ringbuf.c).
 *
 * libbpf has one too, but it cannot say how far it got, and a scope may only end when every event
 * that was reserved before has been taken. Works the same for maps of either loader.
 *
 * Owns: its mappings. Must not: run in two threads at once (the tracer holds a lock).
 * Hand-off: kernel -> take(context, event). Privilege: a descriptor of the map.
 */
#include "ring.h"

#include <errno.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int rs_ring_map(struct rs_ring *ring, int fd, uint64_t size)
{
	void *consumer, *producer;
	int error;

	memset(ring, 0, sizeof(*ring));
	ring->page = (size_t)sysconf(_SC_PAGESIZE);
	consumer = mmap(NULL, ring->page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (consumer == MAP_FAILED)
		return -errno;
	producer = mmap(NULL, ring->page + 2 * size, PROT_READ, MAP_SHARED, fd, (off_t)ring->page);
	if (producer == MAP_FAILED) {
		error = -errno;
		munmap(consumer, ring->page);
		return error;
	}
	ring->fd = fd;
	ring->size = size;
	ring->consumer = consumer;
	ring->producer = producer;
	ring->data = (const uint8_t *)producer + ring->page;
	return 0;
}

void rs_ring_unmap(struct rs_ring *ring)
{
	if (!ring->data)
		return;
	munmap((void *)ring->consumer, ring->page);
	munmap((void *)ring->producer, ring->page + 2 * ring->size);
	memset(ring, 0, sizeof(*ring));
}

uint64_t rs_ring_end(const struct rs_ring *ring)
{
	return __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);
}

uint64_t rs_ring_consume(struct rs_ring *ring, rs_ring_take take, void *context)
{
	uint64_t at = __atomic_load_n(ring->consumer, __ATOMIC_RELAXED);

	while (at < rs_ring_end(ring)) {
		const uint32_t *header = (const uint32_t *)(ring->data + (at & (ring->size - 1)));
		uint32_t length = __atomic_load_n(header, __ATOMIC_ACQUIRE);

		if (length & BPF_RINGBUF_BUSY_BIT)
			break;
		if (!(length & BPF_RINGBUF_DISCARD_BIT))
			take(context, (const uint8_t *)header + BPF_RINGBUF_HDR_SZ, length);
		length &= ~BPF_RINGBUF_DISCARD_BIT;
		at += (length + BPF_RINGBUF_HDR_SZ + 7) & ~7U;
		__atomic_store_n(ring->consumer, at, __ATOMIC_RELEASE);
	}
	return at;
}
