/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __MM_SHMEM_GUEST_H
#define __MM_SHMEM_GUEST_H

#include <linux/fcntl.h>
#include <linux/guest_memory.h>
#include <linux/shmem_fs.h>

/* Has F_SEAL_GUEST been set, i.e. is the content off limits for the host? */
static inline bool shmem_guest_sealed(struct inode *inode)
{
	return IS_ENABLED(CONFIG_GUEST_MEMORY) &&
	       unlikely(READ_ONCE(SHMEM_I(inode)->seals) & F_SEAL_GUEST);
}

/* In shmem.c */
struct folio *shmem_alloc_folio(gfp_t gfp, int order,
				struct shmem_inode_info *info, pgoff_t index);
struct folio *shmem_add_new_folio(struct folio *folio, gfp_t gfp,
				  struct inode *inode, pgoff_t index,
				  struct mm_struct *fault_mm);

#ifdef CONFIG_GUEST_MEMORY
int shmem_guest_seal(struct inode *inode);
long shmem_guest_fallocate(struct file *file, int mode, loff_t offset, loff_t len);
ssize_t shmem_guest_write(struct kiocb *iocb, struct iov_iter *from);
loff_t shmem_guest_seek(struct inode *inode, loff_t offset, int whence);
#else
static inline int shmem_guest_seal(struct inode *inode)
{
	return -EINVAL;
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
