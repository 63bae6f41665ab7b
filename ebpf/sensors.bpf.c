// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* What tool calls do, as seen by the kernel: one ring buffer of events about watched cgroups.
 *
 * Only typed tracepoints and cgroup hooks: they load where kprobes and text poking are forbidden. */
#include "kernel.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "lineage.h"

#define GFP_MOVABLE 0x08u /* pages of user memory and page cache, not of the kernel itself */
#define PAGE_SHIFT 12
#define RECLAIM_REPORT_NS 10000000ull
#define CONNECT_REPORT_NS 1000000000ull
#define AF_INET 2
#define AF_INET6 10

struct settings {
	u64 burst_bytes; /* report when this much was touched ... */
	u64 burst_ns;    /* ... within this time; 0: never */
	u64 generation;  /* changes with `roots` */
	u64 lazy_bytes;  /* of ordinary events may lie there before the reader is woken; 0: none */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct settings);
} settings SEC(".maps");

/* Per cgroup: remembers its root, so that the page allocator's path makes one lookup. */
struct cell {
	u64 generation;
	u64 root;
	u64 window_start;
	u64 touched;
	u64 reclaim_ns;
	u64 reclaim_reported;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, struct cell);
} cells SEC(".maps");

/* Process -> the cgroup it was last seen in, to tell where a move came from. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, u32);
	__type(value, u64);
} places SEC(".maps");

/* Thread -> when its reclaim began. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, u32);
	__type(value, u64);
} reclaiming SEC(".maps");

struct destination {
	u64 cgroup;
	struct address address;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct destination);
	__type(value, u64); /* when it was last reported */
} destinations SEC(".maps");

static __always_inline struct settings *get_settings(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

/* Hand the event over. Waking the reader costs more than all of a short call's events. */
static __always_inline void submit(struct event *event, bool urgent)
{
	struct settings *config = get_settings();
	u64 flags = 0;

	if (config && config->lazy_bytes) {
		if (!urgent && bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) < config->lazy_bytes)
			flags = BPF_RB_NO_WAKEUP;
		else
			flags = BPF_RB_FORCE_WAKEUP; /* others lie there already: it would not wake by itself */
	}
	bpf_ringbuf_submit(event, flags);
}

static __always_inline struct cell *current_cell(struct settings *config)
{
	u64 id = bpf_get_current_cgroup_id();
	struct cell *cell = bpf_map_lookup_elem(&cells, &id);

	if (!cell || cell->generation != config->generation) {
		struct cell fresh = {.generation = config->generation, .window_start = bpf_ktime_get_ns()};

		fresh.root = root_of(cgroup_of((struct task_struct *)bpf_get_current_task()));
		bpf_map_update_elem(&cells, &id, &fresh, BPF_ANY);
		cell = bpf_map_lookup_elem(&cells, &id);
	}
	return cell && cell->root ? cell : NULL;
}

static __always_inline struct event *current_event(u32 kind)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct event *event = new_event(kind, BPF_CORE_READ(task, tgid), cgroup_of(task));

	if (event)
		BPF_CORE_READ_STR_INTO(&event->text, task, comm);
	return event;
}

static __always_inline void remember_place(struct task_struct *task, u32 pid)
{
	u64 id = id_of(cgroup_of(task));

	bpf_map_update_elem(&places, &pid, &id, BPF_ANY);
}

/* --- the life of processes ---------------------------------------------------------------- */

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	u32 pid = child->pid;
	struct event *event;

	if (pid != child->tgid) /* a thread */
		return 0;
	event = new_event(EVENT_FORK, pid, cgroup_of(child));
	if (!event)
		return 0;
	event->parent = parent->tgid;
	BPF_CORE_READ_STR_INTO(&event->text, child, comm);
	submit(event, false);
	remember_place(child, pid);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_pid, struct linux_binprm *binprm)
{
	struct event *event = new_event(EVENT_EXEC, task->tgid, cgroup_of(task));

	if (!event)
		return 0;
	bpf_probe_read_kernel_str(event->text, TEXT, BPF_CORE_READ(binprm, filename));
	submit(event, false);
	remember_place(task, task->tgid);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	u32 pid = task->pid;
	struct event *event;

	if (pid != task->tgid)
		return 0;
	bpf_map_delete_elem(&places, &pid);
	event = new_event(EVENT_EXIT, pid, cgroup_of(task));
	if (!event)
		return 0;
	event->status = task->exit_code;
	BPF_CORE_READ_STR_INTO(&event->text, task, comm);
	submit(event, false);
	return 0;
}

SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(on_move, struct cgroup *target, const char *path, struct task_struct *task)
{
	struct cgroup *now = cgroup_of(task);
	u32 pid = task->tgid;
	struct event *event;
	u64 *seen, previous = 0;

	/* Moves in a v1 hierarchy come here as well; only the v2 tree is ours. */
	if (id_of(target) != id_of(now) || target->level != BPF_CORE_READ(now, level))
		return 0;
	seen = bpf_map_lookup_elem(&places, &pid);
	if (seen)
		previous = *seen;
	if (previous == id_of(now))
		return 0;
	event = new_event(EVENT_MOVE, pid, now);
	if (event) {
		event->value = previous;
		BPF_CORE_READ_STR_INTO(&event->text, task, comm);
		submit(event, false);
	}
	if (event)
		remember_place(task, pid);
	else
		bpf_map_delete_elem(&places, &pid);
	return 0;
}

