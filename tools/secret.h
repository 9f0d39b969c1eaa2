/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The secret of the demo: 64 bytes that follow from a seed.  The seed is told
 * to the host, which can so look for a secret that was never sent to it.
 */
#ifndef SECRET_H
#define SECRET_H

#include <stdint.h>

#define SECRET_WORDS 8
#define SECRET_BYTES (SECRET_WORDS * sizeof(uint64_t))

enum secret_kind { SECRET_ORDINARY, SECRET_PRIVATE };

/* splitmix64: no two words of a secret are ever in registers together. */
static inline uint64_t secret_word(uint64_t seed, enum secret_kind kind, int i)
{
	uint64_t z = seed + (kind * SECRET_WORDS + i + 1) * 0x9e3779b97f4a7c15;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

/* What the guest computes from its copy, to show that it has it. */
static inline uint64_t secret_sum(const volatile uint64_t *secret)
{
	uint64_t sum = 0xcbf29ce484222325;

	for (int i = 0; i < SECRET_WORDS; i++)
		sum = (sum ^ secret[i]) * 0x100000001b3;
	return sum;
}

#endif
