// SPDX-License-Identifier: GPL-2.0
/*
 * Private memory that starts with content: write() to pages of a guest-sealed
 * memfd that are not allocated converts them, and the guest finds there what was
 * written.
 *
 * Which ranges and sources are refused is the memfd selftests' matter.
 */
#include <pthread.h>
#include <string.h>
#include <sys/sendfile.h>
#include <unistd.h>

#include "sealed_memfd.h"

#define NR_WRITTEN	8ul
#define WRITTEN_SIZE	(NR_WRITTEN * PAGE_SIZE)
#define LAST_WORD	(PAGE_SIZE - 8)

/* Content for @nr pages, told apart by the first and the last word of each. */
static uint64_t *new_content(unsigned long nr)
{
	char *content = mmap(NULL, nr * PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned long i;

	TEST_ASSERT(content != MAP_FAILED, __KVM_SYSCALL_ERROR("mmap()", -1));
	for (i = 0; i < nr; i++) {
		*(uint64_t *)(content + i * PAGE_SIZE) = PRIVATE_VALUE(i);
		*(uint64_t *)(content + i * PAGE_SIZE + LAST_WORD) = ~PRIVATE_VALUE(i);
	}
	return (uint64_t *)content;
}

static ssize_t write_pages(FIXTURE_DATA(sealed) *self, const void *content,
			   unsigned long page, unsigned long nr_pages)
{
	return pwrite(self->fd, content, nr_pages * PAGE_SIZE, page * PAGE_SIZE);
}

/* How many of the pages don't have the content, or not only for the guest. */
static unsigned long nr_wrong(FIXTURE_DATA(sealed) *self, unsigned long page,
			      unsigned long nr_pages)
{
	unsigned long i, nr = 0;

	for (i = 0; i < nr_pages; i++) {
		nr += guest_read(&self->tvm, gpa_of(page + i)) != PRIVATE_VALUE(i) ||
		      guest_read(&self->tvm, gpa_of(page + i) + LAST_WORD) !=
		      ~PRIVATE_VALUE(i) ||
		      *shared_page(self, page + i) != SHARED_VALUE(page + i);
	}
	return nr;
}

TEST_F(sealed, content)
{
	void *content = new_content(NR_WRITTEN);
	unsigned long i;

	EXPECT_EQ(WRITTEN_SIZE, write_pages(self, content, PAGE, NR_WRITTEN));
	EXPECT_EQ(0, nr_wrong(self, PAGE, NR_WRITTEN));

	/* Neighbours are what they were. */
	EXPECT_EQ(SHARED_VALUE(PAGE - 1), guest_read(&self->tvm, gpa_of(PAGE - 1)));
	EXPECT_EQ(SHARED_VALUE(PAGE + NR_WRITTEN),
		  guest_read(&self->tvm, gpa_of(PAGE + NR_WRITTEN)));

	/* These are pages like others. */
	for (i = 0; i < NR_WRITTEN; i++)
		guest_write(&self->tvm, gpa_of(PAGE + i), i);
	ASSERT_EQ(0, to_private(self, 0, NR_PAGES));
	for (i = 0; i < NR_WRITTEN; i++)
		EXPECT_EQ(i, guest_read(&self->tvm, gpa_of(PAGE + i)));
	ASSERT_EQ(0, to_shared(self, 0, NR_PAGES));
	for (i = 0; i < NR_WRITTEN; i++)
		EXPECT_EQ(SHARED_VALUE(PAGE + i), guest_read(&self->tvm, gpa_of(PAGE + i)));
	ASSERT_EQ(0, to_private(self, PAGE, NR_WRITTEN));
	for (i = 0; i < NR_WRITTEN; i++)
		EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(PAGE + i)));
}

TEST_F(sealed, content_of_all_pages)
{
	void *content = new_content(NR_PAGES);

	EXPECT_EQ(SIZE, write_pages(self, content, 0, NR_PAGES));
	EXPECT_EQ(0, nr_wrong(self, 0, NR_PAGES));
}

