/*
 * loader.c: loads and attaches the CO-RE object with libbpf.
 *
 * Four programs are needed (fork, exec, exit, call). The others are optional: when the kernel
 * refuses one, or has no such tracepoint, the rest is loaded without it, and the report says which
 * and why. Where lsm/file_open loads and is called, it tells of opens; else the exit of each call.
 *
 * Owns: the bpf_object and its links (in struct rs_tracer). Must not: print; libbpf's messages are
 * kept. Hand-off: object file -> attached programs and map descriptors -> rs_tracer_start.
 * Privilege at entry: CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN).
 */
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tracer.h"

/* libbpf's output is process-wide; loading is serialised and keeps the last lines of it. */
static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;
static char messages[2048];
static size_t messages_length;

#define LSM_PROGRAM "trace_file_open"

static const char *const map_names[RS_MAP_COUNT] = {"rs_ring", "rs_members", "rs_losses",
						    "rs_writes", "rs_calls"};

struct optional_program {
	const char *name;
	const char *tracepoint; /* btf_trace_ type that must exist, or NULL */
	int arguments[2];	/* how few and how many it must have */
	int level;		/* from which on it is loaded */
};

static const struct optional_program optional_programs[] = {
    {"trace_ring", "btf_trace_io_uring_submit_req", {1, 1}, 1},
    {"trace_ring_sqe", "btf_trace_io_uring_submit_sqe", {2, 2}, 1},
    {"trace_ring_old", "btf_trace_io_uring_submit_sqe", {7, 8}, 1},
    {LSM_PROGRAM, NULL, {0, 0}, 2},
};

static int keep_message(enum libbpf_print_level level, const char *format, va_list args)
{
	char line[512];
	size_t length;

	if (level == LIBBPF_DEBUG)
		return 0;
	vsnprintf(line, sizeof(line), format, args);
	length = strlen(line);
	if (messages_length + length >=
	    sizeof(messages)) { /* keep the end: it says what was refused */
		size_t drop = messages_length + length + 1 - sizeof(messages);

		if (drop > messages_length)
			drop = messages_length;
		memmove(messages, messages + drop, messages_length - drop);
		messages_length -= drop;
	}
	memcpy(messages + messages_length, line, length);
	messages_length += length;
	messages[messages_length] = '\0';
	return 0;
}

