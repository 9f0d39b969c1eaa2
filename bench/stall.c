// SPDX-License-Identifier: GPL-2.0-only
/*
 * How long do vCPUs have to wait while 1 GiB is converted? They read one page after the
 * other, in turns one that is being converted, as far as the file tells where that is,
 * and one elsewhere. Writes all samples as JSON to the file that is named as argument.
 *
 * All threads share one CPU. So that nobody waits for it who would have one of its own,
 * vCPUs have real-time priority and rest a while between reads: the thread that converts
 * runs then, or when a vCPU is blocked. A vCPU waits for what is executed from when it
 * is due to when it has read, unless that is a vCPU's work. The scheduler's tracepoints
 * tell; its clocks don't, they stand still when the CPU isn't given away at once.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/samples.h"
#include "lib/vm.h"

#define CONVERTED GIGABYTE
#define ELSEWHERE GIGABYTE /* after that */
#define CHUNK HUGE_PAGE
/* What the guest has used of it, and is zeroed when it becomes shared. */
#define USED (64UL << 20)
/* A vCPU rests as long at least. */
#define REST 50000

#define TRACING "/sys/kernel/tracing/"

enum where { INSIDE, OUTSIDE, NR_WHERE };

enum action { NOTHING, TO_PRIVATE, TO_SHARED, NR_ACTIONS };
static const char *const action_names[NR_ACTIONS] = { "nothing", "to private", "to shared" };

static struct vm vm;
static enum action action;
static volatile int stop;
static pthread_barrier_t ready;

struct reader {
	pthread_t thread;
	unsigned int id;
	unsigned int seed;
};

struct result {
	long reads, stalls;
	long most[NR_WHERE];
};

static void write_tracing(const char *name, const char *value)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), TRACING "%s", name);
	fd = check(open(path, O_WRONLY | O_TRUNC), path);
	check(write(fd, value, strlen(value)), path);
	close(fd);
}

static void prepare_tracing(void)
{
	write_tracing("tracing_on", "0");
	write_tracing("trace_clock", "x86-tsc");
	write_tracing("buffer_size_kb", "65536");
	write_tracing("events/sched/sched_switch/filter",
		      "prev_comm ~ \"vcpu*\" || next_comm ~ \"vcpu*\"");
	write_tracing("events/sched/sched_waking/filter", "comm ~ \"vcpu*\"");
	write_tracing("events/sched/sched_switch/enable", "1");
	write_tracing("events/sched/sched_waking/enable", "1");
}

/* What it says after a name, if that's a vCPU's thread: which one, or else -1. */
static int vcpu_at(const char *line, const char *name)
{
	const char *found = strstr(line, name);

	return found && !strncmp(found + strlen(name), "vcpu", 4) ? atoi(found + strlen(name) + 4)
								  : -1;
}

/* What is executed for others than vCPUs until TIME. */
struct others {
	long sum, since;
	int run;
};

static long others_until(const struct others *others, long time)
{
	return others->sum + (others->run ? time - others->since : 0);
}

static void others_switch(struct others *others, long time, int run)
{
	others->sum = others_until(others, time);
	others->since = time;
	others->run = run;
}

static void read_trace(struct result *result)
{
	long due[MOST_VCPUS], time, stall, in, written;
	struct others others = { .run = 1 };
	char line[512], *event;
	int vcpu, where, id;
	FILE *file = fopen(TRACING "trace", "r");

	if (!file)
		err(1, "trace");
	*result = (struct result){ 0 };
	for (id = 0; id < MOST_VCPUS; id++)
		due[id] = -1;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "# entries-in-buffer/entries-written: %ld/%ld", &in, &written) ==
			    2 &&
		    in != written)
			errx(1, "the trace is too long");
		event = strstr(line, ": ");
		if (line[0] == '#' || !event)
			continue;
		*event = 0;
		time = atol(strrchr(line, ' '));
		event += 2;
		if (!strncmp(event, "sched_switch:", 13)) {
			others_switch(&others, time, vcpu_at(event, "next_comm=") < 0);
		} else if (!strncmp(event, "sched_waking:", 13)) {
			vcpu = vcpu_at(event, " comm=");
			if (vcpu >= 0 && due[vcpu] < 0)
				due[vcpu] = others_until(&others, time);
		} else if (sscanf(event, "%*s read %d %d", &vcpu, &where) == 2 && due[vcpu] >= 0) {
			stall = others_until(&others, time) - due[vcpu];
			due[vcpu] = -1;
			result->reads++;
			result->stalls += stall > REST;
			if (stall > result->most[where])
				result->most[where] = stall;
		}
	}
	fclose(file);
}

