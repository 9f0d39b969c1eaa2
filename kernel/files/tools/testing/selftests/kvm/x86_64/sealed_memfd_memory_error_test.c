// SPDX-License-Identifier: GPL-2.0
/*
 * Memory errors in private memory: a page that is lost is no longer mapped, who
 * touches it learns of it, and another one can take its place.
 */
#include <linux/kernel-page-flags.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "protected_vm.h"
#include "sealed_memfd.h"
#include "sealed_memfd_hog.h"
#include "sealed_memfd_huge.h"
#include "sealed_memfd_shared_bit.h"
#include "sealed_memfd_trace.h"

#define HWPOISON_DIR	"/sys/kernel/debug/hwpoison/"
#define SOFT_OFFLINE	"/sys/devices/system/memory/soft_offline_page"

static bool write_number(const char *path, uint64_t number)
{
	char text[32];

	snprintf(text, sizeof(text), "%#lx", number);
	return write_file(path, text);
}

static bool poison(uint64_t pfn)
{
	return write_number(HWPOISON_DIR "corrupt-pfn", pfn);
}

/* The page must have been freed. */
static bool unpoison(uint64_t pfn)
{
	return write_number(HWPOISON_DIR "unpoison-pfn", pfn);
}

static const char * const traced_events[] = { "kmem/mm_page_alloc" };
static bool tracing;

/*
 * The page frame of a sealed memfd's page can't be looked up.  But it's the one
 * page, or huge page, for userspace that fallocate() takes from the page allocator.
 */
static uint64_t traced_pfn(const char *order, const char *gfp)
{
	FILE *file = trace_open();
	uint64_t pfn, found = 0;
	char line[512];
	char *event;
	int nr = 0;

	while (fgets(line, sizeof(line), file)) {
		event = strstr(line, "mm_page_alloc: ");
		if (event && strstr(event, order) && strstr(event, gfp) &&
		    sscanf(event, "mm_page_alloc: page=%*s pfn=%li", &pfn) == 1) {
			found = pfn;
			nr++;
		}
	}
	fclose(file);
	return nr == 1 ? found : 0;
}

/* Makes one page private.  Gives its page frame, or 0 if it can't be poisoned. */
static uint64_t allocate_known(int fd, unsigned long page)
{
	const uint64_t offset = page * PAGE_SIZE;

	if (!tracing || access(HWPOISON_DIR "corrupt-pfn", W_OK))
		return 0;

	TEST_ASSERT(!fallocate(fd, PUNCH, offset, PAGE_SIZE), "fallocate() failed");
	trace_this_thread(traced_events, ARRAY_SIZE(traced_events));
	TEST_ASSERT(!fallocate(fd, 0, offset, PAGE_SIZE), "fallocate() failed");
	return traced_pfn(" order=0 ", "=GFP_HIGHUSER|");
}

static uint64_t to_known_private(FIXTURE_DATA(sealed) *self, unsigned long page)
{
	return allocate_known(self->fd, page);
}

/* The same for those of the first huge page */
static uint64_t to_known_huge(FIXTURE_DATA(sealed) *self)
{
	char enabled[32];

	if (!tracing || access(HWPOISON_DIR "corrupt-pfn", W_OK) ||
	    !huge_pages_enable(enabled, sizeof(enabled)))
		return 0;

	trace_this_thread(traced_events, ARRAY_SIZE(traced_events));
	TEST_ASSERT(!to_private(self, 0, PER_HUGE), "fallocate() failed");
	huge_pages_restore(enabled);
	return traced_pfn(" order=9 ", "__GFP_COMP");
}

/* What is converted in one go is 512 pages at most. */
#define LAST_OF_CHUNK	511

#define NOT_POISONABLE	"no hwpoison injection or no tracing"

static void expect_lost(struct __test_metadata *_metadata, struct test_vm *tvm,
			unsigned long page)
{
	expect_memory_fault(_metadata, tvm, gpa_of(page), KVM_MEMORY_EXIT_FLAG_PRIVATE, EHWPOISON);
}

/* Another page takes the place of one that the guest has touched. */
static void lose_and_replace(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self,
			     uint64_t pfn)
{
	struct test_vm *tvm = &self->tvm;

	ASSERT_TRUE(poison(pfn));
	guest_command_set(tvm, GUEST_READ, gpa_of(PAGE), 0);
	expect_lost(_metadata, tvm, PAGE);
	expect_lost(_metadata, tvm, PAGE);
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	vcpu_run(tvm->vcpu);
	EXPECT_EQ(0, guest_result(tvm));
	EXPECT_TRUE(unpoison(pfn));
}

