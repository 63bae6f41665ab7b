"""Pure: what a tool call is told afterwards, as data and as one plain line that a model can act on.

Out of memory is read from the cgroup's own counters and from nothing else: a command that ends with
137 by itself was not out of memory, and one that ends with 1 after the kernel killed its grandchild
was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from agentrt.resources.control_events import KillReason
from agentrt.resources.control_state import CallReport
from agentrt.resources.envelope import Envelope
from agentrt.resources.units import show_seconds, show_size

__all__ = ["Ending", "Feedback", "Outcome", "make_feedback", "record"]

Outcome: TypeAlias = Literal["fine", "failed", "out_of_memory", "killed", "timeout"]
MIB = 1 << 20
NOTABLE = 0.5
"""Seconds of standing still or waiting that are worth a word."""
SUGGESTED = 1.5
"""What is suggested of what was not enough."""
COMMAND_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Ending:
    """How a tool call ended, from its process and its cgroup. ``killed``: why we ended it."""

    exit_code: int | None
    duration: float
    peak_memory: int | None = None
    memory_limit: int | None = None
    oom_kills: int = 0
    pids_refused: int = 0
    pids_limit: int | None = None
    memory_stalled: float = 0.0
    cpu_throttled: float = 0.0
    timed_out: bool = False
    killed: str = ""
    killed_for: KillReason | None = None


@dataclass(frozen=True, slots=True)
class Feedback:
    """What happened to a tool call. Bytes, seconds; ``text`` is empty when nothing is to be said.

    ``winner`` names the call whose claim went before, if it is of the same tenant; ``suggested`` is
    an intent, as JSON, that would fit what was seen.
    """

    outcome: Outcome
    limit: int | None = None
    peak: int | None = None
    waited: float = 0.0
    frozen: float = 0.0
    freezes: int = 0
    throttled: float = 0.0
    cpu_throttled: float = 0.0
    lent: int = 0
    oom_kills: int = 0
    pids_refused: int = 0
    killed: str = ""
    winner: str | None = None
    clamps: tuple[str, ...] = ()
    suggested: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    text: str = ""

    def __str__(self) -> str:
        return self.text


def make_feedback(
    ending: Ending,
    envelope: Envelope | None,
    report: CallReport | None,
    winner: str | None = None,
    notes: Sequence[str] = (),
) -> Feedback:
    """Say what happened. ``winner`` is how the call that went before may be called here."""
    outcome = _outcome(ending)
    suggested = _suggest(ending, envelope)
    frozen, waited = (report.frozen, report.waited) if report else (0.0, 0.0)
    clamps = tuple(str(clamp) for clamp in envelope.clamps) if envelope else ()
    sentences = [
        *_what(ending, outcome),
        *_stood_still(frozen, waited, ending, winner),
        *_processes(ending),
        *(f"Your {clamp}." for clamp in clamps),
        *(f"Not understood in the hint: {note}." for note in notes),
        *_advice(suggested, ending),
    ]
    return Feedback(
        outcome=outcome,
        limit=ending.memory_limit,
        peak=ending.peak_memory,
        waited=waited,
        frozen=frozen,
        freezes=report.freezes if report else 0,
        throttled=max(ending.memory_stalled, report.throttled if report else 0.0),
        cpu_throttled=ending.cpu_throttled,
        lent=report.lent if report else 0,
        oom_kills=ending.oom_kills,
        pids_refused=ending.pids_refused,
        killed=ending.killed,
        winner=winner,
        clamps=clamps,
        suggested=suggested,
        source=envelope.why if envelope else "",
        text=f"[Resource] {' '.join(sentences)}" if sentences else "",
    )


def _outcome(ending: Ending) -> Outcome:
    if ending.killed:
        return "killed"
    if ending.timed_out:
        return "timeout"
    if ending.oom_kills and ending.exit_code != 0:
        return "out_of_memory"
    return "fine" if ending.exit_code == 0 else "failed"


def _what(ending: Ending, outcome: Outcome) -> list[str]:
    peak = f" It used {show_size(ending.peak_memory)} at its peak." if ending.peak_memory else ""
    if outcome == "killed":
        return [f"The command was killed: {ending.killed}.{peak}"]
    if outcome == "out_of_memory":
        limit = show_size(ending.memory_limit) if ending.memory_limit else "the machine's memory"
        return [f"The command ran out of memory: it may use {limit}.{peak}"]
    if ending.oom_kills:
        some = "a process" if ending.oom_kills == 1 else f"{ending.oom_kills} processes"
        return [
            f"The kernel killed {some} of this command for lack of memory, "
            f"although it ended with exit code {ending.exit_code}.{peak}"
        ]
    if outcome == "timeout":
        return [f"The command was killed at its time limit, after {show_seconds(ending.duration)}."]
    return []


def _stood_still(frozen: float, waited: float, ending: Ending, winner: str | None) -> list[str]:
    out: list[str] = []
    behind = f" behind {winner}" if winner else ""
    if waited >= NOTABLE:
        out.append(f"It waited {show_seconds(waited)} for memory before it started.")
    if frozen >= NOTABLE:
        out.append(f"It stood still for {show_seconds(frozen)}{behind}.")
    if ending.memory_stalled >= max(NOTABLE, 0.1 * ending.duration):
        out.append(f"It was slowed for {show_seconds(ending.memory_stalled)} by its memory limit.")
    if ending.cpu_throttled >= max(NOTABLE, 0.25 * ending.duration):
        out.append(f"It was held back {show_seconds(ending.cpu_throttled)} by its CPU limit.")
    return out


def _processes(ending: Ending) -> list[str]:
    if not ending.pids_refused:
        return []
    most = f" of {ending.pids_limit}" if ending.pids_limit else ""
    return [f"It was refused new processes {ending.pids_refused} times by its limit{most}."]


def _suggest(ending: Ending, envelope: Envelope | None) -> dict[str, Any]:
    """An intent that would have been enough, within what the budgets allow."""
    out: dict[str, Any] = {}
    used = max(ending.peak_memory or 0, ending.memory_limit or 0)
    if _short(ending) and used:
        wanted = -(-int(SUGGESTED * used) // (64 * MIB)) * 64 * MIB
        most = wanted if envelope is None or envelope.most is None else envelope.most
        if most > used:
            out["memory"] = show_size(min(wanted, most))
    if ending.pids_refused and ending.pids_limit:
        out["pids"] = 2 * ending.pids_limit
    return out


def _short(ending: Ending) -> bool:
    """Whether more memory would have helped."""
    return ending.oom_kills > 0 or ending.killed_for == "limit"


def _advice(suggested: Mapping[str, Any], ending: Ending) -> list[str]:
    if suggested:
        fields = ",".join(f"{name}:{value}" for name, value in suggested.items())
        return [
            f'Do less at once (fewer tests, fewer jobs), or declare AGENT_RESOURCE_HINT="{fields}".'
        ]
    if ending.killed_for == "no_room":
        return ["Others needed the memory: try again later, or do less at once."]
    if ending.killed_for == "deadline":
        return ["Declare a later deadline, or make it do less."]
    if _short(ending):
        return ["This is all that can be had here: do less at once (fewer tests, fewer jobs)."]
    return []


def record(
    feedback: Feedback,
    *,
    wall: float,
    pid: int,
    cgroup: str,
    command: str,
    ending: Ending,
    hint: str,
) -> dict[str, Any]:
    """One line of the log of tool calls, as JSON: AgentCgroup's fields first, then our own."""
    return {
        "ts": int(wall * 1e9),
        "pid": pid,
        "cgroup": cgroup,
        "cmd": command[:COMMAND_SHOWN],
        "exit": ending.exit_code,
        "duration_ms": round(ending.duration * 1000),
        "peak_mem": str(ending.peak_memory if ending.peak_memory is not None else ""),
        "current_mem": "0",
        "hint": hint,
        "outcome": feedback.outcome,
        "limit": feedback.limit,
        "frozen_s": round(feedback.frozen, 3),
        "waited_s": round(feedback.waited, 3),
        "throttled_s": round(feedback.throttled, 3),
        "oom_kills": feedback.oom_kills,
        "killed": feedback.killed,
        "winner": feedback.winner,
        "clamps": list(feedback.clamps),
        "suggested": dict(feedback.suggested),
        "feedback": feedback.text,
    }
