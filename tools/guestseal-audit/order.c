// SPDX-License-Identifier: GPL-2.0-only
/* What is begun before the file is sealed, and used when the guest has content in it. */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/udmabuf.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "audit.h"

/* To be sealed it has to be empty; whoever holds on to what was there has it still. */
static enum outcome make_way(struct target *target)
{
	if (target->sealed && fallocate(target->fd, PUNCH, 0, target->size))
		return ended(target, BROKEN, "fallocate: %s", strerror(errno));
	return DONE;
}

static enum outcome broken(struct target *target, const char *call)
{
	return ended(target, BROKEN, "%s: %s", call, strerror(errno));
}

/* --- mappings ----------------------------------------------------------------------------- */

static enum outcome map(struct target *target, int fd, int protection, int flags)
{
	target->window = mmap(NULL, target->size, protection, flags, fd, 0);
	return target->window == MAP_FAILED ? broken(target, "mmap") : DONE;
}

static enum outcome map_shared(struct target *target, const struct attack *attack)
{
	(void)attack;
	return map(target, target->fd, PROT_READ | PROT_WRITE, MAP_SHARED);
}

static enum outcome map_touched(struct target *target, const struct attack *attack)
{
	if (map_shared(target, attack) != DONE)
		return BROKEN;
	memset(target->window, 1, target->size);
	return make_way(target);
}

static enum outcome map_read_only(struct target *target, const struct attack *attack)
{
	(void)attack;
	return map(target, reopen(getpid(), target->fd, O_RDONLY), PROT_READ, MAP_SHARED);
}

static enum outcome map_private(struct target *target, const struct attack *attack)
{
	(void)attack;
	return map(target, target->fd, PROT_READ | PROT_WRITE, MAP_PRIVATE);
}

static enum outcome map_locked(struct target *target, const struct attack *attack)
{
	(void)attack;
	if (map(target, target->fd, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_LOCKED) != DONE)
		return BROKEN;
	return make_way(target);
}

static enum outcome map_without_access(struct target *target, const struct attack *attack)
{
	(void)attack;
	return map(target, target->fd, PROT_NONE, MAP_SHARED);
}

static enum outcome map_moved(struct target *target, const struct attack *attack)
{
	if (map_shared(target, attack) != DONE)
		return BROKEN;
	/* A second mapping of the same, for size 0, and the first one is gone. */
	char *other = mremap(target->window, 0, target->size, MREMAP_MAYMOVE);

	if (other == MAP_FAILED)
		return broken(target, "mremap");
	munmap(target->window, target->size);
	target->window = other;
	return DONE;
}

static enum outcome map_in_child(struct target *target, const struct attack *attack)
{
	if (map_shared(target, attack) != DONE)
		return BROKEN;
	target->taken = fork();
	if (!target->taken) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}
	munmap(target->window, target->size);
	return target->taken > 0 ? DONE : broken(target, "fork");
}

static enum outcome read_window(struct target *target, const struct attack *attack)
{
	char page[PAGE];

	(void)attack;
	if (mprotect(target->window, target->size, PROT_READ))
		return refused(target, "mprotect");
	return looked(target, "access",
		      peek(target->window + target->offset, page, PAGE) ? (ssize_t)PAGE : -1, page);
}

static enum outcome read_of_child(struct target *target, const struct attack *attack)
{
	char page[PAGE];
	struct iovec here = { page, PAGE }, there = { target->window + target->offset, PAGE };

	(void)attack;
	return looked(target, "process_vm_readv",
		      process_vm_readv(target->taken, &here, 1, &there, 1, 0), page);
}

static enum outcome userfault(struct target *target, const struct attack *attack)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range;

	target->taken = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (target->taken < 0 || ioctl(target->taken, UFFDIO_API, &api))
		return ended(target, LACKING, "no userfaultfd: %s", strerror(errno));
	if (map_shared(target, attack) != DONE)
		return BROKEN;
	range = (struct uffdio_register){
		.range = { (unsigned long)target->window, target->size },
		.mode = UFFDIO_REGISTER_MODE_MINOR,
	};
	if (ioctl(target->taken, UFFDIO_REGISTER, &range))
		return ended(target, LACKING, "UFFDIO_REGISTER: %s", strerror(errno));
	return DONE;
}

static enum outcome continue_fault(struct target *target, const struct attack *attack)
{
	struct uffdio_continue range = {
		.range = { (unsigned long)target->window + target->offset, PAGE },
	};

	if (ioctl(target->taken, UFFDIO_CONTINUE, &range))
		return refused(target, "UFFDIO_CONTINUE");
	return read_window(target, attack);
}

