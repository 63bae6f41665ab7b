"""What mistakes are made of: a registry of operators, and a simple view of a clean guide."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.workflows.test_lint_clean import all_clean
from tests.workflows.test_lint_samples import Clean

PER_GUIDE = 1


@dataclass(frozen=True)
class Seed:
    """A guide with one mistake; ``line`` of ``file`` is where it should be told."""

    operator: str
    category: str
    guide: str
    queries: str
    line: int
    file: str = ""
    also: tuple[str, ...] = ()
    folder: Path | None = None
    """Rules whose findings are true consequences of the same mistake."""


Operator = Callable[[Clean], Iterator[tuple]]
OPERATORS: dict[str, tuple[str, tuple[str, ...], Operator]] = {}


def operator(category: str, *also: str):
    """Register a function that yields (lines of the guide, line) or (query lines, line, True)."""

    def register(function: Operator) -> Operator:
        OPERATORS[function.__name__] = (category, also, function)
        return function

    return register


def seeds() -> list[Seed]:
    made = []
    for clean in all_clean():
        for name, (category, also, function) in OPERATORS.items():
            places = list(function(clean))
            step = max(1, len(places) // PER_GUIDE)
            for lines, line, *rest in places[::step][:PER_GUIDE]:
                text = "\n".join(lines) + "\n"
                if rest:
                    texts, file = (clean.guide, text), "queries.toml"
                else:
                    texts, file = (text, clean.queries), ""
                made.append(Seed(name, category, *texts, line, file, also, clean.folder))
    return made


# What the operators see of a clean guide; on purpose not what lint itself reads it with.


def guide_lines(clean: Clean) -> list[str]:
    return clean.guide.splitlines()


def headings(lines: list[str]) -> list[int]:
    return [at for at, line in enumerate(lines) if line.startswith("## Step ")]


def number_of(heading: str) -> str:
    return heading.split()[2]


def section(lines: list[str], start: int, name: str) -> list[int]:
    """The places of the lines with text below ``### name`` of the step at ``start``."""
    found, inside = [], False
    for at in range(start + 1, len(lines)):
        if lines[at].startswith("## "):
            break
        if lines[at].startswith(("### ", "<!--")):
            inside = lines[at] == f"### {name}"
        elif inside and lines[at].strip():
            found.append(at)
    return found


def changed(lines: list[str], at: int, new: str | None) -> list[str]:
    return lines[:at] + ([] if new is None else new.split("\n")) + lines[at + 1 :]


def instruction_ends(lines: list[str]) -> Iterator[int]:
    for start in headings(lines):
        if found := section(lines, start, "Instructions"):
            yield found[-1]


def connections(lines: list[str], pattern: str) -> Iterator[tuple[int, int, re.Match[str]]]:
    for start in headings(lines):
        for at in section(lines, start, "Connections"):
            if match := re.search(pattern, lines[at]):
                yield start, at, match


def closing(lines: list[str]) -> set[str]:
    """The numbers of steps that only conclude."""
    return {
        number_of(lines[start])
        for start in headings(lines)
        if [lines[at] for at in section(lines, start, "Connections")] == ["- end"]
    }


def appended(clean: Clean, sentence: str) -> Iterator[tuple[list[str], int]]:
    lines = guide_lines(clean)
    for at in instruction_ends(lines):
        yield changed(lines, at, f"{lines[at]}\n{sentence}"), at + 2


def query_lines(clean: Clean) -> list[str]:
    return clean.queries.splitlines()


def inside_sql(lines: list[str]) -> Iterator[int]:
    inside = False
    for at, line in enumerate(lines):
        if line.startswith('sql = """'):
            inside = True
        elif line.startswith('"""'):
            inside = False
        elif inside:
            yield at
