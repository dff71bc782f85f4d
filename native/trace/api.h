/*
 * api.h: everything the trace core offers to its callers. Parsed by cffi too, so it holds
 * declarations only; lines that begin with '#' are dropped there.
 *
 * Functions return 0 or -errno unless they say otherwise, never print and never exit.
 * `ret_` arguments are written only on success. A struct rs_trace_error says which operation
 * failed.
 */
#ifndef ROOTSEAL_TRACE_API_H
#define ROOTSEAL_TRACE_API_H
#include <stddef.h>
#include <stdint.h>

typedef struct rs_tracer rs_tracer;
typedef struct rs_trace_result rs_trace_result;

typedef struct {
	int code;	    /* positive errno */
	char operation[48]; /* what failed, for example "load" */
	char detail[512];   /* what libbpf or the kernel said last, cut when too long */
} rs_trace_error;

typedef struct {
	uint64_t max_opens;	  /* distinct (process, file) pairs */
	uint64_t max_event_bytes; /* of events that are kept as they are */
	uint64_t max_processes;
	uint64_t content;   /* 1: files are hashed after their open, see content.c */
	uint64_t max_files; /* of these: files by path and state */
	uint64_t max_hashed_bytes;
} rs_trace_limits;

typedef struct {
	char name[32];
	char reason[192]; /* why it was refused; empty if attached */
	int attached;
	int required;
} rs_trace_program;

/* Counters of one scope. The first ten are enum rs_loss of bpf/event.h, summed over all CPUs. */
typedef struct {
	uint64_t losses[10];
	uint64_t program_misses; /* runs that the kernel skipped because the program was already
				    running */
	uint64_t opens_cap_hit;
	uint64_t events_cap_hit;
	uint64_t processes_cap_hit;
	uint64_t repeats;   /* events that said nothing new: counted, not kept */
	uint64_t malformed; /* events that are not what event.h says */
	uint64_t undrained; /* 1 if the ring could not be emptied */
	uint64_t opens;	    /* open events seen */
} rs_trace_counters;

/* One file opened (or executed) by one process, all its opens together. */
typedef struct {
	uint64_t ino;
	uint64_t magic;	   /* of the filesystem */
	uint64_t first_ns; /* CLOCK_MONOTONIC */
	uint32_t dev;	   /* kernel encoding: major << 20 | minor */
	uint32_t tgid;
	uint32_t mode;	    /* i_mode of the last open */
	uint32_t flags_any; /* f_flags, or-ed */
	uint32_t fmode_any; /* f_mode, or-ed */
	uint32_t access; /* 1 opened to read, 2 to write, 4 executed, 8 without content (O_PATH) */
	uint32_t count;
	uint32_t pad;
} rs_trace_open;

/* A file in one state that was hashed after its open, under one path. */
typedef struct {
	uint64_t dev, ino; /* as stat(2) has them */
	uint64_t size;
	uint64_t path_offset; /* of the core's own */
	uint32_t path_length;
	uint32_t mode;	  /* permissions */
	uint32_t access;  /* as in rs_trace_open */
	uint32_t mutated; /* 1: others changed it since; 2: and it could not be read again */
	uint32_t code;	  /* machine code by its first bytes: ELF, PE */
	uint32_t pad;
	uint8_t digest[32];
	uint8_t later[32]; /* if mutated is 1 */
} rs_trace_content;

typedef struct {
	uint32_t tgid;
	uint32_t content; /* index */
	uint32_t access;
} rs_trace_content_open;

/* Why a file could not be hashed after its open. */
enum rs_content_reason {
	RS_CONTENT_CHANGED = 1, /* changed since, or perhaps */
	RS_CONTENT_GONE = 2,	/* not found again: removed, renamed, another file in its place */
	RS_CONTENT_UNREADABLE = 3,
	RS_CONTENT_CAP = 4, /* of files, or no memory */
	RS_CONTENT_BYTES_CAP = 5,
	RS_CONTENT_BUSY = 6,   /* too many wait to be hashed */
	RS_CONTENT_UNTOLD = 7, /* files of which no event tells: loaders, scripts, inherited */
	RS_CONTENT_REASONS = 8,
};

/* What the ledger found: distinct files of the trace, by what became of each. */
typedef struct {
	uint64_t files;
	uint64_t hashed; /* has a digest of the other witness */
	uint64_t not_regular;
	uint64_t no_content; /* O_PATH only */
	uint64_t pseudo_filesystem;
	uint64_t memory_file; /* memfd, shared memory: no mount to mark */
	uint64_t created;     /* made by the action itself */
	uint64_t write_only;
	uint64_t unresolved;	/* the descriptor was gone before it could be looked at */
	uint64_t unhashed;	/* what is left: a loss */
	uint64_t fanotify_only; /* files of the other witness that the trace did not see */
	uint64_t block_devices; /* of not_regular: with content, and no digest of it */
} rs_trace_ledger;

