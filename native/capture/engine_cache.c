/*
 * engine_cache.c: what callers may ask of an engine's digest cache and memory.
 *
 * Owns: nothing. Must not: judge entries; dcache.c does. Hands off: to dcache.c and spill.c.
 * Privilege: none.
 */
#include "core.h"

uint64_t rs_engine_cache_entries(rs_engine *engine)
{
	return rs_dcache_count(rs_engine_cache(engine));
}

uint64_t rs_engine_cache_learned(rs_engine *engine)
{
	return rs_dcache_learned(rs_engine_cache(engine));
}

int rs_engine_cache_export(rs_engine *engine, uint8_t **ret_bytes, size_t *ret_length)
{
	return rs_dcache_export(rs_engine_cache(engine), ret_bytes, ret_length);
}

int64_t rs_engine_cache_import(rs_engine *engine, const uint8_t *bytes, size_t length,
			       const uint64_t *devices, size_t device_count)
{
	return rs_dcache_import(rs_engine_cache(engine), bytes, length, devices, device_count);
}

int rs_engine_set_memory(rs_engine *engine, uint64_t bytes, const char *directory)
{
	return rs_budget_set(rs_engine_budget(engine), bytes, directory);
}

void rs_engine_memory(rs_engine *engine, rs_memory *ret_memory)
{
	struct rs_budget *budget = rs_engine_budget(engine);

	*ret_memory = (rs_memory){
	    .budget = budget->limit,
	    .used = atomic_load(&budget->used),
	    .spilled = atomic_load(&budget->spilled),
	    .failures = atomic_load(&budget->failures),
	};
}
