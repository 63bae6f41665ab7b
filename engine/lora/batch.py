"""The adapters of one batch: what they add to each linear's output, rows grouped by adapter.

On every device this is a loop over the adapters of the batch, two or more small products each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from agentrt.engine.lora.adapter import Adapter, SiteName
from agentrt.engine.lora.segments import Group, group_rows

__all__ = ["AdapterBatch"]


@dataclass(frozen=True, slots=True)
class _Rows:
    adapter: Adapter
    rows: slice | torch.Tensor


class AdapterBatch:
    """Which rows of a batch go through which adapter; made for one step."""

    def __init__(self, groups: Sequence[_Rows]) -> None:
        self._groups = groups

    @classmethod
    def of(
        cls, slices: Sequence[tuple[Adapter | None, int]], device: torch.device
    ) -> AdapterBatch | None:
        """Return the adapters of consecutive slices ``(adapter, rows)``; None if there are none."""
        groups = group_rows(slices)
        if not groups:
            return None
        return cls([_Rows(each, _index(group, device)) for each, group in groups.items()])

    def apply(
        self,
        layer: int,
        site: SiteName,
        linear: Callable[[torch.Tensor], torch.Tensor],
        x: torch.Tensor,
    ) -> torch.Tensor:
        """Return ``linear(x)`` with what the adapters add to their rows; ``x [T, in]``."""
        y = linear(x)
        for group in self._groups:
            weights = group.adapter.sites.get((layer, site))
            if weights is None:
                continue
            if isinstance(group.rows, slice):
                weights.delta(x[group.rows], y[group.rows])
            else:
                some = y[group.rows]
                weights.delta(x[group.rows], some)
                y[group.rows] = some
        return y


def _index(group: Group, device: torch.device) -> slice | torch.Tensor:
    """Return how the rows are picked: a view where they are one range, else their numbers."""
    if len(group.ranges) == 1:
        return slice(*group.ranges[0])
    numbers = [torch.arange(start, stop) for start, stop in group.ranges]
    return torch.cat(numbers).to(device)
