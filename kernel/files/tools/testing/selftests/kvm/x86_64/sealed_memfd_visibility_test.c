// SPDX-License-Identifier: GPL-2.0-only
/*
 * Hyper-V's interface for isolated guests, in a VM with a shared GPA bit: the
 * hypercall by which the guest converts pages, and the half of a page in which KVM
 * looks for what the guest gives it the address of.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "sealed_memfd_isolation.h"
#include "sealed_memfd_shared_bit_fixture.h"

#define HV_STATUS_INVALID_PARTITION_ID	13
#define HV_REP_START_OFFSET		48

#define IRQ_VECTOR			0x40
/* The guest stops here in 32-bit mode. */
#define PORT_32				0x0e

/* Where the list is, in the ordinary memslot, by whichever alias */
#define LIST_PAGE	NR_PAGES
/* A page of the sealed memfd for it, far away from those to convert */
#define PRIVATE_LIST	(NR_PAGES - 8)

/*
 * The guest
 */
static struct hv_call {
	uint64_t control;
	uint64_t input;
	uint64_t output;
	uint64_t times;
} hv_calls[2];

/* GUEST_CALL doesn't expect registers to change. */
#define GUEST_FUNCTION(name)						\
static __attribute__((naked)) void name(void)				\
{									\
	asm volatile("push %rbx; push %rcx; push %rdx; push %rsi\n\t"	\
		     "push %rdi; push %r8; push %r9; push %r10\n\t"	\
		     "push %r11; push %rbp\n\t"				\
		     "mov %rsp, %rbp; and $-16, %rsp\n\t"		\
		     "call do_" #name "\n\t"				\
		     "mov %rbp, %rsp\n\t"				\
		     "pop %rbp; pop %r11; pop %r10; pop %r9\n\t"	\
		     "pop %r8; pop %rdi; pop %rsi; pop %rdx\n\t"	\
		     "pop %rcx; pop %rbx; ret");			\
}

/* The status of the last one, or of the first that fails */
static __attribute__((used)) uint64_t do_guest_hv_call(struct hv_call *call)
{
	uint64_t i, status = 0;

	for (i = 0; i < call->times; i++) {
		status = hv_hypercall(call->control, call->input, call->output);
		if (status & 0xffff)
			break;
	}
	return status;
}

GUEST_FUNCTION(guest_hv_call)

static __attribute__((used)) uint64_t do_guest_copy_page(uint64_t to)
{
	const uint64_t from = gpa_of(LIST_PAGE), n = PAGE_SIZE / 8;
	uint64_t i;

	for (i = 0; i < n; i++)
		((volatile uint64_t *)to)[i] = ((volatile uint64_t *)from)[i];
	return 0;
}

GUEST_FUNCTION(guest_copy_page)

static __attribute__((used)) uint64_t do_guest_wrmsr_emulated(uint64_t msr)
{
	uint64_t value = hv_calls[0].input;

	asm volatile(KVM_FEP "wrmsr" : : "a" ((uint32_t)value), "d" (value >> 32), "c" (msr));
	return 0;
}

GUEST_FUNCTION(guest_wrmsr_emulated)

static struct {
	uint64_t nr;
} guest_irq;

static void guest_irq_handler(struct ex_regs *regs)
{
	guest_irq.nr++;
	x2apic_write_reg(APIC_EOI, 0);
}

static __attribute__((used)) uint64_t do_guest_take_irqs(uint64_t enable_apic)
{
	uint64_t nr;

	if (enable_apic)
		x2apic_enable();
	asm volatile("sti; nop; nop" : : : "memory");
	nr = READ_ONCE(guest_irq.nr);
	WRITE_ONCE(guest_irq.nr, 0);
	return nr;
}

GUEST_FUNCTION(guest_take_irqs)

static void enable_hypercall_exit(struct kvm_vm *vm, bool enable)
{
	vm_enable_cap(vm, KVM_CAP_EXIT_HYPERCALL, enable ? BIT(KVM_HC_MAP_GPA_RANGE) : 0);
}

static void setup_isolation(FIXTURE_DATA(shared_bit) *self)
{
	set_isolation(self->tvm->vcpu, self->bit);
	enable_hypercall_exit(self->vm, true);
}

/*
 * The host's side of it
 */
static struct page_list *page_list(FIXTURE_DATA(shared_bit) *self)
{
	return (void *)shared_page(&self->sealed, LIST_PAGE);
}

static void set_list(FIXTURE_DATA(shared_bit) *self, uint32_t visibility,
		     const unsigned long *pages, unsigned int nr)
{
	struct page_list *list = page_list(self);
	unsigned int i;

	list->partition = HV_PARTITION_SELF;
	list->visibility = visibility;
	list->reserved = 0;
	for (i = 0; i < nr; i++)
		list->pages[i] = gpa_of(pages[i]) / PAGE_SIZE;
}

static struct hv_call *host_hv_call(struct kvm_vm *vm, unsigned int nr)
{
	return addr_gva2hva(vm, (vm_vaddr_t)&hv_calls[nr]);
}

static uint64_t reps(uint64_t nr)
{
	return nr << HV_HYPERCALL_REP_COMP_OFFSET;
}

static uint64_t control(uint64_t count, uint64_t start)
{
	return HVCALL_MODIFY_VISIBILITY | reps(count) | start << HV_REP_START_OFFSET;
}

static void set_call(struct test_vm *tvm, uint64_t control, uint64_t input)
{
	*host_hv_call(tvm->vm, 0) = (struct hv_call) { control, input, 0, 1 };
	guest_command_set(tvm, GUEST_CALL, (uint64_t)guest_hv_call, (uint64_t)&hv_calls[0]);
}

static bool is_conversion(struct kvm_vcpu *vcpu)
{
	return vcpu->run->exit_reason == KVM_EXIT_HYPERCALL;
}

/* One that should not exit: if it does the status says so. */
static uint64_t hv_call(struct test_vm *tvm, uint64_t control, uint64_t input)
{
	set_call(tvm, control, input);
	vcpu_run(tvm->vcpu);
	if (is_conversion(tvm->vcpu)) {
		tvm->vcpu->run->hypercall.ret = -1ul;
		vcpu_run(tvm->vcpu);
	}
	return guest_result(tvm);
}

static uint64_t kind_attributes(uint64_t kind)
{
	return KVM_MAP_GPA_RANGE_PAGE_SZ_4K |
	       (kind == PRIVATE ? KVM_MAP_GPA_RANGE_ENCRYPTED : KVM_MAP_GPA_RANGE_DECRYPTED);
}

/* The vCPU has stopped for that. */
static void expect_conversion(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu,
			      uint64_t kind, uint64_t gpa, uint64_t nr)
{
	struct kvm_run *run = vcpu->run;

	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_HYPERCALL);
	EXPECT_EQ(KVM_HC_MAP_GPA_RANGE, run->hypercall.nr);
	EXPECT_EQ(gpa, run->hypercall.args[0]);
	EXPECT_EQ(nr, run->hypercall.args[1]);
	EXPECT_EQ(kind_attributes(kind), run->hypercall.args[2]);
	EXPECT_EQ(KVM_EXIT_HYPERCALL_LONG_MODE, run->hypercall.flags);
}

/* Do what the guest asks for. */
static int serve_conversion(FIXTURE_DATA(shared_bit) *self, struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	bool private = run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED;
	int ret;

	ret = fallocate(self->sealed.fd, private ? 0 : PUNCH, run->hypercall.args[0] - GPA,
			run->hypercall.args[1] * PAGE_SIZE);
	run->hypercall.ret = ret ? -KVM_EINVAL : 0;
	return ret;
}

static bool is_private(FIXTURE_DATA(shared_bit) *self, unsigned long page)
{
	return lseek(self->sealed.fd, page * PAGE_SIZE, SEEK_DATA) == page * PAGE_SIZE;
}

/*
 * What there is to enable
 */
TEST_F(shared_bit, capability)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_HYPERV_ISOLATION };
	struct kvm_vm *vm;

	EXPECT_EQ(1, kvm_check_cap(KVM_CAP_HYPERV_ISOLATION));
	EXPECT_EQ(1, vm_check_cap(self->vm, KVM_CAP_HYPERV_ISOLATION));
	/* It's there, and that's it. */
	EXPECT_REFUSED(EINVAL, __vm_ioctl(self->vm, KVM_ENABLE_CAP, &cap));
	EXPECT_REFUSED(EINVAL, __vcpu_ioctl(self->tvm->vcpu, KVM_ENABLE_CAP, &cap));

	/* It comes with the bit, whether the VM has chosen one or not. */
	vm = vm_create_barebones();
	EXPECT_EQ(!!vm_check_cap(vm, KVM_CAP_X86_SHARED_GPA_BIT),
		  vm_check_cap(vm, KVM_CAP_HYPERV_ISOLATION));
	kvm_vm_free(vm);
}

static const struct kvm_cpuid_entry2 *find_entry(const struct kvm_cpuid2 *cpuid, uint32_t function)
{
	int i;

	for (i = 0; i < cpuid->nent; i++) {
		if (cpuid->entries[i].function == function)
			return &cpuid->entries[i];
	}
	return NULL;
}

