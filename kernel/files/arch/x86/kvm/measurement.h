/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __KVM_X86_MEASUREMENT_H
#define __KVM_X86_MEASUREMENT_H

#include <linux/kvm_host.h>

/* MSRs of which only the guest may know the value, so don't trace it. */
static inline bool kvm_msr_is_secret(u32 msr)
{
	return msr >= MSR_KVM_SEALING_KEY0 && msr <= MSR_KVM_SEALING_KEY5;
}

#ifdef CONFIG_KVM_PROTECTED_VM
int kvm_measure_launch(struct kvm *kvm, struct kvm_x86_finalize_vm *arg);
int kvm_get_measurement(struct kvm *kvm, struct kvm_x86_measurement __user *argp);
int kvm_measurement_get_msr(struct kvm_vcpu *vcpu, struct msr_data *msr_info);
int kvm_measurement_set_msr(struct kvm_vcpu *vcpu, const struct msr_data *msr_info);
void kvm_measurement_destroy_vm(struct kvm *kvm);
#else
static inline int kvm_measurement_get_msr(struct kvm_vcpu *vcpu,
					  struct msr_data *msr_info)
{
	return 1;
}

static inline int kvm_measurement_set_msr(struct kvm_vcpu *vcpu,
					  const struct msr_data *msr_info)
{
	return 1;
}

static inline void kvm_measurement_destroy_vm(struct kvm *kvm)
{
}
#endif

#endif /* __KVM_X86_MEASUREMENT_H */
