/*
 * Private half of the machine's RAM
 *
 * Each page of RAM has two halves.  The shared one is the RAM block that the
 * machine has anyway.  The private one is a page of a guest-sealed memfd, which
 * the guest can use, but QEMU can only allocate and free.  A page is private if
 * and only if it is allocated there, so that fallocate() is all it takes to
 * convert between the two, and there is no state to be kept in here.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <linux/mman.h>
#include <sys/syscall.h>
#include "qemu/coroutine.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/madvise.h"
#include "qemu/stats64.h"
#include "qemu/thread.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-machine.h"
#include "exec/address-spaces.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "hw/boards.h"
#include "hw/nvram/fw_cfg.h"
#include "hw/resettable.h"
#include "migration/blocker.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qom/object_interfaces.h"
#include "system/hostmem.h"
#include "system/kvm.h"
#include "system/private-memory.h"
#include "system/reset.h"
#include "system/runstate.h"
#include "system/system.h"
#include "trace.h"

struct PrivateMemory {
    Object parent_obj;

    ResettableState reset_state;
    HostMemoryBackend *backend;
    RAMBlock *block;
    int fd;
    Error *migration_blocker;
    /* A reset has begun to free it. */
    bool resetting;
    /* The last reset has failed. */
    bool unusable;
    /* A protected guest is final, that's its measurement in hex. */
    char *measurement;

    /* Held for one chunk, whose state nobody else changes meanwhile. */
    QemuMutex lock;
    /* Where to look for leftovers next */
    QEMUTimer *sweep_timer;
    uint64_t sweep_next;
    /* /proc/self/pagemap */
    int pagemap_fd;

    Stat64 to_private, to_shared;
    Stat64 implicit_to_private, implicit_to_shared;
    Stat64 failures;
    /* Chunks that changed, also of what has failed since, or is not done yet */
    Stat64 changes;

    /* How much at most becomes private when the guest accesses a page */
    uint64_t piece_size;
    /*
     * If the guest says by the address what it wants: pages that it wants
     * shared.  With isolation it has asked for that, and no other ones become
     * shared.  Without, it may just use them so.
     */
    unsigned long *asked;
    bool isolated;
    /* Whether RAM is to have huge pages */
    bool huge;
    /* Chunks of which the opposite holds before the next reset, and how many */
    unsigned long *exceptions;
    unsigned int nr_exceptions;

    /* Accesses by devices to private memory, and, under dma_lock, which ones */
    Stat64 dma;
    QemuMutex dma_lock;
    GHashTable *dma_devices;
};

typedef struct {
    uint64_t start, end;
} FileRange;

/*
 * No more memory than that is held twice during a conversion.  It's what the
 * host can give, and map, as one huge page.
 */
#define CHUNK_SIZE (2 * MiB)

/* Each one may be a mapping of its own, of which there can't be many. */
#define EXCEPTIONS_MAX 4096

/* How long the main loop may be kept from more important things */
#define STEP_MS 5

struct PrivateConversion {
    PrivateMemory *pm;
    uint64_t start, end;
    /* Where to go on */
    uint64_t next;
    bool to_private, implicit;
    int changed;
};

OBJECT_DEFINE_SIMPLE_TYPE_WITH_INTERFACES(PrivateMemory, private_memory,
                                          PRIVATE_MEMORY, OBJECT,
                                          { TYPE_RESETTABLE_INTERFACE }, { })

/*
 * Where the data at @start of an ordinary file ends, or a chunk of it.
 * SEEK_HOLE looks at all pages up to the next hole, which may be most of the
 * file, and that for each chunk.  So look for it only if it's near.
 */
static uint64_t file_data_end(int fd, uint64_t start, uint64_t end)
{
    struct cachestat_range range = {
        .off = start,
        .len = MIN(end - start, CHUNK_SIZE),
    };
    struct cachestat stat;
    off_t hole;

    if (!syscall(__NR_cachestat, fd, &range, &stat, 0) &&
        (stat.nr_cache + stat.nr_evicted) * qemu_real_host_page_size() ==
        range.len) {
        return start + range.len;
    }
    hole = lseek(fd, start, SEEK_HOLE);
    return hole < 0 ? end : MIN(hole, end);
}

/* The same of private memory, where the next hole is found at once. */
static uint64_t private_memory_data_end(PrivateMemory *pm, uint64_t start,
                                        uint64_t end)
{
    off_t hole = lseek(pm->fd, start, SEEK_HOLE);

    return hole < 0 ? end : MIN(hole, end);
}

static int private_memory_punch(PrivateMemory *pm, uint64_t start, uint64_t end)
{
    int ret = RETRY_ON_EINTR(fallocate(pm->fd, FALLOC_FL_PUNCH_HOLE |
                                       FALLOC_FL_KEEP_SIZE,
                                       start, end - start));

    return ret ? -errno : 0;
}

static bool private_memory_next(PrivateMemory *pm, uint64_t start, uint64_t end,
                                FileRange *range)
{
    off_t data = lseek(pm->fd, start, SEEK_DATA);

    if (data < 0 || data >= end) {
        return false;
    }
    range->start = data;
    range->end = private_memory_data_end(pm, data, end);
    return true;
}

static int private_memory_allocate(PrivateMemory *pm, uint64_t start,
                                   uint64_t end, bool *changed)
{
    while (start < end) {
        /* Fails if there is no data up to the end of the file. */
        off_t data = lseek(pm->fd, start, SEEK_DATA);

        if (data == start) {
            start = private_memory_data_end(pm, start, end);
            continue;
        }
        data = data < 0 ? end : MIN(data, end);

        /* Part of it may be allocated when this fails. */
        *changed = true;
        if (!fallocate(pm->fd, 0, start, data - start)) {
            start = data;
        } else if (errno != EINTR) {
            return -errno;
        }
    }

    return 0;
}

