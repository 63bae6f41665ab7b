"""The tiers behind the page pool, and what they and prefill cost, as a runtime wires them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrt.errors import ConfigError
from agentrt.resources.headroom import memory_headroom
from agentrt.scheduling.cost import OnlinePrefillCost
from agentrt.scheduling.curves import PrefillCurve, ReloadCurve

if TYPE_CHECKING:
    import torch

    from agentrt.engine.attention.base import Attention
    from agentrt.engine.model.base import Model
    from agentrt.engine.tiers.archive import Archive
    from agentrt.engine.tiers.host import HostTier
    from agentrt.runtime import RuntimeConfig

__all__ = ["Costs", "host_tier", "make_tier", "measured_costs", "measured_points"]

BUDGET, PAGE = 512, 16
"""Tokens of a step and of a page where nothing else is said: the runtime's defaults."""
SMALLEST = 64
"""Tokens of a pool that is worth measuring."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What scheduling weighs: prefill, corrected by the steps that are run, and reload."""

    prefill: OnlinePrefillCost
    reload: ReloadCurve | None


def measured_costs(
    model: Model,
    attention: Attention,
    tier: HostTier | None,
    chunk: int,
    *,
    measure: bool,
) -> Costs:
    """Return costs measured on this machine, now or earlier; it may take a few seconds.

    Not to ``measure``, or a tiny pool, starts from a guess for prefill, and takes reload for free.
    """
    if not measure or attention.num_pages * attention.page_size < SMALLEST:
        return Costs(OnlinePrefillCost(), None if tier is None else ReloadCurve(0.0, 0.0))
    from agentrt.engine import measure as measuring
    from agentrt.engine.model.make import cache_dir

    key = measuring.machine_key(model, attention, attention.page_tensors, chunk)
    points = measuring.measured(
        cache_dir() / "costs" / f"{key}.json",
        lambda: measuring.measure(model, attention, tier, chunk=chunk),
        reload=tier is not None and tier.pages > 1,
    )
    prefill = OnlinePrefillCost(curve=PrefillCurve.of(points.prefill, chunk))
    if tier is None:
        return Costs(prefill, None)
    return Costs(prefill, ReloadCurve.of(points.reload) if points.reload else ReloadCurve(0.0, 0.0))


def make_tier(
    config: RuntimeConfig, directory: Path, model: Model, attention: Callable[[], Attention]
) -> HostTier | None:
    """Return the host tier that ``config`` asks for, with its files; None where it asks for none.

    Args:
        config: the runtime's settings.
        directory: the model's files.
        model: the model.
        attention: returns what owns the pages; asked again after a restart of the engine.

    Raises:
        ConfigError: sizes that cannot work, a directory that cannot be used, or files without host
            memory to write them from.
    """
    size, pool = config.host_kv_bytes, attention().page_tensors
    if size == 0 and config.kv_files is not None:
        raise ConfigError(
            "KV is to be kept in files, but there is no host tier.",
            remedy="Give --host-kv a size: files are written from host memory and read into it.",
        )
    if size == 0:
        return None
    settings = f"{model.dtype} {config.kv_dtype} {config.page_size}"
    archive = _archive(config, directory, pool, settings)
    return host_tier(lambda: attention().page_tensors, size, archive)


def _archive(
    config: RuntimeConfig, directory: Path, pool: Sequence[torch.Tensor], settings: str
) -> Archive | None:
    """Return the files, in a folder of this model and these settings.

    Raises:
        ConfigError: the directory cannot be used, or the size holds no page.
    """
    from agentrt.engine.tiers.archive import Archive, weights_fingerprint
    from agentrt.engine.tiers.files import FileStore
    from agentrt.engine.tiers.host import page_bytes

    if config.kv_files is None:
        return None
    fingerprint = weights_fingerprint(directory, settings)
    place = Path(config.kv_files) / fingerprint.hex()[:16]
    return Archive(FileStore(place, config.kv_files_bytes, page_bytes(pool)), fingerprint)


def host_tier(
    pool: Callable[[], Sequence[torch.Tensor]], size: int, archive: Archive | None = None
) -> HostTier:
    """Return a host tier of ``size`` bytes for the pages of ``pool``.

    Raises:
        ConfigError: it is smaller than a page, or does not fit the free memory.
    """
    from agentrt.engine.tiers.host import HostTier, page_bytes

    page, free = page_bytes(pool()), memory_headroom().bytes
    if not page <= size <= free:
        raise ConfigError(
            f"A host tier of {size:,} bytes cannot be had: a page takes {page:,}, and {free:,} "
            "are free.",
            remedy="Give --host-kv a size between the two, or leave it out.",
        )
    return HostTier(pool(), size // page, renew=pool, archive=archive)


def measured_points(directory: Path | None, dtype: str, pool_tokens: int) -> dict[str, Any]:
    """Return measured points of a model on the CPU, as the content of a points file.

    Raises:
        ConfigError, ModelError: the dtype or the model directory is wrong.
    """
    import torch

    from agentrt.engine.attention.torch_paged import TorchPagedAttention
    from agentrt.engine.measure import measure, measure_decode
    from agentrt.engine.model.make import ensure_default_model
    from agentrt.engine.model.weights import load_model
    from agentrt.engine.tiers.host import page_bytes

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise ConfigError(f"There is no dtype {dtype!r}.", remedy=f"Use one of {sorted(known)}.")
    model = load_model(directory or ensure_default_model(), dtype=known[dtype])
    pages = pool_tokens // PAGE
    attention = TorchPagedAttention(model.config, pages, PAGE, model.dtype, model.device)
    tier = host_tier(lambda: attention.page_tensors, pages * page_bytes(attention.page_tensors))
    points = measure(model, attention, tier, chunk=BUDGET).to_json()
    return points | {
        "decode": measure_decode(model, attention),
        "token_budget": BUDGET,
        "kv_token_bytes": page_bytes(attention.page_tensors) // PAGE,
        "reserve_output": False,
    }
