"""Loads the shipped BPF objects: programs, maps, links and the ring buffer, over ``libbpf``."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from types import TracebackType

from agentrt.ebpf.libbpf import RING_CALLBACK, Library, collected_messages, last_error, library
from agentrt.errors import BackendUnavailable

__all__ = ["BpfLink", "BpfMap", "BpfObject", "RingBuffer"]

RIGHTS = "Run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN."
KERNEL = "See what this kernel loads: agentrt doctor."
DESCENDANTS_PRE_ORDER = 2


class BpfMap:
    """A map of a loaded object; keys and values are ``bytes`` of the sizes it was declared with."""

    def __init__(self, lib: Library, pointer: int) -> None:
        self._call = lib.call
        self.pointer = pointer
        self.name: str = lib.call.bpf_map__name(pointer).decode()
        self.fd: int = lib.call.bpf_map__fd(pointer)
        self._key_size: int = lib.call.bpf_map__key_size(pointer)
        self._value_size: int = lib.call.bpf_map__value_size(pointer)

    def get(self, key: bytes) -> bytes | None:
        """The value; ``None`` where there is none."""
        value = ctypes.create_string_buffer(self._value_size)
        found = self._call.bpf_map_lookup_elem(self.fd, self._checked(key), value)
        return value.raw if found == 0 else None

    def set(self, key: bytes, value: bytes) -> None:
        """Insert or replace.

        Raises:
            OSError: as the kernel answers; E2BIG when the map is full.
        """
        if len(value) != self._value_size:
            raise ValueError(f"{self.name}: a value has {self._value_size} bytes, not {len(value)}")
        if self._call.bpf_map_update_elem(self.fd, self._checked(key), value, 0) != 0:
            raise _os_error(self.name)

    def delete(self, key: bytes) -> bool:
        """Remove; returns whether it was there."""
        return bool(self._call.bpf_map_delete_elem(self.fd, self._checked(key)) == 0)

    def keys(self) -> Iterator[bytes]:
        """Every key; one that is removed meanwhile may be missed or make the walk start anew."""
        key = ctypes.create_string_buffer(self._key_size)
        previous: ctypes.Array[ctypes.c_char] | None = None
        while self._call.bpf_map_get_next_key(self.fd, previous, key) == 0:
            yield key.raw
            previous = ctypes.create_string_buffer(key.raw, self._key_size)

    def _checked(self, key: bytes) -> bytes:
        if len(key) != self._key_size:
            raise ValueError(f"{self.name}: a key has {self._key_size} bytes, not {len(key)}")
        return key


class BpfLink:
    """An attached program; detached by ``close``, or by the kernel when the process ends."""

    def __init__(self, lib: Library, pointer: int) -> None:
        self._call = lib.call
        self._pointer = pointer

    @property
    def fd(self) -> int:
        """The link's descriptor."""
        return int(self._call.bpf_link__fd(self._pointer))

    def close(self) -> None:
        """Detach; idempotent."""
        if self._pointer:
            self._call.bpf_link__destroy(self._pointer)
            self._pointer = 0


