/*
 * tracer.c: the trace programs' other half: scopes, the thread that empties the ring, and counters.
 *
 * The kernel wakes the thread only when a quarter of the ring is full; a scope that ends empties it
 * itself, up to every event that was there when its processes were gone. So there is no polling and
 * no delay.
 *
 * Owns: maps, ring, thread, scopes. Must not: call back into Python, print, or take the lock twice.
 * Hand-off: ring -> take() -> aggregate of the scope -> rs_trace_result.
 * Privilege at entry: CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN); none is gained or dropped.
 */
#include "tracer.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "sysbpf.h"

#define MEMBER_STEPS_MAX  (1 << 18)
#define DRAIN_SECONDS_MAX 10

void rs_trace_fail(rs_trace_error *error, const char *operation, int code, const char *detail)
{
	error->code = code < 0 ? -code : code;
	snprintf(error->operation, sizeof(error->operation), "%s", operation);
	snprintf(error->detail, sizeof(error->detail), "%s", detail);
}

struct rs_tracer *rs_tracer_new(void)
{
	struct rs_tracer *tracer = calloc(1, sizeof(*tracer));

	if (!tracer)
		return NULL;
	for (int i = 0; i < RS_MAP_COUNT; i++)
		tracer->maps[i] = -1;
	for (int i = 0; i < RS_PROGRAMS_MAX; i++)
		tracer->program_fds[i] = -1;
	tracer->stop_fd = -1;
	tracer->epoll_fd = -1;
	tracer->next_scope = 1;
	pthread_mutex_init(&tracer->lock, NULL);
	return tracer;
}

/* One event, under the lock. */
static void take(void *context, const void *bytes, size_t length)
{
	struct rs_tracer *tracer = context;
	const struct rs_event *head = bytes;
	struct rs_trace_scope *scope;

	if (length < sizeof(*head)) {
		tracer->late_events++;
		return;
	}
	scope = tracer->scopes[head->scope % RS_SCOPE_SLOTS];
	if (!scope || scope->id != head->scope) {
		tracer->late_events++;
		return;
	}
	/* The ring pads nothing, but events are reserved in their own size. */
	if (rs_agg_feed(&scope->agg, bytes, length) && scope->contents)
		rs_contents_event(scope->contents, bytes,
				  rs_clock_before(&tracer->clock, (int64_t)head->time_ns));
}

static void *run(void *context)
{
	struct rs_tracer *tracer = context;
	struct epoll_event event;

	for (;;) {
		int count = epoll_wait(tracer->epoll_fd, &event, 1, -1);

		if (count < 0 && errno != EINTR)
			return NULL; /* cannot happen with a valid descriptor; scopes empty the ring
					themselves */
		if (count <= 0)
			continue;
		if (event.data.fd == tracer->stop_fd)
			return NULL;
		pthread_mutex_lock(&tracer->lock);
		rs_ring_consume(&tracer->ring, take, tracer);
		rs_clock_look(&tracer->clock); /* for the events to come */
		pthread_mutex_unlock(&tracer->lock);
	}
}

/* Edge-triggered for the ring: a level would report every single event, and poll for each. */
static int watch(struct rs_tracer *tracer)
{
	struct epoll_event ring = {.events = EPOLLIN | EPOLLET, .data.fd = tracer->ring.fd};
	struct epoll_event stop = {.events = EPOLLIN};

	tracer->stop_fd = eventfd(0, EFD_CLOEXEC);
	tracer->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (tracer->stop_fd < 0 || tracer->epoll_fd < 0)
		return -errno;
	stop.data.fd = tracer->stop_fd;
	if (epoll_ctl(tracer->epoll_fd, EPOLL_CTL_ADD, tracer->ring.fd, &ring) ||
	    epoll_ctl(tracer->epoll_fd, EPOLL_CTL_ADD, tracer->stop_fd, &stop))
		return -errno;
	return 0;
}

