"""Decode steps, recorded for each batch bucket: all that a step launches, from tokens to tokens.

A step is one graph, model, output layer and the most likely tokens included; where any of its turns
draws its token, a second, small one follows over the same logits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from agentrt.engine.attention.base import StaticAttention
from agentrt.engine.gpu.buckets import bucket_for
from agentrt.engine.gpu.capture import Capturer
from agentrt.engine.gpu.metadata import Metadata
from agentrt.engine.gpu.sampling import draw, take_best
from agentrt.engine.gpu.token_pool import TokenPool
from agentrt.engine.model.base import Model
from agentrt.errors import InternalError

__all__ = ["DecodeGraphs", "Drawing"]

_logger = logging.getLogger(__name__)

Drawing: TypeAlias = Literal["best", "drawn", "cut"]
"""How tokens are chosen, of a step's turns the one that needs most; each can do the ones before."""


@dataclass(frozen=True, slots=True)
class _Bucket:
    decode: Callable[[], None]
    drawn: Callable[[], None]
    cut: Callable[[], None]
    held: tuple[object, ...]
    """What a recording reads and writes, but does not keep alive."""


class DecodeGraphs:
    """The recorded steps of a model over one attention's pages.

    Recording writes to these pages, so they must hold nothing yet.

    Args:
        model: what computes logits, without waiting for its device.
        attention: the pages.
        metadata: where steps find their sequences.
        pool: where they find and leave tokens.
        buckets: batch sizes, ascending.
        capturer: records.
    """

    def __init__(
        self,
        model: Model,
        attention: StaticAttention,
        metadata: Metadata,
        pool: TokenPool,
        buckets: Sequence[int],
        capturer: Capturer,
    ) -> None:
        self._model = model
        self._attention = attention
        self._metadata = metadata
        self._pool = pool
        self._sizes = buckets
        shape = (buckets[-1], model.config.vocab_size)
        self._logits = torch.empty(shape, dtype=torch.float32, device=model.device)
        with torch.inference_mode():
            self._buckets = {
                rows: self._record(rows, capturer) for rows in sorted(buckets, reverse=True)
            }
        if model.device.type == "cuda":
            torch.cuda.empty_cache()  # what warming up has taken
        _logger.info("Decode steps are recorded for batches of %s.", ", ".join(map(str, buckets)))

    def bucket(self, rows: int) -> int | None:
        """Return the bucket for a batch; None if it is too large."""
        return bucket_for(self._sizes, rows)

    def run(self, bucket: int, drawing: Drawing) -> None:
        """Launch the step that the metadata describe."""
        recorded = self._buckets[bucket]
        recorded.decode()
        if drawing == "drawn":
            recorded.drawn()
        elif drawing == "cut":
            recorded.cut()

    def _record(self, bucket: int, capturer: Capturer) -> _Bucket:
        self._metadata.clear()  # what it warms up on is padding, not what the last step has left
        rows = self._metadata.rows(bucket)
        rows.slot.fill_(self._pool.nowhere)
        step = self._attention.plan_decode(rows.buffers)
        every = torch.arange(bucket, device=self._model.device)
        kept = self._logits[:bucket]

        def decode() -> None:
            rows.spread()
            tokens = self._pool.read(rows.token)
            logits = self._model.forward(tokens, rows.position.long(), step, every)
            if logits.shape != kept.shape:
                raise InternalError(
                    f"The model returned logits of shape {list(logits.shape)}, not "
                    f"{list(kept.shape)}."
                )
            kept.copy_(logits)
            take_best(kept, rows, self._pool)

        return _Bucket(
            capturer.capture(decode),
            capturer.capture(lambda: draw(kept, rows, self._pool, cut=False)),
            capturer.capture(lambda: draw(kept, rows, self._pool, cut=True)),
            (rows, step, every),
        )
