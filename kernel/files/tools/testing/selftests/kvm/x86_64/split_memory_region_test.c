// SPDX-License-Identifier: GPL-2.0
/*
 * Splitting and merging memslots: userspace has other memslots then, and the
 * guest must not notice.
 */
#include <linux/bitmap.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "sealed_memfd.h"
#include "sealed_memfd_l2.h"
#include "sealed_memfd_race.h"

#define SZ_HUGE		(2ul << 20)
#define PAGES_PER_HUGE	(SZ_HUGE / PAGE_SIZE)

/* Twice that can still be copied, more can't. */
#define SZ_LARGE	(2ul << 30)

#define CGROUP		"split_memory_region_test"

/* Page tables of the nested guest, in the memslot that is split. */
#define NPT_PAGE	(NR_PAGES - 8)
#define NR_DATA_PAGES	NPT_PAGE
#define NPT_GPA		(GPA + NPT_PAGE * PAGE_SIZE)

/* How often to split and merge, at least, while something else goes on. */
#define RACE_ITERATIONS	200

/*
 * What the guest is told to call, see GUEST_CALL.
 */
static bool guest_stop;

static uint64_t *guest_page(unsigned long page)
{
	return (void *)(GPA + page * PAGE_SIZE);
}

/* Counts in each page's first word, returns how often. */
static uint64_t guest_count(uint64_t nr_pages)
{
	uint64_t rounds, i;

	for (rounds = 0; !READ_ONCE(guest_stop); rounds++) {
		for (i = 0; i < nr_pages; i++)
			WRITE_ONCE(*guest_page(i), READ_ONCE(*guest_page(i)) + 1);
	}
	return rounds;
}

/* The same by KVM, which has its own way to find out what a page is. */
static uint64_t guest_count_emulated(uint64_t nr_pages)
{
	uint64_t rounds, i;

	for (rounds = 0; !READ_ONCE(guest_stop); rounds++) {
		for (i = 0; i < nr_pages; i++)
			asm volatile(KVM_FEP "incq %0" : "+m"(*guest_page(i)));
	}
	return rounds;
}

/* Counts in pages at random. */
static uint64_t guest_scatter(uint64_t nr_pages)
{
	struct guest_random_state rng = new_guest_random_state(1);
	uint64_t n;

	for (n = 0; !READ_ONCE(guest_stop); n++)
		++*guest_page(guest_random_u32(&rng) % nr_pages);
	return n;
}

static uint64_t guest_touch(uint64_t nr_pages)
{
	uint64_t i, sum = 0;

	for (i = 0; i < nr_pages; i++)
		sum += READ_ONCE(*guest_page(i));
	return sum;
}

/*
 * A VM with a memslot whose memory is a file, at an address that suits huge
 * pages, with a value per page. The guest is L1 or L2.
 */
FIXTURE(split)
{
	struct test_vm tvm;
	struct kvm_vm *vm;
	char *shared;
	int shared_fd;
	int fd;
};

FIXTURE_VARIANT(split)
{
	uint32_t flags;
	bool nested;
};

FIXTURE_VARIANT_ADD(split, plain) {
};

FIXTURE_VARIANT_ADD(split, nested) {
	.nested = true,
};

FIXTURE_VARIANT_ADD(split, sealed) {
	.flags = KVM_MEM_GUEST_MEMFD,
};

FIXTURE_VARIANT_ADD(split, sealed_nested) {
	.flags = KVM_MEM_GUEST_MEMFD,
	.nested = true,
};

static uint64_t *page_of(FIXTURE_DATA(split) *self, unsigned long page)
{
	return (void *)self->shared + page * PAGE_SIZE;
}

static int set_piece(FIXTURE_DATA(split) *self, uint32_t slot, uint32_t flags,
		     unsigned long page, unsigned long nr)
{
	return set_slot(self->vm, slot, flags, gpa_of(page), nr * PAGE_SIZE,
			page_of(self, page), flags & KVM_MEM_GUEST_MEMFD ? self->fd : -1,
			page * PAGE_SIZE);
}

static uint64_t guest_call(struct test_vm *tvm, uint64_t (*function)(uint64_t), uint64_t arg)
{
	return guest_run(tvm, GUEST_CALL, (uint64_t)function, arg);
}

static void enter_l2(FIXTURE_DATA(split) *self)
{
	vm_vaddr_t svm;

	vcpu_alloc_svm(self->vm, &svm);
	fill_npt(page_of(self, NPT_PAGE), NPT_GPA);
	*(uint64_t *)addr_gva2hva(self->vm, (vm_vaddr_t)&guest_nested_cr3) = NPT_GPA;

	guest_run(&self->tvm, GUEST_CALL, (uint64_t)guest_enter_l2, svm);
}

FIXTURE_SETUP(split)
{
	unsigned long i;

	if (!kvm_check_cap(KVM_CAP_SPLIT_MEMORY_REGION))
		SKIP(return, "KVM_CAP_SPLIT_MEMORY_REGION is not there");
	if ((variant->flags & KVM_MEM_GUEST_MEMFD) && !kvm_check_cap(KVM_CAP_SEALED_MEMFD))
		SKIP(return, "KVM_CAP_SEALED_MEMFD is not there");
	if (variant->nested && !kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "no nested SVM");

	test_vm_create(&self->tvm, KVM_X86_DEFAULT_VM);
	self->vm = self->tvm.vm;
	self->fd = variant->flags ? new_sealed_memfd(2 * SIZE) : -1;
	self->shared_fd = memfd_create("split", 0);
	ASSERT_EQ(0, ftruncate(self->shared_fd, 2 * SIZE));
	self->shared = mmap(NULL, 2 * SIZE + SZ_HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1, 0);
	ASSERT_NE(MAP_FAILED, self->shared);
	self->shared = (void *)round_up((unsigned long)self->shared, SZ_HUGE);
	ASSERT_EQ(self->shared, mmap(self->shared, 2 * SIZE, PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_FIXED, self->shared_fd, 0));
	for (i = 0; i < NR_PAGES; i++)
		*page_of(self, i) = SHARED_VALUE(i);
	ASSERT_EQ(0, set_piece(self, SLOT, variant->flags, 0, NR_PAGES));

	if (variant->nested)
		enter_l2(self);
}

FIXTURE_TEARDOWN(split)
{
	kvm_vm_free(self->vm);
	munmap(self->shared, 2 * SIZE);
	close(self->shared_fd);
	close(self->fd);
}

/* Setting a memslot to what it is changes nothing; everything else fails here. */
#define EXPECT_SLOT(_slot, _page, _nr)						\
	EXPECT_EQ(0, set_piece(self, _slot, variant->flags, _page, _nr))

#define EXPECT_NO_SLOT(_slot)							\
	EXPECT_REFUSED(EINVAL, delete_slot(self->vm, _slot))

/*
 * Errors
 */
TEST_F(split, capability)
{
	EXPECT_EQ(1, kvm_check_cap(KVM_CAP_SPLIT_MEMORY_REGION));
	EXPECT_EQ(1, vm_check_cap(self->vm, KVM_CAP_SPLIT_MEMORY_REGION));
}

#define EXPECT_BAD_SPLIT(_errno, _change...)					\
do {										\
	struct kvm_split_memory_region split = {				\
		.slot = SLOT, .offset = PAGE_SIZE, .size = PAGE_SIZE,		\
		.before_slot = SLOT, .range_slot = SLOT + 1,			\
		.after_slot = SLOT + 2,						\
	};									\
										\
	_change;								\
	EXPECT_REFUSED(_errno, __vm_ioctl(self->vm, KVM_SPLIT_MEMORY_REGION, &split)); \
} while (0)

