// SPDX-License-Identifier: GPL-2.0
/*
 * Private memory of a VM in a memfd with F_SEAL_GUEST: a page of the memslot is
 * private if and only if it is allocated in the memfd.
 *
 * What host userspace can do with such a file is the memfd selftests' matter.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sealed_memfd.h"
#include "sealed_memfd_page_idle.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif

/*
 * Binding
 */
TEST_F(sealed, capability)
{
	EXPECT_EQ(1, kvm_check_cap(KVM_CAP_SEALED_MEMFD));
	EXPECT_EQ(1, vm_check_cap(self->vm, KVM_CAP_SEALED_MEMFD));
}

TEST_F(sealed, bind_wrong_file)
{
	int fd;

	ASSERT_EQ(0, delete_slot(self->vm, SLOT));

	/* A memfd without the seal, not even a memfd, not even a file. */
	fd = memfd_create("sealed_memfd_test", MFD_ALLOW_SEALING);
	ASSERT_EQ(0, ftruncate(fd, SIZE));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
					self->shared, fd, 0));
	ASSERT_EQ(0, fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
					self->shared, fd, 0));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
					self->shared, self->vm->fd, 0));
	EXPECT_REFUSED(EBADF, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
				       self->shared, -1, 0));
	close(fd);
}

static int sev_init(struct kvm_vm *vm)
{
	struct kvm_sev_cmd cmd = { .id = KVM_SEV_INIT };

	return __vm_ioctl(vm, KVM_MEMORY_ENCRYPT_OP, (unsigned long *)&cmd);
}

/* Encrypted memory is another way to have it private, and not to be mixed. */
TEST(sev)
{
	struct kvm_vm *vm;
	void *shared;
	int fd;

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SEV_VM)))
		SKIP(return, "no SEV");

	fd = new_sealed_memfd(PAGE_SIZE);
	shared = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, shared);

	vm = vm_create_barebones();
	EXPECT_EQ(1, vm_check_cap(vm, KVM_CAP_SEALED_MEMFD));
	ASSERT_EQ(0, sev_init(vm));
	EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_SEALED_MEMFD));
	EXPECT_REFUSED(EINVAL, set_slot(vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, PAGE_SIZE, shared,
					fd, 0));
	kvm_vm_free(vm);

	vm = vm_create_barebones();
	ASSERT_EQ(0, set_slot(vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, PAGE_SIZE, shared, fd, 0));
	EXPECT_REFUSED(EINVAL, sev_init(vm));
	kvm_vm_free(vm);

	munmap(shared, PAGE_SIZE);
	close(fd);
}

/* Who could not write the file has no guest do it. */
TEST_F(sealed, bind_read_only_file)
{
	static const int flags[] = { O_RDONLY, O_WRONLY };
	char path[64];
	unsigned int i;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->fd);
	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		fd = open(path, flags[i]);
		ASSERT_LE(0, fd);

		/* Nor does it count as the file that is bound. */
		EXPECT_EQ(0, set_slot(self->vm, SLOT,
				      KVM_MEM_GUEST_MEMFD | KVM_MEM_LOG_DIRTY_PAGES,
				      GPA, SIZE, self->shared, self->fd, 0));
		EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD,
						GPA, SIZE, self->shared, fd, 0));

		ASSERT_EQ(0, delete_slot(self->vm, SLOT));
		EXPECT_REFUSED(EBADF, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA,
					       SIZE, self->shared, fd, 0));
		close(fd);

		ASSERT_EQ(0, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
				      self->shared, self->fd, 0));
	}
}

TEST_F(sealed, bind_wrong_offset)
{
	static const uint64_t offsets[] = {
		1, PAGE_SIZE - 1, SIZE + PAGE_SIZE, 2 * SIZE, 1ul << 62, 1ul << 63,
		-PAGE_SIZE, -SIZE,
	};
	unsigned int i;

	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	for (i = 0; i < ARRAY_SIZE(offsets); i++)
		EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA,
						SIZE, self->shared, self->fd, offsets[i]));

	/* The last offset that fits */
	EXPECT_EQ(0, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
			      self->shared, self->fd, SIZE));
}

TEST_F(sealed, bind_with_flags)
{
	/* What these do has a test of its own. */
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	EXPECT_EQ(0, set_slot(self->vm, SLOT,
			      KVM_MEM_GUEST_MEMFD | KVM_MEM_LOG_DIRTY_PAGES,
			      GPA, SIZE, self->shared, self->fd, 0));
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	EXPECT_EQ(0, set_slot(self->vm, SLOT,
			      KVM_MEM_GUEST_MEMFD | KVM_MEM_READONLY,
			      GPA, SIZE, self->shared, self->fd, 0));
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD | 1u << 3,
					GPA, SIZE, self->shared, self->fd, 0));
}

TEST_F(sealed, bind_overlap)
{
	unsigned long pages[] = { 0, 1, NR_PAGES - 1 };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pages); i++)
		EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT + 1, KVM_MEM_GUEST_MEMFD,
						OTHER_GPA, SIZE, self->shared + SIZE,
						self->fd, pages[i] * PAGE_SIZE));

	/* One next to the other is fine. */
	EXPECT_EQ(0, set_slot(self->vm, SLOT + 1, KVM_MEM_GUEST_MEMFD, OTHER_GPA, SIZE,
			      self->shared + SIZE, self->fd, SIZE));
	EXPECT_EQ(0, to_private(self, 0, 2 * NR_PAGES));
	guest_write(&self->tvm, OTHER_GPA - 8, 1);
	guest_write(&self->tvm, OTHER_GPA, 2);
	EXPECT_EQ(1, guest_read(&self->tvm, OTHER_GPA - 8));
	EXPECT_EQ(2, guest_read(&self->tvm, OTHER_GPA));
	EXPECT_EQ(0, *(uint64_t *)(self->shared + SIZE));
}

