"""Our logits against those of transformers, on the same seeded checkpoints, in fp32."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from agentrt.engine.attention.base import BatchLayout, SliceLayout
from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.model.decoder import Decoder
from agentrt.engine.model.weights import load_model

TOLERANCE = 1e-4
PAGE = 16
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
OLD_YARN = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"rope_scaling": OLD_YARN, "tie_word_embeddings": False}),
    ("llama", {"num_key_value_heads": 1, "head_dim": 32}),
    ("llama", {"rope_parameters": LINEAR, "num_key_value_heads": 4}),
    ("mistral", {}),
    ("mistral", {"sliding_window": 37}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": False, "rope_parameters": YARN}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 50, "max_window_layers": 1}),
    ("qwen3", {}),
    ("qwen3", {"rope_parameters": YARN, "attention_bias": True, "tie_word_embeddings": False}),
]


def reference(directory: Path, tokens: Sequence[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0]


class Pages:
    """A model, its attention, and sequences whose pages are scattered over the pool."""

    def __init__(self, model: Decoder, seed: int = 0, pages: int = 256) -> None:
        self.model = model
        self.attention = TorchPagedAttention(model.config, pages, PAGE, model.dtype)
        self._free = list(range(pages))
        random.Random(seed).shuffle(self._free)

    def table(self, tokens: int) -> list[int]:
        return [self._free.pop() for _ in range(-(-tokens // PAGE))]

    def run(self, parts: Sequence[tuple[Sequence[int], int, int, list[int]]]) -> list[torch.Tensor]:
        """Run slices ``(all tokens, start, end, pages)`` as one batch; logits of every token."""
        layout = BatchLayout(tuple(SliceLayout(a, b - a, table) for _, a, b, table in parts))
        tokens = torch.tensor([t for ids, a, b, _ in parts for t in ids[a:b]])
        positions = torch.tensor([p for _, a, b, _ in parts for p in range(a, b)])
        rows = torch.arange(len(tokens))
        logits = self.model.forward(tokens, positions, self.attention.plan(layout), rows)
        return list(torch.split(logits, [b - a for _, a, b, _ in parts]))


def prompt(seed: int, length: int) -> list[int]:
    return [random.Random(f"{seed}/{i}").randrange(512) for i in range(length)]


@pytest.mark.parametrize(("arch", "changes"), CASES)
def test_whole_and_chunked_prompts_match(
    tiny_models: Callable[..., Path], arch: str, changes: dict[str, Any]
) -> None:
    directory = tiny_models(arch, **changes)
    tokens = prompt(1, 300)
    expected = reference(directory, tokens)
    pages = Pages(load_model(directory))
    table = pages.table(300)
    (whole,) = pages.run([(tokens, 0, 300, table)])
    assert (whole - expected).abs().max() <= TOLERANCE
    table = pages.table(300)
    cuts = [0, 1, 2, 17, 32, 150, 151, 299, 300]
    parts = [pages.run([(tokens, a, b, table)])[0] for a, b in itertools.pairwise(cuts)]
    assert (torch.cat(parts) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3"])
def test_mixed_batches_of_chunks_and_decodes_match(
    tiny_models: Callable[..., Path], arch: str
) -> None:
    directory = tiny_models(arch)
    pages = Pages(load_model(directory), seed=3)
    lengths = [90, 41, 16, 130]
    prompts = [prompt(10 + i, n) for i, n in enumerate(lengths)]
    tables = [pages.table(n) for n in lengths]
    got: list[list[torch.Tensor]] = [[] for _ in prompts]
    done = [0] * len(prompts)
    rng = random.Random(7)
    while any(d < n for d, n in zip(done, lengths, strict=True)):
        live = [i for i in range(len(prompts)) if done[i] < lengths[i]]
        ends = {i: min(lengths[i], done[i] + rng.choice([1, 1, 7, 33])) for i in live}
        outputs = pages.run([(prompts[i], done[i], ends[i], tables[i]) for i in live])
        for i, output in zip(live, outputs, strict=True):
            got[i].append(output)
            done[i] = ends[i]
    for tokens, parts in zip(prompts, got, strict=True):
        assert (torch.cat(parts) - reference(directory, tokens)).abs().max() <= TOLERANCE


def test_contexts_longer_than_one_chunk_match(tiny_model_dir: Path) -> None:
    tokens = prompt(2, 1200)
    expected = reference(tiny_model_dir, tokens)
    pages = Pages(load_model(tiny_model_dir))
    table = pages.table(1200)
    parts = []
    for low, high in [(0, 513), (513, 514), (514, 1100), (1100, 1199), (1199, 1200)]:
        parts.append(pages.run([(tokens, low, high, table)])[0])
    assert (torch.cat(parts) - expected).abs().max() <= TOLERANCE
