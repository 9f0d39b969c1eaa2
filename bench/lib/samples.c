// SPDX-License-Identifier: GPL-2.0-only
#include <err.h>
#include <stdarg.h>
#include <stdio.h>

#include "samples.h"

static const char *path, *separator = "[";
static FILE *file;

void samples_begin(const char *name)
{
	path = name;
	file = fopen(path, "w");
	if (!file)
		err(1, "%s", path);
}

void sample(const char *format, ...)
{
	va_list arguments;

	fprintf(file, "%s\n{", separator);
	separator = ",";
	va_start(arguments, format);
	vfprintf(file, format, arguments);
	va_end(arguments);
	fprintf(file, "}");

	/* Who waits sees how far it has come. */
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
	fflush(stdout);
}

void samples_end(void)
{
	fprintf(file, "\n]\n");
	if (fclose(file))
		err(1, "%s", path);
}
