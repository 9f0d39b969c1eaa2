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
 * reboot takes pages from under mappings.  A page that the host does not take
 * back is not used again until it does.
 *
 * What reads the guest's memory past the page tables, e.g. /proc/kcore, images
 * for hibernation and makedumpfile, leaves out pages that are PageOffline(), as
 * private ones are.
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
#include <linux/suspend.h>
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

/* The pages that nr_leaked counts, as far as nobody tries to give them back. */
static LIST_HEAD(privmem_leaked);

/* Other memory is being written to where it will be shared: no more pages. */
static bool privmem_frozen;

/* Protects the above four. */
static DEFINE_SPINLOCK(privmem_stat_lock);

static DEFINE_MUTEX(privmem_mutex);
static LIST_HEAD(privmem_list);

/*
 * The guest is going down.  Set under privmem_mutex, and before the lock of
 * each file on the list is taken: who maps a file and does not see it comes
 * first.  A file that is opened later can't be mapped.
 */
static bool privmem_down;

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
};

static void privmem_clear(struct page *page, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++)
		if (!PageHWPoison(nth_page(page, i)))
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
	unsigned long max = READ_ONCE(max_pages);
	int ret = 0;

	if (atomic_long_add_return(nr, &privmem->user->locked_vm) > limit &&
	    !capable(CAP_IPC_LOCK))
		ret = -ENOMEM;

	spin_lock(&privmem_stat_lock);
	if (!ret && privmem_frozen)
		ret = -EBUSY;
	if (!ret && (nr > max || nr_pages > max - nr))
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

static void privmem_free(struct page *page, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++) {
		__ClearPageOffline(nth_page(page, i));
		__free_page(nth_page(page, i));
	}
}

/* They stay private: they must not be used for anything else, I/O least of all. */
static void privmem_leak(struct page *page, unsigned long nr)
{
	unsigned long i;

	spin_lock(&privmem_stat_lock);
	for (i = 0; i < nr; i++)
		list_add(&nth_page(page, i)->lru, &privmem_leaked);
	nr_leaked += nr;
	spin_unlock(&privmem_stat_lock);
}

/* Wipe contiguous pages, give them back to the host, and free them. */
static void privmem_make_shared(struct page *page, unsigned long nr)
{
	long ret;

	privmem_clear(page, nr);
	ret = privmem_map_gpa_range(page, nr, false);
	if (!ret) {
		privmem_free(page, nr);
		return;
	}
	pr_warn_ratelimited("the host did not take back %lu pages: %ld\n", nr, ret);
	privmem_leak(page, nr);
}

/* Try once more to give back what the host did not take.  Nothing is in it. */
static void privmem_return_leaked(void)
{
	struct page *page, *next;
	LIST_HEAD(pages);

	spin_lock(&privmem_stat_lock);
	list_splice_init(&privmem_leaked, &pages);
	spin_unlock(&privmem_stat_lock);

	list_for_each_entry_safe(page, next, &pages, lru) {
		if (privmem_map_gpa_range(page, 1, false))
			continue;
		list_del(&page->lru);
		privmem_free(page, 1);
		spin_lock(&privmem_stat_lock);
		nr_leaked--;
		spin_unlock(&privmem_stat_lock);
	}

	spin_lock(&privmem_stat_lock);
	list_splice(&pages, &privmem_leaked);
	spin_unlock(&privmem_stat_lock);
}

/*
 * Give all pages of the file back to the host, contiguous ones together.  There
 * are no mappings of them.
 */
static void privmem_share_all(struct privmem *privmem)
{
	struct page *page, *first = NULL;
	unsigned long index, nr = 0, total = 0;

	xa_for_each(&privmem->pages, index, page) {
		total++;
		if (nr && nr < PRIVMEM_MAX_RUN && page_to_pfn(page) == page_to_pfn(first) + nr) {
			nr++;
			continue;
		}
		if (nr)
			privmem_make_shared(first, nr);
		first = page;
		nr = 1;
	}
	if (nr)
		privmem_make_shared(first, nr);

	xa_destroy(&privmem->pages);
	privmem_uncharge(privmem, total);
}