/* The last line that says what went wrong. */
static void last_message(char *text, size_t room, const char *fallback)
{
	const char *from = messages, *line, *best = NULL;
	size_t length;

	for (line = from; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
		if (!strncmp(line, "libbpf: ", 8) && !strstr(line, "-- ") &&
		    !strstr(line, "failed to load object"))
			best = line;
	if (!best) {
		snprintf(text, room, "%s", fallback);
		return;
	}
	length = strcspn(best, "\n");
	snprintf(text, room, "%.*s", (int)(length > room - 1 ? room - 1 : length), best);
}

static const struct optional_program *optional_of(const char *name)
{
	for (size_t i = 0; i < sizeof(optional_programs) / sizeof(optional_programs[0]); i++)
		if (!strcmp(optional_programs[i].name, name))
			return &optional_programs[i];
	return NULL;
}

static rs_trace_program *report_of(struct rs_tracer *tracer, const char *name)
{
	for (int i = 0; i < tracer->program_count; i++)
		if (!strcmp(tracer->programs[i].name, name))
			return &tracer->programs[i];
	if (tracer->program_count >= RS_PROGRAMS_MAX)
		return NULL;
	snprintf(tracer->programs[tracer->program_count].name, sizeof(tracer->programs[0].name),
		 "%s", name);
	return &tracer->programs[tracer->program_count++];
}

/*
 * How many arguments a tracepoint gives, or -ENOENT without it. Its type is a pointer to a function
 * whose first parameter is not one of them. Other arguments than the program reads would be taken
 * for a request, and never be one.
 */
static int arguments_of(const struct btf *kernel, const char *tracepoint)
{
	int id = btf__find_by_name_kind(kernel, tracepoint, BTF_KIND_TYPEDEF);
	const struct btf_type *type = id < 0 ? NULL : btf__type_by_id(kernel, (uint32_t)id);

	if (type)
		type = btf__type_by_id(kernel, type->type);
	if (type && btf_is_ptr(type))
		type = btf__type_by_id(kernel, type->type);
	return type && btf_is_func_proto(type) ? btf_vlen(type) - 1 : -ENOENT;
}

/* How much is tried, from the most on: each step down leaves out what the kernel refused. */
enum { LEVEL_NEEDED, LEVEL_RINGS, LEVEL_LSM };

/* Decide which programs to load. */
static int choose(struct rs_tracer *tracer, struct bpf_object *object, struct btf *kernel,
		  int level)
{
	struct bpf_program *program;

	bpf_object__for_each_program(program, object)
	{
		const char *name = bpf_program__name(program);
		const struct optional_program *optional = optional_of(name);
		rs_trace_program *report = report_of(tracer, name);
		int arguments;

		if (!report)
			return -E2BIG;
		report->required = !optional;
		if (!optional)
			continue;
		arguments = optional->tracepoint ? arguments_of(kernel, optional->tracepoint) : 0;
		if (arguments < optional->arguments[0] || arguments > optional->arguments[1]) {
			snprintf(report->reason, sizeof(report->reason), "this kernel has no %s%s",
				 optional->tracepoint + strlen("btf_trace_"),
				 arguments < 0 ? "" : " of this form");
			continue;
		}
		bpf_program__set_autoload(program, level >= optional->level);
	}
	return 0;
}

/* Tell the programs where opens come from: a constant of theirs, set before they are loaded. */
static int set_lsm_opens(struct bpf_object *object, int on)
{
	struct bpf_map *constants = bpf_object__find_map_by_name(object, ".rodata");
	uint32_t flag = on != 0;

	/* The only constant; with another the sizes differ and this is refused. */
	return constants ? bpf_map__set_initial_value(constants, &flag, sizeof(flag)) : -ENOENT;
}

static int load(struct rs_tracer *tracer, const char *path, uint64_t ring_bytes, struct btf *kernel,
		int level)
{
	struct bpf_object *object;
	struct bpf_map *ring;
	int code;

	object = bpf_object__open_file(path, NULL);
	if (!object)
		return -errno;
	tracer->object = object;
	ring = bpf_object__find_map_by_name(object, "rs_ring");
	code = ring ? bpf_map__set_max_entries(ring, (uint32_t)ring_bytes) : -ENOENT;
	if (!code)
		code = set_lsm_opens(object, level == LEVEL_LSM);
	if (!code)
		code = choose(tracer, object, kernel, level);
	return code ? code : bpf_object__load(object);
}

static int attach(struct rs_tracer *tracer, struct bpf_object *object, rs_trace_error *error)
{
	struct bpf_program *program;
	int at = 0;

	bpf_object__for_each_program(program, object)
	{
		rs_trace_program *report = report_of(tracer, bpf_program__name(program));
		struct bpf_link *link;

		if (!report || !bpf_program__autoload(program))
			continue;
		link = bpf_program__attach(program);
		if (!link) {
			int code = -errno;

			snprintf(report->reason, sizeof(report->reason), "not attached: %s",
				 strerror(-code));
			/* Without the LSM program nothing would tell of opens: sys_exit left them
			 * out. */
			if (report->required || !strcmp(report->name, LSM_PROGRAM)) {
				rs_trace_fail(error, "attach", code, report->name);
				return code;
			}
			continue;
		}
		tracer->links[at] = link;
		tracer->program_fds[at] = fcntl(bpf_program__fd(program), F_DUPFD_CLOEXEC, 3);
		at++;
		report->attached = 1;
		report->reason[0] = '\0';
	}
	return 0;
}

static int take_maps(struct rs_tracer *tracer, struct bpf_object *object, rs_trace_error *error)
{
	for (int i = 0; i < RS_MAP_COUNT; i++) {
		int fd = bpf_object__find_map_fd_by_name(object, map_names[i]);

		if (fd >= 0)
			tracer->maps[i] = fcntl(fd, F_DUPFD_CLOEXEC, 3);
		if (fd < 0 || tracer->maps[i] < 0) {
			rs_trace_fail(error, "find a map", ENOENT, map_names[i]);
			return -ENOENT;
		}
	}
	return 0;
}

/*
 * Whether opens are told of. Attaching to lsm/file_open works too where the kernel never calls it,
 * because BPF is not in its list of security modules.
 */
static int opens_are_told(struct rs_tracer *tracer, const char *path, rs_trace_error *error)
{
	const rs_trace_limits limits = {
	    .max_opens = 64, .max_event_bytes = 1 << 16, .max_processes = 16};
	rs_trace_result *result;
	rs_trace_counters counters;
	uint64_t scope;
	int fd, code = rs_tracer_scope_open(tracer, getpid(), &limits, &scope, error);

	if (code)
		return code;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		close(fd);
	code = rs_tracer_scope_finish(tracer, scope, &result, error);
	if (code)
		return code;
	rs_trace_counters_of(result, &counters);
	rs_trace_result_free(result);
	if (counters.opens)
		return 0;
	rs_trace_fail(error, "wait for an open", ENODEV, "the kernel never calls the program");
	return -ENODEV;
}

/* Load and attach at one level; what a failed try has said of programs stays in `reports`. */
static int try_level(const char *path, uint64_t ring_bytes, struct btf *kernel, int level,
		     struct rs_tracer *tracer, rs_trace_error *error)
{
	char detail[512];
	int code;

	messages_length = 0;
	messages[0] = '\0';
	code = load(tracer, path, ring_bytes, kernel, level);
	if (code) {
		last_message(detail, sizeof(detail), strerror(-code));
		rs_trace_fail(error, "load", code, detail);
		return code;
	}
	code = take_maps(tracer, tracer->object, error);
	if (!code)
		code = rs_tracer_start(tracer, ring_bytes, error);
	if (!code)
		code = attach(tracer, tracer->object, error);
	if (!code && level == LEVEL_LSM)
		code = opens_are_told(tracer, path, error);
	return code;
}

/* Say of the programs of this level why they are left out from now on. */
static void blame(struct rs_tracer *tracer, int level, const rs_trace_error *error)
{
	for (int i = 0; i < tracer->program_count; i++) {
		rs_trace_program *report = &tracer->programs[i];
		const struct optional_program *optional = optional_of(report->name);

		report->attached = 0;
		if (!optional || optional->level != level)
			continue;
		if (error->code == ENODEV)
			snprintf(report->reason, sizeof(report->reason),
				 "`bpf` is not in the kernel's list of security modules (lsm=)");
		else if (!report->reason[0])
			snprintf(report->reason, sizeof(report->reason), "refused: %.160s",
				 error->detail);
	}
}

static int open_best(const char *path, uint64_t ring_bytes, struct btf *kernel,
		     struct rs_tracer **ret_tracer, rs_trace_error *error)
{
	struct rs_tracer *tracer = rs_tracer_new(), *next;
	int code = -ENOMEM;

	for (int level = LEVEL_LSM; tracer; level--) {
		code = try_level(path, ring_bytes, kernel, level, tracer, error);
		if (!code) {
			*ret_tracer = tracer;
			return 0;
		}
		blame(tracer, level, error);
		next = level > LEVEL_NEEDED ? rs_tracer_new() : NULL;
		if (next) {
			memcpy(next->programs, tracer->programs, sizeof(next->programs));
			next->program_count = tracer->program_count;
		}
		rs_tracer_close(tracer);
		tracer = next;
	}
	return code;
}

int rs_tracer_open(const char *path, uint64_t ring_bytes, rs_tracer **ret_tracer,
		   rs_trace_error *error)
{
	libbpf_print_fn_t before;
	struct btf *kernel;
	int code;

	pthread_mutex_lock(&loading);
	before = libbpf_set_print(keep_message);
	kernel = btf__load_vmlinux_btf();
	if (kernel) {
		code = open_best(path, ring_bytes, kernel, ret_tracer, error);
		btf__free(kernel);
	} else {
		code = -errno;
		rs_trace_fail(error, "read the kernel's BTF", code, strerror(-code));
	}
	libbpf_set_print(before);
	pthread_mutex_unlock(&loading);
	return code;
}

void rs_loader_release(struct rs_tracer *tracer)
{
	for (int i = 0; i < RS_PROGRAMS_MAX; i++)
		if (tracer->links[i])
			bpf_link__destroy(tracer->links[i]);
	if (tracer->object)
		bpf_object__close(tracer->object);
}

/* ---- offsets for the BCC adaptor ---- */

struct field {
	const char *id;
	const char *type;
	const char *member; /* may be nested: "pwd.dentry" */
};

static const struct field fields[] = {
#define RS_FIELD(id, type, member) {#id, #type, #member},
#include "../../bpf/fields.h"
#undef RS_FIELD
};

/* Find `name` in a struct or union, through its anonymous members too; bit offset or -ENOENT. */
static int64_t find_member(const struct btf *btf, uint32_t type_id, const char *name, size_t length,
			   uint32_t *ret_type)
{
	const struct btf_type *type =
	    btf__type_by_id(btf, (uint32_t)btf__resolve_type(btf, type_id));
	const struct btf_member *members;

	if (!type || !btf_is_composite(type))
		return -ENOENT;
	members = btf_members(type);
	for (int i = 0; i < btf_vlen(type); i++) {
		const char *found = btf__name_by_offset(btf, members[i].name_off);
		int64_t base = btf_member_bit_offset(type, (uint32_t)i), inner;

		if (found && strlen(found) == length && !strncmp(found, name, length)) {
			*ret_type = members[i].type;
			return base;
		}
		if (found && *found)
			continue;
		inner = find_member(btf, members[i].type, name, length, ret_type);
		if (inner >= 0)
			return base + inner;
	}
	return -ENOENT;
}

static int64_t offset_of(const struct btf *btf, const struct field *field)
{
	int id = btf__find_by_name_kind(btf, field->type, BTF_KIND_STRUCT);
	uint32_t type = (uint32_t)id;
	const char *part = field->member;
	int64_t bits = 0, step;

	if (id < 0)
		return id;
	while (*part) {
		size_t length = strcspn(part, ".");

		step = find_member(btf, type, part, length, &type);
		if (step < 0)
			return step;
		bits += step;
		part += length + (part[length] == '.');
	}
	return bits / 8;
}

int rs_trace_offsets(char *ret_text, size_t text_max, rs_trace_error *error)
{
	struct btf *btf = btf__load_vmlinux_btf();
	size_t used = 0;
	int code = 0;

	if (!btf) {
		code = -errno;
		rs_trace_fail(error, "read the kernel's BTF", code, strerror(-code));
		return code;
	}
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]) && !code; i++) {
		int64_t offset = offset_of(btf, &fields[i]);

		if (offset < 0) {
			code = (int)offset;
			rs_trace_fail(error, "find a field in BTF", code, fields[i].id);
			break;
		}
		used += (size_t)snprintf(ret_text + used, text_max - used, "-DRS_OFFSET_%s=%lld ",
					 fields[i].id, (long long)offset);
		if (used >= text_max) {
			code = -ENOSPC;
			rs_trace_fail(error, "write the offsets", code, "");
		}
	}
	btf__free(btf);
	return code;
}
