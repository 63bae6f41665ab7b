"""What a live replay feeds the engine: token ids for a turn's prompt and its forced output.

Numeric turns get made-up ids with the recorded lengths and the recorded overlaps; literal turns
get their texts through the model's own chat template and tokenizer. Nothing here knows the engine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agentrt.bench.workload import Program, Turn

__all__ = ["InfiniteCache", "LiteralTexts", "NumericTokens", "Prompts", "ReplayTurn"]


@dataclass(frozen=True, slots=True)
class ReplayTurn:
    """A turn in token ids. ``forced`` is what the engine is to emit."""

    prompt: Sequence[int]
    forced: Sequence[int]


class Prompts(Protocol):
    """Makes the turns of one program, in order."""

    def turn(self, index: int) -> ReplayTurn:
        """Return turn ``index``; each is asked for once, after the one before it."""
        ...


class NumericTokens:
    """Made-up ids by ``seed``: a turn keeps as much of its context's tokens as was recorded.

    ``vocabulary`` are the ids to draw from. Blocks of the same name get the same ids in every
    program of the run.
    """

    def __init__(self, program: Program, vocabulary: Sequence[int], seed: int) -> None:
        self._program = program
        self._vocabulary = vocabulary
        self._seed = seed
        self._random = random.Random(f"{seed}/{program.program}")
        self._held: dict[str, list[int]] = {}

    def turn(self, index: int) -> ReplayTurn:
        """Return turn ``index``."""
        turn = self._program.turns[index]
        kept = self._held.get(turn.context, [])[: turn.reused_tokens]
        if turn.blocks:
            prompt = self._from_blocks(turn)
        else:
            prompt = kept + self._draw(self._random, turn.prompt_tokens - len(kept))
        forced = self._draw(self._random, turn.output_tokens)
        self._held[turn.context] = prompt + forced
        return ReplayTurn(prompt, forced)

    def _from_blocks(self, turn: Turn) -> list[int]:
        tokens: list[int] = []
        for name in turn.blocks:
            source = random.Random(f"{self._seed}/block/{name}")
            tokens += self._draw(source, turn.block_tokens)
        return tokens[: turn.prompt_tokens]

    def _draw(self, source: random.Random, count: int) -> list[int]:
        return source.choices(self._vocabulary, k=count) if count else []


class ContextPrompts(Protocol):
    """An append-stable prompt of one context: ``agentrt.engine.tokens.PromptBuilder``."""

    def build(self, messages: Sequence[Mapping[str, Any]]) -> list[int]: ...
    def note_output(self, tokens: Sequence[int], message: Mapping[str, Any]) -> None: ...


class LiteralTexts:
    """The recorded texts: each context is a conversation that grows by messages and an answer.

    ``new_context`` makes an append-stable prompt builder, ``encode`` makes tokens of an answer, and
    ``end`` is what the model would close its answer with.
    """

    def __init__(
        self,
        program: Program,
        new_context: Callable[[], ContextPrompts],
        encode: Callable[[str], list[int]],
        end: Sequence[int],
    ) -> None:
        self._program = program
        self._new_context = new_context
        self._encode = encode
        self._end = list(end)
        self._builders: dict[str, ContextPrompts] = {}
        self._messages: dict[str, list[Mapping[str, Any]]] = {}

    def turn(self, index: int) -> ReplayTurn:
        """Return turn ``index``."""
        turn = self._program.turns[index]
        if turn.context not in self._builders:
            self._builders[turn.context] = self._new_context()
        builder = self._builders[turn.context]
        messages = self._messages.setdefault(turn.context, [])
        messages += turn.messages
        prompt = builder.build(messages)
        answer = turn.output or ""
        forced = self._encode(answer) + self._end
        said = {"role": "assistant", "content": answer}
        builder.note_output(forced, said)
        messages.append(said)
        return ReplayTurn(prompt, forced)


class InfiniteCache:
    """A cache that never forgets a token, and has it as soon as it was submitted: the ideal.

    It is shared by all programs and knows single tokens, not pages.
    """

    def __init__(self) -> None:
        self._sequences: list[list[int]] = []

    def prefill(self, prompt: Sequence[int]) -> int:
        """Return how many of ``prompt``'s tokens it would compute: at least the last one."""
        wanted = list(prompt)
        found = max((common_prefix(known, wanted) for known in self._sequences), default=0)
        return max(1, len(wanted) - found)

    def add(self, tokens: Sequence[int]) -> None:
        """Remember a sequence; one that it extends is not kept besides it."""
        added = list(tokens)
        self._sequences = [
            known for known in self._sequences if common_prefix(known, added) < len(known)
        ]
        self._sequences.append(added)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many leading tokens two sequences share."""
    low, high = 0, min(len(one), len(other))
    if high == 0 or one[0] != other[0]:
        return 0
    # Whether they agree up to n is monotonic in n, and comparing slices costs no Python loop.
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
