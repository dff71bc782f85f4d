/*
 * mounts.c: /proc/PID/mountinfo -> marks on every mount that can hold files.
 *
 * Owns: the list of mounts. Must not: look at files, or leave a mount that matters unmentioned.
 * Hands off: the list -> scope.c (what was captured), products.c (mount of a file handle).
 * Privilege at entry: CAP_SYS_ADMIN (fanotify_mark on a mount). Held at exit: the same.
 */
#include "mounts.h"
#include "core.h"
#include "../remote_filesystems.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <unistd.h>

#define MOUNTINFO_BYTES_MAX (16U * 1024U * 1024U)
#define DEVICES_MAX	    4096

/* Filesystems without files that anybody stores: kernel interfaces. */
static const char *const pseudo[] = {
    "autofs",	 "binder",  "binfmt_misc", "bpf",      "cgroup",   "cgroup2",	 "configfs",
    "cpuset",	 "debugfs", "devpts",	   "devtmpfs", "efivarfs", "fusectl",	 "hugetlbfs",
    "mqueue",	 "nfsd",    "nsfs",	   "proc",     "pstore",   "rpc_pipefs", "securityfs",
    "selinuxfs", "smackfs", "sysfs",	   "tracefs",
};

/* ctime on these is a proof of change: see dcache.c. */
static const char *const reliable[] = {"ext4", "xfs", "btrfs"};

#define NAME(name, magic) name,
static const char *const remote[] = {RS_REMOTE_FILESYSTEMS(NAME)};

static bool listed(const char *name, const char *const *list, size_t count)
{
	size_t i;

	for (i = 0; i < count; i++)
		if (!strcmp(name, list[i]))
			return true;
	return false;
}

#define LISTED(name, list) listed(name, list, sizeof(list) / sizeof((list)[0]))

static bool is_remote(const char *fstype)
{
	return LISTED(fstype, remote) || !strncmp(fstype, "fuse.", 5);
}

static bool is_octal(char c)
{
	return c >= '0' && c <= '7';
}

/* Value of a \ooo escape of three octal digits, 0 if there is none (the kernel never escapes NUL).
 */
static char escaped(const char *text)
{
	if (text[0] != '\\' || text[1] < '0' || text[1] > '3' || !is_octal(text[2]) ||
	    !is_octal(text[3]))
		return 0;
	return (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 | (text[3] - '0'));
}

/* mountinfo writes space, tab, newline and backslash as \ooo (proc_pid_mountinfo(5)). */
static void unescape(char *text)
{
	char *out = text, value;

	while (*text) {
		value = escaped(text);
		*out++ = value ? value : *text;
		text += value ? 4 : 1;
	}
	*out = 0;
}

int rs_mount_line_parse(char *line, struct rs_mount_line *ret_line)
{
	char *field[5], *rest, *end, *save = line, *separator;
	struct rs_mount_line parsed;
	int i;

	/* id parent major:minor root point options [optional...] - fstype source options */
	for (i = 0; i < 5; i++) {
		field[i] = strsep(&save, " ");
		if (!field[i] || !*field[i] || !save)
			return -EBADMSG;
	}
	separator = strstr(save, " - ");
	if (!separator)
		return -EBADMSG;
	rest = separator + 3;
	parsed.fstype = strsep(&rest, " ");
	strsep(&rest, " "); /* the source */
	parsed.options = rest ? rest : parsed.fstype + strlen(parsed.fstype);
	parsed.device = field[2];
	parsed.root = field[3];
	parsed.point = field[4];
	errno = 0;
	parsed.id = strtoull(field[0], &end, 10);
	if (errno || *end || end == field[0] || field[4][0] != '/' || !*parsed.fstype)
		return -EBADMSG;
	unescape(parsed.root);
	unescape(parsed.point);
	unescape(parsed.fstype);
	*ret_line = parsed;
	return 0;
}

static const char *relative(const char *point)
{
	return point[1] ? point + 1 : ".";
}

const struct rs_mount *rs_mounts_by_id(const struct rs_mounts *mounts, uint64_t id)
{
	uint32_t i;

	for (i = 0; i < mounts->count; i++)
		if (mounts->items[i].id == id)
			return &mounts->items[i];
	return NULL;
}

