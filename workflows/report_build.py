"""A report is put together from the run's events, and from nothing else but the plan.

The same log gives the same report. What an event does not say is left out, so a log that ends in
the middle of a run, or was written by an older agentrt, still has a report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from agentrt.workflows.data import DataError, DataStore
from agentrt.workflows.data_handle import Handle, Row
from agentrt.workflows.events import Event
from agentrt.workflows.guide import END, START
from agentrt.workflows.plan import Plan
from agentrt.workflows.prompt import fill
from agentrt.workflows.report_model import (
    AttemptNote,
    DecisionNote,
    GateNote,
    QueryNote,
    Report,
    StepNote,
)
from agentrt.workflows.report_notes import (
    attempt_of,
    command_note,
    conclusion_of,
    edge_words,
    ended,
    failure_of,
    findings_of,
    handle_of,
    implied,
    model_note,
    nested_note,
    reason_of,
    series_of,
)
from agentrt.workflows.run_outcome import outcome_of
from agentrt.workflows.schedule import fold
from agentrt.workflows.schedule_state import RunState

__all__ = ["build_report"]

Note = TypeVar("Note")

_PREVIEW_ROWS = 12
_MOST_ROWS = 500
_SETTINGS = ("guide", "fingerprint", "executor", "workers", "budget", "seed")


def build_report(
    events: Sequence[Event],
    plan: Plan,
    *,
    run_id: str = "",
    data: DataStore | None = None,
    summary: str = "",
) -> Report:
    """Return what there is to say of a run.

    Args:
        events: the run's log, or a beginning of it.
        data: where its tables are; without it previews are the samples of the log.
        summary: prose that a model wrote about the run; it is marked as such.
    """
    first = next((event.data for event in events if event.kind == "run_started"), {})
    state = fold(plan, events, compat=bool(first.get("compat")))
    outcome = outcome_of(run_id, plan, state, events)
    collector = _Collector(events, plan, state, data)
    steps = tuple(collector.step(name) for name in plan.steps)
    return Report(
        plan=plan,
        run_id=run_id,
        status=outcome.status,
        reason=outcome.reason,
        conclusion=outcome.conclusion or "",
        started=events[0].time if events else "",
        seconds=collector.last,
        parameters=dict(first.get("parameters", {})),
        settings={key: _brief(first[key]) for key in _SETTINGS if first.get(key) is not None},
        path=tuple(step for step in outcome.path if step not in (START, END)),
        steps=steps,
        states={**state.statuses(), **state.edges},
        tokens=outcome.tokens,
        cached_tokens=outcome.cached_tokens,
        events=len(events),
        resumed=sum(event.kind == "run_resumed" for event in events),
        forked_from=_forked_from(events),
        summary=summary,
        decided_by=dict(Counter(n.by for step in steps if step.ran for n in step.decisions)),
    )


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        given = [f"{key} {each}" for key, each in value.items() if each is not None]
        return ", ".join(given) or "none"
    return str(value)


def _forked_from(events: Iterable[Event]) -> str:
    for event in events:
        if event.kind == "run_forked":
            return f"{event.data.get('from_run')} at {event.data.get('from_step')}"
    return ""


class _Collector:
    """Sorts the events of a run by step, and makes notes of them."""

    def __init__(
        self, events: Sequence[Event], plan: Plan, state: RunState, data: DataStore | None
    ) -> None:
        self.plan, self.state, self.data = plan, state, data
        started = (event.data for event in events if event.kind == "run_started")
        self._parameters = next(started, {}).get("parameters", {})
        self._origin = datetime.fromisoformat(events[0].time) if events else None
        self.last = max((self._at(event) for event in events), default=0.0)
        self._events: dict[str, list[Event]] = {name: [] for name in plan.nodes}
        for event in events:
            if event.step in self._events:
                self._events[event.step].append(event)
        self._edges = {edge.name: edge for edge in plan.edges}
        self._decisions = {name: tuple(self._decided(name)) for name in plan.nodes}

    def step(self, name: str) -> StepNote:
        """Return the notes of one step."""
        known = self.state.steps[name]
        node = self.plan.nodes[name]
        attempts = tuple(self._attempts(name))
        models = tuple(self._each(name, "model_called", model_note))
        findings = findings_of(known)
        return StepNote(
            id=name,
            title=node.title,
            status=known.status,
            reason=reason_of(known),
            findings=findings,
            by_model=any(note.asks == "text" and note.answer == findings for note in models),
            conclusion=conclusion_of(known),
            instructions=node.step.instructions if node.step else "",
            attempts=attempts,
            queries=tuple(self._queries(name)),
            decisions=self._decisions[name],
            incoming=tuple(self._incoming(name)),
            commands=tuple(self._each(name, "tool_called", command_note)),
            nested=tuple(self._each(name, "tool_called", nested_note)),
            models=models,
            gates=tuple(self._gates(name)),
            warnings=self._warnings(name),
            tokens=known.tokens,
        )

    def _at(self, event: Event) -> float:
        """Return when an event was, in seconds after the first one."""
        if self._origin is None:
            return 0.0
        return max(0.0, (datetime.fromisoformat(event.time) - self._origin).total_seconds())

    def _of(self, name: str, *kinds: str) -> list[Event]:
        return [event for event in self._events[name] if event.kind in kinds]

    def _each(
        self, name: str, kind: str, make: Callable[[Mapping[str, Any]], Note | None]
    ) -> Iterable[Note]:
        for event in self._of(name, kind):
            note = make(event.data)
            if note is not None:
                yield note

    def _attempts(self, name: str) -> Iterable[AttemptNote]:
        ends = self._of(name, "step_finished", "step_cancelled", "step_retried", "lease_lost")
        for begun in self._of(name, "step_started"):
            number = int(begun.data.get("attempt", 1))
            own = [e for e in ends if e.index > begun.index and attempt_of(e, number) == number]
            end = self._at(own[0]) if own else self.last
            status = ended(own[0]) if own else self.state.steps[name].status
            error = str(own[0].data.get("error") or own[0].data.get("reason") or "") if own else ""
            waits = [e.data.get("wait") for e in own if e.kind == "step_retried"]
            yield AttemptNote(
                number, self._at(begun), end, status, error, waits[0] if waits else None
            )

    def _queries(self, name: str) -> Iterable[QueryNote]:
        for number, event in enumerate(self._of(name, "query_run")):
            request = event.data.get("request", {})
            handle = handle_of(event.data)
            rows = self._rows(handle) if handle else []
            window = [request.get("start", ""), request.get("end", "")]
            yield QueryNote(
                anchor=f"{name}-query-{number + 1}",
                name=str(request.get("query", "query")),
                source=f"{request.get('source', '')} ({request.get('source_type', '')})",
                kind=str(request.get("kind", "")),
                statement=str(request.get("statement", "")),
                parameters=request.get("parameters", {}),
                window=" to ".join(filter(None, window)),
                handle=handle,
                rows=tuple(rows[:_PREVIEW_ROWS]),
                failure=failure_of(event.data),
                attempt=int(event.data.get("attempt", 1)),
                at=self._at(event),
                series=series_of(handle, rows) if handle else (),
            )

    def _rows(self, handle: Handle) -> Sequence[Row]:
        if self.data is None:
            return handle.sample
        try:
            return self.data.rows(handle, limit=_MOST_ROWS)
        except DataError:
            # The log outlives the tables, and its sample is evidence, too.
            return handle.sample

    def _decided(self, name: str) -> Iterable[DecisionNote]:
        """Return the last decision of each out-edge; what only a fold knows was by a rule."""
        told = {e.data.get("edge"): e.data for e in self._of(name, "edge_decided")}
        for edge in self.plan.outgoing(name):
            state = self.state.edges.get(edge.name, "pending")
            data = told.get(edge.name, {})
            if state == "pending" and not data:
                continue
            yield DecisionNote(
                edge=edge,
                words=fill(edge_words(edge), self._parameters),
                state=state,
                by=str(data.get("by", "rule")),
                evidence=str(data.get("evidence", "")) or implied(self.state.steps[name]),
                attempt=int(data.get("attempt", 1)),
            )

    def _incoming(self, name: str) -> Iterable[DecisionNote]:
        for edge in self.plan.incoming(name):
            for note in self._decisions[edge.source]:
                if note.edge.name == edge.name:
                    yield note

    def _gates(self, name: str) -> Iterable[GateNote]:
        answers = {e.data.get("gate"): e for e in self._of(name, "gate_answered")}
        for event in self._of(name, "gate_opened"):
            answer = answers.get(event.data.get("gate"))
            yield GateNote(
                gate=str(event.data.get("gate", "")),
                question=str(event.data.get("question", "")),
                options=tuple(map(str, event.data.get("options", ()))),
                default=str(event.data.get("default", "")),
                answer=str(answer.data.get("answer", "")) if answer else "",
                by=str(answer.data.get("by", "")) if answer else "",
                opened=self._at(event),
                answered=self._at(answer) if answer else None,
            )

    def _warnings(self, name: str) -> tuple[str, ...]:
        found = [w for e in self._of(name, "step_finished") for w in e.data.get("warnings", ())]
        return tuple(dict.fromkeys(map(str, found)))