int rs_tracer_start(struct rs_tracer *tracer, uint64_t ring_bytes, rs_trace_error *error)
{
	int code;

	tracer->cpus = rs_possible_cpus();
	if (!tracer->cpus) {
		rs_trace_fail(error, "read possible CPUs", ENOENT,
			      "/sys/devices/system/cpu/possible");
		return -ENOENT;
	}
	code = rs_calls_fill(tracer->maps[RS_MAP_CALLS]);
	if (code) {
		rs_trace_fail(error, "fill the table of calls", code, strerror(-code));
		return code;
	}
	code = rs_ring_map(&tracer->ring, tracer->maps[RS_MAP_RING], ring_bytes);
	if (code) {
		rs_trace_fail(error, "map the ring buffer", code, strerror(-code));
		return code;
	}
	code = watch(tracer);
	if (code) {
		rs_trace_fail(error, "watch the ring buffer", code, strerror(-code));
		return code;
	}
	code = -pthread_create(&tracer->thread, NULL, run, tracer);
	if (code) {
		rs_trace_fail(error, "start the thread", code, strerror(-code));
		return code;
	}
	tracer->thread_runs = 1;
	return 0;
}

int rs_tracer_adopt(const int *map_fds, uint64_t ring_bytes, rs_tracer **ret_tracer,
		    rs_trace_error *error)
{
	struct rs_tracer *tracer = rs_tracer_new();
	int code = tracer ? 0 : -ENOMEM;

	if (!tracer) {
		rs_trace_fail(error, "allocate", ENOMEM, "");
		return -ENOMEM;
	}
	for (int i = 0; i < RS_MAP_COUNT && !code; i++) {
		tracer->maps[i] = fcntl(map_fds[i], F_DUPFD_CLOEXEC, 3);
		if (tracer->maps[i] < 0) {
			code = -errno;
			rs_trace_fail(error, "take a map", code, strerror(-code));
		}
	}
	if (!code)
		code = rs_tracer_start(tracer, ring_bytes, error);
	if (code) {
		rs_tracer_close(tracer);
		return code;
	}
	*ret_tracer = tracer;
	return 0;
}

static void free_scope(struct rs_trace_scope *scope)
{
	rs_contents_free(scope->contents);
	rs_agg_release(&scope->agg);
	free(scope);
}

void rs_tracer_close(struct rs_tracer *tracer)
{
	uint64_t one = 1;

	if (!tracer)
		return;
	if (tracer->thread_runs) {
		while (write(tracer->stop_fd, &one, sizeof(one)) < 0 && errno == EINTR)
			;
		pthread_join(tracer->thread, NULL);
	}
	rs_loader_release(tracer);
	rs_ring_unmap(&tracer->ring);
	for (int i = 0; i < RS_SCOPE_SLOTS; i++) {
		if (tracer->scopes[i])
			free_scope(tracer->scopes[i]);
	}
	rs_content_pool_close(tracer->pool);
	for (int i = 0; i < RS_MAP_COUNT; i++)
		if (tracer->maps[i] >= 0)
			close(tracer->maps[i]);
	for (int i = 0; i < RS_PROGRAMS_MAX; i++)
		if (tracer->program_fds[i] >= 0)
			close(tracer->program_fds[i]);
	if (tracer->epoll_fd >= 0)
		close(tracer->epoll_fd);
	if (tracer->stop_fd >= 0)
		close(tracer->stop_fd);
	pthread_mutex_destroy(&tracer->lock);
	free(tracer);
}

int rs_tracer_programs(rs_tracer *tracer)
{
	return tracer->program_count;
}

int rs_tracer_program(rs_tracer *tracer, int index, rs_trace_program *ret_program)
{
	if (index < 0 || index >= tracer->program_count)
		return -ERANGE;
	*ret_program = tracer->programs[index];
	return 0;
}

uint64_t rs_tracer_late_events(rs_tracer *tracer)
{
	uint64_t value;

	pthread_mutex_lock(&tracer->lock);
	value = tracer->late_events;
	pthread_mutex_unlock(&tracer->lock);
	return value;
}

/* ---- scopes ---- */

static uint64_t misses(const struct rs_tracer *tracer)
{
	uint64_t sum = 0, one;

	for (int i = 0; i < RS_PROGRAMS_MAX; i++)
		if (tracer->program_fds[i] >= 0 && !rs_program_misses(tracer->program_fds[i], &one))
			sum += one;
	return sum;
}

