/*
 * open_many: opens and reads DIR/<i % 100>/f<i> for i = 0 … COUNT-1, REPEATS times, by PROCESSES
 * processes that share the files among them. Prints the seconds that took.
 *
 *   open_many DIR COUNT REPEATS PROCESSES [READY_FD GO_FD]
 *
 * With descriptors: enters a private mount namespace, writes to READY_FD, waits for GO_FD.
 */
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 20];

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static int enter(int ready_fd, int go_fd)
{
	char go;

	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return -1;
	return write(ready_fd, "x", 1) == 1 && read(go_fd, &go, 1) == 1 ? 0 : -1;
}

static int read_files(const char *dir, int count, int repeats, int first, int step)
{
	char path[4096];
	int repeat, i, fd;

	for (repeat = 0; repeat < repeats; repeat++) {
		for (i = first; i < count; i += step) {
			snprintf(path, sizeof(path), "%s/%d/f%d", dir, i % 100, i);
			fd = open(path, O_RDONLY);
			if (fd < 0)
				return 1;
			while (read(fd, buffer, sizeof(buffer)) > 0)
				;
			close(fd);
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	int processes, number, status, failed = 0;
	double started;

	if (argc != 5 && argc != 7)
		return 2;
	if (argc == 7 && enter(atoi(argv[5]), atoi(argv[6])))
		return 3;
	processes = atoi(argv[4]);
	started = now();
	for (number = 1; number < processes; number++)
		if (fork() == 0)
			_exit(read_files(argv[1], atoi(argv[2]), atoi(argv[3]), number, processes));
	failed = read_files(argv[1], atoi(argv[2]), atoi(argv[3]), 0, processes);
	while (wait(&status) > 0)
		failed |= status;
	printf("%.6f\n", now() - started);
	return failed != 0;
}