uint32_t rs_mount_option(const char *options, const char *name)
{
	size_t length = strlen(name);
	const char *at = options;
	unsigned long value;
	char *end;

	while (at && (strncmp(at, name, length) || at[length] != '=')) {
		at = strchr(at, ',');
		at = at ? at + 1 : NULL;
	}
	if (!at || at[length + 1] < '0' || at[length + 1] > '9')
		return UINT32_MAX;
	errno = 0;
	value = strtoul(at + length + 1, &end, 10);
	return errno || (*end && *end != ',') || value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
}

static struct rs_mount *add(struct rs_mounts *mounts, const struct rs_mount_line *line)
{
	struct rs_mount *mount;

	if (mounts->count >= RS_MOUNTS_MAX ||
	    rs_grow((void **)&mounts->items, &mounts->capacity, mounts->count + 1, sizeof(*mount)))
		return NULL;
	mount = &mounts->items[mounts->count];
	*mount = (struct rs_mount){
	    .id = line->id,
	    .point = (const char *)rs_arena_copy(&mounts->arena, line->point, strlen(line->point)),
	    .device =
		(const char *)rs_arena_copy(&mounts->arena, line->device, strlen(line->device)),
	    .root = (const char *)rs_arena_copy(&mounts->arena, line->root, strlen(line->root)),
	    .fstype =
		(const char *)rs_arena_copy(&mounts->arena, line->fstype, strlen(line->fstype)),
	    .reason = "",
	    .reliable_times = LISTED(line->fstype, reliable),
	    .remote = is_remote(line->fstype),
	    .owner = rs_mount_option(line->options, "user_id"),
	    .owner_group = rs_mount_option(line->options, "group_id"),
	};
	if (!mount->point || !mount->fstype || !mount->device || !mount->root)
		return NULL;
	mounts->count++;
	return mount;
}

/*
 * Is this mount the one that its path leads to? A mount on top hides it. One that we may not look
 * at (another user's FUSE, NFS without root) is not hidden from the action.
 */
static bool is_visible(int root_fd, const struct rs_mount *mount)
{
	struct rs_stat stat;
	int error = rs_stat_known_at(root_fd, relative(mount->point), &stat);

	if (error)
		return error != -ENOENT && error != -ENOTDIR;
	return stat.mount_id == UINT64_MAX || stat.mount_id == mount->id;
}

static void ignore_devices_in(int group_fd, DIR *stream)
{
	const unsigned flags = FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY |
			       FAN_MARK_DONT_FOLLOW;
	struct dirent *entry;
	unsigned seen;

	for (seen = 0; seen < DEVICES_MAX && (entry = readdir(stream)); seen++)
		if (entry->d_type == DT_CHR)
			fanotify_mark(group_fd, flags, RS_EVENT_MASK, dirfd(stream), entry->d_name);
}

/*
 * In a container /dev is often a tmpfs with device nodes. The kernel opens an event's file for us
 * before anybody can look at what it is, and where that fails (/dev/tty without a terminal) it
 * refuses the action's own open. A character device has no content to hash, so its events are
 * switched off; where that fails, they come and are counted like those of any special file.
 */
