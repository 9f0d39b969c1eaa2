// SPDX-License-Identifier: GPL-2.0-only
/*
 * What does it cost to convert memory to private and back? In a guest-sealed memfd, a
 * guest_memfd, and by the same calls on a memfd that no guest uses; unmapped, or by a
 * guest that writes to the memory before each conversion; in several orders. Writes all
 * samples as JSON to the file that is named as argument.
 */
#include <stdio.h>

#include "lib/samples.h"
#include "lib/vm.h"

#define MOST_CYCLES 255
#define MEMORY GIGABYTE
/* Where small pieces are, but for the random order. */
#define AREA (16UL << 20)

static const size_t sizes[] = { 4UL << 10, 64UL << 10, 2UL << 20, 64UL << 20, GIGABYTE };
#define NR_SIZES (sizeof(sizes) / sizeof(sizes[0]))

enum order {
	SEQUENTIAL,
	RANDOM,
	FRAGMENTED, /* the pieces on both sides are private all the time */
	CUT,	    /* out of 2 MiB that became private at once: the way back comes first */
	NR_ORDERS,
};
static const char *const orders[NR_ORDERS] = { "sequential", "random", "fragmented", "cut" };

static const struct way {
	const char *name;
	enum kind kind;
	int attributes_only; /* pages stay where they are */
} ways[] = {
	{ "guestseal", GUESTSEAL, 0 },
	{ "guest_memfd", GUEST_MEMFD, 0 },
	{ "guest_memfd, attributes only", GUEST_MEMFD, 1 },
	{ "bare memfd", BARE, 0 },
	{ "guestseal, huge pages", GUESTSEAL_HUGE, 0 },
	{ "bare memfd, huge pages", BARE_HUGE, 0 },
};
#define NR_WAYS (sizeof(ways) / sizeof(ways[0]))

struct cycle {
	long to_private, to_shared;
};

struct plan {
	const struct way *way;
	enum order order;
	size_t size;
	int mapped;
};

static int compare(const void *a, const void *b)
{
	const struct cycle *x = a, *y = b;
	long cost_x = x->to_private + x->to_shared, cost_y = y->to_private + y->to_shared;

	return (cost_x > cost_y) - (cost_x < cost_y);
}

static size_t nr_cycles(const struct plan *plan)
{
	size_t area = plan->size < AREA ? AREA : plan->size, stride = plan->size;

	if (plan->order == FRAGMENTED)
		stride = 2 * plan->size;
	if (plan->order == CUT)
		stride = HUGE_PAGE;
	return area / stride < MOST_CYCLES ? area / stride : MOST_CYCLES;
}

static size_t offset_of(const struct plan *plan, size_t cycle)
{
	switch (plan->order) {
	case RANDOM:
		/* A permutation, as that is odd and their number a power of two. */
		return (cycle + 1) * 40503 % (MEMORY / plan->size) * plan->size;
	case FRAGMENTED:
		return (2 * cycle + 1) * plan->size;
	case CUT:
		return cycle * HUGE_PAGE + HUGE_PAGE / 2;
	default:
		return cycle * plan->size;
	}
}

static void prepare(struct vm *vm, const struct plan *plan)
{
	size_t cycles = nr_cycles(plan), i;

	if (plan->way->attributes_only)
		check(fallocate(vm->memfd, FALLOC_FL_KEEP_SIZE, 0,
				plan->size < AREA ? AREA : plan->size),
		      "fallocate");
	for (i = 0; plan->order == FRAGMENTED && i <= cycles; i++)
		vm_convert(vm, 2 * i * plan->size, plan->size, 1);
	for (i = 0; plan->order == CUT && i < cycles; i++)
		vm_convert(vm, i * HUGE_PAGE, HUGE_PAGE, 1);
}

/* Instructions */
static long convert(struct vm *vm, const struct plan *plan, size_t offset, int private)
{
	long begin;

	if (plan->mapped && plan->order == CUT && !private)
		touch(vm, offset & -HUGE_PAGE, HUGE_PAGE);
	else if (plan->mapped)
		touch(vm, offset, plan->size);
	begin = now();
	if (plan->way->attributes_only)
		vm_set_attributes(vm, offset, plan->size, private);
	else
		vm_convert(vm, offset, plan->size, private);
	return now() - begin;
}

/* An interrupt would weigh heavily on a small conversion: the median of many. */
static struct cycle measure(const struct plan *plan)
{
	struct vm vm = { .kind = plan->way->kind, .size = MEMORY, .nr_vcpus = plan->mapped };
	struct cycle taken[MOST_CYCLES] = { 0 };
	size_t cycles = nr_cycles(plan), i;

	vm_create(&vm);
	prepare(&vm, plan);
	for (i = 0; i < cycles; i++) {
		size_t offset = offset_of(plan, i);

		if (plan->order != CUT)
			taken[i].to_private = convert(&vm, plan, offset, 1);
		taken[i].to_shared = convert(&vm, plan, offset, 0);
		if (plan->order == CUT)
			taken[i].to_private = convert(&vm, plan, offset, 1);
	}
	vm_destroy(&vm);
	qsort(taken, cycles, sizeof(*taken), compare);
	return taken[cycles / 2];
}

/* In turns; the first one, to warm up, is left out. 1 GiB takes long, and needs none. */
static void measure_all(enum order order, size_t size, int mapped)
{
	int i = size < GIGABYTE ? first_round() : 0;
	size_t way;

	for (; i < repeats(); i++) {
		for (way = 0; way < NR_WAYS; way++) {
			struct plan plan = { &ways[way], order, size, mapped };
			struct cycle cycle;

			/* No VM, or nothing that would be cut. */
			if (mapped && (ways[way].kind == BARE || ways[way].kind == BARE_HUGE))
				continue;
			if (order != SEQUENTIAL && ways[way].attributes_only)
				continue;
			cycle = measure(&plan);
			if (i < 0)
				continue;
			sample("\"way\": \"%s\", \"order\": \"%s\", \"mapped\": %d, \"bytes\": %zu, "
			       "\"to_private\": %ld, \"to_shared\": %ld",
			       ways[way].name, orders[order], mapped, size, cycle.to_private,
			       cycle.to_shared);
		}
	}
}

int main(int argc, char **argv)
{
	size_t size;
	int order, mapped;

	if (argc != 2)
		errx(2, "usage: conversion SAMPLES.json");

	enable_huge_pages();
	samples_begin(argv[1]);
	for (mapped = 0; mapped < 2; mapped++) {
		for (size = 0; size < NR_SIZES; size++) {
			for (order = 0; order < NR_ORDERS; order++) {
				if (order == SEQUENTIAL || sizes[size] < HUGE_PAGE ||
				    (order != CUT && sizes[size] == HUGE_PAGE))
					measure_all(order, sizes[size], mapped);
			}
		}
	}
	samples_end();
	return 0;
}
