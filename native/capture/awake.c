/*
 * awake.c: while events come densely, idle CPUs stay where waking them is cheap.
 *
 * An opener and its handler sleep in turn, so every open wakes a sleeping CPU twice. On a virtual
 * machine each time is an exit to the host (20 us and more), on hardware the way out of a deep
 * sleep state; either is dearer than hashing a small file. The kernel's PM QoS interface
 * (Documentation/power/pm_qos_interface.rst) is the way to ask for less: a number written to
 * /dev/cpu_dma_latency holds for as long as that file is open, so it ends with this process however
 * that ends. docs/decisions/0011-awake.md has the figures.
 *
 * Owns: the descriptor. Must not: hold longer than events are dense, or fail anything: without it
 * opens are as right as with it. Hands off: nothing. Privilege: that of opening the device (root).
 */
#include "awake.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#define DEVICE	    "/dev/cpu_dma_latency"
#define DRIVER	    "/sys/devices/system/cpu/cpuidle/current_driver"
#define ANY_LATENCY 2000000000 /* PM_QOS_CPU_LATENCY_DEFAULT_VALUE: no wish */
#define HALT_US	    0	       /* of a virtual CPU: poll, for its first sleep state is the exit */
#define SHALLOW_US  2	       /* of a real one: the first sleep states are within */

static int latency_wanted(void)
{
	char driver[32] = "";
	int fd = open(DRIVER, O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		if (read(fd, driver, sizeof(driver) - 1) < 0)
			driver[0] = 0;
		close(fd);
	}
	return strncmp(driver, "haltpoll", 8) ? SHALLOW_US : HALT_US;
}

void rs_awake_init(struct rs_awake *awake)
{
	*awake = (struct rs_awake){.fd = -1};
	pthread_mutex_init(&awake->mutex, NULL);
}

int rs_awake_open(struct rs_awake *awake)
{
	int fd = open(DEVICE, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	awake->latency_us = latency_wanted();
	awake->fd = fd;
	return 0;
}

void rs_awake_close(struct rs_awake *awake)
{
	if (awake->fd >= 0)
		close(awake->fd);
	awake->fd = -1;
	pthread_mutex_destroy(&awake->mutex);
}

/* The mutex is held. A refused request changes nothing but the speed. */
static void ask(struct rs_awake *awake, int32_t latency_us, bool held)
{
	if (write(awake->fd, &latency_us, sizeof(latency_us)) == sizeof(latency_us))
		atomic_store(&awake->held, held);
}

void rs_awake_want(struct rs_awake *awake)
{
	atomic_fetch_add(&awake->wanted, 1);
	if (awake->fd < 0 || atomic_load(&awake->held))
		return;
	pthread_mutex_lock(&awake->mutex);
	if (!atomic_load(&awake->held))
		ask(awake, awake->latency_us, true);
	pthread_mutex_unlock(&awake->mutex);
}

void rs_awake_unwant(struct rs_awake *awake)
{
	atomic_fetch_sub(&awake->wanted, 1);
}

int rs_awake_grace_ms(struct rs_awake *awake)
{
	return atomic_load(&awake->held) && !atomic_load(&awake->wanted) ? RS_AWAKE_GRACE_MS : -1;
}

void rs_awake_rest(struct rs_awake *awake)
{
	pthread_mutex_lock(&awake->mutex);
	/* A thread that wants and saw `held` just before is not asked again: it wants at its next
	 * turn. */
	if (atomic_load(&awake->held) && !atomic_load(&awake->wanted))
		ask(awake, ANY_LATENCY, false);
	pthread_mutex_unlock(&awake->mutex);
}
