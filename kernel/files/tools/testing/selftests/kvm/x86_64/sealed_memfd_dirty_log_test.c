// SPDX-License-Identifier: GPL-2.0
/*
 * Dirty logging, and other flags, of memslots with a guest-sealed memfd.
 */
#include <linux/sizes.h>
#include <pthread.h>
#include <string.h>

#include "apic.h"
#include "sealed_memfd_private.h"
#include "svm_util.h"

/* Shared, private, shared and so on. Pages with even numbers are shared. */
#define NR_MIXED	16ul
#define IS_PRIVATE(i)	((i) % 2)

static int set_flags_at(FIXTURE_DATA(sealed) *self, uint64_t gpa, uint32_t flags)
{
	return set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD | flags, gpa, SIZE,
			self->shared, self->fd, 0);
}

static int set_flags(FIXTURE_DATA(sealed) *self, uint32_t flags)
{
	return set_flags_at(self, GPA, flags);
}

static void make_mixed(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self)
{
	unsigned long i;

	for (i = 0; i < NR_MIXED; i++) {
		if (IS_PRIVATE(i))
			ASSERT_EQ(0, to_private(self, i, 1));
	}
}

static uint64_t value_of(unsigned long i)
{
	return IS_PRIVATE(i) ? PRIVATE_VALUE(i) : SHARED_VALUE(i);
}

/*
 * Bitmaps
 */
TEST_F(sealed, writes)
{
	struct test_vm *tvm = &self->tvm;
	unsigned long i, round;

	make_mixed(_metadata, self);
	ASSERT_EQ(0, set_logging(self, true));
	EXPECT_EQ(0, get_dirty(self));
	for (round = 0; round < 3; round++) {
		for (i = 0; i < NR_MIXED; i++) {
			guest_write(tvm, gpa_of(i), value_of(i) + round);
			EXPECT_EQ(BIT(i), get_dirty(self));
			EXPECT_EQ(0, get_dirty(self));
		}
		for (i = 0; i < NR_MIXED; i++)
			guest_write(tvm, gpa_of(i), value_of(i) + round);
		EXPECT_EQ(BIT(NR_MIXED) - 1, get_dirty(self));
	}

	/* Logging is about writes, it doesn't change what's where. */
	for (i = 0; i < NR_MIXED; i++) {
		EXPECT_EQ(value_of(i) + 2, guest_read(tvm, gpa_of(i)));
		EXPECT_EQ(SHARED_VALUE(i) + (IS_PRIVATE(i) ? 0 : 2), *shared_page(self, i));
	}
}

TEST_F(sealed, writes_to_mapped_pages)
{
	struct test_vm *tvm = &self->tvm;
	unsigned long i;

	/* The guest can write all of them when logging begins. */
	make_mixed(_metadata, self);
	for (i = 0; i < NR_MIXED; i++)
		guest_write(tvm, gpa_of(i), 0);
	ASSERT_EQ(0, set_logging(self, true));
	EXPECT_EQ(0, get_dirty(self));
	for (i = 0; i < NR_MIXED; i++) {
		guest_read(tvm, gpa_of(i));
		EXPECT_EQ(0, get_dirty(self));
		guest_write(tvm, gpa_of(i), value_of(i));
		EXPECT_EQ(BIT(i), get_dirty(self));
	}
}

TEST_F(sealed, conversions)
{
	struct test_vm *tvm = &self->tvm;

	ASSERT_EQ(0, set_logging(self, true));
	ASSERT_EQ(0, to_private(self, PAGE, 2));
	EXPECT_EQ(BIT(PAGE) | BIT(PAGE + 1), get_dirty(self));
	guest_write(tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
	EXPECT_EQ(BIT(PAGE), get_dirty(self));
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	EXPECT_EQ(BIT(PAGE), get_dirty(self));
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));

	/* Nothing to do, nothing to report. */
	get_dirty(self);
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	ASSERT_EQ(0, to_private(self, PAGE + 1, 1));
	EXPECT_REFUSED(EINVAL, fallocate(self->fd, 0, 1, PAGE_SIZE));
	EXPECT_EQ(0, get_dirty(self));

	/* With content */
	ASSERT_EQ(PAGE_SIZE, pwrite(self->fd, self->shared, PAGE_SIZE, PAGE * PAGE_SIZE));
	EXPECT_EQ(BIT(PAGE), get_dirty(self));
	EXPECT_REFUSED(EEXIST, pwrite(self->fd, self->shared, PAGE_SIZE, PAGE * PAGE_SIZE));
	EXPECT_EQ(0, get_dirty(self));

	/* What was converted is logged from then on as before. */
	guest_write(tvm, gpa_of(PAGE), 1);
	guest_write(tvm, gpa_of(PAGE + 1), 1);
	EXPECT_EQ(BIT(PAGE) | BIT(PAGE + 1), get_dirty(self));
}

TEST_F(sealed, conversion_of_all_pages)
{
	unsigned long bitmap[BITMAP_LONGS], i, bad = 0;

	ASSERT_EQ(0, set_logging(self, true));
	ASSERT_EQ(0, to_private(self, 0, NR_PAGES));
	kvm_vm_get_dirty_log(self->vm, SLOT, bitmap);
	for (i = 0; i < BITMAP_LONGS; i++)
		bad += bitmap[i] != -1ul;
	ASSERT_EQ(0, to_shared(self, 0, NR_PAGES));
	kvm_vm_get_dirty_log(self->vm, SLOT, bitmap);
	for (i = 0; i < BITMAP_LONGS; i++)
		bad += bitmap[i] != -1ul;
	EXPECT_EQ(0, bad);
}

