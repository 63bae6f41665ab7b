"""Which program and which context a request continues, told from its messages. Pure.

A context is a line of messages that grows turn by turn. A request continues a context when its
messages strictly extend what that context ended with, our own answer included. Only digests of
message lists are kept (``canonical.chain``), in bounded number.

    asked  = [m1 … mk]            one digest for each prefix: chain[0] … chain[k-1]
    state  = [m1 … mj, answer]    the digest of a list that ends with an answer we delivered
    a request continues the state that equals chain[i], i < k-1, for the largest such i
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from agentrt.errors import InternalError
from agentrt.serving.canonical import Digest

__all__ = [
    "Ask",
    "ContextIndex",
    "Expired",
    "IndexStatistics",
    "Limits",
    "Placement",
    "ProgramKey",
]

ProgramKey: TypeAlias = tuple[str, str]
"""Tenant and program id."""
How: TypeAlias = Literal["program", "context", "continued", "branch", "retry"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is remembered, and for how long (seconds without a turn)."""

    contexts: int = 10_000
    states: int = 128
    """Answers remembered in one context: how far back a branch is recognised."""
    idle: float = 600.0
    idle_undelivered: float = 60.0
    """For a context that never had an answer delivered: a retry comes soon or never."""
    answer_tokens: int = 1_000_000
    """Tokens of answered conversations kept, also of programs that have ended."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, as far as placing it needs: tenant, the program it names (or None), its chain."""

    tenant: str
    program: str | None
    chain: Sequence[Digest]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a turn belongs, and how that was decided. Give it back to ``finish``.

    ``program``: a new program. ``context``: a new context of the program that was named.
    ``continued``: the next turn of a context. ``branch``: from an earlier state, or while the
    context is busy: a new context of the same program. ``retry``: the same turn again, after an
    answer that did not reach its client.
    """

    program: ProgramKey
    context: str
    asked: Digest
    how: How
    turn: int


@dataclass(frozen=True, slots=True)
class Expired:
    """What was forgotten: contexts (program and context name), and programs that have ended."""

    contexts: list[tuple[ProgramKey, str]]
    programs: list[ProgramKey]


@dataclass(frozen=True, slots=True)
class IndexStatistics:
    """How many programs, contexts and states are remembered, and how many turns are running."""

    programs: int
    contexts: int
    states: int
    running: int


@dataclass(slots=True, eq=False)
class _Context:
    program: ProgramKey
    name: str
    used: float
    states: deque[Digest] = field(default_factory=deque)
    running: int | None = None
    undelivered: Digest | None = None


@dataclass(slots=True)
class _Program:
    named: bool
    made: int = 0
    contexts: dict[str, _Context] = field(default_factory=dict)


class ContextIndex:
    """All programs and contexts that are remembered. Times are seconds of one clock.

    Every turn that was placed must be finished once.
    """

    def __init__(self, limits: Limits, new_id: Callable[[], str]) -> None:
        self._limits = limits
        self._new_id = new_id
        self._turns = 0
        self._programs: dict[ProgramKey, _Program] = {}
        self._recent: OrderedDict[_Context, None] = OrderedDict()  # least recently used first
        self._states: dict[Digest, dict[_Context, None]] = {}
        self._undelivered: dict[Digest, dict[_Context, None]] = {}

    def place(self, ask: Ask, now: float) -> Placement:
        """Decide which context the turn belongs to, and mark that context as running."""
        asked = ask.chain[-1]
        context, how = self._find(ask)
        if context.undelivered is not None:
            self._forget_from(self._undelivered, context.undelivered, context)
            context.undelivered = None
        self._turns += 1
        context.running = self._turns
        self._touch(context, now)
        return Placement(context.program, context.name, asked, how, self._turns)

    def finish(self, placement: Placement, state: Digest | None, now: float) -> None:
        """Note the end of a turn. ``state`` is the digest of the list with our answer, or None if
        the answer did not reach the client. Unknown if its program was ended meanwhile.
        """
        program = self._programs.get(placement.program)
        context = program.contexts.get(placement.context) if program else None
        if context is None or context.running != placement.turn:
            return
        context.running = None
        self._touch(context, now)
        if state is None:
            context.undelivered = placement.asked
            self._undelivered.setdefault(placement.asked, {})[context] = None
        else:
            self._add_state(context, state)

    def end(self, program: ProgramKey) -> bool:
        """Forget a program with all its contexts; False if it is not known."""
        found = self._programs.get(program)
        for context in list(found.contexts.values()) if found else []:
            self._drop(context)
        return self._programs.pop(program, None) is not None

    def expire(self, now: float) -> Expired:
        """Forget contexts that were idle for too long, and the oldest idle ones beyond the limit.

        A program that has no context left is forgotten as well.
        """
        excess = len(self._recent) - self._limits.contexts
        stale: list[_Context] = []
        for context in self._recent:
            if context.running is None and (excess > len(stale) or self._is_stale(context, now)):
                stale.append(context)
        touched = dict.fromkeys(context.program for context in stale)
        for context in stale:
            self._drop(context)
        ended = [key for key in touched if not self._programs[key].contexts]
        for key in ended:
            del self._programs[key]
        contexts = [(context.program, context.name) for context in stale]
        return Expired(contexts, ended)

    def statistics(self) -> IndexStatistics:
        """Return how much is remembered."""
        return IndexStatistics(
            programs=len(self._programs),
            contexts=len(self._recent),
            states=sum(len(context.states) for context in self._recent),
            running=sum(context.running is not None for context in self._recent),
        )

    def check_integrity(self) -> None:
        """Raise ``InternalError`` if the tables disagree."""
        held = [each for program in self._programs.values() for each in program.contexts.values()]
        by_state = [(d, c) for d, contexts in self._states.items() for c in contexts]
        wanted = [(d, c) for c in self._recent for d in dict.fromkeys(c.states)]
        lost = [(d, c) for d, contexts in self._undelivered.items() for c in contexts]
        wanted_lost = [(c.undelivered, c) for c in self._recent if c.undelivered is not None]
        for name, found, right in (
            ("contexts", set(held), set(self._recent)),
            ("states", set(by_state), set(wanted)),
            ("undelivered", set(lost), set(wanted_lost)),
        ):
            if found != right:
                raise InternalError(f"{name}: {len(found)} are indexed, {len(right)} exist.")

    def _find(self, ask: Ask) -> tuple[_Context, How]:
        """Return an idle context for the turn: a known one, or a new one."""
        repeated = next(self._candidates(self._undelivered, ask.chain[-1], ask), None)
        if repeated is not None:
            return repeated, "retry"
        for digest in reversed(ask.chain[:-1]):
            known = list(self._candidates(self._states, digest, ask))
            for context in known:
                if context.running is None and context.states[-1] == digest:
                    return context, "continued"
            if known:
                return self._new_context(known[0].program), "branch"
        if ask.program is None:
            return self._new_context(self._new_program(ask.tenant)), "program"
        named = (ask.tenant, ask.program)
        how: How = "context" if named in self._programs else "program"
        self._programs.setdefault(named, _Program(named=True))
        return self._new_context(named), how

    def _candidates(
        self, table: dict[Digest, dict[_Context, None]], digest: Digest, ask: Ask
    ) -> Iterator[_Context]:
        """Yield the contexts under ``digest`` that the request may belong to: those of the program
        it names; if it names none, those of its tenant, unnamed programs first.
        """
        found = [each for each in table.get(digest, ()) if each.program[0] == ask.tenant]
        if ask.program is not None:
            yield from (each for each in found if each.program[1] == ask.program)
        else:
            yield from sorted(found, key=lambda each: self._programs[each.program].named)

    def _new_program(self, tenant: str) -> ProgramKey:
        key = (tenant, self._new_id())
        while key in self._programs:  # a client may have chosen such a name itself
            key = (tenant, self._new_id())
        self._programs[key] = _Program(named=False)
        return key

    def _new_context(self, key: ProgramKey) -> _Context:
        program = self._programs[key]
        program.made += 1
        name = "main" if program.made == 1 else f"context-{program.made}"
        context = _Context(key, name, used=0.0)
        program.contexts[name] = context
        return context

    def _touch(self, context: _Context, now: float) -> None:
        context.used = now
        self._recent[context] = None
        self._recent.move_to_end(context)

    def _is_stale(self, context: _Context, now: float) -> bool:
        limit = self._limits.idle if context.states else self._limits.idle_undelivered
        return now - context.used >= limit

    def _add_state(self, context: _Context, state: Digest) -> None:
        context.states.append(state)
        self._states.setdefault(state, {})[context] = None
        if len(context.states) > self._limits.states:
            oldest = context.states.popleft()
            if oldest not in context.states:
                self._forget_from(self._states, oldest, context)

    def _drop(self, context: _Context) -> None:
        for state in dict.fromkeys(context.states):
            self._forget_from(self._states, state, context)
        if context.undelivered is not None:
            self._forget_from(self._undelivered, context.undelivered, context)
        del self._recent[context]
        del self._programs[context.program].contexts[context.name]

    @staticmethod
    def _forget_from(
        table: dict[Digest, dict[_Context, None]], digest: Digest, context: _Context
    ) -> None:
        owners = table[digest]
        del owners[context]
        if not owners:
            del table[digest]
