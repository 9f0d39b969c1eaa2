// SPDX-License-Identifier: GPL-2.0-only
/*
 * On the host, as root: give the kernel a key that sealing keys come from.
 *
 *	host_key TYPE DESCRIPTION	what it is comes from standard input
 *	host_key -p PERMISSIONS KEY	change them, in hexadecimal
 *	host_key -r KEY			revoke it
 *
 * The first prints its serial number, which is what the others take. TYPE "logon" can't be
 * read back by anybody; "encrypted" and "trusted" need not be known to anybody, see
 * keyctl(1) of keyutils.
 */
#include <err.h>
#include <linux/keyctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	/* One byte more than a key can have */
	char payload[32768];
	size_t size;
	long serial;

	if (argc == 4 && !strcmp(argv[1], "-p")) {
		if (syscall(SYS_keyctl, KEYCTL_SETPERM, atoi(argv[3]), strtoul(argv[2], NULL, 16)))
			err(1, "KEYCTL_SETPERM");
		return 0;
	}
	if (argc == 3 && !strcmp(argv[1], "-r")) {
		if (syscall(SYS_keyctl, KEYCTL_REVOKE, atoi(argv[2])))
			err(1, "KEYCTL_REVOKE");
		return 0;
	}
	if (argc != 3)
		errx(2, "usage: host_key TYPE DESCRIPTION <PAYLOAD | -p PERMISSIONS KEY | -r KEY");
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
