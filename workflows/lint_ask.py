"""Asks a model for what rules cannot see. Its remarks are checked, and marked as its own."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from agentrt.errors import GuideError
from agentrt.workflows.guide import Guide
from agentrt.workflows.lint_model import RULES, Finding
from agentrt.workflows.models import GuideModel

__all__ = ["lint_with_model", "read_remarks"]

_MOST = 50
_CATEGORIES = ("CP", "CF", "DF", "DI", "PS")
_SYSTEM = """You review troubleshooting guides for on-call engineers. Report what would make a
reader stop or err: unclear references, steps without an action, conditions that cannot be decided,
a next step that does not follow, data that comes from nowhere. Do not repeat what is listed as
known. Reply with JSON only: {"issues": [{"line_number": 12, "category": "CP", "issue_type":
"...", "description": "...", "suggestion": "..."}]}. Categories: CP clarity, CF control flow, DF
data flow, DI database instructions, PS presentation."""


async def lint_with_model(
    guide: Guide, model: GuideModel, known: Sequence[Finding] = (), *, max_tokens: int = 2048
) -> list[Finding]:
    """Return ``known`` with the model's remarks added, those marked ``source="model"``.

    A remark on a line that is not in the guide, of an unknown category, or on a line that has a
    known finding of its category is left out.

    Raises:
        ModelFailure: the model did not answer.
        GuideError: its answer is not the JSON that was asked for.
    """
    numbered = "\n".join(f"{at}: {line}" for at, line in enumerate(guide.text.splitlines(), 1))
    listed = "\n".join(f"line {each.line}: {each.category} {each.message}" for each in known)
    messages = [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": f"Known:\n{listed or 'nothing'}\n\nThe guide:\n{numbered}"},
    ]
    reply = await model.write(messages, context="lint", max_tokens=max_tokens)
    remarks = read_remarks(reply.text, len(guide.text.splitlines()))
    told = {(each.line, each.category) for each in known if not each.path}
    new = [each for each in remarks if (each.line, each.category) not in told]
    return sorted([*known, *new], key=lambda each: (each.path, each.line, each.rule))


def read_remarks(text: str, lines: int) -> list[Finding]:
    """Check a model's answer for a guide of so many lines.

    Raises:
        GuideError: it is not a JSON object with a list of issues.
    """
    plain = re.sub(r"^\s*```(?:json)?\s*|\s*```\s*$", "", text)
    try:
        data = json.loads(plain)
    except json.JSONDecodeError as error:
        raise _nonsense(f"not JSON: {error.msg}") from None
    issues = data.get("issues") if isinstance(data, dict) else None
    if not isinstance(issues, list):
        raise _nonsense("there is no list of issues")
    remarks = [_remark(item, lines) for item in issues[:_MOST]]
    return [remark for remark in remarks if remark is not None]


def _nonsense(why: str) -> GuideError:
    return GuideError(
        f"The model's review cannot be read: {why}.",
        remedy="Try again, or use a larger model; the rules' findings hold without it.",
    )


def _remark(item: Any, lines: int) -> Finding | None:
    if not isinstance(item, dict):
        return None
    line, category = item.get("line_number"), item.get("category")
    message, suggestion = item.get("description"), item.get("suggestion", "")
    if type(line) is not int or not 1 <= line <= lines or category not in _CATEGORIES:
        return None
    if not isinstance(message, str) or not message.strip() or not isinstance(suggestion, str):
        return None
    kind = item.get("issue_type")
    rule = kind if isinstance(kind, str) and kind in RULES else "model"
    own = RULES[rule][0] == category or rule == "model"
    rule = rule if own else "model"
    return Finding(line, category, rule, message.strip()[:500], suggestion[:500], source="model")
