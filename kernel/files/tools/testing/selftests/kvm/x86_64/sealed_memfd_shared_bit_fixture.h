/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The fixture of other tests with a guest-sealed memfd, in a VM that has a shared
 * GPA bit: the memslot, and an ordinary one, by both of their aliases.
 */
#ifndef SELFTEST_KVM_SEALED_MEMFD_SHARED_BIT_FIXTURE_H
#define SELFTEST_KVM_SEALED_MEMFD_SHARED_BIT_FIXTURE_H

#include <linux/sizes.h>

#include "apic.h"
#include "sealed_memfd.h"
#include "sealed_memfd_shared_bit.h"

#define PRIVATE		KVM_MEMORY_EXIT_FLAG_PRIVATE
#define SHARED		0

/* An ordinary memslot, without private half. */
#define ORDINARY_SLOT	(SLOT + 1)
#define ORDINARY_GPA	OTHER_GPA

FIXTURE(shared_bit)
{
	FIXTURE_DATA(sealed) sealed;
	struct test_vm *tvm;
	struct kvm_vm *vm;
	uint64_t bit;
};

FIXTURE_VARIANT(shared_bit)
{
	uint32_t type;
	/* 0 is the highest one there is. */
	unsigned int bit;
};

FIXTURE_VARIANT_ADD(shared_bit, default_vm) {
	.type = KVM_X86_DEFAULT_VM,
};

/* The aliases share a page table. */
FIXTURE_VARIANT_ADD(shared_bit, default_vm_low_bit) {
	.type = KVM_X86_DEFAULT_VM,
	.bit = 35,
};

FIXTURE_VARIANT_ADD(shared_bit, sw_protected_vm) {
	.type = KVM_X86_SW_PROTECTED_VM,
};

/* Maps some pages one to one, and their shared alias. */
static inline void map_both(struct kvm_vm *vm, uint64_t gpa, unsigned long nr_pages, uint64_t bit)
{
	virt_map(vm, gpa, gpa, nr_pages);
	virt_map(vm, gpa + SHARED_ALIAS, gpa | bit, nr_pages);
}

FIXTURE_SETUP(shared_bit)
{
	FIXTURE_DATA(sealed) *sealed = &self->sealed;
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = variant->type };
	int max = kvm_check_cap(KVM_CAP_X86_SHARED_GPA_BIT);
	unsigned long i;

	if (!max)
		SKIP(return, "no shared GPA bit");
	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(variant->type)))
		SKIP(return, "VM type %u is not supported", variant->type);

	self->bit = BIT_ULL(variant->bit ?: max);
	self->tvm = &sealed->tvm;
	self->vm = __vm_create(shape, 1, 64);
	sealed->vm = self->vm;
	sealed->tvm.vm = self->vm;
	vm_enable_shared_bit(self->vm, variant->bit ?: max);

	sealed->fd = new_sealed_memfd(2 * SIZE);
	/* Huge pages can be had by MADV_HUGEPAGE. */
	sealed->shared = mmap(NULL, 2 * SIZE + SZ_2M, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, sealed->shared);
	sealed->shared = (void *)round_up((unsigned long)sealed->shared, SZ_2M);
	for (i = 0; i < 2 * NR_PAGES; i++)
		*shared_page(sealed, i) = SHARED_VALUE(i);
	ASSERT_EQ(0, add_slot(sealed, SLOT, 0, NR_PAGES));
	ASSERT_EQ(0, set_slot(self->vm, ORDINARY_SLOT, 0, ORDINARY_GPA, SIZE,
			      sealed->shared + SIZE, -1, 0));

	sealed->tvm.vcpu = vm_vcpu_add(self->vm, 0, guest_code);
	sealed->tvm.command = addr_gva2hva(self->vm, (vm_vaddr_t)&guest_command);
	map_both(self->vm, GPA, 2 * NR_PAGES, self->bit);
	map_both(self->vm, MMIO_GPA, 1, self->bit);
	map_both(self->vm, APIC_DEFAULT_GPA, 1, self->bit);
}

FIXTURE_TEARDOWN(shared_bit)
{
	if (!self->vm)
		return;

	kvm_vm_free(self->vm);
	munmap(self->sealed.shared, 2 * SIZE);
	close(self->sealed.fd);
}

/* The address at which the guest asks for that kind of memory. */
static inline uint64_t gva_of(unsigned long page, uint64_t kind)
{
	return gpa_of(page) + (kind == PRIVATE ? 0 : SHARED_ALIAS);
}

static inline int convert(FIXTURE_DATA(shared_bit) *self, unsigned long page, uint64_t kind)
{
	return kind == PRIVATE ? to_private(&self->sealed, page, 1) :
				 to_shared(&self->sealed, page, 1);
}

/* The guest goes on with its command, and is stopped by the wrong kind of page. */
static inline void expect_mismatch(struct __test_metadata *_metadata, struct test_vm *tvm,
				   unsigned long page, uint64_t kind)
{
	expect_memory_fault(_metadata, tvm, gpa_of(page), kind, EFAULT);
}

static inline uint64_t guest_continue(struct test_vm *tvm)
{
	vcpu_run(tvm->vcpu);
	return guest_result(tvm);
}

static inline void set_page(FIXTURE_DATA(shared_bit) *self, unsigned long page, uint64_t kind)
{
	TEST_ASSERT(!convert(self, page, kind), "Can't convert");
	if (kind == SHARED)
		memset(shared_page(&self->sealed, page), 0, PAGE_SIZE);
}

/* The bytes of KVM_FEP */
static const char fep[5] = { 0x0f, 0x0b, 'k', 'v', 'm' };

/* Back to KVM_FEP, or else the CPU executes what KVM has not. */
static inline void emulate_again(struct kvm_vcpu *vcpu)
{
	struct kvm_regs regs;

	vcpu_regs_get(vcpu, &regs);
	regs.rip -= sizeof(fep);
	vcpu_regs_set(vcpu, &regs);
}

#endif /* SELFTEST_KVM_SEALED_MEMFD_SHARED_BIT_FIXTURE_H */
