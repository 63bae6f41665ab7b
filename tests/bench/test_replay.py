"""Token ids of a live replay: lengths, overlaps, texts; and the cache that never forgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentrt.bench.replay import InfiniteCache, LiteralTexts, NumericTokens, common_prefix
from agentrt.bench.workload import Turn
from tests.bench.builders import program, small_workload, turn


@given(seed=st.integers(0, 5), turns=st.integers(1, 5))
def test_numbers_become_tokens_with_the_recorded_overlaps(seed, turns):
    one = small_workload(count=1, turns=turns).programs[0]
    made = NumericTokens(one, range(1000), seed)
    held: list[int] = []
    for index, row in enumerate(one.turns):
        replay = made.turn(index)
        assert len(replay.prompt) == row.prompt_tokens
        assert len(replay.forced) == row.output_tokens
        assert list(replay.prompt[: row.reused_tokens]) == held[: row.reused_tokens]
        held = [*replay.prompt, *replay.forced]


def test_a_compacted_context_keeps_only_what_was_recorded():
    one = program("a", turn(100, 10), turn(60, 5, reused=40))
    made = NumericTokens(one, range(10_000), 0)
    first, second = made.turn(0), made.turn(1)
    assert common_prefix(first.prompt, second.prompt) == 40


def test_seeds_and_programs_differ_and_repeat():
    one, two = small_workload(count=2).programs
    tokens = NumericTokens(one, range(1000), 0).turn(0)
    assert tokens == NumericTokens(one, range(1000), 0).turn(0)
    assert tokens != NumericTokens(one, range(1000), 1).turn(0)
    assert tokens.prompt[:20] != NumericTokens(two, range(1000), 0).turn(0).prompt[:20]


def test_blocks_of_one_name_are_the_same_tokens_everywhere():
    rows = [
        Turn("main", 20, 0, 2, blocks=(1, 2), block_tokens=16),
        Turn("main", 25, 0, 2, blocks=(1, 3), block_tokens=16),
    ]
    prompts = [
        NumericTokens(program(name, row), range(1000), 0).turn(0).prompt
        for name, row in zip("ab", rows, strict=True)
    ]
    assert [len(prompt) for prompt in prompts] == [20, 25]
    assert common_prefix(*prompts) == 16


class FakeBuilder:
    """One token a character; a role is a token, too. Says what it was told."""

    def __init__(self) -> None:
        self.noted: list[tuple[list[int], Mapping[str, Any]]] = []
        self.built: list[list[Mapping[str, Any]]] = []

    def build(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        self.built.append(list(messages))
        return [ord(ch) for row in messages for ch in f"<{row['role'][0]}{row['content']}"]

    def note_output(self, tokens: Sequence[int], message: Mapping[str, Any]) -> None:
        self.noted.append((list(tokens), message))


def test_texts_become_a_conversation_of_each_context():
    def literal(content: str, output: str, context: str = "main") -> Turn:
        return Turn(
            context, 1, 0, 1, messages=({"role": "user", "content": content},), output=output
        )

    one = program("p", literal("hi", "yo"), literal("sub", "ok", "side"), literal("go", "end"))
    builders: list[FakeBuilder] = []

    def new_context() -> FakeBuilder:
        builders.append(FakeBuilder())
        return builders[-1]

    texts = LiteralTexts(one, new_context, lambda text: [ord(ch) for ch in text], [0])
    replays = [texts.turn(index) for index in range(3)]
    assert replays[0].forced == [ord("y"), ord("o"), 0]
    assert replays[2].prompt[: len(replays[0].prompt)] == replays[0].prompt
    assert len(builders) == 2
    main = builders[0]
    assert [row["content"] for row in main.built[1]] == ["hi", "yo", "go"]
    assert [row["role"] for row in main.built[1]] == ["user", "assistant", "user"]
    assert main.noted[0] == (replays[0].forced, {"role": "assistant", "content": "yo"})
    assert [row["content"] for row in builders[1].built[0]] == ["sub"]


small = st.lists(st.integers(0, 2), max_size=12)


@given(one=small, other=small)
def test_common_prefix_is_what_a_loop_would_count(one, other):
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    assert common_prefix(one, other) == count


@given(known=st.lists(small, max_size=6), prompt=st.lists(st.integers(0, 2), min_size=1))
def test_an_infinite_cache_computes_only_what_nobody_had(known, prompt):
    cache = InfiniteCache()
    for sequence in known:
        cache.add(sequence)
    longest = max((common_prefix(sequence, prompt) for sequence in known), default=0)
    assert cache.prefill(prompt) == max(1, len(prompt) - longest)


def test_an_infinite_cache_remembers_what_a_context_dropped():
    cache = InfiniteCache()
    cache.add([1, 2, 3, 4])
    cache.add([1, 2, 9])
    assert cache.prefill([1, 2, 3, 4, 5]) == 1
