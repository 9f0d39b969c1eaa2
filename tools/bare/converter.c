// SPDX-License-Identifier: GPL-2.0-only
/*
 * A guest without an operating system, which accesses 1 MiB of RAM at 64 MiB as
 * it is told on its serial port, and nothing else meanwhile, so that there is no
 * conversion but for that.
 *
 * Says "hello", and then repeats each line that it reads, with in decimal:
 *	cpuid				BIT NESTED ABOVE: the shared GPA bit, or 0; VMX or SVM?
 *					May firmware use addresses with the bit set?
 *	read, write			ZERO KEPT: with the shared GPA bit clear
 *	read shared, write shared	the same with the bit set
 *	write stripes			the same of each second page, with the bit clear
 *	ask private, ask shared		RESULT: of one hypercall
 *	ask stripes			RESULT: of the last hypercall, one for each second page
 *	flip, ask flip			ROUNDS: to private and to shared for ever, by accesses or
 *					by requests, until the next line, which is lost
 *	small, large			1 MiB is what it accesses from now on, or 384 MiB
 *	ap				STARTED: another CPU is reset, and started to make a
 *					request like "ask private"; how often so far
 *	result				RESULT: of that, when it is done
 *	bar				SLOT: of a PCI device with a large BAR (ivshmem), which
 *					is put where only the shared GPA bit is set
 *	smm, ask smm			WAS IS: the first word of a page that only SMM sees,
 *					and after it was written to there; with "ask", it
 *					is asked to be private before. The last command.
 *
 * ZERO pages were zero before, KEPT had what was written to them with the bit as it
 * is now.
 *
 * QEMU starts it by its PVH entry, in 32-bit mode; PAE is enough for the bit.
 */
#include <stdbool.h>
#include <stdint.h>

#define PAGE 4096
#define AREA 0x4000000
#define PAGES_SMALL 256
#define PAGES_LARGE (384 << 8)
/* Where all of the first GiB is seen again, with the bit set. */
#define SHARED_ALIAS 0x80000000

#define KVM_CPUID_SIGNATURE 0x40000000
#define KVM_CPUID_SHARED_GPA_BIT 0x40000002
#define KVM_HC_MAP_GPA_RANGE 12
#define KVM_MAP_GPA_RANGE_ENCRYPTED (1 << 4)

#define PTE_PRESENT 0x1
#define PTE_WRITABLE 0x2
#define PTE_UNCACHED 0x18
#define PTE_LARGE 0x80
#define CR0_PG (1U << 31)
#define CR4_PAE (1 << 5)

#define APIC 0xfee00000
#define APIC_COMMAND 0x300
#define APIC_DESTINATION 0x310
#define APIC_INIT 0x4500
#define APIC_STARTUP 0x4600

/* Where another CPU starts, in real mode */
#define TRAMPOLINE 0x8000

#define SERIAL 0x3f8
#define SERIAL_STATUS (SERIAL + 5)
#define SERIAL_READY 0x01
#define SERIAL_EMPTY 0x20

asm(".pushsection .note.pvh, \"a\", @note\n"
    ".long 4, 8, 18\n" /* XEN_ELFNOTE_PHYS32_ENTRY */
    ".asciz \"Xen\"\n"
    ".long _start, 0\n"
    ".popsection\n"
    ".globl _start\n"
    "_start:\n"
    "mov $stack + 4 * 4096, %esp\n"
    "call run\n");

asm("gdt:\n"
    ".quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff\n"
    "ap_start:\n"
    ".code16\n"
    "mov %cs, %ax\n"
    "mov %ax, %ds\n"
    "lgdtl gdtr - ap_start\n"
    "mov $0x11, %eax\n"
    "mov %eax, %cr0\n"
    "ljmpl $8, $ap_protected\n"
    "gdtr:\n"
    ".word 23\n"
    ".long gdt\n"
    "ap_end:\n"
    ".code32\n"
    "ap_protected:\n"
    "mov $16, %eax\n"
    "mov %eax, %ds\n"
    "mov %eax, %es\n"
    "mov %eax, %ss\n"
    "mov $ap_stack + 4096, %esp\n"
    "call run_ap\n");

static int pages = PAGES_SMALL;

char stack[4 * PAGE] __attribute__((aligned(16)));
char ap_stack[PAGE] __attribute__((aligned(16)));
static volatile int ap_started, ap_result;
static volatile bool ap_done;