/* Sum a scope's losses over all CPUs; `reset` writes zeros instead. */
static int losses(const struct rs_tracer *tracer, uint64_t scope, uint64_t *values, int reset)
{
	uint64_t *per_cpu = calloc(tracer->cpus, sizeof(*per_cpu));
	int error = per_cpu ? 0 : -ENOMEM;

	for (uint32_t i = 0; i < 10 && !error; i++) {
		uint32_t index = (uint32_t)(scope % RS_SCOPE_SLOTS) * RS_LOSS_SLOTS + i;

		if (reset) {
			error = rs_map_update(tracer->maps[RS_MAP_LOSSES], &index, per_cpu);
			continue;
		}
		error = rs_map_lookup(tracer->maps[RS_MAP_LOSSES], &index, per_cpu);
		values[i] = 0;
		for (unsigned cpu = 0; cpu < tracer->cpus && !error; cpu++)
			values[i] += per_cpu[cpu];
	}
	free(per_cpu);
	return error;
}

static int place(struct rs_tracer *tracer, struct rs_trace_scope *scope)
{
	for (int i = 0; i < RS_SCOPE_SLOTS; i++) {
		uint64_t id = tracer->next_scope++;

		if (tracer->scopes[id % RS_SCOPE_SLOTS])
			continue;
		scope->id = id;
		tracer->scopes[id % RS_SCOPE_SLOTS] = scope;
		return 0;
	}
	return -EBUSY;
}

/* Take a scope out of the table; NULL if it is not there. */
static struct rs_trace_scope *detach(struct rs_tracer *tracer, uint64_t id)
{
	struct rs_trace_scope *scope = tracer->scopes[id % RS_SCOPE_SLOTS];

	if (!scope || scope->id != id)
		return NULL;
	tracer->scopes[id % RS_SCOPE_SLOTS] = NULL;
	return scope;
}

/* Processes that outlive the scope are members no more. */
static void expel(struct rs_tracer *tracer, const struct rs_agg *agg)
{
	for (size_t i = 0; i < agg->process_slots; i++)
		if (agg->processes[i].tgid && agg->processes[i].alive)
			rs_map_delete(tracer->maps[RS_MAP_MEMBERS], &agg->processes[i].tgid);
}

/* The threads are there from the first scope on that wants them. */
static int open_contents(struct rs_tracer *tracer, int pid, const rs_trace_limits *limits,
			 struct rs_contents **ret_contents)
{
	int error = 0;

	pthread_mutex_lock(&tracer->lock);
	if (!tracer->pool)
		tracer->pool = rs_content_pool_open(&error);
	pthread_mutex_unlock(&tracer->lock);
	return error ? error : rs_contents_open(tracer->pool, pid, limits, ret_contents);
}

int rs_tracer_scope_open(rs_tracer *tracer, int pid, const rs_trace_limits *limits,
			 uint64_t *ret_scope, rs_trace_error *error)
{
	struct rs_trace_scope *scope = calloc(1, sizeof(*scope));
	struct rs_member member = {};
	uint32_t tgid = (uint32_t)pid;
	int code = scope ? rs_agg_init(&scope->agg, limits) : -ENOMEM;

	if (code) {
		free(scope);
		rs_trace_fail(error, "allocate", code, "");
		return code;
	}
	if (limits->content)
		code = open_contents(tracer, pid, limits, &scope->contents);
	if (code) {
		rs_trace_fail(error, "prepare to hash", code, strerror(-code));
		free_scope(scope);
		return code;
	}
	rs_agg_add_process(&scope->agg, tgid);
	pthread_mutex_lock(&tracer->lock);
	code = place(tracer, scope);
	pthread_mutex_unlock(&tracer->lock);
	if (code) {
		rs_trace_fail(error, "open a scope", code, "too many scopes are open");
		free_scope(scope);
		return code;
	}
	scope->misses_before = misses(tracer);
	member.scope = scope->id;
	member.paths = limits->content != 0;
	code = losses(tracer, scope->id, NULL, 1);
	if (!code)
		code = rs_map_update(tracer->maps[RS_MAP_MEMBERS], &tgid, &member);
	if (code) {
		rs_trace_fail(error, "add the process", code, strerror(-code));
		rs_tracer_scope_abort(tracer, scope->id);
		return code;
	}
	*ret_scope = scope->id;
	return 0;
}

