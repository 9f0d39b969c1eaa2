// SPDX-License-Identifier: GPL-2.0
/*
 * Huge pages in guest-sealed memfds: where they are mapped as such, where they must
 * not be, and what becomes of that.
 */
#include <pthread.h>
#include <string.h>

#include "sealed_memfd_hog.h"
#include "sealed_memfd_huge.h"
#include "sealed_memfd_l2.h"
#include "sealed_memfd_shared_bit_fixture.h"

/* What a memslot consists of */
#define NR_HUGE		(NR_PAGES / PER_HUGE)

#define NO_HUGE_PAGES	"no huge pages to be had"

/* How often to do something, at least, while something else goes on. */
#define RACE_ITERATIONS	100

/* Those of the guest itself */
static uint64_t other_huge;

/* How many are mapped. */
static uint64_t nr_huge(FIXTURE_DATA(sealed) *self)
{
	/* With what the guest needs to do anything. */
	guest_read(&self->tvm, (uint64_t)&guest_command);
	return vm_get_stat(self->vm, "pages_2m") - other_huge;
}

static void count_others(FIXTURE_DATA(sealed) *self)
{
	other_huge = 0;
	other_huge = nr_huge(self);
}

/* Converts pages, and tells if they are huge ones as far as they can be. */
static bool to_huge(FIXTURE_DATA(sealed) *self, unsigned long page, unsigned long nr_pages)
{
	unsigned long first = round_up(page, PER_HUGE) / PER_HUGE;
	unsigned long last = (page + nr_pages) / PER_HUGE;
	unsigned long before = huge_pages_in_files();

	TEST_ASSERT(!to_private(self, page, nr_pages), "Can't convert to private");
	return huge_pages_in_files() == before + last - first;
}

static int set_slot_at(FIXTURE_DATA(sealed) *self, unsigned long page, unsigned long private_page,
		       uint32_t flags)
{
	return set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD | flags, gpa_of(page), SIZE,
			self->shared, self->fd, private_page * PAGE_SIZE);
}

/*
 * Has the memslot, and each of its halves, begin at a number of pages after where a
 * huge one does, with a value in each page of the shared half.
 */
static void place(FIXTURE_DATA(sealed) *self, unsigned long page, unsigned long shared_page,
		  unsigned long private_page)
{
	unsigned long i;
	char *shared;

	shared = mmap(NULL, 3 * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	TEST_ASSERT(shared != MAP_FAILED, __KVM_SYSCALL_ERROR("mmap()", -1));
	shared = (void *)round_up((unsigned long)shared, SZ_2M);
	TEST_ASSERT(!madvise(shared, SIZE + SZ_2M, MADV_HUGEPAGE),
		    __KVM_SYSCALL_ERROR("madvise()", -1));
	shared += shared_page * PAGE_SIZE;
	for (i = 0; i < NR_PAGES; i++)
		*(uint64_t *)(shared + i * PAGE_SIZE) = SHARED_VALUE(i);

	TEST_ASSERT(!delete_slot(self->vm, SLOT), "Can't delete the memslot");
	self->shared = shared;
	TEST_ASSERT(!set_slot_at(self, page, private_page, 0), "Can't create the memslot");
	count_others(self);
}

static void write_pages(FIXTURE_DATA(sealed) *self, unsigned long page, unsigned long nr_pages)
{
	unsigned long i;

	for (i = page; i < page + nr_pages; i++)
		guest_write(&self->tvm, gpa_of(i), PRIVATE_VALUE(i));
}

/* How many of them are not as they were written. */
static unsigned long nr_bad(FIXTURE_DATA(sealed) *self, unsigned long page,
			    unsigned long nr_pages)
{
	unsigned long i, bad = 0;

	for (i = page; i < page + nr_pages; i++)
		bad += guest_read(&self->tvm, gpa_of(i)) != PRIVATE_VALUE(i);
	return bad;
}

TEST_F(sealed, mapped)
{
	uint64_t small, i, bad = 0;

	place(self, 0, 0, 0);
	if (!to_huge(self, 0, NR_PAGES))
		SKIP(return, NO_HUGE_PAGES);
	EXPECT_EQ(0, nr_huge(self));
	EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(PAGE)));
	EXPECT_EQ(1, nr_huge(self));
	guest_write(&self->tvm, gpa_of(NR_PAGES - 1), 1);
	EXPECT_EQ(NR_HUGE, nr_huge(self));

	/* That's all that it takes. */
	small = vm_get_stat(self->vm, "pages_4k");
	write_pages(self, 0, NR_PAGES);
	EXPECT_EQ(0, nr_bad(self, 0, NR_PAGES));
	EXPECT_EQ(NR_HUGE, nr_huge(self));
	EXPECT_EQ(small, vm_get_stat(self->vm, "pages_4k"));
	for (i = 0; i < NR_PAGES; i++)
		bad += *shared_page(self, i) != SHARED_VALUE(i);
	EXPECT_EQ(0, bad);
}

