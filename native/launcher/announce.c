/*
 * announce.c: tell a daemon what is about to run, and wait until it is prepared.
 *
 * struct options → ANNOUNCE → daemon → PREPARED (or ERROR). Owns the connection until it is handed
 * to the caller. Signals still have their ordinary effect here: nothing runs yet. No privilege
 * needed.
 */
#include "launcher.h"
#include "trace.h"
#include "../protocol.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

extern char **environ;

/* What this launcher can do for the action. */
struct ability {
	enum namespace_way way;
	const char *trace_refused; /* NULL: not known to be unable to trace */
};

static const char no_daemon[] =
    "no Rootseal daemon answers. Start one with `rootseal daemon ensure` (as root for the whole "
    "machine), or switch the capture off.";

/* Outputs are relative to the working directory; the daemon wants them relative to the root. */
static int add_outputs(struct buffer *frame, uint16_t tag, const char **paths, size_t count,
		       const char *cwd, const char *root)
{
	for (size_t i = 0; i < count; i++) {
		const char *relative;
		char *path;
		int r = path_normal(cwd, paths[i], &path);

		if (r < 0)
			return r;
		r = path_below(root, path, &relative);
		if (r < 0)
			say("the output %s lies outside the root %s; declare outputs below the "
			    "root.",
			    paths[i], root);
		else
			r = frame_add_text(frame, tag, relative);
		free(path);
		if (r < 0)
			return r;
	}
	return 0;
}

static int add_texts(struct buffer *frame, uint16_t tag, const char *const *texts, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		int r = frame_add_text(frame, tag, texts[i]);

		if (r < 0)
			return r;
	}
	return 0;
}

static size_t count_of(char *const *list)
{
	size_t count = 0;

	while (list[count])
		count++;
	return count;
}

/* The real path of --root, so that it is what /proc/PID/fd and the kernel's paths begin with. */
static int real_root(const char *path, char **ret_root)
{
	char *root = realpath(path, NULL);

	if (!root) {
		int r = -errno;

		say("the root %s cannot be used: %s. Give an existing directory to --root.", path,
		    strerror(errno));
		return r;
	}
	*ret_root = root;
	return 0;
}

static int fill(struct buffer *frame, const struct options *o, const struct ability *ability,
		const char *cwd, const char *root)
{
	const char *name = namespace_way_name(ability->way);
	int r = frame_begin(frame, RS_FRAME_ANNOUNCE);

	if (r >= 0)
		r = frame_add(frame, RS_TAG_ACTION_KEY, o->action_key, sizeof(o->action_key));
	if (r >= 0)
		r = add_texts(frame, RS_TAG_ARG, (const char *const *)o->argv, count_of(o->argv));
	if (r >= 0)
		r = add_texts(frame, RS_TAG_ENV, (const char *const *)environ, count_of(environ));
	if (r >= 0)
		r = frame_add_text(frame, RS_TAG_CWD, cwd);
	if (r >= 0)
		r = frame_add_text(frame, RS_TAG_ROOT, root);
	if (r >= 0)
		r = add_outputs(frame, RS_TAG_OUTPUT_FILE, o->output_files, o->output_file_count,
				cwd, root);
	if (r >= 0)
		r = add_outputs(frame, RS_TAG_OUTPUT_DIR, o->output_dirs, o->output_dir_count, cwd,
				root);
	if (r >= 0)
		r = add_texts(frame, RS_TAG_OPTION, o->options, o->option_count);
	if (r >= 0)
		r = frame_add_text(frame, RS_TAG_NAMESPACE, name);
	if (r >= 0 && ability->trace_refused)
		r = frame_add_text(frame, RS_TAG_TRACE_REFUSED, ability->trace_refused);
	return r;
}

static int build(const struct options *options, const struct ability *ability,
		 struct buffer *ret_frame)
{
	char *cwd = getcwd(NULL, 0), *root = NULL;
	int r;

