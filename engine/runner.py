"""Runs a step plan on a model: builds the batch, computes it, chooses the next tokens.

The runner keeps each turn's tokens itself, so a step only says how many to compute. Nothing else
survives a step here: a turn that was preempted is planned again from a lower start, and its prompt
and its output so far are computed once more from the same tokens.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from agentrt.engine.attention.base import Attention, BatchLayout, SliceLayout
from agentrt.engine.attention.preempt import Probe, StepAbandoned, preemptible
from agentrt.engine.backend import StepHandle, TurnBackend
from agentrt.engine.choices import ChoiceTrie, check_encoded
from agentrt.engine.grammar import check_compiled
from agentrt.engine.lanes import sample
from agentrt.engine.lora.batch import AdapterBatch
from agentrt.engine.model.base import Model
from agentrt.engine.params import SamplingParams
from agentrt.engine.sampling import GrammarState, TurnSampling
from agentrt.engine.turn import Ids, Turn
from agentrt.errors import InternalError, InvalidRequest
from agentrt.scheduling.plan import SeqSlice, StepPlan, StepResult

if TYPE_CHECKING:
    from agentrt.engine.lora.adapter import Adapter
    from agentrt.engine.masks import MaskTimes, MaskWorker
    from agentrt.engine.matcher import CompiledGrammar

__all__ = ["TorchBackend"]

LONG = 128
"""Tokens of prefill from which on a step is worth giving up."""


def _draw_seed() -> int:
    return secrets.randbits(63)


@dataclass(frozen=True, slots=True, eq=False)
class _Computed(StepHandle):
    logits: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Abandoned(StepHandle):
    """A step that was given up while it was being launched."""


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
        draw_seed: Callable[[], int] | None = None,
        rebuild: Callable[[], Attention] | None = None,
    ) -> None:
        self._model = model
        self._attention: Attention | None = attention
        self._rebuild = rebuild
        self._draw_seed = draw_seed or _draw_seed
        self._vocab_size = model.config.vocab_size
        self._turns: dict[str, Turn] = {}
        self._masks: MaskWorker | None = None
        self._unwanted: Callable[[], bool] | None = None
        self._tokens: Ids = np.empty(0, np.int64)
        self._positions: Ids = np.empty(0, np.int64)

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
        grammar: CompiledGrammar | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        """Make a turn known; see :class:`~agentrt.engine.backend.TurnBackend`.

        Raises:
            InvalidRequest: a token is not in the vocabulary, or a list is empty.
            InternalError: choices or grammar are not there in the form that the model needs.
        """
        check_encoded(sampling.choices, choices)
        check_compiled(sampling.grammar, grammar)
        ids = self._checked("prompt", prompt)
        recorded = None if forced is None else self._checked("forced", forced)
        self._checked("stop_token_ids", sampling.stop_token_ids, empty=True)
        self._checked("choices", () if choices is None else choices.tokens(), empty=True)
        seed = sampling.seed if sampling.seed is not None else self._draw_seed()
        state = TurnSampling.start(
            sampling,
            seed,
            torch.from_numpy(ids),
            self._vocab_size,
            self._model.device,
            choices,
            None if grammar is None else self._follow(grammar),
        )
        plain = recorded is None and state.memoryless
        greedy = plain and state.takes_best and sampling.logprobs is None
        self._turns[turn_id] = Turn(
            ids, len(ids), len(ids), state, recorded, adapter, plain, greedy, int(ids[-1])
        )

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

    def give_up_when(self, unwanted: Callable[[], bool]) -> None:
        """Give steps of much prefill up between two layers, where they are ``unwanted`` by then."""
        self._unwanted = unwanted

    def foresee(self, turn_id: str, guess: Sequence[int]) -> Sequence[int]:
        """Return what choices or grammar say comes next, else as much of a guess as they allow."""
        turn = self._turns.get(turn_id)
        return guess if turn is None else turn.foresee(guess)

    @property
    def mask_times(self) -> MaskTimes | None:
        """What grammars' masks took so far; None if there was no grammar."""
        return None if self._masks is None else self._masks.times

    def _follow(self, grammar: CompiledGrammar) -> GrammarState:
        from agentrt.engine.masks import GrammarTurn, MaskWorker

        if self._masks is None:
            self._masks = MaskWorker(self._vocab_size, self._model.device)
        return GrammarTurn(grammar, self._masks)

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

    def _checked(self, name: str, tokens: Sequence[int], *, empty: bool = False) -> Ids:
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
    def launch(self, plan: StepPlan) -> StepHandle:
        """Begin to compute every slice; see :class:`~agentrt.engine.backend.TurnBackend`.

        Raises:
            InternalError: the plan does not fit the turns' tokens, or asks for repetitions.
        """
        if plan.repeat != 1:
            raise InternalError(f"The torch backend runs a step once, not {plan.repeat} times.")
        rows = self._fill(plan)
        layout = BatchLayout(
            tuple(SliceLayout(piece.start, piece.count, piece.pages) for piece in plan.slices)
        )
        tokens, positions = self._tokens[: plan.tokens], self._positions[: plan.tokens]
        unwanted = self._unwanted if plan.tokens - len(plan.slices) >= LONG else None
        try:
            logits = self._forward(tokens, positions, layout, rows, unwanted, self._adapters(plan))
            return _Computed(plan, logits)
        except StepAbandoned:
            return _Abandoned(plan)

    @torch.inference_mode()
    def wait(self, handle: StepHandle) -> StepResult:
        """Draw the next tokens; see :class:`~agentrt.engine.backend.TurnBackend`."""
        if isinstance(handle, _Abandoned):
            return StepResult(abandoned=True)
        if not isinstance(handle, _Computed):
            raise InternalError(f"{type(handle).__name__} is no step of this backend.")
        pieces = [piece for piece in handle.plan.slices if piece.sample]
        return sample(pieces, [self._turns[piece.turn_id] for piece in pieces], handle.logits)

    def _adapters(self, plan: StepPlan) -> AdapterBatch | None:
        """Return what the slices go through beside the model; None for a step without adapters."""
        with_adapter = [self._turns[piece.turn_id].adapter for piece in plan.slices]
        if not any(with_adapter):
            return None
        counts = [piece.count for piece in plan.slices]
        return AdapterBatch.of(list(zip(with_adapter, counts, strict=True)), self._model.device)

    def _forward(
        self,
        tokens: Ids,
        positions: Ids,
        layout: BatchLayout,
        rows: list[int],
        unwanted: Callable[[], bool] | None = None,
        adapters: AdapterBatch | None = None,
    ) -> torch.Tensor:
        """Compute the logits of ``rows``, ``[rows, vocab]``.

        Raises:
            InternalError: there are no pages since a restart failed, or what came is misshapen.
            StepAbandoned: the step has become ``unwanted``.
        """
        device = self._model.device
        step = self.attention().plan(layout)
        if unwanted is not None:
            step = preemptible(step, Probe(unwanted, device))
        logits = self._model.forward(
            torch.from_numpy(tokens).to(device),
            torch.from_numpy(positions).to(device),
            step,
            torch.tensor(rows, dtype=torch.int64, device=device),
            **({} if adapters is None else {"adapters": adapters}),
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
        if plan.tokens == len(plan.slices) and self._fill_decodes(plan.slices):
            return list(range(plan.tokens))
        rows: list[int] = []
        first = 0
        tokens, positions, turns = self._tokens, self._positions, self._turns
        for piece in plan.slices:
            turn, start, count = turns[piece.turn_id], piece.start, piece.count
            drafted = len(piece.draft)
            end = start + count - drafted
            if end > turn.length or piece.sample != (end == turn.length):
                raise InternalError(
                    f"Turn {piece.turn_id} has {turn.length} tokens; its slice ends at {end} "
                    f"with sample={piece.sample}."
                )
            if count == 1:  # most slices, and a fraction of what ranges cost
                tokens[first] = turn.ids[start]
                positions[first] = start
                first += 1
                if piece.sample:
                    rows.append(first - 1)
                continue
            last = first + count
            tokens[first : last - drafted] = turn.ids[start:end]
            positions[first:last] = np.arange(start, end + drafted)
            if drafted:
                tokens[last - drafted : last] = piece.draft
                turn.look_ahead(piece.draft)
            if piece.sample:
                rows.extend(range(last - 1 - drafted, last))
            first = last
        return rows

    def _fill_decodes(self, pieces: Sequence[SeqSlice]) -> bool:
        """Write a batch of newest tokens; False where a slice is another token."""
        turns = [self._turns[piece.turn_id] for piece in pieces]
        starts = [piece.start for piece in pieces]
        if starts != [turn.length - 1 for turn in turns]:
            return False
        if not all(piece.sample for piece in pieces):
            return False
        self._tokens[: len(turns)] = [turn.newest for turn in turns]
        self._positions[: len(turns)] = starts
        return True
