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

from agentrt.errors import ConfigError, InvalidRequest, ProgramTooLarge, SandboxUnavailable
from agentrt.hints.calls import called_tool
from agentrt.loading import Loaded, Wanted, device_headroom, load
from agentrt.program import Program, ProgramParts
from agentrt.resources.governor import Governor, GovernorConfig
from agentrt.resources.intent import Intent, merged
from agentrt.scheduling import (
    Scheduler,
    SchedulerConfig,
    Surroundings,
    make_policy,
)
from agentrt.scheduling.fairness import by_tenants
from agentrt.scheduling.plan import Event
from agentrt.scheduling.policy import Policy, lru_score
from agentrt.scheduling.tenants import TenantBook, TenantSettings, with_quotas
from agentrt.tools import tool_name

if TYPE_CHECKING:
    import torch

    from agentrt.engine.backend import TurnBackend
    from agentrt.engine.engine import Engine, EngineStatistics
    from agentrt.engine.kernels import Kernels
    from agentrt.engine.model.base import Model
    from agentrt.engine.model.load import Implementation
    from agentrt.engine.observed import OnStep
    from agentrt.engine.tokens import Tokenizer
    from agentrt.sandbox.base import Sandbox, SandboxSpec
    from agentrt.sandbox.choose import Choice
    from agentrt.tiering import Costs

__all__ = ["Runtime", "RuntimeConfig"]

POOL_SHARE = 0.25
"""Share of the free memory that the page pool takes where no size is named."""
LARGEST_DEFAULT_POOL = 131_072
"""Tokens; more is taken only when it is asked for."""


NEWCOMER_SHARE = 0.75
"""Share of a step's tokens that prefills under way leave to who waits, where newcomers preempt."""