/* --- pages that are pinned ---------------------------------------------------------------- */

static struct uring uring;

static enum outcome pin_in_buffer(struct target *target, const struct attack *attack)
{
	struct iovec iov;

	if (!uring_init(&uring))
		return ended(target, LACKING, "no io_uring: %s", strerror(errno));
	if (map_shared(target, attack) != DONE)
		return BROKEN;
	iov = (struct iovec){ target->window, target->size };
	if (syscall(SYS_io_uring_register, uring.fd, IORING_REGISTER_BUFFERS, &iov, 1))
		return broken(target, "IORING_REGISTER_BUFFERS");
	munmap(target->window, target->size);
	return make_way(target);
}

static enum outcome write_from_buffer(struct target *target, const struct attack *attack)
{
	int other = new_memfd(PAGE);
	char page[PAGE];

	(void)attack;
	if (uring_do(&uring, IORING_OP_WRITE_FIXED, other, target->window + target->offset, PAGE, 0,
		     0) < 0)
		return refused(target, "IORING_OP_WRITE_FIXED");
	return looked(target, "pread", pread(other, page, PAGE, 0), page);
}

static int pipes[2];

static enum outcome pin_in_pipe(struct target *target, const struct attack *attack)
{
	struct iovec iov;

	if (map_shared(target, attack) != DONE)
		return BROKEN;
	memset(target->window, 1, target->size);
	iov = (struct iovec){ target->window + target->offset, PAGE };
	if (pipe(pipes) || vmsplice(pipes[1], &iov, 1, 0) != (ssize_t)PAGE)
		return broken(target, "vmsplice");
	munmap(target->window, target->size);
	return make_way(target);
}

static enum outcome splice_to_pipe(struct target *target, const struct attack *attack)
{
	off_t offset = target->offset;
	static char page[PAGE];

	(void)attack;
	if (pwrite(target->fd, page, PAGE, offset) != (ssize_t)PAGE || pipe(pipes) ||
	    splice(target->fd, &offset, pipes[1], NULL, PAGE, 0) != (ssize_t)PAGE)
		return broken(target, "splice");
	return make_way(target);
}

static enum outcome read_pipe(struct target *target, const struct attack *attack)
{
	char page[PAGE];

	(void)attack;
	return looked(target, "read", read(pipes[0], page, PAGE), page);
}

static enum outcome pin_in_udmabuf(struct target *target, const struct attack *attack)
{
	struct udmabuf_create create = { .memfd = target->fd, .size = target->size };
	int device = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);

	(void)attack;
	if (device < 0)
		return ended(target, LACKING, "no /dev/udmabuf: %s", strerror(errno));
	if (fcntl(target->fd, F_ADD_SEALS, F_SEAL_SHRINK))
		return broken(target, "F_SEAL_SHRINK");
	target->taken = ioctl(device, UDMABUF_CREATE, &create);
	if (target->taken < 0)
		return broken(target, "UDMABUF_CREATE");
	return make_way(target);
}

static enum outcome read_udmabuf(struct target *target, const struct attack *attack)
{
	target->window = mmap(NULL, target->size, PROT_READ, MAP_SHARED, target->taken, 0);
	if (target->window == MAP_FAILED)
		return refused(target, "mmap");
	return read_window(target, attack);
}

/* --- descriptors ------------------------------------------------------------------------------ */

static enum outcome take_duplicate(struct target *target, const struct attack *attack)
{
	(void)attack;
	target->taken = dup(target->fd);
	return DONE;
}

static enum outcome take_another(struct target *target, const struct attack *attack)
{
	(void)attack;
	target->taken = reopen(getpid(), target->fd, O_RDWR);
	return target->taken < 0 ? broken(target, "open") : DONE;
}

static enum outcome take_direct(struct target *target, const struct attack *attack)
{
	(void)attack;
	target->taken = reopen(getpid(), target->fd, O_RDONLY | O_DIRECT);
	return target->taken < 0 ? broken(target, "open") : DONE;
}

static enum outcome read_taken(struct target *target, const struct attack *attack)
{
	(void)attack;
	return by_pread(target, target->taken);
}

static enum outcome map_taken(struct target *target, const struct attack *attack)
{
	(void)attack;
	return by_mmap(target, target->taken);
}

static enum outcome register_file(struct target *target, const struct attack *attack)
{
	(void)attack;
	if (!uring_init(&uring))
		return ended(target, LACKING, "no io_uring: %s", strerror(errno));
	if (syscall(SYS_io_uring_register, uring.fd, IORING_REGISTER_FILES, &target->fd, 1))
		return broken(target, "IORING_REGISTER_FILES");
	return DONE;
}

