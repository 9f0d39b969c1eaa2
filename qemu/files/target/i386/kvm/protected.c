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
#include "qemu/cutils.h"
#include "qemu/error-report.h"
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

/* All vCPUs are stopped, and everything else is ready for them to run. */
static void kvm_finalize_vm(void *opaque, bool running, RunState state)
{
    MachineState *ms = opaque;
    PrivateMemory *pm = ms->private_memory;
    struct kvm_x86_finalize_vm finalize = { .key = kvm_key };
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
    ret = kvm_vm_ioctl(kvm_state, KVM_X86_FINALIZE_VM, &finalize);
    if (ret < 0) {
        error_report("KVM can't finalize the protected VM: %s", strerror(-ret));
        exit(EXIT_FAILURE);
    }
    kvm_mark_guest_state_protected();
    private_memory_set_final(pm, finalize.measurement,
                             sizeof(finalize.measurement));
}

bool kvm_protected_init(MachineState *ms, Error **errp)
{
    if (ms->private_memory_key &&
        !kvm_find_key(ms->private_memory_key, &kvm_key, errp)) {
        return false;
    }
    /* After all others: some of them set what is final then. */
    qemu_add_vm_change_state_handler_prio(kvm_finalize_vm, ms, INT_MAX);
    return true;
}
