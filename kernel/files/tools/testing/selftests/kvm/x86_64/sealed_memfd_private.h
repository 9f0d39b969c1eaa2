/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What tests of KVM's own accesses start from: a guest of which all memory, its
 * code, page tables and stacks included, is in guest-sealed memfds, and has no
 * shared half to fall back to.
 */
#ifndef SELFTEST_KVM_SEALED_MEMFD_PRIVATE_H
#define SELFTEST_KVM_SEALED_MEMFD_PRIVATE_H

#include <linux/types.h>
#include <asm/pvclock-abi.h>

#include "sealed_memfd.h"

/* The guest waits here to be told what to do. */
#define COMMAND_PORT	0x0e
/* For what a guest does meanwhile */
#define STRING_PORT	0x0f

/* Where a guest of its own copies the first one's memory. */
#define ALIAS_SLOT	11
#define ALIAS_GPA	(256ul << 20)
#define COPIER_SLOT	12
#define COPIER_GPA	(512ul << 20)

/*
 * The guest
 */
typedef uint64_t (*guest_fn)(uint64_t, uint64_t, uint64_t);

static inline void private_guest_code(void)
{
	uint64_t fn = 0, arg1 = 0, arg2 = 0, arg3 = 0, ret = 0;

	for (;;) {
		asm volatile("out %%al, %[port]"
			     : "+a" (ret), "+D" (fn), "+S" (arg1), "+d" (arg2), "+c" (arg3)
			     : [port] "i" (COMMAND_PORT) : "memory");
		ret = ((guest_fn)fn)(arg1, arg2, arg3);
	}
}

static inline uint64_t guest_load(uint64_t addr, uint64_t unused1, uint64_t unused2)
{
	return READ_ONCE(*(uint64_t *)addr);
}

static inline uint64_t guest_store(uint64_t addr, uint64_t value, uint64_t unused)
{
	WRITE_ONCE(*(uint64_t *)addr, value);
	return 0;
}

static inline uint64_t guest_memcpy(uint64_t to, uint64_t from, uint64_t len)
{
	asm volatile("rep movsb" : "+D" (to), "+S" (from), "+c" (len) : : "memory");
	return 0;
}

static inline uint64_t guest_movsq(uint64_t to, uint64_t from, uint64_t unused)
{
	asm volatile("movsq" : "+D" (to), "+S" (from) : : "memory");
	return 0;
}

static inline uint64_t guest_ins(uint64_t to, uint64_t count, uint64_t unused)
{
	asm volatile("rep insb" : "+D" (to), "+c" (count) : "d" (STRING_PORT) : "memory");
	return 0;
}

static inline uint64_t guest_wrmsr(uint64_t msr, uint64_t value, uint64_t unused)
{
	return wrmsr_safe(msr, value);
}

static inline uint64_t guest_load_emulated(uint64_t addr, uint64_t unused1, uint64_t unused2)
{
	uint64_t value;

	asm volatile(KVM_FEP "mov (%1), %0" : "=r" (value) : "r" (addr) : "memory");
	return value;
}

static inline uint64_t guest_store_emulated(uint64_t addr, uint64_t value, uint64_t unused)
{
	asm volatile(KVM_FEP "mov %0, (%1)" : : "r" (value), "r" (addr) : "memory");
	return 0;
}

static inline uint64_t guest_cmpxchg_emulated(uint64_t addr, uint64_t old, uint64_t new)
{
	asm volatile(KVM_FEP "lock cmpxchg %2, (%1)"
		     : "+a" (old) : "r" (addr), "r" (new) : "memory");
	return old;
}

/*
 * The host's side of it
 */
static inline void start_guest(struct kvm_vcpu *vcpu, guest_fn fn, uint64_t arg1,
			       uint64_t arg2, uint64_t arg3)
{
	struct kvm_regs regs;

	vcpu_regs_get(vcpu, &regs);
	regs.rdi = (uint64_t)fn;
	regs.rsi = arg1;
	regs.rdx = arg2;
	regs.rcx = arg3;
	vcpu_regs_set(vcpu, &regs);
	vcpu_run(vcpu);
}

static inline bool is_io(struct kvm_vcpu *vcpu, uint16_t port)
{
	struct kvm_run *run = vcpu->run;

	return run->exit_reason == KVM_EXIT_IO && run->io.port == port;
}

