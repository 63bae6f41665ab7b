"""Our sched_ext scheduler: shares, limits, classes, holds, and that it never takes the machine."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentrt.errors import BackendUnavailable
from agentrt.resources.scx import (
    AgentScheduler,
    SchedulingClass,
    SchedulingFlag,
    SchedulingSettings,
    scheduling_state,
)
from tests.vm.conftest import WAIT, Group, middle_shares, shares, until

pytestmark = pytest.mark.requires_scx
MB = 1 << 20


@pytest.fixture(scope="class")
def scheduler() -> Iterator[AgentScheduler]:
    """Attached for the tests of one class; must survive them."""
    scheduler = AgentScheduler()
    yield scheduler
    ending = scheduler.ending()
    scheduler.close()
    until(lambda: scheduling_state().state == "disabled")
    assert ending == "", "it was ejected"


@pytest.mark.one_cpu
class TestShares:
    """On one CPU: with several, who runs where has a say in it too."""

    def test_weights(self, scheduler: AgentScheduler, group: Group, measured: Callable[..., None]):
        small, large = group.child("small"), group.child("large")
        small.write("cpu.weight", 100)
        large.write("cpu.weight", 300)
        with small.hog(), large.hog():
            until(lambda: large.cpu_seconds() > 0.5)
            runs = [shares([small, large], 4.0) for _ in range(3)]
        errors = [abs(large_ / (small_ + large_) - 0.75) / 0.75 for small_, large_ in runs]
        measured(share_errors=[round(error, 4) for error in errors])
        assert sorted(errors)[1] <= 0.03

    def test_weights_hold_whatever_the_number_of_tasks(
        self, scheduler: AgentScheduler, group: Group, measured: Callable[..., None]
    ):
        many, one = group.child("many"), group.child("one")
        with contextlib.ExitStack() as stack:
            for where in (many, many, many, one):
                stack.enter_context(where.hog())
            until(lambda: one.cpu_seconds() > 0.5)
            runs = [shares([many, one], 2.5) for _ in range(3)]
        # The middle one: a moment of the machine's own work weighs much in a short interval.
        share = sorted(of_one / (of_many + of_one) for of_many, of_one in runs)[1]
        measured(share_of_one_task_against_three=round(share, 4))
        assert share == pytest.approx(0.5, rel=0.05)

    def test_weights_of_ancestors_count(
        self, scheduler: AgentScheduler, group: Group, measured: Callable[..., None]
    ):
        left, right = group.child("left", inner=True), group.child("right", inner=True)
        left.write("cpu.weight", 200)
        right.write("cpu.weight", 100)
        tools = [left.child("a"), right.child("b"), right.child("c")]
        with contextlib.ExitStack() as stack:
            for tool in tools:
                stack.enter_context(tool.hog())
            until(lambda: tools[2].cpu_seconds() > 0.3)
            a, b, c = middle_shares(tools, 3.0)
        total = a + b + c
        measured(nested=[round(x / total, 4) for x in (a, b, c)])
        assert a / total == pytest.approx(4 / 6, rel=0.06)
        assert b / total == pytest.approx(1 / 6, rel=0.15)

    def test_a_weight_changed_while_it_runs(self, scheduler: AgentScheduler, group: Group):
        one, other = group.child("one"), group.child("other")
        with one.hog(), other.hog():
            until(lambda: other.cpu_seconds() > 0.3)
            one.write("cpu.weight", 900)
            runs = [shares([one, other], 1.5) for _ in range(3)]
        changed = sorted(of_one / (of_one + of_other) for of_one, of_other in runs)[1]
        assert changed == pytest.approx(0.9, rel=0.05)

    def test_cpu_max(self, scheduler: AgentScheduler, group: Group, measured: Callable[..., None]):
        tool = group.child("tool")
        tool.write("cpu.max", "30000 100000")
        with tool.hog():
            until(lambda: tool.cpu_seconds() > 0.3)
            runs = [shares([tool], 3.5)[0] for _ in range(3)]
            tool.write("cpu.max", "max 100000")
            [free] = shares([tool], 2.0)
        measured(cpu_max_of_30_percent=[round(run, 4) for run in runs])
        assert sorted(runs)[1] == pytest.approx(0.3, rel=0.1)
        assert free > 0.6
        assert scheduler.statistics().throttled > 0

    def test_cpu_max_of_an_ancestor(self, scheduler: AgentScheduler, group: Group):
        group.write("cpu.max", "30000 100000")
        with group.child("a").hog(), group.child("b").hog():
            until(lambda: group.cpu_seconds() > 0.5)
            [used] = middle_shares([group], 2.5)
        assert used == pytest.approx(0.3, rel=0.1)

    def test_held_runs_only_between_bounded_holds(
        self, scheduler: AgentScheduler, group: Group, measured: Callable[..., None]
    ):
        held, free = group.child("held"), group.child("free")
        with held.hog(), free.hog():
            until(lambda: held.cpu_seconds() > 0.2)
            scheduler.set_class(held.id, SchedulingClass.HELD)
            of_held, of_free = shares([held, free], 4.0)
            scheduler.clear_class(held.id)
            again, _ = middle_shares([held, free], 2.0)
        measured(held_share=round(of_held, 4))
        assert 0.01 < of_held < 0.3
        assert of_free > 0.6
        assert again == pytest.approx(0.5, abs=0.1)
        assert scheduler.statistics().held > 0

    def test_boosted_gets_more_than_its_weight(self, scheduler: AgentScheduler, group: Group):
        boosted, normal = group.child("boosted"), group.child("normal")
        with boosted.hog(), normal.hog():
            scheduler.set_class(boosted.id, SchedulingClass.BOOSTED)
            until(lambda: boosted.cpu_seconds() > 0.5)
            of_boosted, of_normal = middle_shares([boosted, normal], 2.5)
        assert of_boosted / (of_boosted + of_normal) == pytest.approx(0.8, rel=0.1)

    def test_a_latency_thread_runs_at_once_and_not_alone(
        self, scheduler: AgentScheduler, group: Group, measured: Callable[..., None]
    ):
        tool = group.child("tool")

        def lateness() -> list[float]:
            late = []
            for _ in range(40):
                due = time.monotonic() + 0.01
                time.sleep(0.01)
                late.append(time.monotonic() - due)
            return sorted(late)

        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(tool.hog())
            until(lambda: tool.cpu_seconds() > 0.5)
            ordinary = lateness()
            scheduler.add_latency_thread(threading.get_native_id())
            quick = lateness()
            scheduler.remove_latency_thread(threading.get_native_id())
        measured(late_median=round(quick[20], 5), ordinary_median=round(ordinary[20], 5))
        assert scheduler.statistics().latency > 0
        # It computes for ever: the tool call must still get on.
        busy = group.child("busy")
        with busy.hog() as spinner, tool.hog():
            scheduler.add_latency_thread(spinner.pid)
            until(lambda: busy.cpu_seconds() > 0.5)
            [of_tool] = shares([tool], 3.0)
            scheduler.remove_latency_thread(spinner.pid)
        assert of_tool > 0.02


class TestFaults:
    def test_a_stalled_task_brings_the_default_scheduler_back(self, group: Group):
        tool = group.child("tool")
        scheduler = AgentScheduler()
        assert scheduler.state().is_ours
        # Past what the settings allow: a hold longer than the watchdog waits.
        hour = struct.pack("=IIQQQQQ", 1 << 20, 0, 5_000_000, 3600 * 10**9, 1, 1, 1)
        scheduler._object.maps["policies"].set(struct.pack("=Q", tool.id), struct.pack("=II", 2, 0))
        scheduler._object.maps["settings"].set(bytes(4), hour)
        with tool.hog():
            until(lambda: scheduling_state().state == "disabled")
            assert "stall" in scheduler.ending()
            before = tool.cpu_seconds()
            until(lambda: tool.cpu_seconds() > before + 0.1)
        scheduler.close()

    def test_it_ends_with_the_process_that_attached_it(self):
        child = os.fork()
        if child == 0:
            AgentScheduler()
            os._exit(0 if scheduling_state().is_ours else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0
        until(lambda: scheduling_state().state == "disabled")

    def test_only_one_at_a_time(self, scheduler: AgentScheduler):
        with pytest.raises(BackendUnavailable, match="Another sched_ext scheduler"):
            AgentScheduler()

    def test_a_hold_longer_than_the_watchdog_is_refused(self):
        with pytest.raises(ValueError, match="a hold lasts up to"):
            SchedulingSettings(hold=10.0)

    def test_a_killed_group_dies_while_it_is_held(self, scheduler: AgentScheduler, group: Group):
        tool = group.child("tool")
        with tool.hog() as hog:
            until(lambda: tool.cpu_seconds() > 0.1)
            scheduler.set_class(tool.id, SchedulingClass.HELD)
            until(lambda: scheduler.statistics().held > 0)
            tool.write("cgroup.kill", 1)
            assert hog.wait(WAIT) == -9

    def test_groups_and_tasks_that_come_and_go(self, scheduler: AgentScheduler, group: Group):
        for number in range(5):
            tool = group.child(f"tool-{number}")
            with tool.start("/bin/sh", "-c", "/bin/true; /bin/true & wait") as process:
                assert process.wait(WAIT) == 0
            tool.remove()
        assert scheduler.state().is_ours


def test_pinned_tasks_run_where_they_are_pinned(scheduler: AgentScheduler, group: Group):
    """Tasks that may use one CPU only wait in the same queue as the others."""
    cpus = sorted(os.sched_getaffinity(0))
    free = group.child("free")
    pinned = [group.child(f"cpu{cpu}") for cpu in cpus]
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(free.hog())
        for where, cpu in zip(pinned, cpus, strict=True):
            stack.enter_context(where.hog(cpu))
        used = shares(pinned, 5.0)
    assert min(used) > 0.15


def test_growth_during_anothers_memory_pressure_is_held_in_the_kernel(
    group: Group, measured: Callable[..., None]
):
    """Both share a limit; the protected one has to reclaim; the other one grows, and is held."""
    group.write("memory.max", 56 * MB)
    protected, low = group.child("protected"), group.child("low")
    scheduler = AgentScheduler(SchedulingSettings(hold=1.0, grace=0.05, growth=1 * MB))
    assert scheduler.scoped_pressure
    scheduler.set_class(protected.id, flags=SchedulingFlag.PROTECTED)
    scheduler.set_class(low.id, flags=SchedulingFlag.YIELDS)
    # Page cache within the shared limit is what there is to reclaim, again and again.
    libraries = Path("/usr/lib/x86_64-linux-gnu").glob("lib*.so*")
    large = max(libraries, key=lambda file: file.stat().st_size if file.exists() else 0)
    assert large.stat().st_size > 56 * MB
    reader = f"while :; do cat {large} > /dev/null; done"
    with protected.start("/bin/sh", "-c", reader) as reading:
        until(lambda: group.stat("memory.events")["max"] > 0)
        with low.allocator(20 * MB, 0.02) as growing:
            until(lambda: scheduler.statistics().pressed > 0)
            until(lambda: scheduler.statistics().held > 0)
            reading.kill()
            # It is held, never lost: with the pressure gone it finishes.
            assert growing.stdout is not None
            assert growing.stdout.readline() == "done\n"
    counted = scheduler.statistics()
    measured(pressed=counted.pressed, held=counted.held, released=counted.released)
    assert scheduler.ending() == ""
    scheduler.close()
