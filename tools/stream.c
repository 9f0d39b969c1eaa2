// SPDX-License-Identifier: GPL-2.0-only
/*
 * Standard input and output through a TCP or vsock connection, in a guest or on its
 * host:
 *
 *	stream tcp|vsock listen PORT	wait for one connection
 *	stream tcp ADDRESS PORT		connect
 *	stream vsock CID PORT		connect; CID 2 is the host
 *
 * Ends when both directions have. Each has a process of its own: with one for both, two
 * of these that write at the same time, neither of which reads, wait for each other for
 * ever.
 */
#include <arpa/inet.h>
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
/* after sys/socket.h */
#include <linux/vm_sockets.h>

/* Pass on all there is */
static void pass(int from, int to)
{
	static char buffer[65536];
	ssize_t got;

	while ((got = read(from, buffer, sizeof(buffer)))) {
		if (got < 0)
			err(1, "read");
		for (ssize_t done = 0; done < got;) {
			ssize_t put = write(to, buffer + done, got - done);

			if (put < 0)
				err(1, "write");
			done += put;
		}
	}
}

int main(int argc, char **argv)
{
	union {
		struct sockaddr any;
		struct sockaddr_in tcp;
		struct sockaddr_vm vsock;
	} address = {};
	int fd, listens, port, on = 1, status;
	socklen_t size;
	pid_t child;

	if (argc != 4 || (strcmp(argv[1], "tcp") && strcmp(argv[1], "vsock")))
		errx(2, "usage: stream tcp|vsock listen|ADDRESS PORT");
	listens = !strcmp(argv[2], "listen");
	port = strtoul(argv[3], NULL, 0);
	if (!strcmp(argv[1], "tcp")) {
		size = sizeof(address.tcp);
		address.tcp.sin_family = AF_INET;
		address.tcp.sin_port = htons(port);
		if (!listens && !inet_aton(argv[2], &address.tcp.sin_addr))
			errx(2, "%s is not an address", argv[2]);
	} else {
		size = sizeof(address.vsock);
		address.vsock.svm_family = AF_VSOCK;
		address.vsock.svm_port = port;
		address.vsock.svm_cid = listens ? VMADDR_CID_ANY : strtoul(argv[2], NULL, 0);
	}

	fd = socket(address.any.sa_family, SOCK_STREAM, 0);
	if (fd < 0)
		err(1, "socket");
	if (listens) {
		if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
		    bind(fd, &address.any, size) || listen(fd, 1))
			err(1, "bind");
		fd = accept(fd, NULL, NULL);
		if (fd < 0)
			err(1, "accept");
	} else if (connect(fd, &address.any, size)) {
		err(1, "connect");
	}

	child = fork();
	if (child < 0)
		err(1, "fork");
	if (!child) {
		pass(STDIN_FILENO, fd);
		if (shutdown(fd, SHUT_WR))
			err(1, "shutdown");
		return 0;
	}
	pass(fd, STDOUT_FILENO);
	if (waitpid(child, &status, 0) != child)
		err(1, "waitpid");
	return status ? 1 : 0;
}
