"""Runs the experiment: every policy once a round, beside each role alone, all in one order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from agentrt.bench.contention.plan import Plan
from agentrt.bench.contention.results import ALONE, UNCONTENDED, Outcome
from agentrt.bench.contention.run import Stopped, run_once
from agentrt.bench.contention.store import ContentionStore

__all__ = ["Experiment", "Observer", "Silent"]


class Observer(Protocol):
    """Told what happens, for progress."""

    def started(self, policy: str, run: int) -> None:
        """A cell begins."""
        ...

    def finished(self, outcome: Outcome, reused: bool) -> None:
        """A cell ended, or was taken from an earlier try."""
        ...


class Silent:
    """An observer that shows nothing."""

    def started(self, policy: str, run: int) -> None:
        """Ignore it."""

    def finished(self, outcome: Outcome, reused: bool) -> None:
        """Ignore it."""


@dataclass(slots=True)
class Experiment:
    """All cells of a plan, kept in ``store`` as they end; ``stop`` is asked all the time."""

    plan: Plan
    store: ContentionStore
    observer: Observer = field(default_factory=Silent)
    stop: Callable[[], bool] = lambda: False

    def run(self) -> list[Outcome]:
        """Return every cell that ended; fewer than planned when it was stopped."""
        outcomes: list[Outcome] = []
        for name, number, plan in self._cells():
            if self.stop():
                break
            outcome = self.store.load(name, number)
            reused = outcome is not None
            if outcome is None:
                self.observer.started(name, number)
                try:
                    outcome = run_once(plan, name, number, self.stop)
                except Stopped:
                    break
                self.store.save(outcome)
            self.observer.finished(outcome, reused)
            outcomes.append(outcome)
        return outcomes

    def _cells(self) -> Iterator[tuple[str, int, Plan]]:
        """Round by round, so that what drifts on this machine meets all policies alike."""
        for number in range(1, self.plan.runs + 1):
            for role in self.plan.roles:
                yield ALONE + role.name, number, self.plan.alone(role)
            yield UNCONTENDED, number, self.plan.uncontended()
            # Each round begins with another policy: none is always the first after the pause.
            turn = number % len(self.plan.policies)
            for name in (*self.plan.policies[turn:], *self.plan.policies[:turn]):
                yield name, number, self.plan

    @property
    def planned(self) -> int:
        """How many cells there are."""
        return sum(1 for _ in self._cells())
