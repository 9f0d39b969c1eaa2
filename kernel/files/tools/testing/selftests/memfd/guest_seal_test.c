// SPDX-License-Identifier: GPL-2.0
/*
 * F_SEAL_GUEST: a memfd whose pages host userspace may allocate, with content or
 * without, and free, but never read, overwrite or map.
 *
 * The content of a page is out of reach by definition, so what is tested here
 * is that every way to it is refused and that nothing changes on the way.
 * What a guest sees of the pages is up to the KVM selftests.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <linux/loop.h>
#include <linux/udmabuf.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest_seal.h"

#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC		0x0020
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL		0x0008U
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25
#endif
#ifndef __NR_cachestat
#define __NR_cachestat		451
#endif

#define SEALED			(F_SEAL_GUEST | F_SEAL_SHRINK | F_SEAL_GROW)

/* The file of most tests: 8 pages, of which some are allocated. */
#define NR_PAGES		8
#define ALLOCATED		0x5cUL
#define ALLOCATED_PAGE		3
#define HOLE			5

static int reopen(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, flags | O_CLOEXEC);
}

/* Which of the first 64 pages are allocated, as lseek() has it. */
static unsigned long allocated_pages(int fd)
{
	off_t size = lseek(fd, 0, SEEK_END), data, hole = 0;
	unsigned long pages = 0;

	while (hole < size) {
		data = lseek(fd, hole, SEEK_DATA);
		if (data < 0)
			break;
		hole = lseek(fd, data, SEEK_HOLE);
		for (; data < hole; data += page_size)
			pages |= 1UL << (data / page_size);
	}
	return pages;
}

static bool all_bytes_are(const char *buf, char c, size_t len)
{
	return buf[0] == c && !memcmp(buf, buf + 1, len - 1);
}

/*
 * How to set the seal, and when not.
 */
FIXTURE(sealing)
{
	int fd;
};

FIXTURE_SETUP(sealing)
{
	if (!has_guest_seal())
		SKIP(return, "F_SEAL_GUEST is not supported");

	self->fd = new_memfd(MFD_ALLOW_SEALING, NR_PAGES * page_size);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(sealing)
{
	close(self->fd);
}

TEST_F(sealing, implies_shrink_and_grow)
{
	ASSERT_EQ(0, seal(self->fd, F_SEAL_GUEST));
	EXPECT_EQ(SEALED, fcntl(self->fd, F_GET_SEALS));
}

TEST_F(sealing, twice)
{
	ASSERT_EQ(0, seal(self->fd, F_SEAL_GUEST));
	EXPECT_EQ(0, fallocate(self->fd, 0, 0, page_size));
	EXPECT_EQ(0, seal(self->fd, F_SEAL_GUEST));
	EXPECT_EQ(SEALED, fcntl(self->fd, F_GET_SEALS));
	EXPECT_EQ(1, allocated_pages(self->fd));
}

TEST_F(sealing, empty_file)
{
	ASSERT_EQ(0, ftruncate(self->fd, 0));
	EXPECT_EQ(0, seal(self->fd, F_SEAL_GUEST));
	EXPECT_REFUSED(EPERM, ftruncate(self->fd, page_size));
	EXPECT_REFUSED(EINVAL, fallocate(self->fd, 0, 0, page_size));
}

TEST_F(sealing, unaligned_size)
{
	ASSERT_EQ(0, ftruncate(self->fd, page_size + 1));
	EXPECT_REFUSED(EINVAL, seal(self->fd, F_SEAL_GUEST));
	EXPECT_EQ(0, fcntl(self->fd, F_GET_SEALS));
}

TEST_F(sealing, pages_written)
{
	ASSERT_EQ(1, pwrite(self->fd, "x", 1, page_size));
	EXPECT_REFUSED(EBUSY, seal(self->fd, F_SEAL_GUEST));
	EXPECT_EQ(0, fcntl(self->fd, F_GET_SEALS));

	ASSERT_EQ(0, fallocate(self->fd, PUNCH, 0, NR_PAGES * page_size));
	EXPECT_EQ(0, seal(self->fd, F_SEAL_GUEST));
}

TEST_F(sealing, pages_allocated)
{
	ASSERT_EQ(0, fallocate(self->fd, 0, page_size, page_size));
	EXPECT_REFUSED(EBUSY, seal(self->fd, F_SEAL_GUEST));
	EXPECT_EQ(0, fcntl(self->fd, F_GET_SEALS));
}

TEST_F(sealing, pages_beyond_end)
{
	ASSERT_EQ(0, ftruncate(self->fd, 0));
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_KEEP_SIZE, 0, page_size));
	EXPECT_REFUSED(EBUSY, seal(self->fd, F_SEAL_GUEST));
	EXPECT_EQ(0, fcntl(self->fd, F_GET_SEALS));
}

TEST_F(sealing, pages_read)
{
	char *p;

	/* A read fault, too, leaves a page. */
	p = mmap(NULL, page_size, PROT_READ, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	EXPECT_TRUE(all_bytes_are(p, 0, page_size));
	ASSERT_EQ(0, munmap(p, page_size));
	EXPECT_REFUSED(EBUSY, seal(self->fd, F_SEAL_GUEST));
}

TEST_F(sealing, mapped)
{
	static const int prots[] = { PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE };
	static const int flags[] = { MAP_SHARED, MAP_PRIVATE };
	unsigned int i, j;
	char *p;

	for (i = 0; i < ARRAY_SIZE(prots); i++) {
		for (j = 0; j < ARRAY_SIZE(flags); j++) {
			p = mmap(NULL, page_size, prots[i], flags[j], self->fd, 0);
			ASSERT_NE(MAP_FAILED, p);
			EXPECT_REFUSED(EBUSY, seal(self->fd, F_SEAL_GUEST));
			EXPECT_EQ(0, fcntl(self->fd, F_GET_SEALS));
			ASSERT_EQ(0, munmap(p, page_size));
		}
	}

	/* What was mapped without being touched leaves nothing behind. */
	EXPECT_EQ(0, seal(self->fd, F_SEAL_GUEST));
}

TEST_F(sealing, mapped_by_child)
{
	int status, ready[2], done[2];
	pid_t pid;
	char c;

	ASSERT_EQ(0, pipe(ready));
	ASSERT_EQ(0, pipe(done));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		char *p = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
			       MAP_SHARED, self->fd, 0);

		if (p == MAP_FAILED || write(ready[1], "x", 1) != 1)
			_exit(1);
		/* The seal is refused, so this mapping stays of use. */
		if (read(done[0], &c, 1) != 1)
			_exit(1);
		*p = 1;
		_exit(0);
	}

	ASSERT_EQ(1, read(ready[0], &c, 1));
	EXPECT_REFUSED(EBUSY, seal(self->fd, F_SEAL_GUEST));
	ASSERT_EQ(1, write(done[1], "x", 1));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
}

