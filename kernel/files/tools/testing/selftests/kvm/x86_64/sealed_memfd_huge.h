/* SPDX-License-Identifier: GPL-2.0-only */
/* Huge pages in guest-sealed memfds. */
#ifndef SELFTEST_KVM_SEALED_MEMFD_HUGE_H
#define SELFTEST_KVM_SEALED_MEMFD_HUGE_H

#include <fcntl.h>
#include <linux/sizes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sealed_memfd_util.h"

#define SHMEM_ENABLED	"/sys/kernel/mm/transparent_hugepage/shmem_enabled"
#define PER_HUGE	(SZ_2M / PAGE_SIZE)

/* Chooses what memfds get huge pages, and tells what to give to huge_pages_restore(). */
static inline bool huge_pages_choose(const char *who, char *old, size_t size)
{
	char text[256] = "", *start, *end;
	int fd = open(SHMEM_ENABLED, O_RDONLY);
	bool done;

	done = fd >= 0 && read(fd, text, sizeof(text) - 1) > 0;
	close(fd);
	start = strchr(text, '[');
	end = strchr(text, ']');
	if (!done || !start || !end)
		return false;

	snprintf(old, size, "%.*s", (int)(end - start - 1), start + 1);
	return write_file(SHMEM_ENABLED, who);
}

/* It may take some to find out where there are any. */
static inline void huge_pages_compact(void)
{
	write_file("/proc/sys/vm/compact_memory", "1");
}

static inline bool huge_pages_enable(char *old, size_t size)
{
	huge_pages_compact();
	return huge_pages_choose("always", old, size);
}

static inline void huge_pages_restore(const char *old)
{
	TEST_ASSERT(write_file(SHMEM_ENABLED, old), "Can't restore " SHMEM_ENABLED);
}

static char huge_pages_before[32];
static pid_t huge_pages_pid;

static inline void huge_pages_at_exit(void)
{
	if (getpid() == huge_pages_pid)
		huge_pages_restore(huge_pages_before);
}

/* Chooses for all tests: test_harness_run() does not return. */
static inline bool huge_pages_choose_until_exit(const char *who)
{
	huge_pages_pid = getpid();
	return huge_pages_choose(who, huge_pages_before, sizeof(huge_pages_before)) &&
	       !atexit(huge_pages_at_exit);
}

/* How many there are in files. */
static inline unsigned long huge_pages_in_files(void)
{
	FILE *file = fopen("/proc/meminfo", "r");
	unsigned long kb = 0;
	char line[256];

	TEST_ASSERT(file, __KVM_SYSCALL_ERROR("fopen()", -1));
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "ShmemHugePages: %lu", &kb) == 1)
			break;
	}
	fclose(file);
	return kb / (SZ_2M / 1024);
}

#endif /* SELFTEST_KVM_SEALED_MEMFD_HUGE_H */
