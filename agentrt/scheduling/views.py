"""What a policy may know: turns, contexts, programs and the pool, all read-only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from agentrt.scheduling.hints import TurnHints

__all__ = ["ContextView", "PoolView", "ProgramView", "TurnView"]


class ProgramView(Protocol):
    """One program. Token counts and seconds are of turns that ran, ended or not."""

    @property
    def program_id(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def arrival(self) -> float: ...
    @property
    def turns_served(self) -> int:
        """Turns that have ended well."""
        ...

    @property
    def prefilled(self) -> int:
        """Tokens prefilled for it so far."""
        ...

    @property
    def decoded(self) -> int:
        """Tokens put out for it so far."""
        ...

    @property
    def service(self) -> float:
        """Attained service: seconds of steps in which it had a turn (Autellix charges so)."""
        ...

    @property
    def waited(self) -> float:
        """Seconds that its ended and running turns waited in the queue."""
        ...

    @property
    def live_turns(self) -> int:
        """Turns that were handed in and have not ended."""
        ...

    @property
    def contexts(self) -> Mapping[str, ContextView]: ...


class ContextView(Protocol):
    """One line of prompts of a program."""

    @property
    def name(self) -> str: ...
    @property
    def owner(self) -> str:
        """The name under which the page cache knows it."""
        ...

    @property
    def program(self) -> ProgramView: ...
    @property
    def length(self) -> int:
        """Tokens of its latest ended turn, prompt and output."""
        ...

    @property
    def last_end(self) -> float | None:
        """When its latest turn ended."""
        ...

    @property
    def tool(self) -> str | None:
        """The tool that runs since then, if it is known."""
        ...

    @property
    def live_turns(self) -> int: ...
    @property
    def pinned(self) -> bool:
        """Whether its KV is held by a live pin."""
        ...


class TurnView(Protocol):
    """One turn, waiting or running."""

    @property
    def turn_id(self) -> str: ...
    @property
    def program_id(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def context(self) -> str: ...
    @property
    def tool(self) -> str | None:
        """The tool that runs after this turn, if it is known."""
        ...

    @property
    def hints(self) -> TurnHints: ...
    @property
    def submitted(self) -> float: ...
    @property
    def sequence(self) -> int:
        """Rises by one with every submitted turn: breaks ties."""
        ...

    @property
    def length(self) -> int:
        """Tokens so far, prompt and output."""
        ...

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def output(self) -> int:
        """Tokens put out so far."""
        ...

    @property
    def max_output(self) -> int:
        """Most tokens that it may put out."""
        ...

    @property
    def computed(self) -> int:
        """Tokens in KV: 0 while it waits."""
        ...

    @property
    def decoding(self) -> bool: ...
    @property
    def preemptions(self) -> int: ...
    @property
    def pinned(self) -> bool:
        """Whether the context's KV is held by a live pin."""
        ...

    @property
    def program_arrival(self) -> float: ...
    @property
    def program_turns(self) -> int:
        """Turns of the program that have ended."""
        ...

    @property
    def program(self) -> ProgramView: ...
    @property
    def state(self) -> ContextView: ...


class PoolView(Protocol):
    """The page pool and who is in it. Counts are tokens, rounded to whole pages."""

    @property
    def capacity(self) -> int: ...
    @property
    def available(self) -> int:
        """Free, or cached and leased by nobody."""
        ...

    @property
    def pinned(self) -> int:
        """Held by pins; an upper bound where pins share pages."""
        ...

    @property
    def running(self) -> Sequence[TurnView]: ...
    @property
    def waiting(self) -> int:
        """How many turns wait."""
        ...

    @property
    def max_wait(self) -> float:
        """Seconds after which a waiting turn outranks pins and every younger turn."""
        ...

    @property
    def programs(self) -> Mapping[str, ProgramView]: ...
    def cached(self, turn: TurnView) -> int:
        """Return how many tokens of the turn's prompt are in the pool. Walks the prefix tree."""
        ...
