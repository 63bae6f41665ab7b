"""What the CPU engine is measured on beside its peers, and how rows are made of it. Pure.

A row's speed is tokens over the median of its rounds; every engine runs a round before any runs the
next, on the same weights and the same random prompts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["CASES", "OWN", "Case", "Limits", "Timings", "chosen", "make_row"]

OWN = "agentrt"
"""The name of our engine among the engines of a row."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row: ``batch`` sequences with prompts of ``context`` random tokens.

    Args:
        kind: ``decode`` counts the tokens of ``steps`` steps a round, ``prefill`` those of prompts.
        model: a name of ``engine_rows.SHAPES``.
        batch: sequences.
        context: tokens of a prompt.
        steps: decoding steps of a round.
        rounds: rounds of each engine.
        long: takes many minutes, and is run only where it is named.
    """

    kind: Literal["decode", "prefill"]
    model: str
    batch: int
    context: int
    steps: int = 0
    rounds: int = 5
    long: bool = False

    @property
    def name(self) -> str:
        """Return the row's name, as ``decode-m135-8x512``."""
        return f"{self.kind}-{self.model}-{self.batch}x{self.context}"

    @property
    def tokens(self) -> int:
        """Return the tokens of a round."""
        return self.batch * (self.steps if self.kind == "decode" else self.context)

    @property
    def room(self) -> int:
        """Return the steps that a batch is decoded for at most."""
        return (self.rounds + 1) * self.steps + 8


def _cases() -> tuple[Case, ...]:
    found = []
    for model in ("m135", "m600"):
        found += [Case("prefill", model, 1, n, rounds=7) for n in (512, 2048)]
        for batch, steps in ((1, 16), (8, 8), (32, 6)):
            found.append(Case("decode", model, batch, 512, steps))
        found += [Case("decode", model, 1, 4096, 16), Case("decode", model, 8, 4096, 6)]
        found.append(Case("decode", model, 32, 4096, 4, rounds=3, long=True))
    return tuple(found)


CASES = _cases()
"""The rows of the comparison, cheap ones first within a model."""


def chosen(names: Sequence[str], cases: Sequence[Case] = CASES) -> list[Case]:
    """Return the cases whose names begin with one of ``names``; without names, all but long ones.

    Raises:
        ValueError: a name fits no case.
    """
    if not names:
        return [case for case in cases if not case.long]
    for name in names:
        if not any(case.name.startswith(name) for case in cases):
            raise ValueError(name)
    return [case for case in cases if any(case.name.startswith(name) for name in names)]


@dataclass(frozen=True, slots=True)
class Limits:
    """What this machine's processors and memory give: bytes and floating-point operations a second.

    Both are of our own probes on as many threads as the engines get.
    """

    bytes_per_second: float
    flops_per_second: float

    def bound(self, nbytes: float, flops: float, seconds: float) -> dict[str, Any]:
        """Return which of the two a step is nearer to, and how near: 1 is at the limit."""
        memory = nbytes / self.bytes_per_second / seconds
        compute = flops / self.flops_per_second / seconds
        return {
            "bound": "memory bandwidth" if memory >= compute else "bf16 arithmetic",
            "of_bandwidth": round(memory, 3),
            "of_arithmetic": round(compute, 3),
        }


@dataclass(slots=True)
class Timings:
    """What a case gave: seconds of each round by engine, and why others gave none."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    first: dict[str, list[int]] = field(default_factory=dict)
    """The first token of each sequence by engine: on the same weights mostly the same ones."""
    in_turns: bool = True
    """False where keys and values of all engines did not fit the memory at once: then each engine
    ran its rounds alone, one engine after the other."""


def make_row(
    case: Case, timings: Timings, bound: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the row of a case for the results file.

    ``ratio_to_best_peer`` is our speed over that of the fastest peer; None without peers.
    """
    speeds = {
        name: round(case.tokens / statistics.median(each), 2)
        for name, each in timings.seconds.items()
    }
    own = speeds.pop(OWN, None)
    best = max(speeds, key=lambda name: speeds[name], default=None)
    ratio = None if own is None or best is None else round(own / speeds[best], 3)
    return {
        "name": case.name,
        "tokens_per_second": own,
        "peers": speeds,
        "best_peer": best,
        "ratio_to_best_peer": ratio,
        "failed": dict(timings.failed),
        "interleaved": timings.in_turns,
        "rounds_ms": {
            name: [round(1e3 * second, 2) for second in each]
            for name, each in timings.seconds.items()
        },
        "least_ratio": _least_ratio(case, timings),
        "tokens_a_round": case.tokens,
        "first_tokens_agree": _agreement(timings.first),
        **(bound or {}),
    }


def _least_ratio(case: Case, timings: Timings) -> float | None:
    """Return our best round against the best round of any peer: what load disturbs least."""
    peers = [min(each) for name, each in timings.seconds.items() if name != OWN]
    own = timings.seconds.get(OWN)
    if not own or not peers:
        return None
    return round(min(peers) / min(own), 3)


def _agreement(first: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return the share of sequences whose first token is ours, by peer."""
    own = first.get(OWN, ())
    return {
        name: round(math.fsum(a == b for a, b in zip(own, tokens, strict=True)) / len(own), 3)
        for name, tokens in first.items()
        if name != OWN and own
    }
