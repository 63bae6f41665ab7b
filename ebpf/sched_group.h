/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Cgroups as the scheduler sees them: the share of the machine that follows from the weights of a
 * cgroup and of its ancestors, relative to the siblings that want to run now. */
#pragma once

#include "sched_kernel.h"

/* Walks up a cgroup tree: the body runs at most MAX_DEPTH times and leaves with `break` only. With the
 * kernel's own iterator the verifier looks at the body once, not once per level. */
#define MAX_DEPTH 12
#define climb(levels) \
	for (bpf_iter_num_new(&(levels), 0, MAX_DEPTH); bpf_iter_num_next(&(levels));)
#define climbed(levels) bpf_iter_num_destroy(&(levels))
#define ONE (1ull << 20)  /* the share of the whole machine */
#define OWN_WEIGHT 100ull /* a cgroup's own tasks against its child cgroups */

struct group {
	struct bpf_spin_lock lock; /* active, weight and accounted change together */
	u32 active;                /* children that are active, and one for its own tasks */
	u32 weight;
	u32 accounted; /* what its parent's `children` holds for it */
	u64 children;  /* sum of the weights of what is active below */
	u64 parent;    /* cgroup id, 0 at the top */
	u32 own;       /* own tasks that are runnable */
	u32 share_generation;
	u64 share; /* of its own tasks, out of ONE */
	u64 vtime; /* finish tag of the last slice that was promised to it */

	/* cpu.max */
	u64 period; /* ns; 0: no limit */
	u64 quota;
	u64 burst;
	s64 left;
	u64 refilled; /* when the running period began */

	/* holds */
	u64 held_since;
	u64 held_until; /* by memory pressure */
	u64 free_until; /* no new hold before */
	u32 holds;
	u32 policy_generation;
	u32 class;
	u32 flags;
	u64 touched; /* bytes, since pressure began */
	u64 pressure_seen;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, u64);
	__type(value, struct group);
} groups SEC(".maps");

static volatile u32 share_generation = 1;

static __always_inline struct group *find_group(u64 id)
{
	return bpf_map_lookup_elem(&groups, &id);
}

static __always_inline u64 cgroup_id(struct cgroup *cgroup)
{
	return BPF_CORE_READ(cgroup, kn, id);
}

static __always_inline u64 parent_id(struct cgroup *cgroup)
{
	struct cgroup_subsys_state *parent = BPF_CORE_READ(cgroup, self.parent);

	return parent ? BPF_CORE_READ(parent, cgroup, kn, id) : 0;
}

/* Something in `group` wants to run, or no longer does: tell the ancestors as far as it is news. */
__noinline int propagate(u64 id, int change)
{
	struct bpf_iter_num levels;

	climb(levels) {
		struct group *group = find_group(id), *parent;
		s64 delta = 0;

		if (!group)
			break;
		bpf_spin_lock(&group->lock);
		group->active += change;
		if (change > 0 && group->active == 1)
			delta = group->accounted = group->weight;
		if (change < 0 && group->active == 0) {
			delta = -(s64)group->accounted;
			group->accounted = 0;
		}
		bpf_spin_unlock(&group->lock);
		if (!delta)
			break;
		parent = find_group(group->parent);
		if (!parent)
			break;
		__sync_fetch_and_add(&parent->children, delta);
		id = group->parent;
	}
	climbed(levels);
	return 0;
}

static __always_inline void group_runnable(u64 id)
{
	struct group *group = find_group(id);

	if (!group || __sync_fetch_and_add(&group->own, 1) != 0)
		return;
	__sync_fetch_and_add(&group->children, OWN_WEIGHT);
	propagate(id, 1);
	__sync_fetch_and_add(&share_generation, 1);
}

static __always_inline void group_quiescent(u64 id)
{
	struct group *group = find_group(id);

	if (!group || __sync_fetch_and_add(&group->own, -1) != 1)
		return;
	__sync_fetch_and_add(&group->children, -OWN_WEIGHT);
	propagate(id, -1);
	__sync_fetch_and_add(&share_generation, 1);
}

static __always_inline void group_weight(struct group *group, u32 weight)
{
	struct group *parent;
	s64 delta = 0;

	bpf_spin_lock(&group->lock);
	if (group->active) {
		delta = (s64)weight - group->accounted;
		group->accounted = weight;
	}
	group->weight = weight;
	bpf_spin_unlock(&group->lock);
	parent = find_group(group->parent);
	if (parent && delta)
		__sync_fetch_and_add(&parent->children, delta);
	__sync_fetch_and_add(&share_generation, 1);
}

/* The share of the group's own tasks: its weight among active siblings, times its parent's, ... */
__noinline u64 compute_share(u64 id)
{
	u64 share = ONE, part = OWN_WEIGHT;
	struct bpf_iter_num levels;

	climb(levels) {
		struct group *group = find_group(id);

		if (!group)
			break;
		if (group->children > part)
			share = share * part / group->children;
		part = group->accounted;
		id = group->parent;
	}
	climbed(levels);
	return share ? share : 1;
}

static __always_inline u64 group_share(struct group *group, u64 id)
{
	u32 generation = share_generation;

	if (group->share_generation != generation) {
		group->share = compute_share(id);
		group->share_generation = generation;
	}
	return group->share ? group->share : 1;
}
