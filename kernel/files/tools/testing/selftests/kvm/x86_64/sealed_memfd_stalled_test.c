// SPDX-License-Identifier: GPL-2.0-only
/*
 * A conversion stands still half-way, as it does when it has to wait for memory:
 * here because something more important has its CPU. Who needs the pages waits
 * and can be told to stop waiting, and nobody else waits.
 */
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "sealed_memfd_hog.h"
#include "sealed_memfd_huge.h"
#include "sealed_memfd_private.h"
#include "sealed_memfd_shared_bit_fixture.h"
#include "svm_util.h"

/* Pages that are converted in one go */
#define CHUNK		512ul

/* Another file, and its memslot after the first one */
#define OTHER_SLOT	(SLOT + 5)
#define STALLED_GPA	(GPA + 2 * SIZE)

struct stall {
	/* What is converted again and again, a number of chunks, and how */
	int fd;
	unsigned long start;
	unsigned long nr;
	bool punch;
	/* Where it stands, a page within a chunk that is next to be converted */
	unsigned long pos;
	pthread_t converter;
	bool stop;
	struct hog hog;
};

static void *converter_thread(void *data)
{
	struct stall *stall = data;
	off_t start = stall->start * PAGE_SIZE, len = stall->nr * PAGE_SIZE;

	pin(0, last_cpu);
	do {
		TEST_ASSERT(!fallocate(stall->fd, stall->punch ? 0 : PUNCH, start, len) &&
			    !fallocate(stall->fd, stall->punch ? PUNCH : 0, start, len),
			    __KVM_SYSCALL_ERROR("fallocate()", -1));
	} while (!READ_ONCE(stall->stop));
	return NULL;
}

static unsigned long stall_pos(const struct stall *stall)
{
	return lseek(stall->fd, stall->start * PAGE_SIZE,
		     stall->punch ? SEEK_DATA : SEEK_HOLE) / PAGE_SIZE;
}

/*
 * Returns with the conversion at a standstill, with a good part of the chunk to be
 * converted.
 */
static void stall_begin(struct stall *stall)
{
	pin(0, first_cpu);
	hog_create(&stall->hog);
	TEST_ASSERT(!pthread_create(&stall->converter, NULL, converter_thread, stall),
		    "No thread");
	for (;;) {
		hog_begin(&stall->hog);
		stall->pos = stall_pos(stall);
		if (stall->pos % CHUNK && stall->pos % CHUNK < CHUNK / 2)
			return;
		hog_end(&stall->hog);
		usleep(1000);
	}
}

/* The last page of the chunk. */
static unsigned long stall_page(const struct stall *stall)
{
	return round_up(stall->pos, CHUNK) - 1;
}

static bool is_stalled(const struct stall *stall)
{
	return stall_pos(stall) == stall->pos;
}

/* Has it stood still all the time? It ends with the pages converted. */
static bool stall_end(struct stall *stall)
{
	bool stalled = is_stalled(stall);

	WRITE_ONCE(stall->stop, true);
	hog_end(&stall->hog);
	hog_finish(&stall->hog);
	pthread_join(stall->converter, NULL);
	WRITE_ONCE(stall->stop, false);
	return stalled;
}

/*
 * A vCPU that is told to run until it exits. It has a thread of its own, which has
 * run it before: a new one has to wait for RCU, whose threads may stand still, too.
 */
struct runner {
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	sem_t go;
	bool stop;
	int tid;
	int ret;
	int err;
	bool done;
};

static void *runner_thread(void *data)
{
	struct runner *runner = data;

	WRITE_ONCE(runner->tid, gettid());
	vcpu_run_complete_io(runner->vcpu);
	for (;;) {
		WRITE_ONCE(runner->done, true);
		while (sem_wait(&runner->go))
			;
		if (READ_ONCE(runner->stop))
			return NULL;
		runner->ret = __vcpu_run(runner->vcpu);
		runner->err = errno;
	}
}

