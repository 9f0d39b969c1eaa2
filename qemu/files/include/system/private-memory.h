/*
 * Private half of the machine's RAM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef SYSTEM_PRIVATE_MEMORY_H
#define SYSTEM_PRIVATE_MEMORY_H

#include "exec/hwaddr.h"
#include "qom/object.h"

#define TYPE_PRIVATE_MEMORY "private-memory"
OBJECT_DECLARE_SIMPLE_TYPE(PrivateMemory, PRIVATE_MEMORY)

/**
 * private_memory_create: Give the machine's RAM a private half
 * @machine: machine with private-memory-backend set, its RAM not mapped yet
 * @errp: why it can't be done
 *
 * Return: true on success, else false setting @errp with error.
 */
bool private_memory_create(MachineState *machine, Error **errp);

/**
 * private_memory_fd: The file that holds the private half of a region
 * @mr: RAM
 *
 * An offset in the file is the offset in the RAM block of @mr.
 *
 * Return: file descriptor, or -1 if @mr has no private half.
 */
int private_memory_fd(const MemoryRegion *mr);

/**
 * private_memory_convert: Make guest memory private or shared
 * @pm: the private half of the machine's RAM
 * @gpa: guest physical address, page aligned
 * @size: size of the range in bytes, page aligned
 * @to_private: what to convert to
 * @implicit: whether the guest just accessed it, rather than asked for that
 *
 * Pages that change are zero afterwards.  Pages that are of the wanted kind
 * already keep their content.  On failure no page has changed to private.
 *
 * May be called without the BQL, by any number of threads.
 *
 * Return: 1 on success, 0 if there was nothing to do, or a negative errno:
 *     -EINVAL if the range is not RAM that can be private.
 */
int private_memory_convert(PrivateMemory *pm, hwaddr gpa, uint64_t size,
                           bool to_private, bool implicit);

/**
 * private_memory_load: Make guest memory private with the content it has
 * @pm: the private half of the machine's RAM
 * @gpa: guest physical address
 * @size: size of the range in bytes
 * @errp: why it can't be done
 *
 * Works on all pages that the range has part of.  Pages that are private
 * already are left alone, and so is the whole range if it is not RAM.  On
 * failure the pages at the start of the range are private, and the other ones
 * are shared as before.
 *
 * Return: true on success, else false setting @errp with error.
 */
bool private_memory_load(PrivateMemory *pm, hwaddr gpa, uint64_t size,
                         Error **errp);

/**
 * private_memory_conversions: How many conversions there have been so far
 * @pm: the private half of the machine's RAM
 */
uint64_t private_memory_conversions(PrivateMemory *pm);

#endif
