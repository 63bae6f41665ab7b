"""What a guide run asks of a language model, and a model that answers from a script.

Two things are asked: one answer of a closed set (:meth:`GuideModel.choose`), and a text
(:meth:`GuideModel.write`). Whatever goes wrong is a :class:`ModelFailure` with a named kind, so
that a step fails with a reason instead of a run that hangs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from agentrt.errors import AgentRTError

__all__ = [
    "Choice",
    "FailureKind",
    "GuideModel",
    "Message",
    "ModelFailure",
    "Reply",
    "ScriptedModel",
    "SharesPrefix",
    "merge_messages",
]

Message: TypeAlias = Mapping[str, str]
"""A chat message: ``role`` (system, user, assistant) and ``content``."""

FailureKind: TypeAlias = Literal[
    "timeout",
    "rate_limited",
    "server_error",
    "unreachable",
    "refused",
    "truncated",
    "nonsense",
    "unexpected",
]


class ModelFailure(AgentRTError, RuntimeError):
    """A model did not give a usable answer; ``kind`` names how.

    ``timeout``, ``rate_limited``, ``server_error`` and ``unreachable`` may pass by themselves;
    ``truncated`` and ``nonsense`` are answers that cannot be used; ``refused`` is a request that
    the server will not take; ``unexpected`` is a question that a script has no answer to.
    """

    def __init__(self, kind: FailureKind, message: str, *, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Choice:
    """An answer of a closed set.

    ``tokens`` is prompt plus output, ``cached_tokens`` how many of the prompt's were not computed
    again. ``logprob`` is the answer's natural logarithm of probability where the model tells it;
    ``evidence`` is one line on how it was obtained.
    """

    answer: str
    evidence: str = ""
    logprob: float | None = None
    tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """A text and its account; counts as :class:`Choice`'s."""

    text: str
    tokens: int = 0
    cached_tokens: int = 0


class GuideModel(Protocol):
    """A model as guides use it. ``name`` identifies it in a run's fingerprint.

    ``context`` names the line of thought: the step, or ``step/edge`` for the decision of an edge.
    Calls of several contexts may be under way at once.
    """

    @property
    def name(self) -> str:
        """What identifies the model."""

    async def choose(
        self, messages: Sequence[Message], choices: Sequence[str], *, context: str
    ) -> Choice:
        """Return one of ``choices`` (at least two, all different).

        Raises:
            ModelFailure: no usable answer, by kind.
        """

    async def write(
        self, messages: Sequence[Message], *, context: str, max_tokens: int = 512
    ) -> Reply:
        """Return the next assistant message, of at most ``max_tokens`` tokens.

        Raises:
            ModelFailure: no usable answer, by kind.
        """

    async def aclose(self) -> None:
        """Release what the model holds. Idempotent."""


@runtime_checkable
class SharesPrefix(Protocol):
    """A model that can compute and keep what all steps of a run begin with."""

    async def prepare(self, shared: Sequence[Message]) -> int:
        """Compute the messages that every later call starts with; return their tokens.

        Raises:
            ModelFailure: they could not be computed.
        """


def merge_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return the messages with neighbours of one role joined by an empty line.

    Chat templates of some models insist on roles that alternate.
    """
    merged: list[dict[str, str]] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"]:
            merged[-1]["content"] += "\n\n" + message["content"]
        else:
            merged.append({"role": message["role"], "content": message["content"]})
    return merged


Answer: TypeAlias = str | Exception
ScriptFunction: TypeAlias = Callable[[Sequence[Message], Sequence[str] | None, str], Answer]
"""Given the messages, the choices (None for a text) and the context."""
Script: TypeAlias = Sequence[Answer] | Mapping[str, Answer | Sequence[Answer]] | ScriptFunction


class ScriptedModel:
    """Answers from a script; for tests, and for runs whose decisions are known.

    Args:
        script: answers in the order of the calls; or by context, where a decision's context is
            looked up as ``step/edge``, a list is used up in order, and a single answer is given
            every time; or a function. An answer that is an exception is raised.
        name: for the fingerprint.
        tokens: counted per call.

    Answers are handed on as they are: that they belong to the closed set is for the caller to
    check, as it is with any model that is not constrained.
    """

    def __init__(self, script: Script = (), *, name: str = "scripted", tokens: int = 0) -> None:
        self.calls: list[str] = []
        self._name = name
        self._tokens = tokens
        self._function: ScriptFunction | None = None
        self._in_order: list[Answer] | None = None
        self._by_context: dict[str, Answer | list[Answer]] = {}
        if isinstance(script, Mapping):
            self._by_context = {context: _waiting(found) for context, found in script.items()}
        elif callable(script):
            self._function = script
        else:
            self._in_order = list(script)[::-1]

    @property
    def name(self) -> str:
        """What identifies the model."""
        return self._name

    async def choose(
        self, messages: Sequence[Message], choices: Sequence[str], *, context: str
    ) -> Choice:
        """Return the script's answer, whether it is one of ``choices`` or not.

        Raises:
            ModelFailure: the script has no answer.
        """
        answer = self._answer(messages, choices, context)
        return Choice(answer, evidence=f"script, {context}", tokens=self._tokens)

    async def write(
        self, messages: Sequence[Message], *, context: str, max_tokens: int = 512
    ) -> Reply:
        """Return the script's text.

        Raises:
            ModelFailure: the script has no answer.
        """
        return Reply(self._answer(messages, None, context), tokens=self._tokens)

    async def aclose(self) -> None:
        """Nothing is held."""

    def _answer(
        self, messages: Sequence[Message], choices: Sequence[str] | None, context: str
    ) -> str:
        self.calls.append(context)
        answer = self._next(messages, choices, context)
        if answer is None:
            raise ModelFailure(
                "unexpected",
                f"The script has no answer for {context!r}.",
                remedy="Add one, or check why the run came here.",
            )
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _next(
        self, messages: Sequence[Message], choices: Sequence[str] | None, context: str
    ) -> Answer | None:
        if self._function is not None:
            return self._function(messages, choices, context)
        found = self._by_context.get(context) if self._in_order is None else self._in_order
        if isinstance(found, list):
            return found.pop() if found else None
        return found


def _waiting(found: Answer | Sequence[Answer]) -> Answer | list[Answer]:
    """Return a list of answers with the first one last, one answer as it is."""
    return found if isinstance(found, str | Exception) else list(found)[::-1]
