// SPDX-License-Identifier: GPL-2.0-only
/*
 * What others than its VMM can do to a VM: with the VMM's descriptors, and by having the
 * VMM make system calls, as a debugger does.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "audit.h"

/* More than QEMU has, but for the largest VMs */
#define MAX_THREADS 1024
/* What is below a thread's stack pointer may be in use, so much of it. */
#define RED_ZONE 128

/* --- a VMM that is made to do things ------------------------------------------------------------
 */

struct victim {
	pid_t threads[MAX_THREADS];
	size_t nr;
	unsigned long syscall_at;
	int vcpu, vm; /* its descriptors */
	int signal;   /* that the first thread is to get later */
};

/* As a debugger wants it to be, not by a signal of its own: it gets those later. */
static bool is_stopped(pid_t thread)
{
	int status;

	if (ptrace(PTRACE_SEIZE, thread, 0, 0) || ptrace(PTRACE_INTERRUPT, thread, 0, 0))
		return false;
	while (waitpid(thread, &status, __WALL) == thread && WIFSTOPPED(status)) {
		if (status >> 16 == PTRACE_EVENT_STOP)
			return true;
		ptrace(PTRACE_CONT, thread, 0, WSTOPSIG(status));
	}
	return false;
}

/* All threads, so that none of them is in KVM_RUN. */
static bool stop(struct target *target, struct victim *victim)
{
	struct dirent *entry;
	char path[64];
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", target->pid);
	dir = opendir(path);
	victim->nr = 0;
	while (dir && victim->nr < MAX_THREADS && (entry = readdir(dir))) {
		pid_t thread = atoi(entry->d_name);

		if (thread && is_stopped(thread))
			victim->threads[victim->nr++] = thread;
	}
	if (dir)
		closedir(dir);
	return victim->nr;
}

static void let_go(struct target *target, struct victim *victim)
{
	while (victim->nr)
		ptrace(PTRACE_DETACH, victim->threads[--victim->nr], 0, 0);
	if (victim->signal)
		syscall(SYS_tgkill, target->pid, victim->threads[0], victim->signal);
}

static int descriptor_of(pid_t pid, const char *name)
{
	char path[64], link[64];
	ssize_t length;

	for (int fd = 0; fd < 4096; fd++) {
		snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd);
		length = readlink(path, link, sizeof(link) - 1);
		if (length < 0)
			continue;
		link[length] = 0;
		if (!strncmp(link, name, strlen(name)))
			return fd;
	}
	return -1;
}

static bool copy(struct target *target, unsigned long at, void *data, size_t size, bool write)
{
	struct iovec here = { data, size }, there = { (void *)at, size };

	return (write ? process_vm_writev(target->pid, &here, 1, &there, 1, 0)
		      : process_vm_readv(target->pid, &here, 1, &there, 1, 0)) == (ssize_t)size;
}

/* Where it has the instruction: in its vDSO, if nowhere else */
static unsigned long find_syscall(struct target *target)
{
	static char code[4 * PAGE];
	unsigned long start = 0, end = 0;
	char path[64], line[256], *at;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", target->pid);
	maps = fopen(path, "r");
	while (maps && fgets(line, sizeof(line), maps))
		if (strstr(line, "[vdso]") && sscanf(line, "%lx-%lx", &start, &end) == 2)
			break;
	if (maps)
		fclose(maps);
	if (end <= start || end - start > sizeof(code) ||
	    !copy(target, start, code, end - start, false))
		return 0;
	at = memmem(code, end - start, "\x0f\x05", 2);
	return at ? start + (at - code) : 0;
}

static enum outcome take(struct target *target, struct victim *victim)
{
	victim->signal = 0;
	victim->vcpu = descriptor_of(target->pid, "anon_inode:kvm-vcpu:");
	victim->vm = descriptor_of(target->pid, "anon_inode:kvm-vm");
	victim->syscall_at = find_syscall(target);
	if (victim->vcpu < 0 || victim->vm < 0)
		return ended(target, BROKEN, "process %d has no VM", target->pid);
	if (!victim->syscall_at)
		return ended(target, LACKING, "no system call to be found in process %d",
			     target->pid);
	if (!stop(target, victim))
		return refused(target, "PTRACE_SEIZE");
	return DONE;
}

