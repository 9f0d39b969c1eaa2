// SPDX-License-Identifier: GPL-2.0
/*
 * Private memory of a VM in guest-sealed memfds: KVM's use of guest_memory.
 *
 * A page of a memslot is private if and only if it is allocated in the memfd
 * that the memslot is bound to.  There is no second bookkeeping: the fault path
 * asks the memfd, and the memfd tells before and after pages come and go.
 *
 * The binding names its memslot by address space and id, never by pointer, as
 * memslots are replaced by copies when they are deleted or moved.  From begin
 * to end of a change the memslots are frozen, so that both find the same one.
 *
 * Locks: mm/guest_memory.c has the order, in KVM's terms
 *
 *	slots_lock -> invalidate_lock -> mn_invalidate_lock, gpc_lock, mmu_lock
 *	kvm->srcu  -> invalidate_lock
 *
 * The latter is for vCPUs that wait for a conversion, hence conversions never
 * wait for kvm->srcu.
 *
 * Memslot updates wait for changes to end with slots_lock held, hence changes
 * never take it.
 *
 * References: the binding holds the file and is owned by the memslot; when the
 * memslot is moved the new one inherits it.  The memfd does not pin the VM.
 */
#include <linux/file.h>
#include <linux/guest_memory.h>
#include <linux/kvm_host.h>

#include "kvm_mm.h"

struct kvm_sealed_memfd {
	struct guest_memory_notifier notifier;
	struct kvm *kvm;
	u16 as_id;
	short id;
	bool registered;
};

static struct kvm_sealed_memfd *to_sealed_memfd(struct guest_memory_notifier *notifier)
{
	return container_of(notifier, struct kvm_sealed_memfd, notifier);
}

static pgoff_t kvm_sealed_memfd_index(const struct kvm_memory_slot *slot, gfn_t gfn)
{
	return gfn - slot->base_gfn + slot->gmem.pgoff;
}

/*
 * NULL if the memslot is not visible yet, or no more.  With the memslots frozen
 * the active ones stay, even without kvm->srcu.
 */
static struct kvm_memory_slot *kvm_sealed_memfd_slot(struct kvm_sealed_memfd *sealed)
{
	struct kvm *kvm = sealed->kvm;
	struct kvm_memslots *slots;
	struct kvm_memory_slot *slot;

	slots = rcu_dereference_protected(kvm->memslots[sealed->as_id],
					  kvm->mn_active_invalidate_count);
	slot = id_to_memslot(slots, sealed->id);
	return slot && slot->gmem.sealed == sealed ? slot : NULL;
}

static void kvm_sealed_memfd_begin(struct guest_memory_notifier *notifier,
				   enum guest_memory_event event,
				   pgoff_t start, pgoff_t end)
{
	struct kvm_sealed_memfd *sealed = to_sealed_memfd(notifier);
	struct kvm *kvm = sealed->kvm;
	struct kvm_memory_slot *slot;
	unsigned long hva;

	kvm_memslots_freeze(kvm);

	slot = kvm_sealed_memfd_slot(sealed);
	if (slot) {
		struct kvm_gfn_range range = {
			.slot = slot,
			.start = slot->base_gfn + start - slot->gmem.pgoff,
			.end = slot->base_gfn + end - slot->gmem.pgoff,
			.may_block = event != GUEST_MEMORY_ERROR,
			.attr_filter = KVM_FILTER_PRIVATE | KVM_FILTER_SHARED,
		};

		/* These know the shared half by its hva only. */
		hva = __gfn_to_hva_memslot(slot, range.start);
		gfn_to_pfn_cache_invalidate_start(kvm, hva,
						  hva + ((end - start) << PAGE_SHIFT));

		KVM_MMU_LOCK(kvm);
		kvm_mmu_invalidate_begin(kvm);
		if (kvm_mmu_unmap_gfn_range(kvm, &range))
			kvm_flush_remote_tlbs(kvm);
		KVM_MMU_UNLOCK(kvm);
	}
}

