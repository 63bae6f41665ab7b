"""One attempt of a step under a drive: its task, its recorded calls, the report it ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from agentrt.errors import AgentRTError, Cancelled
from agentrt.workflows.decide import Decision, check_total
from agentrt.workflows.events import Event
from agentrt.workflows.executor_context import (
    CallKind,
    Live,
    StepContext,
    StepOutcome,
    check_result,
    digest,
    failure_json,
)
from agentrt.workflows.guide import Step
from agentrt.workflows.person import Question
from agentrt.workflows.plan import Plan
from agentrt.workflows.schedule_state import RunState

if TYPE_CHECKING:
    from agentrt.workflows.run_drive import Drive

__all__ = ["Attempt", "make_context", "step_context"]


class Attempt:
    """A step's attempt in this process. It reports exactly once, however it ends."""

    def __init__(self, drive: Drive, step: Step, number: int) -> None:
        self.step = step
        self.number = number
        self.worker = f"{step.id}#{number}"
        self.tokens = 0
        self.cached_tokens = 0
        self._drive = drive
        self._scope = anyio.CancelScope()
        self._reason = ""

    def cancel(self, reason: str) -> None:
        """End the attempt and all that it started; it then reports why."""
        self._reason = reason
        self._scope.cancel()

    async def run(self, context: StepContext) -> None:
        """Run it and report."""
        edges = self._drive.plan.outgoing(self.step.id)
        report: dict[str, Any] | None = None
        try:
            with self._scope:
                outcome = await self._drive.executor.run(self.step, edges, context)
                check_total(edges, outcome.edges)
                report = self._succeeded(outcome)
        except AgentRTError as error:
            report = self._failed(str(error), type(error).__name__)
        except Exception as error:  # noqa: BLE001 - whatever breaks a worker must not hang the run
            report = self._failed(f"{type(error).__name__}: {error}", type(error).__name__)
        self._report(report)

    def _succeeded(self, outcome: StepOutcome) -> dict[str, Any]:
        return {
            "status": "succeeded",
            "result": check_result(outcome.result),
            "edges": dict(outcome.edges),
            "tokens": outcome.tokens,
            "cached_tokens": outcome.cached_tokens,
            "warnings": list(outcome.warnings),
            "error": None,
        }

    def _failed(self, message: str, kind: str, status: str = "failed") -> dict[str, Any]:
        return {
            "status": status,
            "result": None,
            "edges": {},
            "tokens": self.tokens,
            "cached_tokens": self.cached_tokens,
            "error": message[:2000],
            "error_type": kind,
        }

    def _report(self, report: dict[str, Any] | None) -> None:
        kind = "step_finished"
        if report is None and self._reason.startswith("timeout"):
            report = self._failed(self._reason, "timeout", "timed_out")
        elif report is None and self._reason:
            kind, report = "step_cancelled", {"reason": self._reason, "tokens": self.tokens}
        elif report is None:
            kind, report = "lease_lost", {"worker": self.worker}
        self._drive.ended(self)
        if self._drive.schedule.state.over:
            return  # it could not be stopped in time, and the run has ended without it
        self._drive.append(kind, self.step.id, {"attempt": self.number, **report})


class _LiveCalls:
    """Performs calls and appends their outcomes before anybody acts on them."""

    def __init__(self, drive: Drive, attempt: Attempt) -> None:
        self._drive = drive
        self._attempt = attempt

    async def call(self, kind: CallKind, request: Mapping[str, Any], live: Live) -> dict[str, Any]:
        """Perform a call. Raises what it raises, once that is recorded."""
        try:
            outcome = await live()
        except AgentRTError as error:
            self._append(kind, request, {"failed": failure_json(error)})
            raise
        self._attempt.tokens += int(outcome.get("tokens") or 0)
        self._attempt.cached_tokens += int(outcome.get("cached_tokens") or 0)
        event = self._append(kind, request, {"outcome": outcome})
        recorded: dict[str, Any] = event.data["outcome"]
        return recorded

    async def ask(self, question: Question) -> tuple[str, str]:
        """Ask a person; the gate is in the log."""
        return await self._drive.answer_to(question)

    async def decided(self, decision: Decision) -> None:
        """Append a decision."""
        data = {
            "attempt": self._attempt.number,
            "edge": decision.edge,
            "state": decision.state,
            "by": decision.by,
            "evidence": decision.evidence[:2000],
        }
        if self._drive.schedule.state.over:
            return
        self._drive.append("edge_decided", self._attempt.step.id, data)

    def _append(
        self, kind: CallKind, request: Mapping[str, Any], outcome: Mapping[str, Any]
    ) -> Event:
        if self._drive.schedule.state.over:
            raise Cancelled("The run has ended.", remedy="Nothing is left to do.")
        data = {"attempt": self._attempt.number, "digest": digest(request), "request": request}
        return self._drive.append(kind, self._attempt.step.id, {**data, **outcome})


class _Run(Protocol):
    """What a context is made from."""

    @property
    def plan(self) -> Plan: ...

    @property
    def run_id(self) -> str: ...

    @property
    def parameters(self) -> Mapping[str, str]: ...


def make_context(drive: Drive, step: str, number: int, attempt: Attempt) -> StepContext:
    """Return what an attempt may see, as of now."""
    return step_context(drive, drive.schedule.state, step, number, _LiveCalls(drive, attempt))


def step_context(run: _Run, state: RunState, step: str, number: int, calls: Any) -> StepContext:
    """Return what an attempt may see: what the steps before it came to, in topological order."""
    plan = run.plan
    before = plan.upstream(step)
    reads = set(_reads(plan, step))
    sources = {e.source for e in plan.incoming(step) if state.edges[e.name] == "enabled"} | reads
    visible = {
        name: _result(state.steps[name].result)
        for name in before
        if state.steps[name].status == "succeeded"
    }
    results = {name: result for name, result in visible.items() if name in sources}
    return StepContext(run.run_id, number, run.parameters, results, visible, calls)


def _reads(plan: Plan, step: str) -> Sequence[str]:
    found = plan.nodes[step].step
    return found.reads if found is not None else ()


def _result(result: Any) -> Mapping[str, Any]:
    """Return a result as a mapping; a fork may have put a plain text in its place."""
    return result if isinstance(result, Mapping) else {"findings": str(result)}
