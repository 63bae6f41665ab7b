"""Rules on wording: clarity, precision and the numbers that prose names (category CP)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from agentrt.workflows.lint_model import Document, Finding, LintStep, found
from agentrt.workflows.lint_read import step_numbers
from agentrt.workflows.lint_vocabulary import NUMBER_WORDS, VAGUE, VERBS

__all__ = ["word_rules"]

_REFERENCE = re.compile(
    r"\b(?:(?:the|as|see|like|listed|described|mentioned|shown|stated)\s+(?:above|below)"
    r"(?!\s*[-\d])|the\s+above(?!\s+\d)"
    r"|(?:the\s+)?aforementioned|the\s+(?:former|latter)"
    r"|(?:the|that|those)\s+(?:previous|earlier|preceding|other|said)\s+"
    r"(?:step|steps|query|queries|result|results|output|check|checks|one|ones|value|table)"
    r"|the\s+same\s+(?:query|step|check|table|thing|one))\b",
    re.I,
)
_THE_QUERY = re.compile(r"\b(?:the|this|that)\s+query\b", re.I)
_AFTER_IS = re.compile(
    r"\b(?:is|are|was|were|be|looks?|seems?|appears?|gets?|becomes?|feels?|has been|have been"
    r"|too|very|quite|rather|unusually|stays?|remains?)\s+(?:(?:not|too|very|quite|still|also|much"
    rf"|unusually|rather|so|getting)\s+)*(?:{'|'.join(VAGUE)})\b(?!\s+than\s+[\d`{{])",
    re.I,
)
_ALWAYS = re.compile(
    r"\b(?:significant(?:ly)?|excessive(?:ly)?|elevated|abnormal(?:ly)?|unusual(?:ly)?|noticeabl[ey]"
    r"|substantial(?:ly)?|considerabl[ey]|too\s+(?:many|few|much|little)|a\s+lot(?:\s+of)?|many"
    r"|several|frequent(?:ly)?|often|plenty|a\s+few|somewhat|sizeable"
    r"|than\s+(?:usual|normal|expected|before))\b",
    re.I,
)
_CLAUSE = re.compile(
    r"(?:^|(?<=[.;:!?]\s))\s*(?:if|when|unless|in case|whenever)\b([^.;:!?]*)", re.I
)
_VALUE = re.compile(
    rf"\d|`|\"|'[^']+'|\{{\w+\}}|\b(?:none|no|any|all|every|{'|'.join(NUMBER_WORDS)})\b(?!\s+longer)",
    re.I,
)
_WORD = re.compile(r"[A-Za-z]+")
# An unknown verb, told by what follows it: "Cordon the node", "Silence {alert}".
_VERB_OBJECT = re.compile(
    r"^(?!(?:the|this|that|these|those|there|it|if|when|while|a|an|all|each|every|some|no|none|for"
    r"|in|on|at|to|as|so|by|from|with|of|and|but|or|not|here|where|what|which|who|after|before"
    r"|because|since|until|once|only|both|either|neither|one)\b)"
    r"[A-Za-z]+(?<!s)(?<!ed)(?<!ing)(?<!ly)(?:\s+(?:up|down|out|off|on|in|to|for|with|about))?"
    r"\s+(?:(?:the|an?|all|each|every|its|their|any|both|this|that|these|those|whether|how)\b|[{`])",
    re.I,
)
_CLAUSES = re.compile(r"[,;:]\s+|\b(?:then|and|or|not|please)\s+")
_QUANTITY = re.compile(
    r"(?:\b(?:(?:more|deeper|higher|greater|larger|longer|older|bigger|fewer|less|lower|smaller"
    r"|shorter|younger)\s+than|above|over|exceeds?|exceeding|at\s+least|below|under|at\s+most"
    r"|limit\s+(?:is|of)|threshold\s+(?:is|of)|beyond)\s+"
    rf"(?P<after>\d[\d,]*(?:\.\d+)?|(?:{'|'.join(NUMBER_WORDS)})\b)\s*(?P<unit>%|[A-Za-z]+)?)"
    rf"|(?:\b(?P<before>\d[\d,]*(?:\.\d+)?|(?:{'|'.join(NUMBER_WORDS)}))\s+(?P<noun>[a-z]+\s+){{0,3}}?"
    r"or\s+(?:more|fewer|less|above|below))",
    re.I,
)
_NUMBER = re.compile(r"(?<![\w.%:-])\d[\d_]*(?:\.\d+)?(?![\w:]|-\d)")
_SCALES = (1.0, 0.01, 100.0, 1000.0, 0.001, 60.0, 1 / 60, 3600.0, 1 / 3600, 24.0, 86400.0,
           1024.0, 1 / 1024, 1048576.0, 1073741824.0, 1e6)  # fmt: skip
_TITLED = re.compile(r"\bStep\s+(\d+(?:\.\d+)*)\s+\(([A-Z][^()]{3,})\)")


_TITLE = "Give each step its own title, and keep to it."


def word_rules(document: Document) -> Iterator[Finding]:
    """Check the wording of every step."""
    for step in document.steps:
        yield from _references(step)
        yield from _action(document, step)
        yield from _vague(step)
        yield from _thresholds(document, step)
    yield from _titles(document)


def sentences(step: LintStep) -> Iterator[tuple[int, str]]:
    """Yield a step's sentences, each with the line it starts in."""
    line = 0
    held = ""
    for number, text in step.prose:
        plain = re.sub(r"^\s*(?:[-*+]|\d+[.)])\s+", "", text).strip()
        if not held or plain != text.strip():
            if held:
                yield line, held
            held, line = "", number
        for part in re.split(r"(?<=[.!?])\s+", plain):
            if held and re.search(r"[.!?]$", held):
                yield line, held
                held, line = "", number
            held = f"{held} {part}".strip()
    if held:
        yield line, held


