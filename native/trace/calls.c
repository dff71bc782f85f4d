/*
 * calls.c: which system call numbers the trace programs look at.
 *
 * Numbers come from the headers of the machine this is compiled for; those of 32-bit x86 programs
 * on a 64-bit kernel are written out (arch/x86/entry/syscalls/syscall_32.tbl).
 *
 * Owns: nothing. Hand-off: numbers -> rs_calls map. Privilege: a descriptor of the map.
 */
#include <errno.h>
#include <sys/syscall.h>

#include "sysbpf.h"
#include "tracer.h"

struct call_number {
	uint32_t number;
	uint8_t id;
};

/* Newer than the oldest headers this compiles with; the numbers are the same on every 64-bit
 * machine. */
#ifndef __NR_fchmodat2
#define __NR_fchmodat2 452
#endif
#ifndef __NR_memfd_secret
#define __NR_memfd_secret 447
#endif
#ifndef __NR_open_tree_attr
#define __NR_open_tree_attr 467
#endif

#define CALL(name, id)                                                                             \
	{                                                                                          \
		__NR_##name, RS_CALL_##id                                                          \
	}

static const struct call_number native_calls[] = {
#ifdef __NR_open
    CALL(open, OPEN),
    CALL(creat, CREAT),
    CALL(rename, RENAME),
    CALL(link, LINK),
    CALL(symlink, SYMLINK),
    CALL(unlink, UNLINK),
    CALL(rmdir, RMDIR),
    CALL(chmod, CHMOD),
    CALL(mknod, MKNOD),
    CALL(dup2, DUP2),
#endif
#ifdef __NR_renameat
    CALL(renameat, RENAMEAT),
#endif
    CALL(openat, OPENAT),
    CALL(openat2, OPENAT2),
    CALL(open_by_handle_at, OPEN_BY_HANDLE_AT),
    CALL(write, WRITE),
    CALL(pwrite64, PWRITE64),
    CALL(writev, WRITEV),
    CALL(pwritev, PWRITEV),
    CALL(pwritev2, PWRITEV),
    CALL(sendto, SENDTO),
    CALL(sendmsg, SENDMSG),
    CALL(sendmmsg, SENDMMSG),
    CALL(sendfile, SENDFILE),
    CALL(copy_file_range, COPY_FILE_RANGE),
    CALL(splice, SPLICE),
    CALL(socket, SOCKET),
    CALL(connect, CONNECT),
    CALL(bind, BIND),
    CALL(renameat2, RENAMEAT2),
    CALL(linkat, LINKAT),
    CALL(symlinkat, SYMLINKAT),
    CALL(unlinkat, UNLINKAT),
    CALL(fchmodat, FCHMODAT),
    CALL(fchmodat2, FCHMODAT2),
    CALL(fchmod, FCHMOD),
    CALL(mknodat, MKNODAT),
    CALL(pkey_mprotect, MPROTECT),
    CALL(truncate, TRUNCATE),
    CALL(ftruncate, FTRUNCATE),
    CALL(memfd_create, MEMFD_CREATE),
    CALL(memfd_secret, MEMFD_SECRET),
    CALL(ptrace, PTRACE),
    CALL(mount, MOUNT),
    CALL(umount2, UMOUNT2),
    CALL(open_tree, OPEN_TREE),
    CALL(open_tree_attr, OPEN_TREE_ATTR),
    CALL(move_mount, MOVE_MOUNT),
    CALL(fsopen, FSOPEN),
    CALL(fsconfig, FSCONFIG),
    CALL(fsmount, FSMOUNT),
    CALL(fspick, FSPICK),
    CALL(mount_setattr, MOUNT_SETATTR),
    CALL(pivot_root, PIVOT_ROOT),
    CALL(chroot, CHROOT),
    CALL(clone, CLONE),
    CALL(clone3, CLONE3),
    CALL(unshare, UNSHARE),
    CALL(setns, SETNS),
    CALL(dup, DUP),
    CALL(dup3, DUP3),
    CALL(fcntl, FCNTL),
    CALL(mprotect, MPROTECT),
    CALL(mmap, MMAP),
    CALL(prctl, PRCTL),
    CALL(setsid, SETSID),
    CALL(init_module, INIT_MODULE),
    CALL(finit_module, FINIT_MODULE),
    CALL(io_uring_setup, IO_URING_SETUP),
    CALL(process_vm_writev, PROCESS_VM_WRITEV),
};

