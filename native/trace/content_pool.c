/*
 * content_pool.c: the threads that hash what members opened, and the line of files before them.
 *
 * Owns: the threads, the jobs that wait, the digests for later actions. Must not: let the line grow
 * without bound; what finds no room is for the caller to count. Hand-off: ring consumer -> line ->
 * content_hash.c. Privilege: none of its own.
 */
#include "content.h"
#include "../capture/mem.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

struct rs_content_pool {
	pthread_mutex_t mutex; /* guards the line */
	pthread_cond_t more;
	struct rs_content_job *first, **last; /* owned */
	size_t jobs, bytes;
	bool stop;
	struct rs_dcache *cache; /* owned */
	struct rs_content_worker workers[RS_CONTENT_THREADS_MAX];
	int threads;
};

static size_t bytes_of(const struct rs_content_job *job)
{
	return sizeof(*job) + job->path_size + job->name_size;
}

static struct rs_content_job *next_job(struct rs_content_pool *pool)
{
	struct rs_content_job *job;

	pthread_mutex_lock(&pool->mutex);
	while (!pool->first && !pool->stop)
		pthread_cond_wait(&pool->more, &pool->mutex);
	job = pool->first;
	if (job) {
		pool->first = job->next;
		if (!pool->first)
			pool->last = &pool->first;
		pool->jobs--;
		pool->bytes -= bytes_of(job);
	}
	pthread_mutex_unlock(&pool->mutex);
	return job;
}

static void *run(void *context)
{
	struct rs_content_worker *worker = context;
	struct rs_content_job *job;

	while ((job = next_job(worker->pool))) {
		rs_content_run(worker, job);
		rs_contents_done(job->contents);
		free(job);
	}
	return NULL;
}

bool rs_content_pool_add(struct rs_content_pool *pool, struct rs_content_job *job)
{
	bool room;

	job->next = NULL;
	pthread_mutex_lock(&pool->mutex);
	room =
	    pool->jobs < RS_CONTENT_JOBS_MAX && pool->bytes + bytes_of(job) <= RS_CONTENT_JOB_BYTES;
	if (room) {
		*pool->last = job;
		pool->last = &job->next;
		pool->jobs++;
		pool->bytes += bytes_of(job);
		pthread_cond_signal(&pool->more);
	}
	pthread_mutex_unlock(&pool->mutex);
	if (!room)
		free(job);
	return room;
}

struct rs_dcache *rs_content_pool_cache(struct rs_content_pool *pool)
{
	return pool->cache;
}

static int start(struct rs_content_pool *pool, struct rs_content_worker *worker)
{
	int error = rs_hasher_open(&worker->hasher);

	worker->pool = pool;
	if (error)
		return error;
	error = -pthread_create(&worker->thread, NULL, run, worker);
	if (error)
		rs_hasher_close(&worker->hasher);
	return error;
}

struct rs_content_pool *rs_content_pool_open(int *ret_error)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	struct rs_content_pool *pool = calloc(1, sizeof(*pool));

	*ret_error = pool ? rs_dcache_open(RS_CONTENT_KEPT_MAX, &pool->cache) : -ENOMEM;
	if (*ret_error) {
		free(pool);
		return NULL;
	}
	rs_hash_setup();
	pthread_mutex_init(&pool->mutex, NULL);
	pthread_cond_init(&pool->more, NULL);
	pool->last = &pool->first;
	do {
		*ret_error = start(pool, &pool->workers[pool->threads]);
		pool->threads += !*ret_error;
	} while (!*ret_error && pool->threads < cpus && pool->threads < RS_CONTENT_THREADS_MAX);
	if (pool->threads) {
		*ret_error = 0; /* fewer will do */
		return pool;
	}
	rs_content_pool_close(pool);
	return NULL;
}

void rs_content_pool_close(struct rs_content_pool *pool)
{
	if (!pool)
		return;
	pthread_mutex_lock(&pool->mutex);
	pool->stop = true;
	pthread_cond_broadcast(&pool->more);
	pthread_mutex_unlock(&pool->mutex);
	for (int i = 0; i < pool->threads; i++) { /* they end when the line is empty */
		pthread_join(pool->workers[i].thread, NULL);
		rs_hasher_close(&pool->workers[i].hasher);
	}
	rs_dcache_close(pool->cache);
	pthread_cond_destroy(&pool->more);
	pthread_mutex_destroy(&pool->mutex);
	free(pool);
}
