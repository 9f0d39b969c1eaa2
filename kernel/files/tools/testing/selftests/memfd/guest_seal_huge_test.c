// SPDX-License-Identifier: GPL-2.0
/*
 * Huge pages in memfds with F_SEAL_GUEST: who gets them, and that what is allocated
 * is what was asked for, whatever the size of the pages.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest_seal.h"

#define SHMEM_ENABLED	"/sys/kernel/mm/transparent_hugepage/shmem_enabled"
#define PMD_SIZE	"/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"

#ifndef MFD_HUGEPAGE
#define MFD_HUGEPAGE	0x1000U
#endif

#define NR_HUGE		16

static size_t huge_size;

/* One of the words of a file such as shmem_enabled is in brackets. */
static bool read_choice(const char *path, char *choice, size_t size)
{
	char buf[128] = "", *start, *end;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t ret;

	if (fd < 0)
		return false;
	ret = read(fd, buf, sizeof(buf) - 1);
	close(fd);

	start = strchr(buf, '[');
	end = strchr(buf, ']');
	if (ret <= 0 || !start || !end || (size_t)(end - start) > size)
		return false;
	*end = 0;
	strcpy(choice, start + 1);
	return true;
}

/* In the whole system, so there must be nobody else who uses them. */
static long nr_huge_pages(void)
{
	char line[128];
	long kb = -1;
	FILE *f = fopen("/proc/meminfo", "r");

	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "ShmemHugePages: %ld kB", &kb) == 1)
			break;
	fclose(f);
	return kb < 0 ? -1 : (long)(kb * 1024 / huge_size);
}

/* Is what lseek() finds in [@start, @end) allocated, all of it or nothing? */
static bool range_is(int fd, off_t start, off_t end, bool allocated)
{
	off_t data = lseek(fd, start, SEEK_DATA), hole = lseek(fd, start, SEEK_HOLE);

	if (allocated)
		return data == start && hole >= end;
	return hole == start && (data >= end || data < 0);
}

/* Chooses who gets huge pages, tells what was chosen before or why that can't be. */
static const char *choose(struct __test_metadata *_metadata, const char *who,
			  char *before, size_t size)
{
	if (!has_guest_seal())
		return "F_SEAL_GUEST is not supported";

	huge_size = read_number(PMD_SIZE);
	if (huge_size != MB(2))
		return "There are no huge pages of 2 MiB";

	ASSERT_TRUE(read_choice(SHMEM_ENABLED, before, size));
	if (!write_file(SHMEM_ENABLED, who))
		return "Only root can choose who gets huge pages";

	return NULL;
}

FIXTURE(huge)
{
	char enabled[16];
	long nr_huge;
	int fd;
};

FIXTURE_VARIANT(huge)
{
	const char *enabled;
	unsigned int flags;
	bool expected;
};

FIXTURE_VARIANT_ADD(huge, never_advised) {
	.enabled = "never", .flags = MFD_HUGEPAGE, .expected = false,
};

FIXTURE_VARIANT_ADD(huge, deny_advised) {
	.enabled = "deny", .flags = MFD_HUGEPAGE, .expected = false,
};

FIXTURE_VARIANT_ADD(huge, advise_unadvised) {
	.enabled = "advise", .flags = 0, .expected = false,
};

FIXTURE_VARIANT_ADD(huge, advise_advised) {
	.enabled = "advise", .flags = MFD_HUGEPAGE, .expected = true,
};

FIXTURE_VARIANT_ADD(huge, within_size_unadvised) {
	.enabled = "within_size", .flags = 0, .expected = true,
};

FIXTURE_VARIANT_ADD(huge, always_unadvised) {
	.enabled = "always", .flags = 0, .expected = true,
};

FIXTURE_VARIANT_ADD(huge, force_unadvised) {
	.enabled = "force", .flags = 0, .expected = true,
};

FIXTURE_SETUP(huge)
{
	const char *why = choose(_metadata, variant->enabled, self->enabled,
				 sizeof(self->enabled));

	if (why)
		SKIP(return, "%s", why);

	self->nr_huge = nr_huge_pages();
	self->fd = new_memfd(MFD_ALLOW_SEALING | variant->flags, NR_HUGE * huge_size);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, seal(self->fd, F_SEAL_GUEST));
}

