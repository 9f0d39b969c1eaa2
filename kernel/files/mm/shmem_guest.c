// SPDX-License-Identifier: GPL-2.0
/*
 * shmem as a backing store of guest memory: memfds sealed with F_SEAL_GUEST.
 *
 * Host userspace may allocate and free the pages of a sealed memfd, give them
 * their initial content, and see which ones there are, but never reach their
 * content.  shmem_get_folio_gfp(), which every access goes through, refuses, and
 * shmem_add_to_page_cache() adds pages for what is done here and nothing else.
 *
 * Locks: guest_memory.c has the order.  Once it is done, sealing is for good and
 * so is the size, hence files with mapping_guest_memory() need no i_rwsem.
 *
 * What was private is zeroed as soon as it is no longer in the file, and before
 * it is freed.  Readers that hold nothing but a reference then see that it's gone,
 * see guest_memory_folio_valid().
 *
 * Huge pages: where the file's users ask for them, like those of other shmem files
 * do, a chunk that is allocated in one go is one folio.  So no page is ever allocated
 * that was not asked for, and folios are either of one page or a whole chunk.  Before
 * part of a chunk is freed its folio is split, which nobody needs to be told: all of
 * its pages stay where they are.  When what is missing of a chunk is allocated, and
 * the rest is asked for along with it, they are collapsed: that is copied into a new
 * folio, which replaces all of the old ones at once, so that nobody finds a hole.
 */
#include <linux/fs.h>
#include <linux/falloc.h>
#include <linux/highmem.h>
#include <linux/huge_mm.h>
#include <linux/iversion.h>
#include <linux/memcontrol.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/swap.h>
#include <linux/uio.h>
#include <linux/vmstat.h>

#include "internal.h"
#include "shmem_guest.h"

/*
 * Pages converted in one go: vCPUs that touch them wait meanwhile, and so do
 * other conversions and memslot updates.
 */
#define SHMEM_GUEST_CHUNK	512

/* Until there is a way to tell the guest's mappings, pages stay put. */
#define SHMEM_GUEST_GFP		GFP_HIGHUSER

/* Tries to free part of a folio that others have references on, a jiffy each */
#define SHMEM_GUEST_SPLIT_TRIES	100

/*
 * First page from @start on that is not allocated, @end if there is none.
 * XA_FREE_MARK leads to it, however many pages are in between.  That is
 * PAGECACHE_TAG_DIRTY, too, which shmem makes no use of.
 */
static pgoff_t shmem_guest_next_hole(struct address_space *mapping, pgoff_t start,
				     pgoff_t end)
{
	XA_STATE(xas, &mapping->i_pages, start);

	if (start >= end)
		return end;
	/* More often than not that's the first one, and it takes less to see. */
	if (!xa_load(&mapping->i_pages, start))
		return start;

	xas_lock_irq(&xas);
	xas_find_marked(&xas, end - 1, XA_FREE_MARK);
	xas_unlock_irq(&xas);
	return xas.xa_node == XAS_RESTART ? end : xas.xa_index;
}

/*
 * XA_FREE_MARK does not come back for all of the entry when a folio of more than
 * one page is removed, which had [@start, @end).
 */
static void shmem_guest_mark_holes(struct address_space *mapping, pgoff_t start,
				   pgoff_t end)
{
	XA_STATE(xas, &mapping->i_pages, start);

	xas_lock_irq(&xas);
	xas_load(&xas);
	/* What has no node of its own has the mark of one above it. */
	for (; xas_is_node(&xas) && start < end; start += 1UL << xas.xa_node->shift) {
		xas_advance(&xas, start);
		xas_set_mark(&xas, XA_FREE_MARK);
	}
	xas_unlock_irq(&xas);
}

/*
 * First page from @start on that is allocated, @end if there is none.  Without the lock
 * the pages of a chunk that is being collapsed could be missed.
 */
static pgoff_t shmem_guest_next_page(struct address_space *mapping, pgoff_t start,
				     pgoff_t end)
{
	XA_STATE(xas, &mapping->i_pages, start);
	bool found;

	if (start >= end)
		return end;

	xas_lock_irq(&xas);
	found = xas_find(&xas, end - 1);
	xas_unlock_irq(&xas);
	return found ? xas.xa_index : end;
}

static bool shmem_guest_page_allocated(struct inode *inode, pgoff_t index)
{
	return xa_load(&inode->i_mapping->i_pages, index);
}

static bool shmem_guest_range_allocated(struct inode *inode, pgoff_t start,
					pgoff_t end)
{
	return shmem_guest_next_page(inode->i_mapping, start, end) < end;
}

static bool shmem_guest_range_has_hole(struct inode *inode, pgoff_t start,
				       pgoff_t end)
{
	return shmem_guest_next_hole(inode->i_mapping, start, end) < end;
}

/*
 * memory_failure() does not say so of a folio that has a lost page if it wasn't in
 * the file at that time.
 */
