// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM's own accesses to private memory: a guest of which all memory, its code,
 * page tables and stacks included, is in guest-sealed memfds, and has no shared
 * half to fall back to.
 */
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>

#include "apic.h"
#include "hyperv.h"
#include "sealed_memfd_private.h"
#include "sealed_memfd_trace.h"
#include "svm_util.h"

/* For more of what a guest does meanwhile */
#define L2_PORT		0x0d
#define SMM_PORT	0x0c

#define SMRAM_SLOT	13
#define SMRAM_SMM_SLOT	(SMRAM_SLOT | 1 << 16)
#define SMRAM_GPA	(768ul << 20)
#define SMRAM_NR_PAGES	16
#define SMRAM_SIZE	(SMRAM_NR_PAGES * PAGE_SIZE)

/* Left alone by the library */
#define REAL_MODE_CODE	0x7000
#define REAL_MODE_DATA	0x7800

#define IRQ_VECTOR	0x40

#define EXPECT_IN_RANGE(_min, _max, _value)				\
do {									\
	uint64_t _seen = (_value);					\
									\
	EXPECT_LE(_min, _seen);						\
	EXPECT_GE(_max, _seen);						\
} while (0)

/*
 * The guest
 */
static uint64_t guest_add(uint64_t a, uint64_t b, uint64_t c)
{
	return a + b + c;
}

static uint64_t guest_store_u16(uint64_t addr, uint64_t value, uint64_t unused)
{
	WRITE_ONCE(*(uint16_t *)addr, value);
	return 0;
}

static uint64_t guest_outs(uint64_t from, uint64_t count, uint64_t unused)
{
	asm volatile("rep outsb" : "+S" (from), "+c" (count) : "d" (STRING_PORT) : "memory");
	return 0;
}

static uint64_t guest_call(uint64_t code, uint64_t arg, uint64_t unused)
{
	return ((guest_fn)code)(arg, 0, 0);
}

static uint64_t guest_add_emulated(uint64_t addr, uint64_t value, uint64_t len)
{
	switch (len) {
	case 1:
		asm volatile(KVM_FEP "lock addb %b0, (%1)" : : "q" (value), "r" (addr) : "memory");
		break;
	case 2:
		asm volatile(KVM_FEP "lock addw %w0, (%1)" : : "r" (value), "r" (addr) : "memory");
		break;
	case 4:
		asm volatile(KVM_FEP "lock addl %k0, (%1)" : : "r" (value), "r" (addr) : "memory");
		break;
	case 8:
		asm volatile(KVM_FEP "lock addq %0, (%1)" : : "r" (value), "r" (addr) : "memory");
		break;
	}
	return 0;
}

/* Writes to a page, until its first word tells to stop. */
static uint64_t guest_store_emulated_loop(uint64_t addr, uint64_t stop, uint64_t unused)
{
	uint64_t i;

	for (i = 1; !READ_ONCE(*(uint64_t *)stop); i++) {
		guest_store_emulated(addr, i, 0);
		guest_add_emulated(addr + 8, 1, 8);
	}
	return i;
}

/* Writes without ever leaving the guest, and counts how often. */
static uint64_t guest_store_loop(uint64_t addr, uint64_t count, uint64_t stop)
{
	uint64_t i;

	for (i = 1; !READ_ONCE(*(uint64_t *)stop); i++) {
		WRITE_ONCE(*(uint64_t *)addr, i);
		WRITE_ONCE(*(uint64_t *)count, i);
	}
	return i;
}

/* Reads a word and returns the first one that isn't right. */
static uint64_t guest_load_emulated_loop(uint64_t addr, uint64_t bad, uint64_t stop)
{
	while (!READ_ONCE(*(uint64_t *)stop)) {
		if (guest_load_emulated(addr, 0, 0) == bad)
			return bad;
	}
	return 0;
}

TEST_F(sealed, all_private)
{
	struct kvm_vcpu *vcpu = setup_private(self);
	struct kvm_translation tr = { .linear_address = (uint64_t)guest_add & PAGE_MASK };

	EXPECT_EQ(6, call_guest(vcpu, guest_add, 1, 2, 3));
	store(vcpu, gpa_of(PAGE), 1);
	EXPECT_EQ(1, load(vcpu, gpa_of(PAGE)));
	/* There are an IDT and a stack. */
	EXPECT_EQ(GP_VECTOR, call_guest(vcpu, guest_wrmsr, 0xdeadbeef, 0, 0));
	/* KVM finds its way through the page tables. */
	vcpu_ioctl(vcpu, KVM_TRANSLATE, &tr);
	EXPECT_TRUE(tr.valid);
	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));
}

/*
 * A page that takes a while to fault in: enough to convert it meanwhile.
 */
#define SLOW_VALUE	0x51035103ul

struct slow_page {
	FIXTURE_DATA(sealed) *self;
	unsigned long page;
	bool convert;
	/* Nor is there a shared half any more. */
	bool lost;
	int uffd;
	pthread_t thread;
	uint64_t content[PAGE_SIZE / 8] __aligned(PAGE_SIZE);
};

static void *slow_page_thread(void *data)
{
	struct slow_page *slow = data;
	struct uffdio_copy copy = { .src = (uint64_t)slow->content, .len = PAGE_SIZE };
	struct uffd_msg msg;

	TEST_ASSERT(read(slow->uffd, &msg, sizeof(msg)) == sizeof(msg), "No page fault");
	copy.dst = msg.arg.pagefault.address & PAGE_MASK;
	if (slow->convert)
		TEST_ASSERT(!to_private(slow->self, slow->page, 1), "Can't convert to private");
	if (slow->lost) {
		TEST_ASSERT(!mprotect((void *)copy.dst, PAGE_SIZE, PROT_NONE), "mprotect() failed");
		close(slow->uffd);
		slow->uffd = -1;
		return NULL;
	}
	TEST_ASSERT(!ioctl(slow->uffd, UFFDIO_COPY, &copy), "UFFDIO_COPY failed");
	return NULL;
}

static bool slow_page_begin(FIXTURE_DATA(sealed) *self, struct slow_page *slow)
{
	void *shared = shared_page(self, slow->page);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { .start = (uint64_t)shared, .len = PAGE_SIZE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	unsigned int i;

	slow->self = self;
	slow->uffd = syscall(__NR_userfaultfd, 0);
	if (slow->uffd < 0)
		return false;

	for (i = 0; i < PAGE_SIZE / 8; i++)
		slow->content[i] = SLOW_VALUE;
	TEST_ASSERT(!to_shared(self, slow->page, 1), "Can't convert to shared");
	TEST_ASSERT(!madvise(shared, PAGE_SIZE, MADV_DONTNEED), "madvise() failed");
	TEST_ASSERT(!ioctl(slow->uffd, UFFDIO_API, &api) &&
		    !ioctl(slow->uffd, UFFDIO_REGISTER, &reg), "Can't register with uffd");
	TEST_ASSERT(!pthread_create(&slow->thread, NULL, slow_page_thread, slow), "No thread");
	return true;
}

/* Is the shared half as it was faulted in? */
static bool slow_page_end(struct slow_page *slow)
{
	pthread_join(slow->thread, NULL);
	close(slow->uffd);
	return !memcmp(shared_page(slow->self, slow->page), slow->content, PAGE_SIZE);
}

/*
 * Emulation
 */
TEST_F(sealed, mmio)
{
	const uint64_t data = 0x1122334455667788ul;
	struct kvm_vcpu *vcpu = setup_private(self);
	struct kvm_run *run = vcpu->run;

	start_guest(vcpu, guest_load, MMIO_GPA + 16, 0, 0);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	EXPECT_EQ(MMIO_GPA + 16, run->mmio.phys_addr);
	EXPECT_FALSE(run->mmio.is_write);
	memcpy(run->mmio.data, &data, 8);
	vcpu_run(vcpu);
	EXPECT_EQ(data, finish_guest(vcpu));

	start_guest(vcpu, guest_store_u16, MMIO_GPA + 8, 0xcafe, 0);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	EXPECT_EQ(MMIO_GPA + 8, run->mmio.phys_addr);
	EXPECT_TRUE(run->mmio.is_write);
	EXPECT_EQ(2, run->mmio.len);
	EXPECT_EQ(0xcafe, *(uint16_t *)run->mmio.data);
	vcpu_run(vcpu);
	finish_guest(vcpu);
}

TEST_F(sealed, mmio_to_and_from_page)
{
	const uint64_t data = 0x1122334455667788ul;
	struct kvm_vcpu *vcpu = setup_private(self);
	struct kvm_run *run = vcpu->run;

	start_guest(vcpu, guest_movsq, gpa_of(PAGE), MMIO_GPA, 0);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	memcpy(run->mmio.data, &data, 8);
	vcpu_run(vcpu);
	finish_guest(vcpu);
	EXPECT_EQ(data, load(vcpu, gpa_of(PAGE)));

	start_guest(vcpu, guest_movsq, MMIO_GPA, gpa_of(PAGE), 0);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	EXPECT_TRUE(run->mmio.is_write);
	EXPECT_EQ(data, *(uint64_t *)run->mmio.data);
	vcpu_run(vcpu);
	finish_guest(vcpu);

	/* A page that was never touched */
	new_private(self, PAGE + 1, 1);
	start_guest(vcpu, guest_movsq, MMIO_GPA, gpa_of(PAGE + 1), 0);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	EXPECT_EQ(0, *(uint64_t *)run->mmio.data);
	vcpu_run(vcpu);
	finish_guest(vcpu);

	new_private(self, PAGE + 2, 1);
	start_guest(vcpu, guest_movsq, gpa_of(PAGE + 2) + 8, MMIO_GPA, 0);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	memcpy(run->mmio.data, &data, 8);
	vcpu_run(vcpu);
	finish_guest(vcpu);
	EXPECT_EQ(0, load(vcpu, gpa_of(PAGE + 2)));
	EXPECT_EQ(data, load(vcpu, gpa_of(PAGE + 2) + 8));
	EXPECT_EQ(0, load(vcpu, gpa_of(PAGE + 2) + 16));

	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));
	EXPECT_TRUE(is_poison(shared_page(self, PAGE + 1)));
	EXPECT_TRUE(is_poison(shared_page(self, PAGE + 2)));
}