static void expect_no_isolation(struct __test_metadata *_metadata, const struct kvm_cpuid2 *hv)
{
	EXPECT_EQ(NULL, find_entry(hv, HV_CPUID_ISOLATION_CONFIG));
	EXPECT_FALSE(find_entry(hv, HYPERV_CPUID_FEATURES)->ebx & BIT(22));
}

TEST_F(shared_bit, supported_cpuid)
{
	const struct kvm_cpuid2 *sys = kvm_get_supported_hv_cpuid();
	const struct kvm_cpuid_entry2 *entry;
	const struct kvm_cpuid2 *hv;
	struct kvm_cpuid2 *cpuid;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	/* Who wants the bit only can't do what isolated guests need. */
	hv = vcpu_get_supported_hv_cpuid(self->tvm->vcpu);
	EXPECT_EQ(sys->nent, hv->nent);
	expect_no_isolation(_metadata, hv);

	enable_hypercall_exit(self->vm, true);
	hv = vcpu_get_supported_hv_cpuid(self->tvm->vcpu);
	entry = find_entry(hv, HV_CPUID_ISOLATION_CONFIG);
	ASSERT_NE(NULL, entry);
	EXPECT_EQ(0, entry->eax);
	EXPECT_EQ(isolation_config(self->bit), entry->ebx);
	EXPECT_EQ(0, entry->ecx);
	EXPECT_EQ(0, entry->edx);
	EXPECT_TRUE(find_entry(hv, HYPERV_CPUID_FEATURES)->ebx & BIT(22));
	EXPECT_LE(HV_CPUID_ISOLATION_CONFIG, find_entry(hv, 0x40000000)->eax);

	/* Nobody else has more than before. */
	EXPECT_EQ(hv->nent - 1, sys->nent);
	expect_no_isolation(_metadata, sys);
	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	sys = vcpu_get_supported_hv_cpuid(vcpu);
	EXPECT_EQ(hv->nent - 1, sys->nent);
	expect_no_isolation(_metadata, sys);
	kvm_vm_free(vm);

	/* All of them have to fit. */
	cpuid = allocate_kvm_cpuid2(hv->nent);
	cpuid->nent = hv->nent - 1;
	EXPECT_REFUSED(E2BIG, __vcpu_ioctl(self->tvm->vcpu, KVM_GET_SUPPORTED_HV_CPUID, cpuid));
	cpuid->nent = hv->nent;
	EXPECT_EQ(0, __vcpu_ioctl(self->tvm->vcpu, KVM_GET_SUPPORTED_HV_CPUID, cpuid));
	free(cpuid);
}

TEST_F(shared_bit, refused_unless_enabled)
{
	const uint32_t good = isolation_config(self->bit), bit = __builtin_ctzll(self->bit);
	const struct {
		bool isolated, has_leaf, enforce, exit;
		uint32_t config;
		uint64_t status;
	} cases[] = {
		{ true, true, false, true, good, 0 },
		{ true, true, true, true, good, 0 },
		/* Bits that nobody has defined, and one that KVM has nothing to do with */
		{ true, true, false, true, good | 1 << 4 | 1 << 12 | 1u << 31, 0 },
		{ false, true, false, true, good, HV_STATUS_INVALID_HYPERCALL_CODE },
		{ false, true, true, true, good, HV_STATUS_ACCESS_DENIED },
		{ true, false, false, true, 0, HV_STATUS_INVALID_HYPERCALL_CODE },
		{ true, false, true, true, 0, HV_STATUS_INVALID_HYPERCALL_CODE },
		{ true, true, false, true, 0, HV_STATUS_INVALID_HYPERCALL_CODE },
		{ true, true, false, true, good ^ HV_ISOLATION_TYPE_VBS,
		  HV_STATUS_INVALID_HYPERCALL_CODE },
		{ true, true, false, true, good ^ HV_ISOLATION_TYPE_VBS ^ HV_ISOLATION_TYPE_SNP,
		  HV_STATUS_INVALID_HYPERCALL_CODE },
		{ true, true, false, true, good | HV_ISOLATION_TYPE_SNP,
		  HV_STATUS_INVALID_HYPERCALL_CODE },
		{ true, true, false, true, good ^ HV_BOUNDARY_ACTIVE,
		  HV_STATUS_INVALID_HYPERCALL_CODE },
		{ true, true, false, true, HV_ISOLATION_TYPE_VBS | HV_BOUNDARY_ACTIVE |
					   (bit - 1) << HV_BOUNDARY_SHIFT,
		  HV_STATUS_INVALID_HYPERCALL_CODE },
		{ true, true, false, false, good, HV_STATUS_INVALID_HYPERCALL_CODE },
		{ true, true, true, false, good, HV_STATUS_INVALID_HYPERCALL_CODE },
		{ false, true, true, false, good, HV_STATUS_INVALID_HYPERCALL_CODE },
	};
	const unsigned long pages[] = { PAGE };
	struct test_vm tvm = *self->tvm;
	unsigned int i;

	set_list(self, VISIBILITY_PRIVATE, pages, 1);
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		TH_LOG("case %u", i);
		/* CPUID can't change once the vCPU has run. */
		if (i)
			tvm.vcpu = vm_vcpu_add(self->vm, i, guest_code);
		set_hv_cpuid(tvm.vcpu, cases[i].isolated, cases[i].has_leaf, cases[i].config);
		enable_hypercall_exit(self->vm, cases[i].exit);
		if (cases[i].enforce)
			vcpu_enable_cap(tvm.vcpu, KVM_CAP_HYPERV_ENFORCE_CPUID, 1);
		vcpu_set_msr(tvm.vcpu, HV_X64_MSR_GUEST_OS_ID, HYPERV_LINUX_OS_ID);

		set_call(&tvm, control(1, 0), gpa_of(LIST_PAGE));
		vcpu_run(tvm.vcpu);
		EXPECT_EQ(!cases[i].status, is_conversion(tvm.vcpu));
		if (is_conversion(tvm.vcpu)) {
			expect_conversion(_metadata, tvm.vcpu, PRIVATE, gpa_of(PAGE), 1);
			tvm.vcpu->run->hypercall.ret = 0;
			vcpu_run(tvm.vcpu);
		}
		EXPECT_EQ(cases[i].status ?: reps(1), guest_result(&tvm));
	}
}

TEST(no_shared_bit)
{
	struct kvm_vcpu *vcpu;
	struct test_vm tvm;
	int enforce;

	if (!kvm_check_cap(KVM_CAP_HYPERV_ISOLATION))
		SKIP(return, "no isolation");

	/* Leaves can be set, and mean nothing. */
	for (enforce = 0; enforce < 2; enforce++) {
		test_vm_create(&tvm, KVM_X86_DEFAULT_VM);
		vcpu = tvm.vcpu;
		set_hv_cpuid(vcpu, !enforce, true, HV_ISOLATION_TYPE_VBS | HV_BOUNDARY_ACTIVE);
		enable_hypercall_exit(tvm.vm, true);
		vcpu_enable_cap(vcpu, KVM_CAP_HYPERV_ENFORCE_CPUID, enforce);
		vcpu_set_msr(vcpu, HV_X64_MSR_GUEST_OS_ID, HYPERV_LINUX_OS_ID);
		EXPECT_EQ(HV_STATUS_INVALID_HYPERCALL_CODE,
			  hv_call(&tvm, control(1, 0), 0));
		kvm_vm_free(tvm.vm);
	}
}

/*
 * What's in the registers and in the list
 */
TEST_F(shared_bit, invalid_control)
{
	const uint64_t call = HVCALL_MODIFY_VISIBILITY;
	const uint64_t controls[] = {
		/* No elements, or too many */
		call, control(511, 0), control(4095, 0), control(511, 510),
		/* A start beyond the end */
		control(1, 1), control(1, 2), control(0, 1), control(510, 510),
		control(510, 511), control(1, 4095), control(4095, 4095),
		/* In registers */
		control(1, 0) | HV_HYPERCALL_FAST_BIT,
		/* A header of variable size */
		control(1, 0) | 1ul << HV_HYPERCALL_VARHEAD_OFFSET,
		control(1, 0) | 0x3fful << HV_HYPERCALL_VARHEAD_OFFSET,
		/* Reserved bits */
		control(1, 0) | BIT_ULL(27), control(1, 0) | BIT_ULL(31),
		control(1, 0) | BIT_ULL(44), control(1, 0) | BIT_ULL(47),
		control(1, 0) | BIT_ULL(60), control(1, 0) | BIT_ULL(63),
	};
	const unsigned long pages[] = { PAGE, PAGE + 2 };
	unsigned int i;

	setup_isolation(self);
	set_list(self, VISIBILITY_PRIVATE, pages, 2);
	for (i = 0; i < ARRAY_SIZE(controls); i++) {
		EXPECT_EQ(HV_STATUS_INVALID_HYPERCALL_INPUT,
			  hv_call(self->tvm, controls[i], gpa_of(LIST_PAGE))) {
			TH_LOG("%lx", controls[i]);
		}
	}
	EXPECT_FALSE(is_private(self, PAGE));
}