/* A page is logged where it is, wherever that is in the file. */
TEST_F(sealed, memslot_with_offset)
{
	unsigned long bitmap[BITMAP_LONGS] = {};

	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD | KVM_MEM_LOG_DIRTY_PAGES,
			      gpa_of(8), SIZE / 2, self->shared, self->fd, SIZE));
	/* Beside it, from one to the other side of its start, and in it */
	ASSERT_EQ(0, to_private(self, 0, 1));
	ASSERT_EQ(0, to_private(self, NR_PAGES - 2, 4));
	ASSERT_EQ(0, to_private(self, NR_PAGES + PAGE, 1));
	guest_write(&self->tvm, gpa_of(8 + 5), 1);
	kvm_vm_get_dirty_log(self->vm, SLOT, bitmap);
	EXPECT_EQ(BIT(0) | BIT(1) | BIT(PAGE) | BIT(5), bitmap[0]);
	ASSERT_EQ(0, to_private(self, NR_PAGES + NR_PAGES / 2 - 1, 2));
	kvm_vm_get_dirty_log(self->vm, SLOT, bitmap);
	EXPECT_EQ(0, bitmap[0]);
	EXPECT_EQ(BIT(63), bitmap[BITMAP_LONGS / 2 - 1]);
}

TEST_F(sealed, both_address_spaces)
{
	unsigned long bitmap[BITMAP_LONGS];

	if (vm_check_cap(self->vm, KVM_CAP_MULTI_ADDRESS_SPACE) < 2)
		SKIP(return, "the VM has one address space only");

	ASSERT_EQ(0, set_slot(self->vm, SMM_SLOT, KVM_MEM_GUEST_MEMFD | KVM_MEM_LOG_DIRTY_PAGES,
			      GPA, SIZE, self->shared, self->fd, 0));
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	kvm_vm_get_dirty_log(self->vm, SMM_SLOT, bitmap);
	EXPECT_EQ(BIT(PAGE), bitmap[0]);
	ASSERT_EQ(0, set_logging(self, true));
	EXPECT_EQ(0, get_dirty(self));
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	EXPECT_EQ(BIT(PAGE), get_dirty(self));
	kvm_vm_get_dirty_log(self->vm, SMM_SLOT, bitmap);
	EXPECT_EQ(BIT(PAGE), bitmap[0]);
}

static void clear_dirty(FIXTURE_DATA(sealed) *self, unsigned long bits)
{
	unsigned long bitmap[BITMAP_LONGS] = { bits };

	kvm_vm_clear_dirty_log(self->vm, SLOT, bitmap, 0, NR_PAGES);
}

TEST_F(sealed, manual_protect)
{
	struct test_vm *tvm = &self->tvm;
	unsigned long i;

	if (!kvm_check_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2))
		SKIP(return, "no KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2");
	vm_enable_cap(self->vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);

	make_mixed(_metadata, self);
	ASSERT_EQ(0, set_logging(self, true));
	for (i = 0; i < NR_MIXED; i++)
		guest_write(tvm, gpa_of(i), value_of(i));
	ASSERT_EQ(0, to_private(self, NR_MIXED, 1));
	EXPECT_EQ(BIT(NR_MIXED + 1) - 1, get_dirty(self));
	EXPECT_EQ(BIT(NR_MIXED + 1) - 1, get_dirty(self));

	/* One of each kind */
	clear_dirty(self, BIT(4) | BIT(5) | BIT(NR_MIXED));
	EXPECT_EQ((BIT(NR_MIXED) - 1) & ~(BIT(4) | BIT(5)), get_dirty(self));
	clear_dirty(self, -1ul);
	EXPECT_EQ(0, get_dirty(self));
	for (i = 0; i <= NR_MIXED; i++)
		guest_write(tvm, gpa_of(i), value_of(i));
	EXPECT_EQ(BIT(NR_MIXED + 1) - 1, get_dirty(self));
}

TEST_F(sealed, initially_all_set)
{
	unsigned long bitmap[BITMAP_LONGS], i, set = 0;
	struct test_vm *tvm = &self->tvm;

	if (!(kvm_check_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) & KVM_DIRTY_LOG_INITIALLY_SET))
		SKIP(return, "no KVM_DIRTY_LOG_INITIALLY_SET");
	vm_enable_cap(self->vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);

	make_mixed(_metadata, self);
	for (i = 0; i < NR_MIXED; i++)
		guest_write(tvm, gpa_of(i), 0);
	ASSERT_EQ(0, set_logging(self, true));
	kvm_vm_get_dirty_log(self->vm, SLOT, bitmap);
	for (i = 0; i < BITMAP_LONGS; i++)
		set += bitmap[i] == -1ul;
	EXPECT_EQ(BITMAP_LONGS, set);

	/* Only with this the pages are write-protected. */
	memset(bitmap, 0xff, sizeof(bitmap));
	kvm_vm_clear_dirty_log(self->vm, SLOT, bitmap, 0, NR_PAGES);
	EXPECT_EQ(0, get_dirty(self));
	for (i = 0; i < NR_MIXED; i++) {
		guest_write(tvm, gpa_of(i), value_of(i));
		EXPECT_EQ(BIT(i), get_dirty(self));
		clear_dirty(self, BIT(i));
	}
	ASSERT_EQ(0, to_shared(self, 0, NR_MIXED));
	EXPECT_EQ(0xaaaa, get_dirty(self) & 0xaaaa);
}

