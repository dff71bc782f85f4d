/*
 * open_floor: the least that a fanotify permission handler can do: every open is answered, nothing
 * is looked at. What this costs on a host, no capture that holds openers can undercut.
 *
 *   open_floor PROGRAM ARGUMENT...
 *
 * Runs the program in a private mount namespace whose root mount is marked. The handler waits awake
 * and idle CPUs do not sleep (/dev/cpu_dma_latency), as in the capture core.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/fanotify.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

static int group;
static volatile int over;

static void *serve(void *unused)
{
	struct fanotify_event_metadata event;
	struct fanotify_response response = {.response = FAN_ALLOW};

	(void)unused;
	while (!over) {
		if (read(group, &event, sizeof(event)) != sizeof(event)) {
			sched_yield();
			continue;
		}
		response.fd = event.fd;
		if (write(group, &response, sizeof(response)) < 0)
			perror("open_floor: answer");
		close(event.fd);
	}
	return NULL;
}

static int run(char **argv, int ready_fd, int go_fd)
{
	char go;

	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    write(ready_fd, "x", 1) != 1 || read(go_fd, &go, 1) != 1)
		return 3;
	execv(argv[0], argv);
	return 127;
}

int main(int argc, char **argv)
{
	int ready[2], go[2], latency_fd, status;
	const int32_t none_us = 0;
	pthread_t thread;
	char path[64], byte;
	pid_t child;

	if (argc < 2 || pipe(ready) || pipe(go))
		return 2;
	latency_fd = open("/dev/cpu_dma_latency", O_WRONLY | O_CLOEXEC);
	if (latency_fd >= 0 && write(latency_fd, &none_us, sizeof(none_us)) < 0)
		perror("open_floor: /dev/cpu_dma_latency");
	child = fork();
	if (child == 0)
		_exit(run(argv + 1, ready[1], go[0]));
	group = fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof(path), "/proc/%d/root", child);
	if (child < 0 || group < 0 || read(ready[0], &byte, 1) != 1 ||
	    fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_OPEN_PERM, AT_FDCWD, path) ||
	    pthread_create(&thread, NULL, serve, NULL) || write(go[1], "x", 1) != 1) {
		perror("open_floor");
		return 3;
	}
	if (waitpid(child, &status, 0) != child)
		return 3;
	over = 1;
	pthread_join(thread, NULL);
	return status != 0;
}
