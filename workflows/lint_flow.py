"""Rules on what leads where (category CF)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from agentrt.workflows.lint_conditions import Conditions, readable, shown
from agentrt.workflows.lint_model import Document, Finding, Link, LintStep, TextFix, found
from agentrt.workflows.lint_read import step_numbers

__all__ = ["flow_rules"]

_GO = re.compile(
    r"\b(?:proceed|go|continue|move|jump|skip|return|advance|head)(?:\s+(?:on|back|straight"
    r"|directly|over))?\s+(?:to|with|at)\s+\W?(step\s*\d+(?:\.\d+)*)",
    re.I,
)
_PARALLEL = re.compile(
    r"\b(?:in parallel|concurrently|simultaneously|at the same time|side by side)\b", re.I
)
_SERIAL = re.compile(
    r"\b(?:one after (?:another|the other)|in sequence|sequentially|one at a time|in this order)\b",
    re.I,
)
_AFTER = re.compile(
    r"\b(?:after|once|when)\s+(step\s*\d+(?:\.\d+)*)\s+(?:has\s+|is\s+|was\s+)?"
    r"(?:finished|finishes|done|completed|completes|ended|ends|run)\b",
    re.I,
)
_RANGE = re.compile(r"\b(\d+(?:\.\d+)*)\s*(?:to|through|–|-)\s*(\d+(?:\.\d+)*)\b")
_LIST = re.compile(r"\b(?:steps?|checks?)\s+(\d+(?:\.\d+)*(?:\s*(?:,|and|to|through|–|-)\s*\d+(?:\.\d+)*)*)", re.I)  # fmt: skip  # noqa: E501
_NEGATION = re.compile(r"\b(?:not|no|n't|never|none|cannot)\b|n't\b", re.I)


def flow_rules(document: Document) -> Iterator[Finding]:
    """Check where steps lead."""
    yield from _targets(document)
    yield from _reachability(document)
    yield from _cycles(document)
    for step in document.steps:
        yield from _duplicates(document, step)
        yield from _otherwise(step)
        yield from _cases(step)
        yield from _prose(document, step)
        yield from _claims(document, step)
        yield from _implicit_end(document, step)
    yield from _overview_claim(document)


def _targets(document: Document) -> Iterator[Finding]:
    known = {step.id for step in document.steps} | {"end"}
    links = [link for step in document.steps for link in step.links] + document.start
    for link in links:
        unknown = [target for target in link.targets if target not in known]
        if unknown or not link.targets:
            what = ", ".join(unknown) or "no step"
            yield found(
                "missing-step",
                link.line,
                f"The connection leads to {what}, which is not in the guide.",
                "Name a step of the guide, or end.",
            )


def _reachability(document: Document) -> Iterator[Finding]:
    reached = document.reached()
    ending = _ending(document)
    for step in document.steps:
        if step.id not in reached:
            yield found(
                "unreachable-step",
                step.line,
                f"No connection leads to {step.id}.",
                f"Add a connection to {step.id}, or remove it.",
            )
        if not step.links and not step.marker:
            yield found(
                "dead-end",
                step.line,
                f"{step.id} has no connections and concludes nothing.",
                "Add '### Connections' with a step or end.",
            )
        elif step.id not in ending and step.targets():
            yield found(
                "no-path-to-end",
                step.line,
                f"From {step.id} no connections lead to a conclusion.",
                "Connect it, or a step after it, to end.",
            )


def _ending(document: Document) -> set[str]:
    """The steps from which end, a marker, or a step with a finding of its own can be reached."""
    known = {step.id for step in document.steps}
    ends = {
        step.id
        for step in document.steps
        if step.marker
        or "end" in step.targets()
        or not step.links
        or any(target not in known for target in step.targets())
    }
    return ends | {above for step in ends for above in document.above(step)}


def _cycles(document: Document) -> Iterator[Finding]:
    reported: set[str] = set()
    for step in document.steps:
        above = document.above(step.id)
        if step.id in above and step.id not in reported:
            ring = {each for each in above if step.id in document.above(each)} | {step.id}
            reported |= ring
            order = [each.id for each in document.steps if each.id in ring]
            yield found(
                "cycle",
                _back_link(document, order),
                f"The connections go round: {' -> '.join([*order, order[0]])}.",
                "Lead on to another step; to go over many things use 'for each' in the policy.",
            )


def _back_link(document: Document, order: list[str]) -> int:
    """The line of the connection that leads back to an earlier step of the ring."""
    place = {step: at for at, step in enumerate(order)}
    for step in document.steps:
        for link in step.links if step.id in place else ():
            if any(place.get(target, len(order)) <= place[step.id] for target in link.targets):
                return link.line
    return 0


def _duplicates(document: Document, step: LintStep) -> Iterator[Finding]:
    seen: dict[str, Link] = {}
    for link in step.links:
        for target in link.targets:
            before = seen.setdefault(target, link)
            if before is link:
                continue
            text = document.line(link.line)
            same = text.split() == document.line(before.line).split()
            yield found(
                "duplicate-connection",
                link.line,
                f"{step.id} is connected to {target} in line {before.line} too.",
                "Remove one of them, or join the conditions with 'or'.",
                TextFix(link.line, (text,), ()) if same else None,
            )


def _otherwise(step: LintStep) -> Iterator[Finding]:
    others = [link for link in step.links if link.kind == "otherwise"]
    if len(others) > 1:
        yield found(
            "useless-otherwise",
            others[1].line,
            f"{step.id} has {len(others)} connections for otherwise.",
            "Keep one, and give the others a condition.",
        )
    elif others and len(step.links) == 1:
        yield found(
            "useless-otherwise",
            others[0].line,
            "There is no condition beside otherwise.",
            "Write the connection without otherwise, or add the condition.",
        )


def _cases(step: LintStep) -> Iterator[Finding]:
    guarded = [link for link in step.links if link.kind == "if"]
    coded = [link for link in guarded if link.predicate is not None]
    for link in coded:
        if problem := readable(link.predicate or ""):
            yield found("bad-predicate", link.line, problem, "Correct it, or write it as prose.")
            return
    cases = Conditions([link.predicate or "" for link in coded])
    impossible = cases.impossible()
    for at in impossible:
        yield found(
            "impossible-condition",
            coded[at].line,
            f"`{coded[at].predicate}` can never hold.",
            "Correct the numbers or the comparison.",
        )
    for one, other, case in cases.overlaps():
        if coded[one].targets != coded[other].targets:
            yield _overlap(coded[one], coded[other], shown(case))
    if guarded and len(guarded) == len(step.links) and not impossible:
        yield from _open_cases(step, guarded, coded, cases)


def _overlap(one: Link, other: Link, case: str) -> Finding:
    return found(
        "overlapping-conditions",
        other.line,
        f"`{one.predicate}` and `{other.predicate}` both hold where {case}.",
        "Exclude one in the other, or join them with 'or' if they lead to one step.",
    )


def _open_cases(
    step: LintStep, guarded: list[Link], coded: list[Link], cases: Conditions
) -> Iterator[Finding]:
    case = cases.uncovered() if len(coded) == len(guarded) else {}
    if case is None or (not coded and _negated(guarded)):
        return
    when = f"where {shown(case)}" if case else "where no condition holds"
    yield found(
        "not-exhaustive",
        guarded[-1].line,
        f"{step.id} leads nowhere {when}.",
        "Add '- otherwise: Step N' (or end).",
    )


def _negated(links: list[Link]) -> bool:
    """Whether two conditions in prose are one and its negation."""
    if len(links) != 2:
        return False
    first, second = (_NEGATION.sub("", link.condition).lower().split() for link in links)
    denied = [bool(_NEGATION.search(link.condition)) for link in links]
    small = {"do", "does", "did", "has", "have", "is", "are", "a", "an", "the"}
    stems = [{word.rstrip("s") for word in words} - small for words in (first, second)]
    return denied[0] != denied[1] and stems[0] == stems[1]


def _prose(document: Document, step: LintStep) -> Iterator[Finding]:
    known = {each.id for each in document.steps}
    linked = set(step.targets())
    for line, text in step.prose:
        for match in _GO.finditer(text):
            target = step_numbers(match[1])[0]
            if target not in known:
                yield found(
                    "missing-step",
                    line,
                    f"The text sends to {target}, which is not in the guide.",
                    "Name a step of the guide, or end.",
                )
            elif target not in linked:
                yield found(
                    "missing-connection",
                    line,
                    f"The text sends to {target}; the connections of {step.id} do not.",
                    f"Add a connection to {target}, or correct the text.",
                )


def _claims(document: Document, step: LintStep) -> Iterator[Finding]:
    for line, text in step.prose:
        named = _named(document, text)
        if _PARALLEL.search(text) and not re.search(r"\bnot\s+(?:run\s+)?in parallel", text, re.I):
            yield from _parallel(document, step, line, named)
        if _SERIAL.search(text) and len(named) > 1:
            yield from _serial(document, line, named)
        for match in _AFTER.finditer(text):
            before = step_numbers(match[1])[0]
            if document.step(before) and before not in document.above(step.id):
                yield _order(line, f"{step.id} comes after {before}", before, step.id)


def _parallel(document: Document, step: LintStep, line: int, named: list[str]) -> Iterator[Finding]:
    if len(named) > 1:
        wrong = [
            (one, two)
            for one in named
            for two in named
            if one in document.above(two) and one != two
        ]
        if wrong:
            yield _not_parallel(line, f"{wrong[0][1]} comes after {wrong[0][0]}")
    elif len([t for link in step.links if link.kind == "always" for t in link.targets]) < 2:
        yield _not_parallel(line, f"{step.id} does not lead to two steps at once")


def _not_parallel(line: int, why: str) -> Finding:
    return found(
        "parallel-claim",
        line,
        f"The text says that steps run in parallel, but {why}.",
        "Connect the step before them to each of them without condition, or correct the text.",
    )


def _serial(document: Document, line: int, named: list[str]) -> Iterator[Finding]:
    for one, two in pairwise(named):
        if one not in document.above(two):
            yield _order(line, f"{two} comes after {one}", one, two)
            return


def _order(line: int, claim: str, before: str, after: str) -> Finding:
    return found(
        "order-claim",
        line,
        f"The text says that {claim}, but no connections lead from {before} to {after}.",
        "Connect the one to the other, or correct the text.",
    )


def _named(document: Document, text: str) -> list[str]:
    """The known steps that a text names: "Steps 2 and 3", "checks 2.1 to 2.4"."""
    known = [step.id for step in document.steps]
    numbers: list[str] = []
    for match in _LIST.finditer(text):
        for low, high in _RANGE.findall(match[1]):
            if f"Step{low}" in known and f"Step{high}" in known:
                numbers += known[known.index(f"Step{low}") : known.index(f"Step{high}") + 1]
        numbers += [f"Step{number}" for number in re.findall(r"\d+(?:\.\d+)*", match[1])]
    return [step for step in known if step in Counter(numbers)]


def _implicit_end(document: Document, step: LintStep) -> Iterator[Finding]:
    if document.stepfly or not step.marker or step.links:
        return
    text = document.line(step.marker)
    yield found(
        "implicit-end",
        step.marker,
        f"{step.id} concludes without a connection to end.",
        "Add '### Connections' with '- end'.",
        TextFix(step.marker, (text,), ("### Connections", "", "- end", "", text)),
    )


def _overview_claim(document: Document) -> Iterator[Finding]:
    wide = any(
        len([t for link in step.links if link.kind == "always" for t in link.targets]) > 1
        for step in document.steps
    )
    if wide or len(document.entries()) > 1:
        return
    for line, text in document.overview:
        if re.search(r"\b(?:in parallel|concurrently|simultaneously)\b", text, re.I):
            yield _not_parallel(line, "no step leads to two steps at once")
