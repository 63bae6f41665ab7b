"""BPF programs and their loader, imported as ``agentrt.ebpf``.

``*.bpf.c`` are the programs, ``objects/`` what they compile to (shipped, so that no compiler is
needed at run time), ``loader.py`` loads them over the system's libbpf. Knows cgroup ids and events,
not tool calls, programs or policies.
"""

from agentrt.ebpf.libbpf import SCX_MINIMUM, Library, library
from agentrt.ebpf.loader import BpfLink, BpfMap, BpfObject, RingBuffer

__all__ = ["SCX_MINIMUM", "BpfLink", "BpfMap", "BpfObject", "Library", "RingBuffer", "library"]
