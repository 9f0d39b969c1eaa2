// SPDX-License-Identifier: GPL-2.0-only
/*
 * Nested VMX in a guest of which all memory is private: what KVM reads and writes
 * for it can be converted at any time, what it would have to keep mapped is refused.
 */
#include "sealed_memfd_huge.h"
#include "sealed_memfd_private.h"
#include "vmx.h"

/* L2 waits here to be told what to do. */
#define L2_PORT		0x0d

/* In the test memory, so that we can convert them */
#define VMCS_PAGE	PAGE
#define VMXON_PAGE	(PAGE + 1)
#define MSR_PAGE	(PAGE + 2)
#define APIC_PAGE	(PAGE + 3)
#define PML_PAGE	(PAGE + 4)
#define IO_PAGE		(PAGE + 5)
#define NR_VMX_PAGES	7
#define DATA_PAGE	(PAGE + NR_VMX_PAGES)
#define EPT_PAGE	512
#define EPT_NR_PAGES	5
#define EPT_LEAF	(EPT_PAGE + 4)

#define EPT_RWX		0x7ul
#define EPT_WB		(6ul << 3)
#define EPT_LARGE	BIT_ULL(7)
#define EPT_ACCESSED	BIT_ULL(8)
#define EPT_DIRTY	BIT_ULL(9)
#define EPTP_WALK_4	(3ul << 3)
#define EPTP_AD		BIT_ULL(6)

#define PML_NR_ENTRIES	512

#define ENTRY_FAILED	(~0ul)

/*
 * L2
 */

/* Loads from, or stores to, the address it gets, until that is 0 and it ends. */
static void l2_guest_code(void)
{
	uint64_t addr = 0, value = 0, store = 0;

	for (;;) {
		asm volatile("out %%al, %[port]"
			     : "+a" (value), "+D" (addr), "+S" (store)
			     : [port] "i" (L2_PORT)
			     : "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13",
			       "r14", "r15", "memory");
		if (!addr)
			vmcall();
		else if (store)
			WRITE_ONCE(*(uint64_t *)addr, store);
		else
			value = READ_ONCE(*(uint64_t *)addr);
	}
}

/* KVM knows L1's wishes for the one beforehand, and looks for the other one's. */
static void l2_rdmsr_code(void)
{
	rdmsr(MSR_KERNEL_GS_BASE);
	vmcall();
	rdmsr(MSR_EFER);
	vmcall();
}

/* Writes a byte to the port it gets, until that is 0 and it ends. */
static void l2_out_code(void)
{
	uint64_t port = 0;

	for (;;) {
		asm volatile("out %%al, %[l2_port]"
			     : "+d" (port)
			     : [l2_port] "i" (L2_PORT)
			     : "rax", "rbx", "rcx", "rsi", "rdi", "r8", "r9", "r10", "r11",
			       "r12", "r13", "r14", "r15", "memory");
		if (port)
			asm volatile("out %%al, %%dx" : : "d" ((uint16_t)port), "a" (0));
		else
			vmcall();
	}
}

/*
 * L1
 */
static struct vmx_pages *guest_vmx;

static uint64_t guest_vmxon(uint64_t vmx, uint64_t unused1, uint64_t unused2)
{
	guest_vmx = (void *)vmx;
	return prepare_for_vmx_operation(guest_vmx);
}

static uint64_t guest_set_vmcs(uint64_t rip, uint64_t unused1, uint64_t unused2)
{
	static uint64_t stack[64];

	if (!load_vmcs(guest_vmx))
		return false;
	prepare_vmcs(guest_vmx, (void *)rip, &stack[62]);
	return true;
}

static uint64_t guest_vmclear(uint64_t unused1, uint64_t unused2, uint64_t unused3)
{
	return vmclear(guest_vmx->vmcs_gpa);
}

/* Runs L2 up to an exit, and skips the instruction that it is for. */
static uint64_t guest_enter(uint64_t resume, uint64_t unused1, uint64_t unused2)
{
	uint64_t reason;

	if (resume ? vmresume() : vmlaunch())
		return ENTRY_FAILED;
	reason = vmreadz(VM_EXIT_REASON);
	if (reason != EXIT_REASON_EPT_VIOLATION)
		vmwrite(GUEST_RIP, vmreadz(GUEST_RIP) + vmreadz(VM_EXIT_INSTRUCTION_LEN));
	return reason;
}

