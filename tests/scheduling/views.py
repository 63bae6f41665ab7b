"""Turns, programs, contexts and pools as policies see them, for tests of formulas."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from agentrt.scheduling.hints import NO_HINTS, TurnHints

__all__ = ["FakeContext", "FakePool", "FakeProgram", "FakeRun", "FakeTurn"]


@dataclass(eq=False)
class FakeProgram:
    program_id: str = "p"
    tenant: str = "default"
    arrival: float = 0.0
    turns_served: int = 0
    prefilled: int = 0
    decoded: int = 0
    service: float = 0.0
    waited: float = 0.0
    live_turns: int = 0
    contexts: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class FakeContext:
    program: FakeProgram = field(default_factory=FakeProgram)
    name: str = "main"
    length: int = 0
    last_end: float | None = None
    tool: str | None = None
    live_turns: int = 0
    pinned: bool = False

    def __post_init__(self) -> None:
        self.program.contexts[self.name] = self

    @property
    def owner(self) -> str:
        return f"{self.program.program_id}\0{self.name}"


@dataclass(eq=False)
class FakeTurn:
    state: FakeContext = field(default_factory=FakeContext)
    turn_id: str = "p/0"
    tool: str | None = "bash"
    hints: TurnHints = NO_HINTS
    submitted: float = 0.0
    sequence: int = 1
    prompt_tokens: int = 100
    output: int = 0
    max_output: int = 50
    computed: int = 0
    decoding: bool = False
    preemptions: int = 0

    @property
    def length(self) -> int:
        return self.prompt_tokens + self.output

    @property
    def context(self) -> str:
        return self.state.name

    @property
    def program(self) -> FakeProgram:
        return self.state.program

    @property
    def program_id(self) -> str:
        return self.program.program_id

    @property
    def tenant(self) -> str:
        return self.program.tenant

    @property
    def pinned(self) -> bool:
        return self.state.pinned

    @property
    def program_arrival(self) -> float:
        return self.program.arrival

    @property
    def program_turns(self) -> int:
        return self.program.turns_served


@dataclass(eq=False)
class FakePool:
    capacity: int = 1000
    leased: int = 0
    pinned: int = 0
    running: list[FakeTurn] = field(default_factory=list)
    waiting: int = 0
    programs: dict[str, FakeProgram] = field(default_factory=dict)

    @property
    def available(self) -> int:
        return self.capacity - self.leased

    def cached(self, turn: FakeTurn) -> int:
        return 0


@dataclass(eq=False)
class FakeRun:
    owners: tuple[str, ...] = ()
    last_used: float = 0.0
    size: int = 1

    @property
    def owned(self) -> bool:
        return bool(self.owners)


def turn_of(name: str = "p", *, arrival: float = 0.0, tenant: str = "default", **more: Any):
    """Return the first turn of a new program."""
    program = FakeProgram(name, tenant, arrival)
    return FakeTurn(FakeContext(program), f"{name}/0", **more)
