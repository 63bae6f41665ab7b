"""Every kernel becomes machine code for an H100, with or without one.

The interpreter knows neither shared memory nor registers, nor types that do not fit; the compiler
knows them.
"""

from __future__ import annotations

import pytest

SHARED = 227 * 1024
REGISTERS = 65536


@pytest.fixture(scope="module")
def kernels(compiled):
    return compiled("compiling")


def attending(kernels, phases):
    return [
        one
        for one in kernels
        if one["kernel"] == "attend_kernel" and one["constants"]["PHASES"] == phases
    ]


def test_all_compile_and_fit_the_processor(kernels):
    assert {one["kernel"] for one in kernels} == {
        "attend_kernel", "merge_kernel", "plan_kernel", "rotate_store_kernel", "store_kernel",
        "add_norm_kernel", "silu_mul_kernel",
    }  # fmt: skip
    for one in kernels:
        assert one["shared"] <= SHARED, one
        assert one["registers"] * one["warps"] * 32 <= REGISTERS, one
        assert one["stack"] == 0, one  # nothing is spilled to memory


def test_a_decode_keeps_blocks_on_their_way_and_leaves_room_for_other_programs(kernels):
    decodes = [one for one in attending(kernels, 1) if one["label"] != "wide"]
    assert {one["label"] for one in decodes} == {"half", "int8", "fp8", "window"}
    for one in decodes:
        assert one["asynchronous"] > 0, one
        assert one["tensor_cores"] > 0, one
        assert 3 * one["shared"] <= SHARED, one
        assert 3 * one["registers"] * one["warps"] * 32 <= REGISTERS, one


def test_a_prefill_runs_on_warp_groups_and_fp32_on_no_tensor_core(kernels):
    for one in attending(kernels, 2):
        if one["label"] == "wide":  # tf32 would not be exact
            assert one["tensor_cores"] == 0, one
        else:
            assert one["warp_groups"] > 0, one
            assert one["asynchronous"] > 0, one