static void ignore_devices(const struct rs_mount *mount, int group_fd, int root_fd)
{
	const char *name = strrchr(mount->point, '/');
	DIR *stream;
	int fd;

	if (strcmp(mount->fstype, "tmpfs") || strcmp(name, "/dev"))
		return;
	fd = openat(root_fd, relative(mount->point), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	stream = fd < 0 ? NULL : fdopendir(fd);
	if (stream) {
		ignore_devices_in(group_fd, stream);
		closedir(stream);
	} else if (fd >= 0) {
		close(fd);
	}
}

/* With FAN_PRE_ACCESS only where the filesystem offers it. */
static int mark_fully(struct rs_mount *mount, int group_fd, int root_fd, uint64_t mask)
{
	const char *path = relative(mount->point);
	int error = rs_mount_mark(mount, group_fd, root_fd, path, mask);

	mount->compared = !error && mask & FAN_PRE_ACCESS;
	if ((error == -EOPNOTSUPP || error == -EINVAL) && mask & FAN_PRE_ACCESS)
		error =
		    rs_mount_mark(mount, group_fd, root_fd, path, mask & ~(uint64_t)FAN_PRE_ACCESS);
	return error;
}

static void mark_one(struct rs_mount *mount, int group_fd, int root_fd, uint64_t mask)
{
	int error;

	if (LISTED(mount->fstype, pseudo)) {
		mount->state = RS_MOUNT_EXCLUDED;
		mount->reason = "a kernel interface, not a place for files";
	} else if (!is_visible(root_fd, mount)) {
		mount->state = RS_MOUNT_HIDDEN;
		mount->reason = "hidden under another mount";
	} else if ((error = mark_fully(mount, group_fd, root_fd, mask))) {
		mount->state = RS_MOUNT_FAILED;
		mount->reason = (const char *)strerrordesc_np(-error);
		if (!mount->reason)
			mount->reason = "the kernel refused the mark";
	} else {
		mount->state = RS_MOUNT_MARKED;
		ignore_devices(mount, group_fd, root_fd);
		if (mount->remote)
			mount->reason = "served by others: content can change after it was hashed";
	}
}

void rs_mounts_ignore_devices(const struct rs_mounts *mounts, int group_fd, int root_fd)
{
	uint32_t i;

	for (i = 0; i < mounts->count; i++)
		if (mounts->items[i].state == RS_MOUNT_MARKED)
			ignore_devices(&mounts->items[i], group_fd, root_fd);
}

/* The rest of the path below the directory, with its slash; NULL if it is not below. */
static const char *below(const char *directory, const char *path)
{
	size_t length = strlen(directory);

	if (length == 1)
		return path;
	return strncmp(path, directory, length) || path[length] != '/' ? NULL : path + length;
}

/* Is the file that is called `rest` below `root` also below (or equal to) `other`? */
static bool covers(const char *other, const char *root, const char *rest)
{
	size_t root_length = root[1] ? strlen(root) : 0, length = strlen(other), tail;

	if (length == 1)
		return true;
	if (length <= root_length)
		return !strncmp(root, other, length) && (root[length] == '/' || !root[length]);
	tail = length - root_length;
	return !strncmp(other, root, root_length) && !strncmp(other + root_length, rest, tail) &&
	       (rest[tail] == '/' || !rest[tail]);
}

bool rs_mounts_remote(const struct rs_mounts *mounts)
{
	uint32_t i;

	for (i = 0; i < mounts->count; i++)
		if (mounts->items[i].remote && mounts->items[i].state == RS_MOUNT_MARKED)
			return true;
	return false;
}

bool rs_mounts_aliased(const struct rs_mounts *mounts, uint64_t mount_id, const char *path)
{
	const struct rs_mount *mount = rs_mounts_by_id(mounts, mount_id), *other;
	const char *rest = mount ? below(mount->point, path) : NULL;
	uint32_t i;

	if (!rest) /* a file may be a mount by itself */
		return true;
	for (i = 0; i < mounts->count; i++) {
		other = &mounts->items[i];
		if (other != mount && !strcmp(other->device, mount->device) &&
		    covers(other->root, mount->root, rest))
			return true;
	}
	return false;
}

/* All of mountinfo, NUL-terminated; the caller frees. */
static int read_all(int fd, char **ret_text)
{
	struct rs_buf buf = {0};
	char chunk[8192];
	ssize_t got;

	if (lseek(fd, 0, SEEK_SET) < 0)
		return -errno;
	while ((got = read(fd, chunk, sizeof(chunk))) != 0) {
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0) {
			rs_buf_free(&buf);
			return -errno;
		}
		rs_buf_append(&buf, chunk, (size_t)got);
		if (buf.length > MOUNTINFO_BYTES_MAX)
			buf.error = -EFBIG;
		if (buf.error)
			break;
	}
	if (rs_buf_u8(&buf, 0)) {
		int error = buf.error;

		rs_buf_free(&buf);
		return error;
	}
	*ret_text = (char *)buf.data;
	return 0;
}