/* Each way to touch the page, each way to go on */
static void poison_and_touch(struct __test_metadata *_metadata,
			     FIXTURE_DATA(sealed) *self, enum guest_op op, bool touched,
			     bool stay_private)
{
	struct test_vm *tvm = &self->tvm;
	uint64_t result, pfn;

	ASSERT_EQ(0, to_private(self, PAGE - 1, 3));
	pfn = to_known_private(self, PAGE);
	if (!pfn)
		SKIP(return, NOT_POISONABLE);
	guest_write(tvm, gpa_of(PAGE - 1), PRIVATE_VALUE(PAGE - 1));
	guest_write(tvm, gpa_of(PAGE + 1), PRIVATE_VALUE(PAGE + 1));
	if (touched) {
		/* A mapping that must go, or the guest goes on with the page. */
		guest_write(tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
		EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
	}
	ASSERT_TRUE(poison(pfn));

	/* The state says nothing of it. */
	EXPECT_EQ((PAGE - 1) * PAGE_SIZE, lseek(self->fd, 0, SEEK_DATA));
	EXPECT_EQ((PAGE + 2) * PAGE_SIZE, lseek(self->fd, (PAGE - 1) * PAGE_SIZE, SEEK_HOLE));

	guest_command_set(tvm, op, gpa_of(PAGE) + 8, 1);
	expect_lost(_metadata, tvm, PAGE);
	expect_lost(_metadata, tvm, PAGE);

	/* It's allocated, so this doesn't help. */
	EXPECT_EQ(0, to_private(self, PAGE, 1));
	expect_lost(_metadata, tvm, PAGE);
	EXPECT_REFUSED(EEXIST, pwrite(self->fd, self->shared, PAGE_SIZE, PAGE * PAGE_SIZE));
	expect_lost(_metadata, tvm, PAGE);

	/* The instruction is still to be done. */
	EXPECT_EQ(0, to_shared(self, PAGE, 1));
	shared_page(self, PAGE)[1] = SHARED_VALUE(0);
	if (stay_private)
		EXPECT_EQ(0, to_private(self, PAGE, 1));
	vcpu_run(tvm->vcpu);
	result = guest_result(tvm);
	if (op == GUEST_READ)
		EXPECT_EQ(stay_private ? 0 : SHARED_VALUE(0), result);
	EXPECT_EQ(stay_private || op == GUEST_READ ? SHARED_VALUE(0) : 1,
		  shared_page(self, PAGE)[1]);

	/* A new page is a good and a clear one. */
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	EXPECT_EQ(0, guest_read(tvm, gpa_of(PAGE)));
	guest_write(tvm, gpa_of(PAGE), 2);
	EXPECT_EQ(2, guest_read(tvm, gpa_of(PAGE)));

	EXPECT_EQ(PRIVATE_VALUE(PAGE - 1), guest_read(tvm, gpa_of(PAGE - 1)));
	EXPECT_EQ(PRIVATE_VALUE(PAGE + 1), guest_read(tvm, gpa_of(PAGE + 1)));
	EXPECT_TRUE(unpoison(pfn));
}

TEST_F(sealed, read)
{
	poison_and_touch(_metadata, self, GUEST_READ, true, true);
}

TEST_F(sealed, write)
{
	poison_and_touch(_metadata, self, GUEST_WRITE, true, true);
}

TEST_F(sealed, read_then_share)
{
	poison_and_touch(_metadata, self, GUEST_READ, true, false);
}

TEST_F(sealed, write_then_share)
{
	poison_and_touch(_metadata, self, GUEST_WRITE, true, false);
}

/* Not even the host has touched these. */
TEST_F(sealed, first_read)
{
	poison_and_touch(_metadata, self, GUEST_READ, false, true);
}

TEST_F(sealed, first_write)
{
	poison_and_touch(_metadata, self, GUEST_WRITE, false, true);
}

TEST_F(sealed, execute)
{
	struct test_vm *tvm = &self->tvm;
	uint64_t pfn;

	pfn = to_known_private(self, PAGE);
	if (!pfn)
		SKIP(return, NOT_POISONABLE);
	/* mov (%rdi),%rax; ret */
	guest_write(tvm, gpa_of(PAGE), 0xc3078b48);
	EXPECT_EQ(SHARED_VALUE(0), guest_run(tvm, GUEST_CALL, gpa_of(PAGE), gpa_of(0)));
	ASSERT_TRUE(poison(pfn));
	guest_command_set(tvm, GUEST_CALL, gpa_of(PAGE), gpa_of(0));
	expect_lost(_metadata, tvm, PAGE);

	/* Its content given back, it runs on. */
	*shared_page(self, PAGE) = 0xc3078b48;
	EXPECT_EQ(0, to_shared(self, PAGE, 1));
	EXPECT_EQ(PAGE_SIZE, pwrite(self->fd, shared_page(self, PAGE), PAGE_SIZE,
				    PAGE * PAGE_SIZE));
	vcpu_run(tvm->vcpu);
	EXPECT_EQ(SHARED_VALUE(0), guest_result(tvm));
	EXPECT_TRUE(unpoison(pfn));
}

/* An instruction that KVM emulates fails, and can be repeated. */
TEST_F(sealed, emulated_write)
{
	const uint64_t data[] = { 0x1122334455667788ul, 0x99aabbccddeefful };
	struct test_vm *tvm = &self->tvm;
	struct kvm_run *run = tvm->vcpu->run;
	uint64_t pfn;
	int i;

	pfn = to_known_private(self, PAGE);
	if (!pfn)
		SKIP(return, NOT_POISONABLE);
	ASSERT_TRUE(poison(pfn));

	/* Or else the guest would get an exception, too. */
	vm_enable_cap(self->vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1);
	guest_command_set(tvm, GUEST_MOVSQ, MMIO_GPA, gpa_of(PAGE));
	for (i = 0; i < 2; i++) {
		vcpu_run(tvm->vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
		memcpy(run->mmio.data, &data[i], 8);
		if (!i) {
			vcpu_run(tvm->vcpu);
			TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_INTERNAL_ERROR);
			EXPECT_EQ(KVM_INTERNAL_ERROR_EMULATION, run->internal.suberror);
			ASSERT_EQ(0, to_shared(self, PAGE, 1));
			ASSERT_EQ(0, to_private(self, PAGE, 1));
		}
	}
	vcpu_run(tvm->vcpu);
	guest_result(tvm);
	EXPECT_EQ(data[1], guest_read(tvm, gpa_of(PAGE)));
	EXPECT_EQ(SHARED_VALUE(PAGE), *shared_page(self, PAGE));
	EXPECT_TRUE(unpoison(pfn));
}

/* A clock that is lost isn't updated, neither there nor in the shared half. */
TEST_F(sealed, clock)
{
	struct test_vm *tvm = &self->tvm;
	uint64_t pfn;

	pfn = to_known_private(self, PAGE);
	if (!pfn)
		SKIP(return, NOT_POISONABLE);
	guest_write(tvm, gpa_of(PAGE), 0);
	vcpu_set_msr(tvm->vcpu, MSR_KVM_SYSTEM_TIME_NEW, gpa_of(PAGE) | 1);
	EXPECT_NE(0, guest_read(tvm, gpa_of(PAGE) + 24));
	ASSERT_TRUE(poison(pfn));
	vcpu_set_msr(tvm->vcpu, MSR_KVM_SYSTEM_TIME_NEW, gpa_of(PAGE) | 1);
	EXPECT_EQ(SHARED_VALUE(0), guest_read(tvm, gpa_of(0)));
	EXPECT_EQ(SHARED_VALUE(PAGE), *shared_page(self, PAGE));
	EXPECT_EQ(0, shared_page(self, PAGE)[3]);

	/* In a new page it is again. */
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	vcpu_set_msr(tvm->vcpu, MSR_KVM_SYSTEM_TIME_NEW, gpa_of(PAGE) | 1);
	EXPECT_NE(0, guest_read(tvm, gpa_of(PAGE) + 24));
	vcpu_set_msr(tvm->vcpu, MSR_KVM_SYSTEM_TIME_NEW, 0);
	EXPECT_TRUE(unpoison(pfn));
}

/* Nor is anything else that KVM leaves for the guest. */
TEST_F(sealed, steal_time)
{
	struct test_vm *tvm = &self->tvm;
	uint64_t pfn;

	if (!kvm_cpu_has(X86_FEATURE_KVM_STEAL_TIME))
		SKIP(return, "no steal time");
	pfn = to_known_private(self, PAGE);
	if (!pfn)
		SKIP(return, NOT_POISONABLE);
	vcpu_set_msr(tvm->vcpu, MSR_KVM_STEAL_TIME, gpa_of(PAGE) | 1);
	/* Its version, next to flags */
	EXPECT_NE(0, guest_read(tvm, gpa_of(PAGE) + 8));
	ASSERT_TRUE(poison(pfn));
	vcpu_set_msr(tvm->vcpu, MSR_KVM_STEAL_TIME, gpa_of(PAGE) | 1);
	EXPECT_EQ(SHARED_VALUE(0), guest_read(tvm, gpa_of(0)));
	EXPECT_EQ(0, shared_page(self, PAGE)[1]);

	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	vcpu_set_msr(tvm->vcpu, MSR_KVM_STEAL_TIME, gpa_of(PAGE) | 1);
	EXPECT_EQ(SHARED_VALUE(0), guest_read(tvm, gpa_of(0)));
	EXPECT_NE(0, shared_page(self, PAGE)[1]);
	vcpu_set_msr(tvm->vcpu, MSR_KVM_STEAL_TIME, 0);
	EXPECT_TRUE(unpoison(pfn));
}

/* A page table that is lost is what is touched, not the page it leads to. */
TEST_F(sealed, page_table)
{
	struct test_vm *tvm = &self->tvm;
	int level = PG_LEVEL_2M;
	uint64_t pfn, *pde;

	pfn = to_known_private(self, PAGE);
	if (!pfn)
		SKIP(return, NOT_POISONABLE);
	virt_map(self->vm, PT_GVA, OTHER_GPA, 1);
	pde = __vm_get_page_table_entry(self->vm, PT_GVA, &level);
	*pde = (*pde & ~PHYSICAL_PAGE_MASK) | gpa_of(PAGE);
	guest_write(tvm, gpa_of(PAGE), gpa_of(1) | PTE_PRESENT_MASK | PTE_WRITABLE_MASK);
	EXPECT_EQ(SHARED_VALUE(1), guest_read(tvm, PT_GVA));

	ASSERT_TRUE(poison(pfn));
	guest_command_set(tvm, GUEST_READ, PT_GVA, 0);
	expect_lost(_metadata, tvm, PAGE);
	expect_lost(_metadata, tvm, PAGE);
	*shared_page(self, PAGE) = gpa_of(2) | PTE_PRESENT_MASK | PTE_WRITABLE_MASK;
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	vcpu_run(tvm->vcpu);
	EXPECT_EQ(SHARED_VALUE(2), guest_result(tvm));
	EXPECT_TRUE(unpoison(pfn));
}

TEST_F(sealed, read_only)
{
	struct test_vm *tvm = &self->tvm;
	uint64_t pfn;
	int i;

	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD | KVM_MEM_READONLY, GPA, SIZE,
			      self->shared, self->fd, 0));
	pfn = to_known_private(self, PAGE);
	if (!pfn)
		SKIP(return, NOT_POISONABLE);
	EXPECT_EQ(0, guest_read(tvm, gpa_of(PAGE)));
	lose_and_replace(_metadata, self, pfn);

	/* What can't be written in any case is refused as that. */
	pfn = to_known_private(self, PAGE);
	ASSERT_NE(0, pfn);
	ASSERT_TRUE(poison(pfn));
	guest_command_set(tvm, GUEST_WRITE, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
	for (i = 0; i < 2; i++)
		expect_memory_fault(_metadata, tvm, gpa_of(PAGE), KVM_MEMORY_EXIT_FLAG_PRIVATE,
				    EFAULT);

	/* As shared it can be written, by userspace. */
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	vcpu_run(tvm->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
	EXPECT_EQ(gpa_of(PAGE), tvm->vcpu->run->mmio.phys_addr);
	vcpu_run(tvm->vcpu);
	guest_result(tvm);
	EXPECT_TRUE(unpoison(pfn));
}

/* Who wants it as private learns of the loss, who wants it as shared does not care. */
TEST_F(sealed, shared_bit)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = variant->type };
	int bit = kvm_check_cap(KVM_CAP_X86_SHARED_GPA_BIT);
	struct test_vm *tvm = &self->tvm;
	uint64_t pfn;
	int i;

	if (!bit)
		SKIP(return, "no shared GPA bit");

	/* A VM that has one takes the place of the first. */
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	kvm_vm_free(self->vm);
	self->vm = __vm_create(shape, 1, 64);
	tvm->vm = self->vm;
	vm_enable_shared_bit(self->vm, bit);
	tvm->vcpu = vm_vcpu_add(self->vm, 0, guest_code);
	tvm->command = addr_gva2hva(self->vm, (vm_vaddr_t)&guest_command);
	ASSERT_EQ(0, add_slot(self, SLOT, 0, NR_PAGES));
	virt_map(self->vm, GPA, GPA, NR_PAGES);
	virt_map(self->vm, GPA + SHARED_ALIAS, GPA | BIT_ULL(bit), NR_PAGES);

	pfn = to_known_private(self, PAGE);
	if (!pfn)
		SKIP(return, NOT_POISONABLE);
	guest_write(tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
	lose_and_replace(_metadata, self, pfn);

	pfn = to_known_private(self, PAGE);
	ASSERT_NE(0, pfn);
	ASSERT_TRUE(poison(pfn));
	guest_command_set(tvm, GUEST_READ, gpa_of(PAGE) + SHARED_ALIAS, 0);
	for (i = 0; i < 2; i++)
		expect_memory_fault(_metadata, tvm, gpa_of(PAGE), 0, EFAULT);
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	vcpu_run(tvm->vcpu);
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_result(tvm));
	EXPECT_TRUE(unpoison(pfn));
}

