"""How far off narrow weights and narrow KV are, on seeded models: measuring functions.

A model is given prompts in chunks and then tokens one by one, so that keys and values come from
pages. Its logits are compared with those of the same model in another precision, position by
position: their distance as a part of their length, the divergence of the distributions, and how
often the likeliest token is the same. Random weights are no trained ones: what they say of one
precision beside another is worth more than the numbers themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from agentrt.engine.attention.base import BatchLayout, SliceLayout
from agentrt.engine.kernels import choose_kernels, make_attention, prepare
from agentrt.engine.model.load import open_source
from agentrt.errors import ConfigError

__all__ = ["CASES", "Case", "Distance", "distance", "logits_of", "measure_rounding"]

PAGE = 16


@dataclass(frozen=True, slots=True)
class Case:
    """A precision: dtype of the computation, quantisation of the weights, dtype of KV."""

    dtype: str
    quant: str | None = None
    kv_dtype: str = "auto"

    @property
    def name(self) -> str:
        """What a table calls it."""
        weights = self.quant or self.dtype
        kv = self.dtype if self.kv_dtype == "auto" else self.kv_dtype
        return f"{self.dtype}, {weights} weights, {kv} KV"


CASES = (
    Case("float32"),
    Case("float32", "fp8"),
    Case("float32", None, "int8"),
    Case("float32", None, "fp8"),
    Case("bfloat16"),
    Case("bfloat16", "int8"),
    Case("bfloat16", "fp8"),
    Case("bfloat16", None, "int8"),
    Case("bfloat16", None, "fp8"),
    Case("bfloat16", "fp8", "fp8"),
)


@dataclass(frozen=True, slots=True)
class Distance:
    """Of logits from others. ``divergence`` is Kullback-Leibler's, in nats, per position."""

    relative: float
    divergence: float
    same_first: float


def distance(logits: torch.Tensor, from_: torch.Tensor) -> Distance:
    """Compare ``logits [positions, vocab]`` with ``from_``, both in fp32."""
    right = from_.log_softmax(-1)
    divergence = (right.exp() * (right - logits.log_softmax(-1))).sum(-1).mean()
    same = (logits.argmax(-1) == from_.argmax(-1)).float().mean()
    relative = (logits - from_).norm() / from_.norm()
    return Distance(float(relative), float(divergence), float(same))


@torch.inference_mode()
def logits_of(
    directory: Path, case: Case, *, sequences: int, prompt: int, steps: int, seed: int = 0
) -> torch.Tensor:
    """Return the logits ``[sequences * steps, vocab]`` of tokens that follow seeded prompts."""
    source = open_source(directory, dtype=getattr(torch, case.dtype))
    kernels = choose_kernels("auto", "cpu")
    model = source.load("cpu", quant=case.quant)
    prepare(model, kernels, case.quant)
    length = prompt + steps
    pages = -(-length // PAGE)
    attention = make_attention(
        kernels, model.config, sequences * pages, PAGE, model.dtype, "cpu", case.kv_dtype
    )
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, model.config.vocab_size, (sequences, length), generator=random)
    tables = [list(range(at * pages, (at + 1) * pages)) for at in range(sequences)]

    def run(start: int, count: int, rows: Sequence[int]) -> torch.Tensor:
        layout = BatchLayout(tuple(SliceLayout(start, count, table) for table in tables))
        positions = torch.arange(start, start + count).repeat(sequences)
        part = tokens[:, start : start + count].flatten()
        return model.forward(part, positions, attention.plan(layout), torch.tensor(rows))

    for start in range(0, prompt, 2 * PAGE):
        run(start, min(2 * PAGE, prompt - start), [0])
    found = [run(prompt + step, 1, range(sequences)) for step in range(steps)]
    return torch.cat(found)


def measure_rounding(
    models: Mapping[str, Path], cases: Sequence[Case] = CASES, **sizes: int
) -> list[dict[str, Any]]:
    """Return a row for each model and case: distances from fp32 and from bf16.

    ``cases`` begin with plain fp32. A case that cannot be computed here has a row that says why.
    """
    rows: list[dict[str, Any]] = []
    for name, directory in models.items():
        exact = logits_of(directory, cases[0], **sizes)
        half = logits_of(directory, Case("bfloat16"), **sizes)
        for case in cases:
            row: dict[str, Any] = {"model": name, "case": case.name, **asdict(case)}
            try:
                found = logits_of(directory, case, **sizes)
            except ConfigError as error:
                rows.append(row | {"failed": str(error)})
                continue
            from_fp32, from_bf16 = distance(found, exact), distance(found, half)
            rows.append(row | {"from_fp32": asdict(from_fp32), "from_bf16": asdict(from_bf16)})
    return rows
