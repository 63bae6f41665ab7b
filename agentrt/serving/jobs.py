"""From a request that was understood to a job that can be run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio.to_thread

from agentrt.engine.params import SamplingParams
from agentrt.identity import Identity
from agentrt.scheduling.hints import TurnHints
from agentrt.serving.calls import CallReader
from agentrt.serving.canonical import Digest, answered, chain, for_template, normalise
from agentrt.serving.contexts import Ask
from agentrt.serving.openai import ChatWriter, CompletionWriter, ReplyHead
from agentrt.serving.registry import Ticket
from agentrt.serving.requests import ChatRequest, CompletionRequest, Delivery
from agentrt.serving.turns import Job

if TYPE_CHECKING:
    from agentrt.program import ChatStream
    from agentrt.served import ServedModel

__all__ = ["JobMaker"]


class JobMaker:
    """Makes jobs for one model. ``default_max_tokens`` is for requests that state no limit."""

    def __init__(self, model: ServedModel, default_max_tokens: int) -> None:
        self._model = model
        self._default_max_tokens = default_max_tokens

    def chat(
        self,
        tenant: str,
        who: Identity,
        asked: ChatRequest,
        head: ReplyHead,
        adapter: str | None = None,
    ) -> Job:
        """Return the job of a chat request, which may go through an adapter of the model."""
        digests = chain([tenant, head.model, asked.tools], asked.messages)
        messages = for_template(asked.messages)
        calls = CallReader() if asked.calls else None
        writing = self._writing(asked.sampling, asked.delivery, head)
        writer = ChatWriter(*writing, calls=calls)

        async def start(ticket: Ticket) -> ChatStream:
            # A long conversation takes long to tokenise: other turns must not wait for it.
            prompt = await anyio.to_thread.run_sync(ticket.builder.build, messages, asked.tools)
            writer.prompt_tokens = len(prompt)
            return await self._submit(ticket, prompt, asked.sampling, who, asked.limited, adapter)

        def finish(ticket: Ticket, tokens: Sequence[int]) -> Digest:
            [answer] = normalise([writer.message])
            ticket.builder.note_output(tokens, answer)
            return answered(digests[-1], answer)

        return Job(
            ask=Ask(tenant, who.program, digests),
            who=who,
            stream=asked.delivery.stream,
            start=start,
            finish=finish,
            writer=writer,
        )

    def completion(
        self,
        tenant: str,
        who: Identity,
        asked: CompletionRequest,
        head: ReplyHead,
        adapter: str | None = None,
    ) -> Job:
        """Return the job of a completion. Without a name it is a program of one turn."""
        given = asked.prompt
        prompt = self._model.tokenizer.encode(given) if isinstance(given, str) else given
        # A prompt is no conversation: a named program's completions follow each other in one
        # context, whatever they say.
        root = {"role": "completion"}
        base = chain([tenant, head.model, who.program], [root])[0]
        writer = CompletionWriter(*self._writing(asked.sampling, asked.delivery, head))
        writer.prompt_tokens = len(prompt)

        async def start(ticket: Ticket) -> ChatStream:
            return await self._submit(ticket, prompt, asked.sampling, who, asked.limited, adapter)

        return Job(
            ask=Ask(tenant, who.program, [base, answered(base, {**root, "prompt": prompt})]),
            who=replace(who, last=who.last or who.program is None),
            stream=asked.delivery.stream,
            start=start,
            finish=lambda ticket, tokens: base,
            writer=writer,
        )

    async def _submit(
        self,
        ticket: Ticket,
        prompt: Sequence[int],
        sampling: SamplingParams,
        who: Identity,
        limited: bool,
        adapter: str | None,
    ) -> ChatStream:
        if not limited:
            room = max(1, self._model.max_context - len(prompt))
            sampling = replace(sampling, max_tokens=min(self._default_max_tokens, room))
        return await ticket.program.stream(
            prompt,
            sampling,
            context=ticket.placement.context,
            next_tool=who.next_tool,
            last=ticket.final,
            hints=_hints(who, ticket),
            adapter=adapter,
        )

    def _writing(
        self, sampling: SamplingParams, delivery: Delivery, head: ReplyHead
    ) -> tuple[ReplyHead, Delivery, bool, Callable[[Sequence[int]], str]]:
        return head, delivery, sampling.logprobs is not None, self._model.tokenizer.decode


def _hints(who: Identity, ticket: Ticket) -> TurnHints:
    """Return the turn's hints, with what only its place tells: its parent, a sub-agent's end."""
    keep = 0.0 if ticket.leaves else who.hints.keep_seconds
    if (ticket.parent, keep) == (None, who.hints.keep_seconds):
        return who.hints
    return replace(who.hints, parent=ticket.parent, keep_seconds=keep)
