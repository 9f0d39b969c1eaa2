// SPDX-License-Identifier: GPL-2.0-only
/*
 * The launch measurement of a protected VM, without KVM:
 *
 *	guestseal-measure [-p] [-o FILE] [-d START-END]... [-l GPA=FILE]...
 *			  [-k KERNEL [-i INITRD] [-a CMDLINE]] LAUNCH...
 *
 * LAUNCH are files with records as Documentation/virt/kvm/x86/protected-vm.rst has them:
 * a launch log, and the pages with content, in any order, in the same file or others;
 * of pages instead of their hash the content, as QEMU has them in its log.
 *
 *	-d	without the pages from START to END (not included)
 *	-l	with the content of FILE at GPA
 *	-k	with Linux as QEMU loads it: KERNEL is a bzImage; struct boot_params has to
 *		be there already, and what it says of memory and ACPI tables is kept
 *	-o	write the whole stream to FILE; its SHA-384 is the measurement
 *	-p	print what is in it, too
 */
#include <asm/kvm.h>
#include <asm/kvm_measurement.h>
#include <err.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sha384.h"

#define PAGE 4096

/* Where QEMU has what Linux starts with */
#define PARAMS 0x10000
#define CMDLINE 0x20000
#define LOW_END 0x90000
#define KERNEL 0x100000
#define INITRD_GUARD 0x28000

/* In QEMU's launch log */
#define LAUNCH_LOG_CONTENT 0x100

struct launch_log_content {
	uint64_t gpa;
	uint8_t content[PAGE];
};

struct page {
	uint64_t gpa;
	/* If not, its hash is all that is known of it. */
	bool has_content;
	uint8_t digest[SHA384_SIZE];
	uint8_t content[PAGE];
};

static struct page *pages;
static size_t nr_pages, max_pages;

/* All records but pages and the end, each of them aligned */
#define HEAD_ALIGN 8
static uint8_t *head;
static size_t head_size;

static size_t head_space(const struct kvm_measurement_record *record)
{
	return (sizeof(*record) + record->len + HEAD_ALIGN - 1) & -(size_t)HEAD_ALIGN;
}

static void *xrealloc(void *p, size_t size)
{
	p = realloc(p, size);
	if (!p)
		err(1, "realloc");
	return p;
}

static uint8_t *read_file(const char *name, size_t *size)
{
	FILE *file = fopen(name, "rb");
	uint8_t *data = NULL;
	size_t max = 0, got;

	if (!file)
		err(1, "%s", name);
	*size = 0;
	do {
		if (max - *size < 65536) {
			max = 2 * max + 65536;
			data = xrealloc(data, max);
		}
		got = fread(data + *size, 1, max - *size, file);
		*size += got;
	} while (got);
	if (ferror(file))
		err(1, "%s", name);
	fclose(file);
	/* What goes past the end is to be noticed. */
	return xrealloc(data, *size ? *size : 1);
}

/* A later one at the same address takes its place, see sort_pages() */
static struct page *add_page(uint64_t gpa)
{
	if (gpa % PAGE)
		errx(1, "%#" PRIx64 " is not the address of a page", gpa);
	if (nr_pages == max_pages) {
		max_pages = 2 * max_pages + 64;
		pages = xrealloc(pages, max_pages * sizeof(*pages));
	}
	memset(&pages[nr_pages], 0, sizeof(*pages));
	pages[nr_pages].gpa = gpa;
	return &pages[nr_pages++];
}

static struct page *find_page(uint64_t gpa)
{
	for (size_t i = nr_pages; i--;)
		if (pages[i].gpa == gpa)
			return &pages[i];
	return NULL;
}

static void load(uint64_t gpa, const uint8_t *data, size_t size)
{
	size_t n;

	for (; size; size -= n, gpa += n, data += n) {
		struct page *page = add_page(gpa);

		n = size < PAGE ? size : PAGE;
		page->has_content = true;
		memcpy(page->content, data, n);
	}
}

static void drop(uint64_t start, uint64_t end)
{
	size_t n = 0;

	for (size_t i = 0; i < nr_pages; i++)
		if (pages[i].gpa < start || pages[i].gpa >= end)
			pages[n++] = pages[i];
	nr_pages = n;
}

