// SPDX-License-Identifier: GPL-2.0-only
/*
 * What does a protected VM cost? The same guest in one and in an ordinary VM with a
 * shared GPA bit, where it computes, or exits in one way or another; and what it takes
 * to finalize VMs, by what memory they have. Host and guest together. Writes all samples
 * as JSON to the file that is named as argument.
 */
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "lib/samples.h"
#include "lib/vm.h"

#define MEBIBYTE (1UL << 20)
#define MEMORY (64 * MEBIBYTE)

static const struct work {
	const char *name;
	enum guest_code code;
	size_t stride, times;
} works[] = {
	{ "compute", GUEST_COMPUTE, 0, 1000000 },
	{ "out", GUEST_OUT, 0, 2000 },
	{ "in", GUEST_IN, 0, 2000 },
	{ "MMIO write", GUEST_MMIO_WRITE, 0, 2000 },
	{ "MMIO read", GUEST_MMIO_READ, 0, 2000 },
	{ "convert, explicitly", GUEST_EXPLICIT, PAGE, 1000 },
	{ "convert, implicitly", GUEST_IMPLICIT, PAGE, 1000 },
	{ "IPI to itself", GUEST_IPI, 0, 2000 },
	{ "timer and HLT", GUEST_TIMER, 0, 1000 },
};
#define NR_WORKS (sizeof(works) / sizeof(works[0]))

/* What a VM has when it is finalized: content that is written, zeroes that are allocated. */
static const struct launch {
	size_t memory, content, zeroes;
	unsigned int vcpus;
} launches[] = {
	{ MEMORY, 0, 0, 1 },	    { MEMORY, 0, 0, 4 },
	{ MEMORY, MEBIBYTE, 0, 1 }, { MEMORY, 16 * MEBIBYTE, 0, 1 },
	{ MEMORY, MEMORY, 0, 1 },   { MEMORY, 0, 16 * MEBIBYTE, 1 },
	{ MEMORY, 0, MEMORY, 1 },   { GIGABYTE, 0, 0, 1 },
	{ 16 * GIGABYTE, 0, 0, 1 }, { 64 * GIGABYTE, 0, 0, 1 },
};
#define NR_LAUNCHES (sizeof(launches) / sizeof(launches[0]))

static void create(struct vm *vm, int protected, size_t size, unsigned int vcpus)
{
	*vm = (struct vm){ .kind = GUESTSEAL,
			   .size = size,
			   .nr_vcpus = vcpus,
			   .shared_bit = 1,
			   .stays = 1,
			   .protected = protected };
	vm_create(vm);
}

static void finalize(struct vm *vm)
{
	struct kvm_x86_finalize_vm arg = { 0 };

	check(ioctl(vm->fd, KVM_X86_FINALIZE_VM, &arg), "KVM_X86_FINALIZE_VM");
}

static long work(struct vm *vm, const struct work *work)
{
	long begin = now();

	vcpu_run(vm, 0, work->code, 0, work->stride, work->times);
	return now() - begin;
}

static void measure_works(int protected, int keep)
{
	struct vm vm;
	size_t i;

	create(&vm, protected, MEMORY, 1);
	if (protected)
		finalize(&vm);
	for (i = 0; i < NR_WORKS; i++) {
		double cost;

		/* Memory is there, and what else comes with the first time. */
		work(&vm, &works[i]);
		cost = (double)work(&vm, &works[i]) / works[i].times;
		if (keep)
			sample("\"vm\": \"%s\", \"work\": \"%s\", \"cost\": %.2f",
			       protected ? "protected" : "ordinary", works[i].name, cost);
	}
	vm_destroy(&vm);
}

static void measure_launch(const struct launch *launch, int keep)
{
	static char content[MEBIBYTE];
	struct vm vm;
	size_t at;
	long begin, cost;

	memset(content, 1, sizeof(content));
	create(&vm, 1, launch->memory, launch->vcpus);
	for (at = 0; at < launch->content; at += sizeof(content))
		check(pwrite(vm.memfd, content, sizeof(content), at), "write");
	if (launch->zeroes)
		vm_convert(&vm, 0, launch->zeroes, 1);
	begin = now();
	finalize(&vm);
	cost = now() - begin;
	vm_destroy(&vm);
	if (keep)
		sample("\"memory\": %zu, \"content\": %zu, \"zeroes\": %zu, \"vcpus\": %u, "
		       "\"cost\": %ld",
		       launch->memory, launch->content, launch->zeroes, launch->vcpus, cost);
}

int main(int argc, char **argv)
{
	size_t launch;
	int i;

	if (argc != 2)
		errx(2, "usage: protected SAMPLES.json");

	samples_begin(argv[1]);
	/* The first round is to warm up. */
	for (i = first_round(); i < repeats(); i++) {
		measure_works(0, i >= 0);
		measure_works(1, i >= 0);
		for (launch = 0; launch < NR_LAUNCHES; launch++)
			measure_launch(&launches[launch], i >= 0);
	}
	samples_end();
	return 0;
}
