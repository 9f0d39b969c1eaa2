// SPDX-License-Identifier: GPL-2.0
/*
 * SHA-384 of four messages at once: what a hash over many pages can use that are hashed
 * one by one
 */
#include <linux/cpufeature.h>
#include <linux/export.h>
#include <linux/module.h>

#include <asm/fpu/api.h>
#include <asm/simd.h>

#include "sha384_4x.h"

/**
 * sha384_4x - compute the SHA-384 of four messages of the same length
 * @data: the messages
 * @len: how long each of them is, a multiple of SHA384_BLOCK_SIZE
 * @digests: where to put their digests, of SHA384_DIGEST_SIZE each
 *
 * That takes less time than to hash three of them one after the other.
 * Whoever uses it needs another way, too: it's there for CPUs with AVX2 only.
 *
 * Context: Any.  Preemption is disabled meanwhile, so don't do much at once.
 * Return: false, with nothing done, if that's not possible here.
 */
bool sha384_4x(const u8 *const data[SHA384_LANES], unsigned int len,
	       u8 *const digests[SHA384_LANES])
{
	if (!boot_cpu_has(X86_FEATURE_AVX2) ||
	    !cpu_has_xfeatures(XFEATURE_MASK_SSE | XFEATURE_MASK_YMM, NULL) ||
	    !may_use_simd())
		return false;

	kernel_fpu_begin();
	sha384_4x_avx2(data, len, digests);
	kernel_fpu_end();
	return true;
}
EXPORT_SYMBOL_GPL(sha384_4x);

MODULE_DESCRIPTION("SHA-384 of four messages at once, by AVX2");
MODULE_LICENSE("GPL");
