// SPDX-License-Identifier: GPL-2.0
/*
 * Accesses to memslots with a sealed memfd that x86 makes, and that take more
 * than to read or to write, see virt/kvm/sealed_memfd.c.
 */
#include <linux/kvm_host.h>
#include <linux/sched.h>
#include <linux/uaccess.h>

#include <asm/asm.h>
#include <asm/extable_fixup_types.h>

#include "mmu.h"
#include "sealed_memfd.h"
#include "trace.h"
#include "x86.h"

/*
 * 0, or -EFAULT if there's a machine check, which the host survives as it would in
 * copy_mc_to_kernel() where that can.
 */
#define load_mc(to, from)						\
({									\
	typeof(to) __to = (to);						\
	typeof(*__to) __val;						\
	int __ret = -EFAULT;						\
									\
	asm volatile("1: mov %[src], %[dst]\n"				\
		     "   xor %k[ret], %k[ret]\n"			\
		     "2:\n"						\
		     _ASM_EXTABLE_TYPE(1b, 2b, EX_TYPE_DEFAULT_MCE_SAFE) \
		     : [ret] "+&r" (__ret), [dst] "=&q" (__val)		\
		     : [src] "m" (*(from))				\
		     : "cc");						\
	if (!__ret)							\
		*__to = __val;						\
	__ret;								\
})

/* The same, or 1 if something else than *old was found. */
#define cmpxchg_mc(ptr, old, new)					\
({									\
	int __ret = -EFAULT;						\
									\
	asm volatile("1: " LOCK_PREFIX "cmpxchg %[to], %[mem]\n"	\
		     "   setne %b[ret]\n"				\
		     "   movzbl %b[ret], %k[ret]\n"			\
		     "2:\n"						\
		     _ASM_EXTABLE_TYPE(1b, 2b, EX_TYPE_DEFAULT_MCE_SAFE) \
		     : [ret] "+&q" (__ret), [mem] "+m" (*(ptr)), "+&a" (*(old)) \
		     : [to] "q" (new)					\
		     : "memory", "cc");					\
	__ret;								\
})

/**
 * kvm_arch_copy_mc - copy from guest memory, unless there's a memory error
 * @to: where to copy it to
 * @from: where it is, in the kernel's mapping of guest memory
 * @len: number of bytes
 *
 * Unlike copy_mc_to_kernel(), this loads aligned words in one go, and survives
 * memory errors whatever the CPU has for copying: that is memcpy() if there are no
 * fast strings, e.g. on AMD before Zen 3.
 *
 * Context: Any.
 * Return: 0, or -EFAULT if the memory was found to be lost.
 */
int kvm_arch_copy_mc(void *to, const void *from, int len)
{
	int n, r;

	for (; len; to += n, from += n, len -= n) {
		n = 1 << __ffs((unsigned long)from | sizeof(u64));
		while (n > len)
			n /= 2;

		switch (n) {
		case 1:
			r = load_mc((u8 *)to, (const u8 *)from);
			break;
		case 2:
			r = load_mc((u16 *)to, (const u16 *)from);
			break;
		case 4:
			r = load_mc((u32 *)to, (const u32 *)from);
			break;
		default:
			r = load_mc((u64 *)to, (const u64 *)from);
			break;
		}
		if (r)
			return r;
	}

	return 0;
}

#define __OR_MC(label, offset, op)	#label ": " op " " #offset "(%[from]), %[val]\n"
#define __OR_MC_EXTABLE(label)	_ASM_EXTABLE_TYPE(label##b, 9b, EX_TYPE_DEFAULT_MCE_SAFE)

/* All of 64 bytes, aligned as such, or'ed; in the way of load_mc() */
static int or_cacheline_mc(u64 *to, const void *from)
{
	int ret = -EFAULT;
	u64 val;

	asm volatile(__OR_MC(1, 0, "mov") __OR_MC(2, 8, "or")
		     __OR_MC(3, 16, "or") __OR_MC(4, 24, "or")
		     __OR_MC(5, 32, "or") __OR_MC(6, 40, "or")
		     __OR_MC(7, 48, "or") __OR_MC(8, 56, "or")
		     "   xor %k[ret], %k[ret]\n"
		     "9:\n"
		     __OR_MC_EXTABLE(1) __OR_MC_EXTABLE(2) __OR_MC_EXTABLE(3)
		     __OR_MC_EXTABLE(4) __OR_MC_EXTABLE(5) __OR_MC_EXTABLE(6)
		     __OR_MC_EXTABLE(7) __OR_MC_EXTABLE(8)
		     : [ret] "+&r" (ret), [val] "=&r" (val)
		     : [from] "r" (from)
		     : "cc", "memory");
	if (!ret)
		*to = val;
	return ret;
}

