"""The controller of tool calls' memory: pure. Events and the time go in, actions come out.

The ladder, in order: a call is *admitted* when a share of its claim can be reserved; beyond its
reservation it *borrows* what others do not use; idle frameworks are *reclaimed*; near the limit
calls are *throttled* (``memory.high``, always below ``memory.max`` and with a deadline); what does
not fit is *frozen*, bounded in time and then first in line; and only when nothing else can be done
within the bounds a call is *killed*, with a reason and the name of the claim that went before.

    requested ──► waiting ──► admitted ──► running ◄──► frozen
                     │            │           │            │
                     ▼            ▼           ▼            ▼
                  refused       ended       ended       killed ──► ended
"""

from __future__ import annotations

from dataclasses import replace

from agentrt.errors import InternalError, InvalidRequest
from agentrt.resources import control_events as ev
from agentrt.resources.control_admission import (
    cut_reservations,
    is_aged,
    obstacle,
    queue_order,
    reserved_by_scope,
    top_up,
)
from agentrt.resources.control_config import ControllerConfig, ControllerStatistics
from agentrt.resources.control_integrity import check
from agentrt.resources.control_ladder import Ladder
from agentrt.resources.control_state import CallReport, LiveCall
from agentrt.resources.control_weights import WEIGHTS, Weights

__all__ = ["Controller", "ControllerConfig", "ControllerStatistics"]

OVERDUE_PAUSE = 0.01
OVERHEAD_MEMORY = 8
"""Samples over which the least overhead counts: one that is seen once is a matter of timing."""


