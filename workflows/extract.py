"""Connections for a guide whose steps are prose, proposed by a model and shown for review.

The model only ever answers closed questions: may this step directly follow that one, and when;
where it says "under a condition" it is asked for the condition in one line. What it proposes is
written into the guide's text, read back, checked as a plan, and returned as a diff. Nothing is
applied here, and no file is touched.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from agentrt.errors import GuideError
from agentrt.workflows.extract_text import insert_connections
from agentrt.workflows.guide import END, START, Edge, Guide, Step
from agentrt.workflows.models import GuideModel, Message, ModelFailure
from agentrt.workflows.parse import parse_guide
from agentrt.workflows.parse_values import in_ticks
from agentrt.workflows.plan import make_plan
from agentrt.workflows.predicate import PredicateError, parse_predicate
from agentrt.workflows.render_guide import render_guide, same_guide

__all__ = ["Answered", "Proposal", "propose", "unconnected"]

MOST_QUESTIONS = 5000
LONGEST_CONDITION = 300
ATTEMPTS = 2

_ALWAYS, _IF, _OTHERWISE = "always", "under a condition", "when no other applies"
_SYSTEM = (
    "You read a troubleshooting guide and say in which order its steps follow each other. "
    "Go by what the text of the guide says, not by what you would do yourself."
)


@dataclass(frozen=True, slots=True)
class Answered:
    """One question that the model was asked, and what it said. ``context`` is step/target."""

    context: str
    question: str
    answer: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """Connections to review. ``text`` is the guide's text with them, ``diff`` what they change.

    ``problems`` say what is wrong with the graph that would result; ``guide`` is None where the
    text cannot even be read as a guide.
    """

    text: str
    diff: str
    guide: Guide | None
    edges: tuple[Edge, ...]
    answers: tuple[Answered, ...]
    problems: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether the resulting guide can be planned, and each step reached and concluded."""
        return not self.problems


def unconnected(guide: Guide) -> tuple[Step, ...]:
    """Return the steps that say nothing of what follows: no connections and no terminator."""
    return tuple(step for step in guide.steps if not step.edges and step.id not in (START, END))


async def propose(guide: Guide, model: GuideModel) -> Proposal:
    """Ask the model what follows the steps that do not say so.

    Raises:
        GuideError: every step has connections already, or there are too many pairs to ask about.
        ModelFailure: the model gives no usable answer.
    """
    todo = unconnected(guide)
    if not todo:
        raise GuideError(
            f"{guide.path or guide.name}: every step says what follows it.",
            remedy="There is nothing to propose; use `agentrt guide lint` to check the guide.",
        )
    if len(todo) * len(guide.steps) > MOST_QUESTIONS:
        raise GuideError(
            f"{guide.path or guide.name}: the model would be asked more than "
            f"{MOST_QUESTIONS} questions.",
            remedy="Write the connections of some steps, or split the guide.",
        )
    base = guide.text if guide.text and guide.source_format == "agentrt" else render_guide(guide)
    interview = _Interview(guide, base, model)
    found = {step.id: await interview.about(step) for step in todo}
    return _proposal(guide, base, found, tuple(interview.answers))


