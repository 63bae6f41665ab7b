"""Random plans, and a shell that drives the schedule through them in virtual time, with faults."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from agentrt.workflows.events import AskPerson, CancelStep, EndRun, Event, StartStep, Wake
from agentrt.workflows.guide import END, START, Edge, Guide, Retry, Step, StepPolicy
from agentrt.workflows.plan import Plan, make_plan
from agentrt.workflows.schedule import Schedule, ScheduleConfig, fold

TERMINAL = ("succeeded", "failed", "cancelled", "timed_out", "inconclusive")
BOUND = 20_000


def edge(source: str, target: str) -> Edge:
    return Edge(f"edge_{source}_{target}", source, target, condition="when it is so")


def plan_of(
    edges: dict[str, list[str]],
    policies: dict[str, StepPolicy] | None = None,
    on_conclusion: Any = "cancel",
) -> Plan:
    """A plan from each step's targets; ``start`` is declared so that its edges are ours, too."""
    steps = tuple(
        Step(
            name,
            name,
            edges=tuple(edge(name, target) for target in targets),
            policy=(policies or {}).get(name, StepPolicy()),
        )
        for name, targets in edges.items()
    )
    return make_plan(Guide("made", "Made", steps, on_conclusion=on_conclusion))


def random_edges(rng: random.Random, size: int, chance: float) -> dict[str, list[str]]:
    """A DAG in which every step has a way in; file order is a shuffle of a topological one."""
    names = [f"Step{number}" for number in range(1, size + 1)]
    edges: dict[str, list[str]] = {START: [], **{name: [] for name in names}}
    for index, name in enumerate(names):
        before = [other for other in names[:index] if rng.random() < chance]
        for other in before or [rng.choice([START, *names[:index]])]:
            edges[other].append(name)
    for name in names:
        if not edges[name] or rng.random() < 0.2:
            edges[name].append(END)
    if not edges[START]:
        edges[START].append(names[0])
    return edges


def shuffled(rng: random.Random, edges: dict[str, list[str]]) -> dict[str, list[str]]:
    names = [name for name in edges if name != START]
    rng.shuffle(names)
    return {START: edges[START], **{name: edges[name] for name in names}}


def random_policy(rng: random.Random) -> StepPolicy:
    return StepPolicy(
        join=rng.choice(["any", "any", "all", "quorum"]),
        quorum=rng.randint(1, 3),
        timeout=rng.choice([5.0, 30.0]),
        retry=Retry(attempts=rng.randint(1, 3)),
        idempotent=rng.random() < 0.8,
        gate="approve" if rng.random() < 0.1 else "none",
        gate_default=rng.choice(["approve", "deny"]),
        gate_timeout=60.0,
    )


def random_plan(rng: random.Random, size: int) -> Plan:
    edges = shuffled(rng, random_edges(rng, size, rng.choice([0.1, 0.3])))
    policies = {name: random_policy(rng) for name in edges if name != START}
    return plan_of(edges, policies, rng.choice(["cancel", "drain", "finish-join"]))


def iso(now: float) -> str:
    return datetime.fromtimestamp(1_800_000_000 + now, UTC).isoformat().replace("+00:00", "Z")


@dataclass
class Faults:
    """Probabilities, per attempt or per event. Quiet by default."""

    fail: float = 0.0
    nonsense: float = 0.0
    hang: float = 0.0
    unstoppable: float = 0.0
    late: float = 0.0
    twice: float = 0.0
    lost: float = 0.0
    crash: float = 0.0
    silent_person: float = 0.0
    enabled: float = 0.6
    duration: Callable[[random.Random, str], float] = lambda rng, step: rng.uniform(0.1, 8.0)


ALL_FAULTS = Faults(
    fail=0.15,
    nonsense=0.1,
    hang=0.08,
    unstoppable=0.3,
    late=0.3,
    twice=0.2,
    lost=0.05,
    crash=0.02,
    silent_person=0.3,
)


