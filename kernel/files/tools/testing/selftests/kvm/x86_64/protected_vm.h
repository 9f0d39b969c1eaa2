/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What tests of protected VMs start from: a VM all of whose code, data and page
 * tables is the initial content of a guest-sealed memfd, and whose guest does
 * what it's told by a page that it shares.
 *
 * The same can be had of an ordinary type, to show that what is refused for a
 * protected VM is possible otherwise.
 */
#ifndef SELFTEST_KVM_PROTECTED_VM_H
#define SELFTEST_KVM_PROTECTED_VM_H

#include "apic.h"
#include "sealed_memfd.h"
#include "sealed_memfd_shared_bit.h"

#ifndef KVM_X86_PROTECTED_VM
#define KVM_X86_PROTECTED_VM	16
#endif

#define PRIVATE		KVM_MEMORY_EXIT_FLAG_PRIVATE
#define SHARED		0

/* The guest waits here to be told what to do. */
#define COMMAND_PORT	0x0e

/* An ordinary memslot, without private half; commands are in its first page. */
#define ORDINARY_SLOT	(SLOT + 1)
#define ORDINARY_GPA	OTHER_GPA

#define MAX_VCPUS	4

/*
 * The guest
 */
typedef uint64_t (*guest_fn)(uint64_t, uint64_t, uint64_t, uint64_t);

struct guest_call {
	uint64_t fn;
	uint64_t args[4];
	uint64_t ret;
};

static inline void protected_guest_code(void)
{
	struct guest_call *call = (void *)(ORDINARY_GPA + SHARED_ALIAS);

	for (;;) {
		asm volatile("outb %%al, %[port]"
			     : : "a" (0), [port] "i" (COMMAND_PORT) : "memory");
		call->ret = ((guest_fn)call->fn)(call->args[0], call->args[1], call->args[2],
						 call->args[3]);
	}
}

static inline uint64_t guest_load(uint64_t addr, uint64_t u1, uint64_t u2, uint64_t u3)
{
	return READ_ONCE(*(uint64_t *)addr);
}

static inline uint64_t guest_store(uint64_t addr, uint64_t value, uint64_t u1, uint64_t u2)
{
	WRITE_ONCE(*(uint64_t *)addr, value);
	return 0;
}

static inline uint64_t guest_do_rdmsr(uint64_t msr, uint64_t u1, uint64_t u2, uint64_t u3)
{
	uint64_t value;

	return rdmsr_safe(msr, &value) ? -1ul : value;
}

/* 0, or the vector */
static inline uint64_t guest_do_wrmsr(uint64_t msr, uint64_t value, uint64_t u1, uint64_t u2)
{
	return wrmsr_safe(msr, value);
}

static inline uint64_t guest_do_hypercall(uint64_t nr, uint64_t a0, uint64_t a1, uint64_t a2)
{
	return kvm_hypercall(nr, a0, a1, a2, 0);
}

/* Have the second vCPU begin in real mode, whatever it does */
static inline uint64_t guest_reset_other(uint64_t gpa, uint64_t u1, uint64_t u2, uint64_t u3)
{
	x2apic_enable();
	x2apic_write_reg(APIC_ICR, 1ul << 32 | APIC_INT_ASSERT | APIC_DM_INIT);
	x2apic_write_reg(APIC_ICR, 1ul << 32 | APIC_INT_ASSERT | APIC_DM_STARTUP | gpa >> 12);
	return 0;
}

/*
 * The host's side of it
 */
struct pvm {
	struct kvm_vm *vm;
	/* The first one */
	struct kvm_vcpu *vcpu;
	struct kvm_vcpu *vcpus[MAX_VCPUS];
	struct guest_call *call;
	uint64_t bit;
	/* The shared half of the memslot at GPA, followed by that of ORDINARY_SLOT */
	char *shared;
	/* The private half of the memslot at GPA: holes, unless a test converts pages. */
	int fd;
	/* That of slot 0, which is all content */
	int content_fd;
};

/* The addresses at which the guest finds the two aliases of a page of the memslot */
static inline uint64_t gva_of(unsigned long page, uint64_t kind)
{
	return gpa_of(page) + (kind == PRIVATE ? 0 : SHARED_ALIAS);
}

static inline void map_both(struct kvm_vm *vm, uint64_t gpa, unsigned long nr_pages, uint64_t bit)
{
	virt_map(vm, gpa, gpa, nr_pages);
	virt_map(vm, gpa + SHARED_ALIAS, gpa | bit, nr_pages);
}

