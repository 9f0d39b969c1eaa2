// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected VMs: private pages are taken away, or given content, with the guest's
 * consent only, whoever has a descriptor of the file; and each has one place.
 */
#include <asm/kvm_measurement.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/wait.h>

#include "protected_vm.h"
#include "protected_vm_ap.h"
#include "sealed_memfd_huge.h"
#include "sealed_memfd_isolation.h"

#define VALUE	0x600df00d600df00dul

/* Memslots that share a file, next to one another in both */
#define PAIR_SLOT	(SLOT + 2)
#define PAIR_GPA	(GPA + 8 * SIZE)
#define PAIR_PAGES	8

/* A page table, by which the guest maps PAGE at PT_GVA */
#define TABLE		20

/* Of INS and OUTS: userspace's, and that of a device in the kernel */
#define STRING_PORT	0x0f
#define PIC_MASK_PORT	0x21

static uint64_t guest_ask(uint64_t gpa, uint64_t nr_pages, uint64_t attrs, uint64_t u1)
{
	return kvm_hypercall(KVM_HC_MAP_GPA_RANGE, gpa, nr_pages, attrs, 0);
}

/* Hyper-V's way to ask */
static uint64_t guest_hv_call(uint64_t control, uint64_t input, uint64_t u1, uint64_t u2)
{
	return hv_hypercall(control, input, 0);
}

static uint64_t guest_insb(uint64_t addr, uint64_t u1, uint64_t u2, uint64_t u3)
{
	asm volatile("insb" : "+D" (addr) : "d" (STRING_PORT) : "memory");
	return 0;
}

static uint64_t guest_outsb(uint64_t addr, uint64_t u1, uint64_t u2, uint64_t u3)
{
	asm volatile("outsb" : "+S" (addr) : "d" (STRING_PORT) : "memory");
	return 0;
}

/*
 * The guest asks to be rid of a page, is told that it is so or not, and in the end asks
 * to have it.  From there on it's the guest's: what it writes stays.
 */
static uint64_t guest_race(uint64_t addr, uint64_t rounds, uint64_t u1, uint64_t u2)
{
	uint64_t *p = (void *)addr;
	uint64_t i, j, errors = 0;

	for (i = 1; i <= rounds; i++) {
		guest_ask(addr, 1, KVM_MAP_GPA_RANGE_DECRYPTED, 0);
		/* By hypercall, or just so */
		if (i & 1)
			guest_ask(addr, 1, KVM_MAP_GPA_RANGE_ENCRYPTED, 0);
		WRITE_ONCE(*p, i);
		for (j = 0; j < 200; j++)
			errors += READ_ONCE(*p) != i;
	}
	return errors;
}

/* In a private page of the guest's: two vCPUs deal with others, above all the last. */
struct race {
	uint64_t first;
	uint64_t nr_pages;
	/* Is it KVM that reads the page? */
	uint64_t by_kvm;
	uint64_t asked;
	uint64_t answered;
	uint64_t rounds;
	uint64_t taken;
	uint64_t errors;
	uint64_t stop;
};

#define RACE_PAGE	1

static uint64_t guest_begin_race(uint64_t first, uint64_t nr_pages, uint64_t by_kvm, uint64_t u1)
{
	struct race *race = (void *)gva_of(RACE_PAGE, PRIVATE);

	race->first = first;
	race->nr_pages = nr_pages;
	race->by_kvm = by_kvm;
	return 0;
}

/* What KVM finds in a byte: it's given to the PIC, as its mask, and had back from there. */
static uint8_t guest_read_by_kvm(void *p)
{
	uint8_t value;

	asm volatile("outsb; in %%dx, %%al"
		     : "+S" (p), "=a" (value) : "d" (PIC_MASK_PORT) : "memory");
	return value;
}

/*
 * One uses the page.  If what it has written is gone, the other must have asked anew
 * since: what it had asked for before is withdrawn by now.
 */
static void guest_use(struct race *race)
{
	uint8_t *p = (void *)race->first + (race->nr_pages - 1) * PAGE_SIZE;
	uint64_t i, j, answered;
	uint8_t found, value = 1;

	for (i = 1; !READ_ONCE(race->stop); i++) {
		answered = READ_ONCE(race->answered);
		if (!race->by_kvm || guest_read_by_kvm(p) != value) {
			value = i | 1;
			WRITE_ONCE(*p, value);
		}
		for (j = 0; j < (race->by_kvm ? 3 : 100); j++) {
			found = race->by_kvm ? guest_read_by_kvm(p) : READ_ONCE(*p);
			if (found == value)
				continue;
			if (found || READ_ONCE(race->asked) == answered)
				race->errors++;
			race->taken++;
			break;
		}
		WRITE_ONCE(race->rounds, i);
	}
}

/* The other one asks for it to be taken away, now and then. */
static uint64_t guest_ask_repeatedly(uint64_t times, uint64_t u1, uint64_t u2, uint64_t u3)
{
	struct race *race = (void *)gva_of(RACE_PAGE, PRIVATE);
	uint64_t i, rounds;

	for (i = 1; i <= times; i++) {
		WRITE_ONCE(race->asked, i);
		guest_ask(race->first, race->nr_pages, KVM_MAP_GPA_RANGE_DECRYPTED, 0);
		WRITE_ONCE(race->answered, i);
		/* Of these one at least has begun since. */
		rounds = READ_ONCE(race->rounds);
		while (READ_ONCE(race->rounds) - rounds < 2)
			cpu_relax();
	}
	WRITE_ONCE(race->stop, 1);
	return race->errors;
}

FIXTURE(consent)
{
	struct pvm pvm;
	struct pvm *p;
	bool is_protected;
	/* Of the pair of memslots */
	int pair_fd;
};

FIXTURE_VARIANT(consent)
{
	unsigned long type;
};

FIXTURE_VARIANT_ADD(consent, protected_vm) {
	.type = KVM_X86_PROTECTED_VM,
};

