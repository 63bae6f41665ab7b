"""The driver on a fake machine, in its own thread, with a clock that stands still."""

from __future__ import annotations

import os
import threading

import pytest

from agentrt.resources import control_events as ev
from agentrt.resources.cgroup import CgroupTree
from agentrt.resources.control_config import ControllerConfig
from agentrt.resources.driver import Driver
from agentrt.resources.tickets import Ticket
from agentrt.sandbox import Limits
from tests.sandbox.fake_cgroups import fake_machine

MIB = 1 << 20


class Bench:
    """A driver whose thread is not started: what it would do is done by hand."""

    def __init__(self, place, kind: str = "v2", **settings) -> None:
        self.files = fake_machine(place, kind)
        self.tree = CgroupTree("r1", self.files.layout, self.files)
        self.tree.open()
        self.now = 100.0
        known = {"can_throttle": kind == "v2", "can_reclaim": kind == "v2", "margin": 0}
        config = ControllerConfig(memory=1000 * MIB, horizon=0.1, **{**known, **settings})
        self.driver = Driver(config, lambda: self.now)
        self.progress: list[tuple[str, str]] = []

    def ticket(self, name: str, claim: int, tenant: str = "t", **more) -> Ticket:
        spec = ev.CallSpec(name, claim * MIB, tenant=tenant, program="p", **more)
        made = Ticket(spec, on_progress=lambda kind: self.progress.append((name, kind)))
        self.driver.request(made)
        return made

    def start(self, made: Ticket):
        group = self.tree.tool("p", f"tool-{made.call}", Limits())
        made.kill_group = group.kill
        self.driver.attach(made, group.control)
        return group

    def use(self, group, size: int) -> None:
        for path in group.paths:
            for name in ("memory.current", "memory.usage_in_bytes"):
                if (path / name).exists():
                    (path / name).write_text(str(size * MIB))

    def look(self, seconds: float = 0.1) -> None:
        self.now += seconds
        self.driver._sample()
        self.driver._speak()
        self.driver.check_integrity()


def read(group, name: str) -> str:
    return next((p / name).read_text() for p in group.paths if (p / name).exists())


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.driver.close()


def contended(bench: Bench):
    """Two calls that together want more than there is; the low one grows into the limit."""
    high = bench.ticket("high", 600, priority=ev.HIGH)
    low = bench.ticket("low", 600, priority=ev.LOW)
    groups = bench.start(high), bench.start(low)
    for size in (100, 250, 390):
        bench.use(groups[0], 550)
        bench.use(groups[1], size)
        bench.look()
    return high, low, groups


def test_a_call_that_fits_is_admitted_at_once(bench) -> None:
    made = bench.ticket("a", 300)
    assert made.admitted
    assert made.reserved == 300 * MIB
    bench.start(made)
    report = bench.driver.ended(made)
    assert report.state == "running"
    assert bench.driver.statistics().running == 0


def test_the_lesser_call_is_frozen_and_goes_on_later(bench) -> None:
    high, low, (_, group) = contended(bench)
    assert low.frozen
    assert not high.frozen
    assert read(group, "cgroup.freeze") == "1"
    assert ("low", "frozen") in bench.progress
    assert low.winner == "a tool call of p"
    bench.now += 0.1
    bench.driver.ended(high)
    bench.look()
    assert not low.frozen
    assert read(group, "cgroup.freeze") == "0"
    report = bench.driver.ended(low)
    assert report.frozen == pytest.approx(0.1)
    assert report.freezes == 1


def test_another_tenant_is_not_named(tmp_path) -> None:
    bench = Bench(tmp_path)
    one, other = bench.ticket("a", 10), bench.ticket("b", 10, tenant="u")
    assert other.called(one) == "another tenant's tool call"
    assert one.called(None) is None
    bench.driver.close()


def test_closing_leaves_nothing_frozen(bench) -> None:
    _, low, (_, group) = contended(bench)
    assert low.frozen
    bench.driver.close()
    assert read(group, "cgroup.freeze") == "0"


def test_a_new_controller_adopts_what_runs(bench) -> None:
    high, low, _ = contended(bench)
    waiting = bench.ticket("late", 900, priority=ev.LOW)
    assert not waiting.admitted
    bench.driver.restart()
    figures = bench.driver.statistics()
    assert (figures.running + figures.frozen, figures.waiting) == (2, 1)
    assert figures.used == (550 + 390) * MIB
    assert not low.frozen
    bench.driver.check_integrity()
    bench.driver.ended(high)
    bench.driver.ended(low)
    assert waiting.admitted


