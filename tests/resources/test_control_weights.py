"""CPU weights: who steps back for whom, that it ends, and what the directories above weigh."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.resources import control_events as ev
from agentrt.resources.cgroup import CgroupTree
from agentrt.resources.control_weights import CALM, CUT, WEIGHTS
from agentrt.resources.controller import Controller, ControllerConfig
from agentrt.resources.shares import Shares
from agentrt.sandbox import Limits
from tests.sandbox.fake_cgroups import fake_machine

MIB = 1 << 20
LOOK = 0.5


class Desk:
    """A controller whose calls have waited for a CPU as told."""

    def __init__(self, **priorities: int) -> None:
        self.controller = Controller(ControllerConfig(memory=1000 * MIB))
        self.now = 0.0
        self.waited = dict.fromkeys(priorities, 0.0)
        for name, priority in priorities.items():
            self.controller.handle(ev.Requested(ev.CallSpec(name, MIB, priority=priority)), 0.0)
            self.controller.handle(ev.Started(name), 0.0)
        self.look()

    def look(self, **share: float) -> list[ev.Action]:
        """Half a second in which each waited for this share of it."""
        self.now += LOOK
        for name, part in share.items():
            self.waited[name] += part * LOOK
        return self.controller.handle(ev.CpuSample(dict(self.waited)), self.now)

    def end(self, name: str) -> list[ev.Action]:
        del self.waited[name]
        return self.controller.handle(ev.Ended(name), self.now)


def test_lesser_calls_step_back_while_a_greater_one_waits_and_no_longer() -> None:
    desk = Desk(high=ev.HIGH, normal=ev.NORMAL, low=ev.LOW)
    assert desk.look(high=0.9) == []  # once may be a coincidence
    assert desk.look(high=0.9) == [
        ev.SetWeight("normal", WEIGHTS[ev.NORMAL] // CUT),
        ev.SetWeight("low", WEIGHTS[ev.LOW] // CUT),
    ]
    assert desk.look(high=0.9) == []
    for _ in range(int(CALM / LOOK) - 1):
        assert desk.look() == []
    assert desk.look() == [
        ev.SetWeight("normal", WEIGHTS[ev.NORMAL]),
        ev.SetWeight("low", WEIGHTS[ev.LOW]),
    ]
    assert desk.controller.statistics().weight_cuts == 2


def test_they_have_it_back_with_the_end_of_that_call() -> None:
    desk = Desk(high=ev.HIGH, low=ev.LOW)
    desk.look(high=0.9)
    assert desk.look(high=0.9) != []
    assert desk.end("high") == [ev.SetWeight("low", WEIGHTS[ev.LOW])]


def test_nobody_steps_back_for_an_equal_or_for_a_lesser_one() -> None:
    desk = Desk(one=ev.NORMAL, other=ev.NORMAL, high=ev.HIGH)
    for _ in range(5):
        assert desk.look(one=1.0, other=1.0) == []


def test_a_short_wait_moves_nothing() -> None:
    desk = Desk(high=ev.HIGH, low=ev.LOW)
    for _ in range(10):
        assert desk.look(high=0.2, low=1.0) == []
        assert desk.look(high=0.9) == []


def test_who_stands_still_does_not_make_others_step_back() -> None:
    controller = Controller(ControllerConfig(memory=100 * MIB, margin=0))
    for name, priority in (("high", ev.HIGH), ("low", ev.LOW)):
        controller.handle(ev.Requested(ev.CallSpec(name, MIB, priority=priority)), 0.0)
    # "high" is admitted, but does not run yet.
    controller.handle(ev.Started("low"), 0.0)
    for look in range(1, 6):
        found = controller.handle(ev.CpuSample({"high": 0.5 * look, "low": 0.0}), 0.5 * look)
        assert not any(isinstance(action, ev.SetWeight) for action in found)


def test_a_restarted_controller_begins_with_the_usual_weights() -> None:
    controller = Controller(ControllerConfig(memory=100 * MIB))
    spec = ev.CallSpec("low", MIB, priority=ev.LOW)
    found = controller.handle(ev.Started("low", spec, usage=0), 0.0)
    assert ev.SetWeight("low", WEIGHTS[ev.LOW]) in found


priorities = st.sampled_from([ev.LOW, ev.NORMAL, ev.HIGH])


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcde"), priorities, min_size=1),
    st.lists(st.dictionaries(st.sampled_from("abcde"), st.floats(0, 1)), max_size=12),
    st.data(),
)
def test_weights_follow_from_who_waits(found, looks, data) -> None:
    """Replayed, the actions give every call its own weight or its cut; calm restores them all."""
    desk = Desk(**found)
    weights = {name: WEIGHTS[priority] for name, priority in found.items()}

    def take(actions: list[ev.Action]) -> None:
        for action in actions:
            assert isinstance(action, ev.SetWeight)
            assert action.weight != weights[action.call]  # nothing is said twice
            assert action.weight >= 1
            weights[action.call] = action.weight

    for shares in looks:
        take(desk.look(**{name: part for name, part in shares.items() if name in desk.waited}))
        if len(desk.waited) > 1 and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(desk.waited)))
            take(desk.end(gone))
            del weights[gone]
        most = max(found[name] for name in desk.waited)
        for name in desk.waited:
            own = WEIGHTS[found[name]]
            assert weights[name] in (own, own // CUT)
            assert weights[name] == own or found[name] < most
    for _ in range(int(CALM / LOOK) + 1):
        take(desk.look())
    assert weights == {name: WEIGHTS[found[name]] for name in desk.waited}


# --- the directories above ---


@pytest.mark.parametrize("kind", ["v2", "hybrid"])
def test_inner_directories_weigh_as_their_most_important_call(tmp_path: Path, kind: str) -> None:
    files = fake_machine(tmp_path, kind)
    tree = CgroupTree("r1", files.layout, files)
    tree.open()
    shares = Shares(tree)
    name = "cpu.weight" if kind == "v2" else "cpu.shares"

    def weight(place: str) -> int:
        path = next(t / place / name for t in tree.run_paths if (t / place / name).exists())
        value = int(path.read_text())
        return value if kind == "v2" else round(value * 100 / 1024)

    groups = {place: tree.tool(place, "tool-1", Limits()) for place in ("t/a", "t/b", "u/c", "box")}
    shares.put("1", groups["t/a"], 200)
    shares.put("2", groups["t/b"], 50)
    shares.put("3", groups["u/c"], 50)
    shares.put("4", groups["box"], 100)
    found = {place: weight(place) for place in ("t", "t/a", "t/b", "u", "u/c", "box")}
    assert found == {"t": 200, "t/a": 200, "t/b": 50, "u": 50, "u/c": 50, "box": 100}
    shares.put("5", tree.tool("t/b", "tool-2", Limits()), 12)
    assert weight("t/b") == 50
    shares.drop("1")
    assert (weight("t"), weight("t/a")) == (50, 100)
    for call in "2345":
        shares.drop(call)
    shares.drop("unknown")
    assert {weight(place) for place in found} == {100}
    files.written.clear()
    shares.put("6", groups["box"], 100)  # what a directory has anyway costs nothing
    shares.drop("6")
    assert files.written == []
