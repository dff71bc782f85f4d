/* sysbpf.h: the bpf(2) operations that the trace core needs. See sysbpf.c. */
#ifndef ROOTSEAL_TRACE_SYSBPF_H
#define ROOTSEAL_TRACE_SYSBPF_H
#include <stdint.h>

/* A new map; its descriptor (CLOEXEC) or -errno. */
int rs_map_create(const char *name, uint32_t type, uint32_t key_bytes, uint32_t value_bytes,
		  uint32_t entries);
int rs_map_lookup(int fd, const void *key, void *value);
int rs_map_update(int fd, const void *key, const void *value);
int rs_map_delete(int fd, const void *key);
/* The key after `key` (NULL: the first); -ENOENT at the end. */
int rs_map_next(int fd, const void *key, void *ret_next);
/* Times the kernel skipped a program because it was already running on that CPU. */
int rs_program_misses(int fd, uint64_t *ret_misses);
/* Possible CPUs; 0 if the kernel does not say. */
unsigned rs_possible_cpus(void);

#endif
