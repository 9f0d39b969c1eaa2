// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected VMs: what perf and tracepoints of the host tell of them.
 */
#include <dirent.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "protected_vm.h"

#define VALUE		0x600df00d600df00dul
#define TRACING		"/sys/kernel/tracing"
#define DEVICES		"/sys/bus/event_source/devices"
#define MAX_EVENTS	256

static int open_event(struct perf_event_attr *attr, int cpu)
{
	attr->size = sizeof(*attr);
	return syscall(SYS_perf_event_open, attr, cpu < 0 ? 0 : -1, cpu, -1, PERF_FLAG_FD_CLOEXEC);
}

static long read_number(const char *path)
{
	char text[32] = "";
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		return -1;
	if (read(fd, text, sizeof(text) - 1) <= 0)
		text[0] = 0;
	close(fd);
	return text[0] ? atol(text) : -1;
}

/*
 * Of the kind that counts by CPU or task, and doesn't stop for guests: x86's MSRs.  This is
 * the TSC, which is there without other hardware.
 */
static int open_msr_event(int cpu, bool inherit)
{
	struct perf_event_attr attr = { .inherit = inherit };
	long type = read_number(DEVICES "/msr/type");

	if (type < 0) {
		errno = ENOENT;
		return -1;
	}
	attr.type = type;
	return open_event(&attr, cpu);
}

#define NO_GUEST	BIT(0)
#define NO_HOST		BIT(1)
#define BRANCHES	BIT(2)
#define BRANCH_SAMPLES	BIT(3)

static int open_hardware_event(unsigned int flags)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_HARDWARE,
		.config = PERF_COUNT_HW_INSTRUCTIONS,
		.exclude_guest = !!(flags & NO_GUEST),
		.exclude_host = !!(flags & NO_HOST),
	};

	if (flags & (BRANCHES | BRANCH_SAMPLES)) {
		attr.sample_period = 10000;
		attr.branch_sample_type = PERF_SAMPLE_BRANCH_ANY;
	}
	if (flags & BRANCH_SAMPLES)
		attr.sample_type = PERF_SAMPLE_BRANCH_STACK;
	return open_event(&attr, -1);
}

static int open_software_event(void)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.config = PERF_COUNT_SW_CPU_CLOCK,
		.sample_period = 100000,
		.sample_type = PERF_SAMPLE_IP,
	};

	return open_event(&attr, -1);
}

/*
 * Either there are events that observe guests, or final VMs.
 */
FIXTURE(exclusion)
{
	struct pvm pvm;
	struct pvm *p;
};

FIXTURE_SETUP(exclusion)
{
	int fd = open_msr_event(-1, false);

	if (!has_vm_type(KVM_X86_PROTECTED_VM))
		SKIP(return, "protected VMs, or the shared GPA bit, are not supported");
	if (fd < 0)
		SKIP(return, "no event of the MSR PMU: %s", strerror(errno));
	close(fd);

	pvm_create(&self->pvm, KVM_X86_PROTECTED_VM, 1);
	self->p = &self->pvm;
	pvm_load(self->p);
}

FIXTURE_TEARDOWN(exclusion)
{
	if (self->p)
		pvm_free(self->p);
}

static void finalize_and_run(struct pvm *p)
{
	int r = pvm_finalize(p, NULL);

	TEST_ASSERT(!r, __KVM_IOCTL_ERROR("KVM_X86_FINALIZE_VM", r));
	vcpu_run(p->vcpu);
	TEST_ASSERT(pvm_is_done(p), "The guest is not there");
}

TEST_F(exclusion, event_first)
{
	struct kvm_x86_finalize_vm arg = {}, again = {};
	int fd = open_msr_event(-1, false);

	ASSERT_LE(0, fd);
	EXPECT_REFUSED(EAGAIN, pvm_finalize(self->p, &arg));
	/* Nothing has been done yet: memory is still the VMM's. */
	EXPECT_EQ(0, fallocate(self->p->fd, 0, 0, PAGE_SIZE));
	EXPECT_EQ(0, fallocate(self->p->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
			       PAGE_SIZE));
	EXPECT_REFUSED(EPERM, _vcpu_run(self->p->vcpu));
	EXPECT_REFUSED(EAGAIN, pvm_finalize(self->p, &again));
	close(fd);
	finalize_and_run(self->p);
}

