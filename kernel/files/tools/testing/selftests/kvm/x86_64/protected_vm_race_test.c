// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected VMs: what other threads do while one is being finalized comes before that,
 * and is measured, or is refused.
 */
#include <asm/kvm_measurement.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>

#include "protected_vm.h"
#include "sealed_memfd_huge.h"

#define NR_ROUNDS	10
#define LOG_SIZE	0x100000
#define RACE_SLOT	(SLOT + 2)
#define RACE_GPA	(GPA + 8 * SIZE)

struct race {
	struct pvm pvm;
	struct kvm_regs regs;
	/* Told to others once KVM_X86_FINALIZE_VM has returned, or what there is instead */
	bool is_final;
	/* How often userspace had its way after that */
	unsigned int nr_late;
	unsigned int nr_created;
};

/* The guest tells with which RDI it was started. */
static void guest_race(uint64_t rdi)
{
	WRITE_ONCE(*(uint64_t *)gva_of(0, SHARED), rdi);
	protected_guest_code();
}

static void count_if_late(struct race *race, bool was_final, int r)
{
	if (was_final && r >= 0)
		__atomic_fetch_add(&race->nr_late, 1, __ATOMIC_SEQ_CST);
}

static bool is_final(struct race *race)
{
	return __atomic_load_n(&race->is_final, __ATOMIC_SEQ_CST);
}

/* Each goes on for some time after the VM is final. */
static void *set_regs(void *arg)
{
	struct race *race = arg;
	struct kvm_regs regs = race->regs;
	int r, nr = 0;
	bool was_final;

	while (nr < 100) {
		was_final = is_final(race);
		nr += was_final;
		regs.rdi++;
		r = __vcpu_ioctl(race->pvm.vcpu, KVM_SET_REGS, &regs);
		count_if_late(race, was_final, r);
	}
	return NULL;
}

static void *set_memslot(void *arg)
{
	struct race *race = arg;
	bool was_final, there = false;
	int r, nr = 0;

	while (nr < 100) {
		was_final = is_final(race);
		nr += was_final;
		r = set_slot(race->pvm.vm, RACE_SLOT, 0, RACE_GPA, there ? 0 : PAGE_SIZE,
			     race->pvm.shared, -1, 0);
		there ^= !r;
		count_if_late(race, was_final, r);
	}
	return NULL;
}

static void *create_vcpus(void *arg)
{
	struct race *race = arg;
	int r, nr = 0, id = 2;
	bool was_final;

	while (nr < 100) {
		was_final = is_final(race);
		nr += was_final;
		/* There's nothing to be gained by many. */
		if (id == MAX_VCPUS && !was_final) {
			sched_yield();
			continue;
		}
		r = __vm_ioctl(race->pvm.vm, KVM_CREATE_VCPU, (void *)(long)id);
		count_if_late(race, was_final, r);
		if (r >= 0) {
			close(r);
			race->nr_created++;
			id++;
		}
	}
	return NULL;
}

/* The first that isn't refused goes to the guest's first exit. */
static void *run_vcpu(void *arg)
{
	struct race *race = arg;
	int r;

	do {
		r = __vcpu_run(race->pvm.vcpu);
	} while (r && errno == EPERM);
	return (void *)(long)r;
}

static const void *find_record(const void *log, uint32_t size, uint32_t type)
{
	const struct kvm_measurement_record *record;
	uint32_t at;

	for (at = 0; at + sizeof(*record) <= size; at += sizeof(*record) + record->len) {
		record = log + at;
		if (record->type == type)
			return record + 1;
	}
	TEST_FAIL("No record of type %u", type);
	return NULL;
}