TEST_F(sealed, pre_fault)
{
	struct kvm_pre_fault_memory range = { .gpa = GPA, .size = 2 * PAGE * PAGE_SIZE };
	uint64_t pfn;

	pfn = to_known_private(self, PAGE);
	if (!pfn)
		SKIP(return, NOT_POISONABLE);
	ASSERT_TRUE(poison(pfn));
	EXPECT_EQ(0, __vcpu_ioctl(self->tvm.vcpu, KVM_PRE_FAULT_MEMORY, &range));
	EXPECT_EQ(gpa_of(PAGE), range.gpa);
	EXPECT_REFUSED(EHWPOISON, __vcpu_ioctl(self->tvm.vcpu, KVM_PRE_FAULT_MEMORY, &range));
	EXPECT_EQ(gpa_of(PAGE), range.gpa);
	EXPECT_EQ(0, to_shared(self, PAGE, 1));
	EXPECT_EQ(0, __vcpu_ioctl(self->tvm.vcpu, KVM_PRE_FAULT_MEMORY, &range));
	EXPECT_EQ(0, range.size);
	EXPECT_TRUE(unpoison(pfn));
}

/* Who leaves it and comes back finds it. */
TEST_F(sealed, memslot_changes)
{
	struct test_vm *tvm = &self->tvm;
	uint64_t pfn;

	pfn = to_known_private(self, PAGE);
	if (!pfn)
		SKIP(return, NOT_POISONABLE);
	guest_write(tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	/* No one is there to be told. */
	ASSERT_TRUE(poison(pfn));
	ASSERT_EQ(0, add_slot(self, SLOT, 0, NR_PAGES));
	guest_command_set(tvm, GUEST_READ, gpa_of(PAGE), 0);
	expect_lost(_metadata, tvm, PAGE);

	ASSERT_EQ(0, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, OTHER_GPA, SIZE,
			      self->shared, self->fd, 0));
	ASSERT_EQ(0, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
			      self->shared, self->fd, 0));
	expect_lost(_metadata, tvm, PAGE);
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	vcpu_run(tvm->vcpu);
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_result(tvm));
	EXPECT_TRUE(unpoison(pfn));
}

