"""How the next token is to be chosen: the request's side, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from agentrt.engine.grammar import Grammar, grammar_error
from agentrt.errors import InvalidRequest

__all__ = ["MAX_CHOICES", "MAX_CHOICE_LENGTH", "MAX_LOGPROBS", "SamplingParams"]

MAX_LOGPROBS = 20
MAX_CHOICES = 1000
MAX_CHOICE_LENGTH = 1000
"""Characters."""
_SEEDS = range(-(2**63), 2**64)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What a request asks of the sampler. The defaults are those of the OpenAI API.

    The steps are applied in this order: penalties, ``temperature``, ``top_k``, ``top_p`` (of what
    ``top_k`` left), ``min_p``. ``temperature=0`` takes the most likely token after the penalties.
    """

    max_tokens: int = 256
    """Output tokens at most, at least 1; the turn then ends with reason ``length``."""
    temperature: float = 1.0
    """Logits are divided by it; 0 is greedy."""
    top_k: int = 0
    """Keep the k most likely tokens, and those exactly as likely as the k-th; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely tokens until their probability reaches this; in (0, 1]."""
    min_p: float = 0.0
    """Keep tokens at least this times as likely as the most likely one; in [0, 1]."""
    repetition_penalty: float = 1.0
    """Divide positive (multiply negative) logits of tokens seen in prompt or output; in (0, 10]."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every token of the output so far; in [-2, 2]."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it is in the output so far; in [-2, 2]."""
    seed: int | None = None
    """Same seed, same prompt, same parameters: same output. None draws one for the request."""
    stop: tuple[str, ...] = ()
    """Texts that end the turn; the text that is handed out ends before the first of them."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the turn, besides the model's own end tokens."""
    ignore_eos: bool = False
    """The model's own end tokens do not end the turn."""
    logprobs: int | None = None
    """None: none. n: the chosen token's log probability and those of the n most likely tokens."""
    choices: tuple[str, ...] | None = None
    """The output is exactly one of these texts, then the turn ends with reason ``stop``, whatever
    ``ignore_eos`` says. The steps above apply to the tokens that lead to one of them; the model's
    end token decides where one begins with another. ``max_tokens`` must have room for each."""
    grammar: Grammar | None = None
    """The output matches it, whatever ``ignore_eos`` says. The turn ends with reason ``stop`` where
    nothing can follow; where something can, the model's end token decides. Where only one text can
    come next, its usual tokens come. Stop texts and ``max_tokens`` may cut it short."""

    def validate(self) -> None:
        """Check every field.

        Raises:
            InvalidRequest: a field is out of its range; the message names field, value and range.
        """
        for name, allowed, valid in _RULES:
            value = getattr(self, name)
            if not valid(value):
                raise InvalidRequest(
                    f"{name} is {value!r}, but must be {allowed}.",
                    remedy=f"Set {name} to {allowed}, or leave it out.",
                )
        if self.choices is not None:
            self._check_choices(self.choices)
        if self.grammar is not None:
            self._check_grammar(self.grammar)

    def _check_grammar(self, grammar: Grammar) -> None:
        grammar.validate()
        if self.choices is not None:
            raise grammar_error(
                grammar.field, "is set together with choices", "Leave out one of the two."
            )

    def _check_choices(self, choices: object) -> None:
        problem = _choices_problem(choices)
        if problem is not None:
            raise InvalidRequest(
                f"choices {problem}.",
                remedy=f"Set choices to a tuple of 1 to {MAX_CHOICES} texts, each different, of 1 "
                f"to {MAX_CHOICE_LENGTH} characters, or leave it out.",
            )
        if self.stop or self.stop_token_ids:
            raise InvalidRequest(
                "choices end the turn by themselves, but stop or stop_token_ids is set, too.",
                remedy="Leave out either choices, or stop and stop_token_ids.",
            )

    @property
    def limited(self) -> bool:
        """Whether only some outputs may come: then the end token means that one is complete."""
        return self.choices is not None or self.grammar is not None

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0

    @property
    def cuts(self) -> bool:
        """Whether some tokens are too unlikely to be drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def penalised(self) -> bool:
        """Whether the tokens so far change the logits."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )


def _integer(low: int, high: int | None = None) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return value >= low and (high is None or value <= high)

    return check


def _number(low: float, high: float, *, above: bool = False) -> Callable[[object], bool]:
    """Check ``low <= value <= high``, or ``low < value`` if ``above``; NaN and infinity fail."""

    def check(value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return math.isfinite(value) and (value > low if above else value >= low) and value <= high

    return check


def _texts(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(text, str) and text for text in value)


def _choices_problem(value: object) -> str | None:
    """Return what is wrong with choices, None if nothing is."""
    if not isinstance(value, tuple) or not all(isinstance(text, str) for text in value):
        return "is no tuple of texts"
    if not 1 <= len(value) <= MAX_CHOICES:
        return f"has {len(value)} texts"
    if not all(1 <= len(text) <= MAX_CHOICE_LENGTH for text in value):
        return "has a text that is empty or too long"
    if len(set(value)) < len(value):
        return "has a text twice"
    if not all(map(_is_unicode, value)):
        return "has a text with half a surrogate pair"
    return None


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _tokens(value: object) -> bool:
    return isinstance(value, tuple) and all(map(_integer(0), value))


def _seed(value: object) -> bool:
    return value is None or (_integer(_SEEDS.start)(value) and value in _SEEDS)


def _logprobs(value: object) -> bool:
    return value is None or _integer(0, MAX_LOGPROBS)(value)


_RULES: tuple[tuple[str, str, Callable[[object], bool]], ...] = (
    ("max_tokens", "a whole number of at least 1", _integer(1)),
    ("temperature", "a number of at least 0 (0 is greedy)", _number(0, math.inf)),
    ("top_k", "a whole number of at least 0 (0 keeps all tokens)", _integer(0)),
    ("top_p", "a number above 0 and at most 1", _number(0, 1, above=True)),
    ("min_p", "a number from 0 to 1", _number(0, 1)),
    ("repetition_penalty", "a number above 0 and at most 10", _number(0, 10, above=True)),
    ("presence_penalty", "a number from -2 to 2", _number(-2, 2)),
    ("frequency_penalty", "a number from -2 to 2", _number(-2, 2)),
    ("seed", "a whole number from -2**63 to 2**64-1", _seed),
    ("stop", "a tuple of texts, none of them empty", _texts),
    ("stop_token_ids", "a tuple of token ids, whole numbers of at least 0", _tokens),
    ("ignore_eos", "True or False", lambda value: isinstance(value, bool)),
    ("logprobs", f"None or a whole number from 0 to {MAX_LOGPROBS}", _logprobs),
)