/* Load and attach the CO-RE object. 0, or -errno with the reason in `error`. */
int rs_tracer_open(const char *object, uint64_t ring_bytes, rs_tracer **ret_tracer,
		   rs_trace_error *error);
/*
 * Use maps that another loader made and whose programs it attached; the descriptors are duplicated.
 * In order: ring, members, losses, writes, calls.
 */
int rs_tracer_adopt(const int *map_fds, uint64_t ring_bytes, rs_tracer **ret_tracer,
		    rs_trace_error *error);
/*
 * Make the maps that another loader's programs use; the caller owns the descriptors. In order:
 * ring, members, losses, writes, calls, conns, scratches.
 */
int rs_tracer_make_maps(uint64_t ring_bytes, int *ret_fds7, rs_trace_error *error);
void rs_tracer_close(rs_tracer *tracer);
/* Number of programs; program `index` is copied out. */
int rs_tracer_programs(rs_tracer *tracer);
int rs_tracer_program(rs_tracer *tracer, int index, rs_trace_program *ret_program);
/* Events of scopes that were already closed. */
uint64_t rs_tracer_late_events(rs_tracer *tracer);

/* Begin a scope with the process `pid`, which must be held until this returns. */
int rs_tracer_scope_open(rs_tracer *tracer, int pid, const rs_trace_limits *limits,
			 uint64_t *ret_scope, rs_trace_error *error);
/* Drain what the scope's processes did (they are gone), read its counters, forget it. */
int rs_tracer_scope_finish(rs_tracer *tracer, uint64_t scope, rs_trace_result **ret_result,
			   rs_trace_error *error);
/* The scope's processes that live now, at most `max` of them: how many, or -errno. */
int rs_tracer_scope_members(rs_tracer *tracer, uint64_t scope, uint32_t *ret_pids, int max);
void rs_tracer_scope_abort(rs_tracer *tracer, uint64_t scope);

/* Owned by the result. Events lie back to back as bpf/event.h has them, without the opens. */
const uint8_t *rs_trace_events(const rs_trace_result *result, size_t *ret_length);
const rs_trace_open *rs_trace_opens(const rs_trace_result *result, size_t *ret_count);
/* Pairs (st_dev, st_ino) of what was opened, one per entry of rs_trace_opens; room for all. st_dev
 * is 0 where stat(2) shows another device than the kernel has (overlayfs, btrfs). */
void rs_trace_files(const rs_trace_result *result, uint64_t *ret_pairs);
/* The same of what was opened to write; how many. */
size_t rs_trace_written(const rs_trace_result *result, uint64_t *ret_pairs);
/* Of a scope with content: a file and its path, NULL behind the last; then who opened them. */
const rs_trace_content *rs_trace_content_at(const rs_trace_result *result, size_t index,
					    const char **ret_path);
/* Paths of what was opened to write, each with a NUL. */
const char *rs_trace_outputs(const rs_trace_result *result, size_t *ret_length);
const rs_trace_content_open *rs_trace_content_opens(const rs_trace_result *result,
						    size_t *ret_count);
/* Of each reason the files; bytes that were hashed. */
void rs_trace_content_failures(const rs_trace_result *result, uint64_t *ret_failures8,
			       uint64_t *ret_hashed_bytes, uint64_t *ret_cache_hits);
/* Whether a file (by index) has no failure, so that its digest stands for all its opens. */
int rs_trace_content_stands(const rs_trace_result *result, size_t index);
void rs_trace_counters_of(const rs_trace_result *result, rs_trace_counters *ret_counters);
/*
 * Compare with the other witness: `files` holds `count` pairs (st_dev, st_ino) of what it has a
 * digest for. `ret_unhashed` gets at most `unhashed_max` of the opens that are left; their number
 * is returned.
 */
int64_t rs_trace_reconcile(const rs_trace_result *result, const uint64_t *files, size_t count,
			   uint64_t memory_device, rs_trace_ledger *ret_ledger,
			   rs_trace_open *ret_unhashed, size_t unhashed_max);
/*
 * After rs_tracer_scope_finish, in a scope with content: wait until everything is hashed, and look
 * for what others changed since. The tracer may be used meanwhile, but must not be closed.
 */
void rs_trace_settle(rs_trace_result *result);
void rs_trace_result_free(rs_trace_result *result);

/* Offsets of kernel fields from the running kernel's BTF, as "-DRS_OFFSET_id=N ..." for the BCC
 * adaptor. */
int rs_trace_offsets(char *ret_text, size_t text_max, rs_trace_error *error);
/* sizeof each event of bpf/event.h by type, so that callers can check their own layout. */
int rs_trace_event_size(int type);
/* Feed arbitrary bytes through the aggregator: the fuzz entry. */
int rs_trace_feed_bytes(const uint8_t *bytes, size_t length);

#endif