static void shmem_guest_find_lost(struct folio *folio)
{
	long i;

	if (!folio_test_large(folio))
		return;

	for (i = 0; i < folio_nr_pages(folio); i++) {
		if (PageHWPoison(folio_page(folio, i)))
			folio_set_has_hwpoisoned(folio);
	}
}

/* Not for one that anybody can use */
static void shmem_guest_zero_folio(struct folio *folio)
{
	struct page *page;
	long i;

	for (i = 0; i < folio_nr_pages(folio); i++) {
		page = folio_page(folio, i);
		if (!PageHWPoison(page))
			clear_highpage(page);
	}
}

static bool shmem_guest_page_lost(struct folio *folio, pgoff_t index)
{
	return PageHWPoison(folio_file_page(folio, index));
}

static struct folio *shmem_guest_get_folio(struct inode *inode, pgoff_t index)
{
	struct folio *folio;

	folio = filemap_lock_folio(inode->i_mapping, index);
	if (IS_ERR(folio))
		return folio;

	if (shmem_guest_page_lost(folio, index)) {
		folio_unlock(folio);
		folio_put(folio);
		return ERR_PTR(-EHWPOISON);
	}

	/* Allocating does not clear pages: do it when one is used at last. */
	if (!folio_test_uptodate(folio)) {
		shmem_guest_find_lost(folio);
		shmem_guest_zero_folio(folio);
		flush_dcache_folio(folio);
		folio_mark_uptodate(folio);
	}

	folio_unlock(folio);
	return folio;
}

static struct folio *shmem_guest_get_folio_nowait(struct inode *inode, pgoff_t index)
{
	struct folio *folio;
	int ret;

	folio = filemap_get_folio(inode->i_mapping, index);
	if (IS_ERR(folio))
		return folio;

	if (shmem_guest_page_lost(folio, index))
		ret = -EHWPOISON;
	else if (!folio_test_uptodate(folio))
		ret = -EAGAIN;
	else
		return folio;

	folio_put(folio);
	return ERR_PTR(ret);
}

static int shmem_guest_page_order(struct inode *inode, pgoff_t index)
{
	struct folio *folio;
	int order = 0;

	folio = filemap_get_folio(inode->i_mapping, index);
	if (IS_ERR(folio))
		return 0;

	if (folio_test_large(folio) && !folio_test_has_hwpoisoned(folio))
		order = folio_order(folio);

	folio_put(folio);
	return order;
}

static const struct guest_memory_ops shmem_guest_ops = {
	.page_allocated		= shmem_guest_page_allocated,
	.range_allocated	= shmem_guest_range_allocated,
	.range_has_hole		= shmem_guest_range_has_hole,
	.page_order		= shmem_guest_page_order,
	.get_folio		= shmem_guest_get_folio,
	.get_folio_nowait	= shmem_guest_get_folio_nowait,
};

static void shmem_guest_free_folio(struct folio *folio)
{
	/* If not, it was never used. */
	if (folio_test_uptodate(folio) && !want_init_on_free()) {
		/* Pairs with guest_memory_folio_valid(). */
		smp_wmb();
		shmem_guest_zero_folio(folio);
	}

	/*
	 * Only lost pages of their own are kept from being used again, and it can no
	 * longer be split: keep all of it.
	 */
	if (folio_test_large(folio) && folio_test_has_hwpoisoned(folio))
		folio_get(folio);
}

static int shmem_guest_error_remove_folio(struct address_space *mapping,
					  struct folio *folio)
{
	guest_memory_error(mapping, folio->index, folio_next_index(folio));
	return 0;
}

/*
 * Those of shmem, but for what must not be: pages are neither written to swap nor
 * migrated nor, to give them content, prepared.
 */
const struct address_space_operations shmem_guest_aops = {
	.dirty_folio		= noop_dirty_folio,
	.free_folio		= shmem_guest_free_folio,
	.error_remove_folio	= shmem_guest_error_remove_folio,
};

/*
 * Unless there is any content, or any way left by which there could be some, make
 * the file one of a guest.  Mappings are linked, and pages are added, under the
 * locks held here: either that was before, then it shows, or it is too late.
 */
static int shmem_guest_convert_mapping(struct address_space *mapping)
{
	XA_STATE(xas, &mapping->i_pages, 0);
	struct xarray nodes;
	int ret = -EBUSY;

	xa_init(&nodes);

	i_mmap_lock_read(mapping);
	xas_lock_irq(&xas);

	if (!mapping_mapped(mapping) && !xas_find(&xas, ULONG_MAX)) {
		/* Nodes may be left all the same, but without marks. */
		swap(mapping->i_pages.xa_head, nodes.xa_head);
		mapping->i_pages.xa_flags |= XA_FLAGS_ALLOC;

		WRITE_ONCE(mapping->a_ops, &shmem_guest_aops);
		mapping_set_inaccessible(mapping);
		guest_memory_publish(mapping);
		ret = 0;
	}

	xas_unlock_irq(&xas);
	i_mmap_unlock_read(mapping);

	xa_destroy(&nodes);
	return ret;
}

