"""What programs of one agent type have in common: their steps, their lengths, their tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentrt.scheduling.continuum import GapHistory
from agentrt.scheduling.gaps import GapDistribution, Lomax
from agentrt.scheduling.graph_chain import P_TERM, Label, ToolChain

__all__ = ["AgentProfile", "Mean", "blend"]

LENGTHS = 256
STRENGTH = 6.0
LENGTH_STRENGTH = 2.0
SMOOTHING = 0.1
MAX_TOOLS = 256
LENGTH_PRIOR = Lomax(scale=1.0 / P_TERM, shape=2.0)
"""Turns of a program when no length is known: on average what ``P_TERM`` says."""


@dataclass(slots=True)
class Mean:
    """A mean that is exact at first and forgets exponentially from ``1 / SMOOTHING`` values on."""

    value: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """Add one value."""
        self.count += 1
        self.value += (value - self.value) * max(SMOOTHING, 1.0 / self.count)


def blend(own: Mean, common: Mean) -> float:
    """Return a program's own mean, held towards that of its agent type while it is young."""
    return (own.count * own.value + STRENGTH * common.value) / (own.count + STRENGTH)


@dataclass(slots=True)
class AgentProfile:
    """The tokens are: ``output`` of a turn, ``new`` between one turn's end and the next prompt.

    ``turns_left`` is the distribution of a program's number of turns; asked given those it has had.
    """

    chain: ToolChain = field(default_factory=ToolChain)
    lengths: GapHistory = field(default_factory=lambda: GapHistory(LENGTHS))
    turns_left: GapDistribution = field(
        default_factory=lambda: GapDistribution([], LENGTH_PRIOR, 1.0)
    )
    ended: int = 0
    output: Mean = field(default_factory=Mean)
    new: Mean = field(default_factory=Mean)
    observed: dict[Label, Mean] = field(default_factory=dict)

    def end(self, turns: int) -> None:
        """Learn the length of a program."""
        self.ended += 1
        self.lengths.add(float(turns))
        weight = len(self.lengths) / (len(self.lengths) + LENGTH_STRENGTH)
        parts = [(self.lengths.sorted, weight)]
        self.turns_left = GapDistribution(parts, LENGTH_PRIOR, 1.0 - weight)

    def observe(self, tool: Label, tokens: int) -> None:
        """Learn how many tokens a tool's result, and what comes with it, adds to a prompt."""
        self.new.add(tokens)
        if tool in self.observed or len(self.observed) < MAX_TOOLS:
            self.observed.setdefault(tool, Mean()).add(tokens)

    def observation(self, tool: Label) -> float:
        """Return the tokens expected of a tool, of any tool if it is not known."""
        known = self.observed.get(tool)
        return known.value if known is not None else self.new.value