class _Interview:
    """The questions of one proposal. Knows the edges so far, so that none closes a cycle."""

    def __init__(self, guide: Guide, base: str, model: GuideModel) -> None:
        self.answers: list[Answered] = []
        self._guide, self._model = guide, model
        self._after = {s.id: {e.target for e in s.edges} for s in guide.steps} | {END: set()}
        self._shared: list[Message] = [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": f"The guide:\n\n{base}"},
        ]

    async def about(self, step: Step) -> tuple[Edge, ...]:
        """Ask which steps may follow this one, and when."""
        targets: list[str] = []
        for target in self._candidates(step):
            question = (
                f"Look at {step.id}, {step.title!r}. According to the guide, can {target} "
                f"({self._title(target)}) be what comes directly after it?"
            )
            if await self._choose(step, target, question, ("yes", "no")) == "yes":
                targets.append(target)
                self._after[step.id].add(target)
        return tuple([await self._edge(step, target, len(targets)) for target in targets])

    def _candidates(self, step: Step) -> list[str]:
        others = [other.id for other in self._guide.steps if other.id not in (step.id, START, END)]
        return [other for other in [*others, END] if not self._leads(other, step.id)]

    def _leads(self, source: str, target: str) -> bool:
        todo, seen = [source], {source}
        while todo:
            node = todo.pop()
            if node == target:
                return True
            more = self._after[node] - seen
            seen |= more
            todo += more
        return False

    def _title(self, target: str) -> str:
        return "the guide is concluded" if target == END else repr(self._guide.step(target).title)

    async def _edge(self, step: Step, target: str, siblings: int) -> Edge:
        edge = Edge(f"edge_{step.id}_{target}", step.id, target)
        question = f"When does {target} come directly after {step.id}, {step.title!r}?"
        choices = (_ALWAYS, _IF, _OTHERWISE) if siblings > 1 else (_ALWAYS, _IF)
        answer = await self._choose(step, target, question, choices)
        if answer == _OTHERWISE:
            return replace(edge, otherwise=True)
        return edge if answer == _ALWAYS else await self._condition(step, edge)

    async def _choose(self, step: Step, target: str, question: str, choices: Sequence[str]) -> str:
        context = f"{step.id}/{target}"
        asked = f"{question} Answer with one of: {'; '.join(choices)}."
        messages = [*self._shared, {"role": "user", "content": asked}]
        for _ in range(ATTEMPTS):
            choice = await self._model.choose(messages, choices, context=context)
            if choice.answer in choices:
                self.answers.append(Answered(context, question, choice.answer, choice.evidence))
                return choice.answer
        raise ModelFailure(
            "nonsense",
            f"The model {self._model.name} answers {choice.answer!r:.80} to a question of "
            f"{', '.join(choices)}.",
            remedy="Use a model that is held to the given answers, or write the connections.",
        )

    async def _condition(self, step: Step, edge: Edge) -> Edge:
        context = f"{step.id}/{edge.target}"
        question = (
            f"Under which condition does {edge.target} come directly after {step.id}? Answer in "
            "one line with the condition only, with the numbers that the guide gives."
        )
        messages = [*self._shared, {"role": "user", "content": question}]
        for _ in range(ATTEMPTS):
            reply = await self._model.write(messages, context=context, max_tokens=120)
            found = _read_condition(edge, reply.text)
            if found is not None:
                self.answers.append(Answered(context, question, reply.text.strip(), "text"))
                return found
        raise ModelFailure(
            "nonsense",
            f"The model {self._model.name} gives no condition for {edge.name}.",
            remedy="Use another model, or write the connections of this step.",
        )


def _read_condition(edge: Edge, reply: str) -> Edge | None:
    """The edge with the condition of a reply: its first line, a predicate where it is code."""
    lines = [line.strip(" -*.") for line in reply.splitlines() if line.strip(" -*.")]
    text = lines[0] if lines else ""
    text = text[3:].strip() if text.lower().startswith("if ") else text
    if not text or len(text) > LONGEST_CONDITION or "<!--" in text:
        return None
    code = in_ticks(text)
    if code is None:
        return replace(edge, condition=text)
    try:
        return replace(edge, predicate=parse_predicate(code).text)
    except PredicateError:
        return replace(edge, condition=code.replace("`", "'"))


def _proposal(
    guide: Guide, base: str, found: Mapping[str, tuple[Edge, ...]], answers: tuple[Answered, ...]
) -> Proposal:
    text = insert_connections(base, found, guide.path or guide.name)
    name = guide.path or guide.name
    diff = "".join(
        difflib.unified_diff(
            base.splitlines(keepends=True),
            text.splitlines(keepends=True),
            fromfile=name,
            tofile=f"{name} (proposed)",
        )
    )
    edges = tuple(edge for part in found.values() for edge in part)
    try:
        proposed = parse_guide(text, name=guide.name, path=guide.path)
    except GuideError as error:
        return Proposal(text, diff, None, edges, answers, (str(error),))
    return Proposal(text, diff, proposed, edges, answers, _problems(guide, proposed, found))


def _problems(
    guide: Guide, proposed: Guide, found: Mapping[str, tuple[Edge, ...]]
) -> tuple[str, ...]:
    wanted = replace(
        guide, steps=tuple(replace(s, edges=found.get(s.id, s.edges)) for s in guide.steps)
    )
    if not same_guide(wanted, proposed):
        return ("The proposed text does not read back as what the model answered.",)
    try:
        plan = make_plan(proposed)
    except GuideError as error:
        return (str(error),)
    reachable = [step for step in plan.steps if step not in plan.unreachable]
    problems = [f"{step} cannot be reached." for step in plan.steps if step in plan.unreachable]
    problems += [
        f"No way leads from {step} to end."
        for step in reachable
        if not plan.comes_before(step, END)
    ]
    return tuple(problems)
