// SPDX-License-Identifier: GPL-2.0-only
/* Linux's own AIO. */
#include <errno.h>
#include <linux/aio_abi.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "audit.h"

/* A page; gives DONE if it was tried, and then what a system call would in *result. */
enum outcome aio_do(struct target *target, int op, int fd, void *page, ssize_t *result)
{
	struct iocb iocb = {
		.aio_lio_opcode = op,
		.aio_fildes = fd,
		.aio_buf = (unsigned long)page,
		.aio_nbytes = PAGE,
		.aio_offset = target->offset,
	}, *iocbs = &iocb;
	aio_context_t context = 0;
	struct io_event event;

	if (syscall(SYS_io_setup, 1, &context))
		return ended(target, LACKING, "no AIO: %s", strerror(errno));
	if (syscall(SYS_io_submit, context, 1, &iocbs) != 1)
		return refused(target, "io_submit");
	if (syscall(SYS_io_getevents, context, 1, 1, &event, NULL) != 1)
		return ended(target, BROKEN, "io_getevents: %s", strerror(errno));
	errno = event.res < 0 ? -event.res : 0;
	*result = event.res < 0 ? -1 : event.res;
	return DONE;
}
