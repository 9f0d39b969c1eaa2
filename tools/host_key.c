// SPDX-License-Identifier: GPL-2.0-only
/*
 * On the host, as root: give the kernel a key that sealing keys come from.
 *
 *	host_key TYPE DESCRIPTION	what it is comes from standard input
 *
 * Prints its serial number. TYPE "logon" can't be read back by anybody; "encrypted" and
 * "trusted" need not be known to anybody, see keyctl(1) of keyutils.
 */
#include <err.h>
#include <linux/keyctl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	/* One byte more than a key can have */
	char payload[32768];
	size_t size;
	long serial;

	if (argc != 3)
		errx(2, "usage: host_key TYPE DESCRIPTION <PAYLOAD");
	size = fread(payload, 1, sizeof(payload), stdin);
	if (ferror(stdin))
		err(1, "standard input");
	if (size == sizeof(payload))
		errx(1, "that's too long for a key");
	serial = syscall(SYS_add_key, argv[1], argv[2], payload, size, KEY_SPEC_USER_KEYRING);
	if (serial < 0)
		err(1, "add_key");
	printf("%ld\n", serial);
	if (fflush(stdout))
		err(1, "standard output");
	return 0;
}
