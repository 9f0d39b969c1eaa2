// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a VMM can do to its own VM by the files of its memory, and by what it shares with
 * the kernel for running it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/kvm.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "audit.h"

/* Of guest physical memory from 0 on, 2 MiB at a time */
#define DIRECTORY (TABLE_GPA + 2 * PAGE)
#define LARGE_PAGE 0x83UL

/* --- pages, which the guest doesn't want to lose ---------------------------------------------- */

static enum outcome punched(struct target *target, int result)
{
	return result < 0 ? refused(target, "fallocate") : find_change(target, "fallocate");
}

static enum outcome punch(struct target *target, const struct attack *attack)
{
	(void)attack;
	return punched(target, fallocate(target->fd, PUNCH, target->offset, PAGE));
}

static enum outcome punch_all(struct target *target, const struct attack *attack)
{
	(void)attack;
	return punched(target, fallocate(target->fd, PUNCH, 0, target->size));
}

static enum outcome punch_code(struct target *target, const struct attack *attack)
{
	(void)attack;
	return punched(target, fallocate(target->vm->content, PUNCH, ENTRY_GPA, PAGE));
}

static enum outcome punch_by_reopened(struct target *target, const struct attack *attack)
{
	(void)attack;
	return punched(target, fallocate(reopen(getpid(), target->fd, O_RDWR), PUNCH,
					 target->offset, PAGE));
}

static enum outcome punch_by_other(struct target *target, const struct attack *attack)
{
	int status;

	(void)attack;
	if (!fork())
		_exit(fallocate(target->fd, PUNCH, target->offset, PAGE) ? errno : 0);
	if (wait(&status) < 0)
		return ended(target, BROKEN, "no process: %s", strerror(errno));
	errno = WEXITSTATUS(status);
	return punched(target, errno ? -1 : 0);
}

static enum outcome punch_by_uring(struct target *target, const struct attack *attack)
{
	struct uring uring;
	long result;

	(void)attack;
	if (!uring_init(&uring))
		return ended(target, LACKING, "no io_uring: %s", strerror(errno));
	result = uring_do(&uring, IORING_OP_FALLOCATE, target->fd, (void *)PAGE, PUNCH,
			  target->offset, 0);
	errno = -result;
	return punched(target, result);
}

/* Back to what it was before the guest wrote to it */
static enum outcome roll_back(struct target *target, const struct attack *attack)
{
	(void)attack;
	return punched(target, fallocate(target->fd, PUNCH, target->offset, PAGE)
				       ?: fallocate(target->fd, 0, target->offset, PAGE));
}

static enum outcome put_content(struct target *target, const struct attack *attack)
{
	static const char junk[PAGE] = "This is not what the guest wrote.";

	(void)attack;
	if (fallocate(target->fd, PUNCH, target->offset, PAGE))
		return refused(target, "fallocate");
	if (pwrite(target->fd, junk, PAGE, target->offset) != (ssize_t)PAGE)
		return refused(target, "pwrite");
	return find_change(target, "pwrite");
}

/* Page tables by which the guest finds something else where it has its memory */
static enum outcome put_table(struct target *target, const struct attack *attack)
{
	uint64_t table[512];

	(void)attack;
	for (unsigned long i = 0; i < ARRAY_SIZE(table); i++)
		table[i] = (i == MEMORY_GPA / HUGE_SIZE ? 0 : i * HUGE_SIZE) | LARGE_PAGE;
	if (fallocate(target->vm->content, PUNCH, DIRECTORY, PAGE))
		return refused(target, "fallocate");
	if (pwrite(target->vm->content, table, PAGE, DIRECTORY) != (ssize_t)PAGE)
		return refused(target, "pwrite");
	return find_change(target, "pwrite");
}

/* The guest asks for a page to be shared; that is done, and undone. May it be done again? */
static enum outcome punch_again(struct target *target, const struct attack *attack)
{
	struct vm *vm = target->vm;