static void runner_wait(const struct runner *runner)
{
	while (!READ_ONCE(runner->done))
		usleep(1000);
}

static void runner_create(struct runner *runner, struct kvm_vcpu *vcpu)
{
	pin(0, first_cpu);
	*runner = (struct runner) { .vcpu = vcpu };
	TEST_ASSERT(!sem_init(&runner->go, 0, 0) &&
		    !pthread_create(&runner->thread, NULL, runner_thread, runner), "No thread");
	runner_wait(runner);
}

static void runner_start(struct runner *runner)
{
	WRITE_ONCE(runner->done, false);
	sem_post(&runner->go);
}

static void runner_finish(struct runner *runner)
{
	runner_wait(runner);
	WRITE_ONCE(runner->stop, true);
	sem_post(&runner->go);
	pthread_join(runner->thread, NULL);
	sem_destroy(&runner->go);
}

static bool is_asleep(int tid)
{
	char path[64], stat[256] = "", *state;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", tid);
	file = fopen(path, "r");
	if (!file)
		return false;
	if (!fgets(stat, sizeof(stat), file))
		stat[0] = 0;
	fclose(file);
	state = strrchr(stat, ')');
	return state && strchr("SD", state[2]);
}

/* Does it come to wait for something, rather than to an end? */
static bool comes_to_sleep(int tid, const bool *done, const struct stall *stall)
{
	int n = 0;

	while (n < 5 && !READ_ONCE(*done) && is_stalled(stall)) {
		n = is_asleep(tid) ? n + 1 : 0;
		usleep(1000);
	}
	return n == 5;
}

static bool runner_sleeps(const struct runner *runner, const struct stall *stall)
{
	return comes_to_sleep(READ_ONCE(runner->tid), &runner->done, stall);
}

static bool runner_ends(const struct runner *runner, const struct stall *stall)
{
	while (!READ_ONCE(runner->done) && is_stalled(stall))
		usleep(1000);
	return READ_ONCE(runner->done);
}

static void handle_signal(int sig)
{
}

static bool runner_ends_by_signal(const struct runner *runner, const struct stall *stall)
{
	const struct sigaction action = { .sa_handler = handle_signal };

	TEST_ASSERT(!sigaction(SIGUSR1, &action, NULL), "Can't handle signals");
	while (!READ_ONCE(runner->done) && is_stalled(stall)) {
		pthread_kill(runner->thread, SIGUSR1);
		usleep(1000);
	}
	return READ_ONCE(runner->done);
}

static void prepare_guest(struct kvm_vcpu *vcpu, guest_fn fn, uint64_t arg1, uint64_t arg2)
{
	struct kvm_regs regs;

	vcpu_regs_get(vcpu, &regs);
	regs.rdi = (uint64_t)fn;
	regs.rsi = arg1;
	regs.rdx = arg2;
	vcpu_regs_set(vcpu, &regs);
}

/* Who touches a page of the chunk waits, for no longer than it likes. */
static void test_fault(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self,
		       bool punch)
{
	struct stall stall = { .fd = self->fd, .nr = NR_PAGES, .punch = punch };
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	struct runner runner;
	unsigned long page;

	make_private(self);
	runner_create(&runner, vcpu);
	stall_begin(&stall);
	page = stall_page(&stall);
	prepare_guest(vcpu, guest_load, gpa_of(page), 0);
	runner_start(&runner);
	EXPECT_TRUE(runner_sleeps(&runner, &stall));
	EXPECT_TRUE(runner_ends_by_signal(&runner, &stall));
	EXPECT_TRUE(stall_end(&stall));
	runner_finish(&runner);
	EXPECT_EQ(-1, runner.ret);
	EXPECT_EQ(EINTR, runner.err);

	vcpu_run(vcpu);
	EXPECT_EQ(punch ? SHARED_VALUE(page) : 0, finish_guest(vcpu));
}