/* It's about the private half, and not in the dirty log. */
TEST_F(sealed, dirty_log)
{
	unsigned long bitmap[NR_PAGES / 64];
	uint64_t pfn;

	pfn = to_known_private(self, PAGE);
	if (!pfn)
		SKIP(return, NOT_POISONABLE);
	ASSERT_EQ(0, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD | KVM_MEM_LOG_DIRTY_PAGES,
			      GPA, SIZE, self->shared, self->fd, 0));
	ASSERT_TRUE(poison(pfn));
	kvm_vm_get_dirty_log(self->vm, SLOT, bitmap);
	EXPECT_EQ(0, bitmap[0]);
	EXPECT_EQ(SHARED_VALUE(PAGE), *shared_page(self, PAGE));
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	kvm_vm_get_dirty_log(self->vm, SLOT, bitmap);
	EXPECT_EQ(BIT(PAGE), bitmap[0]);
	EXPECT_TRUE(unpoison(pfn));
}

/* Maintenance can have other pages: these don't move. */
TEST_F(sealed, soft_offline)
{
	struct test_vm *tvm = &self->tvm;
	uint64_t pfn;

	if (access(SOFT_OFFLINE, W_OK))
		SKIP(return, "no soft_offline_page");
	pfn = to_known_private(self, PAGE);
	if (!pfn)
		SKIP(return, NOT_POISONABLE);
	EXPECT_FALSE(write_number(SOFT_OFFLINE, pfn * PAGE_SIZE));
	EXPECT_EQ(EBUSY, errno);
	guest_write(tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
	EXPECT_FALSE(write_number(SOFT_OFFLINE, pfn * PAGE_SIZE));
	EXPECT_EQ(EBUSY, errno);
	EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
	ASSERT_EQ(0, to_private(self, 0, NR_PAGES));
	EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
	EXPECT_EQ(SHARED_VALUE(PAGE), *shared_page(self, PAGE));
}

/* What is lost of a huge page stays so, until there's another page in its place. */
static void expect_lost_until_replaced(struct __test_metadata *_metadata,
				       FIXTURE_DATA(sealed) *self)
{
	struct test_vm *tvm = &self->tvm;

	guest_command_set(tvm, GUEST_READ, gpa_of(PAGE), 0);
	expect_lost(_metadata, tvm, PAGE);
	expect_lost(_metadata, tvm, PAGE);
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	vcpu_run(tvm->vcpu);
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_result(tvm));
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	EXPECT_EQ(0, guest_read(tvm, gpa_of(PAGE)));
}

