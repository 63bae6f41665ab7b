"""Seeded weights: the same architecture, size and seed give the same bytes on every machine.

Values come from the raw stream of a Philox generator, whose bits are specified, and not from a
library's normal distribution, whose results may change between versions and processors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file

from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.weights import tensor_shapes

__all__ = ["seeded_tensor", "write_weights"]

_BLOCK = 1 << 22
"""Weights drawn at once: bounds the temporary memory to some tens of megabytes."""

_SHARD_BYTES = 512 * 2**20
_LOGIT_SPREAD = 3.0
_SCORE_SPREAD = 2.0
_QUIET = 1e-3


def seeded_tensor(name: str, shape: tuple[int, ...], spread: float, seed: int) -> torch.Tensor:
    """Return fp32 values, uniform with mean 0 and standard deviation ``spread``.

    The stream depends on ``name`` and ``seed`` alone, so tensors do not depend on each other.
    """
    digest = blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    stream = numpy.random.Philox(key=numpy.frombuffer(digest, dtype=numpy.uint64))
    total = math.prod(shape)
    out = torch.empty(total, dtype=torch.float32)
    scale = spread * math.sqrt(3.0) / 32768.0
    for low in range(0, total, _BLOCK):
        count = min(_BLOCK, total - low)
        raw = stream.random_raw(-(-count // 4)).astype("<u8").view("<u2")[:count]
        values = raw.astype(numpy.float32)
        out[low : low + count] = (torch.from_numpy(values) - 32767.5) * scale
    return out.view(shape)


def write_weights(
    directory: Path,
    config: ModelConfig,
    seed: int,
    *,
    words: range,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """Write the weights of ``config`` to ``directory``: one file, or shards with an index.

    Only tokens in ``words`` get embeddings of normal size: special tokens and rows beyond the
    tokenizer would otherwise be produced, and decode to nothing.

    Args:
        directory: exists; files in it are overwritten.
        config: the shape; ``config.dtype`` is the dtype of the files.
        seed: any integer.
        words: the token ids of plain text.
        on_bytes: told the size of each tensor once it is made.
    """
    shards = _shards(config)
    names = [_shard_name(number, len(shards)) for number in range(len(shards))]
    for file, tensors in zip(names, shards, strict=True):
        made = {}
        for name, shape in tensors.items():
            made[name] = _weight(config, name, shape, seed, words)
            if on_bytes is not None:
                on_bytes(made[name].nbytes)
        save_file(made, str(directory / file), metadata={"format": "pt"})
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(map(_elements, shards)) * _width(config)},
            "weight_map": {n: file for file, part in zip(names, shards, strict=True) for n in part},
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _width(config: ModelConfig) -> int:
    return int(getattr(torch, config.dtype).itemsize)


def _elements(part: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many elements a shard holds."""
    return sum(math.prod(shape) for shape in part.values())


def _shards(config: ModelConfig) -> list[dict[str, tuple[int, ...]]]:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in tensor_shapes(config).items():
        nbytes = math.prod(shape) * _width(config)
        if shards[-1] and size + nbytes > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += nbytes
    return shards


def _shard_name(number: int, count: int) -> str:
    if count == 1:
        return "model.safetensors"
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _weight(
    config: ModelConfig, name: str, shape: tuple[int, ...], seed: int, words: range
) -> torch.Tensor:
    """Return one tensor in the dtype of ``config``."""
    dtype = getattr(torch, config.dtype)
    if name.endswith("norm.weight"):
        level = math.sqrt(_SCORE_SPREAD) if name.endswith(("q_norm.weight", "k_norm.weight")) else 1
        return (seeded_tensor(name, shape, 0.1, seed) + level).to(dtype)
    if name.endswith(".bias"):
        return seeded_tensor(name, shape, 0.1, seed).to(dtype)
    values = seeded_tensor(name, shape, _spread(config, name, shape), seed)
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        values[: words.start] *= _QUIET
        values[words.stop :] *= _QUIET
    return values.to(dtype)


def _spread(config: ModelConfig, name: str, shape: tuple[int, ...]) -> float:
    """Choose scales under which greedy output wanders instead of repeating one token.

    Activations entering a linear have unit size, so ``1 / sqrt(inputs)`` keeps them there. The
    branches then outweigh the embedding in the residual stream: with tied weights a large embedding
    would make every token predict itself.
    """
    unit = 1.0 / math.sqrt(shape[-1])
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        return _LOGIT_SPREAD * unit
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        return unit if config.qk_norm else unit * math.sqrt(_SCORE_SPREAD)
    if name.endswith("o_proj.weight"):
        return 4.0 * unit  # attention averages values, which shrinks them
    if name.endswith("down_proj.weight"):
        return 6.0 * unit  # silu(gate) * up is about a third of unit size
    return unit