/* Between the exit for the data and their being written, the page is converted. */
TEST_F(sealed, convert_during_mmio)
{
	const uint64_t data = 0x1122334455667788ul;
	struct kvm_vcpu *vcpu = setup_private(self);
	struct kvm_run *run = vcpu->run;

	start_guest(vcpu, guest_movsq, gpa_of(PAGE), MMIO_GPA, 0);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	memcpy(run->mmio.data, &data, 8);
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	vcpu_run(vcpu);
	finish_guest(vcpu);
	EXPECT_EQ(data, *shared_page(self, PAGE));

	poison_shared(self, PAGE);
	start_guest(vcpu, guest_movsq, gpa_of(PAGE), MMIO_GPA, 0);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	memcpy(run->mmio.data, &data, 8);
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	vcpu_run(vcpu);
	finish_guest(vcpu);
	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));
	EXPECT_EQ(data, load(vcpu, gpa_of(PAGE)));
}

TEST_F(sealed, string_io)
{
	struct kvm_vcpu *vcpu = setup_private(self);
	struct kvm_run *run = vcpu->run;
	unsigned int len = 0, i;
	char seen[64];

	/* Across the end of the page, into a shared one */
	start_guest(vcpu, guest_ins, gpa_of(PAGE + 1) - 32, 64, 0);
	while (is_io(vcpu, STRING_PORT)) {
		EXPECT_EQ(KVM_EXIT_IO_IN, run->io.direction);
		for (i = 0; i < run->io.count; i++)
			((char *)io_data(vcpu))[i] = 1 + len++;
		vcpu_run(vcpu);
	}
	finish_guest(vcpu);
	EXPECT_EQ(64, len);
	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));
	for (i = 0; i < 32; i++)
		EXPECT_EQ(33 + i, ((char *)shared_page(self, PAGE + 1))[i]);

	len = 0;
	start_guest(vcpu, guest_outs, gpa_of(PAGE + 1) - 32, 64, 0);
	while (is_io(vcpu, STRING_PORT)) {
		EXPECT_EQ(KVM_EXIT_IO_OUT, run->io.direction);
		ASSERT_GE(64, len + run->io.count);
		memcpy(seen + len, io_data(vcpu), run->io.count);
		len += run->io.count;
		vcpu_run(vcpu);
	}
	finish_guest(vcpu);
	EXPECT_EQ(64, len);
	for (i = 0; i < len; i++)
		EXPECT_EQ(1 + i, seen[i]);
}

TEST_F(sealed, code_across_pages)
{
	/* mov (%rdi),%rax; ret and mov %rax,(%rdi); ret */
	const uint64_t private_code = 0xc3078b48, shared_code = 0xc3078948;
	struct kvm_vcpu *vcpu = setup_private(self);
	const uint64_t data = 0x1122334455667788ul;
	struct kvm_run *run = vcpu->run;
	unsigned int i;

	/* All of it in the private page, the last bytes in a shared one, ... */
	for (i = 1; i < 7; i++) {
		uint64_t code = gpa_of(PAGE + 1) - i;

		*(uint64_t *)((char *)shared_page(self, PAGE + 1) - i) = shared_code;
		store(vcpu, code, private_code);
		start_guest(vcpu, guest_call, code, MMIO_GPA, 0);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
		EXPECT_FALSE(run->mmio.is_write);
		memcpy(run->mmio.data, &data, 8);
		vcpu_run(vcpu);
		EXPECT_EQ(data, finish_guest(vcpu));
	}
}

/* Page table entries as the library makes them */
#define PTE_FLAGS	(PTE_PRESENT_MASK | PTE_WRITABLE_MASK)
#define PTE_AD		(BIT_ULL(5) | BIT_ULL(6))

TEST_F(sealed, page_table)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	const uint64_t data = 0x1122334455667788ul;
	struct kvm_run *run = vcpu->run;
	int level = PG_LEVEL_2M;
	uint64_t *pde;

	virt_map(self->vm, PT_GVA, OTHER_GPA, 1);
	pde = __vm_get_page_table_entry(self->vm, PT_GVA, &level);
	*pde = (*pde & ~PHYSICAL_PAGE_MASK) | gpa_of(PAGE);
	setup_private(self);
	store(vcpu, gpa_of(PAGE), gpa_of(1) | PTE_FLAGS);
	store(vcpu, gpa_of(PAGE) + 8, gpa_of(2) | PTE_FLAGS);
	store(vcpu, gpa_of(PAGE) + 16, MMIO_GPA | PTE_FLAGS);

	/* The destination is where only KVM comes to. */
	start_guest(vcpu, guest_movsq, PT_GVA, MMIO_GPA, 0);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	memcpy(run->mmio.data, &data, 8);
	vcpu_run(vcpu);
	finish_guest(vcpu);
	EXPECT_EQ(data, *shared_page(self, 1));
	EXPECT_EQ(gpa_of(1) | PTE_FLAGS | PTE_AD, load(vcpu, gpa_of(PAGE)));

	/* Two that KVM comes to, and what it finds there is MMIO in one case. */
	start_guest(vcpu, guest_movsq, PT_GVA + PAGE_SIZE, PT_GVA + 2 * PAGE_SIZE, 0);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	EXPECT_EQ(MMIO_GPA, run->mmio.phys_addr);
	memcpy(run->mmio.data, &data, 8);
	vcpu_run(vcpu);
	finish_guest(vcpu);
	EXPECT_EQ(data, *shared_page(self, 2));
	EXPECT_EQ(gpa_of(2) | PTE_FLAGS | PTE_AD, load(vcpu, gpa_of(PAGE) + 8));

	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));
}

TEST_F(sealed, emulated_atomics)
{
	struct kvm_vcpu *vcpu;
	uint64_t gpa = gpa_of(PAGE), value;
	unsigned int len;

	if (!force_emulation())
		SKIP(return, "no forced emulation");
	vcpu = setup_private(self);

	EXPECT_EQ(0, call_guest(vcpu, guest_load_emulated, gpa, 0, 0));
	call_guest(vcpu, guest_store_emulated, gpa, 5, 0);
	EXPECT_EQ(5, call_guest(vcpu, guest_cmpxchg_emulated, gpa, 5, 6));
	EXPECT_EQ(6, load(vcpu, gpa));
	EXPECT_EQ(6, call_guest(vcpu, guest_cmpxchg_emulated, gpa, 5, 7));
	EXPECT_EQ(6, load(vcpu, gpa));
	EXPECT_EQ(6, call_guest(vcpu, guest_load_emulated, gpa, 0, 0));

	for (len = 1; len <= 8; len *= 2) {
		store(vcpu, gpa, ~0ul);
		call_guest(vcpu, guest_add_emulated, gpa, 2, len);
		value = len == 8 ? 1 : ~0ul << len * 8 | 1;
		EXPECT_EQ(value, load(vcpu, gpa));
	}

	/* The page was never touched, nor was the next one; neither is atomic. */
	new_private(self, PAGE + 1, 2);
	call_guest(vcpu, guest_add_emulated, gpa_of(PAGE + 2) - 4, 0x200000001, 8);
	EXPECT_EQ(1ul << 32, load(vcpu, gpa_of(PAGE + 2) - 8));
	EXPECT_EQ(2, load(vcpu, gpa_of(PAGE + 2)));

	/* The same for the shared half */
	*shared_page(self, 0) = 5;
	EXPECT_EQ(5, call_guest(vcpu, guest_cmpxchg_emulated, gpa_of(0), 5, 6));
	EXPECT_EQ(6, *shared_page(self, 0));
	EXPECT_EQ(6, call_guest(vcpu, guest_cmpxchg_emulated, gpa_of(0), 5, 7));
	ASSERT_EQ(0, madvise(shared_page(self, 1), PAGE_SIZE, MADV_DONTNEED));
	EXPECT_EQ(0, call_guest(vcpu, guest_cmpxchg_emulated, gpa_of(1), 0, 7));
	EXPECT_EQ(7, *shared_page(self, 1));
	ASSERT_EQ(0, madvise(shared_page(self, 1), PAGE_SIZE, MADV_DONTNEED));
	call_guest(vcpu, guest_store_emulated, gpa_of(1), 8, 0);
	EXPECT_EQ(8, *shared_page(self, 1));
	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));
	EXPECT_TRUE(is_poison(shared_page(self, PAGE + 1)));
	EXPECT_TRUE(is_poison(shared_page(self, PAGE + 2)));
}

