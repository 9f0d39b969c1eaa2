// SPDX-License-Identifier: GPL-2.0
/*
 * Implicit conversion: in a VM with a shared GPA bit the guest says with each
 * access which kind of memory it wants.  If the page is of the other kind, the
 * VMM is asked to convert it.
 */
#include <linux/stringify.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "apic.h"
#include "sealed_memfd_shared_bit_fixture.h"
#include "sealed_memfd_trace.h"

/*
 * The capability
 */
static int enable_cap(struct kvm_vm *vm, uint64_t bit, uint32_t flags)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_X86_SHARED_GPA_BIT,
		.args = { bit },
		.flags = flags,
	};

	return __vm_ioctl(vm, KVM_ENABLE_CAP, &cap);
}

TEST(capability)
{
	static const uint64_t bits[] = { 0, 1, 11, 12, 31, 48, 52, 63, 64, 1ul << 32 | 36, -1 };
	int max = kvm_check_cap(KVM_CAP_X86_SHARED_GPA_BIT);
	struct kvm_vm *vm;
	unsigned int i;

	if (!max)
		SKIP(return, "no shared GPA bit");

	EXPECT_LE(32, max);
	EXPECT_GE(47, max);
	vm = vm_create_barebones();
	EXPECT_EQ(max, vm_check_cap(vm, KVM_CAP_X86_SHARED_GPA_BIT));

	for (i = 0; i < ARRAY_SIZE(bits); i++)
		EXPECT_REFUSED(EINVAL, enable_cap(vm, bits[i], 0));
	EXPECT_REFUSED(EINVAL, enable_cap(vm, max + 1, 0));
	EXPECT_REFUSED(EINVAL, enable_cap(vm, max, 1));

	/* Until there is a vCPU, one may think it over. */
	for (i = 32; i <= max; i++)
		EXPECT_EQ(0, enable_cap(vm, i, 0));

	hide_nested_virtualization();
	__vm_vcpu_add(vm, 0);
	EXPECT_REFUSED(EBUSY, enable_cap(vm, max, 0));
	EXPECT_REFUSED(EBUSY, enable_cap(vm, max - 1, 0));
	kvm_vm_free(vm);
}

TEST(capability_with_memslots)
{
	const uint64_t end = BIT_ULL(33);
	struct kvm_vm *vm;
	void *mem;

	if (!kvm_check_cap(KVM_CAP_X86_SHARED_GPA_BIT))
		SKIP(return, "no shared GPA bit");

	mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, mem);
	vm = vm_create_barebones();

	/* One that ends at the bit is fine, no matter what comes first. */
	ASSERT_EQ(0, set_slot(vm, SLOT, 0, end - SIZE, SIZE, mem, -1, 0));
	EXPECT_REFUSED(EEXIST, enable_cap(vm, 32, 0));
	EXPECT_EQ(0, enable_cap(vm, 33, 0));
	ASSERT_EQ(0, delete_slot(vm, SLOT));
	ASSERT_EQ(0, set_slot(vm, SLOT, 0, end - SIZE, SIZE, mem, -1, 0));

	/* One that goes beyond is not. */
	EXPECT_REFUSED(EINVAL, set_slot(vm, SLOT, 0, end - SIZE + PAGE_SIZE, SIZE, mem, -1, 0));
	EXPECT_REFUSED(EINVAL, set_slot(vm, SLOT + 1, 0, end, SIZE, mem, -1, 0));
	EXPECT_REFUSED(EINVAL, set_slot(vm, SLOT + 1, 0, end + (1ul << 20), SIZE, mem, -1, 0));
	EXPECT_REFUSED(EINVAL, set_slot(vm, SLOT + 1, 0, 2 * end, SIZE, mem, -1, 0));
	ASSERT_EQ(0, delete_slot(vm, SLOT));
	EXPECT_REFUSED(EINVAL, set_slot(vm, SLOT, 0, end - PAGE_SIZE, 2 * PAGE_SIZE, mem,
					-1, 0));

	EXPECT_EQ(0, enable_cap(vm, 34, 0));
	ASSERT_EQ(0, set_slot(vm, SLOT, 0, end - PAGE_SIZE, 2 * PAGE_SIZE, mem, -1, 0));
	EXPECT_REFUSED(EEXIST, enable_cap(vm, 33, 0));
	if (vm_check_cap(vm, KVM_CAP_MULTI_ADDRESS_SPACE) > 1) {
		ASSERT_EQ(0, delete_slot(vm, SLOT));
		ASSERT_EQ(0, set_slot(vm, SMM_SLOT, 0, end, SIZE, mem, -1, 0));
		EXPECT_REFUSED(EEXIST, enable_cap(vm, 33, 0));
	}
	kvm_vm_free(vm);
	munmap(mem, SIZE);
}

/* For GUEST_CALL, which does not expect registers other than the result to change. */
static __attribute__((naked)) void guest_cpuid_eax(void)
{
	asm volatile("push %rbx; push %rcx; push %rdx\n\t"
		     "mov %edi, %eax; xor %ecx, %ecx; cpuid\n\t"
		     "pop %rdx; pop %rcx; pop %rbx; ret");
}

static __attribute__((naked)) void guest_mov32(void)
{
	asm volatile("mov (%rdi), %eax; ret");
}

TEST_F(shared_bit, cpuid)
{
	const struct kvm_cpuid2 *supported = kvm_get_supported_cpuid();
	unsigned int bit = __builtin_ctzll(self->bit), nr = supported->nent;
	struct kvm_vcpu *vcpu = self->tvm->vcpu;
	struct kvm_cpuid2 *cpuid;

	/* What the leaf says depends on the VM, so it's for the VMM to add it. */
	cpuid = allocate_kvm_cpuid2(nr + 1);
	memcpy(cpuid->entries, supported->entries, nr * sizeof(*cpuid->entries));
	cpuid->entries[nr] = (struct kvm_cpuid_entry2) {
		.function = KVM_CPUID_SHARED_GPA_BIT,
		.eax = bit,
	};
	vcpu_init_cpuid(vcpu, cpuid);
	free(cpuid);
	vcpu_get_cpuid_entry(vcpu, KVM_CPUID_SIGNATURE)->eax = KVM_CPUID_SHARED_GPA_BIT;
	ASSERT_EQ(0, __vcpu_set_cpuid(vcpu));
	EXPECT_EQ(KVM_CPUID_SHARED_GPA_BIT,
		  guest_run(self->tvm, GUEST_CALL, (uint64_t)guest_cpuid_eax,
			    KVM_CPUID_SIGNATURE));
	EXPECT_EQ(bit, guest_run(self->tvm, GUEST_CALL, (uint64_t)guest_cpuid_eax,
				 KVM_CPUID_SHARED_GPA_BIT));
}

TEST_F(shared_bit, no_nesting)
{
	const struct kvm_x86_cpu_feature features[] = {
		X86_FEATURE_VMX, X86_FEATURE_SVM,
	};
	struct kvm_vcpu *vcpu = self->tvm->vcpu;
	struct kvm_cpuid_entry2 *entry;
	struct kvm_nested_state *state;
	struct kvm_sregs2 sregs2;
	struct kvm_sregs sregs;
	unsigned int i;
	int size;

	ASSERT_EQ(0, __vcpu_set_cpuid(vcpu));
	for (i = 0; i < ARRAY_SIZE(features); i++) {
		entry = vcpu_get_cpuid_entry(vcpu, features[i].function);
		entry->ecx |= BIT(features[i].bit);
		EXPECT_REFUSED(EINVAL, __vcpu_set_cpuid(vcpu));
		entry->ecx &= ~BIT(features[i].bit);
	}
	ASSERT_EQ(0, __vcpu_set_cpuid(vcpu));

	vcpu_sregs_get(vcpu, &sregs);
	EXPECT_EQ(0, _vcpu_set_msr(vcpu, MSR_EFER, sregs.efer | EFER_SVME));
	EXPECT_EQ(GP_VECTOR, guest_run(self->tvm, GUEST_WRMSR, MSR_EFER,
				       sregs.efer | EFER_SVME));
	sregs.efer |= EFER_SVME;
	EXPECT_REFUSED(EINVAL, _vcpu_sregs_set(vcpu, &sregs));
	vcpu_ioctl(vcpu, KVM_GET_SREGS2, &sregs2);
	sregs2.efer |= EFER_SVME;
	EXPECT_REFUSED(EINVAL, __vcpu_ioctl(vcpu, KVM_SET_SREGS2, &sregs2));

	/* Nothing but what is so without nested guests, if there is such a state. */
	size = kvm_check_cap(KVM_CAP_NESTED_STATE);
	if (size < (int)sizeof(*state))
		return;
	state = calloc(1, size);
	state->size = size;
	vcpu_ioctl(vcpu, KVM_GET_NESTED_STATE, state);
	EXPECT_EQ(0, __vcpu_ioctl(vcpu, KVM_SET_NESTED_STATE, state));
	state->flags |= KVM_STATE_NESTED_GUEST_MODE;
	EXPECT_REFUSED(EINVAL, __vcpu_ioctl(vcpu, KVM_SET_NESTED_STATE, state));
	free(state);
}