TEST_F(sealed, fault_to_private)
{
	if (!find_cpus())
		SKIP(return, "one CPU only");
	test_fault(_metadata, self, false);
}

TEST_F(sealed, fault_to_shared)
{
	if (!find_cpus())
		SKIP(return, "one CPU only");
	test_fault(_metadata, self, true);
}

static void *punching_thread(void *data)
{
	struct stall *stall = data;

	pin(0, last_cpu);
	TEST_ASSERT(!fallocate(stall->fd, PUNCH, 0, CHUNK * PAGE_SIZE),
		    __KVM_SYSCALL_ERROR("fallocate()", -1));
	return NULL;
}

static void map_chunk(FIXTURE_DATA(sealed) *self)
{
	struct kvm_pre_fault_memory range = { .gpa = GPA, .size = CHUNK * PAGE_SIZE };

	TEST_ASSERT(!to_private(self, 0, CHUNK), "Can't convert to private");
	while (range.size)
		vcpu_ioctl(self->tvm.vcpu, KVM_PRE_FAULT_MEMORY, &range);
}

/* Returns with a conversion at a standstill that has unmapped some pages, but not all. */
static void stall_unmapping(FIXTURE_DATA(sealed) *self, struct stall *stall)
{
	unsigned long before, mapped;
	unsigned int seed = 0;

	pin(0, first_cpu);
	hog_create(&stall->hog);
	for (;;) {
		map_chunk(self);
		before = vm_get_stat(self->vm, "pages_4k");
		TEST_ASSERT(!pthread_create(&stall->converter, NULL, punching_thread, stall),
			    "No thread");
		usleep(rand_r(&seed) % 1000);
		hog_begin(&stall->hog);
		stall->pos = stall_pos(stall);
		mapped = vm_get_stat(self->vm, "pages_4k");
		if (mapped < before && mapped > before - CHUNK)
			return;
		hog_end(&stall->hog);
		pthread_join(stall->converter, NULL);
	}
}

/* It's not by trying again and again that it waits for this. */
TEST_F(sealed, fault_on_unmapped)
{
	struct stall stall = { .fd = self->fd, .punch = true };
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	struct runner runner;

	if (!find_cpus())
		SKIP(return, "one CPU only");

	make_private(self);
	runner_create(&runner, vcpu);
	stall_unmapping(self, &stall);
	prepare_guest(vcpu, guest_load, gpa_of(0), 0);
	runner_start(&runner);
	EXPECT_TRUE(runner_sleeps(&runner, &stall));
	EXPECT_TRUE(stall_end(&stall));
	runner_finish(&runner);
	EXPECT_EQ(0, runner.ret);
	EXPECT_EQ(SHARED_VALUE(0), finish_guest(vcpu));
}

/* What KVM writes meanwhile it writes to what the page will be. */
static void test_kvm_write(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self,
			   bool punch)
{
	const uint64_t data = 0x1122334455667788ul;
	struct stall stall = { .fd = self->fd, .nr = NR_PAGES, .punch = punch };
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	struct runner runner;
	unsigned long page;

	make_private(self);
	/* Have mapped all but the page that it takes. */
	start_guest(vcpu, guest_movsq, gpa_of(0), MMIO_GPA, 0);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	memcpy(vcpu->run->mmio.data, &data, 8);
	vcpu_run(vcpu);
	finish_guest(vcpu);

	runner_create(&runner, vcpu);
	stall_begin(&stall);
	page = stall_page(&stall);
	prepare_guest(vcpu, guest_movsq, gpa_of(page), MMIO_GPA);
	runner_start(&runner);
	runner_wait(&runner);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	memcpy(vcpu->run->mmio.data, &data, 8);
	runner_start(&runner);
	EXPECT_TRUE(runner_sleeps(&runner, &stall));
	EXPECT_TRUE(stall_end(&stall));
	runner_finish(&runner);
	EXPECT_EQ(0, runner.ret);
	finish_guest(vcpu);
	EXPECT_EQ(data, load(vcpu, gpa_of(page)));
	EXPECT_EQ(punch ? data : SHARED_VALUE(page), *shared_page(self, page));
}

