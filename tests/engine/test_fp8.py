"""Weights in fp8: how far off they are, that every way of computing with them agrees, loading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.engine.attention.base import BatchLayout, SliceLayout
from agentrt.engine.attention.native import NativeUnavailable
from agentrt.engine.kernels import choose_kernels, make_attention, prepare
from agentrt.engine.model import fp8
from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.decoder import Decoder
from agentrt.engine.model.fp8 import Fp8Linear, dequantize, few_rows, quantize
from agentrt.engine.model.linear import Linear
from agentrt.engine.model.load import open_source
from agentrt.engine.model.weights import load_model
from agentrt.errors import ConfigError


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


class TestRounding:
    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 1000), st.floats(-30, 30), st.integers(1, 5), st.integers(1, 40))
    def test_a_weight_is_off_by_a_sixteenth_at_most(self, seed, power, rows, columns) -> None:
        weight = random(rows, columns, seed=seed, scale=2.0**power)
        kept, scales = quantize(weight)
        back = dequantize(kept, scales, torch.float32)
        largest = weight.abs().amax(1, keepdim=True)
        # Half of the last of four bits; below 2**-15 of the row's largest, of the smallest step.
        assert ((back - weight).abs() <= weight.abs() / 16 + largest * 2.0**-16).all()
        assert torch.equal(torch.frexp(scales).mantissa, torch.full_like(scales, 0.5))
        assert torch.equal(dequantize(kept, scales, torch.bfloat16).float(), back)

    def test_extremes(self) -> None:
        weight = torch.tensor([[0.0, 0.0], [448.0, -1.0], [1e-30, 0.0], [3e30, 1.0]])
        kept, scales = quantize(weight)
        back = dequantize(kept, scales, torch.float32)
        assert torch.equal(back[:2], weight[:2])
        assert scales[1] == 1
        assert back.isfinite().all()
        assert (back[2:, 0] / weight[2:, 0] - 1).abs().max() < 1 / 16

    def test_the_measured_error_of_random_weights(self) -> None:
        weight = random(256, 512)
        kept, scales = quantize(weight)
        off = (dequantize(kept, scales, torch.float32) - weight).norm() / weight.norm()
        assert 0.02 < off < 0.03


class TestLayer:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("bias", [True, False])
    def test_pieces_give_what_the_widened_layer_gives(self, monkeypatch, dtype, bias) -> None:
        kept, scales = quantize(random(37, 24))
        offset = random(37, seed=1).to(dtype) if bias else None
        monkeypatch.setattr(fp8, "CHUNK_BYTES", 5 * 24 * dtype.itemsize)  # five outputs a piece
        x = random(9, 24, seed=2).to(dtype)
        plain = Linear(dequantize(kept, scales, dtype), offset)
        layer = Fp8Linear(kept, scales, offset)
        torch.testing.assert_close(layer(x), plain(x))
        assert layer(x).dtype == dtype
        assert layer.wide(x).dtype == torch.float32

    def test_a_product_is_for_few_rows(self) -> None:
        kept, scales = quantize(random(6, 4))
        bias = random(6, seed=1)
        calls: list[int] = []

        def product(x: torch.Tensor, weight: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
            calls.append(x.shape[0])
            return x.float() @ dequantize(weight, factors, torch.float32).T

        layer = Fp8Linear(kept, scales, bias).with_product(product)
        for rows in (1, 256, 257):
            x = random(rows, 4, seed=rows)
            torch.testing.assert_close(layer(x), Fp8Linear(kept, scales, bias)(x))
        assert calls == [1, 256]
        assert few_rows(256)
        assert not few_rows(257)


def logits(model: Decoder, setting: str = "torch") -> torch.Tensor:
    attention = make_attention(choose_kernels(setting, "cpu"), model.config, 4, 8, model.dtype)
    tokens = torch.randint(3, 500, (12,), generator=torch.Generator().manual_seed(3))
    layout = BatchLayout((SliceLayout(0, 12, (0, 1)),))
    positions = torch.arange(12)
    return model.forward(tokens, positions, attention.plan(layout), positions)


class TestModel:
    @pytest.fixture(params=["qwen3", "qwen2"])
    def directory(self, request, tiny_models: Callable[..., Path]) -> Path:
        return tiny_models(request.param)

    def test_weights_are_rounded_on_the_way(self, directory: Path) -> None:
        source = open_source(directory, dtype=torch.float32)
        small = source.load("cpu", quant="fp8")
        prepare(small, choose_kernels("torch", "cpu"), "fp8")
        plain, widened = load_model(directory), load_model(directory)
        widened.rebuild(lambda layer: _rounded(layer, widened))
        torch.testing.assert_close(logits(small), logits(widened), rtol=1e-4, atol=1e-4)
        off = (logits(small) - logits(plain)).norm() / logits(plain).norm()
        assert 0.005 < off < 0.3

    def test_bf16_and_fp32_compute_with_the_same_weights(self, directory: Path) -> None:
        exact, half = (
            logits(open_source(directory, dtype=dtype).load("cpu", quant="fp8"))
            for dtype in (torch.float32, torch.bfloat16)
        )
        assert (half - exact).norm() / exact.norm() < 0.05

    def test_bytes_are_those_that_were_said(self, directory: Path) -> None:
        source = open_source(directory, dtype=torch.bfloat16)
        model = source.load("cpu", quant="fp8")
        held = {
            each.data_ptr(): each.nbytes
            for each in _tensors(model)
            if each.untyped_storage().data_ptr() == each.data_ptr()
        }
        # Norms of heads are kept once for each head, which is not counted as a weight.
        config = ModelConfig.from_directory(directory)
        copies = config.num_heads + config.num_kv_heads - 2
        more = 2 * config.num_layers * copies * config.head_dim if config.qk_norm else 0
        assert sum(held.values()) - more == source.bytes_as(2, "fp8")

    def test_native_kernels_pack_what_is_not_fp8(self, directory: Path) -> None:
        try:
            kernels = choose_kernels("native", "cpu")
        except NativeUnavailable as error:
            pytest.skip(str(error))
        source = open_source(directory, dtype=torch.bfloat16)
        small, other = (source.load("cpu", quant="fp8") for _ in range(2))
        prepare(small, kernels, "fp8")
        off = (logits(small, "native") - logits(other)).norm() / logits(other).norm()
        assert off < 0.05

    def test_a_model_that_was_not_loaded_as_fp8(self, directory: Path) -> None:
        with pytest.raises(ConfigError, match="while it is loaded"):
            prepare(load_model(directory), choose_kernels("torch", "cpu"), "fp8")


def _rounded(layer, model: Decoder):
    if layer is model._head:
        return layer
    return Linear(dequantize(*quantize(layer.weight), layer.weight.dtype), layer.bias)


def _tensors(model: Decoder) -> list[torch.Tensor]:
    found = [model._embed.weight, model._norm, model._head.weight]
    for layer in model._layers:
        for name in ("input_norm", "qk_norm", "mlp_norm"):
            found.append(getattr(layer, name))
        for linear in (layer.qkv, layer.out, layer.gate_up, layer.down):
            found += [linear.weight, linear.scales, linear.bias]
    return [each for each in found if each is not None]
