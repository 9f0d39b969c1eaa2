// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected VMs: what becomes of them when they are finalized, and how they run.
 */
#include <linux/perf_event.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include "flds_emulation.h"
#include "hyperv.h"
#include "protected_vm.h"

#define VALUE	0x600df00d600df00dul

TEST_F(protected, runs)
{
	struct pvm *p = self->p;

	*(uint64_t *)(p->shared + PAGE * PAGE_SIZE) = VALUE;
	EXPECT_EQ(VALUE, pvm_read(p, gva_of(PAGE, SHARED)));
	ASSERT_EQ(0, fallocate(p->fd, 0, PAGE * PAGE_SIZE, PAGE_SIZE));
	EXPECT_EQ(0, pvm_read(p, gva_of(PAGE, PRIVATE)));
	pvm_write(p, gva_of(PAGE, PRIVATE), ~VALUE);
	EXPECT_EQ(~VALUE, pvm_read(p, gva_of(PAGE, PRIVATE)));
	EXPECT_EQ(VALUE, *(uint64_t *)(p->shared + PAGE * PAGE_SIZE));
}

TEST_F(protected, is_finalized_once)
{
	EXPECT_REFUSED(self->is_protected ? EBUSY : EINVAL, pvm_finalize(self->p, NULL));
}

/*
 * Exits
 */
TEST_F(protected, mmio_is_shared)
{
	struct kvm_run *run = self->p->vcpu->run;

	memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
	ASSERT_EQ(0, pvm_start(self->p, guest_store, MMIO_GPA + SHARED_ALIAS, VALUE, 0, 0));
	ASSERT_EQ(KVM_EXIT_MMIO, run->exit_reason);
	EXPECT_EQ(MMIO_GPA, run->mmio.phys_addr);
	EXPECT_EQ(8, run->mmio.len);
	EXPECT_EQ(VALUE, *(uint64_t *)run->mmio.data);
	vcpu_run(self->p->vcpu);
	EXPECT_TRUE(pvm_is_done(self->p));
}

TEST_F(protected, private_mmio)
{
	struct kvm_run *run = self->p->vcpu->run;
	struct kvm_coalesced_mmio_zone zone = { .addr = MMIO_GPA, .size = PAGE_SIZE };
	int r;

	/* Nor does it go to what userspace has there. */
	vm_ioctl(self->p->vm, KVM_REGISTER_COALESCED_MMIO, &zone);
	r = pvm_start(self->p, guest_store, MMIO_GPA, VALUE, 0, 0);
	if (self->is_protected) {
		EXPECT_EQ(-1, r);
		ASSERT_EQ(KVM_EXIT_MEMORY_FAULT, run->exit_reason);
		EXPECT_EQ(KVM_MEMORY_EXIT_FLAG_PRIVATE, run->memory_fault.flags);
		EXPECT_EQ(MMIO_GPA, run->memory_fault.gpa);
	} else {
		EXPECT_EQ(0, r);
		EXPECT_TRUE(pvm_is_done(self->p));
	}
}

/* The local APIC's version, by either alias */
static uint64_t guest_load32(uint64_t addr, uint64_t u1, uint64_t u2, uint64_t u3)
{
	return READ_ONCE(*(uint32_t *)addr);
}

TEST_F(protected, local_apic)
{
	const uint64_t version = APIC_DEFAULT_GPA + APIC_LVR;
	uint64_t private = pvm_call(self->p, guest_load32, version, 0, 0, 0);

	EXPECT_LT(0, private & 0xff);
	EXPECT_EQ(private, pvm_call(self->p, guest_load32, version + SHARED_ALIAS, 0, 0, 0));
}

static uint64_t guest_init_pic(uint64_t vector, uint64_t u1, uint64_t u2, uint64_t u3)
{
	uint8_t mask;

	asm volatile("out %%al, $0x20" : : "a" (0x11));
	asm volatile("out %%al, $0x21" : : "a" (vector));
	asm volatile("out %%al, $0x21" : : "a" (4));
	asm volatile("out %%al, $0x21" : : "a" (1));
	asm volatile("in $0x21, %%al" : "=a" (mask));
	return mask;
}

/* Userspace can't have the PIC miss how that begins: it would keep vector 0. */
TEST_F(protected, pic)
{
	struct kvm_coalesced_mmio_zone zone = { .addr = 0x20, .size = 1, .pio = 1 };

	vm_ioctl(self->p->vm, KVM_REGISTER_COALESCED_MMIO, &zone);
	/* Nothing is masked when it's done, or else the last byte is taken for the mask. */
	EXPECT_EQ(self->is_protected ? 0 : 1, pvm_call(self->p, guest_init_pic, 0x30, 0, 0, 0));
}

TEST_F(protected, no_sync_regs)
{
	struct kvm_run *run = self->p->vcpu->run;

	run->kvm_valid_regs = KVM_SYNC_X86_REGS;
	memset(&run->s, 0, sizeof(run->s));
	*self->p->call = (struct guest_call) { (uint64_t)guest_load, { gva_of(0, SHARED) } };
	if (self->is_protected) {
		EXPECT_REFUSED(EINVAL, _vcpu_run(self->p->vcpu));
		EXPECT_EQ(0, run->s.regs.regs.rip);
		run->kvm_valid_regs = 0;
		run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
		EXPECT_REFUSED(EINVAL, _vcpu_run(self->p->vcpu));
		run->kvm_dirty_regs = 0;
	} else {
		EXPECT_EQ(0, _vcpu_run(self->p->vcpu));
		EXPECT_NE(0, run->s.regs.regs.rip);
		run->kvm_valid_regs = 0;
	}
	EXPECT_EQ(0, pvm_read(self->p, gva_of(0, SHARED)));
}

static uint64_t guest_set_cr8(uint64_t value, uint64_t u1, uint64_t u2, uint64_t u3)
{
	asm volatile("mov %0, %%cr8; sti" : : "r" (value));
	return 0;
}

TEST_F(protected, run_fields)
{
	struct kvm_run *run = self->p->vcpu->run;

	pvm_call(self->p, guest_set_cr8, 5, 0, 0, 0);
	EXPECT_EQ(self->is_protected ? 0 : 5, run->cr8);
	EXPECT_EQ(self->is_protected ? 0 : 1, run->if_flag);

	/* What userspace writes there is nothing to the guest. */
	run->cr8 = 15;
	run->request_interrupt_window = 1;
	pvm_read(self->p, gva_of(0, SHARED));
	EXPECT_EQ(self->is_protected ? 0 : 5, run->cr8);
	run->request_interrupt_window = 0;

	run->immediate_exit = 1;
	EXPECT_REFUSED(EINTR, __vcpu_run(self->p->vcpu));
	run->immediate_exit = 0;
}

/*
 * The other vCPU waits for userspace to complete an instruction when it gets INIT and SIPI.
 * In the page that SIPI points to, what is at the offset of the instruction after that
 * one says that it's the old program which goes on.
 *
 * The library uses neither of these two pages.
 */
#define INS_GPA		0x0000
#define RESET_GPA	0x1000
#define INS_PORT	0x1d
#define RESET_PORT	0x1e
#define STALE		0xbad
#define FRESH		0x900d

