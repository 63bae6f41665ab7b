"""Which part of a model each rank holds, and that the parts together are the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from agentrt.engine.attention.base import BatchLayout, SliceLayout
from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.kernels import choose_kernels, prepare
from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.weights import load_model, tensor_shapes
from agentrt.engine.parallel.sharding import Shard, refusal, sizes
from agentrt.errors import ConfigError
from tests.engine.parallel.joined import together

PAGE, PAGES = 4, 32


@pytest.fixture(scope="module")
def config(tiny_models):
    return ModelConfig.from_directory(tiny_models("qwen3"))


class TestCuts:
    @given(
        kv=st.sampled_from([1, 2, 3, 8]),
        share=st.integers(1, 6),
        inner=st.integers(1, 64),
        vocab=st.integers(1, 99),
        size=st.integers(1, 8),
    )
    def test_parts_cover_every_tensor_once(self, config, kv, share, inner, vocab, size):
        whole = replace(
            config, num_heads=kv * share, num_kv_heads=kv, intermediate_size=inner, vocab_size=vocab
        )
        whole = replace(whole, out_bias=True, mlp_bias=True, qkv_bias=True, tied_embeddings=False)
        if refusal(whole, size) is not None:
            assert size not in sizes(whole)
            with pytest.raises(ConfigError, match="--tensor-parallel with one of 1"):
                Shard(whole, 0, size)
            return
        shards = [Shard(whole, rank, size) for rank in range(size)]
        for name, shape in tensor_shapes(whole).items():
            seen = torch.zeros(shape, dtype=torch.int64)
            for shard in shards:
                cut = shard.cut(name)
                if not shard.holds(name):
                    continue
                part = seen if cut is None else seen.narrow(cut.dim, cut.start, cut.count)
                part += 1
                held = shard.shapes(tensor_shapes(shard.part))[name]
                padded = "embed" in name or "lm_head" in name
                assert part.shape[1:] == held[1:]
                assert part.shape[0] == held[0] or (padded and part.shape[0] < held[0])
            copies = max(1, size // kv) if "k_proj" in name or "v_proj" in name else 1
            if "norm" in name:
                copies = size
            wanted = 1 if name.endswith(("o_proj.bias", "down_proj.bias")) else copies
            assert (seen == wanted).all(), name

    def test_a_shard_counts_what_it_holds(self, config):
        whole = replace(config, out_bias=True, mlp_bias=True)
        for size in (1, 2, 4):
            for rank in range(size):
                shard = Shard(whole, rank, size)
                shapes = shard.shapes(tensor_shapes(shard.part))
                held = sum(torch.Size(shape).numel() for shape in shapes.values())
                assert shard.parameters == held

    @pytest.mark.parametrize(
        ("size", "said"), [(3, "4 attention heads"), (0, "at least one"), (8, "4 attention heads")]
    )
    def test_what_does_not_divide_is_refused(self, config, size, said):
        with pytest.raises(ConfigError, match=said):
            Shard(config, 0, size)

    def test_there_is_no_third_rank_of_two(self, config):
        with pytest.raises(ConfigError, match="no rank 2"):
            Shard(config, 2, 2)


SLICES = BatchLayout(
    (SliceLayout(0, 7, [3, 1]), SliceLayout(5, 4, [0, 2, 4]), SliceLayout(8, 1, [6, 5, 7]))
)


def logits(model, rows):
    """Logits of a mixed batch, after pages were filled by earlier steps."""
    attention = TorchPagedAttention(model.config, PAGES, PAGE, model.dtype)
    tokens = torch.arange(40) % model.config.vocab_size
    for start, pages in ((5, [0, 2, 4]), (8, [6, 5, 7])):
        layout = BatchLayout((SliceLayout(0, start, pages),))
        step = attention.plan(layout)
        model.forward(tokens[:start], torch.arange(start), step, torch.tensor([start - 1]))
    positions = torch.cat((torch.arange(7), torch.arange(5, 9), torch.tensor([8])))
    step = attention.plan(SLICES)
    return model.forward(tokens[10:22], positions, step, torch.tensor(rows)).clone()


CHANGES = {
    "qwen3": ("qwen3", {}),
    "untied": ("llama", {"tie_word_embeddings": False}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),
    "window": ("mistral", {"sliding_window": 5}),
    "odd vocabulary": ("qwen3", {"vocab_size": 511}),
    "a kv head for two": ("qwen3", {"num_key_value_heads": 1}),
}


class TestTwoRanks:
    @pytest.mark.parametrize("case", CHANGES)
    @pytest.mark.parametrize(
        "kernels", ["torch", pytest.param("native", marks=pytest.mark.requires_native)]
    )
    def test_logits_are_those_of_one(self, tiny_models, tmp_path, case, kernels):
        arch, changes = CHANGES[case]
        directory = tiny_models(arch, **changes)
        chosen = choose_kernels(kernels, "cpu")

        def work(group):
            model = load_model(directory, group=group)
            prepare(model, chosen)
            return logits(model, [3, 11])

        alone = load_model(directory)
        prepare(alone, chosen)
        first, other = together(tmp_path, 2, work)
        torch.testing.assert_close(first, logits(alone, [3, 11]), rtol=1e-4, atol=1e-5)
        assert other.shape[1] <= first.shape[1] / 2 + 1

    def test_fp8_weights_are_as_near_as_on_one(self, tiny_models, tmp_path):
        directory = tiny_models("qwen3")

        def work(group):
            return logits(load_model(directory, quant="fp8", group=group), [11])

        exact = logits(load_model(directory), [11])
        off = (logits(load_model(directory, quant="fp8"), [11]) - exact).norm()
        # A rank rounds with scales of its own part: no worse, and not the same.
        assert (together(tmp_path, 2, work)[0] - exact).norm() < 1.5 * off

    def test_four_ranks_share_two_kv_heads(self, tiny_models, tmp_path):
        directory = tiny_models("qwen3")
        got = together(tmp_path, 4, lambda group: logits(load_model(directory, group=group), [11]))
        wanted = logits(load_model(directory), [11])
        torch.testing.assert_close(got[0], wanted, rtol=1e-4, atol=1e-5)

    def test_a_rank_reads_its_part_alone(self, tiny_models, tmp_path, monkeypatch):
        directory = tiny_models("qwen3")
        told = []

        def work(group):
            return load_model(directory, progress=lambda *a: told.append(a), group=group)

        together(tmp_path, 2, work)
        whole = sum(part.nbytes for part in load_file(directory / "model.safetensors").values())
        assert all(total < 0.6 * whole for _, total in told)
