"""The store on its own: padding, strided sources, and every number that eight bits know."""

from __future__ import annotations

import torch

from agentrt.engine.attention.quantized import FP8_MAX


def pages(count, heads, size, dim, device, dtype=torch.float32, scaled=False):
    from agentrt.engine.triton.work import LayerPages

    keys, values = torch.zeros(2, count, heads, size, dim, device=device).to(dtype)
    scales = torch.zeros(2, count, heads, size, device=device) if scaled else (None, None)
    return LayerPages(keys, values, *scales)


def test_fp8_is_what_torch_rounds_to_for_every_kind_of_number(device):
    from agentrt.engine.triton.store import store

    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    halves = (every[:126] + every[1:127]) / 2  # ties, which go to even
    small = torch.linspace(-0.02, 0.02, 201)
    large = torch.tensor([1e9, -1e9, 448.1, 464.0, -470.0, float("inf"), -float("inf"), 1e-30])
    numbers = torch.cat((every, halves, -halves, small, large))
    rows = torch.nn.functional.pad(numbers, (0, -len(numbers) % 64)).view(-1, 1, 64).to(device)
    to = pages(len(rows), 1, 1, 64, device, torch.float8_e4m3fn)
    store(rows, rows, torch.arange(len(rows), dtype=torch.int32, device=device), to)
    right = rows.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    mine = to.keys.flatten().view(torch.uint8)
    nan = right.flatten().float().isnan()
    assert torch.equal(mine[~nan], right.flatten().view(torch.uint8)[~nan])
    assert bool((mine[nan] & 0x7F == 0x7F).all())
    assert torch.equal(to.values.view(torch.uint8), to.keys.view(torch.uint8))


def test_zeros_in_int8_stay_zero_and_halves_go_to_even(device):
    from agentrt.engine.triton.store import store

    rows = torch.zeros(2, 1, 16, device=device)
    rows[1, 0, :6] = torch.tensor([127.0, 0.5, 1.5, -2.5, -127.0, 126.49], device=device)
    to = pages(1, 1, 2, 16, device, torch.int8, scaled=True)
    store(rows, rows, torch.arange(2, dtype=torch.int32, device=device), to)
    assert not to.keys[0, 0, 0].any()
    assert to.keys[0, 0, 1, :6].tolist() == [127, 0, 2, -2, -127, 126]
    assert to.key_scales[0, 0, 1] == 1.0


def test_padding_stores_nothing_and_sources_may_be_strided(device):
    from agentrt.engine.triton.store import store

    source = torch.randn(3, 2, 5, 32, device=device)  # [T, side, heads, dim]
    k, v = source[:, 0, 1:4], source[:, 1, 1:4]
    to = pages(4, 3, 2, 32, device)
    slots = torch.tensor([5, -1, 2], dtype=torch.int32, device=device)
    store(k, v, slots, to)
    for mine, its in ((to.keys, k), (to.values, v)):
        assert torch.equal(mine[2, :, 1], its[0])
        assert torch.equal(mine[1, :, 0], its[2])
        assert int((mine != 0).any(-1).sum()) == 2 * 3


def test_padding_is_rotated_but_not_stored(device):
    from agentrt.engine.triton.store import rotate_store

    heads = torch.randn(2, 4, 32, device=device)
    was = heads.clone()
    angles = torch.full((2, 16), 0.5, device=device)
    to = pages(1, 1, 2, 32, device)
    slots = torch.tensor([-1, 1], dtype=torch.int32, device=device)
    rotate_store(heads, None, 0.0, (angles.cos(), angles.sin()), slots, to)
    assert not to.keys[0, 0, 0].any()
    assert not to.values[0, 0, 0].any()
    assert torch.equal(to.values[0, 0, 1], was[1, 3])
    assert torch.equal(heads[:, 2:], was[:, 2:])  # keys and values of the batch stay as they are
    assert not torch.equal(heads[:, :2], was[:, :2])
