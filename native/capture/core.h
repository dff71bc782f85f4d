/* core.h: how the parts of the capture core fit together: engine, scope, worker. */
#ifndef ROOTSEAL_CAPTURE_CORE_H
#define ROOTSEAL_CAPTURE_CORE_H
#include "api.h"
#include "awake.h"
#include "dcache.h"
#include "event.h"
#include "leaves.h"
#include "mem.h"
#include "mounts.h"
#include "procs.h"

#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sys/fanotify.h>

#define RS_SCOPES_MAX	    4096
#define RS_SHARDS_MAX	    256
#define RS_EVENTS_PER_READ  8 /* each read installs at most this many descriptors */
#define RS_HEAVY_BYTES	    (4ULL * 1024 * 1024)
#define RS_HEAVY_QUEUE_MAX  64
#define RS_EVENT_MASK	    (FAN_OPEN_PERM | FAN_OPEN_EXEC_PERM | FAN_CLOSE_WRITE)
#define RS_PERM_MASK	    (FAN_OPEN_PERM | FAN_OPEN_EXEC_PERM)
#define RS_ANSWER_MASK	    (RS_PERM_MASK | FAN_PRE_ACCESS) /* whoever waits is answered */
#define RS_OPENS_MAX	    (32U * 1024U * 1024U)
#define RS_SNAPSHOT_MAX	    (4U * 1024U * 1024U)
#define RS_HANDLE_BYTES_MAX 128
#define RS_MUTATIONS_MAX    1024 /* told with both digests; more are counted */

#ifndef FAN_MARK_EVICTABLE
#define FAN_MARK_EVICTABLE 0x00000200
#endif
#ifndef FAN_MARK_IGNORE
#define FAN_MARK_IGNORE 0x00000400
#endif
#ifndef FAN_REPORT_FD_ERROR
#define FAN_REPORT_FD_ERROR 0x00002000
#endif
#ifndef FAN_PRE_ACCESS
#define FAN_PRE_ACCESS 0x00100000
#endif

/* Values of observation.LeafKind and observation.DigestSource. */
enum { RS_KIND_FILE = 0, RS_KIND_EXECUTABLE = 1, RS_KIND_SYMLINK = 2, RS_KIND_CODE = 3 };
enum {
	RS_SOURCE_OPEN = 0,
	RS_SOURCE_UNWITNESSED = 4,
	RS_SOURCE_FSVERITY = 5,
	RS_SOURCE_WALK = 7,
	RS_SOURCE_CLOSE_WRITE = 8,
};

struct rs_material {
	struct rs_stat stat;
	const uint8_t *path; /* as the kernel told it, absolute; in the arena, NUL at the end */
	uint32_t path_length;
	uint8_t kind;
	uint8_t accesses;  /* that made an event though it was guarded: see access.c */
	bool compared;	   /* and found changed; guard is then the number of the change, from 1 */
	bool young;	   /* born after the scope began: perhaps made by the action itself */
	uint64_t identity; /* of a young one */
	bool unstable;	   /* hashed while it changed */
	bool unsure;	   /* an equal state at the end does not prove an equal content */
	bool was_unlinked; /* no name any more when it was opened */
	bool ignored;	   /* later opens by its reader may have made no event: see once.c */
	uint8_t source;
	uint32_t guard; /* rs_scope.guard_epoch + 1 when its mark was set: see access.c */
	uint8_t digest[RS_SHA256_BYTES];
};

/* What a material had become when it was accessed. */
struct rs_change {
	bool readable;
	uint8_t digest[RS_SHA256_BYTES];
};

/* A file that the action closed after writing, by inode. */
struct rs_product {
	struct rs_stat stat; /* state of which digest is, if hashed */
	const uint8_t *path; /* at the last close */
	uint32_t path_length;
	uint32_t closes;
	uint64_t hashed_bytes; /* at its closes, all together */
	bool hashed;	       /* digest is of the content in state stat, after the last close */
	bool trusted;	       /* and an equal state later proves an equal content */
	bool nameless;	       /* it exists at the end, but under no path that could be found */
	uint8_t digest[RS_SHA256_BYTES];
	int handle_type; /* of name_to_handle_at; length 0: none */
	uint32_t handle_length;
	uint64_t handle_mount;
	const uint8_t *handle; /* in the arena */
};

struct rs_engine;
struct rs_seen;

