// SPDX-License-Identifier: GPL-2.0-only
/*
 * In a guest: load a kernel for kexec, or for a crash, and go there.
 *
 *	load_kernel next KERNEL INITRD COMMANDLINE	and start it
 *	load_kernel crash KERNEL INITRD COMMANDLINE	for when this one panics
 */
#include <err.h>
#include <fcntl.h>
#include <linux/kexec.h>
#include <linux/reboot.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int kernel, initrd, crash;

	if (argc != 5)
		errx(2, "usage: load_kernel next|crash KERNEL INITRD COMMANDLINE");
	crash = !strcmp(argv[1], "crash");
	kernel = open(argv[2], O_RDONLY | O_CLOEXEC);
	initrd = open(argv[3], O_RDONLY | O_CLOEXEC);
	if (kernel < 0 || initrd < 0)
		err(1, "open");
	if (syscall(SYS_kexec_file_load, kernel, initrd, strlen(argv[4]) + 1, argv[4],
		    crash ? KEXEC_FILE_ON_CRASH : 0))
		err(1, "kexec_file_load");
	if (crash)
		return 0;
	sync();
	reboot(LINUX_REBOOT_CMD_KEXEC);
	err(1, "reboot");
}
