"""The composition root: the one place that wires model, KV, scheduling, engine and sandboxes."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from agentrt.assembly import assemble, find_models, load_model, plan_pools
from agentrt.engine.memory import MemoryPlan
from agentrt.errors import InvalidRequest, ProgramTooLarge, SandboxUnavailable
from agentrt.program import Program, ProgramParts
from agentrt.resources.governor import Governor, GovernorConfig
from agentrt.resources.intent import Intent, merged
from agentrt.scheduling import SchedulerConfig
from agentrt.scheduling.plan import Event
from agentrt.scheduling.tenants import TenantBook, TenantSettings

if TYPE_CHECKING:
    from agentrt.engine.engine import Engine, EngineStatistics
    from agentrt.engine.model.base import Model
    from agentrt.engine.model.load import Implementation
    from agentrt.engine.observed import OnStep
    from agentrt.engine.tokens import Tokenizer
    from agentrt.sandbox.base import Sandbox, SandboxSpec
    from agentrt.sandbox.choose import Choice

__all__ = ["Runtime", "RuntimeConfig"]


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """What a runtime is made of.

    Args:
        model: a Hugging Face model directory or a model's name on the hub, as ``org/name``; None
            makes and uses a small seeded one, which has a real architecture and speaks nonsense.
            ``NAME=MODEL`` serves it under another name.
        more_models: others to serve beside it, likewise; a request names its model. Those that do
            not fit at the same time are loaded in place of each other.
        model_impl: who computes it: ``native`` our own decoder, ``transformers`` its code with its
            attention on our pages, ``auto`` our own where it knows the architecture.
        policy: a scheduling policy's name, see ``agentrt.scheduling.policy_names``.
        pool_tokens: KV tokens; None takes what a GPU has left, and on a CPU a quarter of that, at
            most 131,072 tokens.
        host_kv_bytes: host memory for KV that has no place in the pool; 0: none. What is copied
            there and back is the policy's decision.
        kv_dtype: what KV is kept as: ``auto`` (the model's dtype), ``int8`` or ``fp8``, which take
            about half of bfloat16's memory, and round; both use the pure-torch attention.
        kv_files: directory for files of KV that leaves host memory, and of all that is there at the
            end: a later start finds it again. None: none.
        kv_files_bytes: bytes that these files may take, for each model.
        measure: measure what prefill and reload cost, for policies that weigh them; a few seconds
            at the first start, then remembered in the cache directory.
        page_size: tokens a KV page holds.
        max_seqs: turns that run at the same time at most.
        token_budget: tokens a step computes at most.
        max_wait: seconds after which a waiting turn outranks pins and every younger turn.
        max_waiting: turns that may wait; one more is refused.
        dtype: ``float32``, ``bfloat16``, or ``auto``: float32 on CPU, else bfloat16.
        device: a torch device, or ``auto``: CUDA if there is one.
        threads: CPU threads of the engine; None takes what affinity and cgroup allow, and fewer
            while a busy neighbour slows steps down.
        attention: ``auto`` takes our CPU kernels where they can be built, ``native`` insists on
            them, ``torch`` does without.
        quant: ``int8`` rounds the linear layers' weights (bfloat16 on CPU); None keeps them.
        sandbox: a sandbox kind, ``auto`` for the strongest that works, None for no sandboxes.
        image: image of docker sandboxes whose spec names none.
        trusted: lets ``auto`` fall back to plain processes. Only for work that ships with agentrt.
        tenants: weights and quotas by tenant; who is missing has weight 1 and no quota.
        draft: ``off``, ``ngram``, or ``auto``: guesses at what was read before are computed along
            with decodes, always or where that measures faster. It changes no token.
        governor: budgets of hosts, tenants and programs for tool calls, and how they are governed.
    """

    model: str | None = None
    more_models: tuple[str, ...] = ()
    model_impl: Implementation = "auto"
    policy: str = "fixed-ttl=30"
    pool_tokens: int | None = None
    host_kv_bytes: int = 0
    kv_dtype: str = "auto"
    kv_files: str | None = None
    kv_files_bytes: int = 8 << 30
    measure: bool = True
    page_size: int = 16
    max_seqs: int = 64
    token_budget: int = 512
    max_wait: float = 600.0
    max_waiting: int = 10_000
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    attention: str = "auto"
    quant: str | None = None
    sandbox: str | None = "auto"
    image: str | None = None
    trusted: bool = False
    tenants: Mapping[str, TenantSettings] = field(default_factory=dict)
    draft: str = "auto"
    governor: GovernorConfig = field(default_factory=GovernorConfig)

    def scheduler_config(self) -> SchedulerConfig:
        """Return the scheduler's part.

        Raises:
            ConfigError: a bound is out of its range.
        """
        return SchedulerConfig(
            token_budget=self.token_budget,
            max_seqs=self.max_seqs,
            max_wait=self.max_wait,
            max_waiting=self.max_waiting,
        )


class Runtime:
    """Serves programs. Made by ``Runtime.open``."""

    def __init__(
        self,
        config: RuntimeConfig,
        engine: Engine,
        model: Model,
        tokenizer: Tokenizer,
        model_name: str,
        choice: Choice | None,
        clock: Callable[[], float],
        tenants: TenantBook,
        governor: Governor,
        memory: MemoryPlan,
    ) -> None:
        self.config = config
        self.memory = memory
        self.tenants = tenants
        self.governor = governor
        self.tokenizer = tokenizer
        self.model_name = model_name
        self.max_context = model.config.max_positions
        self.sandbox_choice = choice
        self.clock = clock
        self._engine = engine
        self._turn_numbers = itertools.count(1)
        self._programs: dict[str, Program] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        config: RuntimeConfig | None = None,
        *,
        on_event: Callable[[Event], None] | None = None,
        on_step: OnStep | None = None,
        on_load: Callable[[int, int], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> AsyncIterator[Runtime]:
        """Load the model, start the engine, choose the sandbox; leaving ends all of it.

        ``on_event`` is called in the engine's thread with every scheduler event, ``on_step`` with
        every step's plan, start and end. ``on_load`` is told bytes of weights that were read, and
        in all, from a thread of its own.

        Raises:
            ConfigError, ModelError: a setting or the model directory is wrong.
            SandboxUnavailable: the sandbox that was asked for does not work here.
        """
        config = config or RuntimeConfig()
        async with AsyncExitStack() as stack:
            choice = await _choose_sandbox(config)
            governor = Governor(config.governor)
            if choice is not None:
                await stack.enter_async_context(choice.provider)
                await choice.provider.govern(governor)
                stack.callback(governor.close)
            (found,) = await anyio.to_thread.run_sync(find_models, config)
            plan = await anyio.to_thread.run_sync(plan_pools, config, [found])
            # Loading cannot be interrupted half-way; it is short.
            loaded, kernels = await anyio.to_thread.run_sync(load_model, config, found, on_load)
            model, tokenizer, name = loaded.model, loaded.tokenizer, loaded.name
            assembled = partial(
                assemble,
                config,
                loaded,
                kernels,
                plan.of(name).pages,
                on_event=on_event,
                on_step=on_step,
                clock=clock,
            )
            engine, tenants = await anyio.to_thread.run_sync(assembled)
            await stack.enter_async_context(engine)
            runtime = cls(
                config, engine, model, tokenizer, name, choice, clock, tenants, governor, plan
            )
            stack.push_async_callback(runtime._end_programs)
            yield runtime

    def program(
        self,
        program_id: str | None = None,
        *,
        tenant: str = "default",
        intent: Intent | None = None,
    ) -> Program:
        """Return a new program; enter it, or call its ``end``.

        ``intent`` is the default of all its tool calls, as ``intent(priority="low")``.

        Raises:
            InvalidRequest: a program with this id is open.
        """
        from agentrt.engine.tokens import PromptBuilder

        name = program_id or f"program-{uuid.uuid4().hex[:12]}"
        if name in self._programs:
            raise InvalidRequest(f"Program {name} is open already.", remedy="Use another id.")
        parts = ProgramParts(
            engine=self._engine,
            tokenizer=self.tokenizer,
            make_builder=partial(PromptBuilder, self.tokenizer),
            make_sandbox=partial(self._make_sandbox, name, tenant, intent),
            governor=self.governor,
            new_turn_id=lambda program: f"{program}#{next(self._turn_numbers)}",
            check_length=self._check_length,
            forget=self._forget,
        )
        program = self._programs[name] = Program(name, tenant, parts)
        return program

    async def sandbox(self, spec: SandboxSpec) -> Sandbox:
        """Make a sandbox that no program of this process owns; the caller closes it.

        ``spec.tenant`` and ``spec.program`` say whose budgets count.

        Raises:
            SandboxUnavailable: this runtime has no sandboxes, or none can be made.
        """
        return await self._make_sandbox(spec.program, spec.tenant, None, spec)

    def statistics(self) -> EngineStatistics:
        """Return the figures as of the last step; never blocks."""
        return self._engine.statistics()

    def _check_length(self, prompt: int, output: int) -> None:
        if prompt + output > self.max_context:
            raise ProgramTooLarge(
                f"{prompt} prompt and {output} output tokens exceed the model's context of "
                f"{self.max_context}.",
                remedy="Shorten the prompt or lower max_tokens.",
            )

    def _forget(self, program_id: str) -> None:
        self._programs.pop(program_id, None)

    async def _make_sandbox(
        self, program: str | None, tenant: str | None, intent: Intent | None, spec: SandboxSpec
    ) -> Sandbox:
        if self.sandbox_choice is None:
            raise SandboxUnavailable(
                "This runtime was opened without sandboxes.",
                remedy="Open it with RuntimeConfig(sandbox='auto').",
            )
        whose = replace(
            spec,
            program=spec.program or program,
            tenant=spec.tenant or tenant,
            intent=merged(spec.intent, intent),
        )
        return await self.sandbox_choice.provider.create(whose)

    async def _end_programs(self) -> None:
        with anyio.CancelScope(shield=True):
            for program in list(self._programs.values()):
                await program.end()


async def _choose_sandbox(config: RuntimeConfig) -> Choice | None:
    if config.sandbox is None:
        return None
    from agentrt.sandbox.choose import choose

    return await choose(config.sandbox, trusted=config.trusted, image=config.image)
