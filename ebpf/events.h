/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the programs put into the ring buffer; agentrt/resources/sensors_bpf.py unpacks it. */
#pragma once

#include "kernel.h"

#define LINEAGE 8
#define TEXT 64

enum event_kind {
	EVENT_EXEC = 1,
	EVENT_EXIT,
	EVENT_FORK,
	EVENT_OOM,
	EVENT_RECLAIM,
	EVENT_MOVE,
	EVENT_BURST,
	EVENT_CONNECT,
};

struct event {
	u64 time;
	u64 lineage[LINEAGE]; /* cgroup ids from the process's own up to the watched root, then 0 */
	u64 value;            /* burst: bytes; reclaim: nanoseconds; move: the previous cgroup id */
	u32 kind;
	u32 pid;
	u32 parent; /* fork */
	s32 status; /* exit: wait status; connect: 1 where refused */
	char text[TEXT];
};

/* connect: what `text` holds instead of text */
struct address {
	u16 family;
	u16 port; /* network byte order */
	u32 protocol;
	u32 ip[4]; /* network byte order */
};
