// SPDX-License-Identifier: GPL-2.0
/*
 * SHA-384 (FIPS 180-4) of four messages at once, by AVX2: each 64-bit lane has the state
 * of one.
 *
 * All of this file is compiled for AVX2, so it may be called between kernel_fpu_begin()
 * and kernel_fpu_end() only.
 */
#include <crypto/sha2.h>
#include <linux/array_size.h>
#include <linux/compiler.h>
#include <linux/errno.h>
#include <linux/string.h>
#include <linux/unaligned.h>

#include <asm/asm.h>
#include <asm/extable_fixup_types.h>

#include "sha384_4x.h"

typedef u64 u64x4 __attribute__((vector_size(32)));

static const u64 sha512_k[80] = {
	0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc,
	0x3956c25bf348b538, 0x59f111f1b605d019, 0x923f82a4af194f9b, 0xab1c5ed5da6d8118,
	0xd807aa98a3030242, 0x12835b0145706fbe, 0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2,
	0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235, 0xc19bf174cf692694,
	0xe49b69c19ef14ad2, 0xefbe4786384f25e3, 0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65,
	0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5,
	0x983e5152ee66dfab, 0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4,
	0xc6e00bf33da88fc2, 0xd5a79147930aa725, 0x06ca6351e003826f, 0x142929670a0e6e70,
	0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed, 0x53380d139d95b3df,
	0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b,
	0xa2bfe8a14cf10364, 0xa81a664bbc423001, 0xc24b8b70d0f89791, 0xc76c51a30654be30,
	0xd192e819d6ef5218, 0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8,
	0x19a4c116b8d2d0c8, 0x1e376c085141ab53, 0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8,
	0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb, 0x5b9cca4f7763e373, 0x682e6ff3d6b2b8a3,
	0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
	0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b,
	0xca273eceea26619c, 0xd186b8c721c0c207, 0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178,
	0x06f067aa72176fba, 0x0a637dc5a2c898a6, 0x113f9804bef90dae, 0x1b710b35131c471b,
	0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc, 0x431d67c49c100d4c,
	0x4cc5d4becb3e42b6, 0x597f299cfc657e2a, 0x5fcb6fab3ad6faec, 0x6c44198c4a475817,
};

/* An instruction without an operator in C */
#define insn_4x(insn, x, y)							\
({										\
	u64x4 _r;								\
										\
	asm(insn " %2, %1, %0" : "=x" (_r) : "x" (x), "xm" (y));		\
	_r;									\
})

/* Bytes 1 to 7 and 0 of each lane */
static const u64 ror8_bytes[SHA384_LANES] __aligned(32) = {
	0x0007060504030201, 0x080f0e0d0c0b0a09,
	0x0007060504030201, 0x080f0e0d0c0b0a09,
};

static __always_inline u64x4 ror8_4x(u64x4 x)
{
	return insn_4x("vpshufb", x, *(const u64x4 *)ror8_bytes);
}

static __always_inline u64x4 ror_4x(u64x4 x, int n)
{
	return x >> n | x << (64 - n);
}

/* The functions of FIPS 180-4 */
static __always_inline u64x4 ch_4x(u64x4 x, u64x4 y, u64x4 z)
{
	return z ^ (x & (y ^ z));
}

/* In the next round, x ^ y is y ^ z. */
static __always_inline u64x4 maj_4x(u64x4 x, u64x4 y, u64x4 z)
{
	return ((x ^ y) & (y ^ z)) ^ y;
}

static __always_inline u64x4 sum0_4x(u64x4 x)
{
	return ror_4x(x, 28) ^ ror_4x(x, 34) ^ ror_4x(x, 39);
}

static __always_inline u64x4 sum1_4x(u64x4 x)
{
	return ror_4x(x, 14) ^ ror_4x(x, 18) ^ ror_4x(x, 41);
}

static __always_inline u64x4 sigma0_4x(u64x4 x)
{
	return ror_4x(x, 1) ^ ror8_4x(x) ^ x >> 7;
}

static __always_inline u64x4 sigma1_4x(u64x4 x)
{
	return ror_4x(x, 19) ^ ror_4x(x, 61) ^ x >> 6;
}

