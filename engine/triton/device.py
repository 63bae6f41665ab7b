"""What the kernels need to know of where they run."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from agentrt.engine.triton.interpreter import mend_interpreter
from agentrt.errors import ConfigError

__all__ = ["check_device", "dot_dtype", "interpreted", "multiprocessors"]

INTERPRETER_PROCESSORS = 4
"""What Triton's interpreter counts for: enough to have work split, in little time."""
FP8_CAPABILITY = (8, 9)

_DOT = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


def interpreted() -> bool:
    """Say whether Triton interprets its kernels on the CPU (``TRITON_INTERPRET=1``)."""
    return bool(triton.knobs.runtime.interpret)


def check_device(device: torch.device, kv_dtype: str = "auto") -> None:
    """Raise if the kernels cannot run on ``device``, or not with keys and values in ``kv_dtype``.

    Raises:
        ConfigError: neither CUDA nor the interpreter, or fp8 on a GPU that does not know it.
    """
    if device.type != "cuda":
        if interpreted() and device.type == "cpu":
            mend_interpreter()
            return
        raise ConfigError(
            f"The Triton kernels run on CUDA, not on {device}.",
            remedy="Use the device cuda or the setting auto; TRITON_INTERPRET=1 interprets them, "
            "thousands of times slower.",
        )
    if kv_dtype == "fp8" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise ConfigError(
            f"{torch.cuda.get_device_name(device)} cannot read fp8.",
            remedy="Use kv_dtype int8, or auto.",
        )


def multiprocessors(device: torch.device) -> int:
    """Return how many programs of a kernel ``device`` runs beside each other, at one each."""
    if device.type != "cuda":
        return INTERPRETER_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def dot_dtype(dtype: torch.dtype) -> tl.dtype:
    """Return what matrix products of ``dtype`` multiply.

    The interpreter computes with numpy, which knows no bfloat16: there it is fp32.
    """
    return tl.float32 if interpreted() else _DOT[dtype]
