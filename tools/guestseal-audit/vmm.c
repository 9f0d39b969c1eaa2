// SPDX-License-Identifier: GPL-2.0-only
/* What a VMM can do to its own VM by KVM's ioctls: each is an attack. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "audit.h"

#define LSTAR 0xc0000082
#define PIN 3 /* of the IOAPIC */

struct msr {
	struct kvm_msrs head;
	struct kvm_msr_entry entry;
};

/* --- what a vCPU was before the VM was final -------------------------------------------------- */

static struct {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_sregs2 sregs2;
	struct kvm_fpu fpu;
	struct kvm_xsave xsave;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debugregs;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
} start;

static enum outcome save(struct target *target, const struct attack *attack)
{
	int vcpu = target->vm->vcpu;

	(void)attack;
	if (ioctl(vcpu, KVM_GET_REGS, &start.regs) || ioctl(vcpu, KVM_GET_SREGS, &start.sregs) ||
	    ioctl(vcpu, KVM_GET_SREGS2, &start.sregs2) || ioctl(vcpu, KVM_GET_FPU, &start.fpu) ||
	    ioctl(vcpu, KVM_GET_XSAVE, &start.xsave) ||
	    ioctl(vcpu, KVM_GET_DEBUGREGS, &start.debugregs) ||
	    ioctl(vcpu, KVM_GET_LAPIC, &start.lapic) ||
	    ioctl(vcpu, KVM_GET_VCPU_EVENTS, &start.events))
		return ended(target, BROKEN, "no state: %s", strerror(errno));
	/* Not all CPUs have it. */
	ioctl(vcpu, KVM_GET_XCRS, &start.xcrs);
	return DONE;
}

#define FILL_SAVED(what)                                                                           \
	static bool fill_##what(struct target *target, void *data)                                 \
	{                                                                                          \
		(void)target;                                                                      \
		memcpy(data, &start.what, sizeof(start.what));                                     \
		return true;                                                                       \
	}

FILL_SAVED(sregs)
FILL_SAVED(sregs2)
FILL_SAVED(fpu)
FILL_SAVED(xsave)
FILL_SAVED(debugregs)
FILL_SAVED(lapic)

static bool fill_xcrs(struct target *target, void *data)
{
	(void)target;
	errno = EOPNOTSUPP;
	memcpy(data, &start.xcrs, sizeof(start.xcrs));
	return start.xcrs.nr_xcrs;
}

/* Where the guest waits, all as it has it but one register */
static bool fill_regs(struct target *target, void *data)
{
	const struct desk *desk = (struct desk *)target->vm->desk;
	uint64_t s = target->secret;
	struct kvm_regs regs = {
		.rbx = ~s,
		.rcx = s,
		.rdx = s,
		.rsi = s,
		.rdi = s,
		.rbp = s,
		.r8 = s,
		.r9 = s,
		.r10 = s,
		.r11 = s,
		.r12 = s,
		.r13 = s,
		.r14 = s,
		.r15 = s,
		.rsp = start.regs.rsp,
		.rip = desk->again,
		.rflags = 0x202,
	};

	memcpy(data, &regs, sizeof(regs));
	return true;
}

static bool fill_start(struct target *target, void *data)
{
	(void)target;
	memcpy(data, &start.regs, sizeof(start.regs));
	return true;
}

static bool fill_msr(struct target *target, void *data)
{
	struct msr *msr = data;

	(void)target;
	msr->head.nmsrs = 1;
	msr->entry.index = LSTAR;
	return true;
}

static bool fill_exception(struct target *target, void *data)
{
	struct kvm_vcpu_events *events = data;

	(void)target;
	*events = start.events;
	events->exception.injected = 1;
	events->exception.nr = 6;
	return true;
}

static bool fill_pending_nmi(struct target *target, void *data)
{
	struct kvm_vcpu_events *events = data;

	(void)target;
	*events = start.events;
	events->nmi.pending = 1;
	events->flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
	return true;
}

static bool fill_address(struct target *target, void *data)
{
	struct kvm_translation *translation = data;

	(void)target;
	translation->linear_address = MEMORY_GPA;
	return true;
}

/* KVM takes the priority from there that is to be the task's: one that isn't now. */
static bool fill_vapic(struct target *target, void *data)
{
	struct kvm_vapic_addr *vapic = data;
	uint32_t word = target->seed;

	vapic->vapic_addr = MEMORY_GPA;
	while ((word & 0xf0) == 0 || word & 0xf) {
		word = word * 1664525 + target->seed;
		vapic->vapic_addr += sizeof(word);
		if (vapic->vapic_addr == MEMORY_GPA + target->size)
			break;
	}
	return true;
}

static bool fill_tpr(struct target *target, void *data)
{
	struct kvm_tpr_access_ctl *control = data;

	(void)target;
	control->enabled = 1;
	return true;
}

static bool fill_nested(struct target *target, void *data)
{
	struct kvm_nested_state *state = data;

	(void)target;
	state->size = 2 * PAGE;
	return true;
}

/* What it has, if it's to be had */
static bool fill_nested_back(struct target *target, void *data)
{
	struct kvm_nested_state *state = data;

	state->size = 2 * PAGE;
	if (!target->sealed)
		return !ioctl(target->vm->vcpu, KVM_GET_NESTED_STATE, state);
	state->size = sizeof(*state);
	return true;
}

static bool fill_mcg_cap(struct target *target, void *data)
{
	(void)target;
	*(uint64_t *)data = 0x10a;
	return true;
}

static enum outcome set_up_mce(struct target *target, const struct attack *attack)
{
	uint64_t mcg_cap = 0x10a;

	(void)attack;
	if (ioctl(target->vm->vcpu, KVM_X86_SETUP_MCE, &mcg_cap))
		return ended(target, LACKING, "no machine checks: %s", strerror(errno));
	return DONE;
}

