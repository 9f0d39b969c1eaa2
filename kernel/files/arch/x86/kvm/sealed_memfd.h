/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __KVM_X86_SEALED_MEMFD_H
#define __KVM_X86_SEALED_MEMFD_H

#include <linux/kvm_sealed_memfd.h>

#include "mmu.h"

/*
 * In a VM with a shared GPA bit what KVM does for an instruction of the guest's
 * asks for one half, as do the guest's own accesses; the page tables are walked in
 * whichever there is, unless the VM is protected.
 */
static inline enum kvm_gfn_range_filter kvm_gpa_to_filter(struct kvm *kvm, gpa_t gpa)
{
	if (!kvm_gfn_direct_bits(kvm))
		return KVM_EITHER_HALF;

	return kvm_is_gfn_alias(kvm, gpa_to_gfn(gpa)) ? KVM_FILTER_SHARED :
							KVM_FILTER_PRIVATE;
}

/* As there, these are for memslots that have a sealed memfd. */
int kvm_sealed_memfd_cmpxchg(const struct kvm_memory_slot *slot, gfn_t gfn,
			     int offset, int len, void *old, const void *new,
			     enum kvm_gfn_range_filter filter);
void kvm_sealed_memfd_expect_steal_time(struct kvm_vcpu *vcpu, u64 msr_val);
void kvm_sealed_memfd_record_steal_time(struct kvm_vcpu *vcpu,
					const struct kvm_memory_slot *slot, gpa_t gpa);
void kvm_sealed_memfd_set_preempted(struct kvm_vcpu *vcpu,
				    const struct kvm_memory_slot *slot, gpa_t gpa);

int kvm_page_has_content_mc(const void *kaddr);

#endif /* __KVM_X86_SEALED_MEMFD_H */
