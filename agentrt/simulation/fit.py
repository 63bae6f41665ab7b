"""Cost models fitted to measured steps: non-negative least squares over five terms.

    seconds = step + a * prefilled + b * pairs + c * sequences + d * context

A curve's points count by their relative error, so that short steps are fitted as well as long
ones. Steps of a real run, whose noise is not their own, count by their absolute error: then the
fitted steps take as long together as the measured ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrt.errors import ConfigError
from agentrt.simulation.cost import CostModel

__all__ = ["Fit", "Observation", "fit", "read_points"]

TERMS = 5
POINTS = '{"prefill": [[tokens, seconds], …], "decode": [[sequences, context, seconds], …]}'


@dataclass(frozen=True, slots=True)
class Observation:
    """One measured step.

    Args:
        prefilled: tokens of prefill.
        pairs: pairs of a prefilled token and itself or one before it.
        sequences: sequences that decoded a token.
        context: tokens that those read, all together.
        seconds: how long the step took.
    """

    prefilled: int
    pairs: int
    sequences: int
    context: int
    seconds: float

    @property
    def terms(self) -> tuple[float, ...]:
        return (1.0, self.prefilled, self.pairs, self.sequences, self.context)


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted model and, by curve, its coefficient of determination (1 is perfect)."""

    cost: CostModel
    r2: dict[str, float]
    points: dict[str, int]


def fit(
    steps: Sequence[Observation],
    reloads: Sequence[tuple[int, float]] = (),
    *,
    relative: bool = True,
    source: str = "",
    kv_token_bytes: int = 131_072,
    **limits: Any,
) -> Fit:
    """Fit a cost model to measured steps, and to ``(tokens, seconds)`` of reloads from the host.

    ``relative`` is for points of a curve; False for the steps of a run. ``limits`` are further
    fields of the model, such as ``max_seqs``.

    Raises:
        ConfigError: too few points, or a time that is not above 0.
    """
    _check(steps, reloads)
    weights = _solve([(row.terms, row.seconds) for row in steps], relative=relative)
    if not relative:
        whole = sum(_predict(weights, row) for row in steps)
        weights = [value * sum(row.seconds for row in steps) / whole for value in weights]
    r2, points = _quality(steps, weights)
    fields: dict[str, Any] = dict(limits)
    if reloads:
        base, slope = _solve([((1.0, float(tokens)), time) for tokens, time in reloads])
        fields |= {"reload_seconds": base, "reload_token_seconds": slope}
        told = [base + slope * tokens for tokens, _ in reloads]
        r2["reload"] = determination([time for _, time in reloads], told)
        points["reload"] = len(reloads)
    cost = CostModel(
        step_seconds=max(weights[0], 1e-9),
        prefill_token_seconds=weights[1],
        prefill_pair_seconds=weights[2],
        sequence_seconds=weights[3],
        context_token_seconds=weights[4],
        kv_token_bytes=kv_token_bytes,
        source=source,
        **fields,
    )
    return Fit(cost, r2, points)


def _check(steps: Sequence[Observation], reloads: Sequence[tuple[int, float]]) -> None:
    if len(steps) < TERMS:
        raise ConfigError(
            f"{len(steps)} measured steps are too few to fit {TERMS} terms.",
            remedy="Measure prefills and decodes of at least three lengths each.",
        )
    if any(row.seconds <= 0 for row in steps) or any(time <= 0 for _, time in reloads):
        raise ConfigError(
            "A measured time is not above 0.", remedy="Give seconds, as a monotonic clock has them."
        )


def _quality(
    steps: Sequence[Observation], weights: Sequence[float]
) -> tuple[dict[str, float], dict[str, int]]:
    r2: dict[str, float] = {}
    points: dict[str, int] = {}
    for name, rows in (
        ("prefill", [row for row in steps if row.prefilled]),
        ("decode", [row for row in steps if not row.prefilled]),
    ):
        if rows:
            told = [_predict(weights, row) for row in rows]
            r2[name] = determination([row.seconds for row in rows], told)
            points[name] = len(rows)
    return r2, points


def _predict(weights: Sequence[float], row: Observation) -> float:
    return sum(weight * term for weight, term in zip(weights, row.terms, strict=True))


def determination(measured: Sequence[float], told: Sequence[float]) -> float:
    """Return R²: 1 minus the squared error over the squared distance from the mean."""
    middle = sum(measured) / len(measured)
    spread = sum((value - middle) ** 2 for value in measured)
    error = sum((value - guess) ** 2 for value, guess in zip(measured, told, strict=True))
    if spread == 0:
        return 1.0 if error == 0 else 0.0
    return 1 - error / spread


