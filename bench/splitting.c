// SPDX-License-Identifier: GPL-2.0-only
/*
 * What does it cost to convert scattered pages to private, if private memory is
 * in memslots of its own, or in a guest-sealed memfd? Three ways: deleting the
 * memslot and adding its parts again; KVM_SPLIT_MEMORY_REGION and then replacing
 * the page's memslot; fallocate. Writes all samples as JSON to the file that is
 * named as argument.
 */
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>

#include "bench.h"
#include "lib/samples.h"

#define PAGE 4096UL
#define NR_PAGES 4096UL
#define MEMORY (NR_PAGES * PAGE)

/* Pages that have been converted so far. */
static const unsigned int counts[] = { 1, 4, 16, 64, 256, 1024 };
#define NR_COUNTS (sizeof(counts) / sizeof(counts[0]))
#define MOST_PAGES 1024

enum { DELETE, SPLIT, FALLOCATE, NR_WAYS };
static const char *const names[] = { "delete and add", "split", "fallocate" };

struct guest {
	int vm, vcpu, memfd;
	char *shared, *private;
	/* The memslot of what has not been converted, at the end of memory. */
	unsigned int rest, slots;
	unsigned long rest_page;
};

static void set_slot(struct guest *guest, unsigned int slot, char *memory, unsigned long page,
		     unsigned long nr)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = slot,
		.flags = guest->memfd >= 0 ? KVM_MEM_GUEST_MEMFD : 0,
		.guest_phys_addr = page * PAGE,
		.memory_size = nr * PAGE,
		.userspace_addr = (unsigned long)memory + page * PAGE,
		.guest_memfd = guest->memfd,
	};

	check(ioctl(guest->vm, KVM_SET_USER_MEMORY_REGION2, &region), "memslot");
}

static void delete_slot(struct guest *guest, unsigned int slot)
{
	struct kvm_userspace_memory_region2 region = { .slot = slot };

	check(ioctl(guest->vm, KVM_SET_USER_MEMORY_REGION2, &region), "delete");
}

/* Takes a page out of the rest, into one memslot with what is before and after. */
static void convert_by_deleting(struct guest *guest, unsigned long page)
{
	unsigned long before = page - guest->rest_page, after = NR_PAGES - page - 1;

	delete_slot(guest, guest->rest);
	set_slot(guest, guest->rest, guest->shared, guest->rest_page, before);
	set_slot(guest, guest->rest + 1, guest->private, page, 1);
	set_slot(guest, guest->rest + 2, guest->shared, page + 1, after);
}

static void convert_by_splitting(struct guest *guest, unsigned long page)
{
	struct kvm_split_memory_region split = {
		.slot = guest->rest,
		.offset = (page - guest->rest_page) * PAGE,
		.size = PAGE,
		.before_slot = guest->rest,
		.range_slot = guest->rest + 1,
		.after_slot = guest->rest + 2,
	};

	check(ioctl(guest->vm, KVM_SPLIT_MEMORY_REGION, &split), "KVM_SPLIT_MEMORY_REGION");
	delete_slot(guest, guest->rest + 1);
	set_slot(guest, guest->rest + 1, guest->private, page, 1);
}

static void convert(struct guest *guest, int way, unsigned long page)
{
	if (way == FALLOCATE) {
		check(fallocate(guest->memfd, FALLOC_FL_KEEP_SIZE, page * PAGE, PAGE), "fallocate");
		return;
	}

	if (way == DELETE)
		convert_by_deleting(guest, page);
	else
		convert_by_splitting(guest, page);
	guest->rest += 2;
	guest->rest_page = page + 1;
	guest->slots += 2;
}

static char *map(void)
{
	char *memory =
		mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		err(1, "mmap");
	memset(memory, 1, MEMORY);
	return memory;
}

static void create_guest(struct guest *guest, int way)
{
	static char *shared, *private;
	static int kvm = -1;

	if (kvm < 0) {
		kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
		shared = map();
		private = map();
	}

	*guest = (struct guest){ .shared = shared, .private = private, .memfd = -1, .slots = 1 };
	if (way == FALLOCATE)
		guest->memfd = create_sealed_memfd("splitting", 0, MEMORY);
	guest->vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	guest->vcpu = check(ioctl(guest->vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	set_slot(guest, 0, shared, 0, NR_PAGES);
}

static void destroy_guest(struct guest *guest)
{
	close(guest->vcpu);
	close(guest->vm);
	if (guest->memfd >= 0)
		close(guest->memfd);
}

/* Has all of memory mapped for the guest, as if the vCPU had touched it. */
static void map_all(struct guest *guest)
{
	struct kvm_pre_fault_memory range = { .size = MEMORY };

	while (range.size)
		check(ioctl(guest->vcpu, KVM_PRE_FAULT_MEMORY, &range), "KVM_PRE_FAULT_MEMORY");
}

/* The last conversion of so many. */
static void measure(int way, unsigned int count, int keep)
{
	unsigned long stride = NR_PAGES / (MOST_PAGES + 1), page = stride;
	struct guest guest;
	unsigned int i;
	long begin, took;

	create_guest(&guest, way);
	for (i = 1; i < count; i++, page += stride)
		convert(&guest, way, page);
	map_all(&guest);
	/* Have what is left of the previous guest freed by now. */
	usleep(100000);

	begin = now();
	convert(&guest, way, page);
	took = now() - begin;
	if (keep)
		sample("\"way\": \"%s\", \"pages\": %u, \"convert\": %ld, \"memslots\": %u",
		       names[way], count, took, guest.slots);
	destroy_guest(&guest);
}

int main(int argc, char **argv)
{
	size_t count;
	int way, i;

	if (argc != 2)
		errx(2, "usage: splitting SAMPLES.json");

	samples_begin(argv[1]);
	for (count = 0; count < NR_COUNTS; count++) {
		/* The first round is to warm up. */
		for (i = first_round(); i < repeats(); i++) {
			for (way = 0; way < NR_WAYS; way++)
				measure(way, counts[count], i >= 0);
		}
	}
	samples_end();
	return 0;
}
