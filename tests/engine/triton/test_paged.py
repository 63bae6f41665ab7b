"""Paged attention in Triton against the torch path's pages and dense attention in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.engine.attention import BatchLayout, SliceLayout
from agentrt.engine.attention.base import (
    DecodeBuffers,
    OperandStep,
    RawAttentionStep,
    StaticAttention,
)
from agentrt.engine.model.ops import rms_norm
from agentrt.engine.model.rope import rotate
from agentrt.errors import ConfigError, InternalError
from tests.engine.shapes import shape
from tests.engine.triton.batches import RAGGED, Batch, off

# Of the largest exact value: fp32 for hundreds of terms; bf16 for three roundings, and the
# interpreter cuts where hardware rounds.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2**-6}


@pytest.fixture
def make(device, configs):
    """Return ``make(batch) -> attention`` with the batch's earlier tokens in its pages."""
    from agentrt.engine.attention.triton_paged import TritonPagedAttention

    def attention(batch):
        made = TritonPagedAttention(
            batch.config, batch.pages, batch.page, batch.dtype, device, batch.kv_dtype,
            configs=configs,
        )  # fmt: skip
        batch.fill(made)
        return made

    return attention


def run(batch, attention, layer=0):
    """Attend one layer; check the pages against the torch path's, bit by bit."""
    q, k, v = batch.split(batch.heads)
    result = attention.plan(batch.layout).attend(layer, q, k, v)
    batch.oracle.plan(batch.layout).attend(layer, q, k, v)
    same_pages(attention, batch.oracle)
    return result, batch.exact(attention, layer, q)


def same_pages(attention, oracle):
    for mine, its in zip(attention.page_tensors, oracle.page_tensors, strict=True):
        assert torch.equal(mine.view(torch.uint8), its.view(torch.uint8))


@pytest.mark.parametrize(
    ("group", "dtype"),
    [*((group, torch.float32) for group in (1, 3, 4, 7, 8)), (4, torch.bfloat16)],
    ids=str,
)
def test_every_head_ratio_is_exact_to_rounding(make, device, group, dtype):
    batch = Batch(shape(2 * group, 2, 32), RAGGED, 16, dtype, device)
    result, exact = run(batch, make(batch))
    assert result.dtype == dtype
    assert off(result, exact) <= LIMITS[dtype]


@pytest.mark.parametrize("dim", [16, 80, 128])
def test_every_head_dim_is(make, device, dim):
    batch = Batch(shape(4, 2, dim), RAGGED, 16, torch.float32, device)
    assert off(*run(batch, make(batch))) <= LIMITS[torch.float32]


@pytest.mark.parametrize("page", [1, 3, 64])
def test_every_page_size_is(make, device, page):
    batch = Batch(shape(6, 2, 32), RAGGED, page, torch.float32, device)
    assert off(*run(batch, make(batch))) <= LIMITS[torch.float32]


@pytest.mark.parametrize("window", [1, 18])
def test_windows_hide_what_is_older(make, device, window):
    batch = Batch(shape(3, 1, 32, (None, window)), RAGGED, 16, torch.float32, device)
    assert off(*run(batch, make(batch), 1)) <= LIMITS[torch.float32]


@pytest.mark.parametrize(
    ("kv_dtype", "dtype"),
    [("int8", torch.float32), ("fp8", torch.float32), ("int8", torch.bfloat16)],
    ids=str,
)
def test_eight_bits_are_rounded_as_the_torch_path_does_and_read_exactly(
    make, device, kv_dtype, dtype
):
    batch = Batch(shape(6, 2, 32), RAGGED, 16, dtype, device, kv_dtype)
    batch.heads *= torch.logspace(-4, 2, len(batch.heads))[:, None, None].to(batch.heads)
    attention = make(batch)
    result, exact = run(batch, attention)
    assert off(result, exact) <= LIMITS[dtype]


@settings(max_examples=8)
@given(data=st.data())
def test_any_batch_is_dense_attention(device, configs, data):
    from agentrt.engine.attention.triton_paged import TritonPagedAttention

    counts = st.sampled_from([1, 1, 1, 2, 5, 17])
    slices = data.draw(st.lists(st.tuples(st.integers(0, 70), counts), min_size=1, max_size=3))
    heads = data.draw(st.sampled_from([(1, 1), (2, 1), (6, 2), (20, 1)]))
    page = data.draw(st.sampled_from([1, 2, 5, 16, 64]))
    window = data.draw(st.one_of(st.none(), st.integers(1, 60)))
    seed = data.draw(st.integers(0, 10**6))
    processors = data.draw(st.sampled_from([1, 3, 16]))
    config = shape(*heads, 16, (window,))
    batch = Batch(config, slices, page, torch.float32, device, seed=seed)
    attention = TritonPagedAttention(
        config, batch.pages, page, torch.float32, device, processors=processors, configs=configs
    )
    batch.fill(attention)
    assert off(*run(batch, attention)) <= LIMITS[torch.float32]