TEST_F(split, split_errors)
{
	/* What has no meaning yet */
	EXPECT_BAD_SPLIT(EINVAL, split.flags = 1);
	EXPECT_BAD_SPLIT(EINVAL, split.padding = 1);
	EXPECT_BAD_SPLIT(EINVAL, split.reserved[0] = 1);
	EXPECT_BAD_SPLIT(EINVAL, split.reserved[2] = 1ul << 63);

	/* The range */
	EXPECT_BAD_SPLIT(EINVAL, split.offset++);
	EXPECT_BAD_SPLIT(EINVAL, split.size--);
	EXPECT_BAD_SPLIT(EINVAL, split.size = 0);
	EXPECT_BAD_SPLIT(EINVAL, split.offset = SIZE);
	EXPECT_BAD_SPLIT(EINVAL, split.offset = SIZE + PAGE_SIZE);
	EXPECT_BAD_SPLIT(EINVAL, split.size = SIZE);
	EXPECT_BAD_SPLIT(EINVAL, split.size = -PAGE_SIZE);
	EXPECT_BAD_SPLIT(EINVAL, split.offset = -PAGE_SIZE);
	/* All of it */
	EXPECT_BAD_SPLIT(EINVAL, split.offset = 0, split.size = SIZE,
			 split.before_slot = 0, split.after_slot = 0);

	/* The memslot to split */
	EXPECT_BAD_SPLIT(ENOENT, split.slot = SLOT + 1);
	EXPECT_BAD_SPLIT(EINVAL, split.slot = 0xffff);
	EXPECT_BAD_SPLIT(EINVAL, split.slot = SLOT | 2 << 16);

	/* The new memslots */
	EXPECT_BAD_SPLIT(EINVAL, split.range_slot = SLOT);
	EXPECT_BAD_SPLIT(EINVAL, split.after_slot = SLOT);
	EXPECT_BAD_SPLIT(EINVAL, split.after_slot = SLOT + 1);
	EXPECT_BAD_SPLIT(EINVAL, split.before_slot = 0xffff);
	EXPECT_BAD_SPLIT(EINVAL, split.range_slot |= 1 << 16);
	EXPECT_BAD_SPLIT(EINVAL, split.range_slot |= 2 << 16);
	EXPECT_BAD_SPLIT(EEXIST, split.before_slot = 0);
	EXPECT_BAD_SPLIT(EEXIST, split.range_slot = 0);
	EXPECT_BAD_SPLIT(EEXIST, split.after_slot = 0);
	/* There is nothing for them. */
	EXPECT_BAD_SPLIT(EINVAL, split.offset = 0);
	EXPECT_BAD_SPLIT(EINVAL, split.size = SIZE - PAGE_SIZE);

	EXPECT_REFUSED(EFAULT, ioctl(self->vm->fd, KVM_SPLIT_MEMORY_REGION, NULL));

	EXPECT_SLOT(SLOT, 0, NR_PAGES);
	EXPECT_NO_SLOT(SLOT + 1);
	EXPECT_NO_SLOT(SLOT + 2);
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(&self->tvm, gpa_of(PAGE)));
}

#define EXPECT_BAD_MERGE(_errno, _change...)					\
do {										\
	struct kvm_merge_memory_regions merge = {				\
		.slot = SLOT, .guest_phys_addr = GPA, .memory_size = SIZE,	\
	};									\
										\
	_change;								\
	EXPECT_REFUSED(_errno, __vm_ioctl(self->vm, KVM_MERGE_MEMORY_REGIONS, &merge)); \
} while (0)

TEST_F(split, merge_errors)
{
	/* There is only one. */
	EXPECT_BAD_MERGE(EINVAL);

	ASSERT_EQ(0, split_region(self->vm, SLOT, 10, 20, SLOT, SLOT + 1, SLOT + 2));
	EXPECT_BAD_MERGE(EINVAL, merge.flags = 1);
	EXPECT_BAD_MERGE(EINVAL, merge.reserved[0] = 1);
	EXPECT_BAD_MERGE(EINVAL, merge.reserved[4] = 1ul << 63);

	/* The range */
	EXPECT_BAD_MERGE(EINVAL, merge.guest_phys_addr++);
	EXPECT_BAD_MERGE(EINVAL, merge.memory_size--);
	EXPECT_BAD_MERGE(EINVAL, merge.memory_size = 0);
	EXPECT_BAD_MERGE(EINVAL, merge.memory_size = -PAGE_SIZE);
	EXPECT_BAD_MERGE(EINVAL, merge.memory_size = -GPA);
	EXPECT_BAD_MERGE(EINVAL, merge.memory_size -= PAGE_SIZE);
	EXPECT_BAD_MERGE(EINVAL, merge.guest_phys_addr += PAGE_SIZE,
			 merge.memory_size -= PAGE_SIZE);
	EXPECT_BAD_MERGE(EINVAL, merge.memory_size = 10 * PAGE_SIZE);
	EXPECT_BAD_MERGE(ENOENT, merge.memory_size += PAGE_SIZE);
	EXPECT_BAD_MERGE(ENOENT, merge.guest_phys_addr -= PAGE_SIZE,
			 merge.memory_size += PAGE_SIZE);
	EXPECT_BAD_MERGE(ENOENT, merge.guest_phys_addr = MMIO_GPA);

	/* The new memslot */
	EXPECT_BAD_MERGE(EEXIST, merge.slot = 0);
	EXPECT_BAD_MERGE(EEXIST, merge.memory_size = 30 * PAGE_SIZE, merge.slot = SLOT + 2);
	EXPECT_BAD_MERGE(EINVAL, merge.slot = 0xffff);
	EXPECT_BAD_MERGE(EINVAL, merge.slot |= 2 << 16);
	EXPECT_REFUSED(EFAULT, ioctl(self->vm->fd, KVM_MERGE_MEMORY_REGIONS, NULL));

	EXPECT_SLOT(SLOT, 0, 10);
	EXPECT_SLOT(SLOT + 1, 10, 20);
	EXPECT_SLOT(SLOT + 2, 30, NR_PAGES - 30);

	/* A hole */
	ASSERT_EQ(0, delete_slot(self->vm, SLOT + 1));
	EXPECT_BAD_MERGE(ENOENT);
}

TEST_F(split, merge_unlike)
{
	ASSERT_EQ(0, split_region(self->vm, SLOT, 10, 20, SLOT, SLOT + 1, SLOT + 2));

	/* Other flags */
	ASSERT_EQ(0, delete_slot(self->vm, SLOT + 1));
	ASSERT_EQ(0, set_slot(self->vm, SLOT + 1, KVM_MEM_READONLY, gpa_of(10),
			      20 * PAGE_SIZE, page_of(self, 10), -1, 0));
	EXPECT_BAD_MERGE(EINVAL);

	/* Other memory */
	ASSERT_EQ(0, delete_slot(self->vm, SLOT + 1));
	ASSERT_EQ(0, set_slot(self->vm, SLOT + 1, variant->flags, gpa_of(10), 20 * PAGE_SIZE,
			      page_of(self, 11), self->fd, 10 * PAGE_SIZE));
	EXPECT_BAD_MERGE(EINVAL);

	if (variant->flags) {
		int fd = new_sealed_memfd(SIZE);

		/* Other private memory, of the same memfd or not */
		ASSERT_EQ(0, delete_slot(self->vm, SLOT + 1));
		ASSERT_EQ(0, set_slot(self->vm, SLOT + 1, variant->flags, gpa_of(10),
				      20 * PAGE_SIZE, page_of(self, 10), self->fd, SIZE));
		EXPECT_BAD_MERGE(EINVAL);
		ASSERT_EQ(0, delete_slot(self->vm, SLOT + 1));
		ASSERT_EQ(0, set_slot(self->vm, SLOT + 1, variant->flags, gpa_of(10),
				      20 * PAGE_SIZE, page_of(self, 10), fd, 10 * PAGE_SIZE));
		EXPECT_BAD_MERGE(EINVAL);
		close(fd);
	}

	/* As it was, but another file descriptor of the same file */
	ASSERT_EQ(0, delete_slot(self->vm, SLOT + 1));
	ASSERT_EQ(0, set_slot(self->vm, SLOT + 1, variant->flags, gpa_of(10), 20 * PAGE_SIZE,
			      page_of(self, 10), dup(self->fd), 10 * PAGE_SIZE));
	EXPECT_EQ(0, merge_regions(self->vm, SLOT, GPA, NR_PAGES));
	EXPECT_SLOT(SLOT, 0, NR_PAGES);
}

