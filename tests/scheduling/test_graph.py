"""Execution graphs: declared, inferred and cold; what follows, for how long, and how well said."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.errors import InvalidRequest
from agentrt.scheduling.graph import ENDED_PROGRAMS, MAX_CONTEXTS, ExecutionGraphs, TurnFacts
from agentrt.scheduling.graph_chain import END, MAX_LABELS, MAX_ROWS, P_TERM, START, ToolChain
from agentrt.scheduling.graph_declared import DeclaredGraph, Edge, Step

labels = st.sampled_from([None, "read", "bash:test", "edit"])


class TestChain:
    def test_nothing_known_is_the_constant_chance_of_an_end(self) -> None:
        assert ToolChain().next_steps(())[END] == pytest.approx(P_TERM)

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.lists(labels, max_size=8), max_size=8), st.lists(labels, max_size=3))
    def test_probabilities_add_up(
        self, streams: list[list[str | None]], before: list[str | None]
    ) -> None:
        chain = ToolChain()
        for stream in streams:
            for index, step in enumerate(stream):
                chain.add(tuple(stream[:index]), step)
        steps = chain.next_steps(tuple(before))
        assert sum(steps.values()) == pytest.approx(1.0)
        assert min(steps.values()) >= 0.0

    def test_counts_come_out_as_frequencies(self) -> None:
        chain = ToolChain()
        for number in range(4000):
            chain.add((START, "a"), "b" if number % 4 else "c")
        steps = chain.next_steps((START, "a"))
        assert steps["b"] == pytest.approx(0.75, abs=0.01)
        assert steps["c"] == pytest.approx(0.25, abs=0.01)

    def test_two_steps_back_matter(self) -> None:
        chain = ToolChain()
        for _ in range(50):
            chain.add(("a", "x"), "after-a")
            chain.add(("b", "x"), "after-b")
        assert chain.next_steps(("a", "x"))["after-a"] > 0.8
        assert chain.next_steps(("b", "x"))["after-b"] > 0.8

    def test_memory_is_bounded_whatever_clients_call_their_tools(self) -> None:
        chain = ToolChain()
        for number in range(3000):
            chain.add((f"t{number % 97}", f"t{number}"), f"t{number + 1}")
        assert len(chain._labels) <= MAX_LABELS
        assert len(chain._rows) <= MAX_ROWS


DIAMOND = (
    [Step("plan"), Step("left"), Step("right"), Step("merge", join="all"), Step("end")],
    [
        Edge("plan", "left", 1.0),
        Edge("plan", "right", 1.0),
        Edge("left", "merge"),
        Edge("right", "merge"),
        Edge("merge", "end", 0.5),
    ],
)


class TestDeclared:
    def test_a_join_waits_for_its_last_branch(self) -> None:
        graph = DeclaredGraph.of(*DIAMOND)
        graph.observe("plan")
        assert graph.steps_to_execution() == {
            "plan": 0, "left": 1, "right": 1, "merge": 2, "end": 3,
        }  # fmt: skip
        graph.observe("left")
        graph.observe("right")
        assert graph.active == {"left", "right"}
        assert graph.steps_to_execution() == {"left": 0, "right": 0, "merge": 1, "end": 2}
        graph.observe("merge")
        assert graph.next_steps() == {"end": 0.5}
        assert graph.continues() == 0.5

    def test_expected_turns_count_a_join_once(self) -> None:
        graph = DeclaredGraph.of(*DIAMOND)
        assert graph.expected_remaining() == pytest.approx(1 + 2 + 1 + 0.5)
        graph.observe("plan")
        assert graph.expected_remaining() == pytest.approx(3.5)

    def test_a_loop_has_a_finite_length(self) -> None:
        graph = DeclaredGraph.of([Step("act")], [Edge("act", "act", 1 - P_TERM)])
        graph.observe("act")
        assert graph.expected_remaining() == pytest.approx(19.0, rel=0.01)
        assert graph.continues() == pytest.approx(0.95)
        assert graph.reuse(900, whole=0.9) == pytest.approx(0.95 * 0.9)

    def test_open_probabilities_share_what_is_left(self) -> None:
        steps = [Step(name) for name in "abcd"]
        edges = [Edge("a", "b", 0.5), Edge("a", "c"), Edge("a", "d")]
        graph = DeclaredGraph.of(steps, edges)
        graph.observe("a")
        assert graph.next_steps() == {"b": 0.5, "c": 0.25, "d": 0.25}

    def test_branches_share_a_prefix(self) -> None:
        steps = [Step("root"), Step("one", shared_tokens=300), Step("two", shared_tokens=100)]
        graph = DeclaredGraph.of(steps, [Edge("root", "one"), Edge("root", "two")])
        graph.observe("root")
        assert graph.reuse(1000, whole=1.0) == pytest.approx(0.5 * 0.3 + 0.5 * 0.1)
        assert graph.reuse(0, whole=1.0) == 0.0

    @pytest.mark.parametrize(
        ("steps", "edges"),
        [
            ([], []),
            ([Step("a"), Step("a")], []),
            ([Step("a")], [Edge("a", "b")]),
            ([Step("a")], [Edge("a", "a"), Edge("a", "a")]),
            ([Step("a")], [Edge("a", "a", 1.5)]),
            ([Step("a")], [Edge("a", "a", float("nan"))]),
        ],
    )
    def test_a_graph_that_contradicts_itself_is_refused(
        self, steps: list[Step], edges: list[Edge]
    ) -> None:
        with pytest.raises(InvalidRequest, match=r"Declare|Give a number"):
            DeclaredGraph.of(steps, edges)

    @settings(deadline=None, max_examples=80)
    @given(st.integers(2, 8), st.randoms(use_true_random=False))
    def test_steps_to_execution_equal_brute_force(self, size: int, draw: random.Random) -> None:
        names = [f"s{number}" for number in range(size)]
        steps = [Step(name, join=draw.choice(["any", "all"])) for name in names]
        edges = [Edge(a, b) for a, b in itertools.combinations(names, 2) if draw.random() < 0.5]
        graph = DeclaredGraph.of(steps, edges)
        graph.observe("s0")
        expected: dict[str, int] = {"s0": 0}
        for step in steps[1:]:  # names are in topological order
            before = [edge.source for edge in edges if edge.target == step.name]
            known = [expected[name] for name in before if name in expected]
            if known and (step.join == "any" or len(known) == len(before)):
                expected[step.name] = 1 + (min(known) if step.join == "any" else max(known))
        assert graph.steps_to_execution() == expected


def play(graphs: ExecutionGraphs, program: str, tools: list[str | None], **facts: str) -> None:
    length = 1000
    for tool in tools:
        graphs.turn_ended(program, TurnFacts(tool, length, 50, **facts))
        length += 50 + (200 if tool == "read" else 1000)
    graphs.program_ended(program)


LOOP: list[str | None] = ["read", "edit", "test"] * 3 + [None]


def taught(programs: int = ENDED_PROGRAMS) -> ExecutionGraphs:
    graphs = ExecutionGraphs()
    for number in range(programs):
        play(graphs, f"p{number}", LOOP)
    return graphs


class TestTiers:
    def test_cold_until_enough_programs_have_ended(self) -> None:
        graphs = taught(ENDED_PROGRAMS - 1)
        graphs.turn_ended("new", TurnFacts("read", 1000, 50))
        cold = graphs.forecast("new")
        assert (cold.tier, cold.next_steps) == ("cold", {})
        assert cold.continues == pytest.approx(1 - P_TERM)
        assert cold.remaining_turns == pytest.approx(19.0)
        play(graphs, "last", LOOP)
        assert graphs.forecast("new").tier == "inferred"

    def test_inferred(self) -> None:
        graphs = taught()
        graphs.turn_ended("new", TurnFacts("read", 1000, 50))
        said = graphs.forecast("new")
        assert set(said.kept()) == {"edit"}
        assert said.continues > 0.99
        assert said.remaining_turns == pytest.approx(9.0, abs=1.5)
        assert said.reuse == pytest.approx(1050 / 1250, abs=0.01)
        assert said.remaining_output == pytest.approx(50 * said.remaining_turns)
        for tool in LOOP[1:]:
            graphs.turn_ended("new", TurnFacts(tool, 1000, 50))
        assert graphs.forecast("new").continues < 0.1
        assert graphs.forecast("new").remaining_turns < 1.0

    def test_accuracy_is_counted(self) -> None:
        graphs = taught(ENDED_PROGRAMS + 10)
        counts = graphs.statistics()
        assert counts.ended == ENDED_PROGRAMS + 10
        assert counts.scored == 10 * len(LOOP)  # every step but the first, and the end
        assert counts.next_step_accuracy > 0.75
        assert counts.kept_accuracy >= counts.next_step_accuracy
        assert counts.continuation_accuracy > 0.85

    def test_agent_types_have_graphs_of_their_own(self) -> None:
        graphs = ExecutionGraphs()
        for number in range(ENDED_PROGRAMS):
            play(graphs, f"a{number}", ["read"] * 5, agent="reader")
            play(graphs, f"b{number}", ["edit"] * 5, agent="editor")
        graphs.turn_ended("new", TurnFacts("read", 10, 1, agent="reader"))
        assert "edit" not in graphs.forecast("new").next_steps
        graphs.turn_ended("other", TurnFacts("read", 10, 1, agent="unheard"))
        assert graphs.forecast("other").tier == "cold"

    def test_sub_agents_are_contexts_of_one_program(self) -> None:
        graphs = ExecutionGraphs()
        for number in range(ENDED_PROGRAMS):
            for step in range(3):
                graphs.turn_ended(number, TurnFacts("task", 10, 1))
                graphs.turn_ended(number, TurnFacts("read", 10, 1, f"sub-{step}", "searcher"))
            graphs.program_ended(number)
        counts = graphs.statistics()
        assert (counts.ended, counts.programs) == (ENDED_PROGRAMS, 0)
        graphs.turn_ended("new", TurnFacts("task", 10, 1))
        assert graphs.forecast("new").remaining_turns == pytest.approx(5.0, abs=1.5)
        assert set(graphs.forecast("new").kept()) == {"task"}

    def test_declared_wins(self) -> None:
        graphs = taught()
        graphs.declare("new", *DIAMOND)
        assert graphs.observe("new", "plan")
        assert not graphs.observe("new", "no such step")
        assert not graphs.observe("nobody", "plan")
        graphs.turn_ended("new", TurnFacts(None, 1000, 50))
        said = graphs.forecast("new")
        assert (said.tier, dict(said.next_steps)) == ("declared", {"left": 1.0, "right": 1.0})
        assert graphs.steps_to_execution("new")["merge"] == 2
        assert graphs.steps_to_execution("p0") == {}
        assert graphs.statistics().unknown_steps == 2

    def test_what_is_cut_off_teaches_nothing(self) -> None:
        graphs = ExecutionGraphs()
        graphs.turn_ended("p", TurnFacts("read", 10, 1))
        graphs.forget("p")
        graphs.program_ended("p")
        assert graphs.statistics().ended == 0

    def test_an_unknown_program_has_a_forecast(self) -> None:
        said = taught().forecast("nobody")
        assert (said.tier, said.reuse) == ("inferred", 0.0)

    def test_contexts_are_bounded(self) -> None:
        graphs = ExecutionGraphs()
        for number in range(MAX_CONTEXTS + 20):
            graphs.turn_ended("p", TurnFacts(None, 10, 1, context=str(number)))
        assert len(graphs._programs["p"].contexts) == MAX_CONTEXTS

    @settings(deadline=None, max_examples=40)
    @given(
        st.lists(
            st.tuples(
                st.integers(0, 3), labels, st.integers(0, 5000), st.sampled_from(["main", "x"]),
                st.booleans(),
            ),
            max_size=150,
        )
    )  # fmt: skip
    def test_any_stream_gives_sound_forecasts(
        self, events: list[tuple[int, str | None, int, str, bool]]
    ) -> None:
        graphs = taught(ENDED_PROGRAMS - 2)
        for program, tool, prompt, context, ends in events:
            graphs.turn_ended(program, TurnFacts(tool, prompt, 10, context))
            said = graphs.forecast(program, context)
            assert 0.0 <= said.continues <= 1.0
            assert 0.0 <= said.reuse <= 1.0
            assert said.remaining_turns >= 0.0
            assert sum(said.next_steps.values()) == pytest.approx(1.0) or said.tier == "cold"
            if ends:
                graphs.program_ended(program)
        counts = graphs.statistics()
        assert counts.kept_right <= counts.kept <= counts.scored
        assert counts.right <= counts.scored


def test_a_long_chain_is_as_long_as_it_is() -> None:
    steps = [Step(f"s{number}") for number in range(1000)]
    edges = [Edge(one.name, two.name, 1.0) for one, two in itertools.pairwise(steps)]
    graph = DeclaredGraph.of(steps, edges)
    graph.observe("s0")
    assert graph.expected_remaining() == pytest.approx(999.0)
    assert graph.steps_to_execution()["s999"] == 999