TEST_F(sealed, bind_in_both_address_spaces)
{
	if (vm_check_cap(self->vm, KVM_CAP_MULTI_ADDRESS_SPACE) < 2)
		SKIP(return, "the VM has one address space only");

	EXPECT_EQ(0, add_slot(self, SMM_SLOT, 0, NR_PAGES));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SMM_SLOT + 1, KVM_MEM_GUEST_MEMFD,
					OTHER_GPA, SIZE, self->shared, self->fd, 0));

	EXPECT_EQ(0, to_private(self, PAGE, 1));
	guest_write(&self->tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
	EXPECT_EQ(0, delete_slot(self->vm, SMM_SLOT));
	EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(&self->tvm, gpa_of(PAGE)));
	EXPECT_EQ(0, to_shared(self, PAGE, 1));
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(&self->tvm, gpa_of(PAGE)));
}

TEST_F(sealed, bind_to_second_vm)
{
	struct test_vm second;

	test_vm_create(&second, variant->type);
	EXPECT_REFUSED(EBUSY, set_slot(second.vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
				       self->shared, self->fd, 0));
	/* Not even to a range that the first does not use */
	EXPECT_REFUSED(EBUSY, set_slot(second.vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
				       self->shared, self->fd, SIZE));

	/* Nor while it has left something. */
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	guest_write(&self->tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	EXPECT_REFUSED(EBUSY, set_slot(second.vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
				       self->shared, self->fd, 0));

	/* Then it's the other way round. */
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	ASSERT_EQ(0, set_slot(second.vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
			      self->shared, self->fd, 0));
	EXPECT_REFUSED(EBUSY, add_slot(self, SLOT, 0, NR_PAGES));
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	EXPECT_EQ(0, guest_read(&second, gpa_of(PAGE)));
	kvm_vm_free(second.vm);
}

/* A page cache in which there are nodes, but no pages, is empty. */
TEST_F(sealed, bind_to_second_vm_after_failed_collapse)
{
	struct test_vm second;
	char *p;
	int fd;

	fd = memfd_create("sealed_memfd_test", MFD_ALLOW_SEALING);
	ASSERT_EQ(0, ftruncate(fd, SIZE));
	p = mmap(NULL, 2 * SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, p);
	p = (char *)(((uintptr_t)p + SIZE - 1) & ~(SIZE - 1));
	p = mmap(p, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	/* There is nothing. */
	EXPECT_EQ(-1, madvise(p, SIZE, MADV_COLLAPSE));
	ASSERT_EQ(0, munmap(p, SIZE));
	ASSERT_EQ(0, fcntl(fd, F_ADD_SEALS, F_SEAL_GUEST));

	ASSERT_EQ(0, set_slot(self->vm, SLOT + 1, KVM_MEM_GUEST_MEMFD, OTHER_GPA, SIZE,
			      self->shared + SIZE, fd, 0));
	ASSERT_EQ(0, fallocate(fd, 0, 0, SIZE));
	EXPECT_EQ(SIZE, lseek(fd, 0, SEEK_HOLE));
	ASSERT_EQ(0, fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE));
	ASSERT_EQ(0, delete_slot(self->vm, SLOT + 1));

	test_vm_create(&second, variant->type);
	EXPECT_EQ(0, set_slot(second.vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
			      self->shared, fd, 0));
	kvm_vm_free(second.vm);
	close(fd);
}

TEST_F(sealed, leftovers_of_dead_vm)
{
	struct test_vm second;

	ASSERT_EQ(0, to_private(self, PAGE, 1));
	guest_write(&self->tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
	kvm_vm_free(self->vm);

	test_vm_create(&second, variant->type);
	self->tvm = second;
	self->vm = second.vm;
	EXPECT_REFUSED(EBUSY, add_slot(self, SLOT, 0, NR_PAGES));
	EXPECT_EQ(PAGE * PAGE_SIZE, lseek(self->fd, 0, SEEK_DATA));

	ASSERT_EQ(0, to_shared(self, 0, NR_PAGES));
	ASSERT_EQ(0, add_slot(self, SLOT, 0, NR_PAGES));
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(&self->tvm, gpa_of(PAGE)));
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(PAGE)));
}

TEST_F(sealed, allocated_before_binding)
{
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	ASSERT_EQ(0, add_slot(self, SLOT, 0, NR_PAGES));
	EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(PAGE)));
	EXPECT_EQ(SHARED_VALUE(PAGE + 1), guest_read(&self->tvm, gpa_of(PAGE + 1)));
}

TEST_F(sealed, change_slot)
{
	int other = new_sealed_memfd(2 * SIZE);

	/* Other flags, other memory, another size, another file */
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, 0, GPA, SIZE, self->shared, -1, 0));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT,
					KVM_MEM_GUEST_MEMFD | KVM_MEM_READONLY,
					GPA, SIZE, self->shared, self->fd, 0));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
					self->shared + SIZE, self->fd, 0));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
					self->shared, self->fd, SIZE));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE / 2,
					self->shared, self->fd, 0));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
					self->shared, other, 0));
	close(other);

	/* All of that left it alone. */
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(PAGE)));
	EXPECT_EQ(SHARED_VALUE(PAGE + 1), guest_read(&self->tvm, gpa_of(PAGE + 1)));
}

TEST_F(sealed, dirty_log)
{
	char bitmap[NR_PAGES / 8];
	struct kvm_dirty_log log = { .slot = SLOT, .dirty_bitmap = bitmap };

	EXPECT_REFUSED(ENOENT, __vm_ioctl(self->vm, KVM_GET_DIRTY_LOG, &log));
}

