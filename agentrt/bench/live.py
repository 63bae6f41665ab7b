"""Replays programs through the live engine: every token computed, recorded outputs forced.

Inside a program the loop is closed: a turn is submitted when the recorded gap has passed, or, with
a sandbox, when the turn's commands have really been run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import anyio

from agentrt.bench.recorder import Progress, Recorder, RunProgress
from agentrt.bench.records import ProgramOutcome, RunRecord, ToolRecord
from agentrt.bench.replay import InfiniteCache, LiteralTexts, NumericTokens, Prompts, ReplayTurn
from agentrt.bench.settings import BenchSettings
from agentrt.bench.workload import Program, Tool, Turn
from agentrt.engine.observed import OnStep
from agentrt.engine.params import SamplingParams
from agentrt.engine.tokens import PromptBuilder, Tokenizer
from agentrt.errors import AgentRTError, ConfigError, RequestError
from agentrt.program import ChatStream
from agentrt.program import Program as LiveProgram
from agentrt.runtime import Runtime, RuntimeConfig
from agentrt.sandbox.base import Sandbox
from agentrt.scheduling.plan import Event, PinEnded, TurnStats

__all__ = ["LiveReplay", "run_live"]

POLL_SECONDS = 0.1
REPORT_SECONDS = 0.5


def run_live(
    arrivals: Sequence[tuple[float, Program]],
    record: RunRecord,
    settings: BenchSettings,
    *,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
) -> None:
    """Fill ``record`` by a run on the live engine; ``record.complete`` says if it got through.

    ``on_step`` is told of every step in the engine's thread.

    Raises:
        ConfigError: model, pool or sandbox cannot be had, or there is no command to run.
    """
    if settings.sandbox and not _has_commands(arrivals):
        raise ConfigError(
            "--sandbox was given, but the workload has no command to run.",
            remedy="Leave --sandbox out: the recorded gaps are then waited for.",
        )
    anyio.run(_open_and_play, arrivals, record, settings, stop, progress, on_step)


def _has_commands(arrivals: Sequence[tuple[float, Program]]) -> bool:
    return any(
        tool.command is not None
        for _, program in arrivals
        for turn in program.turns
        for tool in turn.tools
    )


def runtime_config(policy: str, settings: BenchSettings) -> RuntimeConfig:
    """Return the runtime's settings for a run under ``policy``."""
    return RuntimeConfig(
        model=settings.model,
        policy=policy,
        pool_tokens=settings.pool,
        host_kv_bytes=settings.host_kv_bytes,
        max_wait=settings.max_wait,
        sandbox=settings.sandbox,
        # Policies are compared by what a token costs: guesses would make some cheaper by chance.
        draft="off",
    )


async def _open_and_play(
    arrivals: Sequence[tuple[float, Program]],
    record: RunRecord,
    settings: BenchSettings,
    stop: Callable[[], bool],
    progress: Progress | None,
    on_step: OnStep | None,
) -> None:
    pins: list[PinEnded] = []

    def keep_pins(event: Event) -> None:
        # Runs in the engine's thread; appending to a list is atomic.
        if isinstance(event, PinEnded):
            pins.append(event)

    config = runtime_config(record.policy, settings)
    async with Runtime.open(config, on_event=keep_pins, on_step=on_step) as runtime:
        pages = runtime.statistics().scheduler
        record.pool_tokens = pages.pages_total * pages.page_size
        recorder = Recorder(record, start=runtime.clock())
        replay = LiveReplay(runtime, recorder, settings, record.seed, stop, progress)
        record.complete = await replay.play(arrivals)
    for pin in pins:
        recorder.pin(pin)


