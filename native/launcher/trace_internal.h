/* SPDX-License-Identifier: Apache-2.0 */
/* What the files trace_*.c share with one another; nothing else includes it. */
#pragma once

#include "sha256.h"
#include "trace.h"
#include "trace_filter.h"
#include "../trace_event.h"

#include <limits.h>
#include <linux/stat.h>
#include <stdint.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* trace_table.c: an index from hash to entry number; the entries live with the caller. */
struct rs_index {
	uint32_t *slots; /* entry number + 1, or 0 */
	uint32_t size;	 /* a power of two, or 0 */
	uint32_t count;
};

typedef int rs_index_equal(const void *context, uint32_t entry, const void *key);
typedef uint64_t rs_index_hash(const void *context, uint32_t entry);

uint64_t rs_hash_bytes(const void *data, size_t size, uint64_t seed);
/* Entry number of the key, or UINT32_MAX. */
uint32_t rs_index_find(const struct rs_index *index, uint64_t hash, rs_index_equal *equal,
		       const void *context, const void *key);
/* Adds entry (which must not be there) ; rehash() gives the hash of an entry when it grows. */
int rs_index_add(struct rs_index *index, uint64_t hash, uint32_t entry, rs_index_hash *rehash,
		 const void *context);
/* The entry must be there. */
void rs_index_remove(struct rs_index *index, uint64_t hash, uint32_t entry, rs_index_hash *rehash,
		     const void *context);
void rs_index_renumber(struct rs_index *index, uint64_t hash, uint32_t from, uint32_t to);
void rs_index_free(struct rs_index *index);
/* Makes room for one more entry of entry_size bytes; capacity doubles up to max entries. */
int rs_grow(void **entries, uint32_t count, uint32_t *capacity, size_t entry_size, uint32_t max);

/* A file's identity and times: the key of the digest cache. */
struct rs_file_id {
	uint64_t device, inode, size;
	int64_t mtime_ns, ctime_ns;
};

/*
 * How long after a change the next one may bear the same time: a tick; where times are whole
 * seconds (ext4 with inodes of 128 bytes, FAT) up to two of them.
 */
static inline int64_t rs_time_step_ns(int64_t ctime_ns)
{
	return ctime_ns % 1000000000 ? 20000000 : 2020000000;
}

struct rs_digest {
	uint8_t bytes[RS_SHA256_BYTES];
};

/* One line of a FILES record. */
struct rs_file {
	uint32_t path; /* offset into the tracer's path arena */
	uint16_t path_length;
	uint8_t kind, flags;
	uint32_t mode;
	uint64_t size, device, inode;
	int64_t ctime_ns; /* when it was first hashed; of materials */
	struct rs_digest digest;
};

/* An entry of the digest cache. */
struct rs_cached {
	struct rs_file_id id;
	struct rs_digest digest;
	uint8_t trusted; /* seen twice, and nobody was writing */
	uint8_t is_code; /* see rs_hash_anew */
};

/* A path the action may leave behind. */
struct rs_candidate {
	uint32_t path;
	uint16_t path_length;
	uint8_t foreign_namespace; /* named in another mount namespace than the launcher's */
	uint8_t deleted;	   /* and not named again since */
	uint32_t process;	   /* the last that wrote it */
	uint64_t device, inode;	   /* of the file that was written or named; 0: not known */
};

/* A socket whose first bytes are waited for. */
struct rs_watch {
	int fd;
	uint8_t kind; /* enum rs_trace_payload */
};
#define RS_WATCHES_MAX 8

struct rs_process {
	pid_t pid;
	uint32_t number; /* as sent */
	uint32_t threads;
	int pidfd; /* owned; -1 until it is needed, or if it cannot be had */
	uint8_t foreign_namespace;
	uint8_t watch_count;  /* above 0: every call of its tasks stops */
	uint32_t watch_stops; /* since the last watch began */
	struct rs_watch watches[RS_WATCHES_MAX];
};

struct rs_task {
	pid_t tid;
	uint32_t process; /* slot in tracer.processes */
	uint8_t awaiting_exit;
	enum rs_call call;
	uint32_t arch;
	uint64_t number, args[6];
};

