// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is left of pages that were freed: nothing, so that they are no secret's, whoever
 * gets them next. It takes a look into the kernel's memory to tell.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "audit.h"

static struct frames frames;

static enum outcome left(struct target *target)
{
	size_t nr = frames_left(target, &frames);

	if (nr)
		return ended(target, SEEN, "%zu of %zu freed pages still have it", nr, frames.nr);
	if (!target->sealed)
		return ended(target, LACKING, "the host clears all memory that is freed");
	return ended(target, REFUSED, "nothing is left in %zu freed pages", frames.nr);
}

static enum outcome punch(struct target *target, const struct attack *attack)
{
	(void)attack;
	if (frames_find(target, &frames) != DONE)
		return target->result->outcome;
	if (fallocate(target->fd, PUNCH, 0, target->size))
		return ended(target, BROKEN, "fallocate: %s", strerror(errno));
	return left(target);
}

/* Part of a huge page, the rest of which stays */
static enum outcome punch_part(struct target *target, const struct attack *attack)
{
	size_t nr;

	(void)attack;
	if (frames_find(target, &frames) != DONE)
		return target->result->outcome;
	if (fallocate(target->fd, PUNCH, 0, target->size / 2))
		return ended(target, BROKEN, "fallocate: %s", strerror(errno));
	nr = frames_left(target, &frames);
	if (nr > frames.nr / 2)
		return ended(target, SEEN, "%zu of %zu pages still have it, half are freed", nr,
			     frames.nr);
	return ended(target, REFUSED, "%zu of %zu pages have it, half are freed", nr, frames.nr);
}

static enum outcome last_close(struct target *target, const struct attack *attack)
{
	(void)attack;
	if (frames_find(target, &frames) != DONE)
		return target->result->outcome;
	vmm_ends(target);
	close(target->fd);
	return left(target);
}

/* The VMM is the last to have it, and is killed. */
static enum outcome killed(struct target *target, const struct attack *attack)
{
	(void)attack;
	if (frames_find(target, &frames) != DONE)
		return target->result->outcome;
	close(target->fd);
	vmm_ends(target);
	return left(target);
}

/* Freed and allocated again, as what the guest is to find there next, or another file */
static enum outcome again(struct target *target, const struct attack *attack)
{
	char *memory;

	(void)attack;
	if (frames_find(target, &frames) != DONE)
		return target->result->outcome;
	if (fallocate(target->fd, PUNCH, 0, target->size))
		return ended(target, BROKEN, "fallocate: %s", strerror(errno));
	if (!target->sealed)
		return left(target);
	memory = mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (memory != MAP_FAILED && look(target, memory, 64 << 20) == SEEN)
		return SEEN;
	return left(target);
}

/* clang-format off */
#define FREED(n, r, w, f) { .name = n, .what = w, .run = r, .wants = SEEN, .flags = GIVES_UP | (f) }

static const struct attack attacks[] = {
	FREED("punch", punch, "pages freed by a hole", 0),
	FREED("punch, huge page", punch, "a huge page freed by a hole", HUGE),
	FREED("punch, part", punch_part, "half of a huge page freed by a hole", HUGE),
	FREED("last close", last_close, "pages freed as the last descriptor is closed", 0),
	FREED("VMM killed", killed, "pages freed as the VMM is killed, which had the last descriptor", 0),
	FREED("allocated again", again, "pages freed by a hole, and as many allocated as there may be", 0),
};
/* clang-format on */

const struct group freed_group = GROUP("memfd", "freed", "left in freed pages", attacks);
