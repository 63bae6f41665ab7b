"""How good forecasts of next steps and of return times are, on the programs of a workload.

The programs are played one after another in an order drawn by seed; every forecast is made from
what was seen before it, and compared with what came.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrt.bench.workload import Program, Turn, Workload
from agentrt.scheduling.gap_waits import GapWatch
from agentrt.scheduling.gaps import GapDistribution, GapKey
from agentrt.scheduling.graph import ExecutionGraphs, TurnFacts

__all__ = ["KEYINGS", "Calibration", "evaluate_gaps", "evaluate_steps"]

SHARES = (0.5, 0.9)
WAITED = 1.0

KEYINGS: Mapping[str, Callable[[str | None, str], GapKey]] = {
    "all": lambda tool, program: GapKey(),
    "tool": lambda tool, program: GapKey(GapKey.of(tool).tool),
    "tool:kind": lambda tool, program: GapKey.of(tool),
    "tool:kind, program": lambda tool, program: GapKey.of(tool, program=program),
}
"""What a gap is learned under, from coarse to what ``gaps.py`` is meant for."""


@dataclass(slots=True)
class Calibration:
    """How gaps fell against quantiles that were said before; losses in seconds (pinball loss)."""

    count: int = 0
    below: dict[float, int] = field(default_factory=lambda: dict.fromkeys(SHARES, 0))
    loss: float = 0.0

    def add(self, forecast: GapDistribution, gap: float, waited: float = 0.0) -> None:
        """Score one forecast, made when ``waited`` seconds of ``gap`` had passed."""
        self.count += 1
        for share in SHARES:
            said = waited + forecast.quantile(share, waited)
            self.below[share] += gap <= said
            self.loss += max(share * (gap - said), (share - 1.0) * (gap - said)) / len(SHARES)

    def figures(self) -> dict[str, float]:
        """Return coverage of each quantile and the mean loss."""
        count = max(1, self.count)
        covered = {f"p{share * 100:.0f}": self.below[share] / count for share in SHARES}
        return {"gaps": self.count, **covered, "pinball": self.loss / count}


def evaluate_gaps(workload: Workload, seeds: int, scale: float = 1.0) -> dict[str, Any]:
    """Return the calibration of return times for each keying: at once, and ``WAITED`` seconds in.

    ``scale`` multiplies all gaps.
    """
    table: dict[str, Any] = {}
    for name, key_of in KEYINGS.items():
        at_once, later = Calibration(), Calibration()
        for seed in range(seeds):
            _play_gaps(_shuffled(workload, seed), key_of, scale, at_once, later)
        table[name] = {"at once": at_once.figures(), "after 1 s": later.figures()}
    return table


def _play_gaps(
    programs: Sequence[Program],
    key_of: Callable[[str | None, str], GapKey],
    scale: float,
    at_once: Calibration,
    later: Calibration,
) -> None:
    watch = GapWatch()
    for program in programs:
        for turn in program.turns[:-1]:
            gap = (turn.gap or 0.0) * scale
            forecast = watch.left(program.program, key_of(turn.next_tool, program.program), 0.0)
            at_once.add(forecast.distribution, gap)
            if gap > WAITED:
                later.add(forecast.distribution, gap, WAITED)
            watch.returned(program.program, gap)
        watch.model.forget(program.program)


def evaluate_steps(workload: Workload, seeds: int, *, kinds: bool = True) -> dict[str, float]:
    """Return accuracies of next steps, and the error of how many turns are left.

    ``kinds``: tell shell commands apart by kind. Only forecasts past the cold tier are scored.
    """
    totals: dict[str, float] = {}
    for seed in range(seeds):
        for name, value in _play_steps(_shuffled(workload, seed), kinds).items():
            totals[name] = totals.get(name, 0.0) + value / seeds
    return totals


def _play_steps(programs: Sequence[Program], kinds: bool) -> dict[str, float]:
    graphs = ExecutionGraphs()
    errors: dict[str, list[float]] = {"inferred": [], "cold": []}
    for program in programs:
        for index, turn in enumerate(program.turns):
            graphs.turn_ended(program.program, _facts(turn, kinds))
            said = graphs.forecast(program.program, turn.context)
            left = len(program.turns) - index - 1
            errors[said.tier].append(abs(said.remaining_turns - left))
        graphs.program_ended(program.program)
    scores = graphs.statistics()
    return {
        "scored": scores.scored,
        "next_step_accuracy": scores.next_step_accuracy,
        "kept_share": scores.kept / max(1, scores.scored),
        "kept_accuracy": scores.kept_accuracy,
        "continuation_accuracy": scores.continuation_accuracy,
        "continuation_brier": scores.ends_squared / max(1, scores.scored),
        "turns_left_error": _mean(errors["inferred"]),
        "turns_left_error_cold": _mean(errors["cold"]),
    }


def _facts(turn: Turn, kinds: bool) -> TurnFacts:
    label = turn.next_tool if kinds else GapKey.of(turn.next_tool).tool
    return TurnFacts(label, turn.prompt_tokens, turn.output_tokens, turn.context)


def _shuffled(workload: Workload, seed: int) -> list[Program]:
    programs = list(workload.programs)
    random.Random(seed).shuffle(programs)
    return programs


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
