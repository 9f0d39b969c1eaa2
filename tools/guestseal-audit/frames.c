// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pages of RAM with what the guest has written, wherever they are: what the kernel sees,
 * by /proc/kcore, to tell what becomes of them.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kernel-page-flags.h>
#include <string.h>
#include <unistd.h>

#include "audit.h"

#define FLAG(name) (1ULL << KPF_##name)

/* Where a page is in /proc/kcore, or -1 */
static off_t place(const Elf64_Phdr *parts, int nr, unsigned long pfn)
{
	for (int i = 0; i < nr; i++) {
		/* Other than RAM, e.g. vmalloc'ed memory has no physical address. */
		if (parts[i].p_type == PT_LOAD && parts[i].p_paddr != ~0UL &&
		    pfn * PAGE >= parts[i].p_paddr &&
		    pfn * PAGE + PAGE <= parts[i].p_paddr + parts[i].p_memsz)
			return parts[i].p_offset + (pfn * PAGE - parts[i].p_paddr);
	}
	return -1;
}

static bool has(struct target *target, int kcore, off_t at)
{
	uint32_t words[8];

	return pread(kcore, words, sizeof(words), at) == sizeof(words) &&
	       has_secret(target->seed, words, sizeof(words));
}

/* DONE if there are any. Pages of files only: an anonymous one is a copy. */
enum outcome frames_find(struct target *target, struct frames *frames)
{
	static uint64_t flags[4096];
	int kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	Elf64_Phdr parts[64];
	unsigned long pfn = 0;
	Elf64_Ehdr head;
	ssize_t got;
	off_t at;
	int nr;

	frames->nr = 0;
	frames->kcore = open("/proc/kcore", O_RDONLY | O_CLOEXEC);
	if (frames->kcore < 0 || kpageflags < 0)
		return ended(target, LACKING, "no /proc/kcore and /proc/kpageflags: %s",
			     strerror(errno));
	if (pread(frames->kcore, &head, sizeof(head), 0) != sizeof(head))
		return ended(target, LACKING, "/proc/kcore: %s", strerror(errno));
	nr = head.e_phnum < ARRAY_SIZE(parts) ? head.e_phnum : ARRAY_SIZE(parts);
	if (pread(frames->kcore, parts, nr * sizeof(*parts), head.e_phoff) < 0)
		return ended(target, LACKING, "/proc/kcore: %s", strerror(errno));

	while ((got = read(kpageflags, flags, sizeof(flags))) > 0) {
		for (size_t i = 0; i < got / sizeof(*flags); i++, pfn++) {
			if ((flags[i] & (FLAG(SWAPBACKED) | FLAG(ANON) | FLAG(NOPAGE) |
					 FLAG(BUDDY))) != FLAG(SWAPBACKED))
				continue;
			at = place(parts, nr, pfn);
			if (at < 0 || !has(target, frames->kcore, at) || frames->nr == MAX_FRAMES)
				continue;
			frames->at[frames->nr] = at;
			frames->pfn[frames->nr++] = pfn;
		}
	}
	close(kpageflags);
	if (!frames->nr)
		return ended(target, BROKEN, "the guest's pages are not to be found");
	return DONE;
}

/* How many of them still have it? */
size_t frames_left(struct target *target, const struct frames *frames)
{
	size_t left = 0;

	for (size_t i = 0; i < frames->nr; i++)
		left += has(target, frames->kcore, frames->at[i]);
	return left;
}