TEST_F(sealed, real_mode)
{
	static const uint8_t code[] = {
		0xbf, REAL_MODE_DATA & 0xff, REAL_MODE_DATA >> 8,	/* mov $DATA, %di */
		0xb9, 4, 0,						/* mov $4, %cx */
		0xba, STRING_PORT, 0,					/* mov $PORT, %dx */
		0xf3, 0x6c,						/* rep insb */
		0xa1, REAL_MODE_DATA & 0xff, REAL_MODE_DATA >> 8,	/* mov DATA, %ax */
		0x40,							/* inc %ax */
		0xa3, (REAL_MODE_DATA + 4) & 0xff, REAL_MODE_DATA >> 8,	/* mov %ax, DATA + 4 */
		0xbe, REAL_MODE_DATA & 0xff, REAL_MODE_DATA >> 8,	/* mov $DATA, %si */
		0xb9, 6, 0,						/* mov $6, %cx */
		0xf3, 0x6e,						/* rep outsb */
		0xe6, L2_PORT,						/* out %al, $PORT */
	};
	static const uint8_t in[4] = { 1, 2, 3, 4 }, out[6] = { 1, 2, 3, 4, 2, 2 };
	struct kvm_segment segment = {
		.limit = 0xffff, .type = 3, .present = 1, .s = 1,
	};
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	struct kvm_regs regs = { .rip = REAL_MODE_CODE, .rflags = 2 };
	struct kvm_run *run = vcpu->run;
	struct kvm_sregs sregs;
	unsigned int len;

	vm_phy_page_alloc(self->vm, REAL_MODE_CODE, 0);
	memcpy(addr_gpa2hva(self->vm, REAL_MODE_CODE), code, sizeof(code));
	setup_private(self);
	vcpu_run_complete_io(vcpu);

	vcpu_sregs_get(vcpu, &sregs);
	sregs.cr0 = 0x10;
	sregs.cr4 = 0;
	sregs.efer = 0;
	sregs.ds = segment;
	sregs.es = segment;
	sregs.fs = segment;
	sregs.gs = segment;
	sregs.ss = segment;
	segment.type = 11;
	sregs.cs = segment;
	vcpu_sregs_set(vcpu, &sregs);
	vcpu_regs_set(vcpu, &regs);

	vcpu_run(vcpu);
	for (len = 0; is_io(vcpu, STRING_PORT) && run->io.direction == KVM_EXIT_IO_IN; ) {
		ASSERT_GE(sizeof(in), len + run->io.count);
		memcpy(io_data(vcpu), in + len, run->io.count);
		len += run->io.count;
		vcpu_run(vcpu);
	}
	EXPECT_EQ(sizeof(in), len);
	for (len = 0; is_io(vcpu, STRING_PORT) && run->io.direction == KVM_EXIT_IO_OUT; ) {
		ASSERT_GE(sizeof(out), len + run->io.count);
		EXPECT_EQ(0, memcmp(out + len, io_data(vcpu), run->io.count));
		len += run->io.count;
		vcpu_run(vcpu);
	}
	EXPECT_EQ(sizeof(out), len);
	assert_io(vcpu, L2_PORT);
}

/*
 * Paravirtualization
 */
/* The clock is kept in the private page, and nowhere else. */
static void expect_private_clock(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self)
{
	struct pvclock_vcpu_time_info clock;

	touch_clock(&self->tvm);
	get_private(self, gpa_of(PAGE) + 64, &clock, sizeof(clock));
	EXPECT_TRUE(clock_is_valid(&clock));
	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));
}

TEST_F(sealed, pv_clock)
{
	struct kvm_vcpu *vcpu = setup_private(self);
	struct pvclock_vcpu_time_info clock, *shared = (void *)shared_page(self, PAGE) + 64;
	struct pvclock_wall_clock wall;
	uint32_t version;

	enable_msr(_metadata, vcpu, MSR_KVM_SYSTEM_TIME_NEW, gpa_of(PAGE) + 64 + 1);
	enable_msr(_metadata, vcpu, MSR_KVM_WALL_CLOCK_NEW, gpa_of(PAGE) + 256);
	touch_clock(&self->tvm);
	get_private(self, gpa_of(PAGE) + 64, &clock, sizeof(clock));
	EXPECT_TRUE(clock_is_valid(&clock));
	version = clock.version;
	touch_clock(&self->tvm);
	get_private(self, gpa_of(PAGE) + 64, &clock, sizeof(clock));
	EXPECT_TRUE(clock_is_valid(&clock));
	EXPECT_NE(version, clock.version);
	get_private(self, gpa_of(PAGE) + 256, &wall, sizeof(wall));
	EXPECT_NE(0, wall.version);
	EXPECT_EQ(0, wall.version & 1);
	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));

	/* What is enabled follows the page. */
	memset(shared, 0, sizeof(*shared));
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	touch_clock(&self->tvm);
	EXPECT_TRUE(clock_is_valid(shared));

	new_private(self, PAGE, 1);
	expect_private_clock(_metadata, self);

	/* Another page, the same place */
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	expect_private_clock(_metadata, self);
}

/* No one is told when a page that is not bound comes or goes. */
TEST_F(sealed, pv_clock_and_memslots)
{
	struct kvm_vcpu *vcpu = setup_private(self);
	int i;

	enable_msr(_metadata, vcpu, MSR_KVM_SYSTEM_TIME_NEW, gpa_of(PAGE) + 64 + 1);
	for (i = 0; i < 10; i++) {
		touch_clock(&self->tvm);
		ASSERT_EQ(0, delete_slot(self->vm, SLOT));
		ASSERT_EQ(0, to_shared(self, PAGE, 1));
		ASSERT_EQ(0, to_private(self, PAGE, 1));
		if (i & 1) {
			/* The same shared half, with nothing else */
			ASSERT_EQ(0, set_slot(self->vm, SLOT, 0, GPA, SIZE, self->shared, -1, 0));
			touch_clock(&self->tvm);
			EXPECT_TRUE(clock_is_valid((void *)shared_page(self, PAGE) + 64));
			ASSERT_EQ(0, delete_slot(self->vm, SLOT));
			poison_shared(self, PAGE);
		}
		ASSERT_EQ(0, add_slot(self, SLOT, 0, NR_PAGES));
		expect_private_clock(_metadata, self);
	}
}

TEST_F(sealed, steal_time)
{
	struct kvm_vcpu *vcpu = setup_private(self);
	struct kvm_steal_time st, *shared = (void *)shared_page(self, PAGE) + 128;
	uint32_t version;

	enable_msr(_metadata, vcpu, MSR_KVM_STEAL_TIME, gpa_of(PAGE) + 128 + 1);
	get_private(self, gpa_of(PAGE) + 128, &st, sizeof(st));
	EXPECT_NE(0, st.version);
	EXPECT_EQ(0, st.version & 1);
	version = st.version;
	get_private(self, gpa_of(PAGE) + 128, &st, sizeof(st));
	EXPECT_LT(version, st.version);
	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));

	/* The shared half has to be faulted in. */
	ASSERT_EQ(0, madvise(shared_page(self, PAGE), PAGE_SIZE, MADV_DONTNEED));
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	load(vcpu, gpa_of(0));
	EXPECT_NE(0, shared->version);
	EXPECT_EQ(0, shared->version & 1);

	new_private(self, PAGE, 1);
	get_private(self, gpa_of(PAGE) + 128, &st, sizeof(st));
	EXPECT_NE(0, st.version);
	EXPECT_EQ(0, st.version & 1);
	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));
}

/*
 * Two vCPUs share a CPU, one waits until it sees that the other doesn't run. KVM says
 * so only if a host's interrupt made it leave the guest; Bochs knows no such exits
 * while the guest has its interrupts disabled.
 */
static volatile uint64_t preempted_stop;

static uint64_t guest_spin(uint64_t unused1, uint64_t unused2, uint64_t unused3)
{
	asm volatile("sti");
	while (!preempted_stop)
		;
	asm volatile("cli");
	return 0;
}

static uint64_t guest_stop_spinning(uint64_t unused1, uint64_t unused2, uint64_t unused3)
{
	preempted_stop = 1;
	return 0;
}

static uint64_t guest_wait_for_preempted(uint64_t st, uint64_t unused1, uint64_t unused2)
{
	uint8_t preempted;

	asm volatile("sti");
	while (!(preempted = READ_ONCE(((struct kvm_steal_time *)st)->preempted)))
		;
	asm volatile("cli");
	preempted_stop = 1;
	return preempted;
}

static bool pin_to_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return !sched_setaffinity(0, sizeof(set), &set);
}

static void pin_to_cpu_0(void)
{
	TEST_ASSERT(pin_to_cpu(0), "Can't pin a thread");
}

static void *spin_thread(void *vcpu)
{
	pin_to_cpu_0();
	call_guest(vcpu, guest_spin, 0, 0, 0);
	return NULL;
}

/* A vCPU made before its VM became private begins where the first one does. */
static void start_second_vcpu(struct kvm_vcpu *vcpu)
{
	struct kvm_regs regs;

	vcpu_regs_get(vcpu, &regs);
	regs.rip = (uint64_t)private_guest_code;
	vcpu_regs_set(vcpu, &regs);
	vcpu_run(vcpu);
	finish_guest(vcpu);
}

TEST_F(sealed, preempted)
{
	struct kvm_vcpu *vcpu, *second;
	pthread_t thread;

	second = vm_vcpu_add(self->vm, 1, private_guest_code);
	vcpu = setup_private(self);
	start_second_vcpu(second);

	enable_msr(_metadata, second, MSR_KVM_STEAL_TIME, gpa_of(PAGE) + 128 + 1);
	ASSERT_EQ(0, pthread_create(&thread, NULL, spin_thread, second));
	pin_to_cpu_0();
	EXPECT_EQ(KVM_VCPU_PREEMPTED,
		  call_guest(vcpu, guest_wait_for_preempted, gpa_of(PAGE) + 128, 0, 0));
	pthread_join(thread, NULL);
	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));
}

/* One asks the other to flush its TLB, which it does when it runs again. */
static uint64_t flush_count;

static uint64_t guest_count(uint64_t unused1, uint64_t unused2, uint64_t unused3)
{
	asm volatile("sti");
	while (!preempted_stop)
		WRITE_ONCE(flush_count, flush_count + 1);
	asm volatile("cli");
	return 0;
}

static uint64_t guest_wait_for_count(uint64_t unused1, uint64_t unused2, uint64_t unused3)
{
	uint64_t count = READ_ONCE(flush_count);

	asm volatile("sti");
	while (READ_ONCE(flush_count) == count)
		;
	asm volatile("cli");
	return 0;
}

