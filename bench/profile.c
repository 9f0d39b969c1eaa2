// SPDX-License-Identifier: GPL-2.0-only
/*
 * Some of what other benchmarks measure, for a look at where the instructions go:
 * plugin/count.c counts between begin() and end(). Prints the name of each section and
 * how often it was done.
 */
#include <sched.h>
#include <stdio.h>

#include "lib/vm.h"

/* System calls that nobody else makes here; the plugin knows them by their addresses. */
static void begin(void)
{
	sched_get_priority_max(SCHED_FIFO);
}

static void end(void)
{
	sched_get_priority_min(SCHED_FIFO);
}

static void next(const char *name, unsigned int times)
{
	struct timespec unused;

	sched_rr_get_interval(0, &unused);
	printf("%s\t%u\n", name, times);
}

static void profile_cycles(const char *name, enum kind kind, size_t size, unsigned int times,
			   int mapped)
{
	struct vm vm = { .kind = kind, .size = GIGABYTE, .nr_vcpus = mapped };
	unsigned int i;

	vm_create(&vm);
	next(name, times);
	for (i = 0; i < times; i++) {
		if (mapped)
			touch(&vm, i * size, size);
		begin();
		vm_convert(&vm, i * size, size, 1);
		end();
		if (mapped)
			touch(&vm, i * size, size);
		begin();
		vm_convert(&vm, i * size, size, 0);
		end();
	}
	vm_destroy(&vm);
}

static void profile_touch(const char *name, enum kind kind, size_t piece)
{
	struct vm vm = { .kind = kind,
			 .size = 64UL << 20,
			 .nr_vcpus = 1,
			 .shared_bit = !!piece,
			 .piece = piece };

	vm_create(&vm);
	next(name, vm.size / PAGE);
	begin();
	touch(&vm, 0, vm.size);
	end();
	vm_destroy(&vm);
}

int main(void)
{
	enable_huge_pages();
	profile_cycles("cycle of 4 KiB, guestseal, unmapped", GUESTSEAL, PAGE, 200, 0);
	profile_cycles("cycle of 4 KiB, guestseal, mapped", GUESTSEAL, PAGE, 200, 1);
	profile_cycles("cycle of 4 KiB, guest_memfd, mapped", GUEST_MEMFD, PAGE, 200, 1);
	profile_cycles("cycle of 2 MiB, guestseal, mapped", GUESTSEAL, HUGE_PAGE, 8, 1);
	profile_cycles("cycle of 2 MiB, guestseal, huge pages, mapped", GUESTSEAL_HUGE, HUGE_PAGE,
		       8, 1);
	profile_cycles("cycle of 2 MiB, guest_memfd, mapped", GUEST_MEMFD, HUGE_PAGE, 8, 1);
	profile_touch("first touch of 4 KiB, guestseal, by 4 KiB", GUESTSEAL, PAGE);
	profile_touch("first touch of 4 KiB, guestseal, huge pages, by 2 MiB", GUESTSEAL_HUGE,
		      HUGE_PAGE);
	profile_touch("first touch of 4 KiB, anonymous, huge pages", ANONYMOUS_HUGE, 0);
	return 0;
}
