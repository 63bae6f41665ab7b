"""Which kernels a model on CPU runs on: ours, or torch's where ours cannot be used, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias, cast

import torch

from agentrt.engine.attention.base import Attention
from agentrt.engine.attention.native import (
    NativeLibrary,
    NativePagedAttention,
    NativeUnavailable,
    load_native,
)
from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.model.base import Model
from agentrt.engine.model.config import ModelShape
from agentrt.engine.model.decoder import Decoder
from agentrt.engine.model.fp8 import Fp8Linear
from agentrt.engine.model.linear import (
    Int8Linear,
    Linear,
    LinearLayer,
    OneDnnLinear,
    PackedEmbedding,
    PackedLinear,
    onednn_works,
)
from agentrt.engine.model.ops import NativeOps
from agentrt.engine.model.sizes import check_quant
from agentrt.errors import ConfigError

__all__ = ["KernelSetting", "Kernels", "choose_kernels", "make_attention", "prepare"]

_logger = logging.getLogger(__name__)

KernelSetting: TypeAlias = Literal["auto", "native", "torch"]


@dataclass(frozen=True, slots=True)
class Kernels:
    """What was chosen: the native ``library``, or None for torch; ``why`` says what decided."""

    library: NativeLibrary | None
    why: str


def choose_kernels(
    setting: str, device: str, load: Callable[[], NativeLibrary] = load_native
) -> Kernels:
    """Decide which kernels to use, compiling ours if need be, and log it.

    Args:
        setting: ``auto`` takes ours on CPU where they can be built, ``native`` insists, ``torch``
            does without.
        device: where the model is.
        load: returns our kernels.

    Raises:
        ConfigError: an unknown setting, or ``native`` for another device than the CPU.
        NativeUnavailable: ``native``, and they cannot be built or loaded.
    """
    if setting not in ("auto", "native", "torch"):
        raise ConfigError(
            f"There are no {setting!r} kernels.", remedy="Use one of auto, native, torch."
        )
    if setting == "native" and device != "cpu":
        raise ConfigError(
            f"The native kernels run on the CPU, not on {device}.",
            remedy="Use the device cpu, or the setting auto.",
        )
    if setting == "torch" or device != "cpu":
        return Kernels(None, "they were asked for" if setting == "torch" else f"on {device}")
    try:
        library = load()
    except NativeUnavailable as error:
        if setting == "native":
            raise
        _logger.warning("Attention runs on the torch path, which is slower: %s", error)
        return Kernels(None, str(error))
    _logger.info("Attention runs on our kernels (%s).", library.instructions)
    return Kernels(library, f"compiled for {library.instructions}")


def make_attention(
    kernels: Kernels,
    config: ModelShape,
    num_pages: int,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    kv_dtype: str = "auto",
) -> Attention:
    """Return paged attention over a new pool, on the chosen kernels.

    Keys and values of another ``kv_dtype`` than ``auto`` are for torch only, and the log says so.
    """
    if kv_dtype != "auto" and kernels.library is not None:
        _logger.info("KV is kept in %s: attention runs on the torch path, slower.", kv_dtype)
    if kv_dtype != "auto" or kernels.library is None:
        return TorchPagedAttention(config, num_pages, page_size, dtype, device, kv_dtype)
    return NativePagedAttention(kernels.library, config, num_pages, page_size, dtype)


def prepare(model: Model, kernels: Kernels, quant: str | None = None) -> None:
    """Bring a loaded model's weights into the order that its kernels read; changes ``model``.

    bf16 on CPU is packed by our kernels, else by oneDNN, else left as it is (and the log says so).
    fp32, other devices, and models that transformers computes keep their weights.

    Args:
        model: the model; its old weights are freed one by one.
        kernels: what was chosen.
        quant: ``int8`` rounds the weights of all linear layers to int8; ``fp8`` says that those of
            the layers were loaded as fp8; None keeps them.

    Raises:
        ConfigError: an unknown ``quant``, or one that these kernels or this dtype cannot do.
    """
    check_quant(quant)
    if not isinstance(model, Decoder):
        if quant is not None:
            raise ConfigError(
                f"{quant} weights are for models that our own decoder computes.",
                remedy="Leave --quant out, or choose another model.",
            )
        return
    library = kernels.library
    bf16 = model.dtype == torch.bfloat16 and model.device.type == "cpu"
    if (quant == "fp8") != model.has_fp8:
        raise ConfigError(
            "Weights become fp8 while it is loaded, not afterwards.",
            remedy="Load the model with the quantization that it is prepared with.",
        )
    if quant == "int8" and (library is None or not bf16):
        raise ConfigError(
            "int8 weights need the native kernels and a bfloat16 model on the CPU.",
            remedy=f"Use dtype bfloat16 and device cpu; the kernels in use are torch's: "
            f"{kernels.why}."
            if library is None
            else "Use dtype bfloat16.",
        )
    if model.has_fp8 and model.device.type == "cuda" and kernels.why != "they were asked for":
        _use_products(model)
    if library is not None:
        _prepare_native(model, library, bf16, quant)
    elif bf16:
        _prepare_onednn(model)


def _prepare_native(model: Decoder, library: NativeLibrary, bf16: bool, quant: str | None) -> None:
    make: Callable[[LinearLayer], LinearLayer] = _same
    if bf16:
        make = partial(_packed, library, quant)
    head = model.rebuild(make, NativeOps(library))
    model.fuse(library)
    if isinstance(head, PackedLinear) and model.config.tied_embeddings:
        model.share_embedding(PackedEmbedding(library, head))


def _use_products(model: Decoder) -> None:
    """Have few rows multiplied with fp8 weights as they are."""
    try:
        from agentrt.engine.triton.linear8 import linear8
    except ImportError as error:
        _logger.warning("fp8 weights are widened for every step, which is slower: %s", error)
        return
    model.rebuild(
        lambda layer: layer.with_product(linear8) if isinstance(layer, Fp8Linear) else layer
    )


def _same(layer: LinearLayer) -> LinearLayer:
    return layer


def _packed(library: NativeLibrary, quant: str | None, layer: LinearLayer) -> LinearLayer:
    """Pack a plain layer; fp8, and inputs that do not pair up, stay as they are."""
    if isinstance(layer, Fp8Linear):
        return layer
    linear = cast("Linear", layer)
    if quant == "int8":
        return Int8Linear(library, linear)
    return PackedLinear(library, linear) if linear.weight.shape[1] % 2 == 0 else linear


def _prepare_onednn(model: Decoder) -> None:
    wrong = onednn_works()
    if wrong is not None:
        _logger.warning("Weights stay unpacked, which is slower: oneDNN cannot pack (%s).", wrong)
        return
    model.rebuild(lambda layer: OneDnnLinear(layer) if isinstance(layer, Linear) else layer)
