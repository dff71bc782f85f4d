/*
 * api.h: everything the capture core offers to its callers. Parsed by cffi too, so it holds
 * declarations only; lines that begin with '#' are dropped there.
 *
 * Functions return 0 or -errno unless they say otherwise, never print and never exit.
 * `ret_` arguments are written only on success. A struct rs_error says which operation failed.
 */
#ifndef ROOTSEAL_CAPTURE_API_H
#define ROOTSEAL_CAPTURE_API_H
#include <stddef.h>
#include <stdint.h>

typedef struct rs_engine rs_engine;
typedef struct rs_scope rs_scope;
typedef struct rs_result rs_result;

typedef struct {
	int code;	    /* positive errno */
	char operation[48]; /* what failed, for example "fanotify_init" */
	char detail[256];   /* of what it failed, cut with "..." when too long */
} rs_error;

typedef struct {
	uint64_t max_digests;
	uint64_t max_record_bytes;
	uint64_t max_hashed_bytes;
	uint64_t max_processes;
} rs_limits;

/* Every counter of one scope; the names are those of rootseal/diagnostics.py in snake case. */
typedef struct {
	uint64_t events;	  /* all events read, not a diagnostics counter */
	uint64_t remote_files;	  /* materials on a filesystem that others serve: not held */
	uint64_t access_events;	  /* reads, writes and mappings that were held: see access.c */
	uint64_t hash_once_marks; /* files whose further opens are ignored: see once.c */
	uint64_t long_hashes;	  /* large files that are being hashed at this moment */
	uint64_t long_bytes;	  /* their sizes together */
	uint64_t special_files;	  /* events of other than regular files: allowed, nothing to hash */
	uint64_t fanotify_events_hashed;
	uint64_t digest_cache_hits;
	uint64_t bytes_hashed;
	uint64_t partial_read_fallbacks;
	uint64_t fanotify_queue_overflows;
	uint64_t fanotify_digests_cap_hit;
	uint64_t record_bytes_cap_hit;
	uint64_t hashed_bytes_cap_hit;
	uint64_t process_table_cap_hit;
	uint64_t unhashed_opens_total;
	uint64_t fallback_hash_failures;
	uint64_t mutated_after_open;
	uint64_t unstable_files;
	uint64_t namespace_escapes;
	uint64_t unmarked_mounts;
	uint64_t excluded_mounts;
	uint64_t handler_errors;
	uint64_t late_events;
	uint64_t foreign_products;
	uint64_t block_device_opens;
} rs_counters;

typedef struct {
	const uint8_t *bytes; /* owned by the result */
	size_t length;
} rs_bytes;

/* What one scope saw. Tables as docs/formats.md has them, not compressed. */
typedef struct {
	rs_bytes materials;
	uint8_t materials_root[32];
	uint64_t materials_count;
	rs_bytes products;
	uint8_t products_root[32];
	uint64_t products_count;
	rs_bytes opens;
	rs_bytes processes; /* see procs.c: rs_procs_encode */
	rs_bytes mounts;    /* see mounts.c: rs_mounts_encode */
	rs_bytes files; /* u64 st_dev, u64 st_ino of each file that got a digest, native order */
	/*
	 * Materials that others changed after they were hashed, of each: u8 when (0 at the end, 1
	 * at an access), u8 1 if the later content could be read, u32 length and path as in a leaf,
	 * digest at the open, digest later if it could be read. At most 1,024 of them.
	 */
	rs_bytes mutations;
	uint64_t mutations_count, mutations_left_out;
	uint64_t unwitnessed; /* materials that the other witness did not see (rs_scope_witness) */
	uint64_t unsealed;    /* materials whose source is not fsverity-measured */
	rs_counters counters;
} rs_observation;

/* 0 if this process may create a permission group here. */
int rs_probe(rs_error *error);
/* 0 if this kernel tells of accesses (FAN_PRE_ACCESS), else -errno. */
int rs_probe_access(void);

int rs_engine_open(unsigned shards, uint64_t digest_cache_entries, rs_engine **ret_engine,
		   rs_error *error);
/* Aborts the scopes that are still open, waits for every thread. */
void rs_engine_close(rs_engine *engine);
uint64_t rs_engine_cache_entries(rs_engine *engine);
uint64_t rs_engine_cache_learned(rs_engine *engine); /* entries made by this engine, ever */
/* The entries of the digest cache (dcache.h); the caller frees with rs_free. */
int rs_engine_cache_export(rs_engine *engine, uint8_t **ret_bytes, size_t *ret_length);
/* Take what was exported, of these devices (st_dev) only. How many, or -EINVAL. */
int64_t rs_engine_cache_import(rs_engine *engine, const uint8_t *bytes, size_t length,
			       const uint64_t *devices, size_t device_count);