/* Whatever is done to the shared half */
TEST_F(sealed, stay_mapped)
{
	place(self, 0, 0, 0);
	if (!to_huge(self, 0, PER_HUGE))
		SKIP(return, NO_HUGE_PAGES);
	write_pages(self, PAGE, 1);
	EXPECT_EQ(1, nr_huge(self));
	ASSERT_EQ(0, madvise(shared_page(self, 8), PAGE_SIZE, MADV_DONTNEED));
	ASSERT_EQ(0, mprotect(shared_page(self, 16), 8 * PAGE_SIZE, PROT_NONE));
	EXPECT_EQ(1, nr_huge(self));
	ASSERT_EQ(0, madvise(self->shared, SIZE, MADV_DONTNEED));
	EXPECT_EQ(1, nr_huge(self));
	ASSERT_EQ(0, munmap(self->shared, SZ_2M));
	EXPECT_EQ(1, nr_huge(self));
	EXPECT_EQ(0, nr_bad(self, PAGE, 1));
}

TEST_F(sealed, convert_one_page)
{
	struct test_vm *tvm = &self->tvm;
	const unsigned long page = 100;
	int i;

	place(self, 0, 0, 0);
	if (!to_huge(self, 0, NR_PAGES))
		SKIP(return, NO_HUGE_PAGES);
	write_pages(self, 0, NR_PAGES);
	EXPECT_EQ(NR_HUGE, nr_huge(self));

	/* The neighbours stay as they are, and the other huge page stays mapped. */
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, to_shared(self, page, 1));
		EXPECT_EQ(NR_HUGE - 1, nr_huge(self));
		EXPECT_EQ(SHARED_VALUE(page) + i, guest_read(tvm, gpa_of(page)));
		guest_write(tvm, gpa_of(page), SHARED_VALUE(page) + i + 1);
		EXPECT_EQ(SHARED_VALUE(page) + i + 1, *shared_page(self, page));
		EXPECT_EQ(0, nr_bad(self, 0, page));
		EXPECT_EQ(0, nr_bad(self, page + 1, NR_PAGES - page - 1));
		EXPECT_EQ(NR_HUGE - 1, nr_huge(self));

		ASSERT_EQ(0, to_private(self, page, 1));
		EXPECT_EQ(0, guest_read(tvm, gpa_of(page)));
		guest_write(tvm, gpa_of(page), PRIVATE_VALUE(page));
		EXPECT_EQ(SHARED_VALUE(page) + i + 1, *shared_page(self, page));
		EXPECT_EQ(0, nr_bad(self, 0, NR_PAGES));
	}

	/* It takes all of them to get a new one. */
	ASSERT_EQ(0, to_shared(self, 0, PER_HUGE));
	if (!to_huge(self, 0, PER_HUGE))
		SKIP(return, NO_HUGE_PAGES);
	EXPECT_EQ(0, guest_read(tvm, gpa_of(0)));
	EXPECT_EQ(0, guest_read(tvm, gpa_of(page)));
	EXPECT_EQ(NR_HUGE, nr_huge(self));
}

/* Pages become a huge one, with what is in them, if all of it is asked for. */
TEST_F(sealed, collapse)
{
	const unsigned long page = 100;

	place(self, 0, 0, 0);
	if (!to_huge(self, 0, NR_PAGES))
		SKIP(return, NO_HUGE_PAGES);
	write_pages(self, 0, NR_PAGES);

	ASSERT_EQ(0, to_shared(self, page, 1));
	EXPECT_EQ(SHARED_VALUE(page), guest_read(&self->tvm, gpa_of(page)));
	EXPECT_EQ(0, nr_bad(self, 0, page));
	EXPECT_EQ(NR_HUGE - 1, nr_huge(self));
	if (!to_huge(self, 0, PER_HUGE))
		SKIP(return, NO_HUGE_PAGES);
	EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(page)));
	EXPECT_EQ(NR_HUGE, nr_huge(self));
	write_pages(self, page, 1);
	EXPECT_EQ(0, nr_bad(self, 0, NR_PAGES));
	EXPECT_EQ(SHARED_VALUE(page), *shared_page(self, page));

	/* Some that were used, and some that were not */
	ASSERT_EQ(0, to_shared(self, 0, PER_HUGE));
	ASSERT_EQ(0, to_private(self, 0, 8));
	ASSERT_EQ(0, to_private(self, PER_HUGE - 1, 1));
	write_pages(self, 2, 2);
	if (!to_huge(self, 0, PER_HUGE))
		SKIP(return, NO_HUGE_PAGES);
	EXPECT_EQ(0, nr_bad(self, 2, 2));
	EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(1)));
	EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(page)));
	EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(PER_HUGE - 1)));
	EXPECT_EQ(NR_HUGE, nr_huge(self));
}