static inline bool has_vm_type(unsigned long type)
{
	return kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(type) &&
	       kvm_check_cap(KVM_CAP_X86_SHARED_GPA_BIT);
}

/*
 * Up to where all that is missing is the content of slot 0: a test can have the
 * library change the guest's memory until pvm_load().  Other vCPUs than the first
 * wait for INIT and SIPI.
 */
static inline void pvm_create(struct pvm *pvm, unsigned long type, unsigned int nr_vcpus)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = type };
	struct kvm_mp_state wait = { .mp_state = KVM_MP_STATE_UNINITIALIZED };
	int bit = kvm_check_cap(KVM_CAP_X86_SHARED_GPA_BIT);
	unsigned int i;

	TEST_ASSERT(nr_vcpus && nr_vcpus <= MAX_VCPUS, "Too many vCPUs");
	memset(pvm, 0, sizeof(*pvm));
	pvm->bit = BIT_ULL(bit);
	pvm->vm = __vm_create(shape, nr_vcpus, 64);
	vm_enable_shared_bit(pvm->vm, bit);

	for (i = 0; i < nr_vcpus; i++) {
		pvm->vcpus[i] = vm_vcpu_add(pvm->vm, i, protected_guest_code);
		if (i)
			vcpu_mp_state_set(pvm->vcpus[i], &wait);
	}
	pvm->vcpu = pvm->vcpus[0];

	pvm->fd = new_sealed_memfd(SIZE);
	pvm->shared = mmap(NULL, 2 * SIZE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(pvm->shared != MAP_FAILED, __KVM_SYSCALL_ERROR("mmap()", -1));
	TEST_ASSERT(!set_slot(pvm->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE, pvm->shared,
			      pvm->fd, 0) &&
		    !set_slot(pvm->vm, ORDINARY_SLOT, 0, ORDINARY_GPA, SIZE,
			      pvm->shared + SIZE, -1, 0), "Can't create memslots");
	pvm->call = (void *)pvm->shared + SIZE;

	map_both(pvm->vm, GPA, 2 * NR_PAGES, pvm->bit);
	map_both(pvm->vm, MMIO_GPA, 1, pvm->bit);
	map_both(pvm->vm, APIC_DEFAULT_GPA, 1, pvm->bit);
}

/*
 * The library has pointers of the host's in the guest's memory, for ucalls.  Without
 * them one VM's is like another's.
 */
static inline void pvm_clear_pointers(struct pvm *pvm)
{
	struct userspace_mem_region *region = memslot2region(pvm->vm, 0);
	uint64_t *mem = region->host_mem;
	uint64_t i, size = region->region.memory_size;

	for (i = 0; i < size / sizeof(*mem); i++) {
		if (mem[i] - (uint64_t)mem < size)
			mem[i] = 0;
	}
}

/* What is in slot 0 becomes the guest's initial content. */
static inline void pvm_load(struct pvm *pvm)
{
	struct userspace_mem_region *region = memslot2region(pvm->vm, 0);
	uint64_t size = region->region.memory_size;
	void *mem = region->host_mem;

	TEST_ASSERT(region->region.guest_phys_addr == 0, "Memory is not where it is expected");
	pvm->content_fd = new_sealed_memfd(size);
	TEST_ASSERT(pwrite(pvm->content_fd, mem, size, 0) == size,
		    __KVM_SYSCALL_ERROR("pwrite()", -1));
	TEST_ASSERT(!delete_slot(pvm->vm, 0) &&
		    !set_slot(pvm->vm, 0, KVM_MEM_GUEST_MEMFD, 0, size, mem, pvm->content_fd, 0),
		    "Can't replace the memslot");
	/* Nothing is left of it in the shared half. */
	memset(mem, 0, size);
}

static inline int pvm_finalize(struct pvm *pvm, struct kvm_x86_finalize_vm *arg)
{
	struct kvm_x86_finalize_vm none = {};

	if (!arg)
		arg = &none;
	return __vm_ioctl(pvm->vm, KVM_X86_FINALIZE_VM, arg);
}

static inline void *io_data(struct kvm_vcpu *vcpu)
{
	return (char *)vcpu->run + vcpu->run->io.data_offset;
}

