// SPDX-License-Identifier: GPL-2.0
/*
 * Replacing memslots by others of the same memory, while vCPUs use it.
 *
 * A memslot is split, or adjacent ones are merged, without the guest noticing:
 * the new memslots take the place of the old ones in one update, and take over
 * what KVM knows of the memory.  What is mapped stays so.
 *
 * Users of memslots fall into three classes:
 *
 * - Those who look up a memslot with mmu_lock held.  Metadata is handed over and
 *   the new memslots are published in one go under mmu_lock, so they find the
 *   memslot that has the metadata.
 *
 * - Page faults, which look up a memslot first and use its metadata later, under
 *   mmu_lock.  If the memslot was replaced they are retried, either because of
 *   mmu_invalidate_seq or, if that is too new, of KVM_MEMSLOT_REPLACED.
 *
 * - All others who hold kvm->srcu.  To them an outdated memslot is as good as a
 *   new one.  What they leave in it are dirty bits; these are collected when all
 *   users are gone.
 *
 * Locks:
 *
 *	slots_lock -> slots_arch_lock -> invalidate_lock -> mn_invalidate_lock
 *	-> mmu_lock
 */
#include <linux/bitops.h>
#include <linux/kvm_host.h>
#include <linux/slab.h>

#include "kvm_mm.h"

/* Before, in and after the range to be split off. */
#define KVM_MAX_SPLIT	3

/*
 * No mapping may cross the border of a memslot.  Only huge ones can do that, but
 * unmapping the page at the border takes care of them as well.
 */
static bool kvm_unmap_border(struct kvm *kvm, struct kvm_memory_slot *old,
			     gfn_t gfn)
{
	struct kvm_gfn_range range = {
		.slot = old,
		.start = gfn,
		.end = gfn + 1,
		.may_block = false,
		.attr_filter = KVM_FILTER_PRIVATE | KVM_FILTER_SHARED,
	};

	if (gfn <= old->base_gfn || gfn >= old->base_gfn + old->npages)
		return false;

	return kvm_mmu_unmap_gfn_range(kvm, &range);
}

static void kvm_hand_over_metadata(struct kvm *kvm,
				   struct kvm_memory_slot **old, int nr_old,
				   struct kvm_memory_slot **new, int nr_new)
{
	bool flush = false;
	int i, j;

	for (i = 0; i < nr_old; i++) {
		for (j = 0; j < nr_new; j++)
			flush |= kvm_unmap_border(kvm, old[i], new[j]->base_gfn);

		for (j = 0; j < nr_new; j++)
			kvm_arch_hand_over_memslot(kvm, old[i], new[j]);

		WRITE_ONCE(old[i]->flags, old[i]->flags | KVM_MEMSLOT_REPLACED);
	}

	/*
	 * Whoever sees the mmu_invalidate_seq that is to come, or the old memslots
	 * unregistered, sees the flag, too.  Pairs with smp_rmb() in the page
	 * fault handler and in kvm_sealed_memfd_accessible().
	 */
	smp_wmb();

	if (flush)
		kvm_flush_remote_tlbs(kvm);
}

/*
 * Get ready to publish the inactive memslots, with mmu_lock held and nobody in
 * the midst of walking metadata: who drops mmu_lock while doing so, without
 * holding slots_lock, does it as part of an invalidation.
 */
static struct kvm_memslots *kvm_lock_memslots_swap(struct kvm *kvm, int as_id)
	__acquires(&kvm->mn_invalidate_lock)
	__acquires(&kvm->mmu_lock)
{
	struct kvm_memslots *slots;

	for (;;) {
		slots = kvm_start_memslots_swap(kvm, as_id);
		KVM_MMU_LOCK(kvm);
		if (!kvm->mmu_invalidate_in_progress)
			return slots;
		KVM_MMU_UNLOCK(kvm);
		spin_unlock(&kvm->mn_invalidate_lock);
		/* It may take long, e.g. if a big hole is punched in a guest_memfd. */
		schedule_timeout_uninterruptible(1);
	}
}

/* In the inactive memslots, where there may well be neither for a moment. */
static void kvm_replace_inactive(struct kvm *kvm,
				 struct kvm_memory_slot **old, int nr_old,
				 struct kvm_memory_slot **new, int nr_new)
{
	int i;

	for (i = 0; i < nr_old; i++)
		kvm_replace_memslot(kvm, old[i], NULL);
	for (i = 0; i < nr_new; i++)
		kvm_replace_memslot(kvm, NULL, new[i]);
}