/* As long as part of a huge page can't be freed alone all of it stays as it is. */
TEST_F(sealed, convert_what_is_in_use)
{
	struct page_user user = { .vcpu = self->tvm.vcpu, .gpa = gpa_of(0) };
	const unsigned long page = 100;
	int i, ret = 0;

	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
		SKIP(return, "no KVM_CAP_PRE_FAULT_MEMORY");
	if (!find_cpus())
		SKIP(return, "one CPU only");

	place(self, 0, 0, 0);
	for (i = 0; i < 100 && !ret; i++) {
		ASSERT_EQ(0, to_shared(self, 0, PER_HUGE));
		if (!to_huge(self, 0, PER_HUGE))
			SKIP(return, NO_HUGE_PAGES);
		write_pages(self, page - 1, 3);
		page_user_begin(&user);
		ret = to_shared(self, page, 1) ? errno : 0;
		page_user_end(&user);
	}
	EXPECT_EQ(EBUSY, ret);
	EXPECT_EQ(0, lseek(self->fd, 0, SEEK_DATA));
	EXPECT_EQ(SZ_2M, lseek(self->fd, 0, SEEK_HOLE));
	EXPECT_EQ(0, nr_bad(self, page - 1, 3));
	EXPECT_EQ(1, nr_huge(self));

	ASSERT_EQ(0, to_shared(self, page, 1));
	EXPECT_EQ(SHARED_VALUE(page), guest_read(&self->tvm, gpa_of(page)));
	EXPECT_EQ(0, nr_bad(self, page - 1, 1));
	EXPECT_EQ(0, nr_bad(self, page + 1, 1));
}

/* Private pages that are not in one piece, and shared ones that are */
TEST_F(sealed, not_all_private)
{
	place(self, 0, 0, 0);
	guest_read(&self->tvm, gpa_of(0));
	guest_read(&self->tvm, gpa_of(PER_HUGE));
	if (nr_huge(self) != NR_HUGE)
		SKIP(return, NO_HUGE_PAGES);

	ASSERT_EQ(0, to_private(self, 0, PER_HUGE - 1));
	write_pages(self, 0, 2);
	EXPECT_EQ(SHARED_VALUE(PER_HUGE - 1), guest_read(&self->tvm, gpa_of(PER_HUGE - 1)));
	EXPECT_EQ(NR_HUGE - 1, nr_huge(self));
	ASSERT_EQ(0, to_private(self, PER_HUGE - 1, 1));
	EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(PER_HUGE - 1)));
	EXPECT_EQ(0, nr_bad(self, 0, 2));
	EXPECT_EQ(SHARED_VALUE(PER_HUGE), guest_read(&self->tvm, gpa_of(PER_HUGE)));
	EXPECT_EQ(NR_HUGE - 1, nr_huge(self));
}

/*
 * Alignment
 */
TEST_F(sealed, shared_half_misaligned)
{
	place(self, 0, 1, 0);
	EXPECT_EQ(SHARED_VALUE(0), guest_read(&self->tvm, gpa_of(0)));
	EXPECT_EQ(SHARED_VALUE(PER_HUGE), guest_read(&self->tvm, gpa_of(PER_HUGE)));
	EXPECT_EQ(0, nr_huge(self));

	if (!to_huge(self, 0, NR_PAGES))
		SKIP(return, NO_HUGE_PAGES);
	write_pages(self, PAGE, 2);
	write_pages(self, NR_PAGES - 1, 1);
	EXPECT_EQ(NR_HUGE, nr_huge(self));

	ASSERT_EQ(0, to_shared(self, 0, PER_HUGE));
	EXPECT_EQ(SHARED_VALUE(0), guest_read(&self->tvm, gpa_of(0)));
	EXPECT_EQ(SHARED_VALUE(PER_HUGE - 1), guest_read(&self->tvm, gpa_of(PER_HUGE - 1)));
	EXPECT_EQ(NR_HUGE - 1, nr_huge(self));
	EXPECT_EQ(0, nr_bad(self, NR_PAGES - 1, 1));
}

