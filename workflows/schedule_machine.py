"""What each event does to a run's state. The same code runs live and when a log is folded.

Only events change the state: time passing, commands given and worker limits do not. An event that
comes late, twice or out of turn is counted and has no effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast, get_args

from agentrt.workflows.events import Event, RunStatus, StepStatus
from agentrt.workflows.guide import END, START
from agentrt.workflows.schedule_graph import Graph
from agentrt.workflows.schedule_joins import edge_errors, verdict, why_skipped
from agentrt.workflows.schedule_state import Changes, GateState, RunState, StepState

__all__ = ["Machine"]


class Machine:
    """A run's state and the moves that events make on it.

    Args:
        compat: StepFly's semantics: skips are found by the scan of a tick, not by the event, and
            no attempt is repeated.
    """

    def __init__(self, graph: Graph, *, compat: bool = False) -> None:
        self.graph = graph
        self.state = RunState.initial(graph)
        self.compat = compat
        self._moves: dict[str, Callable[[Event, Changes], None]] = {
            "run_started": self._run_started,
            "run_resumed": self._run_resumed,
            "run_ended": self._run_ended,
            "step_started": self._step_started,
            "step_finished": self._step_finished,
            "step_cancelled": self._step_cancelled,
            "step_skipped": self._step_skipped,
            "gate_opened": self._gate_opened,
            "gate_answered": self._gate_answered,
            "lease_lost": self._lease_lost,
        }

    def apply(self, event: Event) -> Changes:
        """Move the state by one event and say what followed.

        Kinds that only inform readers (a query run, an edge's evidence) change nothing.
        """
        changes = Changes()
        move = self._moves.get(event.kind)
        if move is None:
            return changes
        # A run starts once, and ends even where it never got so far.
        in_turn = self.state.started != (event.kind == "run_started") or event.kind == "run_ended"
        if in_turn and not self.state.over:
            move(event, changes)
        else:
            self.state.ignored += 1
        return changes

    # -- the run ---------------------------------------------------------------------------------

    def _run_started(self, event: Event, changes: Changes) -> None:
        self.state.started = True
        self.state.move(START, "succeeded")
        if not self.compat:
            # A step that no edge leads to is decided here: no edge will ever settle it.
            alone = [s for s, edges in self.graph.incoming.items() if not edges and s != START]
            self._propagate(alone, changes)
        self._decide_edges(START, dict.fromkeys(self.graph.outgoing[START], "enabled"), changes)

    def _run_resumed(self, event: Event, changes: Changes) -> None:
        """Whatever was under way died with its process. It starts again, or a person is asked."""
        for step in list(self.state.running):
            changes.stopped.append(step)
            if self.compat:
                self.state.move(step, "pending")
            elif self.graph.policies[step].idempotent:
                self._queue(step, changes)
            else:
                self._ask_again(step, "its process ended before it did", changes)

    def _run_ended(self, event: Event, changes: Changes) -> None:
        status = event.data.get("status")
        known = isinstance(status, str) and status in get_args(RunStatus) and status != "running"
        self.state.status = cast("RunStatus", status) if known else "failed"
        self.state.reason = str(event.data.get("reason", ""))
        for step in [*self.state.running, *self.state.waiting]:
            self.state.move(step, "cancelled").reason = "the run ended"
            changes.stopped.append(step)

    # -- attempts --------------------------------------------------------------------------------

    def _step_started(self, event: Event, changes: Changes) -> None:
        step = self._step(event)
        expected = "pending" if self.compat else "waiting"
        if step is None or step.status != expected or step.waits_for == "gate":
            self.state.ignored += 1
            return
        if event.data.get("attempt", step.attempt + 1) != step.attempt + 1:
            self.state.ignored += 1
            return
        self.state.move(str(event.step), "running")
        changes.started.append(str(event.step))
        step.attempt += 1
        step.worker = str(event.data.get("worker", ""))

    def _step_finished(self, event: Event, changes: Changes) -> None:
        step = self._under_way(event)
        if step is None:
            return
        name, data = str(event.step), event.data
        changes.stopped.append(name)
        self._count_tokens(step, data)
        status = data.get("status")
        if status not in ("succeeded", "failed", "timed_out"):
            self._failed(name, "failed", f"unknown step status {status!r}", changes)
        elif status != "succeeded":
            error = str(data.get("error") or status)
            self._failed(name, status, error, changes, final=data.get("final") is True)
        elif wrong := edge_errors(self.graph.outgoing[name], data.get("edges")):
            self._failed(name, "failed", wrong, changes)
        else:
            step.result, step.error = data.get("result"), ""
            self.state.move(name, "succeeded")
            self._decide_edges(name, data.get("edges") or {}, changes)

    def _step_cancelled(self, event: Event, changes: Changes) -> None:
        step = self._step(event)
        if step is None or step.status not in ("running", "waiting"):
            self.state.ignored += 1
            return
        if event.data.get("attempt", step.attempt) != step.attempt:
            self.state.ignored += 1
            return
        changes.stopped.append(str(event.step))
        self._count_tokens(step, event.data)
        step.reason = str(event.data.get("reason", "cancelled"))
        self._close(str(event.step), "cancelled", changes)

    def _lease_lost(self, event: Event, changes: Changes) -> None:
        step = self._under_way(event)
        if step is None:
            return
        changes.stopped.append(str(event.step))
        worker = event.data.get("worker") or step.worker
        error = f"worker {worker} was lost" if worker else "its worker was lost"
        self._failed(str(event.step), "failed", error, changes)

    def _failed(
        self, name: str, status: StepStatus, error: str, changes: Changes, *, final: bool = False
    ) -> None:
        """An attempt failed: wait for the next one, ask whether to repeat it, or give the step up.

        Args:
            final: the attempt may still be running somewhere, so that another one must not start.
        """
        step, policy = self.state.steps[name], self.graph.policies[name]
        step.failures += 1
        step.error = error
        limit = 1 if self.compat else policy.retry.attempts
        if final or step.failures >= limit:
            self._close(name, status, changes)
        elif policy.idempotent:
            self.state.move(name, "waiting", "retry")
            changes.retries.append(name)
        else:
            self._ask_again(name, error, changes)

    def _close(self, name: str, status: StepStatus, changes: Changes) -> None:
        """A step ended without deciding its edges: nothing can follow from it."""
        self.state.move(name, status)
        out = dict.fromkeys(self.graph.outgoing[name], "disabled")
        self._decide_edges(name, out, changes)

    # -- edges and joins -------------------------------------------------------------------------

    def _decide_edges(self, name: str, decided: dict[str, Any], changes: Changes) -> None:
        """Set a step's out-edges, then settle what they lead to, and all that is cut off by it."""
        touched = self._set(name, decided)
        if not self.compat:
            self._propagate(touched, changes)

    def _propagate(self, todo: list[str], changes: Changes) -> None:
        while todo:
            step = todo.pop()
            if self._settle(step, changes):
                todo += self._set(step, dict.fromkeys(self.graph.outgoing[step], "disabled"))

    def _set(self, name: str, decided: dict[str, Any]) -> list[str]:
        touched = []
        for edge in self.graph.outgoing[name]:
            target = self.graph.target[edge]
            if self.state.set_edge(edge, target, decided[edge]):
                touched.append(target)
                if target == END and decided[edge] == "enabled":
                    self.state.conclusions.append(edge)
        touched.reverse()
        return touched

    def _settle(self, name: str, changes: Changes) -> bool:
        """Start or skip a pending step if its edges now say so. True when it was skipped."""
        state = self.state
        if state.steps[name].status != "pending":
            return False
        policy, inputs = self.graph.policies[name], state.inputs[name]
        if name == END and inputs.enabled:
            state.move(END, "succeeded")
            return False
        found = verdict(policy, inputs)
        if found == "skip":
            self._mark_skipped(name, why_skipped(policy, inputs), changes)
            return True
        if found == "fire":
            self._queue(name, changes)
        return False

    def skip(self, name: str, reason: str) -> None:
        """Skip a step that a scan found cut off (compatibility mode)."""
        self._mark_skipped(name, reason, Changes())
        self._set(name, dict.fromkeys(self.graph.outgoing[name], "disabled"))

    def _step_skipped(self, event: Event, changes: Changes) -> None:
        # Elsewhere the skip has already followed from the event before it.
        step = self._step(event)
        if self.compat and step is not None and step.status == "pending":
            self.skip(str(event.step), str(event.data.get("reason", "")))

    def _mark_skipped(self, name: str, reason: str, changes: Changes) -> None:
        self.state.move(name, "skipped").reason = reason
        changes.skipped.append((name, reason))

    def _queue(self, name: str, changes: Changes) -> None:
        step = self.state.steps[name]
        if self.graph.policies[name].gate == "approve" and not step.approved:
            self.state.move(name, "waiting", "gate")
            step.gate = f"{name}/approve"
            changes.gates.append(name)
        else:
            self.state.move(name, "waiting", "worker")
            changes.ready.append(name)

    # -- gates -----------------------------------------------------------------------------------

    def _ask_again(self, name: str, why: str, changes: Changes) -> None:
        step = self.state.move(name, "waiting", "gate")
        step.error = why
        step.gate = f"{name}/repeat-{step.attempt}"
        changes.gates.append(name)

    def _gate_opened(self, event: Event, changes: Changes) -> None:
        step = self._step(event)
        gate = None if step is None else GateState.read(str(event.step), event.data)
        if step is None or gate is None or gate.gate in self.state.gates:
            self.state.ignored += 1
            return
        self.state.gates[gate.gate] = gate
        if step.status == "running":
            step.waits_for, step.gate = "question", gate.gate

    def _gate_answered(self, event: Event, changes: Changes) -> None:
        gate = self.state.gates.get(str(event.data.get("gate", "")))
        answer = str(event.data.get("answer", ""))
        if gate is None or gate.answer is not None or (gate.options and answer not in gate.options):
            self.state.ignored += 1
            return
        gate.answer, gate.by = answer, str(event.data.get("by", "person"))
        step = self.state.steps[gate.step]
        if step.gate != gate.gate:
            return
        step.gate = ""
        if step.waits_for == "question":
            step.waits_for = ""
        elif step.status == "waiting":
            self._after_gate(gate, step, changes)

    def _after_gate(self, gate: GateState, step: StepState, changes: Changes) -> None:
        if gate.answer == "approve":
            step.approved = True
            self._queue(gate.step, changes)
        elif step.attempt:
            self._close(gate.step, "failed", changes)
        else:
            step.reason = f"not approved ({gate.by})"
            self._close(gate.step, "cancelled", changes)

    # -- what an event is about ------------------------------------------------------------------

    def _step(self, event: Event) -> StepState | None:
        return self.state.steps.get(event.step) if event.step else None

    def _under_way(self, event: Event) -> StepState | None:
        """The step if this event is about its running attempt; else count the event as ignored."""
        step = self._step(event)
        attempt = event.data.get("attempt")
        if step is None or step.status != "running" or attempt not in (None, step.attempt):
            self.state.ignored += 1
            return None
        return step

    def _count_tokens(self, step: StepState, data: dict[str, Any]) -> None:
        tokens = data.get("tokens")
        if isinstance(tokens, int) and tokens > 0:
            step.tokens += tokens
            self.state.tokens += tokens