static uint64_t guest_ask_for_flush(uint64_t st, uint64_t unused1, uint64_t unused2)
{
	uint8_t *preempted = &((struct kvm_steal_time *)st)->preempted;
	uint8_t old = KVM_VCPU_PREEMPTED;

	asm volatile("sti");
	while (!__atomic_compare_exchange_n(preempted, &old, old | KVM_VCPU_FLUSH_TLB, false,
					    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		old = KVM_VCPU_PREEMPTED;
	asm volatile("cli");
	return 0;
}

static void *count_thread(void *vcpu)
{
	pin_to_cpu_0();
	call_guest(vcpu, guest_count, 0, 0, 0);
	return NULL;
}

static unsigned int count_flushes(void)
{
	FILE *file = trace_open();
	unsigned int nr = 0;
	char line[256];

	while (fgets(line, sizeof(line), file))
		nr += !!strstr(line, "kvm_pv_tlb_flush: vcpu 1 need_flush_tlb true");
	fclose(file);
	return nr;
}

/* A second vCPU that counts, and is flushed when the first asks for it; NULL: no tracing */
static struct kvm_vcpu *start_flushes(struct __test_metadata *_metadata,
				      FIXTURE_DATA(sealed) *self, pthread_t *thread)
{
	static const char * const events[] = { "kvm/kvm_pv_tlb_flush" };
	struct kvm_vcpu *vcpu, *second;

	if (!trace_start(events, ARRAY_SIZE(events))) {
		trace_stop();
		return NULL;
	}

	second = vm_vcpu_add(self->vm, 1, private_guest_code);
	vcpu = setup_private(self);
	start_second_vcpu(second);

	enable_msr(_metadata, second, MSR_KVM_STEAL_TIME, gpa_of(PAGE) + 128 + 1);
	ASSERT_EQ(0, pthread_create(thread, NULL, count_thread, second));
	pin_to_cpu_0();
	return vcpu;
}

/* Returns how often it was flushed. */
static unsigned int stop_flushes(struct kvm_vcpu *vcpu, pthread_t thread)
{
	unsigned int nr;

	call_guest(vcpu, guest_stop_spinning, 0, 0, 0);
	pthread_join(thread, NULL);
	nr = count_flushes();
	trace_stop();
	return nr;
}

/* Before that, whether it's asked for disappears with the half that says so. */
TEST_F(sealed, convert_before_flush)
{
	struct kvm_steal_time *shared = (void *)shared_page(self, PAGE) + 128;
	const unsigned int nr_flushes = 10;
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	unsigned int i;

	vcpu = start_flushes(_metadata, self, &thread);
	if (!vcpu)
		SKIP(return, "no tracing");

	for (i = 0; i < nr_flushes; i++) {
		/* What was left there long ago says nothing. */
		memset(shared, 0, sizeof(*shared));
		shared->preempted = KVM_VCPU_PREEMPTED;
		call_guest(vcpu, guest_ask_for_flush, gpa_of(PAGE) + 128, 0, 0);
		ASSERT_EQ(0, to_shared(self, PAGE, 1));
		call_guest(vcpu, guest_wait_for_count, 0, 0, 0);

		call_guest(vcpu, guest_ask_for_flush, gpa_of(PAGE) + 128, 0, 0);
		ASSERT_EQ(0, to_private(self, PAGE, 1));
		call_guest(vcpu, guest_wait_for_count, 0, 0, 0);
	}
	EXPECT_LE(2 * nr_flushes, stop_flushes(vcpu, thread));
}

/* As if the page had been copied before it was asked for. */
static void put_preempted(FIXTURE_DATA(sealed) *self, bool private)
{
	static char page[PAGE_SIZE];
	struct kvm_steal_time *st = (void *)page + 128;

	st->preempted = KVM_VCPU_PREEMPTED;
	if (private) {
		TEST_ASSERT(pwrite(self->fd, page, PAGE_SIZE, PAGE * PAGE_SIZE) == PAGE_SIZE,
			    __KVM_SYSCALL_ERROR("pwrite()", -1));
	} else {
		memcpy(shared_page(self, PAGE), page, PAGE_SIZE);
		TEST_ASSERT(!to_shared(self, PAGE, 1), "Can't convert to shared");
	}
}

/* There and back again, with content, while the vCPU doesn't run. */
TEST_F(sealed, convert_twice_before_flush)
{
	const unsigned int nr_flushes = 10;
	struct kvm_vcpu *vcpu;
	unsigned int i, j;
	pthread_t thread;
	bool private;

	vcpu = start_flushes(_metadata, self, &thread);
	if (!vcpu)
		SKIP(return, "no tracing");

	for (i = 0; i < 2 * nr_flushes; i++) {
		/* Begin with the private half, later with the shared one. */
		private = i < nr_flushes;
		for (j = 0; j < 2; j++) {
			call_guest(vcpu, guest_ask_for_flush, gpa_of(PAGE) + 128, 0, 0);
			private = !private;
			put_preempted(self, private);
		}
		call_guest(vcpu, guest_wait_for_count, 0, 0, 0);
		if (i == nr_flushes - 1)
			put_preempted(self, false);
	}
	EXPECT_LE(2 * nr_flushes, stop_flushes(vcpu, thread));
}

static void *count_elsewhere_thread(void *vcpu)
{
	TEST_ASSERT(pin_to_cpu(1), "Can't pin a thread");
	call_guest(vcpu, guest_count, 0, 0, 0);
	return NULL;
}

static uint8_t load_preempted(struct kvm_vcpu *vcpu)
{
	return load(vcpu, gpa_of(PAGE) + 128 + offsetof(struct kvm_steal_time, preempted));
}

/*
 * What a half says that comes into force is outdated: the vCPU runs, and isn't
 * preempted so soon, having a CPU of its own. Else nobody would flush its TLB.
 */
TEST_F(sealed, convert_while_running)
{
	struct kvm_vcpu *vcpu, *second;
	pthread_t thread;
	unsigned int i, j;

	if (!pin_to_cpu(1))
		SKIP(return, "only one CPU");

	second = vm_vcpu_add(self->vm, 1, private_guest_code);
	vcpu = setup_private(self);
	start_second_vcpu(second);
	enable_msr(_metadata, second, MSR_KVM_STEAL_TIME, gpa_of(PAGE) + 128 + 1);
	/* On any other CPU, if there's a choice */
	if (!pin_to_cpu(2))
		pin_to_cpu_0();
	ASSERT_EQ(0, pthread_create(&thread, NULL, count_elsewhere_thread, second));

	for (i = 0; i < 20; i++) {
		put_preempted(self, i & 1);
		/* If the host has let something else run, that's true for once. */
		for (j = 0; j < 5; j++) {
			call_guest(vcpu, guest_wait_for_count, 0, 0, 0);
			if (!load_preempted(vcpu))
				break;
		}
		EXPECT_GT(5, j) {
			TH_LOG("%s", i & 1 ? "private" : "shared");
		}
	}
	call_guest(vcpu, guest_stop_spinning, 0, 0, 0);
	pthread_join(thread, NULL);
}

#define WAKE_ALL	(~0u)

static struct {
	struct kvm_vcpu_pv_apf_data *area;
	uint64_t not_present, ready, wake_all;
} guest_apf;

static void guest_apf_pf_handler(struct ex_regs *regs)
{
	if (guest_apf.area->flags == KVM_PV_REASON_PAGE_NOT_PRESENT)
		guest_apf.not_present++;
	guest_apf.area->flags = 0;
}

static void guest_apf_irq_handler(struct ex_regs *regs)
{
	if (guest_apf.area->token == WAKE_ALL)
		guest_apf.wake_all++;
	else if (guest_apf.area->token)
		guest_apf.ready++;
	guest_apf.area->token = 0;
	wrmsr(MSR_KVM_ASYNC_PF_ACK, 1);
	x2apic_write_reg(APIC_EOI, 0);
}

static uint64_t guest_async_pf(uint64_t area, uint64_t addr, uint64_t unused)
{
	uint64_t value;

	guest_apf.area = (void *)area;
	x2apic_enable();
	wrmsr(MSR_KVM_ASYNC_PF_INT, IRQ_VECTOR);
	wrmsr(MSR_KVM_ASYNC_PF_EN, area | KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_SEND_ALWAYS |
	      KVM_ASYNC_PF_DELIVERY_AS_INT);
	asm volatile("sti");
	/* That it's enabled is an event, too. */
	while (!READ_ONCE(guest_apf.wake_all))
		;
	value = READ_ONCE(*(uint64_t *)addr);
	while (!READ_ONCE(guest_apf.ready))
		;
	asm volatile("cli");
	wrmsr(MSR_KVM_ASYNC_PF_EN, 0);
	return value << 32 | guest_apf.not_present << 16 | guest_apf.ready;
}

TEST_F(sealed, async_pf)
{
	struct slow_page slow = { .page = 1 };

	vm_install_exception_handler(self->vm, PF_VECTOR, guest_apf_pf_handler);
	vm_install_exception_handler(self->vm, IRQ_VECTOR, guest_apf_irq_handler);
	setup_private(self);

	if (!slow_page_begin(self, &slow))
		SKIP(return, "no userfaultfd");
	EXPECT_EQ(SLOW_VALUE << 32 | 1 << 16 | 1,
		  call_guest(self->tvm.vcpu, guest_async_pf, gpa_of(PAGE), gpa_of(1), 0));
	EXPECT_TRUE(slow_page_end(&slow));
	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));
}

static struct {
	uint32_t *area;
	uint64_t nr, nr_without_eoi;
} guest_eoi;

static void guest_eoi_irq_handler(struct ex_regs *regs)
{
	guest_eoi.nr++;
	if (*guest_eoi.area & KVM_PV_EOI_ENABLED) {
		*guest_eoi.area &= ~KVM_PV_EOI_ENABLED;
		guest_eoi.nr_without_eoi++;
	} else {
		x2apic_write_reg(APIC_EOI, 0);
	}
}

static uint64_t guest_pv_eoi(uint64_t area, uint64_t nr, uint64_t unused)
{
	uint64_t i;

	guest_eoi.area = (void *)area;
	guest_eoi.nr = 0;
	guest_eoi.nr_without_eoi = 0;
	x2apic_enable();
	if (wrmsr_safe(MSR_KVM_PV_EOI_EN, area | KVM_MSR_ENABLED))
		return ~0ul;
	asm volatile("sti");
	for (i = 1; i <= nr; i++) {
		x2apic_write_reg(APIC_ICR, APIC_DEST_SELF | APIC_INT_ASSERT |
				 APIC_DM_FIXED | IRQ_VECTOR);
		while (READ_ONCE(guest_eoi.nr) != i)
			;
	}
	asm volatile("cli");
	return guest_eoi.nr_without_eoi;
}