static int set_attributes(struct kvm_vm *vm, uint64_t gpa, uint64_t size, uint64_t value)
{
	struct kvm_memory_attributes attributes = {
		.address = gpa,
		.size = size,
		.attributes = value,
	};

	return __vm_ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &attributes);
}

TEST_F(sealed, memory_attributes)
{
	const uint64_t private = KVM_MEMORY_ATTRIBUTE_PRIVATE;

	if (variant->type == KVM_X86_DEFAULT_VM) {
		/* Depends on whether there are VMs that have any. */
		EXPECT_EQ(-1, set_attributes(self->vm, GPA, PAGE_SIZE, private));
		EXPECT_TRUE(errno == EINVAL || errno == ENOTTY);
		return;
	}

	EXPECT_REFUSED(EINVAL, set_attributes(self->vm, GPA, SIZE, private));
	EXPECT_REFUSED(EINVAL, set_attributes(self->vm, gpa_of(PAGE), PAGE_SIZE, private));
	EXPECT_REFUSED(EINVAL, set_attributes(self->vm, GPA - PAGE_SIZE, 2 * PAGE_SIZE,
					      private));
	EXPECT_REFUSED(EINVAL, set_attributes(self->vm, gpa_of(NR_PAGES - 1),
					      2 * PAGE_SIZE, private));
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(&self->tvm, gpa_of(PAGE)));

	/* What is next to it is no matter, until a memslot is to go there. */
	EXPECT_EQ(0, set_attributes(self->vm, OTHER_GPA, PAGE_SIZE, private));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT + 1, KVM_MEM_GUEST_MEMFD, OTHER_GPA,
					SIZE, self->shared + SIZE, self->fd, SIZE));
	EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, OTHER_GPA,
					SIZE, self->shared, self->fd, 0));
	EXPECT_EQ(0, set_attributes(self->vm, OTHER_GPA, PAGE_SIZE, 0));
	EXPECT_EQ(0, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, OTHER_GPA, SIZE,
			      self->shared, self->fd, 0));
}

TEST_F(sealed, beside_guest_memfd)
{
	int fd;

	if (variant->type == KVM_X86_DEFAULT_VM) {
		struct kvm_create_guest_memfd args = { .size = SIZE };

		/* Still not for these. */
		fd = __vm_ioctl(self->vm, KVM_CREATE_GUEST_MEMFD, &args);
		if (fd >= 0)
			EXPECT_REFUSED(EINVAL, set_slot(self->vm, SLOT + 1,
							KVM_MEM_GUEST_MEMFD, OTHER_GPA,
							SIZE, self->shared + SIZE, fd, 0));
		return;
	}

	fd = vm_create_guest_memfd(self->vm, SIZE, 0);
	ASSERT_EQ(0, set_slot(self->vm, SLOT + 1, KVM_MEM_GUEST_MEMFD, OTHER_GPA, SIZE,
			      self->shared + SIZE, fd, 0));
	/* There, attributes decide. */
	*(uint64_t *)(self->shared + SIZE) = SHARED_VALUE(0);
	ASSERT_EQ(0, fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, PAGE_SIZE));
	EXPECT_EQ(SHARED_VALUE(0), guest_read(&self->tvm, OTHER_GPA));
	ASSERT_EQ(0, set_attributes(self->vm, OTHER_GPA, PAGE_SIZE,
				    KVM_MEMORY_ATTRIBUTE_PRIVATE));
	/* And an access does not choose. */
	guest_command_set(&self->tvm, GUEST_READ, OTHER_GPA, 0);
	EXPECT_EQ(0, guest_read(&self->tvm, OTHER_GPA));
	close(fd);
}

/*
 * Conversion
 */
TEST_F(sealed, convert)
{
	struct test_vm *tvm = &self->tvm;
	uint64_t gpa = gpa_of(PAGE);
	int i;

	for (i = 0; i < 3; i++) {
		/* Shared: guest and host have the same memory. */
		*shared_page(self, PAGE) = SHARED_VALUE(i);
		EXPECT_EQ(SHARED_VALUE(i), guest_read(tvm, gpa));
		guest_write(tvm, gpa, SHARED_VALUE(i + 1));
		EXPECT_EQ(SHARED_VALUE(i + 1), *shared_page(self, PAGE));

		/* Private: zeros at first, and the host sees nothing of it. */
		ASSERT_EQ(0, to_private(self, PAGE, 1));
		EXPECT_EQ(0, guest_read(tvm, gpa));
		EXPECT_EQ(0, guest_read(tvm, gpa + PAGE_SIZE - 8));
		guest_write(tvm, gpa, PRIVATE_VALUE(i));
		EXPECT_EQ(PRIVATE_VALUE(i), guest_read(tvm, gpa));
		EXPECT_EQ(SHARED_VALUE(i + 1), *shared_page(self, PAGE));

		/* Private again: nothing changes. */
		ASSERT_EQ(0, to_private(self, 0, NR_PAGES));
		ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_KEEP_SIZE, 0, SIZE));
		EXPECT_EQ(PRIVATE_VALUE(i), guest_read(tvm, gpa));

		/* Shared: as it was left. */
		ASSERT_EQ(0, to_shared(self, 0, NR_PAGES));
		EXPECT_EQ(SHARED_VALUE(i + 1), guest_read(tvm, gpa));
		ASSERT_EQ(0, to_shared(self, PAGE, 1));
		EXPECT_EQ(SHARED_VALUE(i + 1), guest_read(tvm, gpa));
	}
}

