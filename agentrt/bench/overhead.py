"""What the scheduler's own work costs a step: a saturated closed loop without a model.

``programs`` programs take turns for ever: half of them wait for a place, the others are away with
their KV pinned, and ``seats`` run. A program ends after some turns and a new one takes its place,
so that pins are broken, runs evicted and programs forgotten all the time.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrt.bench.metrics import mean, percentile
from agentrt.engine.kv import PageCache
from agentrt.scheduling import Scheduler, SchedulerConfig, Surroundings, make_policy
from agentrt.scheduling.plan import Sample, StepPlan, StepResult, TurnFinished, TurnRequest
from agentrt.scheduling.tokens import VirtualTokens

__all__ = ["Load", "StepTimes", "growth_exponent", "measure_overhead"]

PAGE = 16
STEP_SECONDS = 0.02
FIRST_PROMPT, NEW_TOKENS, OUTPUT = (400, 1200), (20, 120), (60, 180)
TURNS = (4, 16)
TENANTS = ("a", "b", "c", "d")
TOOLS = ("bash", "edit", "read", "search")


@dataclass(frozen=True, slots=True)
class Load:
    """``programs`` beside the ``seats`` that run, on ``pages`` pages a program, for ``steps``."""

    programs: int = 1000
    seats: int = 256
    pages: int = 80
    steps: int = 600
    warm_up: int = 200
    seed: int = 0


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Processor seconds of the scheduler's work, by step and by what it was spent on.

    ``steps`` holds the whole work of a step: planning, accounting, turns handed in, programs ended.
    """

    steps: Sequence[float]
    plan: float
    commit: float
    outside: float
    running: float
    waiting: float
    pins: float
    pages: int
    turns: int
    reference: Sequence[float]

    def to_json(self) -> dict[str, Any]:
        """Return milliseconds a step, and what the scheduler had to deal with (means).

        ``disturbed`` is how much longer than at its quickest a fixed piece of work took beside the
        steps (the median): what other processes on the same core add. ``quiet_ms`` has that taken
        out of the mean.
        """
        count = len(self.steps)
        mean_ms = 1e3 * math.fsum(self.steps) / count
        disturbed = (percentile(self.reference, 0.5) or 0.0) / min(self.reference)
        return {
            "ms_per_step": round(mean_ms, 4),
            "disturbed": round(disturbed, 3),
            "quiet_ms": round(mean_ms / disturbed, 4),
            "p50_ms": round(1e3 * (percentile(self.steps, 0.5) or 0.0), 4),
            "p99_ms": round(1e3 * (percentile(self.steps, 0.99) or 0.0), 4),
            "plan_ms": round(1e3 * self.plan / count, 4),
            "commit_ms": round(1e3 * self.commit / count, 4),
            "submit_and_end_ms": round(1e3 * self.outside / count, 4),
            "running": round(self.running, 1),
            "waiting": round(self.waiting, 1),
            "pins": round(self.pins, 1),
            "pages": self.pages,
            "turns_per_step": round(self.turns / count, 2),
        }


@dataclass(slots=True)
class _Running:
    """One program of the loop."""

    name: str
    tenant: str
    turns: int
    index: int = 0
    tokens: VirtualTokens | None = None


