"""Seeded small models of many architectures, written by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

COMMON: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 6,
    "num_local_experts": 6,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_group": 2,
    "topk_group": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
WINDOWS = ["sliding_attention", "full_attention"]
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
    "qwen3_moe": EXPERTS | {"head_dim": 32},
    "olmoe": EXPERTS,
    "mixtral": EXPERTS | {"sliding_window": None},
    "mistral": {"sliding_window": 37},
    "gemma": {"head_dim": 32},
    "gemma3_text": {
        "head_dim": 32,
        "sliding_window": 37,
        "layer_types": WINDOWS,
        "query_pre_attn_scalar": 20,
    },
    "phi3": {"sliding_window": None},
    "olmo2": {},
    "gpt_neox": {"rotary_pct": 0.25},
    "gpt2": {},
    "granite": {"attention_multiplier": 0.4},
    "cohere2": {"sliding_window": 37, "layer_types": WINDOWS},
    "starcoder2": {"sliding_window": None},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "deepseek_v3": EXPERTS | LATENT,
}


def write_config(directory: Path, kind: str, **changes: Any) -> Any:
    """Write the ``config.json`` of a small model; no weights."""
    config = transformers.AutoConfig.for_model(kind, **(COMMON | changes))
    config.save_pretrained(directory)
    return config


def write_model(directory: Path, kind: str, seed: int = 0, **changes: Any) -> Path:
    """Write a small model whose weights are large enough for its logits to differ clearly."""
    config = write_config(directory, kind, **(ARCHITECTURES.get(kind, {}) | changes))
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 0.1)
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        model.save_pretrained(directory)
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    return directory


def their_logits(directory: Path, tokens: list[int]) -> torch.Tensor:
    """Return the logits ``[tokens, vocab]`` that transformers itself computes, in fp32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits
