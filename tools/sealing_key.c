// SPDX-License-Identifier: GPL-2.0-only
/*
 * In a protected guest, as root: what KVM tells it of its launch, by the msr module.
 *
 *	sealing_key			the sealing key, 48 bytes, to standard output
 *	sealing_key -d			have KVM forget it, until the VM ends
 *	sealing_key measurement		the launch measurement, in hexadecimal
 *
 * The key is not for terminals. An initrd has it forgotten before it runs anything from
 * the disk that the key opens.
 */
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

/* Of asm/kvm_para.h; each 48 bytes, 8 in each of 6 MSRs */
#define MEASUREMENT 0x4b564d80
#define SEALING_KEY 0x4b564d90
#define SIZE 48

static int open_msrs(int flags)
{
	int fd = open("/dev/cpu/0/msr", flags | O_CLOEXEC);

	if (fd < 0)
		err(1, "/dev/cpu/0/msr (is the module msr loaded?)");
	return fd;
}

static int read_msrs(uint8_t *value, unsigned int msr)
{
	int i, fd = open_msrs(O_RDONLY), r = 0;

	for (i = 0; i < SIZE && !r; i += 8)
		r = pread(fd, value + i, 8, msr + i / 8) == 8 ? 0 : -1;
	close(fd);
	return r;
}

static int print_key(void)
{
	uint8_t key[SIZE];
	ssize_t done = 0, n = 1;
	int r;

	if (isatty(STDOUT_FILENO))
		errx(1, "the sealing key is not for a terminal");
	r = read_msrs(key, SEALING_KEY);
	if (r)
		warn("there is no sealing key");
	for (; !r && done < SIZE && n > 0; done += n)
		n = write(STDOUT_FILENO, key + done, SIZE - done);
	explicit_bzero(key, sizeof(key));
	if (n <= 0)
		warn("standard output");
	return r || n <= 0;
}

static int forget_key(void)
{
	const uint64_t zero = 0;

	if (pwrite(open_msrs(O_WRONLY), &zero, sizeof(zero), SEALING_KEY) != sizeof(zero))
		err(1, "there is no sealing key, or it can't be forgotten");
	return 0;
}

static int print_measurement(void)
{
	uint8_t measurement[SIZE];
	int i;

	if (read_msrs(measurement, MEASUREMENT))
		err(1, "this is no protected guest");
	for (i = 0; i < SIZE; i++)
		printf("%02x", measurement[i]);
	puts("");
	if (fflush(stdout))
		err(1, "standard output");
	return 0;
}

int main(int argc, char **argv)
{
	/* No core dumps of the key, nor debuggers */
	if (prctl(PR_SET_DUMPABLE, 0))
		err(1, "PR_SET_DUMPABLE");
	if (argc == 1)
		return print_key();
	if (argc == 2 && !strcmp(argv[1], "-d"))
		return forget_key();
	if (argc == 2 && !strcmp(argv[1], "measurement"))
		return print_measurement();
	errx(2, "usage: sealing_key [-d | measurement]");
}
