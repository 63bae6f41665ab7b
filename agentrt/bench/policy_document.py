"""The table of measured results in ``docs/policies.md``, made from a comparison's results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Final

__all__ = ["BEGIN", "END", "document", "table"]

BEGIN: Final = "<!-- made by scripts/policies-doc: do not edit below -->"
END: Final = "<!-- end of what is made -->"

BASELINE: Final = "fcfs"
COLUMNS: Final = (
    "policy",
    "mean completion",
    "to `fcfs`",
    "P90",
    "P90 slowdown",
    "longest wait",
    "first turn P99",
    "prefilled",
    "programs/h",
)


def table(kept: Mapping[str, Any]) -> str:
    """Return the table of a kept comparison, the best mean completion time first, in markdown.

    Args:
        kept: what ``agentrt bench compare --json`` printed: ``about`` and ``results``.
    """
    results = kept["results"]
    policies: Mapping[str, Any] = results["policies"]
    base = policies.get(BASELINE, {}).get("jct_mean")
    lines = [_caption(kept), "", f"| {' | '.join(COLUMNS)} |", "|---" + "|---:" * 8 + "|"]
    for name, figures in sorted(policies.items(), key=lambda item: item[1]["jct_mean"]):
        lines.append(_row(name, figures, base))
    return "\n".join(lines) + "\n"


def _caption(kept: Mapping[str, Any]) -> str:
    results = kept["results"]
    seeds = results["settings"]["seeds"]
    arrivals = (
        f"{len(seeds)} arrival patterns" if len(seeds) > 1 else f"arrivals of seed {seeds[0]}"
    )
    source = results["workload"]["source"]
    command = kept["about"]["command"].replace(source, PurePath(source).name)
    programs = results["workload"]["programs"]
    return f"{programs} coding-agent programs, {arrivals}, simulated, by\n`{command}`:"


def _row(name: str, figures: Mapping[str, Any], base: float | None) -> str:
    mean = figures["jct_mean"]
    ratio = f"{base / mean:.1f} x" if base else "-"
    cells = (
        f"`{name}`",
        f"{mean:,.0f} s",
        ratio,
        f"{figures['jct_p90']:,.0f} s",
        f"{figures['slowdown_p90']:.1f}",
        f"{figures['longest_wait']:,.0f} s",
        f"{figures['ttft_first_p99']:,.0f} s",
        f"{figures['prefill_ratio']:.1f}",
        f"{figures['programs_per_hour']:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def document(text: str, kept: Mapping[str, Any]) -> str:
    """Return the document ``text`` with its table made anew.

    Raises:
        ValueError: the document does not have the two marks.
    """
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table(kept)}\n{END}{after}"
