/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The records that the ptrace backend of the launcher sends to the daemon (TLV EVENTS of frame
 * TRACE, docs/protocol.md). All integers big-endian, no padding but what is written here.
 *
 *   record = u16 type, u16 zero, u32 body length, body
 *
 * A stream is: any number of records, then one COUNTERS record, which is always the last.
 * Processes, files and environments are numbered from 0 in the order in which they are sent.
 */
#pragma once

#define RS_TRACE_RECORD_HEADER 8
#define RS_TRACE_NONE	       0xffffffffu /* no such process, file or environment */
#define RS_TRACE_FILE_FIXED    64

enum rs_trace_record {
	/* u32 pid, u32 parent index, u64 start time (ns since the epoch) */
	RS_TRACE_PROCESS = 1,
	/* u32 process, u32 program file, u32 executable file, u32 environment, u64 time, u8 flags,
	 * u8 comm length, u16 program length, u32 command line length (NUL after each argument),
	 * u32 full length of the command line, then comm, program, command line */
	RS_TRACE_EXEC = 2,
	/* u32 process, u32 wait status, u64 time */
	RS_TRACE_EXIT = 3,
	/* u32 count, count times RS_TRACE_FILE_FIXED bytes:
	 *   digest 32, u64 size, u32 mode, u16 path length, u8 kind (observation.LeafKind), u8
	 * flags, u64 device, u64 inode then the paths, back to back */
	RS_TRACE_FILES = 4,
	/* (u32 process, u32 file) times n: this process opened or executed this file */
	RS_TRACE_OPENS = 5,
	/* As RS_TRACE_FILES: what the action left behind */
	RS_TRACE_PRODUCTS = 6,
	/* u32 count, count times: u16 name length, name, SHA-256 of the value 32 */
	RS_TRACE_ENVIRONMENT = 7,
	/* u32 process, u8 call (rs_trace_net), u8 payload (rs_trace_payload), u16 family, u32 type,
	 * u32 protocol, i32 fd, i32 result (0 or -errno), u64 time, u16 address length, u16 payload
	 * length, then the sockaddr and the first bytes that were sent */
	RS_TRACE_NETWORK = 8,
	/* u32 process, u8 operation (rs_trace_op), u8 zero, u16 mode, u64 bytes, u64 time,
	 * u16 path length, u16 second path length, paths (rename and link: from, to) */
	RS_TRACE_FILE_OP = 9,
	/* u32 process, u32 audit architecture, u32 number, u32 count, u64 argument 0..3, i64 result
	 * of the first (RS_TRACE_RESULT_UNKNOWN if not waited for), u64 time of the first, u8
	 * flags, u8 name length, u16 text length, name, text */
	RS_TRACE_SYSCALL = 10,
	/* u32 reason (rs_trace_loss), u32 process, u16 path length, path: an example of a loss */
	RS_TRACE_LOSS = 11,
	/* u64 times RS_TRACE_COUNTER_COUNT, in the order of rs_trace_counter */
	RS_TRACE_COUNTERS = 12,
	/* u8 1 if the later content could be read, u8 zero, u16 path length, digest at the open 32,
	 * digest later 32 (else zeros), path: one of the losses RS_TRACE_LOSS_MUTATED; at most
	 * RS_TRACE_MUTATIONS_MAX of them */
	RS_TRACE_MUTATION = 13,
	/* a line of the mountinfo of the task that opened it: a mount of RS_TRACE_FILE_REMOTE, each
	 * once and at most RS_TRACE_MOUNTS_MAX of them */
	RS_TRACE_MOUNT = 14,
};
#define RS_TRACE_MUTATIONS_MAX 1024u
#define RS_TRACE_MOUNTS_MAX    1024u

enum rs_trace_file_flag {
	RS_TRACE_FILE_BORN = 1,	     /* made or written by the action before this open */
	RS_TRACE_FILE_ANONYMOUS = 2, /* never had a path: a memfd that was executed */
	RS_TRACE_FILE_FOREIGN = 4,   /* of a product: somebody else wrote or replaced it */
	RS_TRACE_FILE_REMOTE = 8,    /* others serve it: content can change after it was hashed */
};

enum rs_trace_exec_flag {
	RS_TRACE_EXEC_SETUID =
	    1, /* a set-user-id or set-group-id file: without effect under capture */
	RS_TRACE_EXEC_SPEC_VULNERABLE =
	    2, /* /proc/PID/status: Speculation_Store_Bypass: vulnerable */
	RS_TRACE_EXEC_SPEC_KNOWN = 4,
};

