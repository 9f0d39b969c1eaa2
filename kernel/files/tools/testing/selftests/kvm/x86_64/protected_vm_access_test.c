// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected VMs: whatever KVM accesses for the guest, or on its own, is of the half that
 * the guest has addressed.
 */
#include <linux/sizes.h>

#include "protected_vm.h"

#define VALUE	0x600df00d600df00dul

/* Where INS gets its byte from */
#define STRING_PORT	0x0f
#define BYTE		0x5a

/* The vector, or 0 if there was none */
static uint64_t guest_insb(uint64_t addr, uint64_t u1, uint64_t u2, uint64_t u3)
{
	uint64_t error_code;
	uint8_t vector;

	asm volatile(KVM_ASM_SAFE("insb")
		     : "+D" (addr), KVM_ASM_SAFE_OUTPUTS(vector, error_code)
		     : "d" (STRING_PORT)
		     : "memory", KVM_ASM_SAFE_CLOBBERS);
	return vector;
}

FIXTURE(access)
{
	struct pvm pvm;
	struct pvm *p;
	bool is_protected;
};

FIXTURE_VARIANT(access)
{
	unsigned long type;
};

FIXTURE_VARIANT_ADD(access, protected_vm) {
	.type = KVM_X86_PROTECTED_VM,
};

FIXTURE_VARIANT_ADD(access, default_vm) {
	.type = KVM_X86_DEFAULT_VM,
};

/* A page table in the memslot's page 0, by which the guest maps PAGE */
#define TABLE		0
/* Another one in the memslot without private half */
#define ORDINARY_TABLE	(NR_PAGES + 2)

FIXTURE_SETUP(access)
{
	struct pvm *p = &self->pvm;
	uint64_t *pde;
	int i, level;

	ASSERT_TRUE(has_vm_type(variant->type));
	self->p = p;
	self->is_protected = variant->type == KVM_X86_PROTECTED_VM;
	pvm_create(p, variant->type, 1);

	/* Each by both of its aliases, 2 MiB apart */
	for (i = 0; i < 4; i++) {
		level = PG_LEVEL_2M;
		virt_map(p->vm, PT_GVA + i * SZ_2M, OTHER_GPA, 1);
		pde = __vm_get_page_table_entry(p->vm, PT_GVA + i * SZ_2M, &level);
		*pde = gpa_of(i / 2 ? ORDINARY_TABLE : TABLE) | (i % 2 ? p->bit : 0) |
		       PTE_PRESENT_MASK | PTE_WRITABLE_MASK;
	}
	pvm_launch(p);
}

FIXTURE_TEARDOWN(access)
{
	if (self->p)
		pvm_free(self->p);
}

static int convert(struct pvm *p, unsigned long page, uint64_t kind)
{
	return fallocate(p->fd, kind == PRIVATE ? 0 : PUNCH, page * PAGE_SIZE, PAGE_SIZE);
}

static uint64_t *shared_half(struct pvm *p, unsigned long page)
{
	return (void *)p->shared + page * PAGE_SIZE;
}

