"""Findings applied, and written for machines: fixes, SARIF 2.1.0, JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from agentrt.workflows.lint_model import RULES, Finding, TextFix

__all__ = ["apply_fixes", "summarize", "to_json", "to_sarif"]

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_WARN = ("CP", "PS")


def apply_fixes(text: str, findings: Iterable[Finding], *, path: str = "") -> str:
    """Return the text with the mechanical fixes of the file ``path`` (the guide's, if empty).

    A fix whose lines are no longer what they were is left out, so that applying the same findings
    again changes nothing; of two fixes for one line the first counts.
    """
    lines = text.splitlines()
    fixes = [each.fix for each in findings if each.fix is not None and each.path == path]
    taken: set[int] = set()
    chosen: list[TextFix] = []
    for fix in fixes:
        span = set(range(fix.first, fix.first + len(fix.old)))
        if not span & taken:
            taken |= span
            chosen.append(fix)
    for fix in sorted(chosen, key=lambda fix: -fix.first):
        start, end = fix.first - 1, fix.first - 1 + len(fix.old)
        done = tuple(lines[start : start + len(fix.new)]) == fix.new and len(fix.new) > len(fix.old)
        if tuple(lines[start:end]) == fix.old and not done and not _inserted(lines, fix):
            lines[start:end] = fix.new
    return "\n".join(lines) + ("\n" if text.endswith("\n") else "")


def _inserted(lines: Sequence[str], fix: TextFix) -> bool:
    """Whether what a fix puts above its line stands there already."""
    if len(fix.new) <= len(fix.old) or fix.new[-len(fix.old) :] != fix.old:
        return False
    above = fix.new[: -len(fix.old)]
    start = fix.first - 1 - len(above)
    return start >= 0 and tuple(lines[start : start + len(above)]) == above


def summarize(findings: Iterable[Finding]) -> dict[str, Any]:
    """Return the number of findings, in all and by category."""
    counted = Counter(finding.category for finding in findings)
    return {
        "total_issues": counted.total(),
        "by_category": {category: counted[category] for category in ("CP", "CF", "DF", "DI", "PS")},
    }


def to_json(findings: Sequence[Finding], path: str = "") -> str:
    """Write findings as JSON: a list of issues and a summary."""
    issues = [
        {
            "file": _file(finding, path),
            "line_number": finding.line,
            "category": finding.category,
            "issue_type": finding.rule,
            "description": finding.message,
            "suggestion": finding.suggestion,
            "fixable": finding.fix is not None,
            "source": finding.source,
        }
        for finding in findings
    ]
    return json.dumps({"issues": issues, "summary": summarize(findings)}, indent=2) + "\n"


def to_sarif(findings: Sequence[Finding], path: str) -> dict[str, Any]:
    """Return findings as a SARIF 2.1.0 log; ``path`` is the guide's file."""
    rules = [
        {
            "id": name,
            "shortDescription": {"text": text},
            "properties": {"category": category},
            "defaultConfiguration": {"level": "warning" if category in _WARN else "error"},
        }
        for name, (category, text) in RULES.items()
    ]
    places = {name: at for at, name in enumerate(RULES)}
    driver = {"name": "agentrt guide lint", "rules": rules}
    results = [_result(finding, path, places[finding.rule]) for finding in findings]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(finding: Finding, path: str, index: int) -> dict[str, Any]:
    file = {"uri": _file(finding, path)}
    location = {"artifactLocation": file, "region": {"startLine": max(1, finding.line)}}
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": "warning" if finding.category in _WARN else "error",
        "message": {"text": f"{finding.message} {finding.suggestion}".strip()},
        "locations": [{"physicalLocation": location}],
        "properties": {"category": finding.category, "source": finding.source},
    }
    if finding.fix is not None:
        result["fixes"] = [_fix(finding.fix, file, finding.suggestion)]
    return result


def _fix(fix: TextFix, file: dict[str, str], text: str) -> dict[str, Any]:
    # From the start of the first line to the start of the line after the last.
    deleted = {
        "startLine": fix.first,
        "startColumn": 1,
        "endLine": fix.first + len(fix.old),
        "endColumn": 1,
    }
    inserted = {"text": "".join(f"{line}\n" for line in fix.new)}
    change = {"deletedRegion": deleted, "insertedContent": inserted}
    changes = [{"artifactLocation": file, "replacements": [change]}]
    return {"description": {"text": text}, "artifactChanges": changes}


def _file(finding: Finding, path: str) -> str:
    guide = path.replace("\\", "/")
    return str(PurePosixPath(guide).parent / finding.path) if finding.path else guide
