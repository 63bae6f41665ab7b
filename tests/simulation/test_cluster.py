"""Clusters small enough to work out by hand: what moves, what waits, what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.bench.workload import Tool
from agentrt.cluster import placement_names
from agentrt.simulation.tally import Tally
from agentrt.simulation.toolhosts import ToolHosts
from tests.bench.builders import CONTEXT, PREFILL, STEP, program, small_workload, turn
from tests.bench.test_branches import fork
from tests.bench.test_simulation import programs
from tests.simulation.clusters import group, network, simulate


def test_two_workers_serve_two_programs_at_once():
    pair = [(0.0, program("a", turn(32, 4))), (0.0, program("b", turn(32, 4)))]
    apart = simulate(pair, group(count=2))
    alone = simulate(pair[:1], group())
    assert {row.finished for row in apart.programs} == {alone.programs[0].finished}


def test_a_moved_session_brings_its_kv_and_the_turn_waits_for_it():
    # a's second turn comes while b holds the worker above the bound, so it moves to the other one.
    serving = group(count=2, placement="affinity=0.01", pages=16)
    a = program("a", turn(64, 2, gap=1.0), turn(80, 2, reused=66))
    b = program("b", turn(100, 200))
    wire = network(bandwidth=64_000.0, latency=0.25)
    record = simulate([(0.0, b), (0.1, a)], serving, wire)
    moves = serving.router.statistics().moves
    back = next(row for row in record.turns if row.program == "a" and row.index == 1)
    assert back.cached_tokens == 64
    if moves:
        assert wire.statistics().tokens == 64
        # 64 tokens of 1000 bytes at 64,000 bytes a second, and the latency.
        assert back.admitted >= back.submitted + 1.25


def test_stealing_takes_a_waiting_turn_to_an_idle_worker():
    # Three programs start on one worker of two; the other one is drained until then.
    serving = group(count=1, placement="agentrt", pages=12)
    long = [program(f"p{n}", turn(100, 60)) for n in range(3)]
    record = simulate([(0.0, one) for one in long], serving, scale=[(1.0, 1)])
    assert serving.router.statistics().steals >= 1
    assert {row.outcome for row in record.programs} == {"finished"}
    assert len(record.turns) == 3


def test_prefill_and_decode_apart_take_the_same_tokens_and_the_way_between():
    serving, decoding = group("prefill"), group("decode")
    wire = network(bandwidth=32_000.0, latency=0.5)
    one = program("a", turn(40, 5, gap=1.0), turn(60, 1, reused=45))
    record = simulate([(0.0, one)], serving, wire, decoding=decoding)
    first, second = record.turns
    assert first.first_token == 2 * STEP + 40 * PREFILL
    assert (first.output_tokens, first.prompt_tokens) == (5, 40)
    # Two whole pages (32 tokens) cross; the other nine of 41 tokens are computed again.
    assert wire.statistics().tokens == 32
    sent = first.first_token + 1.5
    decodes = STEP + 9 * PREFILL + 3 * STEP + CONTEXT * (42 + 43 + 44)
    assert first.finished == pytest.approx(sent + decodes)
    assert first.queue_seconds == pytest.approx(1.5)
    spent = first.queue_seconds + first.prefill_seconds + first.decode_seconds
    assert spent == pytest.approx(first.finished - first.submitted)
    # One output token: nothing is left to decode.
    assert second.finished == second.first_token
    assert wire.statistics().transfers == 1


def test_tool_gaps_stretch_when_the_slots_are_taken():
    tool = (Tool("bash"),)
    rows = [
        program(f"p{n}", replace(turn(16, 2, gap=4.0), tools=tool), turn(32, 2, reused=18))
        for n in range(3)
    ]
    arrivals = [(0.0, row) for row in rows]
    free = simulate(arrivals, group())
    slots = simulate(arrivals, group(), tools=ToolHosts(1, slots=1, memory=None))
    memory = simulate(
        arrivals,
        group(),
        tools=ToolHosts(1, slots=None, memory=100),
        tool_memory=lambda program, index: 60,
    )
    for limited in (slots, memory):
        free_at = 0.0
        for row in sorted(limited.tools, key=lambda row: row.end):
            assert row.end == max(row.start, free_at) + 4.0
            free_at = row.end
        assert max(row.end - row.start for row in limited.tools) > 8.0
    assert {row.end - row.start for row in free.tools} == {4.0}


def test_turns_side_by_side_overlap_in_a_cluster_too():
    record = simulate([(0.0, fork())], group(count=2))
    spans = {row.index: (row.submitted, row.finished) for row in record.turns}
    assert spans[1][0] == spans[2][0]
    assert len(record.turns) == len(fork().turns)


def test_growing_and_shrinking_lose_no_turn():
    chosen = small_workload(count=12, turns=4)
    arrivals = [(one.arrival, one) for one in chosen.programs]
    serving = group(count=2, pages=40)
    record = simulate(arrivals, serving, scale=[(1.0, 3), (3.0, -3), (6.0, 1)])
    assert len(record.turns) == 48
    assert {row.outcome for row in record.programs} == {"finished"}
    assert len(serving.router.accepting()) == 3


@settings(max_examples=60, deadline=None)
@given(
    arrivals=programs(),
    placement=st.sampled_from(placement_names()),
    workers=st.integers(1, 4),
    decoders=st.integers(0, 2),
    policy=st.sampled_from(["fcfs", "program-fcfs", "fixed-ttl=1"]),
    slots=st.sampled_from([None, 1]),
    change=st.integers(0, 2),
)
def test_every_program_ends_whatever_the_cluster(
    arrivals, placement, workers, decoders, policy, slots, change
):
    wire = network(bandwidth=100_000.0, latency=0.01)
    serving = group("a", count=workers, placement=placement, policy=policy, pages=24, network=wire)
    decoding = group("b", count=decoders, policy=policy, pages=24) if decoders else None
    tools = ToolHosts(1, slots, None) if slots else None
    scale = [(1.0, change), (2.0, -change)] if change else []
    record = simulate(arrivals, serving, wire, decoding=decoding, tools=tools, scale=scale)
    assert sorted(row.program for row in record.programs) == sorted(
        one.program for _, one in arrivals
    )
    for row in record.turns:
        spent = row.queue_seconds + row.prefill_seconds + row.decode_seconds
        assert spent == pytest.approx(row.finished - row.submitted)


def test_the_same_run_twice_is_the_same():
    chosen = small_workload(count=12, turns=4)
    arrivals = [(one.arrival, one) for one in chosen.programs]
    first, again = (simulate(arrivals, group(count=3, pages=24)) for _ in range(2))
    assert first == again


def test_sums_say_what_the_rows_say():
    from agentrt.bench.metrics import measure
    from agentrt.bench.records import RunRecord
    from agentrt.simulation.cluster import ClusterSimulation

    chosen = small_workload(count=10, turns=4)
    arrivals = [(one.arrival, one) for one in chosen.programs]
    isolated = {one.program: 1.0 for one in chosen.programs}
    rows = measure(simulate(arrivals, group(count=2, pages=48)), isolated)
    tally = Tally(RunRecord("any", 0, "simulated", 1024, "tiny"), isolated, interval=1.0)
    ClusterSimulation(arrivals, group(count=2, pages=48), tally, network()).run()
    sums = tally.figures()
    for name in ("jct_mean", "jct_p90", "slowdown_p90", "ttft_first_p99", "ttft_return_p50"):
        assert sums[name] == pytest.approx(rows[name]), name
    for name in ("programs", "turns", "prefilled_tokens", "prefix_hit_share", "longest_wait"):
        assert sums[name] == rows[name], name
    for part in ("queue", "prefill", "decode", "tool"):
        assert sums["wait_seconds"][part] == pytest.approx(rows["wait_seconds"][part])


def test_stopping_keeps_what_has_ended():
    from agentrt.bench.recorder import Recorder
    from agentrt.bench.records import RunRecord
    from agentrt.simulation.cluster import ClusterSimulation

    record = RunRecord("any", 0, "simulated", 1024, "tiny")
    arrivals = [(0.0, program("a", turn(8, 2))), (50.0, program("b", turn(8, 9, gap=1.0)))]
    simulation = ClusterSimulation(
        arrivals,
        group(count=2),
        Recorder(record),
        network(),
        stop=lambda: simulation.clock.now >= 50.0,
    )
    assert simulation.run() is False
    assert [(row.program, row.outcome) for row in record.programs] == [
        ("a", "finished"),
        ("b", "cancelled"),
    ]


def test_a_foretelling_is_told_returns_and_ends():
    from agentrt.simulation.future import Future
    from agentrt.simulation.programs import Foretelling
    from tests.bench.builders import COST

    future = Future()
    told = []
    watched = Foretelling(future, COST)
    one = program("a", turn(16, 2, gap=4.0), turn(32, 2, reused=18))
    serving = group(count=2)
    original = future.set_return

    def note(name: str, context: str, time: float) -> None:
        told.append(time)
        original(name, context, time)

    future.set_return = note  # type: ignore[method-assign]
    record = simulate([(0.0, one)], serving, foretell=watched)
    # Handed in, away until the second turn, handed in again.
    assert told == [0.0, record.turns[1].submitted, record.turns[1].submitted]
    assert future.remaining_seconds("a") == 0.0
