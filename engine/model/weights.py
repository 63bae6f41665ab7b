"""Load a decoder from safetensors, single or sharded, after checking every header first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import torch

from agentrt.engine.model.config import ModelConfig, read_json
from agentrt.engine.model.decoder import Decoder, Layer
from agentrt.engine.model.fp8 import FP8, Fp8Linear
from agentrt.engine.model.header import TensorEntry, read_header
from agentrt.engine.model.linear import Linear, LinearLayer
from agentrt.engine.model.staging import Wanted, copier_for, copy_runs, plan_runs
from agentrt.engine.model.targets import Fp8Rows, Repeated, Rows, Target
from agentrt.engine.parallel.group import ALONE, Group
from agentrt.engine.parallel.sharding import Cut, Shard
from agentrt.errors import ModelError

__all__ = ["Checkpoint", "Progress", "linear_shapes", "load_model", "tensor_shapes"]

Shape = tuple[int, ...]
Progress: TypeAlias = Callable[[int, int], None]
"""Told bytes of weights that are in place, and in all."""

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_AGAIN = "Download the model again."


def tensor_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Return name and shape of every tensor that a checkpoint of this shape must hold."""
    h, d = config.hidden_size, config.head_dim
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": (config.vocab_size, h),
        "model.norm.weight": (h,),
    }
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, h)
    for index in range(config.num_layers):
        layer = f"model.layers.{index}."
        shapes[layer + "input_layernorm.weight"] = (h,)
        shapes[layer + "post_attention_layernorm.weight"] = (h,)
        for name, rows, columns, bias in linear_shapes(config):
            shapes[f"{layer}{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{layer}{name}.bias"] = (rows,)
        if config.qk_norm:
            shapes[layer + "self_attn.q_norm.weight"] = (d,)
            shapes[layer + "self_attn.k_norm.weight"] = (d,)
    return shapes


def linear_shapes(config: ModelConfig) -> Iterator[tuple[str, int, int, bool]]:
    """Yield name, outputs, inputs and whether there is a bias, for the linears of one layer."""
    h, f = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    yield "self_attn.q_proj", q, h, config.qkv_bias
    yield "self_attn.k_proj", kv, h, config.qkv_bias
    yield "self_attn.v_proj", kv, h, config.qkv_bias
    yield "self_attn.o_proj", h, q, config.out_bias
    yield "mlp.gate_proj", f, h, config.mlp_bias
    yield "mlp.up_proj", f, h, config.mlp_bias
    yield "mlp.down_proj", h, f, config.mlp_bias


