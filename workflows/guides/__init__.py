"""Guides that ship with agentrt, each of another shape, and how a guide is found by name or path.

A guide's folder holds ``guide.md``, ``queries.toml`` and ``incidents/*.toml``; their telemetry is
made on demand by ``agentrt.workflows.guides.telemetry``. Nothing here runs a guide.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from agentrt.errors import GuideError
from agentrt.workflows.guide import Guide

__all__ = ["GUIDE_FILE", "find_guide", "guide_name", "open_guide", "shipped_guides"]

GUIDE_FILE = "guide.md"


def shipped_guides() -> dict[str, Path]:
    """Return the guides that ship with agentrt: name to file, in order of name."""
    here = Path(__file__).parent
    return {path.parent.name: path for path in sorted(here.glob(f"*/{GUIDE_FILE}"))}


def find_guide(text: str) -> Path:
    """Return the file of a guide given by path, by its folder, or by the name of a shipped one.

    Raises:
        GuideError: there is none.
    """
    path = Path(text)
    if path.is_dir() and (path / GUIDE_FILE).is_file():
        return path / GUIDE_FILE
    if path.exists():
        return path
    shipped = shipped_guides()
    if text in shipped:
        return shipped[text]
    raise GuideError(
        f"There is no guide {text!r}.",
        remedy=f"Give a guide's file or folder, or one of: {', '.join(shipped)}.",
    )


def guide_name(path: Path) -> str:
    """Return what a guide in this file is called: its folder's name for a ``guide.md``."""
    file = path.absolute()
    return file.parent.name if file.name == GUIDE_FILE else file.stem


def open_guide(path: Path) -> Guide:
    """Read a guide of ours, or of StepFly's layout, whichever the file holds.

    Raises:
        GuideError: it is in neither format, or something in it is wrong.
    """
    if path.is_dir() or (path.parent / "PlanDAGs").is_dir():
        from agentrt.workflows.stepfly import load_stepfly

        return load_stepfly(path)
    from agentrt.workflows.parse import load_guide

    return replace(load_guide(path), name=guide_name(path))
