"""Programs one by one: verdicts and commands of a run, or completion times across policies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from agentrt.bench.records import ProgramRecord, RunRecord, ToolRecord
from agentrt.bench.report_data import all_programs
from agentrt.bench.report_html import duration, element, escape, number, shorten
from agentrt.bench.report_page import VERDICT, Page
from agentrt.bench.report_sections import section

__all__ = ["programs_section"]

_COMMAND_LIMIT = 4000
_BAD = ("unresolved", "failed", "cancelled")


def programs_section(page: Page) -> str:
    """Return the programs of a run with their commands, or a folded table for a comparison."""
    if not page.runs:
        return ""
    if page.is_comparison:
        lead = "Completion time in seconds, first seed."
        return section("programs", "Programs", lead, _across(page))
    run = page.runs[0]
    if any(tool.command for tool in run.tools) or any(row.detail for row in run.programs):
        return section("programs", "Programs", _verdict_lead(run), _cards(run))
    return section("programs", "Programs", "", _fold("Show every program", _plain_table(run)))


def _verdict_lead(run: RunRecord) -> str:
    judged = any(row.outcome in ("resolved", "unresolved") for row in run.programs)
    return "Open a program to read the commands that its agent ran." if judged else ""


def _fold(summary: str, body: str) -> str:
    return f'<details class="more"><summary>{escape(summary)}</summary>{body}</details>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is a name and whose others are numbers."""
    top = "".join(
        element("th", escape(name), scope="col", class_="num" if place else None)
        for place, name in enumerate(head)
    )
    body = "".join(
        "<tr>"
        + element("th", escape(row[0]), scope="row")
        + "".join(element("td", escape(cell), class_="num") for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="figures"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _across(page: Page) -> str:
    times: dict[str, dict[str, str]] = defaultdict(dict)
    for policy in page.policies:
        for row in (all_programs(run) for run in page.runs_of(policy)[:1]):
            for program in row:
                times[program.program][policy] = _completion(program)
    rows = [[name, *(cells.get(p, "–") for p in page.policies)] for name, cells in times.items()]
    return _fold("Show every program", _table(["Program", *page.policies], rows))


def _completion(row: ProgramRecord) -> str:
    text = number(row.finished - row.arrival)
    return f"{text} ({row.outcome})" if row.outcome in _BAD else text


def _plain_table(run: RunRecord) -> str:
    turns: dict[str, int] = defaultdict(int)
    for turn in run.turns:
        turns[turn.program] += 1
    head = ["Program", "Arrival, s", "Completion, s", "Turns", "Outcome"]
    rows = [
        [
            row.program,
            number(row.arrival),
            number(row.finished - row.arrival),
            f"{turns[row.program]:,}",
            row.outcome,
        ]
        for row in all_programs(run)
    ]
    return _table(head, rows)


def _cards(run: RunRecord) -> str:
    tools: dict[str, list[ToolRecord]] = defaultdict(list)
    for tool in run.tools:
        tools[tool.program].append(tool)
    turns: dict[str, int] = defaultdict(int)
    for turn in run.turns:
        turns[turn.program] += 1
    return "".join(
        _program(row, turns[row.program], sorted(tools[row.program], key=lambda tool: tool.start))
        for row in all_programs(run)
    )


def _program(row: ProgramRecord, turns: int, tools: Sequence[ToolRecord]) -> str:
    bad = row.outcome in _BAD
    took = duration(row.finished - row.arrival)
    calls = sum(tool.name != VERDICT for tool in tools)
    line = (
        element("span", escape(row.outcome), class_=f"badge {'bad' if bad else 'good'}")
        + element("span", escape(row.program), class_="who")
        + element("span", escape(row.detail), class_="why")
        + element("span", f"{turns} turns, {calls} tool calls, {took}", class_="sums")
    )
    if not tools:
        return element("div", element("div", line, class_="line"), class_="card program")
    items = "".join(_command(tool) for tool in tools)
    body = element("summary", line) + element("ol", items, class_="commands")
    return element("details", body, class_="card program")


def _command(tool: ToolRecord) -> str:
    return element(
        "li",
        element("span", f"{number(tool.start)} s", class_="at")
        + element("span", escape(tool.name), class_="kind")
        + element("pre", escape(shorten(tool.command or tool.name, _COMMAND_LIMIT)))
        + element("span", _result(tool), class_="got"),
    )


def _result(tool: ToolRecord) -> str:
    parts = []
    if tool.exit_code is not None:
        css = ' class="bad"' if tool.exit_code else ""
        parts.append(f"<b{css}>exit {tool.exit_code}</b>")
    if tool.status and tool.status not in ("exited", "ok", "completed"):
        parts.append(f'<b class="bad">{escape(tool.status)}</b>')
    parts.append(duration(tool.end - tool.start))
    if tool.peak_memory is not None:
        parts.append(f"{number(tool.peak_memory / 2**20)} MiB")
    return " · ".join(parts)
