"""What a step costs on the simulated engine, and the engine settings that go with it."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from agentrt.errors import ConfigError
from agentrt.scheduling.plan import StepPlan

__all__ = ["COST_MODELS", "CostModel", "StepCost", "load_cost"]


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of a step: ``first`` for one repetition, ``growth`` more for each further one."""

    first: float
    growth: float

    def total(self, repeat: int) -> float:
        """Return the seconds of ``repeat`` repetitions."""
        return repeat * self.first + self.growth * (repeat * (repeat - 1) / 2)

    def repetitions(self, seconds: float, limit: int) -> int:
        """Return how many repetitions start before ``seconds`` have passed: from 1 to ``limit``."""
        if limit <= 1 or self.total(limit - 1) < seconds:
            return limit
        half = self.first - self.growth / 2
        root = math.sqrt(half * half + 2 * self.growth * max(seconds, 0.0))
        guess = 2 * max(seconds, 0.0) / (half + root) if half + root > 0 else 0.0
        count = min(max(1, math.ceil(guess)), limit)
        # The closed form is exact but for rounding: settle the last unit by the definition.
        while count > 1 and self.total(count - 1) >= seconds:
            count -= 1
        while count < limit and self.total(count) < seconds:
            count += 1
        return count


@dataclass(frozen=True, slots=True)
class CostModel:
    """A step costs ``step_seconds``, and for each prefilled token and each context token of a
    decoding sequence a little more. A slice of one sampled token counts as decoding.

    Args:
        step_seconds: of every step, whatever is in it.
        prefill_token_seconds: of each prefilled token.
        context_token_seconds: of each token of context that a decoding sequence reads.
        token_budget: tokens a step.
        max_seqs: sequences at once.
        reserve_output: a turn starts only when KV for its whole prompt and output is free.
        prefill_pair_seconds: of each pair of a prefilled token and one before it: the quadratic
            part of a long prefill.
        sequence_seconds: of each decoding sequence.
        reload_seconds: of one transfer of KV from host memory.
        reload_token_seconds: of each token of it.
        kv_token_bytes: KV of one token, for what crosses a network.
        source: where the figures come from.
    """

    step_seconds: float
    prefill_token_seconds: float
    context_token_seconds: float
    token_budget: int = 2048
    max_seqs: int = 64
    reserve_output: bool = True
    prefill_pair_seconds: float = 0.0
    sequence_seconds: float = 0.0
    reload_seconds: float = 0.0
    reload_token_seconds: float = 1.2e-6
    kv_token_bytes: int = 131_072
    source: str = ""

    def step(self, plan: StepPlan) -> StepCost:
        """Return what ``plan`` costs; its contexts grow by one token a repetition."""
        prefilled = decoding = context = pairs = 0
        for piece in plan.slices:
            if piece.sample and piece.count == 1:
                decoding += 1
                context += piece.start + 1
            else:
                prefilled += piece.count
                pairs += piece.count * (2 * piece.start + piece.count + 1) // 2
        first = (
            self.step_seconds
            + self.prefill_token_seconds * prefilled
            + self.context_token_seconds * context
            + self.prefill_pair_seconds * pairs
            + self.sequence_seconds * decoding
        )
        return StepCost(first, self.context_token_seconds * decoding)

    def prefill_seconds(self, tokens: int) -> float:
        """Return what prefilling ``tokens`` costs: what a policy weighs a lost prefix by."""
        pairs = tokens * (tokens + 1) // 2
        return self.prefill_token_seconds * tokens + self.prefill_pair_seconds * pairs

    def reload(self, tokens: int) -> float:
        """Return the seconds that fetching ``tokens`` of KV from host memory takes."""
        return self.reload_seconds + self.reload_token_seconds * tokens if tokens else 0.0

    def turn_seconds(self, new: int, prompt: int, output: int) -> float:
        """Return a turn's seconds alone: ``new`` of ``prompt`` tokens prefilled, then decode."""
        chunks = -(-new // self.token_budget)
        pairs = new * (2 * prompt - new + 1) // 2
        prefill = (
            chunks * self.step_seconds
            + self.prefill_token_seconds * new
            + self.prefill_pair_seconds * pairs
        )
        step = self.step_seconds + self.sequence_seconds
        if new == 1:
            prefill = step + self.context_token_seconds * prompt
        first = step + self.context_token_seconds * (prompt + 1)
        return prefill + StepCost(first, self.context_token_seconds).total(output - 1)

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a cost file."""
        return asdict(self)


COST_MODELS: Mapping[str, CostModel] = {
    "reference-8b": CostModel(
        step_seconds=6e-3,
        prefill_token_seconds=0.09e-3,
        context_token_seconds=0.04e-6,
        source="The reference set-up: round figures of an 8B model on one data-centre GPU.",
    ),
}


def load_cost(name: str) -> CostModel:
    """Return a built-in cost model by name, or read one from a ``.json`` or ``.toml`` file.

    ``GPU/MODEL``, such as ``h200/qwen3-8b``, is one made of published figures.

    Raises:
        ConfigError: no such name or file, or the file's fields are wrong.
    """
    if name in COST_MODELS:
        return COST_MODELS[name]
    path = Path(name)
    gpu, slash, model = name.partition("/")
    if slash and not path.is_file():
        # Not above: that module makes cost models.
        from agentrt.simulation.hardware import gpu_cost

        return gpu_cost(gpu, model)
    if not path.is_file():
        raise ConfigError(
            f"There is no cost model {name!r}, nor a file of that name.",
            remedy=f"Choose one of: {', '.join(sorted(COST_MODELS))}; or give a JSON or TOML file.",
        )
    return _checked(path, _read(path))


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: the cost model cannot be read: {error}.",
            remedy=f"Write it as JSON or TOML with the fields {_field_names()}.",
        ) from error


def _checked(path: Path, data: Any) -> CostModel:
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected one object.", remedy=f"Fields: {_field_names()}.")
    known = {field.name for field in fields(CostModel)}
    required = {"step_seconds", "prefill_token_seconds", "context_token_seconds"}
    for problem, names in (("unknown", data.keys() - known), ("missing", required - data.keys())):
        if names:
            raise ConfigError(
                f"{path}: {', '.join(sorted(names))}: {problem}.",
                remedy=f"A cost model has the fields {_field_names()}.",
            )
    for name, value in data.items():
        _check_value(path, name, value)
    return CostModel(**data)


def _check_value(path: Path, name: str, value: Any) -> None:
    if name == "reserve_output":
        good, wanted = isinstance(value, bool), "true or false"
    elif name == "source":
        good, wanted = isinstance(value, str), "a text"
    elif name in ("token_budget", "max_seqs", "kv_token_bytes"):
        good, wanted = type(value) is int and value > 0, "a whole number above 0"
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        positive = name == "step_seconds"
        good = number and (value > 0 if positive else value >= 0) and value < math.inf
        wanted = "seconds above 0" if positive else "seconds of 0 or more"
    if not good:
        raise ConfigError(f"{path}: {name} is {value!r}.", remedy=f"Give {name} {wanted}.")


def _field_names() -> str:
    return ", ".join(field.name for field in fields(CostModel))
