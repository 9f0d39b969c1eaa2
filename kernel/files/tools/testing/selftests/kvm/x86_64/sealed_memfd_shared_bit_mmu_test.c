// SPDX-License-Identifier: GPL-2.0
/*
 * In a VM with a shared GPA bit each page has two aliases.  Whatever ages pages,
 * takes them away, protects them or changes their memslots has to see both.
 */
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sealed_memfd_page_idle.h"
#include "sealed_memfd_shared_bit_fixture.h"

#define NR_HUGE		(SZ_2M / PAGE_SIZE)
#define LOG		KVM_MEM_LOG_DIRTY_PAGES

/* What is split off */
#define OTHER_SLOTS	(SLOT + 2)

static int set_ordinary(FIXTURE_DATA(shared_bit) *self, uint32_t flags)
{
	return set_slot(self->vm, ORDINARY_SLOT, flags, ORDINARY_GPA, SIZE,
			self->sealed.shared + SIZE, -1, 0);
}

static int set_sealed(FIXTURE_DATA(shared_bit) *self, uint32_t flags)
{
	return set_slot(self->vm, SLOT, flags | KVM_MEM_GUEST_MEMFD, GPA, SIZE,
			self->sealed.shared, self->sealed.fd, 0);
}

/*
 * Aging
 */
TEST_F(shared_bit, age)
{
	const struct {
		unsigned long page;
		uint64_t kind;
	} aliases[] = {
		{ PAGE, SHARED },
		{ NR_PAGES + PAGE, SHARED },
		{ NR_PAGES + PAGE, PRIVATE },
	};
	struct test_vm *tvm = self->tvm;
	unsigned int i, round;
	uint64_t gva, pfn;
	int fd;

	fd = open_page_idle();
	if (fd < 0)
		SKIP(return, "no idle page tracking");

	for (i = 0; i < ARRAY_SIZE(aliases); i++) {
		gva = gva_of(aliases[i].page, aliases[i].kind);
		pfn = pfn_of(shared_page(&self->sealed, aliases[i].page));
		drain_lru();
		for (round = 0; round < 3; round++) {
			guest_read(tvm, gva);
			set_idle(fd, pfn);
			guest_read(tvm, gva_of(1, SHARED));
			EXPECT_TRUE(is_idle(fd, pfn));
			guest_read(tvm, gva);
			EXPECT_FALSE(is_idle(fd, pfn));
		}
	}
	close(fd);
}

/*
 * Dirty logging
 */
static void get_log(FIXTURE_DATA(shared_bit) *self, uint32_t slot, uint64_t *bitmap)
{
	kvm_vm_get_dirty_log(self->vm, slot, bitmap);
}

/* Nothing but these of the first 64 pages may be dirty. */
static void expect_log(struct __test_metadata *_metadata, FIXTURE_DATA(shared_bit) *self,
		       uint32_t slot, uint64_t expected)
{
	uint64_t bitmap[NR_PAGES / 64];
	unsigned long i;

	get_log(self, slot, bitmap);
	EXPECT_EQ(expected, bitmap[0]);
	for (i = 1; i < ARRAY_SIZE(bitmap); i++)
		EXPECT_EQ(0, bitmap[i]);
}

static void clear_log(FIXTURE_DATA(shared_bit) *self, unsigned long nr_pages)
{
	uint64_t bitmap[NR_PAGES / 64];

	memset(bitmap, 0xff, sizeof(bitmap));
	kvm_vm_clear_dirty_log(self->vm, ORDINARY_SLOT, bitmap, 0, nr_pages);
}

/* Writes through either alias, after having been mapped writable before. */
static void write_and_check_log(struct __test_metadata *_metadata,
				FIXTURE_DATA(shared_bit) *self)
{
	uint64_t expected = 0;
	unsigned long i;

	for (i = 0; i < 64; i++) {
		if (i & 1)
			guest_write(self->tvm, gva_of(NR_PAGES + i, PRIVATE), i);
		if (i & 2)
			guest_write(self->tvm, gva_of(NR_PAGES + i, SHARED), i);
		if (i & 3)
			expected |= BIT_ULL(i);
	}
	expect_log(_metadata, self, ORDINARY_SLOT, expected);
}

