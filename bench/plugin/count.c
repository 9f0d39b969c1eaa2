// SPDX-License-Identifier: GPL-2.0-only
/*
 * A plugin for QEMU's TCG: instructions of the emulated host's kernel, by address. Its
 * arguments are out=FILE, and where the kernel comes by when bench/profile.c calls for
 * it: begin=, end= and next=ADDRESS. What is counted between begin and end belongs to
 * the section that next began. To the file go lines of section, address and number;
 * address 0 is what isn't the kernel.
 */
#include <err.h>
#include <inttypes.h>
#include <qemu-plugin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KERNEL 0xffff800000000000UL
#define MOST_SECTIONS 16

QEMU_PLUGIN_EXPORT int qemu_plugin_version = API_VERSION;

/* A block of instructions that are executed one after the other. */
struct block {
	struct block *next;
	uint64_t address, counted[MOST_SECTIONS];
	unsigned int instructions;
};

static struct block *blocks;
static uint64_t begin, end, next;
static unsigned int section;
static int counting;
static const char *out;

static void executed(unsigned int cpu, void *data)
{
	struct block *block = data;

	(void)cpu;
	if (block->address == begin)
		counting = 1;
	else if (block->address == end)
		counting = 0;
	else if (block->address == next && section < MOST_SECTIONS - 1)
		section++;
	else if (counting)
		block->counted[section] += block->instructions;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	struct block *block = calloc(1, sizeof(*block));

	(void)id;
	if (!block)
		err(1, "no memory");
	block->address = qemu_plugin_tb_vaddr(tb);
	block->instructions = qemu_plugin_tb_n_insns(tb);
	block->next = blocks;
	blocks = block;
	qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, QEMU_PLUGIN_CB_NO_REGS, block);
}

static void finish(qemu_plugin_id_t id, void *data)
{
	FILE *file = fopen(out, "w");
	const struct block *block;
	unsigned int i;

	(void)id;
	(void)data;
	if (!file)
		err(1, "%s", out);
	for (block = blocks; block; block = block->next) {
		for (i = 0; i <= section; i++) {
			if (block->counted[i])
				fprintf(file, "%u %" PRIx64 " %" PRIu64 "\n", i,
					block->address < KERNEL ? 0 : block->address,
					block->counted[i]);
		}
	}
	fclose(file);
}

static const char *value_of(int argc, char **argv, const char *key)
{
	size_t length = strlen(key);
	int i;

	for (i = 0; i < argc; i++) {
		if (!strncmp(argv[i], key, length) && argv[i][length] == '=')
			return argv[i] + length + 1;
	}
	errx(1, "count: no %s=", key);
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
					   char **argv)
{
	(void)info;
	out = value_of(argc, argv, "out");
	begin = strtoull(value_of(argc, argv, "begin"), NULL, 16);
	end = strtoull(value_of(argc, argv, "end"), NULL, 16);
	next = strtoull(value_of(argc, argv, "next"), NULL, 16);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	qemu_plugin_register_atexit_cb(id, finish, NULL);
	return 0;
}
