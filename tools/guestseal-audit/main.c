// SPDX-License-Identifier: GPL-2.0-only
/*
 * On the host, as root: try every way for its userspace to read or change the private
 * memory of a guest.
 *
 *	guestseal-audit [--all] [--json|--tap] [--list] [--pid PID] [NAME...]
 *
 * See docs/man/guestseal-audit.8.
 */
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "audit.h"

static const struct group *const groups[] = {
	&read_group,	&write_group,  &descriptor_group, &order_group,	 &mapping_group,
	&process_group, &memory_group, &kvm_group,	  &device_group, &freed_group,
	&kernel_group,	&launch_group, &state_group,	  &event_group,	 &make_group,
	&page_group,	&run_group,    &other_group,
};

enum verdict { CLOSED, OPEN, INCONCLUSIVE, NOT_HERE, OUT_OF_SCOPE, LEFT_OUT, NR_VERDICTS };

static const char *const verdicts[] = {
	"closed", "OPEN", "inconclusive", "not applicable", "out of scope", "left out",
};

static enum { TABLE, JSON, TAP } form;
static bool all;
static unsigned int counts[NR_VERDICTS], total;

/* --- output ---------------------------------------------------------------------------- */

static void json_string(const char *key, const char *text)
{
	printf("\"%s\": \"", key);
	for (; *text; text++) {
		if (*text == '"' || *text == '\\')
			putchar('\\');
		if ((unsigned char)*text >= ' ')
			putchar(*text);
	}
	putchar('"');
}

static void print(const struct group *group, const struct attack *attack, enum verdict verdict,
		  const char *control, const char *text, const char *scope)
{
	bool bad = verdict == OPEN || verdict == INCONCLUSIVE;

	counts[verdict]++;
	total++;
	switch (form) {
	case TABLE:
		printf("%-10s %-31s %-14s %s%s%s\n", group->name, attack->name, verdicts[verdict],
		       text, verdict == OUT_OF_SCOPE ? "; " : "",
		       verdict == OUT_OF_SCOPE ? scope : "");
		break;
	case TAP:
		printf("%sok %u - %s: %s: %s: %s%s\n", bad ? "not " : "", total, group->name,
		       attack->name, verdicts[verdict], text,
		       verdict == NOT_HERE || verdict == LEFT_OUT ? " # SKIP" : "");
		break;
	case JSON:
		printf("%s\n    { ", total > 1 ? "," : "");
		json_string("family", group->family);
		printf(", ");
		json_string("group", group->name);
		printf(", ");
		json_string("attack", attack->name);
		printf(", ");
		json_string("what", attack->what);
		printf(", ");
		json_string("result", verdicts[verdict]);
		printf(", ");
		json_string("control", control);
		printf(", ");
		json_string("detail", text);
		if (verdict == OUT_OF_SCOPE) {
			printf(", ");
			json_string("scope", scope);
		}
		printf(" }");
		break;
	}
	fflush(stdout);
}

static void begin(pid_t pid)
{
	struct utsname name;

	uname(&name);
	switch (form) {
	case TABLE:
		printf("%-10s %-31s %-14s %s\n", "group", "attack", "result", "why");
		break;
	case TAP:
		printf("TAP version 13\n");
		break;
	case JSON:
		printf("{\n  ");
		json_string("kernel", name.release);
		printf(",\n  \"pid\": %d,\n  \"attacks\": [", pid);
		break;
	}
}

static void finish(void)
{
	switch (form) {
	case TABLE:
		printf("\n%u attacks:", total);
		for (int i = 0; i < NR_VERDICTS; i++)
			printf("%s %u %s", i ? "," : "", counts[i], verdicts[i]);
		printf("\n");
		break;
	case TAP:
		printf("1..%u\n", total);
		break;
	case JSON:
		printf("\n  ],\n  \"summary\": { \"attacks\": %u", total);
		for (int i = 0; i < NR_VERDICTS; i++)
			printf(", \"%s\": %u", verdicts[i], counts[i]);
		printf(" }\n}\n");
		break;
	}
}

/* --- attacks ------------------------------------------------------------------------------ */

/* Has it come to what it has to where memory is ordinary? */
static bool reached(const struct attack *attack, const struct result *result)
{
	return result->outcome == attack->wants ||
	       (attack->wants == DONE && result->outcome == CHANGED);
}

/* @scope: why it isn't kept out, if it is not */
static void judge(const struct group *group, const struct attack *attack,
		  const struct result *control, const struct result *result, const char *scope)
{
	char text[sizeof(control->text) + 64];

	if (control->outcome == LACKING) {
		print(group, attack, NOT_HERE, control->text, control->text, NULL);
	} else if (!reached(attack, control)) {
		snprintf(text, sizeof(text), "not even ordinary memory: %s", control->text);
		print(group, attack, INCONCLUSIVE, control->text, text, NULL);
	} else if (result->outcome == SEEN || result->outcome == CHANGED ||
		   result->outcome == TOLD || result->outcome == LET) {
		print(group, attack, scope ? OUT_OF_SCOPE : OPEN, control->text, result->text,
		      scope);
	} else if (result->outcome == LACKING || result->outcome == BROKEN) {
		print(group, attack, INCONCLUSIVE, control->text, result->text, NULL);
	} else {
		print(group, attack, CLOSED, control->text, result->text, NULL);
	}
}