/*
 * A huge page of RAM in which some is private would hold memory for that as
 * well, be it that somebody accesses another page first, or that khugepaged
 * finds one.
 */
static void private_memory_advise(PrivateMemory *pm, uint64_t start,
                                  uint64_t end, bool huge)
{
    RAMBlock *block = pm->block;

    for (start = QEMU_ALIGN_DOWN(start, CHUNK_SIZE); start < end;
         start += CHUNK_SIZE) {
        bool exception = test_bit(start / CHUNK_SIZE, pm->exceptions);

        if ((pm->huge != exception) == huge ||
            (!exception && pm->nr_exceptions == EXCEPTIONS_MAX)) {
            continue;
        }
        change_bit(start / CHUNK_SIZE, pm->exceptions);
        pm->nr_exceptions += exception ? -1 : 1;
        qemu_madvise(block->host + start,
                     MIN(CHUNK_SIZE, block->max_length - start),
                     huge ? QEMU_MADV_HUGEPAGE : QEMU_MADV_NOHUGEPAGE);
    }
}

/*
 * Guests that need not ask for private memory share little of it, but may share
 * large buffers, by as much at a time as one hypercall takes.
 */
static void private_memory_allow_huge(PrivateMemory *pm, uint64_t offset)
{
    size_t page_size = qemu_real_host_page_size();
    uint64_t start = QEMU_ALIGN_DOWN(offset, CHUNK_SIZE);
    unsigned long last = (start + CHUNK_SIZE) / page_size;

    if (pm->asked && start + CHUNK_SIZE <= pm->block->max_length &&
        find_next_zero_bit(pm->asked, last, start / page_size) == last) {
        private_memory_advise(pm, start, start + CHUNK_SIZE, true);
    }
}

static void private_memory_advise_default(PrivateMemory *pm)
{
    RAMBlock *block = pm->block;

    qemu_madvise(block->host, block->max_length,
                 pm->huge ? QEMU_MADV_HUGEPAGE : QEMU_MADV_NOHUGEPAGE);
    bitmap_zero(pm->exceptions, DIV_ROUND_UP(block->max_length, CHUNK_SIZE));
    pm->nr_exceptions = 0;
}

/*
 * Free a range of the shared half.  A huge page of which only a part is freed
 * takes as much memory as before, until the host runs short.  So have it split
 * first: that's what Linux does for this advice, which is of no use otherwise.
 */
static int private_memory_discard(PrivateMemory *pm, uint64_t start,
                                  uint64_t end)
{
    if (!QEMU_IS_ALIGNED(start | end, CHUNK_SIZE)) {
        qemu_madvise(pm->block->host + start, end - start, MADV_COLD);
    }
    return ram_block_discard_range(pm->block, start, end - start);
}

/* Free the shared half of what is private, as much as possible. */
static int private_memory_discard_private(PrivateMemory *pm, uint64_t start,
                                          uint64_t end)
{
    FileRange range;
    int ret = 0;

    while (private_memory_next(pm, start, end, &range)) {
        int err = private_memory_discard(pm, range.start, range.end);

        ret = ret ?: err;
        start = range.end;
    }
    return ret;
}

/*
 * What has become private stays so on failure: another vCPU may have used it
 * since.
 */
static int private_memory_to_private(PrivateMemory *pm, uint64_t start,
                                     uint64_t end)
{
    bool changed = false;
    int ret = private_memory_allocate(pm, start, end, &changed);

    if (changed) {
        int err;

        private_memory_advise(pm, start, end, false);
        err = private_memory_discard_private(pm, start, end);

        ret = ret ?: err;
    }
    return ret ?: changed;
}

/* Free the shared half of private pages, but what the guest wants of it. */
static int private_memory_discard_unwanted(PrivateMemory *pm, uint64_t start,
                                           uint64_t end)
{
    size_t page_size = qemu_real_host_page_size();
    unsigned long last = end / page_size;
    unsigned long i = start / page_size, next;
    int ret;

    if (!pm->asked) {
        return private_memory_discard(pm, start, end);
    }
    while ((i = find_next_zero_bit(pm->asked, last, i)) < last) {
        next = find_next_bit(pm->asked, last, i);
        ret = private_memory_discard(pm, i * page_size, next * page_size);
        if (ret) {
            return ret;
        }
        i = next;
    }
    return 0;
}

/*
 * What devices have written to the shared half in the meantime must not show up
 * now.
 */
static int private_memory_to_shared(PrivateMemory *pm, uint64_t start,
                                    uint64_t end)
{
    FileRange range;
    int ret, changed = 0;

    while (private_memory_next(pm, start, end, &range)) {
        ret = private_memory_discard_unwanted(pm, range.start, range.end);
        if (!ret) {
            ret = private_memory_punch(pm, range.start, range.end);
        }
        if (ret) {
            return ret;
        }
        changed = 1;
        start = range.end;
    }
    return changed;
}

/* In memory, or swapped out */
#define PAGEMAP_HELD (1ULL << 63 | 1ULL << 62)

/*
 * Leftovers: whatever accesses the shared half of a private page in QEMU, such
 * as a device's DMA, may have the host allocate memory for it, which is of no
 * use to anybody.  Find the first ones, if there are any, of a private range.
 */
