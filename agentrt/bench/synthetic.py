"""Workloads drawn by rule: ``synthetic:NAME?key=value&key=value`` stands for a file.

They are drawn from distributions with a seed of their own, so that the same name is the same
workload everywhere. ``docs/benchmarks.md`` says what each is for.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl

from agentrt.bench.workload import Program, Tool, Turn, Workload
from agentrt.errors import ConfigError

__all__ = ["PREFIX", "SYNTHETIC", "synthetic_workload"]

PREFIX = "synthetic:"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a drawn program is like: means, and spreads as coefficients of variation (``cv``).

    ``first`` is tokens of the first prompt, ``new`` and ``output`` those of a turn; ``gap`` is in
    seconds.
    """

    turns: float
    first: float
    new: float
    output: float
    gap: float
    turns_cv: float = 0.2
    tokens_cv: float = 0.8
    gap_cv: float = 2.0


SWE = Shape(turns=10.9, first=8000, new=4800, output=300, gap=0.925, gap_cv=3.84)
"""SWE-bench under mini-swe-agent, about 70,000 tokens a program (Continuum, arXiv 2511.02230)."""

BFCL = Shape(turns=6.3, first=9000, new=12000, output=150, gap=1.923, turns_cv=0.37, gap_cv=1.11)
"""BFCL v4 web search, 93,000 tokens a program (the same)."""


class _Draw:
    """Draws programs of one workload."""

    def __init__(self, seed: str) -> None:
        self._source = random.Random(seed)

    def uniform(self) -> float:
        return self._source.random()

    def value(self, mean: float, cv: float) -> float:
        """Return a log-normal value of this mean and coefficient of variation."""
        if cv == 0:
            return mean
        variance = math.log1p(cv * cv)
        return self._source.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))

    def count(self, mean: float, cv: float) -> int:
        return max(1, round(self.value(mean, cv)))

    def line(self, shape: Shape, context: str = "main", turns: int | None = None) -> list[Turn]:
        """Return the turns of one context, each extending the one before."""
        held = 0
        rows: list[Turn] = []
        for number in range(turns or self.count(shape.turns, shape.turns_cv)):
            new = self.count(shape.new if number else shape.first, shape.tokens_cv)
            output = self.count(shape.output, shape.tokens_cv)
            gap = round(self.value(shape.gap, shape.gap_cv), 6) if shape.gap else 0.0
            tool = Tool("bash", duration=gap)
            rows.append(Turn(context, held + new, held, output, gap=gap, tools=(tool,)))
            held += new + output
        return rows

    def program(self, name: str, shape: Shape, **fields: str | float) -> Program:
        return _closed(Program(name, tuple(self.line(shape)), **fields))  # type: ignore[arg-type]


def _closed(program: Program) -> Program:
    """Nothing follows the last turn."""
    *turns, last = program.turns
    return replace(program, turns=(*turns, replace(last, gap=None, tools=())))


@dataclass(frozen=True, slots=True)
class Synthetic:
    """One kind: its parameters with their defaults, and what draws its programs."""

    parameters: Mapping[str, float]
    draw: Callable[[_Draw, Mapping[str, float]], Sequence[Program]]
    summary: str


def synthetic_workload(spec: str) -> Workload:
    """Return the workload that ``synthetic:NAME?key=value&...`` stands for.

    Raises:
        ConfigError: there is no such name or parameter, or a value is not a number of 0 or more.
    """
    name, _, query = spec.removeprefix(PREFIX).partition("?")
    if name not in SYNTHETIC:
        raise ConfigError(
            f"There is no synthetic workload {name!r}.",
            remedy=f"Choose one of: {', '.join(sorted(SYNTHETIC))}.",
        )
    kind = SYNTHETIC[name]
    values = dict(kind.parameters) | {"seed": 0.0}
    for key, text in parse_qsl(query, keep_blank_values=True):
        values[key] = _number(name, values, key, text)
    programs = kind.draw(_Draw(f"{name}/{values['seed']:g}"), values)
    return Workload(name=name, source=spec, programs=tuple(programs))


def _number(name: str, known: Mapping[str, float], key: str, text: str) -> float:
    if key not in known:
        raise ConfigError(
            f"synthetic:{name} has no parameter {key!r}.",
            remedy=f"It takes: {', '.join(sorted(known))}.",
        )
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise ConfigError(f"{key} is {text!r}.", remedy=f"Give {key} a number of 0 or more.")
    return value


# --- the kinds ------------------------------------------------------------------------------------


def _plain(shape: Shape) -> Callable[[_Draw, Mapping[str, float]], list[Program]]:
    def draw(source: _Draw, values: Mapping[str, float]) -> list[Program]:
        chosen = replace(shape, gap_cv=values["gap_cv"], gap=values["gap"], turns=values["turns"])
        return [source.program(f"p{number}", chosen) for number in range(int(values["programs"]))]

    return draw