static void write_both(FIXTURE_DATA(shared_bit) *self)
{
	unsigned long i;

	for (i = 0; i < 64; i++) {
		guest_write(self->tvm, gva_of(NR_PAGES + i, PRIVATE), 1);
		guest_write(self->tvm, gva_of(NR_PAGES + i, SHARED), 2);
	}
}

static void check_content(struct __test_metadata *_metadata, FIXTURE_DATA(shared_bit) *self)
{
	unsigned long i;

	for (i = 0; i < 64; i++) {
		EXPECT_EQ(i & 3 ? i : 2, guest_read(self->tvm, gva_of(NR_PAGES + i, SHARED)));
		EXPECT_EQ(i & 3 ? i : 2, guest_read(self->tvm, gva_of(NR_PAGES + i, PRIVATE)));
	}
}

TEST_F(shared_bit, dirty_log)
{
	int i, round;

	for (round = 0; round < 2; round++) {
		write_both(self);
		ASSERT_EQ(0, set_ordinary(self, LOG));
		for (i = 0; i < 3; i++)
			write_and_check_log(_metadata, self);
		ASSERT_EQ(0, set_ordinary(self, 0));
	}
	check_content(_metadata, self);
}

TEST_F(shared_bit, dirty_log_manual)
{
	int i;

	vm_enable_cap(self->vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
	write_both(self);
	ASSERT_EQ(0, set_ordinary(self, LOG));
	for (i = 0; i < 3; i++) {
		write_and_check_log(_metadata, self);
		clear_log(self, NR_PAGES);
	}
	check_content(_metadata, self);
}

/* A new shared half, of huge pages, for one of the memslots */
static void make_huge(FIXTURE_DATA(shared_bit) *self, unsigned long page)
{
	void *shared = shared_page(&self->sealed, page);

	TEST_ASSERT(mmap(shared, SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == shared,
		    "mmap() failed");
	TEST_ASSERT(!madvise(shared, SIZE, MADV_HUGEPAGE), "madvise() failed");
	memset(shared, 0, SIZE);
}

static uint64_t nr_huge(FIXTURE_DATA(shared_bit) *self)
{
	return vm_get_stat(self->vm, "pages_2m");
}

TEST_F(shared_bit, dirty_log_of_huge_pages)
{
	struct test_vm *tvm = self->tvm;
	uint64_t before;
	int round;

	make_huge(self, NR_PAGES);
	before = nr_huge(self);
	for (round = 0; round < 2; round++) {
		/* Joined again, when there is no log any more. */
		guest_write(tvm, gva_of(NR_PAGES + PAGE, PRIVATE), 1);
		guest_write(tvm, gva_of(NR_PAGES + PAGE, SHARED), 2);
		if (nr_huge(self) != before + 2 && !round)
			SKIP(return, "no huge pages");
		EXPECT_EQ(before + 2, nr_huge(self));

		/* Both are split. */
		ASSERT_EQ(0, set_ordinary(self, LOG));
		EXPECT_EQ(before, nr_huge(self));
		guest_write(tvm, gva_of(NR_PAGES + PAGE, PRIVATE), 3);
		expect_log(_metadata, self, ORDINARY_SLOT, BIT(PAGE));
		guest_write(tvm, gva_of(NR_PAGES + PAGE + 1, SHARED), 3);
		expect_log(_metadata, self, ORDINARY_SLOT, BIT(PAGE + 1));
		EXPECT_EQ(before, nr_huge(self));
		ASSERT_EQ(0, set_ordinary(self, 0));
	}
	EXPECT_EQ(3, guest_read(tvm, gva_of(NR_PAGES + PAGE, SHARED)));
	EXPECT_EQ(3, guest_read(tvm, gva_of(NR_PAGES + PAGE + 1, PRIVATE)));
}

/* All pages are dirty at first, and protected only when that is cleared. */
TEST_F(shared_bit, dirty_log_initially_set)
{
	uint64_t bitmap[NR_PAGES / 64];
	struct test_vm *tvm = self->tvm;
	uint64_t before;

	vm_enable_cap(self->vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
	make_huge(self, NR_PAGES);
	before = nr_huge(self);
	guest_write(tvm, gva_of(NR_PAGES + PAGE, PRIVATE), 1);
	guest_write(tvm, gva_of(NR_PAGES + PAGE, SHARED), 2);
	if (nr_huge(self) != before + 2)
		SKIP(return, "no huge pages");

	ASSERT_EQ(0, set_ordinary(self, LOG));
	EXPECT_EQ(before + 2, nr_huge(self));
	get_log(self, ORDINARY_SLOT, bitmap);
	EXPECT_EQ(~0ul, bitmap[0]);

	clear_log(self, 64);
	EXPECT_EQ(before, nr_huge(self));
	get_log(self, ORDINARY_SLOT, bitmap);
	EXPECT_EQ(0, bitmap[0]);
	EXPECT_EQ(~0ul, bitmap[1]);
	guest_write(tvm, gva_of(NR_PAGES + PAGE, PRIVATE), 3);
	guest_write(tvm, gva_of(NR_PAGES + PAGE + 1, SHARED), 4);
	get_log(self, ORDINARY_SLOT, bitmap);
	EXPECT_EQ(BIT(PAGE) | BIT(PAGE + 1), bitmap[0]);

	clear_log(self, NR_PAGES);
	expect_log(_metadata, self, ORDINARY_SLOT, 0);
	guest_write(tvm, gva_of(NR_PAGES + PAGE, SHARED), 5);
	guest_write(tvm, gva_of(NR_PAGES + PAGE + 1, PRIVATE), 6);
	expect_log(_metadata, self, ORDINARY_SLOT, BIT(PAGE) | BIT(PAGE + 1));
	EXPECT_EQ(5, guest_read(tvm, gva_of(NR_PAGES + PAGE, PRIVATE)));
	EXPECT_EQ(6, guest_read(tvm, gva_of(NR_PAGES + PAGE + 1, SHARED)));
}

/* Each page has one alias that counts, until it is converted. */
TEST_F(shared_bit, dirty_log_of_private_half)
{
	struct test_vm *tvm = self->tvm;
	int round;

	ASSERT_EQ(0, to_private(&self->sealed, 2, 2));
	for (round = 0; round < 3; round++) {
		guest_write(tvm, gva_of(0, SHARED), SHARED_VALUE(0));
		guest_write(tvm, gva_of(1, SHARED), SHARED_VALUE(1));
		guest_write(tvm, gva_of(2, PRIVATE), PRIVATE_VALUE(2));
		guest_write(tvm, gva_of(3, PRIVATE), PRIVATE_VALUE(3));
		ASSERT_EQ(0, set_sealed(self, LOG));
		expect_log(_metadata, self, SLOT, 0);

		EXPECT_EQ(SHARED_VALUE(0), guest_read(tvm, gva_of(0, SHARED)));
		EXPECT_EQ(PRIVATE_VALUE(2), guest_read(tvm, gva_of(2, PRIVATE)));
		expect_log(_metadata, self, SLOT, 0);
		guest_write(tvm, gva_of(0, SHARED), 1);
		expect_log(_metadata, self, SLOT, BIT(0));
		guest_write(tvm, gva_of(2, PRIVATE), 2);
		expect_log(_metadata, self, SLOT, BIT(2));

		/* The fault is nothing, the conversion is. */
		guest_command_set(tvm, GUEST_WRITE, gva_of(1, PRIVATE), 3);
		expect_mismatch(_metadata, tvm, 1, PRIVATE);
		expect_log(_metadata, self, SLOT, 0);
		ASSERT_EQ(0, convert(self, 1, PRIVATE));
		expect_log(_metadata, self, SLOT, BIT(1));
		guest_continue(tvm);
		expect_log(_metadata, self, SLOT, BIT(1));

		guest_command_set(tvm, GUEST_WRITE, gva_of(3, SHARED), 4);
		expect_mismatch(_metadata, tvm, 3, SHARED);
		expect_log(_metadata, self, SLOT, 0);
		ASSERT_EQ(0, convert(self, 3, SHARED));
		expect_log(_metadata, self, SLOT, BIT(3));
		guest_continue(tvm);
		expect_log(_metadata, self, SLOT, BIT(3));

		/* The flag changes nothing else. */
		ASSERT_EQ(0, set_sealed(self, 0));
		EXPECT_EQ(1, guest_read(tvm, gva_of(0, SHARED)));
		EXPECT_EQ(3, guest_read(tvm, gva_of(1, PRIVATE)));
		EXPECT_EQ(2, guest_read(tvm, gva_of(2, PRIVATE)));
		EXPECT_EQ(4, guest_read(tvm, gva_of(3, SHARED)));
		guest_command_set(tvm, GUEST_READ, gva_of(1, SHARED), 0);
		expect_mismatch(_metadata, tvm, 1, SHARED);
		ASSERT_EQ(0, convert(self, 1, SHARED));
		EXPECT_EQ(SHARED_VALUE(1), guest_continue(tvm));
		guest_command_set(tvm, GUEST_READ, gva_of(3, PRIVATE), 0);
		expect_mismatch(_metadata, tvm, 3, PRIVATE);
		ASSERT_EQ(0, convert(self, 3, PRIVATE));
		EXPECT_EQ(0, guest_continue(tvm));
	}
}

/*
 * Read-only memslots: what is meant for private memory never exits as MMIO, with
 * which userspace would get it.
 */
static __attribute__((naked)) void guest_emulated_store(void)
{
	asm volatile(KVM_FEP "movq $1, (%rdi); ret");
}

static void expect_mmio_write(struct __test_metadata *_metadata, struct test_vm *tvm,
			      unsigned long page, uint64_t value)
{
	struct kvm_run *run = tvm->vcpu->run;

	vcpu_run(tvm->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_MMIO);
	EXPECT_TRUE(run->mmio.is_write);
	EXPECT_EQ(gpa_of(page), run->mmio.phys_addr);
	EXPECT_EQ(value, *(uint64_t *)run->mmio.data);
	guest_continue(tvm);
}

/* The guest is to write 1, as the CPU does it or as KVM does. */
static void write_to(struct test_vm *tvm, uint64_t gva, bool emulated)
{
	if (emulated)
		guest_command_set(tvm, GUEST_CALL, (uint64_t)guest_emulated_store, gva);
	else
		guest_command_set(tvm, GUEST_WRITE, gva, 1);
}

static void expect_no_write(struct __test_metadata *_metadata, struct test_vm *tvm,
			    uint64_t kind, bool emulated)
{
	int i;

	for (i = 0; i < 2; i++) {
		expect_mismatch(_metadata, tvm, PAGE, kind);
		if (emulated)
			emulate_again(tvm->vcpu);
	}
}

/* The same for a page that is private, and to be written as that. */
static void expect_no_private_write(struct __test_metadata *_metadata, struct test_vm *tvm,
				    bool emulated)
{
	if (!emulated) {
		expect_no_write(_metadata, tvm, PRIVATE, false);
		return;
	}

	vcpu_run(tvm->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(tvm->vcpu, KVM_EXIT_INTERNAL_ERROR);
	EXPECT_EQ(KVM_INTERNAL_ERROR_EMULATION, tvm->vcpu->run->internal.suberror);
	emulate_again(tvm->vcpu);
}

static void check_read_only(struct __test_metadata *_metadata, FIXTURE_DATA(shared_bit) *self,
			    bool emulated)
{
	uint64_t content[PAGE_SIZE / 8] = { PRIVATE_VALUE(PAGE) };
	struct test_vm *tvm = self->tvm;

	/* Or else the guest would get an exception, too. */
	vm_enable_cap(self->vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1);
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, set_sealed(self, KVM_MEM_READONLY));

	write_to(tvm, gva_of(PAGE, SHARED), emulated);
	expect_mmio_write(_metadata, tvm, PAGE, 1);
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_read(tvm, gva_of(PAGE, SHARED)));
	write_to(tvm, gva_of(PAGE, SHARED), emulated);
	expect_mmio_write(_metadata, tvm, PAGE, 1);

	/* It can't be written to as private, whatever it is. */
	write_to(tvm, gva_of(PAGE, PRIVATE), emulated);
	expect_no_write(_metadata, tvm, PRIVATE, emulated);
	ASSERT_EQ(PAGE_SIZE, pwrite(self->sealed.fd, content, PAGE_SIZE, PAGE * PAGE_SIZE));
	expect_no_private_write(_metadata, tvm, emulated);
	ASSERT_EQ(0, convert(self, PAGE, SHARED));
	expect_no_write(_metadata, tvm, PRIVATE, emulated);

	/* In another memslot it can. */
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, set_sealed(self, 0));
	ASSERT_EQ(0, convert(self, PAGE, PRIVATE));
	guest_continue(tvm);
	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	ASSERT_EQ(0, set_sealed(self, KVM_MEM_READONLY));
	EXPECT_EQ(1, guest_read(tvm, gva_of(PAGE, PRIVATE)));

	write_to(tvm, gva_of(PAGE, SHARED), emulated);
	expect_no_write(_metadata, tvm, SHARED, emulated);
	EXPECT_EQ(SHARED_VALUE(PAGE), *shared_page(&self->sealed, PAGE));
	ASSERT_EQ(0, convert(self, PAGE, SHARED));
	expect_mmio_write(_metadata, tvm, PAGE, 1);
	EXPECT_EQ(SHARED_VALUE(PAGE), *shared_page(&self->sealed, PAGE));
}

TEST_F(shared_bit, read_only)
{
	check_read_only(_metadata, self, false);
}

TEST_F(shared_bit, read_only_emulated)
{
	if (!force_emulation())
		SKIP(return, "no forced emulation");

	check_read_only(_metadata, self, true);
}

/*
 * Splitting and merging
 */
/* Mappings that cross a border go, by whichever alias. */
TEST_F(shared_bit, split_huge_pages)
{
	struct test_vm *tvm = self->tvm;
	const struct {
		uint32_t slot;
		unsigned long page;
		unsigned int nr_aliases;
	} slots[] = {
		{ SLOT, 0, 1 },
		{ ORDINARY_SLOT, NR_PAGES, 2 },
	};
	unsigned long page, i, j;
	uint64_t before;

	for (i = 0; i < ARRAY_SIZE(slots); i++) {
		page = slots[i].page;
		make_huge(self, page);
		before = nr_huge(self);
		for (j = 0; j < 2; j++) {
			guest_write(tvm, gva_of(page + j * NR_HUGE, SHARED), j);
			if (slots[i].nr_aliases == 2)
				guest_read(tvm, gva_of(page + j * NR_HUGE, PRIVATE));
		}
		if (nr_huge(self) != before + 2 * slots[i].nr_aliases)
			SKIP(return, "no huge pages");

		ASSERT_EQ(0, split_region(self->vm, slots[i].slot, NR_HUGE / 2, NR_HUGE,
					  slots[i].slot, OTHER_SLOTS, OTHER_SLOTS + 1));
		EXPECT_EQ(before, nr_huge(self));
		for (j = 0; j < 2; j++) {
			EXPECT_EQ(j, guest_read(tvm, gva_of(page + j * NR_HUGE, SHARED)));
			if (slots[i].nr_aliases == 2)
				EXPECT_EQ(j, guest_read(tvm, gva_of(page + j * NR_HUGE,
								    PRIVATE)));
		}
		EXPECT_EQ(before, nr_huge(self));

		ASSERT_EQ(0, merge_regions(self->vm, slots[i].slot, gpa_of(page), NR_PAGES));
		for (j = 0; j < 2; j++) {
			EXPECT_EQ(0, guest_read(tvm, gva_of(page + j * NR_HUGE + 1, SHARED)));
			if (slots[i].nr_aliases == 2)
				EXPECT_EQ(0, guest_read(tvm, gva_of(page + j * NR_HUGE + 1,
								    PRIVATE)));
		}
		EXPECT_EQ(before + 2 * slots[i].nr_aliases, nr_huge(self));
	}
}

/* What each alias gives stays as it is, and can be converted. */
TEST_F(shared_bit, split_and_merge)
{
	const unsigned long border = NR_HUGE / 2;
	struct test_vm *tvm = self->tvm;
	unsigned long i;
	uint64_t kind;
	int round;

	for (i = border - 2; i < border + 2; i++) {
		ASSERT_EQ(0, convert(self, i, i & 1 ? PRIVATE : SHARED));
		guest_write(tvm, gva_of(i, i & 1 ? PRIVATE : SHARED), i);
	}

	for (round = 0; round < 4; round++) {
		ASSERT_EQ(0, round & 1 ? merge_regions(self->vm, SLOT, GPA, NR_PAGES) :
					 split_region(self->vm, SLOT, border, NR_HUGE, SLOT,
						      OTHER_SLOTS, OTHER_SLOTS + 1));

		for (i = border - 2; i < border + 2; i++) {
			kind = (i + round) & 1 ? PRIVATE : SHARED;
			EXPECT_EQ(i + round, guest_read(tvm, gva_of(i, kind)));

			kind ^= PRIVATE;
			guest_command_set(tvm, GUEST_WRITE, gva_of(i, kind), i + round + 1);
			expect_mismatch(_metadata, tvm, i, kind);
			ASSERT_EQ(0, convert(self, i, kind));
			guest_continue(tvm);
		}
	}
}

/* A write of whole pages converts them, and what the guest asks for is there. */
TEST_F(shared_bit, initial_content)
{
	uint64_t content[PAGE_SIZE / 8] = { PRIVATE_VALUE(PAGE) };
	struct test_vm *tvm = self->tvm;

	guest_command_set(tvm, GUEST_READ, gva_of(PAGE, PRIVATE), 0);
	expect_mismatch(_metadata, tvm, PAGE, PRIVATE);
	ASSERT_EQ(PAGE_SIZE, pwrite(self->sealed.fd, content, PAGE_SIZE, PAGE * PAGE_SIZE));
	EXPECT_EQ(PRIVATE_VALUE(PAGE), guest_continue(tvm));

	guest_command_set(tvm, GUEST_READ, gva_of(PAGE, SHARED), 0);
	expect_mismatch(_metadata, tvm, PAGE, SHARED);
	EXPECT_REFUSED(EEXIST, pwrite(self->sealed.fd, content, PAGE_SIZE, PAGE * PAGE_SIZE));
	expect_mismatch(_metadata, tvm, PAGE, SHARED);
	ASSERT_EQ(0, convert(self, PAGE, SHARED));
	EXPECT_EQ(SHARED_VALUE(PAGE), guest_continue(tvm));

	/* A mapping of what was shared ends, too. */
	content[0] = PRIVATE_VALUE(1);
	ASSERT_EQ(PAGE_SIZE, pwrite(self->sealed.fd, content, PAGE_SIZE, PAGE * PAGE_SIZE));
	EXPECT_EQ(PRIVATE_VALUE(1), guest_read(tvm, gva_of(PAGE, PRIVATE)));
	guest_command_set(tvm, GUEST_READ, gva_of(PAGE, SHARED), 0);
	expect_mismatch(_metadata, tvm, PAGE, SHARED);
}

/*
 * Attributes are those of the gfn without the bit, also for a fault that is served
 * by another thread.
 */
static void *serve_page(void *data)
{
	const uint64_t content[PAGE_SIZE / 8] = { SHARED_VALUE(0) };
	struct uffdio_copy copy = { .src = (uint64_t)content, .len = PAGE_SIZE };
	int uffd = *(int *)data;
	struct uffd_msg msg;

	TEST_ASSERT(read(uffd, &msg, sizeof(msg)) == sizeof(msg), "No page fault");
	copy.dst = msg.arg.pagefault.address & PAGE_MASK;
	TEST_ASSERT(!ioctl(uffd, UFFDIO_COPY, &copy), "UFFDIO_COPY failed");
	return NULL;
}

TEST_F(shared_bit, attributes_at_shared_alias)
{
	const unsigned long page = NR_PAGES + PAGE;
	void *shared = shared_page(&self->sealed, page);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { .start = (uint64_t)shared, .len = PAGE_SIZE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	pthread_t thread;
	int uffd;

	if (variant->type != KVM_X86_SW_PROTECTED_VM)
		SKIP(return, "no memory attributes");

	uffd = syscall(__NR_userfaultfd, 0);
	if (uffd < 0)
		SKIP(return, "no userfaultfd");

	vm_set_memory_attributes(self->vm, gpa_of(page) | self->bit, PAGE_SIZE,
				 KVM_MEMORY_ATTRIBUTE_PRIVATE);
	EXPECT_EQ(SHARED_VALUE(page), guest_read(self->tvm, gva_of(page, SHARED)));

	ASSERT_EQ(0, ioctl(uffd, UFFDIO_API, &api));
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_REGISTER, &reg));
	ASSERT_EQ(0, madvise(shared, PAGE_SIZE, MADV_DONTNEED));
	ASSERT_EQ(0, pthread_create(&thread, NULL, serve_page, &uffd));
	EXPECT_EQ(SHARED_VALUE(0), guest_read(self->tvm, gva_of(page, SHARED)));
	pthread_join(thread, NULL);
	EXPECT_EQ(SHARED_VALUE(0), guest_read(self->tvm, gva_of(page, PRIVATE)));
	close(uffd);
}

