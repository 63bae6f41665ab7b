"""A guide written in agentrt's markdown format; reading it back gives the same guide."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace

from agentrt.errors import GuideError
from agentrt.workflows.guide import START, Edge, Guide, Parameter, QueryUse, Step, StepPolicy
from agentrt.workflows.parse import parse_guide

__all__ = ["connection_lines", "render_guide", "same_guide"]

_STEP = re.compile(r"Step(?P<number>\d.*)")


def render_guide(guide: Guide) -> str:
    """Return the guide as markdown.

    Raises:
        GuideError: the format cannot say all of it, such as an edge with a name of its own.
    """
    text = "\n".join(_lines(guide)) + "\n"
    if not same_guide(guide, parse_guide(text, name=guide.name, path=guide.path)):
        raise GuideError(
            f"{guide.path or guide.name}: the guide cannot be written in agentrt's format.",
            remedy="Name edges edge_SOURCE_TARGET and steps Step1, Step2; keep prose free of "
            "headings such as `## Step`.",
        )
    return text


def same_guide(one: Guide, other: Guide) -> bool:
    """Return whether two guides mean the same: lines, text and source format do not count."""
    return _bare(one) == _bare(other)


def _bare(guide: Guide) -> Guide:
    steps = tuple(
        replace(
            step,
            line=0,
            edges=tuple(replace(edge, line=0) for edge in step.edges),
            queries=tuple(replace(query, line=0) for query in step.queries),
        )
        for step in guide.steps
    )
    return replace(guide, steps=steps, text="", source_format="agentrt")


def _lines(guide: Guide) -> Iterator[str]:
    yield f"# {guide.title}"
    # First, because the overview may end in sections of its own.
    yield from _settings(guide)
    if guide.overview:
        yield from ("", guide.overview)
    if guide.parameters:
        yield from ("", "## Parameters", "")
        yield from (_parameter(parameter) for parameter in guide.parameters)
    for step in guide.steps:
        yield ""
        yield from _start(step) if step.id == START else _step(step)


def _settings(guide: Guide) -> Iterator[str]:
    settings = []
    if guide.queries_file:
        settings.append(f"queries={_quoted(guide.queries_file)}")
    if guide.on_conclusion != "cancel":
        settings.append(f"on_conclusion={guide.on_conclusion}")
    if settings:
        yield from ("", f"<!-- guide: {'; '.join(settings)} -->")


def _quoted(text: str) -> str:
    plain = re.fullmatch(r"[\w./{}-]+", text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def _parameter(parameter: Parameter) -> str:
    words = [parameter.type]
    if parameter.default is not None:
        words.append(f"default {json.dumps(parameter.default, ensure_ascii=False)}")
    elif not parameter.required:
        words.append("optional")
    about = f": {parameter.description}" if parameter.description else ""
    return f"- `{parameter.name}` ({', '.join(words)}){about}"


def _start(step: Step) -> Iterator[str]:
    yield from ("## Start", "", *connection_lines(step))


def _step(step: Step) -> Iterator[str]:
    yield f"## {_shown(step.id)} - {step.title}"
    if step.instructions:
        yield from ("", "### Instructions", "", step.instructions)
    if step.queries:
        yield from ("", "### Queries", "", *map(_query, step.queries))
    if step.command is not None:
        fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", step.command)), default=0))
        yield from ("", "### Command", "", f"{fence}sh", step.command, fence)
    if step.edges:
        yield from ("", "### Connections", "", *connection_lines(step))
    if policies := list(_policies(step)):
        yield from ("", "### Policy", "", *policies)
    if step.conclusion is not None:
        yield from ("", f"<!-- Reaches A Final Conclusion: {step.conclusion} -->")


def _shown(step_id: str) -> str:
    found = _STEP.fullmatch(step_id)
    return f"Step {found['number']}" if found else step_id


def _query(use: QueryUse) -> str:
    pairs = ", ".join(f"{name}={_quoted(value)}" for name, value in use.arguments.items())
    return f"- `{use.query}`" + (f" with {pairs}" if pairs else "")


def connection_lines(step: Step) -> list[str]:
    """Return the bullets of a step's Connections section."""
    return [f"- {_when(edge)}{_shown(edge.target)}" for edge in step.edges]


def _when(edge: Edge) -> str:
    remark = f" ({edge.condition})" if edge.condition else ""
    if edge.otherwise:
        return f"otherwise{remark}: "
    if edge.predicate is not None:
        return f"if `{edge.predicate}`{remark}: "
    return f"if {edge.condition}: " if edge.condition else ""


def _policies(step: Step) -> Iterator[str]:
    policy, usual = step.policy, StepPolicy()
    if policy.join != usual.join:
        yield (
            f"- join: quorum {policy.quorum}"
            if policy.join == "quorum"
            else f"- join: {policy.join}"
        )
    if policy.timeout != usual.timeout:
        yield f"- timeout: {_seconds(policy.timeout)}"
    if policy.retry != usual.retry:
        yield f"- retries: {_retries(policy)}"
    if not policy.idempotent:
        yield "- idempotent: no"
    if policy.gate != "none":
        after = (
            f", after {_seconds(policy.gate_timeout)}" if policy.gate_timeout is not None else ""
        )
        yield f"- gate: {policy.gate} (default {policy.gate_default}{after})"
    if policy.memory is not None:
        yield f"- memory: {_size(policy.memory)}"
    for key in ("tokens", "cpu", "pids"):
        if (value := getattr(policy, key)) is not None:
            yield f"- {key}: {value!r}"
    if policy.network != "none":
        yield f"- network: {policy.network}"
    if step.for_each is not None:
        yield f"- for each: `{step.for_each}`"
    if step.guide is not None:
        yield f"- guide: {step.guide}"
    if step.reads:
        yield f"- reads: {', '.join(map(_shown, step.reads))}"


def _retries(policy: StepPolicy) -> str:
    retry = policy.retry
    return (
        f"{retry.attempts - 1}, initial {_seconds(retry.initial)}, factor {retry.factor!r}, "
        f"longest {_seconds(retry.longest)}"
    )


def _seconds(value: float) -> str:
    return f"{int(value)}s" if value == int(value) else f"{value!r}s"


def _size(value: int) -> str:
    for unit, shift in (("g", 30), ("m", 20), ("k", 10)):
        if value % (1 << shift) == 0:
            return f"{value >> shift}{unit}"
    return str(value)