static inline void assert_io(struct kvm_vcpu *vcpu, uint16_t port)
{
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(vcpu->run->io.port, port);
}

static inline uint64_t finish_guest(struct kvm_vcpu *vcpu)
{
	struct kvm_regs regs;

	assert_io(vcpu, COMMAND_PORT);
	vcpu_regs_get(vcpu, &regs);
	return regs.rax;
}

static inline uint64_t call_guest(struct kvm_vcpu *vcpu, guest_fn fn, uint64_t arg1,
				  uint64_t arg2, uint64_t arg3)
{
	start_guest(vcpu, fn, arg1, arg2, arg3);
	return finish_guest(vcpu);
}

static inline uint64_t load(struct kvm_vcpu *vcpu, uint64_t addr)
{
	return call_guest(vcpu, guest_load, addr, 0, 0);
}

static inline void store(struct kvm_vcpu *vcpu, uint64_t addr, uint64_t value)
{
	call_guest(vcpu, guest_store, addr, value, 0);
}

static inline void *io_data(struct kvm_vcpu *vcpu)
{
	return (void *)vcpu->run + vcpu->run->io.data_offset;
}

/* Not zero, as new pages are. */
#define POISON	0x5a

static inline void poison_shared(FIXTURE_DATA(sealed) *self, unsigned long page)
{
	memset(shared_page(self, page), POISON, PAGE_SIZE);
}

static inline bool is_poison(void *p)
{
	uint8_t *byte = p;

	return byte[0] == POISON && !memcmp(byte, byte + 1, PAGE_SIZE - 1);
}

/* Convert test pages to private, the shared half of which must not be touched. */
static inline void new_private(FIXTURE_DATA(sealed) *self, unsigned long page, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++)
		poison_shared(self, page + i);
	TEST_ASSERT(!to_private(self, page, nr), "Can't convert to private");
}

/*
 * Give the VM its memory a second time, in a sealed memfd. It's the guest who
 * can write to it, but not before it is there: so have code elsewhere copy it.
 */
static inline void copy_memory(struct kvm_vm *vm, struct kvm_vcpu *vcpu, void *mem, uint64_t size)
{
	/* rep movsq; out %al, $COMMAND_PORT */
	static const uint8_t code[] = { 0xf3, 0x48, 0xa5, 0xe6, COMMAND_PORT };
	const uint64_t flags = PTE_PRESENT_MASK | PTE_WRITABLE_MASK;
	struct kvm_sregs sregs, copier_sregs;
	struct kvm_regs regs, copier_regs = {
		.rip = COPIER_GPA + 3 * PAGE_SIZE,
		.rsi = ALIAS_GPA,
		.rdi = 0,
		.rcx = size / 8,
		.rflags = 2,
	};
	uint64_t *copier, i;

	copier = mmap(NULL, 4 * PAGE_SIZE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(copier != MAP_FAILED, "No memory");
	copier[0] = (COPIER_GPA + PAGE_SIZE) | flags;
	copier[512] = (COPIER_GPA + 2 * PAGE_SIZE) | flags;
	for (i = 0; i < 512; i++)
		copier[1024 + i] = i << 21 | flags | PTE_LARGE_MASK;
	memcpy(copier + 3 * 512, code, sizeof(code));

	TEST_ASSERT(!set_slot(vm, ALIAS_SLOT, 0, ALIAS_GPA, size, mem, -1, 0) &&
		    !set_slot(vm, COPIER_SLOT, 0, COPIER_GPA, 4 * PAGE_SIZE, copier, -1, 0),
		    "Can't create memslots");

	vcpu_regs_get(vcpu, &regs);
	vcpu_sregs_get(vcpu, &sregs);
	copier_sregs = sregs;
	copier_sregs.cr3 = COPIER_GPA;
	vcpu_sregs_set(vcpu, &copier_sregs);
	vcpu_regs_set(vcpu, &copier_regs);
	vcpu_run(vcpu);
	assert_io(vcpu, COMMAND_PORT);
	vcpu_run_complete_io(vcpu);
	vcpu_sregs_set(vcpu, &sregs);
	vcpu_regs_set(vcpu, &regs);

	TEST_ASSERT(!delete_slot(vm, ALIAS_SLOT) && !delete_slot(vm, COPIER_SLOT),
		    "Can't delete memslots");
	munmap(copier, 4 * PAGE_SIZE);
}

/* From now on nothing of the library that looks into the guest will do. */
static inline void make_private(FIXTURE_DATA(sealed) *self)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	struct userspace_mem_region *region;
	struct kvm_vm *vm = self->vm;
	struct kvm_regs regs;
	uint64_t size;
	void *mem;
	int fd;

	region = memslot2region(vm, 0);
	mem = region->host_mem;
	size = region->region.memory_size;
	TEST_ASSERT(region->region.guest_phys_addr == 0 && size < ALIAS_GPA,
		    "Memory is not where it is expected");

	fd = new_sealed_memfd(size);
	TEST_ASSERT(!delete_slot(vm, 0) &&
		    !set_slot(vm, 0, KVM_MEM_GUEST_MEMFD, 0, size, mem, fd, 0),
		    "Can't replace the memslot");
	TEST_ASSERT(!fallocate(fd, 0, 0, size), "Can't convert to private");
	close(fd);
	copy_memory(vm, vcpu, mem, size);
	TEST_ASSERT(!mprotect(mem, size, PROT_NONE), "Can't protect the shared half");

	vcpu_regs_get(vcpu, &regs);
	regs.rip = (uint64_t)private_guest_code;
	vcpu_regs_set(vcpu, &regs);
	vcpu_run(vcpu);
	finish_guest(vcpu);
}

