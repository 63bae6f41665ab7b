"""llama.cpp through the low-level functions of llama-cpp-python, stepped; bf16 GGUF."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from gguf_write import convert
from wire import serve

CHUNK = 2048
"""Tokens of a call; 512 of them are computed at once, which is its default."""


class Llama:
    """The context is made anew for each batch."""

    def load(self, model: str, threads: int) -> dict[str, Any]:
        """Convert if need be, and map the weights."""
        file = Path(f"{model}.gguf")
        if not file.exists():
            convert(Path(model), file)
        self._threads = threads
        # Its log would tell every tensor; kept, as it must not be collected.
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"{file} could not be loaded")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._context: Any = None
        return {
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "note": "bf16 GGUF, f16 keys and values, flash attention",
        }

    def start(self, prompts: list[list[int]], room: int) -> dict[str, Any]:
        """Make the context, then time the prompts."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = (len(prompts[0]) + room + 32) * len(prompts)
        params.n_batch, params.n_ubatch = CHUNK, 512
        params.n_seq_max = len(prompts)
        params.n_threads = params.n_threads_batch = self._threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("no memory for the context")
        self._batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)
        start = time.perf_counter()
        self._place = len(prompts[0])
        self._next = [self._prompt(index, prompt) for index, prompt in enumerate(prompts)]
        return {"seconds": time.perf_counter() - start, "tokens": list(self._next)}

    def _prompt(self, sequence: int, prompt: list[int]) -> int:
        for first in range(0, len(prompt), CHUNK):
            part = prompt[first : first + CHUNK]
            for index, token in enumerate(part):
                self._put(index, token, first + index, sequence, False)
            self._batch.logits[len(part) - 1] = 1
            self._decode(len(part))
        return self._best(len(part) - 1)

    def _put(self, index: int, token: int, place: int, sequence: int, logits: bool) -> None:
        batch = self._batch
        batch.token[index], batch.pos[index] = token, place
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = sequence
        batch.logits[index] = logits

    def _decode(self, tokens: int) -> None:
        self._batch.n_tokens = tokens
        code = llama_cpp.llama_decode(self._context, self._batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")

    def _best(self, index: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())

    def steps(self, count: int) -> dict[str, Any]:
        """Decode greedily, all sequences in one batch."""
        start = time.perf_counter()
        for _ in range(count):
            for index, token in enumerate(self._next):
                self._put(index, token, self._place, index, True)
            self._decode(len(self._next))
            self._next = [self._best(index) for index in range(len(self._next))]
            self._place += 1
        return {"seconds": time.perf_counter() - start}

    def stop(self) -> dict[str, Any]:
        """Free the context."""
        if self._context:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self._context)
        self._context = None
        return {}


if __name__ == "__main__":
    serve(Llama())
