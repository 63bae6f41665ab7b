"""Drives a scheduler over random programs with the fake backend, checking what always holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agentrt.engine.kv import PageCache
from agentrt.scheduling import (
    Scheduler,
    SchedulerConfig,
    Surroundings,
    make_policy,
    policy_names,
)
from agentrt.scheduling.drafting import DraftAsk
from agentrt.scheduling.fake import FakeBackend
from agentrt.scheduling.hints import NO_HINTS, TurnHints
from agentrt.scheduling.plan import (
    Event,
    PinEnded,
    StepPlan,
    StepResult,
    ToolEvent,
    ToolEventKind,
    TurnAdmitted,
    TurnFinished,
    TurnPreempted,
    TurnRequest,
    TurnStats,
)
from agentrt.scheduling.policy import program_score
from agentrt.scheduling.tokens import TokenList
from tests.scheduling.memory import LateLink, Memory

WITH_ARGUMENT = {"fixed-ttl": ["fixed-ttl=0.3", "fixed-ttl=1000"]}
POLICIES = [spec for name in policy_names() for spec in WITH_ARGUMENT.get(name, [name])]
"""Every registered policy, by a spec that makes it."""

MAX_STEPS = 20_000
SECONDS_PER_TOKEN = 0.05


@dataclass(frozen=True)
class TurnScript:
    """A turn: new prompt tokens, output tokens, the gap before it, and hints that may lie.

    ``beside``: the next turn comes that gap after this one began, not after it ended. ``events``
    are reported of the tool that follows it, one a step. ``stop_after``: it stops by itself after
    so many tokens.
    """

    new: int
    output: int
    gap: float
    tool: str | None = None
    last: bool = False
    cancel_after: int | None = None
    stop_after: int | None = None
    rewind: int = 0
    context: str = "main"
    beside: bool = False
    hints: TurnHints = NO_HINTS
    events: tuple[ToolEventKind, ...] = ()


@dataclass(frozen=True)
class ProgramScript:
    """A program; ``crash_after``: it ends for no reason after so many steps of the driver."""

    arrival: float
    turns: Sequence[TurnScript]
    prefix: int = 0
    ends: bool = True
    tenant: str = "default"
    crash_after: int | None = None


@dataclass
class Log:
    stats: dict[str, TurnStats] = field(default_factory=dict)
    outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    pins: list[PinEnded] = field(default_factory=list)
    plans: list[tuple[tuple[str, int, int], ...]] = field(default_factory=list)
    admissions: list[str] = field(default_factory=list)
    preempted: int = 0


class Seen:
    """The future as far as the driver knows it, for oracles: when a context is back."""

    def __init__(self) -> None:
        self.returns: dict[str, float] = {}

    def returns_at(self, owner: str) -> float:
        return self.returns.get(owner, float("inf"))

    def remaining_seconds(self, program_id: str) -> float:
        return 1.0


class Guesses:
    """A drafter that knows what the fake backend samples, and is wrong about every fifth place."""

    def __init__(self) -> None:
        self.open: set[str] = set()

    def propose(self, asks: Sequence[DraftAsk], decodes: int, budget: int) -> dict[str, list[int]]:
        drafts: dict[str, list[int]] = {}
        assert 1 <= len(asks) <= decodes
        for turn_id, tokens, limit in asks:
            assert limit >= 1
            self.open.add(turn_id)
            first = len(tokens)
            places = range(first, first + min(limit, budget, first % 7))
            drafts[turn_id] = [place if place % 5 else -1 for place in places]
            budget -= len(places)
        return drafts

    def observe(self, plan: StepPlan, result: StepResult, seconds: float) -> None:
        assert seconds >= 0

    def closed(self, turn_id: str) -> None:
        self.open.discard(turn_id)


def around(pool: int, page: int, host: int | None, seen: Seen) -> Surroundings:
    return Surroundings(
        prefill_seconds=lambda tokens: tokens * SECONDS_PER_TOKEN,
        reload_seconds=None if host is None else lambda tokens: tokens * SECONDS_PER_TOKEN / 10,
        capacity=pool * page,
        tenants={"large": 3.0},
        foresight=seen,
    )


class Driver:
    """One run. ``pool`` and ``host`` are in pages, ``lags`` in looks at the link to the host."""

    def __init__(
        self,
        policy: str,
        programs: Sequence[ProgramScript],
        *,
        pool: int = 16,
        page: int = 4,
        config: SchedulerConfig | None = None,
        host: int | None = None,
        lags: Sequence[int] = (0,),
        drafting: bool = False,
        overlap: bool = False,
    ) -> None:
        self.config = config or SchedulerConfig(token_budget=16, max_seqs=4, max_wait=5.0)
        self.seen = Seen()
        made = make_policy(policy, around(pool, page, host, self.seen))
        self.kv = PageCache(pool, page, made.retention.score, rescore=made.retention.rescore)
        self.host = None if host is None else PageCache(host, page, program_score)
        self.drafter = Guesses() if drafting else None
        self.scheduler = Scheduler(self.kv, made, self.config, host=self.host, drafter=self.drafter)
        self.backend = FakeBackend(seconds_per_token=SECONDS_PER_TOKEN)
        self.overlap = overlap
        self.flying: StepPlan | None = None
        self.followed = 0
        self.programs = programs
        self.log = Log()
        self.memory = Memory(page)
        self.link = LateLink(lags)
        self._history: dict[tuple[int, str], list[int]] = {}
        self._waiting: dict[str, float] = {}
        self._where: dict[str, tuple[int, int]] = {}
        self._tokens: dict[str, TokenList] = {}
        self._steps_seen: dict[str, int] = {}
        self._due = [(script.arrival, index, 0) for index, script in enumerate(programs)]
        self._reports: list[ToolEvent] = []
        self._crashed: set[int] = set()

    def run(self) -> Log:
        for step in range(MAX_STEPS):
            self._submit_due()
            self._report_tools()
            self._crash(step)
            if self.flying is None:
                plan = self._plan()
                self._check_plan(plan)
            else:
                plan = self.flying
                self._transfer()
            if plan.slices:
                self._step(plan)
            elif self.link:
                self._transfer(wait=True)
            elif self._due:
                self.backend.now = max(self.backend.now, min(self._due)[0])
            elif not self._reports:
                break
            self.scheduler.check_integrity()
        else:
            raise AssertionError("the run does not end")
        return self.log

    def _step(self, plan: StepPlan) -> None:
        """Run a step; with ``overlap`` the next one is decided before, if it can be."""
        following = self.scheduler.follow(plan, self.backend.now) if self.overlap else None
        for piece in plan.slices:
            self.memory.run(piece, self._tokens[piece.turn_id].ids)
        result = self._stop_some(self.backend.run(plan))
        self._take(self.scheduler.commit(plan, result, self.backend.now))
        self.flying = following
        if following is not None:
            self.followed += 1
            self._check_plan(following)

    def _stop_some(self, result: StepResult) -> StepResult:
        """End turns whose script says that they stop by themselves."""
        turns = self.scheduler._book.turns
        for turn_id, sample in result.samples.items():
            program, index = self._where[turn_id]
            stop = self.programs[program].turns[index].stop_after
            if stop is not None and turns[turn_id].output + len(sample.tokens) >= stop:
                sample.finish = "stop"
        return result

    def _plan(self) -> StepPlan:
        self._transfer()
        plan = self.scheduler.plan(self.backend.now)
        self._take(self.scheduler.take_events())
        self.link.begin(plan.transfers)
        return plan

    def _transfer(self, *, wait: bool = False) -> None:
        done = self.link.take_done(wait=wait)
        for transfer in done:
            self.memory.copy(transfer)
        if done:
            self.scheduler.transferred([t.ticket for t in done], self.backend.now)
            self._take(self.scheduler.take_events())

    def _submit_due(self) -> None:
        now = self.backend.now
        for due in sorted(entry for entry in self._due if entry[0] <= now):
            self._due.remove(due)
            if due[1] not in self._crashed:
                self._submit(due[1], due[2])

    def _submit(self, program: int, index: int) -> None:
        script = self.programs[program]
        turn = script.turns[index]
        past = self._history.get((program, turn.context), list(range(script.prefix)))
        past = past[: max(len(past) - turn.rewind, 0)]
        prompt = past + [1000 * (program + 1) + 10 * index + i % 10 for i in range(turn.new)]
        prompt = prompt or [0]
        turn_id = f"{program}/{index}"
        room = self.kv.total * self.kv.page_size
        if len(prompt) + turn.output > room:
            self._end(program)
            return
        tokens = TokenList(prompt)
        request = TurnRequest(
            turn_id,
            str(program),
            tokens,
            turn.output,
            context=turn.context,
            tenant=script.tenant,
            next_tool=turn.tool,
            last=turn.last,
            hints=turn.hints,
        )
        self._tokens[turn_id], self._where[turn_id] = tokens, (program, index)
        self.seen.returns[f"{program}\0{turn.context}"] = self.backend.now
        self.scheduler.submit(request, self.backend.now)
        self._waiting[turn_id] = self.backend.now
        if turn.beside:
            self._follow(program, index)

    def _follow(self, program: int, index: int) -> None:
        """Have the next turn of a program come, or the program end."""
        turns = self.programs[program].turns
        if index + 1 < len(turns):
            back = self.backend.now + turns[index + 1].gap
            self._due.append((back, program, index + 1))
            self.seen.returns[f"{program}\0{turns[index + 1].context}"] = back
        else:
            self._end(program)

    def _check_plan(self, plan: StepPlan) -> None:
        self.log.plans.append(tuple((s.turn_id, s.start, s.count) for s in plan.slices))
        assert plan.tokens <= self.config.token_budget
        assert len(plan.slices) <= self.config.max_seqs
        page = self.kv.page_size
        self.link.check(plan, page)
        written: set[int] = set()
        for piece in plan.slices:
            assert piece.count >= 1
            assert len(piece.pages) * page >= piece.start + piece.count
            length = len(self._tokens[piece.turn_id])
            assert piece.sample == (piece.start + piece.count - len(piece.draft) == length)
            own = set(piece.pages[piece.start // page : -(-(piece.start + piece.count) // page)])
            assert not own & written, "two turns write the same page"
            written |= own
        for piece in plan.slices:
            assert not set(piece.pages[: piece.start // page]) & written, "a read page is written"

    def _take(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, TurnAdmitted):
                self._check_overtaking(event)
                self.log.admissions.append(event.turn_id)
            elif isinstance(event, TurnPreempted):
                self._waiting[event.turn_id] = self.log_submitted(event.turn_id)
                self.log.preempted += 1
            elif isinstance(event, PinEnded):
                self.log.pins.append(event)
            else:
                self._finished(event)
        self._cancel_some()

    def log_submitted(self, turn_id: str) -> float:
        return self._submitted[turn_id]

    @property
    def _submitted(self) -> dict[str, float]:
        return {turn.turn_id: turn.submitted for turn in self.scheduler._book.turns.values()}

    def _check_overtaking(self, event: TurnAdmitted) -> None:
        mine = self._waiting.pop(event.turn_id)
        for other, submitted in self._waiting.items():
            aged = event.time >= submitted + self.config.max_wait
            assert not (aged and submitted < mine), f"{event.turn_id} overtook {other}"

    def _cancel_some(self) -> None:
        for turn_id, (program, index) in list(self._where.items()):
            after = self.programs[program].turns[index].cancel_after
            if after is None or turn_id in self.log.stats:
                continue
            if turn_id not in self._submitted:
                continue  # it has ended; its event is still to be taken
            self._steps_seen[turn_id] = self._steps_seen.get(turn_id, 0) + 1
            if self._steps_seen[turn_id] == after + 1:
                assert self.scheduler.cancel(turn_id, self.backend.now)
                self._take(self.scheduler.take_events())

    def _crash(self, step: int) -> None:
        for program, script in enumerate(self.programs):
            if script.crash_after == step and step:
                self._crashed.add(program)
                self._end(program, crashed=True)

    def _report_tools(self) -> None:
        if self._reports:
            self.scheduler.tool_event(self._reports.pop(0), self.backend.now)

    def _finished(self, event: TurnFinished) -> None:
        stats = event.stats
        assert stats.turn_id not in self.log.stats, "a turn ended twice"
        parts = stats.queue_seconds + stats.prefill_seconds + stats.decode_seconds
        assert abs(parts - (stats.finished - stats.submitted)) < 1e-6
        self._waiting.pop(stats.turn_id, None)
        self.log.stats[stats.turn_id] = stats
        ids = tuple(self._tokens[stats.turn_id].ids)
        self.log.outputs[stats.turn_id] = ids[stats.prompt_tokens :]
        program, index = self._where[stats.turn_id]
        turn = self.programs[program].turns[index]
        self._history[program, turn.context] = list(ids)
        self.seen.returns.pop(f"{program}\0{turn.context}", None)
        self._reports += [
            ToolEvent(str(program), turn.context, kind, turn.tool or "bash") for kind in turn.events
        ]
        if program not in self._crashed and not turn.beside:
            self._follow(program, index)

    def _end(self, program: int, *, crashed: bool = False) -> None:
        if self.programs[program].ends or crashed:
            self.scheduler.end_program(str(program), self.backend.now)
            self._take(self.scheduler.take_events())
