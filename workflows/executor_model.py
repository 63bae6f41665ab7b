"""Model calls of a step: every one of them is recorded, and the shared prefix is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from agentrt.workflows.decide import DECISIONS
from agentrt.workflows.executor_context import Calls, digest
from agentrt.workflows.guide import Edge
from agentrt.workflows.models import Choice, GuideModel, Message, Reply, SharesPrefix
from agentrt.workflows.prompt import edge_messages

__all__ = ["RecordedModel"]


class RecordedModel:
    """A model whose answers go through the run's log. Messages are logged as their digest."""

    def __init__(self, model: GuideModel) -> None:
        self._model = model

    async def write(
        self,
        shared: Sequence[Message],
        messages: Sequence[Message],
        step: str,
        max_tokens: int,
        calls: Calls,
    ) -> Reply:
        """Return the findings of a step.

        Raises:
            ModelFailure: no usable answer.
        """
        whole = [*shared, *messages]
        request = {"asks": "text", "context": step, "messages": digest(whole), "model": self.name}
        live = partial(self._write, shared, whole, step, max_tokens)
        outcome = await calls.call("model_called", request, live)
        return Reply(outcome["text"], outcome["tokens"], outcome["cached_tokens"])

    async def choose(
        self,
        shared: Sequence[Message],
        messages: Sequence[Message],
        edge: Edge,
        findings: str,
        calls: Calls,
    ) -> Choice:
        """Return whether an edge is taken: enabled or disabled.

        Raises:
            ModelFailure: no usable answer.
        """
        whole = [*shared, *messages, *edge_messages(edge, findings)]
        context = f"{edge.source}/{edge.name}"
        asked = digest(whole)
        request = {"asks": "choice", "context": context, "messages": asked, "model": self.name}
        outcome = await calls.call(
            "model_called", request, partial(self._choose, shared, whole, context)
        )
        return Choice(
            outcome["text"],
            outcome["evidence"],
            outcome["logprob"],
            outcome["tokens"],
            outcome["cached_tokens"],
        )

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    async def _prepare(self, shared: Sequence[Message]) -> None:
        if isinstance(self._model, SharesPrefix):
            await self._model.prepare(shared)

    async def _write(
        self, shared: Sequence[Message], whole: Sequence[Message], step: str, max_tokens: int
    ) -> dict[str, Any]:
        await self._prepare(shared)
        reply = await self._model.write(whole, context=step, max_tokens=max_tokens)
        return {
            "text": reply.text,
            "tokens": reply.tokens,
            "cached_tokens": reply.cached_tokens,
        }

    async def _choose(
        self, shared: Sequence[Message], whole: Sequence[Message], context: str
    ) -> dict[str, Any]:
        await self._prepare(shared)
        choice = await self._model.choose(whole, DECISIONS, context=context)
        return {
            "text": choice.answer,
            "evidence": choice.evidence,
            "logprob": choice.logprob,
            "tokens": choice.tokens,
            "cached_tokens": choice.cached_tokens,
        }
