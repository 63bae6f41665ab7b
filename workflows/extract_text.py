"""Puts Connections sections into a guide's text and leaves every other line as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentrt.workflows.guide import Edge, Step
from agentrt.workflows.parse_step import step_heading
from agentrt.workflows.parse_text import Block, Line, Source, blocks, scan
from agentrt.workflows.render_guide import connection_lines

__all__ = ["insert_connections"]


def insert_connections(text: str, edges: Mapping[str, Sequence[Edge]], label: str) -> str:
    """Return the text with the edges of each step (by its id) as bullets of its section.

    An empty Connections section is filled; otherwise one is put before the policy, else at the
    step's end. Steps without edges are left alone.

    Raises:
        GuideError: a code block or comment in the text is never closed.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    inserts: dict[int, list[str]] = {}
    for block in blocks(scan(text, Source(label)), level=2):
        heading = step_heading(block.title)
        found = edges.get(heading[0], ()) if heading else ()
        if heading and found:
            bullets = connection_lines(Step(heading[0], heading[1], edges=tuple(found)))
            at, section = _place(block, bullets)
            inserts[at] = section
    for at in sorted(inserts, reverse=True):
        lines[at:at] = inserts[at]
    return "\n".join(lines)


def _place(block: Block, bullets: list[str]) -> tuple[int, list[str]]:
    """Return the number of lines that stay above, and the lines to put there."""
    for line in block.body:
        if line.kind == "heading" and line.level == 3 and line.text.lower() == "connections":
            return line.number, ["", *bullets, ""]
    section = ["### Connections", "", *bullets, ""]
    for line in block.body:
        if _is_policy(line):
            return line.number - 1, section
    # A terminator would have given the step an edge, so the end of the section is free.
    ends = [line.number + line.raw.count("\n") for line in block.body if line.raw.strip()]
    last = max(ends, default=block.line)
    return last, ["", *section[:-1]]


def _is_policy(line: Line) -> bool:
    return line.kind == "heading" and line.level == 3 and line.text.lower() == "policy"
