/*
 * engine.c: the threads that serve all scopes.
 *
 * Owns: shard threads (events), heavy threads (long hashes), the reaper (closing a group waits for
 * the kernel's grace period, which no action should wait for), the epoll instance, the digest
 * cache. Must not: touch what a scope recorded. Hands off: readable groups -> handler.c, ended
 * scopes -> reaper. Privilege: none itself; its threads run with that of the process.
 */
#include "core.h"
#include "verity.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define STOP_TOKEN UINT64_MAX

struct heavy_item {
	struct rs_scope *scope;
	struct rs_event event;
};

struct rs_engine {
	struct rs_dcache *cache;
	struct rs_budget budget;
	struct rs_awake awake;
	struct rs_descriptors descriptors;
	int epoll_fd, stop_fd; /* owned */
	unsigned shards;
	bool multigrain;
	struct rs_verity *_Atomic verity; /* owned; set at most once */
	bool may_linger;		  /* more than one CPU: the opener need not wait for ours */
	struct rs_switches switches;
	_Atomic unsigned open_scopes;
	struct rs_worker *workers; /* shards, then as many heavy ones */
	pthread_t reaper;
	bool reaper_started;

	pthread_mutex_t mutex; /* guards all below; never held across a system call that can wait */
	pthread_cond_t heavy_ready, reap_ready, reaped;
	struct rs_scope *slots[RS_SCOPES_MAX];
	uint32_t generation;
	struct heavy_item heavy[RS_HEAVY_QUEUE_MAX];
	unsigned heavy_head, heavy_count;
	struct rs_scope *reap_list;
	bool reaping, stopping;
};

int rs_fail(rs_error *error, int code, const char *operation, const char *detail)
{
	if (!error)
		return -code;
	error->code = code;
	snprintf(error->operation, sizeof(error->operation), "%s", operation);
	if (snprintf(error->detail, sizeof(error->detail), "%s", detail) >=
	    (int)sizeof(error->detail))
		memcpy(error->detail + sizeof(error->detail) - 4, "...", 4);
	return -code;
}

int rs_worker_open(struct rs_worker *worker, struct rs_engine *engine)
{
	int error;

	worker->engine = engine;
	worker->own_pid = getpid();
	worker->fds_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (worker->fds_fd < 0)
		return -errno;
	error = rs_hasher_open(&worker->hasher);
	if (error)
		close(worker->fds_fd);
	return error;
}

void rs_worker_close(struct rs_worker *worker)
{
	rs_hasher_close(&worker->hasher);
	close(worker->fds_fd);
	rs_buf_free(&worker->proc_info.cmdline);
}

struct rs_dcache *rs_engine_cache(struct rs_engine *engine)
{
	return engine->cache;
}

struct rs_budget *rs_engine_budget(struct rs_engine *engine)
{
	return &engine->budget;
}

bool rs_engine_multigrain(struct rs_engine *engine)
{
	return engine->multigrain;
}

const struct rs_verity *rs_engine_verity(struct rs_engine *engine)
{
	return atomic_load_explicit(&engine->verity, memory_order_acquire);
}

int rs_engine_trust_sealed(rs_engine *engine, const uint8_t *entries, uint64_t count)
{
	struct rs_verity *map, *none = NULL;
	int result = rs_verity_open(entries, count, &map);

	if (result)
		return result;
	if (atomic_compare_exchange_strong(&engine->verity, &none, map))
		return 0;
	rs_verity_close(map); /* handlers may be reading the first one */
	return -EBUSY;
}

void rs_scope_enter(struct rs_scope *scope)
{
	pthread_mutex_lock(&scope->mutex);
	scope->in_flight++;
	scope->references++;
	pthread_mutex_unlock(&scope->mutex);
}

void rs_engine_release(struct rs_scope *scope)
{
	struct rs_engine *engine = scope->engine;
	bool last;

	pthread_mutex_lock(&scope->mutex);
	last = --scope->references == 0;
	pthread_mutex_unlock(&scope->mutex);
	if (!last)
		return;
	pthread_mutex_lock(&engine->mutex);
	scope->reap_next = engine->reap_list;
	engine->reap_list = scope;
	pthread_cond_signal(&engine->reap_ready);
	pthread_mutex_unlock(&engine->mutex);
}

