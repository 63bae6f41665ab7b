"""From a model's name to a loaded model: find it, check it, see that it fits, then read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from agentrt.engine.memory import DeviceBytes, MemoryPlan, ModelNeed, StepBounds, plan_memory
from agentrt.errors import ConfigError
from agentrt.ranks import rank_devices
from agentrt.resources.headroom import memory_headroom

if TYPE_CHECKING:
    import torch

    from agentrt.engine.lora.adapter import AdapterFiles
    from agentrt.engine.lora.book import AdapterBook
    from agentrt.engine.model.base import Model
    from agentrt.engine.model.config import ModelShape
    from agentrt.engine.model.load import Implementation, ModelSource
    from agentrt.engine.parallel.ranks import Ranks
    from agentrt.engine.tokens import Tokenizer

__all__ = [
    "Found",
    "Loaded",
    "Room",
    "Wanted",
    "adapter_files",
    "device_bytes",
    "find",
    "plan_models",
    "read",
]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to load, and how.

    Args:
        model: a directory, ``org/name`` of the hub, or None for the small seeded default.
        implementation: who computes it.
        dtype: of weights and activations.
        device: a torch device.
        quant: what the weights are kept as; None keeps them as they are.
        name: what it is served under; None takes that of the directory or the hub.
        ranks: how many hold a part of it each.
    """

    model: str | None
    implementation: Implementation
    dtype: torch.dtype
    device: str
    quant: str | None = None
    name: str | None = None
    ranks: int = 1


@dataclass(frozen=True, slots=True)
class Found:
    """A model whose files were found in order; no weight was read."""

    source: ModelSource
    tokenizer: Tokenizer
    name: str
    directory: Path
    wanted: Wanted
    adapters: Mapping[str, AdapterFiles] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its tokenizer, the name that it is served under, and where its files are."""

    model: Model
    tokenizer: Tokenizer
    name: str
    directory: Path
    adapters: AdapterBook
    ranks: Ranks | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """What a model's KV is to be: tokens that were asked for (None: what is there), its dtype."""

    pool_tokens: int | None
    kv_dtype: str


def find(wanted: Wanted) -> Found:
    """Find a model and check its configuration, every shard's header and its tokenizer; blocking.

    Raises:
        ModelError: something is missing, wrong or not supported; names it.
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
    name = wanted.name or found.name
    return Found(source, tokenizer, name, found.directory, wanted)


def adapted(found: Found, adapters: Mapping[str, str]) -> dict[str, AdapterFiles]:
    """Check directories of LoRA adapters, by name, for a model; no weight is read.

    Raises:
        ModelError, ConfigError: as :func:`adapter_files`.
    """
    return {
        name: adapter_files(directory, found.source.shape, found.name)
        for name, directory in adapters.items()
    }


def adapter_files(directory: Path | str, shape: ModelShape, model: str) -> AdapterFiles:
    """Check an adapter's directory against the model that it is for; no weight is read.

    Raises:
        ModelError: the adapter is malformed, not supported, or does not fit the model.
        ConfigError: the model cannot have adapters.
    """
    from agentrt.engine.lora.adapter import AdapterFiles
    from agentrt.engine.model.config import ModelConfig

    if not isinstance(shape, ModelConfig):
        raise ConfigError(
            f"Adapters are for models that our own decoder computes; {model} is computed by "
            "transformers.",
            remedy="Leave the adapter out, or merge it into the model's weights.",
        )
    return AdapterFiles(directory, shape)


def plan_models(
    models: Sequence[Found], room: Room, step: StepBounds, device: DeviceBytes
) -> MemoryPlan:
    """Say what the device's memory goes to, before any weight is read.

    Raises:
        ConfigError: a quantisation that a model cannot have, or sizes that cannot work.
        ModelError: a model does not fit.
    """
    return plan_memory([_need(model, room) for model in models], step, device)


def _need(found: Found, room: Room) -> ModelNeed:
    from agentrt.engine.attention.quantized import kv_bytes_per_token

    source, quant = _Part(found.source, found.wanted.ranks), found.wanted.quant
    dtype = found.source.dtype
    wide = source.weight_bytes
    weights = source.bytes_as(dtype.itemsize, quant)
    if weights is None:
        raise ConfigError(
            f"{quant} weights are for models that our own decoder computes.",
            remedy="Leave --quant out, or choose another model.",
        )
    on_gpu = found.wanted.device.startswith("cuda")
    kv = {kind: kv_bytes_per_token(source.shape, dtype, kind) for kind in {room.kv_dtype, "fp8"}}
    smaller = {f"--kv-dtype {kind}": size for kind, size in kv.items() if kind != room.kv_dtype}
    return ModelNeed(
        name=found.name,
        shape=source.shape,
        weights=weights,
        dtype=str(dtype).removeprefix("torch."),
        kv_token_bytes=kv[room.kv_dtype],
        pool_tokens=room.pool_tokens,
        # fp8 is made tensor by tensor on the way; int8 of the whole model, once it is there.
        adapters=sum(files.bytes(dtype.itemsize) for files in found.adapters.values()),
        loading=max(0, wide - weights) if quant == "int8" else 0,
        widened=quant == "fp8",
        instead=_smaller(source, quant, on_gpu),
        kv_instead=smaller,
        where=str(found.directory),
    )


class _Part:
    """What a rank has of a model; all of it where there is one.

    Raises:
        ConfigError: the model cannot be cut for so many.
    """

    def __init__(self, source: ModelSource, ranks: int) -> None:
        self._source = source
        self._share = 1.0
        self.shape = source.shape
        self.dtype = source.dtype
        if ranks > 1:
            shard = source.shard(0, ranks)
            self._share = shard.parameters / source.parameters
            self.shape = shard.part

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights, unquantised."""
        return round(self._share * self._source.weight_bytes)

    def bytes_as(self, itemsize: int, quant: str | None) -> int | None:
        """Return the bytes of its weights in a form; None if that cannot be."""
        whole = self._source.bytes_as(itemsize, quant)
        return None if whole is None else round(self._share * whole)


