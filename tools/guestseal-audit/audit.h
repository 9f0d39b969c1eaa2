/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * guestseal-audit: what attacks have in common.
 *
 * An attack is made twice, each time in a process of its own: on ordinary memory, where
 * it has to succeed, and on private memory, where it must not. Either is a memfd of
 * PAGES pages in which the guest of a VM keeps words that follow from a seed. Nobody
 * else computes them, but one at a time to compare, so wherever some of them stand in a
 * row they were the guest's.
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
	TOLD,	 /* when the guest used its memory was seen */
};

struct result {
	enum outcome outcome;
	char text[160];
};

struct vm;

struct target {
	bool sealed; /* private, or ordinary memory for the control */
	int fd;
	size_t size;
	off_t offset;  /* of a page with content */
	pid_t pid;     /* the VMM's */
	struct vm *vm; /* the VMM's, if that is who attacks */
	int vmm;       /* to talk to it, if it's another process */
	uint32_t seed; /* of the content, 0 if it isn't known */
	/* What is kept from before it was sealed: */
	int taken;
	char *window; /* a mapping */
	struct result *result;
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

struct group {
	const char *family; /* "memfd"; "vm" is for what a VMM does to its own VM */
	const char *name;
	const char *what;
	const struct attack *attacks;
	size_t nr;
};

/* clang-format off */
#define GROUP(f, n, w, a) { .family = f, .name = n, .what = w, .attacks = a, .nr = ARRAY_SIZE(a) }
/* clang-format on */

extern const struct group descriptor_group, read_group, write_group, order_group, mapping_group,
	process_group, memory_group, kvm_group, device_group, freed_group, kernel_group;

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
};

bool vm_create(struct vm *vm, unsigned int type);
void vm_destroy(struct vm *vm);
bool vm_set_region(struct vm *vm, int slot, unsigned int flags, unsigned long gpa, char *memory,
		   size_t size, int private_fd);
bool guest_fill(struct vm *vm, uint32_t seed, size_t size);
bool guest_intact(struct vm *vm, uint32_t seed, size_t size);
bool guest_copy(struct vm *vm, unsigned long gpa);

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
