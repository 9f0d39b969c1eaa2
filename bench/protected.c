// SPDX-License-Identifier: GPL-2.0-only
/*
 * What does a protected VM cost? The same guest in one and in an ordinary VM with a
 * shared GPA bit, where it computes, or exits in one way or another; and what it takes
 * to finalize VMs, by what memory they have. Host and guest together. Writes all samples
 * as JSON to the file that is named as argument.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "bench.h"
#include "lib/samples.h"

#define PAGE 4096UL
#define MEBIBYTE (1UL << 20)
#define GIBIBYTE (1UL << 30)

/*
 * The first memslot's private half is the guest's initial content: page tables, which
 * map 512 GiB one to one, descriptors, and the code with its stack below it.
 */
#define CONTENT_SIZE 0x10000UL
#define PML4 0x1000UL
#define PDPT 0x2000UL
#define GDT 0x3000UL
#define IDT 0x4000UL
#define CODE 0x8000UL
/* No private half; the guest is told here what to do. */
#define COMMAND_GPA 0x100000UL
/* Nothing */
#define MMIO_GPA 0x30000000UL
#define MEMORY_GPA GIBIBYTE
#define SHARED_BIT (1UL << 38)

#define IPI_VECTOR 0x40
#define TIMER_VECTOR 0x41
#define DONE_PORT 0x10

/* RSI: memory, R9: the same, shared, RDI: MMIO, R8: how often. Interrupts are off. */
asm(".pushsection .rodata\n"
    "guest_begin:\n"
    /* x2APIC, which is on; its timer counts nanoseconds, once */
    "	mov $0x1b, %ecx\n"
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
    "	movabs $0x4000100000, %rbp\n"
    "	movabs $0x4030000000, %rdi\n"
    "	movabs $0x4040000000, %r9\n"
    "	mov $0x40000000, %esi\n"
    "next: cli\n"
    "	out %al, $0x10\n"
    "	mov 8(%rbp), %r8\n"
    "	jmp *(%rbp)\n"
    "guest_compute: mov %r8, %rax\n"
    "	and $0xfff8, %eax\n"
    "	imul $13, %r8, %rdx\n"
    "	add %rdx, (%rsi, %rax)\n"
    "	dec %r8\n"
    "	jnz guest_compute\n"
    "	jmp next\n"
    "guest_out: out %al, $0x11\n"
    "	dec %r8\n"
    "	jnz guest_out\n"
    "	jmp next\n"
    "guest_in: in $0x11, %al\n"
    "	dec %r8\n"
    "	jnz guest_in\n"
    "	jmp next\n"
    "guest_mmio_write: mov %eax, (%rdi)\n"
    "	dec %r8\n"
    "	jnz guest_mmio_write\n"
    "	jmp next\n"
    "guest_mmio_read: mov (%rdi), %eax\n"
    "	dec %r8\n"
    "	jnz guest_mmio_read\n"
    "	jmp next\n"
    /* shared on request, write, private on request, write */
    "guest_explicit: mov $12, %eax\n"
    "	mov %rsi, %rbx\n"
    "	mov $1, %ecx\n"
    "	xor %edx, %edx\n"
    "	vmmcall\n"
    "	movb $1, (%r9)\n"
    "	mov $12, %eax\n"
    "	mov $0x10, %edx\n"
    "	vmmcall\n"
    "	movb $1, (%rsi)\n"
    "	dec %r8\n"
    "	jnz guest_explicit\n"
    "	jmp next\n"
    /* write to either half */
    "guest_implicit: movb $1, (%r9)\n"
    "	movb $1, (%rsi)\n"
    "	dec %r8\n"
    "	jnz guest_implicit\n"
    "	jmp next\n"
    "guest_ipi: sti\n"
    "1:	mov $0x83f, %ecx\n"
    "	mov $0x40, %eax\n"
    "	xor %edx, %edx\n"
    "	wrmsr\n"
    "	dec %r8\n"
    "	jnz 1b\n"
    "	jmp next\n"
    "guest_timer: cli\n"
    "	mov $0x838, %ecx\n"
    "	mov $1, %eax\n"
    "	xor %edx, %edx\n"
    "	wrmsr\n"
    "	sti\n"
    "	hlt\n"
    "	dec %r8\n"
    "	jnz guest_timer\n"
    "	jmp next\n"
    "guest_interrupt: mov $0x80b, %ecx\n"
    "	xor %eax, %eax\n"
    "	xor %edx, %edx\n"
    "	wrmsr\n"
    "	iretq\n"
    "guest_end:\n"
    ".popsection\n");
