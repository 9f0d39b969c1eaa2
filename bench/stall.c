// SPDX-License-Identifier: GPL-2.0-only
/*
 * How long do vCPUs have to wait while 1 GiB is converted? They read one page after the
 * other, in turns one that is being converted, as far as the file tells where that is,
 * and one elsewhere. Writes all samples as JSON to the file that is named as argument.
 *
 * All threads share one CPU. So that nobody waits for it who would have one of its own,
 * vCPUs have real-time priority and rest a while between reads: the thread that converts
 * runs then, or when a vCPU is blocked. A vCPU waits for what that thread executes from
 * when it is due to when it has read; and a chunk takes what the same thread executes
 * from the end of the one before to its own. Both without softirqs, where RCU frees what
 * many chunks have left, now and then and for as long as a whole one takes: these, and
 * other threads, are counted apart. Tracepoints tell; the scheduler's clocks don't, they
 * stand still when the CPU isn't given away at once.
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
#define CONVERTER "convert"

enum where { INSIDE, OUTSIDE, NR_WHERE };

/* Whose work: of the thread that converts, or of all but vCPUs */
enum whose { CONVERTING, ALL, NR_WHOSE };

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
	long most[NR_WHERE][NR_WHOSE], chunk[NR_WHOSE];
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
	write_tracing("events/sched/sched_waking/filter", "comm ~ \"vcpu*\"");
	write_tracing("events/sched/sched_waking/enable", "1");
	write_tracing("events/sched/sched_switch/enable", "1");
	write_tracing("events/irq/softirq_entry/enable", "1");
	write_tracing("events/irq/softirq_exit/enable", "1");
	write_tracing("events/kvm/kvm_sealed_memfd_end/enable", "1");
}

static int is(const char *event, const char *name)
{
	return !strncmp(event, name, strlen(name));
}

/* What it says after a name, if that's a vCPU's thread: which one, or else -1. */
static int vcpu_at(const char *line, const char *name)
{
	const char *found = strstr(line, name);

	return found && is(found + strlen(name), "vcpu") ? atoi(found + strlen(name) + 4) : -1;
}

/* What has been executed, as far as the trace was read. */
struct work {
	long sum[NR_WHOSE], time;
	int runs[NR_WHOSE], softirq;
};

static void work_until(struct work *work, long time)
{
	if (work->runs[CONVERTING] && !work->softirq)
		work->sum[CONVERTING] += time - work->time;
	if (work->runs[ALL])
		work->sum[ALL] += time - work->time;
	work->time = time;
}

static void work_switch(struct work *work, const char *event)
{
	work->runs[CONVERTING] = !!strstr(event, "next_comm=" CONVERTER " ");
	work->runs[ALL] = vcpu_at(event, "next_comm=") < 0 && !strstr(event, "next_comm=swapper");
}

static void longer(long *most, const struct work *work, const long *since)
{
	int whose;

	for (whose = 0; whose < NR_WHOSE; whose++) {
		if (work->sum[whose] - since[whose] > most[whose])
			most[whose] = work->sum[whose] - since[whose];
	}
}

