"""Choosing the next token of every row of a batch of logits.

Randomness is counter-based: the one number that a draw needs is a function of the request's seed
and the position of the drawn token, and of nothing else. So a request's output does not depend on
what else was in the batch, on how its prompt was cut into chunks, or on being preempted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from agentrt.engine.backend import TokenLogprob
from agentrt.engine.choices import ChoiceCursor, ChoiceTrie
from agentrt.engine.params import MAX_LOGPROBS, SamplingParams

__all__ = [
    "MAX_LOGPROBS",
    "Draw",
    "SamplingParams",
    "TokenLogprob",
    "TurnSampling",
    "draw_tokens",
    "uniform",
]

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(word: int) -> int:
    """Scramble 64 bits so that every input bit moves about half of the output bits (splitmix64)."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)


def uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) that ``seed`` has at ``position``."""
    stream = _mix((seed + _GOLDEN) & _MASK)
    # 52 bits: the product with any sum of weights then rounds to less than that sum.
    return (_mix((stream + (position + 1) * _GOLDEN) & _MASK) >> 12) / 2.0**52


class GrammarState(Protocol):
    """Where a turn is in its grammar. ``engine/masks.py`` has the real one."""

    done: bool

    @property
    def error(self) -> str | None:
        """Return why no token can be drawn, None if one can."""
        ...

    @property
    def blocked(self) -> Tensor:
        """Return which tokens must not come next: bool ``[vocab]``."""
        ...

    def push(self, token: int) -> None:
        """Take the next token of the output."""
        ...

    def look_ahead(self, draft: Sequence[int] = ()) -> None:
        """Begin to compute what the next step needs."""
        ...

    def foresee(self, guess: Sequence[int]) -> Sequence[int]:
        """Return what must come next where there is no choice, else the legal part of a guess."""
        ...


@dataclass(slots=True, eq=False)
class TurnSampling:
    """A turn's parameters, its seed, and what its tokens so far mean for the penalties."""

    params: SamplingParams
    seed: int
    seen: Tensor | None = None
    """bool [vocab]: in prompt or output; only kept for penalised turns."""
    counts: Tensor | None = None
    """float32 [vocab]: times in the output; only kept for penalised turns."""
    choices: ChoiceCursor | None = None
    """Which tokens may come next; None if any may."""
    grammar: GrammarState | None = None
    """What the output must match; None if nothing."""

    @classmethod
    def start(
        cls,
        params: SamplingParams,
        seed: int,
        prompt: Tensor,
        vocab_size: int,
        device: torch.device | str = "cpu",
        choices: ChoiceTrie | None = None,
        grammar: GrammarState | None = None,
    ) -> TurnSampling:
        """Return the state of a turn with ``prompt`` (int64) and no output yet."""
        cursor = None if choices is None else ChoiceCursor(choices)
        if not params.penalised:
            return cls(params, seed, choices=cursor, grammar=grammar)
        seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        seen[prompt.to(device)] = True
        return cls(params, seed, seen, torch.zeros(vocab_size, device=device), cursor, grammar)

    @property
    def takes_best(self) -> bool:
        """Whether the token is always the one with the highest logit."""
        return self.params.greedy and self.memoryless

    @property
    def memoryless(self) -> bool:
        """Whether the output so far has no influence on how a token is drawn."""
        return self.seen is None and self.choices is None and self.grammar is None

    def note(self, token: int) -> None:
        """Take note of an output token."""
        if self.choices is not None:
            self.choices.push(token)
        if self.grammar is not None:
            self.grammar.push(token)
        if self.seen is not None and self.counts is not None:
            self.seen[token] = True
            self.counts[token] += 1

    def penalise(self, logits: Tensor) -> None:
        """Apply the penalties to one row of logits [vocab], in place."""
        if self.seen is None or self.counts is None:
            return
        params = self.params
        if params.repetition_penalty != 1:
            factor = torch.where(
                logits > 0, 1 / params.repetition_penalty, params.repetition_penalty
            )
            logits.mul_(torch.where(self.seen, factor, 1.0))
        if params.frequency_penalty != 0:
            logits.sub_(self.counts, alpha=params.frequency_penalty)
        if params.presence_penalty != 0:
            logits.sub_((self.counts > 0).to(logits.dtype), alpha=params.presence_penalty)
        # A huge logit divided by a small penalty must not become inf, or its row NaN.
        logits.clamp_(max=torch.finfo(logits.dtype).max)

    def mask(self, logits: Tensor) -> None:
        """Leave only the allowed tokens in one row of logits [vocab], in place."""
        if self.grammar is not None:
            logits.clamp_(min=torch.finfo(logits.dtype).min)
            logits.masked_fill_(self.grammar.blocked, -torch.inf)
        if self.choices is None:
            return
        allowed = torch.tensor(self.choices.allowed, dtype=torch.int64, device=logits.device)
        # Even a token that the model rules out stays better than one that leads nowhere.
        kept = logits[allowed].clamp_(min=torch.finfo(logits.dtype).min)
        logits.fill_(-torch.inf)
        logits[allowed] = kept