/* Uncorrected, in bank 1 */
static bool fill_mce(struct target *target, void *data)
{
	struct kvm_x86_mce *mce = data;

	(void)target;
	mce->status = 1UL << 63 | 1UL << 61 | 1UL << 60;
	mce->mcg_status = 5;
	mce->bank = 1;
	return true;
}

static bool fill_mp_state(struct target *target, void *data)
{
	(void)target;
	((struct kvm_mp_state *)data)->mp_state = KVM_MP_STATE_RUNNABLE;
	return true;
}

static bool fill_cpuid(struct target *target, void *data)
{
	struct kvm_cpuid2 *cpuid = data;

	cpuid->nent = 200;
	if (ioctl(target->vm->kvm, KVM_GET_SUPPORTED_CPUID, cpuid))
		return false;
	for (unsigned int i = 0; i < cpuid->nent; i++)
		if (cpuid->entries[i].function == 1 || cpuid->entries[i].function == 0x80000001)
			cpuid->entries[i].ecx = 0;
	return true;
}

static enum outcome single_step(struct target *target, const struct attack *attack)
{
	struct kvm_guest_debug debug = {
		.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP,
	};
	struct vm *vm = target->vm;

	(void)attack;
	if (ioctl(vm->vcpu, KVM_SET_GUEST_DEBUG, &debug))
		return refused(target, "KVM_SET_GUEST_DEBUG");
	if (!guest_does(vm, CHECK, MEMORY_GPA, 0) && vm->run->exit_reason == KVM_EXIT_DEBUG)
		return ended(target, TOLD, "the guest was at %llx", vm->run->debug.arch.pc);
	return ended(target, LET, "KVM_SET_GUEST_DEBUG: let through");
}

static enum outcome clock_control(struct target *target, const struct attack *attack)
{
	(void)attack;
	if (!guest_does(target->vm, WRMSR, 0x4b564d01, SPARE_GPA | 1))
		return ended(target, BROKEN, "no clock: exit %u", target->vm->run->exit_reason);
	if (ioctl(target->vm->vcpu, KVM_KVMCLOCK_CTRL))
		return refused(target, "KVM_KVMCLOCK_CTRL");
	return ended(target, LET, "KVM_KVMCLOCK_CTRL: let through");
}

static bool fill_tsc_offset(struct target *target, void *data)
{
	static uint64_t offset = 1UL << 40;
	struct kvm_device_attr *attr = data;

	(void)target;
	attr->group = KVM_VCPU_TSC_CTRL;
	attr->attr = KVM_VCPU_TSC_OFFSET;
	attr->addr = (unsigned long)&offset;
	return true;
}

static struct target *compat_target;

static void no_compat(int signal)
{
	(void)signal;
	ended(compat_target, LACKING, "no 32-bit system calls");
	_exit(0);
}

static enum outcome compat(struct target *target, const struct attack *attack)
{
	struct kvm_regs *regs = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	int result;

	(void)attack;
	compat_target = target;
	signal(SIGSEGV, no_compat);
	asm volatile("int $0x80"
		     : "=a"(result)
		     : "a"(54), "b"(target->vm->vcpu), "c"(KVM_GET_REGS), "d"(regs)
		     : "memory", "r8", "r9", "r10", "r11");
	errno = -result;
	if (result < 0)
		return refused(target, "KVM_GET_REGS");
	return has_register(target, regs, sizeof(*regs))
		       ? ended(target, SEEN, "the guest's secret was seen")
		       : ended(target, LET, "let through, but the secret isn't in there");
}

/* clang-format off */
#define GET(n, type, f, w) { .name = #n, .what = w, .run = make_call, .wants = SEEN, \
	.flags = AS_VMM | WHOLE, .call = { VCPU, n, sizeof(type), .fill = f } }
#define TELL(n, type, f, cap, w) { .name = #n, .what = w, .run = make_call, .wants = TOLD, \
	.flags = AS_VMM | WHOLE, .call = { VCPU, n, sizeof(type), .fill = f, .needs = cap } }
#define SET(n, type, f, w) { .name = #n, .what = w, .prepare = save, .run = make_call, .wants = CHANGED, \
	.flags = AS_VMM | WHOLE, .call = { VCPU, n, sizeof(type), .fill = f } }
#define VCPU_CALL(c, n, type, f, cap, w) { .name = #n, .what = w, .run = make_call, .wants = LET, \
	.flags = AS_VMM | WHOLE, .call = { c, n, sizeof(type), .fill = f, .needs = cap } }
#define STEPS(n, r, k, w) { .name = n, .what = w, .run = r, .wants = k, .flags = AS_VMM | WHOLE }
#define PREPARED(n, p, r, k, w) { .name = n, .what = w, .prepare = p, .run = r, .wants = k, .flags = AS_VMM | WHOLE }

