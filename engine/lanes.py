"""Drawing a step's tokens from its logits, one turn at a time or all at once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch

from agentrt.engine.backend import EngineSample
from agentrt.engine.draws import best_tokens
from agentrt.engine.sampling import Draw, draw_tokens
from agentrt.engine.turn import Turn
from agentrt.scheduling.plan import Sample, SeqSlice, StepResult

__all__ = ["sample", "unusable"]

_logger = logging.getLogger(__name__)


def sample(pieces: Sequence[SeqSlice], turns: Sequence[Turn], logits: torch.Tensor) -> StepResult:
    """Draw the next tokens of ``pieces`` and make them their turns'.

    Args:
        pieces: the sampled slices.
        turns: their turns.
        logits: fp32 ``[rows, vocab]``: each slice's newest token, then its draft, in order.
    """
    # The same rules as of lanes, where there is nothing that lanes are for.
    if len(logits) == len(pieces) and all(turn.plain for turn in turns):
        if all(turn.greedy for turn in turns):
            found = _best(pieces, turns, logits)
            if found is not None:
                return found
        draws = draw_tokens(
            logits,
            [turn.sampling for turn in turns],
            [turn.length for turn in turns],
            [None] * len(turns),
        )
        if all(draw.token is not None for draw in draws):
            return _taken(pieces, turns, draws)
    return _by_lanes(pieces, turns, logits)


def unusable(turn_id: str, position: int) -> str:
    """Log that a turn got no usable logits; return the words."""
    error = f"The model gave no usable logits at position {position} (NaN or infinity)."
    _logger.error("Turn %s failed: %s", turn_id, error)
    return error


def _by_lanes(
    pieces: Sequence[SeqSlice], turns: Sequence[Turn], logits: torch.Tensor
) -> StepResult:
    lanes: list[_Lane] = []
    rows = 0
    for piece, turn in zip(pieces, turns, strict=True):
        lanes.append(_Lane(piece.turn_id, turn, piece.draft, rows))
        rows += 1 + len(piece.draft)
    going = [lane for lane in lanes if not lane.stuck()]
    while going:
        _draw(going, logits)
        going = [lane for lane in going if lane.take()]
    return StepResult({lane.turn_id: lane.sample() for lane in lanes})


def _best(
    pieces: Sequence[SeqSlice], turns: Sequence[Turn], logits: torch.Tensor
) -> StepResult | None:
    """Make each row's best token its turn's; None where a row is unusable."""
    tokens, usable = best_tokens(logits)
    if not bool(usable.all()):
        return None
    samples: dict[str, Sample] = {}
    for piece, turn, token in zip(pieces, turns, tokens.tolist(), strict=True):
        turn.append(token)
        samples[piece.turn_id] = Sample((token,))
    return StepResult(samples)


def _taken(pieces: Sequence[SeqSlice], turns: Sequence[Turn], draws: Sequence[Draw]) -> StepResult:
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
    turn: Turn
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
                self.finish, self.error = "failed", unusable(self.turn_id, turn.length)
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
            said = f"The output's grammar cannot go on at position {self.turn.length}: {error}"
            _logger.error("Turn %s failed: %s", self.turn_id, said)
            self.finish, self.error, self.own = "failed", said, True
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
