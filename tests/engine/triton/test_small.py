"""Norms and activation in Triton against torch."""

from __future__ import annotations

import pytest
import torch

from agentrt.engine.model.ops import TorchOps

# bf16: the interpreter cuts where hardware and torch round, up to three times in a row.
LIMITS = {torch.float32: 1e-6, torch.bfloat16: 2**-6}


def close(mine, its):
    limit = LIMITS[mine.dtype]
    assert mine.dtype == its.dtype
    assert torch.allclose(mine, its, rtol=limit, atol=limit)


@pytest.fixture
def draw(device):
    generator = torch.Generator().manual_seed(2)
    return lambda *shape, dtype: torch.randn(*shape, generator=generator).to(dtype).to(device)


@pytest.mark.parametrize("dtype", list(LIMITS), ids=str)
@pytest.mark.parametrize("hidden", [64, 96, 1000])
@pytest.mark.parametrize("add", [True, False])
def test_add_norm(draw, dtype, hidden, add):
    from agentrt.engine.model.triton_ops import TritonOps

    x, weight = draw(5, hidden, dtype=dtype), draw(hidden, dtype=dtype)
    delta = draw(5, hidden, dtype=dtype) if add else None
    stream, normed = TorchOps().add_norm(x.clone(), delta, weight, 1e-5)
    mine, mine_normed = TritonOps().add_norm(x.clone(), delta, weight, 1e-5)
    close(mine, stream)
    close(mine_normed, normed)


def test_a_stream_is_added_to_in_place_and_no_rows_are_no_work(draw):
    from agentrt.engine.model.triton_ops import TritonOps

    x, weight = draw(2, 64, dtype=torch.float32), torch.ones(64).to(draw(1, dtype=torch.float32))
    was = x.clone()
    stream, _ = TritonOps().add_norm(x, x.clone(), weight, 1e-6)
    assert stream is x
    assert torch.equal(x, 2 * was)
    assert TritonOps().add_norm(x[:0], None, weight, 1e-6)[1].shape == (0, 64)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of numpy, which interprets
@pytest.mark.parametrize("dtype", list(LIMITS), ids=str)
@pytest.mark.parametrize("width", [48, 1500])
def test_silu_mul(draw, dtype, width):
    from agentrt.engine.model.triton_ops import TritonOps

    both = 5 * draw(3, 2 * width, dtype=dtype)
    both[0, 0], both[0, 1] = -200.0, 200.0  # the exponential overflows, the result does not
    close(TritonOps().silu_mul(both), TorchOps().silu_mul(both))
