/*
 * open_latency: opens DIR/<i % 100>/f<i> for i = 0 … COUNT-1 and prints the median seconds of one
 * open(2). Arguments as those of open_many, of which REPEATS and PROCESSES do not matter.
 *
 *   open_latency DIR COUNT REPEATS PROCESSES [READY_FD GO_FD]
 */
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <time.h>
#include <unistd.h>

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

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
	char path[4096];
	double *seconds, started;
	int count, i, fd;

	if (argc != 5 && argc != 7)
		return 2;
	count = atoi(argv[2]);
	seconds = count > 0 ? calloc((size_t)count, sizeof(*seconds)) : NULL;
	if (!seconds)
		return 2;
	if (argc == 7 && enter(atoi(argv[5]), atoi(argv[6])))
		return 3;
	for (i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "%s/%d/f%d", argv[1], i % 100, i);
		started = now();
		fd = open(path, O_RDONLY);
		seconds[i] = now() - started;
		if (fd < 0)
			return 1;
		close(fd);
	}
	qsort(seconds, (size_t)count, sizeof(*seconds), compare);
	printf("%.9f\n", seconds[count / 2]);
	free(seconds);
	return 0;
}
