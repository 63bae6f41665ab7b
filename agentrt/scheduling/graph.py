"""Execution graphs: what each program is expected to do next, and for how long it goes on.

Three tiers of knowledge (SAGA, arXiv 2605.00528, section 3.1): a graph that was *declared*; one
*inferred* from the streams of programs of the same agent type; and *cold*, until 30 of those have
ended, where nothing but a constant chance of the end is assumed. Sub-agents, branches and side
requests are contexts of one program: each has a stream of its own, the program has one length.
Forecasts are scored as they come true.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from agentrt.scheduling.graph_chain import END, KEPT, P_TERM, START, Label, likeliest
from agentrt.scheduling.graph_declared import DeclaredGraph, Edge, Step
from agentrt.scheduling.graph_profile import AgentProfile, Mean, blend

__all__ = ["ExecutionGraphs", "GraphForecast", "GraphStatistics", "Tier", "TurnFacts"]

Tier: TypeAlias = Literal["declared", "inferred", "cold"]

ENDED_PROGRAMS = 30
"""How many programs of a type have to end before its inferred graph is believed."""
MAX_PROGRAMS = 20_000
MAX_AGENTS = 256
MAX_CONTEXTS = 1024


@dataclass(frozen=True, slots=True)
class TurnFacts:
    """One turn that ended. Counts are tokens; ``tool`` is what runs now, None for no tool call."""

    tool: Label
    prompt_tokens: int
    output_tokens: int
    context: str = "main"
    agent: str | None = None


@dataclass(frozen=True, slots=True)
class GraphForecast:
    """What is expected of a program.

    Args:
        tier: what the forecast rests on.
        next_steps: how likely each step follows, tools or declared names; empty when cold.
        continues: the probability that another turn follows at all.
        remaining_turns: expected turns after the present one.
        remaining_new: expected tokens that those add to prompts.
        remaining_output: expected tokens that they put out.
        reuse: ``P_reuse`` of SAGA's WA-LRU (3.2): which share of the context's KV is expected to be
            used again, over all that may follow.
    """

    tier: Tier
    next_steps: Mapping[Label, float]
    continues: float
    remaining_turns: float
    remaining_new: float
    remaining_output: float
    reuse: float

    def kept(self) -> dict[Label, float]:
        """Return the edges that the published graph keeps: at least 0.7 likely."""
        return {step: p for step, p in self.next_steps.items() if p >= KEPT}


@dataclass(frozen=True, slots=True)
class GraphStatistics:
    """Sizes, and how forecasts of the inferred tier came out, counted since the start.

    A step counts as right if the likeliest one (a tool, or the end) came. ``kept`` counts those
    forecasts whose likeliest step was at least 0.7 likely. ``ends_squared`` sums the squared
    error of the probability that the program continues (Brier 1950).
    """

    agents: int = 0
    programs: int = 0
    ended: int = 0
    unknown_steps: int = 0
    scored: int = 0
    right: int = 0
    kept: int = 0
    kept_right: int = 0
    ends_right: int = 0
    ends_squared: float = 0.0

    @property
    def next_step_accuracy(self) -> float:
        """The share of forecast steps that came; 0 when none was scored."""
        return self.right / self.scored if self.scored else 0.0

    @property
    def kept_accuracy(self) -> float:
        """The same, of steps forecast with at least 0.7."""
        return self.kept_right / self.kept if self.kept else 0.0

    @property
    def continuation_accuracy(self) -> float:
        """The share of turns after which whether the program went on was forecast rightly."""
        return self.ends_right / self.scored if self.scored else 0.0


@dataclass(slots=True)
class _Context:
    agent: str
    before: tuple[Label, ...] = (START,)
    length: int = 0
    expected: dict[Label, float] | None = None


@dataclass(slots=True)
class _Program:
    agent: str
    turns: int = 0
    output: Mean = field(default_factory=Mean)
    new: Mean = field(default_factory=Mean)
    contexts: dict[str, _Context] = field(default_factory=dict)
    declared: DeclaredGraph | None = None


class ExecutionGraphs:
    """The graphs of all programs. Memory is bounded; a turn costs a few table look-ups."""

    def __init__(self) -> None:
        self._agents: OrderedDict[str, AgentProfile] = OrderedDict()
        self._programs: OrderedDict[Hashable, _Program] = OrderedDict()
        self._counts = GraphStatistics()

    # --- what frameworks say --------------------------------------------------------------------

    def declare(self, program: Hashable, steps: Sequence[Step], edges: Sequence[Edge]) -> None:
        """Say what a program is going to do, before or while it runs.

        Raises:
            InvalidRequest: the graph contradicts itself; see ``DeclaredGraph.of``.
        """
        graph = DeclaredGraph.of(steps, edges)
        self._program(program, None).declared = graph

    def observe(self, program: Hashable, node: str) -> bool:
        """Say that a declared step starts; one that is not declared is counted and ignored."""
        known = self._programs.get(program)
        if known is not None and known.declared is not None and known.declared.observe(node):
            return True
        self._add(unknown_steps=1)
        return False

    def steps_to_execution(self, program: Hashable) -> Mapping[str, int]:
        """Return in how many steps each declared step can start; nothing if none is declared."""
        known = self._programs.get(program)
        if known is None or known.declared is None:
            return {}
        return known.declared.steps_to_execution()

    # --- what is seen ---------------------------------------------------------------------------

    def turn_ended(self, program: Hashable, turn: TurnFacts) -> None:
        """Learn a step of a program, and score what was expected in its place."""
        known = self._program(program, turn.agent)
        context = known.contexts.get(turn.context)
        if context is None:
            agent = turn.agent if turn.agent is not None else known.agent
            context = known.contexts[turn.context] = _Context(agent)
            if len(known.contexts) > MAX_CONTEXTS:
                del known.contexts[next(iter(known.contexts))]
        agent_type = self._agent(context.agent)
        self._score(context, turn.tool)
        agent_type.chain.add(context.before, turn.tool)
        if 0 < context.length <= turn.prompt_tokens:  # else it has just begun, or anew
            added = turn.prompt_tokens - context.length
            agent_type.observe(context.before[-1], added)
            known.new.add(added)
        agent_type.output.add(turn.output_tokens)
        known.output.add(turn.output_tokens)
        known.turns += 1
        context.before = (*context.before, turn.tool)[-2:]
        context.length = turn.prompt_tokens + turn.output_tokens
        if agent_type.ended >= ENDED_PROGRAMS:
            context.expected = agent_type.chain.next_steps(context.before)

    def program_ended(self, program: Hashable) -> None:
        """Learn that a program came to its end."""
        known = self._programs.pop(program, None)
        if known is None or known.turns == 0:
            return
        self._add(ended=1)
        for context in known.contexts.values():
            self._score(context, END)
            self._agent(context.agent).chain.add(context.before, END)
        self._agent(known.agent).end(known.turns)

    def forget(self, program: Hashable) -> None:
        """Drop a program that was cut off: its end teaches nothing."""
        self._programs.pop(program, None)

    # --- what is expected -----------------------------------------------------------------------

    def forecast(self, program: Hashable, context: str = "main") -> GraphForecast:
        """Return what is expected of a program, seen from the end of a context's latest turn."""
        known = self._programs.get(program) or _Program("")
        here = known.contexts.get(context) or _Context(known.agent)
        agent_type = self._agents.get(here.agent) or AgentProfile()
        overlap = _overlap(here, agent_type)
        if known.declared is not None:
            return _declared(known, known.declared, agent_type, here.length, overlap)
        if agent_type.ended < ENDED_PROGRAMS:
            going_on = 1.0 - P_TERM
            left, reuse = going_on / P_TERM, going_on * overlap
            return _sized(known, agent_type, "cold", {}, going_on, left, reuse)
        steps = here.expected or agent_type.chain.next_steps(here.before)
        going_on = 1.0 - steps[END]
        left = going_on * max(1.0, agent_type.turns_left.remaining(known.turns))
        return _sized(known, agent_type, "inferred", steps, going_on, left, going_on * overlap)

    def statistics(self) -> GraphStatistics:
        """Return sizes and scores."""
        return replace(self._counts, agents=len(self._agents), programs=len(self._programs))

    # --- inside ---------------------------------------------------------------------------------

    def _program(self, program: Hashable, agent: str | None) -> _Program:
        known = self._programs.get(program)
        if known is None:
            known = self._programs[program] = _Program(agent or "")
            if len(self._programs) > MAX_PROGRAMS:
                self._programs.popitem(last=False)
        elif agent is not None and not known.contexts:
            known.agent = agent
        self._programs.move_to_end(program)
        return known

    def _agent(self, name: str) -> AgentProfile:
        agent = self._agents.get(name)
        if agent is None:
            agent = self._agents[name] = AgentProfile()
            if len(self._agents) > MAX_AGENTS:
                self._agents.popitem(last=False)
        self._agents.move_to_end(name)
        return agent

    def _score(self, context: _Context, came: Label) -> None:
        expected, context.expected = context.expected, None
        if expected is None:
            return
        step, probability = likeliest(expected)
        right = step == came
        kept = probability >= KEPT
        error = expected[END] - (came == END)
        self._add(
            scored=1,
            right=right,
            kept=kept,
            kept_right=kept and right,
            ends_right=abs(error) < 0.5,
            ends_squared=error * error,
        )

    def _add(self, **amounts: float) -> None:
        counts = self._counts
        self._counts = replace(
            counts, **{name: getattr(counts, name) + amount for name, amount in amounts.items()}
        )


def _overlap(context: _Context, agent: AgentProfile) -> float:
    """Return ``n / (n + n_obs)`` (SAGA, 3.2): a ReAct loop goes on with all it has."""
    if not context.length:
        return 0.0
    return context.length / (context.length + agent.observation(context.before[-1]))


def _declared(
    program: _Program, graph: DeclaredGraph, agent: AgentProfile, length: int, overlap: float
) -> GraphForecast:
    steps = dict[Label, float](graph.next_steps().items())
    reuse, left = graph.reuse(length, overlap), graph.expected_remaining()
    return _sized(program, agent, "declared", steps, graph.continues(), left, reuse)


def _sized(
    program: _Program,
    agent: AgentProfile,
    tier: Tier,
    steps: Mapping[Label, float],
    continues: float,
    left: float,
    reuse: float,
) -> GraphForecast:
    """Return a forecast with tokens: turns left, times what turns of this program take."""
    new, output = blend(program.new, agent.new), blend(program.output, agent.output)
    return GraphForecast(tier, steps, continues, left, left * new, left * output, reuse)
