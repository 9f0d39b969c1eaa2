// SPDX-License-Identifier: GPL-2.0-only
/* Ways to come by a descriptor of the file, and what each is good for. */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "audit.h"

static int duplicate(struct target *target)
{
	return dup(target->fd);
}

static int reopened(struct target *target)
{
	return reopen(getpid(), target->fd, O_RDWR);
}

static int reopened_to_read(struct target *target)
{
	return reopen(getpid(), target->fd, O_RDONLY);
}

/* One of the VMM's own that is the same file */
static int of_vmm(struct target *target)
{
	char path[64], ours[256], theirs[256];
	ssize_t length = -1;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", target->fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	length = read(fd, ours, sizeof(ours) - 1);
	close(fd);
	if (length < 0)
		return -1;
	ours[length] = 0;
	for (int other = 0; other < 1024; other++) {
		char *a, *b;

		snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", target->pid, other);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		length = read(fd, theirs, sizeof(theirs) - 1);
		close(fd);
		theirs[length > 0 ? length : 0] = 0;
		a = strstr(ours, "ino:");
		b = strstr(theirs, "ino:");
		if (a && b && strtoul(a + 4, NULL, 10) == strtoul(b + 4, NULL, 10))
			return other;
	}
	errno = ENOENT;
	return -1;
}

static int opened_of_vmm(struct target *target)
{
	int fd = of_vmm(target);

	return fd < 0 ? -1 : reopen(target->pid, fd, O_RDWR);
}

static int taken_of_vmm(struct target *target)
{
	int pidfd = syscall(SYS_pidfd_open, target->pid, 0), fd = of_vmm(target);

	return fd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
}

static int of_path(struct target *target)
{
	int path = reopen(getpid(), target->fd, O_PATH);

	return path < 0 ? -1 : reopen(getpid(), path, O_RDWR);
}

static int opened_at(struct target *target)
{
	int fds = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	char name[16];

	snprintf(name, sizeof(name), "%d", target->fd);
	return openat(fds, name, O_RDWR | O_CLOEXEC);
}

static int passed(struct target *target)
{
	union {
		struct cmsghdr align;
		char buffer[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	char byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr message = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	int sockets[2], fd;

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &target->fd, sizeof(int));
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) || sendmsg(sockets[0], &message, 0) != 1 ||
	    recvmsg(sockets[1], &message, 0) != 1)
		return -1;
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	return fd;
}

