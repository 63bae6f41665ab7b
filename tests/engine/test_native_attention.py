"""The native attention kernel against dense attention in fp64 and against the torch path."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.engine.attention import BatchLayout, SliceLayout, TorchPagedAttention
from agentrt.engine.attention.base import RawAttentionStep
from agentrt.engine.attention.native import NativePagedAttention, load_native
from agentrt.engine.model.ops import rms_norm
from agentrt.engine.model.rope import rotate
from agentrt.errors import InternalError
from tests.engine.shapes import shape

pytestmark = pytest.mark.requires_native

# Of the largest exact value: fp32 for thousands of terms, bf16 for its three roundings.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
RAGGED = [
    (0, 1),
    (0, 3),
    (15, 1),
    (16, 1),
    (63, 1),
    (255, 2),
    (256, 1),
    (700, 1),
    (300, 33),
    (0, 90),
]


@pytest.fixture(autouse=True, scope="module")
def _small_work(one_thread):
    """What several threads do is asked for where it is tested."""


@pytest.fixture(scope="module")
def library():
    return load_native()


class Batch:
    """Random sequences; each slice's earlier tokens are stored by a step of their own."""

    def __init__(self, config, slices, page, dtype, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.config, self.page, self.dtype = config, page, dtype
        self.slices = slices
        self.pages = sum(-(-(start + count) // page) for start, count in slices) + 2
        places = random.Random(seed).sample(range(self.pages), self.pages)
        self.tables = [
            [places.pop() for _ in range(-(-(start + count) // page))] for start, count in slices
        ]
        total = [start + count for start, count in slices]
        heads, kv, dim = config.num_heads, config.num_kv_heads, config.head_dim

        def draw(length, number):
            return torch.randn(length, number, dim, generator=generator).to(dtype)

        self.q = [draw(count, heads) for _, count in slices]
        self.k, self.v = [draw(n, kv) for n in total], [draw(n, kv) for n in total]

    def run(self, attention, layer=0):
        attention.kv.fill_(float("nan"))  # what was never written must never count
        for (start, _), table, k, v in zip(self.slices, self.tables, self.k, self.v, strict=True):
            if start:
                past = attention.plan(BatchLayout((SliceLayout(0, start, table),)))
                past.attend(
                    layer,
                    torch.zeros(start, *self.q[0].shape[1:], dtype=self.dtype),
                    k[:start],
                    v[:start],
                )
        step = attention.plan(
            BatchLayout(
                tuple(
                    SliceLayout(start, count, table)
                    for (start, count), table in zip(self.slices, self.tables, strict=True)
                )
            )
        )
        fresh = [
            torch.cat([x[-n:] for x, (_, n) in zip(side, self.slices, strict=True)])
            for side in (self.k, self.v)
        ]
        return step.attend(layer, torch.cat(self.q), *fresh)

    def exact(self, window=None):
        rows = []
        group = self.config.num_heads // self.config.num_kv_heads
        for (start, count), q, k, v in zip(self.slices, self.q, self.k, self.v, strict=True):
            q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
            k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
            query, key = torch.arange(start, start + count)[:, None], torch.arange(start + count)
            hidden = key > query
            if window is not None:
                hidden |= key <= query - window
            scores = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).masked_fill(hidden, float("-inf"))
            rows.append((scores.softmax(-1) @ v).transpose(0, 1))
        return torch.cat(rows)


def off(result, exact):
    return float((result.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("dtype", list(LIMITS), ids=str)
@pytest.mark.parametrize("dim", [64, 96, 128])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 8])
def test_every_head_ratio_is_exact_to_rounding(library, group, dim, dtype):
    config = shape(2 * group, 2, dim)
    batch = Batch(config, RAGGED, 16, dtype)
    result = batch.run(NativePagedAttention(library, config, batch.pages, 16, dtype))
    assert result.dtype == dtype
    assert off(result, batch.exact()) <= LIMITS[dtype]


@pytest.mark.parametrize("dtype", list(LIMITS), ids=str)
@pytest.mark.parametrize("page", [1, 3, 16, 32, 64])
def test_every_page_size_agrees_with_the_torch_path(library, page, dtype):
    config = shape(6, 2, 64)
    batch = Batch(config, RAGGED, page, dtype)
    native = batch.run(NativePagedAttention(library, config, batch.pages, page, dtype))
    oracle = batch.run(TorchPagedAttention(config, batch.pages, page, dtype))
    exact = batch.exact()
    assert off(native, oracle.double()) <= 2 * LIMITS[dtype]
    # It is no less exact than the oracle, but for the luck of single roundings.
    assert off(native, exact) <= 1.5 * off(oracle, exact) + 1e-6


@given(
    slices=st.lists(
        st.tuples(st.integers(0, 600), st.sampled_from([1, 1, 1, 2, 5, 8, 21, 40, 70])),
        min_size=1,
        max_size=6,
    ),
    heads=st.sampled_from([(1, 1), (2, 1), (6, 2), (7, 1), (8, 4), (9, 3), (20, 1), (70, 1)]),
    dim=st.sampled_from([2, 8, 16, 24, 64, 80]),
    page=st.sampled_from([1, 2, 3, 5, 16, 100]),
    window=st.one_of(st.none(), st.integers(1, 300)),
    dtype=st.sampled_from(list(LIMITS)),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=50)
def test_any_plan_is_dense_attention(library, slices, heads, dim, page, window, dtype, seed):
    config = shape(*heads, dim, windows=(None, window))
    batch = Batch(config, slices, page, dtype, seed)
    attention = NativePagedAttention(library, config, batch.pages, page, dtype)
    assert off(batch.run(attention, 1), batch.exact(window)) <= LIMITS[dtype]


@given(
    slices=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 700)), min_size=1, max_size=8),
    group=st.integers(1, 70),
    window=st.sampled_from([0, 1, 63, 64, 65, 1000]),
)
@settings(deadline=None)
def test_work_covers_every_query_and_key_once(library, slices, group, window):
    """Each query row has its visible keys in exactly one piece of work, and no part is empty."""
    first = [sum(count for _, count in slices[:i]) for i in range(len(slices))]
    table = torch.tensor(
        [[start, count, f, 0] for (start, count), f in zip(slices, first, strict=True)]
    )
    works, partial, arrived = library.plan(table, 2, group, 64, window)
    assert not arrived.any()
    seen: dict[tuple[int, int], list[tuple[int, int]]] = {}
    rows = 0
    for piece, row, count, low, high, part, parts, place in works.tolist():
        assert low < high
        assert 0 <= part < parts
        if parts > 1:
            assert place >= 0
            rows += count * group
        for token in range(row, row + count):
            seen.setdefault((piece, token), []).append((low, high))
    assert partial.shape[1] == rows
    assert len(seen) == sum(count for _, count in slices)
    for (piece, token), ranges in seen.items():
        position = slices[piece][0] + token
        assert ranges[0][0] <= (max(0, position - window + 1) if window else 0)
        assert ranges[-1][1] > position
        assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))