static uint64_t directories[4] __attribute__((aligned(32)));
static uint64_t low[512] __attribute__((aligned(PAGE)));
static uint64_t alias[512] __attribute__((aligned(PAGE)));
static uint64_t high[512] __attribute__((aligned(PAGE)));

struct cpuid {
	uint32_t eax, ebx, ecx, edx;
};

static struct cpuid cpuid(uint32_t leaf)
{
	struct cpuid out;

	asm volatile("cpuid"
		     : "=a"(out.eax), "=b"(out.ebx), "=c"(out.ecx), "=d"(out.edx)
		     : "a"(leaf), "c"(0));
	return out;
}

static uint8_t inb(uint16_t port)
{
	uint8_t value;

	asm volatile("inb %1, %0" : "=a"(value) : "d"(port));
	return value;
}

static void outb(uint16_t port, uint8_t value)
{
	asm volatile("outb %0, %1" : : "a"(value), "d"(port) : "memory");
}

static void outl(uint16_t port, uint32_t value)
{
	asm volatile("outl %0, %1" : : "a"(value), "d"(port) : "memory");
}

static void say(const char *text)
{
	for (; *text; text++) {
		while (!(inb(SERIAL_STATUS) & SERIAL_EMPTY))
			;
		outb(SERIAL, *text);
	}
}

static void say_number(int32_t number)
{
	char text[16], *at = text + sizeof(text);
	uint32_t rest = number < 0 ? -number : number;

	*--at = 0;
	do {
		*--at = '0' + rest % 10;
		rest /= 10;
	} while (rest);
	if (number < 0)
		*--at = '-';
	*--at = ' ';
	say(at);
}

/* Not too fast: QEMU has better things to do than to say that there's nothing. */
static void hear(char *line, int size)
{
	char *at = line;

	do {
		while (!(inb(SERIAL_STATUS) & SERIAL_READY))
			for (int i = 0; i < 10000; i++)
				asm volatile("pause");
		*at = inb(SERIAL);
	} while (*at != '\n' && ++at < line + size - 1);
	*at = 0;
}

static bool equal(const char *a, const char *b)
{
	while (*a && *a == *b) {
		a++;
		b++;
	}
	return *a == *b;
}

static uint32_t shared_bit(void)
{
	if (cpuid(KVM_CPUID_SIGNATURE).eax < KVM_CPUID_SHARED_GPA_BIT)
		return 0;
	return cpuid(KVM_CPUID_SHARED_GPA_BIT).eax & 0x3f;
}

static bool has_nested(void)
{
	return cpuid(1).ecx & (1 << 5) || cpuid(0x80000001).ecx & (1 << 2);
}

static bool bars_above(uint32_t bit)
{
	return bit && (cpuid(0x80000008).eax >> 16 & 0xff) != bit;
}

static void enable_paging(uint32_t bit)
{
	uint64_t shared = bit ? 1ULL << bit : 0;
	uint32_t cr0, cr4;

	for (uint64_t i = 0; i < 512; i++) {
		low[i] = i << 21 | PTE_LARGE | PTE_WRITABLE | PTE_PRESENT;
		alias[i] = low[i] | shared;
	}
	high[APIC >> 21 & 511] =
		(APIC & ~0x1fffffU) | PTE_LARGE | PTE_UNCACHED | PTE_WRITABLE | PTE_PRESENT;
	directories[0] = (uintptr_t)low | PTE_PRESENT;
	directories[SHARED_ALIAS >> 30] = (uintptr_t)alias | PTE_PRESENT;
	directories[APIC >> 30] = (uintptr_t)high | PTE_PRESENT;

	asm volatile("mov %%cr4, %0" : "=r"(cr4));
	asm volatile("mov %0, %%cr4" : : "r"(cr4 | CR4_PAE));
	asm volatile("mov %0, %%cr3" : : "r"(directories));
	asm volatile("mov %%cr0, %0" : "=r"(cr0));
	asm volatile("mov %0, %%cr0" : : "r"(cr0 | CR0_PG) : "memory");
}

