// SPDX-License-Identifier: GPL-2.0
/*
 * shmem as a backing store of guest memory: memfds sealed with F_SEAL_GUEST.
 *
 * Host userspace may allocate and free the pages of a sealed memfd, give them
 * their initial content, and see which ones there are, but never reach their
 * content.  shmem_get_folio_gfp(), which every access goes through, refuses all
 * but the allocation done here.
 *
 * Locks: guest_memory.c has the order.  Once it is done, sealing is for good and
 * so is the size, hence files with mapping_guest_memory() need no i_rwsem.
 */
#include <linux/fs.h>
#include <linux/falloc.h>
#include <linux/highmem.h>
#include <linux/memcontrol.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/uio.h>

#include "shmem_guest.h"

/*
 * Pages converted in one go: vCPUs that touch them wait meanwhile, and so do
 * other conversions and memslot updates.
 */
#define SHMEM_GUEST_CHUNK	512

/* First page from @start on that is not allocated, @end if there is none. */
static pgoff_t shmem_guest_next_hole(struct address_space *mapping, pgoff_t start,
				     pgoff_t end)
{
	XA_STATE(xas, &mapping->i_pages, start);
	void *entry;

	rcu_read_lock();
	while (start < end) {
		entry = xas_next(&xas);
		if (xas_retry(&xas, entry))
			continue;
		if (!entry)
			break;
		start++;
	}
	rcu_read_unlock();
	return start;
}

static bool shmem_guest_page_allocated(struct inode *inode, pgoff_t index)
{
	return xa_load(&inode->i_mapping->i_pages, index);
}

static bool shmem_guest_range_allocated(struct inode *inode, pgoff_t start,
					pgoff_t end)
{
	return xa_find(&inode->i_mapping->i_pages, &start, end - 1, XA_PRESENT);
}

static struct folio *shmem_guest_get_folio(struct inode *inode, pgoff_t index)
{
	struct folio *folio;

	folio = filemap_lock_folio(inode->i_mapping, index);
	if (IS_ERR(folio))
		return folio;

	if (folio_test_hwpoison(folio)) {
		folio_unlock(folio);
		folio_put(folio);
		return ERR_PTR(-EHWPOISON);
	}

	/* Allocating does not clear pages: do it when one is used at last. */
	if (!folio_test_uptodate(folio)) {
		folio_zero_range(folio, 0, folio_size(folio));
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

	if (folio_test_hwpoison(folio))
		ret = -EHWPOISON;
	else if (!folio_test_uptodate(folio))
		ret = -EAGAIN;
	else
		return folio;

	folio_put(folio);
	return ERR_PTR(ret);
}

static const struct guest_memory_ops shmem_guest_ops = {
	.page_allocated		= shmem_guest_page_allocated,
	.range_allocated	= shmem_guest_range_allocated,
	.get_folio		= shmem_guest_get_folio,
	.get_folio_nowait	= shmem_guest_get_folio_nowait,
};

/* Is there any content, or any way left by which there could be some? */
static bool shmem_guest_in_use(struct inode *inode)
{
	struct shmem_inode_info *info = SHMEM_I(inode);
	bool mapped;

	/* A mapping that is being changed is not in i_mmap for a moment. */
	i_mmap_lock_read(inode->i_mapping);
	mapped = mapping_mapped(inode->i_mapping);
	i_mmap_unlock_read(inode->i_mapping);

	return mapped || inode->i_mapping->nrpages ||
	       READ_ONCE(info->alloced) || READ_ONCE(info->swapped);
}

/**
 * shmem_guest_seal - set F_SEAL_GUEST and what it implies
 * @inode: inode of a shmem memfd
 *
 * Context: Process context, may sleep.  i_rwsem held exclusively.
 * Return: 0, also if the seal is set already; -EINVAL if writing is sealed or
 *	the size is not a multiple of the page size, -EBUSY if the file is
 *	mapped or holds any page, -ENOMEM.
 */
int shmem_guest_seal(struct inode *inode)
{
	struct shmem_inode_info *info = SHMEM_I(inode);
	unsigned int old = info->seals;
	int ret = -EBUSY;

	if (old & F_SEAL_GUEST)
		return 0;
	if (old & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) ||
	    !PAGE_ALIGNED(i_size_read(inode)))
		return -EINVAL;

	/* Don't even let page faults of a file in use see the seal. */
	if (shmem_guest_in_use(inode))
		return -EBUSY;

