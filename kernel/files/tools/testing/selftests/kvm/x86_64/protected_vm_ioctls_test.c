// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected VMs: what userspace may call for them, and for their vCPUs and devices,
 * before and after they are final.
 *
 * Every ioctl that the headers know has a line here.  What has none is refused.
 */
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include "protected_vm.h"

#define NEVER	0
#define BEFORE	BIT(0)
#define AFTER	BIT(1)
#define ALWAYS	(BEFORE | AFTER)

static const struct {
	unsigned long nr;
	const char *name;
	/* As an ioctl of the VM, and of a vCPU */
	unsigned int vm, vcpu;
} ioctls[] = {
#define CLASS(_name, _vm, _vcpu) { _name, #_name, _vm, _vcpu }
	/* Of /dev/kvm */
	CLASS(KVM_GET_API_VERSION,		NEVER,	NEVER),
	CLASS(KVM_CREATE_VM,			NEVER,	NEVER),
	CLASS(KVM_GET_MSR_INDEX_LIST,		NEVER,	NEVER),
	CLASS(KVM_GET_MSR_FEATURE_INDEX_LIST,	NEVER,	NEVER),
	CLASS(KVM_GET_VCPU_MMAP_SIZE,		NEVER,	NEVER),
	CLASS(KVM_GET_SUPPORTED_CPUID,		NEVER,	NEVER),
	CLASS(KVM_GET_EMULATED_CPUID,		NEVER,	NEVER),
	CLASS(KVM_X86_GET_MCE_CAP_SUPPORTED,	NEVER,	NEVER),
	CLASS(KVM_CHECK_EXTENSION,		ALWAYS,	NEVER),

	/* Of a VM */
	CLASS(KVM_X86_FINALIZE_VM,		ALWAYS,	NEVER),
	CLASS(KVM_X86_GET_MEASUREMENT,		ALWAYS,	NEVER),
	CLASS(KVM_CREATE_VCPU,			BEFORE,	NEVER),
	CLASS(KVM_CREATE_IRQCHIP,		BEFORE,	NEVER),
	CLASS(KVM_CREATE_PIT,			BEFORE,	NEVER),
	CLASS(KVM_CREATE_PIT2,			BEFORE,	NEVER),
	CLASS(KVM_REINJECT_CONTROL,		BEFORE,	NEVER),
	CLASS(KVM_GET_IRQCHIP,			BEFORE,	NEVER),
	CLASS(KVM_SET_IRQCHIP,			BEFORE,	NEVER),
	CLASS(KVM_GET_PIT,			BEFORE,	NEVER),
	CLASS(KVM_SET_PIT,			BEFORE,	NEVER),
	CLASS(KVM_GET_PIT2,			BEFORE,	NEVER),
	CLASS(KVM_SET_PIT2,			BEFORE,	NEVER),
	CLASS(KVM_SET_TSS_ADDR,			BEFORE,	NEVER),
	CLASS(KVM_SET_IDENTITY_MAP_ADDR,	BEFORE,	NEVER),
	CLASS(KVM_SET_CLOCK,			BEFORE,	NEVER),
	CLASS(KVM_GET_CLOCK,			ALWAYS,	NEVER),
	CLASS(KVM_SET_USER_MEMORY_REGION,	BEFORE,	NEVER),
	CLASS(KVM_SET_USER_MEMORY_REGION2,	BEFORE,	NEVER),
	CLASS(KVM_SPLIT_MEMORY_REGION,		BEFORE,	NEVER),
	CLASS(KVM_MERGE_MEMORY_REGIONS,		BEFORE,	NEVER),
	CLASS(KVM_IRQ_LINE,			ALWAYS,	NEVER),
	CLASS(KVM_IRQ_LINE_STATUS,		ALWAYS,	NEVER),
	CLASS(KVM_SIGNAL_MSI,			ALWAYS,	NEVER),
	CLASS(KVM_IRQFD,			ALWAYS,	NEVER),
	CLASS(KVM_SET_GSI_ROUTING,		ALWAYS,	NEVER),
	CLASS(KVM_IOEVENTFD,			ALWAYS,	NEVER),
	CLASS(KVM_REGISTER_COALESCED_MMIO,	ALWAYS,	NEVER),
	CLASS(KVM_UNREGISTER_COALESCED_MMIO,	ALWAYS,	NEVER),
	CLASS(KVM_CREATE_DEVICE,		ALWAYS,	NEVER),
	CLASS(KVM_GET_DIRTY_LOG,		NEVER,	NEVER),
	CLASS(KVM_CLEAR_DIRTY_LOG,		NEVER,	NEVER),
	CLASS(KVM_RESET_DIRTY_RINGS,		NEVER,	NEVER),
	CLASS(KVM_SET_NR_MMU_PAGES,		NEVER,	NEVER),
	CLASS(KVM_GET_NR_MMU_PAGES,		NEVER,	NEVER),
	CLASS(KVM_SET_BOOT_CPU_ID,		NEVER,	NEVER),
	CLASS(KVM_SET_PMU_EVENT_FILTER,		NEVER,	NEVER),
	CLASS(KVM_X86_SET_MSR_FILTER,		NEVER,	NEVER),
	CLASS(KVM_MEMORY_ENCRYPT_OP,		NEVER,	NEVER),
	CLASS(KVM_MEMORY_ENCRYPT_REG_REGION,	NEVER,	NEVER),
	CLASS(KVM_MEMORY_ENCRYPT_UNREG_REGION,	NEVER,	NEVER),
	CLASS(KVM_HYPERV_EVENTFD,		NEVER,	NEVER),
	CLASS(KVM_SET_MEMORY_ATTRIBUTES,	NEVER,	NEVER),
	CLASS(KVM_CREATE_GUEST_MEMFD,		NEVER,	NEVER),
	CLASS(KVM_XEN_HVM_CONFIG,		NEVER,	NEVER),
	CLASS(KVM_XEN_HVM_GET_ATTR,		NEVER,	NEVER),
	CLASS(KVM_XEN_HVM_SET_ATTR,		NEVER,	NEVER),
	CLASS(KVM_XEN_HVM_EVTCHN_SEND,		NEVER,	NEVER),

	/* Of both */
	CLASS(KVM_ENABLE_CAP,			BEFORE,	BEFORE),
	CLASS(KVM_SET_TSC_KHZ,			BEFORE,	BEFORE),
	CLASS(KVM_GET_TSC_KHZ,			ALWAYS,	ALWAYS),
	CLASS(KVM_GET_STATS_FD,			NEVER,	NEVER),
	CLASS(KVM_SET_DEVICE_ATTR,		NEVER,	BEFORE),
	CLASS(KVM_GET_DEVICE_ATTR,		NEVER,	BEFORE),
	CLASS(KVM_HAS_DEVICE_ATTR,		NEVER,	ALWAYS),

	/* Of a vCPU */
	CLASS(KVM_RUN,				NEVER,	AFTER),
	CLASS(KVM_SET_CPUID,			NEVER,	BEFORE),
	CLASS(KVM_SET_CPUID2,			NEVER,	BEFORE),
	CLASS(KVM_GET_CPUID2,			NEVER,	BEFORE),
	CLASS(KVM_GET_SUPPORTED_HV_CPUID,	NEVER,	ALWAYS),
	CLASS(KVM_GET_REGS,			NEVER,	BEFORE),
	CLASS(KVM_SET_REGS,			NEVER,	BEFORE),
	CLASS(KVM_GET_SREGS,			NEVER,	BEFORE),
	CLASS(KVM_SET_SREGS,			NEVER,	BEFORE),
	CLASS(KVM_GET_SREGS2,			NEVER,	BEFORE),
	CLASS(KVM_SET_SREGS2,			NEVER,	BEFORE),
	CLASS(KVM_GET_FPU,			NEVER,	BEFORE),
	CLASS(KVM_SET_FPU,			NEVER,	BEFORE),
	CLASS(KVM_GET_XSAVE,			NEVER,	BEFORE),
	CLASS(KVM_GET_XSAVE2,			NEVER,	BEFORE),
	CLASS(KVM_SET_XSAVE,			NEVER,	BEFORE),
	CLASS(KVM_GET_XCRS,			NEVER,	BEFORE),
	CLASS(KVM_SET_XCRS,			NEVER,	BEFORE),
	CLASS(KVM_GET_DEBUGREGS,		NEVER,	BEFORE),
	CLASS(KVM_SET_DEBUGREGS,		NEVER,	BEFORE),
	CLASS(KVM_GET_MSRS,			NEVER,	BEFORE),
	CLASS(KVM_SET_MSRS,			NEVER,	BEFORE),
	CLASS(KVM_GET_LAPIC,			NEVER,	BEFORE),
	CLASS(KVM_SET_LAPIC,			NEVER,	BEFORE),
	CLASS(KVM_GET_VCPU_EVENTS,		NEVER,	BEFORE),
	CLASS(KVM_SET_VCPU_EVENTS,		NEVER,	BEFORE),
	CLASS(KVM_GET_MP_STATE,			NEVER,	ALWAYS),
	CLASS(KVM_SET_MP_STATE,			NEVER,	BEFORE),
	CLASS(KVM_X86_SETUP_MCE,		NEVER,	BEFORE),
	CLASS(KVM_X86_SET_MCE,			NEVER,	NEVER),
	CLASS(KVM_SET_SIGNAL_MASK,		NEVER,	ALWAYS),
	CLASS(KVM_PRE_FAULT_MEMORY,		NEVER,	ALWAYS),
	CLASS(KVM_TRANSLATE,			NEVER,	NEVER),
	CLASS(KVM_INTERRUPT,			NEVER,	NEVER),
	CLASS(KVM_NMI,				NEVER,	NEVER),
	CLASS(KVM_SMI,				NEVER,	NEVER),
	CLASS(KVM_SET_GUEST_DEBUG,		NEVER,	NEVER),
	CLASS(KVM_TPR_ACCESS_REPORTING,		NEVER,	NEVER),
	CLASS(KVM_SET_VAPIC_ADDR,		NEVER,	NEVER),
	CLASS(KVM_KVMCLOCK_CTRL,		NEVER,	NEVER),
	CLASS(KVM_GET_NESTED_STATE,		NEVER,	NEVER),
	CLASS(KVM_SET_NESTED_STATE,		NEVER,	NEVER),
	CLASS(KVM_XEN_VCPU_GET_ATTR,		NEVER,	NEVER),
	CLASS(KVM_XEN_VCPU_SET_ATTR,		NEVER,	NEVER),

	/* Of other architectures, as far as their structures are known here */
	CLASS(KVM_DIRTY_TLB,			NEVER,	NEVER),
	CLASS(KVM_GET_ONE_REG,			NEVER,	NEVER),
	CLASS(KVM_SET_ONE_REG,			NEVER,	NEVER),
	CLASS(KVM_GET_REG_LIST,			NEVER,	NEVER),
	CLASS(KVM_PPC_ALLOCATE_HTAB,		NEVER,	NEVER),
	CLASS(KVM_PPC_SVM_OFF,			NEVER,	NEVER),
	CLASS(KVM_ARM_VCPU_FINALIZE,		NEVER,	NEVER),
	CLASS(KVM_S390_ENABLE_SIE,		NEVER,	NEVER),
	CLASS(KVM_S390_VCPU_FAULT,		NEVER,	NEVER),
	CLASS(KVM_S390_STORE_STATUS,		NEVER,	NEVER),
	CLASS(KVM_S390_INITIAL_RESET,		NEVER,	NEVER),
	CLASS(KVM_S390_NORMAL_RESET,		NEVER,	NEVER),
	CLASS(KVM_S390_CLEAR_RESET,		NEVER,	NEVER),
};

