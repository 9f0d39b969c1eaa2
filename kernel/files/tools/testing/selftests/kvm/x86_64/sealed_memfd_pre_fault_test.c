// SPDX-License-Identifier: GPL-2.0
/*
 * KVM_PRE_FAULT_MEMORY of memslots with a guest-sealed memfd: maps the half that
 * is in force, whatever else happens to the memslot meanwhile.
 */
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>

#include "sealed_memfd.h"

static int pre_fault(FIXTURE_DATA(sealed) *self, struct kvm_pre_fault_memory *range)
{
	return __vcpu_ioctl(self->tvm.vcpu, KVM_PRE_FAULT_MEMORY, range);
}

/* All of it, however often that is interrupted. Gives how often. */
static int pre_fault_all(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self,
			 unsigned long page, unsigned long nr_pages)
{
	struct kvm_pre_fault_memory range = {
		.gpa = gpa_of(page),
		.size = nr_pages * PAGE_SIZE,
	};
	uint64_t size = range.size;
	int interrupts = 0, ret;

	while (range.size) {
		ret = pre_fault(self, &range);
		if (ret && errno != EINTR)
			break;
		/* Something done, or nothing and told so. */
		EXPECT_EQ(!ret, range.size < size);
		EXPECT_EQ(gpa_of(page + nr_pages), range.gpa + range.size);
		size = range.size;
		interrupts += size != 0;
	}
	EXPECT_EQ(0, range.size) {
		TH_LOG("errno %d", errno);
	}
	return interrupts;
}

TEST_F(sealed, maps_half_in_force)
{
	unsigned long i, bad = 0, mapped, faults;

	ASSERT_EQ(0, to_private(self, NR_PAGES / 4, NR_PAGES / 2));
	/* What the guest itself consists of is mapped, too, e.g. its page tables. */
	guest_read(&self->tvm, gpa_of(0));
	guest_read(&self->tvm, gpa_of(NR_PAGES - 1));
	mapped = vm_get_stat(self->vm, "pages_4k");
	pre_fault_all(_metadata, self, 0, NR_PAGES);
	/* The shared half may be in huge pages. */
	EXPECT_LE(mapped + NR_PAGES / 2, vm_get_stat(self->vm, "pages_4k"));

	faults = vm_get_stat(self->vm, "pages_4k");
	for (i = 0; i < NR_PAGES; i++)
		bad += guest_read(&self->tvm, gpa_of(i)) !=
			(i / (NR_PAGES / 4) % 3 ? 0 : SHARED_VALUE(i));
	EXPECT_EQ(0, bad);
	/* That took no more of them. */
	EXPECT_EQ(faults, vm_get_stat(self->vm, "pages_4k"));
}

TEST_F(sealed, conversions)
{
	struct test_vm *tvm = &self->tvm;
	int i;

	for (i = 0; i < 20; i++) {
		pre_fault_all(_metadata, self, 0, 8);
		ASSERT_EQ(0, to_private(self, PAGE, 2));
		ASSERT_EQ(0, guest_read(tvm, gpa_of(PAGE)));
		pre_fault_all(_metadata, self, 0, 8);
		guest_write(tvm, gpa_of(PAGE), PRIVATE_VALUE(i));
		ASSERT_EQ(0, guest_read(tvm, gpa_of(PAGE + 1)));
		ASSERT_EQ(0, to_shared(self, PAGE, 1));
		pre_fault_all(_metadata, self, 0, 8);
		ASSERT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gpa_of(PAGE)));
		ASSERT_EQ(0, to_shared(self, PAGE, 2));
	}
}

TEST_F(sealed, errors)
{
	struct kvm_pre_fault_memory range = { .gpa = GPA - PAGE_SIZE, .size = 2 * PAGE_SIZE };

	EXPECT_REFUSED(ENOENT, pre_fault(self, &range));
	range = (struct kvm_pre_fault_memory) { .gpa = gpa_of(NR_PAGES - 1), .size = SIZE };
	EXPECT_EQ(0, pre_fault(self, &range));
	EXPECT_EQ(gpa_of(NR_PAGES), range.gpa);
	EXPECT_REFUSED(ENOENT, pre_fault(self, &range));

	/* A page without its shared half is no matter if it's private. */
	ASSERT_EQ(0, munmap(shared_page(self, PAGE), 2 * PAGE_SIZE));
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	range = (struct kvm_pre_fault_memory) { .gpa = GPA, .size = SIZE };
	EXPECT_EQ(0, pre_fault(self, &range));
	EXPECT_EQ(gpa_of(PAGE + 1), range.gpa);
	EXPECT_REFUSED(EFAULT, pre_fault(self, &range));
	EXPECT_EQ(gpa_of(PAGE + 1), range.gpa);
}

