"""What an agent does next, learned from the stream of its steps: a chain of tool labels.

A step is known by the tool it calls (``bash:test``, ``read``, ``None`` for none), and the end of
the program is a step of its own. Counts after the last 0, 1 and 2 steps are interpolated, fine to
coarse, as in ``gaps.py``. The inferred execution graph of SAGA (arXiv 2605.00528, section 3.1,
tier b) is the part of it whose edges have a probability of at least 0.7.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Final, TypeAlias

__all__ = ["END", "KEPT", "P_TERM", "START", "Label", "ToolChain", "likeliest"]

Label: TypeAlias = str | None
END: Final = "\0end"
START: Final = "\0start"
"""The labels of a program's end and of what is before its first step; no tool is named so."""
KEPT: Final = 0.7
P_TERM: Final = 0.05
"""How likely a program ends with a step when nothing is known (SAGA, code)."""

ORDER = 2
STRENGTH = 3.0
MAX_LABELS = 64
MAX_ROWS = 1024
HALVE_AT = 4096
OTHER = "\0other"
FIXED = frozenset({None, START, END, OTHER})


class ToolChain:
    """Transition counts, in bounded memory: rare labels become one, old rows go, counts age."""

    def __init__(self) -> None:
        self._rows: OrderedDict[Hashable, dict[Label, float]] = OrderedDict()
        self._labels: set[Label] = set()

    def add(self, before: tuple[Label, ...], step: Label) -> None:
        """Learn that ``step`` (or ``END``) followed the steps ``before``, oldest first."""
        known = self._known(step, learn=True)
        for row_key in self._row_keys(before, learn=True):
            row = self._rows.setdefault(row_key, {})
            self._rows.move_to_end(row_key)
            row[known] = row.get(known, 0.0) + 1.0
            if sum(row.values()) > HALVE_AT:
                self._rows[row_key] = {label: count / 2 for label, count in row.items()}
        while len(self._rows) > MAX_ROWS:
            self._rows.popitem(last=False)

    def next_steps(self, before: tuple[Label, ...]) -> dict[Label, float]:
        """Return the probability of each step after ``before``, ``END`` among them; adds up to 1.

        What no count speaks for is ``END`` with ``P_TERM``, and otherwise some step unseen so far,
        under a label of its own.
        """
        mixed: dict[Label, float] = {END: 0.0, OTHER: 0.0}
        left = 1.0
        for row_key in self._row_keys(before, learn=False):
            row = self._rows.get(row_key)
            if row is None:
                continue
            total = sum(row.values())
            weight = left * total / (total + STRENGTH)
            for label, count in row.items():
                mixed[label] = mixed.get(label, 0.0) + weight * count / total
            left -= weight
        mixed[END] += left * P_TERM
        mixed[OTHER] += left * (1.0 - P_TERM)
        return mixed

    def _row_keys(self, before: tuple[Label, ...], *, learn: bool) -> list[tuple[Label, ...]]:
        """Return what a step is counted after, fine to coarse."""
        known = tuple(self._known(step, learn=learn) for step in before[-ORDER:])
        return [known[start:] for start in range(len(known) + 1)]

    def _known(self, step: Label, *, learn: bool) -> Label:
        if step in self._labels or step in FIXED:
            return step
        if learn and len(self._labels) < MAX_LABELS:
            self._labels.add(step)
            return step
        return OTHER


def likeliest(steps: Mapping[Label, float]) -> tuple[Label, float]:
    """Return the step with the highest probability, and that; the first at a tie."""
    return max(steps.items(), key=lambda item: item[1])