/* No pointer, no number of anything */
#define BAD_ARG		((void *)-4096ul)

/* What it returns is closed if it's a file, which only one ioctl can return for that. */
static bool is_refused(int fd, unsigned long nr)
{
	int r = ioctl(fd, nr, BAD_ARG);
	bool refused = r < 0 && errno == EPERM;

	if (nr == KVM_GET_STATS_FD && r >= 0)
		close(r);
	return refused;
}

static void check_ioctls(struct __test_metadata *_metadata, struct pvm *p, unsigned int when,
			 bool is_protected)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(ioctls); i++) {
		EXPECT_EQ(is_protected && !(ioctls[i].vm & when),
			  is_refused(p->vm->fd, ioctls[i].nr)) {
			TH_LOG("%s of the VM", ioctls[i].name);
		}
		EXPECT_EQ(is_protected && !(ioctls[i].vcpu & when),
			  is_refused(p->vcpu->fd, ioctls[i].nr)) {
			TH_LOG("%s of a vCPU", ioctls[i].name);
		}
	}
}

/* The control: nothing is refused that way. */
TEST_F(protected, after)
{
	check_ioctls(_metadata, self->p, AFTER, self->is_protected);
}

TEST(before)
{
	struct pvm p;

	pvm_create(&p, KVM_X86_PROTECTED_VM, 1);
	pvm_load(&p);
	check_ioctls(_metadata, &p, BEFORE, true);

	/* All these didn't hurt. */
	EXPECT_EQ(0, pvm_finalize(&p, NULL));
	vcpu_run(p.vcpu);
	EXPECT_TRUE(pvm_is_done(&p));
	pvm_free(&p);
}