@dataclass
class Shell:
    """Drives one run: appends events to a list, hands them on, carries commands out."""

    plan: Plan
    config: ScheduleConfig
    rng: random.Random
    faults: Faults = field(default_factory=Faults)
    check: bool = False
    now: float = 0.0
    log: list[Event] = field(default_factory=list)
    crashes: int = 0
    most_at_once: int = 0
    ended: EndRun | None = None
    ignored_at_end: int = 0

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.plan, self.config)
        self.out = {name: [e.name for e in self.plan.outgoing(name)] for name in self.plan.nodes}
        self.live: dict[str, int] = {}
        self.finished: set[str] = set()
        self.due: list[tuple[float, int, Callable[[], None]]] = []
        self.count = itertools.count()
        self.commands: list[Any] = []

    def at(self, delay: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.due, (self.now + delay, next(self.count), what))

    def append(self, kind: str, step: str | None = None, **data: Any) -> None:
        event = Event(len(self.log), iso(self.now), kind, step, data)
        self.log.append(event)
        self.observe(event)
        self.commands += self.schedule.handle(event, self.now)
        if self.check:
            self.verify()

    def observe(self, event: Event) -> None:
        """No step runs twice at once, and none runs again after it has succeeded."""
        step, data = event.step or "", event.data
        if event.kind == "step_started":
            assert step not in self.live, f"{step} runs already"
            assert step not in self.finished, f"{step} has finished"
            self.live[step] = data["attempt"]
            self.most_at_once = max(self.most_at_once, len(self.live))
        elif event.kind in ("step_finished", "step_cancelled", "lease_lost"):
            if self.live.get(step) == data.get("attempt"):
                del self.live[step]
                decided = data.get("edges") or {}
                good = sorted(decided) == sorted(self.out[step]) and all(
                    state in ("enabled", "disabled") for state in decided.values()
                )
                if event.kind == "step_finished" and data["status"] == "succeeded" and good:
                    self.finished.add(step)
        elif event.kind == "run_resumed":
            self.live.clear()

    def verify(self) -> None:
        self.schedule.check_integrity()
        assert fold(self.plan, self.log, compat=self.config.compat) == self.schedule.state

    # -- carrying out commands --------------------------------------------------------------------

    def settle(self) -> None:
        """Carry out commands and hand back facts until there are none; perhaps crash on the way."""
        for _ in range(BOUND):
            if self.ended:
                return
            if self.rng.random() < self.faults.crash and self.log and self.crashes < 20:
                self.crash()
            elif self.commands:
                self.carry_out(self.commands.pop(0))
            elif facts := self.schedule.take_facts():
                for fact in facts:
                    self.append(fact.kind, fact.step, **fact.data)
            else:
                return
        raise AssertionError("commands without end")

    def carry_out(self, command: Any) -> None:
        match command:
            case StartStep(step, attempt):
                self.append("step_started", step, attempt=attempt, worker=f"w{attempt}")
                self.begin(step, attempt)
            case CancelStep(step, reason):
                self.stop_step(step, reason)
            case AskPerson(step=step, gate=gate):
                if gate not in self.schedule.state.gates:
                    self.append(
                        "gate_opened",
                        step,
                        gate=gate,
                        question=command.question,
                        options=list(command.options),
                        default=command.default,
                    )
                if self.rng.random() >= self.faults.silent_person:
                    answer = self.rng.choice(command.options)
                    self.at(self.rng.uniform(1, 50), lambda: self.answer(step, gate, answer))
            case Wake(at):
                self.at(max(0.0, at - self.now), self.tick)
            case EndRun(status, reason):
                self.append("run_ended", status=status, reason=reason)
                self.ended = command

    def answer(self, step: str, gate: str, answer: str) -> None:
        self.append("gate_answered", step, gate=gate, answer=answer, by="person")

    def tick(self) -> None:
        self.commands += self.schedule.tick(self.now)

    def begin(self, step: str, attempt: int) -> None:
        rng, faults = self.rng, self.faults
        if rng.random() < faults.lost:
            self.at(1.0, lambda: self.append("lease_lost", step, attempt=attempt, worker="w"))
        if rng.random() < faults.hang:
            return
        result = self.result(step, attempt)
        delay = faults.duration(rng, step)
        self.at(delay, lambda: self.append("step_finished", step, **result))
        if rng.random() < faults.twice:
            again = delay + rng.uniform(0, 20)
            self.at(again, lambda: self.append("step_finished", step, **result))

    def result(self, step: str, attempt: int) -> dict[str, Any]:
        edges: dict[str, Any] = {
            name: "enabled" if self.rng.random() < self.faults.enabled else "disabled"
            for name in self.out[step]
        }
        data = {"attempt": attempt, "status": "succeeded", "edges": edges, "tokens": 10}
        if self.rng.random() < self.faults.fail:
            return {**data, "status": "failed", "edges": {}, "error": "it failed"}
        if self.rng.random() < self.faults.nonsense:
            match self.rng.randrange(4):
                case 0:
                    edges["edge_of_dreams"] = "enabled"
                case 1:
                    edges.popitem()
                case 2:
                    edges[next(iter(edges))] = "Enabled"
                case 3:
                    data["status"] = "completed"
        return data

    def stop_step(self, step: str, reason: str) -> None:
        attempt = self.live.get(step)
        if attempt is None or self.rng.random() < self.faults.unstoppable:
            return
        if reason.startswith("timeout"):
            self.append("step_finished", step, attempt=attempt, status="timed_out", error=reason)
        else:
            self.append("step_cancelled", step, attempt=attempt, reason=reason)
        if self.rng.random() < self.faults.late:
            late = self.result(step, attempt)
            self.at(self.rng.uniform(0, 9), lambda: self.append("step_finished", step, **late))

    def crash(self) -> None:
        """The process dies: what it knew and had under way is gone; the log stays."""
        self.crashes += 1
        self.due.clear()
        self.commands.clear()
        self.now += self.rng.uniform(0, 100)
        self.schedule = Schedule.restore(
            self.plan, self.config, self.log, now=self.now, time=iso(self.now)
        )
        self.append("run_resumed")

    def run(self) -> Shell:
        """Until the run has ended, within a bound.

        Raises:
            AssertionError: it does not end.
        """
        self.append("run_started", seed=self.config.seed)
        self.settle()
        for _ in range(BOUND):
            if self.ended:
                self.late_events()
                return self
            assert self.due, f"nothing will ever happen: {self.schedule!r} {self.schedule.waits()}"
            self.now, _, what = heapq.heappop(self.due)
            what()
            self.settle()
        raise AssertionError("the run does not end")

    def late_events(self) -> None:
        """What comes in after the end changes nothing."""
        self.ignored_at_end = self.schedule.state.ignored
        before = self.schedule.state.statuses()
        for _, _, what in self.due[:5]:
            what()
        assert self.schedule.state.statuses() == before