@dataclass(slots=True)
class Draw:
    """The outcome for one row; ``token`` is None if the row has NaN, +inf or nothing finite."""

    # Not frozen, for the reason of ``SeqSlice``.

    token: int | None
    logprob: TokenLogprob | None = field(default=None)


def draw_tokens(
    logits: Tensor,
    turns: Sequence[TurnSampling],
    positions: Sequence[int],
    forced: Sequence[int | None],
) -> list[Draw]:
    """Choose one token a row.

    Args:
        logits: float32 [rows, vocab]; not changed.
        turns: the rows' parameters; their ``note`` is left to the caller.
        positions: the position in its turn that each row's token will have.
        forced: the token that must come out whatever the logits say, or None.
    """
    # As NaN wins in max, one pass gives the greedy tokens and tells which rows are usable.
    best, greedy = logits.max(dim=1)
    usable = torch.isfinite(best).tolist()
    tokens: list[int] = greedy.tolist()
    for row, must in enumerate(forced):
        if must is not None:
            tokens[row] = must
    _redraw(
        logits, turns, positions, [r for r, f in enumerate(forced) if f is None], tokens, usable
    )
    logprobs = _logprobs(logits, turns, tokens, usable)
    return [
        Draw(token, logprobs.get(row)) if usable[row] else Draw(None)
        for row, token in enumerate(tokens)
    ]


def _redraw(
    logits: Tensor,
    turns: Sequence[TurnSampling],
    positions: Sequence[int],
    free: Sequence[int],
    tokens: list[int],
    usable: Sequence[bool],
) -> None:
    """Replace the greedy token of every row in ``free`` that is penalised, masked or drawn."""
    rows = [r for r in free if usable[r] and not turns[r].takes_best]
    if not rows:
        return
    work = logits[rows] if len(rows) < len(tokens) else logits.clone()
    for index, row in enumerate(rows):
        turns[row].penalise(work[index])
        turns[row].mask(work[index])
    drawn = [i for i, row in enumerate(rows) if not turns[row].params.greedy]
    if len(drawn) < len(rows):
        for row, token in zip(rows, work.argmax(dim=1).tolist(), strict=True):
            tokens[row] = token
    if drawn:
        chosen = [rows[i] for i in drawn]
        params = [turns[row].params for row in chosen]
        numbers = [uniform(turns[row].seed, positions[row]) for row in chosen]
        weights = token_weights(work if len(drawn) == len(rows) else work[drawn], params)
        for row, token in zip(chosen, _invert(weights, numbers), strict=True):
            tokens[row] = token


