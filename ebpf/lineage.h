/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Which watched root a cgroup lies below, and the ring buffer that all sensors share. */
#pragma once

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "events.h"

#define MAX_DEPTH 16

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, u64); /* cgroup id of a watched root */
	__type(value, u32);
} roots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} lost SEC(".maps");

static __always_inline struct cgroup *cgroup_of(struct task_struct *task)
{
	return BPF_CORE_READ(task, cgroups, dfl_cgrp);
}

static __always_inline u64 id_of(struct cgroup *cgroup)
{
	return BPF_CORE_READ(cgroup, kn, id);
}

static __always_inline struct cgroup *parent_of(struct cgroup *cgroup)
{
	struct cgroup_subsys_state *parent = BPF_CORE_READ(cgroup, self.parent);

	return parent ? BPF_CORE_READ(parent, cgroup) : NULL;
}

/* The id of the watched root that `cgroup` is or lies below; 0 where there is none. */
static __always_inline u64 root_of(struct cgroup *cgroup)
{
#pragma nounroll
	for (int i = 0; i < MAX_DEPTH && cgroup; i++) {
		u64 id = id_of(cgroup);

		if (bpf_map_lookup_elem(&roots, &id))
			return id;
		cgroup = parent_of(cgroup);
	}
	return 0;
}

/* Fill in the ids up to the watched root. In a tree deeper than the array, the root still takes
 * the last place. Returns whether there is a watched root at all. */
static __always_inline bool fill_lineage(struct event *event, struct cgroup *cgroup)
{
#pragma nounroll
	for (int i = 0; i < MAX_DEPTH && cgroup; i++) {
		u64 id = id_of(cgroup);

		event->lineage[i < LINEAGE ? i : LINEAGE - 1] = id;
		if (bpf_map_lookup_elem(&roots, &id))
			return true;
		cgroup = parent_of(cgroup);
	}
	return false;
}

/* A zeroed event of a process in `cgroup`, or NULL: not watched, or no room (then it is counted).
 * The caller submits it. */
static __always_inline struct event *new_event(u32 kind, u32 pid, struct cgroup *cgroup)
{
	struct event *event;
	u32 zero = 0;

	if (!root_of(cgroup))
		return NULL;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		u64 *count = bpf_map_lookup_elem(&lost, &zero);

		if (count)
			__sync_fetch_and_add(count, 1);
		return NULL;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_ns();
	event->kind = kind;
	event->pid = pid;
	fill_lineage(event, cgroup);
	return event;
}