/**
 * shmem_guest_seal - do what F_SEAL_GUEST implies
 * @inode: inode of a shmem memfd
 *
 * Mappings that can be shared are excluded like by F_SEAL_WRITE.  Private ones
 * that are being made meanwhile may come to be: without any access, for the
 * content is what shmem_get_folio_gfp() and shmem_map_pages() refuse.
 *
 * Context: Process context, may sleep.  i_rwsem held exclusively.
 * Return: 0, also if the seal is set already; -EINVAL if writing is sealed or
 *	the size is not a multiple of the page size, -EBUSY if the file is
 *	mapped or holds any page, -ENOMEM.
 */
int shmem_guest_seal(struct inode *inode)
{
	struct address_space *mapping = inode->i_mapping;
	unsigned int seals = SHMEM_I(inode)->seals;
	int ret;

	if (shmem_guest_sealed(inode))
		return 0;
	if (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) ||
	    !PAGE_ALIGNED(i_size_read(inode)))
		return -EINVAL;

	ret = guest_memory_init(mapping, &shmem_guest_ops);
	if (ret)
		return ret;

	ret = mapping_deny_writable(mapping);
	if (ret)
		goto destroy;

	ret = shmem_guest_convert_mapping(mapping);
	if (ret)
		goto allow_writable;

	return 0;

allow_writable:
	mapping_allow_writable(mapping);
destroy:
	guest_memory_destroy(mapping);
	return ret;
}

/**
 * shmem_guest_evict - undo what shmem_guest_seal() has done
 * @inode: inode that is being evicted, without pages
 *
 * Context: Process context.
 */
void shmem_guest_evict(struct inode *inode)
{
	struct address_space *mapping = inode->i_mapping;

	if (!shmem_guest_sealed(inode))
		return;

	/* The next inode in this memory starts with what is left here. */
	xa_destroy(&mapping->i_pages);
	mapping->i_pages.xa_flags &= ~XA_FLAGS_ALLOC;
	guest_memory_destroy(mapping);
}

/* What was for the guest, and is not needed after all */
static void shmem_guest_drop_folio(struct folio *folio)
{
	shmem_guest_find_lost(folio);
	shmem_guest_free_folio(folio);
	folio_put(folio);
}

static void shmem_guest_drop_folios(struct list_head *folios)
{
	struct folio *folio, *tmp;

	list_for_each_entry_safe(folio, tmp, folios, lru) {
		list_del(&folio->lru);
		shmem_guest_drop_folio(folio);
	}
}

/* Can and should [@start, @end) be a huge page? */
static bool shmem_guest_wants_huge(struct inode *inode, pgoff_t start, pgoff_t end)
{
	/* To split a folio takes one level of nodes. */
	return IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) &&
	       end - start == SHMEM_GUEST_CHUNK && end - start == HPAGE_PMD_NR &&
	       HPAGE_PMD_ORDER < 2 * XA_CHUNK_SHIFT &&
	       shmem_allowable_huge_orders(inode, NULL, start, 0, false);
}

/* A folio for pages of the guest, charged and not yet in the page cache */
static struct folio *shmem_guest_new_folio(struct inode *inode, pgoff_t index,
					   bool huge)
{
	gfp_t gfp = SHMEM_GUEST_GFP;
	struct folio *folio;
	int order = 0;

	if (fatal_signal_pending(current))
		return ERR_PTR(-EINTR);

	if (IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) && huge) {
		gfp = thp_gfp_mask(SHMEM_I(inode)->flags & VM_HUGEPAGE) & ~__GFP_MOVABLE;
		order = HPAGE_PMD_ORDER;
	}

	folio = shmem_alloc_folio(gfp, order, SHMEM_I(inode), index);
	if (!folio)
		goto fallback;

	if (mem_cgroup_charge(folio, NULL, gfp)) {
		folio_put(folio);
		goto fallback;
	}

	folio->index = index;
	return folio;

fallback:
	if (IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) && huge)
		count_vm_event(THP_FILE_FALLBACK);
	return ERR_PTR(-ENOMEM);
}

/*
 * Allocate @folios for what is missing in [start, end), the first page being so.
 * That may mean to wait for memory, or to be held up for having too much of it, and
 * neither must be when there are vCPUs and memslot updates that wait, too.
 */
static int shmem_guest_allocate(struct inode *inode, pgoff_t start, pgoff_t end,
				bool huge, struct list_head *folios)
{
	struct address_space *mapping = inode->i_mapping;
	pgoff_t next = start + 1;
	struct folio *folio;

	while (start < end) {
		folio = shmem_guest_new_folio(inode, start, huge);
		if (IS_ERR(folio) && huge) {
			huge = false;
			continue;
		}
		if (IS_ERR(folio))
			return PTR_ERR(folio);

		list_add_tail(&folio->lru, folios);
		start += folio_nr_pages(folio);
		if (start < next)
			continue;

		/* All that are missing in a row are looked up at once. */
		start = shmem_guest_next_hole(mapping, start, end);
		next = shmem_guest_next_page(mapping, start, end);
	}
	return 0;
}

