"""What a cluster simulation keeps of turns on their way, and of programs between their turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from agentrt.bench.workload import Program
from agentrt.scheduling.plan import TurnRequest, TurnStats
from agentrt.simulation.groups import Group
from agentrt.simulation.programs import Foretelling, ProgramRun
from agentrt.simulation.tally import Ledger
from agentrt.simulation.toolhosts import ToolCall, ToolHosts
from agentrt.simulation.worker import SimulatedWorker

__all__ = ["Away", "Flight", "Journey"]


@dataclass(slots=True, eq=False)
class Flight:
    """A turn from its arrival to its end, on one worker after another."""

    run: ProgramRun
    request: TurnRequest
    group: Group
    submitted: float
    worker: SimulatedWorker | None = None
    travelling: bool = False
    prefilled: TurnStats | None = None
    prefiller: SimulatedWorker | None = None

    def account(self, last: TurnStats) -> TurnStats:
        """Return the account of the whole turn; ``last`` is that of where it ended.

        Of a turn that was prefilled on one worker and decoded on another, what lies between its two
        parts, the way over the network, counts as waiting.
        """
        first = self.prefilled
        if first is None:
            return last
        return replace(
            first,
            finished=last.finished,
            prefilled_tokens=first.prefilled_tokens + last.prefilled_tokens,
            output_tokens=first.output_tokens + last.output_tokens,
            preemptions=first.preemptions + last.preemptions,
            queue_seconds=first.queue_seconds + last.queue_seconds,
            decode_seconds=first.decode_seconds + last.prefill_seconds + last.decode_seconds,
            reason=last.reason,
        )


@dataclass(slots=True, eq=False)
class Journey:
    """A program under way and the workers that have seen it, each with its group."""

    program: Program
    arrival: float
    seen: dict[SimulatedWorker, Group] = field(default_factory=dict)


class Away:
    """Programs between two turns: their gaps, and the tool calls in them where hosts are limited.

    Args:
        tools: the hosts; None: without limit.
        memory: bytes that the tool calls after a turn need, given program and turn index.
        ledger: is told of every gap.
        arrive: is given the time at which a turn arrives, and the turn.
        call_ends: is given the time at which a tool call ends, and the call.
        foretell: is told when turns come back, for policies that are oracles.
    """

    def __init__(
        self,
        tools: ToolHosts | None,
        memory: Callable[[Program, int], int],
        ledger: Ledger,
        arrive: Callable[[float, ProgramRun], None],
        call_ends: Callable[[float, ToolCall], None],
        foretell: Foretelling | None = None,
    ) -> None:
        self.tools = tools
        self._memory = memory
        self._ledger = ledger
        self._arrive = arrive
        self._call_ends = call_ends
        self._foretell = foretell

    def leave(self, run: ProgramRun, finished: float) -> None:
        """A turn ended: its gap begins, now or when there is room for its tool call."""
        if self.tools is None or not run.turn.tools:
            self._come_back(run, finished, finished)
            return
        memory = self._memory(run.program, run.index)
        call = ToolCall(run.program.program, run.turn_id, memory, run, finished)
        if self.tools.begin(call):
            self._start(call, finished)

    def call_ended(self, call: ToolCall, now: float) -> None:
        """Make room for calls that wait for it."""
        if self.tools is not None:
            for waiting in self.tools.end(call, now):
                self._start(waiting, now)

    def _start(self, call: ToolCall, now: float) -> None:
        gap = call.run.turn.gap or 0.0
        self._call_ends(now + gap, call)
        self._come_back(call.run, call.since, now)

    def _come_back(self, run: ProgramRun, left: float, started: float) -> None:
        """The gap of a turn that ended at ``left`` begins at ``started``."""
        back = started + (run.turn.gap or 0.0)
        self._ledger.gap(run.program, run.index, left, back)
        ready = run.next_turns(back)
        if self._foretell is not None and run.branches:
            self._foretell.branches(run, started)
        elif self._foretell is not None:
            self._foretell.leaves(run, back)
        for time, following in ready:
            self._arrive(time, following)
