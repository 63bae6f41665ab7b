"""What time does to a run: timeouts, pauses before a retry, gates that expire, workers gone silent.

Alarms give commands and facts; they never change the run's state, which only events do.
"""

from __future__ import annotations

import math
from typing import Any

from agentrt.workflows.events import AskPerson, CancelStep, Event
from agentrt.workflows.schedule_config import Fact, Outbox, ScheduleConfig, seconds
from agentrt.workflows.schedule_machine import Machine
from agentrt.workflows.schedule_state import APPROVE
from agentrt.workflows.schedule_timers import Timers, backoff

__all__ = ["Alarms"]


class Alarms:
    """The alarms of one run. All times are on the schedule's clock."""

    def __init__(self, machine: Machine, config: ScheduleConfig, outbox: Outbox) -> None:
        self.timers = Timers()
        self.cancelling: set[str] = set()
        self._paused: dict[str, float] = {}
        self._state = machine.state
        self._policies = machine.graph.policies
        self._config = config
        self._outbox = outbox

    def resume(self) -> None:
        """Whoever was told to stop something is gone."""
        self.cancelling.clear()
        self._paused.clear()

    # -- attempts --------------------------------------------------------------------------------

    def started(self, step: str, now: float) -> None:
        """An attempt is under way: its timeout runs."""
        if self._policies[step].timeout < math.inf:
            self.timers.set("timeout", step, now + self._policies[step].timeout)

    def ended(self, step: str) -> None:
        """An attempt is over, whatever the reason."""
        for kind in ("timeout", "kill", "lease"):
            self.timers.drop(kind, step)
        self.cancelling.discard(step)
        self._paused.pop(step, None)

    def renewed(self, step: str, now: float) -> None:
        """The step's worker gave a sign of life."""
        self.timers.set("lease", step, now + self._config.lease)

    def pause(self, step: str, now: float) -> None:
        """An attempt failed and another one follows after a while."""
        state, retry = self._state.steps[step], self._policies[step].retry
        wait = backoff(retry, state.failures, seed=self._config.seed, step=step)
        self.timers.set("retry", step, now + wait)
        data = {"attempt": state.attempt, "wait": wait, "error": state.error}
        self._fact("step_retried", step, data)

    def cancel(self, step: str, reason: str, now: float) -> None:
        """Have a running step stopped, within the grace."""
        self.cancelling.add(step)
        self.timers.drop("timeout", step)
        self._paused.pop(step, None)
        self.timers.set("kill", step, now + self._config.grace)
        self._outbox.commands.append(CancelStep(step, reason))

    # -- gates -----------------------------------------------------------------------------------

    def ask(self, step: str, now: float) -> None:
        """Have a person asked whether a step may start, or start again.

        Asked once more after a crash, the gate keeps its id and the time at which it expires.
        """
        state, policy = self._state.steps[step], self._policies[step]
        default, limit = policy.gate_default, policy.gate_timeout
        question = f"May {step} start?"
        if state.attempt:
            question = f"{step} must not be repeated unasked, and {state.error}. Run it again?"
            default = "deny"
            limit = self._config.ask_seconds if limit is None else limit
        at = self.timers.at("gate", state.gate)
        if at is None and limit is not None:
            at = now + limit
            self.timers.set("gate", state.gate, at)
        left = None if at is None else max(0.0, at - now)
        ask = AskPerson(step, state.gate, question, APPROVE, default, left)
        self._outbox.commands.append(ask)

    def gate_opened(self, event: Event, now: float) -> None:
        """A gate is in the log, or the question of a step that runs."""
        gate = self._state.gates.get(str(event.data.get("gate", "")))
        if gate is None or gate.answer is not None:
            return
        if gate.expires and self.timers.at("gate", gate.gate) is None:
            left = seconds(gate.expires) - seconds(event.time)
            self.timers.set("gate", gate.gate, now + left)
        if self._state.steps[gate.step].waits_for == "question":
            # A person's time is not the step's: its timeout stands still meanwhile.
            deadline = self.timers.drop("timeout", gate.step)
            if deadline is not None:
                self._paused[gate.step] = max(0.0, deadline - now)

    def gate_answered(self, event: Event, now: float) -> None:
        """A gate was answered: the timeout of the step that asked runs on."""
        gate = self._state.gates.get(str(event.data.get("gate", "")))
        if gate is None or gate.answer is None:
            return
        self.timers.drop("gate", gate.gate)
        left = None
        if self._state.steps[gate.step].waits_for != "question":
            left = self._paused.pop(gate.step, None)
        if left is not None:
            self.timers.set("timeout", gate.step, now + left)

    # -- ringing ---------------------------------------------------------------------------------

    def ring(self, now: float) -> list[tuple[str, str]]:
        """See to the alarms that are due; return those that are the schedule's own business."""
        rest: list[tuple[str, str]] = []
        for kind, key in self.timers.due(now):
            match kind:
                case "timeout":
                    limit = self._policies[key].timeout
                    self.cancel(key, f"timeout: more than {limit:g} s", now)
                case "kill":
                    self._write_off(key)
                case "lease":
                    self._lose(key, now)
                case "gate":
                    self._expire(key, now)
                case _:
                    rest.append((kind, key))
        return rest

    def _write_off(self, step: str) -> None:
        """A cancelled step has not stopped. It may still run somewhere: no further attempt."""
        attempt = self._state.steps[step].attempt
        error = f"it could not be stopped within {self._config.grace:g} s"
        data = {"attempt": attempt, "status": "timed_out", "error": error, "edges": {}}
        self._fact("step_finished", step, {**data, "final": True})

    def _lose(self, step: str, now: float) -> None:
        state = self._state.steps[step]
        self.cancel(step, "its worker was lost", now)
        self._fact("lease_lost", step, {"worker": state.worker, "attempt": state.attempt})

    def _expire(self, key: str, now: float) -> None:
        gate = self._state.gates.get(key)
        if gate is None:
            # Not yet in the log: look again shortly rather than answer what nobody was asked.
            self.timers.set("gate", key, now + 1.0)
        elif gate.answer is None:
            answer = {"gate": key, "answer": gate.default, "by": "default"}
            self._fact("gate_answered", gate.step, answer)

    def _fact(self, kind: str, step: str, data: dict[str, Any]) -> None:
        self._outbox.facts.append(Fact(kind, step, data))