/* See rs_engine_set_descriptors and descriptors.c; set before the first scope. */
struct rs_descriptors {
	int ceiling;
	unsigned events_per_read, long_hashes;
};

/* See once.c. */
struct rs_once {
	_Atomic int pid;	   /* whose event was the last */
	_Atomic uint32_t in_a_row; /* events of that process since another's */
	_Atomic uint32_t turn;	   /* how often that changed */
	_Atomic uint32_t marks;	   /* set since then */
};

struct rs_scope {
	struct rs_engine *engine;
	uint32_t slot, generation;
	int group_fd;	  /* owned; closed by the reaper */
	int ns_root_fd;	  /* owned, O_PATH: / of the action's namespace */
	int root_fd;	  /* owned, O_RDONLY|O_DIRECTORY: the action's root */
	int mountinfo_fd; /* owned; keeps the namespace alive */
	int clock_fd;	  /* owned; tells if the clock was set. -1: not asked for, or refused */
	/*
	 * Timestamps come from a clock that lags by up to a tick: a file made after the scope began
	 * may bear a time from started_tick_ns on, one made before it at most started_ns.
	 */
	int64_t started_ns, started_tick_ns;
	int64_t changed_ns; /* see rely_on_the_clock in walk.c */
	int64_t young_ns; /* started_ns, or later if the clock was set back since the last scope */
	rs_limits limits;
	char ns_prefix[PATH_MAX]; /* path of ns_root as seen from here, "" for / */
	char root[PATH_MAX];	  /* canonical, in the namespace */
	uint64_t root_dev;

	_Atomic uint64_t bytes_hashed; /* moves while a file is being hashed */
	_Atomic int64_t last_event_ns; /* engine.c: how densely events come */
	_Atomic uint32_t dense, single;
	_Atomic int64_t crowded_ns; /* until then nobody waits awake: others need the CPU */
	_Atomic uint32_t servers;   /* threads that serve it now */
	_Atomic bool turned_away;   /* a thread came and there were enough */
	struct rs_once once;
	bool remote;		      /* others serve files here: see remote.c */
	bool one_by_one;	      /* events are read singly: see init_group in scope.c */
	bool compares;		      /* accesses of changed files make events: see access.c */
	_Atomic uint32_t guard_epoch; /* how often all marks of inodes were taken away */

	/* Guarded by mutex; never held across a system call but those that make room in spill.c. */
	pthread_mutex_t mutex;
	pthread_cond_t idle; /* in_flight became 0 */
	uint32_t
	    in_flight; /* threads that read or handle events of this scope, and queued heavy ones */
	uint32_t references; /* in_flight, and the owner */
	bool closing;	     /* drained: what comes now is late */
	rs_counters counters;
	struct rs_mounts mounts;
	struct rs_arena arena;
	struct rs_spill spill;
	struct rs_arena material_arena;
	struct rs_material **material_pages; /* see rs_material_at */
	uint32_t materials_count, young_count;
	uint32_t pages, pages_capacity;
	struct rs_index by_material; /* (dev, ino, path, digest) -> material */
	struct rs_index by_inode;    /* (dev, ino) -> material of the last open, if `compares` */
	struct rs_change *changes;
	uint32_t changes_count, changes_capacity;
	struct rs_index by_exec; /* (dev, ino) -> material that was executed */
	struct rs_product *products;
	uint32_t products_count, products_capacity;
	struct rs_index by_product; /* (dev, ino) -> product */
	struct rs_procs procs;
	struct rs_set opens; /* process << 32 | material */
	bool has_witness;
	struct rs_set witness; /* keys of the files another witness saw */
	bool has_names;	       /* a trace told what was renamed, linked and so on */
	struct rs_set names;   /* see foreign.c */
	struct rs_set births;  /* identities of the files that the action closed after writing */
	struct rs_set empties; /* and of the young ones that it opened when nothing was in them */
	struct rs_set snapshot_inodes;
	struct rs_set snapshot_states; /* hashes of (relative path, inode, size and times) */
	bool snapshot_partial;
	struct rs_scope *reap_next;
};

#define RS_MATERIALS_PER_PAGE 256U

static inline struct rs_material *rs_material_at(const struct rs_scope *scope, uint32_t number)
{
	return &scope->material_pages[number / RS_MATERIALS_PER_PAGE]
				     [number % RS_MATERIALS_PER_PAGE];
}

