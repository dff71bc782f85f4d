/*
 * content_hash.c: one file after its open: find it again, prove that it has not changed, hash it.
 *
 * It is found by the path that the kernel had, in the action's root and through no symbolic link,
 * or by the descriptor of the process, if that still has it; device and inode must be those of the
 * event. Nothing is opened for reading before it is known to be that regular file.
 *
 * Owns: the descriptors that it opens. Must not: follow a name that the action could redirect.
 * Hand-off: line -> here -> content_table.c, content_exec.c. Privilege: as content.c.
 */
#include "content.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define NS_OF_SECOND 1000000000LL
#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

bool rs_content_is(const struct rs_content_job *job, const struct rs_stat *stat)
{
	return S_ISREG(stat->mode) && stat->ino == job->ino &&
	       (job->any_device || stat->dev == rs_trace_user_device(job->dev));
}

int rs_content_open(const struct rs_contents *contents, const char *path, bool links)
{
	struct open_how how = {
	    .flags = O_PATH | O_CLOEXEC,
	    .resolve = RESOLVE_IN_ROOT | (links ? RESOLVE_NO_MAGICLINKS : RESOLVE_NO_SYMLINKS),
	};
	int fd = (int)syscall(SYS_openat2, contents->root_fd, path, &how, sizeof(how));

	return fd < 0 ? -errno : fd;
}

/* O_PATH of the very file, or -ENOENT. */
static int find_again(const struct rs_content_job *job)
{
	struct rs_stat stat;
	char link[64];
	int fd = rs_content_open(job->contents, job->text, false);

	if (fd >= 0 && !rs_stat_fd(fd, &stat) && rs_content_is(job, &stat))
		return fd;
	if (fd >= 0)
		close(fd);
	if (job->fd >= 0)
		snprintf(link, sizeof(link), "/proc/%u/task/%u/fd/%d", job->tgid, job->tid,
			 job->fd);
	else
		snprintf(link, sizeof(link), "/proc/%u/exe", job->tgid);
	fd = open(link, O_PATH | O_CLOEXEC);
	if (fd >= 0 && !rs_stat_fd(fd, &stat) && rs_content_is(job, &stat))
		return fd;
	if (fd >= 0)
		close(fd);
	return -ENOENT;
}

/*
 * Whether what is there now was there at the open: a change after it shows what the clock of files
 * had shown before it, or later. Whole seconds are of a filesystem that has nothing finer.
 */
bool rs_content_is_unchanged(const struct rs_content_job *job, const struct rs_stat *stat)
{
	int64_t lag = stat->ctime_ns % NS_OF_SECOND ? 0 : 2 * NS_OF_SECOND;

	return stat->ctime_ns < job->settled_ns - lag;
}

/* The filesystems whose times let a digest be kept: see ../capture/dcache.c. */
static bool may_be_kept(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs))
		return false;
	switch ((uint32_t)fs.f_type) {
	case EXT4_SUPER_MAGIC:
	case XFS_SUPER_MAGIC:
	case BTRFS_SUPER_MAGIC:
		return true;
	default:
		return false;
	}
}

/* Hash, and keep the digest by the rules of ../capture/dcache.c. */
static int hash_to_keep(struct rs_content_worker *worker, struct rs_contents *contents, int fd,
			struct rs_stat *stat, struct rs_hash_result *ret_result)
{
	const struct rs_stat before = *stat;
	bool keep = rs_settled(stat, rs_coarse_now_ns()) && may_be_kept(fd) && rs_no_writer(fd);
	int error = rs_hash_fd(&worker->hasher, fd, stat, &contents->hashed_bytes, ret_result);

	if (!error && keep && !ret_result->unstable && rs_same_state(&before, stat))
		rs_dcache_insert(rs_content_pool_cache(worker->pool), stat, &ret_result->content);
	return error;
}

/* A digest that another action took of this very state. */
static bool is_kept(struct rs_content_worker *worker, struct rs_contents *contents, int fd,
		    const struct rs_stat *stat, struct rs_content *ret_content)
{
	if (!may_be_kept(fd) ||
	    !rs_dcache_lookup(rs_content_pool_cache(worker->pool), stat, ret_content))
		return false;
	atomic_fetch_add(&contents->cache_hits, 1);
	return true;
}

static enum rs_content_reason hash(struct rs_content_worker *worker,
				   const struct rs_content_job *job, int fd, struct rs_stat *stat,
				   struct rs_content *ret_content)
{
	struct rs_contents *contents = job->contents;
	struct rs_hash_result result;
	char link[32];
	int copy, error;

	if (contents->hashed_bytes + stat->size > contents->max_hashed_bytes)
		return RS_CONTENT_BYTES_CAP;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	copy = open(link, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (copy < 0)
		return RS_CONTENT_UNREADABLE;
	error = hash_to_keep(worker, contents, copy, stat, &result);
	close(copy);
	if (error)
		return RS_CONTENT_UNREADABLE;
	if (result.unstable || !rs_content_is_unchanged(job, stat))
		return RS_CONTENT_CHANGED;
	*ret_content = result.content;
	return 0;
}

void rs_content_take(struct rs_content_worker *worker, const struct rs_content_job *job, int fd,
		     const char *path)
{
	enum rs_content_reason reason = 0;
	struct rs_content content;
	struct rs_stat stat;

	if (rs_stat_fd(fd, &stat))
		reason = RS_CONTENT_UNREADABLE;
	else if (!rs_content_is_unchanged(job, &stat))
		reason = RS_CONTENT_CHANGED;
	else if (!rs_contents_known(job->contents, &stat, &content) &&
		 !is_kept(worker, job->contents, fd, &stat, &content))
		reason = hash(worker, job, fd, &stat, &content);
	if (reason)
		rs_contents_fail(job->contents, job, reason);
	else
		rs_contents_add(job->contents, job, &stat, &content, path);
}

void rs_content_run(struct rs_content_worker *worker, const struct rs_content_job *job)
{
	int fd;

	if (job->contents->dropped)
		return;
	fd = find_again(job);
	if (fd < 0 && !job->exempt)
		rs_contents_fail(job->contents, job, RS_CONTENT_GONE);
	else if (!job->exempt)
		rs_content_take(worker, job, fd, job->text);
	if (job->access & 4)
		rs_content_exec(worker, job, fd);
	if (fd >= 0)
		close(fd);
}
