"""Our own engine, whole: thread, scheduler, sampling, streams; stepped by a gate at its backend."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from agentrt.waiting import wait_passively

wait_passively(os.environ)

import torch  # noqa: E402
from wire import prompts, serve  # noqa: E402

import agentrt  # noqa: E402
from agentrt.bench import engine_parts as parts  # noqa: E402
from agentrt.engine.backend import StepHandle, TurnBackend  # noqa: E402
from agentrt.engine.engine import Engine, EngineRequest, TurnStream  # noqa: E402
from agentrt.engine.kernels import choose_kernels, make_attention, prepare  # noqa: E402
from agentrt.engine.kv import PageCache  # noqa: E402
from agentrt.engine.model.load import open_source  # noqa: E402
from agentrt.engine.pace import PacedBackend  # noqa: E402
from agentrt.engine.params import SamplingParams  # noqa: E402
from agentrt.engine.runner import TorchBackend  # noqa: E402
from agentrt.engine.tuner import ThreadTuner  # noqa: E402
from agentrt.scheduling import (  # noqa: E402
    OnlinePrefillCost,
    Scheduler,
    SchedulerConfig,
    Surroundings,
    make_policy,
)
from agentrt.scheduling.plan import StepPlan  # noqa: E402

PAGE = 16
PATIENCE = 600.0
"""Seconds after which a step is given up."""


class Gate:
    """A backend that holds the engine's thread before a step until the step is allowed."""

    def __init__(self, inner: TurnBackend) -> None:
        self._inner = inner
        self._changed = threading.Condition()
        self._allowed: float = float("inf")
        self._arrived: float | None = None
        self.narrowest = sys.maxsize

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)  # all but launching

    def launch(self, plan: StepPlan) -> StepHandle:
        """Wait to be allowed, then pass on."""
        with self._changed:
            self._arrived = time.perf_counter()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._allowed > 0)
            self._allowed -= 1
            self._arrived = None
            self.narrowest = min(self.narrowest, len(plan.slices))
        return self._inner.launch(plan)

    def shut(self) -> None:
        """Let the step that is under way end, and allow no other."""
        with self._changed:
            self._allowed = 0
            self._await_arrival()

    def unlock(self) -> None:
        """Let the engine run on its own."""
        with self._changed:
            self._allowed = float("inf")
            self._changed.notify_all()

    def allow(self, steps: int) -> float:
        """Allow ``steps`` and return the seconds until the engine has brought the next one."""
        with self._changed:
            self._allowed = steps
            self.narrowest = sys.maxsize
            start = time.perf_counter()
            self._changed.notify_all()
            return self._await_arrival() - start

    def _await_arrival(self) -> float:
        there = self._changed.wait_for(
            lambda: self._allowed == 0 and self._arrived is not None, PATIENCE
        )
        if not there or self._arrived is None:
            raise TimeoutError("the engine has brought no step")
        return self._arrived