FIXTURE_TEARDOWN(huge)
{
	close(self->fd);
	EXPECT_EQ(self->nr_huge, nr_huge_pages());
	EXPECT_TRUE(write_file(SHMEM_ENABLED, self->enabled));
}

/* Huge pages that there are of those that there should be if there are any */
#define EXPECT_HUGE(_nr)						\
do {									\
	long _expected = variant->expected ? (_nr) : 0;			\
									\
	EXPECT_EQ(_expected, nr_huge_pages() - self->nr_huge);		\
	EXPECT_EQ(_expected * (long)huge_size / 1024,			\
		  fdinfo_kb(self->fd, "guest_huge"));			\
} while (0)

TEST_F(huge, allocated_as_a_whole)
{
	ASSERT_EQ(0, fallocate(self->fd, 0, huge_size, huge_size));
	EXPECT_HUGE(1);
	EXPECT_EQ(huge_size / page_size, nr_allocated(self->fd));
	EXPECT_TRUE(range_is(self->fd, 0, huge_size, false));
	EXPECT_TRUE(range_is(self->fd, huge_size, 2 * huge_size, true));
	EXPECT_TRUE(range_is(self->fd, 2 * huge_size - page_size, 2 * huge_size, true));
	EXPECT_TRUE(range_is(self->fd, 2 * huge_size, NR_HUGE * huge_size, false));
}

TEST_F(huge, no_neighbours)
{
	ASSERT_EQ(0, fallocate(self->fd, 0, huge_size + page_size, page_size));
	EXPECT_EQ(1, nr_allocated(self->fd));
	EXPECT_TRUE(range_is(self->fd, 0, huge_size + page_size, false));
	EXPECT_TRUE(range_is(self->fd, huge_size + 2 * page_size, NR_HUGE * huge_size,
			     false));

	/* All but one page, the first or the last */
	ASSERT_EQ(0, fallocate(self->fd, 0, 2 * huge_size + page_size,
			       huge_size - page_size));
	EXPECT_TRUE(range_is(self->fd, 2 * huge_size, 2 * huge_size + page_size, false));
	ASSERT_EQ(0, fallocate(self->fd, 0, 4 * huge_size, huge_size - page_size));
	EXPECT_TRUE(range_is(self->fd, 5 * huge_size - page_size, 5 * huge_size, false));
	EXPECT_HUGE(0);
}

TEST_F(huge, what_is_whole_of_a_range)
{
	ASSERT_EQ(0, fallocate(self->fd, 0, huge_size / 2, 3 * huge_size));
	EXPECT_EQ(3 * huge_size / page_size, nr_allocated(self->fd));
	EXPECT_TRUE(range_is(self->fd, 0, huge_size / 2, false));
	EXPECT_TRUE(range_is(self->fd, huge_size / 2, 7 * huge_size / 2, true));
	EXPECT_TRUE(range_is(self->fd, 7 * huge_size / 2, NR_HUGE * huge_size, false));
	EXPECT_HUGE(2);
}

TEST_F(huge, around_what_is_allocated)
{
	ASSERT_EQ(0, fallocate(self->fd, 0, huge_size / 2, page_size));
	ASSERT_EQ(0, fallocate(self->fd, 0, 0, huge_size));
	EXPECT_TRUE(range_is(self->fd, 0, huge_size, true));
	EXPECT_EQ(huge_size / page_size, nr_allocated(self->fd));
	EXPECT_HUGE(1);

	/* One after the other, and with more than a huge page */
	ASSERT_EQ(0, fallocate(self->fd, 0, 2 * huge_size, huge_size / 2));
	ASSERT_EQ(0, fallocate(self->fd, 0, 5 * huge_size / 2, huge_size / 2));
	EXPECT_HUGE(1);
	ASSERT_EQ(0, fallocate(self->fd, 0, 2 * huge_size, huge_size));
	EXPECT_HUGE(1);
	ASSERT_EQ(0, fallocate(self->fd, 0, 5 * huge_size, page_size));
	ASSERT_EQ(0, fallocate(self->fd, 0, 5 * huge_size - page_size,
			       huge_size + 2 * page_size));
	EXPECT_TRUE(range_is(self->fd, 5 * huge_size - page_size,
			     6 * huge_size + page_size, true));
	EXPECT_EQ(3 * huge_size / page_size + 2, nr_allocated(self->fd));
	EXPECT_HUGE(2);
}