extern const char guest_begin[], guest_compute[], guest_out[], guest_in[], guest_mmio_write[],
	guest_mmio_read[], guest_explicit[], guest_implicit[], guest_ipi[], guest_timer[],
	guest_interrupt[], guest_end[];

static const struct work {
	const char *name, *code;
	unsigned long times;
} works[] = {
	{ "compute", guest_compute, 1000000 },
	{ "out", guest_out, 2000 },
	{ "in", guest_in, 2000 },
	{ "MMIO write", guest_mmio_write, 2000 },
	{ "MMIO read", guest_mmio_read, 2000 },
	{ "convert, explicitly", guest_explicit, 1000 },
	{ "convert, implicitly", guest_implicit, 1000 },
	{ "IPI to itself", guest_ipi, 2000 },
	{ "timer and HLT", guest_timer, 1000 },
};
#define NR_WORKS (sizeof(works) / sizeof(works[0]))

/* What a VM has when it is finalized: content that is written, zeroes that are allocated. */
static const struct launch {
	size_t memory, content, zeroes;
	unsigned int vcpus;
} launches[] = {
	{ 64 * MEBIBYTE, 0, 0, 1 },
	{ 64 * MEBIBYTE, 0, 0, 4 },
	{ 64 * MEBIBYTE, MEBIBYTE, 0, 1 },
	{ 64 * MEBIBYTE, 16 * MEBIBYTE, 0, 1 },
	{ 64 * MEBIBYTE, 64 * MEBIBYTE, 0, 1 },
	{ 64 * MEBIBYTE, 0, 16 * MEBIBYTE, 1 },
	{ 64 * MEBIBYTE, 0, 64 * MEBIBYTE, 1 },
	{ GIBIBYTE, 0, 0, 1 },
	{ 16 * GIBIBYTE, 0, 0, 1 },
	{ 64 * GIBIBYTE, 0, 0, 1 },
};
#define NR_LAUNCHES (sizeof(launches) / sizeof(launches[0]))

struct command {
	uint64_t code, times;
};

struct vm {
	int fd, vcpu, content, memory;
	struct kvm_run *run;
	struct command *command;
	char *content_shared, *memory_shared;
	size_t size;
};

static int kvm(void)
{
	static int fd = -1;

	if (fd < 0)
		fd = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	return fd;
}

static int run_size(void)
{
	return check(ioctl(kvm(), KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
}

static void enable(struct vm *vm, unsigned int cap, unsigned long argument)
{
	struct kvm_enable_cap enable = { .cap = cap, .args = { argument } };

	check(ioctl(vm->fd, KVM_ENABLE_CAP, &enable), "KVM_ENABLE_CAP");
}

static char *map(size_t size)
{
	char *address = mmap(NULL, size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (address == MAP_FAILED)
		err(1, "mmap");
	return address;
}

static void set_slot(struct vm *vm, unsigned int slot, size_t gpa, void *shared, size_t size,
		     int memfd)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = slot,
		.flags = memfd >= 0 ? KVM_MEM_GUEST_MEMFD : 0,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (unsigned long)shared,
		.guest_memfd = memfd,
	};

	check(ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION2, &region), "memslot");
}

static uint64_t address_of(const char *code)
{
	return CODE + (uintptr_t)code - (uintptr_t)guest_begin;
}