static int each_line(int mountinfo_fd,
		     int (*visit)(void *context, const struct rs_mount_line *line), void *context)
{
	struct rs_mount_line line;
	char *text, *rest, *next;
	int error;

	error = read_all(mountinfo_fd, &text);
	if (error)
		return error;
	for (rest = text; !error && (next = strsep(&rest, "\n"));) {
		if (!*next)
			continue;
		error = rs_mount_line_parse(next, &line);
		if (!error)
			error = visit(context, &line);
	}
	free(text);
	return error;
}

struct visit {
	struct rs_mounts *mounts;
	int group_fd;
	int root_fd;
	uint64_t mask;
};

static int visit_mark(void *context, const struct rs_mount_line *line)
{
	struct visit *visit = context;
	struct rs_mount *mount = add(visit->mounts, line);

	if (!mount)
		return -ENOMEM;
	mark_one(mount, visit->group_fd, visit->root_fd, visit->mask);
	return 0;
}

int rs_mounts_mark(struct rs_mounts *mounts, int group_fd, int root_fd, int mountinfo_fd,
		   uint64_t mask)
{
	struct visit visit = {mounts, group_fd, root_fd, mask};

	return each_line(mountinfo_fd, visit_mark, &visit);
}

static int visit_recheck(void *context, const struct rs_mount_line *line)
{
	struct visit *visit = context;
	struct rs_mount *mount = (struct rs_mount *)rs_mounts_by_id(visit->mounts, line->id);

	if (!mount) {
		mount = add(visit->mounts, line);
		if (!mount)
			return -ENOMEM;
		mount->state = LISTED(mount->fstype, pseudo) ? RS_MOUNT_EXCLUDED : RS_MOUNT_LATE;
		mount->reason = "appeared during the action";
	} else if (mount->state == RS_MOUNT_HIDDEN && is_visible(visit->root_fd, mount)) {
		mount->state = RS_MOUNT_LATE;
		mount->reason = "was uncovered during the action";
	}
	return 0;
}

/* proc_pid_mounts(5): POLLPRI after any mount or unmount since the file was opened. */
static bool unchanged(int mountinfo_fd)
{
	struct pollfd change = {.fd = mountinfo_fd, .events = POLLPRI};

	return poll(&change, 1, 0) == 0;
}

int rs_mounts_recheck(struct rs_mounts *mounts, int root_fd, int mountinfo_fd)
{
	struct visit visit = {mounts, -1, root_fd, 0};

	if (unchanged(mountinfo_fd))
		return 0;
	return each_line(mountinfo_fd, visit_recheck, &visit);
}

void rs_mounts_count(const struct rs_mounts *mounts, rs_counters *counters)
{
	uint32_t i;

	for (i = 0; i < mounts->count; i++) {
		switch (mounts->items[i].state) {
		case RS_MOUNT_EXCLUDED:
			counters->excluded_mounts++;
			break;
		case RS_MOUNT_FAILED:
		case RS_MOUNT_LATE:
			counters->unmarked_mounts++;
			break;
		case RS_MOUNT_MARKED:
		case RS_MOUNT_HIDDEN:
			break;
		}
	}
}

/* count u32, then of each: point, fstype, reason (u32 length, bytes), marked u8,
 * compared at access u8. */
void rs_mounts_encode(const struct rs_mounts *mounts, struct rs_buf *buf)
{
	uint32_t i;

	rs_buf_u32(buf, mounts->count);
	for (i = 0; i < mounts->count; i++) {
		const struct rs_mount *mount = &mounts->items[i];

		rs_buf_field(buf, mount->point, strlen(mount->point));
		rs_buf_field(buf, mount->fstype, strlen(mount->fstype));
		rs_buf_field(buf, mount->reason, strlen(mount->reason));
		rs_buf_u8(buf, mount->state == RS_MOUNT_MARKED);
		rs_buf_u8(buf, mount->compared);
	}
}

void rs_mounts_free(struct rs_mounts *mounts)
{
	free(mounts->items);
	rs_arena_free(&mounts->arena);
	*mounts = (struct rs_mounts){0};
}
