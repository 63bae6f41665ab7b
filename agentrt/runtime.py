"""The composition root: the one place that wires model, KV, scheduling, engine and sandboxes."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from agentrt.assembly import EngineFactory, find_models, load_model, log_taken, plan_pools
from agentrt.engine.memory import MemoryPlan
from agentrt.errors import ConfigError, InvalidRequest, ProgramTooLarge, SandboxUnavailable
from agentrt.models import ModelHost
from agentrt.program import Program, ProgramParts
from agentrt.ranks import RankOwner
from agentrt.resources.governor import Governor, GovernorConfig
from agentrt.resources.intent import Intent, merged
from agentrt.scheduling import SchedulerConfig
from agentrt.scheduling.plan import Event
from agentrt.scheduling.policy import AdmitAll
from agentrt.scheduling.tenants import TenantBook, TenantSettings
from agentrt.served import ServedModel

if TYPE_CHECKING:
    from agentrt.engine.engine import EngineStatistics
    from agentrt.engine.model.load import Implementation
    from agentrt.engine.observed import OnStep
    from agentrt.engine.tokens import Tokenizer
    from agentrt.sandbox.base import Sandbox, SandboxSpec
    from agentrt.sandbox.choose import Choice

__all__ = ["Runtime", "RuntimeConfig"]

NEWCOMER_SHARE = 0.75
"""Share of a step's tokens that prefills under way leave to who waits, where newcomers preempt."""


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """What a runtime is made of.

    Args:
        model: a Hugging Face model directory or a model's name on the hub, as ``org/name``; None
            makes and uses a small seeded one, which has a real architecture and speaks nonsense.
            ``NAME=MODEL`` serves it under another name.
        more_models: others to serve beside it, likewise; a request names its model. Those that do
            not fit at the same time are loaded in place of each other.
        adapters: LoRA adapters in PEFT's layout, each ``NAME=DIR`` for the first model or
            ``MODEL:NAME=DIR``; a turn names the one that it goes through.
        model_impl: who computes it: ``native`` our own decoder, ``transformers`` its code with its
            attention on our pages, ``auto`` our own where it knows the architecture.
        policy: a scheduling policy's name, see ``agentrt.scheduling.policy_names``.
        pool_tokens: KV tokens; None takes what a GPU has left, and on a CPU a quarter of that, at
            most 131,072 tokens.
        host_kv_bytes: host memory for KV that has no place in the pool; 0: none. What is copied
            there and back is the policy's decision.
        kv_dtype: what KV is kept as: ``auto`` (the model's dtype), ``int8`` or ``fp8``, which take
            about half of bfloat16's memory, and round; on CPU both use the pure-torch attention.
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
        tensor_parallel: ranks that hold a part of every layer each: a GPU of this host, or on the
            CPU a process; 1 is this process alone.
        threads: CPU threads of the engine; None takes what affinity and cgroup allow, and fewer
            while a busy neighbour slows steps down.
        attention: ``auto`` takes our kernels where they can be used: native ones on CPU, Triton's
            on CUDA. ``native`` and ``triton`` insist, ``torch`` does without.
        quant: ``int8`` rounds the linear layers' weights (bfloat16 on CPU); None keeps them.
        sandbox: a sandbox kind, ``auto`` for the strongest that works, None for no sandboxes.
        image: image of docker sandboxes whose spec names none.
        trusted: lets ``auto`` fall back to plain processes. Only for work that ships with agentrt.
        tenants: weights and quotas by tenant; who is missing has weight 1 and no quota.
        draft: ``off``, ``ngram``, or ``auto``: guesses at what was read before are computed along
            with decodes, always or where that measures faster. It changes no token. ``auto`` is
            ``off`` where steps overlap: a guess needs the token that has not been read yet.
        graphs: ``on`` records decode steps for each batch size and launches them whole, ``off``
            launches each operation; ``auto`` is on for CUDA. It changes no token beyond rounding.
        overlap: ``on`` launches a decode step before the last one's tokens are read; ``auto`` is on
            for CUDA. It changes no token; a turn that stops is seen to one step late.
        preempt: ``on`` gives up a long prefill step when a turn comes, and lets that turn have most
            of the next one; ``auto`` is on for CUDA, where steps are large. It changes no token.
        governor: budgets of hosts, tenants and programs for tool calls, and how they are governed.
    """

    model: str | None = None
    more_models: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
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
    tensor_parallel: int = 1
    threads: int | None = None
    attention: str = "auto"
    quant: str | None = None
    sandbox: str | None = "auto"
    image: str | None = None
    trusted: bool = False
    tenants: Mapping[str, TenantSettings] = field(default_factory=dict)
    draft: str = "auto"
    graphs: str = "auto"
    overlap: str = "auto"
    preempt: str = "auto"
    governor: GovernorConfig = field(default_factory=GovernorConfig)

    def preempts(self, device: str) -> bool:
        """Whether long prefill steps give way on a kind of device.

        Raises:
            ConfigError: an unknown setting.
        """
        if self.preempt not in ("auto", "on", "off"):
            raise ConfigError(
                f"There is no preempt setting {self.preempt!r}.", remedy="Use auto, on or off."
            )
        return self.preempt == "on" or (self.preempt == "auto" and device == "cuda")

    def scheduler_config(self, *, preempt: bool = False) -> SchedulerConfig:
        """Return the scheduler's part.

        Raises:
            ConfigError: a bound is out of its range.
        """
        return SchedulerConfig(
            token_budget=self.token_budget,
            max_seqs=self.max_seqs,
            max_wait=self.max_wait,
            max_waiting=self.max_waiting,
            newcomer_share=NEWCOMER_SHARE if preempt else 0.0,
        )


