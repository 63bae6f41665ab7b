"""Kernels of our own in C++: attention over the pages, packed linear layers, small operations.

They are compiled on first use and kept in the user's cache. Where they cannot be built, the torch
path does the same work and the log says why. It must not know turns, programs or scheduling.
"""

from agentrt.engine.attention.native.library import NativeLibrary, NativeUnavailable, load_native
from agentrt.engine.attention.native.paged import NativePagedAttention, NativeStep

__all__ = [
    "NativeLibrary",
    "NativePagedAttention",
    "NativeStep",
    "NativeUnavailable",
    "load_native",
]