static void kvm_hand_over_dirty_bits(const struct kvm_memory_slot *old,
				     struct kvm_memory_slot *new)
{
	gfn_t start = max(old->base_gfn, new->base_gfn);
	gfn_t end = min(old->base_gfn + old->npages, new->base_gfn + new->npages);
	unsigned long bit, nbits;

	if (!old->dirty_bitmap || start >= end)
		return;

	nbits = end - old->base_gfn;
	for (bit = find_next_bit_le(old->dirty_bitmap, nbits, start - old->base_gfn);
	     bit < nbits;
	     bit = find_next_bit_le(old->dirty_bitmap, nbits, bit + 1)) {
		/* vCPUs set bits at the same time. */
		set_bit_le(old->base_gfn + bit - new->base_gfn, new->dirty_bitmap);
		cond_resched();
	}
}

static int kvm_prepare_new_memslot(struct kvm *kvm, struct kvm_memory_slot *new)
{
	int r;

	if (new->flags & KVM_MEM_LOG_DIRTY_PAGES) {
		r = kvm_alloc_dirty_bitmap(new);
		if (r)
			return r;
	}

	return kvm_arch_prepare_memory_region(kvm, NULL, new, KVM_MR_CREATE);
}

/*
 * Replace the memslots @old by the memslots @new.  Both are in the order of
 * their gfns, without gaps, and of the same memory.  Either all of @old are freed
 * or, on failure, nothing is.
 */
static int kvm_replace_memslots(struct kvm *kvm,
				struct kvm_memory_slot **old, int nr_old,
				struct kvm_memory_slot **new, int nr_new)
{
	bool sealed = kvm_slot_has_sealed_memfd(old[0]);
	bool log_dirty = old[0]->flags & KVM_MEM_LOG_DIRTY_PAGES;
	int as_id = old[0]->as_id;
	struct kvm_memslots *slots;
	int i, j, r;

	/* See kvm_set_memslot(). */
	mutex_lock(&kvm->slots_arch_lock);

	r = kvm_arch_prepare_hand_over(kvm, old, nr_old, new, nr_new);
	if (r)
		goto out_unlock;

	for (i = 0; i < nr_new; i++) {
		r = kvm_prepare_new_memslot(kvm, new[i]);
		if (r)
			goto out_unlock;
	}

	if (sealed) {
		r = kvm_sealed_memfd_start_replace(new, nr_new);
		if (r)
			goto out_unlock;
	}

	/* From here on there is no way back. */
	kvm_replace_inactive(kvm, old, nr_old, new, nr_new);

	slots = kvm_lock_memslots_swap(kvm, as_id);

	kvm_mmu_invalidate_begin(kvm);
	kvm_mmu_invalidate_range_add(kvm, old[0]->base_gfn,
				     old[nr_old - 1]->base_gfn + old[nr_old - 1]->npages);
	kvm_hand_over_metadata(kvm, old, nr_old, new, nr_new);
	rcu_assign_pointer(kvm->memslots[as_id], slots);
	kvm_mmu_invalidate_end(kvm);

	KVM_MMU_UNLOCK(kvm);
	spin_unlock(&kvm->mn_invalidate_lock);

	if (sealed)
		kvm_sealed_memfd_finish_replace(old, nr_old);

	kvm_finish_memslots_swap(kvm, slots);

	/* From here on nobody else knows the old memslots. */
	kvm_replace_inactive(kvm, old, nr_old, new, nr_new);

	for (i = 0; i < nr_old; i++) {
		for (j = 0; j < nr_new; j++)
			kvm_hand_over_dirty_bits(old[i], new[j]);
		kvm_free_memslot(kvm, old[i]);
	}

	/* As each memslot is going to be subtracted one by one. */
	if (log_dirty)
		atomic_add(nr_new - nr_old, &kvm->nr_memslots_dirty_logging);

	return 0;

out_unlock:
	mutex_unlock(&kvm->slots_arch_lock);
	return r;
}

static struct kvm_memory_slot *kvm_alloc_new_memslot(const struct kvm_memory_slot *old,
						     int id, gfn_t base_gfn,
						     unsigned long npages)
{
	struct kvm_memory_slot *new;

	new = kzalloc(sizeof(*new), GFP_KERNEL_ACCOUNT);
	if (!new)
		return NULL;

	new->as_id = old->as_id;
	new->id = id;
	new->base_gfn = base_gfn;
	new->npages = npages;
	new->flags = old->flags;
	new->userspace_addr = old->userspace_addr +
			      ((base_gfn - old->base_gfn) << PAGE_SHIFT);

	if (kvm_slot_has_sealed_memfd(old) &&
	    kvm_sealed_memfd_prepare_replace(old, new)) {
		kfree(new);
		return NULL;
	}

	return new;
}