def _solve(rows: Sequence[tuple[Sequence[float], float]], *, relative: bool = True) -> list[float]:
    """Return the non-negative weights with the least squared error, relative or absolute.

    Terms whose weight would be negative are left out, the most negative first: a step does not get
    shorter by work.
    """
    count = len(rows[0][0])
    scales = [max(abs(terms[i]) for terms, _ in rows) or 1.0 for i in range(count)]
    scaled = []
    for terms, seconds in rows:
        unit = seconds if relative else 1.0
        scaled.append(([terms[i] / scales[i] / unit for i in range(count)], seconds / unit))
    kept = [i for i in range(count) if any(terms[i] for terms, _ in rows)]
    while kept:
        found = _least_squares([([terms[i] for i in kept], wanted) for terms, wanted in scaled])
        worst = min(range(len(kept)), key=lambda at: found[at])
        if found[worst] >= 0:
            weights = dict(zip(kept, found, strict=True))
            return [weights.get(i, 0.0) / scales[i] for i in range(count)]
        del kept[worst]
    return [0.0] * count


def _least_squares(rows: Sequence[tuple[Sequence[float], float]]) -> list[float]:
    """Solve the normal equations by elimination; a term that adds nothing gets weight 0."""
    count = len(rows[0][0])
    matrix = [
        [sum(terms[i] * terms[j] for terms, _ in rows) for j in range(count)]
        + [sum(terms[i] * wanted for terms, wanted in rows)]
        for i in range(count)
    ]
    size = max(abs(matrix[i][i]) for i in range(count))
    pivots: list[tuple[int, int]] = []
    row = 0
    for column in range(count):
        best = max(range(row, count), key=lambda at: abs(matrix[at][column]), default=row)
        if row >= count or abs(matrix[best][column]) < 1e-12 * size:
            continue
        matrix[row], matrix[best] = matrix[best], matrix[row]
        _eliminate(matrix, row, column)
        pivots.append((row, column))
        row += 1
    found = [0.0] * count
    for at, column in pivots:
        found[column] = matrix[at][count] / matrix[at][column]
    return found


def _eliminate(matrix: list[list[float]], row: int, column: int) -> None:
    """Make ``column`` zero in every other row."""
    for other in range(len(matrix)):
        if other != row:
            factor = matrix[other][column] / matrix[row][column]
            matrix[other] = [
                value - factor * pivot
                for value, pivot in zip(matrix[other], matrix[row], strict=True)
            ]


# -- files of measured points -------------------------------------------------------------------


def read_points(path: Path) -> tuple[list[Observation], list[tuple[int, float]], dict[str, Any]]:
    """Read measured curves: ``prefill``, ``decode``, ``reload`` and ``steps``, each optional.

    ``prefill`` rows are ``[tokens, seconds]`` or ``[tokens, cached, seconds]``, ``decode`` rows
    ``[sequences, context of all together, seconds]``, ``reload`` rows ``[tokens, seconds]``, and
    ``steps`` rows ``[prefilled, pairs, sequences, context, seconds]``. ``source``,
    ``kv_token_bytes`` and the like are returned as they stand, in the third value.

    Raises:
        ConfigError: the file cannot be read or a row is malformed.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", remedy=f"Write {POINTS}.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected one object.", remedy=f"Write {POINTS}.")
    steps: list[Observation] = []
    for row in _rows(path, data, "steps", 5, 5):
        prefilled, pairs, sequences, context = map(int, row[:4])
        steps.append(Observation(prefilled, pairs, sequences, context, row[4]))
    for row in _rows(path, data, "prefill", 2, 3):
        tokens, cached = int(row[0]), int(row[1]) if len(row) == 3 else 0
        pairs = tokens * (2 * cached + tokens + 1) // 2
        steps.append(Observation(tokens, pairs, 0, 0, row[-1]))
    for row in _rows(path, data, "decode", 3, 3):
        steps.append(Observation(0, 0, int(row[0]), int(row[1]), row[2]))
    reloads = [(int(row[0]), row[1]) for row in _rows(path, data, "reload", 2, 2)]
    return steps, reloads, data


def _rows(path: Path, data: dict[str, Any], name: str, least: int, most: int) -> list[list[float]]:
    rows = data.get(name, [])
    for row in rows if isinstance(rows, list) else [rows]:
        good = isinstance(row, list) and least <= len(row) <= most
        if not good or any(isinstance(x, bool) or not isinstance(x, int | float) for x in row):
            raise ConfigError(
                f"{path}: {name}: {json.dumps(row)} is not a row of {least} numbers.",
                remedy=f"Write {POINTS}.",
            )
    return list(rows)
