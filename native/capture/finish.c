/*
 * finish.c: the end of a scope: drain, anchor, build the tables.
 *
 * Owns: struct rs_result. Must not: leave an event unread, or build a table before the last one is
 * recorded. Hands off: the observation -> Python. Privilege: as scope.c.
 */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DRAIN_ERRORS_MAX 1000

struct rs_result {
	rs_observation observation;
	struct rs_buf materials, products, opens, processes, mounts, files;
	struct rs_mutations mutations;
};

/*
 * Read until nothing is queued and nobody handles anything. The action's processes are gone, so no
 * new event can come; an event that a shard had read before our last read is waited for.
 */
static void drain(struct rs_worker *worker, struct rs_scope *scope)
{
	int got, errors = 0;

	do {
		while ((got = rs_handle_some(worker, scope)) != 0 && errors < DRAIN_ERRORS_MAX)
			errors += got < 0; /* each is counted as a loss where it happens */
		pthread_mutex_lock(&scope->mutex);
		while (scope->in_flight)
			pthread_cond_wait(&scope->idle, &scope->mutex);
		pthread_mutex_unlock(&scope->mutex);
		got = rs_handle_some(worker, scope);
	} while (got != 0 && errors < DRAIN_ERRORS_MAX);
}

static void stop_events(struct rs_worker *worker, struct rs_scope *scope)
{
	drain(worker, scope);
	pthread_mutex_lock(&scope->mutex);
	__atomic_store_n(&scope->closing, true, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&scope->mutex);
	/* Without marks our own reading of products makes no events, and strays are no longer held.
	 */
	if (fanotify_mark(scope->group_fd, FAN_MARK_FLUSH | FAN_MARK_MOUNT, 0, AT_FDCWD, NULL))
		RS_COUNT(scope, handler_errors);
	drain(worker, scope);
	rs_engine_forget(scope->engine, scope);
	drain(worker, scope);
}

/* Is it a file that the action itself made? Then reading it tells nothing about what went in. */
static bool is_intermediate(struct rs_scope *scope, const struct rs_material *material)
{
	return material->young && rs_is_intermediate(scope, material->identity);
}

static uint64_t witness_key(uint64_t dev, uint64_t ino)
{
	return rs_hash_u64(ino, dev) >> 1; /* never the set's mark of a free place */
}

int rs_scope_witness(rs_scope *scope, const uint64_t *pairs, size_t count)
{
	size_t i;

	scope->has_witness = true;
	for (i = 0; i < count; i++)
		if (rs_set_add(&scope->witness, witness_key(pairs[2 * i], pairs[2 * i + 1])) < 0)
			return -ENOMEM;
	return 0;
}

static uint8_t source_of(const struct rs_scope *scope, const struct rs_material *material)
{
	if (!scope->has_witness ||
	    rs_set_has(&scope->witness, witness_key(material->stat.dev, material->stat.ino)) ||
	    rs_set_has(&scope->witness, witness_key(0, material->stat.ino)))
		return material->source;
	return RS_SOURCE_UNWITNESSED;
}

static bool on_remote_mount(const struct rs_scope *scope, const struct rs_material *material)
{
	const struct rs_mount *mount = rs_mounts_by_id(&scope->mounts, material->stat.mount_id);

	return mount && mount->remote;
}

