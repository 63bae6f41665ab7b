"""The live replay on the real engine thread and scheduler; only the model is a fake."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import anyio
import pytest

from agentrt.bench.metrics import measure
from agentrt.bench.recorder import Recorder
from agentrt.bench.records import RunRecord
from agentrt.bench.settings import BenchSettings
from agentrt.bench.workload import Tool, Workload
from agentrt.engine.engine import Engine
from agentrt.engine.fake import FakeTurnBackend
from agentrt.engine.kv import PageCache
from agentrt.errors import ConfigError
from agentrt.program import Program, ProgramParts
from agentrt.sandbox.base import ExecResult, ResourceUsage, Sandbox
from agentrt.scheduling import Scheduler, SchedulerConfig, make_policy
from tests.bench.builders import program, small_workload, turn, workload

live = pytest.importorskip("agentrt.bench.live", reason="the live engine is not installed")


class Numbers:
    """What a replay asks of a tokenizer where there are no texts."""

    vocab_size = 50
    eos_ids = frozenset({7})


class FakeBox(Sandbox):
    """A sandbox that answers every command."""

    kind = "process"
    sandbox_id = "fake"
    workdir = "/"

    def __init__(self) -> None:
        self.commands: list[str] = []

    async def exec(self, command, **options) -> ExecResult:
        self.commands.append(command)
        usage = ResourceUsage(peak_memory=1 << 20, cpu_seconds=0.5)
        return ExecResult("exited", 3, b"", b"", False, False, 0.1, usage)

    async def read_file(self, path, *, limit=0) -> bytes:
        raise FileNotFoundError(path)

    async def write_file(self, path, data) -> None:
        raise PermissionError(path)

    async def close(self) -> None:
        return None


class SmallRuntime:
    """The part of a runtime that a replay uses, around a fake model."""

    clock = staticmethod(time.monotonic)
    tokenizer = Numbers()

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.boxes: list[FakeBox] = []
        self._numbers = iter(range(10**6))

    def statistics(self):
        return self.engine.statistics()

    async def _box(self, spec) -> FakeBox:
        self.boxes.append(FakeBox())
        return self.boxes[-1]

    def program(self, program_id: str, *, tenant: str = "default") -> Program:
        parts = ProgramParts(
            engine=self.engine,
            tokenizer=self.tokenizer,
            make_builder=lambda: None,
            make_sandbox=self._box,
            new_turn_id=lambda name: f"{name}#{next(self._numbers)}",
            check_length=lambda prompt, output: None,
            forget=lambda name: None,
        )
        return Program(program_id, tenant, parts)


async def replayed(
    chosen: Workload, settings: BenchSettings, *, pages: int = 200, stop=lambda: False
) -> tuple[RunRecord, SmallRuntime, list]:
    policy = make_policy("fixed-ttl=30")
    cache = PageCache(pages, 16, policy.retention.score)
    scheduler = Scheduler(cache, policy, SchedulerConfig(token_budget=64, max_seqs=8))
    record = RunRecord("fixed-ttl=30", 0, "live", pages * 16, chosen.name)
    shown: list = []
    async with Engine(scheduler, FakeTurnBackend(16), check=True) as engine:
        runtime = SmallRuntime(engine)
        recorder = Recorder(record, start=runtime.clock())
        replay = live.LiveReplay(runtime, recorder, settings, 0, stop, shown.append)
        arrivals = [(one.arrival, one) for one in chosen.programs]
        with anyio.fail_after(60):
            record.complete = await replay.play(arrivals)
    return record, runtime, shown


def run(chosen: Workload, settings: BenchSettings | None = None, **options):
    settings = settings or BenchSettings(time_scale=0.01)
    return anyio.run(partial(replayed, chosen.select(), settings, **options))


def test_a_numeric_replay_plays_every_turn_with_its_recorded_lengths():
    chosen = small_workload(count=3, turns=3)
    chosen = replace(chosen, programs=tuple(replace(p, arrival=0.0) for p in chosen.programs))
    record, _, _ = run(chosen)
    assert record.complete
    assert {row.outcome for row in record.programs} == {"finished"}
    played = {(row.program, row.index): row for row in record.turns}
    for one in chosen.programs:
        for index, row in enumerate(one.turns):
            found = played[one.program, index]
            assert (found.prompt_tokens, found.output_tokens) == (
                row.prompt_tokens,
                row.output_tokens,
            )
            assert found.ideal_tokens <= row.prompt_tokens - row.reused_tokens
    figures = measure(record)
    # Whole pages only: of each returning turn less than two pages are computed again.
    assert figures["prefilled_tokens"] <= figures["ideal_tokens"] + 6 * 2 * 16
    assert figures["prefix_hit_share"] > 0.7
    assert len(record.tools) == 6
    assert record.kv[-1].leased == 0


def test_times_count_from_the_start_and_programs_wait_for_their_arrival():
    late = workload(program("a", turn(8, 2)), program("b", turn(8, 2), arrival=0.2))
    record, _, _ = run(late)
    arrivals = {row.program: row.arrival for row in record.programs}
    assert arrivals["a"] == pytest.approx(0.0, abs=1e-6)
    assert arrivals["b"] == pytest.approx(0.2, abs=1e-6)
    assert all(row.submitted >= arrivals[row.program] for row in record.turns)


def test_a_program_that_cannot_fit_fails_alone():
    record, _, _ = run(workload(program("big", turn(4000, 2)), program("a", turn(8, 2))), pages=16)
    assert {row.program: row.outcome for row in record.programs} == {
        "big": "failed",
        "a": "finished",
    }
    assert record.complete


def test_commands_are_run_in_the_programs_own_sandbox():
    tools = (Tool("bash", command="ls"), Tool("bash", kind="test", command="pytest"))
    rows = (replace(turn(8, 2, gap=900.0), tools=tools), turn(20, 2, reused=10))
    record, runtime, _ = run(workload(program("a", *rows)), BenchSettings(sandbox="process"))
    assert [box.commands for box in runtime.boxes] == [["ls", "pytest"]]
    assert [(row.name, row.status, row.exit_code) for row in record.tools] == [
        ("bash", "exited", 3),
        ("bash:test", "exited", 3),
    ]
    assert record.tools[0].peak_memory == 1 << 20


def test_stop_cancels_what_runs_and_records_it():
    chosen = workload(program("a", turn(8, 2, gap=900.0), turn(20, 2, reused=10)))
    polls = iter(range(10**6))
    record, _, _ = run(chosen, BenchSettings(), stop=lambda: next(polls) >= 2)
    assert not record.complete
    assert [(row.program, row.outcome) for row in record.programs] == [("a", "cancelled")]


def test_a_sandbox_without_commands_is_refused():
    record = RunRecord("fcfs", 0, "live", 0, "tiny")
    arrivals = [(0.0, one) for one in small_workload().programs]
    with pytest.raises(ConfigError, match="no command to run"):
        live.run_live(arrivals, record, BenchSettings(sandbox="process"))


def test_host_memory_for_kv_is_for_the_live_engine():
    from agentrt.bench.live import runtime_config

    assert runtime_config("fcfs", BenchSettings(host_kv_bytes=1 << 20)).host_kv_bytes == 1 << 20
    with pytest.raises(ConfigError, match="--host-kv has no effect on the simulated"):
        BenchSettings(engine="simulated", host_kv_bytes=1)