/* The others keep their value, and have another name in the next round. */
static __always_inline void round_4x(u64x4 a, u64x4 b, u64x4 c, u64x4 *d,
				     u64x4 e, u64x4 f, u64x4 g, u64x4 *h, u64 k, u64x4 w)
{
	u64x4 t = *h + sum1_4x(e) + ch_4x(e, f, g) + k + w;

	*d += t;
	*h = t + sum0_4x(a) + maj_4x(a, b, c);
}

/*
 * What takes the place of w[i] in the next 16 rounds.  Compilers would like to have all
 * of them in registers, of which there are not enough: what they'd do then costs more
 * than to load them again.
 */
static __always_inline void schedule_4x(u64x4 w[16], int i)
{
	w[i] += sigma1_4x(w[(i + 14) % 16]) + w[(i + 9) % 16] + sigma0_4x(w[(i + 1) % 16]);
	barrier();
}

/* One block of each message */
static void sha512_4x_block(u64x4 state[8], u64x4 w[16])
{
	u64x4 a = state[0], b = state[1], c = state[2], d = state[3];
	u64x4 e = state[4], f = state[5], g = state[6], h = state[7];
	const u64 *k = sha512_k;

	for (;;) {
		round_4x(a, b, c, &d, e, f, g, &h, k[0], w[0]);
		round_4x(h, a, b, &c, d, e, f, &g, k[1], w[1]);
		round_4x(g, h, a, &b, c, d, e, &f, k[2], w[2]);
		round_4x(f, g, h, &a, b, c, d, &e, k[3], w[3]);
		round_4x(e, f, g, &h, a, b, c, &d, k[4], w[4]);
		round_4x(d, e, f, &g, h, a, b, &c, k[5], w[5]);
		round_4x(c, d, e, &f, g, h, a, &b, k[6], w[6]);
		round_4x(b, c, d, &e, f, g, h, &a, k[7], w[7]);
		round_4x(a, b, c, &d, e, f, g, &h, k[8], w[8]);
		round_4x(h, a, b, &c, d, e, f, &g, k[9], w[9]);
		round_4x(g, h, a, &b, c, d, e, &f, k[10], w[10]);
		round_4x(f, g, h, &a, b, c, d, &e, k[11], w[11]);
		round_4x(e, f, g, &h, a, b, c, &d, k[12], w[12]);
		round_4x(d, e, f, &g, h, a, b, &c, k[13], w[13]);
		round_4x(c, d, e, &f, g, h, a, &b, k[14], w[14]);
		round_4x(b, c, d, &e, f, g, h, &a, k[15], w[15]);

		k += 16;
		if (k == sha512_k + ARRAY_SIZE(sha512_k))
			break;

		schedule_4x(w, 0);
		schedule_4x(w, 1);
		schedule_4x(w, 2);
		schedule_4x(w, 3);
		schedule_4x(w, 4);
		schedule_4x(w, 5);
		schedule_4x(w, 6);
		schedule_4x(w, 7);
		schedule_4x(w, 8);
		schedule_4x(w, 9);
		schedule_4x(w, 10);
		schedule_4x(w, 11);
		schedule_4x(w, 12);
		schedule_4x(w, 13);
		schedule_4x(w, 14);
		schedule_4x(w, 15);
	}

	state[0] += a;
	state[1] += b;
	state[2] += c;
	state[3] += d;
	state[4] += e;
	state[5] += f;
	state[6] += g;
	state[7] += h;
}

static const u64 sha384_h[8] = {
	SHA384_H0, SHA384_H1, SHA384_H2, SHA384_H3, SHA384_H4, SHA384_H5, SHA384_H6, SHA384_H7,
};

/* Each word's bytes in reverse order */
static const u64 be64_bytes[SHA384_LANES] __aligned(32) = {
	0x0001020304050607, 0x08090a0b0c0d0e0f,
	0x0001020304050607, 0x08090a0b0c0d0e0f,
};

static __always_inline u64x4 be64_4x(u64x4 x)
{
	return insn_4x("vpshufb", x, *(const u64x4 *)be64_bytes);
}

/* The first words of both halves of x and y */
static __always_inline u64x4 unpack_low_4x(u64x4 x, u64x4 y)
{
	return insn_4x("vpunpcklqdq", x, y);
}

