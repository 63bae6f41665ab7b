"""What each ingredient of a policy is worth: the policy without it, on the same arrivals."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from agentrt.bench.intervals import interval
from agentrt.bench.progress import number, seconds
from agentrt.bench.results import Comparison
from agentrt.errors import ConfigError
from agentrt.scheduling.registry import find_factory

__all__ = ["FIGURES", "Ablation", "ablated_policies", "ingredients"]

FIGURES = (
    ("jct_mean", "completion time mean"),
    ("slowdown_p90", "slowdown P90"),
    ("longest_wait", "longest wait"),
    ("prefilled_tokens", "prefilled tokens"),
)
"""The figures whose growth says what an ingredient is worth: of all of them less is better."""


def ingredients(policy: str) -> list[str]:
    """Return what can be switched off in a policy by ``no-NAME`` in its argument.

    They are the ``INGREDIENTS`` of the module that makes the policy.

    Raises:
        ConfigError: there is no such policy, or it has none.
    """
    name = policy.partition("=")[0]
    module = inspect.getmodule(find_factory(name))
    found: Sequence[str] = getattr(module, "INGREDIENTS", ())
    if not found:
        raise ConfigError(
            f"The policy {name} has no ingredients to switch off.",
            remedy="Take a policy whose module lists its INGREDIENTS, such as agentrt.",
        )
    return list(found)


def ablated_policies(policy: str) -> dict[str, str]:
    """Return what is switched off, and the policy so written: nothing, each one, everything."""
    names = ingredients(policy)
    off = {name: _without(policy, [name]) for name in names}
    whole = {"everything": _without(policy, names)} if len(names) > 1 else {}
    return {"nothing": policy} | off | whole


def _without(policy: str, names: Sequence[str]) -> str:
    switches = ",".join(f"no-{name}" for name in names)
    return f"{policy},{switches}" if "=" in policy else f"{policy}={switches}"


@dataclass(frozen=True, slots=True)
class Ablation:
    """A comparison of a policy with itself; ``policies`` says what each one lacks."""

    policies: Mapping[str, str]
    comparison: Comparison

    def worth(self, off: str, figure: str) -> dict[str, Any] | None:
        """Return the figure without an ingredient over that with all: above 1 it helps.

        The mean of the seeds' ratios with its 95 % interval; None where the figure is missing or
        0.
        """
        whole, partial = (self._seeds(self.policies[name]) for name in ("nothing", off))
        pairs = [(partial[seed].get(figure), whole[seed].get(figure)) for seed in partial]
        ratios = [one / other for one, other in pairs if one is not None and other]
        if not ratios:
            return None
        spread = interval(ratios)
        return {
            "ratio": sum(ratios) / len(ratios),
            "interval": None if spread is None else list(spread),
        }

    def _seeds(self, policy: str) -> Mapping[str, Mapping[str, Any]]:
        return self.comparison.per_seed.get(policy, {})

    def to_json(self) -> dict[str, Any]:
        """Return what each ingredient is worth, by figure."""
        return {
            "format": 1,
            "policy": self.policies["nothing"],
            "complete": self.comparison.complete,
            "settings": self.comparison.settings,
            "without": {
                off: {"policy": policy} | {figure: self.worth(off, figure) for figure, _ in FIGURES}
                for off, policy in self.policies.items()
                if off != "nothing" and policy in self.comparison.metrics
            },
        }

    def table(self) -> Table:
        """Return the figures with everything, and what they grow by without each ingredient."""
        table = Table(box=None, pad_edge=False, caption="above 1: the ingredient helps")
        table.add_column("without")
        for _, label in FIGURES:
            table.add_column(label, justify="right")
        for row in self.rows():
            table.add_row(*row)
        return table

    def rows(self) -> list[list[str]]:
        """Return the table's cells: first the policy as it is, then without each ingredient."""
        whole = self.comparison.metrics.get(self.policies["nothing"], {})
        rows = [["nothing", *(_figure(name, whole.get(name)) for name, _ in FIGURES)]]
        for off in self.policies:
            if off != "nothing":
                cells = (self.worth(off, figure) for figure, _ in FIGURES)
                rows.append([off, *map(_times, cells)])
        return rows


def _figure(name: str, value: float | None) -> str:
    return number(value) if name in ("slowdown_p90", "prefilled_tokens") else seconds(value)


def _times(worth: Mapping[str, Any] | None) -> str:
    if worth is None:
        return "-"
    spread = worth["interval"]
    half = "" if spread is None else f" ±{(spread[1] - spread[0]) / 2:.2f}"
    return f"{worth['ratio']:.2f}x{half}"
