"""The C library ``libbpf``, found and declared for ctypes; nothing here knows our programs."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from ctypes import c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p

from agentrt.errors import BackendUnavailable

__all__ = ["RING_CALLBACK", "SCX_MINIMUM", "Library", "collected_messages", "last_error", "library"]

VARIABLE = "AGENTRT_LIBBPF"
SCX_MINIMUM = (1, 5)
"""The first version known to load sched_ext objects."""

INSTALL = "Install it (Debian: apt-get install libbpf1), or name a library file in AGENTRT_LIBBPF."

RING_CALLBACK = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)
PRINT_CALLBACK = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)

# name: (result, arguments). Pointers are void pointers: we never look inside.
PROTOTYPES: dict[str, tuple[type | None, list[type]]] = {
    "libbpf_major_version": (c_uint32, []),
    "libbpf_minor_version": (c_uint32, []),
    "bpf_object__open_mem": (c_void_p, [c_char_p, c_size_t, c_void_p]),
    "bpf_object__load": (c_int, [c_void_p]),
    "bpf_object__close": (None, [c_void_p]),
    "bpf_object__next_program": (c_void_p, [c_void_p, c_void_p]),
    "bpf_object__next_map": (c_void_p, [c_void_p, c_void_p]),
    "bpf_program__name": (c_char_p, [c_void_p]),
    "bpf_program__fd": (c_int, [c_void_p]),
    "bpf_program__set_autoload": (c_int, [c_void_p, ctypes.c_bool]),
    "bpf_program__attach": (c_void_p, [c_void_p]),
    "bpf_program__attach_cgroup": (c_void_p, [c_void_p, c_int]),
    "bpf_program__attach_iter": (c_void_p, [c_void_p, c_void_p]),
    "bpf_iter_create": (c_int, [c_int]),
    "bpf_map__name": (c_char_p, [c_void_p]),
    "bpf_map__fd": (c_int, [c_void_p]),
    "bpf_map__key_size": (c_uint32, [c_void_p]),
    "bpf_map__value_size": (c_uint32, [c_void_p]),
    "bpf_map__reuse_fd": (c_int, [c_void_p, c_int]),
    "bpf_map__set_autocreate": (c_int, [c_void_p, ctypes.c_bool]),
    "bpf_map__attach_struct_ops": (c_void_p, [c_void_p]),
    "bpf_map_lookup_elem": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_map_update_elem": (c_int, [c_int, c_void_p, c_void_p, c_uint64]),
    "bpf_map_delete_elem": (c_int, [c_int, c_void_p]),
    "bpf_map_get_next_key": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_link__destroy": (c_int, [c_void_p]),
    "bpf_link__fd": (c_int, [c_void_p]),
    "ring_buffer__new": (c_void_p, [c_int, RING_CALLBACK, c_void_p, c_void_p]),
    "ring_buffer__epoll_fd": (c_int, [c_void_p]),
    "ring_buffer__consume": (c_int, [c_void_p]),
    "ring_buffer__free": (None, [c_void_p]),
}


class Library:
    """A loaded ``libbpf``; every function of ``PROTOTYPES`` is an attribute of ``call``."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.call = ctypes.CDLL(path, use_errno=True)
        for name, (result, arguments) in PROTOTYPES.items():
            function = getattr(self.call, name)
            function.restype, function.argtypes = result, arguments
        # Kept for the life of the process: libbpf holds the pointer.
        self._print = PRINT_CALLBACK(_keep_message)
        self.call.libbpf_set_print(self._print)

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor version."""
        return self.call.libbpf_major_version(), self.call.libbpf_minor_version()


@functools.cache
def library() -> Library:
    """The process's libbpf: ``AGENTRT_LIBBPF``, else the system's.

    Raises:
        BackendUnavailable: there is none, or it is older than 1.0.
    """
    path = os.environ.get(VARIABLE) or "libbpf.so.1"
    try:
        return Library(path)
    except (OSError, AttributeError) as error:
        raise BackendUnavailable(f"libbpf cannot be used: {error}.", remedy=INSTALL) from error


_messages = threading.local()
_vsnprintf = ctypes.CDLL(None).vsnprintf
_vsnprintf.argtypes = [c_char_p, c_size_t, c_char_p, c_void_p]
DEBUG = 2


def _keep_message(level: int, form: bytes, arguments: int) -> int:
    """Format one message of libbpf and keep it where the calling thread collects them."""
    kept: list[str] | None = getattr(_messages, "kept", None)
    if kept is not None and level < DEBUG:
        buffer = ctypes.create_string_buffer(8192)
        _vsnprintf(buffer, len(buffer), form, arguments)
        kept.append(buffer.value.decode(errors="replace"))
    return 0


@contextlib.contextmanager
def collected_messages() -> Iterator[list[str]]:
    """Collect what libbpf says to this thread; outside of it, nothing is printed."""
    _messages.kept = kept = list[str]()
    try:
        yield kept
    finally:
        _messages.kept = None


def last_error() -> int:
    """``errno`` of the last call into libbpf by this thread."""
    return ctypes.get_errno()
