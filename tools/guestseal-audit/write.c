// SPDX-License-Identifier: GPL-2.0-only
/* Ways to change what is in the file, which the guest would see. */
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "audit.h"

/* What is written instead */
static char junk[PAGE] __attribute__((aligned(PAGE))) = { "This is not what the guest wrote." };

static enum outcome wrote(struct target *target, const char *call, long result)
{
	return result < 0 ? refused(target, call) : ended(target, DONE, "%s: let through", call);
}

static enum outcome by_write(struct target *target, int fd)
{
	if (lseek(fd, target->offset, SEEK_SET) != target->offset)
		return refused(target, "lseek");
	return wrote(target, "write", write(fd, junk, PAGE));
}

static enum outcome by_pwrite(struct target *target, int fd)
{
	return wrote(target, "pwrite", pwrite(fd, junk, PAGE, target->offset));
}

static enum outcome by_byte(struct target *target, int fd)
{
	return wrote(target, "pwrite", pwrite(fd, "\x55\xaa", 2, target->offset + 33));
}

static enum outcome by_pwritev2(struct target *target, int fd)
{
	struct iovec iov = { junk, PAGE };

	return wrote(target, "pwritev2", pwritev2(fd, &iov, 1, target->offset, RWF_DSYNC));
}

static enum outcome by_direct(struct target *target, int fd)
{
	int direct = reopen(getpid(), fd, O_RDWR | O_DIRECT);

	if (direct < 0)
		return refused(target, "open");
	return wrote(target, "pwrite", pwrite(direct, junk, PAGE, target->offset));
}

static enum outcome by_mapping(struct target *target, int fd)
{
	char *map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, target->offset);

	if (map == MAP_FAILED)
		return refused(target, "mmap");
	return wrote(target, "access", peek(junk, map, PAGE) ? 0 : -1);
}

static enum outcome by_mprotect(struct target *target, int fd)
{
	char *map = mmap(NULL, PAGE, PROT_NONE, MAP_SHARED, fd, target->offset);

	if (map == MAP_FAILED)
		return refused(target, "mmap");
	if (mprotect(map, PAGE, PROT_READ | PROT_WRITE))
		return refused(target, "mprotect");
	return wrote(target, "access", peek(junk, map, PAGE) ? 0 : -1);
}

static enum outcome by_pipe(struct target *target, int fd, bool move)
{
	struct iovec iov = { junk, PAGE };
	off_t offset = target->offset;
	int pipes[2];

	if (pipe(pipes))
		return ended(target, BROKEN, "pipe: %s", strerror(errno));
	if (move ? vmsplice(pipes[1], &iov, 1, SPLICE_F_GIFT) != PAGE
		 : write(pipes[1], junk, PAGE) != PAGE)
		return ended(target, BROKEN, "pipe: %s", strerror(errno));
	return wrote(target, "splice",
		     splice(pipes[0], NULL, fd, &offset, PAGE, move ? SPLICE_F_MOVE : 0));
}

static enum outcome by_splice(struct target *target, int fd)
{
	return by_pipe(target, fd, false);
}

static enum outcome by_vmsplice(struct target *target, int fd)
{
	return by_pipe(target, fd, true);
}

static int junk_file(void)
{
	int fd = new_memfd(PAGE);

	return pwrite(fd, junk, PAGE, 0) == PAGE ? fd : -1;
}

static enum outcome by_sendfile(struct target *target, int fd)
{
	off_t offset = 0;

	if (lseek(fd, target->offset, SEEK_SET) != target->offset)
		return refused(target, "lseek");
	return wrote(target, "sendfile", sendfile(fd, junk_file(), &offset, PAGE));
}

static enum outcome by_copy_file_range(struct target *target, int fd)
{
	off_t offset = target->offset;

	return wrote(target, "copy_file_range",
		     copy_file_range(junk_file(), NULL, fd, &offset, PAGE, 0));
}

/* From one of the guest's pages to another */
static enum outcome by_copy_within(struct target *target, int fd)
{
	off_t from = target->offset + PAGE, to = target->offset;

	return wrote(target, "copy_file_range", copy_file_range(fd, &from, fd, &to, PAGE, 0));
}

static enum outcome by_uring(struct target *target, int fd)
{
	struct uring uring;

	if (!uring_init(&uring))
		return ended(target, LACKING, "no io_uring: %s", strerror(errno));
	return wrote(target, "IORING_OP_WRITE",
		     uring_do(&uring, IORING_OP_WRITE, fd, junk, PAGE, target->offset, 0));
}

static enum outcome by_uring_fixed(struct target *target, int fd)
{
	struct iovec iov = { junk, PAGE };
	struct uring uring;

	if (!uring_init(&uring))
		return ended(target, LACKING, "no io_uring: %s", strerror(errno));
	if (syscall(SYS_io_uring_register, uring.fd, IORING_REGISTER_BUFFERS, &iov, 1) ||
	    syscall(SYS_io_uring_register, uring.fd, IORING_REGISTER_FILES, &fd, 1))
		return ended(target, BROKEN, "io_uring_register: %s", strerror(errno));
	return wrote(target, "IORING_OP_WRITE_FIXED",
		     uring_do(&uring, IORING_OP_WRITE_FIXED, 0, junk, PAGE, target->offset,
			      IOSQE_FIXED_FILE));
}

