"""Pure: the rungs between running freely and being killed, for calls that are live."""

from __future__ import annotations

from collections.abc import Sequence

from agentrt.resources import control_events as ev
from agentrt.resources.control_balance import Balance, all_fit, balance
from agentrt.resources.control_budget import HOST, safe_order
from agentrt.resources.control_config import ControllerConfig
from agentrt.resources.control_state import LiveCall

__all__ = ["Ladder"]

MIB = 1 << 20
RECLAIM_PAUSE = 1.0
"""Seconds between two requests to reclaim one framework."""
RECLAIM_LEAST = 4 * MIB
KILL_GRACE = 1.0
"""Seconds in which a killed call should have given its memory back."""
BORROW_STEP = 64 * MIB
REPAY_SHARE = 0.8


class Ladder:
    """Borrow, reclaim, throttle, freeze, kill: what each live call gets, at every event."""

    def __init__(self, config: ControllerConfig) -> None:
        self._config = config
        self._frameworks: dict[str, int] = {}
        self._thinking: dict[str, float] = {}
        self.counts = {"killed": 0, "freezes": 0, "throttles": 0, "reclaims": 0, "lent": 0}

    def decide(
        self, live: Sequence[LiveCall], overhead: int, wanted: bool, now: float
    ) -> list[ev.Action]:
        """What is to be done for the live calls now. ``wanted``: others wait for room."""
        easy = not wanted and all(self._is_easy(call, now) for call in live)
        if easy and all_fit(self._config, live, overhead):
            return []  # the usual case: the rest would find the same, only slower
        out: list[ev.Action] = []
        for call in live:
            out += self._own_limit(call, live, overhead, now)
        aged = frozenset(c.spec.call for c in live if self._is_aged(c, now))
        found = balance(self._config, live, overhead, aged)
        if found.hold:
            out += self.reclaim_idle(now)
        for call in live:
            name = call.spec.call
            if name in found.run:
                out += self._let_run(call, found.run[name], now)
            elif name in found.hold:
                out += self._hold(call, found, live, now, aged)
        if found.stuck:
            first = min(live, key=lambda c: (c.state == "killed", -c.spec.priority, c.number))
            out += self._make_room(first, live, None, now)
        if found.hold or wanted:
            out += self._repay(live, now)
        return out

    def _is_easy(self, call: LiveCall, now: float) -> bool:
        """Whether it runs freely, within what it declared, and owes its turn to nobody."""
        return (
            call.state in ("admitted", "running")
            and call.high is None
            and call.hungry_since is None
            and call.aged_until <= now
            and call.wish(self._config.horizon) <= call.soft
        )

    def deadline(self, call: LiveCall) -> float | None:
        """When time alone changes what is done for ``call``."""
        moments: list[float] = []
        if call.state == "frozen":
            moments.append(call.freeze_until)
        if call.high is not None:
            moments.append(call.high_deadline)
        if call.hungry_since is not None and call.state != "killed":
            moments.append(call.hungry_since + self._patience(call))
        return min(moments, default=None)

    # --- its own limit: borrow, or wait for it ---

    def _own_limit(
        self, call: LiveCall, live: Sequence[LiveCall], overhead: int, now: float
    ) -> list[ev.Action]:
        """Raise the claim of a call that outgrows it, if there is slack; else its own choice."""
        if call.state != "running" and call.held_for != "limit":
            return []
        wants = call.held_for == "limit" or call.wish(self._config.horizon) > call.soft
        if wants and (new := self._loan(call, live, overhead)):
            return self._lend(call, new)
        if call.held_for != "limit" and call.usage <= call.soft:
            call.hungry_since = None
            return []
        if call.spec.on_limit == "kill":
            return []  # the kernel's hard limit is the answer that was asked for
        if call.hungry_since is None:
            call.hungry_since = now
        if now - call.hungry_since >= self._patience(call):
            why = f"it needed more than {call.soft // MIB} MiB and there was nothing to borrow"
            return self.kill(call, "limit", why, None, now)
        if call.spec.on_limit == "freeze" and call.state == "running":
            return self._freeze(call, None, "limit", now)
        return []

    def _patience(self, call: LiveCall) -> float:
        if call.spec.on_limit == "freeze":
            return self._config.max_freeze[call.spec.priority]
        return self._config.stall_deadline

    def _loan(self, call: LiveCall, live: Sequence[LiveCall], overhead: int) -> int:
        """The claim that it could be given, or 0."""
        new = min(call.ceiling, max(call.claim * 3 // 2, call.claim + BORROW_STEP))
        if new <= call.claim:
            return 0
        others = [c for c in live if c.state != "killed"]
        used = {c.spec.call: c.usage for c in live}
        left = self._config.budgets.free(live, used)
        left[HOST] -= overhead + self._config.spare
        for other in others:
            if other.spec.priority > call.spec.priority:
                left[HOST] -= max(0, min(other.claim, other.reserved) - other.usage)
        before = call.claim
        call.claim = new
        safe = safe_order(self._config.budgets, others, used, overhead) is not None
        call.claim = before
        return new if safe and new - call.usage <= self._config.budgets.room(call, left) else 0

    def _lend(self, call: LiveCall, new: int) -> list[ev.Action]:
        call.soft += new - call.claim
        call.claim = new
        call.hungry_since = None
        self.counts["lent"] += 1
        if call.state == "frozen":
            call.held_for = "room"
        return [ev.SetMax(call.spec.call, new)]

    def _repay(self, live: Sequence[LiveCall], now: float) -> list[ev.Action]:
        """Take back what was lent and is not used any more."""
        out: list[ev.Action] = []
        for call in live:
            own = call.spec.claim
            if own < call.claim and call.usage <= REPAY_SHARE * own and call.state == "running":
                call.soft -= call.claim - own
                call.claim = own
                call.reserved = min(call.reserved, own)
                if call.high is not None:
                    out += self._lift(call, now)
                out.append(ev.SetMax(call.spec.call, own))
        return out

    # --- run, throttle, freeze ---

    def _let_run(self, call: LiveCall, room: int, now: float) -> list[ev.Action]:
        out: list[ev.Action] = []
        if call.state == "frozen":
            if self._is_aged(call, now):
                call.aged_until = now + self._config.max_freeze[call.spec.priority]
            call.thaw(now)
            out.append(ev.Thaw(call.spec.call))
        return out + self._window(call, room, now)

    def _window(self, call: LiveCall, room: int, now: float) -> list[ev.Action]:
        """Near the limit, let a lesser call grow only as far as there is room, in the kernel."""
        config = self._config
        if not config.can_throttle or call.spec.priority == ev.HIGH or call.state != "running":
            return []
        limit = call.usage + max(0, room)
        tight = room < 2 * config.spare and limit < call.claim
        if not tight:
            return self._lift(call, now) if call.high is not None else []
        if call.high is not None and abs(call.high - limit) < max(MIB, config.spare // 4):
            return self._stalled(call, now)
        if call.high is None:
            self.counts["throttles"] += 1
        call.throttle(limit, now, now + config.stall_deadline)
        return [ev.SetHigh(call.spec.call, limit, call.high_deadline)]

    def _lift(self, call: LiveCall, now: float) -> list[ev.Action]:
        call.throttle(None, now, 0.0)
        return [ev.SetHigh(call.spec.call, None)]

    def _stalled(self, call: LiveCall, now: float) -> list[ev.Action]:
        """Its window has not moved up to the deadline: a freeze is cheaper than a livelock."""
        if now < call.high_deadline:
            return []
        return [*self._freeze(call, call.winner, "room", now), *self._lift(call, now)]

    def _hold(
        self,
        call: LiveCall,
        found: Balance,
        live: Sequence[LiveCall],
        now: float,
        aged: frozenset[str],
    ) -> list[ev.Action]:
        winner = found.hold[call.spec.call]
        if call.spec.call in aged and call.held_for != "limit":
            return self._make_room(call, live, winner, now)
        if call.state == "running":
            return self._freeze(call, winner, "room", now)
        return []

    def _freeze(self, call: LiveCall, winner: str | None, why: str, now: float) -> list[ev.Action]:
        if not self._config.can_freeze:
            return []
        until = now + self._config.max_freeze[call.spec.priority]
        call.freeze(now, until, winner, "limit" if why == "limit" else "room")
        self.counts["freezes"] += 1
        return [ev.Freeze(call.spec.call, until, winner)]

    def _is_aged(self, call: LiveCall, now: float) -> bool:
        """It was held as long as may be, or has been let on for that reason and not for long."""
        if call.held_for == "room" and now >= call.freeze_until:
            return True
        return now < call.aged_until

    # --- kill ---

    def _make_room(
        self, call: LiveCall, live: Sequence[LiveCall], winner: str | None, now: float
    ) -> list[ev.Action]:
        """Nothing but an end makes room for ``call``, and it has waited long enough."""
        if any(c.state == "killed" and now - c.changed < KILL_GRACE for c in live):
            return []  # somebody is being killed: see what that frees
        lesser = [
            c
            for c in live
            if c is not call
            and c.state != "killed"
            and (c.spec.priority, -c.number) < (call.spec.priority, -call.number)
        ]
        if not lesser:
            why = "there was no room for it within its longest freeze"
            return self.kill(call, "no_room", why, winner, now)
        victim = min(lesser, key=lambda c: (c.spec.priority, -c.number))
        why = "a call that goes before it had waited for its memory as long as may be"
        return self.kill(victim, "no_room", why, call.spec.call, now)

    def kill(
        self, call: LiveCall, reason: ev.KillReason, why: str, winner: str | None, now: float
    ) -> list[ev.Action]:
        """End a call; it stays known until its end is reported."""
        if call.state == "frozen":
            call.thaw(now)
        call.throttle(None, now, 0.0)
        call.state, call.changed = "killed", now
        call.winner = winner or call.winner
        self.counts["killed"] += 1
        return [ev.Kill(call.spec.call, reason, why, winner)]

    def memory_event(self, call: LiveCall | None, event: ev.MemoryEvent, now: float) -> None:
        """The kernel's own counters: an OOM kill ends the call's hunger, it is over."""
        del now
        if call is not None and event.oom_kills:
            call.hungry_since = None

    # --- idle frameworks ---

    def framework(self, program: str, usage: int) -> None:
        """Take note of what a program's framework uses."""
        self._frameworks[program] = usage

    def turn_started(self, program: str, now: float) -> list[ev.Action]:
        """The program thinks: what its framework holds is idle."""
        self._thinking[program] = float("-inf")
        return self._reclaim(program, now)

    def turn_ended(self, program: str) -> None:
        """The framework runs again."""
        self._thinking.pop(program, None)

    def reclaim_idle(self, now: float) -> list[ev.Action]:
        """Ask back the memory of every framework that is idle."""
        return [action for name in self._thinking for action in self._reclaim(name, now)]

    def _reclaim(self, program: str, now: float) -> list[ev.Action]:
        wanted = int(self._frameworks.get(program, 0) * self._config.reclaim_share)
        pause_over = now - self._thinking[program] >= RECLAIM_PAUSE
        if not self._config.can_reclaim or wanted < RECLAIM_LEAST or not pause_over:
            return []
        self._thinking[program] = now
        self.counts["reclaims"] += 1
        return [ev.Reclaim(program, wanted)]