/* One page is lost, its neighbours are not, and no longer mapped as a huge one. */
TEST_F(sealed, huge_page)
{
	struct test_vm *tvm = &self->tvm;
	uint64_t pfn, huge, i, bad = 0;

	pfn = to_known_huge(self);
	if (!pfn)
		SKIP(return, NOT_POISONABLE ", or no huge page");

	guest_read(tvm, gpa_of(NR_PAGES - 1));
	huge = vm_get_stat(self->vm, "pages_2m");
	for (i = 0; i < 16; i++)
		guest_write(tvm, gpa_of(i), PRIVATE_VALUE(i));
	EXPECT_EQ(huge + 1, vm_get_stat(self->vm, "pages_2m"));
	ASSERT_TRUE(poison(pfn + PAGE));
	EXPECT_EQ(huge, vm_get_stat(self->vm, "pages_2m"));
	expect_lost_until_replaced(_metadata, self);
	guest_write(tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));

	for (i = 0; i < 16; i++)
		bad += guest_read(tvm, gpa_of(i)) != PRIVATE_VALUE(i);
	EXPECT_EQ(0, bad);
	EXPECT_EQ(huge, vm_get_stat(self->vm, "pages_2m"));
	EXPECT_TRUE(unpoison(pfn + PAGE));
}

