// SPDX-License-Identifier: GPL-2.0-only
/*
 * Launch measurement and sealing key of protected VMs.
 *
 * What the measurement should be is computed here from what the VM was given and what
 * KVM says of its state, as Documentation/virt/kvm/x86/protected-vm.rst has it, and
 * hashed by the kernel's AF_ALG.
 */
#include <asm/kvm_measurement.h>
#include <linux/if_alg.h>
#include <linux/keyctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "protected_vm.h"
#include "sealed_memfd_trace.h"

#define HASH_SIZE	48
#define MTRR_DEF_TYPE	0x2ff

/* Memory of a VM that isn't run: an array of pages, the second half of them shared */
#define NR_BARE_PAGES	16
#define BARE_GPA	0x100000ul
#define BARE_SIZE	(NR_BARE_PAGES * PAGE_SIZE)
#define BARE_SLOT	0
#define BARE_SHARED	1

/*
 * Hashes, by AF_ALG
 */
static int alg_open(const char *name, const void *key, size_t key_size)
{
	struct sockaddr_alg addr = { .salg_family = AF_ALG, .salg_type = "hash" };
	int alg, fd;

	memcpy(addr.salg_name, name, strlen(name));
	alg = socket(AF_ALG, SOCK_SEQPACKET, 0);
	TEST_ASSERT(alg >= 0 && !bind(alg, (struct sockaddr *)&addr, sizeof(addr)),
		    __KVM_SYSCALL_ERROR("bind()", -1));
	TEST_ASSERT(!key || !setsockopt(alg, SOL_ALG, ALG_SET_KEY, key, key_size),
		    __KVM_SYSCALL_ERROR("setsockopt()", -1));
	fd = accept(alg, NULL, NULL);
	TEST_ASSERT(fd >= 0, __KVM_SYSCALL_ERROR("accept()", fd));
	close(alg);
	return fd;
}

static void alg_put(int fd, const void *data, size_t size)
{
	TEST_ASSERT(send(fd, data, size, MSG_MORE) == size, __KVM_SYSCALL_ERROR("send()", -1));
}

static void alg_close(int fd, uint8_t *hash)
{
	TEST_ASSERT(send(fd, NULL, 0, 0) == 0 && read(fd, hash, HASH_SIZE) == HASH_SIZE,
		    __KVM_SYSCALL_ERROR("read()", -1));
	close(fd);
}

/* HKDF of one block, by RFC 5869 */
static void expected_key(const void *payload, size_t size, const char *type,
			 const uint8_t *measurement, uint8_t *key)
{
	uint8_t prk[HASH_SIZE], one = 1;
	int fd;

	fd = alg_open("hmac(sha384)", "guestseal", strlen("guestseal"));
	alg_put(fd, payload, size);
	alg_close(fd, prk);

	fd = alg_open("hmac(sha384)", prk, sizeof(prk));
	alg_put(fd, "KVM sealing key", sizeof("KVM sealing key"));
	alg_put(fd, type, strlen(type) + 1);
	alg_put(fd, measurement, HASH_SIZE);
	alg_put(fd, &one, sizeof(one));
	alg_close(fd, key);
}

/*
 * The stream
 */
struct stream {
	uint8_t *data;
	size_t size;
	size_t max;
};

static void stream_put(struct stream *stream, const void *data, size_t size)
{
	if (stream->size + size > stream->max) {
		stream->max = 2 * (stream->size + size);
		stream->data = realloc(stream->data, stream->max);
		TEST_ASSERT(stream->data, "Out of memory");
	}
	memcpy(stream->data + stream->size, data, size);
	stream->size += size;
}

static void stream_record(struct stream *stream, uint32_t type, const void *data, size_t size)
{
	struct kvm_measurement_record record = { type, size };

	stream_put(stream, &record, sizeof(record));
	stream_put(stream, data, size);
}

struct page {
	uint64_t gpa;
	uint8_t content[PAGE_SIZE];
};

/* What is measured, besides what KVM can be asked for */
struct launch {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[MAX_VCPUS];
	struct kvm_measurement_vm rec;
	struct kvm_measurement_vcpu vcpu_recs[MAX_VCPUS];
	struct kvm_measurement_range ranges[4];
	unsigned int nr_ranges;
	/* In ascending order */
	struct page *pages;
	unsigned int nr_pages;
	int fd;
	char *shared;
};

/* CPUID.0xd.1:EAX of XSAVEC or XSAVES, which give EBX a meaning */
#define XSAVE_COMPACTED	(BIT(1) | BIT(3))

static void put_cpuid(struct stream *stream, struct kvm_vcpu *vcpu)
{
	struct kvm_cpuid2 *cpuid = allocate_kvm_cpuid2(MAX_NR_CPUID_ENTRIES);
	struct kvm_measurement_cpuid out[MAX_NR_CPUID_ENTRIES];
	unsigned int i;

	vcpu_ioctl(vcpu, KVM_GET_CPUID2, cpuid);
	for (i = 0; i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

		if (e->function == 1) {
			e->ecx &= ~BIT(27);
			e->edx &= ~BIT(9);
		} else if (e->function == 7 && !e->index) {
			e->ecx &= ~BIT(4);
		} else if (e->function == 0xd &&
			   (!e->index || (e->index == 1 && e->eax & XSAVE_COMPACTED))) {
			e->ebx = 0;
		}
		out[i] = (struct kvm_measurement_cpuid) {
			e->function, e->index, e->flags & 1, e->eax, e->ebx, e->ecx, e->edx,
		};
	}
	stream_record(stream, KVM_MEASUREMENT_CPUID, out, cpuid->nent * sizeof(*out));
	free(cpuid);
}

static void put_xsave(struct stream *stream, struct kvm_vcpu *vcpu)
{
	int size = vm_check_cap(vcpu->vm, KVM_CAP_XSAVE2);
	uint8_t *xsave = calloc(1, size);

	vcpu_xsave2_get(vcpu, (void *)xsave);
	memset(xsave + 28, 0, 4);
	memset(xsave + 416, 0, 96 + 64);
	while (size && !xsave[size - 1])
		size--;
	stream_record(stream, KVM_MEASUREMENT_XSAVE, xsave, size);
	free(xsave);
}

struct msr_range {
	uint32_t first;
	uint32_t last;
};

static bool in_ranges(const struct msr_range *ranges, int nr, uint32_t msr)
{
	for (; nr--; ranges++) {
		if (msr >= ranges->first && msr <= ranges->last)
			return true;
	}
	return false;
}

/* Of a VM without Hyper-V's interface */
static bool is_measured(const struct kvm_msr_list *list, uint32_t msr, bool arch_capabilities,
			bool perf_capabilities)
{
	static const struct msr_range more[] = {
		{ 0xe1, 0xe1 }, { 0x122, 0x122 },
		{ 0x179, 0x17b }, { 0x200, 0x20f }, { 0x250, 0x250 }, { 0x258, 0x259 },
		{ 0x268, 0x26f }, { 0x280, 0x29f }, { 0x2ff, 0x2ff }, { 0x400, 0x47f },
		{ 0xda0, 0xda0 }, { 0xc0010114, 0xc0010114 }, { 0xc0010140, 0xc0010141 },
		{ 0xc0011029, 0xc0011029 },
	};
	static const struct msr_range not[] = {
		{ 0x10, 0x10 }, { 0x480, 0x491 }, { 0x40000000, 0x40000118 },
	};
	int i;

	if (in_ranges(not, ARRAY_SIZE(not), msr) || (msr == 0x10a && !arch_capabilities) ||
	    (msr == 0x345 && !perf_capabilities))
		return false;
	if (in_ranges(more, ARRAY_SIZE(more), msr))
		return true;
	for (i = 0; i < list->nmsrs; i++) {
		if (list->indices[i] == msr)
			return true;
	}
	return false;
}