TEST_F(exclusion, vm_first)
{
	int fd = open_msr_event(-1, false);

	/* Until it's final there's nothing to be observed. */
	EXPECT_LE(0, fd);
	close(fd);

	finalize_and_run(self->p);
	EXPECT_REFUSED(EBUSY, open_msr_event(-1, false));
	EXPECT_REFUSED(EBUSY, open_msr_event(-1, true));
	EXPECT_REFUSED(EBUSY, open_msr_event(0, false));
	EXPECT_EQ(0, pvm_read(self->p, gva_of(0, SHARED)));

	/* And no longer once it's gone. */
	pvm_free(self->p);
	self->p = NULL;
	fd = open_msr_event(-1, false);
	EXPECT_LE(0, fd);
	close(fd);
}

/* A failure after events have been excluded */
TEST_F(exclusion, finalizing_fails)
{
	struct kvm_x86_finalize_vm arg = { .log_size = 1 };
	char log[1];
	int fd;

	arg.log = (uintptr_t)log;
	EXPECT_REFUSED(E2BIG, pvm_finalize(self->p, &arg));
	fd = open_msr_event(-1, false);
	EXPECT_LE(0, fd);
	EXPECT_REFUSED(EAGAIN, pvm_finalize(self->p, NULL));
	close(fd);
	finalize_and_run(self->p);
	/* That it's final already changes nothing. */
	EXPECT_REFUSED(EBUSY, pvm_finalize(self->p, NULL));
	EXPECT_REFUSED(EBUSY, open_msr_event(-1, false));
}

TEST_F(exclusion, two_vms)
{
	struct pvm other;
	int fd;

	pvm_create(&other, KVM_X86_PROTECTED_VM, 1);
	pvm_load(&other);
	finalize_and_run(&other);
	finalize_and_run(self->p);
	pvm_free(&other);
	EXPECT_REFUSED(EBUSY, open_msr_event(-1, false));
	pvm_free(self->p);
	self->p = NULL;
	fd = open_msr_event(-1, false);
	EXPECT_LE(0, fd);
	close(fd);
}

static pid_t start_child(void)
{
	pid_t pid = fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return pid;
}

/* The child's own event, and a descriptor of the parent's that it keeps */
TEST_F(exclusion, inherited)
{
	int fd = open_msr_event(-1, true);
	pid_t pid;

	ASSERT_LE(0, fd);
	pid = start_child();
	ASSERT_LT(0, pid);
	close(fd);
	EXPECT_REFUSED(EAGAIN, pvm_finalize(self->p, NULL));
	kill(pid, SIGKILL);
	ASSERT_EQ(pid, waitpid(pid, NULL, 0));
	finalize_and_run(self->p);
}