TEST_F(sealed, pv_eoi)
{
	struct kvm_vcpu *vcpu;

	vm_install_exception_handler(self->vm, IRQ_VECTOR, guest_eoi_irq_handler);
	vcpu = setup_private(self);

	/* Not necessarily each time */
	EXPECT_IN_RANGE(1, 10, call_guest(vcpu, guest_pv_eoi, gpa_of(PAGE), 10, 0));
	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));
	/* Not at the beginning of a page, and later a shared one */
	EXPECT_IN_RANGE(1, 10, call_guest(vcpu, guest_pv_eoi, gpa_of(PAGE) + 12, 10, 0));
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	memset(shared_page(self, PAGE), 0, PAGE_SIZE);
	EXPECT_IN_RANGE(1, 10, call_guest(vcpu, guest_pv_eoi, gpa_of(PAGE) + 12, 10, 0));
}

/* All structures are enabled in a shared page, which then becomes private. */
TEST_F(sealed, pv_area_becomes_private)
{
	static const uint32_t msrs[] = {
		MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_STEAL_TIME,
		MSR_KVM_ASYNC_PF_EN, MSR_KVM_PV_EOI_EN,
	};
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	unsigned int i;

	make_private(self);
	for (i = 0; i < ARRAY_SIZE(msrs); i++)
		enable_msr(_metadata, vcpu, msrs[i], gpa_of(PAGE + i) + 64 + 1);
	new_private(self, PAGE, ARRAY_SIZE(msrs));
	for (i = 0; i < 10; i++)
		touch_clock(&self->tvm);
	for (i = 0; i < ARRAY_SIZE(msrs); i++)
		EXPECT_TRUE(is_poison(shared_page(self, PAGE + i))) {
			TH_LOG("MSR %#x", msrs[i]);
		}
	/* These two are kept up to date. */
	EXPECT_NE(0, load(vcpu, gpa_of(PAGE + 1) + 64));
	EXPECT_NE(0, load(vcpu, gpa_of(PAGE + 2) + 64 + 8));
}

TEST_F(sealed, hyperv)
{
	struct kvm_vcpu *vcpu = setup_private(self);

	if (!kvm_has_cap(KVM_CAP_HYPERV))
		SKIP(return, "no Hyper-V");

	new_private(self, PAGE + 1, 1);
	store(vcpu, gpa_of(PAGE), ~0ul);
	vcpu_set_msr(vcpu, HV_X64_MSR_VP_ASSIST_PAGE,
		     gpa_of(PAGE) | HV_X64_MSR_VP_ASSIST_PAGE_ENABLE);
	EXPECT_EQ(~0ul << 32, load(vcpu, gpa_of(PAGE)));

	vcpu_set_msr(vcpu, HV_X64_MSR_GUEST_OS_ID, HYPERV_LINUX_OS_ID);
	vcpu_set_msr(vcpu, HV_X64_MSR_HYPERCALL, gpa_of(PAGE + 1) | 1);
	EXPECT_NE(0, load(vcpu, gpa_of(PAGE + 1)));
	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));
	EXPECT_TRUE(is_poison(shared_page(self, PAGE + 1)));
}

/*
 * SMM has an address space of its own.
 */
static void add_smram(FIXTURE_DATA(sealed) *self, void *shared, int fd)
{
	TEST_ASSERT(!set_slot(self->vm, SMRAM_SLOT, KVM_MEM_GUEST_MEMFD, SMRAM_GPA, SMRAM_SIZE,
			      shared, fd, 0) &&
		    !set_slot(self->vm, SMRAM_SMM_SLOT, KVM_MEM_GUEST_MEMFD, SMRAM_GPA,
			      SMRAM_SIZE, shared, fd, 0), "Can't create SMRAM");
}

/* A private SMRAM, with a handler that the guest has written. */
static char *setup_smram(FIXTURE_DATA(sealed) *self, struct kvm_vcpu *vcpu)
{
	/* out %al, $SMM_PORT; rsm */
	const uint64_t handler = 0xaa0f00e6ul | SMM_PORT << 8;
	char *shared;
	int fd;

	shared = mmap(NULL, SMRAM_SIZE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(shared != MAP_FAILED, "No memory");
	memset(shared, POISON, SMRAM_SIZE);
	fd = new_sealed_memfd(SMRAM_SIZE);
	add_smram(self, shared, fd);
	TEST_ASSERT(!fallocate(fd, 0, 0, SMRAM_SIZE), "Can't convert to private");
	close(fd);

	store(vcpu, SMRAM_GPA + 0x8000, handler);
	vcpu_run_complete_io(vcpu);
	vcpu_set_msr(vcpu, MSR_IA32_SMBASE, SMRAM_GPA);
	return shared;
}

static bool smram_is_poison(char *shared)
{
	unsigned int i;

	for (i = 0; i < SMRAM_NR_PAGES; i++) {
		if (!is_poison(shared + i * PAGE_SIZE))
			return false;
	}
	return true;
}

TEST_F(sealed, smm)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	struct kvm_run *run = vcpu->run;
	char *shared;
	int i;

	if (variant->type != KVM_X86_DEFAULT_VM || !kvm_has_cap(KVM_CAP_X86_SMM))
		SKIP(return, "no SMM");

	virt_map(self->vm, SMRAM_GPA, SMRAM_GPA, SMRAM_NR_PAGES);
	setup_private(self);
	shared = setup_smram(self, vcpu);

	for (i = 0; i < 3; i++) {
		inject_smi(vcpu);
		start_guest(vcpu, guest_add, 1, 2, i);
		assert_io(vcpu, SMM_PORT);
		EXPECT_TRUE(run->flags & KVM_RUN_X86_SMM);
		vcpu_run(vcpu);
		EXPECT_FALSE(run->flags & KVM_RUN_X86_SMM);
		EXPECT_EQ(3 + i, finish_guest(vcpu));
	}
	/* It was about here that the state was saved. */
	EXPECT_NE(0, load(vcpu, SMRAM_GPA + 0xfff8) | load(vcpu, SMRAM_GPA + 0xff78) |
		     load(vcpu, SMRAM_GPA + 0xfed0));
	EXPECT_TRUE(smram_is_poison(shared));
	munmap(shared, SMRAM_SIZE);
}

/*
 * Nested guests
 */
#define NPT_PAGE	512
#define NPT_LEAF	(NPT_PAGE + 4)
#define NPT_FLAGS	(PTE_FLAGS | BIT_ULL(2))

static struct svm_test_data *guest_svm;

/* Loads from the address it gets, until that is 0 and it ends. */
static void l2_guest_code(void)
{
	uint64_t addr = 0, value = 0;

	for (;;) {
		asm volatile("out %%al, %[port]"
			     : "+a" (value), "+D" (addr)
			     : [port] "i" (L2_PORT)
			     : "rbx", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "r12",
			       "r13", "r14", "r15", "memory");
		if (addr)
			value = READ_ONCE(*(uint64_t *)addr);
		else
			vmmcall();
	}
}

static void l2_vmmcall_code(void)
{
	for (;;)
		vmmcall();
}

static void l2_rdmsr_code(void)
{
	rdmsr(MSR_EFER);
	vmmcall();
}

/* Writes a byte, or a word, to the port it gets, until that is 0 and it ends. */
static void l2_out_code(void)
{
	uint64_t port = 0, word = 0;

	for (;;) {
		asm volatile("out %%al, %[l2_port]"
			     : "+d" (port), "+D" (word)
			     : [l2_port] "i" (L2_PORT)
			     : "rax", "rbx", "rcx", "rsi", "r8", "r9", "r10", "r11", "r12",
			       "r13", "r14", "r15", "memory");
		if (!port)
			vmmcall();
		else if (word)
			asm volatile("out %%ax, %%dx" : : "d" ((uint16_t)port), "a" (0));
		else
			asm volatile("out %%al, %%dx" : : "d" ((uint16_t)port), "a" (0));
	}
}

static uint64_t guest_svm_setup(uint64_t svm, uint64_t rip, uint64_t unused)
{
	static uint64_t stack[64];

	guest_svm = (void *)svm;
	generic_svm_setup(guest_svm, (void *)rip, &stack[62]);
	return 0;
}

/* The first 2 MiB of the test memory have a page table of their own. */
static uint64_t guest_npt_setup(uint64_t npt, uint64_t unused1, uint64_t unused2)
{
	uint64_t (*table)[512] = (void *)npt, i;

	table[0][0] = (npt + PAGE_SIZE) | NPT_FLAGS;
	table[1][0] = (npt + 2 * PAGE_SIZE) | NPT_FLAGS;
	table[1][GPA >> 30] = (npt + 3 * PAGE_SIZE) | NPT_FLAGS;
	for (i = 0; i < 512; i++) {
		table[2][i] = i << 21 | NPT_FLAGS | PTE_LARGE_MASK;
		table[3][i] = (GPA + (i << 21)) | NPT_FLAGS | PTE_LARGE_MASK;
		table[4][i] = (GPA + (i << 12)) | NPT_FLAGS;
	}
	table[3][0] = (npt + 4 * PAGE_SIZE) | NPT_FLAGS;
	guest_svm->vmcb->control.nested_ctl = BIT(0);
	guest_svm->vmcb->control.nested_cr3 = npt;
	return 0;
}

static uint64_t guest_vmrun(uint64_t unused1, uint64_t unused2, uint64_t unused3)
{
	run_guest(guest_svm->vmcb, guest_svm->vmcb_gpa);
	/* Skip the VMMCALL. */
	if (guest_svm->vmcb->control.exit_code == SVM_EXIT_VMMCALL)
		guest_svm->vmcb->save.rip += 3;
	return guest_svm->vmcb->control.exit_code;
}

static uint64_t guest_vmrun_loop(uint64_t stop, uint64_t unused1, uint64_t unused2)
{
	while (!READ_ONCE(*(uint64_t *)stop)) {
		if (guest_vmrun(0, 0, 0) != SVM_EXIT_VMMCALL)
			return 1;
	}
	return 0;
}

static uint64_t guest_vmsave(uint64_t gpa, uint64_t gs_base, uint64_t unused)
{
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SVME);
	wrmsr(MSR_KERNEL_GS_BASE, gs_base);
	asm volatile("vmsave %0" : : "a" (gpa) : "memory");
	return 0;
}

