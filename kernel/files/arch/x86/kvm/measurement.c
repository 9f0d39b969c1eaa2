// SPDX-License-Identifier: GPL-2.0
/*
 * Launch measurement and sealing key of protected VMs.
 *
 * The measurement is the SHA-384 of a stream of records which says all that a VMM
 * has decided about what the guest finds when it starts, and nothing else: memory by
 * its content, not by how it was allocated or what it's called; no clocks; and
 * nothing that differs from one boot of the host to the next.
 *
 * Nothing may change meanwhile.  As for KVM's own interfaces that's what finalize_lock
 * is for, as for private memory that it already takes the guest's consent to free it,
 * and that it can't be given content any more.  It may be allocated, which makes no
 * difference.
 */
#include <crypto/hash.h>
#include <keys/encrypted-type.h>
#include <keys/trusted-type.h>
#include <keys/user-type.h>
#include <linux/key.h>
#include <linux/key-type.h>
#include <linux/kvm_host.h>
#include <linux/kvm_sealed_memfd.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include <linux/unaligned.h>

#include <asm/kvm_measurement.h>
#include <asm/sha384_4x.h>

#include "cpuid.h"
#include "hyperv.h"
#include "lapic.h"
#include "measurement.h"
#include "sealed_memfd.h"
#include "x86.h"

/* Holes are skipped in pieces of this many pages. */
#define KVM_MEASUREMENT_STRIDE	512

#define KVM_MIN_SEALING_KEY	32

struct kvm_launch {
	u8 measurement[KVM_MEASUREMENT_SIZE];
	/* Was there a key at the start? */
	bool has_key;
	/* Protects what follows, which the guest can have KVM forget. */
	spinlock_t key_lock;
	bool key_is_there;
	u8 key[KVM_SEALING_KEY_SIZE];
};

struct kvm_measurement_page_record {
	struct kvm_measurement_record head;
	struct kvm_measurement_page page;
};

/* What a vCPU's records, and those of pages, are made in */
struct kvm_measurement_buffer {
	struct kvm_regs regs;
	struct kvm_sregs2 sregs;
	struct kvm_debugregs debugregs;
	struct kvm_vcpu_events events;
	struct kvm_lapic_state lapic;
	struct kvm_measurement_cpuid cpuid[KVM_MAX_CPUID_ENTRIES];
	/* Where these pages are */
	const struct kvm_memory_slot *slots[SHA384_LANES];
	struct kvm_measurement_page_record pages[SHA384_LANES];
	u8 content[PAGE_SIZE];
};

struct kvm_measurement_stream {
	struct kvm *kvm;
	struct shash_desc *desc;
	struct kvm_measurement_buffer *buffer;
	/* Pages in the buffer, whose digests are to come */
	unsigned int nr_pages;
	/* A copy for userspace, of all but pages */
	u8 __user *log;
	u64 log_size;
	u64 log_len;
};

static int stream_put(struct kvm_measurement_stream *stream, const void *data, u32 len)
{
	if (stream->log_len + len <= stream->log_size &&
	    copy_to_user(stream->log + stream->log_len, data, len))
		return -EFAULT;
	stream->log_len += len;

	return crypto_shash_update(stream->desc, data, len);
}

static int stream_record(struct kvm_measurement_stream *stream, u32 type,
			 const void *data, u32 len)
{
	struct kvm_measurement_record record = { .type = type, .len = len };

	return stream_put(stream, &record, sizeof(record)) ?:
	       stream_put(stream, data, len);
}

static int measure_start(struct kvm_measurement_stream *stream)
{
	struct kvm_measurement_start start = { .version = KVM_MEASUREMENT_VERSION };

	BUILD_BUG_ON(sizeof(KVM_MEASUREMENT_MAGIC) != sizeof(start.magic) + 1);
	memcpy(start.magic, KVM_MEASUREMENT_MAGIC, sizeof(start.magic));
	return stream_record(stream, KVM_MEASUREMENT_START, &start, sizeof(start));
}

static u64 measured_vm_flags(const struct kvm *kvm)
{
	const struct kvm_arch *arch = &kvm->arch;

	return (arch->mwait_in_guest ? KVM_MEASUREMENT_VM_MWAIT : 0) |
	       (arch->hlt_in_guest ? KVM_MEASUREMENT_VM_HLT : 0) |
	       (arch->cstate_in_guest ? KVM_MEASUREMENT_VM_CSTATE : 0) |
	       (arch->vpit ? KVM_MEASUREMENT_VM_PIT : 0) |
	       (arch->enable_pmu ? KVM_MEASUREMENT_VM_PMU : 0) |
	       (arch->guest_can_read_msr_platform_info ?
		KVM_MEASUREMENT_VM_PLATFORM_INFO : 0) |
	       (arch->x2apic_format ? KVM_MEASUREMENT_VM_X2APIC_FORMAT : 0) |
	       (arch->x2apic_broadcast_quirk_disabled ?
		KVM_MEASUREMENT_VM_X2APIC_NO_BROADCAST : 0);
}

