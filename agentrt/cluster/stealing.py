"""Work stealing: which waiting session an idle worker should take, if it is worth its migration."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from agentrt.cluster.placement import StealRule
from agentrt.cluster.state import Steal, TurnState, WorkerState

__all__ = ["propose"]


def propose(
    rule: StealRule,
    workers: Sequence[WorkerState],
    now: float,
    move_seconds: Callable[[int], float],
    source: random.Random,
) -> list[Steal]:
    """Return at most one steal a thief; no turn is proposed twice.

    A thief has nothing waiting, and is idle for ``rule.idle_seconds`` or loaded ``rule.ratio``
    times less than its victim. The ratio holds for idle thieves too: a session must not go to and
    fro between two workers that are alike.
    """
    offers: dict[WorkerState, TurnState] = {}
    for worker in workers:
        turn = _oldest(worker) if worker.waiting else None
        if turn is not None and (
            not rule.patient or now - turn.since >= move_seconds(turn.session.tokens)
        ):
            offers[worker] = turn
    steals: list[Steal] = []
    for thief in workers if offers else ():
        if not _hungry(rule, thief, now):
            continue
        victims = [
            worker
            for worker in offers
            if worker is not thief and worker.load >= rule.ratio * thief.load and worker.live > 1
        ]
        if victims:
            victim = source.choice(victims)
            turn = offers.pop(victim)
            steals.append(_steal(turn, victim, thief))
    return steals


def _hungry(rule: StealRule, thief: WorkerState, now: float) -> bool:
    if thief.waiting:
        return False
    return thief.live > 0 or now - thief.idle_since >= rule.idle_seconds


def _oldest(worker: WorkerState) -> TurnState | None:
    """Return the turn that waits longest there and whose session has no other live turn."""
    for turn in worker.waiting.values():
        if len(turn.session.live) == 1:
            return turn
    return None


def _steal(turn: TurnState, victim: WorkerState, thief: WorkerState) -> Steal:
    session = turn.session
    return Steal(
        turn.ask.turn_id,
        session.program_id,
        victim.name,
        thief.name,
        session.tokens,
        session.version,
    )