/* What the guest writes is in the log, sooner or later, whatever else goes on. */
struct converter {
	FIXTURE_DATA(sealed) *self;
	bool stop;
	unsigned long nr;
};

static void *convert_neighbours(void *data)
{
	struct converter *converter = data;

	while (!READ_ONCE(converter->stop)) {
		TEST_ASSERT(!to_private(converter->self, 8, 8), "fallocate() failed");
		TEST_ASSERT(!to_shared(converter->self, 8, 8), "fallocate() failed");
		WRITE_ONCE(converter->nr, converter->nr + 1);
	}
	return NULL;
}

TEST_F(sealed, writes_during_conversions)
{
	struct converter converter = { .self = self };
	unsigned long i, bits, missing = 0;
	pthread_t thread;

	ASSERT_EQ(0, to_private(self, 1, 1));
	ASSERT_EQ(0, set_logging(self, true));
	ASSERT_EQ(0, pthread_create(&thread, NULL, convert_neighbours, &converter));
	for (i = 0; i < 300; i++) {
		guest_write(&self->tvm, gpa_of(i % 2), i);
		/* Also where it's not known what it is. */
		guest_write(&self->tvm, gpa_of(8 + i % 8), i);
		bits = get_dirty(self);
		missing += !(bits & BIT(i % 2)) || !(bits & BIT(8 + i % 8));
		missing += !!(bits & ~(0xff00ul | BIT(i % 2)));
	}
	while (READ_ONCE(converter.nr) < 100)
		sched_yield();
	WRITE_ONCE(converter.stop, true);
	pthread_join(thread, NULL);
	EXPECT_EQ(0, missing);
	EXPECT_EQ(0xff00ul, get_dirty(self) | 0xff00ul);
}

/*
 * KVM's own writes, of which there is one page of each kind
 */
#define NR_KINDS	2

#define IRQ_VECTOR	0x40

static unsigned long page_of(unsigned int kind)
{
	/* A private and a shared one */
	return PAGE + kind;
}

/* All memory is private but for the shared page. */
static struct kvm_vcpu *setup_kinds(FIXTURE_DATA(sealed) *self)
{
	struct kvm_vcpu *vcpu = setup_private(self);

	TEST_ASSERT(IS_PRIVATE(page_of(0)) && !IS_PRIVATE(page_of(1)), "Wrong pages");
	*shared_page(self, page_of(1)) = 0;
	start_logging(self, PAGE, NR_KINDS);
	TEST_ASSERT(!get_dirty(self), "Nobody wrote anything");
	return vcpu;
}

/* Whatever else: the private page's shared half was not written to. */
static bool kinds_are_apart(FIXTURE_DATA(sealed) *self)
{
	return is_poison(shared_page(self, page_of(0)));
}

TEST_F(sealed, emulated_writes)
{
	struct kvm_vcpu *vcpu;
	unsigned int kind;
	uint64_t gpa;

	if (!force_emulation())
		SKIP(return, "no forced emulation");
	vcpu = setup_kinds(self);

	for (kind = 0; kind < NR_KINDS; kind++) {
		gpa = gpa_of(page_of(kind));
		EXPECT_EQ(0, call_guest(vcpu, guest_load_emulated, gpa, 0, 0));
		EXPECT_EQ(0, get_dirty(self));
		call_guest(vcpu, guest_store_emulated, gpa, 5, 0);
		EXPECT_EQ(BIT(page_of(kind)), get_dirty(self));
		EXPECT_EQ(5, call_guest(vcpu, guest_cmpxchg_emulated, gpa, 5, 6));
		EXPECT_EQ(BIT(page_of(kind)), get_dirty(self));
		/* It's a write even if it's the same that is written. */
		EXPECT_EQ(6, call_guest(vcpu, guest_cmpxchg_emulated, gpa, 5, 7));
		EXPECT_EQ(BIT(page_of(kind)), get_dirty(self));
		EXPECT_EQ(6, call_guest(vcpu, guest_load_emulated, gpa, 0, 0));
		EXPECT_EQ(0, get_dirty(self));
	}

	/* From one into the other */
	call_guest(vcpu, guest_store_emulated, gpa_of(page_of(1)) - 4, ~0ul, 0);
	EXPECT_EQ(BIT(page_of(0)) | BIT(page_of(1)), get_dirty(self));
	EXPECT_TRUE(kinds_are_apart(self));
}

TEST_F(sealed, string_io)
{
	struct kvm_vcpu *vcpu = setup_kinds(self);
	unsigned int kind;

	for (kind = 0; kind < NR_KINDS; kind++) {
		start_guest(vcpu, guest_ins, gpa_of(page_of(kind)), 8, 0);
		/* Not before there is something to be written. */
		EXPECT_EQ(0, get_dirty(self));
		while (is_io(vcpu, STRING_PORT)) {
			memset(io_data(vcpu), 1, vcpu->run->io.count);
			vcpu_run(vcpu);
		}
		finish_guest(vcpu);
		EXPECT_EQ(BIT(page_of(kind)), get_dirty(self));
		EXPECT_EQ(0x0101010101010101, load(vcpu, gpa_of(page_of(kind))));
		EXPECT_EQ(0, get_dirty(self));
	}
	EXPECT_TRUE(kinds_are_apart(self));
}