extern const char ins_code[], reset_code[], reset_code_end[];

asm(".pushsection .rodata\n"
	".code16\n"
	"ins_code:\n"
	"	mov	$0x800, %di\n"
	"	mov	$" __stringify(INS_PORT) ", %dx\n"
	"	insb	(%dx), %es:(%di)\n"
	"	hlt\n"
	"reset_code:\n"
	"	jmp	1f\n"
	"	.fill	32, 1, 0x90\n"
	"	mov	$" __stringify(STALE) ", %ax\n"
	"	jmp	2f\n"
	"1:	mov	$" __stringify(FRESH) ", %ax\n"
	"2:	out	%ax, $" __stringify(RESET_PORT) "\n"
	"3:	hlt\n"
	"	jmp	3b\n"
	"reset_code_end:\n"
	".code64\n"
	".popsection\n");

static void check_reset(struct __test_metadata *_metadata, unsigned long type)
{
	struct kvm_mp_state state;
	struct kvm_vcpu *vcpu;
	struct pvm p;

	pvm_create(&p, type, 2);
	memcpy(addr_gpa2hva(p.vm, INS_GPA), ins_code, reset_code - ins_code);
	memcpy(addr_gpa2hva(p.vm, RESET_GPA), reset_code, reset_code_end - reset_code);
	pvm_launch(&p);
	vcpu = p.vcpus[1];

	pvm_call(&p, guest_reset_other, INS_GPA, 0, 0, 0);
	TEST_ASSERT_EQ(run_until_io(vcpu), INS_PORT);
	*(uint8_t *)io_data(vcpu) = 0x5a;
	pvm_call(&p, guest_reset_other, RESET_GPA, 0, 0, 0);

	/* To ask for it doesn't reset a protected VM's. */
	vcpu_mp_state_get(vcpu, &state);
	EXPECT_EQ(KVM_MP_STATE_RUNNABLE, state.mp_state);
	TEST_ASSERT_EQ(run_until_io(vcpu), RESET_PORT);
	EXPECT_EQ(FRESH, *(uint16_t *)io_data(vcpu));
	pvm_free(&p);
}

TEST(reset)
{
	check_reset(_metadata, KVM_X86_PROTECTED_VM);
}

TEST(reset_of_ordinary_vm)
{
	check_reset(_metadata, KVM_X86_DEFAULT_VM);
}

/*
 * An event of which the delivery finds no memory, neither for the stack nor the IDT, is
 * delivered once there is some, once, and to the right place.
 */
extern const char event_int3[], event_int[], event_ud[], event_pf[];

#define INT_VECTOR	0x81

asm(".pushsection .text\n"
	"event_int3:\n"
	"	int3\n"
	"	ret\n"
	"event_int:\n"
	"	int	$" __stringify(INT_VECTOR) "\n"
	"	ret\n"
	"event_ud:\n"
	"	ud2\n"
	"	ret\n"
	"event_pf:\n"
	"	testb	%al, -1\n"
	"	ret\n"
	".popsection\n");

static const struct guest_event {
	const char *name;
	const char *code;
	/* From its beginning: what's executed next, and what is on the stack */
	unsigned int next;
	unsigned int pushed;
} guest_events[] = {
	{ "int3", event_int3, 1, 1 },
	{ "int", event_int, 2, 2 },
	{ "#UD", event_ud, 2, 0 },
	{ "#PF", event_pf, 7, 0 },
};

static uint64_t nr_events, event_rip, event_next;

static void guest_event_handler(struct ex_regs *regs)
{
	nr_events++;
	event_rip = regs->rip;
	regs->rip = event_next;
}

static void guest_load_idt(uint64_t base)
{
	const struct desc_ptr idt = { .size = PAGE_SIZE - 1, .address = base };

	asm volatile("lidt %0" : : "m" (idt));
}

/* Call it with another stack, whose beginning is in memory, and maybe another IDT */
static uint64_t guest_event(uint64_t code, uint64_t next, uint64_t stack, uint64_t idt)
{
	struct desc_ptr old;

	nr_events = 0;
	event_next = next;
	asm volatile("sidt %0" : "=m" (old));
	if (idt)
		guest_load_idt(idt);
	asm volatile("mov	%%rsp, %%rbx\n"
		     "mov	%[stack], %%rsp\n"
		     "call	*%[code]\n"
		     "mov	%%rbx, %%rsp\n"
		     : : [stack] "r" (stack), [code] "r" (code) : "rbx", "cc", "memory");
	if (idt)
		guest_load_idt(old.address);
	return nr_events;
}

/* The guest gets what it wants, and goes on. */
static int convert_and_run(struct pvm *p)
{
	struct kvm_run *run = p->vcpu->run;
	int r;

	TEST_ASSERT_KVM_EXIT_REASON(p->vcpu, KVM_EXIT_MEMORY_FAULT);
	r = fallocate(p->fd, run->memory_fault.flags & PRIVATE ? 0 :
		      FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      run->memory_fault.gpa - GPA, run->memory_fault.size);
	TEST_ASSERT(!r, __KVM_SYSCALL_ERROR("fallocate()", r));
	return _vcpu_run(p->vcpu);
}

static void events_create(struct pvm *p, unsigned long type, char *idt)
{
	pvm_create(p, type, 1);
	vm_install_exception_handler(p->vm, BP_VECTOR, guest_event_handler);
	vm_install_exception_handler(p->vm, UD_VECTOR, guest_event_handler);
	vm_install_exception_handler(p->vm, PF_VECTOR, guest_event_handler);
	vm_install_exception_handler(p->vm, INT_VECTOR, guest_event_handler);
	memcpy(idt, addr_gva2hva(p->vm, p->vm->arch.idt), PAGE_SIZE);
	pvm_launch(p);
}

/* The stack's beginning is at that of a page, with the return address; the rest is before. */
static uint64_t stack_of(unsigned long page, uint64_t kind)
{
	return gva_of(page + 1, kind) + sizeof(uint64_t);
}

static void allocate_page(struct pvm *p, unsigned long page)
{
	TEST_ASSERT(!fallocate(p->fd, 0, page * PAGE_SIZE, PAGE_SIZE),
		    __KVM_SYSCALL_ERROR("fallocate()", -1));
}

