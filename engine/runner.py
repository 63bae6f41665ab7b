"""Runs a step plan on a model: builds the batch, computes it, chooses the next tokens.

The runner keeps each turn's tokens itself, so a step only says how many to compute. Nothing else
survives a step here: a turn that was preempted is planned again from a lower start, and its prompt
and its output so far are computed once more from the same tokens.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from agentrt.engine.attention.base import Attention, BatchLayout, SliceLayout
from agentrt.engine.backend import EngineSample, TurnBackend
from agentrt.engine.choices import ChoiceTrie, check_encoded
from agentrt.engine.model.base import Model
from agentrt.engine.params import SamplingParams
from agentrt.engine.sampling import Draw, TurnSampling, draw_tokens
from agentrt.errors import InternalError, InvalidRequest
from agentrt.scheduling.plan import Sample, SeqSlice, StepPlan, StepResult

__all__ = ["TorchBackend"]

_logger = logging.getLogger(__name__)
_Ids = NDArray[np.int64]


def _draw_seed() -> int:
    return secrets.randbits(63)


@dataclass(slots=True, eq=False)
class _Turn:
    """``ids[:length]`` are the turn's tokens so far: the prompt, then the output."""

    ids: _Ids
    length: int
    prompt: int
    sampling: TurnSampling
    forced: _Ids | None

    def append(self, token: int) -> None:
        if self.length == len(self.ids):
            self.ids = np.concatenate((self.ids, np.empty_like(self.ids)))
        self.ids[self.length] = token
        self.length += 1

    def revise(self, keep: int, added: _Ids) -> None:
        end = keep + len(added)
        if end > len(self.ids):
            self.ids = np.concatenate((self.ids[:keep], np.empty(end, np.int64)))
        self.ids[keep:end] = added
        self.length = self.prompt = end

    @property
    def must(self) -> int | None:
        """The token that comes next whatever the logits say."""
        if self.forced is not None:
            return int(self.forced[self.length - self.prompt])
        return None if self.sampling.choices is None else self.sampling.choices.only

    @property
    def exhausted(self) -> bool:
        """Whether every forced token, or one of the choices, has come out."""
        if self.forced is not None:
            return self.length - self.prompt >= len(self.forced)
        return self.sampling.choices is not None and self.sampling.choices.done


