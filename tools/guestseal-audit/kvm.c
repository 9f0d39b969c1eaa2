// SPDX-License-Identifier: GPL-2.0-only
/* By KVM: other VMs, and other memslots of the same VM. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "audit.h"

/* Another VM with the same file for memory; DONE, or why not. */
static enum outcome bind_thief(struct target *target, struct vm *thief, unsigned int type)
{
	char *memory = NULL;

	if (!vm_create(thief, type))
		return ended(target, LACKING, "no such VM: %s", strerror(errno));
	if (map_memory(target, target->fd, 0, &memory) != DONE)
		return REFUSED;
	if (!vm_set_region(thief, 1, 0, MEMORY_GPA, memory, target->size,
			   target->sealed ? target->fd : -1))
		return refused(target, "binding");
	return DONE;
}

static enum outcome copied(struct target *target, struct vm *vm, unsigned long gpa)
{
	if (!guest_copy(vm, gpa))
		return refused(target, "KVM_RUN");
	return look(target, vm->desk + DESK_OUT * PAGE, PAGE);
}

static enum outcome steal(struct target *target)
{
	struct vm thief;

	return bind_thief(target, &thief, 0) == DONE
		       ? copied(target, &thief, MEMORY_GPA + target->offset)
		       : target->result->outcome;
}

static bool remove_region(struct target *target)
{
	return vm_set_region(target->vm, 1, 0, MEMORY_GPA, MEMORY, 0, -1);
}

static enum outcome second_vm(struct target *target, const struct attack *attack)
{
	(void)attack;
	return steal(target);
}

static enum outcome other_type(struct target *target, const struct attack *attack)
{
	struct vm thief;

	(void)attack;
	return bind_thief(target, &thief, KVM_X86_SW_PROTECTED_VM) == DONE
		       ? copied(target, &thief, MEMORY_GPA + target->offset)
		       : target->result->outcome;
}

static enum outcome without_memslot(struct target *target, const struct attack *attack)
{
	(void)attack;
	if (!remove_region(target))
		return ended(target, BROKEN, "no memslot removed: %s", strerror(errno));
	target->size = PAGES * PAGE;
	return steal(target);
}

static enum outcome without_owner(struct target *target, const struct attack *attack)
{
	(void)attack;
	vmm_ends(target);
	return steal(target);
}

/* A VM that was the owner, of a file that is another one's by now */
static enum outcome former_owner(struct target *target, const struct attack *attack)
{
	struct vm owner;

	(void)attack;
	if (!remove_region(target) || fallocate(target->fd, PUNCH, 0, target->size))
		return ended(target, BROKEN, "not given up: %s", strerror(errno));
	if (bind_thief(target, &owner, 0) != DONE)
		return ended(target, BROKEN, "no new owner: %s", strerror(errno));
	if (fallocate(target->fd, 0, 0, target->size) ||
	    !guest_fill(&owner, target->seed, target->size))
		return ended(target, BROKEN, "the new owner does not run: %s", strerror(errno));
	if (!vm_set_region(target->vm, 1, 0, MEMORY_GPA, MEMORY, target->size,
			   target->sealed ? target->fd : -1))
		return refused(target, "binding");
	return copied(target, target->vm, MEMORY_GPA + target->offset);
}

static enum outcome read_only(struct target *target, const struct attack *attack)
{
	int fd = reopen(getpid(), target->fd, O_RDONLY);
	char *memory = MEMORY;

	(void)attack;
	if (!remove_region(target))
		return ended(target, BROKEN, "no memslot removed: %s", strerror(errno));
	if (!target->sealed)
		memory = mmap(NULL, target->size, PROT_READ, MAP_SHARED, fd, 0);
	if (!vm_set_region(target->vm, 1, KVM_MEM_READONLY, MEMORY_GPA, memory, target->size,
			   target->sealed ? fd : -1))
		return refused(target, "binding");
	return copied(target, target->vm, MEMORY_GPA + target->offset);
}

/* The same pages where the guest does not expect them */
static enum outcome alias(struct target *target, const struct attack *attack)
{
	unsigned long gpa = 2 * MEMORY_GPA;

	(void)attack;
	if (!vm_set_region(target->vm, 2, 0, gpa, MEMORY, target->size,
			   target->sealed ? target->fd : -1))
		return refused(target, "binding");
	return copied(target, target->vm, gpa + target->offset);
}

static enum outcome old_ioctl(struct target *target, const struct attack *attack)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = 2,
		.flags = target->sealed ? KVM_MEM_GUEST_MEMFD : 0,
		.guest_phys_addr = 2 * MEMORY_GPA,
		.memory_size = target->size,
		.userspace_addr = (unsigned long)MEMORY,
		.guest_memfd = target->fd,
	};

	(void)attack;
	if (ioctl(target->vm->fd, KVM_SET_USER_MEMORY_REGION, &region))
		return refused(target, "KVM_SET_USER_MEMORY_REGION");
	return copied(target, target->vm, 2 * MEMORY_GPA + target->offset);
}

static enum outcome attributes(struct target *target, const struct attack *attack)
{
	struct kvm_memory_attributes range = {
		.address = MEMORY_GPA,
		.size = target->size,
		.attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE,
	};