class Checkpoint:
    """The tensors of a model directory by name; opening it reads headers only.

    Raises:
        ModelError: no safetensors file, a missing or truncated shard, or a broken index.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self._entries: dict[str, TensorEntry] = {}
        self._promised: dict[str, Path] = {}
        for file in self._files():
            for name, entry in read_header(file).items():
                self._entries[name] = entry

    def _files(self) -> list[Path]:
        """Return the shards in order: those the index names, else the single file."""
        index = self.directory / _INDEX
        if index.is_file():
            names = read_json(index).get("weight_map")
            if not isinstance(names, Mapping) or not names:
                raise ModelError(f"{index} has no weight_map.", remedy=_AGAIN)
            self._promised = {str(name): self.directory / str(f) for name, f in names.items()}
            files = sorted(set(self._promised.values()))
        else:
            files = [self.directory / _SINGLE]
        for file in files:
            if not file.is_file():
                raise ModelError(
                    f"{file} does not exist.",
                    remedy=f"Complete the download; weights must be safetensors ({_SINGLE} or "
                    f"shards named by {_INDEX}).",
                )
        return files

    def check(self, config: ModelConfig) -> None:
        """Compare every header entry with what ``config`` needs; reads no weight.

        Raises:
            ModelError: a tensor is missing, of the wrong shape or dtype, or not understood.
        """
        wanted = tensor_shapes(config)
        for name, shape in wanted.items():
            entry = self._entries.get(name)
            if entry is None:
                raise self.missing(name)
            if entry.shape != shape or entry.dtype not in _DTYPES:
                raise self.misshapen(name, shape)
        for name in sorted(self._entries.keys() - wanted.keys()):
            if not _ignorable(name, config):
                raise self.surplus(name, f"a dense {config.arch} model")

    def names(self) -> Iterable[str]:
        """Return the names of all tensors."""
        return self._entries.keys()

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor that the checkpoint has."""
        return self._entries[name].shape

    def file(self, name: str) -> Path:
        """Return the file of a tensor that the checkpoint has."""
        return self._entries[name].file

    def check_dtype(self, name: str) -> None:
        """Raise ``ModelError`` if a tensor is of a dtype that is not read."""
        if self._entries[name].dtype not in _DTYPES:
            raise self.misshapen(name, self._entries[name].shape)

    def missing(self, name: str) -> ModelError:
        """Return the error for a tensor that is needed and not there."""
        if name in self._promised:
            return ModelError(
                f"{self._promised[name]} lacks the tensor {name}, which {_INDEX} says it holds.",
                remedy=_AGAIN,
            )
        return ModelError(
            f"{self.directory}: the checkpoint lacks the tensor {name}.", remedy=_AGAIN
        )

    def misshapen(self, name: str, shape: Shape) -> ModelError:
        """Return the error for a tensor that is not of ``shape`` or of no dtype that is read."""
        entry = self._entries[name]
        return ModelError(
            f"{entry.file}: {name} is {entry.dtype} {list(entry.shape)}, but config.json "
            f"asks for {list(shape)} in {', '.join(_DTYPES)}.",
            remedy="Use the config.json that belongs to these weights.",
        )

    def surplus(self, name: str, model: str) -> ModelError:
        """Return the error for a tensor that ``model`` has no use for."""
        return ModelError(
            f"{self._entries[name].file}: tensor {name} is not part of {model}.",
            remedy="Use an unquantized checkpoint of a supported architecture.",
        )

    def fill(
        self,
        targets: Mapping[str, Target],
        progress: Progress | None = None,
        cut: Callable[[str], Cut | None] = lambda name: None,
    ) -> None:
        """Copy tensors into ``targets`` (shapes already checked), all of them on one device.

        Files are memory-mapped, and tensors go to their targets in runs of rows; no whole copy of a
        tensor is made. See ``staging``. Where ``cut`` names a part of a tensor, only that is read.
        """
        tensors = [self._wanted(name, target, cut(name)) for name, target in targets.items()]
        runs = list(plan_runs(tensors))
        done, total = 0.0, sum(target.nbytes for target in targets.values())
        for run in copy_runs(runs, copier_for(tensors, runs)):
            first, last = run.tensor.extent
            done += run.tensor.target.nbytes * (run.stop - run.start) / (last - first)
            if progress is not None and run.stop == last:
                progress(min(round(done), total), total)

    def _wanted(self, name: str, target: Target, cut: Cut | None) -> Wanted:
        entry = self._entries[name]
        part = None if cut is None else (cut.start, cut.stop)
        rows, columns = (part, None) if cut is None or cut.dim == 0 else (None, part)
        dtype = _DTYPES[entry.dtype]
        return Wanted(entry.file, name, entry.offset, entry.shape, dtype, target, rows, columns)


def _ignorable(name: str, config: ModelConfig) -> bool:
    """Say whether a surplus tensor changes nothing: a copy of the embedding, or old buffers."""
    if name == "lm_head.weight":
        return config.tied_embeddings
    return name.endswith("rotary_emb.inv_freq")


def load_model(
    directory: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    quant: str | None = None,
    group: Group = ALONE,
) -> Decoder:
    """Load a decoder from a Hugging Face model directory.

    Args:
        directory: holds ``config.json`` and safetensors.
        dtype: ``torch.float32`` or ``torch.bfloat16``; None takes the checkpoint's own.
        device: torch device of the weights.
        progress: called after each tensor.
        quant: ``fp8`` rounds the layers' weights on the way.
        group: the ranks that compute the model together; this one's part is loaded.

    Raises:
        ModelError: anything is missing, inconsistent or unsupported; found before weights are read.
        ConfigError: the model does not divide by the ranks of ``group``.
    """
    config = ModelConfig.from_directory(directory)
    chosen = computed_dtype(directory, config.dtype, dtype)
    checkpoint = Checkpoint(directory)
    checkpoint.check(config)
    return build(checkpoint, config, chosen, device, progress, quant, group)


def computed_dtype(
    directory: Path | str, own: str, asked: torch.dtype | None = None
) -> torch.dtype:
    """Return the dtype to compute in: what was asked for, else the checkpoint's ``own``.

    Raises:
        ModelError: it is neither float32 nor bfloat16.
    """
    chosen: torch.dtype = getattr(torch, own) if asked is None else asked
    if chosen not in (torch.float32, torch.bfloat16):
        raise ModelError(
            f"{directory}: {chosen} is not computed in.", remedy="Ask for float32 or bfloat16."
        )
    return chosen


