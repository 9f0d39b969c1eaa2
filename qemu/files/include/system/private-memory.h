/*
 * Private half of the machine's RAM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef SYSTEM_PRIVATE_MEMORY_H
#define SYSTEM_PRIVATE_MEMORY_H

#include "exec/hwaddr.h"
#include "exec/memory.h"
#include "hw/boards.h"
#include "qom/object.h"

#define TYPE_PRIVATE_MEMORY "private-memory"
OBJECT_DECLARE_SIMPLE_TYPE(PrivateMemory, PRIVATE_MEMORY)

typedef struct PrivateConversion PrivateConversion;

/**
 * private_memory_by_address: Do guests say by the address what they want?
 * @machine: machine, whose shared bit may not be chosen yet
 *
 * Return: true if all of the guest's memory is private but what it shares.
 */
static inline bool private_memory_by_address(const MachineState *machine)
{
    return machine->private_memory_shared_bit ||
           machine->private_memory_isolation;
}

/**
 * private_memory_create_backend: Make a backend for the private half of RAM
 * @machine: machine with no private-memory-backend set
 * @errp: why it can't be done
 *
 * Return: true on success, else false setting @errp with error.
 */
bool private_memory_create_backend(MachineState *machine, Error **errp);

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
 * @offset: where in RAM, page aligned
 * @size: size of the range in bytes, page aligned, not 0
 * @to_private: what to convert to
 * @implicit: whether the guest just accessed it, rather than asked for that
 *
 * Pages that change are zero afterwards.  Pages that are of the wanted kind
 * already keep their content.  On failure some of the pages may have changed,
 * and stay so: a vCPU may have used them in the meantime.
 *
 * May be called without the BQL, by any number of threads.
 *
 * Return: 1 on success, 0 if there was nothing to do, or a negative errno.
 */
int private_memory_convert(PrivateMemory *pm, uint64_t offset, uint64_t size,
                           bool to_private, bool implicit);

/**
 * private_memory_convert_begin: Prepare for a conversion in small steps
 *
 * For callers of private_memory_convert() that can't wait for it.
 *
 * Return: what private_memory_convert_step() and private_memory_convert_end()
 *     take.
 */
PrivateConversion *private_memory_convert_begin(PrivateMemory *pm,
                                                uint64_t offset, uint64_t size,
                                                bool to_private, bool implicit);

/**
 * private_memory_convert_step: Convert at most 2 MiB
 * @c: a conversion that is not complete
 *
 * Return: -EINPROGRESS if it is not complete yet, else what
 *     private_memory_convert() returns.
 */
int private_memory_convert_step(PrivateConversion *c);

/**
 * private_memory_convert_end: Forget about a conversion
 * @c: a conversion; if it is not complete, what was converted stays so
 */
void private_memory_convert_end(PrivateConversion *c);

/**
 * private_memory_convert_accessed: Convert what the guest has just accessed
 * @pm: the private half of the machine's RAM
 * @offset: where in RAM, page aligned
 * @size: size of the range in bytes, page aligned, not 0
 * @to_private: what to convert to
 * @low: offset in RAM where what the guest sees there begins, and
 * @high: where it ends
 *
 * If the guest says by the address what it wants, pages around may become
 * private as well, but none that it has asked to share or uses so.  With
 * isolation, pages that are private don't become shared if the guest has not
 * asked for that before: they would lose what is in there by a stray access.
 * Else that's private_memory_convert().
 *
 * Return: as private_memory_convert(), and -EPERM if it may not be shared.
 */
int private_memory_convert_accessed(PrivateMemory *pm, uint64_t offset,
                                    uint64_t size, bool to_private,
                                    uint64_t low, uint64_t high);

/**
 * private_memory_piece_size: How much may become private by an access
 * @pm: the private half of the machine's RAM
 *
 * Return: a power of two, one page at least, of guest memory that is aligned
 *     to it.
 */
uint64_t private_memory_piece_size(PrivateMemory *pm);

/* Whether private_memory_check_dma() is of any use */
extern bool private_memory_watch_dma;

/**
 * private_memory_check_dma: A device is about to access guest memory
 * @as: the device's address space
 * @addr: address in @as
 * @size: size of the range in bytes
 *
 * If some of it is private that's counted, and reported once for each kind of
 * device.  The device is not stopped by that, but all it can get at is the
 * shared half: reads zeros, and what it writes is lost.
 *
 * Call it only if private_memory_watch_dma.
 */
void private_memory_check_dma(AddressSpace *as, hwaddr addr, hwaddr size);

/**
 * private_memory_refuse: Count a request that makes no sense as a failure
 * @pm: the private half of the machine's RAM
 */
void private_memory_refuse(PrivateMemory *pm);

/**
 * private_memory_usable: Can the guest run?
 * @pm: the private half of the machine's RAM
 *
 * Return: false if the last reset has failed.
 */
bool private_memory_usable(PrivateMemory *pm);

/**
 * private_memory_set_unusable: What the guest needs can't be loaded
 * @pm: the private half of the machine's RAM
 *
 * It can't run then until the next reset.
 */
void private_memory_set_unusable(PrivateMemory *pm);

/**
 * private_memory_reset_step: Free private memory for some milliseconds
 * @pm: the private half of the machine's RAM
 *
 * Called ahead of a reset, with the vCPUs paused, as freeing all of it at once
 * would stall the main loop.
 *
 * Return: true if the reset can take place now, false if there is more to do.
 */
bool private_memory_reset_step(PrivateMemory *pm);

/**
 * private_memory_is_resetting: Does the guest have to wait for a reset?
 * @pm: the private half of the machine's RAM
 *
 * Return: true after private_memory_reset_step() until the reset is done.
 */
bool private_memory_is_resetting(PrivateMemory *pm);

/**
 * private_memory_clear_around: Clear what else is in the same pages
 *
 * With private_memory_load(), whole pages get private, with whatever there was
 * around what is to be loaded.
 *
 * @pm: private memory of the machine
 * @gpa: guest physical address of what is to be loaded
 * @size: size in bytes
 */
void private_memory_clear_around(PrivateMemory *pm, hwaddr gpa, uint64_t size);

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
 * private_memory_contains: Is a page private?
 * @mr: RAM
 * @offset: where in its RAM block
 */
bool private_memory_contains(const MemoryRegion *mr, uint64_t offset);

/**
 * private_memory_skip: Leave out what is private
 * @mr: RAM
 * @offset: where in its RAM block; moved to the next page that is not private
 * @size: how much there is from @offset on
 *
 * Return: how much of it, at the new @offset, is not private; 0 at the end.
 */
uint64_t private_memory_skip(const MemoryRegion *mr, uint64_t *offset,
                             uint64_t size);

/**
 * private_memory_conversions: How often pages have been converted so far
 * @pm: the private half of the machine's RAM
 */
uint64_t private_memory_conversions(PrivateMemory *pm);

/**
 * private_memory_set_final: Remember that a protected guest is final
 * @pm: the private half of the machine's RAM
 * @measurement: what KVM has measured
 * @size: size of that in bytes
 */
void private_memory_set_final(PrivateMemory *pm, const uint8_t *measurement,
                              size_t size);

/**
 * private_memory_is_final: Is the state of CPUs out of reach?
 * @errp: set if so, for those who need it
 */
bool private_memory_is_final(Error **errp);

/**
 * private_memory_is_resettable: Can the guest be reset?
 * @errp: set if it can't, as it is protected and final
 */
bool private_memory_is_resettable(Error **errp);

#endif
