// SPDX-License-Identifier: GPL-2.0-only
/* Ways to read a file. */
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <linux/udmabuf.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "audit.h"

enum outcome run_access(struct target *target, const struct attack *attack)
{
	return attack->access(target, target->fd);
}

enum outcome by_pread(struct target *target, int fd)
{
	char page[PAGE];

	return looked(target, "pread", pread(fd, page, PAGE, target->offset), page);
}

static enum outcome by_map(struct target *target, int fd, int protection, int flags)
{
	char page[PAGE], *map = mmap(NULL, PAGE, protection, flags, fd, target->offset);

	if (map == MAP_FAILED)
		return refused(target, "mmap");
	return looked(target, "access", peek(map, page, PAGE) ? (ssize_t)PAGE : -1, page);
}

enum outcome by_mmap(struct target *target, int fd)
{
	return by_map(target, fd, PROT_READ, MAP_SHARED);
}

static enum outcome by_mmap_write(struct target *target, int fd)
{
	return by_map(target, fd, PROT_READ | PROT_WRITE, MAP_SHARED);
}

static enum outcome by_mmap_private(struct target *target, int fd)
{
	return by_map(target, fd, PROT_READ | PROT_WRITE, MAP_PRIVATE);
}

static enum outcome by_mmap_exec(struct target *target, int fd)
{
	return by_map(target, fd, PROT_READ | PROT_EXEC, MAP_PRIVATE);
}

static enum outcome by_mmap_populate(struct target *target, int fd)
{
	return by_map(target, fd, PROT_READ, MAP_SHARED | MAP_POPULATE);
}

static enum outcome by_mmap_locked(struct target *target, int fd)
{
	return by_map(target, fd, PROT_READ, MAP_SHARED | MAP_LOCKED);
}

static enum outcome by_read(struct target *target, int fd)
{
	char page[PAGE];

	if (lseek(fd, target->offset, SEEK_SET) != target->offset)
		return refused(target, "lseek");
	return looked(target, "read", read(fd, page, PAGE), page);
}

static enum outcome by_readv(struct target *target, int fd)
{
	char page[PAGE];
	struct iovec iov[2] = { { page, PAGE / 2 }, { page + PAGE / 2, PAGE / 2 } };

	return looked(target, "preadv", preadv(fd, iov, 2, target->offset), page);
}

static enum outcome by_readv2(struct target *target, int fd)
{
	char page[PAGE];
	struct iovec iov = { page, PAGE };

	return looked(target, "preadv2", preadv2(fd, &iov, 1, target->offset, RWF_HIPRI), page);
}

static enum outcome by_direct(struct target *target, int fd)
{
	char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int direct = reopen(getpid(), fd, O_RDONLY | O_DIRECT);

	if (direct < 0)
		return refused(target, "open");
	return looked(target, "pread", pread(direct, page, PAGE, target->offset), page);
}

/* Next to it, where the file is not a multiple of what is asked for. */
static enum outcome by_bytes(struct target *target, int fd)
{
	char page[PAGE];
	int i;

	for (i = 0; i < 64; i++)
		if (pread(fd, page + i, 1, target->offset + i) != 1)
			return refused(target, "pread");
	return look(target, page, 64);
}

static enum outcome by_readahead(struct target *target, int fd)
{
	readahead(fd, target->offset, PAGE);
	posix_fadvise(fd, target->offset, PAGE, POSIX_FADV_WILLNEED);
	return by_pread(target, fd);
}

static enum outcome by_splice(struct target *target, int fd)
{
	off_t offset = target->offset;
	char page[PAGE];
	int pipes[2];

	if (pipe(pipes))
		return ended(target, BROKEN, "pipe: %s", strerror(errno));
	if (splice(fd, &offset, pipes[1], NULL, PAGE, 0) < 0)
		return refused(target, "splice");
	return looked(target, "read", read(pipes[0], page, PAGE), page);
}

static enum outcome by_tee(struct target *target, int fd)
{
	off_t offset = target->offset;
	int pipes[2], others[2];
	char page[PAGE];

	if (pipe(pipes) || pipe(others))
		return ended(target, BROKEN, "pipe: %s", strerror(errno));
	if (splice(fd, &offset, pipes[1], NULL, PAGE, SPLICE_F_MOVE) < 0)
		return refused(target, "splice");
	if (tee(pipes[0], others[1], PAGE, 0) < 0)
		return refused(target, "tee");
	return looked(target, "read", read(others[0], page, PAGE), page);
}

