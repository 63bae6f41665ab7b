"""Grammars compiled for one vocabulary, by llguidance: which tokens may come next.

llguidance never raises for a grammar or a token that does not fit: a matcher goes into an error
state instead, which is read here and raised or kept as text. Compiling and masks release the GIL.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from agentrt.engine.grammar import Grammar, grammar_error
from agentrt.errors import GrammarError

__all__ = ["CompiledGrammar", "GrammarCompiler", "GrammarCursor", "GrammarTokenizer"]

_KEPT = 64
"""Compiled grammars that are kept: agents send the same tools with every turn."""
_SHOWN = 500
_SOURCES: dict[str, Callable[[str], str]] = {
    "json_schema": LLMatcher.grammar_from_json_schema,
    "regex": LLMatcher.grammar_from_regex,
    "lark": LLMatcher.grammar_from_lark,
}


@runtime_checkable
class GrammarTokenizer(Protocol):
    """A tokenizer that can say what its tokens are."""

    def definition(self) -> str | Sequence[bytes]:
        """Return the text of a ``tokenizer.json``, or the bytes that each token stands for."""
        ...


class GrammarCursor:
    """Where one output is in its grammar. Not thread-safe; a function of the tokens pushed."""

    __slots__ = ("_ends", "_matcher", "done", "length")

    done: bool
    """Whether the output is complete: nothing may follow, or an end token came."""
    length: int
    """Tokens that were taken, end tokens not among them."""

    def __init__(self, matcher: LLMatcher, ends: frozenset[int]) -> None:
        self._matcher = matcher
        self._ends = ends
        self.done = False
        self.length = 0

    def mask(self) -> bytes:
        """Return a bit for each token, the lowest first: whether it may come next."""
        return self._matcher.compute_bitmask()

    def forced(self) -> list[int]:
        """Return the tokens that must come next, none if there is a choice."""
        return list(self._matcher.compute_ff_tokens())

    def legal(self, tokens: Sequence[int]) -> int:
        """Return how many of ``tokens`` may come next, one after another."""
        return int(self._matcher.validate_tokens(list(tokens)))

    def push(self, token: int) -> bool:
        """Take the next token; False, with :attr:`error` set, if it does not fit."""
        if token in self._ends:
            self.done = True
            return True
        taken = bool(self._matcher.consume_token(token))
        self.length += taken
        self.done = taken and self._matcher.is_stopped()
        return taken

    def rewind(self, length: int) -> None:
        """Go back to where ``length`` tokens had been taken, and no end token."""
        if length < self.length:
            self._matcher.rollback(self.length - length)
        self.length = length
        self.done = False

    @property
    def error(self) -> str | None:
        """Why the grammar cannot go on: too complex, or a token that does not fit."""
        return _first_lines(self._matcher.get_error()) if self._matcher.is_error() else None


class CompiledGrammar:
    """A grammar for one vocabulary. Immutable; every turn starts a cursor of its own.

    Args:
        matcher: compiled, at its start.
        ends: tokens that end an output where the grammar lets it end.
    """

    def __init__(self, matcher: LLMatcher, ends: frozenset[int]) -> None:
        self._matcher = matcher
        self._ends = ends
        self._lock = threading.Lock()

    def start(self) -> GrammarCursor:
        """Return a cursor at the beginning of an output."""
        with self._lock:
            return GrammarCursor(self._matcher.deep_copy(), self._ends)


class GrammarCompiler:
    """Compiles grammars for one tokenizer and keeps the latest. Any thread may call it.

    Args:
        tokenizer: whose tokens come out.
        ends: tokens that end a turn; without any, what could go on for ever ends by its length.
    """

    def __init__(self, tokenizer: GrammarTokenizer, ends: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._ends = ends
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._kept: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Return a grammar ready for use; takes milliseconds, the first time up to a second.

        Raises:
            GrammarError: it is malformed, unsupported, too large, or no output matches it.
        """
        with self._lock:
            found = self._kept.get(grammar)
            if found is None:
                found = self._kept[grammar] = self._compile(grammar)
            self._kept.move_to_end(grammar)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return found

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        if self._vocabulary is None:
            self._vocabulary = _vocabulary(self._tokenizer, self._ends)
        try:
            source = _SOURCES[grammar.kind](grammar.source)
        except ValueError as error:
            raise _unusable(grammar, str(error)) from error
        matcher = LLMatcher(self._vocabulary, source, log_level=0)
        if matcher.is_error():
            raise _unusable(grammar, matcher.get_error())
        if not any(matcher.compute_bitmask()) or matcher.is_error():
            raise _unusable(grammar, matcher.get_error() or "no token of the model may begin it")
        return CompiledGrammar(matcher, self._ends)


def _unusable(grammar: Grammar, problem: str) -> GrammarError:
    kind = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "Lark grammar"}
    return grammar_error(
        grammar.field,
        f"cannot be used, as its {kind[grammar.kind]} is malformed, not supported or matches "
        f"nothing: {_first_lines(problem)}",
        "Change what the message names, or leave the field out.",
    )


def _first_lines(problem: str) -> str:
    """Return an error in one line, without the state of the parser that may follow it."""
    text = " ".join(problem.partition("\n<state>")[0].split())
    return text.rstrip(".") if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _vocabulary(tokenizer: GrammarTokenizer, ends: frozenset[int]) -> LLTokenizer:
    definition = tokenizer.definition()
    if isinstance(definition, str):
        if ends:
            return LLTokenizer(definition, eos_token=sorted(ends))
        size = LLTokenizer(definition).vocab_size
        # Without an end token of the model, what the grammar does not end by itself goes on.
        return LLTokenizer(_with_end(definition, size), eos_token=size)
    tokens = [*definition, b""]
    end = sorted(ends) or [len(definition)]
    return LLTokenizer(TokenizerWrapper(_Spelt(tokens, end)), eos_token=end)


def _with_end(definition: str, number: int) -> str:
    """Add an end token, which llguidance wants: as the model does not have it, it never comes."""
    parsed = json.loads(definition)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    end = {"id": number, "content": "<|agentrt:no end|>", "special": True, **flags}
    parsed["added_tokens"] = [*(parsed.get("added_tokens") or ()), end]
    return json.dumps(parsed)


class _Spelt:
    """A vocabulary given by its bytes, in the form that llguidance reads."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], ends: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self.eos_token_id = ends[0]
        self.special_token_ids = list(ends)
        self._by_bytes = {spelt: number for number, spelt in enumerate(tokens) if spelt}

    def __call__(self, text: Any) -> list[int]:
        """Return tokens of ``text``, the longest first: any spelling will do for masks."""
        data = text.encode() if isinstance(text, str) else bytes(text)
        found: list[int] = []
        while data:
            length = next((n for n in range(len(data), 0, -1) if data[:n] in self._by_bytes), 0)
            if not length:
                return found
            found.append(self._by_bytes[data[:length]])
            data = data[length:]
        return found
