// SPDX-License-Identifier: GPL-2.0-only
/*
 * What KVM does for Hyper-V and Xen guests in private memory. All of the guest's
 * memory is private, and the shared halves are filled with what leads astray.
 */
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>

#include "apic.h"
#include "hyperv.h"
#include "sealed_memfd_private.h"

#define IRQ_VECTOR	0x40
#define RFLAGS_IF	BIT(9)

/* Where the hypercall page is. */
#define CODE_PAGE	(PAGE + 8)
#define CODE_GPA	gpa_of(CODE_PAGE)

static struct {
	uint64_t nr;
	/* Cleared by each interrupt. */
	uint8_t *pending;
	/* Hyper-V's APIC assist, by which an EOI may be left out. */
	uint32_t *assist;
	uint64_t nr_without_eoi;
} guest_irq;

static void guest_irq_handler(struct ex_regs *regs)
{
	guest_irq.nr++;
	if (guest_irq.pending) {
		*guest_irq.pending = 0;
		/* If that isn't what KVM looks at there is no end to it. */
		if (guest_irq.nr > 10)
			regs->rflags &= ~RFLAGS_IF;
		return;
	}
	if (guest_irq.assist && *guest_irq.assist & 1) {
		*guest_irq.assist &= ~1;
		guest_irq.nr_without_eoi++;
		return;
	}
	x2apic_write_reg(APIC_EOI, 0);
}

static uint64_t guest_enable_apic(uint64_t unused1, uint64_t unused2, uint64_t unused3)
{
	x2apic_enable();
	return 0;
}

/* Take what interrupts there are, and return how many. */
static uint64_t guest_take_irqs(uint64_t pending, uint64_t unused1, uint64_t unused2)
{
	guest_irq.nr = 0;
	guest_irq.pending = (void *)pending;
	asm volatile("sti; nop; nop; cli" : : : "memory");
	return guest_irq.nr;
}

static uint64_t guest_send_irqs(uint64_t assist, uint64_t nr, uint64_t unused)
{
	uint64_t i;

	guest_irq.nr = 0;
	guest_irq.nr_without_eoi = 0;
	guest_irq.pending = NULL;
	guest_irq.assist = (void *)assist;
	asm volatile("sti" : : : "memory");
	for (i = 1; i <= nr; i++) {
		x2apic_write_reg(APIC_ICR, APIC_DEST_SELF | APIC_INT_ASSERT |
				 APIC_DM_FIXED | IRQ_VECTOR);
		while (READ_ONCE(guest_irq.nr) != i)
			;
	}
	asm volatile("cli" : : : "memory");
	guest_irq.assist = NULL;
	return guest_irq.nr_without_eoi;
}

/*
 * Hyper-V
 */
#define SINT			2
#define SINT_OFFSET		(SINT * 256)
#define STIMER_ENABLE		1
#define STIMER_SINT(n)		((uint64_t)(n) << 16)
#define MSG_TIMER_EXPIRED	0x80000010
#define MSG_PENDING		1

struct timer_message {
	uint32_t type;
	uint8_t size;
	uint8_t flags;
	uint8_t reserved[2];
	uint64_t sender;
	uint32_t timer;
	uint32_t reserved2;
	uint64_t expiration_time;
	uint64_t delivery_time;
};

static struct kvm_vcpu *setup_hyperv(FIXTURE_DATA(sealed) *self)
{
	vm_install_exception_handler(self->vm, IRQ_VECTOR, guest_irq_handler);
	vcpu_set_hv_cpuid(self->tvm.vcpu);
	return setup_private(self);
}

TEST_F(sealed, hyperv_tsc_page)
{
	struct kvm_vcpu *vcpu;
	uint32_t sequence;
	unsigned int i;
	uint64_t *shared;

	if (!kvm_has_cap(KVM_CAP_HYPERV_TIME))
		SKIP(return, "no Hyper-V");

	vcpu = setup_hyperv(self);
	shared = shared_page(self, PAGE);
	for (i = 0; i < 3; i++) {
		/* Neither none nor one that KVM gives */
		store(vcpu, gpa_of(PAGE), ~0u);
		enable_msr(_metadata, vcpu, HV_X64_MSR_REFERENCE_TSC, gpa_of(PAGE) | 1);
		sequence = load(vcpu, gpa_of(PAGE));
		EXPECT_NE(~0u, sequence);
		/* Without a TSC to rely on the page says so, and nothing else. */
		EXPECT_EQ(!!sequence, !!load(vcpu, gpa_of(PAGE) + 8));
		EXPECT_TRUE(is_poison(shared));

		/* What is enabled follows the page. */
		memset(shared, 0xff, PAGE_SIZE);
		ASSERT_EQ(0, to_shared(self, PAGE, 1));
		if (sequence)
			touch_clock(&self->tvm);
		else
			enable_msr(_metadata, vcpu, HV_X64_MSR_REFERENCE_TSC, gpa_of(PAGE) | 1);
		EXPECT_NE(~0u, *(uint32_t *)shared);
		EXPECT_EQ(!!sequence, !!*(uint32_t *)shared);

		new_private(self, PAGE, 1);
		if (sequence) {
			touch_clock(&self->tvm);
			EXPECT_NE(0, load(vcpu, gpa_of(PAGE)) & ~0u);
			EXPECT_NE(0, load(vcpu, gpa_of(PAGE) + 8));
			EXPECT_TRUE(is_poison(shared));
		}
	}
}

