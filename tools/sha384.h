/* SPDX-License-Identifier: GPL-2.0-only */
/* SHA-384, by FIPS 180-4 */
#ifndef SHA384_H
#define SHA384_H

#include <stdint.h>
#include <string.h>

#define SHA384_SIZE 48
#define SHA384_BLOCK 128

struct sha384 {
	uint64_t h[8];
	uint64_t size;
	uint8_t block[SHA384_BLOCK];
};

static inline uint64_t sha384_ror(uint64_t x, int n)
{
	return x >> n | x << (64 - n);
}

static inline void sha384_block(struct sha384 *sha, const uint8_t *block)
{
	/* Fractional parts of the cube roots of the first 80 primes */
	static const uint64_t k[80] = {
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
	uint64_t w[80], v[8];

	for (int i = 0; i < 16; i++) {
		w[i] = 0;
		for (int j = 0; j < 8; j++)
			w[i] = w[i] << 8 | block[8 * i + j];
	}
	for (int i = 16; i < 80; i++) {
		uint64_t a = w[i - 15], b = w[i - 2];

		w[i] = w[i - 16] + w[i - 7] + (sha384_ror(a, 1) ^ sha384_ror(a, 8) ^ a >> 7) +
		       (sha384_ror(b, 19) ^ sha384_ror(b, 61) ^ b >> 6);
	}

	memcpy(v, sha->h, sizeof(v));
	for (int i = 0; i < 80; i++) {
		uint64_t a = v[0], e = v[4];
		uint64_t t1 = v[7] + k[i] + w[i] + ((e & v[5]) ^ (~e & v[6])) +
			      (sha384_ror(e, 14) ^ sha384_ror(e, 18) ^ sha384_ror(e, 41));
		uint64_t t2 = ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2])) +
			      (sha384_ror(a, 28) ^ sha384_ror(a, 34) ^ sha384_ror(a, 39));

		memmove(v + 1, v, 7 * sizeof(*v));
		v[4] += t1;
		v[0] = t1 + t2;
	}
	for (int i = 0; i < 8; i++)
		sha->h[i] += v[i];
}

static inline void sha384_init(struct sha384 *sha)
{
	/* Those of the square roots of the ninth to the sixteenth prime */
	static const uint64_t h[8] = {
		0xcbbb9d5dc1059ed8, 0x629a292a367cd507, 0x9159015a3070dd17, 0x152fecd8f70e5939,
		0x67332667ffc00b31, 0x8eb44a8768581511, 0xdb0c2e0d64f98fa7, 0x47b5481dbefa4fa4,
	};

	memcpy(sha->h, h, sizeof(h));
	sha->size = 0;
}

static inline void sha384_update(struct sha384 *sha, const void *data, size_t size)
{
	const uint8_t *next = data;

	while (size) {
		size_t used = sha->size % SHA384_BLOCK;
		size_t n = SHA384_BLOCK - used < size ? SHA384_BLOCK - used : size;

		if (n == SHA384_BLOCK) {
			sha384_block(sha, next);
		} else {
			memcpy(sha->block + used, next, n);
			if (used + n == SHA384_BLOCK)
				sha384_block(sha, sha->block);
		}
		sha->size += n;
		next += n;
		size -= n;
	}
}

static inline void sha384_final(struct sha384 *sha, uint8_t *digest)
{
	static const uint8_t pad[2 * SHA384_BLOCK] = { 0x80 };
	/* 16 bytes, of which the first 8 are 0 */
	uint64_t bits = sha->size * 8;
	size_t used = sha->size % SHA384_BLOCK;
	uint8_t length[8];

	for (int i = 0; i < 8; i++)
		length[i] = bits >> (56 - 8 * i);
	sha384_update(sha, pad, (used < 112 ? 120 : 248) - used);
	sha384_update(sha, length, sizeof(length));
	for (int i = 0; i < SHA384_SIZE; i++)
		digest[i] = sha->h[i / 8] >> (56 - 8 * (i % 8));
}

#endif /* SHA384_H */
