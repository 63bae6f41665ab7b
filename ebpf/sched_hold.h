/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* When a cgroup must not run: cpu.max used up, held by its class, or growing while a protected one
 * is short of memory. Every hold is bounded, the next one of a row is shorter, and between two the
 * cgroup runs for a while: a held tool call always makes progress. */
#pragma once

#include "sched_group.h"

enum class {
	CLASS_NORMAL,
	CLASS_BOOSTED, /* four times its weight, and first after a sleep */
	CLASS_HELD,
};

enum flags {
	FLAG_PROTECTED = 1, /* its memory pressure holds others */
	FLAG_YIELDS = 2,    /* is held for a protected one */
};

struct policy {
	u32 class;
	u32 flags;
};

struct settings {
	u32 generation; /* changes with `policies` and `threads` */
	u32 pad;
	u64 slice_ns;
	u64 hold_ns;      /* the longest hold */
	u64 grace_ns;     /* how long it runs between two */
	u64 pressure_ns;  /* how long pressure is taken to last after it was last seen */
	u64 growth_bytes; /* what a yielding cgroup may touch meanwhile */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, u64); /* cgroup id; holds for what is below too */
	__type(value, struct policy);
} policies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct settings);
} settings SEC(".maps");

enum counter {
	COUNT_QUEUED,
	COUNT_DIRECT,
	COUNT_THROTTLED,
	COUNT_HELD,
	COUNT_PRESSED, /* holds that memory pressure caused */
	COUNT_LATENCY,
	COUNT_RELEASED,
	COUNTERS,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, u32);
	__type(value, u64);
} counters SEC(".maps");

/* Memory pressure of protected cgroups: until when, and in which cgroup (0: anywhere). */
static volatile u64 pressure_since;
static volatile u64 pressure_until;
static volatile u64 pressure_domain;

static __always_inline void count(u32 which)
{
	u64 *counter = bpf_map_lookup_elem(&counters, &which);

	if (counter)
		__sync_fetch_and_add(counter, 1);
}

static __always_inline struct settings *get_settings(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

/* The policy of the nearest ancestor that has one, remembered until something changes. */
__noinline int refresh_policy(u64 id, u32 generation)
{
	struct group *group = find_group(id);
	struct bpf_iter_num levels;

	if (!group)
		return 0;
	group->class = CLASS_NORMAL;
	group->flags = 0;
	group->policy_generation = generation;
	climb(levels) {
		struct policy *policy = bpf_map_lookup_elem(&policies, &id);
		struct group *here;

		if (policy) {
			group->class = policy->class;
			group->flags = policy->flags;
			break;
		}
		here = find_group(id);
		if (!here)
			break;
		id = here->parent;
	}
	climbed(levels);
	return 0;
}

static __always_inline void know_policy(struct group *group, u64 id, struct settings *config)
{
	if (group->policy_generation != config->generation)
		refresh_policy(id, config->generation);
}

/* --- cpu.max -------------------------------------------------------------------------------- */

static __always_inline void refill(struct group *group, u64 now)
{
	u64 began = group->refilled, periods;
	s64 left, full;

	if (now - began < group->period)
		return;
	periods = (now - began) / group->period;
	/* One CPU wins; the others see the new start. */
	if (__sync_val_compare_and_swap(&group->refilled, began, began + periods * group->period) != began)
		return;
	full = group->quota + group->burst;
	left = group->left + (s64)(periods > 8 ? 8 : periods) * (s64)group->quota;
	if (left > full)
		left = full;
	__sync_fetch_and_add(&group->left, left - group->left);
}

/* Charge `used` ns to every limit above; returns the least that is left, or a large number. */
__noinline s64 charge_limits(u64 id, u64 used, u64 now)
{
	s64 least = 1ll << 60;
	struct bpf_iter_num levels;

	climb(levels) {
		struct group *group = find_group(id);

		if (!group)
			break;
		if (group->period) {
			refill(group, now);
			if (used)
				__sync_fetch_and_add(&group->left, -(s64)used);
			if (group->left < least)
				least = group->left;
		}
		id = group->parent;
	}
	climbed(levels);
	return least;
}

/* --- holds ---------------------------------------------------------------------------------- */

static __always_inline u64 bound_of(struct group *group, struct settings *config)
{
	/* Aging: the second hold of a row is half as long as the first, those that follow a quarter. */
	u32 halvings = group->holds > 2 ? 2 : group->holds;

	return config->hold_ns >> halvings;
}

static __always_inline bool held_by_class(struct group *group, struct settings *config, u64 now)
{
	if (group->class != CLASS_HELD) {
		group->held_since = 0;
		return false;
	}
	if (!group->held_since)
		group->held_since = now;
	if (now - group->held_since < bound_of(group, config))
		return true;
	if (now - group->held_since < bound_of(group, config) + config->grace_ns)
		return false;
	group->held_since = now;
	group->holds++;
	return true;
}

enum block {
	BLOCK_NONE,
	BLOCK_THROTTLED,
	BLOCK_HELD,
	BLOCK_PRESSED,
};

static __always_inline enum block blocked(struct group *group, u64 id, struct settings *config, u64 now)
{
	know_policy(group, id, config);
	if (held_by_class(group, config, now))
		return BLOCK_HELD;
	if (now < group->held_until)
		return BLOCK_PRESSED;
	if (charge_limits(id, 0, now) <= 0)
		return BLOCK_THROTTLED;
	return BLOCK_NONE;
}

/* Whether `id` is or lies below `ancestor`; everything lies below 0. */
__noinline int lies_below(u64 id, u64 ancestor)
{
	struct bpf_iter_num levels;
	int found = 0;

	climb(levels) {
		struct group *group;

		if (id == ancestor) {
			found = 1;
			break;
		}
		group = find_group(id);
		if (!group)
			break;
		id = group->parent;
	}
	climbed(levels);
	return found || !ancestor;
}

/* A protected cgroup reclaims memory within `domain`. */
static __always_inline void pressure_seen(u64 id, u64 domain)
{
	struct settings *config = get_settings();
	struct group *group = find_group(id);
	u64 now = bpf_ktime_get_ns();

	if (!group || !config)
		return;
	know_policy(group, id, config);
	if (!(group->flags & FLAG_PROTECTED))
		return;
	if (now >= pressure_until || pressure_domain != domain)
		pressure_since = now;
	pressure_domain = domain;
	pressure_until = now + config->pressure_ns;
}

/* The cgroup `id` touched new memory: hold it if it yields and a protected one is short of it. */
static __always_inline void memory_touched(u64 id, u64 bytes)
{
	u64 now, since = pressure_since;
	struct settings *config;
	struct group *group;

	if (!pressure_until)
		return;
	now = bpf_ktime_get_ns();
	if (now >= pressure_until)
		return;
	config = get_settings();
	group = find_group(id);
	if (!config || !group)
		return;
	know_policy(group, id, config);
	if (!(group->flags & FLAG_YIELDS) || now < group->free_until)
		return;
	if (group->pressure_seen != since) {
		/* A pressure long after the last one starts the aging anew. */
		if (now - group->held_until > 8 * config->hold_ns)
			group->holds = 0;
		group->pressure_seen = since;
		group->touched = 0;
	}
	if (__sync_fetch_and_add(&group->touched, bytes) + bytes < config->growth_bytes)
		return;
	if (!lies_below(id, pressure_domain))
		return;
	group->touched = 0;
	group->held_until = now + bound_of(group, config);
	group->free_until = group->held_until + config->grace_ns;
	group->holds++;
	count(COUNT_PRESSED);
}
