/*
 * sysbpf.c: bpf(2) map access and program information, without a library, for maps of either
 * loader.
 *
 * Owns: nothing. Privilege: descriptors of the maps and programs.
 */
#include "sysbpf.h"

#include <errno.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int bpf_call(int command, union bpf_attr *attr)
{
	long result = syscall(SYS_bpf, command, attr, sizeof(*attr));

	return result < 0 ? -errno : (int)result;
}

static int map_call(int command, int fd, const void *key, const void *value)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.map_fd = (uint32_t)fd;
	attr.key = (uint64_t)(uintptr_t)key;
	attr.value = (uint64_t)(uintptr_t)value;
	return bpf_call(command, &attr);
}

int rs_map_create(const char *name, uint32_t type, uint32_t key_bytes, uint32_t value_bytes,
		  uint32_t entries)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.map_type = type;
	attr.key_size = key_bytes;
	attr.value_size = value_bytes;
	attr.max_entries = entries;
	snprintf(attr.map_name, sizeof(attr.map_name), "%s", name);
	return bpf_call(BPF_MAP_CREATE, &attr);
}

int rs_map_lookup(int fd, const void *key, void *value)
{
	return map_call(BPF_MAP_LOOKUP_ELEM, fd, key, value);
}

int rs_map_update(int fd, const void *key, const void *value)
{
	return map_call(BPF_MAP_UPDATE_ELEM, fd, key, value);
}

int rs_map_delete(int fd, const void *key)
{
	return map_call(BPF_MAP_DELETE_ELEM, fd, key, NULL);
}

int rs_map_next(int fd, const void *key, void *ret_next)
{
	return map_call(BPF_MAP_GET_NEXT_KEY, fd, key, ret_next);
}

int rs_program_misses(int fd, uint64_t *ret_misses)
{
	struct bpf_prog_info info;
	union bpf_attr attr;
	int error;

	memset(&info, 0, sizeof(info));
	memset(&attr, 0, sizeof(attr));
	attr.info.bpf_fd = (uint32_t)fd;
	attr.info.info_len = sizeof(info);
	attr.info.info = (uint64_t)(uintptr_t)&info;
	error = bpf_call(BPF_OBJ_GET_INFO_BY_FD, &attr);
	if (error < 0)
		return error;
	*ret_misses = info.recursion_misses;
	return 0;
}

unsigned rs_possible_cpus(void)
{
	FILE *file = fopen("/sys/devices/system/cpu/possible", "re");
	char text[256];
	char *last;
	unsigned count = 0;

	if (!file)
		return 0;
	if (fgets(text, sizeof(text), file)) { /* "0-7", or "0,2-3": ids are dense up to the last */
		last = text + strlen(text);
		while (last > text && (last[-1] < '0' || last[-1] > '9'))
			last--;
		while (last > text && last[-1] >= '0' && last[-1] <= '9')
			last--;
		count = (unsigned)strtoul(last, NULL, 10) + 1;
	}
	fclose(file);
	return count;
}
