"""Rules on presentation and structure (category PS)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from agentrt.workflows.lint_model import Document, Finding, LintStep, TextFix, found
from agentrt.workflows.lint_read import STEP_HEADING

__all__ = ["form_rules"]

_EXACT = re.compile(r"^## Step \d+(?:\.\d+)* - \S")
_KNOWN = ("instructions", "queries", "command", "connections", "policy")
_BROKEN_END = re.compile(r"(?:[,;(]|\b(?:and|or|the|if|to|of|with|than|for|a|an|then|when|in))\s*$")


def form_rules(document: Document) -> Iterator[Finding]:
    """Check the form of a guide."""
    if not document.title_line:
        yield found("missing-title", 1, "The guide has no title.", "Begin it with '# Title'.")
    for line, what in document.open_blocks:
        yield found("unclosed-block", line, f"The {what} is not closed.", "Close it.")
    yield from _numbers(document)
    for step in document.steps:
        yield from _heading(document, step)
        yield from _ending(document, step)
        if not document.stepfly:
            yield from _sections(document, step)
            yield from _termination(document, step)


def _heading(document: Document, step: LintStep) -> Iterator[Finding]:
    text = document.line(step.line)
    if _EXACT.match(text):
        return
    match = STEP_HEADING.match(text)
    number = match["number"] if match else ""
    fixed = f"## Step {number} - {step.title}"
    yield found(
        "heading-format",
        step.line,
        f"The heading of {step.id} is not '## Step {number} - Title'.",
        f"Write {fixed!r}." if step.title else "Give the step a title.",
        TextFix(step.line, (text,), (fixed,)) if step.title and match else None,
    )


def _numbers(document: Document) -> Iterator[Finding]:
    seen: dict[str, int] = {}
    before: tuple[int, ...] = ()
    for step in document.steps:
        number = tuple(int(part) for part in step.id.removeprefix("Step").split("."))
        if step.id in seen:
            yield found(
                "duplicate-step-number",
                step.line,
                f"{step.id} is in line {seen[step.id]} already.",
                "Give each step its own number.",
            )
            # The next one is told by the number that this one should have had.
            before = (*before[:-1], before[-1] + 1)
            continue
        seen[step.id] = step.line
        if not _follows(before, number):
            shown = ".".join(str(part) for part in before) or "the beginning"
            yield found(
                "step-number-gap",
                step.line,
                f"{step.id} does not follow {shown}.",
                "Number the steps in the order of the text, without gaps.",
            )
        before = number


def _follows(before: tuple[int, ...], number: tuple[int, ...]) -> bool:
    """Whether a number may come next: 2 -> 3, 2 -> 2.1, 2.1 -> 2.2, 2.4 -> 3; 1 comes first."""
    if not before:
        return number[0] in (0, 1)
    if number[:-1] == before:
        return number[-1] == 1
    if len(number) > len(before):
        return number[: len(before)] == (*before[:-1], before[-1] + 1) and set(
            number[len(before) :]
        ) == {1}
    cut = before[: len(number)]
    return number == (*cut[:-1], cut[-1] + 1)


def _sections(document: Document, step: LintStep) -> Iterator[Finding]:
    for name, line in step.sections.items():
        guess = difflib.get_close_matches(name, _KNOWN, 1, 0.75)
        if name not in _KNOWN and guess:
            text = document.line(line)
            fixed = f"### {guess[0].capitalize()}"
            yield found(
                "heading-format",
                line,
                f"There is no section {name!r}.",
                f"Write {fixed!r}.",
                TextFix(line, (text,), (fixed,)),
            )
    misspelt = any(difflib.get_close_matches(name, _KNOWN[:1], 1, 0.75) for name in step.sections)
    if not misspelt and step.text:
        text = document.line(step.prose[0][0])
        yield found(
            "missing-section",
            step.prose[0][0],
            f"The text of {step.id} is not under '### Instructions'.",
            "Put the heading above it.",
            TextFix(step.prose[0][0], (text,), ("### Instructions", "", text)),
        )


def _termination(document: Document, step: LintStep) -> Iterator[Finding]:
    ends = [link for link in step.links if "end" in link.targets]
    if ends and not step.marker:
        text = document.line(step.last)
        marker = f"<!-- Reaches A Final Conclusion: {step.title.strip()}. -->"
        yield found(
            "unmarked-termination",
            ends[0].line,
            f"{step.id} leads to end and does not say what it concludes.",
            "Add <!-- Reaches A Final Conclusion: what is concluded. --> to the step.",
            TextFix(step.last, (text,), (text, "", marker)) if step.title else None,
        )
    elif step.marker and step.links and not ends:
        yield found(
            "unexpected-ending",
            step.marker,
            f"{step.id} says that it concludes, but leads on to {', '.join(step.targets())}.",
            "Remove the marker, or connect the step to end.",
        )
    elif step.marker and not step.conclusion.strip(" ."):
        yield found(
            "unmarked-termination",
            step.marker,
            f"The marker of {step.id} does not say what is concluded.",
            "Write <!-- Reaches A Final Conclusion: what is concluded. -->.",
        )


def _ending(document: Document, step: LintStep) -> Iterator[Finding]:
    """A paragraph of the instructions that breaks off."""
    for at, (line, text) in enumerate(step.prose):
        last = at + 1 == len(step.prose) or step.prose[at + 1][0] > line + 1
        after = document.line(line + 1) + document.line(line + 2)
        introduces = re.match(r"\s*(?:[-*+`|<]|\d+[.)])", after)
        if last and not introduces and _BROKEN_END.search(text):
            yield found(
                "unexpected-ending",
                line,
                f"The text breaks off: ...{text.strip()[-30:]!r}.",
                "Finish the sentence.",
            )