struct rs_syscall_note; /* trace_note.c */
struct rs_ends;		/* trace_foreign.c */
struct rs_peer;		/* trace_net.c */

struct rs_buffer {
	uint8_t *data;
	size_t size, capacity;
};

struct rs_tracer {
	const struct rs_trace_config *config;
	pid_t child;
	int child_status, child_ended, killing, error;
	uint64_t killed;	  /* processes, since killing */
	uint64_t escapes, mounts; /* trace_guard.c */
	struct rs_wait {
		void *timer; /* timer_t; wakes a wait for stops, so that the hooks get their turn */
		uint8_t dense, seen; /* stops come one after the other; one came since the tick */
	} wait;
	uint64_t counters[RS_TRACE_COUNTER_COUNT];
	uint32_t loss_examples, mutations; /* of which a record was sent */
	int64_t start_ns;		   /* CLOCK_REALTIME when the trace began */

	/* trace_task.c */
	struct rs_task *tasks;
	uint32_t task_count, task_capacity;
	struct rs_index task_index;
	struct rs_process *processes;
	uint32_t process_slots, process_capacity, process_numbers;
	struct rs_index process_index;

	/* trace_file.c */
	char *arena; /* paths, back to back */
	size_t arena_size, arena_capacity;
	struct rs_file *files;
	uint32_t file_count, file_capacity, file_sent;
	struct rs_index file_index;
	uint64_t *opens; /* process << 32 | file */
	uint32_t open_count, open_capacity, open_sent;
	struct rs_index open_index;

	/* trace_hash.c */
	struct rs_cached *cache;
	uint32_t cache_count, cache_capacity;
	struct rs_index cache_index;
	uint8_t *read_buffer;
	int own_fds; /* O_PATH of the launcher's /proc/self/fd */

	/* trace_product.c */
	struct rs_candidate *candidates;
	uint32_t candidate_count, candidate_capacity;
	struct rs_index candidate_index;
	struct rs_inode {
		uint64_t device, inode;
		int64_t born_ns; /* tells files apart that have the inode number in turn */
		int made; /* it was empty when the action took it: all in it is the action's */
	} * written;
	uint32_t written_count, written_capacity;
	struct rs_index written_index;

	/* trace_foreign.c */
	struct rs_foreign {
		int fd; /* of inotify, plus 1; 0: not asked for yet, -1: there is none */
		struct rs_ends *ends; /* by watch */
		uint32_t cut_short;   /* opens whose task ended before it was told their result */
		uint32_t count, capacity;
	} foreign;

	/* trace_remote.c */
	uint64_t *remote_mounts; /* that were sent, by their number */
	uint32_t remote_count, remote_capacity;

	/* trace_exec.c */
	struct rs_digest *environments;
	uint32_t environment_count, environment_capacity;
	struct rs_index environment_index;

	/* trace_note.c */
	struct rs_syscall_note *notes;
	uint32_t note_count, note_capacity;
	struct rs_index note_index;
	struct rs_buffer note_text;

	/* trace_net.c */
	struct rs_peer *peers;
	uint32_t peer_count, peer_capacity;
	struct rs_index peer_index;

	struct rs_buffer out;	  /* records that wait to be emitted */
	struct rs_buffer scratch; /* one body while it is being built */
};

/* trace_emit.c */
void rs_put(struct rs_buffer *buffer, const void *data, size_t size, int *error);
void rs_put16(struct rs_tracer *t, uint16_t value);
void rs_put32(struct rs_tracer *t, uint32_t value);
void rs_put64(struct rs_tracer *t, uint64_t value);
void rs_put_bytes(struct rs_tracer *t, const void *data, size_t size);
void rs_begin(struct rs_tracer *t);
void rs_end(struct rs_tracer *t, enum rs_trace_record type); /* sends the body in scratch */
void rs_flush(struct rs_tracer *t);
void rs_lost(struct rs_tracer *t, enum rs_trace_loss reason, uint32_t process, const char *path);
uint64_t rs_now_ns(void);
#define rs_counted(tracer, counter) ((tracer)->counters[counter]++)

