"""The CPU engine's results as a table: for a terminal, and in markdown for the README. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agentrt.bench.made_part import Marks, aligned, table

__all__ = ["MARKS", "document", "markdown", "plain"]

MARKS: Final = Marks("scripts/engine-doc")


def _peers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return every peer that any row has a speed or a failure of."""
    found: dict[str, None] = {}
    for row in rows:
        found.update(dict.fromkeys([*row["peers"], *row["failed"]]))
    return sorted(found)


def _cells(row: Mapping[str, Any], peers: Sequence[str]) -> list[str]:
    def speed(name: str) -> str:
        value = row["peers"].get(name)
        return "-" if value is None else f"{value:,.0f}"

    own, ratio = row["tokens_per_second"], row["ratio_to_best_peer"]
    bound = "-"
    if row.get("bound") is not None:
        near = max(row["of_bandwidth"], row["of_arithmetic"])
        # More than all of it: other work slowed the probe more than the row.
        bound = f"{near:.0%} of {row['bound']}" if near <= 1 else "not known"
    return [
        row["name"],
        "-" if own is None else f"{own:,.0f}",
        *(speed(name) for name in peers),
        "-" if ratio is None else f"{ratio:.2f}",
        bound,
    ]


def _part_cells(entry: Mapping[str, Any]) -> list[str]:
    sign = "≥" if entry["at_least"] else "≤"
    if entry["value"] is None:
        return [entry["what"], "not measured", f"{sign} {_figure(entry, 'target')}", entry["why"]]
    verdict = "met" if entry["met"] else "missed"
    return [entry["what"], _figure(entry, "value"), f"{sign} {_figure(entry, 'target')}", verdict]


def _figure(entry: Mapping[str, Any], key: str) -> str:
    value, unit = entry[key], entry["unit"]
    if unit == "share":
        return f"{value:.1%}" if value < 0.1 else f"{value:.0%}"
    return f"{value:.2f} {unit}"


def markdown(results: Mapping[str, Any]) -> str:
    """Return both tables of a results file, with what they were measured on, in markdown."""
    rows, parts = results["rows"], results["measures"]
    peers = _peers(rows)
    head = ["row", "agentrt", *peers, "to the best peer", "our nearest bound"]
    machine = results["machine"]
    body = [[f"`{cells[0]}`", *cells[1:]] for cells in (_cells(row, peers) for row in rows)]
    limits = results["limits"]
    lines = [
        f"Tokens per second, bf16, {results['threads']} threads of {machine['processor']} "
        f"({limits['bytes_per_second'] / 1e9:.0f} GB/s, "
        f"{limits['flops_per_second'] / 1e9:,.0f} GFLOP/s as probed), same seeded weights and "
        f"prompts, engines in turns,\nmedians; by `{results['command']}`, load "
        f"{_loads(rows, results)}:",
        "",
        *table(head, body),
        "",
        *_notes(results),
    ]
    if parts:
        head = ["what", "measured", "target", ""]
        lines += [*table(head, [_part_cells(entry) for entry in parts.values()]), ""]
    return "\n".join(lines)


def _loads(rows: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> str:
    """Return the span of the machine's load, with a warning where others took part."""
    loads = [row["load"] for row in rows if "load" in row] or [results["load"][0]]
    span = f"{min(loads):.0f} to {max(loads):.0f}"
    if max(loads) <= results["threads"] + 1:
        return span
    return f"{span} (others were busy: these figures are provisional, ratios only hint)"


def _notes(results: Mapping[str, Any]) -> list[str]:
    """Return a line for each engine's version, and one for whatever gave no figure."""
    lines = [
        f"- {name}: {about['version']}; {about['note']}"
        for name, about in sorted(results["engines"].items())
    ]
    reasons: dict[str, list[str]] = {}
    for row in results["rows"]:
        for name, why in row["failed"].items():
            reasons.setdefault(f"{name}: {why}", []).append(row["name"])
    lines += [
        f"- no figure of {why} ({', '.join(f'`{row}`' for row in rows)})"
        for why, rows in reasons.items()
    ]
    return [*lines, ""] if lines else []


def plain(results: Mapping[str, Any]) -> str:
    """Return the tables for a terminal: columns of text."""
    rows = results["rows"]
    peers = _peers(rows)
    head = ["row", "agentrt", *peers, "ratio", "nearest bound"]
    text = [*aligned([head, *(_cells(row, peers) for row in rows)]), "", *_notes(results)]
    if results["measures"]:
        body = [_part_cells(entry) for entry in results["measures"].values()]
        text += aligned([["what", "measured", "target", ""], *body])
    return "\n".join(text)


def document(text: str, results: Mapping[str, Any]) -> str:
    """Return a document with its table made anew.

    Raises:
        ValueError: the document does not have the two marks.
    """
    return MARKS.renew(text, markdown(results))