@pytest.mark.parametrize("dtype", list(LIMITS), ids=str)
def test_a_sequence_is_the_same_bits_in_any_company_on_any_threads(library, dtype):
    config = shape(6, 2, 64)
    batch = Batch(config, RAGGED, 16, dtype)
    together = batch.run(NativePagedAttention(library, config, batch.pages, 16, dtype))
    threads = torch.get_num_threads()
    done = 0
    try:
        for index, (_, count) in enumerate(RAGGED):
            alone = Batch(config, [(0, 1)], 16, dtype)
            for name in ("slices", "tables", "q", "k", "v"):
                setattr(alone, name, [getattr(batch, name)[index]])
            torch.set_num_threads(1 + index % 3)
            result = alone.run(NativePagedAttention(library, config, batch.pages, 16, dtype))
            assert torch.equal(result, together[done : done + count])
            done += count
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", list(LIMITS), ids=str)
def test_the_fused_call_does_what_the_steps_one_by_one_do(library, dtype, normed):
    config = shape(6, 2, 80)
    generator = torch.Generator().manual_seed(4)
    layout = BatchLayout((SliceLayout(0, 40, [2, 0, 3]), SliceLayout(0, 1, [1])))
    heads = torch.randn(41, 10, 80, generator=generator).to(dtype)
    weight = torch.randn(8, 80, generator=generator).to(dtype) if normed else None
    angle = torch.randn(41, 40, generator=generator)
    rotation = (angle.cos(), angle.sin())
    fused = NativePagedAttention(library, config, 4, 16, dtype)
    step = fused.plan(layout)
    assert isinstance(step, RawAttentionStep)
    result = step.attend_raw(0, heads.clone(), weight, 1e-6, rotation)
    single = NativePagedAttention(library, config, 4, 16, dtype)
    qk = heads[:, :8] if weight is None else rms_norm(heads[:, :8], weight, 1e-6)
    turned = rotate(qk.float(), *(x.unsqueeze(1) for x in rotation)).to(dtype)
    expected = single.plan(layout).attend(0, turned[:, :6], turned[:, 6:], heads[:, 8:])
    assert off(result, expected.double()) <= 2 * LIMITS[dtype]
    assert off(fused.kv[0], single.kv[0].double()) <= LIMITS[dtype]
    assert torch.equal(fused.kv[0, 1], single.kv[0, 1])


def test_a_broken_sequence_shows_and_breaks_no_other(library):
    config = shape(6, 2, 64)
    batch = Batch(config, [(100, 1), (90, 5)], 16, torch.bfloat16)
    batch.k[0][50] = float("nan")
    result = batch.run(NativePagedAttention(library, config, batch.pages, 16, torch.bfloat16))
    assert result[0].isnan().all()
    assert not result[1:].isnan().any()


def test_a_table_that_changes_in_place_is_read_anew(library):
    """Page tables are live lists: pages are appended, and shared ones replace a turn's own."""
    config = shape(2, 1, 64)
    attention = NativePagedAttention(library, config, 8, 4, torch.float32)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(9, n, 64, generator=generator) for n in (2, 1, 1))
    table = [5, 2]
    attention.plan(BatchLayout((SliceLayout(0, 8, table),))).attend(0, q[:8], k[:8], v[:8])
    last = BatchLayout((SliceLayout(8, 1, [5, 2, 7]),))
    expected = attention.plan(last).attend(0, q[8:], k[8:], v[8:])
    attention.kv[0, :, 6] = attention.kv[0, :, 5]
    attention.kv[0, :, 5] = 0
    table[0] = 6
    table.append(3)
    moved = BatchLayout((SliceLayout(8, 1, table),))
    assert torch.equal(attention.plan(moved).attend(0, q[8:], k[8:], v[8:]), expected)


@pytest.mark.parametrize(
    "piece",
    [
        SliceLayout(0, 0, [0]),
        SliceLayout(-1, 1, [0]),
        SliceLayout(15, 2, [0]),
        SliceLayout(0, 1, [8]),
        SliceLayout(0, 1, [-1]),
        SliceLayout(20, 4, [9, 1]),
    ],
)
def test_a_wrong_page_table_is_refused(library, piece):
    attention = NativePagedAttention(library, shape(2, 1, 8), 8, 16, torch.float32)
    with pytest.raises(InternalError):
        attention.plan(BatchLayout((piece,)))