class Controller:
    """Decides for all tool calls of one runtime. Not thread-safe: its driver owns it."""

    def __init__(self, config: ControllerConfig) -> None:
        self.config = config
        self._calls: dict[str, LiveCall] = {}
        self._numbers = 0
        self._overheads: list[int] = []
        self._ladder = Ladder(config)
        self._weights = Weights()
        self._counts = {"admitted": 0, "ended": 0, "refused": 0}

    # --- what drivers call ------------------------------------------------------------------------

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        """Take note of ``event`` and return what is to be done, in order.

        Raises:
            InvalidRequest: a call is requested under an id that is live.
        """
        out: list[ev.Action] = []
        self._note(event, now, out)
        self._expire(now, out)
        out += self._ladder.decide(self._live(), self.overhead, self._waiting() != [], now)
        self._admit(now, out)
        return out

    def next_deadline(self, now: float) -> float | None:
        """When time alone may change a decision, if ever: send a ``Tick`` then.

        Never in the past: what is overdue waits for somebody's end, and is looked at again soon.
        """
        found = [call.spec.deadline for call in self._calls.values()]
        found += [self._ladder.deadline(call) for call in self._live()]
        for call in self._waiting():
            found.append(call.requested + self.config.refuse_after)
            if call.requested + self.config.max_wait > call.sampled:
                found.append(call.requested + self.config.max_wait)
        known = [moment for moment in found if moment is not None]
        return max(min(known), now + OVERDUE_PAUSE) if known else None

    def report(self, call: str, now: float) -> CallReport | None:
        """What was done to a call so far; ``None`` if it is not known (any more)."""
        found = self._calls.get(call)
        return None if found is None else found.report(now)

    def spec(self, call: str) -> ev.CallSpec | None:
        """What a live or waiting call was requested with."""
        found = self._calls.get(call)
        return None if found is None else found.spec

    def tightest(self) -> int | None:
        """The least that a call which may borrow has left of its claim; ``None`` without one."""
        needs = [c.need for c in self._live() if c.spec.enforced and c.claim < c.ceiling]
        return min(needs, default=None)

    @property
    def overhead(self) -> int:
        """Bytes of the budget that no live call accounts for: frameworks, dying cgroups, caches."""
        return min(self._overheads, default=0)

    def statistics(self) -> ControllerStatistics:
        """Gauges and counters."""
        live = self._live()
        counts = self._ladder.counts
        return ControllerStatistics(
            budget=self.config.memory,
            reserved=sum(c.reserved for c in live),
            borrowed=sum(c.borrowed for c in live),
            used=sum(c.usage for c in live),
            overhead=self.overhead,
            running=sum(c.state in ("admitted", "running") for c in live),
            frozen=sum(c.state == "frozen" for c in live),
            waiting=len(self._waiting()),
            killed=counts["killed"],
            freezes=counts["freezes"],
            throttles=counts["throttles"],
            reclaims=counts["reclaims"],
            lent=counts["lent"],
            weight_cuts=self._weights.cuts,
            **self._counts,
        )

    def check_integrity(self) -> None:
        """Raise ``InternalError`` if reservations, states and bounds disagree."""
        check(self.config, list(self._calls.values()))
        for scope, total in reserved_by_scope(self.config, self._live()).items():
            limits = {
                name: limit
                for call in self._live()
                for name, limit in self.config.budgets.limits(call)
            }
            if total > limits[scope]:
                raise InternalError(f"{total} bytes are reserved of {limits[scope]} in {scope}.")

    # --- events -----------------------------------------------------------------------------------

    def _live(self) -> list[LiveCall]:
        return [call for call in self._calls.values() if call.live]

    def _waiting(self) -> list[LiveCall]:
        return [call for call in self._calls.values() if not call.live]

    def _note(self, event: ev.Event, now: float, out: list[ev.Action]) -> None:
        match event:
            case ev.Requested(spec):
                self._add(spec, now)
            case ev.Started(call, spec, usage, frozen):
                self._started(call, spec, usage, frozen, now, out)
            case ev.Sample():
                self._sample(event, now)
            case ev.MemoryEvent(call):
                self._ladder.memory_event(self._calls.get(call), event, now)
            case ev.CpuSample(stalled):
                out += self._weights.sample(self._live(), stalled, now)
            case ev.Ended(call):
                self._end(call)
                out += self._weights.ended(call, self._live())
            case ev.TurnStarted(program):
                out += self._ladder.turn_started(program, now)
            case ev.TurnEnded(program):
                self._ladder.turn_ended(program)
            case ev.FrameworkSample(program, usage):
                self._ladder.framework(program, usage)
            case ev.Pressure(resource):
                if resource == "memory":
                    out += self._ladder.reclaim_idle(now)
            case ev.Tick():
                pass

    def _add(self, spec: ev.CallSpec, now: float) -> LiveCall:
        if spec.call in self._calls:
            raise InvalidRequest(f"Tool call {spec.call} is live.", remedy="Use another id.")
        self._numbers += 1
        call = LiveCall(spec, now, self._numbers)
        most = self.config.budgets.most(call)
        call.claim = max(1, min(spec.claim, most))
        call.ceiling = max(call.claim, min(call.ceiling, most))
        call.soft = min(call.soft, call.claim)
        self._calls[spec.call] = call
        return call

    def _started(
        self,
        name: str,
        spec: ev.CallSpec | None,
        usage: int,
        frozen: bool,
        now: float,
        out: list[ev.Action],
    ) -> None:
        call = self._calls.get(name)
        if call is None:
            if spec is None:
                return  # it ended before we heard that it began
            call = self._adopt(replace(spec, call=name), usage, now, out)
        call.state, call.changed = "running", now
        if frozen:
            out.append(ev.Thaw(name))

    def _adopt(self, spec: ev.CallSpec, usage: int, now: float, out: list[ev.Action]) -> LiveCall:
        """A call that runs already, as after a restart: it is counted as it is."""
        call = self._add(spec, now)
        call.claim = min(max(call.claim, usage), self.config.budgets.most(call))
        call.ceiling = max(call.ceiling, call.claim)
        call.usage = call.peak = usage
        call.state = "admitted"
        cut_reservations(self.config, call, [c for c in self._live() if c is not call] + [call])
        self._counts["admitted"] += 1
        out.append(ev.SetWeight(spec.call, WEIGHTS[spec.priority]))  # it may have been cut
        if call.claim != spec.claim:
            out.append(ev.SetMax(spec.call, call.claim))
        return call

    def _sample(self, event: ev.Sample, now: float) -> None:
        for name, usage in event.usage.items():
            call = self._calls.get(name)
            if call is not None and call.live:
                call.sample(usage, now)
        for name, stalled in (event.stalled or {}).items():
            call = self._calls.get(name)
            if call is not None:
                call.stalled = stalled
        if event.total is not None:
            known = sum(c.usage for c in self._live())
            self._overheads.append(max(0, event.total - known))
            del self._overheads[:-OVERHEAD_MEMORY]

    def _end(self, name: str) -> None:
        call = self._calls.pop(name, None)
        if call is not None and call.live:
            self._counts["ended"] += 1
            top_up(self.config, self._live())

    # --- admission --------------------------------------------------------------------------------

    def _expire(self, now: float, out: list[ev.Action]) -> None:
        """End what has outlived its deadline or its patience."""
        for call in list(self._calls.values()):
            late = call.spec.deadline is not None and now >= call.spec.deadline
            if not call.live:
                waited = now - call.requested
                if late or waited >= self.config.refuse_after:
                    del self._calls[call.spec.call]
                    self._counts["refused"] += 1
                    why = "its deadline passed" if late else f"no room came free in {waited:.0f} s"
                    out.append(ev.Refuse(call.spec.call, why))
            elif late and call.state != "killed":
                out += self._ladder.kill(call, "deadline", "its deadline passed", None, now)

    def _admit(self, now: float, out: list[ev.Action]) -> None:
        if not (waiting := self._waiting()):
            return
        waiting = queue_order(self.config, waiting, self._live(), now)
        place = 0
        blocked = ""
        for call in waiting:
            live = self._live()
            why = blocked or obstacle(self.config, call, live, self.overhead)
            if not why:
                self._start(call, live, now, out)
                continue
            place += 1
            if (place, why) != call.told:
                call.told = (place, why)
                out.append(ev.Wait(call.spec.call, place, why))
            if is_aged(self.config, call, now) and not blocked:
                blocked = f"{call.spec.call} has waited longest and goes first"

    def _start(
        self, call: LiveCall, live: list[LiveCall], now: float, out: list[ev.Action]
    ) -> None:
        call.state, call.changed = "admitted", now
        call.waited, call.sampled = now - call.requested, now
        cut_reservations(self.config, call, [*live, call])
        self._counts["admitted"] += 1
        out.append(ev.Admit(call.spec.call, call.reserved, call.borrowed))
        if call.claim != call.spec.claim:
            out.append(ev.SetMax(call.spec.call, call.claim))
