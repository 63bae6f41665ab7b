"""What a turn's tokens mean to its reader: text, and whether they end the turn.

Tokens and text part ways at the end of a turn. Every token that was computed is handed out and
counted, the one that ended the turn included: the program's next prompt continues from exactly
these tokens. Text leaves out what ended the turn: the end token's text, and a stop string with all
that follows it in the same token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agentrt.engine.backend import EngineSample, TokenLogprob
from agentrt.engine.params import SamplingParams
from agentrt.errors import InvalidRequest
from agentrt.scheduling.plan import Sample

__all__ = ["OutputPiece", "StopMatcher", "StreamTokenizer", "TextStream", "TurnOutput"]


class TextStream(Protocol):
    """Turns tokens into text, a few at a time."""

    def push(self, ids: Sequence[int]) -> str:
        """Return the text that is certain after ``ids``; never a part of a character."""
        ...

    def flush(self) -> str:
        """Return what was held back, as no more tokens follow."""
        ...


class StreamTokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Return the tokens that end a turn."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the tokens of ``text``."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        ...

    def stream(self) -> TextStream:
        """Return a fresh detokeniser."""
        ...


class StopMatcher:
    """Finds the first of several texts in a stream, holding back what may be its beginning.

    The first is the one that is complete first, so the outcome does not depend on how the text is
    cut into pushes.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Return the text that is now certain to come before any stop text."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        held = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            _, at, self.matched = min(found)
            self._held = ""
            return held[:at]
        keep = max(_overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """Return what is held back, as no more text follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that is a proper beginning of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[len(text) - length :]):
            return length
    return 0


@dataclass(frozen=True, slots=True)
class OutputPiece:
    """What one step added to a turn's output. ``stopped`` says that the turn ends with it."""

    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...]
    stopped: bool


class TurnOutput:
    """One turn's output as it grows.

    ``eos_ids`` end the turn unless ``sampling.ignore_eos``; ``sampling.stop_token_ids`` and
    ``sampling.stop`` always do. Forced output is ended by nothing but its own end. Of choices, the
    one that came out is the text; ``eos_ids`` are how it ends where another begins with it.

    Raises:
        InvalidRequest: stop texts without a tokenizer to make text with.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        *,
        tokenizer: StreamTokenizer | None = None,
        eos_ids: frozenset[int] = frozenset(),
        forced: bool = False,
    ) -> None:
        if sampling.stop and tokenizer is None:
            raise InvalidRequest(
                "stop holds texts, but the engine runs without a tokenizer.",
                remedy="Use stop_token_ids, or give the engine a tokenizer.",
            )
        self._text = tokenizer.stream() if tokenizer is not None else None
        self._eos_ids = eos_ids
        self._ends = frozenset(sampling.stop_token_ids) | (
            frozenset() if sampling.ignore_eos and not sampling.limited else eos_ids
        )
        self._stops = StopMatcher(sampling.stop)
        self._forced = forced
        if forced:
            self._ends, self._stops = frozenset(), StopMatcher(())

    def push(self, sample: Sample) -> OutputPiece:
        """Take a step's sample; tokens after the one that ends the turn are dropped."""
        text = ""
        count = 0
        stopped = False
        for token in sample.tokens:
            count += 1
            if token in self._ends:
                stopped = True
                break
            text += self._push_token(token)
            if self._stops.matched is not None:
                stopped = True
                break
        logprobs = sample.logprobs[:count] if isinstance(sample, EngineSample) else ()
        return OutputPiece(
            tuple(sample.tokens[:count]), text, logprobs, stopped or sample.finish == "stop"
        )

    def finish(self) -> str:
        """Return the text that was held back, as the turn has ended."""
        if self._text is None or self._stops.matched is not None:
            return ""
        text = self._stops.push(self._text.flush())
        return text + self._stops.flush()

    def _push_token(self, token: int) -> str:
        # A recorded end of turn is for the next prompt to continue from, not for the reader.
        if self._text is None or (self._forced and token in self._eos_ids):
            return ""
        return self._stops.push(self._text.push((token,)))
