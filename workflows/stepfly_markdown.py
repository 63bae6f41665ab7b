"""StepFly's guide markdown: headings, ``<PLUGIN_n>`` blocks, terminators, the last marker."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from agentrt.errors import GuideError
from agentrt.workflows.guide import END, Edge, Parameter

__all__ = [
    "MarkdownGuide",
    "MarkdownStep",
    "base_name",
    "compact_text",
    "parse_markdown",
    "plugin_blocks",
    "prose_edges",
    "terminators",
]

_PLUGIN = re.compile(r"(\S*)<PLUGIN_(\d+)>(.*?)(\S*)</PLUGIN_\2>", re.DOTALL)
_OPEN_PLUGIN = re.compile(r"</?PLUGIN_(\d+)>")
_MARKER = re.compile(r"<!--\s*TSG_PLUGINS:\s*([\w.-]+)\s*-->\s*\Z")
_SUFFIXES = ("_WITH_PLUGIN_REFERENCES", "_WITH_REFERENCES")
_HEADING = re.compile(r"^##\s+Step\s+(\d+(?:\.\d+)*)\s*[-:–—.]\s*(.+?)\s*$", re.I)
_TITLE = re.compile(r"^#\s+(.+?)\s*$")
_PARAMETER = re.compile(r"^\s*[-*]\s+`(\w+)`\s*:\s*(.*)$")
_TIME_NAME = re.compile(r"(^|_)(time|timestamp|date)($|_)", re.I)
_TERMINATOR = re.compile(
    r"\*\*\s*This is (?:a potential resolution|a definitive resolution path"
    r"|the final outcome of this TSG)\s*\.?\s*\*\*",
    re.I,
)
_GO = re.compile(
    r"\b(?:proceed|go|continue|move|jump|skip|advance)(?:\s+\w+)?\s+(?:to|with|at)\s+"
    r"(?:\*\*|`)?Step\s+(\d+(?:\.\d+)*)",
    re.I,
)
_IF = re.compile(r"\b(if|when|unless|otherwise|else)\b", re.I)


@dataclass(frozen=True, slots=True)
class MarkdownStep:
    """A step's section: ``body`` in full, ``line`` of its heading, the plugins within it."""

    id: str
    title: str
    body: str
    line: int
    plugins: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class MarkdownGuide:
    """A guide file as it is read. ``plugin_set`` names the folder of its plugins."""

    title: str
    overview: str
    steps: tuple[MarkdownStep, ...]
    parameters: tuple[Parameter, ...]
    plugin_set: str