void rs_scope_leave(struct rs_scope *scope)
{
	pthread_mutex_lock(&scope->mutex);
	if (--scope->in_flight == 0)
		pthread_cond_broadcast(&scope->idle);
	pthread_mutex_unlock(&scope->mutex);
	rs_engine_release(scope);
}

/* The scope of an epoll token, entered; NULL if it has ended since. */
static struct rs_scope *enter_by_token(struct rs_engine *engine, uint64_t token)
{
	struct rs_scope *scope;

	pthread_mutex_lock(&engine->mutex);
	scope = engine->slots[(uint32_t)token % RS_SCOPES_MAX];
	if (scope && scope->generation == token >> 32)
		rs_scope_enter(scope);
	else
		scope = NULL;
	pthread_mutex_unlock(&engine->mutex);
	return scope;
}

static uint64_t token_of(const struct rs_scope *scope)
{
	return (uint64_t)scope->generation << 32 | scope->slot;
}

/* Edge triggered: an event wakes one thread, and a second one only if more events come. */
static int watch(struct rs_engine *engine, struct rs_scope *scope, int operation, uint32_t events)
{
	struct epoll_event interest = {.events = events, .data.u64 = token_of(scope)};

	return epoll_ctl(engine->epoll_fd, operation, scope->group_fd, &interest) ? -errno : 0;
}

int rs_engine_watch(struct rs_engine *engine, struct rs_scope *scope, bool wake)
{
	/* Switching on checks what is queued by then, so no event is forgotten. */
	return watch(engine, scope, EPOLL_CTL_MOD, wake ? EPOLLIN | EPOLLET : 0);
}

int rs_engine_stay_awake(rs_engine *engine)
{
	return rs_awake_open(&engine->awake);
}

bool rs_engine_is_alone(struct rs_engine *engine)
{
	return atomic_load_explicit(&engine->open_scopes, memory_order_relaxed) <= 1;
}

struct rs_descriptors *rs_engine_descriptors(struct rs_engine *engine)
{
	return &engine->descriptors;
}

unsigned rs_engine_shards(struct rs_engine *engine)
{
	return engine->shards;
}

struct rs_switches *rs_engine_switches(struct rs_engine *engine)
{
	return &engine->switches;
}

struct rs_worker *rs_engine_workers(struct rs_engine *engine)
{
	return engine->workers;
}

struct rs_awake *rs_engine_awake(struct rs_engine *engine)
{
	return &engine->awake;
}

bool rs_engine_may_linger(struct rs_engine *engine)
{
	return engine->may_linger;
}

int rs_engine_register(struct rs_engine *engine, struct rs_scope *scope)
{
	uint32_t slot;
	int error = -EMFILE;

	pthread_mutex_lock(&engine->mutex);
	for (slot = 0; slot < RS_SCOPES_MAX && engine->slots[slot]; slot++)
		;
	if (slot < RS_SCOPES_MAX && !engine->stopping) {
		scope->slot = slot;
		scope->generation = ++engine->generation & 0x7fffffff;
		engine->slots[slot] = scope;
		atomic_fetch_add(&engine->open_scopes, 1);
		error = 0;
	}
	pthread_mutex_unlock(&engine->mutex);
	if (!error)
		error = watch(engine, scope, EPOLL_CTL_ADD, EPOLLIN | EPOLLET);
	return error;
}

void rs_engine_forget(struct rs_engine *engine, struct rs_scope *scope)
{
	epoll_ctl(engine->epoll_fd, EPOLL_CTL_DEL, scope->group_fd, NULL);
	pthread_mutex_lock(&engine->mutex);
	if (engine->slots[scope->slot] == scope) {
		engine->slots[scope->slot] = NULL;
		atomic_fetch_sub(&engine->open_scopes, 1);
	}
	pthread_mutex_unlock(&engine->mutex);
}

