"""Which kernels a model runs on: ours for its device, or torch's where ours cannot be used; why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias, cast

import torch

from agentrt.engine.attention.base import (
    Attention,
    BatchLayout,
    SliceLayout,
    StaticAttention,
)
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

__all__ = [
    "KernelKind",
    "KernelSetting",
    "Kernels",
    "TritonUnavailable",
    "check_triton",
    "choose_kernels",
    "make_attention",
    "prepare",
    "warm_up",
]

_logger = logging.getLogger(__name__)

KernelKind: TypeAlias = Literal["native", "triton", "torch"]
KernelSetting: TypeAlias = Literal["auto", "native", "triton", "torch"]
_SETTINGS: tuple[KernelSetting, ...] = ("auto", "native", "triton", "torch")


WARM_UP = (1, 2, 256)
"""Tokens of the steps that are tried at start: a decode, a short and a long extend."""


class TritonUnavailable(ConfigError):
    """The Triton kernels were asked for and cannot be used here."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """What was chosen, and what decided; ``library`` is there with the native kernels only."""

    kind: KernelKind
    why: str
    library: NativeLibrary | None = None

    @property
    def name(self) -> str:
        """What to call them in a report: native ones by their instruction set."""
        return self.kind if self.library is None else self.library.instructions


def choose_kernels(
    setting: str,
    device: str,
    load: Callable[[], NativeLibrary] = load_native,
    check: Callable[[str], None] | None = None,
) -> Kernels:
    """Decide which kernels to use, compiling the native ones if need be, and log it.

    Args:
        setting: ``auto`` takes ours, native on CPU and Triton on CUDA, where they can be used;
            ``native`` and ``triton`` insist, ``torch`` does without.
        device: where the model is.
        load: returns our native kernels.
        check: raises if Triton's cannot be used on a device; None is :func:`check_triton`.

    Raises:
        ConfigError: an unknown setting, or ``native`` for another device than the CPU.
        NativeUnavailable: ``native``, and they cannot be built or loaded.
        TritonUnavailable: ``triton``, and Triton cannot be imported.
    """
    if setting not in _SETTINGS:
        raise ConfigError(
            f"There are no {setting!r} kernels.", remedy=f"Use one of {', '.join(_SETTINGS)}."
        )
    kind = torch.device(device).type
    if setting == "native" and kind != "cpu":
        raise ConfigError(
            f"The native kernels run on the CPU, not on {device}.",
            remedy="Use the device cpu, or the setting auto.",
        )
    if setting == "torch":
        return Kernels("torch", "they were asked for")
    if setting == "triton" or (setting == "auto" and kind == "cuda"):
        return _or_torch(setting, "triton", partial(_triton, device, check or check_triton))
    if kind != "cpu":
        return Kernels("torch", f"on {device}")
    return _or_torch(setting, "native", partial(_native, load))


def _or_torch(setting: str, ours: KernelKind, choose: Callable[[], Kernels]) -> Kernels:
    """Return our kernels; torch's where they cannot be used and were not insisted on."""
    try:
        return choose()
    except (NativeUnavailable, TritonUnavailable) as error:
        if setting == ours:
            raise
        _logger.warning("Attention runs on the torch path, which is slower: %s", error)
        return Kernels("torch", str(error))


def _native(load: Callable[[], NativeLibrary]) -> Kernels:
    library = load()
    _logger.info("Attention runs on our kernels (%s).", library.instructions)
    return Kernels("native", f"compiled for {library.instructions}", library)


def _triton(device: str, check: Callable[[str], None]) -> Kernels:
    check(device)
    _logger.info("Attention runs on our Triton kernels.")
    return Kernels("triton", f"on {device}")


def check_triton(device: str) -> None:
    """Raise if the Triton kernels cannot run on ``device``.

    Raises:
        ConfigError: the device is not for them.
        TritonUnavailable: Triton cannot be imported.
    """
    try:
        from agentrt.engine.triton.device import check_device
    except ImportError as error:
        raise TritonUnavailable(
            f"Triton cannot be imported ({error}).",
            remedy="Install it (pip install 'triton>=3.6'; CUDA builds of torch bring it), or use "
            "the torch path (attention='torch').",
        ) from error
    check_device(torch.device(device))


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

    On the native kernels, keys and values of another ``kv_dtype`` than ``auto`` are for torch, and
    the log says so.

    Raises:
        ConfigError: the device cannot read this ``kv_dtype``, or there is none of this name.
    """
    if kernels.kind == "triton":
        from agentrt.engine.attention.triton_paged import TritonPagedAttention

        return TritonPagedAttention(config, num_pages, page_size, dtype, device, kv_dtype)
    if kv_dtype != "auto" and kernels.library is not None:
        _logger.info("KV is kept in %s: attention runs on the torch path, slower.", kv_dtype)
    if kv_dtype != "auto" or kernels.library is None:
        return TorchPagedAttention(config, num_pages, page_size, dtype, device, kv_dtype)
    return NativePagedAttention(kernels.library, config, num_pages, page_size, dtype)


def warm_up(model: Model, attention: Attention) -> None:
    """Run each kind of step once where kernels are compiled at first use, so that no turn waits.

    Call it while no page holds anything: the first pages are written to.
    """
    if not isinstance(attention, StaticAttention):
        return
    room = attention.num_pages * attention.page_size
    pages = range(attention.num_pages)
    for count in dict.fromkeys(min(count, room) for count in WARM_UP):
        step = attention.plan(BatchLayout((SliceLayout(0, count, pages),)))
        tokens = torch.zeros(count, dtype=torch.int64, device=model.device)
        positions = torch.arange(count, device=model.device)
        model.forward(tokens, positions, step, positions[:1])


def prepare(model: Model, kernels: Kernels, quant: str | None = None) -> None:
    """Bring a loaded model's weights into the order that its kernels read; changes ``model``.

    bf16 on CPU is packed by our kernels, else by oneDNN, else left as it is (and the log says so).
    fp32, other devices, and models that transformers computes keep their weights. The operations
    between linear layers run on the chosen kernels from now on.

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
    if kernels.kind == "triton":
        from agentrt.engine.model.triton_ops import TritonOps

        model.rebuild(_with_product, TritonOps())
    elif library is not None:
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


def _with_product(layer: LinearLayer) -> LinearLayer:
    """Have few rows multiplied with fp8 weights as they are."""
    from agentrt.engine.triton.linear8 import linear8

    return layer.with_product(linear8) if isinstance(layer, Fp8Linear) else layer


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