static bool is_classified(unsigned long nr, bool vcpu, unsigned int when)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(ioctls); i++) {
		if (ioctls[i].nr == nr)
			return (vcpu ? ioctls[i].vcpu : ioctls[i].vm) & when;
	}
	return false;
}

/*
 * All other numbers, as far as their size is one that is in use, or small.
 */
TEST_F(protected, any_other)
{
	unsigned long nr, dir, n, i, size, nr_tried = 0;

	if (!self->is_protected)
		SKIP(return, "nothing is refused");

	for (i = 0; i < ARRAY_SIZE(ioctls) + 64; i++) {
		size = i < 64 ? i : _IOC_SIZE(ioctls[i - 64].nr);
		for (nr = 0; nr < 256; nr++) {
			for (dir = 0; dir < 4; dir++) {
				n = _IOC(dir, KVMIO, nr, size);
				if (!is_classified(n, false, AFTER)) {
					ASSERT_TRUE(is_refused(self->p->vm->fd, n)) {
						TH_LOG("VM: %lx", n);
					}
					nr_tried++;
				}
				if (!is_classified(n, true, AFTER)) {
					ASSERT_TRUE(is_refused(self->p->vcpu->fd, n)) {
						TH_LOG("vCPU: %lx", n);
					}
					nr_tried++;
				}
			}
		}
	}
	EXPECT_LT(100000, nr_tried);
}