TEST_F(sealing, pinned)
{
	char *p, buf[4] = "";
	struct iovec iov = { .iov_len = 3 };
	int pipefd[2];

	/* A page that something still holds is no longer the file's. */
	ASSERT_EQ(0, pipe(pipefd));
	p = mmap(NULL, page_size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	memcpy(p, "old", 4);
	iov.iov_base = p;
	ASSERT_EQ(3, vmsplice(pipefd[1], &iov, 1, 0));
	ASSERT_EQ(0, munmap(p, page_size));
	EXPECT_REFUSED(EBUSY, seal(self->fd, F_SEAL_GUEST));

	ASSERT_EQ(0, fallocate(self->fd, PUNCH, 0, page_size));
	ASSERT_EQ(0, seal(self->fd, F_SEAL_GUEST));
	ASSERT_EQ(0, fallocate(self->fd, 0, 0, page_size));
	ASSERT_EQ(3, read(pipefd[0], buf, 3));
	EXPECT_STREQ("old", buf);
}

TEST_F(sealing, excludes_write_seals)
{
	static const unsigned int seals[] = {
		F_SEAL_WRITE, F_SEAL_FUTURE_WRITE, F_SEAL_WRITE | F_SEAL_FUTURE_WRITE,
	};
	unsigned int i;
	int fd;

	for (i = 0; i < ARRAY_SIZE(seals); i++) {
		fd = new_memfd(MFD_ALLOW_SEALING, page_size);
		ASSERT_LE(0, fd);

		/* Together, */
		EXPECT_REFUSED(EINVAL, seal(fd, F_SEAL_GUEST | seals[i]));
		EXPECT_EQ(0, fcntl(fd, F_GET_SEALS));

		/* the guest's after the others, */
		ASSERT_EQ(0, seal(fd, seals[i]));
		EXPECT_REFUSED(EINVAL, seal(fd, F_SEAL_GUEST));
		EXPECT_EQ(seals[i], fcntl(fd, F_GET_SEALS));
		close(fd);

		/* and the others after the guest's. */
		fd = new_sealed_memfd(page_size);
		ASSERT_LE(0, fd);
		EXPECT_REFUSED(EINVAL, seal(fd, seals[i]));
		EXPECT_EQ(SEALED, fcntl(fd, F_GET_SEALS));
		close(fd);
	}
}

TEST_F(sealing, with_size_seals)
{
	ASSERT_EQ(0, seal(self->fd, F_SEAL_SHRINK | F_SEAL_GROW));
	EXPECT_EQ(0, seal(self->fd, F_SEAL_GUEST));
	EXPECT_EQ(0, seal(self->fd, F_SEAL_SHRINK | F_SEAL_GROW));
	EXPECT_EQ(SEALED, fcntl(self->fd, F_GET_SEALS));
}

TEST_F(sealing, with_exec_seal)
{
	int fd;

	/* On an executable file this seal implies F_SEAL_WRITE. */
	EXPECT_REFUSED(EINVAL, seal(self->fd, F_SEAL_GUEST | F_SEAL_EXEC));

	ASSERT_EQ(0, fchmod(self->fd, 0600));
	EXPECT_EQ(0, seal(self->fd, F_SEAL_GUEST));
	EXPECT_EQ(0, seal(self->fd, F_SEAL_EXEC));
	EXPECT_EQ(SEALED | F_SEAL_EXEC, fcntl(self->fd, F_GET_SEALS));

	fd = new_memfd(MFD_NOEXEC_SEAL, page_size);
	ASSERT_LE(0, fd);
	EXPECT_EQ(0, seal(fd, F_SEAL_GUEST));
	EXPECT_EQ(SEALED | F_SEAL_EXEC, fcntl(fd, F_GET_SEALS));
	close(fd);
}

TEST_F(sealing, before_seal_seal)
{
	ASSERT_EQ(0, seal(self->fd, F_SEAL_GUEST));
	EXPECT_EQ(0, seal(self->fd, F_SEAL_SEAL));
	EXPECT_EQ(SEALED | F_SEAL_SEAL, fcntl(self->fd, F_GET_SEALS));
	EXPECT_REFUSED(EPERM, seal(self->fd, F_SEAL_GUEST));
	EXPECT_EQ(0, fallocate(self->fd, 0, 0, page_size));
	EXPECT_EQ(1, allocated_pages(self->fd));
}

TEST_F(sealing, with_seal_seal)
{
	EXPECT_EQ(0, seal(self->fd, F_SEAL_GUEST | F_SEAL_SEAL));
	EXPECT_EQ(SEALED | F_SEAL_SEAL, fcntl(self->fd, F_GET_SEALS));
}

TEST_F(sealing, after_seal_seal)
{
	ASSERT_EQ(0, seal(self->fd, F_SEAL_SEAL));
	EXPECT_REFUSED(EPERM, seal(self->fd, F_SEAL_GUEST));
	EXPECT_EQ(F_SEAL_SEAL, fcntl(self->fd, F_GET_SEALS));
}

TEST_F(sealing, without_allow_sealing)
{
	int fd = memfd_create("guest_seal_test", MFD_CLOEXEC);

	ASSERT_LE(0, fd);
	EXPECT_REFUSED(EPERM, seal(fd, F_SEAL_GUEST));
	close(fd);
}

TEST_F(sealing, read_only_fd)
{
	int fd = reopen(self->fd, O_RDONLY);

	ASSERT_LE(0, fd);
	EXPECT_REFUSED(EPERM, seal(fd, F_SEAL_GUEST));
	close(fd);
}

TEST_F(sealing, hugetlb)
{
	int fd = memfd_create("guest_seal_test", MFD_ALLOW_SEALING | MFD_HUGETLB);

	if (fd < 0)
		SKIP(return, "no hugetlb memfds");
	EXPECT_REFUSED(EINVAL, seal(fd, F_SEAL_GUEST));
	EXPECT_EQ(0, fcntl(fd, F_GET_SEALS));
	close(fd);
}

TEST_F(sealing, not_a_memfd)
{
	int pipefd[2];

	ASSERT_EQ(0, pipe(pipefd));
	EXPECT_REFUSED(EINVAL, seal(pipefd[1], F_SEAL_GUEST));
}

/*
 * After sealing: each way to the content, through each kind of file
 * descriptor, to a page and to a hole.
 */
FIXTURE(sealed)
{
	int memfd;
	int fd;
	off_t offset;
	char *buf;
	struct iovec iov;
	int pipe[2];
	/* 0 for holes, which can be given content. */
	int write_errno;
};

FIXTURE_VARIANT(sealed)
{
	int flags;
	int page;
};

FIXTURE_VARIANT_ADD(sealed, page) {
	.flags = -1, .page = ALLOCATED_PAGE,
};

FIXTURE_VARIANT_ADD(sealed, hole) {
	.flags = -1, .page = HOLE,
};

FIXTURE_VARIANT_ADD(sealed, reopened_page) {
	.flags = O_RDWR, .page = ALLOCATED_PAGE,
};

FIXTURE_VARIANT_ADD(sealed, reopened_hole) {
	.flags = O_RDWR, .page = HOLE,
};

FIXTURE_VARIANT_ADD(sealed, read_only_page) {
	.flags = O_RDONLY, .page = ALLOCATED_PAGE,
};

FIXTURE_VARIANT_ADD(sealed, read_only_hole) {
	.flags = O_RDONLY, .page = HOLE,
};

FIXTURE_SETUP(sealed)
{
	int page;

	if (!has_guest_seal())
		SKIP(return, "F_SEAL_GUEST is not supported");

	self->memfd = new_sealed_memfd(NR_PAGES * page_size);
	ASSERT_LE(0, self->memfd);
	for (page = 0; page < NR_PAGES; page++) {
		if (ALLOCATED & (1UL << page))
			ASSERT_EQ(0, fallocate(self->memfd, 0, page * page_size, page_size));
	}

	self->fd = variant->flags < 0 ? self->memfd : reopen(self->memfd, variant->flags);
	ASSERT_LE(0, self->fd);
	if (variant->flags == O_RDONLY)
		self->write_errno = EBADF;
	else if (variant->page == ALLOCATED_PAGE)
		self->write_errno = EEXIST;
	self->offset = variant->page * page_size;
	ASSERT_EQ(self->offset, lseek(self->fd, self->offset, SEEK_SET));

	ASSERT_EQ(0, posix_memalign((void **)&self->buf, page_size, page_size));
	memset(self->buf, 0x5a, page_size);
	self->iov.iov_base = self->buf;
	self->iov.iov_len = page_size;
	ASSERT_EQ(0, pipe2(self->pipe, O_NONBLOCK));
}

/* Whatever a test tried, nothing came out and nothing changed. */
FIXTURE_TEARDOWN(sealed)
{
	struct stat st;
	char c;

	EXPECT_TRUE(all_bytes_are(self->buf, 0x5a, page_size));
	EXPECT_REFUSED(EAGAIN, read(self->pipe[0], &c, 1));
	EXPECT_EQ(SEALED, fcntl(self->memfd, F_GET_SEALS));
	ASSERT_EQ(0, fstat(self->memfd, &st));
	EXPECT_EQ(NR_PAGES * page_size, st.st_size);
	EXPECT_EQ(ALLOCATED, allocated_pages(self->memfd));
	EXPECT_EQ(__builtin_popcountl(ALLOCATED), nr_allocated(self->memfd));
}

/* A page was written to the hole, and nowhere else: undo that. */
static bool undo_write(FIXTURE_DATA(sealed) *self)
{
	off_t position = lseek(self->memfd, 0, SEEK_CUR);

	return allocated_pages(self->memfd) == (ALLOCATED | 1UL << HOLE) &&
		!fallocate(self->memfd, PUNCH, HOLE * page_size, page_size) &&
		lseek(self->memfd, position, SEEK_SET) == position;
}

#define EXPECT_WRITE(_call)						\
do {									\
	long _ret = (long)(_call);					\
	int _err = errno;						\
									\
	if (self->write_errno) {					\
		EXPECT_EQ(-1, _ret);					\
		EXPECT_EQ(self->write_errno, _err);			\
	} else {							\
		EXPECT_EQ(page_size, _ret);				\
		EXPECT_TRUE(undo_write(self));				\
	}								\
} while (0)

TEST_F(sealed, read)
{
	EXPECT_REFUSED(EPERM, read(self->fd, self->buf, page_size));
	EXPECT_EQ(self->offset, lseek(self->fd, 0, SEEK_CUR));
}

TEST_F(sealed, pread)
{
	EXPECT_REFUSED(EPERM, pread(self->fd, self->buf, page_size, self->offset));
	EXPECT_REFUSED(EPERM, pread(self->fd, self->buf, 1, self->offset + 7));
}

TEST_F(sealed, readv)
{
	EXPECT_REFUSED(EPERM, readv(self->fd, &self->iov, 1));
	EXPECT_REFUSED(EPERM, preadv(self->fd, &self->iov, 1, self->offset));
}

TEST_F(sealed, preadv2)
{
	EXPECT_REFUSED(EPERM, preadv2(self->fd, &self->iov, 1, self->offset, 0));
	EXPECT_REFUSED(EPERM, preadv2(self->fd, &self->iov, 1, self->offset, RWF_HIPRI));
}

TEST_F(sealed, write)
{
	off_t end = self->offset + (self->write_errno ? 0 : page_size);

	EXPECT_WRITE(write(self->fd, self->buf, page_size));
	EXPECT_EQ(end, lseek(self->fd, 0, SEEK_CUR));
}

TEST_F(sealed, pwrite)
{
	EXPECT_WRITE(pwrite(self->fd, self->buf, page_size, self->offset));
	EXPECT_EQ(self->offset, lseek(self->fd, 0, SEEK_CUR));
}

TEST_F(sealed, write_wrong_range)
{
	const off_t size = NR_PAGES * page_size;
	int err = variant->flags == O_RDONLY ? EBADF : EINVAL;

	EXPECT_REFUSED(err, pwrite(self->fd, self->buf, 1, self->offset));
	EXPECT_REFUSED(err, pwrite(self->fd, self->buf, 1, self->offset + 7));
	EXPECT_REFUSED(err, pwrite(self->fd, self->buf, page_size - 1, self->offset));
	EXPECT_REFUSED(err, pwrite(self->fd, self->buf, page_size, self->offset + 1));
	EXPECT_REFUSED(err, pwrite(self->fd, self->buf, page_size, size));
	EXPECT_REFUSED(err, pwrite(self->fd, self->buf, page_size, size + page_size));
	EXPECT_REFUSED(err, pwrite(self->fd, self->buf, 1, size));
}

TEST_F(sealed, writev)
{
	EXPECT_WRITE(writev(self->fd, &self->iov, 1));
	EXPECT_WRITE(pwritev(self->fd, &self->iov, 1, self->offset));
	EXPECT_WRITE(pwritev2(self->fd, &self->iov, 1, self->offset, RWF_DSYNC));
	EXPECT_WRITE(pwritev2(self->fd, &self->iov, 1, self->offset, RWF_HIPRI));
}

/* Pages in parts, none of which is one. */
TEST_F(sealed, writev_parts)
{
	struct iovec iov[] = {
		{ self->buf, 1 },
		{ self->buf + 1, page_size / 2 },
		{ NULL, 0 },
		{ self->buf, page_size / 2 - 1 },
	};

	EXPECT_WRITE(pwritev(self->fd, iov, ARRAY_SIZE(iov), self->offset));
	iov[0].iov_len = 0;
	EXPECT_REFUSED(variant->flags == O_RDONLY ? EBADF : EINVAL,
		       pwritev(self->fd, iov, ARRAY_SIZE(iov), self->offset));
}

TEST_F(sealed, write_flags)
{
	if (variant->flags == O_RDONLY)
		return;

	EXPECT_REFUSED(EOPNOTSUPP,
		       pwritev2(self->fd, &self->iov, 1, self->offset, RWF_NOWAIT));
	/* The end of the file is where no page is. */
	EXPECT_REFUSED(EINVAL, pwritev2(self->fd, &self->iov, 1, self->offset, RWF_APPEND));
}

TEST_F(sealed, append)
{
	int fd;

	if (variant->flags == O_RDONLY)
		return;

	fd = reopen(self->memfd, O_RDWR | O_APPEND);
	ASSERT_LE(0, fd);
	EXPECT_REFUSED(EINVAL, write(fd, self->buf, page_size));
	EXPECT_REFUSED(EINVAL, pwrite(fd, self->buf, page_size, self->offset));
	close(fd);
}

TEST_F(sealed, splice_from)
{
	loff_t offset = self->offset;

	EXPECT_REFUSED(EPERM, splice(self->fd, &offset, self->pipe[1], NULL, page_size, 0));
	EXPECT_REFUSED(EPERM, splice(self->fd, &offset, self->pipe[1], NULL, page_size,
				     SPLICE_F_MOVE | SPLICE_F_NONBLOCK));
	EXPECT_EQ(self->offset, offset);
}

TEST_F(sealed, splice_to)
{
	loff_t offset = self->offset;

	ASSERT_EQ(page_size, write(self->pipe[1], self->buf, page_size));
	EXPECT_WRITE(splice(self->pipe[0], NULL, self->fd, &offset, page_size, 0));
	if (self->write_errno) {
		EXPECT_EQ(self->offset, offset);
		ASSERT_EQ(page_size, read(self->pipe[0], self->buf, page_size));
	}
}

TEST_F(sealed, vmsplice_to)
{
	loff_t offset = self->offset;

	/* A page given away might replace the file's. */
	ASSERT_EQ(page_size, vmsplice(self->pipe[1], &self->iov, 1, SPLICE_F_GIFT));
	EXPECT_WRITE(splice(self->pipe[0], NULL, self->fd, &offset, page_size,
			    SPLICE_F_MOVE));
	if (self->write_errno) {
		EXPECT_EQ(self->offset, offset);
		ASSERT_EQ(page_size, read(self->pipe[0], self->buf, page_size));
	}
}

TEST_F(sealed, sendfile_from)
{
	off_t offset = self->offset;
	int sockets[2];
	char c;

	EXPECT_REFUSED(EPERM, sendfile(self->pipe[1], self->fd, &offset, page_size));
	EXPECT_EQ(self->offset, offset);

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sockets));
	EXPECT_REFUSED(EPERM, sendfile(sockets[0], self->fd, &offset, page_size));
	EXPECT_REFUSED(EAGAIN, read(sockets[1], &c, 1));
}

TEST_F(sealed, sendfile_to)
{
	int source = new_memfd(0, page_size);
	off_t offset = 0;

	ASSERT_LE(0, source);
	EXPECT_WRITE(sendfile(self->fd, source, &offset, page_size));
	close(source);
}

TEST_F(sealed, copy_file_range_from)
{
	int target = new_memfd(0, page_size);
	loff_t from = self->offset, to = 0;

	ASSERT_LE(0, target);
	EXPECT_REFUSED(EPERM,
		       copy_file_range(self->fd, &from, target, &to, page_size, 0));
	EXPECT_EQ(0, nr_allocated(target));
	close(target);
}

TEST_F(sealed, copy_file_range_to)
{
	int source = new_memfd(0, page_size);
	loff_t from = 0, to = self->offset;

	ASSERT_LE(0, source);
	ASSERT_EQ(page_size, pwrite(source, self->buf, page_size, 0));
	EXPECT_WRITE(copy_file_range(source, &from, self->fd, &to, page_size, 0));
	close(source);
}

TEST_F(sealed, copy_file_range_within)
{
	loff_t from = self->offset, to = 0;

	/* It comes to nothing as soon as it wants to read. */
	EXPECT_REFUSED(variant->flags == O_RDONLY ? EBADF : EPERM,
		       copy_file_range(self->fd, &from, self->fd, &to, page_size, 0));
}

TEST_F(sealed, clone)
{
	int target = new_memfd(0, page_size);

	/* shmem can't share pages between files anyway. */
	ASSERT_LE(0, target);
	EXPECT_EQ(-1, ioctl(target, FICLONE, self->fd));
	EXPECT_EQ(-1, ioctl(self->fd, FICLONE, target));
	close(target);
}

struct uring {
	int fd;
	char *ring;
	struct io_uring_sqe *sqe;
	struct io_uring_params params;
};

static bool uring_init(struct uring *uring)
{
	struct io_uring_params *p = &uring->params;
	size_t size;

	memset(uring, 0, sizeof(*uring));
	uring->fd = syscall(__NR_io_uring_setup, 1, p);
	if (uring->fd < 0)
		return false;

	size = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
	if (size < p->sq_off.array + p->sq_entries * sizeof(__u32))
		size = p->sq_off.array + p->sq_entries * sizeof(__u32);
	uring->ring = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			   uring->fd, IORING_OFF_SQ_RING);
	uring->sqe = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_POPULATE, uring->fd, IORING_OFF_SQES);
	return uring->ring != MAP_FAILED && uring->sqe != MAP_FAILED;
}

static int uring_do(struct uring *uring, int op, int fd, void *buf, size_t len,
		    off_t offset)
{
	struct io_uring_params *p = &uring->params;
	__u32 *sq_tail = (__u32 *)(uring->ring + p->sq_off.tail);
	__u32 *array = (__u32 *)(uring->ring + p->sq_off.array);
	__u32 *cq_head = (__u32 *)(uring->ring + p->cq_off.head);
	struct io_uring_cqe *cqes = (void *)(uring->ring + p->cq_off.cqes);
	int ret;

	*uring->sqe = (struct io_uring_sqe) {
		.opcode = op,
		.fd = fd,
		.addr = (unsigned long)buf,
		.len = len,
		.off = offset,
	};
	array[*sq_tail & (p->sq_entries - 1)] = 0;
	__atomic_store_n(sq_tail, *sq_tail + 1, __ATOMIC_RELEASE);
	if (syscall(__NR_io_uring_enter, uring->fd, 1, 1, IORING_ENTER_GETEVENTS,
		    NULL, 0) != 1)
		return -errno;

	ret = cqes[*cq_head & (p->cq_entries - 1)].res;
	__atomic_store_n(cq_head, *cq_head + 1, __ATOMIC_RELEASE);
	return ret;
}

