"""Sampling inside a graph: the same draws as the host's, by parameters that lie on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from agentrt.engine.draws import Cuts, best_tokens, drawn_tokens
from agentrt.engine.gpu.metadata import DeviceRows
from agentrt.engine.gpu.token_pool import TokenPool

__all__ = ["draw", "take_best"]

GROUP = 32
"""Rows drawn at once: their logits stay in the device's cache from one operation to the next."""


def take_best(logits: Tensor, rows: DeviceRows, pool: TokenPool) -> None:
    """Write each row's most likely token, or the one that is forced, to the pool."""
    tokens, usable = best_tokens(logits)
    pool.write(rows.slot, _forced(tokens, rows.forced), usable)


def draw(logits: Tensor, rows: DeviceRows, pool: TokenPool, *, cut: bool) -> None:
    """Draw each row's token, or take the best where its temperature is 0, or the forced one.

    Args:
        logits: fp32 ``[rows, vocab]``; not changed.
        rows: the parameters.
        pool: where the tokens go.
        cut: whether any row has cuts.
    """
    count = logits.shape[0]
    for begin in range(0, count, GROUP):
        part = slice(begin, min(begin + GROUP, count))
        tokens, usable = best_tokens(logits[part])
        temperature = rows.temperature[part, None]
        cuts = None
        if cut:
            top_k = rows.top_k[part, None].long()
            cuts = Cuts(top_k, rows.share[part, None], rows.min_p[part, None])
        drawn = drawn_tokens(logits[part].clone(), rows.number[part], temperature, cuts)
        tokens = torch.where(temperature[:, 0] > 0, drawn, tokens)
        pool.write(rows.slot[part], _forced(tokens, rows.forced[part]), usable)


def _forced(tokens: Tensor, forced: Tensor) -> Tensor:
    """Take the forced token where there is one: they are kept as token + 1, as 0 is for none."""
    return torch.where(forced > 0, forced.long() - 1, tokens)
