"""Masks of grammars, computed in a thread of their own while the model computes.

Which tokens may come next depends on the one before. So a turn's next mask is begun as soon as its
newest token is known, and is there when the logits are; with a draft, the masks behind its tokens
are computed along, as the guesses are known before the step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from agentrt.engine.matcher import CompiledGrammar, GrammarCursor

__all__ = ["GrammarTurn", "MaskTimes", "MaskWorker"]

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class MaskTimes:
    """Seconds that masks took to compute, and seconds that a step waited for them."""

    masks: int = 0
    computing: float = 0.0
    waiting: float = 0.0


@dataclass(frozen=True, slots=True)
class _Ahead:
    """Masks of the next tokens; ``forced`` must come next; ``error`` says why nothing can.

    ``empty`` has, for each mask, whether it blocks every token.
    """

    blocked: tuple[torch.Tensor, ...]
    empty: tuple[bool, ...]
    forced: tuple[int, ...]
    error: str | None


class MaskWorker:
    """One thread, begun with the first grammar; it ends when nobody holds the worker any more.

    Args:
        vocab_size: entries of a row of logits; tokens beyond the tokenizer's never come out.
        device: where the logits are.
        clock: seconds, for the figures.
    """

    def __init__(
        self,
        vocab_size: int,
        device: torch.device | str = "cpu",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.times = MaskTimes()
        self.clock = clock
        self._vocab_size = vocab_size
        self._device = device
        # Its thread ends by itself once the executor is collected.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="agentrt-masks")

    def begin(
        self, cursor: GrammarCursor, draft: Sequence[int] = (), first: torch.Tensor | None = None
    ) -> Future[_Ahead]:
        """Compute masks for the next token and, behind it, for each of ``draft`` that is legal.

        ``first`` is the mask of the next token where it is known. Nobody else may touch ``cursor``
        until the result is there.
        """
        return self._executor.submit(self._compute, cursor, tuple(draft), first)

    def _compute(
        self, cursor: GrammarCursor, draft: Sequence[int], first: torch.Tensor | None
    ) -> _Ahead:
        try:
            return self._look(cursor, draft, first)
        except Exception as error:  # whatever the library raises is this one turn's end
            _logger.exception("A grammar's masks could not be computed")
            nothing = torch.ones(self._vocab_size, dtype=torch.bool, device=self._device)
            return _Ahead((nothing,), (True,), (), f"its masks could not be computed: {error!r}")

    def _look(
        self, cursor: GrammarCursor, draft: Sequence[int], first: torch.Tensor | None
    ) -> _Ahead:
        started = self.clock()
        place = cursor.length
        forced = () if draft else tuple(cursor.forced())
        blocked = [self._blocked(cursor) if first is None else first]
        for token in draft[: cursor.legal(draft)] if draft else ():
            if not cursor.push(token) or cursor.done:
                break
            blocked.append(self._blocked(cursor))
        ahead = _Ahead(
            tuple(blocked), tuple(bool(each.all()) for each in blocked), forced, cursor.error
        )
        cursor.rewind(place)
        self.times.masks += len(blocked) - (first is not None)
        self.times.computing += self.clock() - started
        return ahead

    def _blocked(self, cursor: GrammarCursor) -> torch.Tensor:
        """Return which tokens must not come next: bool ``[vocab]``."""
        bits = np.unpackbits(np.frombuffer(cursor.mask(), np.uint8), bitorder="little")
        blocked = np.ones(self._vocab_size, np.bool_)
        known = min(len(bits), self._vocab_size)
        blocked[:known] = bits[:known] == 0
        return torch.from_numpy(blocked).to(self._device)


class GrammarTurn:
    """A turn's grammar: its cursor, and the masks that are under way or there.

    ``done`` says that the output is complete.
    """

    def __init__(self, grammar: CompiledGrammar, worker: MaskWorker) -> None:
        self.done = False
        self._cursor = grammar.start()
        self._worker = worker
        self._at = 0  # tokens pushed since the masks were begun
        self._misfit: str | None = None
        self._ahead = worker.begin(self._cursor)

    @property
    def error(self) -> str | None:
        """Why no token can be drawn, None if one can."""
        error = self._misfit or self._wait().error
        if error is None and self._wait().empty[self._at]:
            return "no token of the model may come next"
        return error

    @property
    def blocked(self) -> torch.Tensor:
        """Which tokens must not come next: bool ``[vocab]``."""
        return self._wait().blocked[self._at]

    def look_ahead(self, draft: Sequence[int] = ()) -> None:
        """Begin the masks of the next step: at once after the last, again where it has a draft."""
        if self.done or self._misfit is not None or not (self._at or draft):
            return
        first = None if self._at else self._wait().blocked[0]
        self._at = 0
        self._ahead = self._worker.begin(self._cursor, draft, first)

    def push(self, token: int) -> None:
        """Take the next token of the output."""
        self._wait()
        if not self._cursor.push(token):
            self._misfit = self._cursor.error or f"token {token} does not fit"
        self.done = self._cursor.done
        self._at += 1

    def foresee(self, guess: Sequence[int]) -> Sequence[int]:
        """Return what must come next where there is no choice, else the legal part of a guess."""
        ahead = self._wait()
        if ahead.forced or self.done or ahead.error is not None or self._misfit is not None:
            return ahead.forced
        return guess[: self._cursor.legal(guess)] if guess else guess

    def _wait(self) -> _Ahead:
        if self._ahead.done():
            return self._ahead.result()
        started = self._worker.clock()
        ahead = self._ahead.result()
        self._worker.times.waiting += self._worker.clock() - started
        return ahead
