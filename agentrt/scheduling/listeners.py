"""A policy's listeners by what they listen to: what nobody overrides costs nothing to tell."""

from __future__ import annotations

from collections.abc import Iterable

from agentrt.scheduling.policy import Listener

__all__ = ["Listeners"]


class Listeners:
    """For each of :class:`Listener`'s methods, the listeners that override it."""

    __slots__ = (
        "declared",
        "ended",
        "opened",
        "pinned",
        "preempted",
        "program_ended",
        "progressed",
        "started",
        "submitted",
        "tick",
        "tool_event",
        "unpinned",
    )

    def __init__(self, listeners: Iterable[Listener]) -> None:
        everyone = tuple(listeners)

        def overriding(name: str) -> tuple[Listener, ...]:
            plain = getattr(Listener, name)
            return tuple(one for one in everyone if getattr(type(one), name) is not plain)

        self.declared = overriding("declared")
        self.opened = overriding("opened")
        self.tick = overriding("tick")
        self.submitted = overriding("submitted")
        self.started = overriding("started")
        self.preempted = overriding("preempted")
        self.progressed = overriding("progressed")
        self.ended = overriding("ended")
        self.program_ended = overriding("program_ended")
        self.tool_event = overriding("tool_event")
        self.pinned = overriding("pinned")
        self.unpinned = overriding("unpinned")
