"""The network, the tool hosts, drawn programs and memory curves, each by itself."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.bench.workload import Tool
from agentrt.errors import ConfigError, InternalError
from agentrt.simulation.network import Network
from agentrt.simulation.programs import ProgramRun
from agentrt.simulation.synthesis import origin, resample
from agentrt.simulation.toolhosts import ToolCall, ToolHosts
from agentrt.simulation.toolmemory import MemoryCurves, tool_memory
from tests.bench.builders import program, small_workload, turn


def call(name: str, memory: int = 0, since: float = 0.0, turn_id: str = "") -> ToolCall:
    run = ProgramRun(program(name, turn(8, 2)), 0.0)
    return ToolCall(name, turn_id or name, memory, run, since)


class TestNetwork:
    def test_a_transfer_takes_its_bytes_and_the_latency(self):
        wire = Network(1000.0, 0.5, token_bytes=10)
        assert wire.send("a", "b", 100, now=1.0) == 2.5

    def test_transfers_wait_for_either_end_and_directions_are_apart(self):
        wire = Network(1000.0, 0.0, token_bytes=10)
        assert wire.send("a", "b", 100, now=0.0) == 1.0
        assert wire.send("a", "c", 100, now=0.0) == 2.0
        assert wire.send("d", "c", 100, now=0.0) == 3.0
        assert wire.send("c", "a", 100, now=0.0) == 1.0
        assert wire.statistics().transfers == 4
        assert wire.statistics().tokens == 400
        assert wire.statistics().seconds == 7.0

    def test_a_network_without_bandwidth_is_refused(self):
        with pytest.raises(ConfigError):
            Network(0.0, 0.0, 1)


class TestToolHosts:
    def test_calls_wait_for_a_slot_in_order(self):
        hosts = ToolHosts(1, slots=1, memory=None)
        first, second, third = (call(name, since=float(at)) for at, name in enumerate("abc"))
        assert hosts.begin(first)
        assert not hosts.begin(second)
        assert not hosts.begin(third)
        assert hosts.end(first, 5.0) == [second]
        assert hosts.end(second, 7.0) == [third]
        assert hosts.statistics().wait_seconds == (5.0 - 1.0) + (7.0 - 2.0)
        assert hosts.statistics().longest_wait == 5.0

    def test_calls_wait_for_memory_and_a_small_one_does_not_overtake(self):
        hosts = ToolHosts(1, slots=None, memory=100)
        first, large, small = call("a", 60), call("b", 60), call("c", 10)
        assert hosts.begin(first)
        assert not hosts.begin(large)
        assert not hosts.begin(small)
        assert hosts.end(first, 1.0) == [large, small]

    def test_a_call_larger_than_the_host_runs_there_alone(self):
        hosts = ToolHosts(1, slots=None, memory=100)
        assert hosts.begin(call("big", 500))
        assert not hosts.begin(call("a", 1))
        hosts.check_integrity()

    def test_programs_are_spread_over_hosts_and_stay_there(self):
        hosts = ToolHosts(2, slots=1, memory=None)
        assert hosts.begin(call("a"))
        assert hosts.begin(call("b"))
        assert not hosts.begin(call("a", turn_id="a/1"))

    def test_ending_what_does_not_run_is_a_bug(self):
        with pytest.raises(InternalError):
            ToolHosts(1, 1, None).end(call("a"), 0.0)

    @pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
    def test_hosts_without_room_are_refused(self, sizes):
        with pytest.raises(ConfigError):
            ToolHosts(*sizes)

    @settings(max_examples=60, deadline=None)
    @given(
        memories=st.lists(st.integers(0, 120), min_size=1, max_size=12),
        slots=st.integers(1, 3),
        hosts=st.integers(1, 3),
        ends=st.randoms(use_true_random=False),
    )
    def test_every_call_runs_once_within_the_room(self, memories, slots, hosts, ends):
        made = ToolHosts(hosts, slots, 100)
        calls = [call(f"p{at}", memory) for at, memory in enumerate(memories)]
        running = [one for one in calls if made.begin(one)]
        seen = list(running)
        while running:
            made.check_integrity()
            started = made.end(running.pop(ends.randrange(len(running))), 1.0)
            running += started
            seen += started
        assert sorted(one.turn_id for one in seen) == sorted(one.turn_id for one in calls)


class TestSynthesis:
    def test_drawn_programs_are_recorded_ones_under_names_of_their_own(self):
        recorded = small_workload().programs
        drawn = resample(recorded, 50, seed=3)
        assert len({one.program for one in drawn}) == 50
        by_name = {one.program: one for one in recorded}
        for one in drawn:
            assert replace(one, program=origin(one.program)) == by_name[origin(one.program)]

    def test_the_seed_decides(self):
        recorded = small_workload().programs
        assert resample(recorded, 20, 1) == resample(recorded, 20, 1)
        assert resample(recorded, 20, 1) != resample(recorded, 20, 2)

    def test_no_program_is_refused(self):
        with pytest.raises(ConfigError, match="--programs"):
            resample(small_workload().programs, 0, 0)


class TestToolMemory:
    def test_what_was_recorded_then_the_curve_then_the_default(self, tmp_path):
        rows = [
            {"program": "a", "memory_curve": [[0, 10], [1, 50], [2, 20], [9, 70]]},
            {"program": "b", "memory_curve": []},
        ]
        path = tmp_path / "load.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        needed = tool_memory(MemoryCurves.read(path), default=7)
        at_one = replace(turn(8, 2, gap=1.5), at=0.0, seconds=0.5)
        recorded = replace(at_one, tools=(Tool("bash", peak_memory=33),))
        assert needed(program("a::5", at_one), 0) == 50
        assert needed(program("a", recorded), 0) == 33
        assert needed(program("b", at_one), 0) == 7
        assert needed(program("a", turn(8, 2)), 0) == 7

    def test_before_the_first_and_after_the_last_sample(self):
        curves = MemoryCurves({"a": [(1.0, 10), (2.0, 20)]})
        assert curves.peak("a", 0.0, 0.5) == 10
        assert curves.peak("a", 5.0, 9.0) == 20
        assert curves.peak("b", 0.0, 1.0) is None
