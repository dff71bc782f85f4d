/*
 * trace_core.h: what all trace programs need: counting, sending, files and paths.
 *
 * The trace_*.h files are the programs' logic, once for both adaptors (trace.bpf.c through libbpf,
 * trace_bcc.c through BCC).
 *
 * An adaptor defines, before it includes this file:
 *   RS_FN                        how helper functions are declared
 *   RS_GLOBAL                    those with long loops, which the verifier should see only once
 *   RS_GET(id, pointer, &value)  read the kernel field `id` of fields.h; 0 or negative
 *   RS_OFFSET(id)                its offset
 *   RS_LOOKUP/RS_UPDATE/RS_DELETE(map, &key...), RS_OUTPUT(data, bytes), RS_RING_USED()
 *   RS_LSM_OPENS                 whether opens come from lsm/file_open
 *   RS_READ_USER(dst, bytes, src), RS_READ_USER_STR, RS_READ_KERNEL, RS_READ_KERNEL_STR
 *
 * Membership: user space puts the action's first process into rs_members while that process is
 * still held; rs_on_fork copies it to every child process, rs_on_exit_process takes it out. Threads
 * share their process's entry. Everything is read at the *exit* of a call: arguments are still in
 * the saved registers, the kernel has just faulted in the strings, and a descriptor leads to the
 * very file that was opened.
 *
 * Rule: after a task is known to be a member, every early return either proves the event irrelevant
 * or counts a loss for its scope.
 */
#pragma once

#define RS_TAIL_MASK 0x3fff

#define RS_AT_FDCWD	     (-100)
#define RS_S_IFMT	     0170000
#define RS_S_IFREG	     0100000
#define RS_S_IFSOCK	     0140000
#define RS_EFAULT	     14
#define RS_EINPROGRESS	     115
#define RS_SIGNAL_GROUP_EXIT 4
#define RS_NAMESPACE_FLAGS                                                                         \
	0x7e020080ULL /* CLONE_NEW*; 0x80 is NEWTIME, where it does not mean a signal */
#define RS_PROT_EXEC	 4
#define RS_MAP_ANONYMOUS 0x20

/* One call of a member, whatever the machine. */
struct rs_regs {
	u64 a[6];
	s64 result;
	u64 scope;
	u32 id; /* enum rs_call */
	u32 compat;
	u32 paths; /* opens are told with their path */
};

/* Make the verifier see a bound that the compiler already knows. */
#define RS_OPAQUE(value) __asm__ volatile("" : "+r"(value))

RS_GLOBAL int rs_count(u64 scope, u32 loss)
{
	u32 index = (u32)(scope % RS_SCOPE_SLOTS) * RS_LOSS_SLOTS + loss;
	u64 *value = RS_LOOKUP(rs_losses, &index);

	if (value)
		__sync_fetch_and_add(value, 1);
	return 0;
}

RS_FN void rs_emit(void *event, u32 bytes, u64 scope, u32 loss)
{
	if (RS_OUTPUT(event, bytes))
		rs_count(scope, loss);
}

static __always_inline void rs_head(struct rs_event *head, u32 type, u32 size, u64 scope)
{
	u64 ids = bpf_get_current_pid_tgid();

	head->type = type;
	head->size = size;
	head->scope = scope;
	head->time_ns = bpf_ktime_get_ns();
	head->tgid = (u32)(ids >> 32);
	head->tid = (u32)ids;
}

/* The open file behind a descriptor of the current task, or NULL. */
RS_FN void *rs_file_of(s32 fd)
{
	void *task = (void *)bpf_get_current_task();
	void *files = 0, *table = 0, *file = 0;
	void **slots = 0;
	u32 limit = 0;

	if (fd < 0 || RS_GET(task_files, task, &files) || !files ||
	    RS_GET(files_fdt, files, &table))
		return 0;
	if (RS_GET(fdt_max_fds, table, &limit) || (u32)fd >= limit || RS_GET(fdt_fd, table, &slots))
		return 0;
	if (RS_READ_KERNEL(&file, sizeof(file), slots + fd))
		return 0;
	return file;
}

