"""A model's tokenizer: text to tokens and back, chat templates, end tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import tokenizers

from agentrt.engine.detokenize import ByteDetokenizer, ByteTable, Detokenizer, WindowDetokenizer
from agentrt.engine.model.config import read_json
from agentrt.engine.prompt import PromptBuilder
from agentrt.engine.template import ChatTemplate, Message
from agentrt.errors import ModelError

__all__ = ["Detokenizer", "PromptBuilder", "Tokenizer"]

_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """A vocabulary with its chat template. Use :meth:`from_directory`.

    Args:
        backend: the vocabulary.
        name: of the model.
        eos_ids: tokens that end a turn.
        template: the chat template, None if the model has none.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        name: str,
        eos_ids: frozenset[int] = frozenset(),
        end_of_turn: int | None = None,
        template: ChatTemplate | None = None,
    ) -> None:
        self.name = name
        self.eos_ids = eos_ids
        self.end_of_turn = min(eos_ids, default=None) if end_of_turn is None else end_of_turn
        self._backend = backend
        self._template = template
        added = backend.get_added_tokens_decoder()
        self._special = frozenset(i for i, token in added.items() if token.special)
        self._bytes = (
            ByteTable(backend.id_to_token, self._special) if _is_byte_level(backend) else None
        )

    @classmethod
    def from_directory(
        cls, directory: Path | str, *, now: Callable[[], datetime] = datetime.now
    ) -> Tokenizer:
        """Load ``tokenizer.json`` and the small files beside it.

        Args:
            directory: a Hugging Face model directory.
            now: the wall clock, for templates that write today's date.

        Raises:
            ModelError: ``tokenizer.json`` is missing or malformed, or another file is malformed.
        """
        path = Path(directory)
        backend = _load_backend(path / "tokenizer.json")
        settings = _optional_json(path / "tokenizer_config.json")
        found = {name: _content(settings.get(name)) for name in _NAMED_TOKENS}
        named = {name: text for name, text in found.items() if text is not None}
        end = backend.token_to_id(named.get("eos_token", ""))
        return cls(
            backend,
            name=path.resolve().name,
            eos_ids=_eos_ids(path) | ({end} if end is not None else frozenset()),
            end_of_turn=end,
            template=_load_template(path, settings, named, now),
        )

    @property
    def vocab_size(self) -> int:
        """Return how many tokens the vocabulary has, special ones included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return the tokens of ``text``; names of special tokens in it become those tokens.

        Args:
            text: any text.
            add_special: also what the model wants around a plain text, such as a start token; a
                rendered chat has it already.
        """
        return list(self._backend.encode(text, add_special_tokens=add_special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens without special and unknown ones; broken UTF-8 as U+FFFD."""
        if self._bytes is not None:
            return self._bytes.bytes_of(ids).decode("utf-8", "replace")
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def definition(self) -> str:
        """Return the text of a ``tokenizer.json`` that says what each token is."""
        return str(self._backend.to_str())

    def stream(self) -> Detokenizer:
        """Return a detokenizer for one output; its pieces together equal :meth:`decode` of all."""
        if self._bytes is not None:
            return ByteDetokenizer(self._bytes)
        return WindowDetokenizer(self.decode)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Return a conversation's text; see :meth:`agentrt.engine.template.ChatTemplate.render`.

        Raises:
            InvalidRequest: the template refuses the messages.
            ModelError: the model has no chat template.
        """
        if self._template is None:
            raise ModelError(
                f"The model {self.name} has no chat template.",
                remedy="Use the completions API, or put chat_template.jinja into its directory.",
            )
        return self._template.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt
        )


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    """Say whether decoding is nothing but spelling tokens as bytes."""
    decoder = json.loads(backend.to_str()).get("decoder") or {}
    return bool(decoder.get("type") == "ByteLevel")


def _load_backend(file: Path) -> tokenizers.Tokenizer:
    if not file.is_file():
        raise ModelError(
            f"{file} does not exist.",
            remedy="Complete the model directory; other tokenizer formats are not read.",
        )
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more precise
        raise ModelError(
            f"{file} is not a tokenizer: {error}.", remedy="Download the model again."
        ) from error


def _optional_json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _content(token: object) -> str | None:
    """Return a special token's text, given as a text or as an object that holds it."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _eos_ids(path: Path) -> frozenset[int]:
    """Return the end tokens that the generation defaults name, else those of config.json."""
    for file in ("generation_config.json", "config.json"):
        value = _optional_json(path / file).get("eos_token_id")
        if isinstance(value, int):
            return frozenset({value})
        if isinstance(value, list):
            return frozenset(token for token in value if isinstance(token, int))
    return frozenset()


def _load_template(
    path: Path,
    settings: Mapping[str, Any],
    named: Mapping[str, str],
    now: Callable[[], datetime],
) -> ChatTemplate | None:
    """Return the template of ``chat_template.jinja``, else that in the tokenizer's settings."""
    file, source = path / "chat_template.jinja", None
    if file.is_file():
        source = file.read_text(encoding="utf-8")
    else:
        file, source = path / "tokenizer_config.json", _chosen(settings.get("chat_template"))
    if source is None:
        return None
    return ChatTemplate(source, origin=str(file), variables=named, now=now)


def _chosen(template: object) -> str | None:
    """Return the template named ``default`` where there are several."""
    if isinstance(template, list):
        by_name = {
            entry.get("name"): entry.get("template")
            for entry in template
            if isinstance(entry, Mapping)
        }
        template = by_name.get("default")
    return template if isinstance(template, str) else None