/* Run it up to its next port I/O; returns the port. */
static inline unsigned int run_until_io(struct kvm_vcpu *vcpu)
{
	int r;

	/* One that was reset is told once that there's nothing to do any more. */
	do {
		r = _vcpu_run(vcpu);
	} while (r && errno == EAGAIN);
	TEST_ASSERT(!r, __KVM_IOCTL_ERROR("KVM_RUN", r));
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	return vcpu->run->io.port;
}

/* Have the guest call a function, which may exit before it's done. */
static inline int pvm_start(struct pvm *pvm, guest_fn fn, uint64_t a0, uint64_t a1, uint64_t a2,
			    uint64_t a3)
{
	*pvm->call = (struct guest_call) { (uint64_t)fn, { a0, a1, a2, a3 }, 0xdead };
	return _vcpu_run(pvm->vcpu);
}

/* The guest asks for its next command. */
static inline bool pvm_is_done(struct pvm *pvm)
{
	struct kvm_run *run = pvm->vcpu->run;

	return run->exit_reason == KVM_EXIT_IO && run->io.port == COMMAND_PORT;
}

static inline uint64_t pvm_result(struct pvm *pvm)
{
	TEST_ASSERT_KVM_EXIT_REASON(pvm->vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(pvm->vcpu->run->io.port, COMMAND_PORT);
	return pvm->call->ret;
}

static inline uint64_t pvm_call(struct pvm *pvm, guest_fn fn, uint64_t a0, uint64_t a1,
				uint64_t a2, uint64_t a3)
{
	int r = pvm_start(pvm, fn, a0, a1, a2, a3);

	TEST_ASSERT(!r, __KVM_IOCTL_ERROR("KVM_RUN", r));
	return pvm_result(pvm);
}

static inline uint64_t pvm_read(struct pvm *pvm, uint64_t addr)
{
	return pvm_call(pvm, guest_load, addr, 0, 0, 0);
}

static inline void pvm_write(struct pvm *pvm, uint64_t addr, uint64_t value)
{
	pvm_call(pvm, guest_store, addr, value, 0, 0);
}

/* Up to the guest's first wait for a command; what is of a protected type is final. */
static inline void pvm_launch(struct pvm *pvm)
{
	int r;

	pvm_load(pvm);
	if (pvm->vm->type == KVM_X86_PROTECTED_VM) {
		r = pvm_finalize(pvm, NULL);
		TEST_ASSERT(!r, __KVM_IOCTL_ERROR("KVM_X86_FINALIZE_VM", r));
	}
	vcpu_run(pvm->vcpu);
	TEST_ASSERT(pvm_is_done(pvm), "The guest is not there: %s",
		    exit_reason_str(pvm->vcpu->run->exit_reason));
}

/* kvm_vm_free() would delete memslots first, which is refused. */
static inline void pvm_free(struct pvm *pvm)
{
	if (!pvm->vm)
		return;

	kvm_vm_release(pvm->vm);
	munmap(pvm->shared, 2 * SIZE);
	close(pvm->fd);
	if (pvm->content_fd)
		close(pvm->content_fd);
}

/*
 * A VM that runs, protected or not
 */
FIXTURE(protected)
{
	struct pvm pvm;
	struct pvm *p;
	bool is_protected;
};

FIXTURE_VARIANT(protected)
{
	unsigned long type;
};

FIXTURE_VARIANT_ADD(protected, protected_vm) {
	.type = KVM_X86_PROTECTED_VM,
};

FIXTURE_VARIANT_ADD(protected, default_vm) {
	.type = KVM_X86_DEFAULT_VM,
};

FIXTURE_SETUP(protected)
{
	if (!has_vm_type(variant->type))
		SKIP(return, "VM type %lu, or the shared GPA bit, is not supported",
		     variant->type);

	self->p = &self->pvm;
	self->is_protected = variant->type == KVM_X86_PROTECTED_VM;
	pvm_create(self->p, variant->type, 2);
	pvm_launch(self->p);
}

FIXTURE_TEARDOWN(protected)
{
	if (self->p)
		pvm_free(self->p);
}

/* What is possible in an ordinary VM, and refused in a protected one */
#define EXPECT_REFUSED_IF_PROTECTED(_errno, _call)			\
do {									\
	if (self->is_protected)						\
		EXPECT_REFUSED(_errno, _call);				\
	else								\
		EXPECT_LE(0, _call);					\
} while (0)

#endif /* SELFTEST_KVM_PROTECTED_VM_H */