TEST_F(shared_bit, invalid_header)
{
	const struct {
		uint64_t partition;
		uint32_t visibility, reserved;
		uint64_t status;
	} headers[] = {
		{ 0, VISIBILITY_PRIVATE, 0, HV_STATUS_INVALID_PARTITION_ID },
		{ 1, VISIBILITY_PRIVATE, 0, HV_STATUS_INVALID_PARTITION_ID },
		{ ~1ul, VISIBILITY_PRIVATE, 0, HV_STATUS_INVALID_PARTITION_ID },
		{ ~0u, VISIBILITY_PRIVATE, 0, HV_STATUS_INVALID_PARTITION_ID },
		{ ~0ul << 32, VISIBILITY_PRIVATE, 0, HV_STATUS_INVALID_PARTITION_ID },
		{ ~0ul, VISIBILITY_READ, 0, HV_STATUS_INVALID_PARAMETER },
		{ ~0ul, VISIBILITY_WRITE, 0, HV_STATUS_INVALID_PARAMETER },
		{ ~0ul, 4, 0, HV_STATUS_INVALID_PARAMETER },
		{ ~0ul, VISIBILITY_SHARED | 4, 0, HV_STATUS_INVALID_PARAMETER },
		{ ~0ul, VISIBILITY_SHARED | BIT(31), 0, HV_STATUS_INVALID_PARAMETER },
		{ ~0ul, BIT(31), 0, HV_STATUS_INVALID_PARAMETER },
		{ ~0ul, VISIBILITY_PRIVATE, 1, HV_STATUS_INVALID_PARAMETER },
		{ ~0ul, VISIBILITY_SHARED, BIT(31), HV_STATUS_INVALID_PARAMETER },
	};
	const unsigned long pages[] = { PAGE, PAGE + 2, PAGE + 4 };
	struct page_list *list = page_list(self);
	unsigned int i, start;

	setup_isolation(self);
	set_list(self, VISIBILITY_PRIVATE, pages, 3);
	for (i = 0; i < ARRAY_SIZE(headers); i++) {
		list->partition = headers[i].partition;
		list->visibility = headers[i].visibility;
		list->reserved = headers[i].reserved;
		for (start = 0; start < 3; start++) {
			EXPECT_EQ(headers[i].status | reps(start),
				  hv_call(self->tvm, control(3, start), gpa_of(LIST_PAGE))) {
				TH_LOG("header %u", i);
			}
		}
	}
}

TEST_F(shared_bit, invalid_address)
{
	const uint64_t gpa = gpa_of(LIST_PAGE), mmio = MMIO_GPA, bit = self->bit;
	const struct {
		uint64_t input, count, start;
	} cases[] = {
		/* Not aligned */
		{ gpa + 1, 1, 0 }, { gpa + 4, 1, 0 }, { gpa + 7, 1, 0 },
		/* Beyond the end of the page, though not where it begins */
		{ gpa + 8, 510, 0 }, { gpa + 8, 510, 509 }, { gpa + PAGE_SIZE - 8, 1, 0 },
		{ gpa + PAGE_SIZE - 16, 1, 0 }, { gpa + PAGE_SIZE - 24, 2, 1 },
		/* No memory, nor are these addresses */
		{ mmio, 1, 0 }, { mmio | bit, 1, 0 }, { gpa | bit << 1, 1, 0 },
		{ gpa | BIT_ULL(52), 1, 0 }, { gpa | BIT_ULL(63), 1, 0 }, { ~7ul, 1, 0 },
		{ PAGE_MASK, 1, 0 },
	};
	const unsigned long pages[] = { PAGE, PAGE + 1 };
	struct page_list *list = page_list(self);
	struct test_vm *tvm = self->tvm;
	unsigned int i;

	setup_isolation(self);
	set_list(self, VISIBILITY_PRIVATE, pages, 2);
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		EXPECT_EQ(HV_STATUS_INVALID_ALIGNMENT | reps(cases[i].start),
			  hv_call(tvm, control(cases[i].count, cases[i].start),
				  cases[i].input)) {
			TH_LOG("%lx", cases[i].input);
		}
	}

	/* Anywhere else will do, by either alias of an ordinary memslot. */
	for (i = 0; i <= PAGE_SIZE - 32; i += 8) {
		if (i > 64 && i < PAGE_SIZE - 64)
			continue;
		memset(list, 0, PAGE_SIZE);
		set_list(self, VISIBILITY_SHARED, pages, 2);
		memmove((char *)list + i, list, 32);
		if (i >= 32)
			memset(list, 0, 32);
		set_call(tvm, control(2, 0), (gpa | (i & 8 ? self->bit : 0)) + i);
		vcpu_run(tvm->vcpu);
		expect_conversion(_metadata, tvm->vcpu, SHARED, gpa_of(PAGE), 2);
		tvm->vcpu->run->hypercall.ret = 0;
		EXPECT_EQ(reps(2), guest_continue(tvm));
	}
}

TEST_F(shared_bit, invalid_pages)
{
	const uint64_t end = self->bit / PAGE_SIZE;
	const uint64_t bad[] = {
		end, end + 1, end | GPA / PAGE_SIZE, end * 2, BIT_ULL(40), BIT_ULL(51),
		BIT_ULL(52), BIT_ULL(63), BIT_ULL(63) | GPA / PAGE_SIZE, ~0ul, ~0ul << 12,
	};
	const unsigned long pages[] = { PAGE, PAGE + 1, PAGE + 2 };
	struct page_list *list = page_list(self);
	struct test_vm *tvm = self->tvm;
	struct kvm_vcpu *vcpu = tvm->vcpu;
	unsigned int i, where;

	setup_isolation(self);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		for (where = 0; where < 3; where++) {
			set_list(self, VISIBILITY_PRIVATE, pages, 3);
			list->pages[where] = bad[i];
			set_call(tvm, control(3, 0), gpa_of(LIST_PAGE));
			if (where) {
				vcpu_run(vcpu);
				expect_conversion(_metadata, vcpu, PRIVATE, gpa_of(PAGE), where);
				ASSERT_EQ(0, serve_conversion(self, vcpu));
			}
			EXPECT_EQ(HV_STATUS_INVALID_PARAMETER | reps(where), guest_continue(tvm)) {
				TH_LOG("%lx", bad[i]);
			}
		}
	}

	/* Whether there's memory is for userspace to know. */
	list->pages[0] = end - 1;
	list->pages[1] = 0;
	list->pages[2] = MMIO_GPA / PAGE_SIZE;
	set_call(tvm, control(3, 0), gpa_of(LIST_PAGE));
	vcpu_run(vcpu);
	expect_conversion(_metadata, vcpu, PRIVATE, self->bit - PAGE_SIZE, 1);
	vcpu->run->hypercall.ret = 0;
	vcpu_run(vcpu);
	expect_conversion(_metadata, vcpu, PRIVATE, 0, 1);
	vcpu->run->hypercall.ret = 0;
	vcpu_run(vcpu);
	expect_conversion(_metadata, vcpu, PRIVATE, MMIO_GPA, 1);
	vcpu->run->hypercall.ret = -KVM_EINVAL;
	EXPECT_EQ(HV_STATUS_OPERATION_DENIED | reps(2), guest_continue(tvm));

	/* A list may end with the address space. */
	list->pages[0] = end - 2;
	list->pages[1] = end - 1;
	list->pages[2] = end;
	set_call(tvm, control(3, 0), gpa_of(LIST_PAGE));
	vcpu_run(vcpu);
	expect_conversion(_metadata, vcpu, PRIVATE, self->bit - 2 * PAGE_SIZE, 2);
	vcpu->run->hypercall.ret = 0;
	EXPECT_EQ(HV_STATUS_INVALID_PARAMETER | reps(2), guest_continue(tvm));
}

/*
 * Which pages are converted together
 */
static void copy_list(FIXTURE_DATA(shared_bit) *self, unsigned long page, uint64_t kind)
{
	guest_run(self->tvm, GUEST_CALL, (uint64_t)guest_copy_page, gva_of(page, kind));
}

/* Convert what's in the list, which is private; the runs are as the list has them. */
static void convert_list(struct __test_metadata *_metadata, FIXTURE_DATA(shared_bit) *self,
			 uint64_t kind, const unsigned long *pages, unsigned int nr,
			 unsigned int start)
{
	struct test_vm *tvm = self->tvm;
	unsigned int i, j;

	set_list(self, kind == PRIVATE ? VISIBILITY_PRIVATE : VISIBILITY_SHARED, pages, nr);
	ASSERT_EQ(0, convert(self, PRIVATE_LIST, PRIVATE));
	copy_list(self, PRIVATE_LIST, PRIVATE);
	set_call(tvm, control(nr, start), gpa_of(PRIVATE_LIST));
	for (i = start; i < nr; i = j) {
		for (j = i + 1; j < nr && pages[j] == pages[j - 1] + 1;)
			j++;
		vcpu_run(tvm->vcpu);
		expect_conversion(_metadata, tvm->vcpu, kind, gpa_of(pages[i]), j - i);
		ASSERT_EQ(0, serve_conversion(self, tvm->vcpu));
	}
	/* All of them, wherever it began. */
	EXPECT_EQ(reps(nr), guest_continue(tvm));
	for (i = start; i < nr; i++)
		EXPECT_EQ(kind == PRIVATE, is_private(self, pages[i]));
}