static void check_events(struct __test_metadata *_metadata, unsigned long type)
{
	unsigned int place, i, exits;
	unsigned long page = PAGE;
	char idt[PAGE_SIZE];
	struct pvm p;
	int r;

	events_create(&p, type, idt);
	/* Either may be converted, or merely accessed for the first time. */
	for (place = 0; place < 16; place++) {
		bool private_stack = place & 1, convert_stack = place & 2;
		bool own_idt = place & 4, convert_idt = place & 8;

		if (convert_idt && !own_idt)
			continue;
		for (i = 0; i < ARRAY_SIZE(guest_events); i++, page += 3) {
			uint64_t code = (uint64_t)guest_events[i].code;

			/* The beginning of the stack, the rest of it, and the IDT */
			if (private_stack)
				allocate_page(&p, page + 1);
			if (private_stack != convert_stack)
				allocate_page(&p, page);
			if (convert_idt)
				allocate_page(&p, page + 2);
			memcpy(p.shared + (page + 2) * PAGE_SIZE, idt, PAGE_SIZE);

			r = pvm_start(&p, guest_event, code, code + guest_events[i].next,
				      stack_of(page, private_stack ? PRIVATE : SHARED),
				      own_idt ? gva_of(page + 2, SHARED) : 0);
			for (exits = 0; r; exits++)
				r = convert_and_run(&p);
			EXPECT_EQ(convert_stack + convert_idt, exits);
			EXPECT_EQ(1, pvm_result(&p));
			EXPECT_EQ(guest_events[i].pushed,
				  pvm_read(&p, (uint64_t)&event_rip) - code) {
				TH_LOG("%s, place %u", guest_events[i].name, place);
			}
		}
	}
	pvm_free(&p);
}

TEST(events)
{
	check_events(_metadata, KVM_X86_PROTECTED_VM);
}

TEST(events_of_ordinary_vm)
{
	check_events(_metadata, KVM_X86_DEFAULT_VM);
}

/*
 * An int3 with which the guest patches its code may be gone by then: it's delivered as
 * what it was, or not at all.
 */
static void check_patched(struct __test_metadata *_metadata, unsigned long type)
{
	static const char before[] = { 0xcc, 0x1f, 0x44, 0x00, 0x00, 0xc3 };
	uint64_t addr = gva_of(PAGE + 2, SHARED);
	char idt[PAGE_SIZE];
	struct pvm p;
	char *code;

	events_create(&p, type, idt);
	code = p.shared + (PAGE + 2) * PAGE_SIZE;
	memcpy(code, before, sizeof(before));
	allocate_page(&p, PAGE + 1);

	ASSERT_EQ(-1, pvm_start(&p, guest_event, addr, addr + 5, stack_of(PAGE, PRIVATE), 0));
	/* From now on a nop of five bytes */
	WRITE_ONCE(*code, 0x0f);
	ASSERT_EQ(0, convert_and_run(&p));
	if (pvm_result(&p)) {
		EXPECT_EQ(1, pvm_result(&p));
		EXPECT_EQ(addr + 1, pvm_read(&p, (uint64_t)&event_rip));
	}
	pvm_free(&p);
}

TEST(patched)
{
	check_patched(_metadata, KVM_X86_PROTECTED_VM);
}

TEST(patched_in_ordinary_vm)
{
	check_patched(_metadata, KVM_X86_DEFAULT_VM);
}

/*
 * What the guest does with interrupts of its own is not what EOI exits tell, even if
 * userspace has a route that says that it raises the same vector by level.
 */
#define EOI_PORT	0x1f
#define EOI_VECTOR	0x71

extern const char eoi_code[], eoi_handler[], eoi_code_end[];

/* Sends what it's told to write to the ICR, says when it comes, and waits for the next. */
asm(".pushsection .rodata\n"
	".code16\n"
	"eoi_code:\n"
	"	mov	$0x1b, %ecx\n"
	"	rdmsr\n"
	"	or	$0xc00, %ax\n"
	"	wrmsr\n"
	"	mov	$0x80f, %ecx\n"
	"	mov	$0x1ff, %eax\n"
	"	xor	%edx, %edx\n"
	"	wrmsr\n"
	"	mov	$0x9000, %sp\n"
	"	sti\n"
	"1:	in	$" __stringify(EOI_PORT) ", %eax\n"
	"	mov	$0x830, %ecx\n"
	"	xor	%edx, %edx\n"
	"	wrmsr\n"
	"	nop\n"
	"	jmp	1b\n"
	"eoi_handler:\n"
	"	pushal\n"
	"	mov	$0x80b, %ecx\n"
	"	xor	%eax, %eax\n"
	"	xor	%edx, %edx\n"
	"	wrmsr\n"
	"	out	%al, $" __stringify(EOI_PORT) "\n"
	"	popal\n"
	"	iret\n"
	"eoi_code_end:\n"
	".code64\n"
	".popsection\n");

#define EOI_GPA		0x1000
#define EOI_PAGES	16

struct eoi_vm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	char *shared;
	int fd;
};