static void sleep_until(long time)
{
	struct timespec t = { time / 1000000000L, time % 1000000000L };

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

/* The chunk that a conversion has come to, as far as the file tells. */
static size_t frontier(void)
{
	struct stat stat;
	size_t private;

	check(fstat(vm.memfd, &stat), "fstat");
	private = stat.st_blocks * 512UL;
	return (action == TO_SHARED ? CONVERTED - private : private) & -CHUNK;
}

static void read_page(struct reader *reader, enum where where)
{
	size_t chunk = where == INSIDE
			       ? frontier()
			       : CONVERTED + rand_r(&reader->seed) % (ELSEWHERE / CHUNK) * CHUNK;

	vcpu_run(&vm, reader->id, GUEST_READ, chunk + rand_r(&reader->seed) % (CHUNK / PAGE) * PAGE,
		 PAGE, 1);
}

static void *read_pages(void *data)
{
	int marker = check(open(TRACING "trace_marker", O_WRONLY), "trace_marker");
	struct reader *reader = data;
	enum where where;
	char text[32];
	long begin;

	snprintf(text, sizeof(text), "vcpu%u", reader->id);
	pthread_setname_np(pthread_self(), text);
	/* KVM waits for RCU when it first sees a thread. */
	read_page(reader, OUTSIDE);
	pthread_barrier_wait(&ready);
	for (where = INSIDE; !stop; where = !where) {
		begin = now();
		read_page(reader, where);
		snprintf(text, sizeof(text), "read %u %d", reader->id, where);
		/* If tracing is off it doesn't count. */
		if (write(marker, text, strlen(text)) < 0 && errno != EBADF)
			err(1, "trace_marker");
		/* Leave time to the conversion. */
		sleep_until(now() + REST + rand_r(&reader->seed) % REST +
			    (now() - begin) * vm.nr_vcpus);
	}
	close(marker);
	return NULL;
}

static void convert(void)
{
	long end = now() + 20000000;

	if (action != NOTHING)
		vm_convert(&vm, 0, CONVERTED, action == TO_PRIVATE);
	/* At least it keeps the CPU busy. */
	while (now() < end)
		;
}

static void measure(enum action what)
{
	struct sched_param priority = { .sched_priority = 1 };
	struct reader readers[MOST_VCPUS];
	pthread_attr_t attributes;
	struct result result;
	unsigned int i;

	pthread_attr_init(&attributes);
	pthread_attr_setinheritsched(&attributes, PTHREAD_EXPLICIT_SCHED);
	pthread_attr_setschedpolicy(&attributes, SCHED_FIFO);
	pthread_attr_setschedparam(&attributes, &priority);
	pthread_barrier_init(&ready, NULL, vm.nr_vcpus + 1);

	action = what;
	stop = 0;
	for (i = 0; i < vm.nr_vcpus; i++) {
		readers[i].id = readers[i].seed = i;
		if (pthread_create(&readers[i].thread, &attributes, read_pages, &readers[i]))
			errx(1, "no thread");
	}
	pthread_barrier_wait(&ready);
	write_tracing("trace", "");
	write_tracing("tracing_on", "1");
	convert();
	write_tracing("tracing_on", "0");
	stop = 1;
	for (i = 0; i < vm.nr_vcpus; i++)
		pthread_join(readers[i].thread, NULL);
	pthread_barrier_destroy(&ready);

	read_trace(&result);
	sample("\"way\": \"%s\", \"vcpus\": %u, \"action\": \"%s\", \"inside\": %ld, "
	       "\"outside\": %ld, \"reads\": %ld, \"stalls\": %ld",
	       kind_names[vm.kind], vm.nr_vcpus, action_names[action], result.most[INSIDE],
	       result.most[OUTSIDE], result.reads, result.stalls);
}

static void measure_all(enum kind kind, unsigned int nr_vcpus)
{
	vm = (struct vm){ .kind = kind, .size = CONVERTED + ELSEWHERE, .nr_vcpus = nr_vcpus };
	vm_create(&vm);
	touch(&vm, 0, USED);
	measure(NOTHING);
	measure(TO_PRIVATE);
	touch(&vm, 0, USED);
	measure(TO_SHARED);
	vm_destroy(&vm);
}

/* What it takes at most to convert a chunk that the guest has used. */
static void measure_chunk(enum kind kind)
{
	long most[NR_ACTIONS] = { 0 }, took;
	size_t offset;

	vm = (struct vm){ .kind = kind, .size = CONVERTED, .nr_vcpus = 1 };
	vm_create(&vm);
	for (action = TO_PRIVATE; action < NR_ACTIONS; action++) {
		touch(&vm, 0, USED);
		for (offset = 0; offset < USED; offset += CHUNK) {
			took = now();
			vm_convert(&vm, offset, CHUNK, action == TO_PRIVATE);
			took = now() - took;
			if (took > most[action])
				most[action] = took;
		}
	}
	vm_destroy(&vm);
	sample("\"way\": \"%s\", \"action\": \"chunk\", \"to_private\": %ld, \"to_shared\": %ld",
	       kind_names[kind], most[TO_PRIVATE], most[TO_SHARED]);
}

int main(int argc, char **argv)
{
	static const enum kind kinds[] = { GUESTSEAL, GUESTSEAL_HUGE };
	unsigned int vcpus;
	size_t kind;
	int i;

	if (argc != 2)
		errx(2, "usage: stall SAMPLES.json");

	enable_huge_pages();
	prepare_tracing();
	samples_begin(argv[1]);
	for (i = 0; i < repeats(); i++) {
		for (kind = 0; kind < sizeof(kinds) / sizeof(kinds[0]); kind++) {
			measure_chunk(kinds[kind]);
			for (vcpus = 1; vcpus <= MOST_VCPUS; vcpus *= 2)
				measure_all(kinds[kind], vcpus);
		}
	}
	samples_end();
	return 0;
}
