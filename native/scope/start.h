/*
 * start.h: entry point and system calls for a program without a C library.
 *
 * A C library in secure mode removes variables from the environment; the action must get its
 * environment exactly. And what is not there need not be trusted.
 */
#pragma once

#include <sys/syscall.h>

int scope_main(long argc, char **argv, char **environment);

/* The kernel's stack at entry: argc, argv…, NULL, environment…, NULL. */
__attribute__((used)) static void start_c(long *stack)
{
	long argc = stack[0];
	char **argv = (char **)(stack + 1);

	long status = scope_main(argc, argv, argv + argc + 1);

#if defined(__x86_64__)
	__asm__ volatile("syscall" : : "a"(SYS_exit_group), "D"(status) : "rcx", "r11", "memory");
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = SYS_exit_group;
	register long x0 __asm__("x0") = status;

	__asm__ volatile("svc 0" : : "r"(x8), "r"(x0) : "memory");
#endif
	__builtin_trap();
}

#if defined(__x86_64__)
__asm__(".globl _start\n"
	"_start:\n"
	"	xor %ebp, %ebp\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call start_c\n"
	"	hlt\n");

static inline long system_call5(long number, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return result;
}
#elif defined(__aarch64__)
__asm__(".globl _start\n"
	"_start:\n"
	"	mov x29, #0\n"
	"	mov x30, #0\n"
	"	mov x0, sp\n"
	"	bl start_c\n"
	"	brk #1\n");

static inline long system_call5(long number, long a, long b, long c, long d, long e)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
			 : "memory");
	return x0;
}
#else
#error "rootseal-scope supports x86-64 and aarch64"
#endif

static inline long system_call0(long number)
{
	return system_call5(number, 0, 0, 0, 0, 0);
}

static inline long system_call1(long number, long a)
{
	return system_call5(number, a, 0, 0, 0, 0);
}

static inline long system_call2(long number, long a, long b)
{
	return system_call5(number, a, b, 0, 0, 0);
}

static inline long system_call3(long number, long a, long b, long c)
{
	return system_call5(number, a, b, c, 0, 0);
}