	(void)attack;
	if (ioctl(target->vm->fd, KVM_SET_MEMORY_ATTRIBUTES, &range))
		return refused(target, "KVM_SET_MEMORY_ATTRIBUTES");
	range.attributes = 0;
	if (ioctl(target->vm->fd, KVM_SET_MEMORY_ATTRIBUTES, &range))
		return refused(target, "KVM_SET_MEMORY_ATTRIBUTES");
	return ended(target, DONE, "the guest's memory stays as it is");
}

static enum outcome encrypt(struct target *target, const struct attack *attack)
{
	struct kvm_enc_region range = { (unsigned long)MEMORY, target->size };

	(void)attack;
	if (ioctl(target->vm->fd, KVM_MEMORY_ENCRYPT_REG_REGION, &range))
		return ended(target, LACKING, "the CPU has no SEV, or not for this VM: %s",
			     strerror(errno));
	return ended(target, DONE, "KVM_MEMORY_ENCRYPT_REG_REGION: let through");
}

/* A memslot without private half in its place: the guest finds what the VMM has put there. */
static enum outcome replace(struct target *target, const struct attack *attack)
{
	char *memory = mmap(NULL, target->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1, 0);

	(void)attack;
	if (!remove_region(target) ||
	    !vm_set_region(target->vm, 1, 0, MEMORY_GPA, memory, target->size, -1))
		return refused(target, "KVM_SET_USER_MEMORY_REGION");
	return ended(target, DONE, "KVM_SET_USER_MEMORY_REGION: let through");
}

/* The worst that a VMM can do: have the guest tell. */
static enum outcome registers(struct target *target, const struct attack *attack)
{
	(void)attack;
	return copied(target, target->vm, MEMORY_GPA + target->offset);
}

static enum outcome dirty_log(struct target *target, const struct attack *attack)
{
	unsigned long bitmap[HUGE_SIZE / PAGE / 64 + 1] = { 0 };
	struct kvm_dirty_log log = { .slot = 1, .dirty_bitmap = bitmap };

	(void)attack;
	if (!vm_set_region(target->vm, 1, KVM_MEM_LOG_DIRTY_PAGES, MEMORY_GPA, MEMORY, target->size,
			   target->sealed ? target->fd : -1))
		return refused(target, "KVM_MEM_LOG_DIRTY_PAGES");
	if (ioctl(target->vm->fd, KVM_GET_DIRTY_LOG, &log) ||
	    !guest_fill(target->vm, target->seed, PAGE))
		return ended(target, BROKEN, "no log: %s", strerror(errno));
	memset(bitmap, 0, sizeof(bitmap));
	if (ioctl(target->vm->fd, KVM_GET_DIRTY_LOG, &log))
		return refused(target, "KVM_GET_DIRTY_LOG");
	if (bitmap[0] == 1)
		return ended(target, TOLD, "which page the guest has written was told");
	return ended(target, REFUSED, "not told which page the guest has written");
}

#define TRUSTED "the VMM is trusted with memslots and vCPUs, but for protected VMs"

/* clang-format off */
#define OTHER(n, r, w) { .name = n, .what = w, .run = r, .wants = SEEN }
#define GIVEN_UP(n, r, w) { .name = n, .what = w, .run = r, .wants = SEEN, .flags = AS_VMM | GIVES_UP }
#define OWN(n, r, k, w) { .name = n, .what = w, .run = r, .wants = k, .flags = AS_VMM }

static const struct attack attacks[] = {
	OTHER("second VM", second_vm, "another VM with the same file, and its vCPU reads"),
	OTHER("second VM, other type", other_type, "the same with a VM of type KVM_X86_SW_PROTECTED_VM"),
	OTHER("no owner", without_owner, "another VM, once the first one's VMM was killed"),
	GIVEN_UP("no memslot", without_memslot, "another VM, once the first one has no memslot of the file"),
	GIVEN_UP("former owner", former_owner, "the first VM, once the file is another one's"),
	GIVEN_UP("read-only descriptor", read_only, "a read-only memslot, by a descriptor for reading"),
	OWN("alias", alias, SEEN, "the same pages at another address in the guest"),
	OWN("old ioctl", old_ioctl, SEEN, "the flag for private memory, by the ioctl that doesn't know it"),
	{ .name = "memory attributes", .what = "private pages declared to be shared, by KVM's own record of that",
	  .run = attributes, .wants = DONE, .flags = AS_VMM, .type = KVM_X86_SW_PROTECTED_VM },
	OWN("memory encryption", encrypt, DONE, "pages registered for SEV, which pins them"),
	{ .name = "memslot replaced", .what = "other memory put where the guest's was", .run = replace,
	  .wants = CHANGED, .flags = AS_VMM, .scope = TRUSTED },
	{ .name = "registers", .what = "the vCPU sent to copy private memory to shared", .run = registers,
	  .wants = SEEN, .flags = AS_VMM, .scope = TRUSTED },
	{ .name = "dirty log", .what = "the log of pages that the guest has written", .run = dirty_log,
	  .wants = TOLD, .flags = AS_VMM, .scope = "which pages are used is no secret, but for protected VMs" },
};
/* clang-format on */

const struct group kvm_group = GROUP("memfd", "kvm", "by KVM", attacks);
