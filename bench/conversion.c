// SPDX-License-Identifier: GPL-2.0-only
/*
 * What does it cost to convert memory to private and back? Three ways in turn:
 * a guest-sealed memfd, a guest_memfd, and the same calls on a memfd that no
 * guest uses; memfds with huge pages, too. Prints a table; writes all samples as
 * JSON to the file that is named as argument.
 */
#include <linux/kvm.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include "bench.h"

#define MOST_CYCLES 255
#define MEMORY (64UL << 20)

static const size_t sizes[] = { 4UL << 10, 64UL << 10, 2UL << 20, 64UL << 20 };
#define NR_SIZES (sizeof(sizes) / sizeof(sizes[0]))

struct way {
	const char *name;
	int fd;
	int attributes_vm; /* whose attributes have to agree, or -1 */
};

enum { GUESTSEAL, GUEST_MEMFD, BARE, GUESTSEAL_HUGE, BARE_HUGE, NR_WAYS };
static struct way ways[NR_WAYS];

struct sample {
	long to_private, to_shared;
};

static struct sample samples[NR_WAYS][NR_SIZES][REPEATS];

static int create_vm(unsigned long type)
{
	static int kvm = -1;

	if (kvm < 0)
		kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	return check(ioctl(kvm, KVM_CREATE_VM, type), "KVM_CREATE_VM");
}

static void bind(int vm, int fd, void *shared)
{
	struct kvm_userspace_memory_region2 region = {
		.flags = KVM_MEM_GUEST_MEMFD,
		.memory_size = MEMORY,
		.userspace_addr = (unsigned long)shared,
		.guest_memfd = fd,
	};

	check(ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region), "KVM_SET_USER_MEMORY_REGION2");
}

static void setup(void)
{
	struct kvm_create_guest_memfd guest_memfd = { .size = MEMORY };
	int protected_vm = create_vm(KVM_X86_SW_PROTECTED_VM);
	void *shared =
		mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int fd;

	if (shared == MAP_FAILED)
		err(1, "mmap");

	enable_huge_pages();

	fd = create_sealed_memfd("guestseal", 0, MEMORY);
	bind(create_vm(KVM_X86_DEFAULT_VM), fd, shared);
	ways[GUESTSEAL] = (struct way){ "guestseal", fd, -1 };

	fd = create_sealed_memfd("guestseal-huge", MFD_HUGEPAGE, MEMORY);
	bind(create_vm(KVM_X86_DEFAULT_VM), fd, shared);
	ways[GUESTSEAL_HUGE] = (struct way){ "guestseal, huge pages", fd, -1 };

	fd = check(ioctl(protected_vm, KVM_CREATE_GUEST_MEMFD, &guest_memfd),
		   "KVM_CREATE_GUEST_MEMFD");
	bind(protected_vm, fd, shared);
	ways[GUEST_MEMFD] = (struct way){ "guest_memfd", fd, protected_vm };

	ways[BARE] = (struct way){ "bare memfd", create_memfd("bare", 0, MEMORY), -1 };
	ways[BARE_HUGE] = (struct way){ "bare memfd, huge pages",
					create_memfd("bare-huge", MFD_HUGEPAGE, MEMORY), -1 };
}

static void convert(const struct way *way, size_t offset, size_t size, int private)
{
	struct kvm_memory_attributes attributes = {
		.address = offset,
		.size = size,
		.attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
	};
	int mode = FALLOC_FL_KEEP_SIZE | (private ? 0 : FALLOC_FL_PUNCH_HOLE);

	if (way->attributes_vm >= 0)
		check(ioctl(way->attributes_vm, KVM_SET_MEMORY_ATTRIBUTES, &attributes),
		      "KVM_SET_MEMORY_ATTRIBUTES");
	check(fallocate(way->fd, mode, offset, size), "fallocate");
}

static long cost(const struct sample *sample)
{
	return sample->to_private + sample->to_shared;
}

static int compare(const void *a, const void *b)
{
	long x = cost(a), y = cost(b);

	return (x > y) - (x < y);
}

/* An interrupt would weigh heavily on a small conversion: the median of many. */
static struct sample measure(const struct way *way, size_t size)
{
	size_t cycles = MEMORY / size < MOST_CYCLES ? MEMORY / size : MOST_CYCLES;
	struct sample taken[MOST_CYCLES] = { 0 };
	size_t i;

	for (i = 0; i < cycles; i++) {
		long begin = now(), middle;

		convert(way, i * size, size, 1);
		middle = now();
		convert(way, i * size, size, 0);
		taken[i] = (struct sample){ middle - begin, now() - middle };
	}
	qsort(taken, cycles, sizeof(*taken), compare);
	return taken[cycles / 2];
}

static struct figure cycle(int way, size_t size)
{
	long costs[REPEATS];
	int i;

	for (i = 0; i < REPEATS; i++)
		costs[i] = cost(&samples[way][size][i]);
	return figure_of(costs);
}

static void print_ratio(const struct figure *a, const struct figure *b)
{
	printf(" %.3f |", (double)a->median / b->median);
}

static void print_table(void)
{
	struct figure figures[NR_WAYS];
	size_t size;
	int way;

	printf("| Cycle of | guestseal | guest_memfd | bare memfd | guestseal, huge pages "
	       "| bare memfd, huge pages | guestseal / guest_memfd | guestseal / bare "
	       "| huge: guestseal / guest_memfd | huge: guestseal / bare |\n"
	       "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
	for (size = 0; size < NR_SIZES; size++) {
		printf("| %zu KiB |", sizes[size] >> 10);
		for (way = 0; way < NR_WAYS; way++) {
			figures[way] = cycle(way, size);
			printf(" %ld (%.1f %%) |", figures[way].median, figures[way].spread);
		}
		print_ratio(&figures[GUESTSEAL], &figures[GUEST_MEMFD]);
		print_ratio(&figures[GUESTSEAL], &figures[BARE]);
		print_ratio(&figures[GUESTSEAL_HUGE], &figures[GUEST_MEMFD]);
		print_ratio(&figures[GUESTSEAL_HUGE], &figures[BARE_HUGE]);
		printf("\n");
	}
}

static void write_json(const char *path)
{
	const char *separator = "";
	FILE *file = fopen(path, "w");
	size_t size;
	int way, i;

	if (!file)
		err(1, "%s", path);
	fprintf(file, "[");
	for (size = 0; size < NR_SIZES; size++) {
		for (i = 0; i < REPEATS; i++) {
			for (way = 0; way < NR_WAYS; way++) {
				struct sample *sample = &samples[way][size][i];

				fprintf(file,
					"%s\n{\"way\": \"%s\", \"bytes\": %zu, \"to_private\": %ld, "
					"\"to_shared\": %ld}",
					separator, ways[way].name, sizes[size], sample->to_private,
					sample->to_shared);
				separator = ",";
			}
		}
	}
	fprintf(file, "\n]\n");
	if (fclose(file))
		err(1, "%s", path);
}

int main(int argc, char **argv)
{
	size_t size;
	int way, i;

	if (argc != 2)
		errx(2, "usage: conversion SAMPLES.json");

	setup();
	for (size = 0; size < NR_SIZES; size++) {
		/* The first round is to warm up. */
		for (i = -1; i < REPEATS; i++) {
			for (way = 0; way < NR_WAYS; way++) {
				struct sample sample = measure(&ways[way], sizes[size]);

				if (i >= 0)
					samples[way][size][i] = sample;
			}
		}
	}
	print_table();
	write_json(argv[1]);
	return 0;
}
