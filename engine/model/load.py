"""Choose who computes a model, check everything that can be checked unread, then load it.

A *source* is a model directory whose configuration and headers were found right. It says what
memory the weights take before any of them is read.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, get_args

import torch

from agentrt.engine.model.base import Model
from agentrt.engine.model.config import ARCHITECTURES, ModelConfig, ModelShape, read_json
from agentrt.engine.model.hf import HfSource
from agentrt.engine.model.hf_check import check_computation
from agentrt.engine.model.hf_weights import check_weights, load_weights
from agentrt.engine.model.sizes import check_quant, weight_bytes
from agentrt.engine.model.weights import Checkpoint, Progress, build, computed_dtype
from agentrt.engine.parallel.group import ALONE, Group
from agentrt.engine.parallel.sharding import Shard
from agentrt.errors import ConfigError, ModelError, ModelUnsupported

__all__ = ["Implementation", "ModelSource", "check_config", "open_source"]

_logger = logging.getLogger(__name__)

Implementation: TypeAlias = Literal["auto", "native", "transformers"]
"""Who computes a model: our own decoder, or transformers' code with its attention on our pages."""


class ModelSource(Protocol):
    """A model directory that was checked and can be loaded."""

    @property
    def shape(self) -> ModelShape:
        """Return the model's shape."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype that the model is loaded in."""
        ...

    @property
    def parameters(self) -> int:
        """Return how many weights the model has, tied ones counted once."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Return the bytes that the weights take in ``dtype``, unquantised."""
        ...

    def shard(self, rank: int, size: int) -> Shard:
        """Return what one of ``size`` ranks holds.

        Raises:
            ConfigError: this model cannot be cut for so many.
        """
        ...

    def bytes_as(self, itemsize: int, quant: str | None) -> int | None:
        """Return the bytes of weights ``itemsize`` wide, or as ``quant``; None if that cannot be.

        Raises:
            ConfigError: there is no such ``quant``.
        """
        ...

    def load(
        self,
        device: str,
        progress: Progress | None = None,
        quant: str | None = None,
        group: Group = ALONE,
    ) -> Model:
        """Read the weights, of several ranks those of ours; ``fp8`` is rounded to on the way.

        Raises:
            ModelError: they cannot be read after all.
            ConfigError: the model cannot be cut for the ranks of ``group``.
        """
        ...


class _Source:
    """What every source says alike."""

    def __init__(self, shape: ModelShape, parameters: int, dtype: torch.dtype) -> None:
        self.shape = shape
        self.parameters = parameters
        self.dtype = dtype

    @property
    def weight_bytes(self) -> int:
        return self.parameters * self.dtype.itemsize


class _Native(_Source):
    """A model that our own decoder computes."""

    def __init__(self, directory: Path, config: ModelConfig, dtype: torch.dtype | None) -> None:
        super().__init__(config, config.parameters, computed_dtype(directory, config.dtype, dtype))
        self._config = config
        self._checkpoint = Checkpoint(directory)
        self._checkpoint.check(config)

    def shard(self, rank: int, size: int) -> Shard:
        return Shard(self._config, rank, size)

    def bytes_as(self, itemsize: int, quant: str | None) -> int | None:
        return weight_bytes(self._config, itemsize, quant)

    def load(
        self,
        device: str,
        progress: Progress | None = None,
        quant: str | None = None,
        group: Group = ALONE,
    ) -> Model:
        return build(self._checkpoint, self._config, self.dtype, device, progress, quant, group)


class _Transformers(_Source):
    """A model that transformers computes."""

    def __init__(self, directory: Path, source: HfSource, dtype: torch.dtype | None) -> None:
        shape = source.shape
        super().__init__(shape, shape.parameters, computed_dtype(directory, shape.dtype, dtype))
        self._source = source
        check_weights(self._source, Checkpoint(directory))

    def shard(self, rank: int, size: int) -> Shard:
        raise ConfigError(
            "Several ranks are for models that our own decoder computes, not transformers.",
            remedy="Leave --tensor-parallel out, or choose another model.",
        )

    def bytes_as(self, itemsize: int, quant: str | None) -> int | None:
        check_quant(quant)
        return self.parameters * itemsize if quant is None else None

    def load(
        self,
        device: str,
        progress: Progress | None = None,
        quant: str | None = None,
        group: Group = ALONE,
    ) -> Model:
        del quant  # refused when the model is prepared for its kernels
        if group.size > 1:
            self.shard(group.rank, group.size)
        model = load_weights(self._source, self.dtype, device, progress)
        check_computation(model, self._source.directory)
        return model


def open_source(
    directory: Path | str,
    *,
    dtype: torch.dtype | None = None,
    implementation: Implementation = "auto",
) -> ModelSource:
    """Read configuration and headers of a model directory; no weight is read.

    Args:
        directory: a Hugging Face model directory with safetensors.
        dtype: ``torch.float32`` or ``torch.bfloat16``; None takes the checkpoint's own.
        implementation: ``auto`` takes our own decoder for what it can compute, else transformers.

    Raises:
        ModelError: something is missing, wrong or not supported; names the file.
        ConfigError: there is no such implementation.
    """
    path = Path(directory)
    config = check_config(path, implementation)
    if isinstance(config, ModelConfig):
        return _Native(path, config, dtype)
    return _Transformers(path, config, dtype)


def check_config(path: Path, implementation: Implementation = "auto") -> ModelConfig | HfSource:
    """Read ``config.json`` and say who computes the model; weights need not be there yet.

    Raises:
        ModelError, ConfigError: as :func:`open_source`.
    """
    if implementation not in get_args(Implementation):
        raise ConfigError(
            f"There is no model implementation {implementation!r}.",
            remedy=f"Use one of {', '.join(get_args(Implementation))}.",
        )
    if implementation == "transformers":
        return HfSource(path)
    kind = read_json(path / "config.json").get("model_type")
    if implementation == "auto" and kind not in ARCHITECTURES:
        _logger.info("%s: architecture %r is computed by transformers", path, kind)
        return HfSource(path)
    try:
        return ModelConfig.from_directory(path)
    except ModelUnsupported as error:
        if implementation == "native":
            raise
        return _instead(path, error)


def _instead(path: Path, error: ModelUnsupported) -> HfSource:
    """Have transformers compute a variant of a known architecture that our decoder refused."""
    try:
        source = HfSource(path)
    except ModelError as other:
        # The first refusal is about the file itself, and says more.
        raise error from other
    _logger.warning("transformers computes this model, our own decoder cannot: %s", error)
    return source