TEST_F(sealed, mmio_to_page)
{
	struct kvm_vcpu *vcpu = setup_kinds(self);
	const uint64_t data = 0x1122334455667788ul;
	unsigned int kind;

	for (kind = 0; kind < NR_KINDS; kind++) {
		start_guest(vcpu, guest_movsq, gpa_of(page_of(kind)), MMIO_GPA, 0);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
		EXPECT_EQ(0, get_dirty(self));
		memcpy(vcpu->run->mmio.data, &data, 8);
		vcpu_run(vcpu);
		finish_guest(vcpu);
		EXPECT_EQ(BIT(page_of(kind)), get_dirty(self));
		EXPECT_EQ(data, load(vcpu, gpa_of(page_of(kind))));
	}
	EXPECT_TRUE(kinds_are_apart(self));
}

/* KVM marks what it walks as accessed, which is a write to the page table. */
TEST_F(sealed, page_tables)
{
	const uint64_t pte_flags = PTE_PRESENT_MASK | PTE_WRITABLE_MASK;
	const uint64_t target = gpa_of(NR_MIXED);
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	unsigned int kind, round;
	int level = PG_LEVEL_2M;
	uint64_t *pde, gva;

	for (kind = 0; kind < NR_KINDS; kind++) {
		gva = PT_GVA + kind * SZ_2M;
		virt_map(self->vm, gva, OTHER_GPA, 1);
		pde = __vm_get_page_table_entry(self->vm, gva, &level);
		*pde = (*pde & ~PHYSICAL_PAGE_MASK) | gpa_of(page_of(kind));
	}
	setup_kinds(self);

	for (kind = 0; kind < NR_KINDS; kind++) {
		store(vcpu, gpa_of(page_of(kind)), target | pte_flags);
		EXPECT_EQ(BIT(page_of(kind)), get_dirty(self));

		/* The second time there is nothing to be marked. */
		for (round = 0; round < 2; round++) {
			start_guest(vcpu, guest_movsq, PT_GVA + kind * SZ_2M, MMIO_GPA, 0);
			TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
			vcpu_run(vcpu);
			finish_guest(vcpu);
			EXPECT_EQ(BIT(NR_MIXED) | (round ? 0 : BIT(page_of(kind))),
				  get_dirty(self));
		}
	}
	EXPECT_TRUE(kinds_are_apart(self));
}

TEST_F(sealed, steal_time)
{
	struct kvm_vcpu *vcpu = setup_kinds(self);
	unsigned int kind, i;

	for (kind = 0; kind < NR_KINDS; kind++) {
		enable_msr(_metadata, vcpu, MSR_KVM_STEAL_TIME, gpa_of(page_of(kind)) + 128 + 1);
		EXPECT_EQ(BIT(page_of(kind)), get_dirty(self));
		/* Whenever a vCPU is loaded again */
		for (i = 0; i < 3; i++) {
			load(vcpu, gpa_of(0));
			EXPECT_EQ(BIT(page_of(kind)), get_dirty(self));
		}
		enable_msr(_metadata, vcpu, MSR_KVM_STEAL_TIME, 0);
		get_dirty(self);
		load(vcpu, gpa_of(0));
		EXPECT_EQ(0, get_dirty(self));
	}
	EXPECT_TRUE(kinds_are_apart(self));
}

TEST_F(sealed, pv_clock)
{
	struct kvm_vcpu *vcpu = setup_kinds(self);
	unsigned int kind, i;
	uint64_t gpa;

	for (kind = 0; kind < NR_KINDS; kind++) {
		gpa = gpa_of(page_of(kind));
		enable_msr(_metadata, vcpu, MSR_KVM_WALL_CLOCK_NEW, gpa);
		EXPECT_EQ(BIT(page_of(kind)), get_dirty(self));
		load(vcpu, gpa_of(0));
		EXPECT_EQ(0, get_dirty(self));

		enable_msr(_metadata, vcpu, MSR_KVM_SYSTEM_TIME_NEW, gpa + 64 + 1);
		EXPECT_EQ(BIT(page_of(kind)), get_dirty(self));
		for (i = 0; i < 3; i++) {
			touch_clock(&self->tvm);
			EXPECT_EQ(BIT(page_of(kind)), get_dirty(self));
		}
		enable_msr(_metadata, vcpu, MSR_KVM_SYSTEM_TIME_NEW, 0);
		get_dirty(self);
		touch_clock(&self->tvm);
		EXPECT_EQ(0, get_dirty(self));
	}
	EXPECT_TRUE(kinds_are_apart(self));
}

static uint64_t guest_enable_apic(uint64_t unused1, uint64_t unused2, uint64_t unused3)
{
	x2apic_enable();
	return 0;
}

TEST_F(sealed, async_pf)
{
	struct kvm_vcpu *vcpu = setup_kinds(self);
	unsigned int kind;

	/* That it's enabled is an event that is written there. */
	call_guest(vcpu, guest_enable_apic, 0, 0, 0);
	enable_msr(_metadata, vcpu, MSR_KVM_ASYNC_PF_INT, IRQ_VECTOR);
	for (kind = 0; kind < NR_KINDS; kind++) {
		enable_msr(_metadata, vcpu, MSR_KVM_ASYNC_PF_EN, gpa_of(page_of(kind)) |
			   KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_DELIVERY_AS_INT);
		EXPECT_EQ(BIT(page_of(kind)), get_dirty(self));
		enable_msr(_metadata, vcpu, MSR_KVM_ASYNC_PF_EN, 0);
		EXPECT_EQ(0, get_dirty(self));
		EXPECT_EQ(~0u, load(vcpu, gpa_of(page_of(kind)) +
				    offsetof(struct kvm_vcpu_pv_apf_data, token)) & ~0u);
	}
	EXPECT_TRUE(kinds_are_apart(self));
}

