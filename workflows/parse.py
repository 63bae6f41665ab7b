"""Reads guides in agentrt's own markdown format, which ``docs/guide-format.md`` describes.

Strict about structure (an unknown policy or target is an error, with its line and what to do), and
tolerant of prose: paragraphs, tables and code stay with the step, or with the overview.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from agentrt.errors import GuideError
from agentrt.workflows.guide import END, START, Edge, Guide, OnConclusion, Parameter, Step
from agentrt.workflows.parse_step import ParsedStep, parse_connections, parse_step, step_heading
from agentrt.workflows.parse_text import Block, Bullet, Line, Source, blocks, bullets, prose, scan
from agentrt.workflows.parse_values import closest, split_outside_quotes, unquote

__all__ = ["LARGEST_GUIDE", "PARAMETER_TYPES", "load_guide", "parse_guide"]

LARGEST_GUIDE = 4 << 20
"""The most bytes a guide's file may have."""

PARAMETER_TYPES = ("string", "integer", "number", "boolean", "timestamp")

_PARAMETER = re.compile(r"^`(?P<name>[^`]+)`\s*(?P<rest>.*)$")
_SETTINGS = re.compile(r"guide\s*:(?P<settings>.*)", re.IGNORECASE)
_WRONG_HEADING = re.compile(r"^(?:step|start|parameter)s?\b", re.IGNORECASE)


def load_guide(path: Path | str) -> Guide:
    """Read a guide's file. The guide is named after the file.

    Raises:
        GuideError: the file is missing, too large, not UTF-8, or not in the format.
    """
    file = Path(path)
    try:
        if file.stat().st_size > LARGEST_GUIDE:
            raise GuideError(
                f"{file} is larger than {LARGEST_GUIDE} bytes.", remedy="Split the guide."
            )
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise GuideError(
            f"{file} cannot be read ({error.strerror}).", remedy="Give the path of a guide."
        ) from error
    except UnicodeDecodeError as error:
        raise GuideError(f"{file} is not UTF-8.", remedy="Save the guide as UTF-8.") from error
    return parse_guide(text, name=file.stem, path=str(file))


def parse_guide(text: str, *, name: str, path: str = "") -> Guide:
    """Read a guide's text. ``path`` is where it came from, for messages and neighbouring files.

    Raises:
        GuideError: the text is not in the format; the message names file and line.
    """
    source = Source(path or name)
    top = blocks(scan(text, source), level=1)
    _check_title(top, source)
    sections = blocks(top[1].body, level=2)
    settings = _settings(sections[0].body, source)
    known = _sort_sections(sections[1:], source)
    parsed = [parse_step(section, source) for section in known["step"]]
    _check_steps(parsed, source)
    return Guide(
        name=name,
        title=top[1].title,
        steps=_with_start(known["start"], parsed, source),
        parameters=_parameters(known["parameters"], source),
        overview=_overview(sections[0], known["prose"]),
        text=text,
        path=path,
        queries_file=settings.get("queries"),
        on_conclusion=_on_conclusion(settings, sections[0].line, source),
    )


def _check_title(top: Sequence[Block], source: Source) -> None:
    if len(top) < 2 or not top[1].title:
        raise source.error(1, "The guide has no title.", "Begin it with a line `# Title`.")
    if len(top) > 2:
        raise source.error(
            top[2].line, "The guide has a second title.", "Use `##` for sections, one `#` only."
        )
    if prose(top[0].body):
        raise source.error(
            top[0].line, "There is text above the title.", "Begin the guide with `# Title`."
        )


def _sort_sections(sections: Sequence[Block], source: Source) -> dict[str, list[Block]]:
    """Sort the ``##`` sections by what they are; unknown ones are prose unless they look wrong."""
    known: dict[str, list[Block]] = {"parameters": [], "start": [], "step": [], "prose": []}
    for section in sections:
        word = section.title.strip().lower()
        if step_heading(section.title):
            known["step"].append(section)
        elif word in ("parameters", "start"):
            if known[word]:
                raise source.error(
                    section.line, f"There is a second section {section.title}.", "Join the two."
                )
            known[word].append(section)
        elif _WRONG_HEADING.match(word) or closest(word.split()[0], ("step", "parameters")):
            raise source.error(
                section.line,
                f"`## {section.title:.80}` is neither a step nor a known section.",
                "Write `## Step 2 - Title`, `## Parameters` or `## Start`.",
            )
        else:
            known["prose"].append(section)
    if not known["step"]:
        raise source.error(
            sections[-1].line if sections else 1,
            "The guide has no steps.",
            "Add a section `## Step 1 - Title`.",
        )
    return known


def _overview(preamble: Block, more: Sequence[Block]) -> str:
    parts = [prose(preamble.body)]
    for block in more:
        parts.append(prose([block.heading, *block.body] if block.heading else block.body))
    return "\n\n".join(part for part in parts if part)