static bool get_msr(struct kvm_vcpu *vcpu, uint32_t msr, uint64_t *value)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry;
	} get = { { .nmsrs = 1 }, { .index = msr } };

	if (__vcpu_ioctl(vcpu, KVM_GET_MSRS, &get.header) != 1)
		return false;
	*value = get.entry.data;
	return true;
}

/* 0 if there is none, as in most VMs */
static uint64_t host_ucode_rev(void)
{
	const struct kvm_msr_list *list = kvm_get_feature_msr_index_list();
	unsigned int i;

	for (i = 0; i < list->nmsrs; i++) {
		if (list->indices[i] == MSR_IA32_UCODE_REV)
			return kvm_get_feature_msr(MSR_IA32_UCODE_REV);
	}
	return 0;
}

static const struct msr_range all_msrs[] = {
	{ 0, 0x1fff }, { 0x40000000, 0x400001ff }, { 0x4b564d00, 0x4b564dff },
	{ 0xc0000000, 0xc0001fff }, { 0xc0010000, 0xc0011fff },
};

static void put_msrs(struct stream *stream, struct kvm_vcpu *vcpu)
{
	const struct kvm_msr_list *list = kvm_get_msr_index_list();
	bool arch = vcpu_get_cpuid_entry(vcpu, 7)->edx & BIT(29);
	bool perf = vcpu_get_cpuid_entry(vcpu, 1)->ecx & BIT(15);
	struct kvm_measurement_msr msrs[1024];
	unsigned int i, nr = 0, nr_listed = 0;
	uint64_t value;
	uint32_t msr;

	for (i = 0; i < ARRAY_SIZE(all_msrs); i++) {
		for (msr = all_msrs[i].first; msr <= all_msrs[i].last; msr++) {
			if (!is_measured(list, msr, arch, perf) || !get_msr(vcpu, msr, &value) ||
			    !value || (msr == MSR_IA32_UCODE_REV && value == host_ucode_rev()))
				continue;
			msrs[nr++] = (struct kvm_measurement_msr) { msr, 0, value };
		}
	}
	/* Are there any elsewhere? */
	for (i = 0; i < list->nmsrs; i++)
		nr_listed += in_ranges(all_msrs, ARRAY_SIZE(all_msrs), list->indices[i]);
	TEST_ASSERT_EQ(nr_listed, list->nmsrs);

	stream_record(stream, KVM_MEASUREMENT_MSRS, msrs, nr * sizeof(*msrs));
}

static void put_vcpu(struct stream *stream, struct launch *l, int i)
{
	struct kvm_measurement_vcpu *rec = &l->vcpu_recs[i];
	struct kvm_vcpu *vcpu = l->vcpus[i];
	struct kvm_debugregs debugregs;
	struct kvm_vcpu_events events;
	struct kvm_lapic_state lapic;
	struct kvm_sregs2 sregs;
	struct kvm_regs regs;
	struct kvm_xcrs xcrs;

	vcpu_ioctl(vcpu, KVM_GET_XCRS, &xcrs);
	/* KVM's is the x87 alone on a CPU without XSAVE, of which it tells nothing. */
	rec->xcr0 = xcrs.nr_xcrs ? xcrs.xcrs[0].value : 1;
	stream_record(stream, KVM_MEASUREMENT_VCPU, rec, sizeof(*rec));
	put_cpuid(stream, vcpu);
	vcpu_regs_get(vcpu, &regs);
	stream_record(stream, KVM_MEASUREMENT_REGS, &regs, sizeof(regs));
	vcpu_ioctl(vcpu, KVM_GET_SREGS2, &sregs);
	stream_record(stream, KVM_MEASUREMENT_SREGS, &sregs, sizeof(sregs));
	vcpu_debugregs_get(vcpu, &debugregs);
	stream_record(stream, KVM_MEASUREMENT_DEBUGREGS, &debugregs, sizeof(debugregs));
	vcpu_events_get(vcpu, &events);
	stream_record(stream, KVM_MEASUREMENT_EVENTS, &events, sizeof(events));
	vcpu_ioctl(vcpu, KVM_GET_LAPIC, &lapic);
	stream_record(stream, KVM_MEASUREMENT_LAPIC, &lapic, sizeof(lapic));
	put_xsave(stream, vcpu);
	put_msrs(stream, vcpu);
}

/* All but pages and the end */
static void put_all(struct stream *stream, struct launch *l)
{
	struct kvm_measurement_start start = { "guestseal launch", 1 };
	int i;

	stream->size = 0;
	stream_record(stream, KVM_MEASUREMENT_START, &start, sizeof(start));
	stream_record(stream, KVM_MEASUREMENT_VM, &l->rec, sizeof(l->rec));
	for (i = 0; i < l->nr_ranges; i++)
		stream_record(stream, KVM_MEASUREMENT_RANGE, &l->ranges[i], sizeof(*l->ranges));
	for (i = 0; i < l->rec.nr_vcpus; i++)
		put_vcpu(stream, l, i);
}

static void put_page(int fd, const struct page *page)
{
	struct kvm_measurement_page data = { page->gpa };
	struct kvm_measurement_record record = { KVM_MEASUREMENT_PAGE, sizeof(data) };
	int content = alg_open("sha384", NULL, 0);

	alg_put(content, page->content, PAGE_SIZE);
	alg_close(content, data.digest);
	alg_put(fd, &record, sizeof(record));
	alg_put(fd, &data, sizeof(data));
}

static void expected_measurement(struct launch *l, struct stream *stream, uint8_t *hash)
{
	struct kvm_measurement_record end = { KVM_MEASUREMENT_END };
	int i, fd = alg_open("sha384", NULL, 0);

	alg_put(fd, stream->data, stream->size);
	for (i = 0; i < l->nr_pages; i++)
		put_page(fd, &l->pages[i]);
	alg_put(fd, &end, sizeof(end));
	alg_close(fd, hash);
}

/* Where two streams begin to differ; the second one has an end. */
static void compare_streams(struct stream *a, const uint8_t *b, size_t size)
{
	const struct kvm_measurement_record *ra, *rb;
	size_t at = 0, i;

	while (at < a->size && at < size) {
		ra = (void *)(a->data + at);
		rb = (void *)(b + at);
		for (i = 0; i < sizeof(*ra) + ra->len; i++) {
			TEST_ASSERT(a->data[at + i] == b[at + i],
				    "Record %u of %u bytes, expected %u of %u, at %zu: %#x, not %#x",
				    rb->type, rb->len, ra->type, ra->len, i, b[at + i],
				    a->data[at + i]);
		}
		at += i;
	}
	TEST_ASSERT(a->size + sizeof(*ra) == size, "The log has %zu bytes, not %zu", size,
		    a->size + sizeof(*ra));
}

/* Not in the program, all of which the guest has in its memory */
#define LOG_SIZE	0x100000

static uint8_t *log_buffer;

