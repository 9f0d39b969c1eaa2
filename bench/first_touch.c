// SPDX-License-Identifier: GPL-2.0-only
/*
 * What does it cost a guest to write to 1 GiB of its memory for the first time, and
 * what does the host need beside the memory itself? Writes all samples as JSON to the
 * file that is named as argument.
 */
#include <stdio.h>
#include <string.h>

#include "lib/samples.h"
#include "lib/vm.h"

#define MEMORY GIGABYTE

static const struct way {
	const char *name;
	enum kind kind;
	int before;   /* everything is made private before, at once */
	size_t piece; /* else that much when the guest touches it, or nothing */
} ways[] = {
	{ "anonymous", ANONYMOUS, 0, 0 },
	{ "anonymous, huge pages", ANONYMOUS_HUGE, 0, 0 },
	{ "guestseal, by 4 KiB", GUESTSEAL, 0, PAGE },
	{ "guestseal, by 2 MiB", GUESTSEAL, 0, HUGE_PAGE },
	{ "guestseal, huge pages, by 2 MiB", GUESTSEAL_HUGE, 0, HUGE_PAGE },
	{ "guestseal, before", GUESTSEAL, 1, 0 },
	{ "guestseal, huge pages, before", GUESTSEAL_HUGE, 1, 0 },
	{ "guest_memfd, before", GUEST_MEMFD, 1, 0 },
};
#define NR_WAYS (sizeof(ways) / sizeof(ways[0]))

/* /proc/meminfo, KiB */
enum { SLAB, PAGE_TABLES, KVM_PAGE_TABLES, NR_USES };
static const char *const uses[NR_USES] = { "Slab", "PageTables", "SecPageTables" };

static void memory_use(long kib[NR_USES])
{
	char line[128], name[64];
	FILE *file = fopen("/proc/meminfo", "r");
	long value;
	int i;

	if (!file)
		err(1, "/proc/meminfo");
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%63[^:]: %ld", name, &value) != 2)
			continue;
		for (i = 0; i < NR_USES; i++) {
			if (!strcmp(name, uses[i]))
				kib[i] = value;
		}
	}
	fclose(file);
}

static void measure(const struct way *way, int keep)
{
	struct vm vm = { .kind = way->kind,
			 .size = MEMORY,
			 .nr_vcpus = 1,
			 .shared_bit = !!way->piece,
			 .piece = way->piece };
	long before[NR_USES], after[NR_USES], begin, converted, touched;

	memory_use(before);
	vm_create(&vm);
	begin = now();
	if (way->before)
		vm_convert(&vm, 0, MEMORY, 1);
	converted = now();
	touch(&vm, 0, MEMORY);
	touched = now();
	memory_use(after);
	if (keep)
		sample("\"way\": \"%s\", \"before\": %ld, \"touch\": %ld, \"to_userspace\": %ld, "
		       "\"exits\": %ld, \"faults\": %ld, \"slab\": %ld, "
		       "\"page_tables\": %ld, \"kvm_page_tables\": %ld",
		       way->name, converted - begin, touched - converted, vm.vcpus[0].exits,
		       vcpu_stat(&vm, 0, "exits"), vcpu_stat(&vm, 0, "pf_taken"),
		       after[SLAB] - before[SLAB], after[PAGE_TABLES] - before[PAGE_TABLES],
		       after[KVM_PAGE_TABLES] - before[KVM_PAGE_TABLES]);
	vm_destroy(&vm);
}

int main(int argc, char **argv)
{
	size_t way;
	int i;

	if (argc != 2)
		errx(2, "usage: first_touch SAMPLES.json");

	enable_huge_pages();
	samples_begin(argv[1]);
	/* The first round has memory that nobody has used yet. */
	for (i = first_round(); i < repeats(); i++) {
		for (way = 0; way < NR_WAYS; way++)
			measure(&ways[way], i >= 0);
	}
	samples_end();
	return 0;
}
