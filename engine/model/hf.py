"""Models that transformers computes and whose attention runs on our pages.

A batch is one row of all its tokens, as for our own decoder: transformers is given token ids and
positions, no cache and no mask. Every attention layer calls the function that is registered here;
the step that it attends with arrives as a keyword, so that nothing is global but that one function.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from agentrt.engine.attention.base import AttentionStep
from agentrt.engine.model.base import on_its_device
from agentrt.engine.model.config import ModelShape, read_json
from agentrt.engine.model.hf_probe import (
    STEP,
    AttentionCall,
    Probe,
    import_transformers,
    probe,
    skeleton,
)
from agentrt.errors import InternalError, ModelError

if TYPE_CHECKING:
    from agentrt.engine.lora.batch import AdapterBatch

__all__ = ["HfDecoder", "HfShape", "HfSource"]

_logger = logging.getLogger(__name__)
_NAME = "agentrt-paged"
_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class HfShape(ModelShape):
    """Shape of a model that transformers computes; ``parameters`` counts tied weights once."""

    parameters: int


@dataclass(frozen=True, slots=True)
class _LayerCall:
    """How one layer's heads are fitted to the pages.

    Pages hold ``dim`` numbers a head and attention scales by ``dim ** -0.5``: queries are
    multiplied by ``factor`` to make up for another scale, and smaller heads are padded with zeros.
    """

    factor: float
    dim: int

    @classmethod
    def of(cls, call: AttentionCall, dim: int) -> _LayerCall:
        factor = call.scaling * dim**0.5
        return cls(1.0 if abs(factor - 1.0) < 1e-6 else factor, dim)

    def pad(self, heads: torch.Tensor) -> torch.Tensor:
        """Return ``heads [1, H, T, D]`` as ``[T, H, dim]``."""
        flat = heads[0].transpose(0, 1)
        missing = self.dim - flat.shape[-1]
        return F.pad(flat, (0, missing)) if missing else flat.contiguous()


class _Step:
    """One planned batch, as the attention function sees it."""

    __slots__ = ("_layers", "_step")

    def __init__(self, step: AttentionStep, layers: tuple[_LayerCall, ...]) -> None:
        self._step = step
        self._layers = layers

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attend ``q, k, v [1, heads, T, dim]``; returns ``[1, T, query heads, value dim]``."""
        call = self._layers[layer]
        if call.factor != 1.0:
            q = q * call.factor
        out = self._step.attend(layer, call.pad(q), call.pad(k), call.pad(v))
        return out[None, :, :, : v.shape[-1]]


def _paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    **words: Any,
) -> tuple[torch.Tensor, None]:
    """Attend over pages: what transformers calls for every layer of our models."""
    step: _Step = words[STEP]
    return step.attend(int(module.layer_idx), query, key, value), None  # type: ignore[arg-type]