TEST(finalize)
{
	static void *(* const others[])(void *) = {
		set_regs, set_memslot, create_vcpus, run_vcpu,
	};
	const struct kvm_measurement_vm *measured_vm;
	const struct kvm_regs *measured_regs;
	struct kvm_x86_finalize_vm arg;
	pthread_t threads[ARRAY_SIZE(others)];
	struct kvm_regs regs;
	struct race race;
	void *log, *r;
	int round, i;

	log = malloc(LOG_SIZE);
	ASSERT_NE(NULL, log);
	for (round = 0; round < NR_ROUNDS; round++) {
		memset(&race, 0, sizeof(race));
		pvm_create(&race.pvm, KVM_X86_PROTECTED_VM, 2);
		pvm_load(&race.pvm);
		vcpu_regs_get(race.pvm.vcpu, &regs);
		regs.rip = (uint64_t)guest_race;
		regs.rdi = 0;
		race.regs = regs;
		vcpu_regs_set(race.pvm.vcpu, &regs);

		for (i = 0; i < ARRAY_SIZE(others); i++)
			ASSERT_EQ(0, pthread_create(&threads[i], NULL, others[i], &race));
		/* Not before they are at it */
		while (regs.rdi < 100 * round)
			vcpu_regs_get(race.pvm.vcpu, &regs);
		arg = (struct kvm_x86_finalize_vm) { .log = (uint64_t)log, .log_size = LOG_SIZE };
		ASSERT_EQ(0, pvm_finalize(&race.pvm, &arg));
		__atomic_store_n(&race.is_final, true, __ATOMIC_SEQ_CST);
		for (i = 0; i < ARRAY_SIZE(others); i++) {
			ASSERT_EQ(0, pthread_join(threads[i], &r));
			EXPECT_EQ(NULL, r);
		}

		EXPECT_EQ(0, race.nr_late);
		measured_vm = find_record(log, arg.log_size, KVM_MEASUREMENT_VM);
		EXPECT_EQ(2 + race.nr_created, measured_vm->nr_vcpus);
		measured_regs = find_record(log, arg.log_size, KVM_MEASUREMENT_REGS);
		ASSERT_TRUE(pvm_is_done(&race.pvm));
		EXPECT_EQ(measured_regs->rdi, *(uint64_t *)race.pvm.shared);
		pvm_free(&race.pvm);
	}
	free(log);
}

/*
 * An ioctl that doesn't come to an end, as its argument isn't there
 */
struct stuck {
	struct pvm *pvm;
	void *arg;
};

static void *get_stuck(void *arg)
{
	struct stuck *stuck = arg;

	return (void *)(long)ioctl(stuck->pvm->vcpu->fd, KVM_SET_REGS, stuck->arg);
}

/* Of the same memory, as others can't use the VM, but a process that can be killed */
static int finalize_in_child(void *arg)
{
	static struct kvm_x86_finalize_vm none;
	struct pvm *p = arg;

	syscall(__NR_ioctl, p->vm->fd, KVM_X86_FINALIZE_VM, &none);
	syscall(__NR_exit, 0);
	return 0;
}

static char process_state(pid_t pid)
{
	char name[32], state = '?';
	FILE *file;

	snprintf(name, sizeof(name), "/proc/%d/stat", pid);
	file = fopen(name, "r");
	if (file) {
		if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1)
			state = '?';
		fclose(file);
	}
	return state;
}

TEST(killed)
{
	static char stack[64 * 1024] __attribute__((aligned(16)));
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_copy copy = { .len = PAGE_SIZE };
	struct kvm_regs page[PAGE_SIZE / sizeof(struct kvm_regs) + 1];
	struct uffd_msg msg;
	struct stuck stuck;
	pthread_t thread;
	struct pvm p;
	int uffd, status, i;
	pid_t pid;
	void *r;

	uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (uffd < 0)
		SKIP(return, "No userfaultfd");

	pvm_create(&p, KVM_X86_PROTECTED_VM, 1);
	pvm_load(&p);
	vcpu_regs_get(p.vcpu, page);

	stuck.pvm = &p;
	stuck.arg = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, stuck.arg);
	reg.range.start = (uint64_t)stuck.arg;
	reg.range.len = PAGE_SIZE;
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_API, &api));
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_REGISTER, &reg));
	ASSERT_EQ(0, pthread_create(&thread, NULL, get_stuck, &stuck));
	ASSERT_EQ(sizeof(msg), read(uffd, &msg, sizeof(msg)));

	pid = clone(finalize_in_child, stack + sizeof(stack), CLONE_VM | SIGCHLD, &p);
	ASSERT_LT(0, pid);
	/* It waits for the ioctl to end, and it can be killed. */
	while (process_state(pid) != 'D')
		sched_yield();
	ASSERT_EQ(0, kill(pid, SIGKILL));
	for (i = 0; i < 100000 && process_state(pid) != 'Z'; i++)
		sched_yield();
	EXPECT_EQ('Z', process_state(pid));

	/* The ioctl ends, and the VM isn't final. */
	copy.dst = (uint64_t)stuck.arg;
	copy.src = (uint64_t)page;
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_COPY, &copy));
	ASSERT_EQ(0, pthread_join(thread, &r));
	EXPECT_EQ(NULL, r);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_EQ(0, pvm_finalize(&p, NULL));
	close(uffd);
	vcpu_run(p.vcpu);
	EXPECT_TRUE(pvm_is_done(&p));
	pvm_free(&p);
}

