"""Bytes that weights take, in the forms that they can be kept in."""

from __future__ import annotations

from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.weights import linear_shapes
from agentrt.errors import ConfigError

__all__ = ["QUANTS", "check_quant", "weight_bytes"]

QUANTS = ("int8", "fp8")
INT8_GROUP = 64
"""Inputs of an output that share a scale of four bytes."""


def check_quant(quant: str | None) -> None:
    """Raise ``ConfigError`` if weights cannot be kept as ``quant``; None keeps them as they are."""
    if quant is not None and quant not in QUANTS:
        raise ConfigError(
            f"There is no quantization {quant!r}.", remedy=f"Use {' or '.join(QUANTS)}, or none."
        )


def weight_bytes(config: ModelConfig, itemsize: int, quant: str | None) -> int:
    """Return the bytes of all weights, the rest of them ``itemsize`` wide.

    ``int8`` takes the layers' linear weights and the output layer's; ``fp8`` the layers' alone,
    with a scale of four bytes an output.
    """
    check_quant(quant)
    shapes = [(rows, columns) for _, rows, columns, _ in linear_shapes(config)]
    inner = config.num_layers * sum(rows * columns for rows, columns in shapes)
    if quant is None:
        return config.parameters * itemsize
    if quant == "fp8":
        scales = config.num_layers * sum(rows for rows, _ in shapes)
        return (config.parameters - inner) * itemsize + inner + 4 * scales
    head = config.vocab_size * config.hidden_size
    rest = config.parameters - inner - (0 if config.tied_embeddings else head)
    return rest * itemsize + (inner + head) * (INT8_GROUP + 4) // INT8_GROUP
