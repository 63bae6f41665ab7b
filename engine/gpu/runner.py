"""A backend for devices: steps of plain decodes run from graphs and leave their tokens there.

Every other step takes the ordinary path. Which way a step goes changes no token beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from agentrt.engine.attention.base import Attention, StaticAttention
from agentrt.engine.backend import EngineSample, StepHandle
from agentrt.engine.draws import seed_words, uniforms
from agentrt.engine.gpu.buckets import batch_buckets
from agentrt.engine.gpu.capture import Capturer
from agentrt.engine.gpu.graphs import DecodeGraphs, Drawing
from agentrt.engine.gpu.metadata import HostRows, Metadata
from agentrt.engine.gpu.token_pool import UNUSABLE, TokenPool
from agentrt.engine.lanes import unusable
from agentrt.engine.model.base import Model
from agentrt.engine.runner import TorchBackend
from agentrt.engine.turn import Turn
from agentrt.errors import InternalError
from agentrt.scheduling.plan import Sample, SeqSlice, StepPlan, StepResult

__all__ = ["DeviceBackend"]

_MOST_K = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class _Launched(StepHandle):
    half: int


@dataclass(slots=True, eq=False)
class _Table:
    """A turn's page table as numpy has it, and the list that it was read from."""

    source: Sequence[int]
    ids: NDArray[np.int32]
    count: int


