/*
 * record.c: what was seen -> the tables of the scope.
 *
 * Owns: materials, products, opens and processes of a scope, under its mutex. Must not: make system
 * calls under the mutex. Hands off: the tables -> finish.c. Privilege: none.
 */
#include "core.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define CLOSE_HASH_BYTES_MAX (64ULL * 1024 * 1024) /* of one inode, at all its closes */

bool rs_in_root(const struct rs_scope *scope, const char *path, uint32_t length)
{
	size_t root = strlen(scope->root);

	if (root == 1)
		return length > 1;
	return length > root + 1 && !memcmp(path, scope->root, root) && path[root] == '/';
}

const uint8_t *rs_leaf_path(const struct rs_scope *scope, const uint8_t *path, uint32_t length,
			    uint32_t *ret_length)
{
	uint32_t root = (uint32_t)strlen(scope->root);
	uint32_t cut = 0;

	if (rs_in_root(scope, (const char *)path, length))
		cut = root == 1 ? 1 : root + 1;
	*ret_length = length - cut;
	return path + cut;
}

bool rs_is_young(const struct rs_scope *scope, const struct rs_stat *stat)
{
	int64_t born = stat->btime_ns ? stat->btime_ns : stat->ctime_ns;

	/* A clock that was set back leaves files that seem to be born after the start, or to be
	 * born still: those were there before. */
	if (stat->btime_ns && born > scope->young_ns && born <= rs_now_ns())
		return true;
	/* In the tick of the start, or without birth times: the snapshot tells before from after.
	 */
	return born >= scope->started_tick_ns && stat->dev == scope->root_dev &&
	       !scope->snapshot_partial && !rs_set_has(&scope->snapshot_inodes, stat->ino);
}

static uint64_t inode_key(const struct rs_stat *stat)
{
	return rs_hash_u64(stat->ino, stat->dev);
}

uint64_t rs_inode_key(const struct rs_stat *stat)
{
	return inode_key(stat) | 1;
}

static uint64_t material_key(const struct rs_seen *seen)
{
	uint64_t first;

	memcpy(&first, seen->digest, sizeof(first));
	return rs_hash_bytes(seen->path, seen->path_length, inode_key(&seen->stat) ^ first);
}

static uint32_t material_find(struct rs_scope *scope, const struct rs_seen *seen, uint64_t key)
{
	struct rs_index_cursor cursor = rs_index_find(key);
	uint32_t value;

	while ((value = rs_index_next(&scope->by_material, &cursor)) != RS_INDEX_EMPTY) {
		const struct rs_material *material = rs_material_at(scope, value);

		if (rs_same_inode(&material->stat, &seen->stat) &&
		    material->path_length == seen->path_length &&
		    !memcmp(material->path, seen->path, seen->path_length) &&
		    !memcmp(material->digest, seen->digest, RS_SHA256_BYTES))
			return value;
	}
	return RS_INDEX_EMPTY;
}

/* Room for one more material. */
static int material_room(struct rs_scope *scope)
{
	uint32_t pages = scope->materials_count / RS_MATERIALS_PER_PAGE;
	struct rs_material *page;

	if (scope->materials_count % RS_MATERIALS_PER_PAGE || scope->pages > pages)
		return 0;
	if (rs_grow((void **)&scope->material_pages, &scope->pages_capacity, pages + 1,
		    sizeof(*scope->material_pages)))
		return -ENOMEM;
	page = rs_arena_alloc(&scope->material_arena, RS_MATERIALS_PER_PAGE * sizeof(*page));
	if (!page)
		return -ENOMEM;
	scope->material_pages[pages] = page;
	scope->pages = pages + 1;
	return 0;
}

/* The new material's number; RS_INDEX_EMPTY: a cap, counted. */
static uint32_t material_add(struct rs_scope *scope, const struct rs_seen *seen, uint64_t key)
{
	struct rs_material *material;
	const uint8_t *path;

	if (!seen->young &&
	    scope->materials_count - scope->young_count >= scope->limits.max_digests) {
		RS_COUNT(scope, fanotify_digests_cap_hit);
		return RS_INDEX_EMPTY;
	}
	path = rs_arena_copy(&scope->arena, seen->path, seen->path_length);
	if (!path || material_room(scope) ||
	    rs_index_add(&scope->by_material, key, scope->materials_count)) {
		RS_COUNT(scope, record_bytes_cap_hit);
		return RS_INDEX_EMPTY;
	}
	material = rs_material_at(scope, scope->materials_count);
	*material = (struct rs_material){
	    .stat = seen->stat,
	    .path = path,
	    .path_length = seen->path_length,
	    .young = seen->young,
	    .identity = seen->identity,
	    .was_unlinked = seen->unlinked,
	    .kind = seen->code ? RS_KIND_CODE : RS_KIND_FILE,
	    .unsure = seen->unsure,
	    .source = seen->source,
	};
	memcpy(material->digest, seen->digest, RS_SHA256_BYTES);
	scope->young_count += seen->young;
	return scope->materials_count++;
}