TEST_F(sealed, convert_first_write)
{
	struct test_vm *tvm = &self->tvm;

	/* Without any access before. */
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	guest_write(tvm, gpa_of(PAGE) + 8, PRIVATE_VALUE(PAGE));
	EXPECT_EQ(0, guest_read(tvm, gpa_of(PAGE)));
	EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE) + 8));
	EXPECT_EQ(SHARED_VALUE(PAGE), shared_page(self, PAGE)[0]);
	EXPECT_EQ(0, shared_page(self, PAGE)[1]);
}

TEST_F(sealed, convert_ends_mappings)
{
	struct test_vm *tvm = &self->tvm;
	uint64_t gpa = gpa_of(PAGE);
	int i;

	/* The guest has it in its TLB when the host converts. */
	for (i = 0; i < 100; i++) {
		guest_write(tvm, gpa, SHARED_VALUE(i));
		ASSERT_EQ(0, to_private(self, PAGE, 1));
		ASSERT_EQ(0, guest_read(tvm, gpa));
		guest_write(tvm, gpa, PRIVATE_VALUE(i));
		ASSERT_EQ(SHARED_VALUE(i), *shared_page(self, PAGE));
		ASSERT_EQ(0, to_shared(self, PAGE, 1));
		ASSERT_EQ(SHARED_VALUE(i), guest_read(tvm, gpa));
	}
}

TEST_F(sealed, convert_not_neighbours)
{
	struct test_vm *tvm = &self->tvm;
	unsigned long i;

	for (i = 0; i < 16; i++)
		EXPECT_EQ(SHARED_VALUE(i), guest_read(tvm, gpa_of(i)));

	ASSERT_EQ(0, to_private(self, 4, 3));
	for (i = 0; i < 16; i++)
		EXPECT_EQ(i >= 4 && i < 7 ? 0 : SHARED_VALUE(i), guest_read(tvm, gpa_of(i)));
	for (i = 4; i < 7; i++)
		guest_write(tvm, gpa_of(i), PRIVATE_VALUE(i));

	ASSERT_EQ(0, to_shared(self, 5, 1));
	for (i = 0; i < 16; i++)
		EXPECT_EQ(i == 4 || i == 6 ? PRIVATE_VALUE(i) : SHARED_VALUE(i),
			  guest_read(tvm, gpa_of(i)));
}

TEST_F(sealed, convert_all)
{
	struct test_vm *tvm = &self->tvm;
	unsigned long i, bad = 0;

	ASSERT_EQ(0, to_private(self, 0, NR_PAGES));
	for (i = 0; i < NR_PAGES; i++) {
		bad += guest_read(tvm, gpa_of(i)) != 0;
		guest_write(tvm, gpa_of(i), PRIVATE_VALUE(i));
	}
	for (i = 0; i < NR_PAGES; i++) {
		bad += guest_read(tvm, gpa_of(i)) != PRIVATE_VALUE(i);
		bad += *shared_page(self, i) != SHARED_VALUE(i);
	}
	ASSERT_EQ(0, to_shared(self, 0, NR_PAGES));
	for (i = 0; i < NR_PAGES; i++)
		bad += guest_read(tvm, gpa_of(i)) != SHARED_VALUE(i);
	EXPECT_EQ(0, bad);
}

TEST_F(sealed, convert_discarded)
{
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	guest_write(&self->tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
	/* A VMM saves memory: the content of the shared half is its business. */
	ASSERT_EQ(0, madvise(shared_page(self, PAGE), PAGE_SIZE, MADV_DONTNEED));
	EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(&self->tvm, gpa_of(PAGE)));
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(PAGE)));
}

/* Those that are mapped one by one, and by the guest. */
static void setup_small_pages(FIXTURE_DATA(sealed) *self, unsigned long nr_pages)
{
	unsigned long i;

	TEST_ASSERT(!madvise(self->shared, SIZE, MADV_NOHUGEPAGE) &&
		    !madvise(self->shared, SIZE, MADV_DONTNEED), "Can't discard");
	for (i = 0; i < nr_pages; i++)
		*shared_page(self, i) = SHARED_VALUE(i);
}

/*
 * What happens to the shared half of a private page is nothing to the guest.
 */
TEST_F(sealed, shared_half_is_discarded)
{
	const unsigned long nr_pages = 64;
	struct test_vm *tvm = &self->tvm;
	unsigned long i, mapped, bad = 0;

	setup_small_pages(self, nr_pages);
	for (i = 0; i < nr_pages; i += 2)
		ASSERT_EQ(0, to_private(self, i, 1));
	for (i = 0; i < nr_pages; i++)
		guest_write(tvm, gpa_of(i), PRIVATE_VALUE(i));
	guest_read(tvm, GPA);
	mapped = vm_get_stat(self->vm, "pages_4k");

	/* Only the shared pages among these get unmapped, and are mapped again. */
	ASSERT_EQ(0, madvise(self->shared, nr_pages * PAGE_SIZE, MADV_DONTNEED));
	EXPECT_EQ(mapped - nr_pages / 2, vm_get_stat(self->vm, "pages_4k"));
	for (i = 0; i < nr_pages; i++)
		bad += guest_read(tvm, gpa_of(i)) != (i % 2 ? 0 : PRIVATE_VALUE(i));
	EXPECT_EQ(0, bad);
	EXPECT_EQ(mapped, vm_get_stat(self->vm, "pages_4k"));

	/* The other way round it is the shared ones that stay. */
	ASSERT_EQ(0, to_shared(self, 0, nr_pages));
	EXPECT_EQ(mapped - nr_pages / 2, vm_get_stat(self->vm, "pages_4k"));
	for (i = 0; i < nr_pages; i++)
		bad += guest_read(tvm, gpa_of(i)) != 0;
	EXPECT_EQ(0, bad);

	ASSERT_EQ(0, munmap(self->shared, nr_pages * PAGE_SIZE));
	EXPECT_EQ(mapped - nr_pages, vm_get_stat(self->vm, "pages_4k"));
}

