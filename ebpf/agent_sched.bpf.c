// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* A sched_ext scheduler for tool calls. One queue, ordered by start-time fair queueing over cgroups:
 * a slice is promised to a cgroup by advancing its finish tag by slice / share, and corrected when
 * the slice has ended. cpu.max and holds park tasks in a second queue, from where a timer moves
 * them back. Per-CPU kernel threads and threads of the latency class go to the CPU directly.
 *
 * Any fault ends in the kernel's own scheduler: an error by the kernel itself, a task that does not
 * run by its watchdog (timeout_ms below), the end of the loading process by the link. */
#include "sched_hold.h"

#define SHARED 0
#define PARKED 1
#define TICK_NS 2000000ull
#define IDLE_TICK_NS 10000000ull
#define BOOST 4
#define BOOST_CREDIT 4
#define GFP_MOVABLE 0x08u
#define PAGE_SHIFT 12
#define LATENCY_WINDOW_NS 100000000ull
#define CLOCK_MONOTONIC 1

struct task {
	u64 group;
	u64 start;    /* tag of the slice that was promised to it */
	u64 promised; /* vtime that its group was charged in advance for it */
	u64 since;    /* up to when its running time is charged */
	u32 latency;
	u32 generation;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task);
} tasks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, u32); /* thread id of the latency class */
	__type(value, u32);
} threads SEC(".maps");

struct clock {
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct clock);
} clocks SEC(".maps");

struct ending {
	u32 kind;
	char reason[60];
	char message[128];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct ending);
} endings SEC(".maps");

static volatile u64 vnow; /* start tag of the slice that began last */
static volatile u64 latency_window;
static volatile u64 latency_used;

static __always_inline struct task *find_task(struct task_struct *p)
{
	return bpf_task_storage_get(&tasks, p, 0, 0);
}

static __always_inline u64 in_vtime(u64 ns, struct group *group, u64 id)
{
	u64 share = group_share(group, id);

	if (group->class == CLASS_BOOSTED)
		share *= BOOST;
	return ns * ONE / share;
}

/* The start tag of the group's next slice; an idle group does not save up what it did not use. */
static __always_inline u64 start_tag(struct group *group, u64 slice)
{
	u64 credit = slice * (group->class == CLASS_BOOSTED ? BOOST_CREDIT : 1);
	u64 floor = vnow > credit ? vnow - credit : 0;

	return group->vtime > floor ? group->vtime : floor;
}

static __always_inline u64 promise(struct task *task, struct group *group, u64 slice)
{
	task->start = start_tag(group, slice);
	task->promised = in_vtime(slice, group, task->group);
	group->vtime = task->start + task->promised;
	return task->start;
}

static __always_inline void take_back(struct task *task, struct group *group)
{
	__sync_fetch_and_add(&group->vtime, -task->promised);
	task->promised = 0;
}

/* --- the latency class ---------------------------------------------------------------------- */

static __always_inline bool is_latency(struct task *task, struct task_struct *p, struct settings *config)
{
	if (task->generation != config->generation) {
		u32 pid = p->pid;

		task->latency = bpf_map_lookup_elem(&threads, &pid) != NULL;
		task->generation = config->generation;
	}
	return task->latency;
}

/* A thread of the latency class that computes all the time is an ordinary one beyond nine tenths of
 * one CPU: the others must go on. */
static __always_inline bool within_budget(u64 now)
{
	if (now - latency_window > LATENCY_WINDOW_NS) {
		latency_window = now;
		latency_used = 0;
	}
	return latency_used < LATENCY_WINDOW_NS / 10 * 9;
}

/* From here on its group is charged for what it used, not for what it was promised. Returns what
 * cpu.max leaves. */
static __always_inline s64 charge(struct task *task, struct group *group, u64 now)
{
	u64 used = now - task->since;

	if (task->promised)
		take_back(task, group);
	task->since = now;
	__sync_fetch_and_add(&group->vtime, in_vtime(used, group, task->group));
	if (task->latency)
		__sync_fetch_and_add(&latency_used, used);
	return charge_limits(task->group, used, now);
}

/* --- queues --------------------------------------------------------------------------------- */

static __always_inline void note_block(enum block why)
{
	count(why == BLOCK_THROTTLED ? COUNT_THROTTLED : COUNT_HELD);
}