static const struct attack state_attacks[] = {
	GET(KVM_GET_REGS, struct kvm_regs, NULL, "general registers read"),
	GET(KVM_GET_SREGS, struct kvm_sregs, NULL, "control registers and segments read"),
	GET(KVM_GET_SREGS2, struct kvm_sregs2, NULL, "the same by the newer ioctl"),
	GET(KVM_GET_FPU, struct kvm_fpu, NULL, "FPU and SSE registers read"),
	GET(KVM_GET_XSAVE, struct kvm_xsave, NULL, "extended state read"),
	GET(KVM_GET_XSAVE2, struct kvm_xsave, NULL, "the same by the newer ioctl"),
	GET(KVM_GET_DEBUGREGS, struct kvm_debugregs, NULL, "debug registers read"),
	GET(KVM_GET_MSRS, struct msr, fill_msr, "an MSR read"),
	TELL(KVM_GET_XCRS, struct kvm_xcrs, NULL, KVM_CAP_XCRS, "extended control registers read"),
	TELL(KVM_GET_LAPIC, struct kvm_lapic_state, NULL, 0, "the local APIC's registers read"),
	TELL(KVM_GET_VCPU_EVENTS, struct kvm_vcpu_events, NULL, 0, "pending events read"),
	TELL(KVM_GET_NESTED_STATE, struct kvm_nested_state, fill_nested, KVM_CAP_NESTED_STATE, "state of nested virtualization read"),
	TELL(KVM_TRANSLATE, struct kvm_translation, fill_address, 0, "the guest's page tables walked"),
	STEPS("KVM_GET_REGS, 32-bit", compat, SEEN, "general registers read by a 32-bit system call"),
	STEPS("KVM_SET_GUEST_DEBUG", single_step, TOLD, "the guest executed by single instructions"),
	SET(KVM_SET_REGS, struct kvm_regs, fill_regs, "a general register changed"),
	{ .name = "KVM_SET_REGS, start", .what = "general registers as they were at the start", .prepare = save,
	  .run = make_call, .wants = CHANGED, .flags = AS_VMM | WHOLE,
	  .call = { VCPU, KVM_SET_REGS, sizeof(struct kvm_regs), .fill = fill_start } },
	SET(KVM_SET_SREGS, struct kvm_sregs, fill_sregs, "control registers and segments as they were at the start"),
	SET(KVM_SET_SREGS2, struct kvm_sregs2, fill_sregs2, "the same by the newer ioctl"),
	SET(KVM_SET_FPU, struct kvm_fpu, fill_fpu, "FPU and SSE registers as they were at the start"),
	SET(KVM_SET_XSAVE, struct kvm_xsave, fill_xsave, "extended state as it was at the start"),
	SET(KVM_SET_DEBUGREGS, struct kvm_debugregs, fill_debugregs, "debug registers as they were at the start"),
	SET(KVM_SET_MSRS, struct msr, fill_msr, "the system calls' entry point changed"),
	SET(KVM_SET_LAPIC, struct kvm_lapic_state, fill_lapic, "the local APIC as it was at the start"),
	SET(KVM_SET_VAPIC_ADDR, struct kvm_vapic_addr, fill_vapic, "the task priority taken from the guest's memory"),
	{ .name = "KVM_SET_XCRS", .what = "an extended control register changed", .prepare = save,
	  .run = make_call, .wants = LET, .flags = AS_VMM | WHOLE,
	  .call = { VCPU, KVM_SET_XCRS, sizeof(struct kvm_xcrs), .fill = fill_xcrs, .needs = KVM_CAP_XCRS } },
	VCPU_CALL(VCPU, KVM_SET_NESTED_STATE, struct kvm_nested_state, fill_nested_back, KVM_CAP_NESTED_STATE, "state of nested virtualization changed"),
	VCPU_CALL(VCPU, KVM_TPR_ACCESS_REPORTING, struct kvm_tpr_access_ctl, fill_tpr, 0, "exits asked for when the guest changes its task priority"),
	VCPU_CALL(VCPU, KVM_X86_SETUP_MCE, uint64_t, fill_mcg_cap, 0, "banks for machine checks changed"),
	VCPU_CALL(VCPU, KVM_SET_MP_STATE, struct kvm_mp_state, fill_mp_state, 0, "the vCPU declared to be runnable"),
	VCPU_CALL(OTHER_VCPU, KVM_SET_CPUID2, struct kvm_cpuid2, fill_cpuid, 0, "the CPU's features changed, of a vCPU that hasn't run"),
	{ .name = "KVM_SET_MP_STATE, vCPU 1", .what = "a vCPU started that waits for the guest to do so",
	  .run = make_call, .wants = LET, .flags = AS_VMM | WHOLE,
	  .call = { OTHER_VCPU, KVM_SET_MP_STATE, sizeof(struct kvm_mp_state), .fill = fill_mp_state } },
	VCPU_CALL(VCPU, KVM_SET_DEVICE_ATTR, struct kvm_device_attr, fill_tsc_offset, KVM_CAP_VCPU_ATTRIBUTES, "the TSC's offset changed"),
	{ .name = "KVM_SET_TSC_KHZ", .what = "the TSC's frequency changed", .run = make_call, .wants = LET,
	  .flags = AS_VMM | WHOLE, .call = { VCPU, KVM_SET_TSC_KHZ } },
	STEPS("KVM_KVMCLOCK_CTRL", clock_control, LET, "the guest told that it was stopped"),
};
/* clang-format on */

const struct group state_group = GROUP("vm", "state", "the vCPUs' state", state_attacks);

/* --- events
 * --------------------------------------------------------------------------------------- */

/* An event that may be let through, as long as the guest doesn't take it */
static enum outcome find_event(struct target *target, const char *call)
{
	enum outcome outcome = find_change(target, call);

	return outcome == LET ? ended(target, REFUSED, "%s: the guest takes no event", call)
			      : outcome;
}

/* SMM saves registers to SMRAM. */
static enum outcome find_smm(struct target *target, const char *call)
{
	const struct desk *desk = (struct desk *)target->vm->desk;

	if (!guest_does(target->vm, LOAD, SMRAM_GPA + 8 * PAGE - 32, 0))
		return ended(target, CHANGED, "%s: the guest doesn't go on (%s, exit %u)", call,
			     strerror(errno), target->vm->run->exit_reason);
	return desk->result ? ended(target, CHANGED, "%s: the guest was in SMM", call)
			    : ended(target, LET, "%s: let through", call);
}

static enum outcome smi(struct target *target, const struct attack *attack)
{
	(void)attack;
	if (ioctl(target->vm->vcpu, KVM_SMI))
		return refused(target, "KVM_SMI");
	return find_smm(target, "KVM_SMI");
}

static bool fill_interrupt(struct target *target, void *data)
{
	(void)target;
	((struct kvm_interrupt *)data)->irq = 0x30;
	return true;
}

/* An MSI's data is the attack's value. */
static enum outcome signal_msi(struct target *target, const struct attack *attack)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = attack->call.value };

	if (ioctl(target->vm->fd, KVM_SIGNAL_MSI, &msi) < 0)
		return refused(target, "KVM_SIGNAL_MSI");
	return (attack->call.value & 0x700) == 0x200 ? find_smm(target, "KVM_SIGNAL_MSI")
						     : find_change(target, "KVM_SIGNAL_MSI");
}