/*
 * Which access exits, and what for
 */
TEST_F(shared_bit, matching_access)
{
	struct test_vm *tvm = self->tvm;
	unsigned long i;

	/* guest_read() and guest_write() fail on any exit. */
	for (i = 0; i < 8; i++) {
		ASSERT_EQ(0, convert(self, i, i & 1 ? PRIVATE : SHARED));
		EXPECT_EQ(i & 1 ? 0 : SHARED_VALUE(i),
			  guest_read(tvm, gva_of(i, i & 1 ? PRIVATE : SHARED)));
		guest_write(tvm, gva_of(i, i & 1 ? PRIVATE : SHARED) + 8, i);
	}
	for (i = 0; i < 8; i++) {
		EXPECT_EQ(i, guest_read(tvm, gva_of(i, i & 1 ? PRIVATE : SHARED) + 8));
		EXPECT_EQ(SHARED_VALUE(i), shared_page(&self->sealed, i)[0]);
		EXPECT_EQ(i & 1 ? 0 : i, shared_page(&self->sealed, i)[1]);
	}

	/* The first access may as well be a write. */
	ASSERT_EQ(0, convert(self, 8, PRIVATE));
	guest_write(tvm, gva_of(8, PRIVATE), 1);
	guest_write(tvm, gva_of(9, SHARED), 2);
	EXPECT_EQ(SHARED_VALUE(8), shared_page(&self->sealed, 8)[0]);
	EXPECT_EQ(2, shared_page(&self->sealed, 9)[0]);
}

TEST_F(shared_bit, ordinary_memslot)
{
	const uint64_t page = NR_PAGES + PAGE;
	struct test_vm *tvm = self->tvm;

	/* All of it is shared, and both aliases lead there. */
	EXPECT_EQ(SHARED_VALUE(page), guest_read(tvm, gva_of(page, PRIVATE)));
	guest_write(tvm, gva_of(page, SHARED), 1);
	EXPECT_EQ(1, guest_read(tvm, gva_of(page, PRIVATE)));
	guest_write(tvm, gva_of(page, PRIVATE), 2);
	EXPECT_EQ(2, guest_read(tvm, gva_of(page, SHARED)));
	EXPECT_EQ(2, *shared_page(&self->sealed, page));
	guest_write(tvm, gva_of(page + 1, PRIVATE), 3);
	EXPECT_EQ(3, guest_read(tvm, gva_of(page + 1, SHARED)));
}

TEST_F(shared_bit, private_access_to_shared_page)
{
	struct test_vm *tvm = self->tvm;
	enum guest_op op;
	int i;

	for (op = GUEST_READ; op <= GUEST_WRITE; op++) {
		/* At first without, then with the page being mapped as shared. */
		for (i = 0; i < 2; i++) {
			guest_command_set(tvm, op, gva_of(PAGE, PRIVATE) + 8, PRIVATE_VALUE(op));
			expect_mismatch(_metadata, tvm, PAGE, PRIVATE);
			ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
			EXPECT_EQ(0, guest_continue(tvm));
			EXPECT_EQ(op == GUEST_READ ? 0 : PRIVATE_VALUE(op),
				  guest_read(tvm, gva_of(PAGE, PRIVATE) + 8));
			EXPECT_EQ(0, shared_page(&self->sealed, PAGE)[1]);

			ASSERT_EQ(0, convert(self, PAGE, SHARED));
			EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gva_of(PAGE, SHARED)));
		}
	}
}

TEST_F(shared_bit, shared_access_to_private_page)
{
	struct test_vm *tvm = self->tvm;
	enum guest_op op;
	int i;

	for (op = GUEST_READ; op <= GUEST_WRITE; op++) {
		for (i = 0; i < 2; i++) {
			ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
			if (i)
				guest_write(tvm, gva_of(PAGE, PRIVATE), PRIVATE_VALUE(PAGE));

			guest_command_set(tvm, op, gva_of(PAGE, SHARED), SHARED_VALUE(op));
			expect_mismatch(_metadata, tvm, PAGE, SHARED);
			ASSERT_EQ(0, convert(self, PAGE, SHARED));
			EXPECT_EQ(op == GUEST_READ ? SHARED_VALUE(PAGE) : 0,
				  guest_continue(tvm));
			EXPECT_EQ(op == GUEST_READ ? SHARED_VALUE(PAGE) : SHARED_VALUE(op),
				  *shared_page(&self->sealed, PAGE));
			*shared_page(&self->sealed, PAGE) = SHARED_VALUE(PAGE);
		}
	}
}

TEST_F(shared_bit, ping_pong)
{
	struct test_vm *tvm = self->tvm;
	uint64_t kind;
	int i;

	for (i = 0; i < 100; i++) {
		kind = i & 1 ? SHARED : PRIVATE;
		guest_command_set(tvm, GUEST_WRITE, gva_of(PAGE, kind), i);
		expect_mismatch(_metadata, tvm, PAGE, kind);
		ASSERT_EQ(0, convert(self, PAGE, kind));
		guest_continue(tvm);
		ASSERT_EQ(i, guest_read(tvm, gva_of(PAGE, kind)));
		ASSERT_EQ(i ? (i - !(i & 1)) : SHARED_VALUE(PAGE),
			  *shared_page(&self->sealed, PAGE));
	}
}

TEST_F(shared_bit, first_and_last_page)
{
	static const unsigned long pages[] = { 0, NR_PAGES - 1 };
	struct test_vm *tvm = self->tvm;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		guest_command_set(tvm, GUEST_READ, gva_of(pages[i], PRIVATE) + PAGE_SIZE - 8, 0);
		expect_mismatch(_metadata, tvm, pages[i], PRIVATE);
		ASSERT_EQ(0, convert(self, pages[i], PRIVATE));
		EXPECT_EQ(0, guest_continue(tvm));
		guest_command_set(tvm, GUEST_READ, gva_of(pages[i], SHARED), 0);
		expect_mismatch(_metadata, tvm, pages[i], SHARED);
		ASSERT_EQ(0, convert(self, pages[i], SHARED));
		EXPECT_EQ(SHARED_VALUE(pages[i]), guest_continue(tvm));
	}
}

/* An access to two pages is done when both are of the right kind. */
TEST_F(shared_bit, access_across_pages)
{
	struct test_vm *tvm = self->tvm;

	guest_command_set(tvm, GUEST_WRITE, gva_of(PAGE, PRIVATE) - 4, -1ul);
	expect_mismatch(_metadata, tvm, PAGE - 1, PRIVATE);
	ASSERT_EQ(0, convert(self, PAGE - 1, PRIVATE));
	expect_mismatch(_metadata, tvm, PAGE, PRIVATE);
	ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
	guest_continue(tvm);
	EXPECT_EQ(-1u, guest_read(tvm, gva_of(PAGE, PRIVATE)));
	EXPECT_EQ(-1ul, guest_read(tvm, gva_of(PAGE, PRIVATE) - 4));
	EXPECT_EQ(SHARED_VALUE(PAGE), *shared_page(&self->sealed, PAGE));
}

/*
 * A VMM that does not do what it's asked for
 */
TEST_F(shared_bit, not_converted)
{
	struct test_vm *tvm = self->tvm;
	uint64_t kind;
	int i;

	for (kind = 0; kind <= PRIVATE; kind += PRIVATE) {
		ASSERT_EQ(0, convert(self, PAGE, kind ^ PRIVATE));
		guest_command_set(tvm, GUEST_WRITE, gva_of(PAGE, kind), 1);
		for (i = 0; i < 10; i++)
			expect_mismatch(_metadata, tvm, PAGE, kind);

		/* Converting it to what it is changes nothing. */
		ASSERT_EQ(0, convert(self, PAGE, kind ^ PRIVATE));
		expect_mismatch(_metadata, tvm, PAGE, kind);

		/* Back and forth neither. */
		ASSERT_EQ(0, convert(self, PAGE, kind));
		ASSERT_EQ(0, convert(self, PAGE, kind ^ PRIVATE));
		expect_mismatch(_metadata, tvm, PAGE, kind);

		/* In the end it's done once. */
		ASSERT_EQ(0, convert(self, PAGE, kind));
		guest_continue(tvm);
		EXPECT_EQ(1, guest_read(tvm, gva_of(PAGE, kind)));
	}
}

