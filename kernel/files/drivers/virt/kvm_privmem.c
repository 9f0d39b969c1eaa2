// SPDX-License-Identifier: GPL-2.0
/*
 * Private memory for processes in a KVM guest.
 *
 * A process that opens and maps /dev/kvm_privmem gets memory that the host's
 * userspace, i.e. the VMM and whoever looks into it, can't reach: its pages
 * are converted to private by hypercall.  They are zeroed when mapped for the
 * first time, and wiped and converted back when the last reference to the file
 * goes away, e.g. because the process was killed.
 *
 * Pages are converted by mmap() and not when they are touched, so that it is
 * mmap() which fails, instead of a SIGBUS later on.  Faults only enter them into
 * page tables, without struct page: device models would see the shared half of
 * a page that is pinned for I/O, hence I/O has to fail, and core dumps leave
 * them out.
 *
 * Lifetime: a page belongs to its file from when it is converted until release,
 * when no mapping can be left, as each holds a reference to the file.  Only a
 * reboot takes pages from under mappings.
 *
 * Locks: mmap_lock -> privmem->lock, and privmem_mutex -> privmem->lock ->
 * i_mmap_rwsem.  privmem_mutex protects the list of open files, privmem->lock
 * what belongs to one of them.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/io.h>
#include <linux/kvm_para.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/processor.h>
#include <linux/reboot.h>
#include <linux/sched/user.h>
#include <linux/slab.h>
#include <linux/xarray.h>

/* Few hypercalls for much memory, but no long hunt for contiguous pages. */
#define PRIVMEM_MAX_ORDER	9
#define PRIVMEM_MAX_RUN		BIT(PRIVMEM_MAX_ORDER)

static unsigned long max_pages;
module_param(max_pages, ulong, 0644);
MODULE_PARM_DESC(max_pages, "Pages that may be private at a time (default: half of the memory)");

static unsigned long nr_pages;
module_param(nr_pages, ulong, 0444);
MODULE_PARM_DESC(nr_pages, "Pages that are private now");

static unsigned long nr_leaked;
module_param(nr_leaked, ulong, 0444);
MODULE_PARM_DESC(nr_leaked, "Pages lost because the host did not take them back");

/* Protects the above two. */
static DEFINE_SPINLOCK(privmem_stat_lock);

static DEFINE_MUTEX(privmem_mutex);
static LIST_HEAD(privmem_list);

struct privmem {
	struct list_head list;
	/* Who opened it is charged. */
	struct user_struct *user;
	/* Where all mappings of the file are found. */
	struct address_space *mapping;
	/* Protects the below. */
	struct mutex lock;
	/* What is at which page of the file. */
	struct xarray pages;
	/* The guest is going down: the pages are shared again. */
	bool dead;
};

static void privmem_clear(struct page *page, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++)
		clear_highpage(nth_page(page, i));
	cond_resched();
}

static long privmem_map_gpa_range(struct page *page, unsigned long nr, bool private)
{
	return kvm_hypercall3(KVM_HC_MAP_GPA_RANGE, page_to_phys(page), nr,
			      KVM_MAP_GPA_RANGE_PAGE_SZ_4K |
			      KVM_MAP_GPA_RANGE_ENC_STAT(private));
}

static int privmem_charge(struct privmem *privmem, unsigned long nr)
{
	unsigned long limit = rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT;
	int ret = 0;

	if (atomic_long_add_return(nr, &privmem->user->locked_vm) > limit &&
	    !capable(CAP_IPC_LOCK))
		ret = -ENOMEM;

	spin_lock(&privmem_stat_lock);
	if (!ret && (nr > max_pages || nr_pages > max_pages - nr))
		ret = -ENOMEM;
	if (!ret)
		nr_pages += nr;
	spin_unlock(&privmem_stat_lock);

	if (ret)
		atomic_long_sub(nr, &privmem->user->locked_vm);
	return ret;
}

static void privmem_uncharge(struct privmem *privmem, unsigned long nr)
{
	spin_lock(&privmem_stat_lock);
	nr_pages -= nr;
	spin_unlock(&privmem_stat_lock);
	atomic_long_sub(nr, &privmem->user->locked_vm);
}

