"""The programs that are open: one runtime program for each that clients are working on.

The index decides where a turn belongs; this opens the runtime's programs, keeps them open between
requests and ends them: when a client says so, when they were idle for too long, and at shutdown.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import anyio

from agentrt.identity import Identity, scoped_id
from agentrt.serving.answers import Answers
from agentrt.serving.canonical import Digest
from agentrt.serving.contexts import (
    Ask,
    ContextIndex,
    IndexStatistics,
    Limits,
    Placement,
    ProgramKey,
)
from agentrt.serving.lineage import Lineage

if TYPE_CHECKING:
    from agentrt.engine.prompt import Conversation
    from agentrt.engine.tokens import PromptBuilder
    from agentrt.program import Program
    from agentrt.served import ServedModel

__all__ = ["ProgramRegistry", "Ticket"]


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to run one turn. Close it once.

    ``builder`` makes the prompts of the context that the turn was placed in, append-stable; no
    other turn uses it meanwhile. ``parent`` is the context of the agent that started this one, if
    that is known; ``final``: the turn is its program's last, ``leaves``: only its context's.
    """

    program: Program
    placement: Placement
    builder: PromptBuilder
    parent: str | None = None
    final: bool = False
    leaves: bool = False


ROOT = ""
"""The member of a program that has no name of its own."""
MAX_MEMBERS = 1024


@dataclass(slots=True)
class _Open:
    """``members``: the newest context of each agent that has named itself."""

    program: Program
    builders: dict[str, PromptBuilder] = field(default_factory=dict)
    members: dict[str, str] = field(default_factory=dict)
    running: int = 0
    final: bool = False


class ProgramRegistry:
    """Open programs of a model by tenant and program id. Belongs to one event loop; no lock."""

    def __init__(
        self,
        model: ServedModel,
        limits: Limits,
        *,
        make_builder: Callable[[], PromptBuilder],
        clock: Callable[[], float],
    ) -> None:
        numbers = itertools.count(1)
        self._index = ContextIndex(limits, lambda: f"unnamed-{next(numbers)}")
        self._answers: Answers[Conversation] = Answers(limits.answer_tokens)
        self._lineage = Lineage()
        self._model = model
        self._make_builder = make_builder
        self._clock = clock
        self._open: dict[ProgramKey, _Open] = {}
        self._ending: dict[ProgramKey, anyio.Event] = {}

    async def open(self, ask: Ask, who: Identity | None = None) -> Ticket:
        """Place a turn and return its program, opened where it is new.

        A sub-agent's turn goes to the program of its root. A last turn ends its program when no
        turn of it is running any more, so that a wrong hint cancels nothing; a sub-agent's does
        not end its root.
        """
        who = who or Identity(ask.program)
        member = who.member or ROOT
        final = who.last
        if ask.program is not None:
            root = self._lineage.root(ask.tenant, ask.program, who.parent)
            if root != ask.program:
                member, final = ask.program, False
            ask = replace(ask, program=root)
            await self._wait_until_ended((ask.tenant, root))
        placement = self._index.place(ask, self._clock())
        entry = self._open.get(placement.program)
        if entry is None:
            tenant, name = placement.program
            entry = _Open(self._model.program(scoped_id(tenant, name), tenant=tenant))
            self._open[placement.program] = entry
        entry.running += 1
        entry.final = entry.final or final
        builder = entry.builders.get(placement.context)
        if builder is None:
            builder = entry.builders[placement.context] = self._make_builder()
            answered = self._answers.find(ask.chain)
            if answered is not None:
                builder.resume(answered)
        parent = _parent(entry, who, member, placement)
        leaves = who.last and not final
        return Ticket(entry.program, placement, builder, parent, final, leaves)

    async def close(self, ticket: Ticket, state: Digest | None) -> None:
        """Note that a turn has ended; ``state`` is None if its answer did not reach the client."""
        key = ticket.placement.program
        self._index.finish(ticket.placement, state, self._clock())
        answered = ticket.builder.answered
        if state is not None and answered is not None:
            self._answers.put(key, ticket.placement.context, state, answered)
        entry = self._open.get(key)
        if entry is None or entry.program is not ticket.program:
            return
        entry.running -= 1
        if entry.final and entry.running == 0:
            await self._end(key)
        elif ticket.leaves:
            entry.program.end_context(ticket.placement.context)

    async def end(self, tenant: str, name: str) -> bool:
        """End a program now, with its running turns; False if there is none of that name.

        What was generated for it is forgotten, too. A sub-agent's name ends its newest context.
        """
        root = self._lineage.known(tenant, name)
        if root is not None and root != name:
            return self._end_member((tenant, root), name)
        self._answers.forget((tenant, name))
        return await self._end((tenant, name))

    async def sweep(self) -> int:
        """End the programs that were idle for too long; return how many."""
        expired = self._index.expire(self._clock())
        for key, context in expired.contexts:
            del self._open[key].builders[context]
        for key in expired.programs:
            await self._end(key)
        return len(expired.programs)

    async def aclose(self) -> None:
        """End all programs."""
        for key in list(self._open):
            await self._end(key)

    def statistics(self) -> IndexStatistics:
        """Return how many programs, contexts and states are remembered."""
        return self._index.statistics()

    def _end_member(self, key: ProgramKey, member: str) -> bool:
        entry = self._open.get(key)
        context = entry.members.pop(member, None) if entry is not None else None
        if entry is None or context is None:
            return False
        entry.program.end_context(context)
        return True

    async def _wait_until_ended(self, key: ProgramKey) -> None:
        """Wait for the end of an earlier program of the same name, which must not meet the new."""
        while (ending := self._ending.get(key)) is not None:
            await ending.wait()

    async def _end(self, key: ProgramKey) -> bool:
        entry = self._open.pop(key, None)
        self._index.end(key)
        self._lineage.forget(*key)
        if entry is None:
            return False
        ended = self._ending[key] = anyio.Event()
        try:
            with anyio.CancelScope(shield=True):
                await entry.program.end()
        finally:
            del self._ending[key]
            ended.set()
        return True


def _parent(entry: _Open, who: Identity, member: str, placement: Placement) -> str | None:
    """Note which agent the turn's context belongs to; return its caller's context."""
    if member in entry.members or len(entry.members) < MAX_MEMBERS:
        entry.members[member] = placement.context
    if member == ROOT:
        return None
    named = who.parent_member if who.member is not None else who.parent
    found = entry.members.get(named or ROOT, entry.members.get(ROOT))
    return found if found != placement.context else None