TEST_F(sealed, write_to_private)
{
	if (!find_cpus())
		SKIP(return, "one CPU only");
	test_kvm_write(_metadata, self, false);
}

TEST_F(sealed, write_to_shared)
{
	if (!find_cpus())
		SKIP(return, "one CPU only");
	test_kvm_write(_metadata, self, true);
}

/* Pages of another file come and go, and are used by the guest and by KVM. */
TEST_F(sealed, other_file)
{
	struct stall stall = { .nr = NR_PAGES };
	struct pvclock_vcpu_time_info clock;
	struct kvm_vcpu *vcpu;
	struct runner runner;
	char *shared;
	int i;

	if (!find_cpus())
		SKIP(return, "one CPU only");

	shared = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, shared);
	stall.fd = new_sealed_memfd(SIZE);
	ASSERT_EQ(0, set_slot(self->vm, OTHER_SLOT, KVM_MEM_GUEST_MEMFD, STALLED_GPA, SIZE,
			      shared, stall.fd, 0));
	vcpu = setup_private(self);
	enable_msr(_metadata, vcpu, MSR_KVM_SYSTEM_TIME_NEW, gpa_of(PAGE) + 64 + 1);

	for (i = 0; i < 4; i++) {
		runner_create(&runner, vcpu);
		stall_begin(&stall);
		if (i & 1) {
			EXPECT_EQ(0, to_private(self, PAGE, 2));
		} else {
			memset(shared_page(self, PAGE), 0, PAGE_SIZE);
			EXPECT_EQ(0, to_shared(self, PAGE, 2));
		}

		/* It takes the clock to enter the guest. */
		prepare_guest(vcpu, guest_load, gpa_of(PAGE + 1), 0);
		runner_start(&runner);
		EXPECT_TRUE(runner_ends(&runner, &stall));
		EXPECT_TRUE(stall_end(&stall));
		runner_finish(&runner);
		EXPECT_EQ(0, runner.ret);
		EXPECT_EQ(i & 1 ? 0 : SHARED_VALUE(PAGE + 1), finish_guest(vcpu));

		touch_clock(&self->tvm);
		get_private(self, gpa_of(PAGE) + 64, &clock, sizeof(clock));
		EXPECT_TRUE(clock_is_valid(&clock));
	}

	EXPECT_EQ(0, delete_slot(self->vm, OTHER_SLOT));
	munmap(shared, SIZE);
	close(stall.fd);
}

/* The first pages, which a nested guest uses, and ordinary memory, little of it */
#define NR_L2_PAGES	16ul
#define L2_SLOT		(SLOT + 6)
#define L2_GPA		(GPA + (256ul << 20))
#define L2_SIZE		(256ul << 20)
#define L2_STEP		(2ul << 20)
#define NPT_FLAGS	(PTE_PRESENT_MASK | PTE_WRITABLE_MASK | PTE_USER_MASK)

static void l2_touch_pages(void)
{
	unsigned long i;

	for (i = 0; i < NR_L2_PAGES; i++)
		WRITE_ONCE(*(uint64_t *)gpa_of(i), i);
	for (i = 0; i < L2_SIZE; i += L2_STEP)
		WRITE_ONCE(*(uint64_t *)(L2_GPA + i), i);
	vmmcall();
}

static uint64_t guest_run_l2(uint64_t svm_gva, uint64_t npt, uint64_t unused)
{
	struct svm_test_data *svm = (void *)svm_gva;
	static uint64_t stack[64];

	generic_svm_setup(svm, l2_touch_pages, &stack[62]);
	svm->vmcb->control.nested_ctl = BIT(0);
	svm->vmcb->control.nested_cr3 = npt;
	run_guest(svm->vmcb, svm->vmcb_gpa);
	return svm->vmcb->control.exit_code;
}