TENANTS = (
    *((f"heavy-{number}", 100, 16.0) for number in range(3)),
    *((f"medium-{number}", 30, 8.0) for number in range(4)),
    *((f"light-{number}", 10, 4.0) for number in range(3)),
)
"""Name, steps of a program, programs a minute before scaling (SAGA, arXiv 2605.00528)."""


def _ten_tenants(source: _Draw, values: Mapping[str, float]) -> list[Program]:
    """Poisson arrivals of every tenant at its own rate times ``load``, for ``minutes``."""
    programs: list[Program] = []
    for tenant, steps, rate in TENANTS:
        shape = replace(SWE, turns=steps * values["steps"], new=600, output=200, first=3000)
        now, number = 0.0, 0
        while True:
            now += -math.log(1 - source.uniform()) * 60 / (rate * values["load"])
            if now > 60 * values["minutes"]:
                break
            name = f"{tenant}/{number}"
            programs.append(source.program(name, shape, tenant=tenant, arrival=round(now, 6)))
            number += 1
    return sorted(programs, key=lambda row: row.arrival)


def _two_tenants(source: _Draw, values: Mapping[str, float]) -> list[Program]:
    """Everything arrives at once, more than can run: both tenants always have turns waiting."""
    shape = replace(SWE, turns=values["turns"], gap=values["gap"], new=400, output=200, first=2000)
    return [
        source.program(f"{tenant}/{number}", shape, tenant=tenant)
        for number in range(int(values["programs"]))
        for tenant in ("a", "b")
    ]


def _subagents(source: _Draw, values: Mapping[str, float]) -> list[Program]:
    """A main context that now and then waits for sub-agents of its own, which run side by side."""
    return [
        _with_subagents(source, f"p{number}", values) for number in range(int(values["programs"]))
    ]


def _with_subagents(source: _Draw, name: str, values: Mapping[str, float]) -> Program:
    turns: list[Turn] = []
    main = source.line(replace(SWE, turns=values["turns"]))
    before: tuple[int, ...] = ()
    calls = 0
    for turn in main:
        turns.append(replace(turn, after=before))
        place = len(turns) - 1
        before = (place,)
        if source.uniform() >= values["share"]:
            continue
        # The call's own time is that of its sub-agents.
        turns[place] = replace(turn, after=turns[place].after, gap=0.0, tools=(Tool("Task"),))
        ends = []
        for branch in range(int(values["width"])):
            line = source.line(replace(SWE, first=4000, new=1500), f"sub-{calls}-{branch}", turns=4)
            turns += _chained(line, place, len(turns))
            ends.append(len(turns) - 1)
        before, calls = tuple(ends), calls + 1
    return Program(name, tuple(turns))


def _chained(line: Sequence[Turn], start: int, first: int) -> list[Turn]:
    """Return a sub-agent's turns, the first after ``start``; its answer comes back at once."""
    rows = [
        replace(turn, after=(start if at == 0 else first + at - 1,)) for at, turn in enumerate(line)
    ]
    rows[-1] = replace(rows[-1], gap=0.0, tools=())
    return rows


def _branches(source: _Draw, values: Mapping[str, float]) -> list[Program]:
    """Best of several: ``width`` contexts start together, and one turn weighs their ends."""
    programs = []
    for number in range(int(values["programs"])):
        turns: list[Turn] = []
        ends: list[int] = []
        for branch in range(int(values["width"])):
            line = source.line(replace(SWE, turns=values["turns"]), f"branch-{branch}")
            first = len(turns)
            turns += [
                replace(turn, after=(first + at - 1,) if at else ()) for at, turn in enumerate(line)
            ]
            turns[-1] = replace(turns[-1], gap=0.0, tools=())
            ends.append(len(turns) - 1)
        judge = Turn("main", source.count(6000, 0.5), 0, source.count(300, 0.5))
        programs.append(Program(f"p{number}", (*turns, replace(judge, after=tuple(ends)))))
    return programs


SYNTHETIC: Mapping[str, Synthetic] = {
    "swe": Synthetic(
        {"programs": 100, "gap": SWE.gap, "gap_cv": SWE.gap_cv, "turns": SWE.turns},
        _plain(SWE),
        "SWE-bench under mini-swe-agent",
    ),
    "bfcl": Synthetic(
        {"programs": 100, "gap": BFCL.gap, "gap_cv": BFCL.gap_cv, "turns": BFCL.turns},
        _plain(BFCL),
        "BFCL v4 web search",
    ),
    "ten-tenants": Synthetic(
        {"load": 0.2, "minutes": 10, "steps": 1.0},
        _ten_tenants,
        "three heavy, four medium, three light tenants; arrivals are recorded",
    ),
    "two-tenants": Synthetic(
        {"programs": 60, "turns": 20, "gap": 0.5}, _two_tenants, "tenants a and b, saturated"
    ),
    "subagents": Synthetic(
        {"programs": 60, "turns": 12, "share": 0.2, "width": 3},
        _subagents,
        "main contexts that call sub-agents side by side",
    ),
    "branches": Synthetic(
        {"programs": 40, "turns": 8, "width": 4}, _branches, "parallel attempts and a judge"
    ),
}