/* KVM looks at them when KVM_RUN begins and when it ends. */
static void *change_valid_regs(void *arg)
{
	struct race *race = arg;
	struct kvm_run *run = race->pvm.vcpu->run;

	while (!is_final(race)) {
		WRITE_ONCE(run->kvm_valid_regs, KVM_SYNC_X86_REGS);
		WRITE_ONCE(run->kvm_valid_regs, 0);
	}
	return NULL;
}

TEST(valid_regs)
{
	struct kvm_regs none = {};
	struct race race = {};
	pthread_t thread;
	int i;

	pvm_create(&race.pvm, KVM_X86_PROTECTED_VM, 1);
	pvm_launch(&race.pvm);
	ASSERT_EQ(0, pthread_create(&thread, NULL, change_valid_regs, &race));
	for (i = 0; i < 5000; i++)
		pvm_start(&race.pvm, guest_load, gva_of(0, SHARED), 0, 0, 0);
	__atomic_store_n(&race.is_final, true, __ATOMIC_SEQ_CST);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(0, memcmp(&none, &race.pvm.vcpu->run->s.regs.regs, sizeof(none)));
	pvm_free(&race.pvm);
}

/*
 * Pages that move while they are measured
 */
struct collapse {
	struct pvm pvm;
	/* Told to the thread once finalizing is about to begin */
	bool go;
	int delay;
};

static void *collapse_content(void *arg)
{
	struct collapse *collapse = arg;
	volatile int i;

	while (!__atomic_load_n(&collapse->go, __ATOMIC_SEQ_CST))
		;
	for (i = 0; i < collapse->delay; i++)
		;
	return (void *)(long)fallocate(collapse->pvm.content_fd, 0, 0, SZ_2M);
}

static bool is_zero(const char *page)
{
	return !page[0] && !memcmp(page, page + 1, PAGE_SIZE - 1);
}

static void measure_collapsing(struct __test_metadata *_metadata, int delay,
			       struct kvm_x86_finalize_vm *arg)
{
	struct collapse collapse = { .delay = delay };
	unsigned long before = huge_pages_in_files();
	struct userspace_mem_region *region;
	pthread_t thread;
	off_t page;
	void *r;

	pvm_create(&collapse.pvm, KVM_X86_PROTECTED_VM, 1);
	region = memslot2region(collapse.pvm.vm, 0);
	ASSERT_LE(SZ_2M, region->region.memory_size);
	/* One that is zero, so it makes no difference whether it's there */
	for (page = 0; page < SZ_2M; page += PAGE_SIZE) {
		if (is_zero(region->host_mem + page))
			break;
	}
	ASSERT_GT(SZ_2M, page);
	pvm_clear_pointers(&collapse.pvm);
	pvm_load(&collapse.pvm);
	ASSERT_EQ(0, fallocate(collapse.pvm.content_fd, PUNCH, page, PAGE_SIZE));
	ASSERT_EQ(before, huge_pages_in_files());

	if (delay >= 0)
		ASSERT_EQ(0, pthread_create(&thread, NULL, collapse_content, &collapse));
	__atomic_store_n(&collapse.go, true, __ATOMIC_SEQ_CST);
	*arg = (struct kvm_x86_finalize_vm) {};
	EXPECT_EQ(0, pvm_finalize(&collapse.pvm, arg));
	if (delay >= 0) {
		ASSERT_EQ(0, pthread_join(thread, &r));
		EXPECT_EQ(NULL, r);
		EXPECT_EQ(before + 1, huge_pages_in_files());
	}
	vcpu_run(collapse.pvm.vcpu);
	EXPECT_TRUE(pvm_is_done(&collapse.pvm));
	pvm_free(&collapse.pvm);
}

TEST(collapse)
{
	struct kvm_x86_finalize_vm expected, arg;
	char who[32];
	int round;

	huge_pages_compact();
	if (!huge_pages_choose("always", who, sizeof(who)))
		SKIP(return, "shmem has no huge pages");

	measure_collapsing(_metadata, -1, &expected);
	for (round = 0; round < NR_ROUNDS; round++) {
		measure_collapsing(_metadata, 20000 * round, &arg);
		EXPECT_EQ(0, memcmp(expected.measurement, arg.measurement,
				    sizeof(arg.measurement)));
	}
	huge_pages_restore(who);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(has_vm_type(KVM_X86_PROTECTED_VM));

	return test_harness_run(argc, argv);
}