TEST_F(shared_bit, runs)
{
	static const unsigned long lists[][8] = {
		{ 0, 1, 2, 3, 4, 5, 6, 7 },
		{ 7, 6, 5, 4, 3, 2, 1, 0 },
		{ 3, 3, 3, 3, 3, 3, 3, 3 },
		{ 1, 2, 2, 3, 3, 4, 4, 4 },
		{ 0, 2, 4, 6, 8, 10, 12, 14 },
		{ 8, 9, 0, 1, 2, 9, 10, 11 },
		{ 5, 6, 5, 6, 7, 6, 7, 8 },
		{ 0, 1, 2, 4, 5, 6, 600, 601 },
	};
	unsigned int i, start;

	setup_isolation(self);
	for (i = 0; i < ARRAY_SIZE(lists); i++) {
		for (start = 0; start < 8; start += i ? 3 : 1) {
			convert_list(_metadata, self, PRIVATE, lists[i], 8, start);
			convert_list(_metadata, self, SHARED, lists[i], 8, start);
		}
	}
}

TEST_F(shared_bit, long_runs)
{
	unsigned long pages[HV_MAX_PAGES];
	static const unsigned int breaks[] = { 1, 63, 64, 65, 127, 128, 200, 509, 510 };
	unsigned int i, j;

	setup_isolation(self);
	for (i = 0; i < ARRAY_SIZE(breaks); i++) {
		for (j = 0; j < HV_MAX_PAGES; j++)
			pages[j] = j + (j >= breaks[i]);
		convert_list(_metadata, self, i & 1 ? SHARED : PRIVATE, pages, HV_MAX_PAGES,
			     i & 2 ? breaks[i] / 2 : 0);
	}
}

/* What was converted is what the guest then has. */
TEST_F(shared_bit, content)
{
	static const unsigned long pages[] = { PAGE, PAGE + 1, PAGE + 3 };
	struct test_vm *tvm = self->tvm;
	unsigned int i;

	setup_isolation(self);
	convert_list(_metadata, self, PRIVATE, pages, 3, 0);
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(0, guest_read(tvm, gva_of(pages[i], PRIVATE)));
		guest_write(tvm, gva_of(pages[i], PRIVATE), PRIVATE_VALUE(i));
		EXPECT_EQ(SHARED_VALUE(pages[i]), *shared_page(&self->sealed, pages[i]));
	}
	convert_list(_metadata, self, SHARED, pages, 3, 0);
	for (i = 0; i < 3; i++)
		EXPECT_EQ(SHARED_VALUE(pages[i]), guest_read(tvm, gva_of(pages[i], SHARED)));
}

/* A run does not end with the memslot: so it is for userspace. */
TEST_F(shared_bit, run_across_memslots)
{
	static const unsigned long pages[] = { NR_PAGES - 1, NR_PAGES, NR_PAGES + 1 };
	struct test_vm *tvm = self->tvm;

	setup_isolation(self);
	set_list(self, VISIBILITY_SHARED, pages, 3);
	set_call(tvm, control(3, 0), gpa_of(LIST_PAGE));
	vcpu_run(tvm->vcpu);
	expect_conversion(_metadata, tvm->vcpu, SHARED, gpa_of(NR_PAGES - 1), 3);
	tvm->vcpu->run->hypercall.ret = 0;
	EXPECT_EQ(reps(3), guest_continue(tvm));
}

/*
 * When something comes in between
 */
static const unsigned long three_runs[] = { 10, 11, 20, 30, 31, 32 };

static void start_three_runs(struct __test_metadata *_metadata, FIXTURE_DATA(shared_bit) *self)
{
	setup_isolation(self);
	set_list(self, VISIBILITY_PRIVATE, three_runs, 6);
	set_call(self->tvm, control(6, 0), gpa_of(LIST_PAGE) | self->bit);
	vcpu_run(self->tvm->vcpu);
	expect_conversion(_metadata, self->tvm->vcpu, PRIVATE, gpa_of(10), 2);
}

TEST_F(shared_bit, userspace_fails)
{
	static const int64_t errors[] = { -KVM_EINVAL, -KVM_ENOSYS, -KVM_EPERM, -ENOMEM, 1,
					  1ul << 32, 1ul << 63 };
	static const unsigned int before[] = { 0, 2, 3, 6 };
	static const unsigned int runs[] = { 2, 1, 3 };
	struct test_vm *tvm = self->tvm;
	struct kvm_vcpu *vcpu = tvm->vcpu;
	unsigned int i, fail, run;

	setup_isolation(self);
	set_list(self, VISIBILITY_PRIVATE, three_runs, 6);
	for (i = 0; i < ARRAY_SIZE(errors); i++) {
		fail = i % 3;
		set_call(tvm, control(6, 0), gpa_of(LIST_PAGE));
		for (run = 0; run <= fail; run++) {
			vcpu_run(vcpu);
			expect_conversion(_metadata, vcpu, PRIVATE,
					  gpa_of(three_runs[before[run]]), runs[run]);
			vcpu->run->hypercall.ret = run == fail ? errors[i] : 0;
		}
		EXPECT_EQ(HV_STATUS_OPERATION_DENIED | reps(before[fail]), guest_continue(tvm));

		/* The guest may go on from there, or leave it out. */
		set_call(tvm, control(6, before[fail] + runs[fail] - 1), gpa_of(LIST_PAGE));
		for (run = fail; run < 3; run++) {
			vcpu_run(vcpu);
			expect_conversion(_metadata, vcpu, PRIVATE,
					  run == fail ?
					  gpa_of(three_runs[before[run + 1] - 1]) :
					  gpa_of(three_runs[before[run]]),
					  run == fail ? 1 : runs[run]);
			ASSERT_EQ(0, serve_conversion(self, vcpu));
		}
		EXPECT_EQ(reps(6), guest_continue(tvm));
	}
}

/* What userspace writes to the exit's fields has no effect but for the result. */
TEST_F(shared_bit, userspace_lies)
{
	struct test_vm *tvm = self->tvm;
	struct kvm_vcpu *vcpu = tvm->vcpu;

	start_three_runs(_metadata, self);
	memset(vcpu->run->hypercall.args, 0xff, sizeof(vcpu->run->hypercall.args));
	vcpu->run->hypercall.nr = 1;
	vcpu->run->hypercall.flags = 0;
	vcpu->run->hypercall.ret = 0;
	vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
	vcpu_run(vcpu);
	expect_conversion(_metadata, vcpu, PRIVATE, gpa_of(20), 1);
	vcpu->run->hypercall.ret = 0;
	vcpu_run(vcpu);
	expect_conversion(_metadata, vcpu, PRIVATE, gpa_of(30), 3);
	memset(vcpu->run->hypercall.args, 0, sizeof(vcpu->run->hypercall.args));
	vcpu->run->hypercall.ret = 0;
	EXPECT_EQ(reps(6), guest_continue(tvm));
}

static void complete(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu)
{
	vcpu->run->immediate_exit = 1;
	EXPECT_REFUSED(EINTR, __vcpu_run(vcpu));
	vcpu->run->immediate_exit = 0;
}

TEST_F(shared_bit, registers)
{
	struct kvm_regs begin, regs, end;
	struct test_vm *tvm = self->tvm;
	struct kvm_vcpu *vcpu = tvm->vcpu;
	static const unsigned int before[] = { 0, 2, 3, 6 };
	unsigned int run;

	start_three_runs(_metadata, self);
	vcpu_regs_get(vcpu, &begin);
	EXPECT_EQ(control(6, 0), begin.rcx);
	for (run = 0; run < 3; run++) {
		/* Until the exit has been completed nothing has happened. */
		vcpu_regs_get(vcpu, &regs);
		EXPECT_EQ(control(6, before[run]), regs.rcx);
		regs.rcx = begin.rcx;
		EXPECT_EQ(0, memcmp(&begin, &regs, sizeof(regs)));

		ASSERT_EQ(0, serve_conversion(self, vcpu));
		complete(_metadata, vcpu);
		vcpu_regs_get(vcpu, &end);
		if (run == 2)
			break;
		/* Now it has, and it's to go on from there, of which only RCX tells. */
		EXPECT_EQ(control(6, before[run + 1]), end.rcx);
		end.rcx = begin.rcx;
		EXPECT_EQ(0, memcmp(&begin, &end, sizeof(end)));

		/* A signal changes nothing. */
		complete(_metadata, vcpu);
		vcpu_run(vcpu);
	}
	EXPECT_EQ(begin.rip + 3, end.rip);
	EXPECT_EQ(reps(6), end.rax);
	EXPECT_EQ(reps(6), guest_continue(tvm));
}

/* Registers are all there is to migrate. */
TEST_F(shared_bit, migration)
{
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct test_vm *tvm = self->tvm, other = *tvm;
	struct kvm_vcpu *vcpu = tvm->vcpu;

	other.vcpu = vm_vcpu_add(self->vm, 1, guest_code);
	set_hv_cpuid(other.vcpu, true, true, isolation_config(self->bit));
	start_three_runs(_metadata, self);
	ASSERT_EQ(0, serve_conversion(self, vcpu));
	complete(_metadata, vcpu);

	vcpu_regs_get(vcpu, &regs);
	vcpu_sregs_get(vcpu, &sregs);
	vcpu_sregs_set(other.vcpu, &sregs);
	vcpu_regs_set(other.vcpu, &regs);
	vcpu_run(other.vcpu);
	expect_conversion(_metadata, other.vcpu, PRIVATE, gpa_of(20), 1);
	ASSERT_EQ(0, serve_conversion(self, other.vcpu));

	/* Without completing it, it's done again. */
	vcpu_regs_get(other.vcpu, &regs);
	vcpu_regs_set(vcpu, &regs);
	vcpu_run(vcpu);
	expect_conversion(_metadata, vcpu, PRIVATE, gpa_of(20), 1);
	ASSERT_EQ(0, serve_conversion(self, vcpu));
	vcpu_run(vcpu);
	expect_conversion(_metadata, vcpu, PRIVATE, gpa_of(30), 3);
	ASSERT_EQ(0, serve_conversion(self, vcpu));
	EXPECT_EQ(reps(6), guest_continue(tvm));
}