TEST_F(shared_bit, wrong_page_converted)
{
	static const unsigned long others[] = { PAGE - 1, PAGE + 1, 0, NR_PAGES - 1 };
	struct test_vm *tvm = self->tvm;
	unsigned int i;

	ASSERT_EQ(0, to_private(&self->sealed, PAGE + 10, 1));
	guest_write(tvm, gva_of(PAGE + 10, PRIVATE), PRIVATE_VALUE(PAGE));

	guest_command_set(tvm, GUEST_WRITE, gva_of(PAGE, PRIVATE), 1);
	expect_mismatch(_metadata, tvm, PAGE, PRIVATE);
	for (i = 0; i < ARRAY_SIZE(others); i++) {
		ASSERT_EQ(0, convert(self, others[i], PRIVATE));
		expect_mismatch(_metadata, tvm, PAGE, PRIVATE);
		ASSERT_EQ(0, convert(self, others[i], SHARED));
		expect_mismatch(_metadata, tvm, PAGE, PRIVATE);
	}

	/* Nothing is lost. */
	ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
	guest_continue(tvm);
	EXPECT_EQ(1, guest_read(tvm, gva_of(PAGE, PRIVATE)));
	EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(tvm, gva_of(PAGE + 10, PRIVATE)));
	for (i = 0; i < ARRAY_SIZE(others); i++)
		EXPECT_EQ(SHARED_VALUE(others[i]), guest_read(tvm, gva_of(others[i], SHARED)));
}

TEST_F(shared_bit, memslot_removed_instead)
{
	struct test_vm *tvm = self->tvm;

	ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
	guest_write(tvm, gva_of(PAGE, PRIVATE), PRIVATE_VALUE(PAGE));
	guest_command_set(tvm, GUEST_READ, gva_of(PAGE, SHARED), 0);
	expect_mismatch(_metadata, tvm, PAGE, SHARED);

	/* What's not there is MMIO. */
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	vcpu_run(tvm->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
	EXPECT_EQ(gpa_of(PAGE), tvm->vcpu->run->mmio.phys_addr);
	guest_continue(tvm);

	ASSERT_EQ(0, add_slot(&self->sealed, SLOT, 0, NR_PAGES));
	EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(tvm, gva_of(PAGE, PRIVATE)));
}

struct late_converter {
	FIXTURE_DATA(shared_bit) *self;
	unsigned int exits;
};

static void *late_converter(void *data)
{
	struct late_converter *late = data;

	/* When the vCPU has been turned away a couple of times. */
	while (READ_ONCE(late->exits) < 10)
		usleep(100);
	TEST_ASSERT(!convert(late->self, PAGE, PRIVATE), "Can't convert");
	return NULL;
}

TEST_F(shared_bit, converted_late_by_other_thread)
{
	struct late_converter late = { .self = self };
	struct kvm_vcpu *vcpu = self->tvm->vcpu;
	pthread_t thread;

	guest_command_set(self->tvm, GUEST_WRITE, gva_of(PAGE, PRIVATE), 1);
	pthread_create(&thread, NULL, late_converter, &late);
	while (_vcpu_run(vcpu)) {
		ASSERT_EQ(KVM_EXIT_MEMORY_FAULT, vcpu->run->exit_reason);
		ASSERT_EQ(PRIVATE, vcpu->run->memory_fault.flags);
		ASSERT_EQ(gpa_of(PAGE), vcpu->run->memory_fault.gpa);
		WRITE_ONCE(late.exits, late.exits + 1);
	}
	guest_result(self->tvm);
	pthread_join(thread, NULL);
	EXPECT_LE(10, late.exits);
	EXPECT_EQ(1, guest_read(self->tvm, gva_of(PAGE, PRIVATE)));
	EXPECT_EQ(SHARED_VALUE(PAGE), *shared_page(&self->sealed, PAGE));
}

/* The VMM may know in advance. */
TEST_F(shared_bit, converted_beforehand)
{
	struct test_vm *tvm = self->tvm;
	uint64_t kind;
	int i;

	for (i = 0; i < 100; i++) {
		kind = i & 1 ? SHARED : PRIVATE;
		ASSERT_EQ(0, convert(self, PAGE, kind));
		guest_write(tvm, gva_of(PAGE, kind), i);
		ASSERT_EQ(i, guest_read(tvm, gva_of(PAGE, kind)));
	}
}

/*
 * Both aliases are in sight of whatever takes pages away.
 */
TEST_F(shared_bit, conversion_ends_mappings)
{
	struct test_vm *tvm = self->tvm;
	unsigned long i;
	uint64_t kind;

	ASSERT_EQ(0, to_private(&self->sealed, 0, NR_PAGES / 2));
	for (i = 0; i < NR_PAGES; i++)
		guest_write(tvm, gva_of(i, i < NR_PAGES / 2 ? PRIVATE : SHARED), i);

	/* What is not converted stays as it is. */
	ASSERT_EQ(0, to_shared(&self->sealed, NR_PAGES / 4, NR_PAGES / 4));
	ASSERT_EQ(0, to_private(&self->sealed, NR_PAGES / 2, NR_PAGES / 4));
	for (i = 0; i < NR_PAGES; i++) {
		bool private = i < NR_PAGES / 4 ||
			(i >= NR_PAGES / 2 && i < NR_PAGES / 4 * 3);

		kind = private ? SHARED : PRIVATE;
		guest_command_set(tvm, GUEST_READ, gva_of(i, kind), 0);
		expect_mismatch(_metadata, tvm, i, kind);
		ASSERT_EQ(0, convert(self, i, kind));
		EXPECT_EQ(!private ? 0 : i < NR_PAGES / 2 ? SHARED_VALUE(i) : i,
			  guest_continue(tvm));
	}
}

TEST_F(shared_bit, shared_half_is_replaced)
{
	static const unsigned long pages[] = { PAGE, NR_PAGES + PAGE };
	struct test_vm *tvm = self->tvm;
	unsigned int i;
	uint64_t *page;

	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		page = shared_page(&self->sealed, pages[i]);

		guest_write(tvm, gva_of(pages[i], SHARED), 1);
		if (pages[i] >= NR_PAGES)
			guest_write(tvm, gva_of(pages[i], PRIVATE), 1);

		ASSERT_EQ(page, mmap(page, PAGE_SIZE, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
		*page = 2;
		EXPECT_EQ(2, guest_read(tvm, gva_of(pages[i], SHARED)));
		if (pages[i] >= NR_PAGES)
			EXPECT_EQ(2, guest_read(tvm, gva_of(pages[i], PRIVATE)));

		/* Without a new one there is nothing to map. */
		ASSERT_EQ(0, munmap(page, PAGE_SIZE));
		guest_command_set(tvm, GUEST_READ, gva_of(pages[i], SHARED), 0);
		EXPECT_REFUSED(EFAULT, _vcpu_run(tvm->vcpu));
		ASSERT_EQ(page, mmap(page, PAGE_SIZE, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
		EXPECT_EQ(0, guest_continue(tvm));
	}
}

TEST_F(shared_bit, private_half_survives_munmap)
{
	struct test_vm *tvm = self->tvm;

	ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
	guest_write(tvm, gva_of(PAGE, PRIVATE), PRIVATE_VALUE(PAGE));
	ASSERT_EQ(0, munmap(shared_page(&self->sealed, PAGE), PAGE_SIZE));
	EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(tvm, gva_of(PAGE, PRIVATE)));
}

static void expect_mmio(struct __test_metadata *_metadata, struct test_vm *tvm, uint64_t gpa,
			uint64_t gva)
{
	struct kvm_run *run = tvm->vcpu->run;
	const uint64_t data = gva * 3;

	guest_command_set(tvm, GUEST_READ, gva, 0);
	vcpu_run(tvm->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
	EXPECT_EQ(gpa, run->mmio.phys_addr);
	EXPECT_EQ(8, run->mmio.len);
	EXPECT_FALSE(run->mmio.is_write);
	memcpy(run->mmio.data, &data, 8);
	EXPECT_EQ(data, guest_continue(tvm));

	guest_command_set(tvm, GUEST_WRITE, gva, data + 1);
	vcpu_run(tvm->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
	EXPECT_EQ(gpa, run->mmio.phys_addr);
	EXPECT_EQ(8, run->mmio.len);
	EXPECT_TRUE(run->mmio.is_write);
	EXPECT_EQ(data + 1, *(uint64_t *)run->mmio.data);
	guest_continue(tvm);
}

static void delete_and_recreate(struct __test_metadata *_metadata,
				FIXTURE_DATA(shared_bit) *self)
{
	const unsigned long ordinary = NR_PAGES + PAGE;
	struct test_vm *tvm = self->tvm;
	int i;

	ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
	for (i = 0; i < 3; i++) {
		guest_write(tvm, gva_of(PAGE, PRIVATE), PRIVATE_VALUE(i));
		guest_write(tvm, gva_of(PAGE + 1, SHARED), SHARED_VALUE(i));
		guest_write(tvm, gva_of(ordinary, PRIVATE), 1);
		guest_write(tvm, gva_of(ordinary, SHARED), 2);

		ASSERT_EQ(0, delete_slot(self->vm, SLOT));
		ASSERT_EQ(0, delete_slot(self->vm, ORDINARY_SLOT));
		expect_mmio(_metadata, tvm, gpa_of(PAGE), gva_of(PAGE, PRIVATE));
		expect_mmio(_metadata, tvm, gpa_of(PAGE + 1), gva_of(PAGE + 1, SHARED));
		expect_mmio(_metadata, tvm, gpa_of(ordinary), gva_of(ordinary, PRIVATE));
		expect_mmio(_metadata, tvm, gpa_of(ordinary), gva_of(ordinary, SHARED));

		/* What was MMIO isn't taken for shared memory. */
		ASSERT_EQ(0, add_slot(&self->sealed, SLOT, 0, NR_PAGES));
		ASSERT_EQ(0, set_slot(self->vm, ORDINARY_SLOT, 0, ORDINARY_GPA, SIZE,
				      self->sealed.shared + SIZE, -1, 0));
		EXPECT_EQ(PRIVATE_VALUE(i), guest_read(tvm, gva_of(PAGE, PRIVATE)));
		EXPECT_EQ(SHARED_VALUE(i), guest_read(tvm, gva_of(PAGE + 1, SHARED)));
		EXPECT_EQ(2, guest_read(tvm, gva_of(ordinary, PRIVATE)));
		EXPECT_EQ(2, guest_read(tvm, gva_of(ordinary, SHARED)));
	}
}

TEST_F(shared_bit, delete_memslots)
{
	delete_and_recreate(_metadata, self);
}

TEST_F(shared_bit, delete_memslots_one_by_one)
{
	if (!(kvm_check_cap(KVM_CAP_DISABLE_QUIRKS2) & KVM_X86_QUIRK_SLOT_ZAP_ALL))
		SKIP(return, "no KVM_X86_QUIRK_SLOT_ZAP_ALL");

	vm_enable_cap(self->vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL);
	delete_and_recreate(_metadata, self);
}

TEST_F(shared_bit, move_memslot)
{
	struct test_vm *tvm = self->tvm;
	int i;

	ASSERT_EQ(0, delete_slot(self->vm, ORDINARY_SLOT));
	ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
	guest_write(tvm, gva_of(PAGE, PRIVATE), PRIVATE_VALUE(PAGE));
	guest_write(tvm, gva_of(PAGE + 1, SHARED), SHARED_VALUE(0));
	for (i = 0; i < 4; i++) {
		unsigned long old = i & 1 ? NR_PAGES : 0, new = NR_PAGES - old;

		ASSERT_EQ(0, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, gpa_of(new), SIZE,
				      self->sealed.shared, self->sealed.fd, 0));
		EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(tvm, gva_of(new + PAGE, PRIVATE)));
		EXPECT_EQ(SHARED_VALUE(0), guest_read(tvm, gva_of(new + PAGE + 1, SHARED)));
		expect_mmio(_metadata, tvm, gpa_of(old + PAGE), gva_of(old + PAGE, PRIVATE));
		expect_mmio(_metadata, tvm, gpa_of(old + PAGE + 1),
			    gva_of(old + PAGE + 1, SHARED));
	}

	/* Not to where the bit is. */
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, self->bit, SIZE,
					self->sealed.shared, self->sealed.fd, 0));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD,
					self->bit - PAGE_SIZE, SIZE, self->sealed.shared,
					self->sealed.fd, 0));
	EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(tvm, gva_of(PAGE, PRIVATE)));
}