/* Doesn't look at the area, i.e. doesn't write there. */
static void guest_irq_handler(struct ex_regs *regs)
{
	x2apic_write_reg(APIC_EOI, 0);
}

static uint64_t guest_irqs(uint64_t nr, uint64_t unused1, uint64_t unused2)
{
	uint64_t i;

	asm volatile("sti");
	for (i = 0; i < nr; i++)
		x2apic_write_reg(APIC_ICR, APIC_DEST_SELF | APIC_INT_ASSERT |
				 APIC_DM_FIXED | IRQ_VECTOR);
	asm volatile("nop; cli");
	return 0;
}

TEST_F(sealed, pv_eoi)
{
	struct kvm_vcpu *vcpu;
	unsigned int kind;

	vm_install_exception_handler(self->vm, IRQ_VECTOR, guest_irq_handler);
	vcpu = setup_kinds(self);
	call_guest(vcpu, guest_enable_apic, 0, 0, 0);
	for (kind = 0; kind < NR_KINDS; kind++) {
		enable_msr(_metadata, vcpu, MSR_KVM_PV_EOI_EN,
			   gpa_of(page_of(kind)) | KVM_MSR_ENABLED);
		EXPECT_EQ(0, get_dirty(self));
		/* Not necessarily each of them tells that it needs no EOI. */
		call_guest(vcpu, guest_irqs, 10, 0, 0);
		EXPECT_EQ(BIT(page_of(kind)), get_dirty(self));
		enable_msr(_metadata, vcpu, MSR_KVM_PV_EOI_EN, 0);
		EXPECT_EQ(0, get_dirty(self));
	}
	EXPECT_TRUE(kinds_are_apart(self));
}

static uint64_t guest_enable_svm(uint64_t unused1, uint64_t unused2, uint64_t unused3)
{
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SVME);
	return 0;
}

static uint64_t guest_vmsave(uint64_t gpa, uint64_t gs_base, uint64_t unused)
{
	wrmsr(MSR_KERNEL_GS_BASE, gs_base);
	asm volatile("vmsave %0" : : "a" (gpa) : "memory");
	return 0;
}

static uint64_t guest_vmload(uint64_t gpa, uint64_t unused1, uint64_t unused2)
{
	asm volatile("vmload %0" : : "a" (gpa) : "memory");
	return rdmsr(MSR_KERNEL_GS_BASE);
}

TEST_F(sealed, vmsave)
{
	unsigned int kind, i;
	struct kvm_vcpu *vcpu;
	uint64_t gpa;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no SVM");

	vcpu = setup_kinds(self);
	call_guest(vcpu, guest_enable_svm, 0, 0, 0);
	for (kind = 0; kind < NR_KINDS; kind++) {
		gpa = gpa_of(page_of(kind));
		for (i = 1; i < 4; i++) {
			call_guest(vcpu, guest_vmsave, gpa, i, 0);
			EXPECT_EQ(BIT(page_of(kind)), get_dirty(self));
			EXPECT_EQ(i, call_guest(vcpu, guest_vmload, gpa, 0, 0));
			EXPECT_EQ(0, get_dirty(self));
		}
	}
	EXPECT_TRUE(kinds_are_apart(self));
}

/*
 * Flags come and go
 */
TEST_F(sealed, toggle)
{
	struct test_vm *tvm = &self->tvm;
	struct kvm_dirty_log log = { .slot = SLOT };
	unsigned long bitmap[BITMAP_LONGS], i, round;

	make_mixed(_metadata, self);
	for (round = 0; round < 20; round++) {
		for (i = 0; i < NR_MIXED; i++)
			guest_write(tvm, gpa_of(i), value_of(i) + round);
		ASSERT_EQ(0, set_logging(self, true));
		ASSERT_EQ(0, set_logging(self, true));
		EXPECT_EQ(0, get_dirty(self));
		for (i = 0; i < NR_MIXED; i++)
			EXPECT_EQ(value_of(i) + round, guest_read(tvm, gpa_of(i)));
		guest_write(tvm, gpa_of(PAGE), 0);
		EXPECT_NE(0, get_dirty(self) & BIT(PAGE));

		/* The binding is the new memslot's. */
		ASSERT_EQ(0, to_shared(self, PAGE, 1));
		EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
		ASSERT_EQ(0, to_private(self, PAGE, 1));
		EXPECT_EQ(0, guest_read(tvm, gpa_of(PAGE)));
		EXPECT_NE(0, get_dirty(self) & BIT(PAGE));

		ASSERT_EQ(0, set_logging(self, false));
		log.dirty_bitmap = bitmap;
		EXPECT_REFUSED(ENOENT, __vm_ioctl(self->vm, KVM_GET_DIRTY_LOG, &log));
		ASSERT_EQ(0, to_shared(self, PAGE, 1));
		EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
		ASSERT_EQ(0, to_private(self, PAGE, 1));
		EXPECT_EQ(0, guest_read(tvm, gpa_of(PAGE)));
	}
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, add_slot(self, SLOT, 0, NR_PAGES));
	EXPECT_EQ(value_of(1) + 19, guest_read(tvm, gpa_of(1)));
}