FIXTURE_VARIANT_ADD(consent, default_vm) {
	.type = KVM_X86_DEFAULT_VM,
};

static void map_table(struct pvm *p)
{
	int level = PG_LEVEL_2M;
	uint64_t *pde;

	virt_map(p->vm, PT_GVA, OTHER_GPA, 1);
	pde = __vm_get_page_table_entry(p->vm, PT_GVA, &level);
	*pde = gpa_of(TABLE) | PTE_PRESENT_MASK | PTE_WRITABLE_MASK;
}

FIXTURE_SETUP(consent)
{
	struct pvm *p = &self->pvm;

	ASSERT_TRUE(has_vm_type(variant->type));
	self->p = p;
	self->is_protected = variant->type == KVM_X86_PROTECTED_VM;
	pvm_create(p, variant->type, 2);
	ap_prepare(p, guest_use, gva_of(RACE_PAGE, PRIVATE));
	map_table(p);
	virt_map(p->vm, PAIR_GPA, PAIR_GPA, 2 * PAIR_PAGES);
	vm_enable_cap(p->vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE));
	self->pair_fd = new_sealed_memfd(2 * PAIR_PAGES * PAGE_SIZE);
	ASSERT_EQ(0, set_slot(p->vm, PAIR_SLOT, KVM_MEM_GUEST_MEMFD, PAIR_GPA,
			      PAIR_PAGES * PAGE_SIZE, p->shared, self->pair_fd, 0));
	ASSERT_EQ(0, set_slot(p->vm, PAIR_SLOT + 1, KVM_MEM_GUEST_MEMFD,
			      PAIR_GPA + PAIR_PAGES * PAGE_SIZE, PAIR_PAGES * PAGE_SIZE,
			      p->shared + PAIR_PAGES * PAGE_SIZE, self->pair_fd,
			      PAIR_PAGES * PAGE_SIZE));
	pvm_launch(p);
}

FIXTURE_TEARDOWN(consent)
{
	if (!self->p)
		return;

	pvm_free(self->p);
	close(self->pair_fd);
}

static int punch(int fd, unsigned long page, unsigned long nr_pages)
{
	return fallocate(fd, PUNCH, page * PAGE_SIZE, nr_pages * PAGE_SIZE);
}

static int allocate(int fd, unsigned long page, unsigned long nr_pages)
{
	return fallocate(fd, 0, page * PAGE_SIZE, nr_pages * PAGE_SIZE);
}

static bool is_allocated(int fd, unsigned long page)
{
	return lseek(fd, page * PAGE_SIZE, SEEK_DATA) == (off_t)(page * PAGE_SIZE);
}

/* Pages that the guest has content in */
static void use_pages(struct pvm *p, unsigned long page, unsigned long nr_pages)
{
	unsigned long i;

	TEST_ASSERT(!allocate(p->fd, page, nr_pages), __KVM_SYSCALL_ERROR("fallocate()", -1));
	for (i = page; i < page + nr_pages; i++)
		pvm_write(p, gva_of(i, PRIVATE), VALUE + i);
}

static bool has_content(struct pvm *p, unsigned long page)
{
	return is_allocated(p->fd, page) && pvm_read(p, gva_of(page, PRIVATE)) == VALUE + page;
}

/* The guest asks by hypercall, and is told the result. */
static uint64_t ask_gpa(struct pvm *p, uint64_t gpa, unsigned long nr_pages, uint64_t kind,
			uint64_t result)
{
	struct kvm_run *run = p->vcpu->run;

	pvm_start(p, guest_ask, gpa, nr_pages,
		  kind == PRIVATE ? KVM_MAP_GPA_RANGE_ENCRYPTED : KVM_MAP_GPA_RANGE_DECRYPTED,
		  0);
	TEST_ASSERT_KVM_EXIT_REASON(p->vcpu, KVM_EXIT_HYPERCALL);
	TEST_ASSERT_EQ(run->hypercall.args[0], gpa);
	/* It's not this that says what was asked for. */
	memset(run->hypercall.args, 0, sizeof(run->hypercall.args));
	run->hypercall.ret = result;
	vcpu_run(p->vcpu);
	return pvm_result(p);
}

static uint64_t ask(struct pvm *p, unsigned long page, unsigned long nr_pages, uint64_t kind)
{
	return ask_gpa(p, gpa_of(page), nr_pages, kind, 0);
}

