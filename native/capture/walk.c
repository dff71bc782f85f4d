/*
 * walk.c: the action's root before (names, inodes, times) and after (what no event told).
 *
 * Owns: nothing beyond a call. Must not: follow a symlink, except along a declared output path, or
 * leave the root's filesystem. Hands off: the snapshot -> record.c; leaves -> products.c.
 * Privilege: reading the action's directories and files.
 */
#include "core.h"

#include <dirent.h>
#include <errno.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define STATES_MAX  2048U    /* looking at more files takes longer than waiting for a tick */
#define TICK_NS_MAX 10000000 /* at 100 ticks a second */

struct walk {
	struct rs_worker *worker; /* NULL: snapshot */
	struct rs_scope *scope;
	struct rs_out *out;
	const uint8_t *files, *dirs;
	size_t files_length, dirs_length;
	bool all_declared;  /* the walk is of a declared output directory */
	bool clock_was_set; /* while the action ran, or it is not known */
	uint64_t entries;
	uint32_t stated;  /* snapshot: files whose state it has */
	int64_t fresh_ns; /* snapshot: the latest time of change that is not of a past tick */
	uint32_t length;  /* of path */
	char path[RS_LEAF_PATH_MAX + 1];
};

enum state { STATE_CONTENT, STATE_INODE }; /* what a change of content shows in; any change */

static uint64_t name_key(const struct walk *walk, uint64_t ino, uint64_t state)
{
	return rs_snapshot_key(walk->path, walk->length, ino, state);
}

/* Of a name, the inode behind it and its state. */
static uint64_t state_key(const struct walk *walk, const struct rs_stat *stat, enum state state)
{
	if (state == STATE_CONTENT)
		return name_key(walk, stat->ino, rs_hash_u64((uint64_t)stat->mtime_ns, stat->size));
	return name_key(walk, stat->ino, rs_hash_u64((uint64_t)stat->ctime_ns, UINT64_MAX));
}

