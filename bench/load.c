// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a guest has to do for a benchmark, and its peer on the host, which measures:
 *
 *	load guest ADDRESS DISK		do it all; the host is at ADDRESS
 *	load host			print what each load took, until the guest is done
 *
 * They have one TCP connection. The guest says in a message when a load begins and
 * ends; the host's answer is on its way while the clock runs, which is as good as
 * nothing. To be run where CLOCK_MONOTONIC counts instructions, see bench.h: these
 * are the host's and the guest's.
 *
 * For each load the host prints a line: its name, instructions, exits of KVM, and KiB
 * of memory that the host has lost since it was started; with tabs in between.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include "bench.h"

#define PORT 1000
#define MEGABYTE (1UL << 20)
#define PAGE 4096UL
/* of memory, which the guest keeps for itself */
#define SPARE (32 * (long)MEGABYTE)

/* From the guest; the host sends it back once it has received as much as it says. */
struct message {
	char begins[64]; /* the name of a load */
	uint64_t ends;
	uint64_t done;	   /* with all loads */
	uint64_t to_host;  /* bytes that come after this */
	uint64_t to_guest; /* bytes to come after the answer */
};

/* Aligned for O_DIRECT */
static char buffer[MEGABYTE] __attribute__((aligned(PAGE)));

/* Returns 0 at the end of the connection. */
static int get(int fd, void *data, size_t size)
{
	ssize_t got = recv(fd, data, size, MSG_WAITALL);

	if (got < 0 && errno == EAGAIN)
		errx(1, "the guest is stuck");
	if (check(got, "recv") && got != (ssize_t)size)
		errx(1, "the other side is gone: its output, or the guest's, says why");
	return got > 0;
}

static void put(int fd, const void *data, size_t size)
{
	for (size_t done = 0; done < size;)
		done += check(send(fd, (const char *)data + done, size - done, MSG_NOSIGNAL),
			      "send");
}

static int tcp_socket(void)
{
	int fd = check(socket(AF_INET, SOCK_STREAM, 0), "socket"), on = 1;

	check(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)), "SO_REUSEADDR");
	check(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)), "TCP_NODELAY");
	return fd;
}

/* --- the host ------------------------------------------------------------ */

/* The number after KEY in a file */
static long number(const char *path, const char *key)
{
	FILE *file = fopen(path, "r");
	char line[128];
	long n = -1;

	if (!file)
		err(1, "%s", path);
	while (n < 0 && fgets(line, sizeof(line), file))
		if (!strncmp(line, key, strlen(key)))
			n = strtol(line + strlen(key), NULL, 10);
	fclose(file);
	if (n < 0)
		errx(1, "%s has no %s", path, key);
	return n;
}

static long exits(void)
{
	return number("/sys/kernel/debug/kvm/exits", "");
}
static long unused(void)
{
	return number("/proc/meminfo", "MemFree:");
}

/* How long to wait for the guest; a second is a thousand million instructions. */
static void be_patient(int fd, long seconds)
{
	struct timeval time = { .tv_sec = seconds };

	check(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time)), "SO_RCVTIMEO");
}

static void host(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	long before = unused(), exits_before = 0, begin = 0;
	struct message message;
	char name[sizeof(message.begins)];
	int fd = tcp_socket();

	check(bind(fd, (struct sockaddr *)&address, sizeof(address)), "bind");
	check(listen(fd, 1), "listen");
	be_patient(fd, 20); /* it has to boot */
	fd = check(accept(fd, NULL, NULL), "the guest does not connect: accept");
	be_patient(fd, 3);
	do {
		if (!get(fd, &message, sizeof(message)))
			errx(1, "the guest has stopped: its output says why");
		if (message.ends) {
			long took = now() - begin;

			printf("%s\t%ld\t%ld\t%ld\n", name, took, exits() - exits_before,
			       before - unused());
		}
		for (uint64_t i = 0; i < message.to_host; i += sizeof(buffer))
			get(fd, buffer, sizeof(buffer));
		if (*message.begins) {
			memcpy(name, message.begins, sizeof(name));
			exits_before = exits();
			begin = now();
		}
		put(fd, &message, sizeof(message));
		for (uint64_t i = 0; i < message.to_guest; i += sizeof(buffer))
			put(fd, buffer, sizeof(buffer));
	} while (!message.done);
}