TEST_F(sealed, hyperv_apic_assist)
{
	struct kvm_vcpu *vcpu;

	if (!kvm_has_cap(KVM_CAP_HYPERV_VAPIC))
		SKIP(return, "no Hyper-V");

	vcpu = setup_hyperv(self);
	call_guest(vcpu, guest_enable_apic, 0, 0, 0);
	store(vcpu, gpa_of(PAGE), ~0ul);
	enable_msr(_metadata, vcpu, HV_X64_MSR_VP_ASSIST_PAGE,
		   gpa_of(PAGE) | HV_X64_MSR_VP_ASSIST_PAGE_ENABLE);
	EXPECT_EQ(~0ul << 32, load(vcpu, gpa_of(PAGE)));
	/* Not necessarily each time */
	EXPECT_NE(0, call_guest(vcpu, guest_send_irqs, gpa_of(PAGE), 10, 0));
	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));

	memset(shared_page(self, PAGE), 0, PAGE_SIZE);
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	EXPECT_NE(0, call_guest(vcpu, guest_send_irqs, gpa_of(PAGE), 10, 0));
	new_private(self, PAGE, 1);
	EXPECT_NE(0, call_guest(vcpu, guest_send_irqs, gpa_of(PAGE), 10, 0));
	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));
}

/* Userspace is told of these. */
static void enable_synic_msr(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu,
			     uint32_t msr, uint64_t value)
{
	struct kvm_run *run = vcpu->run;

	start_guest(vcpu, guest_wrmsr, msr, value, 0);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_HYPERV);
	EXPECT_EQ(KVM_EXIT_HYPERV_SYNIC, run->hyperv.type);
	EXPECT_EQ(msr, run->hyperv.u.synic.msr);
	vcpu_run(vcpu);
	EXPECT_EQ(0, finish_guest(vcpu));
}

/* A timer that expires at once, and leaves a message. */
static void expire_timer(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu)
{
	enable_msr(_metadata, vcpu, HV_X64_MSR_STIMER0_CONFIG, 0);
	enable_msr(_metadata, vcpu, HV_X64_MSR_STIMER0_COUNT, 1);
	enable_msr(_metadata, vcpu, HV_X64_MSR_STIMER0_CONFIG, STIMER_ENABLE | STIMER_SINT(SINT));
}

static void expect_message(struct __test_metadata *_metadata, struct timer_message *msg,
			   uint8_t flags)
{
	EXPECT_EQ(MSG_TIMER_EXPIRED, msg->type);
	EXPECT_EQ(24, msg->size);
	EXPECT_EQ(flags, msg->flags);
	EXPECT_EQ(0, msg->timer);
	EXPECT_EQ(1, msg->expiration_time);
	EXPECT_NE(0, msg->delivery_time);
}

static struct kvm_vcpu *setup_synic(struct __test_metadata *_metadata,
				    FIXTURE_DATA(sealed) *self)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;

	vcpu_enable_cap(vcpu, KVM_CAP_HYPERV_SYNIC, 0);
	setup_hyperv(self);
	call_guest(vcpu, guest_enable_apic, 0, 0, 0);
	enable_msr(_metadata, vcpu, HV_X64_MSR_SINT0 + SINT, IRQ_VECTOR);
	return vcpu;
}