static void kvm_sealed_memfd_end(struct guest_memory_notifier *notifier,
				 enum guest_memory_event event,
				 pgoff_t start, pgoff_t end)
{
	struct kvm_sealed_memfd *sealed = to_sealed_memfd(notifier);
	struct kvm *kvm = sealed->kvm;

	if (kvm_sealed_memfd_slot(sealed)) {
		KVM_MMU_LOCK(kvm);
		kvm_mmu_invalidate_end(kvm);
		KVM_MMU_UNLOCK(kvm);
	}

	kvm_memslots_unfreeze(kvm);
}

static const struct guest_memory_notifier_ops kvm_sealed_memfd_notifier_ops = {
	.begin	= kvm_sealed_memfd_begin,
	.end	= kvm_sealed_memfd_end,
};

static bool kvm_sealed_memfd_page_allocated(const struct kvm_memory_slot *slot,
					    gfn_t gfn)
{
	return guest_memory_page_allocated(slot->gmem.file,
					   kvm_sealed_memfd_index(slot, gfn));
}

static bool kvm_sealed_memfd_range_allocated(const struct kvm_memory_slot *slot,
					     gfn_t start, gfn_t end)
{
	return guest_memory_range_allocated(slot->gmem.file,
					    kvm_sealed_memfd_index(slot, start),
					    kvm_sealed_memfd_index(slot, end));
}

static void kvm_sealed_memfd_wait(const struct kvm_memory_slot *slot)
{
	guest_memory_wait(slot->gmem.file);
}

static int kvm_sealed_memfd_get_pfn(struct kvm *kvm, struct kvm_memory_slot *slot,
				    gfn_t gfn, kvm_pfn_t *pfn, int *max_order)
{
	pgoff_t index = kvm_sealed_memfd_index(slot, gfn);
	struct folio *folio;

	folio = guest_memory_get_folio(slot->gmem.file, index);
	/* The page was just converted to shared: have a new look. */
	if (folio == ERR_PTR(-ENOENT))
		return -EAGAIN;
	if (IS_ERR(folio))
		return PTR_ERR(folio);

	*pfn = page_to_pfn(folio_file_page(folio, index));
	if (max_order)
		*max_order = 0;
	return 0;
}

static void kvm_sealed_memfd_unregister(struct kvm_memory_slot *slot)
{
	struct kvm_sealed_memfd *sealed = slot->gmem.sealed;

	if (sealed->registered)
		guest_memory_unregister(slot->gmem.file, &sealed->notifier);
	sealed->registered = false;
}

static void kvm_sealed_memfd_unbind(struct kvm_memory_slot *slot)
{
	kvm_sealed_memfd_unregister(slot);
	fput(slot->gmem.file);
	kfree(slot->gmem.sealed);
}

static const struct kvm_gmem_ops kvm_sealed_memfd_ops = {
	.unbind			= kvm_sealed_memfd_unbind,
	.get_pfn		= kvm_sealed_memfd_get_pfn,
	.page_allocated		= kvm_sealed_memfd_page_allocated,
	.range_allocated	= kvm_sealed_memfd_range_allocated,
	.wait			= kvm_sealed_memfd_wait,
};

/* Tells VMs apart for guest_memory; unlike pointers, numbers do not come back. */
static u64 kvm_sealed_memfd_owner(struct kvm *kvm)
{
	static atomic64_t last_owner;

	if (!kvm->sealed_memfd_owner)
		kvm->sealed_memfd_owner = atomic64_inc_return(&last_owner);
	return kvm->sealed_memfd_owner;
}

/* What the attributes say does not count here, so have them say nothing. */
static bool kvm_sealed_memfd_has_attributes(struct kvm *kvm,
					    struct kvm_memory_slot *slot)
{
	return !kvm_range_has_memory_attributes(kvm, slot->base_gfn,
						slot->base_gfn + slot->npages,
						KVM_MEMORY_ATTRIBUTE_PRIVATE, 0);
}

/**
 * kvm_sealed_memfd_bind - make a guest-sealed memfd a memslot's private half
 * @kvm: the VM
 * @slot: the memslot, new and not yet visible
 * @file: the memfd
 * @offset: offset of the memslot's first page in the memfd, in bytes
 *
 * Context: Process context, slots_lock held, takes the memfd's invalidate_lock.
 * Return: 0; -EINVAL if @file is not guest-sealed, the VM can't use it, @offset
 *	or the range do not fit, another memslot has part of it, or part of
 *	the memslot has the private attribute; -EBUSY if another VM uses the
 *	memfd or has left pages in it; -ENOMEM.
 */