/* Up to after the instruction at @at, and what registers are then */
static bool step_over(struct victim *victim, unsigned long at, struct user_regs_struct *regs)
{
	pid_t thread = victim->threads[0];
	int status;

	while (!ptrace(PTRACE_SINGLESTEP, thread, 0, 0) &&
	       waitpid(thread, &status, __WALL) == thread && WIFSTOPPED(status)) {
		if (ptrace(PTRACE_GETREGS, thread, 0, regs))
			return false;
		if (regs->rip != at)
			return true;
		if (WSTOPSIG(status) != SIGTRAP)
			victim->signal = WSTOPSIG(status);
	}
	return false;
}

/*
 * Have its first thread call an ioctl, with a copy of @data on its stack. All is put back,
 * so that the system call that it was in is restarted.
 */
static bool inject(struct target *target, struct victim *victim, int fd, unsigned long nr,
		   void *data, size_t size, long *result)
{
	pid_t thread = victim->threads[0];
	struct user_regs_struct before, regs;
	static char kept[4 * PAGE];
	unsigned long at;
	bool done;

	if (size > sizeof(kept) || ptrace(PTRACE_GETREGS, thread, 0, &before))
		return false;
	at = (before.rsp - RED_ZONE - size) & ~63UL;
	if (!copy(target, at, kept, size, false) || !copy(target, at, data, size, true))
		return false;
	regs = before;
	regs.orig_rax = -1;
	regs.rip = victim->syscall_at;
	regs.rax = SYS_ioctl;
	regs.rdi = fd;
	regs.rsi = nr;
	regs.rdx = at;
	done = !ptrace(PTRACE_SETREGS, thread, 0, &regs) &&
	       step_over(victim, victim->syscall_at, &regs) && copy(target, at, data, size, false);
	*result = regs.rax;
	copy(target, at, kept, size, true);
	ptrace(PTRACE_SETREGS, thread, 0, &before);
	return done;
}

/*
 * Is that VM protected from its VMM? Only such a one has been measured. If that can't be
 * found out it counts as protected.
 */
bool is_protected(pid_t pid)
{
	struct kvm_x86_measurement measurement = { 0 };
	struct result ignored;
	struct target target = { .pid = pid, .result = &ignored };
	struct victim victim;
	long result = 0;

	if (take(&target, &victim) != DONE)
		return true;
	inject(&target, &victim, victim.vm, KVM_X86_GET_MEASUREMENT, &measurement,
	       sizeof(measurement), &result);
	let_go(&target, &victim);
	return result >= 0;
}

bool has_vm(pid_t pid)
{
	return descriptor_of(pid, "anon_inode:kvm-vcpu:") >= 0;
}

static enum outcome inject_call(struct target *target, const struct attack *attack)
{
	static char data[2 * PAGE] __attribute__((aligned(8)));
	const struct call *call = &attack->call;
	struct victim victim;
	bool done;
	long result;

	if (take(target, &victim) != DONE)
		return target->result->outcome;
	memset(data, 0, sizeof(data));
	if (call->fill)
		call->fill(target, data);
	done = inject(target, &victim, call->of == VM ? victim.vm : victim.vcpu, call->nr, data,
		      call->size, &result);
	let_go(target, &victim);
	if (!done)
		return ended(target, BROKEN, "no system call injected: %s", strerror(errno));
	errno = -result;
	if (result < 0)
		return refused(target, attack->name);
	switch (attack->wants) {
	case SEEN:
		if (!target->secret || has_register(target, data, call->size))
			return ended(target, SEEN, "the guest's registers were seen");
		return ended(target, LET, "let through, but the secret isn't in there");
	case CHANGED:
		return vmm_asks(target, 'i') ? ended(target, LET, "let through")
					     : ended(target, CHANGED, "the guest was changed");
	default:
		return ended(target, attack->wants, "it was told");
	}
}

static bool fill_address(struct target *target, void *data)
{
	(void)target;
	((struct kvm_translation *)data)->linear_address = MEMORY_GPA;
	return true;
}

static bool fill_msr(struct target *target, void *data)
{
	struct kvm_msrs *msrs = data;

	(void)target;
	msrs->nmsrs = 1;
	((struct kvm_msr_entry *)(msrs + 1))->index = 0xc0000082;
	return true;
}

static bool fill_step(struct target *target, void *data)
{
	(void)target;
	((struct kvm_guest_debug *)data)->control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
	return true;
}

/* --- its descriptors, in another process
 * ----------------------------------------------------------- */

static struct kvm_run *map_run(struct target *target)
{
	int pidfd = syscall(SYS_pidfd_open, target->pid, 0);
	int fd = descriptor_of(target->pid, "anon_inode:kvm-vcpu:0");
	void *run;

