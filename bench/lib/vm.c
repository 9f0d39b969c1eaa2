// SPDX-License-Identifier: GPL-2.0-only
#include <asm/kvm_para.h>
#include <errno.h>
#include <linux/kvm_para.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vm.h"

/*
 * The guest's memory for itself: its code and page tables, and one that stays has a stack
 * below its descriptors. All of that is its private half's initial content then, but for
 * the last page, which is shared: there are commands.
 */
#define LOW_SIZE 0x7000UL
#define PML4 0x1000UL
#define PDPT 0x2000UL
#define GDT 0x4000UL
#define IDT 0x5000UL
#define COMMAND 0x6000UL
#define CONTENT_SIZE COMMAND

#define PRESENT_WRITABLE 3UL
#define LARGE_PAGE (1UL << 7)

#define IPI_VECTOR 0x40
#define TIMER_VECTOR 0x41
#define DONE_PORT 0x10

const char *const kind_names[NR_KINDS] = {
	[ANONYMOUS] = "anonymous",
	[ANONYMOUS_HUGE] = "anonymous, huge pages",
	[GUESTSEAL] = "guestseal",
	[GUESTSEAL_HUGE] = "guestseal, huge pages",
	[GUEST_MEMFD] = "guest_memfd",
	[BARE] = "bare memfd",
	[BARE_HUGE] = "bare memfd, huge pages",
	[MAPPED] = "memfd",
	[MAPPED_HUGE] = "memfd, huge pages",
};

/* What the guest is to do: where its code is, and registers. */
struct command {
	uint64_t rip, rsi, rdx, rdi, r8, r9;
};

/*
 * RSI: address, RDX: stride, R8: count, RDI: pages in a stride, R9: SHARED_BIT, if there
 * is one. vmmcall is AMD's; on Intel KVM puts vmcall in its place. Whose registers are
 * not set for each command gets on behind "done", with the next one.
 */
asm(".pushsection .rodata\n"
    "code_begin:\n"
    "code_write: movb $1, (%rsi)\n"
    "	add %rdx, %rsi\n"
    "	dec %r8\n"
    "	jnz code_write\n"
    "	jmp done\n"
    "code_read: movb (%rsi), %al\n"
    "	add %rdx, %rsi\n"
    "	dec %r8\n"
    "	jnz code_read\n"
    "	jmp done\n"
    "code_explicit: mov %rdx, %r10\n"
    "1:	mov $12, %eax\n"
    "	mov %rsi, %rbx\n"
    "	mov %rdi, %rcx\n"
    "	mov $0x10, %edx\n"
    "	vmmcall\n"
    "	movb $1, (%rsi)\n"
    "	mov $12, %eax\n"
    "	xor %edx, %edx\n"
    "	vmmcall\n"
    "	movb $1, (%rsi, %r9)\n"
    "	add %r10, %rsi\n"
    "	dec %r8\n"
    "	jnz 1b\n"
    "	jmp done\n"
    "code_implicit: movb $1, (%rsi)\n"
    "	movb $1, (%rsi, %r9)\n"
    "	add %rdx, %rsi\n"
    "	dec %r8\n"
    "	jnz code_implicit\n"
    "	jmp done\n"
    "code_compute: mov %r8, %rax\n"
    "	and $0xfff8, %eax\n"
    "	imul $13, %r8, %rdx\n"
    "	add %rdx, (%rsi, %rax)\n"
    "	dec %r8\n"
    "	jnz code_compute\n"
    "	jmp done\n"
    "code_out: out %al, $0x11\n"
    "	dec %r8\n"
    "	jnz code_out\n"
    "	jmp done\n"
    "code_in: in $0x11, %al\n"
    "	dec %r8\n"
    "	jnz code_in\n"
    "	jmp done\n"
    /* Nothing is there. */
    "code_mmio_write: mov $0x30000000, %esi\n"
    "1:	mov %eax, (%rsi, %r9)\n"
    "	dec %r8\n"
    "	jnz 1b\n"
    "	jmp done\n"
    "code_mmio_read: mov $0x30000000, %esi\n"
    "1:	mov (%rsi, %r9), %eax\n"
    "	dec %r8\n"
    "	jnz 1b\n"
    "	jmp done\n"
    "code_ipi: sti\n"
    "1:	mov $0x83f, %ecx\n"
    "	mov $0x40, %eax\n"
    "	xor %edx, %edx\n"
    "	wrmsr\n"
    "	dec %r8\n"
    "	jnz 1b\n"
    "	jmp done\n"
    "code_timer: cli\n"
    "	mov $0x838, %ecx\n"
    "	mov $1, %eax\n"
    "	xor %edx, %edx\n"
    "	wrmsr\n"
    "	sti\n"
    "	hlt\n"
    "	dec %r8\n"
    "	jnz code_timer\n"
    "	jmp done\n"
    "code_interrupt: mov $0x80b, %ecx\n"
    "	xor %eax, %eax\n"
    "	xor %edx, %edx\n"
    "	wrmsr\n"
    "	iretq\n"
    /* x2APIC; its timer counts nanoseconds, once */
    "code_stay: mov $0x1b, %ecx\n"
    "	rdmsr\n"
    "	or $0xc00, %eax\n"
    "	wrmsr\n"
    "	xor %edx, %edx\n"
    "	mov $0x80f, %ecx\n"
    "	mov $0x1ff, %eax\n"
    "	wrmsr\n"
    "	mov $0x83e, %ecx\n"
    "	mov $0xb, %eax\n"
    "	wrmsr\n"
    "	mov $0x832, %ecx\n"
    "	mov $0x41, %eax\n"
    "	wrmsr\n"
    "	jmp next\n"
    "done: out %al, $0x10\n"
    "	cli\n"
    "next: movabs $0x4000006000, %rbp\n"
    "	mov 8(%rbp), %rsi\n"
    "	mov 16(%rbp), %rdx\n"
    "	mov 24(%rbp), %rdi\n"
    "	mov 32(%rbp), %r8\n"
    "	mov 40(%rbp), %r9\n"
    "	jmp *(%rbp)\n"
    "code_end:\n"
    ".popsection\n");