/* An instruction for which KVM reads or writes what userspace gets or gives. */
static void run_string_io(struct pvm *p, guest_fn fn, uint64_t addr)
{
	pvm_start(p, fn, addr, 0, 0, 0);
	TEST_ASSERT_KVM_EXIT_REASON(p->vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(p->vcpu->run->io.port, STRING_PORT);
	vcpu_run(p->vcpu);
	pvm_result(p);
}

/* The guest accesses a page that isn't of the kind it asks for. */
static void expect_fault(struct __test_metadata *_metadata, struct pvm *p, unsigned long page,
			 uint64_t kind)
{
	struct kvm_run *run = p->vcpu->run;

	EXPECT_REFUSED(EFAULT, pvm_start(p, guest_load, gva_of(page, kind), 0, 0, 0));
	ASSERT_EQ(KVM_EXIT_MEMORY_FAULT, run->exit_reason);
	EXPECT_EQ(kind, run->memory_fault.flags);
	EXPECT_EQ(gpa_of(page), run->memory_fault.gpa);
}

/* The guest tries again, and finds what it asks for. */
static uint64_t finish(struct pvm *p)
{
	vcpu_run(p->vcpu);
	return pvm_result(p);
}

TEST_F(consent, punch)
{
	struct pvm *p = self->p;
	char path[64];
	int fd, status;

	use_pages(p, PAGE, 1);
	/* What isn't allocated, or in the file, is nobody's. */
	EXPECT_EQ(0, punch(p->fd, PAGE + 1, 10));

	/* Other descriptors, and other processes, are no better. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", p->fd);
	fd = open(path, O_RDWR);
	ASSERT_LE(0, fd);
	if (self->is_protected) {
		EXPECT_REFUSED(EPERM, punch(p->fd, PAGE, 1));
		EXPECT_REFUSED(EPERM, punch(fd, PAGE, 1));
		if (!fork()) {
			if (!punch(p->fd, PAGE, 1))
				_exit(1);
			_exit(errno == EPERM ? 0 : 2);
		}
		ASSERT_LT(0, wait(&status));
		EXPECT_EQ(0, status);
		EXPECT_TRUE(has_content(p, PAGE));
	} else {
		EXPECT_EQ(0, punch(fd, PAGE, 1));
		EXPECT_FALSE(is_allocated(p->fd, PAGE));
	}
	close(fd);
}

/* There's no other way to take pages away, or to put content there. */
TEST_F(consent, file)
{
	static const int modes[] = {
		FALLOC_FL_ZERO_RANGE,
		FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_COLLAPSE_RANGE,
		FALLOC_FL_INSERT_RANGE,
	};
	static const int flags[] = { MAP_SHARED, MAP_PRIVATE };
	struct pvm *p = self->p;
	char *data = p->shared + PAGE_SIZE;
	int i, source = memfd_create("source", 0);
	loff_t offset = 32 * PAGE_SIZE;

	use_pages(p, PAGE, 1);
	EXPECT_REFUSED(EPERM, ftruncate(p->fd, 0));
	EXPECT_REFUSED(EPERM, ftruncate(p->fd, 2 * SIZE));
	for (i = 0; i < ARRAY_SIZE(modes); i++)
		EXPECT_REFUSED(EOPNOTSUPP, fallocate(p->fd, modes[i], 0, PAGE_SIZE));
	for (i = 0; i < ARRAY_SIZE(flags); i++)
		EXPECT_EQ(MAP_FAILED, mmap(NULL, SIZE, PROT_NONE, flags[i], p->fd, 0));

	/* Pages that are not there may come to be, but not with content. */
	EXPECT_REFUSED_IF_PROTECTED(EPERM, pwrite(p->fd, data, PAGE_SIZE, 0));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, pwrite(p->fd, data, 2 * PAGE_SIZE, 8 * PAGE_SIZE));
	ASSERT_EQ(2 * PAGE_SIZE, pwrite(source, data, 2 * PAGE_SIZE, 0));
	ASSERT_LE(0, lseek(p->fd, 33 * PAGE_SIZE, SEEK_SET));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, sendfile(p->fd, source, NULL, PAGE_SIZE));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, copy_file_range(source, NULL, p->fd, &offset,
							   PAGE_SIZE, 0));
	close(source);
	EXPECT_EQ(!self->is_protected, is_allocated(p->fd, 0));
	EXPECT_EQ(!self->is_protected, is_allocated(p->fd, 32));
	EXPECT_EQ(0, allocate(p->fd, 0, 1));
	EXPECT_EQ(0, pvm_read(p, gva_of(0, PRIVATE)));
	EXPECT_TRUE(has_content(p, PAGE));
}

/* That's the guest's code, its page tables among it. */
TEST_F(consent, initial_content)
{
	struct pvm *p = self->p;
	unsigned long i, nr = memslot2region(p->vm, 0)->region.memory_size / PAGE_SIZE;

	if (!self->is_protected)
		SKIP(return, "It would be the end of the guest");

	for (i = 0; i < nr; i++)
		EXPECT_REFUSED(EPERM, punch(p->content_fd, i, 1));
	EXPECT_REFUSED(EPERM, punch(p->content_fd, 0, nr));
	use_pages(p, PAGE, 1);
	EXPECT_TRUE(has_content(p, PAGE));
}

/* A page may be taken away once for each time that the guest asks. */
TEST_F(consent, hypercall)
{
	struct pvm *p = self->p;

	use_pages(p, PAGE, 2);
	EXPECT_EQ(0, ask(p, PAGE, 1, SHARED));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(p->fd, PAGE + 1, 1));
	EXPECT_EQ(0, punch(p->fd, PAGE, 1));
	EXPECT_FALSE(is_allocated(p->fd, PAGE));

	/* It was shared; that the VMM allocates it is not what the guest has asked for. */
	EXPECT_EQ(0, allocate(p->fd, PAGE, 1));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(p->fd, PAGE, 1));
	EXPECT_EQ(0, allocate(p->fd, PAGE, 1));
	expect_fault(_metadata, p, PAGE, SHARED);
	EXPECT_EQ(0, punch(p->fd, PAGE, 1));
	EXPECT_EQ(0, finish(p));
}

TEST_F(consent, access)
{
	struct pvm *p = self->p;

	use_pages(p, PAGE, 1);
	expect_fault(_metadata, p, PAGE, SHARED);
	/* It still has its content, as long as nobody takes it away. */
	EXPECT_EQ(0, punch(p->fd, PAGE, 1));
	EXPECT_EQ(0, finish(p));
	EXPECT_EQ(0, allocate(p->fd, PAGE, 1));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(p->fd, PAGE, 1));
	EXPECT_EQ(0, allocate(p->fd, PAGE, 1));
	expect_fault(_metadata, p, PAGE, SHARED);
	/* The VMM lets it try in vain. */
	EXPECT_REFUSED(EFAULT, _vcpu_run(p->vcpu));
	EXPECT_EQ(0, punch(p->fd, PAGE, 1));
	EXPECT_EQ(0, finish(p));
}

