/*
 * launcher.h: what the parts of rootseal-exec share.
 *
 * Functions return 0 (or a count) or -errno; ret_ outputs come last and are written only on
 * success. A function that fails for a reason the user can act on says so by say() first: the
 * callers above only choose the exit code. No part reads an environment variable.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <unistd.h>

#define EXIT_ROOTSEAL	    125 /* Rootseal itself failed */
#define EXIT_NOT_EXECUTABLE 126 /* as a shell's */
#define EXIT_NOT_FOUND	    127 /* as a shell's */

#define DROP_GROUPS_MAX	     1024
#define MESSAGE_BYTES_MAX    4096
#define ERROR_JSON_BYTES_MAX 32768 /* every counter with meaning and remedy: a third of it */

/* An fd that is closed when its variable goes out of scope. */
static inline void cleanup_fd_(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}
#define cleanup_fd __attribute__((cleanup(cleanup_fd_)))

enum descendants_policy { DESCENDANTS_KILL, DESCENDANTS_WAIT };

/* The identity that the action gets when the launcher is privileged (--drop-to). */
struct drop_to {
	bool wanted;
	uid_t uid;
	gid_t gid;
	gid_t groups[DROP_GROUPS_MAX];
	size_t group_count;
};

/* The second stage, after the helper: what the first stage passes on. */
struct stage2 {
	bool wanted;
	int conn_fd;
	int control_fd;
	pid_t parent_pid;
};

/* The command line; all strings belong to argv. */
struct options {
	uint8_t action_key[32];
	const char *root;
	const char *record;
	const char *socket; /* NULL: the fixed places */
	const char *helper; /* NULL: the fixed places */
	const char *error;  /* NULL: nowhere; a file for the daemon's ERROR frame */
	const char **output_files;
	size_t output_file_count;
	const char **output_dirs;
	size_t output_dir_count;
	const char **options;
	size_t option_count;
	enum descendants_policy descendants;
	unsigned int descendants_seconds;
	bool stdio_only; /* close what else the caller left open */
	struct drop_to drop_to;
	struct stage2 stage2;
	char **argv; /* of the action */
};

/* say.c: one line on stderr, beginning with `rootseal-exec: `; control characters become '?'. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* args.c */
int args_parse(int argc, char **argv, struct options *ret_options);

/* paths.c: absolute, lexically normal paths; every result is malloc'd. */
int path_normal(const char *base, const char *path, char **ret_path);
int path_below(const char *root, const char *path, const char **ret_relative);

/* trace_plan.c: whether and within which limits this launcher traces (MODE `ptrace:…`). */
struct trace_plan {
	bool wanted;
	bool guards; /* fanotify holds the opens too: the tracer counts what leads away from it */
	uint64_t files_max;
	uint64_t hashed_bytes_max;
	uint64_t processes_max;
};
int trace_plan_parse(const char *mode, struct trace_plan *ret_plan);
int trace_probe_main(void); /* --probe-trace; the exit status */

/* wire.c */
struct buffer {
	uint8_t *data;
	size_t length;
	size_t capacity;
	size_t tlv_count;
};
struct frame_header {
	uint32_t length;
	uint8_t type;
};
int frame_begin(struct buffer *buffer, uint8_t type);
int frame_add(struct buffer *buffer, uint16_t tag, const void *value, size_t length);
int frame_add_text(struct buffer *buffer, uint16_t tag, const char *text);
int frame_send(int fd, struct buffer *buffer);
int frame_send_empty(int fd, uint8_t type);
int read_exactly(int fd, void *data, size_t length);
int frame_read_header(int fd, struct frame_header *ret_header);
int frame_skip(int fd, size_t length);
int frame_read_text(int fd, size_t length, uint16_t tag, char *text, size_t text_bytes);
void frame_errors_to(const char *path);
int frame_say_error(int fd, size_t length, bool *ret_not_allowed);
uint32_t read_u32(const uint8_t *data);
uint16_t read_u16(const uint8_t *data);

/* connect.c: the next daemon in the list of places, or -ENOENT when there is no further one. */
struct places {
	const char *only; /* --socket, or NULL */
	int next;
	bool refused; /* a daemon was there, but refused this user */
};
int connect_next(struct places *places, int *ret_fd);