/* trace_task.c */
struct rs_task *rs_task_find(struct rs_tracer *t, pid_t tid);
struct rs_task *rs_task_add(struct rs_tracer *t, pid_t tid, const struct rs_task *creator);
void rs_task_remove(struct rs_tracer *t, pid_t tid);
void rs_task_exec(struct rs_tracer *t, struct rs_task *task, pid_t former_tid);
void rs_task_ended(struct rs_tracer *t, pid_t tid, int wait_status);
void rs_task_kill_all(struct rs_tracer *t);
struct rs_process *rs_process_of(struct rs_tracer *t, const struct rs_task *task);
/* A duplicate of a descriptor of the process, or -errno. */
int rs_process_fd(struct rs_process *process, int fd);

/* trace_hash.c */
void rs_file_id_from(const struct statx *st, struct rs_file_id *ret_id);
#define RS_STATX_MASK (STATX_BASIC_STATS | STATX_BTIME)
/* SHA-256 of the open regular file `fd`, from the cache if that is safe. `ret_st` is its state
 * when it was hashed. Returns 0 or the negative enum rs_trace_loss. */
int rs_hash_file(struct rs_tracer *t, int fd, struct statx *ret_st, struct rs_digest *ret_digest);
/* The same without the cache; `state` is the file's state just now, then that when hashed.
 * `ret_is_code`: whether the content is machine code by its first bytes (ELF, PE). */
int rs_hash_anew(struct rs_tracer *t, int fd, struct statx *state, struct rs_digest *ret_digest,
		 uint8_t *ret_is_code);
/* The digest of a file in this state, if the cache has it. */
int rs_hash_cached(struct rs_tracer *t, const struct statx *st, struct rs_digest *ret_digest,
		   uint8_t *ret_is_code);
enum rs_filesystem {
	RS_FILESYSTEM_LOCAL,
	RS_FILESYSTEM_PSEUDO, /* its files are made up as they are read: excluded, as by fanotify */
	RS_FILESYSTEM_REMOTE, /* others serve it */
};
enum rs_filesystem rs_filesystem_of(int fd);

/* trace_remote.c: RS_TRACE_FILE_REMOTE if others serve the file, whose mount is then sent; or 0. */
uint8_t rs_remote_flag(struct rs_tracer *t, pid_t tid, int fd);

/* trace_file.c */
uint32_t rs_path_intern(struct rs_tracer *t, const char *path, size_t length);
uint32_t rs_file_seen(struct rs_tracer *t, const char *path, const struct statx *st,
		      const struct rs_digest *digest, uint8_t kind, uint8_t flags);
void rs_file_opened(struct rs_tracer *t, uint32_t process, uint32_t file);
void rs_files_flush(struct rs_tracer *t);
void rs_files_put(struct rs_tracer *t, const struct rs_file *files, uint32_t count,
		  enum rs_trace_record type);

/* trace_path.c: what the kernel says about a held task. Each returns a length or -errno. */
#define RS_PATH_BYTES 4097 /* PATH_MAX and NUL */
ssize_t rs_link_text_at(int dir, const char *link, char ret_path[RS_PATH_BYTES],
			const struct statx *st);
ssize_t rs_own_fd_path(struct rs_tracer *t, int fd, char ret_path[RS_PATH_BYTES],
		       const struct statx *st);
int rs_reopen(struct rs_tracer *t, int fd);
ssize_t rs_link_text(const char *link, char ret_path[RS_PATH_BYTES], const struct statx *st);
ssize_t rs_fd_path(pid_t tid, int fd, char ret_path[RS_PATH_BYTES], const struct statx *st);
ssize_t rs_read_string(pid_t tid, uint64_t address, char *ret_text, size_t size);
ssize_t rs_read_memory(pid_t tid, uint64_t address, void *ret_data, size_t size);
/* The absolute path that (dirfd, name) means to the task; `follow`: the last part too. */
ssize_t rs_resolve(pid_t tid, int dirfd, const char *name, int follow,
		   char ret_path[RS_PATH_BYTES]);