class Runtime:
    """Serves programs. Made by ``Runtime.open``.

    Attributes:
        models: what is served; the first is for programs that name none.
        memory: the plan of the device's memory.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        host: ModelHost,
        choice: Choice | None,
        clock: Callable[[], float],
        governor: Governor,
    ) -> None:
        self.config = config
        self.governor = governor
        self.sandbox_choice = choice
        self.clock = clock
        self._host = host
        self._turn_numbers = itertools.count(1)
        self._programs: dict[tuple[str, str], Program] = {}

    @property
    def memory(self) -> MemoryPlan:
        """The plan of the device's memory."""
        return self._host.plan

    @property
    def models(self) -> Sequence[ServedModel]:
        """What is served, in the order in which it was named."""
        return self._host.models

    @property
    def model_name(self) -> str:
        """The first model's name."""
        return self.models[0].model_name

    @property
    def tokenizer(self) -> Tokenizer:
        """The first model's tokenizer."""
        return self.models[0].tokenizer

    @property
    def max_context(self) -> int:
        """The first model's longest context, in tokens."""
        return self.models[0].max_context

    @property
    def tenants(self) -> TenantBook:
        """The accounts of tenants with the first model."""
        return self.models[0].tenants

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
        """Load the models, start their engines, choose the sandbox; leaving ends all of it.

        ``on_event`` is called in an engine's thread with every scheduler event, ``on_step`` with
        every step's plan, start and end. ``on_load`` is told bytes of weights that were read, and
        in all, from a thread of its own; of one model after the other.

        Raises:
            ConfigError, ModelError: a setting or a model directory is wrong, or a model too large.
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
            found = await anyio.to_thread.run_sync(find_models, config)
            plan = await anyio.to_thread.run_sync(plan_pools, config, found)
            factory = EngineFactory(config, len(found), on_event, on_step, clock)
            host = ModelHost(plan, lambda model: factory.make(model.found, model.plan))
            runtime = cls(config, host, choice, clock, governor)
            for one in found:
                book = TenantBook(config.tenants, AdmitAll())
                host.models.append(
                    ServedModel(one, plan.of(one.name), book, host.acquire, runtime.program)
                )
            owner = RankOwner()
            stack.push_async_callback(anyio.to_thread.run_sync, owner.close)
            stack.push_async_callback(host.aclose)
            first = [model for model in host.models if model.plan.resident]
            # Loading cannot be interrupted half-way; it is short. All weights come before any pool.
            loads = [
                await anyio.to_thread.run_sync(load_model, config, model.found, on_load, owner)
                for model in first
            ]
            for model, load in zip(first, loads, strict=True):
                wire = partial(factory.wire, *load, model.plan.pages)
                host.start(model, await anyio.to_thread.run_sync(wire))
            log_taken(plan, found[0].wanted.device)
            stack.push_async_callback(runtime._end_programs)
            yield runtime

    def model(self, name: str) -> ServedModel:
        """Return a model that is served.

        Raises:
            InvalidRequest: there is none of that name; names those that there are.
        """
        return self._host.find(name)

    def program(
        self,
        program_id: str | None = None,
        *,
        tenant: str = "default",
        intent: Intent | None = None,
        model: str | None = None,
    ) -> Program:
        """Return a new program; enter it, or call its ``end``.

        ``intent`` is the default of all its tool calls, as ``intent(priority="low")``. ``model``
        names what computes its turns; None is the first model.

        Raises:
            InvalidRequest: a program with this id is open, or there is no such model.
        """
        from agentrt.engine.tokens import PromptBuilder

        served = self.models[0] if model is None else self.model(model)
        name = program_id or f"program-{uuid.uuid4().hex[:12]}"
        key = (served.model_name, name)
        if key in self._programs:
            raise InvalidRequest(f"Program {name} is open already.", remedy="Use another id.")
        parts = ProgramParts(
            engine=served,
            tokenizer=served.tokenizer,
            make_builder=partial(PromptBuilder, served.tokenizer),
            make_sandbox=partial(self._make_sandbox, name, tenant, intent),
            governor=self.governor,
            new_turn_id=lambda program: f"{program}#{next(self._turn_numbers)}",
            check_length=partial(_check_length, served.max_context),
            forget=lambda program: self._forget(key),
        )
        program = self._programs[key] = Program(name, tenant, parts)
        return program

    @property
    def adapters(self) -> list[str]:
        """The names of the first model's adapters."""
        return self.models[0].adapters

    async def load_adapter(
        self, name: str, directory: Path | str, *, model: str | None = None
    ) -> None:
        """Offer another LoRA adapter, for the first model where none is named.

        It takes memory that the plan has left in reserve. A model that is put out of device memory
        comes back with the adapters that it was opened with.

        Raises:
            ModelError: it is malformed, not supported, or does not fit the model.
            ConfigError: its name is taken, or the model cannot have adapters or is not loaded.
        """
        served = self.models[0] if model is None else self.model(model)
        taken = [each.model_name for each in self.models]
        taken += [adapter for each in self.models for adapter in each.adapters]
        if name in taken:
            raise ConfigError(f"There is {name!r} already.", remedy="Choose another name.")
        await anyio.to_thread.run_sync(served.load_adapter, name, directory)

    def drop_adapter(self, name: str, *, model: str | None = None) -> None:
        """Offer an adapter no longer; turns that go through it do so to their ends.

        Raises:
            InvalidRequest: there is none of that name.
        """
        served = self.models[0] if model is None else self.model(model)
        served.drop_adapter(name)

    async def sandbox(self, spec: SandboxSpec) -> Sandbox:
        """Make a sandbox that no program of this process owns; the caller closes it.

        ``spec.tenant`` and ``spec.program`` say whose budgets count.

        Raises:
            SandboxUnavailable: this runtime has no sandboxes, or none can be made.
        """
        return await self._make_sandbox(spec.program, spec.tenant, None, spec)

    def statistics(self) -> EngineStatistics:
        """Return the first model's figures as of the last step; never blocks."""
        return self.models[0].statistics()

    def _forget(self, key: tuple[str, str]) -> None:
        self._programs.pop(key, None)

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


def _check_length(longest: int, prompt: int, output: int) -> None:
    if prompt + output > longest:
        raise ProgramTooLarge(
            f"{prompt} prompt and {output} output tokens exceed the model's context of {longest}.",
            remedy="Shorten the prompt or lower max_tokens.",
        )
