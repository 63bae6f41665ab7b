"""Checks guides before they run: what people stumble over, found without a model.

Five classes: clarity and precision (CP), control flow (CF), data flow (DF), database instructions
(DI), presentation and structure (PS). :data:`RULES` lists every rule. A guide that cannot be
parsed is linted all the same (:func:`lint_text`, :func:`lint_path`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from agentrt.errors import GuideError
from agentrt.workflows.guide import Guide
from agentrt.workflows.lint_ask import lint_with_model
from agentrt.workflows.lint_data import data_rules
from agentrt.workflows.lint_database import database_rules
from agentrt.workflows.lint_flow import flow_rules
from agentrt.workflows.lint_form import form_rules
from agentrt.workflows.lint_model import RULES, Category, Document, Finding, TextFix, found
from agentrt.workflows.lint_queries import attach_queries, attach_stepfly_queries
from agentrt.workflows.lint_read import read_document
from agentrt.workflows.lint_report import apply_fixes, summarize, to_json, to_sarif
from agentrt.workflows.lint_stepfly import (
    attach_dag,
    attach_prose,
    dag_rules,
    read_dag,
    terminator_rules,
)
from agentrt.workflows.lint_words import word_rules
from agentrt.workflows.parse import parse_guide
from agentrt.workflows.stepfly import find_folder
from agentrt.workflows.stepfly_incident import read_text

__all__ = [
    "RULES",
    "Category",
    "Finding",
    "TextFix",
    "apply_fixes",
    "is_stepfly",
    "lint",
    "lint_path",
    "lint_text",
    "lint_with_model",
    "summarize",
    "to_json",
    "to_sarif",
]

_RULES: tuple[Callable[[Document], Iterator[Finding]], ...] = (
    form_rules,
    flow_rules,
    word_rules,
    data_rules,
    database_rules,
)


def lint(guide: Guide, *, schema: Mapping[str, str] | None = None) -> list[Finding]:
    """Check a guide, its queries and, for StepFly's, its PlanDAG; findings by line.

    ``schema`` maps a source's name to the ``CREATE TABLE`` statements of its database; with it
    tables and columns of SQLite queries are checked, too. Guides made in Python have no text and
    no findings.
    """
    return lint_text(
        guide.text, path=guide.path, stepfly=guide.source_format == "stepfly", schema=schema
    )


def lint_path(path: Path | str, *, schema: Mapping[str, str] | None = None) -> list[Finding]:
    """Check a guide's file, or a folder in StepFly's layout.

    Raises:
        GuideError: there is no such file.
    """
    place = Path(path)
    if place.is_dir():
        place = find_folder(place).guide
    text = read_text(place)
    return lint_text(text, path=str(place), stepfly=is_stepfly(text), schema=schema)


def is_stepfly(text: str) -> bool:
    """Whether a guide's text is in StepFly's format: its plugin blocks or marker are in it."""
    return bool(re.search(r"<PLUGIN_\d+>|<!--\s*TSG_PLUGINS:", text))


def lint_text(
    text: str,
    *,
    path: str = "",
    stepfly: bool = False,
    schema: Mapping[str, str] | None = None,
) -> list[Finding]:
    """Check a guide's text; ``path`` is its file, whose neighbours are read. See :func:`lint`."""
    if not text.strip():
        return []
    document = read_document(text, stepfly=stepfly)
    document.schema = schema or {}
    if stepfly:
        findings = _stepfly(document, path)
    else:
        findings = attach_queries(document, str(Path(path).parent)) if path else []
    for rules in _RULES:
        findings += rules(document)
    findings = _without_echoes(findings)
    if not stepfly and not findings:
        findings += _parsed(text, path)
    return sorted(findings, key=lambda finding: (finding.path, finding.line, finding.rule))


def _stepfly(document: Document, path: str) -> list[Finding]:
    attach_stepfly_queries(document)
    plan = find_folder(path).plan if path and Path(path).is_file() else None
    if plan is None or not plan.is_file():
        problem = attach_prose(document, path or "guide.md")
        return [*([problem] if problem else []), *terminator_rules(document)]
    shown = str(plan.relative_to(Path(path).parent))
    dag = read_dag(plan, shown)
    if isinstance(dag, Finding):
        return [dag]
    attach_dag(document, dag)
    return [*dag_rules(document, dag, shown), *terminator_rules(document)]


def _without_echoes(findings: Iterable[Finding]) -> list[Finding]:
    """Each finding once, and none that only repeats a PlanDAG's."""
    kept: dict[tuple[str, int, str, str], Finding] = {}
    for finding in findings:
        kept.setdefault((finding.path, finding.line, finding.rule, finding.message), finding)
    return list(kept.values())


def _parsed(text: str, path: str) -> list[Finding]:
    """What the parser has to say about a guide in which no rule found anything."""
    try:
        parse_guide(text, name=Path(path).stem or "guide", path=path)
    except GuideError as error:
        line = re.search(r":(\d+):? ", error.message)
        return [found("unreadable-guide", int(line[1]) if line else 1, error.message, error.remedy)]
    return []
