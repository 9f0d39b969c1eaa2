/*
 * Protected guests: Linux without firmware
 *
 * Firmware would ask QEMU, which the guest does not trust, for the memory map
 * and ACPI tables.  So QEMU does what is left for firmware to do, before KVM
 * measures the guest, and CPUs begin with Linux itself.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "cpu.h"
#include "exec/address-spaces.h"
#include "hw/boards.h"
#include "hw/i386/e820_memory_layout.h"
#include "hw/i386/x86.h"
#include "hw/pci-host/q35.h"
#include "system/kvm.h"
#include "system/private-memory.h"
#include "acpi-build.h"
#include "kvm/kvm_i386.h"

/* struct boot_params, its size, and what of it is not the kernel's to say */
#define PARAMS_ADDR             0x10000
#define PARAMS_SIZE             4096
#define PARAMS_RSDP             0x070
#define PARAMS_E820_ENTRIES     0x1e8
#define PARAMS_HEADER           0x1f1
#define PARAMS_KERNEL           0x214
#define PARAMS_HEADER_END       0x290
#define PARAMS_E820             0x2d0
#define PARAMS_E820_SIZE        20
#define PARAMS_E820_MAX         128

/* What Linux's 32-bit boot protocol wants */
#define GDT_ADDR                0x11000
#define BOOT_CS                 0x10
#define BOOT_DS                 0x18

/* Between video memory and the end of what was ROM */
#define TABLES_ADDR             0xd0000
#define TABLES_END              0x100000
#define LOW_END                 0x9fc00
#define NVS_ADDR                0xc0000

/* @addr is that of a page, which has nothing else in it. */
static bool x86_protected_load(MachineState *ms, hwaddr addr, const void *data,
                               size_t size)
{
    Error *err = NULL;

    address_space_write_rom(&address_space_memory, addr, MEMTXATTRS_UNSPECIFIED,
                            data, size);
    private_memory_clear_around(ms->private_memory, addr, size);
    if (!private_memory_load(ms->private_memory, addr, size, &err)) {
        error_reportf_err(err, "can't load boot parameters: ");
        return false;
    }
    return true;
}

/* Private pages have been loaded already, and stay as they are. */
static bool x86_protected_is_free(hwaddr addr, size_t size, const char *what,
                                  Error **errp)
{
    hwaddr end = addr + size;

    for (; addr < end; addr += TARGET_PAGE_SIZE) {
        MemoryRegionSection section = memory_region_find(get_system_memory(),
                                                         addr, 1);
        bool taken = section.mr && section.mr->ram_block &&
                     private_memory_contains(section.mr,
                                             section.offset_within_region);

        memory_region_unref(section.mr);
        if (taken) {
            error_setg(errp, "there is no place for %s: something else is "
                       "loaded to 0x%" HWADDR_PRIx, what, addr);
            return false;
        }
    }
    return true;
}

static bool x86_protected_add_e820(uint8_t *params, uint64_t start,
                                   uint64_t end, uint32_t type, Error **errp)
{
    uint8_t n = params[PARAMS_E820_ENTRIES];
    uint8_t *entry = params + PARAMS_E820 + n * PARAMS_E820_SIZE;

    if (start >= end) {
        return true;
    }
    if (n == PARAMS_E820_MAX) {
        error_setg(errp, "the memory map has more than %d entries",
                   PARAMS_E820_MAX);
        return false;
    }
    stq_le_p(entry, start);
    stq_le_p(entry + 8, end - start);
    stl_le_p(entry + 16, type);
    params[PARAMS_E820_ENTRIES] = n + 1;
    return true;
}

/*
 * Linux takes for shared what is reserved below 1 MiB, and looks there for
 * tables.  All of it is private memory that keeps its content: NVS.
 */
static bool x86_protected_set_e820(uint8_t *params, Error **errp)
{
    struct e820_entry *table;
    int i, n = e820_get_table(&table);

    for (i = 0; i < n; i++) {
        uint64_t start = le64_to_cpu(table[i].address);
        uint64_t end = start + le64_to_cpu(table[i].length);
        uint32_t type = le32_to_cpu(table[i].type);

        if (!start && type == E820_RAM) {
            if (!x86_protected_add_e820(params, 0, LOW_END, E820_RAM, errp) ||
                !x86_protected_add_e820(params, NVS_ADDR, 1 * MiB, E820_NVS,
                                        errp)) {
                return false;
            }
            start = 1 * MiB;
        }
        if (!x86_protected_add_e820(params, start, end, type, errp)) {
            return false;
        }
    }
    return x86_protected_add_e820(params, MCH_HOST_BRIDGE_PCIEXBAR_DEFAULT,
                                  MCH_HOST_BRIDGE_PCIEXBAR_DEFAULT +
                                  MCH_HOST_BRIDGE_PCIEXBAR_MAX, E820_RESERVED,
                                  errp);
}