static enum outcome read_registered(struct target *target, const struct attack *attack)
{
	char page[PAGE];

	(void)attack;
	return looked(target, "IORING_OP_READ",
		      uring_do(&uring, IORING_OP_READ, 0, page, PAGE, target->offset,
			       IOSQE_FIXED_FILE),
		      page);
}

static char loop_path[32];

static enum outcome attach_loop(struct target *target, const struct attack *attack)
{
	(void)attack;
	if (access("/dev/loop-control", F_OK))
		return ended(target, LACKING, "no loop devices");
	target->taken = loop_attach(target->fd, false, loop_path);
	return target->taken < 0 ? broken(target, "LOOP_CONFIGURE") : DONE;
}

static enum outcome read_loop(struct target *target, const struct attack *attack)
{
	enum outcome outcome = read_taken(target, attack);

	loop_detach(loop_path);
	return outcome;
}

/* --- what is on its way -------------------------------------------------------------------------
 */

static char *landing; /* where a read is to go */

/* A read that has begun when something comes into a pipe */
static enum outcome queue_read(struct target *target, const struct attack *attack)
{
	struct io_uring_sqe *sqe;
	static char byte;

	(void)attack;
	landing = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!uring_init(&uring))
		return ended(target, LACKING, "no io_uring: %s", strerror(errno));
	if (pipe(pipes))
		return broken(target, "pipe");
	sqe = uring_next(&uring, 0);
	sqe->opcode = IORING_OP_READ;
	sqe->flags = IOSQE_IO_LINK;
	sqe->fd = pipes[0];
	sqe->addr = (unsigned long)&byte;
	sqe->len = 1;
	sqe = uring_next(&uring, 1);
	sqe->opcode = IORING_OP_READ;
	sqe->fd = target->fd;
	sqe->addr = (unsigned long)landing;
	sqe->len = PAGE;
	sqe->off = target->offset;
	sqe->user_data = 1;
	return uring_submit(&uring, 2) ? broken(target, "io_uring_enter") : DONE;
}

static enum outcome let_read_go(struct target *target, const struct attack *attack)
{
	int got;

	(void)attack;
	if (write(pipes[1], "", 1) != 1)
		return broken(target, "pipe");
	got = uring_wait(&uring, 1);
	errno = got < 0 ? -got : 0;
	return looked(target, "IORING_OP_READ", got < 0 ? -1 : got, landing);
}

static pthread_t thread;

static void *read_all(void *data)
{
	struct target *target = data;

	return (void *)pread(target->fd, landing, target->size, 0);
}