	/*
	 * A page that is inserted, or a mapping that is made, without having
	 * seen the seal is seen here.
	 */
	WRITE_ONCE(info->seals, old | F_SEAL_GUEST | F_SEAL_SHRINK | F_SEAL_GROW);
	/* Pairs with shmem_get_folio_gfp() and collapse_file(). */
	smp_mb();
	if (shmem_guest_in_use(inode))
		goto unseal;

	ret = guest_memory_init(inode->i_mapping, &shmem_guest_ops);
	if (ret)
		goto unseal;

	/* Until there is a way to tell the guest's mappings, pages stay put. */
	mapping_set_gfp_mask(inode->i_mapping, GFP_HIGHUSER);
	mapping_set_inaccessible(inode->i_mapping);
	guest_memory_publish(inode->i_mapping);
	return 0;

unseal:
	WRITE_ONCE(info->seals, old);
	return ret;
}

/* The page at @start is not allocated, others may be. */
static int shmem_guest_allocate(struct inode *inode, pgoff_t start, pgoff_t end)
{
	pgoff_t index, allocated = start + 1;
	struct folio *folio;
	int ret;

	/* Often there is none, so don't look for one each time. */
	if (allocated < end &&
	    !xa_find(&inode->i_mapping->i_pages, &allocated, end - 1, XA_PRESENT))
		allocated = end;

	for (index = start; index < end; index++) {
		if (fatal_signal_pending(current))
			return -EINTR;

		/* Leave alone what the guest has, it may be lost, too. */
		if (index >= allocated && shmem_guest_page_allocated(inode, index))
			continue;

		ret = shmem_get_folio(inode, index, 0, &folio, SGP_FALLOC);
		if (ret)
			return ret;

		/* A clean page could be dropped behind the guest's back. */
		folio_set_dirty(folio);
		folio_unlock(folio);
		folio_put(folio);
	}
	return 0;
}

/*
 * Convert the pages within [start, end) that are not yet what @event makes
 * them.  A failure leaves those before it converted and the rest as they were.
 * Returns 1 if there was something to do.
 */
static int shmem_guest_convert(struct inode *inode, enum guest_memory_event event,
			       pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = inode->i_mapping;
	int ret = 0;

	filemap_invalidate_lock(mapping);

	/* What is done already, e.g. before a signal, is not worth a zap. */
	if (event == GUEST_MEMORY_MAP)
		start = shmem_guest_next_hole(mapping, start, end);
	else if (!xa_find(&mapping->i_pages, &start, end - 1, XA_PRESENT))
		start = end;

	if (start < end) {
		guest_memory_begin(mapping, event, start, end);
		if (event == GUEST_MEMORY_MAP)
			ret = shmem_guest_allocate(inode, start, end);
		else
			shmem_truncate_range(inode, (loff_t)start << PAGE_SHIFT,
					     ((loff_t)end << PAGE_SHIFT) - 1);
		guest_memory_end(mapping, event, start, end);
		ret = ret ?: 1;
	}

	filemap_invalidate_unlock(mapping);
	return ret;
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
 * Return: 0; -EOPNOTSUPP for other modes, -EINVAL if the range is not aligned
 *	or goes past the end of the file; -ENOMEM, -ENOSPC or -EINTR if
 *	only pages at the start of the range were converted.
 */
long shmem_guest_fallocate(struct file *file, int mode, loff_t offset, loff_t len)
{
	struct inode *inode = file_inode(file);
	enum guest_memory_event event;
	pgoff_t start, next, end;
	int ret;

	if (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE))
		return -EOPNOTSUPP;
	if (!PAGE_ALIGNED(offset) || !PAGE_ALIGNED(len) ||
	    offset + len > i_size_read(inode))
		return -EINVAL;

	event = mode & FALLOC_FL_PUNCH_HOLE ? GUEST_MEMORY_UNMAP : GUEST_MEMORY_MAP;
	start = offset >> PAGE_SHIFT;
	end = (offset + len) >> PAGE_SHIFT;

	for (; start < end; start = next) {
		next = min(end, round_down(start, SHMEM_GUEST_CHUNK) + SHMEM_GUEST_CHUNK);

		ret = shmem_guest_convert(inode, event, start, next);
		if (ret < 0)
			return ret;
		/* Whoever tries again and again shall get on each time. */
		if (ret && next < end && signal_pending(current))
			return -EINTR;
		cond_resched();
	}

	return 0;
}

/*
 * Allocate up to @nr folios and fill them from @from.  They are not in the page
 * cache yet, so the source may fault and sleep as it likes, and fail.  Returns
 * how many there are in @folios, or an error if there are none.
 */