/* What a thread that handles events needs; one per thread, so nothing here is shared. */
struct rs_worker {
	struct rs_engine *engine;
	struct rs_hasher hasher;
	struct rs_proc_info proc_info;
	bool may_hand_off; /* long hashes go to the heavy threads */
	/* Events of one read that are done but for their answers, see handler.c. */
	struct rs_event held[RS_EVENTS_PER_READ];
	unsigned held_count;
	bool batch; /* the read gave several */
	/* Inode (rs_inode_key) whose opener goes on before it is entered, else 0: see access.c. */
	_Atomic uint64_t entering;
	/* See remote.c: the scope whose events it has in hand, how often it began to read, and for
	 * which of them nobody waits any more. */
	struct rs_scope *_Atomic reading;
	_Atomic uint32_t reads, given_up;
	int own_pid;
	int fds_fd; /* owned, O_PATH: /proc/self/fd */
	_Alignas(8) uint8_t events[RS_EVENTS_PER_READ * 64];
	char path[PATH_MAX + 1];
	_Alignas(
	    struct file_handle) uint8_t handle[sizeof(struct file_handle) + RS_HANDLE_BYTES_MAX];
	pthread_t thread;
	bool started;
};

int rs_fail(rs_error *error, int code, const char *operation, const char *detail);

int rs_worker_open(struct rs_worker *worker, struct rs_engine *engine);
void rs_worker_close(struct rs_worker *worker);

/* engine.c */
int rs_engine_register(struct rs_engine *engine, struct rs_scope *scope);
void rs_engine_forget(struct rs_engine *engine, struct rs_scope *scope);
void rs_engine_release(struct rs_scope *scope); /* drop one reference */
void rs_engine_wait_reaped(struct rs_engine *engine);
bool rs_engine_multigrain(struct rs_engine *engine);
const struct rs_verity *rs_engine_verity(struct rs_engine *engine); /* NULL: nothing trusted */
bool rs_engine_may_linger(struct rs_engine *engine);
bool rs_engine_is_alone(struct rs_engine *engine); /* no second scope is open */
unsigned rs_engine_shards(struct rs_engine *engine);
/* One of each shard, which read events, and after them as many that hash what is long. */
struct rs_worker *rs_engine_workers(struct rs_engine *engine);
struct rs_awake *rs_engine_awake(struct rs_engine *engine);
bool rs_engine_compares(struct rs_engine *engine); /* see access.c */
struct rs_switches {
	_Atomic uint32_t hash_once_after; /* see once.c; 0 where the kernel cannot */
	_Atomic bool compares;		  /* see access.c */
};
struct rs_switches *rs_engine_switches(struct rs_engine *engine);
struct rs_descriptors *rs_engine_descriptors(struct rs_engine *engine);
/* Whether events of the scope wake a sleeping thread. -ENOENT: the scope is ending. */
int rs_engine_watch(struct rs_engine *engine, struct rs_scope *scope, bool wake);
struct rs_dcache *rs_engine_cache(struct rs_engine *engine);
struct rs_budget *rs_engine_budget(struct rs_engine *engine);
/* True if a heavy thread took the event over. */
bool rs_engine_hand_off(struct rs_engine *engine, struct rs_scope *scope,
			const struct rs_event *event);
void rs_scope_enter(struct rs_scope *scope); /* one more in flight */
void rs_scope_leave(struct rs_scope *scope);
void rs_scope_destroy(struct rs_scope *scope);

/* descriptors.c */
void rs_descriptors_init(struct rs_descriptors *descriptors); /* no bounds but ours */

/* host.c */
void rs_host_prepare(void);
bool rs_host_multigrain(void);

/* serve.c */
int64_t rs_monotonic_ns(void);
void rs_serve(struct rs_worker *worker, struct rs_scope *scope);

/* once.c */
/*
 * Before an event of an opener is answered: a change of process takes the marks away. How often
 * that happened, for rs_once_mark.
 */
uint32_t rs_once_event(struct rs_scope *scope, const struct rs_event *event);
/* Ignore further opens of the file, if that is safe and worth it. */
void rs_once_mark(struct rs_worker *worker, struct rs_scope *scope, int fd,
		  const struct rs_seen *seen, uint32_t material);
void rs_once_unmark(struct rs_scope *scope, int fd);

