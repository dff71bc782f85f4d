/* awake.h: see awake.c. */
#ifndef ROOTSEAL_CAPTURE_AWAKE_H
#define ROOTSEAL_CAPTURE_AWAKE_H
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

struct rs_awake {
	int fd;			 /* owned; -1: this process may not ask, or need not */
	int latency_us;		 /* what is asked for */
	_Atomic unsigned wanted; /* threads that wait for events of a dense time */
	_Atomic bool held;	 /* the kernel has been asked */
	pthread_mutex_t mutex;	 /* one change at a time */
};

/* Longer than the pauses of a dense time; each change wakes all CPUs. */
#define RS_AWAKE_GRACE_MS 5

void rs_awake_init(struct rs_awake *awake);
/* Before the first thread. -errno if this process may not keep CPUs awake; then it changes nothing.
 */
int rs_awake_open(struct rs_awake *awake);
void rs_awake_close(struct rs_awake *awake);
void rs_awake_want(struct rs_awake *awake);   /* from now on */
void rs_awake_unwant(struct rs_awake *awake); /* each want once; nothing changes yet */
/* How long the thread that unwanted last may sleep before it calls rs_awake_rest; -1: for ever. */
int rs_awake_grace_ms(struct rs_awake *awake);
void rs_awake_rest(struct rs_awake *awake); /* let the CPUs sleep, if nobody wants otherwise */

#endif