def base_name(file_name: str) -> str:
    """Return a guide's name for its companion files: no ``.md``, no ``_WITH_..REFERENCES``."""
    name = file_name.removesuffix(".md")
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def plugin_blocks(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield (number, query text, line) of every ``<PLUGIN_n>`` block."""
    for match in _PLUGIN.finditer(text):
        start = match.start() + len(match[1])
        yield match[2], (match[3] + match[4]).strip(), text.count("\n", 0, start) + 1


def compact_text(text: str) -> str:
    """Return the text with each query replaced by a reference to it; a query is most of a guide."""
    return _PLUGIN.sub(lambda match: f"[query `plugin_{match[2]}`]", text)


def terminators(text: str) -> Iterator[int]:
    """Yield where each terminator phrase starts."""
    return (match.start() for match in _TERMINATOR.finditer(text))


def parse_markdown(text: str, *, name: str, path: str) -> MarkdownGuide:
    """Read a guide's markdown.

    Raises:
        GuideError: no title, no steps, two steps of one number, or a plugin block left open.
    """
    lines = text.splitlines()
    _check_blocks(text, path)
    heads = [(at, match) for at, line in enumerate(lines) if (match := _HEADING.match(line))]
    title = next((match[1] for line in lines if (match := _TITLE.match(line))), "")
    if not title or not heads:
        raise GuideError(
            f"{path}:1: a title ('# ...') and steps ('## Step 1 - ...') are needed.",
            remedy="Write both headings.",
        )
    ends = [at for at, _ in heads[1:]] + [len(lines)]
    blocks = list(plugin_blocks(text))
    steps = tuple(
        _step(lines, at, end, match, blocks) for (at, match), end in zip(heads, ends, strict=True)
    )
    _check_numbers(steps, path)
    overview = "\n".join(line for line in lines[: heads[0][0]] if not _TITLE.match(line)).strip()
    marker = _MARKER.search(text)
    return MarkdownGuide(
        title, overview, steps, _parameters(steps[0].body), marker[1] if marker else base_name(name)
    )


def prose_edges(steps: tuple[MarkdownStep, ...], path: str) -> tuple[Edge, ...]:
    """Return the edges that the steps' sentences name: "proceed to Step N" and terminators.

    Raises:
        GuideError: a step says neither where to go nor that it ends; or it goes to no step.
    """
    known = {step.id for step in steps}
    found: list[Edge] = []
    for step in steps:
        edges = list(_merged(_step_edges(step)))
        if not edges:
            raise GuideError(
                f"{path}:{step.line}: {step.id} does not say what comes next.",
                remedy="Write 'proceed to Step N' or a terminator phrase, or add a PlanDAG file.",
            )
        for edge in edges:
            if edge.target not in known and edge.target != END:
                raise GuideError(
                    f"{path}:{edge.line}: {step.id} goes to {edge.target}, which does not exist.",
                    remedy="Correct the number.",
                )
        found += edges
    return tuple(found)


def _check_blocks(text: str, path: str) -> None:
    rest = _PLUGIN.sub(lambda match: "\n" * match[0].count("\n"), text)
    if left := _OPEN_PLUGIN.search(rest):
        line = rest.count("\n", 0, left.start()) + 1
        raise GuideError(
            f"{path}:{line}: {left[0]} has no counterpart.",
            remedy=f"Write <PLUGIN_{left[1]}> before and </PLUGIN_{left[1]}> after the query.",
        )


def _step(
    lines: list[str], at: int, end: int, match: re.Match[str], blocks: list[tuple[str, str, int]]
) -> MarkdownStep:
    body = "\n".join(lines[at + 1 : end])
    body = _MARKER.sub("", body + "\n").strip()
    plugins = tuple((number, line) for number, _, line in blocks if at + 1 <= line <= end)
    return MarkdownStep(f"Step{match[1]}", match[2], body, at + 1, plugins)


def _check_numbers(steps: tuple[MarkdownStep, ...], path: str) -> None:
    seen: set[str] = set()
    for step in steps:
        if step.id in seen:
            raise GuideError(f"{path}:{step.line}: {step.id} is there twice.", remedy="Renumber.")
        seen.add(step.id)


def _parameters(body: str) -> tuple[Parameter, ...]:
    matches = (_PARAMETER.match(line) for line in body.splitlines())
    return tuple(
        Parameter(
            match[1], match[2].strip(), "timestamp" if _TIME_NAME.search(match[1]) else "string"
        )
        for match in matches
        if match
    )


def _step_edges(step: MarkdownStep) -> Iterator[Edge]:
    text = compact_text(step.body)
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*[-*]\s)", text):
        plain = " ".join(paragraph.split())
        for target, at in _targets(plain):
            condition, otherwise = _condition(plain[:at])
            name = f"edge_{step.id}_{target}"
            yield Edge(name, step.id, target, condition, otherwise=otherwise, line=step.line)


def _targets(plain: str) -> list[tuple[str, int]]:
    """Where a paragraph goes, with the place at which it says so."""
    found = [(f"Step{match[1]}", match.start()) for match in _GO.finditer(plain)]
    return found + [(END, at) for at in terminators(plain)]


def _condition(before: str) -> tuple[str, bool]:
    """The last "if ..." clause before a target: (condition, is "otherwise")."""
    matches = list(_IF.finditer(before))
    if not matches:
        return "", False
    last = matches[-1]
    if last[1].lower() in ("otherwise", "else"):
        return "", True
    return re.split(r"[,.;]\s", before[last.start() :])[0].strip(" ,.;*"), False


def _merged(edges: Iterator[Edge]) -> Iterator[Edge]:
    """Edges to one target joined by "or"; an unconditional one absorbs the rest."""
    by_target: dict[str, Edge] = {}
    for edge in edges:
        known = by_target.setdefault(edge.target, edge)
        if known is not edge and known.condition and edge.condition != known.condition:
            both = f"{known.condition} or {edge.condition}" if edge.condition else ""
            by_target[edge.target] = Edge(
                known.name, known.source, known.target, both, line=known.line
            )
    yield from by_target.values()
