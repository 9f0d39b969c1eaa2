/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_GUEST_MEMORY_H
#define _LINUX_GUEST_MEMORY_H

#include <linux/fs.h>
#include <linux/interval_tree.h>
#include <linux/pagemap.h>

struct guest_memory_notifier;

/**
 * enum guest_memory_event - why a range of guest memory is changing
 * @GUEST_MEMORY_MAP: pages are about to be allocated, i.e. become private
 * @GUEST_MEMORY_UNMAP: pages are about to be freed, i.e. become shared
 * @GUEST_MEMORY_ERROR: pages are lost to a hardware memory error
 * @GUEST_MEMORY_FILL: pages are about to be allocated with a given content, which
 *	is like @GUEST_MEMORY_MAP but for who has to allow it
 * @GUEST_MEMORY_COLLAPSE: pages are about to be allocated, and those between them to
 *	be moved along with their content, so that all of them are in one folio.  None
 *	of the latter is ever found not to be allocated.
 */
enum guest_memory_event {
	GUEST_MEMORY_MAP,
	GUEST_MEMORY_UNMAP,
	GUEST_MEMORY_ERROR,
	GUEST_MEMORY_FILL,
	GUEST_MEMORY_COLLAPSE,
};

/**
 * struct guest_memory_ops - what a backing store answers to its user
 * @page_allocated: Is there a page at @index?  Must not sleep; the answer is
 *	only stable while the user holds off begin/end of an event.
 * @range_allocated: Is there any page in [@start, @end)?  Otherwise the same.
 * @range_has_hole: Is there any page missing in [@start, @end)?  Otherwise the same.
 * @page_order: What is the order of the folio that has the page at @index, 0 or
 *	PMD_ORDER?  0 if there is no page, or if one of the folio's is lost.
 *	Otherwise the same.
 * @get_folio: Get a reference on the folio at @index, zeroed if it was never
 *	used before.  May sleep.  Never allocates: -ENOENT if there is no page,
 *	-EHWPOISON if the page is lost.
 * @get_folio_nowait: The same without sleeping: -EAGAIN if the folio was never
 *	used before.
 */
struct guest_memory_ops {
	bool (*page_allocated)(struct inode *inode, pgoff_t index);
	bool (*range_allocated)(struct inode *inode, pgoff_t start, pgoff_t end);
	bool (*range_has_hole)(struct inode *inode, pgoff_t start, pgoff_t end);
	int (*page_order)(struct inode *inode, pgoff_t index);
	struct folio *(*get_folio)(struct inode *inode, pgoff_t index);
	struct folio *(*get_folio_nowait)(struct inode *inode, pgoff_t index);
};

/**
 * struct guest_memory_notifier_ops - what a user of guest memory is told
 * @allow: May pages [@start, @end) change, or a negative error?  Asked once about
 *	all that's to be changed, so that none of it is if the answer is no.
 * @prepare: A change is about to begin, and may be kept waiting.  Called for one
 *	of the notifiers concerned, before @begin is for any; not for
 *	GUEST_MEMORY_ERROR.
 * @begin: Pages [@start, @end) are about to change.  On return nothing may
 *	use them, nor what takes their place while they are not allocated, and
 *	nothing may begin to until @end is called.  Or, if by now they may not
 *	change, a negative error, and all is as it was; not for
 *	GUEST_MEMORY_ERROR.
 * @end: The change is done, or has failed.
 *
 * The range is within the registered one.  Every begin that succeeds is followed by
 * an end with the same arguments.  All are called with the invalidate_lock of the
 * mapping held, exclusively but for @allow, and may sleep, except for
 * GUEST_MEMORY_ERROR, which is delivered in atomic context.
 */
struct guest_memory_notifier_ops {
	int (*allow)(struct guest_memory_notifier *notifier,
		     enum guest_memory_event event, pgoff_t start, pgoff_t end);
	void (*prepare)(struct guest_memory_notifier *notifier);
	int (*begin)(struct guest_memory_notifier *notifier,
		     enum guest_memory_event event, pgoff_t start, pgoff_t end);
	void (*end)(struct guest_memory_notifier *notifier,
		    enum guest_memory_event event, pgoff_t start, pgoff_t end);
};

