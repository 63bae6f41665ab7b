"""The engine: one thread that owns the scheduler and the backend, and an async front to it.

Each cycle drains the commands, asks the scheduler for a plan, runs it, reads the output, commits,
and hands out chunks. The async side only posts commands and is only posted to: neither side ever
waits for the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import anyio.to_thread

from agentrt.engine.backend import TurnBackend
from agentrt.engine.choices import ChoiceTrie, encode_choices
from agentrt.engine.faults import RestartLimits
from agentrt.engine.grammar import Grammar, grammar_error
from agentrt.engine.loop import EngineLoop
from agentrt.engine.lora.book import AdapterBook
from agentrt.engine.opened import OpenTurn
from agentrt.engine.output import StreamTokenizer, TurnOutput
from agentrt.engine.params import SamplingParams
from agentrt.engine.statistics import EngineStatistics
from agentrt.engine.stream import Bridge, Chunk, TurnStream
from agentrt.engine.tiers.base import PageMover
from agentrt.errors import BackendUnavailable, InvalidRequest
from agentrt.scheduling.graph_declared import DeclaredGraph, Edge, Step
from agentrt.scheduling.hints import NO_HINTS, TurnHints
from agentrt.scheduling.plan import (
    Event,
    OpenRequest,
    SchedulerProtocol,
    ToolEvent,
    TurnRequest,
)
from agentrt.scheduling.tokens import TokenList

if TYPE_CHECKING:
    from agentrt.engine.lora.adapter import Adapter
    from agentrt.engine.matcher import CompiledGrammar, GrammarCompiler

__all__ = ["Chunk", "Engine", "EngineRequest", "EngineStatistics", "OpenTurn", "TurnStream"]

_DEFAULT_SAMPLING = SamplingParams()


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One LLM call of a program. ``prompt`` and ``forced`` are token ids.

    With ``forced``, every step is computed and the recorded tokens come out; the turn ends with
    ``stop`` after the last of them, and of ``sampling`` only ``logprobs`` counts.
    ``next_tool``, ``last`` and ``hints`` may be wrong, and never change a token.
    """

    turn_id: str
    program_id: str
    prompt: Sequence[int]
    sampling: SamplingParams = _DEFAULT_SAMPLING
    context: str = "main"
    tenant: str = "default"
    forced: Sequence[int] | None = None
    next_tool: str | None = None
    last: bool = False
    hints: TurnHints = NO_HINTS
    adapter: str | None = None
    """Name of the adapter to go through; None is the model alone."""

    def validate(self) -> None:
        """Check what can be checked without the model.

        Raises:
            InvalidRequest: an empty prompt or forced output, a sampling field out of its range, or
                choices or a grammar together with forced output.
        """
        self.sampling.validate()
        if self.forced is not None and self.sampling.limited:
            limit = "choices are" if self.sampling.choices is not None else "a grammar is"
            raise InvalidRequest(
                f"{limit} set together with forced output.", remedy="Leave out one of the two."
            )
        for name, tokens in (("prompt", self.prompt), ("forced", self.forced)):
            if tokens is not None and len(tokens) == 0:
                raise InvalidRequest(f"{name} is empty.", remedy=f"Give {name} at least one token.")