/* The VM loses the right to it on the way. */
TEST_F(shared_bit, disabled_meanwhile)
{
	struct kvm_vcpu *vcpu = self->tvm->vcpu;

	start_three_runs(_metadata, self);
	ASSERT_EQ(0, serve_conversion(self, vcpu));
	enable_hypercall_exit(self->vm, false);
	EXPECT_EQ(HV_STATUS_INVALID_HYPERCALL_CODE, guest_continue(self->tvm));
}

TEST_F(shared_bit, list_changes_meanwhile)
{
	struct page_list *list = page_list(self);
	struct test_vm *tvm = self->tvm;
	struct kvm_vcpu *vcpu = tvm->vcpu;

	start_three_runs(_metadata, self);
	/* What has been read isn't read again; the rest is. */
	list->pages[0] = ~0ul;
	list->pages[1] = ~0ul;
	list->pages[2] = gpa_of(21) / PAGE_SIZE;
	list->visibility = VISIBILITY_SHARED;
	ASSERT_EQ(0, serve_conversion(self, vcpu));
	EXPECT_TRUE(is_private(self, 10) && is_private(self, 11));
	vcpu_run(vcpu);
	expect_conversion(_metadata, vcpu, SHARED, gpa_of(21), 1);
	ASSERT_EQ(0, serve_conversion(self, vcpu));
	list->visibility = VISIBILITY_READ;
	EXPECT_EQ(HV_STATUS_INVALID_PARAMETER | reps(3), guest_continue(tvm));

	set_list(self, VISIBILITY_PRIVATE, three_runs, 6);
	set_call(tvm, control(6, 0), gpa_of(LIST_PAGE));
	vcpu_run(vcpu);
	ASSERT_EQ(0, serve_conversion(self, vcpu));
	list->partition = 0;
	EXPECT_EQ(HV_STATUS_INVALID_PARTITION_ID | reps(2), guest_continue(tvm));
}

TEST_F(shared_bit, list_is_converted_meanwhile)
{
	struct test_vm *tvm = self->tvm;
	struct kvm_vcpu *vcpu = tvm->vcpu;
	unsigned int i;

	setup_isolation(self);
	for (i = 0; i < 2; i++) {
		const uint64_t kind = i ? SHARED : PRIVATE;

		set_list(self, VISIBILITY_PRIVATE, three_runs, 6);
		ASSERT_EQ(0, convert(self, PRIVATE_LIST, kind));
		copy_list(self, PRIVATE_LIST, kind);
		set_call(tvm, control(6, 0), gpa_of(PRIVATE_LIST) | (i ? self->bit : 0));
		vcpu_run(vcpu);
		expect_conversion(_metadata, vcpu, PRIVATE, gpa_of(10), 2);
		ASSERT_EQ(0, serve_conversion(self, vcpu));

		/* The shared half has a list, too; the private one is new. */
		ASSERT_EQ(0, convert(self, PRIVATE_LIST, i ? PRIVATE : SHARED));
		memcpy(shared_page(&self->sealed, PRIVATE_LIST), page_list(self), PAGE_SIZE);
		EXPECT_EQ(HV_STATUS_INVALID_ALIGNMENT | reps(2), guest_continue(tvm));
	}
}

/* Its own list among the pages: what comes next can't be read. */
TEST_F(shared_bit, list_in_list)
{
	static const unsigned long pages[] = { PRIVATE_LIST - 1, PRIVATE_LIST, 1 };
	struct test_vm *tvm = self->tvm;

	setup_isolation(self);
	set_list(self, VISIBILITY_SHARED, pages, 3);
	ASSERT_EQ(0, convert(self, PRIVATE_LIST, PRIVATE));
	copy_list(self, PRIVATE_LIST, PRIVATE);
	set_call(tvm, control(3, 0), gpa_of(PRIVATE_LIST));
	vcpu_run(tvm->vcpu);
	expect_conversion(_metadata, tvm->vcpu, SHARED, gpa_of(PRIVATE_LIST - 1), 2);
	ASSERT_EQ(0, serve_conversion(self, tvm->vcpu));
	EXPECT_EQ(HV_STATUS_INVALID_ALIGNMENT | reps(2), guest_continue(tvm));
}

/* Which half the list is read from */
TEST_F(shared_bit, list_of_the_other_kind)
{
	const unsigned long pages[] = { PAGE };
	struct test_vm *tvm = self->tvm;
	struct page_list *shared = (void *)shared_page(&self->sealed, PRIVATE_LIST);

	setup_isolation(self);
	set_list(self, VISIBILITY_PRIVATE, pages, 1);
	memcpy(shared, page_list(self), PAGE_SIZE);

	EXPECT_EQ(HV_STATUS_INVALID_ALIGNMENT,
		  hv_call(tvm, control(1, 0), gpa_of(PRIVATE_LIST)));
	set_call(tvm, control(1, 0), gpa_of(PRIVATE_LIST) | self->bit);
	vcpu_run(tvm->vcpu);
	expect_conversion(_metadata, tvm->vcpu, PRIVATE, gpa_of(PAGE), 1);
	ASSERT_EQ(0, serve_conversion(self, tvm->vcpu));
	EXPECT_EQ(reps(1), guest_continue(tvm));

	ASSERT_EQ(0, convert(self, PRIVATE_LIST, PRIVATE));
	EXPECT_EQ(HV_STATUS_INVALID_ALIGNMENT,
		  hv_call(tvm, control(1, 0), gpa_of(PRIVATE_LIST) | self->bit));
	/* Zeroes so far */
	EXPECT_EQ(HV_STATUS_INVALID_PARTITION_ID,
		  hv_call(tvm, control(1, 0), gpa_of(PRIVATE_LIST)));
	copy_list(self, PRIVATE_LIST, PRIVATE);
	memset(shared, 0, PAGE_SIZE);
	set_call(tvm, control(1, 0), gpa_of(PRIVATE_LIST));
	vcpu_run(tvm->vcpu);
	expect_conversion(_metadata, tvm->vcpu, PRIVATE, gpa_of(PAGE), 1);
	tvm->vcpu->run->hypercall.ret = 0;
	EXPECT_EQ(reps(1), guest_continue(tvm));
}

/*
 * 32-bit mode: another way to pass the same, and to go on
 */
TEST_F(shared_bit, mode_32bit)
{
	static const unsigned int before[] = { 0, 2, 3, 6 };
	static const unsigned int runs[] = { 2, 1, 3 };
	const uint64_t input = gpa_of(PRIVATE_LIST);
	struct kvm_vcpu *vcpu = self->tvm->vcpu;
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	unsigned int run;
	vm_vaddr_t code;
	uint8_t *hva;

	setup_isolation(self);
	set_list(self, VISIBILITY_PRIVATE, three_runs, 6);
	ASSERT_EQ(0, convert(self, PRIVATE_LIST, PRIVATE));
	copy_list(self, PRIVATE_LIST, PRIVATE);

	code = vm_vaddr_alloc_page(self->vm);
	ASSERT_EQ(0, code >> 32);
	hva = addr_gva2hva(self->vm, code);
	/* vmmcall or vmcall; out %al, $PORT_32 */
	memcpy(hva, host_cpu_is_amd ? "\x0f\x01\xd9\xe6" : "\x0f\x01\xc1\xe6", 4);
	hva[4] = PORT_32;

	vcpu_run_complete_io(vcpu);
	vcpu_sregs_get(vcpu, &sregs);
	sregs.cs.l = 0;
	sregs.cs.db = 1;
	vcpu_sregs_set(vcpu, &sregs);
	memset(&regs, 0, sizeof(regs));
	regs.rflags = 2;
	regs.rip = code;
	/* The upper halves of registers are nothing to 32-bit mode. */
	regs.rax = 0xbad00000000ul | (uint32_t)control(6, 0);
	regs.rdx = 0xbad00000000ul | control(6, 0) >> 32;
	regs.rcx = (uint32_t)input;
	regs.rbx = input >> 32;
	vcpu_regs_set(vcpu, &regs);

	for (run = 0; run < 3; run++) {
		vcpu_run(vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_HYPERCALL);
		EXPECT_EQ(gpa_of(three_runs[before[run]]), vcpu->run->hypercall.args[0]);
		EXPECT_EQ(runs[run], vcpu->run->hypercall.args[1]);
		EXPECT_EQ(kind_attributes(PRIVATE), vcpu->run->hypercall.args[2]);
		EXPECT_EQ(0, vcpu->run->hypercall.flags);
		vcpu_regs_get(vcpu, &regs);
		EXPECT_EQ(code, regs.rip);
		EXPECT_EQ(control(6, before[run]), (regs.rdx << 32) | (uint32_t)regs.rax);
		ASSERT_EQ(0, serve_conversion(self, vcpu));
	}
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	EXPECT_EQ(PORT_32, vcpu->run->io.port);
	vcpu_regs_get(vcpu, &regs);
	EXPECT_EQ(0, (uint32_t)regs.rax);
	EXPECT_EQ(6, (uint32_t)regs.rdx);
	EXPECT_EQ((uint32_t)input, regs.rcx);
}

