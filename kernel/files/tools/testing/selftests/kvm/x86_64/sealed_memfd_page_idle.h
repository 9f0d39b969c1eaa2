/* SPDX-License-Identifier: GPL-2.0-only */
/* Idle page tracking: who ages pages, and what of it can be seen. */
#ifndef SELFTEST_KVM_SEALED_MEMFD_PAGE_IDLE_H
#define SELFTEST_KVM_SEALED_MEMFD_PAGE_IDLE_H

#include <fcntl.h>
#include <unistd.h>

#include "processor.h"
#include "test_util.h"

static inline int open_page_idle(void)
{
	return open("/sys/kernel/mm/page_idle/bitmap", O_RDWR);
}

static inline uint64_t pfn_of(const void *hva)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	uint64_t entry;

	TEST_ASSERT(pread(fd, &entry, sizeof(entry), (uintptr_t)hva / PAGE_SIZE *
			  sizeof(entry)) == sizeof(entry), "Can't read pagemap");
	close(fd);
	return entry & GENMASK_ULL(54, 0);
}

/* Pages on their way to the LRU lists can't be aged. */
static inline void drain_lru(void)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);

	TEST_ASSERT(write(fd, "1", 1) == 1, "Can't drop caches");
	close(fd);
}

static inline void set_idle(int fd, uint64_t pfn)
{
	uint64_t bits = BIT_ULL(pfn % 64);

	TEST_ASSERT(pwrite(fd, &bits, sizeof(bits), pfn / 64 * sizeof(bits)) == sizeof(bits),
		    "Can't mark page as idle");
}

static inline bool is_idle(int fd, uint64_t pfn)
{
	uint64_t bits;

	TEST_ASSERT(pread(fd, &bits, sizeof(bits), pfn / 64 * sizeof(bits)) == sizeof(bits),
		    "Can't tell if page is idle");
	return bits & BIT_ULL(pfn % 64);
}

#endif /* SELFTEST_KVM_SEALED_MEMFD_PAGE_IDLE_H */