class HfDecoder:
    """A loaded transformers model, behind the same face as our own decoder.

    Args:
        config: its shape.
        model: a causal language model whose attention implementation is ours.
        found: how its layers attend.
    """

    def __init__(self, config: HfShape, model: Any, found: Probe) -> None:
        self.config = config
        self._model = model
        self._layers = tuple(_LayerCall.of(call, config.head_dim) for call in found.calls)
        weight: torch.Tensor = next(iter(model.parameters()))
        self._dtype, self._device = weight.dtype, weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of weights and activations."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return self._device

    @torch.inference_mode()
    @on_its_device
    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionStep,
        rows: torch.Tensor,
        adapters: AdapterBatch | None = None,
    ) -> torch.Tensor:
        """Run a batch; see :meth:`agentrt.engine.model.decoder.Decoder.forward`.

        Raises:
            InternalError: there are adapters: they belong to our own decoder's linears.
        """
        if adapters is not None:
            raise InternalError("A model that transformers computes was given adapters.")
        output = self._model(
            input_ids=tokens[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=rows,
            **{STEP: _Step(attention, self._layers)},
        )
        logits: torch.Tensor = output.logits
        return logits[0].float()


class HfSource:
    """A model directory that transformers is to compute; opening it reads no weight.

    Raises:
        ModelError: transformers is missing or does not know the model, or its attention cannot run
            on our pages.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self._file = self.directory / "config.json"
        self._raw = read_json(self._file)
        transformers = import_transformers()
        self.config = self._read(transformers)
        self._refuse_unsupported(transformers)
        self.found = probe(self.config, self._file)
        self.skeleton = skeleton(self.config, _registered())
        self.shape = self._shape()

    def _error(self, message: str, remedy: str) -> ModelError:
        return ModelError(f"{self._file}: {message}", remedy=remedy)

    def _read(self, transformers: Any) -> Any:
        kind = self._raw.get("model_type")
        if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
            raise self._error(
                f"architecture {kind!r} is not known to transformers {transformers.__version__}; "
                "code that comes with a model is never run.",
                "Use a model that transformers has built in, or a newer transformers.",
            )
        try:
            return transformers.AutoConfig.from_pretrained(
                str(self.directory), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever a configuration class raises
            raise self._error(
                f"transformers cannot read it: {type(error).__name__}: {error}.",
                "Restore the config.json that belongs to these weights.",
            ) from error

    def _refuse_unsupported(self, transformers: Any) -> None:
        config, kind = self.config, self.config.model_type
        if self._raw.get("quantization_config"):
            raise self._error(
                "quantized weights are not supported.", "Use the bf16 or fp32 checkpoint."
            )
        classes = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if config.is_encoder_decoder or kind not in classes:
            what = "an encoder-decoder" if config.is_encoder_decoder else "no causal language model"
            raise self._error(
                f"architecture {kind!r} is {what}; only decoders are served.",
                "Use a model for causal language modelling.",
            )
        name = classes[kind]
        cls = getattr(transformers, name if isinstance(name, str) else name[0])
        if cls._is_stateful:
            raise self._error(
                f"architecture {kind!r} keeps a recurrent state beside its attention (such as a "
                "state-space or linear-attention layer), which pages cannot hold.",
                "Use a model whose layers all attend.",
            )
        kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
        other = sorted(str(one) for one in kinds - {"full_attention", "sliding_attention"})
        if other:
            raise self._error(
                f"architecture {kind!r} has layers of type {', '.join(other)}.",
                "Use a model whose layers have full or sliding-window attention.",
            )

    def _shape(self) -> HfShape:
        first, text = self.found.calls[0], self.config.get_text_config()
        unique = {id(weight): weight.numel() for weight in self.skeleton.parameters()}
        return HfShape(
            arch=self.config.model_type,
            vocab_size=self.found.vocab_size,
            num_layers=len(self.found.calls),
            num_heads=first.heads,
            num_kv_heads=first.kv_heads,
            head_dim=max(first.query_dim, first.value_dim),
            max_positions=self._max_positions(text),
            windows=tuple(call.window for call in self.found.calls),
            dtype=self._dtype(),
            parameters=sum(unique.values()),
        )

    def _dtype(self) -> str:
        name = str(self.config.dtype or self.config.get_text_config().dtype or "float32")
        name = name.removeprefix("torch.")
        if name not in _DTYPES:
            raise self._error(
                f"dtype {name!r} is not supported.", f"Use one of {', '.join(_DTYPES)}."
            )
        return name

    def _max_positions(self, text: Any) -> int:
        """Return the longest context: where the rotation changes with the length, up to there."""
        longest = getattr(text, "max_position_embeddings", None)
        if not isinstance(longest, int) or longest < 1:
            raise self._error("no longest context is stated.", "Add max_position_embeddings.")
        for rope in _ropes(getattr(text, "rope_parameters", None)):
            kind = rope.get("rope_type", "default")
            if kind not in ("dynamic", "longrope"):
                continue
            original = rope.get("original_max_position_embeddings") or getattr(
                text, "original_max_position_embeddings", None
            )
            # Beyond it the frequencies depend on the longest sequence of a batch.
            if isinstance(original, int) and original < longest:
                _logger.warning(
                    "%s: rope type %s changes past %d tokens; contexts end there, not at %d",
                    self._file,
                    kind,
                    original,
                    longest,
                )
                longest = original
        return longest

    def decoder(self, model: Any) -> HfDecoder:
        """Return ``model``, whose weights are loaded, as a decoder."""
        return HfDecoder(self.shape, model, self.found)


def _registered() -> str:
    """Make our attention known to transformers; return its name."""
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(_NAME, _paged_attention)
    return _NAME


def _ropes(parameters: object) -> list[Mapping[str, Any]]:
    """Return the rope settings: one for all layers, or one for each type of layer."""
    if not isinstance(parameters, Mapping):
        return []
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    return nested or [parameters]
