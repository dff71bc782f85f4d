/* verity.h: SHA-256 of sealed files by their fs-verity digest. See verity.c. */
#ifndef ROOTSEAL_CAPTURE_VERITY_H
#define ROOTSEAL_CAPTURE_VERITY_H
#include "filestat.h"

#define RS_VERITY_ENTRY_BYTES (2 * RS_SHA256_BYTES + 8)
#define RS_VERITY_ENTRIES_MAX (1ULL << 22)

struct rs_verity;

/*
 * A map of `count` entries of RS_VERITY_ENTRY_BYTES each: fs-verity digest, SHA-256, size as
 * big-endian u64. -EINVAL: more than RS_VERITY_ENTRIES_MAX.
 */
int rs_verity_open(const uint8_t *entries, uint64_t count, struct rs_verity **ret_map);
void rs_verity_close(struct rs_verity *map);
/*
 * True with *ret_digest32 written if the open file is sealed, measures as one of the entries and
 * has its size. `map` may be NULL.
 */
bool rs_verity_lookup(const struct rs_verity *map, int fd, const struct rs_stat *stat,
		      uint8_t *ret_digest32);

#endif