static bool private_memory_next_leftover(PrivateMemory *pm, uint64_t start,
                                         uint64_t end, FileRange *range)
{
    RAMBlock *block = pm->block;
    size_t page_size = qemu_real_host_page_size();
    /* An entry for each page */
    uint64_t pagemap[CHUNK_SIZE / 4096];
    uint64_t n, i, first;

    /* What is in files does not have to be mapped. */
    if (block->fd >= 0 && qemu_ram_is_shared(block)) {
        off_t data = lseek(block->fd, start + block->fd_offset, SEEK_DATA);

        if (data < 0 || data - block->fd_offset >= end) {
            return false;
        }
        range->start = data - block->fd_offset;
        range->end = file_data_end(block->fd, data, end + block->fd_offset) -
                     block->fd_offset;
        return true;
    }

    for (; start < end; start += n * page_size) {
        n = MIN(end - start, CHUNK_SIZE) / page_size;
        if (pread(pm->pagemap_fd, pagemap, n * sizeof(pagemap[0]),
                  ((uintptr_t)block->host + start) / page_size *
                  sizeof(pagemap[0])) != n * sizeof(pagemap[0])) {
            return false;
        }
        for (i = 0; i < n && !(pagemap[i] & PAGEMAP_HELD); i++) {
            ;
        }
        if (i == n) {
            continue;
        }
        for (first = i; i < n && pagemap[i] & PAGEMAP_HELD; i++) {
            ;
        }
        range->start = start + first * page_size;
        range->end = start + i * page_size;
        return true;
    }
    return false;
}

/*
 * How much memory the leftovers take, free it if @discard: then with
 * PrivateMemory.lock held.
 */
static uint64_t private_memory_leftovers(PrivateMemory *pm, uint64_t start,
                                         uint64_t end, bool discard)
{
    FileRange private, leftover;
    uint64_t sum = 0;

    while (private_memory_next(pm, start, end, &private)) {
        start = private.start;
        while (private_memory_next_leftover(pm, start, private.end,
                                            &leftover)) {
            sum += leftover.end - leftover.start;
            if (discard) {
                private_memory_discard_unwanted(pm, leftover.start,
                                                leftover.end);
            }
            start = leftover.end;
        }
        start = private.end;
    }
    return sum;
}

/*
 * Look at all memory every ten seconds, in steps, between which the main loop
 * has most of the time for more important things.
 */
#define SWEEP_PERIOD_MS 10000

static void private_memory_sweep(void *opaque)
{
    PrivateMemory *pm = opaque;
    int64_t begin = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    int64_t now = begin;
    FileRange range;

    do {
        uint64_t end = MIN(pm->sweep_next + CHUNK_SIZE, pm->block->max_length);
        uint64_t size;

        /* The main loop must not wait for a conversion. */
        if (qemu_mutex_trylock(&pm->lock)) {
            break;
        }
        size = private_memory_leftovers(pm, pm->sweep_next, end, true);
        qemu_mutex_unlock(&pm->lock);

        if (size) {
            trace_private_memory_sweep(pm->sweep_next, size);
        }
        now = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
        if (!private_memory_next(pm, end, pm->block->max_length, &range)) {
            pm->sweep_next = 0;
            timer_mod(pm->sweep_timer, now + SWEEP_PERIOD_MS);
            return;
        }
        pm->sweep_next = range.start;
    } while (now < begin + STEP_MS);

    timer_mod(pm->sweep_timer, now + 10 * STEP_MS);
}

/* Called with PrivateMemory.lock held. */
static void private_memory_set_asked(PrivateMemory *pm, uint64_t start,
                                     uint64_t end, bool asked)
{
    size_t page_size = qemu_real_host_page_size();

    if (!pm->asked) {
        return;
    }
    if (asked) {
        bitmap_set_atomic(pm->asked, start / page_size,
                          (end - start) / page_size);
    } else {
        bitmap_test_and_clear_atomic(pm->asked, start / page_size,
                                     (end - start) / page_size);
    }
}

/* Whether all of the range was asked for, or is not private anyway */
static bool private_memory_may_share(PrivateMemory *pm, uint64_t start,
                                     uint64_t end)
{
    size_t page_size = qemu_real_host_page_size();
    FileRange private;

    while (private_memory_next(pm, start, end, &private)) {
        if (find_next_zero_bit(pm->asked, private.end / page_size,
                               private.start / page_size) <
            private.end / page_size) {
            return false;
        }
        start = private.end;
    }
    return true;
}

static Stat64 *private_memory_counter(PrivateMemory *pm, bool to_private,
                                      bool implicit)
{
    if (implicit) {
        return to_private ? &pm->implicit_to_private : &pm->implicit_to_shared;
    }
    return to_private ? &pm->to_private : &pm->to_shared;
}

PrivateConversion *private_memory_convert_begin(PrivateMemory *pm,
                                                uint64_t offset, uint64_t size,
                                                bool to_private, bool implicit)
{
    PrivateConversion *c = g_new0(PrivateConversion, 1);

    c->pm = pm;
    c->start = c->next = offset;
    c->end = offset + size;
    c->to_private = to_private;
    c->implicit = implicit;
    return c;
}

void private_memory_convert_end(PrivateConversion *c)
{
    g_free(c);
}

/* Called with PrivateMemory.lock held. */
static int private_memory_convert_chunk(PrivateMemory *pm, uint64_t start,
                                        uint64_t end, bool to_private)
{
    int ret = to_private ? private_memory_to_private(pm, start, end) :
                           private_memory_to_shared(pm, start, end);

    if (ret) {
        stat64_add(&pm->changes, 1);
    }
    return ret;
}

