"""A cluster of one worker is the single simulation, turn by turn and float by float."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.simulation.cost import CostModel
from tests.bench.builders import CONTEXT, PREFILL, STEP, play
from tests.bench.test_simulation import programs
from tests.simulation.clusters import group, simulate


@settings(max_examples=80, deadline=None)
@given(
    arrivals=programs(),
    policy=st.sampled_from(["fcfs", "program-fcfs", "fixed-ttl=1", "fixed-ttl=4", "continuum"]),
    pages=st.integers(20, 60),
    max_wait=st.sampled_from([0.0, 0.5, 3.0, 600.0]),
    reserve=st.booleans(),
    placement=st.sampled_from(["agentrt", "affinity", "round-robin"]),
)
def test_one_worker_is_the_single_simulation(arrivals, policy, pages, max_wait, reserve, placement):
    cost = CostModel(STEP, PREFILL, CONTEXT, token_budget=32, max_seqs=4, reserve_output=reserve)
    options = {"policy": policy, "pages": pages, "max_wait": max_wait, "cost": cost}
    alone = play(arrivals, **options)
    together = simulate(arrivals, group(placement=placement, **options))
    assert together.turns == alone.turns
    assert together.programs == alone.programs
    assert together.tools == alone.tools
    assert together.pins == alone.pins
    assert together.kv == alone.kv


names = st.sampled_from(["fcfs", "continuum"])


@settings(max_examples=60, deadline=None)
@given(
    arrivals=programs(), workers=st.integers(2, 4), policy=st.sampled_from(["fcfs", "continuum"])
)
def test_jumping_over_decodes_changes_nothing_in_a_cluster(arrivals, workers, policy):
    options = {"policy": policy, "pages": 40, "count": workers}
    jumped = simulate(arrivals, group(jump=True, **options))
    stepped = simulate(arrivals, group(jump=False, **options))
    assert sorted(jumped.turns, key=repr) == sorted(stepped.turns, key=repr)
    assert sorted(jumped.programs, key=repr) == sorted(stepped.programs, key=repr)