TEST_F(sealed, hyperv_synic)
{
	struct timer_message msg, *shared = (void *)shared_page(self, PAGE) + SINT_OFFSET;
	struct kvm_vcpu *vcpu;
	unsigned int i;

	if (!kvm_has_cap(KVM_CAP_HYPERV_SYNIC))
		SKIP(return, "no Hyper-V");

	vcpu = setup_synic(_metadata, self);
	new_private(self, PAGE + 1, 1);

	/* Both pages are zeroed. */
	for (i = 0; i < PAGE_SIZE; i += 8) {
		store(vcpu, gpa_of(PAGE) + i, ~0ul);
		store(vcpu, gpa_of(PAGE + 1) + i, ~0ul);
	}
	enable_synic_msr(_metadata, vcpu, HV_X64_MSR_SIMP, gpa_of(PAGE) | 1);
	enable_synic_msr(_metadata, vcpu, HV_X64_MSR_SIEFP, gpa_of(PAGE + 1) | 1);
	for (i = 0; i < PAGE_SIZE; i += 8) {
		ASSERT_EQ(0, load(vcpu, gpa_of(PAGE) + i));
		ASSERT_EQ(0, load(vcpu, gpa_of(PAGE + 1) + i));
	}
	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));
	EXPECT_TRUE(is_poison(shared_page(self, PAGE + 1)));

	for (i = 0; i < 3; i++) {
		expire_timer(_metadata, vcpu);
		get_private(self, gpa_of(PAGE) + SINT_OFFSET, &msg, sizeof(msg));
		expect_message(_metadata, &msg, 0);
		/* Another one has to wait for the first to be taken. */
		expire_timer(_metadata, vcpu);
		get_private(self, gpa_of(PAGE) + SINT_OFFSET, &msg, sizeof(msg));
		expect_message(_metadata, &msg, MSG_PENDING);
		EXPECT_EQ(1, call_guest(vcpu, guest_take_irqs, 0, 0, 0));
		EXPECT_TRUE(is_poison(shared_page(self, PAGE)));

		memset(shared_page(self, PAGE), 0, PAGE_SIZE);
		ASSERT_EQ(0, to_shared(self, PAGE, 1));
		expire_timer(_metadata, vcpu);
		expect_message(_metadata, shared, 0);
		EXPECT_EQ(1, call_guest(vcpu, guest_take_irqs, 0, 0, 0));
		new_private(self, PAGE, 1);
	}
}

static uint64_t guest_hyperv_call(uint64_t control, uint64_t input, uint64_t unused)
{
	uint64_t status;

	asm volatile("xor %%r8d, %%r8d; call *%[page]"
		     : "=a" (status), "+c" (control), "+d" (input)
		     : [page] "r" (CODE_GPA)
		     : "r8", "r9", "r10", "r11", "cc", "memory");
	return status & 0xffff;
}

static void enable_hyperv_calls(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;

	new_private(self, CODE_PAGE, 1);
	enable_msr(_metadata, vcpu, HV_X64_MSR_GUEST_OS_ID, HYPERV_LINUX_OS_ID);
	enable_msr(_metadata, vcpu, HV_X64_MSR_HYPERCALL, CODE_GPA | 1);
}

static uint64_t hyperv_call(struct kvm_vcpu *vcpu, uint64_t control, uint64_t input)
{
	return call_guest(vcpu, guest_hyperv_call, control, input, 0);
}

TEST_F(sealed, hyperv_hypercall_page)
{
	struct kvm_vcpu *vcpu;
	uint64_t code;

	if (!kvm_has_cap(KVM_CAP_HYPERV))
		SKIP(return, "no Hyper-V");

	vcpu = setup_hyperv(self);
	enable_hyperv_calls(_metadata, self);
	code = load(vcpu, CODE_GPA);
	/* vmmcall or vmcall; ret */
	EXPECT_TRUE(code == 0xc3d9010f || code == 0xc3c1010f);
	EXPECT_EQ(HV_STATUS_INVALID_HYPERCALL_CODE, hyperv_call(vcpu, 0x7fff, 0));
	EXPECT_TRUE(is_poison(shared_page(self, CODE_PAGE)));
}