/* Fill `out` from `file`; negative if it cannot be read. */
RS_FN int rs_describe(void *file, struct rs_file *out)
{
	void *inode = 0, *sb = 0;
	u16 mode = 0;
	unsigned long number = 0, magic = 0;

	if (!out)
		return -1;
	__builtin_memset(out, 0, sizeof(*out));
	if (!file || RS_GET(file_inode, file, &inode) || !inode || RS_GET(inode_sb, inode, &sb))
		return -1;
	if (RS_GET(inode_mode, inode, &mode) || RS_GET(inode_ino, inode, &number) ||
	    RS_GET(sb_dev, sb, &out->dev) || RS_GET(sb_magic, sb, &magic) ||
	    RS_GET(file_flags, file, &out->flags) || RS_GET(file_mode, file, &out->fmode))
		return -1;
	out->mode = mode;
	out->ino = number;
	out->magic = magic;
	return 0;
}

/*
 * One step of a walk: append the name of scratch->dentry and go to its parent. 1: go on, 0: done.
 *
 * A loop's body is a global function and its state lies in memory, because the verifier then looks
 * at it once, not once for each round and each history.
 */
RS_GLOBAL int rs_walk_step(struct rs_scratch *scratch, u32 start)
{
	void *dentry, *mnt, *root = 0, *parent = 0, *mount, *above = 0;
	const u8 *name = 0;
	u32 tail;
	long n;

	if (!scratch)
		return 0;
	dentry = (void *)scratch->dentry;
	mnt = (void *)scratch->mnt;
	tail = scratch->tail;
	scratch->cut |= RS_CUT_WALK; /* taken back below, unless something fails */
	if (RS_GET(vfsmount_root, mnt, &root) || RS_GET(dentry_parent, dentry, &parent))
		return 0;
	if (dentry == root) {
		mount = (u8 *)mnt - RS_OFFSET(mount_mnt);
		if (RS_GET(mount_parent, mount, &above))
			return 0;
		if (above == mount || !above) { /* the root of the namespace */
			scratch->cut &= ~RS_CUT_WALK;
			return 0;
		}
		if (RS_GET(mount_mountpoint, mount, &dentry))
			return 0;
		scratch->dentry = (u64)dentry;
		scratch->mnt = (u64)above + RS_OFFSET(mount_mnt);
		return 1;
	}
	if (!parent || parent == dentry) { /* not attached: a pseudo filesystem */
		scratch->cut &= ~RS_CUT_WALK;
		return 0;
	}
	if (tail - start >= RS_PATH_BYTES || tail > RS_TAIL_MASK - 256 ||
	    RS_GET(dentry_name, dentry, &name))
		return 0;
	RS_OPAQUE(tail); /* or the compiler drops the mask, which kernel 6.1 wants */
	n = RS_READ_KERNEL_STR(&scratch->data[RS_HEAD_BYTES + (tail & RS_TAIL_MASK)], 256, name);
	if (n <= 1 || n > 256)
		return 0;
	scratch->tail = tail + (u32)n;
	scratch->dentry = (u64)parent;
	return 1;
}

/* Append the components from `dentry` up to the root of the namespace, leaf first. */
RS_GLOBAL int rs_walk(struct rs_scratch *scratch, u64 dentry, u64 mnt)
{
	u32 before, start;

	if (!scratch)
		return 0;
	before = scratch->cut;
	start = scratch->tail;
	scratch->dentry = dentry;
	scratch->mnt = mnt;
	for (int i = 0; i < RS_WALK_ROUNDS; i++)
		if (rs_walk_step(scratch, start) != 1)
			break;
	scratch->cut |= before;
	return 0;
}

