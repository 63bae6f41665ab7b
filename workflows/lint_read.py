"""Reads a guide's markdown for lint: lenient, line by line, both formats."""

from __future__ import annotations

import re
from collections.abc import Iterator

from agentrt.workflows.lint_model import Document, Link, LintStep, Use
from agentrt.workflows.stepfly_markdown import plugin_blocks, terminators

__all__ = ["PLACEHOLDER", "STEP_HEADING", "read_document", "step_numbers"]

STEP_HEADING = re.compile(
    r"^\s{0,3}(?P<marks>#{1,4})\s*step\s*(?P<number>\d+(?:\.\d+)*)\b[\s:.–—-]*(?P<title>.*?)\s*#*$",
    re.I,
)
PLACEHOLDER = re.compile(r"(?<![{$])\{([A-Za-z_]\w*)\}(?!\})")
_HEADING = re.compile(r"^(#{1,6})\s*(.+?)\s*#*$")
_STEP_NAME = re.compile(r"\bsteps?\s*(\d+(?:\.\d+)*)\b|\b(end)\b", re.I)
_BULLET = re.compile(r"^\s*[-*+]\s+(.*\S)\s*$")
_PARAMETER = re.compile(r"^\s*[-*+]\s+`(\w+)`")
_USE = re.compile(r"^`([^`]+)`(?:\s+with\s+(.*))?$", re.I)
_ARGUMENT = re.compile(r"([A-Za-z_]\w*)\s*=\s*(\"[^\"]*\"|'[^']*'|[^,\s]+)")
_CODE = re.compile(r"^(`+)\s*(.*?)\s*\1(?:\s*\(.*\))?$")
_MARKER = re.compile(r"reaches\s+a\s+final\s+conclusion\s*[:.]?\s*(.*?)\s*(?:-->|$)", re.I)
_SETTING = re.compile(r"guide\s*:(.*?)(?:-->|$)", re.I)
_FENCE = re.compile(r"^\s{0,3}(```+|~~~+)")
_SECTIONS = ("instructions", "queries", "command", "connections", "policy")


def read_document(text: str, *, stepfly: bool = False) -> Document:
    """Read a guide, whatever is wrong with it."""
    document = Document(text, text.splitlines(), stepfly=stepfly)
    _Reader(document).read()
    if stepfly:
        _read_stepfly(document)
    return document


def step_numbers(text: str) -> list[str]:
    """Return the ids of the steps that a text names, ``end`` included, in order."""
    return ["end" if match[2] else f"Step{match[1]}" for match in _STEP_NAME.finditer(text)]


