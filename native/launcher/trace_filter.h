/* SPDX-License-Identifier: Apache-2.0 */
/* The seccomp filter of the ptrace backend, and the names of the calls it stops. */
#pragma once

#include <linux/audit.h>
#include <stdint.h>

#if defined(__x86_64__)
#define RS_ARCH_NATIVE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define RS_ARCH_NATIVE AUDIT_ARCH_AARCH64
#else
#error "the ptrace backend knows x86-64 and aarch64"
#endif

enum rs_call {
	RS_CALL_OTHER, /* not ours: a filter of the action itself asked for a tracer */
#define RS_CALL(name, when, x86_64, i386, aarch64) RS_CALL_##name,
#include "trace_calls.h"
#undef RS_CALL
	RS_CALL_COUNT,
};

/* Installs the filter on the calling thread (and sets no_new_privs). Returns 0 or -errno. */
int rs_trace_filter_install(void);

/* The call behind a number; RS_CALL_OTHER if the filter does not stop it. */
enum rs_call rs_trace_call_lookup(uint32_t audit_arch, uint64_t number);

/* Its name as in the manual; "" for RS_CALL_OTHER. */
const char *rs_trace_call_name(enum rs_call call);

/* 1 if the filter knows this architecture (AUDIT_ARCH_*) on this machine. */
int rs_trace_arch_known(uint32_t audit_arch);