/* remote.c: for remote scopes */
/* Around a read(2) and what is done with the remote closes it gave: their files are closed. */
void rs_remote_begin(struct rs_worker *worker, struct rs_scope *scope);
void rs_remote_end(struct rs_worker *worker);
/* Before events are answered: wait for closes that others had read before. Seconds, then never. */
void rs_remote_wait(struct rs_worker *worker, const struct rs_scope *scope);
/* Close the file of a permission event, whose descriptor stays open on something else. */
void rs_remote_let_go(struct rs_worker *worker, struct rs_scope *scope, int fd);

/* access.c */
/*
 * A regular file was entered: no events of its accesses until it changes. Its opener may have gone
 * on: an access before the mark is an event.
 */
void rs_access_opened(struct rs_scope *scope, int fd, const struct rs_stat *stat);
/* A read, write or mmap is held. True if a heavy thread owns the event now. */
bool rs_access_event(struct rs_worker *worker, struct rs_scope *scope, const struct rs_event *event,
		     const struct rs_stat *stat);
/* What the material was found changed to at an access; NULL: it was not. */
const struct rs_change *rs_access_change(const struct rs_scope *scope,
					 const struct rs_material *material);

/* handler.c */
/* Read once and handle what came. Number of events, 0 when there are none, -errno. */
int rs_handle_some(struct rs_worker *worker, struct rs_scope *scope);
void rs_handle_event(struct rs_worker *worker, struct rs_scope *scope,
		     const struct rs_event *event);
/* Tells files apart that have an inode number in turn. Writes worker->handle. */
uint64_t rs_identity_of_fd(struct rs_worker *worker, int fd, const struct rs_stat *stat);
/* Path in the action's namespace of an open descriptor; length or -errno. Writes worker->path. */
int rs_path_of_fd(struct rs_worker *worker, const struct rs_scope *scope, int fd);

enum rs_digest_outcome {
	RS_DIGEST_OK,
	RS_DIGEST_UNSTABLE, /* of what was read while it changed */
	RS_DIGEST_LEFT_OUT, /* a cap or an error, counted */
	RS_DIGEST_LONG,	    /* not in the cache, and long: better for a heavy thread */
};
/*
 * Digest of a regular file from the cache or its content, counted. *stat becomes the state of which
 * it is; *ret_trusted: an equal state later proves an equal content.
 */
enum rs_digest_outcome rs_digest_of_fd(struct rs_worker *worker, struct rs_scope *scope, int fd,
				       struct rs_stat *stat, bool may_be_long,
				       struct rs_content *ret_content, bool *ret_trusted);

#define RS_COUNT(scope, field) __atomic_fetch_add(&(scope)->counters.field, 1, __ATOMIC_RELAXED)

/* record.c: what is entered into the scope's tables. All take the mutex themselves. */
struct rs_seen {
	struct rs_stat stat;
	bool young; /* rs_is_young */
	uint64_t
	    identity; /* of a young one: tells files apart that have its inode number in turn */
	const char *path;
	uint32_t path_length;
	const uint8_t *digest;
	int pid;
	uint32_t turn; /* of once.c, when the opener was held */
	bool exec;
	bool code; /* struct rs_content */
	bool unstable;
	bool trusted; /* an equal state later proves an equal content */
	bool unlinked;
	bool unsure; /* a change after the hash may leave an equal state */
	uint8_t source;
};
/*
 * The material's number if the same process opened it before in this very state, and nothing speaks
 * against ignoring its further opens; else RS_INDEX_EMPTY.
 */
uint32_t rs_record_open(struct rs_scope *scope, const struct rs_seen *seen);
uint64_t rs_inode_key(const struct rs_stat *stat); /* never 0 */
void rs_record_ignored(struct rs_scope *scope, uint32_t material);
/* The material that the last open of this inode gave, or RS_INDEX_EMPTY. The mutex is held. */
uint32_t rs_material_latest(const struct rs_scope *scope, const struct rs_stat *stat);
void rs_record_process(struct rs_worker *worker, struct rs_scope *scope, int pid, bool exec,
		       const struct rs_stat *stat);
