"""What crosses between the controller and its driver: events in, actions out. Plain data.

Memory is bytes, CPU is cores, times are seconds of the injected clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = [
    "HIGH",
    "LOW",
    "NORMAL",
    "Action",
    "Admit",
    "CallSpec",
    "CpuSample",
    "Ended",
    "Event",
    "FrameworkSample",
    "Freeze",
    "Kill",
    "KillReason",
    "MemoryEvent",
    "OnLimit",
    "Pressure",
    "Reclaim",
    "Refuse",
    "Requested",
    "Sample",
    "SetHigh",
    "SetMax",
    "SetWeight",
    "Started",
    "Thaw",
    "Tick",
    "TurnEnded",
    "TurnStarted",
    "Wait",
]

LOW, NORMAL, HIGH = 0, 1, 2
"""Priorities. A larger number goes first."""

OnLimit: TypeAlias = Literal["kill", "freeze", "throttle"]
KillReason: TypeAlias = Literal["limit", "no_room", "emergency", "deadline", "stalled"]


@dataclass(frozen=True, slots=True)
class CallSpec:
    """A tool call as the controller sees it.

    Args:
        call: an id that no other live call has.
        claim: bytes it may use; the kernel is told to enforce it.
        soft: bytes beyond which it asks for more than it declared; 0 stands for ``claim``. Between
            the two it is slowed or frozen until more can be lent, as ``on_limit`` says.
        ceiling: bytes that its claim may be raised to by borrowing; at least ``claim``.
        start: bytes that it is expected to use soon; no more than ``claim``.
        priority: ``LOW``, ``NORMAL`` or ``HIGH``.
        on_limit: what happens when it reaches its claim and nothing can be borrowed.
        enforced: the kernel holds it to its claim; otherwise the claim is an estimate that follows
            its usage, up to ``ceiling``.
        deadline: the time at which it is killed if it still runs or waits.
    """

    call: str
    claim: int
    tenant: str = "default"
    program: str = "program"
    soft: int = 0
    ceiling: int = 0
    start: int = 0
    priority: int = NORMAL
    on_limit: OnLimit = "freeze"
    enforced: bool = True
    deadline: float | None = None


# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Requested:
    """A tool call wants to start. Answered by ``Admit``, ``Wait`` or ``Refuse``."""

    spec: CallSpec


@dataclass(frozen=True, slots=True)
class Started:
    """An admitted call runs. Without ``Requested`` before it, the call is adopted as it is."""

    call: str
    spec: CallSpec | None = None
    usage: int = 0
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory in use by call; ``stalled`` holds seconds since the call's start that it waited for
    memory (PSI ``full``). ``total`` is what the whole budget's group uses, idle memory included.
    """

    usage: Mapping[str, int]
    stalled: Mapping[str, float] | None = None
    total: int | None = None


@dataclass(frozen=True, slots=True)
class CpuSample:
    """Seconds since its start in which some process of a call waited for a CPU, by call."""

    stalled: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class MemoryEvent:
    """A call's own counters moved: ``high`` breaches and OOM kills since its start."""

    call: str
    high: int = 0
    oom_kills: int = 0


@dataclass(frozen=True, slots=True)
class Pressure:
    """The kernel says that tasks stall on ``resource``: decide now, with the last usage known."""

    resource: Literal["memory", "cpu", "io"] = "memory"


@dataclass(frozen=True, slots=True)
class Ended:
    """A call is over and its cgroup is empty, or its request was withdrawn."""

    call: str


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The program thinks: its framework is idle until ``TurnEnded``."""

    program: str


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """The program's turn is over: its framework will run again."""

    program: str


@dataclass(frozen=True, slots=True)
class FrameworkSample:
    """Memory in use by a program's framework (the agent itself)."""

    program: str
    usage: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing but time has passed."""


Event: TypeAlias = (
    Requested
    | Started
    | Sample
    | CpuSample
    | MemoryEvent
    | Pressure
    | Ended
    | TurnStarted
    | TurnEnded
    | FrameworkSample
    | Tick
)

# --- actions --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Admit:
    """Start the call. ``reserved`` bytes are its own; ``borrowed`` are of others' slack."""

    call: str
    reserved: int
    borrowed: int


@dataclass(frozen=True, slots=True)
class Wait:
    """The call waits at ``place`` (1 is next); ``why`` in plain words."""

    call: str
    place: int
    why: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """The call will not start: it waited too long, or its deadline has passed."""

    call: str
    why: str


@dataclass(frozen=True, slots=True)
class SetMax:
    """Set the hard limit (``memory.max``)."""

    call: str
    bytes: int


@dataclass(frozen=True, slots=True)
class SetHigh:
    """Set the throttle limit (``memory.high``); ``None`` lifts it. The hard limit stands above it.

    By ``deadline`` the controller has lifted it or gone a rung further.
    """

    call: str
    bytes: int | None
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class SetWeight:
    """Set the CPU weight (100 is usual)."""

    call: str
    weight: int


@dataclass(frozen=True, slots=True)
class Freeze:
    """Stop the call where it is; by ``until`` it is thawed, or killed with a reason.

    ``winner`` is the call whose claim goes before it.
    """

    call: str
    until: float
    winner: str | None


@dataclass(frozen=True, slots=True)
class Thaw:
    """Let the call go on."""

    call: str


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Ask the kernel to take back idle memory of a program's framework."""

    program: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the call; ``why`` is for the feedback, ``winner`` the call that goes before it."""

    call: str
    reason: KillReason
    why: str
    winner: str | None = None


Action: TypeAlias = (
    Admit | Wait | Refuse | SetMax | SetHigh | SetWeight | Freeze | Thaw | Reclaim | Kill
)