static uint64_t guest_vmsave_loop(uint64_t gpa, uint64_t stop, uint64_t unused)
{
	uint64_t i;

	for (i = 0; !READ_ONCE(*(uint64_t *)stop); i++)
		guest_vmsave(gpa, i, 0);
	return i;
}

static uint64_t guest_intercept_msrs(uint64_t on, uint64_t unused1, uint64_t unused2)
{
	memset(guest_svm->msr, on ? 0xff : 0, PAGE_SIZE);
	guest_svm->vmcb->control.intercept |= BIT_ULL(INTERCEPT_MSR_PROT);
	return 0;
}

static uint64_t guest_intercept_io(uint64_t iopm, uint64_t port, uint64_t on)
{
	uint8_t *byte = (uint8_t *)iopm + port / 8;

	*byte = on ? *byte | BIT(port % 8) : *byte & ~BIT(port % 8);
	guest_svm->vmcb->control.iopm_base_pa = iopm;
	guest_svm->vmcb->control.intercept |= BIT_ULL(INTERCEPT_IOIO_PROT);
	return 0;
}

/* L2 is, or was, at its port: let it load from there, and return to its port. */
static uint64_t load_l2(struct kvm_vcpu *vcpu, uint64_t addr)
{
	struct kvm_regs regs;

	assert_io(vcpu, L2_PORT);
	vcpu_regs_get(vcpu, &regs);
	regs.rdi = addr;
	vcpu_regs_set(vcpu, &regs);
	vcpu_run(vcpu);
	assert_io(vcpu, L2_PORT);
	vcpu_regs_get(vcpu, &regs);
	return regs.rax;
}

/* When it goes on, L2 ends. */
static void tell_l2_to_end(struct kvm_vcpu *vcpu)
{
	struct kvm_regs regs;

	assert_io(vcpu, L2_PORT);
	vcpu_regs_get(vcpu, &regs);
	regs.rdi = 0;
	vcpu_regs_set(vcpu, &regs);
}

/* Let L2 end, and return what L1 makes of it. */
static uint64_t end_l2(struct kvm_vcpu *vcpu)
{
	tell_l2_to_end(vcpu);
	vcpu_run(vcpu);
	return finish_guest(vcpu);
}

/* The VMCB is in a page of the test memory, so that we can convert it. */
static vm_vaddr_t setup_nested(FIXTURE_DATA(sealed) *self, guest_fn l2)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	struct svm_test_data *svm;
	vm_vaddr_t svm_gva;

	svm = vcpu_alloc_svm(self->vm, &svm_gva);
	svm->vmcb = (void *)gpa_of(PAGE);
	svm->vmcb_gpa = gpa_of(PAGE);
	svm->msr = (void *)gpa_of(PAGE + 1);
	svm->msr_gpa = gpa_of(PAGE + 1);
	svm->save_area = (void *)gpa_of(PAGE + 2);
	svm->save_area_gpa = gpa_of(PAGE + 2);
	setup_private(self);
	new_private(self, PAGE + 1, 2);
	call_guest(vcpu, guest_svm_setup, svm_gva, (uint64_t)l2, 0);
	return svm_gva;
}

static void setup_npt(FIXTURE_DATA(sealed) *self)
{
	new_private(self, NPT_PAGE, 5);
	call_guest(self->tvm.vcpu, guest_npt_setup, gpa_of(NPT_PAGE), 0, 0);
}

static bool nested_is_poison(FIXTURE_DATA(sealed) *self)
{
	return is_poison(shared_page(self, PAGE)) && is_poison(shared_page(self, PAGE + 1)) &&
	       is_poison(shared_page(self, PAGE + 2));
}

static void test_nested(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self,
			bool npt)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	const unsigned long page = PAGE + 3;
	int i;

	setup_nested(self, (guest_fn)l2_guest_code);
	if (npt)
		setup_npt(self);
	new_private(self, page, 1);
	store(vcpu, gpa_of(page), PRIVATE_VALUE(page));

	for (i = 0; i < 10; i++) {
		start_guest(vcpu, guest_vmrun, 0, 0, 0);
		EXPECT_EQ(PRIVATE_VALUE(page), load_l2(vcpu, gpa_of(page)));
		EXPECT_EQ(SHARED_VALUE(page + 1), load_l2(vcpu, gpa_of(page + 1)));

		/* What L2 uses is converted like everything else. */
		*shared_page(self, page) = SHARED_VALUE(page);
		ASSERT_EQ(0, to_shared(self, page, 1));
		EXPECT_EQ(SHARED_VALUE(page), load_l2(vcpu, gpa_of(page)));
		ASSERT_EQ(0, to_private(self, page, 1));
		EXPECT_EQ(0, load_l2(vcpu, gpa_of(page)));
		EXPECT_EQ(SVM_EXIT_VMMCALL, end_l2(vcpu));
		store(vcpu, gpa_of(page), PRIVATE_VALUE(page));
	}
	EXPECT_TRUE(nested_is_poison(self));
}

TEST_F(sealed, nested)
{
	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no SVM");
	test_nested(_metadata, self, false);
}

TEST_F(sealed, nested_npt)
{
	unsigned int i;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no SVM");
	test_nested(_metadata, self, true);
	for (i = 0; i < 5; i++)
		EXPECT_TRUE(is_poison(shared_page(self, NPT_PAGE + i)));
	/* L0 walked it and left a trace. */
	EXPECT_EQ(gpa_of(PAGE + 3) | NPT_FLAGS | BIT_ULL(5),
		  load(self->tvm.vcpu, gpa_of(NPT_LEAF) + (PAGE + 3) * 8) & ~BIT_ULL(6));
}

/* What L2 has mapped of the private half stays, too. */
TEST_F(sealed, nested_discard)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	const unsigned long page = PAGE + 3;
	unsigned long mapped;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no SVM");

	setup_nested(self, (guest_fn)l2_guest_code);
	setup_npt(self);
	new_private(self, page, 1);
	ASSERT_EQ(0, madvise(self->shared, SIZE, MADV_NOHUGEPAGE));
	ASSERT_EQ(0, madvise(shared_page(self, page), 2 * PAGE_SIZE, MADV_DONTNEED));
	start_guest(vcpu, guest_vmrun, 0, 0, 0);
	EXPECT_EQ(0, load_l2(vcpu, gpa_of(page)));
	EXPECT_EQ(0, load_l2(vcpu, gpa_of(page + 1)));

	mapped = vm_get_stat(self->vm, "pages_4k");
	ASSERT_EQ(0, madvise(shared_page(self, page), PAGE_SIZE, MADV_DONTNEED));
	EXPECT_EQ(mapped, vm_get_stat(self->vm, "pages_4k"));
	ASSERT_EQ(0, madvise(shared_page(self, page + 1), PAGE_SIZE, MADV_DONTNEED));
	EXPECT_EQ(mapped - 1, vm_get_stat(self->vm, "pages_4k"));
	EXPECT_EQ(0, load_l2(vcpu, gpa_of(page)));
	EXPECT_EQ(0, load_l2(vcpu, gpa_of(page + 1)));
	EXPECT_EQ(mapped, vm_get_stat(self->vm, "pages_4k"));
	EXPECT_EQ(SVM_EXIT_VMMCALL, end_l2(vcpu));
}

TEST_F(sealed, nested_msr_bitmap)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	vm_vaddr_t svm_gva;
	int i;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no SVM");

	svm_gva = setup_nested(self, (guest_fn)l2_rdmsr_code);
	for (i = 0; i < 4; i++) {
		call_guest(vcpu, guest_svm_setup, svm_gva, (uint64_t)l2_rdmsr_code, 0);
		call_guest(vcpu, guest_intercept_msrs, i & 1, 0, 0);
		EXPECT_EQ(i & 1 ? SVM_EXIT_MSR : SVM_EXIT_VMMCALL,
			  call_guest(vcpu, guest_vmrun, 0, 0, 0));
	}
	EXPECT_TRUE(nested_is_poison(self));
}

/* Have L2 write to a port, which L0's userspace or L1 gets to see. */
static void out_l2(struct kvm_vcpu *vcpu, uint16_t port, bool word)
{
	struct kvm_regs regs;

	assert_io(vcpu, L2_PORT);
	vcpu_regs_get(vcpu, &regs);
	regs.rdx = port;
	regs.rdi = word;
	vcpu_regs_set(vcpu, &regs);
	vcpu_run(vcpu);
}

/* The I/O permission map has two pages, and a bit of a third one. */
#define IOPM_PAGE	(PAGE + 3)
#define IOPM_NR_PAGES	3

static void test_nested_iopm(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self,
			     vm_vaddr_t svm_gva, uint16_t port, bool word)
{
	/* The last one of those that are written to */
	const uint32_t bit = port + word;
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	uint8_t *shared = (uint8_t *)shared_page(self, IOPM_PAGE) + bit / 8;
	const uint8_t value = *shared;
	int i, on;

	for (i = 0; i < 4; i++) {
		on = !(i & 1);
		call_guest(vcpu, guest_svm_setup, svm_gva, (uint64_t)l2_out_code, 0);
		call_guest(vcpu, guest_intercept_io, gpa_of(IOPM_PAGE), bit, on);
		/* Where it's private the shared half says the opposite. */
		if (bit / 8 / PAGE_SIZE < IOPM_NR_PAGES - 1)
			*shared = on ? value & ~BIT(bit % 8) : value | BIT(bit % 8);
		start_guest(vcpu, guest_vmrun, 0, 0, 0);
		out_l2(vcpu, port, word);
		if (on) {
			EXPECT_EQ(SVM_EXIT_IOIO, finish_guest(vcpu));
			continue;
		}
		assert_io(vcpu, port);
		EXPECT_EQ(word ? 2 : 1, vcpu->run->io.size);
		vcpu_run(vcpu);
		out_l2(vcpu, 0, false);
		EXPECT_EQ(SVM_EXIT_VMMCALL, finish_guest(vcpu));
	}
	if (bit / 8 / PAGE_SIZE < IOPM_NR_PAGES - 1)
		*shared = value;
}

