"""Prove on a few tokens that a foreign model's output depends on its own sequence and nothing else.

Code that is not ours might count positions itself, or let one token of a batch see another's; with
real weights that shows at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from agentrt.engine.attention.base import BatchLayout, SliceLayout
from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.model.base import Model
from agentrt.errors import ModelError

__all__ = ["check_computation"]

_PAGE = 4
_LENGTHS = (7, 5)
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}
"""Largest difference of logits that rounding explains, as a part of their length."""


def check_computation(model: Model, directory: Path) -> None:
    """Compare sequences alone with the same in one batch, and whole ones with parts of them.

    Raises:
        ModelError: they differ by more than rounding, or are not finite.
    """
    sequences = _sequences(model.config.vocab_size)
    alone = [_run(model, [(sequence, 0, len(sequence))])[0] for sequence in sequences]
    together = _run(model, [(sequence, 0, len(sequence)) for sequence in sequences])
    first = sequences[0]
    parts = _run(model, [(first, 0, 4)], [(first, 4, 3)])
    for name, one, other in (
        ("in a batch", alone[0], together[0]),
        ("in a batch", alone[1], together[1]),
        ("in parts", alone[0], parts[0]),
    ):
        if not one.isfinite().all():
            raise _error(directory, "gives logits that are not finite")
        apart = float((one - other).norm() / one.norm().clamp_min(1e-6))
        if not apart <= _TOLERANCE[model.dtype]:
            raise _error(
                directory, f"gives other logits {name} than alone (they differ by {apart:.1%})"
            )


def _error(directory: Path, what: str) -> ModelError:
    return ModelError(
        f"{directory}: transformers' model of this architecture {what}.",
        remedy="Check that the weights belong to config.json; else this architecture cannot be "
        "served on pages, please report it.",
    )


def _sequences(vocab_size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, vocab_size, (length,), generator=generator) for length in _LENGTHS]


def _run(model: Model, *steps: Sequence[tuple[torch.Tensor, int, int]]) -> list[torch.Tensor]:
    """Run steps of ``(sequence, start, count)``; return each slice's last logits of the last."""
    attention = TorchPagedAttention(model.config, 4, _PAGE, model.dtype, model.device)
    logits = torch.empty(0)
    for step in steps:
        tokens = torch.cat([sequence[start : start + count] for sequence, start, count in step])
        positions = torch.cat([torch.arange(start, start + count) for _, start, count in step])
        layout = BatchLayout(
            tuple(SliceLayout(at, n, (2 * i, 2 * i + 1)) for i, (_, at, n) in enumerate(step))
        )
        rows = torch.tensor([count for _, _, count in step]).cumsum(0) - 1
        device = model.device
        logits = model.forward(
            tokens.to(device), positions.to(device), attention.plan(layout), rows.to(device)
        )
    return list(logits)
