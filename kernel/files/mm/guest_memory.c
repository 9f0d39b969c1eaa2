// SPDX-License-Identifier: GPL-2.0
/*
 * Guest memory: what lets a file hold memory that only a guest may access.
 *
 * A backing store (e.g. a sealed memfd) holds the pages, a user (e.g. KVM) maps
 * them into a guest.  The two meet here and know nothing else of each other:
 * the store tells the user when pages come and go, the user asks the store
 * whether a page is allocated and for the page.
 *
 * A change of the page cache is bracketed by begin and end, under the mapping's
 * invalidate_lock:
 *
 *	filemap_invalidate_lock()
 *	guest_memory_begin()		user agrees, blocks new mappings, zaps, flushes
 *	... allocate or free pages ...
 *	guest_memory_end()		user may map what is there now
 *	filemap_invalidate_unlock()
 *
 * Lock order:
 *
 *	user's locks around register and unregister (KVM: slots_lock)
 *	  mapping->invalidate_lock	keeps the registrations stable from begin
 *					to end
 *	    folio lock
 *	      guest_memory->lock	the same for GUEST_MEMORY_ERROR, which is
 *					reported with the folio locked, hence
 *					cannot take the invalidate_lock
 *	        user's locks in the callbacks (KVM: mn_invalidate_lock, mmu_lock)
 *	          i_pages lock		in the store's answers
 *
 * Registering and unregistering take both; either is enough to look.
 *
 * References: struct guest_memory lives as long as the inode.  A user holds a
 * reference on the file from register to unregister; the store holds none on
 * the user: once unregister has returned no callback runs or will run.
 */
#include <linux/fs.h>
#include <linux/guest_memory.h>
#include <linux/interval_tree.h>
#include <linux/rwsem.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

struct guest_memory {
	const struct guest_memory_ops *ops;
	/* Protects notifiers together with the mapping's invalidate_lock. */
	spinlock_t lock;
	struct rb_root_cached notifiers;
	/* Last user; keeps the pages it left from the next one. */
	u64 owner;
};

static struct guest_memory *mapping_to_guest_memory(struct address_space *mapping)
{
	return mapping->i_private_data;
}

/* First of the notifiers that have pages of [start, end), then the next ones. */
static struct guest_memory_notifier *next_notifier(struct guest_memory *guest,
						   struct guest_memory_notifier *prev,
						   pgoff_t start, pgoff_t end)
{
	struct interval_tree_node *node;

	if (prev)
		node = interval_tree_iter_next(&prev->node, start, end - 1);
	else
		node = interval_tree_iter_first(&guest->notifiers, start, end - 1);

	return node ? container_of(node, struct guest_memory_notifier, node) : NULL;
}

/**
 * guest_memory_init - prepare a mapping to hold guest memory
 * @mapping: page cache of the backing store's inode
 * @ops: the backing store's answers
 *
 * To be followed by guest_memory_publish(), or guest_memory_destroy().
 *
 * Context: Process context, may sleep.  The caller serializes against itself.
 * Return: 0, or -ENOMEM.
 */
int guest_memory_init(struct address_space *mapping,
		      const struct guest_memory_ops *ops)
{
	struct guest_memory *guest;

	guest = kzalloc(sizeof(*guest), GFP_KERNEL_ACCOUNT);
	if (!guest)
		return -ENOMEM;

	guest->ops = ops;
	spin_lock_init(&guest->lock);
	guest->notifiers = RB_ROOT_CACHED;
	mapping->i_private_data = guest;
	return 0;
}

/**
 * guest_memory_publish - let a mapping hold guest memory
 * @mapping: page cache that guest_memory_init() was called for
 *
 * From here on, until the inode is evicted, mapping_guest_memory() is true, for
 * those without a lock, too.  Whatever else the backing store does to the
 * mapping must be done by now.
 *
 * Context: Any.  The caller guarantees that no page or mapping exists.
 */