TEST(guest_memfd)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT,
					.type = KVM_X86_SW_PROTECTED_VM };
	struct kvm_vm *vm;
	void *shared;
	int fd, i;

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, "there are no VMs with guest_memfd");

	vm = ____vm_create(shape);
	fd = vm_create_guest_memfd(vm, SIZE, 0);
	shared = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, shared);

	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, set_slot(vm, SLOT + i, KVM_MEM_GUEST_MEMFD, GPA + i * SIZE / 2,
				      SIZE / 2, shared + i * SIZE / 2, fd, i * SIZE / 2));
	EXPECT_REFUSED(EOPNOTSUPP, split_region(vm, SLOT, 0, 1, 0, SLOT + 2, SLOT + 3));
	EXPECT_REFUSED(EOPNOTSUPP, merge_regions(vm, SLOT, GPA, NR_PAGES));
	kvm_vm_free(vm);
	munmap(shared, SIZE);
	close(fd);
}

TEST(dirty_ring)
{
	struct kvm_vm *vm = vm_create_barebones();
	void *shared;
	int i;

	if (!vm_check_cap(vm, KVM_CAP_DIRTY_LOG_RING_ACQ_REL))
		SKIP(return, "there are no dirty rings");

	vm_enable_cap(vm, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, 16 * PAGE_SIZE);
	shared = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, shared);

	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, set_slot(vm, SLOT + i, KVM_MEM_LOG_DIRTY_PAGES, GPA + i * SIZE / 2,
				      SIZE / 2, shared + i * SIZE / 2, -1, 0));
	EXPECT_REFUSED(EOPNOTSUPP, split_region(vm, SLOT, 0, 1, 0, SLOT + 2, SLOT + 3));
	EXPECT_REFUSED(EOPNOTSUPP, merge_regions(vm, SLOT, GPA, NR_PAGES));

	/* Nothing is in the rings while there is no dirty logging. */
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, set_slot(vm, SLOT + i, 0, GPA + i * SIZE / 2, SIZE / 2,
				      shared + i * SIZE / 2, -1, 0));
	EXPECT_EQ(0, merge_regions(vm, SLOT, GPA, NR_PAGES));
	EXPECT_EQ(0, split_region(vm, SLOT, 0, 1, 0, SLOT + 2, SLOT + 3));
	kvm_vm_free(vm);
	munmap(shared, SIZE);
}

TEST_F(split, address_space)
{
	if (vm_check_cap(self->vm, KVM_CAP_MULTI_ADDRESS_SPACE) < 2)
		SKIP(return, "the VM has one address space only");

	/* The same numbers in both, and the same private memory. */
	ASSERT_EQ(0, set_piece(self, SMM_SLOT, variant->flags, 0, NR_PAGES));
	EXPECT_EQ(0, split_region(self->vm, SMM_SLOT, 0, 5, 0, SMM_SLOT + 1, SMM_SLOT + 2));
	EXPECT_SLOT(SLOT, 0, NR_PAGES);
	EXPECT_NO_SLOT(SMM_SLOT);
	EXPECT_SLOT(SMM_SLOT + 1, 0, 5);
	EXPECT_SLOT(SMM_SLOT + 2, 5, NR_PAGES - 5);

	EXPECT_EQ(0, split_region(self->vm, SLOT, 0, 6, 0, SLOT + 1, SLOT + 2));
	EXPECT_EQ(0, merge_regions(self->vm, SMM_SLOT, GPA, NR_PAGES));
	EXPECT_SLOT(SMM_SLOT, 0, NR_PAGES);
	EXPECT_SLOT(SLOT + 1, 0, 6);
	EXPECT_SLOT(SLOT + 2, 6, NR_PAGES - 6);
	EXPECT_EQ(SHARED_VALUE(5), guest_read(&self->tvm, gpa_of(5)));
}

/*
 * What becomes of memory
 */
static void expect_content(struct __test_metadata *_metadata, FIXTURE_DATA(split) *self)
{
	unsigned long i;

	for (i = 0; i < NR_DATA_PAGES; i += 7)
		EXPECT_EQ(SHARED_VALUE(i), guest_read(&self->tvm, gpa_of(i)));
}

TEST_F(split, pieces)
{
	/* In three, all of them new, then the first and the last one in two. */
	EXPECT_EQ(0, split_region(self->vm, SLOT, 10, 20, SLOT + 1, SLOT + 2, SLOT + 3));
	EXPECT_NO_SLOT(SLOT);
	EXPECT_SLOT(SLOT + 1, 0, 10);
	EXPECT_SLOT(SLOT + 2, 10, 20);
	EXPECT_SLOT(SLOT + 3, 30, NR_PAGES - 30);
	expect_content(_metadata, self);

	EXPECT_EQ(0, split_region(self->vm, SLOT + 1, 0, 1, 0, SLOT, SLOT + 1));
	EXPECT_EQ(0, split_region(self->vm, SLOT + 3, NR_PAGES - 31, 1, SLOT + 3, SLOT + 4, 0));
	EXPECT_SLOT(SLOT, 0, 1);
	EXPECT_SLOT(SLOT + 1, 1, 9);
	EXPECT_SLOT(SLOT + 3, 30, NR_PAGES - 31);
	EXPECT_SLOT(SLOT + 4, NR_PAGES - 1, 1);
	expect_content(_metadata, self);

	/* Only some of them, then the rest, into one with a new number. */
	EXPECT_EQ(0, merge_regions(self->vm, SLOT + 2, gpa_of(1), 29));
	EXPECT_NO_SLOT(SLOT + 1);
	EXPECT_SLOT(SLOT, 0, 1);
	EXPECT_SLOT(SLOT + 2, 1, 29);
	EXPECT_SLOT(SLOT + 3, 30, NR_PAGES - 31);
	expect_content(_metadata, self);

	EXPECT_EQ(0, merge_regions(self->vm, SLOT + 9, GPA, NR_PAGES));
	EXPECT_NO_SLOT(SLOT);
	EXPECT_NO_SLOT(SLOT + 2);
	EXPECT_NO_SLOT(SLOT + 3);
	EXPECT_NO_SLOT(SLOT + 4);
	EXPECT_SLOT(SLOT + 9, 0, NR_PAGES);
	expect_content(_metadata, self);
}

TEST_F(split, many_pieces)
{
	unsigned long i;

	for (i = 0; i < NR_PAGES - 1; i++)
		ASSERT_EQ(0, split_region(self->vm, SLOT + i, 0, 1, 0, SLOT + i, SLOT + i + 1));
	EXPECT_SLOT(SLOT, 0, 1);
	EXPECT_SLOT(SLOT + NR_PAGES - 1, NR_PAGES - 1, 1);
	expect_content(_metadata, self);

	EXPECT_EQ(0, merge_regions(self->vm, SLOT + 5, GPA, NR_PAGES));
	EXPECT_SLOT(SLOT + 5, 0, NR_PAGES);
	expect_content(_metadata, self);
}

