/*
 * access.c: a file that was changed between its open and a read or mmap is hashed again at that
 * access, while the reader waits.
 *
 * Owns: the changes of a scope, and what an ignore mark says of FAN_PRE_ACCESS. Must not: keep a
 * reader of an unchanged file waiting more than once, or answer. Hands off: both digests ->
 * stability.c, which judges at the end whose change it was. Privilege: CAP_SYS_ADMIN
 * (fanotify_mark).
 *
 * FAN_PRE_ACCESS (Linux 6.14; ext4, xfs, btrfs) fires at every read, write and mmap, which is far
 * too often. So once a file is hashed, an ignore mark on its inode switches that off; the kernel
 * drops the mark at the first write(2) or truncate by anybody, through any mount, and the next
 * access of the action fires. The mark is set first and the state looked at afterwards: a write
 * before the mark shows in the state, one after it drops the mark.
 *   - Files that were born during the action are nearly always its own products: never compared.
 *   - While anybody has the file open for writing the kernel keeps no such mark. After ACCESSES_MAX
 *     accesses, and when a change was found, the file is let go until the end of the action.
 *   - A store through a shared mapping drops no mark: the pass at the end finds it. Where the
 * mapping was there before the open, the kernel kept no mark either.
 * docs/decisions/0012-compare-at-access.md has the figures.
 */
#include "core.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define ACCESSES_MAX 64

/* What is known of the file that is accessed: a copy, taken under the mutex. */
struct known {
	uint32_t number;
	struct rs_stat stat;
	uint8_t digest[RS_SHA256_BYTES];
	bool guarded; /* its mark was set, and not taken away by once.c since */
};

int rs_probe_access(void)
{
	int group = fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC, O_RDONLY | O_CLOEXEC), own;
	int error = 0;

	if (group < 0)
		return -errno;
	own = memfd_create("rootseal-probe", MFD_CLOEXEC);
	if (own < 0 || fanotify_mark(group, FAN_MARK_ADD, FAN_PRE_ACCESS, own, NULL))
		error = -errno;
	if (own >= 0)
		close(own);
	close(group);
	/* Kernels that know it refuse it for this filesystem, others for its number. */
	return error == -EOPNOTSUPP ? 0 : error;
}

int rs_engine_set_compare(rs_engine *engine, int on)
{
	/* Other errors (no group free just now) say nothing of the kernel. */
	int error = on && rs_probe_access() == -EINVAL ? -EINVAL : 0;

	atomic_store(&rs_engine_switches(engine)->compares, on && !error);
	return error;
}

static void ignore(struct rs_scope *scope, int fd, unsigned more)
{
	const unsigned flags = FAN_MARK_ADD | FAN_MARK_IGNORE | FAN_MARK_EVICTABLE | more;

	/* Without memory for a mark there are more events; EEXIST: it was let go before. */
	if (fanotify_mark(scope->group_fd, flags, FAN_PRE_ACCESS, fd, NULL) && errno != EEXIST &&
	    errno != ENOMEM)
		RS_COUNT(scope, handler_errors);
}

/* No events of it any more, whatever is written to it. */
static void let_go(struct rs_scope *scope, int fd)
{
	rs_once_unmark(scope, fd); /* opens of it must not survive a write unseen */
	ignore(scope, fd, FAN_MARK_IGNORED_SURV_MODIFY);
	/* Nor one that another thread has just let go by; from now on the kernel refuses that. */
	rs_once_unmark(scope, fd);
}

static void set_guard(struct rs_scope *scope, uint32_t number, uint32_t epoch)
{
	struct rs_material *material;

	pthread_mutex_lock(&scope->mutex);
	material = rs_material_at(scope, number);
	if (!material->compared)
		material->guard = epoch + 1;
	pthread_mutex_unlock(&scope->mutex);
}

/* No events until it changes from *stat, the state in which its content is known. */
static bool ignore_while(struct rs_scope *scope, int fd, const struct rs_stat *stat)
{
	const unsigned flags = FAN_MARK_REMOVE | FAN_MARK_IGNORE | FAN_MARK_EVICTABLE;
	struct rs_stat now;

	ignore(scope, fd, 0);
	if (!rs_stat_fd(fd, &now) && rs_same_state(&now, stat))
		return true;
	if (fanotify_mark(scope->group_fd, flags, FAN_PRE_ACCESS, fd, NULL) && errno != ENOENT)
		RS_COUNT(scope, handler_errors);
	return false;
}

static void guard(struct rs_scope *scope, int fd, const struct rs_stat *stat, uint32_t number)
{
	uint32_t epoch = atomic_load(&scope->guard_epoch);

	if (ignore_while(scope, fd, stat))
		set_guard(scope, number, epoch);
}

/*
 * False: there is nothing to compare with (number is RS_INDEX_EMPTY), or no more. Counts the access
 * if there is one.
 */
static bool look_up(struct rs_scope *scope, const struct rs_stat *stat, bool access,
		    struct known *ret_known)
{
	struct rs_material *material;
	uint32_t number;
	bool found;