extern const char code_begin[], code_write[], code_read[], code_explicit[], code_implicit[],
	code_compute[], code_out[], code_in[], code_mmio_write[], code_mmio_read[], code_ipi[],
	code_timer[], code_interrupt[], code_stay[], code_end[];

static const char *const codes[] = {
	[GUEST_WRITE] = code_write,
	[GUEST_READ] = code_read,
	[GUEST_EXPLICIT] = code_explicit,
	[GUEST_IMPLICIT] = code_implicit,
	[GUEST_COMPUTE] = code_compute,
	[GUEST_OUT] = code_out,
	[GUEST_IN] = code_in,
	[GUEST_MMIO_WRITE] = code_mmio_write,
	[GUEST_MMIO_READ] = code_mmio_read,
	[GUEST_IPI] = code_ipi,
	[GUEST_TIMER] = code_timer,
};

/* Where it is in the guest's memory */
static uint64_t address_of(const char *code)
{
	return (uintptr_t)code - (uintptr_t)code_begin;
}

static int kvm(void)
{
	static int fd = -1;

	if (fd < 0)
		fd = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	return fd;
}

static void enable(struct vm *vm, unsigned int cap, unsigned long argument)
{
	struct kvm_enable_cap enable = { .cap = cap, .args = { argument } };

	check(ioctl(vm->fd, KVM_ENABLE_CAP, &enable), "KVM_ENABLE_CAP");
}

/* Of huge pages or of none; anonymous if MEMFD is -1. */
static char *map(size_t size, int huge, int memfd)
{
	char *address = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t gap = -(uintptr_t)address % HUGE_PAGE;

	if (address == MAP_FAILED)
		err(1, "mmap");
	if (gap)
		munmap(address, gap);
	munmap(address + gap + size, HUGE_PAGE - gap);
	address += gap;
	if (memfd >= 0 && mmap(address, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memfd,
			       0) == MAP_FAILED)
		err(1, "mmap of a memfd");
	check(madvise(address, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE), "madvise");
	return address;
}

