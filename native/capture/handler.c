/*
 * handler.c: one fanotify event -> digest and path -> record.c, while the opener is held.
 *
 * Owns: the event's descriptor from read(2) until it is closed here, exactly once. Must not: open a
 * path, hold a lock across a system call, deny, or return without an answer to a permission event.
 * Hands off: what was seen -> record.c; long hashes -> engine.c's heavy threads (the descriptor
 * too). Privilege: that of the event descriptor; CAP_LEASE for files of others; CAP_SYS_PTRACE for
 * /proc of others.
 */
#include "core.h"
#include "verity.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BATCH_BYTES_MAX (64ULL * 1024)
#define DELETED		" (deleted)"

static void answer(struct rs_scope *scope, const struct rs_event *event)
{
	struct fanotify_response response = {.fd = event->fd, .response = FAN_ALLOW};
	ssize_t wrote;

	do {
		wrote = write(scope->group_fd, &response, sizeof(response));
	} while (wrote < 0 && errno == EINTR);
	/* ENOENT: the opener was killed while it waited, and with it the question. */
	if (wrote < 0 && errno != ENOENT)
		RS_COUNT(scope, handler_errors);
}

/* What became of an event; its descriptor is open still unless it was handed over. */
enum handled { HANDLED, ANSWERED, HANDED_OVER };

/*
 * Each answer wakes every opener that waits for the group, and all but one go to sleep again. So
 * events that were read together are answered together: then those it wakes have their own answer
 * by the time they run.
 */
static void answer_held(struct rs_worker *worker, struct rs_scope *scope)
{
	unsigned i;

	for (i = 0; i < worker->held_count; i++)
		if (worker->held[i].mask & RS_ANSWER_MASK)
			answer(scope, &worker->held[i]);
	for (i = 0; i < worker->held_count; i++)
		close(worker->held[i].fd);
	worker->held_count = 0;
}

static void done(struct rs_worker *worker, struct rs_scope *scope, const struct rs_event *event,
		 enum handled handled, bool remote)
{
	if (handled == HANDED_OVER)
		return;
	if (remote && event->mask & RS_ANSWER_MASK) {
		answer_held(worker, scope); /* the server may be among them */
		rs_remote_let_go(worker, scope, event->fd);
	} else if (remote) {
		close(event->fd);
		return;
	}
	if (worker->batch) {
		worker->held[worker->held_count++] = *event;
		return;
	}
	if (handled != ANSWERED && event->mask & RS_ANSWER_MASK)
		answer(scope, event);
	close(event->fd);
}

