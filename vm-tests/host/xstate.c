/*
 * LD_PRELOAD shim that lets User-Mode Linux start on processors with AMX.
 *
 * UML up to 6.12 saves its processes' registers with PTRACE_GETREGSET/SETREGSET into a buffer of a
 * fixed size (2696 bytes: up to AVX-512 and PKRU). On a host with AMX the state is 11008 bytes and
 * SETREGSET insists on exactly that ("ptrace set fp regs failed, errno = 14", panic in init). The
 * shim hands the kernel a buffer of full size and UML the front of it. AMX tiles are not carried:
 * nothing in the guest uses them.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef NT_X86_XSTATE
#define NT_X86_XSTATE 0x202
#endif

/* XSAVE area: the header's bit map of valid components, and where AVX-512 and PKRU end. */
enum { XSTATE_BV = 512, END_OF_AVX512 = 2688, END_OF_PKRU = 2696 };
enum { X87_SSE_AVX = 0x7, AVX512 = 0xe0, PKRU = 0x200 };

static unsigned char state[65536] __attribute__((aligned(64)));
static size_t state_bytes; /* what this kernel calls the full size */

static long kernel_ptrace(long request, long pid, void *addr, void *data)
{
	return syscall(SYS_ptrace, request, pid, addr, data);
}

static long get_state(pid_t pid)
{
	struct iovec all = { state, sizeof state };
	long result = kernel_ptrace(PTRACE_GETREGSET, pid, (void *)NT_X86_XSTATE, &all);
	if (result >= 0)
		state_bytes = all.iov_len;
	return result;
}

static unsigned long *components(void *area)
{
	return (unsigned long *)((char *)area + XSTATE_BV);
}

static long get_front(pid_t pid, struct iovec *front)
{
	long result = get_state(pid);
	if (result < 0)
		return result;
	if (front->iov_len > state_bytes)
		front->iov_len = state_bytes;
	memcpy(front->iov_base, state, front->iov_len);
	return result;
}

static long set_front(pid_t pid, const struct iovec *front)
{
	if (!state_bytes && get_state(pid) < 0)
		return -1;
	size_t given = front->iov_len < state_bytes ? front->iov_len : state_bytes;
	memcpy(state, front->iov_base, given);
	memset(state + given, 0, state_bytes - given);
	*components(state) &= X87_SSE_AVX;
	if (given >= END_OF_AVX512)
		*components(state) |= *components(front->iov_base) & AVX512;
	if (given >= END_OF_PKRU)
		*components(state) |= *components(front->iov_base) & PKRU;
	struct iovec all = { state, state_bytes };
	return kernel_ptrace(PTRACE_SETREGSET, pid, (void *)NT_X86_XSTATE, &all);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	pid_t pid = va_arg(arguments, pid_t);
	void *addr = va_arg(arguments, void *);
	void *data = va_arg(arguments, void *);
	va_end(arguments);

	if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
		long value; /* the raw call stores what the C library's wrapper returns */
		long result = kernel_ptrace(request, pid, addr, &value);
		return result < 0 ? result : value;
	}
	if ((long)addr == NT_X86_XSTATE && request == PTRACE_GETREGSET)
		return get_front(pid, data);
	if ((long)addr == NT_X86_XSTATE && request == PTRACE_SETREGSET)
		return set_front(pid, data);
	return kernel_ptrace(request, pid, addr, data);
}