static bool set_route(struct target *target, const struct kvm_irq_routing_entry *entry)
{
	struct {
		struct kvm_irq_routing head;
		struct kvm_irq_routing_entry entry;
	} routing = { .head = { .nr = 1 }, .entry = *entry };

	return !ioctl(target->vm->fd, KVM_SET_GSI_ROUTING, &routing);
}

static bool route_msi(struct target *target, const struct attack *attack)
{
	struct kvm_irq_routing_entry entry = {
		.gsi = PIN,
		.type = KVM_IRQ_ROUTING_MSI,
		.u.msi = { .address_lo = 0xfee00000, .data = attack->call.value },
	};

	return set_route(target, &entry);
}

static enum outcome irqfd(struct target *target, const struct attack *attack)
{
	struct kvm_irqfd irqfd = { .fd = eventfd(0, EFD_CLOEXEC), .gsi = PIN };

	if (!route_msi(target, attack))
		return refused(target, "KVM_SET_GSI_ROUTING");
	if (ioctl(target->vm->fd, KVM_IRQFD, &irqfd))
		return refused(target, "KVM_IRQFD");
	eventfd_write(irqfd.fd, 1);
	/* It may take another thread. */
	usleep(10000);
	return find_event(target, "KVM_IRQFD");
}

static enum outcome irq_line(struct target *target, const struct attack *attack)
{
	struct kvm_irq_level high = { .irq = PIN, .level = 1 };

	if (!route_msi(target, attack))
		return refused(target, "KVM_SET_GSI_ROUTING");
	if (ioctl(target->vm->fd, KVM_IRQ_LINE, &high))
		return refused(target, "KVM_IRQ_LINE");
	return find_event(target, "KVM_IRQ_LINE");
}

static enum outcome set_ioapic(struct target *target, const struct attack *attack)
{
	struct kvm_irqchip chip = { .chip_id = KVM_IRQCHIP_IOAPIC };

	(void)attack;
	chip.chip.ioapic.base_address = 0xfec00000;
	for (int i = 0; i < KVM_IOAPIC_NUM_PINS; i++)
		chip.chip.ioapic.redirtbl[i].fields.mask = 1;
	chip.chip.ioapic.redirtbl[PIN].bits = 4 << 8 | 0x40;
	return ioctl(target->vm->fd, KVM_SET_IRQCHIP, &chip) ? refused(target, "KVM_SET_IRQCHIP")
							     : DONE;
}

static enum outcome raise_pin(struct target *target, const struct attack *attack)
{
	struct kvm_irq_level high = { .irq = PIN, .level = 1 }, low = { .irq = PIN };

	(void)attack;
	if (ioctl(target->vm->fd, KVM_IRQ_LINE, &high) || ioctl(target->vm->fd, KVM_IRQ_LINE, &low))
		return refused(target, "KVM_IRQ_LINE");
	return find_event(target, "KVM_IRQ_LINE");
}

static enum outcome ioapic_nmi(struct target *target, const struct attack *attack)
{
	return set_ioapic(target, attack) == DONE ? raise_pin(target, attack) : REFUSED;
}

static enum outcome xen_route(struct target *target, const struct attack *attack)
{
	struct kvm_irq_routing_entry entry = {
		.gsi = PIN,
		.type = KVM_IRQ_ROUTING_XEN_EVTCHN,
		.u.xen_evtchn = { .port = 1, .priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL },
	};

	(void)attack;
	if (!set_route(target, &entry))
		return refused(target, "KVM_SET_GSI_ROUTING");
	return ended(target, LET, "KVM_SET_GSI_ROUTING: let through");
}

/* clang-format off */
#define MSI(n, v, w) { .name = n, .what = w, .run = signal_msi, .wants = CHANGED, .flags = AS_VMM | WHOLE, .call.value = v }
#define BY_IRQFD(n, v, w) { .name = n, .what = w, .run = irqfd, .wants = CHANGED, .flags = AS_VMM | WHOLE, .call.value = v }

static const struct attack event_attacks[] = {
	{ .name = "KVM_NMI", .what = "an NMI", .run = make_call, .wants = CHANGED, .flags = AS_VMM | WHOLE,
	  .call = { VCPU, KVM_NMI } },
	STEPS("KVM_SMI", smi, CHANGED, "the guest sent to SMM"),
	{ .name = "KVM_INTERRUPT", .what = "an interrupt as of a PIC in the VMM", .run = make_call, .wants = CHANGED,
	  .flags = AS_VMM | WHOLE | SPLIT, .call = { VCPU, KVM_INTERRUPT, sizeof(struct kvm_interrupt), .fill = fill_interrupt } },
	SET(KVM_SET_VCPU_EVENTS, struct kvm_vcpu_events, fill_exception, "an exception injected"),
	{ .name = "KVM_SET_VCPU_EVENTS, NMI", .what = "an NMI made pending", .prepare = save, .run = make_call,
	  .wants = CHANGED, .flags = AS_VMM | WHOLE,
	  .call = { VCPU, KVM_SET_VCPU_EVENTS, sizeof(struct kvm_vcpu_events), .fill = fill_pending_nmi } },
	{ .name = "KVM_X86_SET_MCE", .what = "a machine check", .prepare = set_up_mce, .run = make_call,
	  .wants = CHANGED, .flags = AS_VMM | WHOLE,
	  .call = { VCPU, KVM_X86_SET_MCE, sizeof(struct kvm_x86_mce), .fill = fill_mce } },
	MSI("MSI, NMI", 0x400, "an MSI that is an NMI"),
	MSI("MSI, SMI", 0x200, "an MSI that is an SMI"),
	MSI("MSI, INIT", 0x4500, "an MSI that resets the vCPU"),
	MSI("MSI, exception", 29, "an MSI of the vector of #VC"),
	MSI("MSI, exception, lowest", 0x100 | 20, "the same, of #VE, to whoever has the lowest priority"),
	MSI("MSI, system call", 0x80, "an MSI of the vector of int 0x80"),
	BY_IRQFD("irqfd, NMI", 0x400, "an NMI by an irqfd"),
	BY_IRQFD("irqfd, exception", 29, "the vector of #VC by an irqfd"),
	BY_IRQFD("irqfd, system call", 0x80, "the vector of int 0x80 by an irqfd"),
	{ .name = "KVM_IRQ_LINE, NMI", .what = "an NMI by an interrupt line that is an MSI", .run = irq_line,
	  .wants = CHANGED, .flags = AS_VMM | WHOLE, .call.value = 0x400 },
	STEPS("KVM_SET_IRQCHIP, NMI", ioapic_nmi, CHANGED, "an NMI by the IOAPIC, which the VMM has set up"),
	STEPS("Xen, route", xen_route, LET, "an interrupt line that is one of Xen's event channels"),
};
/* clang-format on */