/*
 * What KVM does on the guest's behalf
 */
TEST_F(shared_bit, mmio)
{
	int i;

	for (i = 0; i < 3; i++) {
		expect_mmio(_metadata, self->tvm, MMIO_GPA + 8, MMIO_GPA + 8);
		expect_mmio(_metadata, self->tvm, MMIO_GPA + 16, MMIO_GPA + SHARED_ALIAS + 16);
	}
}

static void expect_mmio_copy(struct __test_metadata *_metadata, struct test_vm *tvm,
			     uint64_t from, uint64_t to)
{
	struct kvm_run *run = tvm->vcpu->run;
	const uint64_t data = from ^ to;

	guest_command_set(tvm, GUEST_MOVSQ, from, to);
	vcpu_run(tvm->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
	EXPECT_EQ(MMIO_GPA, run->mmio.phys_addr);
	EXPECT_FALSE(run->mmio.is_write);
	memcpy(run->mmio.data, &data, 8);
	guest_continue(tvm);
	EXPECT_EQ(data, guest_read(tvm, to));

	guest_command_set(tvm, GUEST_MOVSQ, to, from);
	vcpu_run(tvm->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
	EXPECT_EQ(MMIO_GPA, run->mmio.phys_addr);
	EXPECT_TRUE(run->mmio.is_write);
	EXPECT_EQ(data, *(uint64_t *)run->mmio.data);
	guest_continue(tvm);
}

/* An instruction with two operands in memory: KVM has to find them itself. */
TEST_F(shared_bit, mmio_emulated_operands)
{
	static const uint64_t aliases[] = { 0, SHARED_ALIAS };
	struct test_vm *tvm = self->tvm;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(aliases); i++) {
		expect_mmio_copy(_metadata, tvm, MMIO_GPA + aliases[i],
				 gva_of(PAGE, SHARED));
		expect_mmio_copy(_metadata, tvm, MMIO_GPA + aliases[i],
				 gva_of(NR_PAGES + PAGE, SHARED));
		expect_mmio_copy(_metadata, tvm, MMIO_GPA + aliases[i],
				 gva_of(NR_PAGES + PAGE, PRIVATE));
	}
}

/*
 * Instructions that KVM emulates: their accesses ask for one kind of memory, as
 * the CPU's do.
 */
#define STRING_PORT	0x0f
/* From a stack near the end of its page to the next one, where MMIO is */
#define STACK_TO_MMIO	64

static __attribute__((used)) uint64_t guest_stop;

static __attribute__((naked)) void guest_emulated_load(void)
{
	asm volatile(KVM_FEP "mov (%rdi), %rax; ret");
}

static __attribute__((naked)) void guest_emulated_store(void)
{
	asm volatile(KVM_FEP "movq $1, (%rdi); ret");
}

static __attribute__((naked)) void guest_emulated_inc(void)
{
	asm volatile(KVM_FEP "lock incq (%rdi); ret");
}

static __attribute__((naked)) void guest_ins(void)
{
	asm volatile("push %rcx; push %rdx; push %rdi\n\t"
		     "mov $16, %ecx; mov $" __stringify(STRING_PORT) ", %edx; rep insl\n\t"
		     "pop %rdi; pop %rdx; pop %rcx; ret");
}

/* The same, from the last one to the first. */
static __attribute__((naked)) void guest_ins_backwards(void)
{
	asm volatile("push %rcx; push %rdx; push %rdi\n\t"
		     "mov $16, %ecx; mov $" __stringify(STRING_PORT) ", %edx\n\t"
		     "add $60, %rdi; std; rep insl; cld\n\t"
		     "pop %rdi; pop %rdx; pop %rcx; ret");
}

static __attribute__((naked)) void guest_outs(void)
{
	asm volatile("push %rcx; push %rdx; push %rsi\n\t"
		     "mov %rdi, %rsi\n\t"
		     "mov $16, %ecx; mov $" __stringify(STRING_PORT) ", %edx; rep outsl\n\t"
		     "pop %rsi; pop %rdx; pop %rcx; ret");
}

static __attribute__((naked)) void guest_emulated_store_loop(void)
{
	/* The last one is after guest_stop was set. */
	asm volatile("1: mov guest_stop(%rip), %rax\n\t"
		     KVM_FEP "movq $1, (%rdi)\n\t"
		     "test %rax, %rax\n\t"
		     "je 1b\n\t"
		     "ret");
}

static uint32_t guest_read32(struct test_vm *tvm, uint64_t addr)
{
	return guest_run(tvm, GUEST_CALL, (uint64_t)guest_mov32, addr);
}

/* Pushes two words, CS above RIP, with the stack where the argument says. */
static __attribute__((naked)) void guest_far_call(void)
{
	asm volatile("push %rbx; push %rcx; sub $8, %rsp\n\t"
		     "lea 1f(%rip), %rax\n\t"
		     "mov %eax, (%rsp); mov %cs, 4(%rsp)\n\t"
		     "mov %rsp, %rbx; mov %rsp, %rcx; mov %rdi, %rsp\n\t"
		     KVM_FEP "lcall *(%rcx)\n\t"
		     "1: mov %rbx, %rsp\n\t"
		     "add $8, %rsp; pop %rcx; pop %rbx; ret");
}

/* Turned away until the page is converted, then let through. */
static void expect_mismatch_once(struct __test_metadata *_metadata,
				 FIXTURE_DATA(shared_bit) *self, unsigned long page,
				 uint64_t kind)
{
	expect_mismatch(_metadata, self->tvm, page, kind);
	expect_mismatch(_metadata, self->tvm, page, kind);
	set_page(self, page, kind);
}

TEST_F(shared_bit, emulated_load_and_store)
{
	struct test_vm *tvm = self->tvm;
	uint64_t kind, gva;

	if (!force_emulation())
		SKIP(return, "no forced emulation");

	for (kind = 0; kind <= PRIVATE; kind += PRIVATE) {
		gva = gva_of(PAGE, kind);

		set_page(self, PAGE, kind ^ PRIVATE);
		guest_command_set(tvm, GUEST_CALL, (uint64_t)guest_emulated_load, gva);
		expect_mismatch_once(_metadata, self, PAGE, kind);
		EXPECT_EQ(0, guest_continue(tvm));

		set_page(self, PAGE, kind ^ PRIVATE);
		guest_command_set(tvm, GUEST_CALL, (uint64_t)guest_emulated_store, gva);
		expect_mismatch_once(_metadata, self, PAGE, kind);
		guest_continue(tvm);
		EXPECT_EQ(1, guest_read(tvm, gva));

		set_page(self, PAGE, kind ^ PRIVATE);
		guest_command_set(tvm, GUEST_CALL, (uint64_t)guest_emulated_inc, gva);
		expect_mismatch_once(_metadata, self, PAGE, kind);
		guest_continue(tvm);
		EXPECT_EQ(1, guest_read(tvm, gva));

		/* What matches goes through. */
		guest_run(tvm, GUEST_CALL, (uint64_t)guest_emulated_inc, gva);
		EXPECT_EQ(2, guest_run(tvm, GUEST_CALL, (uint64_t)guest_emulated_load, gva));
		EXPECT_EQ(kind == SHARED ? 2 : 0, *shared_page(&self->sealed, PAGE));

		/* One page is, the other isn't what is asked for. */
		set_page(self, PAGE - 1, kind);
		set_page(self, PAGE, kind ^ PRIVATE);
		guest_command_set(tvm, GUEST_CALL, (uint64_t)guest_emulated_store, gva - 4);
		expect_mismatch_once(_metadata, self, PAGE, kind);
		guest_continue(tvm);
		EXPECT_EQ(1, guest_read(tvm, gva - 4));
		set_page(self, PAGE, SHARED);
		set_page(self, PAGE - 1, SHARED);
	}
}

TEST_F(shared_bit, emulated_fetch)
{
	/* mov (%rdi),%rax; ret */
	const uint64_t code = 0xc3078b48;
	struct test_vm *tvm = self->tvm;

	if (!force_emulation())
		SKIP(return, "no forced emulation");

	/* That's not something the CPU would come upon. */
	memcpy((char *)shared_page(&self->sealed, PAGE) - sizeof(fep), fep, sizeof(fep));
	ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
	guest_command_set(tvm, GUEST_CALL, gva_of(PAGE, SHARED) - sizeof(fep),
			  gva_of(1, SHARED));
	expect_mismatch(_metadata, tvm, PAGE, SHARED);
	ASSERT_EQ(0, convert(self, PAGE, SHARED));
	*shared_page(&self->sealed, PAGE) = code;
	EXPECT_EQ(SHARED_VALUE(1), guest_continue(tvm));
}

TEST_F(shared_bit, emulated_mmio_operands)
{
	const uint64_t data = 0x1122334455667788ul;
	struct test_vm *tvm = self->tvm;
	struct kvm_run *run = tvm->vcpu->run;
	uint64_t kind, gva;

	for (kind = 0; kind <= PRIVATE; kind += PRIVATE) {
		gva = gva_of(PAGE, kind);

		/* The device isn't read before that makes sense. */
		set_page(self, PAGE, kind ^ PRIVATE);
		guest_command_set(tvm, GUEST_MOVSQ, MMIO_GPA, gva);
		expect_mismatch_once(_metadata, self, PAGE, kind);
		vcpu_run(tvm->vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
		EXPECT_EQ(MMIO_GPA, run->mmio.phys_addr);
		EXPECT_FALSE(run->mmio.is_write);
		memcpy(run->mmio.data, &data, 8);
		guest_continue(tvm);
		EXPECT_EQ(data, guest_read(tvm, gva));
		EXPECT_EQ(kind == SHARED ? data : 0, *shared_page(&self->sealed, PAGE));

		set_page(self, PAGE, kind ^ PRIVATE);
		guest_command_set(tvm, GUEST_MOVSQ, gva, MMIO_GPA);
		expect_mismatch_once(_metadata, self, PAGE, kind);
		vcpu_run(tvm->vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
		EXPECT_TRUE(run->mmio.is_write);
		EXPECT_EQ(0, *(uint64_t *)run->mmio.data);
		guest_continue(tvm);
		set_page(self, PAGE, SHARED);
	}
}

static __attribute__((naked)) void guest_push_from(void)
{
	asm volatile("push %rbx; mov %rsp, %rbx; mov %rdi, %rsp\n\t"
		     "pushq " __stringify(STACK_TO_MMIO) "(%rsp)\n\t"
		     "mov %rsp, %rax; mov %rbx, %rsp; pop %rbx; ret");
}

/* What the instruction has done to registers by then is undone. */
TEST_F(shared_bit, emulated_registers)
{
	const uint64_t data = 0x1122334455667788ul, stack = PT_GVA + PAGE_SIZE - STACK_TO_MMIO;
	struct test_vm *tvm = self->tvm;
	struct kvm_run *run = tvm->vcpu->run;
	struct kvm_regs regs;
	int i;

	virt_map(self->vm, PT_GVA, gpa_of(PAGE), 1);
	virt_map(self->vm, PT_GVA + PAGE_SIZE, MMIO_GPA, 1);

	set_page(self, PAGE, PRIVATE);
	guest_command_set(tvm, GUEST_CALL, (uint64_t)guest_push_from, stack);
	for (i = 0; i < 2; i++) {
		vcpu_run(tvm->vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
		memcpy(run->mmio.data, &data, 8);
		if (!i) {
			set_page(self, PAGE, SHARED);
			expect_mismatch(_metadata, tvm, PAGE, PRIVATE);
			vcpu_regs_get(tvm->vcpu, &regs);
			EXPECT_EQ(stack, regs.rsp);
			set_page(self, PAGE, PRIVATE);
		}
	}
	EXPECT_EQ(stack - 8, guest_continue(tvm));
	EXPECT_EQ(data, guest_read(tvm, stack - 8));
}

/* The first of two writes is for a device, which hears of it when both are done. */
TEST_F(shared_bit, emulated_mmio_and_store)
{
	struct test_vm *tvm = self->tvm;
	struct kvm_run *run = tvm->vcpu->run;
	uint64_t kind, stack = PT_GVA;

	if (!force_emulation())
		SKIP(return, "no forced emulation");

	for (kind = 0; kind <= PRIVATE; kind += PRIVATE, stack += PAGE_SIZE) {
		virt_map(self->vm, stack,
			 gpa_of(PAGE) | (kind == SHARED ? self->bit : 0), 1);
		stack += PAGE_SIZE;
		virt_map(self->vm, stack, MMIO_GPA, 1);

		set_page(self, PAGE, kind ^ PRIVATE);
		guest_command_set(tvm, GUEST_CALL, (uint64_t)guest_far_call, stack + 4);
		expect_mismatch(_metadata, tvm, PAGE, kind);
		emulate_again(tvm->vcpu);
		expect_mismatch(_metadata, tvm, PAGE, kind);
		emulate_again(tvm->vcpu);
		set_page(self, PAGE, kind);
		vcpu_run(tvm->vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
		EXPECT_EQ(MMIO_GPA, run->mmio.phys_addr);
		EXPECT_TRUE(run->mmio.is_write);
		EXPECT_EQ(4, run->mmio.len);
		guest_continue(tvm);
		EXPECT_NE(0, guest_read(tvm, gva_of(PAGE + 1, kind) - 8) >> 32);
	}
}

/* It is converted when the device has been read: what it gave is given up. */
TEST_F(shared_bit, converted_during_mmio)
{
	const uint64_t data[] = { 0x1122334455667788ul, 0x99aabbccddeefful };
	struct test_vm *tvm = self->tvm;
	struct kvm_run *run = tvm->vcpu->run;
	int i;

	ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
	guest_command_set(tvm, GUEST_MOVSQ, MMIO_GPA, gva_of(PAGE, PRIVATE));
	for (i = 0; i < 2; i++) {
		vcpu_run(tvm->vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
		memcpy(run->mmio.data, &data[i], 8);
		if (!i) {
			ASSERT_EQ(0, convert(self, PAGE, SHARED));
			expect_mismatch(_metadata, tvm, PAGE, PRIVATE);
			ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
		}
	}
	guest_continue(tvm);
	EXPECT_EQ(data[1], guest_read(tvm, gva_of(PAGE, PRIVATE)));
	EXPECT_EQ(SHARED_VALUE(PAGE), *shared_page(&self->sealed, PAGE));

	/* And not taken for what the next instruction reads. */
	expect_mmio(_metadata, tvm, MMIO_GPA, MMIO_GPA);
}

/* Give the guest's string instruction what it asks for, one after the other. */
static unsigned int serve_ins(struct test_vm *tvm, unsigned int nr)
{
	struct kvm_run *run = tvm->vcpu->run;
	uint32_t *data = (void *)run + run->io.data_offset;
	unsigned int i;

	TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(run->io.port, STRING_PORT);
	TEST_ASSERT_EQ(run->io.direction, KVM_EXIT_IO_IN);
	TEST_ASSERT_EQ(run->io.size, 4);
	for (i = 0; i < run->io.count; i++)
		data[i] = ++nr;
	return nr;
}

static bool is_string_io(struct test_vm *tvm)
{
	struct kvm_run *run = tvm->vcpu->run;

	return run->exit_reason == KVM_EXIT_IO && run->io.port == STRING_PORT;
}

/*
 * 16 words from a port, as many of them as @before in one page and the others in
 * the next.  None may be lost, in whatever page it goes.
 */
static void check_ins(struct __test_metadata *_metadata, FIXTURE_DATA(shared_bit) *self,
		      uint64_t kind, unsigned int before, bool backwards)
{
	const uint64_t gva = gva_of(PAGE + 1, kind) - 4 * before;
	struct test_vm *tvm = self->tvm;
	unsigned int nr = 0, faults = 0, i;

	set_page(self, PAGE, kind ^ PRIVATE);
	set_page(self, PAGE + 1, kind ^ PRIVATE);
	guest_command_set(tvm, GUEST_CALL, backwards ? (uint64_t)guest_ins_backwards :
						       (uint64_t)guest_ins, gva);
	for (;;) {
		if (!_vcpu_run(tvm->vcpu)) {
			if (!is_string_io(tvm))
				break;
			nr = serve_ins(tvm, nr);
			continue;
		}
		ASSERT_EQ(KVM_EXIT_MEMORY_FAULT, tvm->vcpu->run->exit_reason);
		ASSERT_EQ(kind, tvm->vcpu->run->memory_fault.flags);
		set_page(self, (tvm->vcpu->run->memory_fault.gpa - GPA) / PAGE_SIZE, kind);
		faults++;
	}
	guest_result(tvm);
	EXPECT_EQ(16, nr);
	EXPECT_EQ(before && before < 16 ? 2 : 1, faults);

	for (i = 0; i < 16; i++)
		EXPECT_EQ(backwards ? 16 - i : i + 1, guest_read32(tvm, gva + 4 * i));
	set_page(self, PAGE, SHARED);
	set_page(self, PAGE + 1, SHARED);
}

TEST_F(shared_bit, emulated_string_input)
{
	static const unsigned int before[] = { 0, 1, 2, 8, 15, 16 };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(before); i++) {
		check_ins(_metadata, self, PRIVATE, before[i], false);
		check_ins(_metadata, self, PRIVATE, before[i], true);
		check_ins(_metadata, self, SHARED, before[i], false);
		check_ins(_metadata, self, SHARED, before[i], true);
	}
}

TEST_F(shared_bit, emulated_string_output)
{
	struct test_vm *tvm = self->tvm;
	struct kvm_run *run = tvm->vcpu->run;
	unsigned int nr = 0, i;
	uint64_t kind;

	for (kind = 0; kind <= PRIVATE; kind += PRIVATE, nr = 0) {
		set_page(self, PAGE, kind ^ PRIVATE);
		guest_command_set(tvm, GUEST_CALL, (uint64_t)guest_outs, gva_of(PAGE, kind));
		expect_mismatch_once(_metadata, self, PAGE, kind);
		for (vcpu_run(tvm->vcpu); is_string_io(tvm); vcpu_run(tvm->vcpu)) {
			for (i = 0; i < run->io.count; i++, nr++)
				EXPECT_EQ(0, ((uint32_t *)((void *)run +
							   run->io.data_offset))[i]);
		}
		guest_result(tvm);
		EXPECT_EQ(16, nr);
		set_page(self, PAGE, SHARED);
	}
}

static void *convert_and_look(void *data)
{
	FIXTURE_DATA(shared_bit) *self = data;
	int i;

	for (i = 0; i < 500; i++) {
		TEST_ASSERT(!convert(self, PAGE, PRIVATE), "Can't convert");
		TEST_ASSERT(!convert(self, PAGE, SHARED), "Can't convert");
		TEST_ASSERT_EQ(READ_ONCE(*shared_page(&self->sealed, PAGE)), SHARED_VALUE(PAGE));
	}
	TEST_ASSERT(!convert(self, PAGE, PRIVATE), "Can't convert");
	WRITE_ONCE(*(uint64_t *)addr_gva2hva(self->vm, (vm_vaddr_t)&guest_stop), 1);
	return NULL;
}

/* What is meant for private memory never goes to the shared half. */
TEST_F(shared_bit, emulated_store_races_with_conversion)
{
	struct kvm_vcpu *vcpu = self->tvm->vcpu;
	pthread_t thread;

	if (!force_emulation())
		SKIP(return, "no forced emulation");

	guest_command_set(self->tvm, GUEST_CALL, (uint64_t)guest_emulated_store_loop,
			  gva_of(PAGE, PRIVATE));
	pthread_create(&thread, NULL, convert_and_look, self);
	while (_vcpu_run(vcpu)) {
		ASSERT_EQ(KVM_EXIT_MEMORY_FAULT, vcpu->run->exit_reason);
		ASSERT_EQ(PRIVATE, vcpu->run->memory_fault.flags);
		ASSERT_EQ(gpa_of(PAGE), vcpu->run->memory_fault.gpa);
	}
	guest_result(self->tvm);
	pthread_join(thread, NULL);
	EXPECT_EQ(1, guest_read(self->tvm, gva_of(PAGE, PRIVATE)));
	EXPECT_EQ(SHARED_VALUE(PAGE), *shared_page(&self->sealed, PAGE));
}

TEST_F(shared_bit, local_apic)
{
	struct test_vm *tvm = self->tvm;
	uint32_t version, spiv;
	int i;

	version = guest_read32(tvm, APIC_DEFAULT_GPA + APIC_LVR);
	spiv = guest_read32(tvm, APIC_DEFAULT_GPA + APIC_SPIV);
	EXPECT_NE(0, version);
	EXPECT_NE(0, spiv);
	for (i = 0; i < 2; i++) {
		EXPECT_EQ(version, guest_read32(tvm, APIC_DEFAULT_GPA + SHARED_ALIAS + APIC_LVR));
		EXPECT_EQ(spiv, guest_read32(tvm, APIC_DEFAULT_GPA + SHARED_ALIAS + APIC_SPIV));
		EXPECT_EQ(version, guest_read32(tvm, APIC_DEFAULT_GPA + APIC_LVR));
	}
}

TEST_F(shared_bit, code)
{
	/* mov (%rdi),%rax; ret */
	const uint64_t code = 0xc3078b48;
	struct test_vm *tvm = self->tvm;
	struct kvm_run *run = tvm->vcpu->run;
	const uint64_t pages[] = {
		gva_of(NR_PAGES, PRIVATE), gva_of(NR_PAGES, SHARED), gva_of(PAGE, SHARED),
	};
	unsigned int i;

	*shared_page(&self->sealed, NR_PAGES) = code;
	*shared_page(&self->sealed, PAGE) = code;
	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		EXPECT_EQ(SHARED_VALUE(1), guest_run(tvm, GUEST_CALL, pages[i],
						     gva_of(1, SHARED)));

		/* KVM may have to fetch it. */
		guest_command_set(tvm, GUEST_CALL, pages[i], MMIO_GPA);
		vcpu_run(tvm->vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
		EXPECT_EQ(MMIO_GPA, run->mmio.phys_addr);
		memcpy(run->mmio.data, &i, sizeof(i));
		EXPECT_EQ(i, (unsigned int)guest_continue(tvm));
	}

	/* Fetching is an access, too. */
	guest_command_set(tvm, GUEST_CALL, gva_of(PAGE, PRIVATE), gva_of(1, SHARED));
	expect_mismatch(_metadata, tvm, PAGE, PRIVATE);
	ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
	ASSERT_EQ(0, convert(self, PAGE, SHARED));
	expect_mismatch(_metadata, tvm, PAGE, PRIVATE);
}

/* Page table entries as the library makes them */
#define PTE_FLAGS	(PTE_PRESENT_MASK | PTE_WRITABLE_MASK)

TEST_F(shared_bit, page_table)
{
	struct test_vm *tvm = self->tvm;
	int level = PG_LEVEL_2M;
	uint64_t *pde;

	/* A table at the shared alias leads to both kinds, by both walkers. */
	virt_map(self->vm, PT_GVA, OTHER_GPA, 1);
	pde = __vm_get_page_table_entry(self->vm, PT_GVA, &level);
	*pde = (*pde & ~PHYSICAL_PAGE_MASK) | gpa_of(PAGE) | self->bit;
	memset(shared_page(&self->sealed, PAGE), 0, PAGE_SIZE);
	shared_page(&self->sealed, PAGE)[0] = gpa_of(1) | self->bit | PTE_FLAGS;
	shared_page(&self->sealed, PAGE)[1] = gpa_of(2) | PTE_FLAGS;
	shared_page(&self->sealed, PAGE)[2] = MMIO_GPA | PTE_FLAGS;
	shared_page(&self->sealed, PAGE)[3] = MMIO_GPA | self->bit | PTE_FLAGS;
	ASSERT_EQ(0, convert(self, 2, PRIVATE));
	guest_write(tvm, gva_of(2, PRIVATE), PRIVATE_VALUE(2));

	EXPECT_EQ(SHARED_VALUE(1), guest_read(tvm, PT_GVA));
	EXPECT_EQ(PRIVATE_VALUE(2), guest_read(tvm, PT_GVA + PAGE_SIZE));
	expect_mmio(_metadata, tvm, MMIO_GPA, PT_GVA + 2 * PAGE_SIZE);
	expect_mmio(_metadata, tvm, MMIO_GPA, PT_GVA + 3 * PAGE_SIZE);
	expect_mmio_copy(_metadata, tvm, PT_GVA + 2 * PAGE_SIZE, PT_GVA);
	expect_mmio_copy(_metadata, tvm, PT_GVA + 3 * PAGE_SIZE, PT_GVA);

	/* The CPU's walk is an access to the table. */
	ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
	guest_command_set(tvm, GUEST_READ, PT_GVA, 0);
	expect_mismatch(_metadata, tvm, PAGE, SHARED);
	ASSERT_EQ(0, convert(self, PAGE, SHARED));
	guest_continue(tvm);

	/* And a table can be private as well. */
	*pde &= ~self->bit;
	ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
	guest_write(tvm, gva_of(PAGE, PRIVATE), gpa_of(2) | PTE_FLAGS);
	EXPECT_EQ(PRIVATE_VALUE(2), guest_read(tvm, PT_GVA));
}

TEST_F(shared_bit, page_table_root)
{
	struct test_vm *tvm = self->tvm;
	struct kvm_sregs sregs;

	vcpu_sregs_get(tvm->vcpu, &sregs);
	sregs.cr3 |= self->bit;
	vcpu_sregs_set(tvm->vcpu, &sregs);
	EXPECT_EQ(SHARED_VALUE(1), guest_read(tvm, gva_of(1, SHARED)));
	expect_mmio_copy(_metadata, tvm, MMIO_GPA, gva_of(PAGE, SHARED));
}

TEST_F(shared_bit, hypercall)
{
	struct test_vm *tvm = self->tvm;
	struct kvm_run *run = tvm->vcpu->run;
	unsigned int i;

	vm_enable_cap(self->vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE));
	for (i = 0; i < 2; i++) {
		guest_command_set(tvm, GUEST_HYPERCALL, gpa_of(PAGE) | (i ? self->bit : 0), 2);
		vcpu_run(tvm->vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_HYPERCALL);
		EXPECT_EQ(gpa_of(PAGE), run->hypercall.args[0]);
		EXPECT_EQ(2, run->hypercall.args[1]);
		run->hypercall.ret = i;
		EXPECT_EQ(i, guest_continue(tvm));
	}
}

TEST_F(shared_bit, pv_areas)
{
	static const uint32_t msrs[] = {
		MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_STEAL_TIME,
		MSR_KVM_ASYNC_PF_EN, MSR_KVM_PV_EOI_EN,
	};
	struct test_vm *tvm = self->tvm;
	unsigned int i, accepted = 0;
	uint64_t data;

	for (i = 0; i < ARRAY_SIZE(msrs); i++) {
		/* The wall clock is not enabled, but written at once. */
		data = (gpa_of(PAGE + i) + 64) | self->bit | !!i;
		if (guest_run(tvm, GUEST_WRMSR, msrs[i], data))
			continue;
		accepted |= BIT(i);
		EXPECT_EQ(data, vcpu_get_msr(tvm->vcpu, msrs[i]));
	}
	for (i = 0; i < 20; i++) {
		guest_read(tvm, gva_of(1, SHARED));
		usleep(1000);
	}

	/* These are written to in any case, if they are supported. */
	EXPECT_EQ(3, accepted & 3);
	for (i = 0; i < 3; i++)
		EXPECT_NE(0, !(accepted & BIT(i)) ||
			  memcmp(shared_page(&self->sealed, PAGE + i) + 1,
				 shared_page(&self->sealed, PAGE + i) + 2, 256)) {
			TH_LOG("MSR %#x", msrs[i]);
		}
}

TEST_F(shared_bit, pre_fault)
{
	struct kvm_vcpu *vcpu = self->tvm->vcpu;
	struct kvm_pre_fault_memory range;
	unsigned long i;

	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
		SKIP(return, "no KVM_PRE_FAULT_MEMORY");

	/* The address says which kind, as with the guest's. */
	ASSERT_EQ(0, to_private(&self->sealed, 2, 3));
	range = (struct kvm_pre_fault_memory) { .gpa = gpa_of(2), .size = 3 * PAGE_SIZE };
	EXPECT_EQ(0, __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range));
	EXPECT_EQ(0, range.size);
	range = (struct kvm_pre_fault_memory) {
		.gpa = gpa_of(5) | self->bit, .size = 3 * PAGE_SIZE,
	};
	EXPECT_EQ(0, __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range));
	EXPECT_EQ(0, range.size);
	for (i = 2; i < 8; i++)
		EXPECT_EQ(i < 5 ? 0 : SHARED_VALUE(i),
			  guest_read(self->tvm, gva_of(i, i < 5 ? PRIVATE : SHARED)));

	/* It does not ask for a conversion. */
	vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
	range = (struct kvm_pre_fault_memory) { .gpa = gpa_of(4), .size = 2 * PAGE_SIZE };
	EXPECT_EQ(0, __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range));
	EXPECT_EQ(gpa_of(5), range.gpa);
	EXPECT_REFUSED(EFAULT, __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range));
	range = (struct kvm_pre_fault_memory) {
		.gpa = gpa_of(4) | self->bit, .size = PAGE_SIZE,
	};
	EXPECT_REFUSED(EFAULT, __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range));
	EXPECT_EQ(KVM_EXIT_UNKNOWN, vcpu->run->exit_reason);
}

