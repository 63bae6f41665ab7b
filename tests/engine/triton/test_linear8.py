"""Products with fp8 weights: the kernel against the widened weights, over shapes and cuts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from agentrt.engine.model.fp8 import Fp8Linear, dequantize, quantize
from agentrt.engine.triton.linear8 import MOST_PARTS, Tiling, linear8, tiling

SMALL = Tiling(outputs=32, inputs=32, columns=16, parts=1)


def weight(outputs: int, inputs: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(outputs * inputs)
    # Rows of very different sizes: a scale that is mixed up shows.
    sizes = torch.logspace(-2, 2, outputs)[:, None]
    kept, scales = quantize(torch.randn(outputs, inputs, generator=random) * sizes)
    return kept.to(device), scales.to(device)


def rows(count: int, inputs: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    random = torch.Generator().manual_seed(count)
    return torch.randn(count, inputs, generator=random).to(device, dtype)


def exact(x: torch.Tensor, kept: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    wide = dequantize(kept, scales, torch.float32).double()
    return (x.double() @ wide.T).float()


def check(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Compare each output with the size of its own sums."""
    assert found.dtype == torch.float32
    size = wanted.norm(dim=0, keepdim=True) / wanted.shape[0] ** 0.5 + 1e-30
    assert ((found - wanted).abs() / size).max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("count", "outputs", "inputs", "parts"),
    [
        (1, 64, 64, 1),  # whole tiles
        (1, 33, 70, 1),  # the ends of tiles are empty
        (5, 48, 96, 3),  # as many parts as steps
        (16, 40, 200, 2),  # parts of unequal steps
        (17, 32, 40, 4),  # two blocks of rows; parts with nothing to sum
        (40, 65, 33, 2),
    ],
)
def test_the_kernel_multiplies(
    device: torch.device, count: int, outputs: int, inputs: int, parts: int, dtype: torch.dtype
) -> None:
    kept, scales = weight(outputs, inputs, device)
    x = rows(count, inputs, dtype, device)
    tile = Tiling(SMALL.outputs, SMALL.inputs, SMALL.columns, parts)
    check(linear8(x, kept, scales, tile), exact(x, kept, scales))


def test_a_row_does_not_depend_on_the_others(device: torch.device) -> None:
    kept, scales = weight(40, 64, device)
    x = rows(9, 64, torch.bfloat16, device)
    tile = Tiling(32, 32, 16, 2)
    whole = linear8(x, kept, scales, tile)
    for row in (0, 8):
        assert torch.equal(linear8(x[row : row + 1], kept, scales, tile)[0], whole[row])


def test_the_layer_runs_on_the_kernel(device: torch.device) -> None:
    kept, scales = weight(48, 64, device)
    bias = torch.arange(48.0).to(device, torch.bfloat16)
    plain = Fp8Linear(kept, scales, bias)
    x = rows(3, 64, torch.bfloat16, device)
    found = plain.with_product(linear8)(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, plain(x), rtol=2e-2, atol=0.5)


@pytest.mark.parametrize("count", [1, 2, 16, 17, 64, 256])
@pytest.mark.parametrize(("outputs", "inputs"), [(6144, 4096), (4096, 12288), (64, 64), (8, 128)])
def test_cuts_fill_the_device_and_leave_no_part_without_work(
    count: int, outputs: int, inputs: int
) -> None:
    tile = tiling(count, outputs, inputs)
    blocks = -(-outputs // tile.outputs) * -(-count // tile.columns)
    steps = -(-inputs // tile.inputs)
    assert 1 <= tile.parts <= MOST_PARTS
    assert tile.parts == 1 or steps // tile.parts >= 2
    assert tile.parts == 1 or blocks * tile.parts <= 4 * 132
    assert tile.columns >= min(count, 16)
    assert 16 <= tile.columns <= 64


@pytest.fixture(scope="module")
def kernels(compiled: Callable[[str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return compiled("compiling8")


def test_it_compiles_for_hopper_without_a_device(kernels: list[dict[str, Any]]) -> None:
    assert [one["columns"] for one in kernels] == [16, 64]
    for one in kernels:
        # Weights are widened in registers, on their way to the matrix units.
        assert one["widened"] > 0
        assert one["warp_groups"] > 0
        assert one["asynchronous"] > 0
        assert one["cubin"] > 0
        assert one["shared"] <= 227 << 10
    # Four programs of a multiprocessor wait for memory at the same time.
    assert 4 * kernels[0]["shared"] <= 227 << 10
