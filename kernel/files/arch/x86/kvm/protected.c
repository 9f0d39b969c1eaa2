// SPDX-License-Identifier: GPL-2.0
/*
 * Protected VMs: safe from host userspace, their VMM included.  The kernel is
 * trusted.
 *
 * The VMM builds a VM of this type as any other, then finalizes it.  From then on
 * it's a default-deny list that says what it may do, see
 * Documentation/virt/kvm/x86/protected-vm.rst.
 *
 * Lock order: kvm->arch.finalize_lock is outermost, before vcpu->mutex and
 * kvm->lock.  What may change the VM before it's final holds it for read.
 */
#include <linux/kvm_host.h>
#include <linux/kvm_sealed_memfd.h>
#include <linux/mmu_context.h>
#include <linux/perf_event.h>
#include <linux/uaccess.h>
#include <kvm/iodev.h>

#include "hyperv.h"
#include "ioapic.h"
#include "irq.h"
#include "i8254.h"
#include "lapic.h"
#include "measurement.h"
#include "mmu.h"
#include "protected.h"
#include "smm.h"

/*
 * What userspace may call, before and after the VM is final.  What is not here is
 * refused: whoever adds an ioctl, or wants one of those that are left out, has to
 * think about what it tells of the guest and what it does to it.
 */
#define BEFORE	BIT(0)
#define AFTER	BIT(1)
#define ALWAYS	(BEFORE | AFTER)

struct allowed_ioctl {
	unsigned int ioctl;
	unsigned int when;
};

static const struct allowed_ioctl allowed_vm_ioctls[] = {
	{ KVM_CHECK_EXTENSION,		ALWAYS },

	/* Takes finalize_lock itself. */
	{ KVM_X86_FINALIZE_VM,		AFTER },

	/* Of the VM itself, which the guest knows, too */
	{ KVM_X86_GET_MEASUREMENT,	ALWAYS },

	/* How the VM is made */
	{ KVM_ENABLE_CAP,		BEFORE },
	{ KVM_CREATE_VCPU,		BEFORE },
	{ KVM_CREATE_IRQCHIP,		BEFORE },
	{ KVM_CREATE_PIT,		BEFORE },
	{ KVM_CREATE_PIT2,		BEFORE },
	{ KVM_REINJECT_CONTROL,		BEFORE },
	{ KVM_GET_IRQCHIP,		BEFORE },
	{ KVM_SET_IRQCHIP,		BEFORE },
	{ KVM_GET_PIT,			BEFORE },
	{ KVM_SET_PIT,			BEFORE },
	{ KVM_GET_PIT2,			BEFORE },
	{ KVM_SET_PIT2,			BEFORE },
	{ KVM_SET_TSS_ADDR,		BEFORE },
	{ KVM_SET_IDENTITY_MAP_ADDR,	BEFORE },
	{ KVM_SET_CLOCK,		BEFORE },
	{ KVM_SET_TSC_KHZ,		BEFORE },
	{ KVM_SET_USER_MEMORY_REGION,	BEFORE },
	{ KVM_SET_USER_MEMORY_REGION2,	BEFORE },
	{ KVM_SPLIT_MEMORY_REGION,	BEFORE },
	{ KVM_MERGE_MEMORY_REGIONS,	BEFORE },

	/* Devices; which interrupts they may raise is checked on delivery. */
	{ KVM_IRQ_LINE,			ALWAYS },
	{ KVM_IRQ_LINE_STATUS,		ALWAYS },
	{ KVM_SIGNAL_MSI,		ALWAYS },
	{ KVM_IRQFD,			ALWAYS },
	{ KVM_SET_GSI_ROUTING,		ALWAYS },
	{ KVM_IOEVENTFD,		ALWAYS },
	{ KVM_REGISTER_COALESCED_MMIO,	ALWAYS },
	{ KVM_UNREGISTER_COALESCED_MMIO, ALWAYS },
	/* There's none but VFIO's. */
	{ KVM_CREATE_DEVICE,		ALWAYS },

	/* The host's own clock */
	{ KVM_GET_CLOCK,		ALWAYS },
	{ KVM_GET_TSC_KHZ,		ALWAYS },
};

