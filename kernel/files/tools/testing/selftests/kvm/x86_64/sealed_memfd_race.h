/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A guest whose memory is converted, and more, while its vCPUs use it.
 *
 * Each page has two words. One is accessed with the page's lock held, which
 * whoever converts the page takes, too: its value is known exactly, in both
 * halves. The other one is accessed at any time and may land in either half,
 * but it must be a value that was written to this page, or zero.
 */
#ifndef SELFTEST_KVM_SEALED_MEMFD_RACE_H
#define SELFTEST_KVM_SEALED_MEMFD_RACE_H

#include <linux/kvm_para.h>
#include <linux/sizes.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "kselftest.h"
#include "kvm_util.h"
#include "processor.h"
#include "sealed_memfd_util.h"
#include "test_util.h"

#define RACE_GPA	SZ_4G
#define RACE_SLOT	10
/* More than are converted in one go. */
#define RACE_NR_PAGES	600
#define RACE_SIZE	(RACE_NR_PAGES * PAGE_SIZE)
#define RACE_MAX_VCPUS	8

/* What the loose word is while there is no memslot. */
#define MMIO_VALUE	0x3310333103331033ul
#define LOOSE_TAG	0x4ac3ul

struct race_page {
	uint32_t lock;
	uint32_t private;
	/* What the strict word is, by half. */
	uint64_t shared_value;
	uint64_t private_value;
};

/* In guest memory, used by the guest and, through race->shared, by the host. */
static struct race_control {
	uint32_t iterations;
	struct race_page pages[RACE_NR_PAGES];
} race_control;

static inline bool try_lock_page(struct race_page *page)
{
	return !__atomic_exchange_n(&page->lock, 1, __ATOMIC_ACQUIRE);
}

static inline void lock_page(struct race_page *page)
{
	while (!try_lock_page(page))
		usleep(10);
}

static inline void unlock_page(struct race_page *page)
{
	__atomic_store_n(&page->lock, 0, __ATOMIC_RELEASE);
}

static inline uint64_t *strict_word(unsigned int i)
{
	return (void *)(RACE_GPA + i * PAGE_SIZE);
}

static inline uint64_t *loose_word(unsigned int i)
{
	return strict_word(i) + 1;
}

static inline void guest_access_strict(unsigned int i, uint64_t value)
{
	struct race_page *page = &race_control.pages[i];
	uint64_t *expected, seen;

	expected = page->private ? &page->private_value : &page->shared_value;
	seen = READ_ONCE(*strict_word(i));
	__GUEST_ASSERT(seen == *expected, "page %u is %s and should have %lx, not %lx",
		       i, page->private ? "private" : "shared", *expected, seen);
	WRITE_ONCE(*strict_word(i), value);
	*expected = value;
}

static inline void guest_access_loose(unsigned int i, uint64_t value)
{
	uint64_t seen = READ_ONCE(*loose_word(i));

	__GUEST_ASSERT(!seen || seen == MMIO_VALUE ||
		       (seen >> 48 == LOOSE_TAG && ((seen >> 32) & 0xffff) == i),
		       "page %u has %lx", i, seen);
	if (value & 1)
		WRITE_ONCE(*loose_word(i), LOOSE_TAG << 48 | (uint64_t)i << 32 | value);
}

static inline void guest_convert(unsigned int i)
{
	struct race_page *page = &race_control.pages[i];
	bool private = !page->private;

	kvm_hypercall_map_gpa_range((uint64_t)strict_word(i), PAGE_SIZE,
				    private ? KVM_MAP_GPA_RANGE_ENCRYPTED : 0);
	page->private = private;
	page->private_value = 0;
}

static void race_guest_code(uint32_t seed)
{
	struct guest_random_state rng = new_guest_random_state(seed);
	uint32_t n, i;

	for (n = 1; n <= race_control.iterations; n++) {
		i = guest_random_u32(&rng) % RACE_NR_PAGES;
		guest_access_loose(i, n);

		if (!try_lock_page(&race_control.pages[i]))
			continue;
		guest_access_strict(i, (uint64_t)seed << 32 | n);
		if (!(guest_random_u32(&rng) % 16)) {
			guest_convert(i);
			guest_access_strict(i, (uint64_t)seed << 32 | n);
		}
		unlock_page(&race_control.pages[i]);
	}
	GUEST_DONE();
}

