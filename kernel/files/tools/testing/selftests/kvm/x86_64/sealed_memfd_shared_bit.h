/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * VMs whose guests tell by a bit of the GPA whether they access shared memory.
 */
#ifndef SELFTEST_KVM_SEALED_MEMFD_SHARED_BIT_H
#define SELFTEST_KVM_SEALED_MEMFD_SHARED_BIT_H

#include <linux/kvm_para.h>

#include "kvm_util.h"
#include "processor.h"

/* Where the guest finds the shared alias of what it has mapped one to one. */
#define SHARED_ALIAS	BIT(45)

static inline void cpuid_clear_ecx(const struct kvm_cpuid2 *cpuid, uint32_t function,
				   uint32_t bits)
{
	((struct kvm_cpuid_entry2 *)get_cpuid_entry(cpuid, function, 0))->ecx &= ~bits;
}

/* New vCPUs get what the library thinks is supported: there's no nesting here. */
static inline void hide_nested_virtualization(void)
{
	const struct kvm_cpuid2 *cpuid = kvm_get_supported_cpuid();

	cpuid_clear_ecx(cpuid, X86_FEATURE_VMX.function, BIT(X86_FEATURE_VMX.bit));
	cpuid_clear_ecx(cpuid, X86_FEATURE_SVM.function, BIT(X86_FEATURE_SVM.bit));
}

/* To be called before there are vCPUs. */
static inline void vm_enable_shared_bit(struct kvm_vm *vm, unsigned int bit)
{
	hide_nested_virtualization();
	vm_enable_cap(vm, KVM_CAP_X86_SHARED_GPA_BIT, bit);
}

#endif /* SELFTEST_KVM_SEALED_MEMFD_SHARED_BIT_H */