/* One access to each page, or to each second one. */
static void access(uint32_t base, bool write, int step)
{
	int zero = 0, kept = 0;

	for (int page = 0; page < pages; page += step) {
		volatile uint32_t *at = (uint32_t *)(base + AREA + page * PAGE);
		uint32_t mine = base | (page + 1), value = mine;

		if (write)
			asm volatile("xchg %0, %1" : "+r"(value), "+m"(*at));
		else
			value = *at;
		zero += !value;
		kept += value == mine;
	}
	say_number(zero);
	say_number(kept);
}

static bool is_amd(void)
{
	return cpuid(0).ebx == 0x68747541; /* Auth[enticAMD] */
}

static int32_t hypercall(uint32_t address, int npages, uint32_t attributes)
{
	int32_t result = KVM_HC_MAP_GPA_RANGE;

	if (is_amd())
		asm volatile("vmmcall"
			     : "+a"(result)
			     : "b"(address), "c"(npages), "d"(attributes)
			     : "memory");
	else
		asm volatile("vmcall"
			     : "+a"(result)
			     : "b"(address), "c"(npages), "d"(attributes)
			     : "memory");
	return result;
}

static int32_t ask(uint32_t attributes)
{
	return hypercall(AREA, pages, attributes);
}

__attribute__((noreturn, used)) void run_ap(void)
{
	ap_done = false;
	ap_started++;
	ap_result = ask(KVM_MAP_GPA_RANGE_ENCRYPTED);
	ap_done = true;
	for (;;)
		asm volatile("hlt");
}

extern const char ap_start[], ap_end[];

/* Both are labels, which to the compiler are objects of their own. */
static void copy_code(uint32_t to, const char *begin, const char *end)
{
	volatile char *at = (char *)to;
	uintptr_t size = (uintptr_t)end - (uintptr_t)begin;

	for (uintptr_t i = 0; i < size; i++)
		at[i] = begin[i];
}

static void start_ap(void)
{
	volatile uint32_t *apic = (uint32_t *)APIC;
	int before = ap_started;

	copy_code(TRAMPOLINE, ap_start, ap_end);

	apic[APIC_DESTINATION / 4] = 1 << 24;
	apic[APIC_COMMAND / 4] = APIC_INIT;
	for (int i = 0; i < 100000; i++)
		asm volatile("pause");
	apic[APIC_COMMAND / 4] = APIC_STARTUP | TRAMPOLINE / PAGE;
	while (ap_started == before)
		asm volatile("pause");
	say_number(ap_started);
}

static void ask_stripes(void)
{
	int32_t result = 0;

	for (int page = 0; page < pages && !result; page += 2)
		result = hypercall(AREA + page * PAGE, 1, KVM_MAP_GPA_RANGE_ENCRYPTED);
	say_number(result);
}

static void touch(uint32_t base)
{
	for (int page = 0; page < pages; page++)
		*(volatile uint32_t *)(base + AREA + page * PAGE) = page;
}

static void flip(bool with_ask)
{
	char line[32];
	int rounds = 0;

	for (; !(inb(SERIAL_STATUS) & SERIAL_READY); rounds++) {
		if (with_ask) {
			ask(KVM_MAP_GPA_RANGE_ENCRYPTED);
			ask(0);
		} else {
			touch(0);
			touch(SHARED_ALIAS);
		}
	}
	hear(line, sizeof(line));
	say_number(rounds);
}

#define PCI_ADDRESS 0xcf8
#define PCI_DATA 0xcfc
#define PCI_ENABLE 0x80000000
#define PCI_COMMAND 0x04
#define PCI_COMMAND_MEMORY 0x2
#define PCI_BAR_2 0x18
#define IVSHMEM 0x11101af4
#define I440FX 0x12378086

static uint32_t pci_read(uint32_t slot, uint32_t offset)
{
	uint32_t value;

	outl(PCI_ADDRESS, PCI_ENABLE | slot << 11 | offset);
	asm volatile("inl %1, %0" : "=a"(value) : "d"(PCI_DATA));
	return value;
}

static void pci_write(uint32_t slot, uint32_t offset, uint32_t value)
{
	outl(PCI_ADDRESS, PCI_ENABLE | slot << 11 | offset);
	outl(PCI_DATA, value);
}

static void move_bar(uint32_t bit)
{
	uint32_t slot = 0;

	while (slot < 32 && pci_read(slot, 0) != IVSHMEM)
		slot++;
	say_number(slot);
	if (slot == 32)
		return;
	pci_write(slot, PCI_COMMAND, 0);
	pci_write(slot, PCI_BAR_2, 0);
	pci_write(slot, PCI_BAR_2 + 4, bit ? 1U << (bit - 32) : 0);
	pci_write(slot, PCI_COMMAND, PCI_COMMAND_MEMORY);
}

