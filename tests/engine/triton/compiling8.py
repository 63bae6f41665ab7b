"""Compiles products with fp8 weights for a GPU that need not be there; prints what came out.

``python -m tests.engine.triton.compiling8`` must run without ``TRITON_INTERPRET``. It makes machine
code for sm_90 (H100 and H200) with the assembler that comes with Triton.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from agentrt.engine.triton.linear8 import product_kernel, tiling

POINTERS = {"x_ptr": "*bf16", "weight_ptr": "*fp8e4nv", "scale_ptr": "*fp32", "out_ptr": "*fp32"}
NUMBERS = {"rows": "i32", "outputs": "i32", "inputs": "i32"}
ALIGNED = ("x_ptr", "weight_ptr", "scale_ptr", "out_ptr", "outputs", "inputs")


def compiled(rows: int) -> dict[str, Any]:
    """Compile the product of ``rows`` with a weight of an 8B model; return what matters of it."""
    tile = tiling(rows, 6144, 4096)
    constants = {
        "STEPS": 4096 // tile.inputs // tile.parts,
        "OUTPUTS": tile.outputs,
        "INPUTS": tile.inputs,
        "COLUMNS": tile.columns,
        "DOT": tl.bfloat16,
    }
    signature = {**POINTERS, **NUMBERS, **dict.fromkeys(constants, "constexpr")}
    place = {name: (index,) for index, name in enumerate(signature)}
    source = ASTSource(
        product_kernel,
        signature,
        {place[name]: value for name, value in constants.items()},
        {place[name]: [["tt.divisibility", 16]] for name in ALIGNED},
    )
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx = made.asm["ptx"]
    return {
        "columns": tile.columns,
        "shared": made.metadata.shared,
        "widened": ptx.count("e4m3x2"),
        "warp_groups": ptx.count("wgmma.mma_async"),
        "asynchronous": ptx.count("cp.async"),
        "cubin": len(made.asm["cubin"]),
    }


if __name__ == "__main__":
    json.dump([compiled(rows) for rows in (1, 256)], sys.stdout)
