// SPDX-License-Identifier: GPL-2.0
/*
 * Implicit conversions by several vCPUs at once, while userspace converts, too.
 *
 * The pages in the lower half of the memory are accessed with their lock held,
 * which whoever else converts them takes, too: their content is known exactly.
 *
 * Pages in the upper half are accessed, and thereby converted, at any time by
 * anyone.  What is found through either alias has been written to this page
 * through this alias, or is zero: the halves never mix.
 */
#include "sealed_memfd_race.h"
#include "sealed_memfd_shared_bit.h"

#define NR_STRICT	(RACE_NR_PAGES / 2)
#define NR_LOOSE	(RACE_NR_PAGES - NR_STRICT)

#define SHARED_TAG	0x5aedul
#define PRIVATE_TAG	0x9717ul

static uint64_t *word_of(unsigned int i, bool private)
{
	return strict_word(i) + (private ? 0 : SHARED_ALIAS / sizeof(uint64_t));
}

static void guest_access_locked(unsigned int i, bool private, uint64_t value)
{
	struct race_page *page = &race_control.pages[i];
	uint64_t *expected, seen;

	/* This may convert it. */
	seen = READ_ONCE(*word_of(i, private));
	if (private && !page->private)
		page->private_value = 0;
	page->private = private;

	expected = private ? &page->private_value : &page->shared_value;
	__GUEST_ASSERT(seen == *expected, "page %u is %s and should have %lx, not %lx",
		       i, private ? "private" : "shared", *expected, seen);
	WRITE_ONCE(*word_of(i, private), value);
	*expected = value;
}

static void guest_access_unlocked(unsigned int i, bool private, uint64_t value)
{
	uint64_t tag = (private ? PRIVATE_TAG : SHARED_TAG) << 48 | (uint64_t)i << 32;
	uint64_t seen = READ_ONCE(*word_of(i, private));

	__GUEST_ASSERT(!seen || seen >> 32 == tag >> 32, "%s page %u has %lx",
		       private ? "private" : "shared", i, seen);
	WRITE_ONCE(*word_of(i, private), tag | (uint32_t)value);
}

static void implicit_guest_code(uint32_t seed)
{
	struct guest_random_state rng = new_guest_random_state(seed);
	uint32_t n, i, random;

	for (n = 1; n <= race_control.iterations; n++) {
		random = guest_random_u32(&rng);
		guest_access_unlocked(NR_STRICT + random / 4 % NR_LOOSE, random & 1, n);

		i = guest_random_u32(&rng) % NR_STRICT;
		if (!try_lock_page(&race_control.pages[i]))
			continue;
		guest_access_locked(i, random & 2, (uint64_t)seed << 32 | n);
		unlock_page(&race_control.pages[i]);
	}
	GUEST_DONE();
}

/* What the guest asks for, most of the time. */
static void handle_memory_fault(struct race *race, struct kvm_run *run, unsigned int *seed)
{
	unsigned int i = (run->memory_fault.gpa - RACE_GPA) / PAGE_SIZE;
	bool private = run->memory_fault.flags == KVM_MEMORY_EXIT_FLAG_PRIVATE;

	TEST_ASSERT((private || !run->memory_fault.flags) && i < RACE_NR_PAGES &&
		    run->memory_fault.gpa % PAGE_SIZE == 0 &&
		    run->memory_fault.size == PAGE_SIZE,
		    "Flags 0x%llx, GPA 0x%llx, size 0x%llx", run->memory_fault.flags,
		    run->memory_fault.gpa, run->memory_fault.size);

	switch (rand_r(seed) % 16) {
	case 0:
		/* Let it ask again. */
		return;
	case 1:
		/* The wrong page, though not a locked one. */
		i = NR_STRICT + rand_r(seed) % NR_LOOSE;
		break;
	case 2:
		/* The wrong way. */
		if (i >= NR_STRICT)
			private = !private;
		break;
	}
	race_fallocate(race, private, i, 1);
}

/* There is no memslot: what is written is lost, which the guest can't tell from zeros. */
static void handle_mmio(struct kvm_run *run)
{
	TEST_ASSERT(run->mmio.phys_addr >= RACE_GPA + NR_STRICT * PAGE_SIZE &&
		    run->mmio.phys_addr < RACE_GPA + RACE_SIZE,
		    "Unexpected MMIO: GPA 0x%llx", run->mmio.phys_addr);
	memset(run->mmio.data, 0, sizeof(run->mmio.data));
}