TEST_F(sealed, content_before_binding)
{
	void *content = new_content(NR_WRITTEN);

	ASSERT_EQ(0, delete_slot(self->vm, SLOT));
	EXPECT_EQ(WRITTEN_SIZE, write_pages(self, content, PAGE, NR_WRITTEN));
	ASSERT_EQ(0, add_slot(self, SLOT, 0, NR_PAGES));
	EXPECT_EQ(0, nr_wrong(self, PAGE, NR_WRITTEN));
}

TEST_F(sealed, content_ends_mappings)
{
	void *content = new_content(1);
	int i;

	/* The guest has the shared page in its TLB. */
	for (i = 0; i < 100; i++) {
		guest_write(&self->tvm, gpa_of(PAGE), SHARED_VALUE(PAGE));
		ASSERT_EQ(PAGE_SIZE, write_pages(self, content, PAGE, 1));
		ASSERT_EQ(0, nr_wrong(self, PAGE, 1));
		guest_write(&self->tvm, gpa_of(PAGE), i);
		ASSERT_EQ(SHARED_VALUE(PAGE), *shared_page(self, PAGE));
		ASSERT_EQ(0, to_shared(self, PAGE, 1));
	}
}

TEST_F(sealed, never_overwrites)
{
	void *content = new_content(NR_WRITTEN);
	unsigned long i;

	ASSERT_EQ(0, to_private(self, PAGE + 5, 1));
	guest_write(&self->tvm, gpa_of(PAGE + 5), 5);
	EXPECT_REFUSED(EEXIST, write_pages(self, content, PAGE + 5, 1));
	EXPECT_REFUSED(EEXIST, write_pages(self, content, PAGE, NR_WRITTEN));
	for (i = 0; i < NR_WRITTEN; i++)
		EXPECT_EQ(i == 5 ? 5 : SHARED_VALUE(PAGE + i),
			  guest_read(&self->tvm, gpa_of(PAGE + i)));

	/* Not even what the guest has not touched yet. */
	ASSERT_EQ(0, to_private(self, PAGE, 1));
	EXPECT_REFUSED(EEXIST, write_pages(self, content, PAGE, 1));
	EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(PAGE)));
}

/* What is in the shared half, which the guest has mapped, becomes private. */
TEST_F(sealed, content_from_shared_half)
{
	unsigned long i;

	for (i = 0; i < NR_PAGES; i++)
		guest_write(&self->tvm, gpa_of(i), SHARED_VALUE(i) + 1);
	ASSERT_EQ(SIZE, write_pages(self, self->shared, 0, NR_PAGES));
	for (i = 0; i < NR_PAGES; i++)
		ASSERT_EQ(SHARED_VALUE(i) + 1, guest_read(&self->tvm, gpa_of(i)));
	guest_write(&self->tvm, gpa_of(PAGE), PRIVATE_VALUE(PAGE));
	EXPECT_EQ(SHARED_VALUE(PAGE) + 1, *shared_page(self, PAGE));

	/* The page, and those after it, are yet to be faulted in. */
	ASSERT_EQ(0, to_shared(self, 0, NR_PAGES));
	ASSERT_EQ(0, madvise(self->shared, SIZE, MADV_DONTNEED));
	ASSERT_EQ(SIZE, write_pages(self, self->shared, 0, NR_PAGES));
	EXPECT_EQ(0, guest_read(&self->tvm, gpa_of(PAGE)));
}

TEST_F(sealed, content_up_to_bad_source)
{
	uint64_t *content = new_content(NR_WRITTEN);
	const unsigned long bad = 3;

	ASSERT_EQ(0, munmap((void *)content + bad * PAGE_SIZE, PAGE_SIZE));
	EXPECT_EQ(bad * PAGE_SIZE, write_pages(self, content, PAGE, NR_WRITTEN));
	EXPECT_EQ(0, nr_wrong(self, PAGE, bad));
	EXPECT_REFUSED(EFAULT, write_pages(self, (void *)content + bad * PAGE_SIZE,
					   PAGE + bad, 1));
	/* All but the last word of a page */
	EXPECT_REFUSED(EFAULT, write_pages(self, (void *)content + bad * PAGE_SIZE -
					   LAST_WORD, PAGE + bad, 1));
	EXPECT_EQ(SHARED_VALUE(PAGE + bad), guest_read(&self->tvm, gpa_of(PAGE + bad)));
}