/* Input from memory. What's in the shared halves is not valid. */
TEST_F(sealed, hyperv_hypercall_input)
{
	const uint64_t one_bank = 1ul << HV_HYPERCALL_VARHEAD_OFFSET, gpa = gpa_of(PAGE);
	struct kvm_hyperv_eventfd event[2] = { { .conn_id = 5 }, { .conn_id = 7 } };
	struct kvm_vcpu *vcpu;
	uint64_t nr;
	int i;

	if (!kvm_has_cap(KVM_CAP_HYPERV_EVENTFD) || !kvm_has_cap(KVM_CAP_HYPERV_TLBFLUSH) ||
	    !kvm_has_cap(KVM_CAP_HYPERV_SEND_IPI))
		SKIP(return, "no Hyper-V");

	vcpu = setup_hyperv(self);
	call_guest(vcpu, guest_enable_apic, 0, 0, 0);
	enable_hyperv_calls(_metadata, self);
	for (i = 0; i < 2; i++) {
		event[i].fd = eventfd(0, EFD_NONBLOCK);
		ASSERT_LE(0, event[i].fd);
		vm_ioctl(self->vm, KVM_HYPERV_EVENTFD, &event[i]);
	}

	store(vcpu, gpa, event[0].conn_id);
	EXPECT_EQ(0, hyperv_call(vcpu, HVCALL_SIGNAL_EVENT, gpa));
	ASSERT_EQ(8, read(event[0].fd, &nr, 8));
	EXPECT_EQ(1, nr);
	EXPECT_REFUSED(EAGAIN, read(event[1].fd, &nr, 8));
	store(vcpu, gpa, -1ul);
	EXPECT_NE(0, hyperv_call(vcpu, HVCALL_SIGNAL_EVENT, gpa));

	/* Vector and CPU 0 */
	store(vcpu, gpa, IRQ_VECTOR);
	store(vcpu, gpa + 8, 1);
	EXPECT_EQ(0, hyperv_call(vcpu, HVCALL_SEND_IPI, gpa));
	EXPECT_EQ(1, call_guest(vcpu, guest_take_irqs, 0, 0, 0));
	store(vcpu, gpa + 8, 2);
	EXPECT_EQ(0, hyperv_call(vcpu, HVCALL_SEND_IPI, gpa));
	EXPECT_EQ(0, call_guest(vcpu, guest_take_irqs, 0, 0, 0));

	/* A set of CPUs, the only bank of which is in the next page, a shared one. */
	store(vcpu, gpa_of(PAGE + 1) - 24, IRQ_VECTOR);
	store(vcpu, gpa_of(PAGE + 1) - 16, 0);
	store(vcpu, gpa_of(PAGE + 1) - 8, 1);
	*shared_page(self, PAGE + 1) = 1;
	EXPECT_EQ(0, hyperv_call(vcpu, HVCALL_SEND_IPI_EX | one_bank, gpa_of(PAGE + 1) - 24));
	EXPECT_EQ(1, call_guest(vcpu, guest_take_irqs, 0, 0, 0));
	*shared_page(self, PAGE + 1) = 2;
	EXPECT_EQ(0, hyperv_call(vcpu, HVCALL_SEND_IPI_EX | one_bank, gpa_of(PAGE + 1) - 24));
	EXPECT_EQ(0, call_guest(vcpu, guest_take_irqs, 0, 0, 0));

	/* Address space, flags, format of the set, its banks, and the only one of them */
	for (i = 0; i < 5; i++)
		store(vcpu, gpa + i * 8, i >= 3);
	EXPECT_EQ(0, hyperv_call(vcpu, HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE_EX | one_bank, gpa));
	store(vcpu, gpa + 24, 3);
	EXPECT_EQ(HV_STATUS_INVALID_HYPERCALL_INPUT,
		  hyperv_call(vcpu, HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE_EX | one_bank, gpa));

	/* The page is converted. */
	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));
	store(vcpu, gpa, event[0].conn_id);
	*shared_page(self, PAGE) = event[1].conn_id;
	EXPECT_EQ(0, hyperv_call(vcpu, HVCALL_SIGNAL_EVENT, gpa));
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	EXPECT_EQ(0, hyperv_call(vcpu, HVCALL_SIGNAL_EVENT, gpa));
	for (i = 0; i < 2; i++) {
		EXPECT_EQ(8, read(event[i].fd, &nr, 8));
		EXPECT_EQ(1, nr);
		close(event[i].fd);
	}
}

TEST_F(sealed, hyperv_dirty_log)
{
	struct kvm_vcpu *vcpu;

	if (!kvm_has_cap(KVM_CAP_HYPERV_SYNIC))
		SKIP(return, "no Hyper-V");

	vcpu = setup_synic(_metadata, self);
	new_private(self, PAGE + 1, CODE_PAGE - PAGE);
	start_logging(self, PAGE, CODE_PAGE - PAGE + 1);

	enable_msr(_metadata, vcpu, HV_X64_MSR_GUEST_OS_ID, HYPERV_LINUX_OS_ID);
	EXPECT_EQ(0, get_dirty(self));
	enable_msr(_metadata, vcpu, HV_X64_MSR_HYPERCALL, CODE_GPA | 1);
	EXPECT_EQ(BIT(CODE_PAGE), get_dirty(self));
	enable_msr(_metadata, vcpu, HV_X64_MSR_VP_ASSIST_PAGE,
		   gpa_of(PAGE) | HV_X64_MSR_VP_ASSIST_PAGE_ENABLE);
	EXPECT_EQ(BIT(PAGE), get_dirty(self));
	enable_msr(_metadata, vcpu, HV_X64_MSR_REFERENCE_TSC, gpa_of(PAGE + 1) | 1);
	EXPECT_EQ(BIT(PAGE + 1), get_dirty(self));
	enable_synic_msr(_metadata, vcpu, HV_X64_MSR_SIMP, gpa_of(PAGE + 2) | 1);
	EXPECT_EQ(BIT(PAGE + 2), get_dirty(self));
	expire_timer(_metadata, vcpu);
	EXPECT_EQ(BIT(PAGE + 2), get_dirty(self));
	/* Input is read only. */
	EXPECT_EQ(0, hyperv_call(vcpu, HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE_EX, gpa_of(PAGE)));
	EXPECT_EQ(0, get_dirty(self));
}

/*
 * Xen
 */
#define XEN_MSR			0x40000000
#define XEN_CALL_SIZE		32
#define XEN_EVENT_CHANNEL_OP	32
#define XEN_EVTCHN_SEND		4
#define XEN_INTERDOMAIN		2

/* Fields of struct shared_info, the first of many words for those of events */
#define SHINFO_PENDING	0x800
#define SHINFO_MASK	0xa00
#define SHINFO_WC	0xc00

