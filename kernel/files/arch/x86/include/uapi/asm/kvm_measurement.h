/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef _UAPI_ASM_X86_KVM_MEASUREMENT_H
#define _UAPI_ASM_X86_KVM_MEASUREMENT_H

/*
 * Launch measurement of protected VMs: the SHA-384 of a stream of records, which
 * is described in Documentation/virt/kvm/x86/protected-vm.rst.  All numbers are
 * little endian, nothing is aligned.
 */
#include <linux/types.h>

#define KVM_MEASUREMENT_VERSION		1
#define KVM_MEASUREMENT_SIZE		48
#define KVM_SEALING_KEY_SIZE		48

/* Followed by len bytes of data, of which some types have more than their struct. */
struct kvm_measurement_record {
	__u32 type;
	__u32 len;
};

/* In the order of the stream; there are several RANGEs, PAGEs and sets of VCPU to MSRS. */
#define KVM_MEASUREMENT_START		1
#define KVM_MEASUREMENT_VM		2
#define KVM_MEASUREMENT_RANGE		3
#define KVM_MEASUREMENT_VCPU		4
#define KVM_MEASUREMENT_CPUID		5	/* struct kvm_measurement_cpuid[] */
#define KVM_MEASUREMENT_REGS		6	/* struct kvm_regs */
#define KVM_MEASUREMENT_SREGS		7	/* struct kvm_sregs2 */
#define KVM_MEASUREMENT_DEBUGREGS	8	/* struct kvm_debugregs */
#define KVM_MEASUREMENT_EVENTS		9	/* struct kvm_vcpu_events */
#define KVM_MEASUREMENT_LAPIC		10	/* struct kvm_lapic_state */
#define KVM_MEASUREMENT_XSAVE		11	/* up to the last byte that isn't 0 */
#define KVM_MEASUREMENT_MSRS		12	/* struct kvm_measurement_msr[] */
#define KVM_MEASUREMENT_PAGE		13
#define KVM_MEASUREMENT_END		14	/* nothing */

/* KVM_MEASUREMENT_START */
struct kvm_measurement_start {
	__u8 magic[16];		/* "guestseal launch" */
	__u32 version;
	__u32 reserved;
};

#define KVM_MEASUREMENT_MAGIC		"guestseal launch"

/* KVM_MEASUREMENT_VM */
struct kvm_measurement_vm {
	__u64 shared_bit;
	__u64 disabled_quirks;
	__u64 flags;
	__u64 hypercall_exits;
	__u32 nr_vcpus;
	__u32 bsp_id;
	__u32 irqchip_mode;
	__u32 nr_ioapic_pins;
};

/* struct kvm_measurement_vm.flags */
#define KVM_MEASUREMENT_VM_MWAIT		0x1
#define KVM_MEASUREMENT_VM_HLT			0x2
#define KVM_MEASUREMENT_VM_CSTATE		0x4
#define KVM_MEASUREMENT_VM_PIT			0x8
#define KVM_MEASUREMENT_VM_PMU			0x10
#define KVM_MEASUREMENT_VM_PLATFORM_INFO	0x20
#define KVM_MEASUREMENT_VM_X2APIC_FORMAT	0x40
#define KVM_MEASUREMENT_VM_X2APIC_NO_BROADCAST	0x80

/* struct kvm_measurement_vm.irqchip_mode */
#define KVM_MEASUREMENT_IRQCHIP_NONE		0
#define KVM_MEASUREMENT_IRQCHIP_KERNEL		1
#define KVM_MEASUREMENT_IRQCHIP_SPLIT		2

/* KVM_MEASUREMENT_RANGE: memory, in ascending order, as long as possible */
struct kvm_measurement_range {
	__u64 gpa;
	__u64 size;
	__u32 flags;
	__u32 reserved;
};

/* struct kvm_measurement_range.flags */
#define KVM_MEASUREMENT_RANGE_PRIVATE		0x1
#define KVM_MEASUREMENT_RANGE_READONLY		0x2

/* KVM_MEASUREMENT_VCPU: one for each, by index, followed by those of its state */
struct kvm_measurement_vcpu {
	__u32 index;
	__u32 id;
	__u32 mp_state;
	__u32 flags;
	__u64 xcr0;
	/* Of KVM_CAP_ENFORCE_PV_FEATURE_CPUID */
	__u32 pv_features;
	/* 0 if it's that of the host's TSC */
	__u32 tsc_khz;
};

/* struct kvm_measurement_vcpu.flags */
#define KVM_MEASUREMENT_VCPU_PV_ENFORCED	0x1
#define KVM_MEASUREMENT_VCPU_HYPERV		0x2
#define KVM_MEASUREMENT_VCPU_HYPERV_ENFORCED	0x4
#define KVM_MEASUREMENT_VCPU_SYNIC		0x8
#define KVM_MEASUREMENT_VCPU_SYNIC2		0x10

/*
 * Without what KVM derives from the rest: OSXSAVE and APIC of leaf 1, OSPKE of
 * leaf 7, EBX of 0xd.0 and, with XSAVEC or XSAVES, of 0xd.1.
 */
struct kvm_measurement_cpuid {
	__u32 function;
	__u32 index;
	__u32 flags;		/* KVM_CPUID_FLAG_SIGNIFCANT_INDEX or 0 */
	__u32 eax;
	__u32 ebx;
	__u32 ecx;
	__u32 edx;
};

/* In ascending order, those that are not 0 */
struct kvm_measurement_msr {
	__u32 index;
	__u32 reserved;
	__u64 value;
};

/* KVM_MEASUREMENT_PAGE, in ascending order, those that are not all 0 */
struct kvm_measurement_page {
	__u64 gpa;
	/* The SHA-384 of the page */
	__u8 digest[48];
};

#endif /* _UAPI_ASM_X86_KVM_MEASUREMENT_H */