static const struct allowed_ioctl allowed_vcpu_ioctls[] = {
	{ KVM_RUN,			AFTER },

	/* How the vCPU starts */
	{ KVM_ENABLE_CAP,		BEFORE },
	{ KVM_SET_CPUID,		BEFORE },
	{ KVM_SET_CPUID2,		BEFORE },
	{ KVM_GET_REGS,			BEFORE },
	{ KVM_SET_REGS,			BEFORE },
	{ KVM_GET_SREGS,		BEFORE },
	{ KVM_SET_SREGS,		BEFORE },
	{ KVM_GET_SREGS2,		BEFORE },
	{ KVM_SET_SREGS2,		BEFORE },
	{ KVM_GET_FPU,			BEFORE },
	{ KVM_SET_FPU,			BEFORE },
	{ KVM_GET_XSAVE,		BEFORE },
	{ KVM_GET_XSAVE2,		BEFORE },
	{ KVM_SET_XSAVE,		BEFORE },
	{ KVM_GET_XCRS,			BEFORE },
	{ KVM_SET_XCRS,			BEFORE },
	{ KVM_GET_DEBUGREGS,		BEFORE },
	{ KVM_SET_DEBUGREGS,		BEFORE },
	{ KVM_GET_MSRS,			BEFORE },
	{ KVM_SET_MSRS,			BEFORE },
	{ KVM_GET_LAPIC,		BEFORE },
	{ KVM_SET_LAPIC,		BEFORE },
	{ KVM_GET_VCPU_EVENTS,		BEFORE },
	{ KVM_SET_VCPU_EVENTS,		BEFORE },
	{ KVM_SET_MP_STATE,		BEFORE },
	{ KVM_X86_SETUP_MCE,		BEFORE },
	{ KVM_SET_TSC_KHZ,		BEFORE },
	{ KVM_SET_DEVICE_ATTR,		BEFORE },
	/* The guest changes these: OSXSAVE and the like, and the TSC's offset. */
	{ KVM_GET_CPUID2,		BEFORE },
	{ KVM_GET_DEVICE_ATTR,		BEFORE },

	/* What userspace has to know for running it, or knows anyway */
	{ KVM_GET_MP_STATE,		ALWAYS },
	{ KVM_GET_SUPPORTED_HV_CPUID,	ALWAYS },
	{ KVM_GET_TSC_KHZ,		ALWAYS },
	{ KVM_HAS_DEVICE_ATTR,		ALWAYS },
	{ KVM_SET_SIGNAL_MASK,		ALWAYS },
	{ KVM_PRE_FAULT_MEMORY,		ALWAYS },
};

static const struct allowed_ioctl allowed_device_ioctls[] = {
	{ KVM_HAS_DEVICE_ATTR,		ALWAYS },
	{ KVM_GET_DEVICE_ATTR,		ALWAYS },
	{ KVM_SET_DEVICE_ATTR,		ALWAYS },
};

static bool is_allowed(const struct kvm *kvm, enum kvm_ioctl_target target, unsigned int ioctl)
{
	unsigned int i, nr, when = kvm_is_finalized(kvm) ? AFTER : BEFORE;
	const struct allowed_ioctl *allowed;

	switch (target) {
	case KVM_IOCTL_VM:
		allowed = allowed_vm_ioctls;
		nr = ARRAY_SIZE(allowed_vm_ioctls);
		break;
	case KVM_IOCTL_VCPU:
		allowed = allowed_vcpu_ioctls;
		nr = ARRAY_SIZE(allowed_vcpu_ioctls);
		break;
	case KVM_IOCTL_DEVICE:
		allowed = allowed_device_ioctls;
		nr = ARRAY_SIZE(allowed_device_ioctls);
		break;
	default:
		return false;
	}

	for (i = 0; i < nr; i++) {
		if (allowed[i].ioctl == ioctl)
			return allowed[i].when & when;
	}

	return false;
}