/* Gives the ordinary memslot a guest_memfd as its private half; to be closed later. */
static int add_guest_memfd(FIXTURE_DATA(shared_bit) *self)
{
	int fd = vm_create_guest_memfd(self->vm, SIZE, 0);

	TEST_ASSERT(!delete_slot(self->vm, ORDINARY_SLOT) &&
		    !set_slot(self->vm, ORDINARY_SLOT, KVM_MEM_GUEST_MEMFD, ORDINARY_GPA, SIZE,
			      self->sealed.shared + SIZE, fd, 0),
		    "Can't replace the memslot");
	return fd;
}

/* guest_memfd has no say in which kind a page is, but attributes have. */
TEST_F(shared_bit, guest_memfd)
{
	const unsigned long page = NR_PAGES + PAGE;
	struct test_vm *tvm = self->tvm;
	int fd;

	if (variant->type != KVM_X86_SW_PROTECTED_VM)
		SKIP(return, "no guest_memfd");

	fd = add_guest_memfd(self);
	EXPECT_EQ(SHARED_VALUE(page), guest_read(tvm, gva_of(page, SHARED)));
	guest_command_set(tvm, GUEST_WRITE, gva_of(page, PRIVATE), 1);
	expect_mismatch(_metadata, tvm, page, PRIVATE);
	expect_mismatch(_metadata, tvm, page, PRIVATE);
	vm_mem_set_private(self->vm, gpa_of(page), PAGE_SIZE);
	guest_continue(tvm);
	EXPECT_EQ(1, guest_read(tvm, gva_of(page, PRIVATE)));

	guest_command_set(tvm, GUEST_READ, gva_of(page, SHARED), 0);
	expect_mismatch(_metadata, tvm, page, SHARED);
	vm_mem_set_shared(self->vm, gpa_of(page), PAGE_SIZE);
	EXPECT_EQ(SHARED_VALUE(page), guest_continue(tvm));
	close(fd);
}

