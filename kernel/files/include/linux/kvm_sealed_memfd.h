/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_KVM_SEALED_MEMFD_H
#define _LINUX_KVM_SEALED_MEMFD_H

#include <linux/kvm_host.h>

struct folio;

/* Whichever half of a memslot is in force. */
#define KVM_EITHER_HALF	(KVM_FILTER_SHARED | KVM_FILTER_PRIVATE)

/*
 * Which half of a page is KVM to access for who gave it @gfn?  In a protected VM that
 * is the guest, and the address tells; what tells is taken away from @gfn.  A memslot
 * without a private half has a shared one only.
 */
static inline enum kvm_gfn_range_filter kvm_gfn_to_filter(struct kvm *kvm, gfn_t *gfn)
{
#ifdef CONFIG_KVM_PROTECTED_VM
	gfn_t alias = *gfn & kvm->arch.gfn_direct_bits;

	if (kvm_is_protected(kvm)) {
		*gfn -= alias;
		return alias ? KVM_FILTER_SHARED : KVM_FILTER_PRIVATE;
	}
#endif
	return KVM_EITHER_HALF;
}

/**
 * struct kvm_sealed_memfd_access - a page of a memslot, held in its state
 * @slot: the memslot
 * @kaddr: the page, if it is private, else NULL
 * @uaddr: the page, if it is shared; page faults are disabled
 * @nr_faults: how often the page was faulted in, 0 in the beginning
 * @folio: private to virt/kvm/sealed_memfd.c
 */
struct kvm_sealed_memfd_access {
	const struct kvm_memory_slot *slot;
	void *kaddr;
	void __user *uaddr;
	unsigned int nr_faults;
	struct folio *folio;
};

/*
 * All of these are for memslots that have a sealed memfd, see
 * kvm_slot_has_sealed_memfd(), which is never true without CONFIG_KVM_SEALED_MEMFD.
 */
bool kvm_sealed_memfd_is_changing(const struct kvm_memory_slot *slot, gfn_t start,
				  gfn_t end);
int kvm_sealed_memfd_page_order(const struct kvm_memory_slot *slot, gfn_t gfn);
void *kvm_sealed_memfd_map_private(const struct kvm_memory_slot *slot, gfn_t gfn,
				   struct folio **folio);
bool kvm_sealed_memfd_unmap_private(const struct kvm_memory_slot *slot, void *kaddr,
				    struct folio *folio);
int kvm_sealed_memfd_read_private(const struct kvm_memory_slot *slot, gfn_t gfn,
				  void *data, int offset, int len);
int kvm_sealed_memfd_read(const struct kvm_memory_slot *slot, gfn_t gfn,
			  void *data, int offset, int len,
			  enum kvm_gfn_range_filter filter);
int kvm_sealed_memfd_read_atomic(const struct kvm_memory_slot *slot, gfn_t gfn,
				 void *data, int offset, int len);
int kvm_sealed_memfd_write(const struct kvm_memory_slot *slot, gfn_t gfn,
			   const void *data, int offset, int len,
			   enum kvm_gfn_range_filter filter);
int kvm_sealed_memfd_map_copy(struct kvm_memory_slot *slot, gfn_t gfn,
			      struct kvm_host_map *map);
void kvm_sealed_memfd_unmap_copy(struct kvm *kvm, struct kvm_host_map *map,
				 bool dirty);

int kvm_sealed_memfd_begin_access(struct kvm_sealed_memfd_access *access,
				  const struct kvm_memory_slot *slot, gfn_t gfn,
				  enum kvm_gfn_range_filter filter);
int kvm_sealed_memfd_try_begin_access(struct kvm_sealed_memfd_access *access,
				      const struct kvm_memory_slot *slot, gfn_t gfn,
				      enum kvm_gfn_range_filter filter);
void kvm_sealed_memfd_end_access(struct kvm_sealed_memfd_access *access);
bool kvm_sealed_memfd_fault_in(struct kvm_sealed_memfd_access *access,
			       int offset, int len);
int kvm_sealed_memfd_get(const struct kvm_sealed_memfd_access *access,
			 void *data, int offset, int len);
int kvm_sealed_memfd_put(const struct kvm_sealed_memfd_access *access,
			 const void *data, int offset, int len);
void kvm_sealed_memfd_report_error(const void *kaddr);

void kvm_sealed_memfd_keep(const struct kvm_memory_slot *slot, gfn_t gfn);
void kvm_sealed_memfd_request(struct kvm *kvm, gfn_t start, gfn_t nr_pages, bool private);
int kvm_sealed_memfd_require_consent(struct kvm *kvm);
void kvm_sealed_memfd_waive_consent(struct kvm *kvm);

int kvm_arch_copy_mc(void *to, const void *from, int len);

#endif /* _LINUX_KVM_SEALED_MEMFD_H */
