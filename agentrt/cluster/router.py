"""The router: a pure state machine that gives every turn a worker.

    submit(ask, now)      -> Assignment      1. the placement chooses; the session moves with it
    started(turn, now)                       2. from now on nobody may steal it
    finished(turn, …)                        3. what its session holds at home
    rebalance(now)        -> steals          4. idle workers ask for waiting sessions
    accept_steal(steal)   -> Assignment      5. or None: it is stale, nothing changes
    add / drain / remove_worker              6. only a lost worker's sessions are torn away

A session's live turns stay on one worker, since they share its KV.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from agentrt.cluster.integrity import check
from agentrt.cluster.members import Members
from agentrt.cluster.placement import Placement, TurnAsk
from agentrt.cluster.shared import SharedPrefixes
from agentrt.cluster.state import (
    Assignment,
    RouterStatistics,
    Session,
    Steal,
    TurnState,
    WorkerState,
)
from agentrt.cluster.stealing import propose
from agentrt.errors import InternalError, InvalidRequest

__all__ = ["Router"]


class Router:
    """Places turns. Not thread-safe: one driver owns it.

    Args:
        placement: how a worker is chosen, and whether sessions are stolen.
        move_seconds: what moving so many tokens of KV to another worker takes.
        seed: draws the victims of steals.
    """

    def __init__(
        self,
        placement: Placement,
        *,
        move_seconds: Callable[[int], float] = lambda tokens: 0.0,
        seed: int = 0,
    ) -> None:
        self.placement = placement
        self._members = Members()
        self._sessions: dict[str, Session] = {}
        self._turns: dict[str, TurnState] = {}
        self._shared = SharedPrefixes()
        self._move_seconds = move_seconds
        self._random = random.Random(seed)
        self.pending = 0
        """How many turns have not started."""
        self._counts: Counter[str] = Counter()

    # -- what placements see -------------------------------------------------------------------

    def accepting(self) -> list[WorkerState]:
        """Return the workers that take new turns. See ``ClusterView``."""
        return self._members.accepting()

    def worker(self, name: str) -> WorkerState | None:
        """Return a worker that takes new turns, or None."""
        return self._members.find_accepting(name)

    def cached(self, name: str, ask: TurnAsk) -> int:
        """Return the leading tokens of ``ask``'s prompt that a worker is thought to hold."""
        found = 0
        if ask.keys:
            found = self._shared.count(name, ask.keys) * ask.key_tokens
        session = self._sessions.get(ask.program_id)
        if session is not None and session.home is not None and session.home.name == name:
            found = max(found, session.tokens)
        return min(found, ask.prompt_tokens)

    # -- turns ---------------------------------------------------------------------------------

    def submit(self, ask: TurnAsk, now: float) -> Assignment:
        """Place a turn.

        Raises:
            InvalidRequest: the turn id is in use.
            BackendUnavailable: no worker takes turns.
        """
        if ask.turn_id in self._turns:
            raise InvalidRequest(
                f"Turn {ask.turn_id} is already placed.", remedy="Use a new turn id."
            )
        session = self._sessions.get(ask.program_id)
        if session is None:
            session = Session(ask.program_id)
        worker = self._choose(ask, session)
        self._sessions[ask.program_id] = session
        self._counts["placed"] += 1
        return self._assign(ask, session, worker, now)

    def _choose(self, ask: TurnAsk, session: Session) -> WorkerState:
        accepting = self._members.accepting()
        home = session.home
        if session.live and home is not None:
            return home
        if len(accepting) == 1:
            return accepting[0]
        name = self.placement.rule(ask, home.name if home is not None else None, self)
        chosen = self._members.find_accepting(name)
        if chosen is None:
            raise InternalError(f"{self.placement.name} chose {name!r}, which takes no turns.")
        return chosen

    def _assign(
        self, ask: TurnAsk, session: Session, worker: WorkerState, now: float
    ) -> Assignment:
        source, tokens = self._move_home(session, worker)
        fresh = ask.prompt_tokens - self.cached(worker.name, ask)
        turn = TurnState(ask, session, worker, now, max(fresh, 0))
        self._turns[ask.turn_id] = session.live[ask.turn_id] = worker.waiting[ask.turn_id] = turn
        self.pending += 1
        worker.live += 1
        worker.live_tokens += ask.demand
        worker.uncomputed += turn.fresh
        session.version += 1
        self._weigh(session)
        if ask.keys:
            self._shared.add(worker.name, ask.keys, worker.capacity // max(ask.key_tokens, 1))
        return Assignment(ask.turn_id, ask.program_id, worker.name, source, tokens)

    def _move_home(self, session: Session, worker: WorkerState) -> tuple[str | None, int]:
        """Settle a session where its turn goes; return where KV is to be fetched, and how much."""
        source = session.home
        if source is worker:
            self._counts["hits"] += 1
            return None, 0
        self._settle(session, worker)
        if source is None:
            return None, 0
        self._counts["moves"] += 1
        if not self.placement.migrates:
            session.tokens = 0
        self._counts["moved_tokens"] += session.tokens
        return (source.name, session.tokens) if session.tokens else (None, 0)

    def started(self, turn_id: str, now: float) -> None:
        """Note that a turn left its worker's queue; unknown turns are ignored."""
        turn = self._turns.get(turn_id)
        if turn is not None and turn.pending:
            turn.pending = False
            turn.session.version += 1
            self.pending -= 1
            del turn.worker.waiting[turn_id]
            turn.worker.uncomputed -= turn.fresh

    def finished(self, turn_id: str, tokens: int, now: float) -> None:
        """Note that a turn ended and that its session now has ``tokens`` tokens of state."""
        turn = self._turns.get(turn_id)
        if turn is None:
            return
        turn.session.tokens = tokens
        self._drop(turn, now)

    def _drop(self, turn: TurnState, now: float) -> None:
        """Take a turn off its worker."""
        self.started(turn.ask.turn_id, now)
        del self._turns[turn.ask.turn_id], turn.session.live[turn.ask.turn_id]
        worker = turn.worker
        worker.live -= 1
        worker.live_tokens -= turn.ask.demand
        if worker.live == 0:
            worker.idle_since = now
        self._weigh(turn.session)

    def end_program(self, program_id: str, now: float) -> None:
        """Forget a session and its live turns."""
        session = self._sessions.pop(program_id, None)
        if session is None:
            return
        for turn in list(session.live.values()):
            self._drop(turn, now)
        self._settle(session, None)

    def _settle(self, session: Session, home: WorkerState | None) -> None:
        """Give a session another home; what it weighs goes along."""
        if session.home is not None:
            session.home.resident -= session.weight
        session.home, session.weight = home, 0

    def _weigh(self, session: Session) -> None:
        if session.home is not None:
            weight = session.wanted()
            session.home.resident += weight - session.weight
            session.weight = weight

    # -- stealing ------------------------------------------------------------------------------

    def rebalance(self, now: float) -> list[Steal]:
        """Return steals worth trying now, at most one for each idle worker. Changes nothing."""
        rule = self.placement.steal
        if rule is None:
            return []
        return propose(rule, self._members.accepting(), now, self._move_seconds, self._random)

    def accept_steal(self, steal: Steal, now: float) -> Assignment | None:
        """Move a session as proposed; None, and nothing changes, if the proposal is stale."""
        turn = self._turns.get(steal.turn_id)
        target = self._members.find_accepting(steal.target)
        if turn is None or target is None or not turn.pending:
            self._counts["stale"] += 1
            return None
        if turn.session.version != steal.version or turn.worker.name != steal.source:
            self._counts["stale"] += 1
            return None
        self._counts["steals"] += 1
        self._drop(turn, now)
        return self._assign(turn.ask, turn.session, target, turn.since)

    # -- workers -------------------------------------------------------------------------------

    def add_worker(self, name: str, *, capacity: int, seats: int, now: float) -> None:
        """Let a worker join: no session moves to it but by placement and stealing.

        Raises:
            ConfigError: it is there already, or its sizes are not above 0.
        """
        self._members.add(name, capacity, seats, now)

    def drain_worker(self, name: str, now: float) -> list[Assignment]:
        """Have a worker take no new turns; return where its waiting ones go instead.

        Turns that run there end there, and so do waiting ones whose siblings run there: they share
        KV. Its sessions move when they next come.

        Raises:
            BackendUnavailable: it is the last one that takes turns.
        """
        self._members.require_another(name)
        worker = self._members.drain(name)
        alone = [turn for turn in worker.waiting.values() if len(turn.session.live) == 1]
        return [self._replace(turn, now) for turn in alone]

    def _replace(self, turn: TurnState, now: float) -> Assignment:
        """Place a turn anew; it keeps its age."""
        self._drop(turn, now)
        target = self._choose(turn.ask, turn.session)
        return self._assign(turn.ask, turn.session, target, turn.since)

    def remove_worker(self, name: str, now: float) -> list[Assignment]:
        """Forget a worker that is gone with all its KV; return where its turns go instead.

        Raises:
            BackendUnavailable: it was the last one and has turns; end their programs first.
        """
        if self._members.get(name).live:
            self._members.require_another(name)
        worker = self._members.remove(name)
        self._shared.forget(name)
        lost = [turn for turn in self._turns.values() if turn.worker is worker]
        for turn in lost:
            self._drop(turn, now)
        for session in self._sessions.values():
            if session.home is worker:
                self._settle(session, None)
                session.tokens, session.version = 0, session.version + 1
        self._counts["lost"] += len(lost)
        return [
            self._assign(turn.ask, turn.session, self._choose(turn.ask, turn.session), turn.since)
            for turn in lost
        ]

    # -- reports -------------------------------------------------------------------------------

    def home(self, program_id: str) -> str | None:
        """Return where a session's KV lies."""
        session = self._sessions.get(program_id)
        return session.home.name if session is not None and session.home is not None else None

    def statistics(self) -> RouterStatistics:
        """Return gauges and counters."""
        counts = self._counts
        return RouterStatistics(
            workers=len(self._members),
            draining=sum(worker.draining for worker in self._members),
            sessions=len(self._sessions),
            live=len(self._turns),
            pending=self.pending,
            placed=counts["placed"],
            hits=counts["hits"],
            moves=counts["moves"],
            moved_tokens=counts["moved_tokens"],
            steals=counts["steals"],
            stale=counts["stale"],
            lost=counts["lost"],
        )

    def check_integrity(self) -> None:
        """Raise ``InternalError`` if workers, sessions and turns disagree."""
        check(list(self._members), self._sessions, self._turns)
        waiting = sum(worker.pending for worker in self._members)
        if waiting != self.pending:
            raise InternalError(f"{self.pending} turns are counted as waiting; {waiting} wait.")
