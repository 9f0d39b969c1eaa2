/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * guestseal-audit: what attacks have in common.
 *
 * An attack is made twice, each time in a process of its own: on ordinary memory, where
 * it has to succeed, and on private memory, where it must not. Either is a memfd of
 * PAGES pages in which the guest of a VM keeps words that follow from a seed. Nobody
 * else computes them, but one at a time to compare, so wherever some of them stand in a
 * row they were the guest's.
 *
 * Attacks on VMs are made on an isolated VM, all of whose memory is private but what it
 * shares, and on a protected one that differs in its type only. They are after the
 * vCPUs' registers as well, where the guest has a secret of eight bytes.
 */
#ifndef AUDIT_H
#define AUDIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The C library doesn't know them yet. */
#ifndef F_SEAL_GUEST
#define F_SEAL_GUEST 0x0040
#endif
#ifndef MFD_HUGEPAGE
#define MFD_HUGEPAGE 0x1000U
#endif

#define PAGE 4096UL
#define PAGES 16
#define HUGE_SIZE (2UL << 20)
#define PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* Where the VMM has the guest's ordinary memory, and the guest both. */
#define MEMORY ((char *)0x200000000000UL)
#define MEMORY_GPA 0x200000UL

/* What came of an attack. */
enum outcome {
	REFUSED, /* nothing */
	LACKING, /* the host lacks what it takes */
	BROKEN,	 /* it didn't come so far that it could succeed or fail */
	DONE,	 /* it was let through; the guest sees to what effect */
	CHANGED, /* the guest doesn't find what it had written */
	SEEN,	 /* some of what the guest had written was seen */
	TOLD,	 /* something of what the guest does was seen, e.g. when it used its memory */
	LET,	 /* it was let through, which is as bad, though to no effect that is seen */
};

struct result {
	enum outcome outcome;
	char text[160];
};

struct vm;

struct target {
	bool sealed; /* private, or ordinary memory for the control; in family "vm": protected */
	int fd;
	size_t size;
	off_t offset;	 /* of a page with content */
	pid_t pid;	 /* the VMM's */
	struct vm *vm;	 /* the VMM's, if that is who attacks */
	int vmm;	 /* to talk to it, if it's another process */
	uint32_t seed;	 /* of the content, 0 if it isn't known */
	uint64_t secret; /* in the vCPUs' registers, 0 if it isn't known */
	/* What is kept from before it was sealed: */
	int taken;
	char *window; /* a mapping */
	struct result *result;
};

/* An ioctl */
struct call {
	enum { VM, VCPU, OTHER_VCPU } of;
	unsigned long nr;
	size_t size; /* of what is passed; 0 if it's @value itself */
	unsigned long value;
	bool (*fill)(struct target *target, void *data); /* false if it can't be */
	unsigned int needs;				 /* an extension, or 0 */
};

struct attack {
	const char *name;
	const char *what; /* it tries, in a sentence */
	/* The attack, and what of it comes before the file is sealed, if any. */
	enum outcome (*run)(struct target *target, const struct attack *attack);
	enum outcome (*prepare)(struct target *target, const struct attack *attack);
	/* For tables of what is alike: */
	int (*way)(struct target *target);
	enum outcome (*access)(struct target *target, int fd);
	struct call call;
	enum outcome wants; /* what has to come of it if memory is ordinary */
	unsigned int flags;
	unsigned int type; /* of the VM */
	const char *scope; /* why it isn't kept out, if it is not */
};

/* flags */
#define BY_FD 1	    /* takes a descriptor only and changes nothing: for any VM */
#define AS_VMM 2    /* by the VMM itself */
#define DISTURBS 4  /* changes settings of the host for a moment, or loads it */
#define ANONYMOUS 8 /* ordinary memory is anonymous */
#define HUGE 16	    /* memory is a huge page, if the host has any */
#define GIVES_UP 32 /* the guest's memory on its way, so it is changed in any case */
#define WHOLE 64    /* the VM is isolated, or protected */
#define SPLIT 128   /* it has the local APICs in the kernel only */
#define BY_PID 256  /* takes a VMM's process only and changes nothing: for any VM */

struct group {
	const char *family; /* "memfd", on private memory, or "vm", on protected VMs */
	const char *name;
	const char *what;
	const struct attack *attacks;
	size_t nr;
};

/* clang-format off */
#define GROUP(f, n, w, a) { .family = f, .name = n, .what = w, .attacks = a, .nr = ARRAY_SIZE(a) }
/* clang-format on */

extern const struct group descriptor_group, read_group, write_group, order_group, mapping_group,
	process_group, memory_group, kvm_group, device_group, freed_group, kernel_group,
	launch_group, state_group, event_group, make_group, page_group, run_group, other_group;

