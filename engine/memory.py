"""Core: what a device's memory goes to, decided before any weight is read. No torch, no clock.

For each model, in bytes:

    weights      what stays, in the dtype and quantisation that were asked for; adapters
    activations  what a step of ``token_budget`` tokens needs at its widest place, and its logits
    graphs       captured decode steps: activations of the largest, and the nodes of each
    workspace    partial results of split attention, of matrix products, of widened weights
    KV           the page pool: what is left, or what was asked for

A share of the device is held in reserve, for fragments of the allocator and what others take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentrt.engine.memory_sizes import MIB, activation_bytes, graph_bytes, workspace_bytes
from agentrt.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from agentrt.engine.model.config import ModelShape

__all__ = [
    "DeviceBytes",
    "MemoryPlan",
    "ModelNeed",
    "ModelPlan",
    "StepBounds",
    "as_size",
    "plan_memory",
]

SMALLEST_POOL = 2048
"""Tokens that must fit beside the weights where no size is named."""
CPU_POOL_SHARE = 0.25
CPU_POOL_TOKENS = 131_072
"""On a CPU the default pool takes a part of what is left, and never more tokens than this: the
memory is the machine's, and other processes live there. A GPU is ours: it takes all."""
RESERVE_SHARE, LEAST_RESERVE = 0.04, 512 * MIB
"""Of a GPU. PyTorch's allocator keeps blocks of 2 and 20 MiB and loses their ends."""


@dataclass(frozen=True, slots=True)
class DeviceBytes:
    """What a device has: bytes that can be taken, what sets that bound as a phrase, its kind."""

    free: int
    bound: str
    gpu: bool

    @property
    def reserve(self) -> int:
        """Bytes that no plan gives away."""
        return max(LEAST_RESERVE, int(self.free * RESERVE_SHARE)) if self.gpu else 0


@dataclass(frozen=True, slots=True)
class StepBounds:
    """How large a step may get: tokens, sequences, and the batches that are captured as graphs."""

    token_budget: int
    max_seqs: int
    page_size: int
    graphs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelNeed:
    """What one model asks for.

    Args:
        name: what it is served under.
        shape: its shape.
        weights: bytes of its weights once they are loaded.
        dtype: of activations, as ``bfloat16``.
        kv_token_bytes: bytes of one token's keys and values.
        pool_tokens: tokens of KV that must fit; None takes what is there.
        adapters: bytes of its adapters.
        loading: bytes beyond ``weights`` that loading them takes for a while.
        widened: whether weights are widened before large products.
        instead: bytes of the weights by the option that would make them so, for the remedy.
        kv_instead: likewise, of a token's keys and values.
        share: of what is left for KV, in proportion to the other models' shares.
        where: how errors call it; its name if empty.
    """

    name: str
    shape: ModelShape
    weights: int
    dtype: str
    kv_token_bytes: int
    pool_tokens: int | None = None
    adapters: int = 0
    loading: int = 0
    widened: bool = False
    instead: Mapping[str, int] = field(default_factory=dict)
    kv_instead: Mapping[str, int] = field(default_factory=dict)
    share: float = 1.0
    where: str = ""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """Bytes for one model, and the pages of its pool. ``resident``: it is loaded at start."""

    name: str
    weights: int
    activations: int
    graphs: int
    workspace: int
    kv: int
    pages: int
    page_size: int
    resident: bool
    loading: int = 0
    """Bytes beyond the weights while they are read; KV and the rest are not there yet."""

    @property
    def fixed(self) -> int:
        """All but KV."""
        return self.weights + self.activations + self.graphs + self.workspace

    @property
    def total(self) -> int:
        """All that is taken while the model is loaded."""
        return self.fixed + self.kv

    @property
    def peak(self) -> int:
        """The most that it ever takes, while it is loaded or after."""
        return max(self.total, self.weights + self.loading)

    @property
    def tokens(self) -> int:
        """Tokens of KV."""
        return self.pages * self.page_size


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What goes where. While models are loaded, the sum of their totals is within ``capacity``."""

    device: DeviceBytes
    models: tuple[ModelPlan, ...]

    @property
    def capacity(self) -> int:
        """Bytes that may be given away."""
        return self.device.free - self.device.reserve

    @property
    def together(self) -> bool:
        """Whether all models are loaded at once."""
        return all(model.resident for model in self.models)

    def of(self, name: str) -> ModelPlan:
        """Return the plan of a model that is part of it."""
        return next(model for model in self.models if model.name == name)

    def lines(self) -> list[str]:
        """Return the plan as people read it, a line for the device and one for each model."""
        told = [
            f"{as_size(self.device.free)} {self.device.bound}, "
            f"{as_size(self.device.reserve)} of it in reserve"
        ]
        for model in self.models:
            when = "" if model.resident else " (loaded when it is asked for)"
            told.append(
                f"{model.name}{when}: weights {as_size(model.weights)}, activations "
                f"{as_size(model.activations)}, graphs {as_size(model.graphs)}, workspace "
                f"{as_size(model.workspace)}, KV {as_size(model.kv)} ({model.tokens:,} tokens)"
            )
        return told


def as_size(count: float) -> str:
    """Return bytes as people read them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def plan_memory(needs: Sequence[ModelNeed], step: StepBounds, device: DeviceBytes) -> MemoryPlan:
    """Say what memory goes to.

    Models are loaded together in the order of ``needs`` for as long as they fit with the smallest
    pool each; what is then left becomes KV, by share. The others are loaded when they are asked
    for, in place of some of these: their pools are as large as a share, where that fits.

    Raises:
        ConfigError: a page or a pool has no size that can work.
        ModelError: a model does not fit the device, even alone.
    """
    if step.page_size < 1:
        raise ConfigError(f"page_size is {step.page_size}.", remedy="Use at least 1; 16 is good.")
    rows = [_Row.of(need, step, device) for need in needs]
    capacity = device.free - device.reserve
    for row in rows:
        row.check(capacity, device, [other for other in rows if other is not row])
    first = _together(rows, capacity)
    left = capacity - sum(row.fixed + row.smallest for row in first)
    shares = sum(row.need.share for row in first if row.need.pool_tokens is None)
    each = left / shares if shares else 0.0
    return MemoryPlan(device, tuple(row.plan(row in first, each, capacity) for row in rows))


