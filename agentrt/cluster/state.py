"""What the router remembers of workers, sessions and turns, and what it tells its driver."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentrt.cluster.placement import TurnAsk

__all__ = ["Assignment", "RouterStatistics", "Session", "Steal", "TurnState", "WorkerState"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a turn goes. With a ``source`` the session's KV, ``tokens`` of it, is to move first."""

    turn_id: str
    program_id: str
    worker: str
    source: str | None = None
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Steal:
    """A proposal to move a waiting session; worthless once ``version`` is no longer the session's.

    The driver takes the turn back from ``source`` and then asks ``Router.accept_steal``.
    """

    turn_id: str
    program_id: str
    source: str
    target: str
    tokens: int
    version: int


@dataclass(slots=True, eq=False)
class TurnState:
    """A turn from its assignment to its end. ``fresh`` is the prompt beyond what was cached."""

    ask: TurnAsk
    session: Session
    worker: WorkerState
    since: float
    fresh: int
    pending: bool = True


@dataclass(slots=True, eq=False)
class Session:
    """A program as the router sees it. ``tokens`` is the length of its state at ``home``."""

    program_id: str
    home: WorkerState | None = None
    tokens: int = 0
    version: int = 0
    live: dict[str, TurnState] = field(default_factory=dict)
    weight: int = 0
    """What it counts for in its home's working set."""

    def wanted(self) -> int:
        """Return KV in tokens that its state needs, or will need when its live turns end."""
        return max(self.tokens, sum(turn.ask.demand for turn in self.live.values()))


@dataclass(slots=True, eq=False)
class WorkerState:
    """A worker: ``capacity`` in tokens of KV, ``seats`` in turns that run at once."""

    name: str
    capacity: int
    seats: int
    draining: bool = False
    live: int = 0
    live_tokens: int = 0
    resident: int = 0
    uncomputed: int = 0
    idle_since: float = 0.0
    waiting: dict[str, TurnState] = field(default_factory=dict)
    """Turns that have not started, in order of assignment."""

    @property
    def pending(self) -> int:
        return len(self.waiting)

    @property
    def load(self) -> float:
        return max(self.live_tokens / self.capacity, self.live / self.seats)

    @property
    def pressure(self) -> float:
        return self.resident / self.capacity


@dataclass(frozen=True, slots=True)
class RouterStatistics:
    """Gauges (workers, sessions, live, pending) and counters since the start.

    ``hits`` are turns placed at their session's home, ``moves`` those placed elsewhere while it had
    one; ``steals`` were carried out, ``stale`` rejected because the session had moved or begun.
    """

    workers: int
    draining: int
    sessions: int
    live: int
    pending: int
    placed: int
    hits: int
    moves: int
    moved_tokens: int
    steals: int
    stale: int
    lost: int