static uint64_t guest_set_controls(uint64_t primary, uint64_t secondary, uint64_t unused)
{
	if (secondary)
		primary |= CPU_BASED_ACTIVATE_SECONDARY_CONTROLS;
	vmwrite(CPU_BASED_VM_EXEC_CONTROL, vmreadz(CPU_BASED_VM_EXEC_CONTROL) | primary);
	vmwrite(SECONDARY_VM_EXEC_CONTROL, secondary);
	return 0;
}

static uint64_t guest_intercept_msrs(uint64_t on, uint64_t unused1, uint64_t unused2)
{
	memset(guest_vmx->msr, on ? 0xff : 0, PAGE_SIZE);
	return guest_set_controls(CPU_BASED_USE_MSR_BITMAPS, 0, 0);
}

static uint64_t guest_intercept_io(uint64_t bitmaps, uint64_t port, uint64_t on)
{
	uint8_t *byte = (uint8_t *)bitmaps + port / 8;

	*byte = on ? *byte | BIT(port % 8) : *byte & ~BIT(port % 8);
	vmwrite(IO_BITMAP_A, bitmaps);
	vmwrite(IO_BITMAP_B, bitmaps + PAGE_SIZE);
	return guest_set_controls(CPU_BASED_USE_IO_BITMAPS, 0, 0);
}

/* The first 2 MiB of the test memory have a page table of their own. */
static uint64_t guest_set_ept(uint64_t ept, uint64_t pml, uint64_t unused)
{
	uint64_t (*table)[512] = (void *)ept, i;

	table[0][0] = (ept + PAGE_SIZE) | EPT_RWX;
	table[1][0] = (ept + 2 * PAGE_SIZE) | EPT_RWX;
	table[1][GPA >> 30] = (ept + 3 * PAGE_SIZE) | EPT_RWX;
	for (i = 0; i < 512; i++) {
		table[2][i] = i << 21 | EPT_RWX | EPT_WB | EPT_LARGE;
		table[3][i] = (GPA + (i << 21)) | EPT_RWX | EPT_WB | EPT_LARGE;
		table[4][i] = (GPA + (i << 12)) | EPT_RWX | EPT_WB;
	}
	table[3][0] = (ept + 4 * PAGE_SIZE) | EPT_RWX;
	vmwrite(EPT_POINTER, ept | X86_MEMTYPE_WB | EPTP_WALK_4 | EPTP_AD);
	vmwrite(PML_ADDRESS, pml);
	vmwrite(GUEST_PML_INDEX, PML_NR_ENTRIES - 1);
	return guest_set_controls(0, SECONDARY_EXEC_ENABLE_EPT |
				  (pml ? SECONDARY_EXEC_ENABLE_PML : 0), 0);
}

/* How often is that in the log, which is filled from its end? */
static uint64_t guest_count_logged(uint64_t pml, uint64_t gpa, uint64_t unused)
{
	uint16_t index = vmreadz(GUEST_PML_INDEX);
	uint64_t n = 0;

	while (++index < PML_NR_ENTRIES)
		n += ((uint64_t *)pml)[index] == gpa;
	return n;
}

static uint64_t guest_set_apic_pages(uint64_t gpa, uint64_t primary, uint64_t secondary)
{
	vmwrite(VIRTUAL_APIC_PAGE_ADDR, gpa);
	vmwrite(APIC_ACCESS_ADDR, gpa);
	return guest_set_controls(primary, secondary, 0);
}

/*
 * L0's userspace
 */

/* L2 is at its port: have it access an address, and return to its port. */
static uint64_t access_l2(struct kvm_vcpu *vcpu, uint64_t addr, uint64_t value)
{
	struct kvm_regs regs;

	assert_io(vcpu, L2_PORT);
	vcpu_regs_get(vcpu, &regs);
	regs.rdi = addr;
	regs.rsi = value;
	vcpu_regs_set(vcpu, &regs);
	vcpu_run(vcpu);
	assert_io(vcpu, L2_PORT);
	vcpu_regs_get(vcpu, &regs);
	return regs.rax;
}

