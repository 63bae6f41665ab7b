"""Compiles what the launchers launch for a GPU that need not be there; prints what came out.

``python -m tests.engine.triton.compiling`` must run without ``TRITON_INTERPRET``. Launches are
recorded with their arguments instead of being run, and compiled to machine code for sm_90 (H100 and
H200) with the assembler that comes with Triton.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction
from triton.runtime.jit import mangle_type

from agentrt.engine.attention import BatchLayout, SliceLayout, triton_paged
from agentrt.engine.attention.base import DecodeBuffers
from agentrt.engine.model.triton_ops import TritonOps
from tests.engine.shapes import shape

TARGET = GPUTarget("cuda", 90, 32)
TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
OPTIONS = ("num_warps", "num_stages")
SHORT = SliceLayout(5, 3, [2])
REST = (SliceLayout(99, 1, [0, 1]), SliceLayout(0, 90, [3, 4]))


class Recorder:
    """Stands in for ``JITFunction.run``: keeps each new kind of launch."""

    def __init__(self):
        self.launches = {}
        self.label = ""

    def run(self, kernel, *args, grid, warmup, **kwargs):
        del grid, warmup
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        names = [param.name for param in kernel.params]
        bound = dict(zip(names, args, strict=False)) | kwargs
        assert set(bound) == set(names), kernel
        signature, constants, attributes = {}, {}, {}
        for index, param in enumerate(kernel.params):
            value = bound[param.name]
            one = isinstance(value, int) and value == 1 and not param.do_not_specialize
            if param.is_constexpr or one:
                signature[param.name] = "constexpr"
                constants[param.name] = value
                continue
            signature[param.name] = mangle_type(value)
            whole = value.data_ptr() if hasattr(value, "data_ptr") else value
            if isinstance(whole, int) and whole % 16 == 0 and not param.do_not_specialize:
                attributes[index,] = [["tt.divisibility", 16]]
        key = (kernel.__name__, json.dumps([signature, constants], default=str), str(options))
        if key not in self.launches:
            source = ASTSource(kernel, signature, constants, attributes)
            self.launches[key] = (self.label, source, options)


def launch_all(recorder):
    """Call every launcher as an engine does, over the shapes that are worth a look."""
    bf16 = torch.bfloat16
    for label, config, dtype, kv_dtype in (
        ("half", shape(32, 8, 128), bf16, "auto"),
        ("int8", shape(32, 8, 128), bf16, "int8"),
        ("fp8", shape(32, 8, 128), bf16, "fp8"),
        ("window", shape(14, 2, 64, (100,)), bf16, "auto"),
        ("wide", shape(16, 8, 64), torch.float32, "auto"),
    ):
        recorder.label = label
        attention = triton_paged.TritonPagedAttention(
            config, 8, 64, dtype, "cpu", kv_dtype, processors=132
        )
        q_heads, heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
        layout = BatchLayout((*REST, SHORT) if label == "half" else REST)  # one is like another
        rows = torch.zeros(layout.tokens, q_heads + 2 * heads, dim, dtype=dtype)
        angles = torch.zeros(layout.tokens, dim // 2)
        norm = torch.ones(q_heads + heads, dim, dtype=dtype)
        step = attention.plan(layout)
        step.attend_raw(0, rows, norm, 1e-6, (angles, angles))
        step.attend(0, *rows.tensor_split((q_heads, q_heads + heads), dim=1))
        lengths, pages = torch.ones(4, dtype=torch.int32), torch.zeros(4, 9, dtype=torch.int32)
        static = attention.plan_decode(DecodeBuffers(lengths, pages))
        static.attend_raw(0, rows[:4], norm, 1e-6, (angles[:4], angles[:4]))
    recorder.label = "half"
    x = torch.zeros(4, 4096, dtype=bf16)
    TritonOps().add_norm(x, x.clone(), x[0], 1e-6)
    TritonOps().silu_mul(torch.zeros(4, 2 * 12288, dtype=bf16))


def resources(cubin):
    """Return registers a thread and bytes of stack, which are spills and little else."""
    with TemporaryDirectory() as where:
        file = Path(where) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [str(TOOL), "--dump-resource-usage", str(file)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    [(registers, stack)] = re.findall(r"REG:(\d+) STACK:(\d+)", said)
    return {"registers": int(registers), "stack": int(stack)}


def compiled(launch):
    """Compile one launch; return what is worth knowing of it."""
    label, source, options = launch
    made = triton.compile(source, target=TARGET, options=options)
    ptx = made.asm["ptx"]
    constants = source.constants
    named = {
        name: source.constants[(index,)]
        for index, name in enumerate(source.signature)
        if (index,) in constants
    }
    return {
        "label": label,
        "kernel": source.fn.__name__,
        "constants": {name: value for name, value in named.items() if isinstance(value, int)},
        "warps": options["num_warps"],
        "shared": made.metadata.shared,
        "asynchronous": ptx.count("cp.async"),
        "tensor_cores": ptx.count("mma.sync") + ptx.count("wgmma.mma_async"),
        "warp_groups": ptx.count("wgmma.mma_async"),
        **resources(made.asm["cubin"]),
    }


def main():
    recorder = Recorder()
    JITFunction.run = lambda kernel, *args, **kwargs: recorder.run(kernel, *args, **kwargs)
    triton_paged.check_device = lambda device, kv_dtype="auto": None
    launch_all(recorder)
    json.dump([compiled(launch) for launch in recorder.launches.values()], sys.stdout)


if __name__ == "__main__":
    main()
