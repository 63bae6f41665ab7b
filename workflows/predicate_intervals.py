"""Which values of one quantity make a condition true: for finding overlaps and gaps by lint.

Only conditions over a single quantity (``max(queue.depth)``, ``errors.rows``) and numbers have
intervals; for all others the question is left open (None).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass

from agentrt.workflows.predicate import Predicate

__all__ = ["Interval", "Range", "gaps", "intervals", "overlap"]


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """The numbers from ``low`` to ``high``; ``low_open`` and ``high_open`` leave the ends out."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = True
    high_open: bool = True

    @property
    def empty(self) -> bool:
        """Whether no number is in it."""
        return self.low > self.high or (self.low == self.high and (self.low_open or self.high_open))

    def meet(self, other: Interval) -> Interval:
        """Return the numbers in both."""
        low, low_open = max((self.low, self.low_open), (other.low, other.low_open))
        high, high_shut = min((self.high, not self.high_open), (other.high, not other.high_open))
        return Interval(low, high, low_open, not high_shut)

    def __str__(self) -> str:
        """Show it as mathematics does: ``(5, 10]``."""
        left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


@dataclass(frozen=True, slots=True)
class Range:
    """A condition as intervals of ``subject``, an expression as text; sorted and disjoint."""

    subject: str
    intervals: tuple[Interval, ...]


def intervals(predicate: Predicate) -> Range | None:
    """Return where a condition over one quantity holds, None if it is of another kind."""
    return _range(predicate.tree)


def overlap(first: Range, second: Range) -> Interval | None:
    """Return some numbers for which both hold, None if there are none or the subjects differ."""
    if first.subject != second.subject:
        return None
    for one in first.intervals:
        for other in second.intervals:
            if not one.meet(other).empty:
                return one.meet(other)
    return None


def gaps(ranges: Sequence[Range]) -> tuple[Interval, ...]:
    """Return the numbers for which none holds. All ranges must have one subject."""
    return _complement(_union([each for found in ranges for each in found.intervals]))


def _range(tree: ast.expr) -> Range | None:
    match tree:
        case ast.Compare():
            return _comparison(tree)
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            found = _range(inner)
            return Range(found.subject, _complement(found.intervals)) if found else None
        case ast.BoolOp(op=operator, values=parts):
            known = [each for each in map(_range, parts) if each]
            if len(known) < len(parts) or len({each.subject for each in known}) > 1:
                return None
            combine = _both if isinstance(operator, ast.And) else _either
            return combine(known)
        case _:
            return None


def _both(parts: Sequence[Range]) -> Range:
    kept: tuple[Interval, ...] = (Interval(),)
    for part in parts:
        kept = _union([one.meet(other) for one in kept for other in part.intervals])
    return Range(parts[0].subject, kept)


def _either(parts: Sequence[Range]) -> Range:
    return Range(parts[0].subject, _union([each for part in parts for each in part.intervals]))


def _comparison(tree: ast.Compare) -> Range | None:
    sides = [tree.left, *tree.comparators]
    parts: list[Range] = []
    for left, operator, right in zip(sides, tree.ops, sides[1:], strict=False):
        name = type(operator).__name__
        low, high = _number(left), _number(right)
        if (low is None) == (high is None):
            return None
        subject = left if low is None else right
        found = (
            _half(name, high) if high is not None else _half(_MIRROR.get(name, name), low or 0.0)
        )
        if found is None:
            return None
        parts.append(Range(ast.unparse(subject), found))
    same = len({part.subject for part in parts}) == 1
    return _both(parts) if same else None


_MIRROR = {"Lt": "Gt", "Gt": "Lt", "LtE": "GtE", "GtE": "LtE"}


def _half(operator: str, value: float) -> tuple[Interval, ...] | None:
    """Where ``subject operator value`` holds."""
    match operator:
        case "Lt" | "LtE":
            return (Interval(high=value, high_open=operator == "Lt"),)
        case "Gt" | "GtE":
            return (Interval(low=value, low_open=operator == "Gt"),)
        case "Eq":
            return (Interval(value, value, False, False),)
        case "NotEq":
            return (Interval(high=value), Interval(low=value))
        case _:
            return None


def _number(node: ast.expr) -> float | None:
    match node:
        case ast.Constant(value=int(value) | float(value)) if not isinstance(value, bool):
            return float(value)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value) | float(value))):
            return -float(value)
        case _:
            return None


def _union(parts: Sequence[Interval]) -> tuple[Interval, ...]:
    merged: list[Interval] = []
    for part in sorted(each for each in parts if not each.empty):
        if merged and _touch(merged[-1], part):
            high, high_shut = max(
                (merged[-1].high, not merged[-1].high_open), (part.high, not part.high_open)
            )
            low = merged[-1]
            low_open = low.low_open and (part.low_open or part.low > low.low)
            merged[-1] = Interval(low.low, high, low_open, not high_shut)
        else:
            merged.append(part)
    return tuple(merged)


def _touch(first: Interval, second: Interval) -> bool:
    if second.low == first.high:
        return not (first.high_open and second.low_open)
    return second.low < first.high


def _complement(parts: Sequence[Interval]) -> tuple[Interval, ...]:
    found: list[Interval] = []
    low, low_open = -math.inf, True
    for part in parts:
        found.append(Interval(low, part.low, low_open, not part.low_open))
        low, low_open = part.high, not part.high_open
    found.append(Interval(low, math.inf, low_open, True))
    return tuple(each for each in found if not each.empty and each.low < math.inf)
