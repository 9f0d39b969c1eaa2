/* SPDX-License-Identifier: GPL-2.0-only */
/* What kernels older than the series lack for the driver. */
#include <linux/version.h>

#define KVM_FEATURE_PRIVATE_MEMORY 22

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
/* Good enough for a mapping that is still being made. */
#define vm_flags_set(vma, flags) ((vma)->vm_flags |= (flags))
#endif