TEST_F(sealed, nested_io_bitmap)
{
	static const uint16_t ports[] = { STRING_PORT, 0x1234, 0x7fff, 0x8000, 0xfff0 };
	vm_vaddr_t svm_gva;
	unsigned int i;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no SVM");

	svm_gva = setup_nested(self, (guest_fn)l2_out_code);
	/* The third page stays shared. */
	new_private(self, IOPM_PAGE, IOPM_NR_PAGES - 1);
	memset(shared_page(self, IOPM_PAGE + IOPM_NR_PAGES - 1), 0, PAGE_SIZE);
	for (i = 0; i < ARRAY_SIZE(ports); i++) {
		test_nested_iopm(_metadata, self, svm_gva, ports[i], false);
		test_nested_iopm(_metadata, self, svm_gva, ports[i], true);
	}
	/* The bits are in two pages, a private and a shared one. */
	test_nested_iopm(_metadata, self, svm_gva, 0xffff, true);

	EXPECT_TRUE(nested_is_poison(self));
	EXPECT_TRUE(is_poison(shared_page(self, IOPM_PAGE)));
	EXPECT_TRUE(is_poison(shared_page(self, IOPM_PAGE + 1)));
}

/* What is written to the VMCB on exit is logged, and nothing else is written. */
TEST_F(sealed, nested_dirty_log)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	vm_vaddr_t svm_gva;
	int i;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no SVM");

	svm_gva = setup_nested(self, (guest_fn)l2_out_code);
	new_private(self, IOPM_PAGE, IOPM_NR_PAGES);
	ASSERT_EQ(0, set_logging(self, true));
	for (i = 0; i < 2; i++) {
		call_guest(vcpu, guest_svm_setup, svm_gva, (uint64_t)l2_out_code, 0);
		call_guest(vcpu, guest_intercept_io, gpa_of(IOPM_PAGE), STRING_PORT, true);
		start_guest(vcpu, guest_vmrun, 0, 0, 0);
		assert_io(vcpu, L2_PORT);
		get_dirty(self);
		/* L1 does no more than look at what it was. */
		out_l2(vcpu, STRING_PORT, false);
		EXPECT_EQ(SVM_EXIT_IOIO, finish_guest(vcpu));
		EXPECT_EQ(BIT(PAGE), get_dirty(self));
		EXPECT_EQ(!i, nested_is_poison(self));

		/* Once more with a shared VMCB */
		ASSERT_EQ(0, to_shared(self, PAGE, 1));
	}
}

/* On exit, the VMCB that is in force gets L2's state. */
TEST_F(sealed, nested_convert_vmcb)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	vm_vaddr_t svm_gva;
	struct vmcb *vmcb;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no SVM");

	svm_gva = setup_nested(self, (guest_fn)l2_guest_code);
	vmcb = (void *)shared_page(self, PAGE);

	start_guest(vcpu, guest_vmrun, 0, 0, 0);
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	EXPECT_EQ(SHARED_VALUE(0), load_l2(vcpu, gpa_of(0)));
	EXPECT_EQ(SVM_EXIT_VMMCALL, end_l2(vcpu));
	EXPECT_EQ(SVM_EXIT_VMMCALL, vmcb->control.exit_code);
	/* It was not L0 who wrote the rest. */
	EXPECT_EQ(0x5a5a5a5a5a5a5a5a, vmcb->control.intercept);

	call_guest(vcpu, guest_svm_setup, svm_gva, (uint64_t)l2_guest_code, 0);
	start_guest(vcpu, guest_vmrun, 0, 0, 0);
	EXPECT_EQ(SHARED_VALUE(0), load_l2(vcpu, gpa_of(0)));
	new_private(self, PAGE, 1);
	EXPECT_EQ(SVM_EXIT_VMMCALL, end_l2(vcpu));
	EXPECT_EQ(0, load(vcpu, gpa_of(PAGE)));
	EXPECT_TRUE(nested_is_poison(self));
}

/* There's nowhere to go but to the end, if not even L2 can be left. */
static void test_nested_without_vmcb(struct __test_metadata *_metadata,
				     FIXTURE_DATA(sealed) *self, int prot)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;

	setup_nested(self, (guest_fn)l2_guest_code);
	start_guest(vcpu, guest_vmrun, 0, 0, 0);
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	ASSERT_EQ(0, mprotect(shared_page(self, PAGE), PAGE_SIZE, prot));
	tell_l2_to_end(vcpu);
	EXPECT_REFUSED(EIO, _vcpu_run(vcpu));
	EXPECT_REFUSED(EIO, _vcpu_run(vcpu));

	/* Memslots can't be deleted one by one any more. */
	kvm_vm_release(self->vm);
	self->vm = NULL;
}

TEST_F(sealed, nested_unreadable_vmcb)
{
	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no SVM");
	test_nested_without_vmcb(_metadata, self, PROT_NONE);
}

TEST_F(sealed, nested_unwritable_vmcb)
{
	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no SVM");
	test_nested_without_vmcb(_metadata, self, PROT_READ);
}

/* L0 must not go on with what the page table was before. */
TEST_F(sealed, nested_convert_npt)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	uint64_t *leaf;
	int i;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no SVM");

	setup_nested(self, (guest_fn)l2_guest_code);
	setup_npt(self);
	leaf = shared_page(self, NPT_LEAF);
	for (i = 0; i < 512; i++)
		leaf[i] = gpa_of(i + 1) | NPT_FLAGS;

	start_guest(vcpu, guest_vmrun, 0, 0, 0);
	EXPECT_EQ(SHARED_VALUE(100), load_l2(vcpu, gpa_of(100)));
	ASSERT_EQ(0, to_shared(self, NPT_LEAF, 1));
	EXPECT_EQ(SHARED_VALUE(101), load_l2(vcpu, gpa_of(100)));

	/* There's nothing in the table now. */
	ASSERT_EQ(0, to_private(self, NPT_LEAF, 1));
	/* L2's argument is where that of others is the function. */
	start_guest(vcpu, (guest_fn)gpa_of(100), 0, 0, 0);
	EXPECT_EQ(SVM_EXIT_NPF, finish_guest(vcpu));
}

TEST_F(sealed, nested_smm)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	struct kvm_regs regs;
	char *shared;
	int i;

	if (variant->type != KVM_X86_DEFAULT_VM || !kvm_has_cap(KVM_CAP_X86_SMM) ||
	    !kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no SMM or SVM");

	virt_map(self->vm, SMRAM_GPA, SMRAM_GPA, SMRAM_NR_PAGES);
	setup_nested(self, (guest_fn)l2_guest_code);
	shared = setup_smram(self, vcpu);

	start_guest(vcpu, guest_vmrun, 0, 0, 0);
	for (i = 0; i < 3; i++) {
		assert_io(vcpu, L2_PORT);
		vcpu_regs_get(vcpu, &regs);
		regs.rdi = gpa_of(100);
		vcpu_regs_set(vcpu, &regs);
		inject_smi(vcpu);
		vcpu_run(vcpu);
		assert_io(vcpu, SMM_PORT);
		vcpu_run(vcpu);
		assert_io(vcpu, L2_PORT);
		vcpu_regs_get(vcpu, &regs);
		EXPECT_EQ(SHARED_VALUE(100), regs.rax);
	}
	EXPECT_EQ(SVM_EXIT_VMMCALL, end_l2(vcpu));
	EXPECT_TRUE(nested_is_poison(self));
	EXPECT_TRUE(smram_is_poison(shared));
	munmap(shared, SMRAM_SIZE);
}

/*
 * The page is converted while KVM waits for its shared half: neither must that be
 * written to, nor is its content of interest any more.
 */
TEST_F(sealed, convert_during_fault)
{
	struct slow_page slow = { .page = PAGE, .convert = true };
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	const uint64_t gpa = gpa_of(PAGE);
	struct pvclock_vcpu_time_info clock;
	struct kvm_steal_time st;

	make_private(self);

	if (!slow_page_begin(self, &slow))
		SKIP(return, "no userfaultfd");
	start_guest(vcpu, guest_ins, gpa, 8, 0);
	while (is_io(vcpu, STRING_PORT)) {
		memset(io_data(vcpu), 1, vcpu->run->io.count);
		vcpu_run(vcpu);
	}
	finish_guest(vcpu);
	EXPECT_TRUE(slow_page_end(&slow));
	EXPECT_EQ(0x0101010101010101, load(vcpu, gpa));

	ASSERT_TRUE(slow_page_begin(self, &slow));
	start_guest(vcpu, guest_outs, gpa, 1, 0);
	assert_io(vcpu, STRING_PORT);
	EXPECT_EQ(0, *(uint8_t *)io_data(vcpu));
	vcpu_run(vcpu);
	finish_guest(vcpu);
	EXPECT_TRUE(slow_page_end(&slow));

	ASSERT_TRUE(slow_page_begin(self, &slow));
	enable_msr(_metadata, vcpu, MSR_KVM_STEAL_TIME, gpa + 128 + 1);
	EXPECT_TRUE(slow_page_end(&slow));
	get_private(self, gpa + 128, &st, sizeof(st));
	EXPECT_NE(0, st.version);
	EXPECT_EQ(0, st.version & 1);
	enable_msr(_metadata, vcpu, MSR_KVM_STEAL_TIME, 0);

	ASSERT_TRUE(slow_page_begin(self, &slow));
	enable_msr(_metadata, vcpu, MSR_KVM_SYSTEM_TIME_NEW, gpa + 64 + 1);
	touch_clock(&self->tvm);
	EXPECT_TRUE(slow_page_end(&slow));
	get_private(self, gpa + 64, &clock, sizeof(clock));
	EXPECT_TRUE(clock_is_valid(&clock));
	enable_msr(_metadata, vcpu, MSR_KVM_SYSTEM_TIME_NEW, 0);

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		return;
	ASSERT_TRUE(slow_page_begin(self, &slow));
	call_guest(vcpu, guest_vmsave, gpa, 0x1234, 0);
	EXPECT_TRUE(slow_page_end(&slow));
	EXPECT_EQ(0, load(vcpu, gpa));
	EXPECT_EQ(0x1234, load(vcpu, gpa + offsetof(struct vmcb, save.kernel_gs_base)));
}