static int measure_vm(struct kvm_measurement_stream *stream)
{
	struct kvm *kvm = stream->kvm;
	struct kvm_measurement_vm vm = {
		.shared_bit = gfn_to_gpa(kvm->arch.gfn_direct_bits),
		.disabled_quirks = kvm->arch.disabled_quirks,
		.flags = measured_vm_flags(kvm),
		.hypercall_exits = kvm->arch.hypercall_exit_enabled,
		.nr_vcpus = kvm->created_vcpus,
		.bsp_id = kvm->arch.bsp_vcpu_id,
		.nr_ioapic_pins = kvm->arch.nr_reserved_ioapic_pins,
	};

	switch (kvm->arch.irqchip_mode) {
	case KVM_IRQCHIP_KERNEL:
		vm.irqchip_mode = KVM_MEASUREMENT_IRQCHIP_KERNEL;
		break;
	case KVM_IRQCHIP_SPLIT:
		vm.irqchip_mode = KVM_MEASUREMENT_IRQCHIP_SPLIT;
		break;
	default:
		vm.irqchip_mode = KVM_MEASUREMENT_IRQCHIP_NONE;
	}

	return stream_record(stream, KVM_MEASUREMENT_VM, &vm, sizeof(vm));
}

static int put_range(struct kvm_measurement_stream *stream,
		     const struct kvm_measurement_range *range)
{
	return range->size ? stream_record(stream, KVM_MEASUREMENT_RANGE, range,
					   sizeof(*range)) : 0;
}

/* How memory is divided into memslots is not for the guest to see. */
static int measure_ranges(struct kvm_measurement_stream *stream)
{
	struct kvm_measurement_range range = {}, next = {};
	struct kvm_memslot_iter iter;
	int r;

	kvm_for_each_memslot_in_gfn_range(&iter, kvm_memslots(stream->kvm), 0, ~0ull) {
		const struct kvm_memory_slot *slot = iter.slot;

		/* KVM can't read a guest_memfd. */
		if (kvm_slot_can_be_private(slot) && !kvm_slot_has_sealed_memfd(slot))
			return -EINVAL;

		next.gpa = gfn_to_gpa(slot->base_gfn);
		next.size = (u64)slot->npages << PAGE_SHIFT;
		next.flags = (kvm_slot_can_be_private(slot) ?
			      KVM_MEASUREMENT_RANGE_PRIVATE : 0) |
			     (slot->flags & KVM_MEM_READONLY ?
			      KVM_MEASUREMENT_RANGE_READONLY : 0);

		if (range.size && range.gpa + range.size == next.gpa &&
		    range.flags == next.flags) {
			range.size += next.size;
			continue;
		}

		r = put_range(stream, &range);
		if (r)
			return r;
		range = next;
	}

	return put_range(stream, &range);
}

/* Without what KVM derives from the rest: see __kvm_update_cpuid_runtime(). */
static int measure_cpuid(struct kvm_measurement_stream *stream, struct kvm_vcpu *vcpu)
{
	struct kvm_measurement_cpuid *cpuid = stream->buffer->cpuid;
	int i, n = vcpu->arch.cpuid_nent;

	for (i = 0; i < n; i++) {
		const struct kvm_cpuid_entry2 *e = &vcpu->arch.cpuid_entries[i];

		cpuid[i] = (struct kvm_measurement_cpuid) {
			.function = e->function,
			.index = e->index,
			.flags = e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
			.eax = e->eax,
			.ebx = e->ebx,
			.ecx = e->ecx,
			.edx = e->edx,
		};

		switch (e->function) {
		case 0x1:
			if (boot_cpu_has(X86_FEATURE_XSAVE))
				cpuid[i].ecx &= ~feature_bit(OSXSAVE);
			cpuid[i].edx &= ~feature_bit(APIC);
			break;
		case 0x7:
			if (!e->index && boot_cpu_has(X86_FEATURE_PKU))
				cpuid[i].ecx &= ~feature_bit(OSPKE);
			break;
		case 0xd:
			if (!e->index || (e->index == 1 && e->eax & (feature_bit(XSAVES) |
								     feature_bit(XSAVEC))))
				cpuid[i].ebx = 0;
			break;
		}
	}

	return stream_record(stream, KVM_MEASUREMENT_CPUID, cpuid, n * sizeof(*cpuid));
}

