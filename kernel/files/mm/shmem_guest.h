/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __MM_SHMEM_GUEST_H
#define __MM_SHMEM_GUEST_H

#include <linux/fcntl.h>
#include <linux/guest_memory.h>
#include <linux/seq_file.h>
#include <linux/shmem_fs.h>

/* Sealed with F_SEAL_GUEST, i.e. is the content off limits for the host? */
static inline bool shmem_guest_sealed(struct inode *inode)
{
	return unlikely(mapping_guest_memory(inode->i_mapping));
}

/* In shmem.c */
void shmem_recalc_inode(struct inode *inode, long alloced, long swapped);
void shmem_update_stats(struct folio *folio, int nr_pages);
struct folio *shmem_alloc_folio(gfp_t gfp, int order,
				struct shmem_inode_info *info, pgoff_t index);
struct folio *shmem_add_new_folio(struct folio *folio, gfp_t gfp,
				  struct inode *inode, pgoff_t index,
				  struct mm_struct *fault_mm, bool guest);

#ifdef CONFIG_GUEST_MEMORY
extern const struct address_space_operations shmem_guest_aops;

static inline bool shmem_guest_mapping(struct address_space *mapping)
{
	return mapping->a_ops == &shmem_guest_aops;
}

int shmem_guest_seal(struct inode *inode);
void shmem_guest_evict(struct inode *inode);
long shmem_guest_fallocate(struct file *file, int mode, loff_t offset, loff_t len);
ssize_t shmem_guest_write(struct kiocb *iocb, struct iov_iter *from);
loff_t shmem_guest_seek(struct inode *inode, loff_t offset, int whence);
void shmem_guest_show_fdinfo(struct seq_file *m, struct file *file);
#else
#define shmem_guest_show_fdinfo NULL

static inline bool shmem_guest_mapping(struct address_space *mapping)
{
	return false;
}

static inline int shmem_guest_seal(struct inode *inode)
{
	return -EINVAL;
}

static inline void shmem_guest_evict(struct inode *inode)
{
}

static inline long shmem_guest_fallocate(struct file *file, int mode,
					 loff_t offset, loff_t len)
{
	return -EOPNOTSUPP;
}

static inline ssize_t shmem_guest_write(struct kiocb *iocb, struct iov_iter *from)
{
	return -EPERM;
}

static inline loff_t shmem_guest_seek(struct inode *inode, loff_t offset, int whence)
{
	return -EINVAL;
}
#endif

#endif /* __MM_SHMEM_GUEST_H */