/* All that L2 needs is where L1 has it. */
static vm_paddr_t create_npt(struct kvm_vm *vm)
{
	uint64_t *table[4];
	vm_vaddr_t gva;
	uint64_t i;

	gva = vm_vaddr_alloc(vm, sizeof(table) / sizeof(*table) * PAGE_SIZE, 0x10000);
	for (i = 0; i < 4; i++)
		table[i] = addr_gva2hva(vm, gva + i * PAGE_SIZE);
	table[0][0] = addr_gva2gpa(vm, gva + PAGE_SIZE) | NPT_FLAGS;
	table[1][0] = addr_gva2gpa(vm, gva + 2 * PAGE_SIZE) | NPT_FLAGS;
	table[1][GPA >> 30] = addr_gva2gpa(vm, gva + 3 * PAGE_SIZE) | NPT_FLAGS;
	for (i = 0; i < 512; i++) {
		table[2][i] = i << 21 | NPT_FLAGS | PTE_LARGE_MASK;
		table[3][i] = (GPA + (i << 21)) | NPT_FLAGS | PTE_LARGE_MASK;
	}
	return addr_gva2gpa(vm, gva);
}

static bool kernel_has_warned(void)
{
	FILE *file = fopen("/proc/sys/kernel/tainted", "r");
	unsigned long tainted = 0;

	TEST_ASSERT(file && fscanf(file, "%lu", &tainted) == 1, "Is the kernel tainted?");
	fclose(file);
	return tainted & BIT(9);
}

/* Does something once when it's told to. */
struct worker {
	void (*work)(struct kvm_vm *vm);
	struct kvm_vm *vm;
	pthread_t thread;
	sem_t go;
	int tid;
	bool done;
};

static void *worker_thread(void *data)
{
	struct worker *worker = data;

	WRITE_ONCE(worker->tid, gettid());
	while (sem_wait(&worker->go))
		;
	worker->work(worker->vm);
	WRITE_ONCE(worker->done, true);
	return NULL;
}

static void worker_create(struct worker *worker, void (*work)(struct kvm_vm *vm),
			  struct kvm_vm *vm)
{
	pin(0, first_cpu);
	*worker = (struct worker) { .work = work, .vm = vm };
	TEST_ASSERT(!sem_init(&worker->go, 0, 0) &&
		    !pthread_create(&worker->thread, NULL, worker_thread, worker), "No thread");
	while (!is_asleep(READ_ONCE(worker->tid)))
		usleep(1000);
}

static bool worker_starts_and_sleeps(struct worker *worker, const struct stall *stall)
{
	sem_post(&worker->go);
	return comes_to_sleep(worker->tid, &worker->done, stall);
}

static void worker_finish(struct worker *worker)
{
	pthread_join(worker->thread, NULL);
	sem_destroy(&worker->go);
}

/*
 * Have a nested guest touch private pages, and so much that KVM has a good number of
 * page tables of its own for it.
 */
static void run_l2(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self)
{
	struct kvm_vcpu *vcpu = self->tvm.vcpu;
	struct kvm_regs regs;
	vm_vaddr_t svm_gva;
	vm_paddr_t npt;
	char *mem;

	mem = mmap(NULL, L2_SIZE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, mem);
	/* That leaves no huge pages, which would save page tables. */
	madvise(mem, L2_SIZE, MADV_NOHUGEPAGE);
	ASSERT_EQ(0, set_slot(self->vm, L2_SLOT, 0, L2_GPA, L2_SIZE, mem, -1, 0));
	virt_map_level(self->vm, L2_GPA, L2_GPA, L2_SIZE, PG_LEVEL_2M);

	pin(0, first_cpu);
	vcpu_alloc_svm(self->vm, &svm_gva);
	npt = create_npt(self->vm);
	vcpu_regs_get(vcpu, &regs);
	regs.rip = (uint64_t)private_guest_code;
	vcpu_regs_set(vcpu, &regs);
	vcpu_run(vcpu);
	finish_guest(vcpu);
	ASSERT_EQ(0, to_private(self, 0, NR_L2_PAGES));
	ASSERT_EQ(SVM_EXIT_VMMCALL, call_guest(vcpu, guest_run_l2, svm_gva, npt, 0));
}

