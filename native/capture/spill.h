/* spill.h: memory for records within a budget, and beyond it from an unlinked file. See spill.c. */
#ifndef ROOTSEAL_CAPTURE_SPILL_H
#define ROOTSEAL_CAPTURE_SPILL_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Of an engine, shared by its scopes. */
struct rs_budget {
	uint64_t limit; /* bytes of memory for records; UINT64_MAX: no limit, no file */
	int dir_fd;	/* owned; where files are made, -1 without a limit */
	_Atomic uint64_t used;
	_Atomic uint64_t spilled;  /* bytes in files now */
	_Atomic uint64_t failures; /* times that neither had room */
};

/* Of a scope; guarded by its mutex. */
struct rs_spill {
	struct rs_budget *budget;
	int fd; /* owned, unlinked; -1: none needed so far */
	uint64_t file_bytes;
};

void rs_budget_init(struct rs_budget *budget);
/* Before the first scope. */
int rs_budget_set(struct rs_budget *budget, uint64_t limit, const char *directory);
void rs_budget_close(struct rs_budget *budget);

void rs_spill_init(struct rs_spill *spill, struct rs_budget *budget);
/* NULL: no room, counted. *ret_bytes: what was taken, at least `bytes`. */
void *rs_spill_take(struct rs_spill *spill, size_t bytes, size_t *ret_bytes, bool *ret_in_file);
/* It is not needed for now: pages of a file may leave memory. */
void rs_spill_rest(void *memory, size_t bytes);
void rs_spill_give(struct rs_spill *spill, void *memory, size_t bytes, bool in_file);
void rs_spill_close(struct rs_spill *spill);

#endif
