"""The lines of a guide's markdown, sorted by kind: headings, prose, code, comments, list items.

Knows nothing of what the sections mean; ``parse.py`` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from agentrt.errors import GuideError

__all__ = [
    "LONGEST_BULLET",
    "Block",
    "Bullet",
    "Line",
    "Source",
    "blocks",
    "bullets",
    "fences",
    "prose",
    "scan",
]

LONGEST_BULLET = 2500
"""The most characters of a list item that means something (a condition, a policy, a query)."""

_FENCE = re.compile(r"^\s*(?P<mark>`{3,}|~{3,})\s*(?P<info>[^`]*)$")
_HEADING = re.compile(r"^(?P<marks>#{1,6})(?P<title>\s.*)$")
_BULLET = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+(?P<text>\S.*)$")


@dataclass(frozen=True, slots=True)
class Source:
    """Where the text comes from, for messages: a path, or the guide's name."""

    label: str

    def error(self, line: int, message: str, remedy: str) -> GuideError:
        """Return the error for this line (counted from 1), to be raised by the caller."""
        return GuideError(f"{self.label}:{line}: {message}", remedy=remedy)


@dataclass(frozen=True, slots=True)
class Line:
    """One line, or one whole comment. ``level`` is 1 to 6 for headings, else 0.

    ``text`` is the title of a heading, the inside of a comment, the info string of an opening
    fence (``fence``), the line itself otherwise; ``raw`` is always the line as written.
    """

    number: int
    raw: str
    text: str
    kind: Literal["text", "heading", "fence", "code", "comment"] = "text"
    level: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """A heading with the lines up to the next heading of its level; the first may have none."""

    heading: Line | None
    body: tuple[Line, ...]

    @property
    def title(self) -> str:
        """The heading's text, or empty."""
        return self.heading.text if self.heading else ""

    @property
    def line(self) -> int:
        """The heading's line, else that of the first line, else 1."""
        if self.heading:
            return self.heading.number
        return self.body[0].number if self.body else 1


@dataclass(frozen=True, slots=True)
class Bullet:
    """One list item, its continuation lines joined by blanks."""

    line: int
    text: str


def scan(text: str, source: Source) -> list[Line]:
    """Sort the lines of ``text`` by kind. Comments count only where they begin a line.

    Raises:
        GuideError: a code fence or a comment is never closed.
    """
    raw = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines: list[Line] = []
    at = 0
    while at < len(raw):
        if fence := _FENCE.match(raw[at]):
            taken = _take_fence(raw, at, fence, source)
        elif raw[at].lstrip().startswith("<!--"):
            taken = _take_comment(raw, at, source)
        else:
            taken = [_plain(raw[at], at + 1)]
        lines += taken
        at = lines[-1].number + lines[-1].raw.count("\n")
    return lines


def _plain(raw: str, number: int) -> Line:
    if heading := _HEADING.match(raw):
        title = " ".join(heading["title"].split()).rstrip("#").rstrip()
        return Line(number, raw, title, "heading", len(heading["marks"]))
    return Line(number, raw.rstrip(), raw.rstrip())


def _take_fence(raw: Sequence[str], at: int, fence: re.Match[str], source: Source) -> list[Line]:
    mark = fence["mark"]
    lines = [Line(at + 1, raw[at].rstrip(), fence["info"].strip(), "fence")]
    for number in range(at + 1, len(raw)):
        closing = raw[number].strip()
        if len(closing) >= len(mark) and set(closing) == {mark[0]}:
            return [*lines, Line(number + 1, raw[number].rstrip(), "", "fence")]
        lines.append(Line(number + 1, raw[number], raw[number], "code"))
    raise source.error(at + 1, "A code block is never closed.", f"Close it with a line `{mark}`.")


def _take_comment(raw: Sequence[str], at: int, source: Source) -> list[Line]:
    for number in range(at, len(raw)):
        line = raw[number] if number > at else raw[at].lstrip()[4:]
        inside, close, after = line.partition("-->")
        if "<!--" in inside:
            break  # another one begins, so this one was meant to end before it
        if not close:
            continue
        if after.strip():
            return [_plain(raw[at], at + 1)]
        whole = "\n".join(raw[at : number + 1])
        text = whole.lstrip()[4:].partition("-->")[0]
        return [Line(at + 1, whole, " ".join(text.split()), "comment")]
    raise source.error(at + 1, "A comment is never closed.", "Close it with `-->`.")


def blocks(lines: Iterable[Line], level: int) -> list[Block]:
    """Split at the headings of this level. The first block, without a heading, is always there."""
    found: list[tuple[Line | None, list[Line]]] = [(None, [])]
    for line in lines:
        if line.kind == "heading" and line.level == level:
            found.append((line, []))
        else:
            found[-1][1].append(line)
    return [Block(heading, tuple(body)) for heading, body in found]


def prose(lines: Iterable[Line]) -> str:
    """Return the lines as markdown again, without comments and blank lines at the ends."""
    kept = [line.raw for line in lines if line.kind != "comment"]
    while kept and not kept[0].strip():
        kept.pop(0)
    while kept and not kept[-1].strip():
        kept.pop()
    return "\n".join(kept)


def bullets(lines: Iterable[Line], source: Source) -> tuple[list[Bullet], list[Line]]:
    """Part list items from everything else. An item goes on to the next blank line or item.

    Raises:
        GuideError: an item has more than ``LONGEST_BULLET`` characters.
    """
    items: list[Bullet] = []
    rest: list[Line] = []
    inside = False
    for line in lines:
        item = _BULLET.match(line.raw) if line.kind == "text" else None
        if item:
            items.append(Bullet(line.number, item["text"].strip()))
            inside = True
        elif inside and line.kind == "text" and line.text:
            items[-1] = Bullet(items[-1].line, f"{items[-1].text} {line.text.strip()}")
        elif line.kind != "comment":
            inside = False
            rest.append(line)
        if items and len(items[-1].text) > LONGEST_BULLET:
            # Longer ones are mistakes, and would make the patterns that read them slow.
            raise source.error(
                items[-1].line,
                f"A list item is longer than {LONGEST_BULLET} characters.",
                "End it with a blank line, or shorten it.",
            )
    return items, rest


def fences(lines: Iterable[Line]) -> tuple[list[tuple[Line, str]], list[Line]]:
    """Part code blocks (opening line, content) from everything else."""
    found: list[tuple[Line, list[str]]] = []
    rest: list[Line] = []
    opened = False
    for line in lines:
        if line.kind == "code":
            found[-1][1].append(line.raw)
        elif line.kind == "fence":
            opened = not opened
            if opened:
                found.append((line, []))
        else:
            rest.append(line)
    return [(line, "\n".join(content)) for line, content in found], rest
