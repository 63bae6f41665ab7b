"""One step of a guide: its heading, instructions, queries, command, connections and terminator."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agentrt.workflows.guide import END, Edge, QueryUse, Step
from agentrt.workflows.parse_policy import PolicySection, parse_policy
from agentrt.workflows.parse_text import Block, Bullet, Line, Source, blocks, bullets, fences, prose
from agentrt.workflows.parse_values import arguments, closest, in_ticks, step_id, targets
from agentrt.workflows.predicate import PredicateError, parse_predicate

__all__ = ["ParsedStep", "parse_connections", "parse_step", "step_heading"]

_HEADING = re.compile(
    r"(?P<step>step\s*[\w.]+?)\s*(?:\s[-–—]|[:.])\s+(?P<title>\S.*)", re.IGNORECASE
)
_CONCLUSION = re.compile(r"reaches\s+a\s+final\s+conclusion\s*[:.]?\s*(?P<text>.*)", re.IGNORECASE)
_IF = re.compile(r"if\s+(?P<condition>.+)", re.IGNORECASE)
_OTHERWISE = re.compile(r"(?:otherwise|else)\s*(?:\((?P<remark>.*)\))?", re.IGNORECASE)
_QUERY = re.compile(r"^`(?P<name>[^`]+)`\s*(?:with\s+(?P<arguments>.+))?$", re.IGNORECASE)
_REMARK = re.compile(r"(?P<code>`+.*`)\s*\((?P<remark>.+)\)")
_SHELLS = ("", "sh", "bash", "shell")
_SECTIONS = ("instructions", "queries", "command", "connections", "policy")


@dataclass(frozen=True, slots=True)
class ParsedStep:
    """A step, and whether its policy says that the run begins in it too."""

    step: Step
    entry: bool


def step_heading(title: str) -> tuple[str, str] | None:
    """Return id and title for ``Step 3.1 - Title``; None if the heading is no step's."""
    match = _HEADING.fullmatch(title.strip())
    found = step_id(match["step"]) if match else None
    return (found, match["title"].strip()) if match and found and found != END else None


def parse_step(block: Block, source: Source) -> ParsedStep:
    """Read the section of one step, whose heading ``step_heading`` accepts.

    Raises:
        GuideError: a part of it is not in the format.
    """
    heading = step_heading(block.title)
    if heading is None:
        raise source.error(block.line, "This is no step.", "Write `## Step 2 - Title`.")
    parts, text = _sections(block, source)
    queries, more = _queries(parts.get("queries", ()), source)
    command, about = _command(parts.get("command"), source)
    edges, notes = parse_connections(heading[0], parts.get("connections", ()), source)
    items, remarks = bullets(parts.get("policy", ()), source)
    policy = parse_policy(items, source)
    step = Step(
        id=heading[0],
        title=heading[1],
        instructions="\n\n".join(
            part for part in (text, more, about, notes, prose(remarks)) if part
        ),
        queries=queries,
        command=command,
        edges=edges,
        line=block.line,
    )
    step = _conclude(_with_policy(step, policy), block.body, source)
    return ParsedStep(step, policy.entry)


def _with_policy(step: Step, section: PolicySection) -> Step:
    return replace(
        step,
        policy=section.policy,
        for_each=section.for_each,
        guide=section.guide,
        reads=section.reads,
    )


def _sections(block: Block, source: Source) -> tuple[dict[str, tuple[Line, ...]], str]:
    """Part the known ``###`` sections from the rest, which is prose of the instructions."""
    first, *others = blocks(block.body, level=3)
    known: dict[str, tuple[Line, ...]] = {}
    text = [prose(first.body)]
    for part in others:
        word = part.title.strip().lower()
        guess = closest(word, _SECTIONS, cutoff=0.8)
        if word in known:
            raise source.error(
                part.line, f"There is a second section `### {part.title:.80}`.", "Join the two."
            )
        if word in _SECTIONS:
            known[word] = part.body
        elif guess:
            raise source.error(
                part.line,
                f"`### {part.title:.80}` is not a known section.",
                f"Did you mean `### {guess.capitalize()}`?",
            )
        if word == "instructions":
            text.append(prose(part.body))
        elif word not in _SECTIONS and part.heading:
            text.append(prose([part.heading, *part.body]))
    return known, "\n\n".join(part for part in text if part)


def _queries(lines: Sequence[Line], source: Source) -> tuple[tuple[QueryUse, ...], str]:
    items, rest = bullets(lines, source)
    return tuple(_query(item, source) for item in items), prose(rest)


