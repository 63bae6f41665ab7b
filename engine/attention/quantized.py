"""Pages of keys and values in eight bits, for the pure-torch attention.

``int8`` has a scale for each token and head; ``fp8`` is e4m3 as it is, cut at its largest number.
Values are widened to the model's dtype when they are gathered. A slice's own keys and values are
attended as they are, so what a token sees depends a little on how its prompt was cut into steps.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from agentrt.engine.attention.pool import PagePool
from agentrt.engine.model.config import ModelShape
from agentrt.errors import ConfigError

__all__ = ["KV_DTYPES", "KVDtype", "QuantizedPool", "kv_bytes_per_token", "make_pool"]

KVDtype: TypeAlias = Literal["auto", "int8", "fp8"]
KV_DTYPES: tuple[KVDtype, ...] = ("auto", "int8", "fp8")
"""``auto`` is the model's own dtype."""

INT8_MAX = 127.0
FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
SMALLEST_SCALE = 1e-12


def make_pool(
    config: ModelShape,
    num_pages: int,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device | str,
    kv_dtype: str,
) -> PagePool:
    """Return a pool that keeps keys and values of ``dtype`` as ``kv_dtype``.

    Raises:
        ConfigError: there is no such ``kv_dtype``.
    """
    _check(kv_dtype)
    if kv_dtype == "auto":
        return PagePool(config, num_pages, page_size, dtype, device)
    return QuantizedPool(config, num_pages, page_size, dtype, device, scaled=kv_dtype == "int8")


def kv_bytes_per_token(config: ModelShape, dtype: torch.dtype, kv_dtype: str) -> int:
    """Return the bytes that a token's keys and values take in all layers.

    Raises:
        ConfigError: there is no such ``kv_dtype``.
    """
    _check(kv_dtype)
    if kv_dtype == "auto":
        return config.kv_bytes_per_token(str(dtype).removeprefix("torch."))
    vectors = 2 * config.num_layers * config.num_kv_heads
    return vectors * (config.head_dim + (4 if kv_dtype == "int8" else 0))


def _check(kv_dtype: str) -> None:
    if kv_dtype not in KV_DTYPES:
        raise ConfigError(
            f"There is no kv dtype {kv_dtype!r}.", remedy=f"Use one of {', '.join(KV_DTYPES)}."
        )


class QuantizedPool(PagePool):
    """A :class:`PagePool` whose ``kv`` is int8 with ``scales``, or fp8 without.

    ``scales`` are fp32 ``[layers, 2, pages, kv heads, page]``.
    """

    def __init__(
        self,
        config: ModelShape,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        scaled: bool,
    ) -> None:
        kept = torch.int8 if scaled else FP8
        super().__init__(config, num_pages, page_size, kept, device, computed=dtype)
        self.scales = torch.zeros(self.kv.shape[:-1], device=device) if scaled else None
        # Bytes: what only moves is moved as such, whatever torch can do with fp8.
        self._bytes = self.kv.view(torch.uint8)
        self._narrow = torch.empty(0, dtype=torch.uint8, device=device)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that a page is made of."""
        return (self.kv,) if self.scales is None else (self.kv, self.scales)

    def store(self, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Write ``k, v [tokens, kv heads, head dim]`` to ``slots``, rounded to eight bits."""
        flat = self._bytes[layer].view(-1, self.dim)
        for side, values in zip(slots, (k, v), strict=True):
            rows = values.reshape(-1, self.dim).float()
            if self.scales is None:
                narrow = rows.clamp(-FP8_MAX, FP8_MAX).to(FP8)
            else:
                scale = rows.abs().amax(-1).div_(INT8_MAX).clamp_(min=SMALLEST_SCALE)
                narrow = (rows / scale[:, None]).round_().to(torch.int8)
                self.scales[layer].view(-1).index_copy_(0, side, scale)
            flat.index_copy_(0, side, narrow.view(torch.uint8))

    def reserve(self, rows: int) -> None:
        """Make both scratches large enough to gather ``rows`` rows at once."""
        super().reserve(rows)
        if self._narrow.shape[0] < rows:
            shape = (rows, self.page_size * self.dim)
            self._narrow = torch.empty(shape, dtype=torch.uint8, device=self.kv.device)

    def _pick(self, layer: int, rows: torch.Tensor, buffer: torch.Tensor) -> None:
        """Gather rows and widen them into ``buffer [rows, page * head dim]``."""
        narrow = self._narrow[: rows.numel()]
        torch.index_select(self._bytes[layer].view(-1, narrow.shape[1]), 0, rows, out=narrow)
        self._widen(layer, rows, narrow, buffer)

    def taken(self, layer: int, rows: torch.Tensor) -> torch.Tensor:
        """Return a new tensor ``[rows, page * head dim]`` of gathered rows, widened."""
        narrow = self._bytes[layer].view(-1, self.page_size * self.dim)[rows]
        wide = torch.empty(narrow.shape, dtype=self.dtype, device=narrow.device)
        self._widen(layer, rows, narrow, wide)
        return wide

    def _widen(
        self, layer: int, rows: torch.Tensor, narrow: torch.Tensor, buffer: torch.Tensor
    ) -> None:
        wide = buffer.view(-1, self.page_size, self.dim)
        wide.copy_(narrow.view(self.kv.dtype).view(wide.shape))
        if self.scales is not None:
            scales = self.scales[layer].view(-1, self.page_size).index_select(0, rows)
            wide.mul_(scales.to(wide.dtype)[:, :, None])