static bool is_dot(const char *name)
{
	return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

static bool listed(const uint8_t *list, size_t list_length, const char *path, uint32_t length,
		   bool below)
{
	size_t at = 0;

	while (at < list_length) {
		const char *item = (const char *)list + at;
		size_t item_length = strnlen(item, list_length - at);

		if (item_length == length && !memcmp(item, path, length))
			return true;
		if (below &&
		    (item_length == 0 || (item_length < length && path[item_length] == '/' &&
					  !memcmp(item, path, item_length))))
			return true;
		at += item_length + 1;
	}
	return false;
}

static bool is_declared(const struct walk *walk)
{
	return walk->all_declared ||
	       listed(walk->files, walk->files_length, walk->path, walk->length, false) ||
	       listed(walk->dirs, walk->dirs_length, walk->path, walk->length, true);
}

/* By the clock: right if nobody set it, and if the tick was waited for in which the scope began. */
static bool is_late(const struct walk *walk, const struct rs_stat *stat)
{
	const struct rs_scope *scope = walk->scope;

	/* Set meanwhile? Then each file is a product as far as anybody knows. */
	if (walk->clock_was_set || stat->mtime_ns >= scope->changed_ns)
		return true;
	/* With more than one link the change of ctime may be somebody else's link to the same file.
	 */
	return stat->ctime_ns >= scope->changed_ns && stat->nlink == 1;
}

/* Times that are known from before are compared for equality, whatever the clock. */
static bool is_changed(const struct walk *walk, const struct rs_stat *stat)
{
	const struct rs_scope *scope = walk->scope;
	const struct rs_set *states = &scope->snapshot_states;

	if (rs_is_product(walk->scope, stat))
		return true;
	if (rs_set_has(states, state_key(walk, stat, STATE_CONTENT)))
		return stat->nlink == 1 && !rs_set_has(states, state_key(walk, stat, STATE_INODE));
	if (scope->snapshot_partial || rs_set_has(states, name_key(walk, stat->ino, 0)))
		return is_late(walk, stat);
	return true;
}

static int add_symlink(struct walk *walk, int dir_fd, const char *name, const struct rs_stat *stat)
{
	struct rs_leaf leaf = {
	    .path = (const uint8_t *)walk->path,
	    .path_length = walk->length,
	    .kind = RS_KIND_SYMLINK,
	    .source = RS_SOURCE_WALK,
	    .mode = stat->mode & 07777,
	};
	struct rs_sha *sha = &walk->worker->hasher.sha;
	ssize_t length = readlinkat(dir_fd, name, walk->worker->path, PATH_MAX);

	if (length < 0 || length >= PATH_MAX) {
		RS_COUNT(walk->scope, fallback_hash_failures);
		return 0;
	}
	leaf.size = (uint64_t)length;
	if (rs_sha_start(sha) || rs_sha_update(sha, walk->worker->path, (size_t)length) ||
	    rs_sha_finish(sha, leaf.digest))
		return -EIO;
	if (!walk->all_declared)
		rs_judge_symlink(walk->scope,
				 &(struct rs_left){stat, leaf.path, leaf.path_length,
						   rs_is_fresh(walk->scope, leaf.path,
							       leaf.path_length, stat->ino)});
	return rs_out_add(walk->out, &leaf, stat);
}

/* One entry of the walk at the end; walk->path is its path. */
static int visit_end(struct walk *walk, int dir_fd, const char *name, struct rs_stat *stat)
{
	if (!S_ISREG(stat->mode) && !S_ISLNK(stat->mode))
		return 0;
	if (!is_declared(walk) && !is_changed(walk, stat))
		return 0;
	if (rs_out_has(walk->out, (const uint8_t *)walk->path, walk->length))
		return 0;
	if (S_ISLNK(stat->mode))
		return add_symlink(walk, dir_fd, name, stat);
	return rs_out_file(walk->worker, walk->scope, walk->out, dir_fd, name,
			   (const uint8_t *)walk->path, walk->length, stat);
}

static int visit_start(struct walk *walk, int dir_fd, const struct dirent *entry)
{
	struct rs_scope *scope = walk->scope;
	int error = rs_set_add(&scope->snapshot_inodes, entry->d_ino);
	struct rs_stat stat;

	if (error < 0 || entry->d_type == DT_DIR)
		return error < 0 ? error : 0;
	error = rs_set_add(&scope->snapshot_states, name_key(walk, entry->d_ino, RS_STATE_NAMED));
	if (error < 0)
		return error;
	if (walk->stated == STATES_MAX) {
		error = rs_set_add(&scope->snapshot_states, name_key(walk, entry->d_ino, 0));
		return error < 0 ? error : 0;
	}
	if (rs_stat_at(dir_fd, entry->d_name, &stat))
		return 0; /* gone meanwhile */
	walk->stated++;
	if (stat.ctime_ns >= scope->started_tick_ns && stat.ctime_ns > walk->fresh_ns)
		walk->fresh_ns = stat.ctime_ns;
	error = rs_set_add(&scope->snapshot_states, state_key(walk, &stat, STATE_CONTENT));
	if (error >= 0)
		error = rs_set_add(&scope->snapshot_states, state_key(walk, &stat, STATE_INODE));
	return error < 0 ? error : 0;
}

static int walk_directory(struct walk *walk, int fd);

static int walk_below(struct walk *walk, int dir_fd, const char *name)
{
	int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct rs_stat stat;

	if (fd < 0) {
		/* Gone meanwhile is no loss; one that cannot be read may hide products. */
		if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP)
			RS_COUNT(walk->scope, handler_errors);
		return 0;
	}
	if (fd >= rs_engine_descriptors(walk->scope->engine)->ceiling) {
		/* So deep that the events of other actions would find no descriptor. */
		RS_COUNT(walk->scope, handler_errors);
		close(fd);
		return 0;
	}
	if (!walk->all_declared && (rs_stat_fd(fd, &stat) || stat.dev != walk->scope->root_dev)) {
		close(fd); /* a mount: its files are known from events */
		return 0;
	}
	return walk_directory(walk, fd);
}

static int walk_entry(struct walk *walk, int dir_fd, const struct dirent *entry)
{
	struct rs_stat stat;
	bool directory = entry->d_type == DT_DIR;
	int error;

	if (!walk->worker) {
		error = visit_start(walk, dir_fd, entry);
		if (error)
			return error;
	}
	if (entry->d_type == DT_UNKNOWN || (walk->worker && !directory)) {
		if (rs_stat_at(dir_fd, entry->d_name, &stat))
			return 0; /* gone meanwhile */
		directory = S_ISDIR(stat.mode);
		if (walk->worker && !directory)
			return visit_end(walk, dir_fd, entry->d_name, &stat);
	}
	return directory ? walk_below(walk, dir_fd, entry->d_name) : 0;
}

