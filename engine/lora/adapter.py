"""One adapter on its device, in the order in which the decoder's fused linears need it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import safe_open

from agentrt.engine.lora.config import LoraConfig, TensorName, parse_name, unpaired, wanted_shape
from agentrt.engine.model.config import ModelConfig, read_json
from agentrt.engine.model.header import TensorEntry, read_header
from agentrt.engine.model.weights import linear_shapes
from agentrt.errors import ModelError

__all__ = ["SITES", "Adapter", "AdapterFiles", "Part", "SiteName", "SiteWeights"]

SiteName: TypeAlias = str
SITES: Mapping[SiteName, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""The decoder's linears, and the modules whose outputs each of them holds one after another."""

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_DTYPES = ("F32", "BF16", "F16")
_AGAIN = "Use the adapter with the model that it was trained on."


@dataclass(frozen=True, slots=True)
class Part:
    """One module of a site: ``b [out, rank]``, scaled, adds to outputs ``[start, stop)``.

    Its inner values are ``[first, last)`` of what the site's ``a`` gives.
    """

    start: int
    stop: int
    first: int
    last: int
    b: torch.Tensor


@dataclass(frozen=True, slots=True)
class SiteWeights:
    """An adapter's weights at one linear of one layer: ``a [ranks of all parts, in]``."""

    a: torch.Tensor
    parts: tuple[Part, ...]

    def delta(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add ``(x A^T) B^T * scale`` to ``y [rows, out]`` in place; ``x [rows, in]``."""
        inner = x @ self.a.T
        for part in self.parts:
            y[:, part.start : part.stop] += inner[:, part.first : part.last] @ part.b.T


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A loaded adapter. ``namespace`` is a negative number that only equal files share.

    Keys and values that it has a part in are told apart by it from all others, in files too.
    """

    name: str
    namespace: int
    sites: Mapping[tuple[int, SiteName], SiteWeights]


class AdapterFiles:
    """An adapter's directory in PEFT's layout; opening it checks everything and reads no weight.

    Raises:
        ModelError: a file is missing or malformed, the adapter asks for something that is not
            computed here, or a tensor does not fit the model.
    """

    def __init__(self, directory: Path | str, config: ModelConfig) -> None:
        self.directory = Path(directory)
        file = self.directory / _CONFIG
        if not file.is_file():
            raise ModelError(
                f"{file} does not exist.",
                remedy=f"Name a directory in PEFT's layout: {_CONFIG} and {_WEIGHTS}.",
            )
        self.lora = LoraConfig.from_mapping(read_json(file), file)
        self._model = config
        self._shapes = {name: (rows, columns) for name, rows, columns, _ in linear_shapes(config)}
        weights = self.directory / _WEIGHTS
        if not weights.is_file():
            raise ModelError(
                f"{weights} does not exist.", remedy="Save the adapter as safetensors."
            )
        self._file = weights
        self._names = self._check(read_header(weights))

    def _check(self, entries: Mapping[str, TensorEntry]) -> dict[TensorName, str]:
        found: dict[TensorName, str] = {}
        for text, entry in entries.items():
            name = parse_name(text)
            if name is None or name.module not in self._shapes:
                raise ModelError(
                    f"{self._file}: {text} adapts something else than the linear layers of "
                    "attention and MLP.",
                    remedy=f"Use target_modules out of {', '.join(self._modules())}.",
                )
            self._check_shape(text, name, entry)
            found[name] = text
        for module in unpaired(found):
            raise ModelError(f"{self._file}: {module} has no pair of A and B.", remedy=_AGAIN)
        if not found:
            raise ModelError(f"{self._file} holds no tensor.", remedy="Save the adapter again.")
        return found

    def _check_shape(self, text: str, name: TensorName, entry: TensorEntry) -> None:
        if name.layer >= self._model.num_layers:
            raise ModelError(
                f"{self._file}: {text} is for layer {name.layer}; the model has "
                f"{self._model.num_layers}.",
                remedy=_AGAIN,
            )
        wanted = wanted_shape(name, self.lora.rank, *self._shapes[name.module])
        if entry.shape != wanted or entry.dtype not in _DTYPES:
            raise ModelError(
                f"{self._file}: {text} is {entry.dtype} {list(entry.shape)}, but the model and "
                f"rank {self.lora.rank} ask for {list(wanted)} in {', '.join(_DTYPES)}.",
                remedy=_AGAIN,
            )

    def _modules(self) -> list[str]:
        return [name.rpartition(".")[2] for name in self._shapes]

    def bytes(self, itemsize: int) -> int:
        """Return what the adapter takes once it is loaded."""
        shapes = (
            wanted_shape(name, self.lora.rank, *self._shapes[name.module]) for name in self._names
        )
        return sum(rows * columns for rows, columns in shapes) * itemsize

    def load(self, name: str, dtype: torch.dtype, device: torch.device | str) -> Adapter:
        """Read the weights; they are rounded to ``dtype`` once, B after scaling in fp32."""
        modules: dict[tuple[int, str], dict[str, torch.Tensor]] = {}
        with safe_open(str(self._file), framework="pt") as source:
            for place, text in self._names.items():
                tensor = source.get_tensor(text).float()
                if place.side == "B":
                    tensor *= self.lora.scale
                sides = modules.setdefault((place.layer, place.module), {})
                sides[place.side] = tensor.to(device, dtype)
        sites = {
            (layer, site): self._site(SITES[site], layer, modules)
            for layer in range(self._model.num_layers)
            for site in SITES
            if any((layer, module) in modules for module in SITES[site])
        }
        return Adapter(name, self._namespace(), sites)

    def _site(
        self,
        members: Sequence[str],
        layer: int,
        modules: Mapping[tuple[int, str], Mapping[str, torch.Tensor]],
    ) -> SiteWeights:
        """Put the modules of a fused linear together: A one below the other, B where it adds."""
        rows: list[torch.Tensor] = []
        parts: list[Part] = []
        start = first = 0
        for module in members:
            stop = start + self._shapes[module][0]
            pair = modules.get((layer, module))
            if pair is not None:
                rows.append(pair["A"])
                last = first + self.lora.rank
                parts.append(Part(start, stop, first, last, pair["B"]))
                first = last
            start = stop
        return SiteWeights(torch.cat(rows), tuple(parts))

    def _namespace(self) -> int:
        told = hashlib.blake2b(digest_size=8)
        for name in (_CONFIG, _WEIGHTS):
            with (self.directory / name).open("rb") as file:
                while block := file.read(1 << 20):
                    told.update(block)
        return -1 - int.from_bytes(told.digest(), "big") % 2**62
