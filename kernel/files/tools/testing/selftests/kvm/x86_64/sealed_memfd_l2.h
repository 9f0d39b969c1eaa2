/* SPDX-License-Identifier: GPL-2.0-only */
/* A nested guest, which executes the commands of one that uses guest-sealed memfds. */
#ifndef SELFTEST_KVM_SEALED_MEMFD_L2_H
#define SELFTEST_KVM_SEALED_MEMFD_L2_H

#include <linux/sizes.h>

#include "sealed_memfd.h"
#include "svm_util.h"

#define NPT_PAGES	4
#define NPT_ENTRIES	512
#define NPT_ENTRY	7ul
#define NPT_HUGE_ENTRY	(NPT_ENTRY | BIT(7))

/*
 * What the guest is told to call, see GUEST_CALL.
 */
static uint64_t guest_nested_cr3;
static char l2_stack[PAGE_SIZE] __aligned(16);

static inline void l2_code(void)
{
	GUEST_SYNC(0);
	guest_code();
}

/* Has commands executed by L2, until that is told to call guest_leave_l2(). */
static inline uint64_t guest_enter_l2(struct svm_test_data *svm)
{
	generic_svm_setup(svm, l2_code, l2_stack + sizeof(l2_stack) - 8);
	svm->vmcb->control.nested_ctl = SVM_NESTED_CTL_NP_ENABLE;
	svm->vmcb->control.nested_cr3 = guest_nested_cr3;
	run_guest(svm->vmcb, svm->vmcb_gpa);
	__GUEST_ASSERT(svm->vmcb->control.exit_code == SVM_EXIT_VMMCALL,
		       "L2 exits with 0x%x at 0x%lx", svm->vmcb->control.exit_code,
		       svm->vmcb->control.exit_info_2);
	return 0;
}

static inline uint64_t guest_leave_l2(uint64_t unused)
{
	vmmcall();
	return 0;
}

/* An identity map, with huge pages, of the first and of GPA's gigabyte. */
static inline void fill_npt(uint64_t *npt, uint64_t gpa)
{
	uint64_t *pdpt = npt + NPT_ENTRIES, *low = pdpt + NPT_ENTRIES,
		 *high = low + NPT_ENTRIES;
	unsigned int i;

	npt[0] = (gpa + PAGE_SIZE) | NPT_ENTRY;
	pdpt[0] = (gpa + 2 * PAGE_SIZE) | NPT_ENTRY;
	pdpt[GPA >> 30] = (gpa + 3 * PAGE_SIZE) | NPT_ENTRY;
	for (i = 0; i < NPT_ENTRIES; i++) {
		low[i] = i * SZ_2M | NPT_HUGE_ENTRY;
		high[i] = (GPA + i * SZ_2M) | NPT_HUGE_ENTRY;
	}
}

#endif /* SELFTEST_KVM_SEALED_MEMFD_L2_H */
