// SPDX-License-Identifier: GPL-2.0-only
/*
 * What root has to read the kernel's memory, or to take its place. That isn't kept out
 * but by lockdown in confidentiality mode; it's here so that a host is seen as it is.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "audit.h"

static enum outcome kcore(struct target *target, const struct attack *attack)
{
	struct frames frames;

	(void)attack;
	if (frames_find(target, &frames) != DONE)
		return target->result->outcome;
	return ended(target, SEEN, "%zu pages of the guest's were seen", frames.nr);
}

static enum outcome devmem(struct target *target, const struct attack *attack)
{
	int memory = open("/dev/mem", O_RDONLY | O_CLOEXEC);
	struct frames frames;
	char page[PAGE];

	(void)attack;
	if (memory < 0)
		return ended(target, LACKING, "no /dev/mem: %s", strerror(errno));
	if (frames_find(target, &frames) != DONE)
		return target->result->outcome;
	if (pread(memory, page, PAGE, frames.pfn[0] * PAGE) != (ssize_t)PAGE)
		return ended(target, LACKING, "/dev/mem has no RAM: %s", strerror(errno));
	return look(target, page, PAGE);
}

/* Not carried out: without a kernel it fails, but only after it has been permitted. */
static enum outcome kexec(struct target *target, const struct attack *attack)
{
	(void)attack;
	if (syscall(SYS_kexec_file_load, -1, -1, 0L, NULL, 0UL) && errno == EBADF)
		return ended(target, TOLD, "another kernel may be loaded");
	return errno == ENOSYS ? ended(target, LACKING, "no kexec")
			       : ended(target, LACKING, "no kexec: %s", strerror(errno));
}

static enum outcome module(struct target *target, const struct attack *attack)
{
	(void)attack;
	if (syscall(SYS_finit_module, -1, "", 0) && errno == EBADF)
		return ended(target, TOLD, "modules may be loaded");
	return ended(target, LACKING, "no modules: %s", strerror(errno));
}

#define LOCKDOWN "the kernel is trusted; lockdown=confidentiality closes it to root"

/* clang-format off */
#define KERNEL(n, r, k, w) { .name = n, .what = w, .run = r, .wants = k, .scope = LOCKDOWN }

static const struct attack attacks[] = {
	KERNEL("/proc/kcore", kcore, SEEN, "the kernel's memory as a core dump"),
	KERNEL("/dev/mem", devmem, SEEN, "physical memory"),
	KERNEL("kexec", kexec, TOLD, "another kernel, or one that dumps this one's memory"),
	KERNEL("modules", module, TOLD, "code loaded into the kernel"),
};
/* clang-format on */

const struct group kernel_group = GROUP("memfd", "kernel", "by the kernel's memory", attacks);
