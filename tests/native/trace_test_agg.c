/* The trace core's aggregator, its parser and its ledger, without a kernel. */
#include "agg.h"
#include "check.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#define SCOPE	    1
#define KERNEL_DEV  (8u << 20 | 1) /* the kernel's encoding of 8:1 */
#define MEMORY_DEV  (0u << 20 | 1)
#define EXT4	    0xef53
#define PROC	    0x9fa0
#define CREATED	    0x100000
#define O_PATH_FLAG 010000000

static rs_trace_result *result;

static void begin(rs_trace_limits limits)
{
	result = calloc(1, sizeof(*result));
	CHECK(result && !rs_agg_init(&result->agg, &limits));
}

static const rs_trace_limits wide = {
    .max_opens = 1000, .max_event_bytes = 1 << 20, .max_processes = 100};

static struct rs_open_event opened(uint64_t ino, uint32_t mode, uint32_t flags)
{
	return (struct rs_open_event){
	    .head = {.type = RS_EVENT_OPEN,
		     .size = sizeof(struct rs_open_event),
		     .scope = SCOPE,
		     .tgid = 7},
	    .file = {.ino = ino, .dev = KERNEL_DEV, .mode = mode, .flags = flags, .magic = EXT4},
	};
}

static void feed(const void *event)
{
	rs_agg_feed(&result->agg, event, ((const struct rs_event *)event)->size);
}

static void feed_open(uint64_t ino, uint32_t mode, uint32_t flags)
{
	struct rs_open_event event = opened(ino, mode, flags);

	feed(&event);
}

static void feed_special(uint64_t ino, uint32_t dev, uint64_t magic, uint32_t fmode)
{
	struct rs_open_event event = opened(ino, S_IFREG, O_RDONLY);

	event.file.dev = dev;
	event.file.magic = magic;
	event.file.fmode = fmode;
	feed(&event);
}

static void test_each_reason_of_the_ledger(void)
{
	uint64_t hashed[] = {makedev(8, 1), 1, makedev(8, 1), 99};
	rs_trace_open left[4];
	rs_trace_ledger ledger;

	begin(wide);
	feed_open(1, S_IFREG, O_RDONLY);	    /* hashed */
	feed_open(1, S_IFREG, O_RDONLY);	    /* the same file again */
	feed_open(2, S_IFDIR, O_RDONLY);	    /* not regular */
	feed_open(3, S_IFREG, O_PATH_FLAG);	    /* no content */
	feed_special(4, KERNEL_DEV, PROC, 0);	    /* pseudo filesystem */
	feed_special(5, MEMORY_DEV, EXT4, 0);	    /* memory file */
	feed_special(6, KERNEL_DEV, EXT4, CREATED); /* created */
	feed_open(7, S_IFREG, O_WRONLY);	    /* write only */
	feed_open(0, 0, 0);			    /* unresolved: its descriptor was gone */
	feed_open(8, S_IFREG, O_RDONLY);	    /* a loss */
	feed_open(9, S_IFREG, O_WRONLY);	    /* written by one open, … */
	feed_open(9, S_IFREG, O_RDONLY);	    /* … read by another: a loss */
	rs_agg_seal(&result->agg);
	CHECK(rs_trace_reconcile(result, hashed, 2, makedev(0, 1), &ledger, left, 4) == 2);
	CHECK(ledger.files == 10 && ledger.hashed == 1 && ledger.not_regular == 1);
	CHECK(ledger.no_content == 1 && ledger.pseudo_filesystem == 1 && ledger.memory_file == 1);
	CHECK(ledger.created == 1 && ledger.write_only == 1 && ledger.unresolved == 1);
	CHECK(ledger.unhashed == 2 && ledger.fanotify_only == 1);
	CHECK(left[0].ino == 8 && left[1].ino == 9);
	CHECK(result->agg.counters.opens == 12 && !result->agg.counters.malformed);
	rs_trace_result_free(result);
}

static void test_caps_are_counted(void)
{
	struct rs_fork_event fork = {.head = {.type = RS_EVENT_FORK, .size = sizeof(fork)}};
	size_t count;

	begin((rs_trace_limits){.max_opens = 3, .max_event_bytes = 256, .max_processes = 2});
	for (uint64_t ino = 1; ino <= 5; ino++)
		feed_open(ino, S_IFREG, O_RDONLY);
	for (uint32_t tgid = 1; tgid <= 5; tgid++) {
		fork.head.tgid = tgid;
		feed(&fork);
	}
	CHECK(result->agg.counters.opens_cap_hit == 2);
	CHECK(result->agg.counters.processes_cap_hit == 3);
	CHECK(result->agg.counters.events_cap_hit > 0 && result->agg.event_bytes <= 256);
	rs_agg_seal(&result->agg);
	CHECK(rs_trace_opens(result, &count) && count == 3);
	rs_trace_result_free(result);
}

