// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Where a cgroup may connect and send to: nothing, or what an allow-list of networks holds. Attached
 * per cgroup; a refused call fails with EPERM in the process. Refusals are reported as events. */
#include "kernel.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "lineage.h"

#define AF_INET 2
#define AF_INET6 10
#define CGROUP_BITS 64
#define REPORT_NS 1000000000ull

/* One longest-prefix tree for all cgroups: the first 64 bits of a key are the cgroup's id. */
struct network {
	u32 prefix; /* CGROUP_BITS and those of the network */
	u64 cgroup; /* the attached one, not that of the process */
	u32 ip[4];  /* network byte order; IPv4 as ::ffff:a.b.c.d */
} __attribute__((packed));

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct network));
	__uint(value_size, sizeof(u32)); /* port that is allowed, host byte order; 0: any */
} allowed SEC(".maps");

/* Cgroup id -> how many calls were refused. An entry makes it a cgroup with a policy. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, u64);
} refused SEC(".maps");

struct attempt {
	u64 cgroup;
	struct address address;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct attempt);
	__type(value, u64); /* when it was last reported */
} reported SEC(".maps");

static __always_inline void report(struct bpf_sock_addr *ctx, u64 group, u16 family, u32 *ip)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	u64 now = bpf_ktime_get_ns(), *last;
	struct attempt attempt = {.cgroup = group};
	struct event *event;

	attempt.address.family = family;
	attempt.address.port = ctx->user_port;
	attempt.address.protocol = ctx->protocol;
	__builtin_memcpy(attempt.address.ip, family == AF_INET ? &ip[3] : ip, family == AF_INET ? 4 : 16);
	last = bpf_map_lookup_elem(&reported, &attempt);
	if (last && now - *last < REPORT_NS)
		return;
	bpf_map_update_elem(&reported, &attempt, &now, BPF_ANY);
	event = new_event(EVENT_CONNECT, BPF_CORE_READ(task, tgid), cgroup_of(task));
	if (!event)
		return;
	event->status = 1;
	__builtin_memcpy(event->text, &attempt.address, sizeof(attempt.address));
	bpf_ringbuf_submit(event, 0);
}

/* The nearest cgroup above the process that has a policy decides; without one, all is allowed. */
static __always_inline int decide(struct bpf_sock_addr *ctx, u16 family, u32 *ip)
{
	struct cgroup *cgroup = cgroup_of((struct task_struct *)bpf_get_current_task());
	struct network key = {.prefix = CGROUP_BITS + 128};
	u64 *count = NULL, id = 0;
	u32 *port;

#pragma nounroll
	for (int i = 0; i < MAX_DEPTH && cgroup && !count; i++) {
		id = id_of(cgroup);
		count = bpf_map_lookup_elem(&refused, &id);
		cgroup = parent_of(cgroup);
	}
	if (!count)
		return 1;
	key.cgroup = id;
	__builtin_memcpy(key.ip, ip, sizeof(key.ip));
	port = bpf_map_lookup_elem(&allowed, &key);
	if (port && (!*port || *port == __builtin_bswap16(ctx->user_port)))
		return 1;
	__sync_fetch_and_add(count, 1);
	report(ctx, id, family, ip);
	return 0;
}

static __always_inline int decide4(struct bpf_sock_addr *ctx)
{
	u32 ip[4] = {0, 0, __builtin_bswap32(0xffff), ctx->user_ip4};

	return decide(ctx, AF_INET, ip);
}

static __always_inline int decide6(struct bpf_sock_addr *ctx)
{
	u32 ip[4];

	ip[0] = ctx->user_ip6[0];
	ip[1] = ctx->user_ip6[1];
	ip[2] = ctx->user_ip6[2];
	ip[3] = ctx->user_ip6[3];
	return decide(ctx, AF_INET6, ip);
}

SEC("cgroup/connect4")
int guard_connect4(struct bpf_sock_addr *ctx)
{
	return decide4(ctx);
}

SEC("cgroup/connect6")
int guard_connect6(struct bpf_sock_addr *ctx)
{
	return decide6(ctx);
}

SEC("cgroup/sendmsg4")
int guard_sendmsg4(struct bpf_sock_addr *ctx)
{
	return decide4(ctx);
}

SEC("cgroup/sendmsg6")
int guard_sendmsg6(struct bpf_sock_addr *ctx)
{
	return decide6(ctx);
}

char LICENSE[] SEC("license") = "GPL";
