// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is attacked: a memfd, and a VM that has its memory in there; and how it is told
 * what came of it. Each attempt is made in a process of its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "audit.h"

/* Seconds after which an attempt is given up; an emulated host takes its time. */
#define LIMIT 120

/* --- what came of it ------------------------------------------------------------ */

enum outcome ended(struct target *target, enum outcome outcome, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(target->result->text, sizeof(target->result->text), format, arguments);
	va_end(arguments);
	return target->result->outcome = outcome;
}

/* It was not let through, for the reason that errno has. */
enum outcome refused(struct target *target, const char *call)
{
	return ended(target, REFUSED, "%s: %s", call, strerror(errno));
}

/* Are there eight words in a row that the guest has written? */
bool has_secret(uint32_t seed, const void *data, size_t size)
{
	uint32_t word, next;
	size_t at, row = 0;

	for (at = 0; at + 8 <= size; at += 4) {
		memcpy(&word, (const char *)data + at, 4);
		memcpy(&next, (const char *)data + at + 4, 4);
		row = next == word * 1664525 + seed ? row + 1 : 0;
		if (row == 7)
			return true;
	}
	return false;
}

/* What has been read: is it the guest's? If nobody knows what that is, all is. */
enum outcome look(struct target *target, const void *data, ssize_t size)
{
	if (target->seed ? has_secret(target->seed, data, size) : size > 0)
		return ended(target, SEEN, "%zd bytes of the guest's were seen", size);
	return ended(target, REFUSED, "nothing of the guest's in %zd bytes", size);
}

enum outcome looked(struct target *target, const char *call, ssize_t got, const void *data)
{
	return got < 0 ? refused(target, call) : look(target, data, got);
}

/* Search a file, of which parts may not be readable. */
enum outcome scan_file(struct target *target, int fd, off_t end)
{
	static char buffer[64 * PAGE];
	off_t at;

	for (at = 0; at < end; at += sizeof(buffer)) {
		ssize_t got = pread(fd, buffer, sizeof(buffer), at);

		if (got > 0 && look(target, buffer, got) == SEEN)
			return SEEN;
	}
	return ended(target, REFUSED, "nothing of the guest's in %lld bytes", (long long)end);
}

static __thread sigjmp_buf bus_error;

static void handle_bus_error(int signal)
{
	(void)signal;
	siglongjmp(bus_error, 1);
}

/* Copy from a mapping that may turn out to be of no use, then false and EFAULT. */
bool peek(const void *from, void *to, size_t size)
{
	struct sigaction action = { .sa_handler = handle_bus_error };

	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	if (sigsetjmp(bus_error, 1)) {
		errno = EFAULT;
		return false;
	}
	memcpy(to, from, size);
	return true;
}

/* --- files ------------------------------------------------------------------------ */

int new_memfd(size_t size)
{
	int fd = memfd_create("guestseal-audit", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd >= 0 && ftruncate(fd, size)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

int reopen(pid_t pid, int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd);
	return open(path, flags | O_CLOEXEC);
}

bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool written = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	int error = errno;

	if (fd >= 0)
		close(fd);
	errno = error;
	return written;
}

/* --- the VMM ------------------------------------------------------------------------ */

/*
 * What a VM is to have for memory at MEMORY_GPA: the file as such, or as private half
 * of other memory, which is all that the VMM has a mapping of. DONE if that works.
 */
enum outcome map_memory(struct target *target, int fd, int flags, char **memory)
{
	int kind = MAP_SHARED;

	if (flags & ANONYMOUS)
		kind = MAP_PRIVATE | MAP_ANONYMOUS;
	else if (target->sealed)
		kind = MAP_SHARED | MAP_ANONYMOUS;
	*memory = mmap(*memory, target->size, PROT_READ | PROT_WRITE, kind,
		       kind & MAP_ANONYMOUS ? -1 : fd, 0);
	if (*memory == MAP_FAILED)
		return refused(target, "mmap");
	return DONE;
}

static bool start_guest(struct target *target, const struct attack *attack, struct vm *vm)
{
	char *memory = MEMORY;

	if (attack->flags & WHOLE)
		return start_whole(target, attack, vm);
	if (!vm_create(vm, attack->type)) {
		ended(target, LACKING, "no such VM: %s", strerror(errno));
		return false;
	}
	if (map_memory(target, target->fd, attack->flags, &memory) != DONE)
		return false;
	if (target->sealed && fallocate(target->fd, 0, 0, target->size)) {
		ended(target, BROKEN, "fallocate: %s", strerror(errno));
		return false;
	}
	if (!vm_set_region(vm, 1, 0, MEMORY_GPA, memory, target->size,
			   target->sealed ? target->fd : -1)) {
		ended(target, BROKEN, "binding: %s", strerror(errno));
		return false;
	}
	if (!guest_fill(vm, target->seed, target->size)) {
		ended(target, BROKEN, "the guest does not run: exit %d, %s", vm->run->exit_reason,
		      strerror(errno));
		return false;
	}
	return true;
}

static bool is_intact(struct target *target, struct vm *vm, unsigned int flags)
{
	return flags & WHOLE ? whole_intact(target, vm)
			     : guest_intact(vm, target->seed, target->size);
}