/**
 * kvm_arch_begin_ioctl - see if userspace may do this to the VM
 * @kvm: the VM
 * @target: what the ioctl is called for
 * @ioctl: its number, a compat one if it has one of its own
 *
 * While what is begun goes on, a VM that isn't final stays so.
 *
 * Context: Process context, takes finalize_lock if it's a protected VM.
 * Return: What to give to kvm_arch_end_ioctl(), -EPERM, or -EINTR if there's a fatal
 *	signal.
 */
int kvm_arch_begin_ioctl(struct kvm *kvm, enum kvm_ioctl_target target, unsigned int ioctl)
{
	bool locked = false;

	if (!kvm_is_protected(kvm))
		return 0;

	if (!kvm_is_finalized(kvm) &&
	    !(target == KVM_IOCTL_VM && ioctl == KVM_X86_FINALIZE_VM)) {
		if (down_read_killable(&kvm->arch.finalize_lock))
			return -EINTR;

		locked = !kvm_is_finalized(kvm);
		if (!locked)
			up_read(&kvm->arch.finalize_lock);

		if (!is_allowed(kvm, target, ioctl)) {
			kvm_arch_end_ioctl(kvm, locked);
			return -EPERM;
		}
		return locked;
	}

	if (kvm_is_finalized(kvm) && !is_allowed(kvm, target, ioctl))
		return -EPERM;

	return 0;
}

/**
 * kvm_arch_end_ioctl - finish what kvm_arch_begin_ioctl() has begun
 * @kvm: the VM
 * @begun: what it returned
 *
 * Context: Process context.
 */
void kvm_arch_end_ioctl(struct kvm *kvm, int begun)
{
	if (begun)
		up_read(&kvm->arch.finalize_lock);
}

/**
 * kvm_arch_allows_cap - see if the VM may have a capability enabled
 * @kvm: the VM, which isn't final yet if it's protected
 * @cap: the capability, to be enabled for the VM
 *
 * Return: false if it shows more of the guest to userspace, or lets userspace do
 *	more to it, than a protected VM allows.
 */
bool kvm_arch_allows_cap(struct kvm *kvm, const struct kvm_enable_cap *cap)
{
	if (!kvm_is_protected(kvm))
		return true;

	switch (cap->cap) {
	case KVM_CAP_X86_SHARED_GPA_BIT:
	case KVM_CAP_SPLIT_IRQCHIP:
	case KVM_CAP_X2APIC_API:
	case KVM_CAP_MAX_VCPU_ID:
	case KVM_CAP_DISABLE_QUIRKS:
	case KVM_CAP_DISABLE_QUIRKS2:
	case KVM_CAP_PMU_CAPABILITY:
	case KVM_CAP_MSR_PLATFORM_INFO:
	/* These exits are how the guest asks for a conversion. */
	case KVM_CAP_EXIT_HYPERCALL:
	/* Fewer exits, and how long to wait for the next one */
	case KVM_CAP_X86_DISABLE_EXITS:
	case KVM_CAP_HALT_POLL:
	/* About ioctls that are refused once the VM is final. */
	case KVM_CAP_EXCEPTION_PAYLOAD:
	case KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
		return true;
	default:
		return false;
	}
}

/**
 * kvm_protected_allows_vcpu_cap - the same for a vCPU's capabilities
 * @kvm: the VM
 * @cap: the capability, to be enabled for one of its vCPUs
 *
 * Return: false if a protected VM doesn't allow it.
 */
bool kvm_protected_allows_vcpu_cap(struct kvm *kvm, const struct kvm_enable_cap *cap)
{
	if (!kvm_is_protected(kvm))
		return true;

	switch (cap->cap) {
	case KVM_CAP_HYPERV_SYNIC:
	case KVM_CAP_HYPERV_SYNIC2:
	case KVM_CAP_HYPERV_ENFORCE_CPUID:
	case KVM_CAP_ENFORCE_PV_FEATURE_CPUID:
		return true;
	default:
		return false;
	}
}

/**
 * kvm_arch_has_extension - see if KVM_CHECK_EXTENSION has to say that it is missing
 * @kvm: the VM
 * @ext: the extension
 *
 * Return: false if all that it is about is refused in this VM.
 */
