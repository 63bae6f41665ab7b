"""Control groups: a branch per run, a group per tool call, on v1, hybrid and v2 machines.

Knows files and processes only; it must not know sandboxes, programs or policies.
"""

from agentrt.resources.cgroup.control import Control, block_device
from agentrt.resources.cgroup.files import CgroupFiles
from agentrt.resources.cgroup.group import Leaf, ToolGroup
from agentrt.resources.cgroup.layout import (
    CONTROLLERS,
    Hierarchy,
    Layout,
    LayoutKind,
    parse_layout,
    read_layout,
)
from agentrt.resources.cgroup.limits import Counters, LimitsLike, Setting, flat_counters, settings
from agentrt.resources.cgroup.names import cgroup_name
from agentrt.resources.cgroup.tree import PARENT, Branch, CgroupTree, clear_run

__all__ = [
    "CONTROLLERS",
    "PARENT",
    "Branch",
    "CgroupFiles",
    "CgroupTree",
    "Control",
    "Counters",
    "Hierarchy",
    "Layout",
    "LayoutKind",
    "Leaf",
    "LimitsLike",
    "Setting",
    "ToolGroup",
    "block_device",
    "cgroup_name",
    "clear_run",
    "flat_counters",
    "parse_layout",
    "read_layout",
    "settings",
]
