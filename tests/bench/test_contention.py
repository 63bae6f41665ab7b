"""The contention experiment without cgroups: curves, statistics, results, report, policies."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from agentrt.bench.contention import curves, replay_process, statistics
from agentrt.bench.contention.experiment import Experiment
from agentrt.bench.contention.policies import (
    POLICIES,
    OomdLike,
    Protection,
    Serialise,
    Static,
    explain,
    policy_names,
)
from agentrt.bench.contention.processes import replay_settings, spawn, wait_ready
from agentrt.bench.contention.report import render
from agentrt.bench.contention.results import Outcome, summarise
from agentrt.bench.contention.store import ContentionStore
from agentrt.bench.contention.summary import results_json
from agentrt.errors import ConfigError, SandboxError
from agentrt.resources.cgroup import read_layout

from .contention_samples import FLAT, MIB, TALL, bases, outcome, small_plan, write_curves


class TestCurves:
    def test_a_missing_file_names_the_flag(self, tmp_path):
        with pytest.raises(ConfigError, match="--curves DIR"):
            curves.load_curve(tmp_path, "dask-11628")

    @pytest.mark.parametrize(
        "text", ["{", "{}", '{"memory_curve": []}', '{"memory_curve": [[1, 2], [0, 2]]}', "[1]"]
    )
    def test_a_malformed_file_is_refused(self, tmp_path, text):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ConfigError, match="not a memory curve"):
            curves.load_curve(tmp_path, "x")

    def test_reads_what_it_says(self, tmp_path):
        write_curves(tmp_path, "x")
        curve = curves.load_curve(tmp_path, "x")
        assert curve.peak == 200 * MIB
        assert curve.seconds == 21.0
        assert curve.scaled(0.25).peak == 50 * MIB

    @pytest.mark.parametrize(
        ("text", "size"),
        [("1100M", 1100 * MIB), ("1.5G", 1536 * MIB), ("4096", 4096), ("2GiB", 2048 * MIB)],
    )
    def test_sizes(self, text, size):
        assert curves.parse_size(text) == size

    @pytest.mark.parametrize("text", ["", "M", "-1G", "0", "ten", "infM", "nan"])
    def test_what_is_no_size(self, text):
        with pytest.raises(ConfigError):
            curves.parse_size(text)

    def test_unknown_scenario(self):
        with pytest.raises(ConfigError, match="burst"):
            curves.scenario_named("nothing")

    @pytest.mark.requires_data
    def test_the_published_set(self, shared_data):
        directory = shared_data / "agentcgroup" / "contention"
        for scenario in curves.SCENARIOS.values():
            for role in scenario.roles:
                assert curves.load_curve(directory, role.curve).peak > 200 * MIB


class FakeTime:
    """A clock that a test moves; sleeping moves it as well."""

    def __init__(self):
        self.now = 100.0
        self.stops: list[tuple[float, float]] = []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        if self.stops and self.now >= self.stops[0][0]:
            self.now += self.stops.pop(0)[1]


@pytest.fixture
def fake_time(monkeypatch):
    clock = FakeTime()
    monkeypatch.setattr(replay_process, "time", clock)
    return clock


class TestReplay:
    def test_a_stop_delays_the_curve_by_its_whole_length(self, fake_time):
        pause = 0.005
        clock = replay_process.TraceClock(pause)
        fake_time.stops = [(100.5, 3.0)]
        clock.wait_until(1.0)
        assert fake_time.now == pytest.approx(104.0 - pause, abs=0.002)
        assert clock.stopped == pytest.approx(3.0 - pause, abs=0.002)

    def test_small_delays_are_caught_up(self, fake_time):
        clock = replay_process.TraceClock(0.005)
        fake_time.stops = [(100.2, 0.003), (100.4, 0.003)]
        clock.wait_until(1.0)
        assert clock.stopped == pytest.approx(0.0, abs=1e-9)
        assert fake_time.now == pytest.approx(101.0, abs=1e-6)

    def test_grows_by_chunks_and_gives_back_whole_ones(self):
        held = replay_process.Held(64 * MIB, replay_process.TraceClock(0.005))
        held.grow(70 * MIB + 1)
        assert held.size == 70 * MIB + 4096
        held.shrink(69 * MIB)
        assert held.size == 64 * MIB
        held.shrink(64 * MIB)
        assert held.size == 64 * MIB
        held.shrink(0)
        assert (held.size, held.peak) == (0, 70 * MIB + 4096)

    def test_the_process_holds_what_the_curve_says(self, tmp_path):
        settings = tmp_path / "settings.json"
        settings.write_text(json.dumps(replay_settings(FLAT, speed=20.0, scale=0.05)))
        replay = spawn("one", [], settings)
        try:
            wait_ready({"one": replay})
            assert replay.released is None
            replay.release(1.0)
            while not replay.done:
                replay.read(2.0)
        finally:
            replay.close()
        assert replay.survived
        assert replay.told["peak"] == pytest.approx(20 * MIB, abs=2 * 4096)
        assert len(replay.told["latencies"]) == 2
        assert replay.told["ended"] > replay.told["started"]

    def test_a_killed_one_says_so(self, tmp_path):
        settings = tmp_path / "settings.json"
        settings.write_text(json.dumps(replay_settings(TALL, speed=0.01, scale=0.05)))
        replay = spawn("one", [], settings)
        wait_ready({"one": replay})
        replay.release(1.0)
        replay.process.kill()
        while not replay.done:
            replay.read(2.0)
        replay.close()
        assert not replay.survived

    def test_one_that_cannot_start_is_an_error(self, tmp_path):
        replay = spawn("one", [tmp_path / "absent" / "cgroup.procs"], tmp_path / "none.json")
        with pytest.raises(SandboxError, match="did not start"):
            wait_ready({"one": replay})
        replay.close()


class TestStatistics:
    def test_an_interval_holds_the_mean(self):
        low, high = statistics.bootstrap([1.0, 2.0, 3.0, 4.0])
        assert 1.0 <= low < 2.5 < high <= 4.0

    def test_one_value_has_none(self):
        assert statistics.bootstrap([1.0]) is None

    def test_the_exact_test_counts_splits(self):
        # Of the 6 ways to split 1 2 / 8 9 in two pairs, two have means as far apart.
        assert statistics.permutation_p([1.0, 2.0], [8.0, 9.0]) == pytest.approx(2 / 6)

    def test_equal_sides_differ_by_chance(self):
        assert statistics.permutation_p([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 1.0

    def test_ten_against_ten_is_exact(self):
        left, right = [2.0 + 0.01 * n for n in range(10)], [4.0 + 0.01 * n for n in range(10)]
        assert statistics.permutation_p(left, right) == pytest.approx(2 / 184_756)

    def test_many_values_are_sampled(self):
        left, right = [1.0 + n for n in range(12)], [101.0 + n for n in range(12)]
        assert 0 < statistics.permutation_p(left, right) < 0.001

    def test_an_empty_side(self):
        assert statistics.permutation_p([], [1.0]) is None


class TestResults:
    def test_ratios_are_of_the_same_round(self):
        cells = [
            *bases(1, high=2.0, low=2.0, together=2.5),
            outcome("serialise", 1, 2.0, 4.0, 4.2),
            outcome("agentrt", 1, 2.1, 2.5, 3.0),
        ]
        found = summarise(cells, ["serialise", "agentrt"])["agentrt"]
        assert found["high_slowdown"] == pytest.approx(1.05)
        assert found["low_slowdown"] == pytest.approx(1.2)
        assert found["low_slowdown_alone"] == pytest.approx(1.5)
        assert found["low_slowdown_each"] == pytest.approx({"low1": 1.0, "low2": 1.2})
        assert found["total"] == pytest.approx(3.0)
        assert found["total_vs_serialise"] == pytest.approx(3.0 / 4.2)
        assert found["survivors"] == 3

    def test_one_that_was_killed_has_no_ratio_but_counts(self):
        cells = [
            *bases(1),
            *bases(2),
            outcome("serialise", 1, 2.0, 4.0, 4.0),
            outcome("none", 1, 2.0, None, 2.5),
            outcome("none", 2, None, 2.5, 2.5),
        ]
        found = summarise(cells, ["none"])["none"]
        assert (found["survivors"], found["runs_without_kill"], found["n"]) == (2, 0, 2)
        assert found["high_slowdown"] == pytest.approx(1.0)
        assert found["total_vs_serialise"] is None
        assert [row["high_slowdown"] for row in found["runs"]] == [1.0, None]

    def test_a_round_without_its_base_is_left_out(self):
        cells = [*bases(1), outcome("none", 1, 2, 2, 2), outcome("none", 2, 2, 2, 2)]
        assert summarise(cells, ["none", "static"])["none"]["n"] == 1

    def test_an_outcome_survives_json(self):
        one = outcome("none", 3, 2.0, None, 1.0)
        assert Outcome.from_json(json.loads(json.dumps(one.to_json()))) == one


class TestStore:
    def test_keeps_cells_and_refuses_others(self, tmp_path):
        plan = small_plan("none")
        store = ContentionStore(tmp_path / "out", plan.to_json())
        one = outcome("memory.low+high", 2, 1.0, 2.0, None)
        store.save(one)
        again = ContentionStore(tmp_path / "out", plan.to_json())
        assert again.load("memory.low+high", 2) == one
        assert again.load("memory.low+high", 3) is None
        with pytest.raises(ConfigError, match="--fresh"):
            ContentionStore(tmp_path / "out", small_plan("none", scale=0.2).to_json())
        fresh = ContentionStore(tmp_path / "out", small_plan().to_json(), fresh=True)
        assert fresh.load("memory.low+high", 2) is None

    def test_more_runs_or_policies_go_on_from_what_is_kept(self, tmp_path):
        ContentionStore(tmp_path, small_plan("none").to_json()).save(outcome("none", 1, 1, 1, 1))
        ContentionStore(tmp_path, small_plan("none", "static", runs=5).to_json())

    def test_a_damaged_file_is_named(self, tmp_path):
        store = ContentionStore(tmp_path, small_plan().to_json())
        store.path("none", 1).write_text("{")
        with pytest.raises(ConfigError, match=r"none-1\.json"):
            ContentionStore(tmp_path, small_plan().to_json())


class TestOrder:
    def test_every_round_has_its_bases_and_each_policy_once(self, tmp_path):
        plan = small_plan("none", "static", "serialise", runs=2)
        experiment = Experiment(plan, ContentionStore(tmp_path, plan.to_json()))
        cells = [(name, number) for name, number, _ in experiment._cells()]
        assert len(cells) == experiment.planned == 2 * (3 + 1 + 3)
        assert len(set(cells)) == len(cells)
        policies = [name for name, number in cells if number == 2][4:]
        assert sorted(policies) == sorted(plan.policies)
        assert policies != [name for name, number in cells if number == 1][4:]

    def test_a_stop_before_the_first_cell(self, tmp_path):
        plan = small_plan("none")
        store = ContentionStore(tmp_path, plan.to_json())
        assert Experiment(plan, store, stop=lambda: True).run() == []


class FakeGroup:
    def __init__(self):
        self.alive = True

    def populated(self):
        return self.alive

    def kill(self):
        self.alive = False


class FakeArena:
    """Takes writes down; usage and stall are what a test says."""

    def __init__(self, on_v2=True):
        self.on_v2 = on_v2
        self.written: dict[tuple[str, str], object] = {}
        self.used: dict[str | None, int] = {}
        self.stalled: float | None = 0.0
        self.groups = {name: FakeGroup() for name in ("high", "low1", "low2")}

    def set_max(self, name, size):
        self.written[name, "max"] = size

    def set_high(self, name, size):
        assert self.on_v2
        self.written[name, "high"] = size

    def set_low(self, name, size):
        assert self.on_v2
        self.written[name, "low"] = size

    def set_soft(self, name, size):
        assert not self.on_v2
        self.written[name, "soft"] = size

    def usage(self, name=None):
        return self.used.get(name, 0)

    def stall(self):
        return self.stalled


class TestPolicies:
    def test_names(self):
        assert policy_names("all") == list(POLICIES)
        assert policy_names("none, serialise,none") == ["none", "serialise"]
        for text in ("", "none,magic"):
            with pytest.raises(ConfigError):
                policy_names(text)

    @pytest.mark.parametrize("on_v2", [True, False])
    def test_each_says_what_it_does(self, on_v2):
        assert len({explain(name, on_v2) for name in POLICIES}) == len(POLICIES)

    def test_static_divides_the_limit(self):
        arena = FakeArena()
        Static(small_plan().setting()).prepare(arena)
        share = small_plan().limit // 3
        assert arena.written == {(name, "max"): share for name in ("high", "low1", "low2")}

    def test_protection_on_v2(self):
        arena = FakeArena()
        Protection(small_plan().setting()).prepare(arena)
        assert arena.written["low1", "high"] == 30 * MIB
        assert arena.written["high", "low"] == small_plan().limit

    def test_protection_on_v1_has_soft_limits_only(self):
        arena = FakeArena(on_v2=False)
        Protection(small_plan().setting()).prepare(arena)
        assert {limit for _, limit in arena.written} == {"soft"}

    def test_serialise_lets_the_low_ones_begin_when_the_high_one_ended(self):
        policy = Serialise(small_plan().setting())
        assert policy.begin(0.0) == ["high"]
        assert policy.ended("high", 1.0) == ["low1", "low2"]
        assert list(policy.ended("low1", 2.0)) == []

    def oomd(self):
        policy, arena = OomdLike(small_plan().setting()), FakeArena()
        policy.prepare(arena)
        return policy, arena

    def test_oomd_kills_the_largest_low_one_by_use(self):
        policy, arena = self.oomd()
        arena.used = {None: 50 * MIB, "high": 99 * MIB, "low1": 20 * MIB, "low2": 30 * MIB}
        policy.tick(0.0)
        assert policy.kills == []
        arena.used[None] = 96 * MIB
        policy.tick(0.1)
        assert policy.kills == ["low2"]

    def test_oomd_waits_for_its_victim_to_be_gone(self):
        policy, arena = self.oomd()
        arena.groups["low2"].kill = lambda: None
        arena.used = {None: 99 * MIB, "low2": 30 * MIB}
        policy.tick(0.0)
        policy.tick(0.1)
        assert policy.kills == ["low2"]

    def test_oomd_kills_by_lasting_pressure(self):
        policy, arena = self.oomd()
        window = OomdLike.PRESSURE_SECONDS
        for second in range(int(window) + 2):
            arena.stalled = 0.7 * second
            policy.tick(float(second))
        assert len(policy.kills) == 1

    def test_oomd_leaves_a_short_stall_alone(self):
        policy, arena = self.oomd()
        for second in range(100):
            arena.stalled = min(5.0, float(second))
            policy.tick(float(second))
        assert policy.kills == []


class _Text(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.words, self.links = [], []
        self.feed(text)

    def handle_data(self, data):
        self.words.append(data)

    def handle_starttag(self, tag, attrs):
        self.links += [value for key, value in attrs if key in ("src", "href")]


class TestReport:
    def results(self, cells, plan):
        about = {"command": "agentrt <b>", "machine": {"cpus": 2}, "created": "today"}
        return results_json(plan, cells, layout=read_layout(), about=about)

    def test_shows_every_policy_and_asks_the_network_for_nothing(self):
        plan = small_plan("none", "serialise", "agentrt")
        cells = [
            *bases(1),
            outcome("none", 1, 2.0, None, 2.0),
            outcome("serialise", 1, 2.0, 4.0, 4.0),
            outcome("agentrt", 1, 2.0, 2.5, 2.6),
        ]
        results = self.results(cells, plan)
        assert results["complete"]
        page = _Text(render(results, cells))
        text = " ".join(page.words)
        for part in (*plan.policies, "2/3", "3/3", "killed: low1", "agentrt <b>", "0.65x"):
            assert part in text
        assert all(link.startswith("#") for link in page.links)

    def test_an_interrupted_experiment_says_so(self):
        plan = small_plan("none", runs=2)
        results = self.results([*bases(1), outcome("none", 1, 1, 1, 1)], plan)
        assert not results["complete"]
        assert "Interrupted" in render(results, [outcome("none", 1, 1, 1, 1)])

    def test_nothing_measured_yet(self):
        results = self.results([], small_plan("none"))
        assert "No run has ended yet" in render(results, [])
