"""Measures what prefill and reload cost on this machine: once, for a model, and remembers it.

It runs on the engine's own pages before anything is served; what it leaves in them is overwritten.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from agentrt.engine.attention.base import Attention, BatchLayout, SliceLayout
from agentrt.engine.model.base import Model
from agentrt.engine.tiers.host import HostTier
from agentrt.scheduling.curves import PrefillPoint, ReloadPoint
from agentrt.scheduling.plan import Transfer

__all__ = ["CostPoints", "machine_key", "measure", "measure_decode", "measured"]

_logger = logging.getLogger(__name__)

FORMAT = 1
SHORT = 16
DEEP = 2048
"""Tokens cached before the deep step, where the pool and the model have room."""
REPEATS = 3
"""Each point is the least of so many: what disturbs only adds."""
PATIENCE = 4.0
"""Seconds after which no point is measured again."""
RELOAD_PAGES = 256


@dataclass(frozen=True, slots=True)
class CostPoints:
    """Measured points, in the form of ``agentrt cost fit``: ``prefill`` and ``reload`` rows.

    ``reload`` is empty without a host tier.
    """

    prefill: tuple[PrefillPoint, ...]
    reload: tuple[ReloadPoint, ...]
    source: str

    def to_json(self) -> dict[str, Any]:
        """Return the content of a points file."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CostPoints:
        """Return what ``to_json`` gave.

        Raises:
            ValueError, KeyError, TypeError: it did not give this.
        """
        prefill = tuple((int(n), int(cached), float(s)) for n, cached, s in data["prefill"])
        reload = tuple((int(n), float(s)) for n, s in data["reload"])
        if not prefill or any(point[-1] <= 0 for point in (*prefill, *reload)):
            raise ValueError("points without a time above 0")
        return cls(prefill, reload, str(data["source"]))


def measure(
    model: Model,
    attention: Attention,
    tier: HostTier | None,
    *,
    chunk: int,
    clock: Callable[[], float] = time.perf_counter,
) -> CostPoints:
    """Time steps of the model and copies of the tier; takes a few seconds at most on most machines.

    Args:
        model: the model.
        attention: its pages; none may be in use.
        tier: copies of which are timed; its thread must not have been started.
        chunk: tokens of a step.
        clock: seconds.
    """
    room = min(attention.num_pages * attention.page_size, model.config.max_positions)
    long = max(min(chunk, room // 2), 2)
    short = min(SHORT, long - 1)
    deep = max(min(DEEP, room - long), 1)
    until = clock() + PATIENCE

    def step_seconds(count: int, cached: int) -> float:
        return _best(lambda: _step(model, attention, count, cached), clock, until)

    # The first step also builds what later ones find: threads, buffers.
    _step(model, attention, short, 0)
    sizes = ((short, 0), (long, 0), (long, deep))
    prefill = tuple((count, cached, step_seconds(count, cached)) for count, cached in sizes)
    reload = () if tier is None else _reload_points(tier, attention, clock, until)
    return CostPoints(prefill, reload, f"measured: {_machine(model)}")


def _reload_points(
    tier: HostTier, attention: Attention, clock: Callable[[], float], until: float
) -> tuple[ReloadPoint, ...]:
    """Time a load of one page and one of many; none where there is room for one only."""
    most = min(RELOAD_PAGES, attention.num_pages, tier.pages)

    def load_seconds(pages: int) -> float:
        return _best(lambda: _load(tier, pages), clock, until)

    sizes = (1, most) if most > 1 else ()
    return tuple((pages * attention.page_size, load_seconds(pages)) for pages in sizes)


def measure_decode(
    model: Model,
    attention: Attention,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[tuple[int, int, float], ...]:
    """Time steps that only decode: ``(sequences, their context together, seconds)``.

    Sequences share their pages: what is read is the same, wherever it lies.
    """
    until = clock() + PATIENCE
    room = min(attention.num_pages * attention.page_size, model.config.max_positions)
    contexts = sorted({max(room // 16, 1), room // 2})
    sizes = [(count, context) for count in (1, 8) for context in contexts]
    _decode(model, attention, 1, contexts[0])
    return tuple(
        (
            count,
            count * context,
            _best(partial(_decode, model, attention, count, context), clock, until),
        )
        for count, context in sizes
    )


def _best(run: Callable[[], None], clock: Callable[[], float], until: float) -> float:
    times: list[float] = []
    while not times or (len(times) < REPEATS and clock() < until):
        started = clock()
        run()
        times.append(clock() - started)
    return max(min(times), 1e-9)


def _step(model: Model, attention: Attention, count: int, cached: int) -> None:
    """Compute ``count`` tokens behind ``cached`` ones, on the first pages."""
    end = cached + count
    pages = range(-(-end // attention.page_size))
    step = attention.plan(BatchLayout((SliceLayout(cached, count, pages),)))
    device = model.device
    tokens = torch.arange(count, device=device) % model.config.vocab_size
    positions = torch.arange(cached, end, device=device)
    logits = model.forward(tokens, positions, step, torch.tensor([count - 1], device=device))
    logits.sum().item()  # waits for a device that runs late


def _decode(model: Model, attention: Attention, count: int, context: int) -> None:
    """Compute the next token of ``count`` sequences of ``context`` tokens each."""
    pages = range(-(-context // attention.page_size))
    step = attention.plan(BatchLayout((SliceLayout(context - 1, 1, pages),) * count))
    device = model.device
    tokens = torch.arange(count, device=device) % model.config.vocab_size
    positions = torch.full((count,), context - 1, device=device)
    model.forward(tokens, positions, step, torch.arange(count, device=device)).sum().item()


def _load(tier: HostTier, pages: int) -> None:
    tier.copy_now(Transfer(0, "load", tuple(range(pages)), tuple(range(pages))))


# --- remembering -----------------------------------------------------------------------------


def machine_key(model: Model, attention: Attention, kv: Sequence[torch.Tensor], chunk: int) -> str:
    """Return a name for all that the points depend on: machine, model's shape, dtypes, settings."""
    told = {
        "format": FORMAT,
        "machine": _machine(model),
        "model": repr(model.config),
        "dtypes": [str(model.dtype), *(str(part.dtype) for part in kv)],
        "attention": type(attention).__name__,
        "page": attention.page_size,
        "chunk": chunk,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]


def _machine(model: Model) -> str:
    if model.device.type == "cuda":
        return str(torch.cuda.get_device_name(model.device))
    cpus = len(os.sched_getaffinity(0))
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {capability}, {cpus} CPUs of {platform.node()}"


def measured(file: Path, take: Callable[[], CostPoints], *, reload: bool) -> CostPoints:
    """Return the points in ``file``; where there are none, or no ``reload``, measure and keep them.

    A file that cannot be read or written is logged; points are measured then each time.
    """
    found = _read(file)
    if found is not None and (found.reload or not reload):
        return found
    points = take()
    try:
        _write(file, points)
    except OSError as error:
        _logger.warning("Measured costs cannot be kept in %s: %s", file, error)
    return points


def _read(file: Path) -> CostPoints | None:
    try:
        return CostPoints.from_json(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _logger.warning("Measured costs in %s are measured again: %s", file, error)
        return None


def _write(file: Path, points: CostPoints) -> None:
    """Write beside the file, then rename: several processes may do so at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=file.parent, prefix=f".{file.name}.", delete=False, encoding="utf-8"
    ) as part:
        json.dump(points.to_json(), part)
    Path(part.name).replace(file)
