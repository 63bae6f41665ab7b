"""Read a Hugging Face ``config.json`` into the few numbers that our decoder needs.

Whatever the decoder cannot compute exactly is refused here, before any weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrt.engine.model.rope import RopeConfig
from agentrt.errors import ModelError, ModelUnsupported

__all__ = ["ARCHITECTURES", "ModelConfig", "ModelShape"]

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class _Family:
    """What an architecture fixes, and its defaults for keys that config.json may leave out."""

    qk_norm: bool = False
    qkv_bias: bool | None = None  # None: the key attention_bias decides
    out_bias: bool | None = False
    head_dim: int | None = None
    max_positions: int = 32768
    sliding_window: int | None = None


ARCHITECTURES: Mapping[str, _Family] = {
    "llama": _Family(out_bias=None, max_positions=2048),
    "mistral": _Family(qkv_bias=False, max_positions=131072, sliding_window=4096),
    "qwen2": _Family(qkv_bias=True, sliding_window=4096),
    "qwen3": _Family(qk_norm=True, out_bias=None, head_dim=128, sliding_window=4096),
}
"""Supported values of ``model_type``."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What pages, scheduling and sampling need to know of any decoder. Sizes are counts.

    ``windows`` has one entry a layer: with window ``w`` a token at position ``p`` sees positions
    ``p - w + 1 .. p``; None means all earlier ones. ``dtype`` is the checkpoint's.
    """

    arch: str
    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    windows: tuple[int | None, ...]
    dtype: str

    def kv_bytes_per_token(self, dtype: str | None = None) -> int:
        """Return the bytes of keys and values that one token occupies over all layers.

        Args:
            dtype: ``float32``, ``bfloat16`` or ``float16``; None is the checkpoint's own.
        """
        size = _DTYPE_BYTES[dtype or self.dtype]
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * size


@dataclass(frozen=True, slots=True)
class ModelConfig(ModelShape):
    """Shape of a dense decoder that we compute ourselves."""

    hidden_size: int
    intermediate_size: int
    norm_eps: float
    rope: RopeConfig
    tied_embeddings: bool
    qk_norm: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool

    @classmethod
    def from_directory(cls, path: Path | str) -> ModelConfig:
        """Read ``config.json`` of a model directory.

        Raises:
            ModelError: the file is missing, malformed, or asks for something unsupported.
        """
        return cls.from_mapping(read_json(Path(path) / "config.json"), Path(path) / "config.json")

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any], file: Path) -> ModelConfig:
        """Build from the parsed ``config.json``; ``file`` is named in errors.

        Raises:
            ModelError: as :meth:`from_directory`.
        """
        reader = _Reader(raw, file)
        family = reader.family()
        reader.refuse_unsupported()
        hidden, heads = reader.count("hidden_size"), reader.count("num_attention_heads")
        layers = reader.count("num_hidden_layers")
        head_dim = reader.count("head_dim", family.head_dim or max(1, hidden // heads))
        max_positions = reader.count("max_position_embeddings", family.max_positions)
        bias = reader.flag("attention_bias")
        config = cls(
            arch=raw["model_type"],
            vocab_size=reader.count("vocab_size"),
            hidden_size=hidden,
            intermediate_size=reader.count("intermediate_size"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=reader.count("num_key_value_heads", heads),
            head_dim=head_dim,
            norm_eps=reader.number("rms_norm_eps", 1e-6),
            max_positions=max_positions,
            rope=RopeConfig.from_mapping(raw, head_dim, max_positions, file),
            tied_embeddings=reader.flag("tie_word_embeddings"),
            qk_norm=family.qk_norm,
            qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
            out_bias=bias if family.out_bias is None else family.out_bias,
            mlp_bias=reader.flag("mlp_bias") and raw["model_type"] == "llama",
            windows=reader.windows(family, layers),
            dtype=reader.dtype(),
        )
        config._check(file)
        return config

    def _check(self, file: Path) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"{file}: {self.num_heads} attention heads do not divide into "
                f"{self.num_kv_heads} key-value heads.",
                remedy="Correct num_attention_heads or num_key_value_heads.",
            )
        if self.head_dim % 2:
            raise ModelError(
                f"{file}: head_dim {self.head_dim} is odd; rotary embedding needs pairs.",
                remedy="Correct head_dim, or hidden_size and num_attention_heads.",
            )

    @property
    def parameters(self) -> int:
        """Return how many weights the model has, tied ones counted once."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        h, f = self.hidden_size, self.intermediate_size
        attention = h * (2 * q + 2 * kv) + self.qkv_bias * (q + 2 * kv) + self.out_bias * h
        mlp = 3 * h * f + self.mlp_bias * (2 * f + h)
        norms = 2 * h + self.qk_norm * 2 * self.head_dim
        embeddings = self.vocab_size * h * (1 if self.tied_embeddings else 2)
        return self.num_layers * (attention + mlp + norms) + h + embeddings