bool kvm_arch_has_extension(struct kvm *kvm, long ext)
{
	if (!kvm_is_protected(kvm))
		return true;

	switch (ext) {
	case KVM_CAP_BINARY_STATS_FD:
	case KVM_CAP_DIRTY_LOG_RING:
	case KVM_CAP_DIRTY_LOG_RING_ACQ_REL:
	case KVM_CAP_EXIT_ON_EMULATION_FAILURE:
	case KVM_CAP_HYPERV_DIRECT_TLBFLUSH:
	case KVM_CAP_HYPERV_ENLIGHTENED_VMCS:
	case KVM_CAP_HYPERV_EVENTFD:
	case KVM_CAP_KVMCLOCK_CTRL:
	case KVM_CAP_NESTED_STATE:
	case KVM_CAP_PMU_EVENT_FILTER:
	case KVM_CAP_SET_GUEST_DEBUG:
	case KVM_CAP_SGX_ATTRIBUTE:
	case KVM_CAP_SYNC_REGS:
	case KVM_CAP_USER_NMI:
	case KVM_CAP_VAPIC:
	case KVM_CAP_VM_COPY_ENC_CONTEXT_FROM:
	case KVM_CAP_VM_DISABLE_NX_HUGE_PAGES:
	case KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM:
	case KVM_CAP_X86_APIC_BUS_CYCLES_NS:
	case KVM_CAP_X86_BUS_LOCK_EXIT:
	case KVM_CAP_X86_MSR_FILTER:
	case KVM_CAP_X86_NOTIFY_VMEXIT:
	case KVM_CAP_X86_SMM:
	case KVM_CAP_X86_TRIPLE_FAULT_EVENT:
	case KVM_CAP_X86_USER_SPACE_MSR:
	case KVM_CAP_XEN_HVM:
		return false;
	default:
		return true;
	}
}

/* Nothing is on its way to the guest but what the VM is measured with. */
static bool is_ready_to_start(struct kvm_vcpu *vcpu)
{
	unsigned int mp_state = kvm_vcpu_is_bsp(vcpu) ? KVM_MP_STATE_RUNNABLE :
							KVM_MP_STATE_UNINITIALIZED;

	return lapic_in_kernel(vcpu) && !vcpu->arch.apic->pending_events &&
	       vcpu->arch.mp_state == mp_state &&
	       !vcpu->guest_debug && !is_smm(vcpu) &&
	       !kvm_is_exception_pending(vcpu) && !vcpu->arch.exception.injected &&
	       !vcpu->arch.interrupt.injected && !vcpu->arch.nmi_injected &&
	       !vcpu->arch.nmi_pending && !atomic_read(&vcpu->arch.nmi_queued) &&
#ifdef CONFIG_KVM_SMM
	       !vcpu->arch.smi_pending && !kvm_test_request(KVM_REQ_SMI, vcpu) &&
#endif
	       !kvm_test_request(KVM_REQ_TRIPLE_FAULT, vcpu);
}

static bool has_dirty_logging(struct kvm *kvm)
{
	struct kvm_memory_slot *slot;
	int bkt;

	lockdep_assert_held(&kvm->slots_lock);

	kvm_for_each_memslot(slot, bkt, kvm_memslots(kvm)) {
		if (slot->flags & KVM_MEM_LOG_DIRTY_PAGES)
			return true;
	}
	return false;
}

/*
 * The interrupt controllers and the PIT start as after a reset, whatever userspace has
 * made of them: no vector or delivery mode is in them but what the guest writes there,
 * nothing is under way, and there's nothing of them to be measured.  The PICs don't even
 * raise anything before they are initialized.
 *
 * Userspace's lines and the timers don't stop while the VM is being finalized.  So what
 * may raise an interrupt comes before what takes it, and at last an NMI or INIT that
 * has got through since is_ready_to_start() looked is dropped.
 */