def _query(item: Bullet, source: Source) -> QueryUse:
    match = _QUERY.match(item.text)
    if match is None:
        raise source.error(
            item.line,
            f"{item.text!r:.120} does not name a query.",
            "Write - `name`, or - `name` with limit=5, or a paragraph for prose.",
        )
    try:
        return QueryUse(match["name"].strip(), arguments(match["arguments"] or ""), item.line)
    except ValueError as error:
        raise source.error(
            item.line, f"The query `{match['name']}`: {error}.", "Write with limit=5, name=VALUE."
        ) from error


def _command(lines: Sequence[Line] | None, source: Source) -> tuple[str | None, str]:
    if lines is None:
        return None, ""
    found, rest = fences(lines)
    line = lines[0].number if lines else 1
    if len(found) != 1 or not found[0][1].strip():
        raise source.error(
            line, "A command is exactly one code block.", "Put it between ```sh and ```."
        )
    opening, command = found[0]
    if opening.text.lower() not in _SHELLS:
        raise source.error(
            opening.number,
            f"A command cannot be written in {opening.text!r}.",
            "Write it for the shell, between ```sh and ```.",
        )
    return command, prose(rest)


def parse_connections(
    step: str, lines: Sequence[Line], source: Source
) -> tuple[tuple[Edge, ...], str]:
    """Read the bullets of a Connections section; the second part is its prose.

    Raises:
        GuideError: a bullet is no connection, or two of them lead to one step.
    """
    items, rest = bullets(lines, source)
    edges: dict[str, Edge] = {}
    for item in items:
        for edge in _edges(step, item, source):
            if edge.target in edges:
                raise source.error(
                    item.line,
                    f"{step} connects to {edge.target} twice.",
                    "Join the conditions into one with `or`.",
                )
            edges[edge.target] = edge
    return tuple(edges.values()), prose(rest)


def _edges(step: str, item: Bullet, source: Source) -> list[Edge]:
    # The last colon before steps: a condition may hold colons itself.
    head, colon, tail = item.text.rpartition(":")
    found = targets(tail if colon else item.text)
    if not found:
        raise source.error(
            item.line,
            f"{item.text!r:.120} does not lead to a step.",
            "Write `- if CONDITION: Step 2`, `- otherwise: Step 3` or `- Step 4` (or end).",
        )
    when = _when(step, head.strip(), item, source) if colon else Edge("", step, "")
    return [
        replace(when, name=f"edge_{step}_{target}", target=target, line=item.line)
        for target in found
    ]


def _when(step: str, head: str, item: Bullet, source: Source) -> Edge:
    """An edge with what its condition says, without name, target and line."""
    if match := _OTHERWISE.fullmatch(head):
        return Edge("", step, "", condition=(match["remark"] or "").strip(), otherwise=True)
    match = _IF.fullmatch(head)
    if match is None:
        raise source.error(
            item.line,
            f"{head!r:.120} is no condition.",
            "Begin it with `if`, or write `otherwise`.",
        )
    condition = match["condition"].strip()
    remark = _REMARK.fullmatch(condition)
    code = in_ticks(remark["code"]) if remark else in_ticks(condition)
    if code is None:
        return Edge("", step, "", condition=condition)
    try:
        parse_predicate(code)
    except PredicateError as error:
        raise PredicateError(
            f"{source.label}:{item.line}: {error.message}", remedy=error.remedy
        ) from error
    return Edge("", step, "", condition=remark["remark"].strip() if remark else "", predicate=code)


def _conclude(step: Step, lines: Sequence[Line], source: Source) -> Step:
    """Add what the terminator says, and the way to ``end`` where the connections name none."""
    found = [(line, text) for line in lines if (text := _terminator(line, source)) is not None]
    if not found:
        return step
    if len(found) > 1:
        raise source.error(
            found[1][0].number, f"{step.id} has a second conclusion.", "Keep one terminator."
        )
    line, text = found[0]
    step = replace(step, conclusion=text or step.title)
    if any(edge.target == END for edge in step.edges):
        return step
    if any(edge.otherwise for edge in step.edges):
        raise source.error(
            line.number,
            f"{step.id} reaches a conclusion, but none of its connections leads to end.",
            "Add `- if CONDITION: end`, or remove the terminator.",
        )
    guarded = bool(step.edges) and not any(edge.unconditional for edge in step.edges)
    last = Edge(f"edge_{step.id}_{END}", step.id, END, otherwise=guarded, line=line.number)
    return replace(step, edges=(*step.edges, last))


def _terminator(line: Line, source: Source) -> str | None:
    if line.kind != "comment":
        return None
    if match := _CONCLUSION.fullmatch(line.text):
        return match["text"].strip()
    if line.text.lower().startswith("reaches"):
        raise source.error(
            line.number,
            f"`{line.text}` is no terminator.",
            "Write <!-- Reaches A Final Conclusion: what is concluded. -->",
        )
    return None