/*
 * Two vCPUs that want the same pages to be of different kinds
 */
#define RACE_PAGES	8
#define RACE_TIMES	200

struct racer {
	FIXTURE_DATA(shared_bit) *self;
	struct kvm_vcpu *vcpu;
	uint64_t conversions;
	uint64_t status;
};

static void *race(void *arg)
{
	struct racer *racer = arg;
	struct test_vm tvm = { .vm = racer->self->vm, .vcpu = racer->vcpu };

	for (;;) {
		vcpu_run(racer->vcpu);
		if (!is_conversion(racer->vcpu))
			break;
		TEST_ASSERT(!serve_conversion(racer->self, racer->vcpu), "Can't convert");
		racer->conversions++;
	}
	racer->status = guest_result(&tvm);
	return NULL;
}

static void race_guest(uint64_t nr)
{
	GUEST_SYNC(do_guest_hv_call(&hv_calls[nr]));
}

TEST_F(shared_bit, two_vcpus)
{
	struct page_list *list = page_list(self);
	struct racer racers[2] = {};
	pthread_t threads[2];
	unsigned int i, j;

	enable_hypercall_exit(self->vm, true);
	for (i = 0; i < 2; i++) {
		racers[i].self = self;
		racers[i].vcpu = vm_vcpu_add(self->vm, i + 1, race_guest);
		vcpu_args_set(racers[i].vcpu, 1, (uint64_t)i);
		set_isolation(racers[i].vcpu, self->bit);
		*host_hv_call(self->vm, i) = (struct hv_call) {
			control(RACE_PAGES, 0), gpa_of(LIST_PAGE + i), 0, RACE_TIMES,
		};
		list = (void *)shared_page(&self->sealed, LIST_PAGE + i);
		list->partition = HV_PARTITION_SELF;
		list->visibility = i ? VISIBILITY_SHARED : VISIBILITY_PRIVATE;
		/* Two runs */
		for (j = 0; j < RACE_PAGES; j++)
			list->pages[j] = gpa_of(PAGE + (j ^ RACE_PAGES / 2)) / PAGE_SIZE;
	}
	for (i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, race, &racers[i]);
	for (i = 0; i < 2; i++) {
		pthread_join(threads[i], NULL);
		EXPECT_EQ(reps(RACE_PAGES), racers[i].status);
		EXPECT_EQ(2 * RACE_TIMES, racers[i].conversions);
	}

	/* Either has won, page by page, and that one has the page. */
	for (j = 0; j < RACE_PAGES; j++) {
		bool private = is_private(self, PAGE + j);

		guest_write(self->tvm, gva_of(PAGE + j, private ? PRIVATE : SHARED), 1);
	}
}

/*
 * Pages that MSRs name
 */
static const struct {
	uint32_t msr;
	/* Userspace is told of it. */
	bool synic;
} page_msrs[] = {
	{ HV_X64_MSR_HYPERCALL },
	{ HV_X64_MSR_VP_ASSIST_PAGE },
	{ HV_X64_MSR_REFERENCE_TSC },
	{ HV_X64_MSR_SIMP, true },
	{ HV_X64_MSR_SIEFP, true },
};

static void setup_pages(FIXTURE_DATA(shared_bit) *self)
{
	vm_install_exception_handler(self->vm, IRQ_VECTOR, guest_irq_handler);
	vcpu_enable_cap(self->tvm->vcpu, KVM_CAP_HYPERV_SYNIC, 0);
	setup_isolation(self);
	guest_run(self->tvm, GUEST_CALL, (uint64_t)guest_take_irqs, 1);
}

/* The guest goes on with a WRMSR. */
static void expect_wrmsr(struct __test_metadata *_metadata, FIXTURE_DATA(shared_bit) *self,
			 bool synic)
{
	struct kvm_vcpu *vcpu = self->tvm->vcpu;

	vcpu_run(vcpu);
	if (synic) {
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_HYPERV);
		EXPECT_EQ(KVM_EXIT_HYPERV_SYNIC, vcpu->run->hyperv.type);
		vcpu_run(vcpu);
	}
	EXPECT_EQ(0, guest_result(self->tvm));
}

static void set_page_msr(struct __test_metadata *_metadata, FIXTURE_DATA(shared_bit) *self,
			 uint32_t msr, unsigned long page, uint64_t kind)
{
	guest_command_set(self->tvm, GUEST_WRMSR, msr,
			  gpa_of(page) | (kind == PRIVATE ? 0 : self->bit) | 1);
	expect_wrmsr(_metadata, self, msr == HV_X64_MSR_SIMP || msr == HV_X64_MSR_SIEFP);
}

static bool is_all(const uint64_t *words, uint64_t value)
{
	unsigned int i;

	for (i = 0; i < PAGE_SIZE / 8; i++) {
		if (words[i] != value)
			return false;
	}
	return true;
}

/* The guest is stopped if the page is of the other kind, and has its way later. */
TEST_F(shared_bit, msr_pages)
{
	struct test_vm *tvm = self->tvm;
	uint64_t kind, value, *shared;
	unsigned int i, j;

	setup_pages(self);
	for (i = 0; i < ARRAY_SIZE(page_msrs); i++) {
		for (j = 0; j < 2; j++) {
			const unsigned long page = PAGE + 2 * i + j;
			struct kvm_regs before, after;

			TH_LOG("MSR %x, %s", page_msrs[i].msr, j ? "shared" : "private");
			kind = j ? SHARED : PRIVATE;
			value = gpa_of(page) | (j ? self->bit : 0) | 1;
			shared = shared_page(&self->sealed, page);
			memset(shared, 0xff, PAGE_SIZE);
			ASSERT_EQ(0, convert(self, page, j ? PRIVATE : SHARED));

			guest_command_set(tvm, GUEST_WRMSR, page_msrs[i].msr, value);
			expect_mismatch(_metadata, tvm, page, kind);
			vcpu_regs_get(tvm->vcpu, &before);
			expect_mismatch(_metadata, tvm, page, kind);
			vcpu_regs_get(tvm->vcpu, &after);
			EXPECT_EQ(0, memcmp(&before, &after, sizeof(after)));
			EXPECT_NE(value, vcpu_get_msr(tvm->vcpu, page_msrs[i].msr));
			EXPECT_TRUE(is_all(shared, ~0ul));
			ASSERT_EQ(0, convert(self, page, kind));
			expect_wrmsr(_metadata, self, page_msrs[i].synic);
			EXPECT_EQ(value, vcpu_get_msr(tvm->vcpu, page_msrs[i].msr));
			EXPECT_EQ(kind == PRIVATE, is_all(shared, ~0ul));
			/* The TSC page may say that there's none, i.e. nothing. */
			if (page_msrs[i].msr == HV_X64_MSR_HYPERCALL)
				EXPECT_EQ(0xc300010f,
					  guest_read(tvm, gva_of(page, kind)) & 0xff00ffff);
		}
	}
}

TEST_F(shared_bit, msr_pages_of_an_ordinary_memslot)
{
	unsigned int i, j;

	setup_pages(self);
	for (i = 0; i < ARRAY_SIZE(page_msrs); i++) {
		for (j = 0; j < 2; j++) {
			const unsigned long page = NR_PAGES + PAGE + 2 * i + j;
			uint64_t *words = shared_page(&self->sealed, page);

			memset(words, 0xff, PAGE_SIZE);
			set_page_msr(_metadata, self, page_msrs[i].msr, page,
				     j ? SHARED : PRIVATE);
			EXPECT_FALSE(is_all(words, ~0ul));
		}
	}
}

/* KVM can't access the private half, and doesn't take the other for it. */
TEST_F(shared_bit, msr_pages_of_a_guest_memfd)
{
	struct test_vm *tvm = self->tvm;
	unsigned int i;
	int fd;

	if (variant->type != KVM_X86_SW_PROTECTED_VM)
		SKIP(return, "no guest_memfd");

	setup_pages(self);
	fd = vm_create_guest_memfd(self->vm, SIZE, 0);
	ASSERT_EQ(0, delete_slot(self->vm, ORDINARY_SLOT));
	ASSERT_EQ(0, set_slot(self->vm, ORDINARY_SLOT, KVM_MEM_GUEST_MEMFD, ORDINARY_GPA,
			      SIZE, self->sealed.shared + SIZE, fd, 0));

	for (i = 0; i < ARRAY_SIZE(page_msrs); i++) {
		const unsigned long page = NR_PAGES + PAGE + i;
		const uint32_t msr = page_msrs[i].msr;
		uint64_t *words = shared_page(&self->sealed, page);

		TH_LOG("MSR %x", msr);
		memset(words, 0xff, PAGE_SIZE);
		guest_command_set(tvm, GUEST_WRMSR, msr, gpa_of(page) | 1);
		expect_mismatch(_metadata, tvm, page, PRIVATE);
		vm_mem_set_private(self->vm, gpa_of(page), PAGE_SIZE);
		/* Other errors are looked for when it's used. */
		EXPECT_EQ(msr == HV_X64_MSR_REFERENCE_TSC ? 0 : GP_VECTOR,
			  guest_continue(tvm));

		guest_command_set(tvm, GUEST_WRMSR, msr, gpa_of(page) | self->bit | 1);
		expect_mismatch(_metadata, tvm, page, SHARED);
		EXPECT_TRUE(is_all(words, ~0ul));
		vm_mem_set_shared(self->vm, gpa_of(page), PAGE_SIZE);
		expect_wrmsr(_metadata, self, page_msrs[i].synic);
		EXPECT_FALSE(is_all(words, ~0ul));
	}
	close(fd);
}

