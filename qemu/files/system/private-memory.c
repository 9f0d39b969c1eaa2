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
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/stats64.h"
#include "qemu/thread.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-machine.h"
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
#include "system/system.h"
#include "trace.h"

struct PrivateMemory {
    Object parent_obj;

    ResettableState reset_state;
    HostMemoryBackend *backend;
    RAMBlock *block;
    int fd;
    Error *migration_blocker;

    /* Undoing a conversion relies on nobody else's being under way. */
    QemuMutex lock;
    Stat64 to_private, to_shared;
    Stat64 implicit_to_private, implicit_to_shared;
    Stat64 failures;
};

typedef struct {
    uint64_t start, end;
} FileRange;

OBJECT_DEFINE_SIMPLE_TYPE_WITH_INTERFACES(PrivateMemory, private_memory,
                                          PRIVATE_MEMORY, OBJECT,
                                          { TYPE_RESETTABLE_INTERFACE }, { })

static int private_memory_punch(PrivateMemory *pm, uint64_t start, uint64_t end)
{
    int ret = RETRY_ON_EINTR(fallocate(pm->fd, FALLOC_FL_PUNCH_HOLE |
                                       FALLOC_FL_KEEP_SIZE,
                                       start, end - start));

    return ret ? -errno : 0;
}

/* Add the ranges that were not allocated before to @done, also on failure. */
static int private_memory_allocate(PrivateMemory *pm, uint64_t start,
                                   uint64_t end, GArray *done)
{
    while (start < end) {
        off_t hole = lseek(pm->fd, start, SEEK_HOLE);
        off_t data;
        FileRange range;

        if (hole < 0) {
            return -errno;
        }
        if (hole >= end) {
            break;
        }

        /* Fails if there is no data up to the end of the file. */
        data = lseek(pm->fd, hole, SEEK_DATA);
        range.start = hole;
        range.end = data < 0 ? end : MIN(data, end);
        g_array_append_val(done, range);

        if (!fallocate(pm->fd, 0, range.start, range.end - range.start)) {
            start = range.end;
        } else if (errno != EINTR) {
            return -errno;
        }
    }

    return 0;
}

static int private_memory_to_private(PrivateMemory *pm, uint64_t start,
                                     uint64_t end)
{
    g_autoptr(GArray) done = g_array_new(false, false, sizeof(FileRange));
    int ret = private_memory_allocate(pm, start, end, done);

    if (!ret && done->len) {
        ret = ram_block_discard_range(pm->block, start, end - start);
    }
    if (ret) {
        for (guint i = 0; i < done->len; i++) {
            FileRange *range = &g_array_index(done, FileRange, i);

            trace_private_memory_undo(range->start, range->end - range->start);
            private_memory_punch(pm, range->start, range->end);
        }
        return ret;
    }

    return done->len > 0;
}

static int private_memory_to_shared(PrivateMemory *pm, uint64_t start,
                                    uint64_t end)
{
    off_t data = lseek(pm->fd, start, SEEK_DATA);
    int ret;

    if (data < 0 || data >= end) {
        return 0;
    }
    ret = private_memory_punch(pm, start, end);
    return ret ?: 1;
}

static Stat64 *private_memory_counter(PrivateMemory *pm, bool to_private,
                                      bool implicit)
{
    if (implicit) {
        return to_private ? &pm->implicit_to_private : &pm->implicit_to_shared;
    }
    return to_private ? &pm->to_private : &pm->to_shared;
}

int private_memory_convert(PrivateMemory *pm, hwaddr gpa, uint64_t size,
                           bool to_private, bool implicit)
{
    uint64_t offset = 0;
    int ret = -EINVAL;

    if (kvm_find_private_memory(gpa, size, &offset)) {
        QEMU_LOCK_GUARD(&pm->lock);
        ret = to_private ? private_memory_to_private(pm, offset, offset + size)
                         : private_memory_to_shared(pm, offset, offset + size);
    }

    if (ret < 0) {
        stat64_add(&pm->failures, 1);
    } else if (ret > 0 || !implicit) {
        stat64_add(private_memory_counter(pm, to_private, implicit), 1);
    }
    trace_private_memory_convert(gpa, size, offset,
                                 implicit ? "implicit" : "explicit",
                                 to_private ? "private" : "shared", ret);
    return ret;
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
    hwaddr start = ROUND_DOWN(gpa, page_size);
    uint64_t offset, i;
    int ret = 0;

    size = ROUND_UP(gpa + size, page_size) - start;
    if (!kvm_find_private_memory(start, size, &offset)) {
        return true;
    }

    for (i = 0; i < size && !ret; i += page_size) {
        ret = private_memory_load_page(pm, offset + i, errp);
    }

    trace_private_memory_load(gpa, size, offset, ret);
    return !ret;
}

uint64_t private_memory_conversions(PrivateMemory *pm)
{
    return stat64_get(&pm->to_private) + stat64_get(&pm->to_shared) +
           stat64_get(&pm->implicit_to_private) +
           stat64_get(&pm->implicit_to_shared);
}

int private_memory_fd(const MemoryRegion *mr)
{
    PrivateMemory *pm = current_machine->private_memory;

    return pm && pm->block == mr->ram_block ? pm->fd : -1;
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
    error_setg(&pm->migration_blocker, "private memory can't be migrated");
    if (migrate_add_blocker(&pm->migration_blocker, errp) < 0) {
        ram_block_discard_require(false);
        object_unref(pm_obj);
        return false;
    }

    /* It would reach the shared half, from where the guest does not read. */
    if (machine->private_memory_shared_bit) {
        object_register_sugar_prop(TYPE_FW_CFG, "dma_enabled", "off", false);
    }

    pm->backend = MEMORY_BACKEND(object_ref(obj));
    pm->block = block;
    pm->fd = fd;
    object_property_add_child(OBJECT(machine), "private-memory", pm_obj);
    object_unref(pm_obj);
    qemu_register_resettable(pm_obj);
    machine->private_memory = pm;
    return true;
}

static void private_memory_init(Object *obj)
{
    qemu_mutex_init(&PRIVATE_MEMORY(obj)->lock);
}

static void private_memory_finalize(Object *obj)
{
    PrivateMemory *pm = PRIVATE_MEMORY(obj);

    qemu_mutex_destroy(&pm->lock);
    object_unref(OBJECT(pm->backend));
}

static ResettableState *private_memory_get_reset_state(Object *obj)
{
    return &PRIVATE_MEMORY(obj)->reset_state;
}

static void private_memory_reset_hold(Object *obj, ResetType type)
{
    PrivateMemory *pm = PRIVATE_MEMORY(obj);
    int ret;

    /* A guest that was suspended to RAM wants it back. */
    if (type == RESET_TYPE_WAKEUP) {
        return;
    }

    ret = private_memory_punch(pm, 0, pm->block->max_length);
    trace_private_memory_reset(ret);
    if (ret) {
        error_report("failed to reset private memory: %s", strerror(-ret));
        exit(EXIT_FAILURE);
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
}
