"""The tokenizer of made checkpoints: byte-level BPE, special tokens, our own chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from agentrt.engine.model.corpus import corpus
from agentrt.errors import InternalError

__all__ = ["CHAT_TEMPLATE", "EOS", "PAD", "SPECIAL", "train", "write_tokenizer"]

PAD, START, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (PAD, START, EOS)
"""Special tokens; their ids are their places here, plain text follows."""

CHAT_TEMPLATE = """\
{%- macro text(content) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- elif content is not none and content is not undefined -%}
    {%- for part in content -%}
      {%- if part.type != 'text' -%}
        {{- raise_exception('This model reads text only, not ' ~ part.type ~ '.') -}}
      {%- endif -%}
      {{- part.text -}}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set leading = messages[0].role == 'system' -%}
{%- if tools or leading -%}
  {{- '<|im_start|>system\\n' -}}
  {%- if leading -%}{{- text(messages[0].content) -}}{%- endif -%}
  {%- if tools -%}
    {{- '\\n\\nTools you can call, one JSON description a line:\\n' if leading
        else 'Tools you can call, one JSON description a line:\\n' -}}
    {%- for tool in tools -%}{{- tool | tojson ~ '\\n' -}}{%- endfor -%}
    {{- 'To call one, write <tool_call>{"name": ..., "arguments": {...}}</tool_call>.' -}}
  {%- endif -%}
  {{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {{- '<|im_start|>assistant\\n' ~ text(message.content) -}}
    {%- for call in message.tool_calls or [] -%}
      {%- set asked = call.function if call.function is defined else call -%}
      {{- '\\n' if not loop.first or message.content else '' -}}
      {{- '<tool_call>{"name": ' ~ (asked.name | tojson) ~ ', "arguments": ' -}}
      {{- (asked.arguments if asked.arguments is string else asked.arguments | tojson) -}}
      {{- '}</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
  {%- elif message.role in ('user', 'tool') or (message.role == 'system' and not loop.first) -%}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ text(message.content) ~ '<|im_end|>\\n' -}}
  {%- elif message.role != 'system' -%}
    {{- raise_exception('Unknown role: ' ~ message.role) -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""ChatML framing; tool calls are JSON in ``<tool_call>`` tags, tool results a role of their own."""


def train(words: int) -> Tokenizer:
    """Train a byte-level BPE with exactly ``words`` entries, special tokens included.

    Raises:
        InternalError: the training text is too small for that many entries.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    if tokenizer.get_vocab_size() != words:
        raise InternalError(f"The corpus yields {tokenizer.get_vocab_size()} words, not {words}.")
    return tokenizer


def write_tokenizer(directory: Path, words: int, positions: int) -> None:
    """Write tokenizer, its configuration, the chat template and the generation defaults.

    Args:
        directory: exists; files in it are overwritten.
        words: entries of the vocabulary.
        positions: the longest context, in tokens.
    """
    train(words).save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": EOS,
            "pad_token": PAD,
            "model_max_length": positions,
            "clean_up_tokenization_spaces": False,
        },
    )
    ids = {"eos_token_id": SPECIAL.index(EOS), "pad_token_id": SPECIAL.index(PAD)}
    write_json(directory / "generation_config.json", ids)


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Write ``value`` in one fixed form."""
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