	if (!cwd) {
		r = -errno;
		say("the working directory cannot be read: %s. Start the action in a directory "
		    "that exists.",
		    strerror(errno));
		return r;
	}
	r = real_root(options->root, &root);
	if (r >= 0) {
		r = fill(ret_frame, options, ability, cwd, root);
		if (r == -EMSGSIZE)
			say("the action's arguments and environment exceed %d bytes; pass them in "
			    "a file.",
			    RS_PAYLOAD_TO_DAEMON_BYTES_MAX);
	}
	free(root);
	free(cwd);
	return r;
}

/* PROGRESS* then PREPARED. -EACCES: this daemon does not serve us; the next one may. */
static int wait_prepared(int fd, struct prepared *ret_prepared)
{
	for (;;) {
		struct frame_header header;
		bool not_allowed;
		char mode[64];
		int r = frame_read_header(fd, &header);

		if (r >= 0 && header.type == RS_FRAME_PROGRESS) {
			r = frame_skip(fd, header.length);
		} else if (r >= 0 && header.type == RS_FRAME_ERROR) {
			r = frame_say_error(fd, header.length, &not_allowed);
			if (r >= 0)
				return not_allowed ? -EACCES : -ECANCELED;
		} else if (r >= 0 && header.type == RS_FRAME_PREPARED) {
			r = frame_read_text(fd, header.length, RS_TAG_MODE, mode, sizeof(mode));
			if (r >= 0)
				r = trace_plan_parse(mode, &ret_prepared->trace);
			if (r >= 0) {
				ret_prepared->private_namespace =
				    !strncmp(mode, "fanotify", strlen("fanotify"));
				return 0;
			}
		} else if (r >= 0) {
			r = -EPROTO;
		}
		if (r < 0) {
			say("the Rootseal daemon does not answer as it should (%s). Run `rootseal "
			    "daemon "
			    "stop`, then `rootseal daemon ensure`.",
			    strerror(-r));
			return r;
		}
	}
}

static int announce_to(int fd, const struct options *options, const struct ability *ability,
		       struct prepared *ret_prepared)
{
	struct buffer frame = {0};
	int r = build(options, ability, &frame);

	if (r < 0) {
		free(frame.data);
		return r;
	}
	/* A daemon that refuses us closes early: its ERROR frame is still there to be read. */
	r = frame_send(fd, &frame);
	if (r < 0 && r != -EPIPE && r != -ECONNRESET) {
		say("the action cannot be announced: %s. Run `rootseal daemon ensure`.",
		    strerror(-r));
		return r;
	}
	return wait_prepared(fd, ret_prepared);
}

static int announce_once(const struct options *options, const struct ability *ability,
			 struct prepared *ret_prepared)
{
	struct places places = {.only = options->socket};

	for (;;) {
		cleanup_fd int fd = -1;
		int r = connect_next(&places, &fd);

		if (r == -ENOENT) {
			if (places.refused)
				say("the Rootseal daemon of this machine does not serve uid %u. "
				    "Run `rootseal daemon ensure --allow-uid=%u` as root, or "
				    "`rootseal daemon ensure` as this user.",
				    (unsigned int)getuid(), (unsigned int)getuid());
			else
				say("%s", no_daemon);
			return r;
		}
		if (r >= 0)
			r = announce_to(fd, options, ability, ret_prepared);
		if (r == -EACCES) {
			places.refused = true;
			continue;
		}
		if (r < 0)
			return r;
		ret_prepared->conn_fd = fd;
		fd = -1;
		return 0;
	}
}

/*
 * The daemon knows whether a process of its own may be traced; here and for this user it may be
 * refused all the same (Yama, a container, a tracer around us). Then the daemon decides once more.
 */
int announce(const struct options *options, enum namespace_way way, struct prepared *ret_prepared)
{
	struct ability ability = {.way = way};
	int r = announce_once(options, &ability, ret_prepared);

	if (r < 0 || !ret_prepared->trace.wanted || rs_trace_check(&ability.trace_refused) >= 0)
		return r;
	close(ret_prepared->conn_fd);
	return announce_once(options, &ability, ret_prepared);
}
