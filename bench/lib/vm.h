/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * VMs whose memory is of one kind or another, and a guest that touches it, or asks
 * for it to be converted.
 *
 * The memory of which a VM is about is at MEMORY_GPA, in one memslot. Below it is
 * memory with the guest's code and page tables, if there are vCPUs, ordinary unless the
 * guest stays. It is in long mode, and has mapped 512 GiB one to one.
 */
#ifndef BENCH_VM_H
#define BENCH_VM_H

#include <linux/kvm.h>

#include "../bench.h"

#define PAGE 4096UL
#define HUGE_PAGE (2UL << 20)
#define GIGABYTE (1UL << 30)
#define MEMORY_GPA GIGABYTE
#define SHARED_BIT (1UL << 38)
#define MOST_VCPUS 8

enum kind {
	ANONYMOUS, /* of 4 KiB pages */
	ANONYMOUS_HUGE,
	GUESTSEAL,
	GUESTSEAL_HUGE,
	GUEST_MEMFD,
	BARE, /* no VM */
	BARE_HUGE,
	MAPPED, /* a memfd as ordinary memory */
	MAPPED_HUGE,
	NR_KINDS,
};
extern const char *const kind_names[NR_KINDS];

struct vcpu {
	int fd;
	struct kvm_run *run;
	long exits; /* to userspace, to have something converted */
};

struct vm {
	enum kind kind;
	int fd;		      /* -1 without VM */
	int memfd, low_memfd; /* of private memory, or -1 */
	size_t size;
	size_t slot_size; /* all of size in one memslot, unless it is set before */
	char *shared, *low;
	unsigned int nr_vcpus;
	struct vcpu vcpus[MOST_VCPUS];
	int shared_bit; /* does the guest tell by SHARED_BIT which half it wants? */
	size_t piece;	/* what becomes private when a guest touches a page */
	/*
	 * Is the guest left alone in its code, with a shared bit? It has interrupts then,
	 * reads what to do from memory, and all that it has is private. So it can be in a
	 * protected VM, which is to be finalized before it runs.
	 */
	int stays, protected;
};

/* In VM are kind, size and nr_vcpus, and what else is to be set, if need be. */
void vm_create(struct vm *vm);
void vm_destroy(struct vm *vm);

void vm_convert(struct vm *vm, size_t offset, size_t size, int private);
/* A guest_memfd has attributes, too; and these only. */
void vm_set_attributes(struct vm *vm, size_t offset, size_t size, int private);

enum guest_code {
	GUEST_WRITE,	/* to count bytes that are so far apart */
	GUEST_READ,	/* from them */
	GUEST_EXPLICIT, /* private on request, write, shared on request, write */
	GUEST_IMPLICIT, /* write to either half */
	GUEST_COMPUTE,	/* count times, in 64 KiB */
	GUEST_OUT,
	GUEST_IN,
	GUEST_MMIO_WRITE,
	GUEST_MMIO_READ,
	/* Of those only that stay */
	GUEST_IPI,   /* to itself */
	GUEST_TIMER, /* and HLT until it ticks */
};
/* The guest does that, and what is to be converted gets converted. */
void vcpu_run(struct vm *vm, unsigned int vcpu, enum guest_code code, size_t offset, size_t stride,
	      size_t count);
/* The guest writes to all pages of a range. */
static inline void touch(struct vm *vm, size_t offset, size_t size)
{
	vcpu_run(vm, 0, GUEST_WRITE, offset, PAGE, size / PAGE);
}

/* KVM's statistics */
long vm_stat(const struct vm *vm, const char *name);
long vcpu_stat(const struct vm *vm, unsigned int vcpu, const char *name);

#endif
