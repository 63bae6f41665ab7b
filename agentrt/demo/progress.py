"""Where each program stands: what the live view and the closing table are drawn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agentrt.bench.records import ProgramOutcome
from agentrt.demo.recording import Recording
from agentrt.scheduling.plan import TurnStats

__all__ = ["Observer", "Row", "RowState", "new_row"]

RowState: TypeAlias = Literal[
    "waiting", "thinking", "running", "testing", "resolved", "unresolved", "failed", "cancelled"
]


@dataclass(slots=True)
class Row:
    """One program. Token counts are sums over its turns so far; times are seconds since the start.

    ``state`` is ``thinking`` while the engine runs its turn, ``running`` while its command runs and
    ``testing`` while its tree is judged.
    """

    name: str
    kind: str
    title: str
    turns: int
    state: RowState = "waiting"
    turn: int = 0
    tool_calls: int = 0
    command: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    started: float = 0.0
    finished: float | None = None
    detail: str = ""

    @property
    def done(self) -> bool:
        """Whether it has ended, however."""
        return self.finished is not None

    @property
    def cached_share(self) -> float:
        """The part of its prompt tokens that were found in the KV cache, 0 to 1."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def outcome(self) -> ProgramOutcome:
        """How it ended; ``cancelled`` for one that has not."""
        if self.state == "resolved" or self.state == "unresolved" or self.state == "failed":
            return self.state
        return "cancelled"

    def add(self, stats: TurnStats) -> None:
        """Count a turn that ended."""
        self.prompt_tokens += stats.prompt_tokens
        self.cached_tokens += stats.cached_tokens
        self.output_tokens += stats.output_tokens


Observer: TypeAlias = Callable[[Row, str], None]
"""Called when a row has changed, with one line that says what happened."""


def new_row(recording: Recording) -> Row:
    """Return the row of a program that has not arrived yet."""
    task = recording.task
    return Row(recording.name, task.kind, task.title, turns=len(recording.turns))
