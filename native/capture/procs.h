/* procs.h: the process table of one scope. */
#ifndef ROOTSEAL_CAPTURE_PROCS_H
#define ROOTSEAL_CAPTURE_PROCS_H
#include "filestat.h"
#include "mem.h"

#define RS_CMDLINE_BYTES_MAX (1024U * 1024U)
#define RS_COMM_BYTES	     16

struct rs_proc {
	int pid;
	int parent;
	uint64_t start_time;
	char comm[RS_COMM_BYTES];
	const uint8_t *cmdline; /* NUL separated, in the arena */
	uint32_t cmdline_length;
	const uint8_t *program;
	uint32_t program_length;
	uint8_t program_digest[RS_SHA256_BYTES];
	uint64_t exe_dev, exe_ino;
	uint64_t exec_dev, exec_ino; /* last file of the exec under way */
	bool has_program_digest;
	bool in_exec;
	bool stale; /* what /proc told is of the image before the last exec */
};

struct rs_procs {
	struct rs_proc *items;
	uint32_t count, capacity, limit;
	struct rs_index by_pid; /* pid -> latest process of that pid */
	struct rs_arena *arena; /* borrowed from the scope */
};

/* What /proc tells about a live process; its buffers are the caller's and reused. */
struct rs_proc_info {
	int parent;
	uint64_t start_time;
	char comm[RS_COMM_BYTES];
	uint64_t exe_dev, exe_ino; /* 0: unknown */
	struct rs_buf cmdline;
	bool cmdline_cut;
	bool valid;
};

/* Read /proc/PID; call it without locks. The opener must be held. */
void rs_proc_read(int pid, bool want_cmdline, struct rs_proc_info *info);
/* Pure: the text of /proc/PID/stat. 0 or -EBADMSG. */
int rs_proc_stat_parse(const char *text, struct rs_proc_info *info);

struct rs_proc *rs_procs_find(struct rs_procs *procs, int pid, uint32_t *ret_index);
/* New entry for the pid (also when the pid was used before). NULL: the cap is reached or no memory.
 */
struct rs_proc *rs_procs_add(struct rs_procs *procs, int pid, uint32_t *ret_index);
/* 0, or -ENOMEM: the command line did not fit. */
int rs_procs_update(struct rs_procs *procs, struct rs_proc *proc, const struct rs_proc_info *info);
void rs_procs_free(struct rs_procs *procs);

#endif
