/* SPDX-License-Identifier: GPL-2.0 */
/* What tests of F_SEAL_GUEST have in common */
#ifndef GUEST_SEAL_H
#define GUEST_SEAL_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../kselftest_harness.h"

/* A debug kernel in an emulated host takes its time. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT 300

#ifndef F_SEAL_GUEST
#define F_SEAL_GUEST		0x0040
#endif
#define PUNCH			(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
#define MB(x)			((size_t)(x) << 20)

static size_t page_size;

static void __attribute__((constructor)) init_page_size(void)
{
	page_size = sysconf(_SC_PAGESIZE);
}

#define EXPECT_REFUSED(_errno, _call)					\
do {									\
	long _ret = (long)(_call);					\
	int _err = errno;						\
									\
	EXPECT_EQ(-1, _ret);						\
	if (_ret == -1)							\
		EXPECT_EQ(_errno, _err);				\
} while (0)

static inline int new_memfd(unsigned int flags, size_t size)
{
	int fd = memfd_create("guest_seal_test", MFD_CLOEXEC | flags);

	if (fd >= 0 && ftruncate(fd, size)) {
		close(fd);
		return -1;
	}
	return fd;
}

static inline int seal(int fd, unsigned int seals)
{
	return fcntl(fd, F_ADD_SEALS, seals);
}

static inline int new_sealed_memfd(size_t size)
{
	int fd = new_memfd(MFD_ALLOW_SEALING, size);

	if (fd >= 0 && seal(fd, F_SEAL_GUEST)) {
		close(fd);
		return -1;
	}
	return fd;
}

static inline bool has_guest_seal(void)
{
	int fd = new_sealed_memfd(page_size);

	close(fd);
	return fd >= 0;
}

static inline size_t nr_allocated(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : st.st_blocks * 512 / page_size;
}

static inline bool write_file(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t ret;

	if (fd < 0)
		return false;
	ret = write(fd, value, strlen(value));
	close(fd);
	return ret == (ssize_t)strlen(value);
}

static inline long read_number(const char *path)
{
	char buf[32] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t ret;

	if (fd < 0)
		return -1;
	ret = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	return ret > 0 ? atol(buf) : -1;
}

/* What /proc says of a file by that name, -1 if nothing */
static inline long fdinfo_kb(int fd, const char *name)
{
	char path[64], line[128], format[64];
	long kb = -1;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	snprintf(format, sizeof(format), "%s: %%ld kB", name);
	file = fopen(path, "r");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file))
		sscanf(line, format, &kb);
	fclose(file);
	return kb;
}

#endif /* GUEST_SEAL_H */