TEST_F(sealed, content_from_file)
{
	int file = memfd_create("sealed_memfd_initial_content_test", 0);
	void *content = new_content(NR_WRITTEN);

	ASSERT_EQ(WRITTEN_SIZE, write(file, content, WRITTEN_SIZE));
	ASSERT_EQ(0, lseek(file, 0, SEEK_SET));
	ASSERT_EQ(PAGE * PAGE_SIZE, lseek(self->fd, PAGE * PAGE_SIZE, SEEK_SET));
	EXPECT_EQ(WRITTEN_SIZE, sendfile(self->fd, file, NULL, WRITTEN_SIZE));
	EXPECT_EQ(0, nr_wrong(self, PAGE, NR_WRITTEN));

	/* The copy is the guest's own. */
	memset(content, 0, WRITTEN_SIZE);
	ASSERT_EQ(WRITTEN_SIZE, pwrite(file, content, WRITTEN_SIZE, 0));
	EXPECT_EQ(0, nr_wrong(self, PAGE, NR_WRITTEN));
	close(file);
}

/* What a VMM loads firmware for */
TEST_F(sealed, run_content)
{
	/* mov (%rdi),%rax; ret */
	uint64_t *content = new_content(1);

	content[0] = 0xc3078b48;
	memset(shared_page(self, PAGE), 0xf4, PAGE_SIZE);
	ASSERT_EQ(PAGE_SIZE, write_pages(self, content, PAGE, 1));
	EXPECT_EQ(SHARED_VALUE(0),
		  guest_run(&self->tvm, GUEST_CALL, gpa_of(PAGE), gpa_of(0)));
}

struct reader {
	struct test_vm *tvm;
	bool stop;
	unsigned long nr_shared, nr_private, nr_other;
};

static void *read_all_the_time(void *data)
{
	struct reader *reader = data;
	uint64_t value;

	while (!READ_ONCE(reader->stop)) {
		value = guest_read(reader->tvm, gpa_of(PAGE) + LAST_WORD);
		if (value == SHARED_VALUE(PAGE))
			WRITE_ONCE(reader->nr_shared, reader->nr_shared + 1);
		else if (value == ~PRIVATE_VALUE(0))
			WRITE_ONCE(reader->nr_private, reader->nr_private + 1);
		else
			reader->nr_other++;
	}
	return NULL;
}

/* The guest never sees a private page without its content. */
TEST_F(sealed, content_while_guest_runs)
{
	struct reader reader = { .tvm = &self->tvm };
	void *content = new_content(NR_WRITTEN);
	unsigned long seen;
	pthread_t thread;
	int i;

	shared_page(self, PAGE)[LAST_WORD / 8] = SHARED_VALUE(PAGE);
	ASSERT_EQ(0, pthread_create(&thread, NULL, read_all_the_time, &reader));
	for (i = 0; i < 200; i++) {
		ASSERT_EQ(WRITTEN_SIZE, write_pages(self, content, PAGE, NR_WRITTEN));
		seen = READ_ONCE(reader.nr_private);
		while (READ_ONCE(reader.nr_private) == seen && !reader.nr_other)
			sched_yield();
		ASSERT_EQ(0, to_shared(self, PAGE, NR_WRITTEN));
		seen = READ_ONCE(reader.nr_shared);
		while (READ_ONCE(reader.nr_shared) == seen && !reader.nr_other)
			sched_yield();
	}
	WRITE_ONCE(reader.stop, true);
	pthread_join(thread, NULL);
	EXPECT_EQ(0, reader.nr_other);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_SEALED_MEMFD));

	return test_harness_run(argc, argv);
}
