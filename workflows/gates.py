"""The runs of a directory and the questions they wait for, for a command line or a server."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agentrt.errors import ConfigError
from agentrt.workflows.events import Event
from agentrt.workflows.log import RunInfo, RunLog
from agentrt.workflows.person import check_answer
from agentrt.workflows.session import open_log

__all__ = ["OpenGate", "RunRow", "answer_gate", "list_runs"]


@dataclass(frozen=True, slots=True)
class OpenGate:
    """A question that nobody has answered yet. ``expires`` is ISO-8601 UTC, or None."""

    gate: str
    question: str
    options: tuple[str, ...]
    default: str
    expires: str | None


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run. ``status`` is ``unfinished`` until it has ended; ``parent`` is what it forks."""

    run: str
    guide: str
    status: str
    begun: str
    parent: str | None
    gates: tuple[OpenGate, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; ``asks`` names the open gates."""
        return asdict(self) | {"asks": [gate.gate for gate in self.gates]}


def list_runs(directory: Path, *, nested: bool = False) -> list[RunRow]:
    """Return the runs of a directory, oldest first; those of nested guides only with ``nested``."""
    if not (directory / "log.db").is_file():
        return []
    with open_log(directory) as log:
        known = [info for info in log.runs() if nested or "." not in info.run_id]
        return [_row(log, info) for info in known]


def _row(log: RunLog, info: RunInfo) -> RunRow:
    events = log.events(info.run_id)
    ended = [event for event in events if event.kind == "run_ended"]
    status = str(ended[-1].data.get("status")) if ended else "unfinished"
    begun = info.created[:19] + "Z"
    return RunRow(info.run_id, info.guide, status, begun, info.parent, _open_gates(events))


def _open_gates(events: list[Event]) -> tuple[OpenGate, ...]:
    if any(event.kind == "run_ended" for event in events):
        return ()
    answered = {event.data.get("gate") for event in events if event.kind == "gate_answered"}
    opened = {str(e.data.get("gate")): e.data for e in events if e.kind == "gate_opened"}
    return tuple(
        OpenGate(
            gate,
            str(data.get("question", "")),
            tuple(data.get("options", ())),
            str(data.get("default", "")),
            data.get("expires"),
        )
        for gate, data in opened.items()
        if gate not in answered
    )


def answer_gate(directory: Path, run_id: str, gate: str, answer: str) -> bool:
    """Record a person's answer to an open gate, whichever process drives the run.

    Returns whether a process drives the run now; if not, it is to be resumed.

    Raises:
        ConfigError: the run does not wait for this gate.
        InvalidRequest: there is no such run, or the answer is not among the options.
    """
    with open_log(directory) as log:
        events = log.events(run_id)
        still = {one.gate: one for one in _open_gates(events)}
        if gate not in still:
            raise ConfigError(
                f"{run_id} does not wait for {gate!r}.",
                remedy=f"It waits for: {', '.join(still) or 'nothing'}.",
            )
        check_answer(gate, answer, still[gate].options)
        step = next(e.step for e in events if e.data.get("gate") == gate)
        log.append(run_id, "gate_answered", step, {"gate": gate, "answer": answer, "by": "person"})
        return log.owner(run_id) is not None
