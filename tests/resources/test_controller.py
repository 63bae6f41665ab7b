"""The controller's ladder, rung by rung."""

from __future__ import annotations

import pytest

from agentrt.errors import ConfigError, InternalError, InvalidRequest
from agentrt.resources import control_events as ev
from agentrt.resources.controller import Controller, ControllerConfig

MIB = 1 << 20


class Desk:
    """A controller of 1000 MiB with a clock; checks its books after every event."""

    def __init__(self, **settings) -> None:
        known = {"memory": 1000 * MIB, "margin": 0, "horizon": 0.1, "keep_whole": 0}
        self.controller = Controller(ControllerConfig(**{**known, **settings}))
        self.now = 0.0

    def send(self, event: ev.Event, seconds: float = 0.0) -> list[ev.Action]:
        self.now += seconds
        out = self.controller.handle(event, self.now)
        self.controller.check_integrity()
        return out

    def ask(self, name: str, claim: int, **more) -> list[ev.Action]:
        soft = more.pop("soft", 0) * MIB
        ceiling = more.pop("ceiling", 0) * MIB
        spec = ev.CallSpec(name, claim * MIB, soft=soft, ceiling=ceiling, **more)
        return self.send(ev.Requested(spec))

    def run(self, name: str, claim: int, **more) -> None:
        assert any(isinstance(a, ev.Admit) for a in self.ask(name, claim, **more))
        self.send(ev.Started(name))

    def use(self, seconds: float = 0.1, **usage: int) -> list[ev.Action]:
        return self.send(ev.Sample({n: size * MIB for n, size in usage.items()}), seconds)


def kinds(actions: list[ev.Action]) -> list[tuple[str, str]]:
    return [(type(a).__name__, getattr(a, "call", getattr(a, "program", ""))) for a in actions]


# --- reserve ---


def test_what_fits_starts_and_is_reserved() -> None:
    desk = Desk()
    assert desk.ask("a", 600) == [ev.Admit("a", 600 * MIB, 0)]
    assert desk.ask("b", 500) == [ev.Admit("b", 400 * MIB, 100 * MIB)]
    figures = desk.controller.statistics()
    assert (figures.reserved, figures.borrowed) == (1000 * MIB, 100 * MIB)


def test_without_overcommit_only_what_can_be_reserved_starts() -> None:
    desk = Desk(overcommit=0.0)
    desk.run("a", 600)
    (told,) = desk.ask("b", 500)
    assert isinstance(told, ev.Wait)
    assert (told.place, told.why) == (1, "claims would exceed what may be promised by 100 MiB")
    assert kinds(desk.send(ev.Ended("a"))) == [("Admit", "b")]


def test_a_claim_above_its_budget_is_cut() -> None:
    desk = Desk(tenants={"t": 300 * MIB})
    assert desk.ask("a", 900, tenant="t") == [
        ev.Admit("a", 300 * MIB, 0),
        ev.SetMax("a", 300 * MIB),
    ]


def test_a_tenant_does_not_take_from_another() -> None:
    desk = Desk(tenant_memory=500 * MIB, overcommit=0.0)
    desk.run("a", 500, tenant="one")
    assert kinds(desk.ask("b", 100, tenant="one")) == [("Wait", "b")]
    assert kinds(desk.ask("c", 500, tenant="two")) == [("Admit", "c")]


def test_a_high_call_takes_reservations_but_waits_for_room() -> None:
    desk = Desk()
    desk.run("low", 800, priority=ev.LOW)
    desk.use(low=300)
    desk.use(9.0, low=300)
    assert kinds(desk.ask("high", 900, priority=ev.HIGH)) == [("Wait", "high")]
    desk.send(ev.Ended("high"))
    assert desk.ask("high2", 700, priority=ev.HIGH) == [ev.Admit("high2", 700 * MIB, 0)]
    assert desk.controller.statistics().reserved == 1000 * MIB


def test_the_tenant_with_least_goes_first() -> None:
    desk = Desk(overcommit=0.0)
    desk.run("a", 600, tenant="rich")
    desk.run("b", 400, tenant="poor")
    desk.ask("c", 400, tenant="rich")
    desk.ask("d", 400, tenant="poor")
    assert kinds(desk.send(ev.Ended("b")))[0] == ("Admit", "d")