int private_memory_convert_step(PrivateConversion *c)
{
    PrivateMemory *pm = c->pm;
    uint64_t end = MIN(QEMU_ALIGN_UP(c->next + 1, CHUNK_SIZE), c->end);
    int ret;

    QEMU_LOCK_GUARD(&pm->lock);

    ret = private_memory_convert_chunk(pm, c->next, end, c->to_private);
    /* Part of a huge page can't be freed as long as KVM uses it: try again. */
    if (ret == -EBUSY) {
        return -EINPROGRESS;
    }
    /* On failure some of the chunk may be private. */
    if (ret >= 0 || c->to_private) {
        private_memory_set_asked(pm, c->next, end, !c->to_private);
    }
    if (ret >= 0 && !c->to_private) {
        private_memory_allow_huge(pm, c->next);
    }
    if (ret >= 0) {
        c->changed |= ret;
        c->next = end;
        if (c->next < c->end) {
            return -EINPROGRESS;
        }
        ret = c->changed;
    }

    if (ret < 0) {
        stat64_add(&pm->failures, 1);
    } else if (ret > 0 || !c->implicit) {
        stat64_add(private_memory_counter(pm, c->to_private, c->implicit), 1);
    }
    trace_private_memory_convert(c->start, c->end - c->start,
                                 c->implicit ? "implicit" : "explicit",
                                 c->to_private ? "private" : "shared", ret);
    return ret;
}

int private_memory_convert(PrivateMemory *pm, uint64_t offset, uint64_t size,
                           bool to_private, bool implicit)
{
    PrivateConversion *c = private_memory_convert_begin(pm, offset, size,
                                                        to_private, implicit);
    int ret;

    do {
        ret = private_memory_convert_step(c);
    } while (ret == -EINPROGRESS);

    private_memory_convert_end(c);
    return ret;
}

/*
 * Have the pages around converted as well, up to a piece, but none that the
 * guest has asked to share, or of which anybody uses the shared half, and only
 * up to the next ones that are private.  Below 1 MiB, where there is more than
 * RAM, it's none.
 *
 * Called with PrivateMemory.lock held.
 */
static void private_memory_add_neighbours(PrivateMemory *pm, uint64_t *start,
                                          uint64_t *end, uint64_t low,
                                          uint64_t high)
{
    size_t page_size = qemu_real_host_page_size();
    uint64_t first = QEMU_ALIGN_DOWN(*start, pm->piece_size);
    uint64_t last = MIN(first + pm->piece_size, high);
    FileRange range;
    unsigned long i;

    first = MAX(first, MAX(low, 1 * MiB));
    if (first > *start || last < *end) {
        return;
    }

    while (private_memory_next_leftover(pm, first, *start, &range)) {
        first = range.end;
    }
    if (private_memory_next_leftover(pm, *end, last, &range)) {
        last = range.start;
    }
    while (private_memory_next(pm, first, *start, &range)) {
        first = range.end;
    }
    if (private_memory_next(pm, *end, last, &range)) {
        last = range.start;
    }
    i = first / page_size;
    while ((i = find_next_bit(pm->asked, *start / page_size, i)) <
           *start / page_size) {
        first = ++i * page_size;
    }
    last = find_next_bit(pm->asked, last / page_size, *end / page_size) *
           page_size;
    *start = first;
    *end = last;
}

/*
 * Make a page private, and with it what is around it, from @start to @end.
 *
 * A guest that does not have to ask may be about to share some of that, or may
 * already have told a device of it.  It must not lose what is written there, so
 * keep the shared half for when the guest accesses it.
 *
 * Called with PrivateMemory.lock held.
 */
static int private_memory_touch_private(PrivateMemory *pm, uint64_t offset,
                                        uint64_t size, uint64_t start,
                                        uint64_t end)
{
    bool changed = false;
    int ret = private_memory_allocate(pm, start, end, &changed);
    uint64_t unwanted = pm->isolated ? start : offset;
    uint64_t unwanted_end = pm->isolated ? end : offset + size;

    if (!pm->isolated) {
        private_memory_set_asked(pm, start, end, true);
    }
    private_memory_set_asked(pm, offset, offset + size, false);
    if (changed) {
        int err;

        private_memory_advise(pm, start, end, false);
        err = private_memory_discard_private(pm, unwanted, unwanted_end);

        ret = ret ?: err;
    }
    ret = ret ?: changed;
    if (ret) {
        stat64_add(&pm->changes, 1);
    }
    trace_private_memory_convert(start, end - start, "implicit", "private",
                                 ret);
    return ret;
}

/* Called with PrivateMemory.lock held. */
static int private_memory_touch_shared(PrivateMemory *pm, uint64_t offset,
                                       uint64_t size)
{
    int ret;

    if (pm->isolated && !private_memory_may_share(pm, offset, offset + size)) {
        trace_private_memory_refuse(offset, size);
        return -EPERM;
    }
    ret = private_memory_convert_chunk(pm, offset, offset + size, false);
    if (ret >= 0 && !pm->isolated) {
        private_memory_set_asked(pm, offset, offset + size, true);
    }
    trace_private_memory_convert(offset, size, "implicit", "shared", ret);
    return ret;
}

int private_memory_convert_accessed(PrivateMemory *pm, uint64_t offset,
                                    uint64_t size, bool to_private,
                                    uint64_t low, uint64_t high)
{
    uint64_t start = offset, end = offset + size;
    int ret;

    if (!pm->asked) {
        return private_memory_convert(pm, offset, size, to_private, true);
    }

    QEMU_LOCK_GUARD(&pm->lock);
    if (to_private) {
        private_memory_add_neighbours(pm, &start, &end, low, high);
        ret = private_memory_touch_private(pm, offset, size, start, end);
        if (ret < 0 && end - start > size) {
            ret = private_memory_touch_private(pm, offset, size, offset,
                                               offset + size);
        }
    } else {
        ret = private_memory_touch_shared(pm, offset, size);
    }
    if (ret > 0) {
        stat64_add(private_memory_counter(pm, to_private, true), 1);
    } else if (ret < 0) {
        stat64_add(&pm->failures, 1);
    }
    return ret;
}

uint64_t private_memory_piece_size(PrivateMemory *pm)
{
    return pm->piece_size;
}