const struct group event_group =
	GROUP("vm", "event", "what the guest hasn't raised", event_attacks);

/* --- what the VM is made of
 * --------------------------------------------------------------------------- */

static bool fill_slot(struct target *target, void *data)
{
	struct kvm_userspace_memory_region2 *region = data;

	*region = (struct kvm_userspace_memory_region2){
		.slot = 8,
		.guest_phys_addr = 0x20000000,
		.memory_size = PAGE,
		.userspace_addr = (unsigned long)target->vm->shared,
	};
	return true;
}

static bool fill_smm_slot(struct target *target, void *data)
{
	struct kvm_userspace_memory_region2 *region = data;

	fill_slot(target, data);
	region->slot = 1 << 16;
	region->guest_phys_addr = SMRAM_GPA;
	return true;
}

static bool fill_no_slot(struct target *target, void *data)
{
	struct kvm_userspace_memory_region2 *region = data;

	(void)target;
	region->slot = 1;
	return true;
}

static bool fill_split(struct target *target, void *data)
{
	struct kvm_split_memory_region *split = data;

	*split = (struct kvm_split_memory_region){
		.slot = 1,
		.offset = 4 * PAGE,
		.size = target->size - 8 * PAGE,
		.before_slot = 1,
		.range_slot = 8,
		.after_slot = 9,
	};
	return true;
}

static bool fill_merge(struct target *target, void *data)
{
	struct kvm_merge_memory_regions *merge = data;

	merge->slot = 1;
	merge->guest_phys_addr = MEMORY_GPA;
	merge->memory_size = target->size;
	return true;
}

static enum outcome split_before(struct target *target, const struct attack *attack)
{
	struct kvm_split_memory_region split;

	(void)attack;
	fill_split(target, &split);
	return ioctl(target->vm->fd, KVM_SPLIT_MEMORY_REGION, &split)
		       ? ended(target, BROKEN, "not split: %s", strerror(errno))
		       : DONE;
}

/* Other memory where the guest has its own */
static enum outcome replace(struct target *target, const struct attack *attack)
{
	char *other =
		mmap(NULL, target->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	(void)attack;
	if (!vm_set_region(target->vm, 1, 0, MEMORY_GPA, MEMORY, 0, -1) ||
	    !vm_set_region(target->vm, 1, 0, MEMORY_GPA, other, target->size, -1))
		return refused(target, "KVM_SET_USER_MEMORY_REGION");
	return find_change(target, "KVM_SET_USER_MEMORY_REGION");
}

static enum outcome log_pages(struct target *target, const struct attack *attack)
{
	(void)attack;
	if (!vm_set_region(target->vm, 1, KVM_MEM_LOG_DIRTY_PAGES, MEMORY_GPA, MEMORY, target->size,
			   target->fd))
		return refused(target, "KVM_MEM_LOG_DIRTY_PAGES");
	return DONE;
}

/* That of a VM that doesn't log is refused for another reason. */
static enum outcome read_log(struct target *target, const struct attack *attack)
{
	unsigned long bitmap[HUGE_SIZE / PAGE / 64] = { 0 };
	struct kvm_dirty_log log = { .slot = 1, .dirty_bitmap = bitmap };

	if (!target->sealed && log_pages(target, attack) != DONE)
		return ended(target, BROKEN, "no log: %s", strerror(errno));
	if (ioctl(target->vm->fd, KVM_GET_DIRTY_LOG, &log) ||
	    !guest_does(target->vm, FILL, MEMORY_GPA, target->seed | 1024UL << 32) ||
	    ioctl(target->vm->fd, KVM_GET_DIRTY_LOG, &log))
		return refused(target, "KVM_GET_DIRTY_LOG");
	if (bitmap[0] == 1)
		return ended(target, TOLD, "which page the guest has written was told");
	return ended(target, LET, "KVM_GET_DIRTY_LOG: let through");
}

static enum outcome start_log(struct target *target, const struct attack *attack)
{
	return log_pages(target, attack) == DONE ? ended(target, TOLD, "pages are logged")
						 : REFUSED;
}

static enum outcome clear_log(struct target *target, const struct attack *attack)
{
	struct kvm_enable_cap manual = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = { 1 } };
	unsigned long bitmap[HUGE_SIZE / PAGE / 64] = { 1 };
	struct kvm_clear_dirty_log clear = {
		.slot = 1,
		.num_pages = PAGES,
		.dirty_bitmap = bitmap,
	};

	if (!target->sealed &&
	    (ioctl(target->vm->fd, KVM_ENABLE_CAP, &manual) || log_pages(target, attack) != DONE))
		return ended(target, BROKEN, "no log: %s", strerror(errno));
	if (ioctl(target->vm->fd, KVM_CLEAR_DIRTY_LOG, &clear))
		return refused(target, "KVM_CLEAR_DIRTY_LOG");
	return ended(target, LET, "KVM_CLEAR_DIRTY_LOG: let through");
}

static bool fill_guest_memfd(struct target *target, void *data)
{
	(void)target;
	((struct kvm_create_guest_memfd *)data)->size = PAGE;
	return true;
}

static enum outcome add_pit(struct target *target, const struct attack *attack)
{
	struct kvm_pit_config config = { 0 };