static void make(const struct group *group, const struct attack *attack)
{
	struct result control, result = { .outcome = BROKEN };

	if (attack->flags & DISTURBS && !all) {
		print(group, attack, LEFT_OUT, "", "it disturbs the host; --all has it", NULL);
		return;
	}
	control = attempt(attack, false);
	if (reached(attack, &control))
		result = attempt(attack, true);
	judge(group, attack, &control, &result, attack->scope);
}

/* On a file of another process's VM, or on that VM if there's no such @fd */
static void make_on(const struct group *group, const struct attack *attack, int fd, off_t offset,
		    pid_t pid, const char *scope)
{
	struct result control, result = { .outcome = BROKEN };

	if (!(attack->flags & (fd < 0 ? BY_PID : BY_FD))) {
		print(group, attack, LEFT_OUT, "",
		      fd < 0 || attack->wants == CHANGED
			      ? "it would change the guest"
			      : "what the guest has there isn't known, or it would be disturbed",
		      NULL);
		return;
	}
	control = attempt(attack, false);
	if (reached(attack, &control))
		result = attempt_on(attack, fd, offset, pid);
	judge(group, attack, &control, &result, attack->scope ?: scope);
}

/* NAMEs are words of "group: attack". */
static bool wanted(const struct group *group, const struct attack *attack, char **names)
{
	char name[128];

	snprintf(name, sizeof(name), "%s: %s", group->name, attack->name);
	for (char **word = names; *word; word++)
		if (strstr(name, *word))
			return true;
	return !*names;
}

/* The sealed memfds of a process that have something private in them */
static int find_sealed(pid_t pid, int *fds, int most)
{
	struct stat st, other;
	struct dirent *entry;
	int nr = 0, fd, i;
	char path[64];
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	if (!dir)
		err(2, "%s", path);
	while (nr < most && (entry = readdir(dir))) {
		fd = openat(dirfd(dir), entry->d_name, O_PATH | O_CLOEXEC);
		if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode)) {
			close(fd);
			continue;
		}
		close(fd);
		fd = openat(dirfd(dir), entry->d_name, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;
		for (i = 0; i < nr; i++)
			if (!fstat(fds[i], &other) && other.st_dev == st.st_dev &&
			    other.st_ino == st.st_ino)
				break;
		if (i == nr && fcntl(fd, F_GET_SEALS) > 0 &&
		    fcntl(fd, F_GET_SEALS) & F_SEAL_GUEST && lseek(fd, 0, SEEK_DATA) >= 0)
			fds[nr++] = fd;
		else
			close(fd);
	}
	closedir(dir);
	return nr;
}

static bool has_seal(void)
{
	int fd = new_memfd(PAGE);
	bool has = !fcntl(fd, F_ADD_SEALS, F_SEAL_GUEST);

	close(fd);
	return has;
}

static _Noreturn void usage(void)
{
	fprintf(stderr,
		"usage: guestseal-audit [--all] [--json|--tap] [--list] [--pid PID] [NAME...]\n");
	exit(2);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "all", no_argument, NULL, 'a' },	 { "json", no_argument, NULL, 'j' },
		{ "tap", no_argument, NULL, 't' },	 { "list", no_argument, NULL, 'l' },
		{ "pid", required_argument, NULL, 'p' }, { 0 },
	};
	int option, fds[16], nr = 0;
	const char *scope = NULL;
	bool list = false, vm = false;
	pid_t pid = 0;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'a':
			all = true;
			break;
		case 'j':
			form = JSON;
			break;
		case 't':
			form = TAP;
			break;
		case 'l':
			list = true;
			break;
		case 'p':
			pid = atoi(optarg);
			if (pid <= 0)
				usage();
			break;
		default:
			usage();
		}
	}

	if (!list) {
		if (!has_seal())
			errx(2, "this kernel has no guest-sealed memfds");
		if (pid) {
			nr = find_sealed(pid, fds, ARRAY_SIZE(fds));
			vm = has_vm(pid);
			if (!nr && !vm)
				errx(2,
				     "process %d has neither a guest-sealed memfd with private pages nor a VM",
				     pid);
			if (vm && !is_protected(pid))
				scope = "the VMM is trusted: this VM isn't protected from it";
		}
		begin(pid);
	}
	signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; i < ARRAY_SIZE(groups); i++) {
		const struct group *group = groups[i];

		for (size_t j = 0; j < group->nr; j++) {
			const struct attack *attack = &group->attacks[j];

			if (!wanted(group, attack, argv + optind))
				continue;
			if (list)
				printf("%s: %s: %s\n", group->name, attack->name, attack->what);
			else if (!pid)
				make(group, attack);
			else if (attack->flags & WHOLE && vm)
				make_on(group, attack, -1, 0, pid, scope);
			for (int k = 0; k < nr && !(attack->flags & WHOLE); k++)
				make_on(group, attack, fds[k], lseek(fds[k], 0, SEEK_DATA), pid,
					NULL);
		}
	}
	if (list)
		return 0;
	if (!total)
		errx(2, "no attack has such a name");
	finish();
	return counts[OPEN] || counts[INCONCLUSIVE];
}