static struct page *privmem_alloc(unsigned long nr, unsigned int *order)
{
	gfp_t gfp = GFP_KERNEL_ACCOUNT | __GFP_NOWARN;
	struct page *page = NULL;
	unsigned long i;

	for (*order = min_t(unsigned int, PRIVMEM_MAX_ORDER, ilog2(nr)); *order; --*order) {
		page = alloc_pages(gfp | __GFP_NORETRY, *order);
		if (page) {
			split_page(page, *order);
			break;
		}
	}
	if (!page)
		page = alloc_page(gfp);
	if (!page)
		return NULL;

	for (i = 0; i < BIT(*order); i++)
		__SetPageOffline(nth_page(page, i));
	return page;
}

/* Fill at most @nr pages of the file from @index on; return how many. */
static long privmem_add_run(struct privmem *privmem, unsigned long index,
			    unsigned long nr)
{
	unsigned int order;
	struct page *page;
	unsigned long i;
	long ret;

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

	ret = privmem_map_gpa_range(page, nr, true);
	if (ret) {
		/*
		 * Part of the range may have been converted before the host gave
		 * up, but for a range that it can't convert.
		 */
		if (ret != -KVM_EINVAL) {
			privmem_make_shared(page, nr);
			page = NULL;
		}
		ret = -ENOMEM;
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

	/* Another thread may be having many pages converted. */
	if (mutex_lock_killable(&privmem->lock))
		return VM_FAULT_SIGBUS;
	page = xa_load(&privmem->pages, vmf->pgoff);
	if (page)
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

	if (mutex_lock_killable(&privmem->lock))
		return -EINTR;
	if (privmem_down)
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

	/* A reboot has to find the file until its pages are shared. */
	mutex_lock(&privmem->lock);
	privmem_share_all(privmem);
	mutex_unlock(&privmem->lock);

	mutex_lock(&privmem_mutex);
	list_del(&privmem->list);
	mutex_unlock(&privmem_mutex);

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
	privmem_down = true;
	list_for_each_entry(privmem, &privmem_list, list) {
		mutex_lock(&privmem->lock);
		unmap_mapping_range(privmem->mapping, 0, 0, 1);
		privmem_share_all(privmem);
		mutex_unlock(&privmem->lock);
	}
	mutex_unlock(&privmem_mutex);
	privmem_return_leaked();
	return NOTIFY_DONE;
}

static struct notifier_block privmem_reboot_nb = {
	.notifier_call	= privmem_reboot,
};

/*
 * All memory is shared when the guest starts anew to be resumed.  What is
 * private could not stay so, and the kernel that resumes must not leave private
 * pages behind to the one that is resumed.
 */
static int privmem_pm(struct notifier_block *nb, unsigned long action, void *data)
{
	int ret = 0;

	switch (action) {
	case PM_HIBERNATION_PREPARE:
	case PM_RESTORE_PREPARE:
		privmem_return_leaked();
		spin_lock(&privmem_stat_lock);
		if (nr_pages || nr_leaked)
			ret = -EBUSY;
		else
			privmem_frozen = true;
		spin_unlock(&privmem_stat_lock);
		if (ret)
			pr_info("no hibernation while pages are private\n");
		break;
	case PM_POST_HIBERNATION:
	case PM_POST_RESTORE:
		spin_lock(&privmem_stat_lock);
		privmem_frozen = false;
		spin_unlock(&privmem_stat_lock);
		break;
	}
	return notifier_from_errno(ret);
}

static struct notifier_block privmem_pm_nb = {
	.notifier_call	= privmem_pm,
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

	ret = register_pm_notifier(&privmem_pm_nb);
	if (ret)
		goto reboot;

	ret = misc_register(&privmem_device);
	if (ret)
		goto pm;
	return 0;

pm:
	unregister_pm_notifier(&privmem_pm_nb);
reboot:
	unregister_reboot_notifier(&privmem_reboot_nb);
	return ret;
}

static void __exit privmem_exit(void)
{
	misc_deregister(&privmem_device);
	unregister_pm_notifier(&privmem_pm_nb);
	unregister_reboot_notifier(&privmem_reboot_nb);
	privmem_return_leaked();
}

module_init(privmem_init);
module_exit(privmem_exit);

MODULE_DESCRIPTION("Private memory for processes in a KVM guest");
MODULE_LICENSE("GPL");