/*
 * Add @folios to the page cache, with invalidate_lock held.  @nr is how many pages
 * there were added, also if it fails.
 */
static int shmem_guest_add(struct inode *inode, struct list_head *folios, int *nr)
{
	struct folio *folio, *added;
	bool huge;

	*nr = 0;
	while ((folio = list_first_entry_or_null(folios, struct folio, lru))) {
		if (fatal_signal_pending(current))
			return -EINTR;

		list_del(&folio->lru);
		folio_get(folio);
		added = shmem_add_new_folio(folio, SHMEM_GUEST_GFP, inode, folio->index,
					    NULL, true);
		if (IS_ERR(added)) {
			huge = folio_test_large(folio);
			/* It may have been in the file for a moment. */
			if (huge && added != ERR_PTR(-EEXIST))
				shmem_guest_mark_holes(inode->i_mapping, folio->index,
						       folio_next_index(folio));
			shmem_guest_drop_folio(folio);
			/* Leave alone what the guest has meanwhile, it may be lost, too. */
			if (!huge && added == ERR_PTR(-EEXIST))
				continue;
			return PTR_ERR(added);
		}

		/* A clean page could be dropped behind the guest's back. */
		folio_set_dirty(folio);
		if (folio_test_pmd_mappable(folio))
			count_vm_event(THP_FILE_ALLOC);
		/* Of what has no content yet that is found when it gets some. */
		if (folio_test_uptodate(folio))
			shmem_guest_find_lost(folio);
		*nr += folio_nr_pages(folio);
		folio_unlock(folio);
		folio_put(folio);
		folio_put(folio);
		cond_resched();
	}
	return 0;
}

/* A long range is converted chunk by chunk: where does that of @start end? */
static pgoff_t shmem_guest_chunk_end(pgoff_t start, pgoff_t end)
{
	return min(end, round_down(start, SHMEM_GUEST_CHUNK) + SHMEM_GUEST_CHUNK);
}

/*
 * Allocate what is missing in [start, end), the first page being so.  A failure
 * leaves the pages before it allocated, and the rest as they were.
 *
 * -EEXIST if there can't be a huge page, as part of it has been allocated meanwhile.
 */
static int shmem_guest_map(struct inode *inode, pgoff_t start, pgoff_t end, bool huge)
{
	struct address_space *mapping = inode->i_mapping;
	LIST_HEAD(folios);
	int ret, nr;

	ret = shmem_guest_allocate(inode, start, end, huge, &folios);
	if (ret)
		goto out;

	/* Whoever holds it may be waiting for memory. */
	if (down_write_killable(&mapping->invalidate_lock)) {
		ret = -EINTR;
		goto out;
	}

	ret = guest_memory_begin(mapping, GUEST_MEMORY_MAP, start, end);
	if (!ret) {
		ret = shmem_guest_add(inode, &folios, &nr);
		guest_memory_end(mapping, GUEST_MEMORY_MAP, start, end);
	}
	filemap_invalidate_unlock(mapping);
out:
	shmem_guest_drop_folios(&folios);
	return ret;
}

/*
 * Is anything missing in the chunk [start, end), and is what is there in good order?
 * With invalidate_lock held that stays so, but for memory errors.
 */
static bool shmem_guest_can_collapse(struct address_space *mapping, pgoff_t start,
				     pgoff_t end)
{
	XA_STATE(xas, &mapping->i_pages, start);
	pgoff_t missing = end - start;
	struct folio *folio;

	rcu_read_lock();
	xas_for_each(&xas, folio, end - 1) {
		if (xas_retry(&xas, folio))
			continue;
		if (folio_test_large(folio) || folio_test_hwpoison(folio)) {
			missing = 0;
			break;
		}
		missing--;
	}
	rcu_read_unlock();
	return missing;
}

/*
 * To collapse a chunk, between begin and end: copy into @new what is allocated of it.
 * The @nr folios that have that go to @olds, locked and with a reference each, also if
 * it fails.  Neither the guest nor anybody on its behalf writes to them meanwhile.
 */
static int shmem_guest_copy_pages(struct inode *inode, struct folio *new,
				  struct folio **olds, int *nr)
{
	struct folio *old;
	struct page *page;
	long i;

	/* Whatever there is by now is not for who gets it next. */
	__folio_mark_uptodate(new);

	for (i = 0; i < folio_nr_pages(new); i++) {
		page = folio_page(new, i);

		old = filemap_lock_folio(inode->i_mapping, new->index + i);
		if (!IS_ERR(old))
			olds[(*nr)++] = old;

		if (IS_ERR(old) || !folio_test_uptodate(old))
			clear_highpage(page);
		else if (folio_test_hwpoison(old) ||
			 copy_mc_highpage(page, folio_page(old, 0)))
			return -EHWPOISON;

		/* What is there so far is good. */
		if (PageHWPoison(page))
			return -EHWPOISON;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}

	flush_dcache_folio(new);
	return 0;
}