static bool has_nested_npt(void)
{
	return kvm_cpu_has(X86_FEATURE_SVM) && kvm_cpu_has(X86_FEATURE_NPT);
}

/*
 * A VM that is being destroyed has given up one file, and waits for the other one.
 * What goes from the first one now, it isn't told: by then nothing may be mapped.
 */
TEST_F(sealed, destroy_vm)
{
	struct stall stall = { .nr = NR_PAGES };
	bool warned = kernel_has_warned();
	struct kvm_vm *vm = self->vm;
	struct worker destroyer;
	char *shared;

	/* That address space comes last. */
	if (vm_check_cap(vm, KVM_CAP_MULTI_ADDRESS_SPACE) < 2)
		SKIP(return, "no second address space");
	/* What is left mapped is noticed in page tables for nested guests. */
	if (!has_nested_npt())
		SKIP(return, "no nested SVM");
	if (!find_cpus())
		SKIP(return, "one CPU only");

	shared = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, shared);
	stall.fd = new_sealed_memfd(SIZE);
	ASSERT_EQ(0, set_slot(vm, SMM_SLOT, KVM_MEM_GUEST_MEMFD, STALLED_GPA, SIZE, shared,
			      stall.fd, 0));
	run_l2(_metadata, self);

	worker_create(&destroyer, kvm_vm_release, vm);
	self->vm = NULL;
	stall_begin(&stall);
	EXPECT_TRUE(worker_starts_and_sleeps(&destroyer, &stall));
	EXPECT_EQ(0, to_shared(self, 0, NR_L2_PAGES));
	EXPECT_FALSE(READ_ONCE(destroyer.done));
	EXPECT_TRUE(stall_end(&stall));
	worker_finish(&destroyer);
	EXPECT_EQ(warned, kernel_has_warned());

	munmap(shared, SIZE);
	close(stall.fd);
}

#define NX_HUGE_PAGES	"/sys/module/kvm/parameters/nx_huge_pages"

static void change_memslots(struct kvm_vm *vm)
{
	TEST_ASSERT(!set_slot(vm, OTHER_SLOT, 0, STALLED_GPA, PAGE_SIZE,
			      mmap(NULL, PAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS,
				   -1, 0), -1, 0),
		    "Can't create a memslot");
}

/* Here and back again, as what it was is not known. */
static void change_nx_huge_pages(struct kvm_vm *vm)
{
	TEST_ASSERT(write_file(NX_HUGE_PAGES, "1") && write_file(NX_HUGE_PAGES, "0"),
		    "Can't write to " NX_HUGE_PAGES);
}

/*
 * A conversion allocates memory, so whoever frees memory must not wait for it.  Here
 * kvm_lock is held by one who waits for slots_lock, which is held by one who waits for
 * the conversion.
 */
