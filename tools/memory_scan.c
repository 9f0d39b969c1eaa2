// SPDX-License-Identifier: GPL-2.0-only
/*
 * On the host: look for the guest's secrets.
 *
 *	memory_scan SEED PID	in all memory of a process, through /proc/PID/mem
 *	memory_scan SEED FILE	in a file, or what comes out of a pipe
 *	memory_scan -b HEX,HEX,... PID|FILE	look for these bytes instead
 *
 * Prints how often each is there, and last the megabytes seen. SEED is that of two
 * secrets, one in ordinary and one in private memory.
 */
#include <ctype.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "secret.h"

/* Half of a secret, at any alignment, is as good as all of it. */
#define NEEDLE (SECRET_BYTES / 2)
#define MAX_NEEDLES 16
#define CHUNK (1 << 20)

static struct {
	uint8_t bytes[NEEDLE];
	size_t size;
	unsigned long found;
} needles[MAX_NEEDLES];
static int number;
static unsigned long seen;

/* What ends in the first @old bytes was counted before. */
static void search(const char *data, size_t size, size_t old)
{
	for (int i = 0; i < number; i++) {
		const char *at = data;

		while ((at = memmem(at, data + size - at, needles[i].bytes, needles[i].size))) {
			at += needles[i].size;
			needles[i].found += at > data + old;
		}
	}
}

/* With a bit of overlap, for what crosses the end of a chunk. */
static void scan(int fd, off_t start, off_t end, int seekable)
{
	static char buffer[NEEDLE - 1 + CHUNK];
	size_t kept = 0;

	while (start < end) {
		size_t want = end - start < CHUNK ? end - start : CHUNK;
		ssize_t got = seekable ? pread(fd, buffer + kept, want, start)
				       : read(fd, buffer + kept, want);

		if (got < 0 && seekable) {
			/* Nothing there to be read, e.g. a device's memory. */
			start += want;
			kept = 0;
			continue;
		}
		if (got < 0)
			err(1, "read");
		if (!got)
			break;
		search(buffer, kept + got, kept);
		seen += got;
		start += got;
		got += kept;
		kept = got < (ssize_t)NEEDLE - 1 ? (size_t)got : NEEDLE - 1;
		memmove(buffer, buffer + got - kept, kept);
	}
}

/* Untouched memory is skipped: reading it would only show zeros. */
static void scan_process(const char *pid)
{
	char path[64], line[512];
	unsigned long start, end;
	FILE *maps;
	int mem, pagemap;

	snprintf(path, sizeof(path), "/proc/%s/mem", pid);
	mem = open(path, O_RDONLY);
	snprintf(path, sizeof(path), "/proc/%s/pagemap", pid);
	pagemap = open(path, O_RDONLY);
	snprintf(path, sizeof(path), "/proc/%s/maps", pid);
	maps = fopen(path, "r");
	if (mem < 0 || pagemap < 0 || !maps)
		err(1, "/proc/%s", pid);

	while (fgets(line, sizeof(line), maps)) {
		uint64_t entries[512];
		unsigned long from = 0;

		if (sscanf(line, "%lx-%lx", &start, &end) != 2 || strstr(line, "[vsyscall]"))
			continue;
		for (unsigned long at = start; at < end; at += sizeof(entries) / 8 * 4096) {
			ssize_t got = pread(pagemap, entries, sizeof(entries), at / 4096 * 8);

			for (int i = 0; i < got / 8 && at + i * 4096UL < end; i++) {
				unsigned long address = at + i * 4096UL;

				if (entries[i] >> 62 && !from) {
					from = address;
				} else if (!(entries[i] >> 62) && from) {
					scan(mem, from, address, 1);
					from = 0;
				}
			}
		}
		if (from)
			scan(mem, from, end, 1);
	}
	fclose(maps);
	close(pagemap);
	close(mem);
}

static void scan_file(const char *path)
{
	struct stat st;
	off_t data = 0, hole;
	int fd = open(path, O_RDONLY);

	if (fd < 0 || fstat(fd, &st))
		err(1, "%s", path);
	if (!S_ISREG(st.st_mode)) {
		scan(fd, 0, INT64_MAX, 0);
	} else {
		while ((data = lseek(fd, data, SEEK_DATA)) >= 0) {
			hole = lseek(fd, data, SEEK_HOLE);
			scan(fd, data, hole, 1);
			data = hole;
		}
		if (errno != ENXIO)
			err(1, "%s", path);
	}
	close(fd);
}

/* What is to be found, from two hexadecimal digits a byte, with commas between. */
static void parse(const char *hex)
{
	for (; *hex; hex++) {
		if (number == MAX_NEEDLES)
			errx(2, "too many");
		while (needles[number].size < NEEDLE && isxdigit(hex[0]) && isxdigit(hex[1])) {
			sscanf(hex, "%2hhx", &needles[number].bytes[needles[number].size++]);
			hex += 2;
		}
		if (needles[number++].size < 8)
			errx(2, "too few, or too many, bytes");
		if (!*hex)
			return;
		if (*hex != ',')
			errx(2, "neither a byte nor a comma: %s", hex);
	}
}

int main(int argc, char **argv)
{
	const char *where = argv[argc - 1];

	if (argc == 4 && !strcmp(argv[1], "-b")) {
		parse(argv[2]);
	} else if (argc == 3) {
		uint64_t seed = strtoull(argv[1], NULL, 16);

		for (number = 0; number < 2; number++) {
			for (int i = 0; i < SECRET_WORDS / 2; i++) {
				uint64_t word = secret_word(seed, number, i);

				memcpy(needles[number].bytes + i * 8, &word, 8);
			}
			needles[number].size = NEEDLE;
		}
	} else {
		errx(2, "usage: memory_scan SEED|-b HEX,... PID|FILE");
	}

	if (where[strspn(where, "0123456789")])
		scan_file(where);
	else
		scan_process(where);
	for (int i = 0; i < number; i++)
		printf("%lu ", needles[i].found);
	printf("%lu\n", seen >> 20);
	return 0;
}
