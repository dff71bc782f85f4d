/*
 * once.c: a file that one process opens again and again is told of twice, then no more.
 *
 * Owns: the ignore marks of a scope's group. Must not: let an open go by that could give the action
 * another content or another name than one that is recorded, or do so uncounted. Hands off:
 * nothing. Privilege: CAP_SYS_ADMIN (fanotify_mark).
 *
 * The mark is set on the event's own descriptor. The state of the file must be that of the digest,
 * taken while its opener was held, also after the mark is set, and no other process may have opened
 * anything in between. Then
 *   - the kernel refuses it while anybody has the inode open for writing or mapped writable, and
 *     drops it at the first write(2), truncate or copy into the file, whoever does that;
 *   - a store through a mapping made later, a rename and a new hard link all set another ctime: at
 *     the end such a file is hashed again and counted as mutated or, where it may have been opened
 *     under another name, as unstable (finish.c);
 *   - a file with several names, in the root (where actions rename and link), made or written by
 *     the action, visible through two mounts, or where times prove nothing, is never marked;
 *   - a process that opens few files gets no marks (RS_HASH_ONCE_AFTER): they would save it nothing
 *     that it notices, and a link that somebody else makes meanwhile would make them a loss;
 *   - opens for execution are never ignored, and an event of another process than the last, or an
 *     exec, takes all marks away, so that each process has its own list of opened files.
 * docs/decisions/0008-hash-once.md tells what remains.
 */
#include "core.h"

#include <errno.h>

/* Evictable: a mark pins no inode in memory; where it goes, events come again. */
#define ONCE_FLAGS (FAN_MARK_IGNORE | FAN_MARK_EVICTABLE)

static void drop_all(struct rs_scope *scope)
{
	atomic_fetch_add(&scope->guard_epoch, 1); /* those of access.c go too, and come again */
	if (fanotify_mark(scope->group_fd, FAN_MARK_FLUSH, 0, AT_FDCWD, NULL))
		RS_COUNT(scope, handler_errors);
	rs_mounts_ignore_devices(&scope->mounts, scope->group_fd, scope->ns_root_fd);
}

uint32_t rs_once_event(struct rs_scope *scope, const struct rs_event *event)
{
	struct rs_once *once = &scope->once;
	bool exec = !!(event->mask & FAN_OPEN_EXEC_PERM);

	if (!exec && atomic_load_explicit(&once->pid, memory_order_relaxed) == event->pid) {
		atomic_fetch_add_explicit(&once->in_a_row, 1, memory_order_relaxed);
		return atomic_load(&once->turn);
	}
	atomic_store(&once->pid, event->pid);
	atomic_store(&once->in_a_row, 0);
	atomic_fetch_add(&once->turn, 1);
	if (atomic_exchange(&once->marks, 0))
		drop_all(scope);
	return atomic_load(&once->turn);
}

void rs_engine_set_hash_once(rs_engine *engine, uint32_t after)
{
	atomic_store(&rs_engine_switches(engine)->hash_once_after, after);
}

static bool worth_it(struct rs_worker *worker, struct rs_scope *scope, const struct rs_seen *seen)
{
	uint32_t after = atomic_load_explicit(&rs_engine_switches(worker->engine)->hash_once_after,
					      memory_order_relaxed);

	return after &&
	       atomic_load_explicit(&scope->once.in_a_row, memory_order_relaxed) >= after &&
	       !rs_in_root(scope, seen->path, seen->path_length) &&
	       !rs_mounts_aliased(&scope->mounts, seen->stat.mount_id, seen->path);
}

static void unmark(struct rs_scope *scope, int fd)
{
	/* ENOENT: none on this file, which is what is wanted. */
	if (fanotify_mark(scope->group_fd, FAN_MARK_REMOVE | ONCE_FLAGS, FAN_OPEN_PERM, fd, NULL) &&
	    errno != ENOENT)
		RS_COUNT(scope, handler_errors);
}

void rs_once_mark(struct rs_worker *worker, struct rs_scope *scope, int fd,
		  const struct rs_seen *seen, uint32_t material)
{
	struct rs_stat now;

	if (!worth_it(worker, scope, seen))
		return;
	atomic_fetch_add(&scope->once.marks, 1);
	rs_record_ignored(scope, material); /* before: what is ignored is known to be */
	if (fanotify_mark(scope->group_fd, FAN_MARK_ADD | ONCE_FLAGS, FAN_OPEN_PERM, fd, NULL)) {
		if (errno == EINVAL) /* before 6.0 */
			rs_engine_set_hash_once(worker->engine, 0);
		return; /* without memory for a mark there is an event more */
	}
	if (rs_stat_fd(fd, &now) || !rs_same_state(&now, &seen->stat) || now.nlink != 1 ||
	    atomic_load(&scope->once.turn) != seen->turn)
		unmark(scope, fd); /* also where all were dropped just before this one was set */
	else
		RS_COUNT(scope, hash_once_marks);
}

void rs_once_unmark(struct rs_scope *scope, int fd)
{
	if (atomic_load(&scope->once.marks))
		unmark(scope, fd);
}