@dataclass(slots=True)
class _Meter:
    """Adds up the processor time of calls."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys("poc", 0.0))

    def run(self, what: str, call: Callable[[], Any]) -> Any:
        start = time.thread_time()
        result = call()
        self.seconds[what] += time.thread_time() - start
        return result


class _Loop:
    """The closed loop around one scheduler."""

    def __init__(self, spec: str, load: Load) -> None:
        self._load = load
        self._random = random.Random(load.seed)
        self._names = itertools.count()
        self._now = 0.0
        pages = load.pages * (load.programs + load.seats)
        policy = make_policy(spec, Surroundings(capacity=pages * PAGE))
        retention = policy.retention
        self.pages = pages
        cache = PageCache(pages, PAGE, retention.score, rescore=retention.rescore)
        config = SchedulerConfig(
            max_seqs=load.seats, reserve="output", max_wait=1e9, max_waiting=10 * load.programs
        )
        self.scheduler = Scheduler(cache, policy, config)
        self.meter = _Meter()
        self.turns = 0
        # Little's law: as many are away as wait if the gap is half the programs' round.
        self._gap = load.programs / 2 / (load.seats / (sum(OUTPUT) / 2)) * STEP_SECONDS
        self._due: list[tuple[float, str, _Running]] = []
        self._by_turn: dict[str, _Running] = {}
        for _ in range(load.programs + load.seats):
            self._begin(self._random.random() * self._gap)

    def _begin(self, time: float) -> None:
        name = f"p{next(self._names)}"
        tenant = self._random.choice(TENANTS)
        program = _Running(name, tenant, self._random.randint(*TURNS))
        heapq.heappush(self._due, (time, name, program))

    def _submit(self, program: _Running) -> None:
        turn_id = f"{program.name}/{program.index}"
        if program.tokens is None:
            program.tokens = VirtualTokens.first(self._random.randint(*FIRST_PROMPT), turn_id)
        else:
            held = len(program.tokens)
            length = held + self._random.randint(*NEW_TOKENS)
            program.tokens = program.tokens.follow(held, length, turn_id)
        last = program.index == program.turns - 1
        request = TurnRequest(
            turn_id,
            program.name,
            program.tokens,
            self._random.randint(*OUTPUT),
            tenant=program.tenant,
            next_tool=self._random.choice(TOOLS),
            last=last,
        )
        self._by_turn[turn_id] = program
        self.meter.run("o", lambda: self.scheduler.submit(request, self._now))

    def _ended(self, event: TurnFinished) -> None:
        self.turns += 1
        program = self._by_turn.pop(event.stats.turn_id)
        program.index += 1
        back = self._now + self._random.expovariate(1 / self._gap)
        if program.index < program.turns:
            heapq.heappush(self._due, (back, program.name, program))
            return
        self.meter.run("o", lambda: self.scheduler.end_program(program.name, self._now))
        self._begin(back)

    def step(self) -> float:
        """Run one step; return the processor seconds that the scheduler spent on it."""
        before = math.fsum(self.meter.seconds.values())
        while self._due and self._due[0][0] <= self._now:
            self._submit(heapq.heappop(self._due)[2])
        plan: StepPlan = self.meter.run("p", lambda: self.scheduler.plan(self._now))
        self._now += STEP_SECONDS
        if plan.slices:
            token = Sample((0,))
            result = StepResult({one.turn_id: token for one in plan.slices if one.sample})
            events = self.meter.run("c", lambda: self.scheduler.commit(plan, result, self._now))
            for event in events:
                if isinstance(event, TurnFinished):
                    self._ended(event)
        return math.fsum(self.meter.seconds.values()) - before


class _Item:
    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value


_ITEMS = [_Item(number) for number in range(400)]
"""Made once: work that allocates would be charged the collector's rounds over the whole load."""


def _reference_work() -> float:
    """Do a fixed piece of work like the scheduler's; return its processor seconds."""
    start = time.thread_time()
    total = [0] * 64
    for item in _ITEMS:
        value = item.value
        item.value = value ^ 1
        total[value % 64] += value
    return time.thread_time() - start


def measure_overhead(spec: str, load: Load) -> StepTimes:
    """Return what a policy's work costs under a load, after a warm-up.

    Raises:
        ConfigError: no policy is called ``spec``.
    """
    loop = _Loop(spec, load)
    for _ in range(load.warm_up):
        loop.step()
    loop.meter.seconds = dict.fromkeys("poc", 0.0)
    loop.turns = 0
    steps: list[float] = []
    reference: list[float] = []
    states = []
    for _ in range(load.steps):
        steps.append(loop.step())
        reference.append(_reference_work())
        states.append(loop.scheduler.statistics())
    seconds = loop.meter.seconds
    return StepTimes(
        steps,
        seconds["p"],
        seconds["c"],
        seconds["o"],
        mean([state.running for state in states]) or 0.0,
        mean([state.waiting for state in states]) or 0.0,
        mean([state.pins for state in states]) or 0.0,
        loop.pages,
        loop.turns,
        reference,
    )


def growth_exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Return the slope of log(values) over log(sizes): 0 does not grow, 1 grows in proportion."""
    x = [math.log(size) for size in sizes]
    y = [math.log(value) for value in values]
    middle, level = sum(x) / len(x), sum(y) / len(y)
    spread = math.fsum((one - middle) ** 2 for one in x)
    return math.fsum((a - middle) * (b - level) for a, b in zip(x, y, strict=True)) / spread