/* Beyond the bit there's nothing. */
TEST_F(shared_bit, msr_pages_nowhere)
{
	unsigned int i;

	setup_pages(self);
	for (i = 0; i < ARRAY_SIZE(page_msrs); i++) {
		/* Other errors are looked for when it's used. */
		if (page_msrs[i].msr == HV_X64_MSR_REFERENCE_TSC)
			continue;
		EXPECT_EQ(GP_VECTOR, guest_run(self->tvm, GUEST_WRMSR, page_msrs[i].msr,
					       gpa_of(PAGE) | self->bit << 1 | 1));
		EXPECT_EQ(GP_VECTOR, guest_run(self->tvm, GUEST_WRMSR, page_msrs[i].msr,
					       MMIO_GPA | self->bit | 1));
	}
}

/* Userspace restores MSRs of pages that have been converted since. */
TEST_F(shared_bit, msr_pages_by_userspace)
{
	struct kvm_vcpu *vcpu = self->tvm->vcpu;
	unsigned int i, j;

	setup_pages(self);
	for (i = 0; i < ARRAY_SIZE(page_msrs); i++) {
		for (j = 0; j < 4; j++) {
			const unsigned long page = PAGE + 4 * i + j;
			uint64_t value = gpa_of(page) | (j & 1 ? self->bit : 0) | 1;
			uint64_t *shared = shared_page(&self->sealed, page);

			memset(shared, 0xff, PAGE_SIZE);
			ASSERT_EQ(0, convert(self, page, j & 2 ? PRIVATE : SHARED));
			vcpu_set_msr(vcpu, page_msrs[i].msr, value);
			EXPECT_EQ(value, vcpu_get_msr(vcpu, page_msrs[i].msr));
			guest_run(self->tvm, GUEST_CALL, (uint64_t)guest_take_irqs, 0);
			/* Nothing is written to the other half than asked for. */
			if (j != 1)
				EXPECT_TRUE(is_all(shared, ~0ul));
			if (j == 2)
				guest_read(self->tvm, gva_of(page, PRIVATE));
		}
	}
}

/* To be asked for MSRs that KVM refuses doesn't mean to be asked for these. */
TEST_F(shared_bit, msr_pages_and_user_space_msr)
{
	setup_pages(self);
	vm_enable_cap(self->vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_INVAL |
		      KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER);
	guest_command_set(self->tvm, GUEST_WRMSR, HV_X64_MSR_HYPERCALL, gpa_of(PAGE) | 1);
	expect_mismatch(_metadata, self->tvm, PAGE, PRIVATE);
	ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
	EXPECT_EQ(0, guest_continue(self->tvm));
}

TEST_F(shared_bit, msr_pages_emulated)
{
	struct test_vm *tvm = self->tvm;

	if (!force_emulation())
		SKIP(return, "no forced emulation");

	setup_pages(self);
	host_hv_call(self->vm, 0)->input = gpa_of(PAGE) | 1;
	guest_command_set(tvm, GUEST_CALL, (uint64_t)guest_wrmsr_emulated, HV_X64_MSR_HYPERCALL);
	expect_mismatch(_metadata, tvm, PAGE, PRIVATE);
	ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
	emulate_again(tvm->vcpu);
	EXPECT_EQ(0, guest_continue(tvm));
	EXPECT_EQ(gpa_of(PAGE) | 1, vcpu_get_msr(tvm->vcpu, HV_X64_MSR_HYPERCALL));
	EXPECT_NE(0, guest_read(tvm, gva_of(PAGE, PRIVATE)));
}

/* The TSC page is updated in the half that was named, or not at all. */
TEST_F(shared_bit, tsc_page)
{
	struct kvm_clock_data clock = { .clock = 1000000000ul };
	struct test_vm *tvm = self->tvm;
	uint32_t *shared = (void *)shared_page(&self->sealed, PAGE);
	unsigned int i;

	setup_pages(self);
	for (i = 0; i < 2; i++) {
		const uint64_t kind = i ? SHARED : PRIVATE;
		bool stable;

		memset(shared, 0xff, PAGE_SIZE);
		ASSERT_EQ(0, convert(self, PAGE, kind));
		guest_write(tvm, gva_of(PAGE, kind), ~0u);
		set_page_msr(_metadata, self, HV_X64_MSR_REFERENCE_TSC, PAGE, kind);
		stable = (uint32_t)guest_read(tvm, gva_of(PAGE, kind));
		EXPECT_NE(~0u, (uint32_t)guest_read(tvm, gva_of(PAGE, kind)));
		EXPECT_EQ(i, *shared != ~0u);
		if (!stable)
			continue;

		ASSERT_EQ(0, convert(self, PAGE, i ? PRIVATE : SHARED));
		memset(shared, 0xff, PAGE_SIZE);
		vm_ioctl(self->vm, KVM_SET_CLOCK, &clock);
		EXPECT_EQ(i ? 0 : ~0ul, guest_read(tvm, gva_of(PAGE, i ? PRIVATE : SHARED)));
		EXPECT_EQ(~0u, *shared);

		/* It's to be enabled again then. */
		ASSERT_EQ(0, convert(self, PAGE, kind));
		set_page_msr(_metadata, self, HV_X64_MSR_REFERENCE_TSC, PAGE, kind);
		EXPECT_NE(0, (uint32_t)guest_read(tvm, gva_of(PAGE, kind)));
	}
}

/*
 * Messages
 */
#define SINT			2
#define SINT_OFFSET		(SINT * 256)
#define STIMER_ENABLE		1
#define STIMER_PERIODIC		2
/* In units of 100 ns */
#define STIMER_PERIOD		100000
#define STIMER_SINT(n)		((uint64_t)(n) << 16)
#define MSG_TIMER_EXPIRED	0x80000010

static void expire_timer(struct __test_metadata *_metadata, FIXTURE_DATA(shared_bit) *self)
{
	struct test_vm *tvm = self->tvm;

	EXPECT_EQ(0, guest_run(tvm, GUEST_WRMSR, HV_X64_MSR_STIMER0_CONFIG, 0));
	EXPECT_EQ(0, guest_run(tvm, GUEST_WRMSR, HV_X64_MSR_STIMER0_COUNT, 1));
	EXPECT_EQ(0, guest_run(tvm, GUEST_WRMSR, HV_X64_MSR_STIMER0_CONFIG,
			       STIMER_ENABLE | STIMER_SINT(SINT)));
}

TEST_F(shared_bit, messages)
{
	uint32_t *shared = (void *)shared_page(&self->sealed, PAGE) + SINT_OFFSET;
	struct test_vm *tvm = self->tvm;
	unsigned int i;

	setup_pages(self);
	EXPECT_EQ(0, guest_run(tvm, GUEST_WRMSR, HV_X64_MSR_SINT0 + SINT, IRQ_VECTOR));
	for (i = 0; i < 2; i++) {
		const uint64_t kind = i ? SHARED : PRIVATE, other = i ? PRIVATE : SHARED;

		memset(shared_page(&self->sealed, PAGE), 0, PAGE_SIZE);
		ASSERT_EQ(0, convert(self, PAGE, kind));
		set_page_msr(_metadata, self, HV_X64_MSR_SIMP, PAGE, kind);
		EXPECT_EQ(0, guest_read(tvm, gva_of(PAGE, kind) + SINT_OFFSET));
		expire_timer(_metadata, self);
		EXPECT_EQ(MSG_TIMER_EXPIRED,
			  (uint32_t)guest_read(tvm, gva_of(PAGE, kind) + SINT_OFFSET));
		EXPECT_EQ(i ? MSG_TIMER_EXPIRED : 0, *shared);
		EXPECT_EQ(1, guest_run(tvm, GUEST_CALL, (uint64_t)guest_take_irqs, 0));

		/* None for the other half, nor is it asked for. */
		*shared = 0;
		ASSERT_EQ(0, convert(self, PAGE, other));
		expire_timer(_metadata, self);
		EXPECT_EQ(0, guest_read(tvm, gva_of(PAGE, other) + SINT_OFFSET));
		EXPECT_EQ(0, *shared);
		EXPECT_EQ(0, guest_run(tvm, GUEST_CALL, (uint64_t)guest_take_irqs, 0));

		/* As soon as it's back, the message is there. */
		ASSERT_EQ(0, convert(self, PAGE, kind));
		expire_timer(_metadata, self);
		EXPECT_EQ(MSG_TIMER_EXPIRED,
			  (uint32_t)guest_read(tvm, gva_of(PAGE, kind) + SINT_OFFSET));
		EXPECT_EQ(i ? MSG_TIMER_EXPIRED : 0, *shared);
		EXPECT_EQ(1, guest_run(tvm, GUEST_CALL, (uint64_t)guest_take_irqs, 0));
		EXPECT_EQ(0, guest_run(tvm, GUEST_WRMSR, HV_X64_MSR_STIMER0_CONFIG, 0));
	}
}

