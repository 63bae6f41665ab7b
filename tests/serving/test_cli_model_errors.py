"""What is wrong with a model is told by the command line in one line, before weights are read."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentrt.cli.main import main
from agentrt.engine.model import weights
from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.make import make_model
from agentrt.engine.model.recipe import config_json
from agentrt.engine.model.weights import tensor_shapes
from tests.engine.hf_models import write_config
from tests.engine.test_hf_weights import Broken as BrokenExperts
from tests.engine.test_hf_weights import experts  # noqa: F401 - a fixture
from tests.engine.test_model_weights import Broken

HUGE = 2**40


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    make_model(directory, size="tiny", dtype="float32")
    return directory


@pytest.fixture(autouse=True)
def _no_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        pytest.fail("weights were read")

    monkeypatch.setattr(weights, "_Builder", never)
    monkeypatch.setattr("agentrt.engine.model.load.load_weights", never)


def refusal(capsys: pytest.CaptureFixture[str], model: Path | str, *flags: str) -> str:
    """Return what ``agentrt serve`` says as it refuses a model."""
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--model", str(model), "--port", "0", *flags])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    return said


def damages(kind: type) -> list[Callable[[Path], str]]:
    return [getattr(kind, name) for name in vars(kind) if not name.startswith("_")]


@pytest.mark.parametrize("damage", damages(Broken))
def test_damage_to_a_model_of_ours(
    capsys: pytest.CaptureFixture[str], tiny: Path, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "model"))
    words = damage(copy)
    said = refusal(capsys, copy)
    assert re.search(words, said)
    assert str(copy) in said


@pytest.mark.parametrize("damage", damages(BrokenExperts))
def test_damage_to_a_model_of_transformers(
    capsys: pytest.CaptureFixture[str],
    experts: Path,  # noqa: F811
    tmp_path: Path,
    damage: Callable[[Path], str],
) -> None:
    copy = Path(shutil.copytree(experts, tmp_path / "model"))
    words = damage(copy)
    said = refusal(capsys, copy)
    assert re.search(words, said)
    assert str(copy) in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", r"config\.json cannot be read"),
        ("[]", r"config\.json is not a JSON object"),
        ('{"model_type": "qwen3", "hidden_size": -1}', "hidden_size must be a positive integer"),
        ('{"model_type": "qwen3", "hidden_size": 64}', "num_attention_heads must be"),
        ('{"model_type": "nonesuch"}', r"config\.json: architecture 'nonesuch' is not known"),
        ('{"model_type": "mamba"}', r"config\.json: .*recurrent state"),
        ('{"model_type": "t5"}', r"config\.json: .*encoder-decoder"),
    ],
)
def test_configurations(
    capsys: pytest.CaptureFixture[str], tiny: Path, tmp_path: Path, text: str, words: str
) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "model"))
    (copy / "config.json").write_text(text)
    said = refusal(capsys, copy)
    assert re.search(words, said)
    assert str(copy / "config.json") in said


def test_no_tokenizer(capsys: pytest.CaptureFixture[str], tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "model"))
    (copy / "tokenizer.json").unlink()
    assert f"{copy / 'tokenizer.json'} does not exist. Complete" in refusal(capsys, copy)
    (copy / "tokenizer.json").write_text("{}")
    assert f"{copy / 'tokenizer.json'} is not a tokenizer" in refusal(capsys, copy)


def test_no_directory_and_no_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "/nonexistent/config.json does not exist" in refusal(capsys, "/nonexistent")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    said = refusal(capsys, "acme/nothing")
    assert said.startswith("error: acme/nothing: neither a directory nor whole in the hub's cache")


def test_an_implementation_that_there_is_not(
    capsys: pytest.CaptureFixture[str], tiny: Path
) -> None:
    assert "Use one of auto, native, transformers" in refusal(capsys, tiny, "--model-impl", "x")


def sparse(directory: Path, raw: dict[str, Any]) -> Path:
    """Write a model of any size that takes no place on the disk: its weights are a hole."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(raw))
    header, end = {}, 0
    shapes = tensor_shapes(ModelConfig.from_directory(directory))
    for name, shape in shapes.items():
        size = 2
        for count in shape:
            size *= count
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    assert end > HUGE
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return directory


def test_weights_that_do_not_fit_the_memory(
    capsys: pytest.CaptureFixture[str], tiny: Path, tmp_path: Path
) -> None:
    large = {
        "hidden_size": 16384,
        "intermediate_size": 65536,
        "num_hidden_layers": 200,
        "num_attention_heads": 128,
        "num_key_value_heads": 16,
        "head_dim": 128,
    }
    raw = config_json("qwen3", "tiny", dtype="bfloat16", eos=2, pad=0) | large
    model = sparse(tmp_path / "large", raw)
    for file in tiny.glob("tokenizer*"):
        shutil.copy(file, model)
    said = refusal(capsys, model, "--dtype", "bfloat16")
    assert re.search(rf"{model}: the weights take \d+\.\d GiB in bfloat16", said)
    assert "GiB are" in said
    assert "a smaller --pool, a smaller model, or give it more memory" in said


def test_a_pool_that_does_not_fit_the_memory(
    capsys: pytest.CaptureFixture[str], tiny: Path
) -> None:
    said = refusal(capsys, tiny, "--pool", str(10**12))
    assert re.search(r"tiny: the weights take \d+ KiB .*1,000,000,000,000 tokens of KV", said)


def test_a_cgroup_that_leaves_too_little(
    capsys: pytest.CaptureFixture[str], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentrt import loading
    from agentrt.resources.headroom import Headroom

    small = Headroom(100_000, "left below the memory limit of /sys/fs/cgroup/box")
    monkeypatch.setattr(loading, "memory_headroom", lambda: small)
    said = refusal(capsys, tiny)
    assert "only 98 KiB are left below the memory limit of /sys/fs/cgroup/box" in said


def test_the_smallest_architecture_that_is_refused_says_why(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_config(tmp_path, "gemma2")
    said = refusal(capsys, tmp_path)
    assert "caps its attention scores (softcap)" in said
    assert f"{tmp_path / 'config.json'}" in said