/* Up to its end, whatever it wants of devices */
static void run_emulated(struct test_vm *tvm)
{
	do {
		vcpu_run(tvm->vcpu);
	} while (tvm->vcpu->run->exit_reason == KVM_EXIT_MMIO || is_string_io(tvm));
}

/* KVM can't emulate what is done to the private half of such a memslot. */
TEST_F(shared_bit, guest_memfd_and_emulation)
{
	const unsigned long page = NR_PAGES + PAGE;
	const struct {
		/* Of the page, or NULL to copy it to a device or from one */
		void (*function)(void);
		bool writes;
		bool forced;
	} accesses[] = {
		{ guest_ins, true, false },
		{ guest_outs, false, false },
		{ NULL, true, false },
		{ NULL, false, false },
		{ guest_emulated_load, false, true },
		{ guest_emulated_store, true, true },
		{ guest_emulated_inc, true, true },
	};
	uint64_t *words = shared_page(&self->sealed, page), kind;
	struct test_vm *tvm = self->tvm;
	struct kvm_regs regs;
	unsigned int i, j;
	int fd;

	if (variant->type != KVM_X86_SW_PROTECTED_VM)
		SKIP(return, "no guest_memfd");

	fd = add_guest_memfd(self);
	/* Most of them don't come to an end, so start anew each time. */
	vcpu_regs_get(tvm->vcpu, &regs);
	for (i = 0; i < 4 * ARRAY_SIZE(accesses); i++) {
		const uint64_t asked = i & 1 ? PRIVATE : SHARED, gva = gva_of(page, asked);

		j = i / 4;
		if (accesses[j].forced && !force_emulation())
			continue;

		kind = i & 2 ? PRIVATE : SHARED;
		if (kind == PRIVATE)
			vm_mem_set_private(self->vm, gpa_of(page), PAGE_SIZE);
		else
			vm_mem_set_shared(self->vm, gpa_of(page), PAGE_SIZE);
		memset(words, 0xff, PAGE_SIZE);
		vcpu_regs_set(tvm->vcpu, &regs);
		if (accesses[j].function)
			guest_command_set(tvm, GUEST_CALL, (uint64_t)accesses[j].function, gva);
		else if (accesses[j].writes)
			guest_command_set(tvm, GUEST_MOVSQ, MMIO_GPA, gva);
		else
			guest_command_set(tvm, GUEST_MOVSQ, gva, MMIO_GPA);

		TH_LOG("access %u, page %s", j, kind ? "private" : "shared");
		if (asked != kind) {
			expect_mismatch(_metadata, tvm, page, asked);
		} else if (kind == PRIVATE) {
			run_emulated(tvm);
			EXPECT_EQ(KVM_EXIT_INTERNAL_ERROR, tvm->vcpu->run->exit_reason);
		} else {
			run_emulated(tvm);
			guest_result(tvm);
		}
		EXPECT_EQ(asked == SHARED && kind == SHARED && accesses[j].writes,
			  words[0] != ~0ul);
	}
	close(fd);
}

