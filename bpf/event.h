/*
 * What the trace programs and user space say to each other: the one shared header.
 *
 * It is compiled for BPF (clang through libbpf, and BCC) and for the host. Events go through one
 * ring buffer in the order in which each task made them. Every struct has explicit padding, so that
 * no byte of kernel memory that was never written leaves the kernel.
 */
#pragma once

#define RS_TRACE_ABI 3

#define RS_SCOPE_SLOTS 1024 /* scope id modulo this: its place in the loss array */
#define RS_LOSS_SLOTS  16   /* loss counters per scope, enum rs_loss */
#define RS_MEMBERS_MAX 131072
#define RS_WRITES_MAX  65536
#define RS_CONNS_MAX   16384
#define RS_CALL_TABLE  1024 /* system call numbers that can be looked up */

#define RS_PATH_BYTES	 4096  /* PATH_MAX: longer strings cannot reach the kernel */
#define RS_WALK_DEPTH	 2560  /* components followed from a dentry to its root */
#define RS_CHUNK_BYTES	 4096  /* one piece of arguments or environment */
#define RS_CHUNK_COUNT	 256   /* pieces of each: 1 MiB */
#define RS_PAYLOAD_BYTES 2048  /* of a first ClientHello, or of a DNS query */
#define RS_HEAD_BYTES	 256   /* before the tail, in events that have one */
#define RS_TAIL_BYTES	 20480 /* four paths and one of slack */
#define RS_PROGRAM_EXEC	 0     /* programs that need scratch, by number */
#define RS_PROGRAM_CALL	 1
#define RS_PROGRAM_COUNT 2

#define RS_COMM_BYTES 16
#define RS_ADDR_BYTES 128 /* sockaddr_storage */

enum rs_event_type {
	RS_EVENT_FORK = 1,
	RS_EVENT_EXEC = 2,
	RS_EVENT_ARGS = 3,    /* pieces of the argument area, in order after their EXEC */
	RS_EVENT_ENVIRON = 4, /* pieces of the environment, likewise */
	RS_EVENT_EXIT = 5,
	RS_EVENT_OPEN = 6,
	RS_EVENT_WRITE = 7, /* the first write of a process to a file (later ones only add up) */
	RS_EVENT_FILEOP = 8,
	RS_EVENT_SOCKET = 9,
	RS_EVENT_ADDRESS = 10,	 /* connect, bind, sendto ...: a call with a socket address */
	RS_EVENT_PAYLOAD = 11,	 /* first bytes sent: a ClientHello or a DNS query */
	RS_EVENT_CALL = 12,	 /* any other call that is recorded */
	RS_EVENT_OPEN_PATH = 13, /* an OPEN with its path, for members whose files are hashed */
};

/* Index in the loss array. Names in summary.diagnostics: see capture/ebpf.py. */
enum rs_loss {
	RS_LOSS_OPEN = 0,
	RS_LOSS_EXEC = 1,
	RS_LOSS_FORK = 2,
	RS_LOSS_FILEOP = 3,
	RS_LOSS_NETWORK = 4,
	RS_LOSS_CALL = 5,
	RS_LOSS_MAP_FULL = 6,	/* an insertion that a full map refused */
	RS_LOSS_UNRESOLVED = 7, /* an open whose file could not be read from its descriptor */
	RS_LOSS_TRUNCATED = 8,	/* a path, an argument list or an environment that was cut */
	RS_LOSS_UNREADABLE = 9, /* user memory that was not there to be read */
};

