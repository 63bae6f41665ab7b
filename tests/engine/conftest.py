"""Tiny seeded checkpoints, made once a session."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.recipe import config_json
from agentrt.engine.model.seeded import write_weights

WORDS = range(4, 512)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return ``make(arch, **changes to config.json) -> directory``; equal calls share one."""
    made: dict[str, Path] = {}

    def make(arch: str = "qwen3", **changes: object) -> Path:
        raw = config_json(arch, "tiny", dtype="float32", eos=0, pad=1) | changes
        key = json.dumps(raw, sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"tiny-{arch}")
            (made[key] / "config.json").write_text(json.dumps(raw), encoding="utf-8")
            write_weights(made[key], ModelConfig.from_directory(made[key]), 0, words=WORDS)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_model_dir(tiny_models: Callable[..., Path]) -> Path:
    """Return a tiny fp32 Qwen3 checkpoint: 2 layers, 512 tokens of vocabulary."""
    return tiny_models("qwen3")