static void note_exec_file(struct rs_scope *scope, uint32_t number)
{
	struct rs_material *material = rs_material_at(scope, number);

	if (material->kind == RS_KIND_EXECUTABLE)
		return;
	material->kind = RS_KIND_EXECUTABLE;
	if (rs_index_add(&scope->by_exec, inode_key(&material->stat), number))
		RS_COUNT(scope, handler_errors);
}

static void set_comm(struct rs_proc *proc, const struct rs_seen *seen)
{
	const char *base = memrchr(seen->path, '/', seen->path_length);
	size_t length;

	base = base ? base + 1 : seen->path;
	length = (size_t)(seen->path + seen->path_length - base);
	if (length >= sizeof(proc->comm))
		length = sizeof(proc->comm) - 1;
	memset(proc->comm, 0, sizeof(proc->comm));
	memcpy(proc->comm, base, length);
}

/*
 * The first file of an exec is the program; its interpreter and loader follow as further exec
 * events until the new image opens something. What /proc said before is then of the old image.
 */
static void note_exec(struct rs_scope *scope, struct rs_proc *proc, const struct rs_seen *seen)
{
	proc->exec_dev = seen->stat.dev;
	proc->exec_ino = seen->stat.ino;
	if (proc->in_exec)
		return;
	proc->in_exec = proc->stale = true;
	proc->cmdline = NULL;
	proc->cmdline_length = 0;
	proc->exe_dev = proc->exe_ino = 0;
	proc->program = rs_arena_copy(&scope->arena, seen->path, seen->path_length);
	proc->program_length = proc->program ? seen->path_length : 0;
	if (!proc->program)
		RS_COUNT(scope, record_bytes_cap_hit);
	proc->has_program_digest = seen->digest != NULL;
	if (seen->digest)
		memcpy(proc->program_digest, seen->digest, RS_SHA256_BYTES);
	set_comm(proc, seen);
}

/* The place of the material of this inode's last open; its number, or RS_INDEX_EMPTY. */
static uint32_t latest_find(const struct rs_scope *scope, const struct rs_stat *stat,
			    struct rs_index_cursor *cursor)
{
	uint32_t value;

	*cursor = rs_index_find(inode_key(stat));
	while ((value = rs_index_next(&scope->by_inode, cursor)) != RS_INDEX_EMPTY)
		if (rs_same_inode(&rs_material_at(scope, value)->stat, stat))
			return value;
	return RS_INDEX_EMPTY;
}

uint32_t rs_material_latest(const struct rs_scope *scope, const struct rs_stat *stat)
{
	struct rs_index_cursor cursor;

	return latest_find(scope, stat, &cursor);
}

static void note_latest(struct rs_scope *scope, uint32_t number)
{
	const struct rs_stat *stat = &rs_material_at(scope, number)->stat;
	struct rs_index_cursor cursor;

	if (latest_find(scope, stat, &cursor) != RS_INDEX_EMPTY)
		rs_index_replace(&scope->by_inode, &cursor, number);
	else if (rs_index_add(&scope->by_inode, inode_key(stat), number))
		RS_COUNT(scope, record_bytes_cap_hit);
}

void rs_record_ignored(struct rs_scope *scope, uint32_t material)
{
	pthread_mutex_lock(&scope->mutex);
	rs_material_at(scope, material)->ignored = true;
	pthread_mutex_unlock(&scope->mutex);
}

static bool may_be_ignored(struct rs_scope *scope, const struct rs_seen *seen, uint32_t number)
{
	const struct rs_material *material = rs_material_at(scope, number);

	return seen->trusted && !seen->exec && !seen->unlinked && seen->stat.nlink == 1 &&
	       !material->young && !material->unstable &&
	       rs_same_state(&material->stat, &seen->stat) && !rs_is_product(scope, &seen->stat);
}