/* The VMM claims to have done what it hasn't, and does it later. */
TEST_F(consent, withdrawn_by_hypercall)
{
	struct pvm *p = self->p;

	use_pages(p, PAGE, 3);
	EXPECT_EQ(0, ask(p, PAGE, 3, SHARED));
	EXPECT_EQ(0, ask(p, PAGE + 1, 1, PRIVATE));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(p->fd, PAGE + 1, 1));
	EXPECT_EQ(0, punch(p->fd, PAGE, 1));
	EXPECT_EQ(0, punch(p->fd, PAGE + 2, 1));
	if (self->is_protected)
		EXPECT_TRUE(has_content(p, PAGE + 1));
}

TEST_F(consent, withdrawn_by_failure)
{
	struct pvm *p = self->p;

	use_pages(p, PAGE, 3);
	EXPECT_EQ(-5ul, ask_gpa(p, gpa_of(PAGE), 3, SHARED, -5));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(p->fd, PAGE, 3));
	if (self->is_protected)
		EXPECT_TRUE(has_content(p, PAGE + 1));
}

TEST_F(consent, withdrawn_by_access)
{
	struct pvm *p = self->p;

	use_pages(p, PAGE, 4);
	EXPECT_EQ(0, ask(p, PAGE, 4, SHARED));
	EXPECT_EQ(VALUE + PAGE, pvm_read(p, gva_of(PAGE, PRIVATE)));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(p->fd, PAGE, 1));

	pvm_write(p, gva_of(PAGE + 1, PRIVATE), VALUE);
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(p->fd, PAGE + 1, 1));

	/* That of others doesn't matter. */
	EXPECT_EQ(0, punch(p->fd, PAGE + 2, 2));
}

/* By KVM, for an instruction of the guest's */
TEST_F(consent, withdrawn_by_emulation)
{
	struct pvm *p = self->p;

	use_pages(p, PAGE, 2);
	EXPECT_EQ(0, ask(p, PAGE, 2, SHARED));
	run_string_io(p, guest_insb, gva_of(PAGE, PRIVATE));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(p->fd, PAGE, 1));
	run_string_io(p, guest_outsb, gva_of(PAGE + 1, PRIVATE));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(p->fd, PAGE + 1, 1));
}

/* By KVM, which finds by it what an instruction is about */
TEST_F(consent, withdrawn_by_walk)
{
	const uint64_t pte = gpa_of(PAGE) | PTE_PRESENT_MASK | PTE_WRITABLE_MASK;
	const uint64_t used = PTE_ACCESSED_MASK | PTE_DIRTY_MASK;
	struct pvm *p = self->p;

	use_pages(p, PAGE, 1);
	ASSERT_EQ(0, allocate(p->fd, TABLE, 1));

	/* What is read only */
	pvm_write(p, gva_of(TABLE, PRIVATE), pte | used);
	EXPECT_EQ(0, ask(p, TABLE, 1, SHARED));
	run_string_io(p, guest_insb, PT_GVA);
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(p->fd, TABLE, 1));
	if (!self->is_protected)
		return;

	/* What is marked as used */
	pvm_write(p, gva_of(TABLE, PRIVATE), pte);
	EXPECT_EQ(0, ask(p, TABLE, 1, SHARED));
	run_string_io(p, guest_insb, PT_GVA);
	EXPECT_REFUSED(EPERM, punch(p->fd, TABLE, 1));
	EXPECT_EQ(pte | used, pvm_read(p, gva_of(TABLE, PRIVATE)));
}

/* What it finds missing it wants to have, whatever it had asked for before. */
TEST_F(consent, withdrawn_by_fault)
{
	struct pvm *p = self->p;

	EXPECT_EQ(0, ask(p, PAGE, 1, SHARED));
	expect_fault(_metadata, p, PAGE, PRIVATE);
	EXPECT_EQ(0, allocate(p->fd, PAGE, 1));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(p->fd, PAGE, 1));
	EXPECT_EQ(0, allocate(p->fd, PAGE, 1));
	EXPECT_EQ(0, finish(p));
}

/* To have userspace map a page is not the guest's access, but it could come to be. */
TEST_F(consent, withdrawn_by_pre_fault)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa_of(PAGE), .size = PAGE_SIZE };
	struct pvm *p = self->p;

	use_pages(p, PAGE, 1);
	EXPECT_EQ(0, ask(p, PAGE, 1, SHARED));
	ASSERT_EQ(0, __vcpu_ioctl(p->vcpu, KVM_PRE_FAULT_MEMORY, &range));
	pvm_write(p, gva_of(PAGE, PRIVATE), VALUE);
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(p->fd, PAGE, 1));
}

/* All or nothing */
TEST_F(consent, range)
{
	struct pvm *p = self->p;
	unsigned long i;

	use_pages(p, PAGE, 1);
	ASSERT_EQ(0, allocate(p->fd, 0, NR_PAGES));
	EXPECT_EQ(0, ask(p, 0, NR_PAGES - 1, SHARED));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(p->fd, 0, NR_PAGES));
	if (self->is_protected) {
		for (i = 0; i < NR_PAGES; i++)
			EXPECT_TRUE(is_allocated(p->fd, i));
	}
	EXPECT_EQ(0, punch(p->fd, 0, NR_PAGES - 1));
	/* Holes aren't asked about. */
	EXPECT_EQ(0, ask(p, NR_PAGES - 1, 1, SHARED));
	EXPECT_EQ(0, punch(p->fd, 0, NR_PAGES));
}

TEST_F(consent, memslots)
{
	const uint64_t second = PAIR_GPA + PAIR_PAGES * PAGE_SIZE;
	struct pvm *p = self->p;

	ASSERT_EQ(0, allocate(self->pair_fd, 0, 2 * PAIR_PAGES));
	EXPECT_EQ(0, ask_gpa(p, PAIR_GPA, PAIR_PAGES, SHARED, 0));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(self->pair_fd, 0, 2 * PAIR_PAGES));
	EXPECT_EQ(self->is_protected, is_allocated(self->pair_fd, 0));
	if (self->is_protected) {
		/* The first memslot is as if nothing had been begun. */
		EXPECT_EQ(0, pvm_read(p, PAIR_GPA));
		EXPECT_EQ(0, ask_gpa(p, PAIR_GPA, 1, SHARED, 0));
	}

	/* What is asked for goes beyond memslots on either side, and may be nonsense. */
	EXPECT_EQ(0, ask_gpa(p, second - PAGE_SIZE, 1ul << 32, SHARED, 0));
	EXPECT_EQ(0, punch(self->pair_fd, 0, 2 * PAIR_PAGES));
	EXPECT_FALSE(is_allocated(self->pair_fd, 0));
}