TEST_F(sealed, private_half_misaligned)
{
	uint64_t huge;

	place(self, 0, 0, 1);
	EXPECT_EQ(SHARED_VALUE(0), guest_read(&self->tvm, gpa_of(0)));
	EXPECT_EQ(SHARED_VALUE(PER_HUGE), guest_read(&self->tvm, gpa_of(PER_HUGE)));
	huge = nr_huge(self);

	if (!to_huge(self, 0, NR_PAGES + PER_HUGE))
		SKIP(return, NO_HUGE_PAGES);
	write_pages(self, 0, NR_PAGES);
	EXPECT_EQ(0, nr_bad(self, 0, NR_PAGES));
	EXPECT_EQ(0, nr_huge(self));

	ASSERT_EQ(0, to_shared(self, 0, NR_PAGES + PER_HUGE));
	EXPECT_EQ(SHARED_VALUE(0), guest_read(&self->tvm, gpa_of(0)));
	EXPECT_EQ(SHARED_VALUE(PER_HUGE), guest_read(&self->tvm, gpa_of(PER_HUGE)));
	EXPECT_EQ(huge, nr_huge(self));
	if (huge != NR_HUGE)
		SKIP(return, NO_HUGE_PAGES);
}

/* One that is in the memslot as a whole, and two of which there are parts */
TEST_F(sealed, at_ends_of_memslot)
{
	place(self, PAGE, 0, PAGE);
	if (!to_huge(self, 0, 2 * NR_PAGES))
		SKIP(return, NO_HUGE_PAGES);
	write_pages(self, PAGE, NR_PAGES);
	EXPECT_EQ(0, nr_bad(self, PAGE, NR_PAGES));
	EXPECT_EQ(1, nr_huge(self));
}

/*
 * What is done to memslots
 */
TEST_F(sealed, dirty_log)
{
	unsigned long bitmap[NR_PAGES / 64];
	struct test_vm *tvm = &self->tvm;
	int i;

	place(self, 0, 0, 0);
	if (!to_huge(self, 0, NR_PAGES))
		SKIP(return, NO_HUGE_PAGES);
	write_pages(self, PAGE, 2);
	write_pages(self, NR_PAGES - 1, 1);

	for (i = 0; i < 3; i++) {
		EXPECT_EQ(NR_HUGE, nr_huge(self));
		ASSERT_EQ(0, set_slot_at(self, 0, 0, KVM_MEM_LOG_DIRTY_PAGES));
		EXPECT_EQ(0, nr_huge(self));
		kvm_vm_get_dirty_log(self->vm, SLOT, bitmap);
		EXPECT_EQ(0, bitmap[0]);
		write_pages(self, PAGE, 1);
		EXPECT_EQ(0, nr_bad(self, PAGE + 1, 1));
		kvm_vm_get_dirty_log(self->vm, SLOT, bitmap);
		EXPECT_EQ(BIT(PAGE), bitmap[0]);
		EXPECT_EQ(0, nr_huge(self));

		ASSERT_EQ(0, set_slot_at(self, 0, 0, 0));
		EXPECT_EQ(0, nr_bad(self, PAGE, 2));
		EXPECT_EQ(0, nr_bad(self, NR_PAGES - 1, 1));
	}

	/* Of those that could come back one does. */
	ASSERT_EQ(0, set_slot_at(self, 0, 0, KVM_MEM_LOG_DIRTY_PAGES));
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
	kvm_vm_get_dirty_log(self->vm, SLOT, bitmap);
	EXPECT_EQ(BIT(PAGE), bitmap[0]);
	ASSERT_EQ(0, set_slot_at(self, 0, 0, 0));
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
	EXPECT_EQ(0, nr_bad(self, PAGE + 1, 1));
	EXPECT_EQ(0, nr_bad(self, NR_PAGES - 1, 1));
	EXPECT_EQ(NR_HUGE - 1, nr_huge(self));
}