static void reset_interrupt_controllers(struct kvm *kvm)
{
	struct kvm_ioapic_state ioapic = { .base_address = IOAPIC_DEFAULT_BASE_ADDRESS };
	struct kvm_pic *pic = kvm->arch.vpic;
	struct kvm_pit *pit = kvm->arch.vpit;
	struct kvm_vcpu *vcpu;
	unsigned long i;

	if (pit) {
		mutex_lock(&pit->pit_state.lock);
		memset(pit->pit_state.channels, 0, sizeof(pit->pit_state.channels));
		kvm_pit_reset(pit);
		mutex_unlock(&pit->pit_state.lock);
	}

	if (irqchip_kernel(kvm)) {
		for (i = 0; i < ARRAY_SIZE(ioapic.redirtbl); i++)
			ioapic.redirtbl[i].fields.mask = 1;
		kvm_set_ioapic(kvm, &ioapic);

		spin_lock(&pic->lock);
		for (i = 0; i < ARRAY_SIZE(pic->pics); i++) {
			memset(&pic->pics[i], 0, offsetof(struct kvm_kpic_state, elcr_mask));
			pic->pics[i].imr = 0xff;
		}
		spin_unlock(&pic->lock);
		kvm_pic_update_irq(pic);
	}

	kvm_for_each_vcpu(i, vcpu, kvm) {
		vcpu_load(vcpu);
		kvm_lapic_reset(vcpu, false);
		vcpu_put(vcpu);

		atomic_set(&vcpu->arch.nmi_queued, 0);
		vcpu->arch.apic->pending_events = 0;
	}
}

/*
 * Where KVM is to read and write guest memory, on its own, is for the guest to say: not
 * what the VMM has put there.
 */
static bool kvm_is_accessing_memory(struct kvm *kvm)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		if (vcpu->arch.time & KVM_MSR_ENABLED ||
		    vcpu->arch.st.msr_val & KVM_MSR_ENABLED ||
		    vcpu->arch.apf.msr_en_val ||
		    vcpu->arch.pv_eoi.msr_val & KVM_MSR_ENABLED ||
		    kvm_hv_is_accessing_memory(vcpu))
			return true;
	}

	return false;
}

static int hide_from_perf(void)
{
	int r = perf_hide_guest();

	/* The guest's virtual PMU is counters of the CPU. */
	if (!r)
		x86_perf_forbid_rdpmc();
	return r;
}

static void unhide_from_perf(void)
{
	x86_perf_allow_rdpmc();
	perf_unhide_guest();
}

static int __kvm_finalize_vm(struct kvm *kvm, struct kvm_x86_finalize_vm *arg)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;
	int r;

	if (kvm->arch.finalized)
		return -EBUSY;

	if (!irqchip_in_kernel(kvm))
		return -ENXIO;

	if (!kvm_gfn_direct_bits(kvm) || !kvm_get_vcpu_by_id(kvm, kvm->arch.bsp_vcpu_id))
		return -EINVAL;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		if (!is_ready_to_start(vcpu))
			return -EINVAL;
	}

	if (kvm_is_accessing_memory(kvm))
		return -EINVAL;

	/* -EBUSY says that the VM is final. */
	if (hide_from_perf())
		return -EAGAIN;

	mutex_lock(&kvm->slots_lock);
	r = has_dirty_logging(kvm) ? -EINVAL : kvm_sealed_memfd_require_consent(kvm);
	mutex_unlock(&kvm->slots_lock);
	if (r)
		goto err_perf;

	reset_interrupt_controllers(kvm);

	/* From here on private memory keeps its content. */
	r = kvm_measure_launch(kvm, arg);
	if (r)
		goto err_consent;

	WRITE_ONCE(kvm->arch.finalized, true);
	return 0;

err_consent:
	mutex_lock(&kvm->slots_lock);
	kvm_sealed_memfd_waive_consent(kvm);
	mutex_unlock(&kvm->slots_lock);
err_perf:
	unhide_from_perf();
	return r;
}

/**
 * kvm_protected_destroy_vm - undo what finalizing the VM has done to the host
 * @kvm: the VM, all of whose vCPUs are gone
 */
void kvm_protected_destroy_vm(struct kvm *kvm)
{
	if (kvm_is_finalized(kvm))
		unhide_from_perf();
}

/**
 * kvm_protected_mmio - access a device by an address without the shared GPA bit
 * @vcpu: the vCPU
 * @gpa: the address
 * @len: number of bytes
 * @data: from or to where
 * @write: does the vCPU write?
 *
 * It's for the interrupt controllers that are in the kernel only, which guests expect
 * to be private.  There may be others on the bus that were put there by userspace and
 * show it what is written.
 *
 * Context: Process context, kvm->srcu held.
 * Return: 0, or -EOPNOTSUPP if it isn't theirs.
 */