/* *ret_leaves: one per material that stays; origin is the material's number. */
static int collect_materials(struct rs_worker *worker, struct rs_scope *scope,
			     struct rs_mutations *mutations, struct rs_leaf **ret_leaves,
			     uint32_t *ret_count)
{
	struct rs_leaf *leaves = calloc(scope->materials_count + 1, sizeof(*leaves));
	uint32_t i, count = 0;

	if (!leaves)
		return -ENOMEM;
	for (i = 0; i < scope->materials_count; i++) {
		const struct rs_material *material = rs_material_at(scope, i);
		struct rs_leaf *leaf = &leaves[count];

		if (is_intermediate(scope, material))
			continue;
		if (material->unstable)
			RS_COUNT(scope, unstable_files);
		if (count >= scope->limits.max_digests) {
			RS_COUNT(scope, fanotify_digests_cap_hit);
			continue;
		}
		leaf->path =
		    rs_leaf_path(scope, material->path, material->path_length, &leaf->path_length);
		if (leaf->path_length == 0 || leaf->path_length > RS_LEAF_PATH_MAX) {
			RS_COUNT(scope, handler_errors);
			continue;
		}
		leaf->mode = material->stat.mode & 07777;
		leaf->size = material->stat.size;
		leaf->kind = material->kind;
		if (on_remote_mount(scope, material))
			RS_COUNT(scope, remote_files);
		leaf->source = source_of(scope, material);
		leaf->origin = i;
		memcpy(leaf->digest, material->digest, RS_SHA256_BYTES);
		count++;
		rs_stability_check(worker, scope, material, mutations);
	}
	*ret_leaves = leaves;
	*ret_count = count;
	return 0;
}

static int encode_table(struct rs_worker *worker, struct rs_scope *scope, uint8_t domain,
			struct rs_leaf *leaves, uint32_t count, uint32_t *ret_index,
			struct rs_table_out *ret_table)
{
	int error;

	rs_leaves_sort(leaves, count);
	error = rs_leaves_encode(&worker->hasher.sha, domain, leaves, count,
				 scope->limits.max_record_bytes, ret_index, ret_table);
	if (!error && ret_table->left_out)
		scope->counters.record_bytes_cap_hit += ret_table->left_out;
	return error;
}

static int encode_materials(struct rs_worker *worker, struct rs_scope *scope,
			    struct rs_result *result, uint32_t *leaf_of)
{
	struct rs_table_out table = {0};
	struct rs_leaf *leaves = NULL;
	uint32_t *index, count, i;
	int error;

	error = collect_materials(worker, scope, &result->mutations, &leaves, &count);
	if (error)
		return error;
	index = calloc(count + 1, sizeof(*index));
	error = index ? encode_table(worker, scope, 'M', leaves, count, index, &table) : -ENOMEM;
	for (i = 0; i < scope->materials_count; i++)
		leaf_of[i] = UINT32_MAX;
	for (i = 0; i < count && !error; i++) {
		leaf_of[leaves[i].origin] = index[i];
		result->observation.unsealed += leaves[i].source != RS_SOURCE_FSVERITY;
		/* Of equal leaves, and of those left out, none counts twice: they share an index.
		 */
		if (index[i] != UINT32_MAX && leaves[i].source == RS_SOURCE_UNWITNESSED &&
		    (i == 0 || index[i] != index[i - 1]))
			result->observation.unwitnessed++;
	}
	free(index);
	free(leaves);
	if (error)
		return error;
	result->materials = table.raw;
	memcpy(result->observation.materials_root, table.root, RS_SHA256_BYTES);
	result->observation.materials_count = table.count;
	return 0;
}

