"""Under which tool a gap is learned: what the return says, else what the turn before it said."""

from __future__ import annotations

import pytest

from agentrt.engine.kv import PageCache
from agentrt.scheduling import Scheduler
from agentrt.scheduling.fake import FakeBackend
from agentrt.scheduling.hints import NO_HINTS, TurnHints
from agentrt.scheduling.plan import TurnRequest
from agentrt.scheduling.policy import KeepNothing, Policy, by_arrival, lru_score
from agentrt.scheduling.tokens import TokenList


class Notes(KeepNothing):
    """Retention that writes down what it is told of returns."""

    def __init__(self) -> None:
        super().__init__(lru_score)
        self.seen: list[tuple[str | None, float]] = []

    def returned(self, tool: str | None, gap: float) -> None:
        self.seen.append((tool, gap))


@pytest.mark.parametrize(
    ("before", "hints", "learned"),
    [
        ("bash", NO_HINTS, "bash"),
        (None, TurnHints(last_tool="git"), "git"),
        ("bash", TurnHints(last_tool="git"), "git"),
        (None, NO_HINTS, None),
    ],
)
def test_a_gap_is_learned_under_its_tool(
    before: str | None, hints: TurnHints, learned: str | None
) -> None:
    notes = Notes()
    scheduler = Scheduler(PageCache(8, 4, lru_score), Policy("notes", by_arrival, notes))
    first = TurnRequest("p/0", "p", TokenList([1, 2, 3]), 1, next_tool=before)
    scheduler.submit(first, 0.0)
    plan = scheduler.plan(0.0)
    scheduler.commit(plan, FakeBackend().run(plan), 1.0)
    scheduler.submit(TurnRequest("p/1", "p", TokenList([1, 2, 3, 4]), 1, hints=hints), 5.0)
    assert notes.seen == [(learned, 4.0)]