/*
 * In the layout of KVM_GET_XSAVE, without the header, which says no more than that
 * something is in its initial state, and the mask of what the host's MXCSR can have.
 */
static int measure_xsave(struct kvm_measurement_stream *stream, struct kvm_vcpu *vcpu)
{
	u32 size = vcpu->arch.guest_fpu.uabi_size;
	struct fxregs_state *fx;
	u8 *xsave;
	int r;

	xsave = kvzalloc(size, GFP_KERNEL_ACCOUNT);
	if (!xsave)
		return -ENOMEM;

	r = kvm_vcpu_ioctl_x86_get_xsave2(vcpu, xsave, size);
	if (r)
		goto free;

	fx = (struct fxregs_state *)xsave;
	fx->mxcsr_mask = 0;
	memset(fx->padding, 0, sizeof(fx->padding) + sizeof(fx->padding1));
	memset(xsave + FXSAVE_SIZE, 0, XSAVE_HDR_SIZE);

	while (size && !xsave[size - 1])
		size--;
	r = stream_record(stream, KVM_MEASUREMENT_XSAVE, xsave, size);
free:
	kvfree(xsave);
	return r;
}

struct msr_range {
	u32 first;
	u32 last;
};

/* In ascending order: MSRs that are not in the list of KVM_GET_MSR_INDEX_LIST */
static const struct msr_range more_msrs[] = {
	/* These two only where the host's CPU has them, but userspace can set them. */
	{ MSR_IA32_UMWAIT_CONTROL, MSR_IA32_UMWAIT_CONTROL },
	{ MSR_IA32_TSX_CTRL, MSR_IA32_TSX_CTRL },
	{ MSR_IA32_MCG_CAP, MSR_IA32_MCG_CTL },
	/* MTRRs, and MCi_CTL2 in between */
	{ 0x200, 0x200 + 2 * KVM_NR_VAR_MTRR - 1 },
	{ 0x250, 0x250 },
	{ 0x258, 0x259 },
	{ 0x268, 0x26f },
	{ MSR_IA32_MC0_CTL2, MSR_IA32_MC0_CTL2 + KVM_MAX_MCE_BANKS - 1 },
	{ 0x2ff, 0x2ff },
	{ MSR_IA32_MC0_CTL, MSR_IA32_MC0_CTL + 4 * KVM_MAX_MCE_BANKS - 1 },
	{ MSR_IA32_XSS, MSR_IA32_XSS },
	{ HV_X64_MSR_SCONTROL, HV_X64_MSR_SIMP },
	{ HV_X64_MSR_SINT0, HV_X64_MSR_SINT15 },
	{ HV_X64_MSR_STIMER0_CONFIG, HV_X64_MSR_STIMER3_COUNT },
	{ MSR_VM_CR, MSR_VM_CR },
	{ MSR_AMD64_OSVW_ID_LENGTH, MSR_AMD64_OSVW_STATUS },
	{ MSR_AMD64_DE_CFG, MSR_AMD64_DE_CFG },
};

/*
 * Clocks and counters that go by themselves, what differs among hosts though the
 * guest can't tell or doesn't depend on it.
 */
static const struct msr_range unmeasured_msrs[] = {
	{ MSR_IA32_TSC, MSR_IA32_TSC },
	{ MSR_IA32_VMX_BASIC, MSR_IA32_VMX_VMFUNC },
	{ HV_X64_MSR_VP_RUNTIME, HV_X64_MSR_VP_RUNTIME },
	{ HV_X64_MSR_TIME_REF_COUNT, HV_X64_MSR_TIME_REF_COUNT },
	{ HV_X64_MSR_TSC_FREQUENCY, HV_X64_MSR_APIC_FREQUENCY },
};

#ifdef CONFIG_KVM_HYPERV
static u32 measured_hyperv_flags(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_hv *hv_vcpu = to_hv_vcpu(vcpu);

	if (!hv_vcpu)
		return 0;

	return KVM_MEASUREMENT_VCPU_HYPERV |
	       (hv_vcpu->enforce_cpuid ? KVM_MEASUREMENT_VCPU_HYPERV_ENFORCED : 0) |
	       (hv_vcpu->synic.active ? KVM_MEASUREMENT_VCPU_SYNIC : 0) |
	       (hv_vcpu->synic.dont_zero_synic_pages ? KVM_MEASUREMENT_VCPU_SYNIC2 : 0);
}
#else
static u32 measured_hyperv_flags(struct kvm_vcpu *vcpu)
{
	return 0;
}
#endif