TEST_F(protected, device)
{
	struct kvm_create_device cd = { .type = KVM_DEV_TYPE_VFIO };
	unsigned int i;

	if (__vm_ioctl(self->p->vm, KVM_CREATE_DEVICE, &cd))
		SKIP(return, "No VFIO device");

	for (i = 0; i < ARRAY_SIZE(ioctls); i++) {
		if (ioctls[i].nr == KVM_SET_DEVICE_ATTR || ioctls[i].nr == KVM_HAS_DEVICE_ATTR ||
		    ioctls[i].nr == KVM_GET_DEVICE_ATTR)
			continue;
		EXPECT_EQ(self->is_protected, is_refused(cd.fd, ioctls[i].nr)) {
			TH_LOG("%s", ioctls[i].name);
		}
	}
	EXPECT_FALSE(is_refused(cd.fd, KVM_SET_DEVICE_ATTR));
	EXPECT_FALSE(is_refused(cd.fd, KVM_HAS_DEVICE_ATTR));
	close(cd.fd);
}

/* That of a 32-bit process, which has an entry point, and numbers, of its own */
static int compat_ioctl(int fd, unsigned long nr)
{
	int r;

	asm volatile("int $0x80" : "=a" (r) : "a" (54), "b" (fd), "c" (nr), "d" (0xfffff000)
		     : "memory", "r8", "r9", "r10", "r11");
	return r;
}

static void no_compat(int sig)
{
	_exit(1);
}

static bool has_compat(void)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		/* Or the kernel logs it. */
		signal(SIGSEGV, no_compat);
		_exit(compat_ioctl(-1, 0) != -EBADF);
	}
	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) && !WEXITSTATUS(status);
}