	(void)attack;
	if (guest_does(vm, LOAD, SHARED + MEMORY_GPA + target->offset, 0) ||
	    vm->run->exit_reason != KVM_EXIT_MEMORY_FAULT)
		return ended(target, BROKEN, "the guest doesn't ask: exit %u",
			     vm->run->exit_reason);
	if (fallocate(target->fd, PUNCH, target->offset, PAGE) || !guest_runs(vm))
		return ended(target, BROKEN, "not shared: %s", strerror(errno));
	if (fallocate(target->fd, 0, target->offset, PAGE) ||
	    !guest_does(vm, STORE, MEMORY_GPA + target->offset, 1))
		return ended(target, BROKEN, "not private: %s", strerror(errno));
	return punched(target, fallocate(target->fd, PUNCH, target->offset, PAGE));
}

/* clang-format off */
#define STEPS(n, r, k, w) { .name = n, .what = w, .run = r, .wants = k, .flags = AS_VMM | WHOLE }
#define GIVEN_UP(n, r, k, w) { .name = n, .what = w, .run = r, .wants = k, .flags = AS_VMM | WHOLE | GIVES_UP }

static const struct attack page_attacks[] = {
	STEPS("punch", punch, CHANGED, "a page freed that the guest hasn't asked to be freed"),
	STEPS("punch, all", punch_all, CHANGED, "all of the guest's memory freed"),
	STEPS("punch, code", punch_code, CHANGED, "a page of the guest's code freed"),
	STEPS("punch, other descriptor", punch_by_reopened, CHANGED, "a page freed by the file opened again"),
	STEPS("punch, other process", punch_by_other, CHANGED, "a page freed by another process"),
	STEPS("punch, io_uring", punch_by_uring, CHANGED, "a page freed by io_uring"),
	STEPS("rollback", roll_back, CHANGED, "a page freed and allocated: it's zero again"),
	STEPS("content", put_content, CHANGED, "a page freed, and given the VMM's content"),
	STEPS("page table", put_table, CHANGED, "a page table freed, and replaced by the VMM's"),
	GIVEN_UP("consent, twice", punch_again, CHANGED, "a page freed twice, when the guest has asked once"),
};
/* clang-format on */

const struct group page_group = GROUP("vm", "page", "pages taken or replaced", page_attacks);

/* --- running it
 * ------------------------------------------------------------------------------------ */

static enum outcome registers_out(struct target *target, const struct attack *attack)
{
	struct kvm_run *run = target->vm->run;
	bool ran;

	(void)attack;
	run->kvm_valid_regs = KVM_SYNC_X86_REGS;
	ran = guest_does(target->vm, FILL, MEMORY_GPA, target->seed | 1UL << 32);
	run->kvm_valid_regs = 0;
	if (has_register(target, run, target->vm->run_size))
		return ended(target, SEEN, "the guest's secret was seen");
	return ran ? ended(target, REFUSED, "the registers aren't there")
		   : refused(target, "KVM_RUN");
}

static enum outcome registers_in(struct target *target, const struct attack *attack)
{
	struct kvm_run *run = target->vm->run;
	const struct desk *desk = (struct desk *)target->vm->desk;
	enum outcome outcome;

	(void)attack;
	run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
	memset(&run->s.regs.regs, 0, sizeof(run->s.regs.regs));
	run->s.regs.regs.rip = desk->again;
	run->s.regs.regs.rsp = ENTRY_GPA + PAGE;
	run->s.regs.regs.rflags = 2;
	if (ioctl(target->vm->vcpu, KVM_RUN, 0)) {
		outcome = refused(target, "KVM_RUN");
		run->kvm_dirty_regs = 0;
		return outcome;
	}
	run->kvm_dirty_regs = 0;
	outcome = find_change(target, "kvm_dirty_regs");
	return outcome == LET ? ended(target, REFUSED, "the guest's registers are its own")
			      : outcome;
}