#ifdef __x86_64__
static const struct call_number compat_calls[] = {
    {4, RS_CALL_WRITE},
    {5, RS_CALL_OPEN},
    {8, RS_CALL_CREAT},
    {9, RS_CALL_LINK},
    {10, RS_CALL_UNLINK},
    {14, RS_CALL_MKNOD},
    {15, RS_CALL_CHMOD},
    {21, RS_CALL_MOUNT},
    {22, RS_CALL_UMOUNT},
    {26, RS_CALL_PTRACE},
    {38, RS_CALL_RENAME},
    {40, RS_CALL_RMDIR},
    {41, RS_CALL_DUP},
    {52, RS_CALL_UMOUNT2},
    {55, RS_CALL_FCNTL},
    {61, RS_CALL_CHROOT},
    {63, RS_CALL_DUP2},
    {66, RS_CALL_SETSID},
    {83, RS_CALL_SYMLINK},
    {90, RS_CALL_OLD_MMAP},
    {92, RS_CALL_TRUNCATE},
    {93, RS_CALL_FTRUNCATE},
    {94, RS_CALL_FCHMOD},
    {102, RS_CALL_SOCKETCALL},
    {120, RS_CALL_CLONE},
    {125, RS_CALL_MPROTECT},
    {128, RS_CALL_INIT_MODULE},
    {146, RS_CALL_WRITEV},
    {172, RS_CALL_PRCTL},
    {181, RS_CALL_PWRITE64},
    {187, RS_CALL_SENDFILE},
    {192, RS_CALL_MMAP},
    {193, RS_CALL_TRUNCATE64},
    {194, RS_CALL_FTRUNCATE64},
    {217, RS_CALL_PIVOT_ROOT},
    {221, RS_CALL_FCNTL},
    {239, RS_CALL_SENDFILE},
    {295, RS_CALL_OPENAT},
    {297, RS_CALL_MKNODAT},
    {301, RS_CALL_UNLINKAT},
    {302, RS_CALL_RENAMEAT},
    {303, RS_CALL_LINKAT},
    {304, RS_CALL_SYMLINKAT},
    {306, RS_CALL_FCHMODAT},
    {310, RS_CALL_UNSHARE},
    {313, RS_CALL_SPLICE},
    {330, RS_CALL_DUP3},
    {334, RS_CALL_PWRITEV},
    {342, RS_CALL_OPEN_BY_HANDLE_AT},
    {345, RS_CALL_SENDMMSG},
    {346, RS_CALL_SETNS},
    {348, RS_CALL_PROCESS_VM_WRITEV},
    {350, RS_CALL_FINIT_MODULE},
    {353, RS_CALL_RENAMEAT2},
    {356, RS_CALL_MEMFD_CREATE},
    {359, RS_CALL_SOCKET},
    {361, RS_CALL_BIND},
    {362, RS_CALL_CONNECT},
    {369, RS_CALL_SENDTO},
    {370, RS_CALL_SENDMSG},
    {377, RS_CALL_COPY_FILE_RANGE},
    {379, RS_CALL_PWRITEV},
    {380, RS_CALL_MPROTECT},
    {425, RS_CALL_IO_URING_SETUP},
    {428, RS_CALL_OPEN_TREE},
    {429, RS_CALL_MOVE_MOUNT},
    {430, RS_CALL_FSOPEN},
    {431, RS_CALL_FSCONFIG},
    {432, RS_CALL_FSMOUNT},
    {433, RS_CALL_FSPICK},
    {435, RS_CALL_CLONE3},
    {437, RS_CALL_OPENAT2},
    {442, RS_CALL_MOUNT_SETATTR},
    {447, RS_CALL_MEMFD_SECRET},
    {452, RS_CALL_FCHMODAT2},
    {467, RS_CALL_OPEN_TREE_ATTR},
};
#endif

int rs_calls_fill(int map_fd)
{
	struct rs_call_ids table[RS_CALL_TABLE] = {};

	for (size_t i = 0; i < sizeof(native_calls) / sizeof(native_calls[0]); i++)
		table[native_calls[i].number % RS_CALL_TABLE].native = native_calls[i].id;
#ifdef __x86_64__
	for (size_t i = 0; i < sizeof(compat_calls) / sizeof(compat_calls[0]); i++)
		table[compat_calls[i].number].compat = compat_calls[i].id;
#endif
	for (uint32_t number = 0; number < RS_CALL_TABLE; number++) {
		int error = 0;

		if (table[number].native || table[number].compat)
			error = rs_map_update(map_fd, &number, &table[number]);
		if (error)
			return error;
	}
	return 0;
}