/* What can't become huge again is not unmapped for that. */
TEST_F(sealed, dirty_log_of_parts)
{
	uint64_t small;

	place(self, 0, 0, 0);
	if (!to_huge(self, 0, PER_HUGE))
		SKIP(return, NO_HUGE_PAGES);
	ASSERT_EQ(0, to_shared(self, 8, 1));
	ASSERT_EQ(0, set_slot_at(self, 0, 0, KVM_MEM_LOG_DIRTY_PAGES));
	write_pages(self, 0, 8);
	small = vm_get_stat(self->vm, "pages_4k");
	ASSERT_EQ(0, set_slot_at(self, 0, 0, 0));
	EXPECT_EQ(small, vm_get_stat(self->vm, "pages_4k"));
	EXPECT_EQ(0, nr_bad(self, 0, 8));
	EXPECT_EQ(0, nr_huge(self));
}

/* Both are private in one piece, for L1 or L2. */
static void split_and_merge(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self)
{
	unsigned long page = PER_HUGE + 15;

	write_pages(self, PAGE, 1);
	write_pages(self, page - 10, 20);
	EXPECT_EQ(NR_HUGE, nr_huge(self));

	/* Between them */
	ASSERT_EQ(0, split_region(self->vm, SLOT, PER_HUGE, PER_HUGE, SLOT, SLOT + 1, 0));
	EXPECT_EQ(0, nr_bad(self, page - 10, 20));
	EXPECT_EQ(NR_HUGE, nr_huge(self));
	/* In one of them */
	ASSERT_EQ(0, split_region(self->vm, SLOT + 1, 10, 20, SLOT + 1, SLOT + 2, SLOT + 3));
	EXPECT_EQ(NR_HUGE - 1, nr_huge(self));
	EXPECT_EQ(0, nr_bad(self, page - 10, 20));
	EXPECT_EQ(0, nr_bad(self, PAGE, 1));
	EXPECT_EQ(NR_HUGE - 1, nr_huge(self));

	ASSERT_EQ(0, merge_regions(self->vm, SLOT + 1, gpa_of(PER_HUGE), PER_HUGE));
	ASSERT_EQ(0, merge_regions(self->vm, SLOT, GPA, NR_PAGES));
	EXPECT_EQ(0, nr_bad(self, page - 10, 20));
	EXPECT_EQ(NR_HUGE - 1, nr_huge(self));
	/* This has KVM look for what can be huge. */
	ASSERT_EQ(0, set_slot_at(self, 0, 0, KVM_MEM_LOG_DIRTY_PAGES));
	ASSERT_EQ(0, set_slot_at(self, 0, 0, 0));
	EXPECT_EQ(0, nr_bad(self, page - 10, 20));
	EXPECT_EQ(0, nr_bad(self, PAGE, 1));
	EXPECT_EQ(NR_HUGE, nr_huge(self));
}

TEST_F(sealed, split_and_merge)
{
	place(self, 0, 0, 0);
	if (!to_huge(self, 0, NR_PAGES))
		SKIP(return, NO_HUGE_PAGES);
	split_and_merge(_metadata, self);
}

TEST_F(sealed, both_address_spaces)
{
	struct test_vm *tvm = &self->tvm;

	if (vm_check_cap(self->vm, KVM_CAP_MULTI_ADDRESS_SPACE) < 2)
		SKIP(return, "the VM has one address space only");

	place(self, 0, 0, 0);
	ASSERT_EQ(0, set_slot(self->vm, SMM_SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE, self->shared,
			      self->fd, 0));
	if (!to_huge(self, 0, NR_PAGES))
		SKIP(return, NO_HUGE_PAGES);
	write_pages(self, PAGE, 2);
	EXPECT_EQ(1, nr_huge(self));
	ASSERT_EQ(0, delete_slot(self->vm, SMM_SLOT));
	EXPECT_EQ(0, nr_bad(self, PAGE, 2));
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
	EXPECT_EQ(0, nr_bad(self, PAGE + 1, 1));
	EXPECT_EQ(0, nr_huge(self));
}

TEST_F(sealed, pre_fault)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa_of(PAGE), .size = SIZE / 2 };

	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
		SKIP(return, "no KVM_CAP_PRE_FAULT_MEMORY");

	place(self, 0, 0, 0);
	if (!to_huge(self, 0, NR_PAGES))
		SKIP(return, NO_HUGE_PAGES);
	ASSERT_EQ(0, __vcpu_ioctl(self->tvm.vcpu, KVM_PRE_FAULT_MEMORY, &range));
	EXPECT_EQ(0, range.size);
	EXPECT_EQ(gpa_of(PER_HUGE + PAGE), range.gpa);
	EXPECT_EQ(NR_HUGE, nr_huge(self));
	write_pages(self, 0, 8);
	EXPECT_EQ(0, nr_bad(self, 0, 8));
	EXPECT_EQ(NR_HUGE, nr_huge(self));
}

