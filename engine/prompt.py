"""Append-stable prompts: the next prompt of a context starts with the tokens that it already has.

Rendering a conversation anew does not give the tokens that the model produced back: text can be cut
into tokens in several ways, and templates drop or trim parts. So an own assistant message keeps its
tokens, and only what follows it is rendered. Keys and values computed for it then stay usable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agentrt.engine.growing import GrowingPrompt
from agentrt.engine.template import Message, plain_message
from agentrt.errors import InvalidRequest

__all__ = ["Conversation", "PromptBuilder"]

# Stands for our own answer while a template is rendered; no template and no message contains it.
_PLACEHOLDER = "AGENTRT7f3a9c52e1d84b06ANSWER"
# Likewise for the content of a message that is not complete yet.
_CONTENT = "AGENTRT7f3a9c52e1d84b06CONTENT"
# Before it, to see whether the template drops spaces; none ends its own text so.
_SPACES = "\n\t \n\t "

Tools = Sequence[Mapping[str, Any]] | None


class _Renderer(Protocol):
    """What a prompt builder needs of a tokenizer."""

    @property
    def eos_ids(self) -> frozenset[int]: ...

    def encode(self, text: str) -> list[int]: ...

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Tools = None,
        add_generation_prompt: bool = True,
    ) -> str: ...


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation, in comparable form, and the tokens that stand for it. Never changed."""

    messages: list[Message]
    tools: Sequence[Mapping[str, Any]]
    tokens: list[int]


class PromptBuilder:
    """Prompts of one context of one program, one after another.

    Args:
        tokenizer: the model's :class:`~agentrt.engine.tokens.Tokenizer`.
    """

    def __init__(self, tokenizer: _Renderer) -> None:
        self._tokenizer = tokenizer
        self._prompt: Conversation | None = None
        self._answered: Conversation | None = None

    @property
    def answered(self) -> Conversation | None:
        """The last conversation with its answer, if there is one: what ``resume`` takes."""
        return self._answered

    def resume(self, answered: Conversation) -> None:
        """Go on from another builder's conversation, on the same tokenizer, as if it were own."""
        self._answered = answered

    def build(self, messages: Sequence[Message], tools: Tools = None) -> list[int]:
        """Return the tokens of a prompt that asks for the next assistant message.

        If ``messages`` continue the last conversation (same tools, same messages, the noted answer,
        then at least one more), the result starts with exactly the earlier prompt and output. An
        edited history is rendered from its beginning.

        Raises:
            InvalidRequest: the chat template refuses the messages.
            ModelError: the model has no chat template.
        """
        plain: list[Message] = [_comparable(message) for message in messages]
        asked: Sequence[Mapping[str, Any]] = [dict(tool) for tool in tools or ()]
        if self._prompt is None or (plain, asked) != (self._prompt.messages, self._prompt.tools):
            tokens = self._continued(messages, plain, asked)
            if tokens is None:
                tokens = self._tokenizer.encode(self._tokenizer.render(messages, tools=tools))
            self._prompt = Conversation(plain, asked, tokens)
        return list(self._prompt.tokens)

    def begin(self, messages: Sequence[Message], tools: Tools = None) -> GrowingPrompt | None:
        """Return the beginning of the prompt that ``build`` gives once ``messages`` are complete.

        The content of the last message is the part that still grows; what it has is left out. None
        if the template does not show such content as it is.

        Raises:
            InvalidRequest: the chat template refuses the messages.
            ModelError: the model has no chat template.
        """
        if not messages:
            raise InvalidRequest("There are no messages.", remedy="Send at least one message.")
        plain: list[Message] = [_comparable(message) for message in messages]
        asked: Sequence[Mapping[str, Any]] = [dict(tool) for tool in tools or ()]
        marked = [*messages[:-1], {**messages[-1], "content": _SPACES + _CONTENT}]
        state = self._answered
        if state is not None and _continues(state, plain, asked, len(messages) - 1):
            text = self._after(marked, len(state.messages) - 1, asked)
            head = state.tokens
        else:
            text, head = self._tokenizer.render(marked, tools=tools), []
        before, found, rest = (text or "").partition(_CONTENT)
        if not found or _CONTENT in rest:
            return None
        strips = not before.endswith(_SPACES)
        return GrowingPrompt(
            self._tokenizer.encode,
            head,
            before.removesuffix(_SPACES),
            shared=self._tokenizer.eos_ids,
            strips=strips,
        )

    def note_output(self, tokens: Sequence[int], message: Message) -> None:
        """Remember what the model answered to the prompt that was built last.

        Args:
            tokens: all output tokens, the end token included if there was one.
            message: the assistant message that the caller will send back with the next prompt.

        Raises:
            InvalidRequest: no prompt was built yet.
        """
        if self._prompt is None:
            raise InvalidRequest(
                "There is no prompt that this output could answer.", remedy="Call build first."
            )
        prompt = self._prompt
        said = [*prompt.messages, _comparable(message)]
        self._answered = Conversation(said, prompt.tools, [*prompt.tokens, *tokens])

    def _continued(
        self, messages: Sequence[Message], plain: list[Message], tools: Sequence[Mapping[str, Any]]
    ) -> list[int] | None:
        """Return the earlier tokens and those of what follows; None if this continues nothing."""
        state = self._answered
        if state is None or not _continues(state, plain, tools, len(plain) - 1):
            return None
        rest = self._after(messages, len(state.messages) - 1, tools)
        return None if rest is None else state.tokens + self._joint(state.tokens, rest)

    def _after(
        self, messages: Sequence[Message], own: int, tools: Sequence[Mapping[str, Any]]
    ) -> str | None:
        """Return what the template writes after the content of message ``own``.

        None if it cannot be told: the template refuses the placeholder or does not show it as is.
        """
        marked = list(messages)
        marked[own] = {"role": messages[own]["role"], "content": _PLACEHOLDER}
        try:
            text = self._tokenizer.render(marked, tools=tools or None)
        except InvalidRequest:
            return None  # the plain rendering that follows raises it again if it is not our doing
        before, found, rest = text.partition(_PLACEHOLDER)
        return rest if found and before and _PLACEHOLDER not in rest else None

    def _joint(self, tokens: list[int], rest: str) -> list[int]:
        """Return the tokens of ``rest``, less the end token that the output already has."""
        ids = self._tokenizer.encode(rest)
        eos = self._tokenizer.eos_ids
        if tokens and tokens[-1] in eos and ids and ids[0] in eos:
            return ids[1:]
        return ids


def _continues(
    state: Conversation, plain: list[Message], tools: Sequence[Mapping[str, Any]], complete: int
) -> bool:
    """Say whether the first ``complete`` messages begin with all that was said so far."""
    count = len(state.messages)
    return tools == state.tools and complete >= count and plain[:count] == state.messages


def _comparable(message: Message) -> Message:
    """Return a message without what clients add or drop freely: nulls, empties, outer spaces."""
    plain = plain_message(message)
    if plain["role"] == "assistant" and isinstance(plain.get("content"), str):
        plain["content"] = plain["content"].strip()
    return {key: value for key, value in plain.items() if value not in (None, "", [], {})}
