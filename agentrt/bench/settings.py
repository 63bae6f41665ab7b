"""What a benchmark's figures depend on, besides the policy and the seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from agentrt.bench.isolated import isolated_seconds
from agentrt.bench.transforms import transformed, with_deadlines, with_told_turns
from agentrt.bench.workload import Contexts, Workload
from agentrt.errors import ConfigError
from agentrt.simulation.cost import load_cost

__all__ = ["BenchSettings", "EngineKind"]

EngineKind: TypeAlias = Literal["live", "simulated"]

SIMULATED_POOL = 490_000
RECORD_FORMAT = 2
"""Raised when records or figures change their meaning, so that older runs are not reused."""


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """Settings shared by every run of a comparison.

    Args:
        engine: ``simulated`` needs no model; ``live`` computes every token.
        cost: a cost model's name or file (simulated only).
        pool_tokens: KV pool; None: 490,000 simulated, sized from free memory live.
        rate: programs a second, drawn by seed; None: arrivals as recorded.
        contexts: replay main contexts only, or sub-agents' too, inside their caller's gap.
        limit: only the first so many programs.
        token_scale: multiplies every length (texts are cut).
        time_scale: multiplies gaps, and recorded arrivals where they are used.
        max_wait: the scheduler's waiting bound in seconds.
        model: a model directory (live only); None: the seeded default model.
        sandbox: run the workload's commands in this kind of sandbox (live only); None: do not run.
        host_tokens: a host tier of so many tokens of KV (simulated only); 0: none.
        host_kv_bytes: host memory for KV (live only); 0: none.
        weights: tenants' shares by name; a tenant that is missing has weight 1.
        arrivals: ``poisson`` at ``rate``, ``recorded``, or ``mooncake:FILE``: that trace's arrival
            times stretched to ``rate``; None: poisson with a rate, else recorded.
        gap_scale: multiplies gaps.
        gap_cv: redraw all gaps log-normally with this coefficient of variation, at the same mean.
        turn_factor: split every turn into so many, each with its share of the tokens.
        deadline: give every program so many times its seconds alone (simulated only).
        tell_turns: programs say how many turns they have left (simulated only).
    """

    engine: EngineKind = "live"
    cost: str = "reference-8b"
    pool_tokens: int | None = None
    rate: float | None = None
    contexts: Contexts = "main"
    limit: int | None = None
    token_scale: float = 1.0
    time_scale: float = 1.0
    max_wait: float = 600.0
    model: str | None = None
    sandbox: str | None = None
    host_tokens: int = 0
    host_kv_bytes: int = 0
    weights: Mapping[str, float] = field(default_factory=dict)
    arrivals: str | None = None
    gap_scale: float = 1.0
    gap_cv: float | None = None
    turn_factor: int = 1
    deadline: float | None = None
    tell_turns: bool = False

    def __post_init__(self) -> None:
        for flag, value, positive in (
            ("--pool", self.pool_tokens, True),
            ("--time-scale", self.time_scale, False),
            ("--max-wait", self.max_wait, False),
            ("--host-pool", self.host_tokens, False),
            ("--gap-scale", self.gap_scale, False),
            ("--gap-cv", self.gap_cv, False),
            ("--turn-factor", self.turn_factor, True),
            ("--deadline", self.deadline, True),
            *(("--weights", weight, True) for weight in self.weights.values()),
        ):
            if value is not None and not (value > 0 if positive else value >= 0):
                least = "above 0" if positive else "of 0 or more"
                raise ConfigError(f"{flag} is {value}.", remedy=f"Give {flag} a number {least}.")
        self._check_engine()

    def _check_engine(self) -> None:
        if self.engine == "simulated":
            other = "live"
            given: dict[str, Any] = {
                "--model": self.model,
                "--sandbox": self.sandbox,
                "--host-kv": self.host_kv_bytes,
            }
        else:
            given = {
                "--host-pool": self.host_tokens,
                "--weights": self.weights,
                "--deadline": self.deadline,
                "--tell-turns": self.tell_turns,
            }
            other = "simulated"
        for flag, value in given.items():
            if value:
                raise ConfigError(
                    f"{flag} has no effect on the {self.engine} engine.",
                    remedy=f"Leave {flag} out, or use --engine {other}.",
                )

    @property
    def pool(self) -> int | None:
        """The KV pool in tokens; None where the live engine sizes it from free memory."""
        if self.pool_tokens is None and self.engine == "simulated":
            return SIMULATED_POOL
        return self.pool_tokens

    def select(self, workload: Workload) -> Workload:
        """Return the part of ``workload`` that is replayed, changed as the settings say."""
        chosen = workload.select(self.contexts, self.limit, self.token_scale)
        # The live replay waits by the clock, and scales each wait itself.
        scale = self.gap_scale * (self.time_scale if self.engine == "simulated" else 1.0)
        chosen = transformed(chosen, gap_scale=scale, gap_cv=self.gap_cv, turns=self.turn_factor)
        if self.tell_turns:
            chosen = with_told_turns(chosen)
        if self.deadline is None:
            return chosen
        alone = isolated_seconds(chosen.programs, load_cost(self.cost))
        return with_deadlines(chosen, alone, self.deadline)

    def to_json(self, workload: Workload) -> dict[str, Any]:
        """Return every setting by name; ``workload`` is the selected one."""
        told: dict[str, Any] = {
            "format": RECORD_FORMAT,
            "engine": self.engine,
            "workload": workload.digest(),
            "pool_tokens": self.pool,
            "rate": self.rate,
            "contexts": self.contexts,
            "limit": self.limit,
            "token_scale": self.token_scale,
            "time_scale": self.time_scale,
            "max_wait": self.max_wait if self.max_wait != float("inf") else "inf",
            "arrivals": self.arrivals,
            "gap_scale": self.gap_scale,
            "gap_cv": self.gap_cv,
            "turn_factor": self.turn_factor,
            "deadline": self.deadline,
        }
        if self.engine == "simulated":
            return told | {
                "host_tokens": self.host_tokens,
                "tell_turns": self.tell_turns,
                "weights": dict(self.weights),
                "cost": {"name": self.cost} | load_cost(self.cost).to_json(),
            }
        host = {"host_kv_bytes": self.host_kv_bytes} if self.host_kv_bytes else {}
        return told | {"model": self.model, "sandbox": self.sandbox} | host


def digest(settings: dict[str, Any]) -> str:
    """Return a short hash of ``BenchSettings.to_json``'s result."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