static uint64_t load_l2(struct kvm_vcpu *vcpu, uint64_t addr)
{
	return access_l2(vcpu, addr, 0);
}

/* Have L2 write to a port, or end. */
static void out_l2(struct kvm_vcpu *vcpu, uint16_t port)
{
	struct kvm_regs regs;

	assert_io(vcpu, L2_PORT);
	vcpu_regs_get(vcpu, &regs);
	regs.rdx = port;
	regs.rdi = 0;
	vcpu_regs_set(vcpu, &regs);
	vcpu_run(vcpu);
}

/* Let L2 end, and return what L1 makes of it. */
static uint64_t end_l2(struct kvm_vcpu *vcpu)
{
	out_l2(vcpu, 0);
	return finish_guest(vcpu);
}

static void set_vmcs(FIXTURE_DATA(sealed) *self, void *l2)
{
	TEST_ASSERT(call_guest(self->tvm.vcpu, guest_set_vmcs, (uint64_t)l2, 0, 0),
		    "No VMCS in L1");
}

static void setup_nested(FIXTURE_DATA(sealed) *self, void *l2)
{
	struct vmx_pages *vmx;
	vm_vaddr_t vmx_gva;

	vmx = vcpu_alloc_vmx(self->vm, &vmx_gva);
	vmx->vmcs_gpa = gpa_of(VMCS_PAGE);
	vmx->vmxon_gpa = gpa_of(VMXON_PAGE);
	vmx->msr_gpa = gpa_of(MSR_PAGE);
	vmx->vmcs = (void *)vmx->vmcs_gpa;
	vmx->vmxon = (void *)vmx->vmxon_gpa;
	vmx->msr = (void *)vmx->msr_gpa;
	make_private(self);
	new_private(self, PAGE, NR_VMX_PAGES);
	TEST_ASSERT(call_guest(self->tvm.vcpu, guest_vmxon, vmx_gva, 0, 0), "No VMX in L1");
	set_vmcs(self, l2);
}

static void setup_ept(FIXTURE_DATA(sealed) *self, uint64_t pml)
{
	new_private(self, EPT_PAGE, EPT_NR_PAGES);
	call_guest(self->tvm.vcpu, guest_set_ept, gpa_of(EPT_PAGE), pml, 0);
}

static bool are_poison(FIXTURE_DATA(sealed) *self, unsigned long page, unsigned long nr)
{
	while (nr--) {
		if (!is_poison(shared_page(self, page + nr)))
			return false;
	}
	return true;
}

/* What L2 uses is converted like everything else. */
static void test_memory(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	const uint64_t gpa = gpa_of(DATA_PAGE);
	int i;

	new_private(self, DATA_PAGE, 1);
	store(vcpu, gpa, PRIVATE_VALUE(0));
	for (i = 0; i < 5; i++) {
		start_guest(vcpu, guest_enter, i, 0, 0);
		EXPECT_EQ(PRIVATE_VALUE(i), load_l2(vcpu, gpa));
		EXPECT_EQ(SHARED_VALUE(DATA_PAGE + 1), load_l2(vcpu, gpa_of(DATA_PAGE + 1)));

		*shared_page(self, DATA_PAGE) = SHARED_VALUE(i);
		ASSERT_EQ(0, to_shared(self, DATA_PAGE, 1));
		EXPECT_EQ(SHARED_VALUE(i), load_l2(vcpu, gpa));
		ASSERT_EQ(0, to_private(self, DATA_PAGE, 1));
		EXPECT_EQ(0, load_l2(vcpu, gpa));
		access_l2(vcpu, gpa, PRIVATE_VALUE(i + 1));
		EXPECT_EQ(EXIT_REASON_VMCALL, end_l2(vcpu));
		EXPECT_EQ(PRIVATE_VALUE(i + 1), load(vcpu, gpa));
		EXPECT_EQ(SHARED_VALUE(i), *shared_page(self, DATA_PAGE));
	}
	EXPECT_TRUE(are_poison(self, PAGE, NR_VMX_PAGES));
}

