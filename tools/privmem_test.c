// SPDX-License-Identifier: GPL-2.0-only
/*
 * In the guest, as root: test /dev/kvm_privmem. TAP on standard output.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kernel-page-flags.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define DEVICE "/dev/kvm_privmem"
#define PARAMETERS "/sys/module/kvm_privmem/parameters/"
#define PAGE 4096UL
#define SIZE (1024 * PAGE)

static int tests, failed;

static void check(int ok, const char *what)
{
	printf("%sok %d - %s\n", ok ? "" : "not ", ++tests, what);
	failed += !ok;
}

static long parameter(const char *name)
{
	char path[128];
	long value;
	FILE *file;

	snprintf(path, sizeof(path), PARAMETERS "%s", name);
	file = fopen(path, "r");
	if (!file || fscanf(file, "%ld", &value) != 1)
		err(1, "%s", path);
	fclose(file);
	return value;
}

static void set_max_pages(long value)
{
	FILE *file = fopen(PARAMETERS "max_pages", "w");

	if (!file || fprintf(file, "%ld", value) < 0 || fclose(file))
		err(1, "max_pages");
}

static int open_device(void)
{
	int fd = open(DEVICE, O_RDWR);

	if (fd < 0)
		err(1, DEVICE);
	return fd;
}

static void *map(int fd, size_t size, off_t offset)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
}

static int zeros(const char *memory, size_t size)
{
	return !memory[0] && !memcmp(memory, memory + 1, size - 1);
}

static int exit_status(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		err(1, "waitpid");
	return status;
}

static int fails_with(void *memory, int error)
{
	return memory == MAP_FAILED && errno == error;
}

static void test_refusals(void)
{
	int fd = open(DEVICE, O_RDONLY);
	struct stat st;

	check(!stat(DEVICE, &st) && (st.st_mode & 07777) == 0600, "the device is root's alone");
	check(fails_with(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0), EINVAL),
	      "open for reading alone: not to be mapped");
	close(fd);
	fd = open_device();
	check(fails_with(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0), EINVAL),
	      "MAP_PRIVATE is refused");
	check(!parameter("nr_pages"), "refusals leave no page private");
	close(fd);
}

static void test_memory(void)
{
	int fd = open_device(), pipes[2];
	char *memory = map(fd, SIZE, 0), *again = map(fd, PAGE, PAGE);
	struct iovec iov = { memory, PAGE };
	pid_t pid;

	if (memory == MAP_FAILED || again == MAP_FAILED || pipe(pipes))
		err(1, "private memory");
	check(parameter("nr_pages") == SIZE / PAGE, "pages are private once mapped");
	check(zeros(memory, SIZE), "fresh memory is zeros");
	memset(memory, 0x5a, SIZE);
	check(again[0] == 0x5a, "the same offset is the same memory");

	pid = fork();
	if (!pid) {
		memory[7] = 1;
		_exit(memory[8] != 0x5a);
	}
	check(!exit_status(pid) && memory[7] == 1, "a child shares it");

	check(vmsplice(pipes[1], &iov, 1, 0) < 0 && errno == EFAULT, "it can't be pinned");
	check(mremap(memory, SIZE, 2 * SIZE, MREMAP_MAYMOVE) == MAP_FAILED, "it can't be grown");
	check(madvise(memory, PAGE, MADV_DODUMP) < 0, "it can't be put into core dumps");

	munmap(memory, SIZE);
	munmap(again, PAGE);
	memory = map(fd, SIZE, 0);
	check(memory[0] == 0x5a && memory[7] == 1, "it lasts as long as the file is open");
	close(fd);
	check(memory[SIZE - 1] == 0x5a, "or as long as it is mapped");
	munmap(memory, SIZE);
	check(!parameter("nr_pages"), "all is given back after that");
}

/* Pages that are marked as none of others' business, whoever walks all memory. */
static long offline_pages(void)
{
	FILE *file = fopen("/proc/kpageflags", "r");
	uint64_t flags;
	long pages = 0;

	if (!file)
		err(1, "/proc/kpageflags");
	while (fread(&flags, sizeof(flags), 1, file) == 1)
		pages += flags >> KPF_OFFLINE & 1;
	fclose(file);
	return pages;
}

static void test_dump(void)
{
	long before = offline_pages();
	int fd = open_device();
	void *memory = map(fd, SIZE, 0);

	check(offline_pages() - before == SIZE / PAGE, "it isn't part of dumps of the guest");
	munmap(memory, SIZE);
	close(fd);
	check(offline_pages() == before, "until it is given back");
}

