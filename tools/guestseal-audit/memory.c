// SPDX-License-Identifier: GPL-2.0-only
/*
 * What moves, frees, merges or writes away pages: at the VMM's own memory, where the guest
 * has its ordinary one, and in the host as a whole.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "audit.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define MPOL_PREFERRED 1
#define MPOL_MF_MOVE_ALL 4
#define SWAP_SIZE (16UL << 20)

static enum outcome did(struct target *target, const char *call, long result)
{
	return result < 0 ? refused(target, call)
			  : ended(target, DONE, "%s: the guest's memory stays as it is", call);
}

/* --- at the VMM's memory --------------------------------------------------------------- */

static enum outcome drop(struct target *target, const struct attack *attack)
{
	(void)attack;
	return did(target, "MADV_DONTNEED", madvise(MEMORY, target->size, MADV_DONTNEED));
}

static enum outcome remove_pages(struct target *target, const struct attack *attack)
{
	(void)attack;
	return did(target, "MADV_REMOVE", madvise(MEMORY, target->size, MADV_REMOVE));
}

static enum outcome map_over(struct target *target, const struct attack *attack)
{
	void *map = mmap(MEMORY, target->size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	(void)attack;
	return did(target, "mmap", map == MAP_FAILED ? -1 : 0);
}

static enum outcome move_over(struct target *target, const struct attack *attack)
{
	char *other = mmap(NULL, target->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			   -1, 0);

	(void)attack;
	memset(other, 0x55, target->size);
	other = mremap(other, target->size, target->size, MREMAP_MAYMOVE | MREMAP_FIXED, MEMORY);
	return did(target, "mremap", other == MAP_FAILED ? -1 : 0);
}

static enum outcome unmap(struct target *target, const struct attack *attack)
{
	(void)attack;
	return did(target, "munmap", munmap(MEMORY, target->size));
}

static enum outcome forbid(struct target *target, const struct attack *attack)
{
	(void)attack;
	return did(target, "mprotect", mprotect(MEMORY, target->size, PROT_NONE));
}

/* Free a page and have userfaultfd fill it with something else. */
static enum outcome fill_missing(struct target *target, const struct attack *attack)
{
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = {
		.range = { (unsigned long)MEMORY, target->size },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	static char junk[PAGE] __attribute__((aligned(PAGE))) = { "other content" };
	struct uffdio_copy copy = {
		.dst = (unsigned long)MEMORY + target->offset,
		.src = (unsigned long)junk,
		.len = PAGE,
	};

	(void)attack;
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		return ended(target, LACKING, "no userfaultfd: %s", strerror(errno));
	if (madvise(MEMORY + target->offset, PAGE, MADV_REMOVE))
		return refused(target, "madvise");
	if (ioctl(fd, UFFDIO_REGISTER, &range))
		return refused(target, "UFFDIO_REGISTER");
	return did(target, "UFFDIO_COPY", ioctl(fd, UFFDIO_COPY, &copy));
}

static enum outcome collapse(struct target *target, const struct attack *attack)
{
	(void)attack;
	/* There have to be pages. */
	for (size_t at = 0; at < target->size; at += PAGE)
		*(volatile char *)(MEMORY + at);
	if (madvise(MEMORY, target->size, MADV_COLLAPSE) && errno == EINVAL)
		return ended(target, LACKING, "no transparent huge pages, or not for shmem");
	return did(target, "MADV_COLLAPSE", madvise(MEMORY, target->size, MADV_COLLAPSE));
}

static enum outcome lock(struct target *target, const struct attack *attack)
{
	(void)attack;
	return did(target, "mlock", mlock(MEMORY, target->size) ?: munlock(MEMORY, target->size));
}

static enum outcome set_policy(struct target *target, const struct attack *attack)
{
	unsigned long nodes = 1;
	long result = syscall(SYS_mbind, MEMORY, target->size, MPOL_PREFERRED, &nodes, 64UL,
			      MPOL_MF_MOVE_ALL);

