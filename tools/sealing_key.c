// SPDX-License-Identifier: GPL-2.0-only
/*
 * In a protected guest, as root: what KVM tells it of its launch, by the msr module.
 *
 *	sealing_key			the sealing key, 48 bytes, to standard output
 *	sealing_key measurement		the launch measurement, in hexadecimal
 */
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Of asm/kvm_para.h; each 48 bytes, 8 in each of 6 MSRs */
#define MEASUREMENT	0x4b564d80
#define SEALING_KEY	0x4b564d90

int main(int argc, char **argv)
{
	int measurement = argc == 2 && !strcmp(argv[1], "measurement");
	uint8_t value[48];
	unsigned int i;
	int fd;

	if (argc != 1 && !measurement)
		errx(2, "usage: sealing_key [measurement]");
	fd = open("/dev/cpu/0/msr", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		err(1, "/dev/cpu/0/msr (is the module msr loaded?)");
	for (i = 0; i < sizeof(value); i += 8) {
		if (pread(fd, value + i, 8, (measurement ? MEASUREMENT : SEALING_KEY) + i / 8) != 8)
			err(1, measurement ? "this is no protected guest" : "there is no sealing key");
	}
	if (!measurement)
		return fwrite(value, sizeof(value), 1, stdout) != 1 || fflush(stdout);
	for (i = 0; i < sizeof(value); i++)
		printf("%02x", value[i]);
	puts("");
	return 0;
}
