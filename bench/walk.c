// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is a guest's walk over memory that it has touched before, and that is more than
 * any TLB has entries for? Instructions don't show what misses cost, so this tells by
 * how many pages KVM has mapped the memory; and that there are no exits. Writes all
 * samples as JSON to the file that is named as argument.
 */
#include <stdio.h>

#include "lib/samples.h"
#include "lib/vm.h"

#define MEMORY GIGABYTE
#define WALKS 4

static const struct way {
	enum kind kind;
	int private;
} ways[] = {
	{ ANONYMOUS, 0 }, { ANONYMOUS_HUGE, 0 }, { MAPPED, 0 },	     { MAPPED_HUGE, 0 },
	{ GUESTSEAL, 1 }, { GUESTSEAL_HUGE, 1 }, { GUEST_MEMFD, 1 },
};
#define NR_WAYS (sizeof(ways) / sizeof(ways[0]))

static void measure(const struct way *way)
{
	struct vm vm = { .kind = way->kind, .size = MEMORY, .nr_vcpus = 1 };
	long small, huge, exits, faults, took;
	int i;

	vm_create(&vm);
	if (way->private)
		vm_convert(&vm, 0, MEMORY, 1);
	touch(&vm, 0, MEMORY);
	/* Three are the guest's code and page tables. */
	small = vm_stat(&vm, "pages_4k");
	huge = vm_stat(&vm, "pages_2m");

	exits = vcpu_stat(&vm, 0, "exits");
	faults = vcpu_stat(&vm, 0, "pf_taken");
	took = now();
	for (i = 0; i < WALKS; i++)
		vcpu_run(&vm, 0, GUEST_READ, 0, PAGE, MEMORY / PAGE);
	took = now() - took;
	sample("\"way\": \"%s\", \"mapped_4k\": %ld, \"mapped_2m\": %ld, \"exits\": %ld, "
	       "\"faults\": %ld, \"walk\": %ld",
	       kind_names[vm.kind], small, huge, (vcpu_stat(&vm, 0, "exits") - exits) / WALKS,
	       vcpu_stat(&vm, 0, "pf_taken") - faults, took / WALKS);
	vm_destroy(&vm);
}

int main(int argc, char **argv)
{
	size_t way;
	int i;

	if (argc != 2)
		errx(2, "usage: walk SAMPLES.json");

	enable_huge_pages();
	samples_begin(argv[1]);
	for (i = 0; i < repeats(); i++) {
		for (way = 0; way < NR_WAYS; way++)
			measure(&ways[way]);
	}
	samples_end();
	return 0;
}
