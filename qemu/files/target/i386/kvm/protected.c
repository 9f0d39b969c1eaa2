/*
 * Protected VMs, whose state KVM keeps from QEMU
 *
 * QEMU builds the machine as any other.  Before vCPUs run for the first time,
 * KVM is told that it is complete, and measures it: from then on there is no
 * access to registers, and no change of what was built.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/syscall.h>
#include <linux/kvm.h>
#include <asm/kvm_measurement.h>
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "hw/boards.h"
#include "hw/core/cpu.h"
#include "system/kvm.h"
#include "system/kvm_int.h"
#include "system/private-memory.h"
#include "system/runstate.h"
#include "kvm_i386.h"

/* The serial number of private-memory-key, 0 if there is none */
static int kvm_key;

/* Of private-memory-launch-log, open until the guest is final; or -1 */
static int kvm_launch_log_fd = -1;

/* Records for it, which KVM's log lacks */
static GByteArray *kvm_launch_pages;

/* It's given as such, or as TYPE:NAME. */
static bool kvm_find_key(const char *key, int *serial, Error **errp)
{
    g_autofree char *type = NULL;
    const char *name = strchr(key, ':');
    long ret;

    if (!qemu_strtoi(key, NULL, 0, serial) && *serial > 0) {
        return true;
    }
    if (!name || name == key || !name[1]) {
        error_setg(errp, "private-memory-key='%s' is neither the serial number "
                   "of a key nor TYPE:NAME", key);
        return false;
    }
    type = g_strndup(key, name - key);
    ret = syscall(__NR_request_key, type, name + 1, NULL, 0);
    if (ret < 0) {
        error_setg_errno(errp, errno, "private-memory-key='%s'", key);
        return false;
    }
    *serial = ret;
    return true;
}

static void kvm_put_state(CPUState *cpu, run_on_cpu_data data)
{
    Error *err = NULL;
    int ret;

    if (!cpu->vcpu_dirty) {
        return;
    }
    ret = kvm_arch_put_registers(cpu, KVM_PUT_RUNTIME_STATE, &err);
    if (ret) {
        if (!err) {
            error_setg_errno(&err, -ret, "can't set registers");
        }
        error_report_err(err);
        exit(EXIT_FAILURE);
    }
    cpu->vcpu_dirty = false;
}

void kvm_launch_log_reset(void)
{
    if (kvm_launch_pages) {
        g_byte_array_set_size(kvm_launch_pages, 0);
    }
}

void kvm_launch_log_add(hwaddr addr, const void *data, size_t size)
{
    const struct kvm_measurement_record record = {
        .type = KVM_MEASUREMENT_PAGE,
        .len = sizeof(struct kvm_measurement_page),
    };
    size_t n;

    if (!kvm_launch_pages) {
        return;
    }
    for (; size; addr += n, data += n, size -= n) {
        struct kvm_measurement_page page = { .gpa = addr };

        n = MIN(size, sizeof(page.content));
        memcpy(page.content, data, n);
        g_byte_array_append(kvm_launch_pages, (void *)&record, sizeof(record));
        g_byte_array_append(kvm_launch_pages, (void *)&page, sizeof(page));
    }
}

/* Pages come last, in spite of the log's END: order makes no difference. */
static bool kvm_write_launch_log(const void *log, size_t size, Error **errp)
{
    GByteArray *pages = kvm_launch_pages;
    int fd = kvm_launch_log_fd;
    int err = 0;

    kvm_launch_log_fd = -1;
    if (qemu_write_full(fd, log, size) != size ||
        qemu_write_full(fd, pages->data, pages->len) != pages->len) {
        err = errno;
    }
    if (qemu_close(fd) < 0 && !err) {
        err = errno;
    }
    if (err) {
        error_setg_errno(errp, err, "can't write private-memory-launch-log");
    }
    return !err;
}

/* All vCPUs are stopped, and everything else is ready for them to run. */
static void kvm_finalize_vm(void *opaque, bool running, RunState state)
{
    MachineState *ms = opaque;
    PrivateMemory *pm = ms->private_memory;
    struct kvm_x86_finalize_vm finalize = { .key = kvm_key };
    g_autofree void *log = NULL;
    Error *err = NULL;
    CPUState *cpu;
    int ret;

    /* The error is there to be seen; the guest does not run then. */
    if (!running || private_memory_is_final(NULL) ||
        !private_memory_usable(pm)) {
        return;
    }

    CPU_FOREACH(cpu) {
        run_on_cpu(cpu, kvm_put_state, RUN_ON_CPU_NULL);
    }
    kvm_freeze_memory();
    if (kvm_launch_log_fd >= 0) {
        /* Most likely enough: what is too small has all measured again. */
        finalize.log_size = (4 + ms->smp.cpus) * 16 * KiB;
    }
    do {
        if (finalize.log_size) {
            log = g_realloc(log, finalize.log_size);
            finalize.log = (uintptr_t)log;
        }
        ret = kvm_vm_ioctl(kvm_state, KVM_X86_FINALIZE_VM, &finalize);
    } while (ret == -E2BIG);
    if (ret < 0) {
        error_report("KVM can't finalize the protected VM: %s", strerror(-ret));
        exit(EXIT_FAILURE);
    }
    kvm_mark_guest_state_protected();
    private_memory_set_final(pm, finalize.measurement,
                             sizeof(finalize.measurement));
    if (kvm_launch_log_fd >= 0 &&
        !kvm_write_launch_log(log, finalize.log_size, &err)) {
        error_report_err(err);
        exit(EXIT_FAILURE);
    }
}

bool kvm_protected_init(MachineState *ms, const char *launch_log, Error **errp)
{
    if (kvm_kernel_irqchip_split()) {
        error_setg(errp, "private-memory-protected requires all of KVM's "
                   "interrupt controllers (kernel-irqchip=on)");
        return false;
    }
    if (ms->private_memory_key &&
        !kvm_find_key(ms->private_memory_key, &kvm_key, errp)) {
        return false;
    }
    if (launch_log) {
        kvm_launch_log_fd = qemu_create(launch_log, O_WRONLY | O_TRUNC, 0644,
                                        errp);
        if (kvm_launch_log_fd < 0) {
            return false;
        }
        kvm_launch_pages = g_byte_array_new();
    }
    /* After all others: some of them set what is final then. */
    qemu_add_vm_change_state_handler_prio(kvm_finalize_vm, ms, INT_MAX);
    return true;
}