static void eoi_vm_create(struct eoi_vm *v, unsigned long type)
{
	int r, vector, bit = kvm_check_cap(KVM_CAP_X86_SHARED_GPA_BIT);
	struct kvm_x86_finalize_vm arg = {};
	char content[EOI_PAGES * PAGE_SIZE] = {};
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	v->vm = vm_create_barebones_type(type);
	vm_enable_shared_bit(v->vm, bit);
	vm_enable_cap(v->vm, KVM_CAP_SPLIT_IRQCHIP, 24);
	v->vcpu = __vm_vcpu_add(v->vm, 0);
	vcpu_init_cpuid(v->vcpu, kvm_get_supported_cpuid());

	for (vector = 32; vector < 256; vector++)
		*(uint32_t *)(content + 4 * vector) = EOI_GPA + eoi_handler - eoi_code;
	memcpy(content + EOI_GPA, eoi_code, eoi_code_end - eoi_code);
	v->fd = new_sealed_memfd(sizeof(content));
	TEST_ASSERT(pwrite(v->fd, content, sizeof(content), 0) == sizeof(content),
		    __KVM_SYSCALL_ERROR("pwrite()", -1));
	v->shared = mmap(NULL, sizeof(content), PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(v->shared != MAP_FAILED, __KVM_SYSCALL_ERROR("mmap()", -1));
	TEST_ASSERT(!set_slot(v->vm, 0, KVM_MEM_GUEST_MEMFD, 0, sizeof(content), v->shared,
			      v->fd, 0), "Can't create a memslot");

	vcpu_sregs_get(v->vcpu, &sregs);
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	vcpu_sregs_set(v->vcpu, &sregs);
	vcpu_regs_get(v->vcpu, &regs);
	regs.rip = EOI_GPA;
	vcpu_regs_set(v->vcpu, &regs);

	r = type == KVM_X86_PROTECTED_VM ? __vm_ioctl(v->vm, KVM_X86_FINALIZE_VM, &arg) : 0;
	TEST_ASSERT(!r, __KVM_IOCTL_ERROR("KVM_X86_FINALIZE_VM", r));
	TEST_ASSERT_EQ(run_until_io(v->vcpu), EOI_PORT);
}

static void eoi_vm_free(struct eoi_vm *v)
{
	kvm_vm_release(v->vm);
	munmap(v->shared, EOI_PAGES * PAGE_SIZE);
	close(v->fd);
}

/* Raise it by the first pin of an IO-APIC in userspace from now on. */
static void eoi_vm_set_route(struct eoi_vm *v, uint32_t data)
{
	struct {
		struct kvm_irq_routing header;
		struct kvm_irq_routing_entry entry;
	} routing = {
		.header = { .nr = 1 },
		.entry = {
			.type = KVM_IRQ_ROUTING_MSI,
			.u.msi = { .address_lo = APIC_DEFAULT_GPA, .data = data },
		},
	};

	vm_ioctl(v->vm, KVM_SET_GSI_ROUTING, &routing.header);
}

/* Up to where the guest waits again: is the vector told at its end? */
static bool eoi_vm_tells(struct eoi_vm *v, uint32_t icr, uint8_t vector)
{
	struct kvm_run *run = v->vcpu->run;
	bool told = false, taken = false;

	*(uint32_t *)io_data(v->vcpu) = icr;
	for (;;) {
		vcpu_run(v->vcpu);
		if (run->exit_reason == KVM_EXIT_IOAPIC_EOI) {
			TEST_ASSERT_EQ(run->eoi.vector, vector);
			told = true;
			continue;
		}
		TEST_ASSERT_KVM_EXIT_REASON(v->vcpu, KVM_EXIT_IO);
		if (run->io.direction == KVM_EXIT_IO_IN)
			break;
		taken = true;
	}
	TEST_ASSERT(taken, "Vector %#x hasn't come", vector);
	return told;
}

static void check_eoi(struct __test_metadata *_metadata, unsigned long type)
{
	const uint32_t by_level = APIC_INT_LEVELTRIG | APIC_INT_ASSERT;
	bool is_protected = type == KVM_X86_PROTECTED_VM;
	struct eoi_vm v;

	eoi_vm_create(&v, type);

	/* Without a route */
	EXPECT_FALSE(eoi_vm_tells(&v, APIC_DEST_SELF | EOI_VECTOR, EOI_VECTOR));

	/* With one it's only told of what has been raised by it. */
	eoi_vm_set_route(&v, by_level | EOI_VECTOR);
	EXPECT_EQ(!is_protected, eoi_vm_tells(&v, APIC_DEST_SELF | EOI_VECTOR, EOI_VECTOR));
	EXPECT_FALSE(eoi_vm_tells(&v, APIC_DEST_SELF | (EOI_VECTOR + 1), EOI_VECTOR + 1));
	kvm_irq_line(v.vm, 0, 1);
	EXPECT_TRUE(eoi_vm_tells(&v, APIC_DEST_SELF | (EOI_VECTOR + 1), EOI_VECTOR));

	/* By one that nothing can be raised by it's told of nothing. */
	eoi_vm_set_route(&v, by_level | APIC_DM_NMI | EOI_VECTOR);
	EXPECT_EQ(!is_protected,
		  eoi_vm_tells(&v, APIC_DEST_SELF | by_level | EOI_VECTOR, EOI_VECTOR));
	eoi_vm_set_route(&v, by_level | 0x80);
	EXPECT_EQ(!is_protected, eoi_vm_tells(&v, APIC_DEST_SELF | by_level | 0x80, 0x80));
	eoi_vm_free(&v);
}

TEST(eoi)
{
	check_eoi(_metadata, KVM_X86_PROTECTED_VM);
}

TEST(eoi_of_ordinary_vm)
{
	check_eoi(_metadata, KVM_X86_DEFAULT_VM);
}

static uint64_t guest_triple_fault(uint64_t u0, uint64_t u1, uint64_t u2, uint64_t u3)
{
	static const struct desc_ptr no_idt;

	asm volatile("lidt %0; int3" : : "m" (no_idt));
	return 0;
}

TEST_F(protected, triple_fault)
{
	struct kvm_ioeventfd ioeventfd = {
		.addr = 0x510,
		.len = 2,
		.fd = eventfd(0, EFD_CLOEXEC),
		.flags = KVM_IOEVENTFD_FLAG_PIO,
	};
	struct kvm_vcpu *vcpu = self->p->vcpu;
	struct kvm_mp_state state;

	ASSERT_EQ(0, __vm_ioctl(self->p->vm, KVM_IOEVENTFD, &ioeventfd));
	ioeventfd.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN;
	ASSERT_EQ(0, pvm_start(self->p, guest_triple_fault, 0, 0, 0, 0));
	ASSERT_EQ(KVM_EXIT_SHUTDOWN, vcpu->run->exit_reason);
	if (self->is_protected) {
		EXPECT_REFUSED(EIO, _vcpu_run(vcpu));
		EXPECT_REFUSED(EIO, _vcpu_run(self->p->vcpus[1]));
	}
	/* Userspace can clean up in either. */
	EXPECT_EQ(0, __vcpu_ioctl(vcpu, KVM_GET_MP_STATE, &state));
	EXPECT_EQ(0, __vm_ioctl(self->p->vm, KVM_IOEVENTFD, &ioeventfd));
}

static uint64_t guest_flds(uint64_t addr, uint64_t u1, uint64_t u2, uint64_t u3)
{
	return kvm_asm_safe(FLDS_MEM_EAX, "a"(addr));
}

TEST_F(protected, internal_error)
{
	struct kvm_run *run = self->p->vcpu->run;
	struct kvm_run poison;

	memset(&poison, 0x5a, sizeof(poison));
	run->internal = poison.internal;
	ASSERT_EQ(0, pvm_start(self->p, guest_flds, MMIO_GPA + SHARED_ALIAS, 0, 0, 0));
	ASSERT_EQ(KVM_EXIT_INTERNAL_ERROR, run->exit_reason);
	EXPECT_EQ(KVM_INTERNAL_ERROR_EMULATION, run->internal.suberror);
	if (self->is_protected) {
		EXPECT_EQ(0, run->internal.ndata);
		EXPECT_EQ(0, memcmp(run->internal.data, poison.internal.data,
				    sizeof(poison.internal.data)));
	} else {
		EXPECT_LT(2, run->emulation_failure.ndata);
		EXPECT_EQ(0xd9, run->emulation_failure.insn_bytes[0]);
	}

	/* It's #UD for the guest. */
	vcpu_run(self->p->vcpu);
	EXPECT_EQ(UD_VECTOR, pvm_result(self->p));
}

/*
 * Registers that have nothing to do with why the guest exits have a secret in them, those
 * that do have it where they aren't used.
 */
#define SECRET		0x5ec2e75ec2e75e00ul
#define SECRET_PORT	0x0f

#define WITH_SECRETS(_insn, _inputs...)						\
	asm volatile("mov %%rax, %%rbx; mov %%rax, %%rcx; mov %%rax, %%rdx\n\t"	\
		     "mov %%rax, %%r8; mov %%rax, %%r9; mov %%rax, %%r10\n\t"	\
		     "mov %%rax, %%r11; mov %%rax, %%r12; mov %%rax, %%r13\n\t"	\
		     "mov %%rax, %%r14; mov %%rax, %%r15; mov %%rax, %%rsi\n\t"	\
		     "movq %%rax, %%xmm0\n\t"					\
		     _insn							\
		     : "+a" (rax)						\
		     : _inputs							\
		     : "rbx", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "r12",	\
		       "r13", "r14", "r15", "xmm0", "memory", "cc")

static uint64_t guest_secret_out(uint64_t u0, uint64_t u1, uint64_t u2, uint64_t u3)
{
	uint64_t rax = SECRET;

	WITH_SECRETS("outb %%al, %[port]", [port] "i" (SECRET_PORT));
	return 0;
}

static uint64_t guest_secret_store(uint64_t addr, uint64_t u1, uint64_t u2, uint64_t u3)
{
	uint64_t rax = SECRET;

	WITH_SECRETS("movb %%al, (%%rdi)", "D" (addr));
	return 0;
}

static uint64_t guest_secret_load(uint64_t addr, uint64_t u1, uint64_t u2, uint64_t u3)
{
	uint64_t rax = SECRET;

	WITH_SECRETS("movb (%%rdi), %%al", "D" (addr));
	return 0;
}

static uint64_t guest_secret_end(uint64_t u0, uint64_t u1, uint64_t u2, uint64_t u3)
{
	static const struct desc_ptr no_idt;
	uint64_t rax = SECRET;

	WITH_SECRETS("lidt %[no_idt]; int3", [no_idt] "m" (no_idt));
	return 0;
}

/* Is the secret, or an address of the function's code, anywhere that userspace maps? */
static bool run_tells(struct pvm *p, guest_fn fn)
{
	int dev = open_kvm_dev_path_or_exit();
	int i, size = ioctl(dev, KVM_GET_VCPU_MMAP_SIZE, NULL);
	char *run = (void *)p->vcpu->run;
	uint64_t value;

	TEST_ASSERT(size > 0, __KVM_IOCTL_ERROR("KVM_GET_VCPU_MMAP_SIZE", size));
	close(dev);
	for (i = 0; i + sizeof(value) <= size; i++) {
		memcpy(&value, run + i, sizeof(value));
		if (value == SECRET || (value >= (uint64_t)fn && value < (uint64_t)fn + 256))
			return true;
	}
	return false;
}

/* What isn't what an exit is about keeps the values that it has had. */
#define EXPECT_EXIT(_reason, _member, _fn)						\
do {											\
	size_t _size = sizeof(run->_member);						\
											\
	ASSERT_EQ(_reason, run->exit_reason);						\
	EXPECT_EQ(!self->is_protected, run_tells(self->p, _fn));			\
	EXPECT_EQ(0, memcmp(run->padding + _size, poison + _size, sizeof(poison) - _size)); \
	memset(run->padding, 0x5a, sizeof(run->padding));				\
} while (0)

/* In the control it's by asking for it, whatever the reason. */
TEST_F(protected, exits_keep_secrets)
{
	struct kvm_run *run = self->p->vcpu->run;
	struct pvm *p = self->p;
	char poison[sizeof(run->padding)];

	memset(poison, 0x5a, sizeof(poison));
	memcpy(run->padding, poison, sizeof(poison));
	if (!self->is_protected)
		run->kvm_valid_regs = KVM_SYNC_X86_REGS;

	ASSERT_EQ(0, pvm_start(p, guest_secret_out, 0, 0, 0, 0));
	EXPECT_EQ(SECRET_PORT, run->io.port);
	EXPECT_EXIT(KVM_EXIT_IO, io, guest_secret_out);
	vcpu_run(p->vcpu);

	memcpy(run->padding, poison, sizeof(poison));
	ASSERT_EQ(0, pvm_start(p, guest_secret_store, MMIO_GPA + SHARED_ALIAS, 0, 0, 0));
	EXPECT_EQ(1, run->mmio.len);
	EXPECT_EQ(0, run->mmio.data[0]);
	EXPECT_EQ(0, memcmp(run->mmio.data + 1, poison, sizeof(run->mmio.data) - 1));
	EXPECT_EXIT(KVM_EXIT_MMIO, mmio, guest_secret_store);
	vcpu_run(p->vcpu);

	memcpy(run->padding, poison, sizeof(poison));
	ASSERT_EQ(0, pvm_start(p, guest_secret_load, MMIO_GPA + SHARED_ALIAS, 0, 0, 0));
	EXPECT_EQ(0, memcmp(run->mmio.data, poison, sizeof(run->mmio.data)));
	EXPECT_EXIT(KVM_EXIT_MMIO, mmio, guest_secret_load);
	vcpu_run(p->vcpu);

	memcpy(run->padding, poison, sizeof(poison));
	ASSERT_EQ(-1, pvm_start(p, guest_secret_load, gva_of(PAGE, PRIVATE), 0, 0, 0));
	EXPECT_EXIT(KVM_EXIT_MEMORY_FAULT, memory_fault, guest_secret_load);
	ASSERT_EQ(0, fallocate(p->fd, 0, PAGE * PAGE_SIZE, PAGE_SIZE));
	vcpu_run(p->vcpu);

	memcpy(run->padding, poison, sizeof(poison));
	ASSERT_EQ(0, pvm_start(p, guest_secret_end, 0, 0, 0, 0));
	/* The control may have been reset. */
	ASSERT_EQ(KVM_EXIT_SHUTDOWN, run->exit_reason);
	if (self->is_protected)
		EXPECT_EXIT(KVM_EXIT_SHUTDOWN, hw, guest_secret_end);
}

/*
 * perf, in a thread that runs the guest
 */
#define PERF_PAGES	8

static uint64_t guest_spin(uint64_t nr, uint64_t u1, uint64_t u2, uint64_t u3)
{
	asm volatile("1: dec %0; jnz 1b" : "+r" (nr) : : "cc");
	return 0;
}

TEST_F(protected, perf)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof(attr),
		.config = PERF_COUNT_SW_CPU_CLOCK,
		.sample_period = 100000,
		.sample_type = PERF_SAMPLE_IP,
	};
	const size_t size = PERF_PAGES * PAGE_SIZE;
	struct perf_event_mmap_page *page;
	struct {
		struct perf_event_header header;
		uint64_t ip;
	} *sample;
	unsigned int i, mode, nr = 0;
	uint64_t tail = 0;
	char *data;
	int fd;

	fd = syscall(__NR_perf_event_open, &attr, 0, -1, -1, 0);
	if (fd < 0)
		SKIP(return, "No perf events");
	page = mmap(NULL, PAGE_SIZE + size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, page);
	data = (char *)page + PAGE_SIZE;

	for (i = 0; i < 10000 && nr < 10; i++) {
		pvm_call(self->p, guest_spin, 1000000, 0, 0, 0);
		while (tail != READ_ONCE(page->data_head)) {
			/* Records are of 8 or 16 bytes and more; of these none wraps. */
			sample = (void *)data + tail % size;
			tail += sample->header.size;
			mode = sample->header.misc & PERF_RECORD_MISC_CPUMODE_MASK;
			if (sample->header.type != PERF_RECORD_SAMPLE ||
			    (mode != PERF_RECORD_MISC_GUEST_KERNEL &&
			     mode != PERF_RECORD_MISC_GUEST_USER))
				continue;
			nr++;
			EXPECT_EQ(self->is_protected, !sample->ip) {
				TH_LOG("RIP %llx", (unsigned long long)sample->ip);
			}
		}
		page->data_tail = tail;
	}
	EXPECT_LT(0, nr);
	munmap(page, PAGE_SIZE + size);
	close(fd);
}

