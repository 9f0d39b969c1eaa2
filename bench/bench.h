/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the benchmarks have in common.
 *
 * To be run where CLOCK_MONOTONIC counts instructions: QEMU's -icount shift=0.
 */
#ifndef BENCH_H
#define BENCH_H

#include <err.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifndef F_SEAL_GUEST
#define F_SEAL_GUEST 0x0040
#endif

#ifndef MFD_HUGEPAGE
#define MFD_HUGEPAGE 0x1000U
#endif

/* Samples of which one figure is made. */
#define REPEATS 5

/* As many, or what the environment says: fewer are for a quick look. */
static inline int repeats(void)
{
	const char *value = getenv("REPEATS");

	return value && *value ? atoi(value) : REPEATS;
}

/* One sample more to warm up, if there are several: its number is negative. */
static inline int first_round(void)
{
	return repeats() > 1 ? -1 : 0;
}

static inline int check(int ret, const char *what)
{
	if (ret < 0)
		err(1, "%s", what);
	return ret;
}

static inline long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static inline int create_memfd(const char *name, unsigned int flags, size_t size)
{
	int fd = check(memfd_create(name, MFD_CLOEXEC | flags), "memfd_create");

	check(ftruncate(fd, size), "ftruncate");
	return fd;
}

static inline int create_sealed_memfd(const char *name, unsigned int flags, size_t size)
{
	int fd = create_memfd(name, MFD_ALLOW_SEALING | flags, size);

	check(fcntl(fd, F_ADD_SEALS, F_SEAL_GUEST), "F_SEAL_GUEST");
	return fd;
}

/* Memfds that ask for huge pages get them. */
static inline void enable_huge_pages(void)
{
	int fd = check(open("/sys/kernel/mm/transparent_hugepage/shmem_enabled", O_WRONLY),
		       "shmem_enabled");

	check(write(fd, "advise", 6), "shmem_enabled");
	close(fd);
}

#endif
