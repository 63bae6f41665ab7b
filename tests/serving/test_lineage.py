"""Whose program a name stands for, and what was generated for a conversation."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.serving.answers import Answers
from agentrt.serving.lineage import Lineage

names = st.sampled_from("abcdef")


class TestLineage:
    def test_a_sub_agent_counts_to_its_root(self) -> None:
        lineage = Lineage()
        assert lineage.root("t", "main") == "main"
        assert lineage.root("t", "child", "main") == "main"
        assert lineage.root("t", "grandchild", "child") == "main"
        assert lineage.root("t", "child") == "main"
        assert lineage.root("other", "child") == "child"

    def test_what_was_said_first_holds_until_the_program_ends(self) -> None:
        lineage = Lineage()
        lineage.root("t", "p")
        assert lineage.root("t", "p", "q") == "p"
        lineage.forget("t", "p")
        assert lineage.root("t", "p", "q") == "q"
        assert lineage.root("t", "q", "p") == "q"  # no circle
        lineage.forget("t", "q")
        assert len(lineage) == 0

    @settings(deadline=None, max_examples=80)
    @given(
        st.lists(st.tuples(names, st.none() | names, st.booleans()), max_size=40),
        st.integers(1, 6),
    )
    def test_roots_are_roots(self, said: list[tuple[str, str | None, bool]], limit: int) -> None:
        lineage = Lineage(limit)
        for name, parent, ends in said:
            root = lineage.root("t", name, parent)
            assert lineage.root("t", name) == root
            assert len(lineage) <= limit
            assert sum(map(len, lineage._children.values())) == len(lineage)
            if ends:
                lineage.forget("t", root)


@dataclass(frozen=True)
class Told:
    tokens: tuple[int, ...]


KEY = ("tenant", "program")


class TestAnswers:
    def test_the_longest_conversation_is_found(self) -> None:
        answers: Answers[Told] = Answers(100)
        answers.put(KEY, "main", b"1", Told((1,)))
        answers.put(KEY, "side", b"2", Told((1, 2)))
        assert answers.find([b"0", b"1", b"2", b"3"]) == Told((1, 2))
        assert answers.find([b"1", b"9"]) == Told((1,))
        assert answers.find([b"1"]) is None  # asked, and not continued

    def test_a_context_keeps_its_newest(self) -> None:
        answers: Answers[Told] = Answers(100)
        answers.put(KEY, "main", b"1", Told((1,)))
        answers.put(KEY, "main", b"2", Told((1, 2)))
        assert answers.find([b"1", b"x"]) is None
        assert len(answers) == 1
        answers.forget(KEY)
        assert len(answers) == 0

    @settings(deadline=None, max_examples=80)
    @given(
        st.lists(
            st.tuples(st.sampled_from("pq"), st.sampled_from("mn"), names, st.integers(0, 9)),
            max_size=40,
        )
    )
    def test_memory_is_bounded(self, put: list[tuple[str, str, str, int]]) -> None:
        answers: Answers[Told] = Answers(20)
        for program, context, state, tokens in put:
            answers.put(("t", program), context, state.encode(), Told(tuple(range(tokens))))
            held = [told for told, _ in answers._by_state.values()]
            assert answers._tokens == sum(len(told.tokens) for told in held) <= 20
            assert sorted(answers._newest.values()) == sorted(answers._by_state)
        for program in "pq":
            answers.forget(("t", program))
        assert answers._tokens == 0
