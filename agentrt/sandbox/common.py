"""What all kinds of sandboxes do alike: checks, the course of a tool call, closing."""

from __future__ import annotations

import itertools
import math
import shlex
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anyio
from anyio import CancelScope, to_thread

from agentrt.errors import ConfigError, InvalidRequest, SandboxGone, ToolNotStarted
from agentrt.resources.governor import CallInfo, Governor
from agentrt.resources.intent import Intent
from agentrt.sandbox.base import (
    DEFAULT_OUTPUT_CAP,
    ExecResult,
    ExecStatus,
    Limits,
    OutputCallback,
    ProgressCallback,
    ResourceUsage,
    Sandbox,
    SandboxSpec,
)
from agentrt.sandbox.course import Course, Declared, declared
from agentrt.sandbox.host import Host
from agentrt.sandbox.launcher import new_word
from agentrt.sandbox.output import Capture
from agentrt.sandbox.supervise import Ended, Group, ToolProcess, supervise

__all__ = ["Call", "CommonSandbox", "check_limits", "failure_to_start", "merge_limits", "status_of"]

SHELL_FAILURES = (126, 127)
MAKE_OFFLINE = "Make a sandbox without network for it."
MINIMUM_MEMORY = 1 << 20


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call, ready to start. ``word`` marks what the starting shell itself says."""

    command: str | Sequence[str]
    cwd: str
    env: Mapping[str, str]
    has_stdin: bool
    tool: str
    word: str
    offline: bool = False
    oom_score: int = 0
    """Added to what the kernel ranks victims by when a whole budget is exhausted."""


class CommonSandbox(Sandbox):
    """A sandbox over a ``Host``. A kind adds how a tool call starts and what closing removes."""

    spare_pids = 0
    """Processes of the sandbox itself that live in a tool call's cgroup."""

    def __init__(self, sandbox_id: str, workdir: str, spec: SandboxSpec, host: Host) -> None:
        self.sandbox_id = sandbox_id
        self.workdir = workdir
        self._spec = spec
        self._host = host
        self._numbers = itertools.count(1)
        self._active: set[CancelScope] = set()
        self._idle = anyio.Event()
        self._closing = False
        self._removed = False
        self._cgroups: str | None = None

    @abstractmethod
    async def _start(self, call: Call, group: Group) -> ToolProcess:
        """Start the call inside ``group``. Leaves nothing behind when it raises."""

    @abstractmethod
    async def _remove(self) -> None:
        """Remove what the sandbox is made of; no tool call runs any more."""

    def _always_unenforced(self) -> tuple[str, ...]:
        """What the spec asks for and this kind never gives."""
        return ()

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        timeout: float | None = None,
        limits: Limits | None = None,
        output_cap: int = DEFAULT_OUTPUT_CAP,
        on_stdout: OutputCallback | None = None,
        on_stderr: OutputCallback | None = None,
        intent: Intent | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> ExecResult:
        """Run one tool call; see ``Sandbox.exec``."""
        self._check_open()
        asked = merge_limits(self._spec.limits, limits)
        variables = {**self._spec.env, **(env or {})}
        check_call(command, variables, timeout, output_cap)
        check_limits(asked)
        said = declared(command, variables, intent, self._spec.intent)
        tool, directory = f"tool-{next(self._numbers)}", self._cwd(cwd)
        word = new_word()
        out = Capture(output_cap, on_stdout)
        err = Capture(output_cap, on_stderr, aside=f"{word}:".encode())
        with CancelScope() as scope:
            self._active.add(scope)
            try:
                governor = await self._governor(said)
                course = Course(governor, self._info(command, asked, said, on_progress))
                async with course:
                    call = Call(
                        command=command,
                        cwd=directory,
                        env=variables,
                        has_stdin=stdin is not None,
                        tool=tool,
                        word=word,
                        offline=said.intent.network == "none",
                        oom_score=course.oom_score,
                    )
                    return await self._run(call, asked, course, stdin, timeout, out, err)
            finally:
                self._active.discard(scope)
                if not self._active:
                    self._idle.set()
                    self._idle = anyio.Event()
        raise self._gone()

    async def _run(
        self,
        call: Call,
        asked: Limits,
        course: Course,
        stdin: bytes | None,
        timeout: float | None,
        out: Capture,
        err: Capture,
    ) -> ExecResult:
        limits = course.limits(asked)
        with CancelScope(shield=True):
            group = await self._group(call, limits)
        try:
            course.begin(group)
        except BaseException:
            group.remove()  # nothing ran in it
            raise
        ended = await supervise(
            lambda: self._start(call, group),
            group,
            out,
            err,
            stdin=stdin,
            timeout=course.time_limit(timeout),
            allowance=course.frozen_seconds,
            measure=course.measure,
        )
        return self._result(ended, group, call, course, out, err)

    async def _group(self, call: Call, limits: Limits) -> Group:
        """The call's cgroup: below the sandbox's own place, or beside others of its program."""
        if self._cgroups is None:
            self._cgroups = await to_thread.run_sync(self._host.place, self._spec, self.sandbox_id)
        place, name = self._cgroups, call.tool
        if place != self.sandbox_id:
            name = call.tool.replace("tool-", f"tool-{self.sandbox_id}-")
        marker = self._host.marker(self.sandbox_id, call.tool)
        return await self._host.group(place, name, limits, marker, spare_pids=self.spare_pids)

    async def _governor(self, said: Declared) -> Governor | None:
        """Who governs the call: the runtime's governor, or one made for a declared intent."""
        if self._host.governor is None and not said.intent:
            return None
        return await self._host.govern()

    def _info(
        self,
        command: str | Sequence[str],
        asked: Limits,
        said: Declared,
        on_progress: ProgressCallback | None,
    ) -> CallInfo:
        spec = self._spec
        text = command if isinstance(command, str) else shlex.join(command)
        where = str(spec.source) if spec.source is not None else spec.image or ""
        return CallInfo(
            command=text,
            tenant=spec.tenant or "default",
            program=spec.program or self.sandbox_id,
            repository=spec.labels.get("repository", where),
            intent=said.intent,
            notes=said.notes,
            hint=said.hint,
            hard_memory=asked.memory,
            hard_cpu=asked.cpu,
            hard_pids=asked.pids,
            workdir=self._host.directory(self.sandbox_id),
            on_progress=on_progress or (lambda _: None),
        )

    def _offline_unenforced(self, call: Call) -> tuple[str, ...]:
        """What is to be said when a call asked for no network and the sandbox has one."""
        if not call.offline or self._spec.network == "none":
            return ()
        return (f"network: the {self.kind} kind cannot take it from a single call. {MAKE_OFFLINE}",)

    def _cwd(self, cwd: str | None) -> str:
        if cwd is None:
            return self.workdir
        if "\0" in cwd:
            raise ToolNotStarted("cwd holds a NUL byte.", remedy="Pass a path.")
        return cwd if cwd.startswith("/") else f"{self.workdir}/{cwd}"

    def _result(
        self,
        ended: Ended,
        group: Group,
        call: Call,
        course: Course,
        out: Capture,
        err: Capture,
    ) -> ExecResult:
        out.finish()
        err.finish()
        status = "killed" if course.killed else status_of(ended)
        if status == "exited":
            failure = failure_to_start(ended, call, err.head)
            if failure is not None:
                raise failure
        left = () if ended.clean else (f"cleanup: something of {call.tool} would not die.",)
        counted = ended.counters
        feedback = course.end(ended, status)
        return ExecResult(
            status=status,
            exit_code=ended.code,
            stdout=out.value(),
            stderr=err.value(),
            stdout_truncated=out.truncated,
            stderr_truncated=err.truncated,
            duration=ended.duration,
            resources=ResourceUsage(
                peak_memory=counted.peak_memory,
                cpu_seconds=counted.cpu_seconds,
                peak_pids=counted.peak_pids,
                oom_kills=counted.oom_kills,
                pids_refused=counted.pids_refused,
                memory_limit=feedback.limit if feedback else None,
                waited=feedback.waited if feedback else None,
                frozen=feedback.frozen if feedback else None,
                throttled=feedback.throttled if feedback else None,
            ),
            unenforced=(
                *group.unenforced,
                *course.unenforced,
                *self._always_unenforced(),
                *(() if course.offline else self._offline_unenforced(call)),
                *left,
            ),
            feedback=feedback,
        )

    def _check_open(self) -> None:
        if self._closing:
            raise self._gone()

    def _gone(self) -> SandboxGone:
        return SandboxGone(
            f"Sandbox {self.sandbox_id} is closed.", remedy="Make a new one with create()."
        )

    async def close(self) -> None:
        """Kill what runs, remove every trace. Idempotent; shielded from cancellation."""
        self._closing = True
        with CancelScope(shield=True):
            for scope in list(self._active):
                scope.cancel()
            while self._active:
                await self._idle.wait()
            if not self._removed:
                self._removed = True
                await self._remove()