static void set_content(struct vm *vm)
{
	static char content[CONTENT_SIZE];
	uint64_t *pml4 = (uint64_t *)(content + PML4), *pdpt = (uint64_t *)(content + PDPT);
	uint64_t *gdt = (uint64_t *)(content + GDT), *idt = (uint64_t *)(content + IDT);
	int i;

	pml4[0] = PDPT | 3;
	for (i = 0; i < 512; i++)
		pdpt[i] = i * GIBIBYTE | 1 << 7 | 3;
	gdt[1] = 0x00af9b000000ffff; /* code, 64 bits */
	gdt[2] = 0x00cf93000000ffff; /* data */
	for (i = IPI_VECTOR; i <= TIMER_VECTOR; i++)
		idt[2 * i] = address_of(guest_interrupt) | 8 << 16 | 0x8e00UL << 32;
	memcpy(content + CODE, guest_begin, (uintptr_t)guest_end - (uintptr_t)guest_begin);

	vm->content = create_sealed_memfd("content", 0, CONTENT_SIZE);
	check(pwrite(vm->content, content, CONTENT_SIZE, 0), "write");
	vm->content_shared = map(CONTENT_SIZE);
	set_slot(vm, 0, 0, vm->content_shared, CONTENT_SIZE, vm->content);
}