/* What a grandchild has is left by a child that's gone. */
TEST_F(exclusion, inherited_twice)
{
	int fd = open_msr_event(-1, true), status, wait[2];
	pid_t pid;
	char c;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, pipe(wait));
	ASSERT_EQ(0, prctl(PR_SET_CHILD_SUBREAPER, 1));
	pid = fork();
	if (!pid) {
		pid = fork();
		if (!pid) {
			close(wait[1]);
			if (read(wait[0], &c, 1))
				_exit(1);
		}
		_exit(pid < 0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(0, status);
	close(fd);
	EXPECT_REFUSED(EAGAIN, pvm_finalize(self->p, NULL));
	close(wait[1]);
	ASSERT_LT(0, waitpid(-1, &status, 0));
	ASSERT_EQ(0, status);
	close(wait[0]);
	finalize_and_run(self->p);
}

/* Children come and go, and the sum is right. */
TEST_F(exclusion, inherited_often)
{
	int fd = open_msr_event(-1, true);
	pid_t pids[8];
	int i;

	ASSERT_LE(0, fd);
	for (i = 0; i < ARRAY_SIZE(pids); i++)
		pids[i] = start_child();
	for (i = 0; i < ARRAY_SIZE(pids); i++) {
		kill(pids[i], SIGKILL);
		ASSERT_EQ(pids[i], waitpid(pids[i], NULL, 0));
	}
	EXPECT_REFUSED(EAGAIN, pvm_finalize(self->p, NULL));
	close(fd);
	finalize_and_run(self->p);
	EXPECT_REFUSED(EBUSY, open_msr_event(-1, false));
}

TEST_F(exclusion, software_events)
{
	int before = open_software_event(), after;

	ASSERT_LE(0, before);
	finalize_and_run(self->p);
	after = open_software_event();
	EXPECT_LE(0, after);
	close(before);
	close(after);
}

TEST_F(exclusion, hardware_events)
{
	static const unsigned int observing[] = {
		0, NO_HOST, NO_GUEST | NO_HOST, NO_GUEST | BRANCHES, NO_GUEST | BRANCH_SAMPLES,
	};
	bool opens[ARRAY_SIZE(observing)];
	int before = open_hardware_event(NO_GUEST), after, i;

	if (before < 0)
		SKIP(return, "no events that can exclude guests: %s", strerror(errno));

	for (i = 0; i < ARRAY_SIZE(observing); i++) {
		after = open_hardware_event(observing[i]);
		opens[i] = after >= 0;
		if (!opens[i])
			continue;
		EXPECT_REFUSED(EAGAIN, pvm_finalize(self->p, NULL));
		close(after);
	}
	EXPECT_TRUE(opens[0]);

	finalize_and_run(self->p);
	after = open_hardware_event(NO_GUEST);
	EXPECT_LE(0, after);
	for (i = 0; i < ARRAY_SIZE(observing); i++) {
		if (opens[i])
			EXPECT_REFUSED(EBUSY, open_hardware_event(observing[i]));
	}
	close(before);
	close(after);
}

static sigjmp_buf after_fault;

static void on_fault(int signal)
{
	siglongjmp(after_fault, 1);
}

static bool can_rdpmc(void)
{
	struct sigaction action = { .sa_handler = on_fault }, old;
	int faults;

	sigaction(SIGSEGV, &action, &old);
	faults = sigsetjmp(after_fault, 1);
	if (!faults)
		asm volatile("rdpmc" : : "c" (0) : "eax", "edx");
	sigaction(SIGSEGV, &old, NULL);
	return !faults;
}

/* It would read the counters of the guest's virtual PMU, too. */
TEST_F(exclusion, rdpmc)
{
	struct perf_event_mmap_page *page;
	int fd = open_hardware_event(NO_GUEST);

	if (fd < 0)
		SKIP(return, "no events that can exclude guests: %s", strerror(errno));
	page = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, page);
	if (!page->cap_user_rdpmc)
		SKIP(return, "userspace can't read counters");

	EXPECT_TRUE(can_rdpmc());
	finalize_and_run(self->p);
	EXPECT_TRUE(!page->cap_user_rdpmc);
	EXPECT_FALSE(can_rdpmc());
	pvm_free(self->p);
	self->p = NULL;
	EXPECT_TRUE(can_rdpmc());
	munmap(page, PAGE_SIZE);
	close(fd);
}

/* None of these leaves guests out. */
TEST_F(exclusion, other_pmus)
{
	static const char * const names[] = { "ibs_fetch", "ibs_op", "intel_pt", "intel_bts" };
	struct perf_event_attr attr = { .sample_period = 0x10000 };
	int types[ARRAY_SIZE(names)], nr = 0, i, fd;
	char path[128];

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), DEVICES "/%s/type", names[i]);
		attr.type = read_number(path);
		fd = (int)attr.type < 0 ? -1 : open_event(&attr, 0);
		if (fd < 0)
			continue;
		types[nr++] = attr.type;
		EXPECT_REFUSED(EAGAIN, pvm_finalize(self->p, NULL));
		close(fd);
	}
	if (!nr)
		SKIP(return, "there are none");
	finalize_and_run(self->p);
	for (i = 0; i < nr; i++) {
		attr.type = types[i];
		EXPECT_REFUSED(EBUSY, open_event(&attr, 0));
	}
}

