/*
 * maps.c: the trace programs' maps, for a loader that brings none (BCC). Kept equal to trace.bpf.c.
 *
 * Owns: nothing; the descriptors are the caller's. Hand-off: descriptors -> loader process,
 * rs_tracer_adopt. Privilege at entry: CAP_BPF (or CAP_SYS_ADMIN).
 */
#include <linux/bpf.h>
#include <string.h>
#include <unistd.h>

#include "sysbpf.h"
#include "tracer.h"

struct map_shape {
	const char *name;
	uint32_t type, key_bytes, value_bytes, entries;
};

static const struct map_shape shapes[] = {
    {"rs_ring", BPF_MAP_TYPE_RINGBUF, 0, 0, 0},
    {"rs_members", BPF_MAP_TYPE_HASH, sizeof(__u32), sizeof(struct rs_member), RS_MEMBERS_MAX},
    {"rs_losses", BPF_MAP_TYPE_PERCPU_ARRAY, sizeof(__u32), sizeof(__u64),
     RS_SCOPE_SLOTS *RS_LOSS_SLOTS},
    {"rs_writes", BPF_MAP_TYPE_HASH, sizeof(struct rs_write_key), sizeof(struct rs_write_sum),
     RS_WRITES_MAX},
    {"rs_calls", BPF_MAP_TYPE_ARRAY, sizeof(__u32), sizeof(struct rs_call_ids), RS_CALL_TABLE},
    {"rs_conns", BPF_MAP_TYPE_LRU_HASH, sizeof(struct rs_conn_key), sizeof(__u32), RS_CONNS_MAX},
    {"rs_scratches", BPF_MAP_TYPE_PERCPU_ARRAY, sizeof(__u32), sizeof(struct rs_scratch),
     RS_PROGRAM_COUNT},
};

#define SHAPES (sizeof(shapes) / sizeof(shapes[0]))

int rs_tracer_make_maps(uint64_t ring_bytes, int *ret_fds7, rs_trace_error *error)
{
	int fds[SHAPES];

	for (size_t i = 0; i < SHAPES; i++) {
		const struct map_shape *shape = &shapes[i];
		uint32_t entries = i == RS_MAP_RING ? (uint32_t)ring_bytes : shape->entries;

		fds[i] = rs_map_create(shape->name, shape->type, shape->key_bytes,
				       shape->value_bytes, entries);
		if (fds[i] < 0) {
			int code = fds[i];

			rs_trace_fail(error, "make a map", code, shape->name);
			while (i > 0)
				close(fds[--i]);
			return code;
		}
	}
	memcpy(ret_fds7, fds, sizeof(fds));
	return 0;
}