/* The same, with nobody having been there yet */
TEST_F(sealed, huge_page_first_read)
{
	struct test_vm *tvm = &self->tvm;
	uint64_t pfn;

	pfn = to_known_huge(self);
	if (!pfn)
		SKIP(return, NOT_POISONABLE ", or no huge page");

	ASSERT_TRUE(poison(pfn + PAGE));
	EXPECT_EQ(0, guest_read(tvm, gpa_of(PAGE - 1)));
	EXPECT_EQ(0, guest_read(tvm, gpa_of(PAGE + 1)));
	guest_command_set(tvm, GUEST_READ, gpa_of(PAGE), 0);
	expect_lost(_metadata, tvm, PAGE);
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	vcpu_run(tvm->vcpu);
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_result(tvm));
	EXPECT_TRUE(unpoison(pfn + PAGE));
}

/*
 * Has a page of a huge one be lost that is in use, so that it can't be split.  Gives
 * its page frame, or 0 if that can't be had.
 */
static uint64_t lose_unsplit(FIXTURE_DATA(sealed) *self)
{
	struct page_user user = { .vcpu = self->tvm.vcpu, .gpa = gpa_of(0) };
	unsigned long nr_huge, i;
	uint64_t pfn;

	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY) || !find_cpus())
		return 0;

	for (i = 0; i < 100; i++) {
		pfn = to_known_huge(self);
		if (!pfn)
			return 0;

		nr_huge = huge_pages_in_files();
		guest_write(&self->tvm, gpa_of(PAGE - 1), PRIVATE_VALUE(PAGE - 1));
		guest_write(&self->tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
		guest_write(&self->tvm, gpa_of(PAGE + 1), PRIVATE_VALUE(PAGE + 1));
		page_user_begin(&user);
		/* It is said to fail if it does not split. */
		poison(pfn + PAGE);
		page_user_end(&user);
		if (huge_pages_in_files() == nr_huge)
			return pfn + PAGE;

		TEST_ASSERT(!to_shared(self, 0, PER_HUGE) && unpoison(pfn + PAGE),
			    "Can't undo it");
	}
	TEST_FAIL("It was never in use");
	return 0;
}

/* One page is lost, its neighbours are not, though they can't be told apart. */
TEST_F(sealed, huge_page_in_use)
{
	struct test_vm *tvm = &self->tvm;
	uint64_t pfn, huge;

	huge = vm_get_stat(self->vm, "pages_2m");
	pfn = lose_unsplit(self);
	if (!pfn)
		SKIP(return, NOT_POISONABLE ", or no huge page");

	EXPECT_EQ(huge, vm_get_stat(self->vm, "pages_2m"));
	expect_lost_until_replaced(_metadata, self);
	EXPECT_EQ(PRIVATE_VALUE(PAGE - 1), guest_read(tvm, gpa_of(PAGE - 1)));
	EXPECT_EQ(PRIVATE_VALUE(PAGE + 1), guest_read(tvm, gpa_of(PAGE + 1)));
	EXPECT_EQ(huge, vm_get_stat(self->vm, "pages_2m"));
	EXPECT_TRUE(unpoison(pfn));
}

static uint64_t page_flags(uint64_t pfn)
{
	int fd = open("/proc/kpageflags", O_RDONLY);
	uint64_t flags = 0;

	TEST_ASSERT(pread(fd, &flags, sizeof(flags), pfn * sizeof(flags)) == sizeof(flags),
		    "Can't read /proc/kpageflags");
	close(fd);
	return flags;
}

/*
 * It isn't used for anything else when it's no longer the guest's.  That is for good,
 * as such pages can't be unpoisoned.
 */
TEST_F(sealed, huge_page_in_use_then_close)
{
	const uint64_t lost = BIT_ULL(KPF_HWPOISON) | BIT_ULL(KPF_COMPOUND_TAIL);
	uint64_t pfn;

	pfn = lose_unsplit(self);
	if (!pfn)
		SKIP(return, NOT_POISONABLE ", or no huge page");

	kvm_vm_free(self->vm);
	self->vm = NULL;
	close(self->fd);
	self->fd = -1;
	EXPECT_EQ(lost, page_flags(pfn) & lost);
}

/*
 * Errors while the guest is at it
 */
struct toucher {
	struct test_vm *tvm;
	bool stop;
	/* How often it got through, and how often not. */
	unsigned long nr_done, nr_lost;
};

/* Writes, reads what it wrote some time or zero, waits for a lost page's heir. */
static void *touch_all_the_time(void *data)
{
	struct toucher *toucher = data;
	struct test_vm *tvm = toucher->tvm;
	uint64_t n, result, gpa = gpa_of(PAGE) + 8;

	for (n = 1; !READ_ONCE(toucher->stop); n++) {
		if (n & 1)
			guest_command_set(tvm, GUEST_WRITE, gpa, PRIVATE_VALUE(n));
		else
			guest_command_set(tvm, GUEST_READ, gpa, 0);
		while (_vcpu_run(tvm->vcpu)) {
			TEST_ASSERT(errno == EHWPOISON &&
				    tvm->vcpu->run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
				    tvm->vcpu->run->memory_fault.gpa == gpa_of(PAGE),
				    "Unexpected failure: %d", errno);
			WRITE_ONCE(toucher->nr_lost, toucher->nr_lost + 1);
			usleep(1000);
		}
		result = guest_result(tvm);
		TEST_ASSERT(n & 1 || !result || result - PRIVATE_VALUE(0) < n,
			    "Read %lx before %lx", result, PRIVATE_VALUE(n));
		WRITE_ONCE(toucher->nr_done, toucher->nr_done + 1);
	}
	return NULL;
}