/* The mutex is held. True if this process had opened this material before. */
static bool note_opener(struct rs_scope *scope, uint32_t process, uint32_t material)
{
	int added = -ENOMEM;

	if (scope->opens.count < RS_OPENS_MAX)
		added = rs_set_add(&scope->opens, (uint64_t)process << 32 | material);
	if (added < 0)
		RS_COUNT(scope, record_bytes_cap_hit);
	return added == 0;
}

uint32_t rs_record_open(struct rs_scope *scope, const struct rs_seen *seen)
{
	uint32_t material = RS_INDEX_EMPTY, process;
	bool again = false;
	struct rs_proc *proc;
	uint64_t key;

	pthread_mutex_lock(&scope->mutex);
	proc = rs_procs_find(&scope->procs, seen->pid, &process);
	if (proc && seen->exec)
		note_exec(scope, proc, seen);
	if (seen->digest) {
		scope->counters.fanotify_events_hashed++;
		key = material_key(seen);
		material = material_find(scope, seen, key);
		if (material == RS_INDEX_EMPTY)
			material = material_add(scope, seen, key);
		else if (seen->source != RS_SOURCE_FSVERITY) /* a number used again: the weaker */
			rs_material_at(scope, material)->source = seen->source;
	}
	if (material != RS_INDEX_EMPTY) {
		if (seen->unstable)
			rs_material_at(scope, material)->unstable = true;
		if (seen->exec)
			note_exec_file(scope, material);
		if (scope->compares)
			note_latest(scope, material);
		if (proc)
			again = note_opener(scope, process, material) &&
				may_be_ignored(scope, seen, material);
	}
	pthread_mutex_unlock(&scope->mutex);
	return again ? material : RS_INDEX_EMPTY;
}

enum need { NEED_NOTHING, NEED_IDENTITY, NEED_ALL };

/* What /proc must be asked for; the mutex is held. */
static enum need process_need(struct rs_proc *proc, bool exec, const struct rs_stat *stat)
{
	if (!proc)
		return NEED_ALL;
	if (exec)
		return NEED_IDENTITY; /* an exec is where a reused pid shows */
	if (proc->in_exec && proc->exec_ino == stat->ino && proc->exec_dev == stat->dev)
		return NEED_NOTHING; /* the plain open event that goes with the exec event */
	return proc->stale ? NEED_ALL : NEED_NOTHING;
}

static void process_enter(struct rs_scope *scope, int pid, bool exec, enum need need,
			  const struct rs_proc_info *info)
{
	struct rs_proc *proc;
	uint32_t index;

	proc = rs_procs_find(&scope->procs, pid, &index);
	if (proc && info->valid && proc->start_time && proc->start_time != info->start_time)
		proc = NULL; /* another process that has the pid now */
	if (!proc) {
		proc = rs_procs_add(&scope->procs, pid, &index);
		if (!proc) {
			RS_COUNT(scope, process_table_cap_hit);
			return;
		}
		need = NEED_ALL;
	}
	if (exec) {
		/* Before the exec is done /proc still shows the old image: only identity is of use.
		 */
		if (info->valid && !proc->start_time) {
			proc->parent = info->parent;
			proc->start_time = info->start_time;
			memcpy(proc->comm, info->comm, sizeof(proc->comm));
		}
		return;
	}
	proc->in_exec = false;
	if (need != NEED_ALL)
		return;
	proc->stale = false;
	if (rs_procs_update(&scope->procs, proc, info) || info->cmdline_cut)
		RS_COUNT(scope, record_bytes_cap_hit);
}

void rs_record_process(struct rs_worker *worker, struct rs_scope *scope, int pid, bool exec,
		       const struct rs_stat *stat)
{
	struct rs_proc *proc;
	enum need need;
	uint32_t index;

	pthread_mutex_lock(&scope->mutex);
	proc = rs_procs_find(&scope->procs, pid, &index);
	need = process_need(proc, exec, stat);
	pthread_mutex_unlock(&scope->mutex);
	if (need == NEED_NOTHING)
		return;
	rs_proc_read(pid, need == NEED_ALL && !exec, &worker->proc_info);
	pthread_mutex_lock(&scope->mutex);
	process_enter(scope, pid, exec, need, &worker->proc_info);
	pthread_mutex_unlock(&scope->mutex);
}