/*
 * A page that was private when the discarding of its shared half began.  What the
 * guest sees in the end must be what the host does.
 */
static void *discard_again_and_again(void *arg)
{
	FIXTURE_DATA(sealed) *self = arg;
	int i;

	for (i = 0; i < 2000; i++)
		madvise(self->shared, 64 * PAGE_SIZE, MADV_DONTNEED);
	return NULL;
}

TEST_F(sealed, shared_half_is_discarded_during_conversions)
{
	struct test_vm *tvm = &self->tvm;
	pthread_t thread;
	unsigned long i, bad = 0;

	setup_small_pages(self, 64);
	ASSERT_EQ(0, pthread_create(&thread, NULL, discard_again_and_again, self));
	while (pthread_tryjoin_np(thread, NULL)) {
		ASSERT_EQ(0, to_private(self, 0, 64));
		guest_write(tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
		bad += guest_read(tvm, gpa_of(PAGE)) != PRIVATE_VALUE(PAGE);
		ASSERT_EQ(0, to_shared(self, 0, 64));
		guest_write(tvm, gpa_of(PAGE), SHARED_VALUE(PAGE));
	}
	EXPECT_EQ(0, bad);

	for (i = 0; i < 64; i++)
		guest_write(tvm, gpa_of(i), SHARED_VALUE(i));
	for (i = 0; i < 64; i++)
		bad += *shared_page(self, i) != SHARED_VALUE(i);
	EXPECT_EQ(0, bad);
}

/* Idle page tracking must not tell when the guest uses private pages. */
TEST_F(sealed, age)
{
	struct test_vm *tvm = &self->tvm;
	uint64_t pfn;
	int fd, round;

	fd = open_page_idle();
	if (fd < 0)
		SKIP(return, "no idle page tracking");

	setup_small_pages(self, 2 * PAGE);
	pfn = pfn_of(shared_page(self, PAGE));
	drain_lru();
	for (round = 0; round < 3; round++) {
		guest_read(tvm, gpa_of(PAGE));
		set_idle(fd, pfn);
		EXPECT_TRUE(is_idle(fd, pfn));
		guest_read(tvm, gpa_of(PAGE));
		EXPECT_FALSE(is_idle(fd, pfn));

		ASSERT_EQ(0, to_private(self, PAGE, 1));
		guest_read(tvm, gpa_of(PAGE));
		set_idle(fd, pfn);
		guest_read(tvm, gpa_of(PAGE));
		EXPECT_TRUE(is_idle(fd, pfn));
		ASSERT_EQ(0, to_shared(self, PAGE, 1));
	}
	close(fd);
}

TEST_F(sealed, failed_conversion)
{
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	guest_write(&self->tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
	EXPECT_REFUSED(EINVAL, fallocate(self->fd, PUNCH, PAGE * PAGE_SIZE + 1, PAGE_SIZE));
	EXPECT_REFUSED(EINVAL, fallocate(self->fd, PUNCH, PAGE * PAGE_SIZE, 8));
	EXPECT_REFUSED(EINVAL, fallocate(self->fd, PUNCH, PAGE * PAGE_SIZE, 2 * SIZE));
	EXPECT_REFUSED(EOPNOTSUPP, fallocate(self->fd, FALLOC_FL_ZERO_RANGE,
					     PAGE * PAGE_SIZE, PAGE_SIZE));
	EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(&self->tvm, gpa_of(PAGE)));
}

TEST_F(sealed, content_stays)
{
	struct test_vm *tvm = &self->tvm;
	unsigned long i, bad = 0;

	ASSERT_EQ(0, to_private(self, 0, NR_PAGES / 2));
	for (i = 0; i < NR_PAGES / 4; i++)
		guest_write(tvm, gpa_of(i), PRIVATE_VALUE(i));

	/* Whatever of these there is. */
	sync();
	write_file("/proc/sys/vm/drop_caches", "3");
	write_file("/proc/sys/vm/compact_memory", "1");
	write_file("/sys/fs/cgroup/memory.reclaim", "16M");

	for (i = 0; i < NR_PAGES / 2; i++)
		bad += guest_read(tvm, gpa_of(i)) !=
			(i < NR_PAGES / 4 ? PRIVATE_VALUE(i) : 0);
	EXPECT_EQ(0, bad);
}

TEST_F(sealed, pre_fault)
{
	struct kvm_pre_fault_memory range = { .gpa = GPA, .size = 8 * PAGE_SIZE };
	unsigned long i;

	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
		SKIP(return, "no KVM_PRE_FAULT_MEMORY");

	ASSERT_EQ(0, to_private(self, 2, 3));
	EXPECT_EQ(0, __vcpu_ioctl(self->tvm.vcpu, KVM_PRE_FAULT_MEMORY, &range));
	EXPECT_EQ(0, range.size);
	for (i = 0; i < 8; i++)
		EXPECT_EQ(i >= 2 && i < 5 ? 0 : SHARED_VALUE(i),
			  guest_read(&self->tvm, gpa_of(i)));
	ASSERT_EQ(0, to_shared(self, 2, 3));
	for (i = 0; i < 8; i++)
		EXPECT_EQ(SHARED_VALUE(i), guest_read(&self->tvm, gpa_of(i)));
}

/*
 * Memslots come and go, the memory stays.
 */
TEST_F(sealed, recreate_slot)
{
	struct test_vm *tvm = &self->tvm;
	int i;

	ASSERT_EQ(0, to_private(self, PAGE, 1));
	for (i = 0; i < 10; i++) {
		guest_write(tvm, gpa_of(PAGE), PRIVATE_VALUE(i));
		ASSERT_EQ(0, delete_slot(self->vm, SLOT));
		ASSERT_EQ(0, add_slot(self, SLOT + i, 0, NR_PAGES));
		EXPECT_EQ(PRIVATE_VALUE(i), guest_read(tvm, gpa_of(PAGE)));
		EXPECT_EQ(SHARED_VALUE(PAGE + 1), guest_read(tvm, gpa_of(PAGE + 1)));
		ASSERT_EQ(0, delete_slot(self->vm, SLOT + i));

		/* In parts, and at the same place in the file only */
		ASSERT_EQ(0, add_slot(self, SLOT, 0, PAGE + 1));
		ASSERT_EQ(0, add_slot(self, SLOT + 1, PAGE + 1, NR_PAGES - PAGE - 1));
		EXPECT_EQ(PRIVATE_VALUE(i), guest_read(tvm, gpa_of(PAGE)));
		EXPECT_EQ(SHARED_VALUE(PAGE + 1), guest_read(tvm, gpa_of(PAGE + 1)));
		ASSERT_EQ(0, delete_slot(self->vm, SLOT + 1));
		ASSERT_EQ(0, delete_slot(self->vm, SLOT));
		ASSERT_EQ(0, add_slot(self, SLOT, 0, NR_PAGES));
	}
}

TEST_F(sealed, convert_while_unbound)
{
	struct test_vm *tvm = &self->tvm;

	ASSERT_EQ(0, to_private(self, 0, 2));
	guest_write(tvm, gpa_of(0), PRIVATE_VALUE(0));
	guest_write(tvm, gpa_of(1), PRIVATE_VALUE(1));
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, to_shared(self, 1, 1));
	ASSERT_EQ(0, to_private(self, 2, 1));
	ASSERT_EQ(0, add_slot(self, SLOT, 0, NR_PAGES));
	EXPECT_EQ(PRIVATE_VALUE(0), guest_read(tvm, gpa_of(0)));
	EXPECT_EQ(SHARED_VALUE(1), guest_read(tvm, gpa_of(1)));
	EXPECT_EQ(0, guest_read(tvm, gpa_of(2)));
}