class _Reader:
    """Walks the lines; knows in which step, section, fence and comment it is."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.step: LintStep | None = None
        self.section = ""
        self.fence: tuple[int, str] | None = None
        self.comment = 0

    def read(self) -> None:
        for number, line in enumerate(self.document.lines, 1):
            if not self._in_block(number, line):
                self._plain(number, line)
            if self.step is not None and line.strip():
                self.step.last = number
        if self.fence:
            self.document.open_blocks.append((self.fence[0], "code block"))
        if self.comment:
            self.document.open_blocks.append((self.comment, "comment"))

    def _in_block(self, number: int, line: str) -> bool:
        if self.comment:
            self._comment_text(number, line)
            self.comment = 0 if "-->" in line else self.comment
            return True
        opened = _FENCE.match(line)
        if self.fence:
            if opened and opened[1].startswith(self.fence[1]):
                self.fence = None
            elif self.step is not None and self.section == "command":
                self.step.command.append((number, line))
            return True
        if opened:
            self.fence = (number, opened[1])
            return True
        if line.lstrip().startswith("<!--"):
            self._comment_text(number, line)
            self.comment = 0 if "-->" in line else number
            return True
        return False

    def _comment_text(self, number: int, line: str) -> None:
        if (match := _MARKER.search(line)) and self.step is not None:
            self.step.marker, self.step.conclusion = number, match[1]
        elif (match := _SETTING.search(line)) and self.step is None:
            self.document.settings_line = number
            for part in match[1].split(";"):
                key, _, value = part.partition("=")
                self.document.settings[key.strip()] = value.strip()

    def _plain(self, number: int, line: str) -> None:
        if match := STEP_HEADING.match(line):
            self.step = LintStep(f"Step{match['number']}", match["title"], number, number)
            self.document.steps.append(self.step)
            self.section = ""
        elif match := _HEADING.match(line):
            self._heading(number, len(match[1]), match[2])
        elif line.strip():
            self._text(number, line)

    def _heading(self, number: int, level: int, title: str) -> None:
        word = title.strip().lower()
        if level == 1 and not self.document.title_line:
            self.document.title_line = number
        elif level == 2:
            self.step, self.section = None, word
        elif self.step is not None:
            self.section = word
            self.step.sections.setdefault(word, number)

    def _text(self, number: int, line: str) -> None:
        bullet = _BULLET.match(line)
        if self.step is None:
            self._outside(number, line, bullet)
        elif self.section == "queries" and bullet:
            self._use(number, bullet[1])
        elif self.section == "connections" and bullet:
            self.step.links.append(_link(number, bullet[1]))
        elif self.section == "policy" and bullet:
            name, _, value = bullet[1].partition(":")
            self.step.policy[" ".join(name.lower().replace("_", " ").split())] = (
                value.strip(),
                number,
            )
        else:
            self.step.prose.append((number, line))

    def _outside(self, number: int, line: str, bullet: re.Match[str] | None) -> None:
        parameter = _PARAMETER.match(line)
        if self.section == "parameters" and parameter:
            self.document.parameters.setdefault(parameter[1], number)
        elif self.section == "start" and bullet:
            self.document.start.append(_link(number, bullet[1]))
        elif self.section != "parameters":
            self.document.overview.append((number, line))

    def _use(self, number: int, text: str) -> None:
        match = _USE.match(text)
        if match and self.step is not None:
            given = dict(_ARGUMENT.findall(match[2] or ""))
            self.step.uses.append(Use(match[1].strip(), given, number))


def _link(number: int, text: str) -> Link:
    head, colon, tail = text.rpartition(":")
    named = tuple(step_numbers(tail if colon else text))
    head = head.strip()
    if not colon:
        return Link(number, "always", named)
    if re.match(r"(?:otherwise|else)\b", head, re.I):
        return Link(number, "otherwise", named)
    condition = re.sub(r"^if\s+", "", head, flags=re.I).strip()
    code = _CODE.match(condition)
    return Link(number, "if", named, condition, code[2] if code else None)


def _read_stepfly(document: Document) -> None:
    """Take StepFly's own parts out of the prose: parameters, queries, terminators."""
    for step in document.steps:
        for place, words in step.prose:
            if match := _PARAMETER.match(words):
                document.parameters.setdefault(match[1], place)
    _drop(document, set(_parameter_lines(document)))
    for number, query, line in plugin_blocks(document.text):
        within = set(range(line, line + query.count("\n") + 3))
        for step in document.steps:
            if step.line <= line <= step.last:
                step.uses.append(Use(f"plugin_{number}", {}, line))
        _drop(document, within & set(_block_lines(document, line, number)))
    for at in terminators(document.text):
        place = document.text.count("\n", 0, at) + 1
        for step in document.steps:
            if step.line <= place <= step.last and not step.marker:
                step.marker = place


def _parameter_lines(document: Document) -> Iterator[int]:
    return iter(document.parameters.values())


def _block_lines(document: Document, first: int, number: str) -> Iterator[int]:
    for line in range(first, len(document.lines) + 1):
        yield line
        if f"</PLUGIN_{number}>" in document.line(line):
            return


def _drop(document: Document, lines: set[int]) -> None:
    for step in document.steps:
        step.prose = [(number, text) for number, text in step.prose if number not in lines]
