"""How many threads: what the machine allows, and what step times show."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.engine.backend import StepHandle
from agentrt.engine.pace import PacedBackend, allowed_threads, cpu_quota
from agentrt.engine.tuner import ThreadTuner, TunerConfig
from agentrt.scheduling.plan import SeqSlice, StepPlan, StepResult
from agentrt.waiting import wait_passively

CONFIG = TunerConfig()


class Machine:
    """Seconds of a step by threads: work shared evenly, or waiting for a processor that is busy."""

    def __init__(self, processors=2, seed=0):
        self.processors, self.busy = processors, 0
        self._random = random.Random(seed)

    def seconds(self, tokens, threads):
        work = 0.01 + 0.001 * tokens
        alone = work / min(threads, self.processors)
        free = self.processors - self.busy
        slowed = alone * (4 if threads > free else 1)
        return slowed * self._random.uniform(1.0, 1.1)

    def run(self, tuner, steps, tokens=8):
        total = 0.0
        for _ in range(steps):
            seconds = self.seconds(tokens, tuner.threads)
            total += seconds
            tuner.observe(tokens, 512, seconds)
        return total / steps


class TestTuner:
    def test_a_quiet_machine_keeps_all_threads(self):
        tuner, machine = ThreadTuner(8), Machine(8)
        for _ in range(3000):
            tuner.observe(8, 512, machine.seconds(8, tuner.threads))
            assert tuner.threads == 8

    def test_a_neighbour_halves_them_and_its_end_brings_them_back(self):
        tuner, machine = ThreadTuner(2), Machine(2)
        quiet = machine.run(tuner, 50)
        machine.busy = 1
        machine.run(tuner, 12)
        assert tuner.threads == 1
        assert machine.run(tuner, 2000) <= 2.4 * quiet  # one of two processors, and the probes
        machine.busy = 0
        machine.run(tuner, CONFIG.longest_rest + 20)
        assert tuner.threads == 2
        assert machine.run(tuner, 100) <= 1.1 * quiet

    def test_one_long_step_changes_nothing(self):
        tuner = ThreadTuner(4)
        for index in range(200):
            tuner.observe(8, 512, 0.5 if index % 20 == 0 else 0.01)
            assert tuner.threads == 4

    def test_larger_steps_are_not_taken_for_slow_ones(self):
        tuner, machine = ThreadTuner(4), Machine(4)
        for tokens in (1, 1, 1, 512, 512, 512, 64, 64, 64, 1, 1, 1) * 40:
            tuner.observe(tokens, 100 * tokens, machine.seconds(tokens, tuner.threads))
            assert tuner.threads == 4

    def test_trials_that_never_help_become_rare(self):
        """All steps slow on any number of threads: half of them must not be worse for it."""
        tuner = ThreadTuner(2)
        for _ in range(20):
            tuner.observe(8, 512, 0.01)
        elsewhere = 0
        for _ in range(5000):
            elsewhere += tuner.threads == 1
            tuner.observe(8, 512, 0.04 if tuner.threads == 2 else 0.08)
        assert elsewhere <= 100

    @given(seed=st.integers(0, 1000), slowdown=st.floats(1.5, 4.0))
    @settings(deadline=None, max_examples=40)
    def test_a_machine_that_is_slow_for_a_while_keeps_its_threads(self, seed, slowdown):
        """Everything is slower, from any step on and for as long: fewer threads are no help."""
        tuner, machine, chance = ThreadTuner(2), Machine(2, seed), random.Random(seed)
        fewer = 0
        for _ in range(20):
            pace = chance.choice([1.0, slowdown])
            for _ in range(chance.randint(1, 60)):
                fewer += tuner.threads == 1
                tuner.observe(8, 512, pace * machine.seconds(8, tuner.threads))
        assert fewer <= 60  # of about 600; trials included

    def test_one_thread_stays_one(self):
        tuner = ThreadTuner(1)
        for seconds in (0.01, 1.0, 1.0, 1.0, 1.0):
            assert tuner.observe(8, 512, seconds) == 1

    @given(
        most=st.integers(-1, 64),
        steps=st.lists(
            st.tuples(st.integers(0, 600), st.integers(0, 10**6), st.floats(0, 100)), max_size=300
        ),
    )
    @settings(deadline=None)
    def test_the_number_stays_in_its_bounds(self, most, steps):
        tuner = ThreadTuner(most)
        for step in steps:
            assert 1 <= tuner.observe(*step) <= max(1, most)
            assert tuner.threads == tuner.threads

    @given(
        processors=st.sampled_from([2, 4, 8]),
        phases=st.lists(st.tuples(st.booleans(), st.integers(20, 1500)), max_size=6),
        seed=st.integers(0, 1000),
    )
    @settings(deadline=None, max_examples=40)
    def test_it_settles_on_the_best_number_after_any_history(self, processors, phases, seed):
        tuner, machine = ThreadTuner(processors), Machine(processors, seed)
        machine.run(tuner, 10)
        for busy, steps in phases:
            machine.busy = processors // 2 if busy else 0
            machine.run(tuner, steps)
        machine.busy = 0
        machine.run(tuner, 4 * CONFIG.longest_rest)
        assert machine.run(tuner, 200) <= 1.2 * machine.seconds(8, processors)


class Steps:
    """A backend that notes on how many threads it ran."""

    def __init__(self, times):
        self.threads = []
        self._times = times

    def launch(self, plan):
        self.threads.append(torch.get_num_threads())
        return StepHandle(plan)

    def wait(self, handle):
        return StepResult()


def test_the_backend_runs_on_what_the_tuner_says():
    took = [0.01 if step < 4 else 0.5 for step in range(12)]
    # Each step's clock is read before and after the launch, and before and after the wait.
    clock = iter(x for i in range(12) for x in (i, i + took[i] / 2, i + 0.6, i + 0.6 + took[i] / 2))
    inner = Steps([])
    before = torch.get_num_threads()
    try:
        paced = PacedBackend(inner, ThreadTuner(2), lambda: next(clock))
        for _ in range(12):
            paced.run(StepPlan((SeqSlice("a", 5, 1, [0], True),)))
    finally:
        torch.set_num_threads(before)
    assert inner.threads[:7] == [2] * 7
    assert inner.threads[7:12] == [1, 2, 1, 2, 1]  # in turns


class TestQuota:
    @pytest.fixture
    def tree(self, tmp_path):
        """``make(version, path, {group: quota}) -> quota that is read``."""

        def make(version, path, quotas, lines=None):
            root, proc = tmp_path / "cg", tmp_path / "proc"
            proc.mkdir(exist_ok=True)
            for group, (quota, period) in quotas.items():
                (root / group).mkdir(parents=True, exist_ok=True)
                if version == 2:
                    (root / group / "cpu.max").write_text(f"{quota} {period}\n")
                else:
                    (root / group / "cpu.cfs_quota_us").write_text(f"{quota}\n")
                    (root / group / "cpu.cfs_period_us").write_text(f"{period}\n")
            line = f"0::/{path}" if version == 2 else f"4:cpuset:/x\n3:cpu,cpuacct:/{path}"
            (proc / "cgroup").write_text(f"{line}\n")
            kind = "cgroup2 rw,nosuid" if version == 2 else "cgroup rw,cpu,cpuacct"
            mounts = tmp_path / "mounts"
            mounts.write_text(f"none /proc proc rw 0 0\ncgroup {root} {kind} 0 0\n")
            return cpu_quota(proc, mounts), allowed_threads(proc, mounts)

        return make

    @pytest.mark.parametrize("version", [1, 2])
    def test_the_least_on_the_way_up_counts(self, tree, version):
        quota, threads = tree(
            version, "a/b", {"": (800000, 100000), "a": (50000, 100000), "a/b": (300000, 100000)}
        )
        assert quota == 0.5
        assert threads == 1

    def test_no_quota_is_none(self, tree):
        assert tree(2, "a", {"a": ("max", 100000)})[0] is None
        assert tree(1, "c", {"c": (-1, 100000)})[0] is None

    def test_what_is_mounted_may_begin_at_our_own_group(self, tree):
        assert tree(2, "docker/abc", {"": (250000, 100000)})[0] == 2.5

    def test_nothing_to_read_is_no_quota(self, tmp_path):
        assert cpu_quota(tmp_path, tmp_path / "mounts") is None
        assert allowed_threads(tmp_path, tmp_path / "mounts") >= 1


def test_waiting_is_passive_unless_the_user_has_said_how():
    quiet: dict[str, str] = {}
    wait_passively(quiet)
    assert quiet == {"OMP_WAIT_POLICY": "passive"}
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        said = {name: "7"}
        wait_passively(said)
        assert said == {name: "7"}
