// SPDX-License-Identifier: Apache-2.0
/*
 * Runs one command under the tracer, without a daemon: for tests and measurements.
 *
 *   trace_driver RECORDS COMMAND [ARGUMENT]…
 *
 * RECORDS gets the stream of native/trace_event.h ("-": thrown away), SINK_BYTES_MAX of it. The
 * exit status is the command's (128+signal), 125 if tracing failed.
 */
#include "../../native/launcher/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t limit(const char *name, uint64_t otherwise)
{
	const char *value = getenv(name);

	return value ? strtoull(value, NULL, 10) : otherwise;
}

static int emit(void *context, const void *records, size_t size)
{
	static uint64_t emitted;
	int fd = *(int *)context;

	emitted += size;
	if (emitted > limit("SINK_BYTES_MAX", UINT64_MAX))
		return -EPIPE; /* as when the daemon is gone */
	while (fd >= 0 && size > 0) {
		ssize_t done = write(fd, records, size);

		if (done < 0)
			return -errno;
		records = (const char *)records + done;
		size -= (size_t)done;
	}
	return 0;
}

static int fail(const char *what, int error)
{
	fprintf(stderr, "trace_driver: %s: %s\n", what, strerror(error));
	return 125;
}

int main(int argc, char **argv)
{
	struct rs_trace_config config = {
	    .limits = {.files_max = limit("FILES_MAX", 1 << 18),
		       .hashed_bytes_max = limit("BYTES_MAX", 0),
		       .processes_max = limit("PROCESSES_MAX", 1 << 16)}};
	struct rs_trace_result ended = {0};
	int pair[2], status, out = -1, result;
	const char *reason = "";
	sigset_t set, old;
	pid_t child;

	if (argc == 2 && strcmp(argv[1], "--probe") == 0) {
		result = rs_trace_probe(&reason);
		printf("%d %s\n", result, reason);
		return result != 0;
	}
	if (argc < 3)
		return fail("usage: trace_driver RECORDS COMMAND [ARGUMENT]...", EINVAL);
	if (strcmp(argv[1], "-") != 0) {
		out = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		if (out < 0)
			return fail(argv[1], errno);
	}
	config.sink.context = &out;
	config.sink.emit = emit;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, &old);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return fail("socketpair", errno);
	child = fork();
	if (child < 0)
		return fail("fork", errno);
	if (child == 0) {
		close(pair[0]);
		sigprocmask(SIG_SETMASK, &old, NULL);
		result = rs_trace_child_setup(pair[1]);
		if (result < 0)
			_exit(fail("filter", -result));
		execvp(argv[2], argv + 2);
		_exit(fail(argv[2], errno) + (errno == ENOENT ? 2 : 1));
	}
	close(pair[1]);
	result = rs_trace_attach(child, pair[0]);
	if (result == 0)
		result = rs_trace_run(&config, child, &ended);
	if (result < 0) {
		kill(child, SIGKILL);
		return fail("trace", -result);
	}
	status = ended.wait_status;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