TEST_F(protected, compat)
{
	unsigned int i;

	if (!has_compat())
		SKIP(return, "No 32-bit system calls");

	for (i = 0; i < ARRAY_SIZE(ioctls); i++) {
		if (ioctls[i].nr == KVM_GET_STATS_FD)
			continue;
		EXPECT_EQ(self->is_protected && !(ioctls[i].vm & AFTER),
			  compat_ioctl(self->p->vm->fd, ioctls[i].nr) == -EPERM) {
			TH_LOG("%s of the VM", ioctls[i].name);
		}
		EXPECT_EQ(self->is_protected && !(ioctls[i].vcpu & AFTER),
			  compat_ioctl(self->p->vcpu->fd, ioctls[i].nr) == -EPERM) {
			TH_LOG("%s of a vCPU", ioctls[i].name);
		}
	}
}

/*
 * Capabilities
 */
static const unsigned int allowed_caps[] = {
	KVM_CAP_X86_SHARED_GPA_BIT, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API,
	KVM_CAP_MAX_VCPU_ID, KVM_CAP_DISABLE_QUIRKS, KVM_CAP_DISABLE_QUIRKS2,
	KVM_CAP_PMU_CAPABILITY, KVM_CAP_MSR_PLATFORM_INFO, KVM_CAP_EXIT_HYPERCALL,
	KVM_CAP_X86_DISABLE_EXITS, KVM_CAP_HALT_POLL, KVM_CAP_EXCEPTION_PAYLOAD,
	KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
};

static const unsigned int allowed_vcpu_caps[] = {
	KVM_CAP_HYPERV_SYNIC, KVM_CAP_HYPERV_SYNIC2, KVM_CAP_HYPERV_ENFORCE_CPUID,
	KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
};

static bool is_in(unsigned int cap, const unsigned int *caps, unsigned int nr)
{
	while (nr--) {
		if (caps[nr] == cap)
			return true;
	}
	return false;
}

static void check_caps(struct __test_metadata *_metadata, unsigned long type)
{
	bool is_protected = type == KVM_X86_PROTECTED_VM, refused;
	struct kvm_enable_cap cap = {};
	struct pvm p;

	pvm_create(&p, type, 1);
	/* -1 is nothing that is valid, and enables nothing. */
	for (cap.cap = 0; cap.cap < 1024; cap.cap++) {
		memset(cap.args, -1, sizeof(cap.args));
		refused = __vm_ioctl(p.vm, KVM_ENABLE_CAP, &cap) && errno == EPERM;
		EXPECT_EQ(is_protected && !is_in(cap.cap, allowed_caps, ARRAY_SIZE(allowed_caps)),
			  refused) {
			TH_LOG("VM: %u", cap.cap);
		}
		refused = __vcpu_ioctl(p.vcpu, KVM_ENABLE_CAP, &cap) && errno == EPERM;
		EXPECT_EQ(is_protected &&
			  !is_in(cap.cap, allowed_vcpu_caps, ARRAY_SIZE(allowed_vcpu_caps)),
			  refused) {
			TH_LOG("vCPU: %u", cap.cap);
		}
	}
	pvm_free(&p);
}

TEST(caps)
{
	check_caps(_metadata, KVM_X86_PROTECTED_VM);
}

TEST(caps_of_ordinary_vm)
{
	check_caps(_metadata, KVM_X86_DEFAULT_VM);
}

/* VMMs look before they enable one. */
TEST_F(protected, missing_extensions)
{
	static const unsigned int missing[] = {
		KVM_CAP_X86_SMM, KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_X86_MSR_FILTER,
		KVM_CAP_SYNC_REGS, KVM_CAP_SET_GUEST_DEBUG, KVM_CAP_BINARY_STATS_FD,
		KVM_CAP_X86_TRIPLE_FAULT_EVENT,
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(missing); i++) {
		EXPECT_EQ(!self->is_protected && kvm_check_cap(missing[i]),
			  !!vm_check_cap(self->p->vm, missing[i])) {
			TH_LOG("%u", missing[i]);
		}
	}
}

/*
 * Statistics: what can't be had by KVM_GET_STATS_FD can't be had by debugfs either, which
 * root could look into.
 */
