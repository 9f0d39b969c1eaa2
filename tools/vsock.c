// SPDX-License-Identifier: GPL-2.0-only
/*
 * Standard input and output through a vsock, in a guest or on its host:
 *
 *	vsock listen PORT	wait for one connection
 *	vsock CID PORT		connect; CID 2 is the host
 *
 * Ends when both directions have.
 */
#include <err.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
/* after sys/socket.h */
#include <linux/vm_sockets.h>

/* Pass on what is there. Returns 0 at the end. */
static int pass(int from, int to)
{
	char buffer[65536];
	ssize_t got = read(from, buffer, sizeof(buffer));

	if (got < 0)
		err(1, "read");
	for (ssize_t done = 0; done < got;) {
		ssize_t put = write(to, buffer + done, got - done);

		if (put < 0)
			err(1, "write");
		done += put;
	}
	return got > 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY };
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (argc != 3)
		errx(2, "usage: vsock listen|CID PORT");
	if (fd < 0)
		err(1, "socket");
	address.svm_port = strtoul(argv[2], NULL, 0);
	if (!strcmp(argv[1], "listen")) {
		if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 1))
			err(1, "bind");
		fd = accept(fd, NULL, NULL);
		if (fd < 0)
			err(1, "accept");
	} else {
		address.svm_cid = strtoul(argv[1], NULL, 0);
		if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
			err(1, "connect");
	}

	struct pollfd polled[] = { { .fd = STDIN_FILENO, .events = POLLIN },
				   { .fd = fd, .events = POLLIN } };

	while (polled[0].fd >= 0 || polled[1].fd >= 0) {
		if (poll(polled, 2, -1) < 0)
			err(1, "poll");
		if (polled[0].revents && !pass(STDIN_FILENO, fd)) {
			polled[0].fd = -1;
			shutdown(fd, SHUT_WR);
		}
		if (polled[1].revents && !pass(fd, STDOUT_FILENO))
			polled[1].fd = -1;
	}
	return 0;
}
