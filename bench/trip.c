// SPDX-License-Identifier: GPL-2.0-only
/*
 * What does a guest's round trip cost? It has a piece of memory converted to private,
 * writes to it, has it converted back, and writes to it again; explicitly, by a
 * hypercall, or implicitly, by what it writes to. Host and guest together. Writes all
 * samples as JSON to the file that is named as argument.
 */
#include <stdio.h>

#include "lib/samples.h"
#include "lib/vm.h"

#define MEMORY (256UL << 20)

static const struct way {
	const char *name;
	enum kind kind;
	enum guest_code code;
} ways[] = {
	{ "guestseal, explicit", GUESTSEAL, GUEST_EXPLICIT },
	{ "guestseal, implicit", GUESTSEAL, GUEST_IMPLICIT },
	{ "guestseal, huge pages, explicit", GUESTSEAL_HUGE, GUEST_EXPLICIT },
	{ "guestseal, huge pages, implicit", GUESTSEAL_HUGE, GUEST_IMPLICIT },
	{ "guest_memfd, explicit", GUEST_MEMFD, GUEST_EXPLICIT },
};
#define NR_WAYS (sizeof(ways) / sizeof(ways[0]))

static const struct {
	size_t size;
	unsigned int trips; /* in a sample */
} pieces[] = { { PAGE, 1024 }, { 64UL << 10, 256 }, { HUGE_PAGE, 32 } };
#define NR_PIECES (sizeof(pieces) / sizeof(pieces[0]))

static long measure(const struct way *way, size_t size, unsigned int trips)
{
	struct vm vm = { .kind = way->kind,
			 .size = MEMORY,
			 .nr_vcpus = 1,
			 .shared_bit = way->code == GUEST_IMPLICIT,
			 .piece = size };
	long begin, end;

	vm_create(&vm);
	/* The shared half is there. */
	vcpu_run(&vm, 0, GUEST_WRITE, vm.shared_bit ? SHARED_BIT : 0, PAGE, trips * size / PAGE);
	begin = now();
	vcpu_run(&vm, 0, way->code, 0, size, trips);
	end = now();
	vm_destroy(&vm);
	return (end - begin) / trips;
}

int main(int argc, char **argv)
{
	size_t piece, way;
	int i;

	if (argc != 2)
		errx(2, "usage: trip SAMPLES.json");

	enable_huge_pages();
	samples_begin(argv[1]);
	for (piece = 0; piece < NR_PIECES; piece++) {
		/* The first round is to warm up. */
		for (i = first_round(); i < repeats(); i++) {
			for (way = 0; way < NR_WAYS; way++) {
				long trip = measure(&ways[way], pieces[piece].size,
						    pieces[piece].trips);

				if (i >= 0)
					sample("\"way\": \"%s\", \"bytes\": %zu, \"trip\": %ld",
					       ways[way].name, pieces[piece].size, trip);
			}
		}
	}
	samples_end();
	return 0;
}