/* A read that waits for where its first page is to go */
static enum outcome stop_read(struct target *target, const struct attack *attack)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range;
	struct uffd_msg message;

	(void)attack;
	target->taken = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (target->taken < 0 || ioctl(target->taken, UFFDIO_API, &api))
		return ended(target, LACKING, "no userfaultfd: %s", strerror(errno));
	landing = mmap(NULL, target->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0);
	range = (struct uffdio_register){
		.range = { (unsigned long)landing, PAGE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	if (ioctl(target->taken, UFFDIO_REGISTER, &range))
		return broken(target, "UFFDIO_REGISTER");
	if (pthread_create(&thread, NULL, read_all, target) ||
	    read(target->taken, &message, sizeof(message)) != sizeof(message))
		return broken(target, "no fault");
	return DONE;
}

static enum outcome let_thread_go(struct target *target, const struct attack *attack)
{
	struct uffdio_zeropage range = { .range = { (unsigned long)landing, PAGE } };
	void *got;

	(void)attack;
	if (ioctl(target->taken, UFFDIO_ZEROPAGE, &range))
		return broken(target, "UFFDIO_ZEROPAGE");
	pthread_join(thread, &got);
	return looked(target, "pread", (ssize_t)got, landing);
}

static void *splice_page(void *data)
{
	struct target *target = data;
	off_t offset = target->offset;
	ssize_t got = splice(target->fd, &offset, pipes[1], NULL, PAGE, 0);

	return (void *)(got < 0 ? -errno : got);
}

/* One that waits for room in a pipe */
static enum outcome stop_splice(struct target *target, const struct attack *attack)
{
	static const char page[PAGE];

	(void)attack;
	if (pipe(pipes) || fcntl(pipes[1], F_SETPIPE_SZ, PAGE) < 0 ||
	    write(pipes[1], page, PAGE) != (ssize_t)PAGE)
		return broken(target, "pipe");
	if (pthread_create(&thread, NULL, splice_page, target))
		return broken(target, "thread");
	usleep(50000);
	return DONE;
}

static enum outcome drain_pipe(struct target *target, const struct attack *attack)
{
	char page[PAGE];
	void *got;

	if (read(pipes[0], page, PAGE) != (ssize_t)PAGE)
		return broken(target, "pipe");
	pthread_join(thread, &got);
	errno = -(long)got;
	return (long)got < 0 ? refused(target, "splice") : read_pipe(target, attack);
}

/* --- another VM
 * ------------------------------------------------------------------------------------ */

static struct vm thief;

static enum outcome map_to_vm(struct target *target, const struct attack *attack)
{
	if (!vm_create(&thief, 0))
		return ended(target, LACKING, "no VM: %s", strerror(errno));
	if (map_shared(target, attack) != DONE)
		return BROKEN;
	if (!vm_set_region(&thief, 1, 0, MEMORY_GPA, target->window, target->size, -1))
		return broken(target, "KVM_SET_USER_MEMORY_REGION");
	return guest_copy(&thief, MEMORY_GPA) ? make_way(target) : broken(target, "KVM_RUN");
}

static enum outcome read_by_vm(struct target *target, const struct attack *attack)
{
	(void)attack;
	if (!guest_copy(&thief, MEMORY_GPA + target->offset))
		return refused(target, "KVM_RUN");
	return look(target, thief.desk + DESK_OUT * PAGE, PAGE);
}

/* The same once its mapping is gone, which it need not have noticed. */
static enum outcome unmap_from_vm(struct target *target, const struct attack *attack)
{
	enum outcome outcome = map_to_vm(target, attack);

	if (outcome == DONE && target->sealed)
		munmap(target->window, target->size);
	return outcome == DONE ? make_way(target) : outcome;
}

/* clang-format off */
#define ORDER(n, p, r, w) { .name = n, .what = w, .prepare = p, .run = r, .wants = SEEN }

static const struct attack attacks[] = {
	ORDER("mapping", map_shared, read_window, "a shared mapping"),
	ORDER("mapping, used", map_touched, read_window, "a shared mapping that has been used"),
	ORDER("mapping, read-only", map_read_only, read_window, "a mapping by a descriptor that is for reading"),
	ORDER("mapping, private", map_private, read_window, "a private mapping"),
	ORDER("mapping, locked", map_locked, read_window, "a mapping that is locked into memory"),
	ORDER("mapping, mprotect", map_without_access, read_window, "a mapping without access, that gets it later"),
	ORDER("mapping, mremap", map_moved, read_window, "a mapping that mremap() has made from another"),
	ORDER("mapping, child", map_in_child, read_of_child, "a mapping that only a child has"),
	ORDER("userfaultfd, minor", userfault, continue_fault, "userfaultfd on a mapping, and UFFDIO_CONTINUE"),
	ORDER("registered buffer", pin_in_buffer, write_from_buffer, "pages pinned by io_uring as a buffer, then freed"),
	ORDER("vmsplice", pin_in_pipe, read_pipe, "a page in a pipe by vmsplice(), then freed"),
	ORDER("splice", splice_to_pipe, read_pipe, "a page in a pipe by splice(), then freed"),
	ORDER("udmabuf", pin_in_udmabuf, read_udmabuf, "pages pinned by udmabuf, then freed"),
	ORDER("dup, pread", take_duplicate, read_taken, "a duplicate of the descriptor, then pread()"),
	ORDER("open, pread", take_another, read_taken, "another descriptor, then pread()"),
	ORDER("open, mmap", take_another, map_taken, "another descriptor, then mmap()"),
	ORDER("O_DIRECT", take_direct, read_taken, "a descriptor with O_DIRECT, then pread()"),
	ORDER("registered file", register_file, read_registered, "the file registered with io_uring"),
	ORDER("loop", attach_loop, read_loop, "a loop device on the file"),
	ORDER("queued read", queue_read, let_read_go, "a read that io_uring has in a queue"),
	ORDER("read, half-way", stop_read, let_thread_go, "a read() that userfaultfd holds up at its first page"),
	ORDER("splice, half-way", stop_splice, drain_pipe, "a splice() that waits for room in a pipe"),
	ORDER("another VM", map_to_vm, read_by_vm, "a mapping that is another VM's ordinary memory"),
	ORDER("another VM, unmapped", unmap_from_vm, read_by_vm, "the same, and the mapping is removed"),
};
/* clang-format on */

const struct group order_group = GROUP("memfd", "order", "begun before sealing", attacks);