void private_memory_refuse(PrivateMemory *pm)
{
    stat64_add(&pm->failures, 1);
}

/* The pages must be shared. */
static int private_memory_load_pages(PrivateMemory *pm, uint64_t start,
                                     uint64_t end, Error **errp)
{
    size_t page_size = qemu_real_host_page_size();
    ssize_t n;
    int ret;

    while (start < end) {
        uint64_t next = MIN(QEMU_ALIGN_UP(start + 1, CHUNK_SIZE), end);

        n = RETRY_ON_EINTR(pwrite(pm->fd, pm->block->host + start,
                                  next - start, start));
        if (n <= 0 || !QEMU_IS_ALIGNED(n, page_size)) {
            ret = n < 0 ? -errno : -EIO;
            error_setg_errno(errp, -ret, "can't allocate private memory");
            return ret;
        }

        /* The host must not keep a copy of what is private. */
        ret = ram_block_discard_range(pm->block, start, n);
        if (ret < 0) {
            error_setg(errp, "can't discard shared memory");
            private_memory_punch(pm, start, start + n);
            return ret;
        }
        private_memory_set_asked(pm, start, start + n, false);
        start += n;
    }
    return 0;
}

/* Called with PrivateMemory.lock held. */
static int private_memory_load_range(PrivateMemory *pm, uint64_t start,
                                     uint64_t end, Error **errp)
{
    FileRange private = { end, end };
    int ret;

    while (start < end) {
        if (!private_memory_next(pm, start, end, &private)) {
            private.start = private.end = end;
        }
        ret = private_memory_load_pages(pm, start, private.start, errp);
        if (ret) {
            return ret;
        }
        start = private.end;
    }
    return 0;
}

/* Within a page */
static void private_memory_clear(PrivateMemory *pm, hwaddr gpa, hwaddr end)
{
    MemoryRegionSection section;

    if (gpa == end) {
        return;
    }
    section = memory_region_find(get_system_memory(), gpa, end - gpa);
    if (section.mr && section.mr->ram_block == pm->block &&
        !section.readonly) {
        address_space_set(&address_space_memory, gpa, 0, end - gpa,
                          MEMTXATTRS_UNSPECIFIED);
    }
    memory_region_unref(section.mr);
}

void private_memory_clear_around(PrivateMemory *pm, hwaddr gpa, uint64_t size)
{
    size_t page_size = qemu_real_host_page_size();

    private_memory_clear(pm, ROUND_DOWN(gpa, page_size), gpa);
    private_memory_clear(pm, gpa + size, ROUND_UP(gpa + size, page_size));
}

bool private_memory_load(PrivateMemory *pm, hwaddr gpa, uint64_t size,
                         Error **errp)
{
    size_t page_size = qemu_real_host_page_size();
    hwaddr end = ROUND_UP(gpa + size, page_size);
    int ret = 0;

    for (gpa = ROUND_DOWN(gpa, page_size); gpa < end && !ret;) {
        MemoryRegionSection section = memory_region_find(get_system_memory(),
                                                         gpa, end - gpa);
        uint64_t start = section.offset_within_region;
        uint64_t n = int128_get64(section.size);

        if (!section.mr) {
            break;
        }
        if (section.mr->ram_block == pm->block && !section.readonly &&
            QEMU_IS_ALIGNED(start, page_size)) {
            QEMU_LOCK_GUARD(&pm->lock);
            ret = private_memory_load_range(pm, start, start + n, errp);
            trace_private_memory_load(section.offset_within_address_space, n,
                                      start, ret);
        }
        memory_region_unref(section.mr);
        gpa = section.offset_within_address_space + n;
    }
    pm->unusable |= ret < 0;
    return !ret;
}

bool private_memory_contains(const MemoryRegion *mr, uint64_t offset)
{
    PrivateMemory *pm = mr->ram_block->private_memory;

    return pm && lseek(pm->fd, offset, SEEK_DATA) == offset;
}

uint64_t private_memory_skip(const MemoryRegion *mr, uint64_t *offset,
                             uint64_t size)
{
    PrivateMemory *pm = mr->ram_block->private_memory;
    uint64_t end = *offset + size;
    FileRange range;

    if (!pm) {
        return size;
    }
    while (private_memory_next(pm, *offset, end, &range)) {
        if (range.start > *offset) {
            return range.start - *offset;
        }
        *offset = range.end;
    }
    return end - *offset;
}

bool private_memory_watch_dma;

/* Pages that were asked for are not private: mostly there is nothing to do. */
static bool private_memory_hit(PrivateMemory *pm, uint64_t start, uint64_t end)
{
    size_t page_size = qemu_real_host_page_size();
    unsigned long last = DIV_ROUND_UP(end, page_size);
    unsigned long i = find_next_zero_bit(pm->asked, last, start / page_size);
    off_t data;

    if (i == last) {
        return false;
    }
    data = lseek(pm->fd, i * page_size, SEEK_DATA);
    return data >= 0 && data < last * page_size;
}

void private_memory_check_dma(AddressSpace *as, hwaddr addr, hwaddr size)
{
    PrivateMemory *pm = current_machine->private_memory;
    bool hit = false;

    WITH_RCU_READ_LOCK_GUARD() {
        hwaddr next = addr, rest = size;

        while (rest && !hit) {
            hwaddr offset, n = rest;
            MemoryRegion *mr = address_space_translate(as, next, &offset, &n,
                                                       false,
                                                       MEMTXATTRS_UNSPECIFIED);

            hit = mr->ram_block == pm->block &&
                  private_memory_hit(pm, offset, offset + n);
            next += n;
            rest -= n;
        }
    }
    if (!hit) {
        return;
    }

    stat64_add(&pm->dma, 1);
    trace_private_memory_dma(as->name, addr, size);
    QEMU_LOCK_GUARD(&pm->dma_lock);
    if (g_hash_table_add(pm->dma_devices, g_strdup(as->name))) {
        warn_report("%s: the guest has it access private memory, of which it "
                    "sees nothing, at 0x%" HWADDR_PRIx, as->name, addr);
    }
}

