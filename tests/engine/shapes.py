"""Shapes of models that are only attention: what tests of its kernels ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from agentrt.engine.model import ModelConfig
from agentrt.engine.model.recipe import config_json


def shape(heads, kv_heads, dim, windows=(None,)):
    """A model's shape with a layer for each of ``windows``."""
    raw = config_json("qwen3", "tiny", dtype="float32", eos=2, pad=0)
    return replace(
        ModelConfig.from_mapping(raw, Path("config.json")),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim,
        num_layers=len(windows),
        windows=windows,
    )
