"""Loading weights: single and sharded files, dtypes, and errors before anything is read."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from agentrt.engine.attention import BatchLayout, SliceLayout, TorchPagedAttention
from agentrt.engine.model import Decoder, load_model
from agentrt.engine.model import weights as weights_module
from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.weights import Checkpoint, tensor_shapes
from agentrt.errors import ModelError

TOKENS = torch.randint(3, 512, (80,), generator=torch.Generator().manual_seed(4))


def logits(model: Decoder, cuts: Sequence[int] = (80,)) -> torch.Tensor:
    """Return the logits of all tokens, computed in slices that end at ``cuts``."""
    attention = TorchPagedAttention(model.config, 8, 16, model.dtype)
    parts, start = [], 0
    for end in cuts:
        step = attention.plan(BatchLayout((SliceLayout(start, end - start, [5, 0, 3, 7, 1]),)))
        positions, rows = torch.arange(start, end), torch.arange(end - start)
        parts.append(model.forward(TOKENS[start:end], positions, step, rows))
        start = end
    return torch.cat(parts)


@pytest.fixture
def copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny model that a test may break."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def shard(directory: Path, parts: int) -> list[Path]:
    """Split the single file of ``directory`` into shards with an index."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = list(tensors)
    files = [directory / f"model-{i + 1:05d}-of-{parts:05d}.safetensors" for i in range(parts)]
    where = {}
    for place, file in enumerate(files):
        chosen = names[place::parts]
        save_file({name: tensors[name] for name in chosen}, file, metadata={"format": "pt"})
        where |= dict.fromkeys(chosen, file.name)
    index = {"metadata": {}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return files


def test_shards_load_as_the_whole(tiny_model_dir: Path, copy: Path) -> None:
    shard(copy, 3)
    assert torch.equal(logits(load_model(copy)), logits(load_model(tiny_model_dir)))


def test_a_sharded_model_equals_that_of_transformers(copy: Path) -> None:
    shard(copy, 2)
    other = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32)
    with torch.inference_mode():
        expected = other(TOKENS[None]).logits[0]
    assert (logits(load_model(copy)) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3"])
def test_bfloat16_stays_within_twice_the_rounding_of_transformers(
    tiny_models: Callable[..., Path], arch: str
) -> None:
    """The allowance is what transformers in bf16 differs from fp32 on the same input."""
    directory = tiny_models(arch)
    exact = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    rounded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    with torch.inference_mode():
        truth = exact(TOKENS[None]).logits[0]
        theirs = rounded(TOKENS[None]).logits[0].float()
    allowed = 2 * (theirs - truth).abs().max()
    assert 0 < allowed < 2.0  # the yardstick itself is sane
    model = load_model(directory, dtype=torch.bfloat16)
    for cuts in ((80,), (1, 17, 50, *range(51, 81))):
        ours = logits(model, cuts)
        assert (ours - truth).abs().max() <= allowed
        assert (ours - truth).pow(2).mean() <= 4 * (theirs - truth).pow(2).mean()


def test_the_dtype_is_the_files_unless_asked_otherwise(copy: Path) -> None:
    assert load_model(copy).dtype == torch.float32
    assert load_model(copy, dtype=torch.bfloat16).dtype == torch.bfloat16
    tensors = load_file(copy / "model.safetensors")
    halves = {name: tensor.to(torch.float16) for name, tensor in tensors.items()}
    save_file(halves, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"torch_dtype": "float16"}))
    assert load_model(copy, dtype=torch.float32).dtype == torch.float32
    with pytest.raises(ModelError, match=r"float16 is not computed in.*float32 or bfloat16"):
        load_model(copy)


def test_tied_embeddings_share_their_memory(tiny_models: Callable[..., Path]) -> None:
    def storage(arch: str) -> tuple[int, int]:
        model = load_model(tiny_models(arch))
        return model._embed.weight.data_ptr(), model._head.weight.data_ptr()

    tied, head = storage("qwen3")
    assert tied == head
    untied, head = storage("mistral")
    assert untied != head


def test_a_surplus_head_of_a_tied_model_is_ignored(tiny_model_dir: Path, copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros(512, 64)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(load_model(copy)), logits(load_model(tiny_model_dir)))


def test_no_rows_give_no_logits(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir)
    attention = TorchPagedAttention(model.config, 1, 16, model.dtype)
    step = attention.plan(BatchLayout((SliceLayout(0, 2, [0]),)))
    none = torch.zeros(0, dtype=torch.int64)
    assert model.forward(TOKENS[:2], torch.arange(2), step, none).shape == (0, 512)


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
    def not_safetensors(directory: Path) -> str:
        (directory / "model.safetensors").write_bytes(struct.pack("<Q", 5) + b"hello")
        return "is not a whole safetensors file"

    @staticmethod
    def no_map(directory: Path) -> str:
        (directory / "model.safetensors.index.json").write_text("{}")
        return "has no weight_map"

    @staticmethod
    def wrong_shape(directory: Path) -> str:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"intermediate_size": 120}))
        return r"gate_proj\.weight is F32 \[128, 64\].*\[120, 64\]"

    @staticmethod
    def missing_tensor(directory: Path) -> str:
        tensors = load_file(directory / "model.safetensors")
        del tensors["model.layers.1.self_attn.k_norm.weight"]
        save_file(tensors, directory / "model.safetensors")
        return r"lacks the tensor model\.layers\.1\.self_attn\.k_norm\.weight"

    @staticmethod
    def surplus_tensor(directory: Path) -> str:
        tensors = load_file(directory / "model.safetensors")
        tensors["model.layers.0.mlp.gate_proj.weight_scale"] = torch.zeros(1)
        save_file(tensors, directory / "model.safetensors")
        return "weight_scale is not part of a dense qwen3 model"

    @staticmethod
    def wrong_dtype(directory: Path) -> str:
        tensors = load_file(directory / "model.safetensors")
        tensors["model.norm.weight"] = torch.zeros(64, dtype=torch.int32)
        save_file(tensors, directory / "model.safetensors")
        return r"model\.norm\.weight is I32"


@pytest.mark.parametrize(
    "damage", [getattr(Broken, name) for name in vars(Broken) if not name.startswith("_")]
)
def test_damage_is_found_before_weights_are_read(
    copy: Path, damage: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = damage(copy)

    def never(*_: object) -> None:
        pytest.fail("memory was taken for a model that cannot be loaded")

    monkeypatch.setattr(weights_module, "_Builder", never)
    with pytest.raises(ModelError, match=words) as caught:
        load_model(copy)
    assert caught.value.remedy


def test_the_shapes_are_those_of_the_checkpoint(tiny_models: Callable[..., Path]) -> None:
    for arch in ("llama", "mistral", "qwen2", "qwen3"):
        config = ModelConfig.from_directory(tiny_models(arch))
        stored = load_file(tiny_models(arch) / "model.safetensors")
        assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == tensor_shapes(
            config
        )
        assert sum(math.prod(s) for s in tensor_shapes(config).values()) == config.parameters
        Checkpoint(tiny_models(arch)).check(config)