/*
 * No more than needed is done while vCPUs can't run.  If there are rmaps, i.e. with
 * a nested guest, those of large memslots have to stay where they are.
 */
TEST_F(split, large)
{
	const unsigned long nr = SZ_LARGE / PAGE_SIZE;
	const uint64_t gpa = 1ul << 37;
	const int slot = SLOT + 100;
	char *mem;

	mem = mmap(NULL, 3 * SZ_LARGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, set_slot(self->vm, slot, 0, gpa, 2 * SZ_LARGE, mem, -1, 0));
	ASSERT_EQ(0, set_slot(self->vm, slot + 1, 0, gpa + 2 * SZ_LARGE, SZ_LARGE,
			      mem + 2 * SZ_LARGE, -1, 0));

	if (variant->nested) {
		EXPECT_REFUSED(E2BIG, merge_regions(self->vm, slot, gpa, 3 * nr));
		/* What is left of them is not too much. */
		EXPECT_EQ(0, split_region(self->vm, slot, nr, nr, slot, slot + 2, 0));
		EXPECT_EQ(0, merge_regions(self->vm, slot + 2, gpa + SZ_LARGE, 2 * nr));
	} else {
		EXPECT_EQ(0, merge_regions(self->vm, slot, gpa, 3 * nr));
		EXPECT_EQ(0, split_region(self->vm, slot, nr, 2 * nr, slot, slot + 2, 0));
	}
	ASSERT_EQ(0, delete_slot(self->vm, slot));
	ASSERT_EQ(0, delete_slot(self->vm, slot + 2));

	/* Those that were one before, in any order. */
	ASSERT_EQ(0, set_slot(self->vm, slot, 0, gpa, 3 * SZ_LARGE, mem, -1, 0));
	EXPECT_EQ(0, split_region(self->vm, slot, nr + 1, 10, slot, slot + 1, slot + 2));
	EXPECT_EQ(0, split_region(self->vm, slot + 2, nr, 1, slot + 2, slot + 3, slot + 4));
	EXPECT_EQ(0, merge_regions(self->vm, slot + 1, gpa + (nr + 1) * PAGE_SIZE, nr + 11));
	EXPECT_EQ(0, merge_regions(self->vm, slot + 9, gpa, 3 * nr));
	EXPECT_EQ(0, delete_slot(self->vm, slot + 9));
	munmap(mem, 3 * SZ_LARGE);
}

static bool write_cgroup(const char *file, const char *value)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/fs/cgroup/%s", file);
	return write_file(path, value);
}

static long peak_memory(void)
{
	FILE *file = fopen("/sys/fs/cgroup/" CGROUP "/memory.peak", "r");
	long peak = -1;

	if (!file)
		return -1;
	if (fscanf(file, "%ld", &peak) != 1)
		peak = -1;
	fclose(file);
	return peak;
}

/* What stays where it is needn't be there twice, not even for a moment. */
TEST_F(split, large_without_memory)
{
	const uint64_t gpa = 1ul << 37;
	const int slot = SLOT + 100;
	bool mounted, entered;
	long peak = -1;
	char *mem;

	mem = mmap(NULL, 3 * SZ_LARGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, set_slot(self->vm, slot, 0, gpa, 3 * SZ_LARGE, mem, -1, 0));

	mounted = access("/sys/fs/cgroup/cgroup.procs", F_OK) &&
		  !mount("none", "/sys/fs/cgroup", "cgroup2", 0, NULL);
	entered = write_cgroup("cgroup.subtree_control", "+memory") &&
		  !mkdir("/sys/fs/cgroup/" CGROUP, 0700) &&
		  write_cgroup(CGROUP "/cgroup.procs", "0");
	if (entered) {
		/* There are 15 MiB, if there is a nested guest. */
		EXPECT_EQ(0, split_region(self->vm, slot, 1, 10, slot, slot + 1, slot + 2));
		EXPECT_EQ(0, merge_regions(self->vm, slot, gpa, 3 * SZ_LARGE / PAGE_SIZE));
		peak = peak_memory();
		EXPECT_TRUE(write_cgroup("cgroup.procs", "0"));
		EXPECT_EQ(0, rmdir("/sys/fs/cgroup/" CGROUP));
	}
	if (mounted)
		umount2("/sys/fs/cgroup", MNT_DETACH);
	EXPECT_EQ(0, delete_slot(self->vm, slot));
	munmap(mem, 3 * SZ_LARGE);
	if (peak < 0)
		SKIP(return, "no memory cgroups");
	EXPECT_GT(4 << 20, peak);
}

/* Nor does it matter whether the nested guest came before or after the split. */
TEST_F(split, large_before_nested)
{
	const unsigned long nr = SZ_LARGE / PAGE_SIZE;
	const uint64_t gpa = 1ul << 37;
	const int slot = SLOT + 100;
	char *mem;

	if (variant->nested || !kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "for VMs that have no nested guest yet");

	mem = mmap(NULL, 4 * SZ_LARGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, set_slot(self->vm, slot, 0, gpa, 3 * SZ_LARGE, mem, -1, 0));
	/* Borders within a huge page, and within the same one */
	ASSERT_EQ(0, split_region(self->vm, slot, nr + 1, 10, slot, slot + 1, slot + 2));
	/* Goes on in the guest's memory, but not in that of userspace */
	ASSERT_EQ(0, set_slot(self->vm, slot + 3, 0, gpa + 3 * SZ_LARGE, SZ_LARGE / 2,
			      mem + 3 * SZ_LARGE + SZ_HUGE, -1, 0));
	enter_l2(self);
	EXPECT_EQ(0, merge_regions(self->vm, slot, gpa, 3 * nr));
	EXPECT_EQ(0, split_region(self->vm, slot, nr, 2 * nr, slot, slot + 2, 0));

	/* One that came later */
	ASSERT_EQ(0, delete_slot(self->vm, slot));
	ASSERT_EQ(0, set_slot(self->vm, slot, 0, gpa, SZ_LARGE, mem, -1, 0));
	EXPECT_REFUSED(E2BIG, merge_regions(self->vm, slot, gpa, 3 * nr));
	EXPECT_EQ(0, delete_slot(self->vm, slot));
	EXPECT_EQ(0, delete_slot(self->vm, slot + 2));
	EXPECT_EQ(0, delete_slot(self->vm, slot + 3));
	munmap(mem, 4 * SZ_LARGE);
}

static uint64_t nr_mapped(FIXTURE_DATA(split) *self)
{
	return vm_get_stat(self->vm, "pages_4k");
}

TEST_F(split, mappings_stay)
{
	uint64_t mapped;

	guest_call(&self->tvm, guest_touch, NR_PAGES);
	mapped = nr_mapped(self);
	EXPECT_LE(NR_PAGES, mapped);

	/* All but what is at the borders */
	EXPECT_EQ(0, split_region(self->vm, SLOT, 10, 20, SLOT, SLOT + 1, SLOT + 2));
	EXPECT_LE(mapped - 2, nr_mapped(self));
	EXPECT_EQ(0, split_region(self->vm, SLOT + 2, 1, 600, SLOT + 2, SLOT + 3, SLOT + 4));
	EXPECT_LE(mapped - 4, nr_mapped(self));

	/* There are no new ones. */
	guest_call(&self->tvm, guest_touch, NR_PAGES);
	EXPECT_EQ(mapped, nr_mapped(self));
	EXPECT_EQ(0, merge_regions(self->vm, SLOT, GPA, NR_PAGES));
	EXPECT_EQ(mapped, nr_mapped(self));
}

