// SPDX-License-Identifier: GPL-2.0
/*
 * Accesses to memslots with a sealed memfd that x86 makes, and that take more
 * than to read or to write, see virt/kvm/sealed_memfd.c.
 */
#include <linux/kvm_host.h>
#include <linux/sched.h>
#include <linux/uaccess.h>

#include "sealed_memfd.h"
#include "trace.h"
#include "x86.h"

static int cmpxchg_access(const struct kvm_sealed_memfd_access *access, int offset,
			  int len, void *old, const void *new)
{
	void __user *uaddr = access->uaddr + offset;
	void *kaddr = access->kaddr + offset;
	bool private = access->kaddr;

	switch (len) {
	case 1:
		if (private)
			return !try_cmpxchg((u8 *)kaddr, (u8 *)old, *(u8 *)new);
		return __try_cmpxchg_user((u8 __user *)uaddr, (u8 *)old, *(u8 *)new,
					  fault_u8);
	case 2:
		if (private)
			return !try_cmpxchg((u16 *)kaddr, (u16 *)old, *(u16 *)new);
		return __try_cmpxchg_user((u16 __user *)uaddr, (u16 *)old, *(u16 *)new,
					  fault_u16);
	case 4:
		if (private)
			return !try_cmpxchg((u32 *)kaddr, (u32 *)old, *(u32 *)new);
		return __try_cmpxchg_user((u32 __user *)uaddr, (u32 *)old, *(u32 *)new,
					  fault_u32);
	case 8:
		if (private)
			return !try_cmpxchg((u64 *)kaddr, (u64 *)old, *(u64 *)new);
		return __try_cmpxchg_user((u64 __user *)uaddr, (u64 *)old, *(u64 *)new,
					  fault_u64);
	}

	WARN_ON_ONCE(1);
	return -EFAULT;
}

/**
 * kvm_sealed_memfd_cmpxchg - compare and exchange guest memory
 * @slot: memslot with a sealed memfd
 * @gfn: page
 * @offset: where the data begin in the page
 * @len: number of bytes: 1, 2, 4 or 8, not beyond the end of the page
 * @old: what to compare with; what was found if that's something else
 * @new: what to write
 * @filter: which half is asked for, or KVM_EITHER_HALF
 *
 * Context: Process context, kvm->srcu held, may sleep, takes mmu_lock.
 * Return: 0, 1 if something else was found, -EFAULT, or -EACCES if the page is of
 *	the half not asked for.
 */
int kvm_sealed_memfd_cmpxchg(const struct kvm_memory_slot *slot, gfn_t gfn,
			     int offset, int len, void *old, const void *new,
			     enum kvm_gfn_range_filter filter)
{
	struct kvm_sealed_memfd_access access;
	int r;

	do {
		r = kvm_sealed_memfd_begin_access(&access, slot, gfn, filter);
		if (r)
			return r;
		r = cmpxchg_access(&access, offset, len, old, new);
		kvm_sealed_memfd_end_access(&access);
	} while (r < 0 && kvm_sealed_memfd_fault_in(&access, offset, len));

	return r;
}

/* Clear preempted and add up in @flags what it was: there may be another try. */
static int steal_time_clear_preempted(struct kvm_sealed_memfd_access *access,
				      int base, u8 *flags)
{
	int r, offset = base + offsetof(struct kvm_steal_time, preempted);
	u8 old = 0, new = 0;

	do {
		r = cmpxchg_access(access, offset, sizeof(old), &old, &new);
	} while (r > 0);

	if (!r)
		*flags |= old;
	return r;
}

static int steal_time_update(struct kvm_vcpu *vcpu,
			     struct kvm_sealed_memfd_access *access, int base)
{
	int version_offset = base + offsetof(struct kvm_steal_time, version);
	int steal_offset = base + offsetof(struct kvm_steal_time, steal);
	u64 run_delay = current->sched_info.run_delay, steal;
	u32 version;