/*
 * In SMM, firmware has the CPU start here, in real mode. What is at 0xb0000 then
 * has not been used by anybody. There is no way back.
 */
#define SMM_CODE 0xa8000
#define SMRAM_I440FX 0x72
#define SMRAM_Q35 0x9d
#define SMRAM_CLOSED 0x0a
#define SMRAM_OPEN 0x4a
#define SMI_COMMAND 0xb2

asm(".code16\n"
    "smm_begin:\n"
    "movl $0xb0000, %edi\n"
    "movl $1, %ecx\n"
    "movl $0x10, %edx\n" /* KVM_MAP_GPA_RANGE_ENCRYPTED */
    "movl %edi, %ebx\n"
    "movl $12, %eax\n" /* KVM_HC_MAP_GPA_RANGE */
    "smm_hypercall: vmmcall\n"
    "movl (%edi), %ebx\n"
    "movl $7, (%edi)\n"
    "movl $0x3f8, %edx\n"
    "movb $' ', %al\n"
    "outb %al, %dx\n"
    "movb $'0', %al\n"
    "addb %bl, %al\n"
    "outb %al, %dx\n"
    "movb $' ', %al\n"
    "outb %al, %dx\n"
    "movb $'0', %al\n"
    "addb (%edi), %al\n"
    "outb %al, %dx\n"
    "movb $'\\n', %al\n"
    "outb %al, %dx\n"
    "1: hlt\n"
    "jmp 1b\n"
    "smm_end:\n"
    ".code32\n");
extern const char smm_begin[], smm_hypercall[], smm_end[];

static void smm(bool with_ask)
{
	uint32_t offset = pci_read(0, 0) == I440FX ? SMRAM_I440FX : SMRAM_Q35;
	uint16_t port = PCI_DATA + (offset & 3);
	volatile char *at = (char *)SMM_CODE + ((uintptr_t)smm_hypercall - (uintptr_t)smm_begin);

	pci_read(0, offset & ~3);
	outb(port, SMRAM_OPEN);
	copy_code(SMM_CODE, smm_begin, smm_end);
	/* nothing, or vmcall */
	if (!with_ask)
		at[0] = at[1] = at[2] = 0x90;
	else if (!is_amd())
		at[2] = 0xc1;
	outb(port, SMRAM_CLOSED);
	outb(SMI_COMMAND, 0);
	for (;;)
		asm volatile("hlt");
}

__attribute__((noreturn, used)) void run(void)
{
	uint32_t bit = shared_bit();
	char line[32];

	enable_paging(bit);
	say("hello\n");
	for (;;) {
		hear(line, sizeof(line));
		say(line);
		if (equal(line, "cpuid")) {
			say_number(bit);
			say_number(has_nested());
			say_number(bars_above(bit));
		} else if (equal(line, "read")) {
			access(0, false, 1);
		} else if (equal(line, "write")) {
			access(0, true, 1);
		} else if (equal(line, "read shared")) {
			access(SHARED_ALIAS, false, 1);
		} else if (equal(line, "write shared")) {
			access(SHARED_ALIAS, true, 1);
		} else if (equal(line, "write stripes")) {
			access(0, true, 2);
		} else if (equal(line, "small")) {
			pages = PAGES_SMALL;
		} else if (equal(line, "large")) {
			pages = PAGES_LARGE;
		} else if (equal(line, "bar")) {
			move_bar(bit);
		} else if (equal(line, "smm")) {
			smm(false);
		} else if (equal(line, "ask smm")) {
			smm(true);
		} else if (equal(line, "flip")) {
			flip(false);
		} else if (equal(line, "ask flip")) {
			flip(true);
		} else if (equal(line, "ask stripes")) {
			ask_stripes();
		} else if (equal(line, "ask private")) {
			say_number(ask(KVM_MAP_GPA_RANGE_ENCRYPTED));
		} else if (equal(line, "ask shared")) {
			say_number(ask(0));
		} else if (equal(line, "ap")) {
			start_ap();
		} else if (equal(line, "result")) {
			while (!ap_done)
				asm volatile("pause");
			say_number(ap_result);
		} else {
			say(" unknown");
		}
		say("\n");
	}
}