uint64_t private_memory_conversions(PrivateMemory *pm)
{
    return stat64_get(&pm->changes);
}

bool private_memory_usable(PrivateMemory *pm)
{
    return !pm->unusable;
}

void private_memory_set_unusable(PrivateMemory *pm)
{
    pm->unusable = true;
}

void private_memory_set_final(PrivateMemory *pm, const uint8_t *measurement,
                              size_t size)
{
    g_autoptr(GString) hex = g_string_new(NULL);
    size_t i;

    assert(!pm->measurement);
    for (i = 0; i < size; i++) {
        g_string_append_printf(hex, "%02x", measurement[i]);
    }
    trace_private_memory_final(hex->str);
    pm->measurement = g_strdup(hex->str);
}

static bool private_memory_has_final(void)
{
    MachineState *ms = current_machine;

    return ms && ms->private_memory && ms->private_memory->measurement;
}

bool private_memory_is_final(Error **errp)
{
    if (!private_memory_has_final()) {
        return false;
    }
    error_setg(errp, "the guest is protected: QEMU has no access to the state "
               "of its CPUs");
    return true;
}

bool private_memory_is_resettable(Error **errp)
{
    if (!private_memory_has_final()) {
        return true;
    }
    error_setg(errp, "the guest is protected: QEMU can't reset it, only be "
               "started again");
    return false;
}

int private_memory_fd(const MemoryRegion *mr)
{
    PrivateMemory *pm = mr->ram_block->private_memory;

    return pm ? pm->fd : -1;
}

#define PRIVATE_MEMORY_DEFAULT_ID "private-ram"

bool private_memory_create_backend(MachineState *machine, Error **errp)
{
    Object *root = object_get_objects_root();
    bool ret;
    Object *obj;

    if (object_property_find(root, PRIVATE_MEMORY_DEFAULT_ID)) {
        error_setg(errp, "object's id '" PRIVATE_MEMORY_DEFAULT_ID "' is "
                   "reserved for the private half of RAM");
        return false;
    }

    obj = object_new(TYPE_MEMORY_BACKEND_MEMFD);
    /* -mem-prealloc is for RAM. */
    ret = object_property_set_bool(obj, "prealloc", false, errp) &&
          object_property_set_uint(obj, "size", machine->ram_size, errp) &&
          object_property_set_bool(obj, "guest-private", true, errp);
    if (machine->memdev) {
        /* RAM is on the same nodes, be it private or shared. */
        HostMemoryBackend *backend = MEMORY_BACKEND(obj);

        backend->policy = machine->memdev->policy;
        bitmap_copy(backend->host_nodes, machine->memdev->host_nodes,
                    MAX_NODES + 1);
    }
    object_property_add_child(root, PRIVATE_MEMORY_DEFAULT_ID, obj);
    ret = ret && user_creatable_complete(USER_CREATABLE(obj), errp);
    if (ret) {
        machine->private_memory_backend = g_strdup(PRIVATE_MEMORY_DEFAULT_ID);
    } else {
        object_unparent(obj);
    }
    object_unref(obj);
    return ret;
}

