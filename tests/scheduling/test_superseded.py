"""Contexts that will not be back, and those that may."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.scheduling.superseded import ContextFacts, restarted, superseded

MAIN = ContextFacts("main", 0.0, 90.0, 95.0, turns=9, first_prompt=500, length=9000, calls=True)
TITLE = ContextFacts("title", 1.0, 1.0, 2.0, turns=1, first_prompt=80, length=100, calls=False)


class TestSuperseded:
    def test_a_title_request_goes_first(self) -> None:
        assert superseded([MAIN, TITLE], 96.0) == {"title": "side"}

    def test_the_only_context_is_never_superseded(self) -> None:
        assert superseded([replace(MAIN, patience=1.0)], 10_000.0) == {}

    def test_nothing_is_said_while_a_turn_is_under_way(self) -> None:
        assert superseded([MAIN, replace(TITLE, ended=None)], 1000.0) == {}

    def test_where_calls_are_not_known_only_time_tells(self) -> None:
        unknown = replace(TITLE, calls=None, patience=200.0)
        assert superseded([MAIN, unknown], 96.0) == {}
        assert superseded([MAIN, unknown], 300.0)["title"] == "abandoned"

    def test_a_summary_supersedes_what_it_sums_up(self) -> None:
        old = replace(MAIN, calls=False)
        new = ContextFacts("context-2", 97.0, 99.0, 99.5, 2, first_prompt=700, length=900)
        assert superseded([old, new], 100.0) == {"main": "compacted"}
        assert superseded([old, replace(new, turns=1)], 100.0) == {}
        assert superseded([old, replace(new, parent="main")], 100.0) == {}

    def test_a_caller_waits_for_its_sub_agent_however_long(self) -> None:
        old = replace(MAIN, patience=10.0)
        child = ContextFacts("sub", 96.0, 200.0, None, 20, 700, 5000, parent="main")
        assert superseded([old, child], 300.0) == {}
        assert superseded([old, replace(child, parent=None)], 300.0) == {"main": "abandoned"}
        gone = replace(child, ended=210.0, patience=10.0)
        assert superseded([old, gone], 300.0) == {"main": "abandoned"}

    @settings(deadline=None, max_examples=100)
    @given(
        st.lists(
            st.builds(
                ContextFacts,
                name=st.text(max_size=2),
                began=st.floats(0, 100),
                latest=st.floats(0, 200),
                ended=st.none() | st.floats(0, 300),
                turns=st.integers(0, 5),
                first_prompt=st.integers(0, 1000),
                length=st.integers(0, 10_000),
                calls=st.sampled_from([None, True, False]),
                parent=st.none() | st.text(max_size=2),
                patience=st.floats(0, 100),
            ),
            max_size=6,
            unique_by=lambda context: context.name,
        ),
        st.floats(0, 500),
    )
    def test_the_context_that_began_a_turn_last_is_never_superseded(
        self, contexts: list[ContextFacts], now: float
    ) -> None:
        found = superseded(contexts, now)
        for context in contexts:
            if context.name in found:
                assert context.ended is not None
                assert any(
                    other.latest >= context.ended for other in contexts if other is not context
                )


def test_restarts() -> None:
    assert restarted(length=10_000, prompt=2_000, reused=1_000)
    assert not restarted(length=10_000, prompt=10_500, reused=0)  # it only missed the cache
    assert not restarted(length=10_000, prompt=9_900, reused=9_800)  # its tail was cut