/*
 * Records of actions beyond `bytes` go to unlinked files in `directory`. Before the first scope,
 * once (-EBUSY afterwards).
 */
int rs_engine_set_memory(rs_engine *engine, uint64_t bytes, const char *directory);
typedef struct {
	uint64_t budget, used; /* bytes */
	uint64_t spilled;      /* bytes in files now */
	uint64_t failures;     /* times that neither memory nor disk had room */
} rs_memory;
void rs_engine_memory(rs_engine *engine, rs_memory *ret_memory);
/*
 * Before the first scope: keep idle CPUs of the host awake while events are dense (awake.c). -errno
 * if this process may not.
 */
int rs_engine_stay_awake(rs_engine *engine);
/*
 * How events share the descriptors of this process with everything else. Before the first scope.
 * A read of events installs at most `events_per_read`, so many long hashes as `long_hashes` wait,
 * each with its file open, and a directory that the core opens never has the number `ceiling` or a
 * higher one. -EINVAL: out of range.
 */
int rs_engine_set_descriptors(rs_engine *engine, int ceiling, unsigned events_per_read,
			      unsigned long_hashes);
/* Wait until the scopes that ended have given back their group and their descriptors. */
void rs_engine_settle(rs_engine *engine);
/*
 * Repeated opens are ignored (once.c) once a process has made `after` opens without another between
 * them; 0: never. RS_HASH_ONCE_AFTER from the start: so many opens take a tenth of a second.
 */
#define RS_HASH_ONCE_AFTER 4096
void rs_engine_set_hash_once(rs_engine *engine, uint32_t after);
/*
 * Whether files that changed since their open are compared when they are accessed (access.c), in
 * scopes that are opened from now on; off from the start. -EINVAL: this kernel cannot.
 */
int rs_engine_set_compare(rs_engine *engine, int on);
/*
 * Trust `count` sealed files: 72 bytes each, fs-verity digest, SHA-256, size as big-endian u64.
 * They are measured in place of being hashed. Once for an engine (-EBUSY afterwards).
 */
int rs_engine_trust_sealed(rs_engine *engine, const uint8_t *entries, uint64_t count);

/*
 * Open a scope for the blocked process `pid`, already in its private mount namespace. `root` is its
 * root directory as that process sees it. Ended by rs_scope_finish or rs_scope_abort, exactly once.
 */
int rs_scope_open(rs_engine *engine, int pid, const char *root, const rs_limits *limits,
		  rs_scope **ret_scope, rs_error *error);
/* A duplicate of the scope's group: as long as it is open, waiting openers go on waiting. */
int rs_scope_group(rs_scope *scope, int *ret_fd);
/* Pid and start time (clock ticks) of the processes seen so far, the first `max`; how many. */
size_t rs_scope_processes(rs_scope *scope, int *ret_pids, uint64_t *ret_starts, size_t max);
void rs_scope_progress(rs_scope *scope, rs_counters *ret_counters);
/* Encoded mounts; the caller frees with rs_free. */
int rs_scope_mounts(rs_scope *scope, uint8_t **ret_bytes, size_t *ret_length);
/*
 * Before rs_scope_finish: what another witness saw being opened (a device of 0: any), `count` pairs
 * of u64 (st_dev, st_ino). Materials that are not among them get the source fanotify-only.
 */
int rs_scope_witness(rs_scope *scope, const uint64_t *pairs, size_t count);
/*
 * Before rs_scope_finish: what a trace saw being named: of each a letter (m: renamed or linked, s:
 * symlink or mknod, t: truncated, u: names may have been given through a ring, unseen), the last
 * part of the path and a NUL. Files that came by a name that is not among them are foreign.
 */
int rs_scope_named(rs_scope *scope, const uint8_t *names, size_t length);
/*
 * `files` and `dirs`: declared outputs, relative to the root, each followed by a NUL byte. The
 * scope is gone afterwards, whatever is returned.
 */
int rs_scope_finish(rs_scope *scope, const uint8_t *files, size_t files_length, const uint8_t *dirs,
		    size_t dirs_length, rs_result **ret_result, rs_error *error);
void rs_scope_abort(rs_scope *scope);
const rs_observation *rs_result_observation(const rs_result *result);
void rs_result_free(rs_result *result);
void rs_free(void *memory);

/* Strict check of a raw leaf table; -EBADMSG if it is not one. */
int rs_leaf_table_verify(const uint8_t *raw, size_t length, uint8_t domain, uint8_t *ret_root32,
			 uint64_t *ret_count);
/* RFC 6962 root over `count` leaf hashes of 32 bytes each. */
int rs_merkle_root_of_hashes(const uint8_t *hashes, uint64_t count, uint8_t *ret_root32);
/* Parse bytes as a read of a fanotify group gives them; the fuzz entry. Returns events or -errno.
 */
int64_t rs_event_parse_all(const uint8_t *bytes, size_t length);

#endif