static int compare_pages(const void *a, const void *b)
{
	const struct page *const *x = a, *const *y = b;

	if ((*x)->gpa != (*y)->gpa)
		return (*x)->gpa < (*y)->gpa ? -1 : 1;
	return *x < *y ? -1 : *x > *y;
}

/* In ascending order, the last one at each address, without those that are zero */
static struct page **sort_pages(size_t *nr)
{
	static const uint8_t zero[PAGE];
	struct page **sorted = xrealloc(NULL, (nr_pages + 1) * sizeof(*sorted));
	size_t n = 0;

	for (size_t i = 0; i < nr_pages; i++)
		sorted[i] = &pages[i];
	qsort(sorted, nr_pages, sizeof(*sorted), compare_pages);
	for (size_t i = 0; i < nr_pages; i++) {
		if (i + 1 < nr_pages && sorted[i + 1]->gpa == sorted[i]->gpa)
			continue;
		if (!sorted[i]->has_content || memcmp(sorted[i]->content, zero, PAGE))
			sorted[n++] = sorted[i];
	}
	*nr = n;
	return sorted;
}

static void add_launch(const char *name)
{
	struct kvm_measurement_record record;
	size_t size, at = 0;
	uint8_t *data = read_file(name, &size);

	while (at < size) {
		if (size - at < sizeof(record))
			errx(1, "%s: part of a record at %zu", name, at);
		memcpy(&record, data + at, sizeof(record));
		if (size - at - sizeof(record) < record.len)
			errx(1, "%s: record at %zu goes past the end", name, at);

		if (record.type == KVM_MEASUREMENT_PAGE) {
			struct kvm_measurement_page page;

			if (record.len != sizeof(page))
				errx(1, "%s: bad page at %zu", name, at);
			memcpy(&page, data + at + sizeof(record), sizeof(page));
			memcpy(add_page(page.gpa)->digest, page.digest, SHA384_SIZE);
		} else if (record.type == LAUNCH_LOG_CONTENT) {
			struct launch_log_content page;

			if (record.len != sizeof(page))
				errx(1, "%s: bad page at %zu", name, at);
			memcpy(&page, data + at + sizeof(record), sizeof(page));
			load(page.gpa, page.content, PAGE);
		} else if (record.type != KVM_MEASUREMENT_END) {
			head = xrealloc(head, head_size + head_space(&record));
			memcpy(head + head_size, data + at, sizeof(record) + record.len);
			head_size += head_space(&record);
		}
		at += sizeof(record) + record.len;
	}
	free(data);
}

/* The next record of the head, or NULL */
static const struct kvm_measurement_record *next_record(size_t *at)
{
	const struct kvm_measurement_record *record = (void *)(head + *at);

	if (*at == head_size)
		return NULL;
	*at += head_space(record);
	return record;
}

/* The data of a record; what is too short has none */
static const void *record_data(const struct kvm_measurement_record *record, size_t size)
{
	return record->len < size ? NULL : record + 1;
}

static void check_head(void)
{
	const struct kvm_measurement_record *record;
	const struct kvm_measurement_start *start = NULL;
	uint32_t type = 0;
	size_t at = 0;

	while ((record = next_record(&at))) {
		bool again = type == KVM_MEASUREMENT_MSRS && record->type == KVM_MEASUREMENT_VCPU;

		if (record->type == KVM_MEASUREMENT_START)
			start = record_data(record, sizeof(*start));
		if (!start || memcmp(start->magic, KVM_MEASUREMENT_MAGIC, sizeof(start->magic)))
			errx(1, "that's not a launch log");
		if (start->version != KVM_MEASUREMENT_VERSION)
			errx(1, "version %u of the measurement is not known", start->version);
		if (record->type < type && !again)
			errx(1, "record %u after %u", record->type, type);
		type = record->type;
	}
	if (type != KVM_MEASUREMENT_MSRS)
		errx(1, "the launch log has no end");
}

/*
 * Linux, as QEMU's x86_load_linux() and x86_protected_reset() load it
 */
