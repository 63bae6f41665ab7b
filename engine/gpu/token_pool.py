"""The newest tokens, kept on the device: a step reads there what the one before it has drawn.

Each of the two steps that may be under way has a half of the pool, with a place for each row. What
was drawn comes to the host by a copy that nobody waits for until the step's result is asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agentrt.engine.gpu.events import Mark

__all__ = ["TokenPool"]

UNUSABLE = -1
"""What stands for the token of a row that got no usable logits."""


class TokenPool:
    """Tokens of two steps of at most ``most`` rows each, and one place that nobody reads."""

    def __init__(self, most: int, device: torch.device) -> None:
        self._most = most
        pinned = device.type == "cuda"
        self._tokens = torch.zeros(2 * most + 1, dtype=torch.int64, device=device)
        self._host = torch.zeros(2, most, dtype=torch.int64, pin_memory=pinned)
        self._copied = (Mark(device), Mark(device))

    @property
    def nowhere(self) -> int:
        """The place that padding writes to."""
        return 2 * self._most

    def place(self, half: int, row: int) -> int:
        """Return where a step in this half of the pool writes the token of a row."""
        return half * self._most + row

    def read(self, tokens: Tensor) -> Tensor:
        """Return int64 ``[rows]``: ``tokens``, those below 0 from place ``-1 - token``."""
        places = (-1 - tokens).clamp(min=0).long()
        # What was unusable is fed on as token 0: its turn is over, and its row is not read.
        return torch.where(tokens < 0, self._tokens[places].clamp(min=0), tokens)

    def write(self, places: Tensor, tokens: Tensor, usable: Tensor) -> None:
        """Put the tokens ``[rows]`` of a step at their places."""
        self._tokens.index_copy_(0, places.long(), torch.where(usable, tokens, UNUSABLE))

    def bring(self, half: int, rows: int) -> None:
        """Begin to copy what a step has written to the host, once it is over."""
        begin = half * self._most
        source = self._tokens[begin : begin + rows]
        self._host[half, :rows].copy_(source, non_blocking=True)
        self._copied[half].set()

    def wait(self, half: int, rows: int) -> list[int]:
        """Return the tokens of a step once they are here; :data:`UNUSABLE` for what is none."""
        self._copied[half].wait()
        tokens: list[int] = self._host[half, :rows].tolist()
        return tokens