class BpfObject:
    """A shipped object, opened and loaded into the kernel.

    Args:
        name: of the object, as ``sensors`` for ``objects/sensors.bpf.o``.
        skip: programs of it not to load.
        reuse: maps, by name, that are already loaded and are taken in place of its own.

    Raises:
        BackendUnavailable: libbpf is missing or too old, rights are missing, or the kernel refuses
            a program; the message has what libbpf or the verifier said last.
    """

    def __init__(
        self,
        name: str,
        *,
        skip: frozenset[str] = frozenset(),
        reuse: Mapping[str, int] | None = None,
    ) -> None:
        self.name = name
        self._lib = library()
        self._links: list[BpfLink] = []
        self._pointer = 0
        with collected_messages() as said:
            try:
                self._open()
                self._choose(skip, reuse or {})
                self._load()
            except OSError as error:
                self.close()
                raise _unavailable(name, error, said) from error
        self.programs = {p: pointer for p, pointer in self._programs() if p not in skip}
        self.maps = {m.name: m for m in (BpfMap(self._lib, p) for p in self._walk("map"))}

    def _open(self) -> None:
        file = resources.files("agentrt.ebpf").joinpath("objects", f"{self.name}.bpf.o")
        data = file.read_bytes()
        self._pointer = self._lib.call.bpf_object__open_mem(data, len(data), None) or 0
        if not self._pointer:
            raise _os_error("open")

    def _choose(self, skip: frozenset[str], reuse: Mapping[str, int]) -> None:
        call = self._lib.call
        for name, program in self._programs():
            if name in skip:
                call.bpf_program__set_autoload(program, False)
        for pointer in self._walk("map"):
            name = call.bpf_map__name(pointer).decode()
            if name in reuse and call.bpf_map__reuse_fd(pointer, reuse[name]) != 0:
                raise _os_error(f"reuse {name}")

    def _load(self) -> None:
        code = self._lib.call.bpf_object__load(self._pointer)
        if code != 0:
            raise OSError(-code, os.strerror(-code))

    def _walk(self, what: str) -> Iterator[int]:
        step = getattr(self._lib.call, f"bpf_object__next_{what}")
        pointer = step(self._pointer, None)
        while pointer:
            yield pointer
            pointer = step(self._pointer, pointer)

    def _programs(self) -> Iterator[tuple[str, int]]:
        for pointer in self._walk("program"):
            yield self._lib.call.bpf_program__name(pointer).decode(), pointer

    def attach(self, program: str, cgroup: int | None = None) -> BpfLink:
        """Attach where the program's section says, or to the cgroup directory open as ``cgroup``.

        Raises:
            BackendUnavailable: the kernel refuses.
        """
        with collected_messages() as said:
            if cgroup is None:
                pointer = self._lib.call.bpf_program__attach(self.programs[program])
            else:
                pointer = self._lib.call.bpf_program__attach_cgroup(self.programs[program], cgroup)
            return self._linked(pointer, program, said)

    def attach_struct_ops(self, map_name: str) -> BpfLink:
        """Register a struct_ops map, such as a scheduler.

        Raises:
            BackendUnavailable: the kernel refuses.
        """
        with collected_messages() as said:
            pointer = self._lib.call.bpf_map__attach_struct_ops(self.maps[map_name].pointer)
            return self._linked(pointer, map_name, said)

    def read_iterator(self, program: str, cgroup: int | None = None) -> bytes:
        """Run an iterator program once and return all that it wrote.

        A cgroup iterator walks the directory open as ``cgroup`` and all below it, parents first.

        Raises:
            BackendUnavailable: it cannot be attached.
            OSError: it failed while it ran.
        """
        with collected_messages() as said:
            options = None if cgroup is None else _CgroupWalk.below(cgroup)
            at = None if options is None else ctypes.byref(options)
            pointer = self._lib.call.bpf_program__attach_iter(self.programs[program], at)
            link = self._linked(pointer, program, said)
        try:
            fd = self._lib.call.bpf_iter_create(link.fd)
            if fd < 0:
                raise OSError(-fd, os.strerror(-fd))
            with os.fdopen(fd, "rb", buffering=0) as stream:
                return stream.read()
        finally:
            self._links.remove(link)
            link.close()

    def _linked(self, pointer: int | None, what: str, said: list[str]) -> BpfLink:
        if not pointer:
            raise _unavailable(f"{self.name}: {what}", _os_error(what), said)
        link = BpfLink(self._lib, pointer)
        self._links.append(link)
        return link

    def detach(self, link: BpfLink) -> None:
        """Close one link before the rest."""
        if link in self._links:
            self._links.remove(link)
        link.close()

    def close(self) -> None:
        """Detach and unload everything; idempotent."""
        while self._links:
            self._links.pop().close()
        if self._pointer:
            self._lib.call.bpf_object__close(self._pointer)
            self._pointer = 0

    def __enter__(self) -> BpfObject:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _CgroupInfo(ctypes.Structure):
    """``union bpf_iter_link_info``, its cgroup member."""

    _fields_ = (
        ("order", ctypes.c_uint32),
        ("cgroup_fd", ctypes.c_uint32),
        ("cgroup_id", ctypes.c_uint64),
    )


class _CgroupWalk(ctypes.Structure):
    """``struct bpf_iter_attach_opts``."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("info", ctypes.POINTER(_CgroupInfo)),
        ("info_size", ctypes.c_uint32),
    )

    @classmethod
    def below(cls, cgroup: int) -> _CgroupWalk:
        info = _CgroupInfo(DESCENDANTS_PRE_ORDER, cgroup, 0)
        return cls(ctypes.sizeof(cls), ctypes.pointer(info), ctypes.sizeof(info))


class RingBuffer:
    """Calls ``receive`` with each record; readiness is seen by polling ``fd`` for reading."""

    def __init__(self, source: BpfMap, receive: Callable[[bytes], None]) -> None:
        self._lib = library()
        self._receive = receive
        self._callback = RING_CALLBACK(self._record)
        self._pointer = self._lib.call.ring_buffer__new(source.fd, self._callback, None, None) or 0
        if not self._pointer:
            raise _os_error(source.name)
        self.fd: int = self._lib.call.ring_buffer__epoll_fd(self._pointer)

    def _record(self, context: int, data: int, size: int) -> int:
        self._receive(ctypes.string_at(data, size))
        return 0

    def consume(self) -> int:
        """Deliver what is there without waiting; returns the number of records."""
        return int(self._lib.call.ring_buffer__consume(self._pointer)) if self._pointer else 0

    def close(self) -> None:
        """Free it; idempotent. Not while ``consume`` runs in another thread."""
        if self._pointer:
            self._lib.call.ring_buffer__free(self._pointer)
            self._pointer = 0


def _os_error(what: str) -> OSError:
    code = last_error() or errno.EINVAL
    return OSError(code, f"{os.strerror(code)} ({what})")


def _unavailable(name: str, error: OSError, said: list[str]) -> BackendUnavailable:
    lines = [line.strip() for text in said for line in text.splitlines() if line.strip()]
    # The last lines are summaries; the verifier's own reason comes before "processed N insns".
    detail = next((line for line in lines if "libbpf: prog" in line or "struct_ops" in line), "")
    denied = error.errno in (errno.EPERM, errno.EACCES) and os.geteuid() != 0
    message = f"The BPF object {name} cannot be used: {error.strerror or error}"
    return BackendUnavailable(
        f"{message}; {detail.removeprefix('libbpf: ')}." if detail else f"{message}.",
        remedy=RIGHTS if denied else KERNEL,
    )
