// SPDX-License-Identifier: GPL-2.0-only
/*
 * A VM all of whose memory is private, but what it shares, and whose guest has a secret in
 * its registers. It is protected, or isolated only, for comparison: they differ in their
 * type, and in that the former is finalized.
 *
 * Whenever it has done what it was told to, the guest waits for its next command at a
 * port. When it goes on it looks whether its registers are as they were, and tells.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "audit.h"

#define GDT_GPA 0x6000UL
#define TSS_GPA 0x6800UL
#define IDT_GPA 0x7000UL
#define STACK_GPA 0xb000UL
#define DATA_GPA 0xb000UL
#define APIC_GPA 0xfee00000UL
#define WAIT_PORT 0x0e

extern const char whole_code[], whole_events[], whole_end[];

/*
 * At 0xb000 it keeps: the secret, and at 8 what isn't as it was, at 12 the last event, at
 * 16 how often it has started. The desk is at 0x40400000, the local APIC at 0xfee00000.
 */
asm(".pushsection .rodata\n"
    ".macro expect_register register, bit\n"
    "	cmpq	%rax, \\register\n"
    "	je	1f\n"
    "	orl	$1 << \\bit, 0xb008\n"
    "1:\n"
    ".endm\n"
    ".macro expect_msr msr, bit\n"
    "	movl	$\\msr, %ecx\n"
    "	rdmsr\n"
    "	shlq	$32, %rdx\n"
    "	orq	%rax, %rdx\n"
    "	movq	%r8, %rax\n"
    "	expect_register %rdx, \\bit\n"
    ".endm\n"
    ".code64\n"
    "whole_code:\n"
    "	incl	0xb010\n"
    "	movl	$0xfee00000, %eax\n"
    "	movl	$0x1ff, 0xf0(%rax)\n"
    "	movl	$0x5a000000, 0xd0(%rax)\n"
    "	movq	0xb000, %rbx\n"
    "	movl	%ebx, %eax\n"
    "	movq	%rbx, %rdx\n"
    "	shrq	$32, %rdx\n"
    "	movl	$0xc0000100, %ecx\n" /* FS base */
    "	wrmsr\n"
    "	movl	$0xc0000082, %ecx\n" /* LSTAR */
    "	wrmsr\n"
    "	movq	%rbx, %cr2\n"
    "	movq	%rbx, %dr0\n"
    "	sti\n"
    "whole_wait:\n"
    "	movq	0xb000, %rbx\n"
    "	movq	%rbx, %rcx\n"
    "	movq	%rbx, %rdx\n"
    "	movq	%rbx, %rsi\n"
    "	movq	%rbx, %rdi\n"
    "	movq	%rbx, %rbp\n"
    "	movq	%rbx, %r8\n"
    "	movq	%rbx, %r9\n"
    "	movq	%rbx, %r10\n"
    "	movq	%rbx, %r11\n"
    "	movq	%rbx, %r12\n"
    "	movq	%rbx, %r13\n"
    "	movq	%rbx, %r14\n"
    "	movq	%rbx, %r15\n"
    "	movq	%rbx, %xmm0\n"
    "	xorl	%eax, %eax\n"
    "	outb	%al, $0x0e\n"
    "whole_again:\n"
    "	movq	0xb000, %rax\n"
    "	expect_register %rbx, 0\n"
    "	expect_register %rcx, 0\n"
    "	expect_register %rdx, 0\n"
    "	expect_register %rsi, 0\n"
    "	expect_register %rdi, 0\n"
    "	expect_register %rbp, 0\n"
    "	expect_register %r8, 0\n"
    "	expect_register %r9, 0\n"
    "	expect_register %r10, 0\n"
    "	expect_register %r11, 0\n"
    "	expect_register %r12, 0\n"
    "	expect_register %r13, 0\n"
    "	expect_register %r14, 0\n"
    "	expect_register %r15, 0\n"
    "	movq	%rax, %r8\n"
    "	movq	%xmm0, %rcx\n"
    "	expect_register %rcx, 1\n"
    "	movq	%cr2, %rcx\n"
    "	expect_register %rcx, 2\n"
    "	movq	%dr0, %rcx\n"
    "	expect_register %rcx, 3\n"
    "	expect_msr 0xc0000100, 4\n"
    "	expect_msr 0xc0000082, 5\n"
    "	movl	$0xfee00000, %ecx\n"
    "	movl	0xd0(%rcx), %ecx\n"
    "	movl	$0x5a000000, %eax\n"
    "	expect_register %rcx, 6\n"
    "	movq	%cr8, %rcx\n"
    "	movzbl	0xb014, %eax\n"
    "	expect_register %rcx, 7\n"
    "	movl	$0x40400000, %r15d\n"
    "	movl	0xb008, %eax\n"
    "	movl	%eax, 32(%r15)\n"
    "	movl	0xb00c, %eax\n"
    "	movl	%eax, 36(%r15)\n"
    "	movl	0xb010, %eax\n"
    "	movl	%eax, 40(%r15)\n"
    "	leaq	whole_again(%rip), %rax\n"
    "	movq	%rax, 48(%r15)\n"
    "	movl	(%r15), %edx\n"
    "	movq	8(%r15), %rsi\n"
    "	movq	16(%r15), %rbx\n"
    /* @value of CHECK and FILL: seed, and number of words in the upper half */
    "	movl	%ebx, %eax\n"
    "	movq	%rbx, %rcx\n"
    "	shrq	$32, %rcx\n"
    "	cmpl	$0, %edx\n"
    "	jne	3f\n"
    "1:	cmpl	%eax, (%rsi)\n"
    "	jne	2f\n"
    "	addq	$4, %rsi\n"
    "	imull	$1664525, %eax, %eax\n"
    "	addl	%ebx, %eax\n"
    "	loop	1b\n"
    "2:	movq	%rcx, %rax\n"
    "	jmp	whole_done\n"
    "3:	cmpl	$1, %edx\n"
    "	jne	3f\n"
    "1:	movl	%eax, (%rsi)\n"
    "	addq	$4, %rsi\n"
    "	imull	$1664525, %eax, %eax\n"
    "	addl	%ebx, %eax\n"
    "	loop	1b\n"
    "	jmp	whole_done\n"
    "3:	cmpl	$2, %edx\n"
    "	jne	3f\n"
    "	movq	(%rsi), %rax\n"
    "	jmp	whole_done\n"
    "3:	cmpl	$3, %edx\n"
    "	jne	3f\n"
    "	movq	%rbx, (%rsi)\n"
    "	jmp	whole_done\n"
    "3:	cmpl	$4, %edx\n"
    "	jne	3f\n"
    "	movl	%ecx, %edx\n"
    "	movl	%esi, %ecx\n"
    "	wrmsr\n"
    "	jmp	whole_done\n"
    "3:	cmpl	$5, %edx\n"
    "	jne	3f\n"
    "	movb	%bl, 0xb014\n"
    "	movq	%rbx, %cr8\n"
    "	jmp	whole_done\n"
    "3:	cmpl	$6, %edx\n"
    "	jne	3f\n"
    "1:	decq	%rbx\n"
    "	jnz	1b\n"
    "	jmp	whole_done\n"
    "3:	cmpl	$7, %edx\n"
    "	jne	3f\n"
    "	lidt	0xb100\n" /* there is nothing */
    "	int3\n"
    "3:	pshufb	(%rsi), %xmm0\n"
    "	movl	$0x51617141, %eax\n"
    "whole_done:\n"
    "	movq	%rax, 24(%r15)\n"
    "	jmp	whole_wait\n"
    "whole_event:\n"
    "	movl	%eax, 0xb00c\n"
    "	orl	$1 << 31, 0xb008\n"
    "	movl	$0xb000, %esp\n"
    "	movl	$0xfee00000, %eax\n"
    "	movl	$0, 0xb0(%rax)\n"
    "	sti\n"
    "	jmp	whole_wait\n"
    "	.balign 16\n"
    "whole_events:\n"
    "	.set vector, 0\n"
    "	.rept 256\n"
    "	.balign 16\n"
    "	movl	$0x100 + vector, %eax\n"
    "	jmp	whole_event\n"
    "	.set vector, vector + 1\n"
    "	.endr\n"
    "whole_end:\n"
    ".popsection\n");