/* What was mapped before has to be found by who unmaps it afterwards. */
static void expect_unmapped(struct __test_metadata *_metadata, FIXTURE_DATA(split) *self,
			    unsigned long page)
{
	ASSERT_EQ(0, fallocate(self->shared_fd, PUNCH, page * PAGE_SIZE, PAGE_SIZE));
	EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(page)));
	*page_of(self, page) = SHARED_VALUE(page);
	EXPECT_EQ(SHARED_VALUE(page), guest_read(&self->tvm, gpa_of(page)));
}

TEST_F(split, unmap)
{
	static const unsigned long pages[] = { 0, 1, 9, 10, 11, 29, 30, 31, 700 };
	unsigned int i;

	guest_call(&self->tvm, guest_touch, NR_PAGES);
	EXPECT_EQ(0, split_region(self->vm, SLOT, 10, 20, SLOT, SLOT + 1, SLOT + 2));
	for (i = 0; i < ARRAY_SIZE(pages); i++)
		expect_unmapped(_metadata, self, pages[i]);

	EXPECT_EQ(0, split_region(self->vm, SLOT + 2, 1, 600, SLOT + 2, SLOT + 3, SLOT + 4));
	EXPECT_EQ(0, merge_regions(self->vm, SLOT, GPA, NR_PAGES));
	for (i = 0; i < ARRAY_SIZE(pages); i++)
		expect_unmapped(_metadata, self, pages[i]);
}

TEST_F(split, delete_and_move)
{
	struct kvm_run *run = self->tvm.vcpu->run;

	guest_call(&self->tvm, guest_touch, NR_PAGES);
	EXPECT_EQ(0, split_region(self->vm, SLOT, 10, 20, SLOT, SLOT + 1, SLOT + 2));

	/* A hole, others left alone */
	EXPECT_EQ(0, delete_slot(self->vm, SLOT + 1));
	EXPECT_EQ(SHARED_VALUE(9), guest_read(&self->tvm, gpa_of(9)));
	EXPECT_EQ(SHARED_VALUE(30), guest_read(&self->tvm, gpa_of(30)));
	guest_command_set(&self->tvm, GUEST_READ, gpa_of(10), 0);
	vcpu_run(self->tvm.vcpu);
	ASSERT_EQ(KVM_EXIT_MMIO, run->exit_reason);
	EXPECT_EQ(gpa_of(10), run->mmio.phys_addr);

	/* Memory from elsewhere, then from where it was. */
	ASSERT_EQ(0, set_slot(self->vm, SLOT + 1, variant->flags, gpa_of(10), 20 * PAGE_SIZE,
			      page_of(self, 110), self->fd, 10 * PAGE_SIZE));
	vcpu_run(self->tvm.vcpu);
	guest_result(&self->tvm);
	EXPECT_EQ(SHARED_VALUE(110), guest_read(&self->tvm, gpa_of(10)));
	EXPECT_EQ(SHARED_VALUE(129), guest_read(&self->tvm, gpa_of(29)));
	ASSERT_EQ(0, delete_slot(self->vm, SLOT + 1));
	ASSERT_EQ(0, set_piece(self, SLOT + 1, variant->flags, 10, 20));
	expect_content(_metadata, self);

	/* Away and back */
	ASSERT_EQ(0, set_slot(self->vm, SLOT + 1, variant->flags, OTHER_GPA, 20 * PAGE_SIZE,
			      page_of(self, 10), self->fd, 10 * PAGE_SIZE));
	EXPECT_EQ(SHARED_VALUE(10), guest_read(&self->tvm, OTHER_GPA));
	ASSERT_EQ(0, set_piece(self, SLOT + 1, variant->flags, 10, 20));
	expect_content(_metadata, self);

	EXPECT_EQ(0, merge_regions(self->vm, SLOT, GPA, NR_PAGES));
	expect_content(_metadata, self);
}

TEST_F(split, readonly)
{
	struct kvm_run *run = self->tvm.vcpu->run;

	if (variant->flags || variant->nested)
		SKIP(return, "not for what is private or has page tables");

	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, set_piece(self, SLOT, KVM_MEM_READONLY, 0, NR_PAGES));
	EXPECT_EQ(0, split_region(self->vm, SLOT, 10, 20, SLOT, SLOT + 1, SLOT + 2));

	EXPECT_EQ(SHARED_VALUE(10), guest_read(&self->tvm, gpa_of(10)));
	guest_command_set(&self->tvm, GUEST_WRITE, gpa_of(10), 1);
	vcpu_run(self->tvm.vcpu);
	ASSERT_EQ(KVM_EXIT_MMIO, run->exit_reason);
	EXPECT_TRUE(run->mmio.is_write);
	vcpu_run(self->tvm.vcpu);
	guest_result(&self->tvm);
	EXPECT_EQ(SHARED_VALUE(10), *page_of(self, 10));
}

TEST_F(split, nested_page_tables)
{
	/* What L2 finds at OTHER_GPA */
	const uint64_t entry = NPT_GPA + 3 * PAGE_SIZE + 2 * sizeof(uint64_t);
	const uint64_t first = GPA | NPT_HUGE_ENTRY, second = (GPA + SZ_HUGE) | NPT_HUGE_ENTRY;

	if (!variant->nested)
		SKIP(return, "there is no L2");

	/*
	 * While tables are shadowed KVM sees to it that changes are noticed, by
	 * what it keeps in memslots: split between them, and then some more.
	 */
	guest_write(&self->tvm, entry, first);
	EXPECT_EQ(SHARED_VALUE(0), guest_read(&self->tvm, OTHER_GPA));

	EXPECT_EQ(0, split_region(self->vm, SLOT, NPT_PAGE + 3, 1, SLOT, SLOT + 1, SLOT + 2));
	guest_write(&self->tvm, entry, second);
	EXPECT_EQ(SHARED_VALUE(PAGES_PER_HUGE), guest_read(&self->tvm, OTHER_GPA));

	EXPECT_EQ(0, split_region(self->vm, SLOT, NPT_PAGE, 2, SLOT, SLOT + 3, SLOT + 4));
	guest_write(&self->tvm, entry, first);
	EXPECT_EQ(SHARED_VALUE(0), guest_read(&self->tvm, OTHER_GPA));

	EXPECT_EQ(0, merge_regions(self->vm, SLOT, GPA, NR_PAGES));
	guest_write(&self->tvm, entry, second);
	EXPECT_EQ(SHARED_VALUE(PAGES_PER_HUGE), guest_read(&self->tvm, OTHER_GPA));
}

/*
 * Huge pages
 */
static uint64_t nr_huge(FIXTURE_DATA(split) *self)
{
	return vm_get_stat(self->vm, "pages_2m");
}