void guest_memory_publish(struct address_space *mapping)
{
	/* Whoever sees the flag must see all that was done before. */
	smp_mb__before_atomic();
	set_bit(AS_GUEST_MEMORY, &mapping->flags);
}

/**
 * guest_memory_destroy - free what guest_memory_init() allocated
 * @mapping: page cache that it was called for, not published or of an inode that
 *	is being evicted
 *
 * Context: Any.  No user can be left, for each holds a file of the inode.
 */
void guest_memory_destroy(struct address_space *mapping)
{
	struct guest_memory *guest = mapping_to_guest_memory(mapping);

	WARN_ON_ONCE(!RB_EMPTY_ROOT(&guest->notifiers.rb_root));
	mapping->i_private_data = NULL;
	clear_bit(AS_GUEST_MEMORY, &mapping->flags);
	kfree(guest);
}

/* End for the notifiers before @last, or for all of them if that's NULL. */
static void __guest_memory_end(struct guest_memory *guest,
			       struct guest_memory_notifier *last,
			       enum guest_memory_event event,
			       pgoff_t start, pgoff_t end)
{
	struct guest_memory_notifier *notifier = NULL;

	while ((notifier = next_notifier(guest, notifier, start, end)) != last)
		notifier->ops->end(notifier, event,
				   max(start, notifier->node.start),
				   min(end, notifier->node.last + 1));
}

static int __guest_memory_begin(struct guest_memory *guest,
				struct guest_memory_notifier *first,
				enum guest_memory_event event,
				pgoff_t start, pgoff_t end)
{
	struct guest_memory_notifier *notifier;
	int ret;

	for (notifier = first; notifier;
	     notifier = next_notifier(guest, notifier, start, end)) {
		ret = notifier->ops->begin(notifier, event,
					   max(start, notifier->node.start),
					   min(end, notifier->node.last + 1));
		if (ret) {
			__guest_memory_end(guest, notifier, event, start, end);
			return ret;
		}
	}
	return 0;
}

/**
 * guest_memory_allow - may pages change?
 * @mapping: page cache that holds guest memory
 * @event: what is about to happen, not GUEST_MEMORY_ERROR
 * @start: first page
 * @end: page after the last one
 *
 * To ask about all of a long range, before a part of it is changed.  That may still
 * fail: it's guest_memory_begin() that has the last word.
 *
 * Context: Process context, may sleep, takes the invalidate_lock.
 * Return: 0, the error that a user has refused it with, or -EINTR if there's a fatal
 *	signal.
 */
int guest_memory_allow(struct address_space *mapping,
		       enum guest_memory_event event, pgoff_t start, pgoff_t end)
{
	struct guest_memory *guest = mapping_to_guest_memory(mapping);
	struct guest_memory_notifier *notifier = NULL;
	int ret;

	if (start >= end)
		return 0;
	/* A change that goes on may be waiting for memory. */
	if (down_read_killable(&mapping->invalidate_lock))
		return -EINTR;

	ret = 0;
	while (!ret && (notifier = next_notifier(guest, notifier, start, end)))
		ret = notifier->ops->allow(notifier, event,
					   max(start, notifier->node.start),
					   min(end, notifier->node.last + 1));
	filemap_invalidate_unlock_shared(mapping);
	return ret;
}

/**
 * guest_memory_begin - tell the users that pages are about to change
 * @mapping: page cache that holds guest memory
 * @event: what is about to happen
 * @start: first page
 * @end: page after the last one
 *
 * Context: Process context, may sleep.  invalidate_lock held exclusively, and
 *	kept until after guest_memory_end().
 * Return: 0, or the error that a user has refused it with.  Then nothing has begun.
 */
int guest_memory_begin(struct address_space *mapping,
		       enum guest_memory_event event, pgoff_t start, pgoff_t end)
{
	struct guest_memory *guest = mapping_to_guest_memory(mapping);
	struct guest_memory_notifier *first;

	lockdep_assert_held_write(&mapping->invalidate_lock);

	first = next_notifier(guest, NULL, start, end);
	/* They have one owner, so any of them will do. */
	if (first)
		first->ops->prepare(first);
	return __guest_memory_begin(guest, first, event, start, end);
}

