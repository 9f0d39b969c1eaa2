// SPDX-License-Identifier: GPL-2.0-only
/* Loop devices. */
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "audit.h"

/* Gives the device, which is there until loop_detach(), or -1. */
int loop_attach(int fd, bool direct, char path[32])
{
	struct loop_config config = {
		.fd = fd,
		.info.lo_flags = direct ? LO_FLAGS_DIRECT_IO : 0,
	};
	int control, number, loop, tries;

	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		return -1;
	/* Somebody else may be faster. */
	for (tries = 0; tries < 10; tries++) {
		number = ioctl(control, LOOP_CTL_GET_FREE);
		if (number < 0)
			break;
		snprintf(path, 32, "/dev/loop%d", number);
		loop = open(path, O_RDWR | O_CLOEXEC);
		if (loop < 0)
			break;
		if (!ioctl(loop, LOOP_CONFIGURE, &config)) {
			close(control);
			return loop;
		}
		close(loop);
		if (errno != EBUSY)
			break;
	}
	close(control);
	return -1;
}

void loop_detach(const char *path)
{
	int loop = open(path, O_RDWR | O_CLOEXEC);

	if (loop >= 0)
		ioctl(loop, LOOP_CLR_FD, 0);
	close(loop);
}

/* The attack, by a device that is there as long as it takes. */
enum outcome with_loop(struct target *target, int fd, bool direct,
		       enum outcome (*attack)(struct target *target, int loop))
{
	enum outcome outcome;
	char path[32];
	int loop;

	if (access("/dev/loop-control", F_OK))
		return ended(target, LACKING, "no loop devices");
	loop = loop_attach(fd, direct, path);
	if (loop < 0)
		return refused(target, "LOOP_CONFIGURE");
	outcome = attack(target, loop);
	loop_detach(path);
	return outcome;
}