static void remap_huge(FIXTURE_DATA(split) *self)
{
	unsigned long i;
	char *huge;

	huge = mmap(self->shared, SIZE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	TEST_ASSERT(huge == self->shared, __KVM_SYSCALL_ERROR("mmap()", -1));
	madvise(huge, SIZE, MADV_HUGEPAGE);
	for (i = 0; i < NR_DATA_PAGES; i++)
		*page_of(self, i) = SHARED_VALUE(i);
}

TEST_F(split, huge_pages)
{
	const unsigned long at_border = SZ_HUGE / PAGE_SIZE;
	uint64_t huge;

	if (variant->nested)
		SKIP(return, "page tables of L2 are in the way");

	remap_huge(self);
	guest_call(&self->tvm, guest_touch, NR_PAGES);
	huge = nr_huge(self);
	if (huge < NR_PAGES / PAGES_PER_HUGE)
		SKIP(return, "there are no huge pages");

	/* Between huge pages is as good as no border. */
	EXPECT_EQ(0, split_region(self->vm, SLOT, at_border, at_border, SLOT, SLOT + 1, 0));
	guest_call(&self->tvm, guest_touch, NR_PAGES);
	EXPECT_EQ(huge, nr_huge(self));

	/* Across there can't be one... */
	EXPECT_EQ(0, split_region(self->vm, SLOT + 1, 10, 20, SLOT + 1, SLOT + 2, SLOT + 3));
	EXPECT_EQ(huge - 1, nr_huge(self));
	expect_content(_metadata, self);
	guest_call(&self->tvm, guest_touch, NR_PAGES);
	EXPECT_EQ(huge - 1, nr_huge(self));

	/* ... until the borders are gone. What is mapped is left as it is. */
	EXPECT_EQ(0, merge_regions(self->vm, SLOT + 1, gpa_of(at_border), at_border));
	guest_call(&self->tvm, guest_touch, NR_PAGES);
	EXPECT_EQ(huge - 1, nr_huge(self));
	remap_huge(self);
	guest_call(&self->tvm, guest_touch, NR_PAGES);
	EXPECT_EQ(huge, nr_huge(self));
	EXPECT_EQ(0, merge_regions(self->vm, SLOT, GPA, NR_PAGES));
	expect_content(_metadata, self);
	EXPECT_EQ(huge, nr_huge(self));
}

/* All shadow pages go when any memslot goes. */
static void zap_all(FIXTURE_DATA(split) *self)
{
	void *page = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	TEST_ASSERT(!set_slot(self->vm, SLOT + 100, 0, MMIO_GPA, PAGE_SIZE, page, -1, 0) &&
		    !delete_slot(self->vm, SLOT + 100),
		    __KVM_SYSCALL_ERROR("KVM_SET_USER_MEMORY_REGION2", -1));
	munmap(page, PAGE_SIZE);
}

/*
 * Tables of L2 rule out huge pages around them. Whatever is counted for that
 * must come out right, however often borders come and go.
 */
TEST_F(split, huge_pages_and_shadow_pages)
{
	uint64_t huge, i;

	if (!variant->nested)
		SKIP(return, "there is no L2");

	guest_call(&self->tvm, guest_leave_l2, 0);
	remap_huge(self);
	zap_all(self);
	guest_call(&self->tvm, guest_touch, NR_PAGES);
	huge = nr_huge(self);
	if (huge < NR_PAGES / PAGES_PER_HUGE)
		SKIP(return, "there are no huge pages");

	enter_l2(self);
	for (i = 0; i < 40; i++) {
		ASSERT_EQ(0, split_region(self->vm, SLOT, NPT_PAGE - i, 1 + i, SLOT, SLOT + 1,
					  SLOT + 2));
		guest_call(&self->tvm, guest_touch, NR_PAGES);
		ASSERT_EQ(0, merge_regions(self->vm, SLOT, GPA, NR_PAGES));
		guest_call(&self->tvm, guest_touch, NR_PAGES);
	}
	expect_content(_metadata, self);

	guest_call(&self->tvm, guest_leave_l2, 0);
	zap_all(self);
	guest_call(&self->tvm, guest_touch, NR_PAGES);
	EXPECT_EQ(huge, nr_huge(self));
}

/*
 * Dirty logging
 */
static void expect_dirty(struct __test_metadata *_metadata, FIXTURE_DATA(split) *self,
			 uint32_t slot, unsigned long page, unsigned long nr,
			 bool (*is_dirty)(unsigned long page))
{
	unsigned long bitmap[NR_PAGES / 64] = {};
	struct kvm_dirty_log log = { .slot = slot, .dirty_bitmap = bitmap };
	unsigned long i;

	ASSERT_EQ(0, __vm_ioctl(self->vm, KVM_GET_DIRTY_LOG, &log));
	for (i = 0; i < round_up(nr, 64); i++) {
		ASSERT_EQ(i < nr && is_dirty(page + i), test_bit(i, bitmap)) {
			TH_LOG("bit %lu of slot %u", i, slot);
		}
	}
}

static bool is_written(unsigned long page)
{
	return page < NR_DATA_PAGES && page % 3 == 1;
}

static bool is_never(unsigned long page)
{
	return false;
}

static uint64_t guest_write_some(uint64_t value)
{
	unsigned long i;

	for (i = 0; i < NR_DATA_PAGES; i++) {
		if (i % 3 == 1)
			WRITE_ONCE(*guest_page(i), value);
	}
	return 0;
}

/* Returns false if dirty logging is not for this kind of memslot. */
static bool log_dirty(FIXTURE_DATA(split) *self, uint32_t flags)
{
	return !set_piece(self, SLOT, flags | KVM_MEM_LOG_DIRTY_PAGES, 0, NR_PAGES);
}

TEST_F(split, dirty_bitmap)
{
	/* What is written by KVM and by hardware, e.g. tables of L2, counts too. */
	if (variant->nested)
		SKIP(return, "page tables of L2 are written, too");
	if (!log_dirty(self, variant->flags))
		SKIP(return, "no dirty logging of this kind of memslot");

	guest_call(&self->tvm, guest_write_some, 1);
	EXPECT_EQ(0, split_region(self->vm, SLOT, 10, 100, SLOT, SLOT + 1, SLOT + 2));
	expect_dirty(_metadata, self, SLOT, 0, 10, is_written);
	expect_dirty(_metadata, self, SLOT + 1, 10, 100, is_written);
	expect_dirty(_metadata, self, SLOT + 2, 110, NR_PAGES - 110, is_written);
	expect_dirty(_metadata, self, SLOT, 0, 10, is_never);
	expect_dirty(_metadata, self, SLOT + 1, 10, 100, is_never);
	expect_dirty(_metadata, self, SLOT + 2, 110, NR_PAGES - 110, is_never);

	/* From there on writes are logged. */
	guest_call(&self->tvm, guest_write_some, 2);
	EXPECT_EQ(0, merge_regions(self->vm, SLOT + 3, GPA, NR_PAGES));
	expect_dirty(_metadata, self, SLOT + 3, 0, NR_PAGES, is_written);
	expect_dirty(_metadata, self, SLOT + 3, 0, NR_PAGES, is_never);

	/* Through several changes */
	guest_call(&self->tvm, guest_write_some, 3);
	EXPECT_EQ(0, split_region(self->vm, SLOT + 3, 1, 63, SLOT, SLOT + 1, SLOT + 2));
	EXPECT_EQ(0, split_region(self->vm, SLOT + 2, 64, 65, SLOT + 2, SLOT + 3, SLOT + 4));
	EXPECT_EQ(0, merge_regions(self->vm, SLOT + 5, gpa_of(1), 63 + 64));
	expect_dirty(_metadata, self, SLOT, 0, 1, is_written);
	expect_dirty(_metadata, self, SLOT + 5, 1, 127, is_written);
	expect_dirty(_metadata, self, SLOT + 3, 128, 65, is_written);
	expect_dirty(_metadata, self, SLOT + 4, 193, NR_PAGES - 193, is_written);

	/* One by one it can be stopped, and as one started again. */
	EXPECT_EQ(0, set_piece(self, SLOT + 5, variant->flags, 1, 127));
	EXPECT_REFUSED(EINVAL, merge_regions(self->vm, SLOT, GPA, NR_PAGES));
	EXPECT_EQ(0, set_piece(self, SLOT, variant->flags, 0, 1));
	EXPECT_EQ(0, set_piece(self, SLOT + 3, variant->flags, 128, 65));
	EXPECT_EQ(0, set_piece(self, SLOT + 4, variant->flags, 193, NR_PAGES - 193));
	EXPECT_EQ(0, merge_regions(self->vm, SLOT, GPA, NR_PAGES));
	ASSERT_TRUE(log_dirty(self, variant->flags));
	guest_call(&self->tvm, guest_write_some, 4);
	expect_dirty(_metadata, self, SLOT, 0, NR_PAGES, is_written);
}

TEST_F(split, dirty_bitmap_cleared_by_hand)
{
	struct kvm_clear_dirty_log clear = { .slot = SLOT + 1, .num_pages = 100 };
	unsigned long all[NR_PAGES / 64];

	if (variant->nested)
		SKIP(return, "page tables of L2 are written, too");
	vm_enable_cap(self->vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
	if (!log_dirty(self, variant->flags))
		SKIP(return, "no dirty logging of this kind of memslot");

	memset(all, 0xff, sizeof(all));
	clear.dirty_bitmap = all;
	guest_call(&self->tvm, guest_write_some, 1);
	EXPECT_EQ(0, split_region(self->vm, SLOT, 10, 100, SLOT, SLOT + 1, SLOT + 2));
	expect_dirty(_metadata, self, SLOT + 1, 10, 100, is_written);
	ASSERT_EQ(0, __vm_ioctl(self->vm, KVM_CLEAR_DIRTY_LOG, &clear));
	expect_dirty(_metadata, self, SLOT + 1, 10, 100, is_never);
	guest_call(&self->tvm, guest_write_some, 2);
	EXPECT_EQ(0, merge_regions(self->vm, SLOT, GPA, NR_PAGES));
	expect_dirty(_metadata, self, SLOT, 0, NR_PAGES, is_written);
}

/*
 * Private memory
 */
static int private(FIXTURE_DATA(split) *self, unsigned long page, unsigned long nr)
{
	return fallocate(self->fd, 0, page * PAGE_SIZE, nr * PAGE_SIZE);
}

static int shared(FIXTURE_DATA(split) *self, unsigned long page, unsigned long nr)
{
	return fallocate(self->fd, PUNCH, page * PAGE_SIZE, nr * PAGE_SIZE);
}

TEST_F(split, private_pages)
{
	static const unsigned long pages[] = { 0, 1, 9, 10, 11, 29, 30, 31, 700 };
	unsigned int i, round;

	if (!variant->flags)
		SKIP(return, "there is no private memory");

	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		ASSERT_EQ(0, private(self, pages[i], 1));
		guest_write(&self->tvm, gpa_of(pages[i]), PRIVATE_VALUE(pages[i]));
	}

	for (round = 0; round < 2; round++) {
		int ret = round ? merge_regions(self->vm, SLOT, GPA, NR_PAGES) :
				  split_region(self->vm, SLOT, 10, 20, SLOT, SLOT + 1, SLOT + 2);

		ASSERT_EQ(0, ret);
		for (i = 0; i < ARRAY_SIZE(pages); i++) {
			EXPECT_EQ(PRIVATE_VALUE(pages[i]),
				  guest_read(&self->tvm, gpa_of(pages[i])));
			EXPECT_EQ(SHARED_VALUE(pages[i]), *page_of(self, pages[i]));
		}
		EXPECT_EQ(SHARED_VALUE(2), guest_read(&self->tvm, gpa_of(2)));
	}

	/* Conversions find the new memslots, also several at a time. */
	for (round = 0; round < 2; round++) {
		int ret = round ? merge_regions(self->vm, SLOT, GPA, NR_PAGES) :
				  split_region(self->vm, SLOT, 10, 20, SLOT + 3, SLOT, SLOT + 4);

		ASSERT_EQ(0, ret);
		guest_call(&self->tvm, guest_touch, NR_PAGES);
		ASSERT_EQ(0, shared(self, 0, NR_DATA_PAGES));
		expect_content(_metadata, self);
		ASSERT_EQ(0, private(self, 0, NR_DATA_PAGES));
		for (i = 0; i < ARRAY_SIZE(pages); i++) {
			EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(pages[i])));
			EXPECT_EQ(SHARED_VALUE(pages[i]), *page_of(self, pages[i]));
		}
	}
}

