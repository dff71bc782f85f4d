/* content.h: digests of the files that members open, taken after the fact. See content.c. */
#ifndef ROOTSEAL_TRACE_CONTENT_H
#define ROOTSEAL_TRACE_CONTENT_H
#include <linux/types.h>
#include <pthread.h>
#include <stdbool.h>

#include "../../bpf/event.h"
#include "../capture/dcache.h"
#include "../capture/filestat.h"
#include "agg.h"

#define RS_CONTENT_THREADS_MAX 4
#define RS_CONTENT_JOBS_MAX    65536U
#define RS_CONTENT_JOB_BYTES   (64U << 20) /* of all jobs that wait */
#define RS_CONTENT_KEPT_MAX    (1U << 18)  /* digests for later actions: 20 MiB at most */

/* Keys of two words to a number, open addressing; a slot without `used` is free. */
struct rs_table_slot {
	uint64_t a, b;
	uint32_t value;
	uint32_t used;
};

struct rs_table {
	struct rs_table_slot *slots; /* owned */
	size_t size, count;
};

uint64_t rs_table_mix(uint64_t value);
/* The value of a key, or NULL. */
uint32_t *rs_table_get(const struct rs_table *table, uint64_t a, uint64_t b);
/* The place of a key, made with 0 if it was not there; NULL without memory. */
uint32_t *rs_table_put(struct rs_table *table, uint64_t a, uint64_t b);

/* A file in one state, under one path. */
struct rs_content_entry {
	struct rs_stat stat;
	rs_trace_content told;
	uint64_t dev, ino; /* as events have them */
};

/* One scope's part. */
struct rs_contents {
	struct rs_content_pool *pool;
	int root_fd;	   /* owned, O_PATH: the root of the first process */
	int clock_fd;	   /* owned: tells if the clock was set */
	char prefix[4096]; /* path of root_fd as seen from here, "" for / */
	int64_t begun_ns;  /* CLOCK_REALTIME_COARSE before the action */
	uint64_t memory_device;
	uint64_t max_files, max_hashed_bytes;
	_Atomic uint64_t hashed_bytes, cache_hits;
	_Atomic bool dropped; /* nobody wants what is still under way */

	pthread_mutex_t mutex; /* guards everything below */
	pthread_cond_t idle;   /* pending became 0 */
	uint32_t pending;
	struct rs_content_entry *entries; /* owned */
	size_t count, room;
	char *paths; /* owned: of all entries, back to back */
	size_t paths_length, paths_room;
	rs_trace_content_open *opens; /* owned */
	size_t opens_count, opens_room;
	struct rs_table by_path, by_file; /* to the latest entry */
	struct rs_table pairs;		  /* process and entry, which are in opens */
	struct rs_table by_output;	  /* hashes of the paths in `outputs` */
	char *outputs; /* owned: paths that were opened to write, each with a NUL */
	size_t outputs_length, outputs_room, outputs_count;
	struct rs_table born, written; /* files that members made; opened to write */
	struct rs_table failed;	       /* files that could not be hashed: why */
	uint64_t failures[RS_CONTENT_REASONS];
};

/* One open whose content is wanted. */
struct rs_content_job {
	struct rs_content_job *next;
	struct rs_contents *contents;
	uint64_t dev, ino;  /* as the kernel has them */
	int64_t settled_ns; /* what was changed before this was changed before the open */
	uint32_t tgid, tid;
	int32_t fd;
	uint32_t access;    /* as in rs_trace_open */
	bool any_device;    /* stat(2) shows another device */
	bool told;	    /* by an event: the ledger knows the file */
	bool exempt;	    /* made by a member, or in memory: no material */
	bool interpreted;   /* of an exec: `name` is a script's */
	uint32_t path_size; /* with its NUL */
	uint32_t name_size;
	char text[]; /* path, name */
};

/* When the clock of files was looked at, and what it showed: see clock.c. */
#define RS_CLOCK_LOOKS 256U
struct rs_clock {
	int64_t at_ns[RS_CLOCK_LOOKS]; /* CLOCK_MONOTONIC */
	int64_t shown_ns[RS_CLOCK_LOOKS];
	uint64_t count;
};
void rs_clock_look(struct rs_clock *clock);
/* What it had shown before `at_ns`; 0: nobody had looked. */
int64_t rs_clock_before(const struct rs_clock *clock, int64_t at_ns);

struct rs_content_worker {
	struct rs_hasher hasher;
	pthread_t thread;
	struct rs_content_pool *pool;
	char path[4096 + 1];
};

struct rs_content_pool *rs_content_pool_open(int *ret_error);
void rs_content_pool_close(struct rs_content_pool *pool);
struct rs_dcache *rs_content_pool_cache(struct rs_content_pool *pool);
/* Takes over the job. False: no room, the job is freed. */
bool rs_content_pool_add(struct rs_content_pool *pool, struct rs_content_job *job);

/* Begin for the held process `pid`: what it inherits open is hashed first. */
int rs_contents_open(struct rs_content_pool *pool, int pid, const rs_trace_limits *limits,
		     struct rs_contents **ret_contents);
/*
 * An event that rs_event_valid accepted; never blocks on a file. `settled_ns`: what the clock of
 * files (CLOCK_REALTIME_COARSE) had shown before the event; 0: not known.
 */
void rs_contents_event(struct rs_contents *contents, const void *event, int64_t settled_ns);
/* Wait for what is under way. */
void rs_contents_await(struct rs_contents *contents);
/* The same; then what others changed since is looked for. */
void rs_contents_finish(struct rs_contents *contents);
void rs_contents_free(struct rs_contents *contents);

/* content_table.c, each takes the mutex */
bool rs_contents_made(struct rs_contents *contents, uint64_t dev, uint64_t ino, bool any_device);
void rs_contents_done(struct rs_contents *contents); /* one job less */
void rs_contents_fail(struct rs_contents *contents, const struct rs_content_job *job,
		      enum rs_content_reason reason);
/* A digest of this very state that is known already. */
bool rs_contents_known(struct rs_contents *contents, const struct rs_stat *stat,
		       struct rs_content *ret_content);
void rs_contents_output(struct rs_contents *contents, const char *path);
void rs_contents_add(struct rs_contents *contents, const struct rs_content_job *job,
		     const struct rs_stat *stat, const struct rs_content *content,
		     const char *path);

/* content_hash.c */
void rs_content_run(struct rs_content_worker *worker, const struct rs_content_job *job);
/* Hash an O_PATH descriptor for a job, and enter it under `path`. */
void rs_content_take(struct rs_content_worker *worker, const struct rs_content_job *job, int fd,
		     const char *path);
/* An O_PATH descriptor of a path below the scope's root; -errno. */
int rs_content_open(const struct rs_contents *contents, const char *path, bool links);
bool rs_content_is(const struct rs_content_job *job, const struct rs_stat *stat);
bool rs_content_is_unchanged(const struct rs_content_job *job, const struct rs_stat *stat);

/* content_exec.c: what the kernel opened by itself to execute the file of `fd` (O_PATH) */
void rs_content_exec(struct rs_content_worker *worker, const struct rs_content_job *job, int fd);

/* ledger.c */
int rs_trace_is_pseudo(uint64_t magic);
int rs_trace_has_own_device(uint64_t magic);
uint64_t rs_trace_user_device(uint64_t dev);
uint64_t rs_trace_kernel_device(uint64_t dev);

#endif
