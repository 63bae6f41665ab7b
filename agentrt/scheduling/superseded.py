"""Contexts that will not be back: side requests, compacted histories, abandoned branches. Pure.

A program's contexts are told apart by their message prefixes. A context that nobody will continue
holds KV for nothing; retention lets go of it first. Everything here is a judgement on what was
seen, is taken back when the context returns, and never changes a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["ContextFacts", "Reason", "restarted", "superseded"]

Reason: TypeAlias = Literal["side", "compacted", "abandoned"]

RESTART_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class ContextFacts:
    """What is known of one context. Times are seconds on one clock, counts tokens.

    Args:
        name: unique in its program.
        began: when its first turn was handed in.
        latest: when its latest turn was.
        ended: when that turn ended; None while one waits or runs.
        turns: turns that ended.
        first_prompt: the length of its first prompt.
        length: what it has now.
        calls: whether its latest turn called a tool; None where that is not known.
        parent: the context that started it, where that was said.
        patience: how long after its end a return is still likely, say the 99th percentile.
    """

    name: str
    began: float
    latest: float
    ended: float | None
    turns: int
    first_prompt: int
    length: int
    calls: bool | None = None
    parent: str | None = None
    patience: float = 60.0


def restarted(length: int, prompt: int, reused: int) -> bool:
    """Return whether a context's history was replaced: its next prompt is shorter than it was, and
    shares at most half of it. What it held beyond ``reused`` is of no more use.
    """
    return prompt < length and reused <= RESTART_SHARE * length


def superseded(contexts: Sequence[ContextFacts], now: float) -> dict[str, Reason]:
    """Return which of one program's contexts are not expected back, and why.

    ``side``: one turn that called no tool, and another context went on since: a title, a probe.
    ``compacted``: it ended without a tool call, and a later context, of another beginning and
    shorter than it, has gone on for two turns since: its summary.
    ``abandoned``: its return is overdue while the program went on without it.
    """
    judged = {context.name: _judge(context, contexts, now) for context in contexts}
    return {name: reason for name, reason in judged.items() if reason is not None}


def _judge(context: ContextFacts, all_: Sequence[ContextFacts], now: float) -> Reason | None:
    ended = context.ended
    if ended is None or context.turns == 0:
        return None
    others = [each for each in all_ if each.name != context.name and each.latest >= ended]
    if not others:
        return None
    answered = context.calls is False
    if context.turns == 1 and answered and any(each.turns > 1 for each in others):
        return "side"
    if answered and any(_summary(each, context, ended) for each in others):
        return "compacted"
    waits_for_child = any(each.parent == context.name and _active(each, now) for each in others)
    if now - ended > context.patience and not waits_for_child:
        return "abandoned"
    return None


def _summary(later: ContextFacts, earlier: ContextFacts, ended: float) -> bool:
    """Return whether ``later`` looks like what ``earlier`` was compacted to."""
    fresh = later.began >= ended and later.parent != earlier.name
    return fresh and later.first_prompt < earlier.length and later.turns >= 2


def _active(context: ContextFacts, now: float) -> bool:
    """Return whether a context has work under way or is still expected back."""
    return context.ended is None or now - context.ended <= context.patience