TEST_F(split, private_ranges)
{
	unsigned long i, n;

	if (!variant->flags)
		SKIP(return, "there is no private memory");

	/* Each piece has its part of the memfd for itself. */
	ASSERT_EQ(0, split_region(self->vm, SLOT, 10, 20, SLOT, SLOT + 1, SLOT + 2));
	for (n = 0; n < 2; n++) {
		for (i = 0; i < 40; i++) {
			int ret = set_slot(self->vm, SLOT + 3, variant->flags, OTHER_GPA,
					   PAGE_SIZE, self->shared + SIZE, self->fd,
					   i * PAGE_SIZE);

			if (!n || i < 10 || i >= 30) {
				EXPECT_REFUSED(EINVAL, ret);
			} else {
				EXPECT_EQ(0, ret);
				EXPECT_EQ(0, delete_slot(self->vm, SLOT + 3));
			}
		}
		if (!n)
			ASSERT_EQ(0, delete_slot(self->vm, SLOT + 1));
	}

	/* What goes with a piece stays private, of the memfd's owner. */
	ASSERT_EQ(0, set_piece(self, SLOT + 1, variant->flags, 10, 20));
	ASSERT_EQ(0, private(self, 15, 1));
	guest_write(&self->tvm, gpa_of(15), PRIVATE_VALUE(15));
	ASSERT_EQ(0, delete_slot(self->vm, SLOT + 1));
	ASSERT_EQ(0, private(self, 14, 3));
	ASSERT_EQ(0, set_piece(self, SLOT + 1, variant->flags, 10, 20));
	EXPECT_EQ(PRIVATE_VALUE(15), guest_read(&self->tvm, gpa_of(15)));
	EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(16)));
	EXPECT_EQ(SHARED_VALUE(13), guest_read(&self->tvm, gpa_of(13)));

	/* Pieces go with the VM, and then there is no owner any more. */
	kvm_vm_free(self->vm);
	ASSERT_EQ(0, shared(self, 0, NR_PAGES));
	test_vm_create(&self->tvm, KVM_X86_DEFAULT_VM);
	self->vm = self->tvm.vm;
	EXPECT_EQ(0, set_piece(self, SLOT, variant->flags, 0, NR_PAGES));
}

/*
 * While the guest is running
 */
struct running {
	struct test_vm *tvm;
	uint64_t result;
	pthread_t thread;
};

static void *run_to_result(void *data)
{
	struct running *running = data;

	/* Fails on any exit other than for the result. */
	vcpu_run(running->tvm->vcpu);
	running->result = guest_result(running->tvm);
	return NULL;
}

static bool *stop_flag(FIXTURE_DATA(split) *self)
{
	return addr_gva2hva(self->vm, (vm_vaddr_t)&guest_stop);
}

static void start_guest(struct running *running, FIXTURE_DATA(split) *self,
			uint64_t (*function)(uint64_t), uint64_t arg)
{
	WRITE_ONCE(*stop_flag(self), false);
	running->tvm = &self->tvm;
	guest_command_set(&self->tvm, GUEST_CALL, (uint64_t)function, arg);
	pthread_create(&running->thread, NULL, run_to_result, running);
}

static uint64_t stop_guest(struct running *running, FIXTURE_DATA(split) *self)
{
	WRITE_ONCE(*stop_flag(self), true);
	pthread_join(running->thread, NULL);
	return running->result;
}