def _references(step: LintStep) -> Iterator[Finding]:
    for line, text in step.prose:
        match = _REFERENCE.search(text)
        if match is None and len(step.uses) > 1:
            match = _THE_QUERY.search(text)
        if match:
            yield found(
                "ambiguous-reference",
                line,
                f"{match[0]!r} does not say which one.",
                "Name the step, query or value: Step 2, `queue_depth`, 5000.",
            )


def _action(document: Document, step: LintStep) -> Iterator[Finding]:
    if not step.text:
        yield found(
            "missing-action",
            step.line,
            f"{step.id} has no instructions.",
            "Say what to do, and what to look at in the answer.",
        )
    elif not _does_something(step) and not _imperative(step):
        yield found(
            "non-actionable-step",
            step.prose[0][0],
            f"{step.id} says nothing that can be done.",
            "Begin a sentence with what to do: check, count, compare, restart, ask ...",
        )


def _does_something(step: LintStep) -> bool:
    by_code = any(link.predicate for link in step.links)
    return bool(step.uses or step.command or "guide" in step.policy or by_code)


def _imperative(step: LintStep) -> bool:
    """Whether a clause begins with a verb that tells somebody to do something."""
    for _, sentence in sentences(step):
        for clause in re.split(
            r"[,;:]\s+|\bthen\s+|\band\s+|\bor\s+|\bnot\s+|\bplease\s+", sentence
        ):
            word = _WORD.search(clause)
            if word and word[0].lower() in VERBS:
                return True
        if _VERB_OBJECT.match(sentence):
            return True
    return False


def _vague(step: LintStep) -> Iterator[Finding]:
    for link in step.links:
        if link.kind == "if" and link.predicate is None and (words := vague_words(link.condition)):
            yield _unquantified(link.line, words)
    seen: set[int] = set()
    for line, sentence in sentences(step):
        clause = _CLAUSE.match(sentence)
        if clause and line not in seen and (words := vague_words(clause[1].split(",")[0])):
            seen.add(line)
            yield _unquantified(line, words)


