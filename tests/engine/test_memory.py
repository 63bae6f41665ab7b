"""The plan of a device's memory: nothing is given away twice, and what cannot fit is refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.engine.memory import (
    SMALLEST_POOL,
    DeviceBytes,
    ModelNeed,
    StepBounds,
    plan_memory,
)
from agentrt.engine.memory_sizes import GIB, MIB, activation_bytes, graph_bytes
from agentrt.engine.model.config import ModelShape
from agentrt.errors import ConfigError, ModelError

SHAPE = ModelShape("qwen3", 1000, 4, 8, 2, 64, 4096, (None,) * 4, "bfloat16")
KV = SHAPE.kv_bytes_per_token()


def need(name: str = "a", weights: int = GIB, **changes: object) -> ModelNeed:
    return ModelNeed(name, SHAPE, weights, "bfloat16", KV, **changes)


def gpu(free: int) -> DeviceBytes:
    return DeviceBytes(free, "free on cuda:0", gpu=True)


STEP = StepBounds(512, 16, 16, graphs=(1, 2, 4, 8, 16))

needs = st.lists(
    st.builds(
        lambda weights, pool, share, loading: (weights, pool, share, loading),
        st.integers(0, 4 * GIB),
        st.one_of(st.none(), st.integers(16, 200_000)),
        st.floats(0.1, 8),
        st.integers(0, GIB),
    ),
    min_size=1,
    max_size=4,
)


class TestPlan:
    @settings(max_examples=200, deadline=None)
    @given(needs, st.integers(GIB, 20 * GIB), st.booleans())
    def test_what_is_loaded_together_fits_and_every_model_fits_alone(self, rows, free, on_gpu):
        asked = [
            need(f"m{i}", weights, pool_tokens=pool, share=share, loading=loading)
            for i, (weights, pool, share, loading) in enumerate(rows)
        ]
        device = DeviceBytes(free, "free", gpu=on_gpu)
        try:
            plan = plan_memory(asked, STEP, device)
        except ModelError:
            largest = max(one.weights + (one.pool_tokens or SMALLEST_POOL) * KV for one in asked)
            most_loading = max(one.weights + one.loading for one in asked)
            # Refused only for a reason: at least half a GiB of the rest is estimates and reserve.
            assert max(largest + 2 * GIB, most_loading + GIB) > free
            return
        loaded = [model for model in plan.models if model.resident]
        assert loaded[0] is plan.models[0]
        assert sum(model.total for model in loaded) <= plan.capacity <= free
        for model, one in zip(plan.models, asked, strict=True):
            assert model.peak <= plan.capacity
            assert model.kv == model.pages * model.page_size * KV
            if one.pool_tokens is None:
                assert model.tokens >= SMALLEST_POOL
            else:
                assert model.tokens == one.pool_tokens // 16 * 16

    def test_a_gpu_is_used_up_and_a_cpu_is_not(self):
        plan = plan_memory([need()], STEP, gpu(16 * GIB))
        (model,) = plan.models
        assert plan.capacity - model.total < 16 * KV
        beside = plan_memory([need()], STEP, DeviceBytes(16 * GIB, "free", gpu=False))
        assert beside.models[0].tokens == 131_072
        small = plan_memory([need()], STEP, DeviceBytes(2 * GIB, "free", gpu=False)).models[0]
        assert small.kv <= (2 * GIB - small.fixed) / 4
        assert small.graphs == 0

    def test_kv_is_shared_by_share_after_all_weights(self):
        plan = plan_memory([need("a", share=3.0), need("b")], STEP, gpu(16 * GIB))
        a, b = plan.models
        assert plan.together
        least = SMALLEST_POOL * KV
        assert (a.kv - least) / (b.kv - least) == pytest.approx(3, rel=0.01)
        assert plan.of("b") is b

    def test_what_does_not_fit_together_is_loaded_when_asked_for(self):
        three = [need("a", GIB), need("b", GIB), need("c", 3 * GIB)]
        plan = plan_memory(three, STEP, gpu(4 * GIB))
        assert [model.resident for model in plan.models] == [True, True, False]
        assert plan.models[2].peak <= plan.capacity
        assert "c (loaded when it is asked for): weights 3.0 GiB" in plan.lines()[3]

    def test_a_pool_that_was_asked_for_leaves_the_rest_to_the_others(self):
        plan = plan_memory([need("a", pool_tokens=1600), need("b")], STEP, gpu(8 * GIB))
        assert plan.models[0].tokens == 1600
        assert plan.capacity - sum(model.total for model in plan.models) < 16 * KV


class TestRefusals:
    def test_weights_that_fit_in_fp8(self):
        large = need("big", 9 * GIB, instead={"--quant fp8": 4 * GIB, "--dtype float32": 18 * GIB})
        with pytest.raises(ModelError) as caught:
            plan_memory([large], STEP, gpu(8 * GIB))
        assert "big: the weights take 9.0 GiB in bfloat16, 2,048 tokens of KV 4 MiB" in str(
            caught.value
        )
        assert "8.0 GiB are free on cuda:0, and 512 MiB of them stay in reserve" in str(
            caught.value
        )
        assert "Use --quant fp8 (weights of 4.0 GiB), a smaller --pool, a smaller model" in str(
            caught.value
        )
        assert "float32" not in caught.value.remedy

    def test_a_pool_is_refused_with_the_tokens_that_would_fit(self):
        asked = need(pool_tokens=10**7, kv_instead={"--kv-dtype fp8": KV // 2})
        with pytest.raises(ModelError) as caught:
            plan_memory([asked], STEP, gpu(4 * GIB))
        fits = int(re.search(r"at most ([\d,]+) tokens", str(caught.value))[1].replace(",", ""))
        assert plan_memory([need(pool_tokens=fits)], STEP, gpu(4 * GIB)).together
        with pytest.raises(ModelError):
            plan_memory([need(pool_tokens=fits + 16)], STEP, gpu(4 * GIB))
        assert "--kv-dtype" not in caught.value.remedy  # half of it is still too much
        nearly = need(pool_tokens=fits + 1600, kv_instead={"--kv-dtype fp8": KV // 2})
        with pytest.raises(ModelError, match=r"--kv-dtype fp8 \([\d,]+ tokens fit\)"):
            plan_memory([nearly], STEP, gpu(4 * GIB))

    def test_the_model_that_cannot_fit_is_named_with_those_that_could(self):
        with pytest.raises(ModelError, match="the other models without it \\(a\\)") as caught:
            plan_memory([need("a"), need("b", 30 * GIB)], STEP, gpu(8 * GIB))
        assert caught.value.message.startswith("b: the weights take 30.0 GiB")

    def test_loading_that_takes_more_than_what_is_loaded(self):
        with pytest.raises(ModelError, match=r"the weights take 1\.0 GiB"):
            plan_memory([need(loading=8 * GIB)], STEP, gpu(8 * GIB))

    @pytest.mark.parametrize(("page", "pool"), [(0, None), (16, 15)])
    def test_sizes_that_are_none(self, page: int, pool: int | None):
        with pytest.raises(ConfigError, match="page"):
            plan_memory([need(pool_tokens=pool)], StepBounds(8, 8, page), gpu(8 * GIB))


class TestEstimates:
    def test_activations_are_linear_in_rows(self):
        one = activation_bytes(SHAPE, 1, 0, "bfloat16")
        # h = q = 512, kv = 128, f = 2048: 2 h + 3 f numbers of two bytes.
        assert one == (2 * 512 + 3 * 2048) * 2
        assert activation_bytes(SHAPE, 100, 0, "float32") == 200 * one
        assert activation_bytes(SHAPE, 0, 2, "float32") == 3 * 2 * 1000 * 4

    def test_graphs_share_the_memory_of_the_largest(self):
        assert graph_bytes(SHAPE, (), "bfloat16") == 0
        few, many = (graph_bytes(SHAPE, sizes, "bfloat16") for sizes in ((64,), (1, 8, 64)))
        assert many - few == 2 * (12 * 4 + 8) * 16 * 1024
        assert 0 < many - few < 2 * MIB