	fd = syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	if (fd < 0)
		return NULL;
	run = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	return run == MAP_FAILED ? NULL : run;
}

/* The VMM's next KVM_RUN is told to leave registers there. */
static enum outcome registers_out(struct target *target, const struct attack *attack)
{
	struct kvm_run *run = map_run(target);

	(void)attack;
	if (!run)
		return refused(target, "pidfd_getfd, mmap");
	run->kvm_valid_regs = KVM_SYNC_X86_REGS;
	vmm_asks(target, 'i');
	run->kvm_valid_regs = 0;
	if (has_register(target, run, PAGE))
		return ended(target, SEEN, "the guest's secret was seen");
	return ended(target, REFUSED, "the registers aren't there");
}

static enum outcome registers_in(struct target *target, const struct attack *attack)
{
	struct kvm_run *run = map_run(target);

	(void)attack;
	if (!run)
		return refused(target, "pidfd_getfd, mmap");
	memset(&run->s.regs, 0, sizeof(run->s.regs));
	run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
	vmm_asks(target, 'i');
	run->kvm_dirty_regs = 0;
	return vmm_asks(target, 'i') ? ended(target, REFUSED, "the guest's registers are its own")
				     : ended(target, CHANGED, "the guest was changed");
}

/* --- what the host's kernel tells
 * ---------------------------------------------------------------------- */

#define RING_PAGES 16

static bool is_inside(struct perf_event_mmap_page *ring)
{
	const char *data = (const char *)ring + ring->data_offset;
	uint64_t at = ring->data_tail, head = __atomic_load_n(&ring->data_head, __ATOMIC_ACQUIRE);
	bool inside = false;

	while (at < head) {
		struct {
			struct perf_event_header header;
			uint64_t ip;
		} event = { 0 };
		unsigned int mode;

		for (size_t i = 0; i < sizeof(event); i++)
			((char *)&event)[i] = data[(at + i) % ring->data_size];
		mode = event.header.misc & PERF_RECORD_MISC_CPUMODE_MASK;
		inside |= event.header.type == PERF_RECORD_SAMPLE && event.ip &&
			  (mode == PERF_RECORD_MISC_GUEST_KERNEL ||
			   mode == PERF_RECORD_MISC_GUEST_USER);
		at += event.header.size;
	}
	ring->data_tail = at;
	return inside;
}

/* Samples of where the guest is, while it uses the CPU */
static enum outcome sample(struct target *target, const struct attack *attack)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof(attr),
		.config = PERF_COUNT_SW_CPU_CLOCK,
		.sample_period = 100000,
		.sample_type = PERF_SAMPLE_IP,
	};
	struct perf_event_mmap_page *rings[64];
	struct dirent *entry;
	char path[64];
	size_t nr = 0;
	DIR *dir;

	(void)attack;
	snprintf(path, sizeof(path), "/proc/%d/task", target->pid);
	dir = opendir(path);
	while (dir && nr < ARRAY_SIZE(rings) && (entry = readdir(dir))) {
		int fd = atoi(entry->d_name)
				 ? syscall(SYS_perf_event_open, &attr, atoi(entry->d_name), -1, -1,
					   PERF_FLAG_FD_CLOEXEC)
				 : -1;

		rings[nr] = fd < 0 ? MAP_FAILED
				   : mmap(NULL, (1 + RING_PAGES) * PAGE, PROT_READ | PROT_WRITE,
					  MAP_SHARED, fd, 0);
		nr += rings[nr] != MAP_FAILED;
	}
	if (!nr)
		return ended(target, LACKING, "no perf events: %s", strerror(errno));
	for (int tries = 0; tries < 20; tries++) {
		/* Somebody else's guest has its own things to do. */
		if (target->vmm)
			vmm_asks(target, 's');
		else
			usleep(20000);
		for (size_t i = 0; i < nr; i++)
			if (is_inside(rings[i]))
				return ended(target, TOLD, "where the guest is was told");
	}
	return ended(target, REFUSED, "no sample is in the guest%s",
		     target->vmm ? "" : ", if it ran at all");
}

/*
 * A counter that doesn't stop while the guest runs.  The MSRs' is one on any host: AMD's
 * and Intel's have counts of instructions among them, all have the TSC.
 */
static enum outcome count(struct target *target, const struct attack *attack)
{
	struct perf_event_attr attr = { .size = sizeof(attr) };
	char text[16] = "";
	uint64_t value = 0;
	int fd = open("/sys/bus/event_source/devices/msr/type", O_RDONLY | O_CLOEXEC);

