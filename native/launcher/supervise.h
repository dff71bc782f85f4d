/*
 * supervise.h: what supervise.c and supervise_traced.c share.
 */
#pragma once

#include "launcher.h"

struct supervision {
	const struct options *options;
	pid_t pid;
	int signal_fd;
	int control_fd;
	int conn_fd;
	bool armed;
	bool failed; /* the child has said why */
	bool ended;
	bool told; /* to end: whether the action lived to see it cannot be known */
	int wait_status;
	struct guard guard;
};

void control_event(struct supervision *s);
void last_words(struct supervision *s);
void mirror_stop(int signo);
/* True if a signal came that ends the wait for descendants: the action has ended. */
bool forward_signals(struct supervision *s);
int check_armed(const struct supervision *s, struct outcome *ret_outcome);