def test_a_controller_that_fails_is_replaced_and_then_given_up(bench, monkeypatch, caplog) -> None:
    _, low, (_, group) = contended(bench)
    assert low.frozen
    waiting = bench.ticket("late", 900)

    def broken(self, event, now):
        raise ZeroDivisionError

    monkeypatch.setattr("agentrt.resources.controller.Controller.handle", broken)
    for _ in range(5):
        bench.now += 1
        bench.driver.pressure()
    assert bench.driver.health == "given up"
    assert read(group, "cgroup.freeze") == "0"
    assert waiting.admitted
    assert bench.ticket("new", 10).admitted
    assert "failed" in caplog.text


def test_limits_follow_what_is_lent(bench) -> None:
    made = bench.ticket("a", 125, soft=100 * MIB, ceiling=500 * MIB)
    group = bench.start(made)
    for size in (50, 90, 110):
        bench.use(group, size)
        bench.look()
    assert int(read(group, "memory.max")) > 125 * MIB
    assert int(read(group, "memory.max")) - int(read(group, "memory.high")) == 25 * MIB
    assert bench.driver.ended(made).lent > 0


def test_a_deadline_kills_and_says_so(bench) -> None:
    made = bench.ticket("a", 10, deadline=101.0)
    group = bench.start(made)
    bench.use(group, 1)
    bench.look(2.0)
    assert made.killed == "its deadline passed"
    assert made.killed_for == "deadline"
    assert read(group, "cgroup.kill") == "1"
    assert bench.progress == [("a", "killed")]


def test_a_call_that_only_waits_is_reported_blocked(bench) -> None:
    made = bench.ticket("a", 10)
    group = bench.start(made)
    for _ in range(3):
        bench.look(0.5)
    assert bench.progress == [("a", "blocked")]
    for path in group.paths:
        (path / "cpu.stat").write_text("usage_usec 9900000\n")
    bench.look(0.5)
    assert bench.progress[-1] == ("a", "running")


def test_an_idle_framework_is_reclaimed_during_turns(bench) -> None:
    done = threading.Event()
    framework = bench.tree.framework("p")
    bench.use(framework, 200)
    asked: list[int] = []
    framework.control.reclaim = lambda size: asked.append(size) or done.set() or ""
    bench.driver.framework("p", framework.control)
    bench.driver.turn("p", True)
    assert done.wait(10)
    assert asked == [100 * MIB]
    bench.driver.turn("p", False)


def test_the_thread_looks_by_itself(tmp_path) -> None:
    bench = Bench(tmp_path)
    bench.driver.start()
    made = bench.ticket("a", 300)
    group = bench.start(made)
    bench.use(group, 77)
    for _ in range(1000):
        if bench.driver.statistics().used == 77 * MIB:
            break
        threading.Event().wait(0.01)
    assert bench.driver.statistics().used == 77 * MIB
    bench.driver.close()
    bench.driver.close()
    assert os.path.isdir(group.paths[0])


def test_without_a_freezer_nothing_is_overcommitted(tmp_path) -> None:
    bench = Bench(tmp_path, "v1", can_freeze=False, overcommit=0.0)
    one, two = bench.ticket("a", 600), bench.ticket("b", 600)
    assert (one.admitted, two.admitted) == (True, False)
    assert "200 MiB" in two.why
    bench.driver.ended(one)
    assert two.admitted
    bench.driver.close()


@pytest.mark.parametrize("kind", ["v2", "hybrid"])
def test_a_lesser_call_steps_back_on_the_cpus_and_is_let_up_again(tmp_path, kind) -> None:
    bench = Bench(tmp_path, kind)
    high = bench.ticket("high", 100, priority=ev.HIGH)
    low = bench.ticket("low", 100, priority=ev.LOW)
    groups = bench.start(high), bench.start(low)
    v2 = groups[0].control.v2
    name = "cpu.weight" if kind == "v2" else "cpu.shares"

    def wait(seconds: float) -> None:
        (v2 / "cpu.pressure").write_text(
            f"some total=9\nfull avg10=0.00 total={round(seconds * 1e6)}"
        )
        bench.look(0.6)

    (groups[1].control.v2 / "cpu.pressure").write_text("some total=9\nfull avg10=0.00 total=0")
    for look in range(4):
        wait(0.5 * look)
    assert read(groups[1], name) == ("12" if kind == "v2" else str(12 * 1024 // 100))
    assert read(groups[0], name) == ("100" if kind == "v2" else "1024")  # as it was made
    bench.driver.ended(high)
    assert read(groups[1], name) == ("50" if kind == "v2" else "512")
    bench.driver.ended(low)
    bench.driver.close()


def test_with_the_controller_given_up_weights_are_the_usual_ones(bench) -> None:
    low = bench.ticket("low", 100, priority=ev.LOW)
    group = bench.start(low)
    with bench.driver._lock:
        bench.driver._perform(ev.SetWeight("low", 12))
    assert read(group, "cpu.weight") == "12"
    bench.driver.close()
    assert read(group, "cpu.weight") == "50"
