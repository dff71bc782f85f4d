/* dcache.h: digests of unchanged files, shared by all scopes of an engine. See dcache.c for why it
 * is safe. */
#ifndef ROOTSEAL_CAPTURE_DCACHE_H
#define ROOTSEAL_CAPTURE_DCACHE_H
#include "filestat.h"

struct rs_dcache;

#define RS_DCACHE_ENTRIES_MAX (1ULL << 26)

int rs_dcache_open(uint64_t entries, struct rs_dcache **ret_cache);
void rs_dcache_close(struct rs_dcache *cache);
uint64_t rs_dcache_count(struct rs_dcache *cache);
uint64_t rs_dcache_learned(struct rs_dcache *cache); /* entries made since it was opened */
/* A lookup of this inode follows soon: its entries come out of memory while a path is asked for. */
void rs_dcache_expect(const struct rs_dcache *cache, const struct rs_stat *stat);
/* True with *ret_content written if the file is in exactly the state that was hashed. */
bool rs_dcache_lookup(struct rs_dcache *cache, const struct rs_stat *stat,
		      struct rs_content *ret_content);
void rs_dcache_insert(struct rs_dcache *cache, const struct rs_stat *stat,
		      const struct rs_content *content);

/*
 * All entries as they are in memory, RS_DCACHE_ENTRY_BYTES each, for a later daemon of this boot.
 * The caller frees.
 */
#define RS_DCACHE_ENTRY_BYTES 80
int rs_dcache_export(struct rs_dcache *cache, uint8_t **ret_bytes, size_t *ret_length);
/* Takes entries of the given devices where a place is free; how many. -EINVAL: not such bytes. */
int64_t rs_dcache_import(struct rs_dcache *cache, const uint8_t *bytes, size_t length,
			 const uint64_t *devices, size_t device_count);

/* True if nobody has the file open for writing, or mapped writable, at this moment. */
bool rs_no_writer(int fd);
/* True if the last change is older than what the clock of the timestamps can tell apart. */
bool rs_settled(const struct rs_stat *stat, int64_t now_coarse_ns);

#endif
