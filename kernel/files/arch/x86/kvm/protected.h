/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __KVM_X86_PROTECTED_H
#define __KVM_X86_PROTECTED_H

#include <linux/kvm_host.h>

static inline bool kvm_is_finalized(const struct kvm *kvm)
{
	return READ_ONCE(kvm->arch.finalized);
}

#ifdef CONFIG_KVM_PROTECTED_VM
bool kvm_protected_allows_vcpu_cap(struct kvm *kvm, const struct kvm_enable_cap *cap);
#else
static inline bool kvm_protected_allows_vcpu_cap(struct kvm *kvm,
						 const struct kvm_enable_cap *cap)
{
	return true;
}
#endif

/* Whether what is at a guest physical address, as given, is for userspace to know */
static inline bool kvm_gpa_is_userspace(const struct kvm *kvm, gpa_t gpa)
{
	return !kvm_is_protected(kvm) || (gpa & gfn_to_gpa(kvm->arch.gfn_direct_bits));
}

/* After a triple fault it's no longer what the guest has made of it. */
static inline void kvm_protected_shut_down(struct kvm *kvm)
{
	if (kvm_is_protected(kvm))
		kvm_vm_dead(kvm);
}

/* Userspace is told that KVM can't go on, but nothing of where and how it came to it. */
static inline int kvm_protected_internal_error(struct kvm_vcpu *vcpu, u32 suberror)
{
	vcpu->run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
	vcpu->run->internal.suberror = suberror;
	vcpu->run->internal.ndata = 0;
	return 0;
}

int kvm_protected_mmio(struct kvm_vcpu *vcpu, gpa_t gpa, int len, void *data, bool write);
int kvm_protected_pio(struct kvm_vcpu *vcpu, u16 port, int len, void *data, bool write);
int kvm_finalize_vm(struct kvm *kvm, struct kvm_x86_finalize_vm __user *argp);

#endif /* __KVM_X86_PROTECTED_H */
