// SPDX-License-Identifier: GPL-2.0-only
/* As much of io_uring as attacks need. */
#include <errno.h>
#include <linux/io_uring.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "audit.h"

#define ENTRIES 8

bool uring_init(struct uring *uring)
{
	struct io_uring_params params = { 0 };
	size_t size, sq_size;

	uring->fd = syscall(SYS_io_uring_setup, ENTRIES, &params);
	if (uring->fd < 0)
		return false;
	size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
	sq_size = params.sq_off.array + params.sq_entries * sizeof(unsigned int);
	if (size < sq_size)
		size = sq_size;
	uring->ring =
		mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, uring->fd, IORING_OFF_SQ_RING);
	uring->sqes = mmap(NULL, params.sq_entries * sizeof(*uring->sqes), PROT_READ | PROT_WRITE,
			   MAP_SHARED, uring->fd, IORING_OFF_SQES);
	if (uring->ring == MAP_FAILED || uring->sqes == MAP_FAILED)
		return false;
	uring->sq_tail = (unsigned int *)(uring->ring + params.sq_off.tail);
	uring->array = (unsigned int *)(uring->ring + params.sq_off.array);
	uring->cq_head = (unsigned int *)(uring->ring + params.cq_off.head);
	uring->cq_tail = (unsigned int *)(uring->ring + params.cq_off.tail);
	uring->cqes = (struct io_uring_cqe *)(uring->ring + params.cq_off.cqes);
	uring->sq_mask = params.sq_entries - 1;
	uring->cq_mask = params.cq_entries - 1;
	return true;
}

/* The nth of those that the next uring_submit() is to submit, zeroed. */
struct io_uring_sqe *uring_next(struct uring *uring, unsigned int n)
{
	unsigned int i = (*uring->sq_tail + n) & uring->sq_mask;

	memset(&uring->sqes[i], 0, sizeof(uring->sqes[i]));
	uring->array[i] = i;
	return &uring->sqes[i];
}

int uring_submit(struct uring *uring, unsigned int nr)
{
	__atomic_store_n(uring->sq_tail, *uring->sq_tail + nr, __ATOMIC_RELEASE);
	return syscall(SYS_io_uring_enter, uring->fd, nr, 0, 0, NULL, 0) == (int)nr ? 0 : -1;
}

/* The result of the one with that user_data; those before it don't matter. */
int uring_wait(struct uring *uring, unsigned long data)
{
	struct io_uring_cqe cqe;

	do {
		while (*uring->cq_head == __atomic_load_n(uring->cq_tail, __ATOMIC_ACQUIRE))
			if (syscall(SYS_io_uring_enter, uring->fd, 0, 1, IORING_ENTER_GETEVENTS,
				    NULL, 0) < 0 &&
			    errno != EINTR)
				return -errno;
		cqe = uring->cqes[*uring->cq_head & uring->cq_mask];
		__atomic_store_n(uring->cq_head, *uring->cq_head + 1, __ATOMIC_RELEASE);
	} while (cqe.user_data != data);
	return cqe.res;
}

/* One operation, with the result as a system call has it */
long uring_do(struct uring *uring, int op, int fd, void *buffer, size_t size, off_t offset,
	      unsigned int flags)
{
	struct io_uring_sqe *sqe = uring_next(uring, 0);
	int result;

	sqe->opcode = op;
	sqe->flags = flags;
	sqe->fd = fd;
	sqe->addr = (unsigned long)buffer;
	sqe->len = size;
	sqe->off = offset;
	sqe->user_data = 1;
	if (uring_submit(uring, 1))
		return -1;
	result = uring_wait(uring, 1);
	errno = result < 0 ? -result : 0;
	return result < 0 ? -1 : result;
}