/* Finalize a VM; it's measured as it should be. */
static void finalize(struct launch *l, int32_t key, uint8_t *measurement)
{
	const struct kvm_measurement_vm *rec;
	struct kvm_x86_finalize_vm arg = {
		.key = key,
		.log = (uintptr_t)log_buffer,
		.log_size = LOG_SIZE,
	};
	struct stream stream = {};
	uint8_t expected[HASH_SIZE];

	put_all(&stream, l);
	vm_ioctl(l->vm, KVM_X86_FINALIZE_VM, &arg);

	/* What the host's CPU decides */
	rec = (void *)log_buffer + 2 * sizeof(struct kvm_measurement_record) +
	      sizeof(struct kvm_measurement_start);
	l->rec.disabled_quirks |= rec->disabled_quirks;
	l->rec.flags |= rec->flags & KVM_MEASUREMENT_VM_PMU;
	memcpy(stream.data + ((void *)rec - (void *)log_buffer), &l->rec, sizeof(l->rec));

	compare_streams(&stream, log_buffer, arg.log_size);
	expected_measurement(l, &stream, expected);
	TEST_ASSERT(!memcmp(expected, arg.measurement, HASH_SIZE),
		    "The measurement is not what it should be");
	memcpy(measurement, arg.measurement, HASH_SIZE);
	free(stream.data);
}

/*
 * A VM that isn't run
 */
struct bare {
	unsigned int bit;
	unsigned int nr_vcpus;
	unsigned int ids[MAX_VCPUS];
	uint32_t irqchip_mode;
	unsigned int pins;
	bool pit;
};

static void bare_defaults(struct bare *bare)
{
	*bare = (struct bare) {
		.bit = kvm_check_cap(KVM_CAP_X86_SHARED_GPA_BIT),
		.nr_vcpus = 2,
		.ids = { 0, 1, 2, 3 },
		.irqchip_mode = KVM_MEASUREMENT_IRQCHIP_KERNEL,
	};
}

static void add_page(struct launch *l, uint64_t gpa, const void *content)
{
	struct page *page;

	l->pages = realloc(l->pages, (l->nr_pages + 1) * sizeof(*l->pages));
	page = &l->pages[l->nr_pages++];
	page->gpa = gpa;
	memcpy(page->content, content, PAGE_SIZE);
}

static void write_content(struct launch *l, unsigned long page, const uint64_t *content)
{
	TEST_ASSERT(pwrite(l->fd, content, PAGE_SIZE, page * PAGE_SIZE) == PAGE_SIZE,
		    __KVM_SYSCALL_ERROR("pwrite()", -1));
	add_page(l, BARE_GPA + page * PAGE_SIZE, content);
}

static void write_page(struct launch *l, unsigned long page, uint64_t value)
{
	uint64_t content[PAGE_SIZE / 8];
	int i;

	for (i = 0; i < ARRAY_SIZE(content); i++)
		content[i] = value + i;
	write_content(l, page, content);
}

static void add_range(struct launch *l, uint64_t gpa, uint64_t size, uint32_t flags)
{
	l->ranges[l->nr_ranges++] = (struct kvm_measurement_range) { gpa, size, flags };
}

/* Without memslots, if that's what the test is about */
static void bare_create(struct launch *l, const struct bare *bare, bool memslots)
{
	unsigned int i;

	memset(l, 0, sizeof(*l));
	l->vm = vm_create_barebones_type(KVM_X86_PROTECTED_VM);
	vm_enable_shared_bit(l->vm, bare->bit);
	if (bare->irqchip_mode == KVM_MEASUREMENT_IRQCHIP_SPLIT)
		vm_enable_cap(l->vm, KVM_CAP_SPLIT_IRQCHIP, bare->pins);
	else
		vm_create_irqchip(l->vm);
	if (bare->pit)
		vm_ioctl(l->vm, KVM_CREATE_PIT2, &(struct kvm_pit_config) {});

	l->rec = (struct kvm_measurement_vm) {
		.shared_bit = BIT_ULL(bare->bit),
		.flags = KVM_MEASUREMENT_VM_PLATFORM_INFO |
			 (bare->pit ? KVM_MEASUREMENT_VM_PIT : 0),
		.nr_vcpus = bare->nr_vcpus,
		.irqchip_mode = bare->irqchip_mode,
		.nr_ioapic_pins = bare->pins,
	};
	for (i = 0; i < bare->nr_vcpus; i++) {
		l->vcpus[i] = __vm_vcpu_add(l->vm, bare->ids[i]);
		vcpu_init_cpuid(l->vcpus[i], kvm_get_supported_cpuid());
		l->vcpu_recs[i] = (struct kvm_measurement_vcpu) {
			.index = i,
			.id = bare->ids[i],
			.mp_state = i ? KVM_MP_STATE_UNINITIALIZED : KVM_MP_STATE_RUNNABLE,
		};
	}

	l->fd = new_sealed_memfd(BARE_SIZE);
	l->shared = mmap(NULL, 2 * BARE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(l->shared != MAP_FAILED, __KVM_SYSCALL_ERROR("mmap()", -1));
	if (!memslots)
		return;
	TEST_ASSERT(!set_slot(l->vm, BARE_SLOT, KVM_MEM_GUEST_MEMFD, BARE_GPA, BARE_SIZE,
			      l->shared, l->fd, 0) &&
		    !set_slot(l->vm, BARE_SHARED, 0, BARE_GPA + BARE_SIZE, BARE_SIZE,
			      l->shared + BARE_SIZE, -1, 0), "Can't create memslots");
	add_range(l, BARE_GPA, BARE_SIZE, KVM_MEASUREMENT_RANGE_PRIVATE);
	add_range(l, BARE_GPA + BARE_SIZE, BARE_SIZE, 0);
}

static void bare_free(struct launch *l)
{
	kvm_vm_release(l->vm);
	munmap(l->shared, 2 * BARE_SIZE);
	close(l->fd);
	free(l->pages);
}

/* As it is without any change: two pages with content */
static void bare_load(struct launch *l)
{
	write_page(l, 1, 0x1111);
	write_page(l, 3, 0x3333);
}

/*
 * Changes, each of one thing.  They return false if the host can't do that.
 */
static bool change_nothing(struct launch *l)
{
	return true;
}

static bool change_rip(struct launch *l)
{
	struct kvm_regs regs;

	vcpu_regs_get(l->vcpus[0], &regs);
	regs.rip = 0x1234;
	vcpu_regs_set(l->vcpus[0], &regs);
	return true;
}

static bool change_cr3(struct launch *l)
{
	struct kvm_sregs sregs;

	vcpu_sregs_get(l->vcpus[0], &sregs);
	sregs.cr3 = 0x1000;
	vcpu_sregs_set(l->vcpus[0], &sregs);
	return true;
}

static bool change_segment(struct launch *l)
{
	struct kvm_sregs sregs;

	vcpu_sregs_get(l->vcpus[0], &sregs);
	sregs.ds.base = 0x1000;
	vcpu_sregs_set(l->vcpus[0], &sregs);
	return true;
}

/* The first vCPU has PDPTRs then, the second one hasn't. */
static bool change_pdptrs(struct launch *l)
{
	struct kvm_sregs2 sregs;

	vcpu_ioctl(l->vcpus[0], KVM_GET_SREGS2, &sregs);
	sregs.cr0 |= X86_CR0_PE | X86_CR0_PG;
	sregs.cr4 |= X86_CR4_PAE;
	sregs.flags |= KVM_SREGS2_FLAGS_PDPTRS_VALID;
	sregs.pdptrs[1] = 0x3001;
	vcpu_ioctl(l->vcpus[0], KVM_SET_SREGS2, &sregs);
	vcpu_ioctl(l->vcpus[0], KVM_GET_SREGS2, &sregs);
	TEST_ASSERT_EQ(sregs.pdptrs[1], 0x3001);
	return true;
}

static bool change_debugregs(struct launch *l)
{
	struct kvm_debugregs debugregs;

	vcpu_debugregs_get(l->vcpus[0], &debugregs);
	debugregs.db[2] = 0x1000;
	vcpu_debugregs_set(l->vcpus[0], &debugregs);
	return true;
}

static bool change_xsave(struct launch *l)
{
	int size = vm_check_cap(l->vm, KVM_CAP_XSAVE2);
	uint8_t *xsave = calloc(1, size);

	vcpu_xsave2_get(l->vcpus[0], (void *)xsave);
	/* XMM3, and that it's in use */
	xsave[160 + 3 * 16] = 0x33;
	xsave[512] |= 2;
	vcpu_xsave_set(l->vcpus[0], (void *)xsave);
	free(xsave);
	return true;
}

static bool change_xcr0(struct launch *l)
{
	struct kvm_xcrs xcrs = { .nr_xcrs = 1, .xcrs = { { .value = 3 } } };

	return !__vcpu_ioctl(l->vcpus[0], KVM_SET_XCRS, &xcrs);
}

static bool change_msr(struct launch *l)
{
	vcpu_set_msr(l->vcpus[0], MSR_LSTAR, 0x1000);
	return true;
}

static bool change_mtrr(struct launch *l)
{
	vcpu_set_msr(l->vcpus[0], MTRR_DEF_TYPE, 0xc06);
	return true;
}

static bool change_pv_features(struct launch *l)
{
	vcpu_enable_cap(l->vcpus[1], KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1);
	l->vcpu_recs[1].flags = KVM_MEASUREMENT_VCPU_PV_ENFORCED;
	l->vcpu_recs[1].pv_features = vcpu_get_cpuid_entry(l->vcpus[1], KVM_CPUID_FEATURES)->eax;
	return true;
}

static bool change_cpuid(struct launch *l)
{
	vcpu_get_cpuid_entry(l->vcpus[0], 1)->eax ^= 1;
	vcpu_set_cpuid(l->vcpus[0]);
	return true;
}

static bool change_xsave_size(struct launch *l)
{
	struct kvm_cpuid_entry2 *e;

	if (!kvm_cpu_has(X86_FEATURE_XSAVE))
		return false;
	e = __vcpu_get_cpuid_entry(l->vcpus[0], 0xd, 1);
	e->eax &= ~XSAVE_COMPACTED;
	e->ebx = 0x1234;
	vcpu_set_cpuid(l->vcpus[0]);
	return true;
}

static bool change_ucode_rev(struct launch *l)
{
	return _vcpu_set_msr(l->vcpus[0], MSR_IA32_UCODE_REV, 0x1234567800000000) == 1;
}

static bool change_second_cpuid(struct launch *l)
{
	vcpu_get_cpuid_entry(l->vcpus[1], 1)->eax ^= 1;
	vcpu_set_cpuid(l->vcpus[1]);
	return true;
}

static bool change_second_msr(struct launch *l)
{
	vcpu_set_msr(l->vcpus[1], MSR_IA32_CR_PAT, 0x0606060606060606);
	return true;
}

static bool change_tsc_khz(struct launch *l)
{
	unsigned long khz = __vcpu_ioctl(l->vcpus[0], KVM_GET_TSC_KHZ, NULL) / 2;

	if (!kvm_has_cap(KVM_CAP_TSC_CONTROL) ||
	    __vcpu_ioctl(l->vcpus[0], KVM_SET_TSC_KHZ, (void *)khz))
		return false;
	l->vcpu_recs[0].tsc_khz = khz;
	return true;
}

static bool change_quirks(struct launch *l)
{
	if (__vm_enable_cap(l->vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_OUT_7E_INC_RIP))
		return false;
	l->rec.disabled_quirks |= KVM_X86_QUIRK_OUT_7E_INC_RIP;
	return true;
}

static bool change_hypercalls(struct launch *l)
{
	if (__vm_enable_cap(l->vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE)))
		return false;
	l->rec.hypercall_exits = BIT(KVM_HC_MAP_GPA_RANGE);
	return true;
}

