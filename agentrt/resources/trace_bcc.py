"""Runs under the distribution's Python with its bcc: ``trace_bcc.py CGROUP_ID SECONDS``.

Prints one JSON object. Not imported by agentrt; uses tracepoints and samples only, no kernel
structs, whose layout could differ from the headers'.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from typing import Any

PROGRAM = """
#include <uapi/linux/ptrace.h>
#include <uapi/linux/bpf_perf_event.h>

struct opened { char name[128]; };
struct stack { u32 pid; int user; int kernel; char name[16]; };

BPF_HASH(files, struct opened, u64, 4096);
BPF_HASH(blocks, u64, u64, 16);
BPF_HASH(stacks, struct stack, u64, 8192);
BPF_STACK_TRACE(traces, 8192);

static inline bool wanted() { return bpf_get_current_cgroup_id() == CGROUP; }

TRACEPOINT_PROBE(syscalls, sys_enter_openat) {
    struct opened key = {};
    if (!wanted()) return 0;
    bpf_probe_read_user_str(&key.name, sizeof(key.name), args->filename);
    files.increment(key);
    return 0;
}

TRACEPOINT_PROBE(block, block_rq_issue) {
    u64 write = args->rwbs[0] == 'W';
    if (wanted()) blocks.increment(write, args->bytes);
    return 0;
}

int on_sample(struct bpf_perf_event_data *ctx) {
    struct stack key = {};
    if (!wanted()) return 0;
    key.pid = bpf_get_current_pid_tgid() >> 32;
    key.user = traces.get_stackid(&ctx->regs, BPF_F_USER_STACK);
    key.kernel = traces.get_stackid(&ctx->regs, 0);
    bpf_get_current_comm(&key.name, sizeof(key.name));
    stacks.increment(key);
    return 0;
}
"""
HERTZ = 49


def frames(bpf: Any, stack: int, pid: int) -> list[str]:
    """Function names of a stack, outermost first; nothing where it could not be walked."""
    if stack < 0:
        return []
    names = [bpf.sym(a, pid, show_module=False) for a in bpf["traces"].walk(stack)]
    return [name.decode(errors="replace") for name in reversed(names)]


def main() -> None:
    """Trace, wait, print."""
    from bcc import BPF, PerfSWConfig, PerfType  # type: ignore[import-not-found,unused-ignore]

    cgroup, seconds = int(sys.argv[1]), float(sys.argv[2])
    bpf = BPF(text=PROGRAM.replace("CGROUP", f"{cgroup}ULL"))
    bpf.attach_perf_event(
        ev_type=PerfType.SOFTWARE,
        ev_config=PerfSWConfig.CPU_CLOCK,
        fn_name="on_sample",
        sample_freq=HERTZ,
    )
    time.sleep(seconds)
    stacks: Counter[str] = Counter()
    for key, count in bpf["stacks"].items():
        path = frames(bpf, key.user, key.pid) + frames(bpf, key.kernel, -1)
        stacks[";".join([key.name.decode(errors="replace"), *path])] += count.value
    files = {k.name.decode(errors="replace"): v.value for k, v in bpf["files"].items()}
    blocks = {"write" if k.value else "read": v.value for k, v in bpf["blocks"].items()}
    result = {"files": files, "block_bytes": blocks, "stacks": dict(stacks)}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