/*
 * The flow of events, as traced
 */
static const char * const traced_events[] = {
	"kvm/kvm_page_fault", "kvm/kvm_userspace_exit", "kvm/kvm_unmap_hva_range",
	"kvm/kvm_sealed_memfd_begin", "kvm/kvm_sealed_memfd_end",
	"kvmmmu/kvm_tdp_mmu_spte_changed",
};

/* What the trace is searched for: a page, by its addresses. */
struct traced_page {
	uint64_t gpa;
	uint64_t bit;
	uint64_t hva;
};

#define SPTE_CHANGED \
	"kvm_tdp_mmu_spte_changed: as id 0 gfn %llx level %llx old_spte %llx new_spte %llx"

/* An event, in short. Empty if it's none of the page. */
static void trace_shorten(char *event, size_t size, const char *args,
			  const struct traced_page *page)
{
	unsigned long long a, b, c, d, gfn = page->gpa / PAGE_SIZE;
	char word[16], word2[16];

	*event = 0;
	if (sscanf(args, "kvm_page_fault: vcpu %*u rip 0x%*x address 0x%llx", &a) == 1) {
		if ((a & ~page->bit & PAGE_MASK) == page->gpa)
			snprintf(event, size, "fault(%s)", a & page->bit ? "shared" : "private");
	} else if (sscanf(args, "kvm_userspace_exit: reason %15s (%llu)", word, &a) == 2) {
		/* The library makes KVM_RUN return at once after I/O. */
		if (strcmp(word, "restart"))
			snprintf(event, size, "exit(%s %llu)", word, a);
	} else if (sscanf(args, "kvm_unmap_hva_range: mmu notifier unmap range: %llx -- %llx",
			  &a, &b) == 2) {
		if (a <= page->hva && page->hva < b)
			snprintf(event, size, "notifier");
	} else if (sscanf(args, "kvm_sealed_memfd_%15[^:]: %15s gfns: %llx -- %llx",
			  word, word2, &a, &b) == 4) {
		if (a == gfn && b == gfn + 1)
			snprintf(event, size, "%s(%s)", word, word2);
	} else if (sscanf(args, SPTE_CHANGED, &a, &b, &c, &d) == 4) {
		/* Present before, after? */
		if (a == gfn && b == PG_LEVEL_4K)
			snprintf(event, size, "spte(%c%c)", c & BIT_ULL(11) ? '+' : '-',
				 d & BIT_ULL(11) ? '+' : '-');
	} else if (sscanf(args, "tracing_mark_write: %15s", word) == 1) {
		snprintf(event, size, "%s", word);
	}
}

