"""Drafting: guesses at what turns will say next, from what they have read and said.

An implementation of :class:`~agentrt.scheduling.drafting.Drafter`. Pure: no torch, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from agentrt.engine.draft_odds import Acceptance, FixedPrice, MeasuredPrice, Rate
from agentrt.engine.ngram import NgramIndex
from agentrt.errors import ConfigError
from agentrt.scheduling.drafting import DraftAsk, Drafter
from agentrt.scheduling.plan import StepPlan, StepResult
from agentrt.scheduling.tokens import TokenList

__all__ = ["DRAFT_MODES", "DraftMode", "Foresee", "NgramDrafter", "make_drafter"]

DraftMode: TypeAlias = Literal["off", "ngram", "auto"]
DRAFT_MODES: tuple[DraftMode, ...] = ("off", "ngram", "auto")

LONGEST = 16
"""Guesses for one turn in one step."""

Foresee: TypeAlias = Callable[[str, Sequence[int]], Sequence[int]]
"""``(turn id, guess)``: what must come next where it is known, else as much of the guess as may."""


class _Price(Protocol):
    def price(self, decodes: int) -> float: ...
    def observe(self, decodes: int, drafted: int, seconds: float) -> None: ...


@dataclass(slots=True)
class _Turn:
    """What is known of a turn. ``length``: of the match behind its open draft, 0 if it has none."""

    index: NgramIndex = field(default_factory=NgramIndex)
    rate: Rate = field(default_factory=lambda: Rate(0.0, 0.0))
    length: int = 0


class NgramDrafter(Drafter):
    """Guesses that what followed the newest tokens before follows them again.

    Args:
        price: what a guess must be worth.
        foresee: knows what a turn's grammar, choices or recording say of its next tokens.
    """

    def __init__(self, price: _Price, foresee: Foresee | None = None) -> None:
        self._price = price
        self._foresee = foresee
        self._acceptance = Acceptance()
        self._turns: dict[str, _Turn] = {}

    @property
    def turns(self) -> int:
        """How many turns are remembered."""
        return len(self._turns)

    def propose(
        self, asks: Sequence[DraftAsk], decodes: int, budget: int
    ) -> Mapping[str, list[int]]:
        """Return guesses by turn id; see ``Drafter.propose``."""
        price = self._price.price(decodes)
        drafts: dict[str, list[int]] = {}
        for ask in asks:
            most = min(ask.limit, LONGEST, budget)
            if most > 0 and isinstance(ask.tokens, TokenList):
                draft = self._draft(ask.turn_id, ask.tokens.ids, price, most)
                if draft:
                    drafts[ask.turn_id] = draft
                    budget -= len(draft)
        return drafts

    def _draft(self, turn_id: str, ids: Sequence[int], price: float, most: int) -> list[int]:
        turn = self._turns.setdefault(turn_id, _Turn())
        turn.length = 0
        guess: list[int] = []
        match = turn.index.find(ids) if price <= 1 else None
        if match is not None:
            count = self._acceptance.count(match.length, turn.rate, price, most)
            guess = list(ids[match.next : match.next + count])
        legal = guess
        if self._foresee is not None and price <= 1:
            legal = list(self._foresee(turn_id, guess))[:most]
        # What a grammar says teaches nothing of how well matches guess.
        if match is not None and legal == guess:
            turn.length = match.length
        return legal

    def observe(self, plan: StepPlan, result: StepResult, seconds: float) -> None:
        """Learn what guesses are worth, and what they cost where a step has nothing but decodes."""
        decodes = drafted = 0
        for piece in plan.slices:
            decodes += piece.sample and piece.count == 1 + len(piece.draft)
            if piece.draft:
                drafted += len(piece.draft)
                sample = result.samples.get(piece.turn_id)
                self._learn(piece.turn_id, len(piece.draft), len(sample.tokens) if sample else 0)
        if decodes == len(plan.slices):
            self._price.observe(decodes, drafted, seconds)

    def _learn(self, turn_id: str, drafted: int, tokens: int) -> None:
        turn = self._turns.get(turn_id)
        if turn is not None and turn.length and tokens:
            self._acceptance.note(turn.length, turn.rate, drafted, tokens - 1)

    def closed(self, turn_id: str) -> None:
        """Forget a turn; unknown ids are ignored."""
        self._turns.pop(turn_id, None)


def make_drafter(mode: str, foresee: Foresee | None = None) -> NgramDrafter | None:
    """Return the drafter of a mode: ``off``, ``ngram`` (always), ``auto`` (where it is faster).

    Raises:
        ConfigError: there is no such mode.
    """
    if mode not in DRAFT_MODES:
        raise ConfigError(
            f"There is no draft mode {mode!r}.", remedy=f"Use one of {', '.join(DRAFT_MODES)}."
        )
    if mode == "off":
        return None
    return NgramDrafter(FixedPrice() if mode == "ngram" else MeasuredPrice(), foresee)