def _smaller(source: _Part, quant: str | None, on_gpu: bool) -> dict[str, int]:
    """Return bytes of the weights by the options that would make them smaller."""
    told: dict[str, int | None] = {}
    if source.dtype.itemsize > 2:
        told["--dtype bfloat16"] = source.bytes_as(2, quant)
        if quant is None:
            told["--dtype bfloat16 --quant fp8"] = source.bytes_as(2, "fp8")
    if quant is None:
        told["--quant fp8"] = source.bytes_as(source.dtype.itemsize, "fp8")
    return {option: size for option, size in told.items() if size is not None}


def read(
    found: Found,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks | None = None,
) -> Loaded:
    """Read the weights; blocking. ``progress`` is told bytes of weights, and in all.

    Of several ``ranks`` those of ours are read; the others read theirs meanwhile.

    Raises:
        ModelError: they cannot be read after all.
        EngineFault: another rank could not read its.
    """
    from agentrt.engine.lora.book import AdapterBook
    from agentrt.engine.parallel.group import ALONE

    wanted, group = found.wanted, ALONE if ranks is None else ranks.group
    model = found.source.load(wanted.device, progress, wanted.quant, group)
    if ranks is not None:
        ranks.loaded()
    loaded = [files.load(name, model.dtype, model.device) for name, files in found.adapters.items()]
    return Loaded(model, found.tokenizer, found.name, found.directory, AdapterBook(loaded), ranks)


def device_bytes(device: str, ranks: int = 1) -> DeviceBytes:
    """Return the memory that a rank can take on its device now.

    Ranks on the CPU share what there is; of several GPUs the one with the least counts.
    """
    if not device.startswith("cuda"):
        room = memory_headroom()
        bound = room.bound if ranks == 1 else f"{room.bound}, for each of {ranks} ranks"
        return DeviceBytes(room.bytes // ranks, bound, gpu=False)
    import torch

    places = rank_devices(device, ranks, torch.cuda.device_count())
    free, least = min((torch.cuda.mem_get_info(place)[0], place) for place in places)
    return DeviceBytes(free, f"free on {least}", gpu=True)
