// SPDX-License-Identifier: GPL-2.0-only
/* Into the VMM's memory, as another process does it. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "audit.h"

static const char junk[64] = "This is not what the guest wrote.";

static int open_of(pid_t pid, const char *name, int flags)
{
	char path[96];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	return open(path, flags | O_CLOEXEC);
}

/* For each mapping of the VMM's; ends when the secret is seen. */
static enum outcome each_mapping(struct target *target,
				 enum outcome (*scan)(struct target *target, unsigned long start,
						      unsigned long end))
{
	FILE *maps = fdopen(open_of(target->pid, "maps", O_RDONLY), "r");
	unsigned long start, end, bytes = 0;
	enum outcome outcome = REFUSED;
	char line[512];

	if (!maps)
		return refused(target, "/proc/PID/maps");
	while (outcome != SEEN && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx", &start, &end) != 2 || strstr(line, "[vsyscall]"))
			continue;
		/* What is reserved only, such as by sanitizers */
		if (strstr(line, " 00:00 0") &&
		    end - start > 1UL << (strstr(line, " ---p ") ? 30 : 40))
			continue;
		bytes += end - start;
		outcome = scan(target, start, end);
	}
	fclose(maps);
	return outcome == SEEN
		       ? SEEN
		       : ended(target, REFUSED, "nothing of the guest's in %lu bytes", bytes);
}

static int memory;

static enum outcome scan_memory(struct target *target, unsigned long start, unsigned long end)
{
	static char buffer[16 * PAGE];

	for (; start < end; start += sizeof(buffer)) {
		ssize_t got = pread(memory, buffer, sizeof(buffer), start);

		if (got > 0 && look(target, buffer, got) == SEEN)
			return SEEN;
	}
	return REFUSED;
}

static enum outcome read_mem(struct target *target, const struct attack *attack)
{
	(void)attack;
	memory = open_of(target->pid, "mem", O_RDONLY);
	if (memory < 0)
		return refused(target, "/proc/PID/mem");
	return each_mapping(target, scan_memory);
}

static enum outcome scan_vm(struct target *target, unsigned long start, unsigned long end)
{
	static char buffer[16 * PAGE];

	for (; start < end; start += sizeof(buffer)) {
		size_t size = end - start < sizeof(buffer) ? end - start : sizeof(buffer);
		struct iovec here = { buffer, size }, there = { (void *)start, size };
		ssize_t got = process_vm_readv(target->pid, &here, 1, &there, 1, 0);

		if (got > 0 && look(target, buffer, got) == SEEN)
			return SEEN;
	}
	return REFUSED;
}

static enum outcome read_vm(struct target *target, const struct attack *attack)
{
	(void)attack;
	return each_mapping(target, scan_vm);
}

static enum outcome scan_map_file(struct target *target, unsigned long start, unsigned long end)
{
	char name[64];
	struct stat st;
	int fd;

	snprintf(name, sizeof(name), "map_files/%lx-%lx", start, end);
	fd = open_of(target->pid, name, O_RDONLY);
	if (fd < 0)
		return REFUSED;
	if (!fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_nlink == 0 &&
	    scan_file(target, fd, st.st_size) == SEEN)
		return SEEN;
	close(fd);
	return REFUSED;
}

static enum outcome read_map_files(struct target *target, const struct attack *attack)
{
	(void)attack;
	return each_mapping(target, scan_map_file);
}

static enum outcome attach(struct target *target)
{
	if (ptrace(PTRACE_ATTACH, target->pid, 0, 0) ||
	    waitpid(target->pid, NULL, __WALL) != target->pid)
		return refused(target, "PTRACE_ATTACH");
	return DONE;
}

static enum outcome peek_text(struct target *target, const struct attack *attack)
{
	long words[64];
	size_t i;

	(void)attack;
	if (attach(target) != DONE)
		return REFUSED;
	errno = 0;
	for (i = 0; i < ARRAY_SIZE(words) && !errno; i++)
		words[i] = ptrace(PTRACE_PEEKDATA, target->pid,
				  MEMORY + target->offset + i * sizeof(long), 0);
	if (errno)
		return refused(target, "PTRACE_PEEKDATA");
	ptrace(PTRACE_DETACH, target->pid, 0, 0);
	return look(target, words, sizeof(words));
}

static enum outcome poke_text(struct target *target, const struct attack *attack)
{
	(void)attack;
	if (attach(target) != DONE)
		return REFUSED;
	if (ptrace(PTRACE_POKEDATA, target->pid, MEMORY + target->offset, 0x5555))
		return refused(target, "PTRACE_POKEDATA");
	ptrace(PTRACE_DETACH, target->pid, 0, 0);
	return ended(target, DONE, "the guest does not see it");
}

