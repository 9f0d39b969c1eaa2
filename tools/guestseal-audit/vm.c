// SPDX-License-Identifier: GPL-2.0-only
/*
 * A VM with one vCPU, without paging, and a guest that does what it is told: fill its
 * memory, look whether that is as it was, and copy a page of it to memory that it shares.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "audit.h"

extern const char guest_code[], guest_code_fill[], guest_code_check[], guest_code_copy[],
	guest_code_end[];

/* next = word * 1664525 + seed; has_secret() knows it, too */
asm(".pushsection .rodata\n"
    ".code32\n"
    "guest_code:\n"
    "guest_code_fill:\n"
    "1:	stosl\n"
    "	imull	$1664525, %eax, %eax\n"
    "	addl	%ebx, %eax\n"
    "	loop	1b\n"
    "	hlt\n"
    "guest_code_check:\n"
    "1:	cmpl	%eax, (%esi)\n"
    "	jne	2f\n"
    "	addl	$4, %esi\n"
    "	imull	$1664525, %eax, %eax\n"
    "	addl	%ebx, %eax\n"
    "	loop	1b\n"
    "2:	hlt\n"
    "guest_code_copy:\n"
    "	rep movsl\n"
    "	hlt\n"
    "guest_code_end:\n"
    ".code64\n"
    ".popsection\n");

static size_t offset_of(const char *code)
{
	return (uintptr_t)code - (uintptr_t)guest_code;
}

bool vm_set_region(struct vm *vm, int slot, unsigned int flags, unsigned long gpa, char *memory,
		   size_t size, int private_fd)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = slot,
		.flags = flags | (private_fd >= 0 ? KVM_MEM_GUEST_MEMFD : 0),
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (unsigned long)memory,
		.guest_memfd = private_fd,
	};

	/* Kernels without private memory have the other one only. */
	return !ioctl(vm->fd,
		      private_fd >= 0 ? KVM_SET_USER_MEMORY_REGION2 : KVM_SET_USER_MEMORY_REGION,
		      &region);
}

/* As flat as can be */
struct kvm_segment flat_segment(uint16_t selector, uint8_t type)
{
	return (struct kvm_segment){
		.limit = 0xffffffff,
		.selector = selector,
		.type = type,
		.present = 1,
		.db = 1,
		.s = 1,
		.g = 1,
	};
}

/* 32-bit protected mode */
static bool set_mode(struct vm *vm)
{
	struct kvm_sregs sregs;

	if (ioctl(vm->vcpu, KVM_GET_SREGS, &sregs))
		return false;
	sregs.cs = flat_segment(8, 11);
	sregs.ds = sregs.es = sregs.ss = flat_segment(8, 3);
	sregs.cr0 |= 1;
	return !ioctl(vm->vcpu, KVM_SET_SREGS, &sregs);
}

/* What KVM tells of the first vCPU */
bool vm_map_run(struct vm *vm)
{
	vm->run_size = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	vm->run = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, 0);
	return vm->run != MAP_FAILED;
}

/* Up to its next exit */
bool vm_run(struct vm *vm)
{
	while (ioctl(vm->vcpu, KVM_RUN, 0))
		if (errno != EINTR || vm->run->immediate_exit)
			return false;
	return true;
}

/* false, with errno, if the host has no KVM, or not such VMs */
bool vm_create(struct vm *vm, unsigned int type)
{
	vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm < 0)
		return false;
	vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, (unsigned long)type);
	if (vm->fd < 0)
		return false;
	vm->desk = mmap(NULL, DESK_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			-1, 0);
	if (vm->desk == MAP_FAILED)
		return false;
	memcpy(vm->desk, guest_code, offset_of(guest_code_end));
	if (!vm_set_region(vm, 0, 0, 0, vm->desk, DESK_PAGES * PAGE, -1))
		return false;
	vm->vcpu = ioctl(vm->fd, KVM_CREATE_VCPU, 0UL);
	return vm->vcpu >= 0 && vm_map_run(vm) && set_mode(vm);
}

void vm_destroy(struct vm *vm)
{
	munmap(vm->run, vm->run_size);
	close(vm->vcpu);
	close(vm->fd);
	close(vm->kvm);
	munmap(vm->desk, DESK_PAGES * PAGE);
}

/* Has the guest done as it was told? */
static bool call(struct vm *vm, const char *code, struct kvm_regs *regs)
{
	regs->rip = offset_of(code);
	regs->rflags = 2;
	return !ioctl(vm->vcpu, KVM_SET_REGS, regs) && vm_run(vm) &&
	       vm->run->exit_reason == KVM_EXIT_HLT && !ioctl(vm->vcpu, KVM_GET_REGS, regs);
}

bool guest_fill(struct vm *vm, uint32_t seed, size_t size)
{
	struct kvm_regs regs = {
		.rax = seed,
		.rbx = seed,
		.rcx = size / 4,
		.rdi = MEMORY_GPA,
	};

	return call(vm, guest_code_fill, &regs);
}

bool guest_intact(struct vm *vm, uint32_t seed, size_t size)
{
	struct kvm_regs regs = {
		.rax = seed,
		.rbx = seed,
		.rcx = size / 4,
		.rsi = MEMORY_GPA,
	};

	return call(vm, guest_code_check, &regs) && !regs.rcx;
}

bool guest_copy(struct vm *vm, unsigned long gpa)
{
	struct kvm_regs regs = {
		.rcx = PAGE / 4,
		.rsi = gpa,
		.rdi = DESK_OUT * PAGE,
	};

	return call(vm, guest_code_copy, &regs);
}