/* Takes over fd. */
static int walk_directory(struct walk *walk, int fd)
{
	DIR *stream = fdopendir(fd);
	uint32_t stem = walk->length;
	struct dirent *entry;
	int error = 0;

	if (!stream) {
		close(fd);
		return -ENOMEM;
	}
	for (errno = 0; !error && (entry = readdir(stream)); errno = 0) {
		size_t name = strlen(entry->d_name);

		if (is_dot(entry->d_name))
			continue;
		if (++walk->entries > RS_SNAPSHOT_MAX) {
			error = -E2BIG;
			break;
		}
		if (stem + 1 + name > RS_LEAF_PATH_MAX) {
			/* Deeper than any path can name: nothing there can be a leaf. */
			RS_COUNT(walk->scope, handler_errors);
			continue;
		}
		if (stem)
			walk->path[stem] = '/';
		memcpy(walk->path + stem + !!stem, entry->d_name, name + 1);
		walk->length = stem + !!stem + (uint32_t)name;
		error = walk_entry(walk, dirfd(stream), entry);
		walk->length = stem;
	}
	if (!error && errno) /* not read to its end: what is there may be a product */
		RS_COUNT(walk->scope, handler_errors);
	closedir(stream);
	return error;
}

static int walk_root(struct walk *walk)
{
	const int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
	int fd = openat(walk->scope->root_fd, ".", flags);

	if (fd < 0 && errno == ESTALE) /* what a server (NFS) says of it once it is removed */
		fd = openat(walk->scope->ns_root_fd, walk->scope->root + 1, flags | O_NOFOLLOW);
	if (fd < 0)
		return errno == ENOENT ? 0 : -errno; /* the action removed its own root */
	return walk_directory(walk, fd);
}

/*
 * Since Linux 6.13 these filesystems give a file whose times have been looked at another time with
 * the next change, also within one tick (FS_MGTIME). Others only with the next tick.
 */
static bool looking_makes_times_differ(int fd)
{
	static const uint32_t fine[] = {0xef53, 0x58465342, 0x9123683e, 0x01021994};
	/* ext4, xfs, btrfs, tmpfs */
	unsigned int major, minor;
	struct utsname name;
	struct statfs fs;
	size_t i;

	if (uname(&name) || sscanf(name.release, "%u.%u", &major, &minor) != 2 || major < 6 ||
	    (major == 6 && minor < 13) || fstatfs(fd, &fs))
		return false;
	for (i = 0; i < sizeof(fine) / sizeof(fine[0]); i++)
		if ((uint32_t)fs.f_type == fine[i])
			return true;
	return false;
}

/*
 * A file made in the present tick could change in it once more and show the same times. So the tick
 * has to pass; no longer, if the clock was set back and the file seems to be of the future: then
 * its times differ anyway.
 */
static void await_tick_after(int64_t time_ns)
{
	const struct timespec step = {.tv_nsec = 250000};
	int64_t begun_ns = rs_coarse_now_ns(), now_ns = begun_ns;

	while (now_ns >= begun_ns && now_ns <= time_ns && time_ns - now_ns <= TICK_NS_MAX) {
		nanosleep(&step, NULL);
		now_ns = rs_coarse_now_ns();
	}
}

/* For the files of which only the name is known. */
static void rely_on_the_clock(struct rs_scope *scope)
{
	const struct itimerspec never = {.it_value = {.tv_sec = 1LL << 33}};

	scope->clock_fd = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC);
	if (scope->clock_fd >= 0 &&
	    timerfd_settime(scope->clock_fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &never,
			    NULL)) {
		close(scope->clock_fd);
		scope->clock_fd = -1; /* then any of them may have changed */
	}
	await_tick_after(rs_now_ns());
	scope->changed_ns = rs_coarse_now_ns();
}

/* Once: being asked, the timer forgets. */
static bool clock_was_set(const struct rs_scope *scope)
{
	uint64_t expired;

	return read(scope->clock_fd, &expired, sizeof(expired)) >= 0 || errno != EAGAIN;
}

int rs_walk_snapshot(struct rs_scope *scope)
{
	struct walk walk = {.scope = scope};
	int error = walk_root(&walk);

	if (error == -E2BIG) {
		scope->snapshot_partial = true; /* birth times still tell most; see rs_is_young */
		error = 0;
	}
	if (error)
		return error;
	if (walk.stated == STATES_MAX)
		rely_on_the_clock(scope);
	else if (walk.fresh_ns && !looking_makes_times_differ(scope->root_fd))
		await_tick_after(walk.fresh_ns);
	return 0;
}

