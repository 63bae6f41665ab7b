"""What the scheduler remembers of programs, contexts and turns between two events."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentrt.scheduling.hints import TurnHints
from agentrt.scheduling.kv import KVLease
from agentrt.scheduling.plan import FinishReason, TurnRequest, TurnStats

__all__ = ["ContextState", "Pin", "ProgramState", "TurnState"]


@dataclass(slots=True, eq=False)
class ProgramState:
    """One program from its first turn to its end."""

    program_id: str
    arrival: float
    tenant: str = "default"
    turns_served: int = 0
    prefilled: int = 0
    decoded: int = 0
    service: float = 0.0
    waited: float = 0.0
    ending: bool = False
    forgotten: bool = False
    contexts: dict[str, ContextState] = field(default_factory=dict)

    @property
    def live_turns(self) -> int:
        """Turns that were handed in and have not ended."""
        return sum(context.live_turns for context in self.contexts.values())


@dataclass(slots=True, eq=False)
class Pin:
    """A context's KV held after a turn ended, until ``expiry``; a ``soft`` one yields to any."""

    context: ContextState
    lease: KVLease
    start: float
    ttl: float
    expiry: float
    tokens: int
    soft: bool = False


@dataclass(slots=True, eq=False)
class ContextState:
    """One line of prompts of a program. ``length`` is the tokens of its latest ended turn.

    ``gone``: it is not expected back.
    """

    program: ProgramState
    name: str
    waiting: list[TurnState] = field(default_factory=list)
    live_turns: int = 0
    last_end: float | None = None
    length: int = 0
    tool: str | None = None
    pin: Pin | None = None
    gone: bool = False

    @property
    def owner(self) -> str:
        """The name under which the page cache knows this context."""
        return f"{self.program.program_id}\0{self.name}"

    @property
    def pinned(self) -> bool:
        return self.pin is not None


@dataclass(slots=True, eq=False)
class TurnState:
    """One turn. Its tokens fall into::

    [0, computed)            in KV, on ``lease``'s pages
    [computed, length)       to be computed; one token left means: decoding
    prefill_end              the length at admission: what lies before it is prefill

    ``displaced``: it gave its place to a more urgent one, which happens once. ``loading``: the
    ticket of the transfer that it waits for; until then it is not computed. ``fetching``: it waits
    to be started until its KV has been read from files. ``ended``: why it has ended, while a step
    that it is part of is still under way.
    """

    request: TurnRequest
    sequence: int
    submitted: float
    state: ContextState
    prompt_tokens: int
    since: float
    computed: int = 0
    prefill_end: int = 0
    output: int = 0
    lease: KVLease | None = None
    admitted: float | None = None
    first_token: float | None = None
    cached: int = 0
    prefilled: int = 0
    preemptions: int = 0
    displaced: bool = False
    loading: int | None = None
    fetching: bool = False
    cancelled: bool = False
    ended: FinishReason | None = None
    tool_seen: str | None = None
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def turn_id(self) -> str:
        return self.request.turn_id

    @property
    def program_id(self) -> str:
        return self.request.program_id

    @property
    def context(self) -> str:
        return self.request.context

    @property
    def tenant(self) -> str:
        return self.request.tenant

    @property
    def tool(self) -> str | None:
        return self.tool_seen or self.request.next_tool

    @property
    def hints(self) -> TurnHints:
        return self.request.hints

    @property
    def max_output(self) -> int:
        return self.request.max_output

    @property
    def program(self) -> ProgramState:
        return self.state.program

    @property
    def length(self) -> int:
        return len(self.request.tokens)

    @property
    def pinned(self) -> bool:
        return self.state.pin is not None

    @property
    def program_arrival(self) -> float:
        return self.state.program.arrival

    @property
    def program_turns(self) -> int:
        return self.state.program.turns_served

    @property
    def decoding(self) -> bool:
        return self.computed >= self.prefill_end

    def spend(self, now: float) -> None:
        """Book the time since the last call to waiting, prefill or decode."""
        elapsed, self.since = now - self.since, now
        if self.lease is None:
            self.queue_seconds += elapsed
            self.state.program.waited += elapsed
        elif self.first_token is None:
            self.prefill_seconds += elapsed
        else:
            self.decode_seconds += elapsed

    def stats(self, reason: FinishReason, now: float) -> TurnStats:
        """Return the final account."""
        request = self.request
        return TurnStats(
            turn_id=request.turn_id,
            program_id=request.program_id,
            context=request.context,
            tenant=request.tenant,
            submitted=self.submitted,
            admitted=self.admitted,
            first_token=self.first_token,
            finished=now,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached,
            prefilled_tokens=self.prefilled,
            output_tokens=self.output,
            preemptions=self.preemptions,
            queue_seconds=self.queue_seconds,
            prefill_seconds=self.prefill_seconds,
            decode_seconds=self.decode_seconds,
            reason=reason,
        )
