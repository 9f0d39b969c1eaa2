/*
 * Hosts without guest-sealed memfds
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "exec/memory.h"
#include "system/private-memory.h"

bool private_memory_create(MachineState *machine, Error **errp)
{
    error_setg(errp, "private memory requires a Linux host");
    return false;
}

bool private_memory_reset_step(PrivateMemory *pm)
{
    g_assert_not_reached();
}

void private_memory_clear_around(PrivateMemory *pm, hwaddr gpa, uint64_t size)
{
    g_assert_not_reached();
}

bool private_memory_load(PrivateMemory *pm, hwaddr gpa, uint64_t size,
                         Error **errp)
{
    g_assert_not_reached();
}

bool private_memory_contains(const MemoryRegion *mr, uint64_t offset)
{
    return false;
}

uint64_t private_memory_skip(const MemoryRegion *mr, uint64_t *offset,
                             uint64_t size)
{
    return size;
}

bool private_memory_usable(PrivateMemory *pm)
{
    g_assert_not_reached();
}

bool private_memory_is_final(Error **errp)
{
    return false;
}

bool private_memory_is_resettable(Error **errp)
{
    return true;
}

bool private_memory_watch_dma;

void private_memory_check_dma(AddressSpace *as, hwaddr addr, hwaddr size)
{
}

bool private_memory_create_backend(MachineState *machine, Error **errp)
{
    error_setg(errp, "private memory requires a Linux host");
    return false;
}