static bool is_measured_msr(struct kvm_vcpu *vcpu, u32 msr)
{
	u32 hyperv = measured_hyperv_flags(vcpu);
	int i;

	for (i = 0; i < ARRAY_SIZE(unmeasured_msrs); i++) {
		if (msr >= unmeasured_msrs[i].first && msr <= unmeasured_msrs[i].last)
			return false;
	}

	switch (msr) {
	case MSR_IA32_ARCH_CAPABILITIES:
		return guest_cpuid_has(vcpu, X86_FEATURE_ARCH_CAPABILITIES);
	case MSR_IA32_PERF_CAPABILITIES:
		return guest_cpuid_has(vcpu, X86_FEATURE_PDCM);
	case HV_X64_MSR_SCONTROL ... HV_X64_MSR_SINT15:
		return hyperv & KVM_MEASUREMENT_VCPU_SYNIC;
	}

	/* To read these would make the vCPU one with Hyper-V's interface. */
	if (msr >= HV_X64_MSR_GUEST_OS_ID && msr <= HV_X64_MSR_TSC_INVARIANT_CONTROL)
		return hyperv;
	return true;
}

/* The first one that is at least @msr, or 0 */
static u32 next_msr(u32 msr)
{
	u32 next = kvm_next_msr_to_save(msr);
	int i;

	for (i = 0; i < ARRAY_SIZE(more_msrs); i++) {
		if (msr <= more_msrs[i].last) {
			msr = max(msr, more_msrs[i].first);
			return next ? min(next, msr) : msr;
		}
	}
	return next;
}

/*
 * The host's revision of the microcode is left out: it changes by updates, and isn't of
 * the VMM's choosing.
 */
static bool is_host_ucode_rev(u32 msr, u64 value)
{
	u64 host;

	return msr == MSR_IA32_UCODE_REV && !rdmsrl_safe(msr, &host) && value == host;
}

static int measure_msrs(struct kvm_measurement_stream *stream, struct kvm_vcpu *vcpu)
{
	struct kvm_measurement_msr *msrs;
	u32 n = 0, max = 0, msr;
	int r;

	for (msr = next_msr(1); msr; msr = next_msr(msr + 1))
		max++;

	msrs = kvcalloc(max, sizeof(*msrs), GFP_KERNEL_ACCOUNT);
	if (!msrs)
		return -ENOMEM;

	for (msr = next_msr(1); msr; msr = next_msr(msr + 1)) {
		u64 value;

		/* Those that can't be read can't have been set, either. */
		if (!is_measured_msr(vcpu, msr) ||
		    __kvm_get_msr(vcpu, msr, &value, true) || !value ||
		    is_host_ucode_rev(msr, value))
			continue;

		msrs[n].index = msr;
		msrs[n].value = value;
		n++;
	}

	r = stream_record(stream, KVM_MEASUREMENT_MSRS, msrs, n * sizeof(*msrs));
	kvfree(msrs);
	return r;
}

static int measure_vcpu_record(struct kvm_measurement_stream *stream,
			       struct kvm_vcpu *vcpu, u32 mp_state)
{
	struct kvm_measurement_vcpu record = {
		.index = vcpu->vcpu_idx,
		.id = vcpu->vcpu_id,
		.mp_state = mp_state,
		.flags = measured_hyperv_flags(vcpu),
		.xcr0 = vcpu->arch.xcr0,
	};

	if (vcpu->arch.virtual_tsc_khz != kvm_host_tsc_khz())
		record.tsc_khz = vcpu->arch.virtual_tsc_khz;

	if (vcpu->arch.pv_cpuid.enforce) {
		record.flags |= KVM_MEASUREMENT_VCPU_PV_ENFORCED;
		record.pv_features = vcpu->arch.pv_cpuid.features;
	}

	return stream_record(stream, KVM_MEASUREMENT_VCPU, &record, sizeof(record));
}

static int measure_loaded_vcpu(struct kvm_measurement_stream *stream,
			       struct kvm_vcpu *vcpu)
{
	struct kvm_measurement_buffer *buffer = stream->buffer;
	int r;

	/* It doesn't set what there isn't, i.e. another vCPU's PDPTRs would be left. */
	memset(&buffer->sregs, 0, sizeof(buffer->sregs));
	kvm_vcpu_ioctl_x86_get_sregs2(vcpu, &buffer->sregs);
	r = kvm_vcpu_ioctl_x86_get_debugregs(vcpu, &buffer->debugregs);
	if (r)
		return r;
	kvm_vcpu_ioctl_x86_get_vcpu_events(vcpu, &buffer->events);
	r = kvm_vcpu_ioctl_get_lapic(vcpu, &buffer->lapic);
	if (r)
		return r;