/* The VMs of these tests, private and with a page for most of them */
static inline struct kvm_vcpu *setup_private(FIXTURE_DATA(sealed) *self)
{
	make_private(self);
	new_private(self, PAGE, 1);
	return self->tvm.vcpu;
}

static inline void enable_msr(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu,
			      uint32_t msr, uint64_t value)
{
	EXPECT_EQ(0, call_guest(vcpu, guest_wrmsr, msr, value, 0)) {
		TH_LOG("MSR %#x", msr);
	}
}

/* Copy it to where we can see it. */
static inline void get_private(FIXTURE_DATA(sealed) *self, uint64_t gpa, void *data, size_t len)
{
	call_guest(self->tvm.vcpu, guest_memcpy, gpa_of(0), gpa, len);
	memcpy(data, shared_page(self, 0), len);
}

/* Written by KVM, and not poison. */
static inline bool clock_is_valid(const struct pvclock_vcpu_time_info *clock)
{
	return clock->version && !(clock->version & 1) && clock->tsc_to_system_mul &&
	       !clock->pad0 && !clock->pad[0] && !clock->pad[1];
}

/* Have KVM update the clock. */
static inline void touch_clock(struct test_vm *tvm)
{
	struct kvm_clock_data data = { .clock = 1000000000ul };

	vm_ioctl(tvm->vm, KVM_SET_CLOCK, &data);
	load(tvm->vcpu, gpa_of(0));
}

/* What is written to the memslot */
#define BITMAP_LONGS	(NR_PAGES / 64)

static inline int set_logging(FIXTURE_DATA(sealed) *self, bool on)
{
	return set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD | (on ? KVM_MEM_LOG_DIRTY_PAGES : 0),
			GPA, SIZE, self->shared, self->fd, 0);
}

/* The first pages' bits; no others are set. */
static inline unsigned long get_dirty(FIXTURE_DATA(sealed) *self)
{
	unsigned long bitmap[BITMAP_LONGS], i;

	kvm_vm_get_dirty_log(self->vm, SLOT, bitmap);
	for (i = 1; i < BITMAP_LONGS; i++)
		TEST_ASSERT(!bitmap[i], "Pages from %lu on: %lx", i * 64, bitmap[i]);
	return bitmap[0];
}

/*
 * Log what is written to some of the pages from now on. To map a page may count as a
 * write to it, so have all mapped that the guest comes to.
 */
static inline void start_logging(FIXTURE_DATA(sealed) *self, unsigned long page,
				 unsigned long nr)
{
	TEST_ASSERT(!set_logging(self, true), "Can't enable logging");
	load(self->tvm.vcpu, gpa_of(0));
	while (nr--)
		load(self->tvm.vcpu, gpa_of(page + nr));
	get_dirty(self);
}

#endif /* SELFTEST_KVM_SEALED_MEMFD_PRIVATE_H */