TEST_F(sealed, move_slot)
{
	struct test_vm *tvm = &self->tvm;
	int i;

	ASSERT_EQ(0, to_private(self, PAGE, 1));
	for (i = 0; i < 10; i++) {
		guest_write(tvm, gpa_of(PAGE), PRIVATE_VALUE(i));
		ASSERT_EQ(0, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, OTHER_GPA, SIZE,
				      self->shared, self->fd, 0));
		EXPECT_EQ(PRIVATE_VALUE(i), guest_read(tvm, gpa_of(PAGE) + SIZE));

		/* The binding has moved with it. */
		ASSERT_EQ(0, to_shared(self, PAGE, 1));
		EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE) + SIZE));
		ASSERT_EQ(0, to_private(self, PAGE, 1));
		EXPECT_EQ(0, guest_read(tvm, gpa_of(PAGE) + SIZE));

		ASSERT_EQ(0, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
				      self->shared, self->fd, 0));
		EXPECT_EQ(0, guest_read(tvm, gpa_of(PAGE)));
	}
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, add_slot(self, SLOT + 1, 0, NR_PAGES));
	EXPECT_EQ(0, guest_read(tvm, gpa_of(PAGE)));
}

TEST_F(sealed, replace_by_ordinary_slot)
{
	struct test_vm *tvm = &self->tvm;

	ASSERT_EQ(0, to_private(self, PAGE, 1));
	guest_write(tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, set_slot(self->vm, SLOT, 0, GPA, SIZE, self->shared, -1, 0));
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));

	/* Nothing ties it to the file. */
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	ASSERT_EQ(0, to_private(self, PAGE, 2));
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
}

/* Converted in many chunks */
#define MANY_PAGES	(16 * NR_PAGES)

struct converter {
	int fd;
	unsigned long calls;
	bool stop;
};

static void *convert_all_the_time(void *data)
{
	struct converter *converter = data;
	const unsigned long size = MANY_PAGES * PAGE_SIZE;

	while (!READ_ONCE(converter->stop)) {
		TEST_ASSERT(!fallocate(converter->fd, 0, 0, size), "Can't allocate");
		WRITE_ONCE(converter->calls, converter->calls + 1);
		TEST_ASSERT(!fallocate(converter->fd, PUNCH, 0, size), "Can't punch");
		WRITE_ONCE(converter->calls, converter->calls + 1);
	}
	return NULL;
}

/* A memslot can be had while long conversions go on, of two files at once. */
TEST_F(sealed, change_slot_during_long_conversions)
{
	const unsigned long size = MANY_PAGES * PAGE_SIZE;
	struct converter converters[2] = {};
	unsigned long calls = 0;
	const int nr_changes = 40;
	pthread_t threads[2];
	char *shared;
	int i;

	shared = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	ASSERT_NE(MAP_FAILED, shared);
	for (i = 0; i < 2; i++) {
		converters[i].fd = new_sealed_memfd(size);
		ASSERT_EQ(0, set_slot(self->vm, SLOT + 1 + i, KVM_MEM_GUEST_MEMFD,
				      MMIO_GPA + SIZE + i * size, size, shared + i * size,
				      converters[i].fd, 0));
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, convert_all_the_time,
					    &converters[i]));
		while (!READ_ONCE(converters[i].calls))
			sched_yield();
	}

	for (i = 0; i < 2; i++)
		calls -= READ_ONCE(converters[i].calls);
	for (i = 0; i < nr_changes; i++) {
		ASSERT_EQ(0, delete_slot(self->vm, SLOT));
		ASSERT_EQ(0, add_slot(self, SLOT, 0, NR_PAGES));
	}
	for (i = 0; i < 2; i++)
		calls += READ_ONCE(converters[i].calls);

	for (i = 0; i < 2; i++) {
		WRITE_ONCE(converters[i].stop, true);
		pthread_join(threads[i], NULL);
		ASSERT_EQ(0, delete_slot(self->vm, SLOT + 1 + i));
		close(converters[i].fd);
	}
	munmap(shared, 2 * size);

	/* Kept waiting, each change would take several calls. */
	TH_LOG("%lu calls during %d changes", calls, nr_changes);
	EXPECT_GT(4 * nr_changes, calls);
}