/* --- memory ------------------------------------------------------------------------------- */

SEC("tp_btf/mark_victim")
int BPF_PROG(on_oom, struct task_struct *task)
{
	struct event *event = new_event(EVENT_OOM, task->tgid, cgroup_of(task));

	if (!event)
		return 0;
	BPF_CORE_READ_STR_INTO(&event->text, task, comm);
	submit(event, true);
	return 0;
}

static __always_inline void report_reclaim(struct cell *cell, u64 now)
{
	struct event *event;

	if (now - cell->reclaim_reported < RECLAIM_REPORT_NS)
		return;
	event = current_event(EVENT_RECLAIM);
	if (!event)
		return;
	event->value = cell->reclaim_ns;
	cell->reclaim_ns = 0;
	cell->reclaim_reported = now;
	submit(event, true);
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_begin")
int BPF_PROG(on_reclaim_begin)
{
	struct settings *config = get_settings();
	struct cell *cell = config ? current_cell(config) : NULL;
	u32 thread = bpf_get_current_pid_tgid();
	u64 now = bpf_ktime_get_ns();

	if (!cell)
		return 0;
	bpf_map_update_elem(&reclaiming, &thread, &now, BPF_ANY);
	report_reclaim(cell, now);
	return 0;
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_end")
int BPF_PROG(on_reclaim_end)
{
	struct settings *config = get_settings();
	u32 thread = bpf_get_current_pid_tgid();
	u64 *start = bpf_map_lookup_elem(&reclaiming, &thread);
	struct cell *cell;
	u64 now, began;

	if (!start || !config)
		return 0;
	began = *start;
	bpf_map_delete_elem(&reclaiming, &thread);
	cell = current_cell(config);
	if (!cell)
		return 0;
	now = bpf_ktime_get_ns();
	__sync_fetch_and_add(&cell->reclaim_ns, now - began);
	report_reclaim(cell, now);
	return 0;
}

/* The clock is read once per threshold, not once per page: a window that took too long starts anew. */
SEC("tp_btf/mm_page_alloc")
int BPF_PROG(on_page, void *page, unsigned int order, unsigned int gfp)
{
	struct settings *config;
	struct event *event;
	struct cell *cell;
	u64 now, touched;

	if (!page || !(gfp & GFP_MOVABLE))
		return 0;
	config = get_settings();
	if (!config || !config->burst_ns)
		return 0;
	cell = current_cell(config);
	if (!cell)
		return 0;
	touched = (1ull << PAGE_SHIFT) << (order & 31);
	touched += __sync_fetch_and_add(&cell->touched, touched);
	if (touched < config->burst_bytes)
		return 0;
	now = bpf_ktime_get_ns();
	if (now - cell->window_start <= config->burst_ns) {
		event = current_event(EVENT_BURST);
		if (event) {
			event->value = touched;
			submit(event, true);
		}
	}
	cell->window_start = now;
	cell->touched = 0;
	return 0;
}

/* --- network ------------------------------------------------------------------------------ */

static __always_inline void observe(struct bpf_sock_addr *ctx, u16 family)
{
	struct destination to = {.cgroup = bpf_get_current_cgroup_id()};
	u64 now = bpf_ktime_get_ns(), *last;
	struct event *event;

	to.address.family = family;
	to.address.port = ctx->user_port;
	to.address.protocol = ctx->protocol;
	if (family == AF_INET) {
		to.address.ip[0] = ctx->user_ip4;
	} else {
		to.address.ip[0] = ctx->user_ip6[0];
		to.address.ip[1] = ctx->user_ip6[1];
		to.address.ip[2] = ctx->user_ip6[2];
		to.address.ip[3] = ctx->user_ip6[3];
	}
	/* A datagram socket may send thousands to one address: once a second is enough. */
	last = bpf_map_lookup_elem(&destinations, &to);
	if (last && now - *last < CONNECT_REPORT_NS)
		return;
	bpf_map_update_elem(&destinations, &to, &now, BPF_ANY);
	event = current_event(EVENT_CONNECT);
	if (!event)
		return;
	__builtin_memcpy(event->text, &to.address, sizeof(to.address));
	submit(event, false);
}

SEC("cgroup/connect4")
int see_connect4(struct bpf_sock_addr *ctx)
{
	observe(ctx, AF_INET);
	return 1;
}

SEC("cgroup/connect6")
int see_connect6(struct bpf_sock_addr *ctx)
{
	observe(ctx, AF_INET6);
	return 1;
}

SEC("cgroup/sendmsg4")
int see_sendmsg4(struct bpf_sock_addr *ctx)
{
	observe(ctx, AF_INET);
	return 1;
}

SEC("cgroup/sendmsg6")
int see_sendmsg6(struct bpf_sock_addr *ctx)
{
	observe(ctx, AF_INET6);
	return 1;
}

char LICENSE[] SEC("license") = "GPL";