static int is_huge(const struct vm *vm)
{
	return vm->kind == ANONYMOUS_HUGE || vm->kind == GUESTSEAL_HUGE || vm->kind == BARE_HUGE ||
	       vm->kind == MAPPED_HUGE;
}

/* Is the memfd all the memory there is, with nothing private? */
static int is_mapped(const struct vm *vm)
{
	return vm->kind == MAPPED || vm->kind == MAPPED_HUGE;
}

static void create_memfd_of(struct vm *vm)
{
	struct kvm_create_guest_memfd guest_memfd = { .size = vm->size };
	unsigned int flags = is_huge(vm) ? MFD_HUGEPAGE : 0;

	switch (vm->kind) {
	case GUESTSEAL:
	case GUESTSEAL_HUGE:
		vm->memfd = create_sealed_memfd("guest", flags, vm->size);
		break;
	case GUEST_MEMFD:
		vm->memfd = check(ioctl(vm->fd, KVM_CREATE_GUEST_MEMFD, &guest_memfd),
				  "KVM_CREATE_GUEST_MEMFD");
		break;
	case BARE:
	case BARE_HUGE:
	case MAPPED:
	case MAPPED_HUGE:
		vm->memfd = create_memfd("bare", flags, vm->size);
		break;
	default:
		vm->memfd = -1;
	}
}

static void set_slot(struct vm *vm, unsigned int slot, size_t gpa, char *shared, size_t size,
		     int memfd, size_t offset)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = slot,
		.flags = memfd >= 0 ? KVM_MEM_GUEST_MEMFD : 0,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (unsigned long)shared,
		.guest_memfd = memfd,
		.guest_memfd_offset = offset,
	};

	check(ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION2, &region), "memslot");
}

static void set_descriptors(char *content)
{
	uint64_t *gdt = (uint64_t *)(content + GDT), *idt = (uint64_t *)(content + IDT);
	int i;

	gdt[1] = 0x00af9b000000ffff; /* code, 64 bits */
	gdt[2] = 0x00cf93000000ffff; /* data */
	for (i = IPI_VECTOR; i <= TIMER_VECTOR; i++)
		idt[2 * i] = address_of(code_interrupt) | 8 << 16 | 0x8e00UL << 32;
}

static void set_low(struct vm *vm)
{
	char content[CONTENT_SIZE] = { 0 };
	unsigned long *pml4, *pdpt;
	size_t i;

	memcpy(content, code_begin, address_of(code_end));
	pml4 = (unsigned long *)(content + PML4);
	pdpt = (unsigned long *)(content + PDPT);
	pml4[0] = PDPT | PRESENT_WRITABLE;
	for (i = 0; i < 512; i++)
		pdpt[i] = i << 30 | LARGE_PAGE | PRESENT_WRITABLE;

	vm->low = map(LOW_SIZE, 0, -1);
	if (vm->stays) {
		set_descriptors(content);
		vm->low_memfd = create_sealed_memfd("low", 0, LOW_SIZE);
		check(write(vm->low_memfd, content, CONTENT_SIZE), "write");
	} else {
		memcpy(vm->low, content, CONTENT_SIZE);
	}
	set_slot(vm, 0, 0, vm->low, LOW_SIZE, vm->low_memfd, 0);
}

