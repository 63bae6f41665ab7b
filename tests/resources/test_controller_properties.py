"""Whatever tool calls do: every one ends or is killed with a reason, and nothing waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.resources import control_events as ev
from agentrt.resources import control_ladder
from agentrt.resources.controller import ControllerConfig
from tests.resources.plant import MIB, Plant, Tool

BUDGET = 1000 * MIB
CONFIG = ControllerConfig(
    memory=BUDGET,
    horizon=0.03,
    tenants={"small": 400 * MIB},
    max_freeze=(2.0, 1.0, 0.5),
    max_wait=1.0,
    refuse_after=6.0,
    stall_deadline=1.0,
    can_throttle=True,
    can_reclaim=True,
)
LONGEST = 120.0


@st.composite
def tools(draw: st.DrawFn, honest: bool) -> list[Tool]:
    out: list[Tool] = []
    for number in range(draw(st.integers(1, 6))):
        claim = draw(st.integers(20, 700)) * MIB
        top = claim if honest else 2 * claim
        points = draw(st.lists(st.integers(1, top), min_size=1, max_size=6))
        tenant = draw(st.sampled_from(["default", "small"]))
        budget = 400 * MIB if tenant == "small" else BUDGET
        spec = ev.CallSpec(
            f"c{number}",
            claim,
            tenant=tenant,
            program=f"p{number % 3}",
            ceiling=draw(st.sampled_from([0, 2 * claim])),
            priority=draw(st.sampled_from([ev.LOW, ev.NORMAL, ev.HIGH])),
            enforced=draw(st.booleans()) if not honest else True,
            on_limit=draw(st.sampled_from(["kill", "freeze", "throttle"])),
        )
        # What the kernel enforces: nobody exceeds the most that its claim can be raised to.
        most = min(max(spec.ceiling, claim), budget)
        curve = [
            (0.2 * i, min(b, most if not honest else min(claim, budget)))
            for i, b in enumerate(points)
        ]
        curve.append((curve[-1][0] + 0.2, 0))
        out.append(Tool(spec, curve, arrival=draw(st.floats(0, 1))))
    return out


def check_bounds(plant: Plant) -> None:
    bound = dict(zip((ev.LOW, ev.NORMAL, ev.HIGH), CONFIG.max_freeze, strict=True))
    frozen: dict[str, float] = {}
    for now, action in plant.actions:
        if isinstance(action, ev.Freeze):
            frozen[action.call] = now
            priority = plant.by_name[action.call].spec.priority
            assert action.until <= now + bound[priority] + 1e-6
        elif isinstance(action, (ev.Thaw, ev.Kill)):
            frozen.pop(action.call, None)
        elif isinstance(action, ev.Wait):
            assert action.place >= 1
            assert action.why
        elif isinstance(action, ev.SetHigh):
            assert action.bytes is None or action.deadline is not None


@settings(max_examples=50, deadline=None)
@given(tools(honest=True))
def test_honest_calls_all_end(found: list[Tool]) -> None:
    plant = Plant(CONFIG, found, step=0.01, reaction=0.01)
    plant.run(LONGEST)
    assert all(tool.state == "over" for tool in found)
    check_bounds(plant)
    live = plant.controller.statistics()
    assert (live.running, live.frozen, live.waiting, live.reserved) == (0, 0, 0, 0)


@settings(max_examples=50, deadline=None)
@given(tools(honest=False))
def test_calls_that_outgrow_their_claims_end_or_are_killed_with_a_reason(found: list[Tool]) -> None:
    plant = Plant(CONFIG, found, step=0.01, reaction=0.01)
    plant.run(LONGEST)
    assert all(tool.state == "over" for tool in found)
    check_bounds(plant)


@settings(max_examples=40, deadline=None)
@given(tools(honest=True))
def test_among_equals_no_honest_call_is_killed(found: list[Tool]) -> None:
    equal = [Tool(replace(t.spec, priority=ev.NORMAL), t.curve, t.arrival) for t in found]
    # With patience, and with a margin for what is seen too late.
    config = replace(CONFIG, max_freeze=(60.0, 60.0, 60.0), refuse_after=100.0, margin=200 * MIB)
    plant = Plant(config, equal, step=0.01, reaction=0.01)
    plant.run(LONGEST)
    assert [tool.why for tool in equal] == [""] * len(equal)


@settings(max_examples=40, deadline=None)
@given(tools(honest=False))
def test_the_short_cut_changes_no_decision(found: list[Tool]) -> None:
    def go(look: Callable[..., bool]) -> list[tuple[float, ev.Action]]:
        again = [Tool(t.spec, t.curve, t.arrival) for t in found]
        plant = Plant(CONFIG, again, step=0.01, reaction=0.01)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(control_ladder, "all_fit", look)
            plant.run(LONGEST)
        return plant.actions

    assert go(control_ladder.all_fit) == go(lambda *_: False)


@settings(max_examples=15, deadline=None)
@given(tools(honest=True))
def test_the_same_events_give_the_same_actions(found: list[Tool]) -> None:
    def go() -> list[tuple[float, ev.Action]]:
        again = [Tool(t.spec, t.curve, t.arrival) for t in found]
        plant = Plant(CONFIG, again, step=0.01, reaction=0.01)
        plant.run(LONGEST)
        return plant.actions

    assert go() == go()
