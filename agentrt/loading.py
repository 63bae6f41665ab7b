"""From a model's name to a loaded model: find it, check it, see that it fits, then read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agentrt.errors import ModelError
from agentrt.resources.headroom import Headroom, memory_headroom

if TYPE_CHECKING:
    import torch

    from agentrt.engine.model.base import Model
    from agentrt.engine.model.load import Implementation, ModelSource
    from agentrt.engine.parallel.ranks import Ranks
    from agentrt.engine.tokens import Tokenizer

__all__ = ["Loaded", "Wanted", "device_headroom", "load"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to load, and how.

    Args:
        model: a directory, ``org/name`` of the hub, or None for the small seeded default.
        implementation: who computes it.
        dtype: of weights and activations.
        device: a torch device.
        pool_tokens: tokens of KV that are to fit, too.
        memory: what may be taken; None asks the machine.
        ranks: how many hold a part of it each.
    """

    model: str | None
    implementation: Implementation
    dtype: torch.dtype
    device: str
    pool_tokens: int
    memory: Headroom | None = None
    ranks: int = 1


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its tokenizer, the name that it is served under, and where its files are."""

    model: Model
    tokenizer: Tokenizer
    name: str
    directory: Path
    ranks: Ranks | None = None


Launch: TypeAlias = "Callable[[Path], Ranks | None]"
"""Starts the other ranks of a model that was found in order, or none."""


def load(
    wanted: Wanted,
    progress: Callable[[int, int], None] | None = None,
    launch: Launch = lambda directory: None,
) -> Loaded:
    """Load model and tokenizer; blocking. ``progress`` is told bytes of weights, and in all.

    Everything that can be wrong is looked for before weights are read: the configuration, every
    shard's header, the tokenizer, and the memory.

    Raises:
        ModelError: something is missing, wrong, not supported or too large; names it.
        ConfigError: there is no such implementation.
    """
    from agentrt.engine.model.hub import Located, locate
    from agentrt.engine.model.load import check_config, open_source
    from agentrt.engine.model.make import ensure_default_model
    from agentrt.engine.tokens import Tokenizer

    if wanted.model is None:
        directory = ensure_default_model()
        found = Located(directory, directory.resolve().name)
    else:
        found = locate(wanted.model, check=lambda path: check_config(path, wanted.implementation))
    source = open_source(found.directory, dtype=wanted.dtype, implementation=wanted.implementation)
    tokenizer = Tokenizer.from_directory(found.directory)
    _check_memory(source, found.directory, wanted)
    ranks = launch(found.directory)
    if ranks is None:
        model = source.load(wanted.device, progress)
    else:
        model = source.load(wanted.device, progress, ranks.group)
        ranks.loaded()
    return Loaded(model, tokenizer, found.name, found.directory, ranks)


def _check_memory(source: ModelSource, directory: Path, wanted: Wanted) -> None:
    """Compare what weights and KV pages take with what can be had.

    Raises:
        ModelError: they do not fit.
    """
    room = wanted.memory or device_headroom(wanted.device)
    dtype = str(wanted.dtype).removeprefix("torch.")
    weights, shape = source.weight_bytes, source.shape
    if wanted.ranks > 1:  # on CUDA a rank's part on each device; on the CPU all of them here
        shard = source.shard(0, wanted.ranks)
        here = 1 if wanted.device.startswith("cuda") else wanted.ranks
        weights, shape = here * shard.parameters * wanted.dtype.itemsize, shard.part
    pool = wanted.pool_tokens * shape.kv_bytes_per_token(dtype)
    if weights + pool <= room.bytes:
        return
    smaller = "" if dtype == "bfloat16" else "--dtype bfloat16, "
    raise ModelError(
        f"{directory}: the weights take {_size(weights)} in {dtype} and "
        f"{wanted.pool_tokens:,} tokens of KV {_size(pool)}, but only {_size(room.bytes)} are "
        f"{room.bound}.",
        remedy=f"Use {smaller}a smaller --pool, a smaller model, or give it more memory.",
    )


def device_headroom(device: str) -> Headroom:
    """Return the memory that can be taken on a device now."""
    if not device.startswith("cuda"):
        return memory_headroom()
    import torch

    return Headroom(torch.cuda.mem_get_info(device)[0], f"free on {device}")


def _size(count: float) -> str:
    """Return bytes as people read them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
