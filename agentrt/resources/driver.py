"""The controller's shell: samples the cgroups of live calls, and does what the controller decides.

One thread looks at memory as often as what is free allows (every 4 ms near the limit, every 100 ms
far from it); kernel pressure wakes it at once. Events of calls are handled on the thread that
brings them, under one lock, so that a call that fits starts without a switch of threads.

Should the controller fail, a new one is made that adopts what runs; if that fails as well, all
calls are let go on under the kernel's own limits. Nothing stays frozen for lack of a controller.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeAlias

from agentrt.resources import control_events as ev
from agentrt.resources.cgroup import Control
from agentrt.resources.control_state import CallReport
from agentrt.resources.control_weights import WEIGHTS
from agentrt.resources.controller import Controller, ControllerConfig, ControllerStatistics
from agentrt.resources.slow_looks import notice_blocked, waits_for_cpus
from agentrt.resources.tickets import Progress, Ticket
from agentrt.resources.urgency import urgent

__all__ = ["Driver", "Health"]

log = logging.getLogger(__name__)

FASTEST = 0.004
SLOWEST = 0.1
BANDWIDTH = 2.0 * (1 << 30)
"""Bytes a second that one call may touch at most: how soon what is free could be gone."""
SLOW_LOOK = 0.5
"""Seconds between looks at CPU use and memory counters."""
MOST_RESTARTS = 3
JOIN_SECONDS = 5.0

Health: TypeAlias = Literal["running", "restarted", "given up"]


class Driver:
    """Drives one controller. ``start`` it before the first call, ``close`` it last."""

    def __init__(
        self, config: ControllerConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self.health: Health = "running"
        self._clock = clock
        self._controller = Controller(config)
        self._tickets: dict[str, Ticket] = {}
        self._frameworks: dict[str, Control] = {}
        self._total: Control | None = None
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._stop = False
        self._restarts = 0
        self._slow_due = 0.0
        self._due: float | None = None
        self._free = 0
        self._said: list[tuple[Ticket, Progress]] = []
        self._thread = threading.Thread(target=self._run, name="agentrt-control", daemon=True)
        self._reclaimer = ThreadPoolExecutor(1, "agentrt-reclaim")

    def start(self) -> None:
        """Begin to look after calls."""
        self._thread.start()

    def close(self) -> None:
        """Stop. Whatever is frozen is let go on first. Idempotent, blocking."""
        with self._lock:
            if self._stop:
                return
            self._stop = True
            self._let_all_go()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_SECONDS)
        self._reclaimer.shutdown(cancel_futures=True)

    # --- calls ---

    def request(self, ticket: Ticket) -> None:
        """Ask for a call to be admitted; the ticket tells when it is."""
        with self._lock:
            self._tickets[ticket.call] = ticket
            self._send(ev.Requested(ticket.spec))
        self._speak()

    def attach(self, ticket: Ticket, control: Control) -> None:
        """The admitted call has its cgroup and begins to run."""
        with self._lock:
            ticket.attach(control)
            self._send(ev.Started(ticket.call))
            if self._looks_too_late(ticket):
                self._wake.set()
        self._speak()

    def ended(self, ticket: Ticket) -> CallReport | None:
        """The call is over, or its request withdrawn; return what was done to it."""
        with self._lock:
            report = self._controller.report(ticket.call, self._clock())
            self._tickets.pop(ticket.call, None)
            ticket.detach()
            self._send(ev.Ended(ticket.call))
        self._speak()
        return report

    def frozen_seconds(self, ticket: Ticket) -> float:
        """How long a live call has stood still so far."""
        with self._lock:
            report = self._controller.report(ticket.call, self._clock())
        return report.frozen if report else 0.0

    # --- frameworks and pressure ---

    def budget_group(self, control: Control) -> None:
        """The group that holds all calls: what it uses beyond them is overhead."""
        with self._lock:
            self._total = control

    def framework(self, program: str, control: Control | None) -> None:
        """A program's framework lives in a cgroup of its own; ``None`` when it is gone."""
        with self._lock:
            if control is None:
                self._frameworks.pop(program, None)
            else:
                self._frameworks[program] = control

    def turn(self, program: str, started: bool) -> None:
        """A program's turn began or ended."""
        with self._lock:
            control = self._frameworks.get(program)
            if control is None:
                return
            if started:
                self._send(ev.FrameworkSample(program, control.memory() or 0))
                self._send(ev.TurnStarted(program))
            else:
                self._send(ev.TurnEnded(program))

    def pressure(self, resource: Literal["memory", "cpu", "io"] = "memory") -> None:
        """The kernel reports pressure: look now. Called from a watcher's thread."""
        with self._lock:
            if self._tickets and not self._stop:
                self._sample()
                self._send(ev.Pressure(resource))
        self._speak()

    def statistics(self) -> ControllerStatistics:
        """The controller's figures."""
        with self._lock:
            return self._controller.statistics()

    def check_integrity(self) -> None:
        """Raise ``InternalError`` if the controller's books disagree."""
        with self._lock:
            self._controller.check_integrity()

    def restart(self) -> None:
        """Replace the controller by a new one, which adopts every call as it is now."""
        with self._lock:
            self._controller = Controller(self.config)
            self.health = "restarted"
            for ticket in list(self._tickets.values()):
                if ticket.control is not None:
                    usage, frozen = ticket.memory() or 0, ticket.frozen
                    self._perform_all(ev.Started(ticket.call, ticket.spec, usage, frozen))
                elif not ticket.admitted:
                    self._perform_all(ev.Requested(ticket.spec))
                else:
                    self._perform_all(ev.Started(ticket.call, ticket.spec))

    # --- the thread ---

    def _run(self) -> None:
        with urgent():
            self._look_after_calls()

    def _look_after_calls(self) -> None:
        while not self._stop:
            pause = self._pause()
            self._due = None if pause is None else self._clock() + pause
            self._wake.wait(pause)
            self._wake.clear()
            with self._lock:
                if self._stop or not self._tickets:
                    continue
                self._sample()
            self._speak()

    def _looks_too_late(self, ticket: Ticket) -> bool:
        """Whether a new call could have taken its claim, or all that is free, by the next look.

        Where it would not, the thread is left to sleep: waking it costs a short call more than all
        that is done for it.
        """
        if self._due is None:
            return True
        soon = min(self._free / len(self._tickets), ticket.spec.claim) / (2 * BANDWIDTH)
        return self._due - self._clock() > min(max(soon, FASTEST), SLOWEST)

    def _pause(self) -> float | None:
        """Until the next look: the sooner, the less is free; for ever without calls."""
        with self._lock:
            if not self._tickets:
                return None
            now = self._clock()
            figures = self._controller.statistics()
            due = self._controller.next_deadline(now)
            tightest = self._controller.tightest()
        self._free = free = figures.budget - figures.used - figures.overhead
        running = max(1, figures.running)
        pause = min(max(free / (2 * running * BANDWIDTH), FASTEST), SLOWEST)
        if tightest is not None:
            pause = min(pause, max(tightest / (2 * BANDWIDTH), FASTEST))
        if figures.frozen or figures.waiting:
            pause = min(pause, 4 * FASTEST)
        return pause if due is None else min(pause, max(FASTEST, due - now))

    def _sample(self) -> None:
        now = self._clock()
        usage: dict[str, int] = {}
        for ticket in self._tickets.values():
            if (used := ticket.memory()) is not None:
                usage[ticket.call] = used
        total = None if self._total is None else self._total.memory()
        self._send(ev.Sample(usage, total=total))
        if now >= self._slow_due:
            self._slow_due = now + SLOW_LOOK
            self._said += notice_blocked(self._tickets.values(), SLOW_LOOK)
            if stalled := waits_for_cpus(self._tickets.values()):
                self._send(ev.CpuSample(stalled))

    # --- events and actions ---

    def _send(self, event: ev.Event) -> None:
        """Handle one event; a controller that fails is replaced, a few times."""
        if self.health == "given up":
            return self._without_controller(event)
        try:
            self._perform_all(event)
        except Exception:
            log.exception("the resource controller failed on %r", event)
            self._recover()
        return None

    def _recover(self) -> None:
        self._restarts += 1
        if self._restarts <= MOST_RESTARTS:
            try:
                return self.restart()
            except Exception:
                log.exception("the resource controller cannot be restarted")
        log.error("the resource controller is given up: the kernel's limits stand alone")
        self.health = "given up"
        self._let_all_go()
        return None

    def _without_controller(self, event: ev.Event) -> None:
        if isinstance(event, ev.Requested):
            self._tickets[event.spec.call].admit(event.spec.claim, 0)

    def _let_all_go(self) -> None:
        for ticket in self._tickets.values():
            if ticket.frozen and ticket.control is not None:
                ticket.control.freeze(False)
                ticket.frozen = False
            if ticket.weight is not None and ticket.control is not None:
                usual = WEIGHTS[ticket.spec.priority]
                ticket.control.set_weight(usual)
                ticket.on_weight(usual)
            if not ticket.admitted:
                ticket.admit(ticket.spec.claim, 0)

    def _perform_all(self, event: ev.Event) -> None:
        for action in self._controller.handle(event, self._clock()):
            self._perform(action)

    def _perform(self, action: ev.Action) -> None:
        if isinstance(action, ev.Reclaim):
            self._reclaim(action)
            return
        ticket = self._tickets.get(action.call)
        if ticket is None:
            return
        match action:
            case ev.Admit(_, reserved, borrowed):
                ticket.admit(reserved, borrowed)
            case ev.Wait(_, place, why):
                ticket.place, ticket.why = place, why
            case ev.Refuse(_, why):
                ticket.refuse(why)
            case ev.Freeze(_, _, winner):
                ticket.winner = ticket.called(self._tickets.get(winner or "")) or ticket.winner
                self._freeze(ticket, True)
            case ev.Thaw():
                self._freeze(ticket, False)
            case ev.Kill():
                ticket.kill(action, self._tickets.get(action.winner or ""))
                self._said.append((ticket, "killed"))
            case _:
                self._limit(ticket, action)

    def _freeze(self, ticket: Ticket, stop: bool) -> None:
        if ticket.control is None or ticket.frozen == stop:
            return
        if said := ticket.control.freeze(stop):
            log.warning("%s: %s", ticket.call, said)
            return
        ticket.frozen = stop
        self._said.append((ticket, "frozen" if stop else "running"))

    def _limit(self, ticket: Ticket, action: ev.Action) -> None:
        control = ticket.control
        if control is None:
            return
        if isinstance(action, ev.SetMax) and ticket.spec.enforced:
            control.set_high(None)
            said = control.set_max(action.bytes)
            if not said and ticket.headroom:
                control.set_high(max(1, action.bytes - ticket.headroom))
            ticket.limit = action.bytes
        elif isinstance(action, ev.SetHigh):
            said = control.set_high(action.bytes)
            if action.bytes is not None and not said:
                self._said.append((ticket, "throttled"))
        elif isinstance(action, ev.SetWeight):
            said = control.set_weight(action.weight)
            ticket.weight = action.weight
            ticket.on_weight(action.weight)
        else:
            return
        if said:
            log.debug("%s: %s", ticket.call, said)

    def _reclaim(self, action: ev.Reclaim) -> None:
        control = self._frameworks.get(action.program)
        if control is None or self._stop:
            return
        with contextlib.suppress(RuntimeError):  # closing
            self._reclaimer.submit(control.reclaim, action.bytes)

    def _speak(self) -> None:
        """Report progress, outside the lock: listeners may call us."""
        with self._lock:
            said, self._said = self._said, []
        for ticket, progress in said:
            try:
                ticket.on_progress(progress)
            except Exception:
                log.exception("a listener failed on %s of %s", progress, ticket.call)