/* As system calls have it. */
static long uring_call(struct uring *uring, int op, int fd, void *buf, size_t len,
		       off_t offset)
{
	int ret = uring_do(uring, op, fd, buf, len, offset);

	errno = ret < 0 ? -ret : 0;
	return ret < 0 ? -1 : ret;
}

TEST_F(sealed, io_uring)
{
	struct uring uring;

	if (!uring_init(&uring))
		SKIP(return, "no io_uring");

	EXPECT_EQ(-EPERM, uring_do(&uring, IORING_OP_READ, self->fd, self->buf,
				   page_size, self->offset));
	EXPECT_WRITE(uring_call(&uring, IORING_OP_WRITE, self->fd, self->buf, page_size,
				self->offset));
	EXPECT_EQ(-EPERM, uring_do(&uring, IORING_OP_READV, self->fd, &self->iov, 1,
				   self->offset));
	EXPECT_WRITE(uring_call(&uring, IORING_OP_WRITEV, self->fd, &self->iov, 1,
				self->offset));
}

TEST_F(sealed, io_uring_fixed)
{
	struct uring uring;

	if (!uring_init(&uring))
		SKIP(return, "no io_uring");

	ASSERT_EQ(0, syscall(__NR_io_uring_register, uring.fd, IORING_REGISTER_BUFFERS,
			     &self->iov, 1));
	EXPECT_EQ(-EPERM, uring_do(&uring, IORING_OP_READ_FIXED, self->fd, self->buf,
				   page_size, self->offset));
	EXPECT_WRITE(uring_call(&uring, IORING_OP_WRITE_FIXED, self->fd, self->buf,
				page_size, self->offset));
}

static long aio_do(int op, int fd, void *buf, size_t len, off_t offset)
{
	struct iocb iocb = {
		.aio_lio_opcode = op,
		.aio_fildes = fd,
		.aio_buf = (unsigned long)buf,
		.aio_nbytes = len,
		.aio_offset = offset,
	}, *iocbs = &iocb;
	aio_context_t context = 0;
	struct io_event event;
	long ret;

	if (syscall(__NR_io_setup, 1, &context))
		return -ENOSYS;
	if (syscall(__NR_io_submit, context, 1, &iocbs) != 1)
		ret = -errno;
	else if (syscall(__NR_io_getevents, context, 1, 1, &event, NULL) != 1)
		ret = -errno;
	else
		ret = event.res;
	syscall(__NR_io_destroy, context);
	return ret;
}

TEST_F(sealed, aio)
{
	long ret = aio_do(IOCB_CMD_PREAD, self->fd, self->buf, page_size, self->offset);

	if (ret == -ENOSYS)
		SKIP(return, "no AIO");

	EXPECT_EQ(-EPERM, ret);
	ret = aio_do(IOCB_CMD_PWRITE, self->fd, self->buf, page_size, self->offset);
	errno = ret < 0 ? -ret : 0;
	EXPECT_WRITE(ret < 0 ? -1 : ret);
}

TEST_F(sealed, mmap)
{
	static const int flags[] = {
		MAP_SHARED, MAP_SHARED_VALIDATE, MAP_PRIVATE,
		MAP_SHARED | MAP_POPULATE, MAP_PRIVATE | MAP_POPULATE,
		MAP_SHARED | MAP_LOCKED, MAP_PRIVATE | MAP_NORESERVE,
	};
	const int all = PROT_READ | PROT_WRITE | PROT_EXEC;
	unsigned int i;
	int prot, err;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		for (prot = PROT_NONE; prot <= all; prot++) {
			err = EPERM;
			if (variant->flags == O_RDONLY && prot & PROT_WRITE &&
			    (flags[i] & MAP_TYPE) != MAP_PRIVATE)
				err = EACCES;
			EXPECT_REFUSED(err, mmap(NULL, page_size, prot, flags[i],
						 self->fd, self->offset));
		}
	}
}

TEST_F(sealed, ftruncate)
{
	int err = variant->flags == O_RDONLY ? EINVAL : EPERM;

	EXPECT_REFUSED(err, ftruncate(self->fd, 0));
	EXPECT_REFUSED(err, ftruncate(self->fd, self->offset));
	EXPECT_REFUSED(err, ftruncate(self->fd, self->offset + 1));
	EXPECT_REFUSED(err, ftruncate(self->fd, NR_PAGES * page_size + 1));
	/* Nothing to do, and nothing done. */
	if (variant->flags != O_RDONLY)
		EXPECT_EQ(0, ftruncate(self->fd, NR_PAGES * page_size));
}

TEST_F(sealed, open_truncate)
{
	EXPECT_REFUSED(EPERM, reopen(self->fd, O_RDWR | O_TRUNC));
	EXPECT_REFUSED(EPERM, reopen(self->fd, O_WRONLY | O_TRUNC));
}

TEST_F(sealed, direct_io)
{
	int fd = reopen(self->memfd, O_RDWR | O_DIRECT);

	if (fd < 0)
		return;
	EXPECT_REFUSED(EPERM, pread(fd, self->buf, page_size, self->offset));
	if (variant->page == ALLOCATED_PAGE) {
		EXPECT_REFUSED(EEXIST, pwrite(fd, self->buf, page_size, self->offset));
	} else {
		EXPECT_EQ(page_size, pwrite(fd, self->buf, page_size, self->offset));
		EXPECT_TRUE(undo_write(self));
	}
	close(fd);
}

TEST_F(sealed, exec)
{
	int status, fd = reopen(self->memfd, O_RDONLY);
	char *argv[] = { "guest_seal_test", NULL };
	pid_t pid;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, fchmod(self->memfd, 0700));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		syscall(__NR_execveat, fd, "", argv, argv + 1, AT_EMPTY_PATH);
		_exit(errno);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFEXITED(status));
	/* ETXTBSY where files open for writing can't be executed at all. */
	EXPECT_TRUE(WEXITSTATUS(status) == EPERM || WEXITSTATUS(status) == EACCES ||
		    WEXITSTATUS(status) == ETXTBSY) {
		TH_LOG("status %#x", status);
	}
	close(fd);
}

TEST_F(sealed, udmabuf)
{
	struct udmabuf_create create = {
		.memfd = self->fd,
		.offset = self->offset,
		.size = page_size,
	};
	int fd = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		SKIP(return, "no /dev/udmabuf");
	EXPECT_REFUSED(EPERM, ioctl(fd, UDMABUF_CREATE, &create));
	close(fd);
}

TEST_F(sealed, fadvise)
{
	posix_fadvise(self->fd, 0, 0, POSIX_FADV_WILLNEED);
	posix_fadvise(self->fd, 0, 0, POSIX_FADV_DONTNEED);
	readahead(self->fd, self->offset, page_size);
	sync_file_range(self->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
	EXPECT_EQ(0, fsync(self->fd));
}

TEST_F(sealed, cachestat)
{
	struct { __u64 off, len; } range = { self->offset, page_size };
	struct { __u64 cache, dirty, writeback, evicted, recently; } stat;
	bool page = variant->page == ALLOCATED_PAGE;

	if (syscall(__NR_cachestat, self->fd, &range, &stat, 0)) {
		ASSERT_EQ(ENOSYS, errno);
		SKIP(return, "no cachestat");
	}
	EXPECT_EQ(page, stat.cache);
	EXPECT_EQ(0, stat.writeback);
	EXPECT_EQ(0, stat.evicted);
}

TEST_F(sealed, fallocate_read_only)
{
	if (variant->flags != O_RDONLY)
		return;
	EXPECT_REFUSED(EBADF, fallocate(self->fd, 0, 0, NR_PAGES * page_size));
	EXPECT_REFUSED(EBADF, fallocate(self->fd, PUNCH, 0, NR_PAGES * page_size));
}

TEST_F(sealed, in_child)
{
	int status;
	pid_t pid = fork();

	ASSERT_LE(0, pid);
	if (!pid) {
		bool refused = pread(self->fd, self->buf, page_size, self->offset) == -1 &&
			errno == EPERM &&
			mmap(NULL, page_size, PROT_READ, MAP_SHARED, self->fd,
			     self->offset) == MAP_FAILED && errno == EPERM;

		_exit(!refused);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
}

TEST_F(sealed, passed_fd)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct iovec iov = { .iov_base = &control, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
	int sockets[2], fd;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &self->fd, sizeof(int));
	ASSERT_EQ(1, sendmsg(sockets[0], &msg, 0));
	ASSERT_EQ(1, recvmsg(sockets[1], &msg, 0));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));

	EXPECT_REFUSED(EPERM, pread(fd, self->buf, page_size, self->offset));
	EXPECT_REFUSED(EPERM, mmap(NULL, page_size, PROT_READ, MAP_SHARED, fd,
				   self->offset));
	close(fd);
}

/* Sets up a loop device on a file, gives its file descriptor. */
static int loop_attach(int file, bool configure)
{
	struct loop_config config = {
		.fd = file,
		.info.lo_flags = LO_FLAGS_AUTOCLEAR,
	};
	int control, number, fd;
	char path[32];

	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		return -1;
	number = ioctl(control, LOOP_CTL_GET_FREE);
	close(control);
	if (number < 0)
		return -1;

	snprintf(path, sizeof(path), "/dev/loop%d", number);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -1;
	if (configure ? ioctl(fd, LOOP_CONFIGURE, &config) :
			ioctl(fd, LOOP_SET_FD, file)) {
		close(fd);
		return -1;
	}
	return fd;
}

static void loop_test(struct __test_metadata *_metadata, FIXTURE_DATA(sealed) *self,
		      bool configure)
{
	int fd = loop_attach(self->fd, configure);
	ssize_t written;

	if (fd < 0)
		SKIP(return, "no loop device");

	EXPECT_REFUSED(EIO, pread(fd, self->buf, page_size, self->offset));
	/* The error of a write comes with the flush. */
	written = pwrite(fd, self->buf, page_size, self->offset);
	if (self->write_errno) {
		EXPECT_TRUE(written != (ssize_t)page_size || fsync(fd));
	} else {
		EXPECT_EQ(page_size, written);
		EXPECT_EQ(0, fsync(fd));
		EXPECT_TRUE(undo_write(self));
	}
	ioctl(fd, LOOP_CLR_FD, 0);
	close(fd);
}

TEST_F(sealed, loop_set_fd)
{
	loop_test(_metadata, self, false);
}

TEST_F(sealed, loop_configure)
{
	loop_test(_metadata, self, true);
}

/*
 * fallocate(), the one thing that is allowed.
 */
FIXTURE(alloc)
{
	int fd;
};

FIXTURE_SETUP(alloc)
{
	if (!has_guest_seal())
		SKIP(return, "F_SEAL_GUEST is not supported");

	self->fd = new_sealed_memfd(NR_PAGES * page_size);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, allocated_pages(self->fd));
}

FIXTURE_TEARDOWN(alloc)
{
	close(self->fd);
}

TEST_F(alloc, exactly_what_is_asked_for)
{
	unsigned long expected;
	int start, end;

	for (start = 0; start < NR_PAGES; start++) {
		for (end = start + 1; end <= NR_PAGES; end++) {
			off_t offset = start * page_size;
			off_t len = (end - start) * page_size;

			expected = (1UL << end) - (1UL << start);
			ASSERT_EQ(0, fallocate(self->fd, 0, offset, len));
			ASSERT_EQ(expected, allocated_pages(self->fd));
			ASSERT_EQ(end - start, nr_allocated(self->fd));
			ASSERT_EQ(0, fallocate(self->fd, PUNCH, 0, NR_PAGES * page_size));
			ASSERT_EQ(0, nr_allocated(self->fd));

			expected = (1UL << NR_PAGES) - 1 - expected;
			ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_KEEP_SIZE, 0,
					       NR_PAGES * page_size));
			ASSERT_EQ(0, fallocate(self->fd, PUNCH, offset, len));
			ASSERT_EQ(expected, allocated_pages(self->fd));
			ASSERT_EQ(0, fallocate(self->fd, PUNCH, 0, NR_PAGES * page_size));
		}
	}
}

TEST_F(alloc, repeated)
{
	EXPECT_EQ(0, fallocate(self->fd, PUNCH, page_size, page_size));
	EXPECT_EQ(0, fallocate(self->fd, 0, page_size, page_size));
	EXPECT_EQ(0, fallocate(self->fd, 0, 0, 3 * page_size));
	EXPECT_EQ(0x7, allocated_pages(self->fd));
	EXPECT_EQ(0, fallocate(self->fd, PUNCH, page_size, page_size));
	EXPECT_EQ(0, fallocate(self->fd, PUNCH, page_size, page_size));
	EXPECT_EQ(0x5, allocated_pages(self->fd));
}

