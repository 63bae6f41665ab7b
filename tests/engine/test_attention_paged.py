"""Paged attention against dense attention, over any mix of slices, pages and windows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrt.engine.attention import BatchLayout, SliceLayout, TorchPagedAttention, torch_paged
from agentrt.engine.attention import decode as decode_module
from agentrt.engine.attention import partial as partial_module
from agentrt.engine.attention.partial import (
    MASKED,
    merge,
    partial_attention,
    reference_attention,
)
from agentrt.engine.model import ModelConfig
from agentrt.errors import InternalError

TOLERANCE = 2e-6
LAYERS, KV_HEADS, GROUP, DIM = 2, 2, 3, 8


@pytest.fixture(scope="module")
def config(tiny_model_dir: Path) -> ModelConfig:
    return replace(
        ModelConfig.from_directory(tiny_model_dir),
        num_layers=LAYERS,
        num_heads=KV_HEADS * GROUP,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        windows=(None,) * LAYERS,
    )


class Sequences:
    """Whole sequences of random q, k and v, and their dense attention."""

    def __init__(
        self, lengths: Sequence[int], seed: int, dtype: torch.dtype = torch.float32
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def make(length: int, heads: int) -> torch.Tensor:
            return torch.randn(LAYERS, length, heads, DIM, generator=generator).to(dtype)

        self.q = [make(n, KV_HEADS * GROUP) for n in lengths]
        self.k = [make(n, KV_HEADS) for n in lengths]
        self.v = [make(n, KV_HEADS) for n in lengths]

    def dense(self, index: int, layer: int, window: int | None) -> torch.Tensor:
        """Return ``[tokens, heads, dim]`` in fp64, computed the obvious way."""
        q, k, v = (x[index][layer].double().transpose(0, 1) for x in (self.q, self.k, self.v))
        k, v = k.repeat_interleave(GROUP, 0), v.repeat_interleave(GROUP, 0)
        scores = q @ k.transpose(1, 2) / DIM**0.5
        query, key = torch.arange(q.shape[1])[:, None], torch.arange(q.shape[1])
        hidden = key > query
        if window is not None:
            hidden |= key <= query - window
        return (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(0, 1)


def replay(
    attention: TorchPagedAttention, sequences: Sequences, steps: Sequence[Sequence[int]], seed: int
) -> list[list[torch.Tensor]]:
    """Run all sequences in steps; ``steps[i]`` are the slice lengths of sequence ``i``.

    Returns the output of each sequence for each layer.
    """
    rng = random.Random(seed)
    free = rng.sample(range(attention.num_pages), attention.num_pages)
    size = attention.page_size
    tables = [[free.pop() for _ in range(-(-sum(cuts) // size))] for cuts in steps]
    done = [0] * len(steps)
    queues = [list(cuts) for cuts in steps]
    out: list[list[list[torch.Tensor]]] = [[[] for _ in range(LAYERS)] for _ in steps]
    while any(queues):
        live = [i for i, queue in enumerate(queues) if queue]
        batch = [i for i in live if rng.random() < 0.8] or live[:1]
        counts = [queues[i].pop(0) for i in batch]
        layout = BatchLayout(
            tuple(SliceLayout(done[i], n, tables[i]) for i, n in zip(batch, counts, strict=True))
        )
        step = attention.plan(layout)
        for layer in range(LAYERS):
            pieces = [
                torch.cat(
                    [x[i][layer][done[i] : done[i] + n] for i, n in zip(batch, counts, strict=True)]
                )
                for x in (sequences.q, sequences.k, sequences.v)
            ]
            result = step.attend(layer, *pieces)
            for i, rows in zip(batch, torch.split(result, counts), strict=True):
                out[i][layer].append(rows)
        for i, n in zip(batch, counts, strict=True):
            done[i] += n
    return [[torch.cat(parts) for parts in layers] for layers in out]


@given(
    steps=st.lists(
        st.lists(st.sampled_from([1, 1, 1, 2, 3, 7, 16, 33]), min_size=1, max_size=12),
        min_size=1,
        max_size=5,
    ),
    page=st.sampled_from([1, 3, 16]),
    chunk=st.sampled_from([16, 48]),
    windows=st.tuples(*[st.one_of(st.none(), st.integers(1, 60))] * LAYERS),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
def test_any_schedule_equals_dense_attention(
    config: ModelConfig,
    steps: list[list[int]],
    page: int,
    chunk: int,
    windows: tuple[int | None, ...],
    seed: int,
) -> None:
    sequences = Sequences([sum(cuts) for cuts in steps], seed)
    needed = sum(-(-sum(cuts) // page) for cuts in steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_paged, "CHUNK", chunk)
        patch.setattr(decode_module, "_GROUP_BYTES", 4096)
        shape = replace(config, windows=windows)
        attention = TorchPagedAttention(shape, needed + 3, page, torch.float32)
        attention.kv.fill_(float("nan"))  # what was never written must never count
        results = replay(attention, sequences, steps, seed)
    for index, layers in enumerate(results):
        for layer, result in enumerate(layers):
            expected = sequences.dense(index, layer, windows[layer])
            assert (result - expected).abs().max() <= TOLERANCE


def test_a_sequence_does_not_depend_on_its_company(config: ModelConfig) -> None:
    lengths = [300, 40, 700, 5]
    sequences = Sequences(lengths, seed=5)
    together = replay(
        TorchPagedAttention(config, 80, 16, torch.float32),
        sequences,
        [[n - 3, 1, 1, 1] for n in lengths],
        seed=1,
    )
    for index, length in enumerate(lengths):
        alone = Sequences([1], seed=0)
        alone.q, alone.k, alone.v = ([x[index]] for x in (sequences.q, sequences.k, sequences.v))
        pool = TorchPagedAttention(config, 80, 16, torch.float32)
        (single,) = replay(pool, alone, [[length - 3, 1, 1, 1]], seed=2)
        for mine, theirs in zip(single, together[index], strict=True):
            assert (mine - theirs).abs().max() <= TOLERANCE


def test_stored_pages_hold_keys_and_values_where_the_table_says(config: ModelConfig) -> None:
    attention = TorchPagedAttention(config, 6, 4, torch.float32)
    sequences = Sequences([10], seed=3)
    step = attention.plan(BatchLayout((SliceLayout(0, 10, [4, 0, 2]),)))
    step.attend(1, sequences.q[0][1], sequences.k[0][1], sequences.v[0][1])
    for position in range(10):
        page = [4, 0, 2][position // 4]
        assert torch.equal(attention.kv[1, 0, page, :, position % 4], sequences.k[0][1][position])
        assert torch.equal(attention.kv[1, 1, page, :, position % 4], sequences.v[0][1][position])
    untouched = attention.kv[:, :, [1, 3, 5]]
    assert not untouched.any()
    assert not attention.kv[0].any()


def test_bfloat16_stays_within_its_rounding(config: ModelConfig) -> None:
    sequences = Sequences([600], seed=9, dtype=torch.bfloat16)
    attention = TorchPagedAttention(config, 40, 16, torch.bfloat16)
    (layers,) = replay(attention, sequences, [[530, 1, 1, 60, 1, 7]], seed=1)
    for layer, result in enumerate(layers):
        assert result.dtype == torch.bfloat16
        expected = sequences.dense(0, layer, None)
        assert (result.double() - expected).abs().max() <= 2**-7 * expected.abs().max()


@pytest.mark.parametrize(
    "piece",
    [
        SliceLayout(0, 0, [0]),
        SliceLayout(-1, 1, [0]),
        SliceLayout(15, 2, [0]),
        SliceLayout(16, 1, [0]),
        SliceLayout(0, 1, [8]),
        SliceLayout(0, 1, [-1]),
        SliceLayout(20, 1, [9, 1]),
        SliceLayout(20, 4, [9, 1]),
    ],
)
def test_a_wrong_page_table_is_refused(config: ModelConfig, piece: SliceLayout) -> None:
    attention = TorchPagedAttention(config, 8, 16, torch.float32)
    with pytest.raises(InternalError):
        attention.plan(BatchLayout((piece,)))


def test_the_fused_kernel_and_plain_torch_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 16, generator=generator) for _ in range(3))
    mask = torch.zeros(9, 9).masked_fill(torch.rand(9, 9, generator=generator) < 0.4, MASKED)
    for options in ({}, {"causal": True}, {"mask": mask}):
        fused, plain = (
            partial_attention(q, k, v, **options),
            reference_attention(q, k, v, **options),
        )
        for a, b in zip(fused, plain, strict=True):
            assert (a - b).abs().max() <= TOLERANCE
        with monkeypatch.context() as patch:
            patch.setattr(partial_module, "_FLASH_CPU", None)
            fallen = partial_attention(q, k, v, **options)
        assert torch.equal(fallen[0], plain[0])


def test_a_stretch_in_which_a_row_sees_nothing_weighs_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 4, 16, generator=generator) for _ in range(3))
    seen = partial_attention(q, k, v)
    unseen = partial_attention(q, k, v, mask=torch.full((4, 4), MASKED))
    assert torch.equal(merge([seen, unseen]), seen[0])
    assert torch.equal(merge([unseen, seen]), seen[0])