int kvm_sealed_memfd_bind(struct kvm *kvm, struct kvm_memory_slot *slot,
			  struct file *file, loff_t offset)
{
	struct kvm_sealed_memfd *sealed;
	int r;

	lockdep_assert_held(&kvm->slots_lock);

	if (!kvm_arch_has_sealed_memfd(kvm) || offset < 0 || !PAGE_ALIGNED(offset))
		return -EINVAL;

	if (kvm_sealed_memfd_has_attributes(kvm, slot))
		return -EINVAL;

	sealed = kzalloc(sizeof(*sealed), GFP_KERNEL_ACCOUNT);
	if (!sealed)
		return -ENOMEM;

	sealed->notifier.ops = &kvm_sealed_memfd_notifier_ops;
	sealed->notifier.owner = kvm_sealed_memfd_owner(kvm);
	sealed->notifier.space = slot->as_id;
	sealed->kvm = kvm;
	sealed->as_id = slot->as_id;
	sealed->id = slot->id;
	sealed->registered = true;

	r = guest_memory_register(file, offset >> PAGE_SHIFT, slot->npages,
				  &sealed->notifier);
	if (r) {
		kfree(sealed);
		return r;
	}

	slot->gmem.ops = &kvm_sealed_memfd_ops;
	slot->gmem.file = get_file(file);
	slot->gmem.pgoff = offset >> PAGE_SHIFT;
	slot->gmem.sealed = sealed;
	return 0;
}

/**
 * kvm_sealed_memfd_is_bound - is this the private half of the memslot?
 * @slot: a memslot that can be private
 * @fd: file descriptor to compare with
 * @offset: offset to compare with, in bytes
 *
 * Context: Process context, slots_lock held.
 * Return: true if @fd is the guest-sealed memfd that @slot is bound to, at
 *	@offset.
 */
bool kvm_sealed_memfd_is_bound(struct kvm_memory_slot *slot, unsigned int fd,
			       loff_t offset)
{
	struct file *file;
	bool same;

	if (!kvm_slot_has_sealed_memfd(slot))
		return false;

	file = fget(fd);
	if (!file)
		return false;

	same = file_inode(file) == file_inode(slot->gmem.file) &&
	       offset == (loff_t)slot->gmem.pgoff << PAGE_SHIFT;
	fput(file);
	return same;
}

/**
 * kvm_sealed_memfd_inherit - pass the private half on to a moved memslot
 * @kvm: the VM
 * @old: memslot with a sealed memfd, about to be replaced by @new
 * @new: its copy at another gfn, not yet visible
 *
 * Context: Process context, slots_lock held.
 * Return: 0, or -EINVAL if part of @new has the private attribute.
 */
int kvm_sealed_memfd_inherit(struct kvm *kvm, const struct kvm_memory_slot *old,
			     struct kvm_memory_slot *new)
{
	if (kvm_sealed_memfd_has_attributes(kvm, new))
		return -EINVAL;

	new->gmem = old->gmem;
	return 0;
}

/**
 * kvm_sealed_memfd_destroy_vm - end the use of all sealed memfds by a VM
 * @kvm: the VM, without any user left
 *
 * Pages may be freed without notice as soon as the memfd is unregistered, so
 * unmap them first.  And do this before the MMU notifier, which shares
 * mn_active_invalidate_count, is unregistered.
 *
 * Context: Process context, takes the memfds' invalidate_locks.
 */
void kvm_sealed_memfd_destroy_vm(struct kvm *kvm)
{
	struct kvm_memory_slot *slot;
	int as_id, bkt;

	/* Nothing was ever bound. */
	if (!kvm->sealed_memfd_owner)
		return;

	kvm_arch_flush_shadow_all(kvm);

	for (as_id = 0; as_id < kvm_arch_nr_memslot_as_ids(kvm); as_id++) {
		kvm_for_each_memslot(slot, bkt, __kvm_memslots(kvm, as_id)) {
			if (kvm_slot_has_sealed_memfd(slot))
				kvm_sealed_memfd_unregister(slot);
		}
	}
}
