"""A program as its owner holds it: turns through the engine, tool calls in sandboxes, one end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from agentrt.engine.engine import Engine, EngineRequest
from agentrt.engine.params import SamplingParams
from agentrt.engine.stream import Chunk, TurnStream
from agentrt.errors import BackendUnavailable, EngineFault, InvalidRequest
from agentrt.lifecycle import ProgramLife, ProgramState, TurnState
from agentrt.resources.governor import Governor
from agentrt.sandbox.base import Sandbox, SandboxSpec
from agentrt.scheduling.graph_declared import Edge, Step
from agentrt.scheduling.hints import NO_HINTS, TurnHints
from agentrt.scheduling.plan import FinishReason, ToolEvent, TurnStats
from agentrt.streaming import OpenChat
from agentrt.tools import ReportingSandbox

if TYPE_CHECKING:
    from agentrt.engine.backend import TokenLogprob
    from agentrt.engine.opened import OpenTurn
    from agentrt.engine.tokens import PromptBuilder, Tokenizer
    from agentrt.served import ServedModel

__all__ = ["ChatStream", "Program", "TurnResult"]


@dataclass(frozen=True, slots=True)
class TurnResult:
    """A turn that ended: its tokens and text, why it ended, and its account."""

    turn_id: str
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    stats: TurnStats
    logprobs: tuple[TokenLogprob, ...] = ()


class ChatStream:
    """A turn's chunks, as ``TurnStream``'s; remembers the output for the context's next prompt."""

    def __init__(
        self,
        stream: TurnStream,
        note: Callable[[Sequence[int], str], None],
        ended: Callable[[], None],
    ) -> None:
        self.turn_id = stream.turn_id
        self._stream = stream
        self._note = note
        self._ended = ended
        self._tokens: list[int] = []
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish: FinishReason | None = None

    @property
    def stats(self) -> TurnStats | None:
        """The turn's account, once the last chunk is out."""
        return self._stream.stats

    @property
    def error(self) -> str | None:
        """Why the turn failed, if it did."""
        return self._stream.error

    def __aiter__(self) -> ChatStream:
        return self

    async def __anext__(self) -> Chunk:
        try:
            chunk = await self._stream.__anext__()
        except BaseException:
            self._ended()
            raise
        self._tokens += chunk.tokens
        self._text.append(chunk.text)
        self._logprobs += chunk.logprobs
        if chunk.finish is not None:
            self._finish = chunk.finish
            if chunk.finish in ("stop", "length"):
                self._note(tuple(self._tokens), "".join(self._text))
            self._ended()
        return chunk

    async def result(self) -> TurnResult:
        """Read to the end and return the whole turn.

        Raises:
            EngineFault: the engine failed it.
            BackendUnavailable: it was cancelled by the engine's end, or was closed.
        """
        async for _ in self:
            pass
        if self._finish in (None, "failed", "cancelled") or self.stats is None:
            kind = EngineFault if self._finish == "failed" else BackendUnavailable
            raise kind(
                f"Turn {self.turn_id} was {self._finish or 'closed'}: {self.error or 'no output'}.",
                remedy="Hand it in again; if it fails again, see the log of the engine.",
            )
        return TurnResult(
            self.turn_id,
            tuple(self._tokens),
            "".join(self._text),
            self._finish,
            self.stats,
            tuple(self._logprobs),
        )

    async def aclose(self) -> None:
        """Cancel the turn if it has not ended."""
        await self._stream.aclose()
        self._ended()

    async def __aenter__(self) -> ChatStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


@dataclass(frozen=True, slots=True)
class ProgramParts:
    """What a program needs of its runtime."""

    engine: Engine | ServedModel
    tokenizer: Tokenizer
    make_builder: Callable[[], PromptBuilder]
    make_sandbox: Callable[[SandboxSpec], Awaitable[Sandbox]]
    new_turn_id: Callable[[str], str]
    check_length: Callable[[int, int], None]
    forget: Callable[[str], None]
    governor: Governor | None = None