/* Their second words */
static __always_inline u64x4 unpack_high_4x(u64x4 x, u64x4 y)
{
	return insn_4x("vpunpckhqdq", x, y);
}

/* The low halves of x and y */
static __always_inline u64x4 low_halves_4x(u64x4 x, u64x4 y)
{
	return insn_4x("vperm2i128 $0x20,", x, y);
}

static __always_inline u64x4 high_halves_4x(u64x4 x, u64x4 y)
{
	return insn_4x("vperm2i128 $0x31,", x, y);
}

/*
 * The next four words of each message, one message in each lane.  0, or -EFAULT if
 * there's a machine check, which the host survives as it would in copy_mc_to_kernel().
 */
static __always_inline int load_words_4x(u64x4 w[4], const u8 *data0, const u8 *data1,
					 const u8 *data2, const u8 *data3)
{
	u64x4 x0, x1, x2, x3, low01, high01, low23, high23;
	int r = -EFAULT;

	asm volatile("1: vmovdqu (%[data0]), %[x0]\n"
		     "2: vmovdqu (%[data1]), %[x1]\n"
		     "3: vmovdqu (%[data2]), %[x2]\n"
		     "4: vmovdqu (%[data3]), %[x3]\n"
		     "   xor %[r], %[r]\n"
		     "5:\n"
		     _ASM_EXTABLE_TYPE(1b, 5b, EX_TYPE_DEFAULT_MCE_SAFE)
		     _ASM_EXTABLE_TYPE(2b, 5b, EX_TYPE_DEFAULT_MCE_SAFE)
		     _ASM_EXTABLE_TYPE(3b, 5b, EX_TYPE_DEFAULT_MCE_SAFE)
		     _ASM_EXTABLE_TYPE(4b, 5b, EX_TYPE_DEFAULT_MCE_SAFE)
		     : [r] "+&r" (r), [x0] "=&x" (x0), [x1] "=&x" (x1), [x2] "=&x" (x2),
		       [x3] "=&x" (x3)
		     : [data0] "r" (data0), [data1] "r" (data1), [data2] "r" (data2),
		       [data3] "r" (data3)
		     : "cc", "memory");
	if (r)
		return r;

	x0 = be64_4x(x0);
	x1 = be64_4x(x1);
	x2 = be64_4x(x2);
	x3 = be64_4x(x3);
	low01 = unpack_low_4x(x0, x1);
	high01 = unpack_high_4x(x0, x1);
	low23 = unpack_low_4x(x2, x3);
	high23 = unpack_high_4x(x2, x3);
	w[0] = low_halves_4x(low01, low23);
	w[1] = low_halves_4x(high01, high23);
	w[2] = high_halves_4x(low01, low23);
	w[3] = high_halves_4x(high01, high23);
	return 0;
}

/* The next block of each message */
static int load_4x(u64x4 w[16], const u8 *const data[SHA384_LANES], unsigned int at)
{
	unsigned int i;
	int r = 0;

	for (i = 0; i < 16 && !r; i += 4, at += sizeof(u64x4))
		r = load_words_4x(w + i, data[0] + at, data[1] + at, data[2] + at,
				  data[3] + at);
	return r;
}

bool sha384_4x_avx2(const u8 *const data[SHA384_LANES], unsigned int len,
		    u8 *const digests[SHA384_LANES])
{
	u64x4 state[8] = {}, w[16];
	unsigned int at, i, lane;
	int r = 0;

	for (i = 0; i < ARRAY_SIZE(state); i++)
		state[i] += sha384_h[i];

	for (at = 0; at < len && !r; at += SHA384_BLOCK_SIZE) {
		r = load_4x(w, data, at);
		if (!r)
			sha512_4x_block(state, w);
	}

	if (r)
		return false;

	/* The padding: one bit, and the length in bits */
	memset(w, 0, sizeof(w));
	w[0] += 1ull << 63;
	w[15] += len * 8ull;
	sha512_4x_block(state, w);

	for (i = 0; i < SHA384_DIGEST_SIZE / sizeof(u64); i++) {
		const u64 *words = (const u64 *)&state[i];

		for (lane = 0; lane < SHA384_LANES; lane++)
			put_unaligned_be64(words[lane], digests[lane] + i * sizeof(u64));
	}
	return true;
}