/**
 * kvm_page_has_content_mc - is there anything but zeroes in a page of guest memory?
 * @kaddr: where it is, in the kernel's mapping of guest memory
 *
 * Context: Any.
 * Return: 0 or 1, or -EFAULT if the memory was found to be lost.
 */
int kvm_page_has_content_mc(const void *kaddr)
{
	const void *end = kaddr + PAGE_SIZE;
	u64 val = 0;
	int r = 0;

	for (; kaddr < end && !r && !val; kaddr += 64)
		r = or_cacheline_mc(&val, kaddr);

	return r ?: !!val;
}

static int cmpxchg_private(void *kaddr, int len, void *old, const void *new)
{
	switch (len) {
	case 1:
		return cmpxchg_mc((u8 *)kaddr, (u8 *)old, *(const u8 *)new);
	case 2:
		return cmpxchg_mc((u16 *)kaddr, (u16 *)old, *(const u16 *)new);
	case 4:
		return cmpxchg_mc((u32 *)kaddr, (u32 *)old, *(const u32 *)new);
	case 8:
		return cmpxchg_mc((u64 *)kaddr, (u64 *)old, *(const u64 *)new);
	}

	WARN_ON_ONCE(1);
	return -EFAULT;
}

static int cmpxchg_access(const struct kvm_sealed_memfd_access *access, int offset,
			  int len, void *old, const void *new)
{
	void __user *uaddr = access->uaddr + offset;
	int r;

	if (access->kaddr) {
		r = cmpxchg_private(access->kaddr + offset, len, old, new);
		if (r < 0)
			kvm_sealed_memfd_report_error(access->kaddr);
		return r;
	}

	switch (len) {
	case 1:
		return __try_cmpxchg_user((u8 __user *)uaddr, (u8 *)old, *(u8 *)new,
					  fault_u8);
	case 2:
		return __try_cmpxchg_user((u16 __user *)uaddr, (u16 *)old, *(u16 *)new,
					  fault_u16);
	case 4:
		return __try_cmpxchg_user((u32 __user *)uaddr, (u32 *)old, *(u32 *)new,
					  fault_u32);
	case 8:
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
	struct kvm_sealed_memfd_access access = {};
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

/*
 * Is it the same page by which KVM has said that the vCPU is preempted?  If it can't
 * be read, or may have been converted, another vCPU may have asked for
 * KVM_VCPU_FLUSH_TLB in what is gone now.  That isn't told by what the page says, as
 * it may have got the content of another one, be it from long ago, and may have been
 * converted more than once.  So go by conversions, of whatever page: they make TLBs
 * be flushed anyway, if only of vCPUs that run.
 */
static bool steal_time_is_preserved(struct kvm_vcpu *vcpu, s64 changes, u8 preempted)
{
	return !vcpu->arch.st.preempted ||
	       (changes == vcpu->arch.st.preempted_after_changes &&
		(preempted & KVM_VCPU_PREEMPTED));
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

static gfn_t steal_time_gfn(struct kvm *kvm, u64 msr_val)
{
	return gpa_to_gfn(kvm_strip_direct_bits(kvm, msr_val));
}

/**
 * kvm_sealed_memfd_expect_steal_time - a vCPU is going to have steal time
 * @vcpu: the vCPU
 * @msr_val: what its MSR_KVM_STEAL_TIME is about to be
 *
 * Most conversions are of other memory: they shall not look at each vCPU.
 *
 * Context: Process context, takes mmu_lock.
 */
void kvm_sealed_memfd_expect_steal_time(struct kvm_vcpu *vcpu, u64 msr_val)
{
	struct kvm *kvm = vcpu->kvm;
	gfn_t gfn = steal_time_gfn(kvm, msr_val);
	struct kvm_arch *arch = &kvm->arch;

	if (!(msr_val & KVM_MSR_ENABLED))
		return;

	write_lock(&kvm->mmu_lock);
	arch->steal_time_start = arch->steal_time_end ?
				 min(arch->steal_time_start, gfn) : gfn;
	arch->steal_time_end = max(arch->steal_time_end, gfn + 1);
	write_unlock(&kvm->mmu_lock);
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
	struct kvm_sealed_memfd_access access = {};
	int r, base = offset_in_page(gpa);
	enum kvm_gfn_range_filter filter;
	gfn_t gfn = gpa_to_gfn(gpa);
	s64 changes = 0;
	u8 preempted = 0;
	bool flush;

	filter = kvm_gfn_to_filter(vcpu->kvm, &gfn);
	do {
		r = kvm_sealed_memfd_begin_access(&access, slot, gfn, filter);
		if (r)
			break;
		changes = atomic64_read(&vcpu->kvm->sealed_memfd_changes);
		r = steal_time_clear_preempted(&access, base, &preempted) ?:
		    steal_time_update(vcpu, &access, base);
		kvm_sealed_memfd_end_access(&access);
	} while (r && kvm_sealed_memfd_fault_in(&access, base,
						sizeof(struct kvm_steal_time)));

	if (guest_pv_has(vcpu, KVM_FEATURE_PV_TLB_FLUSH)) {
		flush = preempted & KVM_VCPU_FLUSH_TLB ||
			!steal_time_is_preserved(vcpu, changes, preempted);
		trace_kvm_pv_tlb_flush(vcpu->vcpu_id, flush);
		if (flush)
			kvm_make_request(KVM_REQ_TLB_FLUSH_GUEST, vcpu);
	}

	if (!r)
		vcpu->arch.st.preempted = 0;
	mark_page_dirty_in_slot(vcpu->kvm, slot, gfn);
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
	enum kvm_gfn_range_filter filter;
	gfn_t gfn = gpa_to_gfn(gpa);

	filter = kvm_gfn_to_filter(vcpu->kvm, &gfn);
	if (kvm_sealed_memfd_try_begin_access(&access, slot, gfn, filter))
		return;

	if (!kvm_sealed_memfd_put(&access, &preempted, offset, sizeof(preempted))) {
		vcpu->arch.st.preempted = KVM_VCPU_PREEMPTED;
		vcpu->arch.st.preempted_after_changes =
			atomic64_read(&vcpu->kvm->sealed_memfd_changes);
	}
	kvm_sealed_memfd_end_access(&access);

	mark_page_dirty_in_slot(vcpu->kvm, slot, gfn);
}

/**
 * kvm_arch_renew_steal_time - have vCPUs use the half that comes into force
 * @kvm: the VM
 * @start: first gfn that is being converted
 * @end: gfn after the last one
 *
 * The half that comes into force may say, from earlier times, that a vCPU is
 * preempted which runs.  Others would then leave it to KVM to flush its TLB, when it
 * runs again.  So have these vCPUs leave the guest; before they enter it again they
 * wait for the conversion to end, say that they run, and do what was asked for.
 *
 * Context: mmu_lock held for write, the pages are marked as changing.
 */
void kvm_arch_renew_steal_time(struct kvm *kvm, gfn_t start, gfn_t end)
{
	struct kvm_vcpu *vcpu;
	bool found = false;
	unsigned long i;
	u64 msr_val;
	gfn_t gfn;

	lockdep_assert_held_write(&kvm->mmu_lock);

	if (end <= kvm->arch.steal_time_start || start >= kvm->arch.steal_time_end)
		return;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		/* One that is being set is put to use under mmu_lock. */
		msr_val = READ_ONCE(vcpu->arch.st.msr_val);
		gfn = steal_time_gfn(kvm, msr_val);
		if (!(msr_val & KVM_MSR_ENABLED) || gfn < start || gfn >= end)
			continue;

		kvm_make_request(KVM_REQ_STEAL_UPDATE, vcpu);
		found = true;
	}

	if (found)
		kvm_make_all_cpus_request(kvm, KVM_REQ_OUTSIDE_GUEST_MODE);
}
