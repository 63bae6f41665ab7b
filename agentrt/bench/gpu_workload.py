"""The requests of the throughput rows: 256 of them, 100 to 1024 tokens in and out. Pure.

The lengths are those of a benchmark that several engines publish (nano-vllm's), and come from
Python's generator with seed 0: first all prompts, each its length and then its tokens, then all
output lengths. That gives 142,827 tokens in and 133,966 out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["Request", "requests"]

TOKENS = 10_000
"""Token ids are 0 to this, both included."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and how many tokens are to come out."""

    prompt: tuple[int, ...]
    output: int

    @property
    def input(self) -> int:
        """Return the prompt's tokens."""
        return len(self.prompt)


def requests(
    count: int = 256, least: int = 100, most: int = 1024, seed: int = 0, vocabulary: int = TOKENS
) -> list[Request]:
    """Return ``count`` requests of ``least`` to ``most`` tokens each way.

    ``vocabulary`` folds the token ids for smaller models; it changes no length.
    """
    draw = random.Random(seed).randint
    prompts = [[draw(0, TOKENS) for _ in range(draw(least, most))] for _ in range(count)]
    outputs = [draw(least, most) for _ in range(count)]
    return [
        Request(tuple(token % vocabulary for token in prompt), output)
        for prompt, output in zip(prompts, outputs, strict=True)
    ]