	(void)attack;
	if (result && errno == ENOSYS)
		return ended(target, LACKING, "no mbind()");
	return did(target, "mbind", result);
}

static enum outcome move_pages_of(struct target *target, const struct attack *attack)
{
	void *page = MEMORY + target->offset;
	int node = 0, status;
	long result =
		syscall(SYS_move_pages, target->pid, 1UL, &page, &node, &status, MPOL_MF_MOVE_ALL);

	(void)attack;
	if (result < 0 && errno == ENOSYS)
		return ended(target, LACKING, "no move_pages()");
	return did(target, "move_pages", result);
}

static enum outcome migrate(struct target *target, const struct attack *attack)
{
	unsigned long nodes = 1;
	long result = syscall(SYS_migrate_pages, target->pid, 64UL, &nodes, &nodes);

	(void)attack;
	if (result < 0 && errno == ENOSYS)
		return ended(target, LACKING, "no migrate_pages()");
	return did(target, "migrate_pages", result);
}

static enum outcome clear_references(struct target *target, const struct attack *attack)
{
	char path[64];

	(void)attack;
	snprintf(path, sizeof(path), "/proc/%d/clear_refs", target->pid);
	return did(target, "clear_refs", write_file(path, "1") ? 0 : -1);
}

/* --- out to disk, by way of a swap device that we can read ------------------------------- */

static int disk;
static char swap_path[32];

static enum outcome add_swap(struct target *target, const struct attack *attack)
{
	static char header[PAGE];
	uint32_t *info = (uint32_t *)(header + 1024);
	int loop;

	(void)attack;
	disk = new_memfd(SWAP_SIZE);
	info[0] = 1;
	info[1] = SWAP_SIZE / PAGE - 1;
	memcpy(header + PAGE - 10, "SWAPSPACE2", 10);
	if (disk < 0 || pwrite(disk, header, PAGE, 0) != (ssize_t)PAGE)
		return ended(target, BROKEN, "no file: %s", strerror(errno));
	loop = loop_attach(disk, false, swap_path);
	if (loop < 0)
		return ended(target, LACKING, "no loop device: %s", strerror(errno));
	if (swapon(swap_path, 0x8000 | 0x7fff)) {
		loop_detach(swap_path);
		return ended(target, LACKING, "no swap space: %s", strerror(errno));
	}
	close(loop);
	return DONE;
}

/* What is on the disk by now; and swapoff, which reads it all back. */
static enum outcome read_swap(struct target *target)
{
	enum outcome outcome = scan_file(target, disk, SWAP_SIZE);

	swapoff(swap_path);
	loop_detach(swap_path);
	return outcome;
}

static enum outcome page_out(struct target *target, const struct attack *attack)
{
	struct iovec range = { MEMORY, target->size };
	int pidfd = syscall(SYS_pidfd_open, target->pid, 0), tries;

	(void)attack;
	/* Each CPU has pages that aren't on a list yet, but after this. */
	write_file("/proc/sys/vm/compact_memory", "1");
	/* What was just used may be spared once. */
	for (tries = 0; tries < 10; tries++)
		syscall(SYS_process_madvise, pidfd, &range, 1UL, MADV_PAGEOUT, 0U);
	sync();
	return read_swap(target);
}

#define CGROUPS "/sys/fs/cgroup"
#define CGROUP CGROUPS "/guestseal-audit"

static enum outcome join_cgroup(struct target *target, const struct attack *attack)
{
	write_file(CGROUPS "/cgroup.subtree_control", "+memory");
	if ((mkdir(CGROUP, 0700) && errno != EEXIST) || access(CGROUP "/memory.reclaim", F_OK) ||
	    !write_file(CGROUP "/cgroup.procs", "0"))
		return ended(target, LACKING, "no memory cgroups: %s", strerror(errno));
	return add_swap(target, attack);
}

static enum outcome reclaim(struct target *target, const struct attack *attack)
{
	char vmm[16];
	int tries;

