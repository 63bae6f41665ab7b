"""A rank after the first: a process that follows rank 0 until it says stop, or is gone.

Started as ``python -m agentrt.engine.parallel.rank DESCRIPTOR``; the descriptor is its end of a
socket pair. It answers ``h`` (here), ``l`` (loaded), ``p`` (pages made); or ``e`` and what went
wrong, and ends.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agentrt.engine.parallel.wire import Channel, unpack_step

if TYPE_CHECKING:
    from agentrt.engine.attention.base import Attention
    from agentrt.engine.kernels import Kernels
    from agentrt.engine.model.base import Model
    from agentrt.engine.parallel.group import Group

__all__ = ["Follower", "Pages", "RankSettings", "main"]

_Inbox: TypeAlias = "queue.SimpleQueue[tuple[str, bytes]]"


@dataclass(frozen=True, slots=True)
class RankSettings:
    """What a rank has to know to load its part. All of it goes through JSON.

    Args:
        directory: the model's files.
        dtype: of weights and activations, as torch calls it.
        device: a torch device of its own, or ``cpu``.
        rank: which one it is.
        size: how many there are.
        meeting: the file through which the ranks meet.
        seconds: bound of every operation of the group.
        kernels: as rank 0 was asked to choose.
        quant: as rank 0's weights.
        threads: CPU threads.
    """

    directory: str
    dtype: str
    device: str
    rank: int
    size: int
    meeting: str
    seconds: float
    kernels: str = "torch"
    quant: str | None = None
    threads: int = 1

    def to_json(self) -> dict[str, object]:
        """Return all fields."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Pages:
    """The pool that every rank makes, for its own heads."""

    count: int
    size: int
    kv_dtype: str = "auto"

    def to_json(self) -> dict[str, object]:
        """Return all fields."""
        return asdict(self)


class Follower:
    """Computes what rank 0 computes, on this rank's part.

    Args:
        model: the part.
        kernels: what it runs on.
        group: the ranks.
    """

    def __init__(self, model: Model, kernels: Kernels, group: Group) -> None:
        self._model = model
        self._kernels = kernels
        self._group = group
        self._attention: Attention | None = None

    def make_pages(self, pages: Pages) -> None:
        """Make the pool anew; the old one goes first, so that both need not fit the memory."""
        import torch

        from agentrt.engine.kernels import make_attention

        self._attention = None
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        model = self._model
        self._attention = make_attention(
            self._kernels,
            model.config,
            pages.count,
            pages.size,
            model.dtype,
            model.device,
            pages.kv_dtype,
        )

    def step(self, data: bytes) -> None:
        """Compute a step with the others; its logits are rank 0's."""
        import torch

        step = unpack_step(data)
        tokens = step.layout.tokens
        shape = (2 * tokens + step.rows,)
        ints = torch.empty(shape, dtype=torch.int64, device=self._model.device)
        self._group.share(ints)
        assert self._attention is not None, "pages come before steps"
        parts = ints.tensor_split((tokens, 2 * tokens))
        self._model.forward(parts[0], parts[1], self._attention.plan(step.layout), parts[2])


def main(descriptor: int) -> int:
    """Follow rank 0 until it is done; returns the exit status."""
    channel = Channel(socket.socket(fileno=descriptor))
    inbox: _Inbox = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, inbox), daemon=True).start()
    try:
        _follow(channel, inbox)
    except BaseException as error:
        channel.tell("e", {"error": f"{type(error).__name__}: {error}"})
        raise
    return 0


def _listen(channel: Channel, inbox: _Inbox) -> None:
    """Read messages; once rank 0 is gone end the process, whatever it waits for."""
    stopping = False
    while (message := channel.receive()) is not None:
        stopping = message[0] == "s"
        inbox.put(message)
    if not stopping:
        os._exit(1)


def _follow(channel: Channel, inbox: _Inbox) -> None:
    import torch

    from agentrt.engine.kernels import choose_kernels, prepare
    from agentrt.engine.model.weights import load_model
    from agentrt.engine.parallel.group import TorchGroup

    _, data = inbox.get()
    settings = RankSettings(**json.loads(data))
    torch.set_num_threads(settings.threads)
    device = torch.device(settings.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    group = TorchGroup(settings.rank, settings.size, device)
    channel.send("h")
    group.join(Path(settings.meeting), settings.seconds)
    dtype: torch.dtype = getattr(torch, settings.dtype)
    kernels = choose_kernels(settings.kernels, device.type)
    place, quant = settings.device, settings.quant
    model = load_model(settings.directory, dtype=dtype, device=place, quant=quant, group=group)
    prepare(model, kernels, quant)
    channel.send("l")
    follower = Follower(model, kernels, group)
    while (message := inbox.get())[0] != "s":
        if message[0] == "p":
            follower.make_pages(Pages(**json.loads(message[1])))
            channel.send("p")
        else:
            follower.step(message[1])
    group.leave()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