enum rs_trace_net {
	RS_TRACE_NET_SOCKET = 1,
	RS_TRACE_NET_CONNECT = 2,
	RS_TRACE_NET_BIND = 3,
	RS_TRACE_NET_SENDTO = 4,
	RS_TRACE_NET_SENDMSG = 5,
	RS_TRACE_NET_SENDMMSG = 6,
	RS_TRACE_NET_WRITE = 7,
	RS_TRACE_NET_WRITEV = 8,
};

/* What the first bytes of a NETWORK record may say. */
enum rs_trace_payload {
	RS_TRACE_PAYLOAD_NONE = 0,
	RS_TRACE_PAYLOAD_STREAM = 1, /* a TLS ClientHello has a server name */
	RS_TRACE_PAYLOAD_DNS = 2,    /* a question */
};
#define RS_TRACE_PAYLOAD_MAX 2048

enum rs_trace_op {
	RS_TRACE_OP_WRITE = 1, /* opened for writing; bytes: size when the action ended */
	RS_TRACE_OP_RENAME = 2,
	RS_TRACE_OP_LINK = 3,
	RS_TRACE_OP_SYMLINK = 4, /* first path: the target text */
	RS_TRACE_OP_DELETE = 5,
	RS_TRACE_OP_TRUNCATE = 6, /* bytes: the new length */
	RS_TRACE_OP_CHMOD = 7,
	RS_TRACE_OP_MKNOD = 8,
	RS_TRACE_OP_RMDIR = 9,
};

#define RS_TRACE_RESULT_UNKNOWN INT64_MIN

enum rs_trace_syscall_flag {
	RS_TRACE_SYSCALL_DENIED = 1,  /* did not run; the result is the error that the caller got */
	RS_TRACE_SYSCALL_SKIPPED = 2, /* did not run; the caller was told that it succeeded */
};

enum rs_trace_loss {
	RS_TRACE_LOSS_DENIED = 1,   /* the launcher may not read what the process opened */
	RS_TRACE_LOSS_GONE = 2,	    /* the descriptor was closed or replaced by another thread */
	RS_TRACE_LOSS_PATH = 3,	    /* the path is longer than the kernel tells */
	RS_TRACE_LOSS_READ = 4,	    /* reading failed */
	RS_TRACE_LOSS_UNSTABLE = 5, /* kept changing while it was hashed */
	RS_TRACE_LOSS_FILES_CAP = 6,
	RS_TRACE_LOSS_BYTES_CAP = 7,
	RS_TRACE_LOSS_PROCESS_CAP = 8,
	RS_TRACE_LOSS_INTERPRETER =
	    9, /* the loader of a program, or its script, could not be named */
	RS_TRACE_LOSS_NAMESPACE = 10, /* a product in a mount namespace that no longer exists */
	RS_TRACE_LOSS_TRACER = 11,    /* a ptrace operation failed on a process that still lives */
	RS_TRACE_LOSS_MEMORY = 12,    /* the launcher is out of memory or of table space */
	RS_TRACE_LOSS_ARGUMENT = 13,  /* a path argument could not be read or resolved */
	RS_TRACE_LOSS_MUTATED = 14, /* a material that another than the action changed meanwhile */
	RS_TRACE_LOSS_BLOCK_DEVICE = 15, /* a block device that was opened */
};
#define RS_TRACE_LOSS_COUNT 16

enum rs_trace_counter {
	/* RS_TRACE_LOSS_*: the counter with the number of the loss; 0 is unused */
	RS_TRACE_C_OPENS = RS_TRACE_LOSS_COUNT, /* successful opens that were seen */
	RS_TRACE_C_HASHED,			/* of them hashed, or found in the cache */
	RS_TRACE_C_CACHE_HITS,
	RS_TRACE_C_BYTES_HASHED,
	RS_TRACE_C_EXCLUDED_PATH_ONLY, /* O_PATH: no content can be read through it */
	RS_TRACE_C_EXCLUDED_IRREGULAR, /* directories, devices, pipes */
	RS_TRACE_C_EXCLUDED_PSEUDO,    /* files of proc, sysfs and the like */
	RS_TRACE_C_EXCLUDED_ANONYMOUS, /* memfd and other files that never had a path */
	RS_TRACE_C_EXCLUDED_WRITE_ONLY,
	RS_TRACE_C_EXCLUDED_IO_URING, /* io_uring calls that were refused */
	RS_TRACE_C_EXECS,
	RS_TRACE_C_TASKS, /* processes and threads */
	RS_TRACE_C_STOPS, /* ptrace stops */
	RS_TRACE_COUNTER_COUNT,
};
