"""How much memory the tool calls after a turn took: from the workload's recorded memory curves."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrt.bench.parse import json_lines, read_text
from agentrt.bench.workload import Program
from agentrt.simulation.synthesis import origin

__all__ = ["MemoryCurves", "tool_memory"]

Curve = Sequence[tuple[float, int]]


class MemoryCurves:
    """``[seconds, bytes]`` samples of a program's sandbox, in order of time."""

    def __init__(self, curves: Mapping[str, Curve]) -> None:
        self._times = {name: [row[0] for row in curve] for name, curve in curves.items()}
        self._bytes = {name: [row[1] for row in curve] for name, curve in curves.items()}

    def peak(self, program: str, start: float, end: float) -> int | None:
        """Return the most that was sampled from ``start`` to ``end``, or at the sample before."""
        times = self._times.get(program)
        if not times:
            return None
        first = max(bisect_right(times, start) - 1, 0)
        last = max(bisect_left(times, end), first + 1)
        return max(self._bytes[program][first:last])

    @classmethod
    def read(cls, path: Path) -> MemoryCurves:
        """Read the ``memory_curve`` of every program of a workload file that has one."""
        curves: dict[str, Curve] = {}
        if path.is_file() and path.suffix == ".jsonl":
            for _, row in json_lines(path, read_text(path).splitlines()):
                if isinstance(row, dict) and row.get("memory_curve"):
                    curves[str(row.get("program"))] = _curve(row["memory_curve"])
        return cls(curves)


def _curve(samples: Any) -> Curve:
    return sorted((float(at), int(size)) for at, size in samples)


def tool_memory(curves: MemoryCurves, default: int) -> Callable[[Program, int], int]:
    """Return bytes needed by the tool calls after a turn, given program and turn index.

    In this order: what the calls recorded themselves, the curve while they ran, ``default``.
    """

    def needed(program: Program, index: int) -> int:
        turn = program.turns[index]
        recorded = [tool.peak_memory for tool in turn.tools if tool.peak_memory is not None]
        if recorded:
            return max(recorded)
        if turn.at is None or turn.seconds is None:
            return default
        start = turn.at + turn.seconds
        peak = curves.peak(origin(program.program), start, start + (turn.gap or 0.0))
        return default if peak is None else peak

    return needed