	(void)attack;
	return ioctl(target->vm->fd, KVM_CREATE_PIT2, &config)
		       ? ended(target, BROKEN, "no PIT: %s", strerror(errno))
		       : DONE;
}

static bool fill_chip(struct target *target, void *data)
{
	(void)target;
	((struct kvm_irqchip *)data)->chip_id = KVM_IRQCHIP_IOAPIC;
	return true;
}

/* No access to the MSR for the guest any more, which looks at it */
static bool fill_msr_filter(struct target *target, void *data)
{
	static uint8_t none[8];
	struct kvm_msr_filter *filter = data;

	(void)target;
	filter->ranges[0] = (struct kvm_msr_filter_range){
		.flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE,
		.nmsrs = 1,
		.base = LSTAR,
		.bitmap = none,
	};
	return true;
}

static bool fill_eventfd(struct target *target, void *data)
{
	struct kvm_hyperv_eventfd *event = data;

	(void)target;
	event->conn_id = 1;
	event->fd = eventfd(0, EFD_CLOEXEC);
	return true;
}

static bool fill_xen_config(struct target *target, void *data)
{
	struct kvm_xen_hvm_config *config = data;

	(void)target;
	config->flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL;
	config->msr = 0x40000000;
	return true;
}

static bool fill_xen_vector(struct target *target, void *data)
{
	struct kvm_xen_hvm_attr *attr = data;

	(void)target;
	attr->type = KVM_XEN_ATTR_TYPE_UPCALL_VECTOR;
	attr->u.vector = 0x40;
	return true;
}

static bool fill_xen_vcpu(struct target *target, void *data)
{
	struct kvm_xen_vcpu_attr *attr = data;

	(void)target;
	attr->type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID;
	return true;
}

/* KVM writes an event into the guest's memory, and raises a vector. */
static enum outcome xen_send(struct target *target, const struct attack *attack)
{
	struct kvm_xen_hvm_config config = {
		.flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND,
		.msr = 0x40000000,
	};
	struct kvm_xen_hvm_attr mode = { .type = KVM_XEN_ATTR_TYPE_LONG_MODE, .u.long_mode = 1 };
	struct kvm_xen_hvm_attr shared = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO,
		.u.shared_info.gfn = SPARE_GPA / PAGE,
	};
	struct kvm_xen_vcpu_attr info = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO,
		.u.gpa = SPARE_GPA + 0x800,
	};
	struct kvm_irq_routing_xen_evtchn event = {
		.port = 1,
		.priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
	};
	struct vm *vm = target->vm;

	(void)attack;
	if (ioctl(vm->fd, KVM_XEN_HVM_CONFIG, &config) ||
	    ioctl(vm->fd, KVM_XEN_HVM_SET_ATTR, &mode) ||
	    ioctl(vm->fd, KVM_XEN_HVM_SET_ATTR, &shared) ||
	    ioctl(vm->vcpu, KVM_XEN_VCPU_SET_ATTR, &info))
		if (!target->sealed)
			return ended(target, LACKING, "no Xen: %s", strerror(errno));
	if (ioctl(vm->fd, KVM_XEN_HVM_EVTCHN_SEND, &event) < 0)
		return refused(target, "KVM_XEN_HVM_EVTCHN_SEND");
	return ended(target, LET, "KVM_XEN_HVM_EVTCHN_SEND: let through");
}

static enum outcome enable_cap(struct target *target, const struct attack *attack)
{
	struct kvm_enable_cap cap = { .cap = attack->call.needs, .args = { attack->call.value } };
	int fd = attack->call.of == VM ? target->vm->fd : target->vm->vcpu;

	if (ioctl(fd, KVM_ENABLE_CAP, &cap))
		return refused(target, "KVM_ENABLE_CAP");
	return ended(target, LET, "KVM_ENABLE_CAP: let through");
}

/* clang-format off */
#define VM_CALL(n, type, f, cap, w) { .name = #n, .what = w, .run = make_call, .wants = LET, \
	.flags = AS_VMM | WHOLE, .call = { VM, n, sizeof(type), .fill = f, .needs = cap } }
#define VM_TELLS(n, type, f, w) { .name = #n, .what = w, .run = make_call, .wants = TOLD, \
	.flags = AS_VMM | WHOLE, .call = { VM, n, sizeof(type), .fill = f } }
#define VALUE(n, v, w) { .name = #n, .what = w, .run = make_call, .wants = LET, .flags = AS_VMM | WHOLE, \
	.call = { VM, n, .value = v } }
#define SLOT(n, f, k, w) { .name = n, .what = w, .run = make_call, .wants = k, .flags = AS_VMM | WHOLE, \
	.call = { VM, KVM_SET_USER_MEMORY_REGION2, sizeof(struct kvm_userspace_memory_region2), .fill = f } }
#define CAP(o, n, v, w) { .name = &#n[4], .what = w, .run = enable_cap, .wants = LET, .flags = AS_VMM | WHOLE, \
	.call = { .of = o, .value = v, .needs = n } }
#define WITH_PIT(n, type, w) { .name = #n, .what = w, .prepare = add_pit, .run = make_call, .wants = LET, \
	.flags = AS_VMM | WHOLE, .call = { VM, n, sizeof(type) } }

