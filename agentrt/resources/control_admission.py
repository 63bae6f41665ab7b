"""Pure: reservations, and which waiting call may start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from agentrt.resources.control_budget import HOST
from agentrt.resources.control_config import ControllerConfig
from agentrt.resources.control_state import LiveCall

__all__ = [
    "cut_reservations",
    "obstacle",
    "queue_order",
    "reservable",
    "reserved_by_scope",
    "top_up",
]


def reserved_by_scope(config: ControllerConfig, live: Iterable[LiveCall]) -> dict[str, int]:
    """What is reserved in each scope that has a limit."""
    out: dict[str, int] = {}
    for call in live:
        for scope, _ in config.budgets.limits(call):
            out[scope] = out.get(scope, 0) + call.reserved
    return out


def reservable(config: ControllerConfig, call: LiveCall, reserved: Mapping[str, int]) -> int:
    """How much of its claim can be reserved beside ``reserved``."""
    room = min(limit - reserved.get(scope, 0) for scope, limit in config.budgets.limits(call))
    return max(0, min(call.claim - call.reserved, room))


def queue_order(
    config: ControllerConfig, waiting: Iterable[LiveCall], live: Sequence[LiveCall], now: float
) -> list[LiveCall]:
    """Who may start next: the aged by age; then by priority, the tenant that has least, age."""
    held: dict[str, int] = {}
    for call in live:
        held[call.spec.tenant] = held.get(call.spec.tenant, 0) + call.claim

    def key(call: LiveCall) -> tuple[bool, int, int, int]:
        if is_aged(config, call, now):
            return (False, 0, 0, call.number)
        return (True, -call.spec.priority, held.get(call.spec.tenant, 0), call.number)

    return sorted(waiting, key=key)


def is_aged(config: ControllerConfig, call: LiveCall, now: float) -> bool:
    """Whether it has waited so long that nobody may overtake it any more."""
    return now - call.requested >= config.max_wait


def obstacle(
    config: ControllerConfig, call: LiveCall, live: Sequence[LiveCall], overhead: int
) -> str:
    """Why ``call`` cannot start beside ``live``; empty if it can."""
    if len(live) >= config.max_calls:
        return f"{len(live)} tool calls run, as many as may"
    rivals = [c for c in live if _shares(config, c, call)]
    if not rivals:
        return ""
    # What is reserved for lesser calls can be taken from them: they then borrow, or freeze.
    firm = [c for c in rivals if c.spec.priority >= call.spec.priority]
    over = _over(config, call, firm)
    if over > 0:
        return f"claims would exceed what may be promised by {over >> 20} MiB"
    room = _room(config, call, live, overhead)
    # A call that may push others aside must not end up between them: all of it fits, or it waits.
    pushes = len(firm) < len(rivals)
    start = call.claim if pushes else min(call.claim, call.spec.start or call.claim // 4)
    if start > room:
        return f"{max(0, room) >> 20} MiB are free and it needs {start >> 20} MiB to begin"
    return ""


def _over(config: ControllerConfig, call: LiveCall, firm: Sequence[LiveCall]) -> int:
    """By how much the claims would exceed what a scope may promise; 0 or less if they do not."""
    claims = {scope: call.claim for scope, _ in config.budgets.limits(call)}
    for other in firm:
        for scope, _ in config.budgets.limits(other):
            if scope in claims:
                claims[scope] += other.claim
    return max(
        claims[scope] - int(limit * (1 + config.overcommit))
        for scope, limit in config.budgets.limits(call)
    )


def _shares(config: ControllerConfig, one: LiveCall, other: LiveCall) -> bool:
    """Whether they count against one limit; the host's is everybody's."""
    names = {scope for scope, _ in config.budgets.limits(one)}
    return any(scope in names for scope, _ in config.budgets.limits(other))


def _room(config: ControllerConfig, call: LiveCall, live: Sequence[LiveCall], overhead: int) -> int:
    """What is free for a newcomer: less the growth to come, and what greater calls are owed."""
    used: dict[str, int] = {}
    for other in live:
        near = max(other.usage + other.growth(config.horizon), min(other.claim, other.spec.start))
        if other.spec.priority > call.spec.priority and not other.peak_seen:
            owed = max(0, other.reserved - near)
            near += config.kept_before(owed)
        used[other.spec.call] = near
    left = config.budgets.free(live, used)
    left[HOST] = left.get(HOST, config.memory) - overhead - config.spare
    return config.budgets.room(call, left)


def cut_reservations(config: ControllerConfig, call: LiveCall, live: Sequence[LiveCall]) -> None:
    """Reserve for ``call`` all that can be had, taking from lesser calls what is missing."""
    call.reserved += reservable(config, call, reserved_by_scope(config, live))
    lesser = sorted(
        (c for c in live if c.spec.priority < call.spec.priority and c is not call),
        key=lambda c: (c.spec.priority, -c.number),
    )
    for giver in lesser:
        missing = call.claim - call.reserved
        if missing <= 0:
            return
        before = giver.reserved
        giver.reserved = max(0, before - missing)
        call.reserved += reservable(config, call, reserved_by_scope(config, live))
        # A giver of another tenant may not have been what stood in the way: give back the rest.
        giver.reserved += min(
            before - giver.reserved, reservable(config, giver, reserved_by_scope(config, live))
        )


def top_up(config: ControllerConfig, live: Sequence[LiveCall]) -> None:
    """Reserve for borrowers what has become free, the more important first."""
    for call in sorted(live, key=lambda c: (-c.spec.priority, c.number)):
        call.reserved += reservable(config, call, reserved_by_scope(config, live))
