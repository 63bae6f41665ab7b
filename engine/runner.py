"""Runs a step plan on a model: builds the batch, computes it, chooses the next tokens.

The runner keeps each turn's tokens itself, so a step only says how many to compute. Nothing else
survives a step here: a turn that was preempted is planned again from a lower start, and its prompt
and its output so far are computed once more from the same tokens.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from agentrt.engine.attention.base import Attention, BatchLayout, SliceLayout
from agentrt.engine.backend import EngineSample, TurnBackend
from agentrt.engine.choices import ChoiceTrie, check_encoded
from agentrt.engine.grammar import check_compiled
from agentrt.engine.lora.batch import AdapterBatch
from agentrt.engine.model.base import Model
from agentrt.engine.params import SamplingParams
from agentrt.engine.sampling import Draw, GrammarState, TurnSampling, draw_tokens
from agentrt.errors import InternalError, InvalidRequest
from agentrt.scheduling.plan import Sample, SeqSlice, StepPlan, StepResult

if TYPE_CHECKING:
    from agentrt.engine.lora.adapter import Adapter
    from agentrt.engine.masks import MaskTimes, MaskWorker
    from agentrt.engine.matcher import CompiledGrammar

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
    adapter: Adapter | None = None
    plain: bool = False
    """Whether nothing but its own row of logits decides a token, and no token ends the turn."""

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

    def look_ahead(self, draft: Sequence[int]) -> None:
        """Have the grammar compute what a draft needs, while the model computes the draft."""
        if self.sampling.grammar is not None:
            self.sampling.grammar.look_ahead(draft)

    def foresee(self, guess: Sequence[int]) -> Sequence[int]:
        """Return what comes next whatever the logits say, else as much of a guess as may come."""
        for limit in (self.sampling.choices, self.sampling.grammar):
            if limit is not None:
                return limit.foresee(guess)
        return guess

    @property
    def exhausted(self) -> bool:
        """Whether every forced token, one of the choices, or all that the grammar lets has come."""
        if self.forced is not None:
            return self.length - self.prompt >= len(self.forced)
        limits = (self.sampling.choices, self.sampling.grammar)
        return any(limit is not None and limit.done for limit in limits)


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
        self._masks: MaskWorker | None = None
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
        self._turns[turn_id] = _Turn(ids, len(ids), len(ids), state, recorded, adapter, plain)

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
            self._tokens[: plan.tokens],
            self._positions[: plan.tokens],
            layout,
            rows,
            self._adapters(plan),
        )
        return self._sample([piece for piece in plan.slices if piece.sample], logits)

    def _adapters(self, plan: StepPlan) -> AdapterBatch | None:
        """Return what the slices go through beside the model; None for a step without adapters."""
        with_adapter = [self._turns[piece.turn_id].adapter for piece in plan.slices]
        if not any(with_adapter):
            return None
        counts = [piece.count for piece in plan.slices]
        return AdapterBatch.of(list(zip(with_adapter, counts, strict=True)), self._model.device)

    def _forward(
        self,
        tokens: _Ids,
        positions: _Ids,
        layout: BatchLayout,
        rows: list[int],
        adapters: AdapterBatch | None = None,
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

    def _sample(self, pieces: Sequence[SeqSlice], logits: torch.Tensor) -> StepResult:
        turns = [self._turns[piece.turn_id] for piece in pieces]
        # The same rules as of lanes, where there is nothing that lanes are for.
        if len(logits) == len(pieces) and all(turn.plain for turn in turns):
            draws = draw_tokens(
                logits,
                [turn.sampling for turn in turns],
                [turn.length for turn in turns],
                [None] * len(turns),
            )
            if all(draw.token is not None for draw in draws):
                return _taken(pieces, turns, draws)
        return self._by_lanes(pieces, logits)

    def _by_lanes(self, pieces: Sequence[SeqSlice], logits: torch.Tensor) -> StepResult:
        lanes: list[_Lane] = []
        rows = 0
        for piece in pieces:
            lanes.append(_Lane(piece.turn_id, self._turns[piece.turn_id], piece.draft, rows))
            rows += 1 + len(piece.draft)
        going = [lane for lane in lanes if not lane.stuck()]
        while going:
            _draw(going, logits)
            going = [lane for lane in going if lane.take()]
        return StepResult({lane.turn_id: lane.sample() for lane in lanes})


def _taken(pieces: Sequence[SeqSlice], turns: Sequence[_Turn], draws: Sequence[Draw]) -> StepResult:
    """Make each draw its turn's token: all of most steps, at a fraction of what lanes cost."""
    samples: dict[str, Sample] = {}
    for piece, turn, draw in zip(pieces, turns, draws, strict=True):
        token = cast("int", draw.token)
        turn.append(token)
        logprobs = () if draw.logprob is None else (draw.logprob,)
        samples[piece.turn_id] = EngineSample((token,), logprobs=logprobs)
    return StepResult(samples)


