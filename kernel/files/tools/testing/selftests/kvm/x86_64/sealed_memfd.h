/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What tests with a guest-sealed memfd start from: a VM whose guest does what
 * it's told, and a fixture with one memslot.
 */
#ifndef SELFTEST_KVM_SEALED_MEMFD_H
#define SELFTEST_KVM_SEALED_MEMFD_H

#include <fcntl.h>
#include <linux/kvm_para.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "kvm_util.h"
#include "processor.h"
#include "sealed_memfd_util.h"
#include "test_util.h"

/* A debug kernel in an emulated host takes its time. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT 300

#define SLOT		10
#define SMM_SLOT	(SLOT | 1 << 16)
#define NR_PAGES	1024ul
#define SIZE		(NR_PAGES * PAGE_SIZE)
/* The memslot, and where it moves to. */
#define GPA		(4ul << 30)
#define OTHER_GPA	(GPA + SIZE)
/* Neither memory nor anything else. */
#define MMIO_GPA	(GPA + 4 * SIZE)
/* Mapped by a page table of its own. */
#define PT_GVA		(GPA + (1ul << 30))
/* The page of most tests. */
#define PAGE		3

#define SHARED_VALUE(i)		(0x5aed000000000000ul + (i))
#define PRIVATE_VALUE(i)	(0x9717a7e000000000ul + (i))

#define EXPECT_REFUSED(_errno, _call)					\
do {									\
	long _ret = (_call);						\
	int _err = errno;						\
									\
	EXPECT_EQ(-1, _ret);						\
	if (_ret == -1)							\
		EXPECT_EQ(_errno, _err);				\
} while (0)

/*
 * The guest does what it's told, one thing at a time.
 */
enum guest_op {
	GUEST_READ,
	GUEST_WRITE,
	GUEST_CALL,
	GUEST_MOVSQ,
	GUEST_HYPERCALL,
	GUEST_WRMSR,
};

static struct guest_command {
	enum guest_op op;
	uint64_t addr;
	uint64_t value;
	uint64_t attributes;
} guest_command;

static inline uint64_t guest_do(void)
{
	uint64_t addr = READ_ONCE(guest_command.addr);
	uint64_t value = READ_ONCE(guest_command.value);
	uint64_t ret = 0;

	switch (READ_ONCE(guest_command.op)) {
	case GUEST_READ:
		ret = READ_ONCE(*(uint64_t *)addr);
		break;
	case GUEST_WRITE:
		WRITE_ONCE(*(uint64_t *)addr, value);
		break;
	case GUEST_CALL:
		asm volatile("call *%1" : "=a" (ret) : "r" (addr), "D" (value) : "memory");
		break;
	case GUEST_MOVSQ:
		asm volatile("movsq" : "+S" (addr), "+D" (value) : : "memory");
		break;
	case GUEST_HYPERCALL:
		ret = kvm_hypercall(KVM_HC_MAP_GPA_RANGE, addr, value,
				    READ_ONCE(guest_command.attributes), 0);
		break;
	case GUEST_WRMSR:
		ret = wrmsr_safe(addr, value);
		break;
	}
	return ret;
}

static inline void guest_code(void)
{
	/* Bochs can't stop a guest for an interrupt of the host if they are disabled. */
	asm volatile("sti");
	for (;;)
		GUEST_SYNC(guest_do());
}

struct test_vm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct guest_command *command;
};

static inline void test_vm_create(struct test_vm *tvm, uint32_t type)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = type };

	tvm->vm = __vm_create_shape_with_one_vcpu(shape, &tvm->vcpu, 64, guest_code);
	tvm->command = addr_gva2hva(tvm->vm, (vm_vaddr_t)&guest_command);
	virt_map(tvm->vm, GPA, GPA, 2 * NR_PAGES);
	virt_map(tvm->vm, MMIO_GPA, MMIO_GPA, 1);
}

static inline void guest_command_set(struct test_vm *tvm, enum guest_op op, uint64_t addr,
				     uint64_t value)
{
	*tvm->command = (struct guest_command) { op, addr, value };
}

/* What a command gave, the VM having been run up to its end. */
static inline uint64_t guest_result(struct test_vm *tvm)
{
	struct ucall uc;

	TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(get_ucall(tvm->vcpu, &uc), UCALL_SYNC);
	return uc.args[1];
}

static inline uint64_t guest_run(struct test_vm *tvm, enum guest_op op, uint64_t addr,
				 uint64_t value)
{
	guest_command_set(tvm, op, addr, value);
	vcpu_run(tvm->vcpu);
	return guest_result(tvm);
}

static inline uint64_t guest_read(struct test_vm *tvm, uint64_t addr)
{
	return guest_run(tvm, GUEST_READ, addr, 0);
}

