/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Traces events in an instance of its own.
 */
#ifndef SELFTEST_KVM_SEALED_MEMFD_TRACE_H
#define SELFTEST_KVM_SEALED_MEMFD_TRACE_H

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "test_util.h"

#define TRACING		"/sys/kernel/tracing/instances/sealed_memfd_test"

static inline bool trace_write(const char *file, const char *text)
{
	char path[128];
	bool done;
	int fd;

	snprintf(path, sizeof(path), TRACING "/%s", file);
	fd = open(path, O_WRONLY | O_TRUNC);
	done = fd >= 0 && write(fd, text, strlen(text)) == strlen(text);
	close(fd);
	return done;
}

static inline void trace_mark(const char *text)
{
	TEST_ASSERT(trace_write("trace_marker", text), "Can't write to the trace");
}

/* To be followed by trace_stop(), also if it's false. */
static inline bool trace_start(const char * const *events, unsigned int nr)
{
	char text[64];
	unsigned int i;

	/* One that a failed test has left is of no use. */
	rmdir(TRACING);
	if (mkdir(TRACING, 0700) || !trace_write("trace_clock", "counter"))
		return false;

	for (i = 0; i < nr; i++) {
		snprintf(text, sizeof(text), "events/%s/enable", events[i]);
		if (!trace_write(text, "1"))
			return false;
	}
	return true;
}

/* From now on, and only what the calling thread does. */
static inline void trace_this_thread(const char * const *events, unsigned int nr)
{
	char file[64], filter[64];
	unsigned int i;

	snprintf(filter, sizeof(filter), "common_pid == %d", gettid());
	for (i = 0; i < nr; i++) {
		snprintf(file, sizeof(file), "events/%s/filter", events[i]);
		TEST_ASSERT(trace_write(file, filter), "Can't filter %s", events[i]);
	}
	TEST_ASSERT(trace_write("trace", " "), "Can't clear the trace");
}

static inline FILE *trace_open(void)
{
	FILE *file = fopen(TRACING "/trace", "r");

	TEST_ASSERT(file, __KVM_SYSCALL_ERROR("fopen()", -1));
	return file;
}

static inline void trace_stop(void)
{
	rmdir(TRACING);
}

#endif /* SELFTEST_KVM_SEALED_MEMFD_TRACE_H */
