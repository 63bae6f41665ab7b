"""What a run leaves behind: plain records that metrics, results.json and the report are made from.

A live run and a simulated one fill the same records; times are seconds since the run's start.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from agentrt.scheduling.plan import FinishReason, PinOutcome

__all__ = [
    "KVSample",
    "PinRecord",
    "ProgramOutcome",
    "ProgramRecord",
    "RunRecord",
    "ToolRecord",
    "TurnRecord",
]

ProgramOutcome: TypeAlias = Literal["finished", "resolved", "unresolved", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """One turn. ``first`` marks its context's first one. ``text`` is an excerpt, or empty."""

    program: str
    tenant: str
    context: str
    index: int
    first: bool
    submitted: float
    admitted: float | None
    first_token: float | None
    finished: float
    prompt_tokens: int
    ideal_tokens: int
    cached_tokens: int
    prefilled_tokens: int
    output_tokens: int
    preemptions: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    reason: FinishReason
    text: str = ""


@dataclass(frozen=True, slots=True)
class ToolRecord:
    """One tool call, or one gap of a numeric replay. ``status`` is empty where nothing ran."""

    program: str
    context: str
    name: str
    start: float
    end: float
    status: str = ""
    exit_code: int | None = None
    peak_memory: int | None = None
    cpu_seconds: float | None = None
    command: str = ""


@dataclass(frozen=True, slots=True)
class PinRecord:
    """One pin: a turn's KV kept while its program is away."""

    program: str
    context: str
    start: float
    end: float
    ttl: float
    tokens: int
    outcome: PinOutcome


@dataclass(frozen=True, slots=True)
class KVSample:
    """The page pool at a moment, in tokens; ``leased`` includes ``pinned``."""

    time: float
    leased: int
    pinned: int
    cached: int
    free: int
    running: int
    waiting: int


@dataclass(frozen=True, slots=True)
class ProgramRecord:
    """One program from arrival to its end; ``deadline`` is seconds after its arrival."""

    program: str
    tenant: str
    arrival: float
    finished: float
    outcome: ProgramOutcome
    detail: str = ""
    deadline: float | None = None


@dataclass(slots=True)
class RunRecord:
    """Everything about one run of one workload under one policy and one seed."""

    policy: str
    seed: int
    engine: Literal["live", "simulated"]
    pool_tokens: int
    workload: str
    programs: list[ProgramRecord] = field(default_factory=list)
    turns: list[TurnRecord] = field(default_factory=list)
    tools: list[ToolRecord] = field(default_factory=list)
    pins: list[PinRecord] = field(default_factory=list)
    kv: list[KVSample] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    complete: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and lists."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunRecord:
        """Rebuild a record from ``to_json``'s output."""
        rows = dict(data)
        rows["programs"] = [ProgramRecord(**row) for row in data["programs"]]
        rows["turns"] = [TurnRecord(**row) for row in data["turns"]]
        rows["tools"] = [ToolRecord(**row) for row in data["tools"]]
        rows["pins"] = [PinRecord(**row) for row in data["pins"]]
        rows["kv"] = [KVSample(**row) for row in data["kv"]]
        return cls(**rows)