TEST_F(sealed, toggle_needs_same_file)
{
	const uint32_t log = KVM_MEM_LOG_DIRTY_PAGES;
	int other = new_sealed_memfd(2 * SIZE);

	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD | log, GPA, SIZE,
					self->shared, other, 0));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD | log, GPA, SIZE,
					self->shared, -1, 0));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD | log, GPA, SIZE,
					self->shared, self->fd, PAGE_SIZE));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD | log, GPA, SIZE,
					self->shared + SIZE, self->fd, 0));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, log, GPA, SIZE, self->shared, -1, 0));
	EXPECT_REFUSED(EINVAL, __vm_set_user_memory_region(self->vm, SLOT, log, GPA, SIZE,
							   self->shared));
	EXPECT_REFUSED(EINVAL, set_flags(self, KVM_MEM_READONLY));
	EXPECT_REFUSED(EINVAL, set_flags(self, KVM_MEM_READONLY | log));
	EXPECT_REFUSED(EINVAL, set_flags(self, 1u << 3));

	/* Another file descriptor of the same file is fine. */
	close(other);
	other = dup(self->fd);
	EXPECT_EQ(0, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD | log, GPA, SIZE,
			      self->shared, other, 0));
	close(other);
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	EXPECT_EQ(BIT(PAGE), get_dirty(self));
}

TEST_F(sealed, move_while_logging)
{
	struct test_vm *tvm = &self->tvm;

	ASSERT_EQ(0, set_logging(self, true));
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	guest_write(tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));

	/* The log moves with it, */
	ASSERT_EQ(0, set_flags_at(self, OTHER_GPA, KVM_MEM_LOG_DIRTY_PAGES));
	EXPECT_EQ(BIT(PAGE), get_dirty(self));
	EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE) + SIZE));
	guest_write(tvm, gpa_of(PAGE) + SIZE, 1);
	ASSERT_EQ(0, to_private(self, PAGE + 1, 1));
	EXPECT_EQ(BIT(PAGE) | BIT(PAGE + 1), get_dirty(self));

	/* ends with a move, and begins with one. */
	ASSERT_EQ(0, set_flags_at(self, GPA, 0));
	EXPECT_EQ(1, guest_read(tvm, gpa_of(PAGE)));
	ASSERT_EQ(0, to_shared(self, PAGE + 1, 1));
	ASSERT_EQ(0, set_flags_at(self, OTHER_GPA, KVM_MEM_LOG_DIRTY_PAGES));
	EXPECT_EQ(0, get_dirty(self));
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	EXPECT_EQ(BIT(PAGE), get_dirty(self));
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE) + SIZE));
}

/* Huge pages of the shared half are split for logging, and come back. */
TEST_F(sealed, huge_pages)
{
	struct test_vm *tvm = &self->tvm;
	uint64_t huge;
	char *shared;

	shared = mmap(NULL, 3 * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	ASSERT_NE(MAP_FAILED, shared);
	shared = (void *)round_up((unsigned long)shared, SZ_2M);
	ASSERT_EQ(0, madvise(shared, SIZE, MADV_HUGEPAGE));
	memset(shared, 0, SIZE);
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	self->shared = shared;
	ASSERT_EQ(0, add_slot(self, SLOT, 0, NR_PAGES));

	huge = vm_get_stat(self->vm, "pages_2m");
	guest_write(tvm, gpa_of(PAGE), SHARED_VALUE(PAGE));
	guest_write(tvm, gpa_of(600), SHARED_VALUE(600));
	if (vm_get_stat(self->vm, "pages_2m") != huge + 2)
		SKIP(return, "no huge pages");

	/* A conversion takes one of them, logging the other. */
	ASSERT_EQ(0, to_private(self, 8, 1));
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
	EXPECT_EQ(huge + 1, vm_get_stat(self->vm, "pages_2m"));
	ASSERT_EQ(0, set_logging(self, true));
	EXPECT_EQ(huge, vm_get_stat(self->vm, "pages_2m"));
	EXPECT_EQ(0, get_dirty(self));
	guest_write(tvm, gpa_of(PAGE), 1);
	guest_write(tvm, gpa_of(8), 1);
	EXPECT_EQ(BIT(PAGE) | BIT(8), get_dirty(self));

	/* Only the one without private pages is put together again. */
	ASSERT_EQ(0, set_logging(self, false));
	EXPECT_EQ(1, guest_read(tvm, gpa_of(PAGE)));
	EXPECT_EQ(1, guest_read(tvm, gpa_of(8)));
	EXPECT_EQ(SHARED_VALUE(600), guest_read(tvm, gpa_of(600)));
	EXPECT_EQ(huge + 1, vm_get_stat(self->vm, "pages_2m"));
	EXPECT_EQ(0, *shared_page(self, 8));
}

struct toggler {
	FIXTURE_DATA(sealed) *self;
	bool stop;
};

static void *toggle_all_the_time(void *data)
{
	struct toggler *toggler = data;
	bool on = false;

	while (!READ_ONCE(toggler->stop)) {
		on = !on;
		TEST_ASSERT(!set_logging(toggler->self, on), "Can't change the flags");
		sched_yield();
	}
	return NULL;
}

TEST_F(sealed, toggle_while_converting)
{
	struct toggler toggler = { .self = self };
	struct test_vm *tvm = &self->tvm;
	pthread_t thread;
	int i;

	ASSERT_EQ(0, pthread_create(&thread, NULL, toggle_all_the_time, &toggler));
	for (i = 0; i < 300; i++) {
		ASSERT_EQ(0, to_private(self, PAGE, 1 + i % 600));
		ASSERT_EQ(0, guest_read(tvm, gpa_of(PAGE)));
		guest_write(tvm, gpa_of(PAGE), PRIVATE_VALUE(i));
		ASSERT_EQ(PRIVATE_VALUE(i), guest_read(tvm, gpa_of(PAGE)));
		ASSERT_EQ(0, to_shared(self, PAGE, 1 + i % 600));
		ASSERT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
	}
	WRITE_ONCE(toggler.stop, true);
	pthread_join(thread, NULL);
}

/*
 * Rings
 */
#define RING_ENTRIES	1024

static uint32_t ring_entry_flags(struct kvm_dirty_gfn *entry)
{
	return __atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE);
}

