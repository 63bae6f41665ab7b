"""The router's invariants, checked by counting everything again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentrt.cluster.state import Session, TurnState, WorkerState
from agentrt.errors import InternalError

__all__ = ["check"]


def check(
    workers: Sequence[WorkerState],
    sessions: Mapping[str, Session],
    turns: Mapping[str, TurnState],
) -> None:
    """Raise ``InternalError`` if running sums and what they sum up disagree."""
    for worker in workers:
        own = [turn for turn in turns.values() if turn.worker is worker]
        counted = (
            len(own),
            sum(turn.ask.demand for turn in own),
            sum(turn.fresh for turn in own if turn.pending),
            sum(session.weight for session in sessions.values() if session.home is worker),
        )
        kept = (worker.live, worker.live_tokens, worker.uncomputed, worker.resident)
        if counted != kept:
            raise InternalError(f"Worker {worker.name} keeps {kept}; counting gives {counted}.")
        waiting = {turn.ask.turn_id for turn in own if turn.pending}
        if waiting != worker.waiting.keys():
            raise InternalError(f"Worker {worker.name} lists turns that do not wait there.")
    known = set(map(id, workers))
    for turn in turns.values():
        if id(turn.worker) not in known or turn.session.live.get(turn.ask.turn_id) is not turn:
            raise InternalError(f"Turn {turn.ask.turn_id} is on no worker, or of no session.")
        if turn.session.home is not turn.worker:
            raise InternalError(f"Turn {turn.ask.turn_id} is not at its session's home.")
    if sum(len(session.live) for session in sessions.values()) != len(turns):
        raise InternalError("Sessions list turns that are not placed.")