static size_t offset_of(const char *code)
{
	return (uintptr_t)code - (uintptr_t)whole_code;
}

/* --- its initial content ------------------------------------------------------------------ */

static void put(char *content, unsigned long gpa, uint64_t value)
{
	memcpy(content + gpa, &value, sizeof(value));
}

/*
 * The first GiB is mapped twice, once with the shared bit; and the local APIC, where it
 * is. Two MiB at a time, whatever is there.
 */
static void put_tables(char *content, uint64_t shared_bit)
{
	const uint64_t table = 3, large = 0x83;
	unsigned long pml4 = TABLE_GPA, pdpt = pml4 + PAGE, pd = pdpt + PAGE;

	put(content, pml4, pdpt | table);
	for (unsigned long i = 0; i < 2; i++) {
		put(content, pdpt + 8 * i, (pd + i * PAGE) | table);
		for (unsigned long j = 0; j < 512; j++)
			put(content, pd + i * PAGE + 8 * j,
			    (j * HUGE_SIZE) | (i ? shared_bit : 0) | large);
	}
	put(content, pdpt + 8 * 3, (pd + 2 * PAGE) | table);
	put(content, pd + 2 * PAGE + 8 * (APIC_GPA % (1UL << 30) / HUGE_SIZE),
	    (APIC_GPA & ~(HUGE_SIZE - 1)) | large);
}