	(void)attack;
	write_file("/proc/sys/vm/compact_memory", "1");
	for (tries = 0; tries < 10; tries++)
		write_file(CGROUP "/memory.reclaim", "64M");
	snprintf(vmm, sizeof(vmm), "%d", target->pid);
	write_file(CGROUPS "/cgroup.procs", vmm);
	write_file(CGROUPS "/cgroup.procs", "0");
	rmdir(CGROUP);
	sync();
	return read_swap(target);
}

/* --- guesses --------------------------------------------------------------------------------- */

static long number(const char *path)
{
	FILE *file = fopen(path, "r");
	long value = -1;

	if (file) {
		if (fscanf(file, "%ld", &value) != 1)
			value = -1;
		fclose(file);
	}
	return value;
}

/*
 * KSM merges pages that are alike, so whoever knows what a page may be can tell, by that,
 * whether there is one.
 */
static enum outcome guess(struct target *target, const struct attack *attack)
{
	uint32_t *page =
		mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint32_t word = target->seed;
	long before, after = 0;
	char previous[16];
	int tries;

	(void)attack;
	before = number("/sys/kernel/mm/ksm/pages_sharing");
	if (before < 0)
		return ended(target, LACKING, "no KSM");
	for (size_t i = 0; i < PAGE / sizeof(word); i++, word = word * 1664525 + target->seed)
		page[i] = word;
	snprintf(previous, sizeof(previous), "%ld", number("/sys/kernel/mm/ksm/run"));
	madvise(MEMORY, target->size, MADV_MERGEABLE);
	madvise(page, PAGE, MADV_MERGEABLE);
	write_file("/sys/kernel/mm/ksm/pages_to_scan", "1000");
	write_file("/sys/kernel/mm/ksm/run", "1");
	for (tries = 0; tries < 100 && after <= before; tries++) {
		usleep(20000);
		after = number("/sys/kernel/mm/ksm/pages_sharing");
	}
	write_file("/sys/kernel/mm/ksm/run", "2");
	write_file("/sys/kernel/mm/ksm/run", previous);
	if (after > before)
		return ended(target, TOLD, "a page with a guess of its content was merged with it");
	return ended(target, REFUSED, "no page is merged with a guess of its content");
}

/* How many of the guest's pages are idle? Marks them so, if asked to. */
static size_t count_idle(int bitmap, const struct frames *frames, bool mark)
{
	size_t idle = 0;

	for (size_t i = 0; i < frames->nr; i++) {
		off_t at = frames->pfn[i] / 64 * 8;
		uint64_t bit = 1ULL << (frames->pfn[i] % 64), bits = bit;

		if (mark && pwrite(bitmap, &bits, 8, at) != 8)
			return 0;
		idle += pread(bitmap, &bits, 8, at) == 8 && bits & bit;
	}
	return idle;
}

/* Idle page tracking tells which pages are used. */
static enum outcome idle(struct target *target, const struct attack *attack)
{
	int bitmap = open("/sys/kernel/mm/page_idle/bitmap", O_RDWR | O_CLOEXEC);
	static struct frames frames;
	size_t before, used;

	(void)attack;
	if (bitmap < 0)
		return ended(target, LACKING, "no page_idle: %s", strerror(errno));
	/* What a CPU has put aside for later it doesn't know: this has it put on lists, and
	 * moves pages.
	 */
	write_file("/proc/sys/vm/compact_memory", "1");
	if (frames_find(target, &frames) != DONE)
		return target->result->outcome;
	before = count_idle(bitmap, &frames, true);
	vmm_asks(target, 'i');
	used = before - count_idle(bitmap, &frames, false);
	if (used)
		return ended(target, TOLD, "%zu of %zu pages were seen to be used", used, before);
	return ended(target, REFUSED, "%zu of %zu pages idle, none is seen to be used", before,
		     frames.nr);
}

/* --- in the host as a whole --------------------------------------------------------------------
 */

static enum outcome trigger(struct target *target, const char *path, const char *text)
{
	if (access(path, W_OK))
		return ended(target, LACKING, "no %s", path);
	return did(target, path, write_file(path, text) ? 0 : -1);
}

static enum outcome drop_caches(struct target *target, const struct attack *attack)
{
	(void)attack;
	return trigger(target, "/proc/sys/vm/drop_caches", "3");
}

static enum outcome compact(struct target *target, const struct attack *attack)
{
	(void)attack;
	return trigger(target, "/proc/sys/vm/compact_memory", "1");
}

static enum outcome split(struct target *target, const struct attack *attack)
{
	(void)attack;
	return trigger(target, "/sys/kernel/debug/split_huge_pages", "1");
}

static struct vm *poisoned;

/* KVM tells of it again and again. */
static void stop_vm(int signal)
{
	(void)signal;
	poisoned->run->immediate_exit = 1;
}

/* A memory error of the hardware's at the VMM's memory; the page is lost for the host. */
static enum outcome poison(struct target *target, const struct attack *attack)
{
	struct sigaction action = { .sa_handler = stop_vm };

