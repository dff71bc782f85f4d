// SPDX-License-Identifier: Apache-2.0
/*
 * Builds the records of native/trace_event.h and hands whole ones to the sink in large pieces.
 *
 * Owns: tracer.out, tracer.scratch. Must not: send part of a record; lose one silently (out of
 * memory or a failing sink is tracer.error, which ends the action).
 *
 *   rs_begin, rs_put… ──scratch── rs_end ──out──► sink.emit
 *
 * Privilege: none.
 */
#include "trace_internal.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define OUT_BYTES	  (256u << 10) /* emitted when larger */
#define BUFFER_BYTES_MAX  (64u << 20)
#define LOSS_EXAMPLES_MAX 64u

uint64_t rs_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void rs_put(struct rs_buffer *buffer, const void *data, size_t size, int *error)
{
	if (*error || size == 0)
		return;
	if (buffer->size + size > buffer->capacity) {
		size_t capacity = (buffer->size + size) * 2;
		uint8_t *moved =
		    capacity <= BUFFER_BYTES_MAX ? realloc(buffer->data, capacity) : NULL;

		if (!moved) {
			*error = -ENOMEM;
			return;
		}
		buffer->data = moved;
		buffer->capacity = capacity;
	}
	memcpy(buffer->data + buffer->size, data, size);
	buffer->size += size;
}

void rs_put_bytes(struct rs_tracer *t, const void *data, size_t size)
{
	rs_put(&t->scratch, data, size, &t->error);
}

void rs_put16(struct rs_tracer *t, uint16_t value)
{
	value = htobe16(value);
	rs_put_bytes(t, &value, sizeof(value));
}

void rs_put32(struct rs_tracer *t, uint32_t value)
{
	value = htobe32(value);
	rs_put_bytes(t, &value, sizeof(value));
}

void rs_put64(struct rs_tracer *t, uint64_t value)
{
	value = htobe64(value);
	rs_put_bytes(t, &value, sizeof(value));
}

void rs_begin(struct rs_tracer *t)
{
	t->scratch.size = 0;
}

void rs_end(struct rs_tracer *t, enum rs_trace_record type)
{
	uint16_t head[2] = {htobe16((uint16_t)type), 0};
	uint32_t length = htobe32((uint32_t)t->scratch.size);

	rs_put(&t->out, head, sizeof(head), &t->error);
	rs_put(&t->out, &length, sizeof(length), &t->error);
	rs_put(&t->out, t->scratch.data, t->scratch.size, &t->error);
	if (t->out.size >= OUT_BYTES)
		rs_flush(t);
}

void rs_flush(struct rs_tracer *t)
{
	int result;

	if (t->error || t->out.size == 0)
		return;
	result = t->config->sink.emit(t->config->sink.context, t->out.data, t->out.size);
	if (result < 0)
		t->error = result;
	t->out.size = 0;
}

void rs_lost(struct rs_tracer *t, enum rs_trace_loss reason, uint32_t process, const char *path)
{
	size_t length = strnlen(path, PATH_MAX);

	t->counters[reason]++;
	if (t->loss_examples >= LOSS_EXAMPLES_MAX)
		return;
	t->loss_examples++;
	rs_begin(t);
	rs_put32(t, reason);
	rs_put32(t, process);
	rs_put16(t, (uint16_t)length);
	rs_put_bytes(t, path, length);
	rs_end(t, RS_TRACE_LOSS);
}