static void wait_for_more(unsigned long *counter)
{
	unsigned long seen = READ_ONCE(*counter);

	while (READ_ONCE(*counter) == seen)
		usleep(100);
}

TEST_F(sealed, while_guest_runs)
{
	struct toucher toucher = { .tvm = &self->tvm };
	pthread_t thread;
	uint64_t pfn;
	int i;

	pfn = to_known_private(self, PAGE);
	if (!pfn)
		SKIP(return, NOT_POISONABLE);
	ASSERT_EQ(0, pthread_create(&thread, NULL, touch_all_the_time, &toucher));
	for (i = 0; i < 3; i++) {
		wait_for_more(&toucher.nr_done);
		/* It's lost also if a fault that starts over still holds it. */
		ASSERT_TRUE(poison(pfn) || errno == EBUSY);
		/* One that was on its way may still get through. */
		wait_for_more(&toucher.nr_lost);
		ASSERT_EQ(0, to_shared(self, PAGE, 1));
		/* A fault that has just found it lost lets go of it soon. */
		while (!unpoison(pfn)) {
			ASSERT_EQ(EBUSY, errno);
			usleep(100);
		}
		pfn = to_known_private(self, PAGE);
		if (!pfn)
			break;
	}
	WRITE_ONCE(toucher.stop, true);
	pthread_join(thread, NULL);
	TH_LOG("%lu accesses, %d errors", toucher.nr_done, i);
}

struct changer {
	FIXTURE_DATA(sealed) *self;
	unsigned long page;
	unsigned long nr_pages;
	bool private;
	pthread_barrier_t barrier;
	int spin;
};

static void *change_once(void *data)
{
	struct changer *changer = data;
	volatile int n;

	pthread_barrier_wait(&changer->barrier);
	for (n = 0; n < changer->spin; n++)
		;
	return (void *)(long)(changer->private ?
			      to_private(changer->self, changer->page, changer->nr_pages) :
			      to_shared(changer->self, changer->page, changer->nr_pages));
}

/* An error while that is converted.  Was there time for it? */
static bool poison_while_changing(struct __test_metadata *_metadata, struct changer *changer,
				  uint64_t pfn)
{
	pthread_t thread;
	bool poisoned;
	void *ret;

	pthread_barrier_init(&changer->barrier, NULL, 2);
	ASSERT_EQ(0, pthread_create(&thread, NULL, change_once, changer));
	pthread_barrier_wait(&changer->barrier);
	poisoned = poison(pfn);
	pthread_join(thread, &ret);
	pthread_barrier_destroy(&changer->barrier);
	EXPECT_EQ(NULL, ret);
	return poisoned;
}

