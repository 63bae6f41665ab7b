"""What a client may say ahead about a turn and its program. Advisory: it never changes a token."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NO_HINTS", "TurnHints"]


@dataclass(frozen=True, slots=True)
class TurnHints:
    """Hints, each of which may be missing, late or wrong.

    Args:
        priority: higher is more urgent; 0 is ordinary.
        turn_deadline: when the turn should have ended, on the scheduler's clock, in seconds.
        program_deadline: the same for the whole program.
        output_tokens: how many tokens the turn will put out.
        gap_seconds: how long after its end the context will be back.
        remaining_turns: how many turns the program has left after this one.
        keep_seconds: how long the client asks for its KV to be kept after the turn.
        parent: the context that started this one, if it is a sub-agent's.
        agent: what kind of agent this is: programs of one kind have similar execution graphs.
        last_tool: the tool that ran before this turn, where the turn before it did not say so.
        step: the declared step of the program's execution graph that this turn is.
    """

    priority: int = 0
    turn_deadline: float | None = None
    program_deadline: float | None = None
    output_tokens: int | None = None
    gap_seconds: float | None = None
    remaining_turns: int | None = None
    keep_seconds: float | None = None
    parent: str | None = None
    agent: str | None = None
    last_tool: str | None = None
    step: str | None = None


NO_HINTS = TurnHints()
