// SPDX-License-Identifier: GPL-2.0
/*
 * Everything at once that can happen to a VM with a guest-sealed memfd: vCPUs
 * access their memory while other threads convert pages, delete and re-create
 * the memslot, fork and exit, try to steal the memfd, and drop what the shared
 * half holds. Meanwhile other VMs come to an untimely end.
 */
#include <signal.h>
#include <sys/wait.h>

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

/* The end comes at any time from before the VM exists. */
static void test_killed(const struct race_options *options)
{
	unsigned int n, nr = 4 + options->iterations / 1000, alive = 0;
	struct race *race;
	int status;
	pid_t pid;

	for (n = 0; n < nr; n++) {
		fflush(stdout);
		pid = fork();
		if (!pid) {
			TEST_ASSERT(freopen("/dev/null", "w", stdout), "No /dev/null");
			race = race_create(KVM_X86_DEFAULT_VM, options->nr_vcpus, -1);
			race_run(race, threads, ARRAY_SIZE(threads));
			_exit(0);
		}
		usleep(1000 + 300000 / nr * n);
		alive += !waitpid(pid, &status, WNOHANG);
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
	}
	ksft_test_result(alive == nr, "killed %u times\n", nr);
}

int main(int argc, char *argv[])
{
	const struct race_options options = race_parse_options(argc, argv);

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_SEALED_MEMFD));
	ksft_print_header();
	ksft_set_plan(3);

	race_test("default VM", race_create, KVM_X86_DEFAULT_VM, &options, threads,
		  ARRAY_SIZE(threads));
	race_test("software-protected VM", race_create, KVM_X86_SW_PROTECTED_VM, &options,
		  threads, ARRAY_SIZE(threads));
	test_killed(&options);

	ksft_finished();
}