/* The error comes while the page is freed, or to a free one. */
TEST_F(sealed, race_with_punch)
{
	struct changer changer = { .self = self, .page = PAGE, .nr_pages = 1 };
	struct test_vm *tvm = &self->tvm;
	uint64_t pfn;
	int i;

	for (i = 0; i < 4; i++) {
		pfn = to_known_private(self, PAGE);
		if (!pfn)
			SKIP(return, NOT_POISONABLE);
		guest_write(tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
		changer.spin = i * 2000;
		poison_while_changing(_metadata, &changer, pfn);

		EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
		ASSERT_EQ(0, to_private(self, PAGE, 1));
		EXPECT_EQ(0, guest_read(tvm, gpa_of(PAGE)));
		ASSERT_EQ(0, to_shared(self, PAGE, 1));
		unpoison(pfn);
	}
}

/* The last page of a chunk: the others are gone by then, locked one by one. */
TEST_F(sealed, race_with_long_punch)
{
	struct changer changer = { .self = self, .nr_pages = NR_PAGES };
	struct test_vm *tvm = &self->tvm;
	uint64_t pfn;
	int i;

	for (i = 0; i < 4; i++) {
		pfn = to_known_private(self, LAST_OF_CHUNK);
		if (!pfn)
			SKIP(return, NOT_POISONABLE);
		ASSERT_EQ(0, to_private(self, 0, NR_PAGES));
		guest_write(tvm, gpa_of(LAST_OF_CHUNK), PRIVATE_VALUE(0));
		poison_while_changing(_metadata, &changer, pfn);

		EXPECT_EQ(0, lseek(self->fd, 0, SEEK_HOLE));
		EXPECT_EQ(-1, lseek(self->fd, 0, SEEK_DATA));
		EXPECT_EQ(SHARED_VALUE(LAST_OF_CHUNK),
			  guest_read(tvm, gpa_of(LAST_OF_CHUNK)));
		unpoison(pfn);
	}
}

/* Pages are allocated around it. */
TEST_F(sealed, race_with_long_fallocate)
{
	struct changer changer = { .self = self, .nr_pages = NR_PAGES, .private = true };
	struct test_vm *tvm = &self->tvm;
	uint64_t pfn;
	int i;

	for (i = 0; i < 4; i++) {
		pfn = to_known_private(self, LAST_OF_CHUNK);
		if (!pfn)
			SKIP(return, NOT_POISONABLE);
		guest_write(tvm, gpa_of(LAST_OF_CHUNK), PRIVATE_VALUE(0));
		ASSERT_TRUE(poison_while_changing(_metadata, &changer, pfn));

		EXPECT_EQ(SIZE, lseek(self->fd, 0, SEEK_HOLE));
		EXPECT_EQ(0, guest_read(tvm, gpa_of(LAST_OF_CHUNK - 1)));
		guest_command_set(tvm, GUEST_READ, gpa_of(LAST_OF_CHUNK), 0);
		expect_lost(_metadata, tvm, LAST_OF_CHUNK);
		ASSERT_EQ(0, to_shared(self, 0, NR_PAGES));
		vcpu_run(tvm->vcpu);
		EXPECT_EQ(SHARED_VALUE(LAST_OF_CHUNK), guest_result(tvm));
		EXPECT_TRUE(unpoison(pfn));
	}
}

/* Gone with the VM, and with the file. */
TEST_F(sealed, never_replaced)
{
	uint64_t pfn;

	pfn = to_known_private(self, PAGE);
	if (!pfn)
		SKIP(return, NOT_POISONABLE);
	guest_write(&self->tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
	ASSERT_TRUE(poison(pfn));
	guest_command_set(&self->tvm, GUEST_READ, gpa_of(PAGE), 0);
	expect_lost(_metadata, &self->tvm, PAGE);
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	close(self->fd);
	self->fd = -1;
	EXPECT_TRUE(unpoison(pfn));
}

static void expect_pvm_fault(struct __test_metadata *_metadata, struct pvm *p, uint64_t kind,
			     int error)
{
	EXPECT_REFUSED(error, _vcpu_run(p->vcpu));
	EXPECT_EQ(KVM_EXIT_MEMORY_FAULT, p->vcpu->run->exit_reason);
	EXPECT_EQ(kind, p->vcpu->run->memory_fault.flags);
}

static int punch_page(struct pvm *p, unsigned long page)
{
	return fallocate(p->fd, PUNCH, page * PAGE_SIZE, PAGE_SIZE);
}

/* A loss is nothing that a VMM can claim, to give a guest zeroes instead. */
TEST_F(protected, lost)
{
	struct pvm *p = self->p;
	uint64_t pfns[2];
	int i;

	if (!p)
		return;
	for (i = 0; i < 2; i++) {
		pfns[i] = allocate_known(p->fd, PAGE + i);
		if (!pfns[i])
			SKIP(return, NOT_POISONABLE);
		pvm_write(p, gva_of(PAGE + i, PRIVATE), PRIVATE_VALUE(PAGE));
		ASSERT_TRUE(poison(pfns[i]));
	}

	/* Unless the guest wants to be rid of it. */
	pvm_start(p, guest_load, gva_of(PAGE, SHARED), 0, 0, 0);
	expect_pvm_fault(_metadata, p, SHARED, EFAULT);
	EXPECT_REFUSED_IF_PROTECTED(EPERM, fallocate(p->fd, PUNCH, PAGE * PAGE_SIZE,
						     2 * PAGE_SIZE));
	EXPECT_EQ(0, punch_page(p, PAGE));
	vcpu_run(p->vcpu);
	EXPECT_EQ(0, pvm_result(p));
	EXPECT_TRUE(unpoison(pfns[0]));
	if (!self->is_protected) {
		EXPECT_TRUE(unpoison(pfns[1]));
		return;
	}

	pvm_start(p, guest_load, gva_of(PAGE + 1, PRIVATE), 0, 0, 0);
	expect_pvm_fault(_metadata, p, PRIVATE, EHWPOISON);
	EXPECT_REFUSED(EPERM, punch_page(p, PAGE + 1));
	EXPECT_EQ(0, fallocate(p->fd, 0, (PAGE + 1) * PAGE_SIZE, PAGE_SIZE));
	expect_pvm_fault(_metadata, p, PRIVATE, EHWPOISON);

	/* The VM is gone. */
	kvm_vm_release(p->vm);
	p->vm = NULL;
	EXPECT_EQ(0, punch_page(p, PAGE + 1));
	EXPECT_TRUE(unpoison(pfns[1]));
}

int main(int argc, char *argv[])
{
	int r;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_SEALED_MEMFD));

	tracing = trace_start(traced_events, ARRAY_SIZE(traced_events));
	r = test_harness_run(argc, argv);
	trace_stop();
	return r;
}
