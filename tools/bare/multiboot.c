// SPDX-License-Identifier: GPL-2.0-only
/*
 * A guest without an operating system, which says "hello" on its serial port once
 * firmware has loaded it by the multiboot protocol.
 */
#include <stdint.h>

#define SERIAL 0x3f8

asm(".pushsection .text.start, \"ax\"\n"
    ".balign 4\n"
    ".long 0x1badb002, 0, -0x1badb002\n" /* the multiboot header */
    ".globl _start\n"
    "_start:\n"
    "mov $stack + 4096, %esp\n"
    "call run\n"
    ".popsection\n");

char stack[4096] __attribute__((aligned(16)));

__attribute__((noreturn, used)) void run(void)
{
	for (const char *text = "hello\n"; *text; text++)
		asm volatile("outb %0, %1" : : "a"(*text), "d"((uint16_t)SERIAL));
	for (;;)
		asm volatile("hlt");
}