static const struct attack make_attacks[] = {
	VALUE(KVM_CREATE_VCPU, 5, "a vCPU added, with registers of the VMM's"),
	SLOT("memslot, new", fill_slot, LET, "memory added"),
	SLOT("memslot, deleted", fill_no_slot, CHANGED, "the guest's memory removed"),
	STEPS("memslot, replaced", replace, CHANGED, "other memory where the guest's was"),
	SLOT("memslot, SMM", fill_smm_slot, LET, "memory of the VMM's for SMM"),
	STEPS("memslot, dirty logged", start_log, TOLD, "logging started"),
	STEPS("KVM_GET_DIRTY_LOG", read_log, TOLD, "the log of pages that the guest has written"),
	STEPS("KVM_CLEAR_DIRTY_LOG", clear_log, LET, "pages of the log protected again"),
	VM_CALL(KVM_SET_USER_MEMORY_REGION, struct kvm_userspace_memory_region, fill_slot, 0, "memory added, by the older ioctl"),
	VM_CALL(KVM_SPLIT_MEMORY_REGION, struct kvm_split_memory_region, fill_split, KVM_CAP_SPLIT_MEMORY_REGION, "a memslot split"),
	{ .name = "KVM_MERGE_MEMORY_REGIONS", .what = "memslots merged", .prepare = split_before, .run = make_call, .wants = LET,
	  .flags = AS_VMM | WHOLE, .call = { VM, KVM_MERGE_MEMORY_REGIONS, sizeof(struct kvm_merge_memory_regions), .fill = fill_merge } },
	{ .name = "KVM_CREATE_GUEST_MEMFD", .what = "a guest_memfd", .run = make_call, .wants = LET,
	  .flags = AS_VMM | WHOLE, .type = KVM_X86_SW_PROTECTED_VM,
	  .call = { VM, KVM_CREATE_GUEST_MEMFD, sizeof(struct kvm_create_guest_memfd), .fill = fill_guest_memfd } },
	VALUE(KVM_SET_NR_MMU_PAGES, 1000, "the number of page tables limited"),
	VALUE(KVM_SET_TSS_ADDR, 0x30000000, "pages put into the guest that KVM uses"),
	VM_TELLS(KVM_GET_IRQCHIP, struct kvm_irqchip, fill_chip, "the IOAPIC's state read"),
	VM_CALL(KVM_CREATE_PIT2, struct kvm_pit_config, NULL, 0, "a timer added"),
	WITH_PIT(KVM_GET_PIT2, struct kvm_pit_state2, "the timer's state read"),
	WITH_PIT(KVM_SET_PIT2, struct kvm_pit_state2, "the timer's state changed"),
	WITH_PIT(KVM_REINJECT_CONTROL, struct kvm_reinject_control, "what becomes of the timer's lost interrupts"),
	VM_CALL(KVM_SET_CLOCK, struct kvm_clock_data, NULL, 0, "the guest's clock set"),
	{ .name = "KVM_X86_SET_MSR_FILTER", .what = "an MSR taken from the guest", .run = make_call, .wants = CHANGED,
	  .flags = AS_VMM | WHOLE, .call = { VM, KVM_X86_SET_MSR_FILTER, sizeof(struct kvm_msr_filter), .fill = fill_msr_filter } },
	VM_CALL(KVM_SET_PMU_EVENT_FILTER, struct kvm_pmu_event_filter, NULL, 0, "what the guest may count changed"),
	VM_CALL(KVM_HYPERV_EVENTFD, struct kvm_hyperv_eventfd, fill_eventfd, KVM_CAP_HYPERV_EVENTFD, "an event of Hyper-V's sent to the VMM"),
	VM_CALL(KVM_XEN_HVM_CONFIG, struct kvm_xen_hvm_config, fill_xen_config, KVM_CAP_XEN_HVM, "an MSR by which KVM writes Xen's hypercall page"),
	VM_CALL(KVM_XEN_HVM_SET_ATTR, struct kvm_xen_hvm_attr, fill_xen_vector, KVM_CAP_XEN_HVM, "a vector for Xen's events"),
	VM_CALL(KVM_XEN_HVM_GET_ATTR, struct kvm_xen_hvm_attr, fill_xen_vector, KVM_CAP_XEN_HVM, "that vector read"),
	VCPU_CALL(VCPU, KVM_XEN_VCPU_SET_ATTR, struct kvm_xen_vcpu_attr, fill_xen_vcpu, KVM_CAP_XEN_HVM, "the vCPU's number for Xen"),
	VCPU_CALL(VCPU, KVM_XEN_VCPU_GET_ATTR, struct kvm_xen_vcpu_attr, fill_xen_vcpu, KVM_CAP_XEN_HVM, "that number read"),
	STEPS("KVM_XEN_HVM_EVTCHN_SEND", xen_send, LET, "an event of Xen's written into the guest's memory"),
	VALUE(KVM_GET_STATS_FD, 0, "statistics of the VM"),
	{ .name = "KVM_GET_STATS_FD, vCPU", .what = "how often a vCPU has exited, and why", .run = make_call, .wants = LET,
	  .flags = AS_VMM | WHOLE, .call = { VCPU, KVM_GET_STATS_FD } },
	CAP(VM, KVM_CAP_X86_USER_SPACE_MSR, 7, "accesses to MSRs exit to the VMM"),
	CAP(VM, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1, "instructions that KVM doesn't know shown to the VMM"),
	CAP(VM, KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1, "triple faults for the VMM to see and to raise"),
	CAP(VM, KVM_CAP_EXIT_HYPERCALL, 1 << 12, "hypercalls that exit to the VMM"),
	CAP(VM, KVM_CAP_DISABLE_QUIRKS2, 1, "quirks of the local APIC"),
	CAP(VM, KVM_CAP_EXCEPTION_PAYLOAD, 1, "where exceptions' payloads are kept"),
	CAP(VM, KVM_CAP_MSR_PLATFORM_INFO, 1, "the guest's access to an MSR"),
	CAP(VM, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1, "how pages are logged"),
	CAP(VM, KVM_CAP_HALT_POLL, 1000, "how long KVM waits when the guest halts"),
	CAP(VCPU, KVM_CAP_HYPERV_SYNIC2, 0, "Hyper-V's interrupt controller added"),
	CAP(VCPU, KVM_CAP_HYPERV_ENFORCE_CPUID, 1, "what the guest may use of Hyper-V's interface"),
	CAP(VCPU, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1, "the same of KVM's"),
};
/* clang-format on */

const struct group make_group = GROUP("vm", "make", "what the VM is made of", make_attacks);

/* --- before the VM is final
 * ----------------------------------------------------------------------------- */

static enum outcome inject_before(struct target *target, const struct attack *attack)
{
	struct kvm_vcpu_events events;