#define DEBUGFS	"/sys/kernel/debug"

static bool has_debugfs(void)
{
	return !access(DEBUGFS "/kvm/exits", R_OK) ||
	       (!mount("debugfs", DEBUGFS, "debugfs", 0, NULL) &&
		!access(DEBUGFS "/kvm/exits", R_OK));
}

/* Of all VMs */
static unsigned long nr_exits(void)
{
	FILE *file = fopen(DEBUGFS "/kvm/exits", "r");
	unsigned long nr;

	TEST_ASSERT(file && fscanf(file, "%lu", &nr) == 1, "Can't read the number of exits");
	fclose(file);
	return nr;
}

TEST_F(protected, statistics)
{
	unsigned long i, before;
	char name[64];

	if (!has_debugfs())
		SKIP(return, "No debugfs");

	snprintf(name, sizeof(name), DEBUGFS "/kvm/%d-%d", getpid(), self->p->vm->fd);
	EXPECT_EQ(self->is_protected, access(name, F_OK) && errno == ENOENT);

	before = nr_exits();
	for (i = 0; i < 1000; i++)
		pvm_read(self->p, gva_of(0, SHARED));
	EXPECT_EQ(self->is_protected, nr_exits() - before < 1000);
}

/*
 * What a VM has to be to be final
 */
FIXTURE(building)
{
	struct pvm pvm;
	struct pvm *p;
};

FIXTURE_SETUP(building)
{
	self->p = &self->pvm;
	pvm_create(self->p, KVM_X86_PROTECTED_VM, 2);
	pvm_load(self->p);
}

FIXTURE_TEARDOWN(building)
{
	/* Having been refused it's still complete. */
	EXPECT_EQ(0, pvm_finalize(self->p, NULL));
	vcpu_run(self->p->vcpu);
	EXPECT_TRUE(pvm_is_done(self->p));
	pvm_free(self->p);
}

TEST_F(building, arguments)
{
	struct kvm_x86_finalize_vm arg = { .flags = 1u << 31 };

	EXPECT_REFUSED(EINVAL, pvm_finalize(self->p, &arg));
	arg.flags = 0;
	arg.padding = 1;
	EXPECT_REFUSED(EINVAL, pvm_finalize(self->p, &arg));
	EXPECT_REFUSED(EFAULT, ioctl(self->p->vm->fd, KVM_X86_FINALIZE_VM, BAD_ARG));
}

TEST_F(building, second_vcpu_runnable)
{
	struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_RUNNABLE };

	vcpu_mp_state_set(self->p->vcpus[1], &state);
	EXPECT_REFUSED(EINVAL, pvm_finalize(self->p, NULL));
	state.mp_state = KVM_MP_STATE_UNINITIALIZED;
	vcpu_mp_state_set(self->p->vcpus[1], &state);
}

TEST_F(building, second_vcpu_with_sipi)
{
	struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_SIPI_RECEIVED };

	vcpu_mp_state_set(self->p->vcpus[1], &state);
	EXPECT_REFUSED(EINVAL, pvm_finalize(self->p, NULL));
	/* It takes it. */
	vcpu_mp_state_get(self->p->vcpus[1], &state);
	state.mp_state = KVM_MP_STATE_UNINITIALIZED;
	vcpu_mp_state_set(self->p->vcpus[1], &state);
}

TEST_F(building, first_vcpu_halted)
{
	struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_HALTED };

	vcpu_mp_state_set(self->p->vcpu, &state);
	EXPECT_REFUSED(EINVAL, pvm_finalize(self->p, NULL));
	state.mp_state = KVM_MP_STATE_RUNNABLE;
	vcpu_mp_state_set(self->p->vcpu, &state);
}