	(void)attack;
	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return ended(target, LACKING, "no such events");
	close(fd);
	attr.type = atoi(text);
	fd = syscall(SYS_perf_event_open, &attr, target->pid, -1, -1, PERF_FLAG_FD_CLOEXEC);
	/* There is another protected VM, for this isn't one. */
	if (fd < 0 && errno == EBUSY && !target->sealed)
		return ended(target, LACKING, "a protected VM that runs closes it for all");
	if (fd < 0)
		return refused(target, "perf_event_open");
	vmm_asks(target, 's');
	if (read(fd, &value, sizeof(value)) != sizeof(value) || !value)
		return ended(target, BROKEN, "nothing was counted");
	return ended(target, TOLD, "what the guest takes was counted");
}

static enum outcome count_exits(struct target *target, const struct attack *attack)
{
	int fd = descriptor_of(target->pid, "anon_inode:kvm-vm");
	char path[96], count[32];

	(void)attack;
	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d/exits", target->pid, fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	/* Of ordinary VMs, or none */
	if (fd < 0 && !access("/sys/kernel/debug/kvm", F_OK))
		return refused(target, path);
	if (fd < 0)
		return ended(target, LACKING, "no debugfs");
	if (read(fd, count, sizeof(count)) <= 0)
		return refused(target, "read");
	return ended(target, TOLD, "how often the guest has exited was told");
}

/* clang-format off */
#define INJECT(n, nr, type, f, k, x, w) { .name = "ptrace, " n, .what = w, .run = inject_call, .wants = k, \
	.flags = WHOLE | (x), .call = { VCPU, nr, sizeof(type), .fill = f } }

static const struct attack attacks[] = {
	INJECT("KVM_GET_REGS", KVM_GET_REGS, struct kvm_regs, NULL, SEEN, BY_PID, "a debugger has the VMM read general registers"),
	INJECT("KVM_GET_SREGS", KVM_GET_SREGS, struct kvm_sregs, NULL, SEEN, BY_PID, "the same, of control registers and segments"),
	INJECT("KVM_GET_XSAVE", KVM_GET_XSAVE, struct kvm_xsave, NULL, SEEN, BY_PID, "the same, of extended state"),
	INJECT("KVM_GET_DEBUGREGS", KVM_GET_DEBUGREGS, struct kvm_debugregs, NULL, SEEN, BY_PID, "the same, of debug registers"),
	{ .name = "ptrace, KVM_GET_MSRS", .what = "the same, of an MSR", .run = inject_call, .wants = SEEN, .flags = WHOLE | BY_PID,
	  .call = { VCPU, KVM_GET_MSRS, sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry), .fill = fill_msr } },
	INJECT("KVM_GET_LAPIC", KVM_GET_LAPIC, struct kvm_lapic_state, NULL, TOLD, BY_PID, "the same, of the local APIC"),
	INJECT("KVM_TRANSLATE", KVM_TRANSLATE, struct kvm_translation, fill_address, TOLD, BY_PID, "a debugger has the VMM walk the guest's page tables"),
	INJECT("KVM_SET_REGS", KVM_SET_REGS, struct kvm_regs, NULL, CHANGED, 0, "a debugger has the VMM change general registers"),
	INJECT("KVM_SET_GUEST_DEBUG", KVM_SET_GUEST_DEBUG, struct kvm_guest_debug, fill_step, CHANGED, 0, "a debugger has the VMM execute single instructions"),
	{ .name = "pidfd_getfd, kvm_valid_regs", .what = "registers left in struct kvm_run, which another process has mapped",
	  .run = registers_out, .wants = SEEN, .flags = WHOLE },
	{ .name = "pidfd_getfd, kvm_dirty_regs", .what = "registers taken from there",
	  .run = registers_in, .wants = CHANGED, .flags = WHOLE },
	{ .name = "perf", .what = "samples of where the guest is", .run = sample, .wants = TOLD, .flags = WHOLE | BY_PID },
	{ .name = "perf, counters", .what = "counts of what the guest does, by a PMU that guests don't stop",
	  .run = count, .wants = TOLD, .flags = WHOLE },
	{ .name = "debugfs", .what = "statistics of the VM", .run = count_exits, .wants = TOLD,
	  .flags = WHOLE | BY_PID },
};
/* clang-format on */

const struct group other_group = GROUP("vm", "other", "by others than the VMM", attacks);