struct xen_vcpu_info {
	uint8_t upcall_pending;
	uint8_t upcall_mask;
	uint64_t pending_sel;
	uint64_t arch[2];
	struct pvclock_vcpu_time_info time;
};

struct xen_runstate {
	uint32_t state;
	uint64_t entry_time;
	uint64_t time[4];
};

/* What KVM uses. The last one begins in one page and ends in another. */
#define INFO_PAGE	(PAGE + 1)
#define TIME_PAGE	(PAGE + 2)
#define RUNSTATE_PAGE	(PAGE + 3)
#define NR_XEN_PAGES	5

#define INFO_GPA	(gpa_of(INFO_PAGE) + 64)
#define TIME_GPA	(gpa_of(TIME_PAGE) + 128)
#define RUNSTATE_GPA	(gpa_of(RUNSTATE_PAGE + 1) - 20)

/* In the shared half the first one is pending already, the second one isn't masked. */
#define PORT		1
#define MASKED_PORT	2

static bool has_xen(uint32_t flags)
{
	return (kvm_check_cap(KVM_CAP_XEN_HVM) & flags) == flags;
}

static void set_xen_vcpu_attr(struct kvm_vcpu *vcpu, uint16_t type, uint64_t gpa)
{
	struct kvm_xen_vcpu_attr attr = { .type = type, .u.gpa = gpa };

	vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
}

static void set_xen_vector(struct kvm_vm *vm, uint8_t vector)
{
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_UPCALL_VECTOR,
		.u.vector = vector,
	};

	vm_ioctl(vm, KVM_XEN_HVM_SET_ATTR, &attr);
}

static void send_event(struct kvm_vm *vm, uint32_t port)
{
	struct kvm_irq_routing_xen_evtchn event = {
		.port = port,
		.priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
	};

	vm_ioctl(vm, KVM_XEN_HVM_EVTCHN_SEND, &event);
}

static struct kvm_vcpu *setup_xen(FIXTURE_DATA(sealed) *self, uint32_t flags)
{
	struct kvm_xen_hvm_config config = { .flags = flags, .msr = XEN_MSR };
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_LONG_MODE,
		.u.long_mode = 1,
	};

	vm_install_exception_handler(self->vm, IRQ_VECTOR, guest_irq_handler);
	vm_ioctl(self->vm, KVM_XEN_HVM_CONFIG, &config);
	vm_ioctl(self->vm, KVM_XEN_HVM_SET_ATTR, &attr);
	return setup_private(self);
}

static void set_xen_shared_info(struct kvm_vm *vm, uint16_t type, uint64_t where)
{
	struct kvm_xen_hvm_attr attr = { .type = type };

	if (type == KVM_XEN_ATTR_TYPE_SHARED_INFO)
		attr.u.shared_info.gfn = where >> PAGE_SHIFT;
	else
		attr.u.shared_info.hva = where;
	vm_ioctl(vm, KVM_XEN_HVM_SET_ATTR, &attr);
}

static void enable_xen_areas(FIXTURE_DATA(sealed) *self)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;

	set_xen_shared_info(self->vm, KVM_XEN_ATTR_TYPE_SHARED_INFO, gpa_of(PAGE));
	set_xen_vcpu_attr(vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, INFO_GPA);
	set_xen_vcpu_attr(vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, TIME_GPA);
	set_xen_vcpu_attr(vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, RUNSTATE_GPA);
}

static void setup_xen_areas(FIXTURE_DATA(sealed) *self)
{
	new_private(self, PAGE + 1, NR_XEN_PAGES - 1);
	enable_xen_areas(self);
}

static bool xen_areas_are_poison(FIXTURE_DATA(sealed) *self)
{
	unsigned int i;

	for (i = 0; i < NR_XEN_PAGES; i++) {
		if (!is_poison(shared_page(self, PAGE + i)))
			return false;
	}
	return true;
}

static bool runstate_is_valid(const struct xen_runstate *runstate)
{
	/* Running, with all the time accounted for */
	return runstate->state == 0 && runstate->entry_time &&
	       runstate->entry_time == runstate->time[0] + runstate->time[1] +
				       runstate->time[2] + runstate->time[3];
}

