/* awake.c on the real device: held while somebody wants, let go afterwards, and idle CPUs obey. */
#include "awake.h"
#include "check.h"

#include <fcntl.h>
#include <stdbool.h>
#include <time.h>
#include <unistd.h>

#define CPUS_MAX   64
#define STATES_MAX 16
#define TRIES_MAX  200
#define DEEPER_US  2 /* a state from here on is what is not to be entered */

/* How often all CPUs entered a state that takes longer to leave than we ask for; -1: not told. */
static long deep_sleeps(bool virtual_cpu)
{
	char path[128], text[32];
	long total = -1, got;
	int cpu, state, fd;

	for (cpu = 0; cpu < CPUS_MAX; cpu++) {
		for (state = virtual_cpu ? 1 : 0; state < STATES_MAX; state++) {
			snprintf(path, sizeof(path),
				 "/sys/devices/system/cpu/cpu%d/cpuidle/state%d/%s", cpu, state,
				 "latency");
			fd = open(path, O_RDONLY | O_CLOEXEC);
			if (fd < 0)
				break;
			got = read(fd, text, sizeof(text) - 1);
			close(fd);
			text[got > 0 ? got : 0] = 0;
			if (!virtual_cpu && atol(text) <= DEEPER_US)
				continue;
			snprintf(path, sizeof(path),
				 "/sys/devices/system/cpu/cpu%d/cpuidle/state%d/%s", cpu, state,
				 "usage");
			fd = open(path, O_RDONLY | O_CLOEXEC);
			CHECK(fd >= 0);
			got = read(fd, text, sizeof(text) - 1);
			close(fd);
			CHECK(got > 0);
			text[got] = 0;
			total = (total < 0 ? 0 : total) + atol(text);
		}
	}
	return total;
}

static void sleep_ms(long ms)
{
	struct timespec ts = {.tv_sec = 0, .tv_nsec = ms * 1000000};

	nanosleep(&ts, NULL);
}

static void test_states(struct rs_awake *awake)
{
	CHECK(rs_awake_grace_ms(awake) == -1); /* not asked: sleep for ever */
	rs_awake_want(awake);
	CHECK(atomic_load(&awake->held) && rs_awake_grace_ms(awake) == -1);
	rs_awake_want(awake);
	rs_awake_unwant(awake);
	rs_awake_rest(awake); /* one still wants */
	CHECK(atomic_load(&awake->held));
	rs_awake_unwant(awake);
	CHECK(atomic_load(&awake->held) && rs_awake_grace_ms(awake) == RS_AWAKE_GRACE_MS);
	rs_awake_rest(awake);
	CHECK(!atomic_load(&awake->held) && rs_awake_grace_ms(awake) == -1);
}

static void test_cpus_obey(struct rs_awake *awake)
{
	bool virtual_cpu = awake->latency_us == 0;
	long before, held, after;
	int tries = 0;

	if (deep_sleeps(virtual_cpu) < 0) {
		puts("awake: this kernel tells no idle states");
		return;
	}
	rs_awake_want(awake);
	sleep_ms(20); /* who slept has been woken by now */
	before = deep_sleeps(virtual_cpu);
	sleep_ms(200);
	held = deep_sleeps(virtual_cpu) - before;
	rs_awake_unwant(awake);
	rs_awake_rest(awake);
	/* A machine that is busy, or that somebody else keeps awake, does not sleep either. */
	before = deep_sleeps(virtual_cpu);
	for (after = 0; after == 0 && tries < TRIES_MAX; tries++) {
		sleep_ms(50);
		after = deep_sleeps(virtual_cpu) - before;
	}
	printf("awake: %ld deep sleeps while held, %ld soon after\n", held, after);
	CHECK(held == 0);
}

static void test_without_the_device(void)
{
	struct rs_awake awake;

	rs_awake_init(&awake);
	rs_awake_want(&awake);
	CHECK(!atomic_load(&awake.held));
	rs_awake_unwant(&awake);
	CHECK(rs_awake_grace_ms(&awake) == -1);
	rs_awake_rest(&awake);
	rs_awake_close(&awake);
}

int main(void)
{
	struct rs_awake awake;
	int error;

	test_without_the_device();
	rs_awake_init(&awake);
	error = rs_awake_open(&awake);
	if (error == -EACCES || error == -EPERM || error == -ENOENT) {
		rs_awake_close(&awake);
		return 77;
	}
	CHECK(error == 0);
	test_states(&awake);
	test_cpus_obey(&awake);
	rs_awake_close(&awake);
	return 0;
}