TEST_F(sealed, memory)
{
	setup_nested(self, l2_guest_code);
	test_memory(_metadata, self);
}

TEST_F(sealed, memory_with_ept)
{
	if (!kvm_cpu_has_ept())
		SKIP(return, "no EPT");

	setup_nested(self, l2_guest_code);
	setup_ept(self, 0);
	test_memory(_metadata, self);
	/* L0 walked it and left a trace. */
	EXPECT_EQ(gpa_of(DATA_PAGE) | EPT_RWX | EPT_WB | EPT_ACCESSED | EPT_DIRTY,
		  load(self->tvm.vcpu, gpa_of(EPT_LEAF) + DATA_PAGE * 8));
	EXPECT_TRUE(are_poison(self, EPT_PAGE, EPT_NR_PAGES));
}

/* What is a huge page to L1's hypervisor and to L0 is one to L2, too. */
TEST_F(sealed, huge_page_with_ept)
{
	const unsigned long page = NR_PAGES + PAGE, neighbour = NR_PAGES + 100;
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	uint64_t in_files, mapped;
	char enabled[32];

	if (!kvm_cpu_has_ept())
		SKIP(return, "no EPT");

	setup_nested(self, l2_guest_code);
	setup_ept(self, 0);
	ASSERT_EQ(0, set_slot(self->vm, SLOT + 1, KVM_MEM_GUEST_MEMFD, gpa_of(NR_PAGES), SZ_2M,
			      shared_page(self, NR_PAGES), self->fd, SIZE));
	*shared_page(self, neighbour) = SHARED_VALUE(0);
	in_files = huge_pages_in_files();
	if (!huge_pages_enable(enabled, sizeof(enabled)))
		SKIP(return, "shmem has no huge pages");
	EXPECT_EQ(0, to_private(self, NR_PAGES, PER_HUGE));
	huge_pages_restore(enabled);
	if (huge_pages_in_files() != in_files + 1)
		SKIP(return, "no huge page to be had");

	start_guest(vcpu, guest_enter, 0, 0, 0);
	load_l2(vcpu, gpa_of(DATA_PAGE));
	mapped = vm_get_stat(self->vm, "pages_2m");
	EXPECT_EQ(0, load_l2(vcpu, gpa_of(neighbour)));
	EXPECT_EQ(mapped + 1, vm_get_stat(self->vm, "pages_2m"));
	access_l2(vcpu, gpa_of(page), PRIVATE_VALUE(0));
	EXPECT_EQ(mapped + 1, vm_get_stat(self->vm, "pages_2m"));

	ASSERT_EQ(0, to_shared(self, neighbour, 1));
	EXPECT_EQ(mapped, vm_get_stat(self->vm, "pages_2m"));
	EXPECT_EQ(SHARED_VALUE(0), load_l2(vcpu, gpa_of(neighbour)));
	EXPECT_EQ(PRIVATE_VALUE(0), load_l2(vcpu, gpa_of(page)));
	EXPECT_EQ(mapped, vm_get_stat(self->vm, "pages_2m"));
	EXPECT_EQ(EXIT_REASON_VMCALL, end_l2(vcpu));
}

/* L0 must not go on with what the page table was before. */
TEST_F(sealed, convert_ept)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	uint64_t *leaf;
	int i;

	if (!kvm_cpu_has_ept())
		SKIP(return, "no EPT");

	setup_nested(self, l2_guest_code);
	setup_ept(self, 0);
	leaf = shared_page(self, EPT_LEAF);
	for (i = 0; i < 512; i++)
		leaf[i] = gpa_of(i + 1) | EPT_RWX | EPT_WB;

	start_guest(vcpu, guest_enter, 0, 0, 0);
	EXPECT_EQ(SHARED_VALUE(100), load_l2(vcpu, gpa_of(100)));
	ASSERT_EQ(0, to_shared(self, EPT_LEAF, 1));
	EXPECT_EQ(SHARED_VALUE(101), load_l2(vcpu, gpa_of(100)));

	/* There's nothing in the table now. */
	ASSERT_EQ(0, to_private(self, EPT_LEAF, 1));
	/* L2's address is where that of others is the function. */
	start_guest(vcpu, (guest_fn)gpa_of(100), 0, 0, 0);
	EXPECT_EQ(EXIT_REASON_EPT_VIOLATION, finish_guest(vcpu));
}

