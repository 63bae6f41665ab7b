"""Reading steps' samples as output, and handing it to the turns' readers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from agentrt.engine.outbox import Outbox
from agentrt.engine.output import OutputPiece, TurnOutput
from agentrt.engine.stream import Chunk, TurnStream
from agentrt.scheduling.plan import Sample, StepPlan, StepResult, TurnStats

__all__ = ["Readout"]

_logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Turn:
    stream: TurnStream
    output: TurnOutput
    piece: OutputPiece | None = None
    """What the current step added."""
    error: str | None = None
    said: list[str] | None = None
    """The text so far, where the tool that it calls is to be recognised."""


class Readout:
    """The turns that have readers, by id, from being taken to their end.

    ``called_tool`` names the tool that an answer calls.
    """

    def __init__(self, called_tool: Callable[[str], str | None] | None) -> None:
        self._called_tool = called_tool
        self._turns: dict[str, _Turn] = {}
        self.over: set[str] = set()
        """Turns that have stopped or failed; a step that was launched early may still have them."""

    def __len__(self) -> int:
        return len(self._turns)

    def __contains__(self, turn_id: str) -> bool:
        return turn_id in self._turns

    def __iter__(self) -> Iterator[str]:
        return iter(self._turns)

    def add(self, turn_id: str, stream: TurnStream, output: TurnOutput, *, hinted: bool) -> None:
        """Take a turn; ``hinted``: which tool it will call is known."""
        said: list[str] | None = None if hinted or self._called_tool is None else []
        self._turns[turn_id] = _Turn(stream, output, said=said)

    def read(self, result: StepResult, ahead: Container[str]) -> StepResult:
        """Read the samples as output; what the scheduler gets says which turns have stopped.

        Samples of turns ``ahead``, which have no reader, are passed on as they are.
        """
        samples: dict[str, Sample] = {}
        for turn_id, sample in result.samples.items():
            if turn_id in ahead:
                samples[turn_id] = sample
            elif turn_id not in self.over:
                samples[turn_id] = self._sample(turn_id, sample)
                if samples[turn_id].finish is not None:
                    self.over.add(turn_id)
        return replace(result, samples=samples)

    def _sample(self, turn_id: str, sample: Sample) -> Sample:
        turn = self._turns[turn_id]
        if sample.finish == "failed":
            turn.error = getattr(sample, "error", None) or "The step failed."
        else:
            turn.piece = self._push(turn, turn_id, sample)
        if turn.piece is None:
            return Sample((), "failed")
        finish: Literal["stop"] | None = "stop" if turn.piece.stopped else None
        tool = sample.tool or self._recognise(turn, turn.piece)
        return Sample(turn.piece.tokens, finish, tool)

    def _recognise(self, turn: _Turn, piece: OutputPiece) -> str | None:
        """Return the tool that a whole answer calls; None until it is whole."""
        if turn.said is None or self._called_tool is None:
            return None
        turn.said.append(piece.text)
        if not piece.stopped:
            return None
        try:
            return self._called_tool("".join(turn.said))
        except Exception:
            _logger.exception("The tool that an answer calls could not be recognised")
            return None

    def _push(self, turn: _Turn, turn_id: str, sample: Sample) -> OutputPiece | None:
        """Read one turn's sample; None if that turn's text cannot be made of it."""
        try:
            return turn.output.push(sample)
        except Exception as error:
            _logger.exception("The output of turn %s could not be read as text", turn_id)
            turn.error = f"The output could not be read as text: {error!r}"
            return None

    def finish(self, stats: TurnStats, outbox: Outbox) -> bool:
        """Put a turn's last chunk into the outbox and forget it; False if it is not known."""
        turn = self._turns.pop(stats.turn_id, None)
        if turn is None:
            return False
        self.over.discard(stats.turn_id)
        rest = self._rest(turn, stats.turn_id)
        if turn.error is not None:
            stats = replace(stats, reason="failed")
        piece = turn.piece or OutputPiece((), "", (), False)
        chunk = Chunk(piece.tokens, piece.text + rest, piece.logprobs, stats.reason)
        outbox.add(turn.stream, chunk, stats, turn.error)
        return True

    def _rest(self, turn: _Turn, turn_id: str) -> str:
        """Return the text that was held back until the end."""
        try:
            return turn.output.finish()
        except Exception as error:
            _logger.exception("The end of turn %s could not be read as text", turn_id)
            turn.error = f"The output could not be read as text: {error!r}"
            return ""

    def hand_out(self, plan: StepPlan, outbox: Outbox) -> None:
        """Put what a step added to turns that go on into the outbox."""
        for piece in plan.slices:
            turn = self._turns.get(piece.turn_id)
            if turn is not None and turn.piece is not None:
                added, turn.piece = turn.piece, None
                outbox.add(turn.stream, Chunk(added.tokens, added.text, added.logprobs))

    def give_up(self, error: str) -> None:
        """Fail every turn: nothing more comes."""
        for turn in self._turns.values():
            chunk = Chunk((), "", (), "failed")
            turn.stream.bridge.post(turn.stream.feed, chunk, None, error)
        self._turns.clear()
        self.over.clear()
