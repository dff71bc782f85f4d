# Tests of the capture core (native/capture, tests/native); `make asan` and `make fuzz` end here.
# The core itself is built by setup.py.
#
#   make -C native asan                    C tests under ASan and UBSan
#   make -C native tsan                    the same under ThreadSanitizer
#   make -C native hostile COMPARED=400000 the digest cache against hostile writers, at length
#   make -C native records RECORDS=2000000   so many records in one action, in memory and in a file
#   make -C native fuzz FUZZ_SECONDS=60    each fuzz target (clang)
#   make -C native portable                compiles with clang, and for aarch64

CORE_TESTS := ../tests/native
CORE_BUILD := ../build/native-tests
CORE_SOURCES := $(sort $(wildcard capture/*.c))
CORE_HEADERS := $(wildcard capture/*.h) $(CORE_TESTS)/check.h capture.mk
CORE_FLAGS := -std=gnu11 -D_GNU_SOURCE -O1 -g -Wall -Wextra -Werror -Icapture -fno-omit-frame-pointer
ASAN_FLAGS := -fsanitize=address,undefined -fno-sanitize-recover=all
FUZZ_SECONDS ?= 60
COMPARED ?= 400000
RECORDS ?= 2000000
TEST_NAMES := $(basename $(notdir $(wildcard $(CORE_TESTS)/test_*.c)))
FUZZ_NAMES := $(basename $(notdir $(wildcard $(CORE_TESTS)/fuzz_*.c)))
# Of the trace core (native/trace) what needs no kernel: the aggregator, its parser and the ledger.
TRACE_SOURCES := trace/agg.c trace/check.c trace/ledger.c trace/result.c trace/clock.c $(sort $(wildcard trace/content*.c)) \
	$(addprefix capture/,dcache.c filestat.c mem.c sha.c spill.c)
TRACE_FLAGS = $(subst -Icapture,-Itrace,$(CORE_FLAGS))
TRACE_HEADERS := $(wildcard trace/*.h) ../bpf/event.h $(CORE_TESTS)/check.h capture.mk
TRACE_TESTS := $(basename $(notdir $(wildcard $(CORE_TESTS)/trace_test_*.c)))

$(TRACE_TESTS:%=$(CORE_BUILD)/asan/%): $(CORE_BUILD)/asan/%: $(CORE_TESTS)/%.c $(TRACE_SOURCES) $(TRACE_HEADERS)
	@mkdir -p $(@D)
	$(CC) $(TRACE_FLAGS) $(ASAN_FLAGS) $< $(TRACE_SOURCES) -lcrypto -lpthread -o $@

# What a test puts in the place of a library call.
LINK_test_queue_overflow := -Wl,--wrap=fanotify_init

$(CORE_BUILD)/asan/%: $(CORE_TESTS)/%.c $(CORE_SOURCES) $(CORE_HEADERS)
	@mkdir -p $(@D)
	$(CC) $(CORE_FLAGS) $(ASAN_FLAGS) $< $(CORE_SOURCES) $(LINK_$*) -lcrypto -lpthread -o $@

$(CORE_BUILD)/tsan/%: $(CORE_TESTS)/%.c $(CORE_SOURCES) $(CORE_HEADERS)
	@mkdir -p $(@D)
	$(CC) $(CORE_FLAGS) -fsanitize=thread $< $(CORE_SOURCES) $(LINK_$*) -lcrypto -lpthread -o $@

$(CORE_BUILD)/plain/%: $(CORE_TESTS)/%.c $(CORE_SOURCES) $(CORE_HEADERS)
	@mkdir -p $(@D)
	$(CC) $(CORE_FLAGS) -O2 $< $(CORE_SOURCES) -lcrypto -lpthread -o $@

# Most targets are of the capture core; these two are of other parts.
FUZZED_fuzz_wire := launcher/wire.c
FUZZED_fuzz_trace_events := trace/agg.c trace/check.c
OTHER_PARTS := $(wildcard launcher/*.[ch] trace/*.[ch] ../bpf/event.h) protocol.h

$(CORE_BUILD)/fuzz/%: $(CORE_TESTS)/%.c $(CORE_SOURCES) $(CORE_HEADERS) $(OTHER_PARTS)
	@mkdir -p $(@D)
	clang $(CORE_FLAGS) -fsanitize=fuzzer,address,undefined $< \
		$(or $(FUZZED_$*),$(CORE_SOURCES)) -lcrypto -lpthread -o $@

.PHONY: asan tsan hostile records fuzz portable
asan: $(TEST_NAMES:%=$(CORE_BUILD)/asan/%) $(TRACE_TESTS:%=$(CORE_BUILD)/asan/%)
	@set -e; for name in $(TEST_NAMES) $(TRACE_TESTS); do \
		code=0; $(CORE_BUILD)/asan/$$name || code=$$?; \
		case $$code in \
		0) echo "asan: $$name ok" ;; \
		77) echo "asan: $$name skipped: no permission events for this user, or no such filesystem" ;; \
		*) echo "asan: $$name FAILED ($$code)"; exit 1 ;; \
		esac; \
	done

tsan: $(TEST_NAMES:%=$(CORE_BUILD)/tsan/%)
	@set -e; for name in $(TEST_NAMES); do \
		code=0; setarch -R $(CORE_BUILD)/tsan/$$name || code=$$?; \
		[ $$code = 0 ] || [ $$code = 77 ] || { echo "tsan: $$name FAILED ($$code)"; exit 1; }; \
		echo "tsan: $$name done ($$code)"; \
	done

hostile: $(CORE_BUILD)/plain/test_dcache_hostile
	@$< $(COMPARED) || [ $$? = 77 ]

records: $(CORE_BUILD)/plain/test_records_scale
	@$< $(RECORDS) || [ $$? = 77 ]

fuzz: $(FUZZ_NAMES:%=$(CORE_BUILD)/fuzz/%)
	@set -e; for name in $(FUZZ_NAMES); do \
		mkdir -p $(CORE_BUILD)/corpus/$$name; \
		echo "fuzz: $$name for $(FUZZ_SECONDS) s"; \
		$(CORE_BUILD)/fuzz/$$name -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -verbosity=0 \
			-artifact_prefix=$(CORE_BUILD)/corpus/$$name. -print_final_stats=1 \
			$(CORE_BUILD)/corpus/$$name >$(CORE_BUILD)/fuzz/$$name.log 2>&1 || \
			{ tail -n 80 $(CORE_BUILD)/fuzz/$$name.log; echo "fuzz: $$name FAILED"; exit 1; }; \
		grep "^stat::number_of_executed_units" $(CORE_BUILD)/fuzz/$$name.log; \
	done

# libcrypto's headers are the host's: only its types matter for a check without linking.
portable:
	clang $(CORE_FLAGS) -fsyntax-only $(CORE_SOURCES)
	$(AARCH64_CC) $(CORE_FLAGS) -fsyntax-only -idirafter /usr/include \
		-idirafter /usr/include/$(shell $(CC) -print-multiarch) $(CORE_SOURCES)