/*
 * Nested guests
 */
static void run_function(FIXTURE_DATA(sealed) *self, void *function, uint64_t arg)
{
	guest_run(&self->tvm, GUEST_CALL, (uint64_t)function, arg);
}

static void enter_l2(FIXTURE_DATA(sealed) *self)
{
	vm_vaddr_t svm, npt = vm_vaddr_alloc(self->vm, NPT_PAGES * PAGE_SIZE,
					     KVM_UTIL_MIN_VADDR);
	uint64_t gpa = addr_gva2gpa(self->vm, npt);

	fill_npt(addr_gva2hva(self->vm, npt), gpa);
	*(uint64_t *)addr_gva2hva(self->vm, (vm_vaddr_t)&guest_nested_cr3) = gpa;

	vcpu_alloc_svm(self->vm, &svm);
	run_function(self, guest_enter_l2, svm);
	count_others(self);
}

TEST_F(sealed, nested)
{
	struct test_vm *tvm = &self->tvm;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no nested SVM");

	place(self, 0, 0, 0);
	enter_l2(self);
	if (!to_huge(self, 0, NR_PAGES))
		SKIP(return, NO_HUGE_PAGES);
	write_pages(self, PAGE, 2);
	write_pages(self, NR_PAGES - 1, 1);
	EXPECT_EQ(NR_HUGE, nr_huge(self));
	ASSERT_EQ(0, madvise(self->shared, SIZE, MADV_DONTNEED));
	EXPECT_EQ(NR_HUGE, nr_huge(self));

	*shared_page(self, PAGE) = SHARED_VALUE(PAGE);
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	EXPECT_EQ(NR_HUGE - 1, nr_huge(self));
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
	EXPECT_EQ(0, nr_bad(self, PAGE + 1, 1));
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	EXPECT_EQ(0, guest_read(tvm, gpa_of(PAGE)));
	EXPECT_EQ(0, nr_bad(self, PAGE + 1, 1));
	EXPECT_EQ(0, nr_bad(self, NR_PAGES - 1, 1));
	EXPECT_EQ(NR_HUGE - 1, nr_huge(self));
	run_function(self, guest_leave_l2, 0);
	EXPECT_EQ(0, nr_bad(self, PAGE + 1, 1));
}

/* With page tables that are shadowed memslots have more to pass on. */
TEST_F(sealed, nested_split_and_merge)
{
	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no nested SVM");

	place(self, 0, 1, 0);
	enter_l2(self);
	if (!to_huge(self, 0, NR_PAGES))
		SKIP(return, NO_HUGE_PAGES);
	split_and_merge(_metadata, self);
	split_and_merge(_metadata, self);
	run_function(self, guest_leave_l2, 0);
	EXPECT_EQ(0, nr_bad(self, PAGE, 1));
}

/*
 * Conversions while the guest runs
 */
struct converter {
	FIXTURE_DATA(sealed) *self;
	unsigned long page, nr_pages;
	/* Of all the huge page, to have one again */
	bool collapse;
	bool stop;
	unsigned long nr;
};

static void *convert_all_the_time(void *data)
{
	struct converter *converter = data;
	unsigned long page = converter->page, nr_pages = converter->nr_pages;

	while (!READ_ONCE(converter->stop)) {
		TEST_ASSERT(!to_shared(converter->self, page, nr_pages), "fallocate() failed");
		TEST_ASSERT(converter->collapse ? !to_private(converter->self, 0, PER_HUGE) :
			    !to_private(converter->self, page, nr_pages), "fallocate() failed");
		WRITE_ONCE(converter->nr, converter->nr + 1);
	}
	return NULL;
}

