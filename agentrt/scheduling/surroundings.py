"""What a policy is told of the engine that it works for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from agentrt.scheduling.policy import PrefillSeconds

__all__ = ["Foresight", "Surroundings"]

DEFAULT_PREFILL_SECONDS_PER_TOKEN = 0.0002


def default_prefill_seconds(tokens: int) -> float:
    """Return seconds to prefill ``tokens`` where nothing was measured."""
    return DEFAULT_PREFILL_SECONDS_PER_TOKEN * tokens


class Foresight(Protocol):
    """What only a simulator can know. Oracles use it; a policy that serves must not."""

    def returns_at(self, owner: str) -> float:
        """Return when a context (``ContextView.owner``) is back; infinity if it never is.

        Of a context whose turn runs or waits: now or earlier.
        """
        ...

    def remaining_seconds(self, program_id: str) -> float:
        """Return how long the rest of a program takes with the engine to itself."""
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a policy may need to know when it is made.

    Args:
        prefill_seconds: what recomputing so many tokens costs on this engine, in seconds.
        reload_seconds: what loading so many tokens from the host tier costs; None: no such tier.
        capacity: tokens that the page pool holds; None: not known.
        tenants: weights of tenants by name; one that is missing has weight 1.
        foresight: the future, in a simulation.
    """

    prefill_seconds: PrefillSeconds = default_prefill_seconds
    reload_seconds: PrefillSeconds | None = None
    capacity: int | None = None
    tenants: Mapping[str, float] = field(default_factory=dict)
    foresight: Foresight | None = None
