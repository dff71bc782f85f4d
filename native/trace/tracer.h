/* tracer.h: inside of the trace core, shared by tracer.c and loader.c. */
#ifndef ROOTSEAL_TRACE_TRACER_H
#define ROOTSEAL_TRACE_TRACER_H
#include <pthread.h>

#include "agg.h"
#include "content.h"
#include "ring.h"

#define RS_PROGRAMS_MAX 16

/* Maps in the order of rs_tracer_adopt. */
enum { RS_MAP_RING, RS_MAP_MEMBERS, RS_MAP_LOSSES, RS_MAP_WRITES, RS_MAP_CALLS, RS_MAP_COUNT };

struct rs_trace_scope {
	uint64_t id;
	uint64_t misses_before;
	struct rs_agg agg;
	struct rs_contents *contents; /* owned; NULL: nothing is hashed */
};

struct rs_tracer {
	int maps[RS_MAP_COUNT];		  /* owned */
	int program_fds[RS_PROGRAMS_MAX]; /* owned; -1 where refused or another loader's */
	rs_trace_program programs[RS_PROGRAMS_MAX];
	int program_count;
	void *object; /* struct bpf_object of loader.c, owned */
	void *links[RS_PROGRAMS_MAX];
	unsigned cpus; /* possible CPUs: values of a per-CPU map */
	struct rs_ring ring;
	int stop_fd;  /* eventfd, owned: ends the thread */
	int epoll_fd; /* owned */
	pthread_t thread;
	int thread_runs;
	pthread_mutex_t lock; /* guards everything below, and the ring */
	struct rs_trace_scope *scopes[RS_SCOPE_SLOTS];
	uint64_t next_scope;
	uint64_t late_events;
	struct rs_clock clock;
	struct rs_content_pool *pool; /* owned; from the first scope with content on */
};

void rs_trace_fail(rs_trace_error *error, const char *operation, int code, const char *detail);
/* Fill the table of call numbers; 0 or -errno. */
int rs_calls_fill(int map_fd);
/* Map the ring, start the thread. Called when maps[] is complete. */
int rs_tracer_start(struct rs_tracer *tracer, uint64_t ring_bytes, rs_trace_error *error);
struct rs_tracer *rs_tracer_new(void);
/* Detach and unload what loader.c loaded. */
void rs_loader_release(struct rs_tracer *tracer);

#endif