	return stream_record(stream, KVM_MEASUREMENT_REGS, &buffer->regs,
			     sizeof(buffer->regs)) ?:
	       stream_record(stream, KVM_MEASUREMENT_SREGS, &buffer->sregs,
			     sizeof(buffer->sregs)) ?:
	       stream_record(stream, KVM_MEASUREMENT_DEBUGREGS, &buffer->debugregs,
			     sizeof(buffer->debugregs)) ?:
	       stream_record(stream, KVM_MEASUREMENT_EVENTS, &buffer->events,
			     sizeof(buffer->events)) ?:
	       stream_record(stream, KVM_MEASUREMENT_LAPIC, &buffer->lapic,
			     sizeof(buffer->lapic)) ?:
	       measure_xsave(stream, vcpu) ?:
	       measure_msrs(stream, vcpu);
}

static int measure_locked_vcpu(struct kvm_measurement_stream *stream,
			       struct kvm_vcpu *vcpu)
{
	struct kvm_measurement_buffer *buffer = stream->buffer;
	struct kvm_mp_state mp_state;
	int r;

	r = kvm_arch_vcpu_ioctl_get_mpstate(vcpu, &mp_state) ?:
	    kvm_arch_vcpu_ioctl_get_regs(vcpu, &buffer->regs);
	if (r)
		return r;
	r = measure_vcpu_record(stream, vcpu, mp_state.mp_state) ?:
	    measure_cpuid(stream, vcpu);
	if (r)
		return r;

	vcpu_load(vcpu);
	r = measure_loaded_vcpu(stream, vcpu);
	vcpu_put(vcpu);
	return r;
}

static int measure_vcpus(struct kvm_measurement_stream *stream)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;
	int r;

	kvm_for_each_vcpu(i, vcpu, stream->kvm) {
		if (mutex_lock_killable(&vcpu->mutex))
			return -EINTR;
		r = measure_locked_vcpu(stream, vcpu);
		mutex_unlock(&vcpu->mutex);
		if (r)
			return r;
	}
	return 0;
}

static gfn_t page_gfn(const struct kvm_measurement_page_record *record)
{
	return gpa_to_gfn(record->page.gpa);
}

/*
 * All at once, and where they are: this is what takes time when a VM is finalized.
 * They are held only meanwhile: to find the next page with content may take long, and a
 * huge page that is held can't be split, e.g. because of a memory error.
 *
 * Return false if that's not possible, or if one of them has moved or is lost.
 */
static bool hash_pages_in_place(struct kvm_measurement_stream *stream)
{
	struct kvm_measurement_buffer *buffer = stream->buffer;
	struct folio *folios[SHA384_LANES];
	u8 *digests[SHA384_LANES];
	void *kaddrs[SHA384_LANES];
	bool done = false;
	int n;

	if (stream->nr_pages < SHA384_LANES)
		return false;

	for (n = 0; n < SHA384_LANES; n++) {
		kaddrs[n] = kvm_sealed_memfd_map_private(buffer->slots[n],
							 page_gfn(&buffer->pages[n]),
							 &folios[n]);
		if (IS_ERR(kaddrs[n]))
			break;
		digests[n] = buffer->pages[n].page.digest;
	}

	if (n == SHA384_LANES)
		done = sha384_4x((const u8 *const *)kaddrs, PAGE_SIZE, digests);

	while (n--) {
		if (!kvm_sealed_memfd_unmap_private(buffer->slots[n], kaddrs[n], folios[n]))
			done = false;
	}
	return done;
}

static int hash_page(struct kvm_measurement_stream *stream, int n)
{
	struct kvm_measurement_page_record *record = &stream->buffer->pages[n];
	u8 *content = stream->buffer->content;

	return kvm_sealed_memfd_read_private(stream->buffer->slots[n], page_gfn(record),
					     content, 0, PAGE_SIZE) ?:
	       crypto_shash_tfm_digest(stream->desc->tfm, content, PAGE_SIZE,
				       record->page.digest);
}

static int put_pages(struct kvm_measurement_stream *stream)
{
	int i, r = 0;

	if (fatal_signal_pending(current))
		return -EINTR;
	cond_resched();

	if (!hash_pages_in_place(stream)) {
		for (i = 0; i < stream->nr_pages && !r; i++)
			r = hash_page(stream, i);
	}
	if (!r)
		r = crypto_shash_update(stream->desc, (const u8 *)stream->buffer->pages,
					stream->nr_pages * sizeof(stream->buffer->pages[0]));
	stream->nr_pages = 0;
	return r;
}