/*
 * Tracepoints
 */

/* What these tell userspace knows, or it's of the host. */
static const char * const harmless[] = {
	"kvm_userspace_exit", "kvm_vcpu_wakeup", "kvm_halt_poll_ns", "kvm_fpu",
	"kvm_set_irq", "kvm_ack_irq", "kvm_msi_set_irq", "kvm_pi_irte_update",
	"kvm_unmap_hva_range", "kvm_age_hva", "kvm_test_age_hva", "kvm_async_pf_completed",
	"kvm_sealed_memfd_begin", "kvm_sealed_memfd_end", "kvm_update_master_clock",
	"kvm_track_tsc", "kvm_apicv_inhibit_changed", "kvm_avic_ga_log", "kvm_avic_doorbell",
	"kvm_hv_timer_state", "kvm_mmu_zap_all_fast",
};

/* What an ordinary VM comes upon in any case, in do_many_things() */
static const char * const expected[] = {
	"kvm_entry", "kvm_exit", "kvm_pio", "kvm_cpuid", "kvm_msr", "kvm_hypercall",
	"kvm_page_fault", "kvm_tdp_mmu_spte_changed", "kvm_mmio", "kvm_emulate_insn",
	"kvm_mmu_pagetable_walk", "kvm_mmu_paging_element", "kvm_apic", "kvm_apic_ipi",
	"kvm_apic_accept_irq", "kvm_pic_set_irq", "kvm_ioapic_set_irq",
};

static bool is_among(const char *name, const char * const *names, size_t nr)
{
	while (nr--) {
		if (!strcmp(name, names[nr]))
			return true;
	}
	return false;
}

struct event {
	char name[64];
	int fd;
};

FIXTURE(trace)
{
	struct pvm pvm;
	struct pvm *p;
	bool is_protected;
	struct event events[MAX_EVENTS];
	unsigned int nr;
};

FIXTURE_VARIANT(trace)
{
	unsigned long type;
};

FIXTURE_VARIANT_ADD(trace, protected_vm) {
	.type = KVM_X86_PROTECTED_VM,
};

FIXTURE_VARIANT_ADD(trace, default_vm) {
	.type = KVM_X86_DEFAULT_VM,
};

static unsigned int open_tracepoints(struct event *events, unsigned int nr, const char *system)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_TRACEPOINT };
	struct dirent *entry;
	char path[512];
	DIR *dir;
	long id;

	snprintf(path, sizeof(path), TRACING "/events/%s", system);
	dir = opendir(path);
	if (!dir)
		return nr;
	while ((entry = readdir(dir)) && nr < MAX_EVENTS) {
		snprintf(path, sizeof(path), TRACING "/events/%s/%.63s/id", system,
			 entry->d_name);
		id = entry->d_name[0] == '.' ? -1 : read_number(path);
		if (id < 0)
			continue;
		attr.config = id;
		snprintf(events[nr].name, sizeof(events[nr].name), "%.63s", entry->d_name);
		events[nr].fd = open_event(&attr, -1);
		TEST_ASSERT(events[nr].fd >= 0, __KVM_SYSCALL_ERROR("perf_event_open()", -1));
		nr++;
	}
	closedir(dir);
	return nr;
}