/* Opens a path as the task would, O_PATH; returns an fd of ours or -errno. */
int rs_open_as(pid_t tid, int dirfd, const char *name, int flags);

int rs_is_anonymous(const char *path, const struct statx *st);

/* trace_open.c, trace_exec.c, trace_name.c, trace_net.c, trace_note.c: one per kind of stop */
void rs_open_done(struct rs_tracer *t, struct rs_task *task, int64_t result);
void rs_exec_done(struct rs_tracer *t, struct rs_task *task);
void rs_name_done(struct rs_tracer *t, struct rs_task *task, int64_t result);
void rs_file_op(struct rs_tracer *t, uint32_t process, enum rs_trace_op op, const char *path,
		const char *second, uint32_t mode, uint64_t bytes);
void rs_net_done(struct rs_tracer *t, struct rs_task *task, int64_t result);
void rs_send_done(struct rs_tracer *t, struct rs_task *task, int64_t result);
int rs_is_socket(pid_t tid, int fd);
void rs_dup_done(struct rs_tracer *t, struct rs_task *task, int64_t result);
void rs_note(struct rs_tracer *t, struct rs_task *task, int64_t result, uint8_t flags);
void rs_notes_flush(struct rs_tracer *t);

/* trace_wait.c */
int rs_wait_begin(struct rs_tracer *t);
void rs_wait_end(struct rs_tracer *t);
/* As waitpid(-1, …, __WALL): waits while stops come densely, else 0 if there is none. */
pid_t rs_wait_next(struct rs_tracer *t, int *ret_status);

/* trace_entry.c */
int rs_call_begun(struct rs_tracer *t, struct rs_task *task);

/* trace_guard.c */
int rs_guard_call(struct rs_tracer *t, const struct rs_task *task, int64_t *ret_result);

/* trace_watch.c */
void rs_watch_add(struct rs_process *process, int fd, uint8_t kind);
/* Whether the task's call, which begins now, must be looked at when it ends. */
int rs_watch_entry(struct rs_tracer *t, struct rs_task *task);
/* What is waited for on a descriptor (enum rs_trace_payload, 0: nothing); counts this send. */
uint8_t rs_watch_take(struct rs_process *process, int fd);

/* trace_product.c */
void rs_product_written(struct rs_tracer *t, const struct rs_task *task, const char *path,
			const struct statx *st);
void rs_product_named(struct rs_tracer *t, const struct rs_task *task, const char *path);
void rs_product_renamed(struct rs_tracer *t, const struct rs_task *task, const char *from,
			const char *to);
void rs_product_deleted(struct rs_tracer *t, const char *path);
int rs_inode_written(const struct rs_tracer *t, uint64_t device, uint64_t inode);
/* Whether all that is in the file comes from the action: then reading it tells nothing. */
uint8_t rs_born_flag(const struct rs_tracer *t, const struct statx *st);
void rs_products_finish(struct rs_tracer *t);

/* trace_foreign.c */
void rs_foreign_opened(struct rs_tracer *t, int fd); /* by the action, for writing */
/* At the end: did somebody else write the file, too? */
int rs_foreign_written(struct rs_tracer *t, int fd);
/* A task has ended: was it within an open that may have succeeded? */
void rs_foreign_task_ended(struct rs_tracer *t, const struct rs_task *task);
/* Whether an inode has its number for good on this filesystem. */
int rs_foreign_keeps_inodes(int fd);
void rs_foreign_free(struct rs_tracer *t);

/* trace_stability.c */
void rs_stability_check(struct rs_tracer *t);

/* trace_regs.c */
int rs_skip_call(pid_t tid, int64_t result);

/* By number, because musl before 1.2.5 has no statx(). */
static inline int rs_statx(int dirfd, const char *path, int flags, unsigned int mask,
			   struct statx *ret_st)
{
	return (int)syscall(SYS_statx, dirfd, path, flags, mask, ret_st);
}

static inline uint64_t rs_device(const struct statx *st)
{
	return (uint64_t)st->stx_dev_major << 32 | st->stx_dev_minor;
}