/**
 * guest_memory_end - tell the users that pages have changed
 * @mapping: page cache that holds guest memory
 * @event: what has happened
 * @start: first page, as given to guest_memory_begin()
 * @end: page after the last one, as given to guest_memory_begin()
 *
 * To be called on failure, too.
 *
 * Context: Process context, may sleep.  invalidate_lock held exclusively since
 *	before guest_memory_begin().
 */
void guest_memory_end(struct address_space *mapping,
		      enum guest_memory_event event, pgoff_t start, pgoff_t end)
{
	lockdep_assert_held_write(&mapping->invalidate_lock);

	__guest_memory_end(mapping_to_guest_memory(mapping), NULL, event, start, end);
}

/**
 * guest_memory_error - tell the users that pages are lost to a memory error
 * @mapping: page cache that holds guest memory
 * @start: first page
 * @end: page after the last one
 *
 * The pages stay allocated and poisoned until they are freed; the store's
 * get_folio must already refuse them.
 *
 * Context: Any but interrupt, the folio may be locked.
 */
void guest_memory_error(struct address_space *mapping, pgoff_t start, pgoff_t end)
{
	struct guest_memory *guest = mapping_to_guest_memory(mapping);

	spin_lock(&guest->lock);
	/* Nobody is asked for consent. */
	WARN_ON_ONCE(__guest_memory_begin(guest, next_notifier(guest, NULL, start, end),
					  GUEST_MEMORY_ERROR, start, end));
	__guest_memory_end(guest, NULL, GUEST_MEMORY_ERROR, start, end);
	spin_unlock(&guest->lock);
}

static int __guest_memory_register(struct address_space *mapping,
				   struct guest_memory_notifier *notifier)
{
	struct guest_memory *guest = mapping_to_guest_memory(mapping);
	struct guest_memory_notifier *other = NULL;

	if (guest->owner && guest->owner != notifier->owner &&
	    (!RB_EMPTY_ROOT(&guest->notifiers.rb_root) ||
	     guest->ops->range_allocated(mapping->host, 0, ULONG_MAX)))
		return -EBUSY;

	while ((other = next_notifier(guest, other, notifier->node.start,
				      notifier->node.last + 1))) {
		if (other->space == notifier->space)
			return -EINVAL;
	}

	guest->owner = notifier->owner;
	spin_lock(&guest->lock);
	interval_tree_insert(&notifier->node, &guest->notifiers);
	spin_unlock(&guest->lock);
	return 0;
}

/**
 * guest_memory_register - begin to use a range of guest memory
 * @file: file that holds the memory; the caller keeps a reference on it until
 *	guest_memory_unregister() has returned
 * @start: first page
 * @nr_pages: number of pages, not 0
 * @notifier: the user's notifier
 *
 * A file has one owner at a time: a different one is refused while ranges are
 * registered, and also later while the file holds any page, so that it cannot
 * come upon what its predecessor left.  Pages allocated before the first
 * registration belong to whoever registers first.
 *
 * Context: Process context, may sleep, takes the invalidate_lock.  Callbacks
 *	may run before this returns.
 * Return: 0, -EINVAL if @file does not hold guest memory, the range goes past
 *	its end or overlaps another one of the same space, -EBADF if @file is not
 *	open for reading and writing, -EBUSY if another owner uses the file or has
 *	left pages in it, -EINTR if there's a fatal signal.
 */
int guest_memory_register(struct file *file, pgoff_t start, pgoff_t nr_pages,
			  struct guest_memory_notifier *notifier)
{
	struct address_space *mapping = file->f_mapping;
	pgoff_t size = i_size_read(mapping->host) >> PAGE_SHIFT;
	int ret;

	if (!mapping_guest_memory(mapping))
		return -EINVAL;
	if (!guest_memory_file_usable(file))
		return -EBADF;
	if (start > size || nr_pages > size - start)
		return -EINVAL;

