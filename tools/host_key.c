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
#include <ctype.h>
#include <err.h>
#include <errno.h>
#include <linux/keyctl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* All bits that there are: possessor, user, group, others */
#define PERMISSIONS 0x3f3f3f3f

static unsigned long number(const char *text, int base, unsigned long max, const char *what)
{
	unsigned long value;
	char *end;

	errno = 0;
	value = strtoul(text, &end, base);
	/* It would take signs and spaces, too. */
	if (!isxdigit((unsigned char)*text) || *end || errno || value > max)
		errx(2, "'%s' is not %s", text, what);
	return value;
}

/* Negative ones are whole keyrings. */
static int serial_number(const char *text)
{
	static const char what[] = "the serial number of a key";
	int serial = number(text, 10, INT32_MAX, what);

	if (!serial)
		errx(2, "'%s' is not %s", text, what);
	return serial;
}

static long add_key(const char *type, const char *description)
{
	/* One byte more than a key can have */
	char payload[32768];
	size_t size = 0;
	ssize_t n = 1;
	long serial = -1;

	while (size < sizeof(payload) && n) {
		n = read(STDIN_FILENO, payload + size, sizeof(payload) - size);
		if (n < 0 && errno != EINTR)
			break;
		size += n > 0 ? n : 0;
	}
	if (n < 0) {
		warn("standard input");
	} else if (size == sizeof(payload)) {
		warnx("that's too long for a key");
	} else {
		serial = syscall(SYS_add_key, type, description, payload, size,
				 KEY_SPEC_USER_KEYRING);
		if (serial < 0)
			warn("add_key");
	}
	explicit_bzero(payload, sizeof(payload));
	return serial;
}

int main(int argc, char **argv)
{
	long serial;

	/* No core dumps of a key, nor debuggers */
	if (prctl(PR_SET_DUMPABLE, 0))
		err(1, "PR_SET_DUMPABLE");
	if (argc == 4 && !strcmp(argv[1], "-p")) {
		unsigned long permissions = number(argv[2], 16, PERMISSIONS, "what keys permit");

		if (syscall(SYS_keyctl, KEYCTL_SETPERM, serial_number(argv[3]), permissions))
			err(1, "KEYCTL_SETPERM");
		return 0;
	}
	if (argc == 3 && !strcmp(argv[1], "-r")) {
		if (syscall(SYS_keyctl, KEYCTL_REVOKE, serial_number(argv[2])))
			err(1, "KEYCTL_REVOKE");
		return 0;
	}
	if (argc != 3 || *argv[1] == '-')
		errx(2, "usage: host_key TYPE DESCRIPTION <PAYLOAD | -p PERMISSIONS KEY | -r KEY");
	serial = add_key(argv[1], argv[2]);
	if (serial < 0)
		return 1;
	printf("%ld\n", serial);
	if (fflush(stdout))
		err(1, "standard output");
	return 0;
}
