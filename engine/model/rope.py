"""Rotary position embedding: frequencies with their scaling variants, and the rotation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agentrt.errors import ModelError, ModelUnsupported

__all__ = ["Rope", "RopeConfig", "rotate"]

_KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Frequencies of the rotation. ``options`` holds the scaling variant's own numbers."""

    head_dim: int
    theta: float
    kind: str
    options: Mapping[str, float]

    @classmethod
    def from_mapping(
        cls, raw: Mapping[str, Any], head_dim: int, max_positions: int, file: Path
    ) -> RopeConfig:
        """Read ``rope_parameters``, or ``rope_theta`` and ``rope_scaling`` of older files.

        Raises:
            ModelError: an unsupported or incomplete variant; ``file`` is named.
        """
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        if not isinstance(rope, Mapping):
            raise ModelError(
                f"{file}: the rope settings are not an object.", remedy="Correct them."
            )
        kind = rope.get("rope_type") or rope.get("type") or "default"
        partial = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor")) or 1.0
        if kind not in _KINDS or partial != 1.0:
            raise ModelUnsupported(
                f"{file}: rope type {kind!r} with partial factor {partial} is not supported.",
                remedy=f"Use a model whose rope type is one of {', '.join(_KINDS)}.",
            )
        theta = rope.get("rope_theta") or raw.get("rope_theta") or 10000.0
        try:
            options = _options(kind, rope, raw, max_positions)
            return cls(head_dim, float(theta), kind, options)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{file}: rope settings of type {kind!r} lack or garble {error}.",
                remedy="Restore the rope settings of the original config.json.",
            ) from error

    def frequencies(self) -> tuple[torch.Tensor, float]:
        """Return ``inv_freq [head_dim / 2]`` in fp32 and the factor on cosine and sine."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        plain = 1.0 / (self.theta**exponents)
        if self.kind == "linear":
            return plain / self.options["factor"], 1.0
        if self.kind == "llama3":
            return _llama3(plain, self.options), 1.0
        if self.kind == "yarn":
            return _yarn(plain, self.theta, self.head_dim, self.options)
        return plain, 1.0


def _options(
    kind: str, rope: Mapping[str, Any], raw: Mapping[str, Any], max_positions: int
) -> dict[str, float]:
    """Pick the numbers a variant needs; a missing one is a KeyError."""
    if kind == "default":
        return {}
    if kind == "linear":
        return {"factor": float(rope["factor"])}
    original = raw.get("original_max_position_embeddings") or rope.get(
        "original_max_position_embeddings", max_positions
    )
    options = {"factor": float(rope["factor"]), "original": float(original)}
    if kind == "llama3":
        return options | {
            "low": float(rope["low_freq_factor"]),
            "high": float(rope["high_freq_factor"]),
        }
    options["fast"] = float(rope.get("beta_fast") or 32)
    options["slow"] = float(rope.get("beta_slow") or 1)
    options["truncate"] = float(rope.get("truncate", True))
    options["scale"] = _yarn_scale(rope, options["factor"])
    return options


def _yarn_scale(rope: Mapping[str, Any], factor: float) -> float:
    """Return yarn's factor on cosine and sine: as given, else inferred from the stretch."""
    given = rope.get("attention_factor")
    if given is not None:
        return float(given)

    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    over, under = rope.get("mscale"), rope.get("mscale_all_dim")
    if over and under:
        return magnitude(float(over)) / magnitude(float(under))
    return magnitude(1.0)


def _llama3(plain: torch.Tensor, options: Mapping[str, float]) -> torch.Tensor:
    """Stretch the long wavelengths, keep the short ones, blend in between."""
    low, high, factor = options["low"], options["high"], options["factor"]
    turns = options["original"] * plain / (2 * math.pi)  # rotations over the original context
    blend = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * plain / factor + blend * plain


def _yarn(
    plain: torch.Tensor, theta: float, dim: int, options: Mapping[str, float]
) -> tuple[torch.Tensor, float]:
    """Interpolate dimensions that turn slowly, keep those that turn fast, ramp in between."""

    def dimension(rotations: float) -> float:
        ratio = options["original"] / (rotations * 2 * math.pi)
        return dim * math.log(ratio) / (2 * math.log(theta))

    low, high = dimension(options["fast"]), dimension(options["slow"])
    if options["truncate"]:
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0.0), min(high, float(dim - 1))
    if low == high:
        high += 0.001  # a ramp of no width would divide by zero
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    return plain / options["factor"] * ramp + plain * (1 - ramp), options["scale"]


class Rope:
    """Cosines and sines of a batch's positions."""

    def __init__(self, config: RopeConfig, device: torch.device | str = "cpu") -> None:
        frequencies, self._scale = config.frequencies()
        self._frequencies = frequencies.to(device)

    def at(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosine and sine ``[T, 1, head_dim / 2]`` for integer ``positions [T]``."""
        angles = positions.to(torch.float32).unsqueeze(-1) * self._frequencies
        cos, sin = angles.cos() * self._scale, angles.sin() * self._scale
        return cos.to(dtype).unsqueeze(1), sin.to(dtype).unsqueeze(1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate ``x [T, heads, head_dim]``: dimension ``i`` is paired with ``i + head_dim / 2``."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