TEST_F(sealed, dirty_ring)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = variant->type };
	struct kvm_dirty_gfn *ring, *entry;
	struct test_vm second;
	unsigned long i, n = 0, bits;

	if (!kvm_check_cap(KVM_CAP_DIRTY_LOG_RING))
		SKIP(return, "no KVM_CAP_DIRTY_LOG_RING");

	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	second.vm = __vm_create(shape, 1, 64);
	vm_enable_dirty_ring(second.vm, RING_ENTRIES * sizeof(*ring));
	second.vcpu = vm_vcpu_add(second.vm, 0, guest_code);
	second.command = addr_gva2hva(second.vm, (vm_vaddr_t)&guest_command);
	virt_map(second.vm, GPA, GPA, NR_PAGES);
	ring = vcpu_map_dirty_ring(second.vcpu);
	kvm_vm_free(self->vm);
	self->vm = second.vm;
	self->tvm = second;

	/* What is there before would be the first VM's. */
	ASSERT_EQ(0, add_slot(self, SLOT, 0, NR_PAGES));
	make_mixed(_metadata, self);
	ASSERT_EQ(0, set_logging(self, true));
	for (i = 0; i < NR_MIXED; i++)
		guest_write(&self->tvm, gpa_of(i), value_of(i));

	/* Conversions are not a vCPU's doing, */
	ASSERT_EQ(0, to_private(self, 20, 2));
	ASSERT_EQ(0, to_shared(self, 1, 1));
	/* but what it does next is, or has KVM do. */
	guest_write(&self->tvm, gpa_of(20), 1);
	guest_run(&self->tvm, GUEST_WRMSR, MSR_KVM_WALL_CLOCK_NEW, gpa_of(21));
	guest_run(&self->tvm, GUEST_WRMSR, MSR_KVM_WALL_CLOCK_NEW, gpa_of(22));

	for (bits = 0; n < RING_ENTRIES; n++) {
		entry = &ring[n];
		if (ring_entry_flags(entry) != KVM_DIRTY_GFN_F_DIRTY)
			break;
		EXPECT_EQ(SLOT, entry->slot);
		ASSERT_GT(64, entry->offset);
		bits |= BIT(entry->offset);
		__atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
	}
	EXPECT_EQ((BIT(NR_MIXED) - 1) | BIT(20) | BIT(21) | BIT(22), bits);
	EXPECT_EQ(n, kvm_vm_reset_dirty_ring(self->vm));

	/* They are protected again. */
	guest_write(&self->tvm, gpa_of(3), 1);
	entry = &ring[n++];
	EXPECT_EQ(KVM_DIRTY_GFN_F_DIRTY, ring_entry_flags(entry));
	EXPECT_EQ(3, entry->offset);
	guest_write(&self->tvm, gpa_of(1), 1);
	entry = &ring[n++];
	EXPECT_EQ(KVM_DIRTY_GFN_F_DIRTY, ring_entry_flags(entry));
	EXPECT_EQ(1, entry->offset);
	EXPECT_EQ(1, *shared_page(self, 1));
}

/*
 * Read-only memslots
 */
static __attribute__((naked)) void guest_locked_inc(void)
{
	asm volatile("lock incq (%rdi); ret");
}