/* Have KVM update all of them, and see if they are in the private pages. */
static void expect_private_areas(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	struct pvclock_vcpu_time_info clock;
	struct xen_runstate runstate;
	struct xen_vcpu_info info;

	touch_clock(&self->tvm);
	get_private(self, INFO_GPA, &info, sizeof(info));
	EXPECT_TRUE(clock_is_valid(&info.time));
	get_private(self, TIME_GPA, &clock, sizeof(clock));
	EXPECT_TRUE(clock_is_valid(&clock));
	get_private(self, RUNSTATE_GPA, &runstate, sizeof(runstate));
	EXPECT_TRUE(runstate_is_valid(&runstate));

	store(vcpu, gpa_of(PAGE) + SHINFO_PENDING, 0);
	store(vcpu, gpa_of(PAGE) + SHINFO_MASK, BIT(MASKED_PORT));
	send_event(self->vm, MASKED_PORT);
	EXPECT_EQ(BIT(MASKED_PORT), load(vcpu, gpa_of(PAGE) + SHINFO_PENDING));
	get_private(self, INFO_GPA, &info, sizeof(info));
	EXPECT_EQ(0, info.upcall_pending);
	EXPECT_EQ(0, info.pending_sel);

	send_event(self->vm, PORT);
	EXPECT_EQ(BIT(PORT) | BIT(MASKED_PORT), load(vcpu, gpa_of(PAGE) + SHINFO_PENDING));
	get_private(self, INFO_GPA, &info, sizeof(info));
	EXPECT_EQ(1, info.upcall_pending);
	EXPECT_EQ(1, info.pending_sel);

	/* It is pending until the guest says that it isn't. */
	set_xen_vector(self->vm, IRQ_VECTOR);
	EXPECT_EQ(1, call_guest(vcpu, guest_take_irqs, INFO_GPA, 0, 0));
	set_xen_vector(self->vm, 0);
	store(vcpu, INFO_GPA + offsetof(struct xen_vcpu_info, pending_sel), 0);
	EXPECT_TRUE(xen_areas_are_poison(self));
}

TEST_F(sealed, xen_areas)
{
	struct xen_vcpu_info *info = (void *)shared_page(self, INFO_PAGE) + 64;
	char *shinfo = (char *)shared_page(self, PAGE);
	struct pvclock_wall_clock wall;
	unsigned int i;

	if (!has_xen(KVM_XEN_HVM_CONFIG_SHARED_INFO | KVM_XEN_HVM_CONFIG_RUNSTATE |
		     KVM_XEN_HVM_CONFIG_EVTCHN_SEND))
		SKIP(return, "no Xen");

	setup_xen(self, KVM_XEN_HVM_CONFIG_EVTCHN_SEND);
	setup_xen_areas(self);
	get_private(self, gpa_of(PAGE) + SHINFO_WC, &wall, sizeof(wall));
	EXPECT_NE(0, wall.version);
	EXPECT_EQ(0, wall.version & 1);
	for (i = 0; i < 3; i++) {
		expect_private_areas(_metadata, self);

		/* What is enabled follows the pages. */
		memset(shinfo, 0, NR_XEN_PAGES * PAGE_SIZE);
		ASSERT_EQ(0, to_shared(self, PAGE, NR_XEN_PAGES));
		touch_clock(&self->tvm);
		send_event(self->vm, PORT);
		EXPECT_EQ(BIT(PORT), *(uint64_t *)(shinfo + SHINFO_PENDING));
		EXPECT_EQ(1, info->upcall_pending);
		EXPECT_EQ(1, info->pending_sel);
		EXPECT_TRUE(clock_is_valid(&info->time));
		EXPECT_TRUE(clock_is_valid((void *)shared_page(self, TIME_PAGE) + 128));
		EXPECT_TRUE(runstate_is_valid((void *)shared_page(self, RUNSTATE_PAGE + 1) - 20));
		new_private(self, PAGE, NR_XEN_PAGES);
	}
	expect_private_areas(_metadata, self);
}

/* Who gives KVM an address of userspace's memory gets that, i.e. the shared half. */
TEST_F(sealed, xen_areas_in_userspace)
{
	struct xen_vcpu_info *info = (void *)shared_page(self, INFO_PAGE) + 64;
	char *shinfo = (char *)shared_page(self, PAGE);
	struct kvm_vcpu *vcpu;
	int i;

	if (!has_xen(KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA | KVM_XEN_HVM_CONFIG_EVTCHN_SEND))
		SKIP(return, "no Xen");

	vcpu = setup_xen(self, KVM_XEN_HVM_CONFIG_EVTCHN_SEND);
	new_private(self, INFO_PAGE, 1);
	memset(shinfo, 0, 2 * PAGE_SIZE);
	set_xen_shared_info(self->vm, KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA, (uint64_t)shinfo);
	set_xen_vcpu_attr(vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA, (uint64_t)info);
	for (i = 0; i < 3; i++) {
		touch_clock(&self->tvm);
		send_event(self->vm, PORT);
		EXPECT_EQ(BIT(PORT), *(uint64_t *)(shinfo + SHINFO_PENDING));
		EXPECT_EQ(1, info->upcall_pending);
		EXPECT_TRUE(clock_is_valid(&info->time));
		EXPECT_EQ(0, load(vcpu, gpa_of(PAGE) + SHINFO_PENDING));
		EXPECT_EQ(0, load(vcpu, gpa_of(PAGE) + SHINFO_WC));
		EXPECT_EQ(0, load(vcpu, INFO_GPA));
		EXPECT_EQ(0, load(vcpu, INFO_GPA + offsetof(struct xen_vcpu_info, time)));

		ASSERT_EQ(0, to_shared(self, PAGE, 2));
		EXPECT_EQ(BIT(PORT), load(vcpu, gpa_of(PAGE) + SHINFO_PENDING));
		memset(shinfo, 0, 2 * PAGE_SIZE);
		send_event(self->vm, PORT);
		EXPECT_EQ(BIT(PORT), load(vcpu, gpa_of(PAGE) + SHINFO_PENDING));
		ASSERT_EQ(0, to_private(self, PAGE, 2));
		memset(shinfo, 0, 2 * PAGE_SIZE);
	}
}

