"""Pure: intents out of untrusted text: ``AGENT_RESOURCE_HINT``, command strings, tool-call JSON.

The hint's table is that of AgentCgroup, so agents that were taught it keep working:
``memory:low``, ``memory:medium``, ``memory:high``, ``memory:2g``, ``memory:512m``. Further fields
may follow after commas: ``memory:2g,cpu:2,expect:30s,priority:low``. What is not understood is
ignored and listed, as there: a hint never fails a call.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from agentrt.errors import AgentRTError
from agentrt.resources.intent import NOTHING, Intent, intent_from_json, merged

__all__ = ["HINT_VARIABLE", "hint_in_command", "hint_of_call", "parse_hint", "tool_call_intent"]

HINT_VARIABLE = "AGENT_RESOURCE_HINT"
INTENT_FIELDS = ("intent", "resource_intent", "resource_hint")
LONGEST = 500
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


def parse_hint(text: str) -> tuple[Intent, tuple[str, ...]]:
    """The intent that a hint declares, and the parts of it that were not understood."""
    found, problems = Intent(), list[str]()
    for part in re.split(r"[,;\s]+", text[:LONGEST].strip()):
        if not part:
            continue
        name, _, value = part.replace("=", ":", 1).partition(":")
        try:
            found = merged(intent_from_json({_field(name): value.strip().lower()}), found)
        except AgentRTError:
            problems.append(part)
    return found, tuple(problems)


def _field(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def hint_in_command(command: str | Sequence[str]) -> str | None:
    """The hint that stands before a command as an assignment, also after ``export`` or ``env``."""
    words = list(command) if not isinstance(command, str) else _words(command)
    for word in words:
        name, separator, value = word.partition("=")
        if separator and name == HINT_VARIABLE:
            return value.rstrip(";")
        if not ASSIGNMENT.match(word) and word not in ("env", "export"):
            return None
    return None


def _words(command: str) -> list[str]:
    """The first words of a command line; what a shell would refuse is split at spaces."""
    text = command.lstrip()[: 4 * LONGEST]
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        for word in lexer:
            words.append(word)
            if len(words) == 32:
                break
    except ValueError:
        return text.split()[:32]
    return words


def hint_of_call(
    command: str | Sequence[str], env: Mapping[str, str]
) -> tuple[Intent, tuple[str, ...]]:
    """The intent of a call's own hint: in its command string, else in its environment."""
    text = hint_in_command(command)
    if text is None:
        text = env.get(HINT_VARIABLE)
    return parse_hint(text) if text else (NOTHING, ())


def tool_call_intent(
    arguments: Mapping[str, Any],
) -> tuple[Intent, dict[str, Any], tuple[str, ...]]:
    """Split a model's tool-call arguments into its intent and the tool's own arguments.

    The intent stands under ``intent`` (an object or a hint), ``resource_intent`` or
    ``resource_hint``. The third value lists what was not understood; the call goes on without it.
    """
    rest, found, problems = dict(arguments), Intent(), list[str]()
    for name in INTENT_FIELDS:
        value = rest.pop(name, None)
        if value is None:
            continue
        if isinstance(value, str):
            parsed, wrong = parse_hint(value)
            found = merged(found, parsed)
            problems += wrong
            continue
        try:
            found = merged(found, intent_from_json(value))
        except AgentRTError as error:
            problems.append(f"{name}: {error.message}")
    return found, rest, tuple(problems)