def test_who_has_waited_longest_is_not_overtaken() -> None:
    desk = Desk(overcommit=0.0, max_wait=10.0)
    desk.run("a", 600)
    desk.ask("big", 900)
    assert kinds(desk.ask("small", 100)) == [("Admit", "small")]
    told = desk.send(ev.Tick(), 11.0)
    assert kinds(told) in ([], [("Wait", "big")])
    desk.send(ev.Ended("small"))
    (waits,) = [a for a in desk.ask("tiny", 10) if isinstance(a, ev.Wait) and a.call == "tiny"]
    assert waits.place == 2
    assert "longest" in waits.why
    assert kinds(desk.send(ev.Ended("a"))) == [("Admit", "big"), ("Admit", "tiny")]


def test_nobody_waits_for_ever() -> None:
    desk = Desk(overcommit=0.0, refuse_after=60.0)
    desk.run("a", 1000)
    desk.ask("b", 100)
    due = desk.controller.next_deadline(desk.now)
    assert due is not None
    (told,) = desk.send(ev.Tick(), 60.0)
    assert told == ev.Refuse("b", "no room came free in 60 s")


def test_a_second_call_of_the_same_id_is_refused() -> None:
    desk = Desk()
    desk.run("a", 10)
    with pytest.raises(InvalidRequest):
        desk.ask("a", 10)


# --- borrow ---


def test_slack_is_lent_and_taken_back() -> None:
    desk = Desk(overcommit=0.0)
    desk.run("a", 200, soft=160, ceiling=900)
    desk.use(10.0, a=100)
    (lent,) = desk.use(a=159)
    assert lent == ev.SetMax("a", 300 * MIB)
    assert desk.controller.report("a", desk.now).lent == 100 * MIB
    desk.use(a=20)
    desk.use(5.0, a=20)
    assert kinds(desk.ask("b", 900)) == [("SetMax", "a"), ("Wait", "b")]


@pytest.mark.parametrize(
    ("on_limit", "first"), [("kill", []), ("freeze", [("Freeze", "a")]), ("throttle", [])]
)
def test_with_nothing_to_borrow_the_call_gets_what_it_chose(on_limit, first) -> None:
    desk = Desk(stall_deadline=5.0, max_freeze=(5.0, 5.0, 5.0))
    desk.run("b", 800)
    desk.use(b=800)
    desk.run("a", 200, soft=150, ceiling=900, on_limit=on_limit)
    assert kinds(desk.use(a=160)) == first
    told = desk.send(ev.Tick(), 5.0)
    if on_limit == "kill":
        assert told == []  # the kernel does it, at the hard limit
        return
    (killed,) = told
    assert (killed.reason, killed.call) == ("limit", "a")
    assert "needed more than 150 MiB" in killed.why


# --- throttle, freeze ---


def conflict(desk: Desk, **more) -> list[ev.Action]:
    """A low call that grows while a high one has most of the memory."""
    desk.run("high", 600, priority=ev.HIGH)
    desk.run("low", 600, priority=ev.LOW, **more)
    desk.use(10.0, high=550, low=50)
    return desk.use(high=550, low=250)


def test_the_lesser_call_stands_still_for_a_bounded_time() -> None:
    desk = Desk(max_freeze=(20.0, 10.0, 5.0))
    (frozen,) = conflict(desk)
    assert frozen == ev.Freeze("low", desk.now + 20.0, "high")
    assert desk.controller.next_deadline(desk.now) == desk.now + 20.0
    assert kinds(desk.send(ev.Ended("high"), 3.0)) == [("Thaw", "low")]
    report = desk.controller.report("low", desk.now)
    assert (report.frozen, report.freezes, report.winner) == (3.0, 1, "high")


def test_the_aged_goes_first_and_the_other_gives_way() -> None:
    desk = Desk(max_freeze=(20.0, 10.0, 5.0))
    conflict(desk)
    assert ("Thaw", "low") in kinds(desk.send(ev.Tick(), 20.0))


def test_a_call_that_does_not_grow_is_never_frozen() -> None:
    desk = Desk()
    desk.run("high", 600, priority=ev.HIGH)
    desk.run("low", 600, priority=ev.LOW)
    for _ in range(20):
        assert desk.use(high=580, low=400) == [] or desk.now < 0.5


