"""Pure: what tool calls probably need, learned from what they used.

Calls are told apart by tool, kind of command and repository. As long as a group has few calls, the
next wider one speaks for it, and at first the published distributions of 144 coding-agent runs do
(quantiles of memory spikes and durations by kind of command).
"""

from __future__ import annotations

import functools
import re
import shlex
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = [
    "CommandKind",
    "Estimate",
    "Learner",
    "Observation",
    "command_kind",
    "quantile",
    "tool_name",
]

CommandKind: TypeAlias = Literal["test", "install", "git", "explore", "build", "run", "other"]
MIB = 1 << 20
FEW = 5
"""Calls that a group needs before it speaks for itself."""
KEPT = 64
MOST_GROUPS = 4096
SLACK = 1.25
"""Room above what was seen: the next call is not the last one again."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a call will probably need. ``memory`` is rarely exceeded; ``typical`` is the median."""

    memory: int
    typical: int
    seconds: float
    longest: float
    calls: int
    source: str


@dataclass(frozen=True, slots=True)
class Observation:
    """What a call that ended used: peak bytes, seconds. ``complete``: nothing cut it short."""

    memory: int
    seconds: float
    complete: bool = True


# From 33 and 111 runs of coding agents (os-control study); "build" is not in them: our own guess.
# Spikes above the process's own base: median, 95 % of calls; seconds likewise. A process needs some
# memory by itself, so a base is added.
BASE = 64 * MIB
PRIORS: dict[CommandKind, tuple[int, int, float, float]] = {
    "test": (24 * MIB, 158 * MIB, 1.5, 30.0),
    "install": (45 * MIB, 127 * MIB, 1.5, 22.0),
    "git": (3 * MIB, 8 * MIB, 0.1, 9.0),
    "explore": (3 * MIB, 12 * MIB, 0.5, 10.0),
    "build": (60 * MIB, 350 * MIB, 5.0, 120.0),
    "run": (24 * MIB, 158 * MIB, 1.5, 30.0),
    "other": (24 * MIB, 158 * MIB, 1.0, 30.0),
}

_KINDS: tuple[tuple[CommandKind, str], ...] = (
    ("test", r"pytest|py\.test|tox|nox|unittest|nosetests|ctest|jest|vitest|mocha|rspec|phpunit"),
    ("test", r"(?:npm|yarn|pnpm|make|cargo|go|mvn|gradle|dotnet|bazel) (?:run )?(?:test|check)\b"),
    ("install", r"(?:pip3?|uv|poetry|npm|yarn|pnpm|apt-get|apt|conda|gem|cargo) (?:\S+ )?install"),
    ("install", r"uv sync|npm ci|poetry add|apk add"),
    ("build", r"make|cmake|ninja|gcc|g\+\+|clang|rustc|javac|tsc|mvn|gradle|bazel|docker build"),
    ("build", r"(?:cargo|go|npm run|yarn) build"),
    ("git", r"git"),
    ("explore", r"ls|cat|head|tail|find|grep|rg|fd|tree|wc|pwd|sed|awk|which|file|stat|du|echo|cd"),
    ("run", r"python3?|node|ruby|perl|java|bash|sh|cargo run|go run"),
)
_PATTERNS = [(kind, re.compile(rf"(?:{pattern})(?:\s|$)")) for kind, pattern in _KINDS]
_SKIPPED = re.compile(r"^(?:[A-Za-z_]\w*=(?:'[^']*'|\"[^\"]*\"|\S*)\s+|(?:env|time|nice|sudo)\s+)+")


def command_kind(command: str | Sequence[str]) -> CommandKind:
    """What kind of work a command is: the heaviest of the parts that a shell would run."""
    return _text_kind(command if isinstance(command, str) else shlex.join(command))


@functools.lru_cache(256)
def _text_kind(text: str) -> CommandKind:
    found = {_part_kind(part) for part in re.split(r"&&|\|\|?|;|\n", text[:2000])}
    order: tuple[CommandKind, ...] = ("build", "test", "install", "run", "git", "explore")
    return next((kind for kind in order if kind in found), "other")