/*
 * Interrupts
 */
static int signal_msi(struct pvm *p, uint32_t data)
{
	struct kvm_msi msi = { .address_lo = APIC_DEFAULT_GPA, .data = data };

	return __vm_ioctl(p->vm, KVM_SIGNAL_MSI, &msi);
}

TEST_F(protected, msi)
{
	unsigned int mode, vector;
	bool allowed;

	for (mode = 0; mode < 8; mode++) {
		for (vector = 0; vector < 256; vector++) {
			/* SIPI and ExtINT are nothing that an MSI can be. */
			if (mode == 3 || mode >= 6)
				continue;
			/* That is no test of an ordinary guest. */
			if (!self->is_protected && mode == 5)
				continue;
			allowed = mode < 2 && vector >= 32 && vector != 0x80;
			EXPECT_EQ(self->is_protected && !allowed,
				  signal_msi(self->p, mode << 8 | vector) < 0 && errno == EPERM) {
				TH_LOG("Delivery mode %u, vector %#x", mode, vector);
			}
		}
	}
}

#define IOAPIC_GPA	0xfec00000ul
#define IOAPIC_PINS	24
/* Of the routes that KVM starts with */
#define PIT_PIN		0
#define IRQ_GSI		24

#define PIT_VECTOR	0x62
#define MARKER_VECTOR	0x41
#define SINT_VECTOR	0x42