static uint32_t get32(const uint8_t *p)
{
	return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put32(uint8_t *p, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		p[i] = value >> (8 * i);
}

static bool is_private(uint64_t gpa)
{
	const struct kvm_measurement_record *record;
	size_t at = 0;

	while ((record = next_record(&at))) {
		const struct kvm_measurement_range *range = record_data(record, sizeof(*range));

		if (record->type == KVM_MEASUREMENT_RANGE && range &&
		    range->flags & KVM_MEASUREMENT_RANGE_PRIVATE && gpa >= range->gpa &&
		    gpa - range->gpa < range->size)
			return true;
	}
	return false;
}

/* The end of private memory below 4 GiB */
static uint64_t low_memory(void)
{
	const struct kvm_measurement_record *record;
	uint64_t end = 0;
	size_t at = 0;

	while ((record = next_record(&at))) {
		const struct kvm_measurement_range *range = record_data(record, sizeof(*range));

		if (record->type == KVM_MEASUREMENT_RANGE && range &&
		    range->flags & KVM_MEASUREMENT_RANGE_PRIVATE && range->gpa < 1ull << 32)
			end = range->gpa + range->size;
	}
	return end;
}

static void load_linux(const char *kernel_name, const char *initrd_name, const char *cmdline)
{
	size_t kernel_size, initrd_size = 0, setup_size, header_end, cmdline_size;
	uint8_t *kernel = read_file(kernel_name, &kernel_size), *initrd = NULL;
	struct page *params = find_page(PARAMS);
	uint64_t low = low_memory(), initrd_at = 0, initrd_max;
	uint8_t header[8192] = {};

	if (!params || !params->has_content)
		errx(1, "there are no boot parameters at %#x", PARAMS);
	memcpy(header, kernel, kernel_size < sizeof(header) ? kernel_size : sizeof(header));
	if (memcmp(header + 0x202, "HdrS", 4) || header[0x207] < 2 ||
	    (header[0x207] == 2 && header[0x206] < 6) || !(header[0x211] & 1))
		errx(1, "%s is not a bzImage of Linux 2.6.22 or later", kernel_name);

	initrd_max = get32(header + 0x22c);
	/* XLF_CAN_BE_LOADED_ABOVE_4G */
	if (header[0x206] >= 0x0c && header[0x236] & 2)
		initrd_max = UINT32_MAX;
	if (initrd_max >= low - INITRD_GUARD)
		initrd_max = low - INITRD_GUARD - 1;
	if (initrd_name) {
		initrd = read_file(initrd_name, &initrd_size);
		if (initrd_size >= initrd_max)
			errx(1, "%s is too large", initrd_name);
		initrd_at = (initrd_max - initrd_size) & ~(uint64_t)(PAGE - 1);
	}

	put32(header + 0x228, CMDLINE);
	header[0x210] = 0xb0;
	header[0x211] |= 0x80;
	header[0x224] = (CMDLINE - PARAMS - 0x200) & 0xff;
	header[0x225] = (CMDLINE - PARAMS - 0x200) >> 8;
	if (initrd) {
		put32(header + 0x218, initrd_at);
		put32(header + 0x21c, initrd_size);
	}

	header_end = 0x202 + header[0x201];
	if (header_end > 0x290)
		header_end = 0x290;
	memset(params->content + 0x1f1, 0, 0x290 - 0x1f1);
	memcpy(params->content + 0x1f1, header + 0x1f1, header_end - 0x1f1);
	put32(params->content + 0x214, KERNEL);

	setup_size = ((header[0x1f1] ?: 4) + 1) * 512;
	if (setup_size > kernel_size)
		errx(1, "%s is too short", kernel_name);
	if (strstr(cmdline, "vga="))
		errx(1, "vga= on the command line is not supported");
	cmdline_size = strlen(cmdline) + 1;
	if (cmdline_size - 1 > get32(header + 0x238) || CMDLINE + cmdline_size > LOW_END)
		errx(1, "the command line is too long");
	if (KERNEL + kernel_size - setup_size > (initrd ? initrd_at : low))
		errx(1, "not enough memory for kernel and initrd");

	drop(CMDLINE, LOW_END);
	drop(KERNEL, low);
	load(CMDLINE, (const uint8_t *)cmdline, cmdline_size);
	load(KERNEL, kernel + setup_size, kernel_size - setup_size);
	if (initrd)
		load(initrd_at, initrd, initrd_size);
	free(kernel);
	free(initrd);
}

/*
 * Output
 */
static struct sha384 sha;
static FILE *out;

static void put(const void *data, size_t size)
{
	sha384_update(&sha, data, size);
	if (out && fwrite(data, 1, size, out) != size)
		err(1, "can't write");
}

static void print_record(const struct kvm_measurement_record *record)
{
	static const char *const names[] = {
		"?",	 "start", "vm",	    "range", "vcpu",  "cpuid", "regs",
		"sregs", "debug", "events", "lapic", "xsave", "msrs",
	};
	const char *name =
		record->type < sizeof(names) / sizeof(*names) ? names[record->type] : "?";
	const struct kvm_measurement_range *range;
	const struct kvm_measurement_cpuid *cpuid;
	const struct kvm_measurement_msr *msr;
	const struct kvm_measurement_vcpu *vcpu;
	const struct kvm_measurement_vm *vm;
	const struct kvm_regs *regs;
	const uint8_t *data = record_data(record, 0);

	switch (record->type) {
	case KVM_MEASUREMENT_VM:
		vm = record_data(record, sizeof(*vm));
		if (!vm)
			break;
		printf("vm shared-bit %#llx vcpus %u bsp %u irqchip %u pins %u flags %#llx "
		       "disabled-quirks %#llx hypercalls %#llx\n",
		       vm->shared_bit, vm->nr_vcpus, vm->bsp_id, vm->irqchip_mode,
		       vm->nr_ioapic_pins, vm->flags, vm->disabled_quirks, vm->hypercall_exits);
		return;
	case KVM_MEASUREMENT_RANGE:
		range = record_data(record, sizeof(*range));
		if (!range)
			break;
		printf("range %#llx-%#llx%s%s\n", range->gpa, range->gpa + range->size,
		       range->flags & KVM_MEASUREMENT_RANGE_PRIVATE ? " private" : "",
		       range->flags & KVM_MEASUREMENT_RANGE_READONLY ? " read-only" : "");
		return;
	case KVM_MEASUREMENT_VCPU:
		vcpu = record_data(record, sizeof(*vcpu));
		if (!vcpu)
			break;
		printf("vcpu %u id %u mp-state %u flags %#x xcr0 %#llx tsc-khz %u\n", vcpu->index,
		       vcpu->id, vcpu->mp_state, vcpu->flags, vcpu->xcr0, vcpu->tsc_khz);
		return;
	case KVM_MEASUREMENT_CPUID:
		cpuid = (void *)data;
		for (size_t i = 0; i < record->len / sizeof(*cpuid); i++, cpuid++)
			printf("cpuid %#x.%#x %#x %#x %#x %#x\n", cpuid->function, cpuid->index,
			       cpuid->eax, cpuid->ebx, cpuid->ecx, cpuid->edx);
		return;
	case KVM_MEASUREMENT_REGS:
		regs = record_data(record, sizeof(*regs));
		if (!regs)
			break;
		printf("regs rip %#llx rflags %#llx rax %#llx rbx %#llx rcx %#llx rdx %#llx "
		       "rsi %#llx rdi %#llx rsp %#llx rbp %#llx\n",
		       regs->rip, regs->rflags, regs->rax, regs->rbx, regs->rcx, regs->rdx,
		       regs->rsi, regs->rdi, regs->rsp, regs->rbp);
		return;
	case KVM_MEASUREMENT_MSRS:
		msr = (void *)data;
		for (size_t i = 0; i < record->len / sizeof(*msr); i++, msr++)
			printf("msr %#x %#llx\n", msr->index, msr->value);
		return;
	}

	printf("%s", name);
	/* All of it, so that what differs shows */
	for (size_t i = 0; i < record->len; i++)
		printf("%s%02x", i % 8 ? "" : " ", data[i]);
	printf("\n");
}

static void hash_page(struct page *page)
{
	struct sha384 content;

	if (!page->has_content)
		return;
	sha384_init(&content);
	sha384_update(&content, page->content, PAGE);
	sha384_final(&content, page->digest);
}

static void print_page(const struct page *page)
{
	printf("page %#" PRIx64 " ", page->gpa);
	for (int i = 0; i < SHA384_SIZE; i++)
		printf("%02x", page->digest[i]);
	printf("\n");
}

static void put_page(const struct page *page)
{
	struct kvm_measurement_page data = { .gpa = page->gpa };
	struct kvm_measurement_record record = { KVM_MEASUREMENT_PAGE, sizeof(data) };

	memcpy(data.digest, page->digest, SHA384_SIZE);
	put(&record, sizeof(record));
	put(&data, sizeof(data));
}

static void put_all(bool print)
{
	struct kvm_measurement_record end = { KVM_MEASUREMENT_END, 0 };
	const struct kvm_measurement_record *record;
	struct page **sorted;
	size_t nr, at = 0;

	while ((record = next_record(&at))) {
		put(record, sizeof(*record) + record->len);
		if (print)
			print_record(record);
	}
	sorted = sort_pages(&nr);
	for (size_t i = 0; i < nr; i++) {
		if (!is_private(sorted[i]->gpa))
			errx(1, "there is no private memory at %#" PRIx64, sorted[i]->gpa);
		hash_page(sorted[i]);
		put_page(sorted[i]);
		if (print)
			print_page(sorted[i]);
	}
	put(&end, sizeof(end));
	free(sorted);
}

static uint64_t number(const char *text, char **end)
{
	uint64_t value = strtoull(text, end, 0);

	if (*end == text)
		errx(2, "not a number: %s", text);
	return value;
}

int main(int argc, char **argv)
{
	static const char options[] = "a:d:i:k:l:o:p";
	const char *kernel = NULL, *initrd = NULL, *cmdline = "", *stream = NULL;
	uint8_t digest[SHA384_SIZE];
	bool print = false;
	int option;

	while ((option = getopt(argc, argv, options)) != -1) {
		switch (option) {
		case 'a':
			cmdline = optarg;
			break;
		case 'i':
			initrd = optarg;
			break;
		case 'k':
			kernel = optarg;
			break;
		case 'o':
			stream = optarg;
			break;
		case 'p':
			print = true;
			break;
		case 'd':
		case 'l':
			break;
		default:
			return 2;
		}
	}
	if (optind == argc || (!kernel && (initrd || *cmdline)))
		errx(2,
		     "usage: %s [-p] [-o FILE] [-d START-END]... [-l GPA=FILE]...\n"
		     "\t[-k KERNEL [-i INITRD] [-a CMDLINE]] LAUNCH...",
		     argv[0]);

	for (int i = optind; i < argc; i++)
		add_launch(argv[i]);
	check_head();
	if (kernel)
		load_linux(kernel, initrd, cmdline);

	/* Those that have an order among each other */
	optind = 1;
	while ((option = getopt(argc, argv, options)) != -1) {
		char *end;
		size_t size;
		uint64_t at;
		uint8_t *data;

		if (option != 'd' && option != 'l')
			continue;
		at = number(optarg, &end);
		if (*end != (option == 'd' ? '-' : '='))
			errx(2, "-%c %s", option, optarg);
		if (option == 'd') {
			drop(at, number(end + 1, &end));
			if (*end)
				errx(2, "-d %s", optarg);
			continue;
		}
		data = read_file(end + 1, &size);
		load(at, data, size);
		free(data);
	}

	out = stream ? fopen(stream, "wb") : NULL;
	if (stream && !out)
		err(1, "%s", stream);
	sha384_init(&sha);
	put_all(print);
	sha384_final(&sha, digest);
	if (out && fclose(out))
		err(1, "%s", stream);

	for (int i = 0; i < SHA384_SIZE; i++)
		printf("%02x", digest[i]);
	printf("\n");
	if (fflush(stdout) || ferror(stdout))
		err(1, "standard output");
	return 0;
}
