"""Tiny seeded checkpoints, made once a session."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.make import make_model
from agentrt.engine.model.recipe import config_json
from agentrt.engine.model.seeded import write_weights

WORDS = range(3, 512)


def _write(directory: Path, arch: str, changes: Mapping[str, object]) -> None:
    """Make a tiny model; with changes to its configuration it has weights but no tokenizer."""
    if not changes:
        make_model(directory, arch, "tiny", 0, dtype="float32")
        return
    raw = config_json(arch, "tiny", dtype="float32", eos=2, pad=0) | changes
    (directory / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    write_weights(directory, ModelConfig.from_directory(directory), 0, words=WORDS)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return ``make(arch, **changes to config.json) -> directory``; equal calls share one."""
    made: dict[str, Path] = {}

    def make(arch: str = "qwen3", **changes: object) -> Path:
        key = json.dumps([arch, changes], sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"tiny-{arch}")
            _write(made[key], arch, changes)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_model_dir(tiny_models: Callable[..., Path]) -> Path:
    """Return a tiny fp32 Qwen3 with its tokenizer: 2 layers, 512 tokens of vocabulary."""
    return tiny_models("qwen3")


@pytest.fixture(scope="module")
def one_thread():
    """Have torch work on one thread: several would only wait for each other at small work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