static void *punch_all(void *arg)
{
	struct pvm *p = arg;

	/* Its first page tells when to stop. */
	while (!READ_ONCE(*(uint64_t *)p->shared)) {
		punch(p->fd, PAGE, 1);
		punch(p->fd, 0, NR_PAGES);
	}
	return NULL;
}

/* Others take away what they can get while the guest asks and uses what it has. */
TEST_F(consent, race)
{
	const uint64_t rounds = 300;
	struct pvm *p = self->p;
	struct kvm_run *run = p->vcpu->run;
	unsigned long punched = 0;
	pthread_t threads[2];
	int i, r;

	if (!self->is_protected)
		SKIP(return, "The guest would lose its content");

	ASSERT_EQ(0, allocate(p->fd, PAGE, 1));
	for (i = 0; i < ARRAY_SIZE(threads); i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, punch_all, p));

	r = pvm_start(p, guest_race, gva_of(PAGE, PRIVATE), rounds, 0, 0);
	while (!pvm_is_done(p)) {
		if (r) {
			ASSERT_EQ(KVM_EXIT_MEMORY_FAULT, run->exit_reason);
			ASSERT_EQ(PRIVATE, run->memory_fault.flags);
			punched++;
			ASSERT_EQ(0, allocate(p->fd, PAGE, 1));
		} else {
			ASSERT_EQ(KVM_EXIT_HYPERCALL, run->exit_reason);
			run->hypercall.ret = 0;
		}
		r = _vcpu_run(p->vcpu);
	}
	EXPECT_EQ(0, pvm_result(p));
	EXPECT_LT(0, punched);
	TH_LOG("taken away %lu times", punched);

	*(uint64_t *)p->shared = 1;
	for (i = 0; i < ARRAY_SIZE(threads); i++)
		pthread_join(threads[i], NULL);
}

/* Others take it away and give it back as long as the guest runs. */
struct racers {
	struct pvm *p;
	unsigned long first;
	unsigned long nr_pages;
	bool stop;
	uint64_t punched;
};

static void *punch_repeatedly(void *arg)
{
	struct racers *racers = arg;
	struct pvm *p = racers->p;

	while (!READ_ONCE(racers->stop)) {
		if (!is_allocated(p->fd, racers->first))
			continue;
		if (!punch(p->fd, racers->first, racers->nr_pages))
			racers->punched++;
		/* What is nobody's to take away along with it */
		punch(p->fd, RACE_PAGE, racers->first + racers->nr_pages - RACE_PAGE);
	}
	return NULL;
}

static void *allocate_repeatedly(void *arg)
{
	struct racers *racers = arg;

	while (!READ_ONCE(racers->stop))
		TEST_ASSERT(!allocate(racers->p->fd, racers->first, racers->nr_pages),
			    __KVM_SYSCALL_ERROR("fallocate()", -1));
	return NULL;
}

static void *run_ap(void *arg)
{
	struct racers *racers = arg;
	struct kvm_vcpu *ap = racers->p->vcpus[1];
	int r;

	while (!READ_ONCE(racers->stop)) {
		r = _vcpu_run(ap);
		if (!r) {
			TEST_ASSERT_KVM_EXIT_REASON(ap, KVM_EXIT_IO);
			TEST_ASSERT_EQ(ap->run->io.port, COMMAND_PORT);
			break;
		}
		/* It has just begun, or it's without the page, which others give back. */
		TEST_ASSERT(errno == EAGAIN || errno == EFAULT, __KVM_IOCTL_ERROR("KVM_RUN", r));
		if (errno == EFAULT) {
			TEST_ASSERT_KVM_EXIT_REASON(ap, KVM_EXIT_MEMORY_FAULT);
			TEST_ASSERT_EQ(ap->run->memory_fault.flags, PRIVATE);
		}
	}
	return NULL;
}

/* One vCPU asks to be rid of what the other one uses. */
static void race_of_vcpus(struct __test_metadata *_metadata, struct pvm *p, unsigned long first,
			  unsigned long nr_pages, bool by_kvm)
{
	void *(*const fns[])(void *) = { punch_repeatedly, allocate_repeatedly, run_ap };
	struct racers racers = { .p = p, .first = first, .nr_pages = nr_pages };
	struct kvm_run *run = p->vcpu->run;
	pthread_t threads[ARRAY_SIZE(fns)];
	int i, nr_asked = 0;

	ASSERT_EQ(0, allocate(p->fd, RACE_PAGE, 1));
	ASSERT_EQ(0, allocate(p->fd, first, nr_pages));
	pvm_call(p, guest_begin_race, gva_of(first, PRIVATE), nr_pages, by_kvm, 0);
	pvm_call(p, guest_start_ap, 1, 0, 0, 0);
	for (i = 0; i < ARRAY_SIZE(fns); i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, fns[i], &racers));

	pvm_start(p, guest_ask_repeatedly, 200, 0, 0, 0);
	while (!pvm_is_done(p)) {
		TEST_ASSERT_KVM_EXIT_REASON(p->vcpu, KVM_EXIT_HYPERCALL);
		/* The guest has to go by what it asks for, not by this. */
		run->hypercall.ret = ++nr_asked % 3 ? 0 : -5;
		vcpu_run(p->vcpu);
	}
	EXPECT_EQ(0, pvm_result(p));

	WRITE_ONCE(racers.stop, true);
	for (i = 0; i < ARRAY_SIZE(fns); i++)
		pthread_join(threads[i], NULL);

	EXPECT_LT(0, racers.punched);
	TH_LOG("taken away %lu times, %lu of them in use", racers.punched,
	       pvm_read(p, gva_of(RACE_PAGE, PRIVATE) + offsetof(struct race, taken)));
}

