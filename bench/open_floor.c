/*
 * open_floor: the least that a fanotify permission handler can do. What this costs on a host, no
 * capture that holds openers can undercut.
 *
 *   open_floor held PROGRAM ARGUMENT...    every open is answered, nothing is looked at
 *   open_floor named PROGRAM ARGUMENT...   its state and its path are asked for before the answer
 *   open_floor hashed PROGRAM ARGUMENT...  these, and the content is hashed so that the digest may
 *                                          be kept: a lease before, the same state after
 *
 * Nothing is recorded. Runs the program in a private mount namespace whose root mount is marked.
 * The handler waits awake and idle CPUs do not sleep (/dev/cpu_dma_latency), as in the capture
 * core.
 */
#include <fcntl.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HELD, NAMED, HASHED };

static int group, fds_fd, mode;
static volatile int over;
static EVP_MD_CTX *sha;

static void must(int fine, const char *what)
{
	if (!fine) {
		perror(what);
		exit(3);
	}
}

static void state_of(int fd, struct statx *ret_state)
{
	must(!statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, ret_state), "statx");
}

static void hash(int fd)
{
	static unsigned char buffer[1 << 16], digest[EVP_MAX_MD_SIZE];
	off_t offset = 0;
	ssize_t got;

	must(!fcntl(fd, F_SETLEASE, F_RDLCK) && !fcntl(fd, F_SETLEASE, F_UNLCK), "lease");
	must(EVP_DigestInit_ex(sha, NULL, NULL), "hash");
	do { /* a short read is the end: one system call less */
		got = pread(fd, buffer, sizeof(buffer), offset);
		must(got >= 0 && EVP_DigestUpdate(sha, buffer, (size_t)got), "read");
		offset += got;
	} while (got == sizeof(buffer));
	must(EVP_DigestFinal_ex(sha, digest, NULL), "hash");
}

static void look(int fd)
{
	static char path[PATH_MAX];
	struct statx before, after;
	char name[16];

	state_of(fd, &before);
	snprintf(name, sizeof(name), "%d", fd);
	must(readlinkat(fds_fd, name, path, sizeof(path)) > 0, "path");
	if (mode != HASHED || !S_ISREG(before.stx_mode))
		return;
	hash(fd);
	state_of(fd, &after);
	must(after.stx_size == before.stx_size &&
		 after.stx_ctime.tv_sec == before.stx_ctime.tv_sec &&
		 after.stx_ctime.tv_nsec == before.stx_ctime.tv_nsec,
	     "changed");
}

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
		if (mode != HELD)
			look(event.fd);
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
	const char *const modes[] = {"held", "named", "hashed"};
	const int32_t none_us = 0;
	pthread_t thread;
	char path[64], byte;
	pid_t child;

	while (argc > 2 && mode <= HASHED && strcmp(argv[1], modes[mode]))
		mode++;
	if (argc < 3 || mode > HASHED || pipe(ready) || pipe(go))
		return 2;
	sha = EVP_MD_CTX_new();
	must(sha && EVP_DigestInit_ex(sha, EVP_sha256(), NULL), "SHA-256");
	fds_fd = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	must(fds_fd >= 0, "/proc/self/fd");
	latency_fd = open("/dev/cpu_dma_latency", O_WRONLY | O_CLOEXEC);
	if (latency_fd >= 0 && write(latency_fd, &none_us, sizeof(none_us)) < 0)
		perror("open_floor: /dev/cpu_dma_latency");
	child = fork();
	if (child == 0)
		_exit(run(argv + 2, ready[1], go[0]));
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