/*
 * SMM: its handler has the bit clear in all addresses, until it turns on paging.
 */
#define SMM_PORT	0x0c
#define SMRAM_SLOT	(SLOT + 5)
#define SMRAM_SMM_SLOT	(SMRAM_SLOT | 1 << 16)
#define SMRAM_GPA	(768ul << 20)
#define SMRAM_SIZE	(16 * PAGE_SIZE)
/* Where the handler is, where it stores to, and where KVM saves the state */
#define SMM_HANDLER	8
#define SMM_DATA	1
#define SMM_STATE	15

static bool is_zero(const char *page)
{
	return !*page && !memcmp(page, page + 1, PAGE_SIZE - 1);
}

TEST_F(shared_bit, smm)
{
	/* movb $1, SMRAM_GPA + SMM_DATA * PAGE_SIZE; out %al, $SMM_PORT; rsm */
	const char handler[PAGE_SIZE] = {
		0x67, 0xc6, 0x05, 0x00, 0x10, 0x00, 0x30, 0x01, 0xe6, SMM_PORT, 0x0f, 0xaa,
	};
	struct kvm_vcpu *vcpu = self->tvm->vcpu;
	char *shared;
	int fd, i;

	if (variant->type != KVM_X86_DEFAULT_VM || !kvm_has_cap(KVM_CAP_X86_SMM))
		SKIP(return, "no SMM");

	shared = mmap(NULL, SMRAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	ASSERT_NE(MAP_FAILED, shared);
	fd = new_sealed_memfd(SMRAM_SIZE);
	ASSERT_EQ(0, set_slot(self->vm, SMRAM_SLOT, KVM_MEM_GUEST_MEMFD, SMRAM_GPA, SMRAM_SIZE,
			      shared, fd, 0));
	ASSERT_EQ(0, set_slot(self->vm, SMRAM_SMM_SLOT, KVM_MEM_GUEST_MEMFD, SMRAM_GPA,
			      SMRAM_SIZE, shared, fd, 0));
	vcpu_set_msr(vcpu, MSR_IA32_SMBASE, SMRAM_GPA);

	/* The state is saved in private memory, then in shared, and found there. */
	ASSERT_EQ(0, fallocate(fd, 0, SMM_STATE * PAGE_SIZE, PAGE_SIZE));
	for (i = 0; i < 2; i++) {
		inject_smi(vcpu);
		guest_command_set(self->tvm, GUEST_READ, gva_of(PAGE, SHARED), 0);
		expect_memory_fault(_metadata, self->tvm, SMRAM_GPA + SMM_HANDLER * PAGE_SIZE,
				    PRIVATE, EFAULT);
		ASSERT_EQ(PAGE_SIZE, pwrite(fd, handler, PAGE_SIZE, SMM_HANDLER * PAGE_SIZE));
		expect_memory_fault(_metadata, self->tvm, SMRAM_GPA + SMM_DATA * PAGE_SIZE,
				    PRIVATE, EFAULT);
		ASSERT_EQ(0, fallocate(fd, 0, SMM_DATA * PAGE_SIZE, PAGE_SIZE));
		vcpu_run(vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
		EXPECT_EQ(SMM_PORT, vcpu->run->io.port);
		EXPECT_TRUE(vcpu->run->flags & KVM_RUN_X86_SMM);
		EXPECT_EQ(SHARED_VALUE(PAGE), guest_continue(self->tvm));
		EXPECT_FALSE(vcpu->run->flags & KVM_RUN_X86_SMM);

		EXPECT_EQ(!i, is_zero(shared + SMM_STATE * PAGE_SIZE));
		EXPECT_TRUE(is_zero(shared + SMM_DATA * PAGE_SIZE));
		EXPECT_TRUE(is_zero(shared + SMM_HANDLER * PAGE_SIZE));
		ASSERT_EQ(0, fallocate(fd, PUNCH, 0, SMRAM_SIZE));
	}
	close(fd);
	munmap(shared, SMRAM_SIZE);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_X86_SHARED_GPA_BIT));

	return test_harness_run(argc, argv);
}