static enum outcome see_priority(struct target *target, const struct attack *attack)
{
	(void)attack;
	if (!guest_does(target->vm, SET_CR8, 0, 5) ||
	    !guest_does(target->vm, LOAD, DESK_GPA + SHARED, 0))
		return ended(target, BROKEN, "exit %u", target->vm->run->exit_reason);
	if (target->vm->run->cr8 == 5 || target->vm->run->if_flag)
		return ended(target, TOLD, "the guest's CR8 was told");
	return ended(target, REFUSED, "the guest's CR8 isn't there");
}

static enum outcome ask_for_window(struct target *target, const struct attack *attack)
{
	struct kvm_run *run = target->vm->run;
	unsigned int reason;

	(void)attack;
	run->request_interrupt_window = 1;
	guest_does(target->vm, FILL, MEMORY_GPA, target->seed | 1UL << 32);
	reason = run->exit_reason;
	run->request_interrupt_window = 0;
	if (reason == KVM_EXIT_IRQ_WINDOW_OPEN)
		return ended(target, TOLD, "when the guest takes interrupts was told");
	return ended(target, REFUSED, "no exit");
}

/* The guest believes that it writes to its own memory. */
static enum outcome write_nowhere(struct target *target, const struct attack *attack)
{
	(void)attack;
	guest_does(target->vm, STORE, DEVICE_GPA, target->secret);
	/* All that is mapped of the vCPU, the coalesced ring too */
	if (has_register(target, target->vm->run, target->vm->run_size))
		return ended(target, SEEN, "what the guest has written was seen");
	return ended(target, REFUSED, "what the guest has written isn't there");
}

static enum outcome coalesce(struct target *target, const struct attack *attack)
{
	struct kvm_coalesced_mmio_zone zone = { .addr = DEVICE_GPA, .size = PAGE };

	if (ioctl(target->vm->fd, KVM_REGISTER_COALESCED_MMIO, &zone))
		return refused(target, "KVM_REGISTER_COALESCED_MMIO");
	return write_nowhere(target, attack);
}

static enum outcome watch(struct target *target, const struct attack *attack)
{
	struct kvm_ioeventfd event = {
		.addr = DEVICE_GPA,
		.len = 8,
		.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
	};
	eventfd_t count;

	(void)attack;
	if (ioctl(target->vm->fd, KVM_IOEVENTFD, &event))
		return refused(target, "KVM_IOEVENTFD");
	guest_does(target->vm, STORE, DEVICE_GPA, 1);
	if (!eventfd_read(event.fd, &count))
		return ended(target, TOLD, "that the guest has written was told");
	return ended(target, REFUSED, "no event");
}

/* An instruction that KVM can't emulate, and the one after it */
static enum outcome leave_instructions(struct target *target, const struct attack *attack)
{
	static const char instructions[] = "\x66\x0f\x38\x00\x06\xb8\x41\x71\x61\x51";

	(void)attack;
	guest_does(target->vm, SHUFFLE, SHARED + DEVICE_GPA, 0);
	if (target->vm->run->exit_reason != KVM_EXIT_INTERNAL_ERROR)
		return ended(target, BROKEN, "exit %u", target->vm->run->exit_reason);
	if (memmem(target->vm->run, target->vm->run_size, instructions, sizeof(instructions) - 1))
		return ended(target, SEEN, "the guest's instructions were seen");
	return ended(target, REFUSED, "the guest's instructions aren't there");
}

static struct kvm_sregs start_sregs;
static struct kvm_regs start_regs;

static enum outcome save(struct target *target, const struct attack *attack)
{
	(void)attack;
	if (ioctl(target->vm->vcpu, KVM_GET_SREGS, &start_sregs) ||
	    ioctl(target->vm->vcpu, KVM_GET_REGS, &start_regs))
		return ended(target, BROKEN, "no state: %s", strerror(errno));
	return DONE;
}

