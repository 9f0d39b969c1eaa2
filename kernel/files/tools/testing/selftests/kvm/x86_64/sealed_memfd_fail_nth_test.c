// SPDX-License-Identifier: GPL-2.0
/*
 * Each allocation of memory that an operation makes fails, one after the other.
 * The operation then fails as a whole and can be repeated, and the guest finds
 * its memory as it was.
 */
#include <unistd.h>

#include "sealed_memfd.h"

#define FAULT_DIR	"/sys/kernel/debug/"

/* Allocations that may sleep, and of single pages, fail as well; in silence. */
static bool inject_faults(void)
{
	return write_file(FAULT_DIR "failslab/ignore-gfp-wait", "N") &&
	       write_file(FAULT_DIR "failslab/verbose", "0") &&
	       write_file(FAULT_DIR "fail_page_alloc/ignore-gfp-wait", "N") &&
	       write_file(FAULT_DIR "fail_page_alloc/ignore-gfp-highmem", "N") &&
	       write_file(FAULT_DIR "fail_page_alloc/min-order", "0") &&
	       write_file(FAULT_DIR "fail_page_alloc/verbose", "0");
}

static int fail_nth_fd = -1;

/* The calling thread's nth allocation from now on is to fail; 0 is none. */
static void fail_nth(unsigned int nth)
{
	char text[16];

	snprintf(text, sizeof(text), "%u", nth);
	TEST_ASSERT(pwrite(fail_nth_fd, text, strlen(text), 0) == strlen(text),
		    "Can't write to fail-nth");
}

static bool has_failed(void)
{
	char text[16] = "";

	TEST_ASSERT(pread(fail_nth_fd, text, sizeof(text) - 1, 0) > 0,
		    "Can't read fail-nth");
	return atoi(text) == 0;
}

typedef int (*operation)(FIXTURE_DATA(sealed) *self);

/*
 * Does @op until it doesn't allocate so much any more.  After a failure @check
 * must be happy; if an allocation wasn't vital, or the last one is done, @undo
 * takes it back.
 */
static void fail_each(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self,
		      operation op, operation undo, operation check)
{
	unsigned int nth, nr_failed = 0;
	bool failed = true;
	int r, error;

	for (nth = 1; failed; nth++) {
		ASSERT_GT(1000, nth);
		fail_nth(nth);
		r = op(self);
		error = errno;
		failed = has_failed();
		fail_nth(0);

		if (r) {
			EXPECT_TRUE(failed);
			EXPECT_EQ(ENOMEM, error);
			EXPECT_EQ(0, check(self)) {
				TH_LOG("after failure %u", nth);
			}
			nr_failed++;
		} else {
			ASSERT_EQ(0, undo(self));
			EXPECT_EQ(0, check(self)) {
				TH_LOG("after %u allocations", nth);
			}
		}
	}
	EXPECT_LT(0, nr_failed);
}

