// SPDX-License-Identifier: GPL-2.0-only
/*
 * On the host, as root: try all ways by which a file descriptor gives access to
 * the content of a guest-sealed memfd of a process, at its first private page.
 *
 *	seal_probe PID
 *
 * One line each, WAY: RESULT, the result being an error or "OPEN".  Then what is
 * no secret: where the first private page is, a map of the file, and how many
 * pages are private.  Exit status 1 if a way is open.
 */
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* The C library doesn't know it yet. */
#ifndef F_SEAL_GUEST
#define F_SEAL_GUEST 0x0040
#endif

#define PAGE 4096
#define MAP_CELLS 64

static int failed;

static void report(const char *way, long result)
{
	printf("%s: %s\n", way, result < 0 ? strerror(errno) : "OPEN");
	if (result >= 0)
		failed = 1;
}

static int open_sealed(const char *pid)
{
	char path[64], link[256], fd_path[400];
	struct dirent *entry;
	DIR *dir;
	int fd;

	snprintf(path, sizeof(path), "/proc/%s/fd", pid);
	dir = opendir(path);
	if (!dir)
		err(2, "%s", path);
	while ((entry = readdir(dir))) {
		ssize_t length;

		snprintf(fd_path, sizeof(fd_path), "%s/%s", path, entry->d_name);
		length = readlink(fd_path, link, sizeof(link) - 1);
		if (length < 0)
			continue;
		link[length] = 0;
		if (strncmp(link, "/memfd:", 7))
			continue;
		fd = open(fd_path, O_RDWR);
		if (fd >= 0 && fcntl(fd, F_GET_SEALS) & F_SEAL_GUEST) {
			closedir(dir);
			return fd;
		}
		close(fd);
	}
	errx(2, "process %s has no guest-sealed memfd", pid);
}

/* What can be done to the private page at @first, or to page 0 if there is none. */
static void probe(int fd, off_t first)
{
	off_t at = first < 0 ? 0 : first;
	char buffer[PAGE] = { 0 }, path[64];
	struct iovec iov = { buffer, sizeof(buffer) };
	int out = memfd_create("out", 0), pipes[2], other;
	off_t from;
	void *memory;

	if (out < 0 || pipe(pipes))
		err(2, "a file and a pipe to copy to");

	report("pread", pread(fd, buffer, PAGE, at));
	report("preadv2", preadv2(fd, &iov, 1, at, 0));
	/* Where nothing is private, a whole page would become so. */
	report("pwrite", pwrite(fd, buffer, first < 0 ? 1 : PAGE, at));
	memory = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, at);
	report("mmap shared", memory == MAP_FAILED ? -1 : 0);
	memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, at);
	report("mmap private", memory == MAP_FAILED ? -1 : 0);
	from = at;
	report("splice", splice(fd, &from, pipes[1], NULL, PAGE, 0));
	from = at;
	report("sendfile", sendfile(out, fd, &from, PAGE));
	from = at;
	report("copy_file_range", copy_file_range(fd, &from, out, NULL, PAGE, 0));
	report("truncate", ftruncate(fd, 0));

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	other = open(path, O_RDONLY);
	report("re-open, read", other < 0 ? -1 : pread(other, buffer, PAGE, at));
	report("re-open, O_TRUNC", open(path, O_RDWR | O_TRUNC));
}

static void draw(int fd, off_t size)
{
	off_t cell = size / MAP_CELLS;
	struct stat st;

	printf("map ");
	for (int i = 0; i < MAP_CELLS; i++) {
		off_t data = lseek(fd, i * cell, SEEK_DATA);

		putchar(data >= 0 && data < (i + 1) * cell ? '#' : '.');
	}
	if (fstat(fd, &st))
		err(2, "fstat");
	printf("\npages %lld\n", (long long)st.st_blocks * 512 / PAGE);
}

int main(int argc, char **argv)
{
	off_t first;
	int fd;

	if (argc != 2)
		errx(2, "usage: seal_probe PID");
	fd = open_sealed(argv[1]);
	first = lseek(fd, 0, SEEK_DATA);
	probe(fd, first);
	printf("first %lld\n", (long long)first);
	draw(fd, lseek(fd, 0, SEEK_END));
	return failed;
}