/* What is in kvm_run belongs to the exit that is to be completed. */
TEST_F(sealed, errors_between_exits)
{
	struct test_vm *tvm = &self->tvm;
	struct kvm_run *run = tvm->vcpu->run;
	struct kvm_pre_fault_memory range = { .gpa = gpa_of(PAGE), .size = PAGE_SIZE };
	const uint64_t data = 0x1122334455667788ul;

	ASSERT_EQ(0, munmap(shared_page(self, PAGE), PAGE_SIZE));
	guest_command_set(tvm, GUEST_READ, MMIO_GPA, 0);
	vcpu_run(tvm->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
	memcpy(run->mmio.data, &data, 8);

	EXPECT_REFUSED(EFAULT, pre_fault(self, &range));
	EXPECT_EQ(KVM_EXIT_MMIO, run->exit_reason);
	EXPECT_EQ(MMIO_GPA, run->mmio.phys_addr);
	vcpu_run(tvm->vcpu);
	EXPECT_EQ(data, guest_result(tvm));
}

/* Without the guest being entered in between */
TEST_F(sealed, after_memslot_changes)
{
	int i;

	ASSERT_EQ(0, to_private(self, PAGE, 1));
	guest_write(&self->tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
	for (i = 0; i < 10; i++) {
		ASSERT_EQ(0, delete_slot(self->vm, SLOT));
		ASSERT_EQ(0, add_slot(self, SLOT, 0, NR_PAGES));
		pre_fault_all(_metadata, self, 0, NR_PAGES);
		ASSERT_EQ(0, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, OTHER_GPA, SIZE,
				      self->shared, self->fd, 0));
		pre_fault_all(_metadata, self, NR_PAGES, NR_PAGES);
		ASSERT_EQ(0, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
				      self->shared, self->fd, 0));
		pre_fault_all(_metadata, self, 0, NR_PAGES);
	}
	EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(&self->tvm, gpa_of(PAGE)));
	EXPECT_EQ(SHARED_VALUE(0), guest_read(&self->tvm, gpa_of(0)));
}

struct changer {
	FIXTURE_DATA(sealed) *self;
	bool stop;
	unsigned long nr;
};

static void *change_memslot(void *data)
{
	struct changer *changer = data;

	while (!READ_ONCE(changer->stop)) {
		TEST_ASSERT(!delete_slot(changer->self->vm, SLOT),
			    "Can't delete the memslot");
		TEST_ASSERT(!add_slot(changer->self, SLOT, 0, NR_PAGES),
			    "Can't create the memslot");
		WRITE_ONCE(changer->nr, changer->nr + 1);
	}
	return NULL;
}

/* Neither waits for the other. */
TEST_F(sealed, during_memslot_changes)
{
	struct changer changer = { .self = self };
	struct kvm_pre_fault_memory range;
	pthread_t thread;
	int i, done = 0;

	ASSERT_EQ(0, to_private(self, 0, NR_PAGES / 2));
	guest_write(&self->tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
	ASSERT_EQ(0, pthread_create(&thread, NULL, change_memslot, &changer));
	for (i = 0; i < 200 || READ_ONCE(changer.nr) < 100; i++) {
		range = (struct kvm_pre_fault_memory) { .gpa = GPA, .size = SIZE };
		if (!pre_fault(self, &range)) {
			done++;
			continue;
		}
		EXPECT_EQ(ENOENT, errno);
	}
	WRITE_ONCE(changer.stop, true);
	pthread_join(thread, NULL);
	TH_LOG("%d of %d pre-faults and %lu memslots", done, i, changer.nr);

	pre_fault_all(_metadata, self, 0, NR_PAGES);
	EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_read(&self->tvm, gpa_of(PAGE)));
	EXPECT_EQ(SHARED_VALUE(NR_PAGES - 1),
		  guest_read(&self->tvm, gpa_of(NR_PAGES - 1)));
}

static void *convert_all_the_time(void *data)
{
	struct changer *changer = data;

	while (!READ_ONCE(changer->stop)) {
		TEST_ASSERT(!to_private(changer->self, 0, NR_PAGES), "fallocate() failed");
		TEST_ASSERT(!to_shared(changer->self, 0, NR_PAGES), "fallocate() failed");
		WRITE_ONCE(changer->nr, changer->nr + 1);
	}
	return NULL;
}

TEST_F(sealed, during_conversions)
{
	struct changer changer = { .self = self };
	unsigned long i, bad = 0;
	pthread_t thread;

	ASSERT_EQ(0, pthread_create(&thread, NULL, convert_all_the_time, &changer));
	for (i = 0; i < 20 || READ_ONCE(changer.nr) < 20; i++)
		pre_fault_all(_metadata, self, 0, NR_PAGES);
	WRITE_ONCE(changer.stop, true);
	pthread_join(thread, NULL);

	/* In the end all is shared. */
	for (i = 0; i < NR_PAGES; i++)
		bad += guest_read(&self->tvm, gpa_of(i)) != SHARED_VALUE(i);
	EXPECT_EQ(0, bad);
}

static void ignore_signal(int sig)
{
}

TEST_F(sealed, signals)
{
	struct sigaction action = { .sa_handler = ignore_signal };
	struct itimerval timer = { { 0, 1000 }, { 0, 1000 } }, off = {};
	int i, interrupts = 0;

	ASSERT_EQ(0, sigaction(SIGALRM, &action, NULL));
	for (i = 0; i < 10; i++) {
		/* Zaps all of it. */
		ASSERT_EQ(0, delete_slot(self->vm, SLOT));
		ASSERT_EQ(0, add_slot(self, SLOT, 0, NR_PAGES));
		ASSERT_EQ(0, to_private(self, 0, NR_PAGES));
		ASSERT_EQ(0, setitimer(ITIMER_REAL, &timer, NULL));
		interrupts += pre_fault_all(_metadata, self, 0, NR_PAGES);
		ASSERT_EQ(0, setitimer(ITIMER_REAL, &off, NULL));
	}
	TH_LOG("%d interrupts", interrupts);
	EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(NR_PAGES - 1)));
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_SEALED_MEMFD));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));

	return test_harness_run(argc, argv);
}
