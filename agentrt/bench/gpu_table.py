"""The GPU check's results as a table: for a terminal, and in markdown for the README. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentrt.bench.gpu_plan import table_row
from agentrt.bench.made_part import Marks, aligned, table

__all__ = ["MARKS", "NOTHING", "markdown", "plain"]

MARKS: Final = Marks("scripts/gpu-doc")
NOTHING: Final = (
    "No GPU result has been recorded yet: `scripts/gpu-check` measures all rows on one GPU within "
    "nine minutes.\n"
)
HEAD: Final = ("row", "measured", "target", "of the bound", "")


def plain(results: Mapping[str, Any]) -> str:
    """Return the results for a terminal: where they come from, and columns of text."""
    rows = results.get("rows", [])
    lines = [_about(results), ""]
    if rows:
        lines += aligned([HEAD, *(table_row(entry) for entry in rows)])
    left = results.get("left", [])
    if left:
        lines += ["", f"left for the next run: {', '.join(left)}"]
    return "\n".join(lines)


def markdown(results: Mapping[str, Any] | None) -> str:
    """Return the table in markdown, with what it was measured on; a line where there is none."""
    if results is None or not results.get("rows"):
        return NOTHING
    body = [table_row(entry) for entry in results["rows"]]
    lines = [f"{_about(results)}; by `{results['command']}`:", "", *table(HEAD, body), ""]
    profiles = [
        f"[{entry['name']}](benchmarks/results/{entry['profile']})"
        for entry in results["rows"]
        if entry.get("profile")
    ]
    if profiles:
        lines += [f"Where the time goes in rows that fall short: {', '.join(profiles)}.", ""]
    return "\n".join(lines)


def _about(results: Mapping[str, Any]) -> str:
    if "device" not in results:
        return "Nothing was measured."
    rates, versions = results.get("rates"), results["versions"]
    told = [results["device"], f"driver {results['driver']}", f"torch {versions['torch']}"]
    told += [f"Triton {versions['triton']}", f"commit {results['commit']}"]
    if rates is not None:
        told.append(
            f"copies {rates['copy'] / 1e12:.2f} TB/s (read and written), multiplies "
            f"{rates['matrix'] / 1e12:,.0f} TFLOP/s"
        )
    if results.get("dry"):
        told.insert(0, "DRY RUN on tiny shapes: no result")
    return ", ".join(told)