static enum outcome by_sendfile(struct target *target, int fd)
{
	int other = new_memfd(0);
	off_t offset = target->offset;
	char page[PAGE];

	if (sendfile(other, fd, &offset, PAGE) < 0)
		return refused(target, "sendfile");
	return looked(target, "pread", pread(other, page, PAGE, 0), page);
}

static enum outcome by_sendfile_socket(struct target *target, int fd)
{
	off_t offset = target->offset;
	char page[PAGE];
	int sockets[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets))
		return ended(target, BROKEN, "socketpair: %s", strerror(errno));
	if (sendfile(sockets[0], fd, &offset, PAGE) < 0)
		return refused(target, "sendfile");
	return looked(target, "read", read(sockets[1], page, PAGE), page);
}

static enum outcome by_copy_file_range(struct target *target, int fd)
{
	int other = new_memfd(0);
	off_t offset = target->offset;
	char page[PAGE];

	if (copy_file_range(fd, &offset, other, NULL, PAGE, 0) < 0)
		return refused(target, "copy_file_range");
	return looked(target, "pread", pread(other, page, PAGE, 0), page);
}

static enum outcome by_uring(struct target *target, int fd)
{
	struct uring uring;
	char page[PAGE];

	if (!uring_init(&uring))
		return ended(target, LACKING, "no io_uring: %s", strerror(errno));
	return looked(target, "IORING_OP_READ",
		      uring_do(&uring, IORING_OP_READ, fd, page, PAGE, target->offset, 0), page);
}

static enum outcome by_uring_readv(struct target *target, int fd)
{
	struct uring uring;
	char page[PAGE];
	struct iovec iov = { page, PAGE };

	if (!uring_init(&uring))
		return ended(target, LACKING, "no io_uring: %s", strerror(errno));
	return looked(target, "IORING_OP_READV",
		      uring_do(&uring, IORING_OP_READV, fd, &iov, 1, target->offset, 0), page);
}

static enum outcome by_uring_async(struct target *target, int fd)
{
	struct uring uring;
	char page[PAGE];

	if (!uring_init(&uring))
		return ended(target, LACKING, "no io_uring: %s", strerror(errno));
	return looked(target, "IORING_OP_READ",
		      uring_do(&uring, IORING_OP_READ, fd, page, PAGE, target->offset, IOSQE_ASYNC),
		      page);
}

static enum outcome by_uring_fixed(struct target *target, int fd)
{
	struct uring uring;
	char page[PAGE];
	struct iovec iov = { page, PAGE };

	if (!uring_init(&uring))
		return ended(target, LACKING, "no io_uring: %s", strerror(errno));
	if (syscall(SYS_io_uring_register, uring.fd, IORING_REGISTER_BUFFERS, &iov, 1))
		return ended(target, BROKEN, "IORING_REGISTER_BUFFERS: %s", strerror(errno));
	return looked(target, "IORING_OP_READ_FIXED",
		      uring_do(&uring, IORING_OP_READ_FIXED, fd, page, PAGE, target->offset, 0),
		      page);
}

static enum outcome by_uring_splice(struct target *target, int fd)
{
	struct io_uring_sqe *sqe;
	struct uring uring;
	char page[PAGE];
	int pipes[2], got;

	if (!uring_init(&uring))
		return ended(target, LACKING, "no io_uring: %s", strerror(errno));
	if (pipe(pipes))
		return ended(target, BROKEN, "pipe: %s", strerror(errno));
	sqe = uring_next(&uring, 0);
	sqe->opcode = IORING_OP_SPLICE;
	sqe->splice_fd_in = fd;
	sqe->splice_off_in = target->offset;
	sqe->fd = pipes[1];
	sqe->off = -1;
	sqe->len = PAGE;
	sqe->user_data = 1;
	if (uring_submit(&uring, 1))
		return ended(target, BROKEN, "io_uring_enter: %s", strerror(errno));
	got = uring_wait(&uring, 1);
	errno = -got;
	if (got < 0)
		return refused(target, "IORING_OP_SPLICE");
	return looked(target, "read", read(pipes[0], page, PAGE), page);
}