/* Calls, whatever their number is on this machine. Groups are contiguous: see rs_on_exit. */
enum rs_call {
	RS_CALL_NONE = 0,
	/* A new descriptor for a file. */
	RS_CALL_OPEN = 1,
	RS_CALL_CREAT = 2,
	RS_CALL_OPENAT = 3,
	RS_CALL_OPENAT2 = 4,
	RS_CALL_OPEN_BY_HANDLE_AT = 5,
	/* Bytes leave the process. */
	RS_CALL_WRITE = 10,
	RS_CALL_PWRITE64 = 11,
	RS_CALL_WRITEV = 12,
	RS_CALL_PWRITEV = 13,
	RS_CALL_SENDTO = 14,
	RS_CALL_SENDMSG = 15,
	RS_CALL_SENDMMSG = 16,
	RS_CALL_SENDFILE = 17,
	RS_CALL_COPY_FILE_RANGE = 18,
	RS_CALL_SPLICE = 19,
	/* Network. */
	RS_CALL_SOCKET = 20,
	RS_CALL_CONNECT = 21,
	RS_CALL_BIND = 22,
	RS_CALL_SOCKETCALL = 23, /* 32-bit x86 only */
	/* Names and attributes of files. */
	RS_CALL_RENAME = 30,
	RS_CALL_RENAMEAT = 31,
	RS_CALL_RENAMEAT2 = 32,
	RS_CALL_LINK = 33,
	RS_CALL_LINKAT = 34,
	RS_CALL_SYMLINK = 35,
	RS_CALL_SYMLINKAT = 36,
	RS_CALL_UNLINK = 37,
	RS_CALL_UNLINKAT = 38,
	RS_CALL_RMDIR = 39,
	RS_CALL_CHMOD = 40,
	RS_CALL_FCHMODAT = 41,
	RS_CALL_FCHMODAT2 = 42,
	RS_CALL_FCHMOD = 43,
	RS_CALL_TRUNCATE = 44,
	RS_CALL_FTRUNCATE = 45,
	RS_CALL_MKNOD = 46,
	RS_CALL_MKNODAT = 47,
	RS_CALL_TRUNCATE64 = 48, /* 32-bit x86 only, as the next: a length of two words */
	RS_CALL_FTRUNCATE64 = 49,
	/* The rest: recorded with their arguments. */
	RS_CALL_MEMFD_CREATE = 50,
	RS_CALL_PTRACE = 51,
	RS_CALL_MOUNT = 52,
	RS_CALL_UMOUNT2 = 53,
	RS_CALL_OPEN_TREE = 54,
	RS_CALL_MOVE_MOUNT = 55,
	RS_CALL_FSOPEN = 56,
	RS_CALL_FSMOUNT = 57,
	RS_CALL_FSPICK = 58,
	RS_CALL_MOUNT_SETATTR = 59,
	RS_CALL_PIVOT_ROOT = 60,
	RS_CALL_CHROOT = 61,
	RS_CALL_CLONE = 62,
	RS_CALL_CLONE3 = 63,
	RS_CALL_UNSHARE = 64,
	RS_CALL_SETNS = 65,
	RS_CALL_DUP2 = 66,
	RS_CALL_DUP3 = 67,
	RS_CALL_MPROTECT = 68,
	RS_CALL_MMAP = 69,
	RS_CALL_PRCTL = 70,
	RS_CALL_SETSID = 71,
	RS_CALL_INIT_MODULE = 72,
	RS_CALL_FINIT_MODULE = 73,
	RS_CALL_IO_URING_SETUP = 74,
	RS_CALL_PROCESS_VM_WRITEV = 75,
	RS_CALL_IO_URING_OPEN = 76, /* an open that a ring asked for: no system call of its own */
	RS_CALL_FOREIGN_ABI = 77,   /* a call of an ABI that the tables do not cover (x32) */
	RS_CALL_FSCONFIG = 78,
	RS_CALL_FILE_OPEN = 79, /* any open that a security module is asked about */
	RS_CALL_OPEN_TREE_ATTR = 80,
	RS_CALL_MEMFD_SECRET = 81,
	RS_CALL_UMOUNT = 82,   /* 32-bit x86 only: without flags */
	RS_CALL_OLD_MMAP = 83, /* 32-bit x86 only: arguments in memory */
	RS_CALL_DUP = 84,
	RS_CALL_FCNTL = 85,
	RS_CALL_IO_URING_REQUEST = 86, /* of a ring: a deed that is no open; its opcode */
};

/* Every event begins with this. */
struct rs_event {
	__u32 type; /* enum rs_event_type */
	__u32 size; /* whole event, tail included */
	__u64 scope;
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 tgid;
	__u32 tid;
};

/* A file as the kernel names it. */
struct rs_file {
	__u64 ino;
	__u32 dev;   /* kernel encoding: major << 20 | minor */
	__u32 mode;  /* i_mode: type and permissions */
	__u32 flags; /* f_flags */
	__u32 fmode; /* f_mode: FMODE_CREATED and so on */
	__u64 magic; /* of the filesystem */
};

struct rs_fork_event {
	struct rs_event head; /* of the child */
	__u32 parent_tgid;
	__u32 pad;
	__u8 comm[RS_COMM_BYTES];
};

/*
 * Tail: path of the file (walked), file name as the caller gave it, and for members whose files are
 * hashed the directory where a relative name begins (walked).
 */
