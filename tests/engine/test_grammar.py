"""Grammars: what they compile to, which tokens they let come, and through the whole engine."""

from __future__ import annotations

import json
import re
import threading
from itertools import count
from types import SimpleNamespace

import anyio
import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLParserLimits
from tokenizers import decoders, models, pre_tokenizers

from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.choices import ChoiceCursor, ChoiceTrie
from agentrt.engine.draft import make_drafter
from agentrt.engine.engine import Engine, EngineRequest
from agentrt.engine.fake import FakeTurnBackend
from agentrt.engine.faults import FaultWatch, RestartLimits
from agentrt.engine.grammar import Grammar
from agentrt.engine.kv import PageCache
from agentrt.engine.masks import GrammarTurn, MaskWorker
from agentrt.engine.matcher import CompiledGrammar, GrammarCompiler
from agentrt.engine.model.weights import load_model
from agentrt.engine.params import SamplingParams
from agentrt.engine.runner import TorchBackend
from agentrt.engine.tokens import Tokenizer
from agentrt.errors import GrammarError, InternalError, InvalidRequest
from agentrt.scheduling.plan import SeqSlice, StepPlan
from agentrt.scheduling.registry import make_policy
from agentrt.scheduling.scheduler import Scheduler, SchedulerConfig

PAGE = 4
VOCAB = 512
IDS = count()
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "name": {"type": "string", "maxLength": 5}},
    "required": ["x", "name"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return Tokenizer.from_directory(tiny_model_dir)


@pytest.fixture(scope="module")
def compiler(tokenizer):
    return GrammarCompiler(tokenizer, tokenizer.eos_ids)


def allowed(cursor):
    bits = np.unpackbits(np.frombuffer(cursor.mask(), np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def accepts(compiler, tokenizer, grammar, text):
    """Say whether a whole text is in a grammar, going by its masks."""
    cursor = compiler.compile(grammar).start()
    for token in [*tokenizer.encode(text), min(tokenizer.eos_ids, default=0)]:
        if cursor.done:
            return token in tokenizer.eos_ids
        if token not in allowed(cursor) or not cursor.push(token):
            return False
    return cursor.done


class TestCompiling:
    @pytest.mark.parametrize(
        ("grammar", "inside", "outside"),
        [
            (Grammar.regex("[a-c]+"), ["a", "abcabc"], ["", "abd", " a"]),
            (Grammar.lark('start: "(" start ")" | "x"'), ["x", "((x))"], ["(x", "", "x)"]),
            (
                Grammar.json_schema(POINT),
                ['{"x": 1, "name": "né"}', '{"x":-20,"name":""}', '{\n  "x": 0,\n  "name": "a"\n}'],
                ['{"x": 1}', '{"x": "1", "name": "a"}', '{"x": 1, "name": "toolong"}', "[]"],
            ),
            (Grammar.json_object(), ["{}", '{"a": [1, null, {"b": 2e3}]}'], ["1", "{a: 1}"]),
        ],
    )
    def test_texts_are_inside_or_outside(self, compiler, tokenizer, grammar, inside, outside):
        for text in inside:
            assert accepts(compiler, tokenizer, grammar, text), text
        for text in outside:
            assert not accepts(compiler, tokenizer, grammar, text), text

    def test_calls_are_those_of_the_chat_template(self, compiler, tokenizer):
        schema = {"type": "object", "properties": {"n": {"$ref": "#/$defs/small"}}}
        schema["$defs"] = {"small": {"type": "integer", "minimum": 0, "maximum": 5}}
        names = ["count", 'odd "name"\n']
        tools = [{"function": {"name": name, "parameters": schema}} for name in names]
        calls = [
            {"function": {"name": name, "arguments": {"n": place}}}
            for place, name in enumerate(names)
        ]
        message = {"role": "assistant", "content": "", "tool_calls": calls}
        shown = tokenizer.render([message], add_generation_prompt=False)
        text = shown.removeprefix("<|im_start|>assistant\n").removesuffix("<|im_end|>\n")
        assert text.count("<tool_call>") == 2
        assert accepts(compiler, tokenizer, Grammar.tool_calls(tools), text)
        assert not accepts(compiler, tokenizer, Grammar.tool_calls(tools, several=False), text)
        assert not accepts(
            compiler, tokenizer, Grammar.tool_calls(tools), text.replace('"n": 1', '"n": 6')
        )
        assert not accepts(compiler, tokenizer, Grammar.tool_calls(tools[:1]), text)

    @pytest.mark.parametrize(
        ("grammar", "word"),
        [
            (Grammar.regex("(a"), "unclosed group"),
            (Grammar.regex("a(?=b)"), "look-around"),
            (Grammar.lark("start: missing"), "missing"),
            (Grammar.json_schema({"type": "foo"}), "foo"),
            (Grammar.json_schema({"not": {"type": "string"}, "uniqueItems": True}), "uniqueItems"),
            (Grammar.json_schema({"type": "string", "minLength": 2, "maxLength": 1}), "minLength"),
            (Grammar.json_schema(False), "false"),
            (Grammar.json_schema({"$ref": "http://example.org/schema"}), "example.org"),
        ],
    )
    def test_what_cannot_be_is_an_error_that_says_why(self, compiler, grammar, word):
        with pytest.raises(GrammarError, match=word) as caught:
            compiler.compile(grammar)
        assert caught.value.param == "grammar"
        assert "\n" not in str(caught.value)

    def test_errors_of_the_request_come_before_compiling(self):
        for wrong in ('{"a"', "3", "[]"):
            with pytest.raises(GrammarError, match="no JSON schema"):
                Grammar.json_schema(wrong)
        with pytest.raises(GrammarError, match="no tool"):
            Grammar.tool_calls([])
        for grammar in (Grammar.regex(""), Grammar("gbnf", "x"), Grammar.lark("x" * 1_000_001)):
            with pytest.raises(GrammarError, match="is no text"):
                SamplingParams(grammar=grammar).validate()
        with pytest.raises(GrammarError, match="together with choices"):
            SamplingParams(grammar=Grammar.regex("a"), choices=("a",)).validate()
        forced = SamplingParams(grammar=Grammar.regex("a"))
        with pytest.raises(InvalidRequest, match="forced output"):
            EngineRequest("t", "p", [1], forced, forced=[2]).validate()

    def test_a_grammar_is_compiled_once(self, compiler):
        assert compiler.compile(Grammar.regex("x+")) is compiler.compile(Grammar.regex("x+"))
        first = compiler.compile(Grammar.regex("x+"))
        for number in range(64):
            compiler.compile(Grammar.regex(f"y{{{number + 1}}}"))
        assert compiler.compile(Grammar.regex("x+")) is not first

    def test_turns_of_one_grammar_do_not_meet(self, compiler, tokenizer):
        compiled = compiler.compile(Grammar.regex("ab|cd"))
        one, other = compiled.start(), compiled.start()
        [a], [c] = tokenizer.encode("a"), tokenizer.encode("c")
        assert one.push(a)
        assert other.push(c)
        assert not one.push(c)
        assert "doesn't satisfy" in one.error
        assert other.error is None


class TestVocabularies:
    def test_a_vocabulary_without_an_end_token_ends_where_nothing_can_follow(self, tokenizer):
        compiler = GrammarCompiler(tokenizer, frozenset())
        cursor = compiler.compile(Grammar.regex("a+b")).start()
        [a], [b] = tokenizer.encode("a"), tokenizer.encode("b")
        assert cursor.push(a)
        assert a in allowed(cursor)
        assert not tokenizer.eos_ids & allowed(cursor)
        assert cursor.push(b)
        assert cursor.done

    def test_a_sentence_piece_vocabulary(self):
        words = {"<unk>": 0, "</s>": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
        for word in ("▁", "▁the", "the", '"', "{", "}", ":", "▁1", "1", ",", "a", "aa"):
            words[word] = len(words)
        backend = tokenizers.Tokenizer(
            models.BPE(words, [("a", "a")], unk_token="<unk>", byte_fallback=True)
        )
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        compiler = GrammarCompiler(Tokenizer(backend, name="sp"), frozenset({1}))
        cursor = compiler.compile(Grammar.regex("aa?é|1")).start()
        assert allowed(cursor) == {words["a"], words["aa"], words["1"], words["<0x61>"],
                                   words["<0x31>"]}  # fmt: skip
        assert cursor.push(words["aa"])
        assert allowed(cursor) == {words["<0xC3>"]}
        assert cursor.push(words["<0xC3>"])
        assert cursor.push(words["<0xA9>"])
        assert cursor.done

    def test_a_tokenizer_that_does_not_tell_is_an_error(self):
        mute = SimpleNamespace(eos_ids=frozenset({1}), stream=lambda: None)

        async def main():
            policy = make_policy("fcfs")
            scheduler = Scheduler(PageCache(8, PAGE, policy.retention.score), policy)
            async with Engine(scheduler, FakeTurnBackend(PAGE), tokenizer=mute) as engine:
                await engine.submit(
                    EngineRequest("t", "p", [1], SamplingParams(grammar=Grammar.regex("a")))
                )

        with pytest.raises(GrammarError, match="definition"):
            anyio.run(main)

    def test_a_backend_is_not_opened_without_the_compiled_form(self):
        with pytest.raises(InternalError, match="compiled"):
            FakeTurnBackend(4).open("t", [1], SamplingParams(grammar=Grammar.regex("a")))


class TestMasks:
    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.sampled_from("ab1 "), max_size=6).map("".join), st.integers(0, 4))
    def test_masks_behind_a_draft_are_those_of_its_tokens(self, compiler, tokenizer, text, junk):
        compiled = compiler.compile(Grammar.regex("[ab]*1? ?[ab]+"))
        worker = MaskWorker(VOCAB + 3)
        turn = GrammarTurn(compiled, worker)
        draft = [*tokenizer.encode(text), junk]
        turn.look_ahead(draft)
        plain = compiled.start()
        for token in draft:
            mask = set(np.flatnonzero(~turn.blocked.numpy()).tolist())
            assert mask == allowed(plain)
            assert turn.error is None
            if token not in mask or token in tokenizer.eos_ids:
                break
            turn.push(token)
            assert plain.push(token)
            assert turn.done == plain.done
            if turn.done:
                break
        if not turn.done:
            turn.look_ahead()
            assert set(np.flatnonzero(~turn.blocked.numpy()).tolist()) == allowed(plain)
        assert worker.times.masks >= 1

    def test_they_are_computed_in_another_thread_which_ends_with_its_worker(self, compiler):
        worker = MaskWorker(VOCAB)
        turn = GrammarTurn(compiler.compile(Grammar.regex("a+")), worker)
        assert turn.blocked.shape == (VOCAB,)
        mine = [each for each in threading.enumerate() if each.name.startswith("agentrt-masks")]
        assert mine
        del turn, worker
        for thread in mine:
            thread.join(10)
        assert not any(thread.is_alive() for thread in mine)

    def test_what_the_library_raises_ends_the_turn_with_a_reason(self, compiler, caplog):
        class Broken:
            def start(self):
                cursor = compiler.compile(Grammar.regex("a+")).start()
                cursor._matcher = SimpleNamespace(compute_ff_tokens=list, rollback=None)
                return cursor

        turn = GrammarTurn(Broken(), MaskWorker(VOCAB))
        assert "masks could not be computed" in turn.error
        assert list(turn.foresee([1, 2])) == []
        assert "compute_bitmask" in caplog.text

    def test_what_must_come_is_foreseen_and_guesses_are_cut_where_they_do_not_fit(
        self, compiler, tokenizer
    ):
        turn = GrammarTurn(compiler.compile(Grammar.regex('"(yes|no)": [0-9]+')), MaskWorker(VOCAB))
        assert tokenizer.decode(turn.foresee([])) == '"'
        for token in tokenizer.encode('"y'):
            turn.push(token)
        turn.look_ahead()
        assert tokenizer.decode(turn.foresee([1, 2])) == 'es": '
        for token in tokenizer.encode('es": '):
            turn.push(token)
        turn.look_ahead()
        guess = tokenizer.encode("12x")
        assert list(turn.foresee(guess)) == guess[:2]

    def test_choices_are_foreseen_likewise(self):
        cursor = ChoiceCursor(ChoiceTrie.of([(1, 2, 3), (1, 2, 4, 5)]))
        assert cursor.foresee([9]) == [1, 2]
        for token in (1, 2):
            cursor.push(token)
        assert list(cursor.foresee([4, 5, 6])) == [4, 5]
        assert list(cursor.foresee([9])) == []
        assert cursor.allowed == (3, 4)


@pytest.fixture(scope="module", params=["torch", "fake"])
def make_backend(request, tiny_model_dir):
    if request.param == "fake":
        return lambda pages: FakeTurnBackend(PAGE, VOCAB)
    model = load_model(tiny_model_dir)
    return lambda pages: TorchBackend(
        model, TorchPagedAttention(model.config, pages, PAGE, model.dtype)
    )


def serve(make_backend, tokenizer, asks, *, pages=200, draft="off", budget=64):
    """Return ``[(tokens, text, finish, error)]`` of ``(text, sampling)`` pairs, and the figures."""
    backend = make_backend(pages)
    answers = {}

    async def one(engine, index, text, sampling):
        request = EngineRequest(f"turn-{next(IDS)}", f"p{index}", tokenizer.encode(text), sampling)
        stream = await engine.submit(request)
        chunks = [chunk async for chunk in stream]
        answers[index] = (
            [token for chunk in chunks for token in chunk.tokens],
            "".join(chunk.text for chunk in chunks),
            chunks[-1].finish,
            stream.error,
        )

    async def main():
        policy = make_policy("program-fcfs")
        scheduler = Scheduler(
            PageCache(pages, PAGE, policy.retention.score),
            policy,
            SchedulerConfig(token_budget=budget, max_seqs=4),
            drafter=make_drafter(draft, getattr(backend, "foresee", None)),
        )
        with anyio.fail_after(120):
            async with (
                Engine(scheduler, backend, tokenizer=tokenizer, check=True) as engine,
                anyio.create_task_group() as group,
            ):
                for index, ask in enumerate(asks):
                    group.start_soon(one, engine, index, *ask)
        return engine.statistics()

    figures = anyio.run(main)
    assert backend.open_turns == 0
    return [answers[index] for index in range(len(asks))], figures


CODE = re.compile("[a-f]{2,6}(-[0-9]{1,3})?")
GRAMMARS = {
    Grammar.regex(CODE.pattern): lambda text: CODE.fullmatch(text),
    Grammar.json_schema(POINT): lambda text: json.loads(text).keys() == {"x", "name"},
    Grammar.lark('start: "(" start ")" | "x"'): lambda text: re.fullmatch(r"\(*x\)*", text),
}
samplings = st.builds(
    lambda grammar, temperature, penalty, seed, tokens, ignore: SamplingParams(
        max_tokens=tokens,
        temperature=temperature,
        frequency_penalty=penalty,
        seed=seed,
        grammar=grammar,
        ignore_eos=ignore,
    ),
    st.sampled_from([None, *GRAMMARS]),
    st.sampled_from([0, 0.8, 3.0]),
    st.sampled_from([0.0, 0.5]),
    st.integers(0, 99),
    st.sampled_from([3, 40]),
    st.booleans(),
)
few = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class TestEngine:
    @few
    @given(
        st.lists(
            st.tuples(st.sampled_from(["Fix it.", "a", "ls -la"]), samplings),
            min_size=1,
            max_size=4,
        )
    )
    def test_answers_match_and_are_the_same_in_any_company(self, make_backend, tokenizer, asks):
        alone = [serve(make_backend, tokenizer, [ask])[0][0] for ask in asks]
        # 7 + 40 tokens at most a turn: 13 pages hold one that is full.
        crowd, _ = serve(make_backend, tokenizer, asks, pages=13, budget=6, draft="ngram")
        assert crowd == alone
        for (_, sampling), (tokens, text, finish, error) in zip(asks, alone, strict=True):
            assert error is None
            if sampling.grammar is not None and finish == "stop":
                assert GRAMMARS[sampling.grammar](text), text
            else:
                assert sampling.ignore_eos or finish == "length" or sampling.grammar is None
                assert len(tokens) <= sampling.max_tokens

    def test_greedy_tokens_that_are_legal_anyway_stay(self, make_backend, tokenizer):
        prompts = ["Fix it.", "a", "ls -la", "def main", "1 2 3", "the"]
        free = SamplingParams(max_tokens=12, temperature=0)
        limited = SamplingParams(max_tokens=12, temperature=0, grammar=Grammar.regex("(?s:.*)"))
        plain, _ = serve(make_backend, tokenizer, [(prompt, free) for prompt in prompts])
        kept, _ = serve(make_backend, tokenizer, [(prompt, limited) for prompt in prompts])
        compiler = GrammarCompiler(tokenizer, tokenizer.eos_ids)
        legal = 0
        for (before, *_), (after, *_) in zip(plain, kept, strict=True):
            cursor = compiler.compile(limited.grammar).start()
            fitting = 0
            for token in before:
                if token not in allowed(cursor) or not cursor.push(token):
                    break
                fitting += 1
            assert after[:fitting] == before[:fitting]
            legal += fitting
        assert legal >= 12

    def test_it_stops_where_nothing_can_follow_and_at_an_end_token_where_something_can(
        self, make_backend, tokenizer
    ):
        for pattern in ("[0-9]{3}", "[0-9]{1,3}"):
            asks = [
                ("n", SamplingParams(max_tokens=9, seed=seed, grammar=Grammar.regex(pattern)))
                for seed in range(12)
            ]
            answers, _ = serve(make_backend, tokenizer, asks)
            assert {finish for _, _, finish, _ in answers} == {"stop"}
            for tokens, text, _, _ in answers:
                assert re.fullmatch(pattern, text)
                ended = tokens[-1] in tokenizer.eos_ids
                assert ended == (len(text) < 3)

    def test_a_stop_text_cuts_it_short(self, make_backend, tokenizer):
        sampling = SamplingParams(
            max_tokens=40, seed=1, stop=("-",), grammar=Grammar.regex("[a-f]{3}-[0-9]{3}")
        )
        [(_, text, finish, _)], _ = serve(make_backend, tokenizer, [("x", sampling)])
        assert re.fullmatch("[a-f]{3}", text)
        assert finish == "stop"

    def test_a_grammar_that_cannot_be_is_refused_and_others_go_on(self, make_backend, tokenizer):
        bad = SamplingParams(grammar=Grammar.regex("(a"))
        with pytest.raises(BaseExceptionGroup) as caught:
            serve(make_backend, tokenizer, [("a", bad)])
        assert caught.group_contains(GrammarError)


def test_what_must_come_takes_one_step_where_guesses_are_made(tiny_model_dir, tokenizer):
    model = load_model(tiny_model_dir)

    def make(pages):
        return TorchBackend(model, TorchPagedAttention(model.config, pages, PAGE, model.dtype))

    tools = [{"function": {"name": "run_the_tests", "parameters": {"properties": {
        "verbosely": {"type": "boolean"}}, "required": ["verbosely"],
        "additionalProperties": False}}}]  # fmt: skip
    grammar = Grammar.tool_calls(tools, several=False)
    ask = ("Test.", SamplingParams(max_tokens=200, temperature=0, grammar=grammar))
    plain, slow = serve(make, tokenizer, [ask])
    drafted, fast = serve(make, tokenizer, [ask], draft="ngram")
    assert drafted == plain
    assert "run_the_tests" in plain[0][1]
    assert fast.scheduler.steps < slow.scheduler.steps / 2
    assert fast.scheduler.accepted_tokens > 20


def test_a_grammar_that_gets_too_complex_fails_its_turn_and_no_other(tiny_model_dir, tokenizer):
    model = load_model(tiny_model_dir)
    backend = TorchBackend(model, TorchPagedAttention(model.config, 64, PAGE, model.dtype))
    compiler = GrammarCompiler(tokenizer, tokenizer.eos_ids)
    compiler.compile(Grammar.regex("a"))  # makes the vocabulary
    source = "start: (A | B)+\nA: /[a-z]+ [a-z]+/\nB: /[a-z ]{1,40}z/"
    limits = LLParserLimits(step_lexer_fuel=60, initial_lexer_fuel=100_000)
    matcher = LLMatcher(compiler._vocabulary, source, log_level=0, limits=limits)
    assert not matcher.is_error()
    tight = CompiledGrammar(matcher, tokenizer.eos_ids)
    params = SamplingParams(temperature=0, grammar=Grammar.lark(source))
    backend.open("tight", [5, 6, 7], params, grammar=tight)
    backend.open("other", [5, 6, 7], SamplingParams(temperature=0))
    starts, failed = {"tight": 0, "other": 0}, None
    for step in range(30):
        pieces = [
            SeqSlice(turn_id, start, 3 + step - start, range(16 * i, 16 * i + 16), True)
            for i, (turn_id, start) in enumerate(starts.items())
        ]
        plan = StepPlan(tuple(pieces))
        result = backend.run(plan)
        samples = result.samples
        assert FaultWatch(RestartLimits(bad_turns=1)).of_result(plan, result, 0.0) is None
        assert samples["other"].finish is None
        if "tight" in samples and samples["tight"].finish == "failed":
            failed = samples["tight"]
            break
        starts = dict.fromkeys(starts, 3 + step)
    assert failed is not None
    assert failed.tokens == ()
    assert "grammar cannot go on at position" in failed.error
