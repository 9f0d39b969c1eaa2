// SPDX-License-Identifier: GPL-2.0
/*
 * Private memory of a VM in guest-sealed memfds: KVM's use of guest_memory.
 *
 * A page of a memslot is private if and only if it is allocated in the memfd
 * that the memslot is bound to.  There is no second bookkeeping: the fault path
 * asks the memfd, and the memfd tells before and after pages come and go.
 *
 * The binding names its memslot by address space and id, never by pointer, as
 * memslots are replaced by copies when they are deleted, moved or given other
 * flags.  From begin to end of a change the memslots are frozen, so that both
 * find the same one.
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
 * never take it.  Nor does a change begin while an update waits.  When memslots
 * are replaced by others of the same memory that is done with the invalidate_lock
 * held, too, which only keeps the file's own changes from beginning.
 *
 * KVM's own accesses, with kvm->srcu held like any use of a memslot, take the
 * half that is in force, or in protected VMs the one that the guest has addressed, see
 * kvm_gfn_to_filter():
 *
 * - Reads take no lock and never wait.  A private page is read with a reference
 *   on it, so its memory isn't anything else's yet; if it is no longer in the file
 *   after that, what was read does not count, and the page is looked for again: it
 *   may be shared now, or may have moved.  A shared page is read through its
 *   hva; if there is a private one after that, what was read does not count
 *   either.  Only who asks for one half, and finds the other, waits to see whether
 *   that is going to change.
 *
 * - Writes hold mmu_lock for read, and wait for a change of the page to end.  As
 *   begin takes mmu_lock, a write is done before the page changes, or finds
 *   the new state.  Page faults are disabled meanwhile, so pages that turn out
 *   not to be there are faulted in between two tries.
 *
 * - gfn_to_pfn_caches follow either half; a change invalidates them at its begin,
 *   and to refresh them means to wait for the end.
 *
 * - Whoever works on a page for longer than that gets a copy of it, of which the
 *   changes are written back, by kvm_vcpu_map_transient().  Mappings that stay,
 *   kvm_vcpu_map(), are refused.
 *
 * Consent: a guest that doesn't trust its VMM is asked before private pages are freed,
 * or rather has to ask for it, see kvm_sealed_memfd_require_consent().  A bit for each
 * page says that it has.  As long as it's set the page is not mapped, so KVM notices
 * when the guest uses it nevertheless, and takes the bit back:
 *
 * - Who sets it does so with mmu_lock held for write, and unmaps the page then.
 *
 * - Who maps or accesses the page for the guest clears it, with mmu_lock held for read
 *   at least.
 *
 * - Begin looks at it with mmu_lock held for write, and from there on to end nobody
 *   maps or accesses the page.  So whatever the guest does was before that, and counts,
 *   or comes after the change.  Reads, which take no lock, see afterwards if they were too
 *   late, and are repeated then.
 *
 * References: the binding holds the file and is owned by the memslot; when the
 * memslot is changed the new one inherits it.  The memfd does not pin the VM.
 */
#include <linux/file.h>
#include <linux/guest_memory.h>
#include <linux/highmem.h>
#include <linux/kvm_host.h>
#include <linux/kvm_sealed_memfd.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include <trace/events/kvm.h>

#include "kvm_mm.h"

#define KVM_SEALED_MEMFD_MAX_FAULTS	100

struct kvm_sealed_memfd {
	struct guest_memory_notifier notifier;
	struct kvm *kvm;
	u16 as_id;
	short id;
	bool registered;
	struct file *file;
	/* From begin to end, which find the same one, also if they overlap. */
	struct kvm_memory_slot *slot;
	/* Pages that are changing, if any.  Protected by mmu_lock. */
	pgoff_t change_start;
	pgoff_t change_end;
	/*
	 * If it takes the guest's consent to free pages: those that it has asked to be
	 * rid of, and not used since.  Set with the invalidate_lock and mmu_lock held
	 * for write, while no vCPU runs.  For the bits see above.
	 */
	unsigned long *released;
};

static struct kvm_sealed_memfd *to_sealed_memfd(struct guest_memory_notifier *notifier)
{
	return container_of(notifier, struct kvm_sealed_memfd, notifier);
}

static pgoff_t kvm_sealed_memfd_index(const struct kvm_memory_slot *slot, gfn_t gfn)
{
	return gfn - slot->base_gfn + slot->gmem.pgoff;
}