	pthread_mutex_lock(&scope->mutex);
	ret_known->number = number = rs_material_latest(scope, stat);
	material = number == RS_INDEX_EMPTY ? NULL : rs_material_at(scope, number);
	found = material && !material->young && !material->compared &&
		material->accesses < ACCESSES_MAX && material->stat.btime_ns == stat->btime_ns &&
		!rs_is_product(scope, stat);
	if (found) {
		ret_known->stat = material->stat;
		ret_known->guarded = material->guard == atomic_load(&scope->guard_epoch) + 1;
		memcpy(ret_known->digest, material->digest, RS_SHA256_BYTES);
		if (access && ret_known->guarded)
			material->accesses++;
	}
	pthread_mutex_unlock(&scope->mutex);
	return found;
}

static bool is_entering(struct rs_engine *engine, uint64_t inode_key)
{
	const struct rs_worker *workers = rs_engine_workers(engine);
	unsigned i;

	for (i = 0; i < 2 * rs_engine_shards(engine); i++)
		if (atomic_load(&workers[i].entering) == inode_key)
			return true;
	return false;
}

/* As look_up for an access; its opener may have gone on before another thread entered the file. */
static bool look_up_entered(struct rs_worker *worker, struct rs_scope *scope,
			    const struct rs_stat *stat, struct known *ret_known)
{
	bool entering, found;

	for (;;) {
		entering = is_entering(worker->engine, rs_inode_key(stat));
		found = look_up(scope, stat, true, ret_known);
		if (found || ret_known->number != RS_INDEX_EMPTY || !entering)
			return found;
		sched_yield();
	}
}

/* A file without a digest: the action's own, or one that was left out, which is counted. */
static void pass(struct rs_scope *scope, int fd, const struct rs_stat *stat,
		 const struct known *known)
{
	if (known->number == RS_INDEX_EMPTY && !rs_is_young(scope, stat))
		ignore_while(scope, fd, stat);
	else
		let_go(scope, fd);
}

static bool is_compared(const struct rs_scope *scope, const struct rs_stat *stat)
{
	const struct rs_mount *mount =
	    scope->compares ? rs_mounts_by_id(&scope->mounts, stat->mount_id) : NULL;

	return mount && mount->compared;
}

void rs_access_opened(struct rs_scope *scope, int fd, const struct rs_stat *stat)
{
	struct known known;

	if (!is_compared(scope, stat))
		return;
	if (!look_up(scope, stat, false, &known))
		pass(scope, fd, stat, &known);
	else if (!known.guarded || !rs_same_state(&known.stat, stat))
		guard(scope, fd, stat, known.number);
}

/* `later` is NULL where the content could not be told. */
static void add_change(struct rs_scope *scope, uint32_t number, const uint8_t *later)
{
	struct rs_material *material;
	struct rs_change *change;

	pthread_mutex_lock(&scope->mutex);
	material = rs_material_at(scope, number);
	if (!material->compared && rs_grow((void **)&scope->changes, &scope->changes_capacity,
					   scope->changes_count + 1, sizeof(*scope->changes))) {
		RS_COUNT(scope, record_bytes_cap_hit);
	} else if (!material->compared) {
		change = &scope->changes[scope->changes_count++];
		*change = (struct rs_change){.readable = later != NULL};
		if (later)
			memcpy(change->digest, later, RS_SHA256_BYTES);
		material->compared = true;
		material->guard = scope->changes_count;
	}
	pthread_mutex_unlock(&scope->mutex);
}

const struct rs_change *rs_access_change(const struct rs_scope *scope,
					 const struct rs_material *material)
{
	return material->compared ? &scope->changes[material->guard - 1] : NULL;
}

bool rs_access_event(struct rs_worker *worker, struct rs_scope *scope, const struct rs_event *event,
		     const struct rs_stat *stat)
{
	enum rs_digest_outcome outcome;
	struct rs_stat now = *stat;
	struct rs_content content;
	struct known known;
	bool trusted;

	RS_COUNT(scope, access_events);
	if (!look_up_entered(worker, scope, stat, &known)) {
		pass(scope, event->fd, stat, &known);
		return false;
	}
	if (rs_same_state(&known.stat, stat)) {
		guard(scope, event->fd, stat, known.number);
		return false;
	}
	outcome = rs_digest_of_fd(worker, scope, event->fd, &now, !worker->may_hand_off, &content,
				  &trusted);
	if (outcome == RS_DIGEST_LONG) {
		if (rs_engine_hand_off(worker->engine, scope, event))
			return true;
		outcome = rs_digest_of_fd(worker, scope, event->fd, &now, true, &content, &trusted);
	}
	if (outcome == RS_DIGEST_OK && !memcmp(content.digest, known.digest, RS_SHA256_BYTES)) {
		guard(scope, event->fd, &now, known.number);
		return false;
	}
	if (outcome != RS_DIGEST_LEFT_OUT) /* that was counted where it was given up */
		add_change(scope, known.number, outcome == RS_DIGEST_OK ? content.digest : NULL);
	let_go(scope, event->fd);
	return false;
}