static bool change_platform_info(struct launch *l)
{
	if (__vm_enable_cap(l->vm, KVM_CAP_MSR_PLATFORM_INFO, false))
		return false;
	l->rec.flags &= ~KVM_MEASUREMENT_VM_PLATFORM_INFO;
	return true;
}

static bool change_content(struct launch *l)
{
	write_page(l, 4, 0x4444);
	return true;
}

static const struct {
	const char *name;
	bool (*change)(struct launch *l);
} changes[] = {
	{ "nothing", change_nothing },
	{ "RIP", change_rip },
	{ "CR3", change_cr3 },
	{ "a segment", change_segment },
	{ "PDPTRs", change_pdptrs },
	{ "debug registers", change_debugregs },
	{ "XSAVE", change_xsave },
	{ "XCR0", change_xcr0 },
	{ "an MSR", change_msr },
	{ "MTRRs", change_mtrr },
	{ "paravirtual features", change_pv_features },
	{ "CPUID", change_cpuid },
	{ "size of XSAVE's area", change_xsave_size },
	{ "microcode revision", change_ucode_rev },
	{ "CPUID of the second vCPU", change_second_cpuid },
	{ "an MSR of the second vCPU", change_second_msr },
	{ "TSC frequency", change_tsc_khz },
	{ "quirks", change_quirks },
	{ "hypercalls", change_hypercalls },
	{ "platform info", change_platform_info },
	{ "content", change_content },
};

/* Those seen so far, all different */
static uint8_t seen[64][HASH_SIZE];
static unsigned int nr_seen;

static bool is_new(const uint8_t *measurement)
{
	int i;

	for (i = 0; i < nr_seen; i++) {
		if (!memcmp(seen[i], measurement, HASH_SIZE))
			return false;
	}
	memcpy(seen[nr_seen++], measurement, HASH_SIZE);
	return true;
}

TEST(each_change_is_measured)
{
	uint8_t measurement[HASH_SIZE];
	struct launch l;
	struct bare bare;
	unsigned int i;
	bool done;

	bare_defaults(&bare);
	for (i = 0; i < ARRAY_SIZE(changes); i++) {
		bare_create(&l, &bare, true);
		bare_load(&l);
		done = changes[i].change(&l);
		if (done) {
			finalize(&l, 0, measurement);
			EXPECT_TRUE(is_new(measurement)) TH_LOG("%s", changes[i].name);
		} else {
			TH_LOG("Can't be changed: %s", changes[i].name);
		}
		bare_free(&l);
	}
}

/* Does userspace get an MSR of the first vCPU to have another value? */
static bool change_any_bit(struct launch *l, uint32_t msr, uint64_t value)
{
	uint64_t changed;
	bool done = false;
	int bit;

	for (bit = 0; bit < 64 && !done; bit++) {
		done = _vcpu_set_msr(l->vcpus[0], msr, value ^ BIT_ULL(bit)) == 1 &&
		       get_msr(l->vcpus[0], msr, &changed) && changed != value;
	}
	_vcpu_set_msr(l->vcpus[0], msr, value);
	return done;
}