/* Which pages memslots have, by number. */
struct pieces {
	unsigned long page[3];
	unsigned long nr[3];
};

/* In two or three, any of which may keep the number. */
static struct pieces split_at_random(struct kvm_vm *vm, unsigned int *seed,
				     unsigned long nr_pages)
{
	unsigned long page = rand_r(seed) % (nr_pages - 1);
	unsigned long nr = 1 + rand_r(seed) % (nr_pages - 1 - page);
	unsigned long end = page + nr;
	unsigned int first = rand_r(seed) % 3;
	unsigned int ids[] = { first, (first + 1) % 3, (first + 2) % 3 };
	struct pieces pieces = {};

	pieces.nr[ids[0]] = page;
	pieces.page[ids[1]] = page;
	pieces.nr[ids[1]] = nr;
	pieces.page[ids[2]] = end;
	pieces.nr[ids[2]] = nr_pages - end;
	TEST_ASSERT(!split_region(vm, SLOT, page, nr, page ? SLOT + ids[0] : 0, SLOT + ids[1],
				  end < nr_pages ? SLOT + ids[2] : 0),
		    "Can't split off %lu pages from %lu", nr, page);
	return pieces;
}

static void merge_all(struct kvm_vm *vm, unsigned long nr_pages)
{
	TEST_ASSERT(!merge_regions(vm, SLOT, GPA, nr_pages), __KVM_SYSCALL_ERROR("merge", -1));
}

/* Has the memory mapped again and again, its content stays. */
static void *unmapper(void *data)
{
	FIXTURE_DATA(split) *self = data;

	while (!READ_ONCE(*stop_flag(self))) {
		madvise(self->shared, SIZE, MADV_DONTNEED);
		usleep(100);
	}
	return NULL;
}

TEST_F(split, guest_runs)
{
	unsigned int i, seed = 1;
	struct running running;
	uint64_t rounds, more;
	pthread_t thread;

	start_guest(&running, self, guest_count, NR_DATA_PAGES);
	for (i = 0; i < RACE_ITERATIONS; i++) {
		split_at_random(self->vm, &seed, NR_PAGES);
		merge_all(self->vm, NR_PAGES);
	}
	rounds = stop_guest(&running, self);
	for (i = 0; i < NR_DATA_PAGES; i++)
		ASSERT_EQ(SHARED_VALUE(i) + rounds, *page_of(self, i));

	start_guest(&running, self, guest_count, NR_DATA_PAGES);
	pthread_create(&thread, NULL, unmapper, self);
	for (i = 0; i < RACE_ITERATIONS; i++) {
		split_at_random(self->vm, &seed, NR_PAGES);
		merge_all(self->vm, NR_PAGES);
	}
	more = stop_guest(&running, self);
	pthread_join(thread, NULL);
	for (i = 0; i < NR_DATA_PAGES; i++)
		ASSERT_EQ(SHARED_VALUE(i) + rounds + more, *page_of(self, i));

	/* There is no mapping that nobody knows of. */
	for (i = 0; i < NR_DATA_PAGES; i += 5)
		expect_unmapped(_metadata, self, i);
}

/* As for a migration: copy what is dirty. */
static void copy_dirty(FIXTURE_DATA(split) *self, const struct pieces *pieces, uint64_t *copy)
{
	unsigned long bitmap[NR_PAGES / 64];
	struct kvm_dirty_log log = { .dirty_bitmap = bitmap };
	unsigned long i, page;
	unsigned int id;

	for (id = 0; id < 3; id++) {
		if (!pieces->nr[id])
			continue;

		log.slot = SLOT + id;
		vm_ioctl(self->vm, KVM_GET_DIRTY_LOG, &log);
		for (i = 0; i < pieces->nr[id]; i++) {
			page = pieces->page[id] + i;
			if (test_bit(i, bitmap))
				copy[page] = READ_ONCE(*page_of(self, page));
		}
	}
}

TEST_F(split, guest_runs_with_dirty_logging)
{
	const struct pieces whole = { .nr = { NR_PAGES } };
	uint64_t copy[NR_PAGES];
	struct running running;
	unsigned int i, seed = 1;
	struct pieces pieces;

	if (!log_dirty(self, variant->flags))
		SKIP(return, "no dirty logging of this kind of memslot");

	for (i = 0; i < NR_PAGES; i++)
		copy[i] = *page_of(self, i);
	start_guest(&running, self, guest_scatter, NR_DATA_PAGES);
	for (i = 0; i < RACE_ITERATIONS; i++) {
		pieces = split_at_random(self->vm, &seed, NR_PAGES);
		if (rand_r(&seed) % 2)
			copy_dirty(self, &pieces, copy);
		merge_all(self->vm, NR_PAGES);
		if (rand_r(&seed) % 2)
			copy_dirty(self, &whole, copy);
	}
	EXPECT_LT(0, stop_guest(&running, self));
	copy_dirty(self, &whole, copy);
	for (i = 0; i < NR_DATA_PAGES; i++)
		ASSERT_EQ(*page_of(self, i), copy[i]);
}

static void *splitter(void *data)
{
	FIXTURE_DATA(split) *self = data;
	unsigned int seed = 1;

	while (!READ_ONCE(*stop_flag(self))) {
		split_at_random(self->vm, &seed, NR_PAGES);
		merge_all(self->vm, NR_PAGES);
	}
	return NULL;
}

static void convert_while_guest_runs(struct __test_metadata *_metadata,
				     FIXTURE_DATA(split) *self,
				     uint64_t (*function)(uint64_t))
{
	const unsigned int nr = 64;
	unsigned int i, page, seed = 2;
	struct running running;
	uint64_t value;
	pthread_t thread;

	start_guest(&running, self, function, nr);
	pthread_create(&thread, NULL, splitter, self);
	for (i = 0; i < RACE_ITERATIONS; i++) {
		page = rand_r(&seed) % nr;

		/* Nobody writes to the shared half any more... */
		ASSERT_EQ(0, private(self, page, 1 + rand_r(&seed) % 3));
		value = READ_ONCE(*page_of(self, page));
		usleep(100);
		ASSERT_EQ(value, READ_ONCE(*page_of(self, page)));

		/* ... until it's in use again. */
		ASSERT_EQ(0, shared(self, 0, nr));
		while (value == READ_ONCE(*page_of(self, page)))
			sched_yield();
	}
	EXPECT_LT(0, stop_guest(&running, self));
	pthread_join(thread, NULL);
}

TEST_F(split, guest_runs_with_conversions)
{
	if (!variant->flags)
		SKIP(return, "there is no private memory");

	convert_while_guest_runs(_metadata, self, guest_count);
	if (!variant->nested && force_emulation())
		convert_while_guest_runs(_metadata, self, guest_count_emulated);
}

/* The guest converts pages, too, and checks what it sees. */
static void *race_splitter(void *data)
{
	struct race *race = data;
	unsigned int seed = 1;

	while (!READ_ONCE(race->stop)) {
		split_at_random(race->vm, &seed, RACE_NR_PAGES);
		usleep(100);
		merge_all(race->vm, RACE_NR_PAGES);
	}
	return NULL;
}

TEST(guest_converts)
{
	static void *(*const threads[])(void *) = { race_converter, race_splitter };
	struct race *race;

	if (!kvm_check_cap(KVM_CAP_SEALED_MEMFD))
		SKIP(return, "KVM_CAP_SEALED_MEMFD is not there");

	race = race_create(KVM_X86_DEFAULT_VM, 2, 5 * RACE_ITERATIONS);
	race_run(race, threads, ARRAY_SIZE(threads));
	race_free(race);
}

TEST_HARNESS_MAIN