TEST_F(consent, race_of_vcpus)
{
	if (!self->is_protected)
		SKIP(return, "The guest would lose its content");

	race_of_vcpus(_metadata, self->p, PAGE, 1, false);
}

/* Many pages at once take long to go, the last of them longest. */
TEST_F(consent, race_with_kvm)
{
	if (!self->is_protected)
		SKIP(return, "The guest would lose its content");

	race_of_vcpus(_metadata, self->p, PER_HUGE, PER_HUGE, true);
}

/* Two pages one after the other */
static uint64_t ask_by_list(struct pvm *p, unsigned long page, uint64_t result)
{
	const uint64_t two = 2ul << HV_HYPERCALL_REP_COMP_OFFSET;
	struct page_list *list = (void *)p->shared + SIZE + PAGE_SIZE;
	struct kvm_run *run = p->vcpu->run;

	*list = (struct page_list) {
		HV_PARTITION_SELF, VISIBILITY_SHARED, 0,
		{ gpa_of(page) / PAGE_SIZE, gpa_of(page + 1) / PAGE_SIZE },
	};
	pvm_start(p, guest_hv_call, HVCALL_MODIFY_VISIBILITY | two,
		  (ORDINARY_GPA + PAGE_SIZE) | p->bit, 0, 0);
	TEST_ASSERT_KVM_EXIT_REASON(p->vcpu, KVM_EXIT_HYPERCALL);
	TEST_ASSERT_EQ(run->hypercall.args[0], gpa_of(page));
	TEST_ASSERT_EQ(run->hypercall.args[1], 2);
	run->hypercall.ret = result;
	vcpu_run(p->vcpu);
	return pvm_result(p) & 0xffff;
}

TEST(visibility)
{
	struct pvm pvm;

	if (!kvm_has_cap(KVM_CAP_HYPERV_CPUID))
		SKIP(return, "no Hyper-V");

	pvm_create(&pvm, KVM_X86_PROTECTED_VM, 1);
	vm_enable_cap(pvm.vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE));
	set_isolation(pvm.vcpu, pvm.bit);
	pvm_launch(&pvm);

	use_pages(&pvm, PAGE, 3);
	EXPECT_NE(0, ask_by_list(&pvm, PAGE, -5));
	EXPECT_REFUSED(EPERM, punch(pvm.fd, PAGE, 1));
	EXPECT_TRUE(has_content(&pvm, PAGE));
	EXPECT_EQ(0, ask_by_list(&pvm, PAGE, 0));
	EXPECT_REFUSED(EPERM, punch(pvm.fd, PAGE, 3));
	EXPECT_EQ(0, punch(pvm.fd, PAGE, 2));
	EXPECT_TRUE(has_content(&pvm, PAGE + 2));
	pvm_free(&pvm);
}

/* What a VM is measured with is what its guest finds. */
#define CHANGING_PAGES	16

struct changer {
	struct pvm *p;
	unsigned long page;
	bool *stop;
};

static void *change_pages(void *arg)
{
	struct changer *changer = arg;
	char content[PAGE_SIZE] = {};
	unsigned long i;
	int fd = changer->p->fd;

	while (!READ_ONCE(*changer->stop)) {
		for (i = changer->page; i < CHANGING_PAGES; i += 2) {
			*(uint64_t *)content = VALUE + i;
			punch(fd, i, 1);
			if (pwrite(fd, content, PAGE_SIZE, i * PAGE_SIZE) != PAGE_SIZE)
				allocate(fd, i, 1);
		}
	}
	return NULL;
}

static void create_with(struct pvm *pvm, char **image)
{
	struct userspace_mem_region *region;
	uint64_t size;

	pvm_create(pvm, KVM_X86_PROTECTED_VM, 1);
	region = memslot2region(pvm->vm, 0);
	size = region->region.memory_size;
	/* It has pointers in it, of the host's. */
	if (*image) {
		memcpy(region->host_mem, *image, size);
	} else {
		*image = malloc(size);
		TEST_ASSERT(*image, "malloc() failed");
		memcpy(*image, region->host_mem, size);
	}
	pvm_load(pvm);
}

TEST(content_while_finalized)
{
	struct kvm_x86_finalize_vm arg, same;
	struct changer changers[2];
	pthread_t threads[2];
	uint64_t values[CHANGING_PAGES];
	char content[PAGE_SIZE] = {};
	char *image = NULL;
	struct pvm pvm;
	bool stop;
	int i, n;

	for (n = 0; n < 4; n++) {
		create_with(&pvm, &image);
		stop = false;
		for (i = 0; i < ARRAY_SIZE(threads); i++) {
			changers[i] = (struct changer) { &pvm, i, &stop };
			ASSERT_EQ(0, pthread_create(&threads[i], NULL, change_pages, &changers[i]));
		}
		memset(&arg, 0, sizeof(arg));
		EXPECT_EQ(0, pvm_finalize(&pvm, &arg));
		/* It's too late by now, too. */
		usleep(1000);
		WRITE_ONCE(stop, true);
		for (i = 0; i < ARRAY_SIZE(threads); i++)
			pthread_join(threads[i], NULL);

		ASSERT_EQ(0, allocate(pvm.fd, 0, CHANGING_PAGES));
		vcpu_run(pvm.vcpu);
		ASSERT_TRUE(pvm_is_done(&pvm));
		for (i = 0; i < CHANGING_PAGES; i++) {
			values[i] = pvm_read(&pvm, gva_of(i, PRIVATE));
			EXPECT_TRUE(!values[i] || values[i] == VALUE + i);
		}
		pvm_free(&pvm);

		/* With that for its content another VM is the same. */
		create_with(&pvm, &image);
		for (i = 0; i < CHANGING_PAGES; i++) {
			*(uint64_t *)content = values[i];
			ASSERT_EQ(PAGE_SIZE, pwrite(pvm.fd, content, PAGE_SIZE, i * PAGE_SIZE));
		}
		memset(&same, 0, sizeof(same));
		ASSERT_EQ(0, pvm_finalize(&pvm, &same));
		EXPECT_EQ(0, memcmp(arg.measurement, same.measurement, sizeof(arg.measurement)));
		pvm_free(&pvm);
	}
	free(image);
}

