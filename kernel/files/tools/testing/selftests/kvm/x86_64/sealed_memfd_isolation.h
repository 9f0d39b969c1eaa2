/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What guests see and do who are isolated from Hyper-V, as their host is called here, by
 * the shared GPA bit.
 */
#ifndef SELFTEST_KVM_SEALED_MEMFD_ISOLATION_H
#define SELFTEST_KVM_SEALED_MEMFD_ISOLATION_H

#include <stdlib.h>
#include <string.h>

#include "hyperv.h"
#include "processor.h"

#define HV_CPUID_ISOLATION_CONFIG	0x4000000c
#define HV_ISOLATION_TYPE_VBS		1
#define HV_ISOLATION_TYPE_SNP		2
#define HV_BOUNDARY_ACTIVE		BIT(5)
#define HV_BOUNDARY_SHIFT		6

#define HVCALL_MODIFY_VISIBILITY	0x00db
#define HV_PARTITION_SELF		(~0ul)
#define HV_MAX_PAGES			510

#define VISIBILITY_PRIVATE		0
#define VISIBILITY_READ			1
#define VISIBILITY_WRITE		2
#define VISIBILITY_SHARED		3

struct page_list {
	uint64_t partition;
	uint32_t visibility;
	uint32_t reserved;
	uint64_t pages[HV_MAX_PAGES];
};

static inline uint32_t isolation_config(uint64_t shared_bit)
{
	return HV_ISOLATION_TYPE_VBS | HV_BOUNDARY_ACTIVE |
	       __builtin_ctzll(shared_bit) << HV_BOUNDARY_SHIFT;
}

/* What Hyper-V guests see, with some of it as given. */
static inline void set_hv_cpuid(struct kvm_vcpu *vcpu, bool isolated, bool has_leaf,
				uint32_t config)
{
	const struct kvm_cpuid2 *sys = kvm_get_supported_cpuid();
	const struct kvm_cpuid2 *hv = kvm_get_supported_hv_cpuid();
	struct kvm_cpuid2 *cpuid = allocate_kvm_cpuid2(sys->nent + hv->nent + 1);
	struct kvm_cpuid_entry2 *entry;
	int i;

	cpuid->nent = 0;
	for (i = 0; i < sys->nent; i++) {
		if (sys->entries[i].function >> 8 == 0x400000)
			continue;
		cpuid->entries[cpuid->nent++] = sys->entries[i];
	}
	for (i = 0; i < hv->nent; i++) {
		entry = &cpuid->entries[cpuid->nent++];
		*entry = hv->entries[i];
		if (entry->function == HYPERV_CPUID_FEATURES && isolated)
			entry->ebx |= BIT(22);
	}
	if (has_leaf) {
		cpuid->entries[cpuid->nent++] = (struct kvm_cpuid_entry2) {
			.function = HV_CPUID_ISOLATION_CONFIG,
			.ebx = config,
		};
	}
	vcpu_init_cpuid(vcpu, cpuid);
	free(cpuid);
}

/* The same as of a guest that has told which system it is, before which it can't call. */
static inline void set_isolation(struct kvm_vcpu *vcpu, uint64_t shared_bit)
{
	set_hv_cpuid(vcpu, true, true, isolation_config(shared_bit));
	vcpu_set_msr(vcpu, HV_X64_MSR_GUEST_OS_ID, HYPERV_LINUX_OS_ID);
}

/* In the guest; without KVM patching it for the other vendor's CPU */
static inline uint64_t hv_hypercall(uint64_t control, uint64_t input, uint64_t output)
{
	uint64_t status;

	asm volatile("mov %[output], %%r8\n\t"
		     "test %[amd], %[amd]; jnz 1f; vmcall; jmp 2f; 1: vmmcall; 2:"
		     : "=a" (status), "+c" (control), "+d" (input)
		     : [output] "r" (output), [amd] "r" (host_cpu_is_amd)
		     : "r8", "cc", "memory");
	return status;
}

#endif /* SELFTEST_KVM_SEALED_MEMFD_ISOLATION_H */