/*
 * Wipe contiguous pages and give them back to the host.  If it doesn't take
 * them they must not be used for anything else, I/O least of all.
 */
static bool privmem_make_shared(struct page *page, unsigned long nr)
{
	long ret;

	privmem_clear(page, nr);
	ret = privmem_map_gpa_range(page, nr, false);
	if (!ret)
		return true;

	pr_warn_ratelimited("the host did not take back %lu pages: %ld\n", nr, ret);
	spin_lock(&privmem_stat_lock);
	nr_leaked += nr;
	spin_unlock(&privmem_stat_lock);
	return false;
}

static void privmem_free(struct page *page, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++)
		__free_page(nth_page(page, i));
}

/*
 * Give all pages of the file back to the host, contiguous ones together, and
 * free those that it takes if @free.  Returns how many pages there were.
 */
static unsigned long privmem_share_all(struct privmem *privmem, bool free)
{
	struct page *page, *first = NULL;
	unsigned long index, nr = 0, total = 0;

	xa_for_each(&privmem->pages, index, page) {
		total++;
		if (nr && nr < PRIVMEM_MAX_RUN && page_to_pfn(page) == page_to_pfn(first) + nr) {
			nr++;
			continue;
		}
		if (nr && privmem_make_shared(first, nr) && free)
			privmem_free(first, nr);
		first = page;
		nr = 1;
	}
	if (nr && privmem_make_shared(first, nr) && free)
		privmem_free(first, nr);
	return total;
}

static struct page *privmem_alloc(unsigned long nr, unsigned int *order)
{
	gfp_t gfp = GFP_KERNEL_ACCOUNT | __GFP_NOWARN;
	struct page *page;

	for (*order = min_t(unsigned int, PRIVMEM_MAX_ORDER, ilog2(nr)); *order; --*order) {
		page = alloc_pages(gfp | __GFP_NORETRY, *order);
		if (page) {
			split_page(page, *order);
			return page;
		}
	}
	return alloc_page(gfp);
}

/* Fill at most @nr pages of the file from @index on; return how many. */
static long privmem_add_run(struct privmem *privmem, unsigned long index,
			    unsigned long nr)
{
	unsigned int order;
	struct page *page;
	unsigned long i;
	int ret;

	page = privmem_alloc(nr, &order);
	if (!page)
		return -ENOMEM;
	nr = 1UL << order;

	ret = privmem_charge(privmem, nr);
	if (ret)
		goto free;

	for (i = 0; i < nr && !ret; i++)
		ret = xa_err(xa_store(&privmem->pages, index + i, nth_page(page, i),
				      GFP_KERNEL_ACCOUNT));
	if (ret)
		goto erase;

	/* Part of the range may have been converted before the host gave up. */
	if (privmem_map_gpa_range(page, nr, true)) {
		ret = -ENOMEM;
		if (!privmem_make_shared(page, nr))
			page = NULL;
		goto erase;
	}

	/* They ought to be zeros, but that is not for the host to say. */
	privmem_clear(page, nr);
	return nr;

erase:
	for (i = 0; i < nr; i++)
		xa_erase(&privmem->pages, index + i);
	privmem_uncharge(privmem, nr);
free:
	if (page)
		privmem_free(page, nr);
	return ret;
}

/* Have all pages of the range.  After a failure there may be more than before. */
static int privmem_populate(struct privmem *privmem, unsigned long index,
			    unsigned long nr)
{
	unsigned long end = index + nr, next;
	long ret;

	while (index < end) {
		if (xa_load(&privmem->pages, index)) {
			index++;
			continue;
		}
		if (fatal_signal_pending(current))
			return -EINTR;

		next = index;
		if (!xa_find(&privmem->pages, &next, end - 1, XA_PRESENT))
			next = end;
		ret = privmem_add_run(privmem, index, next - index);
		if (ret < 0)
			return ret;
		index += ret;
	}
	return 0;
}

static vm_fault_t privmem_fault(struct vm_fault *vmf)
{
	struct privmem *privmem = vmf->vma->vm_file->private_data;
	vm_fault_t ret = VM_FAULT_SIGBUS;
	struct page *page;

	mutex_lock(&privmem->lock);
	page = xa_load(&privmem->pages, vmf->pgoff);
	if (page && !privmem->dead)
		ret = vmf_insert_pfn(vmf->vma, vmf->address, page_to_pfn(page));
	mutex_unlock(&privmem->lock);
	return ret;
}