	if (save(target, attack) != DONE)
		return BROKEN;
	fill_exception(target, &events);
	return ioctl(target->vm->vcpu, KVM_SET_VCPU_EVENTS, &events)
		       ? refused(target, "KVM_SET_VCPU_EVENTS")
		       : DONE;
}

static enum outcome start_before(struct target *target, const struct attack *attack)
{
	struct kvm_mp_state state = { KVM_MP_STATE_RUNNABLE };

	(void)attack;
	return ioctl(target->vm->vcpu2, KVM_SET_MP_STATE, &state)
		       ? refused(target, "KVM_SET_MP_STATE")
		       : DONE;
}

static enum outcome set_clock_before(struct target *target, const struct attack *attack)
{
	struct msr msr = { { .nmsrs = 1 }, { .index = 0x4b564d01, .data = SPARE_GPA | 1 } };

	(void)attack;
	return ioctl(target->vm->vcpu, KVM_SET_MSRS, &msr) != 1 ? refused(target, "KVM_SET_MSRS")
								: DONE;
}

static enum outcome find_clock(struct target *target, const struct attack *attack)
{
	const struct desk *desk = (struct desk *)target->vm->desk;

	(void)attack;
	/* Its system time */
	if (!guest_does(target->vm, LOAD, SPARE_GPA + 16, 0))
		return ended(target, BROKEN, "exit %u", target->vm->run->exit_reason);
	return desk->result ? ended(target, CHANGED, "KVM wrote a clock into the guest's memory")
			    : ended(target, REFUSED, "no clock in the guest's memory");
}

/* Enabled, and the vector of int 0x80 on its way */
static enum outcome set_apic_before(struct target *target, const struct attack *attack)
{
	if (save(target, attack) != DONE)
		return BROKEN;
	start.lapic.regs[0xf1] |= 1;
	start.lapic.regs[0x200 + 0x40] = 1;
	return ioctl(target->vm->vcpu, KVM_SET_LAPIC, &start.lapic)
		       ? refused(target, "KVM_SET_LAPIC")
		       : DONE;
}

static enum outcome filter_before(struct target *target, const struct attack *attack)
{
	struct kvm_msr_filter filter = { 0 };

	(void)attack;
	fill_msr_filter(target, &filter);
	return ioctl(target->vm->fd, KVM_X86_SET_MSR_FILTER, &filter)
		       ? refused(target, "KVM_X86_SET_MSR_FILTER")
		       : DONE;
}

static enum outcome run_before(struct target *target, const struct attack *attack)
{
	(void)attack;
	return guest_runs(target->vm) ? DONE : refused(target, "KVM_RUN");
}

static enum outcome smm_before(struct target *target, const struct attack *attack)
{
	struct kvm_userspace_memory_region2 region;

	(void)attack;
	fill_smm_slot(target, &region);
	return ioctl(target->vm->fd, KVM_SET_USER_MEMORY_REGION2, &region)
		       ? refused(target, "KVM_SET_USER_MEMORY_REGION2")
		       : DONE;
}

static enum outcome find_event_after(struct target *target, const struct attack *attack)
{
	return find_event(target, attack->name);
}

static enum outcome came_through(struct target *target, const struct attack *attack)
{
	(void)attack;
	return ended(target, LET, "the VM starts with that");
}

/* Some have to be enabled before there is a vCPU. */
static enum outcome enable_first(struct target *target, const struct attack *attack)
{
	struct kvm_enable_cap cap = { .cap = attack->call.needs, .args = { attack->call.value } };
	int fd = ioctl(target->vm->kvm, KVM_CREATE_VM,
		       target->sealed ? (unsigned long)KVM_X86_PROTECTED_VM : 0);

	if (fd < 0 || ioctl(fd, KVM_CREATE_IRQCHIP))
		return ended(target, BROKEN, "no VM: %s", strerror(errno));
	if (ioctl(fd, KVM_ENABLE_CAP, &cap))
		return refused(target, "KVM_ENABLE_CAP");
	return ended(target, LET, "KVM_ENABLE_CAP: let through");
}

/* clang-format off */
#define FIRST(n, v, w) { .name = &#n[4], .what = w, .run = enable_first, .wants = LET, .flags = AS_VMM | WHOLE, \
	.call = { .value = v, .needs = n } }

static const struct attack launch_attacks[] = {
	PREPARED("KVM_RUN", run_before, came_through, LET, "the guest executed before the VM is final"),
	PREPARED("exception", inject_before, find_event_after, CHANGED, "an exception pending at the start"),
	PREPARED("vCPU 1", start_before, came_through, LET, "a second vCPU that runs at the start"),
	PREPARED("system time", set_clock_before, find_clock, CHANGED, "a clock of KVM's in private memory, as the VMM says"),
	PREPARED("local APIC", set_apic_before, find_event_after, CHANGED, "the vector of int 0x80 pending in the local APIC"),
	PREPARED("IOAPIC", set_ioapic, raise_pin, CHANGED, "an NMI set up in the IOAPIC"),
	PREPARED("dirty log", log_pages, read_log, TOLD, "a memslot that is logged"),
	PREPARED("MSR filter", filter_before, find_event_after, CHANGED, "an MSR that isn't there for the guest"),
	PREPARED("SMM memslot", smm_before, came_through, LET, "memory of the VMM's for SMM"),
	FIRST(KVM_CAP_DIRTY_LOG_RING_ACQ_REL, 4096, "a ring of pages that the guest has written"),
	FIRST(KVM_CAP_X86_USER_SPACE_MSR, 7, "accesses to MSRs exit to the VMM"),
	FIRST(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1, "instructions that KVM doesn't know shown to the VMM"),
	FIRST(KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1, "triple faults for the VMM to see and to raise"),
	FIRST(KVM_CAP_X86_APIC_BUS_CYCLES_NS, 100, "the local APIC's frequency"),
};
/* clang-format on */

const struct group launch_group = GROUP("vm", "launch", "before the VM is final", launch_attacks);