static int shmem_guest_fill(struct inode *inode, struct iov_iter *from,
			    pgoff_t start, int nr, struct list_head *folios)
{
	gfp_t gfp = mapping_gfp_mask(inode->i_mapping);
	struct folio *folio;
	size_t copied;
	int i;

	for (i = 0; i < nr; i++) {
		if (fatal_signal_pending(current))
			return i ?: -EINTR;

		folio = shmem_alloc_folio(gfp, 0, SHMEM_I(inode), start + i);
		if (!folio)
			return i ?: -ENOMEM;

		/* The source may take its time, so don't hold it for free. */
		if (mem_cgroup_charge(folio, NULL, gfp)) {
			folio_put(folio);
			return i ?: -ENOMEM;
		}

		copied = copy_page_from_iter(&folio->page, 0, PAGE_SIZE, from);
		if (copied < PAGE_SIZE) {
			iov_iter_revert(from, copied);
			folio_put(folio);
			return i ?: -EFAULT;
		}

		flush_dcache_folio(folio);
		__folio_mark_uptodate(folio);
		list_add_tail(&folio->lru, folios);
	}
	return nr;
}

/*
 * Add the folios to the page cache.  Returns how many were added, or an error
 * if none.
 */
static int shmem_guest_add(struct inode *inode, pgoff_t start,
			   struct list_head *folios)
{
	gfp_t gfp = mapping_gfp_mask(inode->i_mapping);
	struct folio *folio;
	int nr = 0;

	while ((folio = list_first_entry_or_null(folios, struct folio, lru))) {
		list_del(&folio->lru);
		folio = shmem_add_new_folio(folio, gfp, inode, start + nr, NULL);
		if (IS_ERR(folio))
			return nr ?: PTR_ERR(folio);

		/* See shmem_guest_allocate(). */
		folio_set_dirty(folio);
		folio_unlock(folio);
		folio_put(folio);
		nr++;
	}
	return nr;
}

/*
 * Convert the pages of [start, next) with what @from has for them, if none up to
 * @end is allocated.  Returns how many pages at the start were converted, or an
 * error if none.
 */
static int shmem_guest_write_chunk(struct inode *inode, struct iov_iter *from,
				   pgoff_t start, pgoff_t next, pgoff_t end)
{
	struct address_space *mapping = inode->i_mapping;
	struct folio *folio, *tmp;
	LIST_HEAD(folios);
	int nr, ret;

	nr = shmem_guest_fill(inode, from, start, next - start, &folios);
	if (nr < 0)
		return nr;

	filemap_invalidate_lock(mapping);

	if (shmem_guest_range_allocated(inode, start, end)) {
		ret = -EEXIST;
	} else {
		guest_memory_begin(mapping, GUEST_MEMORY_MAP, start, start + nr);
		ret = shmem_guest_add(inode, start, &folios);
		guest_memory_end(mapping, GUEST_MEMORY_MAP, start, start + nr);
	}

	filemap_invalidate_unlock(mapping);

	list_for_each_entry_safe(folio, tmp, &folios, lru) {
		list_del(&folio->lru);
		folio_put(folio);
	}
	iov_iter_revert(from, (size_t)(nr - max(ret, 0)) << PAGE_SHIFT);
	return ret;
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
 *	-EEXIST if part of it is allocated, -EFAULT, -ENOMEM, -ENOSPC or -EINTR.
 */
ssize_t shmem_guest_write(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	size_t len = iov_iter_count(from);
	pgoff_t start, next, end;
	ssize_t written = 0;
	int ret;

	if (!PAGE_ALIGNED(iocb->ki_pos) || !PAGE_ALIGNED(len) ||
	    iocb->ki_pos + len > i_size_read(inode))
		return -EINVAL;

	start = iocb->ki_pos >> PAGE_SHIFT;
	end = start + (len >> PAGE_SHIFT);

	/* What stops a chunk half-way is an error when it goes on from there. */
	while (start < end) {
		next = min(end, round_down(start, SHMEM_GUEST_CHUNK) + SHMEM_GUEST_CHUNK);

		ret = shmem_guest_write_chunk(inode, from, start, next, end);
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
	unsigned long index = start;

	if (start >= end)
		return -ENXIO;

	if (whence == SEEK_DATA) {
		if (!xa_find(&mapping->i_pages, &index, end - 1, XA_PRESENT))
			return -ENXIO;
	} else {
		index = shmem_guest_next_hole(mapping, start, end);
	}

	return index == start ? offset : (loff_t)index << PAGE_SHIFT;
}