/* To collapse a chunk: replace @olds in the page cache by @new, all of them locked. */
static int shmem_guest_replace(struct inode *inode, struct folio *new,
			       struct folio **olds, int nr)
{
	struct address_space *mapping = inode->i_mapping;
	XA_STATE_ORDER(xas, &mapping->i_pages, new->index, folio_order(new));
	long nr_pages = folio_nr_pages(new), nr_holes = nr_pages - nr;
	int i;

	if (!shmem_charge(inode, nr_holes))
		return -ENOSPC;

	__folio_set_swapbacked(new);
	folio_set_dirty(new);
	folio_ref_add(new, nr_pages);
	new->mapping = mapping;

	do {
		xas_lock_irq(&xas);
		xas_store(&xas, new);
		if (xas_error(&xas))
			goto unlock;

		xas_clear_mark(&xas, XA_FREE_MARK);
		shmem_update_stats(new, nr_pages);
		for (i = 0; i < nr; i++) {
			olds[i]->mapping = NULL;
			shmem_update_stats(olds[i], -1);
		}
unlock:
		xas_unlock_irq(&xas);
	} while (xas_nomem(&xas, SHMEM_GUEST_GFP & GFP_RECLAIM_MASK));

	if (xas_error(&xas)) {
		new->mapping = NULL;
		folio_clear_dirty(new);
		folio_ref_sub(new, nr_pages);

		xa_lock_irq(&mapping->i_pages);
		mapping->nrpages -= nr_holes;
		xa_unlock_irq(&mapping->i_pages);
		shmem_uncharge(inode, nr_holes);
		return xas_error(&xas);
	}

	for (i = 0; i < nr; i++)
		folio_clear_dirty(olds[i]);

	if (folio_test_pmd_mappable(new))
		count_vm_event(THP_FILE_ALLOC);
	folio_add_lru(new);
	shmem_guest_find_lost(new);
	return 0;
}

/*
 * Allocate what is missing in the chunk [start, end), of which some is there, and make
 * all of it one folio.  A failure leaves all as it was.
 *
 * -EEXIST if nothing is missing any more, or a page is lost.
 */
static int shmem_guest_collapse(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = inode->i_mapping;
	struct folio **olds, *new;
	int i, nr = 0, ret;

	olds = kmalloc_array(end - start, sizeof(*olds), GFP_KERNEL);
	if (!olds)
		return -ENOMEM;

	new = shmem_guest_new_folio(inode, start, true);
	if (IS_ERR(new)) {
		kfree(olds);
		return PTR_ERR(new);
	}

	ret = -EINTR;
	if (down_write_killable(&mapping->invalidate_lock))
		goto out;

	ret = -EEXIST;
	if (!shmem_guest_can_collapse(mapping, start, end))
		goto unlock;

	ret = guest_memory_begin(mapping, GUEST_MEMORY_COLLAPSE, start, end);
	if (!ret) {
		__folio_set_locked(new);
		ret = shmem_guest_copy_pages(inode, new, olds, &nr) ?:
		      shmem_guest_replace(inode, new, olds, nr);
		for (i = 0; i < nr; i++)
			folio_unlock(olds[i]);
		folio_unlock(new);
		guest_memory_end(mapping, GUEST_MEMORY_COLLAPSE, start, end);
	}
unlock:
	filemap_invalidate_unlock(mapping);
out:
	for (i = 0; i < nr; i++) {
		if (!ret) {
			shmem_guest_free_folio(olds[i]);
			folio_put(olds[i]);
		}
		folio_put(olds[i]);
	}
	kfree(olds);

	if (ret)
		shmem_guest_drop_folio(new);
	else
		folio_put(new);
	return ret;
}

/*
 * Only with the lock held is what is allocated there to stay: it is taken out again
 * if it turns out that there is no room for it.
 */
static int shmem_guest_find_hole(struct address_space *mapping, pgoff_t *start,
				 pgoff_t end)
{
	if (down_read_killable(&mapping->invalidate_lock))
		return -EINTR;

	*start = shmem_guest_next_hole(mapping, *start, end);
	filemap_invalidate_unlock_shared(mapping);
	return 0;
}

/*
 * Allocate what is missing in the first chunk of [@start, end) of which any page is.
 * @start is then where to go on.
 */
static int shmem_guest_map_next(struct inode *inode, pgoff_t *start, pgoff_t end)
{
	struct address_space *mapping = inode->i_mapping;
	pgoff_t first = *start, chunk;
	bool huge, again;
	int ret;

	ret = shmem_guest_find_hole(mapping, &first, end);
	if (ret)
		return ret;
	if (first == end)
		goto done;

	end = shmem_guest_chunk_end(first, end);
	chunk = max(*start, round_down(first, SHMEM_GUEST_CHUNK));
	huge = shmem_guest_wants_huge(inode, chunk, end);
	if (huge && shmem_guest_range_allocated(inode, chunk, end)) {
		ret = shmem_guest_collapse(inode, chunk, end);
		again = ret && ret != -EINTR;
	} else {
		/* What was there up to the first hole may be gone. */
		ret = shmem_guest_map(inode, huge ? chunk : first, end, huge);
		again = huge && (ret == -EEXIST || ret == -ENOSPC);
	}
	/* What can't be had as a whole may be had page by page. */
	if (again) {
		ret = shmem_guest_find_hole(mapping, &first, end);
		if (!ret && first < end)
			ret = shmem_guest_map(inode, first, end, false);
	}
	if (ret)
		return ret;
done:
	*start = end;
	return 0;
}

