"""transformers with SDPA attention and its dynamic cache, stepped. It runs in our environment."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from wire import serve


class Transformers:
    """A whole batch of equal lengths at once, as ``generate`` would do it."""

    def load(self, model: str, threads: int) -> dict[str, Any]:
        """Load in bf16."""
        torch.set_num_threads(threads)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()
        version = f"{transformers.__version__}, torch {torch.__version__}"
        return {"version": version, "note": "bf16, SDPA, dynamic cache"}

    @torch.inference_mode()
    def start(self, prompts: list[list[int]], room: int) -> dict[str, Any]:
        """Compute the prompts, a few sequences at a time so that scores fit."""
        start = time.perf_counter()
        self._cache = transformers.DynamicCache()
        self._forward(torch.tensor(prompts))
        return {"seconds": time.perf_counter() - start, "tokens": self._next[:, 0].tolist()}

    def _forward(self, ids: torch.Tensor) -> None:
        out = self._model(
            input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._next = out.logits[:, -1].argmax(-1, keepdim=True)

    @torch.inference_mode()
    def steps(self, count: int) -> dict[str, Any]:
        """Decode greedily."""
        start = time.perf_counter()
        for _ in range(count):
            self._forward(self._next)
        return {"seconds": time.perf_counter() - start}

    def stop(self) -> dict[str, Any]:
        """Drop the cache."""
        self._cache = self._next = None
        return {}


if __name__ == "__main__":
    serve(Transformers())