static void put_descriptors(char *content)
{
	put(content, GDT_GPA + 8, 0x00af9b000000ffff);
	put(content, GDT_GPA + 16, 0x00cf93000000ffff);
	put(content, GDT_GPA + 24, 0x00008b0000000067 | TSS_GPA << 16);
	for (unsigned long i = 0; i < 256; i++) {
		uint64_t address = ENTRY_GPA + offset_of(whole_events) + 16 * i;

		put(content, IDT_GPA + 16 * i,
		    (address & 0xffff) | 8 << 16 | 0x8eUL << 40 | (address >> 16) << 48);
	}
}

static bool load(struct vm *vm, struct target *target, uint64_t shared_bit)
{
	char *content = vm->shared;
	size_t size = CONTENT_PAGES * PAGE;
	bool loaded;

	put_tables(content, shared_bit);
	put_descriptors(content);
	memcpy(content + ENTRY_GPA, whole_code, offset_of(whole_end));
	put(content, DATA_GPA, target->secret);
	memcpy(content + SMRAM_GPA, "\x0f\xaa", 2); /* RSM */
	loaded = pwrite(vm->content, content, size, 0) == (ssize_t)size;
	/* Nothing of it is left in the shared half. */
	memset(content, 0, size);
	return loaded;
}

/* --- its vCPUs ----------------------------------------------------------------------------- */

static bool set_cpuid(struct vm *vm)
{
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[256];
	} cpuid;

	cpuid.head.nent = ARRAY_SIZE(cpuid.entries);
	if (ioctl(vm->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid))
		return false;
	/* There is no nested virtualization where there's a shared bit. */
	for (unsigned int i = 0; i < cpuid.head.nent; i++) {
		if (cpuid.entries[i].function == 1)
			cpuid.entries[i].ecx &= ~(1U << 5);
		if (cpuid.entries[i].function == 0x80000001)
			cpuid.entries[i].ecx &= ~(1U << 2);
	}
	return !ioctl(vm->vcpu, KVM_SET_CPUID2, &cpuid) &&
	       !ioctl(vm->vcpu2, KVM_SET_CPUID2, &cpuid);
}

/* 64-bit mode, from the start */
static bool set_registers(struct vm *vm)
{
	struct kvm_segment code = flat_segment(8, 11), data = flat_segment(16, 3);
	struct kvm_segment task = {
		.base = TSS_GPA,
		.limit = 0x67,
		.selector = 24,
		.type = 11,
		.present = 1,
	};
	struct kvm_regs regs = { .rip = ENTRY_GPA, .rsp = STACK_GPA, .rflags = 2 };
	struct kvm_sregs sregs;

	if (ioctl(vm->vcpu, KVM_GET_SREGS, &sregs))
		return false;
	code.db = 0;
	code.l = 1;
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.tr = task;
	sregs.ldt = (struct kvm_segment){ .unusable = 1 };
	sregs.gdt = (struct kvm_dtable){ .base = GDT_GPA, .limit = 39 };
	sregs.idt = (struct kvm_dtable){ .base = IDT_GPA, .limit = 4095 };
	sregs.cr3 = TABLE_GPA;
	sregs.cr0 = 0x80010033;	       /* PG, WP, NE, ET, MP, PE */
	sregs.cr4 = 0x660;	       /* OSXMMEXCPT, OSFXSR, MCE, PAE */
	sregs.efer = 1 << 10 | 1 << 8; /* LMA, LME */
	return !ioctl(vm->vcpu, KVM_SET_SREGS, &sregs) && !ioctl(vm->vcpu, KVM_SET_REGS, &regs);
}