static __always_inline bool is_dying(struct task_struct *p)
{
	return BPF_CORE_READ(p, signal, flags) & SIGNAL_GROUP_EXIT;
}

SEC("struct_ops/agent_select_cpu")
s32 BPF_PROG(agent_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	struct settings *config = get_settings();
	struct task *task = find_task(p);
	struct group *group;
	bool idle = false;
	s32 cpu;

	cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &idle);
	if (!idle || !task || !config)
		return cpu;
	group = find_group(task->group);
	if (!group || blocked(group, task->group, config, bpf_ktime_get_ns()))
		return cpu;
	promise(task, group, config->slice_ns);
	count(COUNT_DIRECT);
	scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, config->slice_ns, 0);
	return cpu;
}

SEC("struct_ops/agent_enqueue")
void BPF_PROG(agent_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct settings *config = get_settings();
	struct task *task = find_task(p);
	u64 now = bpf_ktime_get_ns(), start;
	struct group *group;
	enum block why;
	s32 cpu;

	group = task ? find_group(task->group) : NULL;
	if (!config || !group || ((p->flags & PF_KTHREAD) && p->nr_cpus_allowed == 1)) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, config ? config->slice_ns : 5000000, enq_flags);
		return;
	}
	if (task->promised)
		take_back(task, group);
	if (is_latency(task, p, config) && within_budget(now)) {
		count(COUNT_LATENCY);
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, config->slice_ns, enq_flags | SCX_ENQ_PREEMPT);
		return;
	}
	why = is_dying(p) ? BLOCK_NONE : blocked(group, task->group, config, now);
	if (why) {
		note_block(why);
		scx_bpf_dsq_insert(p, PARKED, config->slice_ns, enq_flags);
		return;
	}
	start = promise(task, group, config->slice_ns);
	count(COUNT_QUEUED);
	if (enq_flags & SCX_ENQ_LAST) { /* nothing else is there for this CPU */
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, config->slice_ns, enq_flags);
		return;
	}
	scx_bpf_dsq_insert_vtime(p, SHARED, config->slice_ns, start, enq_flags);
	cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	if (cpu >= 0)
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
}

/* Let `prev` go on for another slice, if its cgroup may. */
static __always_inline bool go_on(struct task_struct *prev, struct task *task, struct group *group,
				  struct settings *config)
{
	if (blocked(group, task->group, config, bpf_ktime_get_ns()))
		return false;
	promise(task, group, config->slice_ns);
	scx_bpf_task_set_slice(prev, config->slice_ns);
	return true;
}

SEC("struct_ops/agent_dispatch")
void BPF_PROG(agent_dispatch, s32 cpu, struct task_struct *prev)
{
	struct settings *config = get_settings();
	struct task_struct *first;
	struct group *group = NULL;
	struct task *task = NULL;

	/* The task whose slice has ended is in no queue now: it competes here. Left out, it would
	 * lose every other round whatever its weight. */
	if (prev && config && (prev->scx.flags & SCX_TASK_QUEUED)) {
		task = find_task(prev);
		group = task ? find_group(task->group) : NULL;
	}
	if (group) {
		charge(task, group, bpf_ktime_get_ns());
		first = scx_bpf_dsq_peek(SHARED);
		if (first && start_tag(group, config->slice_ns) < first->scx.dsq_vtime &&
		    go_on(prev, task, group, config))
			return;
	}
	if (scx_bpf_dsq_move_to_local(SHARED))
		return;
	if (group)
		go_on(prev, task, group, config);
}

/* --- accounting ----------------------------------------------------------------------------- */

SEC("struct_ops/agent_running")
void BPF_PROG(agent_running, struct task_struct *p)
{
	struct task *task = find_task(p);

	if (!task)
		return;
	task->since = bpf_ktime_get_ns();
	if (task->promised && (s64)(task->start - vnow) > 0)
		vnow = task->start;
}

SEC("struct_ops/agent_tick")
void BPF_PROG(agent_tick, struct task_struct *p)
{
	struct settings *config = get_settings();
	struct task *task = find_task(p);
	u64 now = bpf_ktime_get_ns();
	struct group *group;

	group = task ? find_group(task->group) : NULL;
	if (!group || !config)
		return;
	if (charge(task, group, now) <= 0 || blocked(group, task->group, config, now))
		scx_bpf_task_set_slice(p, 0);
}

