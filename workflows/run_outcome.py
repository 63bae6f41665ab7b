"""What a run has come to, read from its state and events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrt.workflows.events import Event, RunStatus
from agentrt.workflows.guide import END
from agentrt.workflows.plan import Plan
from agentrt.workflows.schedule_state import RunState

__all__ = ["RunOutcome", "outcome_of"]


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A run's end, or how far it has come while ``status`` is running.

    ``findings`` are by step; ``results`` the whole results. ``path`` names the steps that
    succeeded, in the order in which they did. ``conclusion`` is the text of the terminator by which
    ``end`` was reached. ``waiting`` names the open gates. Tokens are prompt plus output of all
    attempts; ``cached_tokens`` those of them that were not computed again.
    """

    run_id: str
    status: RunStatus
    reason: str
    findings: Mapping[str, str]
    conclusion: str | None
    path: tuple[str, ...]
    steps: Mapping[str, str]
    results: Mapping[str, Any]
    tokens: int = 0
    cached_tokens: int = 0
    waiting: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the run succeeded."""
        return self.status == "succeeded"


def outcome_of(run_id: str, plan: Plan, state: RunState, events: Sequence[Event]) -> RunOutcome:
    """Return the outcome of a run with this state and these events."""
    done = {
        event.step: None
        for event in events
        if event.kind == "step_finished" and event.data.get("status") == "succeeded" and event.step
    }
    done.pop(END, None)
    path = tuple(s for s in done if s in state.steps and state.steps[s].status == "succeeded")
    results = {step: state.steps[step].result for step in path}
    ends = [event for event in events if event.kind in ("step_finished", "step_cancelled")]
    waiting = tuple(gate.gate for gate in state.open_gates()) if not state.over else ()
    reason = state.reason
    if waiting:
        reason = f"waits for an answer to {', '.join(waiting)}"
    return RunOutcome(
        run_id=run_id,
        status=state.status,
        reason=reason,
        findings={step: _findings(result) for step, result in results.items()},
        conclusion=_conclusion(plan, state, results),
        path=path,
        steps=dict(state.statuses()),
        results=results,
        tokens=state.tokens,
        cached_tokens=sum(int(event.data.get("cached_tokens") or 0) for event in ends),
        waiting=waiting,
    )


def _findings(result: Any) -> str:
    return str(result.get("findings", "")) if isinstance(result, Mapping) else str(result)


def _conclusion(plan: Plan, state: RunState, results: Mapping[str, Any]) -> str | None:
    """Return the terminator's text of the step that reached ``end`` first."""
    source = {edge.name: edge.source for edge in plan.edges}
    for edge in state.conclusions:
        result = results.get(source.get(edge, ""))
        if isinstance(result, Mapping) and result.get("conclusion"):
            return str(result["conclusion"])
    return None