static int encode_products(struct rs_worker *worker, struct rs_scope *scope,
			   struct rs_result *result, const uint8_t *files, size_t files_length,
			   const uint8_t *dirs, size_t dirs_length)
{
	struct rs_table_out table = {0};
	struct rs_out out = {0};
	int error;

	error = rs_products_collect(worker, scope, &out);
	if (!error)
		error =
		    rs_walk_products(worker, scope, &out, files, files_length, dirs, dirs_length);
	rs_products_count_nameless(scope, &out);
	if (!error)
		error = encode_table(worker, scope, 'P', out.leaves, out.count, NULL, &table);
	rs_out_free(&out);
	if (error)
		return error;
	result->products = table.raw;
	memcpy(result->observation.products_root, table.root, RS_SHA256_BYTES);
	result->observation.products_count = table.count;
	return 0;
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Pairs (process, leaf), sorted, without those whose material has no leaf. */
static uint64_t *sorted_opens(const struct rs_scope *scope, const uint32_t *leaf_of,
			      size_t *ret_count)
{
	uint64_t *pairs = calloc(scope->opens.count + 1, sizeof(*pairs));
	size_t i, count = 0;

	for (i = 0; pairs && scope->opens.keys && i <= scope->opens.mask; i++) {
		uint64_t key = scope->opens.keys[i];

		if (key != UINT64_MAX && leaf_of[(uint32_t)key] != UINT32_MAX)
			pairs[count++] = (key >> 32) << 32 | leaf_of[(uint32_t)key];
	}
	if (pairs)
		qsort(pairs, count, sizeof(*pairs), compare_u64);
	*ret_count = count;
	return pairs;
}

/* docs/formats.md, "Opens table". */
static int encode_opens(struct rs_scope *scope, struct rs_result *result, const uint32_t *leaf_of)
{
	struct rs_buf *buf = &result->opens;
	size_t count, at = 0, end, distinct, i;
	uint64_t *pairs = sorted_opens(scope, leaf_of, &count);
	uint32_t process;

	if (!pairs)
		return -ENOMEM;
	rs_buf_append(buf, "RSOT\x01\0\0\0", 8);
	rs_buf_u32(buf, scope->procs.count);
	for (process = 0; process < scope->procs.count; process++) {
		distinct = 0;
		for (end = at; end < count && pairs[end] >> 32 == process; end++)
			distinct += end == at || pairs[end] != pairs[end - 1];
		rs_buf_uvarint(buf, distinct);
		for (i = at; i < end; i++) {
			if (i == at)
				rs_buf_uvarint(buf, (uint32_t)pairs[i]);
			else if (pairs[i] != pairs[i - 1])
				rs_buf_uvarint(buf, pairs[i] - pairs[i - 1]);
		}
		at = end;
	}
	free(pairs);
	return buf->error;
}

/* Digest of the image that a process ran, if that file was seen to be executed. */
static const uint8_t *exe_digest(const struct rs_scope *scope, const struct rs_proc *proc)
{
	struct rs_index_cursor cursor = rs_index_find(rs_hash_u64(proc->exe_ino, proc->exe_dev));
	const uint8_t *digest = NULL;
	uint32_t value;

	while (proc->exe_ino &&
	       (value = rs_index_next(&scope->by_exec, &cursor)) != RS_INDEX_EMPTY) {
		const struct rs_material *material = rs_material_at(scope, value);

		if (material->stat.ino == proc->exe_ino && material->stat.dev == proc->exe_dev)
			digest = material->digest; /* the last content seen */
	}
	return digest;
}

/*
 * u32 count, then of each process: u32 pid, u32 parent, program, comm, cmdline (u32 length, bytes
 * each), u8 flags (1 program digest, 2 exe digest), the digests that the flags name.
 */
static int encode_processes(struct rs_scope *scope, struct rs_result *result)
{
	struct rs_buf *buf = &result->processes;
	uint32_t i;

	rs_buf_u32(buf, scope->procs.count);
	for (i = 0; i < scope->procs.count; i++) {
		const struct rs_proc *proc = &scope->procs.items[i];
		const uint8_t *exe = exe_digest(scope, proc);

		rs_buf_u32(buf, (uint32_t)proc->pid);
		rs_buf_u32(buf, (uint32_t)proc->parent);
		rs_buf_field(buf, proc->program, proc->program_length);
		rs_buf_field(buf, proc->comm, strnlen(proc->comm, sizeof(proc->comm)));
		rs_buf_field(buf, proc->cmdline, proc->cmdline_length);
		rs_buf_u8(buf, (uint8_t)(proc->has_program_digest | (exe ? 2 : 0)));
		if (proc->has_program_digest)
			rs_buf_append(buf, proc->program_digest, RS_SHA256_BYTES);
		if (exe)
			rs_buf_append(buf, exe, RS_SHA256_BYTES);
	}
	return buf->error;
}

/* Also the files that the action made itself: the ledger asks whether a digest was taken. */
static void encode_files(const struct rs_scope *scope, struct rs_result *result)
{
	uint32_t i;

	for (i = 0; i < scope->materials_count; i++) {
		const struct rs_stat *stat = &rs_material_at(scope, i)->stat;
		uint64_t pair[2] = {stat->dev, stat->ino};

		rs_buf_append(&result->files, pair, sizeof(pair));
	}
}

static int build(struct rs_worker *worker, struct rs_scope *scope, struct rs_result *result,
		 const uint8_t *files, size_t files_length, const uint8_t *dirs, size_t dirs_length)
{
	uint32_t *leaf_of = calloc(scope->materials_count + 1, sizeof(*leaf_of));
	int error;

	if (!leaf_of)
		return -ENOMEM;
	error = rs_mounts_recheck(&scope->mounts, scope->ns_root_fd, scope->mountinfo_fd);
	if (error) {
		RS_COUNT(scope, handler_errors);
		error = 0; /* the counter says it: mounts may be missing from the list */
	}
	rs_mounts_count(&scope->mounts, &scope->counters);
	error = encode_materials(worker, scope, result, leaf_of);
	if (!error)
		error =
		    encode_products(worker, scope, result, files, files_length, dirs, dirs_length);
	if (!error)
		error = encode_opens(scope, result, leaf_of);
	if (!error)
		error = encode_processes(scope, result);
	rs_mounts_encode(&scope->mounts, &result->mounts);
	if (scope->has_witness)
		encode_files(scope, result);
	free(leaf_of);
	if (!error)
		error = result->mounts.error;
	if (!error)
		error = result->mutations.entries.error;
	return error ? error : result->files.error;
}

static rs_bytes bytes_of(const struct rs_buf *buf)
{
	return (rs_bytes){.bytes = buf->data, .length = buf->length};
}

static void publish(struct rs_scope *scope, struct rs_result *result)
{
	rs_observation *observation = &result->observation;

	observation->materials = bytes_of(&result->materials);
	observation->products = bytes_of(&result->products);
	observation->opens = bytes_of(&result->opens);
	observation->processes = bytes_of(&result->processes);
	observation->mounts = bytes_of(&result->mounts);
	observation->files = bytes_of(&result->files);
	observation->mutations = bytes_of(&result->mutations.entries);
	observation->mutations_count = result->mutations.count;
	observation->mutations_left_out = result->mutations.left_out;
	scope->counters.bytes_hashed = atomic_load(&scope->bytes_hashed);
	observation->counters = scope->counters;
}

int rs_scope_finish(rs_scope *scope, const uint8_t *files, size_t files_length, const uint8_t *dirs,
		    size_t dirs_length, rs_result **ret_result, rs_error *error)
{
	struct rs_result *result = calloc(1, sizeof(*result));
	struct rs_worker *worker = calloc(1, sizeof(*worker));
	int failed = -ENOMEM;

	if (result && worker)
		failed = rs_worker_open(worker, scope->engine);
	if (!failed) {
		stop_events(worker, scope);
		failed = build(worker, scope, result, files, files_length, dirs, dirs_length);
		rs_worker_close(worker);
	} else {
		rs_engine_forget(scope->engine, scope);
	}
	free(worker);
	if (!failed)
		publish(scope, result);
	rs_engine_release(scope);
	if (failed) {
		rs_result_free(result);
		return rs_fail(error, -failed, "finish", "tables of the scope");
	}
	*ret_result = result;
	return 0;
}

const rs_observation *rs_result_observation(const rs_result *result)
{
	return &result->observation;
}

void rs_result_free(rs_result *result)
{
	if (!result)
		return;
	rs_buf_free(&result->materials);
	rs_buf_free(&result->products);
	rs_buf_free(&result->opens);
	rs_buf_free(&result->processes);
	rs_buf_free(&result->mounts);
	rs_buf_free(&result->files);
	rs_buf_free(&result->mutations.entries);
	free(result);
}