	notifier->node.start = start;
	notifier->node.last = start + nr_pages - 1;

	/* A change that goes on may be waiting for memory. */
	if (down_write_killable(&mapping->invalidate_lock))
		return -EINTR;
	ret = __guest_memory_register(mapping, notifier);
	filemap_invalidate_unlock(mapping);
	return ret;
}
EXPORT_SYMBOL_GPL(guest_memory_register);

/**
 * guest_memory_register_locked - register in place of others
 * @file: file that the caller has registered with
 * @start: first page
 * @nr_pages: number of pages, not 0
 * @notifier: the user's notifier
 *
 * For users who divide or join ranges: what they are about to register is
 * registered already, for the same owner and space, and they unregister that
 * before they release the invalidate_lock.  Then no event is missed, while a
 * GUEST_MEMORY_ERROR may be reported to both, whichever is the one in use.
 *
 * Context: Process context, invalidate_lock held exclusively.
 */
void guest_memory_register_locked(struct file *file, pgoff_t start,
				  pgoff_t nr_pages,
				  struct guest_memory_notifier *notifier)
{
	struct address_space *mapping = file->f_mapping;
	struct guest_memory *guest = mapping_to_guest_memory(mapping);

	lockdep_assert_held_write(&mapping->invalidate_lock);

	notifier->node.start = start;
	notifier->node.last = start + nr_pages - 1;

	spin_lock(&guest->lock);
	interval_tree_insert(&notifier->node, &guest->notifiers);
	spin_unlock(&guest->lock);
}
EXPORT_SYMBOL_GPL(guest_memory_register_locked);

/**
 * guest_memory_unregister_locked - no longer use a range of guest memory
 * @file: file given to guest_memory_register()
 * @notifier: the registered notifier
 *
 * Context: Process context, invalidate_lock held exclusively.
 */
void guest_memory_unregister_locked(struct file *file,
				    struct guest_memory_notifier *notifier)
{
	struct address_space *mapping = file->f_mapping;
	struct guest_memory *guest = mapping_to_guest_memory(mapping);

	lockdep_assert_held_write(&mapping->invalidate_lock);

	spin_lock(&guest->lock);
	interval_tree_remove(&notifier->node, &guest->notifiers);
	spin_unlock(&guest->lock);
}
EXPORT_SYMBOL_GPL(guest_memory_unregister_locked);

/**
 * guest_memory_unregister - no longer use a range of guest memory
 * @file: file given to guest_memory_register()
 * @notifier: the registered notifier
 *
 * The caller must have dropped all uses of the pages: they may be freed
 * without further notice.
 *
 * Context: Process context, may sleep, takes the invalidate_lock.
 */
void guest_memory_unregister(struct file *file,
			     struct guest_memory_notifier *notifier)
{
	struct address_space *mapping = file->f_mapping;

	filemap_invalidate_lock(mapping);
	guest_memory_unregister_locked(file, notifier);
	filemap_invalidate_unlock(mapping);
}
EXPORT_SYMBOL_GPL(guest_memory_unregister);

/**
 * guest_memory_page_allocated - is a page of guest memory allocated?
 * @file: file that the caller has registered with
 * @index: page
 *
 * Context: Any.
 * Return: true if the page is allocated, i.e. private.
 */
bool guest_memory_page_allocated(struct file *file, pgoff_t index)
{
	struct address_space *mapping = file->f_mapping;

	return mapping_to_guest_memory(mapping)->ops->page_allocated(mapping->host, index);
}
EXPORT_SYMBOL_GPL(guest_memory_page_allocated);

/**
 * guest_memory_range_allocated - is any page of guest memory allocated?
 * @file: file that the caller has registered with
 * @start: first page
 * @end: page after the last one
 *
 * Context: Any.
 * Return: true if a page of the range is allocated, i.e. private.
 */
bool guest_memory_range_allocated(struct file *file, pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = file->f_mapping;

	return mapping_to_guest_memory(mapping)->ops->range_allocated(mapping->host,
								      start, end);
}
EXPORT_SYMBOL_GPL(guest_memory_range_allocated);

