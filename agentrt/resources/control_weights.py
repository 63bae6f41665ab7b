"""Pure: whose share of the CPUs is cut while a more important call waits for one.

Weights by priority act only where calls meet on a CPU, and a short meeting hurts nobody. But while
a call waits for a CPU much of its time, look after look, lesser ones get a quarter of their weight:
they go on, slowly, and have it back once that call waits no more or is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentrt.resources import control_events as ev
from agentrt.resources.control_state import LiveCall

__all__ = ["WEIGHTS", "Weights"]

WEIGHTS = {ev.LOW: 50, ev.NORMAL: 100, ev.HIGH: 200}
"""CPU weights by priority: where they meet, a high call gets four times what a low one gets."""
CUT = 4
PRESSED = 0.3
"""Share of its time for which a call waits for a CPU that makes lesser ones step back."""
LOOKS = 2
"""Looks in a row that show it: one may be a coincidence."""
CALM = 2.0
"""Seconds without it after which they have their weight back."""


class Weights:
    """Remembers who waited for a CPU, and whose weight is cut. Weights stay above zero."""

    def __init__(self) -> None:
        self.cuts = 0
        self._seen: dict[str, tuple[float, float]] = {}
        self._pressed: dict[str, int] = {}
        self._cut: set[str] = set()
        self._above: int | None = None
        self._until = 0.0

    def sample(
        self, live: Sequence[LiveCall], stalled: Mapping[str, float], now: float
    ) -> list[ev.Action]:
        """Take note of seconds waited for a CPU, by call, since each began."""
        for call in live:
            name = call.spec.call
            if name in stalled:
                self._note(name, stalled[name], now, call.state == "running")
        pressed = [
            call.spec.priority for call in live if self._pressed.get(call.spec.call, 0) >= LOOKS
        ]
        if pressed:
            self._above, self._until = max(pressed), now + CALM
        elif now >= self._until:
            self._above = None
        return self._settle(live)

    def _note(self, name: str, stalled: float, now: float, running: bool) -> None:
        before, since = self._seen.get(name, (stalled, now))
        self._seen[name] = stalled, now
        waited = stalled - before > PRESSED * (now - since) and running
        self._pressed[name] = self._pressed.get(name, 0) + 1 if waited else 0

    def ended(self, name: str, live: Sequence[LiveCall]) -> list[ev.Action]:
        """A call is gone; those that stepped back for it need not any more."""
        self._seen.pop(name, None)
        self._pressed.pop(name, None)
        self._cut.discard(name)
        if self._above is not None and not any(c.spec.priority >= self._above for c in live):
            self._above = None
        return self._settle(live) if self._cut else []

    def _settle(self, live: Sequence[LiveCall]) -> list[ev.Action]:
        lesser = {
            call.spec.call
            for call in live
            if self._above is not None and call.spec.priority < self._above
        }
        out: list[ev.Action] = []
        for call in live:
            name, weight = call.spec.call, WEIGHTS[call.spec.priority]
            if name in lesser and name not in self._cut:
                out.append(ev.SetWeight(name, weight // CUT))
                self.cuts += 1
            elif name in self._cut and name not in lesser:
                out.append(ev.SetWeight(name, weight))
        self._cut = lesser
        return out