/*
 * Is there anything in a private page?  -ENOENT if there's no such page.  That one of
 * zeroes is there already makes no difference to the guest.
 */
static int page_has_content(const struct kvm_memory_slot *slot, gfn_t gfn)
{
	struct folio *folio;
	void *kaddr;
	int r;

	do {
		kaddr = kvm_sealed_memfd_map_private(slot, gfn, &folio);
		if (IS_ERR(kaddr))
			return kaddr == ERR_PTR(-EAGAIN) ? 0 : PTR_ERR(kaddr);

		r = kvm_page_has_content_mc(kaddr);
		if (r < 0)
			kvm_sealed_memfd_report_error(kaddr);
	} while (!kvm_sealed_memfd_unmap_private(slot, kaddr, folio));

	return r;
}

static int measure_page(struct kvm_measurement_stream *stream,
			const struct kvm_memory_slot *slot, gfn_t gfn)
{
	struct kvm_measurement_page_record *record;
	int r;

	r = page_has_content(slot, gfn);
	if (r == -ENOENT)
		return 0;
	if (r <= 0)
		return r;

	stream->buffer->slots[stream->nr_pages] = slot;
	record = &stream->buffer->pages[stream->nr_pages++];
	record->head.type = KVM_MEASUREMENT_PAGE;
	record->head.len = sizeof(record->page);
	record->page.gpa = gfn_to_gpa(gfn);
	return stream->nr_pages == SHA384_LANES ? put_pages(stream) : 0;
}

static int measure_slot_pages(struct kvm_measurement_stream *stream,
			      const struct kvm_memory_slot *slot)
{
	gfn_t gfn = slot->base_gfn, end = gfn + slot->npages, next;
	int r;

	for (; gfn < end; gfn = next) {
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();

		next = min(end, gfn + KVM_MEASUREMENT_STRIDE);
		if (!kvm_slot_range_has_private(slot, gfn, next))
			continue;

		for (; gfn < next; gfn++) {
			r = measure_page(stream, slot, gfn);
			if (r)
				return r;
		}
	}
	return 0;
}

static int measure_pages(struct kvm_measurement_stream *stream)
{
	struct kvm_memslot_iter iter;
	int r;

	kvm_for_each_memslot_in_gfn_range(&iter, kvm_memslots(stream->kvm), 0, ~0ull) {
		r = measure_slot_pages(stream, iter.slot);
		if (r)
			return r;
	}
	return put_pages(stream);
}

static int measure(struct kvm_measurement_stream *stream, u8 *measurement)
{
	int r;

	r = crypto_shash_init(stream->desc) ?:
	    measure_start(stream) ?:
	    measure_vm(stream) ?:
	    measure_ranges(stream) ?:
	    measure_vcpus(stream);
	if (r)
		return r;

	/* What is to come has a fixed size, so say it before this takes long. */
	if (stream->log &&
	    stream->log_len + sizeof(struct kvm_measurement_record) > stream->log_size) {
		stream->log_len += sizeof(struct kvm_measurement_record);
		return -E2BIG;
	}

	return measure_pages(stream) ?:
	       stream_record(stream, KVM_MEASUREMENT_END, NULL, 0) ?:
	       crypto_shash_final(stream->desc, measurement);
}

static int measure_launch(struct kvm *kvm, struct kvm_x86_finalize_vm *arg,
			  u8 *measurement)
{
	struct kvm_measurement_stream stream = {
		.kvm = kvm,
		.log = u64_to_user_ptr(arg->log),
		.log_size = arg->log ? arg->log_size : 0,
	};
	struct crypto_shash *tfm;
	int r, idx;

	tfm = crypto_alloc_shash("sha384", 0, 0);
	if (IS_ERR(tfm))
		return PTR_ERR(tfm);

	r = -ENOMEM;
	stream.desc = kzalloc(sizeof(*stream.desc) + crypto_shash_descsize(tfm),
			      GFP_KERNEL_ACCOUNT);
	stream.buffer = kvzalloc(sizeof(*stream.buffer), GFP_KERNEL_ACCOUNT);
	if (!stream.desc || !stream.buffer)
		goto free;

	stream.desc->tfm = tfm;
	idx = srcu_read_lock(&kvm->srcu);
	r = measure(&stream, measurement);
	srcu_read_unlock(&kvm->srcu, idx);
	if (arg->log)
		arg->log_size = stream.log_len;

free:
	/* Both have seen what is private. */
	kvfree_sensitive(stream.buffer, sizeof(*stream.buffer));
	kfree_sensitive(stream.desc);
	crypto_free_shash(tfm);
	return r;
}

