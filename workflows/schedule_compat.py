"""StepFly's documented scan, for runs in compatibility mode. Pure.

Once per tick: ``end`` starts as soon as any edge into it is enabled, takes no worker, and in that
tick nothing else starts. Otherwise every pending step is looked at in file order, with immediate
effect: it is skipped when all its incoming edges are disabled (which a later step sees in the same
tick, an earlier one in the next), and started when none is pending, one is enabled and a worker is
free. The run is done when ``end`` has finished, which stops whatever still runs, or when no edge is
pending and nothing is pending or running.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agentrt.errors import GuideError
from agentrt.workflows.guide import END, START
from agentrt.workflows.schedule_joins import any_join
from agentrt.workflows.schedule_machine import Machine

__all__ = ["CompatScan", "Scan"]


@dataclass(slots=True)
class Scan:
    """What one tick found. ``ended``: end has finished. ``done``: nothing is left to happen."""

    start: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ended: bool = False
    done: bool = False


class CompatScan:
    """The tick of StepFly's scheduler over a run's state.

    Raises:
        GuideError: a step other than start has no incoming edge, which stops StepFly, too.
    """

    def __init__(self, machine: Machine, workers: int) -> None:
        self._machine = machine
        self._workers = workers
        for step, edges in machine.graph.incoming.items():
            if not edges and step != START:
                raise GuideError(
                    f"No edge leads to {step}, which StepFly's semantics do not allow.",
                    remedy="Give it an incoming edge, or run the guide without compatibility mode.",
                )

    def scan(self, starting: Mapping[str, int]) -> Scan:
        """Look once at every pending step.

        Args:
            starting: steps that have been told to start and are still pending in the state.
        """
        state, found = self._machine.state, Scan()
        end = state.steps[END].status
        if end in ("succeeded", "failed", "timed_out", "cancelled"):
            found.ended = True
        elif end == "pending" and state.inputs[END].enabled and END not in starting:
            found.start.append(END)
        else:
            self._scan_steps(starting, found)
            found.done = (
                not (found.start or starting or state.running or state.pending_edges)
                and not state.counts["pending"]
            )
        return found

    def _scan_steps(self, starting: Mapping[str, int], found: Scan) -> None:
        state = self._machine.state
        busy = {*state.running, *starting} - {END}
        free = self._workers - len(busy)
        for step in self._machine.graph.policies:
            if state.steps[step].status != "pending" or step in starting:
                continue
            inputs = state.inputs[step]
            verdict = any_join(inputs)
            if verdict == "skip":
                reason = "every incoming edge is disabled"
                self._machine.skip(step, reason)
                found.skipped.append((step, reason))
            elif verdict == "fire" and step != END and free > 0:
                free -= 1
                found.start.append(step)