def test_near_the_limit_the_kernel_holds_lesser_calls_to_their_room() -> None:
    desk = Desk(can_throttle=True, margin=50 * MIB, stall_deadline=7.0)
    desk.run("high", 500, priority=ev.HIGH)
    desk.run("low", 500, priority=ev.LOW)
    desk.use(high=500, low=300)
    high = [a for a in desk.use(1.0, high=500, low=405) if isinstance(a, ev.SetHigh)]
    assert high
    assert 405 * MIB <= high[-1].bytes < 500 * MIB
    assert high[-1].deadline == pytest.approx(desk.now + 7.0)
    lifted = desk.use(5.0, high=100, low=405)
    assert ev.SetHigh("low", None) in lifted


def test_a_throttle_that_lasts_becomes_a_freeze() -> None:
    desk = Desk(can_throttle=True, margin=50 * MIB, stall_deadline=2.0)
    desk.run("high", 500, priority=ev.HIGH)
    desk.run("low", 500, priority=ev.LOW)
    desk.use(high=500, low=300)
    desk.use(1.0, high=500, low=405)
    told = kinds(desk.use(3.0, high=500, low=405))
    assert ("Freeze", "low") in told
    assert ("SetHigh", "low") in told


def test_a_host_that_cannot_freeze_does_not_try() -> None:
    desk = Desk(can_freeze=False)
    assert [a for a in conflict(desk) if isinstance(a, ev.Freeze)] == []


# --- reclaim ---


def test_idle_frameworks_are_asked_first() -> None:
    desk = Desk(can_reclaim=True)
    desk.send(ev.FrameworkSample("p", 100 * MIB))
    assert desk.send(ev.TurnStarted("p")) == [ev.Reclaim("p", 50 * MIB)]
    assert desk.send(ev.Pressure()) == []  # asked a moment ago
    assert desk.send(ev.Pressure(), 2.0) == [ev.Reclaim("p", 50 * MIB)]
    assert ("Reclaim", "p") in kinds(conflict_in(desk, 3.0))
    desk.send(ev.TurnEnded("p"))
    assert desk.send(ev.Pressure(), 9.0) == []


def conflict_in(desk: Desk, seconds: float) -> list[ev.Action]:
    desk.now += seconds
    return conflict(desk)


# --- kill ---


def test_a_deadline_is_kept() -> None:
    desk = Desk()
    desk.run("a", 100, deadline=10.0)
    assert desk.controller.next_deadline(0.0) == 10.0
    (killed,) = desk.send(ev.Tick(), 10.0)
    assert (killed.reason, killed.call) == ("deadline", "a")
    assert desk.send(ev.Tick(), 1.0) == []


def test_what_cannot_be_solved_ends_in_a_kill_of_the_least() -> None:
    desk = Desk(max_freeze=(2.0, 2.0, 2.0), overcommit=1.0)
    desk.run("high", 900, priority=ev.HIGH)
    desk.run("low", 600, priority=ev.LOW)
    desk.use(high=100, low=50)
    desk.use(high=300, low=590)
    killed = []
    for size in (360, 405, 409, 410, 410, 410, 410, 410):
        killed += [a for a in desk.use(1.0, high=size, low=590) if isinstance(a, ev.Kill)]
        killed += [a for a in desk.use(0.1, high=size + 1, low=590) if isinstance(a, ev.Kill)]
    assert [k.call for k in killed[:1]] in ([], ["low"])


# --- adoption, books ---


def test_what_runs_already_is_adopted() -> None:
    desk = Desk()
    spec = ev.CallSpec("a", 100 * MIB)
    told = desk.send(ev.Started("a", spec, usage=300 * MIB, frozen=True))
    assert ev.SetMax("a", 300 * MIB) in told
    assert ev.Thaw("a") in told
    assert desk.controller.statistics().used == 300 * MIB
    assert desk.send(ev.Started("unknown")) == []


def test_books_that_disagree_are_a_bug() -> None:
    desk = Desk()
    desk.run("a", 100)
    desk.controller._calls["a"].reserved = 2000 * MIB
    with pytest.raises(InternalError):
        desk.controller.check_integrity()


@pytest.mark.parametrize(
    "wrong", [{"memory": 5}, {"horizon": 0}, {"overcommit": -1}, {"max_freeze": (0, 1, 1)}]
)
def test_settings_out_of_range(wrong) -> None:
    with pytest.raises(ConfigError):
        ControllerConfig(**{"memory": 1 << 30, **wrong})