static void read_trace(struct result *result)
{
	long due[MOST_VCPUS][NR_WHOSE], chunk[NR_WHOSE] = { 0 }, time, in, written;
	struct work work = { .time = -1, .runs = { 1, 1 } };
	int is_due[MOST_VCPUS] = { 0 }, vcpu, where;
	char line[512], *event;
	FILE *file = fopen(TRACING "trace", "r");

	if (!file)
		err(1, "trace");
	*result = (struct result){ 0 };
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
		if (work.time < 0)
			work.time = time;
		work_until(&work, time);
		event += 2;

		if (is(event, "sched_switch:")) {
			work_switch(&work, event);
		} else if (is(event, "softirq_entry:")) {
			work.softirq = 1;
		} else if (is(event, "softirq_exit:")) {
			work.softirq = 0;
		} else if (is(event, "kvm_sealed_memfd_end:")) {
			longer(result->chunk, &work, chunk);
			memcpy(chunk, work.sum, sizeof(chunk));
		} else if (is(event, "sched_waking:")) {
			vcpu = vcpu_at(event, " comm=");
			if (vcpu >= 0 && !is_due[vcpu]) {
				is_due[vcpu] = 1;
				memcpy(due[vcpu], work.sum, sizeof(due[vcpu]));
			}
		} else if (sscanf(event, "%*s read %d %d", &vcpu, &where) == 2 && is_due[vcpu]) {
			is_due[vcpu] = 0;
			result->reads++;
			result->stalls += work.sum[CONVERTING] - due[vcpu][CONVERTING] > REST;
			longer(result->most[where], &work, due[vcpu]);
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

static void measure(enum action what, int keep)
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
	if (!keep)
		return;
	sample("\"way\": \"%s\", \"vcpus\": %u, \"action\": \"%s\", \"chunk\": %ld, "
	       "\"inside\": %ld, \"outside\": %ld, \"reads\": %ld, \"stalls\": %ld, "
	       "\"all_chunk\": %ld, \"all_inside\": %ld, \"all_outside\": %ld",
	       kind_names[vm.kind], vm.nr_vcpus, action_names[action], result.chunk[CONVERTING],
	       result.most[INSIDE][CONVERTING], result.most[OUTSIDE][CONVERTING], result.reads,
	       result.stalls, result.chunk[ALL], result.most[INSIDE][ALL],
	       result.most[OUTSIDE][ALL]);
}

static void measure_all(enum kind kind, unsigned int nr_vcpus, int keep)
{
	vm = (struct vm){ .kind = kind, .size = CONVERTED + ELSEWHERE, .nr_vcpus = nr_vcpus };
	vm_create(&vm);
	touch(&vm, 0, USED);
	measure(NOTHING, keep);
	measure(TO_PRIVATE, keep);
	touch(&vm, 0, USED);
	measure(TO_SHARED, keep);
	vm_destroy(&vm);
}

static int compare_longs(const void *a, const void *b)
{
	long x = *(const long *)a, y = *(const long *)b;

	return (x > y) - (x < y);
}

/* A chunk that the guest has used, converted by a call of its own, with no vCPU: median. */
static void measure_chunk(enum kind kind, int keep)
{
	long took[USED / CHUNK], alone[NR_ACTIONS];
	size_t i;

	vm = (struct vm){ .kind = kind, .size = CONVERTED, .nr_vcpus = 1 };
	vm_create(&vm);
	for (action = TO_PRIVATE; action < NR_ACTIONS; action++) {
		touch(&vm, 0, USED);
		for (i = 0; i < USED / CHUNK; i++) {
			took[i] = -now();
			vm_convert(&vm, i * CHUNK, CHUNK, action == TO_PRIVATE);
			took[i] += now();
		}
		qsort(took, USED / CHUNK, sizeof(*took), compare_longs);
		alone[action] = took[USED / CHUNK / 2];
	}
	vm_destroy(&vm);
	if (keep)
		sample("\"way\": \"%s\", \"action\": \"chunk\", \"to_private\": %ld, "
		       "\"to_shared\": %ld",
		       kind_names[kind], alone[TO_PRIVATE], alone[TO_SHARED]);
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
	pthread_setname_np(pthread_self(), CONVERTER);
	samples_begin(argv[1]);
	/* The first round is to warm up. */
	for (i = first_round(); i < repeats(); i++) {
		for (kind = 0; kind < sizeof(kinds) / sizeof(kinds[0]); kind++) {
			measure_chunk(kinds[kind], i >= 0);
			for (vcpus = 1; vcpus <= MOST_VCPUS; vcpus *= 2)
				measure_all(kinds[kind], vcpus, i >= 0);
		}
	}
	samples_end();
	return 0;
}