TEST_F(alloc, unaligned)
{
	static const int modes[] = { 0, FALLOC_FL_KEEP_SIZE, PUNCH };
	unsigned int i;

	ASSERT_EQ(0, fallocate(self->fd, 0, 2 * page_size, 2 * page_size));
	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		EXPECT_REFUSED(EINVAL, fallocate(self->fd, modes[i], 1, page_size));
		EXPECT_REFUSED(EINVAL, fallocate(self->fd, modes[i], 0, page_size + 1));
		EXPECT_REFUSED(EINVAL, fallocate(self->fd, modes[i], 2 * page_size, 1));
		EXPECT_REFUSED(EINVAL, fallocate(self->fd, modes[i], page_size - 1, 2));
		EXPECT_REFUSED(EINVAL, fallocate(self->fd, modes[i], 0, 0));
	}
	EXPECT_EQ(0xc, allocated_pages(self->fd));
}

TEST_F(alloc, out_of_range)
{
	static const int modes[] = { 0, FALLOC_FL_KEEP_SIZE, PUNCH };
	off_t size = NR_PAGES * page_size;
	off_t max = 0x7fffffffffffffffL & ~(page_size - 1);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		EXPECT_REFUSED(EINVAL, fallocate(self->fd, modes[i], size, page_size));
		EXPECT_REFUSED(EINVAL, fallocate(self->fd, modes[i], 0, size + page_size));
		EXPECT_REFUSED(EINVAL, fallocate(self->fd, modes[i], -page_size, page_size));
		EXPECT_REFUSED(EINVAL, fallocate(self->fd, modes[i], 0, -page_size));
		EXPECT_REFUSED(EINVAL, fallocate(self->fd, modes[i], 0, max));
		/* No file ends there. */
		EXPECT_REFUSED(EFBIG, fallocate(self->fd, modes[i], max, max));
	}
	EXPECT_EQ(0, allocated_pages(self->fd));
}

TEST_F(alloc, modes)
{
	static const int modes[] = {
		FALLOC_FL_ZERO_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE,
		FALLOC_FL_UNSHARE_RANGE, FALLOC_FL_PUNCH_HOLE,
	};
	unsigned int i;

	ASSERT_EQ(0, fallocate(self->fd, 0, page_size, page_size));
	for (i = 0; i < ARRAY_SIZE(modes); i++)
		EXPECT_REFUSED(EOPNOTSUPP,
			       fallocate(self->fd, modes[i], page_size, page_size));
	EXPECT_EQ(0x2, allocated_pages(self->fd));
}

TEST_F(alloc, seek)
{
	off_t size = NR_PAGES * page_size;

	EXPECT_REFUSED(ENXIO, lseek(self->fd, 0, SEEK_DATA));
	EXPECT_EQ(0, lseek(self->fd, 0, SEEK_HOLE));
	EXPECT_EQ(5, lseek(self->fd, 5, SEEK_HOLE));

	ASSERT_EQ(0, fallocate(self->fd, 0, 2 * page_size, page_size));
	EXPECT_EQ(2 * page_size, lseek(self->fd, 0, SEEK_DATA));
	EXPECT_EQ(2 * page_size + 5, lseek(self->fd, 2 * page_size + 5, SEEK_DATA));
	EXPECT_EQ(3 * page_size, lseek(self->fd, 2 * page_size + 5, SEEK_HOLE));
	EXPECT_REFUSED(ENXIO, lseek(self->fd, 3 * page_size, SEEK_DATA));

	ASSERT_EQ(0, fallocate(self->fd, 0, 3 * page_size, size - 3 * page_size));
	EXPECT_EQ(size, lseek(self->fd, 2 * page_size, SEEK_HOLE));
	EXPECT_REFUSED(ENXIO, lseek(self->fd, size, SEEK_DATA));
	EXPECT_REFUSED(ENXIO, lseek(self->fd, size, SEEK_HOLE));
	EXPECT_REFUSED(ENXIO, lseek(self->fd, -1, SEEK_DATA));
}

/* Against a bitmap, in a tree of some height that comes and goes */
#define SEEK_PAGES	8192

static off_t expected_seek(const bool *allocated, off_t page, bool data)
{
	while (page < SEEK_PAGES && allocated[page] != data)
		page++;
	return page * page_size;
}

TEST_F(alloc, seek_anywhere)
{
	static bool allocated[SEEK_PAGES];
	const off_t size = SEEK_PAGES * page_size;
	int i, j, fd = new_sealed_memfd(size);

	ASSERT_LE(0, fd);
	for (i = 0; i < 400; i++) {
		off_t start = rand() % SEEK_PAGES, max = i % 3 ? 70 : SEEK_PAGES;
		off_t nr = 1 + rand() % max;
		bool data = rand() & 1;

		if (nr > SEEK_PAGES - start)
			nr = SEEK_PAGES - start;
		ASSERT_EQ(0, fallocate(fd, data ? 0 : PUNCH, start * page_size,
				       nr * page_size));
		memset(allocated + start, data, nr);

		for (j = 0; j < 20; j++) {
			off_t from = j ? rand() % SEEK_PAGES : 0, found;
			off_t expected = expected_seek(allocated, from, false);

			ASSERT_EQ(expected, lseek(fd, from * page_size, SEEK_HOLE));
			expected = expected_seek(allocated, from, true);
			found = lseek(fd, from * page_size, SEEK_DATA);
			ASSERT_EQ(expected == size ? -1 : expected, found);
		}
	}
	close(fd);
}

/* As large as files get, and almost empty: this must not take ages. */
TEST_F(alloc, sparse)
{
	const off_t size = 0x7fffffffffffffffL & ~(page_size - 1);
	int i, status, fd = new_sealed_memfd(size);
	pid_t pid;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, fallocate(fd, 0, 0, page_size));
	ASSERT_EQ(0, fallocate(fd, 0, size / 2 & ~(page_size - 1), page_size));
	ASSERT_EQ(0, fallocate(fd, 0, size - page_size, page_size));
	EXPECT_EQ(page_size, lseek(fd, 0, SEEK_HOLE));
	EXPECT_EQ(3, nr_allocated(fd));

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(fallocate(fd, PUNCH, 0, size) || fallocate(fd, PUNCH, 0, size));
	for (i = 0; i < 2000; i++) {
		if (waitpid(pid, &status, WNOHANG) == pid)
			break;
		usleep(10000);
	}
	EXPECT_GT(2000, i);
	EXPECT_EQ(0, status);
	EXPECT_EQ(0, nr_allocated(fd));
	EXPECT_REFUSED(ENXIO, lseek(fd, 0, SEEK_DATA));
	close(fd);
}

static long private_kb(int fd)
{
	return fdinfo_kb(fd, "guest_private");
}

TEST_F(alloc, fdinfo)
{
	int fd = new_memfd(MFD_ALLOW_SEALING, page_size);

	EXPECT_EQ(-1, private_kb(fd));
	close(fd);

	EXPECT_EQ(0, private_kb(self->fd));
	ASSERT_EQ(0, fallocate(self->fd, 0, 0, 3 * page_size));
	EXPECT_EQ(3 * page_size / 1024, private_kb(self->fd));
	ASSERT_EQ(0, fallocate(self->fd, PUNCH, 0, 2 * page_size));
	EXPECT_EQ(page_size / 1024, private_kb(self->fd));
}

/* For a short time, nobody gets any memory that has to be accounted for. */
static bool forbid_commitment(void)
{
	return write_file("/proc/sys/vm/overcommit_memory", "2") &&
	       write_file("/proc/sys/vm/overcommit_kbytes", "1");
}

static void allow_commitment(long memory, long kbytes, long ratio)
{
	char value[32];

	snprintf(value, sizeof(value), "%ld", memory);
	write_file("/proc/sys/vm/overcommit_memory", value);
	snprintf(value, sizeof(value), "%ld", kbytes ?: ratio);
	write_file(kbytes ? "/proc/sys/vm/overcommit_kbytes" :
			    "/proc/sys/vm/overcommit_ratio", value);
}

struct filler {
	int fd;
	pthread_barrier_t barrier;
	int nr_filled;
};

static void *fill_page(void *data)
{
	struct filler *filler = data;
	int i;

	pthread_barrier_wait(&filler->barrier);
	for (i = 0; i < 2000; i++) {
		if (!fallocate(filler->fd, 0, 0, page_size))
			__atomic_fetch_add(&filler->nr_filled, 1, __ATOMIC_RELAXED);
	}
	pthread_barrier_wait(&filler->barrier);
	return NULL;
}

/* Without room for it a page isn't there, not for anybody else either. */
TEST_F(alloc, no_room)
{
	long memory = read_number("/proc/sys/vm/overcommit_memory");
	long kbytes = read_number("/proc/sys/vm/overcommit_kbytes");
	long ratio = read_number("/proc/sys/vm/overcommit_ratio");
	struct filler filler = { .fd = self->fd };
	pthread_t threads[2];
	bool forbidden;
	int i;

	ASSERT_EQ(0, pthread_barrier_init(&filler.barrier, NULL, 3));
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, fill_page, &filler));

	forbidden = forbid_commitment();
	pthread_barrier_wait(&filler.barrier);
	pthread_barrier_wait(&filler.barrier);
	allow_commitment(memory, kbytes, ratio);

	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_join(threads[i], NULL));
	pthread_barrier_destroy(&filler.barrier);
	if (!forbidden)
		SKIP(return, "Only root can limit what is committed");
	EXPECT_EQ(0, filler.nr_filled);
	EXPECT_EQ(0, nr_allocated(self->fd));
	EXPECT_EQ(0, fallocate(self->fd, 0, 0, page_size));
}

TEST_F(alloc, frees_memory)
{
	size_t size = MB(16);
	int fd = new_sealed_memfd(size);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, fallocate(fd, 0, 0, size));
	EXPECT_EQ(size / page_size, nr_allocated(fd));
	EXPECT_EQ(size, lseek(fd, 0, SEEK_HOLE));
	ASSERT_EQ(0, fallocate(fd, PUNCH, page_size, size - 2 * page_size));
	EXPECT_EQ(2, nr_allocated(fd));
	EXPECT_EQ(page_size, lseek(fd, 0, SEEK_HOLE));
	EXPECT_EQ(size - page_size, lseek(fd, page_size, SEEK_DATA));
	close(fd);
}

static void ignore_signal(int sig)
{
}

/* Until it's done, with signals coming all the time. */
static int interrupted_fallocate(struct __test_metadata *_metadata, int fd, int mode,
				 size_t size)
{
	off_t done, last = 0;
	int interrupts = 0;

	while (fallocate(fd, mode, 0, size)) {
		EXPECT_EQ(EINTR, errno);
		if (errno != EINTR)
			break;
		interrupts++;

		/* What is done is at the start, and stays done. */
		done = lseek(fd, 0, mode & FALLOC_FL_PUNCH_HOLE ? SEEK_DATA : SEEK_HOLE);
		EXPECT_LE(last, done);
		last = done;
		if (mode & FALLOC_FL_PUNCH_HOLE)
			done = size - done;
		EXPECT_EQ(done, nr_allocated(fd) * page_size);
	}
	return interrupts;
}

TEST_F(alloc, interrupted)
{
	struct sigaction action = { .sa_handler = ignore_signal };
	struct itimerval timer = { { 0, 2000 }, { 0, 2000 } }, off = {};
	size_t size = MB(256);
	int interrupts, fd = new_sealed_memfd(size);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, sigaction(SIGALRM, &action, NULL));
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &timer, NULL));
	interrupts = interrupted_fallocate(_metadata, fd, 0, size);
	EXPECT_LT(0, interrupts);
	EXPECT_EQ(size / page_size, nr_allocated(fd));
	interrupts = interrupted_fallocate(_metadata, fd, PUNCH, size);
	EXPECT_LT(0, interrupts);
	EXPECT_EQ(0, nr_allocated(fd));
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &off, NULL));
	close(fd);
}

#define KILL_SIZE	MB(128)

static int allocate_all(int fd)
{
	return fallocate(fd, 0, 0, KILL_SIZE);
}

static int write_zeros(int fd)
{
	/* Of the zero page */
	char *buf = mmap(NULL, KILL_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return buf == MAP_FAILED || pwrite(fd, buf, KILL_SIZE, 0) != (ssize_t)KILL_SIZE;
}

/* A child is killed after it has got so far.  Gives the number of pages it did. */
static size_t kill_half_way(struct __test_metadata *_metadata, int fd,
			    int (*convert)(int fd), size_t nr_pages)
{
	size_t done;
	int status;
	pid_t pid;

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(convert(fd));
	while (nr_allocated(fd) < nr_pages && !waitpid(pid, &status, WNOHANG))
		;
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);

	/* Every page is either this or that. */
	done = nr_allocated(fd);
	EXPECT_EQ(done * page_size, lseek(fd, 0, SEEK_HOLE));
	EXPECT_EQ(0, fallocate(fd, PUNCH, 0, KILL_SIZE));
	EXPECT_EQ(0, nr_allocated(fd));
	return done;
}

static void kill_test(struct __test_metadata *_metadata, int (*convert)(int fd))
{
	int i, fd = new_sealed_memfd(KILL_SIZE), nr_stopped = 0, nr_in_chunk = 0;
	size_t done;

	ASSERT_LE(0, fd);
	for (i = 0; i < 100 && !(nr_stopped && nr_in_chunk); i++) {
		done = kill_half_way(_metadata, fd, convert, 1 + rand() % 2048);
		nr_stopped += done < KILL_SIZE / page_size;
		nr_in_chunk += done % 512 != 0;
	}
	/* It need not wait for the end, nor for that of the current 2 MB. */
	EXPECT_LT(0, nr_stopped);
	EXPECT_LT(0, nr_in_chunk);
	close(fd);
}