@dataclass(slots=True, eq=False)
class _Lane:
    """One slice's rows of logits, from ``first`` on: the newest token's, then its draft's.

    Tokens are drawn one after another, each as it would be without a draft, for as long as the
    token that was drawn is the one that the next row was computed for.
    """

    turn_id: str
    turn: _Turn
    draft: Sequence[int]
    first: int
    draws: list[Draw] = field(default_factory=list)
    taken: int = 0
    finish: Literal["stop", "failed"] | None = None
    error: str | None = None
    own: bool = False

    def rows(self) -> range:
        """Return the rows to draw from now: all at once where no draw has a part in the next."""
        if self.taken < len(self.draws):
            return range(0)
        begin = self.first + self.taken
        alone = self.turn.sampling.memoryless and self.turn.forced is None
        return range(begin, self.first + 1 + len(self.draft) if alone else begin + 1)

    def take(self) -> bool:
        """Make the next drawn token the turn's; say whether one more may be drawn."""
        draw, turn = self.draws[self.taken], self.turn
        if draw.token is None:
            if not self.taken:
                self._fail(
                    f"The model gave no usable logits at position {turn.length} (NaN or infinity)."
                )
            return False  # what was drawn before it is good; the next step meets it first
        turn.append(draw.token)
        turn.sampling.note(draw.token)
        self.taken += 1
        if turn.exhausted:
            self.finish = "stop"
        came_true = self.taken <= len(self.draft) and draw.token == self.draft[self.taken - 1]
        return came_true and self.finish is None and not self.stuck()

    def stuck(self) -> bool:
        """Say whether the turn's grammar leaves no token to draw; it then fails, unless it has one.

        A turn that got a token in this step meets the same error in the next one.
        """
        grammar = self.turn.sampling.grammar
        error = None if grammar is None or self.turn.exhausted else grammar.error
        if error is not None and not self.taken:
            self._fail(f"The output's grammar cannot go on at position {self.turn.length}: {error}")
            self.own = True
        return error is not None

    def sample(self) -> EngineSample:
        """Return what came out; have the grammar begin with what the next step needs."""
        if self.turn.sampling.grammar is not None and self.finish is None:
            self.turn.sampling.grammar.look_ahead()
        draws = self.draws[: self.taken]
        return EngineSample(
            tuple([draw.token for draw in draws if draw.token is not None]),
            self.finish,
            logprobs=tuple([draw.logprob for draw in draws if draw.logprob is not None]),
            error=self.error,
            own=self.own,
        )

    def _fail(self, error: str) -> None:
        _logger.error("Turn %s failed: %s", self.turn_id, error)
        self.finish, self.error = "failed", error


def _draw(lanes: Sequence[_Lane], logits: torch.Tensor) -> None:
    """Draw what the lanes need next, all in one go."""
    asked = [(lane, row) for lane in lanes for row in lane.rows()]
    if not asked:
        return
    rows = [row for _, row in asked]
    draws = draw_tokens(
        logits if len(rows) == len(logits) else logits[rows],
        [lane.turn.sampling for lane, _ in asked],
        [lane.turn.length + row - lane.first - lane.taken for lane, row in asked],
        [lane.turn.must for lane, _ in asked],
    )
    for (lane, _), draw in zip(asked, draws, strict=True):
        lane.draws.append(draw)