static gfn_t kvm_sealed_memfd_gfn(const struct kvm_memory_slot *slot, pgoff_t index)
{
	return slot->base_gfn + index - slot->gmem.pgoff;
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

/*
 * Changes of a memfd come one at a time, except for memory errors: those take
 * pages away from where they are, but don't make them shared, nor are they mapped
 * again.
 */
static void kvm_sealed_memfd_set_change(struct kvm_sealed_memfd *sealed,
					enum guest_memory_event event,
					pgoff_t start, pgoff_t end)
{
	lockdep_assert_held_write(&sealed->kvm->mmu_lock);

	if (event != GUEST_MEMORY_ERROR) {
		WRITE_ONCE(sealed->change_start, start);
		WRITE_ONCE(sealed->change_end, end);
	}
}

static unsigned long kvm_sealed_memfd_bit(const struct kvm_sealed_memfd *sealed,
					  pgoff_t index)
{
	return index - sealed->notifier.node.start;
}

/* May the event be?  Unless mmu_lock is held for write, the answer may be outdated. */
static int kvm_sealed_memfd_check_consent(struct kvm_sealed_memfd *sealed,
					  enum guest_memory_event event,
					  pgoff_t start, pgoff_t end)
{
	unsigned long pos, next, nr = kvm_sealed_memfd_bit(sealed, end);
	pgoff_t base = sealed->notifier.node.start;

	if (!sealed->released)
		return 0;

	switch (event) {
	case GUEST_MEMORY_FILL:
		return -EPERM;
	case GUEST_MEMORY_UNMAP:
		break;
	default:
		return 0;
	}

	for (pos = kvm_sealed_memfd_bit(sealed, start);
	     (pos = find_next_zero_bit(sealed->released, nr, pos)) < nr; pos = next) {
		next = find_next_bit(sealed->released, nr, pos);
		if (guest_memory_range_allocated(sealed->file, base + pos, base + next))
			return -EPERM;
	}
	return 0;
}

/* What was freed has to be asked for anew.  What wasn't, after all, is left as it is. */
static void kvm_sealed_memfd_use_up_consent(struct kvm_sealed_memfd *sealed,
					    pgoff_t start, pgoff_t end)
{
	unsigned long pos = kvm_sealed_memfd_bit(sealed, start);

	lockdep_assert_held_write(&sealed->kvm->mmu_lock);

	if (!sealed->released)
		return;

	for_each_set_bit_from(pos, sealed->released, kvm_sealed_memfd_bit(sealed, end)) {
		if (!guest_memory_page_allocated(sealed->file,
						 sealed->notifier.node.start + pos))
			clear_bit(pos, sealed->released);
	}
}

static int kvm_sealed_memfd_allow(struct guest_memory_notifier *notifier,
				  enum guest_memory_event event,
				  pgoff_t start, pgoff_t end)
{
	return kvm_sealed_memfd_check_consent(to_sealed_memfd(notifier), event, start, end);
}

static void kvm_sealed_memfd_prepare(struct guest_memory_notifier *notifier)
{
	struct kvm *kvm = to_sealed_memfd(notifier)->kvm;

	/* A long range comes as many short ones. */
	if (kvm_memslots_update_waits(kvm))
		kvm_memslots_yield(kvm);
}

/* Is it the private half that comes into force? */
static bool kvm_sealed_memfd_is_map(enum guest_memory_event event)
{
	return event == GUEST_MEMORY_MAP || event == GUEST_MEMORY_FILL ||
	       event == GUEST_MEMORY_COLLAPSE;
}

/* What is mapped of which half must not be any more? */
static enum kvm_gfn_range_filter kvm_sealed_memfd_filter(enum guest_memory_event event)
{
	/* Private pages move. */
	if (event == GUEST_MEMORY_COLLAPSE)
		return KVM_FILTER_SHARED | KVM_FILTER_PRIVATE;

	return kvm_sealed_memfd_is_map(event) ? KVM_FILTER_SHARED : KVM_FILTER_PRIVATE;
}

static int kvm_sealed_memfd_begin(struct guest_memory_notifier *notifier,
				  enum guest_memory_event event,
				  pgoff_t start, pgoff_t end)
{
	struct kvm_sealed_memfd *sealed = to_sealed_memfd(notifier);
	struct kvm *kvm = sealed->kvm;
	struct kvm_memory_slot *slot;
	unsigned long hva;
	int r;

	kvm_memslots_freeze(kvm);

	slot = kvm_sealed_memfd_slot(sealed);
	sealed->slot = slot;

	KVM_MMU_LOCK(kvm);
	r = kvm_sealed_memfd_check_consent(sealed, event, start, end);
	if (r) {
		KVM_MMU_UNLOCK(kvm);
		kvm_memslots_unfreeze(kvm);
		return r;
	}

	atomic64_inc(&kvm->sealed_memfd_changes);
	kvm_sealed_memfd_set_change(sealed, event, start, end);
	if (slot) {
		struct kvm_gfn_range range = {
			.slot = slot,
			.start = kvm_sealed_memfd_gfn(slot, start),
			.end = kvm_sealed_memfd_gfn(slot, end),
			.may_block = event != GUEST_MEMORY_ERROR,
			.attr_filter = kvm_sealed_memfd_filter(event),
		};

		trace_kvm_sealed_memfd_begin(event, range.start, range.end);
		/*
		 * Until the end this would concern more and more pages, if one
		 * conversion follows the other and some last.
		 */
		kvm_mmu_invalidate_begin(kvm);
		if (kvm_mmu_unmap_gfn_range(kvm, &range))
			kvm_flush_remote_tlbs(kvm);
		kvm_mmu_invalidate_end(kvm);

		if (event != GUEST_MEMORY_ERROR)
			kvm_arch_renew_steal_time(kvm, range.start, range.end);
	}
	KVM_MMU_UNLOCK(kvm);

	if (slot) {
		/* These know either half by the hva of the shared one. */
		hva = __gfn_to_hva_memslot(slot, kvm_sealed_memfd_gfn(slot, start));
		gfn_to_pfn_cache_invalidate(kvm, hva, hva + ((end - start) << PAGE_SHIFT));
	}
	return 0;
}

/*
 * What the guest finds in a converted page is not what it was, even if nobody
 * wrote it.  That goes to the bitmap only: dirty rings belong to vCPUs, and no
 * vCPU did this.
 */
static void kvm_sealed_memfd_mark_dirty(struct kvm_memory_slot *slot, bool private,
					pgoff_t start, pgoff_t end)
{
	gfn_t gfn = kvm_sealed_memfd_gfn(slot, start);

	if (!slot->dirty_bitmap)
		return;

	for (; start < end; start++, gfn++) {
		if (kvm_slot_page_is_private(slot, gfn) == private)
			set_bit_le(gfn - slot->base_gfn, slot->dirty_bitmap);
	}
}

static void kvm_sealed_memfd_end(struct guest_memory_notifier *notifier,
				 enum guest_memory_event event,
				 pgoff_t start, pgoff_t end)
{
	struct kvm_sealed_memfd *sealed = to_sealed_memfd(notifier);
	struct kvm_memory_slot *slot = sealed->slot;
	gfn_t start_gfn = 0, end_gfn = 0;
	struct kvm *kvm = sealed->kvm;

	if (slot && event != GUEST_MEMORY_ERROR)
		kvm_sealed_memfd_mark_dirty(slot, kvm_sealed_memfd_is_map(event), start, end);

	if (slot) {
		start_gfn = kvm_sealed_memfd_gfn(slot, start);
		end_gfn = kvm_sealed_memfd_gfn(slot, end);
	}

	KVM_MMU_LOCK(kvm);
	if (event == GUEST_MEMORY_UNMAP)
		kvm_sealed_memfd_use_up_consent(sealed, start, end);
	kvm_sealed_memfd_set_change(sealed, event, 0, 0);
	if (slot && event != GUEST_MEMORY_ERROR) {
		/* Until here vCPUs may have found pages, and page tables, as they were. */
		kvm_arch_zap_converted_page_tables(kvm, start_gfn, end_gfn);
		kvm->mmu_invalidate_seq++;
	}
	KVM_MMU_UNLOCK(kvm);

	if (slot)
		trace_kvm_sealed_memfd_end(event, start_gfn, end_gfn);

	kvm_memslots_unfreeze(kvm);
}

static const struct guest_memory_notifier_ops kvm_sealed_memfd_notifier_ops = {
	.allow		= kvm_sealed_memfd_allow,
	.prepare	= kvm_sealed_memfd_prepare,
	.begin		= kvm_sealed_memfd_begin,
	.end		= kvm_sealed_memfd_end,
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

static bool kvm_sealed_memfd_range_has_hole(const struct kvm_memory_slot *slot,
					    gfn_t start, gfn_t end)
{
	return guest_memory_range_has_hole(slot->gmem.file,
					   kvm_sealed_memfd_index(slot, start),
					   kvm_sealed_memfd_index(slot, end));
}

static int kvm_sealed_memfd_wait(const struct kvm_memory_slot *slot, bool interruptible)
{
	return guest_memory_wait(slot->gmem.file, interruptible);
}

/* Has the guest asked to be rid of any page of a naturally aligned range? */
static bool kvm_sealed_memfd_any_released(const struct kvm_memory_slot *slot, gfn_t gfn,
					  int order)
{
	unsigned long *released = slot->gmem.sealed->released;
	gfn_t start, end;

	if (!released)
		return false;

	start = max(round_down(gfn, 1ul << order), slot->base_gfn) - slot->base_gfn;
	end = min(round_down(gfn, 1ul << order) + (1ul << order) - slot->base_gfn,
		  slot->npages);
	return find_next_bit(released, end, start) < end;
}

/**
 * kvm_sealed_memfd_page_order - how many private pages can be mapped as one?
 * @slot: memslot with a sealed memfd
 * @gfn: page
 *
 * What is one piece in the file is one piece of the guest's memory, too, if it is
 * aligned there as it is in the file, and all of it is in the memslot.  The latter is
 * for the caller to know.  How the shared half is aligned does not matter.
 *
 * Context: Any but interrupt, kvm->srcu held.  With mmu_lock held, too, and unless
 *	any of the pages is changing, see kvm_sealed_memfd_is_changing(), they stay
 *	where they are until they are to be unmapped.
 * Return: PMD_ORDER if the naturally aligned range of that order around @gfn is
 *	private and in one piece, as far as it is in the memslot, else 0.
 */
int kvm_sealed_memfd_page_order(const struct kvm_memory_slot *slot, gfn_t gfn)
{
	if ((slot->base_gfn ^ slot->gmem.pgoff) & ((1ul << PMD_ORDER) - 1))
		return 0;

	/* Those are not to be mapped along with others. */
	if (kvm_sealed_memfd_any_released(slot, gfn, PMD_ORDER))
		return 0;

	return guest_memory_page_order(slot->gmem.file, kvm_sealed_memfd_index(slot, gfn));
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
		*max_order = kvm_sealed_memfd_page_order(slot, gfn);
	return 0;
}

/* Tells VMs apart for guest_memory; unlike pointers, numbers do not come back. */
static u64 kvm_sealed_memfd_owner(struct kvm *kvm)
{
	static atomic64_t last_owner;

	return kvm->sealed_memfd_owner ?: atomic64_inc_return(&last_owner);
}

/*
 * -EINVAL if the file is not guest-sealed, or the range does not fit into it, or
 * another memslot has part of it; -EBADF if it can't be both read and written;
 * -EBUSY if another VM uses the memfd or has left pages in it; -ENOMEM; -EINTR.
 */
static int kvm_sealed_memfd_commit(struct kvm *kvm, struct kvm_memory_slot *slot)
{
	struct kvm_sealed_memfd *sealed;
	int r;

	sealed = kzalloc(sizeof(*sealed), GFP_KERNEL_ACCOUNT);
	if (!sealed)
		return -ENOMEM;

	sealed->notifier.ops = &kvm_sealed_memfd_notifier_ops;
	sealed->notifier.owner = kvm_sealed_memfd_owner(kvm);
	sealed->notifier.space = slot->as_id;
	sealed->kvm = kvm;
	sealed->file = slot->gmem.file;
	sealed->as_id = slot->as_id;
	sealed->id = slot->id;
	sealed->registered = true;

	r = guest_memory_register(slot->gmem.file, slot->gmem.pgoff, slot->npages,
				  &sealed->notifier);
	if (r) {
		kfree(sealed);
		return r;
	}

	kvm->sealed_memfd_owner = sealed->notifier.owner;
	get_file(slot->gmem.file);
	slot->gmem.sealed = sealed;
	return 0;
}

static void kvm_sealed_memfd_unregister(struct kvm_memory_slot *slot)
{
	struct kvm_sealed_memfd *sealed = slot->gmem.sealed;
	unsigned long hva = slot->userspace_addr;

	if (!sealed->registered)
		return;

	/* A cache that isn't used any more must not be revived as it is. */
	gfn_to_pfn_cache_invalidate(sealed->kvm, hva,
				    hva + (slot->npages << PAGE_SHIFT));
	guest_memory_unregister(slot->gmem.file, &sealed->notifier);
	sealed->registered = false;
	/* No changes are seen from here on. */
	atomic64_inc(&sealed->kvm->sealed_memfd_changes);
}

static void kvm_sealed_memfd_unbind(struct kvm_memory_slot *slot)
{
	kvm_sealed_memfd_unregister(slot);
	fput(slot->gmem.file);
	kvfree(slot->gmem.sealed->released);
	kfree(slot->gmem.sealed);
}

static const struct kvm_gmem_ops kvm_sealed_memfd_ops = {
	.commit			= kvm_sealed_memfd_commit,
	.unbind			= kvm_sealed_memfd_unbind,
	.get_pfn		= kvm_sealed_memfd_get_pfn,
	.page_allocated		= kvm_sealed_memfd_page_allocated,
	.range_allocated	= kvm_sealed_memfd_range_allocated,
	.range_has_hole		= kvm_sealed_memfd_range_has_hole,
	.wait			= kvm_sealed_memfd_wait,
};

/* What the attributes say does not count here, so have them say nothing. */
static bool kvm_sealed_memfd_has_attributes(struct kvm *kvm,
					    struct kvm_memory_slot *slot)
{
	return !kvm_range_has_memory_attributes(kvm, slot->base_gfn,
						slot->base_gfn + slot->npages,
						KVM_MEMORY_ATTRIBUTE_PRIVATE, 0);
}

/**
 * kvm_sealed_memfd_prepare_memory_region - choose a memslot's private half
 * @kvm: the VM
 * @slot: the memslot, new and not yet visible
 * @file: the memfd to be
 * @offset: offset of the memslot's first page in the memfd, in bytes
 *
 * What the memfd has to say comes when the memslot is committed.
 *
 * Context: Process context, slots_lock held.
 * Return: 0, or -EINVAL if the VM can't use sealed memfds, @offset is not at a
 *	page, or part of the memslot has the private attribute.
 */
int kvm_sealed_memfd_prepare_memory_region(struct kvm *kvm,
					   struct kvm_memory_slot *slot,
					   struct file *file, u64 offset)
{
	lockdep_assert_held(&kvm->slots_lock);

	if (!kvm_arch_has_sealed_memfd(kvm) || !PAGE_ALIGNED(offset))
		return -EINVAL;

	if (kvm_sealed_memfd_has_attributes(kvm, slot))
		return -EINVAL;

	slot->gmem.ops = &kvm_sealed_memfd_ops;
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
 *	@offset, and could be bound.
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

	same = guest_memory_file_usable(file) &&
	       file_inode(file) == file_inode(slot->gmem.file) &&
	       offset == (loff_t)slot->gmem.pgoff << PAGE_SHIFT;
	fput(file);
	return same;
}

/**
 * kvm_sealed_memfd_inherit - pass the private half on to a changed memslot
 * @kvm: the VM
 * @old: memslot with a sealed memfd, about to be replaced by @new
 * @new: its copy at another gfn or with other flags, not yet visible
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

/*
 * Memslots that were replaced are no longer registered, but as good as their
 * successors, which can't go away before kvm->srcu is released.  Nor can those
 * that are about to be deleted or moved, KVM_MEMSLOT_INVALID, which are told of
 * changes up to then: an access counts as done before.  Some can't be put off
 * until it is known what comes after, e.g. that of the VMCB on nested exit.
 */
static bool kvm_sealed_memfd_accessible(const struct kvm_memory_slot *slot)
{
	bool registered = READ_ONCE(slot->gmem.sealed->registered);

	/* Pairs with smp_wmb() in kvm_hand_over_metadata(). */
	smp_rmb();
	return registered || READ_ONCE(slot->flags) & KVM_MEMSLOT_REPLACED;
}

static void __user *kvm_sealed_memfd_uaddr(const struct kvm_memory_slot *slot, gfn_t gfn)
{
	return (void __user *)__gfn_to_hva_memslot(slot, gfn);
}

static void *kvm_sealed_memfd_kmap(const struct kvm_memory_slot *slot, gfn_t gfn,
				   struct folio *folio)
{
	return kmap_local_page(folio_file_page(folio, kvm_sealed_memfd_index(slot, gfn)));
}

/**
 * kvm_sealed_memfd_report_error - a page has turned out to be lost
 * @kaddr: the kernel's mapping of it
 *
 * Has the page taken away from the guest, which happens later.
 *
 * Context: Any.
 */
void kvm_sealed_memfd_report_error(const void *kaddr)
{
	memory_failure_queue(page_to_pfn(kmap_to_page((void *)kaddr)), 0);
}

/*
 * CPUs, and thus guests, expect aligned words to be accessed in one go, e.g. the
 * entries of page tables.
 *
 * Like a guest KVM may come upon a memory error.  With kvm_arch_copy_mc() it's the
 * access that fails then, not the host.  That is for reads: what is written isn't
 * looked at by the CPU.
 */
static void kvm_sealed_memfd_copy_to_page(void *to, const void *from, int len)
{
	switch (len) {
	case sizeof(u16):
		WRITE_ONCE(*(u16 *)to, *(const u16 *)from);
		break;
	case sizeof(u32):
		WRITE_ONCE(*(u32 *)to, *(const u32 *)from);
		break;
	case sizeof(u64):
		WRITE_ONCE(*(u64 *)to, *(const u64 *)from);
		break;
	default:
		memcpy(to, from, len);
	}
}

static int kvm_sealed_memfd_copy_from_user(void *to, const void __user *from, int len)
{
	switch (len) {
	case sizeof(u16):
		return __get_user(*(u16 *)to, (const u16 __user *)from);
	case sizeof(u32):
		return __get_user(*(u32 *)to, (const u32 __user *)from);
	case sizeof(u64):
		return __get_user(*(u64 *)to, (const u64 __user *)from);
	default:
		return __copy_from_user_inatomic(to, from, len) ? -EFAULT : 0;
	}
}

static int kvm_sealed_memfd_copy_to_user(void __user *to, const void *from, int len)
{
	switch (len) {
	case sizeof(u16):
		return __put_user(*(const u16 *)from, (u16 __user *)to);
	case sizeof(u32):
		return __put_user(*(const u32 *)from, (u32 __user *)to);
	case sizeof(u64):
		return __put_user(*(const u64 *)from, (u64 __user *)to);
	default:
		return __copy_to_user_inatomic(to, from, len) ? -EFAULT : 0;
	}
}

/**
 * kvm_sealed_memfd_map_private - map private guest memory, to look at it where it is
 * @slot: memslot with a sealed memfd
 * @gfn: page
 * @folio: where to put what kvm_sealed_memfd_unmap_private() is to be told
 *
 * The page may move, be freed or turn out to be lost at any time: what that does to
 * what is read, kvm_sealed_memfd_unmap_private() tells, and the reader has to survive
 * memory errors.
 *
 * Context: Any but interrupt, kvm->srcu held until it's unmapped.  The mapping is one of
 *	kmap_local_page(): unmap the last one first.
 * Return: where it is mapped, ERR_PTR(-ENOENT) if the page is shared, also if it has just
 *	become that, ERR_PTR(-EAGAIN) if it was never used, i.e. is zero,
 *	ERR_PTR(-EHWPOISON) if it's lost.
 */
void *kvm_sealed_memfd_map_private(const struct kvm_memory_slot *slot, gfn_t gfn,
				   struct folio **folio)
{
	*folio = guest_memory_get_folio_nowait(slot->gmem.file,
					       kvm_sealed_memfd_index(slot, gfn));
	if (IS_ERR(*folio))
		return ERR_CAST(*folio);

	return kvm_sealed_memfd_kmap(slot, gfn, *folio);
}

/**
 * kvm_sealed_memfd_unmap_private - be done with what was mapped
 * @slot: the memslot
 * @kaddr: what kvm_sealed_memfd_map_private() has returned
 * @folio: what it has put there
 *
 * Context: Any but interrupt, kvm->srcu held since.
 * Return: true if what has been read is the content of the page; else it has to be read
 *	again.
 */
bool kvm_sealed_memfd_unmap_private(const struct kvm_memory_slot *slot, void *kaddr,
				    struct folio *folio)
{
	bool valid;

	kunmap_local(kaddr);
	valid = guest_memory_folio_valid(slot->gmem.file, folio);
	folio_put(folio);
	return valid;
}

/**
 * kvm_sealed_memfd_read_private - read private guest memory
 * @slot: memslot with a sealed memfd
 * @gfn: page
 * @data: where to copy it to
 * @offset: where the data begin in the page
 * @len: number of bytes, not beyond the end of the page
 *
 * Context: Any but interrupt, kvm->srcu held.
 * Return: 0, -ENOENT if the page is shared, also if it has just become that,
 *	-EHWPOISON if it's lost, -EFAULT if that turned out now.
 */
int kvm_sealed_memfd_read_private(const struct kvm_memory_slot *slot, gfn_t gfn,
				  void *data, int offset, int len)
{
	struct folio *folio;
	void *kaddr;
	int r;

	do {
		kaddr = kvm_sealed_memfd_map_private(slot, gfn, &folio);
		if (kaddr == ERR_PTR(-EAGAIN)) {
			memset(data, 0, len);
			return 0;
		}
		if (IS_ERR(kaddr))
			return PTR_ERR(kaddr);

		r = kvm_arch_copy_mc(data, kaddr + offset, len);
		if (r)
			kvm_sealed_memfd_report_error(kaddr);
	} while (!kvm_sealed_memfd_unmap_private(slot, kaddr, folio));

	return r;
}

/* Returns -EAGAIN if the page has just become private. */
static int kvm_sealed_memfd_read_shared(const struct kvm_memory_slot *slot, gfn_t gfn,
					void *data, int offset, int len)
{
	int r;

	r = kvm_sealed_memfd_copy_from_user(data,
					    kvm_sealed_memfd_uaddr(slot, gfn) + offset,
					    len);
	/*
	 * See a page that was allocated before somebody, knowing of it, wrote to
	 * the shared half.
	 */
	smp_rmb();
	return kvm_slot_page_is_private(slot, gfn) ? -EAGAIN : r;
}

/**
 * kvm_sealed_memfd_is_changing - is any page of a range being converted?
 * @slot: memslot with a sealed memfd
 * @start: first gfn
 * @end: gfn after the last one, in the same memslot
 *
 * Unlike what mmu_invalidate_retry_gfn() tells, and what is to be asked besides,
 * this is exact, and what can be waited for.
 *
 * Context: Any, kvm->srcu held.  With mmu_lock held, too, from now on pages keep
 *	their state if it's false; otherwise the answer may be outdated.
 * Return: true between begin and end of a conversion.
 */
bool kvm_sealed_memfd_is_changing(const struct kvm_memory_slot *slot, gfn_t start,
				  gfn_t end)
{
	struct kvm_sealed_memfd *sealed = slot->gmem.sealed;
	struct kvm *kvm = sealed->kvm;

	/* It is the successor that gets to know of changes. */
	if (slot->flags & KVM_MEMSLOT_REPLACED)
		sealed = __gfn_to_memslot(__kvm_memslots(kvm, slot->as_id), start)->gmem.sealed;

	return kvm_sealed_memfd_index(slot, start) < READ_ONCE(sealed->change_end) &&
	       kvm_sealed_memfd_index(slot, end) > READ_ONCE(sealed->change_start);
}

static enum kvm_gfn_range_filter kvm_sealed_memfd_half(bool private)
{
	return private ? KVM_FILTER_PRIVATE : KVM_FILTER_SHARED;
}

/* Which half is in force when no change of the page is under way?  0 if killed. */
static enum kvm_gfn_range_filter
kvm_sealed_memfd_settled_half(const struct kvm_memory_slot *slot, gfn_t gfn)
{
	struct kvm *kvm = slot->gmem.sealed->kvm;
	bool changing, private;

	for (;;) {
		read_lock(&kvm->mmu_lock);
		changing = kvm_sealed_memfd_is_changing(slot, gfn, gfn + 1);
		private = kvm_slot_page_is_private(slot, gfn);
		read_unlock(&kvm->mmu_lock);

		if (!changing)
			return kvm_sealed_memfd_half(private);
		if (kvm_sealed_memfd_wait(slot, false))
			return 0;
	}
}

/**
 * kvm_sealed_memfd_keep - a guest uses a private page, and thus wants to have it
 * @slot: memslot with a sealed memfd
 * @gfn: page that is mapped, or accessed on the guest's behalf
 *
 * Withdraws the guest's consent to free it, if any.
 *
 * Context: Any, kvm->srcu and mmu_lock held.
 */
void kvm_sealed_memfd_keep(const struct kvm_memory_slot *slot, gfn_t gfn)
{
	unsigned long *released = slot->gmem.sealed->released;
	unsigned long pos = gfn - slot->base_gfn;

	lockdep_assert_held(&slot->gmem.sealed->kvm->mmu_lock);

	if (released && test_bit(pos, released))
		clear_bit(pos, released);
}

/**
 * kvm_sealed_memfd_request - a guest asks for pages to be converted
 * @kvm: the VM
 * @start: first gfn
 * @nr_pages: number of pages, which may have memslots or not
 * @private: to what they are to be converted
 *
 * It is for userspace to do that.  If the VM is one where it takes the guest's consent
 * to free private pages, this is how it is given, or withdrawn.  It's used up when the
 * page is freed.
 *
 * Context: Process context, kvm->srcu held, may sleep, takes mmu_lock.
 */
void kvm_sealed_memfd_request(struct kvm *kvm, gfn_t start, gfn_t nr_pages, bool private)
{
	struct kvm_gfn_range range = {
		.may_block = true,
		.attr_filter = KVM_FILTER_PRIVATE,
	};
	struct kvm_memslot_iter iter;
	unsigned long *released;

	might_sleep();

	KVM_MMU_LOCK(kvm);
	kvm_for_each_memslot_in_gfn_range(&iter, kvm_memslots(kvm), start, start + nr_pages) {
		range.slot = iter.slot;
		if (!kvm_slot_has_sealed_memfd(range.slot))
			continue;
		released = range.slot->gmem.sealed->released;
		if (!released)
			continue;

		range.start = max(start, range.slot->base_gfn);
		range.end = min(start + nr_pages, range.slot->base_gfn + range.slot->npages);
		if (private) {
			bitmap_clear(released, range.start - range.slot->base_gfn,
				     range.end - range.start);
			continue;
		}

		bitmap_set(released, range.start - range.slot->base_gfn,
			   range.end - range.start);
		/* See if it's used all the same.  This may release mmu_lock meanwhile. */
		kvm_mmu_invalidate_begin(kvm);
		kvm_mmu_invalidate_range_add(kvm, range.start, range.end);
		if (kvm_unmap_gfn_range(kvm, &range))
			kvm_flush_remote_tlbs(kvm);
		kvm_mmu_invalidate_end(kvm);
	}
	KVM_MMU_UNLOCK(kvm);
}

static int kvm_sealed_memfd_set_released(struct kvm_memory_slot *slot,
					 unsigned long *released)
{
	struct kvm_sealed_memfd *sealed = slot->gmem.sealed;
	struct address_space *mapping = sealed->file->f_mapping;

	/* A change that goes on may be waiting for memory. */
	if (released) {
		if (down_write_killable(&mapping->invalidate_lock))
			return -EINTR;
	} else {
		filemap_invalidate_lock(mapping);
	}

	KVM_MMU_LOCK(sealed->kvm);
	swap(sealed->released, released);
	KVM_MMU_UNLOCK(sealed->kvm);
	filemap_invalidate_unlock(mapping);

	kvfree(released);
	return 0;
}

/**
 * kvm_sealed_memfd_waive_consent - undo kvm_sealed_memfd_require_consent()
 * @kvm: the VM, without any vCPU that has run
 *
 * Context: Process context, may sleep, slots_lock held, takes the memfds'
 *	invalidate_locks and mmu_lock.
 */
void kvm_sealed_memfd_waive_consent(struct kvm *kvm)
{
	struct kvm_memory_slot *slot;
	int bkt;

	lockdep_assert_held(&kvm->slots_lock);

	kvm_for_each_memslot(slot, bkt, __kvm_memslots(kvm, 0)) {
		if (kvm_slot_has_sealed_memfd(slot) && slot->gmem.sealed->released)
			kvm_sealed_memfd_set_released(slot, NULL);
	}
}

/**
 * kvm_sealed_memfd_require_consent - have private pages freed only if the guest asks
 * @kvm: the VM, without any vCPU that has run, or memslots that will change
 *
 * On return all private pages are there to stay, with their content, whoever has
 * descriptors of the files: none is freed that the guest hasn't asked to be rid of, see
 * kvm_sealed_memfd_request(), and none is given content.  They may be allocated.  This
 * ends with the VM.
 *
 * Context: Process context, may sleep, slots_lock held, takes the memfds'
 *	invalidate_locks and mmu_lock.
 * Return: 0, -ENOMEM, or -EINTR if there's a fatal signal; then all is as it was.
 */
int kvm_sealed_memfd_require_consent(struct kvm *kvm)
{
	struct kvm_memory_slot *slot;
	unsigned long *released;
	int bkt, r;

	lockdep_assert_held(&kvm->slots_lock);

	kvm_for_each_memslot(slot, bkt, __kvm_memslots(kvm, 0)) {
		if (!kvm_slot_has_sealed_memfd(slot))
			continue;

		r = -ENOMEM;
		released = kvcalloc(BITS_TO_LONGS(slot->npages), sizeof(long),
				    GFP_KERNEL_ACCOUNT);
		if (released) {
			r = kvm_sealed_memfd_set_released(slot, released);
			if (r)
				kvfree(released);
		}
		if (r) {
			kvm_sealed_memfd_waive_consent(kvm);
			return r;
		}
	}
	return 0;
}

/*
 * Has the page been given up, so that what was read of it doesn't count, even if it isn't
 * freed yet?  The consent to that can't be withdrawn any more.
 */
static bool kvm_sealed_memfd_is_given_up(const struct kvm_memory_slot *slot, gfn_t gfn)
{
	/* Unless its change is seen here, it begins after the page was read. */
	smp_rmb();
	return slot->gmem.sealed->released && kvm_sealed_memfd_is_changing(slot, gfn, gfn + 1);
}

/**
 * kvm_sealed_memfd_read - read guest memory, private or shared
 * @slot: memslot with a sealed memfd
 * @gfn: page
 * @data: where to copy it to
 * @offset: where the data begin in the page
 * @len: number of bytes, not beyond the end of the page
 * @filter: which half is asked for, or KVM_EITHER_HALF
 *
 * Context: Process context, kvm->srcu held, may fault on the hva if the page is
 *	shared, otherwise does not sleep; unless @filter is one half, then it
 *	may sleep and takes mmu_lock.
 * Return: 0, -EFAULT, or -EACCES if the page is of the half not asked for.
 */
int kvm_sealed_memfd_read(const struct kvm_memory_slot *slot, gfn_t gfn,
			  void *data, int offset, int len,
			  enum kvm_gfn_range_filter filter)
{
	enum kvm_gfn_range_filter half;
	int r;

	if (filter == KVM_FILTER_PRIVATE && kvm_sealed_memfd_any_released(slot, gfn, 0)) {
		read_lock(&slot->gmem.sealed->kvm->mmu_lock);
		kvm_sealed_memfd_keep(slot, gfn);
		read_unlock(&slot->gmem.sealed->kvm->mmu_lock);
	}

	do {
		if (!kvm_sealed_memfd_accessible(slot))
			return -EFAULT;

		half = KVM_FILTER_PRIVATE;
		r = kvm_sealed_memfd_read_private(slot, gfn, data, offset, len);
		if (r == -ENOENT) {
			half = KVM_FILTER_SHARED;
			r = kvm_sealed_memfd_read_shared(slot, gfn, data, offset, len);
			if (r == -EAGAIN)
				continue;
		}

		if (filter & half && !kvm_sealed_memfd_is_given_up(slot, gfn))
			return r ? -EFAULT : 0;
	} while (filter == KVM_EITHER_HALF ||
		 filter & kvm_sealed_memfd_settled_half(slot, gfn));

	return -EACCES;
}

/**
 * kvm_sealed_memfd_read_atomic - read guest memory in atomic context
 * @slot: memslot with a sealed memfd
 * @gfn: page
 * @data: where to copy it to
 * @offset: where the data begin in the page
 * @len: number of bytes, not beyond the end of the page
 *
 * Context: Any but interrupt, kvm->srcu held.  Fails rather than fault.
 * Return: 0, or -EFAULT.
 */
int kvm_sealed_memfd_read_atomic(const struct kvm_memory_slot *slot, gfn_t gfn,
				 void *data, int offset, int len)
{
	int r;

	pagefault_disable();
	r = kvm_sealed_memfd_read(slot, gfn, data, offset, len, KVM_EITHER_HALF);
	pagefault_enable();
	return r;
}

static int kvm_sealed_memfd_init_access(struct kvm_sealed_memfd_access *access,
					const struct kvm_memory_slot *slot, gfn_t gfn,
					enum kvm_gfn_range_filter filter)
{
	pgoff_t index = kvm_sealed_memfd_index(slot, gfn);
	struct folio *folio;

	if (!kvm_sealed_memfd_accessible(slot))
		return -EFAULT;

	if (kvm_sealed_memfd_is_changing(slot, gfn, gfn + 1))
		return -EBUSY;

	if (!(filter & kvm_sealed_memfd_half(kvm_slot_page_is_private(slot, gfn))))
		return -EACCES;

	if (slot->flags & KVM_MEM_READONLY)
		return -EFAULT;

	folio = guest_memory_get_folio_nowait(slot->gmem.file, index);
	if (IS_ERR(folio) && folio != ERR_PTR(-ENOENT))
		return PTR_ERR(folio);

	if (!IS_ERR(folio))
		kvm_sealed_memfd_keep(slot, gfn);

	access->slot = slot;
	if (IS_ERR(folio)) {
		access->folio = NULL;
		access->kaddr = NULL;
		access->uaddr = kvm_sealed_memfd_uaddr(slot, gfn);
		pagefault_disable();
	} else {
		access->folio = folio;
		access->kaddr = kvm_sealed_memfd_kmap(slot, gfn, folio);
		access->uaddr = NULL;
	}
	return 0;
}

/**
 * kvm_sealed_memfd_begin_access - hold a page in its state, to write to it
 * @access: filled in
 * @slot: memslot with a sealed memfd
 * @gfn: page
 * @filter: which half is asked for, or KVM_EITHER_HALF
 *
 * What is written until kvm_sealed_memfd_end_access(), in atomic context, is
 * written to the half that is in force.  If writing to the shared one fails, try
 * again after kvm_sealed_memfd_fault_in().
 *
 * Context: Process context, kvm->srcu held, may sleep.  On success mmu_lock is
 *	held for read.
 * Return: 0, -EFAULT, or -EACCES if the page is of the half not asked for.
 */
int kvm_sealed_memfd_begin_access(struct kvm_sealed_memfd_access *access,
				  const struct kvm_memory_slot *slot, gfn_t gfn,
				  enum kvm_gfn_range_filter filter)
{
	struct kvm *kvm = slot->gmem.sealed->kvm;
	struct folio *folio;
	int r;

	might_sleep();

	for (;;) {
		read_lock(&kvm->mmu_lock);
		r = kvm_sealed_memfd_init_access(access, slot, gfn, filter);
		if (!r) {
			/* Not really, but until kvm_sealed_memfd_end_access(). */
			__release(&kvm->mmu_lock);
			return 0;
		}
		read_unlock(&kvm->mmu_lock);

		switch (r) {
		case -EBUSY:
			if (kvm_sealed_memfd_wait(slot, false))
				return -EFAULT;
			break;
		case -EAGAIN:
			/* This zeroes it, or next time will tell. */
			folio = guest_memory_get_folio(slot->gmem.file,
						       kvm_sealed_memfd_index(slot, gfn));
			if (!IS_ERR(folio))
				folio_put(folio);
			break;
		case -EACCES:
			return r;
		default:
			return -EFAULT;
		}
	}
}

/**
 * kvm_sealed_memfd_try_begin_access - hold a page in its state, or give up
 * @access: filled in
 * @slot: memslot with a sealed memfd
 * @gfn: page
 * @filter: which half is asked for, or KVM_EITHER_HALF
 *
 * The same as kvm_sealed_memfd_begin_access() without waiting for anything.
 *
 * Context: Any but interrupt, kvm->srcu held, other locks may be, too.  On
 *	success mmu_lock is held for read.
 * Return: 0, or a negative value if that isn't possible, or not now.
 */
int kvm_sealed_memfd_try_begin_access(struct kvm_sealed_memfd_access *access,
				      const struct kvm_memory_slot *slot, gfn_t gfn,
				      enum kvm_gfn_range_filter filter)
{
	struct kvm *kvm = slot->gmem.sealed->kvm;
	int r;

	/* Releasing a sleeping lock may mean to wake up its next owner. */
	if (IS_ENABLED(CONFIG_PREEMPT_RT) || !read_trylock(&kvm->mmu_lock))
		return -EBUSY;

	r = kvm_sealed_memfd_init_access(access, slot, gfn, filter);
	if (r)
		read_unlock(&kvm->mmu_lock);
	else
		__release(&kvm->mmu_lock);
	return r;
}

/**
 * kvm_sealed_memfd_end_access - let the state of a page change again
 * @access: as filled in by kvm_sealed_memfd_begin_access()
 *
 * Context: As left by kvm_sealed_memfd_begin_access(); mmu_lock is released.
 */
void kvm_sealed_memfd_end_access(struct kvm_sealed_memfd_access *access)
{
	struct kvm *kvm = access->slot->gmem.sealed->kvm;

	if (access->kaddr)
		kunmap_local(access->kaddr);
	else
		pagefault_enable();

	/* Not the last reference: as yet the file can't have dropped its own. */
	if (access->folio)
		folio_put(access->folio);

	__acquire(&kvm->mmu_lock);
	read_unlock(&kvm->mmu_lock);
}

/**
 * kvm_sealed_memfd_fault_in - make an access possible that failed
 * @access: after kvm_sealed_memfd_end_access()
 * @offset: where the data begin in the page
 * @len: number of bytes
 *
 * That may be undone before the next try, but not for ever: memory that can be
 * faulted in for writing isn't always such that the kernel can write to it, e.g.
 * shadow stacks.
 *
 * Context: Process context, may sleep.
 * Return: true if the access should be tried again.
 */
bool kvm_sealed_memfd_fault_in(struct kvm_sealed_memfd_access *access,
			       int offset, int len)
{
	cond_resched();

	return !access->kaddr && !fatal_signal_pending(current) &&
	       access->nr_faults++ < KVM_SEALED_MEMFD_MAX_FAULTS &&
	       !fault_in_safe_writeable(access->uaddr + offset, len);
}

/**
 * kvm_sealed_memfd_get - read from a page that is held in its state
 * @access: between begin and end
 * @data: where to copy it to
 * @offset: where the data begin in the page
 * @len: number of bytes, not beyond the end of the page
 *
 * Context: Any.
 * Return: 0, or -EFAULT.
 */
int kvm_sealed_memfd_get(const struct kvm_sealed_memfd_access *access,
			 void *data, int offset, int len)
{
	int r;

	if (!access->kaddr)
		return kvm_sealed_memfd_copy_from_user(data, access->uaddr + offset, len);

	r = kvm_arch_copy_mc(data, access->kaddr + offset, len);
	if (r)
		kvm_sealed_memfd_report_error(access->kaddr);
	return r;
}

/**
 * kvm_sealed_memfd_put - write to a page that is held in its state
 * @access: between begin and end
 * @data: what to write
 * @offset: where the data begin in the page
 * @len: number of bytes, not beyond the end of the page
 *
 * Context: Any.
 * Return: 0, or -EFAULT; never the latter if @access->kaddr is set.
 */
int kvm_sealed_memfd_put(const struct kvm_sealed_memfd_access *access,
			 const void *data, int offset, int len)
{
	if (!access->kaddr)
		return kvm_sealed_memfd_copy_to_user(access->uaddr + offset, data, len);

	kvm_sealed_memfd_copy_to_page(access->kaddr + offset, data, len);
	return 0;
}

/**
 * kvm_sealed_memfd_write - write guest memory, private or shared
 * @slot: memslot with a sealed memfd
 * @gfn: page
 * @data: what to write
 * @offset: where the data begin in the page
 * @len: number of bytes, not beyond the end of the page
 * @filter: which half is asked for, or KVM_EITHER_HALF
 *
 * Context: Process context, kvm->srcu held, may sleep, takes mmu_lock.
 * Return: 0, -EFAULT, or -EACCES if the page is of the half not asked for.
 */
int kvm_sealed_memfd_write(const struct kvm_memory_slot *slot, gfn_t gfn,
			   const void *data, int offset, int len,
			   enum kvm_gfn_range_filter filter)
{
	struct kvm_sealed_memfd_access access = {};
	int r;

	do {
		r = kvm_sealed_memfd_begin_access(&access, slot, gfn, filter);
		if (r)
			return r;
		r = kvm_sealed_memfd_put(&access, data, offset, len);
		kvm_sealed_memfd_end_access(&access);
	} while (r && kvm_sealed_memfd_fault_in(&access, offset, len));

	return r;
}

/**
 * kvm_sealed_memfd_map_copy - get a copy of a page to work on
 * @slot: memslot with a sealed memfd
 * @gfn: page
 * @map: filled in
 *
 * Context: Process context, kvm->srcu held until kvm_sealed_memfd_unmap_copy(),
 *	may sleep.
 * Return: 0, or -EINVAL if the page can't be read or is read-only.
 */
int kvm_sealed_memfd_map_copy(struct kvm_memory_slot *slot, gfn_t gfn,
			      struct kvm_host_map *map)
{
	void *copy;

	/*
	 * One to work on, and one to see what has changed.  Who leaves a nested
	 * guest can't do without.
	 */
	copy = kmalloc(2 * PAGE_SIZE, GFP_KERNEL_ACCOUNT | __GFP_NOFAIL);

	if (slot->flags & KVM_MEM_READONLY ||
	    kvm_sealed_memfd_read(slot, gfn, copy, 0, PAGE_SIZE, KVM_EITHER_HALF)) {
		kfree_sensitive(copy);
		return -EINVAL;
	}
	memcpy(copy + PAGE_SIZE, copy, PAGE_SIZE);

	map->page = KVM_UNMAPPED_PAGE;
	map->pfn = KVM_PFN_ERR_FAULT;
	map->hva = copy;
	map->gfn = gfn;
	map->slot = slot;
	return 0;
}

/*
 * Others may work on the same page: leave alone what has not changed.  And don't
 * have one part in the private half and one in the shared: write all at once.
 */
static int kvm_sealed_memfd_write_changes(const struct kvm_host_map *map)
{
	const void *new = map->hva, *old = map->hva + PAGE_SIZE;
	struct kvm_sealed_memfd_access access = {};
	int r, i;

	do {
		r = kvm_sealed_memfd_begin_access(&access, map->slot, map->gfn,
						  KVM_EITHER_HALF);
		if (r)
			return r;
		for (i = 0; i < PAGE_SIZE && !r; i += sizeof(u64)) {
			if (memcmp(new + i, old + i, sizeof(u64)))
				r = kvm_sealed_memfd_put(&access, new + i, i, sizeof(u64));
		}
		kvm_sealed_memfd_end_access(&access);
	} while (r && kvm_sealed_memfd_fault_in(&access, 0, PAGE_SIZE));

	return r;
}

/**
 * kvm_sealed_memfd_unmap_copy - be done with the copy of a page
 * @kvm: the VM
 * @map: as filled in by kvm_sealed_memfd_map_copy()
 * @dirty: whether to write changes back
 *
 * It's too late to fail: if changes can't be written back, because the page is
 * lost to a memory error or the shared half is unmapped, the VM is dead.
 *
 * Context: Process context, kvm->srcu held, may sleep, takes mmu_lock.
 */
void kvm_sealed_memfd_unmap_copy(struct kvm *kvm, struct kvm_host_map *map,
				 bool dirty)
{
	if (dirty && memcmp(map->hva, map->hva + PAGE_SIZE, PAGE_SIZE)) {
		if (kvm_sealed_memfd_write_changes(map))
			kvm_vm_dead(kvm);
		else
			mark_page_dirty_in_slot(kvm, map->slot, map->gfn);
	}

	kfree_sensitive(map->hva);
	map->hva = NULL;
	map->slot = NULL;
}

/**
 * kvm_sealed_memfd_prepare_replace - give a memslot a binding of its own
 * @old: memslot with a sealed memfd, has the first page of @new
 * @new: memslot that is about to replace @old, or part of it, not yet visible
 *
 * Until kvm_sealed_memfd_start_replace() the memfd knows nothing of it.
 *
 * Context: Process context, slots_lock held, not after
 *	kvm_sealed_memfd_require_consent().
 * Return: 0, or -ENOMEM.
 */
int kvm_sealed_memfd_prepare_replace(const struct kvm_memory_slot *old,
				     struct kvm_memory_slot *new)
{
	struct kvm_sealed_memfd *sealed;

	/* Two would have the same bitmap. */
	if (WARN_ON_ONCE(old->gmem.sealed->released))
		return -EIO;

	sealed = kmemdup(old->gmem.sealed, sizeof(*sealed), GFP_KERNEL_ACCOUNT);
	if (!sealed)
		return -ENOMEM;

	sealed->id = new->id;
	sealed->registered = false;
	/* A conversion that goes on now is the old one's. */
	sealed->change_start = 0;
	sealed->change_end = 0;
	sealed->slot = NULL;

	new->gmem = old->gmem;
	new->gmem.file = get_file(old->gmem.file);
	new->gmem.pgoff = kvm_sealed_memfd_index(old, new->base_gfn);
	new->gmem.sealed = sealed;
	return 0;
}

/**
 * kvm_sealed_memfd_can_merge - does one private half continue another one?
 * @slot: memslot with a sealed memfd
 * @next: memslot with a sealed memfd
 *
 * Context: Process context, slots_lock held.
 * Return: true if @next is bound to the pages of the same file that come after
 *	those of @slot.
 */
bool kvm_sealed_memfd_can_merge(const struct kvm_memory_slot *slot,
				const struct kvm_memory_slot *next)
{
	return file_inode(slot->gmem.file) == file_inode(next->gmem.file) &&
	       slot->gmem.pgoff + slot->npages == next->gmem.pgoff;
}

/**
 * kvm_sealed_memfd_start_replace - hold off conversions to replace memslots
 * @new: the new memslots, prepared and not yet visible
 * @nr_new: how many there are
 *
 * From here on until the memslots are swapped the file's events reach the old
 * ones, and from then on the new ones.
 *
 * Context: Process context, slots_lock held.  Returns with the invalidate_lock
 *	of the file held, unless it fails.
 * Return: 0, or -EINTR if there's a fatal signal.
 */
int kvm_sealed_memfd_start_replace(struct kvm_memory_slot **new, int nr_new)
{
	struct file *file = new[0]->gmem.file;
	int i;

	/* A conversion that goes on may be waiting for memory. */
	if (down_write_killable(&file->f_mapping->invalidate_lock))
		return -EINTR;

	for (i = 0; i < nr_new; i++) {
		struct kvm_sealed_memfd *sealed = new[i]->gmem.sealed;

		guest_memory_register_locked(file, new[i]->gmem.pgoff,
					     new[i]->npages, &sealed->notifier);
		sealed->registered = true;
	}

	return 0;
}

/**
 * kvm_sealed_memfd_finish_replace - let conversions go on with new memslots
 * @old: the memslots that were replaced
 * @nr_old: how many there are
 *
 * Must not wait for kvm->srcu in between, see above.
 *
 * Context: Process context, slots_lock held, and the invalidate_lock since
 *	kvm_sealed_memfd_start_replace().  Releases the latter.
 */
void kvm_sealed_memfd_finish_replace(struct kvm_memory_slot **old, int nr_old)
{
	struct file *file = old[0]->gmem.file;
	int i;

	for (i = 0; i < nr_old; i++) {
		struct kvm_sealed_memfd *sealed = old[i]->gmem.sealed;

		guest_memory_unregister_locked(file, &sealed->notifier);
		WRITE_ONCE(sealed->registered, false);
	}

	filemap_invalidate_unlock(file->f_mapping);
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
	int as_id, bkt, idx;

	/* Nothing was ever bound. */
	if (!kvm->sealed_memfd_owner)
		return;

	idx = srcu_read_lock(&kvm->srcu);
	kvm_arch_flush_shadow_all(kvm);
	srcu_read_unlock(&kvm->srcu, idx);

	for (as_id = 0; as_id < kvm_arch_nr_memslot_as_ids(kvm); as_id++) {
		kvm_for_each_memslot(slot, bkt, __kvm_memslots(kvm, as_id)) {
			if (kvm_slot_has_sealed_memfd(slot))
				kvm_sealed_memfd_unregister(slot);
		}
	}
}