static void write_content(struct pvm *p, unsigned long page)
{
	uint64_t content[PAGE_SIZE / sizeof(uint64_t)] = { VALUE + page };

	TEST_ASSERT(pwrite(p->fd, content, PAGE_SIZE, page * PAGE_SIZE) == PAGE_SIZE,
		    __KVM_SYSCALL_ERROR("pwrite()", -1));
}

#define MAX_LOG_SIZE	0x100000

/* What has failed to become final is as it was: memory is the VMM's, to change at will. */
TEST(finalizing_fails)
{
	char *log = mmap(NULL, MAX_LOG_SIZE + PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_x86_finalize_vm arg, same = {};
	uint64_t end, log_size;
	char *image = NULL;
	struct pvm pvm;
	int i;

	ASSERT_NE(MAP_FAILED, log);
	ASSERT_EQ(0, mprotect(log + MAX_LOG_SIZE, PAGE_SIZE, PROT_NONE));
	end = (uintptr_t)log + MAX_LOG_SIZE;

	/* At once */
	create_with(&pvm, &image);
	write_content(&pvm, PAGE);
	ASSERT_EQ(0, pvm_finalize(&pvm, &same));
	pvm_free(&pvm);

	create_with(&pvm, &image);
	write_content(&pvm, PAGE);
	arg = (struct kvm_x86_finalize_vm) { .log = end };
	EXPECT_REFUSED(E2BIG, pvm_finalize(&pvm, &arg));
	log_size = arg.log_size;
	ASSERT_GT(MAX_LOG_SIZE, log_size);

	for (i = 0; i < 3; i++) {
		switch (i) {
		case 0:
			arg = (struct kvm_x86_finalize_vm) { .log = end, .log_size = log_size };
			EXPECT_REFUSED(EFAULT, pvm_finalize(&pvm, &arg));
			break;
		case 1:
			/* All but the record of the end, which comes after the pages */
			arg.log -= log_size - sizeof(struct kvm_measurement_record);
			EXPECT_REFUSED(EFAULT, pvm_finalize(&pvm, &arg));
			break;
		case 2:
			/* Measured, but without a key; or without any keys */
			arg = (struct kvm_x86_finalize_vm) { .key = INT32_MAX };
			EXPECT_EQ(-1, pvm_finalize(&pvm, &arg));
			break;
		}

		EXPECT_REFUSED(EPERM, _vcpu_run(pvm.vcpu));
		EXPECT_EQ(0, punch(pvm.fd, PAGE, 1));
		EXPECT_FALSE(is_allocated(pvm.fd, PAGE));
		write_content(&pvm, PAGE);
		EXPECT_EQ(0, punch(pvm.content_fd, 0, 1));
		EXPECT_EQ(PAGE_SIZE, pwrite(pvm.content_fd, image, PAGE_SIZE, 0));
		EXPECT_EQ(0, split_region(pvm.vm, SLOT, 1, 1, SLOT, SLOT + 5, SLOT + 6));
		EXPECT_EQ(0, merge_regions(pvm.vm, SLOT, GPA, NR_PAGES));
	}

	arg = (struct kvm_x86_finalize_vm) {};
	ASSERT_EQ(0, pvm_finalize(&pvm, &arg));
	EXPECT_EQ(0, memcmp(arg.measurement, same.measurement, sizeof(arg.measurement)));
	EXPECT_REFUSED(EPERM, punch(pvm.fd, PAGE, 1));
	vcpu_run(pvm.vcpu);
	ASSERT_TRUE(pvm_is_done(&pvm));
	EXPECT_TRUE(has_content(&pvm, PAGE));
	pvm_free(&pvm);
	free(image);
	munmap(log, MAX_LOG_SIZE + PAGE_SIZE);
}

/* Part of a huge page: others are left alone, and are not mapped along with it. */
TEST_F(consent, huge_page)
{
	struct pvm *p = self->p;
	char old[64];
	int r;

	if (!huge_pages_enable(old, sizeof(old)))
		SKIP(return, "no huge pages");
	r = allocate(p->fd, 0, PER_HUGE);
	huge_pages_restore(old);
	ASSERT_EQ(0, r);
	use_pages(p, PAGE, 2);

	EXPECT_EQ(0, ask(p, PAGE, 1, SHARED));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(p->fd, 0, PER_HUGE));
	EXPECT_EQ(self->is_protected, is_allocated(p->fd, PAGE + 1));
	if (!self->is_protected)
		return;

	/* That would map all of it, if it could. */
	EXPECT_TRUE(has_content(p, PAGE + 1));
	EXPECT_TRUE(has_content(p, PAGE));
	EXPECT_REFUSED(EPERM, punch(p->fd, PAGE, 1));

	EXPECT_EQ(0, ask(p, PAGE, 1, SHARED));
	EXPECT_TRUE(has_content(p, PAGE + 1));
	EXPECT_EQ(0, punch(p->fd, PAGE, 1));
	EXPECT_TRUE(has_content(p, PAGE + 1));
	EXPECT_REFUSED(EPERM, punch(p->fd, PAGE + 1, 1));
}

