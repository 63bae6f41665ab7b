"""Which part of every tensor a rank holds. Pure: no torch.

The cut is the one of Megatron-LM (arXiv 1909.08053, section 3): what goes into attention and into
the MLP is cut by outputs, what comes out of them by inputs, so that a layer needs two sums over
the ranks. Heads stay whole. Where there are fewer key-value heads than ranks, ranks share a head
and each keeps a copy of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agentrt.errors import ConfigError

if TYPE_CHECKING:
    from agentrt.engine.model.config import ModelConfig

__all__ = ["Cut", "Shard", "refusal", "sizes"]

MOST_RANKS = 64
"""Sizes that are tried where a remedy names those that work: one host has no more devices."""

_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True, slots=True)
class Cut:
    """The indices ``[start, stop)`` of one dimension."""

    dim: int
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Return how many indices there are."""
        return self.stop - self.start


def refusal(config: ModelConfig, size: int) -> str | None:
    """Say why a model cannot be cut for ``size`` ranks; None if it can."""
    heads, kv, inner = config.num_heads, config.num_kv_heads, config.intermediate_size
    if size < 1:
        return "there must be at least one rank"
    if heads % size:
        return f"its {heads} attention heads do not divide by {size}"
    if kv % size and size % kv:
        return f"its {kv} key-value heads neither divide by {size} nor {size} by them"
    if inner % size:
        return f"the {inner} inner values of its MLP do not divide by {size}"
    return None


def sizes(config: ModelConfig) -> list[int]:
    """Return the numbers of ranks that a model can be cut for."""
    return [size for size in range(1, MOST_RANKS + 1) if refusal(config, size) is None]


@dataclass(frozen=True, slots=True)
class Shard:
    """Rank ``rank`` of ``size`` of a model; the default is all of it.

    Raises:
        ConfigError: the model does not divide by ``size``, or there is no such rank.
    """

    config: ModelConfig
    """The whole model's shape."""
    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        why = refusal(self.config, self.size)
        if why is None and not 0 <= self.rank < self.size:
            why = f"there is no rank {self.rank}"
        if why is not None:
            works = ", ".join(map(str, sizes(self.config)))
            raise ConfigError(
                f"The model cannot be cut for {self.size} ranks: {why}.",
                remedy=f"Use --tensor-parallel with one of {works}.",
            )

    @property
    def part(self) -> ModelConfig:
        """Return the shape of this rank's part: its heads and inner values, all of the rest."""
        return replace(
            self.config,
            num_heads=self.config.num_heads // self.size,
            num_kv_heads=max(1, self.config.num_kv_heads // self.size),
            intermediate_size=self.config.intermediate_size // self.size,
        )

    @property
    def vocabulary_rows(self) -> int:
        """Return the rows of embedding and head on every rank; the last ranks' ends may be padding.

        Rows of equal numbers make the gathering of logits one copy a rank.
        """
        return -(-self.config.vocab_size // self.size)

    @property
    def vocabulary(self) -> Cut:
        """Return which token ids are this rank's."""
        whole, rows = self.config.vocab_size, self.vocabulary_rows
        start = min(self.rank * rows, whole)
        return Cut(0, start, min(start + rows, whole))

    @property
    def parameters(self) -> int:
        """Return how many weights this rank holds, tied ones counted once."""
        part = replace(self.part, vocab_size=self.vocabulary_rows)
        missing = part.num_layers * part.hidden_size * (part.out_bias + part.mlp_bias)
        return part.parameters - (missing if self.rank else 0)

    def holds(self, name: str) -> bool:
        """Say whether this rank has any of a tensor: biases that are added to a sum come once."""
        return self.rank == 0 or not name.endswith(("o_proj.bias", "down_proj.bias"))

    def cut(self, name: str) -> Cut | None:
        """Return the part of a checkpoint's tensor that this rank reads; None is all of it."""
        if self.size == 1:
            return None
        if name in _VOCABULARY:
            return self.vocabulary
        layer, _, kind = name.rpartition(".")
        module = layer.rpartition(".")[2]
        bias = kind == "bias"
        if module == "q_proj":
            return self._slice(0, self.part.num_heads * self.config.head_dim, self.rank)
        if module in ("k_proj", "v_proj"):
            return self._slice(0, self.part.num_kv_heads * self.config.head_dim, self._kv_place)
        if module in ("gate_proj", "up_proj"):
            return self._slice(0, self.part.intermediate_size, self.rank)
        if module == "o_proj" and not bias:
            return self._slice(1, self.part.num_heads * self.config.head_dim, self.rank)
        if module == "down_proj" and not bias:
            return self._slice(1, self.part.intermediate_size, self.rank)
        return None

    @property
    def _kv_place(self) -> int:
        """Which block of key-value heads is this rank's: neighbours share where heads are few."""
        sharing = max(1, self.size // self.config.num_kv_heads)
        return self.rank // sharing

    @staticmethod
    def _slice(dim: int, count: int, place: int) -> Cut:
        return Cut(dim, place * count, (place + 1) * count)

    def shapes(self, part: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Return the shapes to allocate, given those of a model of the shape :attr:`part`."""
        return {
            name: (self.vocabulary_rows, *shape[1:]) if name in _VOCABULARY else shape
            for name, shape in part.items()
            if self.holds(name)
        }
