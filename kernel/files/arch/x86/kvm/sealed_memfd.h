/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __KVM_X86_SEALED_MEMFD_H
#define __KVM_X86_SEALED_MEMFD_H

#include <linux/kvm_sealed_memfd.h>

/* As there, these are for memslots that have a sealed memfd. */
int kvm_sealed_memfd_cmpxchg(const struct kvm_memory_slot *slot, gfn_t gfn,
			     int offset, int len, void *old, const void *new,
			     enum kvm_gfn_range_filter filter);
void kvm_sealed_memfd_record_steal_time(struct kvm_vcpu *vcpu,
					const struct kvm_memory_slot *slot, gpa_t gpa);
void kvm_sealed_memfd_set_preempted(struct kvm_vcpu *vcpu,
				    const struct kvm_memory_slot *slot, gpa_t gpa);

#endif /* __KVM_X86_SEALED_MEMFD_H */
