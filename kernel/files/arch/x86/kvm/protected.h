/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __KVM_X86_PROTECTED_H
#define __KVM_X86_PROTECTED_H

#include <linux/kvm_host.h>

static inline bool kvm_is_finalized(const struct kvm *kvm)
{
	return READ_ONCE(kvm->arch.finalized);
}

/* Whether tracepoints may tell what the guest does */
static inline bool kvm_is_traceable(const struct kvm *kvm)
{
	return !kvm_is_finalized(kvm);
}

/* The same of the VM whose vCPU is loaded on this CPU, if there is one */
static inline bool kvm_is_loaded_traceable(void)
{
	struct kvm_vcpu *vcpu = kvm_get_running_vcpu();

	return !vcpu || kvm_is_traceable(vcpu->kvm);
}

/*
 * For tracepoints that a vCPU comes upon while it is loaded.  They are silent if that
 * is not for userspace to look into.  Other tracepoints are TRACE_EVENT()s only if they
 * tell nothing of the guest, or where they are it's by kvm_trace().
 */
#define KVM_TRACE_EVENT(name, proto, args, tstruct, assign, print)		\
	TRACE_EVENT_CONDITION(name, PARAMS(proto), PARAMS(args),		\
			      TP_CONDITION(kvm_is_loaded_traceable()),		\
			      PARAMS(tstruct), PARAMS(assign), PARAMS(print))

#define KVM_DEFINE_EVENT(template, name, proto, args)				\
	DEFINE_EVENT_CONDITION(template, name, PARAMS(proto), PARAMS(args),	\
			       TP_CONDITION(kvm_is_loaded_traceable()))

#define kvm_trace(kvm, event, args...)						\
do {										\
	if (trace_##event##_enabled() && kvm_is_traceable(kvm))			\
		trace_##event(args);						\
} while (0)

#ifdef CONFIG_KVM_PROTECTED_VM
bool kvm_protected_allows_vcpu_cap(struct kvm *kvm, const struct kvm_enable_cap *cap);
void kvm_protected_destroy_vm(struct kvm *kvm);
#else
static inline void kvm_protected_destroy_vm(struct kvm *kvm)
{
}

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

/*
 * After a triple fault it's no longer what the guest has made of it, so no vCPU runs any
 * more.  Other than in a VM that is dead userspace can clean up.
 */
static inline void kvm_protected_shut_down(struct kvm *kvm)
{
	if (!kvm_is_protected(kvm))
		return;

	WRITE_ONCE(kvm->arch.shut_down, true);
	kvm_make_all_cpus_request(kvm, KVM_REQ_VM_DEAD);
}

static inline bool kvm_is_shut_down(const struct kvm *kvm)
{
	return READ_ONCE(kvm->arch.shut_down);
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
