/*
 * What starts Linux when QEMU has put all of it into private memory
 *
 * Firmware enters this as a PVH kernel: in flat 32-bit mode, with the address
 * of struct hvm_start_info in EBX.  That tells of two things that firmware has
 * made, the memory map and the ACPI tables.  Copy them to struct boot_params,
 * where QEMU has filled in everything else, and go on by Linux's 32-bit boot
 * protocol.
 *
 * hw/i386/linuxboot-private.h has this as QEMU needs it.  To make it:
 *
 *   gcc -m32 -c linuxboot_private.S -o linuxboot_private.o
 *   ld -m elf_i386 -Ttext=0x11000 --oformat=binary linuxboot_private.o \
 *      -o linuxboot_private
 *   xxd -i linuxboot_private
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/* Where QEMU puts struct boot_params; this is at the page after it. */
#define BOOT_PARAMS             0x10000

/* Offsets in struct boot_params */
#define ACPI_RSDP_ADDR          0x070
#define E820_ENTRIES            0x1e8
#define CODE32_START            0x214
#define E820_TABLE              0x2d0
#define E820_MAX_ENTRIES        128
#define E820_ADDR               0
#define E820_TYPE               16
#define E820_SIZE               20

#define E820_RESERVED           2
#define E820_NVS                4

/* Offsets in struct hvm_start_info */
#define RSDP_PADDR              32
#define MEMMAP_PADDR            40
#define MEMMAP_ENTRIES          48

#define BOOT_CS                 0x10
#define BOOT_DS                 0x18

    .code32
    .text
    .globl _start
_start:
    cli
    cld
    movl    $BOOT_PARAMS, %edx

    movl    RSDP_PADDR(%ebx), %eax
    movl    %eax, ACPI_RSDP_ADDR(%edx)
    movl    RSDP_PADDR + 4(%ebx), %eax
    movl    %eax, ACPI_RSDP_ADDR + 4(%edx)

    movl    MEMMAP_ENTRIES(%ebx), %ecx
    cmpl    $E820_MAX_ENTRIES, %ecx
    jbe     1f
    movl    $E820_MAX_ENTRIES, %ecx
1:
    movb    %cl, E820_ENTRIES(%edx)
    movl    MEMMAP_PADDR(%ebx), %esi
    leal    E820_TABLE(%edx), %edi
    jecxz   4f

    /* The entries are the same, but for four reserved bytes at the end. */
2:
    movsl
    movsl
    movsl
    movsl
    movsl
    lodsl
    /*
     * Linux takes what is reserved for shared, which firmware's segment with
     * its tables (DMI, MP) is not.
     */
    cmpl    $0xf0000, E820_ADDR - E820_SIZE(%edi)
    jne     3f
    cmpl    $E820_RESERVED, E820_TYPE - E820_SIZE(%edi)
    jne     3f
    movl    $E820_NVS, E820_TYPE - E820_SIZE(%edi)
3:
    loop    2b

4:
    lgdt    gdt_descriptor
    ljmp    $BOOT_CS, $5f
5:
    movl    $BOOT_DS, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %fs
    movl    %eax, %gs
    movl    %eax, %ss
    movl    %edx, %esi
    xorl    %ebx, %ebx
    xorl    %edi, %edi
    xorl    %ebp, %ebp
    jmp     *CODE32_START(%esi)

    .balign 8
gdt:
    .quad   0
    .quad   0
    .quad   0x00cf9b000000ffff      /* BOOT_CS: flat code */
    .quad   0x00cf93000000ffff      /* BOOT_DS: flat data */
gdt_end:

gdt_descriptor:
    .word   gdt_end - gdt - 1
    .long   gdt