/* --- the guest ----------------------------------------------------------- */

static int peer;

static void ask(struct message message)
{
	put(peer, &message, sizeof(message));
	for (uint64_t i = 0; i < message.to_host; i += sizeof(buffer))
		put(peer, buffer, sizeof(buffer));
	if (!get(peer, &message, sizeof(message)))
		errx(1, "the host is gone");
	for (uint64_t i = 0; i < message.to_guest; i += sizeof(buffer))
		get(peer, buffer, sizeof(buffer));
}

static void begin(const char *name)
{
	struct message message = {};

	strcpy(message.begins, name);
	ask(message);
}

static void end(void)
{
	ask((struct message){ .ends = 1 });
}

static char *touch(unsigned long size)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		err(1, "mmap");
	for (unsigned long i = 0; i < size; i += PAGE)
		*(volatile char *)(memory + i) = 1;
	return memory;
}

/* That of 1 GiB is measured; after the rest, the host holds all of the guest. */
static void touch_all(void)
{
	long piece = 128 * MEGABYTE, left;
	char *pieces[8], *rest;

	begin("first touch of 1 GiB");
	for (int i = 0; i < 8; i++) {
		pieces[i] = touch(piece);
		ask((struct message){}); /* not stuck */
	}
	end();
	left = number("/proc/meminfo", "MemAvailable:") * 1024 - SPARE;
	if (left > 0) {
		rest = touch(left);
		munmap(rest, left);
	}
	for (int i = 0; i < 8; i++)
		munmap(pieces[i], piece);
}

/* Past the page cache. */
static void disk(const char *name, int fd, int writes, size_t size, int count, int anywhere)
{
	off_t pieces = check(lseek(fd, 0, SEEK_END), "lseek") / size;
	uint32_t seed = 1;

	if (!pieces)
		errx(1, "the disk is too small: have one of 64 MiB");
	begin(name);
	for (int i = 0; i < count; i++) {
		off_t at = i % pieces;
		ssize_t done;

		if (anywhere)
			at = (seed = seed * 1664525 + 1013904223) % pieces;
		done = writes ? pwrite(fd, buffer, size, at * size)
			      : pread(fd, buffer, size, at * size);
		if (check(done, name) != (ssize_t)size)
			errx(1, "%s: %zd bytes of %zu", name, done, size);
	}
	if (writes)
		check(fsync(fd), "fsync");
	end();
}

static void bulk(const char *name, uint64_t to_host, uint64_t to_guest)
{
	begin(name);
	ask((struct message){ .to_host = to_host, .to_guest = to_guest });
	end();
}

static void guest(const char *address, const char *path)
{
	struct sockaddr_in host = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	int fd = check(open(path, O_RDWR | O_DIRECT), path);

	if (!inet_aton(address, &host.sin_addr))
		errx(2, "%s is not an address", address);
	peer = tcp_socket();
	check(connect(peer, (struct sockaddr *)&host, sizeof(host)), address);

	touch_all();
	/* as much as the bounce buffers of a private guest with 1.5 GiB */
	disk("disk: the first 128 MiB of writes", fd, 1, 256 << 10, 512, 0);
	disk("disk: 128 writes of 128 KiB", fd, 1, 128 << 10, 128, 0);
	disk("disk: 128 reads of 128 KiB", fd, 0, 128 << 10, 128, 0);
	disk("disk: 300 random writes of 4 KiB", fd, 1, 4 << 10, 300, 1);
	disk("disk: 300 random reads of 4 KiB", fd, 0, 4 << 10, 300, 1);
	bulk("TCP: 16 MiB to the host", 16 * MEGABYTE, 0);
	bulk("TCP: 16 MiB to the guest", 0, 16 * MEGABYTE);
	begin("TCP: 200 requests, one by one");
	for (int i = 0; i < 200; i++)
		ask((struct message){});
	end();
	ask((struct message){ .done = 1 });
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 4 && !strcmp(argv[1], "guest"))
		guest(argv[2], argv[3]);
	else if (argc == 2 && !strcmp(argv[1], "host"))
		host();
	else
		errx(2, "usage: load guest ADDRESS DISK | load host");
	return 0;
}
