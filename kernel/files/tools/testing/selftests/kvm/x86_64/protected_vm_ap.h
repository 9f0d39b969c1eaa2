/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A second vCPU for tests of protected VMs: it's the guest who starts it, as any other
 * one, by INIT and SIPI.
 */
#ifndef SELFTEST_KVM_PROTECTED_VM_AP_H
#define SELFTEST_KVM_PROTECTED_VM_AP_H

#include <linux/stringify.h>

#include "protected_vm.h"

/* Where it starts, in real mode, and in the same page what it needs to get on */
#define AP_GPA		0x90000
#define AP_STACK_PAGES	2

#define AP_GDTR		0xf00
#define AP_CR3		0xf10
#define AP_RSP		0xf18
#define AP_FN		0xf20
#define AP_ARG		0xf28
#define AP_GDT		0xf40

extern const char ap_start[], ap_end[];

asm(".pushsection .rodata\n\t"
	"ap_start:\n\t"
	".code16\n\t"
	"mov %cs, %ax\n\t"
	"mov %ax, %ds\n\t"
	"lgdtl " __stringify(AP_GDTR) "\n\t"
	/* PAE, OSFXSR, OSXMMEXCPT */
	"mov $0x620, %eax\n\t"
	"mov %eax, %cr4\n\t"
	"mov " __stringify(AP_CR3) ", %eax\n\t"
	"mov %eax, %cr3\n\t"
	/* EFER: LME, NXE */
	"mov $0xc0000080, %ecx\n\t"
	"rdmsr\n\t"
	"or $0x900, %eax\n\t"
	"wrmsr\n\t"
	/* PG, WP, NE, ET, MP, PE */
	"mov $0x80010033, %eax\n\t"
	"mov %eax, %cr0\n\t"
	"ljmpl $8, $" __stringify(AP_GPA) " + 1f - ap_start\n\t"
	".code64\n\t"
	"1: xor %eax, %eax\n\t"
	"mov %eax, %ds\n\t"
	"mov %eax, %es\n\t"
	"mov %eax, %ss\n\t"
	"mov " __stringify(AP_GPA) " + " __stringify(AP_RSP) ", %rsp\n\t"
	"mov " __stringify(AP_GPA) " + " __stringify(AP_ARG) ", %rdi\n\t"
	"call *" __stringify(AP_GPA) " + " __stringify(AP_FN) "\n\t"
	"2: outb %al, $" __stringify(COMMAND_PORT) "\n\t"
	"jmp 2b\n\t"
	"ap_end:\n\t"
	".popsection");

/*
 * Between pvm_create() and pvm_load(): have the second vCPU, once the guest has called
 * guest_start_ap(), call @fn.  From when that returns on it waits at COMMAND_PORT.
 */
static inline void ap_prepare(struct pvm *pvm, void *fn, uint64_t arg)
{
	const struct {
		uint16_t limit;
		uint64_t base;
	} __packed gdtr = { 2 * sizeof(uint64_t) - 1, AP_GPA + AP_GDT };
	struct kvm_vm *vm = pvm->vm;
	uint64_t stack;
	char *page;

	TEST_ASSERT(ap_end - ap_start <= AP_GDTR, "Too long");
	vm_phy_page_alloc(vm, AP_GPA, 0);
	virt_map(vm, AP_GPA, AP_GPA, 1);
	stack = vm_vaddr_alloc_pages(vm, AP_STACK_PAGES) + AP_STACK_PAGES * PAGE_SIZE;

	page = addr_gpa2hva(vm, AP_GPA);
	memcpy(page, ap_start, ap_end - ap_start);
	memcpy(page + AP_GDTR, &gdtr, sizeof(gdtr));
	*(uint64_t *)(page + AP_CR3) = vm->pgd;
	*(uint64_t *)(page + AP_RSP) = stack;
	*(uint64_t *)(page + AP_FN) = (uint64_t)fn;
	*(uint64_t *)(page + AP_ARG) = arg;
	/* A code segment of 64 bits */
	*(uint64_t *)(page + AP_GDT + 8) = 0x00af9b000000ffff;
}

static inline uint64_t guest_start_ap(uint64_t id, uint64_t u1, uint64_t u2, uint64_t u3)
{
	const uint32_t flags = APIC_DEST_PHYSICAL | APIC_INT_ASSERT;

	xapic_write_reg(APIC_ICR2, id << 24);
	xapic_write_reg(APIC_ICR, flags | APIC_DM_INIT);
	xapic_write_reg(APIC_ICR2, id << 24);
	xapic_write_reg(APIC_ICR, flags | APIC_DM_STARTUP | AP_GPA >> PAGE_SHIFT);
	return 0;
}

#endif /* SELFTEST_KVM_PROTECTED_VM_AP_H */
