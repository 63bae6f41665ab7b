"""A runtime without an engine, and a sandbox without walls: enough to play recordings on."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import anyio
import anyio.to_thread

from agentrt.sandbox.base import ExecResult, ResourceUsage, Sandbox, SandboxSpec
from agentrt.scheduling.plan import (
    Event,
    PinEnded,
    SchedulerStatistics,
    TurnFinished,
    TurnStats,
)

STATISTICS = SchedulerStatistics(
    running=1, waiting=2, programs=3, pins=0, pages_total=100, pages_free=60, pages_cached=30,
    pages_leased=10, pages_pinned=5, page_size=16, prompt_tokens=0, cached_tokens=0,
    prefilled_tokens=0, output_tokens=0, preemptions=0, steps=0, turns_finished=0,
    pins_handed_off=0, pins_expired=0, pins_broken=0, pins_final=0, longest_wait=0.0,
)  # fmt: skip


class LocalSandbox(Sandbox):
    """Runs commands as plain child processes in a temporary copy of the source."""

    kind = "process"

    def __init__(self, spec: SandboxSpec) -> None:
        self._spec = spec
        self.workdir = tempfile.mkdtemp(prefix="demo-test-")
        self.sandbox_id = Path(self.workdir).name
        if spec.source is not None:
            shutil.copytree(spec.source, self.workdir, dirs_exist_ok=True)

    async def exec(
        self, command, *, cwd=None, env=None, stdin=None, timeout=None, limits=None,
        output_cap=1 << 20, on_stdout=None, on_stderr=None,
    ) -> ExecResult:  # fmt: skip
        argv = ["bash", "-c", command] if isinstance(command, str) else list(command)

        def run() -> ExecResult:
            done = subprocess.run(
                argv,
                cwd=self.workdir,
                env=os.environ | dict(self._spec.env),
                input=stdin or b"",
                capture_output=True,
                timeout=timeout,
            )
            return ExecResult(
                "exited", done.returncode, done.stdout[:output_cap], done.stderr,
                len(done.stdout) > output_cap, False, 0.01, ResourceUsage(peak_memory=1024),
            )  # fmt: skip

        return await anyio.to_thread.run_sync(run)

    async def read_file(self, path: str, *, limit: int = 100 << 20) -> bytes:
        return await anyio.Path(self.workdir, path).read_bytes()

    async def write_file(self, path: str, data: bytes) -> None:
        await anyio.Path(self.workdir, path).write_bytes(data)

    async def close(self) -> None:
        shutil.rmtree(self.workdir, ignore_errors=True)


@dataclass
class Turn:
    text: str
    stats: TurnStats


class FakeProgram:
    """Answers with the forced text; counts characters as tokens, all of the last turn as cached."""

    def __init__(self, runtime: FakeRuntime, program_id: str, tenant: str) -> None:
        self.runtime, self.program_id, self.tenant = runtime, program_id, tenant
        self.boxes: list[Sandbox] = []
        self.messages: list[list[dict[str, str]]] = []
        self.last: list[bool] = []
        self._held = 0

    async def __aenter__(self) -> FakeProgram:
        return self

    async def __aexit__(self, *_: object) -> None:
        for box in self.boxes:
            await box.close()

    async def sandbox(self, spec: SandboxSpec | None = None) -> Sandbox:
        box = self.runtime.make_sandbox(spec or SandboxSpec())
        self.boxes.append(box)
        return box

    async def chat(self, messages, *, forced_text=None, next_tool=None, last=False) -> Turn:
        assert forced_text is not None
        await self.runtime.before_turn(self.program_id)
        self.messages.append([dict(one) for one in messages])
        self.last.append(last)
        prompt = sum(len(one["content"]) for one in messages)
        now = self.runtime.clock()
        stats = TurnStats(
            turn_id=f"{self.program_id}-{len(self.messages)}", program_id=self.program_id,
            context="main", tenant=self.tenant, submitted=now, admitted=now, first_token=now,
            finished=now, prompt_tokens=prompt, cached_tokens=self._held,
            prefilled_tokens=prompt - self._held, output_tokens=len(forced_text), preemptions=0,
            queue_seconds=0.0, prefill_seconds=0.0, decode_seconds=0.0, reason="stop",
        )  # fmt: skip
        if self._held:
            self.runtime.emit(
                PinEnded(self.program_id, "main", now, now, 30.0, self._held, "handed_off")
            )
        self._held = prompt + len(forced_text)
        self.runtime.emit(TurnFinished(stats))
        return Turn(forced_text, stats)


class FakeRuntime:
    def __init__(self, emit: Callable[[Event], None] = lambda event: None) -> None:
        self.emit = emit
        self.programs: dict[str, FakeProgram] = {}
        self.make_sandbox: Callable[[SandboxSpec], Sandbox] = LocalSandbox

    def clock(self) -> float:
        return time.monotonic()

    def program(self, program_id: str | None = None, *, tenant: str = "default") -> FakeProgram:
        assert program_id is not None
        self.programs[program_id] = FakeProgram(self, program_id, tenant)
        return self.programs[program_id]

    def statistics(self) -> SimpleNamespace:
        return SimpleNamespace(scheduler=STATISTICS)

    async def before_turn(self, program_id: str) -> None:
        """Overridden by tests that want to interfere."""