TEST_F(sealed, close_file)
{
	struct test_vm *tvm = &self->tvm;

	ASSERT_EQ(0, to_private(self, PAGE, 1));
	guest_write(tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
	close(self->fd);
	self->fd = -1;
	EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
	guest_write(tvm, gpa_of(PAGE) + 8, 1);
	EXPECT_EQ(1, guest_read(tvm, gpa_of(PAGE) + 8));
	EXPECT_EQ(SHARED_VALUE(0), guest_read(tvm, gpa_of(0)));
	/* This is the last reference. */
	EXPECT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, set_slot(self->vm, SLOT, 0, GPA, SIZE, self->shared, -1, 0));
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
}

TEST_F(sealed, convert_after_vm)
{
	struct test_vm second;

	test_vm_create(&second, variant->type);
	ASSERT_EQ(0, to_private(self, 0, NR_PAGES));
	guest_write(&self->tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
	kvm_vm_free(self->vm);
	self->vm = second.vm;

	/* No one is there to be told. */
	EXPECT_EQ(0, to_shared(self, 0, NR_PAGES));
	EXPECT_EQ(0, to_private(self, 0, NR_PAGES));
	EXPECT_EQ(0, to_shared(self, 0, NR_PAGES));
	EXPECT_EQ(0, add_slot(self, SLOT, 0, NR_PAGES));
}

/*
 * Processes
 */
TEST_F(sealed, fork)
{
	struct test_vm *tvm = &self->tvm;
	int status;
	pid_t pid;

	guest_write(tvm, gpa_of(PAGE), SHARED_VALUE(0));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		/* A child can convert, but it has no VM. */
		bool ok = !to_private(self, PAGE, 1) &&
			delete_slot(self->vm, SLOT) == -1 && errno == EIO;

		_exit(!ok);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(0, guest_read(tvm, gpa_of(PAGE)));
	EXPECT_EQ(SHARED_VALUE(PAGE + 1), guest_read(tvm, gpa_of(PAGE + 1)));
	EXPECT_EQ(0, to_shared(self, PAGE, 1));
	EXPECT_EQ(SHARED_VALUE(0), guest_read(tvm, gpa_of(PAGE)));
}

/* How a process with a running VM ends. */
enum process_end {
	PROCESS_EXITS,
	PROCESS_EXECS,
	PROCESS_IS_KILLED,
};

static void live_vm(uint32_t type, int fd, void *shared, int ready,
		    enum process_end end)
{
	struct test_vm tvm;

	test_vm_create(&tvm, type);
	if (set_slot(tvm.vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE, shared, fd, 0) ||
	    fallocate(fd, 0, 0, SIZE))
		_exit(1);
	guest_write(&tvm, GPA, PRIVATE_VALUE(0));
	if (write(ready, "", 1) != 1)
		_exit(1);

	switch (end) {
	case PROCESS_EXITS:
		_exit(0);
	case PROCESS_EXECS:
		/* With the VM in the new program, which knows nothing of it. */
		fcntl(tvm.vm->fd, F_SETFD, 0);
		fcntl(tvm.vcpu->fd, F_SETFD, 0);
		dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
		execl("/proc/self/exe", "sealed_memfd_test", "-h", NULL);
		_exit(1);
	case PROCESS_IS_KILLED:
		for (;;)
			guest_read(&tvm, GPA);
	}
}

static void end_live_vm(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self,
			uint32_t type, enum process_end end)
{
	int status, ready[2];
	pid_t pid;
	char c;

	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, pipe(ready));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		live_vm(type, self->fd, self->shared, ready[1], end);

	close(ready[1]);
	ASSERT_EQ(1, read(ready[0], &c, 1));
	if (end == PROCESS_IS_KILLED) {
		EXPECT_REFUSED(EBUSY, add_slot(self, SLOT, 0, NR_PAGES));
		/* It's running meanwhile. */
		ASSERT_EQ(0, to_shared(self, 0, NR_PAGES / 2));
		ASSERT_EQ(0, to_private(self, 0, NR_PAGES / 2));
		kill(pid, SIGKILL);
	} else {
		/* Nor do changes mind what the process is up to. */
		ASSERT_EQ(0, to_shared(self, 0, NR_PAGES / 2));
		ASSERT_EQ(0, to_private(self, 0, NR_PAGES / 2));
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	if (end == PROCESS_EXITS)
		EXPECT_EQ(0, status);
	if (end == PROCESS_IS_KILLED)
		EXPECT_TRUE(WIFSIGNALED(status));

	EXPECT_EQ(0, to_shared(self, 1, NR_PAGES - 1));
	EXPECT_REFUSED(EBUSY, add_slot(self, SLOT, 0, NR_PAGES));
	EXPECT_EQ(0, to_shared(self, 0, NR_PAGES));
	EXPECT_EQ(0, add_slot(self, SLOT, 0, NR_PAGES));
	EXPECT_EQ(SHARED_VALUE(0), guest_read(&self->tvm, GPA));
	EXPECT_EQ(0, to_private(self, 0, NR_PAGES));
	EXPECT_EQ(0, guest_read(&self->tvm, GPA));
}

TEST_F(sealed, exit_with_live_vm)
{
	end_live_vm(_metadata, self, variant->type, PROCESS_EXITS);
}

TEST_F(sealed, exec_with_live_vm)
{
	end_live_vm(_metadata, self, variant->type, PROCESS_EXECS);
}

TEST_F(sealed, killed_with_live_vm)
{
	end_live_vm(_metadata, self, variant->type, PROCESS_IS_KILLED);
}

/*
 * What a guest and userspace tell each other
 */
static void guest_convert(struct test_vm *tvm, uint64_t gpa, uint64_t nr_pages,
			  uint64_t attributes)
{
	guest_command_set(tvm, GUEST_HYPERCALL, gpa, nr_pages);
	tvm->command->attributes = attributes;
	vcpu_run(tvm->vcpu);
}

TEST_F(sealed, explicit_conversion)
{
	static const uint64_t attributes[] = {
		KVM_MAP_GPA_RANGE_ENCRYPTED | KVM_MAP_GPA_RANGE_PAGE_SZ_4K,
		KVM_MAP_GPA_RANGE_DECRYPTED | KVM_MAP_GPA_RANGE_PAGE_SZ_4K,
	};
	static const int64_t results[] = { 0, -KVM_EINVAL, -KVM_E2BIG, -KVM_EPERM };
	struct test_vm *tvm = &self->tvm;
	struct kvm_run *run = tvm->vcpu->run;
	unsigned int i, j;

	vm_enable_cap(self->vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE));

	for (i = 0; i < ARRAY_SIZE(attributes); i++) {
		bool private = attributes[i] & KVM_MAP_GPA_RANGE_ENCRYPTED;

		for (j = 0; j < ARRAY_SIZE(results); j++) {
			guest_convert(tvm, gpa_of(PAGE), 2, attributes[i]);
			TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_HYPERCALL);
			EXPECT_EQ(KVM_HC_MAP_GPA_RANGE, run->hypercall.nr);
			EXPECT_EQ(gpa_of(PAGE), run->hypercall.args[0]);
			EXPECT_EQ(2, run->hypercall.args[1]);
			EXPECT_EQ(attributes[i], run->hypercall.args[2]);

			EXPECT_EQ(0, private ? to_private(self, PAGE, 2) :
					       to_shared(self, PAGE, 2));
			run->hypercall.ret = results[j];
			vcpu_run(tvm->vcpu);
			EXPECT_EQ(results[j], (int64_t)guest_result(tvm));
		}
		EXPECT_EQ(private ? 0 : SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
		EXPECT_EQ(private ? 0 : SHARED_VALUE(PAGE + 1),
			  guest_read(tvm, gpa_of(PAGE + 1)));
	}

	/* What makes no sense does not get out. */
	guest_convert(tvm, gpa_of(PAGE) + 1, 1, attributes[0]);
	EXPECT_EQ(-KVM_EINVAL, (int64_t)guest_result(tvm));
	guest_convert(tvm, gpa_of(PAGE), 0, attributes[0]);
	EXPECT_EQ(-KVM_EINVAL, (int64_t)guest_result(tvm));
}

