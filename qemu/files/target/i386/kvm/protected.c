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
#include <linux/keyctl.h>
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

/*
 * What these records are: KVM measures the hashes of pages, but who computes
 * the measurement for another kernel needs their content.
 */
#define LAUNCH_LOG_CONTENT 0x100

struct launch_log_content {
    uint64_t gpa;
    uint8_t content[4096];
};

/* It's given as such, or as TYPE:NAME. */
static bool kvm_look_up_key(const char *key, int *serial, Error **errp)
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

/*
 * KVM looks at the key when the guest becomes final.  It may be another one by
 * then, but who has got it wrong wants to know now.
 */
static bool kvm_check_key(const char *key, int serial, Error **errp)
{
    static const char *const types[] = {
        "encrypted", "logon", "trusted", NULL
    };
    /* TYPE;UID;GID;PERMISSIONS;NAME: more than it can be */
    g_autofree char *description = g_malloc0(8192);

    if (syscall(__NR_keyctl, KEYCTL_DESCRIBE, serial, description,
                8192) >= 0) {
        description[strcspn(description, ";")] = '\0';
        if (!g_strv_contains(types, description)) {
            error_setg(errp, "private-memory-key='%s' is of type %s, not %s, "
                       "%s or %s, which can't be read back", key, description,
                       types[0], types[1], types[2]);
            return false;
        }
    } else if (errno != EACCES) {
        error_setg_errno(errp, errno, "private-memory-key='%s'", key);
        return false;
    }

    /* What KVM needs is leave to search it, whatever that is in keys. */
    if (syscall(__NR_keyctl, KEYCTL_SEARCH, serial, "user", "-", 0) < 0 &&
        errno != ENOTDIR) {
        error_setg_errno(errp, errno, "private-memory-key='%s'", key);
        return false;
    }
    return true;
}

static bool kvm_find_key(const char *key, int *serial, Error **errp)
{
    return kvm_look_up_key(key, serial, errp) &&
           kvm_check_key(key, *serial, errp);
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
        .type = LAUNCH_LOG_CONTENT,
        .len = sizeof(struct launch_log_content),
    };
    size_t n;

    if (!kvm_launch_pages) {
        return;
    }
    for (; size; addr += n, data += n, size -= n) {
        struct launch_log_content page = { .gpa = cpu_to_le64(addr) };

        n = MIN(size, sizeof(page.content));
        memcpy(page.content, data, n);
        g_byte_array_append(kvm_launch_pages, (void *)&record, sizeof(record));
        g_byte_array_append(kvm_launch_pages, (void *)&page, sizeof(page));
    }
}

/* These come last, in spite of the log's END: order makes no difference. */
static bool kvm_write_launch_log(const void *log, size_t size, Error **errp)
{
    g_autoptr(GByteArray) pages = kvm_launch_pages;
    int fd = kvm_launch_log_fd;
    int err = 0;
    struct stat st;

    kvm_launch_log_fd = -1;
    kvm_launch_pages = NULL;
    if (fstat(fd, &st) < 0 ||
        (S_ISREG(st.st_mode) && ftruncate(fd, 0) < 0) ||
        qemu_write_full(fd, log, size) != size ||
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
    if (kvm_state->msr_energy.enable) {
        error_setg(errp, "private-memory-protected does not support MSRs that "
                   "QEMU has the values of (-accel kvm,rapl=on)");
        return false;
    }
    if (kvm_state->notify_vmexit == NOTIFY_VMEXIT_OPTION_INTERNAL_ERROR ||
        kvm_state->notify_window) {
        error_setg(errp, "private-memory-protected does not support VM exits "
                   "to notify of (-accel kvm,notify-vmexit=internal-error, "
                   "notify-window)");
        return false;
    }
    if (ms->private_memory_key &&
        !kvm_find_key(ms->private_memory_key, &kvm_key, errp)) {
        return false;
    }
    if (launch_log) {
        /* What is in it stays there as long as nothing takes its place. */
        kvm_launch_log_fd = qemu_create(launch_log, O_WRONLY, 0644, errp);
        if (kvm_launch_log_fd < 0) {
            return false;
        }
        kvm_launch_pages = g_byte_array_new();
    }
    /* After all others: some of them set what is final then. */
    qemu_add_vm_change_state_handler_prio(kvm_finalize_vm, ms, INT_MAX);
    return true;
}