static void test_tables_grow(void)
{
	size_t count;

	begin((rs_trace_limits){.max_opens = 10000, .max_event_bytes = 1, .max_processes = 1});
	for (uint64_t ino = 1; ino <= 10000; ino++)
		feed_open(ino, S_IFREG, O_RDONLY);
	for (uint64_t ino = 1; ino <= 10000; ino++)
		feed_open(ino, S_IFREG, O_WRONLY);
	rs_agg_seal(&result->agg);
	rs_trace_opens(result, &count);
	CHECK(count == 10000 && !result->agg.counters.opens_cap_hit);
	CHECK(result->agg.opens[0].count == 2 && result->agg.opens[0].access == 3);
	rs_trace_result_free(result);
}

static void test_events_that_lie_are_malformed(void)
{
	_Alignas(8) uint8_t bytes[RS_HEAD_BYTES + 16] = {0};
	struct rs_call_event *call = (void *)bytes;

	begin(wide);
	call->head = (struct rs_event){.type = RS_EVENT_CALL, .size = sizeof(bytes), .tgid = 7};
	call->call = RS_CALL_MOUNT;
	call->text_len = 16;
	feed(bytes);
	CHECK(result->agg.counters.malformed == 0 && result->agg.event_bytes == sizeof(bytes));
	call->text_len = 17; /* beyond the event */
	feed(bytes);
	call->text_len = 1;
	call->walk_len[0] = UINT32_MAX; /* a sum that would wrap in 32 bits */
	call->walk_len[1] = UINT32_MAX;
	feed(bytes);
	rs_agg_feed(&result->agg, bytes, sizeof(bytes) - 8); /* cut */
	rs_agg_feed(&result->agg, bytes, 4);
	call->head.type = 99;
	feed(bytes);
	CHECK(result->agg.counters.malformed == 5 && result->agg.event_bytes == sizeof(bytes));
	rs_trace_result_free(result);
}

static void test_equal_calls_are_one(void)
{
	_Alignas(8) uint8_t bytes[RS_HEAD_BYTES] = {0};
	struct rs_call_event *call = (void *)bytes;

	begin(wide);
	call->head = (struct rs_event){.type = RS_EVENT_CALL, .size = sizeof(bytes), .tgid = 7};
	call->call = RS_CALL_SENDFILE;
	call->file[0].ino = 1;
	for (int i = 0; i < 5; i++)
		feed(bytes);
	call->file[1].ino = 2; /* another destination */
	feed(bytes);
	CHECK(result->agg.counters.repeats == 4 && result->agg.event_bytes == 2 * sizeof(bytes));
	CHECK(((struct rs_call_event *)result->agg.events)->repeats == 4);
	rs_trace_result_free(result);
}

/* Calls without a rule of their own: one only where arguments, texts and result are the same. */
static void test_a_loop_of_calls_is_one(void)
{
	_Alignas(8) uint8_t bytes[RS_HEAD_BYTES + 4] = {0};
	struct rs_call_event *call = (void *)bytes;
	size_t kept = (sizeof(bytes) + 7) & ~(size_t)7;

	begin(wide);
	call->head = (struct rs_event){.type = RS_EVENT_CALL, .size = sizeof(bytes), .tgid = 7};
	call->call = RS_CALL_PRCTL;
	call->text_len = 4;
	memcpy(bytes + RS_HEAD_BYTES, "one", 4);
	for (int i = 0; i < 5; i++) {
		call->head.time_ns++;
		call->head.tid++;
		feed(bytes);
	}
	CHECK(result->agg.event_bytes == kept);
	CHECK(((struct rs_call_event *)result->agg.events)->repeats == 4);
	memcpy(bytes + RS_HEAD_BYTES, "two", 4);
	feed(bytes);
	call->result = -1;
	feed(bytes);
	call->head.tgid = 8;
	feed(bytes);
	CHECK(result->agg.event_bytes == 4 * kept && result->agg.counters.repeats == 4);
	rs_trace_result_free(result);
}

int main(void)
{
	test_each_reason_of_the_ledger();
	test_caps_are_counted();
	test_tables_grow();
	test_events_that_lie_are_malformed();
	test_equal_calls_are_one();
	test_a_loop_of_calls_is_one();
	return 0;
}
