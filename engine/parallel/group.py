"""What ranks do together: sums, one gathering, one broadcast. All use of torch.distributed is here.

A decoder is given its group. Alone, a rank does nothing; else nccl works between CUDA devices and
gloo on the CPU, over the loopback interface.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from agentrt.engine.parallel.sharding import Cut
from agentrt.errors import BackendUnavailable, ConfigError

__all__ = ["ALONE", "Alone", "Group", "ShardedEmbedding", "TorchGroup"]


class Group(Protocol):
    """The ranks of one model. All of them make the same calls in the same order."""

    rank: int
    """Which one this is."""
    size: int
    """How many there are."""

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of all ranks' ``x``, in its shape and dtype; ``x`` may be overwritten."""
        ...

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Return all ranks' ``x [rows, n]`` side by side, ``[rows, size * n]``, on rank 0.

        Other ranks get what they gave.
        """
        ...

    def share(self, x: torch.Tensor) -> torch.Tensor:
        """Overwrite ``x`` by that of rank 0, and return it."""
        ...


class Alone(Group):
    """One rank: nothing to add, gather or share."""

    rank = 0
    size = 1

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x``."""
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x``."""
        return x

    def share(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x``."""
        return x


ALONE = Alone()


class TorchGroup(Group):
    """Ranks over a process group of torch.

    Args:
        rank: which one this is.
        size: how many there are.
        device: where its tensors are; decides the transport.
        joined: a process group that is there already; else :meth:`join` makes one.
    """

    def __init__(self, rank: int, size: int, device: torch.device, joined: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._device = device
        self._ranks = joined
        self._to_first = dist.GatherOptions()

    def join(self, meeting: Path, seconds: float) -> None:
        """Meet the other ranks through a file that all of them see; waits for all of them.

        Args:
            meeting: a file that nobody used before, in a directory that is ours.
            seconds: bound of this call and of every operation of the group later.

        Raises:
            BackendUnavailable: not all came in time, or they cannot reach each other.
            ConfigError: this process is in a group of somebody else.
        """
        if dist.is_initialized():
            raise ConfigError(
                "This process is in a group of torch.distributed already.",
                remedy="Open one tensor-parallel engine at a time in a process.",
            )
        cuda = self._device.type == "cuda"
        try:
            with _set_up():
                dist.init_process_group(
                    "nccl" if cuda else "gloo",
                    store=dist.FileStore(str(meeting), self.size),  # type: ignore[attr-defined]
                    rank=self.rank,
                    world_size=self.size,
                    timeout=timedelta(seconds=seconds),
                    device_id=self._device if cuda else None,
                )
        except (RuntimeError, ValueError) as error:
            raise BackendUnavailable(
                f"The {self.size} ranks could not meet: {str(error).splitlines()[0]}.",
                remedy="See the log of the other ranks; the loopback interface must be up.",
            ) from error
        self._ranks = dist.group.WORLD

    def leave(self) -> None:
        """Leave the group without waiting for others; what is under way fails. Idempotent."""
        if self._ranks is None:
            return
        self._ranks = None
        # A rank may be dead: to end what waits for it comes before the tidy way, and may be all.
        with contextlib.suppress(Exception):
            _abort()
        with contextlib.suppress(Exception):
            dist.destroy_process_group()

    def abort(self) -> None:
        """Have everything that is under way fail. Any thread may call this."""
        if self._ranks is not None:
            with contextlib.suppress(Exception):
                _abort()

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of all ranks' ``x``."""
        x = x.contiguous()
        self._ranks.allreduce([x]).wait()
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Return all ranks' ``x [rows, n]`` side by side on rank 0."""
        x = x.contiguous()
        if self.rank:
            self._ranks.gather([], [x], self._to_first).wait()
            return x
        parts = torch.empty((self.size, *x.shape), dtype=x.dtype, device=x.device)
        self._ranks.gather([list(parts.unbind(0))], [x], self._to_first).wait()
        return parts.movedim(0, 1).flatten(1)

    def share(self, x: torch.Tensor) -> torch.Tensor:
        """Overwrite ``x``, contiguous, by that of rank 0."""
        self._ranks.broadcast([x]).wait()
        return x


def _abort() -> None:
    """End the process group at once, where this torch can do so."""
    abort = getattr(dist.group.WORLD, "abort", None)
    if abort is None:
        abort = getattr(dist.distributed_c10d, "_abort_process_group", None)
    if abort is not None:
        abort()


@contextlib.contextmanager
def _set_up() -> Iterator[None]:
    """Have a group that is made within it be as we need it, unless the environment says otherwise.

    All ranks are on this host, so both transports meet over the loopback interface. nccl, once it
    gives up, is to end its communication and not the process: rank 0 is a server.
    """
    wanted = {
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "2",
    }
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


class ShardedEmbedding:
    """An embedding of which this rank has the rows ``cut``; the others' come by a sum.

    Args:
        table: the rows, as an embedding; may have more than ``cut`` names.
        cut: which token ids they are.
        group: the ranks.
    """

    __slots__ = ("_cut", "_group", "_table")

    def __init__(self, table: Any, cut: Cut, group: Group) -> None:
        self._table = table
        self._cut = cut
        self._group = group

    def over(self, table: Any) -> ShardedEmbedding:
        """Return the same over another table of the same rows."""
        return ShardedEmbedding(table, self._cut, self._group)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the rows of ``tokens [T]``, a new tensor ``[T, hidden]``."""
        own = tokens - self._cut.start
        here = (own >= 0) & (own < self._cut.count)
        rows = self._table(own.clamp(0, max(self._cut.count - 1, 0)))
        return self._group.reduce(rows.mul_(here.unsqueeze(1)))
