/* SPDX-License-Identifier: GPL-2.0 */
#ifndef ARCH_X86_CRYPTO_SHA384_4X_H
#define ARCH_X86_CRYPTO_SHA384_4X_H

#include <asm/sha384_4x.h>

/* Between kernel_fpu_begin() and kernel_fpu_end() only */
bool sha384_4x_avx2(const u8 *const data[SHA384_LANES], unsigned int len,
		    u8 *const digests[SHA384_LANES]);

#endif /* ARCH_X86_CRYPTO_SHA384_4X_H */