static void begin(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self)
{
	fail_nth_fd = open("/proc/thread-self/fail-nth", O_RDWR);
	ASSERT_LE(0, fail_nth_fd);

	/* A private page among shared ones, known to the guest */
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	guest_write(&self->tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
}

/* Does the guest find what it did, and can pages be converted? */
static int check_memory(FIXTURE_DATA(sealed) *self)
{
	struct test_vm *tvm = &self->tvm;

	return guest_read(tvm, gpa_of(0)) != SHARED_VALUE(0) ||
	       guest_read(tvm, gpa_of(PAGE)) != PRIVATE_VALUE(PAGE) ||
	       guest_read(tvm, gpa_of(NR_PAGES - 1)) != SHARED_VALUE(NR_PAGES - 1) ||
	       to_private(self, 1, 1) || guest_read(tvm, gpa_of(1)) ||
	       to_shared(self, 1, 1) || guest_read(tvm, gpa_of(1)) != SHARED_VALUE(1);
}

/*
 * The file
 */
static int other_fd;

static int seal(FIXTURE_DATA(sealed) *self)
{
	return fcntl(other_fd, F_ADD_SEALS, F_SEAL_GUEST);
}

static int renew(FIXTURE_DATA(sealed) *self)
{
	close(other_fd);
	other_fd = memfd_create("sealed_memfd_test", MFD_ALLOW_SEALING);
	return other_fd < 0 ? -1 : ftruncate(other_fd, SIZE);
}

static int check_unsealed(FIXTURE_DATA(sealed) *self)
{
	char c;

	return fcntl(other_fd, F_GET_SEALS) || pread(other_fd, &c, 1, 0) != 1;
}

TEST_F(sealed, seal)
{
	begin(_metadata, self);
	ASSERT_EQ(0, renew(self));
	fail_each(_metadata, self, seal, renew, check_unsealed);
}

#define CONVERTED	16
#define NR_CONVERTED	4

static int convert(FIXTURE_DATA(sealed) *self)
{
	return to_private(self, CONVERTED, NR_CONVERTED);
}

static int convert_back(FIXTURE_DATA(sealed) *self)
{
	return to_shared(self, CONVERTED, NR_CONVERTED);
}

/* Pages at the start of the range may be converted; the others are not. */
static int check_conversion(FIXTURE_DATA(sealed) *self)
{
	off_t start = lseek(self->fd, CONVERTED * PAGE_SIZE, SEEK_DATA);
	unsigned long i, private = 0;

	if (start == CONVERTED * PAGE_SIZE)
		private = lseek(self->fd, start, SEEK_HOLE) / PAGE_SIZE - CONVERTED;
	else if (start != -1)
		return -1;

	for (i = 0; i < NR_CONVERTED; i++) {
		if (guest_read(&self->tvm, gpa_of(CONVERTED + i)) !=
		    (i < private ? 0 : SHARED_VALUE(CONVERTED + i)))
			return -1;
	}
	return convert_back(self) ?: check_memory(self);
}

TEST_F(sealed, fallocate)
{
	begin(_metadata, self);
	fail_each(_metadata, self, convert, convert_back, check_conversion);
}

/* There is nothing to allocate for that. */
TEST_F(sealed, punch)
{
	begin(_metadata, self);
	ASSERT_EQ(0, convert(self));
	fail_nth(1);
	EXPECT_EQ(0, convert_back(self));
	EXPECT_FALSE(has_failed());
	fail_nth(0);
	EXPECT_EQ(0, check_memory(self));
}

static int write_content(FIXTURE_DATA(sealed) *self)
{
	static const uint64_t content[PAGE_SIZE / 8];
	ssize_t ret;
	int i;

	for (i = 0; i < NR_CONVERTED; i++) {
		ret = pwrite(self->fd, content, PAGE_SIZE, (CONVERTED + i) * PAGE_SIZE);
		if (ret < 0)
			return ret;
	}
	return 0;
}

TEST_F(sealed, write)
{
	begin(_metadata, self);
	fail_each(_metadata, self, write_content, convert_back, check_conversion);
}

/*
 * Memslots
 */
static int set_memslot(FIXTURE_DATA(sealed) *self, uint32_t flags, uint64_t gpa,
		       uint64_t size)
{
	/* The library's functions do more than the ioctl. */
	struct kvm_userspace_memory_region2 region = {
		.slot = SLOT,
		.flags = KVM_MEM_GUEST_MEMFD | flags,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)self->shared,
		.guest_memfd = self->fd,
	};

	return __vm_ioctl(self->vm, KVM_SET_USER_MEMORY_REGION2, &region);
}

static int bind_memslot(FIXTURE_DATA(sealed) *self)
{
	return set_memslot(self, 0, GPA, SIZE);
}

static int unbind_memslot(FIXTURE_DATA(sealed) *self)
{
	return set_memslot(self, 0, GPA, 0);
}

/* The file isn't left with a binding: it can be bound, and is its owner's. */
static int check_unbound(FIXTURE_DATA(sealed) *self)
{
	return bind_memslot(self) ?: check_memory(self) ?: unbind_memslot(self);
}

TEST_F(sealed, bind)
{
	begin(_metadata, self);
	ASSERT_EQ(0, unbind_memslot(self));
	fail_each(_metadata, self, bind_memslot, unbind_memslot, check_unbound);
}

TEST_F(sealed, unbind)
{
	begin(_metadata, self);
	fail_each(_metadata, self, unbind_memslot, bind_memslot, check_memory);
}

static int log_dirty(FIXTURE_DATA(sealed) *self)
{
	return set_memslot(self, KVM_MEM_LOG_DIRTY_PAGES, GPA, SIZE);
}

TEST_F(sealed, log_dirty)
{
	begin(_metadata, self);
	fail_each(_metadata, self, log_dirty, bind_memslot, check_memory);
}

static int move_memslot(FIXTURE_DATA(sealed) *self)
{
	return set_memslot(self, 0, OTHER_GPA, SIZE);
}

TEST_F(sealed, move)
{
	begin(_metadata, self);
	fail_each(_metadata, self, move_memslot, bind_memslot, check_memory);
}

static int split_memslot(FIXTURE_DATA(sealed) *self)
{
	return split_region(self->vm, SLOT, 2, NR_PAGES / 2, SLOT, SLOT + 1, SLOT + 2);
}

static int merge_memslots(FIXTURE_DATA(sealed) *self)
{
	return merge_regions(self->vm, SLOT, GPA, NR_PAGES);
}

TEST_F(sealed, split)
{
	begin(_metadata, self);
	fail_each(_metadata, self, split_memslot, merge_memslots, check_memory);
}

static int split_logged_memslot(FIXTURE_DATA(sealed) *self)
{
	return log_dirty(self) ?: split_memslot(self);
}

TEST_F(sealed, merge)
{
	begin(_metadata, self);
	ASSERT_EQ(0, split_logged_memslot(self));
	fail_each(_metadata, self, merge_memslots, split_memslot, check_memory);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_SEALED_MEMFD));
	__TEST_REQUIRE(inject_faults(), "No fault injection");

	return test_harness_run(argc, argv);
}