/* Where a second CPU starts, in real mode: mov $AP_VALUE, %al; out %al, $AP_PORT; hlt */
#define AP_GPA		0x8000
#define AP_PORT		0x0c
#define AP_VALUE	0x33

/* Exceptions without an error code */
static const uint8_t exceptions[] = { NMI_VECTOR, MF_VECTOR, MC_VECTOR };

/* The guest's, by vector */
static uint64_t guest_irqs[256];

static void guest_count_irq(struct ex_regs *regs)
{
	guest_irqs[regs->vector]++;
	if (regs->vector != NMI_VECTOR)
		x2apic_write_reg(APIC_EOI, 0);
}

static uint64_t guest_enable_apic(uint64_t u0, uint64_t u1, uint64_t u2, uint64_t u3)
{
	x2apic_enable();
	return 0;
}

/* How many of a vector have come, in all, or of all vectors */
static uint64_t guest_take(uint64_t vector, uint64_t nr_loops, uint64_t u2, uint64_t u3)
{
	uint64_t i, sum = 0;

	/* There's a red zone. */
	asm volatile("sub $128, %%rsp; sti; 1: dec %0; jnz 1b; cli; add $128, %%rsp"
		     : "+r" (nr_loops) : : "memory", "cc");
	if (vector < ARRAY_SIZE(guest_irqs))
		return READ_ONCE(guest_irqs[vector]);

	for (i = 0; i < ARRAY_SIZE(guest_irqs); i++)
		sum += READ_ONCE(guest_irqs[i]);
	return sum;
}

#define ALL_VECTORS	ARRAY_SIZE(guest_irqs)

static void guest_write_ioapic(uint32_t reg, uint32_t value)
{
	WRITE_ONCE(*(uint32_t *)IOAPIC_GPA, reg);
	WRITE_ONCE(*(uint32_t *)(IOAPIC_GPA + 0x10), value);
}

static uint64_t guest_unmask_pit(uint64_t u0, uint64_t u1, uint64_t u2, uint64_t u3)
{
	/* Not by the PIC, which nobody has initialized, as well */
	asm volatile("outb %b0, $0x21" : : "a" (0xff));
	/* Not by way of the PIC, which is at LINT0 */
	x2apic_write_reg(0x350, APIC_LVT_MASKED);
	guest_write_ioapic(0x11 + 2 * PIT_PIN, 0);
	guest_write_ioapic(0x10 + 2 * PIT_PIN, PIT_VECTOR);
	return 0;
}

/* As after a reset each is 0 but for the mask. */
static uint64_t guest_count_ioapic_entries(uint64_t u0, uint64_t u1, uint64_t u2, uint64_t u3)
{
	uint64_t reg, nr = 0;

	for (reg = 0x10; reg < 0x10 + 2 * IOAPIC_PINS; reg++) {
		WRITE_ONCE(*(uint32_t *)IOAPIC_GPA, reg);
		nr += READ_ONCE(*(uint32_t *)(IOAPIC_GPA + 0x10)) !=
		      (reg & 1 ? 0 : APIC_LVT_MASKED);
	}
	return nr;
}

static uint64_t guest_read_apic(uint64_t reg, uint64_t u1, uint64_t u2, uint64_t u3)
{
	return xapic_read_reg(reg);
}

static uint64_t guest_write_icr(uint64_t icr, uint64_t u1, uint64_t u2, uint64_t u3)
{
	x2apic_write_reg(APIC_ICR, icr);
	return 0;
}

/* A VM that isn't launched yet */
FIXTURE(interrupts)
{
	struct pvm pvm;
	struct pvm *p;
	bool is_protected;
};

FIXTURE_VARIANT(interrupts)
{
	unsigned long type;
};

FIXTURE_VARIANT_ADD(interrupts, protected_vm) {
	.type = KVM_X86_PROTECTED_VM,
};

FIXTURE_VARIANT_ADD(interrupts, default_vm) {
	.type = KVM_X86_DEFAULT_VM,
};

static void create_for_interrupts(struct pvm *p, unsigned long type)
{
	static const uint8_t ap_code[] = {
		0xb0, AP_VALUE, 0xe6, AP_PORT, 0xf4, 0xeb, 0xfd,
	};
	struct kvm_pit_config pit = {};
	int i;

	pvm_create(p, type, 2);
	vm_ioctl(p->vm, KVM_CREATE_PIT2, &pit);
	map_both(p->vm, IOAPIC_GPA, 1, p->bit);
	memcpy(addr_gpa2hva(p->vm, AP_GPA), ap_code, sizeof(ap_code));
	for (i = 0; i < ARRAY_SIZE(exceptions); i++)
		vm_install_exception_handler(p->vm, exceptions[i], guest_count_irq);
	for (i = 32; i < 256; i++)
		vm_install_exception_handler(p->vm, i, guest_count_irq);
}

FIXTURE_SETUP(interrupts)
{
	if (!has_vm_type(variant->type))
		SKIP(return, "VM type %lu, or the shared GPA bit, is not supported",
		     variant->type);

	self->p = &self->pvm;
	self->is_protected = variant->type == KVM_X86_PROTECTED_VM;
	create_for_interrupts(self->p, variant->type);
}

FIXTURE_TEARDOWN(interrupts)
{
	if (self->p)
		pvm_free(self->p);
}

static uint64_t take(struct pvm *p, uint64_t vector)
{
	return pvm_call(p, guest_take, vector, 1000, 0, 0);
}

static int set_route(struct pvm *p, const struct kvm_irq_routing_entry *entry)
{
	struct kvm_irq_routing *routing;
	int r;

	routing = calloc(1, sizeof(*routing) + sizeof(*entry));
	TEST_ASSERT(routing, "Out of memory");
	routing->nr = 1;
	routing->entries[0] = *entry;
	r = __vm_ioctl(p->vm, KVM_SET_GSI_ROUTING, routing);
	free(routing);
	return r;
}

