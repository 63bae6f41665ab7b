"""Pure: of the calls that are live, which may go on now and which must stand still.

Everybody's present usage is taken as given. In order of rank each call gets leave to grow as far
as it could before we look again. One that does not fit, or after whose growth the rest could not
all end any more, is held. A call that does not grow is never held: holding it would free nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agentrt.resources.control_budget import HOST, safe_order
from agentrt.resources.control_config import ControllerConfig
from agentrt.resources.control_events import HIGH
from agentrt.resources.control_state import TOP_SHARE, LiveCall

__all__ = ["Balance", "all_fit", "balance", "rank"]

LEAST_TRIAL = 1 << 20
LEAST_THAW = 4 << 20
"""Bytes of room that thaw a call which goes first."""


@dataclass(slots=True)
class Balance:
    """Who goes on (with the room that is left to each) and who is held, and for whom."""

    run: dict[str, int] = field(default_factory=dict)
    hold: dict[str, str | None] = field(default_factory=dict)
    safe: bool = True
    stuck: bool = False
    """Nobody can go on, and only an end of somebody changes that."""


def rank(call: LiveCall, aged: frozenset[str]) -> tuple[bool, int, bool, bool, float, int]:
    """Sort key: aged ones, then by priority, those near their
    claim (they will shrink), those that run, those held longest, the older."""
    return (
        call.spec.call not in aged,
        -call.spec.priority,
        not call.on_top,
        call.state == "frozen",
        -call.frozen_total,
        call.number,
    )


def balance(
    config: ControllerConfig,
    calls: Sequence[LiveCall],
    overhead: int,
    aged: frozenset[str] = frozenset(),
) -> Balance:
    """Decide about the live ``calls``; ``aged`` ones were held for as long as may be."""
    order = sorted((c for c in calls if c.state != "killed"), key=lambda c: rank(c, aged))
    table = _Table(config, calls, order, overhead, aged)
    for call in order:
        table.place(call)
    if order and not table.out.run:
        table.rescue()
    return table.out


def all_fit(config: ControllerConfig, calls: Sequence[LiveCall], overhead: int) -> bool:
    """Whether all could use their claims and grow at once, with the margin left: a cheap look.

    Then ``balance`` lets everybody go on, and nobody's room is tight.
    """
    after = {HOST: config.memory - overhead - 2 * config.spare}
    for call in calls:
        most = call.usage + max(call.need, call.growth(config.horizon))
        for scope, limit in config.budgets.limits(call):
            after[scope] = after.get(scope, limit) - most
    return min(after.values()) >= 0


class _Table:
    """The usage that is planned for, as leave is given call by call."""

    def __init__(
        self,
        config: ControllerConfig,
        calls: Sequence[LiveCall],
        order: Sequence[LiveCall],
        overhead: int,
        aged: frozenset[str],
    ) -> None:
        self.config = config
        self.budgets = config.budgets
        self.calls = calls
        self.order = order
        self.overhead = overhead
        self.aged = aged
        self.used = {call.spec.call: call.usage for call in calls}
        self.left = self.budgets.free(calls, self.used)
        if HOST in self.left:
            self.left[HOST] -= overhead
        self.growing: list[LiveCall] = []
        self.out = Balance(safe=self.safe(self.used))

    def safe(self, used: Mapping[str, int]) -> bool:
        # What is being killed gives its memory back: it is left out, its usage with it.
        return safe_order(self.budgets, self.order, used, self.overhead) is not None

    def place(self, call: LiveCall) -> None:
        """Give ``call`` leave to go on, or hold it."""
        wish = self._wish(call)
        room = self._room(call)
        flat = wish == 0 and call.state != "frozen"
        fits = call.held_for != "limit" and wish <= room
        if flat or (fits and self._stays_safe(call, wish)):
            self._grant(call, room)
        else:
            self.out.hold[call.spec.call] = self._winner(call)

    def rescue(self) -> None:
        """All are held. In a safe state one of them can always end: let that one go on.

        Claims may be larger than what is really needed, so in an unsafe state the one that is
        nearest to its claim tries what room there is: most likely it shrinks before it needs more.
        """
        fair = [call for call in self.order if call.held_for != "limit"]
        stuck = self.overhead + sum(c.usage for c in self.order if c.held_for == "limit")
        order = safe_order(self.budgets, fair, self.used, stuck)
        if order is None:
            trial = [c for c in fair if self.budgets.room(c, self.left) >= LEAST_TRIAL]
            order = sorted(trial, key=lambda c: c.need)
        if order:
            del self.out.hold[order[0].spec.call]
            self.out.run[order[0].spec.call] = self.budgets.room(order[0], self.left)
        else:
            self.out.stuck = bool(fair)

    def _wish(self, call: LiveCall) -> int:
        """How much it must be able to grow to be let on."""
        growth = call.growth(self.config.horizon)
        if call.state == "frozen":
            growth = min(call.need, LEAST_THAW if self._goes_first(call) else self.config.thaw_room)
        into_top = call.usage + growth > TOP_SHARE * call.claim and not call.on_top
        # One of the lesser calls may always go on; others enter their top part with room for all.
        return call.need if into_top and not self._first(call) else growth

    def _goes_first(self, call: LiveCall) -> bool:
        return call.spec.priority == HIGH or call.spec.call in self.aged

    def _room(self, call: LiveCall) -> int:
        """What is left to it once the margin and what others are owed is set aside."""
        first = self._first(call)
        if self._goes_first(call):
            return self.budgets.room(call, self.left)
        room = self.config.memory
        for scope, _ in self.budgets.limits(call):
            kept = sum(
                self._kept(other, first)
                for other in self.order
                if other.spec.priority > call.spec.priority
                and any(scope == name for name, _ in self.budgets.limits(other))
            )
            spare = self.config.spare // (2 if first else 1) if scope == HOST else 0
            room = min(room, self.left[scope] - kept - spare)
        return room

    def _first(self, call: LiveCall) -> bool:
        """Whether no call of its priority or a lesser one has leave to grow yet."""
        return not any(other.spec.priority <= call.spec.priority for other in self.growing)

    def _kept(self, call: LiveCall, first: bool) -> int:
        """What others leave free for a more important call.

        Its peak may still come: most of what is reserved for it. Once the peak was seen: a little.
        The first of the lesser calls leaves half of that, then nothing: one of them should go on.
        """
        owed = max(0, min(call.claim, call.reserved) - self.used[call.spec.call])
        if not call.peak_seen:
            return self.config.kept_before(owed) // (2 if first else 1)
        return 0 if first else min(owed, int(self.config.keep_after * call.claim))

    def _stays_safe(self, call: LiveCall, wish: int) -> bool:
        if self._goes_first(call):
            return self._safe_among_peers(call, wish)
        if not self.out.safe:
            # Claims may be larger than needs: the one nearest to its claim tries, the others wait.
            rest = (c for c in self.order if not self._goes_first(c) and c.held_for != "limit")
            return call is min(rest, key=lambda c: (c.need, c.number))
        return self.safe({**self.used, call.spec.call: call.usage + wish})

    def _safe_among_peers(self, call: LiveCall, wish: int) -> bool:
        """Calls that go first need not mind lesser ones, but each other."""
        peers = [c for c in self.order if self._goes_first(c)]
        if all(c is call or c.usage == 0 for c in peers) or call is peers[0]:
            return True
        lesser = sum(c.usage for c in self.calls if c not in peers)
        used = {**self.used, call.spec.call: call.usage + wish}
        return safe_order(self.budgets, peers, used, self.overhead + lesser) is not None

    def _grant(self, call: LiveCall, room: int) -> None:
        """Let it on, and set aside what it may take: all of its claim once it is near it."""
        self.out.run[call.spec.call] = room
        growth = call.growth(self.config.horizon)
        if growth or call.state == "frozen" or call.on_top:
            self.growing.append(call)
        if call.usage + growth > TOP_SHARE * call.claim:
            growth = max(growth, min(call.need, room))
        self.used[call.spec.call] += growth
        for scope, _ in self.budgets.limits(call):
            self.left[scope] -= growth

    def _winner(self, call: LiveCall) -> str | None:
        """The call whose claim goes before: the highest in rank that goes on, else the biggest."""
        others = [c for c in self.order if c is not call and c.spec.call in self.out.run]
        return max(others, key=lambda c: (c.spec.priority, c.usage)).spec.call if others else None
