"""What a driver looks at twice a second: who is blocked, and who waits for a CPU."""

from __future__ import annotations

from collections.abc import Iterable

from agentrt.resources.tickets import Progress, Ticket

__all__ = ["notice_blocked", "waits_for_cpus"]

BLOCKED_CPU = 0.01
"""Share of one CPU below which a call waits for something else than us."""
BLOCKED_AFTER = 2
"""Looks in a row."""


def notice_blocked(tickets: Iterable[Ticket], seconds: float) -> list[tuple[Ticket, Progress]]:
    """Notice calls that use no CPU, or use it again, looking every ``seconds``."""
    said: list[tuple[Ticket, Progress]] = []
    for ticket in tickets:
        if ticket.control is None or ticket.frozen:
            continue
        spent = ticket.control.cpu_seconds()
        if spent is None:
            continue
        idle = ticket.cpu is not None and spent - ticket.cpu < BLOCKED_CPU * seconds
        ticket.cpu = spent
        ticket.idle_looks = ticket.idle_looks + 1 if idle else 0
        if ticket.idle_looks == BLOCKED_AFTER:
            ticket.blocked = True
            said.append((ticket, "blocked"))
        elif ticket.blocked and not idle:
            ticket.blocked = False
            said.append((ticket, "running"))
    return said


def waits_for_cpus(tickets: Iterable[Ticket]) -> dict[str, float]:
    """Seconds that calls waited for a CPU, by call; empty unless some of them go before others."""
    running = [(ticket, ticket.control) for ticket in tickets if ticket.control is not None]
    if len({ticket.spec.priority for ticket, _ in running}) < 2:
        return {}
    found = ((ticket.call, control.cpu_stalled()) for ticket, control in running)
    return {call: seconds for call, seconds in found if seconds is not None}