#ifdef CONFIG_KEYS
/* The payload of a key that userspace can't read.  key->sem is held. */
static int sealing_key_payload(const struct key *key, const u8 **data, unsigned int *len)
{
	const void *payload = dereference_key_locked(key);

	if (!payload)
		return -EKEYREVOKED;

	if (!strcmp(key->type->name, "logon")) {
		const struct user_key_payload *user = payload;

		*data = user->data;
		*len = user->datalen;
	} else if (!strcmp(key->type->name, "trusted")) {
		const struct trusted_key_payload *trusted = payload;

		*data = trusted->key;
		*len = trusted->key_len;
	} else if (!strcmp(key->type->name, "encrypted")) {
		const struct encrypted_key_payload *encrypted = payload;

		*data = encrypted->decrypted_data;
		*len = encrypted->decrypted_datalen;
	} else {
		return -EKEYREJECTED;
	}

	return *len < KVM_MIN_SEALING_KEY ? -EKEYREJECTED : 0;
}

static int hkdf_extract(struct crypto_shash *tfm, struct key *key, u8 *prk)
{
	static const char salt[] = "guestseal";
	const u8 *data;
	unsigned int len;
	int r;

	r = crypto_shash_setkey(tfm, salt, strlen(salt));
	if (r)
		return r;

	down_read(&key->sem);
	r = sealing_key_payload(key, &data, &len) ?:
	    crypto_shash_tfm_digest(tfm, data, len, prk);
	up_read(&key->sem);
	return r;
}

/* Of one block, as the key is as long as that */
static int hkdf_expand(struct crypto_shash *tfm, const char *type, const u8 *measurement,
		       const u8 *prk, u8 *okm)
{
	static const char label[] = "KVM sealing key";
	static const u8 counter = 1;
	SHASH_DESC_ON_STACK(desc, tfm);
	int r;

	desc->tfm = tfm;
	r = crypto_shash_setkey(tfm, prk, KVM_SEALING_KEY_SIZE) ?:
	    crypto_shash_init(desc) ?:
	    /* Both with the zero at their end */
	    crypto_shash_update(desc, label, sizeof(label)) ?:
	    crypto_shash_update(desc, type, strlen(type) + 1) ?:
	    crypto_shash_update(desc, measurement, KVM_MEASUREMENT_SIZE) ?:
	    crypto_shash_finup(desc, &counter, sizeof(counter), okm);
	shash_desc_zero(desc);
	return r;
}

static int derive_sealing_key(struct kvm_launch *launch, key_serial_t serial)
{
	u8 prk[KVM_SEALING_KEY_SIZE];
	struct crypto_shash *tfm;
	struct key *key;
	key_ref_t ref;
	int r;

	ref = lookup_user_key(serial, 0, KEY_NEED_SEARCH);
	if (IS_ERR(ref))
		return PTR_ERR(ref);
	key = key_ref_to_ptr(ref);

	tfm = crypto_alloc_shash("hmac(sha384)", 0, 0);
	if (IS_ERR(tfm)) {
		r = PTR_ERR(tfm);
		goto put_key;
	}

	r = hkdf_extract(tfm, key, prk) ?:
	    hkdf_expand(tfm, key->type->name, launch->measurement, prk, launch->key);
	launch->has_key = !r;
	launch->key_is_there = !r;

	memzero_explicit(prk, sizeof(prk));
	crypto_free_shash(tfm);
put_key:
	key_put(key);
	return r;
}
#else
static int derive_sealing_key(struct kvm_launch *launch, key_serial_t serial)
{
	return -EOPNOTSUPP;
}
#endif /* CONFIG_KEYS */

/**
 * kvm_measure_launch - measure a VM and derive its sealing key
 * @kvm: a protected VM that is complete
 * @arg: of KVM_X86_FINALIZE_VM, gets the measurement and the size of the log
 *
 * If it fails, nothing has changed.  If not, the guest can have both, so the VM has
 * to become final before anything else can happen to it.
 *
 * Context: Process context, may sleep, finalize_lock held for write, after
 *	kvm_sealed_memfd_require_consent().  Takes vcpu->mutex of one vCPU after the other.
 * Return: 0; -EINVAL if the VM has memory that can't be measured; -E2BIG if there's
 *	not enough room for the log, of which @arg tells the size; -EHWPOISON or
 *	-EFAULT if memory is lost, -EFAULT also for the log; -ENOMEM; -EINTR if
 *	there's a fatal signal; an error of lookup_user_key(), or -EKEYREVOKED, or
 *	-EKEYREJECTED if the key isn't one that userspace can't read, or is too
 *	short; -EOPNOTSUPP if there are no keys.
 */
