"""Closed sets of answers by themselves: token paths, the walk among them, the mask."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.engine.choices import ChoiceCursor, ChoiceTrie, check_encoded, encode_choices
from agentrt.engine.fake import FakeTurnBackend
from agentrt.engine.params import MAX_CHOICE_LENGTH, MAX_CHOICES, SamplingParams
from agentrt.engine.sampling import TurnSampling, draw_tokens
from agentrt.errors import InternalError, InvalidRequest

VOCAB = 12
END = 11
GREEDY = SamplingParams(temperature=0)

quick = settings(max_examples=150, deadline=None, derandomize=True, database=None)

# Three different tokens only: most sets share prefixes, many hold a path that begins with another.
path_sets = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple),
    min_size=1,
    max_size=8,
    unique=True,
)
parameters = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 0.3, 1.0, 4.0]),
    top_k=st.sampled_from([0, 1, 2, 7]),
    top_p=st.sampled_from([1.0, 0.9, 0.2]),
    min_p=st.sampled_from([0.0, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.7]),
    frequency_penalty=st.sampled_from([0.0, 0.8]),
    presence_penalty=st.sampled_from([0.0, -0.5]),
    logprobs=st.sampled_from([None, 2]),
)


class Letters:
    """One token a letter from a to j; it has no other characters, and drops spaces."""

    def encode(self, text):
        return [ord(letter) - 97 if "a" <= letter <= "j" else 10 for letter in text if letter > " "]

    def decode(self, ids):
        return "".join(chr(97 + token) if token < 10 else "?" for token in ids)


def start(params, trie, seed=3):
    return TurnSampling.start(params, seed, torch.tensor([0, 1]), VOCAB, choices=trie)


def random_row(seed):
    return torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def play(turn, row_of, limit=20):
    """Draw until the turn is done; return what came out."""
    output = []
    while not turn.choices.done:
        assert len(output) < limit
        [draw] = draw_tokens(row_of(output), [turn], [len(output)], [None])
        turn.note(draw.token)
        output.append(draw.token)
    return output


class TestTrie:
    @pytest.mark.parametrize("paths", [[], [()], [(1,), ()], [(1, 2), (1, 2)]])
    def test_paths_that_are_no_set_of_answers_are_refused(self, paths):
        with pytest.raises(InvalidRequest, match="distinct and not empty"):
            ChoiceTrie.of(paths, {END})

    def test_a_path_with_an_end_token_is_refused(self):
        with pytest.raises(InvalidRequest, match="token that ends a turn"):
            ChoiceTrie.of([(1, END, 2)], {END})

    def test_without_an_end_token_no_path_may_begin_with_another(self):
        with pytest.raises(InvalidRequest, match="no end token") as caught:
            ChoiceTrie.of([(1, 2, 3), (1, 3), (1, 2)])
        assert "none begins with another" in caught.value.remedy
        assert ChoiceTrie.of([(1, 2, 3), (1, 3), (2,)]).paths == ((1, 2, 3), (1, 3), (2,))

    def test_end_tokens_are_allowed_only_where_a_path_goes_on_behind_another(self):
        cursor = ChoiceCursor(ChoiceTrie.of([(1,), (1, 2), (3,)], {END, 10}))
        assert set(cursor.allowed) == {1, 3}
        cursor.push(1)
        assert set(cursor.allowed) == {2, 10, END}
        assert not cursor.done
        cursor.push(10)
        assert cursor.done
        assert cursor.only is None

    def test_tokens_and_length_cover_every_answer(self):
        trie = ChoiceTrie.of([(1,), (1, 2, 3), (4,)], {END})
        assert (trie.tokens(), trie.longest) == ([1, 2, 3, 4, END], 3)
        assert ChoiceTrie.of([(1,), (4,)], {END}).tokens() == [1, 4]

    def test_a_token_that_leads_nowhere_is_a_bug(self):
        cursor = ChoiceCursor(ChoiceTrie.of([(1, 2)]))
        for wrong in (2, END):
            with pytest.raises(InternalError, match=f"Token {wrong}"):
                cursor.push(wrong)
        with pytest.raises(InternalError, match="Token 3"):
            ChoiceCursor(ChoiceTrie.of([(1, 2)]), [1, 3])

    @quick
    @given(path_sets)
    def test_what_is_allowed_is_what_some_path_goes_on_with(self, paths):
        trie = ChoiceTrie.of(paths, {END})
        for path in paths:
            for depth in range(len(path) + 1):
                head = path[:depth]
                cursor = ChoiceCursor(trie, head)
                after = {p[depth] for p in paths if p[:depth] == head and len(p) > depth}
                ends = {END} if head in paths and after else set()
                assert sorted(cursor.allowed) == sorted(after | ends)
                assert cursor.done == (head in paths and not after)

    @quick
    @given(path_sets, st.lists(st.integers(0, 99), min_size=6, max_size=6))
    def test_any_walk_ends_in_a_path_within_the_longest(self, paths, steps):
        trie = ChoiceTrie.of(paths, {END})
        cursor, output = ChoiceCursor(trie), []
        while not cursor.done:
            output.append(cursor.allowed[steps[len(output)] % len(cursor.allowed)])
            cursor.push(output[-1])
        assert len(output) <= trie.longest
        assert tuple(token for token in output if token != END) in paths
        assert ChoiceCursor(trie, output).done


class TestEncoding:
    def test_every_text_has_its_path(self):
        trie = encode_choices(["b", "ab", "abc"], Letters(), frozenset({END}))
        assert trie == ChoiceTrie(((0, 1), (0, 1, 2), (1,)), (END,))

    @pytest.mark.parametrize("text", ["xyz", "a b", " ", "é"])
    def test_a_text_that_the_tokens_spell_otherwise_is_refused_by_name(self, text):
        with pytest.raises(InvalidRequest) as caught:
            encode_choices(["ab", text], Letters(), frozenset({END}))
        assert repr(text) in caught.value.message

    def test_an_end_token_in_a_text_is_refused_by_name(self):
        with pytest.raises(InvalidRequest, match="'abc', and a token of it ends a turn"):
            encode_choices(["abc"], Letters(), frozenset({2}))

    def test_long_texts_are_cut_in_messages(self):
        with pytest.raises(InvalidRequest) as caught:
            encode_choices(["x" * 900], Letters(), frozenset())
        assert len(caught.value.message) < 200

    def test_choices_without_their_tokens_are_not_ignored(self):
        check_encoded(None, None)
        with pytest.raises(InternalError, match="without their tokens"):
            check_encoded(("a",), None)
        with pytest.raises(InternalError, match="without their tokens"):
            FakeTurnBackend(4).open("t", [1], SamplingParams(choices=("a",)))


class TestParams:
    @pytest.mark.parametrize(
        "choices",
        [
            ("yes",),
            ("yes", "yesterday", "no", "名前 🙂\n"),
            tuple(map(str, range(MAX_CHOICES))),
            ("x" * MAX_CHOICE_LENGTH,),
        ],
    )
    def test_sets_of_texts_are_accepted(self, choices):
        SamplingParams(choices=choices).validate()

    @pytest.mark.parametrize(
        ("choices", "problem"),
        [
            ((), "has 0 texts"),
            (tuple(map(str, range(MAX_CHOICES + 1))), "has 1001 texts"),
            (["yes"], "is no tuple"),
            ("yes", "is no tuple"),
            (("yes", 1), "is no tuple"),
            (("yes", ["no"]), "is no tuple"),
            (("yes", ""), "empty or too long"),
            (("x" * (MAX_CHOICE_LENGTH + 1),), "empty or too long"),
            (("yes", "no", "yes"), "twice"),
            (("\ud83d",), "surrogate"),
        ],
    )
    def test_others_are_refused_with_a_short_message(self, choices, problem):
        with pytest.raises(InvalidRequest, match=f"^choices {problem}|^choices .*{problem}") as got:
            SamplingParams(choices=choices).validate()
        assert len(got.value.message) < 100
        assert "choices" in got.value.remedy

    @pytest.mark.parametrize("other", [{"stop": ("x",)}, {"stop_token_ids": (1,)}])
    def test_nothing_else_may_end_the_turn(self, other):
        with pytest.raises(InvalidRequest, match="stop"):
            SamplingParams(choices=("yes",), **other).validate()


class TestMask:
    @quick
    @given(path_sets, parameters, st.integers(0, 999))
    def test_a_masked_row_is_a_row_in_which_all_else_is_impossible(self, paths, params, seed):
        trie = ChoiceTrie.of(paths, {END})
        turn, plain = start(params, trie), start(params, None)
        output = []
        while not turn.choices.done:
            logits = random_row(seed + len(output))
            allowed = list(turn.choices.allowed)
            masked = torch.full_like(logits, -torch.inf)
            masked[0, allowed] = logits[0, allowed]
            before = logits.clone()
            [draw] = draw_tokens(logits, [turn], [len(output)], [None])
            [wanted] = draw_tokens(masked, [plain], [len(output)], [None])
            assert draw.token == wanted.token
            assert torch.equal(logits, before)
            turn.note(draw.token)
            plain.note(draw.token)
            output.append(draw.token)
        assert tuple(token for token in output if token != END) in paths

    @quick
    @given(path_sets, st.integers(0, 999))
    def test_every_answer_comes_out_if_the_model_wants_it(self, paths, seed):
        trie = ChoiceTrie.of(paths, {END})
        for path in paths:
            wanted = (*path, END)

            def row_of(output, wanted=wanted):
                row = random_row(seed + len(output))
                row[0, wanted[len(output)]] = 50.0
                return row

            for params in (GREEDY, SamplingParams(temperature=0.5)):
                output = play(start(params, trie), row_of)
                assert output in (list(path), list(wanted))

    def test_what_the_model_rules_out_is_still_better_than_anything_else(self):
        trie = ChoiceTrie.of([(1, 2), (3,)], {END})
        row = torch.full((1, VOCAB), -torch.inf)
        row[0, 7] = 1.0
        for temperature in (0, 1e-9, 1.0):
            outputs = {
                tuple(
                    play(start(SamplingParams(temperature=temperature), trie, seed), lambda _: row)
                )
                for seed in range(20)
            }
            assert outputs <= {(1, 2), (3,)}
            assert len(outputs) == (1 if temperature == 0 else 2)

    def test_log_probabilities_are_those_of_the_model_itself(self):
        row = random_row(5)
        row[0, 7] = 20.0
        turn = start(replace(GREEDY, logprobs=1), ChoiceTrie.of([(1,), (3,)]))
        [draw] = draw_tokens(row, [turn], [0], [None])
        table = torch.log_softmax(row, dim=1)[0]
        assert draw.token in (1, 3)
        assert draw.logprob.logprob == pytest.approx(float(table[draw.token]))
        assert draw.logprob.top[0][0] == 7

    def test_only_rows_with_choices_are_masked(self):
        logits = torch.cat([random_row(seed) for seed in range(6)])
        trie = ChoiceTrie.of([(1,), (3,)])
        plain = [GREEDY, SamplingParams(), GREEDY, SamplingParams(top_p=0.5), GREEDY, GREEDY]
        alone = draw_tokens(logits, [start(p, None) for p in plain], range(6), [None] * 5 + [9])
        turns = [start(p, trie if i in (1, 4) else None) for i, p in enumerate(plain)]
        mixed = draw_tokens(logits, turns, range(6), [None] * 5 + [9])
        for row in (0, 2, 3, 5):
            assert mixed[row] == alone[row]
        assert {mixed[1].token, mixed[4].token} <= {1, 3}

    def test_a_broken_row_fails_whatever_its_choices(self):
        row = random_row(1)
        row[0, 5] = torch.nan
        [draw] = draw_tokens(row, [start(GREEDY, ChoiceTrie.of([(1,), (3,)]))], [0], [None])
        assert draw.token is None