def _part_kind(part: str) -> CommandKind:
    text = _SKIPPED.sub("", part.strip())
    if re.match(r"python3?(?:\.\d+)?\s+-m\s+", text):
        text = re.sub(r"^python3?(?:\.\d+)?\s+-m\s+", "", text)
    text = re.sub(r"^\S*/", "", text)
    return next((kind for kind, pattern in _PATTERNS if pattern.match(text)), "other")


def tool_name(command: str | Sequence[str]) -> str:
    """Return the name under which a command's durations are learned: its first word."""
    if not isinstance(command, str):
        return command[0].rsplit("/", 1)[-1] if command else "empty"
    return _text_name(command)


@functools.lru_cache(256)
def _text_name(command: str) -> str:
    try:
        words = shlex.split(command, comments=True)
    except ValueError:  # an open quote: the shell will say so, the name does not matter
        words = command.split()
    named = next((word for word in words if "=" not in word), "shell")
    return named.rsplit("/", 1)[-1] or "shell"


def quantile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of ``values`` do not exceed, interpolated; they need no order."""
    return _at(sorted(values), share)


def _at(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


Group: TypeAlias = tuple[str, str, str]


class Learner:
    """Remembers the last calls of each group; bounded. Not thread-safe."""

    def __init__(self) -> None:
        self._seen: OrderedDict[Group, deque[Observation]] = OrderedDict()

    def estimate(self, tool: str, kind: CommandKind, repository: str = "") -> Estimate:
        """What a call will probably need."""
        for group, name in _groups(tool, kind, repository):
            seen = self._seen.get(group, ())
            if len(seen) >= FEW:
                return _from_calls(seen, name)
        few = self._seen.get((tool, kind, repository), ())
        return _from_prior(kind, list(few))

    def observe(self, tool: str, kind: CommandKind, repository: str, used: Observation) -> None:
        """Take note of a call that ended."""
        for group, _ in _groups(tool, kind, repository):
            self._seen.setdefault(group, deque(maxlen=KEPT)).append(used)
            self._seen.move_to_end(group)
        while len(self._seen) > MOST_GROUPS:
            self._seen.popitem(last=False)

    def __len__(self) -> int:
        return len(self._seen)


def _groups(tool: str, kind: str, repository: str) -> Iterator[tuple[Group, str]]:
    """From the narrowest to the widest group, each once."""
    names = {
        (tool, kind, repository): f"{tool} ({kind}) in this repository",
        ("", kind, repository): f"{kind} commands in this repository",
        (tool, kind, ""): f"{tool} ({kind}) anywhere",
        ("", kind, ""): f"{kind} commands anywhere",
    }
    yield from names.items()


def _from_calls(seen: Collection[Observation], name: str) -> Estimate:
    # A call that was cut short needed at least that much: it counts with some room added.
    memory = sorted(call.memory * (1.0 if call.complete else 1.5) for call in seen)
    seconds = sorted(call.seconds for call in seen)
    return Estimate(
        memory=max(16 * MIB, int(SLACK * _at(memory, 0.95))),
        typical=int(_at(memory, 0.5)),
        seconds=_at(seconds, 0.5),
        longest=SLACK * _at(seconds, 0.95),
        calls=len(seen),
        source=f"learned from {len(seen)} calls: {name}",
    )


def _from_prior(kind: CommandKind, few: list[Observation]) -> Estimate:
    """The published distribution, raised to what the few calls seen have needed."""
    typical, rare, seconds, longest = PRIORS[kind]
    most = max((int(SLACK * call.memory) for call in few), default=0)
    slowest = max((SLACK * call.seconds for call in few), default=0.0)
    return Estimate(
        memory=max(BASE + rare, most),
        typical=max(BASE // 2 + typical, int(most / SLACK / 2)),
        seconds=seconds,
        longest=max(longest, slowest),
        calls=len(few),
        source=f"usual for {kind} commands",
    )
