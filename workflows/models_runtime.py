"""The embedded model: a guide run as one program, its steps as contexts that share one prefix.

What every step begins with is computed once, before the first of them, and stays in the page pool;
each later prompt of the program finds it there, and the counts that come back say how much of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import anyio

from agentrt.errors import (
    AgentRTError,
    BackendUnavailable,
    Cancelled,
    CapacityError,
    QueueFull,
)
from agentrt.workflows.models import (
    Choice,
    FailureKind,
    Message,
    ModelFailure,
    Reply,
    merge_messages,
)

if TYPE_CHECKING:
    from agentrt.engine.params import SamplingParams
    from agentrt.program import Program, TurnResult
    from agentrt.runtime import Runtime

__all__ = ["RuntimeModel"]

PREFIX_CONTEXT = "shared prefix"


class RuntimeModel:
    """Turns of one program of an open runtime.

    Args:
        runtime: stays the caller's; closing the model ends the program only.
        program_id: None takes a fresh one.
        tenant: who owns the program.
        timeout: seconds a turn may take, waiting included.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        program_id: str | None = None,
        tenant: str = "default",
        timeout: float = 600.0,
    ) -> None:
        self._runtime = runtime
        self._id = program_id
        self._tenant = tenant
        self._timeout = timeout
        self._program: Program | None = None
        self._prepared: dict[tuple[tuple[str, str], ...], int] = {}
        self._preparing = anyio.Lock()

    @property
    def name(self) -> str:
        """The model's directory name."""
        return f"runtime:{self._runtime.model_name}"

    @property
    def program_id(self) -> str | None:
        """The program's id once it runs."""
        return self._program.program_id if self._program is not None else self._id

    async def prepare(self, shared: Sequence[Message]) -> int:
        """Compute the shared messages once; return how many tokens all later prompts begin with.

        Raises:
            ModelFailure: the turn failed, or the messages do not fit the model.
        """
        key = tuple((message["role"], message["content"]) for message in shared)
        async with self._preparing:
            if key not in self._prepared:
                self._prepared[key] = await self._compute(shared)
            return self._prepared[key]

    async def choose(
        self, messages: Sequence[Message], choices: Sequence[str], *, context: str
    ) -> Choice:
        """Decode one of ``choices``: nothing else can come out.

        Raises:
            ModelFailure: the turn failed, or the messages do not fit the model.
        """
        from agentrt.engine.params import SamplingParams

        sampling = SamplingParams(
            max_tokens=max(256, *map(len, choices)),
            temperature=0,
            logprobs=0,
            choices=tuple(choices),
        )
        result = await self._turn(messages, sampling, context)
        logprob = sum(token.logprob for token in result.logprobs)
        return Choice(
            result.text,
            evidence=f"{self.name}, decoded under a closed set of {len(choices)}",
            logprob=logprob,
            tokens=result.stats.prompt_tokens + result.stats.output_tokens,
            cached_tokens=result.stats.cached_tokens,
        )

    async def write(
        self, messages: Sequence[Message], *, context: str, max_tokens: int = 512
    ) -> Reply:
        """Return the next assistant message.

        Raises:
            ModelFailure: the turn failed, or the messages do not fit the model.
        """
        from agentrt.engine.params import SamplingParams

        result = await self._turn(
            messages, SamplingParams(max_tokens=max_tokens, temperature=0), context
        )
        stats = result.stats
        return Reply(result.text, stats.prompt_tokens + stats.output_tokens, stats.cached_tokens)

    async def aclose(self) -> None:
        """End the program."""
        if self._program is not None:
            await self._program.end()

    async def _compute(self, shared: Sequence[Message]) -> int:
        from agentrt.engine.params import SamplingParams

        one, other = (self._tokens([*shared, {"role": "user", "content": c}]) for c in "ab")
        prefix = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other))]  # noqa: B905
        sampling = SamplingParams(max_tokens=1, temperature=0)
        with _named_failures(), anyio.fail_after(self._timeout):
            await self._opened().complete(prefix, sampling, context=PREFIX_CONTEXT)
        return len(prefix)

    def _tokens(self, messages: Sequence[Message]) -> list[int]:
        tokenizer = self._runtime.tokenizer
        with _named_failures():
            return tokenizer.encode(tokenizer.render(merge_messages(messages)))

    def _opened(self) -> Program:
        if self._program is None:
            self._program = self._runtime.program(self._id, tenant=self._tenant)
        return self._program

    async def _turn(
        self, messages: Sequence[Message], sampling: SamplingParams, context: str
    ) -> TurnResult:
        # A decision's context is that of its step: the newer turn supersedes the step's older KV.
        line: Sequence[Mapping[str, str]] = merge_messages(messages)
        with _named_failures(), anyio.fail_after(self._timeout):
            return await self._opened().chat(
                line, sampling=sampling, context=context.partition("/")[0]
            )


class _named_failures:
    """Turns the runtime's errors into failures of the model; cancellation passes."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TimeoutError):
            raise ModelFailure(
                "timeout", "The runtime did not answer in time.", remedy="Give it more time."
            ) from error
        if isinstance(error, AgentRTError) and not isinstance(error, ModelFailure):
            raise ModelFailure(_kind(error), error.message, remedy=error.remedy) from error


def _kind(error: AgentRTError) -> FailureKind:
    if isinstance(error, QueueFull):
        return "rate_limited"
    if isinstance(error, BackendUnavailable | Cancelled):
        return "server_error"
    return "refused" if isinstance(error, CapacityError | ValueError) else "server_error"
