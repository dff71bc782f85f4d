/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Filesystems that others serve: what is read after the hash may differ from what was hashed, and
 * this kernel is not told. The one list for both cores: native/capture goes by the type's name,
 * the launcher by what statfs(2) says. FUSE has many types, `fuse.NAME`, and one number.
 *
 * Source: include/uapi/linux/magic.h; of gfs2, lustre and virtiofs the filesystem's own source.
 */
#pragma once

#define RS_REMOTE_FILESYSTEMS(X)                                                                   \
	X("9p", 0x01021997)                                                                        \
	X("afs", 0x5346414f) /* OpenAFS */                                                         \
	X("afs", 0x6b414653) /* the kernel's own */                                                \
	X("ceph", 0x00c36400)                                                                      \
	X("cifs", 0xff534d42)                                                                      \
	X("coda", 0x73757245)                                                                      \
	X("fuse", 0x65735546)                                                                      \
	X("fuseblk", 0x65735546)                                                                   \
	X("gfs2", 0x01161970)                                                                      \
	X("lustre", 0x0bd00bd0)                                                                    \
	X("nfs", 0x6969)                                                                           \
	X("nfs4", 0x6969)                                                                          \
	X("ocfs2", 0x7461636f)                                                                     \
	X("smb3", 0xfe534d42)                                                                      \
	X("virtiofs", 0x65735546)
