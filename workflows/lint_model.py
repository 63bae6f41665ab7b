"""What lint looks at, and what it says: a guide's text in lines, links and queries; findings.

The reader is lenient on purpose: a guide with mistakes is what it is for. It keeps the line of
everything, and knows both formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = [
    "RULES",
    "Category",
    "Document",
    "Finding",
    "Link",
    "LintQuery",
    "LintStep",
    "TextFix",
    "Use",
    "found",
]

Category: TypeAlias = Literal["CP", "CF", "DF", "DI", "PS"]
"""Clarity and precision; control flow; data flow; database instructions; presentation."""


@dataclass(frozen=True, slots=True)
class TextFix:
    """Replace the lines ``old``, of which the first is line ``first``, by ``new``."""

    first: int
    old: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to correct.

    ``line`` counts from 1, in the guide, or in the file ``path`` (relative to the guide) where
    that is set. ``source`` tells a model's finding from lint's own.
    """

    line: int
    category: Category
    rule: str
    message: str
    suggestion: str
    fix: TextFix | None = None
    path: str = ""
    source: Literal["lint", "model"] = "lint"


RULES: Mapping[str, tuple[Category, str]] = {
    "ambiguous-reference": ("CP", "A reference can mean several things"),
    "non-actionable-step": ("CP", "A step says nothing to do"),
    "missing-action": ("CP", "A step has no instructions"),
    "unquantified-condition": ("CP", "A condition has no number or value to decide it by"),
    "inconsistent-title": ("CP", "A title contradicts the step, or belongs to two"),
    "threshold-mismatch": ("CP", "Prose and condition or query give different numbers"),
    "dead-end": ("CF", "A step leads nowhere and concludes nothing"),
    "unreachable-step": ("CF", "Nothing leads to a step"),
    "no-path-to-end": ("CF", "A step never comes to a conclusion"),
    "cycle": ("CF", "Connections go round"),
    "missing-step": ("CF", "A step that is named does not exist"),
    "missing-connection": ("CF", "Prose sends to a step that no connection leads to"),
    "not-exhaustive": ("CF", "Conditions leave cases open"),
    "overlapping-conditions": ("CF", "Two conditions can hold at once"),
    "impossible-condition": ("CF", "A condition can never hold"),
    "bad-predicate": ("CF", "A condition between backticks cannot be read"),
    "duplicate-connection": ("CF", "Two connections lead to one step"),
    "useless-otherwise": ("CF", "There are several otherwise, or nothing beside it"),
    "parallel-claim": ("CF", "Prose says parallel and the connections do not"),
    "order-claim": ("CF", "Prose says one after another and the connections do not"),
    "implicit-end": ("CF", "A conclusion without a connection to end"),
    "edge-name": ("CF", "An edge's name does not say where it leads"),
    "edge-ends": ("CF", "An edge does not stand in one output and one input list"),
    "lost-condition": ("CF", "An edge's condition is not the one that counts"),
    "unknown-source": ("DF", "A step reads what was never asked"),
    "wrong-source": ("DF", "A step reads a step that did not run before it"),
    "undeclared-placeholder": ("DF", "A placeholder is no parameter"),
    "unused-parameter": ("DF", "A parameter is never used"),
    "missing-parameter": ("DF", "A query is not given what it needs"),
    "unknown-argument": ("DF", "A query is given what it does not take"),
    "unknown-column": ("DF", "A column is not in the data"),
    "hard-coded-date": ("DI", "A date is written into a query or instruction"),
    "hard-coded-parameter": ("DI", "A parameter's value is written into a query"),
    "nondeterministic-query": ("DI", "A query depends on the clock or on chance"),
    "sql-syntax": ("DI", "A query cannot be read"),
    "sql-not-read-only": ("DI", "A query is more than one SELECT"),
    "wrong-dialect": ("DI", "A query uses another database's functions"),
    "missing-placeholder": ("DI", "A query's placeholders are not its parameters"),
    "quoted-placeholder": ("DI", "A placeholder between quotes is a text"),
    "missing-source": ("DI", "Nothing says where a query is asked"),
    "unknown-query": ("DI", "A step names a query that is not there"),
    "missing-title": ("PS", "The guide has no title"),
    "heading-format": ("PS", "A heading is not in the format"),
    "missing-section": ("PS", "A step lacks a section"),
    "unclosed-block": ("PS", "A block or comment is not closed"),
    "duplicate-step-number": ("PS", "Two steps have one number"),
    "step-number-gap": ("PS", "A step's number does not follow"),
    "unmarked-termination": ("PS", "A step concludes without saying what"),
    "unexpected-ending": ("PS", "A text or a guide breaks off"),
    "unreadable-guide": ("PS", "The guide cannot be read"),
    "model": ("CP", "A model's remark"),
}
"""Every rule with its category and what it finds."""


