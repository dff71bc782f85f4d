/* mounts.h: the mounts of an action's namespace, and the marks on them. */
#ifndef ROOTSEAL_CAPTURE_MOUNTS_H
#define ROOTSEAL_CAPTURE_MOUNTS_H
#include "api.h"
#include "mem.h"

#define RS_MOUNTS_MAX 4096

enum rs_mount_state {
	RS_MOUNT_MARKED,
	RS_MOUNT_EXCLUDED, /* pseudo filesystem */
	RS_MOUNT_HIDDEN,   /* under another mount: no path leads there */
	RS_MOUNT_FAILED,
	RS_MOUNT_LATE, /* appeared during the action */
};

struct rs_mount {
	uint64_t id;
	const char *device; /* major:minor */
	const char *root;   /* which part of the filesystem is mounted */
	const char *point;  /* in the namespace, absolute */
	const char *fstype;
	const char *reason; /* why not marked, else "" */
	uint32_t owner;	    /* FUSE: the one user who may look at it, else UINT32_MAX */
	uint32_t owner_group;
	enum rs_mount_state state;
	bool reliable_times; /* see dcache.c: may be cached */
	bool compared;	     /* its mark has FAN_PRE_ACCESS: see access.c */
	bool remote;	     /* content can change without this kernel knowing */
};

struct rs_mounts {
	struct rs_mount *items;
	uint32_t count, capacity;
	struct rs_arena arena;
};

/* One line of mountinfo, decoded in place. Pure. 0, or -EBADMSG. */
struct rs_mount_line {
	uint64_t id;
	char *device; /* major:minor */
	char *root;   /* of the filesystem, what is mounted */
	char *point;
	char *fstype;
	char *options; /* of the superblock, not unescaped; "" if there are none */
};
int rs_mount_line_parse(char *line, struct rs_mount_line *ret_line);
/* The number after `name=` in mount options; UINT32_MAX (nobody) if there is none. Pure. */
uint32_t rs_mount_option(const char *options, const char *name);

/* Mark one mount, whose path is relative to root_fd. 0 or -errno. */
int rs_mount_mark(const struct rs_mount *mount, int group_fd, int root_fd, const char *path,
		  uint64_t mask);
/* Mark every mount of mountinfo_fd that can hold files. Counts failures; -errno only if unreadable.
 */
int rs_mounts_mark(struct rs_mounts *mounts, int group_fd, int root_fd, int mountinfo_fd,
		   uint64_t mask);
/* Is there a marked one whose server may refuse us what it lets the action open? */
bool rs_mounts_remote(const struct rs_mounts *mounts);
/* Could the file at this path of the mount be opened through another mount too? */
bool rs_mounts_aliased(const struct rs_mounts *mounts, uint64_t mount_id, const char *path);
/* Switch off events of device nodes, again: after the marks of inodes were dropped. */
void rs_mounts_ignore_devices(const struct rs_mounts *mounts, int group_fd, int root_fd);
/* Read mountinfo again: mounts that appeared since are added as RS_MOUNT_LATE. */
int rs_mounts_recheck(struct rs_mounts *mounts, int root_fd, int mountinfo_fd);
const struct rs_mount *rs_mounts_by_id(const struct rs_mounts *mounts, uint64_t id);
void rs_mounts_count(const struct rs_mounts *mounts, rs_counters *counters);
void rs_mounts_encode(const struct rs_mounts *mounts, struct rs_buf *buf);
void rs_mounts_free(struct rs_mounts *mounts);

#endif
