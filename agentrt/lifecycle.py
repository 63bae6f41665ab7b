"""Programs, turns and tool calls as states, with the moves that are legal between them. Pure.

program:    ready ──► thinking ◄──► acting ──► ended        (thinking: a turn is under way;
              ▲  ▲────────┘             │                     acting: a tool call is, and no turn)
              └─────────────────────────┘
turn:       waiting ──► running ──► ended      waiting ◄── running (preempted)
tool call:  starting ──► running ──► ended
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Generic, TypeVar

from agentrt.errors import InternalError, InvalidRequest

__all__ = ["Life", "ProgramLife", "ProgramState", "ToolCallState", "TurnState"]


class TurnState(Enum):
    """Where a turn is."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


class ToolCallState(Enum):
    """Where a tool call is."""

    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"


class ProgramState(Enum):
    """What a program is doing."""

    READY = "ready"
    THINKING = "thinking"
    ACTING = "acting"
    ENDED = "ended"


State = TypeVar("State", bound=Enum)

TURN_MOVES: Mapping[TurnState, frozenset[TurnState]] = {
    TurnState.WAITING: frozenset({TurnState.RUNNING, TurnState.ENDED}),
    TurnState.RUNNING: frozenset({TurnState.WAITING, TurnState.ENDED}),
    TurnState.ENDED: frozenset(),
}
TOOL_MOVES: Mapping[ToolCallState, frozenset[ToolCallState]] = {
    ToolCallState.STARTING: frozenset({ToolCallState.RUNNING, ToolCallState.ENDED}),
    ToolCallState.RUNNING: frozenset({ToolCallState.ENDED}),
    ToolCallState.ENDED: frozenset(),
}


class Life(Generic[State]):
    """One thing's state; ``move`` refuses what its table does not allow."""

    def __init__(self, start: State, moves: Mapping[State, frozenset[State]]) -> None:
        self.state = start
        self._moves = moves

    def move(self, target: State) -> None:
        """Go to ``target``.

        Raises:
            InternalError: no such move from the present state.
        """
        if target not in self._moves[self.state]:
            raise InternalError(f"No move from {self.state.value} to {target.value}.")
        self.state = target


class ProgramLife:
    """A program's state, derived from the turns and tool calls that are under way."""

    def __init__(self, program_id: str) -> None:
        self.program_id = program_id
        self._turns: dict[str, Life[TurnState]] = {}
        self._tools: dict[str, Life[ToolCallState]] = {}
        self._ended = False

    @property
    def state(self) -> ProgramState:
        """What the program is doing; a turn counts before a tool call."""
        if self._ended:
            return ProgramState.ENDED
        if self._turns:
            return ProgramState.THINKING
        return ProgramState.ACTING if self._tools else ProgramState.READY

    def start_turn(self, turn_id: str) -> None:
        """A turn was handed in.

        Raises:
            InvalidRequest: the program has ended.
        """
        self._require_open()
        self._turns[turn_id] = Life(TurnState.WAITING, TURN_MOVES)

    def move_turn(self, turn_id: str, target: TurnState) -> None:
        """A turn was admitted, preempted, or ended; turns that are not known are ignored."""
        life = self._turns.get(turn_id)
        if life is None:
            return
        life.move(target)
        if target is TurnState.ENDED:
            del self._turns[turn_id]

    def start_tool(self, call_id: str) -> None:
        """A tool call begins.

        Raises:
            InvalidRequest: the program has ended.
        """
        self._require_open()
        self._tools[call_id] = Life(ToolCallState.STARTING, TOOL_MOVES)
        self._tools[call_id].move(ToolCallState.RUNNING)

    def end_tool(self, call_id: str) -> None:
        """A tool call is over."""
        self._tools.pop(call_id).move(ToolCallState.ENDED)

    def end(self) -> None:
        """The program is over, whatever was under way. Idempotent."""
        self._ended = True

    def _require_open(self) -> None:
        if self._ended:
            raise InvalidRequest(
                f"Program {self.program_id} has ended.", remedy="Open a new program for more work."
            )