def build(
    checkpoint: Checkpoint,
    config: ModelConfig,
    dtype: torch.dtype,
    device: str,
    progress: Progress | None = None,
    quant: str | None = None,
    group: Group = ALONE,
) -> Decoder:
    """Read the weights of a checkpoint that was checked; with ``fp8``, the layers' as fp8.

    Of several ranks, those of ours are read.

    Raises:
        ConfigError: the model does not divide by the ranks of ``group``.
    """
    return _Builder(config, dtype, device, group, fp8=quant == "fp8").build(checkpoint, progress)


class _Builder:
    """Allocates the fused weights and remembers which part each checkpoint tensor fills."""

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, device: str, group: Group, *, fp8: bool
    ) -> None:
        self._group = group
        self._shard = Shard(config, group.rank, group.size)
        self._config = self._shard.part
        self._fp8 = fp8
        self._dtype = dtype
        self._device = device
        self._shapes = self._shard.shapes(tensor_shapes(self._config))
        self._targets: dict[str, Target] = {}

    def build(self, checkpoint: Checkpoint, progress: Progress | None = None) -> Decoder:
        """Allocate everything, fill it from the checkpoint, and put the decoder together."""
        config = self._config
        embedding = self._vocabulary("model.embed_tokens.weight")
        layers = [self._layer(f"model.layers.{index}.") for index in range(config.num_layers)]
        norm = self._fused(["model.norm.weight"])
        head = embedding if config.tied_embeddings else self._vocabulary("lm_head.weight")
        checkpoint.fill(self._targets, progress, self._shard.cut)
        rows = None if self._group.size == 1 else self._shard.vocabulary
        return Decoder(config, embedding, layers, norm, Linear(head), self._group, rows)

    def _fused(self, names: list[str]) -> torch.Tensor:
        """Allocate one tensor for ``names`` along their first dimension, one after another."""
        whole = self._empty(names, self._dtype)
        for name, part in zip(names, self._split(names, whole), strict=True):
            self._targets[name] = Rows(part)
        return whole

    def _vocabulary(self, name: str) -> torch.Tensor:
        """Allocate a row for each token id; rows past the last token are zero."""
        whole = self._fused([name])
        real = self._shard.vocabulary.count
        whole[real:].zero_()
        self._targets[name] = Rows(whole[:real])
        return whole

    def _empty(self, names: list[str], dtype: torch.dtype) -> torch.Tensor:
        shapes = [self._shapes[name] for name in names]
        rows = sum(shape[0] for shape in shapes)
        return torch.empty((rows, *shapes[0][1:]), dtype=dtype, device=self._device)

    def _split(self, names: list[str], whole: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.split(whole, [self._shapes[name][0] for name in names])

    def _linear(self, prefix: str, names: list[str]) -> LinearLayer:
        weights = [f"{prefix}{name}.weight" for name in names]
        biases = [f"{prefix}{name}.bias" for name in names]
        bias = self._fused(biases) if biases[0] in self._shapes else None
        if not self._fp8:
            return Linear(self._fused(weights), bias)
        weight = self._empty(weights, FP8)
        scales = torch.empty(weight.shape[0], dtype=torch.float32, device=self._device)
        parts = zip(self._split(weights, weight), self._split(weights, scales), strict=True)
        for name, (rows, factors) in zip(weights, parts, strict=True):
            self._targets[name] = Fp8Rows(rows, factors)
        return Fp8Linear(weight, scales, bias)

    def _layer(self, prefix: str) -> Layer:
        attention = prefix + "self_attn."
        return Layer(
            input_norm=self._fused([prefix + "input_layernorm.weight"]),
            qkv=self._linear(attention, ["q_proj", "k_proj", "v_proj"]),
            qk_norm=self._qk_norm(attention) if self._config.qk_norm else None,
            out=self._linear(attention, ["o_proj"]),
            mlp_norm=self._fused([prefix + "post_attention_layernorm.weight"]),
            gate_up=self._linear(prefix + "mlp.", ["gate_proj", "up_proj"]),
            down=self._linear(prefix + "mlp.", ["down_proj"]),
        )

    def _qk_norm(self, prefix: str) -> torch.Tensor:
        """Allocate one row a head; all query heads share a weight, and so do all key heads."""
        config = self._config
        heads = config.num_heads + config.num_kv_heads
        whole = torch.empty((heads, config.head_dim), dtype=self._dtype, device=self._device)
        self._targets[prefix + "q_norm.weight"] = Repeated(whole[: config.num_heads])
        self._targets[prefix + "k_norm.weight"] = Repeated(whole[config.num_heads :])
        return whole
