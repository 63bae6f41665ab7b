"""LoRA adapters: what is read and refused; batches of several give what each gives alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from agentrt.engine.attention.base import BatchLayout, SliceLayout
from agentrt.engine.attention.native import NativeUnavailable
from agentrt.engine.kernels import Kernels, choose_kernels, make_attention, prepare
from agentrt.engine.lora.adapter import Adapter, AdapterFiles
from agentrt.engine.lora.batch import AdapterBatch
from agentrt.engine.lora.book import AdapterBook
from agentrt.engine.lora.config import LoraConfig
from agentrt.engine.lora.segments import group_rows
from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.decoder import Decoder
from agentrt.engine.model.weights import load_model
from agentrt.errors import ConfigError, InvalidRequest, ModelError
from agentrt.scheduling.tokens import TokenList
from tests.engine.adapters import merge, write_adapter

LENGTHS = (9, 5, 12, 7)


@pytest.fixture(scope="module")
def model(tiny_models: Callable[..., Path]) -> Path:
    return tiny_models("qwen2")  # with biases, and without a norm on queries


@pytest.fixture(scope="module")
def directories(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        "all": write_adapter(root / "all", model, 1),
        "some": write_adapter(root / "some", model, 2, rank=3, modules=("v_proj", "up_proj")),
        "stable": write_adapter(root / "stable", model, 3, use_rslora=True, modules=("k_proj",)),
    }


SCALES = {"all": 8 / 4, "some": 8 / 3, "stable": 8 / math.sqrt(4)}


def load(directory: Path, model: Path, name: str = "x", dtype=torch.float32) -> Adapter:
    return AdapterFiles(directory, ModelConfig.from_directory(model)).load(name, dtype, "cpu")


def logits(
    decoder: Decoder, slices: list[tuple[Adapter | None, int]], kernels: Kernels, seed: int = 0
) -> list[torch.Tensor]:
    """Run sequences ``(adapter, length)`` as one batch; return the logits of all tokens of each.

    A sequence's tokens depend on its length alone.
    """
    attention = make_attention(kernels, decoder.config, 16, 8, decoder.dtype)
    tokens = [
        torch.randint(3, 500, (length,), generator=torch.Generator().manual_seed(length + seed))
        for _, length in slices
    ]
    layout = BatchLayout(
        tuple(SliceLayout(0, n, (2 * i, 2 * i + 1)) for i, (_, n) in enumerate(slices))
    )
    lengths = [length for _, length in slices]
    more = AdapterBatch.of(slices, decoder.device)
    out = decoder.forward(
        torch.cat(tokens),
        torch.cat([torch.arange(length) for length in lengths]),
        attention.plan(layout),
        torch.arange(sum(lengths)),
        *([] if more is None else [more]),
    )
    return list(out.split(lengths))


@pytest.fixture(scope="module", params=["native", "torch"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    try:
        return choose_kernels(request.param, "cpu")
    except NativeUnavailable as error:
        pytest.skip(str(error))


class TestResults:
    @pytest.mark.parametrize("name", ["all", "some", "stable"])
    def test_an_adapter_gives_what_merged_weights_give(
        self, model: Path, directories, tmp_path: Path, kernels: Kernels, name: str
    ) -> None:
        decoder = load_model(model)
        prepare(decoder, kernels)
        merged = load_model(merge(model, directories[name], tmp_path / "merged", SCALES[name]))
        adapter = load(directories[name], model)
        for length in LENGTHS:
            [found] = logits(decoder, [(adapter, length)], kernels)
            [wanted] = logits(merged, [(None, length)], kernels)
            [plain] = logits(decoder, [(None, length)], kernels)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
            assert (plain - wanted).abs().max() > 0.01

    def test_a_mixed_batch_gives_what_each_gives_alone(
        self, model: Path, directories, kernels: Kernels
    ) -> None:
        decoder = load_model(model)
        prepare(decoder, kernels)
        a, b = load(directories["all"], model, "a"), load(directories["some"], model, "b")
        # Rows of one adapter lie apart, beside each other, and at both ends; some have none.
        mixed = [(a, 9), (None, 5), (a, 12), (b, 7), (b, 4), (None, 3), (a, 1)]
        together = logits(decoder, mixed, kernels)
        for part, piece in zip(together, mixed, strict=True):
            [alone] = logits(decoder, [piece], kernels)
            torch.testing.assert_close(part, alone, rtol=1e-4, atol=1e-4)

    def test_packed_and_fused_layers_take_adapters_too(
        self, model: Path, directories, tmp_path: Path, kernels: Kernels
    ) -> None:
        decoder = load_model(model, dtype=torch.bfloat16)
        prepare(decoder, kernels)
        adapter = load(directories["all"], model, dtype=torch.bfloat16)
        exact = load_model(merge(model, directories["all"], tmp_path / "merged", 2.0))
        [found] = logits(decoder, [(adapter, 12)], kernels)
        [wanted] = logits(exact, [(None, 12)], kernels)
        [plain] = logits(decoder, [(None, 12)], kernels)
        scale = wanted.norm()
        assert (found - wanted).norm() / scale < 0.1 < 0.2 < (plain - wanted).norm() / scale
        [again] = logits(decoder, [(None, 12)], kernels)
        assert torch.equal(plain, again)  # a step without adapters is as it was


class TestSegments:
    @given(st.lists(st.tuples(st.sampled_from([None, "a", "b", "c"]), st.integers(0, 5))))
    def test_every_row_is_in_the_group_of_its_adapter(self, slices) -> None:
        owners = [key for key, count in slices for _ in range(count)]
        groups = group_rows(slices)
        for key, group in groups.items():
            rows = [row for start, stop in group.ranges for row in range(start, stop)]
            assert rows == [row for row, owner in enumerate(owners) if owner == key]
            assert group.rows == len(rows) > 0
            assert all(one[1] < two[0] for one, two in pairwise(group.ranges))
        assert set(groups) == set(owners) - {None}

    def test_no_adapters_no_batch(self) -> None:
        assert AdapterBatch.of([(None, 3), (None, 4)], torch.device("cpu")) is None


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
            ({"use_dora": True}, "use_dora is set"),
            ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
            ({"bias": "all"}, "bias is trained"),
            ({"rank_pattern": {"q_proj": 8}}, "ranks by module"),
            ({"init_lora_weights": "pissa"}, "changes the base weights"),
            ({"r": 0}, "r is 0"),
            ({"lora_alpha": "8"}, "lora_alpha is '8'"),
            ({"r": 5}, r"\[4, \d+\], but the model and rank 5 ask for \[5, \d+\]"),
        ],
    )
    def test_configurations(self, model: Path, tmp_path: Path, change, said: str) -> None:
        write_adapter(tmp_path, model, 0, **change)
        with pytest.raises(ModelError, match=said):
            AdapterFiles(tmp_path, ModelConfig.from_directory(model))

    def test_the_scale(self) -> None:
        plain = {"peft_type": "LORA", "r": 16, "lora_alpha": 32}
        assert LoraConfig.from_mapping(plain, Path("x")).scale == 2
        assert LoraConfig.from_mapping(plain | {"use_rslora": True}, Path("x")).scale == 8

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            ("layers.0.self_attn.q_proj", "layers.7.self_attn.q_proj", "the model has 2"),
            ("layers.0.self_attn.q_proj", "layers.0.mlp.router", "something else than the linear"),
            ("model.layers.0.self_attn.q_proj", "lm_head", "something else than the linear"),
            ("lora_A", "lora_magnitude_vector", "something else than the linear"),
        ],
    )
    def test_tensors(self, model: Path, tmp_path: Path, old: str, new: str, said: str) -> None:
        write_adapter(tmp_path, model, 0, modules=("q_proj",))
        file = tmp_path / "adapter_model.safetensors"
        save_file({key.replace(old, new): each for key, each in load_file(file).items()}, file)
        with pytest.raises(ModelError, match=said):
            AdapterFiles(tmp_path, ModelConfig.from_directory(model))

    def test_half_a_pair_no_tensors_and_missing_files(self, model: Path, tmp_path: Path) -> None:
        config = ModelConfig.from_directory(model)
        with pytest.raises(ModelError, match=r"adapter_config\.json does not exist"):
            AdapterFiles(tmp_path, config)
        write_adapter(tmp_path, model, 0, modules=("q_proj",))
        file = tmp_path / "adapter_model.safetensors"
        tensors = load_file(file)
        tensors.pop("base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight")
        save_file(tensors, file)
        with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.q_proj has no pair"):
            AdapterFiles(tmp_path, config)
        save_file({}, file)
        with pytest.raises(ModelError, match="holds no tensor"):
            AdapterFiles(tmp_path, config)
        file.unlink()
        with pytest.raises(ModelError, match="Save the adapter as safetensors"):
            AdapterFiles(tmp_path, config)


class TestNames:
    def test_the_book(self, model: Path, directories) -> None:
        book = AdapterBook([load(directories["all"], model, "a")])
        book.add(load(directories["some"], model, "b"))
        assert book.names == ["a", "b"]
        with pytest.raises(InvalidRequest, match=r"no adapter 'c'\. Use one of a, b, or load"):
            book.find("c")
        with pytest.raises(ConfigError, match="'a' already"):
            book.add(load(directories["some"], model, "a"))
        held = book.find("a")
        book.remove("a")
        assert held.sites
        with pytest.raises(InvalidRequest, match="Use one of b"):
            book.find("a")
        with pytest.raises(InvalidRequest, match="There are none"):
            AdapterBook().find("a")

    def test_namespaces_follow_the_files(self, model: Path, directories, tmp_path: Path) -> None:
        same = write_adapter(tmp_path / "same", model, 1)
        scaled = write_adapter(tmp_path / "scaled", model, 1, alpha=9.0)
        spaces = [load(each, model).namespace for each in (directories["all"], same, scaled)]
        assert spaces[0] == spaces[1] != spaces[2]
        assert all(-(2**63) <= space < 0 for space in spaces)

    def test_prompts_of_different_adapters_share_no_page(self) -> None:
        plain, one, two = (TokenList(range(12), space) for space in (None, -5, -6))
        keys = [each.page_keys(4, 3) for each in (plain, one, two)]
        assert len({key[0] for key in keys}) == 3
        one.revise(0, list(range(12)))
        assert one.page_keys(4, 3) == keys[1]
        assert json.dumps(keys[1][0]) == "[-5, 0, 1, 2, 3]"  # numbers only: files hash them