static int64_t seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

/* Empty the ring up to what is there now; the lock is held. */
static int drain(struct rs_tracer *tracer)
{
	uint64_t end = rs_ring_end(&tracer->ring);
	int64_t limit = seconds() + DRAIN_SECONDS_MAX;

	while (rs_ring_consume(&tracer->ring, take, tracer) < end) {
		if (seconds() > limit)
			return -ETIMEDOUT;
		sched_yield(); /* an event of another CPU is being written: microseconds */
	}
	return 0;
}

/* Set the bytes of each WRITE event from the kernel's sums, and free their places in the map. */
static void settle_writes(struct rs_tracer *tracer, struct rs_agg *agg)
{
	for (size_t i = 0; i < agg->write_slots; i++) {
		struct rs_agg_write *entry = &agg->writes[i];
		struct rs_write_sum sum = {};

		if (!entry->key.tgid)
			continue;
		if (!rs_map_lookup(tracer->maps[RS_MAP_WRITES], &entry->key, &sum))
			rs_map_delete(tracer->maps[RS_MAP_WRITES], &entry->key);
		((struct rs_write_event *)(agg->events + entry->offset))->bytes =
		    sum.bytes + entry->extra;
	}
}

int rs_tracer_scope_finish(rs_tracer *tracer, uint64_t id, rs_trace_result **ret_result,
			   rs_trace_error *error)
{
	struct rs_trace_result *result = calloc(1, sizeof(*result));
	struct rs_trace_scope *scope;
	int code, undrained;

	if (!result) {
		rs_trace_fail(error, "allocate", ENOMEM, "");
		return -ENOMEM;
	}
	pthread_mutex_lock(&tracer->lock);
	undrained = drain(tracer) != 0;
	scope = detach(tracer, id);
	pthread_mutex_unlock(&tracer->lock);
	if (!scope) {
		free(result);
		rs_trace_fail(error, "finish the scope", ENOENT, "it was ended before");
		return -ENOENT;
	}
	expel(tracer, &scope->agg);
	settle_writes(tracer, &scope->agg);
	code = losses(tracer, id, scope->agg.counters.losses, 0);
	scope->agg.counters.program_misses = misses(tracer) - scope->misses_before;
	scope->agg.counters.undrained = (uint64_t)undrained;
	rs_agg_seal(&scope->agg);
	result->agg = scope->agg;
	result->contents = scope->contents;
	free(scope);
	if (code) {
		rs_trace_result_free(result);
		rs_trace_fail(error, "read the loss counters", code, strerror(-code));
		return code;
	}
	*ret_result = result;
	return 0;
}

void rs_tracer_scope_abort(rs_tracer *tracer, uint64_t id)
{
	struct rs_trace_scope *scope;

	pthread_mutex_lock(&tracer->lock);
	rs_ring_consume(&tracer->ring, take, tracer);
	scope = detach(tracer, id);
	pthread_mutex_unlock(&tracer->lock);
	if (!scope)
		return;
	expel(tracer, &scope->agg);
	settle_writes(tracer, &scope->agg);
	free_scope(scope);
}

int rs_tracer_scope_members(rs_tracer *tracer, uint64_t id, uint32_t *ret_pids, int max)
{
	int map = tracer->maps[RS_MAP_MEMBERS], count = 0, code;
	uint32_t key, next;

	/* A key that is deleted meanwhile leads back to the first: so many steps, then it ends. */
	code = rs_map_next(map, NULL, &next);
	for (int steps = 0; !code && count < max && steps < MEMBER_STEPS_MAX; steps++) {
		struct rs_member member = {};

		key = next;
		if (!rs_map_lookup(map, &key, &member) && member.scope == id)
			ret_pids[count++] = key;
		code = rs_map_next(map, &key, &next);
	}
	return code && code != -ENOENT ? code : count;
}