static void set_cpuid(struct vm *vm, struct vcpu *vcpu)
{
	struct {
		struct kvm_cpuid2 header;
		struct kvm_cpuid_entry2 entries[100];
	} cpuid = { .header.nent = 100 };
	unsigned int i;

	check(ioctl(kvm(), KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
	/* There is no nesting with a shared bit. */
	for (i = 0; vm->shared_bit && i < cpuid.header.nent; i++) {
		if (cpuid.entries[i].function == 0x80000001)
			cpuid.entries[i].ecx &= ~(1U << 2); /* SVM */
		if (cpuid.entries[i].function == 1)
			cpuid.entries[i].ecx &= ~(1U << 5); /* VMX */
	}
	check(ioctl(vcpu->fd, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
}

static void create_vcpu(struct vm *vm, unsigned int id)
{
	struct vcpu *vcpu = &vm->vcpus[id];
	struct kvm_segment code = {
		.limit = -1U, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1
	};
	struct kvm_segment data = {
		.limit = -1U, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1
	};
	int run_size = check(ioctl(kvm(), KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	struct kvm_regs regs = { .rip = address_of(code_stay), .rsp = GDT, .rflags = 2 };
	struct kvm_sregs sregs;

	vcpu->exits = 0;
	vcpu->fd = check(ioctl(vm->fd, KVM_CREATE_VCPU, id), "KVM_CREATE_VCPU");
	vcpu->run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED)
		err(1, "mmap of a vCPU");

	set_cpuid(vm, vcpu);
	/* The others wait for the first one. */
	if (vm->stays && id)
		return;
	check(ioctl(vcpu->fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr3 = PML4;
	sregs.cr4 = 1 << 5;	       /* PAE */
	sregs.efer = 1 << 8 | 1 << 10; /* LME, LMA */
	sregs.cr0 = 1U << 31 | 1;      /* PG, PE */
	if (vm->stays) {
		sregs.gdt = (struct kvm_dtable){ .base = GDT, .limit = 23 };
		sregs.idt = (struct kvm_dtable){ .base = IDT, .limit = 0xfff };
	}
	check(ioctl(vcpu->fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	if (vm->stays)
		check(ioctl(vcpu->fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

void vm_create(struct vm *vm)
{
	int type = vm->protected	     ? KVM_X86_PROTECTED_VM
		   : vm->kind == GUEST_MEMFD ? KVM_X86_SW_PROTECTED_VM
					     : KVM_X86_DEFAULT_VM;
	size_t offset;
	unsigned int i;

	vm->fd = vm->low_memfd = -1;
	vm->low = vm->shared = NULL;
	if (vm->kind == BARE || vm->kind == BARE_HUGE) {
		create_memfd_of(vm);
		return;
	}

	vm->fd = check(ioctl(kvm(), KVM_CREATE_VM, type), "KVM_CREATE_VM");
	create_memfd_of(vm);
	if (vm->nr_vcpus) {
		enable(vm, KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE);
		if (vm->shared_bit)
			enable(vm, KVM_CAP_X86_SHARED_GPA_BIT, __builtin_ctzl(SHARED_BIT));
		if (vm->stays)
			check(ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
		set_low(vm);
	}

	vm->shared = map(vm->size, is_huge(vm), is_mapped(vm) ? vm->memfd : -1);
	if (!vm->slot_size)
		vm->slot_size = vm->size;
	for (offset = 0; offset < vm->size; offset += vm->slot_size)
		set_slot(vm, 1 + offset / vm->slot_size, MEMORY_GPA + offset, vm->shared + offset,
			 vm->slot_size, is_mapped(vm) ? -1 : vm->memfd, offset);
	for (i = 0; i < vm->nr_vcpus; i++)
		create_vcpu(vm, i);
}

void vm_destroy(struct vm *vm)
{
	unsigned int i;

	for (i = 0; i < vm->nr_vcpus; i++) {
		munmap(vm->vcpus[i].run, ioctl(kvm(), KVM_GET_VCPU_MMAP_SIZE, 0));
		close(vm->vcpus[i].fd);
	}
	if (vm->fd >= 0)
		close(vm->fd);
	if (vm->memfd >= 0)
		close(vm->memfd);
	if (vm->shared)
		munmap(vm->shared, vm->size);
	if (vm->low_memfd >= 0)
		close(vm->low_memfd);
	if (vm->low)
		munmap(vm->low, LOW_SIZE);
	/* Have what is left of it freed by now. */
	usleep(100000);
}

void vm_set_attributes(struct vm *vm, size_t offset, size_t size, int private)
{
	struct kvm_memory_attributes attributes = {
		.address = MEMORY_GPA + offset,
		.size = size,
		.attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
	};

	check(ioctl(vm->fd, KVM_SET_MEMORY_ATTRIBUTES, &attributes), "KVM_SET_MEMORY_ATTRIBUTES");
}

void vm_convert(struct vm *vm, size_t offset, size_t size, int private)
{
	int mode = FALLOC_FL_KEEP_SIZE | (private ? 0 : FALLOC_FL_PUNCH_HOLE);

	if (vm->kind == GUEST_MEMFD)
		vm_set_attributes(vm, offset, size, private);
	check(fallocate(vm->memfd, mode, offset, size), "fallocate");
}

/* What a VMM does. */
static void convert_for(struct vm *vm, struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	size_t offset, size;
	int private;

	vcpu->exits++;
	if (run->exit_reason == KVM_EXIT_HYPERCALL) {
		offset = run->hypercall.args[0] - MEMORY_GPA;
		size = run->hypercall.args[1] * PAGE;
		private = !!(run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED);
		run->hypercall.ret = 0;
	} else {
		private = !!(run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_PRIVATE);
		size = vm->piece ? vm->piece : PAGE;
		offset = (run->memory_fault.gpa - MEMORY_GPA) & -size;
	}
	vm_convert(vm, offset, size, private);
}

static void set_command(struct vm *vm, struct vcpu *vcpu, const struct command *command)
{
	struct kvm_regs regs = {
		.rip = command->rip,
		.rsi = command->rsi,
		.rdx = command->rdx,
		.rdi = command->rdi,
		.r8 = command->r8,
		.r9 = command->r9,
		.rflags = 2,
	};

	if (vm->stays)
		memcpy(vm->low + COMMAND, command, sizeof(*command));
	else
		check(ioctl(vcpu->fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

void vcpu_run(struct vm *vm, unsigned int id, enum guest_code code, size_t offset, size_t stride,
	      size_t count)
{
	struct vcpu *vcpu = &vm->vcpus[id];
	struct command command = {
		.rip = address_of(codes[code]),
		.rsi = MEMORY_GPA + offset,
		.rdx = stride,
		.rdi = stride / PAGE,
		.r8 = count,
		.r9 = vm->shared_bit ? SHARED_BIT : 0,
	};
	struct kvm_run *run = vcpu->run;

	set_command(vm, vcpu, &command);
	for (;;) {
		int ret = ioctl(vcpu->fd, KVM_RUN, 0);

		if (!ret && run->exit_reason == KVM_EXIT_IO) {
			if (run->io.port == DONE_PORT)
				return;
		} else if ((ret && errno == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT) ||
			   (!ret && run->exit_reason == KVM_EXIT_HYPERCALL)) {
			convert_for(vm, vcpu);
		} else if ((ret || run->exit_reason != KVM_EXIT_MMIO) && (!ret || errno != EINTR)) {
			err(1, "KVM_RUN of %s: %d, exit reason %u", kind_names[vm->kind], ret,
			    run->exit_reason);
		}
	}
}

/* Of the VM or vCPU whose file descriptor that is. */
static long stat_of(int owner, const char *name)
{
	int fd = check(ioctl(owner, KVM_GET_STATS_FD, 0), "KVM_GET_STATS_FD");
	struct kvm_stats_header header;
	struct kvm_stats_desc *desc;
	uint64_t value;
	unsigned int i;

	check(pread(fd, &header, sizeof(header), 0), "statistics");
	desc = malloc(sizeof(*desc) + header.name_size);
	for (i = 0; i < header.num_desc; i++) {
		check(pread(fd, desc, sizeof(*desc) + header.name_size,
			    header.desc_offset + i * (sizeof(*desc) + header.name_size)),
		      "statistics");
		if (!strcmp(desc->name, name)) {
			check(pread(fd, &value, sizeof(value), header.data_offset + desc->offset),
			      "statistics");
			free(desc);
			close(fd);
			return value;
		}
	}
	errx(1, "no statistics of %s", name);
}

long vm_stat(const struct vm *vm, const char *name)
{
	return stat_of(vm->fd, name);
}

long vcpu_stat(const struct vm *vm, unsigned int id, const char *name)
{
	return stat_of(vm->vcpus[id].fd, name);
}