@pytest.mark.parametrize(
    ("kv_dtype", "norm"), [("auto", True), ("auto", False), ("int8", True), ("fp8", False)]
)
def test_norm_rotation_and_store_in_one_call_are_those_of_the_torch_path(
    make, device, norm, kv_dtype
):
    config = shape(6, 2, 32)
    batch = Batch(config, RAGGED, 16, torch.float32, device, kv_dtype)
    attention, generator = make(batch), torch.Generator().manual_seed(3)
    weight = torch.rand(8, 32, generator=generator).to(device) + 0.5 if norm else None
    angles = torch.rand(len(batch.heads), 16, generator=generator).to(device) * 6
    rotation = (angles.cos(), angles.sin())
    step = attention.plan(batch.layout)
    assert isinstance(step, RawAttentionStep)
    assert not isinstance(step, OperandStep)
    result = step.attend_raw(0, batch.heads.clone(), weight, 1e-6, rotation)

    q, k, v = batch.split(batch.heads)
    qk = torch.cat((q, k), 1)
    qk = qk if weight is None else rms_norm(qk, weight, 1e-6)
    q, k = rotate(qk, *(side[:, None] for side in rotation)).tensor_split((6,), dim=1)
    batch.oracle.plan(batch.layout).attend(0, q, k, v)
    close = {"auto": 1e-6, "int8": 0.02, "fp8": 0.07}[kv_dtype]
    for table in batch.tables:  # a number may fall on the other side of a half
        mine, its = (batch.read(one, 0, table) for one in (attention, batch.oracle))
        assert torch.allclose(mine, its, rtol=close, atol=close, equal_nan=True)
    assert off(result, batch.exact(attention, 0, q)) <= LIMITS[torch.float32]


class TestStatic:
    """Steps over buffers: what a captured decode runs again and again."""

    def buffers(self, batch, padding):
        width = max(len(table) for table in batch.tables) + 3
        lengths = torch.zeros(len(batch.tables) + padding, dtype=torch.int32)
        pages = torch.full((len(lengths), width), 10**9, dtype=torch.int32)  # never followed
        for row, ((start, _), table) in enumerate(zip(batch.slices, batch.tables, strict=True)):
            lengths[row] = start + 1
            pages[row, : len(table)] = torch.tensor(table, dtype=torch.int32)
        return DecodeBuffers(lengths.to(batch.device), pages.to(batch.device))

    @pytest.mark.parametrize("window", [None, 20])
    def test_it_is_what_a_planned_step_computes_bit_by_bit(self, make, device, window):
        slices = [(0, 1), (69, 1), (31, 1), (32, 1), (7, 1)]
        batch = Batch(shape(6, 2, 32, (None, window)), slices, 16, torch.float32, device)
        attention = make(batch)
        assert isinstance(attention, StaticAttention)
        step = attention.plan_decode(self.buffers(batch, padding=3))
        padded = torch.cat((batch.heads, torch.full_like(batch.heads[:3], float("nan"))))
        q, k, v = batch.split(padded)
        for layer in (0, 1):
            planned, exact = run(batch, make(batch), layer)
            static = step.attend(layer, q, k, v)
            assert torch.equal(static[:5], planned)
            assert off(static[:5], exact) <= LIMITS[torch.float32]
            assert not static[5:].any()
            batch.oracle.plan(batch.layout).attend(layer, *batch.split(batch.heads))
        same_pages(attention, batch.oracle)  # and padding stored nothing

    def test_it_follows_its_buffers(self, make, device):
        first = Batch(shape(2, 1, 16), [(70, 1), (5, 1)], 16, torch.float32, device, seed=1)
        attention = make(first)
        buffers = self.buffers(first, padding=1)
        step = attention.plan_decode(buffers)
        padded = torch.cat((first.heads, first.heads[:1]))
        before = step.attend(0, *first.split(padded))[:2]
        assert off(before, first.exact(attention, 0, first.split(first.heads)[0])) <= 1e-5
        # One sequence ended, the other goes on at its place, and a row is padding now.
        first.slices, first.tables = [(6, 1)], first.tables[1:]
        moved = self.buffers(first, padding=2)
        buffers.lengths.copy_(moved.lengths)
        buffers.pages[:, : moved.pages.shape[1]].copy_(moved.pages)
        after = step.attend(0, *first.split(padded))[:1]
        assert off(after, first.exact(attention, 0, first.split(padded[:1])[0])) <= 1e-5

    def test_wrong_buffers_are_refused(self, make, device):
        batch = Batch(shape(2, 1, 16), [(3, 1)], 16, torch.float32, device)
        right = self.buffers(batch, padding=0)
        wrong = DecodeBuffers(right.lengths.long(), right.pages)
        with pytest.raises(InternalError, match="contiguous int32"):
            make(batch).plan_decode(wrong)


class TestRefusals:
    @pytest.mark.parametrize(
        ("piece", "message"),
        [
            (SliceLayout(0, 0, [0]), "slice of 0 tokens"),
            (SliceLayout(16, 1, [0]), "needs 2 pages"),
            (SliceLayout(0, 1, [99]), "leaves the pool"),
        ],
    )
    def test_impossible_slices(self, make, device, piece, message):
        batch = Batch(shape(2, 1, 16), [(3, 1)], 16, torch.float32, device)
        with pytest.raises(InternalError, match=message):
            make(batch).plan(BatchLayout((piece,)))

    def test_devices_that_are_for_other_kernels(self):
        from agentrt.engine.triton.device import check_device

        with pytest.raises(ConfigError, match="run on CUDA, not on meta"):
            check_device(torch.device("meta"))