FIXTURE_SETUP(trace)
{
	if (!has_vm_type(variant->type))
		SKIP(return, "VM type %lu, or the shared GPA bit, is not supported",
		     variant->type);
	if (access(TRACING "/events", F_OK) &&
	    (unshare(CLONE_NEWNS) || mount("", "/", "", MS_REC | MS_PRIVATE, NULL) ||
	     mount("tracefs", TRACING, "tracefs", 0, NULL)))
		SKIP(return, "no tracefs: %s", strerror(errno));

	if (access(TRACING "/events/kvm", F_OK))
		SKIP(return, "KVM has no tracepoints");

	self->is_protected = variant->type == KVM_X86_PROTECTED_VM;
	pvm_create(&self->pvm, variant->type, 1);
	self->p = &self->pvm;
	pvm_launch(self->p);

	self->nr = open_tracepoints(self->events, 0, "kvm");
	self->nr = open_tracepoints(self->events, self->nr, "kvmmmu");
	ASSERT_GT(MAX_EVENTS, self->nr);
}

FIXTURE_TEARDOWN(trace)
{
	unsigned int i;

	for (i = 0; i < self->nr; i++)
		close(self->events[i].fd);
	if (self->p)
		pvm_free(self->p);
}

static uint64_t guest_do_many_things(uint64_t u1, uint64_t u2, uint64_t u3, uint64_t u4)
{
	uint32_t eax = 1, ebx, ecx = 0, edx;
	uint64_t version;

	asm volatile("cpuid" : "+a" (eax), "=b" (ebx), "+c" (ecx), "=d" (edx));
	kvm_hypercall(~0ul, VALUE, VALUE, VALUE, VALUE);
	rdmsr_safe(MSR_IA32_APICBASE, &version);
	wrmsr_safe(MSR_KVM_WALL_CLOCK_NEW, gva_of(1, SHARED));
	WRITE_ONCE(*(uint64_t *)gva_of(1, SHARED), VALUE);
	/* An interrupt that waits, as they are disabled */
	x2apic_enable();
	x2apic_write_reg(APIC_ICR, APIC_DEST_SELF | APIC_INT_ASSERT | APIC_DM_FIXED | 0x40);
	version = x2apic_read_reg(APIC_LVR);
	/* Memory that isn't there is emulated. */
	WRITE_ONCE(*(uint64_t *)(MMIO_GPA + SHARED_ALIAS), VALUE);
	return 0;
}

static void do_many_things(struct pvm *p)
{
	struct kvm_irq_level irq = { .irq = 5 };
	unsigned int nr = 0;
	int r;

	r = pvm_start(p, guest_do_many_things, 0, 0, 0, 0);
	while (!r && p->vcpu->run->exit_reason == KVM_EXIT_MMIO && nr++ < 10)
		r = _vcpu_run(p->vcpu);
	TEST_ASSERT(!r && nr && pvm_is_done(p), "The guest is not done: %s",
		    exit_reason_str(p->vcpu->run->exit_reason));

	/* Not by a vCPU: lines, which are masked, and a page that is given up */
	for (r = 1; r >= 0; r--) {
		irq.level = r;
		vm_ioctl(p->vm, KVM_IRQ_LINE, &irq);
	}
	TEST_ASSERT(!madvise(p->shared, SIZE, MADV_DONTNEED), "Can't free memory");
}

TEST_F(trace, tells_nothing)
{
	unsigned int i, nr = 0;
	bool found;
	uint64_t count;

	do_many_things(self->p);
	for (i = 0; i < self->nr; i++) {
		struct event *event = &self->events[i];

		ASSERT_EQ(sizeof(count), read(event->fd, &count, sizeof(count)));
		found = is_among(event->name, expected, ARRAY_SIZE(expected));
		nr += found;
		if (self->is_protected) {
			if (!is_among(event->name, harmless, ARRAY_SIZE(harmless)))
				EXPECT_EQ(0, count)
					TH_LOG("by %s", event->name);
		} else if (found) {
			EXPECT_LT(0, count)
				TH_LOG("by %s", event->name);
		}
	}
	EXPECT_EQ(ARRAY_SIZE(expected), nr);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(has_vm_type(KVM_X86_PROTECTED_VM));

	return test_harness_run(argc, argv);
}
