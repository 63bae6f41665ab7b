"""Packed linear layers, small operations and whole models on the native kernels."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agentrt.bench.random_model import random_model
from agentrt.engine import kernels as engine_kernels
from agentrt.engine.attention.base import BatchLayout, SliceLayout
from agentrt.engine.attention.native import load_native
from agentrt.engine.kernels import Kernels, choose_kernels, make_attention, prepare
from agentrt.engine.model import ModelConfig
from agentrt.engine.model.linear import (
    Int8Linear,
    Linear,
    OneDnnLinear,
    PackedEmbedding,
    PackedLinear,
    onednn_works,
)
from agentrt.engine.model.ops import NativeOps, TorchOps
from agentrt.engine.model.recipe import config_json
from agentrt.engine.model.weights import load_model
from agentrt.errors import ConfigError

native = pytest.mark.requires_native
INT8_ERROR = 0.01
"""Root mean square of an int8 layer's error over that of its output; 0.006 was measured."""


@pytest.fixture(autouse=True, scope="module")
def _small_work(one_thread):
    """What several threads do is asked for where it is tested."""


def linear(outputs, inputs, *, bias=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator).bfloat16()
    return Linear(weight, torch.randn(outputs, generator=generator).bfloat16() if bias else None)


def rows(count, width, seed=1):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).bfloat16()


def exact(layer, x):
    y = x.double() @ layer.weight.double().T
    return y if layer.bias is None else y + layer.bias.double()