TEST_F(huge, punch_a_part)
{
	const off_t pages = huge_size / page_size;
	const struct {
		off_t start, nr;
	} parts[] = {
		{ 0, 1 }, { 1, 1 }, { pages / 2, 1 }, { pages - 1, 1 },
		{ 0, pages / 2 }, { pages / 2, pages / 2 }, { 1, pages - 2 },
		{ 0, pages - 1 }, { 1, pages - 1 },
	};
	off_t start, end;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		ASSERT_EQ(0, fallocate(self->fd, 0, huge_size, huge_size));
		EXPECT_HUGE(1);

		start = huge_size + parts[i].start * page_size;
		end = start + parts[i].nr * page_size;
		ASSERT_EQ(0, fallocate(self->fd, PUNCH, start, end - start));
		EXPECT_EQ(pages - parts[i].nr, nr_allocated(self->fd));
		EXPECT_TRUE(range_is(self->fd, start, end, false));
		if (start > (off_t)huge_size)
			EXPECT_TRUE(range_is(self->fd, huge_size, start, true));
		if (end < 2 * (off_t)huge_size)
			EXPECT_TRUE(range_is(self->fd, end, 2 * huge_size, true));
		EXPECT_HUGE(0);

		/* What comes back alone stays a small page, else all become huge. */
		if (i % 2) {
			ASSERT_EQ(0, fallocate(self->fd, 0, start, end - start));
			EXPECT_HUGE(0);
		} else {
			ASSERT_EQ(0, fallocate(self->fd, 0, huge_size, huge_size));
			EXPECT_HUGE(1);
		}
		EXPECT_EQ(pages, nr_allocated(self->fd));
		EXPECT_TRUE(range_is(self->fd, huge_size, 2 * huge_size, true));

		ASSERT_EQ(0, fallocate(self->fd, PUNCH, huge_size, huge_size));
		EXPECT_EQ(0, nr_allocated(self->fd));
	}
}

/* Where there was a huge page every page is a hole, not only the first one. */
TEST_F(huge, holes_after_huge_pages)
{
	off_t first, hole;

	for (first = 0; first < NR_HUGE; first += 3) {
		ASSERT_EQ(0, fallocate(self->fd, 0, 0, NR_HUGE * huge_size));
		EXPECT_HUGE(NR_HUGE);
		ASSERT_EQ(0, fallocate(self->fd, PUNCH, first * huge_size, huge_size));

		for (hole = first * huge_size; hole < (first + 1) * (off_t)huge_size;
		     hole += huge_size / 16 + page_size)
			ASSERT_TRUE(range_is(self->fd, hole, (first + 1) * huge_size,
					     false));

		hole = first * huge_size + huge_size / 2 + page_size;
		ASSERT_EQ(0, fallocate(self->fd, 0, hole, page_size));
		EXPECT_TRUE(range_is(self->fd, hole, hole + page_size, true));
		EXPECT_TRUE(range_is(self->fd, hole + page_size, (first + 1) * huge_size,
				     false));
		EXPECT_EQ((NR_HUGE - 1) * huge_size / page_size + 1,
			  nr_allocated(self->fd));

		ASSERT_EQ(0, fallocate(self->fd, PUNCH, 0, NR_HUGE * huge_size));
		EXPECT_EQ(0, nr_allocated(self->fd));
		EXPECT_TRUE(range_is(self->fd, 3 * huge_size + page_size,
				     NR_HUGE * huge_size, false));
	}
}

TEST_F(huge, initial_content)
{
	char *content = malloc(2 * huge_size);

	ASSERT_NE(NULL, content);
	memset(content, 'x', 2 * huge_size);
	EXPECT_EQ(2 * huge_size, pwrite(self->fd, content, 2 * huge_size,
					huge_size / 2));
	EXPECT_TRUE(range_is(self->fd, huge_size / 2, 5 * huge_size / 2, true));
	EXPECT_EQ(2 * huge_size / page_size, nr_allocated(self->fd));
	EXPECT_HUGE(1);

	EXPECT_REFUSED(EEXIST, pwrite(self->fd, content, huge_size, 2 * huge_size));
	EXPECT_TRUE(range_is(self->fd, 5 * huge_size / 2, NR_HUGE * huge_size, false));
	free(content);
}