class Engine:
    """Runs turns on a scheduler and a backend; both belong to its thread from ``start`` on.

    Args:
        scheduler: decides; not to be touched by anyone else after ``start``.
        backend: computes; likewise.
        tokenizer: makes text of tokens and names the end tokens; None hands out tokens only.
        eos_ids: the end tokens, where they are not (only) the tokenizer's.
        clock: seconds, monotonic.
        on_event: called in the engine's thread with every scheduler event; must be quick. What it
            raises is logged and counted, and stops nothing.
        check: verify the scheduler's integrity after every step; for tests, as it takes time.
        called_tool: names the tool that an answer calls, for turns that do not say it ahead.
        limits: how often the engine may start anew after faults.
        adapters: those that requests may name.
        mover: carries out the scheduler's transfers, where it has a host tier; started and closed
            with the engine.
        overlap: launch a step before the last one's tokens are read, where the backend can. It
            changes no token.
        preempt: give up a step of much prefill, where the backend can, when a turn comes meanwhile;
            for schedulers that then let that turn start (``SchedulerConfig.newcomer_share``).
    """

    def __init__(
        self,
        scheduler: SchedulerProtocol,
        backend: TurnBackend,
        *,
        tokenizer: StreamTokenizer | None = None,
        eos_ids: frozenset[int] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
        on_event: Callable[[Event], None] | None = None,
        check: bool = False,
        called_tool: Callable[[str], str | None] | None = None,
        mover: PageMover | None = None,
        limits: RestartLimits | None = None,
        overlap: bool = False,
        preempt: bool = False,
        adapters: AdapterBook | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._adapters = adapters or AdapterBook()
        self._eos_ids = eos_ids | (tokenizer.eos_ids if tokenizer is not None else frozenset())
        self._clock = clock
        self._loop = EngineLoop(
            scheduler,
            backend,
            clock=clock,
            on_event=on_event,
            check=check,
            called_tool=called_tool,
            mover=mover,
            limits=limits,
            overlap=overlap,
            preempt=preempt,
        )
        self._thread: threading.Thread | None = None
        self._compiler: GrammarCompiler | None = None

    def start(self) -> None:
        """Start the thread. Starting twice is an error.

        Raises:
            BackendUnavailable: it was started before.
        """
        if self._thread is not None:
            raise BackendUnavailable(
                "The engine was started before.", remedy="Make a new Engine for each start."
            )
        self._thread = threading.Thread(target=self._loop.run, name="agentrt-engine", daemon=True)
        self._thread.start()

    async def submit(self, request: EngineRequest) -> TurnStream:
        """Hand in a turn and return its stream once the scheduler has taken it.

        Raises:
            InvalidRequest: a field is wrong, the turn id is in use, or there is no such adapter.
            GrammarError: the sampling's grammar cannot be used.
            ProgramTooLarge: the turn can never fit the page pool.
            QueueFull: too many turns are waiting.
            BackendUnavailable: the engine is not running, is shutting down, or has broken.
        """
        return await self.hand_in(request, None)

    def open(
        self,
        prefix: Sequence[int],
        *,
        turn_id: str,
        program_id: str,
        context: str = "main",
        adapter: str | None = None,
        hand_in: Callable[[EngineRequest, str], Awaitable[TurnStream]] | None = None,
    ) -> OpenTurn:
        """Open a turn whose prompt begins with ``prefix`` and is not complete yet.

        It is computed as it grows, with what the turns of a step leave over. Never waits; what
        goes wrong with it is logged, and shows in the sealed turn if it matters. ``hand_in`` takes
        the sealed request, by default this engine's.

        Raises:
            InvalidRequest: ``prefix`` is empty, or there is no such adapter.
        """
        if len(prefix) == 0:
            raise InvalidRequest("prefix is empty.", remedy="Give prefix at least one token.")
        found = None if adapter is None else self._adapters.find(adapter)
        request = OpenRequest(turn_id, program_id, _keyed(prefix, found), context)
        self._loop.open(request, list(prefix), found)
        return OpenTurn(turn_id, prefix, self._loop, hand_in or self.hand_in)

    async def hand_in(self, request: EngineRequest, opened: str | None) -> TurnStream:
        """Hand in a turn that seals the open turn ``opened``. See ``submit``."""
        request.validate()
        adapter = None if request.adapter is None else self._adapters.find(request.adapter)
        output = TurnOutput(
            request.sampling,
            tokenizer=self._tokenizer,
            eos_ids=self._eos_ids,
            forced=request.forced is not None,
        )
        choices = await self._encode_choices(request.sampling)
        grammar = await self._compile_grammar(request.sampling)
        stream = TurnStream(request.turn_id, Bridge.here(), self.cancel)
        forced = request.forced
        turn = TurnRequest(
            turn_id=request.turn_id,
            program_id=request.program_id,
            tokens=_keyed(request.prompt, adapter),
            max_output=_max_output(request, choices),
            context=request.context,
            tenant=request.tenant,
            next_tool=request.next_tool,
            last=request.last,
            hints=request.hints,
        )
        if self._thread is None:
            raise BackendUnavailable(
                "The engine was not started.", remedy="Call start(), or use `async with engine`."
            )
        asked = (request.prompt, request.sampling, forced, choices)
        self._loop.submit(turn, *asked, output, stream, grammar, opened, adapter)
        await stream.accepted()
        return stream

    async def _encode_choices(self, sampling: SamplingParams) -> ChoiceTrie | None:
        """Return the token paths of the choices, if there are any.

        Raises:
            InvalidRequest: there is no tokenizer, it cannot spell a choice, or ``max_tokens`` has
                no room for the longest.
        """
        if sampling.choices is None:
            return None
        if self._tokenizer is None:
            raise InvalidRequest(
                "choices hold texts, but the engine runs without a tokenizer.",
                remedy="Leave choices out, or give the engine a tokenizer.",
            )
        # A thousand long texts take a while: other turns must not wait for them.
        trie = await anyio.to_thread.run_sync(
            encode_choices, sampling.choices, self._tokenizer, self._eos_ids
        )
        if trie.longest > sampling.max_tokens:
            raise InvalidRequest(
                f"max_tokens is {sampling.max_tokens}, but the longest of the choices takes "
                f"{trie.longest} tokens.",
                remedy=f"Set max_tokens to at least {trie.longest}, or shorten the choices.",
            )
        return trie

    async def _compile_grammar(self, sampling: SamplingParams) -> CompiledGrammar | None:
        """Return the grammar for the model's tokens, if there is one.

        Raises:
            GrammarError: it cannot be used, or the engine's tokenizer does not tell its tokens.
            BackendUnavailable: the package that compiles grammars is not installed.
        """
        if sampling.grammar is None:
            return None
        if self._compiler is None:
            self._compiler = _make_compiler(self._tokenizer, self._eos_ids, sampling.grammar)
        return await anyio.to_thread.run_sync(self._compiler.compile, sampling.grammar)

    def cancel(self, turn_id: str) -> None:
        """Have a turn end at the next commit; unknown ids are ignored. Any thread may call this."""
        self._loop.cancel(turn_id)

    def end_program(self, program_id: str) -> None:
        """Cancel a program's turns and release what is kept for it. Any thread may call this."""
        self._loop.call(lambda scheduler, now: scheduler.end_program(program_id, now))

    def end_context(self, program_id: str, context: str) -> None:
        """Release what is kept for one context of a program. Any thread may call this."""
        self._loop.call(lambda scheduler, now: scheduler.end_context(program_id, context, now))

    def declare(self, program_id: str, steps: Sequence[Step], edges: Sequence[Edge]) -> None:
        """Say what a program is going to do. Any thread may call this.

        Raises:
            InvalidRequest: the graph contradicts itself.
        """
        DeclaredGraph.of(steps, edges)
        self._loop.call(lambda scheduler, now: scheduler.declare(program_id, steps, edges))

    def tool_event(self, event: ToolEvent) -> None:
        """Pass on what a sandbox reports. Any thread may call this."""
        self._loop.call(lambda scheduler, now: scheduler.tool_event(event, now))

    def statistics(self) -> EngineStatistics:
        """Return the figures of the last step; never blocks."""
        return self._loop.statistics()

    async def aclose(self, drain: float = 0.0) -> None:
        """Take no more turns, let the open ones run for ``drain`` seconds, cancel the rest, end.

        Idempotent; a second call may only bring the end nearer.
        """
        self._loop.close(self._clock() + drain)
        if self._thread is not None:
            await anyio.to_thread.run_sync(self._thread.join, abandon_on_cancel=True)

    async def __aenter__(self) -> Engine:
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.aclose()

    def __repr__(self) -> str:
        figures = self.statistics()
        return f"<Engine [{figures.state}, {figures.turns} turns, {figures.steps} steps]>"


def _keyed(prompt: Sequence[int], adapter: Adapter | None) -> TokenList:
    """Return a prompt whose pages no turn of another adapter finds."""
    return TokenList(prompt, None if adapter is None else adapter.namespace)


def _max_output(request: EngineRequest, choices: ChoiceTrie | None) -> int:
    """Return how many tokens the turn can have."""
    if request.forced is not None:
        return len(request.forced)
    return request.sampling.max_tokens if choices is None else choices.longest


def _make_compiler(tokenizer: object, eos_ids: frozenset[int], grammar: Grammar) -> GrammarCompiler:
    try:
        from agentrt.engine.matcher import GrammarCompiler, GrammarTokenizer
    except ImportError as error:
        raise BackendUnavailable(
            f"Grammars need the package llguidance: {error}.",
            remedy="Run `pip install llguidance`, or leave the grammar out.",
        ) from error
    if not isinstance(tokenizer, GrammarTokenizer):
        raise grammar_error(
            grammar.field,
            "needs a tokenizer that says what its tokens are",
            "Leave the grammar out, or give the engine a tokenizer with definition().",
        )
    return GrammarCompiler(tokenizer, eos_ids)
