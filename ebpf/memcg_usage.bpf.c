// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Memory use of every cgroup below one, in one read: a cgroup iterator over the kernel's memcg
 * functions (Linux 7.0 and newer). One record per cgroup. */
#include "kernel.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

enum memcg_memory_event {
	MEMCG_LOW,
	MEMCG_HIGH,
	MEMCG_MAX,
	MEMCG_OOM,
	MEMCG_OOM_KILL,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct seq_file {
	unsigned long count;
};

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__cgroup {
	struct bpf_iter_meta *meta;
	struct cgroup *cgroup;
};

struct mem_cgroup {
	struct cgroup_subsys_state css;
};

#pragma clang attribute pop

/* Types that are only pointed at are left out of the BTF; the functions below need them whole. */
struct mem_cgroup emit_mem_cgroup;

extern struct mem_cgroup *bpf_get_mem_cgroup(struct cgroup_subsys_state *css) __ksym;
extern void bpf_put_mem_cgroup(struct mem_cgroup *memcg) __ksym;
extern void bpf_mem_cgroup_flush_stats(struct mem_cgroup *memcg) __ksym;
extern unsigned long bpf_mem_cgroup_usage(struct mem_cgroup *memcg) __ksym;
extern unsigned long bpf_mem_cgroup_memory_events(struct mem_cgroup *memcg,
						  enum memcg_memory_event event) __ksym;

struct usage {
	u64 cgroup;
	u64 bytes;
	u64 high; /* times that memory.high was passed */
	u64 max;
	u64 oom_kill;
};

SEC("iter.s/cgroup")
int memory_usage(struct bpf_iter__cgroup *ctx)
{
	struct cgroup *cgroup = ctx->cgroup;
	struct mem_cgroup *memcg;
	struct usage usage = {};

	if (!cgroup) /* the end of the walk */
		return 0;
	memcg = bpf_get_mem_cgroup(&cgroup->self);
	if (!memcg)
		return 0;
	bpf_mem_cgroup_flush_stats(memcg);
	usage.cgroup = cgroup->kn->id;
	usage.bytes = bpf_mem_cgroup_usage(memcg);
	usage.high = bpf_mem_cgroup_memory_events(memcg, MEMCG_HIGH);
	usage.max = bpf_mem_cgroup_memory_events(memcg, MEMCG_MAX);
	usage.oom_kill = bpf_mem_cgroup_memory_events(memcg, MEMCG_OOM_KILL);
	bpf_put_mem_cgroup(memcg);
	bpf_seq_write(ctx->meta->seq, &usage, sizeof(usage));
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