TEST_F(sealed, shrinker)
{
	struct stall stall = { .fd = self->fd, .start = NR_PAGES / 2, .nr = NR_PAGES / 2 };
	struct worker memslots, nx;
	char old[2] = "";
	int fd, i;

	/* Without page tables of the kind that can be freed it isn't even tried. */
	if (!has_nested_npt())
		SKIP(return, "no nested SVM");
	if (!find_cpus())
		SKIP(return, "one CPU only");
	fd = open(NX_HUGE_PAGES, O_RDONLY);
	ASSERT_EQ(1, read(fd, old, 1));
	close(fd);

	run_l2(_metadata, self);
	worker_create(&memslots, change_memslots, self->vm);
	worker_create(&nx, change_nx_huge_pages, self->vm);
	stall_begin(&stall);
	EXPECT_TRUE(worker_starts_and_sleeps(&memslots, &stall));
	EXPECT_TRUE(worker_starts_and_sleeps(&nx, &stall));
	/* Each time a fifth of what there is adds up to what there is to do. */
	for (i = 0; i < 8; i++)
		EXPECT_TRUE(write_file("/proc/sys/vm/drop_caches", "2"));
	EXPECT_FALSE(READ_ONCE(nx.done));
	EXPECT_TRUE(stall_end(&stall));
	worker_finish(&memslots);
	worker_finish(&nx);
	EXPECT_TRUE(write_file(NX_HUGE_PAGES, old));
}

/*
 * A process with a VM of its own, which is told to bind a memfd or to split what is
 * bound to it, and is killed meanwhile.
 */
struct victim {
	int fd;
	bool split;
	pid_t pid;
	int vm_fd;
	sem_t go;
	bool ready;
	bool done;
};

static void victim_run(struct victim *victim, char *shared)
{
	struct kvm_vm *vm = vm_create_barebones();

	victim->vm_fd = vm->fd;
	if (victim->split)
		TEST_ASSERT(!set_slot(vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE, shared,
				      victim->fd, 0), "Can't bind the memfd");
	WRITE_ONCE(victim->ready, true);
	while (sem_wait(&victim->go))
		;
	if (victim->split)
		split_region(vm, SLOT, 0, NR_PAGES / 2, 0, SLOT, OTHER_SLOT);
	else
		set_slot(vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE, shared, victim->fd, 0);
	WRITE_ONCE(victim->done, true);
	_exit(0);
}

static struct victim *victim_create(int fd, bool split, char *shared)
{
	struct victim *victim;
	pid_t pid;

