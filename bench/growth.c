// SPDX-License-Identifier: GPL-2.0-only
/*
 * Does a conversion cost more with the size of the VM, the number of its memslots, or
 * after many conversions? The guest writes to what is converted before it is. And what
 * of that do the same calls have in a memfd that no guest uses? Writes all samples as
 * JSON to the file that is named as argument.
 */
#include <stdio.h>
#include <string.h>

#include "lib/samples.h"
#include "lib/vm.h"

/* Where conversions are measured, at the start of memory; history is elsewhere. */
#define AREA (64UL << 20)
#define MOST_CYCLES 31

struct setting {
	size_t size;
	unsigned int memslots, history;
};

static const struct setting settings[] = {
	{ 256UL << 20, 1, 0 },	 { GIGABYTE, 1, 0 },	{ 4 * GIGABYTE, 1, 0 },
	{ 16 * GIGABYTE, 1, 0 }, { GIGABYTE, 8, 0 },	{ GIGABYTE, 64, 0 },
	{ GIGABYTE, 512, 0 },	 { GIGABYTE, 1, 1000 }, { GIGABYTE, 1, 100000 },
};
#define NR_SETTINGS (sizeof(settings) / sizeof(settings[0]))

static const enum kind kinds[] = { GUESTSEAL, GUESTSEAL_HUGE, GUEST_MEMFD, BARE, BARE_HUGE };
#define NR_KINDS_HERE (sizeof(kinds) / sizeof(kinds[0]))

/* Single pages, anywhere, to what they are not. */
static void make_history(struct vm *vm, unsigned int conversions)
{
	static char private[GIGABYTE / PAGE];
	size_t pages = (vm->size - AREA) / PAGE, page;
	unsigned int i;

	memset(private, 0, sizeof(private));
	srandom(1);
	for (i = 0; i < conversions; i++) {
		page = random() % pages;
		private[page] = !private[page];
		vm_convert(vm, AREA + page * PAGE, PAGE, private[page]);
	}
}

static int is_bare(enum kind kind)
{
	return kind == BARE || kind == BARE_HUGE;
}

static int compare_longs(const void *a, const void *b)
{
	long x = *(const long *)a, y = *(const long *)b;

	return (x > y) - (x < y);
}

/* There and back: the median of several. */
static long cycle(struct vm *vm, size_t size, int cycles)
{
	long costs[MOST_CYCLES] = { 0 }, begin;
	int i;

	for (i = 0; i < cycles; i++) {
		if (vm->nr_vcpus)
			touch(vm, i * size, size);
		begin = now();
		vm_convert(vm, i * size, size, 1);
		costs[i] = now() - begin;
		if (vm->nr_vcpus)
			touch(vm, i * size, size);
		begin = now();
		vm_convert(vm, i * size, size, 0);
		costs[i] += now() - begin;
	}
	qsort(costs, cycles, sizeof(*costs), compare_longs);
	return costs[cycles / 2];
}

static void measure(const struct setting *setting, enum kind kind, int keep)
{
	struct vm vm = { .kind = kind,
			 .size = setting->size,
			 .slot_size = setting->size / setting->memslots,
			 .nr_vcpus = !is_bare(kind) };
	long small, huge;

	vm_create(&vm);
	make_history(&vm, setting->history);
	small = cycle(&vm, PAGE, MOST_CYCLES);
	huge = cycle(&vm, HUGE_PAGE, 5);
	vm_destroy(&vm);
	if (keep)
		sample("\"way\": \"%s\", \"bytes\": %zu, \"memslots\": %u, \"history\": %u, "
		       "\"cycle_4k\": %ld, \"cycle_2m\": %ld",
		       kind_names[kind], setting->size, setting->memslots, setting->history, small,
		       huge);
}

int main(int argc, char **argv)
{
	size_t setting, kind;
	int i;

	if (argc != 2)
		errx(2, "usage: growth SAMPLES.json");

	enable_huge_pages();
	samples_begin(argv[1]);
	for (setting = 0; setting < NR_SETTINGS; setting++) {
		/* The first round is to warm up. */
		for (i = first_round(); i < repeats(); i++) {
			for (kind = 0; kind < NR_KINDS_HERE; kind++) {
				if (is_bare(kinds[kind]) && settings[setting].memslots > 1)
					continue;
				measure(&settings[setting], kinds[kind], i >= 0);
			}
		}
	}
	samples_end();
	return 0;
}
