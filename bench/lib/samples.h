/* SPDX-License-Identifier: GPL-2.0-only */
/* Samples go to a file, as a JSON array of objects; bench/report makes tables of them. */
#ifndef BENCH_SAMPLES_H
#define BENCH_SAMPLES_H

void samples_begin(const char *path);
void samples_end(void);

/* What is in the braces of one object, as for printf(). */
__attribute__((format(printf, 1, 2))) void sample(const char *format, ...);

#endif
