"""What a backend remembers of one turn: its tokens so far, and what decides the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agentrt.engine.sampling import TurnSampling

if TYPE_CHECKING:
    from agentrt.engine.lora.adapter import Adapter

__all__ = ["Ids", "Turn"]

Ids: TypeAlias = NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Turn:
    """One turn. ``ids[:length]`` are the turn's tokens so far: the prompt, then the output."""

    ids: Ids
    length: int
    prompt: int
    sampling: TurnSampling
    forced: Ids | None
    adapter: Adapter | None = None
    plain: bool = False
    """Whether nothing but its own row of logits decides a token, and no token ends the turn."""
    greedy: bool = False
    """Whether it is plain and takes the best token, of which no probability is asked."""
    newest: int = 0
    """``ids[length - 1]``: reading it there takes longer than all else about it."""

    @property
    def on_device(self) -> bool:
        """Whether its next token can be chosen where the logits are, by parameters alone.

        Recorded steps know no adapters.
        """
        alone = self.sampling.memoryless and self.sampling.params.logprobs is None
        return alone and self.adapter is None

    def append(self, token: int) -> None:
        if self.length == len(self.ids):
            self.ids = np.concatenate((self.ids, np.empty_like(self.ids)))
        self.ids[self.length] = self.newest = token
        self.length += 1

    def revise(self, keep: int, added: Ids) -> None:
        end = keep + len(added)
        if end > len(self.ids):
            self.ids = np.concatenate((self.ids[:keep], np.empty(end, np.int64)))
        self.ids[keep:end] = added
        self.length = self.prompt = end
        self.newest = int(self.ids[end - 1])

    @property
    def must(self) -> int | None:
        """The token that comes next whatever the logits say."""
        if self.forced is not None:
            return int(self.forced[self.length - self.prompt])
        return None if self.sampling.choices is None else self.sampling.choices.only

    def look_ahead(self, draft: Sequence[int]) -> None:
        """Have the grammar compute what a draft needs, while the model computes the draft."""
        if self.sampling.grammar is not None:
            self.sampling.grammar.look_ahead(draft)

    def foresee(self, guess: Sequence[int]) -> Sequence[int]:
        """Return what comes next whatever the logits say, else as much of a guess as may come."""
        for limit in (self.sampling.choices, self.sampling.grammar):
            if limit is not None:
                return limit.foresee(guess)
        return guess

    @property
    def exhausted(self) -> bool:
        """Whether every forced token, one of the choices, or all that the grammar lets has come."""
        if self.forced is not None:
            return self.length - self.prompt >= len(self.forced)
        limits = (self.sampling.choices, self.sampling.grammar)
        return any(limit is not None and limit.done for limit in limits)
