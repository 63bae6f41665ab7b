"""One tool call's way through the resource controller: declared, admitted, limited, told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from agentrt.resources.cgroup import ToolGroup
from agentrt.resources.control_events import HIGH, LOW, NORMAL
from agentrt.resources.feedback import Ending, Feedback
from agentrt.resources.governor import CallInfo, Governed, Governor
from agentrt.resources.hints import HINT_VARIABLE, hint_in_command, hint_of_call
from agentrt.resources.intent import Intent, current_intent, merged
from agentrt.sandbox.base import ExecStatus, Limits
from agentrt.sandbox.supervise import Ended, Group

__all__ = ["Course", "Declared", "declared"]

OOM_SCORES = {LOW: 600, NORMAL: 300, HIGH: 0}
"""Should a whole budget be exhausted after all, the kernel kills lesser calls first."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What a call declares in all, and what of its hint was not understood."""

    intent: Intent
    hint: str = ""
    notes: tuple[str, ...] = ()


def declared(
    command: str | Sequence[str],
    env: Mapping[str, str],
    given: Intent | None,
    default: Intent | None,
) -> Declared:
    """Put together what is declared: the argument first, the block around it, hint, default."""
    hinted, notes = hint_of_call(command, env)
    hint = hint_in_command(command) or env.get(HINT_VARIABLE, "")
    intent = merged(merged(merged(given, current_intent()), hinted), default)
    return Declared(intent, hint, notes)


class Course:
    """A context around one tool call. Without a governor it lets everything pass as it is."""

    def __init__(self, governor: Governor | None, info: CallInfo) -> None:
        self._governor = governor
        self._info = info
        self._governed: Governed | None = None
        self._group: ToolGroup | None = None
        self._ended = False

    async def __aenter__(self) -> Self:
        """Wait until the call may start.

        Raises:
            ToolNotStarted: it was refused.
        """
        if self._governor is not None:
            self._governed = await self._governor.admit(self._info)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._governor is not None and self._governed is not None and not self._ended:
            self._governor.ended(self._governed, None)

    @property
    def killed(self) -> str:
        """Why the controller killed the call; empty if it did not."""
        return self._governed.ticket.killed if self._governed else ""

    @property
    def oom_score(self) -> int:
        """What is added to the call's rank as a victim of the kernel."""
        if self._governed is None or self._group_less:
            return 0
        return OOM_SCORES[self._governed.envelope.priority]

    @property
    def _group_less(self) -> bool:
        return self._governor is None or not self._governor.is_open

    @property
    def offline(self) -> bool:
        """Whether the kernel refuses the call every connection."""
        return self._governed is not None and self._governed.offline

    @property
    def unenforced(self) -> tuple[str, ...]:
        """What was asked for and is not in force."""
        return self._governed.unenforced if self._governed else ()

    def limits(self, asked: Limits) -> Limits:
        """The plain limits that the call's cgroup is made with."""
        if self._governed is None:
            return asked
        envelope = self._governed.envelope
        declared = self._info.intent.memory is not None or asked.memory is not None
        # Where no cgroup can be made, an estimate is no limit that anybody asked for.
        memory = envelope.memory_max if declared or not self._group_less else None
        cpu = (
            envelope.cpu_max if self._info.intent.cpu or asked.cpu or not self._group_less else None
        )
        return Limits(memory, cpu, envelope.pids_max)

    def begin(self, group: Group) -> None:
        """The cgroup is there.

        Raises:
            ToolNotStarted: the call was killed meanwhile.
        """
        if self._governor is not None and self._governed and isinstance(group, ToolGroup):
            self._group = group
            self._governor.started(self._governed, group)

    def time_limit(self, timeout: float | None) -> float | None:
        """The time limit of the run: the caller's, or what is left to the declared deadline."""
        deadline = self._governed.envelope.deadline if self._governed else None
        found = [seconds for seconds in (timeout, deadline) if seconds is not None]
        return min(found) if found else None

    def frozen_seconds(self) -> float:
        """Time that does not count against the time limit."""
        if self._governor is None or self._governed is None:
            return 0.0
        return self._governor.frozen_seconds(self._governed)

    def measure(self) -> None:
        """A last look at the cgroup."""
        if self._governor is not None and self._governed and self._group is not None:
            self._governor.measure(self._governed, self._group)

    def end(self, ended: Ended, status: ExecStatus) -> Feedback | None:
        """The call is over: what is to be told about it."""
        self._ended = True
        if self._governor is None or self._governed is None:
            return None
        counted = ended.counters
        ending = Ending(
            exit_code=ended.code,
            duration=ended.duration,
            peak_memory=counted.peak_memory,
            oom_kills=counted.oom_kills or 0,
            pids_refused=counted.pids_refused or 0,
            timed_out=status == "timeout",
        )
        return self._governor.ended(self._governed, ending)