	(void)attack;
	poisoned = target->vm;
	sigaction(SIGBUS, &action, NULL);
	/* There has to be a page. */
	*(volatile char *)MEMORY;
	if (madvise(MEMORY, PAGE, MADV_HWPOISON)) {
		if (errno == EINVAL)
			return ended(target, LACKING, "no MADV_HWPOISON");
		return refused(target, "MADV_HWPOISON");
	}
	return did(target, "MADV_HWPOISON", 0);
}

/* clang-format off */
#define OWN(n, r, k, w) { .name = n, .what = w, .run = r, .wants = k, .flags = AS_VMM }
#define HOST(n, r, f, w) { .name = n, .what = w, .run = r, .wants = DONE, .flags = DISTURBS | (f) }

static const struct attack attacks[] = {
	{ .name = "MADV_DONTNEED", .what = "the VMM frees the guest's memory where it is anonymous",
	  .run = drop, .wants = CHANGED, .flags = AS_VMM | ANONYMOUS },
	OWN("MADV_REMOVE", remove_pages, CHANGED, "the VMM frees the guest's memory where it is a file's"),
	OWN("mmap", map_over, CHANGED, "other memory mapped where the guest's was"),
	OWN("mremap", move_over, CHANGED, "other memory moved to where the guest's was"),
	OWN("munmap", unmap, CHANGED, "the guest's memory unmapped"),
	OWN("mprotect", forbid, CHANGED, "all access to the guest's memory taken from the VMM"),
	OWN("userfaultfd, missing", fill_missing, CHANGED, "a page freed, and UFFDIO_COPY of another"),
	OWN("mlock", lock, DONE, "the VMM's memory locked and unlocked"),
	OWN("mbind", set_policy, DONE, "the VMM's memory moved by a NUMA policy"),
	OWN("clear_refs", clear_references, DONE, "references cleared in the VMM's page tables"),
	{ .name = "MADV_COLLAPSE", .what = "the VMM's memory made a huge page", .run = collapse,
	  .wants = DONE, .flags = AS_VMM | HUGE },
	{ .name = "move_pages", .what = "a page of the VMM's moved between nodes", .run = move_pages_of, .wants = DONE },
	{ .name = "migrate_pages", .what = "all of the VMM's pages moved between nodes", .run = migrate, .wants = DONE },
	{ .name = "page_idle", .what = "idle page tracking, to see when the guest uses a page", .run = idle,
	  .wants = TOLD, .flags = DISTURBS },
	{ .name = "KSM", .what = "a guess of a page's content, to see whether KSM merges it", .run = guess,
	  .wants = TOLD, .flags = DISTURBS | AS_VMM | ANONYMOUS },
	{ .name = "MADV_PAGEOUT", .what = "the VMM's memory written to a swap device, and swapoff",
	  .prepare = add_swap, .run = page_out, .wants = SEEN, .flags = DISTURBS },
	{ .name = "memory.reclaim", .what = "all of the VMM's cgroup written to a swap device, and swapoff",
	  .prepare = join_cgroup, .run = reclaim, .wants = SEEN, .flags = DISTURBS },
	HOST("drop_caches", drop_caches, 0, "all pages dropped that are clean"),
	HOST("compact_memory", compact, 0, "pages moved to make room for larger ones"),
	HOST("split_huge_pages", split, HUGE, "huge pages split, by debugfs"),
	{ .name = "MADV_HWPOISON", .what = "a memory error at the VMM's memory", .run = poison,
	  .wants = CHANGED, .flags = DISTURBS | AS_VMM },
};
/* clang-format on */

const struct group memory_group =
	GROUP("memfd", "memory", "by what moves and frees pages", attacks);
