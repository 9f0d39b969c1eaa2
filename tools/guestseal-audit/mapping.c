// SPDX-License-Identifier: GPL-2.0-only
/*
 * Through a mapping. A shared one keeps the file from being sealed. A private one that is
 * being made in that moment does not, so there can be one of a sealed file, of no use:
 * these are the attempts to make use of it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "audit.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

#define TRIES 20000

static struct target *race;
static pthread_barrier_t barrier;
static bool over;

static void *map_again(void *data)
{
	for (;;) {
		pthread_barrier_wait(&barrier);
		if (over)
			return data;
		race->window =
			mmap(NULL, race->size, PROT_READ | PROT_WRITE, MAP_PRIVATE, race->fd, 0);
		pthread_barrier_wait(&barrier);
	}
}

/* Map and seal at once, until both succeed. */
static enum outcome win_race(struct target *target)
{
	volatile unsigned int n;
	unsigned int spin;
	pthread_t thread;
	bool sealed, won = false;
	int i;

	race = target;
	pthread_barrier_init(&barrier, NULL, 2);
	if (pthread_create(&thread, NULL, map_again, NULL))
		return ended(target, BROKEN, "no thread");
	for (i = 0; i < TRIES && !won; i++) {
		close(target->fd);
		target->fd = new_memfd(target->size);
		spin = rand() % 4096;
		pthread_barrier_wait(&barrier);
		for (n = 0; n < spin; n++)
			;
		sealed = !fcntl(target->fd, F_ADD_SEALS, F_SEAL_GUEST);
		pthread_barrier_wait(&barrier);
		won = sealed && target->window != MAP_FAILED;
		if (!won && target->window != MAP_FAILED)
			munmap(target->window, target->size);
	}
	over = true;
	pthread_barrier_wait(&barrier);
	pthread_join(thread, NULL);
	return won ? DONE : ended(target, REFUSED, "no mapping came with the seal in %d tries", i);
}

static enum outcome map(struct target *target, const struct attack *attack)
{
	(void)attack;
	if (target->sealed)
		return win_race(target);
	target->window =
		mmap(NULL, target->size, PROT_READ | PROT_WRITE, MAP_PRIVATE, target->fd, 0);
	return target->window == MAP_FAILED ? ended(target, BROKEN, "mmap: %s", strerror(errno))
					    : DONE;
}

static enum outcome touch(struct target *target, const struct attack *attack)
{
	char page[PAGE];

	(void)attack;
	return looked(target, "access",
		      peek(target->window + target->offset, page, PAGE) ? (ssize_t)PAGE : -1, page);
}

/* A write makes a copy, with the rest of the page in it. */
static enum outcome copy_on_write(struct target *target, const struct attack *attack)
{
	if (!peek("\x55", target->window + target->offset, 1))
		return refused(target, "write");
	return touch(target, attack);
}

static enum outcome advised(struct target *target, const struct attack *attack, int advice)
{
	if (madvise(target->window, target->size, advice))
		return refused(target, "madvise");
	return touch(target, attack);
}

static enum outcome populate(struct target *target, const struct attack *attack)
{
	return advised(target, attack, MADV_POPULATE_READ);
}

static enum outcome will_need(struct target *target, const struct attack *attack)
{
	return advised(target, attack, MADV_WILLNEED);
}

static enum outcome merge(struct target *target, const struct attack *attack)
{
	return advised(target, attack, MADV_MERGEABLE);
}

static enum outcome lock(struct target *target, const struct attack *attack)
{
	if (mlock(target->window, target->size))
		return refused(target, "mlock");
	return touch(target, attack);
}

static enum outcome move(struct target *target, const struct attack *attack)
{
	char *moved = mremap(target->window, target->size, 2 * target->size, MREMAP_MAYMOVE);

	if (moved == MAP_FAILED)
		return refused(target, "mremap");
	target->window = moved;
	return touch(target, attack);
}

static enum outcome in_child(struct target *target, const struct attack *attack)
{
	char page[PAGE], *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
					MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid = fork();
	int status;

	(void)attack;
	if (!pid) {
		bool got = peek(target->window + target->offset, page, PAGE);

		memcpy(shared, page, PAGE);
		_exit(!got);
	}
	waitpid(pid, &status, 0);
	errno = EFAULT;
	return looked(target, "access", status ? -1 : (ssize_t)PAGE, shared);
}

static enum outcome pin(struct target *target, const struct attack *attack)
{
	char page[PAGE];
	struct iovec here = { page, PAGE }, there = { target->window + target->offset, PAGE };

	(void)attack;
	return looked(target, "process_vm_readv",
		      process_vm_readv(getpid(), &here, 1, &there, 1, 0), page);
}

static enum outcome mem(struct target *target, const struct attack *attack)
{
	int fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	char page[PAGE];

	(void)attack;
	return looked(target, "/proc/self/mem",
		      pread(fd, page, PAGE, (off_t)target->window + target->offset), page);
}

static enum outcome to_pipe(struct target *target, const struct attack *attack)
{
	struct iovec iov = { target->window + target->offset, PAGE };
	char page[PAGE];
	int pipes[2];