static void set_msi_route(struct pvm *p, uint32_t data)
{
	const struct kvm_irq_routing_entry entry = {
		.gsi = IRQ_GSI,
		.type = KVM_IRQ_ROUTING_MSI,
		.u.msi = { .address_lo = APIC_DEFAULT_GPA, .data = data },
	};

	TEST_ASSERT(!set_route(p, &entry), "Can't set a route for %x", data);
}

static int new_irqfd(struct pvm *p)
{
	struct kvm_irqfd irqfd = { .gsi = IRQ_GSI };

	irqfd.fd = eventfd(0, 0);
	TEST_ASSERT((int)irqfd.fd >= 0, __KVM_SYSCALL_ERROR("eventfd()", -1));
	vm_ioctl(p->vm, KVM_IRQFD, &irqfd);
	return irqfd.fd;
}

/* Raise what MSIs of this data are, in one way or another. */
static void raise_msi(struct pvm *p, int irqfd, unsigned int way, uint32_t data)
{
	set_msi_route(p, data);
	switch (way) {
	case 0:
		eventfd_write(irqfd, 1);
		break;
	case 1:
		kvm_irq_line(p->vm, IRQ_GSI, 1);
		break;
	case 2:
		signal_msi(p, data);
		break;
	}
}

/*
 * An SMI or INIT, as the delivery mode says, is on its way to an ordinary guest; if so,
 * it's taken back.
 */
static bool takes_back(struct pvm *p, unsigned int mode)
{
	struct kvm_vcpu_events events;
	bool pending;

	vcpu_events_get(p->vcpu, &events);
	pending = mode == APIC_DM_SMI ? events.smi.pending : events.smi.latched_init;
	events.smi.pending = 0;
	events.smi.latched_init = 0;
	events.flags |= KVM_VCPUEVENT_VALID_SMM;
	vcpu_events_set(p->vcpu, &events);
	return pending;
}

/* The irqfd stays, what it raises is changed again and again. */
TEST_F(interrupts, routes)
{
	static const unsigned int modes[] = {
		APIC_DM_FIXED, 0x100, APIC_DM_SMI, APIC_DM_NMI, APIC_DM_INIT, APIC_DM_STARTUP,
		APIC_DM_EXTINT,
	};
	static const uint8_t vectors[] = {
		0, GP_VECTOR, MF_VECTOR, MC_VECTOR, 0x20, 0x7f, 0x80, 0x81, 0xff,
	};
	unsigned int way, m, v, i, counted;
	uint64_t before, marker;
	struct pvm *p = self->p;
	bool expected, unwanted;
	int irqfd;

	pvm_launch(p);
	pvm_call(p, guest_enable_apic, 0, 0, 0, 0);
	irqfd = new_irqfd(p);

	for (way = 0; way < 3; way++) {
		for (m = 0; m < ARRAY_SIZE(modes); m++) {
			/* An ordinary guest wouldn't go on after these. */
			unwanted = !self->is_protected &&
				   (modes[m] == APIC_DM_INIT ||
				    (modes[m] == APIC_DM_SMI && kvm_has_cap(KVM_CAP_X86_SMM)));
			for (v = 0; v < ARRAY_SIZE(vectors); v++) {
				expected = modes[m] <= 0x100 && vectors[v] >= 16;
				if (self->is_protected)
					expected &= vectors[v] >= 32 && vectors[v] != 0x80;
				else
					expected |= modes[m] == APIC_DM_NMI;
				counted = modes[m] == APIC_DM_NMI ? NMI_VECTOR : vectors[v];

				before = take(p, counted);
				marker = take(p, MARKER_VECTOR);
				raise_msi(p, irqfd, way, modes[m] | vectors[v]);
				/* An irqfd may take its time. */
				for (i = 0; unwanted && !takes_back(p, modes[m]); i++) {
					ASSERT_GT(1000, i);
					usleep(1000);
				}
				raise_msi(p, irqfd, way, MARKER_VECTOR);
				for (i = 0; i < 10000; i++) {
					if (take(p, MARKER_VECTOR) != marker)
						break;
				}
				EXPECT_EQ(marker + 1, take(p, MARKER_VECTOR));
				EXPECT_EQ(before + expected, take(p, counted)) {
					TH_LOG("Delivery mode %#x, vector %#x, way %u",
					       modes[m], vectors[v], way);
				}
			}
		}
	}
	close(irqfd);
}

static uint64_t guest_set_up_sint(uint64_t sint, uint64_t vector, uint64_t u2, uint64_t u3)
{
	uint64_t r = wrmsr_safe(HV_X64_MSR_SCONTROL, 1);

	return r ?: wrmsr_safe(HV_X64_MSR_SINT0 + sint, vector);
}

/* Hyper-V's are of the vector that the guest has chosen, Xen's aren't there. */
TEST_F(interrupts, other_routes)
{
	struct kvm_irq_routing_entry entry = {
		.gsi = IRQ_GSI,
		.type = KVM_IRQ_ROUTING_XEN_EVTCHN,
		.u.xen_evtchn = { .port = 1, .priority = -1, },
	};
	struct pvm *p = self->p;
	int r, sint;

	if (self->is_protected)
		EXPECT_EQ(-1, set_route(p, &entry));

	if (!kvm_has_cap(KVM_CAP_HYPERV_SYNIC2))
		SKIP(return, "No Hyper-V");

	vcpu_set_hv_cpuid(p->vcpu);
	vcpu_enable_cap(p->vcpu, KVM_CAP_HYPERV_SYNIC2, 0);
	pvm_launch(p);
	pvm_call(p, guest_enable_apic, 0, 0, 0, 0);
	r = pvm_start(p, guest_set_up_sint, 2, SINT_VECTOR, 0, 0);
	while (!r && p->vcpu->run->exit_reason == KVM_EXIT_HYPERV) {
		EXPECT_FALSE(self->is_protected);
		r = _vcpu_run(p->vcpu);
	}
	ASSERT_EQ(0, r);
	ASSERT_EQ(0, pvm_result(p));

	for (sint = 0; sint < 16; sint++) {
		entry = (struct kvm_irq_routing_entry) {
			.gsi = IRQ_GSI,
			.type = KVM_IRQ_ROUTING_HV_SINT,
			.u.hv_sint = { .vcpu = 0, .sint = sint },
		};
		ASSERT_EQ(0, set_route(p, &entry));
		kvm_irq_line(p->vm, IRQ_GSI, 1);
		EXPECT_EQ(sint >= 2, take(p, ALL_VECTORS));
	}
	EXPECT_EQ(1, take(p, SINT_VECTOR));
}

/*
 * What userspace has left in the interrupt controllers and timers, to have it act later
 */
