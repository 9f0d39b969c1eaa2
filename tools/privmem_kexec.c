// SPDX-License-Identifier: GPL-2.0-only
/*
 * In the guest, as root: what becomes of /dev/kvm_privmem's memory when another
 * kernel takes over. A line on standard input is the sign to go on.
 *
 *	privmem_kexec restart	start /boot/bzImage by kexec while processes use it
 *	privmem_kexec crash	panic, with /boot/bzImage to capture the dump
 *	privmem_kexec next	in the kernel after restart
 *	privmem_kexec captured	in the kernel after crash
 */
#include <elf.h>
#include <err.h>
#include <fcntl.h>
#include <linux/kexec.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "secret.h"

#define PAGE 4096UL
#define SIZE (16UL << 20)
#define MAGIC 0x6b63617274736575UL
#define SEED 1

/* Say it, and wait for a line. */
static void tell(const char *word, unsigned long number)
{
	char line[8];

	printf("%s %lu\n", word, number);
	if (!fgets(line, sizeof(line), stdin))
		errx(1, "end of input");
}

static uint64_t *map(size_t size)
{
	int fd = open("/dev/kvm_privmem", O_RDWR);
	uint64_t *memory;

	if (fd < 0)
		return NULL;
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return memory == MAP_FAILED ? NULL : memory;
}

static uint64_t *need(size_t size)
{
	uint64_t *memory = map(size);

	if (!memory)
		err(1, "/dev/kvm_privmem");
	for (size_t i = 0; i < size / sizeof(*memory); i++)
		memory[i] = MAGIC;
	return memory;
}

static void load(const char *arguments, unsigned long flags)
{
	int kernel = open("/boot/bzImage", O_RDONLY);
	int initrd = open("/boot/initramfs", O_RDONLY);
	char line[256];
	int length;

	length = snprintf(line, sizeof(line), "console=ttyS0 quiet %s", arguments) + 1;
	if (kernel < 0 || initrd < 0 ||
	    syscall(SYS_kexec_file_load, kernel, initrd, (long)length, line, flags))
		err(1, "kexec_file_load");
}

static pid_t child(void (*function)(void))
{
	int ready[2];
	pid_t pid;
	char c;

	if (pipe(ready))
		err(1, "pipe");
	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (!pid) {
		dup2(ready[1], 3);
		function();
		_exit(0);
	}
	close(ready[1]);
	if (read(ready[0], &c, 1) != 1)
		errx(1, "a child does not get ready");
	close(ready[0]);
	return pid;
}

/* All of these on the same CPU, so that the one that's killed takes its time. */
static void pin(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(1, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		_exit(1);
}

static void ready(void)
{
	if (write(3, "", 1) != 1)
		_exit(1);
}

/* Open it over and over, the more so when the kernel is going down. */
static void opens(void)
{
	need(PAGE);
	pin();
	ready();
	for (;;) {
		uint64_t *memory = map(4 * PAGE);

		if (memory)
			munmap(memory, 4 * PAGE);
		memory = map(PAGE);
		if (memory)
			*memory = MAGIC;
	}
}

/* Write to it all the time, what the host looks for later. */
static void writes(void)
{
	volatile uint64_t *memory = need(SIZE);

	ready();
	for (;;)
		for (size_t i = 0; i < SIZE / sizeof(*memory); i++)
			memory[i] = secret_word(SEED, SECRET_PRIVATE, i % SECRET_WORDS);
}

/* Have much of it, to be released when killed. */
static void has(void)
{
	need(6 * SIZE);
	pin();
	if (nice(15) < 0)
		_exit(1);
	ready();
	pause();
}

static unsigned long free_memory(void)
{
	struct sysinfo info;

	if (sysinfo(&info))
		err(1, "sysinfo");
	return info.freeram * info.mem_unit;
}

static void restart(void)
{
	unsigned long before;
	pid_t killed;

	load("run=privmem_kexec,next", 0);
	need(SIZE);
	child(opens);
	child(writes);
	killed = child(has);
	tell("private", 0);
	before = free_memory();
	kill(killed, SIGKILL);
	/* until some of what it has is given back, but not all */
	while (free_memory() < before + SIZE / 4)
		;
	reboot(RB_KEXEC);
	err(1, "kexec");
}

static void crash(void)
{
	int fd = open("/proc/sysrq-trigger", O_WRONLY);

	load("nr_cpus=1 run=privmem_kexec,captured", KEXEC_FILE_ON_CRASH);
	need(SIZE);
	tell("private", 0);
	if (write(fd, "c", 1) != 1)
		err(1, "sysrq-trigger");
}

/* Where in the dump is a page with its content? 0 if it's nowhere. */
static uint64_t dumped(void)
{
	int fd = open("/proc/vmcore", O_RDONLY);
	uint64_t page[PAGE / 8];
	Elf64_Ehdr head;
	Elf64_Phdr part;

	if (pread(fd, &head, sizeof(head), 0) != sizeof(head))
		err(1, "/proc/vmcore");
	for (int i = 0; i < head.e_phnum; i++) {
		if (pread(fd, &part, sizeof(part), head.e_phoff + i * sizeof(part)) != sizeof(part))
			err(1, "/proc/vmcore");
		if (part.p_type != PT_LOAD)
			continue;
		for (uint64_t at = 0; at + PAGE <= part.p_filesz; at += PAGE) {
			if (pread(fd, page, PAGE, part.p_offset + at) != PAGE)
				err(1, "/proc/vmcore");
			if (page[0] == MAGIC && !memcmp(page, page + 1, PAGE - 8))
				return part.p_paddr + at;
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strcmp(mode, "restart"))
		restart();
	else if (!strcmp(mode, "crash"))
		crash();
	else if (!strcmp(mode, "next"))
		tell("next", 0);
	else if (!strcmp(mode, "captured"))
		tell("captured", dumped());
	else
		errx(2, "restart, crash, next or captured?");
	return 0;
}