/* -1, or the error of what makes the guest ready to hibernate, or to resume */
static int hibernation(int mode)
{
	int fd = open("/dev/snapshot", mode);

	if (fd < 0)
		return errno;
	close(fd);
	return -1;
}

static void test_hibernation(void)
{
	int fd = open_device(), state = open("/sys/power/state", O_WRONLY), snapshot;
	void *memory = map(fd, PAGE, 0);

	check(state >= 0 && write(state, "disk", 4) < 0 && errno == EBUSY,
	      "no hibernation while pages are private");
	check(hibernation(O_RDONLY) == EBUSY, "no image either");
	check(hibernation(O_WRONLY) == EBUSY, "nor does another kernel take over");
	munmap(memory, PAGE);
	close(fd);
	check(hibernation(O_WRONLY) == -1, "it does when all is given back");

	fd = open_device();
	snapshot = open("/dev/snapshot", O_RDONLY);
	check(snapshot >= 0 && fails_with(map(fd, PAGE, 0), EBUSY),
	      "while the guest hibernates, no page gets private");
	close(snapshot);
	memory = map(fd, PAGE, 0);
	check(memory != MAP_FAILED, "after that, pages do");
	munmap(memory, PAGE);
	close(fd);
	close(state);
}

static void test_kill(void)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		memset(map(open_device(), SIZE, 0), 0x5a, SIZE);
		raise(SIGKILL);
	}
	status = exit_status(pid);
	check(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && !parameter("nr_pages"),
	      "a killed process gives all back");
}

static void test_limits(void)
{
	struct rlimit limit = { 16 * PAGE, 16 * PAGE };
	long max_pages = parameter("max_pages");
	int fd = open_device();
	void *memory;
	pid_t pid;

	set_max_pages(16);
	check(fails_with(map(fd, 17 * PAGE, 0), ENOMEM), "max_pages holds");
	close(fd);
	fd = open_device();
	memory = map(fd, 16 * PAGE, 0);
	check(memory != MAP_FAILED, "and may be used up");
	munmap(memory, 16 * PAGE);
	close(fd);
	set_max_pages(max_pages);

	/* Whoever opens it is charged: open the device as the user, too. */
	if (chmod(DEVICE, 0666))
		err(1, "chmod");
	pid = fork();
	if (!pid) {
		if (setrlimit(RLIMIT_MEMLOCK, &limit) || setgid(1000) || setuid(1000))
			_exit(2);
		if (!fails_with(map(open_device(), 17 * PAGE, 0), ENOMEM))
			_exit(3);
		_exit(0);
	}
	check(!exit_status(pid), "RLIMIT_MEMLOCK holds for users");
	pid = fork();
	if (!pid) {
		if (setrlimit(RLIMIT_MEMLOCK, &limit) || setgid(1000) || setuid(1000))
			_exit(2);
		_exit(map(open_device(), 16 * PAGE, 0) == MAP_FAILED);
	}
	check(!exit_status(pid), "and may be used up");
	chmod(DEVICE, 0600);
}

/* Each thread has its own pages of one file, and maps them over and over. */
static int shared_fd;

static void *hammer(void *arg)
{
	off_t offset = (off_t)(uintptr_t)arg * SIZE;
	time_t end = time(NULL) + 3;
	char value = 0;

	while (time(NULL) < end) {
		size_t size = (1 + rand() % 64) * PAGE;
		int own = open_device();
		char *memory = map(shared_fd, size, offset), *other = map(own, size, offset);

		if (memory == MAP_FAILED || other == MAP_FAILED)
			return "no memory";
		if (memory[0] != value)
			return "not what was written";
		if (!zeros(other, size))
			return "not zeros";
		memory[0] = ++value;
		memset(other, 0x5a, size);
		munmap(memory, size);
		munmap(other, size);
		close(own);
	}
	return NULL;
}

static void test_threads(void)
{
	pthread_t threads[4];
	void *result;
	int bad = 0;

	shared_fd = open_device();
	for (uintptr_t i = 0; i < 4; i++)
		if (pthread_create(&threads[i], NULL, hammer, (void *)i))
			err(1, "pthread_create");
	for (int i = 0; i < 4; i++) {
		pthread_join(threads[i], &result);
		if (result) {
			printf("# thread %d: %s\n", i, (char *)result);
			bad = 1;
		}
	}
	close(shared_fd);
	check(!bad, "threads map, use and release at once");
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	test_refusals();
	test_memory();
	test_dump();
	test_hibernation();
	test_kill();
	test_limits();
	test_threads();
	check(!parameter("nr_pages"), "nothing is private at the end");
	check(!parameter("nr_leaked"), "the host took all back");
	printf("1..%d\n", tests);
	return failed > 0;
}