/*
 * Before [start, end) is freed, which begins in a folio of many pages: is there any
 * of them that is to stay, or that is lost?  Only lost pages of their own are kept
 * from being used again.  Then make it into folios of one page each.
 *
 * -EAGAIN if anybody else has a reference: KVM does for as long as it takes to map or
 * to read a page.
 */
static int shmem_guest_prepare_unmap(struct address_space *mapping, pgoff_t start,
				     pgoff_t end)
{
	struct folio *folio = filemap_get_folio(mapping, start);
	int ret = 0;

	if (IS_ERR(folio))
		return PTR_ERR(folio);

	if (!folio_test_large(folio) ||
	    (folio_nr_pages(folio) == end - start && !folio_test_has_hwpoisoned(folio)))
		goto put;

	ret = -EINTR;
	if (folio_lock_killable(folio))
		goto put;

	ret = split_folio(folio);
	folio_unlock(folio);
put:
	folio_put(folio);
	return ret;
}

/* Free [start, end), with invalidate_lock held, if it is one folio. */
static bool shmem_guest_remove_folio(struct address_space *mapping, pgoff_t start,
				     pgoff_t end)
{
	struct folio *folio = filemap_lock_folio(mapping, start);
	bool removed;

	if (IS_ERR(folio))
		return false;

	removed = folio->index == start && folio_next_index(folio) == end;
	if (removed) {
		folio_clear_dirty(folio);
		filemap_remove_folio(folio);
	}
	folio_unlock(folio);

	/* It may be new, and others hold one until there are more to add to a list. */
	if (removed)
		lru_add_drain();
	folio_put(folio);
	return removed;
}

/*
 * Free what is allocated in [start, end), with invalidate_lock held.  It's within a
 * chunk, so if there's a folio of many pages that is all there is.
 */
static void shmem_guest_remove(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = inode->i_mapping;
	struct folio_batch fbatch;
	int i;

	/* What is a batch for many takes longer for one. */
	if (shmem_guest_remove_folio(mapping, start, end))
		goto done;

	folio_batch_init(&fbatch);
	/* With a reference on them they aren't split any more. */
	while (start < end && filemap_get_folios(mapping, &start, end - 1, &fbatch)) {
		for (i = 0; i < folio_batch_count(&fbatch); i++) {
			folio_lock(fbatch.folios[i]);
			folio_clear_dirty(fbatch.folios[i]);
		}
		delete_from_page_cache_batch(mapping, &fbatch);
		for (i = 0; i < folio_batch_count(&fbatch); i++)
			folio_unlock(fbatch.folios[i]);
		folio_batch_release(&fbatch);
		cond_resched();
	}
done:
	shmem_recalc_inode(inode, 0, 0);
}

/*
 * Free what is allocated in the first chunk of [@start, end) of which any page is.
 * @start is then where to go on.  A failure leaves all as it was, but for a huge page
 * that may be split.  -EAGAIN if part of it is in use.
 */
static int shmem_guest_unmap(struct inode *inode, pgoff_t *start, pgoff_t end)
{
	struct address_space *mapping = inode->i_mapping;
	pgoff_t first = *start;
	struct folio *folio;
	int ret = 0;
	bool huge;

	if (down_write_killable(&mapping->invalidate_lock))
		return -EINTR;

	folio = xa_find(&mapping->i_pages, &first, end - 1, XA_PRESENT);
	if (!folio)
		goto done;

	end = shmem_guest_chunk_end(first, end);
	if (folio_test_large(folio))
		ret = shmem_guest_prepare_unmap(mapping, first, end);
	if (ret)
		goto unlock;

	/* Then it goes as a whole. */
	huge = folio_test_large(folio);
	ret = guest_memory_begin(mapping, GUEST_MEMORY_UNMAP, first, end);
	if (ret)
		goto unlock;

	shmem_guest_remove(inode, first, end);
	if (huge)
		shmem_guest_mark_holes(mapping, first, end);
	guest_memory_end(mapping, GUEST_MEMORY_UNMAP, first, end);
done:
	*start = end;
unlock:
	filemap_invalidate_unlock(mapping);
	return ret;
}

static int shmem_guest_unmap_next(struct inode *inode, pgoff_t *start, pgoff_t end)
{
	int ret, tries = 0;

	for (;;) {
		ret = shmem_guest_unmap(inode, start, end);
		if (ret != -EAGAIN)
			return ret;
		if (++tries == SHMEM_GUEST_SPLIT_TRIES)
			return -EBUSY;
		schedule_timeout_killable(1);
		if (fatal_signal_pending(current))
			return -EINTR;
	}
}

