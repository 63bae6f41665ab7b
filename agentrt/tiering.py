"""The tiers behind the page pool, as a runtime wires them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import psutil

from agentrt.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from agentrt.engine.tiers.host import HostTier

__all__ = ["host_tier"]


def host_tier(pool: Sequence[torch.Tensor], size: int) -> HostTier | None:
    """Return a host tier of ``size`` bytes for the pages of ``pool``; None for size 0.

    Raises:
        ConfigError: it is smaller than a page, or does not fit the free memory.
    """
    from agentrt.engine.tiers.host import HostTier, page_bytes

    if size == 0:
        return None
    page, free = page_bytes(pool), psutil.virtual_memory().available
    if not page <= size <= free:
        raise ConfigError(
            f"A host tier of {size:,} bytes cannot be had: a page takes {page:,}, and {free:,} "
            "are free.",
            remedy="Give --host-kv a size between the two, or leave it out.",
        )
    return HostTier(pool, size // page)
