"""What the check of a simulation against a live run reads out of the live run's steps."""

from __future__ import annotations

import pytest

from agentrt.scheduling.plan import SeqSlice, StepPlan, StepResult

pytest.importorskip("torch", reason="the live engine is not installed")

from agentrt.bench.agreement import StepLog, small_programs
from agentrt.engine.fake import FakeTurnBackend
from agentrt.engine.observed import ObservedBackend
from agentrt.engine.params import SamplingParams
from agentrt.simulation.fit import Observation


def test_steps_are_read_with_what_they_hold_and_up_to_the_next_one():
    log = StepLog()
    prefill = StepPlan((SeqSlice("a", 0, 10, [], False), SeqSlice("b", 5, 3, [], True)))
    decode = StepPlan((SeqSlice("a", 10, 1, [], True), SeqSlice("b", 8, 1, [], True)))
    log(prefill, 1.0, 1.5)
    log(decode, 1.501, 1.6)
    log(decode, 1.602, 1.7)
    log(decode, 9.0, 9.1)
    rows = log.observations()
    pairs = 55 + 3 * 5 + 6
    assert rows[0] == Observation(13, pairs, 0, 0, pytest.approx(0.501))
    assert rows[1] == Observation(0, 0, 2, 20, pytest.approx(0.101))
    # The engine idled after the third and the last step: the usual time between two is added.
    usual = (0.001 + 0.002) / 2
    assert rows[2].seconds == pytest.approx(0.098 + usual)
    assert rows[3].seconds == pytest.approx(0.1 + usual)


def test_an_observed_backend_tells_every_step_and_changes_nothing():
    told = []
    times = iter((1.0, 2.0))
    inner, plain = FakeTurnBackend(16), FakeTurnBackend(16)
    backend = ObservedBackend(inner, lambda *step: told.append(step), lambda: next(times))
    plan = StepPlan((SeqSlice("a", 0, 3, [0], True),))
    for one in (backend, plain):
        one.open("a", [1, 2, 3], SamplingParams())
    result = backend.run(plan)
    assert isinstance(result, StepResult)
    assert result == plain.run(plan)
    assert told == [(plan, 1.0, 2.0)]
    backend.close("a")


def test_small_programs_are_drawn_by_seed_and_grow():
    one, again, other = small_programs(5, 1), small_programs(5, 1), small_programs(5, 2)
    assert one == again != other
    for program in one:
        assert all(turn.reused_tokens < turn.prompt_tokens < 5000 for turn in program.turns)
        held = [turn.prompt_tokens for turn in program.turns]
        assert held == sorted(held)