@dataclass(slots=True)
class LiveReplay:
    """One run on an open runtime."""

    runtime: Runtime
    recorder: Recorder
    settings: BenchSettings
    seed: int
    stop: Callable[[], bool] = lambda: False
    progress: Progress | None = None
    _ideal: InfiniteCache = field(default_factory=InfiniteCache)
    _totals: tuple[int, int] = (0, 0)

    async def play(self, arrivals: Sequence[tuple[float, Program]]) -> bool:
        """Play every program; False if ``stop`` ended it sooner."""
        self._totals = (len(arrivals), sum(len(program.turns) for _, program in arrivals))
        stopped = False
        async with anyio.create_task_group() as watchers:
            watchers.start_soon(self._sample)
            async with anyio.create_task_group() as players:
                for arrival, program in arrivals:
                    players.start_soon(self._program, arrival, program)
                stopped = await self._watch(len(arrivals))
                if stopped:
                    players.cancel_scope.cancel()
            watchers.cancel_scope.cancel()
        self._keep_sample()
        return not stopped

    async def _watch(self, programs: int) -> bool:
        """Wait until all programs have ended, or until ``stop``: then return True."""
        while len(self.recorder.record.programs) < programs:
            if self.stop():
                return True
            await anyio.sleep(POLL_SECONDS)
        return False

    async def _sample(self) -> None:
        shown = 0.0
        while True:
            if self._now() >= self.recorder.sampler.due:
                self._keep_sample()
            if self._now() >= shown + REPORT_SECONDS:
                shown = self._now()
                self._report()
            await anyio.sleep(POLL_SECONDS)

    def _keep_sample(self) -> None:
        self.recorder.sampler.add(self._now(), self.runtime.statistics().scheduler)

    def _now(self) -> float:
        return self.runtime.clock() - self.recorder.start

    def _report(self) -> None:
        if self.progress is None:
            return
        record, state = self.recorder.record, self.runtime.statistics().scheduler
        programs, turns = self._totals
        self.progress(
            RunProgress(
                policy=record.policy,
                seed=self.seed,
                now=self._now(),
                programs_done=len(record.programs),
                programs=programs,
                turns_done=len(record.turns),
                turns=turns,
                running=state.running,
                waiting=state.waiting,
            )
        )

    # --- one program

    async def _program(self, arrival: float, program: Program) -> None:
        """Play one program, and record how it ended whatever happens."""
        due = self.recorder.start + arrival
        await anyio.sleep(max(0.0, due - self.runtime.clock()))
        outcome: ProgramOutcome = "cancelled"
        detail = "The run was stopped."
        try:
            await self._turns(program)
            outcome, detail = "finished", ""
        except AgentRTError as error:
            outcome, detail = "failed", str(error)
        finally:
            self.recorder.program(program, due, self.runtime.clock(), outcome, detail)

    async def _turns(self, program: Program) -> None:
        prompts = self._prompts(program)
        last = len(program.turns) - 1
        async with self.runtime.program(program.program, tenant=program.tenant) as live:
            box = await live.sandbox() if self.settings.sandbox else None
            for index in range(last + 1):
                stats = await self._turn(live, program, index, prompts.turn(index))
                if index < last:
                    await self._away(program, index, stats, box)

    def _prompts(self, program: Program) -> Prompts:
        tokenizer = self.runtime.tokenizer
        if program.literal:
            return LiteralTexts(
                program, lambda: PromptBuilder(tokenizer), tokenizer.encode, _end_token(tokenizer)
            )
        usable = [token for token in range(tokenizer.vocab_size) if token not in tokenizer.eos_ids]
        return NumericTokens(program, usable, self.seed)

    async def _turn(
        self, live: LiveProgram, program: Program, index: int, replay: ReplayTurn
    ) -> TurnStats:
        turn = program.turns[index]
        ideal = self._ideal.prefill(replay.prompt)
        self._ideal.add(replay.prompt)
        stream = await live.stream(
            replay.prompt,
            SamplingParams(max_tokens=len(replay.forced), temperature=0.0, ignore_eos=True),
            context=turn.context,
            forced=replay.forced,
            next_tool=turn.next_tool,
            last=index == len(program.turns) - 1,
        )
        stats = await _drain(stream)
        self._ideal.add([*replay.prompt, *replay.forced])
        self.recorder.turn(program, index, ideal, stats)
        if stats.reason not in ("stop", "length"):
            raise RequestError(
                f"Turn {index} ended as {stats.reason}: {stream.error or 'no reason given'}.",
                remedy="See the engine's log.",
            )
        return stats

    async def _away(
        self, program: Program, index: int, stats: TurnStats, box: Sandbox | None
    ) -> None:
        """Be away until the program's next turn: run its commands, or wait as recorded."""
        turn = program.turns[index]
        commands = [tool for tool in turn.tools if tool.command is not None]
        if box is not None and commands:
            for tool in commands:
                await self._run_tool(program, turn, tool, box)
            return
        back = stats.finished + (turn.gap or 0.0) * self.settings.time_scale
        await anyio.sleep(max(0.0, back - self.runtime.clock()))
        self.recorder.gap(program, index, stats.finished, self.runtime.clock())

    async def _run_tool(self, program: Program, turn: Turn, tool: Tool, box: Sandbox) -> None:
        command, start = tool.command or "", self._now()
        done = await box.exec(command)
        self.recorder.tool(
            ToolRecord(
                program=program.program,
                context=turn.context,
                name=tool.key,
                start=start,
                end=self._now(),
                status=done.status,
                exit_code=done.exit_code,
                peak_memory=done.resources.peak_memory,
                cpu_seconds=done.resources.cpu_seconds,
                command=command,
            )
        )


async def _drain(stream: ChatStream) -> TurnStats:
    """Read a turn to its end and return its account."""
    async with stream:
        async for _ in stream:
            pass
    if stream.stats is None:
        raise RequestError("A turn ended without an account.", remedy="See the engine's log.")
    return stream.stats


def _end_token(tokenizer: Tokenizer) -> list[int]:
    """Return the token that closes an answer, if the tokenizer has one."""
    return [] if tokenizer.end_of_turn is None else [tokenizer.end_of_turn]