bool private_memory_create(MachineState *machine, Error **errp)
{
    MachineClass *mc = MACHINE_GET_CLASS(machine);
    const char *id = machine->private_memory_backend;
    RAMBlock *block = machine->ram ? machine->ram->ram_block : NULL;
    g_autofree char *ram_size = size_to_str(machine->ram_size);
    g_autofree char *backend_size = NULL;
    Object *obj, *pm_obj;
    PrivateMemory *pm;
    struct stat st;
    int fd;

    if (!mc->private_memory_supported) {
        error_setg(errp, "machine type '%s' does not support private memory",
                   mc->name);
        return false;
    }
    if (!kvm_enabled()) {
        error_setg(errp, "private memory requires KVM (-accel kvm)");
        return false;
    }
    if (machine->cgs) {
        error_setg(errp, "private-memory-backend can't be used together with "
                   "confidential-guest-support");
        return false;
    }
    if (machine->maxram_size > machine->ram_size || machine->ram_slots) {
        error_setg(errp, "private memory does not support memory hot-plug "
                   "(-m slots, maxmem)");
        return false;
    }
    if (runstate_check(RUN_STATE_INMIGRATE)) {
        error_setg(errp, "private memory can't be migrated (-incoming)");
        return false;
    }
    if (kvm_dirty_ring_enabled()) {
        error_setg(errp, "private memory does not support KVM's dirty ring");
        return false;
    }
    /* Locked pages can't be discarded. */
    if (should_mlock(mlock_state)) {
        error_setg(errp, "private memory does not support locked memory "
                   "(-overcommit mem-lock)");
        return false;
    }

    obj = object_resolve_path_component(object_get_objects_root(), id);
    if (!obj) {
        error_setg(errp, "private-memory-backend: object '%s' not found", id);
        return false;
    }
    fd = memfd_backend_get_guest_private_fd(obj);
    if (fd < 0) {
        error_setg(errp, "private-memory-backend: '%s' is not a "
                   "memory-backend-memfd with guest_private=on", id);
        return false;
    }

    if (!block) {
        error_setg(errp, "private memory requires the machine's RAM to be in "
                   "one memory backend");
        return false;
    }
    if (block->page_size != qemu_real_host_page_size()) {
        error_setg(errp, "private memory requires the machine's RAM not to be "
                   "in huge pages, which can't be discarded one by one");
        return false;
    }
    if (block->flags & RAM_READONLY_FD) {
        error_setg(errp, "private memory requires the machine's RAM to be in a "
                   "file that is open for writing: else it can't be discarded");
        return false;
    }
    if (fstat(fd, &st) < 0) {
        error_setg_errno(errp, errno, "private-memory-backend: '%s'", id);
        return false;
    }
    if (st.st_size != machine->ram_size) {
        backend_size = size_to_str(st.st_size);
        error_setg(errp, "private-memory-backend: the size of '%s' is %s, but "
                   "the machine's RAM size is %s", id, backend_size, ram_size);
        return false;
    }

    if (private_memory_by_address(machine) && machine->memdev->prealloc) {
        error_setg(errp, "private memory does not support preallocation of the "
                   "machine's RAM, of which guests hardly use the shared half "
                   "(prealloc=on, -mem-prealloc)");
        return false;
    }
    if (private_memory_by_address(machine) &&
        machine->memdev->policy != HOST_MEM_POLICY_DEFAULT &&
        MEMORY_BACKEND(obj)->policy == HOST_MEM_POLICY_DEFAULT) {
        error_setg(errp, "the NUMA policy of the machine's RAM does not hold "
                   "for its private half: '%s' needs host-nodes and policy, "
                   "too", id);
        return false;
    }

    if (!kvm_has_private_memory()) {
        error_setg(errp, "the host's KVM does not support private memory in "
                   "guest-sealed memfds");
        return false;
    }
    /* Shared pages are discarded behind the back of assigned devices. */
    if (ram_block_discard_require(true) < 0) {
        error_setg(errp, "private memory requires RAM to be discardable, "
                   "which a device prevents");
        return false;
    }

    pm_obj = object_new(TYPE_PRIVATE_MEMORY);
    pm = PRIVATE_MEMORY(pm_obj);
    pm->pagemap_fd = qemu_open("/proc/self/pagemap", O_RDONLY, errp);
    if (pm->pagemap_fd < 0) {
        ram_block_discard_require(false);
        object_unref(pm_obj);
        return false;
    }
    error_setg(&pm->migration_blocker, "private memory can't be migrated");
    if (migrate_add_blocker(&pm->migration_blocker, errp) < 0) {
        ram_block_discard_require(false);
        object_unref(pm_obj);
        return false;
    }

    if (private_memory_by_address(machine)) {
        /* It would reach the shared half, where the guest does not read. */
        object_register_sugar_prop(TYPE_FW_CFG, "dma_enabled", "off", false);
        pm->asked = bitmap_new(block->max_length / qemu_real_host_page_size());
        pm->piece_size = machine->private_memory_piece_size ?: CHUNK_SIZE;
    } else {
        pm->piece_size = qemu_real_host_page_size();
    }

    if (machine->private_memory_isolation) {
        pm->isolated = true;
        private_memory_watch_dma = true;
    }

    pm->backend = MEMORY_BACKEND(object_ref(obj));
    pm->backend->guest_private_used = true;
    pm->block = block;
    /* Where little is shared, huge pages would give more than that. */
    pm->huge = !pm->asked;
    pm->exceptions = bitmap_new(DIV_ROUND_UP(block->max_length, CHUNK_SIZE));
    private_memory_advise_default(pm);
    block->private_memory = pm;
    pm->fd = fd;
    object_property_add_child(OBJECT(machine), "private-memory", pm_obj);
    object_unref(pm_obj);
    qemu_register_resettable(pm_obj);
    machine->private_memory = pm;

    pm->sweep_timer = timer_new_ms(QEMU_CLOCK_REALTIME, private_memory_sweep,
                                   pm);
    timer_mod(pm->sweep_timer,
              qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + SWEEP_PERIOD_MS);
    return true;
}

static void private_memory_init(Object *obj)
{
    PrivateMemory *pm = PRIVATE_MEMORY(obj);

    qemu_mutex_init(&pm->lock);
    qemu_mutex_init(&pm->dma_lock);
    pm->pagemap_fd = -1;
    pm->dma_devices = g_hash_table_new_full(g_str_hash, g_str_equal, g_free,
                                            NULL);
}

static void private_memory_finalize(Object *obj)
{
    PrivateMemory *pm = PRIVATE_MEMORY(obj);

    timer_free(pm->sweep_timer);
    if (pm->pagemap_fd >= 0) {
        close(pm->pagemap_fd);
    }
    qemu_mutex_destroy(&pm->lock);
    qemu_mutex_destroy(&pm->dma_lock);
    g_free(pm->measurement);
    g_free(pm->asked);
    g_free(pm->exceptions);
    g_hash_table_destroy(pm->dma_devices);
    object_unref(OBJECT(pm->backend));
}

static ResettableState *private_memory_get_reset_state(Object *obj)
{
    return &PRIVATE_MEMORY(obj)->reset_state;
}

/* The first pages that the guest has asked to share, as far as a chunk goes */
static bool private_memory_next_asked(PrivateMemory *pm, FileRange *range)
{
    size_t page_size = qemu_real_host_page_size();
    unsigned long size = pm->block->max_length / page_size;
    unsigned long i = pm->asked ? find_first_bit(pm->asked, size) : size;

    if (i == size) {
        return false;
    }
    range->start = i * page_size;
    range->end = find_next_zero_bit(pm->asked,
                                    MIN(size, i + CHUNK_SIZE / page_size), i) *
                 page_size;
    return true;
}

