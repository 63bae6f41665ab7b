"""What was generated, by the conversation that it ended. Pure.

A prompt that continues a conversation starts with the tokens that were really generated for it. A
client that names another program, or says that its program has ended and goes on all the same, asks
the same question and must get the same prompt: no hint changes a token. So the newest answer of
each context is kept by the digest of its conversation, whatever becomes of its program.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from agentrt.serving.canonical import Digest
from agentrt.serving.contexts import ProgramKey

__all__ = ["Answered", "Answers"]


class Answered(Protocol):
    """A conversation with its tokens; immutable."""

    @property
    def tokens(self) -> Sequence[int]: ...


T = TypeVar("T", bound=Answered)


class Answers(Generic[T]):
    """The least recently used go when they have more than ``limit`` tokens together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tokens = 0
        self._by_state: OrderedDict[Digest, tuple[T, tuple[ProgramKey, str]]] = OrderedDict()
        self._newest: dict[tuple[ProgramKey, str], Digest] = {}

    def __len__(self) -> int:
        """Return how many conversations are kept."""
        return len(self._by_state)

    def put(self, program: ProgramKey, context: str, state: Digest, answered: T) -> None:
        """Keep what a context ends with now, in place of what it ended with before."""
        for old in {self._newest.get((program, context), state), state}:
            if old in self._by_state:
                self._drop(old)
        self._by_state[state] = (answered, (program, context))
        self._newest[program, context] = state
        self._tokens += len(answered.tokens)
        while self._tokens > self._limit:
            self._drop(next(iter(self._by_state)))

    def find(self, chain: Sequence[Digest]) -> T | None:
        """Return the longest conversation that a chain of digests continues."""
        for state in reversed(chain[:-1]):
            found = self._by_state.get(state)
            if found is not None:
                self._by_state.move_to_end(state)
                return found[0]
        return None

    def forget(self, program: ProgramKey) -> None:
        """Drop all of a program."""
        for key in [key for key in self._newest if key[0] == program]:
            self._drop(self._newest[key])

    def _drop(self, state: Digest) -> None:
        answered, owner = self._by_state.pop(state)
        self._tokens -= len(answered.tokens)
        del self._newest[owner]