/* Content that ends half-way: as much as there is, and no page more. */
TEST_F(huge, initial_content_in_part)
{
	size_t len = huge_size / 2 + page_size;
	char *content;

	content = mmap(NULL, huge_size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, content);
	memset(content, 'x', huge_size);
	ASSERT_EQ(0, munmap(content + len, huge_size - len));

	EXPECT_EQ(len, pwrite(self->fd, content, huge_size, huge_size));
	EXPECT_TRUE(range_is(self->fd, huge_size, huge_size + len, true));
	EXPECT_TRUE(range_is(self->fd, huge_size + len, NR_HUGE * huge_size, false));
	EXPECT_EQ(len / page_size, nr_allocated(self->fd));
	EXPECT_HUGE(0);

	munmap(content, len);
}

/* Others may split huge pages, which changes nothing of what is allocated. */
TEST_F(huge, split_by_others)
{
	ASSERT_EQ(0, fallocate(self->fd, 0, 0, 2 * huge_size));
	EXPECT_HUGE(2);
	if (!write_file("/sys/kernel/debug/split_huge_pages", "1"))
		SKIP(return, "There is no debugfs at /sys/kernel/debug");
	EXPECT_HUGE(0);
	EXPECT_TRUE(range_is(self->fd, 0, 2 * huge_size, true));
	EXPECT_EQ(2 * huge_size / page_size, nr_allocated(self->fd));

	ASSERT_EQ(0, fallocate(self->fd, PUNCH, huge_size / 2, huge_size));
	EXPECT_TRUE(range_is(self->fd, huge_size / 2, 3 * huge_size / 2, false));
	EXPECT_EQ(huge_size / page_size, nr_allocated(self->fd));
}

/* Whatever is done: what is allocated is what was asked for. */
TEST_F(huge, random)
{
	const unsigned int pages = huge_size / page_size, nr = NR_HUGE * pages;
	unsigned int i, j, start, len, unit, next;
	char *model = calloc(nr, 1);
	bool allocate;

	ASSERT_NE(NULL, model);
	srand(1);

	for (i = 0; i < 300; i++) {
		unit = rand() % 2 ? pages : 1;
		start = rand() % (nr / unit) * unit;
		len = (1 + rand() % 3) * unit;
		if (start + len > nr)
			len = nr - start;
		allocate = rand() & 1;

		ASSERT_EQ(0, fallocate(self->fd, allocate ? 0 : PUNCH, start * page_size,
				       len * page_size));
		memset(model + start, allocate, len);

		for (j = 0; j < nr; j = next) {
			for (next = j; next < nr && model[next] == model[j]; next++)
				;
			ASSERT_TRUE(range_is(self->fd, j * page_size, next * page_size,
					     model[j]))
				TH_LOG("step %u: pages %u to %u", i, j, next);
			/* From somewhere in the middle, too */
			j += (next - j) / 2;
			ASSERT_TRUE(range_is(self->fd, j * page_size, next * page_size,
					     model[j]))
				TH_LOG("step %u: pages %u to %u", i, j, next);
		}
	}
	free(model);
}

FIXTURE(always_huge)
{
	char enabled[16];
	long nr_huge;
	int fd;
	volatile bool stop;
	volatile int failed;
};

