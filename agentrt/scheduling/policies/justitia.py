"""Justitia: programs one at a time by virtual finish time, their cost in KV token-steps.

Source: arXiv 2510.17015, known second-hand. A program's cost counts how much KV it holds for how
long: of each turn of ``p`` prompt and ``d`` output tokens, in token-steps::

    C = sum over turns of  p * d + d^2 / 2
    F = V(arrival) + C          fixed when the program arrives; the least F is served
    V advances by  (token-steps served) / (programs under way)

which finishes programs in the order in which fair sharing would, but one after another ("selective
pampering"), so each at most one largest cost later.

Left open, chosen here: the paper's ``V`` advances at the pool's size over the programs, which
supposes a full pool; it advances here by what was really served. Its predictor on the prompt is the
mean cost of the agent type's ended programs, 0 before the first; evicted is what no living context
needs, then the least recently used.

Known defect: with the mean for everybody, ``F`` is the order of arrival but for agent types; the
gain that the paper reports is that of a predictor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentrt.scheduling.graph_profile import Mean
from agentrt.scheduling.policy import (
    KeepNothing,
    Listener,
    Policy,
    ProgramView,
    TurnView,
    program_score,
)
from agentrt.scheduling.surroundings import Surroundings

__all__ = ["VirtualFinish", "justitia", "turn_cost"]

MAX_AGENTS = 256


def turn_cost(prompt: int, output: int) -> float:
    """Return the KV token-steps of a turn: ``p * d + d^2 / 2``."""
    return prompt * output + output * output / 2


@dataclass(slots=True)
class _Share:
    """A program's agent type, virtual finish, and token-steps served."""

    agent: str
    finish: float
    served: float = 0.0


class VirtualFinish(Listener):
    """Virtual time and the virtual finish of every program under way, in token-steps."""

    def __init__(self) -> None:
        self.time = 0.0
        self._programs: dict[ProgramView, _Share] = {}
        self._costs: dict[str, Mean] = {}

    def finish(self, program: ProgramView) -> float:
        """Return a program's virtual finish."""
        return self._programs[program].finish

    def submitted(self, turn: TurnView, now: float) -> None:
        """A program's first turn fixes its finish."""
        if turn.program not in self._programs:
            agent = turn.hints.agent or ""
            known = self._costs.get(agent)
            cost = known.value if known is not None else 0.0
            self._programs[turn.program] = _Share(agent, self.time + cost)

    def progressed(
        self, turn: TurnView, prefilled: int, decoded: int, seconds: float, now: float
    ) -> None:
        """Serve the token-steps of a turn's new output; virtual time goes on."""
        before = turn.output - decoded
        served = turn_cost(turn.prompt_tokens, turn.output)
        served -= turn_cost(turn.prompt_tokens, before)
        self._programs[turn.program].served += served
        self.time += served / len(self._programs)

    def program_ended(self, program: ProgramView, now: float) -> None:
        """Learn what a program cost."""
        share = self._programs.pop(program, None)
        if share is None or program.turns_served == 0:
            return
        if share.agent in self._costs or len(self._costs) < MAX_AGENTS:
            self._costs.setdefault(share.agent, Mean()).add(share.served)

    def order(self, turn: TurnView) -> tuple[Any, ...]:
        """Order preempted turns first, then by the program's virtual finish."""
        finish = self.finish(turn.program)
        return (turn.preemptions == 0, finish, turn.submitted, turn.sequence)


def justitia(around: Surroundings) -> Policy:
    """Return ``justitia``."""
    shares = VirtualFinish()
    return Policy("justitia", shares.order, KeepNothing(program_score), listeners=(shares,))