/* What becomes of the shared half after the conversion is no reason to exit. */
TEST_F(sealed, lose_shared_half_during_fault)
{
	struct slow_page slow = { .page = PAGE, .convert = true, .lost = true };

	make_private(self);
	if (!slow_page_begin(self, &slow))
		SKIP(return, "no userfaultfd");
	EXPECT_EQ(0, load(self->tvm.vcpu, gpa_of(PAGE)));
	pthread_join(slow.thread, NULL);
}

/*
 * Races: while KVM accesses a page, another thread converts it. Nothing may be
 * written to the shared half, or read from it, after it was converted.
 */
#define NR_RACES	100

/* Where the guest sees that it's over */
#define STOP_PAGE	(PAGE + 1)

struct race {
	FIXTURE_DATA(sealed) *self;
	bool done;
	unsigned int nr_bad;
	/* STOP_PAGE is not free for nested guests. */
	unsigned long stop_page;
	/* What the page holds while it's private, unless the guest writes to it. */
	uint64_t bad;
};

/* Let vCPUs run. Where they need the same CPU, each yield gives them a slice of time. */
static void yield_to_vcpus(void)
{
	unsigned int nr = 20;
	cpu_set_t set;

	if (!sched_getaffinity(0, sizeof(set), &set) && CPU_COUNT(&set) == 1)
		nr = 1;
	while (nr--)
		sched_yield();
}

static void *race_thread(void *data)
{
	struct race *race = data;
	uint64_t *shared = shared_page(race->self, PAGE);
	char copy[PAGE_SIZE];
	unsigned int i;

	for (i = 0; i < NR_RACES; i++) {
		TEST_ASSERT(!to_private(race->self, PAGE, 1), "Can't convert to private");
		if (race->bad)
			*shared = race->bad;
		memcpy(copy, shared, PAGE_SIZE);
		yield_to_vcpus();
		race->nr_bad += !!memcmp(copy, shared, PAGE_SIZE);
		if (race->bad)
			*shared = 0;
		TEST_ASSERT(!to_shared(race->self, PAGE, 1), "Can't convert to shared");
		yield_to_vcpus();
	}
	*shared_page(race->self, STOP_PAGE) = 1;
	WRITE_ONCE(race->done, true);
	return NULL;
}

static pthread_t start_race(FIXTURE_DATA(sealed) *self, struct race *race,
			    void *(*fn)(void *))
{
	pthread_t thread;

	race->self = self;
	memset(shared_page(self, PAGE), 0, PAGE_SIZE);
	memset(shared_page(self, STOP_PAGE), 0, PAGE_SIZE);
	TEST_ASSERT(!to_shared(self, PAGE, 2), "Can't convert to shared");
	TEST_ASSERT(!pthread_create(&thread, NULL, fn, race), "No thread");
	return thread;
}

/* What the guest has in its TLB must not outlive the conversion. */
static void wait_for_stores(const uint64_t *count, uint64_t nr)
{
	/* The one that goes on now may have been done in the old page. */
	while (READ_ONCE(*count) < nr + 2)
		sched_yield();
}

static void *tlb_thread(void *data)
{
	struct race *race = data;
	const uint64_t *count = shared_page(race->self, STOP_PAGE) + 1;
	const uint64_t *shared = shared_page(race->self, PAGE);
	uint64_t seen, nr;
	unsigned int i;

	wait_for_stores(count, 0);
	for (i = 0; i < 10 * NR_RACES; i++) {
		TEST_ASSERT(!to_private(race->self, PAGE, 1), "Can't convert to private");
		seen = READ_ONCE(*shared);
		wait_for_stores(count, READ_ONCE(*count));
		race->nr_bad += READ_ONCE(*shared) != seen;

		TEST_ASSERT(!to_shared(race->self, PAGE, 1), "Can't convert to shared");
		nr = READ_ONCE(*count);
		wait_for_stores(count, nr);
		race->nr_bad += READ_ONCE(*shared) < nr + 2;
	}
	*shared_page(race->self, STOP_PAGE) = 1;
	return NULL;
}

TEST_F(sealed, race_tlb)
{
	const uint64_t stop = gpa_of(STOP_PAGE);
	struct race race = {};
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	cpu_set_t set;

	ASSERT_EQ(0, sched_getaffinity(0, sizeof(set), &set));
	if (CPU_COUNT(&set) == 1)
		SKIP(return, "there is no other CPU whose TLB could be out of date");

	vcpu = setup_private(self);
	thread = start_race(self, &race, tlb_thread);
	call_guest(vcpu, guest_store_loop, gpa_of(PAGE), stop + 8, stop);
	pthread_join(thread, NULL);
	EXPECT_EQ(0, race.nr_bad);
}

TEST_F(sealed, race_string_io)
{
	struct kvm_vcpu *vcpu = setup_private(self);
	struct race race = {};
	unsigned int i, n = 0;
	pthread_t thread;

	thread = start_race(self, &race, race_thread);
	while (!READ_ONCE(race.done)) {
		start_guest(vcpu, guest_ins, gpa_of(PAGE), 16, 0);
		while (is_io(vcpu, STRING_PORT)) {
			for (i = 0; i < vcpu->run->io.count; i++)
				((char *)io_data(vcpu))[i] = n++;
			vcpu_run(vcpu);
		}
		finish_guest(vcpu);
	}
	pthread_join(thread, NULL);
	EXPECT_EQ(0, race.nr_bad);
}

TEST_F(sealed, race_store)
{
	struct race race = {};
	struct kvm_vcpu *vcpu;
	pthread_t thread;

	if (!force_emulation())
		SKIP(return, "no forced emulation");
	vcpu = setup_private(self);
	thread = start_race(self, &race, race_thread);
	call_guest(vcpu, guest_store_emulated_loop, gpa_of(PAGE), gpa_of(STOP_PAGE), 0);
	pthread_join(thread, NULL);
	EXPECT_EQ(0, race.nr_bad);
}

TEST_F(sealed, race_load)
{
	const uint64_t bad = 0x1bad1bad1bad1bad;
	struct race race = { .bad = bad };
	struct kvm_vcpu *vcpu;
	pthread_t thread;

	if (!force_emulation())
		SKIP(return, "no forced emulation");
	vcpu = setup_private(self);
	thread = start_race(self, &race, race_thread);
	EXPECT_EQ(0, call_guest(vcpu, guest_load_emulated_loop, gpa_of(PAGE), bad,
				gpa_of(STOP_PAGE)));
	pthread_join(thread, NULL);
	EXPECT_EQ(0, race.nr_bad);
}

TEST_F(sealed, race_pv_areas)
{
	struct kvm_vcpu *vcpu = setup_private(self);
	struct race race = {};
	pthread_t thread;

	enable_msr(_metadata, vcpu, MSR_KVM_SYSTEM_TIME_NEW, gpa_of(PAGE) + 64 + 1);
	enable_msr(_metadata, vcpu, MSR_KVM_STEAL_TIME, gpa_of(PAGE) + 128 + 1);
	thread = start_race(self, &race, race_thread);
	while (!READ_ONCE(race.done))
		touch_clock(&self->tvm);
	pthread_join(thread, NULL);
	EXPECT_EQ(0, race.nr_bad);
}

/* Both vCPUs are preempted again and again. */
TEST_F(sealed, race_preempted)
{
	struct kvm_vcpu *vcpu, *second;
	pthread_t thread, spin;
	struct race race = {};

	second = vm_vcpu_add(self->vm, 1, private_guest_code);
	vcpu = setup_private(self);
	start_second_vcpu(second);
	enable_msr(_metadata, vcpu, MSR_KVM_STEAL_TIME, gpa_of(PAGE) + 128 + 1);
	enable_msr(_metadata, second, MSR_KVM_STEAL_TIME, gpa_of(PAGE) + 192 + 1);
	pin_to_cpu_0();
	ASSERT_EQ(0, pthread_create(&spin, NULL, spin_thread, second));
	thread = start_race(self, &race, race_thread);
	while (!READ_ONCE(race.done))
		load(vcpu, gpa_of(STOP_PAGE));
	call_guest(vcpu, guest_stop_spinning, 0, 0, 0);
	pthread_join(thread, NULL);
	pthread_join(spin, NULL);
	EXPECT_EQ(0, race.nr_bad);
}

TEST_F(sealed, race_vmsave)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	struct race race = {};
	pthread_t thread;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no SVM");
	setup_private(self);
	thread = start_race(self, &race, race_thread);
	call_guest(vcpu, guest_vmsave_loop, gpa_of(PAGE), gpa_of(STOP_PAGE), 0);
	pthread_join(thread, NULL);
	EXPECT_EQ(0, race.nr_bad);
}

/*
 * The memslot is about to be moved, but can't be after all: until it's gone
 * everything in it is there.
 */
static void *move_thread(void *data)
{
	struct race *race = data;
	unsigned int i;

	for (i = 0; i < NR_RACES; i++)
		race->nr_bad += set_slot(race->self->vm, SLOT, KVM_MEM_GUEST_MEMFD, BIT_ULL(52),
					 SIZE, race->self->shared, race->self->fd, 0) != -1 ||
				errno != EINVAL;
	*shared_page(race->self, race->stop_page) = 1;
	return NULL;
}

TEST_F(sealed, race_nested_and_move)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	struct race race = { .self = self, .stop_page = PAGE + 3 };
	pthread_t thread;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no SVM");
	setup_nested(self, (guest_fn)l2_vmmcall_code);
	*shared_page(self, race.stop_page) = 0;
	ASSERT_EQ(0, pthread_create(&thread, NULL, move_thread, &race));
	EXPECT_EQ(0, call_guest(vcpu, guest_vmrun_loop, gpa_of(race.stop_page), 0, 0));
	pthread_join(thread, NULL);
	EXPECT_EQ(0, race.nr_bad);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_SEALED_MEMFD));

	return test_harness_run(argc, argv);
}