def _settings(lines: Sequence[Line], source: Source) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        match = _SETTINGS.fullmatch(line.text.strip()) if line.kind == "comment" else None
        for part in split_outside_quotes(match["settings"], ";") if match else []:
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if key not in ("queries", "on_conclusion") or not equals or not value:
                raise source.error(
                    line.number,
                    f"The guide has no setting {part!r:.120}.",
                    "Write queries=FILE or on_conclusion=cancel|drain|finish-join.",
                )
            if key in found:
                raise source.error(line.number, f"{key} is set twice.", "Keep one of them.")
            found[key] = unquote(value)
    return found


def _on_conclusion(settings: dict[str, str], line: int, source: Source) -> OnConclusion:
    value = settings.get("on_conclusion", "cancel")
    for known in get_args(OnConclusion):
        if value == known:
            chosen: OnConclusion = known
            return chosen
    raise source.error(
        line, f"on_conclusion cannot be {value!r}.", "Use cancel, drain or finish-join."
    )


def _parameters(sections: Sequence[Block], source: Source) -> tuple[Parameter, ...]:
    found: dict[str, Parameter] = {}
    for section in sections:
        items, _ = bullets(section.body, source)
        for item in items:
            parameter = _parameter(item, source)
            if parameter.name in found:
                raise source.error(
                    item.line, f"`{parameter.name}` is declared twice.", "Keep one of them."
                )
            found[parameter.name] = parameter
    return tuple(found.values())


def _parameter(item: Bullet, source: Source) -> Parameter:
    match = _PARAMETER.match(item.text)
    name = match["name"].strip() if match else ""
    if match is None or not name.isidentifier():
        raise source.error(
            item.line,
            f"{item.text!r:.120} does not declare a parameter.",
            "Write - `name` (type, default VALUE): description.",
        )
    inside, rest = _parenthesis(match["rest"])
    if rest.strip() and not rest.lstrip().startswith(":"):
        raise source.error(
            item.line, f"`{name}` is followed by {rest!r}.", "Write a colon before the description."
        )
    parameter = Parameter(name, rest.strip().removeprefix(":").strip())
    try:
        return _typed(parameter, split_outside_quotes(inside))
    except ValueError as error:
        raise source.error(
            item.line,
            f"`{name}`: {error}.",
            f"In parentheses stand a type ({', '.join(PARAMETER_TYPES)}), optional, default VALUE.",
        ) from error


def _parenthesis(text: str) -> tuple[str, str]:
    """Part ``(inside) rest``; quoted texts inside may hold parentheses."""
    match = re.match(r'\((?P<inside>(?:[^")]|"(?:[^"\\]|\\.)*")*)\)(?P<rest>.*)$', text)
    return (match["inside"], match["rest"]) if match else ("", text)


def _typed(parameter: Parameter, words: Sequence[str]) -> Parameter:
    for word in words:
        key, _, value = word.partition(" ")
        if word in PARAMETER_TYPES:
            parameter = replace(parameter, type=word)
        elif word in ("required", "optional"):
            parameter = replace(parameter, required=word == "required")
        elif key == "default" and value.strip():
            parameter = replace(parameter, required=False, default=unquote(value))
        else:
            raise ValueError(f"{word!r} is not known here")
    return parameter


def _check_steps(parsed: Sequence[ParsedStep], source: Source) -> None:
    found: dict[str, Step] = {}
    for step in (each.step for each in parsed):
        if step.id in found:
            raise source.error(
                step.line,
                f"{step.id} is there twice, first in line {found[step.id].line}.",
                "Number each step once.",
            )
        found[step.id] = step
    _check_targets(found, source)


def _check_targets(steps: dict[str, Step], source: Source) -> None:
    for step in steps.values():
        for edge in step.edges:
            if edge.target != END and edge.target not in steps:
                raise _no_such_step(edge.line, step.id, edge.target, steps, source)
        for other in step.reads:
            if other not in steps:
                raise _no_such_step(step.line, step.id, other, steps, source)


def _no_such_step(
    line: int, step: str, target: str, steps: dict[str, Step], source: Source
) -> GuideError:
    known = ", ".join(list(steps)[:20])
    return source.error(
        line, f"{step} names {target}, which is not in the guide.", f"Steps are: {known}, end."
    )


def _with_start(
    start: Sequence[Block], parsed: Sequence[ParsedStep], source: Source
) -> tuple[Step, ...]:
    """Put the step ``start`` first where the guide begins elsewhere than in its first step."""
    steps = tuple(each.step for each in parsed)
    entries = [each.step for each in parsed if each.entry]
    if start:
        if entries:
            raise source.error(
                entries[0].line, "`entry` and a section `## Start` do not go together.", "Drop one."
            )
        edges, _ = parse_connections(START, start[0].body, source)
        begin = Step(id=START, title="Start", edges=edges, line=start[0].line)
        _check_targets({step.id: step for step in (begin, *steps)}, source)
        return (begin, *steps)
    first = dict.fromkeys(step.id for step in (steps[0], *entries))
    if len(first) == 1:
        return steps
    edges = tuple(Edge(f"edge_{START}_{each}", START, each, line=steps[0].line) for each in first)
    return (Step(id=START, title="Start", edges=edges, line=steps[0].line), *steps)