/* All that userspace can set, of a VM without Hyper-V's interface */
TEST(each_msr_is_measured)
{
	static const struct msr_range elsewhere[] = {
		/* in other records: APIC base, EFER, FS and GS base */
		{ 0x1b, 0x1b }, { 0xc0000080, 0xc0000080 }, { 0xc0000100, 0xc0000101 },
		/* by another number: 0xc1 and following */
		{ 0x4c1, 0x4c8 },
		/* not at all: the TSC, SGX's, which is of no use as ENCLS fails, Hyper-V */
		{ 0x10, 0x10 }, { 0x8c, 0x8f }, { 0x40000000, 0x40000118 },
	};
	const struct kvm_msr_list *list = kvm_get_msr_index_list();
	struct launch l;
	struct bare bare;
	uint64_t value;
	uint32_t msr;
	int i;

	bare_defaults(&bare);
	bare_create(&l, &bare, true);
	for (i = 0; i < ARRAY_SIZE(all_msrs); i++) {
		for (msr = all_msrs[i].first; msr <= all_msrs[i].last; msr++) {
			if (is_measured(list, msr, true, true) ||
			    in_ranges(elsewhere, ARRAY_SIZE(elsewhere), msr) ||
			    !get_msr(l.vcpus[0], msr, &value))
				continue;
			EXPECT_FALSE(change_any_bit(&l, msr, value)) TH_LOG("MSR %#x", msr);
		}
	}
	bare_free(&l);
}

static void bare_measure(const struct bare *bare, uint8_t *measurement)
{
	struct launch l;

	bare_create(&l, bare, true);
	bare_load(&l);
	finalize(&l, 0, measurement);
	bare_free(&l);
}

TEST(each_choice_is_measured)
{
	uint8_t measurement[HASH_SIZE];
	struct bare bare;

	bare_defaults(&bare);
	bare_measure(&bare, measurement);
	EXPECT_TRUE(is_new(measurement));

	bare.bit--;
	bare_measure(&bare, measurement);
	EXPECT_TRUE(is_new(measurement)) TH_LOG("shared bit");

	bare_defaults(&bare);
	bare.nr_vcpus = 3;
	bare_measure(&bare, measurement);
	EXPECT_TRUE(is_new(measurement)) TH_LOG("number of vCPUs");

	bare_defaults(&bare);
	bare.ids[1] = 5;
	bare_measure(&bare, measurement);
	EXPECT_TRUE(is_new(measurement)) TH_LOG("APIC ID");

	bare_defaults(&bare);
	bare.irqchip_mode = KVM_MEASUREMENT_IRQCHIP_SPLIT;
	bare.pins = 24;
	bare_measure(&bare, measurement);
	EXPECT_TRUE(is_new(measurement)) TH_LOG("split irqchip");

	bare.pins = 0;
	bare_measure(&bare, measurement);
	EXPECT_TRUE(is_new(measurement)) TH_LOG("IOAPIC's pins");

	bare_defaults(&bare);
	bare.pit = true;
	bare_measure(&bare, measurement);
	EXPECT_TRUE(is_new(measurement)) TH_LOG("PIT");
}

TEST(memory_is_measured)
{
	static const struct {
		const char *name;
		uint64_t at;
		uint64_t size;
		uint32_t flags;
	} layouts[] = {
		{ "as in other tests", BARE_SIZE, BARE_SIZE, 0 },
		{ "smaller", BARE_SIZE, BARE_SIZE - PAGE_SIZE, 0 },
		{ "elsewhere", BARE_SIZE + PAGE_SIZE, BARE_SIZE, 0 },
		{ "read-only", BARE_SIZE, BARE_SIZE, KVM_MEM_READONLY },
	};
	static const unsigned long pages[][2] = { { 1, 3 }, { 1, 4 }, { 2, 3 } };
	static const uint64_t values[][2] = { { 1, 3 }, { 3, 1 }, { 1, 4 } };
	uint8_t measurement[HASH_SIZE];
	struct launch l;
	struct bare bare;
	int i, j;

	bare_defaults(&bare);
	for (i = 0; i < ARRAY_SIZE(layouts); i++) {
		bare_create(&l, &bare, false);
		ASSERT_EQ(0, set_slot(l.vm, BARE_SLOT, KVM_MEM_GUEST_MEMFD, BARE_GPA, BARE_SIZE,
				      l.shared, l.fd, 0));
		ASSERT_EQ(0, set_slot(l.vm, BARE_SHARED, layouts[i].flags,
				      BARE_GPA + layouts[i].at, layouts[i].size,
				      l.shared + BARE_SIZE, -1, 0));
		add_range(&l, BARE_GPA, BARE_SIZE, KVM_MEASUREMENT_RANGE_PRIVATE);
		add_range(&l, BARE_GPA + layouts[i].at, layouts[i].size,
			  layouts[i].flags ? KVM_MEASUREMENT_RANGE_READONLY : 0);
		finalize(&l, 0, measurement);
		EXPECT_TRUE(is_new(measurement)) TH_LOG("%s", layouts[i].name);
		bare_free(&l);
	}

	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		for (j = 0; j < ARRAY_SIZE(values); j++) {
			bare_create(&l, &bare, true);
			write_page(&l, pages[i][0], values[j][0]);
			write_page(&l, pages[i][1], values[j][1]);
			finalize(&l, 0, measurement);
			EXPECT_TRUE(is_new(measurement)) TH_LOG("content %d at %d", j, i);
			bare_free(&l);
		}
	}
}

/* How it came to be, or what it's called, makes no difference. */
TEST(the_same_is_measured_the_same)
{
	uint8_t first[HASH_SIZE], measurement[HASH_SIZE];
	struct launch l;
	struct bare bare;

	bare_defaults(&bare);
	bare_create(&l, &bare, true);
	bare_load(&l);
	finalize(&l, 0, first);
	bare_free(&l);

	/* Allocated, but zero; in another order, and not at the first try */
	bare_create(&l, &bare, true);
	ASSERT_EQ(0, fallocate(l.fd, 0, 5 * PAGE_SIZE, 3 * PAGE_SIZE));
	ASSERT_EQ(PAGE_SIZE, pwrite(l.fd, l.shared, PAGE_SIZE, 9 * PAGE_SIZE));
	write_page(&l, 3, 0x3333);
	ASSERT_EQ(0, fallocate(l.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 3 * PAGE_SIZE,
			       PAGE_SIZE));
	l.nr_pages = 0;
	bare_load(&l);
	finalize(&l, 0, measurement);
	EXPECT_EQ(0, memcmp(first, measurement, HASH_SIZE));
	bare_free(&l);

	/* By other memslots, at other places in the file; what isn't in any doesn't count */
	bare_create(&l, &bare, false);
	ASSERT_EQ(0, set_slot(l.vm, 7, KVM_MEM_GUEST_MEMFD, BARE_GPA, 2 * PAGE_SIZE, l.shared,
			      l.fd, 14 * PAGE_SIZE));
	close(l.fd);
	l.fd = new_sealed_memfd(2 * BARE_SIZE);
	ASSERT_EQ(0, delete_slot(l.vm, 7));
	ASSERT_EQ(0, set_slot(l.vm, 7, KVM_MEM_GUEST_MEMFD, BARE_GPA, 2 * PAGE_SIZE, l.shared,
			      l.fd, 20 * PAGE_SIZE));
	ASSERT_EQ(0, set_slot(l.vm, 5, KVM_MEM_GUEST_MEMFD, BARE_GPA + 2 * PAGE_SIZE,
			      BARE_SIZE - 2 * PAGE_SIZE, l.shared + 2 * PAGE_SIZE, l.fd,
			      4 * PAGE_SIZE));
	ASSERT_EQ(0, set_slot(l.vm, 3, 0, BARE_GPA + BARE_SIZE, PAGE_SIZE,
			      l.shared + BARE_SIZE, -1, 0));
	ASSERT_EQ(0, set_slot(l.vm, 9, 0, BARE_GPA + BARE_SIZE + PAGE_SIZE,
			      BARE_SIZE - PAGE_SIZE, l.shared + BARE_SIZE + PAGE_SIZE, -1, 0));
	add_range(&l, BARE_GPA, BARE_SIZE, KVM_MEASUREMENT_RANGE_PRIVATE);
	add_range(&l, BARE_GPA + BARE_SIZE, BARE_SIZE, 0);
	write_page(&l, 21, 0x1111);
	write_page(&l, 5, 0x3333);
	write_page(&l, 0, 0x9999);
	l.nr_pages = 2;
	l.pages[0].gpa = BARE_GPA + PAGE_SIZE;
	l.pages[1].gpa = BARE_GPA + 3 * PAGE_SIZE;
	finalize(&l, 0, measurement);
	EXPECT_EQ(0, memcmp(first, measurement, HASH_SIZE));
	bare_free(&l);
}

