// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a guest has to do for a benchmark, and its peer on the host:
 *
 *	load touch MEGABYTES		write to each page of new memory
 *	load read|write DEVICE SIZE COUNT		that many pieces, in sequence
 *	load read|write DEVICE SIZE COUNT random	or anywhere
 *	load serve PORT			TCP: answer one peer's requests after the other's
 *	load bulk HOST PORT MEGABYTES	TCP: so much, and wait until it has arrived
 *	load ask HOST PORT COUNT	TCP: so many requests, each after the last one's answer
 *
 * Disks are read and written past the page cache.
 */
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define MEGABYTE (1UL << 20)
#define PAGE 4096UL

/* A request, as long as its answer; bulk has no answer but the last byte's. */
struct message {
	uint64_t bulk;
	uint64_t more[7];
};

static unsigned long number(const char *text)
{
	char *end;
	unsigned long n = strtoul(text, &end, 0);

	if (!n || *end)
		errx(2, "%s is no number", text);
	return n;
}

static void touch(unsigned long size)
{
	volatile char *memory =
		mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		err(1, "mmap");
	for (unsigned long i = 0; i < size; i += PAGE)
		memory[i] = 1;
}

static void disk(int write, const char *path, unsigned long size, unsigned long count, int anywhere)
{
	int fd = open(path, (write ? O_WRONLY : O_RDONLY) | O_DIRECT);
	char *buffer = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint32_t seed = 1;
	off_t pieces;

	if (fd < 0 || buffer == MAP_FAILED)
		err(1, "%s", path);
	pieces = lseek(fd, 0, SEEK_END) / size;
	if (pieces < 1)
		errx(1, "%s is smaller than %lu", path, size);
	memset(buffer, 1, size);
	for (unsigned long i = 0; i < count; i++) {
		off_t at = i;
		ssize_t done;

		if (anywhere)
			at = seed = seed * 1664525 + 1013904223;
		at = at % pieces * size;
		done = write ? pwrite(fd, buffer, size, at) : pread(fd, buffer, size, at);
		if (done != (ssize_t)size)
			err(1, "%s at %ld", path, (long)at);
	}
	if (write && fsync(fd))
		err(1, "%s", path);
}

/* Returns 0 at the end of the connection. */
static int receive(int fd, struct message *message)
{
	ssize_t got = recv(fd, message, sizeof(*message), MSG_WAITALL);

	if (got < 0)
		err(1, "recv");
	if (got && got != sizeof(*message))
		errx(1, "half a message");
	return got > 0;
}

static void give(int fd, const void *data, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t sent = send(fd, (const char *)data + done, size - done, MSG_NOSIGNAL);

		if (sent < 0)
			err(1, "send");
		done += sent;
	}
}

static void serve(unsigned short port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
	int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
	static char buffer[MEGABYTE];

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 1))
		err(1, "port %u", port);
	for (;;) {
		int peer = accept(fd, NULL, NULL);
		struct message message;

		if (peer < 0)
			err(1, "accept");
		setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		while (receive(peer, &message)) {
			for (uint64_t i = 0; i < message.bulk; i += sizeof(buffer))
				if (recv(peer, buffer, sizeof(buffer), MSG_WAITALL) !=
				    sizeof(buffer))
					err(1, "recv");
			give(peer, (char *)&message, sizeof(message));
		}
		close(peer);
	}
}

static int dial(const char *host, unsigned short port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
	int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);

	if (!inet_aton(host, &address.sin_addr) ||
	    connect(fd, (struct sockaddr *)&address, sizeof(address)))
		err(1, "%s", host);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

static void ask(int fd, struct message message)
{
	give(fd, (char *)&message, sizeof(message));
	for (uint64_t i = 0; i < message.bulk; i += MEGABYTE) {
		static char buffer[MEGABYTE];

		give(fd, buffer, sizeof(buffer));
	}
	if (!receive(fd, &message))
		errx(1, "no answer");
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (argc == 3 && !strcmp(what, "touch")) {
		touch(number(argv[2]) * MEGABYTE);
	} else if ((argc == 5 || (argc == 6 && !strcmp(argv[5], "random"))) &&
		   (!strcmp(what, "read") || !strcmp(what, "write"))) {
		disk(*what == 'w', argv[2], number(argv[3]), number(argv[4]), argc == 6);
	} else if (argc == 3 && !strcmp(what, "serve")) {
		serve(number(argv[2]));
	} else if (argc == 5 && !strcmp(what, "bulk")) {
		ask(dial(argv[2], number(argv[3])),
		    (struct message){ .bulk = number(argv[4]) * MEGABYTE });
	} else if (argc == 5 && !strcmp(what, "ask")) {
		int fd = dial(argv[2], number(argv[3]));

		for (unsigned long i = number(argv[4]); i; i--)
			ask(fd, (struct message){});
	} else {
		errx(2, "usage: load touch MEGABYTES\n"
			"       load read|write DEVICE SIZE COUNT [random]\n"
			"       load serve PORT\n"
			"       load bulk HOST PORT MEGABYTES\n"
			"       load ask HOST PORT COUNT");
	}
	return 0;
}