TEST_F(alloc, killed)
{
	kill_test(_metadata, allocate_all);
}

TEST_F(alloc, killed_while_writing)
{
	kill_test(_metadata, write_zeros);
}

/*
 * write(), which allocates with content.  That the content is right is for KVM
 * to see; here it's about which pages there are.
 */
#define WRITE_PAGES		1536	/* three chunks */

FIXTURE(write)
{
	int fd;
	size_t size;
	char *buf;
};

FIXTURE_SETUP(write)
{
	if (!has_guest_seal())
		SKIP(return, "F_SEAL_GUEST is not supported");

	self->size = WRITE_PAGES * page_size;
	self->fd = new_sealed_memfd(self->size);
	ASSERT_LE(0, self->fd);
	self->buf = mmap(NULL, self->size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->buf);
}

FIXTURE_TEARDOWN(write)
{
	EXPECT_EQ(SEALED, fcntl(self->fd, F_GET_SEALS));
	munmap(self->buf, self->size);
	close(self->fd);
}

/* Are the pages of [start, end) allocated, and no others? */
static bool only_allocated(int fd, off_t start, off_t end)
{
	off_t position = lseek(fd, 0, SEEK_CUR);

	return lseek(fd, 0, SEEK_DATA) == start && lseek(fd, start, SEEK_HOLE) == end &&
		nr_allocated(fd) == (end - start) / page_size &&
		lseek(fd, position, SEEK_SET) == position;
}

TEST_F(write, all)
{
	EXPECT_EQ(self->size, write(self->fd, self->buf, self->size));
	EXPECT_TRUE(only_allocated(self->fd, 0, self->size));
	EXPECT_EQ(self->size, lseek(self->fd, 0, SEEK_CUR));
	/* Twice is once too often. */
	EXPECT_REFUSED(EEXIST, pwrite(self->fd, self->buf, self->size, 0));
	EXPECT_EQ(0, fallocate(self->fd, PUNCH, 0, self->size));
	EXPECT_EQ(0, nr_allocated(self->fd));
}

TEST_F(write, not_dropped)
{
	ASSERT_EQ(self->size, pwrite(self->fd, self->buf, self->size, 0));
	sync();
	EXPECT_TRUE(write_file("/proc/sys/vm/drop_caches", "3"));
	EXPECT_EQ(WRITE_PAGES, nr_allocated(self->fd));
}

TEST_F(write, nothing)
{
	EXPECT_EQ(0, pwrite(self->fd, self->buf, 0, 0));
	EXPECT_EQ(0, pwrite(self->fd, self->buf, 0, 7));
	EXPECT_EQ(0, nr_allocated(self->fd));
}

TEST_F(write, exactly_what_is_asked_for)
{
	static const struct { unsigned long start, nr; } ranges[] = {
		{ 1, 1 }, { 511, 2 }, { 513, 510 }, { 1023, 1 }, { 1024, 512 },
		{ 3, 1027 },
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		off_t start = ranges[i].start * page_size, len = ranges[i].nr * page_size;

		EXPECT_EQ(len, pwrite(self->fd, self->buf, len, start));
		EXPECT_TRUE(only_allocated(self->fd, start, start + len)) {
			TH_LOG("%lu pages from %lu on", ranges[i].nr, ranges[i].start);
		}
		ASSERT_EQ(0, fallocate(self->fd, PUNCH, start, len));
	}
}

TEST_F(write, past_the_end)
{
	EXPECT_REFUSED(EINVAL, pwrite(self->fd, self->buf, self->size, page_size));
	EXPECT_REFUSED(EINVAL, pwrite(self->fd, self->buf, 2 * page_size,
				      self->size - page_size));
	EXPECT_EQ(0, nr_allocated(self->fd));
}

/* RLIMIT_FSIZE counts, though the file's size doesn't change. */
TEST_F(write, beyond_limit)
{
	struct rlimit limit = { 2 * page_size, RLIM_INFINITY };
	off_t max = 0x7fffffffffffffffL & ~(page_size - 1);

	EXPECT_REFUSED(EINVAL, pwrite(self->fd, self->buf, page_size, max - page_size));
	signal(SIGXFSZ, SIG_IGN);
	ASSERT_EQ(0, setrlimit(RLIMIT_FSIZE, &limit));
	EXPECT_REFUSED(EFBIG, pwrite(self->fd, self->buf, page_size, 2 * page_size));
	EXPECT_EQ(0, nr_allocated(self->fd));
	EXPECT_EQ(2 * page_size, pwrite(self->fd, self->buf, 4 * page_size, 0));
	EXPECT_TRUE(only_allocated(self->fd, 0, 2 * page_size));

	/* What is left of it is no page. */
	limit.rlim_cur = 2 * page_size + page_size / 2;
	ASSERT_EQ(0, setrlimit(RLIMIT_FSIZE, &limit));
	EXPECT_REFUSED(EINVAL, pwrite(self->fd, self->buf, page_size, 2 * page_size));
	EXPECT_TRUE(only_allocated(self->fd, 0, 2 * page_size));
}

TEST_F(write, some_allocated)
{
	static const unsigned long pages[] = { 0, 1, 511, 512, 1000, WRITE_PAGES - 1 };
	unsigned int i;

	/* Wherever it is, nothing is done. */
	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		off_t offset = pages[i] * page_size;

		ASSERT_EQ(0, fallocate(self->fd, 0, offset, page_size));
		EXPECT_REFUSED(EEXIST, pwrite(self->fd, self->buf, self->size, 0));
		EXPECT_TRUE(only_allocated(self->fd, offset, offset + page_size));
		ASSERT_EQ(0, fallocate(self->fd, PUNCH, offset, page_size));
	}
}

TEST_F(write, bad_source)
{
	static const unsigned long pages[] = { 1, 3, 511, 512, 1000, WRITE_PAGES - 1 };
	unsigned int i;

	EXPECT_REFUSED(EFAULT, pwrite(self->fd, NULL, page_size, 0));
	EXPECT_REFUSED(EFAULT, pwrite(self->fd, (void *)-page_size, page_size, 0));
	ASSERT_EQ(0, munmap(self->buf + WRITE_PAGES / 2 * page_size, page_size));
	EXPECT_REFUSED(EFAULT, pwrite(self->fd, self->buf + WRITE_PAGES / 2 * page_size,
				      page_size, 0));
	/* Most of a page is not a page. */
	EXPECT_REFUSED(EFAULT, pwrite(self->fd, self->buf + WRITE_PAGES / 2 * page_size - 8,
				      page_size, 0));
	EXPECT_REFUSED(EFAULT, pwrite(self->fd, self->buf + WRITE_PAGES / 2 * page_size -
				      page_size + 1, page_size, 0));
	EXPECT_EQ(0, nr_allocated(self->fd));

	/* The pages before the bad one are written. */
	munmap(self->buf, self->size);
	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		off_t done = pages[i] * page_size;

		self->buf = mmap(NULL, self->size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS,
				 -1, 0);
		ASSERT_NE(MAP_FAILED, self->buf);
		ASSERT_EQ(0, munmap(self->buf + done, page_size));
		EXPECT_EQ(done, pwrite(self->fd, self->buf, self->size, 0));
		EXPECT_TRUE(only_allocated(self->fd, 0, done));
		EXPECT_REFUSED(EFAULT, pwrite(self->fd, self->buf + done, page_size, done));
		EXPECT_TRUE(only_allocated(self->fd, 0, done));
		ASSERT_EQ(0, fallocate(self->fd, PUNCH, 0, self->size));
		munmap(self->buf, self->size);
	}
}

TEST_F(write, source_from_file)
{
	char *source, path[] = "/tmp/guest_seal_test.XXXXXX";
	int file = mkstemp(path);

	if (file < 0)
		SKIP(return, "no /tmp");
	unlink(path);
	ASSERT_EQ(0, ftruncate(file, self->size / 2));
	source = mmap(NULL, self->size, PROT_READ, MAP_SHARED, file, 0);
	ASSERT_NE(MAP_FAILED, source);
	/* Faults in what there is; beyond that would be SIGBUS. */
	EXPECT_EQ(self->size / 2, write(self->fd, source, self->size));
	EXPECT_TRUE(only_allocated(self->fd, 0, self->size / 2));
	EXPECT_EQ(self->size / 2, lseek(self->fd, 0, SEEK_CUR));
	munmap(source, self->size);

	/* The whole of it, and from the file itself */
	ASSERT_EQ(0, fallocate(self->fd, PUNCH, 0, self->size));
	ASSERT_EQ(0, lseek(self->fd, 0, SEEK_SET));
	ASSERT_EQ(0, lseek(file, 0, SEEK_SET));
	EXPECT_EQ(self->size / 2, sendfile(self->fd, file, NULL, self->size));
	EXPECT_TRUE(only_allocated(self->fd, 0, self->size / 2));
	close(file);
}

/* Splicing what isn't pages ends with the last whole one, at the latest. */
TEST_F(write, source_of_odd_size)
{
	int file = new_memfd(0, 5 * page_size + 1);
	off_t offset = 0;
	ssize_t ret;

	ASSERT_LE(0, file);
	ret = sendfile(self->fd, file, &offset, 6 * page_size);
	if (ret < 0) {
		EXPECT_EQ(EINVAL, errno);
		EXPECT_EQ(0, nr_allocated(self->fd));
	} else {
		EXPECT_EQ(0, ret % page_size);
		EXPECT_TRUE(only_allocated(self->fd, 0, ret));
	}
	close(file);
}

TEST_F(write, killed)
{
	int status;
	pid_t pid;

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		for (;;) {
			pwrite(self->fd, self->buf, self->size, 0);
			fallocate(self->fd, PUNCH, 0, self->size);
		}
	}
	while (!nr_allocated(self->fd))
		sched_yield();
	kill(pid, SIGKILL);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));

	EXPECT_EQ(0, fallocate(self->fd, PUNCH, 0, self->size));
	EXPECT_EQ(0, nr_allocated(self->fd));
}

/*
 * What the rest of the kernel does to pages, and must not do to these.
 */
#define SHMEM_ENABLED "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

FIXTURE(pages)
{
	char shmem_enabled[32];
	char cgroup[64];
	bool mounted;
};

FIXTURE_SETUP(pages)
{
	if (!has_guest_seal())
		SKIP(return, "F_SEAL_GUEST is not supported");
	if (getuid())
		SKIP(return, "needs root");
}

FIXTURE_TEARDOWN(pages)
{
	char path[128];

	if (self->shmem_enabled[0])
		EXPECT_TRUE(write_file(SHMEM_ENABLED, self->shmem_enabled));
	if (self->cgroup[0]) {
		snprintf(path, sizeof(path), "%s/../cgroup.procs", self->cgroup);
		write_file(path, "0");
		EXPECT_EQ(0, rmdir(self->cgroup));
	}
	if (self->mounted) {
		snprintf(path, sizeof(path), "%s/..", self->cgroup);
		umount2(path, MNT_DETACH);
	}
}

TEST_F(pages, no_huge_pages)
{
	char buf[128] = "", *start, *end;
	size_t size = MB(8);
	unsigned int i;
	int fd;

	fd = open(SHMEM_ENABLED, O_RDONLY);
	if (fd < 0)
		SKIP(return, "no transparent huge pages");
	ASSERT_LT(0, read(fd, buf, sizeof(buf) - 1));
	close(fd);
	start = strchr(buf, '[') + 1;
	end = strchr(buf, ']');
	snprintf(self->shmem_enabled, sizeof(self->shmem_enabled), "%.*s",
		 (int)(end - start), start);
	ASSERT_TRUE(write_file(SHMEM_ENABLED, "force"));

	fd = new_sealed_memfd(size);
	ASSERT_LE(0, fd);
	for (i = 0; i < 3; i++) {
		off_t offset = (512 + 7 * i) * page_size;

		ASSERT_EQ(0, fallocate(fd, 0, offset, page_size));
		EXPECT_EQ(offset + page_size, lseek(fd, offset, SEEK_HOLE));
	}
	EXPECT_EQ(3, nr_allocated(fd));

	ASSERT_EQ(0, fallocate(fd, 0, 0, size));
	EXPECT_EQ(size / page_size, nr_allocated(fd));
	ASSERT_EQ(0, fallocate(fd, PUNCH, 512 * page_size, page_size));
	EXPECT_EQ(size / page_size - 1, nr_allocated(fd));
	EXPECT_EQ(512 * page_size, lseek(fd, 0, SEEK_HOLE));
	close(fd);
}

TEST_F(pages, not_dropped)
{
	size_t size = MB(4);
	int fd = new_sealed_memfd(size);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, fallocate(fd, 0, 0, size));
	sync();
	EXPECT_TRUE(write_file("/proc/sys/vm/drop_caches", "3"));
	/* Not there without compaction. */
	write_file("/proc/sys/vm/compact_memory", "1");
	EXPECT_EQ(size / page_size, nr_allocated(fd));
	EXPECT_EQ(size, lseek(fd, 0, SEEK_HOLE));
	close(fd);
}