static bool create(struct vm *vm, unsigned int type, bool split)
{
	int bit = ioctl(vm->kvm, KVM_CHECK_EXTENSION, KVM_CAP_X86_SHARED_GPA_BIT);
	struct kvm_enable_cap shared_bit = { .cap = KVM_CAP_X86_SHARED_GPA_BIT, .args = { bit } };
	struct kvm_enable_cap local_only = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };

	vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, (unsigned long)type);
	if (vm->fd < 0 || ioctl(vm->fd, KVM_ENABLE_CAP, &shared_bit) ||
	    (split ? ioctl(vm->fd, KVM_ENABLE_CAP, &local_only)
		   : ioctl(vm->fd, KVM_CREATE_IRQCHIP)))
		return false;
	vm->vcpu = ioctl(vm->fd, KVM_CREATE_VCPU, 0UL);
	vm->vcpu2 = ioctl(vm->fd, KVM_CREATE_VCPU, 1UL);
	return vm->vcpu >= 0 && vm->vcpu2 >= 0 && set_cpuid(vm) && set_registers(vm) &&
	       vm_map_run(vm);
}

static char *shared_memory(void *where, size_t size)
{
	return mmap(where, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static bool give_memory(struct vm *vm, struct target *target)
{
	int bit = ioctl(vm->kvm, KVM_CHECK_EXTENSION, KVM_CAP_X86_SHARED_GPA_BIT);
	char *memory = shared_memory(MEMORY, target->size);

	vm->content = new_memfd(CONTENT_PAGES * PAGE);
	vm->shared = shared_memory(NULL, CONTENT_PAGES * PAGE);
	vm->desk = shared_memory(NULL, PAGE);
	return memory == MEMORY && vm->shared != MAP_FAILED && vm->desk != MAP_FAILED &&
	       !fcntl(vm->content, F_ADD_SEALS, F_SEAL_GUEST) && load(vm, target, 1UL << bit) &&
	       !fallocate(target->fd, 0, 0, target->size) &&
	       vm_set_region(vm, 0, 0, LOADED_GPA, vm->shared, CONTENT_PAGES * PAGE, vm->content) &&
	       vm_set_region(vm, 1, 0, MEMORY_GPA, memory, target->size, target->fd) &&
	       vm_set_region(vm, 2, 0, DESK_GPA, vm->desk, PAGE, -1);
}

/* --- what it does --------------------------------------------------------------------------- */

/* Up to where it waits for its next command; false if it doesn't come there. */
bool guest_runs(struct vm *vm)
{
	if (!vm_run(vm))
		return false;
	errno = 0;
	return vm->run->exit_reason == KVM_EXIT_IO && vm->run->io.port == WAIT_PORT;
}

bool guest_does(struct vm *vm, enum command command, uint64_t address, uint64_t value)
{
	struct desk *desk = (struct desk *)vm->desk;

	*desk = (struct desk){
		.command = command,
		.address = address,
		.value = value,
		.result = -1UL,
	};
	/* Did it come back for another reason? It takes the command then, and tells. */
	return guest_runs(vm) && (desk->starts || guest_runs(vm));
}

static uint64_t words(struct target *target)
{
	return target->seed | (target->size / 4) << 32;
}

/* Has it started but once, and found everything as it was? */
bool whole_intact(struct target *target, struct vm *vm)
{
	const struct desk *desk = (struct desk *)vm->desk;

	return guest_does(vm, CHECK, MEMORY_GPA, words(target)) && !desk->result &&
	       !desk->changed && desk->starts == 1;
}

/* What it doesn't find as it was; LET if there's nothing. */
enum outcome find_change(struct target *target, const char *call)
{
	static const char *const registers[] = { "a general register",
						 "an SSE register",
						 "CR2",
						 "a debug register",
						 "the FS base",
						 "an MSR",
						 "its APIC's LDR",
						 "CR8" };
	struct vm *vm = target->vm;
	const struct desk *desk = (struct desk *)vm->desk;

	if (!guest_does(vm, CHECK, MEMORY_GPA, words(target)))
		return ended(target, CHANGED, "%s: the guest doesn't go on (%s, exit %u)", call,
			     strerror(errno), vm->run->exit_reason);
	if (desk->event)
		return ended(target, CHANGED, "%s: the guest took vector %u", call,
			     desk->event & 0xff);
	for (unsigned int i = 0; i < ARRAY_SIZE(registers); i++)
		if (desk->changed & 1U << i)
			return ended(target, CHANGED, "%s: %s has changed", call, registers[i]);
	if (desk->starts != 1)
		return ended(target, CHANGED, "%s: the guest has started again", call);
	if (desk->result)
		return ended(target, CHANGED, "%s: the guest's memory has changed", call);
	return ended(target, LET, "%s: let through, to no effect that the guest sees", call);
}

/* Is the guest's secret there? */
bool has_register(struct target *target, const void *data, size_t size)
{
	return target->secret && memmem(data, size, &target->secret, sizeof(target->secret));
}

/* The control is of no use on a host without protected VMs, so there is none, either. */
bool start_whole(struct target *target, const struct attack *attack, struct vm *vm)
{
	struct kvm_x86_finalize_vm final = { 0 };
	int types;

	vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm < 0) {
		ended(target, LACKING, "no KVM: %s", strerror(errno));
		return false;
	}
	types = ioctl(vm->kvm, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES);
	if (types < 0 || !(types & 1 << KVM_X86_PROTECTED_VM)) {
		ended(target, LACKING, "KVM has no protected VMs here");
		return false;
	}
	if (attack->call.needs &&
	    ioctl(vm->kvm, KVM_CHECK_EXTENSION, (unsigned long)attack->call.needs) <= 0) {
		ended(target, LACKING, "KVM lacks extension %u here", attack->call.needs);
		return false;
	}
	if (!create(vm, target->sealed ? KVM_X86_PROTECTED_VM : attack->type,
		    attack->flags & SPLIT) ||
	    !give_memory(vm, target)) {
		ended(target, BROKEN, "no VM: %s", strerror(errno));
		return false;
	}
	if (attack->prepare && attack->prepare(target, attack) != DONE)
		return false;
	if (target->sealed && ioctl(vm->fd, KVM_X86_FINALIZE_VM, &final)) {
		ended(target, attack->prepare ? REFUSED : BROKEN, "KVM_X86_FINALIZE_VM: %s",
		      strerror(errno));
		return false;
	}
	if (!guest_runs(vm) || !guest_does(vm, FILL, MEMORY_GPA, words(target))) {
		ended(target, BROKEN, "the guest doesn't run: exit %u, %s", vm->run->exit_reason,
		      strerror(errno));
		return false;
	}
	return true;
}

/* --- an attack by a single ioctl -------------------------------------------------------------- */

enum outcome make_call(struct target *target, const struct attack *attack)
{
	static char data[16 * PAGE] __attribute__((aligned(8)));
	const struct call *call = &attack->call;
	struct vm *vm = target->vm;
	int fd = call->of == VM ? vm->fd : call->of == VCPU ? vm->vcpu : vm->vcpu2;
	int result;

	memset(data, 0, sizeof(data));
	if (call->fill && !call->fill(target, data))
		return ended(target, LACKING, "not here: %s", strerror(errno));
	result = ioctl(fd, call->nr, call->size ? (unsigned long)data : call->value);
	/* How many of the MSRs: there is one. */
	if (result < 0 || ((call->nr == KVM_GET_MSRS || call->nr == KVM_SET_MSRS) && result != 1))
		return refused(target, attack->name);
	switch (attack->wants) {
	case SEEN:
		if (has_register(target, data, sizeof(data)))
			return ended(target, SEEN, "the guest's secret was seen");
		return ended(target, LET, "let through, but the secret isn't in there");
	case CHANGED:
		return find_change(target, attack->name);
	case TOLD:
		return ended(target, TOLD, "the VMM was told");
	default:
		return ended(target, LET, "let through");
	}
}