struct rs_exec_event {
	struct rs_event head;
	struct rs_file file;
	__u32 parent_tgid;
	__u32 walk_len; /* components of file, leaf first, each with its NUL */
	__u32 name_len; /* bprm->filename, without NUL */
	__u32 cut;	/* enum rs_cut */
	__u32 args_len; /* bytes of arguments that follow in ARGS events */
	__u32 environ_len;
	__u32 base_len;	   /* of the working directory; 0 if the name is absolute */
	__u32 interpreted; /* 1: the name is a script's, the file its interpreter */
	__u32 task_flags;  /* atomic_flags of the task: PFA_SPEC_SSB_DISABLE and its kin */
	__u32 pad;
	__u8 comm[RS_COMM_BYTES];
};

struct rs_chunk_event {
	struct rs_event head;
	__u32 offset;
	__u32 len; /* of the tail */
	__u32 total;
	__u32 pad;
};

struct rs_exit_event {
	struct rs_event head;
	__u32 status; /* as wait(2) */
	__u32 pad;
	__u8 comm[RS_COMM_BYTES];
};

struct rs_open_event {
	struct rs_event head;
	struct rs_file file;
	__u32 call;
	__s32 fd;
};

/* Tail: path of the file (walked). */
struct rs_open_path_event {
	struct rs_event head;
	struct rs_file file;
	__u32 call;
	__s32 fd;
	__u32 walk_len;
	__u32 cut;
	__u32 told; /* 1: an OPEN event tells of the same open */
	__u32 pad;
};

/* Tail: path of the file (walked). */
struct rs_write_event {
	struct rs_event head;
	struct rs_file file;
	__u64 bytes;
	__u32 call;
	__u32 walk_len;
	__u32 cut;
	__u32 summed; /* 1: a counter in the writes map goes on; 0: the map was full, this event is
			 all */
};

/* A path as a caller gave it: where a relative one begins, and the string. */
struct rs_path {
	__u32 walk_len; /* components of the directory, leaf first; 0 if the string is absolute */
	__u32 name_len;
};

/* Tail: path[0] walk, path[0] name, path[1] walk, path[1] name. */
struct rs_fileop_event {
	struct rs_event head;
	struct rs_file file; /* of the descriptor for fchmod and ftruncate; else zero */
	__u64 value;	     /* mode, length or flags */
	__u32 call;
	__u32 cut;
	struct rs_path path[2];
};

struct rs_socket_event {
	struct rs_event head;
	__s32 fd;
	__u32 family;
	__u32 socket_type;
	__u32 protocol;
};

struct rs_address_event {
	struct rs_event head;
	__u32 call;
	__s32 fd;
	__s32 result;
	__u32 socket_type;
	__u32 protocol;
	__u32 address_len;
	__u8 address[RS_ADDR_BYTES];
};

/* Tail: len bytes. */
struct rs_payload_event {
	struct rs_event head;
	__u32 call;
	__s32 fd;
	__u32 kind; /* enum rs_conn_kind */
	__u32 len;
};

/*
 * Tail: paths of the two files (walked) where they have one, then the call's texts, each with its
 * NUL (memfd_create, mount, prctl PR_SET_NAME).
 */
struct rs_call_event {
	struct rs_event head;
	__u64 args[6];
	__s64 result;
	struct rs_file file[2]; /* source and destination, where the call has them */
	__u32 walk_len[2];
	__u32 call;
	__u32 text_len;
	__u32 cut;
	__u32 repeats; /* user space: how many more of the same kind came */
};

/* What is incomplete in an event. */
enum rs_cut {
	RS_CUT_WALK = 1, /* a directory is deeper than RS_WALK_DEPTH or longer than RS_PATH_BYTES */
	RS_CUT_NAME = 2, /* a string could not be read */
	RS_CUT_ARGS = 4,
	RS_CUT_ENVIRON = 8,
};

enum rs_conn_kind {
	RS_CONN_STREAM = 1, /* connected stream socket, nothing sent yet */
	RS_CONN_DNS = 2,    /* connected to port 53 */
};

/* Values and keys of maps. */
struct rs_member {
	__u64 scope;
	__u32 paths; /* 1: opens are told with their path */
	__u32 pad;
};

struct rs_write_key {
	__u64 ino;
	__u32 dev;
	__u32 tgid;
};

struct rs_write_sum {
	__u64 bytes;
	__u64 count;
};

struct rs_conn_key {
	__u32 tgid;
	__s32 fd;
};

struct rs_call_ids {
	__u8 native;
	__u8 compat;
};

/* Scratch of one program on one CPU: an event's head, then its tail. Programs never nest within
 * themselves. */
struct rs_scratch {
	__u8 data[RS_HEAD_BYTES + RS_TAIL_BYTES];
	__u32 cut;    /* enum rs_cut */
	__u32 tail;   /* bytes of the tail so far */
	__u64 at;     /* next byte of an area of user memory */
	__u64 dentry; /* where a walk stands */
	__u64 mnt;
};