struct rs_product *rs_product_find(struct rs_scope *scope, const struct rs_stat *stat)
{
	struct rs_index_cursor cursor = rs_index_find(inode_key(stat));
	uint32_t value;

	while ((value = rs_index_next(&scope->by_product, &cursor)) != RS_INDEX_EMPTY)
		if (rs_same_inode(&scope->products[value].stat, stat))
			return &scope->products[value];
	return NULL;
}

bool rs_is_product(struct rs_scope *scope, const struct rs_stat *stat)
{
	return rs_product_find(scope, stat) != NULL;
}

bool rs_is_own(const struct rs_scope *scope, uint64_t identity)
{
	return rs_set_has(&scope->births, identity);
}

bool rs_is_intermediate(const struct rs_scope *scope, uint64_t identity)
{
	return rs_is_own(scope, identity) && rs_set_has(&scope->empties, identity);
}

void rs_record_empty(struct rs_scope *scope, uint64_t identity)
{
	pthread_mutex_lock(&scope->mutex);
	/* Not kept: then what the action made and reads again is listed as a material. */
	if (scope->empties.count < RS_OPENS_MAX)
		rs_set_add(&scope->empties, identity);
	pthread_mutex_unlock(&scope->mutex);
}

static struct rs_product *product_add(struct rs_scope *scope, const struct rs_stat *stat)
{
	/* A product is a leaf in the end: the cap of a leaf table bounds them. */
	if (scope->products_count >= scope->limits.max_record_bytes / 48 ||
	    rs_grow((void **)&scope->products, &scope->products_capacity, scope->products_count + 1,
		    sizeof(*scope->products)) ||
	    rs_index_add(&scope->by_product, inode_key(stat), scope->products_count))
		return NULL;
	scope->products[scope->products_count] = (struct rs_product){.stat = *stat};
	return &scope->products[scope->products_count++];
}

static int product_name(struct rs_scope *scope, struct rs_product *product,
			const struct rs_closed *closed)
{
	if (!product->path || product->path_length != closed->path_length ||
	    memcmp(product->path, closed->path, closed->path_length)) {
		const uint8_t *path =
		    rs_arena_copy(&scope->arena, closed->path, closed->path_length);

		if (!path)
			return -ENOMEM;
		product->path = path;
		product->path_length = closed->path_length;
	}
	if (!closed->handle)
		return 0;
	if (product->handle_length != closed->handle->handle_bytes ||
	    memcmp(product->handle, closed->handle->f_handle, product->handle_length)) {
		product->handle = rs_arena_copy(&scope->arena, closed->handle->f_handle,
						closed->handle->handle_bytes);
		product->handle_length = product->handle ? closed->handle->handle_bytes : 0;
		product->closes = 0; /* another file that has the inode number now */
	}
	product->handle_type = closed->handle->handle_type;
	product->handle_mount = closed->mount_id;
	return product->handle ? 0 : -ENOMEM;
}

int rs_record_close(struct rs_scope *scope, const struct rs_closed *closed, bool *ret_hash)
{
	struct rs_product *product;
	int result = -ENOMEM;

	*ret_hash = false;
	pthread_mutex_lock(&scope->mutex);
	product = rs_product_find(scope, &closed->stat);
	if (!product)
		product = product_add(scope, &closed->stat);
	/* Not kept: then what it made and reads again is listed as a material, which is no loss. */
	if (scope->births.count < RS_OPENS_MAX)
		rs_set_add(&scope->births, closed->identity);
	if (product && !product_name(scope, product, closed)) {
		product->hashed = product->trusted = false;
		product->stat = closed->stat;
		*ret_hash = closed->stat.size <= CLOSE_HASH_BYTES_MAX - product->hashed_bytes;
		if (*ret_hash)
			product->hashed_bytes += closed->stat.size;
		result = (int)++product->closes;
	}
	pthread_mutex_unlock(&scope->mutex);
	return result;
}

void rs_record_close_digest(struct rs_scope *scope, const struct rs_stat *stat, int closes,
			    const uint8_t *digest32, bool trusted)
{
	struct rs_product *product;

	pthread_mutex_lock(&scope->mutex);
	product = rs_product_find(scope, stat);
	if (product && product->closes == (uint32_t)closes) {
		product->stat = *stat;
		product->hashed = true;
		product->trusted = trusted;
		memcpy(product->digest, digest32, RS_SHA256_BYTES);
	}
	pthread_mutex_unlock(&scope->mutex);
}