/* All events in a row. */
static void trace_read(char *summary, size_t size, const struct traced_page *page)
{
	char line[512], event[64], last[64] = "";
	FILE *file = trace_open();
	const char *args;

	*summary = 0;
	while (fgets(line, sizeof(line), file)) {
		args = strstr(line, ": ");
		if (!args)
			continue;
		trace_shorten(event, sizeof(event), args + 2, page);

		/* Faults are repeated as long as anything is being invalidated. */
		if (!*event || (!strncmp(event, "fault", 5) && !strcmp(event, last)))
			continue;
		snprintf(summary + strlen(summary), size - strlen(summary), "%s\n", event);
		snprintf(last, sizeof(last), "%s", event);
	}
	fclose(file);
}

static const char * const traced_flow[] = {
	"KVM_RUN", "fault(private)", "exit(error 14)",
	"munmap", "notifier", "spte(+-)",
	"fallocate", "begin(map)", "end(map)",
	"KVM_RUN", "fault(private)", "spte(-+)", "exit(KVM_EXIT_IO 2)",
	"matching", "exit(KVM_EXIT_IO 2)",

	"KVM_RUN", "fault(shared)", "exit(error 14)",
	"punch", "begin(unmap)", "spte(+-)", "end(unmap)",
	"KVM_RUN", "fault(shared)", "spte(-+)", "exit(KVM_EXIT_IO 2)",

	"KVM_RUN", "fault(private)", "exit(error 14)",
	"fallocate", "begin(map)", "spte(+-)", "end(map)",
	"KVM_RUN", "fault(private)", "spte(-+)", "exit(KVM_EXIT_IO 2)",
};

TEST_F(shared_bit, traced_flow)
{
	const struct traced_page page = {
		gpa_of(PAGE), self->bit, (uintptr_t)shared_page(&self->sealed, PAGE),
	};
	struct test_vm *tvm = self->tvm;
	char summary[4096], expected[4096] = "";
	unsigned int i;
	bool started;

	guest_read(tvm, gva_of(PAGE, SHARED));
	started = trace_start(traced_events, ARRAY_SIZE(traced_events));

	if (started) {
		trace_this_thread(traced_events, ARRAY_SIZE(traced_events));

		/* As in the RFC: the shared half is unmapped by userspace... */
		guest_command_set(tvm, GUEST_READ, gva_of(PAGE, PRIVATE), 0);
		trace_mark("KVM_RUN");
		expect_mismatch(_metadata, tvm, PAGE, PRIVATE);
		trace_mark("munmap");
		EXPECT_EQ(0, madvise(shared_page(&self->sealed, PAGE), PAGE_SIZE, MADV_DONTNEED));
		trace_mark("fallocate");
		EXPECT_EQ(0, convert(self, PAGE, PRIVATE));
		trace_mark("KVM_RUN");
		EXPECT_EQ(0, guest_continue(tvm));
		trace_mark("matching");
		EXPECT_EQ(0, guest_read(tvm, gva_of(PAGE, PRIVATE)));

		/* ... and the way back ... */
		guest_command_set(tvm, GUEST_READ, gva_of(PAGE, SHARED), 0);
		trace_mark("KVM_RUN");
		expect_mismatch(_metadata, tvm, PAGE, SHARED);
		trace_mark("punch");
		EXPECT_EQ(0, convert(self, PAGE, SHARED));
		trace_mark("KVM_RUN");
		EXPECT_EQ(0, guest_continue(tvm));

		/* ... or by the conversion. */
		guest_command_set(tvm, GUEST_READ, gva_of(PAGE, PRIVATE), 0);
		trace_mark("KVM_RUN");
		expect_mismatch(_metadata, tvm, PAGE, PRIVATE);
		trace_mark("fallocate");
		EXPECT_EQ(0, convert(self, PAGE, PRIVATE));
		trace_mark("KVM_RUN");
		EXPECT_EQ(0, guest_continue(tvm));

		trace_read(summary, sizeof(summary), &page);
	}
	trace_stop();
	if (!started)
		SKIP(return, "no tracing");

	for (i = 0; i < ARRAY_SIZE(traced_flow); i++) {
		strcat(expected, traced_flow[i]);
		strcat(expected, "\n");
	}
	EXPECT_STREQ(expected, summary);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_X86_SHARED_GPA_BIT));

	return test_harness_run(argc, argv);
}