static const struct vm_operations_struct privmem_vm_ops = {
	.fault	= privmem_fault,
};

static int privmem_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct privmem *privmem = file->private_data;
	int ret;

	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;

	mutex_lock(&privmem->lock);
	if (privmem->dead)
		ret = -ESHUTDOWN;
	else
		ret = privmem_populate(privmem, vma->vm_pgoff, vma_pages(vma));
	mutex_unlock(&privmem->lock);
	if (ret)
		return ret;

	vm_flags_set(vma, VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_ops = &privmem_vm_ops;
	return 0;
}

static int privmem_open(struct inode *inode, struct file *file)
{
	struct privmem *privmem;

	privmem = kzalloc(sizeof(*privmem), GFP_KERNEL_ACCOUNT);
	if (!privmem)
		return -ENOMEM;

	privmem->user = get_uid(current_user());
	privmem->mapping = file->f_mapping;
	mutex_init(&privmem->lock);
	xa_init(&privmem->pages);
	file->private_data = privmem;

	mutex_lock(&privmem_mutex);
	list_add(&privmem->list, &privmem_list);
	mutex_unlock(&privmem_mutex);
	return 0;
}

static int privmem_release(struct inode *inode, struct file *file)
{
	struct privmem *privmem = file->private_data;

	mutex_lock(&privmem_mutex);
	list_del(&privmem->list);
	mutex_unlock(&privmem_mutex);

	/* After privmem_reboot() it doesn't matter what becomes of the pages. */
	if (!privmem->dead)
		privmem_uncharge(privmem, privmem_share_all(privmem, true));

	xa_destroy(&privmem->pages);
	free_uid(privmem->user);
	kfree(privmem);
	return 0;
}

static const struct file_operations privmem_fops = {
	.owner		= THIS_MODULE,
	.open		= privmem_open,
	.release	= privmem_release,
	.mmap		= privmem_mmap,
	.llseek		= noop_llseek,
};

static struct miscdevice privmem_device = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "kvm_privmem",
	.fops	= &privmem_fops,
	.mode	= 0600,
};

/*
 * A kernel that is started by kexec takes all memory for shared.  Processes may
 * still run: nothing that they write may end up in memory that is shared again.
 */
static int privmem_reboot(struct notifier_block *nb, unsigned long action, void *data)
{
	struct privmem *privmem;

	mutex_lock(&privmem_mutex);
	list_for_each_entry(privmem, &privmem_list, list) {
		mutex_lock(&privmem->lock);
		privmem->dead = true;
		unmap_mapping_range(privmem->mapping, 0, 0, 1);
		privmem_share_all(privmem, false);
		mutex_unlock(&privmem->lock);
	}
	mutex_unlock(&privmem_mutex);
	return NOTIFY_DONE;
}

static struct notifier_block privmem_reboot_nb = {
	.notifier_call	= privmem_reboot,
};

/* kvm_para_has_feature() is not there for modules. */
static bool __init privmem_available(void)
{
	if (!kvm_para_available())
		return false;

	return cpuid_eax(hypervisor_cpuid_base(KVM_SIGNATURE, 0) | KVM_CPUID_FEATURES) &
	       BIT(KVM_FEATURE_PRIVATE_MEMORY);
}

static int __init privmem_init(void)
{
	int ret;

	if (!privmem_available())
		return -ENODEV;

	if (!max_pages)
		max_pages = totalram_pages() / 2;

	ret = register_reboot_notifier(&privmem_reboot_nb);
	if (ret)
		return ret;

	ret = misc_register(&privmem_device);
	if (ret)
		unregister_reboot_notifier(&privmem_reboot_nb);
	return ret;
}

static void __exit privmem_exit(void)
{
	misc_deregister(&privmem_device);
	unregister_reboot_notifier(&privmem_reboot_nb);
}

module_init(privmem_init);
module_exit(privmem_exit);

MODULE_DESCRIPTION("Private memory for processes in a KVM guest");
MODULE_LICENSE("GPL");
