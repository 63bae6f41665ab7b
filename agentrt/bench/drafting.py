"""What drafting saves on recorded sessions: steps with guesses against one step a token.

The recorded answer decides which guesses come true, as a model that gives this answer would. Real
scheduler, pages, drafter and tokenizer; nothing is computed, so no time is measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentrt.bench.replay import LiteralTexts, ReplayTurn
from agentrt.bench.workload import Program, Workload
from agentrt.engine.draft import make_drafter
from agentrt.engine.kv import PageCache
from agentrt.engine.tokens import PromptBuilder, Tokenizer
from agentrt.errors import WorkloadError
from agentrt.scheduling.plan import Sample, SeqSlice, StepPlan, StepResult, TurnRequest
from agentrt.scheduling.registry import make_policy
from agentrt.scheduling.scheduler import Scheduler, SchedulerConfig
from agentrt.scheduling.tokens import TokenList

__all__ = ["DraftSavings", "measure_drafting"]

PAGE = 16


@dataclass(frozen=True, slots=True)
class DraftSavings:
    """One session, or all of them. ``tokens`` of output take as many steps without guesses."""

    name: str
    turns: int
    tokens: int
    steps: int
    drafted: int
    accepted: int

    @property
    def fewer(self) -> float:
        """Steps without guesses over steps with them."""
        return self.tokens / self.steps

    @property
    def acceptance(self) -> float:
        """The share of guesses that came true."""
        return self.accepted / self.drafted if self.drafted else 0.0

    def to_json(self) -> dict[str, float | int | str]:
        """Return the figures, ratios among them."""
        counts = {name: getattr(self, name) for name in self.__slots__}
        return counts | {"fewer": self.fewer, "acceptance": self.acceptance}


class _Recording:
    """A backend whose model says what was recorded of one turn."""

    def __init__(self, turn: ReplayTurn) -> None:
        self._turn = turn

    def run(self, plan: StepPlan) -> StepResult:
        """Verify each slice's draft against the recording."""
        return StepResult({piece.turn_id: self._verify(piece) for piece in plan.slices})

    def _verify(self, piece: SeqSlice) -> Sample:
        place = piece.start + piece.count - len(piece.draft) - len(self._turn.prompt)
        right = 0
        rest = self._turn.forced[place : place + len(piece.draft)]
        while right < len(rest) and rest[right] == piece.draft[right]:
            right += 1
        return Sample(self._turn.forced[place : place + right + 1])


def measure_drafting(workload: Workload, tokenizer: Tokenizer) -> list[DraftSavings]:
    """Return what each session of recorded texts saves, and last all of them together.

    Raises:
        WorkloadError: a session has numbers only.
    """
    # One drafter: what it has learned of one session helps in the next, as in a server.
    drafter = make_drafter("ngram")
    end = [] if tokenizer.end_of_turn is None else [tokenizer.end_of_turn]
    rows = []
    for program in workload.programs:
        if not program.literal:
            raise WorkloadError(
                f"{workload.source}: {program.program} has no texts to guess from.",
                remedy="Use sessions with recorded prompts and outputs, such as miniswe.",
            )
        prompts = LiteralTexts(program, lambda: PromptBuilder(tokenizer), tokenizer.encode, end)
        turns = [prompts.turn(index) for index in range(len(program.turns))]
        policy = make_policy("fcfs")
        longest = max(len(turn.prompt) + len(turn.forced) for turn in turns)
        kv = PageCache(2 * longest // PAGE + 2, PAGE, policy.retention.score)
        config = SchedulerConfig(token_budget=2 * longest + 64, max_seqs=1)
        rows.append(_session(program, turns, Scheduler(kv, policy, config, drafter=drafter)))
    return [*rows, _sum(rows)]


def _session(program: Program, turns: Sequence[ReplayTurn], scheduler: Scheduler) -> DraftSavings:
    for number, turn in enumerate(turns):
        request = TurnRequest(
            str(number), program.program, TokenList(turn.prompt), len(turn.forced)
        )
        scheduler.submit(request, 0.0)
        backend = _Recording(turn)
        # Every step yields a token, so this ends.
        while (plan := scheduler.plan(0.0)).slices:
            scheduler.commit(plan, backend.run(plan), 0.0)
    figures = scheduler.statistics()
    return DraftSavings(
        program.program,
        len(turns),
        figures.output_tokens,
        figures.steps,
        figures.drafted_tokens,
        figures.accepted_tokens,
    )


def _sum(rows: Sequence[DraftSavings]) -> DraftSavings:
    return DraftSavings(
        "all",
        sum(row.turns for row in rows),
        sum(row.tokens for row in rows),
        sum(row.steps for row in rows),
        sum(row.drafted for row in rows),
        sum(row.accepted for row in rows),
    )
