"""Pure: from an intent and the budgets above it to the limits that a tool call gets.

An intent is untrusted. What exceeds the budget of the program, the tenant or the host is clamped,
and every clamp is listed with the budget that made it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agentrt.resources.control_events import HIGH, LOW, NORMAL, CallSpec
from agentrt.resources.control_weights import WEIGHTS
from agentrt.resources.intent import Intent, Network, OnLimit, Priority
from agentrt.resources.learned import Estimate
from agentrt.resources.units import show_size

__all__ = ["LEVELS", "PRIORITIES", "Budget", "Clamp", "Envelope", "make_envelope"]

MIB = 1 << 20
LEVELS = {"low": 256 * MIB, "medium": 1024 * MIB}
"""Bytes of the memory levels; ``high`` is whatever the budgets allow."""
PRIORITIES: dict[str, int] = {"low": LOW, "normal": NORMAL, "high": HIGH}
HEADROOM = 0.25
LEAST_HEADROOM = 32 * MIB
"""Between what was declared and the hard limit: room to act in before the kernel kills."""
SMALLEST = 16 * MIB

Source: TypeAlias = Literal["declared", "limits", "learned"]


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that one tool call of a program, tenant or host may be given. ``None``: no bound."""

    name: str
    memory: int | None = None
    cpu: float | None = None
    pids: int | None = None
    io: int | None = None
    priority: Priority = "high"
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Clamp:
    """Something that was asked for and is more than a budget allows."""

    what: str
    asked: str
    given: str
    by: str

    def __str__(self) -> str:
        return f"{self.what} {self.asked} was cut to {self.given}, the budget of the {self.by}"


@dataclass(frozen=True, slots=True)
class Envelope:
    """The limits of one tool call. Bytes, cores, seconds; ``None`` means not limited.

    ``claim`` is what the controller reserves for. ``memory_high`` never stands without
    ``memory_max``. ``most`` is what could be declared here. ``enforced`` says that ``memory_max``
    follows the claim; otherwise it is only the budgets' bound, and the claim an estimate.
    """

    memory_high: int | None
    memory_max: int | None
    claim: int
    ceiling: int
    start: int
    cpu_weight: int
    cpu_max: float | None
    cpu_burst: float | None
    pids_max: int | None
    io_max: int | None
    oom_group: bool
    network: Network | None
    priority: int
    on_limit: OnLimit
    expect: float
    deadline: float | None
    enforced: bool
    source: Source
    why: str
    most: int | None = None
    clamps: tuple[Clamp, ...] = ()

    def spec(self, call: str, tenant: str, program: str, now: float) -> CallSpec:
        """The call as the controller takes it; deadlines count from ``now``."""
        return CallSpec(
            call=call,
            claim=self.claim,
            tenant=tenant,
            program=program,
            soft=self.memory_high or self.claim,
            ceiling=self.ceiling,
            start=self.start,
            priority=self.priority,
            on_limit=self.on_limit,
            enforced=self.enforced,
            deadline=None if self.deadline is None else now + self.deadline,
        )


def make_envelope(
    intent: Intent,
    estimate: Estimate,
    budgets: Sequence[Budget],
    *,
    hard_memory: int | None = None,
    hard_cpu: float | None = None,
    hard_pids: int | None = None,
    oom_group: bool = True,
) -> Envelope:
    """Clamp ``intent`` to ``budgets`` and fill in from ``estimate`` what it does not say.

    ``hard_*`` are limits set by whoever owns the sandbox: they stand, nothing is lent beyond them.
    ``budgets`` go from the program to the host; the first that is exceeded is named.
    """
    clamps: list[Clamp] = []
    bounds = [*budgets]
    if hard_memory is not None:
        bounds.insert(0, Budget("sandbox", memory=hard_memory))
    priority = _priority(intent, bounds, clamps)
    cpu = _least("cpu", intent.cpu if intent.cpu is not None else hard_cpu, bounds, clamps)
    pids = _least("pids", intent.pids if intent.pids is not None else hard_pids, bounds, clamps)
    io = _least("io", intent.io, bounds, clamps)
    if hard_cpu is not None:
        cpu = min(cpu or hard_cpu, hard_cpu)
    if hard_pids is not None:
        pids = min(pids or hard_pids, hard_pids)
    memory = _memory(intent, estimate, bounds, hard_memory, clamps)
    return Envelope(
        memory_high=memory.high,
        memory_max=memory.top,
        claim=memory.claim,
        ceiling=memory.ceiling,
        start=min(memory.claim, estimate.typical),
        cpu_weight=WEIGHTS[priority],
        cpu_max=cpu,
        cpu_burst=cpu,
        pids_max=None if pids is None else int(pids),
        io_max=None if io is None else int(io),
        oom_group=oom_group,
        network=intent.network,
        priority=priority,
        on_limit=intent.on_limit or "freeze",
        expect=intent.expect or estimate.seconds,
        deadline=_least("deadline", intent.deadline, bounds, clamps, field="seconds"),
        enforced=memory.enforced,
        source=memory.source,
        why=memory.why,
        most=_bound(bounds, "memory"),
        clamps=tuple(clamps),
    )