struct race {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[RACE_MAX_VCPUS];
	unsigned int nr_vcpus;
	/* Takes a struct race_vcpu. */
	void *(*run_vcpu)(void *data);
	struct race_control *control;
	char *shared;
	int fd;
	bool stop;
};

static inline int race_set_slot(struct race *race, struct kvm_vm *vm, bool present)
{
	return __vm_set_user_memory_region2(vm, RACE_SLOT, present ? KVM_MEM_GUEST_MEMFD : 0,
					    RACE_GPA, present ? RACE_SIZE : 0, race->shared,
					    race->fd, 0);
}

/* Gives a VM without vCPUs what it takes: memory, and vCPUs. */
static inline struct race *race_setup(struct kvm_vm *vm, unsigned int nr_vcpus,
				      uint32_t iterations, void (*guest_code)(uint32_t),
				      void *(*run_vcpu)(void *))
{
	struct race *race = calloc(1, sizeof(*race));
	unsigned int i;

	TEST_ASSERT(race && nr_vcpus <= RACE_MAX_VCPUS, "Too much");
	race->vm = vm;
	race->nr_vcpus = nr_vcpus;
	race->run_vcpu = run_vcpu;
	race->fd = new_sealed_memfd(RACE_SIZE);
	race->shared = mmap(NULL, RACE_SIZE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(race->shared != MAP_FAILED, __KVM_SYSCALL_ERROR("mmap()", -1));

	TEST_ASSERT(!race_set_slot(race, race->vm, true),
		    __KVM_SYSCALL_ERROR("KVM_SET_USER_MEMORY_REGION2", -1));
	virt_map(race->vm, RACE_GPA, RACE_GPA, RACE_NR_PAGES);

	race->control = addr_gva2hva(race->vm, (vm_vaddr_t)&race_control);
	race->control->iterations = iterations;
	for (i = 0; i < nr_vcpus; i++) {
		race->vcpus[i] = vm_vcpu_add(race->vm, i, guest_code);
		vcpu_args_set(race->vcpus[i], 1, i + 1);
	}
	return race;
}

static inline void race_free(struct race *race)
{
	kvm_vm_free(race->vm);
	munmap(race->shared, RACE_SIZE);
	close(race->fd);
	free(race);
}

static inline void race_fallocate(struct race *race, bool private, unsigned int start,
				  unsigned int nr)
{
	int ret;

	do {
		ret = fallocate(race->fd, private ? 0 : PUNCH, start * PAGE_SIZE,
				nr * PAGE_SIZE);
	} while (ret && errno == EINTR);
	TEST_ASSERT(!ret, __KVM_SYSCALL_ERROR("fallocate()", ret));
}

static inline void race_lock(struct race *race, unsigned int start, unsigned int nr)
{
	unsigned int i;

	for (i = start; i < start + nr; i++)
		lock_page(&race->control->pages[i]);
}

static inline void race_unlock(struct race *race, unsigned int start, unsigned int nr)
{
	unsigned int i;

	for (i = start; i < start + nr; i++)
		unlock_page(&race->control->pages[i]);
}

/* Converts pages as userspace does. */
static inline void race_convert(struct race *race, bool private, unsigned int start,
				unsigned int nr)
{
	struct race_page *page;
	unsigned int i;

	race_lock(race, start, nr);
	race_fallocate(race, private, start, nr);
	for (i = start; i < start + nr; i++) {
		page = &race->control->pages[i];
		if (private && !page->private)
			page->private_value = 0;
		page->private = private;
		TEST_ASSERT(*(uint64_t *)(race->shared + i * PAGE_SIZE) == page->shared_value,
			    "Shared half of page %u changed", i);
	}
	race_unlock(race, start, nr);
}

static inline void *race_converter(void *data)
{
	struct race *race = data;
	unsigned int start, nr, seed = (uintptr_t)&start;

	while (!READ_ONCE(race->stop)) {
		start = rand_r(&seed) % RACE_NR_PAGES;
		nr = rand_r(&seed) % 16 ? 1 + rand_r(&seed) % 8 : RACE_NR_PAGES;
		race_convert(race, rand_r(&seed) & 1, start, min(nr, RACE_NR_PAGES - start));
		/* Let the vCPUs get on. */
		usleep(1000);
	}
	return NULL;
}

static inline void race_handle_mmio(struct kvm_run *run)
{
	const uint64_t value = MMIO_VALUE;

	TEST_ASSERT(run->mmio.len == sizeof(value) &&
		    run->mmio.phys_addr % PAGE_SIZE == sizeof(value),
		    "Unexpected MMIO: GPA 0x%llx, len %u", run->mmio.phys_addr, run->mmio.len);
	if (!run->mmio.is_write)
		memcpy(run->mmio.data, &value, sizeof(value));
}

static inline void race_handle_hypercall(struct race *race, struct kvm_run *run)
{
	TEST_ASSERT_EQ(run->hypercall.nr, KVM_HC_MAP_GPA_RANGE);
	race_fallocate(race, run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED,
		       (run->hypercall.args[0] - RACE_GPA) / PAGE_SIZE, run->hypercall.args[1]);
	run->hypercall.ret = 0;
}

struct race_vcpu {
	struct race *race;
	struct kvm_vcpu *vcpu;
	pthread_t thread;
};

/* vcpu_run() fails on any exit for a memory fault. */
static inline void *race_run_vcpu(void *data)
{
	struct race_vcpu *race_vcpu = data;
	struct kvm_vcpu *vcpu = race_vcpu->vcpu;
	struct ucall uc;

	for (;;) {
		vcpu_run(vcpu);
		switch (vcpu->run->exit_reason) {
		case KVM_EXIT_HYPERCALL:
			race_handle_hypercall(race_vcpu->race, vcpu->run);
			continue;
		case KVM_EXIT_MMIO:
			race_handle_mmio(vcpu->run);
			continue;
		}
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
		switch (get_ucall(vcpu, &uc)) {
		case UCALL_DONE:
			return NULL;
		case UCALL_ABORT:
			REPORT_GUEST_ASSERT(uc);
		default:
			TEST_FAIL("Unknown ucall %lu", uc.cmd);
		}
	}
}

/* Converts explicitly. */
static inline struct race *race_create(uint32_t type, unsigned int nr_vcpus,
				       uint32_t iterations)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = type };
	struct kvm_vm *vm = __vm_create(shape, nr_vcpus, 64);

	vm_enable_cap(vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE));
	return race_setup(vm, nr_vcpus, iterations, race_guest_code, race_run_vcpu);
}