/* Append the path of an open file; returns its bytes. */
RS_FN u32 rs_walk_file(struct rs_scratch *scratch, void *file)
{
	void *dentry = 0, *mnt = 0;
	u32 start;

	if (!scratch)
		return 0;
	start = scratch->tail;
	if (!file || RS_GET(file_dentry, file, &dentry) || RS_GET(file_mnt, file, &mnt))
		scratch->cut |= RS_CUT_WALK;
	else
		rs_walk(scratch, (u64)dentry, (u64)mnt);
	return scratch->tail - start;
}

/* Append a string, without its NUL; returns its bytes. */
RS_FN u32 rs_string(struct rs_scratch *scratch, u64 address, int kernel)
{
	u32 tail;
	long n;

	if (!scratch)
		return 0;
	tail = scratch->tail;
	if (tail > RS_TAIL_MASK) {
		scratch->cut |= RS_CUT_NAME;
		return 0;
	}
	RS_OPAQUE(tail); /* or the compiler drops the masks, which the verifier wants */
	if (kernel)
		n = RS_READ_KERNEL_STR(&scratch->data[RS_HEAD_BYTES + (tail & RS_TAIL_MASK)],
				       RS_PATH_BYTES, (void *)address);
	else
		n = RS_READ_USER_STR(&scratch->data[RS_HEAD_BYTES + (tail & RS_TAIL_MASK)],
				     RS_PATH_BYTES, (void *)address);
	if (!n) /* of an empty string, before 6.13 */
		return 0;
	if (n < 0 || n > RS_PATH_BYTES) {
		scratch->cut |= RS_CUT_NAME;
		return 0;
	}
	scratch->tail = tail + (u32)n - 1;
	return (u32)n - 1;
}

/* Append the path of the current task's working directory; returns its bytes. */
RS_FN u32 rs_working_directory(struct rs_scratch *scratch)
{
	void *task = (void *)bpf_get_current_task();
	void *fs = 0, *dentry = 0, *mnt = 0;
	u32 start;

	if (!scratch)
		return 0;
	start = scratch->tail;
	if (RS_GET(task_fs, task, &fs) || !fs || RS_GET(fs_pwd_dentry, fs, &dentry) ||
	    RS_GET(fs_pwd_mnt, fs, &mnt))
		scratch->cut |= RS_CUT_WALK;
	else
		rs_walk(scratch, (u64)dentry, (u64)mnt);
	return scratch->tail - start;
}

/* Append where a relative path begins; nothing for an absolute one. Returns its bytes. */
RS_FN u32 rs_base(struct rs_scratch *scratch, s32 dirfd, u64 address)
{
	u8 first = 0;

	if (!scratch)
		return 0;
	if (RS_READ_USER(&first, 1, (void *)address)) {
		scratch->cut |= RS_CUT_NAME;
		return 0;
	}
	if (first == '/')
		return 0;
	if (dirfd != RS_AT_FDCWD)
		return rs_walk_file(scratch, rs_file_of(dirfd));
	return rs_working_directory(scratch);
}

/* Send the event in scratch, with its tail. */
RS_FN int rs_emit_tail(struct rs_scratch *scratch, u64 scope, u32 loss)
{
	struct rs_event *head;
	u64 bytes;

	if (!scratch)
		return 0;
	head = (struct rs_event *)scratch->data;
	bytes = RS_HEAD_BYTES + scratch->tail;
	RS_OPAQUE(bytes);
	if (bytes > RS_HEAD_BYTES + RS_TAIL_BYTES)
		bytes = RS_HEAD_BYTES + RS_TAIL_BYTES;
	head->size = (u32)bytes;
	if (scratch->cut)
		rs_count(scope, RS_LOSS_TRUNCATED);
	if (RS_OUTPUT(scratch->data, bytes))
		rs_count(scope, loss);
	return 0;
}

static __always_inline struct rs_scratch *rs_scratch_get(u32 program, u64 scope, u32 loss)
{
	struct rs_scratch *scratch = RS_LOOKUP(rs_scratches, &program);

	if (!scratch) {
		rs_count(scope, loss);
		return 0;
	}
	scratch->cut = 0;
	scratch->tail = 0;
	__builtin_memset(scratch->data, 0, RS_HEAD_BYTES);
	return scratch;
}
