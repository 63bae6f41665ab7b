"""Connections proposed by a model: closed questions, a checked graph, a diff and nothing more."""

from __future__ import annotations

import anyio
import pytest

from agentrt.errors import GuideError
from agentrt.workflows.extract import propose, unconnected
from agentrt.workflows.models import ModelFailure, ScriptedModel
from agentrt.workflows.parse import parse_guide
from agentrt.workflows.plan import make_plan

PROSE = """\
# Queue backlog
When messages pile up.

## Step 1 - Measure

Count the messages. With more than 5000 go on with Step 2, else with Step 3.

### Policy

- timeout: 30s

## Step 2 - Drain

Drain the queue, then look again as in Step 3.
<!-- ask ann
     about this -->

## Step 3 - Watch

### Connections

Done when it is calm.

## Notes
Kept by ann.
"""

FOLLOWS = {
    "Step1": {"Step2": ("under a condition", "`max(q.depth) > 5000`"),
              "Step3": ("when no other applies", "")},
    "Step2": {"Step3": ("always", "")},
    "Step3": {"end": ("under a condition", "if the queue is calm.\nThat is all.")},
}  # fmt: skip


def _model(follows, asked=None):
    def answer(messages, choices, context):
        step, target = context.split("/")
        if asked is not None:
            asked.append((messages, choices, context))
        when = follows.get(step, {}).get(target)
        if choices is None:
            return when[1]
        if tuple(choices) == ("yes", "no"):
            return "yes" if when else "no"
        return when[0]

    return ScriptedModel(answer)


def _propose(text, model):
    return anyio.run(propose, parse_guide(text, name="g", path="g.md"), model)


class TestProposal:
    asked: list = []  # noqa: RUF012
    proposal = _propose(PROSE, _model(FOLLOWS, asked))

    def test_it_is_sound_and_makes_the_plan(self):
        assert self.proposal.sound, self.proposal.problems
        plan = make_plan(self.proposal.guide)
        assert [edge.name for edge in plan.edges] == [
            "edge_start_Step1",
            "edge_Step1_Step2",
            "edge_Step1_Step3",
            "edge_Step2_Step3",
            "edge_Step3_end",
        ]
        first, second, *_ = self.proposal.edges
        assert (first.predicate, second.otherwise) == ("max(q.depth) > 5000", True)
        assert self.proposal.edges[-1].condition == "the queue is calm"

    def test_the_diff_only_adds_connections(self):
        lines = self.proposal.diff.splitlines()[2:]
        assert not [line for line in lines if line.startswith("-")]
        added = [line[1:] for line in lines if line.startswith("+") and line != "+"]
        assert added == [
            "### Connections",
            "- if `max(q.depth) > 5000`: Step 2",
            "- otherwise: Step 3",
            "### Connections",
            "- Step 3",
            "- if the queue is calm: end",
        ]

    def test_the_rest_of_the_guide_is_as_it_was(self):
        guide = parse_guide(PROSE, name="g", path="g.md")
        for before, after in zip(guide.steps, self.proposal.guide.steps, strict=True):
            assert (before.instructions, before.policy) == (after.instructions, after.policy)
        assert self.proposal.guide.overview == guide.overview

    def test_all_questions_begin_with_the_guide_and_are_recorded(self):
        shared = {str(messages[:-1]) for messages, _, _ in self.asked}
        assert len(shared) == 1
        assert "pile up" in shared.pop()
        assert len(self.proposal.answers) == len(self.asked)

    def test_no_question_could_close_a_cycle(self):
        contexts = {context for _, _, context in self.asked}
        assert "Step2/Step1" not in contexts
        assert "Step3/Step2" not in contexts


def test_only_steps_without_connections_are_asked_about():
    text = PROSE.replace("- timeout: 30s\n", "- timeout: 30s\n### Connections\n- Step 2\n")
    guide = parse_guide(text, name="g")
    assert [step.id for step in unconnected(guide)] == ["Step2", "Step3"]
    model = _model(FOLLOWS)
    proposal = anyio.run(propose, guide, model)
    assert proposal.sound
    assert not any(context.startswith("Step1/") for context in model.calls)


def test_a_guide_that_says_everything_is_refused():
    with pytest.raises(GuideError, match="every step says what follows"):
        _propose("# T\n## Step 1 - A\n### Connections\n- end\n", _model({}))


def test_steps_that_lead_nowhere_or_cannot_be_reached_are_problems():
    proposal = _propose(PROSE, _model({"Step1": {"Step3": ("always", "")}}))
    assert not proposal.sound
    assert "Step2 cannot be reached." in proposal.problems
    assert "No way leads from Step3 to end." in proposal.problems


def test_answers_outside_the_choices_are_asked_again_and_then_refused():
    script = {"Step1/Step2": ["Yes!", "no"], "Step1/Step3": ["perhaps", "perhaps"]}
    model = ScriptedModel(script)
    with pytest.raises(ModelFailure, match="perhaps") as caught:
        _propose(PROSE, model)
    assert caught.value.kind == "nonsense"
    assert model.calls == ["Step1/Step2"] * 2 + ["Step1/Step3"] * 2


@pytest.mark.parametrize("text", ["", "\n\n", "x" * 400, "<!-- Reaches A Final Conclusion -->"])
def test_a_condition_that_is_none_is_refused(text):
    follows = {**FOLLOWS, "Step3": {"end": ("under a condition", text)}}
    with pytest.raises(ModelFailure, match="no condition"):
        _propose(PROSE, _model(follows))


def test_code_that_is_no_predicate_becomes_prose():
    follows = {**FOLLOWS, "Step3": {"end": ("under a condition", "`SELECT 1`")}}
    proposal = _propose(PROSE, _model(follows))
    assert proposal.sound
    assert (proposal.edges[-1].predicate, proposal.edges[-1].condition) == (None, "SELECT 1")


def test_a_condition_that_the_format_reads_otherwise_is_a_problem():
    follows = {**FOLLOWS, "Step3": {"end": ("under a condition", "`a > 1` (see ann)")}}
    proposal = _propose(PROSE, _model(follows))
    assert not proposal.sound
    assert "does not read back" in proposal.problems[0]


def test_too_many_questions_are_refused():
    steps = "".join(f"## Step {n} - A\n" for n in range(1, 90))
    with pytest.raises(GuideError, match="questions"):
        _propose(f"# T\n{steps}", _model({}))
