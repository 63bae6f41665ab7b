"""Keys and values in eight bits: what is lost, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt import Runtime, RuntimeConfig, SamplingParams
from agentrt.engine.attention.base import BatchLayout, SliceLayout
from agentrt.engine.attention.quantized import QuantizedPool, kv_bytes_per_token, make_pool
from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.weights import load_model
from agentrt.engine.tiers.host import page_bytes
from agentrt.errors import ConfigError

CHUNK, TOKENS, PAGE = 32, 256, 8


@pytest.fixture(scope="module")
def config(tiny_models):
    return ModelConfig.from_directory(tiny_models("qwen3"))


def logits(model, kv_dtype):
    """Logits of a prompt computed in steps, each over the pages of those before."""
    pages = range(TOKENS // PAGE)
    attention = TorchPagedAttention(model.config, len(pages), PAGE, model.dtype, kv_dtype=kv_dtype)
    tokens = torch.randint(4, 500, (TOKENS,), generator=torch.Generator().manual_seed(0))
    parts = []
    for start in range(0, TOKENS, CHUNK):
        step = attention.plan(BatchLayout((SliceLayout(start, CHUNK, pages),)))
        positions, rows = torch.arange(start, start + CHUNK), torch.arange(CHUNK)
        parts.append(model.forward(tokens[start : start + CHUNK], positions, step, rows))
    return torch.cat(parts[1:])


class TestError:
    """Measured against fp32, relative to the spread of the logits."""

    @pytest.mark.parametrize("arch", ["qwen3", "llama"])
    def test_int8_costs_about_what_bf16_does_and_fp8_some_times_that(self, tiny_models, arch):
        full = load_model(tiny_models(arch), dtype=torch.float32)
        exact = logits(full, "auto")

        def error(model, kv_dtype):
            wrong = logits(model, kv_dtype) - exact
            return float(wrong.square().mean().sqrt() / exact.std())

        half = error(load_model(tiny_models(arch), dtype=torch.bfloat16), "auto")
        assert 0 < error(full, "int8") < 1.5 * half
        assert half < error(full, "fp8") < 10 * half


class TestPool:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**31), st.sampled_from([1e-6, 1.0, 300.0]))
    def test_int8_is_within_half_a_step_of_each_vectors_own_scale(self, config, seed, size):
        pool = make_pool(config, 4, PAGE, torch.float32, "cpu", "int8")
        k, v = size * torch.randn((2, 12, pool.heads, pool.dim), generator=seeded(seed))
        keys, values = through(pool, k, v)
        for out, was in ((keys, k), (values, v)):
            step = was.abs().amax(-1, keepdim=True) / 127
            assert ((out - was).abs() <= 0.5001 * step).all()

    def test_fp8_is_what_torch_rounds_to_and_cuts_what_is_too_large(self, config):
        pool = make_pool(config, 4, PAGE, torch.float32, "cpu", "fp8")
        k = torch.randn((12, pool.heads, pool.dim), generator=seeded(1))
        keys, values = through(pool, k, 1000 * k)
        assert torch.equal(keys, k.to(torch.float8_e4m3fn).float())
        assert values.abs().max() == 448.0

    @pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
    def test_zeros_stay_zero_and_nan_stays_in_its_own_page(self, config, kv_dtype):
        pool = make_pool(config, 4, PAGE, torch.float32, "cpu", kv_dtype)
        k = torch.zeros((12, pool.heads, pool.dim))
        assert not through(pool, k, k)[0].any()
        broken = k.clone()
        broken[3] = float("nan")
        keys, _ = through(pool, broken, k)
        assert not keys[4:].any()
        assert not keys[:3].any()

    def test_memory_is_what_is_said(self, config):
        for kv_dtype, bits in (("int8", 8), ("fp8", 8), ("auto", 32)):
            pool = make_pool(config, 4, PAGE, torch.float32, "cpu", kv_dtype)
            told = kv_bytes_per_token(config, torch.float32, kv_dtype)
            assert page_bytes(pool.tensors) == told * PAGE
            assert pool.kv.element_size() * 8 == bits
            assert isinstance(pool, QuantizedPool) == (kv_dtype != "auto")

    def test_other_names_are_refused(self, config):
        with pytest.raises(ConfigError, match="no kv dtype 'int4'"):
            make_pool(config, 4, PAGE, torch.float32, "cpu", "int4")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def through(pool, k, v):
    """Store twelve tokens from the middle of page 1 on, and gather them."""
    piece = SliceLayout(5, len(k), [3, 1, 2])
    pool.store(0, pool.slots(BatchLayout((piece,))), k, v)
    rows = pool.rows(pool.table([[3, 1, 2]]))
    pool.reserve(rows.numel())
    keys, values = pool.gather(0, rows, 1)
    return [part[0, :, 5 : 5 + len(k)].transpose(0, 1).clone() for part in (keys, values)]


@pytest.mark.anyio
@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
async def test_tiers_keep_such_pages_bit_by_bit(tiny_models, tmp_path, kv_dtype):
    """One turn at a time and one step a prompt: what is loaded is what was stored."""
    plain = RuntimeConfig(
        model=str(tiny_models("qwen3")),
        policy="fcfs",
        pool_tokens=128,
        page_size=4,
        sandbox=None,
        threads=1,
        kv_dtype=kv_dtype,
        draft="off",
        measure=False,
    )
    tiered = replace(plain, host_kv_bytes=1 << 20, kv_files=str(tmp_path))
    large = replace(plain, pool_tokens=1024)
    said = []
    for config in (large, tiered, tiered):
        said.append([])
        async with Runtime.open(config) as runtime:
            prompts = [list(range(base, base + 50)) for base in (5, 105, 205)]
            for _ in range(3):
                for number, prompt in enumerate(prompts):
                    async with runtime.program(f"{number}-{len(prompt)}") as program:
                        greedy = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
                        answer = await program.complete(prompt, greedy)
                    said[-1].append(answer.tokens)
                    prompt += [*answer.tokens, 3, 4]
            figures = runtime.statistics()
    assert said[0] == said[1] == said[2]
    assert figures.tier.loaded_pages > 0
    assert figures.scheduler.fetched_tokens > 0


@pytest.fixture
def anyio_backend():
    return "asyncio"
