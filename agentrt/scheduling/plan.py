"""What crosses between scheduling and whoever runs a step: plain integers and names.

``plan(now)`` yields a :class:`StepPlan`; a :class:`Backend` turns it into a :class:`StepResult`;
``commit(plan, result, now)`` turns that into events. Nothing here knows torch, threads or time.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from agentrt.scheduling.graph_declared import Edge, Step
from agentrt.scheduling.hints import NO_HINTS, TurnHints

FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "failed"]
PinOutcome: TypeAlias = Literal["handed_off", "expired", "broken", "final"]


class TokenSource(Protocol):
    """A turn's tokens, prompt first, output appended: what the prefix tree is keyed by."""

    def __len__(self) -> int:
        """Return how many tokens there are now."""
        ...

    def page_keys(self, page_size: int, count: int) -> Sequence[Hashable]:
        """Return the keys of the first ``count`` full pages.

        Two sources agree on key ``i`` after agreeing on keys ``0..i-1`` if and only if their first
        ``(i + 1) * page_size`` tokens are the same.
        """
        ...

    def extend(self, tokens: Sequence[int]) -> None:
        """Append output tokens."""
        ...


class GrowingSource(TokenSource, Protocol):
    """Tokens of a prompt that is not complete yet."""

    def revise(self, keep: int, tokens: Sequence[int]) -> None:
        """Replace what follows the first ``keep`` tokens."""
        ...


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """A turn that is opened before its prompt is complete. ``turn_id`` is not the sealed turn's."""

    turn_id: str
    program_id: str
    tokens: GrowingSource
    context: str = "main"

    @property
    def owner(self) -> str:
        """The name under which the page cache knows the context (``ContextState.owner``)."""
        return f"{self.program_id}\0{self.context}"


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One LLM call of a program, as handed to the scheduler.

    ``max_output`` is in tokens; the turn ends with reason ``length`` when it is reached.
    ``next_tool``, ``last`` and ``hints`` may be missing or wrong, and never change a token.
    ``program_arrival`` is when the program came, if other schedulers served it before this one.
    """

    turn_id: str
    program_id: str
    tokens: TokenSource
    max_output: int
    context: str = "main"
    tenant: str = "default"
    next_tool: str | None = None
    last: bool = False
    hints: TurnHints = NO_HINTS
    program_arrival: float | None = None


@dataclass(slots=True)
class SeqSlice:
    """The part of one turn that a step computes: tokens ``[start, start + count)``.

    ``pages`` is the turn's page table and covers at least ``start + count`` tokens. It is a live
    list owned by the scheduler: read it during the step, do not keep or change it. ``sample`` says
    that the last token of the slice is the newest one, so that the next token is to be sampled.

    The last ``len(draft)`` of the ``count`` tokens are guesses at what follows the newest token;
    only a sampled slice has them. Wherever a guess is the token that is drawn, the one after it is
    drawn as well; what was computed for others is written anew before anything reads it.
    """

    # Not frozen: a step makes hundreds, and a frozen one takes four times as long to make.

    turn_id: str
    start: int
    count: int
    pages: Sequence[int]
    sample: bool
    draft: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Transfer:
    """Pages to copy between the pool and the host tier: ``pages[i]`` and ``host_pages[i]``.

    A ``fetch`` has no pool pages: it fills ``host_pages[i]`` from the file called ``names[i]``.

    Both lists stay as they are, and nobody else writes either side, until the driver reports the
    ``ticket`` to ``Scheduler.transferred``. Copies may run beside steps, in any order.
    """

    ticket: int
    kind: Literal["load", "store", "fetch"]
    pages: Sequence[int]
    host_pages: Sequence[int]
    names: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One iteration: the slices to run together, prefill chunks and decodes alike.

    ``transfers`` are to be begun now; with them ``slices`` may be empty, and then there is no step
    to commit.

    ``repeat > 1`` is only planned when the caller passed a horizon to ``plan``: every slice is then
    a decode, and the same plan may be run that many times without asking again.
    """

    slices: tuple[SeqSlice, ...]
    repeat: int = 1
    transfers: tuple[Transfer, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens computed by one repetition of this step."""
        return sum(piece.count for piece in self.slices)


@dataclass(slots=True)
class Sample:
    """What a step produced for one sampled slice.

    ``tokens`` has one entry a repetition that was run: all that the plan allows, fewer if the
    driver stopped short of it (then alike for all slices) or ``finish`` is set. With a draft it has
    the guesses that came true and one more, fewer only if ``finish`` is set. ``finish`` is
    set by the backend when a stop token or stop string was met, or ``failed`` when the turn
    cannot go on (then also for slices that were not to be sampled). ``tool`` names the tool that
    the output calls, if the backend recognised one.
    """

    # Not frozen, for the reason of ``SeqSlice``.

    tokens: Sequence[int]
    finish: Literal["stop", "failed"] | None = None
    tool: str | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """Samples by turn id, one for every slice planned with ``sample=True``.

    ``abandoned``: the step was given up, there are no samples, and none of its tokens counts; what
    it has written to pages is written anew before anything reads it.
    """

    samples: Mapping[str, Sample] = field(default_factory=dict)
    abandoned: bool = False


class Backend(Protocol):
    """Runs a step and blocks until its samples are known."""

    def run(self, plan: StepPlan) -> StepResult:
        """Compute every slice of ``plan`` and sample where it says so."""
        ...


@dataclass(frozen=True, slots=True)
class TurnStats:
    """The account of one turn. Times are the injected clock's seconds; counts are tokens.

    ``queue_seconds + prefill_seconds + decode_seconds == finished - submitted``: waiting for a
    place (again after a preemption), computing up to the first token, and emitting the rest.
    """

    turn_id: str
    program_id: str
    context: str
    tenant: str
    submitted: float
    admitted: float | None
    first_token: float | None
    finished: float
    prompt_tokens: int
    cached_tokens: int
    prefilled_tokens: int
    output_tokens: int
    preemptions: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class TurnAdmitted:
    """A turn left the queue; ``cached_tokens`` of its tokens were found in the prefix tree."""

    turn_id: str
    time: float
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class TurnPreempted:
    """A running turn gave its pages back and waits again; its output so far stays."""

    turn_id: str
    time: float


@dataclass(frozen=True, slots=True)
class TurnFinished:
    """A turn ended, for whatever reason: exactly one for every submitted turn."""

    stats: TurnStats


@dataclass(frozen=True, slots=True)
class PinEnded:
    """A pin's life: from the end of a turn to ``end``, and how it ended."""

    program_id: str
    context: str
    start: float
    end: float
    ttl: float
    tokens: int
    outcome: PinOutcome


Event: TypeAlias = TurnAdmitted | TurnPreempted | TurnFinished | PinEnded


ToolEventKind: TypeAlias = Literal["started", "ended", "killed", "blocked", "throttled", "frozen"]


@dataclass(frozen=True, slots=True)
class ToolEvent:
    """What a sandbox reports of a program's tool call: refines when its KV will be needed.

    ``blocked`` waits for input or the network, ``throttled`` runs slowed down at a limit,
    ``frozen`` does not run at all for now; ``started`` again says that it goes on.
    """

    program_id: str
    context: str
    kind: ToolEventKind
    tool: str


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """Gauges (now) and counters (since start). Page counts are pages, token counts tokens."""

    running: int
    waiting: int
    programs: int
    pins: int
    pages_total: int
    pages_free: int
    pages_cached: int
    pages_leased: int
    pages_pinned: int
    page_size: int
    prompt_tokens: int
    cached_tokens: int
    prefilled_tokens: int
    output_tokens: int
    preemptions: int
    steps: int
    turns_finished: int
    pins_handed_off: int
    pins_expired: int
    pins_broken: int
    pins_final: int
    longest_wait: float
    transfers: int = 0
    loaded_tokens: int = 0
    stored_tokens: int = 0
    prefetched_tokens: int = 0
    fetched_tokens: int = 0
    opened: int = 0
    streamed_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class SchedulerProtocol(Protocol):
    """The scheduler as its drivers see it. Not thread-safe: one driver owns it."""

    def submit(self, request: TurnRequest, now: float, opened: str | None = None) -> None:
        """Queue a turn; ``opened`` names the open turn that it seals.

        Raises:
            ProgramTooLarge: its prompt and one token can never fit the pool.
            QueueFull: the waiting bound is reached.
            InvalidRequest: empty prompt, ``max_output < 1``, or a turn id already in use.
        """
        ...

    def open(self, request: OpenRequest) -> None:
        """Have a prompt that is not complete yet computed ahead, with what no turn needs.

        Raises:
            InvalidRequest: the id is in use.
        """
        ...

    def revise(self, turn_id: str, keep: int, tokens: Sequence[int], now: float) -> None:
        """Replace what follows the first ``keep`` tokens of an open turn, if it is known."""
        ...

    def close(self, turn_id: str, now: float) -> None:
        """Forget an open turn; what was computed of it stays cached. Unknown ids are ignored."""
        ...

    def plan(self, now: float, horizon: int = 1) -> StepPlan:
        """Decide the next step. An empty plan means that there is nothing to run at ``now``."""
        ...

    def follow(self, plan: StepPlan, now: float) -> StepPlan | None:
        """Decide the step after ``plan``, which is under way alone, before its result is known.

        Each slice goes on by the token that the same turn's slice in ``plan`` samples. None where
        anything else is to be decided: ``plan`` is to be committed then, and the next one planned.
        Else both are under way, to be committed in their order; a turn that ends in ``plan`` all
        the same ends for everybody else when the second step is committed, without output of it.
        """
        ...

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> list[Event]:
        """Account for a step that was run; ``now`` is the time at which it ended."""
        ...

    def welcomes(self, request: TurnRequest) -> bool:
        """Whether a turn, not handed in yet, would be prefilled within the very next step.

        A driver may then give up a long step that is under way (``StepResult.abandoned``).
        """
        ...

    def cancel(self, turn_id: str, now: float) -> bool:
        """Ask to end a turn at the next commit; False if it is not known (any more)."""
        ...

    def end_program(self, program_id: str, now: float) -> None:
        """Forget a program: its waiting and running turns are cancelled, its pins released."""
        ...

    def end_context(self, program_id: str, context: str, now: float) -> None:
        """Let go of the KV of a context that is not expected back; one with a turn stays.

        If it comes back all the same, what is gone by then is computed again.
        """
        ...

    def declare(self, program_id: str, steps: Sequence[Step], edges: Sequence[Edge]) -> None:
        """Take note of what a program is going to do, before or while it runs. Advisory.

        Raises:
            InvalidRequest: the graph contradicts itself.
        """
        ...

    def tool_event(self, event: ToolEvent, now: float) -> None:
        """Take note of a tool call's progress."""
        ...

    def transferred(
        self, tickets: Collection[int], now: float, failed: Collection[int] = ()
    ) -> None:
        """Take note of transfers whose copies are done, and of those that failed."""
        ...

    def restart(self, now: float) -> None:
        """Take note that all KV is lost. No step may be under way.

        Running turns go back to the queue, to be computed again from their tokens; pins are broken;
        copies that are under way are given up, and the driver must not report them.
        """
        ...

    def take_events(self) -> list[Event]:
        """Return events that arose outside ``commit``: pins ended, turns cancelled."""
        ...

    def next_deadline(self, now: float) -> float | None:
        """Return when time alone may change a decision (a pin expires, a turn ages), if ever.

        A driver that plans with a horizon must not let a repeated step run past it.
        """
        ...

    def next_prefetch(self) -> float | None:
        """Return when KV is next to be brought back from the host, if no context returns before.

        An idle driver should plan then.
        """
        ...

    def statistics(self) -> SchedulerStatistics:
        """Return gauges and counters."""
        ...

    def check_integrity(self) -> None:
        """Raise ``InternalError`` if queues, leases and pages disagree."""
        ...