static inline void guest_write(struct test_vm *tvm, uint64_t addr, uint64_t value)
{
	guest_run(tvm, GUEST_WRITE, addr, value);
}

/* The guest goes on with its command, and does not get at the page. */
static inline void expect_memory_fault(struct __test_metadata *_metadata, struct test_vm *tvm,
				       uint64_t gpa, uint64_t flags, int err)
{
	struct kvm_run *run = tvm->vcpu->run;

	EXPECT_REFUSED(err, _vcpu_run(tvm->vcpu));
	ASSERT_EQ(KVM_EXIT_MEMORY_FAULT, run->exit_reason);
	EXPECT_EQ(flags, run->memory_fault.flags);
	EXPECT_EQ(gpa, run->memory_fault.gpa);
	EXPECT_EQ(PAGE_SIZE, run->memory_fault.size);
}

static inline void inject_smi(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_events events;

	vcpu_events_get(vcpu, &events);
	events.smi.pending = 1;
	events.flags |= KVM_VCPUEVENT_VALID_SMM;
	vcpu_events_set(vcpu, &events);
}

/* Whether KVM_FEP has the next instruction emulated. */
static inline bool force_emulation(void)
{
	int fd;

	if (kvm_is_forced_emulation_enabled())
		return true;

	fd = open("/sys/module/kvm/parameters/force_emulation_prefix", O_WRONLY);
	if (fd >= 0 && write(fd, "1", 1) != 1)
		TEST_FAIL("Can't enable forced emulation");
	close(fd);
	return fd >= 0;
}

static inline uint64_t gpa_of(unsigned long page)
{
	return GPA + page * PAGE_SIZE;
}

/*
 * A VM with one memslot, whose shared half holds a value per page.
 */
FIXTURE(sealed)
{
	struct test_vm tvm;
	struct kvm_vm *vm;
	char *shared;
	int fd;
};

FIXTURE_VARIANT(sealed)
{
	uint32_t type;
};

FIXTURE_VARIANT_ADD(sealed, default_vm) {
	.type = KVM_X86_DEFAULT_VM,
};

FIXTURE_VARIANT_ADD(sealed, sw_protected_vm) {
	.type = KVM_X86_SW_PROTECTED_VM,
};

static inline int set_slot(struct kvm_vm *vm, uint32_t slot, uint32_t flags, uint64_t gpa,
			   uint64_t size, void *shared, int fd, uint64_t offset)
{
	return __vm_set_user_memory_region2(vm, slot, flags, gpa, size, shared, fd, offset);
}

static inline int add_slot(FIXTURE_DATA(sealed) *self, uint32_t slot, unsigned long page,
			   unsigned long nr_pages)
{
	return set_slot(self->vm, slot, KVM_MEM_GUEST_MEMFD, gpa_of(page),
			nr_pages * PAGE_SIZE, self->shared + page * PAGE_SIZE, self->fd,
			page * PAGE_SIZE);
}

static inline int delete_slot(struct kvm_vm *vm, uint32_t slot)
{
	return set_slot(vm, slot, 0, 0, 0, NULL, -1, 0);
}

static inline uint64_t *shared_page(FIXTURE_DATA(sealed) *self, unsigned long page)
{
	return (void *)self->shared + page * PAGE_SIZE;
}

static inline int to_private(FIXTURE_DATA(sealed) *self, unsigned long page,
			     unsigned long nr_pages)
{
	return fallocate(self->fd, 0, page * PAGE_SIZE, nr_pages * PAGE_SIZE);
}

static inline int to_shared(FIXTURE_DATA(sealed) *self, unsigned long page,
			    unsigned long nr_pages)
{
	return fallocate(self->fd, PUNCH, page * PAGE_SIZE, nr_pages * PAGE_SIZE);
}

FIXTURE_SETUP(sealed)
{
	unsigned long i;

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(variant->type)))
		SKIP(return, "VM type %u is not supported", variant->type);

	test_vm_create(&self->tvm, variant->type);
	self->vm = self->tvm.vm;
	self->fd = new_sealed_memfd(2 * SIZE);
	self->shared = mmap(NULL, 2 * SIZE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->shared);
	for (i = 0; i < NR_PAGES; i++)
		*shared_page(self, i) = SHARED_VALUE(i);
	ASSERT_EQ(0, add_slot(self, SLOT, 0, NR_PAGES));
}

FIXTURE_TEARDOWN(sealed)
{
	kvm_vm_free(self->vm);
	munmap(self->shared, 2 * SIZE);
	close(self->fd);
}

#endif /* SELFTEST_KVM_SEALED_MEMFD_H */