/*
 * What is in memory, whosoever it is: find the pages of RAM of which the first
 * word is one of the patterns, which are consecutive.
 */
#define PATTERN		0x5ec2e7c0ffee0000UL
#define NR_PATTERNS	4
#define MAX_FOUND	8192

struct found {
	size_t counts[NR_PATTERNS];
	/* Where they are in /proc/kcore */
	off_t offsets[MAX_FOUND];
	size_t nr;
};

static void search_segment(struct found *found, int fd, off_t offset, off_t end, char *buf,
			   size_t len)
{
	ssize_t ret, p;
	uint64_t word;

	for (; offset < end; offset += ret) {
		ret = pread(fd, buf, len, offset);
		if (ret <= 0 || ret % page_size)
			return;
		for (p = 0; p < ret; p += page_size) {
			word = *(uint64_t *)(buf + p) - PATTERN;
			if (word >= NR_PATTERNS)
				continue;
			found->counts[word]++;
			if (found->nr < MAX_FOUND)
				found->offsets[found->nr++] = offset + p;
		}
	}
}

static bool search_memory(struct found *found, int fd)
{
	const size_t len = MB(4);
	char *buf = malloc(len);
	Elf64_Ehdr ehdr;
	Elf64_Phdr phdr;
	int i;

	memset(found, 0, sizeof(*found));
	if (pread(fd, &ehdr, sizeof(ehdr), 0) != sizeof(ehdr))
		return false;

	for (i = 0; i < ehdr.e_phnum; i++) {
		if (pread(fd, &phdr, sizeof(phdr), ehdr.e_phoff + i * sizeof(phdr)) !=
		    sizeof(phdr))
			return false;
		/* RAM, other than e.g. vmalloc'ed memory, has a physical address. */
		if (phdr.p_type == PT_LOAD && phdr.p_paddr != ~0UL)
			search_segment(found, fd, phdr.p_offset,
				       phdr.p_offset + phdr.p_memsz, buf, len);
	}
	free(buf);
	return true;
}

/* How many of them still are where they were? */
static size_t search_again(const struct found *found, int fd)
{
	size_t i, nr = 0;
	uint64_t word;

	for (i = 0; i < found->nr; i++)
		nr += pread(fd, &word, sizeof(word), found->offsets[i]) == sizeof(word) &&
			word - PATTERN < NR_PATTERNS;
	return nr;
}

static void fill(char *buf, size_t size, int pattern)
{
	size_t p;

	for (p = 0; p < size; p += page_size)
		*(volatile uint64_t *)(buf + p) = PATTERN + pattern;
}

TEST_F(pages, zeroed_when_freed)
{
	size_t size = MB(8), nr_pages = size / page_size;
	int kcore = open("/proc/kcore", O_RDONLY | O_CLOEXEC);
	static struct found found;
	int i, fds[NR_PATTERNS];
	char *buf;

	if (kcore < 0)
		SKIP(return, "no /proc/kcore");

	/* An unmapped page at the end makes for a write that fails. */
	buf = mmap(NULL, size + page_size, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, buf);
	ASSERT_EQ(0, munmap(buf + size, page_size));
	for (i = 0; i < NR_PATTERNS; i++) {
		fds[i] = new_sealed_memfd(size + page_size);
		ASSERT_LE(0, fds[i]);
	}

	for (i = 0; i < 2; i++) {
		fill(buf, size, i);
		ASSERT_EQ(size, pwrite(fds[i], buf, size, 0));
	}
	/* In vain: there is a page already, or half of one is not to be had. */
	fill(buf, size, 2);
	ASSERT_EQ(0, fallocate(fds[2], 0, 0, page_size));
	EXPECT_REFUSED(EEXIST, pwrite(fds[2], buf, size, 0));
	fill(buf, size, -1);
	for (i = 0; i < (int)page_size; i += 8)
		*(volatile uint64_t *)(buf + size - page_size + i) = PATTERN + 3;
	for (i = 0; i < 500; i++)
		EXPECT_REFUSED(EFAULT, pwrite(fds[3], buf + size - page_size / 2,
					      page_size, 0));
	for (i = 0; i < (int)page_size; i += 8)
		*(volatile uint64_t *)(buf + size - page_size + i) = 0;

	ASSERT_TRUE(search_memory(&found, kcore));
	EXPECT_EQ(nr_pages, found.counts[0]);
	EXPECT_EQ(nr_pages, found.counts[1]);
	EXPECT_EQ(0, found.counts[2]);
	EXPECT_EQ(0, found.counts[3]);
	EXPECT_EQ(found.nr, search_again(&found, kcore));

	ASSERT_EQ(0, fallocate(fds[0], PUNCH, 0, size));
	close(fds[1]);
	EXPECT_EQ(0, search_again(&found, kcore));
	close(kcore);
}

static bool make_cgroup(FIXTURE_DATA(pages) *self)
{
	const char *root = "/sys/fs/cgroup";

	if (access("/sys/fs/cgroup/cgroup.procs", F_OK)) {
		if (mount("none", root, "cgroup2", 0, NULL))
			return false;
		self->mounted = true;
	}
	if (!write_file("/sys/fs/cgroup/cgroup.subtree_control", "+memory"))
		return false;
	snprintf(self->cgroup, sizeof(self->cgroup), "%s/guest_seal_test", root);
	if (mkdir(self->cgroup, 0700)) {
		self->cgroup[0] = 0;
		return false;
	}
	return true;
}

static bool cgroup_write(FIXTURE_DATA(pages) *self, const char *name, const char *value)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", self->cgroup, name);
	return write_file(path, value);
}

/* Moves the test into a memory cgroup of its own. */
static bool enter_cgroup(FIXTURE_DATA(pages) *self)
{
	return make_cgroup(self) && cgroup_write(self, "cgroup.procs", "0");
}

static long cgroup_read(FIXTURE_DATA(pages) *self, const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", self->cgroup, name);
	return read_number(path);
}

/*
 * A child has run into a limit of 16 MB.  Its end may be ENOMEM or the OOM
 * killer's.  Gives how much it has allocated.
 */
static off_t expect_memcg_limit(struct __test_metadata *_metadata, pid_t pid, int fd)
{
	off_t done;
	int status;

	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(!status || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));

	done = lseek(fd, 0, SEEK_HOLE);
	EXPECT_LE(MB(2), done);
	EXPECT_GT(MB(16), done);
	EXPECT_EQ(done, nr_allocated(fd) * page_size);
	return done;
}

TEST_F(pages, memcg_limit)
{
	size_t size = MB(64);
	int fd = new_sealed_memfd(size);
	off_t done;
	pid_t pid;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, fallocate(fd, 0, MB(1), page_size));
	if (!enter_cgroup(self))
		SKIP(return, "no memory cgroups");
	ASSERT_TRUE(cgroup_write(self, "memory.max", "16M"));

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		write_file("/proc/self/oom_score_adj", "1000");
		_exit(fallocate(fd, 0, 0, size) && errno == ENOMEM ? 0 : 1);
	}

	/* Charged to whom it belongs, and counted truthfully. */
	done = expect_memcg_limit(_metadata, pid, fd);
	EXPECT_LE(done - page_size, cgroup_read(self, "memory.current"));

	/* All of this can be given back, and had again with more memory. */
	EXPECT_EQ(0, fallocate(fd, PUNCH, 0, size));
	EXPECT_EQ(0, nr_allocated(fd));
	ASSERT_TRUE(cgroup_write(self, "memory.max", "max"));
	EXPECT_EQ(0, fallocate(fd, 0, 0, size));
	EXPECT_EQ(size / page_size, nr_allocated(fd));
	close(fd);
}

TEST_F(pages, memcg_limit_of_write)
{
	size_t size = MB(64);
	int fd = new_sealed_memfd(size), source = new_memfd(0, size);
	char *buf;
	off_t done;
	pid_t pid;

	/* A source that is charged to somebody else */
	ASSERT_EQ(0, fallocate(source, 0, 0, size));
	buf = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, source, 0);
	ASSERT_NE(MAP_FAILED, buf);
	if (!enter_cgroup(self))
		SKIP(return, "no memory cgroups");
	ASSERT_TRUE(cgroup_write(self, "memory.max", "16M"));

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		write_file("/proc/self/oom_score_adj", "1000");
		done = pwrite(fd, buf, size, 0);
		_exit(done > 0 && done < (off_t)size &&
		      pwrite(fd, buf + done, size - done, done) == -1 &&
		      errno == ENOMEM ? 0 : 1);
	}

	done = expect_memcg_limit(_metadata, pid, fd);
	EXPECT_LE(done, cgroup_read(self, "memory.current"));

	ASSERT_TRUE(cgroup_write(self, "memory.max", "max"));
	EXPECT_EQ(size - done, pwrite(fd, buf + done, size - done, done));
	EXPECT_EQ(size / page_size, nr_allocated(fd));

	/* Each page was charged once, and no longer is. */
	EXPECT_GT(size + MB(16), cgroup_read(self, "memory.current"));
	close(fd);
	EXPECT_GT(MB(16), cgroup_read(self, "memory.current"));
	close(source);
}

/* A page at @addr, or anywhere, that whoever touches it has to wait for. */
static char *new_slow_page(int *uffd, char *addr)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	char *p;

	*uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (*uffd < 0 || ioctl(*uffd, UFFDIO_API, &api) ||
	    !(api.features & UFFD_FEATURE_POISON))
		return NULL;

	p = mmap(addr, page_size, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | (addr ? MAP_FIXED : 0), -1, 0);
	reg.range.start = (uintptr_t)p;
	reg.range.len = page_size;
	return p == MAP_FAILED || ioctl(*uffd, UFFDIO_REGISTER, &reg) ? NULL : p;
}

/* They have waited in vain. */
static bool fail_slow_page(int uffd, char *p)
{
	struct uffdio_poison poison = {
		.range.start = (uintptr_t)p,
		.range.len = page_size,
	};

	return !ioctl(uffd, UFFDIO_POISON, &poison);
}

/* A system call, in a thread of its own, that has to wait for something. */
struct waiting_call {
	pthread_t thread;
	long (*func)(int fd, void *arg);
	int fd;
	void *arg;
	pid_t tid;
	int error;
};

static void *waiting_thread(void *data)
{
	struct waiting_call *call = data;

	__atomic_store_n(&call->tid, syscall(__NR_gettid), __ATOMIC_RELEASE);
	call->error = call->func(call->fd, call->arg) < 0 ? errno : 0;
	return NULL;
}

/* Returns when it waits. */
static bool start_waiting_call(struct waiting_call *call)
{
	char path[64], buf[256], *state;
	int i, fd;

	if (pthread_create(&call->thread, NULL, waiting_thread, call))
		return false;
	while (!__atomic_load_n(&call->tid, __ATOMIC_ACQUIRE))
		sched_yield();

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", call->tid);
	for (i = 0; i < 10000; i++) {
		memset(buf, 0, sizeof(buf));
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || read(fd, buf, sizeof(buf) - 1) <= 0)
			return false;
		close(fd);
		state = strrchr(buf, ')');
		if (state && strchr("DS", state[2]))
			return true;
		usleep(1000);
	}
	return false;
}

static long write_pages(int fd, void *source)
{
	return pwrite(fd, source, MB(2), 0);
}

/* Pages are charged as soon as they are allocated, not when they are the guest's. */
TEST_F(pages, charged_while_writing)
{
	struct waiting_call call = { .func = write_pages };
	char *buf, *slow;
	long before;
	int uffd;

	buf = mmap(NULL, MB(2), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, buf);
	memset(buf, 1, MB(2));
	slow = new_slow_page(&uffd, buf + MB(2) - page_size);
	if (!slow)
		SKIP(return, "no userfaultfd");
	if (!enter_cgroup(self))
		SKIP(return, "no memory cgroups");

	call.fd = new_sealed_memfd(MB(2));
	ASSERT_LE(0, call.fd);
	call.arg = buf;
	before = cgroup_read(self, "memory.current");
	ASSERT_TRUE(start_waiting_call(&call));
	EXPECT_EQ(0, nr_allocated(call.fd));
	EXPECT_LT(before + (long)MB(1), cgroup_read(self, "memory.current"));
	ASSERT_TRUE(fail_slow_page(uffd, slow));
	ASSERT_EQ(0, pthread_join(call.thread, NULL));
	EXPECT_EQ(0, call.error);
	EXPECT_EQ(MB(2) - page_size, lseek(call.fd, 0, SEEK_HOLE));
	close(call.fd);
	close(uffd);
}

/*
 * Who has too much memory is held up when pages are charged.  Nothing has become the
 * guest's by then, and whoever converts other pages doesn't wait.
 */