FIXTURE_SETUP(always_huge)
{
	const char *why = choose(_metadata, "always", self->enabled,
				 sizeof(self->enabled));

	if (why)
		SKIP(return, "%s", why);

	self->nr_huge = nr_huge_pages();
	self->fd = new_sealed_memfd(4 * huge_size);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(always_huge)
{
	close(self->fd);
	EXPECT_EQ(self->nr_huge, nr_huge_pages());
	EXPECT_TRUE(write_file(SHMEM_ENABLED, self->enabled));
}

/* Each allocation fails, one after the other. */
static bool inject_faults(void)
{
	return write_file("/sys/kernel/debug/failslab/ignore-gfp-wait", "N") &&
	       write_file("/sys/kernel/debug/failslab/verbose", "0") &&
	       write_file("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N") &&
	       write_file("/sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem", "N") &&
	       write_file("/sys/kernel/debug/fail_page_alloc/min-order", "0") &&
	       write_file("/sys/kernel/debug/fail_page_alloc/verbose", "0");
}

/* Does fallocate() with its nth allocation failing, says whether there was one. */
static bool fail_nth(struct __test_metadata *_metadata, int fd, int mode, off_t start,
		     off_t len, unsigned int nth, int *ret)
{
	int nth_fd = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	char text[16] = "";

	ASSERT_LE(0, nth_fd);
	snprintf(text, sizeof(text), "%u", nth);
	ASSERT_LT(0, pwrite(nth_fd, text, strlen(text), 0));
	*ret = fallocate(fd, mode, start, len) ? errno : 0;
	ASSERT_LT(0, pread(nth_fd, text, sizeof(text) - 1, 0));
	close(nth_fd);
	return atoi(text) == 0;
}

/* Without memory for a huge page there are small ones. */
TEST_F(always_huge, allocation_fails)
{
	unsigned int nth, nr_small = 0;
	bool failed = true;
	int ret;

	if (!inject_faults())
		SKIP(return, "No fault injection");

	for (nth = 1; failed && nth < 20; nth++) {
		failed = fail_nth(_metadata, self->fd, 0, 0, huge_size, nth, &ret);
		if (!ret) {
			EXPECT_TRUE(range_is(self->fd, 0, huge_size, true));
			nr_small += nr_huge_pages() == self->nr_huge;
		} else {
			EXPECT_EQ(ENOMEM, ret);
			EXPECT_TRUE(range_is(self->fd, 0, huge_size, false));
		}
		ASSERT_EQ(0, fallocate(self->fd, PUNCH, 0, huge_size));
		EXPECT_EQ(0, nr_allocated(self->fd));
	}
	EXPECT_FALSE(failed);
	EXPECT_LT(0, nr_small);
}

/* Without memory for a huge page what is missing of it is small. */
TEST_F(always_huge, collapse_fails)
{
	unsigned int nth, nr_small = 0;
	bool failed = true;
	int ret;

	if (!inject_faults())
		SKIP(return, "No fault injection");

	for (nth = 1; failed && nth < 50; nth++) {
		ASSERT_EQ(0, fallocate(self->fd, 0, 0, page_size));
		ASSERT_EQ(0, fallocate(self->fd, 0, 2 * page_size,
				       huge_size - 2 * page_size));
		failed = fail_nth(_metadata, self->fd, 0, 0, huge_size, nth, &ret);
		if (!ret) {
			EXPECT_TRUE(range_is(self->fd, 0, huge_size, true));
			EXPECT_EQ(huge_size / page_size, nr_allocated(self->fd));
			nr_small += nr_huge_pages() == self->nr_huge;
		} else {
			EXPECT_EQ(ENOMEM, ret);
			EXPECT_TRUE(range_is(self->fd, page_size, 2 * page_size, false));
			EXPECT_EQ(huge_size / page_size - 1, nr_allocated(self->fd));
		}
		ASSERT_EQ(0, fallocate(self->fd, PUNCH, 0, huge_size));
		EXPECT_EQ(0, nr_allocated(self->fd));
	}
	EXPECT_FALSE(failed);
	EXPECT_LT(0, nr_small);
}

/* To free a part takes memory, and without it nothing is freed. */
TEST_F(always_huge, split_fails)
{
	const off_t part = huge_size + 3 * page_size;
	unsigned int nth, nr_failed = 0;
	bool failed = true;
	int ret;

	if (!inject_faults())
		SKIP(return, "No fault injection");

	for (nth = 1; failed && nth < 100; nth++) {
		ASSERT_EQ(0, fallocate(self->fd, 0, 0, 3 * huge_size));
		failed = fail_nth(_metadata, self->fd, PUNCH, part, page_size, nth, &ret);
		if (ret) {
			EXPECT_EQ(ENOMEM, ret);
			EXPECT_TRUE(range_is(self->fd, 0, 3 * huge_size, true));
			EXPECT_EQ(3, nr_huge_pages() - self->nr_huge);
			nr_failed++;
		} else {
			EXPECT_TRUE(range_is(self->fd, part, part + page_size, false));
		}
		ASSERT_EQ(0, fallocate(self->fd, PUNCH, 0, 3 * huge_size));
	}
	EXPECT_FALSE(failed);
	EXPECT_LT(0, nr_failed);
}

static void *convert_whole(void *data)
{
	FIXTURE_DATA(always_huge) *self = data;

	while (!self->stop) {
		if (fallocate(self->fd, 0, 0, 2 * huge_size) ||
		    fallocate(self->fd, PUNCH, 0, 2 * huge_size))
			self->failed = errno;
	}
	return NULL;
}

static void *convert_pages(void *data)
{
	FIXTURE_DATA(always_huge) *self = data;
	unsigned int i;
	off_t start;

	for (i = 0; !self->stop; i++) {
		start = (off_t)i * 37 * page_size % (2 * huge_size);
		if (fallocate(self->fd, i & 1 ? PUNCH : 0, start, page_size))
			self->failed = errno;
	}
	return NULL;
}

static void *convert_first_page(void *data)
{
	FIXTURE_DATA(always_huge) *self = data;

	while (!self->stop) {
		if (fallocate(self->fd, 0, huge_size, page_size) ||
		    fallocate(self->fd, PUNCH, huge_size, page_size))
			self->failed = errno;
	}
	return NULL;
}

static void *split_pages(void *data)
{
	FIXTURE_DATA(always_huge) *self = data;

	while (!self->stop) {
		write_file("/sys/kernel/debug/split_huge_pages", "1");
		usleep(1000);
	}
	return NULL;
}

/*
 * Some allocate and free huge pages, some parts of them, some split them: nobody
 * fails, and nobody gets what another one has asked for.
 */
TEST_F(always_huge, conversions)
{
	void *(*functions[])(void *) = {
		convert_whole, convert_whole, convert_pages, convert_pages, split_pages,
	};
	pthread_t threads[ARRAY_SIZE(functions)];
	const off_t mine = 3 * huge_size + huge_size / 2;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(functions); i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, functions[i], self));

	for (i = 0; i < 200; i++) {
		EXPECT_EQ(0, fallocate(self->fd, 0, 3 * huge_size, huge_size));
		EXPECT_EQ(0, fallocate(self->fd, PUNCH, mine, page_size));
		EXPECT_TRUE(range_is(self->fd, 3 * huge_size, mine, true));
		EXPECT_TRUE(range_is(self->fd, mine, mine + page_size, false));
		EXPECT_TRUE(range_is(self->fd, mine + page_size, 4 * huge_size, true));
		EXPECT_EQ(0, fallocate(self->fd, PUNCH, 3 * huge_size, huge_size));
		EXPECT_TRUE(range_is(self->fd, 2 * huge_size, 4 * huge_size, false));
	}

	self->stop = true;
	for (i = 0; i < ARRAY_SIZE(functions); i++)
		ASSERT_EQ(0, pthread_join(threads[i], NULL));
	EXPECT_EQ(0, self->failed);

	ASSERT_EQ(0, fallocate(self->fd, PUNCH, 0, 4 * huge_size));
	EXPECT_EQ(0, nr_allocated(self->fd));
}