/* A declared output whose path leads through symlinks, resolved as the action would resolve it. */
static int open_declared(struct rs_scope *scope, const char *item, int flags)
{
	struct open_how how = {.flags = (uint64_t)(flags | O_CLOEXEC), .resolve = RESOLVE_IN_ROOT};
	char path[2 * PATH_MAX + 2];
	size_t root = strlen(scope->root), length = strlen(item);

	if (root + 1 + length >= sizeof(path))
		return -ENAMETOOLONG;
	memcpy(path, scope->root, root);
	path[root] = '/';
	memcpy(path + root + 1, item, length + 1);
	return (int)syscall(SYS_openat2, scope->ns_root_fd, path, &how, sizeof(how));
}

static bool set_path(struct walk *walk, const char *item)
{
	size_t length = strlen(item);

	if (length > RS_LEAF_PATH_MAX)
		return false;
	memcpy(walk->path, item, length + 1);
	walk->length = (uint32_t)length;
	return true;
}

static int declared_file(struct walk *walk, const char *item)
{
	struct rs_stat stat;
	int fd, error = 0;

	if (!*item || !set_path(walk, item) ||
	    rs_out_has(walk->out, (const uint8_t *)item, walk->length))
		return 0;
	fd = open_declared(walk->scope, item, O_RDONLY | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return 0; /* not made: the build tool notices */
	if (!rs_stat_fd(fd, &stat) && S_ISREG(stat.mode)) {
		struct rs_leaf leaf = {
		    .path = (const uint8_t *)item,
		    .path_length = walk->length,
		    .kind = RS_KIND_FILE,
		    .source = RS_SOURCE_WALK,
		    .mode = stat.mode & 07777,
		};
		enum rs_digest_outcome outcome;
		struct rs_content content;
		bool trusted;

		outcome =
		    rs_digest_of_fd(walk->worker, walk->scope, fd, &stat, true, &content, &trusted);
		if (outcome == RS_DIGEST_UNSTABLE)
			RS_COUNT(walk->scope, unstable_files);
		if (outcome != RS_DIGEST_LEFT_OUT) {
			struct rs_left left = {&stat, leaf.path, leaf.path_length, false};

			memcpy(leaf.digest, content.digest, RS_SHA256_BYTES);
			leaf.size = stat.size;
			rs_judge_product(walk->scope, &left,
					 rs_identity_of_fd(walk->worker, fd, &stat), &leaf, &stat);
			error = rs_out_add(walk->out, &leaf, &stat);
		}
	}
	close(fd);
	return error;
}

/* A real directory of the root's filesystem, reached without a symlink: walked already. */
static bool was_walked(const struct walk *walk, const char *item)
{
	struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
			       .resolve = RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH};
	int fd = (int)syscall(SYS_openat2, walk->scope->root_fd, item, &how, sizeof(how));
	struct rs_stat stat;
	bool walked;

	if (fd < 0)
		return false;
	walked = !rs_stat_fd(fd, &stat) && stat.dev == walk->scope->root_dev;
	close(fd);
	return walked;
}

static int declared_dir(struct walk *walk, const char *item)
{
	int fd;

	if (!*item || !set_path(walk, item) || was_walked(walk, item))
		return 0;
	fd = open_declared(walk->scope, item, O_RDONLY | O_DIRECTORY);
	return fd < 0 ? 0 : walk_directory(walk, fd);
}

static int each_item(struct walk *walk, const uint8_t *list, size_t length,
		     int (*visit)(struct walk *walk, const char *item))
{
	size_t at = 0;
	int error = 0;

	while (at < length && !error) {
		const char *item = (const char *)list + at;

		error = visit(walk, item);
		at += strnlen(item, length - at) + 1;
	}
	return error;
}

int rs_walk_products(struct rs_worker *worker, struct rs_scope *scope, struct rs_out *out,
		     const uint8_t *files, size_t files_length, const uint8_t *dirs,
		     size_t dirs_length)
{
	struct walk walk = {
	    .worker = worker,
	    .scope = scope,
	    .out = out,
	    .files = files,
	    .files_length = files_length,
	    .dirs = dirs,
	    .dirs_length = dirs_length,
	    .clock_was_set = clock_was_set(scope),
	};
	int error = walk_root(&walk);

	walk.all_declared = out->aside = true;
	walk.length = 0;
	if (!error)
		error = each_item(&walk, dirs, dirs_length, declared_dir);
	walk.length = 0;
	if (!error)
		error = each_item(&walk, files, files_length, declared_file);
	if (error == -E2BIG) {
		RS_COUNT(scope, record_bytes_cap_hit);
		error = 0;
	}
	return error;
}