TEST_F(pages, charged_while_allocating)
{
	int fd = new_sealed_memfd(MB(4)), ready[2], go[2];
	pid_t pid, ended = 0;
	long before;
	char c;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, pipe(ready));
	ASSERT_EQ(0, pipe(go));
	if (!make_cgroup(self))
		SKIP(return, "no memory cgroups");

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (!cgroup_write(self, "cgroup.procs", "0") ||
		    write(ready[1], "", 1) != 1 || read(go[0], &c, 1) != 1)
			_exit(1);
		_exit(fallocate(fd, 0, 0, MB(2)) ? 1 : 0);
	}
	close(ready[1]);
	ASSERT_EQ(1, read(ready[0], &c, 1));
	ASSERT_TRUE(cgroup_write(self, "memory.high", "0"));
	before = cgroup_read(self, "memory.current");
	ASSERT_EQ(1, write(go[1], "", 1));

	/* It is held up by the second 64 pages, and from then on by each 64. */
	while (!ended && cgroup_read(self, "memory.current") < before + 96 * (long)page_size) {
		usleep(1000);
		ended = waitpid(pid, NULL, WNOHANG);
	}
	ASSERT_EQ(0, ended);
	EXPECT_EQ(0, nr_allocated(fd));
	EXPECT_EQ(0, fallocate(fd, 0, MB(2), page_size));
	EXPECT_EQ(1, nr_allocated(fd));
	EXPECT_EQ(0, waitpid(pid, NULL, WNOHANG));

	/* What was for nothing is given back. */
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	EXPECT_EQ(1, nr_allocated(fd));
	EXPECT_GT(before + (long)MB(1), cgroup_read(self, "memory.current"));
	close(fd);
}

/* What sealing allocates is freed, whether it fails or the file goes away. */
TEST_F(pages, seal_frees_memory)
{
	long before;
	char *p;
	int i, fd;

	if (!enter_cgroup(self))
		SKIP(return, "no memory cgroups");

	fd = new_memfd(MFD_ALLOW_SEALING, page_size);
	p = mmap(NULL, page_size, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	before = cgroup_read(self, "memory.current");
	for (i = 0; i < 25000; i++)
		ASSERT_EQ(-1, seal(fd, F_SEAL_GUEST));
	EXPECT_GT(before + MB(1), cgroup_read(self, "memory.current"));
	close(fd);

	for (i = 0; i < 25000; i++) {
		fd = new_sealed_memfd(page_size);
		ASSERT_LE(0, fd);
		close(fd);
	}
	/* Inodes are freed after a while. */
	for (i = 0; i < 1000; i++) {
		if (cgroup_read(self, "memory.current") < before + (long)MB(1))
			break;
		usleep(10000);
	}
	EXPECT_GT(1000, i);
}

/* Swap in memory: not of much use, other than that pages leave for it. */
static int swap_on(char *path, size_t len)
{
	size_t size = MB(64);
	int fd, file = new_memfd(0, size);
	struct {
		char bootbits[1024];
		__u32 version, last_page, nr_badpages;
	} header = { .version = 1, .last_page = size / page_size - 1 };
	struct loop_info64 info;

	if (file < 0 || fallocate(file, 0, 0, size))
		return -1;
	if (pwrite(file, &header, sizeof(header), 0) != sizeof(header) ||
	    pwrite(file, "SWAPSPACE2", 10, page_size - 10) != 10)
		return -1;
	fd = loop_attach(file, true);
	close(file);
	if (fd < 0 || ioctl(fd, LOOP_GET_STATUS64, &info))
		return -1;
	snprintf(path, len, "/dev/loop%u", info.lo_number);
	return swapon(path, 0) ? -1 : fd;
}

TEST_F(pages, not_reclaimed)
{
	size_t size = MB(8);
	int fd, ordinary, loop;
	char path[32];
	off_t offset;

	loop = swap_on(path, sizeof(path));
	if (loop < 0)
		SKIP(return, "no swap on loop devices");
	if (!enter_cgroup(self)) {
		swapoff(path);
		SKIP(return, "no memory cgroups");
	}

	fd = new_sealed_memfd(size);
	ordinary = new_memfd(MFD_ALLOW_SEALING, size);
	ASSERT_EQ(0, fallocate(fd, 0, 0, size));
	for (offset = 0; offset < (off_t)size; offset += page_size)
		ASSERT_EQ(1, pwrite(ordinary, "x", 1, offset));

	/* As much as there is: it does not get that. */
	cgroup_write(self, "memory.reclaim", "16M");
	EXPECT_LT(MB(1), cgroup_read(self, "memory.swap.current"));
	EXPECT_GE(size, cgroup_read(self, "memory.swap.current"));
	EXPECT_LE(size, cgroup_read(self, "memory.current"));
	EXPECT_EQ(size / page_size, nr_allocated(fd));
	EXPECT_EQ(size, lseek(fd, 0, SEEK_HOLE));

	/* A page in swap is a page, too. */
	EXPECT_REFUSED(EBUSY, seal(ordinary, F_SEAL_GUEST));

	close(ordinary);
	EXPECT_EQ(0, swapoff(path));
	EXPECT_EQ(size / page_size, nr_allocated(fd));
	close(fd);
	close(loop);
}

/*
 * Races between sealing and what it excludes.
 */
#define NR_RACES		500

FIXTURE(race)
{
	pthread_barrier_t barrier;
	int fd;
	char *map;
	bool stop;
	bool sealed;
	/* What the other thread got done. */
	bool done;
	unsigned int nr_sealed;
	unsigned int nr_done;
};

FIXTURE_SETUP(race)
{
	if (!has_guest_seal())
		SKIP(return, "F_SEAL_GUEST is not supported");
	pthread_barrier_init(&self->barrier, NULL, 2);
}

FIXTURE_TEARDOWN(race)
{
}

static __thread sigjmp_buf bus_error;

static void handle_bus_error(int sig)
{
	siglongjmp(bus_error, 1);
}

/* Has a byte been written to, or read from, the file through a mapping? */
static bool touch_mapping(int fd, bool write)
{
	volatile char *p;
	bool done = false;

	p = mmap(NULL, page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return false;
	if (!sigsetjmp(bus_error, 1)) {
		if (write)
			*p = 1;
		else
			(void)*p;
		done = true;
	}
	/* Keep the mapping while the result is looked at. */
	return done;
}

static bool try_write_mapping(int fd)
{
	return touch_mapping(fd, true);
}

static bool try_read_mapping(int fd)
{
	return touch_mapping(fd, false);
}

static bool try_pwrite(int fd)
{
	return pwrite(fd, "x", 1, 0) == 1;
}

static bool try_sendfile(int fd)
{
	off_t offset = 0;
	int source = new_memfd(0, page_size);
	/* A whole page might be written to the sealed file as well. */
	bool done = sendfile(fd, source, &offset, 1) == 1;

	close(source);
	return done;
}

/* Allowed with and without the seal, but what it does changes half-way. */
static bool try_fallocate(int fd)
{
	bool failed = false;
	int i;

	for (i = 0; i < 16; i++) {
		failed |= fallocate(fd, 0, 0, page_size);
		failed |= fallocate(fd, PUNCH, 0, page_size);
	}
	return failed;
}

static bool try_write_page(int fd)
{
	char buf[page_size];
	bool failed = false;
	int i;

	memset(buf, 1, page_size);
	for (i = 0; i < 16; i++) {
		failed |= pwrite(fd, buf, page_size, 0) != (ssize_t)page_size;
		failed |= fallocate(fd, PUNCH, 0, page_size);
	}
	return failed;
}

static bool (*race_action)(int fd);

static void *race_thread(void *data)
{
	FIXTURE_DATA(race) *self = data;

	for (;;) {
		pthread_barrier_wait(&self->barrier);
		if (self->stop)
			return NULL;
		self->done = race_action(self->fd);
		pthread_barrier_wait(&self->barrier);
	}
}

/* Either the seal or the other one, but never both. */
static void run_race(struct __test_metadata *_metadata, FIXTURE_DATA(race) *self,
		     bool (*action)(int fd))
{
	struct sigaction sa = { .sa_handler = handle_bus_error };
	unsigned int i, spin;
	volatile unsigned int n;
	pthread_t thread;

	ASSERT_EQ(0, sigaction(SIGBUS, &sa, NULL));
	race_action = action;
	ASSERT_EQ(0, pthread_create(&thread, NULL, race_thread, self));
	for (i = 0; i < NR_RACES; i++) {
		self->fd = new_memfd(MFD_ALLOW_SEALING, page_size);
		ASSERT_LE(0, self->fd);
		spin = rand() % 4096;
		pthread_barrier_wait(&self->barrier);
		for (n = 0; n < spin; n++)
			;
		self->sealed = !seal(self->fd, F_SEAL_GUEST);
		pthread_barrier_wait(&self->barrier);

		ASSERT_FALSE(self->sealed && self->done);
		ASSERT_EQ(self->sealed, !!(fcntl(self->fd, F_GET_SEALS) & F_SEAL_GUEST));
		if (self->sealed)
			ASSERT_EQ(0, allocated_pages(self->fd));
		self->nr_sealed += self->sealed;
		self->nr_done += self->done;
		close(self->fd);
	}
	self->stop = true;
	pthread_barrier_wait(&self->barrier);
	pthread_join(thread, NULL);
	TH_LOG("%u times the seal won, %u times the access", self->nr_sealed, self->nr_done);
}

TEST_F(race, write_to_mapping)
{
	run_race(_metadata, self, try_write_mapping);
}

TEST_F(race, read_from_mapping)
{
	run_race(_metadata, self, try_read_mapping);
}

TEST_F(race, pwrite)
{
	run_race(_metadata, self, try_pwrite);
}

TEST_F(race, sendfile)
{
	run_race(_metadata, self, try_sendfile);
}

TEST_F(race, fallocate)
{
	run_race(_metadata, self, try_fallocate);
}

TEST_F(race, write_page)
{
	run_race(_metadata, self, try_write_page);
}

static bool try_map(int fd)
{
	return mmap(NULL, page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) !=
	       MAP_FAILED;
}

/* No mapping that was made is then of no use. */
TEST_F(race, map)
{
	run_race(_metadata, self, try_map);
}

static void *map_private(void *data)
{
	FIXTURE_DATA(race) *self = data;

	pthread_barrier_wait(&self->barrier);
	return mmap(NULL, NR_PAGES * page_size, PROT_READ, MAP_PRIVATE, self->fd, 0);
}

/*
 * Private mappings that are being made can't be excluded.  If they come to be,
 * they must be of no use, also next to what is not in the page cache.
 */
TEST_F(race, map_privately)
{
	struct sigaction sa = { .sa_handler = handle_bus_error };
	char buf[page_size], *p;
	volatile unsigned int n;
	unsigned int spin;
	pthread_t thread;
	int i, page;

	ASSERT_EQ(0, sigaction(SIGBUS, &sa, NULL));
	memset(buf, 0x5a, page_size);
	for (i = 0; i < 20 * NR_RACES && self->nr_done < 20; i++) {
		self->fd = new_memfd(MFD_ALLOW_SEALING, NR_PAGES * page_size);
		ASSERT_LE(0, self->fd);
		spin = rand() % 8192;
		ASSERT_EQ(0, pthread_create(&thread, NULL, map_private, self));
		pthread_barrier_wait(&self->barrier);
		for (n = 0; n < spin; n++)
			;
		self->sealed = !seal(self->fd, F_SEAL_GUEST);
		ASSERT_EQ(0, pthread_join(thread, (void **)&p));

		if (self->sealed && p != MAP_FAILED) {
			self->nr_done++;
			for (page = 0; page < NR_PAGES; page += 2)
				ASSERT_EQ(page_size, pwrite(self->fd, buf, page_size,
							    page * page_size));
			for (page = 0; page < NR_PAGES; page++) {
				if (sigsetjmp(bus_error, 1))
					continue;
				EXPECT_EQ(-1, ((volatile char *)p)[page * page_size]);
			}
		}
		if (p != MAP_FAILED)
			munmap(p, NR_PAGES * page_size);
		close(self->fd);
	}
	TH_LOG("%u of %d mappings came with the seal", self->nr_done, i);
}

/* Gives -1 when it fails, 1 if it should have failed. */
static int read_half_way(FIXTURE_DATA(race) *self)
{
	char c;

	/* It has to wait for a page, of which there's another one then. */
	return pread(self->fd, &c, 1, 0) == 1 ? c : -1;
}

static int map_half_way(FIXTURE_DATA(race) *self)
{
	char *p = mmap(NULL, page_size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	bool sealed = __atomic_load_n(&self->sealed, __ATOMIC_RELAXED);

	if (p == MAP_FAILED)
		return -1;
	munmap(p, page_size);
	return sealed;
}

static int (*half_way_action)(FIXTURE_DATA(race) *self);

static void *half_way_thread(void *data)
{
	FIXTURE_DATA(race) *self = data;
	int ret;

	for (;;) {
		pthread_barrier_wait(&self->barrier);
		if (self->stop)
			return NULL;
		while ((ret = half_way_action(self)) >= 0)
			self->done |= ret;
		pthread_barrier_wait(&self->barrier);
	}
}

/*
 * Whoever wakes up with a higher priority on the same CPU finds the other thread
 * anywhere, e.g. having found a file that is not sealed, and seals it.
 */
static void run_half_way(struct __test_metadata *_metadata, FIXTURE_DATA(race) *self,
			 int (*action)(FIXTURE_DATA(race) *self))
{
	struct sched_param fifo = { .sched_priority = 1 };
	char buf[page_size];
	pthread_t thread;
	cpu_set_t cpus;
	int i;

	memset(buf, 1, page_size);
	CPU_ZERO(&cpus);
	CPU_SET(sched_getcpu(), &cpus);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(cpus), &cpus));
	half_way_action = action;
	ASSERT_EQ(0, pthread_create(&thread, NULL, half_way_thread, self));
	if (sched_setscheduler(0, SCHED_FIFO, &fifo))
		SKIP(return, "no SCHED_FIFO");

	for (i = 0; i < 4 * NR_RACES; i++) {
		self->fd = new_memfd(MFD_ALLOW_SEALING, page_size);
		ASSERT_LE(0, self->fd);
		self->sealed = false;
		ASSERT_EQ(1, pwrite(self->fd, "", 1, 0));
		pthread_barrier_wait(&self->barrier);
		do {
			usleep(100 + rand() % 100);
			fallocate(self->fd, PUNCH, 0, page_size);
		} while (seal(self->fd, F_SEAL_GUEST) && errno == EBUSY);
		__atomic_store_n(&self->sealed, true, __ATOMIC_RELAXED);
		ASSERT_EQ(page_size, pwrite(self->fd, buf, page_size, 0));
		pthread_barrier_wait(&self->barrier);
		ASSERT_FALSE(self->done) {
			TH_LOG("at the %dth try", i + 1);
		}
		close(self->fd);
	}
	self->stop = true;
	pthread_barrier_wait(&self->barrier);
	pthread_join(thread, NULL);
}

TEST_F(race, read_half_way)
{
	run_half_way(_metadata, self, read_half_way);
}

TEST_F(race, map_half_way)
{
	run_half_way(_metadata, self, map_half_way);
}

static void *collapse_thread(void *data)
{
	FIXTURE_DATA(race) *self = data;

	for (;;) {
		pthread_barrier_wait(&self->barrier);
		if (self->stop)
			return NULL;
		self->done = !madvise(self->map, MB(2), MADV_COLLAPSE);
		pthread_barrier_wait(&self->barrier);
	}
}

/*
 * MADV_COLLAPSE releases the mmap_lock on its way to the page cache.  Whoever
 * waits for it, with a higher priority on the same CPU, goes on at that moment.
 */
TEST_F(race, collapse)
{
	struct sched_param fifo = { .sched_priority = 1 };
	char buf[page_size], *area;
	pthread_t thread;
	cpu_set_t cpus;
	int i;

	if (access("/sys/kernel/mm/transparent_hugepage", F_OK))
		SKIP(return, "no transparent huge pages");

	memset(buf, 0x5a, page_size);
	area = mmap(NULL, MB(4), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, area);
	self->map = (char *)(((uintptr_t)area + MB(2)) & ~(MB(2) - 1));

	CPU_ZERO(&cpus);
	CPU_SET(0, &cpus);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(cpus), &cpus));
	ASSERT_EQ(0, pthread_create(&thread, NULL, collapse_thread, self));
	if (sched_setscheduler(0, SCHED_FIFO, &fifo))
		SKIP(return, "no SCHED_FIFO");

	for (i = 0; i < NR_RACES; i++) {
		self->fd = new_memfd(MFD_ALLOW_SEALING, MB(2));
		ASSERT_LE(0, self->fd);
		ASSERT_EQ(self->map, mmap(self->map, MB(2), PROT_READ | PROT_WRITE,
					  MAP_SHARED | MAP_FIXED, self->fd, 0));
		*self->map = 1;
		pthread_barrier_wait(&self->barrier);
		usleep(rand() % 1000);

		ASSERT_EQ(0, munmap(self->map, MB(2)));
		fallocate(self->fd, PUNCH, 0, MB(2));
		self->sealed = !seal(self->fd, F_SEAL_GUEST);
		if (self->sealed)
			ASSERT_EQ(page_size, pwrite(self->fd, buf, page_size, 0));
		/* Unmapping has the page put where a collapse can take it from. */
		ASSERT_EQ(area, mmap(area, page_size, PROT_READ,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
		ASSERT_EQ(0, munmap(area, page_size));
		pthread_barrier_wait(&self->barrier);

		/* There is what was written, and nothing around it. */
		if (self->sealed)
			ASSERT_EQ(1, nr_allocated(self->fd));
		self->nr_sealed += self->sealed;
		self->nr_done += self->done;
		close(self->fd);
	}
	EXPECT_LT(0, self->nr_sealed);
	self->stop = true;
	pthread_barrier_wait(&self->barrier);
	pthread_join(thread, NULL);
	TH_LOG("%u times sealed, %u times collapsed", self->nr_sealed, self->nr_done);
}

/*
 * A write that waits for its source keeps everybody else waiting: first who seals
 * the file, and after that who allocates, or frees, pages.
 */
static long waiting_write(int fd, void *source)
{
	return pwrite(fd, source, 1, 0);
}

static long waiting_seal(int fd, void *arg)
{
	return seal(fd, F_SEAL_GUEST);
}

static long waiting_fallocate(int fd, void *arg)
{
	return fallocate(fd, 0, 0, page_size);
}

TEST_F(race, fallocate_waits_for_seal)
{
	struct waiting_call calls[] = {
		{ .func = waiting_write }, { .func = waiting_seal },
		{ .func = waiting_fallocate },
	};
	int i, uffd;
	char *p;

	p = new_slow_page(&uffd, NULL);
	if (!p)
		SKIP(return, "no userfaultfd");

	self->fd = new_memfd(MFD_ALLOW_SEALING, page_size);
	ASSERT_LE(0, self->fd);
	for (i = 0; i < ARRAY_SIZE(calls); i++) {
		calls[i].fd = self->fd;
		calls[i].arg = p;
		ASSERT_TRUE(start_waiting_call(&calls[i]));
	}

	/* The write comes to nothing, so there is no page that prevents sealing. */
	ASSERT_TRUE(fail_slow_page(uffd, p));
	for (i = 0; i < ARRAY_SIZE(calls); i++)
		ASSERT_EQ(0, pthread_join(calls[i].thread, NULL));
	EXPECT_EQ(EFAULT, calls[0].error);
	EXPECT_EQ(0, calls[1].error);
	EXPECT_EQ(0, calls[2].error);
	EXPECT_EQ(SEALED, fcntl(self->fd, F_GET_SEALS));
	EXPECT_EQ(1, allocated_pages(self->fd));
	close(self->fd);
	close(uffd);
}

static void *map_and_unmap(void *data)
{
	FIXTURE_DATA(race) *self = data;
	char *p;

	while (!__atomic_load_n(&self->stop, __ATOMIC_RELAXED)) {
		p = mmap(NULL, page_size, PROT_READ, MAP_PRIVATE, self->fd, 0);
		if (p != MAP_FAILED)
			munmap(p, page_size);
	}
	return NULL;
}

static void *add_and_remove_page(void *data)
{
	FIXTURE_DATA(race) *self = data;
	char c;

	while (!__atomic_load_n(&self->stop, __ATOMIC_RELAXED)) {
		/* What is sealed meanwhile fails. */
		if (pread(self->fd, &c, 1, 0) == 1 && !fallocate(self->fd, 0, 0, page_size))
			fallocate(self->fd, PUNCH, 0, page_size);
	}
	return NULL;
}

static void *watch_seals(void *data)
{
	FIXTURE_DATA(race) *self = data;
	unsigned int seals, seen = 0;

	while (!__atomic_load_n(&self->stop, __ATOMIC_RELAXED)) {
		seals = fcntl(self->fd, F_GET_SEALS);
		if (seen & ~seals)
			return "a seal is gone";
		seen |= seals;
	}
	return NULL;
}

/* Seals that were ever seen are there. */
static void seals_stay(struct __test_metadata *_metadata, FIXTURE_DATA(race) *self,
		       void *(*disturb)(void *))
{
	pthread_t disturber, watcher;
	void *error;
	int i;

	for (i = 0; i < NR_RACES && !self->stop; i++) {
		int tries;

		self->fd = new_memfd(MFD_ALLOW_SEALING, page_size);
		ASSERT_LE(0, self->fd);
		ASSERT_EQ(0, pthread_create(&disturber, NULL, disturb, self));
		ASSERT_EQ(0, pthread_create(&watcher, NULL, watch_seals, self));
		for (tries = 0; tries < 200; tries++) {
			if (!seal(self->fd, F_SEAL_GUEST))
				break;
		}
		__atomic_store_n(&self->stop, true, __ATOMIC_RELAXED);
		ASSERT_EQ(0, pthread_join(disturber, NULL));
		ASSERT_EQ(0, pthread_join(watcher, &error));
		ASSERT_EQ(NULL, error) {
			TH_LOG("%s", (char *)error);
		}
		self->stop = false;
		close(self->fd);
	}
}

TEST_F(race, seals_and_mapping)
{
	seals_stay(_metadata, self, map_and_unmap);
}

TEST_F(race, seals_and_page)
{
	seals_stay(_metadata, self, add_and_remove_page);
}

static void *convert_thread(void *data)
{
	FIXTURE_DATA(race) *self = data;
	int i, start, nr;

	for (i = 0; i < NR_RACES; i++) {
		start = (i * 7) % NR_PAGES;
		nr = 1 + i % (NR_PAGES - start);
		if (fallocate(self->fd, i & 1 ? PUNCH : 0, start * page_size,
			      nr * page_size))
			return "fallocate() failed";
	}
	return NULL;
}

TEST_F(race, fallocate_and_access)
{
	char *p, buf[64] = {};
	pthread_t thread;
	void *error;
	int i;

	self->fd = new_sealed_memfd(NR_PAGES * page_size);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, pthread_create(&thread, NULL, convert_thread, self));
	for (i = 0; i < NR_RACES; i++) {
		off_t offset = (i % NR_PAGES) * page_size;

		EXPECT_REFUSED(EPERM, pread(self->fd, buf, sizeof(buf), offset));
		EXPECT_REFUSED(EINVAL, pwrite(self->fd, buf, sizeof(buf), offset));
		p = mmap(NULL, page_size, PROT_READ, MAP_PRIVATE, self->fd, offset);
		EXPECT_EQ(MAP_FAILED, p);
	}
	ASSERT_EQ(0, pthread_join(thread, &error));
	EXPECT_EQ(NULL, error) {
		TH_LOG("%s", (char *)error);
	}
	EXPECT_EQ(__builtin_popcountl(allocated_pages(self->fd)), nr_allocated(self->fd));
	close(self->fd);
}

