"""Choosing the next token of every row of a batch of logits, by each turn's own rules.

Randomness is counter-based: the one number that a draw needs is a function of the request's seed
and the position of the drawn token, and of nothing else. So a request's output does not depend on
what else was in the batch, on how its prompt was cut into chunks, or on being preempted. Drawing
itself is in ``draws.py``, which sampling on a device shares.
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
from agentrt.engine.draws import Cuts, best_tokens, drawn_tokens, seed_words, uniforms
from agentrt.engine.params import MAX_LOGPROBS, SamplingParams

__all__ = [
    "MAX_LOGPROBS",
    "Draw",
    "SamplingParams",
    "TokenLogprob",
    "TurnSampling",
    "draw_tokens",
    "make_cuts",
]


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
    greedy, good = best_tokens(logits)
    usable = good.tolist()
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
    best = [turn.takes_best for turn in turns]
    rows = [] if all(best) else [row for row in free if usable[row] and not best[row]]
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
        _draw(
            work if len(drawn) == len(rows) else work[drawn],
            [turns[row] for row in chosen],
            [positions[row] for row in chosen],
            chosen,
            tokens,
        )


def _draw(
    logits: Tensor,
    turns: Sequence[TurnSampling],
    positions: Sequence[int],
    rows: Sequence[int],
    tokens: list[int],
) -> None:
    """Draw a token for each of ``logits`` (overwritten) and put it into ``tokens`` at its row."""
    seeds = seed_words(turn.seed for turn in turns)
    numbers = torch.from_numpy(uniforms(seeds, np.array(positions, np.int64))).to(logits.device)
    cut = [i for i, turn in enumerate(turns) if turn.params.cuts]
    whole = [i for i, turn in enumerate(turns) if not turn.params.cuts]
    # Cuts take a multiple of the time of a draw: who asks for none does not pay for them.
    for group in (cut, whole):
        if group:
            params = [turns[i].params for i in group]
            part = logits if len(group) == len(turns) else logits[group]
            temperature = _column(part, [p.temperature for p in params], torch.float32)
            cuts = make_cuts(params, part) if group is cut else None
            drawn = drawn_tokens(part, numbers[group], temperature, cuts).tolist()
            for i, token in zip(group, drawn, strict=True):
                tokens[rows[i]] = token


def make_cuts(params: Sequence[SamplingParams], like: Tensor) -> Cuts:
    """Return the cuts of rows by their parameters, on the device of ``like``."""
    return Cuts(
        _column(like, [p.top_k for p in params], torch.int64),
        _column(like, [1 - p.top_p for p in params], torch.float64),
        _column(like, [p.min_p for p in params], torch.float32),
        most=max(p.top_k for p in params),
        by_mass=any(p.top_p < 1 for p in params),
    )


def _column(like: Tensor, values: Sequence[float], dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device).unsqueeze(1)


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