/* KVM hashes four pages at once, where it can; what is left it hashes one by one. */
TEST(pages_are_hashed)
{
	static const unsigned int nrs[] = { 4, 7, 16 };
	uint64_t content[PAGE_SIZE / 8], value = 1;
	uint8_t measurement[HASH_SIZE];
	unsigned int i, j, page;
	struct launch l;
	struct bare bare;

	TH_LOG("The host has %sAVX2", __builtin_cpu_supports("avx2") ? "" : "no ");
	bare_defaults(&bare);
	bare.nr_vcpus = 1;
	for (i = 0; i < ARRAY_SIZE(nrs); i++) {
		bare_create(&l, &bare, true);
		for (page = 0; page < nrs[i]; page++) {
			/* As good as random */
			for (j = 0; j < ARRAY_SIZE(content); j++) {
				value = value * 6364136223846793005 + 1442695040888963407;
				content[j] = value ^ value >> 32;
			}
			/* Some of them with zeroes in between */
			write_content(&l, nrs[i] == 7 ? 2 * page : page, content);
		}
		finalize(&l, 0, measurement);
		EXPECT_TRUE(is_new(measurement)) TH_LOG("%u pages", nrs[i]);
		bare_free(&l);
	}
}

/* One byte makes the difference between no content and some, wherever it is. */
TEST(any_byte_is_content)
{
	uint64_t content[PAGE_SIZE / 8];
	uint8_t measurement[HASH_SIZE];
	unsigned int word, at;
	struct launch l;
	struct bare bare;

	bare_defaults(&bare);
	bare.nr_vcpus = 1;
	bare_create(&l, &bare, true);
	for (word = 0; word < 16; word++) {
		/* Of the first and the last words of a page */
		at = word * 8 + word % 8 + (word < 8 ? 0 : PAGE_SIZE - 128);
		memset(content, 0, PAGE_SIZE);
		((uint8_t *)content)[at] = 1;
		write_content(&l, word, content);
	}
	finalize(&l, 0, measurement);
	EXPECT_TRUE(is_new(measurement));
	bare_free(&l);
}

TEST(what_cannot_be_measured_is_refused)
{
	struct kvm_x86_measurement measured;
	struct kvm_x86_finalize_vm arg = {};
	uint8_t measurement[HASH_SIZE];
	struct launch l;
	struct bare bare;

	bare_defaults(&bare);
	bare_create(&l, &bare, true);
	bare_load(&l);
	EXPECT_REFUSED(EINVAL, __vm_ioctl(l.vm, KVM_X86_GET_MEASUREMENT, &measured));

	/* A log that there's no room for */
	arg.log = (uintptr_t)log_buffer;
	EXPECT_REFUSED(E2BIG, __vm_ioctl(l.vm, KVM_X86_FINALIZE_VM, &arg));
	EXPECT_LT(sizeof(struct kvm_lapic_state), arg.log_size);
	arg.log_size--;
	EXPECT_REFUSED(E2BIG, __vm_ioctl(l.vm, KVM_X86_FINALIZE_VM, &arg));
	arg.log = 0;
	EXPECT_REFUSED(EINVAL, __vm_ioctl(l.vm, KVM_X86_FINALIZE_VM, &arg));
	arg.log = 4096;
	EXPECT_REFUSED(EFAULT, __vm_ioctl(l.vm, KVM_X86_FINALIZE_VM, &arg));

	arg = (struct kvm_x86_finalize_vm) { .padding = 1 };
	EXPECT_REFUSED(EINVAL, __vm_ioctl(l.vm, KVM_X86_FINALIZE_VM, &arg));

	/* None of that has left anything. */
	EXPECT_REFUSED(EINVAL, __vm_ioctl(l.vm, KVM_X86_GET_MEASUREMENT, &measured));
	finalize(&l, 0, measurement);
	ASSERT_EQ(0, __vm_ioctl(l.vm, KVM_X86_GET_MEASUREMENT, &measured));
	EXPECT_EQ(0, memcmp(measurement, measured.measurement, HASH_SIZE));
	EXPECT_EQ(1, measured.version);
	EXPECT_EQ(0, measured.flags);
	bare_free(&l);
}

/*
 * Keys
 */
#define NR_KEY_MSRS	6

static const char payload[32] = "the host's secret, of 32 bytes..";
static const char other_payload[32] = "another secret of the host......";

static int32_t add_key(const char *type, const char *desc, const void *data, size_t size)
{
	int32_t key = syscall(SYS_add_key, type, desc, data, size, KEY_SPEC_PROCESS_KEYRING);

	TEST_ASSERT(key > 0, "Can't add a key: %m");
	return key;
}

static bool has_keys(void)
{
	return syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_PROCESS_KEYRING, 1) > 0;
}

static int32_t add_logon_key(const void *data, size_t size)
{
	return add_key("logon", "guestseal:test", data, size);
}

/* What the guest reads in 6 MSRs; false if it can't read any. */
static bool guest_reads(struct pvm *p, uint32_t msr, uint8_t *data)
{
	uint64_t values[NR_KEY_MSRS];
	int i, faults = 0;

	for (i = 0; i < NR_KEY_MSRS; i++) {
		values[i] = pvm_call(p, guest_do_rdmsr, msr + i, 0, 0, 0);
		faults += values[i] == -1ul;
	}
	TEST_ASSERT(!faults || faults == NR_KEY_MSRS, "%d of %d faults", faults, NR_KEY_MSRS);
	memcpy(data, values, sizeof(values));
	return !faults;
}

struct secrets {
	uint8_t measurement[HASH_SIZE];
	uint8_t key[HASH_SIZE];
	bool has_key;
};