def _together(rows: Sequence[_Row], capacity: int) -> list[_Row]:
    """Return the leading models that fit at once; the first always does."""
    chosen: list[_Row] = []
    for row in rows:
        if chosen and sum(one.least for one in (*chosen, row)) > capacity:
            break
        chosen.append(row)
    return chosen


@dataclass(frozen=True, slots=True)
class _Row:
    """One model's need in bytes, before KV is shared out."""

    need: ModelNeed
    step: StepBounds
    gpu: bool
    activations: int
    graphs: int
    workspace: int

    @classmethod
    def of(cls, need: ModelNeed, step: StepBounds, device: DeviceBytes) -> _Row:
        tokens = need.pool_tokens
        if tokens is not None and tokens < step.page_size:
            raise ConfigError(
                f"A pool of {tokens} tokens is less than a page of {step.page_size}.",
                remedy="Name a larger pool, for example 16384 tokens.",
            )
        rows = max(step.token_budget, step.max_seqs)
        return cls(
            need,
            step,
            device.gpu,
            activation_bytes(need.shape, rows, step.max_seqs, need.dtype),
            graph_bytes(need.shape, step.graphs, need.dtype) if device.gpu else 0,
            workspace_bytes(
                need.shape, step.max_seqs, need.dtype, widened=need.widened, gpu=device.gpu
            ),
        )

    @property
    def fixed(self) -> int:
        weights = self.need.weights + self.need.adapters
        return weights + self.activations + self.graphs + self.workspace

    @property
    def asked(self) -> int:
        """Bytes of the pool that was asked for; 0 where none was."""
        return (self.need.pool_tokens or 0) // self.step.page_size * self._page

    @property
    def smallest(self) -> int:
        """Bytes of the smallest pool that will do."""
        if self.need.pool_tokens is not None:
            return self.asked
        return -(-SMALLEST_POOL // self.step.page_size) * self._page

    @property
    def least(self) -> int:
        """Bytes without which the model cannot be loaded."""
        return max(self.fixed + self.smallest, self.need.weights + self.need.loading)

    @property
    def _page(self) -> int:
        return self.step.page_size * self.need.kv_token_bytes

    def plan(self, resident: bool, each: float, capacity: int) -> ModelPlan:
        pages = self.asked // self._page
        if self.need.pool_tokens is None:
            share = self.smallest + int(each * self.need.share)
            room = min(share, capacity - self.fixed)  # one of another time may be larger
            pages = room // self._page
            if not self.gpu:
                wanted = min(int(room * CPU_POOL_SHARE) // self._page, self._most_pages)
                pages = max(wanted, self.smallest // self._page)
        return ModelPlan(
            name=self.need.name,
            weights=self.need.weights + self.need.adapters,
            activations=self.activations,
            graphs=self.graphs,
            workspace=self.workspace,
            kv=pages * self._page,
            pages=pages,
            page_size=self.step.page_size,
            resident=resident,
            loading=self.need.loading,
        )

    @property
    def _most_pages(self) -> int:
        return CPU_POOL_TOKENS // self.step.page_size

    def check(self, capacity: int, device: DeviceBytes, others: Sequence[_Row]) -> None:
        """Raise ``ModelError`` if the model does not fit alone; the remedy names what would."""
        if self.least <= capacity:
            return
        need = self.need
        tokens = need.pool_tokens or SMALLEST_POOL
        rest = self.least - need.weights - self.smallest
        held = f", and {as_size(device.reserve)} of them stay in reserve" if device.reserve else ""
        raise ModelError(
            f"{need.where or need.name}: the weights take {as_size(need.weights)} in {need.dtype}, "
            f"{tokens:,} tokens of KV {as_size(self.smallest)} and steps {as_size(rest)}, but only "
            f"{as_size(device.free)} are {device.bound}{held}.",
            remedy=f"Use {self._remedy(capacity, others)}.",
        )

    def _remedy(self, capacity: int, others: Sequence[_Row]) -> str:
        """Return what to change, with the numbers that would fit."""
        spare = capacity - self.fixed
        told = [
            f"{option} (weights of {as_size(weights)})"
            for option, weights in self.need.instead.items()
            if self.least - self.need.weights + weights <= capacity
        ]
        told += [
            f"{option} ({spare // size:,} tokens fit)"
            for option, size in self.need.kv_instead.items()
            if spare >= self.smallest // self.need.kv_token_bytes * size
        ]
        fits = max(0, spare // self._page * self.step.page_size)
        told.append(f"a smaller --pool (at most {fits:,} tokens)" if fits else "a smaller --pool")
        if others:
            named = ", ".join(one.need.name for one in others)
            told.append(f"the other models without it ({named})")
        return ", ".join([*told, "a smaller model, or give it more memory"])