static void set_cpuid(int vcpu)
{
	struct {
		struct kvm_cpuid2 header;
		struct kvm_cpuid_entry2 entries[100];
	} cpuid = { .header.nent = 100 };
	unsigned int i;

	check(ioctl(kvm(), KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
	/* There is no nesting with a shared bit. */
	for (i = 0; i < cpuid.header.nent; i++) {
		if (cpuid.entries[i].function == 0x80000001)
			cpuid.entries[i].ecx &= ~(1U << 2); /* SVM */
		if (cpuid.entries[i].function == 1)
			cpuid.entries[i].ecx &= ~(1U << 5); /* VMX */
	}
	check(ioctl(vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
}

static void set_registers(int vcpu)
{
	struct kvm_segment code = {
		.limit = -1U, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1
	};
	struct kvm_segment data = {
		.limit = -1U, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1
	};
	struct kvm_regs regs = { .rip = CODE, .rsp = CODE, .rflags = 2 };
	struct kvm_sregs sregs;

	check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.gdt = (struct kvm_dtable){ .base = GDT, .limit = 23 };
	sregs.idt = (struct kvm_dtable){ .base = IDT, .limit = 0xfff };
	sregs.cr3 = PML4;
	sregs.cr4 = 1 << 5;	       /* PAE */
	sregs.efer = 1 << 8 | 1 << 10; /* LME, LMA */
	sregs.cr0 = 1U << 31 | 1;      /* PG, PE */
	check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

/* The first one is the guest's, others never run. */
static void create_vcpus(struct vm *vm, unsigned int count)
{
	struct kvm_mp_state wait = { .mp_state = KVM_MP_STATE_UNINITIALIZED };
	unsigned int i;
	int vcpu;

	for (i = 0; i < count; i++) {
		vcpu = check(ioctl(vm->fd, KVM_CREATE_VCPU, i), "KVM_CREATE_VCPU");
		set_cpuid(vcpu);
		if (!i) {
			vm->vcpu = vcpu;
			vm->run =
				mmap(NULL, run_size(), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
			if (vm->run == MAP_FAILED)
				err(1, "mmap of a vCPU");
			set_registers(vcpu);
		} else {
			check(ioctl(vcpu, KVM_SET_MP_STATE, &wait), "KVM_SET_MP_STATE");
			close(vcpu);
		}
	}
}

static void create(struct vm *vm, int type, size_t size, unsigned int vcpus)
{
	vm->fd = check(ioctl(kvm(), KVM_CREATE_VM, type), "KVM_CREATE_VM");
	enable(vm, KVM_CAP_X86_SHARED_GPA_BIT, __builtin_ctzl(SHARED_BIT));
	enable(vm, KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE);
	check(ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");

	set_content(vm);
	vm->command = (struct command *)map(PAGE);
	set_slot(vm, 1, COMMAND_GPA, vm->command, PAGE, -1);
	vm->size = size;
	vm->memory = create_sealed_memfd("memory", 0, size);
	vm->memory_shared = map(size);
	set_slot(vm, 2, MEMORY_GPA, vm->memory_shared, size, vm->memory);
	create_vcpus(vm, vcpus);
}

static void finalize(struct vm *vm)
{
	struct kvm_x86_finalize_vm arg = { 0 };

	check(ioctl(vm->fd, KVM_X86_FINALIZE_VM, &arg), "KVM_X86_FINALIZE_VM");
}

static void destroy(struct vm *vm)
{
	munmap(vm->run, run_size());
	close(vm->vcpu);
	close(vm->fd);
	close(vm->content);
	close(vm->memory);
	munmap(vm->content_shared, CONTENT_SIZE);
	munmap(vm->memory_shared, vm->size);
	munmap(vm->command, PAGE);
	/* Have what is left of it freed by now. */
	usleep(100000);
}

static void convert(struct vm *vm, size_t gpa, size_t size, int private)
{
	int mode = FALLOC_FL_KEEP_SIZE | (private ? 0 : FALLOC_FL_PUNCH_HOLE);

	check(fallocate(vm->memory, mode, gpa - MEMORY_GPA, size), "fallocate");
}

/* Up to where the guest asks for its next command; what a VMM has to do, and no more */
static void run(struct vm *vm)
{
	struct kvm_run *run = vm->run;

	for (;;) {
		int ret = ioctl(vm->vcpu, KVM_RUN, 0);

		if (ret && errno == EINTR)
			continue;
		if (ret && errno == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT) {
			convert(vm, run->memory_fault.gpa, PAGE,
				!!(run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_PRIVATE));
			continue;
		}
		if (ret)
			err(1, "KVM_RUN: exit reason %u", run->exit_reason);

		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			if (run->io.port == DONE_PORT)
				return;
			break;
		case KVM_EXIT_MMIO:
			break;
		case KVM_EXIT_HYPERCALL:
			convert(vm, run->hypercall.args[0], run->hypercall.args[1] * PAGE,
				!!(run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED));
			run->hypercall.ret = 0;
			break;
		default:
			errx(1, "exit reason %u", run->exit_reason);
		}
	}
}

static long work(struct vm *vm, const struct work *work, unsigned long times)
{
	long begin;

	*vm->command = (struct command){ address_of(work->code), times };
	begin = now();
	run(vm);
	return now() - begin;
}

static void measure_works(int type, int keep)
{
	const char *name = type == KVM_X86_PROTECTED_VM ? "protected" : "ordinary";
	struct vm vm;
	size_t i;

	create(&vm, type, 64 * MEBIBYTE, 1);
	if (type == KVM_X86_PROTECTED_VM)
		finalize(&vm);
	run(&vm);
	for (i = 0; i < NR_WORKS; i++) {
		double cost;

		/* Memory is there, and what else comes with the first time. */
		work(&vm, &works[i], works[i].times);
		cost = (double)work(&vm, &works[i], works[i].times) / works[i].times;
		if (keep)
			sample("\"vm\": \"%s\", \"work\": \"%s\", \"cost\": %.2f", name,
			       works[i].name, cost);
	}
	destroy(&vm);
}

static void measure_launch(const struct launch *launch, int keep)
{
	static char content[MEBIBYTE];
	struct vm vm;
	size_t at;
	long begin, cost;

	memset(content, 1, sizeof(content));
	create(&vm, KVM_X86_PROTECTED_VM, launch->memory, launch->vcpus);
	for (at = 0; at < launch->content; at += sizeof(content))
		check(pwrite(vm.memory, content, sizeof(content), at), "write");
	if (launch->zeroes)
		convert(&vm, MEMORY_GPA, launch->zeroes, 1);
	begin = now();
	finalize(&vm);
	cost = now() - begin;
	destroy(&vm);
	if (keep)
		sample("\"memory\": %zu, \"content\": %zu, \"zeroes\": %zu, \"vcpus\": %u, "
		       "\"cost\": %ld",
		       launch->memory, launch->content, launch->zeroes, launch->vcpus, cost);
}

int main(int argc, char **argv)
{
	size_t launch;
	int i;

	if (argc != 2)
		errx(2, "usage: protected SAMPLES.json");

	samples_begin(argv[1]);
	/* The first round is to warm up. */
	for (i = first_round(); i < repeats(); i++) {
		measure_works(KVM_X86_DEFAULT_VM, i >= 0);
		measure_works(KVM_X86_PROTECTED_VM, i >= 0);
		for (launch = 0; launch < NR_LAUNCHES; launch++)
			measure_launch(&launches[launch], i >= 0);
	}
	samples_end();
	return 0;
}
