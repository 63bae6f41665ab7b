"""Edge decisions: who decides, in which order, and that they are total."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.errors import GuideError
from agentrt.workflows.decide import (
    Decided,
    Decision,
    DecisionFailure,
    check_total,
    decide_edges,
)
from agentrt.workflows.guide import Edge
from agentrt.workflows.models import Choice, ModelFailure

PROSE = Edge("prose", "Step1", "Step2", condition="the owner confirms")
CODE = Edge("code", "Step1", "Step3", condition="`x > 1`", predicate="x > 1")
ALWAYS = Edge("always", "Step1", "Step4")
OTHERWISE = Edge("otherwise", "Step1", "Step5", otherwise=True)


def evaluate(text, data) -> bool:
    if "x" not in data:
        raise GuideError("x is not known", remedy="Query it.")
    return data["x"] > 1


def models(answer):
    async def ask(edge: Edge) -> Choice:
        if isinstance(answer, Exception):
            raise answer
        return Choice(answer, evidence="a model", logprob=-0.5, tokens=7, cached_tokens=5)

    return ask


def persons(answer, by="person"):
    async def ask(edge: Edge, why: str) -> tuple[str, str]:
        return answer, by

    return ask


def decide(edges, data=None, **askers) -> Decided:
    async def main() -> Decided:
        return await decide_edges(edges, data or {}, evaluate=evaluate, **askers)

    return anyio.run(main)


def who(decided: Decided) -> list[tuple[str, str, str]]:
    return [(d.edge, d.state, d.by) for d in decided.decisions]


def test_code_decides_what_it_can_and_the_model_the_rest() -> None:
    decided = decide([OTHERWISE, PROSE, CODE, ALWAYS], {"x": 2}, model=models("disabled"))
    assert who(decided) == [
        ("otherwise", "disabled", "rule"),
        ("prose", "disabled", "model"),
        ("code", "enabled", "code"),
        ("always", "enabled", "rule"),
    ]
    assert (decided.tokens, decided.cached_tokens) == (7, 5)
    evidence = {d.edge: d.evidence for d in decided.decisions}
    assert evidence["code"] == "`x > 1` is true"
    assert "logprob -0.500" in evidence["prose"]
    assert "code, always" in evidence["otherwise"]


def test_otherwise_is_taken_when_nothing_else_is() -> None:
    decided = decide([CODE, OTHERWISE], {"x": 0})
    assert decided.edges == {"code": "disabled", "otherwise": "enabled"}


def test_a_predicate_without_its_data_goes_to_the_model() -> None:
    decided = decide([CODE], model=models("enabled"))
    assert who(decided) == [("code", "enabled", "model")]
    assert "x is not known" in decided.decisions[0].evidence


@pytest.mark.parametrize(
    "answer", ["Enabled", "", "yes", "enabled ", ModelFailure("timeout", "late", remedy="wait")]
)
def test_a_model_that_fails_leaves_it_to_a_person_or_fails_by_name(answer) -> None:
    decided = decide([PROSE], model=models(answer), person=persons("enabled"))
    assert who(decided) == [("prose", "enabled", "person")]
    with pytest.raises((DecisionFailure, ModelFailure)):
        decide([PROSE], model=models(answer))


def test_nobody_to_ask_and_a_person_who_says_nonsense() -> None:
    with pytest.raises(DecisionFailure, match="Nobody can decide prose"):
        decide([PROSE])
    with pytest.raises(DecisionFailure, match="not a state"):
        decide([PROSE], person=persons("perhaps"))


def test_a_default_is_told_apart_from_an_answer() -> None:
    decided = decide([PROSE], person=persons("disabled", "default"))
    assert "default" in decided.decisions[0].evidence


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ({"prose": "enabled", "invented": "enabled"}, "invented"),
        ({}, "left out: prose"),
        ({"prose": "Enabled"}, "not a state"),
    ],
)
def test_totality_is_checked(states, said) -> None:
    with pytest.raises(DecisionFailure, match=said):
        check_total([PROSE], states)


@given(
    kinds=st.lists(st.sampled_from(["prose", "code", "always", "otherwise"]), max_size=6),
    answers=st.lists(st.sampled_from(["enabled", "disabled"]), min_size=6, max_size=6),
    x=st.integers(0, 3),
)
def test_decisions_are_total_and_otherwise_is_exact(kinds, answers, x) -> None:
    edges = [
        Edge(
            f"e{n}",
            "Step1",
            f"Step{n + 2}",
            condition="prose" if kind == "prose" else "",
            predicate="x > 1" if kind == "code" else None,
            otherwise=kind == "otherwise",
        )
        for n, kind in enumerate(kinds)
    ]
    said = iter(answers)

    async def ask(edge: Edge) -> Choice:
        return Choice(next(said))

    decided = decide(edges, {"x": x}, model=ask)
    assert list(decided.edges) == [edge.name for edge in edges]
    others = [d for d, e in zip(decided.decisions, edges, strict=True) if not e.otherwise]
    expected = "disabled" if any(d.state == "enabled" for d in others) else "enabled"
    for decision, edge in zip(decided.decisions, edges, strict=True):
        if edge.otherwise:
            assert decision == Decision(edge.name, expected, "rule", decision.evidence)