bool private_memory_reset_step(PrivateMemory *pm)
{
    int64_t begin = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    uint64_t size = pm->block->max_length;
    FileRange range;
    int ret;

    if (!pm->isolated && !pm->resetting) {
        /* It's the same memory as before to a guest that need not ask. */
        QEMU_LOCK_GUARD(&pm->lock);
        private_memory_set_asked(pm, 0, size, false);
    }
    pm->resetting = true;
    while (private_memory_next(pm, 0, size, &range)) {
        uint64_t end = MIN(QEMU_ALIGN_UP(range.start + 1, CHUNK_SIZE), size);

        WITH_QEMU_LOCK_GUARD(&pm->lock) {
            ret = private_memory_to_shared(pm, range.start, end);
        }
        if (ret < 0) {
            /* The reset itself will find the same, and tell. */
            break;
        }
        if (qemu_clock_get_ms(QEMU_CLOCK_REALTIME) >= begin + STEP_MS) {
            return false;
        }
    }

    /* What went through there is no business of the next guest's. */
    while (private_memory_next_asked(pm, &range)) {
        WITH_QEMU_LOCK_GUARD(&pm->lock) {
            private_memory_discard(pm, range.start, range.end);
            private_memory_set_asked(pm, range.start, range.end, false);
        }
        if (qemu_clock_get_ms(QEMU_CLOCK_REALTIME) >= begin + STEP_MS) {
            return false;
        }
    }
    return true;
}

bool private_memory_is_resetting(PrivateMemory *pm)
{
    return pm->resetting;
}

static void private_memory_reset_hold(Object *obj, ResetType type)
{
    PrivateMemory *pm = PRIVATE_MEMORY(obj);
    int ret;

    /* A guest that was suspended to RAM wants it back. */
    if (type == RESET_TYPE_WAKEUP) {
        return;
    }

    WITH_QEMU_LOCK_GUARD(&pm->lock) {
        private_memory_set_asked(pm, 0, pm->block->max_length, false);
        ret = private_memory_to_shared(pm, 0, pm->block->max_length);
        if (ret >= 0) {
            private_memory_advise_default(pm);
        }
    }
    trace_private_memory_reset(ret);
    pm->resetting = false;
    pm->unusable = ret < 0;
    if (ret < 0) {
        error_report("failed to reset private memory: %s", strerror(-ret));
    }
}

static void private_memory_class_init(ObjectClass *oc, void *data)
{
    ResettableClass *rc = RESETTABLE_CLASS(oc);

    rc->get_state = private_memory_get_reset_state;
    rc->phases.hold = private_memory_reset_hold;
}

/* All leftovers, found in steps as by the sweep */
static uint64_t coroutine_fn private_memory_count_leftovers(PrivateMemory *pm)
{
    uint64_t size = pm->block->max_length;
    int64_t begin = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    uint64_t start = 0, sum = 0;
    FileRange range;

    while (private_memory_next(pm, start, size, &range)) {
        start = MIN(range.start + CHUNK_SIZE, size);
        sum += private_memory_leftovers(pm, range.start, start, false);
        if (qemu_clock_get_ms(QEMU_CLOCK_REALTIME) >= begin + STEP_MS) {
            qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, STEP_MS * SCALE_MS);
            begin = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
        }
    }
    return sum;
}

PrivateMemoryInfo *coroutine_fn qmp_query_private_memory(Error **errp)
{
    PrivateMemory *pm = current_machine->private_memory;
    PrivateMemoryInfo *info;
    struct stat st;

    if (!pm) {
        error_setg(errp, "the machine has no private memory");
        return NULL;
    }
    if (fstat(pm->fd, &st) < 0) {
        error_setg_errno(errp, errno, "can't tell how much is private");
        return NULL;
    }

    info = g_new0(PrivateMemoryInfo, 1);
    info->size = st.st_size;
    info->q_private = st.st_blocks * 512;
    info->shared = info->size - info->q_private;
    info->to_private = stat64_get(&pm->to_private);
    info->to_shared = stat64_get(&pm->to_shared);
    info->implicit_to_private = stat64_get(&pm->implicit_to_private);
    info->implicit_to_shared = stat64_get(&pm->implicit_to_shared);
    info->failures = stat64_get(&pm->failures);
    info->dma = stat64_get(&pm->dma);
    info->leftover = private_memory_count_leftovers(pm);
    info->q_protected = current_machine->private_memory_protected;
    info->final = pm->measurement;
    info->measurement = g_strdup(pm->measurement);
    return info;
}

void coroutine_fn hmp_info_private_memory(Monitor *mon, const QDict *qdict)
{
    g_autoptr(PrivateMemoryInfo) info = NULL;
    Error *err = NULL;

    info = qmp_query_private_memory(&err);
    if (hmp_handle_error(mon, err)) {
        return;
    }

    monitor_printf(mon, "size: %" PRIu64 "\n", info->size);
    monitor_printf(mon, "private: %" PRIu64 "\n", info->q_private);
    monitor_printf(mon, "shared: %" PRIu64 "\n", info->shared);
    monitor_printf(mon, "conversions to private: %" PRIu64 "\n",
                   info->to_private);
    monitor_printf(mon, "conversions to shared: %" PRIu64 "\n",
                   info->to_shared);
    monitor_printf(mon, "implicit conversions to private: %" PRIu64 "\n",
                   info->implicit_to_private);
    monitor_printf(mon, "implicit conversions to shared: %" PRIu64 "\n",
                   info->implicit_to_shared);
    monitor_printf(mon, "failed conversions: %" PRIu64 "\n", info->failures);
    monitor_printf(mon, "accesses by devices: %" PRIu64 "\n", info->dma);
    monitor_printf(mon, "leftover: %" PRIu64 "\n", info->leftover);
    monitor_printf(mon, "protected: %s\n", info->q_protected ? "yes" : "no");
    monitor_printf(mon, "final: %s\n", info->final ? "yes" : "no");
    if (info->measurement) {
        monitor_printf(mon, "measurement: %s\n", info->measurement);
    }
}