static void *shard_main(void *context)
{
	struct rs_worker *worker = context;
	struct rs_awake *awake = &worker->engine->awake;
	struct epoll_event ready;
	struct rs_scope *scope;
	int got;

	for (;;) {
		got = epoll_wait(worker->engine->epoll_fd, &ready, 1, rs_awake_grace_ms(awake));
		/* Cannot happen with a valid instance. A thread fewer would leave openers waiting
		 * in silence; the end of the daemon is something that its launchers see. */
		if (got < 0 && errno != EINTR)
			abort();
		if (got == 0)
			rs_awake_rest(awake);
		if (got <= 0)
			continue;
		if (ready.data.u64 == STOP_TOKEN)
			break;
		scope = enter_by_token(worker->engine, ready.data.u64);
		if (!scope)
			continue;
		rs_serve(worker, scope);
		rs_scope_leave(scope);
	}
	return NULL;
}

bool rs_engine_hand_off(struct rs_engine *engine, struct rs_scope *scope,
			const struct rs_event *event)
{
	bool taken;

	rs_scope_enter(scope);
	pthread_mutex_lock(&engine->mutex);
	taken = engine->heavy_count < engine->descriptors.long_hashes && !engine->stopping;
	if (taken) {
		engine->heavy[(engine->heavy_head + engine->heavy_count++) % RS_HEAVY_QUEUE_MAX] =
		    (struct heavy_item){.scope = scope, .event = *event};
		pthread_cond_signal(&engine->heavy_ready);
	}
	pthread_mutex_unlock(&engine->mutex);
	if (!taken)
		rs_scope_leave(scope);
	return taken;
}

static void *heavy_main(void *context)
{
	struct rs_worker *worker = context;
	struct rs_engine *engine = worker->engine;
	struct heavy_item item;

	for (;;) {
		pthread_mutex_lock(&engine->mutex);
		while (!engine->heavy_count && !engine->stopping)
			pthread_cond_wait(&engine->heavy_ready, &engine->mutex);
		if (!engine->heavy_count) {
			pthread_mutex_unlock(&engine->mutex);
			return NULL;
		}
		item = engine->heavy[engine->heavy_head];
		engine->heavy_head = (engine->heavy_head + 1) % RS_HEAVY_QUEUE_MAX;
		engine->heavy_count--;
		pthread_mutex_unlock(&engine->mutex);
		rs_handle_event(worker, item.scope, &item.event);
		rs_scope_leave(item.scope);
	}
}

static void *reaper_main(void *context)
{
	struct rs_engine *engine = context;
	struct rs_scope *scope;

	pthread_mutex_lock(&engine->mutex);
	for (;;) {
		while (!engine->reap_list && !engine->stopping)
			pthread_cond_wait(&engine->reap_ready, &engine->mutex);
		scope = engine->reap_list;
		if (!scope)
			break;
		engine->reap_list = scope->reap_next;
		engine->reaping = true;
		pthread_mutex_unlock(&engine->mutex);
		rs_scope_destroy(scope);
		pthread_mutex_lock(&engine->mutex);
		engine->reaping = false;
		pthread_cond_broadcast(&engine->reaped);
	}
	pthread_mutex_unlock(&engine->mutex);
	return NULL;
}

void rs_engine_wait_reaped(struct rs_engine *engine)
{
	pthread_mutex_lock(&engine->mutex);
	while (engine->reap_list || engine->reaping)
		pthread_cond_wait(&engine->reaped, &engine->mutex);
	pthread_mutex_unlock(&engine->mutex);
}

static int start_threads(struct rs_engine *engine)
{
	unsigned i, count = 2 * engine->shards;
	sigset_t all, before;
	int error = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the caller's threads */
	for (i = 0; i < count && !error; i++) {
		struct rs_worker *worker = &engine->workers[i];

		worker->may_hand_off = i < engine->shards;
		error = rs_worker_open(worker, engine);
		if (error)
			break;
		error = pthread_create(&worker->thread, NULL,
				       worker->may_hand_off ? shard_main : heavy_main, worker);
		worker->started = !error;
		if (error)
			rs_worker_close(worker);
	}
	if (!error)
		error = pthread_create(&engine->reaper, NULL, reaper_main, engine);
	engine->reaper_started = !error;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return error > 0 ? -error : error;
}

