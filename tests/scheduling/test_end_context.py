"""A context that is said to be done: its KV goes first, and coming back is no error."""

from __future__ import annotations

from agentrt.scheduling.plan import PinEnded, TurnAdmitted
from tests.scheduling.test_scheduler import Bench


def two_contexts() -> Bench:
    bench = Bench(pool=16)
    for context, token in (("main", 7), ("side", 8)):
        bench.submit(f"a/{context}", [token] * 12, 2, context=context)
        bench.drain()
    assert bench.scheduler.statistics().pins == 2
    return bench


def test_its_pin_ends_and_the_others_stay() -> None:
    bench = two_contexts()
    bench.scheduler.end_context("a", "side", 1.0)
    bench.step()
    assert [(pin.context, pin.outcome) for pin in bench.of(PinEnded)] == [("side", "final")]
    assert bench.scheduler.statistics().pins == 1
    assert bench.scheduler.statistics().programs == 1


def test_it_may_come_back() -> None:
    bench = two_contexts()
    bench.scheduler.end_context("a", "side", 1.0)
    bench.now = 2.0
    bench.submit("a/again", [8] * 14, 2, context="side")
    bench.drain()
    assert bench.of(TurnAdmitted)[-1].cached_tokens == 12
    assert bench.scheduler.statistics().pins == 2
    bench.scheduler.end_program("a", 3.0)
    bench.step()
    statistics = bench.scheduler.statistics()
    assert (statistics.pins, statistics.programs, statistics.pages_leased) == (0, 0, 0)


def test_a_turn_under_way_is_not_disturbed() -> None:
    bench = Bench()
    bench.submit("a/0", 6, 4)
    bench.step()
    bench.scheduler.end_context("a", "main", 0.0)
    bench.drain()
    assert bench.scheduler.statistics().pins == 1


def test_what_is_unknown_is_ignored() -> None:
    bench = Bench()
    bench.scheduler.end_context("a", "main", 0.0)
    bench.submit("a/0", 3)
    bench.scheduler.end_context("a", "side", 0.0)
    bench.drain()
