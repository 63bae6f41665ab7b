"""Core: what ``adapter_config.json`` says, and what its tensors must look like. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrt.errors import ModelError

__all__ = ["LoraConfig", "TensorName", "parse_name", "wanted_shape"]

_HARMLESS_INIT = (True, False, None, "gaussian", "eva", "orthogonal")
"""How A and B were first set. Others (pissa, olora, loftq, corda) change the base weights, too."""
_UNSUPPORTED = {
    "use_dora": "DoRA scales whole weight rows",
    "modules_to_save": "it replaces whole modules of the base model",
    "rank_pattern": "it has ranks by module",
    "alpha_pattern": "it has scales by module",
    "fan_in_fan_out": "its weights are transposed",
    "layer_replication": "it repeats layers of the base model",
    "lora_bias": "it adds biases to B",
    "target_parameters": "it targets parameters, not modules",
    "trainable_token_indices": "it replaces token embeddings",
    "alora_invocation_tokens": "it begins in the middle of a prompt",
}
_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(\d+)\.((?:self_attn|mlp)\.\w+)\.lora_([AB])\.weight"
)


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The numbers of an adapter: ``y += (x A^T) B^T * scale``, ``A [rank, in]``, ``B [out, rank]``.

    The scale is ``lora_alpha / r`` (arXiv 2106.09685), or with ``use_rslora`` ``lora_alpha /
    sqrt(r)`` (arXiv 2312.03732).
    """

    rank: int
    scale: float

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any], file: Path) -> LoraConfig:
        """Read the parsed ``adapter_config.json``; ``file`` is named in errors.

        Raises:
            ModelError: it is no LoRA adapter, or asks for something that is not computed here.
        """

        def refuse(what: str, remedy: str) -> ModelError:
            return ModelError(f"{file}: {what}.", remedy=remedy)

        kind = raw.get("peft_type")
        if kind != "LORA":
            raise refuse(f"peft_type is {kind!r}", "Use an adapter of type LORA.")
        for key, why in _UNSUPPORTED.items():
            if raw.get(key):
                raise refuse(
                    f"{key} is set: {why}", f"Train the adapter without {key}, or merge it."
                )
        if raw.get("bias", "none") != "none":
            raise refuse("bias is trained, too", "Train the adapter with bias='none', or merge it.")
        init = raw.get("init_lora_weights", True)
        if init not in _HARMLESS_INIT:
            raise refuse(
                f"init_lora_weights is {init!r}, which changes the base weights",
                "Save it converted to a plain LoRA adapter (path_initial_model_for_weight_"
                "conversion in PEFT).",
            )
        rank, alpha = raw.get("r"), raw.get("lora_alpha")
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise refuse(f"r is {rank!r}", "Correct r: a whole number of at least 1.")
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise refuse(f"lora_alpha is {alpha!r}", "Correct lora_alpha: a number.")
        divisor = math.sqrt(rank) if raw.get("use_rslora") else rank
        return cls(rank, alpha / divisor)


@dataclass(frozen=True, slots=True)
class TensorName:
    """What a tensor of an adapter belongs to: a module as ``self_attn.q_proj``, its A or B."""

    layer: int
    module: str
    side: str


def parse_name(name: str) -> TensorName | None:
    """Read a tensor's name in PEFT's layout; None for anything else than a linear's A or B."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return TensorName(int(found[1]), found[2], found[3])


def wanted_shape(name: TensorName, rank: int, outputs: int, inputs: int) -> tuple[int, int]:
    """Return the shape of a tensor of a module with ``outputs`` and ``inputs``."""
    return (rank, inputs) if name.side == "A" else (outputs, rank)


def unpaired(names: Iterable[TensorName]) -> Iterator[str]:
    """Yield the modules that have an A without a B, or a B without an A, as ``layers.N.module``."""
    sides: dict[tuple[int, str], set[str]] = {}
    for name in names:
        sides.setdefault((name.layer, name.module), set()).add(name.side)
    for (layer, module), found in sides.items():
        if len(found) < 2:
            yield f"layers.{layer}.{module}"
