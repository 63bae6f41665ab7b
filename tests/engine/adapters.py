"""Seeded LoRA adapters in PEFT's layout, and the same merged into their model's weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from agentrt.engine.model.config import ModelConfig
from agentrt.engine.model.weights import linear_shapes

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(
    directory: Path,
    model: Path,
    seed: int,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    modules: Sequence[str] = ALL,
    dtype: torch.dtype = torch.float32,
    **settings: object,
) -> Path:
    """Write an adapter whose B is not zero: it changes what the model says."""
    config = ModelConfig.from_directory(model)
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config.num_layers):
        for name, rows, columns, _ in linear_shapes(config):
            if name.rpartition(".")[2] not in modules:
                continue
            place = f"base_model.model.model.layers.{layer}.{name}"
            for side, shape in (("A", (rank, columns)), ("B", (rows, rank))):
                values = torch.randn(shape, generator=random) * 0.3
                tensors[f"{place}.lora_{side}.weight"] = values.to(dtype)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    said = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(modules),
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(said | settings))
    return directory


def merge(model: Path, adapter: Path, target: Path, scale: float) -> Path:
    """Write a copy of a model with ``W + scale * B @ A`` in place of ``W``."""
    shutil.copytree(model, target)
    weights = load_file(model / "model.safetensors")
    for name, a in load_file(adapter / "adapter_model.safetensors").items():
        if ".lora_A." not in name:
            continue
        b = load_file(adapter / "adapter_model.safetensors")[name.replace("lora_A", "lora_B")]
        whole = name.removeprefix("base_model.model.").replace(".lora_A", "")
        weights[whole] = weights[whole] + scale * (b.float() @ a.float())
    save_file(weights, target / "model.safetensors")
    return target
