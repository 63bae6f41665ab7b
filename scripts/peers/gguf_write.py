"""Writes a checkpoint of ours as a bf16 GGUF file; runs in llama.cpp's environment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
INNER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tensors(directory: Path) -> Iterator[tuple[str, NDArray[np.uint16]]]:
    """Yield name and bf16 bits of every tensor in a directory's safetensors files."""
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as source:
            length = int.from_bytes(source.read(8), "little")
            header = json.loads(source.read(length))
        header.pop("__metadata__", None)
        data = np.memmap(file, np.uint8, "r", 8 + length)
        for name, entry in header.items():
            if entry["dtype"] != "BF16":
                raise ValueError(f"{file}: {name} is {entry['dtype']}, not BF16")
            first, last = entry["data_offsets"]
            yield name, data[first:last].view(np.uint16).reshape(entry["shape"])


def renamed(name: str) -> str:
    """Return GGUF's name of a tensor."""
    if name in OUTER:
        return OUTER[name]
    _, _, layer, rest = name.split(".", 3)
    inner, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{INNER[inner]}.{kind}"


def interleaved(weight: NDArray[np.uint16], heads: int) -> NDArray[np.uint16]:
    """Order a head's rows so that those that rotate together lie together, as `llama` wants."""
    rows, inputs = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, inputs)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, inputs)


def convert(directory: Path, target: Path) -> None:
    """Write ``target`` from the checkpoint in ``directory``, whole or not at all."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    arch = config["model_type"]
    work = target.with_suffix(f".partial-{os.getpid()}")
    writer = gguf.GGUFWriter(str(work), arch)
    describe(writer, arch, config)
    for name, bits in tensors(directory):
        if bits.ndim == 1:
            wide = (bits.astype(np.uint32) << 16).view(np.float32)
            writer.add_tensor(renamed(name), wide)
            continue
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            of = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            bits = interleaved(bits, config[of])
        raw = np.ascontiguousarray(bits).view(np.uint8)
        writer.add_tensor(renamed(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    work.rename(target)


def describe(writer: gguf.GGUFWriter, arch: str, config: dict[str, object]) -> None:
    """Write the shape. There is no tokenizer: only ids are measured."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")
