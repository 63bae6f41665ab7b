"""Core: which models leave device memory to make room for another. No torch, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentrt.errors import InternalError

__all__ = ["Standing", "make_room"]


@dataclass(frozen=True, slots=True)
class Standing:
    """A model that is loaded: the bytes it takes, whether it has turns, when it was last used."""

    name: str
    bytes: int
    busy: bool
    used: int
    """A number that grows with every use of any model."""


def make_room(needed: int, loaded: Sequence[Standing], capacity: int) -> list[str]:
    """Return the models to put out so that ``needed`` more bytes fit ``capacity``.

    Idle ones go before those with turns, which are to end first; of these the least recently used.
    None goes that need not: the last chosen ones may have made an earlier choice superfluous.

    Raises:
        InternalError: it does not fit even alone; the plan has refused such models.
    """
    if needed > capacity:
        raise InternalError(f"A model of {needed:,} bytes was planned into {capacity:,}.")
    free = capacity - sum(model.bytes for model in loaded)
    chosen: list[Standing] = []
    for model in sorted(loaded, key=lambda one: (one.busy, one.used)):
        if free >= needed:
            break
        chosen.append(model)
        free += model.bytes
    for model in list(chosen):
        if free - model.bytes >= needed:
            chosen.remove(model)
            free -= model.bytes
    return [model.name for model in chosen]
