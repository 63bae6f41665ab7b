"""The experiment's report: one HTML file with the pieces of the other benchmarks' reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrt.bench.contention.drawing import COLOURS, memory_plot
from agentrt.bench.contention.figures import COLUMNS, headline, per_run, policy_row, seconds
from agentrt.bench.contention.results import Outcome
from agentrt.bench.report import render_document, write_page
from agentrt.bench.report_html import element, escape
from agentrt.bench.report_page import Page
from agentrt.bench.report_plots import Bar, BarGroup, bars
from agentrt.bench.report_sections import section

__all__ = ["render", "write_report"]

MIB = 1 << 20
KEYS = tuple(key for _, key, _ in COLUMNS)


def write_report(results: Mapping[str, Any], outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the report to ``path``.

    Raises:
        ConfigError: the file cannot be written.
    """
    write_page(render(results, outcomes), path)


def render(results: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    """Return the HTML of ``results.json``'s content and the cells' timelines."""
    policies: Mapping[str, Any] = results["policies"]
    page = Page(
        kicker="Contention experiment",
        title=f"{results['scenario']} in {results['limit'] // MIB} MiB",
        headline=headline(policies) if policies else "No run has ended yet.",
        policies=tuple(policies),
        metrics={},
        runs=(),
        command=results["command"],
        facts=_facts(results),
        machine=results["machine"],
        created=results["created"],
        warning="" if results["complete"] else "Interrupted: the figures cover what had ended.",
    )
    parts = [
        ("Plots", _plots(policies)),
        ("Memory", _memory(results, outcomes)),
        ("Figures", _figures(policies)),
        ("Runs", _runs(policies)),
        ("Policies", _notes(results)),
    ]
    return render_document(page, [part for part in parts if part[1]])


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    roles = ", ".join(f"{name}: {curve}" for name, curve in results["roles"].items())
    return [
        ("Replays", roles),
        ("Speed", f"{results['speed']:g} times as recorded"),
        ("Scale", f"{results['scale']:g}"),
        ("Runs", str(results["runs"])),
        ("Cgroups", results["cgroups"]),
    ]


def _plots(policies: Mapping[str, Any]) -> str:
    cards = []
    for heading, key, show in COLUMNS:
        rows = [
            Bar(name, one[key], show(one[key]), f"p{place % 8}")
            for place, (name, one) in enumerate(policies.items())
            if one[key] is not None
        ]
        if rows:
            drawn = bars([BarGroup("", rows)], shared_scale=True, title=heading)
            cards.append(_card(heading, "Mean of the runs; shorter is better.", drawn))
    lead = "A policy that kills looks fast: its total leaves out what never ended."
    return section("plots", "Plots", lead, element("div", "".join(cards), class_="grid"))


def _card(title: str, lead: str, body: str) -> str:
    head = element("h3", escape(title)) + element("p", escape(lead))
    return element("div", head + body, class_="card plotcard")


def _memory(results: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    roles = list(results["roles"])
    first = {
        name: min((one for one in outcomes if one.policy == name), key=lambda one: one.run)
        for name in results["policies"]
    }
    longest = max((one.makespan for one in first.values()), default=0.0)
    if longest <= 0:
        return ""
    cards = []
    for name, one in first.items():
        drawn = memory_plot(one.timeline, roles, results["limit"], longest, f"memory under {name}")
        killed = [role for role, told in one.roles.items() if not told.survived]
        lead = f"{seconds(one.makespan)}; " + (
            f"killed: {', '.join(killed)}" if killed else "nobody was killed"
        )
        cards.append(_card(name, lead, drawn))
    legend = "".join(
        element("li", f'<i class="chip {css}"></i>{escape(role)}')
        for css, role in zip(COLOURS, roles, strict=False)
    )
    body = element("ul", legend, class_="legend") + element("div", "".join(cards), class_="grid")
    lead = "Bytes charged to each replay's cgroup in the first run; the dashed line is the limit."
    return section("memory", "Memory", lead, body)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(
        element("th", escape(name), scope="col", class_="num" if place else None)
        for place, name in enumerate(heads)
    )
    body = "".join(
        element(
            "tr",
            element("th", escape(row[0]), scope="row")
            + "".join(element("td", escape(cell), class_="num") for cell in row[1:]),
        )
        for row in rows
    )
    table = element("thead", element("tr", head)) + element("tbody", body)
    return element("div", element("table", table, class_="figures"), class_="scroll")


def _figures(policies: Mapping[str, Any]) -> str:
    heads = ["Policy", "Least survivors", *(name for name, _, _ in COLUMNS), "p of the total"]
    rows = [
        [name, *policy_row(one), _p_value(one["p_total_vs_serialise"])]
        for name, one in policies.items()
    ]
    lead = (
        "Means with 95 % bootstrap intervals. Ratios are against cells of the same round: the "
        "replay alone, or all three together with memory for all. p "
        "is a two-sided permutation test of the total against serialise."
    )
    return section("figures", "Figures", lead, _table(heads, rows))


def _p_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _runs(policies: Mapping[str, Any]) -> str:
    heads = ["Run", "Survivors", *(name for name, _, _ in COLUMNS)]
    parts = [
        element(
            "details",
            element("summary", escape(name)) + _table(heads, per_run(one, KEYS)),
            class_="more",
        )
        for name, one in policies.items()
    ]
    return section("runs", "Runs", "Every run of every policy.", "".join(parts))


def _notes(results: Mapping[str, Any]) -> str:
    rows = [[name, text] for name, text in results["notes"].items()]
    settings = {key: results[key] for key in ("limit", "speed", "scale", "runs", "cgroups")}
    folded = element(
        "details",
        element("summary", "Settings")
        + element("pre", escape(json.dumps(settings, indent=2)), class_="mono"),
        class_="more",
    )
    return section(
        "policies", "Policies", results["changes"], _table(["Policy", "Here"], rows) + folded
    )
