"""A runtime of the real engine and scheduler with a backend that needs no model."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrt.engine.engine import Engine, EngineRequest, EngineStatistics, TurnStream
from agentrt.engine.fake import FakeTurnBackend
from agentrt.engine.kv.leases import PageCache
from agentrt.engine.params import SamplingParams
from agentrt.scheduling.hints import NO_HINTS, TurnHints
from agentrt.scheduling.plan import StepPlan
from agentrt.scheduling.registry import make_policy
from agentrt.scheduling.scheduler import Scheduler, SchedulerConfig
from agentrt.scheduling.tenants import TenantSettings, with_quotas

PATIENCE = 20.0
"""Seconds after which a wait in a test gives up."""
DEFAULT = SamplingParams()


class CharTokenizer:
    """One token a character: 95 printable ones, everything else is token 95, which ends a turn."""

    eos_ids = frozenset({95})
    vocab_size = 96
    name = "chars"

    def encode(self, text: str) -> list[int]:
        return [ord(char) - 32 if 32 <= ord(char) < 127 else 95 for char in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(token + 32) if token < 95 else "\n" for token in ids)

    def definition(self) -> list[bytes]:
        return [bytes([token + 32]) for token in range(95)] + [b""]

    def stream(self) -> CharStream:
        return CharStream(self)


class CharStream:
    def __init__(self, tokenizer: CharTokenizer) -> None:
        self._tokenizer = tokenizer

    def push(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def flush(self) -> str:
        return ""


class CharBuilder:
    """Renders a conversation as text; keeps what it was told of its own output."""

    def __init__(self, tokenizer: CharTokenizer) -> None:
        self._tokenizer = tokenizer
        self.noted: list[tuple[list[int], dict[str, Any]]] = []

    def build(self, messages: list[dict[str, Any]], tools: Any = None) -> list[int]:
        text = "".join(f"<{each['role']}>{each['content']}" for each in messages)
        return self._tokenizer.encode(f"{tools or ''}{text}<assistant>")

    def note_output(self, tokens: Sequence[int], message: dict[str, Any]) -> None:
        self.noted.append((list(tokens), message))

    answered = None  # text is read back as the tokens that it was made of

    def resume(self, answered: Any) -> None:
        raise AssertionError("there is nothing to resume")


class Throttle:
    """Lets the engine run freely, slowly (a turn outlasts a test), or a counted number of steps."""

    def __init__(self) -> None:
        self._pause = 0.0
        self._allowed = threading.Semaphore(0)
        self._free = threading.Event()
        self._free.set()

    def hold(self) -> None:
        self._free.clear()

    def slow(self) -> None:
        self._pause = 0.005

    def allow(self, steps: int) -> None:
        self._allowed.release(steps)

    def free(self) -> None:
        self._pause = 0.0
        self._free.set()
        self._allowed.release()

    def before(self, plan: StepPlan) -> None:
        time.sleep(self._pause)
        if not self._free.is_set() and not self._allowed.acquire(timeout=PATIENCE):
            raise TimeoutError("no test let the engine go on")


@dataclass(frozen=True)
class FakeConfig:
    model: str | None = None
    max_seqs: int = 64


class FakeRuntime:
    """What ``agentrt.runtime.Runtime`` promises, as far as serving uses it."""

    def __init__(
        self,
        *,
        pages: int = 1024,
        page_size: int = 4,
        tenants: Mapping[str, TenantSettings] | None = None,
        backend: type[FakeTurnBackend] = FakeTurnBackend,
        **config: Any,
    ) -> None:
        self.model_name = "fake"
        self.models = [self]
        self.adapters: list[str] = []
        self.tokenizer = CharTokenizer()
        self.config = FakeConfig()
        self.max_context = 8192
        self.builders: list[CharBuilder] = []
        self.clock: Callable[[], float] = time.monotonic
        self.throttle = Throttle()
        self.ended: list[str] = []
        self.left: list[tuple[str, str]] = []
        self.prompts: list[list[int]] = []
        self.hints: list[tuple[str, str | None, bool, TurnHints]] = []
        self.turns = itertools.count(1)
        policy, self.tenants = with_quotas(make_policy("fixed-ttl=30"), tenants or {})
        kv = PageCache(pages, page_size, policy.retention.score)
        self.backend = backend(
            page_size, vocab_size=self.tokenizer.vocab_size, before=self.throttle.before
        )
        self.engine = Engine(
            Scheduler(kv, policy, SchedulerConfig(**{"token_budget": 512, **config})),
            self.backend,
            tokenizer=self.tokenizer,
            check=True,
        )

    def program(self, program_id: str, *, tenant: str = "default") -> FakeProgram:
        return FakeProgram(self, program_id, tenant)

    def accounts(self) -> Any:
        return self.tenants.statistics()

    def statistics(self) -> EngineStatistics:
        return self.engine.statistics()

    def make_builder(self) -> CharBuilder:
        self.builders.append(CharBuilder(self.tokenizer))
        return self.builders[-1]

    async def __aenter__(self) -> FakeRuntime:
        self.engine.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.throttle.free()
        await self.engine.aclose()


@dataclass
class FakeProgram:
    runtime: FakeRuntime
    program_id: str
    tenant: str

    async def stream(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams = DEFAULT,
        *,
        context: str = "main",
        next_tool: str | None = None,
        last: bool = False,
        hints: TurnHints = NO_HINTS,
        adapter: str | None = None,
    ) -> TurnStream:
        self.runtime.prompts.append(list(prompt))
        self.runtime.hints.append((context, next_tool, last, hints))
        return await self.runtime.engine.submit(
            EngineRequest(
                turn_id=f"turn-{next(self.runtime.turns)}",
                program_id=self.program_id,
                prompt=prompt,
                sampling=sampling,
                context=context,
                tenant=self.tenant,
                next_tool=next_tool,
                last=last,
                hints=hints,
                adapter=adapter,
            )
        )

    def end_context(self, context: str) -> None:
        self.runtime.left.append((self.program_id, context))
        self.runtime.engine.end_context(self.program_id, context)

    async def end(self) -> None:
        self.runtime.ended.append(self.program_id)
        self.runtime.engine.end_program(self.program_id)