/**
 * shmem_guest_fallocate - convert pages between shared and private
 * @file: file whose inode has F_SEAL_GUEST
 * @mode: 0 or FALLOC_FL_KEEP_SIZE to allocate, FALLOC_FL_PUNCH_HOLE |
 *	FALLOC_FL_KEEP_SIZE to free
 * @offset: first byte, page aligned
 * @len: number of bytes, page aligned
 *
 * Context: Process context, may sleep, takes the invalidate_lock.
 * Return: 0; -EINVAL if the range is not aligned or goes past the end of the file;
 *	-ENOMEM, -ENOSPC or -EINTR if only pages at the start of the range were
 *	converted, also -EBUSY when freeing part of a huge page that is in use; what
 *	the user of the memory refuses it with, usually before anything was converted.
 */
long shmem_guest_fallocate(struct file *file, int mode, loff_t offset, loff_t len)
{
	struct inode *inode = file_inode(file);
	bool punch = mode & FALLOC_FL_PUNCH_HOLE;
	pgoff_t start, end;
	int ret;

	if (!PAGE_ALIGNED(offset) || !PAGE_ALIGNED(len) ||
	    offset + len > i_size_read(inode))
		return -EINVAL;

	start = offset >> PAGE_SHIFT;
	end = (offset + len) >> PAGE_SHIFT;

	if (punch) {
		inode_set_mtime_to_ts(inode, inode_set_ctime_current(inode));
		inode_inc_iversion(inode);
	}

	/* One chunk is refused as a whole anyway. */
	if (shmem_guest_chunk_end(start, end) < end) {
		ret = guest_memory_allow(inode->i_mapping,
					 punch ? GUEST_MEMORY_UNMAP : GUEST_MEMORY_MAP,
					 start, end);
		if (ret)
			return ret;
	}

	/* What is done already, e.g. before a signal, is not worth a zap. */
	for (;;) {
		ret = punch ? shmem_guest_unmap_next(inode, &start, end) :
			      shmem_guest_map_next(inode, &start, end);
		if (ret || start == end)
			return ret;

		/* Whoever tries again and again gets on by a chunk each time. */
		if (signal_pending(current))
			return -EINTR;
		cond_resched();
	}
}

static int shmem_guest_fill_folio(struct folio *folio, struct iov_iter *from)
{
	size_t copied, done = 0;
	long i;

	for (i = 0; i < folio_nr_pages(folio); i++) {
		copied = copy_page_from_iter(folio_page(folio, i), 0, PAGE_SIZE, from);
		done += copied;
		if (copied < PAGE_SIZE) {
			iov_iter_revert(from, done);
			return -EFAULT;
		}
		cond_resched();
	}

	flush_dcache_folio(folio);
	return 0;
}

/*
 * Allocate folios for up to @nr pages and fill them from @from.  They are not in the
 * page cache yet, so the source may fault and sleep as it likes, and fail.  Returns
 * how many pages there are in @folios, or an error if there are none.
 */
static int shmem_guest_fill(struct inode *inode, struct iov_iter *from,
			    pgoff_t start, int nr, bool huge, struct list_head *folios)
{
	struct folio *folio;
	int ret, filled = 0;

	while (filled < nr) {
		folio = shmem_guest_new_folio(inode, start + filled, huge);
		ret = PTR_ERR_OR_ZERO(folio);
		if (!ret) {
			ret = shmem_guest_fill_folio(folio, from);
			/* Whatever there is by now is not for who gets it next. */
			__folio_mark_uptodate(folio);
			if (ret)
				shmem_guest_drop_folio(folio);
		}

		/* Less may be possible. */
		if (ret && huge) {
			huge = false;
			continue;
		}
		if (ret)
			return filled ?: ret;

		list_add_tail(&folio->lru, folios);
		filled += folio_nr_pages(folio);
	}
	return filled;
}

/*
 * Convert the pages of [start, next) with what @from has for them, if none up to
 * @end is allocated.  Returns how many pages at the start were converted, or an
 * error if none.
 */
static int shmem_guest_write_chunk(struct inode *inode, struct iov_iter *from,
				   pgoff_t start, pgoff_t next, pgoff_t end, bool huge)
{
	struct address_space *mapping = inode->i_mapping;
	LIST_HEAD(folios);
	int nr, added = 0, ret;

	nr = shmem_guest_fill(inode, from, start, next - start, huge, &folios);
	if (nr < 0)
		return nr;

	if (down_write_killable(&mapping->invalidate_lock)) {
		ret = -EINTR;
		goto out;
	}

	if (shmem_guest_range_allocated(inode, start, end)) {
		ret = -EEXIST;
		goto unlock;
	}

	ret = guest_memory_begin(mapping, GUEST_MEMORY_FILL, start, start + nr);
	if (!ret) {
		ret = shmem_guest_add(inode, &folios, &added);
		guest_memory_end(mapping, GUEST_MEMORY_FILL, start, start + nr);
	}

unlock:
	filemap_invalidate_unlock(mapping);
out:
	shmem_guest_drop_folios(&folios);
	iov_iter_revert(from, (size_t)(nr - added) << PAGE_SHIFT);
	return added ?: ret;
}