class Own:
    """The engine is made anew for each batch, with pages for that batch; the model stays."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._turns = 0
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def load(self, model: str, threads: int) -> dict[str, Any]:
        """Load and pack."""
        torch.set_num_threads(threads)
        self._threads = threads
        self._kernels = choose_kernels("auto", "cpu")
        source = open_source(Path(model), dtype=torch.bfloat16, implementation="native")
        self._model = source.load("cpu", None)
        prepare(self._model, self._kernels)
        version = f"{getattr(agentrt, '__version__', '?')}, torch {torch.__version__}"
        return {"version": version, "note": f"bf16, kernels: {self._kernels.name}"}

    def start(self, asked: list[list[int]], room: int) -> dict[str, Any]:
        """Make the engine, then time the prompts."""
        return asyncio.run_coroutine_threadsafe(self._start(asked, room), self._loop).result()

    async def _start(self, asked: list[list[int]], room: int) -> dict[str, Any]:
        self._batch = len(asked)
        # Those whose prompts are done first decode while the others' are computed.
        room += sum(map(len, asked)) // 256
        each = -(-(len(asked[0]) + room + 64) // PAGE) + 1
        await self._make(each * len(asked) + 2)
        await self._first("warm", [20, 21, 22])
        sampling = SamplingParams(temperature=0.0, max_tokens=room + 60)
        start = time.perf_counter()
        streams = [
            await self._engine.submit(EngineRequest(str(i), str(i), prompt, sampling))
            for i, prompt in enumerate(asked)
        ]
        first = [(await anext(stream)).tokens[0] for stream in streams]
        seconds = time.perf_counter() - start
        self._readers = [asyncio.create_task(_read(stream)) for stream in streams]
        await asyncio.to_thread(self._gate.shut)
        return {"seconds": seconds, "tokens": first}

    async def _make(self, pages: int) -> None:
        policy = make_policy(
            "fcfs",  # holds nobody back: every sequence of the batch runs in every step
            Surroundings(prefill_seconds=OnlinePrefillCost(), capacity=pages * PAGE, tenants={}),
        )
        kv = PageCache(pages, PAGE, policy.retention.score, rescore=policy.retention.rescore)
        attention = make_attention(
            self._kernels, self._model.config, pages, PAGE, self._model.dtype
        )
        paced = PacedBackend(
            TorchBackend(self._model, attention), ThreadTuner(self._threads), time.perf_counter
        )
        self._gate = Gate(paced)
        self._engine = Engine(Scheduler(kv, policy, SchedulerConfig()), self._gate)
        self._engine.start()

    def steps(self, count: int) -> dict[str, Any]:
        """Let the gate through ``count`` steps, everything around them included."""
        seconds = self._gate.allow(count)
        if self._gate.narrowest < self._batch:
            raise RuntimeError(
                f"a step computed {self._gate.narrowest} of {self._batch} sequences: no comparison"
            )
        return {"seconds": seconds}

    def again(self, prefix: int, new: int, vocabulary: int, seed: int) -> dict[str, Any]:
        """Time a turn on a cached prefix beside a cold prompt of the same length."""
        work = self._again(prefix, new, vocabulary, seed)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _again(self, prefix: int, new: int, vocabulary: int, seed: int) -> dict[str, Any]:
        known, cold = prompts(seed, 2, prefix + new, vocabulary)
        await self._make(4 * (prefix + new) // PAGE)
        await self._first("known", known[:prefix])
        seconds = {"warm": await self._first("known", known)}
        seconds["cold"] = await self._first("cold", cold)
        await self._engine.aclose()
        return seconds

    async def _first(self, program: str, prompt: list[int]) -> float:
        """Return the seconds that a turn of one token takes."""
        self._turns += 1
        sampling = SamplingParams(temperature=0.0, max_tokens=1)
        request = EngineRequest(f"turn {self._turns}", program, prompt, sampling)
        start = time.perf_counter()
        await _read(await self._engine.submit(request))
        return time.perf_counter() - start

    def probe(self) -> dict[str, Any]:
        """Return what this machine's memory and arithmetic give."""
        return asdict(parts.machine_limits())

    def part(self, name: str) -> dict[str, Any]:
        """Return one of our own numbers."""
        if name == "attention":
            return {model: parts.attention_ratio(model) for model in ("m135", "m600")}
        if name == "host":
            return parts.host_milliseconds()
        return {"share": parts.fragmentation()}

    def stop(self) -> dict[str, Any]:
        """Cancel the turns and end the engine."""
        return asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()

    async def _stop(self) -> dict[str, Any]:
        self._gate.unlock()
        await self._engine.aclose()
        await asyncio.gather(*self._readers)
        del self._engine, self._gate
        return {}


async def _read(stream: TurnStream) -> None:
    async for _ in stream:
        pass


if __name__ == "__main__":
    serve(Own())