TEST_F(sealed, read_only)
{
	struct test_vm *tvm = &self->tvm;
	struct kvm_run *run = tvm->vcpu->run;
	uint64_t content[PAGE_SIZE / 8] = { PRIVATE_VALUE(PAGE) };
	int i;

	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, set_flags(self, KVM_MEM_READONLY));
	ASSERT_EQ(PAGE_SIZE, pwrite(self->fd, content, PAGE_SIZE, PAGE * PAGE_SIZE));
	EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
	EXPECT_EQ(SHARED_VALUE(0), guest_read(tvm, gpa_of(0)));

	/* Nor does KVM write there. */
	for (i = 0; i < 2; i++) {
		vcpu_set_msr(tvm->vcpu, MSR_KVM_SYSTEM_TIME_NEW, gpa_of(i * PAGE) + 64 + 1);
		EXPECT_EQ(0, guest_read(tvm, gpa_of(i * PAGE) + 64));
		EXPECT_EQ(0, guest_read(tvm, gpa_of(i * PAGE) + 64 + 24));
	}
	vcpu_set_msr(tvm->vcpu, MSR_KVM_SYSTEM_TIME_NEW, 0);

	/* To a shared page: userspace does what there is to do. */
	guest_command_set(tvm, GUEST_WRITE, gpa_of(0), 1);
	vcpu_run(tvm->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
	EXPECT_TRUE(run->mmio.is_write);
	EXPECT_EQ(gpa_of(0), run->mmio.phys_addr);
	vcpu_run(tvm->vcpu);
	guest_result(tvm);
	EXPECT_EQ(SHARED_VALUE(0), guest_read(tvm, gpa_of(0)));

	guest_command_set(tvm, GUEST_CALL, (uint64_t)guest_locked_inc, gpa_of(0));
	vcpu_run(tvm->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
	EXPECT_TRUE(run->mmio.is_write);
	EXPECT_EQ(gpa_of(0), run->mmio.phys_addr);
	EXPECT_EQ(SHARED_VALUE(0) + 1, *(uint64_t *)run->mmio.data);
	vcpu_run(tvm->vcpu);
	guest_result(tvm);
	EXPECT_EQ(SHARED_VALUE(0), guest_read(tvm, gpa_of(0)));

	/* To a private one: it's told, but not what was to be written. */
	guest_command_set(tvm, GUEST_WRITE, gpa_of(PAGE), 0x5ec2e7);
	memset(&run->mmio, 0, sizeof(run->mmio));
	expect_memory_fault(_metadata, tvm, gpa_of(PAGE), KVM_MEMORY_EXIT_FLAG_PRIVATE, EFAULT);

	/* It can be had as shared. */
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	vcpu_run(tvm->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
	EXPECT_EQ(gpa_of(PAGE), run->mmio.phys_addr);
	EXPECT_EQ(0x5ec2e7, *(uint64_t *)run->mmio.data);
	vcpu_run(tvm->vcpu);
	guest_result(tvm);
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
	EXPECT_EQ(SHARED_VALUE(PAGE), *shared_page(self, PAGE));
}

/* KVM walks page tables that it can't mark as accessed. */
TEST_F(sealed, read_only_page_table)
{
	const uint64_t pte_flags = PTE_PRESENT_MASK | PTE_WRITABLE_MASK;
	uint64_t target = vm_vaddr_alloc_page(self->vm);
	uint64_t table[PAGE_SIZE / 8] = {};
	struct test_vm *tvm = &self->tvm;
	struct kvm_run *run = tvm->vcpu->run;
	const uint64_t data = 0x1122334455667788ul;
	int level = PG_LEVEL_2M;
	uint64_t *pde;
	int i;

	table[0] = addr_gva2gpa(self->vm, target) | pte_flags;
	virt_map(self->vm, PT_GVA, OTHER_GPA, 1);
	pde = __vm_get_page_table_entry(self->vm, PT_GVA, &level);
	*pde = (*pde & ~PHYSICAL_PAGE_MASK) | gpa_of(PAGE);
	memcpy(shared_page(self, PAGE), table, PAGE_SIZE);
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, set_flags(self, KVM_MEM_READONLY));

	for (i = 0; i < 2; i++) {
		guest_write(tvm, target, 0);
		guest_command_set(tvm, GUEST_MOVSQ, MMIO_GPA, PT_GVA);
		vcpu_run(tvm->vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
		memcpy(run->mmio.data, &data, 8);
		vcpu_run(tvm->vcpu);
		guest_result(tvm);
		EXPECT_EQ(data, guest_read(tvm, target));
		EXPECT_EQ(table[0], guest_read(tvm, gpa_of(PAGE)));

		/* The same table in the private half */
		if (!i)
			ASSERT_EQ(PAGE_SIZE, pwrite(self->fd, table, PAGE_SIZE,
						    PAGE * PAGE_SIZE));
	}
}

TEST_F(sealed, read_only_flags)
{
	struct test_vm *tvm = &self->tvm;

	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	ASSERT_EQ(0, set_flags(self, KVM_MEM_READONLY));
	EXPECT_REFUSED(EINVAL, set_flags(self, 0));
	ASSERT_EQ(0, set_flags(self, KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES));
	EXPECT_EQ(0, guest_read(tvm, gpa_of(PAGE)));
	EXPECT_EQ(SHARED_VALUE(0), guest_read(tvm, gpa_of(0)));
	EXPECT_EQ(0, get_dirty(self));
	ASSERT_EQ(0, to_private(self, 0, 1));
	EXPECT_EQ(BIT(0), get_dirty(self));
	ASSERT_EQ(0, set_flags_at(self, OTHER_GPA, KVM_MEM_READONLY));
	EXPECT_EQ(0, guest_read(tvm, gpa_of(PAGE) + SIZE));
}

/* As before, guest_memfd knows none of these flags. */
TEST_F(sealed, guest_memfd)
{
	int fd;

	if (!vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD))
		SKIP(return, "no guest_memfd");
	fd = vm_create_guest_memfd(self->vm, SIZE, 0);
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT + 1,
					KVM_MEM_GUEST_MEMFD | KVM_MEM_LOG_DIRTY_PAGES,
					OTHER_GPA, SIZE, self->shared + SIZE, fd, 0));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT + 1,
					KVM_MEM_GUEST_MEMFD | KVM_MEM_READONLY,
					OTHER_GPA, SIZE, self->shared + SIZE, fd, 0));
	ASSERT_EQ(0, set_slot(self->vm, SLOT + 1, KVM_MEM_GUEST_MEMFD, OTHER_GPA, SIZE,
			      self->shared + SIZE, fd, 0));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT + 1,
					KVM_MEM_GUEST_MEMFD | KVM_MEM_LOG_DIRTY_PAGES,
					OTHER_GPA, SIZE, self->shared + SIZE, fd, 0));
	close(fd);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_SEALED_MEMFD));

	return test_harness_run(argc, argv);
}
