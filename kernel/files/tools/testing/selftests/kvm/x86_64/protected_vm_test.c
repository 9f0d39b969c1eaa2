// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected VMs: what becomes of them when they are finalized, and how they run.
 */
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

static uint64_t guest_triple_fault(uint64_t u0, uint64_t u1, uint64_t u2, uint64_t u3)
{
	static const struct desc_ptr no_idt;

	asm volatile("lidt %0; int3" : : "m" (no_idt));
	return 0;
}

TEST_F(protected, triple_fault)
{
	struct kvm_vcpu *vcpu = self->p->vcpu;
	struct kvm_mp_state state;

	ASSERT_EQ(0, pvm_start(self->p, guest_triple_fault, 0, 0, 0, 0));
	ASSERT_EQ(KVM_EXIT_SHUTDOWN, vcpu->run->exit_reason);
	if (self->is_protected) {
		EXPECT_REFUSED(EIO, _vcpu_run(vcpu));
		EXPECT_REFUSED(EIO, _vcpu_run(self->p->vcpus[1]));
		EXPECT_REFUSED(EIO, __vcpu_ioctl(vcpu, KVM_GET_MP_STATE, &state));
	} else {
		vcpu_mp_state_get(vcpu, &state);
	}
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

int main(int argc, char *argv[])
{
	TEST_REQUIRE(has_vm_type(KVM_X86_PROTECTED_VM));

	return test_harness_run(argc, argv);
}