/* L0 logs for L1, too. */
TEST_F(sealed, page_modification_log)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	const uint64_t pml = gpa_of(PML_PAGE);
	int i;

	if (!kvm_cpu_has_ept() ||
	    !(kvm_get_feature_msr(MSR_IA32_VMX_PROCBASED_CTLS2) >> 32 &
	      SECONDARY_EXEC_ENABLE_PML))
		SKIP(return, "no PML");

	setup_nested(self, l2_guest_code);
	setup_ept(self, pml);
	start_guest(vcpu, guest_enter, 0, 0, 0);
	for (i = 0; i < 3; i++)
		access_l2(vcpu, gpa_of(DATA_PAGE + i) + 8, PRIVATE_VALUE(i));
	load_l2(vcpu, gpa_of(DATA_PAGE + i));
	EXPECT_EQ(EXIT_REASON_VMCALL, end_l2(vcpu));
	for (i = 0; i < 4; i++)
		EXPECT_EQ(i < 3, call_guest(vcpu, guest_count_logged, pml,
					    gpa_of(DATA_PAGE + i), 0));
	EXPECT_TRUE(are_poison(self, PAGE, NR_VMX_PAGES));
}

TEST_F(sealed, msr_bitmap)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	int i, n;

	setup_nested(self, l2_rdmsr_code);
	for (i = 0; i < 4; i++) {
		set_vmcs(self, l2_rdmsr_code);
		call_guest(vcpu, guest_intercept_msrs, i & 1, 0, 0);
		for (n = 0; n < 2; n++) {
			if (i & 1) {
				EXPECT_EQ(EXIT_REASON_MSR_READ,
					  call_guest(vcpu, guest_enter, n, 0, 0));
			}
			EXPECT_EQ(EXIT_REASON_VMCALL,
				  call_guest(vcpu, guest_enter, n || i & 1, 0, 0));
		}
	}
	EXPECT_TRUE(are_poison(self, PAGE, NR_VMX_PAGES));
}

TEST_F(sealed, io_bitmaps)
{
	static const uint16_t ports[] = { STRING_PORT, 0x1234, 0x7fff, 0x8000, 0xfff0 };
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	unsigned int i, on;

	setup_nested(self, l2_out_code);
	for (i = 0; i < 2 * ARRAY_SIZE(ports); i++) {
		on = !(i & 1);
		set_vmcs(self, l2_out_code);
		call_guest(vcpu, guest_intercept_io, gpa_of(IO_PAGE), ports[i / 2], on);
		start_guest(vcpu, guest_enter, 0, 0, 0);
		out_l2(vcpu, ports[i / 2]);
		if (on) {
			EXPECT_EQ(EXIT_REASON_IO_INSTRUCTION, finish_guest(vcpu));
			continue;
		}
		assert_io(vcpu, ports[i / 2]);
		vcpu_run(vcpu);
		EXPECT_EQ(EXIT_REASON_VMCALL, end_l2(vcpu));
	}
	EXPECT_TRUE(are_poison(self, PAGE, NR_VMX_PAGES));
}

/* KVM has a copy, which it writes to the half in force when L1 asks for it. */
TEST_F(sealed, convert_vmcs)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	const uint64_t gpa = gpa_of(VMCS_PAGE);
	uint64_t first_word;

	setup_nested(self, l2_guest_code);
	start_guest(vcpu, guest_enter, 0, 0, 0);
	ASSERT_EQ(0, to_shared(self, VMCS_PAGE, 1));
	EXPECT_EQ(SHARED_VALUE(0), load_l2(vcpu, gpa_of(0)));
	EXPECT_EQ(EXIT_REASON_VMCALL, end_l2(vcpu));
	EXPECT_TRUE(is_poison(shared_page(self, VMCS_PAGE)));
	EXPECT_EQ(0, call_guest(vcpu, guest_vmclear, 0, 0, 0));
	EXPECT_FALSE(is_poison(shared_page(self, VMCS_PAGE)));
	first_word = *shared_page(self, VMCS_PAGE);

	set_vmcs(self, l2_guest_code);
	start_guest(vcpu, guest_enter, 0, 0, 0);
	EXPECT_EQ(SHARED_VALUE(0), load_l2(vcpu, gpa_of(0)));
	new_private(self, VMCS_PAGE, 1);
	EXPECT_EQ(EXIT_REASON_VMCALL, end_l2(vcpu));
	EXPECT_EQ(0, load(vcpu, gpa));
	EXPECT_EQ(0, call_guest(vcpu, guest_vmclear, 0, 0, 0));
	EXPECT_EQ(first_word, load(vcpu, gpa));
	EXPECT_TRUE(are_poison(self, PAGE, NR_VMX_PAGES));
}