SEC("struct_ops/agent_stopping")
void BPF_PROG(agent_stopping, struct task_struct *p, bool runnable)
{
	struct task *task = find_task(p);
	struct group *group = task ? find_group(task->group) : NULL;

	if (group)
		charge(task, group, bpf_ktime_get_ns());
}

SEC("struct_ops/agent_runnable")
void BPF_PROG(agent_runnable, struct task_struct *p, u64 enq_flags)
{
	struct task *task = find_task(p);

	if (task)
		group_runnable(task->group);
}

SEC("struct_ops/agent_quiescent")
void BPF_PROG(agent_quiescent, struct task_struct *p, u64 deq_flags)
{
	struct task *task = find_task(p);
	struct group *group = task ? find_group(task->group) : NULL;

	if (!group)
		return;
	if (task->promised)
		take_back(task, group);
	group_quiescent(task->group);
}

/* --- parked tasks --------------------------------------------------------------------------- */

static __always_inline void release(struct bpf_iter_scx_dsq *it, struct task_struct *p,
				    struct settings *config, u64 now)
{
	struct task *task = find_task(p);
	struct group *group = task ? find_group(task->group) : NULL;
	u64 start = vnow;
	s32 cpu;

	if (group) {
		if (!is_dying(p) && blocked(group, task->group, config, now))
			return;
		start = promise(task, group, config->slice_ns);
	}
	scx_bpf_dsq_move_set_slice(it, config->slice_ns);
	scx_bpf_dsq_move_set_vtime(it, start);
	if (!scx_bpf_dsq_move_vtime(it, p, SHARED, 0))
		return;
	count(COUNT_RELEASED);
	cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	if (cpu >= 0)
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
}

static int on_timer(void *map, int *key, struct clock *clock)
{
	struct settings *config = get_settings();
	u64 now = bpf_ktime_get_ns();
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;

	if (!config)
		return 0;
	if (scx_bpf_dsq_nr_queued(PARKED)) {
		bpf_iter_scx_dsq_new(&it, PARKED, 0);
		while ((p = bpf_iter_scx_dsq_next(&it)))
			release(&it, p, config, now);
		bpf_iter_scx_dsq_destroy(&it);
	}
	bpf_timer_start(&clock->timer, scx_bpf_dsq_nr_queued(PARKED) ? TICK_NS : IDLE_TICK_NS, 0);
	return 0;
}

/* --- tasks and cgroups ---------------------------------------------------------------------- */

SEC("struct_ops/agent_init_task")
s32 BPF_PROG(agent_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	struct task *task = bpf_task_storage_get(&tasks, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!task)
		return -12; /* ENOMEM */
	task->group = cgroup_id(args->cgroup);
	return 0;
}

static __always_inline void set_bandwidth(struct group *group, u64 period, u64 quota, u64 burst)
{
	bool limited = period && quota && quota < 1ull << 40;

	group->quota = quota * 1000;
	group->burst = burst < 1ull << 40 ? burst * 1000 : 0;
	group->left = limited ? group->quota : 0;
	group->refilled = bpf_ktime_get_ns();
	group->period = limited ? period * 1000 : 0;
}

SEC("struct_ops.s/agent_cgroup_init")
s32 BPF_PROG(agent_cgroup_init, struct cgroup *cgrp, struct scx_cgroup_init_args *args)
{
	struct group fresh = {.weight = args->weight};
	u64 id = cgroup_id(cgrp);

	fresh.parent = parent_id(cgrp);
	fresh.vtime = vnow;
	if (bpf_core_field_exists(args->bw_quota_us))
		set_bandwidth(&fresh, args->bw_period_us, args->bw_quota_us, args->bw_burst_us);
	return bpf_map_update_elem(&groups, &id, &fresh, BPF_ANY);
}

SEC("struct_ops.s/agent_cgroup_exit")
void BPF_PROG(agent_cgroup_exit, struct cgroup *cgrp)
{
	u64 id = cgroup_id(cgrp);

	bpf_map_delete_elem(&groups, &id);
	bpf_map_delete_elem(&policies, &id);
}