/* The shared info is exempt from logging, as is what events do to the vCPU info. */
TEST_F(sealed, xen_dirty_log)
{
	const unsigned long clocks = BIT(INFO_PAGE) | BIT(TIME_PAGE);
	const unsigned long runstate = BIT(RUNSTATE_PAGE) | BIT(RUNSTATE_PAGE + 1);
	struct kvm_vcpu *vcpu;

	if (!has_xen(KVM_XEN_HVM_CONFIG_SHARED_INFO | KVM_XEN_HVM_CONFIG_RUNSTATE))
		SKIP(return, "no Xen");

	vcpu = setup_xen(self, 0);
	setup_xen_areas(self);
	start_logging(self, PAGE, NR_XEN_PAGES);

	touch_clock(&self->tvm);
	EXPECT_EQ(clocks | runstate, get_dirty(self));
	/* Whenever a vCPU is loaded again. The clocks may have to follow it to a CPU. */
	load(vcpu, gpa_of(0));
	EXPECT_EQ(clocks | runstate, get_dirty(self) | clocks);

	set_xen_vcpu_attr(vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, KVM_XEN_INVALID_GPA);
	get_dirty(self);
	touch_clock(&self->tvm);
	EXPECT_EQ(clocks, get_dirty(self));
	set_xen_vcpu_attr(vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, KVM_XEN_INVALID_GPA);
	set_xen_vcpu_attr(vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, KVM_XEN_INVALID_GPA);
	get_dirty(self);
	touch_clock(&self->tvm);
	EXPECT_EQ(0, get_dirty(self));
}

static uint64_t guest_xen_call(uint64_t nr, uint64_t arg1, uint64_t arg2)
{
	uint64_t ret;

	asm volatile("call *%[code]"
		     : "=a" (ret), "+D" (arg1), "+S" (arg2)
		     : [code] "r" (CODE_GPA + nr * XEN_CALL_SIZE)
		     : "cc", "memory");
	return ret;
}

static void enable_xen_calls(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self)
{
	new_private(self, CODE_PAGE, 1);
	enable_msr(_metadata, self->tvm.vcpu, XEN_MSR, CODE_GPA);
}

TEST_F(sealed, xen_hypercall_page)
{
	/* mov $nr, %eax; vmmcall or vmcall; ret */
	static const uint8_t svm[] = { 0xb8, 0, 0, 0, 0, 0x0f, 0x01, 0xd9, 0xc3 };
	static const uint8_t vmx[] = { 0xb8, 0, 0, 0, 0, 0x0f, 0x01, 0xc1, 0xc3 };
	uint8_t code[PAGE_SIZE], *call;
	struct kvm_vcpu *vcpu;
	struct kvm_run *run;
	unsigned int i;

	if (!has_xen(KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL))
		SKIP(return, "no Xen");

	vcpu = setup_xen(self, KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL);
	run = vcpu->run;
	enable_xen_calls(_metadata, self);
	get_private(self, CODE_GPA, code, PAGE_SIZE);
	for (i = 0; i < PAGE_SIZE / XEN_CALL_SIZE; i++) {
		call = code + i * XEN_CALL_SIZE;
		EXPECT_EQ(i, call[1]);
		call[1] = 0;
		EXPECT_TRUE(!memcmp(call, svm, sizeof(svm)) || !memcmp(call, vmx, sizeof(vmx)));
	}

	start_guest(vcpu, guest_xen_call, 77, 1, 2);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_XEN);
	EXPECT_EQ(KVM_EXIT_XEN_HCALL, run->xen.type);
	EXPECT_EQ(77, run->xen.u.hcall.input);
	EXPECT_EQ(1, run->xen.u.hcall.params[0]);
	EXPECT_EQ(2, run->xen.u.hcall.params[1]);
	run->xen.u.hcall.result = 3;
	vcpu_run(vcpu);
	EXPECT_EQ(3, finish_guest(vcpu));
	EXPECT_TRUE(is_poison(shared_page(self, CODE_PAGE)));
}

