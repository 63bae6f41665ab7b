"""Programs to replay, and the cuts made before a replay: fewer of them, shorter, other contexts.

A workload file is JSON Lines, one program a line; ``parse.py`` reads it and ``importers.py`` makes
it from public formats. Numbers alone replay the load; texts replay the thing itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from agentrt.bench.results import WorkloadFacts
from agentrt.errors import ConfigError, WorkloadError

__all__ = ["Contexts", "Program", "Tool", "Turn", "Workload", "ideal_counts"]

Contexts: TypeAlias = Literal["main", "all"]
MAIN = "main"


@dataclass(frozen=True, slots=True)
class Tool:
    """A recorded tool call. ``kind`` classes shell commands; ``command`` can be run for real."""

    name: str
    kind: str | None = None
    duration: float | None = None
    command: str | None = None
    peak_memory: int | None = None
    cpu_seconds: float | None = None
    exit_code: int | None = None

    @property
    def key(self) -> str:
        """What a policy that learns per tool should key by: the name, and the kind if known."""
        return f"{self.name}:{self.kind}" if self.kind else self.name


@dataclass(frozen=True, slots=True)
class Turn:
    """One LLM call. Counts are tokens, ``gap`` is seconds to the next turn of the same context.

    ``prompt_tokens`` counts the whole prompt and ``reused_tokens`` the part of it that the context
    already held. ``blocks`` names the prompt's content in pieces of ``block_tokens``: equal names
    mean equal tokens up to there, in whatever program. ``messages`` are what the context gains
    before this turn, ``output`` is what the model answered; with both the turn is literal.
    ``after`` are the places of the program's turns that it waits for, and for the gaps after them;
    None: the one before it. With it contexts of a program run side by side.
    """

    context: str
    prompt_tokens: int
    reused_tokens: int
    output_tokens: int
    gap: float | None = None
    at: float | None = None
    seconds: float | None = None
    tools: tuple[Tool, ...] = ()
    blocks: tuple[int, ...] = ()
    block_tokens: int = 0
    messages: tuple[Mapping[str, str], ...] = ()
    output: str | None = None
    after: tuple[int, ...] | None = None

    @property
    def literal(self) -> bool:
        """Whether the texts are there."""
        return bool(self.messages) and self.output is not None

    @property
    def next_tool(self) -> str | None:
        """The hint that a client would give: the tool about to run, ``multi_tool`` for several."""
        if len(self.tools) > 1:
            return "multi_tool"
        return self.tools[0].key if self.tools else None


@dataclass(frozen=True, slots=True)
class Program:
    """One agent run. After ``Workload.select`` its turns are played in order, one at a time.

    Unless it branches: then a turn starts when those in its ``after`` have ended. ``deadline`` is
    in seconds after its arrival. ``tells_turns``: each turn tells, as a hint, how many are left.
    """

    program: str
    turns: tuple[Turn, ...]
    tenant: str = "default"
    arrival: float = 0.0
    deadline: float | None = None
    source: str = ""
    tells_turns: bool = False

    @property
    def literal(self) -> bool:
        """Whether every turn is literal."""
        return all(turn.literal for turn in self.turns)

    @property
    def branches(self) -> bool:
        """Whether turns of it may run side by side."""
        return any(turn.after is not None for turn in self.turns)

    def in_order(self) -> Program:
        """Return the program with its turns played one at a time."""
        if not self.branches:
            return self
        return replace(self, turns=tuple(replace(turn, after=None) for turn in self.turns))

    def predecessors(self, index: int) -> tuple[int, ...]:
        """Return the places of the turns that must have ended before turn ``index`` starts."""
        after = self.turns[index].after
        return after if after is not None else ((index - 1,) if index else ())


@dataclass(frozen=True, slots=True)
class Workload:
    """Programs and where they came from."""

    name: str
    source: str
    programs: tuple[Program, ...]

    @property
    def literal(self) -> bool:
        """Whether every program can be replayed by its texts."""
        return all(program.literal for program in self.programs)

    def select(
        self, contexts: Contexts = "main", limit: int | None = None, token_scale: float = 1.0
    ) -> Workload:
        """Return the first ``limit`` programs with these contexts, every length scaled.

        Afterwards a turn's ``gap`` is the time to the program's next turn, whatever its context.

        Raises:
            ConfigError: ``limit`` or ``token_scale`` is not positive.
            WorkloadError: a program has no main context.
        """
        _check_positive("--limit", limit)
        _check_positive("--token-scale", token_scale)
        chosen = self.programs[:limit]
        played = tuple(_scale(_play(program, contexts), token_scale) for program in chosen)
        return replace(self, programs=played)

    def facts(self) -> WorkloadFacts:
        """Return the sizes that a report states."""
        turns = [turn for program in self.programs for turn in program.turns]
        gaps = [turn.gap or 0.0 for program in self.programs for turn in program.turns[:-1]]
        return WorkloadFacts(
            name=self.name,
            source=self.source,
            programs=len(self.programs),
            turns=len(turns),
            prompt_tokens=sum(turn.prompt_tokens for turn in turns),
            ideal_tokens=sum(sum(ideal_counts(program)) for program in self.programs),
            output_tokens=sum(turn.output_tokens for turn in turns),
            tool_seconds=sum(gaps),
            literal=self.literal,
        )

    def digest(self) -> str:
        """Return a hash of everything that is replayed."""
        told = hashlib.sha256()
        for program in self.programs:
            told.update(repr(asdict(program)).encode())
        return told.hexdigest()[:16]


def ideal_counts(program: Program) -> list[int]:
    """Return for each turn the tokens that an infinite cache of its own context would prefill.

    At least one: the last token of a prompt is always computed, since the output follows from it.
    """
    return [max(1, turn.prompt_tokens - turn.reused_tokens) for turn in program.turns]


def _check_positive(flag: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise ConfigError(f"{flag} is {value}.", remedy=f"Give {flag} a number above 0.")


def _play(program: Program, contexts: Contexts) -> Program:
    """Put the turns in playing order: a sub-agent's turns run between its caller's turns.

    A program that branches says itself in which order it runs, and is played whole.
    """
    if program.branches:
        return program
    turns = program.turns
    if contexts == "main":
        turns = tuple(turn for turn in turns if turn.context == MAIN)
    if not turns:
        raise WorkloadError(
            f"Program {program.program!r} has no turn in the context {MAIN!r}.",
            remedy="Replay every context with --contexts all.",
        )
    return replace(program, turns=tuple(_with_gaps(turns)))


def _with_gaps(turns: Sequence[Turn]) -> Iterator[Turn]:
    for turn, following in pairwise(turns):
        yield replace(turn, gap=_gap_between(turn, following))
    yield replace(turns[-1], gap=None)


def _gap_between(turn: Turn, following: Turn) -> float:
    if turn.context == following.context:
        return turn.gap or 0.0
    if turn.at is None or turn.seconds is None or following.at is None:
        return 0.0
    return round(max(0.0, following.at - turn.at - turn.seconds), 6)


def _scale(program: Program, scale: float) -> Program:
    if scale == 1.0:
        return program
    held: dict[str, int] = {}
    turns: list[Turn] = []
    for turn in program.turns:
        smaller = _scale_turn(turn, scale, held.get(turn.context, 0))
        held[turn.context] = smaller.prompt_tokens + smaller.output_tokens
        turns.append(smaller)
    return replace(program, turns=tuple(turns))


def _scale_turn(turn: Turn, scale: float, held: int) -> Turn:
    """Scale counts and cut texts; ``held`` is what the context holds: a bound of the reuse."""
    reused = min(int(turn.reused_tokens * scale), held)
    return replace(
        turn,
        prompt_tokens=max(1, reused, int(turn.prompt_tokens * scale)),
        reused_tokens=reused,
        output_tokens=max(1, int(turn.output_tokens * scale)),
        block_tokens=math.ceil(turn.block_tokens * scale),
        messages=tuple(_cut_message(message, scale) for message in turn.messages),
        output=None if turn.output is None else cut_text(turn.output, scale),
    )


def _cut_message(message: Mapping[str, str], scale: float) -> Mapping[str, Any]:
    return {**message, "content": cut_text(message["content"], scale)}


def cut_text(text: str, scale: float) -> str:
    """Return the first ``scale`` of a text's characters, at least one."""
    return text if scale >= 1.0 else text[: max(1, int(len(text) * scale))]