class TorchBackend(TurnBackend):
    """A :class:`~agentrt.engine.backend.TurnBackend` over a decoder and its paged attention.

    Args:
        model: what computes the logits.
        attention: owns the pages that the plans speak of.
        draw_seed: gives the seed of a turn that asks for none.
        rebuild: makes new, empty pages after a fault; without it the old ones are used again.
    """

    def __init__(
        self,
        model: Model,
        attention: Attention,
        *,
        draw_seed: Callable[[], int] = _draw_seed,
        rebuild: Callable[[], Attention] | None = None,
    ) -> None:
        self._model = model
        self._attention: Attention | None = attention
        self._rebuild = rebuild
        self._draw_seed = draw_seed
        self._vocab_size = model.config.vocab_size
        self._turns: dict[str, _Turn] = {}
        self._tokens: _Ids = np.empty(0, np.int64)
        self._positions: _Ids = np.empty(0, np.int64)

    @property
    def open_turns(self) -> int:
        """How many turns are known."""
        return len(self._turns)

    def open(
        self,
        turn_id: str,
        prompt: Sequence[int],
        sampling: SamplingParams,
        forced: Sequence[int] | None = None,
        choices: ChoiceTrie | None = None,
    ) -> None:
        """Make a turn known; see :class:`~agentrt.engine.backend.TurnBackend`.

        Raises:
            InvalidRequest: a token is not in the vocabulary, or a list is empty.
            InternalError: the sampling has choices, but their tokens are missing.
        """
        check_encoded(sampling.choices, choices)
        ids = self._checked("prompt", prompt)
        recorded = None if forced is None else self._checked("forced", forced)
        self._checked("stop_token_ids", sampling.stop_token_ids, empty=True)
        self._checked("choices", () if choices is None else choices.tokens(), empty=True)
        seed = sampling.seed if sampling.seed is not None else self._draw_seed()
        state = TurnSampling.start(
            sampling, seed, torch.from_numpy(ids), self._vocab_size, self._model.device, choices
        )
        self._turns[turn_id] = _Turn(ids, len(ids), len(ids), state, recorded)

    def revise(self, turn_id: str, keep: int, tokens: Sequence[int]) -> None:
        """Replace the end of a prompt; see :class:`~agentrt.engine.backend.TurnBackend`.

        Raises:
            InvalidRequest: a token is not in the vocabulary.
        """
        added = self._checked("tokens", tokens, empty=True)
        self._turns[turn_id].revise(keep, added)

    def close(self, turn_id: str) -> None:
        """Forget a turn; unknown ids are ignored."""
        self._turns.pop(turn_id, None)

    @torch.inference_mode()
    def attention(self) -> Attention:
        """Return what owns the pages now.

        Raises:
            InternalError: there are none since a restart failed.
        """
        if self._attention is None:
            raise InternalError("The engine has no pages: making them anew failed.")
        return self._attention

    def restart(self) -> None:
        """Make new pages, then prove on one token that the model computes.

        Raises:
            InternalError: it still does not.
        """
        if self._rebuild is not None:
            self._attention = None  # first, so that both pools need not fit the memory
            if self._model.device.type == "cuda":
                torch.cuda.empty_cache()
            self._attention = self._rebuild()
        self._tokens, self._positions = np.empty(0, np.int64), np.empty(0, np.int64)
        zero = np.zeros(1, np.int64)
        logits = self._forward(zero, zero, BatchLayout((SliceLayout(0, 1, [0]),)), [0])
        if not bool(logits.isfinite().any()):
            raise InternalError("The model gives no usable logits for a single token.")

    def _checked(self, name: str, tokens: Sequence[int], *, empty: bool = False) -> _Ids:
        if not len(tokens):
            if empty:
                return np.empty(0, np.int64)
            raise InvalidRequest(f"{name} is empty.", remedy=f"Give {name} at least one token.")
        ids = np.array(tokens)
        whole = ids.dtype.kind in "iu" and ids.ndim == 1
        if not whole or ids.min() < 0 or ids.max() >= self._vocab_size:
            raise InvalidRequest(
                f"{name} holds what is no token id of the model.",
                remedy=f"Use whole numbers from 0 to {self._vocab_size - 1}.",
            )
        return ids.astype(np.int64)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Compute every slice of ``plan``; see :class:`~agentrt.engine.backend.TurnBackend`.

        Raises:
            InternalError: the plan does not fit the turns' tokens, or asks for repetitions.
        """
        if plan.repeat != 1:
            raise InternalError(f"The torch backend runs a step once, not {plan.repeat} times.")
        rows = self._fill(plan)
        layout = BatchLayout(
            tuple(SliceLayout(piece.start, piece.count, piece.pages) for piece in plan.slices)
        )
        logits = self._forward(
            self._tokens[: plan.tokens], self._positions[: plan.tokens], layout, rows
        )
        return self._sample([piece for piece in plan.slices if piece.sample], logits)

    def _forward(
        self, tokens: _Ids, positions: _Ids, layout: BatchLayout, rows: list[int]
    ) -> torch.Tensor:
        """Compute the logits of ``rows``, ``[rows, vocab]``.

        Raises:
            InternalError: there are no pages since a restart failed, or what came is misshapen.
        """
        attention, device = self.attention(), self._model.device
        logits = self._model.forward(
            torch.from_numpy(tokens).to(device),
            torch.from_numpy(positions).to(device),
            attention.plan(layout),
            torch.tensor(rows, dtype=torch.int64, device=device),
        )
        if logits.shape != (len(rows), self._vocab_size):
            raise InternalError(
                f"The model returned logits of shape {list(logits.shape)}, not "
                f"{[len(rows), self._vocab_size]}."
            )
        return logits

    def _fill(self, plan: StepPlan) -> list[int]:
        """Write the batch's tokens and positions; return the rows to sample from."""
        if plan.tokens > len(self._tokens):
            self._tokens = np.empty(2 * plan.tokens, np.int64)
            self._positions = np.empty(2 * plan.tokens, np.int64)
        rows: list[int] = []
        first = 0
        for piece in plan.slices:
            turn = self._turns[piece.turn_id]
            end = piece.start + piece.count
            if end > turn.length or piece.sample != (end == turn.length):
                raise InternalError(
                    f"Turn {piece.turn_id} has {turn.length} tokens; its slice ends at {end} "
                    f"with sample={piece.sample}."
                )
            last = first + piece.count
            if piece.count == 1:  # most slices, and a fraction of what ranges cost
                self._tokens[first] = turn.ids[piece.start]
                self._positions[first] = piece.start
            else:
                self._tokens[first:last] = turn.ids[piece.start : end]
                self._positions[first:last] = np.arange(piece.start, end)
            if piece.sample:
                rows.append(last - 1)
            first = last
        return rows

    def _sample(self, pieces: Sequence[SeqSlice], logits: torch.Tensor) -> StepResult:
        if not pieces:
            return StepResult()
        turns = [self._turns[piece.turn_id] for piece in pieces]
        draws = draw_tokens(
            logits,
            [turn.sampling for turn in turns],
            [turn.length for turn in turns],
            [turn.must for turn in turns],
        )
        return StepResult(
            {
                piece.turn_id: self._take(piece.turn_id, turn, draw)
                for piece, turn, draw in zip(pieces, turns, draws, strict=True)
            }
        )

    def _take(self, turn_id: str, turn: _Turn, draw: Draw) -> Sample:
        if draw.token is None:
            error = f"The model gave no usable logits at position {turn.length} (NaN or infinity)."
            _logger.error("Turn %s failed: %s", turn_id, error)
            return EngineSample((), "failed", error=error)
        turn.append(draw.token)
        turn.sampling.note(draw.token)
        logprobs = () if draw.logprob is None else (draw.logprob,)
        return EngineSample((draw.token,), "stop" if turn.exhausted else None, logprobs=logprobs)