/* The first page of what becomes a huge one comes and goes, as nobody else's does. */
TEST_F(always_huge, first_page_changes)
{
	const off_t last = 2 * huge_size - page_size;
	pthread_t thread;
	unsigned int i;

	ASSERT_EQ(0, fallocate(self->fd, 0, 2 * huge_size, huge_size));
	ASSERT_EQ(0, pthread_create(&thread, NULL, convert_first_page, self));
	for (i = 0; i < 100; i++) {
		ASSERT_EQ(0, fallocate(self->fd, 0, huge_size, huge_size));
		ASSERT_EQ(0, fallocate(self->fd, PUNCH, last, page_size));
		EXPECT_TRUE(range_is(self->fd, huge_size + page_size, last, true));
		EXPECT_TRUE(range_is(self->fd, last, last + page_size, false));
		EXPECT_TRUE(range_is(self->fd, 0, huge_size, false));
		ASSERT_EQ(0, fallocate(self->fd, PUNCH, huge_size + page_size,
				       huge_size - page_size));
	}
	self->stop = true;
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(0, self->failed);

	ASSERT_EQ(0, fallocate(self->fd, PUNCH, huge_size, huge_size));
	EXPECT_EQ(huge_size / page_size, nr_allocated(self->fd));
	EXPECT_TRUE(range_is(self->fd, 2 * huge_size, 3 * huge_size, true));
}

TEST_HARNESS_MAIN