	if (kvm_sealed_memfd_get(access, &version, version_offset, sizeof(version)))
		return -EFAULT;
	if (version & 1)
		version += 1;  /* first time write, random junk */

	version += 1;
	if (kvm_sealed_memfd_put(access, &version, version_offset, sizeof(version)))
		return -EFAULT;

	/* The version is odd while the rest is being updated. */
	smp_wmb();

	if (kvm_sealed_memfd_get(access, &steal, steal_offset, sizeof(steal)))
		return -EFAULT;
	steal += run_delay - vcpu->arch.st.last_steal;
	if (kvm_sealed_memfd_put(access, &steal, steal_offset, sizeof(steal)))
		return -EFAULT;
	vcpu->arch.st.last_steal = run_delay;

	/* See above. */
	smp_wmb();

	version += 1;
	return kvm_sealed_memfd_put(access, &version, version_offset, sizeof(version));
}

/**
 * kvm_sealed_memfd_record_steal_time - tell a guest about its steal time
 * @vcpu: the vCPU, which is about to run
 * @slot: memslot with a sealed memfd
 * @gpa: where its struct kvm_steal_time is, within a page
 *
 * Does what record_steal_time() does with the shared half.
 *
 * Context: Process context, kvm->srcu held, may sleep, takes mmu_lock.
 */
void kvm_sealed_memfd_record_steal_time(struct kvm_vcpu *vcpu,
					const struct kvm_memory_slot *slot, gpa_t gpa)
{
	struct kvm_sealed_memfd_access access;
	int r, base = offset_in_page(gpa);
	u8 preempted = 0;

	do {
		r = kvm_sealed_memfd_begin_access(&access, slot, gpa_to_gfn(gpa),
						  KVM_EITHER_HALF);
		if (r)
			break;
		r = steal_time_clear_preempted(&access, base, &preempted) ?:
		    steal_time_update(vcpu, &access, base);
		kvm_sealed_memfd_end_access(&access);
	} while (r && kvm_sealed_memfd_fault_in(&access, base,
						sizeof(struct kvm_steal_time)));

	if (guest_pv_has(vcpu, KVM_FEATURE_PV_TLB_FLUSH)) {
		trace_kvm_pv_tlb_flush(vcpu->vcpu_id, preempted & KVM_VCPU_FLUSH_TLB);
		if (preempted & KVM_VCPU_FLUSH_TLB)
			kvm_make_request(KVM_REQ_TLB_FLUSH_GUEST, vcpu);
	}

	if (!r)
		vcpu->arch.st.preempted = 0;
	mark_page_dirty_in_slot(vcpu->kvm, slot, gpa_to_gfn(gpa));
}

/**
 * kvm_sealed_memfd_set_preempted - tell a guest that a vCPU is not running
 * @vcpu: the vCPU, which is being scheduled out
 * @slot: memslot with a sealed memfd
 * @gpa: where its struct kvm_steal_time is, within a page
 *
 * It's a hint, so if it takes waiting for something, don't.
 *
 * Context: Atomic context, interrupts disabled, kvm->srcu held, tries to take
 *	mmu_lock.
 */
void kvm_sealed_memfd_set_preempted(struct kvm_vcpu *vcpu,
				    const struct kvm_memory_slot *slot, gpa_t gpa)
{
	int offset = offset_in_page(gpa) + offsetof(struct kvm_steal_time, preempted);
	static const u8 preempted = KVM_VCPU_PREEMPTED;
	struct kvm_sealed_memfd_access access;

	if (kvm_sealed_memfd_try_begin_access(&access, slot, gpa_to_gfn(gpa)))
		return;

	if (!kvm_sealed_memfd_put(&access, &preempted, offset, sizeof(preempted)))
		vcpu->arch.st.preempted = KVM_VCPU_PREEMPTED;
	kvm_sealed_memfd_end_access(&access);

	mark_page_dirty_in_slot(vcpu->kvm, slot, gpa_to_gfn(gpa));
}