static void kvm_free_new_memslots(struct kvm *kvm, struct kvm_memory_slot **new,
				  int nr_new)
{
	int i;

	for (i = 0; i < nr_new; i++)
		kvm_free_memslot(kvm, new[i]);
}

/* Is it a number that userspace may give to a memslot? */
static bool kvm_is_user_slot(struct kvm *kvm, u32 slot)
{
	return slot >> 16 < kvm_arch_nr_memslot_as_ids(kvm) &&
	       (u16)slot < KVM_USER_MEM_SLOTS;
}

static int kvm_check_replaceable(struct kvm *kvm, const struct kvm_memory_slot *slot)
{
	/* A guest_memfd knows its memslots by their addresses. */
	if ((slot->flags & KVM_MEM_GUEST_MEMFD) && !kvm_slot_has_sealed_memfd(slot))
		return -EOPNOTSUPP;

	/* What the rings hold is in terms of the old memslots. */
	if ((slot->flags & KVM_MEM_LOG_DIRTY_PAGES) && kvm->dirty_ring_size)
		return -EOPNOTSUPP;

	return 0;
}

struct kvm_split_piece {
	u32 slot;
	u64 npages;
};

static int kvm_check_split(struct kvm *kvm, struct kvm_memory_slot *old,
			   const struct kvm_split_piece *pieces, int nr_pieces)
{
	struct kvm_memslots *slots = __kvm_memslots(kvm, old->as_id);
	struct kvm_memory_slot *other;
	int i, j;

	for (i = 0; i < nr_pieces; i++) {
		u32 slot = pieces[i].slot;

		if (!kvm_is_user_slot(kvm, slot) || slot >> 16 != old->as_id)
			return -EINVAL;

		for (j = 0; j < i; j++) {
			if (pieces[j].slot == slot)
				return -EINVAL;
		}

		other = id_to_memslot(slots, (u16)slot);
		if (other && other != old)
			return -EEXIST;
	}

	return kvm_check_replaceable(kvm, old);
}

static int __kvm_split_memory_region(struct kvm *kvm, struct kvm_memory_slot *old,
				     const struct kvm_split_piece *pieces,
				     int nr_pieces)
{
	struct kvm_memory_slot *new[KVM_MAX_SPLIT];
	gfn_t gfn = old->base_gfn;
	int i, r;

	r = kvm_check_split(kvm, old, pieces, nr_pieces);
	if (r)
		return r;

	for (i = 0; i < nr_pieces; i++) {
		new[i] = kvm_alloc_new_memslot(old, (u16)pieces[i].slot, gfn,
					       pieces[i].npages);
		if (!new[i]) {
			r = -ENOMEM;
			goto out_free;
		}
		gfn += pieces[i].npages;
	}

	r = kvm_replace_memslots(kvm, &old, 1, new, nr_pieces);
	if (r)
		goto out_free;

	return 0;

out_free:
	kvm_free_new_memslots(kvm, new, i);
	return r;
}

/**
 * kvm_split_memory_region - KVM_SPLIT_MEMORY_REGION
 * @kvm: the VM
 * @split: the ioctl's argument
 *
 * Context: Process context, takes slots_lock.
 * Return: 0 or an error, see Documentation/virt/kvm/api.rst.
 */
int kvm_split_memory_region(struct kvm *kvm,
			    const struct kvm_split_memory_region *split)
{
	struct kvm_split_piece pieces[KVM_MAX_SPLIT];
	struct kvm_memory_slot *old;
	int nr_pieces = 0;
	u64 offset, npages, rest;

	if (split->flags || split->padding ||
	    memchr_inv(split->reserved, 0, sizeof(split->reserved)))
		return -EINVAL;
	if (!split->size || !PAGE_ALIGNED(split->offset | split->size) ||
	    !kvm_is_user_slot(kvm, split->slot))
		return -EINVAL;

	guard(mutex)(&kvm->slots_lock);

	old = id_to_memslot(__kvm_memslots(kvm, split->slot >> 16),
			    (u16)split->slot);
	if (!old)
		return -ENOENT;

	offset = split->offset >> PAGE_SHIFT;
	npages = split->size >> PAGE_SHIFT;
	if (offset > old->npages || npages > old->npages - offset)
		return -EINVAL;
	rest = old->npages - offset - npages;

	/* What is there to split? */
	if (!offset && !rest)
		return -EINVAL;
	/* There are no memslots for what is empty. */
	if ((!offset && split->before_slot) || (!rest && split->after_slot))
		return -EINVAL;

	if (offset)
		pieces[nr_pieces++] = (struct kvm_split_piece) {
			split->before_slot, offset
		};
	pieces[nr_pieces++] = (struct kvm_split_piece) {
		split->range_slot, npages
	};
	if (rest)
		pieces[nr_pieces++] = (struct kvm_split_piece) {
			split->after_slot, rest
		};

	return __kvm_split_memory_region(kvm, old, pieces, nr_pieces);
}