TEST_F(sealed, explicit_conversion_not_enabled)
{
	guest_convert(&self->tvm, gpa_of(PAGE), 1, KVM_MAP_GPA_RANGE_ENCRYPTED);
	EXPECT_EQ(-KVM_ENOSYS, (int64_t)guest_result(&self->tvm));
}

TEST_F(sealed, fault_without_shared_half)
{
	struct test_vm *tvm = &self->tvm;
	uint64_t gpa = gpa_of(PAGE);
	enum guest_op op;

	ASSERT_EQ(0, munmap(shared_page(self, PAGE), PAGE_SIZE));
	for (op = GUEST_READ; op <= GUEST_WRITE; op++) {
		guest_command_set(tvm, op, gpa + 8, 1);
		expect_memory_fault(_metadata, tvm, gpa, 0, EFAULT);
		expect_memory_fault(_metadata, tvm, gpa, 0, EFAULT);

		/* The private half is enough to go on. */
		ASSERT_EQ(0, to_private(self, PAGE, 1));
		vcpu_run(tvm->vcpu);
		EXPECT_EQ(0, guest_result(tvm));
		ASSERT_EQ(0, to_shared(self, PAGE, 1));
	}
}

TEST_F(sealed, fault_on_protected_shared_half)
{
	struct test_vm *tvm = &self->tvm;

	ASSERT_EQ(0, mprotect(shared_page(self, PAGE), PAGE_SIZE, PROT_READ));
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
	guest_command_set(tvm, GUEST_WRITE, gpa_of(PAGE), 1);
	expect_memory_fault(_metadata, tvm, gpa_of(PAGE), 0, EFAULT);

	ASSERT_EQ(0, mprotect(shared_page(self, PAGE), PAGE_SIZE, PROT_READ | PROT_WRITE));
	vcpu_run(tvm->vcpu);
	EXPECT_EQ(1, *shared_page(self, PAGE));
}

/* VMMs that know nothing of private memory see what they always saw. */
TEST_F(sealed, fault_in_ordinary_slot)
{
	struct test_vm *tvm = &self->tvm;
	enum guest_op op;

	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, set_slot(self->vm, SLOT, 0, GPA, SIZE, self->shared, -1, 0));
	ASSERT_EQ(0, munmap(shared_page(self, PAGE), PAGE_SIZE));
	for (op = GUEST_READ; op <= GUEST_WRITE; op++) {
		guest_command_set(tvm, op, gpa_of(PAGE), 1);
		EXPECT_REFUSED(EFAULT, _vcpu_run(tvm->vcpu));
		EXPECT_NE(KVM_EXIT_MEMORY_FAULT, tvm->vcpu->run->exit_reason);
	}
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_SEALED_MEMFD));

	return test_harness_run(argc, argv);
}