/* Start a guest; what does it read? */
static void launch_guest(struct pvm *p, int32_t key, uint64_t content, struct secrets *secrets)
{
	struct kvm_x86_finalize_vm arg = { .key = key };
	struct kvm_x86_measurement measured;
	uint64_t page[PAGE_SIZE / sizeof(uint64_t)] = { content };
	uint8_t read[HASH_SIZE];

	pvm_create(p, KVM_X86_PROTECTED_VM, 2);
	pvm_clear_pointers(p);
	pvm_load(p);
	if (content)
		TEST_ASSERT(pwrite(p->fd, page, PAGE_SIZE, 0) == PAGE_SIZE,
			    __KVM_SYSCALL_ERROR("pwrite()", -1));
	TEST_ASSERT(!pvm_finalize(p, &arg), __KVM_IOCTL_ERROR("KVM_X86_FINALIZE_VM", -1));
	vcpu_run(p->vcpu);
	TEST_ASSERT(pvm_is_done(p), "The guest is not there");

	memcpy(secrets->measurement, arg.measurement, HASH_SIZE);
	TEST_ASSERT(guest_reads(p, MSR_KVM_MEASUREMENT0, read) &&
		    !memcmp(read, arg.measurement, HASH_SIZE),
		    "The guest finds another measurement");
	secrets->has_key = guest_reads(p, MSR_KVM_SEALING_KEY0, secrets->key);

	vm_ioctl(p->vm, KVM_X86_GET_MEASUREMENT, &measured);
	TEST_ASSERT(!memcmp(measured.measurement, arg.measurement, HASH_SIZE) &&
		    measured.flags == (secrets->has_key ? KVM_X86_MEASUREMENT_HAS_KEY : 0),
		    "KVM_X86_GET_MEASUREMENT is wrong");
}

TEST(guest_has_its_measurement)
{
	struct secrets first, secrets;
	struct pvm pvm;

	launch_guest(&pvm, 0, 0, &first);
	EXPECT_FALSE(first.has_key);
	/* They can't be written, and there are no more of them. */
	EXPECT_EQ(GP_VECTOR, pvm_call(&pvm, guest_do_wrmsr, MSR_KVM_MEASUREMENT0, 0, 0, 0));
	EXPECT_EQ(GP_VECTOR, pvm_call(&pvm, guest_do_wrmsr, MSR_KVM_SEALING_KEY0, 0, 0, 0));
	EXPECT_EQ(-1ul, pvm_call(&pvm, guest_do_rdmsr, MSR_KVM_MEASUREMENT5 + 1, 0, 0, 0));
	pvm_free(&pvm);

	launch_guest(&pvm, 0, 0, &secrets);
	pvm_free(&pvm);
	EXPECT_EQ(0, memcmp(first.measurement, secrets.measurement, HASH_SIZE));
	launch_guest(&pvm, 0, 1, &secrets);
	pvm_free(&pvm);
	EXPECT_NE(0, memcmp(first.measurement, secrets.measurement, HASH_SIZE));
}

TEST(guest_has_its_key)
{
	struct secrets first, secrets;
	uint8_t expected[HASH_SIZE];
	struct pvm pvm;
	int32_t key;

	if (!has_keys())
		SKIP(return, "The kernel has no keys");

	key = add_logon_key(payload, sizeof(payload));
	launch_guest(&pvm, key, 0, &first);
	pvm_free(&pvm);
	EXPECT_TRUE(first.has_key);
	expected_key(payload, sizeof(payload), "logon", first.measurement, expected);
	EXPECT_EQ(0, memcmp(expected, first.key, HASH_SIZE));

	/* The same guest */
	launch_guest(&pvm, key, 0, &secrets);
	pvm_free(&pvm);
	EXPECT_EQ(0, memcmp(&first, &secrets, sizeof(first)));

	/* Another one */
	launch_guest(&pvm, key, 1, &secrets);
	pvm_free(&pvm);
	EXPECT_TRUE(secrets.has_key);
	EXPECT_NE(0, memcmp(first.measurement, secrets.measurement, HASH_SIZE));
	EXPECT_NE(0, memcmp(first.key, secrets.key, HASH_SIZE));

	/* Another key of the host's */
	key = add_logon_key(other_payload, sizeof(other_payload));
	launch_guest(&pvm, key, 0, &secrets);
	pvm_free(&pvm);
	EXPECT_EQ(0, memcmp(first.measurement, secrets.measurement, HASH_SIZE));
	EXPECT_NE(0, memcmp(first.key, secrets.key, HASH_SIZE));

	/* None */
	launch_guest(&pvm, 0, 0, &secrets);
	EXPECT_EQ(0, memcmp(first.measurement, secrets.measurement, HASH_SIZE));
	EXPECT_FALSE(secrets.has_key);

	pvm_free(&pvm);
}

/*
 * The other vCPU reads the key in real mode, again and again, until that is #GP.
 * The library uses neither of these two pages.
 */
#define IVT_GPA		0x0000
#define KEY_GPA		0x1000
#define KEY_PORT	0x1d
#define NO_KEY_PORT	0x1e

extern const char key_code[], key_handler[], key_code_end[];

asm(".pushsection .rodata\n"
	".code16\n"
	"key_code:\n"
	"	mov	$0x2000, %sp\n"
	"1:	mov	$" __stringify(MSR_KVM_SEALING_KEY0) ", %ecx\n"
	"	rdmsr\n"
	"	out	%eax, $" __stringify(KEY_PORT) "\n"
	"	jmp	1b\n"
	"key_handler:\n"
	"	out	%eax, $" __stringify(NO_KEY_PORT) "\n"
	"	jmp	key_handler\n"
	"key_code_end:\n"
	".code64\n"
	".popsection\n");

TEST(guest_forgets_its_key)
{
	struct kvm_x86_finalize_vm arg = {};
	struct kvm_x86_measurement measured;
	uint8_t key[HASH_SIZE];
	struct pvm p;
	uint32_t msr;

	if (!has_keys())
		SKIP(return, "The kernel has no keys");

	pvm_create(&p, KVM_X86_PROTECTED_VM, 2);
	memcpy(addr_gpa2hva(p.vm, KEY_GPA), key_code, key_code_end - key_code);
	*(uint32_t *)addr_gpa2hva(p.vm, IVT_GPA + 4 * GP_VECTOR) =
		KEY_GPA + key_handler - key_code;
	pvm_load(&p);
	arg.key = add_logon_key(payload, sizeof(payload));
	ASSERT_EQ(0, pvm_finalize(&p, &arg));
	vcpu_run(p.vcpu);
	ASSERT_TRUE(pvm_is_done(&p));

	ASSERT_TRUE(guest_reads(&p, MSR_KVM_SEALING_KEY0, key));
	pvm_call(&p, guest_reset_other, KEY_GPA, 0, 0, 0);
	ASSERT_EQ(KEY_PORT, run_until_io(p.vcpus[1]));
	EXPECT_EQ(0, memcmp(key, io_data(p.vcpus[1]), sizeof(uint32_t)));

	/* It's by writing 0 to the first one only. */
	EXPECT_EQ(GP_VECTOR, pvm_call(&p, guest_do_wrmsr, MSR_KVM_SEALING_KEY0, 1, 0, 0));
	EXPECT_EQ(GP_VECTOR, pvm_call(&p, guest_do_wrmsr, MSR_KVM_SEALING_KEY0, -1ul, 0, 0));
	for (msr = MSR_KVM_SEALING_KEY0 + 1; msr <= MSR_KVM_SEALING_KEY5; msr++)
		EXPECT_EQ(GP_VECTOR, pvm_call(&p, guest_do_wrmsr, msr, 0, 0, 0));
	ASSERT_EQ(KEY_PORT, run_until_io(p.vcpus[1]));
	EXPECT_EQ(0, memcmp(key, io_data(p.vcpus[1]), sizeof(uint32_t)));

	EXPECT_EQ(0, pvm_call(&p, guest_do_wrmsr, MSR_KVM_SEALING_KEY0, 0, 0, 0));
	EXPECT_FALSE(guest_reads(&p, MSR_KVM_SEALING_KEY0, key));
	EXPECT_EQ(NO_KEY_PORT, run_until_io(p.vcpus[1]));
	/* As if there was none; all else is as before. */
	EXPECT_EQ(GP_VECTOR, pvm_call(&p, guest_do_wrmsr, MSR_KVM_SEALING_KEY0, 0, 0, 0));
	EXPECT_TRUE(guest_reads(&p, MSR_KVM_MEASUREMENT0, key));
	EXPECT_EQ(0, memcmp(key, arg.measurement, HASH_SIZE));
	vm_ioctl(p.vm, KVM_X86_GET_MEASUREMENT, &measured);
	EXPECT_EQ(KVM_X86_MEASUREMENT_HAS_KEY, measured.flags);
	pvm_free(&p);
}

