"""How many tokens to guess: what a guess is worth against what it costs. Pure.

A decode step of ``n`` turns takes ``T`` seconds and yields ``n`` tokens; a guess that comes true
with probability ``p`` yields ``p`` more and takes ``m`` seconds more. It pays while ``p / m`` is
more than ``n / T``: while ``p`` is above the *price* ``m * n / T``, all of which is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentrt.engine.ngram import LONGEST_MATCH

__all__ = ["Acceptance", "FixedPrice", "MeasuredPrice", "Rate"]

_DECAY = 0.995
"""What an earlier guess counts against the next one: some 200 matter."""
_TURN_DECAY = 0.9
_TURN_WEIGHT = 4.0
"""As many guesses of a turn weigh as much as what all turns say."""
_MOST = 0.97
_FLOOR = 0.1
_STEP_DECAY = 0.9
_NEEDED = 4
"""Steps without guesses after which their time is known."""
_TRIES = 8
"""Guessed tokens after which their cost is known."""
_PROBE = 128
"""Steps after which a price that forbids all guesses is measured anew."""


@dataclass(slots=True)
class Rate:
    """A share of successes in which older outcomes count less; ``hits`` of ``total`` to begin."""

    hits: float
    total: float

    def add(self, hits: float, total: float, decay: float) -> None:
        """Note outcomes."""
        self.hits = self.hits * decay + hits
        self.total = self.total * decay + total

    @property
    def value(self) -> float:
        """The share, at most 1."""
        return min(self.hits / self.total, 1.0) if self.total else 0.0


class Acceptance:
    """How often guesses came true, by the length of the match that they were taken from."""

    def __init__(self) -> None:
        lengths = range(LONGEST_MATCH + 1)
        self._first = [Rate(2.0, 4.0) for _ in lengths]
        self._more = [Rate(3.0, 4.0) for _ in lengths]

    def count(self, length: int, turn: Rate, price: float, most: int) -> int:
        """Return how many guesses pay, at most ``most``.

        Args:
            length: of the match, in tokens.
            turn: how often a first guess came true in this turn.
            price: what a guess must be worth, in tokens.
        """
        hits = turn.hits + _TURN_WEIGHT * self._first[length].value
        worth = hits / (turn.total + _TURN_WEIGHT)
        count = 0
        while count < most and worth >= price:
            count += 1
            worth *= min(self._more[length].value, _MOST)
        return count

    def note(self, length: int, turn: Rate, drafted: int, accepted: int) -> None:
        """Learn from a draft of at least one token, ``accepted`` of which came true."""
        hit = float(accepted > 0)
        self._first[length].add(hit, 1.0, _DECAY)
        turn.add(hit, 1.0, _TURN_DECAY)
        if accepted:
            tried = min(accepted + 1, drafted) - 1
            self._more[length].add(accepted - 1, tried, _DECAY)


class FixedPrice:
    """The price of a guess where nobody measures: as on a machine that has time for five."""

    def __init__(self, price: float = 0.2) -> None:
        self._price = price

    def price(self, decodes: int) -> float:
        """Return what a guess must be worth, in tokens, in a step of ``decodes`` turns."""
        return self._price

    def observe(self, decodes: int, drafted: int, seconds: float) -> None:
        """Nothing is learned from the step."""


@dataclass(slots=True)
class _Steps:
    """Steps with about the same number of decodes; ``plain`` in seconds."""

    plain: float = 0.0
    plain_steps: int = 0
    extra_seconds: float = 0.0
    extra_tokens: float = 0.0
    idle: int = 0

    def note(self, drafted: int, seconds: float) -> None:
        if not drafted:
            share = max(1.0 - _STEP_DECAY, 1.0 / (self.plain_steps + 1))
            # One step that somebody disturbed says little of the next.
            known = self.plain_steps >= _NEEDED
            usual = min(seconds, 4 * self.plain) if known else seconds
            self.plain += share * (usual - self.plain)
            self.plain_steps += 1
        elif self.plain_steps >= _NEEDED:
            usual = min(seconds, (4 + drafted) * self.plain)
            self.extra_seconds = self.extra_seconds * _STEP_DECAY + usual - self.plain
            self.extra_tokens = self.extra_tokens * _STEP_DECAY + drafted


class MeasuredPrice:
    """Learns from the steps that hold decodes only what guesses cost here, by batch size.

    Where it is not known yet, a few are tried; where it forbids all, again some steps later.
    """

    def __init__(self) -> None:
        self._steps: dict[int, _Steps] = {}

    def observe(self, decodes: int, drafted: int, seconds: float) -> None:
        """Note a step of ``decodes`` turns with ``drafted`` guesses, and nothing else."""
        if decodes:
            self._about(decodes).note(drafted, seconds)

    def price(self, decodes: int) -> float:
        """Return what a guess must be worth, in tokens; above 1 none is worth it."""
        steps = self._about(decodes)
        if steps.plain_steps < _NEEDED:
            return 2.0
        if steps.extra_tokens < _TRIES or steps.plain <= 0:
            return 0.2
        extra = steps.extra_seconds / steps.extra_tokens
        price = max(extra * decodes / steps.plain, _FLOOR)
        steps.idle = steps.idle + 1 if price > 0.5 else 0
        if steps.idle >= _PROBE:
            steps.idle = 0
            return 0.2
        return price

    def _about(self, decodes: int) -> _Steps:
        """Return what is known of steps of this size: sizes up to a power of two are alike."""
        return self._steps.setdefault(max(decodes - 1, 0).bit_length(), _Steps())
