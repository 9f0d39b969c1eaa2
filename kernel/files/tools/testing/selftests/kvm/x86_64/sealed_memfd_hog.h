/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Something stands still in the midst of a system call, wherever the kernel may have
 * another one run: because something more important has its CPU.
 */
#ifndef SELFTEST_KVM_SEALED_MEMFD_HOG_H
#define SELFTEST_KVM_SEALED_MEMFD_HOG_H

#include <pthread.h>
#include <sched.h>
#include <semaphore.h>

#include "kvm_util.h"
#include "sealed_memfd_util.h"

/* One CPU is for what stands still, one for everything else. */
static int first_cpu, last_cpu;

static inline void pin(int tid, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	TEST_ASSERT(!sched_setaffinity(tid, sizeof(set), &set), "Can't choose a CPU");
}

static inline bool find_cpus(void)
{
	cpu_set_t set;
	int cpu;

	TEST_ASSERT(!sched_getaffinity(0, sizeof(set), &set), "What CPUs are there?");
	first_cpu = -1;
	for (cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &set))
			continue;
		if (first_cpu < 0)
			first_cpu = cpu;
		last_cpu = cpu;
	}
	return first_cpu != last_cpu;
}

struct hog {
	pthread_t thread;
	sem_t go;
	bool stop;
	bool hogging;
	bool let_go;
};

static inline void *hog_thread(void *data)
{
	const struct sched_param param = { .sched_priority = 1 };
	struct hog *hog = data;

	pin(0, last_cpu);
	TEST_ASSERT(!sched_setscheduler(0, SCHED_FIFO, &param), "Can't be important");
	for (;;) {
		sem_wait(&hog->go);
		if (READ_ONCE(hog->stop))
			return NULL;
		WRITE_ONCE(hog->hogging, true);
		while (!READ_ONCE(hog->let_go))
			;
		WRITE_ONCE(hog->let_go, false);
		WRITE_ONCE(hog->hogging, false);
	}
}

static inline void hog_create(struct hog *hog)
{
	TEST_ASSERT(!sem_init(&hog->go, 0, 0) &&
		    !pthread_create(&hog->thread, NULL, hog_thread, hog), "No thread");
}

/* The kernel only lets things be for about a second. */
static inline void hog_begin(struct hog *hog)
{
	sem_post(&hog->go);
	while (!READ_ONCE(hog->hogging))
		sched_yield();
}

static inline void hog_end(struct hog *hog)
{
	WRITE_ONCE(hog->let_go, true);
	while (READ_ONCE(hog->hogging))
		sched_yield();
}

static inline void hog_finish(struct hog *hog)
{
	WRITE_ONCE(hog->stop, true);
	sem_post(&hog->go);
	pthread_join(hog->thread, NULL);
	sem_destroy(&hog->go);
	WRITE_ONCE(hog->stop, false);
}

/* Uses a page all the time: KVM has a reference on it whenever it may stand still there. */
struct page_user {
	struct kvm_vcpu *vcpu;
	uint64_t gpa;
	pthread_t thread;
	bool stop;
	struct hog hog;
};

static inline void *page_user_thread(void *data)
{
	struct page_user *user = data;
	struct kvm_pre_fault_memory range;

	pin(0, last_cpu);
	while (!READ_ONCE(user->stop)) {
		range = (struct kvm_pre_fault_memory) { .gpa = user->gpa, .size = PAGE_SIZE };
		TEST_ASSERT(!__vcpu_ioctl(user->vcpu, KVM_PRE_FAULT_MEMORY, &range),
			    __KVM_SYSCALL_ERROR("KVM_PRE_FAULT_MEMORY", -1));
	}
	return NULL;
}

/* Returns with it at a standstill, maybe with a reference on the page. */
static inline void page_user_begin(struct page_user *user)
{
	pin(0, first_cpu);
	hog_create(&user->hog);
	TEST_ASSERT(!pthread_create(&user->thread, NULL, page_user_thread, user), "No thread");
	usleep(1000);
	hog_begin(&user->hog);
}

static inline void page_user_end(struct page_user *user)
{
	WRITE_ONCE(user->stop, true);
	hog_end(&user->hog);
	hog_finish(&user->hog);
	pthread_join(user->thread, NULL);
	WRITE_ONCE(user->stop, false);
}

#endif /* SELFTEST_KVM_SEALED_MEMFD_HOG_H */
