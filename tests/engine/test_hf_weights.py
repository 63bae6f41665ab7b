"""Damage to checkpoints of transformers' models is found in their headers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from agentrt.engine.model import hf_weights
from agentrt.engine.model.load import open_source
from agentrt.errors import ModelError
from tests.engine.hf_models import their_logits, write_model
from tests.engine.test_model_logits import Pages, prompt
from tests.engine.test_model_weights import shard


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("qwen3_moe"), "qwen3_moe")


@pytest.fixture
def copy(experts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(experts, tmp_path / "model"))


def change(directory: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"


class Broken:
    """Ways to break a model directory, each with what the error must say."""

    @staticmethod
    def no_weights(directory: Path) -> str:
        (directory / "model.safetensors").unlink()
        return r"model\.safetensors does not exist"

    @staticmethod
    def missing_shard(directory: Path) -> str:
        shard(directory, 3)[1].unlink()
        return r"model-00002-of-00003\.safetensors does not exist"

    @staticmethod
    def truncated(directory: Path) -> str:
        file = directory / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        return r"model\.safetensors is not a whole safetensors file"

    @staticmethod
    def broken_header(directory: Path) -> str:
        file = directory / "model.safetensors"
        whole = file.read_bytes()
        file.write_bytes(whole[:8] + b"{" * 40 + whole[48:])
        return r"model\.safetensors is not a whole safetensors file"

    @staticmethod
    def missing_tensor(directory: Path) -> str:
        change(directory, lambda tensors: tensors.pop(NORM))
        return r"lacks the tensor model\.layers\.1\.input_layernorm\.weight"

    @staticmethod
    def missing_tensor_of_a_shard(directory: Path) -> str:
        for file in shard(directory, 3):
            tensors = load_file(file)
            if tensors.pop(NORM, None) is not None:
                save_file(tensors, file, metadata={"format": "pt"})
                return rf"{file.name} lacks the tensor {NORM}, which"
        raise AssertionError("no shard has the tensor")

    @staticmethod
    def missing_expert(directory: Path) -> str:
        change(directory, lambda tensors: tensors.pop(EXPERT))
        return r"model\.safetensors: the 11 tensors like .*experts.* hold"

    @staticmethod
    def wrong_shape(directory: Path) -> str:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"head_dim": 16}))
        return r"model\.safetensors: .*F32 .*but config\.json asks for"

    @staticmethod
    def surplus(directory: Path) -> str:
        change(directory, lambda tensors: tensors.update({"model.extra.weight": torch.zeros(2)}))
        return r"model\.safetensors: tensor model\.extra\.weight is not part of a qwen3_moe model"

    @staticmethod
    def wrong_dtype(directory: Path) -> str:
        change(directory, lambda t: t.update({NORM: torch.zeros(64, dtype=torch.int32)}))
        return r"input_layernorm\.weight is I32"


@pytest.mark.parametrize(
    "damage", [getattr(Broken, name) for name in vars(Broken) if not name.startswith("_")]
)
def test_damage_is_found_before_weights_are_read(
    copy: Path, damage: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = damage(copy)

    def never(*_: object) -> None:
        pytest.fail("weights were read of a model that cannot be loaded")

    monkeypatch.setattr(hf_weights, "load_weights", never)
    with pytest.raises(ModelError, match=words) as caught:
        open_source(copy)
    assert caught.value.remedy


def test_shards_load_as_the_whole(copy: Path) -> None:
    tokens = prompt(1, 40)
    theirs = their_logits(copy, tokens)
    shard(copy, 3)
    pages = Pages(open_source(copy, dtype=torch.float32).load("cpu"))
    (ours,) = pages.run([(tokens, 0, 40, pages.table(40))])
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_what_other_writers_leave_in_a_checkpoint_is_ignored(copy: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    change(copy, lambda tensors: tensors.update(buffer))
    open_source(copy)


@pytest.mark.parametrize("kind", ["gemma", "gpt2", "deepseek_v3", "opt"])
def test_checkpoints_with_tied_weights_other_names_and_pieces_are_whole(
    tmp_path: Path, kind: str
) -> None:
    write_model(tmp_path, kind)
    source = open_source(tmp_path, dtype=torch.bfloat16)
    model = source.load("cpu")
    weights = {id(weight): weight.nbytes for weight in model._model.parameters()}
    assert model.dtype == torch.bfloat16
    # Routers of some models stay in fp32: their weights take a little more than was said.
    assert source.weight_bytes <= sum(weights.values()) <= 1.05 * source.weight_bytes


def test_progress_is_told_from_nothing_to_all(copy: Path) -> None:
    source = open_source(copy, dtype=torch.float32)
    said: list[tuple[int, int]] = []
    source.load("cpu", lambda done, total: said.append((done, total)))
    assert (said[0][0], said[-1][0]) == (0, source.weight_bytes)
    assert {total for _, total in said} == {source.weight_bytes}


def test_our_decoder_tells_progress_after_each_tensor(tiny_model_dir: Path) -> None:
    said: list[tuple[int, int]] = []
    open_source(tiny_model_dir, dtype=torch.float32).load("cpu", lambda *now: said.append(now))
    amounts = [done for done, _ in said]
    assert amounts == sorted(amounts)
    assert len(said) > 20
    assert said[-1][0] == said[-1][1]