static enum outcome write_mem(struct target *target, const struct attack *attack)
{
	(void)attack;
	memory = open_of(target->pid, "mem", O_RDWR);
	if (memory < 0 || pwrite(memory, junk, sizeof(junk),
				 (unsigned long)MEMORY + target->offset) != sizeof(junk))
		return refused(target, "/proc/PID/mem");
	return ended(target, DONE, "the guest does not see it");
}

static enum outcome write_vm(struct target *target, const struct attack *attack)
{
	struct iovec here = { (void *)junk, sizeof(junk) };
	struct iovec there = { MEMORY + target->offset, sizeof(junk) };

	(void)attack;
	if (process_vm_writev(target->pid, &here, 1, &there, 1, 0) < 0)
		return refused(target, "process_vm_writev");
	return ended(target, DONE, "the guest does not see it");
}

static enum outcome write_map_files(struct target *target, const struct attack *attack)
{
	char name[64];
	int fd;

	(void)attack;
	snprintf(name, sizeof(name), "map_files/%lx-%lx", (unsigned long)MEMORY,
		 (unsigned long)(MEMORY + target->size));
	fd = open_of(target->pid, name, O_RDWR);
	if (fd < 0)
		return refused(target, "/proc/PID/map_files");
	if (pwrite(fd, junk, sizeof(junk), target->offset) < 0)
		return refused(target, "pwrite");
	return ended(target, DONE, "the guest does not see it");
}

/* All of it, with whatever kind of mapping there is */
static enum outcome dump_core(struct target *target, const struct attack *attack)
{
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	static const char path[] = "/proc/sys/kernel/core_pattern";
	char before[256] = "", folder[] = "/tmp/guestseal-audit.XXXXXX", name[64], pattern[64];
	enum outcome outcome;
	int fd, status;
	struct stat st;

	(void)attack;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, before, sizeof(before) - 1) < 0 || !mkdtemp(folder))
		return ended(target, LACKING, "no core dumps: %s", strerror(errno));
	close(fd);
	snprintf(pattern, sizeof(pattern), "%s/core", folder);
	if (!write_file(path, pattern))
		return ended(target, LACKING, "core_pattern: %s", strerror(errno));
	snprintf(name, sizeof(name), "/proc/%d/coredump_filter", target->pid);
	if (prlimit(target->pid, RLIMIT_CORE, &unlimited, NULL) || !write_file(name, "0x1ff"))
		return ended(target, LACKING, "coredump_filter: %s", strerror(errno));
	kill(target->pid, SIGABRT);
	waitpid(target->pid, &status, 0);
	write_file(path, before);
	snprintf(name, sizeof(name), "%s/core", folder);
	fd = open(name, O_RDONLY | O_CLOEXEC);
	if (access(name, F_OK)) {
		/* kernel.core_uses_pid */
		snprintf(name, sizeof(name), "%s/core.%d", folder, target->pid);
		fd = open(name, O_RDONLY | O_CLOEXEC);
	}
	if (fd < 0 || fstat(fd, &st))
		outcome = ended(target, BROKEN, "no core dump: %s", strerror(errno));
	else
		outcome = scan_file(target, fd, st.st_size);
	unlink(name);
	rmdir(folder);
	return outcome;
}

/* clang-format off */
#define PROCESS(n, r, k, w) { .name = n, .what = w, .run = r, .wants = k }

static const struct attack attacks[] = {
	PROCESS("/proc/PID/mem", read_mem, SEEN, "read() of all of the VMM's memory"),
	PROCESS("process_vm_readv", read_vm, SEEN, "process_vm_readv() of all of the VMM's memory"),
	PROCESS("PTRACE_PEEKDATA", peek_text, SEEN, "what a debugger sees where the VMM has the guest's memory"),
	PROCESS("/proc/PID/map_files", read_map_files, SEEN, "the files that the VMM has mapped, opened again"),
	{ .name = "core dump", .what = "a core dump of the VMM, with all kinds of mappings",
	  .run = dump_core, .wants = SEEN, .flags = DISTURBS },
	PROCESS("/proc/PID/mem, write", write_mem, CHANGED, "write() to the VMM's memory"),
	PROCESS("process_vm_writev", write_vm, CHANGED, "process_vm_writev() to the VMM's memory"),
	PROCESS("PTRACE_POKEDATA", poke_text, CHANGED, "a debugger changes the guest's memory in the VMM"),
	PROCESS("map_files, write", write_map_files, CHANGED, "the file that the VMM has mapped, opened again to write"),
};
/* clang-format on */

const struct group process_group = GROUP("memfd", "process", "into the VMM, by others", attacks);