TEST_F(interrupts, left_in_local_apic)
{
	static const struct {
		unsigned int reg;
		uint32_t left, reset;
	} regs[] = {
		{ APIC_SPIV, 0x1ff, 0xff },
		{ 0xd0, 2 << 24, 0 },
		/* In service, triggered by a level, and pending: 0x31, 0x80, and 0x53 */
		{ 0x110, 1 << 17, 0 },
		{ 0x1c0, 1 << 1, 0 },
		{ APIC_IRR + 0x40, 1, 0 },
		{ APIC_IRR + 0x20, 1 << 19, 0 },
		{ APIC_LVTT, APIC_LVT_TIMER_PERIODIC | 0x54, APIC_LVT_MASKED },
		{ 0x360, APIC_DM_NMI, APIC_LVT_MASKED },
		{ APIC_TDCR, 0xb, 0 },
		{ APIC_TMICT, 100000, 0 },
	};
	struct kvm_lapic_state lapic;
	struct pvm *p = self->p;
	uint64_t value;
	int i;

	vcpu_ioctl(p->vcpu, KVM_GET_LAPIC, &lapic);
	for (i = 0; i < ARRAY_SIZE(regs); i++)
		*(uint32_t *)(lapic.regs + regs[i].reg) = regs[i].left;
	vcpu_ioctl(p->vcpu, KVM_SET_LAPIC, &lapic);

	pvm_launch(p);
	for (i = 0; i < ARRAY_SIZE(regs); i++) {
		value = pvm_call(p, guest_read_apic, regs[i].reg, 0, 0, 0);
		/* The timer's interrupt may be there, too. */
		if (!self->is_protected)
			value &= regs[i].left;
		EXPECT_EQ(self->is_protected ? regs[i].reset : regs[i].left, value) {
			TH_LOG("Register %#x", regs[i].reg);
		}
	}

	pvm_call(p, guest_enable_apic, 0, 0, 0, 0);
	value = pvm_call(p, guest_take, ALL_VECTORS, 1000000, 0, 0);
	EXPECT_EQ(self->is_protected, !value);
}

static void set_ioapic_entries(struct pvm *p, uint64_t pit_entry)
{
	struct kvm_irqchip chip = { .chip_id = KVM_IRQCHIP_IOAPIC };

	vm_ioctl(p->vm, KVM_GET_IRQCHIP, &chip);
	/* By level, vector 0x61, taken but not at its end; and raised again */
	chip.chip.ioapic.redirtbl[3].bits = 1 << 15 | 1 << 14 | 0x61;
	chip.chip.ioapic.irr = 1 << 3;
	chip.chip.ioapic.redirtbl[PIT_PIN].bits = pit_entry;
	vm_ioctl(p->vm, KVM_SET_IRQCHIP, &chip);
}

/* Mode 2 is periodic, 0 raises one interrupt. */
static void start_pit(struct pvm *p, unsigned int mode, uint32_t count)
{
	struct kvm_pit_state2 pit;

	vm_ioctl(p->vm, KVM_GET_PIT2, &pit);
	pit.channels[0].mode = mode;
	pit.channels[0].gate = 1;
	pit.channels[0].count = count;
	vm_ioctl(p->vm, KVM_SET_PIT2, &pit);
}

TEST_F(interrupts, left_in_ioapic_and_pit)
{
	struct pvm *p = self->p;
	uint64_t value = 0;
	int i;

	set_ioapic_entries(p, APIC_LVT_MASKED | 0x60);
	/* Every millisecond */
	start_pit(p, 2, 1193);
	pvm_launch(p);
	EXPECT_EQ(self->is_protected ? 0 : 2,
		  pvm_call(p, guest_count_ioapic_entries, 0, 0, 0, 0));

	pvm_call(p, guest_enable_apic, 0, 0, 0, 0);
	pvm_call(p, guest_unmask_pit, 0, 0, 0, 0);
	/* With time for a tick, there's none; without the VM is not protected. */
	for (i = 0; i < (self->is_protected ? 100 : 10000) && !value; i++)
		value = pvm_call(p, guest_take, PIT_VECTOR, 100000, 0, 0);
	EXPECT_EQ(self->is_protected, !value);
}

/* An NMI of the PIT's comes while the VM is being finalized, or just before or after. */
TEST(nmi_meanwhile)
{
	struct kvm_vcpu_events none;
	uint32_t round, count;
	struct pvm p;
	int r;

	for (round = 0; round < 5; round++) {
		create_for_interrupts(&p, KVM_X86_PROTECTED_VM);
		vcpu_events_get(p.vcpu, &none);
		none.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
		pvm_load(&p);

		/* If it has come before it fails. */
		for (count = 50; count < 65536; count += count / 8) {
			set_ioapic_entries(&p, APIC_DM_NMI);
			start_pit(&p, 0, count);
			r = pvm_finalize(&p, NULL);
			if (!r)
				break;
			ASSERT_EQ(EINVAL, errno);
			vcpu_events_set(p.vcpu, &none);
		}
		ASSERT_EQ(0, r);
		vcpu_run(p.vcpu);
		ASSERT_TRUE(pvm_is_done(&p));
		EXPECT_EQ(0, take(&p, NMI_VECTOR));
		pvm_free(&p);
	}
}

/*
 * Other CPUs
 */
static void *run_ap(void *arg)
{
	struct kvm_vcpu *vcpu = arg;
	int r;

	do {
		r = _vcpu_run(vcpu);
	} while (r && errno == EAGAIN);
	return (void *)(long)r;
}

TEST_F(interrupts, second_cpu)
{
	struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_RUNNABLE };
	struct pvm *p = self->p;
	struct kvm_vcpu *ap = p->vcpus[1];
	pthread_t thread;
	void *r;

	pvm_launch(p);
	pvm_call(p, guest_enable_apic, 0, 0, 0, 0);

	/* Userspace can run it, but it doesn't run. */
	ap->run->immediate_exit = 1;
	EXPECT_REFUSED(EINTR, __vcpu_run(ap));
	ap->run->immediate_exit = 0;
	if (self->is_protected)
		EXPECT_REFUSED(EPERM, __vcpu_ioctl(ap, KVM_SET_MP_STATE, &state));
	vcpu_mp_state_get(ap, &state);
	EXPECT_EQ(KVM_MP_STATE_UNINITIALIZED, state.mp_state);

	pvm_call(p, guest_write_icr, 1ul << 32 | APIC_INT_ASSERT | APIC_DM_INIT, 0, 0, 0);
	ap->run->immediate_exit = 1;
	EXPECT_REFUSED(EINTR, __vcpu_run(ap));
	ap->run->immediate_exit = 0;
	vcpu_mp_state_get(ap, &state);
	EXPECT_EQ(KVM_MP_STATE_INIT_RECEIVED, state.mp_state);

	/* It waits in the kernel until it's told where to start. */
	ASSERT_EQ(0, pthread_create(&thread, NULL, run_ap, ap));
	pvm_call(p, guest_write_icr,
		 1ul << 32 | APIC_INT_ASSERT | APIC_DM_STARTUP | AP_GPA >> 12, 0, 0, 0);
	ASSERT_EQ(0, pthread_join(thread, &r));
	EXPECT_EQ(NULL, r);
	ASSERT_EQ(KVM_EXIT_IO, ap->run->exit_reason);
	EXPECT_EQ(AP_PORT, ap->run->io.port);
	EXPECT_EQ(AP_VALUE, *((uint8_t *)ap->run + ap->run->io.data_offset));
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(has_vm_type(KVM_X86_PROTECTED_VM));

	return test_harness_run(argc, argv);
}