def read_json(file: Path) -> dict[str, Any]:
    """Read one JSON object of a model directory.

    Raises:
        ModelError: missing, unreadable, not JSON, or not an object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{file} does not exist.",
            remedy="Give a Hugging Face model directory, or make one: agentrt model make DIR.",
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{file} cannot be read: {error}.", remedy="Download the model again."
        ) from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} is not a JSON object.", remedy="Download the model again.")
    return value


class _Reader:
    """Typed access to the keys of one config.json, with errors that name file and key."""

    def __init__(self, raw: Mapping[str, Any], file: Path) -> None:
        self._raw = raw
        self._file = file

    def _error(self, message: str, remedy: str) -> ModelError:
        return ModelError(f"{self._file}: {message}", remedy=remedy)

    def family(self) -> _Family:
        name = self._raw.get("model_type")
        if not isinstance(name, str) or name not in ARCHITECTURES:
            raise ModelUnsupported(
                f"{self._file}: architecture {name!r} is not supported.",
                remedy=f"Use a dense model of type {', '.join(ARCHITECTURES)}.",
            )
        return ARCHITECTURES[name]

    def refuse_unsupported(self) -> None:
        if self._raw.get("quantization_config"):
            raise self._error(
                "quantized weights are not supported.", "Use the bf16 or fp32 checkpoint."
            )
        activation = self._raw.get("hidden_act", "silu")
        if activation not in ("silu", "swish"):
            raise ModelUnsupported(
                f"{self._file}: hidden_act {activation!r} is not supported.", remedy="Use silu."
            )

    def count(self, key: str, default: int | None = None) -> int:
        value = self._raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._error(
                f"{key} must be a positive integer, not {value!r}.", f"Correct {key}."
            )
        return value

    def number(self, key: str, default: float) -> float:
        value = self._raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._error(f"{key} must be a number, not {value!r}.", f"Correct {key}.")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self._raw.get(key)
        if value not in (None, True, False):
            raise self._error(f"{key} must be true or false, not {value!r}.", f"Correct {key}.")
        return bool(value)

    def dtype(self) -> str:
        name = str(self._raw.get("dtype") or self._raw.get("torch_dtype") or "float32")
        name = name.removeprefix("torch.")
        if name not in _DTYPE_BYTES:
            raise self._error(
                f"dtype {name!r} is not supported.", f"Use one of {', '.join(_DTYPE_BYTES)}."
            )
        return name

    def windows(self, family: _Family, layers: int) -> tuple[int | None, ...]:
        size = self._window(family)
        kinds = self._raw.get("layer_types")
        if self._raw["model_type"] == "mistral" or size is None:
            return (size,) * layers
        if kinds is None:
            first = self._raw.get("max_window_layers", 28)
            return tuple(size if layer >= first else None for layer in range(layers))
        known = {"sliding_attention", "full_attention"}
        if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= known:
            raise self._error(
                f"layer_types must hold {layers} entries of {sorted(known)}.",
                "Correct layer_types.",
            )
        return tuple(size if kind == "sliding_attention" else None for kind in kinds)

    def _window(self, family: _Family) -> int | None:
        """Return the window in tokens, None where the model has none or switches it off."""
        if family.sliding_window is None:
            return None
        if self._raw["model_type"] != "mistral" and not self.flag("use_sliding_window"):
            return None
        if "sliding_window" in self._raw and self._raw["sliding_window"] is None:
            return None
        return self.count("sliding_window", family.sliding_window)
