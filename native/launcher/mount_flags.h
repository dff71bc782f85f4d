/*
 * mount_flags.h: what a mount(2) call would do, by its flags.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/mount.h>

/* Neither makes a mount: a remount, and a change of propagation (mount(2), order of the flags). */
static inline bool makes_no_mount(uint64_t flags)
{
	const uint64_t propagation = MS_SHARED | MS_PRIVATE | MS_SLAVE | MS_UNBINDABLE;

	if ((flags & 0xffff0000) == 0xc0ed0000) /* MS_MGC_VAL, of old programs */
		flags &= ~(uint64_t)0xffff0000;
	return (flags & MS_REMOUNT) || ((flags & propagation) && !(flags & MS_BIND));
}
