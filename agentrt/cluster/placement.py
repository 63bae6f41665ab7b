"""What a placement is: the choice of a worker for one turn, from read-only views of the cluster.

A new one is one file with a factory, entered in :mod:`agentrt.cluster.registry`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["ClusterView", "Placement", "PlacementRule", "StealRule", "TurnAsk", "WorkerView"]


@dataclass(frozen=True, slots=True)
class TurnAsk:
    """A turn that wants a worker.

    Args:
        turn_id: names the turn until it has ended.
        program_id: the session: its turns share KV.
        prompt_tokens: length of the whole prompt.
        output_tokens: most tokens that it will put out.
        keys: names of the prompt's leading pieces of ``key_tokens`` tokens each, shared by whoever
            begins with the same tokens; empty where nothing is shared between programs.
        key_tokens: tokens of one such piece.
    """

    turn_id: str
    program_id: str
    prompt_tokens: int
    output_tokens: int
    keys: tuple[Hashable, ...] = ()
    key_tokens: int = 0

    @property
    def demand(self) -> int:
        """KV in tokens that the turn needs at its end."""
        return self.prompt_tokens + self.output_tokens


class WorkerView(Protocol):
    """What a placement may know of a worker."""

    @property
    def name(self) -> str: ...
    @property
    def live(self) -> int:
        """Turns assigned to it that have not ended."""
        ...

    @property
    def pending(self) -> int:
        """Those of them that have not started."""
        ...

    @property
    def load(self) -> float:
        """Demand of its live turns over its KV capacity, or of its seats; above 1 they queue."""
        ...

    @property
    def pressure(self) -> float:
        """Working set over KV capacity: the latest state of every session at home there."""
        ...

    @property
    def uncomputed(self) -> int:
        """Prompt tokens that its pending turns have to prefill."""
        ...


class ClusterView(Protocol):
    """What a placement may know of the cluster."""

    def accepting(self) -> Sequence[WorkerView]:
        """Return the workers that take new turns, in order of joining: never empty."""
        ...

    def worker(self, name: str) -> WorkerView | None:
        """Return a worker that takes new turns, or None."""
        ...

    def cached(self, name: str, ask: TurnAsk) -> int:
        """Return the leading tokens of ``ask``'s prompt that a worker is thought to hold."""
        ...


class PlacementRule(Protocol):
    """Chooses a worker for one turn; may remember what it chose."""

    def __call__(self, ask: TurnAsk, home: str | None, cluster: ClusterView) -> str:
        """Return the name of an accepting worker; ``home`` is where the session's KV lies."""
        ...


@dataclass(frozen=True, slots=True)
class StealRule:
    """When an idle worker takes a waiting session from a loaded one.

    Source: SAGA, arXiv 2605.00528 section 5 (session affinity and stealing): idle for 100 ms or a
    load ratio of 2; the oldest pending session of a victim drawn at random; affinity moves along.
    ``patient`` adds a guard of ours: a session moves only once it has waited as long as its
    migration takes, so that at most twice the better choice is paid (rent or buy).
    """

    idle_seconds: float = 0.1
    ratio: float = 2.0
    patient: bool = True


@dataclass(frozen=True, slots=True)
class Placement:
    """A named composition of a rule and, if sessions may be stolen, when.

    With ``migrates`` the KV of a session that moves is fetched from where it was; without, it is
    prefilled again.
    """

    name: str
    rule: PlacementRule
    steal: StealRule | None = None
    migrates: bool = False