class DeviceBackend(TorchBackend):
    """A :class:`~agentrt.engine.runner.TorchBackend` with recorded decode steps.

    Args:
        model: computes logits without waiting for its device.
        attention: owns the pages; a ``StaticAttention``.
        most: sequences of a step at most.
        capturer: makes what records steps; asked anew after each restart.
        draw_seed: gives the seed of a turn that asks for none.
        rebuild: makes new, empty pages after a fault.

    Raises:
        InternalError: the attention has no steps over buffers.
    """

    def __init__(
        self,
        model: Model,
        attention: Attention,
        *,
        most: int,
        capturer: Callable[[], Capturer],
        draw_seed: Callable[[], int] | None = None,
        rebuild: Callable[[], Attention] | None = None,
    ) -> None:
        super().__init__(model, attention, draw_seed=draw_seed, rebuild=rebuild)
        self._most = most
        self._capturer = capturer
        width = min(attention.num_pages, -(-model.config.max_positions // attention.page_size))
        self._metadata = Metadata(most, width, model.device)
        self._pool = TokenPool(most, model.device)
        self._graphs: DecodeGraphs | None = self._record()
        self._half = 0
        self._pending: dict[str, int] = {}
        """Turns with a token that the host does not know yet, and its place in the pool."""
        self._tables: dict[str, _Table] = {}
        self._latest: StepPlan | None = None
        self.graph_steps = 0
        """Steps that took the recorded way, since the start."""

    def _record(self) -> DecodeGraphs:
        attention = self.attention()
        if not isinstance(attention, StaticAttention):
            raise InternalError(f"{type(attention).__name__} has no steps over buffers.")
        buckets = batch_buckets(self._most)
        return DecodeGraphs(
            self._model, attention, self._metadata, self._pool, buckets, self._capturer()
        )

    def restart(self) -> None:
        """Make new pages, prove that the model computes, and record its steps anew."""
        self._graphs = None  # first: they hold on to the old pages
        self._pending.clear()
        self._tables.clear()
        self._latest = None
        super().restart()
        self._graphs = self._record()

    def close(self, turn_id: str) -> None:
        """Forget a turn; unknown ids are ignored."""
        super().close(turn_id)
        self._tables.pop(turn_id, None)
        self._pending.pop(turn_id, None)

    def follows(self, plan: StepPlan) -> bool:
        """Whether ``plan``, the latest step, went the recorded way: its tokens stay there."""
        return plan is self._latest

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> StepHandle:
        """Begin to compute every slice; see :class:`~agentrt.engine.backend.TurnBackend`.

        Raises:
            InternalError: the plan does not fit the turns' tokens, or asks for repetitions.
        """
        turns = [self._turns[piece.turn_id] for piece in plan.slices]
        bucket = self._bucket(plan, turns)
        if self._graphs is None or bucket is None:
            if self._pending:
                raise InternalError("A step was launched early that needs the host.")
            self._latest = None
            return super().launch(plan)
        host = self._metadata.write(bucket)
        self._fill_rows(host, plan.slices, turns)
        used = self._fill_tables(host, plan.slices)
        self._metadata.send(host, used)
        self._graphs.run(bucket, _drawing(turns))
        half, rows = self._half, len(plan.slices)
        self._pool.bring(half, rows)
        for row, piece in enumerate(plan.slices):
            self._pending[piece.turn_id] = self._pool.place(half, row)
        self._half = 1 - half
        self._latest = plan
        self.graph_steps += 1
        return _Launched(plan, half)

    def _bucket(self, plan: StepPlan, turns: Sequence[Turn]) -> int | None:
        """Return the bucket of a step that can go the recorded way; None if it cannot."""
        if plan.repeat != 1 or self._graphs is None:
            return None
        for piece, turn in zip(plan.slices, turns, strict=True):
            if piece.count != 1 or not piece.sample or not turn.on_device:
                return None
        return self._graphs.bucket(len(turns))

    def _fill_rows(self, host: HostRows, pieces: Sequence[SeqSlice], turns: Sequence[Turn]) -> None:
        """Write the columns of a step; padding has length 0, and its token goes nowhere."""
        host.slot[:] = self._pool.nowhere
        tokens, seeds, positions = [], [], []
        for row, (piece, turn) in enumerate(zip(pieces, turns, strict=True)):
            tokens.append(self._token(piece, turn))
            positions.append(piece.start)
            seeds.append(turn.sampling.seed)
            if turn.forced is not None:
                host.forced[row] = turn.forced[piece.start + 1 - turn.prompt] + 1
            elif not turn.sampling.params.greedy:
                params = turn.sampling.params
                host.temperature[row] = params.temperature
                host.top_k[row] = min(params.top_k, _MOST_K)
                host.share[row], host.min_p[row] = 1 - params.top_p, params.min_p
        rows = len(pieces)
        place = np.array(positions, np.int64)
        host.token[:rows] = tokens
        host.position[:rows], host.length[:rows] = place, place + 1
        host.slot[:rows] = range(
            self._pool.place(self._half, 0), self._pool.place(self._half, rows)
        )
        host.number[:rows] = uniforms(seed_words(seeds), place + 1)

    def _token(self, piece: SeqSlice, turn: Turn) -> int:
        """Return a slice's token, or where in the pool it will be.

        Raises:
            InternalError: the slice does not begin at the turn's newest token.
        """
        place = self._pending.get(piece.turn_id)
        if piece.start != (turn.length - 1 if place is None else turn.length):
            raise InternalError(
                f"Turn {piece.turn_id} has {turn.length} tokens"
                f"{'' if place is None else ' and one on its way'}; its slice is at {piece.start}."
            )
        return int(turn.ids[piece.start]) if place is None else -1 - place

    def _fill_tables(self, host: HostRows, pieces: Sequence[SeqSlice]) -> int:
        """Write the page tables; return how many columns of them there are."""
        page = self.attention().page_size
        counts = [piece.start // page + 1 for piece in pieces]
        used = self._metadata.columns(host.rows, max(counts))
        tables = host.tables(used)
        for row, (piece, count) in enumerate(zip(pieces, counts, strict=True)):
            tables[row, :count] = self._table(piece, count).ids[:count]
        return used

    def _table(self, piece: SeqSlice, count: int) -> _Table:
        """Return a turn's page table; of one that is known only what is new is read."""
        table, pages = self._tables.get(piece.turn_id), piece.pages
        known = 0 if table is None or table.source is not pages else table.count
        if table is None or known == 0 or pages[known - 1] != table.ids[known - 1]:
            table = self._tables[piece.turn_id] = _Table(
                pages, np.array(pages, np.int32), len(pages)
            )
        elif known < count:
            table.ids = np.concatenate((table.ids, np.array(pages[known:], np.int32)))
            table.count = len(table.ids)
        if table.count < count:
            raise InternalError(
                f"Turn {piece.turn_id} needs {count} pages at {piece.start}, its table has "
                f"{table.count}."
            )
        return table

    def wait(self, handle: StepHandle) -> StepResult:
        """Return the tokens once they are known; see ``TurnBackend.wait``."""
        if not isinstance(handle, _Launched):
            return super().wait(handle)
        pieces = handle.plan.slices
        samples: dict[str, Sample] = {}
        tokens = self._pool.wait(handle.half, len(pieces))
        for row, (piece, token) in enumerate(zip(pieces, tokens, strict=True)):
            turn_id = piece.turn_id
            if self._pending.get(turn_id) == self._pool.place(handle.half, row):
                del self._pending[turn_id]
            samples[turn_id] = self._sample(turn_id, token)
        return StepResult(samples)

    def _sample(self, turn_id: str, token: int) -> EngineSample:
        turn = self._turns[turn_id]
        if token == UNUSABLE:
            return EngineSample((), "failed", error=unusable(turn_id, turn.length))
        turn.append(token)
        return EngineSample((token,), "stop" if turn.exhausted else None)


def _drawing(turns: Sequence[Turn]) -> Drawing:
    """Return what a step needs to choose its tokens."""
    drawn = [t.sampling.params for t in turns if t.forced is None and not t.sampling.params.greedy]
    if not drawn:
        return "best"
    return "cut" if any(params.cuts for params in drawn) else "drawn"