int kvm_measure_launch(struct kvm *kvm, struct kvm_x86_finalize_vm *arg)
{
	struct kvm_launch *launch;
	int r;

	lockdep_assert_held_write(&kvm->arch.finalize_lock);

	launch = kzalloc(sizeof(*launch), GFP_KERNEL_ACCOUNT);
	if (!launch)
		return -ENOMEM;
	spin_lock_init(&launch->key_lock);

	r = measure_launch(kvm, arg, launch->measurement);
	if (!r && arg->key)
		r = derive_sealing_key(launch, arg->key);
	if (r) {
		kfree_sensitive(launch);
		return r;
	}

	memcpy(arg->measurement, launch->measurement, sizeof(arg->measurement));
	/* Pairs with kvm_vm_launch(). */
	smp_store_release(&kvm->arch.launch, launch);
	return 0;
}

/* NULL if the VM isn't final. */
static struct kvm_launch *kvm_vm_launch(struct kvm *kvm)
{
	/* Pairs with kvm_measure_launch(). */
	return smp_load_acquire(&kvm->arch.launch);
}

/**
 * kvm_get_measurement - tell userspace the measurement of a VM
 * @kvm: the VM
 * @argp: of KVM_X86_GET_MEASUREMENT
 *
 * Context: Process context, may sleep.
 * Return: 0, -EINVAL if the VM isn't protected, or not final, -EFAULT.
 */
int kvm_get_measurement(struct kvm *kvm, struct kvm_x86_measurement __user *argp)
{
	const struct kvm_launch *launch = kvm_vm_launch(kvm);
	struct kvm_x86_measurement arg = { .version = KVM_MEASUREMENT_VERSION };

	if (!launch)
		return -EINVAL;

	arg.flags = launch->has_key ? KVM_X86_MEASUREMENT_HAS_KEY : 0;
	memcpy(arg.measurement, launch->measurement, sizeof(arg.measurement));
	return copy_to_user(argp, &arg, sizeof(arg)) ? -EFAULT : 0;
}

/**
 * kvm_measurement_get_msr - let the guest read its measurement or sealing key
 * @vcpu: the vCPU
 * @msr_info: one of the MSRs of both, gets the value
 *
 * Context: Any.
 * Return: 0, or 1 if there's no such MSR: for the host there is none, nor are there
 *	any in VMs that aren't protected.
 */
int kvm_measurement_get_msr(struct kvm_vcpu *vcpu, struct msr_data *msr_info)
{
	struct kvm_launch *launch = kvm_vm_launch(vcpu->kvm);
	u32 i, msr = msr_info->index;
	bool is_there;

	if (!launch || msr_info->host_initiated)
		return 1;

	if (!kvm_msr_is_secret(msr)) {
		i = msr - MSR_KVM_MEASUREMENT0;
		msr_info->data = get_unaligned_le64(launch->measurement + i * sizeof(u64));
		return 0;
	}

	i = msr - MSR_KVM_SEALING_KEY0;
	spin_lock(&launch->key_lock);
	is_there = launch->key_is_there;
	if (is_there)
		msr_info->data = get_unaligned_le64(launch->key + i * sizeof(u64));
	spin_unlock(&launch->key_lock);
	return !is_there;
}

/**
 * kvm_measurement_set_msr - let the guest have its sealing key forgotten
 * @vcpu: the vCPU
 * @msr_info: one of the MSRs of measurement and sealing key, with the value
 *
 * When it returns no vCPU can read the key any more, nor is it in KVM's memory.
 *
 * Context: Any.
 * Return: 0, or 1 if it isn't 0 that is written to the first MSR of a key that is there.
 */
int kvm_measurement_set_msr(struct kvm_vcpu *vcpu, const struct msr_data *msr_info)
{
	struct kvm_launch *launch = kvm_vm_launch(vcpu->kvm);
	bool was_there;

	if (!launch || msr_info->host_initiated ||
	    msr_info->index != MSR_KVM_SEALING_KEY0 || msr_info->data)
		return 1;

	spin_lock(&launch->key_lock);
	was_there = launch->key_is_there;
	launch->key_is_there = false;
	memzero_explicit(launch->key, sizeof(launch->key));
	spin_unlock(&launch->key_lock);
	return !was_there;
}

/**
 * kvm_measurement_destroy_vm - forget the measurement and the sealing key
 * @kvm: the VM, without any user left
 *
 * Context: Process context.
 */
void kvm_measurement_destroy_vm(struct kvm *kvm)
{
	kfree_sensitive(kvm->arch.launch);
}
