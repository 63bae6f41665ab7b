"""One cell: its cgroups, its replays, its policy, from making them to removing them."""

from __future__ import annotations

import json
import os
import select
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from agentrt.bench.contention.arena import Arena
from agentrt.bench.contention.curves import Role
from agentrt.bench.contention.plan import Plan
from agentrt.bench.contention.policies import USUAL_SPEED, Policy, Unmanaged, policy_class
from agentrt.bench.contention.processes import Replay, replay_settings, spawn, wait_ready
from agentrt.bench.contention.results import ALONE, UNCONTENDED, Outcome, RoleOutcome
from agentrt.resources.urgency import urgent

__all__ = ["Stopped", "run_once"]

LOOK = 0.01
"""Seconds between two looks at the memory in use, at fifty times the recorded speed."""
SLOWEST = 60.0
GRACE = 60.0
"""A run is cut off after this many times its length, plus this many seconds."""


class Stopped(Exception):
    """The user asked to stop in the middle of a run."""


def run_once(
    plan: Plan, name: str, number: int, stop: Callable[[], bool] = lambda: False
) -> Outcome:
    """Run one cell from making its cgroups to removing them.

    Raises:
        BackendUnavailable: the cgroups cannot be made here.
        SandboxError: a replay did not start, or something could not be removed.
    """
    setting = plan.setting()
    make = Unmanaged if name == UNCONTENDED or name.startswith(ALONE) else policy_class(name)
    with (
        Arena([role.name for role in plan.roles], plan.limit) as arena,
        TemporaryDirectory(prefix="agentrt-contention-") as temp,
    ):
        policy = make(setting)
        run = _Run(plan, arena, policy, stop)
        try:
            run.start(Path(temp))
            with urgent() as how:
                run.follow()
            return run.outcome(name, number, how)
        finally:
            policy.close()
            run.close()


class _Run:
    """One cell while it runs."""

    def __init__(self, plan: Plan, arena: Arena, policy: Policy, stop: Callable[[], bool]) -> None:
        self._plan = plan
        self._arena = arena
        self._policy = policy
        self._stop = stop
        self._replays: dict[str, Replay] = {}
        self._timeline: list[tuple[float, ...]] = []
        self._peak = 0
        self._zero = 0.0

    def start(self, temp: Path) -> None:
        """Start every interpreter, let the policy set its limits."""
        for role in self._plan.roles:
            curve = self._plan.curves[role.curve]
            settings = temp / f"{role.name}.json"
            told = replay_settings(curve, speed=self._plan.speed, scale=self._plan.scale)
            settings.write_text(json.dumps(told))
            group = self._arena.groups[role.name]
            self._replays[role.name] = spawn(role.name, group.procs, settings)
        wait_ready(self._replays)
        self._policy.prepare(self._arena)

    def _release(self, names: Sequence[str]) -> None:
        for name in names:
            self._replays[name].release(time.monotonic())

    def follow(self) -> None:
        """Release who may begin, then attend to replays and policy until all replays are gone.

        Raises:
            Stopped: the user asked to stop.
        """
        self._zero = time.monotonic()
        self._release(self._policy.begin(self._zero))
        longest = max(curve.seconds for curve in self._plan.curves.values()) / self._plan.speed
        cut = self._zero + GRACE + SLOWEST * longest
        next_look = next_tick = self._zero
        look = LOOK * max(1.0, USUAL_SPEED / self._plan.speed)
        while alive := [one for one in self._replays.values() if not one.done]:
            now = time.monotonic()
            if self._stop() or now > cut:
                self._end_early(stopped=now <= cut)
            if now >= next_look:
                self._look(now)
                next_look = now + look
            if now >= next_tick:
                self._release(self._policy.tick(now))
                next_tick = now + self._policy.period
            wait = max(0.0, min(next_look, next_tick) - time.monotonic())
            self._attend(alive, wait)

    def _attend(self, alive: Sequence[Replay], wait: float) -> None:
        readable, _, _ = select.select([one.descriptor for one in alive], [], [], wait)
        for one in alive:
            if one.descriptor in readable:
                one.read(time.monotonic())
                if one.done:
                    self._release(self._policy.ended(one.name, time.monotonic()))

    def _end_early(self, *, stopped: bool) -> None:
        if stopped:
            raise Stopped
        for group in self._arena.groups.values():
            group.kill()

    def _look(self, now: float) -> None:
        sizes = [self._arena.usage(role.name) for role in self._plan.roles]
        self._peak = max(self._peak, sum(sizes))
        self._timeline.append((round(now - self._zero, 4), *sizes))

    def outcome(self, policy: str, number: int, urgency: str) -> Outcome:
        """What it gave; call it before the cgroups are removed."""
        ends = [one.ended for one in self._replays.values() if one.ended is not None]
        roles = {role.name: self._role(role) for role in self._plan.roles}
        return Outcome(
            policy=policy,
            run=number,
            roles=roles,
            makespan=max(ends) - self._zero,
            peak=self._peak,
            statistics=self._policy.statistics() | {"load": os.getloadavg()[0], "urgency": urgency},
            timeline=_thinned(self._timeline),
        )

    def _role(self, role: Role) -> RoleOutcome:
        replay = self._replays[role.name]
        kills = self._arena.oom_kills(role.name)
        if replay.told is None:
            return RoleOutcome(role.priority, False, None, oom_kills=kills)
        told = replay.told
        return RoleOutcome(
            priority=role.priority,
            survived=True,
            total=told["ended"] - self._zero,
            replay=told["replay_seconds"],
            waited=told["started"] - self._zero,
            stopped=told["stopped_seconds"],
            latency=_latency(told["latencies"]),
            peak=told["peak"],
            oom_kills=kills,
        )

    def close(self) -> None:
        """Kill and wait for every replay that is left."""
        for group in self._arena.groups.values():
            group.kill()
        for replay in self._replays.values():
            replay.close()


def _latency(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    return {
        "p50": statistics.median(ordered),
        "p95": ordered[int(0.95 * (len(ordered) - 1))],
        "max": ordered[-1],
    }


def _thinned(rows: Sequence[tuple[float, ...]], most: int = 400) -> list[tuple[float, ...]]:
    stride = -(-len(rows) // most) if rows else 1
    return list(rows[::stride])