/* That the VM isn't final after a failure shows in that it can become final. */
TEST(key_is_refused)
{
	struct kvm_x86_finalize_vm arg = {};
	uint8_t measurement[HASH_SIZE];
	struct launch l;
	struct bare bare;

	if (!has_keys())
		SKIP(return, "The kernel has no keys");

	bare_defaults(&bare);
	bare_create(&l, &bare, true);
	bare_load(&l);

	/* A serial that isn't one, and one of a key that doesn't exist */
	arg.key = KEY_SPEC_PROCESS_KEYRING;
	EXPECT_REFUSED(EINVAL, __vm_ioctl(l.vm, KVM_X86_FINALIZE_VM, &arg));
	arg.key = add_logon_key(payload, sizeof(payload));
	ASSERT_EQ(0, syscall(SYS_keyctl, KEYCTL_UNLINK, arg.key, KEY_SPEC_PROCESS_KEYRING));
	ASSERT_EQ(0, syscall(SYS_keyctl, KEYCTL_CLEAR, KEY_SPEC_PROCESS_KEYRING));
	arg.key = INT32_MAX;
	EXPECT_REFUSED(ENOKEY, __vm_ioctl(l.vm, KVM_X86_FINALIZE_VM, &arg));

	/* What userspace can read, what isn't a key, and what is too short */
	arg.key = add_key("user", "test", payload, sizeof(payload));
	EXPECT_REFUSED(EKEYREJECTED, __vm_ioctl(l.vm, KVM_X86_FINALIZE_VM, &arg));
	arg.key = add_key("keyring", "test", NULL, 0);
	EXPECT_REFUSED(EKEYREJECTED, __vm_ioctl(l.vm, KVM_X86_FINALIZE_VM, &arg));
	arg.key = add_logon_key(payload, sizeof(payload) - 1);
	EXPECT_REFUSED(EKEYREJECTED, __vm_ioctl(l.vm, KVM_X86_FINALIZE_VM, &arg));

	/* What the caller may not use, and what nobody may any more */
	arg.key = add_logon_key(payload, sizeof(payload));
	ASSERT_EQ(0, syscall(SYS_keyctl, KEYCTL_SETPERM, arg.key, 0x23230000));
	EXPECT_REFUSED(EACCES, __vm_ioctl(l.vm, KVM_X86_FINALIZE_VM, &arg));
	ASSERT_EQ(0, syscall(SYS_keyctl, KEYCTL_SETPERM, arg.key, 0x3f3f0000));
	ASSERT_EQ(0, syscall(SYS_keyctl, KEYCTL_REVOKE, arg.key));
	EXPECT_REFUSED(EKEYREVOKED, __vm_ioctl(l.vm, KVM_X86_FINALIZE_VM, &arg));

	finalize(&l, 0, measurement);
	bare_free(&l);
}

/* One that nobody on the host has ever seen: the payload is random. */
TEST(encrypted_key)
{
	static const char make[] = "new default user:guestseal-master 32";
	struct secrets first, second;
	struct pvm pvm;
	int32_t key;

	if (!has_keys())
		SKIP(return, "The kernel has no keys");

	add_key("user", "guestseal-master", payload, sizeof(payload));
	key = syscall(SYS_add_key, "encrypted", "guestseal-test", make, strlen(make),
		      KEY_SPEC_PROCESS_KEYRING);
	if (key < 0 && errno == ENODEV)
		SKIP(return, "Encrypted keys are not supported");
	ASSERT_LT(0, key) TH_LOG("%m");

	launch_guest(&pvm, key, 0, &first);
	pvm_free(&pvm);
	launch_guest(&pvm, key, 0, &second);
	pvm_free(&pvm);
	EXPECT_TRUE(first.has_key);
	EXPECT_EQ(0, memcmp(&first, &second, sizeof(first)));
}

/* An ordinary guest has none of it, nor has the host. */
TEST(others_have_no_key)
{
	struct kvm_x86_measurement measured;
	struct pvm pvm;
	uint64_t value;

	pvm_create(&pvm, KVM_X86_DEFAULT_VM, 2);
	pvm_launch(&pvm);
	EXPECT_EQ(-1ul, pvm_call(&pvm, guest_do_rdmsr, MSR_KVM_MEASUREMENT0, 0, 0, 0));
	EXPECT_EQ(-1ul, pvm_call(&pvm, guest_do_rdmsr, MSR_KVM_SEALING_KEY5, 0, 0, 0));
	EXPECT_FALSE(get_msr(pvm.vcpu, MSR_KVM_MEASUREMENT0, &value));
	EXPECT_FALSE(get_msr(pvm.vcpu, MSR_KVM_SEALING_KEY0, &value));
	EXPECT_REFUSED(EINVAL, __vm_ioctl(pvm.vm, KVM_X86_GET_MEASUREMENT, &measured));
	pvm_free(&pvm);
}

static bool trace_has(const char *text)
{
	bool found = false;
	char line[512];
	FILE *file;

	file = trace_open();
	while (fgets(line, sizeof(line), file))
		found |= !!strstr(line, text);
	fclose(file);
	return found;
}

TEST(key_is_not_traced)
{
	static const char * const events[] = { "kvm/kvm_msr", "kvm/kvm_userspace_exit" };
	struct secrets secrets;
	uint64_t value;
	struct pvm pvm;
	char text[32];
	int32_t key;

	if (!has_keys())
		SKIP(return, "The kernel has no keys");

	key = add_logon_key(payload, sizeof(payload));
	launch_guest(&pvm, key, 0, &secrets);
	if (!trace_start(events, ARRAY_SIZE(events))) {
		trace_stop();
		pvm_free(&pvm);
		SKIP(return, "There's no tracefs, or no such event");
	}
	trace_this_thread(events, ARRAY_SIZE(events));
	value = pvm_call(&pvm, guest_do_rdmsr, MSR_KVM_SEALING_KEY0, 0, 0, 0);
	EXPECT_EQ(0, memcmp(secrets.key, &value, sizeof(value)));
	snprintf(text, sizeof(text), "0x%lx", value);
	EXPECT_FALSE(trace_has(text));
	EXPECT_FALSE(trace_has("msr_read"));
	/* It is traced how that ends. */
	EXPECT_TRUE(trace_has("KVM_EXIT_IO"));
	trace_stop();
	pvm_free(&pvm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(has_vm_type(KVM_X86_PROTECTED_VM));

	log_buffer = malloc(LOG_SIZE);
	TEST_ASSERT(log_buffer, "Out of memory");
	return test_harness_run(argc, argv);
}
