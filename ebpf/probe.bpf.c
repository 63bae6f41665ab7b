// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* One empty program of each type that agentrt may use: agentrt doctor loads each alone to see
 * whether this kernel takes it. None of them is ever attached. */
#include "kernel.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

SEC("tp_btf/sched_process_exit")
int BPF_PROG(probe_tracepoint, struct task_struct *task)
{
	return 0;
}

SEC("cgroup/connect4")
int probe_cgroup_connect(struct bpf_sock_addr *ctx)
{
	return 1;
}

SEC("iter/cgroup")
int probe_cgroup_iterator(void *ctx)
{
	return 0;
}

SEC("fentry/do_exit")
int BPF_PROG(probe_fentry)
{
	return 0;
}

SEC("lsm/bprm_check_security")
int BPF_PROG(probe_lsm)
{
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
