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
};

typedef struct {
    uint64_t start, end;
} FileRange;

/* No more memory than that is held twice during a conversion. */
#define CHUNK_SIZE (2 * MiB)

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
 * Where the data at @start ends, or a chunk of it.  SEEK_HOLE looks at all
 * pages up to the next hole, which may be most of the file, and that for each
 * chunk.  So look for it only if it's near.
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
    range->end = file_data_end(pm->fd, data, end);
    return true;
}

static int private_memory_allocate(PrivateMemory *pm, uint64_t start,
                                   uint64_t end, bool *changed)
{
    while (start < end) {
        /* Fails if there is no data up to the end of the file. */
        off_t data = lseek(pm->fd, start, SEEK_DATA);

        if (data == start) {
            start = file_data_end(pm->fd, start, end);
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
 * What has become private stays so on failure: another vCPU may have used it
 * since.
 */
static int private_memory_to_private(PrivateMemory *pm, uint64_t start,
                                     uint64_t end)
{
    bool changed = false;
    int ret = private_memory_allocate(pm, start, end, &changed);
    FileRange range;

    while (changed && private_memory_next(pm, start, end, &range)) {
        int err = ram_block_discard_range(pm->block, range.start,
                                          range.end - range.start);

        ret = ret ?: err;
        start = range.end;
    }

    return ret ?: changed;
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
        ret = ram_block_discard_range(pm->block, range.start,
                                      range.end - range.start);
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
                ram_block_discard_range(pm->block, leftover.start,
                                        leftover.end - leftover.start);
            }
            start = leftover.end;
        }
        start = private.end;
    }
    return sum;
}

/*
 * Look at all memory every ten seconds, in steps, between which the main loop
 * has time for more important things.
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

    timer_mod(pm->sweep_timer, now + STEP_MS);
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

int private_memory_convert_step(PrivateConversion *c)
{
    PrivateMemory *pm = c->pm;
    uint64_t end = MIN(QEMU_ALIGN_UP(c->next + 1, CHUNK_SIZE), c->end);
    int ret;

    QEMU_LOCK_GUARD(&pm->lock);

    if (c->to_private) {
        ret = private_memory_to_private(pm, c->next, end);
    } else {
        ret = private_memory_to_shared(pm, c->next, end);
    }
    if (ret) {
        stat64_add(&pm->changes, 1);
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

void private_memory_refuse(PrivateMemory *pm)
{
    stat64_add(&pm->failures, 1);
}

static int private_memory_load_page(PrivateMemory *pm, uint64_t offset,
                                    Error **errp)
{
    size_t page_size = qemu_real_host_page_size();
    /* This can't but allocate the page, and fails if that's been done. */
    ssize_t ret = RETRY_ON_EINTR(pwrite(pm->fd, pm->block->host + offset,
                                        page_size, offset));

    if (ret < 0 && errno == EEXIST) {
        return 0;
    }
    if (ret != page_size) {
        ret = ret < 0 ? -errno : -EIO;
        error_setg_errno(errp, -ret, "can't allocate private memory");
        return ret;
    }

    /* The host must not keep a copy of what is private. */
    ret = ram_block_discard_range(pm->block, offset, page_size);
    if (ret < 0) {
        error_setg(errp, "can't discard shared memory");
        private_memory_punch(pm, offset, offset + page_size);
        return ret;
    }
    return 0;
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
        uint64_t i, n = int128_get64(section.size);

        if (!section.mr) {
            break;
        }
        if (section.mr->ram_block == pm->block && !section.readonly &&
            QEMU_IS_ALIGNED(start, page_size)) {
            QEMU_LOCK_GUARD(&pm->lock);
            for (i = 0; i < n && !ret; i += page_size) {
                ret = private_memory_load_page(pm, start + i, errp);
            }
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

uint64_t private_memory_conversions(PrivateMemory *pm)
{
    return stat64_get(&pm->changes);
}

bool private_memory_usable(PrivateMemory *pm)
{
    return !pm->unusable;
}

int private_memory_fd(const MemoryRegion *mr)
{
    PrivateMemory *pm = mr->ram_block->private_memory;

    return pm ? pm->fd : -1;
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

    if (machine->private_memory_shared_bit) {
        /* Little is shared, and huge pages would give more than that. */
        qemu_madvise(block->host, block->max_length, QEMU_MADV_NOHUGEPAGE);
        /* It would reach the shared half, where the guest does not read. */
        object_register_sugar_prop(TYPE_FW_CFG, "dma_enabled", "off", false);
    }

    pm->backend = MEMORY_BACKEND(object_ref(obj));
    pm->backend->guest_private_used = true;
    pm->block = block;
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
    pm->pagemap_fd = -1;
}

static void private_memory_finalize(Object *obj)
{
    PrivateMemory *pm = PRIVATE_MEMORY(obj);

    timer_free(pm->sweep_timer);
    if (pm->pagemap_fd >= 0) {
        close(pm->pagemap_fd);
    }
    qemu_mutex_destroy(&pm->lock);
    object_unref(OBJECT(pm->backend));
}

static ResettableState *private_memory_get_reset_state(Object *obj)
{
    return &PRIVATE_MEMORY(obj)->reset_state;
}

bool private_memory_reset_step(PrivateMemory *pm)
{
    int64_t begin = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    uint64_t size = pm->block->max_length;
    FileRange range;
    int ret;

    pm->resetting = true;
    while (private_memory_next(pm, 0, size, &range)) {
        WITH_QEMU_LOCK_GUARD(&pm->lock) {
            ret = private_memory_to_shared(pm, range.start,
                                           MIN(range.start + CHUNK_SIZE, size));
        }
        if (ret < 0) {
            /* The reset itself will find the same, and tell. */
            break;
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
        ret = private_memory_to_shared(pm, 0, pm->block->max_length);
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

PrivateMemoryInfo *qmp_query_private_memory(Error **errp)
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
    info->leftover = private_memory_leftovers(pm, 0, info->size, false);
    return info;
}

void hmp_info_private_memory(Monitor *mon, const QDict *qdict)
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
    monitor_printf(mon, "leftover: %" PRIu64 "\n", info->leftover);
}