@dataclass(frozen=True, slots=True)
class _Memory:
    claim: int
    high: int | None
    top: int | None
    ceiling: int
    enforced: bool
    source: Source
    why: str


def _memory(
    intent: Intent,
    estimate: Estimate,
    bounds: Sequence[Budget],
    hard: int | None,
    clamps: list[Clamp],
) -> _Memory:
    bound = _bound(bounds, "memory")
    declared = LEVELS.get(str(intent.memory), intent.memory)
    if not isinstance(declared, int):
        return _undeclared(intent, estimate, bound, hard)
    asked = int(_least("memory", declared, bounds, clamps) or declared)
    if intent.on_limit == "kill" or (hard is not None and asked >= hard):
        return _Memory(asked, None, asked, asked, True, "declared", "declared")
    top = asked + max(LEAST_HEADROOM, int(HEADROOM * asked))
    ceiling = max(asked, bound) if bound is not None else 4 * asked
    top = min(top, ceiling)
    high = asked if asked < top else None
    return _Memory(top, high, top, max(top, ceiling), True, "declared", "declared")


def _undeclared(intent: Intent, estimate: Estimate, bound: int | None, hard: int | None) -> _Memory:
    """Nothing or ``high`` was said: reserve what is usual, let the budgets' bound be the limit."""
    usual = max(SMALLEST, estimate.memory)
    if intent.memory == "high":
        usual = max(usual, LEVELS["medium"])
    claim = usual if bound is None else min(usual, bound)
    source: Source = "limits" if hard is not None else "learned"
    ceiling = bound if bound is not None else max(claim, 1 << 50)
    return _Memory(claim, None, bound, ceiling, False, source, estimate.source)


def _bound(bounds: Iterable[Budget], name: str) -> int | None:
    found = [value for each in bounds if (value := getattr(each, name)) is not None]
    return min(found) if found else None


def _least(
    what: str,
    asked: float | None,
    bounds: Sequence[Budget],
    clamps: list[Clamp],
    field: str | None = None,
) -> float | None:
    """What is given of ``asked``; where nothing is asked, the least bound."""
    name = field or what
    limits = [(value, each) for each in bounds if (value := getattr(each, name)) is not None]
    if not limits:
        return asked
    least, holder = min(limits, key=lambda pair: float(pair[0]))
    if asked is None:
        return float(least) if what != "memory" else least
    if asked <= least:
        return asked
    clamps.append(Clamp(what, _show(what, asked), _show(what, least), holder.name))
    return float(least) if what != "memory" else least


def _show(what: str, value: float) -> str:
    return show_size(int(value)) if what in ("memory", "io") else f"{value:g}"


def _priority(intent: Intent, bounds: Sequence[Budget], clamps: list[Clamp]) -> int:
    asked = PRIORITIES[intent.priority or "normal"]
    holder = min(bounds, key=lambda each: PRIORITIES[each.priority], default=None)
    if holder is None or asked <= PRIORITIES[holder.priority]:
        return asked
    if intent.priority is not None:
        clamps.append(Clamp("priority", intent.priority, holder.priority, holder.name))
    return PRIORITIES[holder.priority]
