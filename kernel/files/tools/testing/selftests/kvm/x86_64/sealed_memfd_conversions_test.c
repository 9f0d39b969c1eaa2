// SPDX-License-Identifier: GPL-2.0
/*
 * Conversions of pages of a guest-sealed memfd while vCPUs access them.
 *
 * Once a conversion is done no vCPU sees the half that the page was in, and no
 * race with one makes a vCPU exit.
 */
#include "sealed_memfd_race.h"

static void *(*const one_converter[])(void *) = { race_converter };
static void *(*const two_converters[])(void *) = { race_converter, race_converter };

int main(int argc, char *argv[])
{
	const struct race_options several = race_parse_options(argc, argv);
	const struct race_options one = { several.iterations, 1 };

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_SEALED_MEMFD));
	ksft_print_header();
	ksft_set_plan(4);

	race_test("explicit, one vCPU", race_create, KVM_X86_DEFAULT_VM, &one, NULL, 0);
	race_test("explicit, several vCPUs", race_create, KVM_X86_DEFAULT_VM, &several, NULL, 0);
	race_test("explicit and by userspace", race_create, KVM_X86_DEFAULT_VM, &several,
		  two_converters, ARRAY_SIZE(two_converters));
	race_test("software-protected VM", race_create, KVM_X86_SW_PROTECTED_VM, &several,
		  one_converter, ARRAY_SIZE(one_converter));

	ksft_finished();
}