/* What the guest writes to neighbours is never lost. */
TEST_F(sealed, race_with_neighbour)
{
	struct converter converter = { .self = self, .page = PAGE, .nr_pages = 1 };
	unsigned long i, bad = 0, nr = 0;
	pthread_t thread;

	place(self, 0, 0, 0);
	ASSERT_EQ(0, to_private(self, 0, NR_PAGES));
	ASSERT_EQ(0, pthread_create(&thread, NULL, convert_all_the_time, &converter));
	for (i = 0; i < RACE_ITERATIONS || READ_ONCE(converter.nr) < RACE_ITERATIONS; i++) {
		guest_write(&self->tvm, gpa_of(PAGE - 1), i);
		guest_write(&self->tvm, gpa_of(PAGE), i);
		guest_write(&self->tvm, gpa_of(PER_HUGE - 1), i);
		bad += guest_read(&self->tvm, gpa_of(PAGE - 1)) != i;
		bad += guest_read(&self->tvm, gpa_of(PER_HUGE - 1)) != i;
		bad += *shared_page(self, PAGE - 1) != SHARED_VALUE(PAGE - 1);
		/* Start from a huge page. */
		if (READ_ONCE(converter.nr) > nr + 4) {
			WRITE_ONCE(converter.stop, true);
			pthread_join(thread, NULL);
			ASSERT_EQ(0, to_shared(self, 0, PER_HUGE));
			ASSERT_EQ(0, to_private(self, 0, PER_HUGE));
			guest_read(&self->tvm, gpa_of(PAGE));
			nr = converter.nr;
			converter.stop = false;
			ASSERT_EQ(0, pthread_create(&thread, NULL, convert_all_the_time,
						    &converter));
		}
	}
	WRITE_ONCE(converter.stop, true);
	pthread_join(thread, NULL);
	EXPECT_EQ(0, bad);
	TH_LOG("%lu conversions", converter.nr);
}

/* Counts what it has written, and does it again and again. */
static void guest_count(uint64_t *word)
{
	uint64_t i;

	WRITE_ONCE(*word, 0);
	for (i = 0; i < 10000; i++) {
		__GUEST_ASSERT(READ_ONCE(*word) == i, "%lu was written, %lu is there", i,
			       READ_ONCE(*word));
		WRITE_ONCE(*word, i + 1);
	}
}

/* Pages that become a huge one are in use meanwhile. */
TEST_F(sealed, race_with_collapse)
{
	struct converter converter = {
		.self = self, .page = PAGE, .nr_pages = 1, .collapse = true,
	};
	pthread_t thread;
	unsigned long i;

	place(self, 0, 0, 0);
	if (!to_huge(self, 0, PER_HUGE))
		SKIP(return, NO_HUGE_PAGES);
	ASSERT_EQ(0, pthread_create(&thread, NULL, convert_all_the_time, &converter));
	for (i = 0; i < 16 || READ_ONCE(converter.nr) < RACE_ITERATIONS; i++)
		run_function(self, guest_count, gpa_of(i % 2 ? PAGE - 1 : PER_HUGE - 1));
	WRITE_ONCE(converter.stop, true);
	pthread_join(thread, NULL);
	EXPECT_EQ(10000, guest_read(&self->tvm, gpa_of(PAGE - 1)));
	TH_LOG("%lu conversions", converter.nr);
}

/* What is no longer private is never written to, and what is not yet is not read. */
TEST_F(sealed, race_with_whole)
{
	struct converter converter = { .self = self, .page = 0, .nr_pages = PER_HUGE };
	unsigned long i, bad = 0;
	pthread_t thread;
	uint64_t value;

	place(self, 0, 0, 0);
	ASSERT_EQ(0, to_private(self, 0, NR_PAGES));
	ASSERT_EQ(0, pthread_create(&thread, NULL, convert_all_the_time, &converter));
	for (i = 0; i < RACE_ITERATIONS || READ_ONCE(converter.nr) < RACE_ITERATIONS; i++) {
		value = guest_read(&self->tvm, gpa_of(PAGE + i % 64));
		bad += value && value != SHARED_VALUE(PAGE + i % 64);
	}
	WRITE_ONCE(converter.stop, true);
	pthread_join(thread, NULL);
	EXPECT_EQ(0, bad);
	EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(PAGE)));
	TH_LOG("%lu conversions", converter.nr);
}

/*
 * Two aliases
 */
/* Has the shared half consist of huge pages. */
static void renew_shared(FIXTURE_DATA(sealed) *self)
{
	TEST_ASSERT(mmap(self->shared, SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == self->shared &&
		    !madvise(self->shared, SIZE, MADV_HUGEPAGE),
		    "Can't renew the shared half");
	memset(self->shared, 0, SIZE);
	count_others(self);
}

TEST_F(shared_bit, one_page_of_a_huge_one)
{
	FIXTURE_DATA(sealed) *sealed = &self->sealed;
	struct test_vm *tvm = self->tvm;

	count_others(sealed);
	if (!to_huge(sealed, 0, NR_PAGES))
		SKIP(return, NO_HUGE_PAGES);
	write_pages(sealed, 0, 8);
	EXPECT_EQ(1, nr_huge(sealed));
	guest_command_set(tvm, GUEST_READ, gva_of(PAGE, SHARED), 0);
	expect_mismatch(_metadata, tvm, PAGE, SHARED);
	ASSERT_EQ(0, convert(self, PAGE, SHARED));
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_continue(tvm));
	EXPECT_EQ(0, nr_huge(sealed));

	EXPECT_EQ(0, nr_bad(sealed, 0, PAGE));
	EXPECT_EQ(0, nr_bad(sealed, PAGE + 1, 8 - PAGE - 1));
	guest_command_set(tvm, GUEST_READ, gva_of(PAGE, PRIVATE), 0);
	expect_mismatch(_metadata, tvm, PAGE, PRIVATE);
	ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
	EXPECT_EQ(0, guest_continue(tvm));
	EXPECT_EQ(0, nr_huge(sealed));
	EXPECT_EQ(0, nr_bad(sealed, PAGE + 1, 8 - PAGE - 1));
}

