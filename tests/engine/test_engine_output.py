"""Stop texts, stop tokens and text, whatever the way the output is cut into steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.engine.backend import EngineSample, TokenLogprob
from agentrt.engine.output import StopMatcher, TurnOutput
from agentrt.engine.params import SamplingParams
from agentrt.errors import InvalidRequest
from agentrt.scheduling.plan import Sample

EOS = 0
LETTERS = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


class Letters:
    """Token i is the letter chr(96 + i); the end token reads <end>; 99 is half of the letter z."""

    eos_ids = frozenset({EOS})

    def stream(self):
        return LetterStream()


class LetterStream:
    def __init__(self):
        self.half = False

    def push(self, ids):
        text = ""
        for token in ids:
            if token == 99:
                text += "z" if self.half else ""
                self.half = not self.half
            else:
                text += "<end>" if token == EOS else chr(96 + token)
        return text

    def flush(self):
        return "?" if self.half else ""


def cut(text, stops):
    """Return ``text`` up to the stop that is complete first, and whether there is one."""
    for end in range(len(text) + 1):
        at = [end - len(s) for s in stops if len(s) <= end and text[end - len(s) : end] == s]
        if at:
            return text[: min(at)], True
    return text, False


def ids(text):
    return [ord(letter) - 96 for letter in text]


def run(sampling, tokens, tokenizer=None, forced=False, group=1):
    """Push ``tokens`` a group at a time until the output stops; return tokens, texts, stopped."""
    output = TurnOutput(sampling, tokenizer=tokenizer, eos_ids=frozenset({EOS}), forced=forced)
    pieces = []
    for at in range(0, len(tokens), group):
        pieces.append(output.push(Sample(tokens[at : at + group])))
        if pieces[-1].stopped:
            break
    texts = [piece.text for piece in pieces] + [output.finish()]
    return [t for p in pieces for t in p.tokens], texts, pieces[-1].stopped


class TestStopMatcher:
    @given(LETTERS, STOPS, st.lists(st.integers(1, 4), min_size=30, max_size=30))
    def test_the_outcome_is_the_definitions_however_the_text_is_cut(self, text, stops, sizes):
        matcher = StopMatcher(stops)
        given_out, at = "", 0
        for size in sizes:
            given_out += matcher.push(text[at : at + size])
            at += size
        given_out += matcher.flush()
        assert (given_out, matcher.matched is not None) == cut(text, stops)

    @given(LETTERS, STOPS)
    def test_what_is_held_back_is_the_beginning_of_a_stop(self, text, stops):
        matcher = StopMatcher(stops)
        given_out = "".join(matcher.push(letter) for letter in text)
        if matcher.matched is None:
            held = text[len(given_out) :]
            assert held == "" or any(stop.startswith(held) and held != stop for stop in stops)

    def test_nothing_comes_after_a_match(self):
        matcher = StopMatcher(["b"])
        assert matcher.push("abc") == "a"
        assert matcher.push("d") == ""
        assert matcher.flush() == ""
        assert matcher.matched == "b"


class TestTurnOutput:
    def test_tokens_include_what_stopped_text_does_not(self):
        tokens, texts, stopped = run(SamplingParams(stop=("cd",)), ids("abcde"), Letters())
        assert tokens == ids("abcd")
        assert texts == ["a", "b", "", "", ""]
        assert stopped

    def test_text_held_back_for_a_stop_that_does_not_come_is_given_at_the_end(self):
        _, texts, stopped = run(SamplingParams(stop=("cd",)), ids("abc"), Letters())
        assert texts == ["a", "b", "", "c"]
        assert not stopped

    @pytest.mark.parametrize("group", [1, 2, 5])
    def test_end_tokens_end_the_turn_and_have_no_text(self, group):
        tokens, texts, stopped = run(SamplingParams(), [1, 2, EOS, 3], Letters(), group=group)
        assert (tokens, "".join(texts), stopped) == ([1, 2, EOS], "ab", True)

    def test_ignore_eos_goes_on_but_stop_tokens_still_stop(self):
        sampling = SamplingParams(ignore_eos=True, stop_token_ids=(3,))
        tokens, texts, stopped = run(sampling, [1, EOS, 2, 3, 4], Letters())
        assert (tokens, "".join(texts), stopped) == ([1, EOS, 2, 3], "a<end>b", True)

    def test_without_a_tokenizer_there_are_only_tokens(self):
        tokens, texts, stopped = run(SamplingParams(stop_token_ids=(7,)), [5, 6, 7])
        assert (tokens, "".join(texts), stopped) == ([5, 6, 7], "", True)
        with pytest.raises(InvalidRequest, match="without a tokenizer"):
            TurnOutput(SamplingParams(stop=("x",)))

    def test_forced_output_is_ended_by_nothing_in_it(self):
        sampling = SamplingParams(stop=("b",), stop_token_ids=(3,))
        tokens, texts, stopped = run(sampling, [1, 2, EOS, 3, EOS], Letters(), forced=True)
        assert (tokens, "".join(texts), stopped) == ([1, 2, EOS, 3, EOS], "abc", False)
        output = TurnOutput(sampling, tokenizer=Letters(), forced=True)
        assert output.push(EngineSample((2,), "stop")).stopped

    def test_parts_of_a_letter_wait_for_the_rest_and_count_for_stops(self):
        _, texts, _ = run(SamplingParams(), [1, 99, 99, 99], Letters())
        assert texts == ["a", "", "z", "", "?"]
        _, texts, _ = run(SamplingParams(stop=("?",)), [1, 99], Letters())
        assert "".join(texts) == "a"

    def test_logprobs_go_with_the_tokens_that_are_kept(self):
        probs = tuple(TokenLogprob(token, -1.0) for token in (1, EOS, 2))
        output = TurnOutput(SamplingParams(), eos_ids=frozenset({EOS}))
        piece = output.push(EngineSample((1, EOS, 2), logprobs=probs))
        assert piece.tokens == (1, EOS)
        assert piece.logprobs == probs[:2]

    @given(LETTERS.filter(bool), STOPS, st.integers(1, 6))
    def test_text_is_the_same_whatever_the_steps(self, text, stops, group):
        sampling = replace(SamplingParams(), stop=tuple(stops))
        tokens, texts, stopped = run(sampling, ids(text), Letters(), group=group)
        assert ("".join(texts), stopped) == cut(text, stops)
        assert tokens == ids(text)[: len(tokens)]