/* After a triple fault, on memory that isn't as at the start */
static enum outcome start_again(struct target *target, const struct attack *attack)
{
	struct vm *vm = target->vm;

	(void)attack;
	guest_does(vm, TRIPLE_FAULT, 0, 0);
	if (vm->run->exit_reason != KVM_EXIT_SHUTDOWN)
		return ended(target, BROKEN, "exit %u", vm->run->exit_reason);
	if (ioctl(vm->vcpu, KVM_SET_SREGS, &start_sregs) ||
	    ioctl(vm->vcpu, KVM_SET_REGS, &start_regs))
		errno = 0;
	if (ioctl(vm->vcpu, KVM_RUN, 0))
		return refused(target, "KVM_RUN");
	return find_change(target, "KVM_RUN");
}

/* KVM's tracepoint for exits has the guest's instruction pointer. */
static long tracepoint(void)
{
	static const char path[] = "/sys/kernel/tracing/events/kvm/kvm_exit/id";
	char text[32] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 && !unshare(CLONE_NEWNS) && !mount("", "/", "", MS_REC | MS_PRIVATE, NULL) &&
	    !mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, NULL))
		fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return -1;
	close(fd);
	return atol(text);
}

static enum outcome trace(struct target *target, const struct attack *attack)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_TRACEPOINT,
		.size = sizeof(attr),
		.config = tracepoint(),
		.sample_period = 1,
		.sample_type = PERF_SAMPLE_RAW,
	};
	const struct desk *desk = (struct desk *)target->vm->desk;
	struct perf_event_mmap_page *ring;
	uint64_t waits;
	int fd;

	(void)attack;
	fd = attr.config == -1UL
		     ? -1
		     : (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
	if (fd < 0)
		return ended(target, LACKING, "no tracepoints: %s", strerror(errno));
	ring = mmap(NULL, 17 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (ring == MAP_FAILED)
		return ended(target, BROKEN, "no ring: %s", strerror(errno));
	if (!guest_does(target->vm, LOAD, MEMORY_GPA, 0))
		return ended(target, BROKEN, "exit %u", target->vm->run->exit_reason);
	/* The instruction before that is the one by which it waits. */
	waits = desk->again - 2;
	if (memmem((char *)ring + ring->data_offset, ring->data_size, &waits, sizeof(waits)))
		return ended(target, TOLD, "the guest was at %lx", waits);
	return ended(target, REFUSED, "where the guest was isn't told");
}

/* clang-format off */
static const struct attack run_attacks[] = {
	STEPS("kvm_valid_regs", registers_out, SEEN, "registers left in struct kvm_run"),
	STEPS("kvm_dirty_regs", registers_in, CHANGED, "registers taken from struct kvm_run"),
	STEPS("cr8", see_priority, TOLD, "the task priority and interrupt flag left in struct kvm_run"),
	{ .name = "request_interrupt_window", .what = "an exit when the guest takes interrupts", .run = ask_for_window,
	  .wants = TOLD, .flags = AS_VMM | WHOLE | SPLIT },
	GIVEN_UP("private MMIO", write_nowhere, SEEN, "what the guest writes where it has no memory of its own"),
	GIVEN_UP("private MMIO, coalesced", coalesce, SEEN, "the same, collected by KVM"),
	GIVEN_UP("private MMIO, ioeventfd", watch, TOLD, "the same, as an event"),
	GIVEN_UP("instructions", leave_instructions, SEEN, "instructions that KVM can't emulate, in struct kvm_run"),
	{ .name = "triple fault", .what = "the guest started again after a triple fault", .prepare = save, .run = start_again,
	  .wants = CHANGED, .flags = AS_VMM | WHOLE | GIVES_UP },
	{ .name = "tracepoint", .what = "KVM's own tracepoint for exits, by perf", .run = trace, .wants = TOLD,
	  .flags = AS_VMM | WHOLE },
};
/* clang-format on */

const struct group run_group =
	GROUP("vm", "run", "what is told or taken when the VM runs", run_attacks);