/* A hypercall page of userspace's making */
TEST_F(sealed, xen_hypercall_blob)
{
	uint8_t blob[2 * PAGE_SIZE], code[PAGE_SIZE];
	struct kvm_xen_hvm_config config = {
		.msr = XEN_MSR,
		.blob_addr_64 = (uint64_t)blob,
		.blob_size_64 = 2,
	};
	struct kvm_vcpu *vcpu;
	unsigned int i;

	if (!has_xen(KVM_XEN_HVM_CONFIG_HYPERCALL_MSR))
		SKIP(return, "no Xen");

	vcpu = setup_xen(self, 0);
	vm_ioctl(self->vm, KVM_XEN_HVM_CONFIG, &config);
	for (i = 0; i < sizeof(blob); i++)
		blob[i] = i % 251;
	for (i = 0; i < 2; i++) {
		enable_msr(_metadata, vcpu, XEN_MSR, gpa_of(PAGE) | i);
		get_private(self, gpa_of(PAGE), code, PAGE_SIZE);
		EXPECT_EQ(0, memcmp(code, blob + i * PAGE_SIZE, PAGE_SIZE));
	}
	EXPECT_EQ(GP_VECTOR, call_guest(vcpu, guest_wrmsr, XEN_MSR, gpa_of(PAGE) | i, 0));
	EXPECT_TRUE(is_poison(shared_page(self, PAGE)));
}

/* What a hypercall finds in memory, and what it does there */
TEST_F(sealed, xen_event_channel_op)
{
	const uint64_t arg = gpa_of(CODE_PAGE + 2) - 1;
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_EVTCHN,
		.u.evtchn = {
			.send_port = 0x101,
			.type = XEN_INTERDOMAIN,
			.deliver.port = {
				.port = PORT,
				.priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
			},
		},
	};
	struct kvm_vcpu *vcpu;

	if (!has_xen(KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND))
		SKIP(return, "no Xen");

	vcpu = setup_xen(self, KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL |
			 KVM_XEN_HVM_CONFIG_EVTCHN_SEND);
	setup_xen_areas(self);
	enable_xen_calls(_metadata, self);
	vm_ioctl(self->vm, KVM_XEN_HVM_SET_ATTR, &attr);

	/* A byte of the port is in a private page, the others are in a shared one. */
	new_private(self, CODE_PAGE + 1, 1);
	store(vcpu, arg - 7, 1ul << 56);
	*shared_page(self, CODE_PAGE + 2) = 1;
	EXPECT_EQ(0, call_guest(vcpu, guest_xen_call, XEN_EVENT_CHANNEL_OP, XEN_EVTCHN_SEND, arg));
	EXPECT_EQ(BIT(PORT), load(vcpu, gpa_of(PAGE) + SHINFO_PENDING));
	EXPECT_EQ(1, load(vcpu, INFO_GPA + offsetof(struct xen_vcpu_info, pending_sel)));
	EXPECT_TRUE(xen_areas_are_poison(self));
	EXPECT_TRUE(is_poison(shared_page(self, CODE_PAGE + 1)));
}

/* Nothing may be written to the shared halves after they were converted. */
#define NR_RACES	100

struct race {
	FIXTURE_DATA(sealed) *self;
	bool done;
	unsigned int nr_bad;
};

static void *race_thread(void *data)
{
	static char copy[NR_XEN_PAGES * PAGE_SIZE];
	struct race *race = data;
	void *shared = shared_page(race->self, PAGE);
	unsigned int i, j;

	for (i = 0; i < NR_RACES; i++) {
		TEST_ASSERT(!to_private(race->self, PAGE, NR_XEN_PAGES),
			    "Can't convert to private");
		memcpy(copy, shared, sizeof(copy));
		for (j = 0; j < 20; j++)
			sched_yield();
		race->nr_bad += !!memcmp(copy, shared, sizeof(copy));
		TEST_ASSERT(!to_shared(race->self, PAGE, NR_XEN_PAGES),
			    "Can't convert to shared");
		for (j = 0; j < 20; j++)
			sched_yield();
	}
	WRITE_ONCE(race->done, true);
	return NULL;
}

TEST_F(sealed, xen_race)
{
	struct race race = { .self = self };
	pthread_t thread;
	uint32_t port;

	if (!has_xen(KVM_XEN_HVM_CONFIG_SHARED_INFO | KVM_XEN_HVM_CONFIG_RUNSTATE |
		     KVM_XEN_HVM_CONFIG_EVTCHN_SEND))
		SKIP(return, "no Xen");

	setup_xen(self, KVM_XEN_HVM_CONFIG_EVTCHN_SEND);
	ASSERT_EQ(0, to_shared(self, PAGE, 1));
	memset(shared_page(self, PAGE), 0, NR_XEN_PAGES * PAGE_SIZE);
	enable_xen_areas(self);
	ASSERT_EQ(0, pthread_create(&thread, NULL, race_thread, &race));
	/* Each event sets another bit. */
	for (port = 0; !READ_ONCE(race.done); port++) {
		send_event(self->vm, 1 + port % 4000);
		touch_clock(&self->tvm);
	}
	pthread_join(thread, NULL);
	EXPECT_EQ(0, race.nr_bad);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_SEALED_MEMFD));

	return test_harness_run(argc, argv);
}