def found(
    rule: str,
    line: int,
    message: str,
    suggestion: str,
    fix: TextFix | None = None,
    *,
    path: str = "",
) -> Finding:
    """Return a finding of a rule of :data:`RULES`."""
    return Finding(line, RULES[rule][0], rule, message, suggestion, fix, path)


@dataclass(frozen=True, slots=True)
class Link:
    """One line of connections; ``kind`` is if, otherwise or always."""

    line: int
    kind: Literal["if", "otherwise", "always"]
    targets: tuple[str, ...]
    condition: str = ""
    predicate: str | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """A query that a step runs."""

    query: str
    arguments: Mapping[str, str]
    line: int


@dataclass(slots=True)
class LintStep:
    """One step's section; ``last`` is its last line with text. ``sections`` are heading lines."""

    id: str
    title: str
    line: int
    last: int = 0
    prose: list[tuple[int, str]] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    policy: dict[str, tuple[str, int]] = field(default_factory=dict)
    command: list[tuple[int, str]] = field(default_factory=list)
    sections: dict[str, int] = field(default_factory=dict)
    marker: int = 0
    conclusion: str = ""

    @property
    def text(self) -> str:
        """The prose in one line."""
        return " ".join(text.strip() for _, text in self.prose).strip()

    def targets(self) -> list[str]:
        """Every step that the links name."""
        return [target for link in self.links for target in link.targets]


@dataclass(frozen=True, slots=True)
class LintQuery:
    """A query's text and where it stands. ``parameters`` maps a name to whether it is required."""

    name: str
    kind: str
    text: str
    line: int
    text_line: int
    parameters: Mapping[str, bool]
    source: str | None
    dialect: str
    extra: str = ""
    path: str = ""


@dataclass(slots=True)
class Document:
    """A guide as lint sees it. ``queries`` is None where no query file could be read."""

    text: str
    lines: list[str]
    stepfly: bool = False
    title_line: int = 0
    parameters: dict[str, int] = field(default_factory=dict)
    steps: list[LintStep] = field(default_factory=list)
    overview: list[tuple[int, str]] = field(default_factory=list)
    start: list[Link] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    settings_line: int = 0
    queries: dict[str, LintQuery] | None = None
    open_blocks: list[tuple[int, str]] = field(default_factory=list)
    folder: str = ""
    sources: dict[str, Mapping[str, object]] = field(default_factory=dict)
    schema: Mapping[str, str] = field(default_factory=dict)
    _above: dict[str, frozenset[str]] = field(default_factory=dict)

    def line(self, number: int) -> str:
        """Return a line's text; empty outside the guide."""
        return self.lines[number - 1] if 0 < number <= len(self.lines) else ""

    def step(self, step_id: str) -> LintStep | None:
        """Return the first step of this id, or None."""
        return next((step for step in self.steps if step.id == step_id), None)

    def entries(self) -> list[str]:
        """The steps that a run begins in."""
        if self.start:
            return [target for link in self.start for target in link.targets]
        also = [step.id for step in self.steps if "entry" in step.policy]
        return [step.id for step in self.steps[:1]] + also

    def successors(self) -> dict[str, list[str]]:
        """Every step's next ones."""
        return {step.id: step.targets() for step in self.steps}

    def reached(self) -> set[str]:
        """Every step that a run can come to."""
        nexts = {step: set(targets) for step, targets in self.successors().items()}
        entries = set(self.entries())
        return entries.union(*(_reach(entry, nexts) for entry in entries))

    def above(self, step_id: str) -> frozenset[str]:
        """Every step from which a path leads to this one."""
        if not self._above:
            self._above = _ancestors(self.successors())
        return self._above.get(step_id, frozenset())

    def visible(self, step: LintStep) -> Iterator[LintStep]:
        """The step itself and all steps above it."""
        above = self.above(step.id)
        return (each for each in self.steps if each is step or each.id in above)


def _ancestors(successors: Mapping[str, list[str]]) -> dict[str, frozenset[str]]:
    before: dict[str, set[str]] = {}
    for source, targets in successors.items():
        for target in targets:
            before.setdefault(target, set()).add(source)
    return {step: frozenset(_reach(step, before)) for step in successors}


def _reach(start: str, nexts: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = list(nexts.get(start, ()))
    while todo:
        step = todo.pop()
        if step not in seen:
            seen.add(step)
            todo += nexts.get(step, ())
    return seen