def merge_limits(defaults: Limits, asked: Limits | None) -> Limits:
    """Each limit as asked for this call, else the sandbox's default."""
    if asked is None:
        return defaults
    return Limits(
        memory=asked.memory if asked.memory is not None else defaults.memory,
        cpu=asked.cpu if asked.cpu is not None else defaults.cpu,
        pids=asked.pids if asked.pids is not None else defaults.pids,
    )


def check_limits(limits: Limits) -> None:
    """Refuse limits that no host could set.

    Raises:
        ConfigError: a limit is not a positive number, or memory is below one MiB.
    """
    if limits.memory is not None and limits.memory < MINIMUM_MEMORY:
        raise ConfigError(
            f"A memory limit of {limits.memory} bytes is too small.", remedy="Ask for 1m or more."
        )
    if limits.cpu is not None and not (0 < limits.cpu < math.inf):
        raise ConfigError(f"A CPU limit of {limits.cpu} is no number of cores.", remedy="Use > 0.")
    if limits.pids is not None and limits.pids < 1:
        raise ConfigError(f"A pids limit of {limits.pids} lets nothing run.", remedy="Use >= 1.")


def check_call(
    command: str | Sequence[str], env: Mapping[str, str], timeout: float | None, output_cap: int
) -> None:
    """Refuse what can never start.

    Raises:
        ToolNotStarted: the command is empty or, as the environment, not passable to a program.
        InvalidRequest: the time limit or the output cap is out of range.
    """
    words = [command] if isinstance(command, str) else list(command)
    if not words or not words[0]:
        raise ToolNotStarted("The command is empty.", remedy="Pass a command to run.")
    if any("\0" in text for text in (*words, *env, *env.values())):
        raise ToolNotStarted("The command or its environment holds a NUL byte.", remedy="Drop it.")
    for name in env:
        if not name or "=" in name:
            raise ToolNotStarted(f"{name!r} cannot name a variable.", remedy="Rename it.")
    if timeout is not None and not timeout > 0:
        raise InvalidRequest(
            f"A timeout of {timeout} s is not positive.", remedy="Use > 0 or none."
        )
    if output_cap < 0:
        raise InvalidRequest(f"An output cap of {output_cap} is negative.", remedy="Use >= 0.")


def status_of(ended: Ended) -> ExecStatus:
    """Pure: the name of how a call ended. Only the cgroup's own counter says out of memory."""
    if ended.code is None:
        return "timeout"
    if ended.counters.oom_kills and ended.code != 0:
        return "out_of_memory"
    return "exited"


def failure_to_start(ended: Ended, call: Call, head: bytes) -> ToolNotStarted | None:
    """Pure: the error for a command that never ran, judged by the starter's own marks."""
    said = head.decode(errors="replace").strip()
    if not ended.started:
        reason = said.replace(call.word, "start") or f"its starter ended with code {ended.code}"
        return ToolNotStarted(
            f"The command did not start in {call.cwd}: {reason}.",
            remedy="Check that the work directory exists; see: agentrt sandbox check",
        )
    if ended.code in SHELL_FAILURES and said.startswith(f"{call.word}:"):
        return ToolNotStarted(
            f"The command did not start: {said.removeprefix(f'{call.word}:').strip()}.",
            remedy="Check its name, its permission to execute, and PATH.",
        )
    return None