/* helper.c: how the child can get a private mount namespace. */
enum namespace_way { NAMESPACE_DIRECT, NAMESPACE_HELPER, NAMESPACE_NONE };
enum namespace_way namespace_way(const char *wanted_helper, const char **ret_helper);
const char *namespace_way_name(enum namespace_way way);

/* announce.c: connect, send ANNOUNCE, wait for PREPARED. */
struct prepared {
	int conn_fd;
	bool private_namespace;
	struct trace_plan trace;
};
int announce(const struct options *options, enum namespace_way way, struct prepared *ret_prepared);

/* signals.c: the state that the action must get back exactly. */
struct signal_state {
	uint64_t mask;	    /* the kernel's form */
	bool child_ignored; /* SIGCHLD was ignored */
};
int signals_take(struct signal_state *ret_state, int *ret_signal_fd);
int signals_restore(const struct signal_state *state);
bool signal_is_for_child(uint32_t signo, int32_t code);

/* privilege.c */
bool have_sys_admin(void);
int privileges_drop(const struct drop_to *drop_to);
int die_with_parent(pid_t parent_pid);

/* guard.c: calls that lead away from the marked mounts are counted before they go on. */
struct guard {
	int listener; /* owned; -1: such calls are refused, or nothing is guarded */
	uint64_t escapes;
	uint64_t mounts;
	uint64_t unseen; /* inherited files that the capture could not be shown */
};
int guard_enter(int *ret_listener);
int guard_check(void);
int guard_send(int control_fd, char message, int listener);
ssize_t guard_receive(int control_fd, char *ret_message, int *ret_listener);
int guard_event(struct guard *guard);
int guard_poll_event(struct guard *guard, short revents);

/* inherited.c */
int inherited_see(bool stdio_only, uint64_t *ret_unseen);

/* child.c: between fork and exec; neither returns. */
#define CONTROL_ARMED  'A' /* capture is armed, the connection belongs to the parent alone */
#define CONTROL_UNSEEN 'U' /* before 'A', once for each inherited file that was not seen */
#define CONTROL_FAILED 'F' /* not the action's end: Rootseal failed, and has said why */
struct child {
	int conn_fd;
	int control_fd;
	pid_t parent_pid;
	int trace_fd; /* handshake with the tracer, -1 if nobody traces */
	bool private_namespace;
	bool guarded_by_tracer; /* it needs no guard of its own */
	enum namespace_way way;
	const char *helper;
	struct signal_state signals;
};
_Noreturn void child_run(const struct options *options, struct child *child);
_Noreturn void child_stage2(const struct options *options);

/* exec.c: execvp over the action's own environment; returns only on failure, with -errno. */
int exec_action(char **argv);

/* descendants.c: this process is their subreaper. */
int descendants_kill_all(uint64_t *ret_killed);
bool ends_the_wait(uint32_t signo);
int64_t monotonic_ms(void);
int64_t descendants_deadline(const struct options *options, bool told);
int descendants_end(int64_t deadline, int signal_fd, int conn_fd, struct guard *guard,
		    uint64_t *ret_killed);

/* supervise.c: from fork to the end of the last descendant. */
struct outcome {
	int wait_status;
	uint64_t killed;
	uint64_t escapes; /* calls that made or entered a mount namespace, or took a foreign fd */
	uint64_t mounts;  /* calls that made a mount */
	uint64_t unseen;  /* inherited files that could not be shown to the capture */
};
int supervise(const struct options *options, pid_t pid, int signal_fd, int control_fd, int conn_fd,
	      struct outcome *ret_outcome);
int connection_event(int conn_fd);

/* supervise_traced.c: the same while this process traces the action. */
int supervise_traced(const struct options *options, const struct trace_plan *plan, pid_t pid,
		     int signal_fd, int control_fd, int conn_fd, struct outcome *ret_outcome);

/* descriptors.c: close every fd from `first` on that is not one of the `kept` (ascending). */
int close_all_but(unsigned int first, const int *kept, size_t kept_count);

/* record.c: where the record goes, and how it comes there. */
struct record_place {
	int dir_fd; /* owned */
	const char *name;
	const char *path;
};
int record_place_open(const char *path, struct record_place *ret_place);
int record_receive(int conn_fd, const struct outcome *outcome, const struct record_place *place);
