// SPDX-License-Identifier: GPL-2.0
/*
 * Everything at once that can happen to a VM with a guest-sealed memfd: vCPUs
 * access their memory while other threads convert pages, delete and re-create
 * the memslot, fork and exit, try to steal the memfd, and drop what the shared
 * half holds. Meanwhile other VMs come to an untimely end.
 */
#include <signal.h>
#include <sys/wait.h>

#include "kselftest.h"

#include "sealed_memfd_race.h"

/* The guest's strict accesses must wait while there is no memory. */
static void *slot_changer(void *data)
{
	struct race *race = data;

	while (!READ_ONCE(race->stop)) {
		race_lock(race, 0, RACE_NR_PAGES);
		TEST_ASSERT(!race_set_slot(race, race->vm, false), "Can't delete the memslot");
		usleep(100);
		TEST_ASSERT(!race_set_slot(race, race->vm, true), "Can't create the memslot");
		race_unlock(race, 0, RACE_NR_PAGES);
		usleep(5000);
	}
	return NULL;
}

static void *forker(void *data)
{
	struct race *race = data;
	int status;
	pid_t pid;

	while (!READ_ONCE(race->stop)) {
		pid = fork();
		if (!pid) {
			char c;

			/* Neither content nor the VM is within a child's reach. */
			_exit(pread(race->fd, &c, 1, 0) != -1 ||
			      race_set_slot(race, race->vm, false) != -1);
		}
		TEST_ASSERT(waitpid(pid, &status, 0) == pid && !status,
			    "Child's status is %x", status);
		usleep(10000);
	}
	return NULL;
}

static void *thief(void *data)
{
	struct race *race = data;

	while (!READ_ONCE(race->stop)) {
		struct kvm_vm *vm = vm_create_barebones();

		/*
		 * With all pages locked the memslot is there, or all of what's
		 * left there is the first VM's.
		 */
		race_lock(race, 0, RACE_NR_PAGES);
		TEST_ASSERT(race_set_slot(race, vm, true) == -1 && errno == EBUSY,
			    "A second VM could bind the memfd");
		race_unlock(race, 0, RACE_NR_PAGES);
		kvm_vm_free(vm);
		usleep(20000);
	}
	return NULL;
}

/* As a VMM does: what is private needs no memory in the shared half. */
static void *discarder(void *data)
{
	struct race *race = data;
	unsigned int i, seed = 1;

	while (!READ_ONCE(race->stop)) {
		struct race_page *page;

		i = rand_r(&seed) % RACE_NR_PAGES;
		page = &race->control->pages[i];
		lock_page(page);
		if (page->private) {
			TEST_ASSERT(!madvise(race->shared + i * PAGE_SIZE, PAGE_SIZE,
					     MADV_DONTNEED), "madvise() failed");
			page->shared_value = 0;
		}
		unlock_page(page);
		usleep(1000);
	}
	return NULL;
}

static void *(*const threads[])(void *) = {
	race_converter, race_converter, slot_changer, forker, thief, discarder,
};

static void run_stress(uint32_t type, unsigned int nr_vcpus, uint32_t iterations)
{
	struct race *race = race_create(type, nr_vcpus, iterations);

	race_run(race, threads, ARRAY_SIZE(threads));
	race_free(race);
}

static void test_stress(const char *name, uint32_t type, unsigned int nr_vcpus,
			uint32_t iterations)
{
	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(type))) {
		ksft_test_result_skip("%s: no such VM type\n", name);
		return;
	}
	run_stress(type, nr_vcpus, iterations);
	ksft_test_result_pass("%s\n", name);
}

/* The end comes at any time from before the VM exists. */
static void test_killed(unsigned int nr_vcpus, uint32_t iterations)
{
	unsigned int n, nr = 4 + iterations / 1000, alive = 0;
	int status;
	pid_t pid;

	for (n = 0; n < nr; n++) {
		fflush(stdout);
		pid = fork();
		if (!pid) {
			TEST_ASSERT(freopen("/dev/null", "w", stdout), "No /dev/null");
			run_stress(KVM_X86_DEFAULT_VM, nr_vcpus, -1);
			_exit(0);
		}
		usleep(1000 + 300000 / nr * n);
		alive += !waitpid(pid, &status, WNOHANG);
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
	}
	ksft_test_result(alive == nr, "killed %u times\n", nr);
}

static void usage(const char *name)
{
	printf("Usage: %s [-h] [-i iterations] [-v vcpus]\n", name);
	exit(0);
}

int main(int argc, char *argv[])
{
	uint32_t iterations = 2000;
	unsigned int nr_vcpus = 3;
	int opt;

	while ((opt = getopt(argc, argv, "hi:v:")) != -1) {
		switch (opt) {
		case 'i':
			iterations = atoi_positive("iterations", optarg);
			break;
		case 'v':
			nr_vcpus = atoi_positive("vcpus", optarg);
			break;
		default:
			usage(argv[0]);
		}
	}

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_SEALED_MEMFD));
	ksft_print_header();
	ksft_set_plan(3);

	test_stress("default VM", KVM_X86_DEFAULT_VM, nr_vcpus, iterations);
	test_stress("software-protected VM", KVM_X86_SW_PROTECTED_VM, nr_vcpus, iterations);
	test_killed(nr_vcpus, iterations);

	ksft_finished();
}