/**
 * shmem_guest_write - convert shared pages to private ones with given content
 * @iocb: where to write: a file whose inode has F_SEAL_GUEST, the position page
 *	aligned
 * @from: the content, a number of pages
 *
 * What is private already is never overwritten.  A page has all of its content
 * when it becomes private, and becomes private only if there is that.
 *
 * Context: Process context, may sleep, takes the invalidate_lock; i_rwsem held
 *	as for any write.  Page faults of the source happen without the former.
 * Return: Number of bytes, all of them if nothing fails; if nothing was written,
 *	-EINVAL if the range is not aligned or goes past the end of the file,
 *	-EEXIST if part of it is allocated, -EFAULT, -ENOMEM, -ENOSPC or -EINTR, or
 *	what the user of the memory refuses it with.
 */
ssize_t shmem_guest_write(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	size_t len = iov_iter_count(from);
	pgoff_t start, next, end;
	ssize_t written = 0;
	bool huge;
	int ret;

	if (!PAGE_ALIGNED(iocb->ki_pos) || !PAGE_ALIGNED(len) ||
	    iocb->ki_pos + len > i_size_read(inode))
		return -EINVAL;

	start = iocb->ki_pos >> PAGE_SHIFT;
	end = start + (len >> PAGE_SHIFT);

	ret = guest_memory_allow(inode->i_mapping, GUEST_MEMORY_FILL, start, end);
	if (ret)
		return ret;

	/* What stops a chunk half-way is an error when it goes on from there. */
	while (start < end) {
		next = min(end, round_down(start, SHMEM_GUEST_CHUNK) + SHMEM_GUEST_CHUNK);

		huge = shmem_guest_wants_huge(inode, start, next);
		ret = shmem_guest_write_chunk(inode, from, start, next, end, huge);
		if (huge && ret == -ENOSPC)
			ret = shmem_guest_write_chunk(inode, from, start, next, end, false);
		if (ret < 0) {
			if (!written)
				return ret;
			break;
		}

		start += ret;
		written += (ssize_t)ret << PAGE_SHIFT;
		cond_resched();
	}

	iocb->ki_pos += written;
	return written;
}

/**
 * shmem_guest_seek - find out which pages are allocated
 * @inode: inode that has F_SEAL_GUEST
 * @offset: byte to search from, not negative
 * @whence: SEEK_DATA or SEEK_HOLE
 *
 * Other than for ordinary files, pages that were allocated but not yet used
 * count as data: what matters is who may use them.
 *
 * Context: Any.
 * Return: Offset of the next private (SEEK_DATA) or shared (SEEK_HOLE) byte,
 *	the end of the file being shared, or -ENXIO.
 */
loff_t shmem_guest_seek(struct inode *inode, loff_t offset, int whence)
{
	struct address_space *mapping = inode->i_mapping;
	pgoff_t end = i_size_read(inode) >> PAGE_SHIFT;
	pgoff_t start = offset >> PAGE_SHIFT;
	pgoff_t index;

	if (start >= end)
		return -ENXIO;

	if (whence == SEEK_DATA) {
		index = shmem_guest_next_page(mapping, start, end);
		if (index == end)
			return -ENXIO;
	} else {
		index = shmem_guest_next_hole(mapping, start, end);
	}

	return index == start ? offset : (loff_t)index << PAGE_SHIFT;
}

/* How many pages are part of huge ones. */
static unsigned long shmem_guest_nr_huge(struct inode *inode)
{
	struct address_space *mapping = inode->i_mapping;
	pgoff_t end = i_size_read(inode) >> PAGE_SHIFT;
	pgoff_t index = 0;
	unsigned long nr = 0;

	while ((index = shmem_guest_next_page(mapping, index, end)) < end) {
		if (shmem_guest_page_order(inode, index))
			nr += SHMEM_GUEST_CHUNK;
		index = round_down(index, SHMEM_GUEST_CHUNK) + SHMEM_GUEST_CHUNK;
		cond_resched();
	}
	return nr;
}

/**
 * shmem_guest_show_fdinfo - tell how much memory a guest has
 * @m: what to print to
 * @file: a shmem file
 *
 * Nobody maps it, so nobody's RSS has it.
 *
 * Context: Process context.
 */
void shmem_guest_show_fdinfo(struct seq_file *m, struct file *file)
{
	struct inode *inode = file_inode(file);

	if (!shmem_guest_sealed(inode))
		return;

	seq_printf(m, "guest_private:\t%lu kB\n",
		   READ_ONCE(inode->i_mapping->nrpages) << (PAGE_SHIFT - 10));
	seq_printf(m, "guest_huge:\t%lu kB\n",
		   shmem_guest_nr_huge(inode) << (PAGE_SHIFT - 10));
}