def vague_words(condition: str) -> str:
    """Return the vague part of a condition that has no number or value; empty if it is clear."""
    if _VALUE.search(condition):
        return ""
    match = _AFTER_IS.search(condition) or _ALWAYS.search(condition)
    return match[0] if match else ""


def _unquantified(line: int, words: str) -> Finding:
    return found(
        "unquantified-condition",
        line,
        f"{words!r} has no number or value to decide by.",
        "Say how much: more than 5000, at least 20 in 5 minutes; or list the values that count.",
    )


def _thresholds(document: Document, step: LintStep) -> Iterator[Finding]:
    coded = _coded_numbers(document, step)
    # Zero is no threshold: `.rows > 0` asks whether there is anything.
    if not coded - {0.0} or any(use.query not in (document.queries or {}) for use in step.uses):
        # A number may be one of a query that is not at hand.
        return
    known = coded | _query_numbers(document, step)
    for line, sentence in sentences(step):
        for match in _QUANTITY.finditer(sentence):
            value = _number(match["after"] or match["before"])
            if not any(_same(value * scale, number) for scale in _SCALES for number in known):
                shown = ", ".join(f"{number:g}" for number in sorted(coded))
                yield found(
                    "threshold-mismatch",
                    _line_of(step, line, match["after"] or match["before"]),
                    f"The text says {match[0].strip()!r}; the conditions say {shown}.",
                    "Give one number in both places.",
                )


def _line_of(step: LintStep, first: int, text: str) -> int:
    return next((at for at, line in step.prose if at >= first and text in line), first)


def _coded_numbers(document: Document, step: LintStep) -> set[float]:
    """The numbers of the step's own predicates, and of others that read its queries."""
    own = {use.query for use in step.uses}
    numbers: set[float] = set()
    for each in document.steps:
        for link in each.links:
            text = link.predicate or (link.condition if document.stepfly else "")
            reads = any(re.search(rf"\b{re.escape(name)}\b", text) for name in own)
            if each is step or reads:
                numbers.update(_numbers(text))
    return numbers


def _query_numbers(document: Document, step: LintStep) -> set[float]:
    queries = document.queries or {}
    texts = [queries[use.query].text for use in step.uses if use.query in queries]
    return {number for text in texts for number in _numbers(text)}


def _numbers(text: str) -> Iterator[float]:
    return (float(match[0].replace("_", "")) for match in _NUMBER.finditer(text))


def _number(text: str) -> float:
    word = text.lower()
    return float(NUMBER_WORDS[word] if word in NUMBER_WORDS else word.replace(",", "").rstrip("."))


def _same(left: float, right: float) -> bool:
    return abs(left - right) <= 1e-9 * max(1.0, abs(left), abs(right))


def _titles(document: Document) -> Iterator[Finding]:
    counted = Counter(step.title.lower() for step in document.steps if step.title)
    seen: set[str] = set()
    for step in document.steps:
        title = step.title.lower()
        if counted[title] > 1 and title in seen:
            yield _title(step.line, f"{step.id} has the title of another step: {step.title!r}.")
        elif re.match(r"conclude|conclusion", title) and step.links and not _ends(step):
            yield _title(step.line, f"{step.id} is called {step.title!r} and does not conclude.")
        seen.add(title)
        for line, text in step.prose:
            for match in _TITLED.finditer(text):
                named = document.step(step_numbers(match[0])[0])
                if named is not None and named.title.lower() != match[2].strip().lower():
                    yield _title(line, f"{named.id} is called {named.title!r}, not {match[2]!r}.")


def _ends(step: LintStep) -> bool:
    return "end" in step.targets() or bool(step.marker)


def _title(line: int, message: str) -> Finding:
    return found("inconsistent-title", line, message, _TITLE)
