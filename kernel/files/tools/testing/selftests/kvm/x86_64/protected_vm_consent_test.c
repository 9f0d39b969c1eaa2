// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected VMs: private pages are taken away, or given content, with the guest's
 * consent only, whoever has a descriptor of the file; and each has one place.
 */
#include <pthread.h>
#include <sys/wait.h>

#include "protected_vm.h"
#include "sealed_memfd_huge.h"

#define VALUE	0x600df00d600df00dul

/* Memslots that share a file, next to one another in both */
#define PAIR_SLOT	(SLOT + 2)
#define PAIR_GPA	(GPA + 8 * SIZE)
#define PAIR_PAGES	8

/* Where a test has INS write to */
#define STRING_PORT	0x0f

static uint64_t guest_ask(uint64_t gpa, uint64_t nr_pages, uint64_t attrs, uint64_t u1)
{
	return kvm_hypercall(KVM_HC_MAP_GPA_RANGE, gpa, nr_pages, attrs, 0);
}

static uint64_t guest_insb(uint64_t addr, uint64_t u1, uint64_t u2, uint64_t u3)
{
	asm volatile("insb" : "+D" (addr) : "d" (STRING_PORT) : "memory");
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

FIXTURE_SETUP(consent)
{
	struct pvm *p = &self->pvm;

	ASSERT_TRUE(has_vm_type(variant->type));
	self->p = p;
	self->is_protected = variant->type == KVM_X86_PROTECTED_VM;
	pvm_create(p, variant->type, 1);
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
	struct pvm *p = self->p;
	char *data = p->shared + PAGE_SIZE;

	use_pages(p, PAGE, 1);
	EXPECT_REFUSED(EPERM, ftruncate(p->fd, 0));
	EXPECT_REFUSED(EOPNOTSUPP, fallocate(p->fd, FALLOC_FL_ZERO_RANGE, 0, PAGE_SIZE));
	EXPECT_REFUSED(EOPNOTSUPP, fallocate(p->fd, FALLOC_FL_COLLAPSE_RANGE, 0, PAGE_SIZE));

	/* Pages that are not there may come to be, but not with content. */
	EXPECT_REFUSED_IF_PROTECTED(EPERM, pwrite(p->fd, data, PAGE_SIZE, 0));
	EXPECT_REFUSED_IF_PROTECTED(EPERM, pwrite(p->fd, data, 2 * PAGE_SIZE, 8 * PAGE_SIZE));
	EXPECT_EQ(!self->is_protected, is_allocated(p->fd, 0));
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

	/* By KVM, for an instruction of the guest's */
	if (self->is_protected) {
		pvm_start(p, guest_insb, gva_of(PAGE + 2, PRIVATE), 0, 0, 0);
		TEST_ASSERT_KVM_EXIT_REASON(p->vcpu, KVM_EXIT_IO);
		TEST_ASSERT_EQ(p->vcpu->run->io.port, STRING_PORT);
		vcpu_run(p->vcpu);
		pvm_result(p);
		EXPECT_REFUSED(EPERM, punch(p->fd, PAGE + 2, 1));
	}

	/* That of others doesn't matter. */
	EXPECT_EQ(0, punch(p->fd, PAGE + 3, 1));
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