static int open_parts(struct rs_engine *engine, uint64_t digest_cache_entries)
{
	struct epoll_event stop = {.events = EPOLLIN, .data.u64 = STOP_TOKEN};
	int error;

	error = rs_dcache_open(digest_cache_entries, &engine->cache);
	if (error)
		return error;
	engine->workers = calloc(2 * engine->shards, sizeof(*engine->workers));
	if (!engine->workers)
		return -ENOMEM;
	engine->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	engine->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (engine->epoll_fd < 0 || engine->stop_fd < 0 ||
	    epoll_ctl(engine->epoll_fd, EPOLL_CTL_ADD, engine->stop_fd, &stop))
		return -errno;
	return start_threads(engine);
}

int rs_engine_open(unsigned shards, uint64_t digest_cache_entries, rs_engine **ret_engine,
		   rs_error *error)
{
	struct rs_engine *engine;
	int result;

	if (shards < 1 || shards > RS_SHARDS_MAX || digest_cache_entries > RS_DCACHE_ENTRIES_MAX)
		return rs_fail(error, EINVAL, "engine",
			       "shards or digest cache entries out of range");
	engine = calloc(1, sizeof(*engine));
	if (!engine)
		return rs_fail(error, ENOMEM, "engine", "memory");
	rs_hash_setup();
	rs_host_prepare();
	engine->shards = shards;
	engine->multigrain = rs_host_multigrain();
	engine->may_linger = sysconf(_SC_NPROCESSORS_ONLN) > 1;
	engine->switches.hash_once_after = RS_HASH_ONCE_AFTER;
	rs_budget_init(&engine->budget);
	rs_descriptors_init(&engine->descriptors);
	rs_awake_init(&engine->awake);
	engine->epoll_fd = engine->stop_fd = -1;
	pthread_mutex_init(&engine->mutex, NULL);
	pthread_cond_init(&engine->heavy_ready, NULL);
	pthread_cond_init(&engine->reap_ready, NULL);
	pthread_cond_init(&engine->reaped, NULL);
	result = open_parts(engine, digest_cache_entries);
	if (result) {
		rs_engine_close(engine);
		return rs_fail(error, -result, "engine", "threads, memory or descriptors");
	}
	*ret_engine = engine;
	return 0;
}

static void stop_threads(struct rs_engine *engine)
{
	const uint64_t one = 1;
	unsigned i;

	pthread_mutex_lock(&engine->mutex);
	engine->stopping = true;
	pthread_cond_broadcast(&engine->heavy_ready);
	pthread_cond_broadcast(&engine->reap_ready);
	pthread_mutex_unlock(&engine->mutex);
	/* Never read, so it stays readable and every shard sees it. */
	if (engine->stop_fd >= 0 && write(engine->stop_fd, &one, sizeof(one)) < 0 &&
	    errno != EAGAIN)
		return;
	for (i = 0; engine->workers && i < 2 * engine->shards; i++) {
		if (!engine->workers[i].started)
			continue;
		pthread_join(engine->workers[i].thread, NULL);
		rs_worker_close(&engine->workers[i]);
	}
}

void rs_engine_close(rs_engine *engine)
{
	unsigned slot;

	for (slot = 0; slot < RS_SCOPES_MAX; slot++)
		if (engine->slots[slot])
			rs_scope_abort(engine->slots[slot]);
	stop_threads(engine);
	if (engine->reaper_started)
		pthread_join(engine->reaper, NULL);
	reaper_main(engine); /* for scopes that a thread was in when the reaper stopped */
	/* Close on failure before any thread, or after the last one. */
	if (engine->epoll_fd >= 0)
		close(engine->epoll_fd);
	if (engine->stop_fd >= 0)
		close(engine->stop_fd);
	rs_dcache_close(engine->cache);
	rs_budget_close(&engine->budget);
	rs_awake_close(&engine->awake);
	rs_verity_close(atomic_load(&engine->verity));
	free(engine->workers);
	pthread_mutex_destroy(&engine->mutex);
	pthread_cond_destroy(&engine->heavy_ready);
	pthread_cond_destroy(&engine->reap_ready);
	pthread_cond_destroy(&engine->reaped);
	free(engine);
}