/* target.c */
struct result attempt(const struct attack *attack, bool sealed);
struct result attempt_on(const struct attack *attack, int fd, off_t offset, pid_t pid);
enum outcome refused(struct target *target, const char *call);
enum outcome ended(struct target *target, enum outcome outcome, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
enum outcome look(struct target *target, const void *data, ssize_t size);
enum outcome looked(struct target *target, const char *call, ssize_t got, const void *data);
bool has_secret(uint32_t seed, const void *data, size_t size);
int new_memfd(size_t size);
int reopen(pid_t pid, int fd, int flags);
bool peek(const void *from, void *to, size_t size);
bool write_file(const char *path, const char *text);
enum outcome scan_file(struct target *target, int fd, off_t end);
enum outcome map_memory(struct target *target, int fd, int flags, char **memory);
bool vmm_asks(struct target *target, char what);
void vmm_ends(struct target *target);

/* vm.c */
enum { DESK_CODE, DESK_OUT, DESK_PAGES };

struct vm {
	int kvm, fd, vcpu;
	struct kvm_run *run;
	size_t run_size;
	char *desk; /* memory that the guest shares */
	/* Of a whole one: */
	int vcpu2, content;
	char *shared;
};

struct kvm_segment flat_segment(uint16_t selector, uint8_t type);
bool vm_map_run(struct vm *vm);
bool vm_run(struct vm *vm);
bool vm_create(struct vm *vm, unsigned int type);
void vm_destroy(struct vm *vm);
bool vm_set_region(struct vm *vm, int slot, unsigned int flags, unsigned long gpa, char *memory,
		   size_t size, int private_fd);
bool guest_fill(struct vm *vm, uint32_t seed, size_t size);
bool guest_intact(struct vm *vm, uint32_t seed, size_t size);
bool guest_copy(struct vm *vm, unsigned long gpa);

/* whole.c: VMs that are isolated, or protected */
#define CONTENT_PAGES 64
/* Where the guest has what */
#define LOADED_GPA 0x0UL
#define TABLE_GPA 0x1000UL
#define ENTRY_GPA 0x8000UL
#define SPARE_GPA 0xc000UL
#define SMRAM_GPA 0x38000UL
#define DESK_GPA 0x400000UL
#define DEVICE_GPA 0x10000000UL
/* Where it sees what it shares */
#define SHARED 0x40000000UL

enum command { CHECK, FILL, LOAD, STORE, WRMSR, SET_CR8, SPIN, TRIPLE_FAULT, SHUFFLE };

struct desk {
	uint64_t command, address, value;
	/* What the guest tells: a command's result; what isn't as it was; the last event that
	 * it didn't expect; how often it started; where it is to go on. */
	uint64_t result;
	uint32_t changed, event, starts;
	uint64_t again;
};

bool start_whole(struct target *target, const struct attack *attack, struct vm *vm);
bool guest_runs(struct vm *vm);
bool guest_does(struct vm *vm, enum command command, uint64_t address, uint64_t value);
bool whole_intact(struct target *target, struct vm *vm);
bool has_register(struct target *target, const void *data, size_t size);
enum outcome make_call(struct target *target, const struct attack *attack);
enum outcome find_change(struct target *target, const char *call);

/* debugger.c: other processes' VMs */
bool has_vm(pid_t pid);
bool is_protected(pid_t pid);

/* uring.c */
struct uring {
	int fd;
	char *ring;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
	unsigned int *sq_tail, *cq_head, *cq_tail, sq_mask, cq_mask, *array;
};

bool uring_init(struct uring *uring);
struct io_uring_sqe *uring_next(struct uring *uring, unsigned int n);
int uring_submit(struct uring *uring, unsigned int nr);
int uring_wait(struct uring *uring, unsigned long data);
long uring_do(struct uring *uring, int op, int fd, void *buffer, size_t size, off_t offset,
	      unsigned int flags);

/* aio.c */
enum outcome aio_do(struct target *target, int op, int fd, void *page, ssize_t *result);

/* loop.c */
int loop_attach(int fd, bool direct, char path[32]);
void loop_detach(const char *path);
enum outcome with_loop(struct target *target, int fd, bool direct,
		       enum outcome (*attack)(struct target *target, int loop));

/* read.c */
enum outcome by_pread(struct target *target, int fd);
enum outcome by_mmap(struct target *target, int fd);
enum outcome run_access(struct target *target, const struct attack *attack);

/* frames.c: pages of RAM with what the guest has written */
#define MAX_FRAMES 1024

struct frames {
	size_t nr;
	int kcore;
	unsigned long pfn[MAX_FRAMES];
	off_t at[MAX_FRAMES]; /* in /proc/kcore */
};

enum outcome frames_find(struct target *target, struct frames *frames);
size_t frames_left(struct target *target, const struct frames *frames);

#endif
