/*
 * args.c: the command line of rootseal-exec (docs/protocol.md, "Launcher").
 *
 * Pure: argv → struct options. Unknown, repeated or malformed options are refused, because a
 * launcher that guesses would run an action that nobody captures as asked. No privilege needed.
 */
#include "launcher.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SECONDS_MAX 86400

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

static int parse_key(const char *text, uint8_t key[32])
{
	if (strlen(text) != 64)
		return -EINVAL;
	for (size_t i = 0; i < 32; i++) {
		int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);

		if (high < 0 || low < 0)
			return -EINVAL;
		key[i] = high << 4 | low;
	}
	return 0;
}

/* A decimal number up to max that ends at one of the bytes of `ends` (NUL included). */
static int parse_number(const char **text, const char *ends, unsigned long max, unsigned long *ret)
{
	unsigned long value = 0;
	const char *p = *text;

	if (*p < '0' || *p > '9')
		return -EINVAL;
	for (; *p >= '0' && *p <= '9'; p++) {
		value = value * 10 + (*p - '0');
		if (value > max)
			return -ERANGE;
	}
	if (*p && !strchr(ends, *p))
		return -EINVAL;
	*text = p;
	*ret = value;
	return 0;
}

static int parse_descendants(const char *text, struct options *options)
{
	unsigned long seconds;

	if (!strcmp(text, "wait")) {
		options->descendants = DESCENDANTS_WAIT;
		return 0;
	}
	if (strncmp(text, "kill:", 5))
		return -EINVAL;
	text += 5;
	if (parse_number(&text, "", SECONDS_MAX, &seconds) < 0)
		return -EINVAL;
	options->descendants = DESCENDANTS_KILL;
	options->descendants_seconds = seconds;
	return 0;
}

/* UID:GID or UID:GID:GROUP,GROUP… */
static int parse_drop_to(const char *text, struct drop_to *drop)
{
	unsigned long uid, gid, group;

	if (parse_number(&text, ":", 0xfffffffe, &uid) < 0 || *text++ != ':')
		return -EINVAL;
	if (parse_number(&text, ":", 0xfffffffe, &gid) < 0)
		return -EINVAL;
	drop->uid = uid;
	drop->gid = gid;
	drop->group_count = 0;
	drop->groups[drop->group_count++] = gid;
	while (*text) {
		text++; /* the ':' before the first, the ',' before each other */
		if (drop->group_count == DROP_GROUPS_MAX)
			return -E2BIG;
		if (parse_number(&text, ",", 0xfffffffe, &group) < 0)
			return -EINVAL;
		drop->groups[drop->group_count++] = group;
	}
	drop->wanted = true;
	return 0;
}

static int parse_stage2(const char *text, struct stage2 *stage2)
{
	unsigned long conn_fd, control_fd, pid;

	if (parse_number(&text, ",", 0x7fffffff, &conn_fd) < 0 || *text++ != ',')
		return -EINVAL;
	if (parse_number(&text, ",", 0x7fffffff, &control_fd) < 0 || *text++ != ',')
		return -EINVAL;
	if (parse_number(&text, "", 0x7fffffff, &pid) < 0)
		return -EINVAL;
	*stage2 = (struct stage2){true, conn_fd, control_fd, pid};
	return 0;
}

/* The value if `argument` is `--name=value`, else NULL. */
static const char *value_of(const char *argument, const char *name)
{
	size_t length = strlen(name);

	if (strncmp(argument, name, length) || argument[length] != '=')
		return NULL;
	return argument + length + 1;
}

static int parse_once(const char **field, const char *value)
{
	if (*field || !*value)
		return -EINVAL;
	*field = value;
	return 0;
}

static int parse_one(const char *argument, struct options *options, bool *have_key)
{
	const char *value;

	if ((value = value_of(argument, "--action"))) {
		if (*have_key)
			return -EINVAL;
		*have_key = true;
		return parse_key(value, options->action_key);
	}
	if ((value = value_of(argument, "--root")))
		return parse_once(&options->root, value);
	if ((value = value_of(argument, "--record")))
		return parse_once(&options->record, value);
	if ((value = value_of(argument, "--socket")))
		return parse_once(&options->socket, value);
	if ((value = value_of(argument, "--error")))
		return parse_once(&options->error, value);
	if ((value = value_of(argument, "--helper")))
		return parse_once(&options->helper, value);
	if ((value = value_of(argument, "--descendants")))
		return parse_descendants(value, options);
	if ((value = value_of(argument, "--drop-to")))
		return parse_drop_to(value, &options->drop_to);
	if ((value = value_of(argument, "--stage2")))
		return parse_stage2(value, &options->stage2);
	if ((value = value_of(argument, "--output-file"))) {
		options->output_files[options->output_file_count++] = value;
		return *value ? 0 : -EINVAL;
	}
	if ((value = value_of(argument, "--output-dir"))) {
		options->output_dirs[options->output_dir_count++] = *value ? value : ".";
		return 0;
	}
	if (!strcmp(argument, "--stdio-only")) {
		options->stdio_only = true;
		return 0;
	}
	if ((value = value_of(argument, "--option"))) {
		options->options[options->option_count++] = value;
		return strchr(value, '=') ? 0 : -EINVAL;
	}
	return -EINVAL;
}

static int check_complete(const struct options *options, bool have_key)
{
	const char *missing = NULL;

	if (!options->argv || !options->argv[0])
		missing = "`-- COMMAND`";
	else if (options->stage2.wanted)
		return 0;
	else if (!have_key)
		missing = "--action";
	else if (!options->root)
		missing = "--root";
	else if (!options->record)
		missing = "--record";
	if (!missing)
		return 0;
	say("%s is missing. Start actions through `rootseal run` or the build tool's adapter; the "
	    "options are in docs/protocol.md.",
	    missing);
	return -EINVAL;
}

int args_parse(int argc, char **argv, struct options *ret_options)
{
	struct options options = {.descendants = DESCENDANTS_KILL, .descendants_seconds = 2};
	const char **lists = calloc(3 * (size_t)(argc + 1), sizeof(*lists));
	bool have_key = false;
	int r;

	if (!lists)
		return -ENOMEM;
	options.output_files = lists; /* kept until the process ends */
	options.output_dirs = lists + argc + 1;
	options.options = lists + 2 * (argc + 1);
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--")) {
			options.argv = argv + i + 1;
			break;
		}
		if (parse_one(argv[i], &options, &have_key) < 0) {
			say("the option %s is unknown, repeated or malformed. The options are in "
			    "docs/protocol.md; use the rootseal-exec of the same release as the "
			    "caller.",
			    argv[i]);
			free(lists);
			return -EINVAL;
		}
	}
	r = check_complete(&options, have_key);
	if (r < 0) {
		free(lists);
		return r;
	}
	*ret_options = options;
	return 0;
}