static int by_handle(struct target *target)
{
	union {
		struct file_handle handle;
		char buffer[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u = { .handle.handle_bytes = MAX_HANDLE_SZ };
	int mount;

	if (name_to_handle_at(target->fd, "", &u.handle, &mount, AT_EMPTY_PATH))
		return -1;
	return open_by_handle_at(target->fd, &u.handle, O_RDWR | O_CLOEXEC);
}

static int opened_by_uring(struct target *target)
{
	struct io_uring_sqe *sqe;
	struct uring uring;
	char path[64];
	int fd;

	if (!uring_init(&uring))
		return -1;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", target->fd);
	sqe = uring_next(&uring, 0);
	sqe->opcode = IORING_OP_OPENAT;
	sqe->fd = AT_FDCWD;
	sqe->addr = (unsigned long)path;
	sqe->open_flags = O_RDWR | O_CLOEXEC;
	sqe->user_data = 1;
	if (uring_submit(&uring, 1))
		return -1;
	fd = uring_wait(&uring, 1);
	errno = -fd;
	return fd < 0 ? -1 : fd;
}

static enum outcome run(struct target *target, const struct attack *attack)
{
	int fd = attack->way(target);

	if (fd < 0)
		return refused(target, "no descriptor");
	return attack->access(target, fd);
}

/* In a child, which tells by pipe; @arguments are for it to execute something first. */
static enum outcome in_child(struct target *target, char **arguments)
{
	ssize_t got = 0, more;
	char page[PAGE];
	int pipes[2];
	pid_t pid;

	if (pipe(pipes))
		return ended(target, BROKEN, "pipe: %s", strerror(errno));
	pid = fork();
	if (!pid) {
		dup2(pipes[1], STDOUT_FILENO);
		dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
		if (arguments) {
			fcntl(target->fd, F_SETFD, 0);
			execv(arguments[0], arguments);
			_exit(1);
		}
		more = pread(target->fd, page, PAGE, target->offset);
		_exit(more < 0 ? errno : write(STDOUT_FILENO, page, more) != more);
	}
	close(pipes[1]);
	while ((more = read(pipes[0], page + got, PAGE - got)) > 0)
		got += more;
	waitpid(pid, NULL, 0);
	return look(target, page, got);
}

static enum outcome run_fork(struct target *target, const struct attack *attack)
{
	(void)attack;
	return in_child(target, NULL);
}

static enum outcome run_exec(struct target *target, const struct attack *attack)
{
	char from[64], skip[32];
	char *arguments[] = { "/bin/dd", "bs=4096", "count=1", skip, from, "status=none", NULL };

	(void)attack;
	if (access(arguments[0], X_OK))
		return ended(target, LACKING, "no %s", arguments[0]);
	snprintf(from, sizeof(from), "if=/proc/self/fd/%d", target->fd);
	snprintf(skip, sizeof(skip), "skip=%llu", target->offset / (unsigned long long)PAGE);
	return in_child(target, arguments);
}

static enum outcome run_inherited(struct target *target, const struct attack *attack)
{
	char command[96];
	char *arguments[] = { "/bin/sh", "-c", command, NULL };

	(void)attack;
	if (access(arguments[0], X_OK))
		return ended(target, LACKING, "no %s", arguments[0]);
	snprintf(command, sizeof(command), "exec dd bs=4096 count=1 skip=%llu <&%d 2>/dev/null",
		 target->offset / (unsigned long long)PAGE, target->fd);
	return in_child(target, arguments);
}

static enum outcome run_fixed_file(struct target *target, const struct attack *attack)
{
	struct uring uring;
	char page[PAGE];

	(void)attack;
	if (!uring_init(&uring))
		return ended(target, LACKING, "no io_uring: %s", strerror(errno));
	if (syscall(SYS_io_uring_register, uring.fd, IORING_REGISTER_FILES, &target->fd, 1))
		return refused(target, "IORING_REGISTER_FILES");
	return looked(target, "IORING_OP_READ",
		      uring_do(&uring, IORING_OP_READ, 0, page, PAGE, target->offset,
			       IOSQE_FIXED_FILE),
		      page);
}

/* clang-format off */
#define WAY(n, w, how) \
	{ n ", pread", how ", then pread()", .run = run, .way = w, .access = by_pread, .wants = SEEN, .flags = BY_FD }, \
	{ n ", mmap", how ", then mmap()", .run = run, .way = w, .access = by_mmap, .wants = SEEN, .flags = BY_FD }

static const struct attack attacks[] = {
	WAY("dup", duplicate, "a duplicate of the descriptor"),
	WAY("/proc/self/fd", reopened, "the file opened again, to read and write"),
	WAY("/proc/self/fd, to read", reopened_to_read, "the file opened again, to read only"),
	WAY("/proc/PID/fd", opened_of_vmm, "the VMM's descriptor opened again"),
	WAY("pidfd_getfd", taken_of_vmm, "the VMM's descriptor itself, by pidfd_getfd()"),
	WAY("O_PATH", of_path, "a descriptor for the path only, opened again"),
	WAY("openat", opened_at, "the file opened relative to /proc/self/fd"),
	WAY("SCM_RIGHTS", passed, "a descriptor that came through a socket"),
	WAY("file handle", by_handle, "the file opened by its handle"),
	WAY("io_uring, open", opened_by_uring, "the file opened by io_uring"),
	{ "io_uring, fixed file", "io_uring's READ from a registered file",
	  .run = run_fixed_file, .wants = SEEN, .flags = BY_FD },
	{ "fork", "a child inherits the descriptor, and reads",
	  .run = run_fork, .wants = SEEN, .flags = BY_FD },
	{ "exec", "another program opens the file again, and reads",
	  .run = run_exec, .wants = SEEN, .flags = BY_FD },
	{ "exec, inherited", "another program has the file as its input",
	  .run = run_inherited, .wants = SEEN },
};
/* clang-format on */

const struct group descriptor_group =
	GROUP("memfd", "descriptor", "by other descriptors of the file", attacks);