/* The caller holds the mutex, or is the only one left. */
struct rs_product *rs_product_find(struct rs_scope *scope, const struct rs_stat *stat);
bool rs_is_product(struct rs_scope *scope, const struct rs_stat *stat);
/* Whether the action closed this very file after writing; the mutex is held, or all is over. */
bool rs_is_own(const struct rs_scope *scope, uint64_t identity);
/* And was all in it the action's? Not if somebody made it who had put something in before. */
bool rs_is_intermediate(const struct rs_scope *scope, uint64_t identity);
void rs_record_empty(struct rs_scope *scope, uint64_t identity);
struct rs_closed {
	struct rs_stat stat;
	uint64_t identity;
	const char *path;
	uint32_t path_length;
	const struct file_handle *handle; /* NULL: none */
	uint64_t mount_id;
};
/* How often this inode was closed so far, or -ENOMEM. *ret_hash: is it worth a digest now? */
int rs_record_close(struct rs_scope *scope, const struct rs_closed *closed, bool *ret_hash);
/* Of the content after close number `closes`; dropped if there was another since. */
void rs_record_close_digest(struct rs_scope *scope, const struct rs_stat *stat, int closes,
			    const uint8_t *digest32, bool trusted);
bool rs_in_root(const struct rs_scope *scope, const char *path, uint32_t length);
bool rs_is_young(const struct rs_scope *scope, const struct rs_stat *stat);
/* The path relative to the root if inside it, else as it is. */
const uint8_t *rs_leaf_path(const struct rs_scope *scope, const uint8_t *path, uint32_t length,
			    uint32_t *ret_length);

/* stability.c */
enum rs_mutation_when { RS_MUTATION_END = 0, RS_MUTATION_ACCESS = 1 };
/* Encoded as api.h says (rs_observation.mutations). */
struct rs_mutations {
	struct rs_buf entries;
	uint64_t count, left_out;
};
/* At the end of the action: is the material what it was when it was hashed? */
void rs_stability_check(struct rs_worker *worker, struct rs_scope *scope,
			const struct rs_material *material, struct rs_mutations *out);

/* walk.c */
int rs_walk_snapshot(struct rs_scope *scope);

/* products.c: the product leaves being collected at the end */
struct rs_out {
	struct rs_leaf *leaves;
	struct rs_stat *stats; /* of the file of each leaf */
	uint32_t count, leaves_capacity, stats_capacity;
	struct rs_index by_path, by_inode;
	struct rs_arena arena;
	bool aside; /* names are not those of the root: the snapshot does not know them */
};

bool rs_out_has(const struct rs_out *out, const uint8_t *path, uint32_t length);
/* A leaf of the same inode in the same state, or NULL: a hardlink need not be hashed again. */
const struct rs_leaf *rs_out_alias(const struct rs_out *out, const struct rs_stat *stat);
/* `path` as in a leaf; it is copied. */
int rs_out_add(struct rs_out *out, const struct rs_leaf *leaf, const struct rs_stat *stat);
void rs_out_free(struct rs_out *out);
/* Hash `name` under dir_fd, which must still be the file of *stat, and add it as a product. */
int rs_out_file(struct rs_worker *worker, struct rs_scope *scope, struct rs_out *out, int dir_fd,
		const char *name, const uint8_t *leaf_path, uint32_t leaf_length,
		struct rs_stat *stat);
/* After the walk: each product that exists and has no leaf is a loss. */
void rs_products_count_nameless(struct rs_scope *scope, const struct rs_out *out);
int rs_products_collect(struct rs_worker *worker, struct rs_scope *scope, struct rs_out *out);
/* foreign.c */
struct rs_left {
	const struct rs_stat *stat;
	const uint8_t *path; /* as in the leaf */
	uint32_t path_length;
	bool fresh; /* the snapshot did not have this file under this name */
};
/*
 * The source of a product whose digest was taken at the end, counted if nobody of the scope is seen
 * to have made it. *leaf may become what the action left at its last close.
 */
void rs_judge_product(struct rs_scope *scope, const struct rs_left *left, uint64_t identity,
		      struct rs_leaf *leaf, struct rs_stat *stat);
void rs_judge_symlink(struct rs_scope *scope, const struct rs_left *left);
bool rs_is_fresh(const struct rs_scope *scope, const uint8_t *path, uint32_t length, uint64_t ino);
/* Can its content change without this kernel knowing? Also where its mount is not known. */
bool rs_served_by_others(const struct rs_scope *scope, const struct rs_stat *stat);
/* Member of snapshot_states: a name, the inode behind it, and what of its state is told. */
#define RS_STATE_NAMED 1 /* that it was there, in whatever state */
uint64_t rs_snapshot_key(const void *path, uint32_t length, uint64_t ino, uint64_t state);
/* walk.c */
int rs_walk_products(struct rs_worker *worker, struct rs_scope *scope, struct rs_out *out,
		     const uint8_t *files, size_t files_length, const uint8_t *dirs,
		     size_t dirs_length);

#endif