def token_weights(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Return unnormalised probabilities float32 [rows, vocab] after temperature and cuts.

    The most likely token has weight 1 and is never cut. ``logits``, penalised, is overwritten.
    """
    # A temperature that float32 rounds to 0 would make 0 / 0 of the best token.
    temperature = _column(logits, [p.temperature for p in params]).clamp_(min=1e-30)
    logits.sub_(logits.amax(dim=1, keepdim=True)).div_(temperature)
    if any(p.top_k for p in params):
        _cut_top_k(logits, [p.top_k for p in params])
    if any(p.top_p < 1 for p in params):
        _cut_top_p(logits, [p.top_p for p in params])
    weights = logits.exp_()
    if any(p.min_p > 0 for p in params):
        weights.masked_fill_(weights < _column(weights, [p.min_p for p in params]), 0)
    return weights


def _column(like: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


def _cut_top_k(logits: Tensor, top_k: Sequence[int]) -> None:
    """Mask what is less likely than a row's k-th most likely token; equals of it stay."""
    vocab = logits.shape[1]
    wanted = [min(k, vocab) or vocab for k in top_k]
    rows = [row for row, k in enumerate(wanted) if k < vocab]
    if not rows:
        return
    most = max(wanted[row] for row in rows)
    best = logits[rows].topk(most, dim=1).values
    column = torch.tensor([wanted[row] - 1 for row in rows], device=logits.device).unsqueeze(1)
    floor = torch.full((len(wanted), 1), -torch.inf, dtype=logits.dtype, device=logits.device)
    floor[rows] = best.gather(1, column)
    logits.masked_fill_(logits < floor, -torch.inf)


def _cut_top_p(logits: Tensor, top_p: Sequence[float]) -> None:
    """Mask what comes after a row's most likely tokens reached ``top_p``; equals of the last stay.

    The threshold is a logit, so the result does not depend on how a sort orders equal tokens.
    """
    rows = [row for row, p in enumerate(top_p) if p < 1]
    picked = logits if len(rows) == len(top_p) else logits[rows]
    ascending = _sorted(picked)
    sums = ascending.exp().cumsum(dim=1, dtype=torch.float64)
    # What may go has a mass of 1 - top_p at most; the first token beyond it is the last one kept.
    share = torch.tensor([1 - top_p[row] for row in rows], dtype=sums.dtype, device=sums.device)
    last = torch.searchsorted(sums, (sums[:, -1] * share).unsqueeze(1), right=True)
    floor = torch.full((len(top_p), 1), -torch.inf, dtype=logits.dtype, device=logits.device)
    floor[rows] = ascending.gather(1, last.clamp_(max=ascending.shape[1] - 1))
    logits.masked_fill_(logits < floor, -torch.inf)


def _sorted(rows: Tensor) -> Tensor:
    """Return each row in ascending order. On CPU, numpy's sort takes a fraction of torch's time."""
    if rows.device.type == "cpu":
        return torch.from_numpy(np.sort(rows.numpy(), axis=1))
    return rows.sort(dim=1).values


def _invert(weights: Tensor, numbers: Sequence[float]) -> list[int]:
    """Return, a row, the first token whose cumulative weight exceeds ``number`` of the whole."""
    sums = weights.cumsum(dim=1, dtype=torch.float64)
    targets = torch.tensor(numbers, dtype=torch.float64, device=weights.device) * sums[:, -1]
    found: list[int] = torch.searchsorted(sums, targets.unsqueeze(1), right=True)[:, 0].tolist()
    return found


def _logprobs(
    logits: Tensor, turns: Sequence[TurnSampling], tokens: Sequence[int], usable: Sequence[bool]
) -> dict[int, TokenLogprob]:
    asked = {r: t.params.logprobs for r, t in enumerate(turns) if t.params.logprobs is not None}
    rows = [row for row in asked if usable[row]]
    if not rows:
        return {}
    table = torch.log_softmax(logits[rows], dim=1)
    count = min(max(asked[row] for row in rows), table.shape[1])
    values, ids = (part.tolist() for part in table.topk(count, dim=1))
    chosen = table.gather(1, torch.tensor([tokens[r] for r in rows], device=table.device)[:, None])
    return {
        row: TokenLogprob(
            tokens[row], value, tuple(zip(ids[i], values[i], strict=True))[: asked[row]]
        )
        for i, (row, value) in enumerate(zip(rows, chosen[:, 0].tolist(), strict=True))
    }