static void *implicit_run_vcpu(void *data)
{
	struct race_vcpu *race_vcpu = data;
	struct kvm_vcpu *vcpu = race_vcpu->vcpu;
	unsigned int seed = vcpu->id;
	struct ucall uc;

	for (;;) {
		if (_vcpu_run(vcpu)) {
			TEST_ASSERT(errno == EFAULT &&
				    vcpu->run->exit_reason == KVM_EXIT_MEMORY_FAULT,
				    "KVM_RUN failed: errno %d, exit reason %u", errno,
				    vcpu->run->exit_reason);
			handle_memory_fault(race_vcpu->race, vcpu->run, &seed);
		} else if (vcpu->run->exit_reason == KVM_EXIT_MMIO) {
			handle_mmio(vcpu->run);
		} else {
			break;
		}
	}
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	if (get_ucall(vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT_EQ(uc.cmd, UCALL_DONE);
	return NULL;
}

/* Converts what the guest has locked, or anyone may have. */
static void *implicit_converter(void *data)
{
	struct race *race = data;
	unsigned int start, nr, seed = 1;

	while (!READ_ONCE(race->stop)) {
		start = rand_r(&seed) % NR_STRICT;
		nr = 1 + rand_r(&seed) % 8;
		race_convert(race, rand_r(&seed) & 1, start, min(nr, NR_STRICT - start));
		start = NR_STRICT + rand_r(&seed) % NR_LOOSE;
		nr = rand_r(&seed) % 8 ? 1 + rand_r(&seed) % 8 : NR_LOOSE;
		race_fallocate(race, rand_r(&seed) & 1, start, min(nr, RACE_NR_PAGES - start));
		/* Let the vCPUs get on. */
		usleep(1000);
	}
	return NULL;
}

/* Takes shared memory away, which comes back as zeros. */
static void *implicit_discarder(void *data)
{
	struct race *race = data;
	unsigned int i, seed = 2;

	while (!READ_ONCE(race->stop)) {
		i = NR_STRICT + rand_r(&seed) % NR_LOOSE;
		TEST_ASSERT(!madvise(race->shared + i * PAGE_SIZE, PAGE_SIZE, MADV_DONTNEED),
			    __KVM_SYSCALL_ERROR("madvise()", -1));
		usleep(1000);
	}
	return NULL;
}

/*
 * Memslots come, go and change.  Pages that are accessed at any time may find
 * nothing there; the others are locked while that is so.
 */
static void set_flags(struct race *race, uint32_t flags)
{
	TEST_ASSERT(!__vm_set_user_memory_region2(race->vm, RACE_SLOT,
						  KVM_MEM_GUEST_MEMFD | flags, RACE_GPA,
						  RACE_SIZE, race->shared, race->fd, 0),
		    __KVM_SYSCALL_ERROR("KVM_SET_USER_MEMORY_REGION2", -1));
}

static void split_and_merge(struct race *race, unsigned int border)
{
	TEST_ASSERT(!split_region(race->vm, RACE_SLOT, 0, border, 0, RACE_SLOT, RACE_SLOT + 1),
		    __KVM_SYSCALL_ERROR("KVM_SPLIT_MEMORY_REGION", -1));
	usleep(100);
	TEST_ASSERT(!merge_regions(race->vm, RACE_SLOT, RACE_GPA, RACE_NR_PAGES),
		    __KVM_SYSCALL_ERROR("KVM_MERGE_MEMORY_REGIONS", -1));
}

static void *implicit_slot_changer(void *data)
{
	struct race *race = data;
	unsigned int seed = 3;

	while (!READ_ONCE(race->stop)) {
		set_flags(race, KVM_MEM_LOG_DIRTY_PAGES);
		split_and_merge(race, 1 + rand_r(&seed) % (RACE_NR_PAGES - 1));
		set_flags(race, 0);
		split_and_merge(race, 1 + rand_r(&seed) % (RACE_NR_PAGES - 1));

		race_lock(race, 0, NR_STRICT);
		TEST_ASSERT(!race_set_slot(race, race->vm, false), "Can't delete the memslot");
		usleep(100);
		TEST_ASSERT(!race_set_slot(race, race->vm, true), "Can't create the memslot");
		race_unlock(race, 0, NR_STRICT);
		usleep(5000);
	}
	return NULL;
}

static struct race *implicit_create(uint32_t type, unsigned int nr_vcpus,
				    uint32_t iterations)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = type };
	struct kvm_vm *vm = __vm_create(shape, nr_vcpus, 64);
	int bit = kvm_check_cap(KVM_CAP_X86_SHARED_GPA_BIT);
	struct race *race;

	vm_enable_shared_bit(vm, bit);
	race = race_setup(vm, nr_vcpus, iterations, implicit_guest_code, implicit_run_vcpu);
	virt_map(vm, RACE_GPA + SHARED_ALIAS, RACE_GPA | BIT_ULL(bit), RACE_NR_PAGES);
	return race;
}

static void *(*const threads[])(void *) = {
	implicit_converter, implicit_discarder, implicit_slot_changer,
};

int main(int argc, char *argv[])
{
	const struct race_options several = race_parse_options(argc, argv);
	const struct race_options one = { several.iterations, 1 };

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_X86_SHARED_GPA_BIT));
	ksft_print_header();
	ksft_set_plan(5);

	race_test("one vCPU", implicit_create, KVM_X86_DEFAULT_VM, &one, NULL, 0);
	race_test("several vCPUs", implicit_create, KVM_X86_DEFAULT_VM, &several, NULL, 0);
	race_test("with conversions by userspace", implicit_create, KVM_X86_DEFAULT_VM,
		  &several, threads, ARRAY_SIZE(threads) - 1);
	race_test("with changes of memslots", implicit_create, KVM_X86_DEFAULT_VM,
		  &several, threads, ARRAY_SIZE(threads));
	race_test("software-protected VM", implicit_create, KVM_X86_SW_PROTECTED_VM, &several,
		  threads, ARRAY_SIZE(threads));

	ksft_finished();
}
