/* SPDX-License-Identifier: GPL-2.0-only */
/* What all tests with guest-sealed memfds need. */
#ifndef SELFTEST_KVM_SEALED_MEMFD_UTIL_H
#define SELFTEST_KVM_SEALED_MEMFD_UTIL_H

#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

#ifndef F_SEAL_GUEST
#define F_SEAL_GUEST	0x0040
#endif

#define PUNCH		(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)

static inline bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	bool done;

	done = fd >= 0 && write(fd, text, strlen(text)) == strlen(text);
	close(fd);
	return done;
}

static inline int new_sealed_memfd(size_t size)
{
	int fd = memfd_create("sealed_memfd_test", MFD_ALLOW_SEALING);

	TEST_ASSERT(fd >= 0, __KVM_SYSCALL_ERROR("memfd_create()", fd));
	TEST_ASSERT(!ftruncate(fd, size), __KVM_SYSCALL_ERROR("ftruncate()", -1));
	TEST_ASSERT(!fcntl(fd, F_ADD_SEALS, F_SEAL_GUEST),
		    __KVM_SYSCALL_ERROR("F_SEAL_GUEST", -1));
	return fd;
}

/* Pages count from the memslot's first. */
static inline int split_region(struct kvm_vm *vm, uint32_t slot, unsigned long page,
			       unsigned long nr_pages, uint32_t before, uint32_t range,
			       uint32_t after)
{
	struct kvm_split_memory_region split = {
		.slot = slot,
		.offset = page * PAGE_SIZE,
		.size = nr_pages * PAGE_SIZE,
		.before_slot = before,
		.range_slot = range,
		.after_slot = after,
	};

	return __vm_ioctl(vm, KVM_SPLIT_MEMORY_REGION, &split);
}

static inline int merge_regions(struct kvm_vm *vm, uint32_t slot, uint64_t gpa,
				unsigned long nr_pages)
{
	struct kvm_merge_memory_regions merge = {
		.slot = slot,
		.guest_phys_addr = gpa,
		.memory_size = nr_pages * PAGE_SIZE,
	};

	return __vm_ioctl(vm, KVM_MERGE_MEMORY_REGIONS, &merge);
}

#endif /* SELFTEST_KVM_SEALED_MEMFD_UTIL_H */
