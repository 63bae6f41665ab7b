"""The bullets of a step's ``### Policy`` section."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agentrt.errors import GuideError
from agentrt.workflows.guide import END, Retry, StepPolicy
from agentrt.workflows.parse_text import Bullet, Source
from agentrt.workflows.parse_values import (
    closest,
    count,
    duration,
    in_ticks,
    number,
    size,
    split_outside_quotes,
    targets,
    yes_no,
)
from agentrt.workflows.predicate import parse_expression

__all__ = ["POLICIES", "PolicySection", "parse_policy"]

_GATE = re.compile(r"(?P<kind>none|approve)\s*(?:\((?P<options>[^)]*)\))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PolicySection:
    """What the bullets say: the policy itself, and what belongs to the step or to the guide."""

    policy: StepPolicy = field(default_factory=StepPolicy)
    for_each: str | None = None
    guide: str | None = None
    reads: tuple[str, ...] = ()
    entry: bool = False
    seen: frozenset[str] = field(default_factory=frozenset)


def parse_policy(items: Sequence[Bullet], source: Source) -> PolicySection:
    """Read all bullets.

    Raises:
        GuideError: a policy is unknown, given twice, or its value does not fit.
    """
    section = PolicySection()
    for item in items:
        name, colon, value = item.text.partition(":")
        key = " ".join(name.strip().lower().replace("_", " ").split())
        if not colon or key not in POLICIES:
            raise _unknown(item, key, source)
        if key in section.seen:
            raise source.error(item.line, f"The policy `{key}` is given twice.", "Keep one.")
        try:
            section = POLICIES[key](section, value.strip())
        except (ValueError, OverflowError) as error:
            why = error.message if isinstance(error, GuideError) else str(error)
            raise source.error(
                item.line,
                f"The policy `{key}` cannot be {value.strip()!r:.120}: {why.rstrip('.')}.",
                f"Write it as `{_EXAMPLES[key]}`.",
            ) from error
        section = replace(section, seen=section.seen | {key})
    return section


def _unknown(item: Bullet, key: str, source: Source) -> GuideError:
    guess = closest(key, POLICIES)
    return source.error(
        item.line,
        f"There is no policy {item.text!r:.120}.",
        f"Did you mean `{guess}`?" if guess else f"Policies are: {', '.join(POLICIES)}.",
    )


def _set(section: PolicySection, **values: Any) -> PolicySection:
    return replace(section, policy=replace(section.policy, **values))


def _join(section: PolicySection, text: str) -> PolicySection:
    word, _, amount = text.lower().partition(" ")
    if word == "quorum":
        return _set(section, join="quorum", quorum=count(amount))
    if word not in ("any", "all") or amount:
        raise ValueError("it is none of any, all, quorum N")
    return _set(section, join=word)


def _timeout(section: PolicySection, text: str) -> PolicySection:
    return _set(section, timeout=_positive(duration(text)))


def _positive(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError("it must be longer than nothing")
    return seconds


def _retries(section: PolicySection, text: str) -> PolicySection:
    first, *rest = split_outside_quotes(text)
    if not first.isdecimal() or int(first) > 1000:
        raise ValueError("the number of retries is 0 to 1000")
    retry = Retry(attempts=int(first) + 1)
    for part in rest:
        key, _, value = part.partition(" ")
        if key == "factor":
            retry = replace(retry, factor=number(value))
        elif key == "initial":
            retry = replace(retry, initial=duration(value))
        elif key == "longest":
            retry = replace(retry, longest=duration(value))
        else:
            raise ValueError(f"{part!r:.120} is not known here")
    return _set(section, retry=retry)


def _gate(section: PolicySection, text: str) -> PolicySection:
    found = _GATE.fullmatch(text)
    if not found:
        raise ValueError("it is neither none nor approve (options)")
    values: dict[str, Any] = {"gate": found["kind"].lower()}
    for part in split_outside_quotes((found["options"] or "").lower()):
        key, _, value = part.partition(" ")
        if key == "default" and value.strip() in ("approve", "deny"):
            values["gate_default"] = value.strip()
        elif key == "after":
            values["gate_timeout"] = duration(value)
        else:
            raise ValueError(f"{part!r:.120} is not known here")
    return _set(section, **values)


def _network(section: PolicySection, text: str) -> PolicySection:
    if text.lower() not in ("none", "host"):
        raise ValueError("it is neither none nor host")
    return _set(section, network=text.lower())


def _for_each(section: PolicySection, text: str) -> PolicySection:
    expression = parse_expression(in_ticks(text) or text)
    return replace(section, for_each=expression.text)


def _guide(section: PolicySection, text: str) -> PolicySection:
    path = in_ticks(text) or text
    if not path or path.startswith(("/", "~")) or ".." in path.split("/"):
        raise ValueError("it must be a file in the guide's own folder or below")
    return replace(section, guide=path)


def _reads(section: PolicySection, text: str) -> PolicySection:
    found = targets(text)
    if not found or END in found:
        raise ValueError("it does not list steps")
    return replace(section, reads=tuple(dict.fromkeys(found)))


POLICIES: dict[str, Callable[[PolicySection, str], PolicySection]] = {
    "join": _join,
    "timeout": _timeout,
    "retries": _retries,
    "idempotent": lambda section, text: _set(section, idempotent=yes_no(text)),
    "gate": _gate,
    "tokens": lambda section, text: _set(section, tokens=count(text)),
    "memory": lambda section, text: _set(section, memory=size(text)),
    "cpu": lambda section, text: _set(section, cpu=number(text)),
    "pids": lambda section, text: _set(section, pids=count(text)),
    "network": _network,
    "for each": _for_each,
    "guide": _guide,
    "reads": _reads,
    "entry": lambda section, text: replace(section, entry=yes_no(text)),
}
"""The policies by name; each takes the section so far and the text after the colon."""

_EXAMPLES = {
    "join": "join: any, join: all or join: quorum 2",
    "timeout": "timeout: 30s",
    "retries": "retries: 2, initial 0.5s, factor 2, longest 128s",
    "idempotent": "idempotent: no",
    "gate": "gate: approve (default deny, after 10m)",
    "tokens": "tokens: 4000",
    "memory": "memory: 512m",
    "cpu": "cpu: 1.5",
    "pids": "pids: 64",
    "network": "network: none",
    "for each": "for each: `queues.name`",
    "guide": "guide: other.md",
    "reads": "reads: Step 1, Step 2",
    "entry": "entry: yes",
}