/**
 * guest_memory_range_has_hole - is any page of guest memory not allocated?
 * @file: file that the caller has registered with
 * @start: first page
 * @end: page after the last one
 *
 * Context: Any but interrupt.
 * Return: true if a page of the range is not allocated, i.e. shared.
 */
bool guest_memory_range_has_hole(struct file *file, pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = file->f_mapping;

	return mapping_to_guest_memory(mapping)->ops->range_has_hole(mapping->host,
								     start, end);
}
EXPORT_SYMBOL_GPL(guest_memory_range_has_hole);

/**
 * guest_memory_page_order - how much guest memory around a page is in one piece?
 * @file: file that the caller has registered with
 * @index: page
 *
 * That may be split at any time, e.g. because of a memory error.  But its pages stay
 * where they are until begin is called for them.
 *
 * Context: Any but interrupt.
 * Return: Order of the folio that has the page, 0 or PMD_ORDER; 0 also if there is
 *	no page, or if one of the folio's is lost.
 */
int guest_memory_page_order(struct file *file, pgoff_t index)
{
	struct address_space *mapping = file->f_mapping;

	return mapping_to_guest_memory(mapping)->ops->page_order(mapping->host, index);
}
EXPORT_SYMBOL_GPL(guest_memory_page_order);

/**
 * guest_memory_get_folio - get a page of guest memory
 * @file: file that the caller has registered with
 * @index: page
 *
 * Context: Process context, may sleep, takes the folio lock.
 * Return: The folio with its reference count raised, unlocked and up to date;
 *	ERR_PTR(-ENOENT) if the page is not allocated, ERR_PTR(-EHWPOISON) if it
 *	is lost.
 */
struct folio *guest_memory_get_folio(struct file *file, pgoff_t index)
{
	struct address_space *mapping = file->f_mapping;

	return mapping_to_guest_memory(mapping)->ops->get_folio(mapping->host, index);
}
EXPORT_SYMBOL_GPL(guest_memory_get_folio);

/**
 * guest_memory_get_folio_nowait - get a page of guest memory without sleeping
 * @file: file that the caller has registered with
 * @index: page
 *
 * Unless the caller holds off changes, the page may be taken out of the file, or
 * replaced by a copy, at any time, and is zeroed then.  Its memory is not freed
 * before the reference is dropped.  What was read counts if
 * guest_memory_folio_valid() afterwards.
 *
 * Context: Any but interrupt.
 * Return: The folio with its reference count raised; ERR_PTR(-ENOENT) if the
 *	page is not allocated, ERR_PTR(-EHWPOISON) if it is lost, ERR_PTR(-EAGAIN)
 *	if it was never used, i.e. its content is zero but has to be made so by
 *	guest_memory_get_folio().
 */
struct folio *guest_memory_get_folio_nowait(struct file *file, pgoff_t index)
{
	struct address_space *mapping = file->f_mapping;

	return mapping_to_guest_memory(mapping)->ops->get_folio_nowait(mapping->host,
								       index);
}
EXPORT_SYMBOL_GPL(guest_memory_get_folio_nowait);

/**
 * guest_memory_wait - wait for the change in progress, if any, to end
 * @file: file that the caller has registered with
 * @interruptible: give up on any signal, not only on a fatal one
 *
 * For users who have nothing better to do between begin and end than to try
 * again.  The change may be waiting for memory, even for what the user's exit is
 * going to free.
 *
 * Context: Process context, may sleep, takes the invalidate_lock.
 * Return: 0, or -EINTR if there's a signal.
 */
int guest_memory_wait(struct file *file, bool interruptible)
{
	struct rw_semaphore *lock = &file->f_mapping->invalidate_lock;
	int ret;

	ret = interruptible ? down_read_interruptible(lock) : down_read_killable(lock);
	if (ret)
		return ret;

	up_read(lock);
	return 0;
}
EXPORT_SYMBOL_GPL(guest_memory_wait);