class Program:
    """One agent run. An async context manager: leaving it ends the program.

    Several turns may be under way at once, each in a context (a line of prompts) of its own or in
    the same one. Ending cancels them, releases the program's KV and closes its sandboxes.
    """

    def __init__(self, program_id: str, tenant: str, parts: ProgramParts) -> None:
        self.program_id = program_id
        self.tenant = tenant
        self.life = ProgramLife(program_id)
        self._parts = parts
        self._builders: dict[str, PromptBuilder] = {}
        self._sandboxes: list[Sandbox] = []
        self._framed = False

    @property
    def state(self) -> ProgramState:
        """What the program is doing."""
        return self.life.state

    async def stream(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams | None = None,
        *,
        context: str = "main",
        forced: Sequence[int] | None = None,
        next_tool: str | None = None,
        last: bool = False,
        hints: TurnHints = NO_HINTS,
        adapter: str | None = None,
    ) -> ChatStream:
        """Hand in a turn of token ids and return its chunks as they come.

        With ``forced`` every token is computed for real and the recorded ones come out.
        ``next_tool``, ``last`` and ``hints`` are advisory and never change a token. ``adapter``
        names what the turn goes through beside the model.

        Raises:
            InvalidRequest, ProgramTooLarge, QueueFull, BackendUnavailable: the turn was not taken.
        """
        asked = (prompt, sampling, context, forced, next_tool, last, hints, adapter)
        return await self._submit(*asked, note=lambda tokens, text: None)

    async def complete(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams | None = None,
        *,
        context: str = "main",
        forced: Sequence[int] | None = None,
        next_tool: str | None = None,
        last: bool = False,
        hints: TurnHints = NO_HINTS,
        adapter: str | None = None,
    ) -> TurnResult:
        """Run a turn of token ids to its end. Arguments and errors as ``stream``'s."""
        stream = await self.stream(
            prompt,
            sampling,
            context=context,
            forced=forced,
            next_tool=next_tool,
            last=last,
            hints=hints,
            adapter=adapter,
        )
        async with stream:
            return await stream.result()

    async def chat_stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        sampling: SamplingParams | None = None,
        context: str = "main",
        forced_text: str | None = None,
        next_tool: str | None = None,
        last: bool = False,
        hints: TurnHints = NO_HINTS,
        adapter: str | None = None,
        opened: OpenChat | None = None,
    ) -> ChatStream:
        """Hand in a turn of chat messages and return its chunks as they come.

        A message list that continues this context's last one, answer included, is rendered so that
        the tokens continue it too: what is cached of it is not computed again. ``opened`` is what
        ``open_chat`` returned for these messages while the last of them was not complete.

        Raises:
            InvalidRequest: the messages do not fit the model's chat template.
            ProgramTooLarge, QueueFull, BackendUnavailable: the turn was not taken.
        """
        builder = self._builder(context)
        prompt = builder.build(messages, tools)
        forced = None if forced_text is None else self._recorded(forced_text)

        def note(tokens: Sequence[int], text: str) -> None:
            builder.note_output(tokens, {"role": "assistant", "content": text})

        asked = (prompt, sampling, context, forced, next_tool, last, hints, adapter)
        turn = None if opened is None else opened.take()
        try:
            return await self._submit(*asked, note=note, opened=turn)
        except BaseException:
            if turn is not None:
                turn.close()
            raise

    def _builder(self, context: str) -> PromptBuilder:
        builder = self._builders.get(context)
        if builder is None:
            builder = self._builders[context] = self._parts.make_builder()
        return builder

    def open_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        context: str = "main",
        adapter: str | None = None,
    ) -> OpenChat:
        """Open the next turn of a context while the last message is still being written.

        ::

            with program.open_chat([*messages, {"role": "tool", "content": ""}]) as opened:
                done = await box.exec("pytest -q", feed=opened)
                messages.append({"role": "tool", "content": done.stdout.decode()})
                reply = await program.chat(messages, opened=opened)

        What is written is computed while the tool runs; the turn's first token then comes sooner,
        and its answer is the same.

        Raises:
            InvalidRequest: the messages do not fit the model's chat template.
        """
        prompt = self._builder(context).begin(messages, tools)
        opened = OpenChat(
            prompt,
            lambda tokens: self._open_turn(tokens, context, adapter),
            self._parts.check_length,
        )
        content = messages[-1].get("content")
        opened.write(content if isinstance(content, str) else "")
        return opened

    def _open_turn(self, tokens: Sequence[int], context: str, adapter: str | None) -> OpenTurn:
        turn_id = self._parts.new_turn_id(self.program_id)
        return self._parts.engine.open(
            tokens,
            turn_id=turn_id,
            program_id=self.program_id,
            context=context,
            adapter=adapter,
        )

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        sampling: SamplingParams | None = None,
        context: str = "main",
        forced_text: str | None = None,
        next_tool: str | None = None,
        last: bool = False,
        hints: TurnHints = NO_HINTS,
        adapter: str | None = None,
        opened: OpenChat | None = None,
    ) -> TurnResult:
        """Run a turn of chat messages to its end. Arguments and errors as ``chat_stream``'s."""
        stream = await self.chat_stream(
            messages,
            tools=tools,
            sampling=sampling,
            context=context,
            forced_text=forced_text,
            next_tool=next_tool,
            last=last,
            hints=hints,
            adapter=adapter,
            opened=opened,
        )
        async with stream:
            return await stream.result()

    def _recorded(self, text: str) -> list[int]:
        """Return the tokens of a recorded answer, ended as the model would end it."""
        tokenizer = self._parts.tokenizer
        end = tokenizer.end_of_turn
        return tokenizer.encode(text) + ([end] if end is not None else [])

    async def _submit(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams | None,
        context: str,
        forced: Sequence[int] | None,
        next_tool: str | None,
        last: bool,
        hints: TurnHints,
        adapter: str | None,
        *,
        note: Callable[[Sequence[int], str], None],
        opened: OpenTurn | None = None,
    ) -> ChatStream:
        parts = self._parts
        asked = sampling or SamplingParams()
        parts.check_length(len(prompt), asked.max_tokens if forced is None else len(forced))
        turn_id = parts.new_turn_id(self.program_id)
        request = EngineRequest(
            turn_id=turn_id,
            program_id=self.program_id,
            prompt=prompt,
            sampling=asked,
            context=context,
            tenant=self.tenant,
            forced=forced,
            next_tool=next_tool,
            last=last,
            hints=hints,
            adapter=adapter,
        )
        self.life.start_turn(turn_id)
        self._note_turn(started=True)
        ended = self._turn_ender(turn_id)
        try:
            stream = await (opened.seal if opened is not None else parts.engine.submit)(request)
        except BaseException:
            ended()
            raise
        return ChatStream(stream, note, ended)

    def _turn_ender(self, turn_id: str) -> Callable[[], None]:
        def end() -> None:
            self.life.move_turn(turn_id, TurnState.ENDED)
            if self.state is not ProgramState.THINKING:
                self._note_turn(started=False)

        return end

    def _note_turn(self, *, started: bool) -> None:
        """While a turn runs, the program's own framework is idle: its memory may be reclaimed."""
        if self._parts.governor is not None:
            self._parts.governor.turn(self.program_id, started)

    async def framework(self, pid: int) -> str:
        """Put the agent's own process in a cgroup beside its tool calls.

        Its memory is then reclaimed while the program's turns run, where the host can, and no tool
        call's end takes it along. Returns an empty string, or why it was not moved.
        """
        governor = self._parts.governor
        self._framed = True
        if governor is None:
            return "this runtime governs nothing"
        return await anyio.to_thread.run_sync(governor.framework, self.tenant, self.program_id, pid)

    async def sandbox(self, spec: SandboxSpec | None = None) -> Sandbox:
        """Make a sandbox for this program's tool calls; it is closed with the program at latest.

        Raises:
            SandboxUnavailable: no sandbox can be made; the remedy says what to do.
            InvalidRequest: the program has ended.
        """
        if self.state is ProgramState.ENDED:
            raise InvalidRequest(
                f"Program {self.program_id} has ended.", remedy="Open a new program for more work."
            )
        inner = await self._parts.make_sandbox(spec or SandboxSpec())
        box = ReportingSandbox(inner, self.program_id, self.life, self._report)
        self._sandboxes.append(box)
        return box

    def end_context(self, context: str) -> None:
        """Say that a context is done: its KV is released. It may be used again all the same."""
        self._builders.pop(context, None)
        self._parts.engine.end_context(self.program_id, context)

    def declare(self, steps: Sequence[Step], edges: Sequence[Edge]) -> None:
        """Say what this program is going to do: a framework's graph, each step an LLM turn.

        Turns name their step with ``hints=TurnHints(step=…)``. It helps to keep and to fetch KV in
        time; like every hint, it never changes a token, even where it is wrong.

        Raises:
            InvalidRequest: the graph contradicts itself.
        """
        self._parts.engine.declare(self.program_id, steps, edges)

    def _report(self, event: ToolEvent) -> None:
        self._parts.engine.tool_event(event)

    async def end(self) -> None:
        """End the program: cancel its turns, release its KV, close its sandboxes. Idempotent."""
        if self.state is ProgramState.ENDED:
            return
        self.life.end()
        self._parts.engine.end_program(self.program_id)
        self._parts.forget(self.program_id)
        with anyio.CancelScope(shield=True):
            for box in self._sandboxes:
                await box.close()
            if self._parts.governor is not None and (self._sandboxes or self._framed):
                await anyio.to_thread.run_sync(
                    self._parts.governor.program_ended, self.tenant, self.program_id
                )

    async def __aenter__(self) -> Program:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.end()