TEST_F(shared_bit, from_alias_to_alias)
{
	FIXTURE_DATA(sealed) *sealed = &self->sealed;
	struct test_vm *tvm = self->tvm;
	int i;

	renew_shared(sealed);

	for (i = 0; i < 3; i++) {
		/* Each is where its alias is, and nowhere else. */
		guest_write(tvm, gva_of(PAGE, SHARED), SHARED_VALUE(i));
		if (nr_huge(sealed) != 1)
			SKIP(return, NO_HUGE_PAGES);
		guest_command_set(tvm, GUEST_READ, gva_of(PAGE + 1, PRIVATE), 0);
		expect_mismatch(_metadata, tvm, PAGE + 1, PRIVATE);
		if (!to_huge(sealed, 0, PER_HUGE))
			SKIP(return, NO_HUGE_PAGES);
		EXPECT_EQ(0, guest_continue(tvm));
		EXPECT_EQ(1, nr_huge(sealed));
		EXPECT_EQ(0, guest_read(tvm, gva_of(PAGE, PRIVATE)));
		guest_write(tvm, gva_of(PAGE, PRIVATE), PRIVATE_VALUE(PAGE));

		guest_command_set(tvm, GUEST_READ, gva_of(PAGE, SHARED), 0);
		expect_mismatch(_metadata, tvm, PAGE, SHARED);
		ASSERT_EQ(0, to_shared(sealed, 0, PER_HUGE));
		EXPECT_EQ(SHARED_VALUE(i), guest_continue(tvm));
		EXPECT_EQ(1, nr_huge(sealed));
	}
}

static int set_sealed_log(FIXTURE_DATA(sealed) *sealed, bool on)
{
	return set_slot_at(sealed, 0, 0, on ? KVM_MEM_LOG_DIRTY_PAGES : 0);
}

/* One huge page at each alias */
TEST_F(shared_bit, dirty_log)
{
	FIXTURE_DATA(sealed) *sealed = &self->sealed;
	unsigned long bitmap[NR_PAGES / 64];
	struct test_vm *tvm = self->tvm;
	int i;

	renew_shared(sealed);
	if (!to_huge(sealed, 0, PER_HUGE))
		SKIP(return, NO_HUGE_PAGES);

	for (i = 0; i < 2; i++) {
		guest_write(tvm, gva_of(PAGE, PRIVATE), PRIVATE_VALUE(PAGE));
		guest_write(tvm, gva_of(PER_HUGE, SHARED), SHARED_VALUE(0));
		if (nr_huge(sealed) != 2 && !i)
			SKIP(return, NO_HUGE_PAGES);
		EXPECT_EQ(2, nr_huge(sealed));
		ASSERT_EQ(0, set_sealed_log(sealed, true));
		EXPECT_EQ(0, nr_huge(sealed));
		guest_write(tvm, gva_of(PAGE + 1, PRIVATE), 1);
		guest_write(tvm, gva_of(PER_HUGE + 1, SHARED), 1);
		kvm_vm_get_dirty_log(self->vm, SLOT, bitmap);
		EXPECT_EQ(BIT(PAGE + 1), bitmap[0]);
		EXPECT_EQ(BIT(1), bitmap[PER_HUGE / 64]);
		ASSERT_EQ(0, set_sealed_log(sealed, false));
	}
	EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(tvm, gva_of(PAGE, PRIVATE)));
	EXPECT_EQ(SHARED_VALUE(0), guest_read(tvm, gva_of(PER_HUGE, SHARED)));
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_SEALED_MEMFD));
	huge_pages_compact();
	__TEST_REQUIRE(huge_pages_choose_until_exit("always"), "shmem has no huge pages");

	return test_harness_run(argc, argv);
}