static enum outcome by_aio(struct target *target, int fd)
{
	char page[PAGE];
	ssize_t got;
	enum outcome outcome = aio_do(target, IOCB_CMD_PREAD, fd, page, &got);

	return outcome == DONE ? looked(target, "IOCB_CMD_PREAD", got, page) : outcome;
}

static enum outcome by_pread_of_loop(struct target *target, int loop)
{
	char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return looked(target, "pread of the loop device", pread(loop, page, PAGE, target->offset),
		      page);
}

static enum outcome by_loop(struct target *target, int fd)
{
	return with_loop(target, fd, false, by_pread_of_loop);
}

static enum outcome by_loop_direct(struct target *target, int fd)
{
	return with_loop(target, fd, true, by_pread_of_loop);
}

static enum outcome by_udmabuf(struct target *target, int fd)
{
	struct udmabuf_create create = {
		.memfd = fd,
		.offset = target->offset,
		.size = PAGE,
	};
	int device = open("/dev/udmabuf", O_RDWR | O_CLOEXEC), buffer;

	if (device < 0)
		return ended(target, LACKING, "no /dev/udmabuf: %s", strerror(errno));
	/* It insists on that. */
	fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
	buffer = ioctl(device, UDMABUF_CREATE, &create);
	if (buffer < 0)
		return refused(target, "UDMABUF_CREATE");
	target->offset = 0;
	return by_map(target, buffer, PROT_READ, MAP_SHARED);
}

static enum outcome by_unsealing(struct target *target, int fd)
{
	/* There is no call for that; these are as near as it gets. */
	fcntl(fd, F_ADD_SEALS, 0);
	fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE);
	fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL);
	return by_pread(target, fd);
}

/* clang-format off */
#define READ(n, a, w) { .name = n, .what = w, .run = run_access, .access = a, .wants = SEEN, .flags = BY_FD }

static const struct attack attacks[] = {
	READ("read", by_read, "read() at the file's position"),
	READ("pread", by_pread, "pread() of a page"),
	READ("bytes", by_bytes, "pread() byte by byte"),
	READ("preadv", by_readv, "preadv() into two buffers"),
	READ("preadv2", by_readv2, "preadv2() with a flag"),
	READ("O_DIRECT", by_direct, "pread() with O_DIRECT, past the page cache"),
	READ("readahead", by_readahead, "readahead() and POSIX_FADV_WILLNEED, then pread()"),
	READ("mmap", by_mmap, "a shared mapping to read from"),
	READ("mmap, writable", by_mmap_write, "a shared mapping to read from and write to"),
	READ("mmap, private", by_mmap_private, "a private mapping"),
	READ("mmap, executable", by_mmap_exec, "a private mapping to execute, as of a program"),
	READ("mmap, populated", by_mmap_populate, "a mapping with all pages faulted in at once"),
	READ("mmap, locked", by_mmap_locked, "a mapping that is locked into memory"),
	READ("splice", by_splice, "splice() to a pipe"),
	READ("tee", by_tee, "splice() to a pipe and tee() to another one"),
	READ("sendfile", by_sendfile, "sendfile() to another file"),
	READ("sendfile, socket", by_sendfile_socket, "sendfile() to a socket"),
	READ("copy_file_range", by_copy_file_range, "copy_file_range() to another memfd"),
	READ("io_uring", by_uring, "io_uring's READ"),
	READ("io_uring, vector", by_uring_readv, "io_uring's READV"),
	READ("io_uring, worker", by_uring_async, "io_uring's READ, by a worker of the kernel's"),
	READ("io_uring, buffer", by_uring_fixed, "io_uring's READ_FIXED into a registered buffer"),
	READ("io_uring, splice", by_uring_splice, "io_uring's SPLICE to a pipe"),
	READ("aio", by_aio, "AIO's PREAD"),
	READ("loop", by_loop, "a loop device on the file"),
	READ("loop, direct", by_loop_direct, "a loop device on the file that uses direct I/O"),
	{ "udmabuf", "a DMA buffer of its pages, and a mapping of that",
	  .run = run_access, .access = by_udmabuf, .wants = SEEN },
	{ "seals", "other seals, as if that took this one off, then pread()",
	  .run = run_access, .access = by_unsealing, .wants = SEEN },
};
/* clang-format on */

const struct group read_group = GROUP("memfd", "read", "by a descriptor of the file", attacks);