int kvm_protected_mmio(struct kvm_vcpu *vcpu, gpa_t gpa, int len, void *data, bool write)
{
	struct kvm_io_device *devs[] = {
		&vcpu->arch.apic->dev,
		irqchip_kernel(vcpu->kvm) ? &vcpu->kvm->arch.vioapic->dev : NULL,
	};
	int i, n, r = -EOPNOTSUPP;

	for (; len; len -= n, gpa += n, data += n) {
		n = min(len, 8);
		for (i = 0; i < ARRAY_SIZE(devs) && devs[i]; i++) {
			r = write ? kvm_iodevice_write(vcpu, devs[i], gpa, n, data) :
				    kvm_iodevice_read(vcpu, devs[i], gpa, n, data);
			if (!r)
				break;
		}
		if (r)
			return r;
	}

	return r;
}

/**
 * kvm_protected_pio - access the PICs, which are in the kernel
 * @vcpu: the vCPU
 * @port: the port
 * @len: number of bytes
 * @data: from or to where
 * @write: does the vCPU write?
 *
 * It's for them before it's for anybody else on the bus.  If userspace had an eventfd or a
 * coalesced zone take some of what the guest writes, the others would mean something
 * else, e.g. interrupts of vectors that are exceptions.
 *
 * Context: Process context, kvm->srcu held.
 * Return: 0, or -EOPNOTSUPP if it isn't theirs.
 */
int kvm_protected_pio(struct kvm_vcpu *vcpu, u16 port, int len, void *data, bool write)
{
	struct kvm_pic *pic = vcpu->kvm->arch.vpic;
	struct kvm_io_device *dev;

	if (!irqchip_kernel(vcpu->kvm) || len != 1)
		return -EOPNOTSUPP;

	switch (port) {
	case 0x20 ... 0x21:
		dev = &pic->dev_master;
		break;
	case 0xa0 ... 0xa1:
		dev = &pic->dev_slave;
		break;
	case 0x4d0 ... 0x4d1:
		dev = &pic->dev_elcr;
		break;
	default:
		return -EOPNOTSUPP;
	}

	return write ? kvm_iodevice_write(vcpu, dev, port, len, data) :
		       kvm_iodevice_read(vcpu, dev, port, len, data);
}

/**
 * kvm_finalize_vm - let nobody but the guest change a protected VM from now on
 * @kvm: the VM
 * @argp: of KVM_X86_FINALIZE_VM
 *
 * Context: Process context, may sleep, takes finalize_lock.
 * Return: 0, -EINVAL if the VM isn't protected, has no shared GPA bit or vCPU 0, is
 *	dirty logged, has MSRs set by which KVM accesses memory, or if another vCPU
 *	than that could run or a vCPU has an event pending, -ENXIO if it has no local
 *	APICs in the kernel, -EBUSY if it is final already, -EAGAIN if perf events
 *	observe guests, -ENOMEM, -EINTR if there's a fatal signal, an error of
 *	kvm_measure_launch(), -EFAULT.
 */
int kvm_finalize_vm(struct kvm *kvm, struct kvm_x86_finalize_vm __user *argp)
{
	struct kvm_x86_finalize_vm arg;
	int r;

	if (!kvm_is_protected(kvm))
		return -EINVAL;
	if (copy_from_user(&arg, argp, sizeof(arg)))
		return -EFAULT;
	if (arg.flags || arg.padding || arg.key < 0 || (arg.log_size && !arg.log) ||
	    memchr_inv(arg.reserved, 0, sizeof(arg.reserved)))
		return -EINVAL;

	if (down_write_killable(&kvm->arch.finalize_lock))
		return -EINTR;
	r = __kvm_finalize_vm(kvm, &arg);
	up_write(&kvm->arch.finalize_lock);
	if (r && r != -E2BIG)
		return r;

	return copy_to_user(argp, &arg, sizeof(arg)) ? -EFAULT : r;
}
