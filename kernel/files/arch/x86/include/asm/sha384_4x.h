/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _ASM_X86_SHA384_4X_H
#define _ASM_X86_SHA384_4X_H

#include <linux/types.h>

/* How many messages sha384_4x() hashes */
#define SHA384_LANES	4

bool sha384_4x(const u8 *const data[SHA384_LANES], unsigned int len,
	       u8 *const digests[SHA384_LANES]);

#endif /* _ASM_X86_SHA384_4X_H */
