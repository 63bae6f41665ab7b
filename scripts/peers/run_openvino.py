"""OpenVINO GenAI's continuous batching, stepped; exports the checkpoint at the first load."""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from wire import serve

BLOCK = 32
"""Tokens of a block of its KV cache on CPU."""


def export(model: str) -> Path:
    """Return the directory of the exported model, beside the checkpoint; bf16 weights stay so."""
    target = Path(f"{model}-openvino")
    if not (target / "openvino_tokenizer.xml").exists():
        from optimum.exporters.openvino import main_export

        work = Path(f"{target}.partial-{os.getpid()}")
        main_export(
            model,
            work,
            task="text-generation-with-past",
            library_name="transformers",
            convert_tokenizer=True,
        )
        work.rename(target)
    return target


class OpenVino:
    """The pipeline is made anew for each batch, with blocks for that batch."""

    def load(self, model: str, threads: int) -> dict[str, Any]:
        """Export if need be."""
        self._model, self._threads = export(model), threads
        return {
            "version": version("openvino-genai"),
            "note": "bf16 weights, bf16 keys and values, prefix cache off",
        }

    def start(self, prompts: list[list[int]], room: int) -> dict[str, Any]:
        """Make the pipeline, then time the prompts."""
        config = openvino_genai.SchedulerConfig()
        # Those whose prompts are done first decode while the others' are computed.
        room += sum(map(len, prompts)) // 1024
        each = -(-(len(prompts[0]) + room + 2) // BLOCK) + 1
        config.num_kv_blocks = each * len(prompts) + 2
        config.max_num_batched_tokens = 2048
        config.max_num_seqs = 256
        config.dynamic_split_fuse = True
        config.enable_prefix_caching = False
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(self._model),
            config,
            "CPU",
            {"KV_CACHE_PRECISION": "bf16", "INFERENCE_NUM_THREADS": self._threads},
        )
        self._handles: list[Any] = []
        self._add([[20, 21, 22]], 2)
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()  # kernels are compiled at the first step
        self._handles = []
        start = time.perf_counter()
        self._add(prompts, room + 1)
        first: list[int | None] = [None] * len(prompts)
        while None in first:
            self._pipeline.step()
            for index, handle in enumerate(self._handles):
                if first[index] is None and handle.can_read():
                    (out,) = handle.read().values()
                    first[index] = int(out.generated_ids[0])
        return {"seconds": time.perf_counter() - start, "tokens": first}

    def _add(self, prompts: list[list[int]], tokens: int) -> None:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        for index, prompt in enumerate(prompts):
            ids = openvino.Tensor(np.array([prompt], np.int64))
            self._handles.append(self._pipeline.add_request(index, ids, config))

    def steps(self, count: int) -> dict[str, Any]:
        """Step, then make sure that every sequence is still alive."""
        start = time.perf_counter()
        for _ in range(count):
            self._pipeline.step()
        seconds = time.perf_counter() - start
        if not self._pipeline.has_non_finished_requests():
            raise RuntimeError("the batch ended within the measured steps")
        return {"seconds": seconds}

    def stop(self) -> dict[str, Any]:
        """Drop the pipeline with its cache."""
        for handle in self._handles:
            handle.stop()
        self._handles, self._pipeline = [], None
        return {}


if __name__ == "__main__":
    serve(OpenVino())
