"""``agentrt model``: what it prints, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentrt.cli.model import app
from agentrt.engine.model.config import ModelConfig
from agentrt.errors import ModelError

runner = CliRunner()


def run(*arguments: object) -> str:
    result = runner.invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_make_then_make_again(tmp_path: Path) -> None:
    target = tmp_path / "model"
    said = run("make", "--arch", "llama", "--size", "tiny", "--seed", 3, target)
    assert "speaks nonsense" in " ".join(said.split())
    assert ModelConfig.from_directory(target).arch == "llama"
    again = run("make", "--arch", "llama", "--size", "tiny", "--seed", 3, target, "--json")
    made = json.loads(again)
    assert made["reused"] is True
    assert made["seed"] == 3
    assert made["parameters"] == ModelConfig.from_directory(target).parameters


def test_make_refuses_a_directory_in_use(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="not empty"):
        run("make", "--size", "tiny", tmp_path)


def test_info_for_scripts_and_for_people(tiny_model_dir: Path) -> None:
    facts = json.loads(run("info", tiny_model_dir, "--json"))
    assert facts["arch"] == "qwen3"
    assert facts["dtype"] == "float32"
    assert facts["vocab_size"] == 512
    assert facts["kv_bytes_per_token"] == 512
    assert f"{facts['parameters']:,}" in run("info", tiny_model_dir)


def test_info_checks_that_the_model_can_be_loaded(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model_dir / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"model\.safetensors does not exist"):
        run("info", tmp_path)


@pytest.mark.parametrize("command", [[], ["make"], ["info"]])
def test_help_has_an_example(command: list[str]) -> None:
    assert "Example: agentrt model" in " ".join(run(*command, "--help").split())
