// SPDX-License-Identifier: GPL-2.0
/*
 * SHA-384 of four messages at once: what a hash over many pages can use that are hashed
 * one by one
 */
#include <crypto/sha2.h>
#include <linux/cache.h>
#include <linux/cpufeature.h>
#include <linux/export.h>
#include <linux/module.h>
#include <linux/string.h>

#include <asm/fpu/api.h>
#include <asm/simd.h>

#include "sha384_4x.h"

static bool is_usable __ro_after_init;

/**
 * sha384_4x - compute the SHA-384 of four messages of the same length
 * @data: the messages
 * @len: how long each of them is, a multiple of SHA384_BLOCK_SIZE
 * @digests: where to put their digests, of SHA384_DIGEST_SIZE each
 *
 * That takes less time than to hash three of them one after the other.
 * Whoever uses it needs another way, too: it's there for CPUs with AVX2 only.
 *
 * If there's a memory error in one of the messages the host survives that, as it would
 * in copy_mc_to_kernel().
 *
 * Context: Any but NMI.  Preemption is disabled meanwhile, so don't do much at once.
 * Return: false if that's not possible here, or if there's a memory error.
 */
bool sha384_4x(const u8 *const data[SHA384_LANES], unsigned int len,
	       u8 *const digests[SHA384_LANES])
{
	bool done;

	if (!is_usable || !may_use_simd())
		return false;

	kernel_fpu_begin();
	done = sha384_4x_avx2(data, len, digests);
	kernel_fpu_end();
	return done;
}
EXPORT_SYMBOL_GPL(sha384_4x);

#define TEST_LEN	(2 * SHA384_BLOCK_SIZE)

/* Of the messages that fill_message() makes, by OpenSSL */
static const u8 test_digests[SHA384_LANES][SHA384_DIGEST_SIZE] __initconst = {
	{
		0x41, 0x8d, 0xf5, 0xdf, 0x83, 0xe2, 0x1b, 0x6a, 0x72, 0xc9, 0xe3, 0xee,
		0xc9, 0xd7, 0xf8, 0x65, 0x94, 0x68, 0xf3, 0xd6, 0x1a, 0x12, 0xe4, 0xf3,
		0xfd, 0xe9, 0xfd, 0x3d, 0xa2, 0x5a, 0xfa, 0x1f, 0xe3, 0x08, 0x78, 0x14,
		0x82, 0xd1, 0x88, 0xd5, 0x3c, 0x03, 0x8a, 0x21, 0xf1, 0x26, 0x50, 0xd4,
	},
	{
		0x39, 0x92, 0xb8, 0x0f, 0x7d, 0xef, 0x33, 0xd8, 0x65, 0xf5, 0xbc, 0xdc,
		0xa4, 0xec, 0x85, 0x12, 0x48, 0x75, 0x93, 0x25, 0x9b, 0x4c, 0x8c, 0x7f,
		0xc0, 0xdf, 0xb3, 0x3f, 0xa7, 0x05, 0xd6, 0xb7, 0x96, 0x26, 0x3c, 0x40,
		0x40, 0x57, 0xb0, 0x24, 0xfa, 0xdd, 0xe7, 0x6c, 0xcb, 0xfe, 0x11, 0xd7,
	},
	{
		0x59, 0x5f, 0xb3, 0x93, 0x0f, 0x03, 0x65, 0xda, 0x26, 0xec, 0xa4, 0xc7,
		0xc4, 0xeb, 0x36, 0xb7, 0x25, 0x0b, 0x5d, 0x77, 0x38, 0xf0, 0x19, 0xb9,
		0xa4, 0xf4, 0xa0, 0xa3, 0x20, 0x81, 0x57, 0x16, 0xcc, 0xa8, 0xcf, 0x2c,
		0x9a, 0x98, 0x77, 0xc0, 0xe6, 0xfb, 0xf5, 0xc8, 0xe6, 0xca, 0x5f, 0xf7,
	},
	{
		0xed, 0x22, 0xac, 0xda, 0xa3, 0x71, 0x1a, 0x80, 0x47, 0x04, 0x39, 0x7f,
		0x99, 0x1c, 0x7b, 0x38, 0x68, 0x76, 0xa6, 0x4e, 0x42, 0x34, 0xe0, 0x22,
		0x75, 0x0c, 0x3b, 0xa0, 0x43, 0x2a, 0x5c, 0xa0, 0x5a, 0x52, 0xba, 0xa3,
		0x6c, 0x6e, 0xaa, 0x44, 0xb1, 0xea, 0x1a, 0x7e, 0xa6, 0x24, 0x07, 0xd3,
	},
};

static void __init fill_message(u8 *message, unsigned int lane)
{
	unsigned int i;

	for (i = 0; i < TEST_LEN; i++)
		message[i] = lane * 59 + i * 7 + (i >> 5) * 13;
}

static u8 test_messages[SHA384_LANES][TEST_LEN] __initdata;
static u8 test_results[SHA384_LANES][SHA384_DIGEST_SIZE] __initdata;

static bool __init passes_test(void)
{
	const u8 *data[SHA384_LANES];
	u8 *digests[SHA384_LANES];
	unsigned int lane;

	for (lane = 0; lane < SHA384_LANES; lane++) {
		fill_message(test_messages[lane], lane);
		data[lane] = test_messages[lane];
		digests[lane] = test_results[lane];
	}

	kernel_fpu_begin();
	sha384_4x_avx2(data, TEST_LEN, digests);
	kernel_fpu_end();
	return !memcmp(test_results, test_digests, sizeof(test_digests));
}

static int __init sha384_4x_init(void)
{
	if (!boot_cpu_has(X86_FEATURE_AVX2) ||
	    !cpu_has_xfeatures(XFEATURE_MASK_SSE | XFEATURE_MASK_YMM, NULL))
		return 0;

	is_usable = passes_test();
	if (!is_usable)
		pr_err("sha384_4x: wrong results, it's not used\n");
	return 0;
}
module_init(sha384_4x_init);

MODULE_DESCRIPTION("SHA-384 of four messages at once, by AVX2");
MODULE_LICENSE("GPL");