	(void)attack;
	if (pipe(pipes))
		return ended(target, BROKEN, "pipe: %s", strerror(errno));
	if (vmsplice(pipes[1], &iov, 1, 0) < 0)
		return refused(target, "vmsplice");
	return looked(target, "read", read(pipes[0], page, PAGE), page);
}

static enum outcome to_file(struct target *target, int flags)
{
	int fd = new_memfd(PAGE), other = reopen(getpid(), fd, O_RDWR | flags);
	char page[PAGE];

	if (pwrite(other, target->window + target->offset, PAGE, 0) < 0)
		return refused(target, "pwrite");
	return looked(target, "pread", pread(fd, page, PAGE, 0), page);
}

static enum outcome buffered(struct target *target, const struct attack *attack)
{
	(void)attack;
	return to_file(target, 0);
}

static enum outcome direct(struct target *target, const struct attack *attack)
{
	(void)attack;
	return to_file(target, O_DIRECT);
}

static enum outcome registered(struct target *target, const struct attack *attack)
{
	struct iovec iov = { target->window, target->size };
	int other = new_memfd(PAGE);
	struct uring uring;
	char page[PAGE];

	(void)attack;
	if (!uring_init(&uring))
		return ended(target, LACKING, "no io_uring: %s", strerror(errno));
	/* To pin it for writing is to have a copy. */
	if (syscall(SYS_io_uring_register, uring.fd, IORING_REGISTER_BUFFERS, &iov, 1))
		return refused(target, "IORING_REGISTER_BUFFERS");
	if (uring_do(&uring, IORING_OP_WRITE_FIXED, other, target->window + target->offset, PAGE, 0,
		     0) < 0)
		return refused(target, "IORING_OP_WRITE_FIXED");
	return looked(target, "pread", pread(other, page, PAGE, 0), page);
}

static enum outcome minor_fault(struct target *target, const struct attack *attack)
{
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = {
		.range = { (unsigned long)target->window, target->size },
		.mode = UFFDIO_REGISTER_MODE_MINOR,
	};
	struct uffdio_continue page = {
		.range = { (unsigned long)target->window + target->offset, PAGE },
	};

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		return ended(target, LACKING, "no userfaultfd: %s", strerror(errno));
	if (ioctl(fd, UFFDIO_REGISTER, &range))
		return ended(target, LACKING, "UFFDIO_REGISTER: %s", strerror(errno));
	if (ioctl(fd, UFFDIO_CONTINUE, &page))
		return refused(target, "UFFDIO_CONTINUE");
	return touch(target, attack);
}

static enum outcome move_pages_of(struct target *target, const struct attack *attack)
{
	void *page = target->window + target->offset;
	int node = 0, status;

	if (syscall(SYS_move_pages, 0, 1UL, &page, &node, &status, 4 /* MPOL_MF_MOVE_ALL */) < 0)
		return errno == ENOSYS ? ended(target, LACKING, "no move_pages()")
				       : refused(target, "move_pages");
	return touch(target, attack);
}

static enum outcome map_files(struct target *target, const struct attack *attack)
{
	char path[96];
	int fd;

	(void)attack;
	snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", (unsigned long)target->window,
		 (unsigned long)(target->window + target->size));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return refused(target, "open");
	return by_pread(target, fd);
}

/* clang-format off */
#define MAPPING(n, r, w) { .name = n, .what = w, .prepare = map, .run = r, .wants = SEEN }

static const struct attack attacks[] = {
	MAPPING("access", touch, "an access"),
	MAPPING("copy on write", copy_on_write, "a write, which makes a copy"),
	MAPPING("MADV_POPULATE_READ", populate, "madvise() to fault all pages in"),
	MAPPING("MADV_WILLNEED", will_need, "madvise() to read ahead"),
	MAPPING("MADV_MERGEABLE", merge, "madvise() for KSM"),
	MAPPING("mlock", lock, "mlock(), which faults all pages in"),
	MAPPING("mremap", move, "the mapping moved and grown"),
	MAPPING("fork", in_child, "an access by a child"),
	MAPPING("process_vm_readv", pin, "process_vm_readv(), which pins pages"),
	MAPPING("/proc/self/mem", mem, "read() of the memory where it's mapped"),
	MAPPING("vmsplice", to_pipe, "vmsplice() to a pipe"),
	MAPPING("write from it", buffered, "write() of it to a file"),
	MAPPING("O_DIRECT from it", direct, "write() of it to a file with O_DIRECT"),
	MAPPING("registered buffer", registered, "io_uring's WRITE_FIXED of it, registered as a buffer"),
	MAPPING("userfaultfd, minor", minor_fault, "userfaultfd on it, and UFFDIO_CONTINUE"),
	MAPPING("move_pages", move_pages_of, "its pages moved between NUMA nodes"),
	MAPPING("map_files", map_files, "the mapping's file, opened again"),
};
/* clang-format on */

const struct group mapping_group = GROUP("memfd", "mapping", "by a mapping", attacks);