@native
class TestLinear:
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize(
        ("outputs", "inputs"), [(1, 2), (31, 64), (64, 30), (100, 576), (576, 192)]
    )
    @pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 13, 16, 17, 33, 70])
    def test_packed_sums_are_exact_to_fp32(self, count, outputs, inputs, bias):
        layer, x = linear(outputs, inputs, bias=bias), rows(count, inputs)
        packed, right = PackedLinear(load_native(), layer), exact(layer, x)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            wide = packed.wide(x)
            assert wide.dtype == torch.float32
            assert (wide.double() - right).abs().max() <= 2e-6 * right.abs().max()
            assert torch.equal(packed(x), wide.bfloat16())
        torch.set_num_threads(1)

    @pytest.mark.parametrize(("outputs", "inputs"), [(200, 576), (96, 96), (70, 66)])
    def test_a_row_is_the_same_bits_beside_any_others_on_any_threads(self, outputs, inputs):
        layer, x = (
            PackedLinear(load_native(), linear(outputs, inputs, bias=True)),
            rows(700, inputs),
        )
        whole = layer.wide(x)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for low, count in ((0, 1), (3, 5), (16, 16), (20, 33), (31, 650)):
                assert torch.equal(layer.wide(x[low : low + count]), whole[low : low + count])
        torch.set_num_threads(1)

    @pytest.mark.parametrize("count", [1, 4, 6, 7, 20])
    @pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (70, 65), (100, 576), (576, 192)])
    def test_int8_stays_within_its_measured_error(self, count, outputs, inputs):
        layer, x = linear(outputs, inputs, bias=True), rows(count, inputs)
        result, right = Int8Linear(load_native(), layer).wide(x).double(), exact(layer, x)
        if inputs > 1:
            assert (result - right).norm() <= INT8_ERROR * right.norm()
        else:  # a lone weight is its own scale
            assert (result - right).abs().max() <= 1e-4 * right.abs().max()

    def test_int8_keeps_small_activations_beside_a_large_one(self):
        layer, x = linear(64, 256), rows(3, 256)
        x[:, 7] = 1000.0
        layer.weight[:, 7] = 0.0
        result, right = Int8Linear(load_native(), layer).wide(x).double(), exact(layer, x)
        assert (result - right).norm() <= INT8_ERROR * right.norm()

    @pytest.mark.parametrize("kind", [PackedLinear, Int8Linear])
    @pytest.mark.parametrize("broken", [float("nan"), float("inf")])
    def test_what_is_not_finite_stays_visible_and_in_its_row(self, kind, broken):
        x = rows(9, 128)
        x[4, 100] = broken
        result = kind(load_native(), linear(96, 128)).wide(x)
        assert not result[4].isfinite().any()
        assert result[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()

    def test_a_wrong_width_is_refused(self):
        with pytest.raises(RuntimeError, match="64 inputs, not 66"):
            PackedLinear(load_native(), linear(8, 64))(rows(1, 66))

    def test_an_embedding_reads_the_packed_rows(self):
        layer = linear(300, 66)
        embed = PackedEmbedding(load_native(), PackedLinear(load_native(), layer))
        ids = torch.tensor([0, 299, 63, 64, 0])
        assert torch.equal(embed(ids), layer.weight[ids])
        apart = torch.stack((ids, ids + 1), dim=1)[:, 0]
        assert torch.equal(embed(apart), layer.weight[ids])
        with pytest.raises(RuntimeError, match="not in the weight"):
            embed(torch.tensor([320]))


class TestOneDnn:
    def test_it_gives_what_the_plain_layer_gives(self):
        assert onednn_works() is None
        layer, x = linear(100, 576, bias=True), rows(7, 576)
        assert (OneDnnLinear(layer)(x) - layer(x)).abs().max() <= 2**-7 * layer(x).abs().max()

    def test_where_it_is_missing_weights_stay_and_the_log_says_so(self, monkeypatch, caplog, small):
        monkeypatch.setattr(engine_kernels, "onednn_works", lambda: "no such operator")
        model = random_model(small, torch.bfloat16)
        before = model._head
        with caplog.at_level(logging.WARNING):
            prepare(model, Kernels("torch", "asked for"))
        assert model._head is before
        assert "no such operator" in caplog.text


@native
class TestOps:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("width", [2, 16, 70, 576])
    @pytest.mark.parametrize("count", [1, 9, 200])
    def test_they_do_what_torch_does(self, count, width, dtype):
        generator = torch.Generator().manual_seed(0)
        x, delta = (4 * torch.randn(2, count, width, generator=generator)).to(dtype).unbind(0)
        weight = torch.randn(width, generator=generator).to(dtype)
        ours, torchs = NativeOps(load_native()), TorchOps()
        limit = 1e-5 if dtype == torch.float32 else 2**-7
        for change in (None, delta):
            total, normed = ours.add_norm(x.clone(), change, weight, 1e-6)
            right, right_normed = torchs.add_norm(x, change, weight, 1e-6)
            assert torch.equal(total, right)
            assert (normed - right_normed).abs().max() <= limit * right_normed.abs().max()
        both = torch.cat((20 * x, delta), dim=1)
        right = torchs.silu_mul(both)
        assert (ours.silu_mul(both) - right).abs().max() <= limit * right.abs().max()


@pytest.fixture(scope="module")
def small():
    """The architecture of the demonstration model with a small vocabulary."""
    raw = config_json("qwen3", "15m", dtype="bfloat16", eos=2, pad=0)
    return replace(ModelConfig.from_mapping(raw, Path("config.json")), vocab_size=512)


def logits(model, kernels, cuts, batch=3):
    """Run ``batch`` sequences through the same cuts together; returns the logits of every token."""
    length = sum(cuts)
    attention = make_attention(kernels, model.config, batch * -(-length // 16), 16, model.dtype)
    attention.kv.fill_(float("nan"))
    tokens = torch.randint(0, 512, (batch, length), generator=torch.Generator().manual_seed(5))
    per = -(-length // 16)
    out, done = [], 0
    for cut in cuts:
        slices = [SliceLayout(done, cut, range(i * per, (i + 1) * per)) for i in range(batch)]
        step = attention.plan(BatchLayout(tuple(slices)))
        part = tokens[:, done : done + cut].flatten()
        positions = torch.arange(done, done + cut).repeat(batch)
        result = model.forward(part, positions, step, torch.arange(batch * cut))
        out.append(result.view(batch, cut, -1))
        done += cut
    return torch.cat(out, dim=1)


def error(result, right):
    return float((result - right).norm() / right.norm())


@native
class TestWholeModel:
    @pytest.mark.parametrize("cuts", [(1,), (7,), (40, 1, 1), (257, 1, 8), (600, 1, 33)], ids=str)
    @pytest.mark.parametrize("batch", [1, 8])
    def test_logits_are_as_near_to_fp32_as_torchs_are(self, small, cuts, batch):
        def run(setting, dtype, quant=None):
            kernels = choose_kernels(setting, "cpu")
            model = random_model(small, torch.bfloat16)  # bf16 weights in either case
            if dtype == torch.float32:
                model = random_float(model)
            prepare(model, kernels, quant)
            return logits(model, kernels, cuts, batch)

        right = run("torch", torch.float32)
        assert error(run("native", torch.float32), right) <= 1e-5
        plain = error(run("torch", torch.bfloat16), right)
        assert 0 < error(run("native", torch.bfloat16), right) <= 1.1 * plain
        assert error(run("native", torch.bfloat16, "int8"), right) <= 3 * plain

    @pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3"])
    def test_every_architecture_agrees_with_the_torch_path(self, arch, tiny_models):
        changes = {"sliding_window": 37} if arch == "mistral" else {}
        results = []
        for setting in ("torch", "native"):
            kernels = choose_kernels(setting, "cpu")
            model = load_model(tiny_models(arch, **changes), dtype=torch.float32)
            prepare(model, kernels)
            results.append(logits(model, kernels, (50, 1, 20, 1)))
        assert error(results[1], results[0]) <= 1e-5

    @pytest.mark.parametrize("threads", [1, 2, 3])
    @pytest.mark.parametrize("inner", [256, 136], ids=["mlp in one", "mlp in two"])
    def test_layers_in_one_call_are_the_calls_one_by_one(self, small, inner, threads):
        kernels = choose_kernels("native", "cpu")
        shape = replace(small, intermediate_size=inner, num_layers=2, windows=(None, 24))
        model = random_model(shape, torch.bfloat16)
        prepare(model, kernels)
        assert model._fused is not None
        torch.set_num_threads(threads)
        whole = logits(model, kernels, (33, 1, 5))
        model._fused = None
        torch.set_num_threads(1)
        assert torch.equal(logits(model, kernels, (33, 1, 5)), whole)

    def test_layers_refuse_what_they_were_not_made_for(self, small):
        kernels = choose_kernels("native", "cpu")
        model = random_model(small, torch.bfloat16)
        prepare(model, kernels)
        deeper = replace(small, num_layers=5, windows=(None,) * 5)
        with pytest.raises(RuntimeError, match="there are 4 layers"):
            model.forward(
                *(torch.zeros(1, dtype=torch.int64),) * 2,
                make_attention(kernels, deeper, 2, 16, torch.bfloat16).plan(
                    BatchLayout((SliceLayout(0, 1, [0]),))
                ),
                torch.zeros(1, dtype=torch.int64),
            )

    def test_a_tied_embedding_is_kept_once(self, small):
        kernels = choose_kernels("native", "cpu")
        model = random_model(small, torch.bfloat16)
        prepare(model, kernels)
        assert isinstance(model._embed, PackedEmbedding)
        assert model.dtype == torch.bfloat16


def random_float(model):
    """The same weights in fp32."""
    model.dtype = torch.float32
    model._embed.weight = model._embed.weight.float()
    model._norm = model._norm.float()
    model._layers = [
        replace(
            layer,
            input_norm=layer.input_norm.float(),
            mlp_norm=layer.mlp_norm.float(),
            qk_norm=layer.qk_norm.float(),
        )
        for layer in model._layers
    ]
    model.rebuild(lambda layer: Linear(layer.weight.float()))
    return model


class TestQuant:
    def test_int8_needs_native_kernels_and_bf16(self, small):
        with pytest.raises(ConfigError, match="asked for"):
            prepare(random_model(small, torch.bfloat16), Kernels("torch", "asked for"), "int8")
        with pytest.raises(ConfigError, match="no quantization 'int3'"):
            prepare(random_model(small, torch.bfloat16), Kernels("torch", ""), "int3")

    @native
    def test_int8_refuses_fp32(self, small):
        with pytest.raises(ConfigError, match="bfloat16"):
            prepare(random_model(small, torch.float32), choose_kernels("native", "cpu"), "int8")