SMALLEST_DEFAULT_POOL = 2048
"""Tokens that must fit beside the weights where no size is named."""


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """What a runtime is made of.

    Args:
        model: a Hugging Face model directory or a model's name on the hub, as ``org/name``; None
            makes and uses a small seeded one, which has a real architecture and speaks nonsense.
        model_impl: who computes it: ``native`` our own decoder, ``transformers`` its code with its
            attention on our pages, ``auto`` our own where it knows the architecture.
        policy: a scheduling policy's name, see ``agentrt.scheduling.policy_names``.
        pool_tokens: KV tokens; None takes a quarter of the free memory, at most 131,072 tokens.
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
    ) -> None:
        self.config = config
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
            # Loading cannot be interrupted half-way; it is short.
            loaded = await anyio.to_thread.run_sync(_load, config, on_load)
            kernels = await anyio.to_thread.run_sync(_prepare, config, loaded.model)
            model, tokenizer, name = loaded.model, loaded.tokenizer, loaded.name
            assemble = partial(_assemble, on_event=on_event, on_step=on_step, clock=clock)
            engine, tenants = await anyio.to_thread.run_sync(assemble, config, loaded, kernels)
            await stack.enter_async_context(engine)
            runtime = cls(config, engine, model, tokenizer, name, choice, clock, tenants, governor)
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


def _load(config: RuntimeConfig, on_load: Callable[[int, int], None] | None) -> Loaded:
    """Load model and tokenizer; blocking."""
    import torch

    from agentrt.engine.pace import allowed_threads

    torch.set_num_threads(config.threads or allowed_threads())
    device = _device(config.device)
    wanted = Wanted(
        model=config.model,
        implementation=config.model_impl,
        dtype=_dtype(config.dtype, device),
        device=device,
        pool_tokens=config.pool_tokens or SMALLEST_DEFAULT_POOL,
    )
    return load(wanted, on_load)


def _prepare(config: RuntimeConfig, model: Model) -> Kernels:
    """Compile kernels at their first use and pack the weights for them; blocking."""
    from agentrt.engine.kernels import choose_kernels, prepare

    kernels = choose_kernels(config.attention, model.device.type)
    prepare(model, kernels, config.quant)
    return kernels


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return str(torch.empty(0, device=name).device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"The device {name!r} cannot be used: {str(error).splitlines()[0]}.",
            remedy="Use auto, cpu, or a CUDA device that nvidia-smi shows.",
        ) from error


def _dtype(name: str, device: str) -> torch.dtype:
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    known["auto"] = torch.float32 if device == "cpu" else torch.bfloat16
    if name not in known:
        raise ConfigError(f"There is no dtype {name!r}.", remedy=f"Use one of {sorted(known)}.")
    return known[name]


def _assemble(
    config: RuntimeConfig,
    loaded: Loaded,
    kernels: Kernels,
    *,
    on_event: Callable[[Event], None] | None,
    on_step: OnStep | None,
    clock: Callable[[], float],
) -> tuple[Engine, TenantBook]:
    """Wire page cache, policy, scheduler, attention and backend into an engine."""
    from agentrt.engine.draft import make_drafter
    from agentrt.engine.engine import Engine
    from agentrt.engine.gpu.choose import choose_steps, make_backend
    from agentrt.engine.kernels import make_attention, warm_up
    from agentrt.engine.kv import PageCache
    from agentrt.engine.observed import ObservedBackend
    from agentrt.engine.pace import PacedBackend, allowed_threads
    from agentrt.engine.tuner import ThreadTuner
    from agentrt.tiering import make_tier, measured_costs

    model, pages = loaded.model, _pool_pages(config, loaded.model)
    new_attention = partial(
        make_attention,
        kernels,
        model.config,
        pages,
        config.page_size,
        model.dtype,
        model.device,
        config.kv_dtype,
    )
    preempt = config.preempts(model.device.type)
    mode = partial(choose_steps, config.graphs, config.overlap, model.device.type)
    computing, steps = make_backend(model, new_attention, mode, config.max_seqs)
    if model.device.type == "cuda":
        warm_up(model, computing.attention())
    tier = make_tier(config, loaded.directory, model, computing.attention)
    costs = measured_costs(
        model, computing.attention(), tier, config.token_budget, measure=config.measure
    )
    policy, tenants = _policy(config, costs, pages * config.page_size)
    retention = policy.retention
    kv = PageCache(pages, config.page_size, retention.score, rescore=retention.rescore)
    host = None
    if tier is not None:
        host = PageCache(tier.pages, config.page_size, lru_score, evicted=tier.evicted)
        tier.keep_in_files(host.runs)
    scheduler = Scheduler(
        kv,
        policy,
        config.scheduler_config(preempt=preempt),
        host=host,
        archive=None if tier is None else tier.archive,
        step_observer=costs.prefill,
        drafter=make_drafter(_draft(config.draft, steps.overlap), computing.foresee),
    )
    backend: TurnBackend = computing
    if config.threads is None and model.device.type == "cpu":
        backend = PacedBackend(backend, ThreadTuner(allowed_threads()), clock)
    if on_step is not None:
        backend = ObservedBackend(backend, on_step, clock)
    engine = Engine(
        scheduler,
        backend,
        tokenizer=loaded.tokenizer,
        clock=clock,
        on_event=on_event,
        called_tool=partial(called_tool, command_name=tool_name),
        mover=tier,
        overlap=steps.overlap,
        preempt=preempt,
    )
    return engine, tenants


def _draft(mode: str, overlap: bool) -> str:
    """Return the draft mode: guesses and steps launched early exclude each other."""
    return "off" if mode == "auto" and overlap else mode


def _policy(config: RuntimeConfig, costs: Costs, capacity: int) -> tuple[Policy, TenantBook]:
    """Make the policy, with the tenants' shares above its order where it has none of its own."""
    weights = {name: one.weight for name, one in config.tenants.items()}
    around = Surroundings(
        prefill_seconds=costs.prefill,
        reload_seconds=costs.reload,
        capacity=capacity,
        tenants=weights,
    )
    policy = make_policy(config.policy, around)
    if policy.groups is None and any(weight != 1 for weight in weights.values()):
        policy = by_tenants(policy, weights)
    return with_quotas(policy, config.tenants)


def _pool_pages(config: RuntimeConfig, model: Model) -> int:
    """Return the size of the page pool in pages.

    Raises:
        ConfigError: the size that was asked for is no page, or does not fit the free memory.
    """
    from agentrt.engine.attention.quantized import kv_bytes_per_token

    per_token = kv_bytes_per_token(model.config, model.dtype, config.kv_dtype)
    room = device_headroom(str(model.device))
    free = room.bytes
    if config.page_size < 1:
        raise ConfigError(f"page_size is {config.page_size}.", remedy="Use at least 1; 16 is good.")
    tokens = config.pool_tokens
    if tokens is None:
        tokens = min(LARGEST_DEFAULT_POOL, int(free * POOL_SHARE) // per_token)
    if tokens < config.page_size:
        raise ConfigError(
            f"A pool of {tokens} tokens is less than a page of {config.page_size}.",
            remedy="Name a larger pool, for example 16384 tokens, or free some memory.",
        )
    if tokens * per_token > free:
        raise ConfigError(
            f"A pool of {tokens} tokens takes {tokens * per_token:,} bytes; {free:,} are "
            f"{room.bound}.",
            remedy=f"Ask for at most {free // per_token} tokens.",
        )
    return tokens // config.page_size