/* Flat 32-bit mode, without paging */
static void x86_protected_set_cpu(CPUX86State *env, uint32_t entry)
{
    uint32_t flags = DESC_P_MASK | DESC_S_MASK | DESC_G_MASK | DESC_B_MASK |
                     DESC_W_MASK | DESC_A_MASK;
    int seg;

    env->cr[0] = CR0_PE_MASK | CR0_ET_MASK;
    env->gdt.base = GDT_ADDR;
    env->gdt.limit = BOOT_DS + 7;
    cpu_x86_load_seg_cache(env, R_CS, BOOT_CS, 0, UINT32_MAX,
                           flags | DESC_CS_MASK);
    for (seg = R_ES; seg <= R_GS; seg++) {
        if (seg != R_CS) {
            cpu_x86_load_seg_cache(env, seg, BOOT_DS, 0, UINT32_MAX, flags);
        }
    }
    memset(env->regs, 0, sizeof(env->regs));
    env->regs[R_ESI] = PARAMS_ADDR;
    env->eip = entry;
    x86_update_hflags(env);
}

/* Without what kernel and initrd have to say: that's for who has them. */
static void x86_protected_log(const uint8_t *params, const uint8_t *gdt,
                              size_t gdt_size, const GArray *tables)
{
    g_autofree uint8_t *bare = g_memdup2(params, PARAMS_SIZE);

    memset(bare + PARAMS_HEADER, 0, PARAMS_HEADER_END - PARAMS_HEADER);
    kvm_launch_log_reset();
    kvm_launch_log_add(PARAMS_ADDR, bare, PARAMS_SIZE);
    kvm_launch_log_add(GDT_ADDR, gdt, gdt_size);
    kvm_launch_log_add(TABLES_ADDR, tables->data, tables->len);
}

void x86_protected_reset(X86MachineState *x86ms)
{
    static const uint64_t gdt[] = {
        0, 0,
        0x00cf9b000000ffff,     /* BOOT_CS: flat code */
        0x00cf93000000ffff,     /* BOOT_DS: flat data */
    };
    MachineState *ms = MACHINE(x86ms);
    g_autofree uint8_t *params = NULL;
    g_autoptr(GArray) tables = NULL;
    uint8_t gdt_le[sizeof(gdt)];
    Error *err = NULL;
    int i;

    if (!private_memory_usable(ms->private_memory)) {
        /* It has been said why. */
        return;
    }

    if (!x86ms->boot_params) {
        error_report("private-memory-protected requires a kernel that is a "
                     "bzImage of Linux 2.6.22 or later");
        exit(EXIT_FAILURE);
    }
    params = g_memdup2(x86ms->boot_params, PARAMS_SIZE);
    tables = acpi_build_in_place(TABLES_ADDR);
    stq_le_p(params + PARAMS_RSDP, TABLES_ADDR);
    if (tables->len > TABLES_END - TABLES_ADDR) {
        error_setg(&err, "ACPI tables are too large: %u bytes", tables->len);
    } else if (x86_protected_set_e820(params, &err) &&
               x86_protected_is_free(PARAMS_ADDR, PARAMS_SIZE,
                                     "boot parameters", &err) &&
               x86_protected_is_free(GDT_ADDR, sizeof(gdt_le),
                                     "the descriptor table", &err)) {
        x86_protected_is_free(TABLES_ADDR, tables->len, "ACPI tables", &err);
    }
    if (err) {
        error_report_err(err);
        private_memory_set_unusable(ms->private_memory);
        return;
    }
    for (i = 0; i < ARRAY_SIZE(gdt); i++) {
        stq_le_p(gdt_le + i * 8, gdt[i]);
    }

    if (kvm_enabled()) {
        x86_protected_log(params, gdt_le, sizeof(gdt_le), tables);
    }
    if (x86_protected_load(ms, PARAMS_ADDR, params, PARAMS_SIZE) &&
        x86_protected_load(ms, GDT_ADDR, gdt_le, sizeof(gdt_le)) &&
        x86_protected_load(ms, TABLES_ADDR, tables->data, tables->len)) {
        x86_protected_set_cpu(cpu_env(first_cpu),
                              ldl_le_p(params + PARAMS_KERNEL));
    }
}