static enum outcome by_aio(struct target *target, int fd)
{
	ssize_t done;
	enum outcome outcome = aio_do(target, IOCB_CMD_PWRITE, fd, junk, &done);

	return outcome == DONE ? wrote(target, "IOCB_CMD_PWRITE", done) : outcome;
}

/* Only fsync() tells. */
static enum outcome by_pwrite_of_loop(struct target *target, int loop)
{
	return wrote(target, "pwrite and fsync of the loop device",
		     pwrite(loop, junk, PAGE, target->offset) == PAGE ? fsync(loop) : -1);
}

static enum outcome by_loop(struct target *target, int fd)
{
	return with_loop(target, fd, false, by_pwrite_of_loop);
}

static enum outcome by_discard_of_loop(struct target *target, int loop)
{
	uint64_t range[2] = { target->offset, PAGE };

	return wrote(target, "BLKDISCARD", ioctl(loop, BLKDISCARD, range));
}

static enum outcome by_discard(struct target *target, int fd)
{
	return with_loop(target, fd, false, by_discard_of_loop);
}

static enum outcome by_shrinking(struct target *target, int fd)
{
	return wrote(target, "ftruncate", ftruncate(fd, target->offset));
}

static enum outcome by_shrinking_part(struct target *target, int fd)
{
	return wrote(target, "ftruncate", ftruncate(fd, target->offset + 100));
}

/* To grow it again is allowed if it's allowed to shrink it. */
static enum outcome by_growing_again(struct target *target, int fd)
{
	if (ftruncate(fd, target->size + PAGE))
		return refused(target, "ftruncate");
	return wrote(target, "ftruncate", ftruncate(fd, 0) || ftruncate(fd, target->size) ? -1 : 0);
}

static enum outcome by_open(struct target *target, int fd)
{
	return wrote(target, "open", reopen(getpid(), fd, O_RDWR | O_TRUNC));
}

static enum outcome by_part_of_page(struct target *target, int fd)
{
	return wrote(target, "fallocate", fallocate(fd, PUNCH, target->offset + 64, 256));
}

static enum outcome by_replacing(struct target *target, int fd)
{
	if (fallocate(fd, PUNCH, target->offset, PAGE))
		return refused(target, "fallocate");
	return wrote(target, "pwrite", pwrite(fd, junk, PAGE, target->offset));
}

#define FREEING                                                                                    \
	"whoever has the file may free the guest's pages; only protected VMs"                      \
	" have a say in that"

/* clang-format off */
#define WRITE(n, a, w) { .name = n, .what = w, .run = run_access, .access = a, .wants = CHANGED }

static const struct attack attacks[] = {
	WRITE("write", by_write, "write() at the file's position"),
	WRITE("pwrite", by_pwrite, "pwrite() of a page"),
	WRITE("bytes", by_byte, "pwrite() of two bytes within a page"),
	WRITE("pwritev2", by_pwritev2, "pwritev2() with a flag"),
	WRITE("O_DIRECT", by_direct, "pwrite() with O_DIRECT"),
	WRITE("mmap", by_mapping, "a shared mapping to write to"),
	WRITE("mprotect", by_mprotect, "a mapping without access, that gets it later"),
	WRITE("splice", by_splice, "splice() from a pipe"),
	WRITE("vmsplice", by_vmsplice, "vmsplice() of a page as a gift, that splice() moves there"),
	WRITE("sendfile", by_sendfile, "sendfile() from another file"),
	WRITE("copy_file_range", by_copy_file_range, "copy_file_range() from another memfd"),
	WRITE("copy within", by_copy_within, "copy_file_range() of one of the guest's pages to another"),
	WRITE("io_uring", by_uring, "io_uring's WRITE"),
	WRITE("io_uring, buffer", by_uring_fixed, "io_uring's WRITE_FIXED, from a registered buffer to a registered file"),
	WRITE("aio", by_aio, "AIO's PWRITE"),
	WRITE("loop", by_loop, "a loop device on the file"),
	WRITE("shrink", by_shrinking, "ftruncate() to less, at the end of a page"),
	WRITE("shrink to part", by_shrinking_part, "ftruncate() to less, within a page, which clears its rest"),
	WRITE("grow and shrink", by_growing_again, "ftruncate() to more, to nothing, and to what it was"),
	WRITE("O_TRUNC", by_open, "the file opened again with O_TRUNC"),
	WRITE("punch within a page", by_part_of_page, "a hole in a part of a page, which clears that"),
	{ "punch and write", "a page freed, and written anew with other content",
	  .run = run_access, .access = by_replacing, .wants = CHANGED, .scope = FREEING },
	{ "loop, discard", "BLKDISCARD of a loop device on the file, which frees pages",
	  .run = run_access, .access = by_discard, .wants = CHANGED, .scope = FREEING },
};
/* clang-format on */

const struct group write_group = GROUP("memfd", "write", "by a descriptor of the file", attacks);
