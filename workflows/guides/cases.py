"""Incidents with known causes: what happened, what a run is given, and how it has to end.

A file is TOML: ``[incident]`` (id, title, summary), ``[parameters]``, ``[answers]`` of a scripted
model by ``step/edge``, ``[people]`` with answers to gates by step, ``[expected]`` (status, path,
conclusion, cause), and ``[times]``, the seconds that each step took. Only what stands under
``[incident]`` and ``[parameters]`` may reach a model.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrt.errors import GuideError

__all__ = ["Case", "Expected", "case_files", "load_case"]

_SECTIONS = ("incident", "parameters", "answers", "people", "expected", "times")
_STATUSES = ("succeeded", "failed", "cancelled", "timed_out", "inconclusive")


@dataclass(frozen=True, slots=True)
class Expected:
    """How a run has to end: its status, the steps that succeeded (in any order), and a text that
    its conclusion contains. ``cause`` is what really happened; no prompt may hold it."""

    status: str = "succeeded"
    path: tuple[str, ...] = ()
    conclusion: str = ""
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """One incident. ``times`` are seconds by step; ``expected`` is None where nothing is known."""

    id: str
    title: str
    summary: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)
    people: Mapping[str, str] = field(default_factory=dict)
    expected: Expected | None = None
    times: Mapping[str, float] = field(default_factory=dict)
    path: str = ""

    @property
    def text(self) -> str:
        """What a model is told of the incident."""
        return f"{self.id}: {self.title}\n\n{self.summary}".strip()


def case_files(guide: Path) -> list[Path]:
    """Return the incident files beside a guide's file, in order of name."""
    return sorted((guide.parent / "incidents").glob("*.toml"))


def load_case(path: Path) -> Case:
    """Read an incident file.

    Raises:
        GuideError: it cannot be read, or something in it is wrong.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise GuideError(
            f"{path}: the incident cannot be read: {error}.", remedy="Correct the file."
        ) from error
    unknown = sorted(set(data) - set(_SECTIONS))
    if unknown:
        raise _wrong(path, f"there is no section [{unknown[0]}]", f"Use: {', '.join(_SECTIONS)}.")
    sections = {name: _table(data, name, path) for name in _SECTIONS}
    about = sections["incident"]
    if not about.get("id") or not about.get("title"):
        raise _wrong(path, "[incident] has no id or no title", "Give it both.")
    return Case(
        id=str(about["id"]),
        title=str(about["title"]),
        summary=str(about.get("summary", "")),
        parameters=_texts(sections["parameters"]),
        answers=_texts(sections["answers"]),
        people=_texts(sections["people"]),
        expected=_expected(sections["expected"], path) if "expected" in data else None,
        times=_times(sections["times"], path),
        path=str(path),
    )


def _table(data: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    value = data.get(name, {})
    if not isinstance(value, dict):
        raise _wrong(path, f"{name} is not a section", f"Write [{name}] on a line of its own.")
    return value


def _texts(table: Mapping[str, Any]) -> dict[str, str]:
    return {key: _text(value) for key, value in table.items()}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _expected(table: Mapping[str, Any], path: Path) -> Expected:
    status, steps = table.get("status", "succeeded"), table.get("path", [])
    if status not in _STATUSES:
        raise _wrong(path, f"a run cannot end in {status!r}", f"Use: {', '.join(_STATUSES)}.")
    if not isinstance(steps, list):
        raise _wrong(path, "the expected path is not a list", 'Write path = ["Step1", "Step2"].')
    texts = {name: str(table.get(name, "")) for name in ("conclusion", "cause")}
    return Expected(status=str(status), path=tuple(map(str, steps)), **texts)


def _times(table: Mapping[str, Any], path: Path) -> dict[str, float]:
    try:
        times = {step: float(seconds) for step, seconds in table.items()}
    except (TypeError, ValueError) as error:
        raise _wrong(path, f"[times] has no number: {error}", 'Write "Step1" = 4.5.') from error
    if any(seconds < 0 for seconds in times.values()):
        raise _wrong(path, "[times] has a negative number", "Give seconds.")
    return times


def _wrong(path: Path, what: str, remedy: str) -> GuideError:
    return GuideError(f"{path}: {what}.", remedy=remedy)
