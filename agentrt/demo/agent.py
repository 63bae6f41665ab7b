"""One agent at work: think, run a command, look at what it printed, until nothing is left to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agentrt.bench.records import ToolRecord
from agentrt.bench.workload import Turn
from agentrt.demo.interfaces import ProgramLike
from agentrt.demo.observe import observation
from agentrt.demo.progress import Observer, Row
from agentrt.demo.recording import Recording, command_of
from agentrt.demo.verdict import Verdict, judge
from agentrt.sandbox.base import ExecResult, Limits, Sandbox, SandboxSpec

__all__ = ["TOOL_LIMITS", "TOOL_TIMEOUT", "Agent", "sandbox_spec"]

TOOL_LIMITS = Limits(memory=512 << 20, pids=128)
TOOL_TIMEOUT = 60.0
VERDICT = "verdict"


def sandbox_spec(recording: Recording | None = None) -> SandboxSpec:
    """Return what a tool call gets; with a recording, on a fresh copy of its repository."""
    return SandboxSpec(
        source=recording.task.repository if recording else None,
        env={"PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"},
        limits=TOOL_LIMITS,
    )


@dataclass(slots=True)
class Agent:
    """Plays one recording on a program that is already entered.

    Args:
        recording: whose outputs are spoken, turn by turn.
        program: runs the turns and makes the sandboxes.
        row: is kept up to date; ``tell`` is called after each change.
        keep: takes each command as a record, with times of ``clock``.
    """

    recording: Recording
    program: ProgramLike
    row: Row
    tell: Observer
    keep: Callable[[ToolRecord], None]
    clock: Callable[[], float]

    async def work(self) -> Verdict:
        """Play every turn, then have the tree judged.

        Raises:
            AgentRTError: the engine or a sandbox failed; a failing command is no error.
        """
        sandbox = await self.program.sandbox(sandbox_spec(self.recording))
        messages: list[dict[str, str]] = [dict(one) for one in self.recording.turns[0].messages]
        for number, turn in enumerate(self.recording.turns, start=1):
            text = await self._think(messages, turn, last=number == len(self.recording.turns))
            messages.append({"role": "assistant", "content": text})
            command = command_of(turn)
            if command is not None:
                done = await self._run(sandbox, turn, command)
                messages.append({"role": "user", "content": observation(done)})
        return await self._judge(sandbox)

    async def _think(self, messages: list[dict[str, str]], turn: Turn, last: bool) -> str:
        self.row.state = "thinking"
        self.row.turn += 1
        self.tell(self.row, "")
        done = await self.program.chat(
            messages, forced_text=turn.output, next_tool=turn.next_tool, last=last
        )
        self.row.add(done.stats)
        share = done.stats.cached_tokens / max(1, done.stats.prompt_tokens)
        self.tell(
            self.row,
            f"turn {self.row.turn}/{self.row.turns}: {done.stats.prompt_tokens} tokens in "
            f"({share:.0%} cached), {done.stats.output_tokens} out",
        )
        return done.text

    async def _run(self, sandbox: Sandbox, turn: Turn, command: str) -> ExecResult:
        self.row.state = "running"
        self.row.command = command
        self.row.tool_calls += 1
        self.tell(self.row, "")
        start = self.clock()
        done = await sandbox.exec(command, timeout=TOOL_TIMEOUT)
        self._keep(turn.next_tool or "bash", start, done, command)
        code = done.exit_code if done.status == "exited" else done.status
        first, *more = command.splitlines()
        self.tell(self.row, f"$ {first}{' …' if more else ''}  -> {code}")
        return done

    async def _judge(self, sandbox: Sandbox) -> Verdict:
        self.row.state = "testing"
        self.row.command = self.recording.task.test
        self.tell(self.row, "")
        start = self.clock()
        verdict = await judge(
            self.recording.task, sandbox, lambda: self.program.sandbox(sandbox_spec())
        )
        if verdict.test is not None:
            self._keep(VERDICT, start, verdict.test, self.recording.task.test)
        return verdict

    def _keep(self, name: str, start: float, done: ExecResult, command: str) -> None:
        self.keep(
            ToolRecord(
                program=self.recording.name,
                context="main",
                name=name,
                start=start,
                end=self.clock(),
                status=done.status,
                exit_code=done.exit_code,
                peak_memory=done.resources.peak_memory,
                cpu_seconds=done.resources.cpu_seconds,
                command=command,
            )
        )