/* The copy isn't written before, nor is anything else. */
TEST_F(sealed, dirty_log)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	int i;

	setup_nested(self, l2_out_code);
	ASSERT_EQ(0, set_logging(self, true));
	for (i = 0; i < 2; i++) {
		set_vmcs(self, l2_out_code);
		call_guest(vcpu, guest_intercept_io, gpa_of(IO_PAGE), STRING_PORT, true);
		call_guest(vcpu, guest_intercept_msrs, true, 0, 0);
		get_dirty(self);
		start_guest(vcpu, guest_enter, 0, 0, 0);
		out_l2(vcpu, STRING_PORT);
		EXPECT_EQ(EXIT_REASON_IO_INSTRUCTION, finish_guest(vcpu));
		EXPECT_EQ(0, get_dirty(self));
		EXPECT_EQ(0, call_guest(vcpu, guest_vmclear, 0, 0, 0));
		EXPECT_EQ(BIT(VMCS_PAGE), get_dirty(self));
		EXPECT_EQ(!i, are_poison(self, PAGE, NR_VMX_PAGES));

		/* Once more with a shared VMCS */
		ASSERT_EQ(0, to_shared(self, VMCS_PAGE, 1));
	}
}

/* KVM would have to let the CPU have it, whatever it becomes. */
TEST_F(sealed, virtual_apic_page)
{
	const uint64_t unused = CPU_BASED_CR8_LOAD_EXITING | CPU_BASED_CR8_STORE_EXITING;
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	int i;

	if (!(kvm_get_feature_msr(MSR_IA32_VMX_TRUE_PROCBASED_CTLS) >> 32 &
	      CPU_BASED_TPR_SHADOW))
		SKIP(return, "no TPR shadow");

	setup_nested(self, l2_guest_code);
	for (i = 0; i < 2; i++) {
		set_vmcs(self, l2_guest_code);
		call_guest(vcpu, guest_set_apic_pages, gpa_of(APIC_PAGE),
			   CPU_BASED_TPR_SHADOW, 0);
		EXPECT_EQ(ENTRY_FAILED, call_guest(vcpu, guest_enter, 0, 0, 0));

		set_vmcs(self, l2_guest_code);
		call_guest(vcpu, guest_set_apic_pages, gpa_of(APIC_PAGE),
			   CPU_BASED_TPR_SHADOW | unused, 0);
		start_guest(vcpu, guest_enter, 0, 0, 0);
		EXPECT_EQ(EXIT_REASON_VMCALL, end_l2(vcpu));

		/* It may become private at any time. */
		ASSERT_EQ(0, to_shared(self, APIC_PAGE, 1));
	}
}

TEST_F(sealed, apic_access_page)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;

	if (!(kvm_get_feature_msr(MSR_IA32_VMX_PROCBASED_CTLS2) >> 32 &
	      SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES))
		SKIP(return, "no APIC-access page");

	setup_nested(self, l2_guest_code);
	call_guest(vcpu, guest_set_apic_pages, gpa_of(APIC_PAGE), 0,
		   SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES);
	start_guest(vcpu, guest_enter, 0, 0, 0);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_INTERNAL_ERROR);
	EXPECT_TRUE(are_poison(self, PAGE, NR_VMX_PAGES));
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_SEALED_MEMFD));
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_VMX));

	return test_harness_run(argc, argv);
}