/* Each page has one place, for the life of the VM. */
TEST_F(consent, binding)
{
	struct kvm_vm *other = vm_create_barebones();
	struct pvm *p = self->p;
	const uint64_t size = PAIR_PAGES * PAGE_SIZE;

	use_pages(p, PAGE, 1);
	EXPECT_REFUSED(EBUSY, set_slot(other, 1, KVM_MEM_GUEST_MEMFD, 0, SIZE, p->shared,
				       p->fd, 0));

	/* Other memslots */
	EXPECT_REFUSED_IF_PROTECTED(EPERM, set_slot(p->vm, PAIR_SLOT, KVM_MEM_GUEST_MEMFD,
						    PAIR_GPA + SIZE, size, p->shared,
						    self->pair_fd, 0));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, set_slot(p->vm, SLOT + 4, 0, PAIR_GPA + 2 * SIZE,
						    size, p->shared, -1, 0));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, delete_slot(p->vm, PAIR_SLOT + 1));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, set_slot(p->vm, ORDINARY_SLOT,
						    KVM_MEM_LOG_DIRTY_PAGES, ORDINARY_GPA, SIZE,
						    p->shared + SIZE, -1, 0));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, split_region(p->vm, SLOT, 1, 1, SLOT, SLOT + 5,
							SLOT + 6));
	kvm_vm_free(other);

	/* The VM is gone: nobody can want it, but nobody else can have it. */
	use_pages(p, PAGE + 1, 1);
	kvm_vm_release(p->vm);
	p->vm = NULL;
	other = vm_create_barebones();
	EXPECT_TRUE(is_allocated(p->fd, PAGE));
	EXPECT_REFUSED(EBUSY, set_slot(other, 1, KVM_MEM_GUEST_MEMFD, 0, SIZE, p->shared,
				       p->fd, 0));
	EXPECT_EQ(0, punch(p->fd, 0, NR_PAGES));
	EXPECT_EQ(0, set_slot(other, 1, KVM_MEM_GUEST_MEMFD, 0, SIZE, p->shared, p->fd, 0));
	kvm_vm_free(other);
}

/* In a child: a VMM, and another process that has its descriptors. */
struct vmm {
	pid_t other;
	int fd;
};

static void be_vmm(unsigned long type, int pipe)
{
	struct vmm vmm;
	struct pvm pvm;
	int r;

	pvm_create(&pvm, type, 1);
	vm_enable_cap(pvm.vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE));
	pvm_launch(&pvm);
	use_pages(&pvm, PAGE, 3);
	TEST_ASSERT(!ask(&pvm, PAGE, 1, SHARED), "The hypercall has failed");

	vmm.fd = pvm.fd;
	vmm.other = fork();
	if (!vmm.other) {
		r = _vcpu_run(pvm.vcpu);
		TEST_ASSERT(r && errno == EIO, "Another process can run the guest");
		write(pipe, "", 1);
	} else {
		write(pipe, &vmm, sizeof(vmm));
	}
	for (;;)
		pause();
}

/* A VM lasts as long as anybody has a descriptor of it, and so does the need to ask. */
TEST_F(consent, death_of_vmm)
{
	struct kvm_vm *other = vm_create_barebones();
	struct pvm *p = self->p;
	char path[64], buf[sizeof(struct vmm)];
	struct vmm vmm = {};
	int pipefd[2], fd, i, n;
	pid_t child;

	/* Orphans are ours. */
	ASSERT_EQ(0, prctl(PR_SET_CHILD_SUBREAPER, 1));
	ASSERT_EQ(0, pipe2(pipefd, O_DIRECT));
	child = fork();
	if (!child)
		be_vmm(variant->type, pipefd[1]);
	close(pipefd[1]);

	/* Both say that they are there. */
	for (i = 0; i < 2; i++) {
		n = read(pipefd[0], buf, sizeof(buf));
		ASSERT_LT(0, n);
		if (n == sizeof(vmm))
			memcpy(&vmm, buf, sizeof(vmm));
	}
	close(pipefd[0]);
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", child, vmm.fd);
	fd = open(path, O_RDWR);
	ASSERT_LE(0, fd);
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(fd, PAGE + 1, 1));

	kill(child, SIGKILL);
	ASSERT_EQ(child, waitpid(child, NULL, 0));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(fd, PAGE, 3));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, punch(fd, PAGE + 2, 1));
	EXPECT_EQ(self->is_protected, is_allocated(fd, PAGE + 2));
	/* What the guest has asked for still holds. */
	EXPECT_EQ(0, punch(fd, PAGE, 1));
	EXPECT_FALSE(is_allocated(fd, PAGE));

	kill(vmm.other, SIGKILL);
	ASSERT_EQ(vmm.other, waitpid(vmm.other, NULL, 0));
	if (self->is_protected) {
		EXPECT_TRUE(is_allocated(fd, PAGE + 1));
		EXPECT_REFUSED(EBUSY, set_slot(other, 1, KVM_MEM_GUEST_MEMFD, 0, SIZE, p->shared,
					       fd, 0));
	}
	EXPECT_EQ(0, punch(fd, 0, NR_PAGES));
	EXPECT_EQ(0, set_slot(other, 1, KVM_MEM_GUEST_MEMFD, 0, SIZE, p->shared, fd, 0));
	kvm_vm_free(other);
	close(fd);
}

/* One address space, if it's that of a protected VM */
TEST_F(consent, address_space)
{
	struct pvm pvm;

	pvm_create(&pvm, variant->type, 1);
	if (self->is_protected)
		EXPECT_REFUSED(EINVAL, set_slot(pvm.vm, SMM_SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
						pvm.shared, pvm.fd, 0));
	else if (kvm_has_cap(KVM_CAP_X86_SMM))
		EXPECT_EQ(0, set_slot(pvm.vm, SMM_SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE,
				      pvm.shared, pvm.fd, 0));
	pvm_free(&pvm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(has_vm_type(KVM_X86_PROTECTED_VM));

	return test_harness_run(argc, argv);
}