static __attribute__((used)) uint64_t do_guest_wait(uint64_t reference_time)
{
	uint64_t end = rdmsr(HV_X64_MSR_TIME_REF_COUNT) + reference_time;

	while (rdmsr(HV_X64_MSR_TIME_REF_COUNT) < end)
		;
	return 0;
}

GUEST_FUNCTION(guest_wait)

/* A periodic timer's messages that can't be delivered are lost, no others. */
TEST_F(shared_bit, periodic_messages)
{
	uint32_t *shared = (void *)shared_page(&self->sealed, PAGE) + SINT_OFFSET;
	struct test_vm *tvm = self->tvm;
	unsigned int i, j;

	setup_pages(self);
	EXPECT_EQ(0, guest_run(tvm, GUEST_WRMSR, HV_X64_MSR_SINT0 + SINT, IRQ_VECTOR));
	memset(shared_page(&self->sealed, PAGE), 0, PAGE_SIZE);
	set_page_msr(_metadata, self, HV_X64_MSR_SIMP, PAGE, SHARED);
	EXPECT_EQ(0, guest_run(tvm, GUEST_WRMSR, HV_X64_MSR_STIMER0_COUNT, STIMER_PERIOD));
	EXPECT_EQ(0, guest_run(tvm, GUEST_WRMSR, HV_X64_MSR_STIMER0_CONFIG,
			       STIMER_ENABLE | STIMER_PERIODIC | STIMER_SINT(SINT)));
	for (i = 0; i < 3; i++) {
		for (j = 0; j < 100 && !READ_ONCE(*shared); j++)
			guest_run(tvm, GUEST_CALL, (uint64_t)guest_wait, STIMER_PERIOD);
		EXPECT_EQ(MSG_TIMER_EXPIRED, *shared);
		EXPECT_NE(0, guest_run(tvm, GUEST_CALL, (uint64_t)guest_take_irqs, 0));

		ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
		*shared = 0;
		for (j = 0; j < 3; j++)
			guest_run(tvm, GUEST_CALL, (uint64_t)guest_wait, STIMER_PERIOD);
		EXPECT_EQ(0, *shared);
		guest_run(tvm, GUEST_CALL, (uint64_t)guest_take_irqs, 0);
		ASSERT_EQ(0, convert(self, PAGE, SHARED));
	}
}

/* Another one's waits until the guest says that it is done with one. */
TEST_F(shared_bit, message_retried)
{
	uint32_t *shared = (void *)shared_page(&self->sealed, PAGE) + SINT_OFFSET;
	struct test_vm *tvm = self->tvm;

	setup_pages(self);
	EXPECT_EQ(0, guest_run(tvm, GUEST_WRMSR, HV_X64_MSR_SINT0 + SINT, IRQ_VECTOR));
	memset(shared_page(&self->sealed, PAGE), 0, PAGE_SIZE);
	set_page_msr(_metadata, self, HV_X64_MSR_SIMP, PAGE, SHARED);
	ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
	expire_timer(_metadata, self);
	EXPECT_EQ(0, guest_run(tvm, GUEST_CALL, (uint64_t)guest_take_irqs, 0));
	ASSERT_EQ(0, convert(self, PAGE, SHARED));
	EXPECT_EQ(0, *shared);
	EXPECT_EQ(0, guest_run(tvm, GUEST_WRMSR, HV_X64_MSR_EOM, 0));
	EXPECT_EQ(1, guest_run(tvm, GUEST_CALL, (uint64_t)guest_take_irqs, 0));
	EXPECT_EQ(MSG_TIMER_EXPIRED, *shared);
}

/*
 * The other hypercalls' input. What is in the half that isn't meant would do.
 */
static void set_input(struct __test_metadata *_metadata, FIXTURE_DATA(shared_bit) *self,
		      unsigned long page, uint64_t kind, const uint64_t *words, unsigned int nr,
		      unsigned int offset)
{
	unsigned int i;

	ASSERT_EQ(0, convert(self, page, kind));
	for (i = 0; i < nr; i++)
		guest_write(self->tvm, gva_of(page, kind) + offset + i * 8, words[i]);
}

TEST_F(shared_bit, hypercall_input)
{
	const uint64_t one_bank = 1ul << HV_HYPERCALL_VARHEAD_OFFSET;
	struct kvm_hyperv_eventfd event = { .conn_id = 5 };
	const uint64_t event_input[] = { 5 };
	const uint64_t ipi[] = { IRQ_VECTOR, 1 };
	const uint64_t ipi_ex[] = { IRQ_VECTOR, 0, 1, 1 };
	const uint64_t flush[] = { 0, 0, 1, GPA };
	const uint64_t flush_ex[] = { 0, 0, 0, 1, 1, GPA };
	const struct {
		uint64_t control;
		const uint64_t *input;
		unsigned int nr;
		uint64_t result, error;
	} calls[] = {
		{ HVCALL_SIGNAL_EVENT, event_input, 1, 0, HV_STATUS_INVALID_ALIGNMENT },
		{ HVCALL_SEND_IPI, ipi, 2, 0, HV_STATUS_INVALID_HYPERCALL_INPUT },
		{ HVCALL_SEND_IPI_EX | one_bank, ipi_ex, 4, 0,
		  HV_STATUS_INVALID_HYPERCALL_INPUT },
		{ HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE, flush, 3, 0,
		  HV_STATUS_INVALID_HYPERCALL_INPUT },
		{ HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE_EX | one_bank, flush_ex, 5, 0,
		  HV_STATUS_INVALID_HYPERCALL_INPUT },
		{ HVCALL_FLUSH_VIRTUAL_ADDRESS_LIST | reps(1), flush, 4, reps(1),
		  HV_STATUS_INVALID_HYPERCALL_INPUT },
		{ HVCALL_FLUSH_VIRTUAL_ADDRESS_LIST_EX | one_bank | reps(1), flush_ex, 6,
		  reps(1), HV_STATUS_INVALID_HYPERCALL_INPUT },
	};
	struct test_vm *tvm = self->tvm;
	unsigned int i, j;
	uint64_t nr;

	setup_pages(self);
	event.fd = eventfd(0, EFD_NONBLOCK);
	ASSERT_LE(0, event.fd);
	vm_ioctl(self->vm, KVM_HYPERV_EVENTFD, &event);
	for (i = 0; i < ARRAY_SIZE(calls); i++) {
		for (j = 0; j < 2; j++) {
			const uint64_t kind = j ? SHARED : PRIVATE, other = j ? PRIVATE : SHARED;
			const uint64_t gpa = gpa_of(PAGE) | (j ? self->bit : 0);
			const bool is_ipi = calls[i].nr && calls[i].input[0] == IRQ_VECTOR;

			memcpy(shared_page(&self->sealed, PAGE), calls[i].input, calls[i].nr * 8);
			set_input(_metadata, self, PAGE, other, calls[i].input, calls[i].nr, 0);
			EXPECT_EQ(calls[i].error, hv_call(tvm, calls[i].control, gpa)) {
				TH_LOG("call %u", i);
			}
			EXPECT_EQ(0, guest_run(tvm, GUEST_CALL, (uint64_t)guest_take_irqs, 0));
			EXPECT_REFUSED(EAGAIN, read(event.fd, &nr, 8));

			set_input(_metadata, self, PAGE, kind, calls[i].input, calls[i].nr, 0);
			if (!j)
				memset(shared_page(&self->sealed, PAGE), 0xff, PAGE_SIZE);
			EXPECT_EQ(calls[i].result, hv_call(tvm, calls[i].control, gpa)) {
				TH_LOG("call %u", i);
			}
			EXPECT_EQ(is_ipi, guest_run(tvm, GUEST_CALL, (uint64_t)guest_take_irqs, 0));
			if (!i) {
				EXPECT_EQ(8, read(event.fd, &nr, 8));
				EXPECT_EQ(1, nr);
			}
		}
	}

	/* Input that goes on in the next page, which may be of the other kind. */
	for (j = 0; j < 4; j++) {
		const uint64_t kind = j & 1 ? SHARED : PRIVATE, next = j & 2 ? SHARED : PRIVATE;
		const uint64_t gpa = (gpa_of(PAGE + 1) - 24) | (j & 1 ? self->bit : 0);

		set_input(_metadata, self, PAGE, kind, ipi_ex, 3, PAGE_SIZE - 24);
		set_input(_metadata, self, PAGE + 1, next, ipi_ex + 3, 1, 0);
		EXPECT_EQ(kind == next ? 0 : HV_STATUS_INVALID_HYPERCALL_INPUT,
			  hv_call(tvm, HVCALL_SEND_IPI_EX | one_bank, gpa));
		EXPECT_EQ(kind == next,
			  guest_run(tvm, GUEST_CALL, (uint64_t)guest_take_irqs, 0));
	}
	close(event.fd);
}

TEST_HARNESS_MAIN