TEST_F(building, pending_events)
{
	struct kvm_vcpu_events none, events;

	vcpu_events_get(self->p->vcpu, &none);

	events = none;
	events.exception.injected = 1;
	events.exception.nr = UD_VECTOR;
	vcpu_events_set(self->p->vcpu, &events);
	EXPECT_REFUSED(EINVAL, pvm_finalize(self->p, NULL));

	events = none;
	events.interrupt.injected = 1;
	events.interrupt.nr = 0x80;
	vcpu_events_set(self->p->vcpu, &events);
	EXPECT_REFUSED(EINVAL, pvm_finalize(self->p, NULL));

	events = none;
	events.nmi.injected = 1;
	vcpu_events_set(self->p->vcpu, &events);
	EXPECT_REFUSED(EINVAL, pvm_finalize(self->p, NULL));

	events = none;
	events.nmi.pending = 1;
	events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
	vcpu_events_set(self->p->vcpu, &events);
	EXPECT_REFUSED(EINVAL, pvm_finalize(self->p, NULL));

	events = none;
	events.nmi.pending = 0;
	events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
	vcpu_events_set(self->p->vcpu, &events);
}

TEST_F(building, second_address_space)
{
	EXPECT_REFUSED(EINVAL, set_slot(self->p->vm, SMM_SLOT, 0, 2 * OTHER_GPA, SIZE,
					self->p->shared, -1, 0));
}

TEST_F(building, dirty_logging)
{
	ASSERT_EQ(0, set_slot(self->p->vm, ORDINARY_SLOT, KVM_MEM_LOG_DIRTY_PAGES,
			      ORDINARY_GPA, SIZE, self->p->shared + SIZE, -1, 0));
	EXPECT_REFUSED(EINVAL, pvm_finalize(self->p, NULL));
	ASSERT_EQ(0, set_slot(self->p->vm, ORDINARY_SLOT, 0, ORDINARY_GPA, SIZE,
			      self->p->shared + SIZE, -1, 0));
}

/* Whatever userspace has set up in interrupt controllers is gone. */
TEST_F(building, interrupt_controllers)
{
	struct kvm_irqchip chip = { .chip_id = KVM_IRQCHIP_IOAPIC };
	struct kvm_lapic_state lapic;

	vm_ioctl(self->p->vm, KVM_GET_IRQCHIP, &chip);
	/* An NMI from pin 3 */
	chip.chip.ioapic.redirtbl[3].bits = 4 << 8 | 0x40;
	vm_ioctl(self->p->vm, KVM_SET_IRQCHIP, &chip);

	/* Enabled, and vector 0x80 on its way */
	vcpu_ioctl(self->p->vcpu, KVM_GET_LAPIC, &lapic);
	*(uint32_t *)(lapic.regs + APIC_SPIV) |= APIC_SPIV_APIC_ENABLED;
	*(uint32_t *)(lapic.regs + 0x200 + 0x40) = 1;
	vcpu_ioctl(self->p->vcpu, KVM_SET_LAPIC, &lapic);

	ASSERT_EQ(0, pvm_finalize(self->p, NULL));
	kvm_irq_line(self->p->vm, 3, 1);
	kvm_irq_line(self->p->vm, 3, 0);
	vcpu_run(self->p->vcpu);
	EXPECT_TRUE(pvm_is_done(self->p));
	/* The teardown finalizes one that isn't. */
	pvm_free(self->p);
	pvm_create(self->p, KVM_X86_PROTECTED_VM, 2);
	pvm_load(self->p);
}

TEST(needs_shared_bit)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = KVM_X86_PROTECTED_VM };
	struct kvm_x86_finalize_vm arg = {};
	struct kvm_vm *vm = __vm_create(shape, 1, 0);

	vm_vcpu_add(vm, 0, protected_guest_code);
	EXPECT_REFUSED(EINVAL, __vm_ioctl(vm, KVM_X86_FINALIZE_VM, &arg));
	kvm_vm_free(vm);
}

TEST(needs_irqchip)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = KVM_X86_PROTECTED_VM };
	struct kvm_x86_finalize_vm arg = {};
	struct kvm_vm *vm = ____vm_create(shape);

	vm_enable_shared_bit(vm, kvm_check_cap(KVM_CAP_X86_SHARED_GPA_BIT));
	__vm_vcpu_add(vm, 0);
	EXPECT_REFUSED(ENXIO, __vm_ioctl(vm, KVM_X86_FINALIZE_VM, &arg));
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(has_vm_type(KVM_X86_PROTECTED_VM));

	return test_harness_run(argc, argv);
}