static void put_decimal(char *out, unsigned value)
{
	char digits[12];
	size_t n = 0, i;

	do {
		digits[n++] = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	for (i = 0; i < n; i++)
		out[i] = digits[n - 1 - i];
	out[n] = 0;
}

int rs_path_of_fd(struct rs_worker *worker, const struct rs_scope *scope, int fd)
{
	size_t cut = strlen(scope->ns_prefix);
	ssize_t length;
	char name[12];

	put_decimal(name, (unsigned)fd);
	length = readlinkat(worker->fds_fd, name, worker->path, PATH_MAX);
	if (length < 0)
		return -errno;
	if (length >= PATH_MAX)
		return -ENAMETOOLONG;
	worker->path[length] = 0;
	if (length == 0 || worker->path[0] != '/')
		return -ENOENT; /* not reachable by any path */
	if (cut && !strncmp(worker->path, scope->ns_prefix, cut) && worker->path[cut] == '/') {
		length -= (ssize_t)cut;
		memmove(worker->path, worker->path + cut, (size_t)length + 1);
	}
	return (int)length;
}

/* The kernel marks the path of a removed name; tell it from a file that is really called so. */
static int strip_deleted(struct rs_worker *worker, const struct rs_scope *scope, int length,
			 const struct rs_stat *stat, bool *ret_unlinked)
{
	const int mark = sizeof(DELETED) - 1;
	struct rs_stat named;

	*ret_unlinked = false;
	if (length <= mark || strcmp(worker->path + length - mark, DELETED))
		return length;
	if (stat->nlink && !rs_stat_at(scope->ns_root_fd, worker->path + 1, &named) &&
	    rs_same_inode(&named, stat))
		return length;
	*ret_unlinked = true;
	length -= mark;
	worker->path[length] = 0;
	return length;
}

static bool reliable_times(const struct rs_scope *scope, const struct rs_stat *stat)
{
	const struct rs_mount *mount = rs_mounts_by_id(&scope->mounts, stat->mount_id);

	return mount && mount->reliable_times;
}

/* On these filesystems: has the next change another ctime, because this one was looked at? */
static bool tells_changes_apart(struct rs_worker *worker, const struct rs_stat *stat)
{
	return rs_engine_multigrain(worker->engine) && !rs_has_coarse_times(stat);
}

/* Could a change after `before_ns`, which is before the hash, leave the state as it is? */
static bool may_hide_change(struct rs_worker *worker, const struct rs_scope *scope,
			    const struct rs_stat *stat, int64_t before_ns)
{
	int64_t coarse_ns = rs_has_coarse_times(stat) ? RS_COARSE_TIMES_NS : 0;

	return stat->ctime_ns + coarse_ns >= before_ns &&
	       !(reliable_times(scope, stat) && tells_changes_apart(worker, stat));
}

static bool over_hash_cap(struct rs_scope *scope, const struct rs_stat *stat)
{
	uint64_t hashed = atomic_load_explicit(&scope->bytes_hashed, memory_order_relaxed);

	return hashed > scope->limits.max_hashed_bytes ||
	       stat->size > scope->limits.max_hashed_bytes - hashed;
}

/* rs_hash_fd; what takes long is to be seen in rs_scope_progress meanwhile. */
static int hash_shown(struct rs_worker *worker, struct rs_scope *scope, int fd,
		      struct rs_stat *stat, struct rs_hash_result *result)
{
	uint64_t size = stat->size > RS_HEAVY_BYTES ? stat->size : 0;
	int error;

	__atomic_fetch_add(&scope->counters.long_bytes, size, __ATOMIC_RELAXED);
	__atomic_fetch_add(&scope->counters.long_hashes, size != 0, __ATOMIC_RELAXED);
	error = rs_hash_fd(&worker->hasher, fd, stat, &scope->bytes_hashed, result);
	__atomic_fetch_sub(&scope->counters.long_hashes, size != 0, __ATOMIC_RELAXED);
	__atomic_fetch_sub(&scope->counters.long_bytes, size, __ATOMIC_RELAXED);
	return error;
}

enum rs_digest_outcome rs_digest_of_fd(struct rs_worker *worker, struct rs_scope *scope, int fd,
				       struct rs_stat *stat, bool may_be_long,
				       struct rs_content *ret_content, bool *ret_trusted)
{
	struct rs_dcache *cache = rs_engine_cache(worker->engine);
	bool reliable = reliable_times(scope, stat), settled, quiet;
	struct rs_hash_result result;
	struct rs_stat before = *stat;

	*ret_trusted = reliable;
	if (reliable && rs_dcache_lookup(cache, stat, ret_content)) {
		RS_COUNT(scope, digest_cache_hits);
		return RS_DIGEST_OK;
	}
	if (!may_be_long && stat->size > RS_HEAVY_BYTES)
		return RS_DIGEST_LONG;
	if (over_hash_cap(scope, stat)) {
		RS_COUNT(scope, hashed_bytes_cap_hit);
		return RS_DIGEST_LEFT_OUT;
	}
	/* What takes long, or waits for a server that may be among them, is not for them to wait
	 * for. */
	if (!reliable || stat->size > BATCH_BYTES_MAX)
		answer_held(worker, scope);
	settled = rs_settled(stat, rs_coarse_now_ns());
	quiet = reliable && rs_no_writer(fd);
	if (hash_shown(worker, scope, fd, stat, &result)) {
		RS_COUNT(scope, fallback_hash_failures);
		return RS_DIGEST_LEFT_OUT;
	}
	if (result.partial_reads)
		RS_COUNT(scope, partial_read_fallbacks);
	*ret_content = result.content;
	/* Settled, a later writer shows in ctime (dcache.c); else only its open file does. */
	quiet = quiet && !result.unstable && rs_same_state(&before, stat) &&
		(settled || rs_no_writer(fd));
	*ret_trusted = quiet && (settled || tells_changes_apart(worker, stat));
	if (quiet && settled)
		rs_dcache_insert(cache, stat, &result.content);
	return result.unstable ? RS_DIGEST_UNSTABLE : RS_DIGEST_OK;
}

/* Leaves it in worker->handle; false where the filesystem has none. */
static bool handle_of(struct rs_worker *worker, int fd, int *ret_mount_id)
{
	struct file_handle *handle = (struct file_handle *)worker->handle;

	handle->handle_bytes = RS_HANDLE_BYTES_MAX;
	return !name_to_handle_at(fd, "", handle, ret_mount_id, AT_EMPTY_PATH);
}

/* By the handle, which holds a generation; else by the time of birth. Never a set's free place. */
static uint64_t identity_of(struct rs_worker *worker, const struct rs_stat *stat, bool has_handle)
{
	const struct file_handle *handle = (struct file_handle *)worker->handle;
	uint64_t identity = rs_hash_u64(stat->ino, stat->dev);

	if (has_handle)
		identity = rs_hash_bytes(handle->f_handle, handle->handle_bytes, identity);
	else
		identity = rs_hash_u64(identity, (uint64_t)stat->btime_ns);
	return identity >> 1;
}

uint64_t rs_identity_of_fd(struct rs_worker *worker, int fd, const struct rs_stat *stat)
{
	int mount_id;

	return identity_of(worker, stat, handle_of(worker, fd, &mount_id));
}

/* A file in the root that the action made and closed before: not a material, so not hashed here. */
static bool is_intermediate(struct rs_scope *scope, const struct rs_seen *seen)
{
	bool known;

	if (seen->exec || !seen->young || !rs_in_root(scope, seen->path, seen->path_length))
		return false;
	pthread_mutex_lock(&scope->mutex);
	known = rs_is_intermediate(scope, seen->identity);
	pthread_mutex_unlock(&scope->mutex);
	return known;
}

/*
 * All is known of the file: enter it. Its opener need not wait for that, unless the order of events
 * matters (an exec, or a file that the action made), or that of closing it: remote.c.
 */
static enum handled record_open(struct rs_worker *worker, struct rs_scope *scope,
				const struct rs_event *event, const struct rs_seen *seen)
{
	bool may_go_on = !worker->batch && !seen->exec && !seen->young &&
			 !(scope->remote && rs_served_by_others(scope, &seen->stat));
	uint32_t again;

	if (may_go_on) {
		atomic_store(&worker->entering, rs_inode_key(&seen->stat));
		answer(scope, event);
	}
	again = rs_record_open(scope, seen);
	if (may_go_on)
		atomic_store(&worker->entering, 0);
	if (again != RS_INDEX_EMPTY)
		rs_once_mark(worker, scope, event->fd, seen, again);
	return may_go_on ? ANSWERED : HANDLED;
}

static enum handled handle_open(struct rs_worker *worker, struct rs_scope *scope,
				const struct rs_event *event, const struct rs_stat *stat)
{
	struct rs_seen seen = {
	    .stat = *stat,
	    .pid = event->pid,
	    .exec = !!(event->mask & FAN_OPEN_EXEC_PERM),
	};
	const int64_t before_ns = rs_coarse_now_ns();
	struct rs_content content = {0};
	enum rs_digest_outcome outcome;
	int length;

	rs_dcache_expect(rs_engine_cache(worker->engine), stat);
	seen.turn = rs_once_event(scope, event);
	length = rs_path_of_fd(worker, scope, event->fd);
	if (length < 0) {
		RS_COUNT(scope, unhashed_opens_total);
		return HANDLED;
	}
	seen.path = worker->path;
	seen.path_length = (uint32_t)strip_deleted(worker, scope, length, stat, &seen.unlinked);
	rs_record_process(worker, scope, event->pid, seen.exec, stat);
	seen.young = rs_is_young(scope, stat);
	if (seen.young)
		seen.identity = rs_identity_of_fd(worker, event->fd, stat);
	if (seen.young && stat->size == 0)
		rs_record_empty(scope, seen.identity);
	if (is_intermediate(scope, &seen))
		return HANDLED;
	if (rs_verity_lookup(rs_engine_verity(worker->engine), event->fd, stat, content.digest)) {
		seen.source = RS_SOURCE_FSVERITY;
		seen.code = rs_is_code(event->fd);
		seen.digest = content.digest;
		return record_open(worker, scope, event, &seen);
	}
	outcome = rs_digest_of_fd(worker, scope, event->fd, &seen.stat, !worker->may_hand_off,
				  &content, &seen.trusted);
	if (outcome == RS_DIGEST_LONG) {
		if (rs_engine_hand_off(worker->engine, scope, event))
			return HANDED_OVER;
		outcome = rs_digest_of_fd(worker, scope, event->fd, &seen.stat, true, &content,
					  &seen.trusted);
	}
	seen.unstable = outcome == RS_DIGEST_UNSTABLE;
	seen.unsure = may_hide_change(worker, scope, &seen.stat, before_ns);
	seen.digest = outcome == RS_DIGEST_LEFT_OUT ? NULL : content.digest;
	seen.code = content.code;
	return record_open(worker, scope, event, &seen);
}

static void handle_close(struct rs_worker *worker, struct rs_scope *scope,
			 const struct rs_event *event, const struct rs_stat *stat)
{
	struct file_handle *handle = (struct file_handle *)worker->handle;
	struct rs_closed closed = {.stat = *stat};
	enum rs_digest_outcome outcome;
	struct rs_content content;
	int length, mount_id, closes;
	struct rs_stat now = *stat;
	bool trusted, unlinked, worth;

	rs_once_unmark(scope, event->fd); /* stores through a mapping do not */
	length = rs_path_of_fd(worker, scope, event->fd);
	if (length < 0) {
		RS_COUNT(scope, handler_errors);
		return;
	}
	closed.path = worker->path;
	closed.path_length = (uint32_t)strip_deleted(worker, scope, length, stat, &unlinked);
	if (handle_of(worker, event->fd, &mount_id)) {
		closed.handle = handle;
		closed.mount_id = (uint64_t)mount_id;
	}
	closed.identity = identity_of(worker, stat, closed.handle != NULL);
	closes = rs_record_close(scope, &closed, &worth);
	if (closes < 0)
		RS_COUNT(scope, handler_errors);
	/*
	 * What the action left, before somebody else may come to it: see foreign.c. If another
	 * descriptor of the action is open still, its close is yet to come and to be hashed.
	 */
	if (closes < 0 || !worth || stat->nlink == 0 || rs_served_by_others(scope, stat))
		return;
	outcome = rs_digest_of_fd(worker, scope, event->fd, &now, !worker->may_hand_off, &content,
				  &trusted);
	if (outcome == RS_DIGEST_OK)
		rs_record_close_digest(scope, &now, closes, content.digest, trusted);
}

void rs_handle_event(struct rs_worker *worker, struct rs_scope *scope, const struct rs_event *event)
{
	enum handled handled = HANDLED;
	bool remote = false;
	struct rs_stat stat;

	if (event->fd < 0) {
		if (event->mask & FAN_Q_OVERFLOW)
			RS_COUNT(scope, fanotify_queue_overflows);
		else /* no descriptor of its file; an opener has been refused */
			RS_COUNT(scope, handler_errors);
		return;
	}
	/* The core's own reading. It writes nothing: a file of the action whose last mapping it
	 * lets go (as a reader of /proc) is the action's. */
	if (event->pid == worker->own_pid && event->mask & RS_PERM_MASK) {
		done(worker, scope, event, handled, remote);
		return;
	}
	if (rs_stat_fd(event->fd, &stat)) {
		RS_COUNT(scope, handler_errors);
		done(worker, scope, event, handled, scope->remote);
		return;
	}
	remote = scope->remote && rs_served_by_others(scope, &stat);
	if (!S_ISREG(stat.mode)) {
		if (S_ISBLK(stat.mode) && event->mask & RS_PERM_MASK)
			RS_COUNT(scope, block_device_opens); /* all files of its filesystem */
		RS_COUNT(scope,
			 special_files); /* reading a FIFO or device would strand its opener */
	} else if (event->mask & FAN_PRE_ACCESS) {
		handled = rs_access_event(worker, scope, event, &stat) ? HANDED_OVER : HANDLED;
	} else if (event->mask & RS_PERM_MASK) {
		handled = handle_open(worker, scope, event, &stat);
		if (handled != HANDED_OVER)
			rs_access_opened(scope, event->fd, &stat);
	} else if (event->mask & FAN_CLOSE_WRITE) {
		handle_close(worker, scope, event, &stat);
	}
	done(worker, scope, event, handled, remote);
}

static bool is_remote_close(const struct rs_scope *scope, const struct rs_event *event)
{
	struct rs_stat stat;

	return event->mask & FAN_CLOSE_WRITE && event->fd >= 0 && !rs_stat_fd(event->fd, &stat) &&
	       rs_served_by_others(scope, &stat);
}

/*
 * The events just read but those that *taken has a bit of; or only what remote.c wants early, which
 * then has its bit. 0, or -EBADMSG where one is not understood.
 */
static int handle_read(struct rs_worker *worker, struct rs_scope *scope, size_t got, bool early,
		       uint32_t *taken)
{
	bool waits = scope->remote;
	struct rs_event event;
	size_t offset = 0;
	uint32_t bit = 1;
	int parsed;

	_Static_assert(RS_EVENTS_PER_READ <= 32, "one bit for each event of a read");
	for (; (parsed = rs_event_parse(worker->events, got, &offset, &event)) > 0; bit <<= 1) {
		worker->batch = worker->batch || offset < got;
		if (*taken & bit || (early && !is_remote_close(scope, &event)))
			continue;
		*taken |= bit;
		RS_COUNT(scope, events);
		if (__atomic_load_n(&scope->closing, __ATOMIC_RELAXED) &&
		    event.pid != worker->own_pid)
			RS_COUNT(scope, late_events);
		if (waits && event.mask & RS_ANSWER_MASK && event.pid != worker->own_pid) {
			rs_remote_wait(worker, scope);
			waits = false;
		}
		rs_handle_event(worker, scope, &event);
	}
	return parsed;
}

int rs_handle_some(struct rs_worker *worker, struct rs_scope *scope)
{
	const unsigned most = rs_engine_descriptors(worker->engine)->events_per_read;
	const size_t wanted =
	    (scope->one_by_one ? 1 : most) * sizeof(struct fanotify_event_metadata);
	uint32_t taken = 0;
	int parsed;
	ssize_t got;

	if (scope->remote)
		rs_remote_begin(worker, scope);
	do {
		got = read(scope->group_fd, worker->events, wanted);
	} while (got < 0 && errno == EINTR);
	if (got < 0) {
		int error = errno;

		rs_remote_end(worker);
		if (error == EAGAIN)
			return 0;
		/* The kernel could not open the file for us and has refused the opener (EMFILE,
		 * ENXIO). */
		RS_COUNT(scope, handler_errors);
		return -error;
	}
	if (scope->remote) {
		handle_read(worker, scope, (size_t)got, true, &taken);
		rs_remote_end(worker);
	}
	parsed = handle_read(worker, scope, (size_t)got, false, &taken);
	answer_held(worker, scope);
	worker->batch = false;
	if (parsed < 0)
		RS_COUNT(scope, handler_errors);
	return __builtin_popcount(taken);
}