/* The VMM as another process: does what it is asked to until nobody is there to ask. */
static void be_vmm(struct target *target, const struct attack *attack, int socket)
{
	static struct vm vm;
	char what;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	target->vm = &vm;
	what = start_guest(target, attack, &vm);
	while (write(socket, &what, 1) == 1 && read(socket, &what, 1) == 1) {
		if (what == 'i')
			what = is_intact(target, &vm, attack->flags);
		else if (what == 's')
			what = guest_does(&vm, SPIN, 0, 20000000);
	}
	_exit(0);
}

static bool start_vmm(struct target *target, const struct attack *attack)
{
	int sockets[2];
	char ready = 0;

	if (attack->flags & AS_VMM) {
		static struct vm vm;

		target->vm = &vm;
		target->pid = getpid();
		return start_guest(target, attack, &vm);
	}
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets))
		return false;
	target->pid = fork();
	if (!target->pid) {
		close(sockets[0]);
		be_vmm(target, attack, sockets[1]);
	}
	close(sockets[1]);
	target->vmm = sockets[0];
	return target->pid > 0 && read(target->vmm, &ready, 1) == 1 && ready;
}

/*
 * 'i': does the guest find what it had written? 's': has it used the CPU for a while? Also
 * true if the VMM is no more.
 */
bool vmm_asks(struct target *target, char what)
{
	char answer;

	if (!target->vmm || send(target->vmm, &what, 1, MSG_NOSIGNAL) != 1 ||
	    read(target->vmm, &answer, 1) != 1)
		return true;
	return answer;
}

void vmm_ends(struct target *target)
{
	kill(target->pid, SIGKILL);
	waitpid(target->pid, NULL, 0);
	close(target->vmm);
	target->vmm = 0;
}

/* --- attempts ------------------------------------------------------------------------- */

static void make_attempt(struct target *target, const struct attack *attack)
{
	size_t size = attack->flags & HUGE ? HUGE_SIZE : PAGES * PAGE;
	enum outcome outcome;

	target->fd = memfd_create(
		"guest", MFD_CLOEXEC | MFD_ALLOW_SEALING |
				 (attack->flags & HUGE && target->sealed ? MFD_HUGEPAGE : 0));
	if (target->fd < 0 || ftruncate(target->fd, size) ||
	    getrandom(&target->seed, sizeof(target->seed), 0) != sizeof(target->seed)) {
		ended(target, BROKEN, "no memfd: %s", strerror(errno));
		return;
	}
	target->seed |= 1;
	/* What any register can have, as an address, too */
	target->secret = target->seed * 0x9e3779b97f4a7c15 >> 18 | 1UL << 45;
	target->size = size;
	target->offset = 2 * PAGE;

	/* That of a whole VM's comes before the VM is final. */
	if (!(attack->flags & WHOLE) && attack->prepare && attack->prepare(target, attack) != DONE)
		return;
	/* It may be already. */
	if ((target->sealed || attack->flags & WHOLE) &&
	    fcntl(target->fd, F_ADD_SEALS, F_SEAL_GUEST)) {
		ended(target, attack->prepare ? REFUSED : BROKEN, "it can't be sealed then: %s",
		      strerror(errno));
		return;
	}
	target->result->outcome = BROKEN;
	if (!start_vmm(target, attack))
		return;
	outcome = attack->run(target, attack);
	if ((outcome == REFUSED || outcome == DONE) && !(attack->flags & GIVES_UP) &&
	    !(target->vm ? is_intact(target, target->vm, attack->flags) : vmm_asks(target, 'i')))
		ended(target, CHANGED, "the guest does not find what it had written");
	/* What is closed while there is a protected VM isn't for the next attempt. */
	if (target->vmm)
		vmm_ends(target);
}

/* In a process of its own, which may crash or hang. */
static struct result separately(struct target *target, const struct attack *attack, bool own)
{
	struct result *result = mmap(NULL, sizeof(*result), PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS, -1, 0),
		      copy;
	int status;
	pid_t pid;

	if (result == MAP_FAILED)
		return (struct result){ BROKEN, "no memory" };
	target->result = result;
	ended(target, BROKEN, "it ended before anything came of it");
	fflush(NULL);
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		alarm(LIMIT);
		if (own)
			make_attempt(target, attack);
		else
			attack->run(target, attack);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		ended(target, BROKEN, "no process");
	else if (WIFSIGNALED(status))
		ended(target, BROKEN, "killed by %s", strsignal(WTERMSIG(status)));
	copy = *result;
	munmap(result, sizeof(*result));
	return copy;
}

struct result attempt(const struct attack *attack, bool sealed)
{
	struct target target = { .sealed = sealed };

	return separately(&target, attack, true);
}

/* On a sealed memfd of somebody else's, of which there is a descriptor here. */
struct result attempt_on(const struct attack *attack, int fd, off_t offset, pid_t pid)
{
	struct target target = {
		.sealed = true,
		.fd = fd,
		.size = PAGE,
		.offset = offset,
		.pid = pid,
	};

	return separately(&target, attack, false);
}