static bool kvm_can_merge(const struct kvm_memory_slot *slot,
			  const struct kvm_memory_slot *next)
{
	if (slot->flags != next->flags ||
	    slot->userspace_addr + (slot->npages << PAGE_SHIFT) != next->userspace_addr)
		return false;

	return !kvm_slot_has_sealed_memfd(slot) ||
	       kvm_sealed_memfd_can_merge(slot, next);
}

static int kvm_check_merge(struct kvm *kvm, struct kvm_memory_slot **old, int nr_old)
{
	int i, r;

	for (i = 0; i < nr_old; i++) {
		/* KVM relies on finding its own memslots as it has made them. */
		if (old[i]->id >= KVM_USER_MEM_SLOTS)
			return -EINVAL;

		r = kvm_check_replaceable(kvm, old[i]);
		if (r)
			return r;

		if (i && !kvm_can_merge(old[i - 1], old[i]))
			return -EINVAL;
	}

	return 0;
}

static int __kvm_merge_memory_regions(struct kvm *kvm, struct kvm_memory_slot **old,
				      int nr_old, int id, unsigned long npages)
{
	struct kvm_memory_slot *new;
	int r;

	r = kvm_check_merge(kvm, old, nr_old);
	if (r)
		return r;

	new = kvm_alloc_new_memslot(old[0], id, old[0]->base_gfn, npages);
	if (!new)
		return -ENOMEM;

	r = kvm_replace_memslots(kvm, old, nr_old, &new, 1);
	if (r)
		kvm_free_new_memslots(kvm, &new, 1);

	return r;
}

/* How many memslots make up [start, end), without a gap, or an error? */
static int kvm_count_memslots(struct kvm_memslots *slots, gfn_t start, gfn_t end)
{
	struct kvm_memslot_iter iter;
	gfn_t next = start;
	int nr = 0;

	kvm_for_each_memslot_in_gfn_range(&iter, slots, start, end) {
		if (iter.slot->base_gfn > next)
			return -ENOENT;
		if (iter.slot->base_gfn < next)
			return -EINVAL;
		next += iter.slot->npages;
		nr++;
	}

	if (next < end)
		return -ENOENT;

	return next == end ? nr : -EINVAL;
}

/**
 * kvm_merge_memory_regions - KVM_MERGE_MEMORY_REGIONS
 * @kvm: the VM
 * @merge: the ioctl's argument
 *
 * Context: Process context, takes slots_lock.
 * Return: 0 or an error, see Documentation/virt/kvm/api.rst.
 */
int kvm_merge_memory_regions(struct kvm *kvm,
			     const struct kvm_merge_memory_regions *merge)
{
	gfn_t start = merge->guest_phys_addr >> PAGE_SHIFT;
	u64 npages = merge->memory_size >> PAGE_SHIFT;
	struct kvm_memory_slot **old, *other;
	struct kvm_memslot_iter iter;
	struct kvm_memslots *slots;
	int i = 0, nr_old, r;

	if (merge->flags ||
	    memchr_inv(merge->reserved, 0, sizeof(merge->reserved)))
		return -EINVAL;
	if (!npages || npages > KVM_MEM_MAX_NR_PAGES ||
	    !PAGE_ALIGNED(merge->guest_phys_addr | merge->memory_size) ||
	    merge->guest_phys_addr + merge->memory_size < merge->guest_phys_addr ||
	    !kvm_is_user_slot(kvm, merge->slot))
		return -EINVAL;

	guard(mutex)(&kvm->slots_lock);

	slots = __kvm_memslots(kvm, merge->slot >> 16);
	nr_old = kvm_count_memslots(slots, start, start + npages);
	if (nr_old < 0)
		return nr_old;
	if (nr_old == 1)
		return -EINVAL;

	other = id_to_memslot(slots, (u16)merge->slot);
	if (other && (other->base_gfn < start || other->base_gfn >= start + npages))
		return -EEXIST;

	old = kvmalloc_array(nr_old, sizeof(*old), GFP_KERNEL_ACCOUNT);
	if (!old)
		return -ENOMEM;
	kvm_for_each_memslot_in_gfn_range(&iter, slots, start, start + npages)
		old[i++] = iter.slot;

	r = __kvm_merge_memory_regions(kvm, old, nr_old, (u16)merge->slot, npages);
	kvfree(old);
	return r;
}