	pin(0, first_cpu);
	victim = mmap(NULL, sizeof(*victim), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(victim != MAP_FAILED, "No memory to share");
	victim->fd = fd;
	victim->split = split;
	TEST_ASSERT(!sem_init(&victim->go, 1, 0), "No semaphore");

	/* With its files here as well it doesn't destroy the VM, which waits, too. */
	pid = syscall(__NR_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
	TEST_ASSERT(pid >= 0, __KVM_SYSCALL_ERROR("clone()", pid));
	if (!pid)
		victim_run(victim, shared);
	victim->pid = pid;
	while (!READ_ONCE(victim->ready))
		usleep(1000);
	return victim;
}

static bool victim_dies(struct victim *victim, const struct stall *stall)
{
	kill(victim->pid, SIGKILL);
	while (is_stalled(stall)) {
		if (waitpid(victim->pid, NULL, WNOHANG) == victim->pid) {
			victim->pid = 0;
			return true;
		}
		usleep(1000);
	}
	return false;
}

static void victim_finish(struct victim *victim)
{
	if (victim->pid)
		waitpid(victim->pid, NULL, 0);
	close(victim->vm_fd);
	munmap(victim, sizeof(*victim));
}

/* Who binds a memfd, or splits memslots, waits, for no longer than it lives. */
static void test_kill(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self,
		      bool split)
{
	struct stall stall = { .nr = NR_PAGES };
	bool warned = kernel_has_warned();
	struct victim *victim;

	stall.fd = new_sealed_memfd(SIZE);
	victim = victim_create(stall.fd, split, self->shared);
	stall_begin(&stall);
	sem_post(&victim->go);
	EXPECT_TRUE(comes_to_sleep(victim->pid, &victim->done, &stall));
	EXPECT_TRUE(victim_dies(victim, &stall));
	EXPECT_TRUE(stall_end(&stall));
	victim_finish(victim);
	EXPECT_EQ(warned, kernel_has_warned());
	close(stall.fd);
}

TEST_F(sealed, kill_binding)
{
	if (!find_cpus())
		SKIP(return, "one CPU only");
	test_kill(_metadata, self, false);
}

TEST_F(sealed, kill_splitting)
{
	if (!vm_check_cap(self->vm, KVM_CAP_SPLIT_MEMORY_REGION))
		SKIP(return, "memslots can't be split");
	if (!find_cpus())
		SKIP(return, "one CPU only");
	test_kill(_metadata, self, true);
}

/*
 * What is about to become private is not part of a huge page that is shared, before
 * any of it is allocated either.  The halves are aligned such that one conversion
 * begins outside of what the huge page maps.
 */
TEST_F(sealed, huge_page_of_neighbour)
{
	const unsigned long half = PER_HUGE / 2;
	struct stall stall = { .fd = self->fd, .nr = PER_HUGE };
	struct test_vm *tvm = &self->tvm;
	unsigned long i;
	uint64_t huge;
	char *shared;

	if (!find_cpus())
		SKIP(return, "one CPU only");

	shared = mmap(NULL, 2 * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	ASSERT_NE(MAP_FAILED, shared);
	shared = (void *)round_up((unsigned long)shared, SZ_2M);
	ASSERT_EQ(0, madvise(shared, SZ_2M, MADV_HUGEPAGE));
	for (i = 0; i < NR_PAGES; i++)
		*(uint64_t *)(shared + i * PAGE_SIZE) = SHARED_VALUE(i);
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, set_slot(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE, shared, self->fd,
			      half * PAGE_SIZE));

	guest_read(tvm, gpa_of(PER_HUGE));
	huge = vm_get_stat(self->vm, "pages_2m");
	EXPECT_EQ(SHARED_VALUE(0), guest_read(tvm, gpa_of(0)));
	if (vm_get_stat(self->vm, "pages_2m") == huge)
		SKIP(return, "no huge pages to be had");

	stall_begin(&stall);
	EXPECT_EQ(SHARED_VALUE(half), guest_read(tvm, gpa_of(half)));
	EXPECT_TRUE(stall_end(&stall));
	EXPECT_EQ(huge, vm_get_stat(self->vm, "pages_2m"));
	EXPECT_EQ(0, guest_read(tvm, gpa_of(half - 1)));
	EXPECT_EQ(SHARED_VALUE(half), guest_read(tvm, gpa_of(half)));
}

/* Whether an access matches is seen when the conversion is done. */
static void test_mismatch(struct __test_metadata *_metadata, FIXTURE_DATA(shared_bit) *self,
			  uint64_t kind)
{
	struct stall stall = {
		.fd = self->sealed.fd,
		.nr = NR_PAGES,
		.punch = kind == SHARED,
	};
	struct test_vm *tvm = self->tvm;
	struct runner runner;
	unsigned long page;

	guest_read(tvm, gva_of(2 * NR_PAGES - 1, SHARED));
	runner_create(&runner, tvm->vcpu);
	stall_begin(&stall);
	page = stall_page(&stall);
	guest_command_set(tvm, GUEST_READ, gva_of(page, kind), 0);
	runner_start(&runner);
	EXPECT_TRUE(runner_sleeps(&runner, &stall));
	EXPECT_TRUE(stall_end(&stall));
	runner_finish(&runner);
	EXPECT_EQ(0, runner.ret);
	EXPECT_EQ(kind == SHARED ? SHARED_VALUE(page) : 0, guest_result(tvm));
}

TEST_F(shared_bit, mismatch_to_private)
{
	if (!find_cpus())
		SKIP(return, "one CPU only");
	test_mismatch(_metadata, self, PRIVATE);
}

TEST_F(shared_bit, mismatch_to_shared)
{
	if (!find_cpus())
		SKIP(return, "one CPU only");
	test_mismatch(_metadata, self, SHARED);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_SEALED_MEMFD));

	/* What is converted page by page can stand still in between. */
	huge_pages_choose_until_exit("never");

	return test_harness_run(argc, argv);
}