SEC("struct_ops/agent_cgroup_move")
void BPF_PROG(agent_cgroup_move, struct task_struct *p, struct cgroup *from, struct cgroup *to)
{
	struct task *task = find_task(p);

	/* The kernel takes the task off its queues first (quiescent) and puts it back after. */
	if (task)
		task->group = cgroup_id(to);
}

SEC("struct_ops/agent_cgroup_set_weight")
void BPF_PROG(agent_cgroup_set_weight, struct cgroup *cgrp, u32 weight)
{
	struct group *group = find_group(cgroup_id(cgrp));

	if (group)
		group_weight(group, weight);
}

SEC("struct_ops/agent_cgroup_set_bandwidth")
void BPF_PROG(agent_cgroup_set_bandwidth, struct cgroup *cgrp, u64 period, u64 quota, u64 burst)
{
	struct group *group = find_group(cgroup_id(cgrp));

	if (group)
		set_bandwidth(group, period, quota, burst);
}

/* --- memory pressure ------------------------------------------------------------------------ */

static __always_inline u64 current_group(void)
{
	return bpf_get_current_cgroup_id();
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_begin")
int BPF_PROG(on_reclaim_within, unsigned int gfp, int order, struct mem_cgroup *memcg)
{
	struct cgroup *domain = memcg ? BPF_CORE_READ(memcg, css.cgroup) : NULL;

	pressure_seen(current_group(), domain ? cgroup_id(domain) : 0);
	return 0;
}

/* For kernels whose tracepoint does not say which cgroup is being reclaimed. */
SEC("tp_btf/mm_vmscan_memcg_reclaim_begin")
int BPF_PROG(on_reclaim_anywhere)
{
	pressure_seen(current_group(), 0);
	return 0;
}

SEC("tp_btf/mm_page_alloc")
int BPF_PROG(on_page, void *page, unsigned int order, unsigned int gfp)
{
	if (page && (gfp & GFP_MOVABLE))
		memory_touched(current_group(), (1ull << PAGE_SHIFT) << (order & 31));
	return 0;
}

/* --- the scheduler -------------------------------------------------------------------------- */

SEC("struct_ops.s/agent_init")
s32 BPF_PROG(agent_init)
{
	struct clock *clock;
	u32 zero = 0;
	s32 error;

	error = scx_bpf_create_dsq(SHARED, -1);
	if (error)
		return error;
	error = scx_bpf_create_dsq(PARKED, -1);
	if (error)
		return error;
	clock = bpf_map_lookup_elem(&clocks, &zero);
	if (!clock)
		return -2;
	bpf_timer_init(&clock->timer, &clocks, CLOCK_MONOTONIC);
	bpf_timer_set_callback(&clock->timer, on_timer);
	return bpf_timer_start(&clock->timer, IDLE_TICK_NS, 0);
}

SEC("struct_ops/agent_exit")
void BPF_PROG(agent_exit, struct scx_exit_info *info)
{
	struct ending *ending;
	u32 zero = 0;

	ending = bpf_map_lookup_elem(&endings, &zero);
	if (!ending)
		return;
	ending->kind = info->kind;
	bpf_probe_read_kernel_str(ending->reason, sizeof(ending->reason), info->reason);
	bpf_probe_read_kernel_str(ending->message, sizeof(ending->message), info->msg);
}

SEC(".struct_ops.link")
struct sched_ext_ops agent_sched = {
	.select_cpu = (void *)agent_select_cpu,
	.enqueue = (void *)agent_enqueue,
	.dispatch = (void *)agent_dispatch,
	.tick = (void *)agent_tick,
	.runnable = (void *)agent_runnable,
	.running = (void *)agent_running,
	.stopping = (void *)agent_stopping,
	.quiescent = (void *)agent_quiescent,
	.init_task = (void *)agent_init_task,
	.cgroup_init = (void *)agent_cgroup_init,
	.cgroup_exit = (void *)agent_cgroup_exit,
	.cgroup_move = (void *)agent_cgroup_move,
	.cgroup_set_weight = (void *)agent_cgroup_set_weight,
	.cgroup_set_bandwidth = (void *)agent_cgroup_set_bandwidth,
	.init = (void *)agent_init,
	.exit = (void *)agent_exit,
	.flags = SCX_OPS_ENQ_LAST,
	.timeout_ms = 5000,
	.name = "agentrt",
};

char LICENSE[] SEC("license") = "GPL";
