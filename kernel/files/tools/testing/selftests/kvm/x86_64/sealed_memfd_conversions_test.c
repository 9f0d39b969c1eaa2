// SPDX-License-Identifier: GPL-2.0
/*
 * Conversions of pages of a guest-sealed memfd while vCPUs access them.
 *
 * Once a conversion is done no vCPU sees the half that the page was in, and no
 * race with one makes a vCPU exit.
 */
#include "kselftest.h"

#include "sealed_memfd_race.h"

static void *(*const one_converter[])(void *) = { race_converter };
static void *(*const two_converters[])(void *) = { race_converter, race_converter };

static void test_conversions(const char *name, uint32_t type, unsigned int nr_vcpus,
			     uint32_t iterations, void *(*const *threads)(void *),
			     unsigned int nr_threads)
{
	struct race *race;

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(type))) {
		ksft_test_result_skip("%s: no such VM type\n", name);
		return;
	}

	race = race_create(type, nr_vcpus, iterations);
	race_run(race, threads, nr_threads);
	race_free(race);
	ksft_test_result_pass("%s\n", name);
}

static void usage(const char *name)
{
	printf("Usage: %s [-h] [-i iterations] [-v vcpus]\n", name);
	exit(0);
}

int main(int argc, char *argv[])
{
	uint32_t iterations = 2000;
	unsigned int nr_vcpus = 3;
	int opt;

	while ((opt = getopt(argc, argv, "hi:v:")) != -1) {
		switch (opt) {
		case 'i':
			iterations = atoi_positive("iterations", optarg);
			break;
		case 'v':
			nr_vcpus = atoi_positive("vcpus", optarg);
			break;
		default:
			usage(argv[0]);
		}
	}

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_SEALED_MEMFD));
	ksft_print_header();
	ksft_set_plan(4);

	test_conversions("explicit, one vCPU", KVM_X86_DEFAULT_VM, 1, iterations, NULL, 0);
	test_conversions("explicit, several vCPUs", KVM_X86_DEFAULT_VM, nr_vcpus, iterations,
			 NULL, 0);
	test_conversions("explicit and by userspace", KVM_X86_DEFAULT_VM, nr_vcpus, iterations,
			 two_converters, ARRAY_SIZE(two_converters));
	test_conversions("software-protected VM", KVM_X86_SW_PROTECTED_VM, nr_vcpus,
			 iterations, one_converter, ARRAY_SIZE(one_converter));

	ksft_finished();
}