/*
 * Other files go on as ever.
 */
FIXTURE(ordinary)
{
	int fd;
};

FIXTURE_VARIANT(ordinary)
{
	unsigned int seals;
};

FIXTURE_VARIANT_ADD(ordinary, unsealed) {
	.seals = 0,
};

FIXTURE_VARIANT_ADD(ordinary, size_sealed) {
	.seals = F_SEAL_SHRINK | F_SEAL_GROW,
};

FIXTURE_SETUP(ordinary)
{
	self->fd = new_memfd(MFD_ALLOW_SEALING, NR_PAGES * page_size);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, seal(self->fd, variant->seals));
}

FIXTURE_TEARDOWN(ordinary)
{
	close(self->fd);
}

TEST_F(ordinary, access)
{
	char *p, buf[8] = "";

	EXPECT_EQ(4, pwrite(self->fd, "text", 4, page_size));
	EXPECT_EQ(4, pread(self->fd, buf, 4, page_size));
	EXPECT_STREQ("text", buf);
	p = mmap(NULL, 2 * page_size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	EXPECT_STREQ("text", p + page_size);
	EXPECT_EQ(variant->seals, fcntl(self->fd, F_GET_SEALS));
}

/* They may have the memory of inodes that were sealed. */
TEST_F(ordinary, after_sealed)
{
	struct { __u64 off, len; } range = { 0, NR_PAGES * page_size };
	struct { __u64 cache, dirty, writeback, evicted, recently; } stat;
	int i, fds[200];

	if (!has_guest_seal())
		SKIP(return, "F_SEAL_GUEST is not supported");

	for (i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = new_sealed_memfd(NR_PAGES * page_size);
		ASSERT_LE(0, fds[i]);
		ASSERT_EQ(0, fallocate(fds[i], 0, page_size, page_size));
	}
	for (i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
	/* Until it is free */
	usleep(200000);

	for (i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = new_memfd(MFD_ALLOW_SEALING, NR_PAGES * page_size);
		ASSERT_LE(0, fds[i]);
		EXPECT_EQ(0, seal(fds[i], variant->seals));
		EXPECT_EQ(1, pwrite(fds[i], "x", 1, 3 * page_size));
		if (syscall(__NR_cachestat, fds[i], &range, &stat, 0))
			continue;
		ASSERT_EQ(1, stat.cache);
		ASSERT_EQ(0, stat.dirty);
	}
	for (i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
}

TEST_F(ordinary, fallocate)
{
	char buf[8] = "";

	/* Unaligned, and a partial punch zeroes. */
	EXPECT_EQ(0, fallocate(self->fd, 0, 1, page_size));
	EXPECT_EQ(2, nr_allocated(self->fd));
	EXPECT_EQ(4, pwrite(self->fd, "text", 4, 0));
	EXPECT_EQ(0, fallocate(self->fd, PUNCH, 2, 1));
	EXPECT_EQ(4, pread(self->fd, buf, 4, 0));
	EXPECT_EQ(0, memcmp(buf, "te\0t", 4));
	/* Pages that were never used read as a hole. */
	EXPECT_EQ(page_size, lseek(self->fd, 0, SEEK_HOLE));
}

TEST_HARNESS_MAIN