static uint64_t run_insb(struct pvm *p, uint64_t addr)
{
	pvm_start(p, guest_insb, addr, 0, 0, 0);
	TEST_ASSERT_KVM_EXIT_REASON(p->vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(p->vcpu->run->io.port, STRING_PORT);
	*((uint8_t *)p->vcpu->run + p->vcpu->run->io.data_offset) = BYTE;
	vcpu_run(p->vcpu);
	return pvm_result(p);
}

/* A page that userspace can write to must not serve as table for what is private. */
TEST_F(access, page_table)
{
	const uint64_t pte = gpa_of(PAGE) | PTE_PRESENT_MASK | PTE_WRITABLE_MASK;
	const uint64_t used = PTE_ACCESSED_MASK | PTE_DIRTY_MASK;
	struct pvm *p = self->p;

	ASSERT_EQ(0, convert(p, PAGE, PRIVATE));
	*shared_half(p, TABLE) = pte;

	if (self->is_protected) {
		EXPECT_EQ(PF_VECTOR, run_insb(p, PT_GVA));
		EXPECT_EQ(0, pvm_read(p, gva_of(PAGE, PRIVATE)));
		EXPECT_EQ(pte, *shared_half(p, TABLE));
		/* Nor if it takes no more than to read it. */
		*shared_half(p, TABLE) = pte | used;
		EXPECT_EQ(PF_VECTOR, run_insb(p, PT_GVA));
		EXPECT_EQ(0, pvm_read(p, gva_of(PAGE, PRIVATE)));
	} else {
		EXPECT_EQ(0, run_insb(p, PT_GVA));
		EXPECT_EQ(BYTE, pvm_read(p, gva_of(PAGE, PRIVATE)));
		EXPECT_NE(pte, *shared_half(p, TABLE));
	}

	/* Unless that's what the guest wants. */
	pvm_write(p, gva_of(PAGE, PRIVATE), 0);
	*shared_half(p, TABLE) = pte;
	EXPECT_EQ(0, run_insb(p, PT_GVA + SZ_2M));
	EXPECT_EQ(BYTE, pvm_read(p, gva_of(PAGE, PRIVATE)));
	/* It has been accessed, and is dirty. */
	EXPECT_NE(pte, *shared_half(p, TABLE));

	/* Nor the other way round. */
	pvm_write(p, gva_of(PAGE, PRIVATE), 0);
	ASSERT_EQ(0, convert(p, TABLE, PRIVATE));
	pvm_write(p, gva_of(TABLE, PRIVATE), pte);
	EXPECT_EQ(self->is_protected ? PF_VECTOR : 0, run_insb(p, PT_GVA + SZ_2M));
	EXPECT_EQ(self->is_protected ? 0 : BYTE, pvm_read(p, gva_of(PAGE, PRIVATE)));
	if (self->is_protected) {
		pvm_write(p, gva_of(TABLE, PRIVATE), pte | used);
		EXPECT_EQ(PF_VECTOR, run_insb(p, PT_GVA + SZ_2M));
	}
	EXPECT_EQ(0, run_insb(p, PT_GVA));
	EXPECT_EQ(BYTE, pvm_read(p, gva_of(PAGE, PRIVATE)));
}

TEST_F(access, ordinary_page_table)
{
	const uint64_t pte = gpa_of(PAGE) | PTE_PRESENT_MASK | PTE_WRITABLE_MASK;
	struct pvm *p = self->p;

	ASSERT_EQ(0, convert(p, PAGE, PRIVATE));
	*shared_half(p, ORDINARY_TABLE) = pte;
	EXPECT_EQ(self->is_protected ? PF_VECTOR : 0, run_insb(p, PT_GVA + 2 * SZ_2M));
	EXPECT_EQ(self->is_protected ? 0 : BYTE, pvm_read(p, gva_of(PAGE, PRIVATE)));
	EXPECT_EQ(0, run_insb(p, PT_GVA + 3 * SZ_2M));
	EXPECT_EQ(BYTE, pvm_read(p, gva_of(PAGE, PRIVATE)));
}

static void test_msr(struct __test_metadata *_metadata, FIXTURE_DATA(access) *self, uint32_t msr,
		     uint64_t flags, unsigned long page, uint64_t kind)
{
	const uint64_t other = kind == PRIVATE ? SHARED : PRIVATE;
	const uint64_t gpa = gpa_of(page) | (kind == PRIVATE ? 0 : self->p->bit);
	struct pvm *p = self->p;
	struct kvm_run *run = p->vcpu->run;
	int r;

	ASSERT_EQ(0, convert(p, page, other));
	r = pvm_start(p, guest_do_wrmsr, msr, gpa | flags, 0, 0);
	if (self->is_protected) {
		EXPECT_EQ(-1, r);
		ASSERT_EQ(KVM_EXIT_MEMORY_FAULT, run->exit_reason) {
			TH_LOG("MSR %#x", msr);
		}
		EXPECT_EQ(gpa_of(page), run->memory_fault.gpa);
		EXPECT_EQ(kind, run->memory_fault.flags);
		ASSERT_EQ(0, convert(p, page, kind));
		vcpu_run(p->vcpu);
	} else {
		EXPECT_EQ(0, r);
	}
	EXPECT_EQ(0, pvm_result(p)) {
		TH_LOG("MSR %#x", msr);
	}
}

TEST_F(access, msrs)
{
	static const struct {
		uint32_t msr;
		uint64_t flags;
		bool is_written;
	} msrs[] = {
		{ MSR_KVM_WALL_CLOCK_NEW, 0, true },
		{ MSR_KVM_SYSTEM_TIME_NEW, 1, true },
		{ MSR_KVM_STEAL_TIME, KVM_MSR_ENABLED, true },
		{ MSR_KVM_ASYNC_PF_EN, KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_DELIVERY_AS_INT },
		{ MSR_KVM_PV_EOI_EN, KVM_MSR_ENABLED },
	};
	static const uint64_t kinds[] = { PRIVATE, SHARED };
	struct pvm *p = self->p;
	unsigned long page = PAGE;
	uint64_t actual;
	int i, j;

	for (i = 0; i < ARRAY_SIZE(msrs); i++) {
		for (j = 0; j < ARRAY_SIZE(kinds); j++, page++) {
			test_msr(_metadata, self, msrs[i].msr, msrs[i].flags, page, kinds[j]);
			actual = self->is_protected ? kinds[j] :
				 kinds[j] == PRIVATE ? SHARED : PRIVATE;
			/* What it is about begins with a version, or has it next to it. */
			if (msrs[i].is_written && actual == PRIVATE) {
				EXPECT_NE(0, pvm_read(p, gva_of(page, PRIVATE)) +
					     pvm_read(p, gva_of(page, PRIVATE) + 8));
				EXPECT_EQ(0, shared_half(p, page)[0] + shared_half(p, page)[1]);
			} else if (msrs[i].is_written) {
				EXPECT_NE(0, shared_half(p, page)[0] + shared_half(p, page)[1]);
			}
			pvm_call(p, guest_do_wrmsr, msrs[i].msr, 0, 0, 0);
		}
	}
}

/* The guest gives up, or asks for, a page that it has told KVM of. */
static void convert_by_guest(struct pvm *p, unsigned long page, uint64_t kind)
{
	int r = pvm_start(p, guest_load, gva_of(page, kind), 0, 0, 0);

	TEST_ASSERT(r && p->vcpu->run->exit_reason == KVM_EXIT_MEMORY_FAULT,
		    "The page is of that kind");
	TEST_ASSERT(!convert(p, page, kind), __KVM_SYSCALL_ERROR("fallocate()", -1));
	vcpu_run(p->vcpu);
	pvm_result(p);
}

/* What KVM updates by itself it looks for where the guest has said it is. */
TEST_F(access, updates)
{
	static const uint32_t msrs[] = { MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_STEAL_TIME };
	static const uint64_t kinds[] = { PRIVATE, SHARED };
	struct pvm *p = self->p;
	unsigned long page = PAGE;
	uint64_t kind, other, value, adjust = 0;
	int i, j, r;

	for (i = 0; i < ARRAY_SIZE(msrs); i++) {
		for (j = 0; j < ARRAY_SIZE(kinds); j++, page++) {
			kind = kinds[j];
			other = kind == PRIVATE ? SHARED : PRIVATE;
			ASSERT_EQ(0, convert(p, page, kind));
			r = pvm_call(p, guest_do_wrmsr, msrs[i],
				     gpa_of(page) | (kind == PRIVATE ? 0 : p->bit) | 1, 0, 0);
			ASSERT_EQ(0, r);

			convert_by_guest(p, page, other);
			if (other == SHARED)
				memset(shared_half(p, page), 0, PAGE_SIZE);
			/* The clocks change, and the time passes. */
			EXPECT_EQ(0, pvm_call(p, guest_do_wrmsr, MSR_IA32_TSC_ADJUST, ++adjust,
					      0, 0));
			value = pvm_read(p, gva_of(page, other)) |
				pvm_read(p, gva_of(page, other) + 8);
			EXPECT_EQ(self->is_protected, !value) {
				TH_LOG("MSR %#x, kind %lu", msrs[i], kind);
			}
			pvm_call(p, guest_do_wrmsr, msrs[i], 0, 0, 0);
		}
	}
}

/* Without private half it's shared, and not to be had for the asking. */
TEST_F(access, ordinary_memslot)
{
	const uint64_t gpa = ORDINARY_GPA + PAGE_SIZE;
	static const uint32_t msrs[] = {
		MSR_KVM_SYSTEM_TIME_NEW,
		MSR_KVM_STEAL_TIME,
		MSR_KVM_WALL_CLOCK_NEW,
	};
	struct pvm *p = self->p;
	struct kvm_run *run = p->vcpu->run;
	uint64_t *page = shared_half(p, NR_PAGES + 1);
	int i;

	*page = VALUE;
	EXPECT_EQ(VALUE, pvm_read(p, gpa + SHARED_ALIAS));
	EXPECT_EQ(0, run_insb(p, gpa + SHARED_ALIAS));
	EXPECT_EQ((VALUE & ~0xfful) | BYTE, *page);
	for (i = 0; i < ARRAY_SIZE(msrs); i++) {
		page[0] = 0;
		page[1] = 0;
		EXPECT_EQ(0, pvm_call(p, guest_do_wrmsr, msrs[i], gpa | p->bit | 1, 0, 0));
		EXPECT_NE(0, page[0] | page[1]) {
			TH_LOG("MSR %#x", msrs[i]);
		}
		pvm_call(p, guest_do_wrmsr, msrs[i], 0, 0, 0);
	}

	*page = VALUE;
	if (!self->is_protected) {
		EXPECT_EQ(VALUE, pvm_read(p, gpa));
		EXPECT_EQ(0, run_insb(p, gpa));
		return;
	}

	EXPECT_REFUSED(EFAULT, pvm_start(p, guest_load, gpa, 0, 0, 0));
	ASSERT_EQ(KVM_EXIT_MEMORY_FAULT, run->exit_reason);
	EXPECT_EQ(PRIVATE, run->memory_fault.flags);
	EXPECT_EQ(gpa, run->memory_fault.gpa);
	EXPECT_REFUSED(EFAULT, _vcpu_run(p->vcpu));
}

TEST_F(access, ordinary_memslot_emulated)
{
	const uint64_t gpa = ORDINARY_GPA + PAGE_SIZE;
	struct pvm *p = self->p;
	struct kvm_run *run = p->vcpu->run;

	if (!self->is_protected)
		SKIP(return, "See above");

	/* Not even the port is read. */
	EXPECT_REFUSED(EFAULT, pvm_start(p, guest_insb, gpa, 0, 0, 0));
	ASSERT_EQ(KVM_EXIT_MEMORY_FAULT, run->exit_reason);
	EXPECT_EQ(PRIVATE, run->memory_fault.flags);
	EXPECT_EQ(gpa, run->memory_fault.gpa);
}

/* What the VMM has set has KVM access memory that isn't the VMM's. */
TEST_F(access, before_it_is_final)
{
	static const uint32_t msrs[] = {
		MSR_KVM_SYSTEM_TIME_NEW,
		MSR_KVM_STEAL_TIME,
		MSR_KVM_PV_EOI_EN,
	};
	struct kvm_vapic_addr vapic = { .vapic_addr = gpa_of(PAGE) };
	struct pvm pvm;
	int i;

	pvm_create(&pvm, variant->type, 2);
	EXPECT_REFUSED_IF_PROTECTED(EPERM, __vcpu_ioctl(pvm.vcpu, KVM_SET_VAPIC_ADDR, &vapic));
	if (!self->is_protected) {
		pvm_free(&pvm);
		return;
	}

	pvm_load(&pvm);
	for (i = 0; i < ARRAY_SIZE(msrs); i++) {
		/* Others than the first have them, too. */
		ASSERT_EQ(1, _vcpu_set_msr(pvm.vcpus[1], msrs[i], gpa_of(PAGE) | 1));
		EXPECT_REFUSED(EINVAL, pvm_finalize(&pvm, NULL));
		ASSERT_EQ(1, _vcpu_set_msr(pvm.vcpus[1], msrs[i], 0));
	}
	EXPECT_EQ(0, pvm_finalize(&pvm, NULL));
	pvm_free(&pvm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(has_vm_type(KVM_X86_PROTECTED_VM));

	return test_harness_run(argc, argv);
}