/* Runs the vCPUs to their end, and threads with them. */
static inline void race_run(struct race *race, void *(*const *threads)(void *),
			    unsigned int nr_threads)
{
	struct race_vcpu vcpus[RACE_MAX_VCPUS];
	pthread_t ids[8];
	unsigned int i;

	TEST_ASSERT(nr_threads <= ARRAY_SIZE(ids), "Too many threads");
	for (i = 0; i < nr_threads; i++)
		pthread_create(&ids[i], NULL, threads[i], race);
	for (i = 0; i < race->nr_vcpus; i++) {
		vcpus[i].race = race;
		vcpus[i].vcpu = race->vcpus[i];
		pthread_create(&vcpus[i].thread, NULL, race->run_vcpu, &vcpus[i]);
	}
	for (i = 0; i < race->nr_vcpus; i++)
		pthread_join(vcpus[i].thread, NULL);
	WRITE_ONCE(race->stop, true);
	for (i = 0; i < nr_threads; i++)
		pthread_join(ids[i], NULL);
}

struct race_options {
	uint32_t iterations;
	unsigned int nr_vcpus;
};

static inline struct race_options race_parse_options(int argc, char *argv[])
{
	struct race_options options = { .iterations = 2000, .nr_vcpus = 3 };
	int opt;

	while ((opt = getopt(argc, argv, "hi:v:")) != -1) {
		switch (opt) {
		case 'i':
			options.iterations = atoi_positive("iterations", optarg);
			break;
		case 'v':
			options.nr_vcpus = atoi_positive("vcpus", optarg);
			break;
		default:
			printf("Usage: %s [-h] [-i iterations] [-v vcpus]\n", argv[0]);
			exit(0);
		}
	}
	return options;
}

/* One test case: a VM of @type from beginning to end. */
static inline void race_test(const char *name,
			     struct race *(*create)(uint32_t, unsigned int, uint32_t),
			     uint32_t type, const struct race_options *options,
			     void *(*const *threads)(void *), unsigned int nr_threads)
{
	struct race *race;

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(type))) {
		ksft_test_result_skip("%s: no such VM type\n", name);
		return;
	}

	race = create(type, options->nr_vcpus, options->iterations);
	race_run(race, threads, nr_threads);
	race_free(race);
	ksft_test_result_pass("%s\n", name);
}

#endif /* SELFTEST_KVM_SEALED_MEMFD_RACE_H */