/**
 * struct guest_memory_notifier - one range of guest memory and its user
 * @ops: the user's callbacks
 * @owner: who uses the memory: any nonzero number that is never reused
 * @space: ranges within one space of one owner must not overlap
 *
 * Embedded by the user, who fills in the above before registering.
 */
struct guest_memory_notifier {
	const struct guest_memory_notifier_ops *ops;
	u64 owner;
	unsigned int space;
	/* private: */
	struct interval_tree_node node;
};

#ifdef CONFIG_GUEST_MEMORY
static inline bool mapping_guest_memory(const struct address_space *mapping)
{
	/* Pairs with guest_memory_publish(). */
	return test_bit_acquire(AS_GUEST_MEMORY, &mapping->flags);
}

/* The backing store's side. */
int guest_memory_init(struct address_space *mapping,
		      const struct guest_memory_ops *ops);
void guest_memory_publish(struct address_space *mapping);
void guest_memory_destroy(struct address_space *mapping);
int guest_memory_allow(struct address_space *mapping,
		       enum guest_memory_event event, pgoff_t start, pgoff_t end);
int guest_memory_begin(struct address_space *mapping,
		       enum guest_memory_event event, pgoff_t start, pgoff_t end);
void guest_memory_end(struct address_space *mapping,
		      enum guest_memory_event event, pgoff_t start, pgoff_t end);
void guest_memory_error(struct address_space *mapping, pgoff_t start, pgoff_t end);

/* The user's side. */

/* A guest reads and writes, so who hands it the file must be able to. */
static inline bool guest_memory_file_usable(const struct file *file)
{
	return !(~file->f_mode & (FMODE_READ | FMODE_WRITE));
}

int guest_memory_register(struct file *file, pgoff_t start, pgoff_t nr_pages,
			  struct guest_memory_notifier *notifier);
void guest_memory_unregister(struct file *file,
			     struct guest_memory_notifier *notifier);
void guest_memory_register_locked(struct file *file, pgoff_t start,
				  pgoff_t nr_pages,
				  struct guest_memory_notifier *notifier);
void guest_memory_unregister_locked(struct file *file,
				    struct guest_memory_notifier *notifier);
bool guest_memory_page_allocated(struct file *file, pgoff_t index);
bool guest_memory_range_allocated(struct file *file, pgoff_t start, pgoff_t end);
bool guest_memory_range_has_hole(struct file *file, pgoff_t start, pgoff_t end);
int guest_memory_page_order(struct file *file, pgoff_t index);
struct folio *guest_memory_get_folio(struct file *file, pgoff_t index);
struct folio *guest_memory_get_folio_nowait(struct file *file, pgoff_t index);

/**
 * guest_memory_folio_valid - was what has been read from a page its content?
 * @file: file that the folio was found in
 * @folio: folio that a reference is held on
 *
 * Context: Any.
 * Return: false if the page is no longer in the file, and may have been zeroed.
 */
static inline bool guest_memory_folio_valid(const struct file *file,
					    const struct folio *folio)
{
	/* Pairs with the store's write barrier between removing and zeroing. */
	smp_rmb();
	return READ_ONCE(folio->mapping) == file->f_mapping;
}

int guest_memory_wait(struct file *file, bool interruptible);
#else
static inline bool mapping_guest_memory(const struct address_space *mapping)
{
	return false;
}

static inline int guest_memory_init(struct address_space *mapping,
				    const struct guest_memory_ops *ops)
{
	return -EOPNOTSUPP;
}

static inline void guest_memory_publish(struct address_space *mapping)
{
}

static inline void guest_memory_destroy(struct address_space *mapping)
{
}

static inline int guest_memory_allow(struct address_space *mapping,
				     enum guest_memory_event event,
				     pgoff_t start, pgoff_t end)
{
	return 0;
}

static inline int guest_memory_begin(struct address_space *mapping,
				     enum guest_memory_event event,
				     pgoff_t start, pgoff_t end)
{
	return 0;
}

static inline void guest_memory_end(struct address_space *mapping,
				    enum guest_memory_event event,
				    pgoff_t start, pgoff_t end)
{
}

static inline void guest_memory_error(struct address_space *mapping,
				      pgoff_t start, pgoff_t end)
{
}
#endif /* CONFIG_GUEST_MEMORY */

#endif /* _LINUX_GUEST_MEMORY_H */
