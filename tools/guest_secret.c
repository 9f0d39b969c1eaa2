// SPDX-License-Identifier: GPL-2.0-only
/*
 * In the guest: keep a secret on each page of some ordinary and some private
 * memory, and use it.
 *
 *	guest_secret MEGABYTES
 *
 * Says "hello", and then answers each line that it reads:
 *	keep	ready SEED SUM-ORDINARY SUM-PRIVATE GPA-ORDINARY	(hex)
 *	release	released
 * The kernel doesn't tell where private memory is.
 */
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "secret.h"

#define PAGE 4096UL

static volatile uint64_t *page_of(char *memory, size_t page)
{
	return (volatile uint64_t *)(memory + page * PAGE);
}

static void fill(char *memory, size_t size, uint64_t seed, enum secret_kind kind)
{
	for (size_t page = 0; page < size / PAGE; page++)
		for (int i = 0; i < SECRET_WORDS; i++)
			page_of(memory, page)[i] = secret_word(seed, kind, i);
}

/* All pages have to agree on it. */
static uint64_t sum(char *memory, size_t size)
{
	uint64_t first = secret_sum(page_of(memory, 0));

	for (size_t page = 1; page < size / PAGE; page++)
		if (secret_sum(page_of(memory, page)) != first)
			errx(1, "page %zu has changed by itself", page);
	return first;
}

static uint64_t gpa(const void *address)
{
	uint64_t entry;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	if (fd < 0 || pread(fd, &entry, sizeof(entry), (uintptr_t)address / PAGE * sizeof(entry)) !=
			      sizeof(entry))
		err(1, "/proc/self/pagemap");
	close(fd);
	return (entry & ((1ULL << 55) - 1)) * PAGE;
}

static char *map(int fd, size_t size)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);

	if (memory == MAP_FAILED)
		err(1, "%s memory", fd < 0 ? "ordinary" : "private");
	return memory;
}

int main(int argc, char **argv)
{
	size_t size = (argc == 2 ? strtoul(argv[1], NULL, 10) : 0) << 20;
	char *ordinary = NULL, *private = NULL, line[64];
	uint64_t seed;
	int fd = -1;

	if (!size)
		errx(2, "usage: guest_secret MEGABYTES");
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("hello");

	while (fgets(line, sizeof(line), stdin)) {
		if (!strncmp(line, "keep", 4)) {
			fd = open("/dev/kvm_privmem", O_RDWR);
			if (fd < 0)
				err(1, "/dev/kvm_privmem");
			ordinary = map(-1, size);
			private = map(fd, size);
			if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
				err(1, "getrandom");
			fill(ordinary, size, seed, SECRET_ORDINARY);
			fill(private, size, seed, SECRET_PRIVATE);
			printf("ready %lx %lx %lx %lx\n", seed, sum(ordinary, size),
			       sum(private, size), gpa(ordinary));
		} else if (!strncmp(line, "release", 7)) {
			munmap(ordinary, size);
			munmap(private, size);
			close(fd);
			puts("released");
		}
	}
	return 0;
}
